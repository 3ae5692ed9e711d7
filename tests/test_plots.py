"""Plots: what is drawn where, colours that stay apart, and files that are whole."""

import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from landscape import plots
from landscape.errors import FileProblem, UsageError

ANCHORS = np.array([[0.0, 0.0], [10.0, 0.0], [4.0, 8.0]])
EXTENT = (-1.0, 11.0, -0.8, 8.8)
NAMES = [f"class {c}" for c in range(10)]


def class_map(seed=0, size=20, classes=10):
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, (size, size)).astype(np.uint8), rng.uniform(0.1, 1, (size, size))


def pixels(fig):
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


def test_a_region_lies_where_the_plane_has_it():
    labels = np.zeros((10, 10), dtype=np.uint8)
    labels[7:, :3] = 1  # large x, small y: the lower right corner
    fig, ax = plots.figure(width=4, height=4)
    plots.region_map(ax, labels, extent=(0, 9, 0, 9), colours=plots.palette(2), boundary=False)
    shown = pixels(fig)

    def colour_at(x, y):
        column, row = ax.transData.transform((x, y))
        return shown[shown.shape[0] - 1 - int(row), int(column)]

    for i in range(10):
        for j in range(10):
            assert np.abs(colour_at(i, j) - plots.palette(2)[labels[i, j]]).max() < 0.02
    assert ax.get_xlim() == (-0.5, 9.5) and ax.get_ylim() == (-0.5, 9.5)
    assert ax.get_aspect() == 1


def test_confidence_fades_a_colour_to_white_and_never_away():
    colours = plots.palette(10)
    labels = np.full((1, 4), 3)
    image = plots.shaded(labels, np.array([[1.0, 0.55, 0.1, 0.0]]), colours)[:, 0]
    assert np.allclose(image[0], colours[3])
    assert np.allclose(image[2], image[3]) and np.allclose(image[2], 0.35 * colours[3] + 0.65)
    assert np.allclose(image[1], (image[0] + image[2]) / 2)
    assert np.array_equal(plots.shaded(labels, None, colours)[0, 0], colours[3])


def test_boundaries_run_between_different_cells_only():
    labels = np.array([[0, 0, 1], [0, 2, 1]])
    segments = plots._boundaries(labels, np.arange(3.0), np.arange(4.0))
    found = {tuple(map(tuple, segment)) for segment in segments}
    assert found == {((1, 1), (1, 2)), ((0, 2), (1, 2)), ((1, 1), (2, 1)), ((1, 2), (2, 2))}


# sRGB to linear, then what a protanope and a deuteranope see (Machado et al. 2009, severity 1), then Oklab.
SIGHTS = {
    "normal": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                        [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                        [-0.011820, 0.042940, 0.968881]]),
}  # fmt: skip


def oklab(colours, sight):
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4) @ sight.T
    cones = np.array([[0.4122214708, 0.2119034982, 0.0883024619], [0.5363325363, 0.6806995451, 0.2817188376],
                      [0.0514459929, 0.1073969566, 0.6299787005]])  # fmt: skip
    opponent = np.array([[0.2104542553, 1.9779984951, 0.0259040371],
                         [0.7936177850, -2.4285922050, 0.7827717662],
                         [-0.0040720468, 0.4505937099, -0.8086757660]])  # fmt: skip
    return np.cbrt(np.clip(linear, 0, 1) @ cones) @ opponent


@pytest.mark.parametrize("sight, least", [("normal", 0.07), ("protan", 0.04), ("deutan", 0.04)])
def test_ten_colours_stay_apart_for_every_reader_also_when_paled(sight, least):
    colours = plots.palette(10)
    paled = [oklab(s * colours + 1 - s, SIGHTS[sight]) for s in (0.5, 0.75, 1)]
    for a in paled:
        for b in paled:
            distance = np.linalg.norm(a[:, None] - b[None], axis=-1)
            assert distance[~np.eye(10, dtype=bool)].min() > least


