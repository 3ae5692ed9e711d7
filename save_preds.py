"""Class maps of many networks on the same seeded planes, for calculate_iou.py.

    python save_preds.py --load_net runs/regions --planes 50 --resolution 50

Each plane goes through three test images of different classes. A network's maps are written into its own run folder
(arrays/class_maps-*.npz); maps that are there already are not computed again, and a broken-off run goes on where it
was. Foreign checkpoints in dbViz's layout, DIR/<architecture>/*.pth, are read and their folder is left alone.
"""

import json
import sys
import time
from pathlib import Path

from landscape import cli, maps, runs
from landscape.errors import Interrupted, UsageError


def part(text):
    """A type for --part: K/N, with K from 1 to N."""
    try:
        k, n = map(int, text.split("/"))
    except ValueError:
        k, n = 0, 0
    if not 1 <= k <= n:
        raise cli.argparse.ArgumentTypeError(f"K/N with K from 1 to N is expected, such as 1/2, not {text!r}")
    return text


def make_parser():
    parser = cli.Parser("save_preds.py", __doc__)
    cli.add_maps(parser)
    parser.add_argument("--save_probs", action="store_true",
                        help="keep the probabilities too, in a file of their own: 2 bytes a class and point; then auto "
                             "is fp32 in --map_precision")
    cli.add_anchors(parser)
    g = parser.group("networks")
    g.add_argument("--load_net", default="runs/regions", metavar="DIR",
                   help="run folders, or DIR/<architecture>/*.pth; or one of them")
    g.add_argument("--which", default="model", choices=("model", "best"),
                   help="of a run: the last weights, or the best on its validation set")
    cli.add_point(g)
    cli.add_select(g)
    cli.add_foreign(parser, net="ResNet")
    g.add_argument("--part", type=part, default="1/1", metavar="K/N",
                   help="only every N-th of these networks from the K-th on, for processes that share them out")
    g = parser.group("computing")
    g.add_argument("--map_precision", default="auto", choices=("auto", "fp32", "bf16"),
                   help="bf16 labels points near boundaries again in fp32; auto: bf16 where the device has it")
    g.add_argument("--data_root", default=None, metavar="DIR",
                   help="where the data sets lie (default: $DATA_ROOT, else ~/data)")
    cli.add_machine(parser)
    cli.add_output(parser)
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    maps.follow_triplets(args)
    sources = runs.find_models(args.load_net, select=args.select)
    settings = maps.settings(args, sources)
    first, step = map(int, args.part.split("/"))
    if first > len(sources):
        print(f"--part {args.part}: there are {len(sources)} networks, none is left for this process")
        return 0
    every, sources = sources, sources[first - 1::step]
    files = [runs.measure_folder(s, args.runs) / "arrays" / maps.file_name(settings) for s in sources]
    todo = [(s, f) for s, f in zip(sources, files) if args.force or not complete(f, settings)]
    if args.dry_run:
        for source, file in zip(sources, files):
            print(f"{'compute' if (source, file) in todo else 'done'}: {source.group}: {file}")
        return 0
    if todo or args.save_triplets:
        compute(args, settings, todo, every)
    print(f"{'group':<24} {'planes':>6} {'points':>8} {'rechecked':>10} {'largest class':>14}  file")
    for source, file in zip(sources, files):
        row = summary(file)
        print(f"{source.group:<24} {row['planes']:>6} {row['points']:>8} {row['rechecked']:>9.2%} "
              f"{row['largest_class']:>13.1%}  {file}")
        if args.active_log and not source.foreign:
            log(args, source, row)
    if args.refine:
        counts = [row for f in files for row in runs.read_arrays(f, only=("refined",))["refined"]]
        print(maps.refined(counts, args.resolution**2))
    print(f"next: python calculate_iou.py --load_net {args.load_net}")
    return 0


def complete(file, settings):
    """Are all planes of this file computed?"""
    return file.exists() and int(runs.read_arrays(file, maps.NEEDS, maps.NEEDS)["complete"]) == settings["planes"]


def summary(file):
    """What the maps of one network look like: planes, points a plane, share labelled twice, share of its most
    frequent class over all points."""
    import numpy as np

    held = runs.read_arrays(file, maps.NEEDS, maps.NEEDS)
    planes, points = held["labels"].shape
    counts = np.bincount(held["labels"].ravel())
    return {"planes": planes, "points": points, "rechecked": int(held["rechecked"]) / (planes * points),
            "largest_class": counts.max() / counts.sum()}


def log(args, source, row):
    """The summary as a table in the wandb run of the network's training."""
    sink = runs.join(source.path, args)
    sink.table("class maps", [{"group": source.group, **{k: float(v) for k, v in row.items()}}])
    sink.finish()


