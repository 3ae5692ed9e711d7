"""Planes: the geometry against exact cases and a slow twin, the draws against Python's own generator."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape import plane


def anchors_of(seed, shape=(3, 8, 8), scale=1.0):
    return tuple(torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed)) * scale)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(3, 8, 8), (1, 5, 5), (7,), (2,)]),
    st.sampled_from([0.01, 1.0, 50.0]),
)
def test_the_plane_holds_its_anchors_and_its_basis_is_orthonormal(seed, shape, scale):
    xs = anchors_of(seed, shape, scale)
    p = plane.through(*xs)
    again = plane.points(p, p.anchors.float())
    assert again.shape == (3, *shape)
    assert (again - torch.stack(xs)).abs().max() < 1e-5 * max(1, scale)
    assert abs(torch.dot(p.u, p.w)) < 1e-6
    assert abs(p.u.norm() - 1) < 1e-6 and abs(p.w.norm() - 1) < 1e-6
    assert p.anchors[0].tolist() == [0, 0] and p.anchors[1, 1] == 0 and p.anchors[2, 1] > 0


def test_a_third_anchor_behind_the_first_widens_the_box_to_the_left():
    p = plane.through(torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 4.0]))
    assert p.anchors.tolist() == [[0, 0], [2, 0], [-1, 4]]
    assert plane.extent(p, 0.5, 1.0) == (-1 - 1.5, 2 + 3, -2, 8)
    beyond = plane.through(torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.0]), torch.tensor([5.0, -4.0]))
    assert plane.extent(beyond, 0, 0) == (0, 5, 0, 4)


def test_the_grid_is_a_double_loop_with_x_slow_and_both_ends():
    p = plane.through(*anchors_of(3))
    left, right, bottom, top = plane.extent(p, 0.1, 0.3)
    coords = plane.grid(p, 7, 0.1, 0.3)
    i = 0
    for x in np.linspace(left, right, 7):
        for y in np.linspace(bottom, top, 7):
            assert np.allclose(coords[i], [x, y], rtol=1e-6, atol=1e-6)
            i += 1
    assert len(coords) == i


def test_points_equal_the_formula_one_by_one_and_fill_a_given_buffer():
    p = plane.through(*anchors_of(4))
    coords = plane.grid(p, 9)
    buffer = torch.full((100, 3, 8, 8), float("nan"))
    for batch in coords.split(32):
        found = plane.points(p, batch, out=buffer)
        assert found.data_ptr() == buffer.data_ptr()
        for point, (a, b) in zip(found, batch):
            slow = p.origin.double() + a.double() * p.u.double() + b.double() * p.w.double()
            assert (point.flatten() - slow).abs().max() < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plane.points(p, batch), found)


def test_coords_of_undoes_points_and_measures_the_distance_off_the_plane():
    p = plane.through(*anchors_of(5))
    coords = plane.grid(p, 6)
    on = plane.points(p, coords)
    back, off = plane.coords_of(p, on)
    assert (back - coords).abs().max() < 1e-4 and off.max() < 1e-4
    normal = torch.randn(p.origin.numel(), generator=torch.Generator().manual_seed(0))
    normal -= p.basis.T @ (p.basis @ normal)
    normal *= 3 / normal.norm()
    back, off = plane.coords_of(p, on + normal.view(p.shape))
    assert (back - coords).abs().max() < 1e-4 and (off - 3).abs().max() < 1e-4


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2)])
def test_equal_anchors_are_refused_by_name(pair):
    xs = list(anchors_of(6))
    xs[pair[1]] = xs[pair[0]].clone()
    with pytest.raises(plane.PlaneError, match=f"{pair[0] + 1} and {pair[1] + 1} are equal"):
        plane.through(*xs)


@pytest.mark.parametrize("share", [-0.5, 0.25, 1.0 + 1e-3, 3.0])
def test_collinear_anchors_are_refused_also_after_rounding(share):
    x1, x2, _ = anchors_of(7)
    with pytest.raises(plane.PlaneError, match="one line"):
        plane.through(x1, x2, x1 + share * (x2 - x1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_anchors_that_are_no_points_are_refused(bad):
    xs = anchors_of(8)
    xs[1][0, 0, 0] = bad
    with pytest.raises(plane.PlaneError, match="anchor 2"):
        plane.through(*xs)
    with pytest.raises(plane.PlaneError, match="shapes"):
        plane.through(xs[0], xs[0], torch.zeros(3))
    with pytest.raises(plane.PlaneError, match="at least 2"):
        plane.grid(plane.through(*anchors_of(8)), 1)
    with pytest.raises(plane.PlaneError, match="no area"):
        plane.extent(plane.through(*anchors_of(8)), -0.6, -0.5)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, 4), min_size=3, max_size=60).filter(lambda v: len(set(v)) > 2),
)
def test_triplets_have_three_labels_and_depend_on_their_seed_alone(seed, labels):
    first = plane.random_triplet(labels, torch.Generator().manual_seed(seed))
    torch.manual_seed(1), random.seed(1)
    assert plane.random_triplet(torch.tensor(labels), torch.Generator().manual_seed(seed)) == first
    assert len({labels[i] for i in first}) == 3


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_published_triplets_are_those_of_pythons_generator(seed):
    labels = np.random.default_rng(0).integers(0, 10, 10_000)
    random.seed(seed, version=2)
    taken, expected = [], []
    while len(expected) < 3:
        i = random.randint(0, len(labels) - 1)
        if labels[i] not in taken:
            taken.append(labels[i])
            expected.append(i)
    state = random.getstate()
    assert plane.published_triplet(labels, seed) == tuple(expected)
    assert random.getstate() == state


def test_two_classes_hold_no_triplet():
    with pytest.raises(plane.PlaneError, match="three classes"):
        plane.published_triplet([0, 1, 0, 1], 0)