def test_palettes_of_any_size_agree_and_neighbours_differ():
    colours = plots.palette(1000)
    assert colours.shape == (1000, 3) and colours.min() >= 0 and colours.max() <= 1
    assert np.array_equal(plots.palette(10), colours[:10]) and len(plots.palette(3)) == 3
    assert len(np.unique(colours.round(6), axis=0)) == 1000
    assert np.linalg.norm(np.diff(oklab(colours, np.eye(3)), axis=0), axis=1).min() > 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_panels_have_one_legend_and_a_map_for_each_model(channels):
    cells = [[class_map(0), class_map(1)], [class_map(2), None]]
    pictures = np.random.default_rng(0).random((3, 8, 8, channels))
    fig = plots.panels(
        cells,
        extent=EXTENT,
        anchors=ANCHORS,
        class_names=NAMES,
        row_names=["resnet20", "vgg11"],
        column_names=["seed 0", "seed 1"],
        pictures=pictures,
        picture_names=["a", "b", "c"],
    )
    shown = pixels(fig)
    assert shown.std() > 0.1
    maps = [ax for ax in fig.axes if ax.collections]
    assert len(maps) == 3 and len(fig.legends) == 1 and len(fig.axes) == 4 + 3
    assert [ax.get_title() for ax in maps] == ["seed 0", "seed 1", ""]
    for ax in maps:
        marks = np.array([line.get_xydata()[0] for line in ax.lines])
        assert np.array_equal(marks, ANCHORS)
        assert [line.get_marker() for line in ax.lines] == ["o", "^", "X"]


def test_nothing_is_drawn_over_the_axis_labels(tmp_path):
    pictures = np.zeros((3, 8, 8, 3))
    fig = plots.panels([[class_map()]], extent=EXTENT, anchors=ANCHORS, class_names=NAMES, pictures=pictures,
                       title="one network")  # fmt: skip
    plots.save(fig, tmp_path / "single")
    renderer = FigureCanvasAgg(fig).get_renderer()
    label = fig.axes[0].xaxis.label.get_window_extent(renderer)
    assert "distance along" in fig.axes[0].get_xlabel()
    assert not label.overlaps(fig.legends[0].get_window_extent(renderer))


def test_the_legend_names_the_classes_that_occur_and_at_most_twenty():
    fig, _ = plots.figure()
    drawn = plots.legend(fig, np.array([[2, 2], [5, 2]]), NAMES, plots.palette(10))
    assert [text.get_text() for text in drawn.get_texts()] == ["class 2", "class 5"]
    labels = np.repeat(np.arange(50), np.arange(1, 51))
    drawn = plots.legend(fig, [labels[:600], labels[600:]], [str(c) for c in range(50)], plots.palette(50))
    assert [text.get_text() for text in drawn.get_texts()] == [str(c) for c in range(49, 29, -1)]


