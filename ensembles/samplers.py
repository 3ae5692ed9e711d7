"""Points of weight space around one solution: the subspaces of Fort et al. 2019 (arXiv 1912.02757).

D parameters (weights and biases; statistics of BatchNorm are no coordinates, they are re-estimated at every point), L
late snapshots of the solution's training. Each sampler draws vectors (D,) about an Anchor. Scales stand in SETTINGS as
in the authors' notebook, once for ensembles and once, wider, for the diversity-accuracy plane.
"""

from dataclasses import dataclass

import torch

TRIES = 5  # for a sample that must be accepted


@dataclass(frozen=True)
class Anchor:
    """A solution: weights (a dict), the names of its parameters, and its late snapshots as a matrix (L, D)."""

    weights: dict
    names: tuple
    late: torch.Tensor

    @property
    def vector(self):
        return vector_of(self.weights, self.names)

    def point(self, vector):
        """The weight dict with the parameters of a vector (D,) and all else as in the solution."""
        out, at = dict(self.weights), 0
        for name in self.names:
            like = self.weights[name]
            out[name] = vector[at:at + like.numel()].view(like.shape).to(like.dtype)
            at += like.numel()
        return out


def vector_of(weights, names):
    return torch.cat([weights[k].reshape(-1).float() for k in names])


def anchor(weights, names, late):
    """The Anchor of a weight dict and a list of weight dicts."""
    return Anchor(weights, tuple(names), torch.stack([vector_of(w, names) for w in late]))


# ---- one sample each -----------------------------------------------------------------------------------------------

def random_direction(start, basis, scale, generator):
    """start + s z / |z|: on the sphere of radius s about the solution."""
    z = torch.randn(len(start), generator=generator)
    return start + scale * z / z.norm()


def diagonal(start, basis, scale, generator):
    """mu + s sigma * z: an independent Gaussian for every parameter, its moments those of the late snapshots."""
    mean, deviation = basis
    return mean + scale * deviation * torch.randn(len(mean), generator=generator)


def low_rank(start, basis, scale, generator):
    """mu + s sum_j z_j v_j over the rows v_j of the basis."""
    mean, directions = basis
    return mean + scale * torch.randn(len(directions), generator=generator) @ directions


def weight_dropout(start, basis, rate, generator):
    """Each parameter kept with probability 1 - rate and then divided by it, else 0."""
    kept = torch.rand(len(start), generator=generator) >= rate
    return start * kept / (1 - rate)


def moments(rows, rank):
    """Mean and standard deviation (D,) each of points (L, D), the latter of the points themselves (division by L)."""
    return rows.mean(0), rows.std(0, unbiased=False)


def unit_components(rows, rank):
    """Mean (D,) and the `rank` leading principal components (R, D), of length 1: as published, where the scale s alone
    says how far samples lie. Fewer where the points span fewer."""
    mean = rows.mean(0)
    _, sizes, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    spanned = int((sizes > 1e-6 * sizes.amax()).sum())
    return mean, directions[:min(rank, spanned)]


def scaled_components(rows, rank):
    """The same, each component times the standard deviation of the points along it: a Gaussian of low rank."""
    mean, directions = unit_components(rows, rank)
    return mean, directions * ((rows - mean) @ directions.T).square().mean(0).sqrt()[:, None]


# ---- the table -----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Sampler:
    """How a sample is made. basis: what is made once of the points that it leans on: late snapshots or, with lean =
    "random", accepted random samples. ensemble, plane: the scale for each use, which a uniform number in [0, 1] is
    multiplied with where `spread` names the use; None: not drawn there. accepted: in ensembles a sample must be about
    as accurate as the solution."""

    words: str
    sample: object
    basis: object
    ensemble: float
    plane: float | None
    spread: tuple
    lean: str = "late"
    accepted: bool = False


SAMPLERS = {
    "random": Sampler("random directions", random_direction, None, 10.0, 70.0, ("ensemble", "plane"), accepted=True),
    "diagonal": Sampler("diagonal Gaussian", diagonal, moments, 1.0, 10.0, ("plane",)),
    "pca": Sampler("PCA Gaussian, unit components", low_rank, unit_components, 1.0, 6.0, ()),
    "pca_scaled": Sampler("PCA Gaussian", low_rank, scaled_components, 1.0, 10.0, ("plane",)),
    "pca_random": Sampler("PCA of random samples", low_rank, unit_components, 1.0, None, (), lean="random"),
    "dropout": Sampler("weight dropout", weight_dropout, None, 0.1, 0.1, ("ensemble", "plane")),
}  # fmt: skip


def draw(name, about, count, use, generator, rank=5, accept=None, finish=None):
    """(points, counts): weight dicts of `count` samples of a sampler about an Anchor, for use "ensemble" or "plane".

    finish: a function of a weight dict that gives the one to be used (statistics of BatchNorm anew); accept: a function
    of that which says whether it is good enough, asked where the sampler wants it, TRIES times for a sample; what is
    never accepted is left out. counts: {"asked", "tried", "accepted"}.
    """
    sampler = SAMPLERS[name]
    rows, counts = about.late, {"asked": count, "tried": 0, "accepted": 0}
    if sampler.lean == "random":
        leaned, counts = draw("random", about, count, "ensemble", generator, rank, accept, finish)
        rows = torch.stack([vector_of(w, about.names).cpu() for w in leaned]) if leaned else about.late[:0]
        if len(rows) < 2:
            return [], counts
        counts = {"asked": count, "tried": 0, "accepted": 0}
    basis = sampler.basis(rows, rank) if sampler.basis else None
    wanted = accept if sampler.accepted and use == "ensemble" else None
    points = []
    for _ in range(count):
        for _ in range(TRIES if wanted else 1):
            scale = getattr(sampler, use)
            if use in sampler.spread:
                scale = scale * torch.rand((), generator=generator).item()
            point = about.point(sampler.sample(about.vector, basis, scale, generator))
            point = finish(point) if finish else point
            counts["tried"] += 1
            if wanted is None or wanted(point):
                points.append(point)
                counts["accepted"] += 1
                break
    return points, counts
