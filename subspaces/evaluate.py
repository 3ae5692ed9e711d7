"""Measure lines, curves, simplexes and what they are compared with: accuracy, calibration, ensembles, diversity.

    python -m subspaces.evaluate --load_net runs/subspaces

Every point of a run (21 along a path; vertices, centre and random points of a simplex; a standard network itself, and
with --methods averages and ensembles of its snapshots) sees each batch of the test set in one pass, with BatchNorm
statistics re-estimated at each of them. Logits are kept in the run folders; from them follow accuracy, NLL, Brier score
and ECE of each point, and of each two the ensemble, disagreement, total variation and similarity of features. Standard
networks of one kind are also paired as independent ensembles. Intervals are over seeds.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from landscape import cli, corruptions, runs
from landscape.errors import ContentError, FileProblem, UsageError

BN = ("reestimate", "cumulative", "ema", "stored")
BINS = 20  # of the expected calibration error, as published
METHODS = ("swa", "snapshots", "line", "endpoints", "random", "random_module", "random_weight", "swag")
MEASURES = ("accuracy", "nll", "brier", "ece", "ece_debiased")
PAIRS = ("accuracy_probability", "accuracy_logit", "ece_probability", "nll_probability", "disagreement",
         "total_variation", "cosine", "cosine_squared")
# The settings of a run that its row repeats.
SHOWN = ("net", "width", "dataset", "train_size", "data_seed", "family", "vertices", "granularity", "beta", "samples",
         "noise_rate", "noise_kind", "scheduler", "label_smoothing", "dropout", "ema", "epochs", "init_seed",
         "order_seed")
# What every row of the tables says of its runs; the other settings that name a run are said where they are not usual.
GROUP = ("family", "vertices", "granularity", "beta", "samples", "epochs", "noise_rate", "scheduler", "label_smoothing",
         "dropout", "ema")


def make_parser():
    parser = cli.Parser("python -m subspaces.evaluate", __doc__)
    g = parser.group("networks", named=True)
    g.add_argument("--load_net", default="runs/subspaces", metavar="DIR",
                   help="runs of subspaces.train, or of any training; or one of them")
    g.add_argument("--which", default="model", choices=("model", "best"),
                   help="the last weights, or the best on a run's validation set")
    g.add_argument("--group_by", default="", metavar="KEY,KEY,…",
                   help="the settings that make a row of the tables (default: all that name a run, but for its "
                        "--init_seed, --order_seed and --augment_seed)")
    cli.add_select(g)
    g = parser.group("points", named=True)
    g.add_argument("--positions", type=cli.positive, default=21, help="points of a path, evenly from end to end")
    g.add_argument("--at", type=cli.several(cli.number(0, 1)), default=None, metavar="T,T,…",
                   help="these points of a path instead")
    g.add_argument("--random", type=cli.natural, default=6, metavar="R", help="random points of a simplex, or samples")
    g.add_argument("--methods", type=cli.several(str), default=None, metavar="NAME,NAME,…",
                   help=f"of runs with snapshots: {', '.join(METHODS)} (subspaces/points.py)")
    g.add_argument("--share", type=cli.number(0, 1), default=0.5, help="of endpoints: a snapshot's own share")
    g.add_argument("--point_seed", type=int, default=1, help="of the random points")
    g = parser.group("measuring", named=True)
    g.add_argument("--bn_images", type=cli.natural, default=5000,
                   help="training images from which BatchNorm statistics are re-estimated at each point; 0: all")
    g.add_argument("--bn", default="reestimate", choices=BN,
                   help="reestimate: pooled over images as they are; as published, over one pass of augmented batches "
                        "of the training's size: cumulative, their mean, or ema, an exponential average (with "
                        "--bn_images 0); stored: the statistics of the file, right for a centre or for one network "
                        "alone")
    g.add_argument("--feature", default="", metavar="MODULE",
                   help="whose output is compared between points (default: the input of the last linear layer)")
    g.add_argument("--corruption", default="", metavar="NAME:SEVERITY",
                   help="corrupt the test images, as gaussian_noise:3 (landscape/corruptions.py); statistics are of "
                        "clean ones")
    g.add_argument("--measure_precision", default="fp32", choices=("fp32", "bf16"))
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals")
    g = parser.group("data on this machine")
    g.add_argument("--data_root", default=None, metavar="DIR", help="where the data sets lie")
    cli.add_machine(parser)
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    check(args)
    members = find(args)
    if args.dry_run:
        for m in members:
            print(f"{'done' if m.file.exists() and not args.force else 'compute'}: {m.source.group}: {m.file}")
        return 0
    measure_all(args, members)
    found = summary(args, members)
    args.force = True  # seconds of work, and the runs under DIR may be others than last time
    with runs.start("subspaces", args, f"measured_{Path(args.load_net).resolve().name}") as run:
        show(found)
        run.finish(found)
        draw(args, run, found)
        print(f"results: {run.path / 'results.json'}\ntable: {run.path / 'subspaces.csv'}")
    return 0


def check(args):
    args.methods = args.methods or []
    if wrong := [m for m in args.methods if m not in METHODS]:
        raise UsageError(f"--methods {wrong[0]}: known are {', '.join(METHODS)}{cli.suggestion(wrong[0], METHODS)}")
    if args.at is None and args.positions == 1:
        raise UsageError("--positions 1: a path has at least its two ends")
    if args.smoke:
        args.random, args.positions = min(args.random, 2), min(args.positions, 5)
    n = args.positions
    args.ts = args.at or [i / (n - 1) for i in range(n)]
    corruption(args)


# ---- runs ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Member:
    """One run, its weights, what it is measured as, and the file that holds what was measured."""

    source: runs.Source
    weights: Path
    settings: dict
    file: Path


def find(args):
    sources = runs.find_models(args.load_net, ["net"], args.select)
    alone = len(sources) == 1
    keys, usual = (args.group_by.split(","), {}) if args.group_by else (GROUP, usual_settings())
    members = []
    for s in sources:
        weights = s.path if s.path.is_file() else s.path / f"{args.which}.safetensors"
        if not weights.exists():
            raise FileProblem(f"{weights} does not exist: a run without validation images (--val_size) has no best")
        _, described = runs.read_weights(weights)
        if alone and args.at and "subspace" not in described and not args.methods:
            raise UsageError(f"{s.path} holds one network, not a subspace: --at is for lines, curves and chains, "
                             "--methods for snapshots")
        snapshots = len(list((s.path / "checkpoints").glob("epoch_*.safetensors")))
        if alone and args.methods and "subspace" not in described and snapshots < 2:
            raise FileProblem(f"{s.path} holds {snapshots} snapshots, --methods {','.join(args.methods)} needs two: "
                              "train it with --snapshots cycles")
        of = {"weights": weights.name, "bn": args.bn, "bn_images": args.bn_images, "feature": args.feature,
              "corruption": args.corruption, "precision": args.measure_precision, "data": labels_of(s, described)}
        if described.get("subspace", {}).get("family") == "simplex":
            of |= {"random": args.random, "point_seed": args.point_seed}
        elif "subspace" in described:
            of["ts"] = args.ts
        elif args.methods and snapshots > 1:
            of |= {"methods": args.methods, "random": args.random, "point_seed": args.point_seed, "share": args.share,
                   "ts": args.ts}
        said = [k for k, value in usual.items() if s.config.get(k, value) != value]
        group = " ".join(f"{k}={s.config.get(k, '-')}" for k in (*keys, *said)) if s.config else s.name
        source = runs.Source(s.path, group, s.name, s.config)
        folder = runs.measure_folder(source, args.runs) / "arrays"
        members.append(Member(source, weights, of, folder / f"points-{runs.hash8(of)}.npz"))
    check_seeds([m.source for m in members if m.source.config])
    return members


def usual_settings():
    """{setting: its default} of what names a training, but for GROUP and what repetitions differ in."""
    from subspaces import train

    parser = train.make_parser()
    return {k: parser.get_default(k) for k in parser.naming if k not in (*GROUP, *cli.SEEDS, *cli.UNSEEN)}


def check_seeds(sources):
    """Raise UsageError for two runs of the same seeds in one row: they are no two draws of one thing."""
    first = {}
    for s in sources:
        seeds = [s.config.get(k) for k in (*cli.SEEDS, "data_seed", "noise_seed")]
        other = first.setdefault((s.group, *seeds), s)
        if other is not s:
            raise UsageError(f"{other.path} and {s.path} are of the same seeds in one row of the tables: choose one of "
                             "them with --select KEY=VALUE, or name with --group_by a setting in which they differ")


def labels_of(source, described):
    """What says which images a run was trained on."""
    keys = ("train_size", "val_size", "data_seed")
    return {"dataset": described.get("preprocessing", {}).get("dataset"), **{k: source.config.get(k) for k in keys}}


# ---- measuring -----------------------------------------------------------------------------------------------------

NEEDS = ("names", "kinds", "ts", "logits", "labels", "cosine", "cosine_squared", "distance", "weight_cosine",
         "settings")


def measure_all(args, members):
    """Fill in the files that are missing."""
    todo = [m for m in members if args.force or not m.file.exists()]
    if not todo:
        return
    device, key, data = cli.set_up_device(args), None, None
    progress = runs.Progress(len(todo), "points")
    for m in sorted(todo, key=lambda m: json.dumps(m.settings["data"], sort_keys=True, default=str)):
        arrays, key, data = measured(args, m, device, key, data)
        lock = runs.hold(m.file.parent)
        try:
            runs.write_arrays(m.file, **arrays)
        finally:
            runs.release(lock)
        progress.step()
    progress.close()


def measured(args, member, device, key, data):
    """(the arrays of one run, a key of its data, the data); the last two are kept for the next one."""
    import numpy as np

    from landscape import evaluate
    from subspaces import points as drawing

    family = drawing.open_family(member.weights, member.source, args, member.settings.get("methods"))
    seen = family.described["preprocessing"]
    wanted = (member.settings["data"], seen["image_size"], seen["channels"], args.corruption)
    if wanted != key:
        data = open_data(args, member, seen, device)
    network = family.network.to(device, memory_format=evaluate.torch.channels_last)
    weights = [p.weights for p in family.points]
    if args.bn != "stored":

        rows = data.train.some_rows(args.bn_images)
        weights = evaluate.reestimate_bn(network, data.train, seen, weights, rows, precision=args.measure_precision,
                                         **as_published(args.bn, member.source.config, data))
    features = Features(network, args.feature, len(weights))
    with features:
        logits = evaluate.logits_at(network, weights, data.test, seen, args.eval_bs, args.measure_precision,
                                    features.compare)
    if not logits.isfinite().all():
        raise ContentError(f"{member.weights}: the network's logits are not finite; it has diverged")
    apart = between(family.vertices)
    return {"names": np.array([p.name for p in family.points]), "kinds": np.array([p.kind for p in family.points]),
            "ts": np.array([np.nan if p.t is None else p.t for p in family.points]), "logits": logits.numpy(),
            "labels": data.test.labels.cpu().numpy(), "cosine": features.mean(1), "cosine_squared": features.mean(2),
            "distance": apart[0], "weight_cosine": apart[1],
            "settings": json.dumps(member.settings, sort_keys=True)}, wanted, data


def as_published(bn, config, data):
    """What evaluate.reestimate_bn is given for --bn: of cumulative and ema the batches of the training (a foreign
    network's: 128 images, augmented as usual)."""
    if bn == "reestimate":
        return {}
    from landscape import data as datasets
    from landscape import seeding

    augment = datasets.parse_augment(config.get("augment", "auto"), data.entry)
    return {"how": bn, "bs": config.get("bs", 128), "augment": augment,
            "draws": data.train.draw(augment, seeding.stream(0, "statistics", "augment"))}


def open_data(args, member, seen, device):
    from landscape import data as datasets

    config = member.source.config
    given = {"val_size": 0}
    if config:
        own = config["val_size"]
        given = {"train_size": config["train_size"], "data_seed": config["data_seed"],
                 "val_size": None if own < 0 else own}
    data = datasets.load(seen["dataset"], args.data_root, **given, image_size=seen["image_size"],
                         channels=seen["channels"], device=device)
    if args.corruption:
        import torch

        name, severity = corruption(args)
        made = corruptions.corrupted(data.test.images.cpu().numpy(), name, severity, 0)  # the same for every network
        data.test = datasets.Images(torch.from_numpy(made).to(device), data.test.labels)
    return data


def corruption(args):
    """(name, severity) of --corruption, or None without one. Raises UsageError."""
    if not args.corruption:
        return None
    name, _, severity = args.corruption.partition(":")
    corruptions.check([name], corruptions.CORRUPTIONS, 3)
    if severity not in map(str, corruptions.SEVERITIES):
        raise UsageError(f"--corruption {args.corruption}: NAME:SEVERITY is expected, with a severity from 1 to 5")
    return name, int(severity)


class Features:
    """Similarity of a layer's activations between so many points, image by image, summed over batches: a forward hook
    keeps what the layer gives (or what the last linear layer takes), and compare() adds one batch of all points up."""

    def __init__(self, network, name, points):
        import torch

        self.name, self.points = name, points
        self.kept, self.sums, self.images = [], {1: 0.0, 2: 0.0}, 0
        modules = dict(network.named_modules())
        if name and name not in modules:
            raise UsageError(f"--feature {name}: the network has no such module{cli.suggestion(name, modules)}")
        last = [m for m in modules.values() if isinstance(m, torch.nn.Linear)] or list(modules.values())
        self.layer, self.output = (modules[name], True) if name else (last[-1], False)

    def __enter__(self):
        import torch

        def hook(module, inputs, output):
            seen = output if self.output else inputs[0]
            if not isinstance(seen, torch.Tensor):
                raise UsageError(f"--feature {self.name}: the module gives a {type(seen).__name__}, not a tensor; name "
                                 "a module inside of it, or behind it")
            self.kept.append(seen.detach())

        self.handle = self.layer.register_forward_hook(hook)
        return self

    def __exit__(self, *_):
        self.handle.remove()

    def compare(self):
        import torch

        if len(self.kept) != self.points:
            what = f"--feature {self.name}: the module" if self.name else "the last linear layer"
            raise UsageError(f"{what} is called {len(self.kept) / self.points:g} times on a batch, and one call is "
                             "compared; name another module with --feature")
        features = torch.stack(self.kept).float()
        features = features.reshape(*features.shape[:2], -1)  # (points, images, numbers)
        features = torch.nn.functional.normalize(features, dim=2)
        cosines = torch.einsum("abd,cbd->acb", features, features).double()
        for power in self.sums:
            self.sums[power] = self.sums[power] + (cosines**power).sum(2).cpu()
        self.images += features.shape[1]
        self.kept.clear()

    def mean(self, power):
        """(points, points): mean cosine to a power over all images."""
        return (self.sums[power] / self.images).numpy()


def between(vertices):
    """(distance, cosine), (m, m) each, of the parameters of the vertices."""
    import numpy as np

    from landscape import weights

    m = len(vertices)
    distance, cosine = np.zeros((m, m)), np.eye(m)
    for i, j in itertools.combinations(range(m), 2):
        distance[i, j] = distance[j, i] = weights.distance(vertices[i], vertices[j])
        cosine[i, j] = cosine[j, i] = weights.cosine(vertices[i], vertices[j])
    return distance, cosine


# ---- numbers -------------------------------------------------------------------------------------------------------

def quality(logits, labels):
    """{measure: value} of MEASURES of logits (N, C)."""
    from landscape import metrics

    probs = metrics.softmax(logits)
    return {"accuracy": metrics.accuracy(logits, labels), "nll": metrics.nll(logits, labels),
            "brier": metrics.brier(probs, labels), "ece": metrics.ece(probs, labels, BINS),
            "ece_debiased": metrics.ece_debiased(probs, labels, BINS)}


def ensemble(logits, labels):
    """{"probability": quality of the mean of the members' probabilities, "logit": of the mean of their logits}, the
    members being logits (M, N, C); the published ensembles are of logits."""
    import numpy as np

    from landscape import metrics

    together = np.log(np.maximum(metrics.softmax(logits).mean(0), 1e-300))
    return {"probability": quality(together, labels), "logit": quality(logits.mean(0, dtype=float), labels)}


def of_pair(a, b, labels):
    """{measure: value} of PAIRS, but for cosines, of two points' logits (N, C)."""
    import numpy as np

    from landscape import metrics

    both = ensemble(np.stack([a, b]), labels)
    return {"accuracy_probability": both["probability"]["accuracy"], "accuracy_logit": both["logit"]["accuracy"],
            "ece_probability": both["probability"]["ece"], "nll_probability": both["probability"]["nll"],
            "disagreement": metrics.disagreement(a.argmax(1), b.argmax(1)),
            "total_variation": metrics.total_variation(metrics.softmax(a), metrics.softmax(b))}


def pair_tables(arrays):
    """{measure: (A, A)} of PAIRS of all points of a run."""
    import numpy as np

    logits, labels = arrays["logits"], arrays["labels"]
    out = {k: np.zeros((len(logits),) * 2) for k in PAIRS}
    for i, j in itertools.combinations_with_replacement(range(len(logits)), 2):
        for k, value in of_pair(logits[i], logits[j], labels).items():
            out[k][i, j] = out[k][j, i] = value
    return {**out, "cosine": arrays["cosine"], "cosine_squared": arrays["cosine_squared"]}


def of_run(member, arrays):
    """The row of a run, plain values: every point, mirrored pairs of a path, ensembles of points of one kind."""
    import numpy as np
    from scipy.stats import spearmanr

    names, kinds, ts = arrays["names"].tolist(), arrays["kinds"].tolist(), arrays["ts"]
    logits, labels = arrays["logits"], arrays["labels"]
    tables = kept_tables(member, arrays)
    points = [{"name": n, "kind": k, "t": None if np.isnan(t) else float(t), **quality(own, labels)}
              for n, k, t, own in zip(names, kinds, ts, logits)]
    row = {"group": member.source.group, "name": member.source.seed_name, "path": str(member.source.path),
           **{k: member.source.config.get(k) for k in SHOWN}, "points": points, "mirrored": [], "ensembles": [],
           "vertex_distance": arrays["distance"].tolist(), "vertex_cosine": arrays["weight_cosine"].tolist(),
           "squared_cosines": trained_cosines(member.source), "growth": None,
           "early_stopping": early_stopping(member.source)}
    path = [i for i, k in enumerate(kinds) if k in ("path", "line")]
    for i in path:
        j = min(path, key=lambda j: abs(ts[j] - (1 - ts[i])))
        if abs(ts[j] - (1 - ts[i])) < 1e-6:
            row["mirrored"].append({"t": float(ts[i]), **{k: float(tables[k][i, j]) for k in PAIRS}})
    pairs = list(itertools.combinations(path, 2))
    if len(pairs) > 2:
        apart = [abs(ts[i] - ts[j]) for i, j in pairs]
        found = {k: [tables[k][i, j] for i, j in pairs] for k in ("disagreement", "total_variation")}
        # Points that all say the same, as under a corruption that leaves nothing to see, have no rank correlation.
        row["growth"] = {k: float(spearmanr(apart, v).statistic) if np.ptp(v) else None for k, v in found.items()}
    for kind in dict.fromkeys(kinds):
        own = [i for i, k in enumerate(kinds) if k == kind]
        if len(own) > 1 and kind not in ("path", "line"):
            row["ensembles"].append({"kind": kind, "members": len(own), **ensemble(logits[own], labels)})
    return row


def trained_cosines(source):
    """What the regulariser was of at the end of a training of subspaces.train, for each two vertices; [] of others."""
    if source.foreign:
        return []
    return runs.read_json(source.path / "results.json").get("vertices", {}).get("squared_cosines", [])


def early_stopping(source):
    """The epoch of a training's curve with the highest test accuracy, and that accuracy: what stopping in time could
    have given at best, since the test set chose it. None without a curve."""
    found = [r for r in ([] if source.foreign else runs.read_metrics(source.path)) if "test_accuracy" in r]
    best = max(found, key=lambda r: r["test_accuracy"], default=None)
    return best and {k: best[k] for k in ("epoch", "test_accuracy")}


def kept_tables(member, arrays):
    """pair_tables, from the file beside the points where they are there already."""
    file = member.file.with_name(member.file.name.replace("points-", "pairs-"))
    if file.exists() and file.stat().st_mtime >= member.file.stat().st_mtime:
        return runs.read_arrays(file, PAIRS)
    tables = pair_tables(arrays)
    runs.write_arrays(file, **tables)
    return tables


def independent(standard):
    """Ensembles of two independent networks: rows of each pair of standard networks of a group, with the same test
    images. standard: {number of the run: (group, data set, logits (N, C), labels)}."""
    import numpy as np

    out = []
    for (i, (group, data, logits, labels)), (j, b) in itertools.combinations(standard.items(), 2):
        if (group, data, logits.shape) == (b[0], b[1], b[2].shape) and np.array_equal(labels, b[3]):
            one, two = logits.argmax(1), b[2].argmax(1)
            right = (one != two) & ((one == labels) | (two == labels))  # percent_disagree_correct of the published code
            out.append({"group": group, "a": i, "b": j, **of_pair(logits, b[2], labels),
                        "disagreement_one_right": float(right.mean())})
    return out


def summary(args, members):
    """Everything, as plain values: rows of runs, pairs of independent networks, a table with intervals over seeds."""
    rows, standard = [], {}
    for n, m in enumerate(members):
        arrays = runs.read_arrays(m.file, NEEDS)  # of one run at a time: logits of many are large
        rows.append(of_run(m, arrays))
        if arrays["kinds"][0] == "model":
            standard[n] = (m.source.group, m.settings["data"]["dataset"], arrays["logits"][0].copy(), arrays["labels"])
    return {"kind": "subspaces", "level": args.level, "corruption": args.corruption, "bins": BINS, "runs": rows,
            "independent": independent(standard), "table": table(args, rows)}


def table(args, rows):
    """One row a group and kind of point: means over the points of that kind, intervals over runs. Of a path: its ends
    and its midpoint where they were measured, and its worst point."""
    from landscape import results

    found = {}
    for row in rows:
        for name, values in chosen(row).items():
            found.setdefault((row["group"], name), []).append(values)
    out = []
    for (group, name), values in found.items():
        line = {"group": group, "point": name, "runs": len(values)}
        for k in MEASURES:
            value, *ends = results.bootstrap([v[k] for v in values], level=args.level)
            most = {"nll": float("inf"), "brier": 2.0}.get(k, 1.0)  # an interval of few runs may pass what can be
            line[k], (line[f"{k}_low"], line[f"{k}_high"]) = value, (e and min(max(e, 0.0), most) for e in ends)
        out.append(line)
    return out


def chosen(row):
    """{name: {measure: value}} of the points of a run that tables show."""
    path = [p for p in row["points"] if p["kind"] == "path"]
    out = {}
    if path:
        for name, ts in (("ends", (0.0, 1.0)), ("midpoint", (0.5,))):
            own = [p for p in path if p["t"] in ts]
            if len(own) == len(ts):
                out[name] = mean(own)
        out["worst"] = min(path, key=lambda p: p["accuracy"])
    for kind in dict.fromkeys(p["kind"] for p in row["points"] if p["kind"] != "path"):
        out[kind] = mean([p for p in row["points"] if p["kind"] == kind])
    for e in row["ensembles"]:
        out[f"ensemble of {e['kind']}"] = e["probability"]
    return {name: {k: values[k] for k in MEASURES} for name, values in out.items()}


def mean(points):
    return {k: sum(p[k] for p in points) / len(points) for k in MEASURES}


# ---- tables and figures --------------------------------------------------------------------------------------------

def show(found):
    groups = dict.fromkeys(line["group"] for line in found["table"])
    for group in groups:
        print(group)
        print(f"  {'point':<24}" + "".join(f"{k:>26}" for k in MEASURES))
        for line in found["table"]:
            if line["group"] == group:
                print(f"  {line['point']:<24}" + "".join(f"{cell(line, k):>26}" for k in MEASURES))


def cell(line, k):
    ends = "" if line[f"{k}_low"] is None else f" [{line[f'{k}_low']:.4f}, {line[f'{k}_high']:.4f}]"
    return f"{line[k]:.4f}{ends}"


def draw(args, run, found):
    from landscape import redraw
    from landscape.results import write_csv
    from subspaces import plot

    write_csv(run.path / "subspaces.csv", found["table"], list(found["table"][0]))
    run.sink.table("subspaces", found["table"])
    redraw.show(run, plot.figures(run.path, found), args.formats)


if __name__ == "__main__":
    cli.run(main)
