"""Training on several processes: parts of batches and of dropout masks, and torchrun beside one process."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import main as train_main
from landscape import cli, parallel, runs
from landscape.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
TRAINING = ["--net", "small_cnn", "--dataset", "digits", "--train_size", "115", "--epochs", "4", "--bs",
            "32", "--imgs", "none", "--augment", "crop", "--device", "cpu", "--precision", "fp32", "--threads", "1"]


@pytest.mark.parametrize("count,bs,size", [(100, 20, 2), (101, 20, 4), (41, 20, 4), (7, 20, 2), (60, 20, 5)])
def test_the_parts_of_all_processes_are_the_batches(monkeypatch, count, bs, size):
    order = torch.randperm(count)
    found = []
    for rank in range(size):
        monkeypatch.setattr(parallel, "world", lambda rank=rank: (rank, size))
        found.append(parallel.share(order, bs))
    for k, batch in enumerate(order.split(bs)):
        parts = [one.rows.split(one.bs)[k] for one in found]
        counted = [p for p, one in zip(parts, found) if one.shares[k] > 0]
        assert sorted(torch.cat(counted).tolist()) == sorted(batch.tolist())
        assert sum(one.shares[k] for one in found) == pytest.approx(1)
        assert all(one.sizes[k] == len(batch) and len(p) for one, p in zip(found, parts))  # none is left without a row
        mean = sum(one.shares[k] * p.float().mean() for one, p in zip(found, parts))
        assert mean.item() == pytest.approx(batch.float().mean().item(), rel=1e-6)


@pytest.mark.parametrize("shape", [(9, 5), (9, 4, 6, 6)])
def test_dropout_belongs_to_images(monkeypatch, shape):
    """Each process has the rows that one process would have dropped, also where channels come last."""
    x = torch.randn(shape)
    if x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    torch.manual_seed(3)
    whole = F.dropout(x, 0.4)
    for rank in range(2):
        monkeypatch.setattr(parallel, "world", lambda rank=rank: (rank, 2))
        network = torch.nn.Sequential(torch.nn.Dropout(0.4))
        parallel.share_dropout(network, {"size": len(x)})
        torch.manual_seed(3)
        part = x[rank::2].clone(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)
        assert torch.allclose(network(part), whole[rank::2])
        network.eval()
        assert torch.equal(network(part), part)


def test_a_process_without_a_part_drops_from_the_one_image_it_has(monkeypatch):
    """Of a batch of two images the third of three processes has none; it goes on with one, which counts nothing."""
    monkeypatch.setattr(parallel, "world", lambda: (2, 3))
    network = torch.nn.Sequential(torch.nn.Dropout(0.4))
    parallel.share_dropout(network, {"size": 2})
    assert network(torch.ones(1, 5)).shape == (1, 5)


def launch(root, words=(str(ROOT / "main.py"), *TRAINING, "--save_every", "0")):
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0",
             "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", *words, "--runs", str(root)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def workers(root):
    """The processes of a training, by number."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            env = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(root).encode() in words and any(e.startswith(b"LOCAL_RANK=") for e in env):
            found[next(int(e[11:]) for e in env if e.startswith(b"LOCAL_RANK="))] = int(folder.name)
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc to find the processes in")
def test_two_processes_do_what_one_does_also_when_one_of_them_is_killed(tmp_path):
    train_main.main([*TRAINING, "--runs", str(tmp_path / "one")])
    first = launch(tmp_path / "two")
    until = time.monotonic() + 120
    while not list(tmp_path.glob("two/regions/*/resume.pt")) and first.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    if first.poll() is None and 1 in (held := workers(tmp_path / "two")):
        os.kill(held[1], signal.SIGKILL)
    _, said = first.communicate(timeout=120)  # it ends, and does not hang
    (run,) = (tmp_path / "two/regions").iterdir()
    assert not (run / "done").exists(), "it was quicker than the kill"
    assert first.returncode != 0 and "exitcode  : 75" in said
    second = launch(tmp_path / "two")
    out, said = second.communicate(timeout=240)
    assert second.returncode == 0, said
    assert out.count("run: ") == 1  # one process speaks
    (alone,) = (tmp_path / "one/regions").iterdir()
    ours, theirs = (runs.read_weights(f / "model.safetensors")[0] for f in (alone, run))
    assert max((ours[k] - theirs[k]).abs().max().item() for k in ours) < 1e-5
    curves = [runs.read_metrics(f) for f in (alone, run)]
    assert [r["epoch"] for r in curves[1]] == list(range(1, 5))
    for a, b in zip(*curves):
        assert a["train_accuracy"] == pytest.approx(b["train_accuracy"]) and a["test_loss"] == pytest.approx(
            b["test_loss"], abs=1e-5)
    assert runs.read_json(run / "meta.json")["processes"] == 2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="--sync_bn needs a CUDA device for each of two processes")
