"""Are the planes enough, and the grid fine enough? From the class maps that save_preds.py wrote, without a network.

    python -m regions.converge --load_net runs/regions

Every score of pairs of networks and every measure of fragmentation, once of the first 10, 20, 50, 100, … planes with
all grid points, and once of all planes with every, every second, third and fifth grid line. A coarser grid's shift is
its difference from the full grid, plane by plane. Intervals are bootstrapped over planes.
"""

from pathlib import Path

from landscape import cli, maps, runs
from landscape.errors import UsageError

STRIDES = (1, 2, 3, 5)
# Of each measure: what it is, and the least and the most that it can be.
MEASURES = {"agreement": ("share of points with the same class", 0, 1), "mean_iou": ("mean IoU over classes", 0, 1),
            "kappa": ("agreement beyond chance", -1, 1), "fragments": ("connected regions of one class", 0, None),
            "largest": ("share of the largest region", 0, 1), "classes": ("classes on a plane", 1, None),
            "entropy": ("entropy of the classes' shares (nats)", 0, None),
            "boundary": ("share of neighbouring points that differ", 0, 1)}  # fmt: skip
DRAWN = ("agreement", "fragments")


def make_parser():
    parser = cli.Parser("python -m regions.converge", __doc__)
    cli.add_saved_maps(parser)
    g = parser.group("regions", named=True)
    g.add_argument("--connectivity", type=int, default=8, choices=(4, 8), help="neighbours of a point (dbViz: 8)")
    g.add_argument("--min_area", type=cli.positive, default=1, metavar="POINTS",
                   help="smaller regions do not count; on each grid, in its own points")
    g = parser.group("statistics", named=True)
    g.add_argument("--resamples", type=cli.positive, default=2000, help="of the bootstrap")
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals")
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    sources = runs.find_models(args.load_net, args.group_by.split(","), args.select)
    files, settings = maps.common(args, sources)
    if args.dry_run:
        print(f"{len(files)} networks; planes {steps(settings['planes'])}, points a side "
              f"{[side(settings['resolution'], k) for k in strides(settings['resolution'])]}")
        return 0
    found = measure(args, files, settings)
    args.force = True  # seconds of work, and the networks under DIR may be others than last time
    with runs.start("regions", args, f"convergence_{Path(args.load_net).resolve().name}") as run:
        show(found)
        draw(args, run, found)
        run.finish(found)
        print(f"results: {run.path / 'results.json'}\ntable: {run.path / 'convergence.csv'}")
    return 0


def steps(planes):
    """10, 20, 50, 100, … below the number of planes, and that number."""
    return [n * 10**k for k in range(1, 9) for n in (1, 2, 5) if n * 10**k < planes] + [planes]


def strides(resolution):
    """Of STRIDES, those that leave two grid lines at least."""
    return [k for k in STRIDES if side(resolution, k) >= 2]


