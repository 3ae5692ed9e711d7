"""Records from run folders; intervals against explicit twins and against their promise: coverage."""

import csv
import io
import itertools
import json

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from landscape import results
from landscape.errors import ContentError, FileProblem, UsageError


def make_run(root, name, config, found=None, meta=None, done=True):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in config.items()))
    if found is not None:
        (folder / "results.json").write_text(json.dumps(found))
    if meta is not None:
        (folder / "meta.json").write_text(json.dumps(meta))
    if done:
        (folder / "done").touch()


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path, "main/b", {"net": "vgg11", "lr": 0.1}, {"test": {"accuracy": 0.5}, "curve": [1, 2]})
    make_run(tmp_path, "main/a", {"net": "resnet20", "lr": 0.1}, {"test": {"accuracy": 0.123456}, "lr": 7},
             {"seconds": 3.5})  # fmt: skip
    make_run(tmp_path, "main/broken_off", {"net": "lenet"}, done=False)
    return tmp_path


def test_what_is_not_defined_on_some_planes_is_taken_over_the_others():
    values = np.random.default_rng(0).normal(size=(2, 3, 12))
    whole = results.bootstrap_defined(values)
    assert all(np.array_equal(a, b) for a, b in zip(whole, results.bootstrap_planes(values)))
    values[0, 1, 4:] = np.nan
    values[1, 2] = np.nan
    values[1, 1, 1:] = np.nan
    mean, low, high = results.bootstrap_defined(values)
    assert np.allclose(mean[0, 0], whole[0][0, 0]) and mean[0, 1] == pytest.approx(values[0, 1, :4].mean())
    assert low[0, 1] < mean[0, 1] < high[0, 1]
    assert np.isnan([mean[1, 2], low[1, 2], low[1, 1], high[1, 1]]).all() and mean[1, 1] == values[1, 1, 0]
    assert np.allclose(results.mean_defined(values[0]), np.nanmean(values[0], axis=0))
    assert np.isnan(results.mean_defined([[np.nan], [np.nan]])).all()


def test_records_are_the_finished_runs_flat_and_sorted(runs):
    first, second = results.load_records(runs)
    assert first == {"folder": "main/a", "net": "resnet20", "lr": 0.1, "test.accuracy": 0.123456,
                     "results.lr": 7, "meta.seconds": 3.5}  # fmt: skip
    assert second == {"folder": "main/b", "net": "vgg11", "lr": 0.1, "test.accuracy": 0.5}


def test_what_smoke_left_is_no_record_unless_asked_for(runs):
    make_run(runs, "smoke/main/a", {"net": "resnet20", "lr": 0.1})
    assert len(results.load_records(runs)) == 2
    assert [r["folder"] for r in results.load_records(runs / "smoke")] == ["main/a"]


