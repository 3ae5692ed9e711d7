"""Axes of every model, permutations that leave the function alone, and matching that finds what was planted."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import models
from landscape import permute, weights
from landscape.errors import ContentError
from models import ModelError
from models.axes import Axis, axes_of, join, spread, tile, units
from tests.test_models import OURS, SMALL, drawn_inputs

torch.set_num_threads(1)


def drawn(name, seed=0, width=None, classes=5):
    """A small network of MODELS whose vectors and statistics are drawn too: fresh ones are all 0 or 1."""
    row = models.entry(name)
    size = max(row.min_size, 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = SMALL.get(row.width, 0) if width is None else width
        network = models.build(name, classes, in_channels=3, image_size=size, width=width).eval()
        for key, tensor in network.state_dict().items():
            if tensor.dim() == 1:
                low = 0.5 if key.endswith(("weight", "running_var")) else -0.5
                tensor.uniform_(low, low + 1)
        return network, drawn_inputs(row, 4, 3, size)


def logits(network, w, x):
    return torch.func.functional_call(network, w, (x,))


# ---- every row of the table ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [*OURS, "wrn-16-2"])
def test_a_random_permutation_leaves_the_function_unchanged(name):
    network, x = drawn(name)
    axes, own = axes_of(network), weights.of(network)
    assert set(axes.tensors) == {k for k in own if not k.endswith("num_batches_tracked")}
    assert all(tuple(a.size for a in axes.tensors[k]) == own[k].shape for k in axes.tensors)
    perms = permute.random(axes, 3)
    permuted = permute.apply(own, axes, perms)
    assert permute.distance(own, permuted) > 0.1
    assert permute.check(network, own, axes, perms, x) < 1e-9
    wide = x.double() if x.is_floating_point() else x
    for train in (False, True):  # said again without the check's machinery
        network.double().train(train)
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        before, after = ({k: v.double() for k, v in w.items()} for w in (own, permuted))
        with torch.no_grad():
            assert torch.allclose(logits(network, before, wide), logits(network, after, wide), atol=1e-9)
    weights.check_same(own, permuted)
    back = permute.apply(permuted, axes, permute.inverse(perms))
    assert all(torch.equal(back[k], own[k]) for k in own)


@pytest.mark.parametrize("name", OURS)
def test_a_planted_permutation_is_recovered_exactly(name):
    network, _ = drawn(name)
    axes, own = axes_of(network), weights.of(network)
    planted = permute.apply(own, axes, permute.random(axes, 5))
    found = permute.align(own, planted, axes)
    assert all(torch.equal(found[k], own[k]) for k in own)


def test_groups_are_those_of_the_architecture():
    def groups(name, **more):
        with torch.device("meta"):
            network = models.build(name, 10, **more)
        return axes_of(network).groups

    assert len(groups("resnet18")) == 12 and sum(groups("resnet18").values()) == 2880
    assert len(groups("wrn-16-1")) == 9 and len(groups("wrn-22-2")) == 13
    assert len(groups("densenet-40-12")) == 39  # a stem, 36 layers, 2 transitions
    assert len(groups("vgg19_bn")) == 16
    assert groups("mlp", in_channels=1, image_size=28) == {"fc1": 256, "fc2": 256}
    resnet20 = groups("resnet20")  # two stages add channels to one stream; 9 blocks
    assert resnet20["conv1"] == resnet20["layer2.0.shortcut"] == 16 and len(resnet20) == 12
    heads = {k: v for k, v in groups("vit4").items() if k.endswith("heads")}
    assert set(heads.values()) == {8} and len(heads) == 6


def test_omitted_groups_are_the_last_stream_of_a_resnet_and_all_of_a_densenet():
    assert axes_of(drawn("resnet18")[0]).omitted == {"layer4.0.shortcut.0"}
    dense = axes_of(drawn("densenet-40-12")[0])
    assert dense.omitted == set(dense.groups)
    assert not axes_of(drawn("wrn-16-1")[0]).omitted


def test_axis_arithmetic():
    two, three = units("a", 2), units("b", 3)
    both = join(two, three, two)
    assert both.size == 7
    assert both.places["a"].tolist() == [[0, 5], [1, 6]] and both.places["b"].tolist() == [[2], [3], [4]]
    assert spread(two, 3).places["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tile(spread(two, 2), 2).places["a"].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    perms = {"a": torch.tensor([1, 0]), "b": torch.tensor([2, 0, 1])}
    assert permute.index(both, perms).tolist() == [1, 0, 4, 2, 3, 6, 5]


def test_a_network_of_unknown_axes_says_so():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(x.flatten(1))

    for network in (Strange(), nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten()), nn.Sequential(nn.Softplus())):
        with pytest.raises(ModelError, match="--align none"):
            axes_of(network)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 2))  # somebody's own is understood
    assert axes_of(plain).groups == {"1": 6}


# ---- the check -----------------------------------------------------------------------------------------------------

def test_wrong_axes_are_found_with_the_layer():
    network, x = drawn("resnet20")
    axes, own = axes_of(network), weights.of(network)
    perms = permute.random(axes, 1)
    name = "layer2.1.conv2.weight"
    rows, columns, *kernel = axes.tensors[name]
    broken = {**axes.tensors, name: (rows, Axis(columns.size, {}), *kernel)}
    wrong = type(axes)(broken, axes.groups, axes.omitted)
    with pytest.raises(ContentError, match=r"first at layer2\.1\.conv2 \(in eval mode"):
        permute.check(network, own, wrong, perms, x)
    statistics = {k: v for k, v in axes.tensors.items() if k != "layer1.0.bn1.running_mean"}
    with pytest.raises(ContentError, match=r"first at layer1\.0\.bn1 "):
        permute.check(network, own, type(axes)(statistics, axes.groups, axes.omitted), perms, x)
    assert ContentError.exit_code == 4
    assert all(torch.equal(v, own[k]) for k, v in network.state_dict().items()) and not network.training


# ---- matching ------------------------------------------------------------------------------------------------------

def pair(name="mlp", width=6):
    (one, x), (other, _) = drawn(name, 1, width), drawn(name, 2, width)
    return one, weights.of(one), weights.of(other), axes_of(one), x


def test_a_permutation_planted_in_biases_alone_is_recovered():
    _, own, _, axes, _ = pair()
    own = {k: v if k.endswith("bias") else torch.zeros_like(v) for k, v in own.items()}
    planted = permute.apply(own, axes, permute.random(axes, 2))
    assert permute.distance(own, planted) > 0
    assert permute.distance(own, permute.align(own, planted, axes)) == 0
    assert permute.distance(own, permute.align(own, planted, axes, as_published=True)) > 0  # vectors do not count there


def test_matching_finds_the_nearest_of_all_permutations():
    """Against all 4! x 4! of them; coordinate descent may end in a local optimum, so restarts."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    axes = axes_of(network)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        a, b = ({k: torch.randn(v.shape, generator=generator) for k, v in network.state_dict().items()}
                for _ in range(2))
        every = [torch.tensor(p) for p in itertools.permutations(range(4))]
        least = min(permute.distance(a, permute.apply(b, axes, {"1": p, "3": q})) for p in every for q in every)
        one = permute.distance(a, permute.align(a, b, axes))
        more = permute.distance(a, permute.align(a, b, axes, restarts=20))
        assert least <= more + 1e-9 and more <= one and more == pytest.approx(least, rel=1e-6)
        assert one < permute.distance(a, b)


