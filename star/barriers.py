"""Loss barriers on straight lines between networks, as they are and with their hidden units aligned.

    python -m star.barriers -a runs/regions --select net=resnet20
    python -m star.barriers -a runs/stars -b runs/held_out --align weights --bn reset,repair

Without -b: all pairs of -a. Networks of -b are permuted towards those of -a. At each point t of a line stand the loss
and the accuracy on the training set (never augmented, labels as given) and on the test set; the barrier is the largest
excess over the straight line between the ends. Intervals are over images for each pair, and over pairs clustered by
network for all. What every point says of every image is kept (arrays/); pairs that are there are not measured again.
"""

import glob
import json
from dataclasses import dataclass
from pathlib import Path

from landscape import cli, maps, runs
from landscape.errors import ContentError, FileProblem, UsageError
from star import starlight

ALIGNMENTS = ("none", "weights", "activations", "sinkhorn", "published")
NORMS = ("stored", "reset", "repair", "published")


def three(text):
    value = cli.whole(text)
    if value < 3:
        raise cli.argparse.ArgumentTypeError(f"{text} is below 3")
    return value


def add_points(g):
    """Flags that say which points of a line are measured."""
    g.add_argument("--points", type=three, default=11, help="points of a line, its ends included")
    g.add_argument("--adaptive", action="store_true",
                   help="look for the highest point on the images of --bn_images, and measure only that one on all")
    g.add_argument("--bn_images", type=cli.natural, default=5000, metavar="N",
                   help="training images for BatchNorm, activations and --adaptive; 0: all")
    g.add_argument("--match_seed", type=int, default=0, help="order in which groups of units are matched")
    g.add_argument("--measure_precision", default="fp32", choices=("fp32", "bf16"),
                   help="of BatchNorm's statistics and of the losses; bf16 takes two thirds of the time on CPUs that "
                        "have it")


def make_parser():
    parser = cli.Parser("python -m star.barriers", __doc__)
    g = parser.group("networks", named=True)
    g.add_argument("-a", "--a", nargs="+", default=[], metavar="RUN_OR_CHECKPOINT",
                   help="run folders, checkpoints, folders of these, 'patterns*', or a .txt file with one a line")
    g.add_argument("-b", "--b", nargs="+", default=[], metavar="RUN_OR_CHECKPOINT", help="the other ends, likewise")
    g.add_argument("--which", default="model", choices=("model", "best"),
                   help="of a run: the last weights, or the best on its validation set")
    cli.add_select(g)
    cli.add_foreign(parser, dataset="", named=True)
    g = parser.group("lines", named=True)
    add_points(g)
    g.add_argument("--align", type=cli.several_of(ALIGNMENTS), default=["none", "weights"], metavar="HOW,…",
                   help=f"some of {', '.join(ALIGNMENTS)}: by what units are matched, side by side")
    g.add_argument("--as_published", action="store_true",
                   help="--align published besides: weight matching without what rebasin 0.0.47 omits")
    g.add_argument("--bn", type=cli.several_of(NORMS), default=["reset"], metavar="HOW,…",
                   help="some of stored, reset, repair, published: BatchNorm's statistics as stored and interpolated, "
                        "estimated anew at each point, with each layer's outputs rescaled too, or as starlight has "
                        "them: A's as stored, elsewhere averaged over augmented batches with momentum 0.1 (networks "
                        "without BatchNorm have no reset and no published)")
    g = parser.group("output as starlight's", named=True)
    g.add_argument("--kind", default="anchor_held_out", choices=starlight.KINDS,
                   help="the list in its YAML form that these pairs are")
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals")
    cli.add_data_here(parser)
    cli.add_machine(parser)
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    if args.as_published and "published" not in args.align:
        args.align = [*args.align, "published"]
    firsts, seconds = find(args.a, args.select), find(args.b, args.select)
    pairs = all_pairs(firsts, seconds)
    members = firsts + seconds
    for name in ("a", "b", "select"):  # what the networks are, not where they lie, names the run
        args.differs.pop(name, None)
    args.differs["weights"] = runs.hash8([runs.digest(m, args.which) for m in members])
    head = f"barriers_{len(firsts)}x{len(seconds)}" if seconds else f"barriers_{len(firsts)}"
    path = runs.folder("star", args, head)
    if args.dry_run:
        state = "finished" if (path / "done").exists() else "computed"
        print(f"{state}: {path}\n{len(pairs)} pairs of {len(members)} networks, aligned by {', '.join(args.align)}; "
              f"BatchNorm {', '.join(args.bn)}")
        return 0
    folder, found = runs.measured("star", args, head, lambda run: compute(args, run, members, pairs),
                                  lambda run, found: draw(args, run, found))
    show(found)
    print(f"results: {folder / 'results.json'}")
    return 0