def test_text_csv_and_json_show_the_same_cells(runs, capsys):
    results.main([str(runs), "--columns", "net,test.accuracy,results.lr"])
    assert capsys.readouterr().out == (
        "net       test.accuracy  results.lr\nresnet20  0.1235         7\nvgg11     0.5            -\n"
    )
    results.main([str(runs), "--columns", "results.lr,meta.seconds", "--format", "csv"])
    assert capsys.readouterr().out.splitlines() == ["results.lr,meta.seconds", "7,3.5"]  # nothing of the other run
    results.main([str(runs), "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["test.accuracy"] for row in rows] == ["0.123456", "0.5"]
    assert "lr" not in rows[0] and "meta.seconds" not in rows[0]
    results.main([str(runs), "--format", "json"])
    assert json.loads(capsys.readouterr().out) == results.load_records(runs)
    results.write_csv(runs / "deep" / "table.csv", results.load_records(runs))
    assert list(csv.DictReader((runs / "deep" / "table.csv").open())) == rows


def test_markdown_and_latex_escape_what_they_would_read(tmp_path, capsys):
    odd = {"net": "a_b|c", "note": "50% of {x} & $y$ #1 ~^\\ <z>"}
    make_run(tmp_path, "x", {**odd, "lr": 0.1, "flag": True}, {"test": {"accuracy": 0.123456}})
    make_run(tmp_path, "y", {"net": "plain", "note": "n", "lr": 12, "flag": False}, {})
    columns = "net,note,lr,flag,test.accuracy"
    assert results.main([str(tmp_path), "--format", "markdown", "--columns", columns]) is None
    head, rule, first, second = capsys.readouterr().out.splitlines()
    assert head == "| net | note | lr | flag | test.accuracy |" and rule == "|---|---|---:|---|---:|"
    assert first == "| a_b\\|c | 50% of {x} & $y$ #1 ~^\\ <z> | 0.1 | True | 0.1235 |"
    assert second == "| plain | n | 12 | False | - |"
    results.main([str(tmp_path), "--format", "latex", "--columns", columns])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == r"\begin{tabular}{llrlr}" and lines[-1] == r"\end{tabular}"
    assert lines[4] == (r"  a\_b|c & 50\% of \{x\} \& \$y\$ \#1 \textasciitilde{}\textasciicircum{}\textbackslash{} "
                        r"\textless{}z\textgreater{} & 0.1 & True & 0.1235 \\")
    assert lines[5] == r"  plain & n & 12 & False & -- \\"
    assert [line.count(" & ") for line in lines[2:6]] == [4, 0, 4, 4]


def test_curves_are_a_row_for_each_number_of_each_epoch(runs, capsys):
    with pytest.raises(FileProblem, match="only trainings have curves"):
        results.main([str(runs), "--curves"])
    (runs / "main/a/metrics.jsonl").write_text('{"epoch": 1, "loss": 2.5, "lr": 0.1}\n{"epoch": 2, "loss": NaN}\n{"ep')
    (runs / "main/b/metrics.jsonl").write_text('{"epoch": 1, "loss": 1, "note": "text"}\n')
    results.main([str(runs), "--curves", "--format", "csv"])
    assert capsys.readouterr().out.splitlines() == [
        "folder,net,epoch,metric,value", "main/a,resnet20,1,loss,2.5", "main/a,resnet20,1,lr,0.1",
        "main/a,resnet20,2,loss,nan", "main/b,vgg11,1,loss,1"]
    results.main([str(runs), "--curves", "--format", "markdown", "--columns", "net,value"])
    assert capsys.readouterr().out.splitlines()[2:4] == ["| resnet20 | 2.5 |", "| resnet20 | 0.1 |"]
    results.main([str(runs), "--curves", "--format", "latex"])
    assert r"main/b & vgg11 & 1 & loss & 1 \\" in capsys.readouterr().out
    results.main([str(runs / "main/b"), "--curves", "--format", "json"])
    assert json.loads(capsys.readouterr().out) == [{"folder": ".", "epoch": 1, "metric": "loss", "value": 1}]


def test_what_is_wrong_is_said(runs, tmp_path):
    with pytest.raises(UsageError, match="did you mean test.accuracy"):
        results.main([str(runs), "--columns", "test_accuracy"])
    with pytest.raises(FileProblem, match="is not a folder"):
        results.load_records(tmp_path / "nowhere")
    with pytest.raises(FileProblem, match="no finished run"):
        results.main([str(runs / "main" / "broken_off")])
    (runs / "main/a/results.json").write_text("{")
    with pytest.raises(ContentError, match="results.json"):
        results.load_records(runs)
    (runs / "main/a/config.yaml").write_text("[1, 2")
    with pytest.raises(ContentError, match="config.yaml"):
        results.load_records(runs)


def test_equal_seeds_give_equal_intervals_and_units_of_one_give_none():
    values = np.random.default_rng(0).normal(size=12)
    assert results.bootstrap(values, seed=3) == results.bootstrap(values, seed=3)
    assert results.bootstrap(values, seed=3) != results.bootstrap(values, seed=4)
    wide, narrow = results.bootstrap(values, level=0.99), results.bootstrap(values, level=0.5)
    assert wide[1] < narrow[1] < narrow[0] < narrow[2] < wide[2]
    assert results.bootstrap(values, np.median)[0] == np.median(values)
    assert results.bootstrap([4.0]) == (4, None, None)
    assert results.bootstrap_pairs([[np.nan]]) == (None, None, None)
    assert results.bootstrap_pairs([[1, 0.5], [0.5, 1]]) == (0.5, None, None)
    assert results.bootstrap_between([[1.0, 2.0]]) == (1.5, None, None)
    mean, low, high = results.bootstrap_planes(np.ones((2, 3, 1)))
    assert mean.shape == (2, 3) and low is None and high is None


def spread_matrix(rng, models, noise=0.3):
    """Pairs of models with an effect of each model and one of the pair: symmetric, true mean 0."""
    effect = rng.normal(size=models)
    pair = np.triu(rng.normal(size=(models, models)), 1) * noise
    return effect[:, None] + effect + pair + pair.T


def stretched(value, means, freedom, spread):
    """Percentiles of the explicit resamples, as _ends defines the stretch, with scipy's own distributions."""
    factor = student.ppf(0.975, freedom) / norm.ppf(0.975) / np.sqrt(spread)
    return [value + factor * (end - value) for end in np.quantile(means, [0.025, 0.975])]


def test_intervals_of_values_equal_an_explicit_resampling():
    values, n = np.random.default_rng(1).normal(size=6), 200
    value, low, high = results.bootstrap(values, np.median, n=n, seed=9)
    rng = np.random.default_rng(9)
    draws = [np.median([values[i] for i in rng.integers(6, size=6)]) for _ in range(n)]
    assert np.allclose([low, high], stretched(np.median(values), draws, 5, 5 / 6))


def test_clustered_intervals_equal_an_explicit_resampling_of_models():
    values, n = spread_matrix(np.random.default_rng(1), 5), 300
    mean, low, high = results.bootstrap_pairs(values, n=n, seed=9)
    assert np.isclose(mean, np.mean([values[i, j] for i in range(5) for j in range(i)]))
    rng, means = np.random.default_rng(9), []
    for counts in rng.multinomial(5, [0.2] * 5, size=n):
        chosen = [model for model, count in enumerate(counts) for _ in range(count)]
        pairs = [values[a, b] for k, a in enumerate(chosen) for b in chosen[:k] if a != b]
        if pairs:
            means.append(np.mean(pairs))
    assert np.allclose([low, high], stretched(mean, means, 4, 4 / 5 * (3 / 4) ** 2))


def test_a_statistic_of_the_means_over_pairs_is_that_of_the_same_resamples():
    rng = np.random.default_rng(3)
    curves = np.stack([spread_matrix(rng, 4) + shift for shift in (0, 0.2, 0.4)])
    value, low, high = results.bootstrap_pairs(curves, n=200, statistic=np.argmax)
    means = [results.bootstrap_pairs(curve, n=200)[0] for curve in curves]
    assert value == np.argmax(means)
    counts = [c for c in np.random.default_rng(0).multinomial(4, [1 / 4] * 4, size=200) if c.max() < 4]
    off = 1 - np.eye(4)
    drawn = [np.argmax([(np.outer(c, c) * off * curve).sum() for curve in curves]) for c in counts]
    assert len(set(drawn)) > 1
    assert np.allclose([low, high], stretched(value, drawn, 3, 3 / 4 * (2 / 3) ** 2))
    assert results.bootstrap_pairs(curves[0], n=200) == results.bootstrap_pairs(curves[0], n=200, statistic=float)
    with pytest.raises(ValueError, match=r"\(M, M\)"):
        results.bootstrap_pairs(curves)


def test_intervals_between_groups_equal_an_explicit_resampling_of_both():
    values, n = np.random.default_rng(1).normal(size=(3, 4)), 300
    mean, low, high = results.bootstrap_between(values, n=n, seed=9)
    rng = np.random.default_rng(9)
    rows, columns = (rng.multinomial(k, [1 / k] * k, size=n) for k in (3, 4))
    means = [values[np.repeat(range(3), r)][:, np.repeat(range(4), c)].mean() for r, c in zip(rows, columns)]
    assert mean == values.mean() and np.allclose([low, high], stretched(mean, means, 5, 2 / 3))


def test_intervals_over_planes_equal_an_explicit_resampling_for_every_entry():
    values, n = np.random.default_rng(1).random((2, 3, 8)), 200
    mean, low, high = results.bootstrap_planes(values, n=n, seed=9)
    draws = np.random.default_rng(9).multinomial(8, [1 / 8] * 8, size=n)
    for entry in np.ndindex(2, 3):
        means = [np.repeat(values[entry], counts).mean() for counts in draws]
        assert np.isclose(mean[entry], values[entry].mean())
        assert np.allclose([low[entry], high[entry]], stretched(mean[entry], means, 7, 7 / 8))


def coverage(draw, interval, rounds=1500):
    """How often the 95 % interval of data drawn with mean 0 holds 0."""
    rng = np.random.default_rng(0)
    ends = [interval(draw(rng), n=300, seed=k)[1:] for k in range(rounds)]
    return np.mean([low <= 0 <= high for low, high in ends])


# Four standard deviations below 95 % are 0.9275 for 1,500 rounds, and 0.906 for 400, enough for the slow one.
@pytest.mark.parametrize("n", [3, 5, 10, 40])
def test_intervals_of_values_hold_the_truth_at_any_number_of_seeds(n):
    assert 0.906 < coverage(lambda rng: rng.normal(size=n), results.bootstrap, rounds=400) < 0.99
    assert 0.9275 < coverage(lambda rng: rng.normal(size=n), results.bootstrap_planes) < 0.985


@pytest.mark.parametrize("models", [3, 5, 20])
def test_intervals_of_pairs_hold_the_truth_where_pairs_taken_as_independent_fail(models):
    assert 0.9275 < coverage(lambda rng: spread_matrix(rng, models), results.bootstrap_pairs) < 0.99

    def naive(values, **options):
        return results.bootstrap(values[np.triu_indices(models, 1)], **options)

    if models == 20:
        assert coverage(lambda rng: spread_matrix(rng, models), naive, rounds=200) < 0.7


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (5, 5), (15, 20)])
def test_intervals_between_groups_hold_the_truth(shape):
    def draw(rng):
        return rng.normal(size=(shape[0], 1)) + rng.normal(size=shape[1]) + 0.3 * rng.normal(size=shape)

    assert 0.9275 < coverage(draw, results.bootstrap_between) < 0.985


