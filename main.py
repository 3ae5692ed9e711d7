"""Train or load networks and draw their decision regions on the plane through three images.

    python main.py --net resnet20 --dataset digits --epochs 10 --imgs 5,17,42

A training goes to its own folder under --runs, named by its settings; done again, it is not repeated, and broken off,
it is resumed. --load_net draws trained networks instead: a run folder, a checkpoint, or a folder of many, which gives
a grid of panels (architecture x seed) on one plane. --between RUN,RUN draws the networks on the line between two.
"""

import json
import sys
from pathlib import Path

from landscape import cli, maps, parallel, runs
from landscape.errors import UsageError


def make_parser():
    parser = cli.training_parser("main.py", __doc__)
    g = parser.group("loading")
    g.add_argument("--load_net", default="", metavar="PATH",
                   help="draw these trained networks: a run folder, a checkpoint, or a folder of many")
    g.add_argument("--which", default="model", choices=("model", "best"),
                   help="of a run: the last weights, or the best on its validation set")
    cli.add_point(g)
    g.add_argument("--save_net", default="", metavar="NAME",
                   help="label the run, and write its state_dict as NAME.pth into its folder too")
    g.add_argument("--group_by", default="net,width", metavar="KEY,KEY,…",
                   help="the settings that make one row of a grid of panels")
    g.add_argument("--column_by", default="", metavar="KEY",
                   help="the setting that makes the columns of a grid of panels (default: the seeds)")
    cli.add_select(g)
    cli.add_between(parser)
    g = parser.group("plane")
    g.add_argument("--imgs", default="", metavar="ID,ID,ID",
                   help="anchors: ids in the unsplit set; none: draw nothing; default: three of different classes, by "
                        "--plane_seed")
    g.add_argument("--split", default="train", choices=("train", "test"), help="the set that --imgs counts in")
    g.add_argument("--plane_seed", type=int, default=1, help="choice of the anchors where --imgs is not given")
    g.add_argument("--anchors", default="distinct", choices=cli.ANCHORS,
                   help="what spans the plane (landscape/anchors.py says it of each)")
    g.add_argument("--resolution", type=cli.side, default=100, help="points a side of the grid")
    g.add_argument("--range_l", type=cli.number(), default=0.1,
                   help="margin left and below, share of the box of anchors")
    g.add_argument("--range_r", type=cli.number(), default=0.1, help="margin right and above")
    cli.add_refine(g, 0)
    g.add_argument("--map_precision", default="fp32", choices=("fp32", "bf16"),
                   help="bf16 with the points near boundaries in fp32 again: faster where the device has bf16")
    cli.add_anchors(parser)
    cli.add_figures(parser)
    parser.add_argument("--plot_path", default="", metavar="DIR", help="figures go here instead of the run's figures/")
    parser.add_argument("--flat", action="store_true", help="plain colours, no shading by confidence")
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    args.as_published = False
    maps.follow_triplets(args)
    args.ids = anchor_ids(args)
    if args.resolution < 2:
        raise UsageError(f"--resolution {args.resolution}: at least 2 points a side are needed")
    if Path(args.save_net).name != args.save_net:
        raise UsageError(f"--save_net {args.save_net}: a name is expected, not a path; runs lie under --runs")
    path = find_between(args)
    if args.dry_run:
        return plan(args, path)
    if args.time_steps and not args.load_net:
        from landscape import train

        return train.time_run(args, cli.set_up_device(args))
    if path:
        return draw_between(args, path)
    if args.load_net:
        sources = runs.find_models(args.load_net, args.group_by.split(","), args.select)
        if args.ids == "none":
            raise UsageError("--load_net draws the network: --imgs none leaves nothing to do")
        return draw(args, columns(args, sources))
    if args.column_by and args.column_by not in vars(args):
        raise UsageError(f"--column_by {args.column_by}: a training has no such setting"
                         f"{cli.suggestion(args.column_by, vars(args))}")
    prepared = None if finished(args) else prepare(args)
    with runs.start("regions", args) as run:
        if not run.finished:
            from landscape import train

            train.train(run, args, cli.set_up_device(args), prepared)
        draw_curves(run, args)
        report(run, args)
        if args.ids != "none" and parallel.processes() > 1:
            cli.set_up_device(args)  # all processes meet; process 0 draws, and the others read nothing
        if args.ids != "none" and not parallel.follows():
            draw(args, columns(args, [runs.run_source(run.path, args.group_by.split(","))]), run.sink)
    return 0


