"""Draw what star.barriers measured: no network, no torch.

    python -m star.plot runs/star --formats pdf,svg

Under the given folders it reads the results.json of star.barriers: loss and accuracy along the lines, and the barriers
with their intervals.
"""

from pathlib import Path

from landscape import cli, runs
from landscape.errors import FileProblem


def make_parser():
    parser = cli.Parser("python -m star.plot", __doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="runs, or folders of runs")
    cli.add_figures(parser)
    parser.add_argument("--plot_path", default="figures", metavar="DIR", help="where the figures go")
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    from landscape import plots

    files = sorted(f for folder in args.folders for f in Path(folder).rglob("results.json"))
    held = {f.parent.name: found for f in files if (found := runs.read_json(f)).get("kind") == "barriers"}
    if not held:
        raise FileProblem(f"{', '.join(args.folders)}: no results of star.barriers; run it first")
    for name, found in held.items():
        for kind, fig in figures(found).items():
            for path in plots.save(fig, Path(args.plot_path) / f"{kind}_{name}", args.formats.split(",")):
                print(f"figure: {path}")
    return 0


def figures(found):
    """{"barriers": barriers with intervals, "lines": loss and accuracy along t (not of adaptive points)}"""
    out = {"barriers": barrier_figure(found)}
    if not found["adaptive"]:
        out["lines"] = line_figure(found)
    return out


def variants(found):
    return [(how, norm) for how in found["align"] for norm in found["bn"]]


def barrier_figure(found):
    """A panel for each split and measure; a row for each alignment and kind of BatchNorm, grey marks for pairs."""
    from landscape import plots

    measures = {f"{part}_{m}_barrier": f"{part} {m} barrier" for part in ("train", "test")
                for m in ("loss", "accuracy")}
    groups, pairs = [], []
    for how, norm in variants(found):
        group = {"group": f"{how}, {norm}"}
        for row in found["summary"]:
            if (row["align"], row["bn"]) == (how, norm):
                group[f"{row['split']}_{row['measure']}"] = {k: row[k] for k in ("value", "low", "high")}
        groups.append(group)
        for line in found["lines"]:
            if (line["align"], line["bn"]) == (how, norm):
                pairs.append({"group": group["group"], **{
                    f"{part}_{m}_barrier": {"value": line[part][f"{m}_barrier"]} for part in ("train", "test")
                    for m in ("loss", "accuracy")}})
    note = (f"{groups and found['summary'][0]['pairs']} pairs of {len(found['models'])} networks, {found['level']:.0%} "
            "intervals; grey: each pair")
    return plots.interval_figure(groups, pairs, measures, note)


def line_figure(found):
    """Mean loss and accuracy over pairs along t on both splits, with the range of the pairs."""
    import numpy as np

    from landscape import plots

    fig, axes = plots.figure(2, 2, width=8.0, height=6.0, sharex=True)
    ts = found["lines"][0]["ts"]
    for column, part in enumerate(("train", "test")):
        for ax, (what, label) in zip(axes[:, column], (("losses", "loss (nats)"), ("accuracies", "accuracy"))):
            series = {}
            for how, norm in variants(found):
                values = np.array([r[part][what] for r in found["lines"] if (r["align"], r["bn"]) == (how, norm)])
                series[f"{how}, {norm}"] = values.mean(0), values.min(0), values.max(0)
            plots.curves(ax, ts, series, ylabel=f"{part} {label}", xlabel="t" if what == "accuracies" else "")
    return fig


if __name__ == "__main__":
    cli.run(main)
