"""The superposition sweep: data, loss and gradient against plain twins, dimensionalities, resuming, refusals."""

import csv
import json
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from double_descent import superposition
from landscape import runs
from landscape.errors import ContentError, Interrupted, UsageError

TINY = ["--features", "20", "--sparsity", "0.8", "--hidden", "2,3", "--examples", "3,6", "--seeds", "2",
        "--steps", "30", "--test_examples", "40", "--device", "cpu", "--threads", "1"]  # fmt: skip
NEVER = SimpleNamespace(requested=None)


def only_run(root):
    (folder,) = root.glob("double_descent/*")
    return folder


def stacked(seeds, count, hidden, features=30, sparsity=0.8):
    x = np.stack([superposition.draw(1, ["train", k], count, features, sparsity) for k in range(seeds)])
    weights = np.stack([superposition.initial(1, k, hidden, features) for k in range(seeds)])
    return torch.from_numpy(x), torch.from_numpy(weights)


# ---- data ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.99])
def test_the_share_of_active_features_and_the_norms_are_right(sparsity):
    x = superposition.draw(1, ["train", 0], 400, 500, sparsity)
    assert x.dtype == np.float32 and x.min() >= 0
    assert np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
    share, error = (x > 0).mean(), (sparsity * (1 - sparsity) / x.size) ** 0.5
    rescued = sparsity**500 / 500  # features that fill examples without any
    assert abs(share - (1 - sparsity) - rescued) <= 4 * error


def test_active_features_are_uniform_before_they_are_rescaled():
    """Two active features a < b of an example: a/b is uniform, whatever the norm."""
    x = superposition.draw(3, ["train", 0], 20000, 10, 0.8)
    two = x[(x > 0).sum(1) == 2]
    low, high = np.sort(two, axis=1)[:, -2:].T
    assert len(two) > 1000 and np.abs(np.sort(low / high) - np.linspace(0, 1, len(two))).max() < 2 / len(two) ** 0.5


def test_an_example_without_an_active_feature_gets_one():
    x = superposition.draw(1, ["train", 0], 300, 5, 0.99)
    assert ((x > 0).sum(1) >= 1).all() and (x.max(1) == 1).sum() > 280
    assert np.bincount(x.argmax(1), minlength=5).min() > 30


def test_examples_are_nested_and_each_seeds_own():
    few, many = (superposition.draw(1, ["train", 0], t, 50, 0.9) for t in (7, 20))
    assert np.array_equal(few, many[:7])
    for other in (superposition.draw(1, ["train", 1], 7, 50, 0.9), superposition.draw(2, ["train", 0], 7, 50, 0.9),
                  superposition.draw(1, ["test"], 7, 50, 0.9)):  # fmt: skip
        assert not np.array_equal(few, other)


def test_initial_weights_have_xaviers_spread():
    weights = superposition.initial(1, 0, 40, 360)
    assert abs(weights.std() / (2 / 400) ** 0.5 - 1) < 0.02 and abs(weights.mean()) < 1e-3
    assert not np.array_equal(weights, superposition.initial(1, 1, 40, 360))


# ---- the model -----------------------------------------------------------------------------------------------------

def plain_loss(x, weights, bias):
    """One member, one example and one feature at a time."""
    total = 0.0
    for row in x.tolist():
        h = [sum(w * v for w, v in zip(line, row)) for line in weights.tolist()]
        for j, v in enumerate(row):
            said = bias[j].item() + sum(h[i] * weights[i, j].item() for i in range(len(h)))
            total += (v - max(0.0, said)) ** 2
    return total / len(x)


def test_the_loss_is_that_of_a_plain_twin_and_the_gradient_autograds():
    x, weights = stacked(3, 9, 4)
    x, weights = x.double(), (3 * weights).double().requires_grad_()
    bias = torch.linspace(-0.3, 0.3, 90, dtype=torch.double).reshape(3, 30).requires_grad_()
    found = superposition.losses(x, weights, bias)
    for k in range(3):
        assert abs(found[k].item() - plain_loss(x[k], weights[k], bias[k])) < 1e-12
    theirs = torch.autograd.grad(found.sum(), (weights, bias))
    ours = superposition.gradients(x, weights.detach(), bias.detach())
    for a, b in zip(ours, theirs):
        assert b.abs().max() > 0 and torch.allclose(a, b, atol=1e-12)


