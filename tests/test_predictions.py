"""Networks of any study, found by folder, pattern or file; their logits computed once and kept beside them."""

import shutil

import numpy as np
import pytest
import torch

from ensembles import train as training
from landscape import cli, evaluate, predictions, runs
from landscape import data as datasets
from landscape.errors import ContentError, FileProblem, UsageError

torch.set_num_threads(1)
TINY = ["--net", "mlp", "--width", "8", "--dataset", "digits", "--train_size", "80", "--val_size", "40", "--epochs",
        "1", "--bs", "40", "--precision", "fp32", "--device", "cpu", "--threads", "1", "--stack", "never"]  # fmt: skip


def made(root, *argv):
    """The run folders of a training of members, by seed."""
    assert training.main([*TINY, "--runs", str(root), *argv]) == 0
    return sorted((p.parent for p in root.rglob("done")), key=lambda p: int(p.name.partition("seed=")[2][:1] or 1))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def three(kept):
    return made(kept / "three", "--members", "3")


@pytest.fixture
def copied(three, tmp_path):
    """A copy of the three runs, of which nothing has been measured, to be changed."""
    shutil.copytree(three[0].parent, tmp_path / "ensembles", ignore=shutil.ignore_patterns("arrays"))
    return [tmp_path / "ensembles" / p.name for p in three]


def asked(*members, flags=()):
    parser = cli.Parser("python -m some.thing", "")
    predictions.add_networks(parser, cli, "runs/ensembles")
    cli.add_machine(parser)
    cli.add_output(parser)
    return cli.resolve(parser.settings(["--members", *map(str, members), "--device", "cpu", "--threads", "1", *flags]))


def paths(*members, flags=()):
    return [n.source.path for n in predictions.find(asked(*members, flags=flags))]


def said(args, networks):
    held = predictions.split_settings(networks, args, "test")

    def images_for(seen):
        return predictions.split_images(held, args, seen["channels"], seen["image_size"])

    return predictions.logits(networks, args, held, images_for)


# ---- finding -------------------------------------------------------------------------------------------------------

def test_folders_patterns_and_files_name_each_run_once_sorted_by_seed(copied):
    root = copied[0].parent
    results = root / "similarity-12345678"  # what a measuring script leaves beside the runs
    results.mkdir()
    (results / "config.yaml").write_text("members: [x]\n")
    (results / "done").touch()
    (root / "notes.txt").write_text("not a network")
    for words in ([root], [root / "*"], [copied[1], root, copied[1]], [root / "*/model.safetensors"], copied[::-1]):
        assert paths(*words) == copied, words
    assert paths(root / "*", flags=["--select", "init_seed=1|3"]) == [copied[0], copied[2]]
    assert paths(root / "*/model.safetensors", flags=["--select", "seed=2"]) == [copied[1]]
    with pytest.raises(FileProblem, match="nothing has such a name"):
        paths(root / "absent*")
    with pytest.raises(FileProblem, match="no run folder and no checkpoint"):
        paths(root / "notes*")
    with pytest.raises(FileProblem, match="no finished run"):
        paths(root / "sim*")
    with pytest.raises(FileProblem, match="init_seed=7"):
        paths(root / "*", flags=["--select", "init_seed=7"])
    with pytest.raises(UsageError, match="--select initseed=1"):
        paths(root / "*", flags=["--select", "initseed=1"])
    with pytest.raises(FileProblem, match="does not exist"):
        paths(root / "absent")
    with pytest.raises(UsageError, match="1 network in .*: at least 2"):
        predictions.find(asked(copied[0]), at_least=2)


def test_networks_of_other_data_classes_or_inputs_are_refused_with_the_reason(three, kept):
    other = made(kept / "normalised", "--members", "1", "--normalize", "dataset")
    fake = made(kept / "fake", "--members", "1", "--dataset", "fake:1x8x8:7:200")
    with pytest.raises(UsageError, match=r"differ in the mean of their inputs .*--any_preprocessing"):
        paths(*three, *other)
    assert len(paths(*three, *other, flags=["--any_preprocessing"])) == 4
    with pytest.raises(UsageError, match="different data: .*--select dataset=digits"):
        paths(*three, *fake)
    foreign = kept / "foreign7"
    (foreign / "mlp").mkdir(parents=True)
    shutil.copy(fake[0] / "model.safetensors", foreign / "mlp/seven.safetensors")
    with pytest.raises(ContentError, match="7 classes, the data set has 10"):
        paths(*three, foreign, flags=["--dataset", "digits"])
    large = made(kept / "large", "--members", "1", "--image_size", "16")
    with pytest.raises(UsageError, match=r"differ in the image_size of their inputs \(16, 8\)"):
        paths(*three, *large)


