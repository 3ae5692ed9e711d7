"""Agreement and IoU matrices from the class maps that save_preds.py wrote, with confidence intervals.

    python calculate_iou.py --load_net runs/regions

Prints a named matrix for each score and writes results.json, agreement.csv, per_class.csv (the IoU of each class) and
heat maps into a folder of its own. agreement is the share of points where two networks say the same (the paper's
reproducibility score), mean_iou the mean over classes of intersection over union, kappa the agreement beyond chance,
weighted the agreement of the probabilities where save_preds.py --save_probs kept them. Intervals are bootstrapped over
the planes; beside them stand intervals that are clustered by model, where a group has models enough.
"""

import sys
from pathlib import Path

from landscape import cli, maps, runs
from landscape.errors import ContentError, FileProblem, UsageError

SCORES = {"agreement": "share of points with the same class", "mean_iou": "mean IoU over classes",
          "kappa": "agreement beyond chance (Cohen's kappa)",
          "weighted": "agreement of the probabilities (1 - total variation)"}

PREDS = "*/predictions/*_preds.pth"
PER_CLASS = ("class", "group_a", "group_b", "pairs", "planes", "value", "low", "high")


def make_parser():
    parser = cli.Parser("calculate_iou.py", __doc__)
    g = cli.add_saved_maps(parser)
    g.add_argument("--dbviz_preds", action="store_true",
                   help="read dbViz's own class maps, DIR/<architecture>/predictions/<checkpoint>_preds.pth")
    g = parser.group("points", named=True)
    g.add_argument("--where", default="all", choices=("all", "inside", "outside"),
                   help="grid points that count: all, or those in or beyond the triangle of the three anchors")
    g = parser.group("statistics", named=True)
    g.add_argument("--resamples", type=cli.positive, default=2000, help="of the bootstrap")
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals")
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    if args.dbviz_preds:
        files, settings, held = dbviz_maps(args)
    else:
        files, settings = our_maps(args)
        held = None
    if args.dry_run:
        print(f"{len(files)} networks on {settings['planes']} planes of {settings['resolution']}x"
              f"{settings['resolution']} points: {', '.join(sorted({s.group for s, _ in files}))}")
        return 0
    held = held or maps.read_together(files)
    results = compare(args, [s for s, _ in files], held, settings, points(args, files, held))  # before start clears
    show(results)
    args.force = True  # seconds of work, and the networks under DIR may be others than last time
    with runs.start("regions", args, f"agreement_{Path(args.load_net).resolve().name}") as run:
        draw(args, run, results)
        run.finish(results)
    print(f"results: {run.path / 'results.json'}\ntables: {run.path / 'agreement.csv'}, {run.path / 'per_class.csv'}")
    return 0


def our_maps(args):
    """([(source, file)], settings) of the class maps that save_preds.py wrote; where there are none but dbViz's own,
    the refusal says so."""
    try:
        return maps.common(args, runs.find_models(args.load_net, args.group_by.split(","), args.select))
    except FileProblem as e:
        theirs = sorted(Path(args.load_net).glob(PREDS))
        hint = f"; --dbviz_preds reads the {len(theirs)} files of dbViz there, such as {theirs[0]}" if theirs else ""
        raise FileProblem(f"{e}{hint}") from None


