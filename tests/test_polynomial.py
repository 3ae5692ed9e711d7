"""Polynomial regression: the tutorial's published numbers, a fit at a time as a slow twin, bases, pairing, refusals."""

import csv
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from double_descent import polynomial
from landscape import runs
from landscape.errors import UsageError

DEGREES = [*range(1, 26), 30, 40, 50, 100, 200]
# Mean and median test error as published (recomputed from the tutorial's mse.csv), to the digits printed.
PUBLISHED = {1: "0.519 0.511", 5: "1.33 0.79", 10: "6.3e4 14", 14: "8.5e9 2.4e5", 15: "3.4e9 6.7e6",
             16: "1.6e9 6.4e4", 20: "432 30", 25: "0.67 0.46", 30: "0.359 0.351", 50: "0.515 0.520",
             100: "0.579 0.553", 200: "0.579 0.556"}  # fmt: skip
# Single fits of mse.csv: (P, repeat): (train, test).
FITS = {(1, 0): (0.46817350145461417, 0.49786532765524255), (1, 29): (0.4177152009524153, 0.5096542814099446),
        (7, 28): (0.12802386158943993, 6.558929431584464), (10, 7): (0.05957911488081311, 1882375.1471683504),
        (12, 3): (1.885816061687883e-05, 73054443665.17859)}  # fmt: skip


def made(*argv):
    """(results, {curve's file: arrays}) of a run in a folder that the caller names."""
    assert polynomial.main(list(argv)) == 0
    (folder,) = Path(argv[argv.index("--runs") + 1]).glob("double_descent/*")
    results = runs.read_json(folder / "results.json")
    return folder, results, {c["arrays"]: runs.read_arrays(folder / "arrays" / c["arrays"]) for c in results["curves"]}


def settings(**changes):
    return SimpleNamespace(**{"as_published": False, "data_seed": 1, "repeats": 4, "noise": 0.0, "gallery": False,
                              "level": 0.95, **changes})  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return made("--as_published", "--runs", str(tmp_path_factory.mktemp("runs")))


def last_digit(text):
    """One unit in the last digit of a number as it is printed above."""
    digits, _, power = text.partition("e")
    return 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))


@pytest.mark.parametrize("degree", PUBLISHED)
def test_the_published_means_and_medians_come_out(published, degree):
    _, _, arrays = published
    test = arrays["polynomial.npz"]["test_mse"][:, DEGREES.index(degree)]
    assert test.shape == (30,)
    for ours, theirs in zip((test.mean(), np.median(test)), PUBLISHED[degree].split()):
        assert abs(ours - float(theirs)) <= last_digit(theirs), (degree, ours, theirs)


@pytest.mark.parametrize("fit", FITS)
def test_single_published_fits_come_out(published, fit):
    _, _, arrays = published
    place = fit[1], DEGREES.index(fit[0])
    for name, theirs in zip(("train_mse", "test_mse"), FITS[fit]):
        assert abs(arrays["polynomial.npz"][name][place] / theirs - 1) < 1e-6


def test_published_training_errors_and_minimum(published):
    _, results, _ = published
    train = dict(zip(DEGREES, results["curves"][0]["train"]["mean"]))
    assert abs(train[1] - 0.478) <= 1e-3 and abs(train[14] - 0.0039) <= 1e-4 and train[15] < 1e-16
    test = dict(zip(DEGREES, results["curves"][0]["test"]["mean"]))
    assert min(test, key=test.get) == 30 and max(test, key=test.get) == 14
    curve = results["curves"][0]
    assert curve["first"]["degree"] == 1 and curve["second"]["degree"] == 30
    assert {c["degree"] for c in curve["contrast"]} == {p for p in DEGREES if p > 15}