def test_networks_with_other_inputs_are_each_asked_in_their_own_way(three, kept):
    other = made(kept / "normalised", "--members", "1", "--normalize", "dataset")
    args = asked(three[0], *other, flags=["--any_preprocessing"])
    networks = predictions.find(args)
    test = datasets.load("digits", val_size=0).test
    for n, held in zip(networks, said(args, networks)):
        trained = runs.load(n.source.path)
        assert np.allclose(held, evaluate.logits(trained.network, test, trained.preprocessing).numpy(), atol=1e-5)
    assert not np.allclose(*said(args, networks), atol=0.1)


def test_foreign_checkpoints_are_members(three, tmp_path):
    weights, _ = runs.read_weights(three[1] / "model.safetensors")
    (tmp_path / "mlp").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for file in ("mlp/two.pth", "elsewhere/two.pth"):
        torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / file)
    flags = ["--dataset", "digits", "--width", "8", "--normalize", "none", "--runs", str(tmp_path / "runs")]
    args = asked(three[1], tmp_path / "mlp", flags=flags)
    networks = predictions.find(args)
    assert sorted(n.source.foreign for n in networks) == [False, True]
    ours, theirs = said(args, networks)
    assert np.array_equal(ours, theirs)
    assert list((tmp_path / "runs/regions").glob("foreign_mlp_two-*/arrays/logits-*.npz"))
    assert predictions.snapshots(next(n for n in networks if n.source.foreign)) == {}
    with pytest.raises(UsageError, match="two.pth: the name of its folder .*elsewhere.*--net"):
        paths(tmp_path / "elsewhere", flags=flags)
    assert len(paths(tmp_path / "elsewhere", flags=[*flags, "--net", "mlp"])) == 1
    with pytest.raises(UsageError, match="differ in the std|differ in the mean"):
        paths(three[1], tmp_path / "mlp", flags=["--dataset", "digits", "--width", "8"])
    with pytest.raises(ContentError, match="fc1"):  # another width
        args = asked(tmp_path / "mlp", flags=[*flags[:2], *flags[4:], "--force"])
        said(args, predictions.find(args))


def test_a_checkpoint_that_describes_itself_needs_no_name(three, tmp_path):
    shutil.copy(three[0] / "model.safetensors", tmp_path / "kept.safetensors")
    args = asked(tmp_path / "kept.safetensors", three[0], flags=["--dataset", "digits", "--runs", str(tmp_path / "r")])
    one, two = said(args, predictions.find(args))
    assert np.array_equal(one, two)


def test_the_inputs_of_a_foreign_network_are_as_large_as_it_needs(three, kept, tmp_path):
    lenet = made(kept / "lenet", "--members", "1", "--net", "lenet", "--width", "0")  # digits have 8x8, LeNet takes 16
    weights, _ = runs.read_weights(lenet[0] / "model.safetensors")
    (tmp_path / "lenet").mkdir()
    torch.save(weights, tmp_path / "lenet/a.pth")
    flags = ["--dataset", "digits", "--normalize", "none", "--runs", str(tmp_path / "runs")]
    args = asked(lenet[0], tmp_path / "lenet", flags=flags)
    assert np.array_equal(*said(args, predictions.find(args)))


def test_the_best_weights_of_runs_need_a_validation_set(three, kept):
    args = asked(*three, flags=["--which", "best"])
    assert [n.path.name for n in predictions.find(args)] == ["best.safetensors"] * 3
    without = made(kept / "without", "--members", "1", "--val_size", "0")
    with pytest.raises(FileProblem, match="best.safetensors is missing: the run had no validation set"):
        paths(*without, flags=["--which", "best"])


def test_snapshots_are_in_order_and_a_missing_one_is_said(copied):
    network = predictions.find(asked(copied[0]))[0]
    held = predictions.snapshots(network)
    assert list(held) == [0, 1] and held[1].name == "seed 1, epoch 1" and held[0].source is network.source
    assert [n.epoch for n in predictions.late(network, 10)] == [1]  # that of before training is never late
    (copied[0] / "checkpoints/epoch_0000.safetensors").unlink()
    with pytest.raises(FileProblem, match="lacks the snapshot of epoch 0"):
        predictions.snapshots(network)


# ---- logits --------------------------------------------------------------------------------------------------------

@pytest.fixture
def counted(monkeypatch):
    """The names of the files whose logits are computed, in their order."""
    seen, real = [], evaluate.logits

    def logits(network, *args, **kwargs):
        seen.append(network)
        return real(network, *args, **kwargs)

    monkeypatch.setattr(evaluate, "logits", logits)
    return seen


