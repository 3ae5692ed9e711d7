"""Scores beside plain agreement: of probabilities, inside and outside the anchors' triangle, of each class."""

import csv
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import calculate_iou
import main
import save_preds
from landscape import anchors, data, evaluate, maps, metrics, plane, plots, results, runs
from landscape.errors import ContentError, FileProblem, UsageError

FIGURES = plots.agreement_figures
PLANES = ["--planes", "4", "--resolution", "9", "--device", "cpu"]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """They take most of the time of a comparison; tests/test_agreement.py looks at them."""
    monkeypatch.setattr(plots, "agreement_figures", lambda *a: {})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three runs on digits, two architectures; class maps with probabilities."""
    root = tmp_path_factory.mktemp("runs")
    for net, seed in (("mlp", 0), ("mlp", 1), ("lenet", 0)):
        argv = ["--dataset", "digits", "--net", net, "--epochs", "2", "--train_size", "300", "--lr", "0.05", "--bs",
                "32", "--precision", "fp32", "--seed", str(seed), "--imgs", "none", "--device", "cpu"]  # fmt: skip
        assert main.main([*argv, "--runs", str(root)]) == 0
    assert save_preds.main([*where(root), *PLANES, "--save_probs"]) == 0
    return root


def where(root):
    return ["--load_net", str(root / "regions"), "--runs", str(root)]


def held_of(root):
    return [runs.read_arrays(f) for f in sorted(root.glob("regions/digits_*/arrays/class_maps-*.npz"))]


def maps_in(found):
    return [runs.read_arrays(next(Path(m["path"]).glob("arrays/class_maps-*"))) for m in found["models"]]


def scores(root, *argv):
    assert calculate_iou.main([*where(root), *argv]) == 0
    folder = max(root.glob("regions/agreement_*"), key=lambda p: (p / "done").stat().st_mtime_ns)
    return folder, runs.read_json(folder / "results.json")


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def changed(root, change):
    """Rewrite every file of class maps under root by change(number, arrays)."""
    for n, f in enumerate(sorted(root.glob("regions/digits_*/arrays/class_maps-*.npz"))):
        held = runs.read_arrays(f)
        runs.write_arrays(f, **(change(n, held) or held))


# ---- probabilities -------------------------------------------------------------------------------------------------


def test_probabilities_are_those_of_the_network(trained):
    for folder in trained.glob("regions/digits_*"):
        (file,) = folder.glob("arrays/class_maps-*.npz")
        held = runs.read_arrays(file)
        assert held["probs"].shape == (4, 81, 10) and held["probs"].dtype == np.float16
        assert json.loads(str(held["settings"]))["save_probs"] is True
        entry, model = data.entry("digits"), runs.load(folder)
        space = evaluate.image_space(entry)
        flat = evaluate.image_plane(data.load("digits").test, held["triplets"][2], space)
        seen = evaluate.seen_by(flat, space, model.preprocessing)
        x = plane.points(seen, plane.grid(flat, 9)).permute(0, 3, 1, 2)
        with torch.no_grad():
            expected = model.network(x).softmax(1).numpy()
        assert np.allclose(held["probs"][2], expected, atol=1e-3)
        assert np.array_equal(held["labels"][2], expected.argmax(1))


def test_weighted_agreement_is_one_less_the_total_variation(trained, capsys):
    _, found = scores(trained)
    held, models = held_of(trained), found["scores"]["weighted"]["models"]["value"]
    order = {m["path"]: n for n, m in enumerate(found["models"])}
    files = sorted(trained.glob("regions/digits_*/arrays/class_maps-*.npz"))
    for (a, f), (b, g) in itertools.product(zip(held, files), repeat=2):
        plain = np.mean([1 - 0.5 * np.abs(p - q).sum() for p, q in
                         zip(a["probs"].reshape(-1, 10).astype(float), b["probs"].reshape(-1, 10).astype(float))])
        assert abs(models[order[str(f.parent.parent)]][order[str(g.parent.parent)]] - plain) < 1e-5 or f == g
    assert [models[n][n] for n in range(3)] == [1, 1, 1]
    assert "weighted" in FIGURES(found, {s: s for s in found["scores"]})
    assert "weighted: agreement of the probabilities" in capsys.readouterr().out


def test_maps_without_probabilities_keep_their_name_and_have_no_weighted_score(trained, copied):
    for f in copied.glob("regions/digits_*/arrays/*.npz"):
        f.unlink()
    assert save_preds.main([*where(copied), *PLANES]) == 0
    (first, *_) = copied.glob("regions/digits_*/arrays/*.npz")
    settings = json.loads(str(runs.read_arrays(first)["settings"]))
    assert "save_probs" not in settings and first.name == maps.file_name(settings)
    assert "weighted" not in scores(copied)[1]["scores"]
    assert save_preds.main([*where(copied), *PLANES, "--save_probs"]) == 0  # beside the others; then these are used
    assert "weighted" in scores(copied)[1]["scores"]


def test_probabilities_in_bf16_are_in_a_file_of_their_own(copied):
    def held():
        return {f.name for f in copied.glob("regions/digits_*/arrays/*.npz")}

    assert save_preds.main([*where(copied), *PLANES, "--save_probs"]) == 0
    exact = held()
    assert save_preds.main([*where(copied), *PLANES, "--save_probs", "--map_precision", "fp32"]) == 0
    assert held() == exact
    assert save_preds.main([*where(copied), *PLANES, "--save_probs", "--map_precision", "bf16"]) == 0
    assert len(held() - exact) == 1 and held() > exact


@pytest.mark.parametrize("classes", [2, 5])
def test_weighted_agreement_of_one_hot_vectors_is_agreement(classes):
    labels = np.random.default_rng(0).integers(0, classes, (3, 4, 25))
    got = metrics.weighted_per_plane(list(np.eye(classes)[labels]))
    assert np.allclose(got, metrics.agreement_per_plane(labels.astype(np.uint8)))
    two = [np.array([[[0.7, 0.3]]]), np.array([[[0.2, 0.8]]])]
    assert metrics.weighted_per_plane(two)[0, 1, 0] == pytest.approx(0.5)


# ---- inside and outside --------------------------------------------------------------------------------------------


def plain_inside(corners, x, y):
    """Is the point on the same side of all three edges?"""
    sides = []
    for k in range(3):
        (ax, ay), (bx, by) = corners[k], corners[(k + 1) % 3]
        sides.append((bx - ax) * (y - ay) - (by - ay) * (x - ax))
    return min(sides) >= -1e-6 or max(sides) <= 1e-6


def test_inside_is_the_triangle_point_by_point(trained):
    held = held_of(trained)[0]
    assert held["anchors"].shape == (4, 3, 2) and held["extents"].shape == (4, 4)
    got = maps.inside(held["anchors"], held["extents"], 9)
    for corners, (xmin, xmax, ymin, ymax), row in zip(held["anchors"], held["extents"], got):
        points = itertools.product(np.linspace(xmin, xmax, 9), np.linspace(ymin, ymax, 9))
        assert row.tolist() == [plain_inside(corners, x, y) for x, y in points]
    test, space = data.load("digits").test, evaluate.image_space(data.entry("digits"))
    flat = evaluate.image_plane(test, held["triplets"][1], space)
    assert np.allclose(flat.anchors, held["anchors"][1]) and np.allclose(plane.extent(flat), held["extents"][1])


def test_inside_includes_corners_and_edges():
    corners, extent = np.array([[[0, 0], [4, 0], [-2, 2]]], dtype=float), np.array([[-2, 4, 0, 2]], dtype=float)
    got = maps.inside(corners, extent, 3)[0].reshape(3, 3)  # x -2, 1, 4; y 0, 1, 2
    assert got.tolist() == [[False, False, True], [True, True, False], [True, False, False]]


def test_scores_inside_and_outside_add_up(trained):
    held = held_of(trained)
    marks = maps.inside(held[0]["anchors"], held[0]["extents"], 9)
    for side, mask in (("inside", marks), ("outside", ~marks)):
        folder, found = scores(trained, "--where", side)
        assert found["where"] == side
        order = maps_in(found)
        for i, j in itertools.combinations(range(3), 2):
            counts = [metrics.confusion(order[i]["labels"][p][mask[p]], order[j]["labels"][p][mask[p]], 10)
                      for p in range(4)]
            shares = [np.trace(c) / c.sum() for c in counts]
            got = {k: v["models"]["value"][i][j] for k, v in found["scores"].items()}
            assert abs(got["agreement"] - np.mean(shares)) < 1e-12
            assert abs(got["kappa"] - np.mean([metrics.kappa(c) for c in counts])) < 1e-12
            assert abs(got["mean_iou"] - np.mean([metrics.mean_iou(c) for c in counts])) < 1e-12
            tv = [np.abs(order[i]["probs"][p][mask[p]].astype(float) - order[j]["probs"][p][mask[p]]).sum(1).mean() / 2
                  for p in range(4)]
            assert abs(got["weighted"] - (1 - np.mean(tv))) < 1e-5
        assert f"where={side}" in folder.name


def test_old_maps_without_coordinates_are_refused_with_the_mend(copied):
    changed(copied, lambda n, held: {k: v for k, v in held.items() if k not in ("anchors", "extents")})
    assert scores(copied)[1]["where"] == "all"
    with pytest.raises(ContentError, match="save_preds.py with --force"):
        scores(copied, "--where", "inside")


def test_no_point_there_is_refused(trained, copied):
    coarse = ["--planes", "2", "--resolution", "2", "--device", "cpu"]
    assert save_preds.main([*where(copied), *coarse]) == 0
    with pytest.raises(UsageError, match="finer --resolution"):
        scores(copied, "--where", "inside", "--planes", "2")


# ---- classes -------------------------------------------------------------------------------------------------------


def test_iou_of_each_class_is_its_mean_over_pairs_and_planes(trained):
    folder, found = scores(trained)
    models = maps_in(found)
    groups = [m["group"] for m in found["models"]]
    seen = 0
    for row in found["per_class"]:
        pairs = [(i, j) for i in range(3) for j in range(i + 1, 3)
                 if sorted((groups[i], groups[j])) == sorted((row["group_a"], row["group_b"]))]
        per_plane = []
        for p in range(4):
            values = []
            for i, j in pairs:
                a, b = (models[k]["labels"][p] == int(row["class"]) for k in (i, j))
                if (a | b).any():
                    values.append((a & b).sum() / (a | b).sum())
            per_plane += [np.mean(values)] if values else []
        assert row["planes"] == len(per_plane) and row["pairs"] == len(pairs)
        if per_plane:
            seen += 1
            assert abs(row["value"] - np.mean(per_plane)) < 1e-12
            if len(per_plane) > 1:
                assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        else:
            assert row["value"] is None
    assert seen > 10 and len(found["per_class"]) == 10 * 2  # the mlps, and the mlps with the lenet
    with open(folder / "per_class.csv") as f:
        assert len(list(csv.DictReader(f))) == 20


def test_rows_that_are_everywhere_have_the_usual_interval():
    values = np.random.default_rng(0).random((3, 12))
    mean, low, high, planes = results.bootstrap_present(values, n=500)
    expected = results.bootstrap_planes(values, n=500)
    assert planes == [12] * 3 and all(np.allclose(a, b) for a, b in zip((mean, low, high), expected))
    values[1, 1:] = np.nan
    values[2] = np.nan
    mean, low, high, planes = results.bootstrap_present(values, n=500)
    assert planes == [12, 1, 0] and mean[2] is None and low[1:] == [None, None] and mean[1] == values[1, 0]


def test_planes_of_one_class_give_numbers_in_every_score_but_kappa(copied):
    """All networks say 3 everywhere on plane 0; one says 4 on plane 1, the others 3."""
    def flat(n, held):
        held["labels"][0] = 3
        held["labels"][1] = 4 if n == 0 else 3
        held["probs"][:2] = np.eye(10)[held["labels"][:2]]
    changed(copied, flat)
    for side in ("all", "inside", "outside"):
        _, found = scores(copied, "--where", side)
        assert set(found["scores"]) == {"agreement", "mean_iou", "kappa", "weighted"}
        text = json.dumps(found)
        assert "NaN" not in text and "Infinity" not in text
    labels = np.stack([h["labels"] for h in held_of(copied)])[:, :2]
    got = metrics.scores_per_plane(labels, 10)
    for name in got:
        undefined = name == "kappa"
        for equal in (got[name][:, :, 0], got[name][1, 2, 1]):
            assert np.isnan(equal).all() if undefined else (equal == 1).all()
        assert got[name][0, 1, 1] == 0


# ---- bad input -----------------------------------------------------------------------------------------------------


def test_planes_of_one_class_are_left_out_of_kappa_and_said(copied, capsys):
    def one_class(planes):
        def change(n, held):
            held["labels"][:planes] = 3
        return change

    changed(copied, one_class(2))
    _, found = scores(copied)
    said = capsys.readouterr().out
    assert found["undefined"] == {"kappa": 2} and "on 2 of 4 planes: its means leave these out" in said
    maps, groups = maps_in(found), [m["group"] for m in found["models"]]
    for row in found["scores"]["kappa"]["groups"]:
        pairs = [(a, b) for i, a in enumerate(maps) for j, b in enumerate(maps)
                 if i != j and (groups[i], groups[j]) == (row["group_a"], row["group_b"])]
        if not pairs:
            assert row["value"] is None
            continue
        slow = [metrics.kappa(metrics.confusion(a["labels"][2:], b["labels"][2:], 10)).mean() for a, b in pairs]
        assert row["value"] == pytest.approx(np.mean(slow)) and row["planes"] == 2
        assert row["low"] <= row["value"] <= row["high"]
    shares = {(r["group_a"], r["group_b"]): r["planes"] for r in found["scores"]["agreement"]["groups"] if r["pairs"]}
    assert set(shares.values()) == {4}
    changed(copied, one_class(4))
    _, found = scores(copied)
    assert {r["value"] for r in found["scores"]["kappa"]["groups"]} == {None}
    assert {v for row in found["scores"]["kappa"]["models"]["value"] for v in row} == {None}
    assert "4 of 4 planes" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "change", "words"), [
    ("triplets", lambda v: v + 1, "other planes"),
    ("labels", lambda v: v[:, :64], "another resolution"),
    ("classes", lambda v: v[:9], "other classes"),
])  # fmt: skip
def test_maps_that_cannot_be_compared_are_refused(copied, key, change, words):
    changed(copied, lambda n, held: {**held, key: change(held[key])} if n == 0 else None)
    with pytest.raises(ContentError, match=words):
        scores(copied)


def test_anchors_of_kinds_that_are_no_images_have_coordinates_too(trained, copied):
    assert save_preds.main([*where(copied), "--planes", "2", "--resolution", "9", "--device", "cpu",
                            "--anchors", "uniform"]) == 0  # fmt: skip
    _, found = scores(copied, "--anchors", "uniform", "--where", "inside")
    assert found["settings"]["anchors"] == "uniform"
    assert "uniform" in anchors.KINDS


# ---- dbViz's own files ---------------------------------------------------------------------------------------------


@pytest.fixture
def theirs(trained, tmp_path):
    """The maps of `trained` in dbViz's layout: lists of int64 tensors."""
    for n, (folder, arch) in enumerate(zip(sorted(trained.glob("regions/digits_*")), ("LeNet", "MLP", "MLP"))):
        (file,) = folder.glob("arrays/class_maps-*.npz")
        write_preds(tmp_path / f"old/{arch}/predictions/{n}_preds.pth", runs.read_arrays(file)["labels"])
    return tmp_path / "old"