def columns(args, sources):
    """The sources, ordered within their groups by --column_by where that is given."""
    if not args.column_by:
        return sources
    if lacking := [s for s in sources if args.column_by not in s.config]:
        raise UsageError(f"--column_by {args.column_by}: {lacking[0].name} has no such setting"
                         f"{cli.suggestion(args.column_by, lacking[0].config)}")
    groups = list(dict.fromkeys(s.group for s in sources))
    return sorted(sources, key=lambda s: (groups.index(s.group), s.config[args.column_by]))


def finished(args):
    return (runs.folder("regions", args) / "done").exists() and not args.force


def prepare(args):
    """landscape.train.prepare, and a look at the anchors: hours of training should not end in a refusal."""
    from landscape import train

    prepared = train.prepare(args, cli.set_up_device(args))
    if args.ids != "none" and not args.anchors.startswith("pgd"):
        from landscape import data as datasets

        settings = {"dataset": args.dataset, "split": args.split, "plane_seed": args.plane_seed,
                    "as_published": args.as_published, **maps.anchor_settings(args, [vars(args)])}
        own = datasets.load(args.dataset, args.data_root, val_size=0)
        anchors(args, settings, own, None)
    return prepared


DBVIZ_ANCHORS = {-1: "noise", -10: "one_pixel", -100: "foreign"}  # dbViz's ids for anchors that are no images


def anchor_ids(args):
    """--imgs as a list of ids, "none", or None (to be drawn)."""
    text = args.imgs
    if args.triplets and text != "none":
        if text:
            raise UsageError("--imgs and --triplets: give one of the two")
        return [i for i in maps.read_triplets(args.triplets)["triplets"][0] if i >= 0] or None
    if text in ("", "none"):
        return text or None
    try:
        ids = [int(i) for i in text.split(",")]
    except ValueError:
        raise UsageError(f"--imgs {text}: three ids such as 500,5000,1600 are expected") from None
    for code, kind in DBVIZ_ANCHORS.items():
        if code in ids:
            args.anchors = kind
            return {"noise": None, "one_pixel": [i for i in ids if i >= 0][:1] or None,
                    "foreign": [i for i in ids if i >= 0][:2] or None}[kind]
    if not 1 <= len(ids) <= 3 or min(ids) < 0:
        raise UsageError(f"--imgs {text}: three ids from 0 on are expected")
    if len(set(ids)) < len(ids):
        raise UsageError(f"--imgs {text}: two anchors are the same image; choose three different ones")
    return ids


def plan(args, path):
    """What would be done, printed; nothing is written. path: the sources of --between."""
    if path:
        print("\n".join(f"draw {name}" for name in maps.names_between(path, args.at, args.along)))
        return 0
    if args.load_net:
        for source in runs.find_models(args.load_net, args.group_by.split(","), args.select):
            print(f"draw {source.group}: {source.path}")
        return 0
    path = runs.folder("regions", args)
    print(f"{runs.state_of(path)}: {path}\n{args.net} on {args.dataset}, {args.epochs} epochs of batches of {args.bs}, "
          f"{args.opt}, {args.precision}; then {args.resolution}x{args.resolution} points of a plane")
    return 0


def report(run, args):
    """One line a result of the training; --save_net's export."""
    results = runs.read_json(run.path / "results.json")
    for name in ("last", "best"):
        part = results[name]
        if part:
            said = [f"{k.replace('_', ' ')} {part[k]:.4f}" for k in
                    ("train_accuracy", "val_accuracy", "test_accuracy", "test_loss") if part.get(k) is not None]
            print(f"{name} (epoch {part['epoch']}): {', '.join(said)}")
    if args.save_net and not (run.path / f"{args.save_net.removesuffix('.pth')}.pth").exists():
        export(run.path, args.save_net)
    print(f"run: {run.path}")


def export(path, name):
    import io

    import torch

    weights, _ = runs.read_weights(path / "model.safetensors")
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    runs.write_bytes(path / f"{name.removesuffix('.pth')}.pth", buffer.getvalue())