@pytest.mark.parametrize("bad", [[], [1.0, np.nan], [np.inf]])
def test_nothing_and_nan_are_refused(bad):
    with pytest.raises(ValueError):
        results.bootstrap(bad)
    with pytest.raises(ValueError):
        results.bootstrap_planes(bad)


def test_a_matrix_of_pairs_is_square_and_symmetric():
    with pytest.raises(ValueError, match="symmetric"):
        results.bootstrap_pairs([[0, 1, 2], [3, 0, 1], [2, 1, 0]])
    with pytest.raises(ValueError, match="(M, M)"):
        results.bootstrap_pairs([[0, 1, 2]])


# ---- jackknife over members


def test_the_jackknife_of_a_mean_is_its_classical_standard_error():
    values = np.random.default_rng(5).normal(size=9)
    low, high = results.jackknife(values.mean(), (values.sum() - values) / 8, level=0.9)
    reach = student.ppf(0.95, 8) * values.std(ddof=1) / 3
    assert np.allclose((low, high), (values.mean() - reach, values.mean() + reach))
    assert results.jackknife(1.0, [1.0, 2.0]) == (None, None)
    with pytest.raises(ValueError):
        results.jackknife(1.0, [1.0, np.nan, 2.0])


def test_subsets_of_a_linear_statistic_have_the_interval_of_a_mean():
    values = np.random.default_rng(6).normal(size=7)
    alone = results.over_subsets(values, np.eye(7, dtype=bool))
    pairs = np.array([[i in p for i in range(7)] for p in itertools.combinations(range(7), 2)])
    assert np.allclose(results.over_subsets(pairs @ values / 2, pairs), alone)


