"""The claims of learned subspaces on made-up results, in which each of them is known to hold or to fail."""

import pytest

from landscape import claims as ledger
from landscape import runs
from landscape.errors import FileProblem, UsageError
from landscape.results import bootstrap
from subspaces import claims

SEEDS = (0, 1, 2)


def row(seed, family, accuracy, ece, scheduler="cosine", noise=0.0, beta=1.0, cosine=0.01, granularity="network"):
    kind = {"line": "path", "standard": "model"}[family]
    shape = (-0.004, -0.002, 0.0, -0.002, -0.004) if kind == "path" else (0.0,)
    ts = (0.0, 0.2, 0.5, 0.8, 1.0) if kind == "path" else (None,)
    bump = 0.0005 * seed
    points = [{"name": str(t), "kind": kind, "t": t, "accuracy": accuracy + d + bump, "ece": ece + bump}
              for t, d in zip(ts, shape)]
    if scheduler == "swa_cyclic":
        points.append({**points[0], "kind": "swa", "accuracy": accuracy + 0.003 + bump})
    mirrored = [{"t": t, "accuracy_probability": accuracy + 0.01 + bump} for t in ts] if kind == "path" else []
    return {"group": f"{family} {scheduler} {noise} {beta}", "path": f"runs/{family}-{seed}", "family": family,
            "granularity": granularity, "beta": beta, "samples": 1, "label_smoothing": 0.0, "dropout": 0.0,
            "ema": 0.0, "noise_rate": noise, "scheduler": scheduler, "epochs": 30, "init_seed": seed, "points": points,
            "mirrored": mirrored, "squared_cosines": [cosine],
            "growth": {"disagreement": 0.9} if kind == "path" else None}


def results(line=0.72, ece=0.03):
    rows = []
    for s in SEEDS:
        rows += [row(s, "line", line, ece), row(s, "standard", 0.70, 0.06),
                 row(s, "line", 0.5, 0.2, granularity="module"),
                 row(s, "standard", 0.70, 0.06, scheduler="swa_cyclic"),
                 row(s, "line", 0.7, 0.05, beta=0.0, cosine=0.4),
                 row(s, "line", 0.6, 0.1, noise=0.4), row(s, "standard", 0.55, 0.2, noise=0.4)]
    own = [n for n, r in enumerate(rows) if r["family"] == "standard" and r["scheduler"] == "cosine"
           and not r["noise_rate"]]
    pairs = [{"group": "g", "a": a, "b": b, "accuracy_probability": 0.735} for i, a in enumerate(own)
             for b in own[i + 1:]]
    return {"kind": "subspaces", "corruption": "", "runs": rows, "independent": pairs, "table": [{}]}


def verdicts(found):
    return {c.id.removeprefix("subspaces:"): c.verdict for c in claims.judged(found)}


def test_each_claim_is_judged_on_the_runs_that_it_is_of():
    assert set(verdicts(results()).values()) == {"holds"} and len(verdicts(results())) == 10
    worse = verdicts(results(line=0.66, ece=0.09))
    assert {k for k, v in worse.items() if v == "fails"} == {
        "flat", "midpoint-accuracy", "midpoint-ece", "midpoint-swa-accuracy", "midpoint-swa-ece", "ensemble"}
    values = {c.id: c for c in claims.judged(results())}
    assert abs(values["subspaces:midpoint-accuracy"].value - 0.02) < 1e-9
    assert abs(values["subspaces:midpoint-swa-accuracy"].value - 0.017) < 1e-9
    assert abs(values["subspaces:flat"].value - 0.016) < 1e-9
    assert abs(values["subspaces:noise"].value - 0.05) < 1e-9
    assert values["subspaces:noise"].n == 3


@pytest.mark.parametrize(("change", "says"), [
    ({"init_seed": 0}, "two runs of one seed"), ({"group": "line, --lr 0.2"}, "two treatments"),
    ({"dataset": "MNIST"}, "several dataset, MNIST, None"),
])
def test_runs_that_are_not_draws_of_one_thing_are_refused(change, says):
    found = results()
    found["runs"].append({**row(3, "line", 0.72, 0.03), **change})
    with pytest.raises(UsageError, match=says):
        claims.judged(found)


def test_ensembles_that_share_a_network_are_no_independent_values():
    """Where the ensemble of two networks is as good as their mean, drawing pairs is drawing networks."""
    found, own = results(), {0: 0.70, 1: 0.74, 2: 0.81}
    for p in found["independent"]:
        seeds = [found["runs"][p[k]]["init_seed"] for k in "ab"]
        p["accuracy_probability"] = sum(own[s] for s in seeds) / 2
    (ensemble,) = [c for c in claims.judged(found) if c.id == "subspaces:ensemble"]
    apart = [0.73 + 0.0005 * s - own[s] for s in SEEDS]
    value, low, high = bootstrap(apart)
    assert ensemble.n == 3 and abs(ensemble.value - value) < 1e-12
    assert ensemble.high - ensemble.low > 0.9 * (high - low)


def test_a_midpoint_is_at_one_half():
    found = results()
    for r in found["runs"]:
        r["points"] = [p for p in r["points"] if p["t"] != 0.5]
    with pytest.raises(UsageError, match="its midpoint was not measured"):
        claims.judged(found)


def test_what_was_not_run_is_not_claimed():
    found = results()
    found["runs"] = [r for r in found["runs"] if not r["noise_rate"] and r["scheduler"] == "cosine" and r["beta"]]
    found["independent"] = []
    assert verdicts(found).keys() == {"flat", "midpoint-accuracy", "midpoint-ece", "ensemble-midpoint", "diversity"}


def test_the_results_with_most_runs_are_taken_and_the_ledger_reads_them(tmp_path):
    for name, held in (("a", results()), ("b", {**results(), "runs": results()["runs"][:2], "independent": []}),
                       ("c", {**results(0.9), "corruption": "gaussian_noise:3", "runs": results()["runs"] * 2})):
        (tmp_path / name).mkdir()
        runs.write_json(tmp_path / name / "results.json", held)
        runs.write_bytes(tmp_path / name / "done", b"")
    out = tmp_path / "claims.json"
    assert claims.main([str(tmp_path), "--out", str(out)]) == 0
    assert len(ledger.read(out)) == 10
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileProblem, match="run it first"):
        claims.main([str(tmp_path / "empty"), "--out", str(out)])
    runs.write_json(tmp_path / "a" / "results.json", {**results(), "runs": results()["runs"][1:2], "independent": []})
    (tmp_path / "b" / "done").unlink()
    with pytest.raises(FileProblem, match="no line beside standard"):
        claims.main([str(tmp_path), "--out", str(out)])
