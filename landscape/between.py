"""Networks at the points of a path: straight from each given network to the next.

A position counts networks: 0 is the first, 1 the second, 0.25 a quarter of the way between them, 2 the third.
"""

from dataclasses import dataclass, replace

import torch

from landscape import data as datasets
from landscape import evaluate, permute, predictions, runs, train, weights
from landscape.errors import ContentError
from models.axes import axes_of


@dataclass
class Path:
    """The given networks (landscape.runs.Trained), each aligned to the one before it where that is asked for, and the
    images that BatchNorm is estimated on at every point."""

    networks: list
    images: object
    rows: object

    def at(self, position):
        """The Trained at a position. One network is loaded anew each time: a point is done with when the next is asked
        for."""
        before, t = int(position), position % 1
        first = self.networks[before]
        network = runs.build(first.architecture)
        found = weights.of(first.network)
        if t:
            found = weights.lerp(found, weights.of(self.networks[before + 1].network), t)
        network.load_state_dict(found)
        network = network.to(self.images.device).eval()
        evaluate.reestimate_bn(network, self.images, first.preprocessing, rows=self.rows)
        return replace(first, network=network)


def load(args, sources, positions, dataset, device="cpu"):
    """The Path through the networks of landscape.runs.Source, which all are of `dataset`. args: which, align, bn_images
    and the flags of foreign checkpoints.

    Raises ContentError where a position lies between networks that no line joins, or they see images differently.
    """
    entry = datasets.entry(dataset, args.data_root)
    trained = [train.load_network(s.path, args.net or s.group, args, entry, args.which) for s in sources]
    seen = trained[0].preprocessing
    for one, other in zip(trained, trained[1:]):
        for key in predictions.COMPARED:
            if predictions.list_of(one.preprocessing[key]) != predictions.list_of(other.preprocessing[key]):
                raise ContentError(f"{one.source} and {other.source} differ in the {key} of their inputs "
                                   f"({one.preprocessing[key]}, {other.preprocessing[key]})")
    joined = set(map(int, positions)) if args.align != "none" else {int(p) for p in positions if p % 1}
    for k in sorted(joined - {len(trained) - 1}):
        one, other = trained[k], trained[k + 1]
        for key, value in one.architecture.items():
            if other.architecture.get(key) != value:
                raise ContentError(f"{one.source} and {other.source} differ in {key} ({value}, "
                                   f"{other.architecture.get(key)}): no line joins them; --at with whole numbers and "
                                   "--align none take the given networks alone")
    data = datasets.load(dataset, args.data_root, val_size=0, image_size=seen["image_size"], channels=seen["channels"],
                         device=device)
    path = Path(trained, data.train, data.train.some_rows(args.bn_images))
    if args.align == "weights":
        align(path)
    return path


def align(path):
    """Permute the hidden units of each network towards the one before it; each stays the same function (checked)."""
    axes = axes_of(path.networks[0].network)
    x = path.images.batch(torch.arange(min(4, len(path.images))), path.networks[0].preprocessing).cpu()
    for before, after in zip(path.networks, path.networks[1:]):
        own = weights.of(after.network)
        (perms,) = permute.match(weights.of(before.network), [own], axes)
        permute.check(after.network, own, axes, perms, x)
        after.network.load_state_dict(permute.apply(own, axes, perms))
