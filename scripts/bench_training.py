"""The rows of scripts/benchmark.py on data and training, and the memory of a drawing.

The twins are the loop of kuangliu/pytorch-cifar that dbViz trains with, in our words: PIL transforms in a DataLoader
with 2 workers, float32, contiguous tensors, the loss and the number of right answers fetched at every step. The twin of
a stack of networks is a plain loop over them.
"""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import functional as T

from landscape import cli, data, runs, seeding, stacked, train
from models.mlp import FullyConnected

BF16 = 0.02  # relative difference of two losses, one of them computed in bfloat16, that its 8 bits explain
FP32 = 1e-4  # difference of two weights that adding up in another order explains


# ---- the plain twins -----------------------------------------------------------------------------------------------

class Pictures(Dataset):
    """Images as PIL pictures through transform(picture, position), as torchvision's CIFAR10 hands them out."""

    def __init__(self, images, transform):
        self.arrays, self.labels, self.transform = images.images.numpy(), images.labels.tolist(), transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.arrays[i]), i), self.labels[i]


def random_transform(normalize):
    """Padded crop, flip and normalisation of a picture as the seeds compose them."""
    steps = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
                                transforms.ToTensor(), transforms.Normalize(normalize["mean"], normalize["std"])])
    return lambda picture, i: steps(picture)


def no_transform(picture, i):
    """Pixels in [0, 1]."""
    return T.to_tensor(picture)


def given_transform(normalize, draws):
    """random_transform with the crop and the flip that our draws hold for position i."""
    def transform(picture, i):
        top, left = draws["crop"][i].tolist()
        picture = T.crop(T.pad(picture, 4), top, left, 32, 32)
        picture = T.hflip(picture) if draws["flip"][i] else picture
        return T.normalize(T.to_tensor(picture), normalize["mean"], normalize["std"])
    return transform


def plain_loader(images, transform, order=None):
    return DataLoader(Pictures(images, transform), batch_size=128, shuffle=order is None, sampler=order, num_workers=2)


def plain_epoch(network, optimiser, batches):
    """Mean loss of each step of the seeds' training loop over batches of (x, y)."""
    network.train()
    losses, right, seen = [], 0, 0
    for x, y in batches:
        optimiser.zero_grad()
        said = network(x)
        loss = F.cross_entropy(said, y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        right += said.max(1)[1].eq(y).sum().item()
        seen += len(y)
    return losses


# ---- what both sides start from ------------------------------------------------------------------------------------

def settings(bench, net, **changes):
    """main.py's settings for a training with crops and flips whose only measures are its own losses."""
    given = {"augment": "crop,flip", "lr": 0.01, **({"data_root": bench.data_root} if bench.data_root else {})}
    return cli.library(net=net, dataset=bench.dataset, runs=bench.cache / "runs", val_size=0, epochs=1,
                       scheduler="constant", eval_every=0, save_every=1e9, device="cpu", **given | changes)


def make(args, count):
    """(data with the first `count` training images and nothing else, network, what describes it)."""
    whole = train.make_data(args)
    none = whole.test.subset(torch.arange(0))
    small = replace(whole, train=whole.train.subset(torch.arange(count)), val=none, test=none)
    return small, *train.make_network(args, small)


def worst_difference(ours, twin):
    """(equal, words) for two lists of losses."""
    worst = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(ours, twin))
    return worst <= BF16, f"losses from the same weights and draws differ by {worst:.2%} at most (≤ {BF16:.0%})"


# ---- rows ----------------------------------------------------------------------------------------------------------