def test_stacked_training_is_the_training_of_each_by_a_plain_loop():
    x, start = stacked(3, 8, 2)
    args = SimpleNamespace(steps=60, lr=0.01, weight_decay=0.1)
    weights, bias = superposition.trained(x, start, args, NEVER)
    for k in range(3):
        w, b = torch.nn.Parameter(start[k].clone()), torch.nn.Parameter(torch.zeros(30))
        optimiser = torch.optim.AdamW([w, b], lr=0.01, weight_decay=0.1)
        for step in range(60):
            warm = 3  # a twentieth
            factor = (step + 1) / warm if step < warm else (1 + np.cos(np.pi * (step - warm) / (60 - warm))) / 2
            optimiser.param_groups[0]["lr"] = 0.01 * factor
            optimiser.zero_grad()
            said = torch.relu(x[k] @ w.T @ w + b)
            ((said - x[k]) ** 2).sum(1).mean().backward()
            optimiser.step()
        assert torch.allclose(weights[k], w, atol=1e-5) and torch.allclose(bias[k], b, atol=1e-5)
        assert (weights[k] - start[k]).abs().max() > 0.05


def test_the_rate_warms_up_and_ends_at_0():
    rates = [superposition.rate(step, 1000, 0.5) for step in range(1000)]
    assert np.allclose(rates[:50], 0.5 * np.arange(1, 51) / 50) and max(rates) == 0.5
    assert all(a >= b for a, b in zip(rates[50:], rates[51:])) and rates[-1] < 1e-5
    assert abs(rates[525] - 0.25) < 1e-9
    assert superposition.rate(0, 1, 0.5) == 0.5


def test_training_learns_two_examples():
    """Not to 0 in each: where a ReLU is shut for the one example that has its feature, no gradient opens it."""
    x, start = stacked(6, 2, 3)
    trained = superposition.trained(x, start, SimpleNamespace(steps=1000, lr=0.01, weight_decay=0.0), NEVER)
    assert (superposition.losses(x, *trained) < 0.3 * superposition.losses(x, start, 0 * start[:, 0])).all()


def test_a_loss_that_is_not_finite_is_refused():
    x, start = stacked(1, 4, 2)
    with pytest.raises(ContentError, match="m = 2, T = 4: the loss is not finite"):
        superposition.trained(x, start, SimpleNamespace(steps=5, lr=1e20, weight_decay=0.0), NEVER)


# ---- dimensionality ------------------------------------------------------------------------------------------------

def polygon(corners):
    angle = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def test_dimensionality_of_known_configurations():
    orthogonal = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0][:4]
    lengths = np.array([[1.0], [2.0], [0.1], [5.0]])
    for measure in (superposition.dimensionality, superposition.best_dimensionality):
        assert np.allclose(measure(lengths * orthogonal), 1)
        for corners in (3, 5, 8):
            assert np.allclose(measure(3 * polygon(corners)), 2 / corners)
    antipodal = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert np.allclose(superposition.dimensionality(antipodal), 0.5)
    with_zero = superposition.dimensionality(np.concatenate([polygon(5), np.zeros((2, 2))]))
    assert np.allclose(with_zero, [0.4] * 5 + [0, 0])


def test_dimensionalities_are_their_definitions():
    v = np.random.default_rng(1).normal(size=(2, 7, 3))
    ours, best = superposition.dimensionality(v), superposition.best_dimensionality(v)
    directions = np.random.default_rng(2).normal(size=(200000, 3))
    for k in range(2):
        shares = (directions @ v[k].T) ** 2
        shares /= shares.sum(1, keepdims=True)
        for i in range(7):
            unit = v[k, i] / np.linalg.norm(v[k, i])
            assert abs(ours[k, i] - v[k, i] @ v[k, i] / sum((unit @ u) ** 2 for u in v[k])) < 1e-12
            assert 0 <= best[k, i] - shares[:, i].max() < 0.01
    assert (ours <= best + 1e-12).all() and np.allclose(best.sum(1), 3)


# ---- the program ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    assert superposition.main([*TINY, "--runs", str(root)]) == 0
    return only_run(root)


