"""The animation of a plane during training: frames against each snapshot's own map, redrawing, bad input."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import main
from landscape import data, evaluate, plane, plots, runs
from landscape.errors import FileProblem, UsageError
from regions import animate

PLANE = ["--imgs", "5,42,17", "--resolution", "9", "--device", "cpu"]
TRAIN = ["--dataset", "digits", "--net", "mlp", "--width", "16", "--train_size", "200", "--lr", "0.05", "--precision",
         "fp32", "--imgs", "none", "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on digits with snapshots before the first epoch and after each of three."""
    root = tmp_path_factory.mktemp("runs")
    main.main([*TRAIN, "--epochs", "3", "--val_size", "40", "--snapshots", "all", "--eval_every", "2", "--runs",
               str(root)])  # fmt: skip
    (folder,) = root.glob("regions/digits_*")
    assert animate.main([str(folder), *PLANE, "--runs", str(root)]) == 0
    return folder


def saved(run):
    (file,) = run.glob("arrays/animation-*.npz")
    return runs.read_arrays(file)


def test_each_frame_is_the_map_of_its_snapshot(run):
    held, images = saved(run), data.load("digits", val_size=0).full
    assert held["epochs"].tolist() == [0, 1, 2, 3] and held["labels"].shape == (4, 9, 9)
    flat = evaluate.image_plane(images, [5, 42, 17], evaluate.image_space(data.entry("digits")))
    for epoch, labels, confidence in zip(held["epochs"], held["labels"], held["confidence"]):
        trained = runs.load(run / f"checkpoints/epoch_{epoch:04d}.safetensors")
        seen = evaluate.seen_by(flat, evaluate.image_space(data.entry("digits")), trained.preprocessing)
        x = plane.points(seen, plane.grid(flat, 9)).permute(0, 3, 1, 2)
        with torch.no_grad():
            probs = trained.network(x).softmax(1)
        assert np.array_equal(labels.ravel(), probs.argmax(1))
        assert np.allclose(confidence.ravel(), probs.amax(1), atol=1e-3)
    assert (held["labels"][0] != held["labels"][3]).any()


def test_the_gif_has_a_frame_for_each_snapshot_and_says_its_epoch(run):
    with Image.open(run / "figures" / "animation_5-42-17.gif") as gif:
        assert gif.n_frames == 4 and gif.info["loop"] == 0
        gif.seek(3)
        assert gif.info["duration"] == 2000
    titles = animate.frame_titles(runs.run_source(run, ()), [0, 1, 2, 3])
    (last,) = [r for r in runs.read_metrics(run) if r["epoch"] == 3]
    assert titles[0] == "mlp, epoch 0" and titles[1] == "mlp, epoch 1"  # --eval_every 2: not measured there
    assert titles[3] == (f"mlp, epoch 3: validation accuracy {last['val_accuracy']:.1%}, "
                         f"test accuracy {last['test_accuracy']:.1%}")


def test_drawing_again_needs_no_network_and_gives_equal_bytes(run, tmp_path, monkeypatch):
    monkeypatch.setattr(animate, "compute", lambda *a: pytest.fail("computed again"))
    assert animate.main([str(run), *PLANE, "--plot_path", str(tmp_path)]) == 0
    (again,) = tmp_path.iterdir()
    assert again.read_bytes() == (run / "figures" / again.name).read_bytes()
    assert animate.main([str(run), *PLANE, "--plot_path", str(tmp_path), "--flat"]) == 0
    assert (tmp_path / "animation_5-42-17_flat.gif").exists()


def test_frames_keep_their_size_and_layout(run):
    held = saved(run)
    chosen = {**held, "labels": held["labels"][[1, 3, 1]], "confidence": held["confidence"][[1, 3, 1]]}
    first, second, third = plots.frames(chosen, ["title", "a longer title", "title"])
    assert first.shape == second.shape and first.dtype == np.uint8
    assert np.array_equal(first, third) and (first != second).any()


def test_a_gif_keeps_small_areas_their_colours(tmp_path):
    image = np.full((200, 200, 3), 255, np.uint8)
    image[:, :100] = np.linspace(0, 255, 100)[:, None].astype(np.uint8)  # many greys in many pixels
    image[:3, 150:153] = (213, 94, 0)
    plots.save_gif([image, image[::-1]], tmp_path / "a.gif", 0.25)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.info["duration"] == 250
        got = np.asarray(gif.convert("RGB")).astype(int)
    assert np.abs(got - image).max() <= 8


def test_a_broken_off_animation_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr(animate, "draw", lambda *a: "")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (file,) = copy.glob("arrays/animation-*.npz")
    whole = runs.read_arrays(file)
    half = {**whole, "complete": 2, "labels": whole["labels"].copy()}
    half["labels"][2:] = 0
    half["labels"][0] = 7  # what is there is not computed again
    runs.write_arrays(file, **half)
    assert animate.main([str(copy), *PLANE]) == 0
    now = runs.read_arrays(file)
    assert (now["labels"][0] == 7).all() and np.array_equal(now["labels"][1:], whole["labels"][1:])
    assert animate.main([str(copy), *PLANE, "--force"]) == 0
    assert np.array_equal(runs.read_arrays(file)["labels"], whole["labels"])


def test_anchors_that_are_no_images(run, capsys, monkeypatch):
    monkeypatch.setattr(plots, "save_gif", lambda images, path, seconds: None)
    assert animate.main([str(run), "--anchors", "uniform", "--resolution", "4", "--device", "cpu"]) == 0
    assert "animation_uniform_seed1.gif" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(run, capsys):
    before = sorted(run.rglob("*"))
    assert animate.main([str(run), "--imgs", "1,2,3", "--dry_run"]) == 0
    assert sorted(run.rglob("*")) == before and "4 snapshots" in capsys.readouterr().out


# ---- bad input -----------------------------------------------------------------------------------------------------


def test_a_run_without_snapshots_says_which_flag_makes_them(tmp_path):
    main.main([*TRAIN, "--epochs", "1", "--runs", str(tmp_path)])
    (folder,) = tmp_path.glob("regions/digits_*")
    with pytest.raises(FileProblem, match="--snapshots all"):
        animate.main([str(folder), *PLANE])


def test_wrong_folders(run, tmp_path):
    with pytest.raises(FileProblem, match="does not exist"):
        animate.main([str(tmp_path / "nowhere"), *PLANE])
    with pytest.raises(FileProblem, match="no run folder.*runs with snapshots in it: digits_mlp"):
        animate.main([str(run.parent), *PLANE])
    with pytest.raises(FileProblem, match="is a file"):
        animate.main([str(run / "model.safetensors"), *PLANE])
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "done").unlink()
    with pytest.raises(FileProblem, match="not finished"):
        animate.main([str(copy), *PLANE])
    (copy / "config.yaml").write_text("load_net: x\n")
    with pytest.raises(FileProblem, match="no training"):
        animate.main([str(copy), *PLANE])


@pytest.mark.parametrize(("imgs", "words"), [
    ("1,2,x", "three ids"), ("1,1,2", "different ids"), ("1,2", "three ids"), ("1,2,999999", "does not exist"),
])  # fmt: skip
def test_anchors_that_cannot_be(run, imgs, words):
    with pytest.raises(UsageError, match=words):
        animate.main([str(run), "--imgs", imgs, "--resolution", "9", "--device", "cpu"])
