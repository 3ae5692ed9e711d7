"""Draw what star.barriers and star.compare measured: no network, no torch.

    python -m star.plot runs/star --formats pdf,svg

Under the given folders it reads their results.json: loss and accuracy along lines, barriers with their intervals; of
several stars also barriers against the width, star against regular over the widths, and against the number of anchors.
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
    from landscape.results import write_csv

    files = sorted(f for folder in args.folders for f in Path(folder).rglob("results.json"))
    held = {f.parent.name: found for f in files if (found := runs.read_json(f)).get("kind") in ("barriers", "star")}
    if not held:
        raise FileProblem(f"{', '.join(args.folders)}: no results of star.barriers or star.compare; run one first")
    for name, found in held.items():
        for kind, fig in figures(found).items():
            for path in plots.save(fig, Path(args.plot_path) / f"{kind}_{name}", args.formats.split(",")):
                print(f"figure: {path}")
    stars = [found for folder in args.folders for found in comparisons(folder)]
    if stars:
        write_csv(Path(args.plot_path) / "stars.csv", rows := table(stars), list(rows[0]))
    for kind, fig in over_stars(stars).items():
        for path in plots.save(fig, Path(args.plot_path) / kind, args.formats.split(",")):
            print(f"figure: {path}")
    return 0


def figures(found):
    """{"barriers": barriers with intervals, "lines": loss and accuracy along t (not of adaptive points)}"""
    if found["kind"] == "star":
        return {"barriers": star_figure(found)}
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
            "intervals")
    return plots.interval_figure(groups, pairs, measures, note, each="pair")


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


# ---- stars ---------------------------------------------------------------------------------------------------------

KINDS = {"star_held_out": "star to held-out", "star_anchor": "star to anchor", "anchor_held_out": "regular to regular",
         "mean_held_out": "mean of anchors to held-out", "mean_anchor": "mean of anchors to anchor",
         "best_held_out": "best anchor to held-out", "other_held_out": "other to held-out",
         "other_anchor": "other to anchor"}  # fmt: skip
# star = a regular + b as published over the widths of the MLP on MNIST, and what it was fitted to (starlight's files)
PUBLISHED = {"widths": (4, 8, 16, 32, 64, 128, 256), "slope": 0.302, "offset": 0.007,
             "regular": (0.368, 0.261, 0.312, 0.193, 0.049, 0.015, 0.006),
             "star": (0.089, 0.117, 0.111, 0.063, 0.021, 0.008, 0.003)}  # fmt: skip


def cell(found, kind, how, split="train", measure="loss_barrier"):
    """The row of a summary with "value", "low" and "high", None where that was not measured."""
    wanted = {"kind": kind, "align": how, "split": split, "measure": measure}
    return next((r for r in found["summary"] if all(r[k] == v for k, v in wanted.items())), None)


def star_figure(found):
    """A panel for each split and measure; a row for each kind of line and alignment, grey marks for pairs."""
    from landscape import plots

    measures = {f"{part}_{m}_barrier": f"{part} {m} barrier" for part in ("train", "test")
                for m in ("loss", "accuracy")}
    groups, pairs = [], []
    for how in found["align"]:
        for kind, words in KINDS.items():
            cells = {name: cell(found, kind, how, *name.split("_", 1)) for name in measures}
            if cells["train_loss_barrier"] is None:
                continue
            name = words + f", {how}" * (len(found["align"]) > 1)
            groups.append({"group": name, **cells})
            pairs += [{"group": name, **{f"{part}_{m}_barrier": {"value": r[part][f"{m}_barrier"]}
                                         for part in ("train", "test") for m in ("loss", "accuracy")}}
                      for r in found["lines"] if (r["kind"], r["align"]) == (kind, how)]
    star = found["star"]
    note = (f"star of {star['anchors']} {star['net']} on {star['dataset']}, {star['held_out']} held-out networks; "
            f"{found['level']:.0%} intervals")
    return plots.interval_figure(groups, pairs, measures, note, each="pair")


def over_stars(results):
    """{"width": barriers against the width, and star against regular; "anchors": barriers against the number of
    anchors}, of the results of star.compare that allow it; in the last alignment that all of them have."""
    out = {}
    for name, draw, sets in (("width", width_figure, by_width(results)), ("anchors", anchor_figure,
                                                                          by_anchors(results))):
        shared = [how for how in sets[0][1]["align"] if all(how in r["align"] for _, r in sets)] if sets else []
        if len(sets) > 1 and shared:
            out[name] = draw(sets, shared[-1])
    return out


def comparisons(folder):
    """The results of star.compare under a folder, of each star the last by name."""
    held = [runs.read_json(f) for f in sorted(Path(folder).rglob("results.json")) if (f.parent / "done").exists()]
    return list({found["star"]["path"]: found for found in held if found.get("kind") == "star"}.values())


def by_width(results):
    """[(width, results)] in ascending order, of the network and data with stars of most widths; of each width the star
    of most anchors."""
    held = {}
    for found in sorted(results, key=lambda r: r["star"]["anchors"]):
        star = found["star"]
        held.setdefault((star["net"], star["dataset"]), {})[star["width"]] = found
    return sorted(max(held.values(), key=len, default={}).items())


def by_anchors(results):
    """[(N, results)] in ascending order, of the network and data with stars of most numbers of anchors."""
    held = {}
    for found in results:
        star = found["star"]
        held.setdefault((star["net"], star["width"], star["dataset"]), {})[star["anchors"]] = found
    return sorted(max(held.values(), key=len, default={}).items())


def table(results):
    """A row for each star: what it is, and loss barriers on both splits with their intervals."""
    rows = []
    for found in results:
        for how in found["align"]:
            row = {k: found["star"][k] for k in ("net", "width", "dataset", "anchors", "held_out")} | {"align": how}
            for kind in ("star_held_out", "star_anchor", "anchor_held_out", "mean_held_out", "best_held_out"):
                for part in ("train", "test"):
                    value = cell(found, kind, how, part)
                    row |= {f"{kind}_{part}{end}": value and value[k] for end, k in
                            (("", "value"), ("_low", "low"), ("_high", "high"))}
            for role in ("star", "anchor", "mean"):
                some = [m for m in found["models"] if m["role"] == role]
                row |= {f"{role}_{k}": sum(m[k] for m in some) / len(some) for k in ("train_loss", "test_accuracy")}
            rows.append(row)
    return sorted(rows, key=lambda r: (r["net"], r["dataset"], r["width"], r["anchors"], r["align"]))


def bars(ax, x, cells, label, **style):
    """Values with their intervals."""
    ax.errorbar(x, [c["value"] for c in cells], yerr=errors(cells), capsize=2, markersize=4, label=label, **style)


def width_figure(sets, how):
    """Left: barriers on the training set against the width. Right: star against regular, our line and the published."""
    import numpy as np

    from landscape import plots

    fig, (left, right) = plots.figure(1, 2, width=9.0, height=3.8)
    widths = [width for width, _ in sets]
    colours = plots.palette(3)
    for k, (kind, colour) in enumerate(zip(("anchor_held_out", "star_held_out", "star_anchor"), colours)):
        places = [width * 1.05 ** (k - 1) for width in widths]
        bars(left, places, [cell(found, kind, how) for _, found in sets], KINDS[kind], fmt="o-", color=colour)
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    left.set_xticks(widths, [str(w) for w in widths])
    left.set_xlabel("width")
    left.set_ylabel("train loss barrier (nats)")
    left.legend(fontsize=8)
    regular, star = ([cell(found, kind, how) for _, found in sets] for kind in ("anchor_held_out", "star_held_out"))
    x, y = (np.array([c["value"] for c in cells]) for cells in (regular, star))
    slope, offset = np.polyfit(x, y, 1)
    right.errorbar(x, y, xerr=errors(regular), yerr=errors(star), fmt="o", markersize=4, capsize=2, color=colours[1],
                   label=f"ours: {slope:.3f} x {offset:+.3f}")
    for (width, _), a, b in zip(sets, x, y):
        right.annotate(str(width), (a, b), xytext=(3, 3), textcoords="offset points", fontsize=7)
    grid = np.linspace(0, max(x.max(), max(PUBLISHED["regular"])), 2)
    right.plot(grid, slope * grid + offset, color=colours[1])
    right.plot(PUBLISHED["regular"], PUBLISHED["star"], "s", color="0.5", markersize=4, markerfacecolor="none",
               label=f"published: {PUBLISHED['slope']} x +{PUBLISHED['offset']}")
    right.plot(grid, PUBLISHED["slope"] * grid + PUBLISHED["offset"], "--", color="0.5")
    right.set_xlabel("regular to regular: train loss barrier (nats)")
    right.set_ylabel("star to held-out: train loss barrier (nats)")
    right.legend(fontsize=8)
    found = sets[0][1]
    fig.supxlabel(f"{found['star']['net']} on {found['star']['dataset']}, {found['star']['anchors']} anchors, "
                  f"{found['star']['held_out']} held-out networks, aligned by {how}; {found['level']:.0%} intervals; "
                  "numbers: widths", fontsize=8)
    return fig


def errors(cells):
    return [[abs(c["value"] - (c["value"] if c[k] is None else c[k])) for c in cells] for k in ("low", "high")]


def anchor_figure(sets, how):
    """Barriers on the training set against the number of anchors; grey: regular to regular, of the most anchors."""
    from landscape import plots

    fig, ax = plots.figure(width=5.5, height=4.0)
    counts = [n for n, _ in sets]
    for kind, colour in zip(("star_held_out", "star_anchor", "mean_held_out"), plots.palette(3)):
        bars(ax, counts, [cell(found, kind, how) for _, found in sets], KINDS[kind], fmt="o-", color=colour)
    regular = cell(sets[-1][1], "anchor_held_out", how)
    ax.axhline(regular["value"], color="0.5", linestyle="--", label=KINDS["anchor_held_out"])
    if regular["low"] is not None:
        ax.axhspan(regular["low"], regular["high"], color="0.5", alpha=0.15)
    ax.set_xscale("log")
    ax.set_xticks(counts, [str(n) for n in counts])
    ax.minorticks_off()
    ax.set_ylim(0)
    ax.set_xlabel("anchors N")
    ax.set_ylabel("train loss barrier (nats)")
    ax.legend(fontsize=8)
    found = sets[0][1]
    fig.supxlabel(f"{found['star']['net']} on {found['star']['dataset']}, {found['star']['held_out']} held-out "
                  f"networks, aligned by {how}; {found['level']:.0%} intervals", fontsize=8)
    return fig


if __name__ == "__main__":
    cli.run(main)