# ---- networks ------------------------------------------------------------------------------------------------------

def find(paths, select=()):
    """The Sources that the paths mean, each once: run folders, checkpoints, folders of these, patterns such as
    'nets/*.pt', and lists (.txt) with one of these a line, which may be relative to the list."""
    out = {}
    for path in paths:
        for one in listed(path) if path.endswith(".txt") else [path]:
            matched = [one] if Path(one).exists() or not set(one) & set("*?[") else sorted(glob.glob(one))
            if not matched:
                raise FileProblem(f"{one} matches nothing")
            for source in (s for found in matched for s in runs.find_models(found, select=select)):
                out.setdefault(source.path.resolve(), source)
    return list(out.values())


def listed(path):
    """The lines of a list of paths, without comments."""
    try:
        lines = [line.strip() for line in Path(path).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        raise FileProblem(f"{path}: {getattr(e, 'strerror', None) or 'not a text file'}") from None
    beside = Path(path).parent
    return [str(beside / line) if not Path(line).exists() and (beside / line).exists() else line
            for line in lines if line and not line.startswith("#")]


def all_pairs(firsts, seconds):
    """[(i, j)] of positions in firsts + seconds. UsageError for fewer than two networks, or one on both sides."""
    n = len(firsts)
    if seconds:
        same = {s.path.resolve() for s in firsts} & {s.path.resolve() for s in seconds}
        if same:
            raise UsageError(f"{min(map(str, same))} is among -a and among -b: a network has no barrier to itself")
        return [(i, n + j) for i in range(n) for j in range(len(seconds))]
    if n < 2:
        raise UsageError(f"a barrier needs two networks; -a and -b give {n}: python -m star.barriers -a ONE -b OTHER")
    return [(i, j) for i in range(n) for j in range(i + 1, n)]


@dataclass
class Networks:
    """The networks of a measurement, all of one architecture with the same inputs, and their data."""

    trained: list
    weights: list
    data: object


def load(args, members, device, which=()):
    """The Networks of some Sources. which: of each member "model" or "best", where that is not args.which. Raises
    UsageError, FileProblem and ContentError, naming the network."""
    from landscape import data as datasets
    from landscape import train
    from landscape import weights as algebra

    configs = [m.config for m in members if not m.foreign]
    if not args.dataset and len(configs) < len(members):
        foreign = next(m for m in members if m.foreign)
        raise UsageError(f"{foreign.path} does not say what data it was trained on: give --dataset NAME")
    given = [{"dataset": c["dataset"], **maps.labels_of(c), "train_size": c["train_size"], "val_size": c["val_size"]}
             for c in configs]
    for member, one in zip([m for m in members if not m.foreign], given):
        if not args.dataset and one != given[0]:
            key = next(k for k in one if one[k] != given[0][k])
            raise UsageError(f"{member.path} was trained with {key} {one[key]}, the first with {given[0][key]}: "
                             f"--dataset {given[0]['dataset']} measures on all of its training set")
    name = args.dataset or given[0]["dataset"]
    entry = datasets.entry(name, args.data_root)
    trained = [train.load_network(m.path, args.net or m.group, args, entry, of)
               for m, of in zip(members, which or [args.which] * len(members))]
    first = trained[0]
    for other in trained[1:]:
        for what in ("architecture", "preprocessing"):
            one, two = getattr(first, what), getattr(other, what)
            if what == "preprocessing":
                one, two = ({k: list(p[k]) if isinstance(p[k], list | tuple) else p[k]
                             for k in ("image_size", "channels", "mean", "std")} for p in (one, two))
            if one != two:
                key = next(k for k in one if one[k] != two.get(k))
                raise ContentError(f"{first.source} and {other.source} differ in {what}: {key} {one[key]} and "
                                   f"{two.get(key)}; no line joins them")
    how = {"val_size": 0} if args.dataset else datasets.given_by(configs[0])
    seen = first.preprocessing
    data = datasets.load(name, args.data_root, **how, image_size=seen["image_size"], channels=seen["channels"],
                         device=device, workers=args.workers)
    held = [{k: v.to(device) for k, v in algebra.of(t.network).items()} for t in trained]
    return Networks(trained, held, data)


# ---- measuring -----------------------------------------------------------------------------------------------------

def compute(args, run, members, pairs):
    """Everything, as plain values; the arrays of each line go to run.path / arrays."""
    device = cli.set_up_device(args)
    nets = load(args, members, device)
    scene, axes = scene_of(args, nets, device)
    norms = list(dict.fromkeys("stored" if n in ("reset", "published") and not scene.normed else n
                               for n in args.bn))
    rows = measured(args, run, scene, nets.weights, pairs, axes, norms)
    models = [{"path": str(m.path), "name": m.seed_name, "group": m.group} for m in members]
    return {"kind": "barriers", "dataset": nets.data.name, "level": args.level, "align": args.align, "bn": norms,
            "adaptive": args.adaptive, "images": image_counts(scene),
            "first": len(members) - len({j for _, j in pairs}) if args.b else len(members), "sets": 2 if args.b else 1,
            "models": models, "lines": rows, "summary": summary(rows, args.align, norms, args.level)}


def scene_of(args, nets, device):
    """(lines.Scene, Axes or None where nothing is aligned) of some Networks."""
    from landscape import lines as engine
    from models.axes import axes_of

    network = nets.trained[0].network.to(device)
    scene = engine.Scene.of(network, nets.data, nets.trained[0].preprocessing, args.bn_images, args.eval_bs,
                            args.measure_precision)
    return scene, axes_of(network) if set(args.align) - {"none"} else None


def image_counts(scene):
    return {"train": len(scene.train), "test": len(scene.test), "batchnorm": len(scene.rows)}


def measured(args, run, scene, weights, pairs, axes, norms, keep=True):
    """The lines of the pairs (i, j) of weight dicts as plain values, for each of args.align and norms; they go to
    run.path / arrays, and what is there is not measured again. keep: with what each point says of each image, and with
    intervals over images."""
    import numpy as np

    from landscape import lines as engine

    ts = [k / (args.points - 1) for k in range(args.points)]
    files = {(i, j, how, norm): run.path / "arrays" / f"line-{i}-{j}-{how}-{norm}.npz"
             for i, j in pairs for how in args.align for norm in norms}
    missing = [key for key, file in files.items() if not file.exists()]
    at_ends = {norm: engine.statistics_of_ends(scene, norm) for norm in {key[3] for key in missing}}
    own = {how: engine.ends(scene, weights, how) for how in dict.fromkeys(h for both in at_ends.values() for h in both)}
    progress = runs.Progress(len(files), "lines", len(files) - len(missing))
    together = max(1, engine.at_once(weights[0]) // (3 if args.adaptive else len(ts) - 2))
    for start in range(0, len(missing), together):
        keys, aligned = missing[start:start + together], {}
        for i, j, how, _ in keys:
            if (i, j, how) not in aligned:
                aligned[i, j, how] = engine.align(how, scene, weights[i], weights[j], axes, args.match_seed)
        some = [engine.Line(weights[i], aligned[i, j, how][0], norm, both(*(own[h] for h in at_ends[norm]), i, j))
                for i, j, how, norm in keys]
        if args.adaptive:
            highest = engine.find_highest(scene, some)
            said = [engine.measure(scene, [line], [0.0, t, 1.0])[0] for line, t in zip(some, highest)]
            each = [[0.0, t, 1.0] for t in highest]
        else:
            said, each = engine.measure(scene, some, ts), [ts] * len(some)
        for key, line, found, points in zip(keys, some, said, each):
            far = engine.permute.distance(line.a, line.b)
            before = engine.permute.distance(line.a, weights[key[1]])
            row = describe(key, line, found, points, far, before, args.level if keep else None)
            kept = {f"{part}_{what}": values.clip(max=60000).astype(np.float16) if what == "losses" else values
                    for part, both_of in found.items() for what, values in zip(("losses", "right"), both_of) if keep}
            perms = aligned[key[:3]][1] or {}
            runs.write_arrays(files[key], line=json.dumps(row), ts=np.array(points), **kept,
                              **{f"perm.{g}": p.numpy() for g, p in perms.items()})
            progress.step()
    progress.close()
    return [json.loads(str(runs.read_arrays(file, ("line",), ("line",))["line"])) for file in files.values()]


def both(first, second, i, j):
    """What networks i and j say, as the ends of a line; first and second: what all networks say as its first and as
    its second end."""
    import numpy as np

    return {part: tuple(np.stack([x, y]) for x, y in zip(first[i][part], second[j][part])) for part in first[i]}


def describe(key, line, found, ts, far, before, level):
    """One line as plain values; found: {"train": (losses (T, N), right (T, N)), "test": …}; level: see curve."""
    i, j, how, norm = key
    row = {"a": i, "b": j, "align": how, "bn": norm, "distance": far, "distance_before": before, "ts": ts,
           "search": line.search}
    for part, (losses, right) in found.items():
        row[part] = curve(losses, right, ts, level)
    return row


BLOCKS = 500  # images are drawn in so many sets: the resamples of 50,000 single ones would not fit into memory


def curve(losses, right, ts, level=None):
    """Loss and accuracy along a line with their barriers, from losses and right (T, N). low, high: see over_images;
    None without a level."""
    import numpy as np

    from landscape import metrics

    mean, accuracy = losses.mean(1, dtype=float), right.mean(1, dtype=float)
    height, drop = metrics.excess(mean, ts), metrics.excess(accuracy, ts)
    low, high = over_images(losses, ts, level) if level else (None, None)
    return {"losses": mean.tolist(), "accuracies": accuracy.tolist(), "excess": height.tolist(),
            "loss_barrier": float(height.max()), "accuracy_barrier": float(drop.min()), "at": ts[int(height.argmax())],
            "area": float(np.trapezoid(height, ts)), "low": low, "high": high}


def over_images(losses, ts, level):
    """(low, high) of the barrier of losses (T, N) over images, the highest point looked for anew in each resample."""
    import numpy as np

    from landscape import metrics, results

    n = losses.shape[1]
    count = min(BLOCKS, n)
    blocks = [losses[:, k::count] for k in range(count)]  # strided: images may be sorted by class
    blocks = np.array([some.sum(1, dtype=float) for some in blocks]) * count / n  # their mean is the mean over images
    return results.bootstrap(blocks, lambda v: metrics.barrier(v.mean(0), ts), 500, level)[1:]


def summary(rows, aligns, norms, level):
    """One row for each alignment, kind of BatchNorm, split and measure: mean over pairs, standard deviation, extremes
    and an interval clustered by network."""
    out = []
    for how in aligns:
        for norm in norms:
            some = [r for r in rows if (r["align"], r["bn"]) == (how, norm)]
            for part in ("train", "test"):
                for measure in ("loss_barrier", "accuracy_barrier"):
                    values = {(r["a"], r["b"]): r[part][measure] for r in some}
                    out.append({"align": how, "bn": norm, "split": part, "measure": measure,
                                **starlight.over_pairs(values, level)})
    return out


# ---- tables and figures --------------------------------------------------------------------------------------------

def show(found):
    images, models = found["images"], found["models"]
    print(f"{len(models)} networks, {images['train']} training and {images['test']} test images; mean over pairs, "
          f"standard deviation, [{found['level']:.0%} interval]")
    print(f"{'align':<12}{'BatchNorm':<10}{'measure':<25}{'pairs':>6}  value")
    for row in found["summary"]:
        print(f"{row['align']:<12}{row['bn']:<10}{row['split'] + ' ' + row['measure']:<25}{row['pairs']:>6}  "
              f"{starlight.shown(row)}")
    for how in found["align"]:
        some = [r for r in found["lines"] if r["align"] == how and r["bn"] == found["bn"][0]]
        if how != "none":
            before, after = (sum(r[k] for r in some) / len(some) for k in ("distance_before", "distance"))
            print(f"distance of the parameters: {before:.3f}, aligned by {how} {after:.3f}")


def draw(args, run, found):
    from landscape import redraw
    from landscape.results import write_csv
    from star import barrier_figures

    write_csv(run.path / "barriers.csv", found["summary"], list(found["summary"][0]))
    run.sink.table("barriers", found["summary"])
    for how in found["align"]:
        for norm in found["bn"]:
            starlight.write(run.path / f"starlight-{how}-{norm}.yaml", found, how, norm, args.kind)
    redraw.show(run, barrier_figures.figures(run.path, found), args.formats)


if __name__ == "__main__":
    cli.run(main)