def test_a_sweep_ends_where_no_group_gains_and_a_warm_start_stays_there():
    _, a, b, axes, _ = pair("resnet20", 4)
    (found,) = permute.match(a, [b], axes)
    far = permute.distance(a, permute.apply(b, axes, found))
    for group, perm in found.items():  # no swap of neighbours in any group comes nearer
        for i in range(len(perm) - 1):
            j = i + 1
            swapped = perm.clone()
            swapped[[i, j]] = perm[[j, i]]
            assert permute.distance(a, permute.apply(b, axes, {**found, group: swapped})) > far - 1e-4
    (again,) = permute.match(a, [b], axes, starts=[found], seed=7)
    assert all(torch.equal(again[g], found[g]) for g in found)


def test_many_at_once_are_those_of_one_at_a_time():
    _, a, b, axes, _ = pair("resnet20", 4)
    others = [b, weights.of(drawn("resnet20", 3, 4)[0]), permute.apply(a, axes, permute.random(axes, 1))]
    together = permute.match(a, others, axes)
    for other, perms in zip(others, together):
        (alone,) = permute.match(a, [other], axes)
        assert all(torch.equal(alone[g], perms[g]) for g in alone)
    assert permute.distance(a, permute.apply(others[2], axes, together[2])) == 0


def test_as_published_leaves_the_omitted_groups_and_comes_less_near():
    one, a, b, axes, x = pair("resnet18", 4)
    (right,), (published,) = permute.match(a, [b], axes, restarts=3), permute.match(a, [b], axes, as_published=True)
    last = published["layer4.0.shortcut.0"]
    assert torch.equal(last, torch.arange(len(last)))
    assert permute.distance(a, permute.apply(b, axes, right)) < permute.distance(a, permute.apply(b, axes, published))
    permute.check(one, b, axes, published, x)


