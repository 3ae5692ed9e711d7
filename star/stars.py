"""A star: a network trained so that the straight lines from it to N frozen networks, its anchors, have a low loss.

After Sonthalia et al. 2025 (arXiv 2403.07968): an optimiser step is at (1-t) star + t anchor_n of a drawn n and t, and
moves the star by 1-t times the gradient there. The anchors' hidden units may be permuted towards the star as it goes.
"""

# N anchors, P numbers of one network, n units of a group.

import numpy as np
import torch

from landscape import evaluate, lines, metrics, permute, runs, subspace
from landscape.errors import ContentError

TOGETHER = 8  # anchors that are matched together: their copies take memory besides the anchors
TS = [0.0, 0.25, 0.5, 0.75, 1.0]


class Star(subspace.Subspace):
    """Vertex 0 is the star, the others are its anchors, which are fixed; landscape.subspace says the rest.

    Its state_dict is that of the star as a plain network, with the permutations of the anchors so far beside it
    (alignment.<group>, N x n): a saved state holds one network, and the anchors come from their own checkpoints.

    star: the weights to begin with. anchors: N dicts of weights, which may come from a generator. axes: models.axes of
    the network, None where nothing is aligned. fused: keep, in each training step, what the star itself says of the
    batch, as `own`.
    """

    def __init__(self, shell, star, anchors, count, sampling="uniform", samples=1, axes=None, fused=False):
        def vertices():
            yield star
            yield from anchors

        rule = subspace.Spokes("star", count + 1, None, sampling)
        super().__init__(shell, vertices(), rule, samples=samples, frozen=range(1, count + 1))
        self.axes, self.fused, self.own = axes, fused, None
        self.perms = {g: torch.arange(n).repeat(count, 1) for g, n in axes.groups.items()} if axes else {}

    def mix(self, coeffs):
        """(1-t) star + t anchor as a row: the rows of the two, and no others, are read."""
        shares = coeffs.reshape(-1).tolist()
        anchor = max(range(1, len(shares)), key=lambda k: shares[k])
        with torch.autocast(self.stack.device.type, enabled=False):
            return self.stack[0].lerp(self.fixed[anchor - 1], shares[anchor])

    @torch.compiler.disable
    def draw(self):
        return self.rule.draw()  # on the CPU, so that a GPU need not be asked which anchor it is

    def forward(self, x):
        if not self.training:
            return self.call(x, self.row(0))
        if self.fused:
            self.own = self.call(x, self.row(0))
        return super().forward(x)

    def distances(self):
        """(N,) Euclidean distances of the parameters of the star and of each anchor."""
        return torch.stack([(self.stack[0].detach() - row).norm() for row in self.fixed])

    def permute_anchor(self, n, perms):
        """Permute anchor n besides what has been done to it."""
        moved = permute.apply(self.vertex(1 + n), self.axes, perms)
        self.set_vertex(1 + n, moved)
        for group, perm in perms.items():
            self.perms[group][n] = self.perms[group][n][perm]

    def state_dict(self, *args, destination=None, prefix="", keep_vars=False):
        out = {} if destination is None else destination
        for name, tensor in self.state_at(self.centre).items():
            out[prefix + name] = tensor
        for group, perm in self.perms.items():
            out[f"{prefix}alignment.{group}"] = perm.clone()
        return out

    def load_state_dict(self, state_dict, strict=True, assign=False):
        """The anchors must be as they are on disk. Raises ContentError for a state of other anchors or names."""
        self.set_vertex(0, state_dict)
        for name, buffer in self.buffers_of_shell().items():
            buffer.copy_(state_dict[name])
        for group, perm in self.perms.items():
            if state_dict[f"alignment.{group}"].shape != perm.shape:
                raise ContentError("this saved state is of a star of other anchors")
        for n in range(len(self.fixed) if self.perms else 0):
            self.permute_anchor(n, {g: state_dict[f"alignment.{g}"][n] for g in self.perms})


