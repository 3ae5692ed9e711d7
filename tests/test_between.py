"""Decision regions along a path of networks: points against plain mixtures, closed cases, and what is refused."""

import json

import numpy as np
import pytest
import torch

import main
from landscape import between as paths
from landscape import data as datasets
from landscape import evaluate, permute, runs, weights
from landscape.errors import ContentError, UsageError
from models.axes import axes_of
from regions import between, plot

torch.set_num_threads(1)
TRAIN = ["--dataset", "digits", "--train_size", "300", "--epochs", "2", "--lr", "0.05", "--imgs", "none",
         "--threads", "1"]
PLANE = ["--imgs", "5,42,17", "--resolution", "12", "--threads", "1"]
PLANES = ["--planes", "3", "--resolution", "9", "--threads", "1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two networks with BatchNorm, two MLPs and one of another width; and a permuted copy of the first of each kind."""
    root = tmp_path_factory.mktemp("between")
    for net, width, seed in (("resnet20", 4, 0), ("resnet20", 4, 1), ("mlp", 12, 0), ("mlp", 12, 1), ("mlp", 16, 0)):
        main.main([*TRAIN, "--net", net, "--width", str(width), "--seed", str(seed), "--runs", str(root)])
    for name in ("resnet20", "mlp"):
        network = runs.load(run_of(root, name, 0)).network
        axes = axes_of(network)
        (root / name).mkdir()
        torch.save(permute.apply(weights.of(network), axes, permute.random(axes, 1)), root / name / "copy.pt")
    return root


def run_of(root, net, seed, width=None):
    (found,) = [s for s in runs.find_models(root / "regions", select=[f"net={net}", f"init_seed={seed}"])
                if s.config["width"] == (width or {"resnet20": 4, "mlp": 12}[net])]
    return str(found.path)


def loaded(root, net, at, align="none", names=None):
    args = main.make_parser().settings(["--align", align, "--bn_images", "128", "--data_root", "", "--net", net,
                                        "--width", {"resnet20": "4", "mlp": "12"}[net]])
    chosen = [runs.find_models(n)[0] for n in names or (run_of(root, net, 0), run_of(root, net, 1))]
    return paths.load(args, chosen, at, "digits")



@pytest.mark.parametrize("net", ["resnet20", "mlp"])
def test_points_are_mixtures_with_statistics_of_their_own(root, net):
    path = loaded(root, net, [0.0, 0.3, 1.0])
    one, two = (weights.of(t.network) for t in path.networks)
    data = datasets.load("digits", val_size=0)
    for t in (0.0, 0.3, 1.0):
        twin = runs.load(run_of(root, net, 0)).network
        twin.load_state_dict({k: (1 - t) * one[k] + t * two[k] if one[k].is_floating_point() else one[k] for k in one})
        norms = [m for m in twin.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for module in norms:
            module.reset_running_stats()
            module.momentum = None
        x = data.full.batch(path.rows, path.networks[0].preprocessing)
        with torch.no_grad():
            if norms:
                twin.train()(x)
            y = twin.eval()(x)
            assert len(x) == 128 and torch.allclose(path.at(t).network(x), y, atol=1e-4)


@pytest.mark.parametrize("net", ["resnet20", "mlp"])
def test_between_a_network_and_its_permuted_copy_nothing_changes_once_they_are_aligned(root, net):
    names = run_of(root, net, 0), str(root / net / "copy.pt")
    seen = loaded(root, net, [0.0]).networks[0].preprocessing
    x = datasets.load("digits", val_size=0).test.batch(torch.arange(50), seen)
    for align, same in (("none", False), ("weights", True)):
        path = loaded(root, net, [0.5], align, names)
        with torch.no_grad():
            ends, middle = path.at(0.0).network(x), path.at(0.5).network(x)
        assert torch.allclose(ends, middle, atol=1e-3) == same


def test_main_draws_them_and_the_ends_are_the_networks(root, tmp_path, capsys):
    one, two = run_of(root, "mlp", 0), run_of(root, "mlp", 1)
    argv = ["--between", f"{one},{two}", "--at", "0,0.5,1", *PLANE, "--runs", str(tmp_path / "a")]
    assert main.main([*argv, "--dry_run"]) == 0
    assert "draw 0: seed 0\ndraw 0.5\ndraw 1: seed 1" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert main.main(argv) == 0
    (folder,) = (tmp_path / "a/regions").iterdir()
    assert (folder / "figures/regions_5-42-17.png").exists()
    files = list((folder / "arrays").iterdir())
    held = [runs.read_arrays(f) for f in files]
    assert len(held) == 3 and all(json.loads(str(h["settings"]))["between"] for h in held)
    for path in (one, two):  # an MLP has no BatchNorm: the ends are what --load_net draws
        assert main.main(["--load_net", path, *PLANE, "--runs", str(tmp_path / "b")]) == 0
        (own,) = [runs.read_arrays(f)["confidence"] for f in runs.Path(path).glob("arrays/plane-*.npz")]
        assert sum(np.array_equal(own, h["confidence"]) for h in held) == 1
    when = {f: f.stat().st_mtime_ns for f in files}
    assert main.main([*argv[:3], "0,0.25,1", *argv[4:]]) == 0  # only what is new is computed
    assert all(f.stat().st_mtime_ns == t for f, t in when.items())
    assert len(list((folder / "arrays").iterdir())) == 4


def test_agreement_is_that_of_the_saved_maps(root, tmp_path, capsys):
    three = [run_of(root, "resnet20", 0), run_of(root, "resnet20", 1), run_of(root, "resnet20", 0)]
    argv = ["--between", ",".join(three[:2]), "--at", "0.5", *PLANES, "--bn_images", "64", "--runs", str(tmp_path)]
    assert between.main(argv) == 0
    (file,) = tmp_path.rglob("results.json")
    found, folder = json.loads(file.read_text(), parse_constant=pytest.fail), file.parent
    assert [r["position"] for r in found["rows"]] == [0, 0.5, 1] and "0: seed 0" in capsys.readouterr().out
    held = [runs.read_arrays(folder / "arrays" / f"class_maps-{k}.npz") for k in range(3)]
    for row, one in zip(found["rows"], held):
        assert one["labels"].shape == (3, 81)
        assert row["agreement_first"] == pytest.approx((one["labels"] == held[0]["labels"]).mean())
        assert row["agreement_last"] == pytest.approx((one["labels"] == held[2]["labels"]).mean())
        assert row["agreement_first_low"] <= row["agreement_first"] <= row["agreement_first_high"]
    assert found["rows"][0]["agreement_first"] == 1 == found["rows"][2]["mean_iou_last"]
    data = datasets.load("digits", val_size=0)
    path = loaded(root, "resnet20", [0.5])
    path.rows = data.train.some_rows(64)
    said = evaluate.score(path.at(0.5).network, data.test, path.networks[0].preprocessing)
    assert found["rows"][1]["loss"] == pytest.approx(said["loss"], abs=1e-4)
    before = file.read_bytes()
    (folder / "done").unlink()
    (folder / "arrays/class_maps-1.npz").unlink()
    assert between.main(argv) == 0 and file.read_bytes() == before
    assert plot.main([str(tmp_path), "--plot_path", str(tmp_path / "f")]) == 0
    assert len(list((tmp_path / "f").glob("between_*.png"))) == 1


def test_other_anchors_are_another_folder(root, tmp_path, capsys):
    one, two = run_of(root, "mlp", 0), run_of(root, "mlp", 1)
    held = {"dataset": "digits", "split": "test", "anchors": "distinct", "plane_seed": 1, "as_published": False,
            "data": "", "triplets": [[1, 2, 3], [4, 5, 6]]}
    changes = ({}, {"triplets": [[1, 2, 3], [7, 8, 9]]}, {"anchors": "uniform"}, {"plane_seed": 2}, {"split": "train"})
    given = [[]]
    for k, change in enumerate(changes):
        (tmp_path / f"{k}.json").write_text(json.dumps({**held, **change}))
        given.append(["--triplets", str(tmp_path / f"{k}.json")])
    given += [["--anchors", "foreign", "--foreign_set", name] for name in ("MNIST", "FashionMNIST")]
    given += [["--anchors", "pgd", *more] for more in ([], ["--attack_steps", "3"], ["--attack_net", two])]
    for more in given:
        assert between.main(["--between", f"{one},{two}", *PLANES, *more, "--runs", str(tmp_path), "--dry_run"]) == 0
    named = [line for line in capsys.readouterr().out.splitlines() if line.startswith("computed: ")]
    assert len(set(named)) == len(given) == 11


def test_what_is_refused_and_that_given_networks_need_no_line(root, tmp_path):
    one, two, wide = run_of(root, "mlp", 0), run_of(root, "mlp", 1), run_of(root, "mlp", 0, 16)
    for argv, error, match in (
            ((f"{one},{wide}",), ContentError, "differ in width .12, 16.: no line joins them"),
            ((f"{one},{wide}", "--at", "0,1", "--align", "weights"), ContentError, "no line joins them"),
            ((one,), UsageError, "needs two networks"), ((f"{one},{one}",), UsageError, "twice"),
            ((f"{root / 'regions'},{one}",), UsageError, "holds 5 networks"),
            ((f"{one},{two}", "--at", "0,1.5"), UsageError, "--at 1.5: the last of 2 networks stands at 1"),
            ((f"{one},{two}", "--load_net", one), UsageError, "--load_net and --between: give one"),
            ((f"{one},{two}", "--point", "centre"), UsageError, "--point and --between: give one")):
        with pytest.raises(error, match=match):
            main.main(["--between", *argv, *PLANE, "--runs", str(tmp_path)])
        assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="--between RUN,RUN names"):
        between.main(["--runs", str(tmp_path)])
    assert main.main(["--between", f"{one},{wide}", "--at", "0,1", *PLANE, "--runs", str(tmp_path)]) == 0
    assert len(list(tmp_path.rglob("plane-*.npz"))) == 2


def test_along_a_setting_the_networks_of_a_folder_are_the_path(root, tmp_path, capsys):
    """Two widths: the widest comes last, and each network is what --load_net has of it."""
    argv = ["--between", str(root / "regions"), "--along", "width", "--select", "net=mlp", "init_seed=0"]
    assert between.main([*argv, *PLANES, "--runs", str(tmp_path)]) == 0
    (file,) = tmp_path.rglob("results.json")
    found = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert [(r["position"], r["along"]) for r in found["rows"]] == [(0, 12), (1, 16)]
    assert found["networks"] == [run_of(root, "mlp", 0), run_of(root, "mlp", 0, 16)]
    one, two = (runs.read_arrays(file.parent / "arrays" / f"class_maps-{k}.npz")["labels"] for k in range(2))
    same = pytest.approx((one == two).mean())
    assert found["rows"][1]["agreement_first"] == same and found["rows"][0]["agreement_last"] == same
    assert "width 12" in capsys.readouterr().out
    assert main.main([*argv, *PLANE, "--runs", str(tmp_path / "drawn")]) == 0
    assert len(list((tmp_path / "drawn").rglob("plane-*.npz"))) == 2 and list((tmp_path / "drawn").rglob("*.png"))
    for more, match in ((["--select", "net=mlp"], "2 networks have the width 12; --select"),
                        (["--along", "net"], "mlp is none"), (["--at", "0.5"], "whole numbers"),
                        (["--along", "nonsense"], "None is none"),
                        (["--between", f"{root},{root / 'regions'}"], "orders the networks of one folder"),
                        (["--select", "net=mlp", "width=16"], "--between needs two networks")):
        with pytest.raises(UsageError, match=match):
            between.main([*argv, *more, *PLANES, "--runs", str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()
