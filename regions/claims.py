"""What Somepalli et al. (CVPR 2022) claim of decision regions, judged on class maps that save_preds.py wrote.

    python -m regions.claims runs/regions_cpu

Each claim is one function of the maps under the given folder; a claim whose runs are not there is left out and named.
Writes results/regions/claims.json, which python -m landscape.claims renders into REPRODUCTION.md.
"""

import json
from pathlib import Path

from landscape import claims, cli, runs
from landscape.claims import Claim, judge
from landscape.errors import FileProblem

PAPER = "Somepalli et al. 2022"
CONVOLUTIONAL = ("resnet", "vgg", "wrn", "densenet", "googlenet", "mobilenet", "lenet", "mcnn")
RESAMPLES = 1000


def make_parser():
    return claims.study_parser("regions", __doc__)


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    judged, missing = [], []
    for make in CLAIMS:
        try:
            found = make(Path(args.folder))
        except FileProblem as e:
            missing.append(f"{make.__name__}: {e}")
            continue
        judged += found
    if not judged:
        raise FileProblem(f"{args.folder}: no runs for any claim; " + "; ".join(missing))
    claims.record(args.out, judged, missing)
    return 0


# ---- maps and intervals --------------------------------------------------------------------------------------------


def collect(folder, group, select, anchors="distinct"):
    """(maps (M, P, S), group of each, planes (P), settings): the finished maps with these anchors that the selected
    runs share; where there are several sets, that of most planes. group: a function of a landscape.runs.Source, whose
    None leaves it out. Raises FileProblem where fewer than two runs have them."""
    import numpy as np

    held, groups = [], []
    for source in runs.find_models(folder, select=select):
        name = group(source)
        if name is None:
            continue
        sets = {}
        for file in sorted(source.path.glob("arrays/class_maps-*.npz")):
            arrays = runs.read_arrays(file)
            settings = json.loads(str(arrays["settings"]))
            if settings["anchors"] == anchors and int(arrays["complete"]) == settings["planes"]:
                sets[file.name] = settings["planes"], arrays["labels"], settings
        if sets:
            held.append(sets)
            groups.append(name)
    shared = set.intersection(*map(set, held)) if held else set()
    if len(held) < 2 or not shared:
        raise FileProblem(f"{folder}: no class maps with {anchors} anchors of runs with {' '.join(select)}")
    best = max(shared, key=lambda name: (held[0][name][0], name))
    return np.stack([sets[best][1] for sets in held]), groups, held[0][best][2]


def joint_interval(per_plane, groups, statistic, level=0.95, seed=0):
    """(value, low, high) of a statistic of the matrix of group means, from pair scores (M, M, P).

    Networks are drawn within their groups and planes over all (both vary): percentiles of RESAMPLES draws, which of
    three networks a group are narrower than they should be. statistic: a function of {(group, group): mean}. A network
    never pairs with itself; a draw without a pair is drawn again.
    """
    import numpy as np

    names = list(dict.fromkeys(groups))
    members = {g: np.flatnonzero([h == g for h in groups]) for g in names}
    rng = np.random.default_rng(seed)

    def means(matrix, weights):
        out = {}
        for i, a in enumerate(names):
            for b in names[i:]:
                w = np.outer(weights[members[a]], weights[members[b]])
                if a == b:
                    np.fill_diagonal(w, 0)
                if w.sum() == 0:
                    if len(members[a]) == 1:
                        continue  # one network has no pair within its group
                    return None
                block = matrix[np.ix_(members[a], members[b])]
                out[a, b] = out[b, a] = float((w * block).sum() / w.sum())
        return out

    count, planes = len(groups), per_plane.shape[-1]
    value = statistic(means(per_plane.mean(-1), np.ones(count)))
    draws = []
    while len(draws) < RESAMPLES:
        weights = np.zeros(count)
        for rows in members.values():
            weights[rows] += np.bincount(rng.integers(len(rows), size=len(rows)), minlength=len(rows))
        share = np.bincount(rng.integers(planes, size=planes), minlength=planes) / planes
        drawn = means(per_plane @ share, weights)
        if drawn is not None:
            draws.append(statistic(drawn))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return value, float(low), float(high)


def scores(maps):
    from landscape import metrics

    return metrics.scores_per_plane(maps, int(maps.max()) + 1)


def protocol(settings, groups, what):
    sizes = {g: groups.count(g) for g in dict.fromkeys(groups)}
    said = ", ".join(f"{g} ({n})" for g, n in sizes.items())
    return (f"{settings['dataset']}, {settings['planes']} planes of {settings['resolution']}x{settings['resolution']} "
            f"points, anchors of the {settings['split']} set; {said}; {what}")