def test_over_subsets_of_one_is_student_s_interval():
    values = np.array([0.3, 0.5, 0.4, 0.9, 0.2])
    value, low, high = results.over_subsets(values, np.eye(5, dtype=bool))
    reach = student.ppf(0.975, 4) * values.std(ddof=1) / 5**0.5
    assert (value, low, high) == pytest.approx((values.mean(), values.mean() - reach, values.mean() + reach))


def test_over_subsets_against_a_loop_over_members():
    rng = np.random.default_rng(0)
    subsets = np.array([[i in s for i in range(6)] for s in itertools.combinations(range(6), 3)])
    values = rng.normal(size=len(subsets))
    value, low, high = results.over_subsets(values, subsets, level=0.9)
    without = [np.mean([v for v, s in zip(values, subsets) if not s[k]]) for k in range(6)]
    spread = (5 / 6 * sum((u - values.mean()) ** 2 for u in without)) ** 0.5  # their mean is that of all, by symmetry
    assert value == pytest.approx(values.mean()) and (low + high) / 2 == pytest.approx(value)
    assert high - low == pytest.approx(2 * student.ppf(0.95, 5) * spread)


def test_over_subsets_has_no_interval_where_members_cannot_be_left_out():
    assert results.over_subsets([0.5], np.ones((1, 4), bool)) == (0.5, None, None)
    assert results.over_subsets([0.5, 0.7], np.eye(2, dtype=bool)) == (0.6, None, None)
    always = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]], bool)
    assert results.over_subsets([1.0, 2.0, 3.0], always) == (2.0, None, None)
    with pytest.raises(ValueError, match="NaN"):
        results.over_subsets([np.nan, 1, 2], np.eye(3, dtype=bool))


