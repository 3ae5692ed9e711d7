"""What Somepalli et al. (CVPR 2022) claim of decision regions, judged on class maps that save_preds.py wrote.

    python -m regions.claims runs/regions_cpu

Each claim is one function of the maps under the given folder; a claim whose runs are not there is left out and named.
Writes results/regions/claims.json, which python -m landscape.claims renders into REPRODUCTION.md.
"""

import itertools
import json
import re
from pathlib import Path

from landscape import claims, cli, runs
from landscape.claims import Claim, judge
from landscape.errors import FileProblem

PAPER = "Somepalli et al. 2022"
NAMED = cli.training_parser("main.py", "").naming
SAME = (*cli.SEEDS, *cli.UNSEEN, "net")  # not compared in trainings of one kind; of net the aliases are many
OPTIMISER = ("opt", "lr", "momentum", "nesterov", "adam_eps", "weight_decay", "sam_radius")
CONVOLUTIONAL = ("resnet", "vgg", "wrn", "densenet", "googlenet", "mobilenet", "lenet", "mcnn")


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
    runs share; where there are several sets, that of most planes. Of a group, networks of one training alone. group: a
    function of a landscape.runs.Source, whose None leaves it out. Raises FileProblem where fewer than two runs have
    them."""
    import numpy as np

    held, sources = [], []
    for source in runs.find_models(folder, select=select):
        if group(source) is None:
            continue
        sets = {}
        for file in sorted(source.path.glob("arrays/class_maps-*.npz")):
            arrays = runs.read_arrays(file)
            settings = json.loads(str(arrays["settings"]))
            if settings["anchors"] == anchors and int(arrays["complete"]) == settings["planes"]:
                sets[file.name] = settings["planes"], arrays["labels"], settings
        if sets:
            held.append(sets)
            sources.append(source)
    groups = [group(s) for s in sources]
    kept = one_training(sources, groups)
    held, groups = list(itertools.compress(held, kept)), list(itertools.compress(groups, kept))
    shared = set.intersection(*map(set, held)) if held else set()
    if len(held) < 2 or not shared:
        raise FileProblem(f"{folder}: no class maps with {anchors} anchors of runs with {' '.join(select)}")
    best = max(shared, key=lambda name: (held[0][name][0], name))
    return np.stack([sets[best][1] for sets in held]), groups, held[0][best][2]


def one_training(sources, groups):
    """Whether each source is of its group's most frequent training; the others, which differ from it in more than
    seeds, are named."""
    kept = []
    for source, group in zip(sources, groups):
        own = [s for s, g in zip(sources, groups) if g == group]
        usual = max(own, key=lambda s: sum(not differing(s.config, o.config) for o in own))
        kept.append(not (wrong := differing(source.config, usual.config)))
        if wrong:
            print(f"left out     {source.name}: {wrong[0]} is {source.config[wrong[0]]}, of the other {group} networks "
                  f"{usual.config[wrong[0]]}")
    return kept


def differing(one, other, free=()):
    """The settings of training, but for SAME and free ones, in which two configs differ."""
    keys = [k for k in NAMED if k in one and k in other and k not in SAME and k not in free]
    return [k for k in keys if one[k] != other[k]]


def joint_interval(per_plane, groups, statistic, level=0.95):
    """(value, low, high) of a statistic of the matrix of group means, from pair scores (M, M, P).

    Networks vary within their groups, and planes vary: a jackknife over each group's networks and over the planes
    gives a variance each (Tukey 1958); of their sum the interval is Student's, with degrees of freedom by
    Satterthwaite (1946). statistic: a function of {(group, group): mean, NaN where there is no pair}; a network never
    pairs with itself. low and high are None where a network left out leaves no pair.
    """
    import numpy as np
    from scipy.special import stdtrit

    names = list(dict.fromkeys(groups))
    members = {g: np.array([h == g for h in groups]) for g in names}

    def found(matrix, kept):
        out = {}
        for i, a in enumerate(names):
            for b in names[i:]:
                pairs = np.outer(members[a] & kept, members[b] & kept)
                np.fill_diagonal(pairs, False)
                out[a, b] = out[b, a] = float(matrix[pairs].mean()) if pairs.any() else np.nan
        return statistic(out)

    count, planes = len(groups), per_plane.shape[-1]
    every, matrix = np.ones(count, bool), per_plane.mean(-1)
    value = found(matrix, every)
    without = [[found(matrix, np.arange(count) != k) for k in np.flatnonzero(rows)] for rows in members.values()]
    if planes > 1:
        without.append([found((planes * matrix - per_plane[..., p]) / (planes - 1), every) for p in range(planes)])
    varying = [(len(v) - 1, (len(v) - 1) * np.var(v)) for v in without if np.var(v) != 0]
    freedoms, variances = np.array(varying, dtype=float).reshape(-1, 2).T
    if not variances.any() or np.isnan(variances).any():
        return value, None, None
    reach = stdtrit(variances.sum() ** 2 / (variances**2 / freedoms).sum(), (1 + level) / 2) * variances.sum() ** 0.5
    return value, float(value - reach), float(value + reach)


def scores(maps):
    from landscape import metrics

    return metrics.scores_per_plane(maps, int(maps.max()) + 1)


def protocol(settings, groups, what):
    sizes = {g: groups.count(g) for g in dict.fromkeys(groups)}
    said = ", ".join(f"{g} ({n})" for g, n in sizes.items())
    return (f"{settings['dataset']}, {settings['planes']} planes of {settings['resolution']}x{settings['resolution']} "
            f"points, anchors of the {settings['split']} set; {said}; {what}")


def claim(name, figure, statement, found, threshold, n, published, said, command, direction="above"):
    value, low, high = (None if v is None else round(v, 4) for v in found)
    return Claim(id=name, paper=PAPER, figure=figure, statement=statement, value=value, low=low, high=high, n=n,
                 published=published, protocol=said,
                 verdict=judge(low, high, threshold, direction), command=command)


def by_command(figure, folder):
    """The command that makes a claim anew: the script names the folder of its runs by its scale."""
    scale = " --scale paper" * Path(folder).name.endswith("_paper")
    return f"bash scripts/fig_regions_{figure}.sh{scale} && python -m regions.claims runs/{Path(folder).name}"


def net_width(source):
    import models

    config = source.config
    name = models.canonical(config["net"])
    return name + (f" width={config['width']}" if config["width"] else "")


PLAIN = ("opt=SGD", "train_mode=naive", "sam_radius=None")
OVER = "95 % interval over networks within their group and planes together (jackknife)"


# ---- the claims ----------------------------------------------------------------------------------------------------


def families(folder):
    """Figure 4: convolutional networks agree more with each other than with the others; kappa is above chance;
    agreement grows with width."""
    import numpy as np

    maps, groups, settings = collect(folder, net_width, PLAIN)
    found, names = scores(maps), list(dict.fromkeys(groups))
    conv = [g for g in names if g.startswith(CONVOLUTIONAL)]
    other = [g for g in names if g not in conv]
    said, n = protocol(settings, groups, OVER), len(groups)
    out = []
    if len(conv) > 1 and other:
        def gap(mean):
            near = [mean[a, b] for i, a in enumerate(conv) for b in conv[i + 1:]]
            far = [mean[a, b] for a in conv for b in other]
            return sum(near) / len(near) - sum(far) / len(far)

        out.append(claim("conv-families", "4", "Convolutional families agree more with each other than with MLP, ViT "
                         "or Mixer (difference of mean agreement)", joint_interval(found["agreement"], groups, gap),
                         0, n, "about .80 against .44 to .64", said, by_command("matrix", folder)))
    inside = [g for g in names if groups.count(g) > 1]
    kappa, apart = found["kappa"], ~np.eye(n, dtype=bool)
    defined = np.isfinite(kappa[apart]).all(axis=0)  # on the other planes two maps hold one and the same class
    if inside and defined.any():
        kappa = np.where(apart[:, :, None], kappa, 1)[..., defined]
        where = "" if defined.all() else f"; kappa on the {defined.sum()} planes where it is defined for all pairs"
        out.append(claim("same-architecture", "4", "Networks of one architecture agree beyond chance (least kappa of "
                         "all architectures)",
                         joint_interval(kappa, groups, lambda m: float(np.min([m[g, g] for g in inside]))), 0, n,
                         "agreement .67 to .87 on the diagonal, no kappa given", said + where,
                         by_command("matrix", folder)))
    wide = sorted((g for g in inside if g.startswith("wrn-")), key=lambda g: int(re.split("[-=]", g)[-1]))
    if len(wide) > 1:
        def grown(mean):
            return mean[wide[-1], wide[-1]] - mean[wide[0], wide[0]]

        out.append(claim("width", "4", f"Same-architecture agreement grows with width ({wide[-1]} less {wide[0]})",
                         joint_interval(found["agreement"], groups, grown), 0, n,
                         "WRN-28-30 less WRN-28-10: .87 - .86", said, by_command("matrix", folder)))
    return out


def off_manifold(folder):
    """Figures 2, 13, 14: planes of noise and of shuffled images are nearly constant."""
    import numpy as np

    from landscape import results

    out = []
    for kind, words in (("uniform", "uniform noise"), ("shuffled", "images with shuffled pixels")):
        maps, groups, settings = collect(folder, net_width, PLAIN, kind)
        counts = np.stack([(maps == c).mean(-1) for c in range(int(maps.max()) + 1)])
        per_network = np.median(counts.max(0), axis=1)
        strata = [per_network[[h == g for h in groups]] for g in dict.fromkeys(groups)]
        found = results.bootstrap_strata(strata, np.median)
        out.append(claim(f"off-manifold-{kind}", "2, 13, 14", f"Planes through {words} are nearly constant (median "
                         "share of the largest class)", found, 0.9, len(groups), "nearly one class a plane", protocol(
                             settings, groups, "median over planes, mean over the networks of an architecture, "
                             "median over architectures; interval over networks within their architecture"),
                         by_command("offmanifold", folder)))
    return out


def optimisers(folder):
    """Table 1: SAM is at least as reproducible as SGD, and SGD as Adam."""
    def kind(source):
        if any(net_width(source) == net_width(s) and not differing(source.config, s.config, OPTIMISER) for s in sam):
            return f"{net_width(source)} {source.config['opt']}{'+SAM' if source.config['sam_radius'] else ''}"

    sam = [s for s in runs.find_models(folder, select=("train_mode=naive",)) if s.config["sam_radius"]]
    if not sam:
        raise FileProblem(f"{folder}: no runs with SAM")
    maps, groups, settings = collect(folder, kind, ("train_mode=naive",))
    found = scores(maps)["agreement"]
    nets = sorted(n for n in {net_width(s) for s in sam}
                  if all(groups.count(f"{n} {o}") > 1 for o in ("SGD", "SGD+SAM", "Adam")))
    if not nets:
        raise FileProblem(f"{folder}: class maps of no network after all of SGD, SGD+SAM and Adam, two seeds each")

    def difference(one, two):
        return lambda m: sum(m[(f"{n} {one}",) * 2] - m[(f"{n} {two}",) * 2] for n in nets) / len(nets)

    command = by_command("optimisers", folder)
    said = protocol(settings, groups, OVER)
    return [claim(f"optimiser-{a}-{b}".lower(), "Table 1", f"{a} is at least as reproducible as {b} (difference of "
                  f"same-architecture agreement, mean over {', '.join(nets)})",
                  joint_interval(found, groups, difference(a, b)), 0, len(groups), words, said, command)
            for a, b, words in (("SGD+SAM", "SGD", "3.5, 3.3, 1.6 and 0.1 points"), ("SGD", "Adam",
                                "3.9, -0.3, -1.3 and 5.6 points"))]  # fmt: skip


def mixup(folder):
    """Figure 15: networks with mixup agree with naive ones (paired by seed)."""
    import numpy as np

    maps, groups, settings = collect(folder, lambda s: f"{net_width(s)} {s.config['train_mode']}",
                                     ("train_mode=naive|mixup", "opt=SGD", "sam_radius=None"))
    nets = sorted({g.removesuffix(" mixup") for g in groups if g.endswith(" mixup")})
    nets = [n for n in nets if groups.count(f"{n} naive") > 1]
    if not nets:
        raise FileProblem(f"{folder}: no runs with mixup and two seeds without it")
    kept = [i for i, g in enumerate(groups) if g.rsplit(" ", 1)[0] in nets]
    maps, groups = maps[kept], [groups[i] for i in kept]

    def between(m):
        return float(np.mean([m[f"{n} naive", f"{n} mixup"] - m[f"{n} naive", f"{n} naive"] for n in nets]))

    return [claim("mixup", "15", "A mixup network is farther from naive ones than they are from each other ("
                  f"{', '.join(nets)}: difference of agreement)",
                  joint_interval(scores(maps)["agreement"], groups, between), 0,
                  len(groups), "naive against mixup .774 (ResNet18), .808 (ViT); naive pairs .83 and .75",
                  protocol(settings, groups, OVER), by_command("mixup", folder), direction="below")]


def distillation(folder):
    """Figure 5: a distilled student is nearer to its teacher than a vanilla network of the same initialisation."""
    import numpy as np

    from landscape import results

    select = ("train_mode=naive|distillation", "opt=SGD", "sam_radius=None")
    sources, trios = runs.find_models(folder, select=select), []
    for student in (s for s in sources if s.config["train_mode"] == "distillation"):
        config = student.config
        same = {k: config[k] for k in NAMED if k in config and k not in ("train_mode", "teacher", "teacher_net",
                                                                         "distill_temp")}
        vanilla = [s for s in sources if s.config["train_mode"] == "naive" and same.items() <= s.config.items()]
        teacher = [s for s in sources if s.path.name == Path(config["teacher"]).name]
        if vanilla and teacher:
            trios.append((student, vanilla[0], teacher[0]))
    if not trios:
        raise FileProblem(f"{folder}: no distilled students with their teachers and vanilla networks")
    used = {s.path for trio in trios for s in trio}
    maps, paths, settings = collect(folder, lambda s: s.path if s.path in used else None, select)
    agreement, place = scores(maps)["agreement"].mean(-1), {path: i for i, path in enumerate(paths)}
    gains, roles = {}, {}
    for student, vanilla, teacher in trios:
        if {student.path, vanilla.path, teacher.path} <= place.keys():
            one, two, own = (place[s.path] for s in (student, vanilla, teacher))
            gains.setdefault(net_width(student), []).append(agreement[own, one] - agreement[own, two])
            roles |= {vanilla.path: "vanilla", student.path: "student", teacher.path: "teacher"}
    if not gains:
        raise FileProblem(f"{folder}: class maps of no student with its teacher and its vanilla network")
    found = results.bootstrap_strata([np.array(of) for of in gains.values()], np.mean)
    said = protocol(settings, list(roles.values()), "interval over the seeds")
    command = by_command("distillation", folder)
    return [claim("distillation", "5", "A distilled student is nearer to its teacher than a vanilla network of the "
                  "same initialisation (difference of agreement, paired by seed)", found, 0,
                  sum(map(len, gains.values())), "differences of -.01 to .08", said, command)]


CLAIMS = (families, off_manifold, optimisers, mixup, distillation)


if __name__ == "__main__":
    cli.run(main)