def claim(name, figure, statement, found, threshold, n, published, said, command, direction="above"):
    value, low, high = found
    return Claim(id=name, paper=PAPER, figure=figure, statement=statement, value=round(value, 4), low=round(low, 4),
                 high=round(high, 4), n=n, published=published, protocol=said,
                 verdict=judge(low, high, threshold, direction), command=command)


def net_width(source):
    import models

    config = source.config
    name = models.canonical(config["net"])
    return name + (f" width={config['width']}" if config["width"] else "")


PLAIN = ("opt=SGD", "train_mode=naive", "sam_radius=None")
DRAWN = "95 % percentile interval over networks drawn within their group and planes together (too narrow for few)"
MATRIX = "bash scripts/fig_regions_matrix.sh && python -m regions.claims runs/regions_cpu"


# ---- the claims ----------------------------------------------------------------------------------------------------


def families(folder):
    """Figure 4: convolutional networks agree more with each other than with the others; kappa is above chance;
    agreement grows with width."""
    import numpy as np

    maps, groups, settings = collect(folder, net_width, PLAIN)
    found, names = scores(maps), list(dict.fromkeys(groups))
    conv = [g for g in names if g.startswith(CONVOLUTIONAL)]
    other = [g for g in names if g not in conv]
    said, n = protocol(settings, groups, DRAWN), len(groups)
    out = []
    if len(conv) > 1 and other:
        def gap(mean):
            near = [mean[a, b] for i, a in enumerate(conv) for b in conv[i + 1:]]
            far = [mean[a, b] for a in conv for b in other]
            return sum(near) / len(near) - sum(far) / len(far)

        out.append(claim("conv-families", "4", "Convolutional families agree more with each other than with MLP, ViT "
                         "or Mixer (difference of mean agreement)", joint_interval(found["agreement"], groups, gap),
                         0, n, "about .80 against .44 to .64", said, MATRIX))
    inside = [g for g in names if groups.count(g) > 1]
    kappa, apart = found["kappa"], ~np.eye(n, dtype=bool)
    defined = np.isfinite(kappa[apart]).all(axis=0)  # on the other planes two maps hold one and the same class
    if defined.any():
        kappa = np.where(apart[:, :, None], kappa, 1)[..., defined]
        where = "" if defined.all() else f"; kappa on the {defined.sum()} planes where it is defined for all pairs"
        out.append(claim("same-architecture", "4", "Networks of one architecture agree beyond chance (least kappa of "
                         "all architectures)", joint_interval(kappa, groups, lambda m: min(m[g, g] for g in inside)),
                         0, n, "agreement .67 to .87 on the diagonal, no kappa given", said + where, MATRIX))
    wide = sorted((g for g in inside if g.startswith("wrn-")), key=lambda g: int(g.split("-")[2]))
    if len(wide) > 1:
        def grown(mean):
            return mean[wide[-1], wide[-1]] - mean[wide[0], wide[0]]

        out.append(claim("width", "4", f"Same-architecture agreement grows with width ({wide[-1]} less {wide[0]})",
                         joint_interval(found["agreement"], groups, grown), 0, n,
                         "WRN-28-30 less WRN-28-10: .87 - .86", said, MATRIX))
    return out


def off_manifold(folder):
    """Figures 2, 13, 14: planes of noise and of shuffled images are nearly constant."""
    import numpy as np

    from landscape import results

    out = []
    for kind, words in (("uniform", "uniform noise"), ("shuffled", "images with shuffled pixels")):
        maps, groups, settings = collect(folder, net_width, PLAIN, kind)
        counts = np.stack([(maps == c).mean(-1) for c in range(int(maps.max()) + 1)])
        largest = counts.max(0)  # (M, P)
        per_network = np.median(largest, axis=1)
        found = results.bootstrap(per_network, np.median)
        out.append(claim(f"off-manifold-{kind}", "2, 13, 14", f"Planes through {words} are nearly constant (median "
                         "share of the largest class)", found, 0.9, len(groups), "nearly one class a plane", protocol(
                             settings, groups, "median over planes and networks, interval over networks"),
                         "bash scripts/fig_regions_offmanifold.sh && python -m regions.claims runs/regions_cpu"))
    return out


