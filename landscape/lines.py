"""Straight lines between networks: their points, BatchNorm along them, and what each point says of each image.

A and B are dicts of weights; t runs from 0 at A to 1 at B. T points of a line, N images.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from landscape import data as datasets
from landscape import evaluate, permute, weights
from landscape.errors import ContentError
from landscape.seeding import stream

# What becomes of BatchNorm's running statistics at a point between two networks.
NORMS = {"stored": "interpolated, as they are stored", "reset": "estimated anew at every point, the ends included",
         "repair": "reset; and each layer's outputs get the interpolated means and deviations of the two networks'",
         "published": "as starlight's find_barriers.py: at A as stored; elsewhere exponential averages over augmented "
                      "batches of the training images"}
ALIGNMENTS = ("none", "weights", "activations", "sinkhorn", "published")
POINTS_AT_ONCE = 64  # weight dicts that are held and share a pass, if they fit into
BYTES_AT_ONCE = 2_000_000_000
PUBLISHED_BS = 128  # of starlight's trainings


@dataclass
class Scene:
    """What all lines of a measurement share: a network to run weights in, images, and how many of them for what."""

    network: object
    train: object
    test: object
    normalize: dict
    rows: object  # of train: the images for BatchNorm, for activations and for the search of adaptive points
    bs: int = 0
    bn_bs: int = 512
    augment: object = None  # the usual one of the training set
    precision: str = "fp32"  # or bf16; REPAIR is in float32

    @classmethod
    def of(cls, network, data, normalize, bn_images, bs, precision="fp32"):
        """bn_images: that many of the training set, drawn once and for all; 0 for all."""
        rows = data.train.some_rows(bn_images, "batchnorm").sort().values
        return cls(network.eval(), data.train, data.test, normalize, rows, bs,
                   augment=datasets.parse_augment("auto", data.entry), precision=precision)

    @property
    def normed(self):
        return bool(evaluate.norm_layers(self.network))

    def batches(self):
        """The images of rows, for activations."""
        return (x for x, _, _ in self.train.batches(self.rows, 256, self.normalize))


@dataclass
class Line:
    """One line. own: what the ends say, {"train": (losses (2, N), right (2, N)), "test": …}."""

    a: dict
    b: dict
    norm: str
    own: dict
    search: list = field(default_factory=list)  # [(t, excess on scene.rows)] of an adaptive search


def align(how, scene, a, b, axes, seed):
    """(B permuted towards A, the perms or None), checked to be the same function. how: one of ALIGNMENTS."""
    if how == "none":
        return b, None
    if how == "activations":
        perms = permute.match_activations(scene.network, a, b, axes, scene.batches)
    elif how == "sinkhorn":
        perms = permute.sinkhorn(a, b, axes)
    else:
        (perms,) = permute.match(a, [b], axes, seed=seed, as_published=how == "published")
    permute.check(scene.network, b, axes, perms, next(iter(scene.batches()))[:4])
    return permute.apply(b, axes, perms), perms


def points(scene, line, ts):
    """[weights] at ts, with the statistics that line.norm says."""
    found = [weights.lerp(line.a, line.b, t) for t in ts]
    if line.norm == "reset":
        return settled(scene, found)
    if line.norm == "repair":
        return repair(scene, line.a, line.b, found, ts)
    return as_published(scene, found) if line.norm == "published" else found


def settled(scene, networks):
    """Networks with BatchNorm's statistics estimated anew on scene.rows."""
    return evaluate.reestimate_bn(scene.network, scene.train, scene.normalize, networks, scene.rows, scene.bn_bs,
                                  scene.precision)


def as_published(scene, networks):
    """Networks with BatchNorm's statistics as training gathers them in one pass over scene.rows: exponential averages
    (0.1 of each new batch) over batches of 128 augmented images in a drawn order. starlight's function of that purpose
    begins at the statistics of A, which after a few dozen batches no longer matters; here they begin at 0 and 1."""
    order, augmentation = (stream(0, "statistics", what) for what in ("order", "augment"))
    rows = scene.rows[torch.randperm(len(scene.rows), generator=order)]
    return evaluate.reestimate_bn(scene.network, scene.train, scene.normalize, networks, rows, PUBLISHED_BS, how="ema",
                                  augment=scene.augment, draws=scene.train.draw(scene.augment, augmentation))