@pytest.mark.parametrize("basis", polynomial.BASES)
def test_the_stacked_fits_are_those_of_a_plain_loop(basis):
    args = settings(noise=0.1)
    degrees = [1, 2, 5, 9, 14, 40]
    found = polynomial.measure(args, basis, 12, degrees)
    x, y = polynomial.training_sets(args, 12, degrees)
    grid = np.linspace(-1, 1, 1000)
    for i, count in enumerate(degrees):
        for r in range(args.repeats):
            a = np.stack([polynomial.features(basis, np.full((1, 1), v), count, 1, [r]).ravel() for v in x[i, r]])
            b = np.stack([polynomial.features(basis, np.full((1, 1), v), count, 1, [r]).ravel() for v in grid])
            beta = np.linalg.lstsq(a, y[i, r], rcond=None)[0]  # of least norm too
            for name, value in (("train", np.mean((a @ beta - y[i, r]) ** 2)),
                                ("test", np.mean((b @ beta - 2 * grid - np.cos(25 * grid)) ** 2))):
                ours = found[f"{name}_mse"][r, i]
                assert abs(ours - value) <= 1e-5 * value + 1e-12, (basis, count, r, name)


@pytest.mark.parametrize("basis", ["orthonormal", "fourier"])
def test_a_basis_is_orthonormal_in_the_mean_over_the_interval(basis):
    nodes, weights = np.polynomial.legendre.leggauss(400)
    values = polynomial.features(basis, nodes, 60, 0, [])
    assert np.allclose(values.T @ (weights[:, None] / 2 * values), np.eye(60), atol=1e-10)


def test_legendre_has_the_right_polynomials_and_no_constant():
    x = np.linspace(-1, 1, 7)
    values = polynomial.features("legendre", x, 3, 0, [])
    assert np.allclose(values.T, [x, (3 * x**2 - 1) / 2, (5 * x**3 - 3 * x) / 2])


def test_relu_features_are_nested_and_each_repeats_own():
    x = np.linspace(-1, 1, 50) * np.ones((3, 1))
    few, many = (polynomial.features("relu", x, p, 1, range(3)) for p in (4, 9))
    assert few.shape == (3, 50, 4) and np.array_equal(few, many[..., :4])
    assert not np.array_equal(many[0], many[1])
    assert np.array_equal(many[2:], polynomial.features("relu", x[2:], 9, 1, [2]))
    slopes = np.diff(many, axis=1) / np.diff(x, axis=1)[..., None]
    assert set(np.abs(slopes).max(axis=1).round(9).ravel()) <= {0, 1}


def test_training_sets_are_paired_nested_and_published_ones_are_not():
    x, y = polynomial.training_sets(settings(), 8, [1, 2, 3])
    assert x.shape == y.shape == (3, 4, 8)
    assert (x == x[0]).all() and (np.abs(x) <= 1).all() and np.array_equal(y, 2 * x + np.cos(25 * x))
    assert len(np.unique(x)) == 4 * 8
    assert np.array_equal(polynomial.training_sets(settings(repeats=2), 5, [9])[0][0], x[0, :2, :5])
    noisy = polynomial.training_sets(settings(noise=0.5, repeats=400), 8, [1])
    assert np.array_equal(noisy[0][0, :4], x[0]) and abs((noisy[1] - polynomial.target(noisy[0])).std() - 0.5) < 0.03
    x, _ = polynomial.training_sets(settings(as_published=True, data_seed=0), 8, [1, 2, 3])
    np.random.seed(0)
    assert np.array_equal(x, [[np.random.uniform(-1, 1, 8) for _ in range(4)] for _ in range(3)])


