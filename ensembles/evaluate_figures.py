"""Figures of ensembles.evaluate: measures against ensemble size, the diversity-accuracy plane, confusions. No torch."""

import numpy as np

from ensembles.evaluate import MEASURES, lower_limit, upper_limit
from landscape import plots, runs

# Which curves share a figure: sets made of one training or one solution beside independent networks; and independent
# networks that are averaged over their own subspace first.
FIGURES = {
    "size": ("independent", "snapshots", "late_snapshots", "cyclic_snapshots"),
    "around_one_solution": ("independent", "random", "diagonal", "pca", "pca_scaled", "pca_random", "dropout"),
    "ensemble_and_subspace": ("independent", "independent_weight_average", "independent_random",
                              "independent_diagonal", "independent_pca", "independent_pca_scaled",
                              "independent_pca_random", "independent_dropout"),
}  # fmt: skip
PLANE = {"independent": ("independent networks", "*"), "trajectory": ("earlier in training", "."),
         "late_snapshots": ("late snapshots", "D"), "random": ("random directions", "o"),
         "diagonal": ("diagonal Gaussian", "s"), "pca": ("PCA Gaussian, unit components", "^"),
         "pca_scaled": ("PCA Gaussian", "v"), "dropout": ("weight dropout", "P")}  # fmt: skip


def figures(folder, found):
    """{name: figure} of a results.json of ensembles.evaluate, with the arrays in folder/arrays."""
    arrays = runs.read_arrays(folder / "arrays" / "evaluate.npz")
    held = dict(zip([g["name"] for g in found["groups"]], zip(found["groups"], found["curves"])))
    out = {}
    for name, groups in FIGURES.items():
        shown = {g: held[g] for g in groups if g in held}
        if len(shown) > 1 or name == "size":
            out[name] = curves(shown, found)
    if any(k.startswith("plane_") for k in arrays):
        out["plane"] = plane(found, arrays)
    out["confusion"] = confusions(found, arrays)
    return out


def curves(shown, found):
    """A panel each measure, as high as its lines; a line each group with its band, which may reach out of the panel."""
    fig, axes = plots.figure(2, 3, width=10.2, height=6.0, squeeze=False)
    longest = max(len(rows) for _, rows in shown.values())
    x = np.arange(1, longest + 1)
    for ax, (measure, words) in zip(axes.flat, MEASURES.items()):
        series = {}
        for group, rows in shown.values():
            cells = [row["measures"][measure] for row in rows]
            cells += [{"value": None, "low": None, "high": None}] * (longest - len(cells))
            series[group["words"]] = tuple([np.nan if c[k] is None else c[k] for c in cells]
                                           for k in ("value", "low", "high"))
        plots.curves(ax, x, series, xlabel="members", ylabel=words, markers=True)
        if ax.get_legend():
            ax.get_legend().remove()
        values = np.array([line for line, _, _ in series.values()])
        if len(np.unique(values[np.isfinite(values)])) > 1:
            low, high = np.nanmin(values), np.nanmax(values)
            ax.set_ylim(low - 0.2 * (high - low), high + 0.2 * (high - low))
        ax.set_xticks(x if longest <= 12 else x[::longest // 8])
    last = axes.flat[-1]
    last.set_axis_off()
    handles, words = axes.flat[0].get_legend_handles_labels()
    last.legend(handles, words, loc="center left", title=f"{found['images']:,} {found['split']} images; bands: "
                f"{found['level']:.0%} intervals, cut at the panels' edges", fontsize=7.5, title_fontsize=8)
    return fig


def plane(found, arrays):
    """Disagreement over 1 - accuracy against accuracy, with the limits for the measured accuracy of the solutions: all
    samples, and those near the solutions."""
    base, classes = found["plane"]["accuracy"], found["classes"]
    fig, axes = plots.figure(1, 2, width=9.6, height=4.4)
    colours = plots.palette(10)
    for ax, least in zip(axes, (1 / classes, max(1 / classes, base - 0.1))):
        a = np.linspace(least, min(base + 0.02, 0.999), 200)
        ax.plot(a, upper_limit(a, base, classes) / (1 - a), color="0.2", label="upper limit: independent errors")
        below = a[a <= base]
        ax.plot(below, lower_limit(below, base, classes) / (1 - below), color="0.2", linestyle="--",
                label="lower limit: answers changed at random")
        for colour, (name, (words, mark)) in zip(colours, PLANE.items()):
            places = arrays.get(f"plane_{name}")
            if places is None:
                continue
            x, y = places[:, 0], places[:, 1] / np.maximum(1 - places[:, 0], 1e-9)
            near = x >= least - 0.005
            ax.scatter(x[near], y[near], s=60 if mark == "*" else 14, marker=mark, color=colour, alpha=0.75,
                       linewidths=0, label=words, zorder=3 if mark == "*" else 2)
        ax.axvline(base, color="0.6", linewidth=0.8, linestyle=":")
        ax.set(xlabel=f"{found['split']} accuracy", ylabel="disagreement with the solution / (1 − accuracy)",
               ylim=(0, None), xlim=(least - 0.01, min(base + 0.03, 1)))
        ax.grid(True)
    handles, words = axes[0].get_legend_handles_labels()
    fig.legend(handles, words, loc="outside lower center", ncols=5, fontsize=7.5)
    return fig


def confusions(found, arrays):
    """Row-normalised confusion matrices: mean of the single networks, and the ensemble of all."""
    names = [str(n) for n in arrays["class_names"]]
    few = len(names) <= 20
    fig, axes = plots.figure(1, 2, width=12.0, height=5.6)
    for ax, (key, words) in zip(axes, (("members", "single networks, mean"),
                                       ("ensemble", f"ensemble of all {len(found['models'])}"))):
        values = arrays[f"confusion_{key}"]
        if few:
            plots.similarity_matrix(ax, values, names, label="share of the class's images", cmap="cividis")
        else:
            plots.heat_map(ax, values, (-0.5, len(names) - 0.5) * 2, label="share of the class's images", vmin=0,
                           vmax=1, cmap="cividis")
        ax.set(title=words, xlabel="predicted class", ylabel="true class")
    return fig
