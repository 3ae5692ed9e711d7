"""The points of weight space that a run is measured at: along a subspace, and averages and samples of snapshots.

A run gives vertices: those of its subspace, or the snapshots of one training (train with --snapshots cycles). Every
point is a mix of them, so that SWA (Izmailov et al. 2018), its end-point ensembles, random averages, SWAG (Maddox et
al. 2019), snapshot ensembles (Huang et al. 2017) and FGE (Garipov et al. 2018) are measured as subspaces are.
"""

# m vertices, P points, G groups of weights with coefficients of their own.

import copy
import math
from dataclasses import dataclass

import torch

from landscape import runs, seeding, subspace, weights
from landscape.errors import UsageError

# What is measured of snapshots, in words.
METHODS = {
    "swa": "their average", "snapshots": "each of them, and their ensemble", "line": "the line from the first to the "
    "last", "endpoints": "each of them mixed with the average of the others (--share of its own)",
    "random": "averages with weights from Dirichlet(1, …, 1)", "random_module": "the same for each module by itself",
    "random_weight": "the same for each weight by itself", "swag": "samples of SWAG",
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One point: a name, what kind of point it is, its place t on a path (or None), and a full weight dict."""

    name: str
    kind: str
    t: float | None
    weights: dict


@dataclass(frozen=True)
class Family:
    """The points of one run: a network to call, what describes it, its Points, and its vertices (parameters only)."""

    network: object
    described: dict
    points: list
    vertices: list


def open_family(file, source, args, methods):
    """The Family of a checkpoint file of a landscape.runs.Source, with the points that args ask for. methods: of
    METHODS, for a run with snapshots, or None."""
    held, described = runs.read_weights(file)
    if "architecture" not in described:
        raise UsageError(f"{file} does not say what network it is; subspaces.convert makes it one of ours")
    network = runs.build(described["architecture"])
    if "subspace" in described:
        vertices, buffers = subspace.split_state(held)
        rule = subspace.rule(described["subspace"]["family"], len(vertices))
        space = subspace.Subspace(network, vertices, rule)
        space.load_state_dict(held)
        points = of_subspace(space, args)
        plain = runs.build(described["architecture"])
        return Family(plain, described, points, vertices)
    own = Point("model", "model", None, held)
    runs.fill(network, held, f"checkpoint {file}", described["architecture"])
    if not methods:
        return Family(network, described, [own], [parameters(network, held)])
    files = sorted((source.path / "checkpoints").glob("epoch_*.safetensors"))
    snapshots = [parameters(network, runs.read_weights(f)[0]) for f in files]
    return Family(network, described, [own, *of_snapshots(network, held, snapshots, methods, args)], snapshots)


def parameters(network, held):
    return {k: held[k] for k, _ in network.named_parameters()}


def of_subspace(space, args):
    """Of a path those at args.ts; of a simplex its vertices, its centre and --random points drawn uniformly."""
    rule = space.rule
    if rule.along is not None:
        out = []
        for t in args.ts:
            out.append(Point(f"t={t:.3g}", "path", t, space.state_at(rule.along(torch.tensor(t), rule.m))))
        return out
    out = [Point(f"vertex={k}", "vertex", None, space.state_at(rule.at(f"vertex={k}"))) for k in range(rule.m)]
    out.append(Point("centre", "centre", None, space.state_at(rule.centre)))
    with seeding.fork(args.point_seed, "random points"):
        drawn = rule.draw(args.random)
    return out + [Point(f"random {i}", "random", None, space.state_at(c)) for i, c in enumerate(drawn)]


def of_snapshots(network, held, vertices, methods, args):
    """The Points that methods name. BatchNorm's statistics are those of the last weights until they are
    re-estimated."""
    m = len(vertices)
    space = subspace.Subspace(copy.deepcopy(network), vertices, subspace.rule("simplex", m), "module")

    def full(own):
        return {**held, **own, **{a: own[k] for a, k in subspace.aliases(network).items()}}

    def mixed(coeffs):
        return full(weights.combine(vertices, coeffs))

    out = []
    for method in methods:
        with seeding.fork(args.point_seed, method):
            if method == "swa":
                out.append(Point("swa", "swa", None, mixed([1 / m] * m)))
            elif method == "snapshots":
                out += [Point(f"snapshot {k}", "snapshots", None, full(v)) for k, v in enumerate(vertices)]
            elif method == "line":
                for t in args.ts:
                    out.append(Point(f"line t={t:.3g}", "line", t, full(weights.lerp(vertices[0], vertices[-1], t))))
            elif method == "endpoints":
                for k in range(m):
                    share = [(1 - args.share) / (m - 1)] * m
                    share[k] = args.share
                    out.append(Point(f"endpoint {k}", "endpoints", None, mixed(share)))
            elif method == "swag":
                sample = swag(vertices)
                out += [Point(f"swag {i}", "swag", None, full(sample())) for i in range(args.random)]
            else:
                for i in range(args.random):
                    out.append(Point(f"{method} {i}", method, None, full(averaged(method, vertices, space))))
    return out


def averaged(method, vertices, space):
    """A random average of vertices: Dirichlet(1, …, 1) weights for all, for each module, or for each weight."""
    if method == "random":
        return {k: v.detach() for k, v in space.point(space.rule.draw()[0]).items()}
    if method == "random_module":
        return {k: v.detach() for k, v in space.point(space.rule.draw(space.groups)).items()}
    out = {}
    for k, w in vertices[0].items():
        waits = torch.empty(len(vertices), *w.shape).exponential_()
        out[k] = (torch.stack([v[k] for v in vertices]) * (waits / waits.sum(0))).sum(0)
    return out


def swag(vertices):
    """A function that draws weights from SWAG's Gaussian (Maddox et al. 2019, equation 1) of K snapshots, all of which
    are in its low-rank part: mean + sqrt(variance / 2) z + sum_k (w_k - mean) e_k / sqrt(2 (K - 1)), from torch's
    global generator. The variance is a mean of squares, and so never below 0."""
    m = len(vertices)
    mean = weights.combine(vertices, [1 / m] * m)
    apart = {k: torch.stack([v[k] - mean[k] for v in vertices]) for k in mean}
    deviation = {k: d.square().mean(0).sqrt() for k, d in apart.items()}

    def sample():
        e = torch.randn(m) / math.sqrt(2 * (m - 1))
        return {k: mean[k] + deviation[k] / math.sqrt(2) * torch.randn(mean[k].shape) + torch.tensordot(e, apart[k], 1)
                for k in mean}

    return sample
