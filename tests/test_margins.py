"""Margins, class skips and balls: closed forms, slow twins, and the commands."""

import numpy as np
import pytest
import torch

import main
import models
from landscape import runs
from landscape.errors import ContentError, UsageError
from regions import ball, images, margins, skips

CPU = torch.device("cpu")
HELD = {"base": "all", "partners": "all", "towards": "image", "split": "test", "partner_split": "same", "plane_seed": 1,
        "as_published": False, "given_labels": None, "dataset": "digits", "points": 30, "directions": 4, "t_max": 30.0,
        "tolerance": 0.01, "step": 0.5, "growth": 1.2}  # fmt: skip


def scene(**changes):
    return images.Scene(HELD | changes, None, CPU)


def linear(classes=2):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))
    for p in network.parameters():
        torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
    return network


class Waves(torch.nn.Module):
    """A class that changes twice within a short distance, in several directions, which a coarse scan may miss."""

    def forward(self, x):
        wave = torch.sin(x.flatten(1)[:, ::5] * 3).sum(1, keepdim=True)
        return torch.cat([wave, 1.5 + 0 * wave], 1)


@pytest.mark.parametrize("towards", ["image", "random", "true"])
@pytest.mark.parametrize("bs", [7, 64])
def test_margins_of_a_linear_classifier_are_the_closed_form(towards, bs):
    of, network = scene(towards=towards, tolerance=0.001), linear()
    got = margins.measure(of, network, bs)
    normal, offset = network[1].weight[0] - network[1].weight[1], network[1].bias[0] - network[1].bias[1]
    exact = np.full((30, 4), np.inf)
    with torch.no_grad():
        for n in range(30):
            x = of.points([n])[0]
            for k, d in enumerate(of.directions(n, x)):
                assert abs(d.norm() - 1) < 1e-5
                t = -(x.flatten() @ normal + offset) / (d.flatten() @ normal)
                exact[n, k] = t if 0 < t <= 30 else np.inf
    censored = np.isinf(exact)
    assert 0 < censored.sum() < censored.size and (np.isinf(got["margins"]) == censored).all()
    assert np.abs(got["margins"][~censored] - exact[~censored]).max() < 0.0006
    assert (got["crossed"][~censored] == 1 - got["predicted"].repeat(4).reshape(30, 4)[~censored]).all()
    assert (got["crossed"][censored] == -1).all()


def test_censored_directions_count_and_are_larger_than_any_margin():
    held = HELD | {"directions": 4}
    inf = np.inf
    arrays = {"margins": np.array([[1, 2, 3, 6], [1, 3, inf, inf], [1, inf, inf, inf], [inf] * 4]),
              "tried": np.full(4, 4)}  # fmt: skip
    got = margins.of_images(held, arrays)
    assert got["mean"][:2].tolist() == [3, 2] and np.isnan(got["mean"][2:]).all()
    assert got["median"].tolist() == [2.5, inf, inf, inf]
    assert got["censored"].tolist() == [0, 0.5, 0.75, 1]
    cell = images.estimate(got["mean"][None], np.median, 0.95)
    assert cell["value"] == 2.5 and cell["n"] == 2
    assert images.estimate(got["median"][None], np.median, 0.95)["value"] is None


def test_an_interval_of_few_images_ends_at_what_the_statistic_can_be():
    share = np.array([0.0] * 7 + [1.0])
    free = images.estimate(share[None], np.mean, 0.95, -np.inf)
    assert free["low"] < 0 < images.estimate(share[None], np.mean, 0.95)["value"] == 0.125
    assert images.estimate(share[None], np.mean, 0.95)["low"] == 0
    assert images.estimate(1 - share[None], np.mean, 0.95)["high"] > 1
    assert images.estimate(1 - share[None], np.mean, 0.95, 0.0, 1.0)["high"] == 1
    assert images.over_models([0.0, 0.0, 0.1], 0.95)["low"] == 0


