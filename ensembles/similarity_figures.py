"""Figures of ensembles.similarity: matrices between members and along trajectories, curves, embeddings. No torch."""

import numpy as np

from landscape import plots, runs

SHOWN = (("disagreement", "disagreement"), ("weight_cosine", "cosine of weights"))
EMBEDDINGS = (("tsne", "t-SNE of probabilities"), ("pca", "PCA of probabilities"),
              ("mds", "classical scaling of disagreement"))
MARKS = "os^vDP*X"


def figures(folder, found):
    """{name: figure} of a results.json of ensembles.similarity, with the matrices in folder/arrays."""
    arrays = runs.read_arrays(folder / "arrays" / "similarity.npz")
    out = {}
    if len(found["models"]) > 1:
        out["members"] = members(found, arrays)
    for number, trajectory in enumerate(found["trajectories"]):
        out[f"trajectory_{number}"] = one_trajectory(number, trajectory, found, arrays)
    if found["trajectories"]:
        out["along_training"] = along_training(found, arrays)
    if found.get("embedding"):
        out["embedding"] = embedding(found, arrays)
    if any(held["weight_cosine"] is not None for held in found["layers"].values()):
        out["layers"] = layers(found)
    return out


def limits(measure, values):
    """Colour scales that are the same from figure to figure: cosines from 0 to 1 (−1 where there are lower ones),
    disagreements from 0 to what a figure's largest is in steps of 0.1."""
    if "cosine" in measure:
        return (-1.0 if values.min() < -0.2 else 0.0), 1.0
    return 0.0, max(0.1, float(np.ceil(values.max() * 10) / 10))


def members(found, arrays):
    held = [(m, words) for m, words in SHOWN if f"members_{m}" in arrays]
    side = min(7.0, 2.2 + 0.42 * len(found["models"]))
    fig, axes = plots.figure(1, len(held), width=(side + 0.9) * len(held), height=side + 0.4, squeeze=False)
    for ax, (measure, words) in zip(axes.flat, held):
        matrix = arrays[f"members_{measure}"]
        low, high = limits(measure, matrix)
        if len(matrix) <= 20:
            plots.similarity_matrix(ax, matrix, [m["name"] for m in found["models"]], label=words, vmin=low, vmax=high)
        else:
            plots.heat_map(ax, matrix, (0.5, len(matrix) + 0.5) * 2, label=words, vmin=low, vmax=high,
                           xlabel="network", ylabel="network")
        ax.set_title(f"{words}, {found['images']:,} {found['split']} images" if measure == "disagreement" else words)
    return fig


def one_trajectory(number, trajectory, found, arrays):
    held = [(m, words) for m, words in SHOWN if f"trajectory_{number}_{m}" in arrays]
    fig, axes = plots.figure(1, len(held), width=4.4 * len(held), height=3.9, squeeze=False)
    for ax, (measure, words) in zip(axes.flat, held):
        matrix = arrays[f"trajectory_{number}_{measure}"]
        low, high = limits(measure, matrix)
        if evenly(trajectory["epochs"]):
            first, last = trajectory["epochs"][0], trajectory["epochs"][-1]
            half = (last - first) / max(len(matrix) - 1, 1) / 2 or 0.5
            plots.heat_map(ax, matrix, (first - half, last + half) * 2, label=words, vmin=low, vmax=high,
                           xlabel="epoch", ylabel="epoch")
        else:
            plots.heat_map(ax, matrix, (-0.5, len(matrix) - 0.5) * 2, label=words, vmin=low, vmax=high,
                           xlabel="epoch", ylabel="epoch")
            ax.set_xticks(range(len(matrix)), trajectory["epochs"], rotation=90)
            ax.set_yticks(range(len(matrix)), trajectory["epochs"])
    fig.suptitle(f"{trajectory['name']}: snapshots of one training")
    return fig


def evenly(epochs):
    return len(epochs) > 1 and len(set(np.diff(epochs))) == 1


