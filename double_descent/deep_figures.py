"""Figures of double_descent.measure: every measure along the width (or the epoch, …) on shared axes. No torch."""

from landscape import plots

# One panel each, where it was measured: (words for the axis, measures whose curves it holds).
PANELS = (
    ("test error", ("test_error",)),
    ("training error (given labels)", ("train_error",)),
    ("test loss (nats)", ("test_loss",)),
    ("fragments a plane", ("fragments_",)),
    ("agreement of decision regions", ("reproducibility_",)),
    ("margin (normalised units)", ("margin_",)),
    ("disagreement on the test set", ("disagreement",)),
    ("test error of the ensemble", ("ensemble_error",)),
    ("confidence on the test set", ("test_confidence",)),
)
POINTS = (
    ("error, correct labels", ("train_error_correct",)),
    ("error, wrong labels\n(as given)", ("train_error_mislabelled",)),
    ("error, wrong labels\n(against the truth)", ("train_error_mislabelled_true",)),
)
STYLES = ("-", "--", ":", "-.")


def figures(folder, results):
    """{name: figure} of a results.json of double_descent.measure; folder is not read."""
    out = {"double_descent": panels(results, PANELS)}
    if any("train_error_mislabelled" in c["measures"] for c in results["cells"]):
        out["training_points"] = panels(results, POINTS)
    return out


def panels(results, wanted):
    """A grid of panels along results["along"]; colours are groups, line styles the measures of one panel. A dashed
    vertical line marks each group's interpolation threshold."""
    found = [(words, held) for words, starts in wanted if (held := matching(results, starts))]
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    fig, axes = plots.figure(rows, columns, width=3.3 * columns + 0.3, height=2.5 * rows + 0.5, squeeze=False,
                             sharex=True)
    groups = list(results["threshold"])
    colours = plots.palette(len(groups))
    for ax, (words, names) in zip(axes.flat, found):
        for colour, group in zip(colours, groups):
            for style, name in zip(STYLES, names):
                curve(ax, results, group, name, colour, style)
            if (threshold := results["threshold"][group]) is not None:
                ax.axvline(threshold, color=colour, linestyle=(0, (1, 2)), linewidth=1)
        if len(names) > 1:
            for style, name in zip(STYLES, names):
                ax.plot([], [], style, color="0.3", label=said(name, names))
            ax.legend(fontsize=7)
        ax.set_ylabel(words)
        ax.grid(True)
    for ax in list(axes.flat)[len(found):]:
        ax.set_axis_off()
    for column in axes.T:
        last = [ax for ax in column if ax.axison][-1]
        last.set_xlabel(results["along"])
        last.tick_params(labelbottom=True)
    if results["along"] == "epoch":
        axes.flat[0].set_xscale("log")
    lines = [axes.flat[0].plot([], [], color=c)[0] for c in colours]
    marks = [axes.flat[0].plot([], [], color="0.3", linestyle=(0, (1, 2)))[0]]
    fig.legend([*lines, *marks], [*map(group_words, groups), "training set fitted"], loc="outside upper center",
               ncols=len(groups) + 1, title_fontsize=8,
               title=f"means over networks; bands: their {results['level']:.0%} intervals (pairs clustered by network)")
    return fig


def matching(results, starts):
    """The measures of which a panel holds curves: those named, or, after a name that ends in _, all that begin so."""
    return [name for name in results["measures"] for start in starts
            if name == start or start.endswith("_") and name.startswith(start)]


def curve(ax, results, group, name, colour, style):
    cells = [(c["x"], c["measures"][name]) for c in results["cells"] if c["group"] == group and name in c["measures"]]
    if not cells:
        return
    x, held = [x for x, _ in cells], [cell for _, cell in cells]
    ax.plot(x, [h["value"] for h in held], style, marker=".", color=colour)
    banded = [(x, h["low"], h["high"]) for x, h in cells if h["low"] is not None]
    if banded:
        ax.fill_between(*zip(*banded), color=colour, alpha=0.2, linewidth=0)


def said(name, names):
    """A measure's name within its panel: without the words that all of them share."""
    words = [n.split("_") for n in names]
    shared = set.intersection(*map(set, words))
    return " ".join(w for w in name.split("_") if w not in shared) or name


def group_words(group):
    """'noise_rate=0.2' as '20 % label noise'; any other group as it stands."""
    if group.startswith("noise_rate=") and " " not in group:
        rate = float(group.partition("=")[2])
        return f"{rate:.0%} label noise" if rate else "no label noise"
    return group