def test_over_subsets_holds_the_truth_about_as_often_as_it_says():
    """Members with normal values of mean 2; the value of a pair is their product, a statistic of degree 2."""
    rng, pairs = np.random.default_rng(1), list(itertools.combinations(range(8), 2))
    subsets = np.array([[i in p for i in range(8)] for p in pairs])
    held = 0
    for _ in range(400):
        a = 2 + rng.normal(size=8)
        _, low, high = results.over_subsets([a[i] * a[j] for i, j in pairs], subsets)
        held += low <= 4 <= high
    assert 0.91 < held / 400 < 0.98


def test_groups_are_resampled_by_themselves():
    """The difference of two means has the interval of Welch's test, within the error of its resampling."""
    generator = np.random.default_rng(0)
    one, other = generator.normal(1, 1, 40), generator.normal(0, 3, 60)
    value, low, high = results.bootstrap_strata([one, other], lambda means: means[0] - means[1])
    spread = (one.var(ddof=1) / 40 + other.var(ddof=1) / 60) ** 0.5
    assert value == pytest.approx(one.mean() - other.mean())
    assert low == pytest.approx(value - 1.98 * spread, abs=0.1 * spread * 2)
    assert high == pytest.approx(value + 1.98 * spread, abs=0.1 * spread * 2)
    assert results.bootstrap_strata([one[:1], other], lambda means: means[0])[1:] == (None, None)
    same = results.bootstrap_strata([np.ones((3, 2)), np.zeros((2, 2))], lambda means: means[0].sum())
    assert same == (2.0, 2.0, 2.0)
