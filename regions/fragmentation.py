"""How fragmented decision regions are, from the class maps that save_preds.py wrote.

    python -m regions.fragmentation --load_net runs/regions

Per network and per group: connected components of one class (dbViz's fragmentation score), share of the largest one,
number of classes, entropy of their shares, boundary length; means over planes with bootstrap intervals.
"""

from pathlib import Path

from landscape import cli, maps, runs
from landscape.errors import UsageError

MEASURES = {"fragments": "connected regions of one class", "largest": "share of the largest region",
            "classes": "classes on a plane", "entropy": "entropy of the classes' shares (nats)",
            "boundary": "share of neighbouring points that differ"}  # fmt: skip


def make_parser():
    parser = cli.Parser("python -m regions.fragmentation", __doc__)
    cli.add_saved_maps(parser)
    g = parser.group("regions", named=True)
    g.add_argument("--connectivity", type=int, default=8, choices=(4, 8), help="neighbours of a point (dbViz: 8)")
    g.add_argument("--min_area", type=cli.positive, default=1, metavar="POINTS", help="smaller regions do not count")
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals")
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    sources = runs.find_models(args.load_net, args.group_by.split(","), args.select)
    files, settings = maps.common(args, sources)
    if args.dry_run:
        print(f"{len(files)} networks on {settings['planes']} planes")
        return 0
    found = measure(args, files, settings)
    args.force = True  # seconds of work, and the networks under DIR may be others than last time
    with runs.start("regions", args, f"fragmentation_{Path(args.load_net).resolve().name}") as run:
        show(found)
        draw(args, run, found)
        run.finish(found)
        print(f"results: {run.path / 'results.json'}")
    return 0


def measure(args, files, settings):
    """Means over planes with intervals, for every network and, over its networks' means, for every group."""
    import numpy as np

    from landscape import metrics, results

    side = settings["resolution"]
    if args.min_area > side * side:
        raise UsageError(f"--min_area {args.min_area}: a plane has {side * side} points")
    models, per_plane = [], {}
    for source, file in files:
        labels = runs.read_arrays(file)["labels"].reshape(-1, side, side)
        values = metrics.fragmentation(labels, args.connectivity, args.min_area)
        per_plane.setdefault(source.group, []).append(values)
        row = {"group": source.group, "name": source.seed_name, "path": str(source.path)}
        for name in MEASURES:
            row[name] = interval(results.bootstrap(values[name], level=args.level))
        models.append(row)
    groups = []
    for group, members in per_plane.items():
        row = {"group": group, "models": len(members)}
        for name in MEASURES:
            values = np.array([m[name] for m in members], dtype=float)
            row[name] = interval(results.bootstrap(values.mean(0), level=args.level))  # over planes
            row[f"{name}_models"] = interval(results.bootstrap(values.mean(1), level=args.level))  # over networks
        groups.append(row)
    return {"settings": settings, "connectivity": args.connectivity, "min_area": args.min_area, "level": args.level,
            "models": models, "groups": groups}


def interval(found):
    value, low, high = found
    return {"value": value, "low": low, "high": high}


def show(found):
    print(f"{found['settings']['planes']} planes of {found['settings']['resolution']} points a side, "
          f"{found['connectivity']}-connected, at least {found['min_area']} points, {found['level']:.0%} intervals")
    print(f"{'group':<24}" + "".join(f"{name:>24}" for name in MEASURES))
    for row in found["groups"]:
        cells = [f"{row[m]['value']:.3f} [{row[m]['low']:.3f}, {row[m]['high']:.3f}]" if row[m]["low"] is not None
                 else f"{row[m]['value']:.3f}" for m in MEASURES]
        print(f"{row['group']:<24}" + "".join(f"{c:>24}" for c in cells))


def draw(args, run, found):
    from landscape import plots
    from landscape.results import write_csv

    rows = [{"group": g["group"], "models": g["models"], "measure": m, **g[m],
             "low_models": g[f"{m}_models"]["low"], "high_models": g[f"{m}_models"]["high"]}
            for g in found["groups"] for m in MEASURES]
    write_csv(run.path / "fragmentation.csv", rows)
    run.sink.table("fragmentation", rows)
    note = f"means over {found['settings']['planes']} planes with {found['level']:.0%} intervals"
    for path in plots.save(plots.interval_figure(found["groups"], found["models"], MEASURES, note),
                           run.path / "figures" / "fragmentation", args.formats.split(",")):
        run.sink.image("fragmentation", path)
        print(f"figure: {path}")


if __name__ == "__main__":
    cli.run(main)
