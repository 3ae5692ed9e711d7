"""scripts/benchmark.py in its quick form: every row runs through, and ours equals the twin in each."""

import json

import pytest

from landscape.errors import ContentError, UsageError
from scripts import benchmark

NAMES = {"batches", "step-resnet20", "step-resnet18", "epoch-mlp", "epoch-fcnet", "epoch-resnet20", "epoch-small_cnn",
         "stack", "memory", "points", "plane", "plane-fcnet", "refine", "agreement", "fragments", "margins", "linear",
         "pairwise", "pairwise-time", "pairwise-memory", "line-step", "line-starts", "line-points", "barrier",
         "barrier-search", "matching"}  # fmt: skip


def test_every_row_runs_and_its_check_holds(tmp_path, capsys):
    assert benchmark.main(["--quick", "--cache", str(tmp_path / "cache"), "--json", str(tmp_path / "rows.json")]) == 0
    said, found = capsys.readouterr().out, json.loads((tmp_path / "rows.json").read_text())
    assert set(found["rows"]) == NAMES
    for name, row in found["rows"].items():
        assert row["equal"] and min(row["values"]) > 0, name
        assert f"\n{name} " in said and row["what"] in said and row["check"] in said
    assert said.count("not judged") == len(NAMES)


def test_a_failed_check_and_a_missed_goal_say_so(tmp_path, capsys, monkeypatch):
    rows = {"wrong": lambda bench: benchmark.Row("work", 2, "x", (3.0,), False, "they differ"),
            "slow": lambda bench: benchmark.Row("work", 2, "x", (1.0, 1.5, 9.0), True, "equal"),
            "large": lambda bench: benchmark.Row("work", 600, "MB", (601.0,), True, "whole"),
            "long": lambda bench: benchmark.Row("work", 5, "s", (4.0, 4.5, 9.0), True, "whole")}
    monkeypatch.setattr(benchmark, "all_rows", lambda: rows)
    with pytest.raises(ContentError, match="wrong"):
        benchmark.main(["--only", "wrong"])
    assert benchmark.main(["--only", "slow,large,long"]) == 0
    assert capsys.readouterr().out.count("MISSED") == 2
    with pytest.raises(ContentError, match="slow, large"):
        benchmark.main(["--only", "slow,large", "--strict"])
    with pytest.raises(UsageError, match="did you mean large"):
        benchmark.main(["--only", "larg"])
