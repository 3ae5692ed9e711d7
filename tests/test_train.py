"""The training loop against a plain twin, schedules at exact steps, and what it writes."""

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from landscape import cli, data, evaluate, runs, seeding, train
from landscape.errors import UsageError

torch.set_num_threads(1)


def settings(tmp_path, **changes):
    """A small training on digits, in float32."""
    small = dict(dataset="digits", net="mlp", width=16, train_size=150, epochs=2, bs=32, lr=0.05, precision="fp32",
                 device="cpu", threads=1, runs=str(tmp_path / "runs"))
    return cli.library(**{**small, **changes})


def trained(tmp_path, penalty=None, **changes):
    """(run, network's final weights, data)"""
    args = settings(tmp_path, **changes)
    run = runs.start("regions", args)
    if not run.finished:
        train.train(run, args, torch.device("cpu"))
    run.close()
    weights, _ = runs.read_weights(run.path / "model.safetensors")
    return run, weights, args


def twin(args, accumulate_all=False):
    """The slow twin of fit: one plain loop over steps, each image prepared by itself."""
    d = train.make_data(args)
    network, described = train.make_network(args, d)
    augment = data.parse_augment(args.augment, d.entry)
    n, parameters = len(d.train), list(network.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    steps = train.steps_per_epoch(n, args.bs)
    for epoch in range(args.epochs):
        order = torch.randperm(n, generator=seeding.stream(args.order_seed, "order", epoch))
        draws = d.train.draw(augment, seeding.stream(args.augment_seed, "augment", epoch))
        for step in range(steps):
            rows = order[step * args.bs:(step + 1) * args.bs]
            x = torch.cat([d.train.batch(r[None], described["preprocessing"], augment, draws) for r in rows])
            y = d.train.labels[rows]
            said = network(x)
            logp = said.log_softmax(1)
            smooth = args.label_smoothing
            hit = -logp[range(len(y)), y]
            loss = ((1 - smooth) * hit - smooth * logp.mean(1)).mean()
            grads = torch.autograd.grad(loss, parameters)
            norm = math.sqrt(sum((g**2).sum().item() for g in grads))
            scale = min(1.0, args.clip_norm / norm) if args.clip_norm else 1.0
            rate = train.learning_rate(args, epoch * steps + step, steps)
            with torch.no_grad():
                for i, (p, g) in enumerate(zip(parameters, grads)):
                    g = g * scale + args.weight_decay * p
                    velocity[i] = args.momentum * velocity[i] + g
                    p -= rate * (g + args.momentum * velocity[i] if args.nesterov else velocity[i])
    return network.state_dict()


@pytest.mark.parametrize("changes", [
    {},
    {"nesterov": True, "scheduler": "cosine", "warmup": 0.5},
    {"augment": "crop,flip", "label_smoothing": 0.2, "clip_norm": 0.5},
], ids=["plain", "nesterov-cosine-warmup", "augmented-smoothed-clipped"])  # fmt: skip
def test_fit_equals_a_plain_loop(tmp_path, changes):
    _, weights, args = trained(tmp_path, **changes)
    expected = twin(args)
    for k, v in weights.items():
        assert torch.allclose(v, expected[k], atol=1e-5), k


def test_a_step_in_parts_is_the_same_step(tmp_path):
    _, whole, _ = trained(tmp_path)
    _, parts, _ = trained(tmp_path, accumulate=5)
    assert all(torch.allclose(whole[k], parts[k], atol=1e-5) for k in whole)


@pytest.mark.parametrize("opt", ["Adam", "AdamW"])
def test_other_optimisers_learn(tmp_path, opt):
    run, _, args = trained(tmp_path, opt=opt, lr=0.01, epochs=15, scheduler="cosine")
    assert args.weight_decay == {"Adam": 0.0, "AdamW": 0.01}[opt]
    lines = run.metrics()
    assert lines[-1]["train_loss"] < 0.5 * lines[0]["train_loss"]
    assert lines[-1]["test_accuracy"] > 0.6


def test_a_penalty_is_added_to_every_step(tmp_path):
    args = settings(tmp_path, epochs=6, scheduler="constant")
    d = train.make_data(args)
    norms = {}
    for strength in (0.0, 1.0):
        network, described = train.make_network(args, d)
        run = runs.start(f"penalty{strength}", args)

        def penalty(n, strength=strength):
            return strength * sum((p**2).sum() for p in n.parameters())

        train.fit(network, d, args, run, described, penalty=penalty)
        run.close()
        norms[strength] = sum((p**2).sum().item() for p in network.parameters())
    assert norms[1.0] < 0.2 * norms[0.0]


def test_bf16_stays_near_fp32(tmp_path):
    run32, _, _ = trained(tmp_path, net="resnet20", width=4)
    run16, weights, _ = trained(tmp_path, net="resnet20", width=4, precision="bf16")
    assert all(v.dtype in (torch.float32, torch.int64) for v in weights.values())
    a, b = run32.metrics()[0]["train_loss"], run16.metrics()[0]["train_loss"]
    assert a != b and abs(a - b) < 0.1 * a


# ---- schedules -----------------------------------------------------------------------------------------------------


def rates(scheduler, epochs, steps=10, **changes):
    args = cli.library(epochs=epochs, scheduler=scheduler, lr=1.0, precision="fp32", **changes)
    return np.array([train.learning_rate(args, s, steps) for s in range(epochs * steps)])


def test_the_milestones_of_dbviz():
    for epochs, expected in ((100, [37, 62, 87]), (200, [74, 124, 175])):
        r = rates("linear", epochs)
        drops = (np.flatnonzero(np.diff(r)) + 1) / 10
        assert drops.tolist() == expected
        assert np.allclose(np.unique(r), [0.001, 0.01, 0.1, 1])
    assert (rates("linear", 2)[:10] == 1).all()  # a milestone at epoch 0 is no milestone


def test_multistep_at_given_and_at_automatic_epochs():
    assert np.allclose(rates("multistep", 4, milestones="1,3")[[9, 10, 29, 30]], [1, 0.1, 0.1, 0.01])
    assert np.allclose(rates("multistep", 4, milestones="1,3", gamma=0.2)[[9, 10, 29, 30]], [1, 0.2, 0.2, 0.04])
    assert np.allclose(rates("multistep", 8)[[29, 30, 49, 50, 69, 70]], [1, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_cosine_constant_and_linear_decay():
    assert np.allclose(rates("cosine", 4)[[0, 20]], [1, 0.5]) and rates("cosine", 4)[-1] < 0.01
    assert (rates("constant", 4) == 1).all()
    assert np.allclose(rates("linear_decay", 4), 1 - np.arange(40) / 40)


@pytest.mark.parametrize(("name", "epochs"), [("drop_a", (9, 19, 29)), ("drop_paper", (10, 20, 30))])
def test_rates_of_deep_ensembles_halve_at_their_epochs(name, epochs):
    r = rates(name, 40, steps=3)
    assert r.tolist() == [0.5 ** sum(step // 3 >= e for e in epochs) for step in range(120)]
    assert (rates(name, 5) == 1).all()  # whatever the length of the run


@pytest.mark.parametrize(("cycles", "epochs", "steps"), [(5, 10, 7), (49, 49, 3), (1, 4, 10), (3, 7, 5)])
def test_cyclic_rates_are_huangs(cycles, epochs, steps):
    r, total = rates("cyclic", epochs, steps=steps, cycles=cycles), epochs * steps
    for t in range(total):
        inside = (t * cycles) % total / total  # share of a cycle that is over, of equal parts
        assert math.isclose(r[t], (math.cos(math.pi * inside) + 1) / 2, abs_tol=1e-12)
    if total % cycles == 0:  # equation 2 of Huang et al. 2017 to the letter, t from 1
        length = total // cycles
        twin = [(math.cos(math.pi * ((t - 1) % length) / length) + 1) / 2 for t in range(1, total + 1)]
        assert np.allclose(r, twin, atol=1e-12) and (r[::length] == 1).all()


def test_adams_epsilon_reaches_the_optimiser_and_the_name(tmp_path):
    for opt in ("Adam", "AdamW"):
        args = settings(tmp_path, opt=opt, adam_eps=1e-7)
        assert train.make_optimiser(torch.nn.Linear(1, 1), args).param_groups[0]["eps"] == 1e-7
        assert args.differs["adam_eps"] == 1e-7
        assert train.make_optimiser(torch.nn.Linear(1, 1), settings(tmp_path, opt=opt)).param_groups[0]["eps"] == 1e-8
    with pytest.raises(UsageError, match="above 0"):
        settings(tmp_path, adam_eps=0)
def test_schedules_of_averages_and_snapshots_fit_any_number_of_epochs():
    """Izmailov et al. 2018, Huang et al. 2017, Garipov et al. 2018; steps of a tenth of an epoch."""
    for epochs, cycles in ((20, 2), (100, 3), (160, 5)):
        of = {"swa_lr": 0.5, "swa_start": 0.75, "cycles": cycles}
        first = round(7.5 * epochs)
        r = rates("swa_constant", epochs, **of)
        assert (r[:5 * epochs] == 1).all() and np.allclose(r[7 * epochs], 0.75) and np.allclose(r[9 * epochs:], 0.5)
        r = rates("swa_cyclic", epochs, **of)
        restarts = np.flatnonzero(np.diff(r) > 0) + 1
        assert len(restarts) == cycles and restarts[0] == first and np.allclose(r[restarts], 0.5, atol=0.01)
        assert r[0] == 1 and (r[restarts - 1] < 0.01).all() and r[-1] < 0.01
        r = rates("fge", epochs, **of)
        assert np.allclose(r[first], 0.5)
        low = first + (np.arange(cycles) + 0.5) * (10 * epochs - first) / cycles
        assert np.allclose(r[np.round(low).astype(int)], 0.005, atol=0.05) and r[-1] > 0.3


def test_warmup_rises_to_the_full_rate_and_then_the_schedule_begins():
    r = rates("cosine", 4, warmup=1)
    assert np.allclose(r[:10], np.arange(1, 11) / 10)
    assert r[10] == 1 and np.allclose(r[25], 0.5)


@pytest.mark.parametrize("warmup", [0.05, 0.25, 0.51])
def test_a_warmup_that_ends_within_a_step_goes_no_higher(warmup):
    assert max(rates("constant", 2, warmup=warmup)) == 1


def test_no_part_of_a_batch_is_a_lone_image(tmp_path):
    """The last batch of 3 images is not divided into 2 and 1, of which BatchNorm could make nothing at 1x1 pixels."""
    import main

    assert main.main(["--net", "resnet18", "--width", "4", "--dataset", "digits", "--train_size", "51", "--bs", "48",
                      "--epochs", "1", "--accumulate", "2", "--imgs", "none", "--runs", str(tmp_path)]) == 0


def test_a_lone_last_image_is_left_out():
    assert train.steps_per_epoch(129, 128) == 1
    assert train.steps_per_epoch(130, 128) == 2
    assert train.steps_per_epoch(1, 128) == 1
    assert train.steps_per_epoch(5, 1) == 5
    assert train.steps_per_epoch(50_000, 128) == 391  # as in Keras, the last batch is short


def test_snapshot_epochs_in_words():
    def kept(text, epochs, **more):
        return train.snapshot_epochs(SimpleNamespace(snapshots=text, epochs=epochs, **more))

    assert kept("", 5) == set()
    assert kept("all", 2) == {0, 1, 2}
    assert kept("every=2", 5) == {0, 2, 4}
    assert kept("0,3", 5) == {0, 3}
    cycles = {"cycles": 2, "swa_start": 0.75, "warmup": 5.0}
    assert kept("cycles", 160, scheduler="swa_cyclic", **cycles) == {120, 140, 160}
    assert kept("cycles", 300, scheduler="swa_constant", **cycles) == {225, 262, 300}
    assert kept("cycles", 160, scheduler="fge", **cycles) == {130, 150}
    assert kept("cycles", 105, scheduler="cyclic", **cycles) == {55, 105}
    with pytest.raises(UsageError, match="too few"):
        kept("cycles", 6, scheduler="swa_cyclic", **{**cycles, "cycles": 3})
    with pytest.raises(UsageError, match="every=5"):
        kept("often", 5)


# ---- what is written -----------------------------------------------------------------------------------------------


def test_results_tell_last_and_best_apart_and_choose_on_validation(tmp_path):
    run, _, args = trained(tmp_path, epochs=5, val_size=100, lr=0.3)
    results, lines = runs.read_json(run.path / "results.json"), run.metrics()
    assert results["images"] == {"train": 150, "val": 100, "test": 360}
    accuracies = [r["val_accuracy"] for r in lines]
    assert results["best"]["epoch"] == 1 + accuracies.index(max(accuracies))
    assert results["last"]["epoch"] == 5
    best = runs.load(run.path, which="best")
    d = train.make_data(args)
    assert math.isclose(evaluate.score(best.network, d.val, best.preprocessing)["accuracy"], max(accuracies))
    assert math.isclose(evaluate.score(best.network, d.test, best.preprocessing)["accuracy"],
                        results["best"]["test_accuracy"])


def test_snapshots_begin_with_the_initial_weights_and_end_with_the_final_ones(tmp_path):
    run, weights, args = trained(tmp_path, snapshots="0,1,2")
    files = sorted(p.name for p in (run.path / "checkpoints").iterdir())
    assert files == ["epoch_0000.safetensors", "epoch_0001.safetensors", "epoch_0002.safetensors"]
    network, _ = train.make_network(args, train.make_data(args))
    first = runs.load(run.path / "checkpoints" / files[0]).network.state_dict()
    last = runs.load(run.path / "checkpoints" / files[2]).network.state_dict()
    assert all(torch.equal(first[k], v) for k, v in network.state_dict().items())
    assert all(torch.equal(last[k], v) for k, v in weights.items())


def test_init_from_starts_where_another_run_ended(tmp_path):
    first, weights, _ = trained(tmp_path)
    run, again, _ = trained(tmp_path, init_from=str(first.path / "model.safetensors"), epochs=0)
    assert all(torch.equal(weights[k], again[k]) for k in weights)


def test_a_run_without_a_validation_set_has_no_best(tmp_path):
    run, _, _ = trained(tmp_path)
    results = runs.read_json(run.path / "results.json")
    assert results["best"] is None and not (run.path / "best.safetensors").exists()
    assert 0 <= results["last"]["test_accuracy"] <= 1


def test_the_folder_holds_what_the_house_says(tmp_path):
    run, _, _ = trained(tmp_path)
    held = {p.name for p in Path(run.path).iterdir()}
    assert held == {"config.yaml", "meta.json", "metrics.jsonl", "model.safetensors", "results.json", "done"}
    meta = runs.read_json(run.path / "meta.json")
    assert meta["seeds"]["init_seed"] == 1 and meta["seconds"] >= 0 and meta["torch"]


def test_noise_is_trained_on_and_the_true_labels_are_kept(tmp_path):
    args = settings(tmp_path, noise_rate=0.3, train_size=0)
    d = train.make_data(args)
    wrong = (d.train.labels != d.train.true_labels).float().mean().item()
    assert 0.28 < wrong <= 0.3
    assert torch.equal(d.test.labels, d.test.true_labels)


def test_compiled_training_is_the_same_training(tmp_path, monkeypatch):
    compiler = torch.compile
    used = []

    def eager(network):  # torch's own tracing without the minutes that generating C++ takes
        used.append(network)
        return compiler(network, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    _, plain, _ = trained(tmp_path, epochs=1, train_size=64)
    assert not used
    _, compiled, _ = trained(tmp_path, epochs=1, train_size=64, compile=True)
    assert used and all(torch.allclose(plain[k], compiled[k], atol=1e-5) for k in plain)


# ---- what it would take --------------------------------------------------------------------------------------------

def test_a_training_says_what_all_of_it_would_take_and_writes_nothing(tmp_path, capsys):
    args = settings(tmp_path, epochs=30, time_steps=8)

    def slow(network):
        time.sleep(0.02)
        return 0 * next(network.parameters()).sum()

    train.time_run(args, torch.device("cpu"), penalty=slow)
    said = json.loads(capsys.readouterr().out.removeprefix("timed: "))
    assert said["steps"] == 150 and 0.02 < said["step"] < 0.2 and said["measuring"] < 5
    assert said["seconds"] == pytest.approx(150 * said["step"] + 30 * said["evaluation"], abs=2e-3)
    assert 150 * 0.02 < said["low"] <= said["seconds"] <= said["high"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("changes", "steps"), [({"epochs": 0}, 0), ({"epochs": 1, "bs": 150}, 1)])
def test_the_shortest_trainings_are_timed_too(tmp_path, capsys, changes, steps):
    train.time_run(settings(tmp_path, time_steps=8, **changes), torch.device("cpu"))
    said = json.loads(capsys.readouterr().out.removeprefix("timed: "))
    assert said["steps"] == steps and said["seconds"] > 0 and (said["step"] > 0) == (steps > 0)
