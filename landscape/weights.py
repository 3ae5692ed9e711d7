"""Weights as plain dicts {name: tensor}: combine, lerp, flatten, distance, cosine.

Every function returns new tensors and leaves its arguments alone. Integer tensors (BatchNorm's counters) are not
mixed and count in no distance; a combination takes them from its first vertex.
"""

import torch

from landscape.errors import ContentError


def of(network):
    """The network's parameters and buffers as a dict of detached copies (the order of state_dict)."""
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


def check_same(a, b, what_a="the first", what_b="the second"):
    """Raise ContentError unless both dicts have the same names with the same shapes."""
    missing, unexpected = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
    if missing or unexpected:
        raise ContentError(f"weights differ in names: only in {what_a}: {listed(missing)}; "
                           f"only in {what_b}: {listed(unexpected)}")
    wrong = [f"{k} {tuple(a[k].shape)} against {tuple(b[k].shape)}" for k in a if a[k].shape != b[k].shape]
    if wrong:
        raise ContentError(f"weights differ in shapes: {listed(wrong)}")


def listed(names, most=6):
    """A short list for a message: the first few names and how many more there are."""
    names = list(names)
    shown = ", ".join(map(str, names[:most])) or "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def combine(vertices, coeffs):
    """sum_k coeffs[k] * vertices[k], name by name. Vertices: K dicts; coeffs: K numbers."""
    for other in vertices[1:]:
        check_same(vertices[0], other)
    return {k: sum(c * v[k] for c, v in zip(coeffs, vertices, strict=True)) if w.is_floating_point() else w.clone()
            for k, w in vertices[0].items()}


def lerp(a, b, t):
    """(1 - t) a + t b."""
    return combine([a, b], [1 - t, t])


def flatten(w, like=None):
    """The floating tensors of w in the order of `like` (default: its own) as one float32 vector (D,)."""
    return torch.cat([w[k].reshape(-1).float() for k, v in (like or w).items() if v.is_floating_point()])


def unflatten(vector, like):
    """The inverse of flatten: a dict with the shapes and dtypes of `like`; integer tensors are copied from it."""
    size = sum(v.numel() for v in like.values() if v.is_floating_point())
    if vector.numel() != size:
        raise ContentError(f"a vector of {vector.numel()} numbers does not fit weights of {size}")
    out, at = {}, 0
    for k, v in like.items():
        if v.is_floating_point():
            out[k] = vector[at:at + v.numel()].reshape(v.shape).to(v.dtype)
            at += v.numel()
        else:
            out[k] = v.clone()
    return out


def distance(a, b):
    """Euclidean distance of all floating tensors together, accumulated in float64."""
    check_same(a, b)
    return sum(((a[k].double() - b[k].double()) ** 2).sum() for k in a if a[k].is_floating_point()).sqrt().item()


def cosine(a, b):
    """Cosine of the angle between all floating tensors together; None where one of them is all zero."""
    check_same(a, b)
    names = [k for k in a if a[k].is_floating_point()]
    dot = sum((a[k].double() * b[k].double()).sum() for k in names)
    norms = (sum((a[k].double() ** 2).sum() for k in names) * sum((b[k].double() ** 2).sum() for k in names)).sqrt()
    return (dot / norms).item() if norms > 0 else None


def grams(points, names):
    """{name: (M, M) float64 inner products of that tensor in M weight dicts}, with every pair of the names' tensors
    checked to be alike."""
    for other in points[1:]:
        check_same(points[0], other)
    out = {}
    for name in names:
        rows = torch.stack([w[name].reshape(-1).double() for w in points])
        out[name] = rows @ rows.T
    return out


def cosines(gram):
    """(M, M) cosines of an (M, M) Gram matrix; NaN beside a point that is all zero."""
    norms = gram.diagonal().sqrt()
    return gram / (norms[:, None] * norms)
