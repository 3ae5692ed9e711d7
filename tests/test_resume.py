"""Stopped at any moment, resumed, equal to the bit; and each seed owns what it says and nothing else."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import main
import save_preds
from landscape import cli, data, evaluate, runs, seeding, train
from landscape.errors import FileProblem, Interrupted

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
BF16 = cli.resolved_precision("auto", "cpu") == "bf16"
needs_bf16 = pytest.mark.skipif(not BF16, reason="this CPU does not compute in bf16")
SMALL = ["--dataset", "digits", "--bs", "32", "--device", "cpu", "--threads", "1", "--imgs", "none"]
KINDS = {
    "mlp": ["--net", "mlp", "--width", "32", "--train_size", "200", "--epochs", "4", "--augment", "crop"],
    "bf16": ["--net", "resnet20", "--width", "4", "--train_size", "128", "--epochs", "3", "--precision", "bf16"],
    "dropout": ["--net", "vit4", "--width", "16", "--train_size", "128", "--epochs", "3", "--augment", "crop,flip",
                "--opt", "Adam", "--lr", "0.003"],
}  # fmt: skip


def command(kind, root, *more):
    precision = [] if kind == "bf16" else ["--precision", "fp32"]
    return [*SMALL, *KINDS[kind], *precision, "--val_size", "100", "--snapshots", "0,2", "--runs", str(root), *more]


def sha(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def only(root):
    (config,) = Path(root).glob("regions/*/config.yaml")
    return config.parent


def outcome(root):
    """All that a finished training left, but for seconds and what differs by place: hashes, metrics, results."""
    folder = only(root)
    assert (folder / "done").exists()
    files = {str(f.relative_to(folder)): sha(f) for f in sorted(folder.rglob("*.safetensors"))}
    assert {"model.safetensors", "best.safetensors", "checkpoints/epoch_0000.safetensors"} <= files.keys()
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in runs.read_metrics(folder)]
    return files, lines, runs.read_json(folder / "results.json")


def no_half_file(root):
    """Nothing calls itself done, and what lies there is whole."""
    assert not list(Path(root).glob("regions/*/done"))
    readable(root)


def readable(root):
    """Whatever lies under root under its own name can be read."""
    for file in Path(root).rglob("*"):
        if file.name.startswith(".") or file.is_dir():
            continue
        if file.suffix == ".safetensors":
            runs.read_weights(file)
        elif file.suffix == ".json":
            runs.read_json(file)
        elif file.suffix == ".npz":
            runs.read_arrays(file)
        elif file.name == "resume.pt":
            torch.load(file, weights_only=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """outcome of the undisturbed training of a kind, made once."""
    made = {}

    def of(kind):
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            assert main.main(command(kind, root)) == 0
            made[kind] = outcome(root)
        return made[kind]
    return of


# ---- asked to stop -------------------------------------------------------------------------------------------------

def stopping_at(monkeypatch, number, call):
    """Send this process a signal in the call-th optimiser step from now on."""
    plain, count = train.take_step, [0]

    def step(*args):
        count[0] += 1
        if count[0] == call:
            signal.raise_signal(number)
        return plain(*args)

    monkeypatch.setattr(train, "take_step", step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_signal_saves_the_state_and_the_same_command_resumes_it(tmp_path, monkeypatch, uninterrupted, number):
    for call in (1, 7, 14):  # within an epoch (of 7 steps), again, and at the end of one
        with monkeypatch.context() as patch:
            stopping_at(patch, number, call)
            with pytest.raises(Interrupted, match=f"{number.name}: stopped .* the same command resumes it") as stop:
                main.main(command("mlp", tmp_path))
        assert stop.value.exit_code == 75 and "\n" not in str(stop.value)
        no_half_file(tmp_path)
        assert (only(tmp_path) / "resume.pt").exists()
    assert main.main(command("mlp", tmp_path)) == 0
    assert outcome(tmp_path) == uninterrupted("mlp")


def test_a_signal_in_the_last_step_lets_the_run_end(tmp_path, monkeypatch, uninterrupted):
    stopping_at(monkeypatch, signal.SIGTERM, 4 * 7)
    assert main.main(command("mlp", tmp_path)) == 0
    assert outcome(tmp_path) == uninterrupted("mlp")


def test_a_stopped_run_gives_its_folder_free_in_the_same_process(tmp_path, monkeypatch):
    """Seen from a notebook: the lock must not outlive the exception."""
    with monkeypatch.context() as patch:
        stopping_at(patch, signal.SIGINT, 3)
        with pytest.raises(Interrupted):
            main.main(command("mlp", tmp_path))
    runs.release(runs.hold(only(tmp_path)))


def test_the_exit_code_is_75_and_nothing_is_printed_but_one_line(tmp_path):
    words = [sys.executable, str(ROOT / "main.py"), *command("mlp", tmp_path, "--save_every", "0")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*words, "--epochs", "400"], stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("resume.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    (line,) = process.stderr.read().splitlines()
    assert line.startswith("main.py: SIGTERM: stopped ") and line.endswith("the same command resumes it")


# ---- killed --------------------------------------------------------------------------------------------------------

def child(what):
    """Fork a process that calls what() and leaves with 0, or with 1 where it raises; returns its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            what()
            code = 0
        finally:
            os._exit(code)
    return pid


