"""Deep ensembles: members' seeds, every measure against a loop, samplers by their moments, limits by simulation."""

import itertools
import math
import signal
import sys

import numpy as np
import pytest
import torch
import yaml

from ensembles import evaluate, samplers, similarity
from ensembles import train as training
from landscape import cli, metrics, permute, predictions, runs, seeding, weights
from landscape import data as datasets
from landscape import evaluate as measuring
from landscape.errors import FileProblem, Refusal, UsageError
from models.axes import axes_of

torch.set_num_threads(1)
MACHINE = ["--device", "cpu", "--threads", "1"]
TINY = ["--net", "mlp", "--width", "8", "--dataset", "digits", "--train_size", "100", "--epochs", "3", "--bs", "50",
        "--lr", "0.03", "--precision", "fp32", "--stack", "never", *MACHINE]  # fmt: skip
FEW = ["--samples", "3", "--plane_samples", "2", "--bn_images", "40", "--accept", "0.2", *MACHINE]


def made(root, *argv):
    """The run folders of a training of members, in their order."""
    argv = [*TINY, "--runs", str(root), *argv]
    assert training.main(argv) == 0
    return [runs.folder("ensembles", m) for m in members_of(*argv)]


def members_of(*argv):
    return training.each(training.make_parser().settings(list(argv)))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def four(kept):
    return made(kept / "four", "--members", "4")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures take longer than all else; test_scripts and test_wandb draw them."""
    monkeypatch.setattr(similarity, "draw", lambda *_: None)
    monkeypatch.setattr(evaluate, "draw", lambda *_: None)


def measured(script, root, *argv):
    """(results, arrays) of a measuring script; its run folder is root/ensembles/…"""
    before = set(root.glob("ensembles/*/done"))
    assert script.main([*argv, "--runs", str(root), *([] if script is evaluate else MACHINE)]) == 0
    after = set(root.glob("ensembles/*/done"))
    (done,) = after - before or {max(after, key=lambda p: p.stat().st_mtime_ns)}
    (file,) = done.parent.glob("arrays/*.npz")
    return runs.read_json(done.parent / "results.json"), runs.read_arrays(file)


def names(paths):
    return [str(p) for p in paths]


def answers(path, which="model"):
    """Logits of a run on digits' test images, straight from its weights."""
    trained = runs.load(path if which == "model" else path / f"checkpoints/{which}.safetensors")
    return measuring.logits(trained.network, datasets.load("digits", val_size=0).test, trained.preprocessing).numpy()


LABELS = datasets.load("digits", val_size=0).test.labels.numpy()


# ---- members -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("vary", ["init", "order", "augment", "init,order,augment", "order,augment"])
def test_members_differ_in_the_seeds_that_vary_and_in_nothing_else(vary):
    held = members_of(*TINY, "--members", "3", "--seed", "5", "--vary", vary)
    for k, member in enumerate(held):
        for name in training.SEEDS:
            assert getattr(member, f"{name}_seed") == (5 + k if name in vary else 5), name
        same = {f: getattr(member, f) for f in member.flags if f.split("_")[0] not in (*training.SEEDS, "seed")}
        assert same == {f: getattr(held[0], f) for f in same}
        assert not {"members", "vary", "stack"} & set(member.flags)


def test_each_seed_changes_what_it_owns(tmp_path):
    small = ["--train_size", "60", "--epochs", "1", "--members", "2"]
    for vary, first_differs, last_differs in (("init", True, True), ("order", False, True), ("augment", False, True)):
        folders = made(tmp_path / vary, *small, "--vary", vary, "--augment", "crop")
        for epoch, differs in (("0000", first_differs), ("0001", last_differs)):
            a, b = (runs.read_weights(f / f"checkpoints/epoch_{epoch}.safetensors")[0] for f in folders)
            assert any(not torch.equal(a[k], b[k]) for k in a) == differs, (vary, epoch)
    one, two = made(tmp_path / "augment", *small, "--vary", "augment", "--augment", "none")
    a, b = (runs.read_weights(f / "model.safetensors")[0] for f in (one, two))
    assert all(torch.equal(a[k], b[k]) for k in a)  # without augmentation its seed owns nothing


def test_a_member_is_the_same_run_whichever_command_trains_it(tmp_path, capsys):
    base = [*TINY, "--runs", str(tmp_path), "--dry_run"]
    training.main([*base, "--members", "3", "--seed", "4"])
    together = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trained: ")]
    alone = []
    for seed in (4, 5, 6):
        training.main([*base, "--members", "1", "--seed", str(seed)])
        alone += [line for line in capsys.readouterr().out.splitlines() if line.startswith("trained: ")]
    assert together == alone and len(set(alone)) == 3 and not list(tmp_path.iterdir())
    for k, member in enumerate(members_of(*TINY, "--members", "3", "--seed", "4")):
        (own,) = members_of(*TINY, "--members", "1", "--seed", str(4 + k))
        assert {f: getattr(member, f) for f in member.flags} == {f: getattr(own, f) for f in own.flags}


def test_the_seed_of_augmentation_follows_that_of_the_order():
    (member,) = members_of(*TINY, "--members", "1", "--order_seed", "7")
    assert (member.init_seed, member.order_seed, member.augment_seed) == (1, 7, 7)  # as of main.py
    held = members_of(*TINY, "--members", "2", "--order_seed", "7", "--augment_seed", "0")
    assert [(m.init_seed, m.order_seed, m.augment_seed) for m in held] == [(1, 7, 0), (2, 8, 1)]