def optimisers(folder):
    """Table 1: SAM is at least as reproducible as SGD, and SGD as Adam."""
    def kind(source):
        return f"{net_width(source)} {source.config['opt']}{'+SAM' if source.config['sam_radius'] else ''}"

    nets = {net_width(s) for s in runs.find_models(folder, select=("train_mode=naive",)) if s.config["sam_radius"]}
    if not nets:
        raise FileProblem(f"{folder}: no runs with SAM")
    maps, groups, settings = collect(folder, lambda s: kind(s) if net_width(s) in nets else None, ("train_mode=naive",))
    found = scores(maps)["agreement"]
    nets = sorted(n for n in nets if all(f"{n} {o}" in groups for o in ("SGD", "SGD+SAM", "Adam")))
    if not nets:
        raise FileProblem(f"{folder}: class maps of no network after all of SGD, SGD+SAM and Adam")

    def difference(one, two):
        return lambda m: sum(m[(f"{n} {one}",) * 2] - m[(f"{n} {two}",) * 2] for n in nets) / len(nets)

    command = "bash scripts/fig_regions_optimisers.sh && python -m regions.claims runs/regions_cpu"
    said = protocol(settings, groups, DRAWN)
    return [claim(f"optimiser-{a}-{b}".lower(), "Table 1", f"{a} is at least as reproducible as {b} (difference of "
                  f"same-architecture agreement, mean over {', '.join(nets)})",
                  joint_interval(found, groups, difference(a, b)), 0, len(groups), words, said, command)
            for a, b, words in (("SGD+SAM", "SGD", "3.5, 3.3, 1.6 and 0.1 points"), ("SGD", "Adam",
                                "3.9, -0.3, -1.3 and 5.6 points"))]  # fmt: skip


def mixup(folder):
    """Figure 15: networks with mixup agree with naive ones (paired by seed)."""
    maps, groups, settings = collect(folder, lambda s: f"{net_width(s)} {s.config['train_mode']}",
                                     ("train_mode=naive|mixup", "opt=SGD", "sam_radius=None"))
    nets = sorted(g.removesuffix(" mixup") for g in set(groups) if g.endswith(" mixup"))
    if not nets:
        raise FileProblem(f"{folder}: no runs with mixup")
    kept = [i for i, g in enumerate(groups) if g.split(" mixup")[0].split(" naive")[0] in nets]
    maps, groups = maps[kept], [groups[i] for i in kept]
    one = nets[0]

    def between(m):
        return m[f"{one} naive", f"{one} mixup"] - m[f"{one} naive", f"{one} naive"]

    return [claim("mixup", "15", f"A mixup network is farther from naive ones than they are from each other ({one}: "
                  "difference of agreement)", joint_interval(scores(maps)["agreement"], groups, between), 0,
                  len(groups), "naive against mixup .774 (ResNet18), .808 (ViT); naive pairs .83 and .75",
                  protocol(settings, groups, DRAWN), "bash scripts/fig_regions_mixup.sh && python -m regions.claims "
                  "runs/regions_cpu", direction="below")]


def distillation(folder):
    """Figure 5: a distilled student is nearer to its teacher than a vanilla network of the same initialisation."""
    import numpy as np

    from landscape import results

    sources = runs.find_models(folder, select=("train_mode=naive|distillation", "opt=SGD", "sam_radius=None"))
    roles = {}
    for student in (s for s in sources if s.config["train_mode"] == "distillation"):
        config = student.config
        same = {k: config[k] for k in cli.training_parser("main.py", "").naming
                if k in config and k not in ("train_mode", "teacher", "teacher_net", "distill_temp")}
        vanilla = [s for s in sources if s.config["train_mode"] == "naive" and same.items() <= s.config.items()]
        teacher = [s for s in sources if s.path.name == Path(config["teacher"]).name]
        if vanilla and teacher:
            pair = config["init_seed"]
            roles |= {student.path: ("student", pair), vanilla[0].path: ("vanilla", pair), teacher[0].path:
                      ("teacher", pair)}
    if not roles:
        raise FileProblem(f"{folder}: no distilled students with their teachers and vanilla networks")
    maps, groups, settings = collect(folder, lambda s: roles.get(s.path), ("opt=SGD", "sam_radius=None"))
    agreement = scores(maps)["agreement"].mean(-1)
    place = {role: i for i, role in enumerate(groups)}
    seeds = sorted({pair for _, pair in groups})
    gains = np.array([agreement[place["teacher", s], place["student", s]] - agreement[place["teacher", s],
                      place["vanilla", s]] for s in seeds if ("vanilla", s) in place])
    said = protocol(settings, [role for role, _ in groups], "interval over the seeds")
    command = "bash scripts/fig_regions_distillation.sh && python -m regions.claims runs/regions_cpu"
    return [claim("distillation", "5", "A distilled student is nearer to its teacher than a vanilla network of the "
                  "same initialisation (difference of agreement, paired by seed)", results.bootstrap(gains), 0,
                  len(gains), "differences of -.01 to .08", said, command)]


CLAIMS = (families, off_manifold, optimisers, mixup, distillation)


if __name__ == "__main__":
    cli.run(main)
