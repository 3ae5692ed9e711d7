"""Agreement and IoU matrices from the class maps that save_preds.py wrote, with confidence intervals.

    python calculate_iou.py --load_net runs/regions

Prints a named matrix for each score and writes results.json, agreement.csv and heat maps into a folder of its own:
agreement is the share of points where two networks say the same (the paper's reproducibility score), mean_iou the mean
over classes of intersection over union, kappa the agreement beyond chance. Intervals are bootstrapped over the planes;
beside them stand intervals that are clustered by model, where a group has models enough.
"""

import sys
from pathlib import Path

from landscape import cli, maps, runs
from landscape.errors import ContentError

SCORES = {"agreement": "share of points with the same class", "mean_iou": "mean IoU over classes",
          "kappa": "agreement beyond chance (Cohen's kappa)"}


def make_parser():
    parser = cli.Parser("calculate_iou.py", __doc__)
    g = parser.group("networks", named=True)
    g.add_argument("--load_net", default="runs/regions", metavar="DIR", help="the folder given to save_preds.py")
    g.add_argument("--group_by", default="net,width", metavar="KEY,KEY,…",
                   help="the settings that make a group; a foreign checkpoint's group is its folder")
    cli.add_select(g)
    cli.add_maps(parser, chosen=False)
    parser.add_argument("--which", default=None, choices=("model", "best"),
                        help="class maps of the last weights, or of the best on a run's validation set")
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
        print(f"{len(files)} networks on {settings['planes']} planes of {settings['resolution']}x"
              f"{settings['resolution']} points: {', '.join(sorted({s.group for s, _ in files}))}")
        return 0
    results = compare(args, files, settings)  # before start, which clears away the last ones
    show(results)
    args.force = True  # seconds of work, and the networks under DIR may be others than last time
    with runs.start("regions", args, f"agreement_{Path(args.load_net).resolve().name}") as run:
        draw(args, run, results)
        run.finish(results)
    print(f"results: {run.path / 'results.json'}\ntable: {run.path / 'agreement.csv'}")
    return 0


def compare(args, files, settings):
    """Everything that the comparison finds, as plain values: matrices of models and of groups for each score."""
    import numpy as np

    from landscape import metrics, results

    held = [runs.read_arrays(f) for _, f in files]
    first = held[0]
    for (source, file), other in zip(files, held):
        if not np.array_equal(other["triplets"], first["triplets"]):
            raise ContentError(f"{file} lies on other planes than the rest: run save_preds.py --force")
        if list(other["classes"]) != list(first["classes"]) or other["labels"].shape != first["labels"].shape:
            raise ContentError(f"{file} has other classes or another resolution than the rest ({source.name})")
    stacked = np.stack([h["labels"] for h in held])
    groups = [s.group for s, _ in files]
    names = list(dict.fromkeys(groups))
    members = {g: [i for i, h in enumerate(groups) if h == g] for g in names}
    per_plane = metrics.scores_per_plane(stacked, len(first["classes"]))
    out = {"settings": settings, "resamples": args.resamples, "level": args.level, "groups": names,
           "models": [{"name": s.name, "group": s.group, "path": str(s.path)} for s, _ in files], "scores": {}}
    chosen = {"n": args.resamples, "level": args.level}
    for score, values in per_plane.items():
        mean, low, high = within(score, *results.bootstrap_planes(values, **chosen))
        rows = []
        for a, one in enumerate(names):
            for two in names[a:]:
                rows.append(between(score, values, members[one], members[two], one, two, chosen))
        out["scores"][score] = {"models": {"value": mean.tolist(), "low": listed(low), "high": listed(high)},
                                "groups": rows}
    return out


def within(score, value, low, high):
    """An interval cut at what the score can be: of few planes or models it may reach beyond."""
    import numpy as np

    least = -1.0 if score == "kappa" else 0.0
    return value, *(None if end is None else np.clip(end, least, 1.0) for end in (low, high))


def between(score, values, ours, theirs, one, two, chosen):
    """One cell of the group matrix: mean over pairs of different models, its interval over planes (low, high) and
    the interval clustered by model (low_models, high_models). None where there is nothing to measure."""
    import numpy as np

    from landscape import results

    row = {"group_a": one, "group_b": two, "models_a": len(ours), "models_b": len(theirs),
           "planes": values.shape[-1], "pairs": 0, "value": None, "low": None, "high": None, "low_models": None,
           "high_models": None}
    block = values[np.ix_(ours, theirs)]
    pairs = [(i, j) for i in range(len(ours)) for j in range(len(theirs)) if one != two or i < j]
    if not pairs:
        return row
    per_plane = np.mean([block[i, j] for i, j in pairs], axis=0)
    mean, low, high = within(score, *results.bootstrap_planes(per_plane, **chosen))
    by_model = results.bootstrap_pairs if one == two else results.bootstrap_between
    _, low_models, high_models = within(score, *by_model(block.mean(-1), **chosen))
    return row | {"pairs": len(pairs), "value": float(mean), "low": listed(low), "high": listed(high),
                  "low_models": plain(low_models), "high_models": plain(high_models)}


def listed(values):
    return None if values is None else values.tolist()


def plain(value):
    return None if value is None else float(value)


def show(results):
    """The group matrices as text."""
    from landscape.results import square

    names, settings = results["groups"], results["settings"]
    width = max(16, *(len(n) + 2 for n in names))
    print(f"{len(results['models'])} networks, {settings['planes']} planes of {settings['resolution']}x"
          f"{settings['resolution']} points, {settings['dataset']} {settings['split']}, "
          f"{results['level']:.0%} intervals over planes")
    for score, meaning in SCORES.items():
        value, low, high = square(results["scores"][score]["groups"], names)
        print(f"\n{score}: {meaning}\n{'':<{width}}" + "".join(f"{n:>{width + 6}}" for n in names))
        for i, name in enumerate(names):
            cells = [cell(value[i][j], low[i][j], high[i][j]) for j in range(len(names))]
            print(f"{name:<{width}}" + "".join(f"{c:>{width + 6}}" for c in cells))


def cell(value, low, high):
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def draw(args, run, results):
    """agreement.csv and the heat maps: groups with intervals, and all models."""
    from landscape import plots
    from landscape.results import write_csv

    rows = [{"score": score, **row} for score, part in results["scores"].items() for row in part["groups"]]
    write_csv(run.path / "agreement.csv", rows)
    run.sink.table("agreement", [{k: "" if v is None else v for k, v in row.items()} for row in rows])
    for name, fig in plots.agreement_figures(results, SCORES).items():
        for path in plots.save(fig, run.path / "figures" / name, args.formats.split(",")):
            run.sink.image(name, path)
            if name == "agreement":
                print(f"figure: {path}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    cli.run(main)