def test_matching_is_reproducible_and_leaves_its_arguments_alone():
    _, a, b, axes, _ = pair("resnet20", 4)
    before = {k: v.clone() for k, v in b.items()}
    (one,), (two,) = permute.match(a, [b], axes, seed=4), permute.match(a, [b], axes, seed=4)
    assert all(torch.equal(one[g], two[g]) for g in one)
    assert all(torch.equal(b[k], before[k]) for k in b)
    with pytest.raises(ContentError, match="shapes"):
        permute.match(a, [weights.of(drawn("resnet20", 1, 8)[0])], axes)


def test_together_recovers_permuted_copies():
    _, a, _, axes, _ = pair("vgg11_bn", 4)
    copies = [permute.apply(a, axes, permute.random(axes, seed)) for seed in range(3)]
    perms = permute.match_together(copies, axes)
    first, *rest = [permute.apply(w, axes, p) for w, p in zip(copies, perms)]
    assert all(permute.distance(first, other) == 0 for other in rest)
    (alone,) = permute.match_together(copies[:1], axes)
    assert all(torch.equal(alone[group], perm) for group, perm in permute.identity(axes).items())


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet20", "densenet-40-12", "vit4", "mlpmixer4"])
def test_activation_matching_recovers_a_planted_permutation(name):
    network, _ = drawn(name)
    x = 3 * torch.randn(64, 3, *[max(models.entry(name).min_size, 8)] * 2, generator=torch.Generator().manual_seed(0))
    axes, own = axes_of(network), weights.of(network)
    planted = permute.random(axes, 6)
    found = permute.match_activations(network, own, permute.apply(own, axes, planted), axes, lambda: x.split(32))
    back = permute.compose(planted, found)
    right = torch.cat([perm == torch.arange(len(perm)) for perm in back.values()]).float().mean()
    assert right > (0.8 if name == "lenet" else 0.99)  # units that are silent on all images correlate with nothing


def test_correlations_are_numpys():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(3, 50)), generator.normal(size=(3, 50))
    b[2] = 1.0  # always the same
    sums = {}
    for part in np.split(np.arange(50), 5):
        permute.add(sums, 0, torch.tensor(a[:, part]), torch.tensor(b[:, part]))
    found = permute.correlation(*sums[0]).numpy()
    wanted = np.corrcoef(a, b[:2])[:3, 3:]
    assert np.allclose(found[:, :2], wanted, atol=1e-6) and not found[:, 2].any()


def test_sinkhorn_never_ends_farther_than_it_began_and_comes_near_the_descent():
    _, a, b, axes, _ = pair("mlp", 8)
    begun = permute.distance(a, b)
    descent = permute.distance(a, permute.align(a, b, axes, restarts=5))
    for lr in (0.1, 10.0):  # the second runs away; what it met on the way is kept
        found = permute.distance(a, permute.apply(b, axes, permute.sinkhorn(a, b, axes, steps=40, lr=lr)))
        assert found < begun
    near = permute.distance(a, permute.apply(b, axes, permute.sinkhorn(a, b, axes, steps=60)))
    assert near - descent < 0.3 * (begun - descent)
    start = permute.match(a, [b], axes)[0]
    kept = permute.sinkhorn(a, b, axes, start=start, steps=3)
    assert permute.distance(a, permute.apply(b, axes, kept)) <= permute.distance(a, permute.apply(b, axes, start))


def test_a_soft_permutation_that_is_hard_is_the_permutation():
    network, _ = drawn("lenet")
    axes, own = axes_of(network), weights.of(network)
    perms = permute.random(axes, 2)
    soft = {g: nn.functional.one_hot(p).float() for g, p in perms.items()}
    hard = permute.apply(own, axes, perms)
    for name, table in axes.tensors.items():
        assert torch.equal(permute.softened(own[name], table, soft), hard[name])
    square = permute.doubly_stochastic(torch.randn(5, 5), 50)
    assert torch.allclose(square.sum(0), torch.ones(5), atol=1e-3) and torch.allclose(square.sum(1), torch.ones(5))