def test_the_defaults_are_those_of_the_study():
    (member,) = members_of("--members", "1")
    wanted = {"net": "small_cnn", "dataset": "CIFAR10", "epochs": 40, "bs": 128, "opt": "Adam", "lr": 1.6e-3,
              "adam_eps": 1e-7, "weight_decay": 0.0, "scheduler": "drop_a", "augment": "none", "normalize": "none",
              "val_size": 0, "snapshots": "all", "noise_rate": 0.0, "label_smoothing": 0.0}  # fmt: skip
    assert {k: getattr(member, k) for k in wanted} == wanted


@pytest.mark.parametrize(("flags", "words"), [
    (["--vary", "inti"], "--vary inti: inti is none of init, order, augment"),
    (["--vary", ""], "nothing is none of init, order, augment"),
    (["--members", "0"], "not a positive whole number"),
    (["--member", "3"], "did you mean --members"),
    (["--scheduler", "drop"], "invalid choice"),
    (["--net", "smal_cnn"], "did you mean small_cnn"),
    (["--net", "medium_cnn", "--image_size", "8", "--width", "0"], "medium_cnn"),
])  # fmt: skip
def test_wrong_trainings_are_refused_before_anything_is_written(tmp_path, flags, words):
    from models import ModelError

    with pytest.raises((Refusal, ModelError), match=words) as caught:
        training.main([*TINY, *flags, "--runs", str(tmp_path)])
    assert caught.value.exit_code == 2 if isinstance(caught.value, Refusal) else True
    assert not list(tmp_path.rglob("*"))


# ---- similarity ----------------------------------------------------------------------------------------------------

def test_the_matrices_of_members_and_of_trajectories_are_those_of_their_pairs(four, kept):
    flags = ["--trajectories", "2", "--late", "2"]
    found, arrays = measured(similarity, kept / "pairs", "--members", *names(four), *flags)
    assert found["images"] == 360
    assert [m["path"] for m in found["models"]] == [str(f / "model.safetensors") for f in four]
    said = np.stack([answers(f) for f in four])
    right = [(x.argmax(1) == LABELS).mean() for x in said]
    assert np.allclose([m["accuracy"] for m in found["models"]], right)
    for name, matrix in metrics.pairwise(said).items():  # itself against a loop in test_metrics
        assert np.allclose(arrays[f"members_{name}"], matrix, atol=1e-6), name
    first = [runs.read_weights(f / "checkpoints/epoch_0000.safetensors")[0] for f in four]
    last = [runs.read_weights(f / "model.safetensors")[0] for f in four]

    def matrix(points, keep):
        return [[weights.cosine({k: a[k] for k in a if keep(k)}, {k: b[k] for k in b if keep(k)}) for b in points]
                for a in points]

    moved = [{k: w[k] - b[k] for k in w} for w, b in zip(last, first)]
    assert np.allclose(arrays["members_weight_cosine"], matrix(last, lambda k: True), atol=1e-6)
    assert np.allclose(arrays["members_weight_cosine_kernels"], matrix(last, lambda k: "weight" in k), atol=1e-6)
    assert np.allclose(arrays["members_displacement_cosine"], matrix(moved, lambda k: True), atol=1e-6)
    pairs = list(itertools.permutations(range(4), 2))
    for key, held in found["layers"].items():
        for measure, points in (("weight_cosine", last), ("displacement_cosine", moved)):
            each = [weights.cosine({key: points[i][key]}, {key: points[j][key]}) for i, j in pairs]
            assert math.isclose(held[measure], np.mean(each), abs_tol=1e-6), key
    assert set(found["layers"]) == set(last[0])
    apart = arrays["members_disagreement"]
    assert math.isclose(found["measures"]["disagreement"]["value"], np.mean([apart[p] for p in pairs]))
    each = [apart[i, j] / (1 - right[j]) for i, j in pairs]
    assert math.isclose(found["measures"]["disagreement_per_error"]["value"], np.mean(each))
    wrong = (metrics.softmax(said).mean(0).argmax(1) != LABELS).mean()
    assert math.isclose(found["measures"]["disagreement_per_ensemble_error"]["value"],
                        np.mean([apart[p] for p in pairs]) / wrong)

    epochs = [f"epoch_{e:04d}" for e in range(4)]
    assert [t["epochs"] for t in found["trajectories"]] == [[0, 1, 2, 3]] * 2
    near = []
    for number, folder in enumerate(four[:2]):
        said = np.stack([answers(folder, e) for e in epochs])
        for name, expected in metrics.pairwise(said).items():
            assert np.allclose(arrays[f"trajectory_{number}_{name}"], expected, atol=1e-6), name
        points = [runs.read_weights(folder / f"checkpoints/{e}.safetensors")[0] for e in epochs]
        assert np.allclose(arrays[f"trajectory_{number}_weight_cosine"], matrix(points, lambda k: True), atol=1e-6)
        moved = [{k: w[k] - points[0][k] for k in w} for w in points]
        cosines = arrays[f"trajectory_{number}_displacement_cosine"]
        assert np.isnan(cosines[0]).all()  # nothing has moved yet
        assert np.allclose(cosines[1:, 1:], np.array(matrix(moved, lambda k: True), dtype=float)[1:, 1:], atol=1e-6)
        near.append(arrays[f"trajectory_{number}_disagreement"][2, 3])
    assert math.isclose(found["late_measures"]["disagreement"]["value"], np.mean(near))
    far = [apart[i].sum() / 3 for i in range(2)]
    assert math.isclose(found["ratios"]["disagreement"]["value"], np.mean(np.array(far) / near))
    assert arrays["embedding_tsne"].shape == arrays["embedding_mds"].shape == (2, 4, 2)