def batches(bench):
    args = settings(bench, "mlp")
    images = make(args, bench.size(8192, 256))[0].train
    entry = data.entry(bench.dataset)
    normalize, augment = data.normalization("dataset", entry), data.parse_augment("crop,flip", entry)

    def ours():
        draws = images.draw(augment, seeding.stream(0, "augment"))
        order = torch.randperm(len(images), generator=seeding.stream(0, "order"))
        return draws, order, sum(len(x) for x, _, _ in images.batches(order, 128, normalize, augment, draws))

    def twin():
        return sum(len(x) for x, _ in plain_loader(images, random_transform(normalize)))

    def check():
        draws, order, _ = ours()
        fast = images.batches(order, 128, normalize, augment, draws)
        slow = plain_loader(images, given_transform(normalize, draws), order.tolist())
        same = all(torch.equal(x, z) and torch.equal(y, w) for (x, y, _), (z, w) in zip(fast, slow))
        return same, f"{len(images)} images bit-equal, given the same draws" if same else "images differ"

    return bench.ratio(f"augmented CIFAR batches of 128 from {len(images)} images: uint8 tensor, crop and flip per "
                       "batch / PIL, DataLoader with 2 workers", 15, ours, twin, check)


def step(net, goal, full):
    """The row of a training step of `net`: `full` steps a round on one batch of 128."""
    def row(bench):
        args, steps = settings(bench, net), bench.size(full, 2)
        size = bench.size(128, 8)
        small, network, described = make(args, size)
        plain = make(args, size)[1]
        x, y = small.train.batch(torch.arange(size), described["preprocessing"]), small.train.labels
        contiguous = x.contiguous()
        network.to(memory_format=torch.channels_last)
        optimiser = train.make_optimiser(network, args)
        plain_optimiser = train.make_optimiser(plain, args)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        objective = train.make_objective(args, small, described)
        network.train()

        def ours():
            sums, losses = train.Sums(torch.device("cpu"), [0.0, 0.0, 0.0]), []
            for number in range(steps):  # as in train.fit
                for part in objective.prepare(network, x, y, args.augment_seed, 0, number):
                    loss, said = train.take_step(network, network, objective, part, args, optimiser, scaler)
                sums.add(loss, (said.argmax(1) == y).sum(), len(x))
                losses.append(loss)
            return torch.stack(losses).tolist()

        def twin():
            return plain_epoch(plain, plain_optimiser, [(contiguous, y)] * steps)

        return bench.ratio(f"{steps} training steps of {net}, batch {size}: {args.precision}, channels_last / fp32, "
                           "contiguous, loss.item()", goal, ours, twin, lambda: worst_difference(ours(), twin()))
    return row


def epoch(net, goal, full, **changes):
    """The row of a whole training with its data: one epoch of `full` images through fit. changes: of the settings."""
    def row(bench):
        args = settings(bench, net, **changes)
        small, network, described = make(args, bench.size(full, 256))
        plain = make(args, 0)[1]
        plain_optimiser = train.make_optimiser(plain, args)
        normalize = described["preprocessing"]
        augment = data.parse_augment(args.augment, small.entry)
        run = runs.start("benchmark", args)

        def ours():
            return train.fit(network, small, args, run, described)["last"]["train_loss"]

        transform = random_transform(normalize) if augment else no_transform

        def twin():
            return plain_epoch(plain, plain_optimiser, plain_loader(small.train, transform))

        def check():
            order = torch.randperm(len(small.train), generator=seeding.stream(args.order_seed, "order", 0))
            drawn = transform
            if augment:
                draws = small.train.draw(augment, seeding.stream(args.augment_seed, "augment", 0))
                drawn = given_transform(normalize, draws)
            loader = plain_loader(small.train, drawn, order.tolist())
            losses = plain_epoch(plain, plain_optimiser, loader)
            return worst_difference([ours()], [sum(losses) / len(losses)])

        try:
            return bench.ratio(f"an epoch of {len(small.train)} images through {net}, data included: fit / the seeds' "
                               "loop", goal, ours, twin, check)
        finally:
            run.close()
    return row