def plain(weights):
    """What a Star saved without the permutations of its anchors."""
    return {k: w for k, w in weights.items() if not k.startswith("alignment.")}


# ---- alignment -----------------------------------------------------------------------------------------------------

class Aligner:
    """Permutes all anchors of a Star towards it, from where they are (a warm start), by one of lines.ALIGNMENTS.

    network: a network of the star's architecture, to run weights in. data, normalize, rows: training images, for
    activations and checks. The function of every anchor is checked to be unchanged at turn 0, that of one anchor later,
    each in its turn; ContentError names the layer.
    """

    def __init__(self, how, network, images, normalize, rows, seed):
        self.how, self.network, self.images, self.normalize, self.rows = how, network, images, normalize, rows
        self.seed = seed

    def __call__(self, star, turn):
        count = len(star.fixed)
        for start in range(0, count, TOGETHER):
            some = range(start, min(start + TOGETHER, count))
            for n, perms in zip(some, self.found(star, some, turn)):
                if turn == 0 or n == turn % count:
                    x = next(iter(self.batches(4)))
                    permute.check(self.network, self.whole(star, 1 + n), star.axes, perms, x)
                star.permute_anchor(n, perms)

    def found(self, star, some, turn):
        """Permutations of some anchors."""
        own = {k: w.detach() for k, w in star.vertex(0).items()}
        anchors = [star.vertex(1 + n) for n in some]
        if self.how in ("weights", "published"):
            starts = [permute.identity(star.axes) for _ in some] if turn else None
            return permute.match(own, anchors, star.axes, starts=starts, seed=self.seed,
                                 as_published=self.how == "published")
        if self.how == "sinkhorn":
            return [permute.sinkhorn(own, anchor, star.axes) for anchor in anchors]
        out = []
        for n in some:
            both = [self.whole(star, k) for k in (0, 1 + n)]
            both = evaluate.reestimate_bn(self.network, self.images, self.normalize, both, self.rows)
            out.append(permute.match_activations(self.network, *both, star.axes, self.batches))
        return out

    def whole(self, star, k):
        """Vertex k with buffers; BatchNorm's statistics are not its own."""
        return {**self.network.state_dict(), **star.vertex(k)}

    def batches(self, size=256):
        return (x for x, _, _ in self.images.batches(self.rows, size, self.normalize))


def aligned_mean(vertices, axes, seed):
    """The mean of dicts of parameters whose units are brought together first (permute.match_together), or as they are
    where axes is None."""
    if axes is not None:
        perms = permute.match_together(vertices, axes, seed=seed)
        vertices = [permute.apply(v, axes, p) for v, p in zip(vertices, perms)]
    return permute.algebra.combine(vertices, [1 / len(vertices)] * len(vertices))


# ---- barriers as a training goes -----------------------------------------------------------------------------------

def held_out_barriers(scene, star, others, how, axes, seed):
    """(mean loss barrier, mean accuracy barrier) of the lines between a network and others, on the images of scene.rows
    at TS, with BatchNorm's statistics estimated anew at each point; others are aligned to it first."""
    images = scene.train.subset(scene.rows)
    (star,) = lines.settled(scene, [star])
    heights, drops = [], []
    for other in others:
        aligned, _ = lines.align(how, scene, star, other, axes, seed)
        line = lines.Line(star, aligned, "reset" if scene.normed else "stored", {})
        losses, right = lines.said_at(scene, lines.points(scene, line, TS), images)
        heights.append(metrics.excess(losses.mean(1, dtype=float), TS).max())
        drops.append(metrics.excess(right.mean(1, dtype=float), TS).min())
    return float(np.mean(heights)), float(np.mean(drops))


def strip(run, described):
    """Make plain networks of all weights that a training of a Star has left in its run folder."""
    for file in sorted(run.path.rglob("*.safetensors")):
        held, _ = runs.read_weights(file)
        runs.save_weights(file, plain(held), described)