def test_a_single_network_has_nulls_where_pairs_are_needed(four, tmp_path, capsys):
    found, arrays = measured(similarity, tmp_path, "--members", str(four[0]), "--trajectories", "0")
    assert all(cell["value"] is cell["low"] is cell["high"] is None for cell in found["measures"].values())
    assert found["accuracy"]["low"] is None and found["accuracy"]["value"] == found["models"][0]["accuracy"]
    assert found["trajectories"] == [] and "late_measures" not in found and "embedding" not in found
    assert arrays["members_disagreement"].tolist() == [[0]]
    assert "nan" not in capsys.readouterr().out
    found, arrays = measured(evaluate, tmp_path / "e", "--members", str(four[0]), "--anchors", "0", *FEW)
    ((row,),) = found["curves"]
    assert row["measures"]["js"] == {"value": None, "low": None, "high": None, "n": 1}
    assert row["measures"]["accuracy"]["value"] == found["models"][0]["accuracy"]
    assert row["measures"]["accuracy"]["low"] is None and found["plane"]["groups"] == {}


def test_the_state_before_training_is_never_late(four, tmp_path):
    wide, _ = measured(similarity, tmp_path, "--members", str(four[0]), "--late", "99")
    all_three, arrays = measured(similarity, tmp_path, "--members", str(four[0]), "--late", "3")
    assert wide["late_measures"] == all_three["late_measures"]
    apart = arrays["trajectory_0_disagreement"][1:, 1:]
    assert math.isclose(wide["late_measures"]["disagreement"]["value"], apart.sum() / 6)


def test_networks_of_several_kinds_are_compared_by_their_functions_alone(four, kept, tmp_path, capsys):
    other = made(kept / "wider", "--members", "1", "--width", "9")
    found, arrays = measured(similarity, tmp_path, "--members", *names([four[0], *other]), "--trajectories", "2")
    assert "members_weight_cosine" not in arrays and found["layers"] == {}
    assert found["measures"]["disagreement"]["value"] > 0
    assert "trajectory_1_weight_cosine" in arrays
    short = made(kept / "short", "--members", "1", "--epochs", "2", "--seed", "9")
    found, arrays = measured(similarity, tmp_path, "--members", *names([four[0], *short]))
    assert "embedding" not in found and [len(t["epochs"]) for t in found["trajectories"]] == [4, 3]
    assert "not embedded together" in capsys.readouterr().out
    only = made(kept / "only", "--members", "1", "--snapshots", "3")
    found, _ = measured(similarity, tmp_path, "--members", *names(only))  # a trajectory of one point
    assert "embedding" not in found and found["late_measures"]["disagreement"]["value"] is None


def test_foreign_weights_are_compared_with_ours(four, tmp_path):
    (tmp_path / "mlp").mkdir()
    torch.save(runs.read_weights(four[1] / "model.safetensors")[0], tmp_path / "mlp/a.pt")
    flags = ["--dataset", "digits", "--width", "8", "--normalize", "none", "--trajectories", "0"]
    found, arrays = measured(similarity, tmp_path / "r", "--members", *names(four[:2]), str(tmp_path / "mlp"), *flags)
    order = [m["path"] for m in found["models"]]
    same = [order.index(str(p)) for p in (four[1] / "model.safetensors", tmp_path / "mlp/a.pt")]
    assert math.isclose(arrays["members_weight_cosine"][tuple(same)], 1, abs_tol=1e-9)
    assert arrays["members_disagreement"][tuple(same)] == 0
    assert "members_displacement_cosine" not in arrays  # of a foreign network nobody knows where it began


def test_which_parameters_count():
    kinds = similarity.parameter_kinds({"name": "resnet20v1", "num_classes": 10, "in_channels": 3, "image_size": 32,
                                        "width": 0})  # fmt: skip
    import models

    shapes = {k: v.shape for k, v in models.build("resnet20v1").named_parameters()}
    sizes = {m: sum(math.prod(shapes[k]) for k in names) for m, names in kinds.items()}
    assert sizes["weight_cosine"] == 571_114 and sizes["weight_cosine_kernels"] == 564_912
    assert sizes["weight_cosine_as_published"] == 564_912 + 2_000  # kernels and BatchNorm's scales
    assert sizes["weight_cosine_no_norms"] == 571_114 - 4_000
    assert sizes["weight_cosine"] == sum(math.prod(s) for s in shapes.values())


def test_classical_scaling_keeps_the_distances_of_points_in_a_plane_and_of_labels():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(7, 2))
    squares = ((points[:, None] - points) ** 2).sum(2)
    coords = similarity.classical_scaling(squares / 2)
    assert np.allclose(((coords[:, None] - coords) ** 2).sum(2), squares)
    # Three models: one-hot labels of three points lie in a plane, at squared distances of twice the disagreement.
    labels = rng.integers(0, 3, (3, 40))
    apart = (labels[:, None] != labels).mean(2)
    coords = similarity.classical_scaling(apart)
    hot = np.eye(3)[labels].reshape(3, -1) / 40**0.5
    assert np.allclose(((coords[:, None] - coords) ** 2).sum(2), ((hot[:, None] - hot) ** 2).sum(2))
    assert np.allclose(((coords[:, None] - coords) ** 2).sum(2), 2 * apart)


def test_embeddings_depend_on_their_seed_alone():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 5))
    one = similarity.tsne(rows, 3)
    torch.manual_seed(1), np.random.seed(1)
    assert np.array_equal(one, similarity.tsne(rows, 3)) and one.shape == (12, 2)
    coords = similarity.pca(rows)
    flipped = similarity.pca(rows[::-1])[::-1]
    assert np.allclose(coords, flipped)  # the signs do not depend on the order
    centred = rows - rows.mean(0)
    values = np.linalg.eigvalsh(centred.T @ centred)[::-1]
    assert np.allclose(coords.T @ coords, np.diag(values[:2]))
    assert similarity.tsne(rng.normal(size=(3, 4)), 0).shape == (3, 2)


