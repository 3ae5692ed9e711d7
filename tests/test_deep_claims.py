"""Claims of deep double descent on drawn curves, whose peaks and dips are known."""

import json

import numpy as np
import pytest

from double_descent import claims, deep_claims
from landscape import claims as ledger
from landscape.errors import FileProblem

WIDTHS, SEEDS = [1, 2, 3, 4, 6], [0, 1, 2]
ERROR = {"noise_rate=0.2": [0.8, 0.6, 0.7, 0.65, 0.5], "noise_rate=0.0": [0.8, 0.6, 0.59, 0.55, 0.5]}


def written(folder, **changes):
    """results.json of a drawn sweep: three seeds, a little apart; changes: {measure: curve} with noise."""
    drawn = {"test_error": None, "test_loss": [2.1, 2.0, 2.3, 2.2, 1.9],
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
            "cells": cells, "measures": list(drawn)}
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
