"""Subspaces of any network: coefficients, gradients against hand-written layers, regulariser, frozen vertices."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import VisionTransformer

import models
from landscape import seeding, subspace, weights
from landscape.errors import ContentError, UsageError
from landscape.subspace import Subspace, rule

ALL = [("line", 2), ("chain", 3), ("chain", 4), ("curve", 3), ("curve", 5), ("simplex", 2), ("simplex", 6)]


def vertices_of(make, m, seed=0):
    """m weight dicts of a network with fresh weights, its normalisation layers moved off their beginning."""
    out = []
    for k in range(m):
        with seeding.fork(seed, "vertex", k):
            network = make()
            for p in network.parameters():
                if p.dim() < 2:
                    nn.init.normal_(p, 0.5, 0.2)
        out.append(weights.of(network))
    return out


def space(make, family="line", m=2, **settings):
    vertices = vertices_of(make, m)
    return Subspace(make(), vertices, rule(family, m), **settings), vertices


def small():
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))


# ---- families ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("family, m", ALL)
def test_coefficients_sum_to_one_and_lie_in_the_unit_interval(family, m):
    r = rule(family, m)
    with seeding.fork(0, "draw"):
        drawn = r.draw(500)
    for c in (drawn, r.centre, r.mean):
        assert torch.allclose(c.sum(-1), torch.ones(()), atol=1e-6)
        assert c.min() >= 0
    assert drawn.shape == (500, m) and drawn.unique(dim=0).shape[0] == 500


@pytest.mark.parametrize("family, m", ALL)
def test_the_mean_of_draws_is_what_it_says(family, m):
    r = rule(family, m)
    with seeding.fork(1, "draw"):
        drawn = r.draw(40_000)
    assert torch.allclose(drawn.mean(0), r.mean, atol=0.01)


def test_a_simplex_is_drawn_from_the_uniform_dirichlet():
    m = 4
    with seeding.fork(2, "draw"):
        drawn = rule("simplex", m).draw(100_000)
    variance, covariance = (m - 1) / (m**2 * (m + 1)), -1 / (m**2 * (m + 1))
    found = drawn.T.cov()
    assert torch.allclose(found.diagonal(), torch.full((m,), variance), atol=5e-4)
    assert torch.allclose(found[~torch.eye(m, dtype=bool)], torch.full((m * (m - 1),), covariance), atol=5e-4)
    # E sum c^2 = 2/(n+1): what a loss' gradient moves the drawn point by.
    assert abs(drawn.square().sum(1).mean().item() - 2 / (m + 1)) < 2e-3


def test_paths_pass_through_what_they_should():
    t = torch.tensor(0.3)
    assert torch.allclose(subspace.bezier(t, 2), torch.tensor([0.7, 0.3]))
    assert torch.allclose(subspace.bezier(t, 3), torch.tensor([0.49, 0.42, 0.09]))
    for m in (2, 3, 5):
        for path in (subspace.bezier, subspace.chain):
            assert torch.equal(path(torch.tensor(0.0), m), torch.eye(m)[0])
            assert torch.equal(path(torch.tensor(1.0), m), torch.eye(m)[-1])
    assert torch.allclose(subspace.chain(torch.tensor([0.25, 0.5]), 3), torch.tensor([[0.5, 0.5, 0], [0, 1.0, 0]]))
    assert torch.allclose(rule("curve", 3).centre, torch.tensor([0.25, 0.5, 0.25]))


@pytest.mark.parametrize("family, m", ALL)
def test_points_in_words(family, m):
    r = rule(family, m)
    assert torch.equal(r.at("centre"), r.centre)
    assert torch.equal(r.at(f"vertex={m - 1}"), torch.eye(m)[-1])
    if r.along is None:
        shares = torch.arange(1.0, m + 1) / sum(range(1, m + 1))
        assert torch.allclose(r.at("t=" + ",".join(str(float(s)) for s in shares)), shares)
    else:
        assert torch.equal(r.at("t=0.25"), r.along(torch.tensor(0.25), m))
    for wrong in (f"vertex={m}", "vertex=-1", "vertex=x", "t=1.5", "t=-0.1", "t=nan", "t=", "t=0.9,0.9", "middle", "",
                  "centre=1"):
        with pytest.raises(UsageError, match="has the points centre"):
            r.at(wrong)


@pytest.mark.parametrize("family, m, says", [
    ("simplex", 1, "one vertex is a network"), ("curve", 2, "it is a line"), ("chain", 2, "it is a line"),
    ("line", 3, "has 2 vertices"), ("star", 2, "known: line"), ("line", 1, "has 2 vertices")])
def test_families_that_do_not_exist(family, m, says):
    with pytest.raises(UsageError, match=says):
        rule(family, m)


@pytest.mark.parametrize("family, m", [("line", 2), ("simplex", 4), ("curve", 3), ("chain", 3)])
def test_pull_is_how_far_the_centre_moves(family, m):
    """A linear loss has one gradient everywhere, so the centre's step is known: lr * pull * gradient on average."""
    r = rule(family, m)
    vertices = torch.zeros(m, 5, requires_grad=True)
    with seeding.fork(3, "draw"):
        drawn = r.draw(50_000)
    (drawn @ vertices).mean(0).sum().backward()
    assert torch.allclose(r.centre @ vertices.grad, torch.full((5,), r.pull()), atol=0.01)
    assert r.pull(frozen=range(m)) == 0


