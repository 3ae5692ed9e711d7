"""Logits, BatchNorm re-estimation and class maps against plain twins."""

import numpy as np
import pytest
import torch
from torch import nn

import models
from landscape import data, evaluate, plane, weights
from landscape.errors import ContentError

torch.set_num_threads(1)
ENTRY = data.entry("digits")
PLAIN = data.normalization("dataset", ENTRY)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", train_size=300)


def trained_a_little(name="resnet20", steps=30, width=8):
    """A network whose BatchNorm statistics and boundaries are not those of the initialisation."""
    torch.manual_seed(0)
    network = models.build(name, 10, in_channels=1, image_size=8, width=width)
    images = data.load("digits", train_size=300).train
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    for step in range(steps):
        rows = torch.arange(step * 50, step * 50 + 50) % 300
        loss = nn.functional.cross_entropy(network(images.batch(rows, PLAIN)), images.labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return trained_a_little()


def test_logits_do_not_depend_on_the_batch_and_keep_the_mode(digits, network):
    network.train()
    all_at_once = evaluate.logits(network, digits.test, PLAIN, bs=360)
    assert network.training
    in_parts = evaluate.logits(network, digits.test, PLAIN, bs=77)
    assert torch.allclose(all_at_once, in_parts, atol=1e-4)
    some = evaluate.logits(network, digits.test, PLAIN, rows=torch.tensor([5, 3]))
    assert torch.allclose(some, all_at_once[[5, 3]], atol=1e-4)
    network.eval()


def test_score_of_no_images_is_null(digits, network):
    assert evaluate.score(network, digits.val, PLAIN) == {"loss": None, "accuracy": None}


def test_many_points_in_one_pass_equal_one_network_each(digits, network):
    other = models.build("resnet20", 10, in_channels=1, image_size=8, width=8).eval()
    points = [weights.lerp(weights.of(network), weights.of(other), t) for t in (0.0, 0.4, 1.0)]
    together = evaluate.logits_at(network, points, digits.test, PLAIN, bs=100)
    for w, said in zip(points, together):
        other.load_state_dict(w)
        assert torch.allclose(evaluate.logits(other, digits.test, PLAIN), said, atol=1e-4)


# ---- BatchNorm -----------------------------------------------------------------------------------------------------


def big_batch_statistics(network, images):
    """The slow twin: one forward pass of everything in train mode with momentum 1."""
    import copy

    twin = copy.deepcopy(network)
    for m in twin.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()
            m.momentum = 1.0
            m.train()
    with torch.no_grad():
        twin(images.batch(torch.arange(len(images)), PLAIN))
    return twin.state_dict()


def test_reestimated_statistics_equal_one_big_batch(digits):
    network = trained_a_little(steps=3)
    expected = big_batch_statistics(network, digits.train)
    before = weights.of(network)
    evaluate.reestimate_bn(network, digits.train, PLAIN, bs=300)
    for k, v in network.state_dict().items():
        if "running" in k:
            assert torch.allclose(v, expected[k], rtol=1e-4, atol=1e-6), k
        else:
            assert torch.equal(v, before[k]), k
    assert not network.training


def test_statistics_are_pooled_over_unequal_batches(digits):
    network = trained_a_little(steps=3)
    expected = big_batch_statistics(network, digits.train)
    evaluate.reestimate_bn(network, digits.train, PLAIN, bs=128)  # 128, 128, 44
    for k in ("bn1.running_mean", "bn1.running_var"):  # the first layer sees the same inputs in any batch
        assert torch.allclose(network.state_dict()[k], expected[k], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("how", "momentum"), [("cumulative", None), ("ema", evaluate.MOMENTUM)])
def test_averages_over_batches_are_those_of_torch(digits, how, momentum):
    """The slow twin: BatchNorm's own running statistics over one pass of the same augmented batches."""
    import copy

    network, augment = trained_a_little(steps=3), data.parse_augment("crop", ENTRY)
    draws, rows = digits.train.draw(augment, torch.Generator().manual_seed(1)), torch.randperm(300)
    twin = copy.deepcopy(network)
    for m in twin.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()
            m.momentum = momentum
            m.train()
    with torch.no_grad():
        for x, _, _ in digits.train.batches(rows, 128, PLAIN, augment, draws):
            twin(x)
    evaluate.reestimate_bn(network, digits.train, PLAIN, rows=rows, bs=128, how=how, augment=augment, draws=draws)
    for k, v in twin.state_dict().items():
        if "running" in k:
            assert torch.allclose(network.state_dict()[k], v, rtol=1e-3, atol=1e-5), k


def test_each_point_gets_its_own_statistics_and_the_network_is_left_alone(digits, network):
    own = weights.of(network)
    other = weights.of(models.build("resnet20", 10, in_channels=1, image_size=8, width=8))
    points = [weights.lerp(own, other, t) for t in (0.0, 0.5)]
    new = evaluate.reestimate_bn(network, digits.train, PLAIN, points=points, bs=300)
    assert all(torch.equal(v, own[k]) for k, v in network.state_dict().items())
    for w, n in zip(points, new):
        network.load_state_dict(w)
        expected = big_batch_statistics(network, digits.train)
        assert torch.allclose(n["layer1.0.bn1.running_var"], expected["layer1.0.bn1.running_var"], rtol=1e-4)
    network.load_state_dict(own)


def test_a_diverged_point_leaves_the_statistics_of_the_others_alone(digits, network):
    own = weights.of(network)
    diverged = {k: v * float("nan") if k == "conv1.weight" else v for k, v in own.items()}
    alone = evaluate.reestimate_bn(network, digits.train, PLAIN, points=[own], bs=300)[0]
    bad, good = evaluate.reestimate_bn(network, digits.train, PLAIN, points=[diverged, own], bs=150)
    assert bad["bn1.running_mean"].isnan().all()
    assert all(v.isfinite().all() for v in good.values())
    assert torch.allclose(good["bn1.running_var"], alone["bn1.running_var"], rtol=1e-4)


def test_batch_statistics_leaves_the_running_ones_even_after_an_error(digits, network):
    own = weights.of(network)
    with pytest.raises(RuntimeError), evaluate.batch_statistics(evaluate.norm_layers(network)) as sums:
        network(digits.train.batch(torch.arange(8), PLAIN))
        assert len(sums) == len(evaluate.norm_layers(network))
        raise RuntimeError
    kept = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    assert all(torch.equal(v, own[k]) for k, v in kept.items())


def test_a_network_without_batchnorm_is_passed_through(digits):
    mlp = models.build("mlp", 10, in_channels=1, image_size=8)
    points = [weights.of(mlp)]
    assert evaluate.reestimate_bn(mlp, digits.train, PLAIN, points=points) is points


# ---- class maps ----------------------------------------------------------------------------------------------------


def plain_class_map(network, images, ids, resolution, low, high, mean, std):
    """A reading of the definition, point by point: anchors normalised, Gram-Schmidt, grid with x slow and y fast."""
    x = [(images.images[i].permute(2, 0, 1).numpy() / 255.0 - mean) / std for i in ids]
    d1, d2 = (x[1] - x[0]).ravel(), (x[2] - x[0]).ravel()
    u = d1 / np.linalg.norm(d1)
    p = u @ d2
    q = np.linalg.norm(d2 - p * u)
    w = (d2 - p * u) / q
    left, right, top = min(0, p), max(np.linalg.norm(d1), p), q
    xs = np.linspace(left - low * (right - left), right + high * (right - left), resolution)
    ys = np.linspace(-low * top, top + high * top, resolution)
    said = []
    for a in xs:
        for b in ys:
            point = x[0] + (a * u + b * w).reshape(x[0].shape)
            with torch.no_grad():
                said.append(network(torch.tensor(point[None], dtype=torch.float32))[0])
    return torch.stack(said)


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.1), (0.5, 0.2)])
def test_class_maps_equal_the_plain_reading_of_the_definition(digits, network, low, high):
    ids = [3, 40, 111]
    said = plain_class_map(network, digits.test, ids, 12, low, high, np.array(ENTRY.mean), np.array(ENTRY.std))
    space = evaluate.image_space(ENTRY)
    flat = evaluate.image_plane(digits.test, ids, space)
    to = {"image_size": 8, "channels": 1, **PLAIN}
    mapper = evaluate.ClassMapper(network)
    got = mapper(evaluate.seen_by(flat, space, to), plane.grid(flat, 12, low, high), probs=True)
    assert torch.equal(got["labels"], said.argmax(1))
    assert torch.allclose(got["probs"], said.softmax(1), atol=1e-5)
    assert torch.allclose(got["confidence"], said.softmax(1).amax(1), atol=1e-5)