def test_what_a_run_leaves(done):
    results = runs.read_json(done / "results.json")
    assert results["kind"] == "superposition" and results["hidden"] == [2, 3] and results["examples"] == [3, 6]
    arrays = runs.read_arrays(done / "arrays/superposition.npz")
    assert arrays["test_loss"].shape == (2, 2, 2)
    test = torch.from_numpy(superposition.draw(1, ["test"], 40, 20, 0.8))
    for row in results["cells"]:
        cell = runs.read_arrays(superposition.cell_file(done, row["hidden"], row["examples"]))
        weights, bias = torch.from_numpy(cell["W"]), torch.from_numpy(cell["b"])
        for k in range(2):
            loss = (torch.relu(test @ weights[k].T @ weights[k] + bias[k]) - test).square().sum(1).mean().item()
            assert abs(loss - cell["test_loss"][k]) < 1e-5
            x = superposition.draw(1, ["train", k], row["examples"], 20, 0.8)
            assert np.allclose(cell["h"][k], x @ cell["W"][k].T, atol=1e-5)
            assert np.allclose(cell["feature_dimensionality"][k], superposition.dimensionality(cell["W"][k].T))
            assert np.allclose(cell["example_dimensionality"][k], superposition.dimensionality(cell["h"][k]))
        assert abs(row["test_loss"] - cell["test_loss"].mean()) < 1e-6
        assert row["test_loss_low"] <= row["test_loss"] <= row["test_loss_high"]
        assert abs(row["w_norm"] - np.mean([np.linalg.norm(w) for w in cell["W"]])) < 1e-5
    with open(done / "superposition.csv") as f:
        assert [(r["hidden"], r["examples"]) for r in csv.DictReader(f)] == [
            (m, t) for m in "23" for t in "36"]
    assert {p.stem for p in (done / "figures").iterdir()} == {
        "superposition_loss", "superposition_curves", "superposition_dimensionality", "superposition_vectors"}


def test_the_curve_of_known_losses():
    means = {"test_loss": np.array([1.0, 3.0, 0.9, 0.97, 0.8, 0.7]), "w_norm": np.array([1, 2, 5, 4, 3, 2])}
    found = superposition.curve([1, 2, 5, 10, 20, 50], means, 0.95)
    assert found["peak_examples"] == 2 and found["onset"] == 20 and found["peak_norm_examples"] == 5
    assert superposition.curve([1, 2, 5, 10, 20, 50], means, 0.6)["onset"] is None
    assert superposition.curve([1, 2, 5, 10, 20, 50], means, 9.0)["onset"] == 1


def test_an_interrupted_sweep_goes_on_and_ends_the_same(done, tmp_path, monkeypatch):
    whole, calls = superposition.trained, []

    def asked_to_stop(*args):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(*args)

    assert threading.current_thread() is threading.main_thread()
    monkeypatch.setattr(superposition, "trained", asked_to_stop)
    monkeypatch.setattr(superposition, "write", lambda *_: None)  # figures
    argv = [*TINY, "--runs", str(tmp_path)]
    with pytest.raises(Interrupted, match="SIGINT: stopped after 2 of 4 pairs") as stopped:
        superposition.main(argv)
    assert stopped.value.exit_code == 75
    folder = only_run(tmp_path)
    assert not (folder / "done").exists() and len(list(folder.glob("arrays/cell-*"))) == 2
    calls[:] = [1] * 9
    assert superposition.main(argv) == 0 and len(calls) == 11
    assert json.loads((folder / "results.json").read_text()) == json.loads((done / "results.json").read_text())
    for file in (done / "arrays").iterdir():
        one, two = runs.read_arrays(file), runs.read_arrays(folder / "arrays" / file.name)
        assert one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)
    assert superposition.main(argv) == 0 and len(calls) == 11  # a finished one returns


@pytest.mark.parametrize("argv, said", [
    (["--sparsity", "1"], r"a share in \[0, 1\)"), (["--sparsity", "-0.1"], "at least 0"), (["--lr", "0"], "above 0"),
    (["--examples", "3,x"], "'x' is not a whole number"), (["--device", "cuda:99"], "CUDA devices|use --device cpu"),
    *(([f"--{name}", "0"], "not a positive") for name in ("features", "hidden", "seeds", "examples", "steps")),
])  # fmt: skip
def test_refusals(argv, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        superposition.main([*argv, "--runs", str(tmp_path)])
    assert not list(Path(tmp_path).rglob("done"))


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    assert superposition.main([*TINY, "--runs", str(tmp_path), "--dry_run"]) == 0
    assert list(tmp_path.iterdir()) == [] and "4 pairs of m in 2,3 and T in 3,6" in capsys.readouterr().out
