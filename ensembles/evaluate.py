"""What ensembles gain, against their size: independent networks, snapshots, subspaces around one solution, and both.

    python -m ensembles.evaluate --members runs/ensembles --subsets 500

Accuracy, negative log-likelihood, Brier score, calibration error and Jensen-Shannon diversity of mean probabilities, of
all sets of members of one size on average (of --subsets of them where there are more). Sets are made of independent
networks; of the snapshots of one training, of its late ones, of those at the ends of a cyclic schedule (--cyclic); of
samples from subspaces around one solution (ensembles/samplers.py); and of independent networks each of which is first
averaged over its own samples or weights. Beside them, how diverse a sample is at its accuracy: the diversity-accuracy
plane. After Fort et al. 2019 (arXiv 1912.02757).
"""

import argparse
import json

import numpy as np

from landscape import cli, predictions, results, runs
from landscape.errors import UsageError

MEASURES = {"accuracy": "accuracy", "nll": "negative log-likelihood (nats)", "brier": "Brier score",
            "ece": "calibration error", "js": "Jensen–Shannon diversity (nats)"}
MOST = {"accuracy": 1, "nll": np.inf, "brier": 2, "ece": 1, "js": np.inf}  # where intervals of few networks are cut
KINDS = ("random", "diagonal", "pca", "pca_scaled", "pca_random", "dropout")  # ensembles.samplers.SAMPLERS
AVERAGE = "weight_average"


def make_parser():
    parser = cli.Parser("python -m ensembles.evaluate", __doc__)
    predictions.add_networks(parser, cli, "runs/ensembles")
    g = parser.group("ensembles", named=True)
    g.add_argument("--cyclic", nargs="*", default=[], metavar="GLOB",
                   help="where trainings with --scheduler cyclic and snapshots at the ends of its cycles lie")
    g.add_argument("--split", default="test", choices=("test", "val", "train"),
                   help="the images; val and train where all members split the data in one way")
    g.add_argument("--max_size", type=cli.positive, default=10, metavar="M", help="largest ensemble")
    g.add_argument("--subsets", type=cli.positive, default=10_000, metavar="B",
                   help="sets of one size, drawn where there are more")
    g = parser.group("subspaces", named=True)
    g.add_argument("--anchors", type=cli.natural, default=5, metavar="A",
                   help="solutions to sample around: the first A members with snapshots; 0: none")
    g.add_argument("--samplers", default=",".join(KINDS), metavar="NAME,…", help=f"of {', '.join(KINDS)}")
    g.add_argument("--late", type=cli.positive, default=10, metavar="E", help="the last E snapshots count as late")
    g.add_argument("--samples", type=cli.positive, default=30, metavar="S", help="of each sampler around a solution")
    g.add_argument("--plane_samples", type=cli.natural, default=50, metavar="S",
                   help="of each in the diversity-accuracy plane, at its wider scale")
    g.add_argument("--rank", type=cli.positive, default=5, metavar="R", help="principal components")
    g.add_argument("--accept", type=cli.number(0, 1), default=0.985,
                   help="a random sample is accepted from this share of its solution's accuracy on, on validation "
                        "images, else on --bn_images training images (Fort et al.: 0.70 of 0.71)")
    g.add_argument("--bn_images", type=cli.side, default=2048, metavar="N",
                   help="training images that BatchNorm's statistics are estimated on, for each sample")
    g.add_argument("--sample_seed", type=int, default=0, help="of samples and of sets")
    g = parser.group("statistics", named=True)
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals")
    cli.add_machine(parser)
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = make_parser().settings(argv)
    if args.smoke:
        args.samples, args.plane_samples = min(args.samples, 3), min(args.plane_samples, 3)
        args.subsets, args.bn_images = min(args.subsets, 20), min(args.bn_images, 64)
    args = cli.resolve(args)
    networks = predictions.find(args)
    anchors = [n for n in networks if predictions.late(n, 1)][:args.anchors]
    kinds, cyclic = chosen(args), []
    if args.cyclic:
        chosen_too = [word for word in args.select if not word.startswith("scheduler=")]
        others = {"members": args.cyclic, "select": [*chosen_too, "scheduler=cyclic"]}
        cyclic = predictions.find(argparse.Namespace(**{**vars(args), **others}))
        predictions.check_alike([*networks, *cyclic], args)
    if args.dry_run:
        for n in networks:
            print(f"member: {n.path}")
        for n in anchors:
            print(f"sample around: {n.path}: {', '.join([AVERAGE, *kinds])}")
        for n in cyclic:
            print(f"cyclic: {n.source.path}")
        return 0
    scene = Scene(args, [*networks, *cyclic])
    again, args.force = args.force, True  # what is kept is kept with the networks; these may be others than last time
    with runs.start("ensembles", args, "evaluate") as run:
        args.force = again
        found, arrays = evaluate(args, scene, networks, anchors, cyclic, kinds)
        runs.write_arrays(run.path / "arrays" / "evaluate.npz", **arrays)
        show(found)
        run.finish(found)
        draw(args, run, found)
        print(f"results: {run.path / 'results.json'}\ntable: {run.path / 'curves.csv'}")
    return 0