def side(resolution, stride):
    """Points a side when every stride-th grid line is kept, the first among them."""
    return -(-resolution // stride)


def measure(args, files, settings):
    """One row a measure, group or pair of groups, and number of planes or grid lines; as plain values."""
    import numpy as np

    from landscape import results

    planes, resolution = settings["planes"], settings["resolution"]
    coarsest = side(resolution, strides(resolution)[-1])
    if args.min_area > coarsest**2:
        raise UsageError(f"--min_area {args.min_area}: a plane of the coarsest grid has {coarsest**2} points")
    held = maps.read_together(files)
    labels = np.stack([h["labels"] for h in held]).reshape(len(held), planes, resolution, resolution)
    groups = [s.group for s, _ in files]
    chosen = {"n": args.resamples, "level": args.level}
    by_stride = {k: per_plane(args, labels[:, :, ::k, ::k], groups, len(held[0]["classes"]))
                 for k in strides(resolution)}
    names = list(by_stride[1])
    stacked = {k: np.stack([series[name] for name in names]) for k, series in by_stride.items()}
    rows = []
    for n in steps(planes):
        found = results.bootstrap_defined(stacked[1][:, :n], **chosen)
        rows += [row(name, "planes", n, resolution, 1, bounded(name, found, i)) for i, name in enumerate(names)]
    for k, values in stacked.items():
        found, apart = results.bootstrap_defined(values, **chosen), values - stacked[1]
        shift = results.bootstrap_defined(apart, **chosen)
        rows += [row(name, "resolution", planes, side(resolution, k), k, bounded(name, found, i)) |
                 {f"shift{end}": value for end, value in zip(("", "_low", "_high"), cells(shift, i))}
                 for i, name in enumerate(names)]
    undefined = {" – ".join(filter(None, name[1:])): int(np.isnan(by_stride[1][name]).sum())
                 for name in names if name[0] == "kappa" and np.isnan(by_stride[1][name]).any()}
    return {"settings": settings, "undefined_kappa": undefined, "connectivity": args.connectivity,
            "min_area": args.min_area, "level": args.level, "resamples": args.resamples,
            "groups": list(dict.fromkeys(groups)),
            "models": [{"name": s.name, "group": s.group, "path": str(s.path)} for s, _ in files], "rows": rows}


def per_plane(args, labels, groups, classes):
    """{(measure, group, group or ""): values (P,)} of class maps (M, P, R, R): means over pairs of different networks,
    and over the networks of a group. kappa is NaN on planes where it is defined for no pair."""
    import numpy as np

    from landscape import metrics, results

    out, names = {}, list(dict.fromkeys(groups))
    scores = metrics.scores_per_plane(labels.reshape(*labels.shape[:2], -1), classes)
    for a, one in enumerate(names):
        for two in names[a:]:
            pairs = [(i, j) for i, g in enumerate(groups) for j, h in enumerate(groups)
                     if (g, h) == (one, two) and (one != two or i < j)]
            if pairs:
                out |= {(score, one, two): results.mean_defined([values[i, j] for i, j in pairs])
                        for score, values in scores.items()}
    found = [metrics.fragmentation(maps_, args.connectivity, args.min_area) for maps_ in labels]
    for one in names:
        members = [f for f, g in zip(found, groups) if g == one]
        out |= {(name, one, ""): np.mean([m[name] for m in members], axis=0) for name in members[0]}
    return out


def row(name, over, planes, resolution, stride, interval):
    measure, one, two = name
    return {"measure": measure, "group_a": one, "group_b": two, "over": over, "planes": planes,
            "resolution": resolution, "stride": stride, **dict(zip(("value", "low", "high"), interval)),
            "shift": None, "shift_low": None, "shift_high": None}


def cells(found, i):
    """The i-th (value, low, high) of arrays, None where there is none."""
    return [None if part is None or part[i] != part[i] else float(part[i]) for part in found]


def bounded(name, found, i):
    """The same, its ends cut at what the measure can be."""
    _, least, most = MEASURES[name[0]]
    value, *ends = cells(found, i)
    return [value, *(None if e is None else max(least, e if most is None else min(e, most)) for e in ends)]


def show(found):
    settings = found["settings"]
    print(f"{len(found['models'])} networks, {settings['planes']} planes of {settings['resolution']} points a side, "
          f"{found['level']:.0%} intervals over planes")
    for measure in DRAWN:
        for over, unit in (("planes", "planes"), ("resolution", "points a side")):
            rows = [r for r in found["rows"] if r["measure"] == measure and r["over"] == over]
            if not rows:
                print(f"\n{measure}: no two networks to compare") if over == "planes" else None
                continue
            at = list(dict.fromkeys(r[over] for r in rows))
            print(f"\n{measure} by {unit}\n{'':<28}" + "".join(f"{n:>24}" for n in at))
            for name in dict.fromkeys(label(r) for r in rows):
                print(f"{name:<28}" + "".join(f"{cell(r):>24}" for r in rows if label(r) == name))
    for name, count in found.get("undefined_kappa", {}).items():
        print(f"\nkappa of {name} leaves out {count} planes: every pair of maps there holds one and the same class")


def label(row):
    return " – ".join(filter(None, [row["group_a"], row["group_b"]]))


def cell(row):
    if row["value"] is None:
        return "-"
    text = f"{row['value']:.3f}"
    return text if row["low"] is None else f"{text} [{row['low']:.3f}, {row['high']:.3f}]"


def draw(args, run, found):
    from landscape import plots
    from landscape.results import write_csv

    write_csv(run.path / "convergence.csv", found["rows"], list(found["rows"][0]))
    run.sink.table("convergence", found["rows"])
    curves = {m: {over: {} for over in ("planes", "resolution")} for m in DRAWN}
    for r in found["rows"]:
        if r["measure"] in DRAWN:
            curves[r["measure"]][r["over"]].setdefault((r["group_a"], r["group_b"]), []).append(
                [r[r["over"]], r["value"], r["low"], r["high"]])
    fig = plots.convergence_figure({MEASURES[m][0]: c for m, c in curves.items() if c["planes"]}, found["level"])
    for path in plots.save(fig, run.path / "figures" / "convergence", args.formats.split(",")):
        run.sink.image("convergence", path)
        print(f"figure: {path}")


if __name__ == "__main__":
    cli.run(main)
