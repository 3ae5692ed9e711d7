"""The rows of scripts/benchmark.py on learned subspaces.

The twin of a line's step is a standard step of the same network through the same loop. The twin of the points along a
line streams PIL pictures through a DataLoader and loads a state_dict for each of them, once for BatchNorm and once for
the test set.
"""

import copy

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from landscape import cli, evaluate, seeding, subspace, train
from subspaces import train as learn

POINTS = 21


def prepared(bench, net, *flags):
    """(settings, data, network, what describes it) of a training of subspaces.train on the benchmark's data."""
    root = ["--data_root", bench.data_root] if bench.data_root else []
    args = cli.resolve(learn.make_parser().settings([
        "--net", net, "--dataset", bench.dataset, "--augment", "crop,flip", "--val_size", "0", "--epochs", "1",
        "--device", "cpu", "--lr", "0.01", *root, *flags]))
    learn.check(args)
    return (args, *learn.prepare(args, torch.device("cpu")))


def step(bench):
    """One row: how much of a line's step a standard step is; the goal 0.8 says at most 1.25 times a standard step."""
    count = bench.size(8, 1)
    return steps_of(bench, f"{count} steps of resnet20, batch 128: a standard step / a step of a line with its "
                    "regulariser (0.8 means a line costs 1.25 times as much)", 0.8, count, 128)


def starts(bench):
    """The same where computing takes little time, so that what is left is starting the operations, as in a small
    network on a GPU; the goal 0.87 says at most 1.15 times a standard step."""
    count = bench.size(300, 1)
    return steps_of(bench, f"{count} steps of resnet20 of width 2 on two images of 8x8, where little is computed: the "
                    "same", 0.87, count, 2, ("--width", "2"), tiny=True)


def steps_of(bench, words, goal, count, bs, flags=(), tiny=False):
    """The row of `count` steps of bs images. tiny: their corners of 8x8 pixels, and all parameters stepped together."""
    sides = {}
    for family in ("line", "standard"):
        args, data, network, described = prepared(bench, "resnet20", "--family", family, *flags)
        network = network.to(memory_format=torch.channels_last).train()
        normalize = described["preprocessing"]
        batches = [(x, y) for x, y, _ in data.train.batches(torch.arange(bs * count), bs, normalize)]
        optimiser = train.make_optimiser(network, args)
        if tiny:
            batches = [(x[..., :8, :8].contiguous(memory_format=torch.channels_last), y) for x, y in batches]
            for group in optimiser.param_groups:
                group["foreach"] = True
        sides[family] = args, network, train.make_objective(args, data, described), optimiser, batches

    def steps(family):
        args, network, objective, optimiser, batches = sides[family]
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        with seeding.fork(0, "bench"):
            return [train.take_step(network, network, objective, batch, args, optimiser, scaler,
                                    learn.penalty(args))[0].item() for batch in batches]

    def check():
        args, line, _, _, batches = sides["line"]
        plain = copy.deepcopy(sides["standard"][1])
        coeffs, (x, y) = torch.tensor([0.3, 0.7]), batches[0]
        plain.load_state_dict(line.state_at(coeffs))
        with torch.no_grad(), evaluate.autocast(x.device, args.precision):
            ours, wanted = (F.cross_entropy(said.float(), y).item() for said in (line(x, coeffs), plain(x)))
        steps("line"), steps("standard")
        apart = abs(ours - wanted) / wanted
        return apart < 1e-3, f"its loss at a point and that of a network with the mixed weights differ by {apart:.0e}"

    return bench.ratio(words, goal, lambda: steps("line"), lambda: steps("standard"), check)


class Pictures(Dataset):
    """Images as PIL pictures, converted and normalised one at a time."""

    def __init__(self, images, rows, normalize):
        from PIL import Image
        from torchvision import transforms

        self.pictures = [Image.fromarray(a) for a in images.images[rows].numpy()]
        self.labels = images.labels[rows].tolist()
        self.transform = transforms.Compose([transforms.ToTensor(),
                                             transforms.Normalize(normalize["mean"], normalize["std"])])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(self.pictures[i]), self.labels[i]


def positions(bench):
    args, data, line, described = prepared(bench, "resnet20", "--family", "line")
    normalize, images, few = described["preprocessing"], bench.size(1280, 64), bench.size(3, 1)
    rows = torch.arange(images)
    test = data.test.subset(rows)
    ts = [i / (POINTS - 1) for i in range(POINTS)]
    points = [line.state_at(subspace.bezier(torch.tensor(t), 2)) for t in ts]
    network = train.make_network(args, data)[0].to(memory_format=torch.channels_last)
    plain = train.make_network(args, data)[0]
    precision = cli.resolved_precision("auto", "cpu")
    shown = [0, 10, 20][:few]

    def ours():
        new = evaluate.reestimate_bn(network, data.train, normalize, points, rows, 128, precision)
        said = evaluate.logits_at(network, new, test, normalize, 128, precision)
        return [evaluate.score_logits(s, test.labels)["loss"] for s in said]

    def twin():
        losses = []
        loaders = [DataLoader(Pictures(part, rows, normalize), batch_size=128, num_workers=2)
                   for part in (data.train, data.test)]
        for n in shown:
            plain.load_state_dict(points[n])
            layers = list(evaluate.norm_layers(plain).values())
            for m in layers:
                m.reset_running_stats()
                m.momentum = None
            plain.train()
            with torch.no_grad():
                for x, _ in loaders[0]:
                    plain(x)
                plain.eval()
                sums = [(F.cross_entropy(plain(x), y, reduction="sum").item(), len(y)) for x, y in loaders[1]]
            losses.append(sum(s for s, _ in sums) / sum(n for _, n in sums))
        return losses

    def check():
        fast = ours()
        worst = max(abs(fast[n] - slow) / slow for n, slow in zip(shown, twin()))
        return worst < (0.02 if bench.quick else 1e-3), f"losses differ by {worst:.1e} at most (≤ 1e-3), relative"

    return bench.ratio(f"{POINTS} points of a line of resnet20, BatchNorm re-estimated on {images} images, scored on "
                       f"as many: one pass / a state_dict and a PIL loader a point (timed on {few} and scaled up)",
                       2.4, ours, twin, check, share=few / POINTS)


ROWS = {"line-step": step, "line-starts": starts, "line-points": positions}