# ---- against hand-written layers -----------------------------------------------------------------------------------

class TwoConvs(nn.Module):
    """A line of the network `small`, layer by layer, as the published code has it."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = (nn.ParameterDict({k.replace(".", "/"): v.clone() for k, v in w.items()
                                            if v.is_floating_point() and "running" not in k}) for w in (a, b))

    def forward(self, x, t):
        w = {k.replace("/", "."): (1 - t) * self.a[k] + t * self.b[k] for k in self.a}
        x = F.conv2d(x, w["0.weight"], w["0.bias"], padding=1)
        x = F.relu(F.batch_norm(x, None, None, w["1.weight"], w["1.bias"], training=True))
        return F.linear(x.flatten(1), w["4.weight"], w["4.bias"])

    def penalty(self):
        a, b = (torch.cat([v[k].flatten() for k in ("0/weight", "4/weight")]) for v in (self.a, self.b))
        return (a @ b) ** 2 / ((a @ a) * (b @ b))


def test_loss_and_gradients_equal_a_hand_written_line():
    line, vertices = space(small)
    twin = TwoConvs(*vertices)
    x = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8) % 4
    line.train()
    with seeding.fork(5, "step"):
        loss = F.cross_entropy(line(x), y) + line.regulariser()
    (drawn,) = line.drawn
    other = F.cross_entropy(twin(x, drawn[0, 1]), y) + twin.penalty()
    assert abs(loss - other) < 1e-6
    loss.backward()
    other.backward()
    for k, own in enumerate((twin.a, twin.b)):
        for name, gradient in line.views(line.stack.grad[k]).items():
            assert (gradient - own[name.replace(".", "/")].grad).abs().max() < 1e-6


def normalised():
    """Its LayerNorm has weights of three axes, which autocast leaves as they are."""
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.LayerNorm([3, 4, 4]), nn.Flatten(), nn.Linear(48, 4))


@pytest.mark.parametrize("make, cast", [(small, True), (normalised, False)])
def test_under_autocast_a_line_is_the_network_with_the_mixed_weights_to_the_bit(make, cast):
    line, _ = space(make)
    assert line.plain == cast
    plain, coeffs = make().to(memory_format=torch.channels_last), torch.tensor([0.25, 0.75])
    plain.load_state_dict(line.state_at(coeffs))
    x, y = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    for network, given in ((plain, ()), (line, (coeffs,))):
        network.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(network(x, *given).float(), y)
        loss.backward()
    for k, c in enumerate(coeffs):
        found = line.views(line.stack.grad[k])
        assert all(torch.equal(found[name], c * p.grad) for name, p in plain.named_parameters())


def test_layerwise_points_are_those_of_each_module():
    line, (a, b) = space(small, granularity="module")
    assert line.groups == 3  # the convolution, the BatchNorm and the linear layer
    c = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    point, order = line.point(c), {}
    for name in line.names:
        order.setdefault(name.split(".")[0], len(order))
        t = c[order[name.split(".")[0]], 1]
        assert torch.allclose(point[name], (1 - t) * a[name] + t * b[name], atol=1e-6)
    assert space(small, granularity="tensor")[0].groups == 6
    line.train()
    with seeding.fork(0, "x"):
        line(torch.randn(4, 2, 4, 4))
    assert line.drawn[0].shape == (3, 2)


def test_samples_give_each_part_of_the_batch_a_point_of_its_own():
    line, _ = space(small, samples=2)
    line.train()
    x = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with seeding.fork(0, "x"):
        said = line(x)
    first, second = line.drawn
    assert not torch.equal(first, second)
    assert torch.allclose(said, torch.cat([line(x[:3], first), line(x[3:], second)]), atol=1e-6)


@pytest.mark.parametrize(("samples", "images", "parts"), [(4, 10, 4), (4, 8, 4), (4, 7, 3), (4, 3, 1), (4, 1, 1)])
def test_a_batch_is_in_so_many_parts_of_two_images_at_least(samples, images, parts):
    line, _ = space(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), samples=samples)
    seen = []
    line.at = lambda x, coeffs: seen.append(len(x)) or x
    line.train()
    with seeding.fork(0, "x"):
        assert len(line(torch.ones(images, 2, 2))) == images
    assert len(seen) == parts and min(seen) >= min(images, 2)


def test_evaluation_is_at_the_centre():
    line, vertices = space(small, "curve", 3)
    x = torch.randn(6, 2, 4, 4)
    plain = small()
    plain.load_state_dict(line.state_at(line.centre))
    assert torch.allclose(line.eval()(x), plain.eval()(x), atol=1e-6)
    middle = weights.combine(vertices, [0.25, 0.5, 0.25])
    assert torch.allclose(plain.state_dict()["0.weight"], middle["0.weight"], atol=1e-6)


# ---- any module ----------------------------------------------------------------------------------------------------

class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids):
        return self.out(self.embed(ids).mean(1))


class Mean(nn.Module):
    """A recurrent layer's mean output."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0].mean(1)