def test_logits_are_computed_once_and_again_with_force(copied, counted):
    args = asked(*copied)
    networks = predictions.find(args)
    first = said(args, networks)
    assert len(counted) == 3 and first[0].shape == (360, 10) and first[0].dtype == np.float32
    network = runs.load(copied[2])
    test = datasets.load("digits", val_size=0).test
    assert np.array_equal(first[2], evaluate.logits(network.network, test, network.preprocessing).numpy())
    counted.clear()
    assert np.array_equal(said(args, networks), first) and not counted
    (file,) = (copied[1] / "arrays").glob("logits-*.npz")
    held = runs.read_arrays(file)
    runs.write_arrays(file, **{**held, "logits": held["logits"] + 1})
    assert np.array_equal(said(args, networks)[1], first[1] + 1)  # what is kept is what is said
    args.force = True
    assert np.array_equal(said(args, networks), first) and len(counted) == 3
    args.force = False
    counted.clear()
    said(args, predictions.find(asked(*copied, flags=["--which", "best"])))
    assert len(counted) == 3  # other weights
    file.write_bytes(b"half")
    with pytest.raises(ContentError, match="is damaged"):
        said(args, networks)


def test_a_member_trained_again_has_lost_what_its_weights_said(copied):
    args = asked(copied[0])
    said(args, predictions.find(args))
    assert list(copied[0].glob("arrays/logits-*.npz"))
    runs_of = copied[0].parent.parent
    assert training.main([*TINY, "--members", "1", "--runs", str(runs_of), "--force"]) == 0
    assert (copied[0] / "done").exists() and not list(copied[0].glob("arrays/logits-*.npz"))


def test_what_was_computed_before_an_interruption_is_kept(copied, monkeypatch, counted):
    args = asked(*copied)
    networks, real = predictions.find(args), predictions.load

    def stops(network, *rest):
        if network is networks[1]:
            raise KeyboardInterrupt
        return real(network, *rest)

    monkeypatch.setattr(predictions, "load", stops)
    with pytest.raises(KeyboardInterrupt):
        said(args, networks)
    assert len(list(copied[0].glob("arrays/logits-*.npz"))) == 1 and len(counted) == 1
    monkeypatch.setattr(predictions, "load", real)
    said(args, networks)
    assert len(counted) == 3


def test_diverged_networks_are_refused(copied):
    weights, described = runs.read_weights(copied[0] / "model.safetensors")
    name = next(k for k in weights if k.endswith("weight"))
    for value, words in ((float("nan"), "NaN or infinite weights"), (1e38, "logits are not finite")):
        bad = {k: torch.full_like(w, value) if k == name or value > 1 else w for k, w in weights.items()}
        runs.save_weights(copied[0] / "model.safetensors", bad, described)
        args = asked(*copied)
        with pytest.raises(ContentError, match=words):
            said(args, predictions.find(args))
        assert not list(copied[0].glob("arrays/*"))


def test_a_folder_that_cannot_be_written_is_said(copied):
    (copied[0] / "arrays").write_text("in the way")  # root may write in every folder
    args = asked(copied[0])
    with pytest.raises(FileProblem, match=r"cannot write .*arrays/logits-\w+\.npz: "):
        said(args, predictions.find(args))


def test_two_processes_may_measure_the_same_networks(copied):
    lock = runs.hold(copied[0] / "arrays")
    try:
        args = asked(copied[0])
        assert said(args, predictions.find(args))[0].shape == (360, 10)
    finally:
        runs.release(lock)


# ---- splits --------------------------------------------------------------------------------------------------------

def test_validation_and_training_images_are_those_that_all_members_have_in_common(three, kept, tmp_path):
    args = asked(*three)
    networks = predictions.find(args)
    data = datasets.load("digits", train_size=80, val_size=40, data_seed=1)
    for split, images in (("val", data.val), ("train", data.train), ("test", data.test)):
        held = predictions.split_settings(networks, args, split)
        assert np.array_equal(predictions.labels_of(held, args), images.labels.numpy())
        assert torch.equal(predictions.split_images(held, args).ids, images.ids)
    assert len(predictions.classes_of(held, args)) == 10
    without = predictions.find(asked(*made(kept / "without", "--members", "1", "--val_size", "0")))
    held = predictions.split_settings(without, args, "val")
    with pytest.raises(UsageError, match="without a val set: use --split test"):
        predictions.labels_of(held, args)
    with pytest.raises(UsageError, match="different parts or labels of digits"):
        predictions.split_settings([*networks, *without], args, "train")
    shutil.copy(three[0] / "model.safetensors", tmp_path / "a.safetensors")
    foreign = predictions.find(asked(tmp_path / "a.safetensors", flags=["--dataset", "digits"]))
    with pytest.raises(UsageError, match="does not say which images"):
        predictions.split_settings(foreign, args, "val")