def test_the_ends_of_trajectories_are_apart_in_units_of_their_own_spread():
    square = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) / 2**0.5  # each a distance of 1 from the centre
    held = similarity.separation(np.stack([square, square + [6, 0], 3 * square + [0, 8]]), 0.95)
    assert math.isclose(held["ratio"]["value"], (6 / 1 + 8 / 2 + 10 / 2) / 3) and math.isclose(held["least"], 4)
    assert held["ratio"]["n"] == 3 and held["ratio"]["low"] <= held["ratio"]["value"] <= held["ratio"]["high"]
    for ends in (square[None], np.stack([square, 1e-17 * square + [6, 0]]), np.zeros((2, 3, 2))):
        held = similarity.separation(ends, 0.95)
        assert held["least"] is held["ratio"]["value"] is held["ratio"]["low"] is None


# ---- evaluate ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def curves(four, kept):
    patch = pytest.MonkeyPatch()
    patch.setattr(evaluate, "draw", lambda *_: None)
    out = measured(evaluate, kept / "curves", "--members", *names(four), "--anchors", "2", "--late", "2", *FEW)
    patch.undo()
    return out


def test_sets_of_one_are_the_members_and_the_set_of_all_is_the_ensemble(curves, four):
    found, arrays = curves
    probs = np.stack([metrics.softmax(answers(f)) for f in four])
    rows = found["curves"][0]
    assert found["groups"][0]["name"] == "independent" and [r["size"] for r in rows] == [1, 2, 3, 4]
    assert [r["sets"] for r in rows] == [math.comb(4, k) for k in (1, 2, 3, 4)]
    alone = {"accuracy": [metrics.accuracy(p, LABELS) for p in probs],
             "brier": [metrics.brier(p, LABELS) for p in probs],
             "ece": [metrics.ece(p, LABELS) for p in probs], "nll": [metrics.nll(np.log(p), LABELS) for p in probs]}
    for measure, each in alone.items():
        assert math.isclose(rows[0]["measures"][measure]["value"], np.mean(each), abs_tol=1e-6), measure
        # sets of one member: the jackknife is the standard error of a mean
        cell = rows[0]["measures"][measure]
        assert (cell["high"] - cell["value"] if cell["high"] < 1 else 0) <= 3.1825 * np.std(each, ddof=1) / 2 + 1e-6
    assert math.isclose(rows[3]["measures"]["accuracy"]["value"], metrics.accuracy(probs.mean(0), LABELS))
    assert rows[3]["measures"]["accuracy"]["low"] is None  # one set, of all
    assert rows[0]["measures"]["js"]["value"] is None
    for row in rows[1:]:
        assert 0 < row["measures"]["js"]["value"] <= math.log(row["size"])
    pairs = [metrics.accuracy(probs[[i, j]].mean(0), LABELS) for i, j in itertools.combinations(range(4), 2)]
    assert math.isclose(rows[1]["measures"]["accuracy"]["value"], np.mean(pairs))
    assert np.isclose(arrays["curve_independent_accuracy"][0, 1], np.mean(pairs))
    without_last = [pairs[i] for i, (a, b) in enumerate(itertools.combinations(range(4), 2)) if b != 3]
    assert np.isclose(arrays["curve_independent_accuracy"][4, 1], np.mean(without_last))
    confusion = arrays["confusion_ensemble"]
    assert np.allclose(confusion.sum(1), 1) and len(arrays["class_names"]) == 10
    per_class = [(probs.mean(0).argmax(1)[LABELS == c] == c).mean() for c in range(10)]
    assert np.allclose(confusion.diagonal(), per_class)


def test_weights_are_averaged_before_they_are_asked(curves, four):
    found, _ = curves
    said = []
    for folder in four[:2]:
        late = [runs.read_weights(folder / f"checkpoints/epoch_000{e}.safetensors")[0] for e in (2, 3)]
        trained = runs.load(folder)
        trained.network.load_state_dict(weights.lerp(*late, 0.5))
        test = datasets.load("digits", val_size=0).test
        said.append(metrics.softmax(measuring.logits(trained.network, test, trained.preprocessing).numpy()))
    names = [g["name"] for g in found["groups"]]
    rows = found["curves"][names.index("independent_weight_average")]
    assert math.isclose(rows[0]["measures"]["accuracy"]["value"], np.mean([metrics.accuracy(p, LABELS) for p in said]))
    assert math.isclose(rows[0]["measures"]["brier"]["value"], np.mean([metrics.brier(p, LABELS) for p in said]),
                        rel_tol=1e-4)
    assert rows[0]["measures"]["accuracy"]["n"] == 2


def test_every_kind_of_set_is_there_at_its_sizes(curves):
    found, arrays = curves
    held = {g["name"]: rows for g, rows in zip(found["groups"], found["curves"])}
    assert set(held) == {"independent", "snapshots", "late_snapshots", "independent_weight_average", *samplers.SAMPLERS,
                         *(f"independent_{k}" for k in samplers.SAMPLERS)}  # fmt: skip
    assert set(evaluate.KINDS) == set(samplers.SAMPLERS) == set(evaluate.WORDS) - {evaluate.AVERAGE}
    assert len(held["snapshots"]) == 3 and len(held["late_snapshots"]) == 2 and len(held["pca"]) <= 3
    snapshots = [np.mean([metrics.accuracy(answers(f, f"epoch_000{e}"), LABELS) for e in (1, 2, 3)])
                 for f in map(runs.Path, {m["path"].rsplit("/", 1)[0] for m in found["models"][:2]})]
    assert math.isclose(held["snapshots"][0]["measures"]["accuracy"]["value"], np.mean(snapshots))
    for kind, counts in found["samplers"].items():
        assert counts["asked"] == 6 and counts["accepted"] <= counts["tried"] <= 30, kind
        if kind != "random":
            assert counts["asked"] == counts["tried"] == counts["accepted"]
    groups = found["plane"]["groups"]
    assert groups["independent"]["samples"] == 6 and groups["late_snapshots"]["samples"] == 2
    assert groups["trajectory"]["samples"] == 2 and groups["random"]["samples"] == 4 and "pca_random" not in groups
    assert arrays["plane_dropout"].shape == (4, 2)
    assert len({round(r[0]["measures"]["accuracy"]["value"], 6) for r in held.values()}) > 3


