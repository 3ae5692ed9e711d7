"""Arrays and an axis in, a drawing out; `save` alone writes. No torch, no pyplot, no global state.

R points a side of a plane's grid, C classes, K groups. Every function draws under landscape.mplstyle.
"""

import colorsys
import io
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from landscape.errors import ContentError, FileProblem, UsageError
from landscape.results import square
from landscape.runs import write_bytes

STYLE = matplotlib.rc_params_from_file(
    Path(__file__).with_name("landscape.mplstyle"), use_default_template=False
)
styled = matplotlib.rc_context(STYLE)  # as a decorator: the style holds inside the function only


def add_style(path):
    """Put the settings of a .mplstyle file on top of ours, for every figure from now on."""
    try:
        STYLE.update(matplotlib.rc_params_from_file(path, use_default_template=False, fail_on_error=True))
    except OSError as e:
        raise FileProblem(f"style {path}: {(e.strerror or str(e)).lower()}") from None
    except (KeyError, ValueError) as e:
        raise UsageError(f"style {path}: {' '.join(str(e).split())}") from None


FORMATS = ("png", "pdf", "svg")
MARKERS = ("o", "^", "X")  # of the three anchors, in dbViz's order
MARKER_SIZES = (7, 8, 8)
GREY = 0.35  # no confidence is drawn paler than this share of its class colour, so that classes stay apart


@styled
def figure(rows=1, columns=1, width=6.0, height=4.0, **subplots):
    """A Figure of width x height inches and its axes as plt.subplots gives them, without pyplot."""
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(rows, columns, **subplots)


