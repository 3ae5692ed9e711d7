"""Deep double descent: the trainer's words, and the joined measure against plain readings of the same networks."""

import json

import numpy as np
import pytest
import torch

from double_descent import deep, measure
from landscape import cli, data, metrics, runs
from landscape.errors import UsageError

COMMON = ["--dataset", "digits", "--net", "mlp", "--train_size", "200", "--epochs", "2", "--lr", "0.01", "--eval_every",
          "0", "--noise_rate", "0.25", "--snapshots", "0,1,2", "--threads", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of two widths and three seeds, and their folder."""
    root = tmp_path_factory.mktemp("deep")
    for width in (4, 16):
        for seed in (0, 1, 2):
            deep.main([*COMMON, "--width", str(width), "--seed", str(seed), "--runs", str(root)])
    return root


def measured(root, *more):
    before = set(root.rglob("results.json"))
    measure.main(["--load_net", str(root / "double_descent"), "--runs", str(root / "out"), *more])
    (path,) = set(root.rglob("results.json")) - before
    found = json.loads(path.read_text())
    for file in path.parent.iterdir():
        if file.is_file():
            file.unlink()
    return found


def networks(root, width):
    """(network, its data) of the runs of one width, in the order of their seeds; the plain way."""
    for source in runs.find_models(root / "double_descent", select=[f"width={width}"]):
        held = runs.load(source.path)
        yield held, data.load("digits", **data.given_by(source.config)), source


def test_the_defaults_are_dbviz_s_protocol():
    args = cli.resolve(deep.make_parser().settings([]))
    assert (args.net, args.width, args.opt, args.lr, args.scheduler) == ("resnet18k", 64, "Adam", 1e-4, "constant")
    assert (args.noise_rate, args.noise_kind, args.precision, args.weight_decay, args.val_size) == \
        (0.2, "symmetric", "fp32", 0.0, 0)


def test_dbviz_s_words_name_the_same_runs_as_ours():
    def name(*argv):
        return runs.folder("double_descent", cli.resolve(deep.translated(deep.make_parser().settings(list(argv))))).name

    assert name("--k", "10") == name("--width", "10") != name()
    assert name("--asym") == name("--noise_kind", "asymmetric") != name()
    short = name("--dd_epoch_study", "--epochs", "30")
    assert short == name("--snapshots", "1,5,10,16,21,24,29", "--epochs", "30")
    assert name("--dd_epoch_study", "--k", "20", "--epochs", "1000").startswith("CIFAR10_resnet18k_epochs=1000")
    with pytest.raises(UsageError, match="one of the two"):
        name("--dd_epoch_study", "--snapshots", "1")
    with pytest.raises(UsageError, match="not a positive"):
        name("--k", "0")


def test_errors_are_those_of_a_plain_reading(trained):
    found = measured(trained)
    assert found["kind"] == "deep" and [c["x"] for c in found["cells"]] == [4, 16]
    for row in found["models"]:
        held = runs.load(row["path"])
        config = runs.run_source(measure.Path(row["path"]), ()).config
        images = data.load("digits", **data.given_by(config))
        wrong = images.train.labels != images.train.true_labels
        assert wrong.sum() > 30
        with torch.no_grad():
            said = {n: held.network(inputs(part, held)) for n, part in
                    (("train", images.train), ("test", images.test))}
        right = said["train"].argmax(1) == images.train.labels
        assert row["train_error"] == pytest.approx(1 - right.double().mean().item())
        assert row["train_error_correct"] == pytest.approx(1 - right[~wrong].double().mean().item())
        assert row["train_error_mislabelled"] == pytest.approx(1 - right[wrong].double().mean().item())
        truth = said["train"].argmax(1) == images.train.true_labels
        assert row["train_error_mislabelled_true"] == pytest.approx(1 - truth[wrong].double().mean().item())
        loss = torch.nn.functional.cross_entropy(said["test"].double(), images.test.labels)
        assert row["test_loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert row["test_confidence"] == pytest.approx(said["test"].softmax(1).max(1).values.mean().item(), rel=1e-5)


def inputs(part, held):
    return part.batch(torch.arange(len(part)), held.preprocessing)


def test_cells_pairs_and_ensembles_against_brute_force(trained):
    found = measured(trained)
    for cell in found["cells"]:
        probs, labels = [], None
        for held, images, _ in networks(trained, cell["x"]):
            with torch.no_grad():
                probs.append(held.network(inputs(images.test, held)).softmax(1).double().numpy())
            labels = images.test.labels.numpy()
        error = [np.mean(p.argmax(1) != labels) for p in probs]
        pairs = [(0, 1), (0, 2), (1, 2)]
        of = cell["measures"]
        assert of["test_error"]["value"] == pytest.approx(np.mean(error)) and of["test_error"]["n"] == 3
        assert of["test_error"]["low"] <= np.mean(error) <= of["test_error"]["high"]
        assert of["disagreement"]["value"] == pytest.approx(
            np.mean([np.mean(probs[a].argmax(1) != probs[b].argmax(1)) for a, b in pairs]))
        two = np.mean([np.mean((probs[a] + probs[b]).argmax(1) != labels) for a, b in pairs])
        assert of["ensemble_error_of_2"]["value"] == pytest.approx(two)
        assert of["ensemble_gain_of_2"]["value"] == pytest.approx(np.mean(error) - two)
        assert of["ensemble_error"]["value"] == pytest.approx(np.mean(sum(probs).argmax(1) != labels))


def test_epochs_are_the_snapshots(trained):
    found = measured(trained, "--along", "epoch", "--select", "width=16")
    assert [c["x"] for c in found["cells"]] == [0, 1, 2] and all(c["models"] == 3 for c in found["cells"])
    final = measured(trained, "--select", "width=16")["cells"][0]["measures"]["test_error"]
    assert found["cells"][2]["measures"]["test_error"] == final
    assert found["cells"][0]["measures"]["test_error"]["value"] > 0.7  # no training yet


def test_class_maps_and_margins_in_the_run_folders_are_taken_along(trained, tmp_path):
    import shutil

    import save_preds
    from regions import margins

    root = tmp_path / "copy"
    shutil.copytree(trained / "double_descent", root / "double_descent")
    own = ["--load_net", str(root / "double_descent"), "--runs", str(root)]
    save_preds.main([*own, "--planes", "4", "--resolution", "10"])
    margins.main([*own, "--points", "5", "--directions", "4", "--base", "mislabelled", "--split", "train"])
    found = measured(root)
    cell = found["cells"][0]["measures"]
    maps = [np.load(next(s.path.glob("arrays/class_maps-*.npz")))["labels"] for *_, s in networks(root, 4)]
    agree = np.mean([np.mean(maps[a] == maps[b]) for a, b in ((0, 1), (0, 2), (1, 2))])
    assert cell["reproducibility_distinct_test"]["value"] == pytest.approx(agree)
    count = np.mean([[metrics.fragments(m.reshape(10, 10)) for m in held] for held in maps])
    assert cell["fragments_distinct_test"]["value"] == pytest.approx(count)
    assert cell["margin_mislabelled_train"]["n"] == 3


def test_settings_stand_in_a_name_only_where_there_are_two():
    one, other = ("margin", "all_train", "a"), ("margin", "all_train", "b")
    assert measure.named({one: {0: 1.0, 2: 3.0}}, 3) == {"margin_all_train": [1.0, None, 3.0]}
    assert measure.named({one: {0: 1.0}, other: {0: 2.0, 1: 3.0}}, 2) == \
        {"margin_all_train_a": [1.0, None], "margin_all_train_b": [2.0, 3.0]}


def test_class_maps_of_other_planes_are_not_compared(trained, tmp_path):
    import shutil

    import save_preds

    shutil.copytree(trained / "double_descent", tmp_path / "double_descent")
    own = ["--load_net", str(tmp_path / "double_descent"), "--runs", str(tmp_path), "--planes", "4"]
    for seed, plane_seed in ((0, 1), (1, 1), (2, 2)):
        save_preds.main([*own, "--resolution", "10", "--plane_seed", str(plane_seed), "--select", f"init_seed={seed}"])
    cell = measured(tmp_path)["cells"][0]
    held = {k: v for k, v in cell["pairs"].items() if k.startswith("reproducibility")}
    assert [[pair[:2] for pair in pairs] for pairs in held.values()] == [[[0, 1]]]


def test_networks_that_share_their_start_in_part_are_refused(trained, tmp_path):
    import shutil

    shutil.copytree(trained / "double_descent", tmp_path / "double_descent")
    for seed in (7, 8):
        deep.main([*COMMON, "--width", "4", "--init_seed", "0", "--order_seed", str(seed), "--runs", str(tmp_path)])
    with pytest.raises(UsageError, match="share the initial weights of init_seed 0: .* --select order_seed="):
        measured(tmp_path)
    assert len(measured(tmp_path, "--select", "order_seed=0|1|2")["models"]) == 6
    assert measured(tmp_path, "--select", "init_seed=0")["cells"][0]["models"] == 3


def test_intervals_end_where_a_measure_does():
    assert measure.interval("test_error", (0.5, -0.2, 1.3), 2) == {"value": 0.5, "low": 0, "high": 1, "n": 2}
    assert measure.interval("test_loss", (0.5, -0.2, 1.3), 2)["high"] == 1.3
    assert measure.interval("ensemble_gain_of_2", (0.0, -0.2, None), 2)["low"] == -0.2


def test_what_one_seed_owns_is_told_apart():
    def member(init, order):
        return measure.Member(runs.Source(None, "", "", {"init_seed": init, "order_seed": order}), None, 0, None, {})

    assert measure.relation(member(0, 0), member(1, 1)) == "seeds"
    assert measure.relation(member(0, 0), member(1, 0)) == "init"
    assert measure.relation(member(0, 0), member(0, 1)) == "order"


def test_the_threshold_is_where_the_training_set_is_fitted_first():
    errors = {("a", 1): 0.3, ("a", 2): 0.04, ("a", 4): 0.0, ("b", 1): 0.2}
    cells = [{"group": g, "x": x, "measures": {"train_error": {"value": v}}} for (g, x), v in errors.items()]
    assert measure.thresholds(cells) == {"a": 2, "b": None}


def test_networks_of_one_curve_differ_in_their_seeds_alone(trained, tmp_path, capsys):
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(trained / "double_descent", root / "double_descent")
    deep.main([*COMMON, "--width", "4", "--seed", "3", "--runs", str(root), "--label_smoothing", "0.1"])
    own = ["--load_net", str(root / "double_descent"), "--runs", str(root)]
    with pytest.raises(UsageError, match="label_smoothing .*--select label_smoothing"):
        measure.main(own)
    with pytest.raises(UsageError, match="--along withd.*did you mean width"):
        measure.main([*own, "--along", "withd"])
