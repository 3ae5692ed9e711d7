"""Spectra: the published geometry, the Marchenko-Pastur law, and the program; drawing saved runs again."""

import numpy as np
import pytest

from double_descent import plot, spectra
from landscape import runs
from landscape.errors import FileProblem, UsageError

# Of the first N points (Schaeffer et al. 2023, seed 0): variances along principal axes; smallest singular values.
GEOMETRY = {1: (89.0,), 2: (119.1, 3.35), 3: (87.2, 2.52, 0.354), 4: (66.5, 2.64, 0.644), 10: (43.5, 5.03, 2.58),
            25: (38.3, 3.90, 1.76), 100: (29.5, 4.04, 2.00), 1500: (26.5, 4.14, 2.02)}  # fmt: skip
SMALLEST = {1: 9.44, 2: 2.59, 3: 1.03, 4: 1.60, 5: 1.61, 6: 2.34, 100: 14.1}


def test_the_published_geometry():
    held = spectra.geometry()
    for n, golden in GEOMETRY.items():
        i = spectra.SUBSETS.index(n)
        assert np.allclose(held["variances"][i, :len(golden)], golden, rtol=6e-3), n
        assert (held["variances"][i, len(golden):] == 0).all()
        moment = held["points"][:n].T @ held["points"][:n] / n
        for variance, axis in zip(held["variances"][i], held["axes"][i][:len(golden)]):
            assert np.allclose(moment @ axis, variance * axis) and np.isclose(np.linalg.norm(axis), 1)
    for n, golden in SMALLEST.items():
        i = spectra.SUBSETS.index(n)
        assert abs((n * held["variances"][i, min(n, 3) - 1])**0.5 - golden) < 6e-3 * golden, n


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1, 2, 10])
def test_the_law_is_a_density_with_the_right_moments(ratio):
    """Its integral is 1, and the mean of all D eigenvalues is 1, so that of the non-zero ones is max(1, ratio)."""
    low, high = (1 - ratio**0.5)**2, (1 + ratio**0.5)**2
    angle = (np.arange(200_000) + 0.5) / 200_000 * np.pi  # x at equal angles: the ends, and a pole at 0, are tame
    x, step = (low + high) / 2 - (high - low) / 2 * np.cos(angle), np.pi / 200_000
    weight = spectra.marchenko_pastur(x, ratio) * (high - low) / 2 * np.sin(angle) * step
    assert abs(weight.sum() - 1) < 1e-3
    assert abs((weight * x).sum() - max(1, ratio)) < 1e-3 * max(1, ratio)
    assert spectra.marchenko_pastur(np.array([low / 2 + 1e-9, high * 1.01]), ratio)[1] == 0


@pytest.mark.parametrize("n, d", [(60, 20), (20, 60)])
def test_eigenvalues_are_those_of_the_law(n, d):
    values = spectra.eigenvalues(n, d, 2000, 1)
    assert len(values) >= 2000 and values.min() > 0
    assert abs(values.mean() - max(1, d / n)) < 0.02 * max(1, d / n)
    low, high = (1 - (d / n)**0.5)**2, (1 + (d / n)**0.5)**2
    assert ((values > 0.6 * low) & (values < 1.2 * high)).mean() > 0.99


def test_the_smallest_singular_value_dips_at_n_equal_d():
    held = spectra.smallest(6, 40, 1)
    median = np.median(held["sigma_min"], axis=1)
    assert held["sizes"][median.argmin()] == 6
    wide = held["sizes"] > 24
    edge = np.abs(held["sizes"][wide]**0.5 - 6**0.5)
    assert (median[wide] > edge).all() and np.allclose(median[wide], edge, rtol=0.25)  # of 6 features, not of many
    one = spectra.smallest(6, 2, 1)["sigma_min"]
    assert np.array_equal(one, held["sigma_min"][:, :2])


def test_a_run_is_drawn_and_drawn_again(tmp_path, capsys):
    assert spectra.main(["--smoke", "--repeats", "5", "--runs", str(tmp_path)]) == 0
    (folder,) = tmp_path.glob("smoke/double_descent/spectra*")
    assert runs.read_json(folder / "results.json")["variances"]["3"][2] == pytest.approx(0.354, rel=6e-3)
    names = {"geometry", "sigma_min", "eigenvalues"}
    assert {p.stem for p in folder.glob("figures/*.png")} == names
    assert plot.main([str(tmp_path), "--formats", "svg", "--plot_path", str(tmp_path / "out")]) == 0
    assert {p.name for p in tmp_path.glob("out/*/*")} == {f"{n}.svg" for n in names}
    with pytest.raises(FileProblem, match="no finished run"):
        plot.main([str(tmp_path / "out")])
    with pytest.raises(FileProblem, match="does not exist"):
        plot.main([str(tmp_path / "nowhere")])


def test_every_kind_of_run_has_its_figures():
    import importlib

    for target in plot.FIGURES.values():
        module, function = target.split(":")
        assert callable(vars(importlib.import_module(module))[function])


@pytest.mark.parametrize("flags", [["--sides", "0"], ["--sides", "x"], ["--dimensions", "9999"]])
def test_wrong_sizes_are_refused(flags, tmp_path):
    with pytest.raises(UsageError, match=flags[0]):
        spectra.main([*flags, "--runs", str(tmp_path)])
