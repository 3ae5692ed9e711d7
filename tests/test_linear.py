"""Linear double descent: published numbers, plain twins that multiply the test rows out, closed forms, bad input."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from double_descent import fits, linear, tables
from landscape import runs
from landscape.errors import ContentError, FileProblem, UsageError

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 50
PUBLISHED, RIGHT = fits.Rules(False, "none", False), fits.Rules(True, "train", True)
RULES = {"published": PUBLISHED, "right": RIGHT, "scaled by all": fits.Rules(True, "all", True),
         "centred only": fits.Rules(True, "none", True), "no intercept": fits.Rules(False, "train", True)}  # fmt: skip


def settings(sizes, modes=(1, 2, 3), budgets=(0, 0.1, 1, 10)):
    return fits.Settings(tuple(sizes), (0.01, 0.1, 1.0), tuple(modes), (1.0, 10.0), tuple(budgets), (1e-3, 0.1, 10.0))


def table(name="diabetes"):
    return tables.load(name, None)


# ---- the published numbers (Schaeffer et al. 2023, computed with the authors' procedure) ---------------------------

# Mean (median) test MSE at N = 1, D - 1, D, D + 1, 39; mean smallest singular value at 1, D, 39; mean test MSE at N = D
# with cut-offs .01, .1, 1 and with k modes; without residuals at N = 1; mean training MSE at 39; attacks with c = 10.
GOLDEN = {
    "diabetes": {
        "ideal": "26004", "mean": "3.53e4 2.49e6 5.98e7 4.22e5 4.08e4", "median": "3.24e4 3.37e5 5.08e5 1.60e5 3.63e4",
        "sigma": ".143 .00264 .0217", "cutoff": "1.75e5 3.85e4 2.91e4", "mode": {1: "2.96e4", 6: "4.87e4"},
        "noresidual": "2.17e3", "train": "1.92e4", "rows": "1.9e13", "targets": "5.3e7",
        "bias": {1: "2.17e3", 5: "552", 9: "156"},
    },
    "student_teacher": {
        "ideal": "11.948", "mean": "24.7 1.27e3 1.59e5 507 24.8", "median": "24.8 286 1.0e3 169 23.8",
        "sigma": "4.25 .148 1.99", "cutoff": "9.36e3 535 43.2", "mode": {5: "23.2", 15: "31.2"}, "noresidual": "11.9",
        "train": "6.16", "rows": "1.6e7", "targets": "2.2e6", "bias": {1: "11.9"},
    },
    "who": {
        "ideal": "58.252", "mean": "4.46e10 1.5e5 2.19e6 1.94e5 437", "median": "4.0e7 3.1e4 6.2e4 1.0e4 280",
        "sigma": "1.13e7 .109 3.39", "cutoff": "5.26e5 1.01e5 5.53e4", "mode": {1: "1.09e5", 6: "1.35e4"},
        "noresidual": "4.22e10", "train": "28.3", "rows": "2.5e7", "targets": "1.8e7", "bias": {},
    },
}  # fmt: skip


def equal(value, printed):
    """Is value the number as it is printed, or one off in its last digit?"""
    digits = len(printed.split("e")[0].replace(".", "").lstrip("0"))
    unit = 10.0 ** (np.floor(np.log10(float(printed))) - digits + 1)
    return abs(value - float(printed)) <= 1.5 * unit


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_as_published_gives_the_published_numbers(name):
    try:
        held = table(name)
    except FileProblem as e:
        pytest.skip(f"{name}: {e}")
    golden, dim = GOLDEN[name], held.x.shape[1]
    scene = fits.make_scene(held, PUBLISHED, REPEATS, 0, True, False)
    sizes = [1, 5, 9, dim - 1, dim, dim + 1, 39]
    sizes = sorted(set(sizes))
    found = fits.measure(scene, settings(sizes, golden["mode"], (0.0, 10.0)))
    at = {n: i for i, n in enumerate(sizes)}
    five, mean = [at[n] for n in (1, dim - 1, dim, dim + 1, 39)], found["test_mse"].mean(axis=1)
    pairs = [((scene.residual**2).mean(), golden["ideal"]), (found["train_mse"][at[39]].mean(), golden["train"]),
             (found["noresidual_test_mse"][0].mean(), golden["noresidual"]),
             (found["attack_mode_test_mse"][1, at[dim]].mean(), golden["rows"]),
             (found["attack_target_test_mse"][1, at[dim]].mean(), golden["targets"]),
             *zip(mean[five], golden["mean"].split()),
             *zip(np.median(found["test_mse"], axis=1)[five], golden["median"].split()),
             *zip(found["sigma_min"].mean(axis=1)[[at[n] for n in (1, dim, 39)]], golden["sigma"].split()),
             *zip(found["cutoff_test_mse"][:, at[dim]].mean(axis=1), golden["cutoff"].split()),
             *zip(found["mode_test_mse"][:, at[dim]].mean(axis=1), golden["mode"].values()),
             *((found["bias"][at[n]].mean(), value) for n, value in golden["bias"].items())]  # fmt: skip
    assert [pair for pair in pairs if not equal(*pair)] == []
    # From N = D on nothing is left without residuals: 1e-27, 1e-28 and, of columns of such different sizes, 6e-17.
    none = found["noresidual_test_mse"][at[dim]:].mean(axis=1)
    assert (none < {"diabetes": 1e-26, "student_teacher": 1e-27, "who": 3e-16}[name]).all()
    if name == "student_teacher":
        assert equal(found["bias_as_published"][0].mean(), ".0109")
    if name == "diabetes":  # its columns are centred, so that the mean of the bias is 0 and its figure is empty
        assert found["bias_as_published"].max() < 1e-20


# ---- against plain twins -------------------------------------------------------------------------------------------

def plain(held, rules, rows, others, chosen):
    """All measures of one training set by multiplying its test rows out."""
    ones = [np.ones(len(held.y))] * rules.intercept
    full = np.column_stack([*ones, held.x])
    ideal = np.linalg.lstsq(full, held.y, rcond=None)[0]
    e = held.y - full @ ideal
    x, y, best = held.x, held.y, full @ ideal
    if rules.intercept:
        x = x - x[rows].mean(axis=0)
    if rules.scaling == "train":
        deviation = np.sqrt((x[rows]**2).mean(axis=0))
        x = np.where(deviation > 0, x / np.where(deviation > 0, deviation, 1), 0)
    elif rules.scaling == "all":
        x = x / held.x.std(axis=0)
    a, t = x[rows], y[rows]
    mean, mean_best = (t.mean(), best[rows].mean()) if rules.intercept else (0.0, 0.0)
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    keep = s > 1e-10 * s[0]
    u, s, vt = u[:, keep], s[keep], vt[keep]
    kappa = u.T @ (t - mean) / s
    least = [c * s[0] if rules.relative else c for c in chosen.cutoffs]

    def error(coefficients, which=others, target=y, shift=mean):
        return x[which] @ vt.T @ coefficients + shift - target[which]

    def mse(*args, **more):
        return (error(*args, **more)**2).mean()

    out = {"test_mse": mse(kappa), "train_mse": mse(kappa, rows), "sigma_min": s[-1]}
    for k, c in enumerate(least):
        out[f"cutoff_test_mse-{k}"] = mse(kappa * (s >= c))
        out[f"cutoff_train_mse-{k}"] = mse(kappa * (s >= c), rows)
    for k, count in enumerate(chosen.modes):
        v = vt[:count].T  # the test rows themselves are projected
        out[f"mode_test_mse-{k}"] = ((x[others] @ v @ v.T @ (vt.T @ kappa) + mean - y[others])**2).mean()
    clean = u.T @ (best[rows] - mean_best) / s
    out["noresidual_test_mse"] = mse(clean, target=best, shift=mean_best)
    bias = error(clean, target=best, shift=mean_best)
    variance = x[others] @ vt.T @ (kappa - clean) + mean - mean_best
    out |= {"bias": (bias**2).mean(), "variance": (variance**2).mean(), "cross": 2 * (bias * variance).mean(),
            "noise_cross": -2 * ((bias + variance) * e[others]).mean(), "bias_as_published": bias.mean()**2}
    along = x[others] @ vt.T
    for r, energy in enumerate((along**2).mean(axis=0)):
        out |= {f"mode_energy-{r}": energy, f"mode_residual-{r}": abs(u[:, r] @ e[rows]),
                f"mode_variance-{r}": energy * (u[:, r] @ e[rows] / s[r])**2, f"sigma-{r}": s[r]}
    out["outside"] = 1 - (along**2).sum() / (x[others]**2).sum()
    for k, ratio in enumerate(chosen.ratios):
        # Rows are moved, the ideal model says their targets, and their residuals stay.
        with np.errstate(divide="ignore"):
            shrink = np.minimum(1, np.sqrt(ratio * s**2 / len(rows) / (along**2).mean(axis=0)))
        moved = x[others] + (along * (shrink - 1)) @ vt
        width = np.ptp(x, axis=0)
        slope = ideal[rules.intercept:] * np.where(width > 0, np.ptp(held.x, axis=0) / np.where(width > 0, width, 1), 0)
        target = y[others] + (moved - x[others]) @ slope
        out[f"feature_test_mse-{k}"] = ((moved @ vt.T @ kappa + mean - target)**2).mean()
    unit = (s**2).sum() / x.shape[1]
    left_out = []
    for k, penalty in enumerate(chosen.penalties):
        lam = penalty * unit
        beta = np.linalg.solve(a.T @ a + lam * np.eye(a.shape[1]), a.T @ (t - mean))
        out[f"ridge_test_mse-{k}"] = ((x[others] @ beta + mean - y[others])**2).mean()
        out[f"ridge_train_mse-{k}"] = ((a @ beta + mean - t)**2).mean()
        lone = []
        for i in range(len(rows)):
            rest = np.arange(len(rows)) != i
            b, z = a[rest], t[rest]
            m = b.mean(axis=0) if rules.intercept else 0
            beta = np.linalg.solve((b - m).T @ (b - m) + lam * np.eye(b.shape[1]),
                                   (b - m).T @ (z - z.mean() if rules.intercept else z))
            lone.append((a[i] - m) @ beta + (z.mean() if rules.intercept else 0) - t[i])
        left_out.append(np.mean(np.square(lone)))
    best = int(np.flatnonzero(left_out <= np.min(left_out) * (1 + 1e-9))[-1])
    out["ridge_loo_test_mse"], out["ridge_loo_index"] = out[f"ridge_test_mse-{best}"], best
    size = np.median(np.linalg.norm(a, axis=1)) if rules.relative else 1
    norm = y.std() if rules.relative else 1
    for k, budget in enumerate(chosen.budgets):
        found = {1: [], -1: []}
        for sign in found:
            moved = x[others] + sign * budget * size * vt[-1]
            changed = t + sign * budget * norm * u[:, -1]
            centre = changed.mean() if rules.intercept else 0
            beta = vt.T @ (u.T @ (changed - centre) / s)
            found[sign] = [((moved @ vt.T @ kappa + mean - y[others])**2).mean(),
                           ((x[others] @ beta + centre - y[others])**2).mean()]
        both = np.array([found[1], found[-1]])
        rows_mse, targets_mse = both.max(axis=0) if rules.relative else both[0]
        out |= {f"attack_mode_test_mse-{k}": rows_mse, f"attack_target_test_mse-{k}": targets_mse}
        if rules.relative:
            slope = vt.T @ kappa
            step = budget * size * slope / np.linalg.norm(slope)
            e_test = error(kappa)
            worst = x[others] + np.sign(e_test)[:, None] * step
            out[f"attack_worst_test_mse-{k}"] = ((worst @ slope + mean - y[others])**2).mean()
    return out


@pytest.mark.parametrize("name, kind", [("diabetes", "published"), ("student_teacher", "published"),
                                        ("diabetes", "right"), ("student_teacher", "right"),
                                        ("diabetes", "centred only"), ("student_teacher", "scaled by all"),
                                        ("student_teacher", "no intercept")])  # fmt: skip
def test_every_measure_is_that_of_a_plain_fit(name, kind):
    held, rules, sizes = table(name), RULES[kind], (2, 5, 12, 21, 30)
    scene = fits.make_scene(held, rules, 3, 7, rules is PUBLISHED, False)
    chosen = settings(sizes)
    found = fits.measure(scene, chosen)
    checked = 0
    for i, size in enumerate(sizes):
        for b in range(3):
            rows, others = scene.order[b, -size:], scene.order[b, :-size]
            for key, value in plain(held, rules, rows, others, chosen).items():
                measure, _, k = key.partition("-")
                array = found[measure]
                ours = array[i, b] if not k else array[i, b, int(k)] if measure in fits.MODES else array[int(k), i, b]
                # What is 0 up to rounding: an error's square, and a product with such an error.
                least = (1e-12 if measure in ("cross", "noise_cross") else 1e-18) * np.mean(held.y**2)
                least = 1e-12 if measure == "outside" else least
                assert abs(ours - value) <= 1e-8 * abs(value) + least, (key, size, ours, value)
                checked += 1
    assert checked > 15 * 40 and set(found) <= {k.partition("-")[0] for k in plain(
        held, rules, rows, others, chosen)} | {"mode_train_mse", "noresidual_train_mse"}


def test_the_excess_is_bias_variance_and_cross_terms():
    held = table("student_teacher")
    scene = fits.make_scene(held, RIGHT, 5, 1, False, False)
    sizes = (3, 15, 21, 30)
    found = fits.measure(scene, settings(sizes))
    for i, size in enumerate(sizes):
        for b in range(5):
            ideal = (scene.residual[scene.order[b, :-size]]**2).mean()
            parts = sum(found[k][i, b] for k in ("bias", "variance", "cross", "noise_cross"))
            assert abs(found["test_mse"][i, b] - ideal - parts) < 1e-9 * found["test_mse"][i, b]


def test_leading_modes_of_the_model_and_of_the_test_rows_are_one_operator():
    """Factors 1 and 2 as published: a cut-off between two singular values is the same as that many leading modes."""
    held = table("student_teacher")
    scene = fits.make_scene(held, PUBLISHED, 1, 0, True, False)
    sigma = fits.fit(scene, 20).sigma[0]
    cuts = tuple((sigma[k - 1] + sigma[k]) / 2 for k in (5, 10, 15))
    found = fits.measure(scene, fits.Settings((20,), cuts, (5, 10, 15), (1.0,), (0.0,), (1.0,)))
    assert np.allclose(found["cutoff_test_mse"], found["mode_test_mse"], rtol=1e-12)
    # Ours changes the test rows alone, and is another thing.
    assert not np.isclose(found["feature_test_mse"], found["cutoff_test_mse"], rtol=0.01).any()


def test_no_bias_from_n_equal_d_on_and_an_interpolating_fit_below():
    for rules, first in ((PUBLISHED, 10), (RIGHT, 11)):
        scene = fits.make_scene(table(), rules, 10, 1, False, False)
        found = fits.measure(scene, settings(range(2, 20)))
        level = np.mean(table().y**2)
        assert found["bias"][first - 2:].max() < 1e-20 * level < found["bias"][:first - 2].min()
        assert found["train_mse"][:first - 1].max() < 1e-20 * level < found["train_mse"][first - 1:].min()
        assert np.isclose(found["outside"][first - 2:], 0, atol=1e-9).all()


def test_a_fit_by_groups_tests_on_other_groups_only():
    draw = np.random.default_rng(0)
    x, groups = draw.normal(size=(120, 3)), np.repeat([f"g{i}" for i in range(12)], 10)
    held = tables.Table("groups", ("a", "b", "c"), x, x @ [1, 2, 3] + draw.normal(size=120), groups)
    scene = fits.make_scene(held, RIGHT, 4, 1, False, True)
    found = fits.measure(scene, settings((8, 40)))
    for i, size in enumerate((8, 40)):
        for b in range(4):
            rows, others = scene.order[b, -size:], np.flatnonzero(scene.member[:, b])
            assert not set(groups[rows]) & set(groups[others]) and len(set(groups[others])) == 6
            twin = plain(held, RIGHT, rows, others, settings((8, 40)))
            for key in ("test_mse", "bias", "variance", "noise_cross", "outside", "ridge_loo_test_mse"):
                assert np.isclose(found[key][i, b], twin[key], rtol=1e-8, atol=1e-12), key
            for key in ("cutoff_test_mse", "attack_mode_test_mse", "attack_worst_test_mse", "attack_target_test_mse"):
                assert np.isclose(found[key][2, i, b], twin[f"{key}-2"], rtol=1e-8), key


def test_sizes_are_nested_and_seeds_are_the_repeats_own():
    few, many = (fits.orders(50, n, 3, False) for n in (2, 5))
    assert np.array_equal(few, many[:2]) and not np.array_equal(few[0], few[1])
    assert not np.array_equal(few, fits.orders(50, 2, 4, False))
    assert np.array_equal(fits.orders(50, 2, 9, True)[1], np.random.RandomState(1).permutation(50))


def test_one_row_and_constant_features_in_training_give_numbers():
    x = np.zeros((40, 2))
    x[:, 0], x[::10, 1] = np.arange(40), 1  # the second is constant in most training sets
    held = tables.Table("odd", ("a", "b"), x, np.arange(40) + np.sin(np.arange(40)))
    for rules in RULES.values():
        found = fits.measure(fits.make_scene(held, rules, 20, 1, False, False), settings((1, 2, 3, 10), (1, 2)))
        for name, values in found.items():
            if name not in (*fits.MODES, "sigma_min", "outside"):
                assert np.isfinite(values).all(), name


# ---- the program ---------------------------------------------------------------------------------------------------

SMALL = ["--tables", "diabetes", "--repeats", "4", "--sizes", "1,5,9-11,20-22,30"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("linear")
    assert linear.main([*SMALL, "--runs", str(root), "--wandb", "--wandb_mode", "offline"]) == 0
    (folder,) = root.glob("double_descent/linear_*")
    return folder


def test_a_run_holds_arrays_table_results_and_figures(done):
    assert (done / "done").exists()
    held = runs.read_json(done / "results.json")
    assert held["kind"] == "linear" and list(held["tables"]) == ["diabetes"]
    assert held["tables"]["diabetes"]["parameters"] == 11
    arrays = runs.read_arrays(done / "arrays" / "diabetes.npz")
    assert arrays["test_mse"].shape == (9, 4) and arrays["cutoff_test_mse"].shape == (7, 9, 4)
    with open(done / "linear.csv") as f:
        rows = list(csv.DictReader(f))
    (row,) = [r for r in rows if (r["table"], r["measure"], r["size"]) == ("diabetes", "test_mse", "11")]
    at = list(arrays["sizes"]).index(11)
    assert np.isclose(float(row["median"]), np.median(arrays["test_mse"][at]))
    assert np.isclose(float(row["geometric_mean"]), np.exp(np.log(arrays["test_mse"][at]).mean()))
    assert {r["measure"] for r in rows} == {m for m in linear.MEASURES}
    assert {p.stem for p in (done / "figures").glob("*.png")} >= {"double_descent", "cutoffs", "modes", "features",
                                                                 "no_residuals", "ridge", "sigma_min"}  # fmt: skip


def test_wandb_receives_the_table_and_the_figures(done):
    pytest.importorskip("wandb")
    sent = [f.name for f in done.glob("wandb/offline-run-*/files/media/**/*") if f.is_file()]
    assert [n for n in sent if n.startswith("linear") and n.endswith(".table.json")]
    assert {"double_descent", "cutoffs", "ridge"} <= {n.rsplit("_", 2)[0] for n in sent if n.endswith(".png")}


def test_a_real_run_loads_no_torch(tmp_path):
    code = ("import sys; from double_descent import linear; "
            f"linear.main(['--smoke', '--runs', {str(tmp_path)!r}]); "
            "print([m for m in ('torch', 'torchvision', 'wandb') if m in sys.modules])")
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip().endswith("[]")
    assert "no effect" in said.stdout or "at most x" in said.stdout


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    assert linear.main([*SMALL, "--runs", str(tmp_path), "--dry_run"]) == 0
    assert not list(tmp_path.iterdir()) and "442 rows, 10 features, 4 x 9 fits" in capsys.readouterr().out


def test_sets_that_are_not_there_are_left_out_by_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    assert linear.main(["--runs", str(tmp_path / "runs"), "--dry_run"]) == 0
    said = capsys.readouterr().out
    for name, file in (("california", "cal_housing.data"), ("who", "life_expectancy.csv")):
        assert f"left out     {name}: " in said and file in said and "is missing" in said
    with pytest.raises(FileProblem, match="life_expectancy.csv"):
        linear.main(["--tables", "who", "--runs", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flags, words", [
    (["--sizes", "0-3"], "--sizes: 0 is not a positive"), (["--sizes", "5-2"], "5-2 does not ascend"),
    (["--sizes", "x"], "'x' is not a whole number"), (["--cutoffs", "a"], "numbers are expected"),
    (["--budgets", "-1"], "numbers from 0"), (["--tables", "diabets"], "did you mean diabetes"),
    (["--tables", "diabetes", "--sizes", "1-500"], "at most 440"), (["--csv", "x.csv"], "go together"),
    (["--csv", "x.csv", "--target", "y", "--tables", "who"], "give one of the two"),
    (["--as_published", "--scaling", "all"], "leave --scaling out"),
    (["--tables", "diabetes", "--split_by", "country"], "has no such column"),
    (["--tables", "diabetes", "--split_by", "town"], "no such column"),
])  # fmt: skip
def test_wrong_words_are_refused(flags, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        linear.main([*flags, "--runs", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_csv_of_ones_own(tmp_path, capsys):
    draw = np.random.default_rng(1)
    x = draw.normal(size=(60, 3))
    lines = ["a,b,town,c,y"]
    lines += [f"{r[0]},{r[1]},{'north' if i % 2 else 'south'},{'' if i == 7 else r[2]},{r.sum()}"
              for i, r in enumerate(x)]
    (tmp_path / "mine.csv").write_text("\n".join(lines) + "\n")
    flags = ["--csv", str(tmp_path / "mine.csv"), "--target", "y", "--repeats", "3", "--runs", str(tmp_path / "runs")]
    assert linear.main([*flags, "--sizes", "1-10"]) == 0
    said = capsys.readouterr().out
    assert "mine: 59 rows, 3 features" in said
    assert "column town left out: text; 1 of 60 rows left out for a gap" in said
    with pytest.raises(UsageError, match="mine has 59 rows.* give --sizes 1-57 or less"):
        linear.main([*flags, "--sizes", "1-58"])
    with pytest.raises(UsageError, match="2 values of it; 4 are needed"):
        linear.main([*flags, "--split_by", "town"])
    with pytest.raises(ContentError, match="row 2"):
        (tmp_path / "mine.csv").write_text("a,y\n1,nan\n2,3\n")
        linear.main(flags)