def draw_curves(run, args):
    """The training's own figure, where it is not there yet: loss and accuracy over epochs."""
    stem = run.path / "figures" / "curves"
    formats = [f for f in args.formats.split(",") if not Path(f"{stem}.{f}").exists()]
    records = run.metrics() if formats else []
    if records:
        from landscape import plots

        for path in plots.save(plots.training_curves(records), stem, formats):
            run.sink.image("curves", path)


# ---- decision regions ----------------------------------------------------------------------------------------------

def draw(args, sources, sink=None):
    """Class maps of every source on one plane (computed where they are not on disk yet), and their figure, with a
    column for each source and --point. sink: the wandb sink of a training that is still open."""
    columns, found = args.point.split(";"), {}
    for point in columns:
        args.point = point
        found[point] = maps_at(args, sources)
    settings = [settings for settings, _ in found.values()]
    settings = settings[0] if len(settings) == 1 else settings
    named = [s.seed_name if not args.column_by else f"{args.column_by} {s.config[args.column_by]}" for s in sources]
    cells = [(s.group, " ".join([name] + [point] * (len(columns) > 1)), found[point][1][n])
             for n, (s, name) in enumerate(zip(sources, named)) for point in columns]
    if len(sources) == 1:
        folder = runs.measure_folder(sources[0], args.runs)
    else:
        folder = Path(args.runs) / "regions" / f"panels-{runs.hash8([settings, [str(s.path) for s in sources]])}"
    save(args, cells, folder, sink)
    return 0


def save(args, cells, folder, sink=None):
    """The figure of cells = [(row, column, arrays)], in the folder's figures/ or --plot_path, and in wandb."""
    from landscape import plots

    if args.refine:
        print(maps.refined([arrays["refined"] for _, _, arrays in cells], args.resolution**2))
    fig = plots.plane_panels(cells, shaded=not args.flat)
    ids = "-".join(str(i) for i in cells[0][2]["ids"] if i >= 0)
    if args.anchors != "distinct":
        ids = "_".join(filter(None, [args.anchors, ids or f"seed{args.plane_seed}"]))
    words = [f"{cells[0][0].replace(' ', '_')}_{ids}_{args.seed}" if args.plot_path else f"regions_{ids}"]
    stem = Path(args.plot_path or folder / "figures") / "_".join(words + ["flat"] * args.flat)
    for path in plots.save(fig, stem, args.formats.split(",")):
        print(f"figure: {path}")
    log_figure(args, folder, Path(f"{stem}.png"), sink)


def find_between(args):
    """The sources of --between, [] where it is not given; --at is filled in."""
    if not args.between:
        return []
    if args.load_net or args.point or args.ids == "none":
        flag = "--load_net" if args.load_net else "--point" if args.point else "--imgs none"
        raise UsageError(f"{flag} and --between: give one of the two")
    return maps.find_between(args)


def draw_between(args, sources):
    """Class maps of the networks at --at of the path through the sources, on one plane, and their figure."""
    own = maps.between_settings(args, sources)
    settings = {**plane_settings(args, sources), **own}
    folder = Path(args.runs) / "regions" / f"between-{runs.hash8(own)}"
    files = [folder / "arrays" / f"plane-{runs.hash8({**settings, 'at': p})}.npz" for p in args.at]
    missing = [(p, f) for p, f in zip(args.at, files) if args.force or not f.exists()]
    if missing or args.save_triplets:
        from landscape import between

        points = [p for p, _ in missing]
        path = between.load(args, sources, points, settings["dataset"], cli.set_up_device(args))
        compute(args, settings, missing, sources, path.at)
    names = maps.names_between(sources, args.at, args.along)
    save(args, [(sources[0].group, name, runs.read_arrays(f)) for name, f in zip(names, files)], folder)
    return 0


def maps_at(args, sources):
    """(settings, [arrays of each source]) of the class maps at one --point, computed where they are missing."""
    settings = plane_settings(args, sources)
    name = f"plane-{runs.hash8(settings)}.npz"
    files = [runs.measure_folder(s, args.runs) / "arrays" / name for s in sources]
    missing = [(s, f) for s, f in zip(sources, files) if args.force or not f.exists()]
    if missing or args.save_triplets:
        compute(args, settings, missing, sources)
    return settings, [runs.read_arrays(f) for f in files]


