"""One plane's decision regions during a training, as a GIF, from the snapshots that the training kept.

    python -m regions.animate runs/regions/RUN --imgs 5,42,17 --resolution 100

RUN is a finished run of main.py --snapshots all (or every=5, or 0,1,10). The class maps of every snapshot go into one
file, RUN/arrays/animation-*.npz, so that drawing again with another --fps or --flat needs no network and no torch.
"""

import json
import time
from pathlib import Path

import models
from landscape import cli, runs
from landscape.errors import FileProblem, Interrupted, UsageError

NEEDS = ("labels", "confidence", "epochs", "complete", "anchors", "extent", "ids", "pictures", "anchor_labels",
         "classes")  # fmt: skip
KINDS = tuple(k for k in cli.ANCHORS if k not in ("correct", "incorrect", "foreign", "pgd", "pgd_targeted"))


def make_parser():
    parser = cli.Parser("python -m regions.animate", __doc__)
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run with snapshots")
    g = parser.group("plane")
    g.add_argument("--imgs", default="", metavar="ID,ID,ID",
                   help="anchors: ids in the unsplit set (default: drawn by --plane_seed)")
    g.add_argument("--split", default="train", choices=("train", "test"), help="the set that --imgs counts in")
    g.add_argument("--plane_seed", type=int, default=1, help="choice of the anchors where --imgs is not given")
    g.add_argument("--anchors", default="distinct", choices=KINDS,
                   help="what spans the plane (landscape/anchors.py says it of each)")
    g.add_argument("--resolution", type=cli.side, default=100, help="points a side of the grid")
    g.add_argument("--range_l", type=cli.number(), default=0.1,
                   help="margin left and below, share of the box of anchors")
    g.add_argument("--range_r", type=cli.number(), default=0.1, help="margin right and above")
    g = parser.group("computing")
    g.add_argument("--map_precision", default="fp32", choices=("fp32", "bf16"),
                   help="bf16 with the points near boundaries in fp32 again: faster where the device has bf16")
    g.add_argument("--data_root", default=None, metavar="DIR",
                   help="where the data sets lie (default: $DATA_ROOT, else ~/data)")
    g = parser.group("animation")
    g.add_argument("--fps", type=cli.number(above=0, high=50), default=4.0, help="frames a second; the last stays 2 s")
    g.add_argument("--flat", action="store_true", help="plain colours, no shading by confidence")
    g.add_argument("--plot_path", default="", metavar="DIR", help="the GIF goes here instead of the run's figures/")
    cli.add_machine(parser)
    cli.add_output(parser)
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    if args.resolution < 2:
        raise UsageError(f"--resolution {args.resolution}: at least 2 points a side are needed")
    ids = given_ids(args.imgs)
    source, snapshots = find_snapshots(Path(args.run))
    settings = {"dataset": source.config["dataset"], "split": args.split, "ids": ids, "plane_seed": args.plane_seed,
                "anchors": args.anchors, "resolution": args.resolution, "range_l": args.range_l,
                "range_r": args.range_r, "precision": args.map_precision, "as_published": False,
                "epochs": sorted(snapshots)}
    file = source.path / "arrays" / f"animation-{runs.hash8(settings)}.npz"
    if args.dry_run:
        print(f"{len(snapshots)} snapshots of {source.path}, {args.resolution}x{args.resolution} points each: {file}")
        return 0
    if args.force or not complete(file):
        compute(args, settings, source, snapshots, file)
    path = draw(args, source, runs.read_arrays(file, NEEDS))
    print(f"class maps: {file}\nfigure: {path}")
    return 0


def given_ids(text):
    """--imgs as a list of ids, or None."""
    try:
        ids = [int(i) for i in text.split(",")] if text else None
    except ValueError:
        raise UsageError(f"--imgs {text}: three ids such as 500,5000,1600 are expected") from None
    if ids and (min(ids) < 0 or len(set(ids)) < len(ids)):
        raise UsageError(f"--imgs {text}: different ids from 0 on are expected")
    return ids


def find_snapshots(folder):
    """(the landscape.runs.Source of a run, {epoch: file of its snapshot}). Raises FileProblem where there are none."""
    if not folder.is_dir():
        what = "is a file; the folder of its run is expected" if folder.exists() else "does not exist"
        raise FileProblem(f"{folder} {what}")
    if not (folder / "config.yaml").exists():
        inside = sorted(p.parent.name for p in folder.glob("*/config.yaml") if (p.parent / "checkpoints").is_dir())
        hint = f"; runs with snapshots in it: {runs.few(inside, 3)}" if inside else ""
        raise FileProblem(f"{folder} is no run folder (no config.yaml){hint}")
    source = runs.run_source(folder, ())
    if "dataset" not in source.config or "net" not in source.config:
        raise FileProblem(f"{folder} is no training: name a run of main.py")
    if not (folder / "done").exists():
        raise FileProblem(f"{folder} is not finished: run its command again to resume it")
    found = {int(f.stem.removeprefix("epoch_")): f for f in sorted(folder.glob("checkpoints/epoch_*.safetensors"))
             if f.stem.removeprefix("epoch_").isdigit()}
    if not found:
        raise FileProblem(f"{folder} holds no snapshots (checkpoints/epoch_*.safetensors): train it again with "
                          "--snapshots all, every=5 or 0,1,10")
    return source, found