def palette(n):
    """Colours (n, 3) in [0, 1] of n classes. The first ten are the style's colour-blind safe cycle; the rest
    step by the golden angle in hue through three lightnesses, so that neighbours in number stay apart."""
    first = [matplotlib.colors.to_rgb(c) for c in STYLE["axes.prop_cycle"].by_key()["color"]]
    golden = (5**0.5 - 1) / 2
    more = [
        colorsys.hls_to_rgb(0.05 + golden * i, (0.35, 0.55, 0.75)[i % 3], (0.85, 0.6)[i // 3 % 2])
        for i in range(max(0, n - len(first)))
    ]
    return np.array((first + more)[:n])


def shaded(labels, confidence, colours):
    """Image (R, R, 3), rows along y, of class map labels (R, R), indexed [x, y]. confidence (R, R) is the
    probability of the class, or None; colours fade towards white from confidence 1 down to chance, 1/C."""
    image = colours[np.asarray(labels).T]
    if confidence is None:
        return image
    chance = 1 / len(colours)
    strength = np.clip((np.asarray(confidence, dtype=float).T - chance) / (1 - chance), 0, 1)[..., None]
    strength = GREY + (1 - GREY) * strength
    return strength * image + (1 - strength)


@styled
def region_map(
    ax, labels, confidence=None, *, extent, colours, anchors=None, boundary=True, axis_labels=True
):
    """Decision regions on a plane: class map labels (R, R) integers indexed [x, y], shaded by confidence (R,
    R) or flat when it is None.

    extent is (xmin, xmax, ymin, ymax) of the first and last grid points, as plane.extent gives it; the outer
    points are drawn as whole cells about them. anchors (3, 2) are marked by a circle, a triangle and a cross.
    boundary draws the line between classes."""
    labels = np.asarray(labels)
    if labels.ndim != 2:
        raise ValueError(f"a class map is (R, R), not {labels.shape}: reshape a flat map of S points first")
    if labels.max() >= len(colours):
        raise ValueError(f"class {labels.max()} has no colour: {len(colours)} are given")
    xmin, xmax, ymin, ymax = extent
    x_edges = _edges(xmin, xmax, labels.shape[0])
    y_edges = _edges(ymin, ymax, labels.shape[1])
    outer = (x_edges[0], x_edges[-1], y_edges[0], y_edges[-1])
    ax.imshow(
        shaded(labels, confidence, colours),
        origin="lower",
        extent=outer,
        interpolation="nearest",
        aspect="equal",
    )
    if boundary:
        segments = _boundaries(labels, x_edges, y_edges)
        # Rasterised: a ragged map has 100,000 segments, which no reader of a PDF wants as vectors.
        ax.add_collection(
            LineCollection(segments, colors="black", linewidths=0.4, alpha=0.7, rasterized=True)
        )
    if anchors is not None:
        for (x, y), marker, size in zip(np.asarray(anchors, dtype=float), MARKERS, MARKER_SIZES):
            ax.plot(
                x, y, marker, color="black", markeredgecolor="white", markersize=size, markeredgewidth=0.9
            )
    ax.set(xlim=outer[:2], ylim=outer[2:])
    ax.spines[:].set_visible(True)
    if axis_labels:
        ax.set_xlabel("distance along $x_2 - x_1$ (normalised units)")
        ax.set_ylabel("distance orthogonal to it (normalised units)")


@styled
def thumbnails(axes, pictures, names=None):
    """The three anchors' pictures (3, H, W, C) in [0, 1] (C is 1 or 3), one on each of three axes, each under
    the marker that stands for it on the plane. names: a caption for each, for example its class."""
    for number, (ax, picture) in enumerate(zip(axes, np.asarray(pictures, dtype=float))):
        grey = picture.shape[-1] == 1
        picture = np.clip(picture[..., 0] if grey else picture, 0, 1)
        ax.imshow(picture, cmap="gray" if grey else None, vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(True)
        above = ax.transAxes + ScaledTranslation(0, 8 / 72, ax.figure.dpi_scale_trans)
        ax.plot(
            [0.5], [1], MARKERS[number], transform=above, clip_on=False,
            color="black", markersize=MARKER_SIZES[number] - 1,
        )  # fmt: skip
        if names is not None:
            ax.set_xlabel(names[number], fontsize=8, labelpad=2)


@styled
def legend(fig, labels, class_names, colours, columns=0):
    """A legend below fig of the classes that occur in the class maps `labels` (any array or a list of them),
    at most 20, the largest first when there are more; columns=0 chooses their number."""
    counts = sum(np.bincount(np.ravel(part), minlength=len(class_names)) for part in _as_list(labels))
    present = np.flatnonzero(counts)
    if len(present) > 20:
        present = np.argsort(-counts, kind="stable")[:20]
    handles = [Patch(facecolor=colours[c], edgecolor="black", linewidth=0.3) for c in present]
    columns = columns or min(len(present), 5)
    names = [class_names[c] for c in present]
    return fig.legend(
        handles, names, loc="outside lower center", ncols=columns, handlelength=1.2, columnspacing=1.4
    )


@styled
def panels(cells, *, extent, anchors, class_names, row_names=None, column_names=None, pictures=None,
           picture_names=None, title="", boundary=True, shown=None):  # fmt: skip
    """A Figure of decision regions on one plane: cells is a list of rows (architectures) of columns (seeds),
    each (labels (R, R), confidence (R, R) or None), or None for an empty panel. One legend and one set of
    thumbnails (pictures (3, H, W, C), picture_names) serve all; the legend names the classes in the class maps
    `shown`, those of the cells unless given. The rest as in `region_map`, which draws a
    panel; a single panel gets its axis labels too."""
    rows, columns = len(cells), max(len(row) for row in cells)
    single = rows == columns == 1
    xmin, xmax, ymin, ymax = extent
    side = 4.4 if single else 2.2
    height = min(max(side * (ymax - ymin) / (xmax - xmin), 0.5 * side), 2 * side)
    strip = 0.0 if pictures is None else float(np.clip(rows * height / 3 - 0.35, 0.55, 0.95))
    tall = max(rows * height, 3 * (strip + 0.25) if strip else 0)
    fig = Figure(figsize=(columns * side + strip + 0.5, tall + 0.9), layout="constrained")
    fig.get_layout_engine().set(w_pad=0.03, h_pad=0.04, wspace=0.02, hspace=0.02)
    grid = fig.add_gridspec(1, 2 if strip else 1, width_ratios=[columns * side, strip] if strip else [1])
    axes = grid[0].subgridspec(rows, columns).subplots(sharex=True, sharey=True, squeeze=False)
    colours = palette(len(class_names))
    for i, row in enumerate(cells):
        for j, ax in enumerate(axes[i]):
            if j >= len(row) or row[j] is None:
                ax.set_axis_off()
                continue
            region_map(ax, *row[j], extent=extent, colours=colours, anchors=anchors, boundary=boundary,
                       axis_labels=single)  # fmt: skip
            ax.locator_params(nbins=6 if single else 4)
            ax.label_outer()
    for ax, name in zip(axes[0], column_names or ()):
        ax.set_title(name)
    for ax, name in zip(axes[:, 0], row_names or ()):
        lines = name.replace(" ", "\n")
        flat = 0.11 * max(map(len, lines.split("\n"))) > height  # a name longer than its panel is high lies flat
        ax.annotate(
            lines, (0, 0.5), (-30, 0), xycoords="axes fraction", textcoords="offset points",
            rotation=0 if flat else 90, ha="right", va="center", ma="center", fontsize=8 if flat else 10,
        )  # fmt: skip
    if not single:
        axes[-1, columns // 2].set_xlabel("distance (normalised units)", fontsize=9)
    if strip:
        thumbnails(grid[1].subgridspec(3, 1, hspace=0.25).subplots(), pictures, picture_names)
    if shown is None:
        shown = [cell[0] for row in cells for cell in row if cell is not None]
    legend(fig, shown, class_names, colours)
    if title:
        fig.suptitle(title)
    return fig


@styled
def similarity_matrix(
    ax, matrix, names, *, low=None, high=None, label="", vmin=0.0, vmax=1.0, cmap="viridis"
):
    """A heat map of matrix (K, K) with its numbers, names (K,) on both axes and a colour bar called label.
    low and high (K, K) print each cell's interval below its number. NaN or None cells (no pair to measure)
    show a dash."""
    matrix = np.array(matrix, dtype=float)
    if matrix.shape != (len(names), len(names)):
        raise ValueError(f"matrix {matrix.shape} for {len(names)} names")
    image = ax.imshow(np.ma.masked_invalid(matrix), vmin=vmin, vmax=vmax, cmap=cmap)
    ax.set_facecolor("0.9")
    ax.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    size = np.clip(15 * ax.figure.get_figwidth() / len(names), 3, 10)
    for i in range(len(names)):
        for j in range(len(names)):
            value = matrix[i, j]
            if np.isnan(value):
                ax.text(j, i, "–", ha="center", va="center", color="0.4", fontsize=size)
                continue
            red, green, blue, _ = image.cmap(image.norm(value))
            luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
            colour = "black" if luminance > 0.18 else "white"  # equal contrast with both at 0.18 (WCAG)
            interval = _interval(low, high, i, j)
            place = {"ha": "center", "color": colour}
            ax.text(j, i, _short(value), va="bottom" if interval else "center", fontsize=size, **place)
            if interval:
                ax.text(j, i + 0.06, interval, va="top", fontsize=0.6 * size, **place)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
    bar.outline.set_visible(False)
    bar.set_label(label)


@styled
def heat_map(ax, values, extent, *, label="", vmin=None, vmax=None, cmap="viridis", xlabel="", ylabel="", **image):
    """values (R, C) as an image with row 0 at the bottom and a colour bar called label; extent: left, right, bottom and
    top edge. NaN is grey. Returns the image."""
    shown = ax.imshow(np.ma.masked_invalid(np.asarray(values, dtype=float)), origin="lower", extent=extent, vmin=vmin,
                      vmax=vmax, cmap=cmap, interpolation="nearest", **image)
    ax.set_facecolor("0.9")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    bar = ax.figure.colorbar(shown, ax=ax, fraction=0.046, pad=0.03)
    bar.outline.set_visible(False)
    bar.set_label(label)
    return shown


@styled
def curves(ax, x, series, *, xlabel="", ylabel="", xscale="linear", yscale="linear", markers=False):
    """Lines over x (T,): series maps each name to y (T,) or to (y, low, high), whose band is shaded; a NaN or
    None leaves a gap. Line styles change with the colours, so that a grey print still tells them apart."""
    x = np.array(x, dtype=float)
    styles = ("-", "--", "-.", ":")
    for number, (name, values) in enumerate(series.items()):
        band = isinstance(values, tuple) and len(values) == 3
        y, low, high = (np.array(v, dtype=float) for v in (values if band else (values, [], [])))
        if y.shape != x.shape:
            raise ValueError(f"series {name!r} has shape {y.shape}, x has {x.shape}")
        (line,) = ax.plot(
            x, y, styles[number % 4], label=name, marker=".os^vD"[number % 6] if markers else None
        )
        if band:
            ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
    ax.grid(True)
    if len(series) > 1:
        ax.legend()


@styled
def save(fig, stem, formats=("png",)):
    """Write fig to stem + "." + each of formats (png, pdf, svg) and return the paths. A file appears whole or
    not at all, and equal figures give equal bytes. UsageError for an unknown format, FileProblem where
    writing fails."""
    wrong = [form for form in formats if form not in FORMATS]
    if wrong:
        raise UsageError(f"unknown figure format {wrong[0]!r}: known are {', '.join(FORMATS)}")
    paths = []
    for form in formats:
        paths.append(Path(f"{stem}.{form}"))
        write_bytes(paths[-1], encoded(fig, form))
    return paths


@styled
def encoded(fig, form):
    """The bytes of fig as a file of one of FORMATS; equal figures give equal bytes."""
    undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    # One pass of constrained layout leaves a legend below axes of equal aspect too high, over their labels.
    fig.draw_without_rendering()
    drawn = io.BytesIO()
    fig.savefig(drawn, format=form, metadata=undated[form])
    return drawn.getvalue()


def _edges(first, last, n):
    """The n+1 edges of n cells whose centres are equally spaced from first to last."""
    half = (last - first) / (n - 1) / 2
    return np.linspace(first - half, last + half, n + 1)


def _boundaries(labels, x_edges, y_edges):
    """Segments (L, 2, 2) between neighbouring cells of different class in labels (R, R), indexed [x, y]."""
    i, j = np.nonzero(labels[1:] != labels[:-1])
    upright = np.stack([x_edges[i + 1], y_edges[j], x_edges[i + 1], y_edges[j + 1]], axis=1)
    i, j = np.nonzero(labels[:, 1:] != labels[:, :-1])
    level = np.stack([x_edges[i], y_edges[j + 1], x_edges[i + 1], y_edges[j + 1]], axis=1)
    return np.concatenate([upright, level]).reshape(-1, 2, 2)


def _as_list(labels):
    return labels if isinstance(labels, list) else [labels]


def _short(value):
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def _interval(low, high, i, j):
    if low is None or high is None or low[i][j] is None or high[i][j] is None:
        return ""
    ends = float(low[i][j]), float(high[i][j])
    return "" if np.isnan(ends).any() else f"[{_short(ends[0])}, {_short(ends[1])}]"


def training_curves(records):
    """A Figure of loss (nats) and accuracy over epochs from the lines of metrics.jsonl: dicts with epoch,
    train_loss, train_accuracy, and val_ and test_ entries where they were measured."""
    fig, axes = figure(1, 2, width=7.2, height=2.8)
    for ax, what in zip(axes, ("loss", "accuracy")):
        names = [n for n in ("train", "val", "test") if any(f"{n}_{what}" in r for r in records)]
        series = {n: [r.get(f"{n}_{what}") for r in records] for n in names}
        curves(ax, [r["epoch"] for r in records], series, xlabel="epoch", markers=len(records) < 30,
               ylabel="cross-entropy (nats)" if what == "loss" else "accuracy")  # fmt: skip
        ax.xaxis.get_major_locator().set_params(integer=True)
    return fig


def plane_panels(cells, shaded=True):
    """A Figure of networks on one plane from what main.py saved: cells is a list of (group, name, arrays), a row of
    panels for each group, its networks as columns. arrays: labels, confidence, extent, anchors, pictures, classes,
    anchor_labels. Raises ContentError if they lie on different planes."""
    first = cells[0][2]
    for _, name, arrays in cells:
        if not np.array_equal(arrays["ids"], first["ids"]) or not np.array_equal(arrays["extent"], first["extent"]):
            raise ContentError(f"{name} was drawn on another plane than {cells[0][1]}")
    rows = {}
    for group, _, arrays in cells:
        confidence = arrays["confidence"].astype(float) if shaded else None
        rows.setdefault(group, []).append((arrays["labels"], confidence))
    names = [str(c) for c in first["classes"]]
    true = first["anchor_labels"].tolist()  # -1: no image of the set
    captions = [names[label] if label >= 0 else "" for label in true]
    for n, given in enumerate(first.get("anchor_given", [])):  # older files have none
        if -1 not in (true[n], given) and given != true[n]:
            captions[n] += f", labelled {names[given]}"
    if len(cells) == 1:
        labels = {"title": cells[0][0]}
    else:
        columns = [[name for group, name, _ in cells if group == row] for row in rows]
        longest = max(columns, key=len)
        same = all(names == longest[:len(names)] for names in columns)
        labels = {"row_names": list(rows),
                  "column_names": longest if same else [f"network {i + 1}" for i in range(len(longest))]}  # fmt: skip
    return panels(list(rows.values()), extent=tuple(first["extent"]), anchors=first["anchors"], class_names=names,
                  pictures=first["pictures"] / 255, picture_names=captions, **labels)  # fmt: skip


def frames(arrays, titles, shaded=True):
    """Yields one RGB image (H, W, 3), uint8, for each class map of a plane during training, all of one size and with
    one legend. arrays: labels and confidence (E, R, R), extent, anchors, pictures, classes, anchor_labels. titles (E,)
    stand above."""
    turn_to = None
    for labels, confidence, title in zip(arrays["labels"], arrays["confidence"], titles):
        cell = labels, confidence.astype(float) if shaded else None
        turn_to = turn_to or _turning(arrays, cell, titles)
        yield turn_to(cell, title)


@styled
def _turning(arrays, first, titles):
    """A function of (labels, confidence) and title that draws them on one figure, laid out once, as an image."""
    names = [str(c) for c in arrays["classes"]]
    captions = [names[label] if label >= 0 else "" for label in arrays["anchor_labels"]]
    place = {"extent": tuple(arrays["extent"]), "anchors": arrays["anchors"]}
    fig = panels([[first]], **place, class_names=names, picture_names=captions, pictures=arrays["pictures"] / 255,
                 shown=arrays["labels"])  # fmt: skip
    heading, ax, canvas = fig.suptitle(max(titles, key=len)), fig.axes[0], FigureCanvasAgg(fig)
    canvas.draw()  # twice, as in `save`; then the layout stays, so that nothing jumps
    canvas.draw()
    fig.set_layout_engine("none")

    @styled
    def turn_to(cell, title):
        ax.clear()
        region_map(ax, *cell, colours=palette(len(names)), **place)
        ax.locator_params(nbins=6)
        heading.set_text(title)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return turn_to


def save_gif(images, path, seconds, last=2.0):
    """Write RGB images (H, W, 3), uint8, as a GIF that repeats: each for so many seconds, and the last one for `last`.
    The file appears whole or not at all, and equal images give equal bytes."""
    from PIL import Image

    # Coverage of colours, not of pixels: the others give a class that is small, or only in the legend, another colour.
    pages = [Image.fromarray(image).quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
             for image in images]  # fmt: skip
    durations = [max(20, round(1000 * seconds))] * (len(pages) - 1) + [round(1000 * max(last, seconds))]
    drawn = io.BytesIO()
    pages[0].save(drawn, format="GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0)
    write_bytes(path, drawn.getvalue())


def agreement_figures(found, meanings):
    """{name: Figure} from what calculate_iou.py found: for each score of meanings {score: label} the matrix of groups
    with its intervals, and agreement_models, the agreement of all models."""
    names, models = found["groups"], [m["group"] for m in found["models"]]
    out = {}
    for score, label in meanings.items():
        value, low, high = square(found["scores"][score]["groups"], names)
        side = max(4.2, 1.1 * len(names) + 2)
        out[score], ax = figure(width=side + 1, height=side)
        counted = [f"{name} ({models.count(name)})" for name in names]
        similarity_matrix(ax, value, counted, low=low, high=high, label=label)
    side = max(4.5, 0.45 * len(models) + 2.5)
    out["agreement_models"], ax = figure(width=side + 1, height=side)
    numbered = [f"{group} {models[:i].count(group) + 1}" for i, group in enumerate(models)]
    matrix = found["scores"]["agreement"]["models"]["value"]
    similarity_matrix(ax, matrix, numbered, label=meanings["agreement"])
    return out


def convergence_figure(measures, level):
    """A Figure with a row for each measure {label: {"planes": series, "resolution": series}}: it over the number of
    planes and over the points a side. series: {(group, group or ""): [(x, value, low, high), …]}, in which low and
    high, the ends of the intervals of that level, may be None. Of more than 12 series those of pairs of two groups are
    thin and grey."""
    fig, axes = figure(len(measures), 2, width=8.0, height=2.6 * len(measures) + 0.4, squeeze=False,
                       sharey="row")  # fmt: skip
    for row, (label, parts) in zip(axes, measures.items()):
        for ax, over, xlabel in zip(row, ("planes", "resolution"), ("planes", "points a side")):
            series = {name: list(zip(*sorted(points))) for name, points in parts[over].items()}
            x = next(iter(series.values()))[0]
            grey = [(a, b) for a, b in series if b not in ("", a)] if len(series) > 12 else []
            for number, (_, y, _, _) in enumerate(series.pop(name) for name in grey):
                ax.plot(x, y, color="0.75", linewidth=0.8, zorder=1, label="" if number else "two groups")
            scale = "log" if over == "planes" else "linear"
            named = {" – ".join(filter(None, name)): tuple(s[1:]) for name, s in series.items()}
            curves(ax, x, named, xlabel=xlabel, xscale=scale, markers=True, ylabel=label if over == "planes" else "")
            ax.set_xticks(x, ["" if v < x[-1] < 1.4 * v else f"{v:g}" for v in x])  # too near to the last one
            ax.minorticks_off()
            if ax.get_legend() is not None:
                ax.get_legend().remove()
        if (grey or len(series) > 1) and len(series) <= 12:  # more names than that are no help
            row[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=7)
    fig.supxlabel(f"means over planes; bands: their {level:.0%} intervals", fontsize=8)
    return fig


@styled
def between_figure(rows, level, along=""):
    """A Figure over the positions of a path of networks, from the rows of regions.between: agreement of class maps with
    the first and the last network, with bands; loss and accuracy on the test set. Grey lines: the given networks.
    along: the setting whose values take the place of positions."""
    fig, axes = figure(1, 3, width=10.0, height=2.8)
    x = [r["along" if along else "position"] for r in rows]
    agreement = {}
    for end, own in (("first", rows[0]), ("last", rows[-1])):  # along a setting, not that of the end with itself
        keys = [f"agreement_{end}{k}" for k in ("", "_low", "_high")]
        word = f"with the network of {along} {own['along']:g}" if along else f"with the {end} network"
        agreement[word] = tuple([None if along and r is own else r[k] for r in rows] for k in keys)
    curves(axes[0], x, agreement, ylabel="agreement of class maps", markers=True)
    curves(axes[1], x, {"loss": [r["loss"] for r in rows]}, ylabel="test loss (nats)", markers=True)
    curves(axes[2], x, {"accuracy": [r["accuracy"] for r in rows]}, ylabel="test accuracy", markers=True)
    for ax in axes:
        ax.set_xlabel(along or "position (whole: a given network)")
        for given in [] if along else range(int(max(x)) + 1):
            ax.axvline(given, color="0.75", linewidth=0.8, zorder=0)
        if along and min(x) > 0 and max(x) > 8 * min(x):
            ax.set_xscale("log", base=2)
            ax.set_xticks(x, [f"{v:g}" for v in x])
    fig.supxlabel(f"bands: {level:.0%} intervals over planes", fontsize=8)
    return fig


def interval_figure(groups, models, measures, note, each="network"):
    """A Figure with a panel for each measure {name: label}, at most four in a row: each group's value with its
    interval, and its networks as small grey marks below it. Rows hold group and, for each measure, {"value", "low",
    "high"}, each perhaps None; high alone is None for an interval without an upper end, which is drawn as an arrow.
    note: what the intervals are, in words, to stand below. each: what a mark is of."""
    rows = -(-len(measures) // 4)
    columns = -(-len(measures) // rows)
    fig, axes = figure(rows, columns, width=2.8 * columns + 1.2, height=rows * (0.45 * len(groups) + 1.2) + 0.3,
                       sharey=True, squeeze=False)  # fmt: skip
    places = {g["group"]: i for i, g in enumerate(groups)}
    for ax in axes.flat[len(measures):]:
        ax.axis("off")
    for ax, (name, label) in zip(axes.flat, measures.items()):
        small = [(m[name]["value"], places[m["group"]] + 0.2) for m in models if m[name]["value"] is not None]
        if len(models) > len(groups) and small:
            ax.plot(*zip(*small), "o", color="0.65", markersize=3, zorder=1)
        for place, cell in ((places[g["group"]], g[name]) for g in groups):
            if cell["value"] is None:
                ax.annotate("none", (0.5, place), xycoords=("axes fraction", "data"), ha="center", va="center",
                            color="0.4", fontsize=8)  # fmt: skip
                continue
            ends = [[abs(cell["value"] - (cell["value"] if cell[k] is None else cell[k]))] for k in ("low", "high")]
            ax.errorbar(cell["value"], place, xerr=ends, fmt="o", color="black", markersize=4, capsize=2)
            if cell["low"] is not None and cell["high"] is None:  # the upper end lies beyond what was looked at
                ax.annotate("", (1, place), (cell["value"], place), xycoords=("axes fraction", "data"),
                            textcoords="data", arrowprops={"arrowstyle": "->", "shrinkA": 0, "shrinkB": 0})
        ax.set_yticks(range(len(groups)), list(places))
        ax.set_xlabel(label, fontsize=8)
        ax.set_ylim(len(groups) - 0.5, -0.5)
    fig.supxlabel(note + f"; grey: each {each}" * (len(models) > len(groups)), fontsize=8)
    return fig


@styled
def scatter_matrix(columns, groups, correlations):
    """A Figure with a cell for each two measures: columns maps each label to its values (P,), None where there is none.
    Below the diagonal the P pairs, by `groups` (P,), words, in colours and marks; above it their rank correlation,
    correlations {(label, label): (value, low, high)}, each perhaps None; on it the histograms."""
    labels, names = list(columns), list(dict.fromkeys(groups))
    values = [np.array([np.nan if v is None else v for v in columns[k]], dtype=float) for k in labels]
    groups = np.array(groups)
    fig, axes = figure(len(labels), len(labels), width=1.45 * len(labels) + 1.0, height=1.35 * len(labels) + 0.6,
                       squeeze=False)  # fmt: skip
    for (i, j), ax in np.ndenumerate(axes):
        ax.tick_params(labelsize=5)
        if i < j:
            ax.axis("off")
            value, low, high = correlations[labels[i], labels[j]]
            ends = "" if low is None else f"\n[{low:.2f}, {high:.2f}]"
            ax.text(0.5, 0.5, "–" if value is None else f"{value:.2f}{ends}", ha="center", va="center", fontsize=8)
        elif i == j:
            ax.hist(values[i][np.isfinite(values[i])], bins=15, color="0.6")
            ax.set_yticks([])
        else:
            for number, name in enumerate(names):
                some = groups == name
                ax.plot(values[j][some], values[i][some], ".os^vD"[number % 6], markersize=3, label=name)
            ax.locator_params(nbins=4)
        ax.set_xlabel(textwrap.fill(labels[j], 20) if i == len(labels) - 1 else "", fontsize=6)
        ax.set_ylabel(textwrap.fill(labels[i], 20) if j == 0 else "", fontsize=6)
    fig.align_ylabels(axes[:, 0])
    handles, said = axes[-1, 0].get_legend_handles_labels() if len(labels) > 1 else ([], [])
    if len(names) > 1:
        fig.legend(handles, said, title="the two differ in", loc="outside lower center", ncols=min(4, len(names)),
                   fontsize=7, title_fontsize=7)  # fmt: skip
    return fig
