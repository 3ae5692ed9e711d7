"""Claims of deep double descent on drawn curves, whose peaks and dips are known."""

import json

import numpy as np
import pytest

from double_descent import claims, deep_claims
from landscape import claims as ledger
from landscape import results
from landscape.errors import FileProblem

WIDTHS, SEEDS = [1, 2, 3, 4, 6], [0, 1, 2]
ERROR = {"noise_rate=0.2": [0.8, 0.6, 0.7, 0.65, 0.5], "noise_rate=0.0": [0.8, 0.6, 0.59, 0.55, 0.5]}


def written(folder, **changes):
    """results.json of a drawn sweep: three seeds, a little apart; changes: {measure: curve} with noise."""
    drawn = {"test_error": None, "train_error": [0.5, 0.3, 0.1, 0.04, 0.0], "test_loss": [2.1, 2.0, 2.3, 2.2, 1.9],
             "fragments_random_train": [9, 10, 16, 12, 8], "margin_all_train": [5, 4, 2, 3, 4],
             "margin_mislabelled_train": [5, 4, 2, 3, 4], "reproducibility_distinct_test": [0.6, 0.7, 0.5, 0.6, 0.7],
             "ensemble_gain_of_2": [0.01, 0.02, 0.08, 0.05, 0.03], **changes}
    models, cells = [], []
    for group, errors in ERROR.items():
        for w, x in enumerate(WIDTHS):
            first = len(models)
            for s in SEEDS:
                curves = {k: errors if v is None else v for k, v in drawn.items()}
                if group == "noise_rate=0.0":
                    curves["test_loss"] = sorted(curves["test_loss"], reverse=True)
                values = {k: v[w] + 0.001 * s for k, v in curves.items()}
                models.append({"group": group, "x": x, "init_seed": s, **values})
            pairs = {k: [[first + i, first + j, drawn[k][w]] for i, j in ((0, 1), (0, 2), (1, 2))]
                     for k in ("reproducibility_distinct_test", "ensemble_gain_of_2")}
            cells.append({"group": group, "x": x, "pairs": pairs})
    held = {"kind": "deep", "along": "width", "threshold": {"noise_rate=0.2": 4, "noise_rate=0.0": 3}, "models": models,
            "cells": cells, "measures": list(drawn), "fitted_below": 0.05}
    path = folder / "deep_x" / "results.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(held))


def judged(folder):
    held = json.loads((folder / "deep_x" / "results.json").read_text())
    assert deep_claims.measured(held)
    return {c.id.removeprefix("deep:"): c for c in deep_claims.deep(folder, held)}


@pytest.mark.parametrize(("curve", "found"), [
    ([3, 2, 1], (0, 0)), ([1, 2, 3], (2, 0)), ([0.8, 0.6, 0.7, 0.65, 0.5], (2, 1)), ([5, 1, 3, 0, 1], (2, 1)),
])  # fmt: skip
def test_the_peak_is_the_largest_rise_above_an_earlier_value(curve, found):
    assert deep_claims.rise(np.array(curve)) == found


def test_a_drawn_double_descent_holds_every_claim(tmp_path):
    written(tmp_path)
    found = judged(tmp_path)
    assert len(found) == 14 and {c.verdict for c in found.values()} == {"holds"}
    assert found["error-rises"].value == pytest.approx(0.1) and found["error-falls"].value == pytest.approx(0.2)
    assert found["error-threshold"].value == -1 and found["fragmentation"].value == 0
    assert found["margin-all"].value == pytest.approx(2)
    assert found["ensemble-narrower"].value == pytest.approx(0.06)


@pytest.mark.parametrize(("name", "curve", "fails"), [
    ("test_error", [0.8, 0.7, 0.6, 0.5, 0.4], {"error-rises", "error-noise"}),
    ("fragments_random_train", [4, 5, 6, 7, 8], {"fragmentation"}),
    ("reproducibility_distinct_test", [0.3, 0.4, 0.5, 0.6, 0.5], {"reproducibility"}),
    ("margin_mislabelled_train", [5, 4, 3, 2, 1], {"margin-mislabelled"}),
    ("ensemble_gain_of_2", [0.05, 0.05, 0.02, 0.03, 0.04], {"ensemble-narrower", "ensemble-wider"}),
])  # fmt: skip
def test_curves_without_it_do_not(tmp_path, name, curve, fails):
    written(tmp_path, **{name: curve})
    found = judged(tmp_path)
    assert fails <= {k for k, c in found.items() if c.verdict == "fails"}
    beyond = {"error-falls", "margin-all", "margin-mislabelled"}
    assert beyond & found.keys() == (set() if name == "test_error" else beyond)  # that curve has no peak


def test_margins_that_are_censored_are_not_judged(tmp_path):
    written(tmp_path)
    path = tmp_path / "deep_x" / "results.json"
    held = json.loads(path.read_text())
    held["models"][-1 - len(SEEDS) * len(WIDTHS)]["margin_all_train"] = None
    path.write_text(json.dumps(held))
    assert "margin-all" not in judged(tmp_path) and "margin-mislabelled" in judged(tmp_path)


