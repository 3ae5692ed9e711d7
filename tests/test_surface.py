"""Surfaces of the loss: directions, planes and projections by their properties, values by closed form, resuming."""

import csv
import os
import signal
import sys

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from ensembles import train
from landscape import cli, evaluate, metrics, predictions, runs, surface, weights
from landscape.errors import FileProblem, Interrupted, UsageError

NO_STOP = type("", (), {"requested": None})
LINEAR = """
from torch import nn

def net(num_classes, in_channels=1, image_size=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs on digits with a snapshot of every epoch: three small_cnn, three resnet20, a linear network."""
    root = tmp_path_factory.mktemp("runs")
    (root / "linearnet.py").write_text(LINEAR)
    sys.path.insert(0, str(root))
    for net, name, members, more in (("small_cnn", "small_cnn", 3, []), ("resnet20", "resnet20", 3, ["--width", "4"]),
                                     ("linearnet:net", "linear", 1, ["--precision", "fp32"])):
        train.main(["--net", net, "--dataset", "digits", "--members", str(members), "--epochs", "3", *more,
                    "--train_size", "300", "--runs", str(root / name), "--device", "cpu", "--stack", "never"])
    yield root
    sys.path.remove(str(root))


def settings(folder, *argv):
    return cli.resolve(surface.make_parser().settings(
        [str(folder), "--runs", str(folder), "--device", "cpu", "--images", "60", "--bn_images", "100",
         "--resolution", "3", *argv]))


def measured(folder, *argv):
    args = settings(folder, *argv)
    return surface.measure(args, surface.checked(args), NO_STOP)


def network_of(folder, number=0):
    return runs.load(predictions.find(settings(folder))[number].source.path)


# ---- directions ----------------------------------------------------------------------------------------------------

PARAMETERS = {"conv": torch.randn(5, 3, 2, 2), "bias": torch.randn(5), "fc": torch.randn(4, 7) * 9}


def direction(normalise, ignore="none", seed=0):
    return surface.random_direction(PARAMETERS, torch.Generator().manual_seed(seed), normalise, ignore)


def test_random_directions_have_the_norms_of_filters_or_layers():
    d = direction("filter")
    for k, w in PARAMETERS.items():
        rows = (v.reshape(len(v), -1).norm(dim=1) for v in (d[k], w))
        assert torch.allclose(*rows, rtol=1e-5), k
    layer = direction("layer")
    assert all(torch.allclose(layer[k].norm(), w.norm(), rtol=1e-5) for k, w in PARAMETERS.items())
    plain = direction("none")
    for k, z in plain.items():  # the same draws, scaled
        assert torch.allclose(torch.nn.functional.cosine_similarity(z.flatten(), layer[k].flatten(), dim=0),
                              torch.tensor(1.0), atol=1e-5)
        assert torch.equal((z > 0), (d[k] > 0))
    left = direction("filter", "biasbn")
    assert not left["bias"].any() and torch.equal(left["fc"], d["fc"])
    assert not torch.equal(direction("filter", seed=1)["fc"], d["fc"])
    many = surface.random_direction({"w": torch.ones(400, 50)}, torch.Generator().manual_seed(0), "none", "none")["w"]
    assert abs(many.mean()) < 0.03 and abs(many.std() - 1) < 0.02


# ---- values --------------------------------------------------------------------------------------------------------

def test_a_linear_network_has_its_surface_in_closed_form(trained):
    """Logits are affine in the coordinates, so cross-entropy and accuracy follow from three matrix products."""
    args = settings(trained / "linear", "--ignore", "none", "--splits", "train,test", "--span", "0.7")
    networks = surface.checked(args)
    scene = surface.Scene(args, networks, NO_STOP)
    scene.progress = runs.Progress(9, "points")
    of = network_of(trained / "linear")
    cut = surface.random_cut("linear", of.network, args)
    found = scene.measure(cut, networks[0], of)
    assert cut.x.tolist() == [-0.7, 0, 0.7] and len(cut.coords) == 9
    for s, split in enumerate(("train", "test")):
        images = scene.images(split, of.preprocessing)
        assert len(images) == 60
        x = images.batch(torch.arange(60), of.preprocessing).flatten(1).double().numpy()
        parts = [x @ w["1.weight"].double().numpy().T + w["1.bias"].double().numpy()
                 for w in (cut.origin, *cut.directions)]
        for p, (a, b) in enumerate(cut.coords):
            logits = parts[0] + a * parts[1] + b * parts[2]
            picked = logits[np.arange(60), images.labels.numpy()]
            loss = (np.log(np.exp(logits).sum(1)) - picked).mean()
            assert np.isclose(found["loss"][p, s], loss, rtol=1e-4)
            assert np.isclose(found["accuracy"][p, s], (logits.argmax(1) == images.labels.numpy()).mean(), atol=0.017)
    # Along any line through the surface the loss of a linear network is convex.
    grid = found["loss"][:, 0].reshape(3, 3)
    assert all(line[0] + line[2] >= 2 * line[1] - 1e-6 for line in (*grid, *grid.T, np.diag(grid)))


