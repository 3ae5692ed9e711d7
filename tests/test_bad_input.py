"""Every kind of bad input: its exit code, one line that names the thing and the mend, and nothing half written."""

import builtins
import errno
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

import calculate_iou
import main
import save_preds
from landscape import cli, data, runs, train
from landscape.errors import ContentError, FileProblem, Interrupted, Refusal, UsageError
from models import ModelError

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
TINY = ["--dataset", "digits", "--net", "mlp", "--width", "16", "--train_size", "200", "--epochs", "1", "--bs", "50",
        "--precision", "fp32", "--resolution", "6", "--device", "cpu", "--threads", "1"]  # fmt: skip
MAPS = ["--planes", "4", "--resolution", "5", "--device", "cpu", "--threads", "1", "--map_precision", "fp32"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


def refused(code, *words, by=main, argv, out=None, empty=True):
    """The message with which a script refuses argv; code: its exit code. With out, nothing is left under it."""
    with pytest.raises((Refusal, ModelError)) as caught:
        by.main([*argv, *(["--runs", str(out)] if out else [])])
    message = str(caught.value)
    assert caught.value.exit_code == code, message
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message
    if out and empty:
        assert not [f for f in out.rglob("*") if f.is_file()], message
    return message


def mlp(classes=10, width=16):
    import models

    torch.manual_seed(0)
    return models.build("mlp", classes, in_channels=1, image_size=8, width=width)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder of runs, run folder) of a small finished training; not to be changed."""
    root = tmp_path_factory.mktemp("finished")
    assert main.main([*TINY, "--imgs", "none", "--runs", str(root)]) == 0
    (done,) = root.glob("regions/*/done")
    return root, done.parent


# ---- names and settings --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("flags", "words"), [
    (["--net", "resnet21"], ["unknown model 'resnet21'", "did you mean", "resnet20"]),
    (["--net", "nowhere.at.all:make"], ["nowhere.at.all", "failed"]),
    (["--dataset", "CIFAR11"], ["unknown data set 'CIFAR11'", "did you mean CIFAR10"]),
    (["--epochs", "many"], ["--epochs", "'many' is not a whole number"]),
    (["--epochs", "1.5"], ["--epochs", "'1.5' is not a whole number"]),
    (["--lr", "fast"], ["--lr", "'fast' is not a number"]),
    (["--lr", "inf"], ["--lr", "not a number"]),
    (["--resolution", "abc"], ["--resolution", "'abc' is not a number"]),
    (["--resolution", "inf"], ["--resolution"]),
    (["--resolution", "1"], ["--resolution", "at least 2"]),
    (["--resolution", "7.5"], ["--resolution", "not a whole number"]),
    (["--range_l", "nan"], ["--range_l", "finite"]),
    (["--range_l", "-0.6", "--range_r", "-0.5"], ["leave no area"]),
    (["--opt", "sgd"], ["--opt", "invalid choice", "SGD"]),
    (["--epoch", "3"], ["unknown argument --epoch", "did you mean --epochs"]),
    (["--augment", "crpo"], ["crpo"]),
    (["--normalize", "imagnet"], ["imagnet", "imagenet"]),
    (["--snapshots", "first"], ["--snapshots first", "every=5"]),
    (["--snapshots", "1,400"], ["--snapshots 1,400", "no epoch 400"]),
    (["--milestones", "a,b"], ["--milestones a,b", "30,60,90"]),
    (["--nesterov", "--momentum", "0"], ["--nesterov needs --momentum"]),
    (["--device", "tpu"], ["--device tpu", "cuda"]),
    (["--train_size", "99999"], ["train_size 99999", "does not fit"]),
    (["--val_size", "99999"], ["val_size 99999", "does not fit"]),
    (["--val_size", "-9"], ["--val_size -9", "-1 for the usual"]),
    (["--formats", "gif"], ["--formats 'gif'", "png, pdf, svg"]),
    (["--formats", ""], ["--formats ''", "png, pdf, svg"]),
    (["--column_by", "widht"], ["--column_by widht", "did you mean width"]),
    (["--net", "vgg11_bn", "--image_size", "8"], ["vgg11_bn", "--image_size 32"]),
    (["--net", "lenet", "--width", "3"], ["lenet", "leave --width out"]),
])  # fmt: skip
def test_wrong_settings_are_refused_before_anything_is_written(out, flags, words):
    argv = [w for w in TINY if w not in ("--width", "16")] if "--net" in flags else TINY
    refused(2, *words, argv=[*argv, *flags], out=out)


@pytest.mark.parametrize(("text", "words"), [
    ("net: mlp\nepochz: 3\n", ["line 2", "unknown key 'epochz'", "did you mean epochs"]),
    ("# a head\n\n  'lrr': 3\n", ["line 3", "'lrr'", "did you mean lr"]),
    ("net: mlp\nepochs: lots\n", ["line 2", "epochs", "'lots' is not a whole number"]),
    ("lr: true\n", ["line 1", "lr takes a value, not True"]),
    ("lr:\n", ["line 1", "lr takes a value"]),
    ("nesterov: 3\n", ["line 1", "nesterov is true or false, not 3"]),
    ("bs: [1, 2]\n", ["line 1", "bs"]),
    ("lr: 1\nnet: mlp\nlr: 2\n", ["line 3", "lr stands in line 1 already"]),
    ("config: other.yaml\n", ["line 1", "unknown key 'config'"]),
    ("script: save_preds.py\nplanes: 3\n", ["another script", "python save_preds.py --config"]),
    ("script: python -m star.train\nlr: 1\n", ["another script", "python -m star.train --config"]),
    ("net: [mlp\n", ["not YAML"]),
    ("- a\n", ["a mapping of settings"]),
    ("net: nonsuch\n", ["unknown model 'nonsuch'"]),
])  # fmt: skip
def test_a_wrong_config_is_refused_with_its_line(tmp_path, out, text, words):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    words = words if "nonsuch" in text else [path, *words]
    refused(2, *words, argv=["--config", str(path), "--dataset", "digits"], out=out)


def test_a_config_that_cannot_be_read(tmp_path, out):
    refused(3, "absent.yaml", "no such file", argv=[str(tmp_path / "absent.yaml")], out=out)
    refused(3, tmp_path, "is a directory", argv=["--config", str(tmp_path)], out=out)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    refused(2, "binary.yaml", "not a text file", argv=[str(tmp_path / "binary.yaml")], out=out)


# ---- checkpoints ---------------------------------------------------------------------------------------------------

class Code:
    def __reduce__(self):
        return print, ("this must never be printed",)


def other(state, **changes):
    return {**state, **changes}


def spoilt(path, kind):
    """Write a checkpoint that is wrong in this way."""
    own = mlp().state_dict()
    first = next(iter(own))
    tensors = {
        "architecture": {"features.0.weight": torch.ones(3)}, "classes": mlp(7).state_dict(),
        "nan": other(own, **{first: own[first] * float("nan")}),
        "infinite": other(own, **{first: own[first] / 0}),
    }.get(kind, own)
    if path.suffix == ".safetensors":
        path.write_bytes(save({k: v.contiguous() for k, v in tensors.items()}))
    else:
        torch.save({"net": tensors, "acc": 93.1, "epoch": 3} if kind != "classes" else tensors, path)
    whole = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[:len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("a web page that says 404")
    elif kind == "pickled code":
        path.write_bytes(pickle.dumps({"state_dict": Code()}))
    elif kind == "whole network":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "no weights":
        torch.save({"epoch": 3, 1: torch.ones(2)}, path)


WRONG = {
    "truncated": "truncated", "empty": "truncated", "text": "truncated", "architecture": "is not a mlp: missing",
    "classes": "does not fit (another class count", "nan": "holds NaN", "infinite": "holds NaN or infinite",
}  # fmt: skip
PICKLED = {"pickled code": "never loaded; save only its state_dict", "whole network": "never loaded",
           "no weights": "holds no state_dict"}  # fmt: skip


@pytest.mark.parametrize(("suffix", "kind", "word"), [
    *((s, k, w) for s in (".pth", ".safetensors") for k, w in WRONG.items()),
    *((".pth", k, w) for k, w in PICKLED.items()),
])  # fmt: skip
def test_a_spoilt_checkpoint_is_named_with_what_is_wrong(tmp_path, out, capsys, recwarn, suffix, kind, word):
    path = tmp_path / "mlp" / f"x{suffix}"
    path.parent.mkdir()
    spoilt(path, kind)
    load = ["--load_net", str(path), "--imgs", "1,2,3"]
    refused(4, path, word, argv=[*TINY, *load], out=out)
    refused(4, path, word, argv=[*TINY, "--init_from", str(path)], out=out)
    width = ["--width", "16", "--dataset", "digits", "--channels", "1"]
    refused(4, path, word, by=save_preds, argv=[*MAPS, *width, "--load_net", str(path.parent.parent)], out=out)
    assert "must never" not in capsys.readouterr().out and not recwarn.list


def test_a_checkpoint_that_is_not_there(tmp_path, out):
    refused(3, "absent.pth does not exist", argv=[*TINY, "--init_from", str(tmp_path / "absent.pth")], out=out)
    refused(3, "absent.pth does not exist", argv=[*TINY, "--load_net", str(tmp_path / "absent.pth")], out=out)
    refused(3, tmp_path, "is a folder", argv=[*TINY, "--init_from", str(tmp_path)], out=out)
    for by in (save_preds, calculate_iou):
        refused(3, "absent does not exist", by=by, argv=["--load_net", str(tmp_path / "absent")], out=out)


def test_the_wrong_dataset_for_a_run_is_told_by_its_classes(tmp_path, out):
    runs.save_weights(tmp_path / "seven.safetensors", mlp(7).state_dict(), {
        "architecture": {"name": "mlp", "num_classes": 7, "in_channels": 1, "image_size": 8, "width": 16},
        "preprocessing": {"mean": [0.0], "std": [1.0], "channels": 1, "image_size": 8, "dataset": "digits"}})
    refused(4, "seven.safetensors has 7 classes", "the data set has 10",
            argv=[*TINY, "--load_net", str(tmp_path / "seven.safetensors")], out=out)


def test_a_folder_whose_name_is_no_network_says_how_to_lay_it_out(tmp_path, out):
    (tmp_path / "mine").mkdir()
    torch.save(mlp().state_dict(), tmp_path / "mine" / "a.pth")
    refused(2, "mine/a.pth", "name of its folder", "--net NAME", argv=[*TINY, "--load_net", str(tmp_path)], out=out)


def test_metadata_of_somebody_else_is_refused(tmp_path):
    for text in ("[1]", "{"):
        (tmp_path / "m.safetensors").write_bytes(save({"a": torch.ones(2)}, metadata={runs.KEY: text}))
        with pytest.raises(ContentError, match="m.safetensors"):
            runs.read_weights(tmp_path / "m.safetensors")


# ---- folders given to --load_net -----------------------------------------------------------------------------------

@pytest.mark.parametrize("by", [main, save_preds, calculate_iou], ids=lambda m: m.__name__)
def test_a_folder_without_a_finished_run(tmp_path, out, by):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(3, empty, "holds no finished run", by=by, argv=["--load_net", str(empty)], out=out)
    (empty / "digits_mlp-12345678").mkdir()
    (empty / "digits_mlp-12345678" / "config.yaml").write_text("net: mlp\n")
    refused(3, empty, "1 unfinished: digits_mlp-12345678", "again", by=by, argv=["--load_net", str(empty)], out=out)


def test_a_damaged_config_of_a_run(tmp_path, out, finished):
    folder = tmp_path / "copy"
    folder.mkdir()
    for text in ("net: [", ""):
        (folder / "config.yaml").write_text(text)
        for name in ("done", "model.safetensors"):
            (folder / name).write_bytes(b"")
        refused(4, folder / "config.yaml", "damaged", by=save_preds, argv=["--load_net", str(folder)], out=out)


# ---- data ----------------------------------------------------------------------------------------------------------

def test_a_missing_and_a_corrupt_data_set(tmp_path, out):
    root = ["--data_root", str(tmp_path)]
    cifar = [w if w != "digits" else "CIFAR10" for w in TINY]
    refused(3, "CIFAR10 is not in", "python -m landscape.data fetch CIFAR10", "--dataset digits", argv=[*cifar, *root],
            out=out)
    for path, _ in data.DATASETS["CIFAR10"].files:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"half an archive")
    refused(4, "is corrupt", "fetch CIFAR10", argv=[*cifar, *root], out=out)
    refused(3, "no train/", argv=[*TINY, "--dataset", f"folder:{tmp_path}"], out=out)


def test_a_forced_training_that_cannot_start_keeps_the_last_one(tmp_path, finished):
    _, folder = finished
    before = sorted(folder.rglob("*"))
    for more in (["--device", "tpu"], ["--data_root", str(tmp_path), "--imgs", "1,2,99999"]):
        refused(2, argv=[*TINY, "--imgs", "none", *more, "--force"], out=folder.parent.parent, empty=False)
    assert sorted(folder.rglob("*")) == before


# ---- anchors -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("ids", "word"), [
    ("1,2,1437", "0 to 1436"), ("5,5,7", "same image"), ("1,2", "three ids"), ("1,2,3,4", "three ids"),
    ("a,b,c", "such as 500,5000,1600"), ("-99,2,3", "from 0 on"), ("1,2,", "three ids"),
])  # fmt: skip
def test_anchors_that_make_no_plane_are_refused_before_training(out, monkeypatch, finished, ids, word):
    monkeypatch.setattr(train, "fit", None)
    refused(2, "--imgs", word, argv=[*TINY, f"--imgs={ids}"], out=out)
    monkeypatch.undo()
    refused(2, "--imgs", word, argv=[*TINY, f"--imgs={ids}", "--load_net", str(finished[1])], out=out)


def test_anchors_of_equal_content_and_too_few_classes(out):
    fake = [*TINY, "--dataset", "fake:1x8x8:2:200", "--train_size", "0"]
    refused(2, "fewer than three classes", "--imgs", argv=fake, out=out)


# ---- disks ---------------------------------------------------------------------------------------------------------

def test_a_run_folder_that_cannot_be_made_or_written(tmp_path, monkeypatch, finished):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "runs", tmp_path / "file"):
        refused(3, "cannot write to", place, "--runs", argv=[*TINY, "--runs", str(place)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        refused(3, "cannot write to", "permission denied", argv=[*TINY, "--runs", str(tmp_path / "locked")])
        refused(3, "cannot write to", by=save_preds, argv=[*MAPS, "--load_net", str(finished[1])])
    (tmp_path / "plots").write_text("")
    refused(3, "cannot write", argv=[*TINY, "--load_net", str(finished[1]), "--plot_path", str(tmp_path / "plots/x")])


class FullDisk:
    """From its call-th on, every write to the disk under root fails: in open, in the middle of a file, or at fsync."""

    def __init__(self, patch, root, call, how):
        self.root, self.left = str(root), call
        plain = {"open": builtins.open, "fsync": os.fsync}

        def full():
            self.left -= 1
            if self.left <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def opened(file, mode="r", *args, **options):
            ours = set(mode) & set("wax+") and str(file).startswith(self.root)
            if ours and how == "open":
                full()
            handle = plain["open"](file, mode, *args, **options)
            return Half(handle, full) if ours and how == "write" else handle

        patch.setattr(builtins, "open", opened)
        if how == "fsync":
            patch.setattr(os, "fsync", lambda fd: (full(), plain["fsync"](fd)))


class Half:
    """A file of which a full disk takes half of the bytes."""

    def __init__(self, handle, full):
        self.handle, self.full = handle, full

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.close()

    def __getattr__(self, name):
        return getattr(self.handle, name)

    def write(self, what):
        try:
            self.full()
        except OSError:
            self.handle.write(what[:len(what) // 2])
            self.handle.flush()
            raise
        return self.handle.write(what)


def whole(root):
    """Every file under root can be read; there is no leftover beside one, no half line, no `done`."""
    for file in Path(root).rglob("*"):
        assert not file.name.startswith("."), file
        if file.suffix == ".safetensors":
            runs.read_weights(file)
        elif file.suffix == ".json":
            runs.read_json(file)
        elif file.suffix == ".npz":
            runs.read_arrays(file)
        elif file.suffix == ".jsonl":
            assert file.read_text() == "" or file.read_text().endswith("\n")


@pytest.mark.parametrize("how", ["open", "write", "fsync"])
def test_a_full_disk_during_training_and_drawing(out, monkeypatch, how, finished):
    """Whichever write fails, code 3 and nothing half written; the same command then completes what is left."""
    argv = [*TINY, "--imgs", "1,2,3", "--snapshots", "0", "--save_every", "0", "--runs", str(out)]
    failed = 0
    for call in range(1, 40):
        with monkeypatch.context() as patch:
            disk = FullDisk(patch, out, call, how)
            try:
                main.main(argv)
                break
            except FileProblem as e:
                assert e.exit_code == 3 and "no space left on device" in str(e) and "\n" not in str(e), str(e)
                assert "same command again" in str(e) or "--runs" in str(e)
                failed += 1
        whole(out)
        assert disk.left <= 0 and call < 39
    assert failed > 6
    (done,) = out.glob("regions/*/done")
    assert list(done.parent.glob("figures/regions_*.png")) and (done.parent / "figures/curves.png").exists()
    kept = ["last", "parameters"]
    ours, theirs = (runs.read_json(folder / "results.json") for folder in (done.parent, finished[1]))
    assert all(ours[k] == theirs[k] for k in kept)


def copied(finished, tmp_path):
    import shutil

    shutil.copytree(finished[0], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("how", ["open", "write", "fsync"])
def test_a_full_disk_during_class_maps_and_results(tmp_path, monkeypatch, finished, how):
    root = copied(finished, tmp_path)
    load = ["--load_net", str(root / "regions"), "--runs", str(root)]
    maps = [*MAPS, *load, "--save_every", "0"]
    for call in (1, 3):
        with monkeypatch.context() as patch:
            FullDisk(patch, root, call, how)
            refused(3, "no space left on device", "same command again", by=save_preds, argv=maps)
        whole(root)
    assert save_preds.main(maps) == 0
    assert calculate_iou.main([*load, "--resamples", "20"]) == 0
    (results,) = root.glob("regions/agreement_*/results.json")
    expected = runs.read_json(results)
    for call in (1, 2, 4, 7):
        with monkeypatch.context() as patch:
            FullDisk(patch, root, call, how)
            refused(3, "no space left on device", by=calculate_iou, argv=[*load, "--resamples", "20"])
        whole(root)
        assert not (results.parent / "done").exists()
    assert calculate_iou.main([*load, "--resamples", "20"]) == 0
    assert runs.read_json(results) == expected and (results.parent / "done").exists()


# ---- class maps ----------------------------------------------------------------------------------------------------

@pytest.fixture
def mapped(tmp_path, finished):
    """(folder of runs, [two files of class maps]): the finished run and a copy of it, with class maps."""
    import shutil

    root = copied(finished, tmp_path)
    (folder,) = (f.parent for f in root.glob("regions/*/done"))
    shutil.copytree(folder, folder.with_name("second"))
    assert save_preds.main([*MAPS, "--load_net", str(root), "--runs", str(root)]) == 0
    files = sorted(root.glob("regions/*/arrays/class_maps-*.npz"))
    assert len(files) == 2
    return root, files


def test_class_maps_of_other_planes_classes_or_resolutions_are_not_compared(mapped):
    root, (_, file) = mapped
    load = ["--load_net", str(root), "--runs", str(root)]
    assert calculate_iou.main([*load, "--resamples", "20"]) == 0
    (results,) = root.glob("regions/agreement_*/results.json")
    before = results.read_bytes()
    held = runs.read_arrays(file)
    for changes, word in (({"triplets": held["triplets"] + 1}, "other planes"),
                          ({"classes": np.array(["a"] * 10)}, "other classes"),
                          ({"labels": held["labels"][:, :-1]}, "another resolution")):
        runs.write_arrays(file, **{**held, **changes})
        refused(4, file, word, by=calculate_iou, argv=load)
    assert results.read_bytes() == before  # what was found last time is not cleared away first
    runs.write_arrays(file, **held)

    assert save_preds.main([*MAPS, "--resolution", "6", *load[2:], "--load_net", str(file.parent.parent)]) == 0
    refused(3, "no finished class maps that all 2 networks", "save_preds.py", by=calculate_iou,
            argv=[*load, "--resolution", "6"])
    assert calculate_iou.main([*load, "--resamples", "20"]) == 0  # only one set is common
    assert save_preds.main([*MAPS, "--resolution", "6", *load]) == 0
    refused(2, "2 sets of class maps: choose by --resolution 5/6", by=calculate_iou, argv=load)
    assert calculate_iou.main([*load, "--resamples", "20", "--resolution", "6"]) == 0


@pytest.mark.parametrize("kind", ["truncated", "no arrays", "other arrays", "settings"])
def test_a_damaged_file_of_class_maps(mapped, kind):
    root, (file, _) = mapped
    load = ["--load_net", str(root), "--runs", str(root)]
    raw = file.read_bytes()
    if kind == "truncated":
        file.write_bytes(raw[:len(raw) // 2])
    elif kind == "no arrays":
        file.write_text("hello")
    elif kind == "other arrays":
        runs.write_arrays(file, preds=np.ones(3))
    else:
        runs.write_arrays(file, **{**runs.read_arrays(file), "settings": "{"})
    refused(4, file, "damaged", by=calculate_iou, argv=load)
    if kind != "settings":
        refused(4, file, "damaged", by=save_preds, argv=[*MAPS, *load])
    assert save_preds.main([*MAPS, *load, "--force"]) == 0
    assert calculate_iou.main([*load, "--resamples", "20"]) == 0


def test_a_group_by_that_runs_do_not_have(mapped):
    load = ["--load_net", str(mapped[0]), "--runs", str(mapped[0])]
    refused(2, "--group_by widht", by=calculate_iou, argv=[*load, "--group_by", "widht"])


# ---- training that diverges, states that are damaged ---------------------------------------------------------------

def test_nan_stops_the_run_with_its_step(out):
    message = refused(4, "not finite in epoch 1, step", "lower --lr", argv=[*TINY, "--lr", "1e9", "--epochs", "3"],
                      out=out, empty=False)
    assert int(message.split("step ")[1].split(":")[0]) in range(1, 5)
    assert not list(out.rglob("done")) and not list(out.rglob("model.safetensors"))


def test_weights_that_diverge_in_the_last_step_are_seen(out):
    """The loss of a step is that of the weights before it."""
    argv = [*TINY, "--bs", "200", "--imgs", "none"]
    for more in (["--lr", "1e25"], ["--lr", "1e25", "--eval_every", "0"]):
        refused(4, "not finite", "lower --lr", argv=[*argv, *more], out=out, empty=False)
    assert not list(out.rglob("done"))
    refused(2, "--lr", "not a number", argv=[*argv, "--lr", "1e39"], out=out, empty=False)
    network = mlp()
    next(network.parameters()).data[0] = float("inf")
    with pytest.raises(ContentError, match="weights are not finite in epoch 3, step 7: lower --lr"):
        train.check_weights(network, 2, 7)


def test_a_damaged_state_says_which_file_to_delete(out, monkeypatch):
    argv = [*TINY, "--imgs", "none", "--runs", str(out), "--save_every", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "finish", lambda *_: (_ for _ in ()).throw(FileProblem("full")))
        with pytest.raises(FileProblem):
            main.main(argv)
    (state,) = out.glob("regions/*/resume.pt")
    state.write_bytes(state.read_bytes()[:100])
    refused(4, state, "damaged", "delete it", argv=argv)
    state.unlink()
    assert main.main(argv) == 0


# ---- the way out ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("raised", "code", "said"), [
    (UsageError("a\nb"), 2, "main.py: a b"), (ModelError("m"), 2, "main.py: m"), (FileProblem("f"), 3, "main.py: f"),
    (ContentError("c"), 4, "main.py: c"), (KeyboardInterrupt(), 75, "run the same command again"),
    (OSError(errno.ENOSPC, "No space left on device", "x.bin"), 3, "x.bin: the disk is full"),
    (PermissionError(errno.EACCES, "Permission denied", "x.bin"), 3, "x.bin: Permission denied"),
    (MemoryError(), 2, "too little memory"), (torch.OutOfMemoryError("CUDA out of memory. Tried"), 2, "--bs"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "too little memory"),
])  # fmt: skip
def test_run_leaves_with_the_code_and_one_line(monkeypatch, capsys, raised, code, said):
    def broken(argv):
        raise raised

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["/somewhere/main.py"])
    try:
        with pytest.raises(SystemExit) as left:
            cli.run(broken)
    finally:
        signal.signal(signal.SIGTERM, before)
    err = capsys.readouterr().err
    assert left.value.code == code and err.count("\n") == 1 and said in err


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(argv):
        raise RuntimeError("shapes differ")

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RuntimeError, match="shapes differ"):
            cli.run(broken)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_signal_on_the_way_out_changes_nothing(tmp_path):
    """Slurm and submitit each tell a job to end: the second word may come while Python is leaving."""
    code = ("import atexit, os, signal\nfrom landscape import cli\nfrom landscape.errors import Interrupted\n"
            "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
            "def main(argv):\n    raise Interrupted('saved')\ncli.run(main)\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == Interrupted.exit_code and done.stderr == "-c: saved\n"


@pytest.mark.parametrize(("script", "argv", "code"), [
    ("main.py", ["--net", "resnet21"], 2), ("save_preds.py", ["--load_net", "/nowhere"], 3),
    ("calculate_iou.py", ["--planez", "3"], 2),
])  # fmt: skip
def test_each_script_refuses_in_one_line(script, argv, code):
    done = subprocess.run([sys.executable, str(ROOT / script), *argv], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == code and done.stdout == ""
    assert done.stderr.startswith(f"{script}: ") and done.stderr.count("\n") == 1
