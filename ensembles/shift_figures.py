"""Figures of ensembles.shift: quality against severity, each corruption, and other sets told from the own. No torch."""

from landscape import plots, runs

PANELS = {"accuracy": "accuracy", "brier": "Brier score", "ece": "expected calibration error",
          "js": "Jensen–Shannon\ndiversity (nats)"}
SIGNS = {"confidence": "by confidence", "entropy": "by entropy", "js": "by diversity (JS)"}


def figures(folder, results):
    """{name: figure} of a results.json of ensembles.shift in its run folder."""
    out = {}
    if results["corruptions"]:
        out["severity"] = severity(results)
        out["corruptions"] = corruptions(results)
        if len(results["models"]) > 1:
            out["gain"] = gain(results)
    if results["ood"]:
        arrays = runs.read_arrays(folder / "arrays" / "ood.npz")
        out["ood_distributions"] = distributions(results, arrays)
        out["ood_auroc"] = auroc(results)
    return out


def sizes_words(size):
    return "one member" if size == 1 else f"ensemble of {size}"


def line(results, kind, corruption, size, measure):
    """([severity], [value], [low], [high]) with the clean images first; Nones as they stand."""
    rows = sorted((r for r in results[kind] if r["size"] == size and r["corruption"] in (corruption, "clean")),
                  key=lambda r: r["severity"])
    cells = [r["measures"][measure] for r in rows]
    return [r["severity"] for r in rows], *([c[k] for c in cells] for k in ("value", "low", "high"))


def banded(ax, x, value, low, high, **options):
    """A line with a band where there is an interval; nothing where there is no value."""
    there = [i for i, v in enumerate(value) if v is not None]
    if not there:
        return
    (drawn,) = ax.plot([x[i] for i in there], [value[i] for i in there], marker=".", **options)
    held = [i for i in there if low[i] is not None]
    if held:
        ax.fill_between([x[i] for i in held], [low[i] for i in held], [high[i] for i in held],
                        color=drawn.get_color(), alpha=0.2, linewidth=0)


@plots.styled
def over_severities(results, kind, panels, sizes, lead):
    """One panel a measure, a line a size, averaged over the corruptions."""
    fig, axes = plots.figure(1, len(panels), width=2.5 * len(panels) + 0.4, height=2.9, squeeze=False)
    for ax, (measure, words) in zip(axes[0], panels.items()):
        for colour, size in zip(plots.palette(len(results["sizes"])), results["sizes"]):
            if size in sizes:
                banded(ax, *line(results, kind, "mean", size, measure), color=colour)
        ax.set(xlabel="severity", ylabel=words, xticks=[0, *results["severities"]])
        ax.grid(True)
    lines = [axes[0, 0].plot([], [], color=c)[0] for c in plots.palette(len(results["sizes"]))]
    fig.legend([h for h, s in zip(lines, results["sizes"]) if s in sizes], [sizes_words(s) for s in sizes],
               loc="outside upper center", ncols=max(1, len(sizes)))
    several = f"{len(results['corruptions'])} corruptions" if len(results["corruptions"]) > 1 else \
        results["corruptions"][0].replace("_", " ")
    fig.supxlabel(f"{lead} over {several}; bands: {results['level']:.0%} intervals over members", fontsize=8)
    return fig


def severity(results):
    return over_severities(results, "curves", PANELS, results["sizes"], "mean")


def gain(results):
    panels = {"accuracy": "gain in accuracy", "brier": "gain in Brier score", "ece": "gain in calibration error"}
    return over_severities(results, "gains", panels, [s for s in results["sizes"] if s > 1],
                           "gain over the mean of the own members, mean")