def compute(args, settings, todo, sources):
    """Class maps of the sources in todo = [(source, file)], plane by plane, saved as they grow."""
    import numpy as np

    from landscape import anchors as drawing
    from landscape import data as datasets
    from landscape import evaluate, refine, train

    device = cli.set_up_device(args)
    data = datasets.load(settings["dataset"], args.data_root, val_size=0)
    given = maps.read_triplets(args.triplets) if args.triplets else None
    draw = drawing.open_draw(settings, args, data, lambda: train.attacked(args, sources, data.entry),
                             np.array(given["triplets"])[:settings["planes"]] if given else None)
    if given:
        drawing.check_triplets(given, draw.images, args.triplets)
    spanned = [spanning(draw, settings, r) for r in range(settings["planes"])]
    ids, *geometry = (np.array(part) for part in zip(*spanned))
    if args.save_triplets:
        drawing.save_triplets(args.save_triplets, draw, settings["planes"], data.name, settings["split"])
    kind = np.uint8 if len(data.entry.classes) <= 256 else np.uint16
    precision = args.map_precision
    if precision == "auto":
        precision = "fp32" if args.save_probs else cli.resolved_precision("auto", device.type)
    progress = runs.Progress(len(todo) * settings["planes"], "class maps")
    for source, file in todo:
        trained = train.load_source(source, args, data.entry)
        maps.check_same_data(source, trained, settings)
        mapper = evaluate.ClassMapper(trained.network.to(device), precision, args.eval_bs)
        mapper = refine.refining(mapper, args.refine)
        lock = runs.hold(file.parent)
        try:
            for leftover in file.parent.glob(f".{file.name}.tmp-*"):
                leftover.unlink()
            held = runs.read_arrays(file, maps.NEEDS) if file.exists() and not args.force else {
                "labels": np.zeros((settings["planes"], settings["resolution"] ** 2), dtype=kind), "triplets": ids,
                "complete": 0, "rechecked": 0, "classes": np.array(data.entry.classes),
                "settings": json.dumps(settings, sort_keys=True)}
            held |= dict(zip(("anchors", "extents"), geometry))  # a file that an older version began has none
            if args.refine and "refined" not in held:
                held["refined"] = np.zeros((settings["planes"], 3), dtype=np.int64)
            if args.save_probs and "probs" not in held:
                held["probs"] = np.zeros((*held["labels"].shape, len(data.entry.classes)), dtype=np.float16)
            progress.step(int(held["complete"]))
            add_planes(held, mapper, lambda r, t=trained: seen_plane(draw, settings, r, t), source,
                        file, args.save_every, progress)
        finally:
            runs.release(lock)
        trained.network.cpu()
    progress.close()


def add_planes(held, mapper, seen, source, file, every, progress):
    """Fill the class maps `held` up to their last plane, and save them into file as they grow: every so many seconds,
    and when asked to stop. seen(number): that plane and its grid, for mapper."""
    planes, saved = len(held["labels"]), time.monotonic()
    with runs.stoppable() as stop:
        for r in range(int(held["complete"]), planes):
            said = mapper(*seen(r), **({"probs": True} if "probs" in held else {}))
            held["labels"][r] = said["labels"].numpy()
            if "refined" in held:
                held["refined"][r] = said["refined"]
            if "probs" in held:
                held["probs"][r] = said["probs"].numpy()
            held["rechecked"], held["complete"] = held["rechecked"] + said["rechecked"], r + 1
            progress.step()
            last = r + 1 == planes
            if last or stop.requested or time.monotonic() - saved >= every:
                runs.write_arrays(file, **held)
                saved = time.monotonic()
            if stop.requested and not last:
                raise Interrupted(f"{stop.requested}: stopped after {r + 1} planes of {source.name}; saved in {file}; "
                                  "the same command goes on")


def spanning(draw, settings, number):
    """(ids of the anchors of that plane, their coordinates (3, 2), the extent of its grid)."""
    from landscape import anchors, plane

    flat, held = anchors.through(draw, number)
    try:
        return held.ids, flat.anchors.numpy(), plane.extent(flat, settings["range_l"], settings["range_r"])
    except plane.PlaneError as e:
        raise UsageError(f"plane {number}: {e}") from None


def seen_plane(draw, settings, number, trained):
    """(that plane as the network sees it, its grid's coordinates (S, 2))."""
    from landscape import anchors, evaluate, plane

    flat, _ = anchors.through(draw, number)
    coords = plane.grid(flat, settings["resolution"], settings["range_l"], settings["range_r"])
    return evaluate.seen_by(flat, draw.space, trained.preprocessing), coords


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    cli.run(main)
