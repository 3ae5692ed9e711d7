"""Algebra on weight dicts: closed forms, inverses, strict keys."""

import math

import pytest
import torch
from torch import nn

from landscape import weights
from landscape.errors import ContentError


def some(seed, **changes):
    g = torch.Generator().manual_seed(seed)
    w = {"a": torch.randn(3, 4, generator=g), "b": torch.randn(5, generator=g), "count": torch.tensor(seed)}
    return {**w, **changes}


def test_combine_is_the_sum_and_leaves_its_vertices_alone():
    a, b = some(1), some(2)
    before = a["a"].clone()
    c = weights.combine([a, b], [0.25, 2.0])
    assert torch.allclose(c["a"], 0.25 * a["a"] + 2 * b["a"])
    assert torch.equal(a["a"], before)
    assert c["count"] == 1  # integers come from the first vertex


def test_lerp_meets_its_ends():
    a, b = some(1), some(2)
    assert torch.equal(weights.lerp(a, b, 0)["b"], a["b"])
    assert torch.equal(weights.lerp(a, b, 1)["b"], b["b"])


def test_gradients_reach_every_vertex():
    a, b = some(1), some(2)
    a["a"].requires_grad_(), b["a"].requires_grad_()
    weights.lerp(a, b, 0.3)["a"].sum().backward()
    assert torch.allclose(a["a"].grad, torch.full((3, 4), 0.7)) and torch.allclose(b["a"].grad, torch.full((3, 4), 0.3))


def test_unflatten_undoes_flatten():
    a = some(3)
    vector = weights.flatten(a)
    assert vector.shape == (17,)
    back = weights.unflatten(vector, a)
    assert all(torch.equal(a[k], back[k]) for k in a)
    with pytest.raises(ContentError, match="16 numbers"):
        weights.unflatten(vector[:16], a)


def test_distance_and_cosine_of_known_vectors():
    a = {"x": torch.tensor([3.0, 0.0]), "y": torch.tensor([0.0])}
    b = {"x": torch.tensor([0.0, 4.0]), "y": torch.tensor([0.0])}
    assert weights.distance(a, b) == 5.0
    assert weights.cosine(a, b) == 0.0
    assert math.isclose(weights.cosine(a, a), 1.0)
    assert weights.cosine(a, {"x": torch.zeros(2), "y": torch.zeros(1)}) is None


def test_other_names_or_shapes_are_refused_by_name():
    with pytest.raises(ContentError, match="extra"):
        weights.lerp(some(1), some(2, extra=torch.zeros(1)), 0.5)
    with pytest.raises(ContentError, match=r"b \(5,\) against \(6,\)"):
        weights.distance(some(1), some(2, b=torch.zeros(6)))


def test_of_a_network_copies():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    w = weights.of(network)
    assert list(w) == list(network.state_dict())
    w["0.weight"].zero_()
    assert network[0].weight.abs().sum() > 0


def test_grams_and_cosines_are_those_of_pairs():
    points = [some(k) for k in range(4)]
    grams = weights.grams(points, ["a", "b"])
    assert sorted(grams) == ["a", "b"] and grams["a"].dtype == torch.float64
    together = weights.cosines(grams["a"] + grams["b"])
    for i, a in enumerate(points):
        for j, b in enumerate(points):
            assert math.isclose(grams["b"][i, j], (a["b"].double() * b["b"].double()).sum().item(), abs_tol=1e-12)
            assert math.isclose(together[i, j], weights.cosine(a, b), abs_tol=1e-12)
            one = weights.cosine({"a": a["a"]}, {"a": b["a"]})
            assert math.isclose(weights.cosines(grams["a"])[i, j], one, abs_tol=1e-12)


def test_a_point_of_zeros_has_no_cosine():
    nothing = {"a": torch.zeros(3), "b": torch.ones(2)}
    grams = weights.grams([nothing, {"a": torch.ones(3), "b": torch.ones(2)}], ["a", "b"])
    assert weights.cosines(grams["a"]).isnan().tolist() == [[True, True], [True, False]]
    assert weights.cosines(grams["a"] + grams["b"]).isfinite().all()
    with pytest.raises(ContentError, match=r"a \(3,\) against \(4,\)"):
        weights.grams([nothing, {"a": torch.zeros(4), "b": torch.ones(2)}], ["b"])