def complete(file):
    if not file.exists():
        return False
    held = runs.read_arrays(file, NEEDS, only=("complete", "epochs"))
    return int(held["complete"]) == len(held["epochs"])


def compute(args, settings, source, snapshots, file):
    """Class maps of all snapshots on the plane that settings describe, saved into file as they grow."""
    import numpy as np

    from landscape import anchors as drawing
    from landscape import data as datasets
    from landscape import evaluate, plane

    device = cli.set_up_device(args)
    data = datasets.load(settings["dataset"], args.data_root, val_size=0)
    made = drawing.open_draw(settings, args, data, ids=settings["ids"])
    flat, held = drawing.through(made)
    try:
        extent = plane.extent(flat, args.range_l, args.range_r)
    except plane.PlaneError as e:
        raise UsageError(str(e)) from None
    coords = plane.grid(flat, args.resolution, args.range_l, args.range_r)
    epochs, side = settings["epochs"], args.resolution
    lock = runs.hold(source.path)
    try:
        arrays = runs.read_arrays(file, NEEDS) if file.exists() and not args.force else {
            "labels": np.zeros((len(epochs), side, side), np.uint8 if len(data.entry.classes) <= 256 else np.uint16),
            "confidence": np.zeros((len(epochs), side, side), np.float16), "epochs": np.array(epochs), "complete": 0,
            "anchors": flat.anchors.numpy(), "extent": np.array(extent), "ids": np.array(held.ids),
            "pictures": drawing.pictures(held.points, made.space), "anchor_labels": np.array(held.labels),
            "classes": np.array(data.entry.classes), "settings": json.dumps(settings, sort_keys=True)}
        begin, saved = int(arrays["complete"]), time.monotonic()
        progress = runs.Progress(len(epochs), "snapshots", begin)
        with runs.stoppable() as stop:
            for n in range(begin, len(epochs)):
                trained = runs.load(snapshots[epochs[n]])
                mapper = evaluate.ClassMapper(trained.network.to(device), args.map_precision, args.eval_bs)
                said = mapper(evaluate.seen_by(flat, made.space, trained.preprocessing), coords)
                for name in ("labels", "confidence"):
                    arrays[name][n] = said[name].reshape(side, side).numpy()
                arrays["complete"] = n + 1
                progress.step()
                last = n + 1 == len(epochs)
                if last or stop.requested or time.monotonic() - saved >= args.save_every:
                    runs.write_arrays(file, **arrays)
                    saved = time.monotonic()
                if stop.requested and not last:
                    raise Interrupted(f"{stop.requested}: stopped after {n + 1} of {len(epochs)} snapshots; saved in "
                                      f"{file}; the same command goes on")
        progress.close()
    finally:
        runs.release(lock)


def draw(args, source, arrays):
    """The GIF of saved class maps; returns its path."""
    from landscape import plots

    ids = "-".join(str(i) for i in arrays["ids"] if i >= 0)
    if args.anchors != "distinct":
        ids = "_".join(filter(None, [args.anchors, ids or f"seed{args.plane_seed}"]))
    path = Path(args.plot_path or source.path / "figures") / f"animation_{ids}{'_flat' * args.flat}.gif"
    titles = frame_titles(source, arrays["epochs"].tolist())
    plots.save_gif(plots.frames(arrays, titles, shaded=not args.flat), path, 1 / args.fps)
    if args.active_log:
        sink = runs.join(source.path, args)
        sink.image("animation", path)
        sink.finish()
    return path


def frame_titles(source, epochs):
    """What stands above each frame: network, epoch, and the accuracies that metrics.jsonl has of it."""
    lines = {r.get("epoch"): r for r in runs.read_metrics(source.path)}
    titles = []
    for epoch in epochs:
        known = lines.get(epoch, {})
        said = [f"{word} accuracy {known[f'{name}_accuracy']:.1%}" for name, word in
                (("val", "validation"), ("test", "test")) if known.get(f"{name}_accuracy") is not None]
        titles.append(": ".join(filter(None, [f"{models.canonical(source.config['net'])}, epoch {epoch}",
                                              ", ".join(said)])))
    return titles


if __name__ == "__main__":
    cli.run(main)