def chosen(args):
    kinds = [k for k in args.samplers.split(",") if k]
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"--samplers {kind}: known are {', '.join(KINDS)}{cli.suggestion(kind, KINDS)}")
    return kinds


# ---- everything ----------------------------------------------------------------------------------------------------

def evaluate(args, scene, networks, anchors, cyclic, kinds):
    """(results as plain values, {name: array})."""
    from landscape import metrics

    probs = metrics.softmax(np.stack(scene.logits(networks)))
    accuracies = [metrics.accuracy(p, scene.labels) for p in probs]
    curves = [independent("independent", "independent networks", probs, scene, args)]
    pools = {"snapshots": [], "late_snapshots": [], "cyclic_snapshots": []}
    plane = {"independent": [], "trajectory": [], "late_snapshots": []}
    for anchor in anchors:
        along = [n for n in predictions.snapshots(anchor).values() if n.epoch]
        said = metrics.softmax(np.stack(scene.logits(along, f"snapshots of {anchor.name}")))
        pools["snapshots"].append(pool(said, scene, args))
        pools["late_snapshots"].append(pool(said[-args.late:], scene, args))
        own = probs[networks.index(anchor)].argmax(1)
        places = [place(p.argmax(1), own, scene.labels) for p in said]
        plane["trajectory"].append(places[:-args.late])
        plane["late_snapshots"].append(places[-args.late:-1])  # the last is the solution itself
        plane["independent"].append([place(p.argmax(1), own, scene.labels)
                                     for n, p in zip(networks, probs) if n is not anchor])
    for network in cyclic:
        along = [n for n in predictions.snapshots(network).values() if n.epoch]
        if len(along) > 1:
            said = metrics.softmax(np.stack(scene.logits(along, f"cycles of {network.name}")))
            pools["cyclic_snapshots"].append(pool(said, scene, args))
    words = {"snapshots": "snapshots of one training", "late_snapshots": f"its last snapshots, at most {args.late}",
             "cyclic_snapshots": "snapshots of a cyclic schedule"}
    curves += [of_pools(name, words[name], held, args) for name, held in pools.items() if held]
    counts = {}
    for kind in ([AVERAGE, *kinds] if anchors else []):
        units = [scene.unit(anchor, kind) for anchor in anchors]
        said = WORDS[kind]
        if kind != AVERAGE:
            plane[kind] = [u["plane"].tolist() for u in units]
            counts[kind] = {k: int(sum(u["counts"][i] for u in units)) for i, k in enumerate(COUNTS)}
            if bare := [a.name for a, u in zip(anchors, units) if not len(u["mean_probs"])]:
                print(f"{kind} is left out of the curves: no sample was accepted around {', '.join(bare)}; lower "
                      "--accept")
                continue
            curves.append(of_pools(kind, f"{said} around one solution",
                                   [{m: u[f"pool_{m}"] for m in MEASURES} for u in units], args))
        means = np.stack([u["mean_probs"] for u in units])
        curves.append(independent(f"independent_{kind}", f"independent networks, each its {said}", means, scene, args))
    mean = float(np.mean([accuracies[networks.index(a)] for a in anchors])) if anchors else float(np.mean(accuracies))
    out = {"kind": "ensembles", "nets": predictions.names_of(networks), "images": len(scene.labels),
           "split": args.split, "classes": probs.shape[2], "level": args.level, "late": args.late,
           "measures": list(MEASURES),
           "models": [{"name": n.name, "path": str(n.path), "accuracy": a} for n, a in zip(networks, accuracies)],
           "anchors": [n.name for n in anchors], "curves": [c["rows"] for c in curves],
           "groups": [{"name": c["name"], "words": c["words"], "units": c["units"]} for c in curves],
           "samplers": counts, "plane": {"accuracy": mean, "groups": {
               name: summary(places, mean, probs.shape[2], args) for name, places in plane.items() if any(places)}}}
    arrays = {f"curve_{c['name']}_{m}": v for c in curves for m, v in c["each"].items()}
    arrays |= {f"plane_{name}": np.array([p for places in each for p in places]).reshape(-1, 2)
               for name, each in plane.items() if any(each)}
    arrays["confusion_members"] = confusion(probs, scene.labels)
    arrays["confusion_ensemble"] = confusion(probs.mean(0, keepdims=True), scene.labels)
    arrays["ensemble_right"] = probs[:args.max_size].mean(0).argmax(1) == scene.labels
    arrays["class_names"] = np.array(scene.classes)
    return out, arrays