def test_a_similarity_matrix_prints_its_numbers_intervals_and_gaps():
    fig, ax = plots.figure()
    matrix = [[0.864, -0.05], [-0.05, None]]
    plots.similarity_matrix(ax, matrix, ["a", "b"], low=[[0.85, -0.06], [-0.06, None]],
                            high=[[0.871, -0.04], [-0.04, None]], label="agreement")  # fmt: skip
    texts = [text.get_text() for text in ax.texts]
    assert texts == [".86", "[.85, .87]", "-.05", "[-.06, -.04]", "-.05", "[-.06, -.04]", "–"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    assert fig.axes[1].get_ylabel() == "agreement"
    pixels(fig)
    with pytest.raises(ValueError, match="3 names"):
        plots.similarity_matrix(ax, matrix, ["a", "b", "c"])


def test_curves_draw_lines_bands_and_gaps():
    fig, ax = plots.figure()
    x = np.linspace(0, 1, 5)
    plots.curves(ax, x, {"line": (x, x - 1, x + 1), "star": [0, None, 1, 2, 3]}, xlabel="t", ylabel="loss")
    assert len(ax.lines) == 2 and len(ax.collections) == 1 and np.isnan(ax.lines[1].get_ydata()[1])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["line", "star"]
    pixels(fig)
    with pytest.raises(ValueError, match="short"):
        plots.curves(ax, x, {"short": [1, 2]})


def test_saved_figures_are_whole_repeatable_and_of_type_42(tmp_path):
    def draw():
        fig, ax = plots.figure()
        plots.curves(ax, [0, 1, 2], {"loss": [1, 2, 3]}, xlabel="t")
        return fig

    paths = plots.save(draw(), tmp_path / "new" / "a.b", ("png", "pdf", "svg"))
    assert [path.name for path in paths] == ["a.b.png", "a.b.pdf", "a.b.svg"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    for path, again in zip(paths, plots.save(draw(), tmp_path / "again", ("png", "pdf", "svg"))):
        assert path.read_bytes() == again.read_bytes()
    assert b"/Type3" not in paths[1].read_bytes() and b"/CIDFontType2" in paths[1].read_bytes()
    image = matplotlib.image.imread(io.BytesIO(paths[0].read_bytes()))
    assert image.shape[1] > 1000  # 6 inches at 200 dots
    with pytest.raises(UsageError, match="png, pdf, svg"):
        plots.save(draw(), tmp_path / "c", ("tiff",))
    (tmp_path / "file").touch()
    with pytest.raises(FileProblem, match="cannot write"):
        plots.save(draw(), tmp_path / "file" / "c")


def test_drawing_leaves_the_settings_of_others_alone():
    before = dict(matplotlib.rcParams)
    fig, ax = plots.figure()
    plots.region_map(ax, *class_map(), extent=EXTENT, colours=plots.palette(10), anchors=ANCHORS)
    assert dict(matplotlib.rcParams) == before
    assert ax.xaxis.label.get_fontsize() == plots.STYLE["axes.labelsize"]


def test_neither_torch_nor_pyplot_is_loaded():
    code = (
        "import sys, landscape.plots, landscape.results, landscape.claims, landscape.metrics;"
        "assert not {'torch', 'matplotlib.pyplot'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_maps_that_cannot_be_drawn_are_refused():
    _, ax = plots.figure()
    with pytest.raises(ValueError, match="flat map"):
        plots.region_map(ax, np.zeros(25, int), extent=EXTENT, colours=plots.palette(10))
    with pytest.raises(ValueError, match="no colour"):
        plots.region_map(ax, np.full((5, 5), 10), extent=EXTENT, colours=plots.palette(10))


def test_interval_figures_say_what_their_intervals_are_and_show_an_open_end():
    groups = [{"group": "a", "m": {"value": 1.0, "low": 0.5, "high": None}},
              {"group": "b", "m": {"value": 2.0, "low": 1.5, "high": 2.5}},
              {"group": "c", "m": {"value": None, "low": None, "high": None}}]
    models = [{"group": "b", "m": {"value": v}} for v in (1.9, 2.1)]
    fig = plots.interval_figure(groups, models * 2, {"m": "margin"}, "7 images")
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.texts] == ["", "none"] and ax.texts[0].arrow_patch is not None
    assert fig.get_supxlabel() == "7 images; grey: each network"
    assert plots.interval_figure(groups, [], {"m": "margin"}, "7 images").get_supxlabel() == "7 images"
    many = {f"m{k}": f"measure {k}" for k in range(5)}
    wide = plots.interval_figure([{"group": "a", **{m: groups[1]["m"] for m in many}}], [], many, "7 images")
    assert [ax.get_xlabel() for ax in wide.axes] == [*many.values(), ""] and not wide.axes[5].axison
    assert len({ax.get_subplotspec().rowspan.start for ax in wide.axes}) == 2


@pytest.mark.parametrize(("count", "grey"), [(4, 0), (5, 10)])
def test_of_many_curves_those_of_two_groups_are_grey(count, grey):
    names = [f"g{i}" for i in range(count)]
    series = {(a, b): [(x, 0.5, 0.4, 0.6) for x in (10, 20)] for i, a in enumerate(names) for b in names[i:]}
    fig = plots.convergence_figure({"agreement": {"planes": series, "resolution": series}}, 0.9)
    assert "90%" in fig.get_supxlabel()
    for ax in fig.axes:
        assert sum(line.get_color() == "0.75" for line in ax.lines) == grey
        assert len(ax.lines) == len(series)
    words = [t.get_text() for t in fig.axes[1].get_legend().get_texts()]
    assert words == ["two groups"] * (grey > 0) + [" – ".join(p) for p in series if not grey or p[0] == p[1]]