IMAGES, SEQUENCES = (4, 3, 8, 8), (4, 5, 6)
MATRIX = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 3)), (4, 6)),
    "convolution": (lambda: nn.Conv2d(3, 4, 3), IMAGES),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.GroupNorm(2, 6)), IMAGES),
    "conv1d": (lambda: nn.Conv1d(5, 4, 3), SEQUENCES),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 2, stride=2), IMAGES),
    "batchnorm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), IMAGES),
    "embedding": (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2)), "ids"),
    "tied": (Tied, "ids"),
    "lstm": (lambda: Mean(nn.LSTM(6, 5, 2, batch_first=True)), SEQUENCES),
    "gru": (lambda: Mean(nn.GRU(6, 5, batch_first=True, bidirectional=True)), SEQUENCES),
    "attention": (lambda: nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True), SEQUENCES),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), SEQUENCES),
    "resnet": (lambda: models.build("resnet20", 10, width=4, image_size=8), IMAGES),
    "vit": (lambda: models.build("vit4", 10, width=16, image_size=8), IMAGES),
    "mixer": (lambda: models.build("mlpmixer4", 10, width=16, image_size=8), IMAGES),
}  # fmt: skip


@pytest.mark.parametrize("kind", MATRIX)
def test_any_module_mixes_as_a_network_with_the_mixed_weights(kind):
    make, shape = MATRIX[kind]
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 9, (4, 5), generator=g) if shape == "ids" else torch.randn(shape, generator=g)
    for granularity in ("network", "module"):
        simplex, vertices = space(make, "simplex", 3, granularity=granularity)
        subspace.check_call(make(), vertices[1], x)
        coeffs = torch.tensor([0.2, 0.5, 0.3])
        plain = make()
        plain.load_state_dict({**plain.state_dict(), **weights.combine(vertices, coeffs.tolist())})
        for network in (plain, simplex):
            network.train()
        with seeding.fork(0, "dropout"):
            wanted = plain(x)
        with seeding.fork(0, "dropout"):
            assert torch.allclose(simplex(x, coeffs), wanted, atol=1e-5)
        assert simplex.state_at(coeffs).keys() == plain.state_dict().keys()
        for k in range(3):  # a vertex is the stored network
            plain.load_state_dict(vertices[k])
            plain.eval(), simplex.eval()
            simplex.shell.load_state_dict({k: v for k, v in vertices[k].items() if k in simplex.buffers_of_shell()},
                                          strict=False)
            assert torch.allclose(simplex(x, torch.eye(3)[k]), plain(x), atol=1e-5)
        simplex.train()
        with seeding.fork(0, "draw"):
            simplex(x).square().sum().backward()
        moved = simplex.stack.grad.view(3, -1)
        assert (moved.abs().sum(1) > 0).all()
        dead = [k for k, w in simplex.views(moved.abs().sum(0)).items() if not w.any()]
        assert all("bias" in k for k in dead), dead  # before a normalisation a bias does nothing