@pytest.mark.parametrize("net", ["small_cnn", "resnet20"])
def test_three_networks_lie_at_their_coordinates(trained, net):
    args = settings(trained / net, "--plane", "three", "--bn", "stored", "--splits", "test")
    networks = surface.checked(args)
    loaded = [runs.load(n.source.path) for n in networks]
    cut = surface.three_cut([n.name for n in networks], [t.network for t in loaded], args)
    assert cut.marks[0][1:] == (0, 0) and cut.marks[1][2] == 0
    assert [m[0] for m in cut.marks] == ["seed 1", "seed 2", "seed 3"]
    parameters = [k for k, _ in loaded[0].network.named_parameters()]
    for (_, a, b), one in zip(cut.marks, loaded):
        point, own = cut.point(a, b), one.network.state_dict()
        assert all(torch.allclose(point[k], v, atol=1e-5, rtol=1e-4) for k, v in own.items() if v.is_floating_point())
    sides = [weights.distance(*({k: loaded[i].network.state_dict()[k] for k in parameters} for i in pair))
             for pair in ((0, 1), (0, 2), (1, 2))]
    assert np.allclose(cut.facts["sides"], sides, rtol=1e-5)
    assert cut.x[0] < min(m[1] for m in cut.marks) and cut.x[-1] > max(m[1] for m in cut.marks)
    far = cut.point(50 * float(cut.x[-1]), -50 * float(cut.y[-1]))
    assert all(v.min() >= 0 for k, v in far.items() if k.endswith("running_var"))


@pytest.mark.parametrize("bn", ["stored", "reestimate"])
def test_the_middle_is_the_network_itself(trained, bn):
    found, arrays = measured(trained / "resnet20", "--select", "init_seed=1", "--bn", bn, "--splits", "test")
    args = settings(trained / "resnet20", "--bn", bn, "--splits", "test")
    networks = surface.checked(args)
    scene, one = surface.Scene(args, networks, NO_STOP), network_of(trained / "resnet20")
    if bn == "reestimate":
        evaluate.reestimate_bn(one.network, scene.statistics(networks[0], one.preprocessing), one.preprocessing)
    images = scene.images("test", one.preprocessing)
    said = evaluate.logits(one.network, images, one.preprocessing).numpy()
    loss = metrics.nll(said, images.labels.numpy())
    assert np.isclose(arrays["0_test_loss"][1, 1], loss, rtol=1e-4)
    assert found["surfaces"][0]["values"]["test"]["loss"] == arrays["0_test_loss"][1, 1]
    assert arrays["0_test_loss"].max() > loss and len(found["surfaces"]) == 1


def test_a_loss_that_is_not_finite_is_a_gap(trained, tmp_path, capsys):
    argv = [str(trained / "small_cnn"), "--runs", str(tmp_path), "--device", "cpu", "--images", "20",
            "--resolution", "3", "--span", "1e12", "--select", "init_seed=1", "--splits", "test"]
    assert surface.main(argv) == 0
    made = next(tmp_path.glob("surfaces/*/done")).parent
    values = runs.read_json(made / "results.json")["surfaces"][0]["values"]["test"]
    assert values["not_finite"] > 0.5 and values["loss"] is not None
    assert (made / "figures/surface.png").exists() and "nan" in (made / "surface.csv").read_text()


# ---- trajectories --------------------------------------------------------------------------------------------------

