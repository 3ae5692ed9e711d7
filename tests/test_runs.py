"""Run folders, atomic files, and loading of our own and of foreign checkpoints."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch
from torch import nn

import models
from landscape import cli, data, runs
from landscape.errors import ContentError, FileProblem, UsageError

RESNET18 = {"name": "resnet18", "num_classes": 10, "in_channels": 3, "image_size": 32, "width": 0}
MLP = {"name": "mlp", "num_classes": 10, "in_channels": 1, "image_size": 8, "width": 4}


def network():
    torch.manual_seed(0)
    return runs.build(MLP)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_written_whole_is_not_there(tmp_path, monkeypatch):
    path = tmp_path / "a" / "x.json"
    runs.write_json(path, {"b": 1, "a": [1.5, None]})
    assert json.loads(path.read_text()) == {"a": [1.5, None], "b": 1}

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileProblem, match="no space left"):
        runs.write_json(path, {"b": 2})
    assert json.loads(path.read_text())["b"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_nan_is_never_written_as_json(tmp_path):
    with pytest.raises(ValueError):
        runs.write_json(tmp_path / "x.json", {"a": float("nan")})


def test_arrays_come_back_and_damage_is_named(tmp_path):
    path = tmp_path / "x.npz"
    runs.write_arrays(path, a=np.arange(300), s="text")
    assert (runs.read_arrays(path)["a"] == np.arange(300)).all()
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ContentError, match="damaged"):
        runs.read_arrays(path)
    with pytest.raises(FileProblem, match="missing"):
        runs.read_arrays(tmp_path / "y.npz")


# ---- weights -------------------------------------------------------------------------------------------------------


def test_weights_with_their_description_come_back_and_files_are_equal_to_the_byte(tmp_path):
    described = {"architecture": MLP, "preprocessing": {"mean": [0.5], "std": [1.0], "kind": "custom"}}
    hashes = set()
    for n in range(3):
        runs.save_weights(tmp_path / f"{n}.safetensors", network().state_dict(), described)
        hashes.add(hashlib.sha256((tmp_path / f"{n}.safetensors").read_bytes()).hexdigest())
    assert len(hashes) == 1
    back = runs.load(tmp_path / "0.safetensors")
    assert back.architecture == MLP and back.preprocessing == described["preprocessing"]
    assert all(torch.equal(v, back.network.state_dict()[k]) for k, v in network().state_dict().items())
    assert not back.network.training


class PytorchCifarResNet18(nn.Module):
    """ResNet18 with the parameter names of pytorch-cifar, written plainly: what a checkpoint from elsewhere holds."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        width = 64
        for stage, (out, stride) in enumerate([(64, 1), (128, 2), (256, 2), (512, 2)], 1):
            blocks = []
            for s in (stride, 1):
                block = nn.Module()
                block.conv1, block.bn1 = nn.Conv2d(width, out, 3, s, 1, bias=False), nn.BatchNorm2d(out)
                block.conv2, block.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
                block.shortcut = nn.Sequential()
                if s != 1 or width != out:
                    block.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, s, bias=False), nn.BatchNorm2d(out))
                blocks.append(block)
                width = out
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(512, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for b in stage:
                x = (b.bn2(b.conv2(b.bn1(b.conv1(x)).relu())) + b.shortcut(x)).relu()
        return self.linear(x.mean((2, 3)))


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "net", "model", "module.", "_orig_mod."])
def test_a_checkpoint_trained_elsewhere_gives_its_logits(tmp_path, wrap):
    torch.manual_seed(1)
    theirs = PytorchCifarResNet18()
    with torch.no_grad():  # statistics that are not those of a fresh network
        theirs.train()(torch.randn(4, 3, 32, 32))
    theirs.eval()
    held = theirs.state_dict()
    if wrap.endswith("."):
        held = {"net": {f"{wrap}{k}": v for k, v in held.items()}, "acc": 93.0, "epoch": 3}
    elif wrap != "bare":
        held = {wrap: held, "epoch": 3}
    torch.save(held, tmp_path / "theirs.pth")
    ours = runs.load(tmp_path / "theirs.pth", RESNET18, {"kind": "legacy"}).network
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)


