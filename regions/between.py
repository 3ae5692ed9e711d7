"""How decision regions change along a path of networks: agreement with its ends against the position.

    python -m regions.between --between RUN,RUN --planes 100
    python -m regions.between --between ANCHOR,STAR,HELD_OUT --align weights
    python -m regions.between --between runs/double_descent --along width --select noise_rate=0.2 init_seed=0

The networks lie on the straight lines from each given one to the next, their BatchNorm estimated anew at every point;
main.py --between draws their regions. With --along they are the networks of a folder in the order of one setting, as
over the peak of double descent, with nothing between them. On the same seeded planes through three images each of them
says a class map; agreement and mean IoU of these with the first and with the last network's, intervals over planes,
stand beside loss and accuracy on the test set. Class maps are kept, and those that are there are not computed again.
"""

import json

from landscape import cli, maps, runs
from landscape.errors import UsageError

ENDS = {"first": 0, "last": -1}
ANCHORED = ("foreign_set", "attacked", "attack_steps", "triplets")  # of anchors, besides those of the grid


def make_parser():
    parser = cli.Parser("python -m regions.between", __doc__)
    cli.add_between(parser, named=True)
    g = parser.group("networks", named=True)
    g.add_argument("--which", default="model", choices=("model", "best"),
                   help="of a run: the last weights, or the best on its validation set")
    cli.add_select(g)
    g.add_argument("--bn_images", type=cli.natural, default=5000,
                   help="training images from which BatchNorm statistics are estimated; 0: all")
    cli.add_foreign(parser, net="ResNet", named=True)
    cli.add_maps(parser)
    g = parser.group("statistics", named=True)
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals, over planes")
    g.add_argument("--map_precision", default="fp32", choices=("fp32", "bf16"),
                   help="bf16 with the points near boundaries in fp32 again: faster where the device has bf16")
    cli.add_anchors(parser)
    cli.add_data_here(parser)
    cli.add_machine(parser)
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    maps.follow_triplets(args)
    if not args.between:
        raise UsageError("--between RUN,RUN names the networks of the path")
    sources = maps.find_between(args)
    args.at = sorted({0.0, *args.at, len(sources) - 1.0})  # what the others are compared with
    settings = {**maps.settings(args, sources), **maps.between_settings(args, sources)}
    # Other networks or anchors, another folder.
    args.differs |= {k: settings[k] for k in ("between", *ANCHORED) if k in settings} | {"at": args.at}
    if args.triplets:  # the file decides these too
        args.differs |= {k: settings[k] for k in maps.GRID}
    head = f"between_{len(sources)}_at_{len(args.at)}"
    if args.dry_run:
        path = runs.folder("regions", args, head)
        print("\n".join([f"{'finished' if (path / 'done').exists() else 'computed'}: {path}",
                         *maps.names_between(sources, args.at, args.along)]))
        return 0
    folder, found = runs.measured("regions", args, head, lambda run: compute(args, run, settings, sources),
                                  lambda run, found: draw(args, run, found))
    show(found)
    print(f"results: {folder / 'results.json'}\ntable: {folder / 'between.csv'}")
    return 0