def killed(what, seconds):
    """kill -9 a process that does what() after so many seconds; was it still at it?"""
    pid = child(what)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def seconds_of(what):
    began = time.monotonic()
    assert os.waitpid(child(what), 0)[1] == 0
    return time.monotonic() - began


@pytest.mark.parametrize("kind", ["mlp", pytest.param("bf16", marks=needs_bf16), "dropout"])
def test_killed_three_times_at_random_and_resumed_is_the_same_to_the_bit(tmp_path, uninterrupted, kind):
    whole = seconds_of(lambda: main.main(command(kind, tmp_path / "timing", "--save_every", "0")))
    moments = random.Random()
    kills = 0
    while kills < 3:
        after = moments.uniform(0.05, 0.5) * whole
        if not killed(lambda: main.main(command(kind, tmp_path / "killed", "--save_every", "0")), after):
            break
        kills += 1
        if list((tmp_path / "killed").glob("regions/*/done")):  # killed on its way out
            break
        no_half_file(tmp_path / "killed")
    assert kills, "it was never killed in time"
    assert main.main(command(kind, tmp_path / "killed")) == 0
    assert outcome(tmp_path / "killed") == uninterrupted(kind)


@pytest.mark.parametrize("place", ["write", "fsync", "replace", "log"])
def test_killed_while_a_file_is_written(tmp_path, monkeypatch, uninterrupted, place):
    """The same at the worst moments: in the middle of a file, before and after it takes its name."""
    def doomed():
        count = [0]

        def counting(plain, after):
            def call(*args, **options):
                count[0] += 1
                if count[0] == 9:
                    if after:
                        plain(*args, **options)
                    os.kill(os.getpid(), signal.SIGKILL)
                return plain(*args, **options)
            return call

        if place == "log":
            runs.Run.log = counting(runs.Run.log, True)
            count[0] = 6
        elif place == "write":
            plain = runs.write_bytes

            def half(path, data):
                count[0] += 1
                if count[0] == 9:
                    Path(path).with_name(f".{Path(path).name}.tmp-1").write_bytes(data[:len(data) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                plain(path, data)

            runs.write_bytes = half
        else:
            setattr(os, place, counting(getattr(os, place), place == "replace"))
        main.main(command("mlp", tmp_path, "--save_every", "0"))

    assert os.WTERMSIG(os.waitpid(child(doomed), 0)[1]) == signal.SIGKILL
    no_half_file(tmp_path)
    assert main.main(command("mlp", tmp_path)) == 0
    assert outcome(tmp_path) == uninterrupted("mlp")
    assert not list(tmp_path.rglob(".*.tmp-*"))


def test_a_half_line_of_metrics_and_lines_without_a_state_are_dropped(tmp_path, monkeypatch, uninterrupted):
    with monkeypatch.context() as patch:
        stopping_at(patch, signal.SIGTERM, 16)  # in epoch 3
        with pytest.raises(Interrupted):
            main.main(command("mlp", tmp_path))
    with open(only(tmp_path) / "metrics.jsonl", "a") as f:
        f.write(json.dumps({"epoch": 3, "train_loss": -1}) + '\n{"epoch": 4, "tra')
    assert main.main(command("mlp", tmp_path)) == 0
    assert outcome(tmp_path) == uninterrupted("mlp")


def test_killed_between_done_and_the_figure_the_curves_are_drawn_later(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(main, "draw_curves", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main.main(command("mlp", tmp_path))
    assert (only(tmp_path) / "done").exists()
    before = sha(only(tmp_path) / "model.safetensors")
    assert main.main(command("mlp", tmp_path)) == 0
    assert (only(tmp_path) / "figures/curves.png").exists() and sha(only(tmp_path) / "model.safetensors") == before


# ---- class maps ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_class_maps_are_the_same_after_kills_and_signals(tmp_path, monkeypatch, precision):
    assert main.main(command("bf16" if BF16 else "mlp", tmp_path / "a", "--epochs", "1", "--snapshots", "0")) == 0
    folder = only(tmp_path / "a")
    words = ["--planes", "30", "--resolution", "20", "--threads", "1", "--device", "cpu", "--map_precision", precision,
             "--load_net", str(folder), "--runs", str(tmp_path / "a")]  # fmt: skip
    assert save_preds.main(words) == 0
    (file,) = folder.glob("arrays/class_maps-*.npz")
    expected = runs.read_arrays(file)
    file.unlink()
    whole = seconds_of(lambda: save_preds.main([*words, "--save_every", "0"]))
    file.unlink()
    moments, kills = random.Random(), 0
    while kills < 3:
        after = moments.uniform(0.1, 0.4) * whole
        if not killed(lambda: save_preds.main([*words, "--save_every", "0"]), after):
            break
        kills += 1
        if file.exists():
            assert int(runs.read_arrays(file)["complete"]) <= 30
    assert kills
    if not file.exists() or int(runs.read_arrays(file)["complete"]) < 30:
        with monkeypatch.context() as patch:
            plain = evaluate.ClassMapper.__call__
            patch.setattr(evaluate.ClassMapper, "__call__",
                          lambda *a, **k: (signal.raise_signal(signal.SIGTERM), plain(*a, **k))[1])
            try:
                save_preds.main(words)  # the last plane ends it
            except Interrupted as stop:
                assert stop.exit_code == 75 and "the same command goes on" in str(stop)
    assert save_preds.main(words) == 0
    held = runs.read_arrays(file)
    assert held.keys() == expected.keys()
    for name in held:
        assert np.array_equal(held[name], expected[name], equal_nan=held[name].dtype.kind == "f"), name
    assert not list(file.parent.glob(".*.tmp-*"))


# ---- two processes -------------------------------------------------------------------------------------------------

def test_two_processes_never_write_one_folder(tmp_path):
    args = cli.library(dataset="digits", net="mlp", epochs=1, runs=str(tmp_path), precision="fp32")
    with runs.start("regions", args) as run:
        with pytest.raises(FileProblem, match="written by another process") as refused:
            main.main(["--dataset", "digits", "--net", "mlp", "--epochs", "1", "--precision", "fp32", "--runs",
                       str(tmp_path)])  # fmt: skip
        assert refused.value.exit_code == 3 and str(run.path) in str(refused.value)
        again = child(lambda: runs.hold(run.path))  # and from another process
        assert os.waitpid(again, 0)[1] != 0
    runs.release(runs.hold(run.path))


def test_a_finished_run_can_be_read_by_many_and_where_nothing_can_be_written(tmp_path, monkeypatch):
    assert main.main(command("mlp", tmp_path, "--epochs", "1", "--snapshots", "0")) == 0
    folder = only(tmp_path)
    lock = runs.hold(folder)
    monkeypatch.setattr(os, "access", lambda *_: False)
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*")}
    assert main.main(command("mlp", tmp_path, "--epochs", "1", "--snapshots", "0")) == 0
    assert before == {f: f.stat().st_mtime_ns for f in folder.rglob("*")}
    runs.release(lock)


# ---- what each seed owns -------------------------------------------------------------------------------------------

OWNS = {
    "init_seed": {"weights"}, "order_seed": {"order", "dropout"}, "augment_seed": {"augmentation"},
    "data_seed": {"split", "subset"}, "noise_seed": {"noise"},
}  # fmt: skip
SEEDS = dict.fromkeys(OWNS, 5)


@pytest.fixture
def owned(tmp_path, monkeypatch):
    """What the draws of a training were: a function of its seeds to {what: hash}. Nothing is learned: a step only
    takes notes."""
    def of(**seeds):
        noted = {"order": [], "augmentation": [], "dropout": []}
        plain = data.Images.batches

        def batches(self, rows, bs, normalize, augment=None, draws=None):
            if draws is not None:
                noted["order"].append(rows)
                noted["augmentation"] += draws.values()
            return plain(self, rows, bs, normalize, augment, draws)

        def step(network, forward, objective, batch, *_):
            noted["dropout"].append(torch.rand(3))  # what a dropout layer would draw
            return torch.tensor(0.0), torch.zeros(len(batch[0]), 10)

        args = cli.library(dataset="digits", net="mlp", width=8, train_size=150, val_size=100, noise_rate=0.2, epochs=2,
                           bs=50, augment="crop,flip", precision="fp32", snapshots="0", runs=str(tmp_path), **seeds)
        with monkeypatch.context() as patch, runs.start(f"{len(list(tmp_path.iterdir()))}", args) as run:
            patch.setattr(data.Images, "batches", batches)
            patch.setattr(train, "take_step", step)
            d, network, described = train.prepare(args, "cpu")
            train.fit(network, d, args, run, described)
            weights, _ = runs.read_weights(run.path / "checkpoints/epoch_0000.safetensors")
        # Which images get a wrong label depends on which are there: noise is measured as wrong labels by row.
        parts = {"weights": weights.values(), "split": [d.val.ids], "subset": [d.train.ids],
                 "noise": [(d.train.labels - d.train.true_labels)] if seeds.get("data_seed", 5) == 5 else [], **noted}
        return {k: hashlib.sha256(b"".join(v.numpy().tobytes() for v in values)).hexdigest()
                for k, values in parts.items()}
    return of


def test_each_seed_owns_what_it_says_and_nothing_else(owned):
    before = owned(**SEEDS)
    assert before == owned(**SEEDS)
    for seed, owns in OWNS.items():
        after = owned(**{**SEEDS, seed: 6})
        changed = {k for k in before if before[k] != after[k]}
        assert changed - ({"noise"} if seed == "data_seed" else set()) == owns, seed


def test_seed_is_init_and_order_and_augmentation_follows_the_order(owned):
    before, after = owned(seed=5), owned(seed=6)
    assert {k for k in before if before[k] != after[k]} == {"weights", "order", "dropout", "augmentation"}


def test_the_noise_of_one_split_stays_under_another_init(owned):
    one = train.make_data(cli.library(dataset="digits", net="mlp", noise_rate=0.3, data_seed=3, seed=1))
    two = train.make_data(cli.library(dataset="digits", net="mlp", noise_rate=0.3, data_seed=3, seed=2))
    assert torch.equal(one.train.labels, two.train.labels) and torch.equal(one.train.ids, two.train.ids)
    assert not torch.equal(one.train.labels, one.train.true_labels)


def test_training_leaves_the_global_generators_alone(tmp_path):
    """Nothing reads or moves global random state: neither what came before nor what comes after matters."""
    results = []
    for junk in (1, 2):
        torch.manual_seed(junk)
        np.random.seed(junk)
        random.seed(junk)
        states = torch.get_rng_state().clone(), np.random.get_state()[1].copy(), random.getstate()
        assert main.main(command("dropout", tmp_path / str(junk), "--epochs", "1", "--snapshots", "0")) == 0
        assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()
        assert random.getstate() == states[2]
        results.append(outcome(tmp_path / str(junk)))
    assert results[0] == results[1]


def test_the_streams_of_one_seed_are_independent_by_name():
    draws = {name: torch.rand(4, generator=seeding.stream(1, name)).tolist() for name in ("init", "order", "augment")}
    assert len({tuple(v) for v in draws.values()}) == 3
