"""The figures of the superposition sweep from what double_descent.superposition saved: arrays in, figures out, no
torch."""

import numpy as np

from double_descent.superposition import cell_file
from landscape import plots, runs

SHOWN = 6  # panels: numbers of hidden units in the scatter, and of examples in the picture of the vectors


def figures(folder, results):
    """{name: Figure} of a run's folder (a Path) and its results.json: losses over m and T, test loss and norms over T,
    the dimensionalities over T, and for m = 2 the hidden vectors of examples and of features."""
    arrays = runs.read_arrays(folder / "arrays" / "superposition.npz")
    cells = {(m, t): cell_file(folder, m, t) for m in results["hidden"] for t in results["examples"]}
    out = {"superposition_loss": heat_maps(arrays), "superposition_curves": curves(results, arrays),
           "superposition_dimensionality": scatter(results, cells)}
    if 2 in results["hidden"]:
        out["superposition_vectors"] = vectors(results, cells)
    return out


def spread(values, count):
    """`count` of the values, or all, evenly spaced in their order with both ends."""
    return [values[i] for i in sorted({round(i) for i in np.linspace(0, len(values) - 1, count)})]


@plots.styled
def heat_maps(arrays):
    """Test and train loss, means over data seeds, as images over T and m."""
    from matplotlib.colors import LogNorm

    hidden, examples = arrays["hidden"], arrays["examples"]
    fig, axes = plots.figure(1, 2, width=8.2, height=0.32 * len(hidden) + 1.5, sharey=True)
    for ax, name, scale, title in zip(axes, ("test_loss", "train_loss"), (LogNorm(), None), ("test", "training")):
        image = ax.imshow(arrays[name].mean(2), norm=scale, aspect="auto", origin="lower")
        ax.set_xticks(range(len(examples)), examples, rotation=60, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(hidden)), hidden)
        ax.set(xlabel="training examples T", title=f"{title} loss, mean of {arrays[name].shape[2]} data seeds")
        ax.spines[:].set_visible(False)
        fig.colorbar(image, ax=ax, pad=0.02).outline.set_visible(False)
    axes[0].set_ylabel("hidden units m")
    return fig


@plots.styled
def curves(results, arrays):
    """Test loss, and the norms of W and b, against T, a line each m: means and ranges over data seeds."""
    fig, axes = plots.figure(1, 3, width=10.5, height=3.2)
    labels = {"test_loss": "test loss", "w_norm": "Frobenius norm of W", "b_norm": "norm of b"}
    for ax, (name, label) in zip(axes, labels.items()):
        series = {f"m = {m}": (values.mean(1), values.min(1), values.max(1))
                  for m, values in zip(results["hidden"], arrays[name])}
        plots.curves(ax, results["examples"], series, xlabel="training examples T", ylabel=label, xscale="log",
                     yscale="log" if name == "test_loss" else "linear", markers=True)  # fmt: skip
    axes[0].axhline(results["constant_loss"], color="black", linestyle=":", linewidth=1, label="best constant")
    for ax in axes:
        ax.legend().remove()
    axes[2].legend(*axes[0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1.02, 0.5))
    fig.supxlabel(f"bands: lowest to highest of {results['seeds']} data seeds", fontsize=8, color="0.3")
    return fig


@plots.styled
def scatter(results, cells):
    """The dimensionality of every feature and training example of the first data seed against T, a panel each m."""
    hidden = spread(results["hidden"], SHOWN)
    columns = min(3, len(hidden))
    fig, axes = plots.figure(-(-len(hidden) // columns), columns, width=3 * columns + 1,
                             height=2.4 * -(-len(hidden) // columns) + 0.5, sharex=True, sharey=True,
                             squeeze=False)  # fmt: skip
    first, second = plots.palette(2)
    for ax, m in zip(axes.flat, hidden):
        for t in results["examples"]:
            held = runs.read_arrays(cells[m, t], only=("example_dimensionality", "feature_dimensionality"))
            for key, x, colour, marker, label in (
                    ("feature_dimensionality", t / 1.08, first, "o", "features"),
                    ("example_dimensionality", t * 1.08, second, "^", "training examples")):  # fmt: skip
                y = held[key][0]
                ax.plot(np.full(len(y), x), y, marker, color=colour, markersize=2.5, alpha=0.5, markeredgewidth=0,
                        label=label if t == results["examples"][0] else None, rasterized=True)  # fmt: skip
        ax.plot(results["examples"], np.minimum(1, m / np.array(results["examples"])), color="0.4", linewidth=0.8,
                linestyle="--", label="m / T")  # fmt: skip
        ax.set(xscale="log", ylim=(-0.03, 1.05), title=f"m = {m}")
    for ax in axes.flat[len(hidden):]:
        ax.set_axis_off()
    for ax in axes[-1]:
        ax.set_xlabel("training examples T")
    for ax in axes[:, 0]:
        ax.set_ylabel("dimensionality")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, markerscale=2)
    return fig


@plots.styled
def vectors(results, cells):
    """For m = 2 and a few T, of the first data seed: the columns of W, and the hidden vectors of the examples."""
    examples = spread(results["examples"], SHOWN)
    fig, axes = plots.figure(2, len(examples), width=1.7 * len(examples) + 0.5, height=3.7, squeeze=False)
    first, second = plots.palette(2)
    for column, t in enumerate(examples):
        held = runs.read_arrays(cells[2, t], only=("W", "h"))
        for ax, points, colour in zip(axes[:, column], (held["W"][0].T, held["h"][0]), (first, second)):
            limit = 1.1 * np.abs(points).max() or 1
            ax.plot(*np.stack([np.zeros_like(points), points], axis=1).transpose(2, 1, 0), color=colour, linewidth=0.5,
                    alpha=0.6, rasterized=True)  # fmt: skip
            ax.plot(*points.T, "o", color=colour, markersize=2.5, markeredgewidth=0, rasterized=True)
            ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
            ax.locator_params(nbins=3)
        axes[0, column].set_title(f"T = {t}")
    axes[0, 0].set_ylabel("features: columns of W")
    axes[1, 0].set_ylabel("training examples: W x")
    return fig
