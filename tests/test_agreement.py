"""save_preds.py and calculate_iou.py on real runs: against plain readings of the score, and for both layouts."""

import itertools
import json
import random
import shutil

import numpy as np
import pytest
import torch

import calculate_iou
import main
import save_preds
from landscape import data, runs
from landscape.errors import FileProblem, UsageError
from regions import plot

PLANES = ["--planes", "6", "--resolution", "9", "--device", "cpu", "--map_precision", "fp32"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Four runs on digits: two architectures, two seeds; and their class maps."""
    root = tmp_path_factory.mktemp("runs")
    for net, seed in itertools.product(("mlp", "resnet20"), (0, 1)):
        argv = ["--dataset", "digits", "--net", net, "--width", "8", "--epochs", "5", "--train_size", "300",
                "--bs", "32", "--lr", "0.05", "--precision", "fp32", "--seed", str(seed), "--imgs", "none",
                "--device", "cpu", "--runs", str(root)]  # fmt: skip
        assert main.main(argv) == 0
    assert save_preds.main(["--load_net", str(root / "regions"), "--runs", str(root), *PLANES]) == 0
    return root


def maps_of(root):
    files = sorted(root.glob("regions/digits_*/arrays/class_maps-*.npz"))
    return {f.parent.parent: runs.read_arrays(f) for f in files}


def test_every_network_is_asked_on_the_same_planes(trained):
    held = list(maps_of(trained).values())
    assert len(held) == 4
    test = data.load("digits").test
    for maps in held:
        assert maps["labels"].shape == (6, 81) and maps["labels"].dtype == np.uint8
        assert np.array_equal(maps["triplets"], held[0]["triplets"])
        assert int(maps["complete"]) == 6
    for ids in held[0]["triplets"]:
        assert len(set(test.true_labels[ids.tolist()].tolist())) == 3


def plain_map(network, entry, images, ids, resolution, mean, std):
    """The definition of a class map, point by point in numpy (x slow, y fast, margins of a tenth)."""
    x = [((images[i].permute(2, 0, 1).numpy() / 255.0 - mean) / std).ravel() for i in ids]
    u = (x[1] - x[0]) / np.linalg.norm(x[1] - x[0])
    p = u @ (x[2] - x[0])
    rest = x[2] - x[0] - p * u
    q = np.linalg.norm(rest)
    left, right = min(0, p), max(np.linalg.norm(x[1] - x[0]), p)
    labels = []
    for a in np.linspace(left - 0.1 * (right - left), right + 0.1 * (right - left), resolution):
        for b in np.linspace(-0.1 * q, 1.1 * q, resolution):
            point = torch.tensor(x[0] + a * u + b * rest / q, dtype=torch.float32).view(1, 1, 8, 8)
            pixels = point * std.item() + mean.item()
            own = (pixels - entry.mean[0]) / entry.std[0]
            with torch.no_grad():
                labels.append(network(own).argmax().item())
    return np.array(labels)


def test_maps_equal_the_plain_reading(trained):
    entry, images = data.entry("digits"), data.load("digits").test.images
    for folder, held in maps_of(trained).items():
        network = runs.load(folder).network
        for ids, labels in zip(held["triplets"][:2], held["labels"]):
            expected = plain_map(network, entry, images, ids, 9, np.array(entry.mean), np.array(entry.std))
            assert np.array_equal(labels, expected)


def test_planes_as_published_are_drawn_as_dbviz_draws_them(trained):
    argv = ["--load_net", str(trained / "regions"), "--runs", str(trained), *PLANES, "--as_published"]
    assert save_preds.main([*argv, "--set_data_seed", "7"]) == 0
    labels = data.load("digits").test.true_labels.tolist()
    published = [h for f in trained.glob("regions/digits_mlp*/arrays/*.npz") if (h := runs.read_arrays(f))
                 and json.loads(str(h["settings"]))["as_published"]]
    for r, ids in enumerate(published[0]["triplets"]):
        random.seed(7 + r, version=2)
        drawn, seen = [], []
        while len(drawn) < 3:
            i = random.randint(0, len(labels) - 1)
            if labels[i] not in seen:
                drawn.append(i)
                seen.append(labels[i])
        assert ids.tolist() == drawn
    for f in trained.glob("regions/digits_*/arrays/*.npz"):
        if json.loads(str(runs.read_arrays(f)["settings"]))["as_published"]:
            f.unlink()


def agreement_of(trained, *argv):
    assert calculate_iou.main(["--load_net", str(trained / "regions"), "--runs", str(trained), *argv]) == 0
    folder = max(trained.glob("regions/agreement_*"), key=lambda p: (p / "done").stat().st_mtime_ns)
    results = runs.read_json(folder / "results.json")
    return folder, results


def test_the_score_is_the_share_of_equal_points_over_pairs_of_different_models(trained, capsys):
    folder, results = agreement_of(trained)
    held = list(maps_of(trained).values())
    groups = ["mlp", "mlp", "resnet20", "resnet20"]
    for row in results["scores"]["agreement"]["groups"]:
        pairs = [(i, j) for i in range(4) for j in range(4)
                 if i != j and groups[i] == row["group_a"].split()[0] and groups[j] == row["group_b"].split()[0]]
        shares = [np.mean(held[i]["labels"] == held[j]["labels"]) for i, j in pairs]
        assert abs(row["value"] - np.mean(shares)) < 1e-12
        assert row["low"] < row["value"] < row["high"]
    said = capsys.readouterr().out
    assert "mlp width=8" in said and "resnet20 width=8" in said and "agreement:" in said
    assert {p.name for p in (folder / "figures").iterdir()} == {
        "agreement.png", "mean_iou.png", "kappa.png", "agreement_models.png"}  # fmt: skip
    lines = (folder / "agreement.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 3 and lines[0].startswith("score,group_a,group_b")


def test_two_models_a_group_give_no_interval_over_models(trained):
    _, results = agreement_of(trained)
    diagonal = [r for r in results["scores"]["kappa"]["groups"] if r["group_a"] == r["group_b"]]
    assert [r["low_models"] for r in diagonal] == [None, None]
    assert all(r["pairs"] == 1 for r in diagonal)


def test_one_group_of_seeds_or_of_anything(trained):
    _, results = agreement_of(trained, "--group_by", "seed")
    assert results["groups"] == ["seed=0", "seed=1"]


def test_maps_there_already_are_not_computed_again(trained, monkeypatch, capsys):
    monkeypatch.setattr(save_preds, "compute", lambda *a: pytest.fail("computed again"))
    assert save_preds.main(["--load_net", str(trained / "regions"), "--runs", str(trained), *PLANES]) == 0
    assert "6       81" in capsys.readouterr().out


def test_other_planes_are_another_set_and_must_be_chosen(trained):
    more = ["--load_net", str(trained / "regions"), "--runs", str(trained), "--planes", "2", "--resolution", "9",
            "--device", "cpu", "--map_precision", "fp32"]  # fmt: skip
    save_preds.main(more)
    with pytest.raises(UsageError, match="--planes 2/6"):
        agreement_of(trained)
    _, results = agreement_of(trained, "--planes", "2")
    assert results["settings"]["planes"] == 2
    for f in trained.glob("regions/digits_*/arrays/*.npz"):
        if runs.read_arrays(f)["labels"].shape[0] == 2:
            f.unlink()


def test_no_maps_at_all_names_the_command(trained, tmp_path):
    copied = tmp_path / "regions"
    shutil.copytree(trained / "regions", copied)
    for f in copied.glob("*/arrays/*.npz"):
        f.unlink()
    with pytest.raises(FileProblem, match="python save_preds.py --load_net"):
        calculate_iou.main(["--load_net", str(copied), "--runs", str(tmp_path)])


def test_a_folder_of_foreign_checkpoints_is_read_and_left_alone(trained, tmp_path):
    for n, folder in enumerate(sorted(trained.glob("regions/digits_mlp*"))):
        (tmp_path / "theirs" / "mlp").mkdir(parents=True, exist_ok=True)
        weights, _ = runs.read_weights(folder / "model.safetensors")
        torch.save({f"module.{k}": v for k, v in weights.items()}, tmp_path / "theirs" / "mlp" / f"{n}.pth")
    before = sorted(p for p in (tmp_path / "theirs").rglob("*"))
    where = ["--load_net", str(tmp_path / "theirs"), "--runs", str(tmp_path / "runs")]
    assert save_preds.main([*where, *PLANES, "--dataset", "digits", "--width", "8"]) == 0
    assert calculate_iou.main(where) == 0
    assert sorted(p for p in (tmp_path / "theirs").rglob("*")) == before
    theirs = sorted((tmp_path / "runs" / "regions").glob("foreign_mlp_*/arrays/*.npz"))
    ours = [h["labels"] for f, h in maps_of(trained).items() if "_mlp_" in f.name]
    assert len(theirs) == 2
    for a, b in zip(theirs, ours):
        assert np.array_equal(runs.read_arrays(a)["labels"], b)


def test_panels_of_a_folder_and_the_same_again_from_saved_arrays(trained, tmp_path, capsys):
    argv = ["--load_net", str(trained / "regions"), "--dataset", "digits", "--imgs", "5,42,17", "--resolution", "8",
            "--runs", str(trained), "--device", "cpu", "--formats", "png,svg"]  # fmt: skip
    assert main.main(argv) == 0
    (panel,) = trained.glob("regions/panels-*/figures/*.png")
    assert plot.main([str(trained), "--plot_path", str(tmp_path), "--formats", "png"]) == 0
    again = [p for p in tmp_path.iterdir() if p.name.startswith("regions_5-42-17")]
    assert len(again) == 1 and again[0].read_bytes() == panel.read_bytes()


def test_processes_share_the_networks_out(trained, tmp_path, capsys):
    """Two processes give what one gives; a fifth over four networks has nothing to do."""
    root = tmp_path / "runs"
    shutil.copytree(trained, root)
    before = maps_of(root)
    for file in root.glob("regions/*/arrays/class_maps-*.npz"):
        file.unlink()
    argv = ["--load_net", str(root / "regions"), "--runs", str(root), *PLANES]
    for part, done in (("1/2", 2), ("2/2", 4)):
        assert save_preds.main([*argv, "--part", part]) == 0
        assert len(maps_of(root)) == done
    assert all(np.array_equal(m["labels"], before[path]["labels"]) for path, m in maps_of(root).items())
    assert save_preds.main([*argv, "--part", "5/5"]) == 0
    assert "there are 4 networks" in capsys.readouterr().out
    for wrong in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(UsageError, match="--part: K/N with K from 1 to N"):
            save_preds.main([*argv, "--part", wrong])