def compute(args, run, settings, sources):
    """Everything, as plain values; the class maps of each position go to run.path / arrays."""
    import numpy as np

    from landscape import anchors as drawing
    from landscape import between, evaluate, plane, refine, train
    from landscape import data as datasets

    device = cli.set_up_device(args)
    data = datasets.load(settings["dataset"], args.data_root, val_size=0)
    given = maps.read_triplets(args.triplets) if args.triplets else None
    drawn = drawing.open_draw(settings, args, data, lambda: train.attacked(args, sources, data.entry),
                              np.array(given["triplets"])[:args.planes] if given else None)
    path = between.load(args, sources, args.at, settings["dataset"], device)
    seen = path.networks[0].preprocessing
    test = datasets.load(settings["dataset"], args.data_root, val_size=0, image_size=seen["image_size"],
                         channels=seen["channels"], device=device).test
    flats = [drawing.through(drawn, r) for r in range(args.planes)]
    files = [run.path / "arrays" / f"class_maps-{k}.npz" for k in range(len(args.at))]
    progress = runs.Progress(len(files), "positions")
    for position, file in zip(args.at, files):
        if not file.exists():
            trained = path.at(position)
            mapper = refine.refining(evaluate.ClassMapper(trained.network, args.map_precision, args.eval_bs),
                                     args.refine)
            said = [mapper(evaluate.seen_by(flat, drawn.space, trained.preprocessing),
                           plane.grid(flat, args.resolution, args.range_l, args.range_r)) for flat, _ in flats]
            kind = np.uint8 if len(data.entry.classes) <= 256 else np.uint16
            runs.write_arrays(
                file, labels=np.stack([s["labels"].numpy() for s in said]).astype(kind), complete=args.planes,
                triplets=np.array([held.ids for _, held in flats]), rechecked=sum(s["rechecked"] for s in said),
                anchors=np.array([flat.anchors.numpy() for flat, _ in flats]), classes=np.array(data.entry.classes),
                extents=np.array([plane.extent(flat, args.range_l, args.range_r) for flat, _ in flats]),
                settings=json.dumps({**settings, "at": position}, sort_keys=True),
                **evaluate.score(trained.network, test, trained.preprocessing, args.eval_bs))
        progress.step()
    progress.close()
    held = [runs.read_arrays(file, maps.NEEDS) for file in files]
    rows = table(held, args.at, len(data.entry.classes), args.level)
    if args.along:
        for row in rows:
            row["along"] = sources[int(row["position"])].config[args.along]
    return {"kind": "between", "settings": settings, "level": args.level, "images": len(test),
            "networks": [str(s.path) for s in sources], "names": maps.names_between(sources, args.at, args.along),
            "along": args.along, "rows": rows}


def table(held, positions, classes, level):
    """One row for each position: loss and accuracy on the test set, and for the first and the last network agreement
    and mean IoU with it, each with low and high."""
    import numpy as np

    from landscape import metrics, results

    scores = metrics.scores_per_plane(np.stack([h["labels"] for h in held]), classes)
    rows = [{"position": p, "loss": float(h["loss"]), "accuracy": float(h["accuracy"])}
            for p, h in zip(positions, held)]
    for score in ("agreement", "mean_iou"):
        for end, k in ENDS.items():
            mean, *ends = results.bootstrap_planes(scores[score][k], level=level)
            low, high = (None if e is None else np.clip(e, 0, 1) for e in ends)
            for n, row in enumerate(rows):
                row |= {f"{score}_{end}": float(mean[n]), f"{score}_{end}_low": low if low is None else float(low[n]),
                        f"{score}_{end}_high": high if high is None else float(high[n])}
    return rows


# ---- tables and figures --------------------------------------------------------------------------------------------

def show(found):
    settings = found["settings"]
    print(f"{settings['planes']} planes of {settings['resolution']}x{settings['resolution']} points, "
          f"{found['level']:.0%} intervals over planes; test set of {found['images']} images")
    print(f"{'position':<16}{'agreement, first':>24}{'agreement, last':>24}{'loss':>10}{'accuracy':>10}")
    for name, row in zip(found["names"], found["rows"]):
        print(f"{name:<16}" + "".join(f"{shown(row, end):>24}" for end in ENDS) +
              f"{row['loss']:>10.4f}{row['accuracy']:>10.4f}")


def shown(row, end):
    value, low, high = (row[f"agreement_{end}{k}"] for k in ("", "_low", "_high"))
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def draw(args, run, found):
    from landscape import plots, redraw, results

    results.write_csv(run.path / "between.csv", found["rows"], list(found["rows"][0]))
    run.sink.table("between", found["rows"])
    redraw.show(run, {"between": plots.between_figure(found["rows"], found["level"], found.get("along"))}, args.formats)


if __name__ == "__main__":
    cli.run(main)
