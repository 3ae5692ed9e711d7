"""Planes through three points, of images or of weights: grids, points, and the draw of anchors.

D numbers in a point, n points, R points along a side of a grid. For anchors x1, x2, x3 with d1 = x2-x1 and
d2 = x3-x1: u = d1/|d1|, p = <u, d2>, w = (d2 - p*u)/q with q = |d2 - p*u|. A point of coordinates (a, b) is
x1 + a*u + b*w, so that the anchors lie at (0, 0), (|d1|, 0) and (p, q); p may be negative or beyond |d1|.
This is the plane that dbViz draws (Somepalli et al. 2022, section 3.1).
"""

import random
from dataclasses import dataclass

import torch

# Below this share of the longest edge, q is rounding noise of float32 anchors, and w a random direction.
COLLINEAR = 1e-6


class PlaneError(ValueError):
    """Anchors that span no plane, labels that hold no triplet, or a grid without points."""


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane: origin (D,) and basis (2, D), float32 on the device of the anchors; anchors (3, 2)
    coordinates, float64 on the CPU; shape of one point, for example (C, H, W) or (D,)."""

    origin: torch.Tensor
    basis: torch.Tensor
    anchors: torch.Tensor
    shape: tuple

    @property
    def u(self):
        return self.basis[0]

    @property
    def w(self):
        return self.basis[1]

    def to(self, device):
        return Plane(self.origin.to(device), self.basis.to(device), self.anchors, self.shape)


def through(x1, x2, x3):
    """The Plane through three tensors of one shape. Raises PlaneError if two are equal, all lie on a line, or
    one is not finite; the message names the anchors, counted from 1."""
    if not x1.shape == x2.shape == x3.shape:
        raise PlaneError(
            f"anchors of different shapes: {tuple(x1.shape)}, {tuple(x2.shape)}, {tuple(x3.shape)}"
        )
    if x1.numel() < 2:
        raise PlaneError(
            f"anchors of shape {tuple(x1.shape)} span no plane: a point needs at least 2 numbers"
        )
    # MPS has no float64: the geometry is done on the CPU there, once a plane.
    wide = [
        (x.detach().cpu() if x.device.type == "mps" else x.detach()).flatten().double() for x in (x1, x2, x3)
    ]
    for number, x in enumerate(wide, 1):
        if not torch.isfinite(x).all():
            raise PlaneError(f"anchor {number} holds NaN or infinity")
    d1, d2 = wide[1] - wide[0], wide[2] - wide[0]
    edges = {(1, 2): d1.norm().item(), (1, 3): d2.norm().item(), (2, 3): (d2 - d1).norm().item()}
    longest = max(edges.values())
    for (i, j), length in edges.items():
        if length <= COLLINEAR * longest:
            raise PlaneError(f"anchors {i} and {j} are equal: choose three different points")
    u = d1 / edges[1, 2]
    p = torch.dot(u, d2).item()
    rest = d2 - p * u
    q = rest.norm().item()
    if q <= COLLINEAR * longest:
        raise PlaneError("anchors 1, 2 and 3 lie on one line: choose three points that span a plane")
    w = rest / q
    w = w - torch.dot(u, w) * u  # a second pass: rest may have lost digits when d2 is nearly parallel to u
    w = w / w.norm()
    anchors = torch.tensor([[0.0, 0.0], [edges[1, 2], 0.0], [p, q]], dtype=torch.float64)
    origin, basis = wide[0].float(), torch.stack([u, w]).float()
    return Plane(origin.to(x1.device), basis.to(x1.device), anchors, tuple(x1.shape))


def extent(plane, range_l=0.1, range_r=0.1):
    """(xmin, xmax, ymin, ymax) of the anchors' bounding box, widened to the left and below by range_l and to
    the right and above by range_r, in shares of its sides."""
    if not 1 + range_l + range_r > 0:
        raise PlaneError(f"range_l={range_l} and range_r={range_r} leave no area: their sum must exceed -1")
    low, high = plane.anchors.amin(0), plane.anchors.amax(0)
    side = high - low
    (xmin, ymin), (xmax, ymax) = (low - range_l * side).tolist(), (high + range_r * side).tolist()
    return xmin, xmax, ymin, ymax


def grid(plane, resolution, range_l=0.1, range_r=0.1):
    """Coordinates (R*R, 2), float32 on the plane's device, of R = resolution equally spaced values along each
    axis of `extent`, both ends included; x is slow and y is fast, so that row i*R+j is (x_i, y_j)."""
    if resolution < 2:
        raise PlaneError(f"resolution {resolution}: a grid with both ends has at least 2 points a side")
    xmin, xmax, ymin, ymax = extent(plane, range_l, range_r)
    xs = torch.linspace(xmin, xmax, resolution, dtype=torch.float64)
    ys = torch.linspace(ymin, ymax, resolution, dtype=torch.float64)
    return torch.cartesian_prod(xs, ys).float().to(plane.origin.device)


def points(plane, coords, out=None):
    """The points (n, *shape), float32, at coords (n, 2). `out`, a contiguous float32 buffer of at least n
    points on the same device, is filled and its first n points are returned: a loop over batches then touches
    no new memory."""
    n = len(coords)
    if out is None:
        out = plane.origin.new_empty((n, *plane.shape))
    flat = out[:n].view(n, -1)
    coords = coords.to(plane.basis)
    # Not addmm: over an inner dimension of 2 it is four times slower on a CPU, and TF32 may round it.
    torch.addcmul(plane.origin, coords[:, :1], plane.u, out=flat)
    flat.addcmul_(coords[:, 1:], plane.w)
    return out[:n]


def coords_of(plane, x):
    """Coordinates (n, 2) of the projections of x (n, *shape), and the distances (n,) of x from the plane;
    float64."""
    offset = x.flatten(1).double() - plane.origin.double()
    basis = plane.basis.double()
    coords = offset @ basis.T
    return coords, (offset - coords @ basis).norm(dim=1)


def random_triplet(labels, generator):
    """Three indices into labels (N,) whose labels differ pairwise, drawn from a torch.Generator on the CPU: a
    draw whose label is taken already is dropped. PlaneError when labels hold fewer than three classes."""
    return _triplet(labels, lambda n: torch.randint(n, (1,), generator=generator).item())


def published_triplet(labels, seed):
    """dbViz's triplet for this seed, drawn with Python's `random`; its plane r has seed = data seed + r."""
    source = random.Random()
    source.seed(seed, version=2)
    return _triplet(labels, lambda n: source.randint(0, n - 1))


def _triplet(labels, draw):
    labels = torch.as_tensor(labels, device="cpu")
    if labels.unique().numel() < 3:
        raise PlaneError("fewer than three classes among the labels: no three anchors have different labels")
    chosen = {}
    while len(chosen) < 3:
        index = draw(len(labels))
        chosen.setdefault(labels[index].item(), index)
    return tuple(chosen.values())