WORDS = {AVERAGE: "weight average", "random": "random directions", "diagonal": "diagonal Gaussian",
         "pca": "PCA Gaussian, unit components", "pca_scaled": "PCA Gaussian", "pca_random": "PCA of random samples",
         "dropout": "weight dropout"}  # fmt: skip
COUNTS = ("asked", "tried", "accepted")


class Scene:
    """The images that ensembles are measured on, and what networks and samples around them say there."""

    def __init__(self, args, networks):
        self.args, self.held = args, predictions.split_settings(networks, args, args.split)
        self.labels = predictions.labels_of(self.held, args)
        self.classes = predictions.classes_of(self.held, args)
        self.seen = {}

    def images(self, preprocessing):
        key = preprocessing["channels"], preprocessing["image_size"]
        if key not in self.seen:
            self.seen[key] = predictions.split_images(self.held, self.args, *key)
        return self.seen[key]

    def logits(self, networks, what="logits"):
        return predictions.logits(networks, self.args, self.held, self.images, what)

    def unit(self, anchor, kind):
        """What a sampler gives around one solution, kept with the solution: mean_probs (N, C) over its samples (none of
        them accepted: (0, C)), pool_<measure> (sizes,) of ensembles of them, plane (P, 2) of accuracy and disagreement
        with the solution, counts (3,) of samples asked, tried and accepted."""
        args = self.args
        named = {k: getattr(args, k) for k in ("samples", "plane_samples", "rank", "accept", "bn_images", "sample_seed",
                                               "late", "max_size", "subsets", "which")}
        held = {**self.held, **named, "sampler": kind, "anchor": runs.digest(anchor.source, args.which)}
        file = anchor.folder / "arrays" / f"samples-{runs.hash8(held)}.npz"
        needs = ["mean_probs", "plane", "counts", *(f"pool_{m}" for m in MEASURES)]
        if file.exists() and not args.force:
            return runs.read_arrays(file, needs)
        found = self.sampled(anchor, kind)
        runs.write_arrays(file, **found, settings=json.dumps(held, sort_keys=True))
        return found

    def sampled(self, anchor, kind):
        import torch

        from ensembles import samplers
        from landscape import data as datasets
        from landscape import evaluate as measuring
        from landscape import metrics
        from landscape.seeding import stream

        args, device = self.args, cli.set_up_device(self.args)
        solution = runs.digest(anchor.source, args.which)  # each has random streams of its own
        entry = datasets.entry(self.held["dataset"], args.data_root)
        trained = predictions.load(anchor, args, entry)
        network, seen = trained.network.to(device, memory_format=torch.channels_last), trained.preprocessing
        late = [runs.read_weights(n.path)[0] for n in predictions.late(anchor, args.late)]
        about = samplers.anchor(runs.read_weights(anchor.path)[0], [k for k, _ in network.named_parameters()], late)
        images = self.images(seen).to(device)
        training, checked = self.training_images(anchor, seen, device)

        def finish(point):
            return measuring.reestimate_bn(network, training, seen, [{k: v.to(device) for k, v in point.items()}])[0]

        def accuracy(point):
            return metrics.accuracy(measuring.logits_at(network, [point], checked, seen, args.eval_bs)[0].numpy(),
                                    checked.labels.cpu().numpy())

        if kind == AVERAGE:
            mean = finish(about.point(about.late.mean(0)))
            said = metrics.softmax(measuring.logits_at(network, [mean], images, seen, args.eval_bs).numpy())
            empty = {f"pool_{m}": np.zeros(0) for m in MEASURES}
            return {"mean_probs": said[0], "plane": np.zeros((0, 2)), "counts": np.ones(3, int), **empty}
        enough = args.accept * accuracy(about.weights)
        generator = stream(args.sample_seed, "samples", kind, solution)
        points, counts = samplers.draw(kind, about, args.samples, "ensemble", generator, args.rank,
                                       lambda p: accuracy(p) >= enough, finish)
        said = np.zeros((0, len(self.labels), len(self.classes)))
        if points:
            said = metrics.softmax(measuring.logits_at(network, points, images, seen, args.eval_bs).numpy())
        own = measuring.logits(network, images, seen, args.eval_bs).numpy().argmax(1)
        places = np.zeros((0, 2))
        if samplers.SAMPLERS[kind].plane is not None and args.plane_samples:
            generator = stream(args.sample_seed, "plane", kind, solution)
            wide, _ = samplers.draw(kind, about, args.plane_samples, "plane", generator, args.rank, None, finish)
            far = measuring.logits_at(network, wide, images, seen, args.eval_bs).numpy()
            places = np.array([place(one.argmax(1), own, self.labels) for one in far])
        pooled = pool(said, self, args)
        mean = said.mean(0) if len(said) else said[:, 0]
        return {"mean_probs": mean.astype(np.float32), "plane": places,
                "counts": np.array([counts[k] for k in COUNTS]), **{f"pool_{m}": v for m, v in pooled.items()}}

    def training_images(self, anchor, seen, device):
        """(images for BatchNorm's statistics, images that accept samples): --bn_images of the training set, and its
        validation set where it had one, else the same."""
        from landscape import data as datasets
        from landscape import maps
        from landscape.seeding import stream

        given = {"val_size": 0}
        if not anchor.source.foreign:
            given = datasets.given_by(maps.labels_of(anchor.source.config))
        data = datasets.load(self.held["dataset"], self.args.data_root, **given, image_size=seen["image_size"],
                             channels=seen["channels"], device=device)
        import torch

        order = torch.randperm(len(data.train), generator=stream(self.args.sample_seed, "bn"))
        part = data.train.subset(order[:self.args.bn_images])
        return part, data.val if len(data.val) else part


