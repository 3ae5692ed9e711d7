"""Every kind of anchors from the table: what it promises, determinism, files of triplets."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import calculate_iou
import main
import save_preds
from landscape import anchors, cli, data, evaluate, maps, objectives, plane, runs
from landscape.errors import ContentError, UsageError

DIGITS = data.load("digits", noise=0.3)
SPACE = evaluate.image_space(DIGITS.entry)


def trained():
    torch.manual_seed(0)
    network = runs.build({"name": "mlp", "num_classes": 10, "in_channels": 1, "image_size": 8, "width": 16}).eval()
    own = {"image_size": 8, "channels": 1, **data.normalization("none", DIGITS.entry)}
    return runs.Trained(network, {}, own, None, "")


def draw(kind, seed=1, ids=None, **more):
    extra = {"foreign": data.load("fake:1x8x8:10:40").full, "classes": 10,
             "attack": anchors.attack(trained(), SPACE, 5)}  # fmt: skip
    return anchors.Draw(DIGITS.train, SPACE, kind, seed, ids, extra=extra, **more)


def test_the_flag_and_the_table_name_the_same_kinds():
    assert set(cli.ANCHORS) == set(anchors.KINDS)
    assert set(cli.NOISE_TYPES.values()) <= set(anchors.KINDS)


@pytest.mark.parametrize("kind", anchors.KINDS)
def test_every_kind_spans_a_plane_and_depends_on_its_seed_and_number_alone(kind):
    flat, held = anchors.through(draw(kind), 3)
    assert held.points.shape == (3, 8, 8, 1) and held.points.dtype == torch.float32
    assert len(held.ids) == len(held.labels) == 3
    torch.rand(5)
    assert torch.equal(anchors.anchors(draw(kind), 3).points, held.points)
    assert not torch.equal(anchors.anchors(draw(kind), 4).points, held.points)
    assert not torch.equal(anchors.anchors(draw(kind, seed=2), 3).points, held.points)
    back = plane.points(flat, flat.anchors.float())
    assert torch.allclose(back, held.points, atol=1e-4)
    for i, label, point in zip(held.ids, held.labels, held.points):
        if i >= 0:
            assert label in (-1, DIGITS.train.true_labels[i].item())
        if label >= 0 and kind != "pgd":  # an untouched image of the set
            assert torch.equal(point, anchors.normalised(DIGITS.train, [i], SPACE)[0])


def test_classes_of_the_anchors():
    labels = DIGITS.train.true_labels
    given = DIGITS.train.labels
    for r in range(20):
        assert len(set(anchors.anchors(draw("distinct"), r).labels)) == 3
        assert len(set(anchors.anchors(draw("same_class"), r).labels)) == 1
        right, wrong = (anchors.anchors(draw(k), r).ids for k in ("correct", "incorrect"))
        assert all(given[i] == labels[i] for i in right) and all(given[i] != labels[i] for i in wrong)
        assert len(set(anchors.anchors(draw("random"), r).ids)) == 3
        mixed = anchors.anchors(draw("one_mislabelled"), r)
        assert len(set(mixed.labels)) == 1 and [bool(given[i] == labels[i]) for i in mixed.ids] == [True, True, False]


def test_shuffling_keeps_the_pixels_and_moves_them():
    plain = anchors.normalised(DIGITS.train, [3, 40, 111], SPACE)
    for kind, kept in (("shuffled", 0), ("two_shuffled", 1)):
        held = anchors.anchors(draw(kind, ids=[3, 40, 111]))
        for n in range(3):
            assert torch.equal(held.points[n], plain[n]) == (n < kept)
            assert torch.equal(held.points[n].flatten().sort().values, plain[n].flatten().sort().values)


def test_a_permutation_is_shared_by_the_channels():
    colour = data.load("fake:3x8x8:10:40")
    space = evaluate.image_space(colour.entry)
    held = anchors.anchors(anchors.Draw(colour.full, space, "shuffled", 1))
    plain = anchors.normalised(colour.full, list(held.ids), space)
    before, after = plain[0].view(64, 3), held.points[0].view(64, 3)
    assert {tuple(p) for p in before.tolist()} == {tuple(p) for p in after.tolist()}


def test_copies_of_one_image():
    x = anchors.normalised(DIGITS.train, [7], SPACE)[0]
    turned = anchors.anchors(draw("rotated", ids=[7])).points
    assert torch.equal(turned[0], x) and torch.equal(turned[2], x.flip(0, 1))
    noisy = anchors.anchors(draw("gaussian", ids=[7])).points
    assert 0 < (noisy[1] - x).abs().max() <= 1.00001 and 0 < (noisy[2] - x).abs().max() <= 0.50001
    dots = anchors.anchors(draw("one_pixel", ids=[7])).points
    assert dots[1].sum() == dots[2].sum() == 1 and (dots[1] * dots[2]).sum() == 0


def test_noise_as_dbviz_makes_it_and_uniform_pixels():
    noise = anchors.anchors(draw("noise")).points
    assert noise.min() >= -2 and noise.max() <= 2 and abs(noise.mean()) < 0.3
    uniform = anchors.anchors(draw("uniform")).points * SPACE["std"][0] + SPACE["mean"][0]
    levels = uniform * 255
    assert torch.allclose(levels, levels.round(), atol=1e-3) and levels.min() >= -1e-3 and levels.max() <= 255.001


def test_adversarial_anchors_stay_near_and_work_in_pixels():
    network = evaluate.Adapted(trained().network, SPACE, trained().preprocessing)

    def loss(points, labels):
        with torch.no_grad():
            said = network(points.permute(0, 3, 1, 2))
        return torch.nn.functional.cross_entropy(said, torch.tensor(labels), reduction="none")

    held, clean = anchors.anchors(draw("pgd", ids=[7, 8, 9])), anchors.normalised(DIGITS.train, [7, 8, 9], SPACE)
    far = (held.points - clean).abs() * SPACE["std"][0]
    assert 0 < far.max() <= 8 / 255 + 1e-5
    assert (loss(held.points, held.labels) > loss(clean, held.labels)).all()
    low, high, _ = objectives.pixel_bounds(SPACE)
    assert held.points.min() >= low - 1e-4 and held.points.max() <= high + 1e-4
    aimed = anchors.anchors(draw("pgd_targeted", ids=[7]))
    assert torch.equal(aimed.points[0], clean[0])
    aims = [(aimed.labels[0] + k) % 10 for k in (1, 2)]
    assert (loss(aimed.points[1:], aims) < loss(clean[[0, 0]], aims)).all()


@pytest.mark.parametrize(("kind", "ids", "said"), [
    ("distinct", [1, 2], "three ids"), ("rotated", [1, 2, 3], "one id"), ("distinct", [1, 2, 99999], "0 to 1436"),
    ("nothing", None, "known: distinct"), ("distinct", [4, 4, 5], "equal"),
])  # fmt: skip
def test_impossible_anchors_are_refused(kind, ids, said):
    with pytest.raises(UsageError, match=said):
        anchors.through(draw(kind, ids=ids))


def test_wrong_labels_exist_only_where_labels_are_noisy():
    settings = {"dataset": "digits", "split": "train", "anchors": "incorrect", "plane_seed": 1, "as_published": False}
    args = SimpleNamespace(data_root=None)
    with pytest.raises(UsageError, match="--noise_rate"):
        anchors.open_draw({**settings, "given_labels": {"noise_rate": 0.0, "noise_file": ""}}, args, DIGITS)
    labels = {"noise_rate": 0.3, "noise_kind": "symmetric", "noise_file": "", "noise_seed": 0, "data_seed": 0,
              "train_size": 0, "val_size": -1}
    opened = anchors.open_draw({**settings, "given_labels": labels}, args, data.load("digits"))
    assert torch.equal(opened.images.labels, data.load("digits", noise=0.3).train.labels)
    few = anchors.open_draw({**settings, "given_labels": {**labels, "train_size": 100}}, args, data.load("digits"))
    trained = set(data.load("digits", train_size=100).train.ids.tolist())
    assert all(set(anchors.anchors(few, r).ids) <= trained for r in range(20))


# ---- in the scripts ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        main.main(["--dataset", "digits", "--net", "mlp", "--width", "8", "--epochs", "1", "--train_size", "200",
                   "--seed", str(seed), "--imgs", "none", "--device", "cpu", "--runs", str(folder)])  # fmt: skip
    return folder


def maps_with(folder, *argv):
    where = ["--load_net", str(folder / "regions"), "--runs", str(folder), "--planes", "4", "--resolution", "6"]
    assert save_preds.main([*where, "--device", "cpu", *argv]) == 0
    newest = sorted(folder.glob("regions/digits_*/arrays/*.npz"), key=lambda p: p.stat().st_mtime_ns)[-2:]
    return [runs.read_arrays(f) for f in newest]


def test_triplets_are_saved_shared_and_loaded(root, tmp_path):
    file = tmp_path / "t.json"
    first = maps_with(root, "--anchors", "same_class", "--split", "train", "--save_triplets", str(file))
    again = maps_with(root, "--triplets", str(file))
    for a, b in zip(first, again):
        assert np.array_equal(a["triplets"], b["triplets"]) and np.array_equal(a["labels"], b["labels"])
    assert maps.read_triplets(file)["anchors"] == "same_class"
    with pytest.raises(UsageError, match="differ in triplets, which no flag chooses; move away .*class_maps-"):
        calculate_iou.main(["--load_net", str(root / "regions"), "--runs", str(root)])
    whole = file.read_bytes()
    file.unlink()
    maps_with(root, "--anchors", "same_class", "--split", "train", "--save_triplets", str(file))
    assert file.read_bytes() == whole  # though no map was left to compute
    plane = ["--load_net", str(root / "regions"), "--dataset", "digits", "--resolution", "5", "--runs", str(root)]
    for name in ("a", "b"):
        main.main([*plane, "--device", "cpu", "--save_triplets", str(tmp_path / name)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_triplets_of_another_set_are_refused(root, tmp_path):
    file = tmp_path / "t.json"
    held = {"dataset": "x", "split": "test", "anchors": "distinct", "plane_seed": 1, "as_published": False,
            "data": "00000000", "triplets": [[0, 1, 2]] * 4}  # fmt: skip
    runs.write_json(file, held)
    with pytest.raises(ContentError, match="another data set"):
        maps_with(root, "--triplets", str(file))
    for wrong in ([], [[0, 1, "a"]], [[0, 1]], "text", [[0, 1, 2.5]]):
        runs.write_json(file, {**held, "triplets": wrong})
        with pytest.raises(ContentError, match="not lists of three ids"):
            maps_with(root, "--triplets", str(file))
    runs.write_json(file, {"triplets": []})
    with pytest.raises(ContentError, match="no file of triplets"):
        maps_with(root, "--triplets", str(file))


@pytest.mark.parametrize("argv", [
    ["--imgs=-1,-1,-1"], ["--imgs=-10,5,5"], ["--noise_type", "random_shuffle", "--imgs", "5,42,17"],
    ["--adv", "--imgs", "5,42,17"], ["--adv", "--targeted"],
    ["--anchors", "foreign", "--foreign_set", "fake:1x8x8:10:40"],
])  # fmt: skip
def test_dbvizs_words_for_anchors(root, argv, capsys):
    argv = ["--load_net", str(root / "regions"), "--dataset", "digits", "--resolution", "5", "--device", "cpu",
            "--runs", str(root), *argv]  # fmt: skip
    assert main.main(argv) == 0
    assert "figure:" in capsys.readouterr().out


def test_maps_of_attacked_anchors_name_the_network_that_was_attacked(root):
    """Another network that comes first is another attack: maps of the two do not lie on one plane."""
    sources = runs.find_models(root / "regions", select=["net=mlp"])
    args = save_preds.make_parser().settings(["--anchors", "pgd"])
    one, other = (maps.settings(args, some) for some in (sources, sources[::-1]))
    assert one["attacked"] == runs.digest(sources[0]) != other["attacked"]
    args.attack_net = str(sources[0].path)
    assert maps.settings(args, sources[::-1]) == one
    args.anchors = "distinct"
    assert "attacked" not in maps.settings(args, sources)


def test_networks_of_other_data_are_not_drawn(root, tmp_path):
    main.main(["--net", "mlp", "--dataset", "fake:1x8x8:10:640", "--smoke", "--imgs", "none", "--runs", str(tmp_path)])
    (run,) = (tmp_path / "smoke/regions").iterdir()
    with pytest.raises(ContentError, match="was trained on fake:1x8x8:10:640, the planes are of digits"):
        main.main(["--load_net", str(run / "model.safetensors"), "--dataset", "digits", "--resolution", "5",
                   "--runs", str(tmp_path)])


def test_an_attack_on_a_file_of_unknown_normalisation_is_refused(root, tmp_path):
    (run, *_) = (s.path for s in runs.find_models(root / "regions", select=["net=mlp"]))
    weights, _ = runs.read_weights(run / "model.safetensors")
    (tmp_path / "mlp").mkdir()
    torch.save(weights, tmp_path / "mlp/0.pth")
    made = tmp_path / "runs"
    width = str(runs.run_source(run, ()).config["width"])
    plane = ["--dataset", "digits", "--resolution", "5", "--runs", str(made), "--width", width, "--anchors", "pgd"]
    for script, more in ((main, ["--load_net", str(tmp_path / "mlp/0.pth"), "--net", "mlp"]),
                         (save_preds, ["--load_net", str(tmp_path), "--planes", "2"]),
                         (main, ["--load_net", str(run), "--attack_net", str(tmp_path / "mlp/0.pth"), "--net", "mlp"])):
        with pytest.raises(UsageError, match="0.pth does not say how its inputs were normalised.* give --normalize"):
            script.main([*plane, *more])
        assert not made.exists()
        assert script.main([*plane, *more, "--normalize", "dataset"]) == 0
        shutil.rmtree(made, ignore_errors=True)
    own = ["--load_net", str(run), "--attack_net", str(run / "model.safetensors")]
    assert main.main([*plane, *own]) == 0  # a checkpoint of ours says it