def plane_settings(args, sources):
    """What determines the class maps of sources on a plane."""
    maps.check_attacked(args, sources)
    return {"dataset": args.dataset if sources[0].foreign else sources[0].config["dataset"], "split": args.split,
            "ids": args.ids, "plane_seed": args.plane_seed, "resolution": args.resolution,
            "range_l": args.range_l, "range_r": args.range_r, "precision": args.map_precision,
            "which": args.which, "as_published": args.as_published,
            **({"refine": args.refine} if args.refine else {}), **maps.point_settings(args),
            **maps.anchor_settings(args, [s.config for s in sources]), **maps.attacked_settings(args, sources),
            **maps.foreign_settings(args, sources)}


def log_figure(args, folder, png, sink):
    """The figure to wandb, in the run that trained the network where there was one."""
    if args.active_log and png.exists():
        joined = sink if sink and sink.id else runs.join(folder, args)
        joined.image("decision regions", png)
        if joined is not sink:
            joined.finish()


def anchors(args, settings, data, network):
    """(the plane, its landscape.anchors.Anchors, the Draw); UsageError where they span none. network: a function
    returning the Trained that PGD attacks."""
    from landscape import anchors as drawing
    from landscape import plane

    ids = args.ids
    if ids is not None and args.smoke:
        images = data.full if settings["split"] == "train" else data.test
        ids = [(i + n) % len(images) for n, i in enumerate(ids)]
    try:
        draw = drawing.open_draw(settings, args, data, network, ids)
        if args.triplets:
            drawing.check_triplets(maps.read_triplets(args.triplets), draw.images, args.triplets)
        flat, held = drawing.through(draw)
        plane.extent(flat, args.range_l, args.range_r)
    except (UsageError, plane.PlaneError) as e:
        raise UsageError(f"{e} (--imgs ID,ID,ID chooses anchors in {data.name}'s {settings['split']} set; --imgs none "
                         "draws nothing)") from None
    if args.save_triplets:
        drawing.save_triplets(args.save_triplets, draw, 1, data.name, settings["split"])
    return flat, held, draw


def compute(args, settings, missing, sources, load=None):
    """Class maps of the sources in `missing` = [(source, file)], on the plane that settings describe. load: of what
    stands in `missing` in the place of sources, the Trained."""
    import numpy as np

    from landscape import anchors as drawing
    from landscape import data as datasets
    from landscape import evaluate, plane, refine, train

    device = cli.set_up_device(args)
    data = datasets.load(settings["dataset"], args.data_root, val_size=0)
    flat, held, made = anchors(args, settings, data, lambda: train.attacked(args, sources, data.entry))
    flat, space = flat.to(device), made.space
    coords = plane.grid(flat, args.resolution, args.range_l, args.range_r)
    extent = plane.extent(flat, args.range_l, args.range_r)
    pictures = drawing.pictures(held.points, space)
    given = [int(made.images.labels[i]) if i >= 0 else -1 for i in held.ids]
    progress = runs.Progress(len(missing), "decision regions")
    for source, file in missing:
        trained = load(source) if load else train.load_source(source, args, data.entry)
        if not load:
            maps.check_same_data(source, trained, settings)
        mapper = evaluate.ClassMapper(trained.network.to(device), args.map_precision, args.eval_bs)
        mapper = refine.refining(mapper, args.refine)
        said = mapper(evaluate.seen_by(flat, space, trained.preprocessing), coords)
        side = args.resolution
        runs.write_arrays(
            file, labels=said["labels"].reshape(side, side).numpy().astype(np.uint16),
            confidence=said["confidence"].reshape(side, side).numpy().astype(np.float16),
            anchors=flat.anchors.numpy(), extent=np.array(extent), ids=np.array(held.ids), pictures=pictures,
            anchor_labels=np.array(held.labels), anchor_given=np.array(given), classes=np.array(data.entry.classes),
            rechecked=said["rechecked"], settings=json.dumps(settings, sort_keys=True),
            **({"refined": np.array(said["refined"])} if args.refine else {}))
        progress.step()
    progress.close()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    cli.run(main)