@pytest.mark.parametrize("make", [
    lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.ReLU(), nn.Linear(4, 3)),
    lambda: VisionTransformer(image_size=4, patch_size=2, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8),
])
def test_networks_that_begin_with_a_head_of_zeros_can_be_mixed(make):
    a, b = make(), make()
    for head in (list(a.modules())[-1], list(b.modules())[-1]):
        nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    subspace.check_call(a, weights.of(b), torch.randn(2, 3, 4, 4))


class Hoarder(nn.Module):
    """Copies its weight elsewhere: a mix cannot reach the copy."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.hidden = [self.weight.detach()]

    def forward(self, x):
        return x @ self.hidden[0]


class Peeking(nn.Linear):
    """Looks at its weights as numbers of their own."""

    def forward(self, x):
        return x @ nn.Parameter(self.weight.T) + self.missing


def test_networks_that_cannot_be_mixed_are_refused():
    x = torch.randn(2, 3)
    for make, says in ((Hoarder, "copies of them elsewhere"), (lambda: Peeking(3, 3), "cannot be called with weights")):
        _, b = vertices_of(make, 2)
        network = make()
        before = weights.of(network)
        with pytest.raises(UsageError, match=says):
            subspace.check_call(network, b, x)
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    for network, says in ((nn.ReLU(), "nothing to mix"), (nn.LazyLinear(3), "no shape yet"),
                          (nn.Linear(3, 3).double(), "float64"), (torch.jit.script(nn.Linear(3, 3)), "ScriptModule")):
        with pytest.raises(UsageError, match=says):
            Subspace(network, [{}, {}], rule("line", 2))


def test_vertices_of_another_architecture_are_refused():
    a, b = vertices_of(small, 2)
    with pytest.raises(ContentError, match="lacks 4.bias"):
        Subspace(small(), [a, {k: v for k, v in b.items() if k != "4.bias"}], rule("line", 2))
    with pytest.raises(ContentError, match=r"4.weight \(5, 48\)"):
        Subspace(small(), [a, {**b, "4.weight": torch.zeros(5, 48)}], rule("line", 2))
    with pytest.raises(ContentError, match="was given 2"):
        Subspace(small(), [a, b], rule("simplex", 3))
    with pytest.raises(UsageError, match="known: network"):
        Subspace(small(), [a, b], rule("line", 2), granularity="block")


# ---- regulariser ---------------------------------------------------------------------------------------------------

def plain_cosines(vertices, per_layer):
    out = []
    for a, b in itertools.combinations(vertices, 2):
        names = [k for k in a if a[k].dim() > 1]
        pairs = [(a[k].flatten(), b[k].flatten()) for k in names]
        if not per_layer:
            pairs = [tuple(torch.cat(v) for v in zip(*pairs))]
        out.append(sum(float((u @ v) ** 2 / ((u @ u) * (v @ v))) for u, v in pairs) / len(pairs))
    return out


@pytest.mark.parametrize("per_layer", [False, True])
def test_the_gram_regulariser_equals_loops_over_pairs(per_layer):
    simplex, vertices = space(small, "simplex", 4)
    found = simplex.squared_cosines(per_layer)
    assert torch.allclose(found, torch.tensor(plain_cosines(vertices, per_layer)), atol=1e-6)
    assert torch.allclose(simplex.regulariser("all", per_layer), found.mean())
    with seeding.fork(0, "pairs"):
        drawn = torch.stack([simplex.regulariser("sampled", per_layer) for _ in range(600)])
    near = (drawn.unsqueeze(1) - found).abs() < 1e-6
    assert near.any(1).all() and near.any(0).all()  # every pair, and on average the mean over all
    assert abs(drawn.mean() - found.mean()) < 4 * drawn.std() / math.sqrt(600)


@pytest.mark.parametrize("per_layer", [False, True])
def test_its_gradient_equals_finite_differences(per_layer):
    simplex, _ = space(lambda: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), "simplex", 3)
    simplex.double()
    simplex.regulariser("all", per_layer).backward()
    step = 1e-6
    for place in [(0, 0), (1, 4), (2, 9), (1, 10), (2, 13)]:  # the last two are of biases, which do not count
        with torch.no_grad():
            simplex.stack[place] += step
            high = simplex.regulariser("all", per_layer)
            simplex.stack[place] -= 2 * step
            low = simplex.regulariser("all", per_layer)
            simplex.stack[place] += step
        assert abs((high - low) / (2 * step) - simplex.stack.grad[place]) < 1e-8
    assert simplex.stack.grad[:, 10:].abs().max() == 0


def test_decay_of_the_point_is_that_of_the_mixed_weights():
    line, (a, b) = space(small)
    line.train()
    with seeding.fork(0, "x"):
        line(torch.randn(4, 2, 4, 4))
    c = line.drawn[0][0]
    mixed = weights.combine([a, b], c.tolist())
    wanted = 0.1 / 2 * sum((mixed[k] ** 2).sum() for k in line.names)
    assert torch.allclose(line.drawn_decay(0.1), wanted, rtol=1e-5)


# ---- frozen vertices, memory, disk ---------------------------------------------------------------------------------

def test_a_curve_with_fixed_ends_trains_its_middle_alone():
    curve, vertices = space(small, "curve", 3, frozen=(0, 2))
    optimiser = torch.optim.SGD(curve.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    x, y = torch.randn(8, 2, 4, 4), torch.arange(8) % 4
    curve.train()
    with seeding.fork(0, "x"):
        for _ in range(3):
            optimiser.zero_grad()
            (F.cross_entropy(curve(x), y) + curve.regulariser("all")).backward()
            optimiser.step()
    for k in (0, 2):
        assert all(torch.equal(w, vertices[k][name]) for name, w in curve.vertex(k).items())  # to the bit
    assert not torch.equal(curve.vertex(1)["0.weight"], vertices[1]["0.weight"])
    assert torch.equal(curve.point(torch.tensor([1.0, 0, 0]))["0.weight"], vertices[0]["0.weight"])
    assert torch.equal(curve.point(torch.tensor([0, 0, 1.0]))["0.weight"], vertices[2]["0.weight"])
    with pytest.raises(UsageError, match="all 2 vertices are fixed"):
        space(small, frozen=(0, 1))


def test_a_frozen_vertex_can_be_overwritten():
    line, vertices = space(small, frozen=(1,))
    line.set_vertex(1, vertices[0])
    assert torch.equal(line.vertex(1)["4.weight"], vertices[0]["4.weight"])
    assert torch.allclose(line.point(torch.tensor([0.3, 0.7]))["4.weight"], vertices[0]["4.weight"], atol=1e-6)


class Counting(TorchDispatchMode):
    """Counts operations, views among them: in a small network on a GPU the time of a step is that of starting them."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("family, m", [("line", 2), ("simplex", 6)])