def stack(bench):
    many, size, steps = 16, 64, bench.size(300, 3)
    args = cli.library(lr=0.01, runs=bench.cache / "runs", device="cpu")
    with seeding.fork(0, "stack"):
        start = [FullyConnected([2, 32, 32, 2]) for _ in range(many)]
        x, y = torch.randn(many, size, 2), torch.randint(2, (many, size))

    def ours():
        networks = copy.deepcopy(start)
        together = stacked.Stack(networks)
        optimiser = train.make_optimiser(together, args)
        for _ in range(steps):
            stacked.take_step(together, optimiser, x, y, 0.0)
        return networks

    def twin():
        networks = copy.deepcopy(start)
        optimisers = [train.make_optimiser(network, args) for network in networks]
        for _ in range(steps):
            for network, optimiser, images, labels in zip(networks, optimisers, x, y):
                optimiser.zero_grad()
                F.cross_entropy(network(images), labels).backward()
                optimiser.step()
        return networks

    def check():
        pairs = zip(ours(), twin())
        worst = max((p - q).abs().max().item() for a, b in pairs for p, q in zip(a.parameters(), b.parameters()))
        return worst <= FP32, f"weights after {steps} steps differ by {worst:.1e} at most (≤ {FP32:.0e})"

    return bench.ratio(f"{steps} SGD steps of {many} networks 2-32-32-2, batch {size} each: stacked / one after the "
                       "other", 3, ours, twin, check)


def memory(bench):
    resolution, batches = bench.size(500, 6), bench.size(20, 1)
    args = settings(bench, "resnet18")
    weights = bench.cache / "resnet18.pth"
    weights.parent.mkdir(parents=True, exist_ok=True)
    torch.save(make(args, 0)[1].state_dict(), weights)
    argv = ["--load_net", weights, "--net", "resnet18", "--dataset", bench.dataset, "--resolution", resolution,
            "--imgs", "50,250,160" if bench.quick else "500,5000,1600", "--map_precision", args.precision,
            "--runs", bench.cache / "runs", "--device", "cpu", "--force"]
    argv += ["--data_root", bench.data_root] if bench.data_root else []

    def measure():
        code = f"from scripts import bench_training; bench_training.draw_alone({batches}, {[str(a) for a in argv]})"
        root = Path(__file__).resolve().parent.parent
        said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
        return float(said.stdout.split()[-1])

    return bench.memory(f"main.py draws {resolution}x{resolution} points of resnet18: peak memory above what the "
                        "imports hold", 600, measure,
                        f"every buffer is real; of the batches the first {batches} in {args.precision} and the first "
                        f"{batches} in fp32 go through the network, the others repeat the last answer")


def draw_alone(batches, argv):
    """In a process of its own: main.py with argv, then the growth of its peak memory in MB since the imports."""
    import main
    from landscape import evaluate, plots  # noqa: F401  (part of "the imports")

    class Short(torch.nn.Module):
        """A network that really answers the first `batches` batches only."""

        def __init__(self, network):
            super().__init__()
            self.network, self.left = network, batches

        def forward(self, x):
            if self.left:
                self.left -= 1
                self.said = self.network(x)
            return self.said[:1].repeat(len(x), 1)

    class ShortMapper(evaluate.ClassMapper):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.network, self.fast = Short(self.network), self.fast and Short(self.fast)

    evaluate.ClassMapper = ShortMapper
    before = status("VmRSS")
    main.main(argv)
    print(status("VmHWM") - before)


def status(key):
    """Megabytes that this process has (VmRSS) or had at most (VmHWM). Not ru_maxrss: it starts at the parent's peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024 / 1e6


ROWS = {
    "batches": batches,
    "step-resnet20": step("resnet20", 1.9, 4),
    "step-resnet18": step("resnet18", 2.2, 2),
    "epoch-mlp": epoch("mlp", 5, 8192),
    "epoch-fcnet": epoch("fcnet", 2.3, 8192),
    "epoch-resnet20": epoch("resnet20", 2, 2048),
    "epoch-small_cnn": epoch("small_cnn", 2.5, 8192, augment="none", normalize="none", opt="Adam", lr=1.6e-3),
    "stack": stack,
    "memory": memory,
}