def write_preds(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save([torch.from_numpy(row.astype(np.int64)) for row in labels], path)


def dbviz(folder, *argv):
    runs_ = folder.parent / "runs"
    assert calculate_iou.main(["--load_net", str(folder), "--dbviz_preds", "--runs", str(runs_), *argv]) == 0
    (made,) = runs_.glob("regions/agreement_*")
    return runs.read_json(made / "results.json")


def test_dbvizs_files_give_the_scores_of_the_same_maps(trained, theirs, capsys):
    found, ours = dbviz(theirs), scores(trained)[1]
    assert found["groups"] == ["LeNet", "MLP"] and [m["name"] for m in found["models"]] == ["0", "1", "2"]
    assert found["settings"]["planes"] == 4 and found["settings"]["resolution"] == 9
    for score in ("agreement", "mean_iou", "kappa"):
        same = [[r[k] for k in ("value", "low", "high", "pairs")] for r in found["scores"][score]["groups"]]
        assert same == [[r[k] for k in ("value", "low", "high", "pairs")] for r in ours["scores"][score]["groups"]]
    assert "weighted" not in found["scores"] and "do not say which planes" in capsys.readouterr().out


@pytest.mark.parametrize(("labels", "words"), [
    (np.zeros((4, 64)), "4 planes of 64 points"), (np.zeros((3, 81)), "3 planes of 81"),
    (np.zeros((4, 80)), "not R\\*R"), (np.full((4, 81), -1), "class -1"),
    (np.zeros((4, 9, 9)), "no file of class maps"),
    (np.zeros((0, 81)), "no file of class maps"),
])  # fmt: skip
def test_dbvizs_files_that_cannot_be_compared_are_refused(theirs, labels, words):
    write_preds(theirs / "VGG/predictions/a_preds.pth", labels)
    with pytest.raises(ContentError, match=words):
        dbviz(theirs)


def test_dbvizs_files_that_are_damaged_or_hold_code_are_refused(theirs):
    file = theirs / "VGG/predictions/a_preds.pth"
    write_preds(file, np.zeros((4, 81)))
    whole = file.read_bytes()
    for bad in (b"", b"hello", whole[:len(whole) // 2]):
        file.write_bytes(bad)
        with pytest.raises(ContentError, match="damaged"):
            dbviz(theirs)
    torch.save([slice(1)], file)
    with pytest.raises(ContentError, match="more than tensors"):
        dbviz(theirs)


def test_what_dbvizs_files_do_not_say_cannot_be_asked(theirs, tmp_path):
    for flags, words in ((["--where", "inside"], "--where"), (["--plane_seed", "2"], "--plane_seed"),
                         (["--planes", "5"], "have 4"), (["--resolution", "50"], "have 9")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            dbviz(theirs, *flags)
    with pytest.raises(FileProblem, match="--dbviz_preds reads the 3 files"):
        calculate_iou.main(["--load_net", str(theirs), "--runs", str(tmp_path / "runs")])
    with pytest.raises(FileProblem, match="predictions"):
        dbviz(tmp_path)
