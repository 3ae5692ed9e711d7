"""Averages over a star domain: against plain networks one by one, closed cases, and what is refused."""

import copy
import json

import numpy as np
import pytest
import torch

import models
from landscape import data as datasets
from landscape import metrics, runs, seeding
from landscape.errors import FileProblem, UsageError
from star import bma, plot

torch.set_num_threads(1)
FOREIGN = ["--dataset", "digits", "--net", "resnet20", "--width", "4", "--threads", "1", "--bn_images", "256"]


def network(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build("resnet20", 10, in_channels=1, image_size=8, width=4).eval()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A star and three anchors with random weights, and three copies of the star."""
    root = tmp_path_factory.mktemp("bma")
    for name, seed in (("star", 0), ("a1", 1), ("a2", 2), ("a3", 3), ("s1", 0), ("s2", 0), ("s3", 0)):
        (root / name[0]).mkdir(exist_ok=True)
        torch.save(network(seed).state_dict(), root / name[0] / f"{name}.pt")
    (root / "s/star.pt").rename(root / "star.pt")
    return root


def average(root, out, *argv, anchors="a"):
    code = bma.main(["--star", str(root / "star.pt"), "--anchors", str(root / anchors), "--runs", str(out), *FOREIGN,
                     *argv])
    assert code == 0
    (file,) = out.rglob("results.json")
    return json.loads(file.read_text(), parse_constant=pytest.fail), file.parent


def value(found, predictor, measure):
    (row,) = [r for r in found["rows"] if (r["predictor"], r["measure"]) == (predictor, measure)]
    return row["value"]


def test_among_identical_networks_everything_is_the_single_network(root, tmp_path):
    found, _ = average(root, tmp_path, "--draws", "2", "--ood", "fake", anchors="s")
    measures = {r["measure"] for r in found["rows"]}
    auroc = {f"{what}_{sign}" for what in ("wrong", "fake") for sign in bma.SIGNS}
    assert measures == {*bma.QUALITY, *bma.TEMPERED, *auroc}
    for measure in measures:
        assert value(found, "difference", measure) == pytest.approx(0, abs=1e-4)
        for predictor in ("bma", "ensemble", "mean", "anchor"):
            assert value(found, predictor, measure) == pytest.approx(value(found, "star", measure), abs=1e-4)


@pytest.mark.parametrize("align", ["none", "weights"])
def test_at_the_anchors_it_is_the_deep_ensemble_and_at_the_star_the_star(root, tmp_path, align):
    found, _ = average(root, tmp_path / "1", "--t", "1", "--draws", "2", "--align", align)
    for measure in bma.QUALITY:
        assert value(found, "bma", measure) == pytest.approx(value(found, "ensemble", measure), abs=1e-4)
    assert abs(value(found, "ensemble", "nll") - value(found, "star", "nll")) > 1e-3
    found, _ = average(root, tmp_path / "0", "--t", "0", "--draws", "1", "--align", align)
    for measure in bma.QUALITY:
        assert value(found, "bma", measure) == pytest.approx(value(found, "star", measure), abs=1e-4)


def test_members_equal_plain_networks_one_by_one(root, tmp_path):
    """The twin mixes state dicts, lets a copy see the training images in train mode with a cumulative average, and
    averages softmax; on one batch of all images the two estimates of BatchNorm are one."""
    found, folder = average(root, tmp_path, "--align", "none", "--members", "2", "--draws", "2")
    data = datasets.load("digits", val_size=0)
    seen = datasets.normalization("dataset", data.entry)
    rows = torch.randperm(len(data.train), generator=seeding.stream(
        0, "batchnorm"))[:256].sort().values
    x, test = data.train.batch(rows, seen), data.test.batch(torch.arange(len(data.test)), seen)
    for d in range(2):
        held = runs.read_arrays(folder / "arrays" / f"draw-{d}.npz")
        said = []
        for k, t in zip(held["chosen"], held["ts"]):
            a, b = network(0).state_dict(), network(1 + int(k)).state_dict()
            twin = copy.deepcopy(network(0))
            twin.load_state_dict({n: (1 - t) * a[n] + t * b[n] if a[n].is_floating_point() else a[n] for n in a})
            for module in twin.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.reset_running_stats()
                    module.momentum = None
            with torch.no_grad():
                twin.train()(x)
                said.append(twin.eval()(test).softmax(1).numpy())
        assert len(said) == 2 and np.allclose(held["probs_0"], np.mean(said, 0), atol=1e-4)
        labels = data.test.labels.numpy()
        drawn = [runs.read_arrays(folder / "arrays" / f"draw-{n}.npz")["probs_0"] for n in range(2)]
        assert value(found, "bma", "accuracy") == np.mean([metrics.accuracy(p, labels) for p in drawn])
        assert value(found, "bma", "nll") == pytest.approx(np.mean([metrics.nll(np.log(p), labels) for p in drawn]))


def test_every_anchor_serves_as_often():
    args = bma.make_parser().settings(["--members", "8", "--draws", "5"])
    for chosen, ts in bma.draws(args, 3):
        assert sorted(np.bincount(chosen, minlength=3)) == [2, 3, 3] and ((ts >= 0) & (ts < 1)).all()
    args.members, args.draws = 1, 400
    first = np.array([(chosen[0], ts[0]) for chosen, ts in bma.draws(args, 4)])
    assert np.bincount(first[:, 0].astype(int)).min() > 70 and abs(first[:, 1].mean() - 0.5) < 0.05
    assert abs(np.corrcoef(first.T)[0, 1]) < 0.15


def test_the_auroc_counts_pairs():
    score = np.array([0.1, 0.4, 0.4, 0.8, 0.7])
    positive = np.array([0, 0, 1, 1, 0])
    pairs = [(p > n) + 0.5 * (p == n) for p in score[positive == 1] for n in score[positive == 0]]
    assert bma.auroc(positive, score) == pytest.approx(np.mean(pairs))
    assert bma.auroc(np.zeros(5), score) is None
    probs = np.eye(3)[None, [0, 1, 2]] * 0.9 + 0.1 / 3  # never wrong
    found = bma.scores([probs, probs[:, :2]], np.arange(3), ["other"])
    assert found["accuracy"] == [1] and found["wrong_entropy"] == [None] and found["other_confidence"] == [0.5]
    rows, each = bma.table([np.repeat(probs, 4, 0)], [probs], [{0, 1}], np.arange(3), [], 0.95)
    undefined = [r for r in rows if r["measure"] == "wrong_confidence"]
    assert len(undefined) == 6 and all(r["value"] is None for r in undefined)
    assert [e["wrong_confidence"] for e in each] == [None, None]


def test_the_program_goes_on_where_it_was_and_draws(root, tmp_path, capsys):
    argv = ["--draws", "2", "--members", "2", "--ood", "fake"]
    bma.main(["--star", str(root / "star.pt"), "--anchors", str(root / "a"), "--runs", str(tmp_path), *FOREIGN, *argv,
              "--dry_run"])
    assert "2 averages of 2 members" in capsys.readouterr().out and not list(tmp_path.iterdir())
    found, folder = average(root, tmp_path, *argv)
    assert found["foreign"]["fake"] == found["images"]["test"] or found["foreign"]["fake"] > 0
    assert len(found["anchors"]) == 3 and "star-domain average" in capsys.readouterr().out
    for name in ("bma.csv", "figures/bma.png", "done"):
        assert (folder / name).exists()
    before = (folder / "results.json").read_bytes()
    (folder / "done").unlink()
    (folder / "arrays/draw-1.npz").unlink()
    when = (folder / "arrays/draw-0.npz").stat().st_mtime_ns
    average(root, tmp_path, *argv)
    assert (folder / "results.json").read_bytes() == before
    assert (folder / "arrays/draw-0.npz").stat().st_mtime_ns == when
    assert plot.main([str(tmp_path), "--plot_path", str(tmp_path / "f"), "--formats", "pdf"]) == 0
    assert len(list((tmp_path / "f").glob("*/bma.pdf"))) == 1


def test_what_it_refuses(root, tmp_path, capsys):
    def refused(error, match, *argv):
        with pytest.raises(error, match=match):
            bma.main([*argv, "--runs", str(tmp_path), *FOREIGN])
        assert not list(tmp_path.rglob("done"))

    star = ["--star", str(root / "star.pt")]
    refused(UsageError, "a star and its anchors are needed", *star)
    refused(UsageError, "holds 3 networks", "--star", str(root / "a"), "--anchors", str(root / "s"))
    refused(UsageError, "is the star and among --anchors", *star, "--anchors", str(root))
    refused(UsageError, "'half' is not a number", *star, "--anchors", str(root / "a"), "--t", "half")
    refused(UsageError, "at most 1", *star, "--anchors", str(root / "a"), "--t", "1.5")
    refused(UsageError, "--ood digits: that is the set", *star, "--anchors", str(root / "a"), "--ood", "digits")
    refused(FileProblem, "nowhere does not exist", *star, "--anchors", "nowhere")
