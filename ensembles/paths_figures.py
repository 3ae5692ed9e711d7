"""Figures of ensembles.paths: curves along lines and connectors, maps of a plane, wedges of radial slices. No torch."""

import numpy as np
from matplotlib.colors import LogNorm

from landscape import plots, runs

MARKS = plots.MARKERS  # of the first three members, as of the three anchors of a plane of images
WEDGE = 30, 330  # degrees: an angle outside is drawn as one of these


def figures(folder, found):
    """{name: figure} of a results.json of ensembles.paths, with the arrays in folder/arrays."""
    arrays = runs.read_arrays(folder / "arrays" / "paths.npz")
    drawn = {"line": lines, "plane": plane, "radial": radial, "connector": connector}
    out = {kind: draw(found, arrays) for kind, draw in drawn.items() if kind in found}
    if "connector" in found:
        out["connector_slice"] = radial({**found, "radial": found["connector"]["slice"]}, arrays, "connector_slice")
    return out


@plots.styled
def lines(found, arrays):
    """A thin line each pair, their mean and its interval: loss, accuracy, agreement with both ends."""
    held, ts = found["line"], arrays["line_ts"]
    fig, axes = plots.figure(1, 3, width=10.2, height=3.2)
    colours = plots.palette(4)
    panels = (("loss", "loss (nats)", [("loss", arrays["line_loss"], "mean")]),
              ("accuracy", "accuracy", [("accuracy", arrays["line_accuracy"], "mean")]),
              ("agreement", "share of equal answers",
               [("agreement_first", arrays["line_agreement"][..., 0], "with the first end"),
                ("agreement_second", arrays["line_agreement"][..., 1], "with the second end")]))
    for ax, (name, words, series) in zip(axes, panels):
        for number, (key, each, label) in enumerate(series):
            colour = colours[number + (2 if name == "agreement" else 0)]
            ax.plot(ts, each.T, color=colour if name == "agreement" else "0.5", linewidth=0.5,
                    alpha=min(0.5, 5 / len(each)))
            cells = held["curves"][key]
            ax.plot(ts, [c["value"] for c in cells], ("-", "--")[number], color=colour, linewidth=1.8, label=label)
            low, high = ([np.nan if c[k] is None else c[k] for c in cells] for k in ("low", "high"))
            ax.fill_between(ts, low, high, color=colour, alpha=0.2, linewidth=0)
        if ts[0] < 0:
            for end in (0, 1):
                ax.axvline(end, color="0.6", linewidth=0.8, linestyle=":")
        ax.set(xlabel="position between two networks", ylabel=words, xlim=(ts[0], ts[-1]))
        ax.set_ylim(*((0, None) if name == "loss" else (0, 1)))
        ax.grid(True)
    barrier = held["measures"]
    axes[0].set_title(f"barrier {said(barrier['loss_barrier'])} nats")
    axes[1].set_title(f"barrier of the error {said(barrier['error_barrier'])}")
    count = len(held["pairs"])
    axes[2].set_title(f"{count} pair{'s' * (count > 1)}, {found['images']:,} {found['split']} images")
    axes[2].legend()
    return fig


def said(cell):
    ends = "" if cell["low"] is None else f" [{cell['low']:.2f}, {cell['high']:.2f}]"
    return f"{cell['value']:.2f}{ends}"


@plots.styled
def plane(found, arrays):
    """Loss, accuracy and the agreement with each of the three solutions, which are marked."""
    x, y, anchors = arrays["plane_x"], arrays["plane_y"], arrays["plane_anchors"]
    left, bottom = ((v[1] - v[0]) / 2 for v in (x, y))
    extent = x[0] - left, x[-1] + left, y[0] - bottom, y[-1] + bottom
    names = [found["models"][k]["name"] for k in found["plane"]["members"]]
    ratio = float(np.clip((extent[3] - extent[2]) / (extent[1] - extent[0]), 0.4, 2))
    fig, axes = plots.figure(2, 3, width=10.8, height=1.1 + 2 * 2.5 * ratio, squeeze=False)
    for ax, (words, values, scale) in zip(axes.flat, panels("plane", arrays, names)):
        plots.heat_map(ax, values.T, extent, label=words, **scale)
        ax.contour(x, y, values.T, 6, colors="white", linewidths=0.4, alpha=0.7)
        for k, (mark, size) in enumerate(zip(MARKS, plots.MARKER_SIZES)):
            ax.plot(*anchors[k], mark, color="black", markeredgecolor="white", markersize=size, markeredgewidth=0.9,
                    label=f"{names[k]}: accuracy {found['models'][k]['accuracy']:.3f}")
        ax.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
    for ax in axes[:, 0]:
        ax.set_ylabel("distance in weight space")
    for ax in (*axes[1, :2], axes[0, 2]):
        ax.set_xlabel("distance in weight space")
    handles, words = axes[0, 0].get_legend_handles_labels()
    axes[1, 2].set_axis_off()
    axes[1, 2].legend(handles, words, loc="center", title=f"{found['images']:,} {found['split']} images")
    return fig


def panels(kind, arrays, names):
    """(words, values, how they are coloured) of the maps of one kind of path; bright is good in each."""
    loss = arrays[f"{kind}_loss"]
    wide = loss.min() > 0 and loss.max() > 20 * loss.min()
    coloured = {"norm": LogNorm(loss.min(), loss.max())} if wide else {"vmin": loss.min(), "vmax": loss.max()}
    out = [("loss (nats)", loss, {**coloured, "cmap": "viridis_r"}),
           ("accuracy", arrays[f"{kind}_accuracy"], {"vmin": 0, "vmax": 1, "cmap": "viridis"})]
    agreement = arrays[f"{kind}_agreement"]
    return out + [(f"agreement with {name}", agreement[..., k], {"vmin": 0, "vmax": 1, "cmap": "cividis"})
                  for k, name in enumerate(names)]