def test_samples_are_kept_with_their_solution_and_made_again_with_force(four, tmp_path, monkeypatch):
    seen, real = [], samplers.draw

    def draw(name, *args, **kwargs):
        seen.append(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(samplers, "draw", draw)
    argv = ["--members", str(four[3]), "--samplers", "dropout,pca", *FEW]
    first, _ = measured(evaluate, tmp_path, *argv)
    assert seen == ["dropout", "dropout", "pca", "pca"]  # for ensembles and for the plane
    again, _ = measured(evaluate, tmp_path, *argv)
    assert again == first and len(seen) == 4
    assert measured(evaluate, tmp_path, *argv, "--force")[0] == first and len(seen) == 8
    other, _ = measured(evaluate, tmp_path, *argv, "--sample_seed", "1")
    assert other["curves"] != first["curves"] and len(seen) == 12


def test_solutions_have_draws_of_their_own(four, tmp_path, monkeypatch):
    seeds, real = [], samplers.draw

    def draw(name, about, count, use, generator, *rest):
        seeds.append((use, generator.initial_seed()))
        return real(name, about, count, use, generator, *rest)

    monkeypatch.setattr(samplers, "draw", draw)
    argv = ["--members", str(four[0]), str(four[1]), "--samplers", "dropout", "--sample_seed", "4", *FEW]
    measured(evaluate, tmp_path, *argv)
    assert len(seeds) == len(set(seeds)) == 4  # two solutions, for ensembles and for the plane


def test_a_stop_in_the_middle_keeps_what_was_made_and_the_same_command_goes_on(four, tmp_path, monkeypatch, capsys):
    argv = ["--members", str(four[2]), "--samplers", "dropout,diagonal", "--sample_seed", "3", *FEW,
            "--runs", str(tmp_path)]  # fmt: skip
    real, made_of = evaluate.Scene.sampled, []

    def stops(scene, anchor, kind):
        if kind == "diagonal":
            raise KeyboardInterrupt
        made_of.append(kind)
        return real(scene, anchor, kind)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["evaluate", *argv])
    monkeypatch.setattr(evaluate.Scene, "sampled", stops)
    with pytest.raises(SystemExit) as stop:
        cli.run(evaluate.main)
    signal.signal(signal.SIGTERM, before)
    assert stop.value.code == 75 and "again to go on" in capsys.readouterr().err
    assert made_of == [evaluate.AVERAGE, "dropout"] and not list(tmp_path.glob("ensembles/*/done"))
    monkeypatch.setattr(evaluate.Scene, "sampled", lambda s, a, kind: made_of.append(kind) or real(s, a, kind))
    assert evaluate.main(argv) == 0 and made_of[2:] == ["diagonal"]


