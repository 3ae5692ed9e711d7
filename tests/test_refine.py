"""Class maps from few points: drawn label functions, a network, the estimate of what was missed, and the flag."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

import calculate_iou
import main
import save_preds
from landscape import maps, refine, runs
from landscape.errors import UsageError

R = 101
LINE = torch.linspace(-1, 1, R)
COORDS = torch.cartesian_prod(LINE, LINE)


def discs(xy):
    """Four round regions 23 points across, a ring, a ground; classes far apart in number."""
    label = torch.where((xy.norm(dim=1) > 0.8) & (xy.norm(dim=1) < 0.95), 157, 0)
    for centre, c in (((-0.4, -0.4), 199), ((-0.4, 0.4), 3), ((0.4, -0.4), 3), ((0.45, 0.45), 7)):
        label = torch.where((xy - torch.tensor(centre)).norm(dim=1) < 0.23, c, label)
    return label


def halves(xy):
    return (xy[:, 0] + 0.3 * xy[:, 1] > 0.11).long()


def finger(xy):
    """A strip one point wide, of which a coarse grid sees one end only where it leaves the region on the left."""
    return ((xy[:, 0] < -0.7) | ((xy[:, 1] - 0.02).abs() < 0.011) & (xy[:, 0] < 0.5)).long()


DRAWN = {"discs": discs, "halves": halves, "finger": finger}


class Drawn:
    """A label function as a mapper, whose margins say nothing; it counts the points that it is asked for."""

    def __init__(self, function):
        self.function, self.asked = function, 0

    def __call__(self, plane, coords):
        self.asked += len(coords)
        return {"labels": self.function(coords), "confidence": torch.ones(len(coords)),
                "margin": torch.ones(len(coords)), "rechecked": 0}


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("name", DRAWN)
def test_regions_larger_than_a_cell_are_drawn_as_by_the_full_grid(name, stride):
    mapper = Drawn(DRAWN[name])
    said = refine.class_map(mapper, None, COORDS, stride)
    assert torch.equal(said["labels"], DRAWN[name](COORDS))
    assert said["labels"].dtype == torch.int64 and said["refined"][2] == 0
    assert said["refined"][0] <= mapper.asked < 0.6 * R * R


@pytest.mark.parametrize("side", [2, 3, 9, 16, 17, 18, 50])
def test_any_number_of_points_a_side(side):
    line = torch.linspace(-1, 1, side)
    coords = torch.cartesian_prod(line, line)
    said = refine.class_map(Drawn(halves), None, coords, 16)
    assert torch.equal(said["labels"], halves(coords))
    assert said["confidence"].shape == (side * side,) and bool((said["confidence"] == 1).all())


def test_an_island_inside_a_cell_is_missed_and_the_sample_bounds_how_much():
    def island(xy):
        return ((xy - 0.07).abs().amax(1) < 0.055).long()  # 6 x 6 points between the lines of a grid of 16

    said = refine.class_map(Drawn(island), None, COORDS, 16)
    wrong = int((said["labels"] != island(COORDS)).sum())
    assert wrong == 36
    evaluated, sampled, _ = said["refined"]
    assert sampled == -(-(R * R - evaluated + sampled) // refine.SAMPLE)
    bound = float(maps.refined([said["refined"]], R * R).split("at most ")[1].split("%")[0]) / 100
    assert wrong / R**2 <= bound < 0.05


def test_small_margins_open_a_cell_whose_corners_agree():
    """The same island, of a smooth function: the margins of the corners around it fall towards it."""
    def scores(xy):
        return torch.stack([torch.zeros(len(xy)), 0.09 - (xy - 0.07).norm(dim=1)], 1)

    def smooth(plane, coords):
        z = scores(coords)
        best = z.topk(2, dim=1).values
        return {"labels": z.argmax(1), "confidence": z.softmax(1).amax(1), "margin": best[:, 0] - best[:, 1],
                "rechecked": 0}

    said = refine.class_map(smooth, None, COORDS, 16)
    assert torch.equal(said["labels"], scores(COORDS).argmax(1)) and said["labels"].sum() > 20
    exact = smooth(None, COORDS)["confidence"]
    assert (said["confidence"] - exact).abs().max() < 0.01  # interpolated where filled in


def test_the_sample_finds_its_share_of_wrong_points():
    """A fifth of the points, scattered, has another class where the grid does not look; the sample says a fifth."""
    odd = torch.rand(R * R, generator=torch.Generator().manual_seed(0)) < 0.2
    lines = torch.arange(R) % 4 == 0
    odd &= ~(lines[:, None] & lines[None]).flatten()

    def scattered(xy):
        at = ((xy + 1) / 2 * (R - 1)).round().long()
        return odd[at[:, 0] * R + at[:, 1]].long()

    _, sampled, differ = refine.class_map(Drawn(scattered), None, COORDS, 4)["refined"]
    assert abs(differ / sampled - 0.2 * 16 / 15) < 4 * (0.16 / sampled) ** 0.5


@pytest.mark.parametrize(("sampled", "differ"), [(100, 0), (100, 3), (3000, 1)])
def test_the_bound_is_clopper_and_pearsons(sampled, differ):
    """With that share of wrong points, a sample as good as this one has a chance of one in twenty."""
    most = float(maps.refined([[10_000, sampled, differ]], 10**6).split("at most ")[1].split("%")[0]) / 100 / 0.99
    assert binom.cdf(differ, sampled, most) == pytest.approx(0.05, abs=0.006)


# ---- the flag ------------------------------------------------------------------------------------------------------

TINY = ["--dataset", "digits", "--net", "mlp", "--width", "16", "--epochs", "6", "--train_size", "600", "--lr", "0.05",
        "--precision", "fp32", "--device", "cpu", "--threads", "1"]  # fmt: skip


def test_refined_maps_of_the_scripts_are_those_of_every_point(tmp_path, capsys):
    where = ["--runs", str(tmp_path), "--device", "cpu", "--threads", "1"]
    assert main.main([*TINY, "--runs", str(tmp_path), "--imgs", "none"]) == 0
    load = ["--load_net", str(tmp_path / "regions"), "--planes", "3", "--resolution", "60"]
    (run,) = tmp_path.glob("regions/*/done")
    for extra in ([], ["--refine", "8"]):
        assert save_preds.main([*load, *where, *extra]) == 0
        assert main.main([*TINY, "--load_net", str(run.parent), "--resolution", "60", "--imgs", "5,42,17",
                          "--runs", str(tmp_path), *extra]) == 0
    said = capsys.readouterr().out
    assert said.count("refined: ") == 2 and "95% confidence" in said
    for pattern, points in (("class_maps-*.npz", 3 * 3600), ("plane-*.npz", 3600)):
        held = [runs.read_arrays(f) for f in run.parent.glob(f"arrays/{pattern}")]
        exact, refined = sorted(held, key=lambda h: "refined" in h)
        assert "refined" not in exact and np.mean(exact["labels"] == refined["labels"]) > 0.999
        assert refined["refined"].reshape(-1, 3)[:, 0].sum() < 0.7 * points
    # both lie there: the reader says which
    where = where[:2]
    assert calculate_iou.main([*load, *where, "--refine", "8", "--dry_run"]) == 0
    with pytest.raises(UsageError, match="--refine 0/8"):
        calculate_iou.main([*load, *where, "--dry_run"])


def test_probabilities_of_points_left_out_are_refused(tmp_path):
    assert main.main([*TINY, "--runs", str(tmp_path), "--imgs", "none"]) == 0
    with pytest.raises(UsageError, match="--save_probs"):
        save_preds.main(["--load_net", str(tmp_path / "regions"), "--runs", str(tmp_path), "--save_probs", "--refine",
                         "8"])