def test_a_step_has_few_operations_more_than_one_of_the_network(family, m):
    vertices = vertices_of(lambda: models.build("resnet20", 10), m)
    counts = []
    for network in (models.build("resnet20", 10), Subspace(models.build("resnet20", 10), vertices, rule(family, m))):
        network.train()
        x, y = torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])
        with Counting() as ops:
            apart = network.regulariser() if isinstance(network, Subspace) else 0
            (F.cross_entropy(network(x), y) + apart).backward()
        counts.append(ops.count)
    tensors = len(list(models.build("resnet20", 10).parameters()))
    assert 0 < counts[1] - counts[0] <= 2 * tensors + 41, counts  # a view of each, there and back, and 41 that compute


@pytest.mark.parametrize("k", [0, 1])
def test_vertices_are_laid_out_as_convolutions_want_them(k):
    line, vertices = space(small)
    held = line.vertex(k)
    assert held["0.weight"].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(held[name], vertices[k][name]) for name in line.names)


def test_m_vertices_hold_m_networks_and_nothing_more():
    simplex, vertices = space(small, "simplex", 5)
    one = sum(p.numel() for p in small().parameters())
    assert sum(p.numel() for p in simplex.parameters() if p.requires_grad) == 5 * one
    assert sum(p.numel() for p in simplex.parameters()) == 5 * one
    assert simplex.row(2).data_ptr() == simplex.vertex(2)[simplex.names[0]].data_ptr()  # views, not copies