class Evil:
    def __reduce__(self):
        return os.system, ("touch SHOULD_NOT_EXIST",)


@pytest.mark.parametrize(("make", "kind", "said"), [
    (lambda p: torch.save(network(), p), ContentError, "pickled code"),
    (lambda p: torch.save({"net": Evil()}, p), ContentError, "pickled code"),
    (lambda p: torch.save([1, 2], p), ContentError, "no state_dict"),
    (lambda p: torch.save({}, p), ContentError, "no state_dict"),
    (lambda p: p.write_bytes(b"not a checkpoint"), ContentError, "not a torch file"),
    (lambda p: p.write_bytes(b""), ContentError, "not a torch file"),
    (lambda p: None, FileProblem, "does not exist"),
    (lambda p: torch.save({k: v for k, v in network().state_dict().items() if "bias" not in k}, p), ContentError,
     "missing"),
    (lambda p: torch.save({**network().state_dict(), "more": torch.zeros(1)}, p), ContentError, "unexpected more"),
    (lambda p: torch.save(models.build("mlp", 7, in_channels=1, image_size=8, width=4).state_dict(), p), ContentError,
     "10 classes"),
    (lambda p: torch.save({k: v * float("nan") for k, v in network().state_dict().items()}, p), ContentError, "NaN"),
])  # fmt: skip
def test_bad_checkpoints_are_refused_in_one_line(tmp_path, monkeypatch, make, kind, said):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "some.pth"
    make(path)
    with pytest.raises(kind, match=said) as refused:
        runs.load(path, MLP, {})
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)
    assert not (tmp_path / "SHOULD_NOT_EXIST").exists()


