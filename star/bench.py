"""The rows of scripts/benchmark.py on barriers and alignment.

The twin of a barrier works as starlight does: for each point it copies the network, lets it see the training images in
train mode from a DataLoader of augmented PIL images, with its autograd graph, and evaluates it by two more DataLoaders.
"""

import copy

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

import models
from landscape import cli, evaluate, lines, permute, runs, seeding, train, weights
from landscape import data as datasets
from models.axes import axes_of
from star import barriers

TS = [k / 10 for k in range(11)]


# ---- the plain twin ------------------------------------------------------------------------------------------------

class Pictures(Dataset):
    """Images (landscape.data.Images) as PIL pictures, augmented and normalised one at a time."""

    def __init__(self, images, normalize, augmented):
        some = [T.RandomHorizontalFlip(), T.RandomCrop(images.shape[1], padding=4)] if augmented else []
        self.pixels, self.labels = images.images.numpy(), images.labels
        self.transform = T.Compose([T.ToPILImage(), *some, T.ToTensor(),
                                    T.Normalize(normalize["mean"], normalize["std"])])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(self.pixels[i]), self.labels[i]


def loader(images, normalize, batch, augmented=False):
    return DataLoader(Pictures(images, normalize, augmented), batch, shuffle=augmented, num_workers=2)


def plain_point(scene, a, b, t, augmented=True):
    """(training loss, test loss) of one point; without augmentation BatchNorm's statistics are a plain average."""
    network = copy.deepcopy(scene.network)
    network.load_state_dict({k: (1 - t) * a[k] + t * b[k] if a[k].is_floating_point() else a[k] for k in a})
    for module in network.modules():
        if isinstance(module, evaluate.NORMS) and not augmented:
            module.reset_running_stats()
            module.momentum = None
    network.train()
    for x, _ in loader(scene.train, scene.normalize, 128 if augmented else 512, augmented):
        network(x)
    network.eval()
    out = []
    with torch.no_grad():
        for images in (scene.train, scene.test):
            total = sum(F.cross_entropy(network(x), y, reduction="sum").item()
                        for x, y in loader(images, scene.normalize, 100))
            out.append(total / len(images))
    return out


# ---- what both sides start from ------------------------------------------------------------------------------------

def trained_pair(bench):
    """(a scene, the weights of two small ResNets, the second aligned to the first), briefly trained."""
    root = {"data_root": bench.data_root} if bench.data_root else {}
    held = []
    for seed in (0, 1):
        args = cli.library(net="resnet20", width=bench.size(8, 2), dataset=bench.dataset, val_size=0, seed=seed,
                           train_size=bench.size(4500, 64), epochs=bench.size(4, 1), eval_every=0, device="cpu",
                           runs=bench.cache / "runs", **root)
        with runs.start("benchmark", args) as run:
            if not run.finished:
                train.train(run, args, torch.device("cpu"))
        held.append(runs.load(run.path))
    data = datasets.load(bench.dataset, bench.data_root, val_size=0, train_size=bench.size(4500, 64))
    data.test = data.test.subset(torch.arange(bench.size(1000, 32)))
    scene = lines.Scene.of(held[0].network, data, held[0].preprocessing, 0, 0)
    a, b = (weights.of(t.network) for t in held)
    return scene, a, lines.align("weights", scene, a, b, axes_of(scene.network), 0)[0]


def own_barrier(scene, a, b, ts=None):
    """{"train": curve, "test": curve} of a line as star.barriers measures it; at ts, or adaptive."""
    own = lines.ends(scene, [a, b], "reset")
    one = lines.Line(a, b, "reset", barriers.both(own, own, 0, 1))
    if ts is None:
        ts = [0.0, lines.find_highest(scene, [one])[0], 1.0]
    (found,) = lines.measure(scene, [one], ts)
    return {part: barriers.curve(*found[part], ts, 0.95) for part in found}


# ---- rows ----------------------------------------------------------------------------------------------------------

def barrier(bench):
    scene, a, b = trained_pair(bench)
    scene.precision = "bf16"

    def check():
        slow = plain_point(scene, a, b, 0.5, augmented=False)
        found = own_barrier(scene, a, b, [0.0, 0.5, 1.0])
        gap = max(abs(found[part]["losses"][1] - value) for part, value in zip(("train", "test"), slow))
        return gap <= 0.01, f"losses at t = 0.5 differ by {gap:.0e} from the plain loop without augmentation (≤ 0.01)"

    return bench.ratio(f"a barrier of two ResNet-20 of width 8, 11 points, BatchNorm estimated anew on all of "
                       f"{len(scene.train)} training images, {len(scene.test)} test images: all points in one pass, in "
                       "bf16 / a copy for each point, PIL, DataLoader with 2 workers (timed on 1 of 11 and scaled up)",
                       2.4, lambda: own_barrier(scene, a, b, TS), lambda: plain_point(scene, a, b, 0.5), check,
                       share=1 / 11)


def search(bench):
    scene, a, b = trained_pair(bench)
    few = copy.copy(scene)
    few.rows = scene.rows[::9]

    def check():
        fast, slow = own_barrier(few, a, b), own_barrier(scene, a, b, TS)
        gap = abs(fast["train"]["loss_barrier"] - slow["train"]["loss_barrier"])
        return gap <= 0.01, (f"training barriers {fast['train']['loss_barrier']:.4f} and "
                             f"{slow['train']['loss_barrier']:.4f} differ by {gap:.4f} (≤ 0.01)")

    return bench.ratio(f"the same barrier, BatchNorm on {len(few.rows)} images and --adaptive / the same twin", 6,
                       lambda: own_barrier(few, a, b), lambda: plain_point(scene, a, b, 0.5), check, share=1 / 11)


def matching(bench):
    width = bench.size(64, 4)
    a, b = (weights.of(fresh(seed, width)) for seed in (0, 1))
    axes = axes_of(fresh(0, width))

    def check():
        planted = permute.apply(a, axes, permute.random(axes, 0))
        left = permute.distance(a, permute.align(a, planted, axes))
        near = permute.distance(a, permute.align(a, b, axes))
        return left == 0, (f"a planted permutation is recovered to distance {left:g}; the pair's distance falls from "
                           f"{permute.distance(a, b):.2f} to {near:.2f}")

    return bench.seconds(f"weight matching of two ResNet18 of {sum(v.numel() for v in a.values()) / 1e6:.1f} million "
                         "weights, CPU seconds", 3, lambda: permute.match(a, [b], axes), check)


def fresh(seed, width):
    with seeding.fork(seed, "fresh"):
        return models.build("resnet18", width=width)


ROWS = {"barrier": barrier, "barrier-search": search, "matching": matching}
