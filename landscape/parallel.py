"""One training on several devices, started by torchrun: each process takes its part of every batch.

    torchrun --nproc_per_node 2 main.py --net resnet18 --dataset CIFAR10

The W processes hold the same network. Of each batch of --bs images, in the seeded order, process r takes every W-th
from r on; the gradients of all are added up in one reduction, so that a step is that of one process up to rounding.
Augmentation is drawn for the whole training set and dropout for the whole batch, everywhere, and each process takes
what belongs to its images. BatchNorm normalises by each process's part, unless --sync_bn; the statistics kept are those
of process 0. Process 0 alone writes and prints. Without torchrun everything here does nothing.
"""

import os
import sys
from dataclasses import dataclass
from datetime import timedelta

from landscape.errors import UsageError

WAIT = timedelta(minutes=10)  # for another process, before this one gives up


def processes():
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1  # others set WORLD_SIZE too


def follows():
    """Is this a process that leaves writing and printing to another?"""
    return processes() > 1 and int(os.environ.get("RANK", 0)) > 0


def join(device):
    """Meet the other processes, and return the torch.device of this one. UsageError where a GPU each is not there."""
    import torch
    from torch import distributed

    if processes() == 1:
        return device
    if device.type == "cuda":
        own = int(os.environ["LOCAL_RANK"])
        if own >= torch.cuda.device_count():
            raise UsageError(f"process {own} of this machine has no GPU of its own: it shows "
                             f"{torch.cuda.device_count()}; lower --nproc_per_node, or give --device cpu")
        device = torch.device("cuda", own)
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    return device


def world():
    """(number of this process, how many there are): (0, 1) outside a training on several."""
    from torch import distributed

    return (distributed.get_rank(), distributed.get_world_size()) if joined() else (0, 1)


def joined():
    """Has this process met others? No torch is loaded to say no."""
    return processes() > 1 and "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized()


def wait():
    """Until every process is here."""
    if joined():
        from torch import distributed

        distributed.barrier()


def told(value):
    """What process 0 has for a plain value."""
    if not joined():
        return value
    from torch import distributed

    held = [value]
    distributed.broadcast_object_list(held, 0)
    return held[0]


def total(*numbers):
    """The sums over all processes of tensors () on the device."""
    if not joined():
        return numbers
    import torch
    from torch import distributed

    held = torch.stack([n.float() for n in numbers])
    distributed.all_reduce(held)
    return tuple(held)


def anyone(*flags, device):
    """Which of these is true in some process."""
    if not joined():
        return flags
    import torch

    return tuple(bool(n) for n in total(*(torch.tensor(float(bool(f)), device=device) for f in flags)))


def add_gradients(network):
    """Put the sums over all processes into the gradients."""
    if not joined():
        return
    import torch
    from torch import distributed

    held = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in held])
    distributed.all_reduce(flat)
    for g, new in zip(held, flat.split([g.numel() for g in held])):
        g.copy_(new.view(g.shape))


def share_buffers(network):
    """Give every process the buffers of process 0, such as BatchNorm's running statistics."""
    if joined():
        from torch import distributed

        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)


def scored(score, images):
    """What score(images), a dict of means over images, gives: each process scores every W-th image."""
    if not joined():
        return score(images)
    import torch

    rank, size = world()
    part = images.subset(torch.arange(rank, len(images), size))
    found = score(part if len(part) else images.subset(torch.arange(1)))
    sums = total(*(torch.tensor(v * len(part), device=images.device) for v in found.values()))
    return {k: s.item() / len(images) for k, s in zip(found, sums)}


@dataclass
class Shares:
    """This process's part of the batches of an epoch: rows (LongTensor), in batches of bs; shares: of each batch, what
    part of the whole one it is; sizes: of each whole one."""

    rows: object
    bs: int
    shares: list
    sizes: list


def share(order, bs):
    """The Shares of batches of bs rows, of which the last may be smaller. A process without a row of the last one takes
    its first, with a share of 0."""
    import torch

    rank, size = world()
    whole = order.split(bs)
    if size == 1:
        return Shares(order, bs, [1.0] * len(whole), [len(b) for b in whole])
    parts = [b[rank::size] for b in whole]
    shares = [len(p) / len(b) for p, b in zip(parts, whole)]
    parts = [p if len(p) else b[:1] for p, b in zip(parts, whole)]
    return Shares(torch.cat(parts), bs // size, shares, [len(b) for b in whole])


def check(args):
    """UsageError for settings that a training on several processes cannot have."""
    size = processes()
    if size == 1:
        return
    if args.bs % size:
        raise UsageError(f"--bs {args.bs} is no multiple of the {size} processes")
    if args.train_mode in ("mixup", "cutmix") or args.train_mode.startswith("adv"):
        raise UsageError(f"--train_mode {args.train_mode} draws for a whole batch: train it in one process")
    if getattr(args, "samples", 1) > 1:
        raise UsageError("--samples above 1 divides a batch as torchrun does: give one of the two")


def share_dropout(network, step):
    """Make the dropouts of the network draw for the whole batch and take the rows of this process, as one process
    would have drawn. step: {"size": images of the whole batch}, kept up to date by the caller."""
    import torch
    import torch.nn.functional as F

    rank, size = world()

    def of(module):
        def forward(x):
            if not module.training or module.p == 0:
                return x
            kind = torch.channels_last if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) else (
                torch.contiguous_format)
            ones = torch.ones((step["size"], *x.shape[1:]), dtype=x.dtype, device=x.device).contiguous(
                memory_format=kind)
            kept = F.dropout(ones, module.p)
            return x * kept[rank if rank < len(kept) else 0::size][:len(x)]  # without a part: one image that counts 0
        return forward

    if size > 1:
        for module in network.modules():
            if type(module) is torch.nn.Dropout:
                module.forward = of(module)