def test_the_bases_of_a_run_share_their_data(tmp_path):
    """With one feature, x itself, both Legendre bases fit the same line."""
    folder, results, arrays = made("--repeats", "5", "--degrees", "1,4,20", "--gallery", "--runs", str(tmp_path))
    one, two = (arrays[c["arrays"]] for c in results["curves"])
    assert [c["basis"] for c in results["curves"]] == ["legendre", "orthonormal"]
    assert np.allclose(one["test_mse"][:, :2], two["test_mse"][:, :2]) and one["test_mse"].shape == (5, 3)
    assert not np.allclose(one["test_mse"][:, 2], two["test_mse"][:, 2])
    assert np.array_equal(one["fits_x"], two["fits_x"]) and list(one["fits_degrees"]) == [1, 4, 20]
    truth = polynomial.target(np.linspace(-1, 1, 1000))
    assert np.allclose(((one["fits"] - truth) ** 2).mean(2), one["test_mse"][:3])
    assert {p.name for p in (folder / "figures").iterdir()} == {
        "polynomial.png", "polynomial_gallery-legendre-15.png", "polynomial_gallery-orthonormal-15.png"}
    for curve in results["curves"]:
        test = arrays[curve["arrays"]]["test_mse"]
        assert np.allclose(curve["test"]["median"], np.median(test, 0))
        (row,) = curve["contrast"]
        first = test[:, [1, 4].index(curve["first"]["degree"])]
        assert abs(row["ratio"] / np.exp(np.log(test[:, 2] / first).mean()) - 1) < 1e-9
        assert row["low"] <= row["ratio"] <= row["high"]
    with open(folder / "polynomial.csv") as f:
        table = list(csv.DictReader(f))
    assert len(table) == 2 * 3
    assert float(table[4]["test_mean"]) == results["curves"][1]["test"]["mean"][1]


def test_a_sweep_over_training_points_and_one_repeat(tmp_path):
    folder, results, arrays = made("--points", "4-5,30", "--repeats", "1", "--degrees", "1-6",
                                   "--basis", "fourier,relu", "--runs", str(tmp_path))  # fmt: skip
    assert [(c["basis"], c["points"]) for c in results["curves"]] == [
        (b, n) for b in ("fourier", "relu") for n in (4, 5, 30)]
    assert (folder / "figures/polynomial_points.png").exists()
    assert results["curves"][2]["second"] is None and results["curves"][2]["contrast"] == []
    assert results["curves"][0]["contrast"][0]["low"] is None


def test_the_second_descent_of_legendre_polynomials_and_the_lack_of_one_at_norm_1(tmp_path):
    _, results, _ = made("--degrees", "1-14,30", "--runs", str(tmp_path))
    legendre, orthonormal = (c["contrast"][0] for c in results["curves"])
    assert legendre["high"] < 1 < orthonormal["low"]


@pytest.mark.parametrize("argv, said", [
    (["--degrees", "0"], "0 is not a positive whole number"), (["--points", "0"], "not a positive whole number"),
    (["--degrees", "5-2"], "5-2 does not ascend"), (["--degrees", "x"], "'x' is not a whole number"),
    (["--degrees", "1-9999"], "9999 is above 5000"), (["--repeats", "0"], "not a positive"),
    (["--basis", "legendr"], "did you mean legendre"), (["--noise", "-1"], "at least 0"),
    (["--as_published", "--basis", "relu"], "leave --basis"), (["--as_published", "--noise", "1"], "leave --basis"),
])  # fmt: skip
def test_refusals(argv, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said):
        polynomial.main(argv)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_and_names(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert polynomial.main(["--dry_run"]) == 0 and list(tmp_path.iterdir()) == []
    assert "100 repeats of 15 points, 30 numbers of features up to 200" in capsys.readouterr().out
    own, given = (polynomial.resolved(argv) for argv in ([], ["--repeats", "100", "--basis", "legendre,orthonormal"]))
    assert own.differs == given.differs == {}
    assert polynomial.resolved(["--as_published"]).differs == {"as_published": True}


def test_it_loads_no_torch(tmp_path):
    code = (f"from double_descent import polynomial\npolynomial.main(['--repeats', '2', '--runs', {str(tmp_path)!r}])\n"
            "import sys\nassert 'torch' not in sys.modules and 'wandb' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=True, capture_output=True)