def test_cyclic_trainings_are_found_beside_the_members_and_must_fit_them(four, kept, tmp_path):
    mixed = kept / "mixed"
    made(mixed, "--members", "1", "--scheduler", "cyclic", "--cycles", "3")
    argv = ["--members", *names(four), "--anchors", "0", *FEW]
    found, _ = measured(evaluate, tmp_path, *argv, "--select", "scheduler=drop_a", "--cyclic",
                        str(mixed / "ensembles/*"))
    held = {g["name"]: rows for g, rows in zip(found["groups"], found["curves"])}
    assert len(held["cyclic_snapshots"]) == 3 and len(found["models"]) == 4
    (folder,) = mixed.glob("ensembles/*")
    each = [metrics.accuracy(answers(folder, f"epoch_000{e}"), LABELS) for e in (1, 2, 3)]
    assert math.isclose(held["cyclic_snapshots"][0]["measures"]["accuracy"]["value"], np.mean(each))
    with pytest.raises(FileProblem, match="scheduler=cyclic"):
        evaluate.main([*argv, "--cyclic", str(four[0].parent), "--runs", str(tmp_path / "none")])
    made(kept / "faked", "--members", "1", "--scheduler", "cyclic", "--dataset", "fake:1x8x8:10:200", "--epochs", "1")
    with pytest.raises(UsageError, match="different data"):
        evaluate.main([*argv, "--cyclic", str(kept / "faked"), "--runs", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("script", "flags", "words"), [
    (evaluate, ["--samplers", "difgonal"], "--samplers difgonal: .*did you mean diagonal"),
    (evaluate, ["--split", "val"], "without a val set: use --split test"),
    (similarity, ["--split", "val"], "without a val set: use --split test"),
    (evaluate, ["--max_size", "0"], "positive"), (evaluate, ["--bn_images", "1"], "at least 2"),
    (evaluate, ["--accept", "1.5"], "at most 1"), (similarity, ["--late", "0"], "positive"),
    (similarity, ["--level", "1"], "at most 0.9999"), (similarity, ["--trajectories", "-1"], "below 0"),
    (similarity, ["--trajectory", "1"], "did you mean --trajectories"),
    (similarity, ["--formats", "gif"], "png, pdf, svg"),
])  # fmt: skip
def test_wrong_measurements_are_refused_before_anything_is_written(four, tmp_path, script, flags, words):
    with pytest.raises(UsageError, match=words):
        script.main(["--members", str(four[0]), *flags, *MACHINE, "--runs", str(tmp_path)])
    assert not list(tmp_path.rglob("*"))


def test_sizes_beyond_the_members_end_at_the_members(four, tmp_path):
    found, _ = measured(evaluate, tmp_path, "--members", *names(four[:2]), "--anchors", "0", "--max_size", "50", *FEW)
    assert [r["size"] for r in found["curves"][0]] == [1, 2]


def test_a_sampler_without_an_accepted_sample_is_said(four, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(samplers, "draw", lambda *_: ([], {"asked": 3, "tried": 15, "accepted": 0}))
    found, arrays = measured(evaluate, tmp_path, "--members", str(four[0]), "--samplers", "random", "--sample_seed",
                             "8", *FEW, "--plane_samples", "0")
    assert "random is left out of the curves: no sample was accepted around" in capsys.readouterr().out
    assert found["samplers"]["random"] == {"asked": 3, "tried": 15, "accepted": 0}
    assert not [g["name"] for g in found["groups"] if g["name"].endswith("random")]


def test_a_network_with_batchnorm_is_sampled_with_statistics_of_its_own(kept, tmp_path, monkeypatch):
    (folder,) = made(kept / "norms", "--members", "1", "--net", "resnet20v1", "--width", "0", "--epochs", "2",
                     "--train_size", "64", "--bs", "32")  # fmt: skip
    drawn, real = [], samplers.draw

    def draw(name, *args, **kwargs):
        out = real(name, *args, **kwargs)
        drawn.append((name, args[2], out[0]))
        return out

    monkeypatch.setattr(samplers, "draw", draw)
    flags = ["--samples", "2", "--plane_samples", "1", "--bn_images", "32", "--accept", "0", *MACHINE]
    found, _ = measured(evaluate, tmp_path, "--members", str(folder), *flags)
    assert set(found["samplers"]) == set(samplers.SAMPLERS)
    assert {(n, use) for n, use, _ in drawn} >= {(n, "ensemble") for n in samplers.SAMPLERS}
    held, _ = runs.read_weights(folder / "model.safetensors")
    data = datasets.load("digits", train_size=64, val_size=0, data_seed=1)
    order = torch.randperm(64, generator=seeding.stream(0, "bn"))[:32]
    pixels = data.train.pixels(order).double()
    for _, _, points in drawn:
        for point in points:
            assert not torch.equal(point["1.running_mean"], held["1.running_mean"])
            out = torch.nn.functional.conv2d(pixels, point["0.weight"].double(), point["0.bias"].double(), padding=1)
            assert torch.allclose(point["1.running_mean"].double(), out.mean((0, 2, 3)), atol=1e-4)
            assert torch.allclose(point["1.running_var"].double(), out.transpose(0, 1).flatten(1).var(1), rtol=1e-3)
            assert torch.equal(point["1.num_batches_tracked"], held["1.num_batches_tracked"])
    similar, arrays = measured(similarity, tmp_path / "s", "--members", str(folder))
    assert arrays["trajectory_0_weight_cosine_no_norms"].shape == (3, 3)


@pytest.mark.parametrize(("dataset", "classes"), [("fake:1x8x8:2:120", 2), ("fake:1x8x8:100:300", 100)])
def test_two_classes_and_a_hundred(dataset, classes, kept, tmp_path):
    folders = made(kept / f"classes{classes}", "--members", "2", "--dataset", dataset, "--epochs", "2")
    found, arrays = measured(evaluate, tmp_path, "--members", *names(folders), *FEW, "--accept", "0")
    assert found["classes"] == classes and arrays["confusion_members"].shape == (classes, classes)
    assert measured(similarity, tmp_path / "s", "--members", *names(folders))[0]["measures"]["disagreement"]


# ---- limits --------------------------------------------------------------------------------------------------------

def test_limits_meet_at_chance_and_the_lower_one_is_zero_at_the_solution():
    for base, classes in ((0.71, 10), (0.6436, 10), (0.9, 2), (0.4, 100)):
        chance = 1 / classes
        assert math.isclose(evaluate.upper_limit(chance, base, classes), evaluate.lower_limit(chance, base, classes))
        assert evaluate.lower_limit(base, base, classes) == 0
        between = np.linspace(chance, base, 50)
        upper, lower = (limit(between, base, classes) for limit in (evaluate.upper_limit, evaluate.lower_limit))
        assert (upper >= lower - 1e-9).all()
    for base, value in ((0.71, 1.678), (0.6436, 1.604), (0.774, 1.749), (0.866, 1.851)):  # published, a = a*
        assert math.isclose(evaluate.upper_limit(base, base, 10) / (1 - base), value, abs_tol=6e-4)
    assert np.isnan(evaluate.lower_limit(0.05, 0.1, 10))  # a solution that guesses has no worse neighbours


@pytest.mark.parametrize(("base", "a", "classes"), [(0.7, 0.6, 10), (0.8, 0.8, 3), (0.9, 0.7, 2)])
def test_simulated_networks_lie_on_the_limits(base, a, classes):
    rng, n = np.random.default_rng(classes), 400_000
    labels = rng.integers(0, classes, n)

    def wrong_where(mask):
        return np.where(mask, (labels + rng.integers(1, classes, n)) % classes, labels)

    own, other = wrong_where(rng.random(n) > base), wrong_where(rng.random(n) > a)
    accuracy, apart = evaluate.place(other, own, labels)
    assert math.isclose(apart, evaluate.upper_limit(accuracy, (own == labels).mean(), classes), abs_tol=4e-3)
    share = evaluate.lower_limit(a, base, classes)  # answers changed to another one, uniformly
    flipped = np.where(rng.random(n) < share, (own + rng.integers(1, classes, n)) % classes, own)
    accuracy, apart = evaluate.place(flipped, own, labels)
    assert math.isclose(accuracy, a, abs_tol=4e-3)
    assert math.isclose(apart, evaluate.lower_limit(accuracy, (own == labels).mean(), classes), abs_tol=6e-3)


def test_the_share_of_the_upper_limit_is_that_of_samples_near_the_solution():
    args = cli.argparse.Namespace(level=0.95)
    limit = evaluate.upper_limit
    held = evaluate.summary([[(0.7, 0.2), (0.1, 0.9)], [(0.69, 0.1), (0.66, 0.3)], [(0.2, 0.8)]], 0.7, 10, args)
    each = [0.2 / limit(0.7, 0.7, 10), (0.1 / limit(0.69, 0.7, 10) + 0.3 / limit(0.66, 0.7, 10)) / 2]
    assert np.allclose(held["each"], each) and math.isclose(held["share_of_upper"]["value"], np.mean(each))
    assert held["near"] == 3 and held["samples"] == 5 and held["share_of_upper"]["n"] == 2
    perfect = evaluate.summary([[(1.0, 0.0)]], 1.0, 10, args)  # nothing to disagree about: no share
    assert perfect["share_of_upper"] == {"value": None, "low": None, "high": None, "n": 0}


def test_a_copy_with_permuted_units_is_recognised(four, kept, tmp_path):
    """Aligned, its cosine with the original is 1, and no pair's is smaller for it; without --align it is not."""
    original = runs.load(four[1])
    axes = axes_of(original.network)
    (tmp_path / "mlp").mkdir()
    copy = permute.apply(weights.of(original.network), axes, permute.random(axes, 3))
    runs.save_weights(tmp_path / "mlp/a.safetensors", copy, {"architecture": original.architecture,
                                                              "preprocessing": original.preprocessing})
    flags = ["--dataset", "digits", "--trajectories", "0", "--align", "weights"]
    found, arrays = measured(similarity, tmp_path / "r", "--members", *names(four[:2]), str(tmp_path / "mlp"), *flags)
    order = [m["path"] for m in found["models"]]
    same = tuple(order.index(str(p)) for p in (four[1] / "model.safetensors", tmp_path / "mlp/a.safetensors"))
    plain, aligned = arrays["members_weight_cosine"], arrays["members_weight_cosine_aligned"]
    assert math.isclose(aligned[same], 1, abs_tol=1e-5) and plain[same] < 0.9
    assert np.allclose(aligned, aligned.T) and (aligned >= plain - 1e-6).all()
    assert found["measures"]["weight_cosine_aligned"]["n"] == 3
    other = made(kept / "wider", "--members", "1", "--width", "9")
    with pytest.raises(UsageError, match="different architectures"):
        similarity.main(["--members", *names([four[0], *other]), "--align", "weights", "--runs", str(tmp_path)])


# ---- samplers ------------------------------------------------------------------------------------------------------

def about(snapshots=4, seed=0):
    """An Anchor of 16 parameters and two buffers."""
    g = torch.Generator().manual_seed(seed)

    def point():
        return {"a": torch.randn(3, 4, generator=g), "norm.running_mean": torch.ones(2),
                "b": torch.randn(4, generator=g), "count": torch.tensor(3)}

    return samplers.anchor(point(), ["a", "b"], [point() for _ in range(snapshots)])


def vectors(points):
    return torch.stack([samplers.vector_of(p, ("a", "b")) for p in points])


def drawn(name, count, use="ensemble", seed=0, anchor=None, **more):
    return samplers.draw(name, anchor or about(), count, use, seeding.stream(seed, "samples", name), **more)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_samples_depend_on_the_seed_alone_and_leave_buffers(name):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, counts = drawn(name, 5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(vectors(one), vectors(drawn(name, 5)[0]))
    assert not torch.equal(vectors(one), vectors(drawn(name, 5, seed=1)[0]))
    assert counts == {"asked": 5, "tried": 5, "accepted": 5}
    held = about().weights
    for point in one:
        assert list(point) == list(held) and point["a"].shape == (3, 4) and point["a"].dtype == torch.float32
        assert torch.equal(point["norm.running_mean"], held["norm.running_mean"]) and point["count"] == 3
    finished, _ = drawn(name, 3, finish=lambda p: {**p, "count": torch.tensor(9)})
    assert all(p["count"] == 9 for p in finished)


def test_random_directions_lie_at_uniform_distances():
    for use, most in (("ensemble", 10), ("plane", 70)):
        points, _ = drawn("random", 3000, use)
        moved = vectors(points) - about().vector
        far = moved.norm(dim=1) / most
        assert far.max() <= 1.0001 and abs(far.mean() - 0.5) < 4 * (1 / 12 / 3000) ** 0.5
        assert abs(far.var() - 1 / 12) < 0.01
        unit = moved / moved.norm(dim=1, keepdim=True)
        assert unit.mean(0).abs().max() < 4 / (16 * 3000) ** 0.5


def test_accepted_and_rejected_samples_are_counted():
    assert drawn("random", 7, accept=lambda p: False) == ([], {"asked": 7, "tried": 35, "accepted": 0})
    turn = itertools.cycle([False, True])
    points, counts = drawn("random", 7, accept=lambda p: next(turn))
    assert len(points) == 7 and counts == {"asked": 7, "tried": 14, "accepted": 7}
    near = [p for p in drawn("random", 50, accept=lambda p: (vectors([p])[0] - about().vector).norm() < 3)[0]]
    assert 30 < len(near) <= 50 and (vectors(near) - about().vector).norm(dim=1).max() < 3
    points, counts = drawn("random", 4, "plane", accept=lambda p: False)  # the plane shows what is worse, too
    assert len(points) == 4 and counts["tried"] == 4
    for name in ("diagonal", "pca", "pca_scaled", "dropout"):
        assert drawn(name, 3, accept=lambda p: False)[1] == {"asked": 3, "tried": 3, "accepted": 3}


def test_a_diagonal_gaussian_has_the_moments_of_the_late_snapshots():
    points, _ = drawn("diagonal", 4000)
    mean, deviation = about().late.mean(0), about().late.std(0, unbiased=False)
    v = vectors(points)
    assert ((v.mean(0) - mean).abs() < 5 * deviation / 4000**0.5).all()
    assert torch.allclose(v.std(0), deviation, rtol=0.06)
    far = (vectors(drawn("diagonal", 2000, "plane")[0]) - mean) / deviation
    assert math.isclose(far.square().mean(), 100 / 3, rel_tol=0.1)  # scales of 10 U, U uniform: E (10 U)^2 = 100 / 3


def test_principal_components_are_orthonormal_and_span_the_snapshots():
    late = about(6).late
    mean, directions = samplers.unit_components(late, 3)
    assert torch.allclose(directions @ directions.T, torch.eye(3), atol=1e-5) and torch.allclose(mean, late.mean(0))
    centred = (late - mean).double()
    span = torch.linalg.qr(centred.T).Q[:, :5]
    assert torch.allclose(directions.double() @ span @ span.T, directions.double(), atol=1e-5)
    values = torch.linalg.eigvalsh(centred @ centred.T).flip(0)
    assert torch.allclose((centred @ directions.double().T).square().sum(0), values[:3], rtol=1e-4)
    assert len(samplers.unit_components(late, 50)[1]) == 5  # six points span five dimensions
    assert len(samplers.unit_components(late[:1], 5)[1]) == 0
    v = vectors(drawn("pca", 4000, anchor=about(6), rank=3)[0])
    covariance = torch.cov(v.T)
    assert torch.allclose(covariance, directions.T @ directions, atol=0.08)  # unit variance along each


def test_a_scaled_low_rank_gaussian_has_the_covariance_of_the_snapshots():
    anchor = about(5)
    v = vectors(drawn("pca_scaled", 20_000, anchor=anchor, rank=2)[0])
    centred = (anchor.late - anchor.late.mean(0)).double()
    values, left = torch.linalg.eigh(centred.T @ centred / 5)
    top = left[:, -2:] * values[-2:].sqrt()
    assert torch.allclose(v.mean(0), anchor.late.mean(0), atol=0.06)
    assert torch.allclose(torch.cov(v.T).double(), top @ top.T, atol=0.06 * values[-1])


def test_components_of_random_samples_lean_on_the_accepted_ones():
    anchor, seen = about(), []

    def accept(point):
        seen.append(samplers.vector_of(point, ("a", "b")))
        return True

    points, counts = drawn("pca_random", 4, accept=accept, rank=5)
    assert len(seen) == 4 and counts == {"asked": 4, "tried": 4, "accepted": 4}
    leaned = torch.stack(seen)
    centred = (leaned - leaned.mean(0)).double()
    span = torch.linalg.qr(centred.T).Q[:, :3]
    moved = (vectors(points) - leaned.mean(0)).double()
    assert torch.allclose(moved @ span @ span.T, moved, atol=1e-3)
    assert ((leaned - anchor.vector).norm(dim=1) <= 10.001).all()
    assert drawn("pca_random", 4, accept=lambda p: False) == ([], {"asked": 4, "tried": 20, "accepted": 0})


def test_weight_dropout_keeps_the_mean_and_zeroes_its_share():
    start = torch.linspace(1, 2, 50_000)
    g = torch.Generator().manual_seed(0)
    for rate in (0.05, 0.3):
        out = samplers.weight_dropout(start, None, rate, g)
        kept = out != 0
        assert abs(1 - kept.double().mean() - rate) < 4 * (rate * (1 - rate) / 50_000) ** 0.5
        assert torch.allclose(out[kept], start[kept] / (1 - rate))
        assert abs(out.mean() - start.mean()) < 0.01 * start.mean() + 4 * (rate / 50_000) ** 0.5
    v = vectors(drawn("dropout", 3000)[0])
    assert abs((v == 0).double().mean() - 0.05) < 0.01  # rates of 0.1 U
    assert torch.allclose(v.mean(0), about().vector, atol=0.06)


def test_the_scales_are_those_of_the_authors():
    scales = {k: (s.ensemble, s.plane) for k, s in samplers.SAMPLERS.items()}
    assert scales["random"] == (10, 70) and scales["diagonal"] == (1, 10) and scales["pca"] == (1, 6)
    assert scales["pca_random"] == (1, None) and scales["dropout"][1] == 0.1 and samplers.TRIES == 5
    assert {k for k, s in samplers.SAMPLERS.items() if s.accepted} == {"random"}


# ---- smoke ---------------------------------------------------------------------------------------------------------

def test_the_scripts_find_what_a_smoke_training_made(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert training.main(["--smoke"]) == 0
    assert len(list((tmp_path / "runs/smoke/ensembles").glob("*/done"))) == 3
    assert similarity.main(["--smoke"]) == 0 and evaluate.main(["--smoke", "--samplers", "dropout"]) == 0
    out = capsys.readouterr().out
    assert out.count("3 networks, 360 test images") == 2
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["smoke"]
    held = yaml.safe_load(next((tmp_path / "runs/smoke/ensembles").glob("evaluate*/config.yaml")).read_text())
    assert held["members"] == ["runs/smoke/ensembles"]
    assert evaluate.main(["--smoke", "--members", "runs/ensembles/*small*", "--dry_run"]) == 0
    assert capsys.readouterr().out.count("member: runs/smoke/ensembles/digits_small_cnn") == 3
    with pytest.raises(FileProblem, match="runs/smoke/none does not exist"):
        similarity.main(["--smoke", "--members", "runs/none"])
    assert predictions.find(similarity_args("runs/smoke/ensembles"))


def similarity_args(folder):
    return cli.resolve(similarity.make_parser().settings(["--members", folder]))