@plots.styled
def corruptions(results):
    """Accuracy under each corruption: single members and the largest ensemble."""
    names, sizes = results["corruptions"], sorted({1, max(results["sizes"])})
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    fig, axes = plots.figure(rows, columns, width=1.75 * columns + 0.8, height=1.6 * rows + 0.8, squeeze=False,
                             sharex=True, sharey=True)
    colours = plots.palette(2)
    for ax, name in zip(axes.flat, names):
        for colour, size in zip(colours, sizes):
            banded(ax, *line(results, "curves", name, size, "accuracy"), color=colour)
        ax.set_title(name.replace("_", " "), fontsize=8)
        ax.set_xticks([0, *results["severities"]])
        ax.grid(True)
    for ax in list(axes.flat)[len(names):]:
        ax.set_axis_off()
    for column in axes.T:
        [ax for ax in column if ax.axison][-1].tick_params(labelbottom=True)
    lines = [axes.flat[0].plot([], [], color=c)[0] for c in colours[: len(sizes)]]
    fig.legend(lines, [sizes_words(s) for s in sizes], loc="outside upper center", ncols=2)
    fig.supxlabel("severity", fontsize=9)
    fig.supylabel("accuracy", fontsize=9)
    return fig


@plots.styled
def distributions(results, arrays):
    """Densities of the entropy (members together, full ensemble) and of the diversity: own images and foreign ones."""
    import numpy as np

    sets = list(dict.fromkeys(r["set"] for r in results["ood"]))
    panels = [("entropy_members", "entropy of single members (nats)"), ("entropy_ensemble", "entropy (nats)"),
              ("js_ensemble", "Jensen–Shannon diversity (nats)")]
    if len(results["models"]) == 1:
        panels = panels[:1]
    else:
        everyone = f"of all {len(results['models'])} members"
        panels = [panels[0], *((key, f"{words.split(' (')[0]}\n{everyone} (nats)") for key, words in panels[1:])]
    fig, axes = plots.figure(1, len(panels), width=2.7 * len(panels) + 0.4, height=2.9, squeeze=False)
    names = {"own": f"{results['dataset']} (own test set)", **{f"foreign_{i}": name for i, name in enumerate(sets)}}
    for ax, (key, words) in zip(axes[0], panels):
        most = max(float(arrays[f"{name}_{key}"].max()) for name in names)
        edges = np.linspace(0, most or 1, 41)
        for number, (colour, name) in enumerate(zip(plots.palette(len(names)), names)):
            values = arrays[f"{name}_{key}"].ravel()
            heights, _ = np.histogram(values, edges)
            heights = heights / len(values)
            ax.stairs(heights, edges, color=colour, linestyle=("-", "--", "-.", ":")[number % 4], linewidth=1.4,
                      fill=False, label=names[name])
            ax.stairs(heights, edges, color=colour, fill=True, alpha=0.12)
        ax.set(xlabel=words, ylabel="share of images", yscale="log")
        ax.grid(True)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=min(3, len(labels)))
    return fig


@plots.styled
def auroc(results):
    """Bars of the AUROC of each sign, a group a size, a panel a set; whiskers are intervals over members."""
    sets = list(dict.fromkeys(r["set"] for r in results["ood"]))
    width = max(3.6, 3.2 * len(sets) + 0.4)
    fig, axes = plots.figure(1, len(sets), width=width, height=3.0, squeeze=False, sharey=True)
    colours, wide = plots.palette(len(SIGNS)), 0.8 / len(SIGNS)
    for ax, name in zip(axes[0], sets):
        rows = [r for r in results["ood"] if r["set"] == name]
        for k, (colour, sign) in enumerate(zip(colours, SIGNS)):
            for at, row in enumerate(rows):
                held = row["measures"][f"auroc_{sign}"]
                if held["value"] is None:
                    continue
                x = at + (k - (len(SIGNS) - 1) / 2) * wide
                ax.bar(x, held["value"], wide * 0.9, color=colour)
                if held["low"] is not None:
                    ax.plot([x, x], [held["low"], held["high"]], color="black", linewidth=1)
        ax.axhline(0.5, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
        ax.set_xticks(range(len(rows)), [str(r["size"]) for r in rows])
        ax.set(xlabel="members", title=name, ylim=(0, 1))
    axes[0, 0].set_ylabel(f"AUROC, {results['dataset']} against this set")
    bars = [axes[0, 0].bar(0, 0, color=c) for c in colours]
    fig.legend(bars, SIGNS.values(), loc="outside upper center", ncols=len(SIGNS))
    return fig