def test_without_missed_changes_margins_equal_a_dense_scan_and_the_check_finds_the_missed():
    of, network = scene(points=20), Waves()
    got = margins.measure(of, network, 16)["margins"]
    grid, first = np.arange(1, 1501) * 0.02, np.full((20, 4), np.inf)
    with torch.no_grad():
        for n in range(20):
            x = of.points([n])[0]
            for k, d in enumerate(of.directions(n, x)):
                labels = network(torch.stack([x + float(t) * d for t in (0, *grid)])).argmax(1)
                changes = (labels[1:] != labels[0]).nonzero()
                first[n, k] = grid[changes[0, 0]] if len(changes) else np.inf
    missed = first < got - 0.005
    assert 0 < missed.mean() < 0.9
    same = ~missed & np.isfinite(first)
    assert np.abs(got[same] - first[same]).max() <= 0.02 + 0.005  # and a margin is never before the first change
    of.held |= {"check": 50, "check_step": 0.02}
    dense = margins.scan(of, network, 16)
    n, k = dense["pairs"].T
    assert np.allclose(dense["first"], first[n, k]) and len(set(zip(n, k))) == 50
    said = margins.earlier(got, dense, 0.01, 0.95)
    assert said["missed"] == missed[n, k].sum() and said["low"] <= said["share"] <= said["high"]


def published_margin(network, x, partners, count):
    """Spec 2.7, read plainly: the margins of one image, and the number of partners looked at."""
    grid, found = [0.0], []
    for width, times in ((0.01, 11), (0.1, 9), (0.5, 31), (1, 25), (10, 25), (20, 98)):
        for _ in range(times):
            grid.append(grid[-1] + width)
    for tried, y in enumerate(partners):
        if len(found) == count:
            return found, tried
        a = (y - x) / (y - x).norm()
        labels = network(torch.stack([x + t * a for t in grid])).argmax(1).tolist()
        changes = [t for t in range(199) if labels[t] != labels[t + 1]]
        found += [grid[changes[0]]] if changes else []
    return found, len(partners)


def test_as_published_equals_a_plain_reading():
    of, network = scene(as_published=True, points=12), linear(3)
    assert len(margins.PUBLISHED) == 200
    assert np.allclose(margins.PUBLISHED[[0, 11, 20, 51, 76, 199]], [0, 0.11, 1.01, 16.51, 41.51, 2251.51])
    got = margins.measure(of, network, 16)
    short = 0
    with torch.no_grad():
        for n in range(12):
            found, tried = published_margin(network, of.points([n])[0], of.partners(n), 4)
            assert np.allclose(got["margins"][n][:len(found)], found) and np.isinf(got["margins"][n][len(found):]).all()
            assert got["tried"][n] == tried
            short += tried > 4
    assert short > 0  # some partner failed, and another one took its place


def test_a_constant_network_has_nulls_and_says_so(tmp_path, capsys):
    of = scene(points=5)
    constant = linear()
    torch.nn.init.zeros_(constant[1].weight)
    arrays = margins.measure(of, constant, 16)
    assert np.isinf(arrays["margins"]).all()
    args = margins.make_parser().settings(["--points", "5"])
    source = runs.Source(tmp_path, "constant", "one", {})
    found = margins.summary(args, of.held, [(source, arrays)], None)
    (row,) = found["models"]
    assert row["constant"] and row["without_change"] == row["tried"] == 20
    assert row["mean"]["value"] is None and row["median"]["value"] is None and row["censored"]["value"] == 1
    runs.write_json(tmp_path / "results.json", found)  # which refuses NaN
    margins.show(args, found)
    assert "the network is constant" in capsys.readouterr().out


def test_constant_networks_alone_are_refused(tmp_path):
    constant = models.build("mlp", 10, in_channels=1, image_size=8, width=4)
    for p in constant.parameters():
        torch.nn.init.zeros_(p)
    (tmp_path / "mlp").mkdir()
    torch.save(constant.state_dict(), tmp_path / "mlp/0.pth")
    argv = ["--load_net", str(tmp_path / "mlp/0.pth"), "--net", "mlp", "--width", "4", "--dataset", "digits",
            "--points", "5", "--directions", "2", "--runs", str(tmp_path / "runs")]
    with pytest.raises(ContentError, match="constant networks have no margin"):
        margins.main(argv)
    assert not list((tmp_path / "runs").rglob("results.json"))


def test_images_and_directions_are_those_of_the_seed_alone():
    one, two, other = scene(), scene(points=10), scene(plane_seed=2)
    assert one.rows[:10].tolist() == two.rows.tolist() and one.partner_rows[:10].equal(two.partner_rows)
    assert not one.rows.equal(other.rows)
    assert not (one.partner_rows == one.rows[:, None]).any()
    torch.rand(3)
    assert scene(towards="random").directions(3, one.points([3])[0]).equal(
        scene(towards="random").directions(3, one.points([3])[0]))
    truth = one.images.true_labels
    assert (truth[scene(towards="true").partner_rows] == truth[one.rows][:, None]).all()
    assert (truth[scene(towards="random_class").partner_rows] != truth[one.rows][:, None]).all()
    published = scene(as_published=True)
    assert published.partner_rows.shape == (30, 14) and published.partner_rows[:, :4].equal(one.partner_rows)


