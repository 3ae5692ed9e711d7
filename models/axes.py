"""Permutation axes: along which axes of which tensors a network's hidden units lie.

A group is a set of hidden units that may change places without changing the function, if they do so in every tensor
at once: the rows of the layer that computes them, the columns of those that read them, the norms between, with their
running statistics. What is added shares its groups (residual streams); what is concatenated lies side by side.

The table follows from the layers: a `Walk` goes through them as `forward` does, with the Axis of what flows in place
of the images. A module that does more than call its children in turn says so in its own method `axes(walk, x)`, or
`axes(walk, x, out)` where something else is added to what it computes, beside its `forward`.
"""

from dataclasses import dataclass

import torch
from torch import nn

from . import ModelError

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
TRANSPARENT = (nn.ReLU, nn.GELU, nn.Dropout, nn.Identity, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d,
               nn.AdaptiveAvgPool2d)  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor: its size, and {group: LongTensor (units, places)}, the places of each unit along it.

    Places of no group stay where they are.
    """

    size: int
    places: dict


@dataclass(frozen=True)
class Axes:
    """{tensor's name: an Axis for each of its dimensions}, {group: units}, and the groups that rebasin 0.0.47 omits."""

    tensors: dict
    groups: dict
    omitted: frozenset


def fixed(size):
    """An axis whose places mean something outside: pixels, classes, words."""
    return Axis(size, {})


def units(group, size):
    """An axis of the units of one group."""
    return Axis(size, {group: torch.arange(size)[:, None]})


def join(*axes):
    """The axis of what is concatenated."""
    size, places = 0, {}
    for axis in axes:
        for group, where in axis.places.items():
            places.setdefault(group, []).append(where + size)
        size += axis.size
    return Axis(size, {group: torch.cat(parts, 1) for group, parts in places.items()})


def spread(axis, inner):
    """The axis with `inner` places for each place, side by side: channels of a flattened image, heads of D numbers."""
    within = torch.arange(inner)
    return Axis(axis.size * inner, {g: (p[:, :, None] * inner + within).flatten(1) for g, p in axis.places.items()})


def tile(axis, outer):
    """The axis `outer` times in a row."""
    return join(*[axis] * outer)


class Walk:
    """Called with a module and the Axis of its input (None: images), returns the Axis of its output, and notes the axes
    of its tensors. out: the Axis that the output must have, since something is added to it; else layers make a group
    of their own name."""

    def __init__(self, network):
        self.names = {module: name for name, module in network.named_modules()}
        self.tensors, self.omitted = {}, set()

    def __call__(self, module, x, out=None):
        if hasattr(module, "axes"):
            return module.axes(self, x) if out is None else module.axes(self, x, out)
        if isinstance(module, nn.Sequential):
            last = next((child for child in reversed(module) if any(True for _ in child.parameters())), None)
            for child in module:
                x = self(child, x, out if child is last else None)
            return x
        if isinstance(module, LAYERS):
            return self.layer(module, x, out)
        if isinstance(module, nn.EmbeddingBag | nn.Embedding):
            out = out or units(self.names[module], module.embedding_dim)
            self.note(module, "weight", fixed(module.num_embeddings), out)
            return out
        if isinstance(module, NORMS):
            x = x or fixed(len(module.weight))
            for name in ("weight", "bias", "running_mean", "running_var"):
                if getattr(module, name, None) is not None:
                    self.note(module, name, x)
            return x
        if isinstance(module, TRANSPARENT):
            return x
        raise ModelError(f"the permutation axes of {type(module).__name__} are not known: use --align none")

    def layer(self, module, x, out):
        rows, columns, *kernel = module.weight.shape
        if getattr(module, "groups", 1) > 1:
            if not module.groups == module.in_channels == rows:
                raise ModelError("the permutation axes of grouped convolutions are known where each filters one "
                                 "channel: use --align none")
            x, out = fixed(1), x
        x = x or fixed(columns)
        if columns != x.size:  # images were flattened: channels first, pixels within
            x = spread(x, columns // x.size)
        out = out or units(self.names[module], rows)
        self.note(module, "weight", out, x, *map(fixed, kernel))
        if module.bias is not None:
            self.note(module, "bias", out)
        return out

    def note(self, module, name, *axes):
        """The axes of a tensor of a module."""
        self.tensors[f"{self.names[module]}.{name}".lstrip(".")] = axes

    def omit(self, x):
        """Note that the groups of x were left where they were by rebasin 0.0.47."""
        self.omitted |= x.places.keys()


def axes_of(network):
    """The Axes of a network. Raises ModelError where a module's are not known."""
    walk = Walk(network)
    classes = walk(network, None)
    unsaid = [k for k in network.state_dict() if k not in walk.tensors and not k.endswith("num_batches_tracked")]
    if unsaid or classes is None:
        raise ModelError(f"the permutation axes of {type(network).__name__} are not known: use --align none")
    tensors = {name: tuple(Axis(a.size, {g: p for g, p in a.places.items() if g not in classes.places}) for a in axes)
               for name, axes in walk.tensors.items()}
    groups = {g: len(p) for axes in tensors.values() for a in axes for g, p in a.places.items()}
    return Axes(tensors, groups, frozenset(walk.omitted & groups.keys()))