# ---- curves --------------------------------------------------------------------------------------------------------

def independent(name, words, probs, scene, args):
    """The curve of sets of networks of their own (K, N, C). each: {measure: (K + 1, sizes)}, the mean over sets, and
    below it that over the sets without network k, from which the interval comes (jackknife)."""
    from landscape import metrics

    sizes = range(1, min(args.max_size, len(probs)) + 1)
    each = {m: np.full((len(probs) + 1, len(sizes)), np.nan) for m in MEASURES}
    sets = []
    for column, size in enumerate(sizes):
        subsets = metrics.subsets(len(probs), size, args.subsets, args.sample_seed)
        sets.append(len(subsets))
        for measure, values in metrics.subset_scores(probs, scene.labels, subsets).items():
            each[measure][0, column] = values.mean()
            for k in range(len(probs)):
                if not subsets[:, k].all():
                    each[measure][k + 1, column] = values[~subsets[:, k]].mean()
    rows = []
    for column, size in enumerate(sizes):
        cells = {}
        for measure, held in each.items():
            value, without = held[0, column], held[1:, column]
            ends = results.jackknife(value, without, args.level) if np.isfinite(without).all() else (None, None)
            cells[measure] = interval(measure, (value, *ends), len(probs), size)
        rows.append({"size": size, "sets": sets[column], "trainings": size, "measures": cells})
    return {"name": name, "words": words, "units": len(probs), "each": each, "rows": rows}


def pool(probs, scene, args):
    """{measure: (sizes,)} of sets drawn from one pool of predictions (S, N, C), mean over the sets of each size."""
    from landscape import metrics

    sizes = range(1, min(args.max_size, len(probs)) + 1)
    out = {m: np.zeros(len(sizes)) for m in MEASURES}
    for column, size in enumerate(sizes):
        subsets = metrics.subsets(len(probs), size, args.subsets, args.sample_seed)
        for measure, values in metrics.subset_scores(probs, scene.labels, subsets).items():
            out[measure][column] = values.mean()
    return out


def of_pools(name, words, pools, args):
    """The curve over several trainings or solutions, one pool each; the interval is over them. each: {measure: (A,
    sizes)}, as long as the smallest pool."""
    least = min(len(p["accuracy"]) for p in pools)
    each = {m: np.stack([p[m][:least] for p in pools]) for m in MEASURES}
    rows = [{"size": size, "sets": None, "trainings": 1, "measures": {
        m: interval(m, results.bootstrap(v[:, size - 1], level=args.level), len(pools), size) for m, v in each.items()}}
        for size in range(1, least + 1)]
    return {"name": name, "words": words, "units": len(pools), "each": each, "rows": rows}


def interval(measure, found, n, size):
    """A cell; the diversity of a set of one is not defined and is null."""
    value, *ends = found
    if measure == "js" and size == 1:
        return {"value": None, "low": None, "high": None, "n": n}
    low, high = (None if e is None else float(min(max(e, 0), MOST[measure])) for e in ends)
    return {"value": float(value), "low": low, "high": high, "n": n}