def test_skips_and_balls_equal_plain_loops():
    of, network = scene(points=9, directions=2, along=13, delta=3.0), linear(5)
    segments, around = skips.measure(of, network, 8), ball.measure(of, network, 8)
    with torch.no_grad():
        for n in range(9):
            x = of.points([n])[0]
            for k, y in enumerate(of.partners(n)):
                labels = network(torch.stack([x + i / 12 * (y - x) for i in range(13)])).argmax(1).tolist()
                assert segments["skips"][n, k] == sum(a != b for a, b in zip(labels, labels[1:]))
                assert segments["classes_met"][n, k] == len(set(labels))
            near = torch.stack([x, *(x + 3 * d for d in of.directions(n, x))])
            assert around["distinct"][n] == len(set(network(near).argmax(1).tolist()))
    assert segments["skips"].max() > 1 and around["distinct"].max() > 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with two small networks trained under label noise."""
    where = tmp_path_factory.mktemp("margins")
    for seed in ("0", "1"):
        main.main(["--dataset", "digits", "--net", "mlp", "--epochs", "1", "--train_size", "200", "--imgs", "none",
                   "--noise_rate", "0.2", "--seed", seed, "--device", "cpu", "--runs", str(where)])  # fmt: skip
    return where


def found_in(where, kind):
    (folder,) = where.glob(f"regions/{kind}_*")
    assert (folder / f"{kind}.csv").exists() and (folder / "figures" / f"{kind}.png").exists()
    return runs.read_json(folder / "results.json")


def test_the_commands(trained, capsys):
    load = ["--load_net", str(trained / "regions"), "--runs", str(trained), "--device", "cpu", "--points", "20"]
    assert margins.main([*load, "--directions", "3", "--check", "10"]) == 0
    found = found_in(trained, "margins")
    (row,) = found["groups"]
    assert row["models"] == 2 and row["mean"]["low"] <= row["mean"]["value"] <= row["mean"]["high"]
    held = [runs.read_arrays(f) for f in sorted(trained.glob("regions/digits*/arrays/margins-*.npz"))]
    assert (held[0]["ids"] == held[1]["ids"]).all() and held[0]["margins"].shape == (20, 3)
    each = [np.nanmedian(margins.of_images({**HELD, "directions": 3}, h)["mean"]) for h in held]
    assert abs(row["mean"]["value"] - np.mean(each)) < 1e-9
    assert "a dense scan finds an earlier change" in capsys.readouterr().out
    files = {f: f.stat().st_mtime_ns for f in trained.glob("regions/digits*/arrays/*.npz")}
    margins.main([*load, "--directions", "3", "--check", "10", "--level", "0.9"])
    assert files == {f: f.stat().st_mtime_ns for f in trained.glob("regions/digits*/arrays/*.npz")}
    noisy = ["--split", "train", "--base", "mislabelled"]
    assert skips.main([*load, *noisy, "--partners", "correct", "--along", "30"]) == 0
    assert found_in(trained, "skips")["by_class"]
    (arrays,) = {f.name: runs.read_arrays(f) for f in trained.glob("regions/digits*/arrays/skips-*.npz")}.values()
    assert (arrays["given"] != arrays["true"]).all()
    assert ball.main([*load, "--directions", "5", "--delta", "2", "--towards", "random"]) == 0
    assert 1 <= found_in(trained, "ball")["groups"][0]["mean"]["value"] <= 6


@pytest.mark.parametrize(("flags", "words"), [
    (["--points", "361"], "360 images"), (["--base", "mislabelled"], "no label is wrong"),
    (["--t_max", "0"], "above 0"), (["--tolerance", "200"], "less than"),
    (["--as_published", "--towards", "random"], "other images"),
    (["--points", "5", "--split", "test", "--directions", "1000"], "partners"),
    (["--points", "100", "--split", "train", "--base", "mislabelled"], "fit --base mislabelled"),
])  # fmt: skip
def test_bad_input_is_refused(trained, flags, words):
    with pytest.raises(UsageError, match=words):
        margins.main(["--load_net", str(trained / "regions"), "--runs", str(trained), "--device", "cpu", *flags])


def test_a_ball_has_a_radius_and_a_network_says_something():
    with pytest.raises(UsageError, match="above 0"):
        ball.main(["--delta", "0"])
    with pytest.raises(ContentError, match="NaN"):
        images.said(lambda x: x * np.nan, torch.ones(2, 3))