@plots.styled
def connector(found, arrays):
    """Loss and accuracy along a learned path and along the straight line between its ends; disagreement and weight
    cosine with each of the ends."""
    held, ts = found["connector"], arrays["connector_ts"]
    names = [found["models"][k]["name"] for k in held["members"]]
    fig, axes = plots.figure(2, 2, width=8.4, height=5.8, sharex=True)
    words = f"{held['family']} of {held['vertices']} vertices", "straight line"
    colours = plots.palette(4)
    for kind, style, label in (("connector", "-", words[0]), ("connector_line", "--", words[1])):
        colour = colours[int(kind == "connector_line")]
        for ax, key in zip(axes[0], ("loss", "accuracy")):
            ax.plot(ts, arrays[f"{kind}_{key}"], style, color=colour, marker=".", label=label)
        for end, name in enumerate(names):
            for ax, values in zip(axes[1], (1 - arrays[f"{kind}_agreement"], arrays[f"{kind}_cosine"])):
                ax.plot(ts, values[:, end], style, color=colours[2 + end], label=f"{name}, {label}")
    axes[0, 0].set(ylabel="loss (nats)", ylim=(0, None))
    axes[0, 1].set(ylabel="accuracy", ylim=(0, 1))
    axes[1, 0].set(ylabel="disagreement with an end", ylim=(0, None))
    axes[1, 1].set(ylabel="cosine of weights with an end", ylim=(None, 1.02))
    for ax in axes.flat:
        ax.set_xlim(0, 1)
        ax.grid(True)
    for ax in axes[1]:
        ax.set_xlabel(f"position from {names[0]} to {names[1]}")
    axes[0, 0].legend()
    axes[1, 0].legend(fontsize=7)
    fig.suptitle(f"barrier {held['path']['loss_barrier']:.3f} nats along the {held['family']}, "
                 f"{held['line']['loss_barrier']:.3f} along the line; {found['images']:,} {found['split']} images")
    return fig


@plots.styled
def radial(found, arrays, kind="radial"):
    """The wedge between the origin of weight space, where all rays meet, and a path between two solutions, laid flat.
    True distances from the origin; a true angle too, unless it is too small or too large to draw."""
    held = found["radial"]
    names = [found["models"][k]["name"] for k in held["members"]]
    angles, drawn = spread(arrays[f"{kind}_angles"])
    radii, norms = arrays[f"{kind}_radii"], arrays[f"{kind}_norms"]
    edges = corners(radii, norms, angles)
    wide, high = (float(np.ptp(np.append(e, 0))) for e in edges)
    height = 1.3 + 2 * (0.5 + 3.2 * min(high / wide, 1.5))
    fig, axes = plots.figure(2, 2, width=8.4, height=height, squeeze=False)
    for ax, (words, values, scale) in zip(axes.flat, panels(kind, arrays, names)):
        image = ax.pcolormesh(*edges, values, shading="flat", rasterized=True, **scale)
        bar = fig.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
        bar.outline.set_visible(False)
        bar.set_label(words)
        ax.plot(*on_paper(norms, angles), color="white", linewidth=2.2)
        ax.plot(*on_paper(norms, angles), color="black", linewidth=1, linestyle="--", label="r = 1: the path itself")
        for end, k in ((0, 0), (-1, 1)):
            ax.plot(*on_paper(norms[end], angles[end]), MARKS[k], color="black", markeredgecolor="white",
                    markersize=8, markeredgewidth=0.9, linestyle="", label=names[k])
        ax.plot(0, 0, "+", color="black", markersize=8, linestyle="", label="origin of weight space")
        ax.set(aspect="equal", xlabel="distance in weight space", ylabel="distance in weight space")
    handles, words = axes.flat[0].get_legend_handles_labels()
    fig.legend(handles, words, loc="outside lower center", ncols=len(handles))
    shown = "" if drawn == 1 else f", drawn as {held['angle'] * drawn:.0f}" if held["angle"] * drawn > 1 else ""
    words = "the solutions are {} degrees apart" if kind == "radial" else "the path goes through {} degrees"
    fig.suptitle(f"r from {radii[0]:g} to {radii[-1]:g}; {words.format(round(held['angle'], 1))}{shown}; "
                 f"{found['images']:,} {found['split']} images")
    return fig


def spread(angles):
    """(angles (T,) as they are drawn, symmetric about the vertical, the first on the left; their ratio to the true
    ones)."""
    total = np.degrees(angles[-1])
    drawn = float(np.clip(total, *WEDGE))
    if total < 1e-3:
        return np.radians(90 + drawn * (0.5 - np.linspace(0, 1, len(angles)))), 1.0
    ratio = drawn / total
    return np.pi / 2 + ratio * (angles[-1] / 2 - angles), ratio


def on_paper(distance, angle):
    return distance * np.cos(angle), distance * np.sin(angle)


def corners(radii, norms, angles):
    """x and y (R + 1, T + 1) of the corners of the cells about the points of a slice: half-way in scale and along the
    path, the outermost cells cut at the last points of the path."""
    half = (radii[1] - radii[0]) / 2
    scale = np.maximum(np.linspace(radii[0] - half, radii[-1] + half, len(radii) + 1), 0)
    place = np.stack(on_paper(norms, angles))
    middle = (place[:, 1:] + place[:, :-1]) / 2
    place = np.concatenate([place[:, :1], middle, place[:, -1:]], axis=1)
    return scale[:, None] * place[0], scale[:, None] * place[1]