def test_seeds_that_disagree_leave_it_undecided(tmp_path):
    written(tmp_path)
    path = tmp_path / "deep_x" / "results.json"
    held = json.loads(path.read_text())
    for row in held["models"]:
        if row["group"] == "noise_rate=0.2" and row["x"] == 3:
            row["test_error"] += (-0.18, 0.0, 0.12)[row["init_seed"]]
    path.write_text(json.dumps(held))
    assert judged(tmp_path)["error-rises"].verdict == "not decided"


def test_the_places_of_a_seed_s_peak_are_those_of_the_others():
    """A curve without a peak rises at the places of its own largest rise, by chance; at those of the others it does
    not, and the interval of the rise keeps its promise."""
    curves = np.array([[3, 1, 2, 0], [3, 1, 2, 0.5], [3, 0, 0.5, 2]], dtype=float)
    risen, fallen = deep_claims.flanks(curves)
    assert risen.tolist() == pytest.approx([2 - 1, 2 - 1, 0.5 - 0])  # the others' means peak at the third place
    assert fallen.tolist() == pytest.approx([2, 1.5, -1.5])
    rng, held = np.random.default_rng(0), {"own": 0, "others": 0}
    for _ in range(300):
        curves = np.array([0.7, *[0.6] * 9]) + 0.01 * rng.normal(size=(3, 10))
        top, before = deep_claims.rise(curves.mean(0))
        for key, values in (("own", curves[:, top] - curves[:, before]), ("others", deep_claims.flanks(curves)[0])):
            _, low, high = results.bootstrap(values, n=200)
            held[key] += ledger.judge(low, high, 0, "above") == "holds"
    assert held["others"] < 0.09 * 300 and held["own"] > 0.12 * 300


def test_a_place_on_which_the_seeds_do_not_agree_is_not_decided(tmp_path):
    """Three seeds, of which one peaks, or fits its training set, two widths later: their range is too narrow."""
    written(tmp_path)
    path = tmp_path / "deep_x" / "results.json"
    held = json.loads(path.read_text())
    for row in held["models"]:
        if row["group"] == "noise_rate=0.2" and row["init_seed"] == 2 and row["x"] in (3, 6):
            row["fragments_random_train"] = {3: 10, 6: 40}[row["x"]]
            row["train_error"] = 0.2
    path.write_text(json.dumps(held))
    found = judged(tmp_path)
    assert found["fragmentation"].verdict == "not decided"
    assert found["fragmentation"].low < 0 < found["fragmentation"].high


def test_networks_that_fit_nowhere_have_their_threshold_behind_the_last_width(tmp_path):
    written(tmp_path, train_error=[0.5, 0.4, 0.3, 0.2, 0.1])
    claim = judged(tmp_path)["error-threshold"]
    assert claim.value == 2 - len(WIDTHS) and claim.verdict == "fails" and "behind the last width" in claim.protocol


def test_measures_that_some_networks_lack_are_not_judged(tmp_path):
    written(tmp_path)
    path = tmp_path / "deep_x" / "results.json"
    held = json.loads(path.read_text())
    held["models"][4]["fragments_random_train"] = None
    del held["cells"][2]["pairs"]["reproducibility_distinct_test"]
    path.write_text(json.dumps(held))
    assert {"fragmentation", "reproducibility"}.isdisjoint(judged(tmp_path)) and len(judged(tmp_path)) == 12


def test_several_data_orders_of_one_seed_are_refused_and_others_count_first(tmp_path):
    written(tmp_path)
    path = tmp_path / "deep_x" / "results.json"
    held = json.loads(path.read_text())
    more = {**held, "models": [*held["models"], {**held["models"][4], "test_error": 9.0}]}
    (tmp_path / "deep_y").mkdir()
    for name, results_of in (("deep_x", more), ("deep_y", held)):
        (tmp_path / name / "results.json").write_text(json.dumps(results_of))
        (tmp_path / name / "done").touch()
    with pytest.raises(FileProblem, match=r"share noise_rate=0.2, width 2, init_seed 1: .*--select order_seed="):
        judged(tmp_path)
    assert not claims.main([str(tmp_path), "--out", str(tmp_path / "claims.json")])
    assert len(ledger.read(tmp_path / "claims.json")) == 14


def test_missing_networks_are_named(tmp_path):
    written(tmp_path)
    path = tmp_path / "deep_x" / "results.json"
    held = json.loads(path.read_text())
    held["models"] = [m for m in held["models"] if (m["x"], m["init_seed"]) != (3, 1)]
    path.write_text(json.dumps(held))
    with pytest.raises(FileProblem, match=r"'noise_rate=0.2', 3, 1"):
        judged(tmp_path)


def test_the_command_judges_the_results_with_most_networks(tmp_path):
    written(tmp_path)
    held = json.loads((tmp_path / "deep_x" / "results.json").read_text())
    for folder, more in (("deep_y", {"along": "epoch"}), ("deep_z", {"models": held["models"][:3]})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "results.json").write_text(json.dumps({**held, **more}))
    for folder in tmp_path.glob("deep_*"):
        (folder / "done").touch()
    out = tmp_path / "claims.json"
    assert not claims.main([str(tmp_path), "--out", str(out)])
    assert {c.id for c in ledger.read(out)} == {f"deep:{k}" for k in judged(tmp_path)}