def test_bf16_maps_are_those_of_fp32_after_the_recheck(digits, network):
    space = evaluate.image_space(ENTRY)
    to = {"image_size": 8, "channels": 1, **PLAIN}
    slow, fast = evaluate.ClassMapper(network), evaluate.ClassMapper(network, "bf16")
    rechecked = 0
    for r in range(6):
        flat = evaluate.image_plane(digits.test, [r, r + 31, r + 77], space)
        coords, seen = plane.grid(flat, 30), evaluate.seen_by(flat, space, to)
        got = fast(seen, coords)
        rechecked += got["rechecked"]
        assert torch.equal(got["labels"], slow(seen, coords)["labels"])
    assert 0 < rechecked < 6 * 900 / 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["mlp", "fcnet"])
def test_the_first_layer_of_a_fully_connected_network_is_applied_to_the_plane(digits, name, precision):
    """Three points go through it instead of all; the maps are those of the whole network, and so nearly the logits."""
    network = trained_a_little(name, width=0, steps=60)
    mapper = evaluate.ClassMapper(network, precision)
    inputs = []
    hook = network.fc1.register_forward_pre_hook(lambda module, args: inputs.append(len(args[0])))
    space = evaluate.image_space(ENTRY)
    flat = evaluate.image_plane(digits.test, [3, 40, 111], space)
    coords = plane.grid(flat, 40, 0.5, 0.5)
    said = mapper(flat, coords)
    assert sum(inputs) == said["rechecked"] < len(coords) / 4
    hook.remove()
    with torch.no_grad():
        exact = network(plane.points(flat, coords).permute(0, 3, 1, 2))
        fast = mapper.forward(mapper.fast, flat, coords)
    assert torch.equal(said["labels"], exact.argmax(1)) and len(set(said["labels"].tolist())) > 2
    assert (fast - exact).abs().max() < (1e-4 if precision == "fp32" else 0.05) * exact.abs().max()


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "wrn-10-1", "vit4", "mlp", "mcnn"])
def test_the_fast_copy_is_the_same_function(name):
    network = trained_a_little(name, steps=2, width=0 if name in ("mlp", "wrn-10-1") else 16)
    x = torch.randn(9, 1, 8, 8)
    with torch.no_grad():
        exact = network(x)
        copy = evaluate.bf16_copy(network)
        fast = copy(x.bfloat16())
        assert torch.equal(fast, copy(x.bfloat16()))
    assert (fast.float() - exact).abs().max() < 0.05 * exact.abs().max()
    assert next(network.parameters()).dtype == torch.float32
    assert fast.dtype == (torch.bfloat16 if name == "vit4" and fast.dtype != torch.float32 else torch.float32)