def dbviz_maps(args):
    """([(source, file)], settings, [arrays]) of dbViz's files of class maps: lists of P int64 tensors (R*R,), whose
    group is the architecture that their folder names. They do not say which planes they lie on."""
    import numpy as np

    flags = [k for k in maps.CHOSEN if k not in ("planes", "resolution")
             and getattr(args, k) not in (None, False)]
    if flags or args.where != "all":
        raise UsageError(f"--{flags[0] if flags else 'where'}: dbViz's files do not say where their planes lie; leave "
                         "it out, or compute class maps anew with save_preds.py")
    if not Path(args.load_net).is_dir():
        raise FileProblem(f"{args.load_net} is no folder")
    found = sorted(Path(args.load_net).glob(PREDS))
    if not found:
        raise FileProblem(f"{args.load_net} holds no <architecture>/predictions/<checkpoint>_preds.pth")
    held = [maps.read_dbviz(file) for file in found]
    for file, labels in zip(found, held):
        if labels.shape != held[0].shape:
            (p, s), (q, t) = labels.shape, held[0].shape
            raise ContentError(f"{file} holds {p} planes of {s} points, {found[0]} {q} of {t}: maps of different "
                               "planes or resolution cannot be compared")
    (planes, size), classes = held[0].shape, int(max(labels.max() for labels in held)) + 1
    resolution = round(size**0.5)
    for name, own in (("planes", planes), ("resolution", resolution)):
        if getattr(args, name) not in (None, own):
            raise UsageError(f"--{name} {getattr(args, name)}: dbViz's files have {own}")
    names = np.array([str(c) for c in range(classes)])
    sources = [runs.Source(f, f.parent.parent.name, f.stem.removesuffix("_preds"), {}) for f in found]
    settings = {"planes": planes, "resolution": resolution, "dataset": "dbViz's", "split": "class maps"}
    print("dbViz's files do not say which planes they lie on: that --set_data_seed was the same is taken for granted")
    return list(zip(sources, found)), settings, [{"labels": labels, "classes": names} for labels in held]


def points(args, files, held):
    """The grid points that count (P, S), or None for all of them."""
    if args.where == "all":
        return None
    for (_, file), arrays in zip(files, held):
        if not {"anchors", "extents"} <= arrays.keys():
            raise ContentError(f"{file} does not say where its anchors lie (an older version wrote it): run "
                               f"save_preds.py with --force, or leave --where {args.where} out")
    side = maps.read_settings(held[0], files[0][1])["resolution"]
    found = maps.inside(held[0]["anchors"], held[0]["extents"], side)
    found = found if args.where == "inside" else ~found
    if not found.any(axis=1).all():
        empty = int(found.any(axis=1).argmin())
        raise UsageError(f"--where {args.where}: plane {empty} has no grid point there; draw the planes with a finer "
                         "--resolution, or a wider --range_l and --range_r")
    return found


def compare(args, sources, held, settings, where):
    """Everything that the comparison finds, as plain values: matrices of models and of groups for each score.
    held: the arrays of each source. where (P, S): points that count, or None."""
    import numpy as np

    from landscape import metrics, results

    stacked, classes = np.stack([h["labels"] for h in held]), [str(c) for c in held[0]["classes"]]
    groups = [s.group for s in sources]
    names = list(dict.fromkeys(groups))
    members = {g: [i for i, h in enumerate(groups) if h == g] for g in names}
    per_plane = metrics.scores_per_plane(stacked, len(classes), where)
    apart = per_plane["kappa"][~np.eye(len(held), dtype=bool)]  # (pairs, P)
    if all("probs" in h for h in held):
        per_plane["weighted"] = metrics.weighted_per_plane([h["probs"] for h in held], where)
    out = {"settings": settings, "where": args.where, "resamples": args.resamples, "level": args.level,
           "undefined": {"kappa": int(np.isnan(apart).any(axis=0).sum())},
           "groups": names, "models": [{"name": s.name, "group": s.group, "path": str(s.path)} for s in sources],
           "scores": {}}
    chosen = {"n": args.resamples, "level": args.level}
    for score, values in per_plane.items():
        mean, low, high = within(score, *results.bootstrap_defined(values, **chosen))
        rows = [between(score, values, members, *cell, chosen) for cell in group_pairs(members)]
        out["scores"][score] = {"models": {"value": listed(mean), "low": listed(low), "high": listed(high)},
                                "groups": rows}
    out["per_class"] = per_class(stacked, classes, where, members, chosen)
    return out


def per_class(stacked, classes, where, members, chosen):
    """IoU of each class for each pair of groups, as rows: mean over pairs of different models and over the planes on
    which either model has the class (as many as `planes` says); value is None for a class that is nowhere."""

    from landscape import metrics, results

    cells = [(one, two, pairs) for one, two, pairs in group_pairs(members) if pairs]
    present, series = [], []
    for number, iou in metrics.class_iou_per_plane(stacked, len(classes), where):
        present.append(number)
        for *_, pairs in cells:
            series.append(results.mean_defined([iou[i, j] for i, j in pairs]))
    found = zip(*results.bootstrap_present(series, **chosen)) if series else ()
    found = dict(zip([(number, *cell[:2]) for number in present for cell in cells], found))
    rows = []
    for number, name in enumerate(classes):
        for one, two, pairs in cells:
            value, low, high, planes = found.get((number, one, two), (None, None, None, 0))
            _, low, high = within("mean_iou", value, low, high)
            rows.append({"class": name, "group_a": one, "group_b": two, "pairs": len(pairs), "planes": planes,
                         "value": value, "low": plain(low), "high": plain(high)})
    return rows