def along_training(found, arrays):
    """Accuracy, and how far each snapshot is from the last one: a thin line each trajectory, their mean thick."""
    held = [(m, words) for m, words in SHOWN if all(f"trajectory_{i}_{m}" in arrays
                                                    for i in range(len(found["trajectories"])))]
    panels = [("accuracy", f"{found['split']} accuracy"), *[(m, f"{words} with the last") for m, words in held]]
    fig, axes = plots.figure(1, len(panels), width=3.4 * len(panels), height=2.9, squeeze=False)
    colours = plots.palette(len(found["trajectories"]))
    for ax, (measure, words) in zip(axes.flat, panels):
        series = []
        for i, (t, colour) in enumerate(zip(found["trajectories"], colours)):
            y = t["accuracy"] if measure == "accuracy" else arrays[f"trajectory_{i}_{measure}"][:, -1]
            series.append(y)
            ax.plot(t["epochs"], y, color=colour, linewidth=0.9, label=t["name"], marker=MARKS[i % 8], markersize=2.5)
        if measure == "disagreement" and found["measures"]["disagreement"]["value"] is not None:
            cell = found["measures"]["disagreement"]
            ax.axhline(cell["value"], color="0.3", linestyle="--", linewidth=1, label="independent networks")
            if cell["low"] is not None:
                ax.axhspan(cell["low"], cell["high"], color="0.3", alpha=0.15, linewidth=0)
        ax.set(xlabel="epoch", ylabel=words)
        ax.grid(True)
    axes.flat[0].legend()
    if len(panels) > 1:
        axes.flat[1].legend()
    return fig


def embedding(found, arrays):
    names = [(k, words) for k, words in EMBEDDINGS if f"embedding_{k}" in arrays]
    fig, axes = plots.figure(1, len(names), width=3.5 * len(names), height=3.7, squeeze=False)
    colours = plots.palette(len(found["trajectories"]))
    for ax, (name, words) in zip(axes.flat, names):
        for i, (path, t) in enumerate(zip(arrays[f"embedding_{name}"], found["trajectories"])):
            ax.plot(*path.T, color=colours[i], linewidth=0.7, alpha=0.5)
            ax.scatter(*path.T, s=np.linspace(6, 22, len(path)), color=colours[i], marker=MARKS[i % 8], alpha=0.8,
                       linewidths=0, label=t["name"])
            ax.scatter(*path[0], s=90, marker="*", facecolor="white", edgecolor=colours[i], zorder=3,
                       label="before training" if i == len(found["trajectories"]) - 1 else None)
        ax.set(title=words, xlabel="first coordinate", ylabel="second coordinate")
        ax.set_aspect("equal", adjustable="datalim")
    handles, words = axes.flat[0].get_legend_handles_labels()
    fig.legend(handles, words, loc="outside lower center", ncols=len(handles))
    return fig


def layers(found):
    """Mean cosine over pairs of members, layer by layer (weights that no pair defines, such as zeros, are left out)."""
    names = [k for k, held in found["layers"].items() if held["weight_cosine"] is not None]
    fig, ax = plots.figure(1, 1, width=6.0, height=1.2 + 0.2 * len(names))
    kinds = [("weight_cosine", "weights", "o"), ("displacement_cosine", "displacements from initialisation", "s")]
    for kind, words, mark in kinds:
        values = [found["layers"][k].get(kind) for k in names]
        if any(v is not None for v in values):
            ax.plot([np.nan if v is None else v for v in values], range(len(names)), mark, label=words)
            ax.legend()
    ax.axvline(0, color="0.5", linewidth=0.6)
    ax.set_yticks(range(len(names)), names, fontsize=7)
    ax.invert_yaxis()
    ax.set(xlabel="cosine, mean over pairs of networks", xlim=(min(-0.1, *ax.get_xlim()), 1))
    ax.grid(True, axis="x")
    return fig