class Adds(nn.Module):
    """Additions that may and that may not take the place of what they add, because it is read again."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(1 if i == 0 else 8, 8, 3, padding=1) for i in range(4))
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        first = torch.relu(self.a(x))
        second = self.b(first) + first  # read below
        third = self.c(second) + second  # the tensor that the convolution reads; read by nobody else
        fourth = self.d(first) + third  # read by nobody else
        return self.linear((fourth + 0.5 * first).mean((2, 3)))


def test_what_is_read_again_is_not_overwritten():
    torch.manual_seed(0)
    network = Adds().eval()
    x = torch.randn(9, 1, 8, 8).bfloat16()
    copy = evaluate.bf16_copy(network)
    joined = [m for m in copy.modules() if isinstance(m, evaluate.Joined)]
    with torch.no_grad():
        exact, fast, again = network(x.float()), copy(x), copy(x)
    assert torch.equal(fast, again) and (fast - exact).abs().max() < 0.02 * exact.abs().max()
    assert [m.in_place for m in joined].count(True) == 1


def test_rounded_weights_keep_the_sums_of_their_taps():
    torch.manual_seed(0)
    weight = torch.randn(16, 8, 3, 3)
    ours, nearest = evaluate.rounded(weight), weight.bfloat16().float()
    assert torch.equal(ours, ours.bfloat16().float())
    assert (ours - weight).abs().max() <= weight.abs().max() / 128
    sums = [(w - weight).sum((2, 3)).abs().mean() for w in (ours, nearest)]
    assert sums[0] < sums[1] / 2
    assert torch.equal(evaluate.rounded(weight[:, :, :1, :1]), nearest[:, :, :1, :1])


def test_a_plane_is_seen_through_each_networks_own_preprocessing(digits):
    """Other normalisation, three channels, larger images: as if every point had been converted by itself."""
    space = evaluate.image_space(ENTRY)
    flat = evaluate.image_plane(digits.test, [3, 40, 111], space)
    to = {"image_size": 20, "channels": 3, **data.normalization("imagenet", ENTRY, 3)}
    coords = plane.grid(flat, 5)
    got = plane.points(evaluate.seen_by(flat, space, to), coords).permute(0, 3, 1, 2)
    pixels = plane.points(flat, coords).permute(0, 3, 1, 2) * ENTRY.std[0] + ENTRY.mean[0]
    larger = nn.functional.interpolate(pixels.expand(-1, 3, -1, -1), (20, 20), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(to[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    assert torch.allclose(got, (larger - mean) / std, atol=1e-4)


def test_anchors_are_found_again_on_their_plane(digits):
    space = evaluate.image_space(ENTRY)
    flat = evaluate.image_plane(digits.test, [3, 40, 111], space)
    back = plane.points(flat, flat.anchors.float()).permute(0, 3, 1, 2) * ENTRY.std[0] + ENTRY.mean[0]
    assert torch.allclose(back, digits.test.pixels([3, 40, 111]), atol=1e-5)


def test_planes_as_published_lie_in_the_space_of_the_old_constants():
    entry = data.entry("CIFAR10")
    assert evaluate.image_space(entry, published=True)["std"] == [0.2023, 0.1994, 0.2010]
    assert evaluate.image_space(entry)["std"] == list(entry.std)


def test_a_network_that_says_nan_is_refused(digits, network):
    broken = trained_a_little(steps=1)
    with torch.no_grad():
        broken.linear.weight.fill_(float("nan"))
    space = evaluate.image_space(ENTRY)
    flat = evaluate.image_plane(digits.test, [3, 40, 111], space)
    with pytest.raises(ContentError, match="NaN"):
        evaluate.ClassMapper(broken)(flat, plane.grid(flat, 3))