def test_batchnorm_over_the_whole_batch_is_that_of_one_process(tmp_path):
    words = ["--net", "resnet20", "--width", "4", *TRAINING[2:], "--device", "cuda", "--epochs", "1"]
    train_main.main([*words, "--runs", str(tmp_path / "one")])
    process = launch(tmp_path / "two", (str(ROOT / "main.py"), *words, "--sync_bn"))
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    (ours,), (theirs,) = (list(tmp_path.glob(f"{n}/regions/*/model.safetensors")) for n in ("one", "two"))
    a, b = (runs.read_weights(f)[0] for f in (ours, theirs))
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-3


SMALL = ["--net", "mlp1", "--width", "12", *TRAINING[2:4], "--val_size", "0", "--train_size", "115", "--epochs", "2",
         "--bs", "32", "--device", "cpu", "--precision", "fp32", "--threads", "1"]
OTHERS = {
    "ensembles.train": [*SMALL, "--members", "2"], "double_descent.deep": [*SMALL, "--noise_rate", "0.2"],
    "subspaces.train": [*SMALL, "--family", "line"], "star.sources": [*SMALL, "--seeds", "3-4"],
    "star.train": [*SMALL, "--anchors", "anchors/regions", "--align_every", "1", "--lr", "0.05"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_other_trainings_do_on_two_processes_what_one_does(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "star.train":
        for seed in "01":
            train_main.main([*SMALL, "--seed", seed, "--imgs", "none", "--runs", "anchors"])
    importlib.import_module(name).main([*OTHERS[name], "--runs", "one"])
    process = launch("two", ["-m", name, *OTHERS[name]])
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    ours, theirs = (sorted(tmp_path.glob(f"{n}/*/*/model.safetensors")) for n in ("one", "two"))
    assert ours and [f.parent.name for f in ours] == [f.parent.name for f in theirs]
    for one, two in zip(ours, theirs):
        assert runs.read_json(two.parent / "meta.json")["processes"] == 2
        a, b = runs.read_weights(one)[0], runs.read_weights(two)[0]
        assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-5


@pytest.mark.parametrize("flags", [["--sync_bn"], ["--train_mode", "mixup"]])
def test_a_refusal_leaves_no_folder(monkeypatch, tmp_path, flags):
    monkeypatch.setattr(parallel, "join", lambda device: device)
    if "--sync_bn" not in flags:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UsageError, match=flags[-1].removeprefix("--")):
        train_main.main(["--net", "mlp", "--dataset", "digits", "--device", "cpu", "--runs", str(tmp_path), *flags])
    assert not list(tmp_path.iterdir())


def test_what_several_processes_cannot_do_is_refused(monkeypatch):
    def args(*flags):
        return cli.resolve(train_main.make_parser().settings(["--net", "mlp", "--dataset", "digits", *flags]))

    parallel.check(args("--train_mode", "mixup"))
    monkeypatch.setenv("WORLD_SIZE", "3")
    parallel.check(args("--bs", "32"))  # of something else than torchrun
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for flags, match in ((["--bs", "32"], "no multiple of the 3"), (["--bs", "33", "--train_mode", "mixup"], "mixup"),
                         (["--bs", "33", "--train_mode", "adv"], "adv")):
        with pytest.raises(UsageError, match=match):
            parallel.check(args(*flags))
