"""Convergence of scores and of fragmentation with planes and grid lines, against a plain reading of the maps."""

import csv
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

import main
import save_preds
from landscape import runs
from landscape.errors import ContentError, UsageError
from regions import converge


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three runs on digits in two groups, and their class maps: 12 planes of 16 points a side."""
    root = tmp_path_factory.mktemp("runs")
    for width, seed in ((8, 0), (8, 1), (16, 0)):
        main.main(["--dataset", "digits", "--net", "mlp", "--width", str(width), "--epochs", "1", "--train_size", "200",
                   "--lr", "0.05", "--imgs", "none", "--seed", str(seed), "--device", "cpu", "--precision", "fp32",
                   "--runs", str(root)])  # fmt: skip
    save_preds.main([*where(root), "--planes", "12", "--resolution", "16", "--device", "cpu"])
    assert converge.main(where(root)) == 0
    return root


def where(root):
    return ["--load_net", str(root / "regions"), "--runs", str(root)]


def found(root):
    (folder,) = root.glob("regions/convergence_*")
    return folder, runs.read_json(folder / "results.json")


def test_steps_and_grid_lines():
    assert converge.steps(6) == [6] and converge.steps(10) == [10] and converge.steps(12) == [10, 12]
    assert converge.steps(500) == [10, 20, 50, 100, 200, 500]
    assert converge.strides(50) == [1, 2, 3, 5] and converge.strides(5) == [1, 2, 3] and converge.strides(2) == [1]
    for resolution in range(2, 30):
        for k in converge.STRIDES:
            assert converge.side(resolution, k) == len(range(0, resolution, k))


def test_each_row_is_the_plain_mean_over_its_planes_and_lines(trained):
    folder, held = found(trained)
    maps = {g: [] for g in held["groups"]}
    for m in held["models"]:
        file = next((trained / "regions" / m["name"] / "arrays").glob("class_maps-*"))
        maps[m["group"]].append(runs.read_arrays(file)["labels"].reshape(12, 16, 16))
    rows = [r for r in held["rows"] if r["measure"] in ("agreement", "fragments")]
    # 2 numbers of planes and 4 of lines; agreement within one group and between two, fragments of two groups
    assert len(rows) == (2 + 4) * (2 + 2)
    for r in rows:
        n, k = r["planes"], r["stride"]
        assert r["resolution"] == len(range(0, 16, k)) and (k == 1 or n == 12)
        ours = maps[r["group_a"]]
        if r["measure"] == "agreement":
            pairs = ([ours] if r["group_a"] == r["group_b"] else
                     [(a, b) for a in ours for b in maps[r["group_b"]]])
            plain = np.mean([np.mean(a[:n, ::k, ::k] == b[:n, ::k, ::k]) for a, b in pairs])
        else:
            eight = np.ones((3, 3))
            plain = np.mean([sum(ndimage.label(p[::k, ::k] == c, eight)[1] for c in range(10))
                             for m in ours for p in m[:n]])  # fmt: skip
        assert abs(r["value"] - plain) < 1e-9
        assert r["low"] <= r["value"] <= r["high"]
    with open(folder / "convergence.csv") as f:
        assert len(list(csv.DictReader(f))) == len(held["rows"])
    assert (folder / "figures" / "convergence.png").exists()


def test_the_shift_is_the_difference_from_the_full_grid(trained):
    _, held = found(trained)
    rows = [r for r in held["rows"] if r["over"] == "resolution"]
    full = {(r["measure"], r["group_a"], r["group_b"]): r["value"] for r in rows if r["stride"] == 1}
    for r in rows:
        assert abs(r["shift"] - (r["value"] - full[r["measure"], r["group_a"], r["group_b"]])) < 1e-9
        assert r["stride"] > 1 or (r["shift"], r["shift_low"], r["shift_high"]) == (0, 0, 0)
    assert any(r["shift"] for r in rows)


def test_maps_that_do_not_change_with_the_grid_have_no_shift():
    """Stripes of 30 lines: every coarser grid sees the same share, and as many regions."""
    stripes = np.repeat(np.arange(2), 30)[None, None, :, None] * np.ones((2, 4, 60, 60), int)
    args = SimpleNamespace(connectivity=8, min_area=1)
    for k in converge.STRIDES:
        got = converge.per_plane(args, stripes[:, :, ::k, ::k].astype(np.uint8), ["a", "a"], 10)
        assert (got["fragments", "a", ""] == 2).all() and (got["largest", "a", ""] == 0.5).all()
        assert (got["agreement", "a", "a"] == 1).all() and (got["kappa", "a", "a"] == 1).all()


def changed(trained, tmp_path, change):
    root = tmp_path / "runs"
    shutil.copytree(trained, root)
    for folder in root.glob("regions/convergence_*"):
        shutil.rmtree(folder)
    for n, file in enumerate(sorted(root.glob("regions/*/arrays/class_maps-*.npz"))):
        runs.write_arrays(file, **change(n, runs.read_arrays(file)))
    return root


def test_planes_of_one_class_give_numbers(trained, tmp_path):
    root = changed(trained, tmp_path, lambda n, held: {**held, "labels": np.zeros_like(held["labels"]) + (n == 0)})
    assert converge.main(where(root)) == 0
    folder, held = found(root)
    text = (folder / "results.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    kappa = {(r["group_a"], r["group_b"]): r["value"] for r in held["rows"] if r["measure"] == "kappa"}
    assert set(held["undefined_kappa"]) == {" – ".join(pair) for pair, value in kappa.items() if value is None}
    assert set(kappa.values()) == {0, None}  # two maps of one class each: 0/0 where that is the same one
    assert {r["value"] for r in held["rows"] if r["measure"] == "fragments"} == {1}


def test_other_planes_are_refused(trained, tmp_path):
    root = changed(trained, tmp_path, lambda n, held: {**held, "triplets": held["triplets"] + (n == 0)})
    with pytest.raises(ContentError, match="other planes"):
        converge.main(where(root))
    with pytest.raises(UsageError, match="16 points"):
        converge.main([*where(trained), "--min_area", "17"])


def test_one_network_has_fragmentation_alone(trained, tmp_path, capsys):
    (one,) = trained.glob("regions/digits_*width=16*")
    shutil.copytree(one, tmp_path / "regions" / one.name)
    assert converge.main(where(tmp_path)) == 0
    _, held = found(tmp_path)
    assert {r["measure"] for r in held["rows"]} == {"fragments", "largest", "classes", "entropy", "boundary"}
    assert "no two networks" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(trained, capsys):
    before = sorted(trained.rglob("*"))
    assert converge.main([*where(trained), "--dry_run"]) == 0
    assert sorted(trained.rglob("*")) == before
    assert "planes [10, 12], points a side [16, 8, 6, 4]" in capsys.readouterr().out
