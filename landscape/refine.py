"""Class maps of large planes from few of their points: a coarse grid first, then only where classes meet.

A cell of the grid is looked into where the classes of its corners differ, or where their least margin between the two
best classes is below half of the largest: a boundary may then pass between them. The rest is filled in from the
corners. What this can miss: a region, or the tip of one, that lies inside a cell of the coarse grid and does not show
in the margins of its corners. How much it misses is estimated on points drawn from those that were filled in.
"""

import functools

import torch
import torch.nn.functional as F

from landscape import seeding

BAND = 4  # cells of at least so many points a side are also looked into for their margins: a smaller one holds too few
SAMPLE = 100  # one in so many of the points that were filled in is evaluated after all


def refining(mapper, stride):
    """A function of (plane, coords): class_map with this stride, or for 0 the mapper itself."""
    return functools.partial(class_map, mapper, stride=stride) if stride else mapper


def class_map(mapper, plane, coords, stride):
    """What mapper(plane, coords) gives for a square grid of points, coords (R*R, 2), from fewer of them.

    mapper: a landscape.evaluate.ClassMapper, or a function that returns labels, confidence and margin, (n,) each, and
    rechecked. stride: points along a side of a coarse cell, a power of two. The result has labels (R*R,) int64,
    confidence (interpolated where filled in), rechecked, and refined: (points evaluated, points filled in that were
    evaluated to see, how many of these had another class).
    """
    side = round(len(coords) ** 0.5)
    cells = -(-(side - 1) // stride)
    grid, rechecked, evaluated = carried_on(coords.cpu().view(side, side, 2), cells * stride + 1), 0, 0

    def ask(where, step):
        """(3, n): class, confidence and margin at the chosen points of the grid of that step."""
        nonlocal rechecked, evaluated
        said = mapper(plane, grid[::step, ::step][where])
        rechecked, evaluated = rechecked + said["rechecked"], evaluated + int(where.sum())
        return torch.stack([said["labels"].float(), said["confidence"], said["margin"]])

    known = torch.ones(cells + 1, cells + 1, dtype=torch.bool)
    values = ask(known, stride).view(3, *known.shape)
    while stride > 1:
        size, before = 2 * len(known) - 1, known
        values = F.interpolate(values[None], (size, size), mode="bilinear", align_corners=True)[0]
        known = torch.zeros(size, size, dtype=torch.bool)
        known[::2, ::2] = before
        while (where := open_points(values, stride) & ~known).any():
            values[:, where], known = ask(where, stride // 2), known | where
        stride //= 2
    values, known = values[:, :side, :side].flatten(1), known[:side, :side].flatten()
    filled = (~known).nonzero()[:, 0]
    few = filled[torch.randperm(len(filled), generator=seeding.stream(0, "refine"))[:-(-len(filled) // SAMPLE)]]
    differ = 0
    if len(few):
        said = mapper(plane, coords[few.to(coords.device)])
        differ, rechecked = int((said["labels"] != values[0, few].long()).sum()), rechecked + said["rechecked"]
    return {"labels": values[0].long(), "confidence": values[1], "rechecked": rechecked,
            "refined": (evaluated + len(few), len(few), differ)}


def carried_on(grid, size):
    """A grid (R, R, 2) with further lines of equal distance, (size, size, 2): the last cells reach beyond the plane."""
    more = torch.arange(1, size - len(grid) + 1) / (len(grid) - 1)
    x, y = (torch.cat([v, v[-1] + more * (v[-1] - v[0])]) for v in (grid[:, 0, 0], grid[0, :, 1]))
    return torch.cartesian_prod(x, y).view(size, size, 2)


def open_points(values, stride):
    """The points, bool (n, n), of cells of 3x3 points of values (3, n, n) that are to be looked into."""
    most, least = F.max_pool2d(values, 3, 2), -F.max_pool2d(-values, 3, 2)
    look = most[0] != least[0]
    if stride >= BAND:
        look |= 2 * least[2] < most[2]
    centres = torch.zeros(values.shape[1:])
    centres[1::2, 1::2] = look.float()
    return F.max_pool2d(centres[None], 3, 1, padding=1)[0] > 0