def ends(scene, networks, norm):
    """[{"train": (losses (N,), right (N,)), "test": …}] of whole networks, with the statistics that norm says."""
    if norm == "published":
        networks = as_published(scene, networks)
    elif norm != "stored":
        networks = settled(scene, networks)
    said = {part: said_at(scene, networks, images) for part, images in (("train", scene.train), ("test", scene.test))}
    return [{part: (losses[m], right[m]) for part, (losses, right) in said.items()} for m in range(len(networks))]


def statistics_of_ends(scene, norm):
    """By what statistics, as `ends` takes them, the first and the second end of a line with that norm are measured."""
    repaired = "reset" if scene.normed else "stored"
    return {"stored": ("stored", "stored"), "reset": ("reset", "reset"), "repair": (repaired, repaired),
            "published": ("stored", "published")}[norm]


def at_once(point):
    """How many weight dicts like this one are held and share a pass over images."""
    size = sum(v.numel() * v.element_size() for v in point.values())
    return max(1, min(POINTS_AT_ONCE, BYTES_AT_ONCE // size))


def together(points):
    """The weight dicts in lists of as many as may share a pass over images."""
    most = at_once(points[0])
    return [points[i:i + most] for i in range(0, len(points), most)]


def said_at(scene, points, images):
    """(losses (P, N) float32, right (P, N) bool), in as few passes over the images as memory allows."""
    parts = [evaluate.losses_at(scene.network, some, images, scene.normalize, scene.bs, scene.precision)
             for some in together(points)]
    losses, right = (torch.cat(part).numpy() for part in zip(*parts))
    if not np.isfinite(losses).all():
        raise ContentError("a network on the line gives NaN or infinite losses: one of its ends has diverged, or the "
                           "statistics of its BatchNorm do not suit its weights (--bn reset)")
    return losses, right


def measure(scene, lines, ts):
    """[{"train": (losses (T, N), right (T, N)), "test": …}] of lines at ts, which begin with 0 and end with 1. The
    points of all lines share each pass."""
    inner = list(ts[1:-1])
    every = [w for line in lines for w in points(scene, line, inner)]
    out = [{} for _ in lines]
    for part, images in (("train", scene.train), ("test", scene.test)):
        losses, right = said_at(scene, every, images)
        for n, line in enumerate(lines):
            some = slice(n * len(inner), (n + 1) * len(inner))
            out[n][part] = tuple(np.concatenate([own[:1], inside[some], own[1:]])
                                 for own, inside in zip(line.own[part], (losses, right)))
    return out


def find_highest(scene, lines, tolerance=0.03, rounds=3):
    """[t] of the largest excess loss of each line on the images of scene.rows, and fills in line.search: five even
    points, then vertices of parabolas through the highest point and its neighbours, while they lie farther than the
    tolerance from what is known."""
    some = scene.train.subset(scene.rows)
    rows = scene.rows.numpy()
    at_ends = [line.own["train"][0][:, rows].mean(1, dtype=float) for line in lines]
    for line in lines:
        line.search = [(0.0, 0.0), (1.0, 0.0)]
    asked = [[0.25, 0.5, 0.75] for _ in lines]
    for _ in range(rounds):
        every = [w for line, ts in zip(lines, asked) if ts for w in points(scene, line, ts)]
        if not every:
            break
        means = iter(said_at(scene, every, some)[0].mean(1, dtype=float))
        for line, ts, (first, last) in zip(lines, asked, at_ends):
            line.search += [(t, float(next(means) - (1 - t) * first - t * last)) for t in ts]
            line.search.sort()
        asked = [[t] if (t := vertex(line.search, tolerance)) is not None else [] for line in lines]
    return [max(line.search[1:-1], key=lambda point: point[1])[0] for line in lines]


def vertex(curve, tolerance):
    """Where the parabola through the highest inner point of a curve [(t, height)] and its two neighbours is highest;
    None within the tolerance of a known point."""
    n = max(range(1, len(curve) - 1), key=lambda i: curve[i][1])
    (x0, y0), (x1, y1), (x2, y2) = curve[n - 1:n + 2]
    above, below = (x1 - x0) * (y1 - y2), (x1 - x2) * (y1 - y0)
    if above == below:
        return None
    t = x1 - 0.5 * ((x1 - x0) * above - (x1 - x2) * below) / (above - below)
    return t if x0 < t < x2 and min(abs(t - x) for x, _ in curve) > tolerance else None


# ---- REPAIR --------------------------------------------------------------------------------------------------------

def repair(scene, a, b, found, ts):
    """Points between A and B whose layers' outputs have, unit by unit, the mean (1-t) E_A + t E_B and the standard
    deviation (1-t) s_A + t s_B of the two networks' (Jordan et al. 2023, arXiv 2211.08403, section 4), by scale and
    shift of weights and biases. BatchNorm is estimated anew in the same passes. Corrected are layers with a bias, the
    last excepted: one without has a norm behind it that undoes any correction."""
    network = scene.network
    layers = corrected_layers(scene)
    own = weights.of(network)
    at_ends = [{name: moments(*parts) for name, parts in passed(scene, end, layers, {})[0].items()} for end in (a, b)]
    out = []
    for weights_t, t in zip(found, ts):
        wanted = {name: tuple((1 - t) * p + t * q for p, q in zip(at_ends[0][name], at_ends[1][name]))
                  for name in layers}
        sums, statistics = passed(scene, weights_t, layers, wanted)
        new = evaluate.pooled(weights_t, statistics, own)
        for name, (mean, deviation) in wanted.items():
            is_mean, is_deviation = moments(*sums[name])
            scale = deviation / is_deviation.clamp_min(1e-8)
            weight, bias = new[f"{name}.weight"], new[f"{name}.bias"]
            scale, shift = scale.to(weight.dtype), (mean - scale * is_mean).to(bias.dtype)
            new[f"{name}.weight"] = weight * scale.view(-1, *[1] * (weight.dim() - 1))
            new[f"{name}.bias"] = bias * scale + shift
        out.append(new)
    network.load_state_dict(own)
    return out


@torch.no_grad()
def passed(scene, weights_t, layers, wanted):
    """(sums of the layers' outputs, of the inputs of BatchNorm, which normalises by the batch) over scene.rows, of the
    network with these weights and with outputs as wanted; see listening."""
    network = scene.network
    network.load_state_dict(weights_t)
    sums = {}
    with evaluate.batch_statistics(evaluate.norm_layers(network)) as statistics, listening(layers, sums, wanted):
        for x, _, _ in scene.train.batches(scene.rows, scene.bn_bs, scene.normalize):
            if len(x) > 1:
                network(x)
    return sums, statistics


def corrected_layers(scene):
    """{name: module} of layers and norms with a bias, in the order of use, without the last layer."""
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
    used, hooks = [], []
    for name, module in scene.network.named_modules():
        if isinstance(module, (*kinds, *evaluate.NORMS)):
            hooks.append(module.register_forward_hook(lambda m, i, o, name=name: used.append((name, m))))
    with torch.no_grad():
        scene.network(next(iter(scene.batches()))[:2])
    for hook in hooks:
        hook.remove()
    last = max(i for i, (_, module) in enumerate(used) if isinstance(module, kinds))
    return {name: m for i, (name, m) in enumerate(used) if i != last and getattr(m, "bias", None) is not None}


@contextmanager
def listening(layers, sums, wanted):
    """Inside, sums[name] collects (count, sum, sum of squares) of each unit's outputs; where wanted[name] = (mean,
    deviation), the outputs go on with these, normalised by their batch."""
    def listen(name, dim):
        def hook(module, inputs, output):
            flat = output.movedim(dim, 0).flatten(1)
            variance, mean = torch.var_mean(flat, 1, correction=0)
            n, mean, variance = flat.shape[1], *(v if v.device.type == "mps" else v.double() for v in (mean, variance))
            new = (n, n * mean, n * (variance + mean**2))
            sums[name] = tuple(p + q for p, q in zip(sums[name], new)) if name in sums else new
            if name not in wanted:
                return None
            goal, deviation = wanted[name]
            scale = deviation / variance.sqrt().clamp_min(1e-8)
            shape = [1] * output.dim()
            shape[dim] = -1
            return output * scale.to(output.dtype).view(shape) + (goal - scale * mean).to(output.dtype).view(shape)
        return hook

    hooks = [module.register_forward_hook(listen(name, -1 if isinstance(module, torch.nn.Linear) else 1))
             for name, module in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def moments(count, total, square):
    """(mean, standard deviation)"""
    mean = total / count
    return mean, (square / count - mean**2).clamp_min(0).sqrt()
