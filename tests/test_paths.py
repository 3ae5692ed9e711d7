"""Lines, planes and radial slices between networks: geometry, slow twins, resuming, refusals, and the command."""

import os
import shutil
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ensembles import paths, paths_figures, train
from landscape import cli, evaluate, metrics, plane, predictions, runs, weights
from landscape.errors import ContentError, FileProblem, Interrupted, UsageError
from subspaces import train as learn

NO_STOP = type("", (), {"requested": None})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of three small_cnn and two resnet20, briefly trained on digits."""
    root = tmp_path_factory.mktemp("members")
    for net, members, epochs, more in (("small_cnn", 3, 3, []), ("resnet20", 2, 1, ["--width", "4"])):
        train.main(["--net", net, "--dataset", "digits", "--members", str(members), "--epochs", str(epochs), *more,
                    "--train_size", "400", "--snapshots", "", "--runs", str(root / net), "--device", "cpu"])
    return root


def settings(folder, *argv):
    return cli.resolve(paths.make_parser().settings(
        ["--members", str(folder), "--runs", str(folder), "--device", "cpu", "--images", "50", *argv]))


def between(folder, *argv):
    args = settings(folder, *argv)
    scene = paths.Between(args, predictions.find(args), NO_STOP)
    scene.progress = runs.Progress(1, "points")
    return scene


def plain(scene, vertices, coefficients, answers):
    """The same, point by point: load_state_dict, one pass in train mode for BatchNorm, some images a batch."""
    network, see = scene.network, scene.preprocessing
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    images, out = scene.images(see), []
    for row in coefficients:
        point = {k: sum(float(c) * w[k].double() for c, w in zip(row, vertices)).to(v.dtype)
                 for k, v in vertices[0].items()}
        network.load_state_dict(point)
        if norms and max(row) != 1:
            for layer in norms:
                layer.momentum, layer.training = 1.0, True
            with torch.no_grad():
                network(scene.training.batch(torch.arange(len(scene.training)), see))
        network.eval()
        with torch.no_grad():
            said = torch.cat([network(images.batch(torch.arange(k, min(k + 20, len(images))), see))
                              for k in range(0, len(images), 20)])
        given = said.argmax(1).numpy()
        out.append([F.cross_entropy(said, torch.as_tensor(scene.labels)).item(), (given == scene.labels).mean(),
                    *[(given == a).mean() for a in answers]])
    return np.array(out).T


# ---- geometry ------------------------------------------------------------------------------------------------------

def test_positions_on_a_polyline():
    assert paths.polyline(2, np.array([0, 0.25, 1])).tolist() == [[1, 0], [0.75, 0.25], [0, 1]]
    assert paths.polyline(2, np.array([-0.5, 1.5])).tolist() == [[1.5, -0.5], [-0.5, 1.5]]
    four = paths.polyline(4, np.linspace(0, 1, 7))
    assert np.allclose(four[::2], np.eye(4)) and np.allclose(four[1::2], (np.eye(4)[1:] + np.eye(4)[:-1]) / 2)
    assert np.allclose(paths.polyline(5, np.linspace(-1, 2, 40)).sum(1), 1)
    args = cli.resolve(paths.make_parser().settings(["--points", "5", "--beyond", "0.3"]))
    assert paths.line_ts(args).tolist() == [-0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]


def test_a_polar_wedge_has_true_lengths_and_angles():
    corners = np.array([[3.0, 0], [0, 4], [-5, 0]])
    along = paths.polyline(3, np.linspace(0, 1, 9))
    norms, angles = paths.polar(along, corners @ corners.T)
    assert np.allclose(norms[[0, 4, 8]], [3, 4, 5]) and np.allclose(np.degrees(angles[[0, 4, 8]]), [0, 90, 180])
    flat = np.stack(paths_figures.on_paper(norms, angles), axis=1)
    assert np.allclose(flat, along @ corners)  # these vertices lie on paper already
    same = np.ones((2, 2))
    assert paths.polar(paths.polyline(2, np.linspace(0, 1, 5)), same)[1].max() < 1e-6
    drawn, ratio = paths_figures.spread(np.zeros(5))
    assert np.isclose(np.degrees(drawn[0] - drawn[-1]), paths_figures.WEDGE[0]) and ratio == 1
    drawn, ratio = paths_figures.spread(np.radians([0, 40, 80]))
    assert np.allclose(np.degrees(drawn), [130, 90, 50]) and np.isclose(ratio, 1)


def test_coordinates_of_a_plane_reproduce_the_three_solutions():
    three = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    flat = plane.through(*three)
    assert np.allclose(paths.barycentric(flat.anchors.numpy(), flat.anchors.numpy()), np.eye(3), atol=1e-12)
    coords = np.random.default_rng(0).normal(size=(6, 2)) * 9
    points = torch.as_tensor(paths.barycentric(flat.anchors.numpy(), coords)) @ three.double()
    back, off = plane.coords_of(flat, points)
    assert np.allclose(back, coords, atol=1e-4) and off.max() < 1e-4


def test_a_mean_over_pairs_of_some_members():
    every = [(0, 1), (0, 2), (1, 2)]
    whole = paths.over_pairs([1.0, 2, 6], every, 3, 99, 0.95)
    assert whole["value"] == 3 and whole["low"] < 3 < whole["high"] and whole["n"] == 3
    some = paths.over_pairs([1.0, 2, 6], [(0, 1), (2, 4), (1, 4)], 9, 99, 0.95)
    assert some["value"] == 3 and some["low"] <= 3 <= some["high"]
    one = paths.over_pairs([1.0], [(0, 1)], 2, 99, 0.95)
    assert one == {"value": 1, "low": None, "high": None, "n": 1}


# ---- measures ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("net", ["small_cnn", "resnet20"])
def test_a_line_equals_a_loop_over_its_points(trained, net, monkeypatch, tmp_path):
    scene = between(trained / net, "--bn_images", "200")
    assert (scene.training is None) == (net == "small_cnn")
    monkeypatch.setattr(paths, "BLOCK", 1.0)  # one point a block
    two, line = scene.vertices[:2], paths.polyline(2, np.linspace(-0.25, 1.25, 7))
    found = scene.measure("line", two, line, scene.answers[:2], tmp_path / "a")
    slow = plain(scene, two, line, scene.answers[:2])
    assert np.allclose(found["loss"], slow[0], rtol=1e-4)
    assert np.allclose([found["accuracy"], *found["agreement"].T], slow[1:], atol=0.021)  # of 50 images one
    assert np.ptp(found["loss"]) > 0.1

    monkeypatch.setattr(paths, "BLOCK", 1e9)  # all at once
    again = scene.measure("line", two, line, scene.answers[:2], tmp_path / "b")
    assert np.allclose(found["loss"], again["loss"], rtol=1e-5)
    swapped = scene.measure("line", two[::-1], line, scene.answers[[1, 0]], tmp_path / "c")
    assert np.allclose(swapped["loss"][::-1], again["loss"], rtol=1e-5)
    assert np.allclose(swapped["agreement"][::-1, ::-1], again["agreement"], atol=0.021)

    own = [evaluate.logits(weights_in(scene.network, w), scene.images(scene.preprocessing),
                           scene.preprocessing).numpy() for w in two]
    for row, said in zip((1, -2), own):
        assert np.isclose(found["loss"][row], metrics.nll(said, scene.labels), rtol=1e-5)
        assert found["accuracy"][row] == metrics.accuracy(said, scene.labels)
    assert found["agreement"][1, 0] == found["agreement"][-2, 1] == 1
    assert found["agreement"][1, 1] == (own[0].argmax(1) == own[1].argmax(1)).mean()


def weights_in(network, values):
    network.load_state_dict(values)
    return network


def test_a_line_between_equal_networks_is_flat(trained, tmp_path):
    source = next((trained / "small_cnn").rglob("done")).parent
    for name in "ab":
        shutil.copytree(source, tmp_path / "in" / name)
    argv = ["--members", str(tmp_path / "in"), "--runs", str(tmp_path), "--device", "cpu", "--images", "40",
            "--points", "4", "--radii", "3", "--path", "line,radial"]  # fmt: skip
    assert paths.main(argv) == 0
    found = runs.read_json(next(tmp_path.glob("ensembles/*/results.json")))
    pair = found["line"]["pairs"][0]
    assert pair["loss_barrier"] < 1e-6 and pair["error_barrier"] == 0 and pair["distance"] == 0
    arrays = runs.read_arrays(next(tmp_path.glob("ensembles/*/arrays/paths.npz")))
    assert (arrays["line_agreement"] == 1).all() and found["radial"]["angle"] < 1e-3
    third = tmp_path / "in" / "c"
    shutil.copytree(source, third)
    with pytest.raises(UsageError, match="there is no plane"):
        paths.main([*argv, "--path", "plane"])


def test_the_radial_slice_and_the_plane_hold_the_line(trained, tmp_path):
    scene = between(trained / "small_cnn", "--radii", "3", "--r_min", "0.5", "--r_max", "1.5", "--points", "5")
    args = scene.args
    line = paths.lines(args, scene, [(0, 1)])[1]
    wedge = paths.radial(args, scene)[1]
    assert wedge["radii"].tolist() == [0.5, 1, 1.5]
    assert np.allclose(wedge["loss"][1], line["loss"][0], rtol=1e-6)
    assert (wedge["agreement"][1] == line["agreement"][0]).all()
    half = {k: v / 2 for k, v in scene.vertices[0].items()}
    said = evaluate.logits(weights_in(scene.network, half), scene.images(scene.preprocessing), scene.preprocessing)
    assert np.isclose(wedge["loss"][0, 0], metrics.nll(said.numpy(), scene.labels), rtol=1e-5)

    corners = [scene.vertices[0], scene.vertices[2], scene.vertices[1]]
    bent = paths.slice_of(args, scene, corners, paths.polyline(3, np.linspace(0, 1, 5)), (0, 1), "bent path")
    assert bent[0]["vertices"] == 3 and bent[1]["loss"].shape == (3, 5)
    assert np.isclose(bent[1]["loss"][1, 2], metrics.nll(scene.said[2], scene.labels), rtol=1e-5)

    flat = paths.plane(args, scene)[1]
    exact = weights.distance(*[{k: w[k] for k in scene.parameters} for w in scene.vertices[:2]])
    assert np.isclose(flat["anchors"][1, 0], exact, rtol=1e-6) and flat["agreement"].shape == (21, 21, 3)
    coefficients = paths.barycentric(flat["anchors"], flat["anchors"])
    at = scene.measure("solutions", scene.vertices[:3], coefficients, scene.answers[:3], tmp_path)
    assert np.allclose(at["loss"], [metrics.nll(s, scene.labels) for s in scene.said], rtol=1e-5)
    assert np.allclose(np.diag(at["agreement"]), 1)
    place = np.array([flat["x"][4], flat["y"][7]])
    one = plain(scene, scene.vertices[:3], paths.barycentric(flat["anchors"], place[None]), scene.answers[:3])
    assert np.isclose(flat["loss"][4, 7], one[0, 0], rtol=1e-4)


def test_interrupted_and_resumed_equals_uninterrupted(trained, tmp_path, monkeypatch):
    for folder in ("one", "two"):
        shutil.copytree(trained / "small_cnn", tmp_path / folder)
    monkeypatch.setattr(paths, "BLOCK", 400_000)  # some points a block
    argv = ["--device", "cpu", "--images", "40", "--points", "9", "--pairs", "2", "--path", "line"]
    whole = ["--members", str(tmp_path / "one"), "--runs", str(tmp_path / "one" / "out"), *argv]
    assert paths.main(whole) == 0

    broken = ["--members", str(tmp_path / "two"), "--runs", str(tmp_path / "two" / "out"), *argv]
    plainly, calls = evaluate.logits_at, []

    def stopped(network, points, *rest):
        calls.append(len(points))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plainly(network, points, *rest)

    monkeypatch.setattr(evaluate, "logits_at", stopped)
    with pytest.raises(Interrupted, match="goes on") as stop:
        paths.main(broken)
    assert stop.value.exit_code == 75 and not list((tmp_path / "two" / "out").rglob("done"))
    before = sum(calls)
    assert paths.main(broken) == 0 and 0 < before < 18 and sum(calls) == 18  # no point twice
    made = [runs.read_arrays(next((tmp_path / f / "out").rglob("paths.npz"))) for f in ("one", "two")]
    assert made[0].keys() == made[1].keys()
    assert all(np.array_equal(made[0][k], made[1][k]) for k in made[0])
    paths.main(broken)  # a third time: nothing is measured
    assert sum(calls) == 18
    paths.main([*broken, "--force"])
    assert sum(calls) == 36


# ---- connectors ----------------------------------------------------------------------------------------------------

def folders(folder):
    return [n.source.path for n in predictions.find(settings(folder))]


def learned(trained, net, to, *more, ends=None, family="chain"):
    """The run of a path between the first two networks; of no epochs its bend lies on their straight line."""
    ends = ends or folders(trained / net)[:2]
    width = ["--width", "4"] if net == "resnet20" else []
    assert learn.main(["--net", net, *width, "--dataset", "digits", "--train_size", "400", "--normalize", "none",
                       "--augment", "none", "--family", family, "--ends", ",".join(map(str, ends)), "--device", "cpu",
                       "--bs", "100", "--lr", "0.05", "--threads", "1", "--runs", str(to), *more]) == 0
    return next(to.glob("subspaces/*/done")).parent


@pytest.mark.parametrize("net", ["small_cnn", "resnet20"])
@pytest.mark.parametrize("family", ["chain", "curve"])
def test_a_path_whose_bend_is_on_the_line_is_the_line(trained, tmp_path, net, family):
    run = learned(trained, net, tmp_path, "--epochs", "0", family=family)
    scene = between(trained / net, "--connector", str(run), "--points", "5", "--radii", "3", "--r_min", "0.5",
                    "--r_max", "1.5", "--bn_images", "100")
    connector = paths.open_connector(scene.args, scene.networks)
    assert connector.members == (0, 1) and len(connector.vertices) == 3
    found, rows = paths.connected(scene.args, scene, connector)
    for key in ("loss", "accuracy", "agreement", "cosine"):
        assert np.allclose(rows[key], rows[f"line_{key}"], rtol=1e-3, atol=1e-4 if key == "loss" else 0.021), key
        if key != "cosine":
            assert np.allclose(rows[f"slice_{key}"][1], rows[key], rtol=1e-4)
    assert np.isclose(found["path"]["length"], found["line"]["length"], rtol=1e-5)
    for row, end in ((0, 0), (-1, 1)):  # the ends are the networks as they are stored
        assert np.isclose(rows["loss"][row], metrics.nll(scene.said[end], scene.labels), rtol=1e-5)
        assert rows["agreement"][row, end] == 1 and np.isclose(rows["cosine"][row, end], 1)
    two = [torch.cat([w[k].flatten() for k in scene.parameters]).double() for w in scene.vertices[:2]]
    middle = torch.nn.functional.cosine_similarity(two[0] + two[1], two[0], dim=0).item()
    assert np.isclose(rows["cosine"][2, 0], middle, atol=1e-5)


def test_a_bent_path_equals_a_loop_over_its_points(trained, tmp_path):
    """Statistics of a vertex between the ends are estimated there too, not those that the training saved."""
    run = learned(trained, "resnet20", tmp_path, "--epochs", "2", "--vertices", "4")
    scene = between(trained / "resnet20", "--connector", str(run), "--points", "4", "--bn_images", "100")
    connector = paths.open_connector(scene.args, scene.networks)
    rows = paths.connected(scene.args, scene, connector)[1]
    line = rows["line_loss"]
    assert len(connector.vertices) == 4 and not np.allclose(rows["loss"][1:3], line[1:3], rtol=1e-2)
    vertices = [{**scene.vertices[0], **v} for v in connector.vertices]
    with_eps = np.array([[1e-9, 1 - 1e-9, 0, 0], [0, 0, 1 - 1e-9, 1e-9]])  # `plain` leaves vertices as they are stored
    slow = plain(scene, vertices, with_eps, scene.answers[:2])
    assert np.allclose(rows["loss"][1:3], slow[0], rtol=1e-3)
    assert rows["cosine"][0, 0] == pytest.approx(1) and (rows["cosine"][1:, 0] < 0.999).all()


def test_the_command_draws_a_connector(trained, tmp_path, capsys):
    ends = folders(trained / "small_cnn")
    run = learned(trained, "small_cnn", tmp_path, "--epochs", "2", "--opt", "Adam", "--lr", "0.01", "--beta", "0",
                  ends=[ends[2], ends[0]])
    argv = ["--members", str(trained / "small_cnn"), "--runs", str(tmp_path), "--device", "cpu", "--images", "60",
            "--points", "5", "--radii", "4", "--connector", str(run)]  # fmt: skip
    assert paths.main([*argv, "--path", "connector", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert str(ends[2]) in said.split(" to ")[0] and not list(tmp_path.glob("ensembles"))
    assert paths.main([*argv, "--path", "connector"]) == 0
    made = next(tmp_path.glob("ensembles/*/done")).parent
    found, arrays = runs.read_json(made / "results.json"), runs.read_arrays(made / "arrays/paths.npz")
    assert found["connector"]["members"] == [2, 0] and found["connector"]["slice"]["angle"] > 1
    assert found["connector"]["path"]["length"] >= found["connector"]["line"]["length"]
    assert arrays["connector_slice_loss"].shape == (4, 5) and arrays["connector_cosine"].shape == (5, 2)
    for name in ("connector", "connector_slice"):
        assert (made / "figures" / f"{name}.png").stat().st_size > 10_000
    table = (made / "points.csv").read_text().splitlines()
    assert len(table) == 1 + 5 + 5 + 20 and table[1].startswith("connector,2-0,0.0,,")


def test_what_is_no_connector_of_the_members_is_refused(trained, tmp_path):
    ends = folders(trained / "small_cnn")
    run = learned(trained, "small_cnn", tmp_path / "a", "--epochs", "0", ends=ends[:2])
    argv = ["--runs", str(tmp_path / "out"), "--device", "cpu", "--path", "connector"]
    members = ["--members", str(trained / "small_cnn")]
    with pytest.raises(UsageError, match="needs --connector RUN"):
        paths.main([*members, *argv])
    with pytest.raises(UsageError, match="holds one network, which is no path"):
        paths.main([*members, *argv, "--connector", str(ends[0])])
    with pytest.raises(UsageError, match="its ends are not both among the 2 members .they are .* and "):
        paths.main(["--members", str(ends[0]), str(ends[2]), *argv, "--connector", str(run)])
    with pytest.raises(UsageError, match="differ in their architecture .name: small_cnn, resnet20"):
        paths.main(["--members", str(trained / "resnet20"), *argv, "--connector", str(run)])
    with pytest.raises(UsageError, match="holds 3 networks: name one run"):
        paths.main([*members, *argv, "--connector", str(trained / "small_cnn")])
    with pytest.raises(FileProblem, match="does not exist"):
        paths.main([*members, *argv, "--connector", str(tmp_path / "nowhere")])
    assert not (tmp_path / "out").exists()


# ---- the command ---------------------------------------------------------------------------------------------------

def test_the_command_writes_numbers_tables_and_figures(trained, tmp_path, capsys):
    argv = ["--members", str(trained / "small_cnn"), "--runs", str(tmp_path)]
    assert paths.main([*argv, "--smoke", "--dry_run"]) == 0 and not list(tmp_path.iterdir())
    assert capsys.readouterr().out.count("line:") == 3
    assert paths.main([*argv, "--smoke"]) == 0
    said, run = capsys.readouterr().out, next(tmp_path.glob("smoke/ensembles/*/done")).parent
    found, arrays = runs.read_json(run / "results.json"), runs.read_arrays(run / "arrays" / "paths.npz")
    for name in ("line", "plane", "radial"):
        assert f"{name}.png" in said and (run / "figures" / f"{name}.png").stat().st_size > 10_000
    assert found["images"] == 100 and len(found["line"]["pairs"]) == 3 and len(found["line"]["ts"]) == 6
    loss = arrays["line_loss"]
    above = loss - np.linspace(loss[:, 0], loss[:, -1], 6, axis=1)
    assert np.isclose(found["line"]["measures"]["loss_barrier"]["value"], above.max(1).mean())
    error = 1 - arrays["line_accuracy"]
    above = error - np.linspace(error[:, 0], error[:, -1], 6, axis=1)
    assert np.allclose([p["error_barrier"] for p in found["line"]["pairs"]], above.max(1))
    assert np.allclose([c["value"] for c in found["line"]["curves"]["agreement_second"]],
                       arrays["line_agreement"][:, :, 1].mean(0))
    lines = (run / "points.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 6 + 8 * 8 + 4 * 6 and lines[0].startswith("path,of,along,across,loss")
    row = lines[1 + 18 + 8 * 2 + 5].split(",")  # plane: x slow, y fast
    assert row[0] == "plane" and np.allclose([float(row[2]), float(row[3]), float(row[4])],
                                             [arrays["plane_x"][2], arrays["plane_y"][5], arrays["plane_loss"][2, 5]])


def test_what_cannot_be_joined_is_refused(trained, tmp_path):
    def call(*argv, members=trained / "small_cnn"):
        paths.main(["--members", str(members), "--runs", str(tmp_path), "--device", "cpu", *argv])

    with pytest.raises(UsageError, match="did you mean plane"):
        call("--path", "plan")
    with pytest.raises(UsageError, match="r_min 2 is not below"):
        call("--r_min", "2")
    with pytest.raises(UsageError, match="--path line takes 2 networks, and .* holds 1"):
        call("--select", "init_seed=1")
    with pytest.raises(UsageError, match="--path plane takes 3 networks, and .* holds 2"):
        call("--path", "plane", members=trained / "resnet20")
    with pytest.raises(UsageError, match="architecture .*resnet20.*there is no network between them"):
        call("--path", "line", members=trained)
    assert not list(tmp_path.rglob("paths.npz"))


def test_logits_that_are_not_finite_stop_with_the_reason(trained, tmp_path):
    scene = between(trained / "small_cnn")
    with pytest.raises(ContentError, match="line are not finite"):
        scene.measure("line", scene.vertices[:2], np.array([[1e12, 0.0]]), scene.answers[:2], tmp_path)