def planted(count=9, size=60, noise=0.0, seed=0):
    """Vectors (T, D) that end at 0, in a plane up to noise."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(size, 2)))[0].T
    t = np.linspace(1, 0, count)
    return np.stack([5 * t, 2 * np.sin(3 * t)], axis=1) @ basis + noise * rng.normal(size=(count, size)) * t[:, None]


def test_components_are_those_of_sklearn_and_a_planted_plane_is_found():
    vectors = planted()
    loads, places, explained, within = surface.principal(vectors @ vectors.T)
    assert np.isclose(explained.sum(), 1) and np.isclose(within, 1) and explained[0] > explained[1] > 0
    components = loads @ vectors
    assert np.allclose(components @ components.T, np.eye(2), atol=1e-8)
    assert np.allclose(places @ components, vectors, atol=1e-8)  # it lies in the plane, and is where it says
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    assert np.allclose(apart, np.linalg.norm(vectors[:, None] - vectors, axis=2), atol=1e-8)
    assert (places[0] >= 0).all() and np.allclose(places[-1], 0, atol=1e-8)

    vectors = planted(noise=0.3)
    loads, places, explained, within = surface.principal(vectors @ vectors.T)
    twin = PCA(2).fit(vectors)
    assert np.allclose(explained, twin.explained_variance_ratio_)
    assert np.allclose(np.abs((loads @ vectors) @ twin.components_.T), np.eye(2), atol=1e-6)
    assert np.allclose(places, vectors @ (loads @ vectors).T) and 0.5 < within < 1
    for line in (np.outer(np.arange(5), np.ones(4)), np.zeros((5, 4)), planted(2)):
        with pytest.raises(UsageError, match="span no plane"):
            surface.principal(line @ line.T)


def test_a_trajectory_lies_where_its_snapshots_project_to(trained):
    args = settings(trained / "small_cnn", "--plane", "trajectory", "--select", "init_seed=2")
    (network,) = surface.checked(args)
    along = {e: runs.load(n.path).network for e, n in predictions.snapshots(network).items()}
    one = runs.load(network.source.path)
    cut = surface.trajectory_cut("seed 2", one.network, along, args)
    assert cut.facts["epochs"] == [0, 1, 2, 3]
    own = weights.of(one.network)
    for place, snapshot in zip(cut.facts["places"], map(weights.of, along.values())):
        apart = {k: snapshot[k] - own[k] for k in own}
        found = [sum(float((apart[k].double() * d[k].double()).sum()) for k in own) for d in cut.directions]
        assert np.allclose(found, place, atol=1e-4)
    assert np.allclose(cut.facts["places"][-1], 0, atol=1e-6)  # the last snapshot is the network
    for d in cut.directions:
        assert np.isclose(surface.norm(d), 1, rtol=1e-4)
    first = cut.point(*cut.facts["places"][0])
    assert weights.distance(first, weights.of(along[0])) < weights.distance(own, weights.of(along[0]))


# ---- resuming ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["SIGTERM", "killed"])
def test_resumed_equals_uninterrupted(trained, tmp_path, monkeypatch, how):
    monkeypatch.setattr(surface, "MOST", 4)
    monkeypatch.setattr(surface, "figures", lambda *_: {})
    argv = ["--device", "cpu", "--images", "30", "--resolution", "4", "--select", "init_seed=1", "--bn_images", "64"]
    source = str(trained / "small_cnn")
    whole = tmp_path / "whole"
    assert surface.main([source, "--runs", str(whole), *argv]) == 0
    plainly, calls = evaluate.losses_at, []
    for file in trained.glob("small_cnn/ensembles/*/arrays/surface-*.npz"):
        file.unlink()

    def stopped(network, points, *rest):
        calls.append(len(points))
        if len(calls) == 4:  # two splits: in the second block
            if how == "killed":
                raise MemoryError("the machine went down")
            os.kill(os.getpid(), signal.SIGTERM)
        return plainly(network, points, *rest)

    monkeypatch.setattr(evaluate, "losses_at", stopped)
    broken = [source, "--runs", str(tmp_path / "broken"), *argv]
    with pytest.raises(Interrupted if how == "SIGTERM" else MemoryError) as stop:
        surface.main(broken)
    if how == "SIGTERM":
        assert "stopped after 8 of 16 points of seed 1" in str(stop.value) and stop.value.exit_code == 75
    assert not list((tmp_path / "broken").rglob("done"))
    assert surface.main(broken) == 0
    wanted = 2 * 16 + (2 * 4 if how == "killed" else 0)  # no block twice, but for the one that was lost
    assert sum(calls) == wanted
    tables = [next(folder.rglob("surface.csv")).read_bytes() for folder in (whole, tmp_path / "broken")]
    assert tables[0] == tables[1]
    surface.main(broken)  # kept with the network: nothing is measured again
    assert sum(calls) == wanted


# ---- the command ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("plane", "count"), [("random", 2), ("trajectory", 1), ("three", 1)])
def test_the_command_writes_numbers_tables_and_figures(trained, tmp_path, plane, count, capsys):
    argv = [str(trained / "small_cnn"), "--runs", str(tmp_path), "--device", "cpu", "--images", "40",
            "--resolution", "4", "--plane", plane, "--bn_images", "64"]
    argv += [] if plane == "three" else ["--select", "init_seed=" + "|".join("12"[:count])]
    assert surface.main([*argv, "--dry_run"]) == 0 and not list(tmp_path.iterdir())
    assert surface.main(argv) == 0
    said = capsys.readouterr().out
    made = next(tmp_path.glob("surfaces/*/done")).parent
    found, arrays = runs.read_json(made / "results.json"), runs.read_arrays(made / "arrays/surface.npz")
    assert len(found["surfaces"]) == count and len(list((made / "figures").glob("*.png"))) == count
    assert ("explain" in said) == (plane == "trajectory")
    with open(made / "surface.csv") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == count * 2 * 16 and list(rows[0]) == ["surface", "x", "y", "split", "loss", "accuracy", "error"]
    row = rows[16 + 4 * 2 + 1]  # of the test split: x slow, y fast
    assert row["split"] == "test" and np.isclose(float(row["loss"]), arrays["0_test_loss"][2, 1])
    assert np.isclose(float(row["x"]), arrays["0_x"][2]) and np.isclose(float(row["y"]), arrays["0_y"][1])
    assert np.isclose(float(row["error"]), 1 - float(row["accuracy"]))


def test_smoke_takes_the_whole_path(tmp_path):
    train.main(["--smoke", "--members", "1", "--runs", str(tmp_path)])
    assert surface.main([str(tmp_path / "ensembles"), "--smoke", "--runs", str(tmp_path), "--resolution", "3"]) == 0
    assert list(tmp_path.glob("smoke/surfaces/*/figures/surface.png"))


def test_what_has_no_surface_is_refused(trained, tmp_path, monkeypatch):
    def call(*argv, members=trained / "small_cnn"):
        surface.main([str(members), "--runs", str(tmp_path / "out"), "--device", "cpu", *argv])

    with pytest.raises(UsageError, match="known are train, val, test; did you mean test"):
        call("--splits", "tset")
    with pytest.raises(UsageError, match="three goes through three networks, and .* holds 1"):
        call("--plane", "three", "--select", "init_seed=1")
    with pytest.raises(UsageError, match="random or trajectory"):
        call("--plane", "three", "--hessian", "2")
    with pytest.raises(UsageError, match="without a val set"):
        call("--splits", "val")
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(UsageError, match="pip install curvlinops-for-pytorch"):
        call("--hessian", "2")
    plain = tmp_path / "plain"
    train.main(["--net", "small_cnn", "--dataset", "digits", "--members", "1", "--epochs", "1", "--train_size", "96",
                "--snapshots", "", "--runs", str(plain), "--device", "cpu"])
    with pytest.raises(FileProblem, match="fewer than two snapshots"):
        call("--plane", "trajectory", members=plain)
    three = [str(network_of(trained / "small_cnn", k).source.parent) for k in (0, 1)]
    with pytest.raises(UsageError, match="architecture .name: resnet20, small_cnn.: there is no plane"):
        surface.main([*three, str(network_of(trained / "resnet20").source.parent), "--plane", "three", "--runs",
                      str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_hessian_of_a_linear_network(trained):
    """Trace in closed form: the mean of (|x|² + 1) sum_c p_c (1 - p_c); eigenvalues from the dense Hessian."""
    pytest.importorskip("curvlinops", reason="curvlinops-for-pytorch, an optional package, is not installed")
    args = settings(trained / "linear", "--hessian", "3")
    networks = surface.checked(args)
    scene, one = surface.Scene(args, networks, NO_STOP), network_of(trained / "linear")
    found = surface.hessian(args, scene, networks[0], one)
    images = scene.images("train", one.preprocessing)
    x = images.batch(torch.arange(len(images)), one.preprocessing).flatten(1)
    w, b = (one.network.state_dict()[k] for k in ("1.weight", "1.bias"))

    def loss(flat):
        return torch.nn.functional.cross_entropy(x @ flat[:640].view(10, 64).T + flat[640:], images.labels)

    p = (x @ w.T + b).softmax(1)
    trace = ((x.square().sum(1) + 1) * (p * (1 - p)).sum(1)).mean().item()
    dense = torch.func.hessian(loss)(torch.cat([w.flatten(), b])).detach().double()
    assert np.isclose(dense.trace().item(), trace, rtol=1e-4) and np.isclose(found["trace"], trace, rtol=0.15)
    values = torch.linalg.eigvalsh(dense).flip(0)[:3].numpy()
    assert np.allclose(found["eigenvalues"], values, rtol=1e-3)