def test_what_is_saved_comes_back():
    curve, vertices = space(small, "curve", 3, frozen=(0,))
    curve.train()
    with seeding.fork(0, "x"):
        curve(torch.randn(4, 2, 4, 4))
    held = {k: v.clone() for k, v in curve.state_dict().items()}
    assert {"vertices.0.0.weight", "vertices.2.4.bias", "buffers.1.running_mean"} <= held.keys()
    assert all(torch.equal(held[f"vertices.{k}.{n}"], vertices[k][n]) for k in range(3) for n in curve.names)
    other, _ = space(small, "curve", 3)
    with torch.no_grad():
        other.stack.zero_()
    other.load_state_dict(held)
    assert all(torch.equal(v, held[k]) for k, v in other.state_dict().items())
    plain = small()
    plain.load_state_dict(subspace.state_of(held, {"family": "curve", "tied": {}}, "t=0.3"))
    assert torch.allclose(plain[0].weight, curve.point(curve.rule.at("t=0.3"))["0.weight"], atol=1e-6)
    with pytest.raises(ContentError, match="not the weights of a line"):
        space(small)[0].load_state_dict(held)
    with pytest.raises(ContentError, match="no weight of a subspace"):
        subspace.split_state(small().state_dict())


def test_a_noisy_vertex_has_the_noise_that_was_asked_for():
    wide = {"w": torch.full((200, 200), 3.0), "n": torch.tensor(7)}
    out = subspace.noisy(wide, 0.1, torch.Generator().manual_seed(0))
    assert abs((out["w"] - 3).std() - 0.3) < 0.01 and abs((out["w"] - 3).mean()) < 0.01
    assert out["n"] == 7 and torch.equal(wide["w"], torch.full((200, 200), 3.0))