def test_a_truncated_checkpoint_is_named(tmp_path):
    for name, save in (("a.pth", lambda p: torch.save(network().state_dict(), p)),
                       ("a.safetensors", lambda p: runs.save_weights(p, network().state_dict(), {}))):
        save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        for size in (len(whole) // 2, len(whole) - 7, 9):
            (tmp_path / name).write_bytes(whole[:size])
            with pytest.raises(ContentError, match="truncated|damaged"):
                runs.load(tmp_path / name, MLP, {})


def test_a_file_that_does_not_say_what_it_is_needs_net(tmp_path):
    torch.save(network().state_dict(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match="--net"):
        runs.load(tmp_path / "a.pth")


# ---- finding models ------------------------------------------------------------------------------------------------


def test_models_are_found_in_both_layouts_and_predictions_are_not(tmp_path):
    for file in ("ResNet/a.pth", "ResNet/b.pt", "VGG/c.pth", "ResNet/predictions/a_preds.pth"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save({}, tmp_path / file)
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    for name, text in {"config.yaml": "net: ResNet\nwidth: 8\nsave_net: ''", "done": "", "model.safetensors": "",
                       "best.safetensors": "", "exported.pth": ""}.items():
        (run / name).write_text(text)
    found = runs.find_models(tmp_path)
    assert [(s.group, s.name, s.foreign) for s in found] == [
        ("ResNet", "ResNet/a", True), ("ResNet", "ResNet/b", True), ("VGG", "VGG/c", True),
        ("resnet18 width=8", "one", False)]  # fmt: skip
    (run / "done").unlink()
    assert len(runs.find_models(tmp_path)) == 3
    with pytest.raises(FileProblem, match="no finished run"):
        runs.find_models(run)


def test_what_smoke_left_is_found_only_where_it_is_asked_for(tmp_path):
    for folder in ("regions/one", "smoke/regions/two"):
        runs.write_bytes(tmp_path / folder / "config.yaml", b"{net: ResNet, width: 8}")
        for name in ("done", "model.safetensors"):
            runs.write_bytes(tmp_path / folder / name, b"")
    (tmp_path / "smoke/vgg11").mkdir()
    torch.save({}, tmp_path / "smoke/vgg11/a.pth")

    def names(folder):
        return [s.name for s in runs.find_models(folder)]

    assert names(tmp_path) == ["one"] and names(tmp_path / "smoke/regions") == ["two"]
    assert names(tmp_path / "smoke") == ["two", "vgg11/a"]


def test_models_are_selected_by_their_settings(tmp_path):
    for net, opt in (("ResNet", "SGD"), ("ResNet", "Adam"), ("VGG", "SGD")):
        run = tmp_path / f"{net}{opt}"
        run.mkdir()
        (run / "config.yaml").write_text(f"net: {net}\nwidth: 0\nopt: {opt}\nlr: {'0.1' if net == 'VGG' else '1.0'}")
        for name in ("done", "model.safetensors"):
            (run / name).touch()

    def names(*select):
        return sorted(s.path.name for s in runs.find_models(tmp_path, select=select))

    assert names("opt=SGD") == ["ResNetSGD", "VGGSGD"]
    assert names("opt=SGD|Adam", "net=resnet18") == ["ResNetAdam", "ResNetSGD"]
    assert names("lr=0.10", "width=0") == names("net=VGG") == ["VGGSGD"]
    assert names("lr=1|none", "opt=Adam") == ["ResNetAdam"]
    with pytest.raises(FileProblem, match="opt=AdamW"):
        names("opt=AdamW")
    for wrong in ("opt", "bs=1"):
        with pytest.raises(UsageError, match="KEY=VALUE"):
            names(wrong)


def test_measures_of_a_foreign_file_go_to_a_folder_named_by_its_content(tmp_path):
    paths = []
    for name in ("a/ResNet/x.pth", "b/ResNet/x.pth", "c/ResNet/x.pth"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"other" if name.startswith("c") else b"same")
        paths.append(runs.measure_folder(runs.Source(tmp_path / name, "ResNet", "x", {}), tmp_path / "runs"))
    assert paths[0] == paths[1] != paths[2]
    assert paths[0].parent == tmp_path / "runs" / "regions"


# ---- run folders ---------------------------------------------------------------------------------------------------


def test_a_run_is_new_then_finished_then_forced(tmp_path):
    def settings(**more):
        return cli.library(dataset="digits", net="mlp", precision="fp32", runs=str(tmp_path), **more)

    run = runs.start("regions", settings())
    assert not run.finished
    run.log({"epoch": 1})
    run.finish({"last": None})
    run.close()
    again = runs.start("regions", settings())
    assert again.finished and again.path == run.path and len(again.metrics()) == 1
    again.close()
    forced = runs.start("regions", settings(force=True))
    assert not forced.finished and forced.metrics() == []
    forced.close()


def test_two_processes_never_write_one_folder(tmp_path):
    args = cli.library(dataset="digits", net="mlp", runs=str(tmp_path))
    run = runs.start("regions", args)
    with pytest.raises(FileProblem, match="another process"):
        runs.start("regions", cli.library(dataset="digits", net="mlp", runs=str(tmp_path)))
    run.close()


def test_metrics_after_the_saved_state_are_dropped_and_half_lines_ignored(tmp_path):
    run = runs.start("regions", cli.library(dataset="digits", net="mlp", runs=str(tmp_path)))
    for epoch in (1, 2, 3):
        run.log({"epoch": epoch})
    with open(run.path / "metrics.jsonl", "a") as f:
        f.write('{"epoch": 4, "tr')
    run.save_state({"epoch": 2, "x": torch.ones(2)})
    assert len(run.metrics()) == 3
    assert torch.equal(run.load_state()["x"], torch.ones(2))
    assert [r["epoch"] for r in run.metrics()] == [1, 2]
    run.close()


def test_unfinished_runs_are_not_loaded(tmp_path):
    run = runs.start("regions", cli.library(dataset="digits", net="mlp", runs=str(tmp_path)))
    run.close()
    with pytest.raises(FileProblem, match="not finished"):
        runs.load(run.path)
    with pytest.raises(FileProblem, match="no run folder"):
        runs.load(tmp_path)


def test_building_from_a_description_never_fetches_pretrained_weights():
    pytest.importorskip("timm")
    network = runs.build({"name": "vit_pt", "num_classes": 10, "in_channels": 3, "image_size": 224, "width": 0})
    assert sum(p.numel() for p in network.parameters()) == 21_669_514


def test_the_normalisation_that_was_stated_travels_with_a_foreign_checkpoint():
    entry = data.entry("CIFAR10")
    legacy = data.normalization("legacy", entry)
    assert legacy["std"] == (0.2023, 0.1994, 0.2010) and legacy["kind"] == "legacy"