def group_pairs(members):
    """(group, group, pairs of different models) of each pair of groups, from the models {group: numbers} in each."""
    names = list(members)
    return [(one, two, [(i, j) for i in members[one] for j in members[two] if one != two or i < j])
            for a, one in enumerate(names) for two in names[a:]]


def within(score, value, low, high):
    """An interval cut at what the score can be: of few planes or models it may reach beyond."""
    import numpy as np

    least = -1.0 if score == "kappa" else 0.0
    return value, *(None if end is None else np.clip(end, least, 1.0) for end in (low, high))


def between(score, values, members, one, two, pairs, chosen):
    """One cell of the group matrix: mean over pairs of different models, its interval over planes (low, high) and
    the interval clustered by model (low_models, high_models). None where there is nothing to measure. Over the planes
    and pairs for which the score is defined (NaN elsewhere)."""
    import numpy as np

    from landscape import results

    ours, theirs = members[one], members[two]
    row = {"group_a": one, "group_b": two, "models_a": len(ours), "models_b": len(theirs),
           "planes": values.shape[-1], "pairs": 0, "value": None, "low": None, "high": None, "low_models": None,
           "high_models": None}
    block = values[np.ix_(ours, theirs)]
    if not pairs:
        return row
    per_plane = results.mean_defined([values[i, j] for i, j in pairs])
    mean, low, high = within(score, *results.bootstrap_defined(per_plane, **chosen))
    by_model, low_models, high_models = results.bootstrap_pairs if one == two else results.bootstrap_between, None, None
    each = results.mean_defined(np.moveaxis(block, -1, 0))
    if not np.isnan([values[i, j] for i, j in pairs]).all(axis=-1).any():  # each pair is defined somewhere
        _, low_models, high_models = within(score, *by_model(each, **chosen))
    return row | {"planes": int((~np.isnan(per_plane)).sum()), "pairs": len(pairs), "value": plain(mean),
                  "low": plain(low), "high": plain(high), "low_models": plain(low_models),
                  "high_models": plain(high_models)}


def listed(values):
    """An array as nested lists, None for NaN."""
    import numpy as np

    return None if values is None else np.where(np.isnan(values), None, values).tolist()


def plain(value):
    return None if value is None or value != value else float(value)


def show(results):
    """The group matrices as text."""
    from landscape.results import square

    names, settings = results["groups"], results["settings"]
    width = max(16, *(len(n) + 2 for n in names))
    print(f"{len(results['models'])} networks, {settings['planes']} planes of {settings['resolution']}x"
          f"{settings['resolution']} points, {settings['dataset']} {settings['split']}, "
          f"{results['level']:.0%} intervals over planes"
          + (f"; points {results['where']} the triangle of the anchors" if results["where"] != "all" else ""))
    if count := results["undefined"]["kappa"]:
        print(f"kappa is not defined where both maps hold one and the same class, as those of some pair do on {count} "
              f"of {settings['planes']} planes: its means leave these out")
    for score in results["scores"]:
        meaning = SCORES[score]
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
    """agreement.csv, per_class.csv and the heat maps: groups with intervals, and all models."""
    from landscape import plots
    from landscape.results import write_csv

    rows = [{"score": score, **row} for score, part in results["scores"].items() for row in part["groups"]]
    write_csv(run.path / "agreement.csv", rows)
    write_csv(run.path / "per_class.csv", results["per_class"], PER_CLASS)
    run.sink.table("agreement", rows)
    beside = "" if results["where"] == "all" else f", {results['where']} the anchors' triangle"
    meanings = {score: SCORES[score] + beside for score in results["scores"]}
    for name, fig in plots.agreement_figures(results, meanings).items():
        for path in plots.save(fig, run.path / "figures" / name, args.formats.split(",")):
            run.sink.image(name, path)
            if name == "agreement":
                print(f"figure: {path}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    cli.run(main)