# ---- the diversity-accuracy plane ----------------------------------------------------------------------------------

def place(said, own, labels):
    """(accuracy, disagreement with the solution) of predicted labels (N,); own: those of the solution."""
    return float((said == labels).mean()), float((said != own).mean())


def upper_limit(accuracy, base, classes):
    """Disagreement of a network of some accuracy with one of accuracy `base`, if their errors are independent and wrong
    answers uniform."""
    both_wrong = (1 - base) * (1 - accuracy) * (classes - 2) / (classes - 1) if classes > 1 else 0 * accuracy
    return base * (1 - accuracy) + accuracy * (1 - base) + both_wrong


def lower_limit(accuracy, base, classes):
    """The same, if the network is the other one with a share of its answers changed uniformly: the least disagreement
    at its accuracy. It meets the upper limit where the changed one guesses, at accuracy 1 / classes; for a `base` of
    that accuracy or less there is none (NaN)."""
    slope = base - (1 - base) / (classes - 1)
    return (base - accuracy) / (slope if slope > 0 else np.nan)


NEAR = 0.9  # samples from this share of the solutions' accuracy on are compared with the limit


def summary(places, base, classes, args):
    """Where the samples of one kind lie; places: of each solution a list of (accuracy, disagreement). share_of_upper:
    the disagreement over the upper limit at the sample's own accuracy, mean over samples with at least NEAR of the
    accuracy `base` (of those without any error beside a solution without any, none); interval over solutions."""
    shares, every = [], [p for each in places for p in each]
    for each in places:
        limits = [(d, a, upper_limit(a, base, classes)) for a, d in each]
        near = [d / limit for d, a, limit in limits if a >= NEAR * base and limit]
        if near:
            shares.append(float(np.mean(near)))
    found = results.bootstrap(shares, level=args.level) if shares else (None, None, None)
    low, high = (None if e is None else max(float(e), 0.0) for e in found[1:])
    return {"samples": len(every), "near": sum(a >= NEAR * base for a, _ in every),
            "accuracy": float(np.mean([a for a, _ in every])), "disagreement": float(np.mean([d for _, d in every])),
            "share_of_upper": {"value": found[0], "low": low, "high": high, "n": len(shares)}, "each": shares}


def confusion(probs, labels):
    """(C, C) share of the images of each class (row) that get each label, mean over networks (M, N, C)."""
    from landscape import metrics

    classes = probs.shape[2]
    counts = metrics.confusion(np.broadcast_to(labels, probs.shape[:2]), probs.argmax(2), classes).sum(0)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


# ---- tables and figures --------------------------------------------------------------------------------------------

def rows_of(found):
    return [{"group": g["name"], "size": row["size"], "trainings": row["trainings"], "measure": m, **row["measures"][m]}
            for g, rows in zip(found["groups"], found["curves"]) for row in rows for m in found["measures"]]


def show(found):
    print(f"{len(found['models'])} networks, {found['images']} {found['split']} images; accuracy of sets of a size")
    sizes = [s for s in (1, 2, 3, 5, 10) if any(len(rows) >= s for rows in found["curves"])]
    print(f"{'':<34}" + "".join(f"{s:>24}" for s in sizes))
    for group, rows in zip(found["groups"], found["curves"]):
        cells = [rows[s - 1]["measures"]["accuracy"] if len(rows) >= s else None for s in sizes]
        print(f"{group['name']:<34}" + "".join(f"{shown(c):>24}" for c in cells))
    for name, held in found["plane"]["groups"].items():
        print(f"plane: {name:<20} {held['near']} of {held['samples']} samples near the solution's accuracy; their "
              f"disagreement over its upper limit {shown(held['share_of_upper'])}")
    for kind, held in found["samplers"].items():
        print(f"{kind}: {held['accepted']} samples of {held['asked']} asked, {held['tried']} tried")


def shown(cell):
    if cell is None or cell["value"] is None:
        return "-"
    ends = "" if cell["low"] is None else f" [{cell['low']:.4f}, {cell['high']:.4f}]"
    return f"{cell['value']:.4f}{ends}"


def draw(args, run, found):
    from ensembles import evaluate_figures
    from landscape import redraw

    rows = rows_of(found)
    results.write_csv(run.path / "curves.csv", rows, list(rows[0]))
    run.sink.table("ensembles", rows)
    redraw.show(run, evaluate_figures.figures(run.path, found), args.formats)


if __name__ == "__main__":
    cli.run(main)
