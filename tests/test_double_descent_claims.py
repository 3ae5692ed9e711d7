"""Claims of the linear study on made-up runs whose truth is known."""

import numpy as np
import pytest

from double_descent import claims
from landscape import claims as ledger
from landscape import runs
from landscape.errors import FileProblem

SIZES, P, REPEATS = list(range(1, 25)), 11, 30
BUDGETS = [0.0, 1.0, 10.0, 31.6]


def curve(peak, spread=0.1):
    """Test errors (S, B) with a peak of that factor at N = 11."""
    draw = np.random.default_rng(0)
    height = np.where(np.array(SIZES) == P, peak, 1.0)[:, None]
    return height * np.exp(spread * draw.normal(size=(len(SIZES), REPEATS)))


def write(root, published=False, repeats=REPEATS, peak=30.0, intercept=True, scaling="train", **changes):
    folder = root / f"linear-{published}-{repeats}"
    lists = {"cutoffs": [0.1, 1.0], "modes": [1, 5, 10], "ratios": [1.0], "budgets": BUDGETS, "lambdas": [1.0]}
    flat, test = curve(1.0), curve(peak)
    arrays = {"test_mse": test, "cutoff_test_mse": np.stack([flat] * 2), "mode_test_mse": np.stack([flat] * 3),
              "feature_test_mse": flat[None], "noresidual_test_mse": flat * (np.array(SIZES) < P)[:, None],
              "ridge_test_mse": flat[None], "ridge_loo_test_mse": flat,
              "attack_mode_test_mse": np.stack([test, *[100 * test] * 3]),
              "attack_target_test_mse": np.stack([test, 2 * test, 2 * test, 20 * test])} | changes
    runs.write_arrays(folder / "arrays" / "diabetes.npz", **arrays)
    table = {"parameters": P, "sizes": SIZES, "name": "diabetes", **lists}
    runs.write_json(folder / "results.json", {"kind": "linear", "as_published": published, "repeats": repeats,
                                              "split_by": "row", "tables": {"diabetes": table}, "intercept": intercept,
                                              "scaling": scaling})  # fmt: skip
    runs.write_bytes(folder / "done", b"")


def judged(root, out):
    assert claims.main([str(root), "--out", str(out)]) == 0
    return {c.id: c for c in ledger.read(out)}


def test_claims_that_are_true_hold_and_others_fail(tmp_path, capsys):
    write(tmp_path)
    found = judged(tmp_path, tmp_path / "claims.json")
    verdicts = {name.removeprefix("linear:diabetes-"): c.verdict for name, c in found.items()}
    assert verdicts == {**dict.fromkeys(("peak", "cutoff", "modes", "features", "residuals", "ridge-loo", "ridge-best",
                                         "attack-mode"), "holds"), "attack-target": "fails"}  # fmt: skip
    peak = found["linear:diabetes-peak"]
    assert peak.low < peak.value < peak.high and 20 < peak.value < 35 and peak.n == REPEATS
    assert found["linear:diabetes-attack-mode"].value == pytest.approx(100)
    assert "left out     polynomial: " in capsys.readouterr().out


def test_published_attacks_are_judged_at_their_largest_budget_too(tmp_path):
    write(tmp_path, published=True)
    found = judged(tmp_path, tmp_path / "claims.json")
    head = "linear_as_published:diabetes-attack-target"
    assert (found[head].verdict, found[f"{head}-most"].verdict) == ("fails", "holds")
    assert found[f"{head}-most"].value == pytest.approx(20) and "31.6, the largest" in found[f"{head}-most"].statement


def test_an_ablation_that_leaves_the_peak_fails_and_no_peak_is_no_peak(tmp_path):
    write(tmp_path, cutoff_test_mse=np.stack([curve(30.0)] * 2), peak=1.0)
    found = judged(tmp_path, tmp_path / "claims.json")
    assert found["linear:diabetes-cutoff"].verdict == found["linear:diabetes-peak"].verdict == "fails"


def test_claims_of_other_runs_stay_and_those_of_the_same_kind_are_replaced(tmp_path):
    out = tmp_path / "claims.json"
    write(tmp_path / "a", published=True)
    write(tmp_path / "b", peak=1.0)
    first = judged(tmp_path / "a", out)
    both = judged(tmp_path / "b", out)
    assert set(first) < set(both) and both["linear_as_published:diabetes-peak"].verdict == "holds"
    write(tmp_path / "c")
    assert judged(tmp_path / "c", out)["linear:diabetes-peak"].verdict == "holds"
    other = ledger.Claim("deep:x", "paper", "1", "words", 1.0, None, None, 1, None, "how", "not decided", "command")
    ledger.write(out, [*ledger.read(out), other])
    assert judged(tmp_path / "c", out)["deep:x"] == other


def test_the_run_of_most_repeats_counts(tmp_path):
    write(tmp_path, peak=1.0)
    write(tmp_path, repeats=99)
    assert judged(tmp_path, tmp_path / "claims.json")["linear:diabetes-peak"].verdict == "holds"


@pytest.mark.parametrize("change", [{"intercept": False}, {"scaling": "none"}])
def test_a_run_of_other_settings_than_the_claims_say_does_not_count(tmp_path, change):
    write(tmp_path)
    write(tmp_path, repeats=99, peak=1.0, **change)
    assert judged(tmp_path, tmp_path / "claims.json")["linear:diabetes-peak"].verdict == "holds"


def test_what_smoke_left_does_not_count(tmp_path):
    write(tmp_path, peak=1.0)
    write(tmp_path / "smoke", repeats=99)
    assert judged(tmp_path, tmp_path / "claims.json")["linear:diabetes-peak"].verdict == "fails"
    assert judged(tmp_path / "smoke", tmp_path / "other.json")["linear:diabetes-peak"].verdict == "holds"


def test_second_descent_of_polynomials(tmp_path):
    degrees, draw = np.array([1, 5, 14, 15, 16, 30, 40, 50]), np.random.default_rng(1)
    level = np.array([0.5, 1, 9, 99, 9, 0.3, 0.4, 0.9])
    runs.write_arrays(tmp_path / "p" / "arrays" / "polynomial.npz", degrees=degrees,
                      test_mse=level * np.exp(0.1 * draw.normal(size=(40, 8))))
    runs.write_json(tmp_path / "p" / "results.json", {
        "kind": "polynomial", "as_published": False, "repeats": 40, "noise": 0.0,
        "curves": [{"arrays": "polynomial.npz", "basis": "legendre", "points": 15}]})
    runs.write_bytes(tmp_path / "p" / "done", b"")
    found = judged(tmp_path, tmp_path / "claims.json")
    assert {n: c.verdict for n, c in found.items()} == {"polynomial:legendre-30": "holds",
                                                        "polynomial:legendre-30-50": "fails"}
    assert found["polynomial:legendre-30"].value == pytest.approx(0.6, rel=0.1)


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(FileProblem, match="no finished run"):
        claims.main([str(tmp_path), "--out", str(tmp_path / "claims.json")])
    with pytest.raises(FileProblem, match="not a folder"):
        claims.main([str(tmp_path / "none"), "--out", str(tmp_path / "claims.json")])
