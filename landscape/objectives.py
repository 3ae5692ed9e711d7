"""What a training step minimises: plain cross-entropy, mixup, cutmix, adversarial examples, distillation.

B images, C classes. An Objective turns a batch into the list of batches of its optimiser steps (one, but for adv_mix)
and scores logits against their targets: labels (B,), mixed labels (B, C), or a teacher's logits (B, C).
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from landscape import seeding
from landscape.errors import UsageError


@dataclass(frozen=True)
class Objective:
    """prepare(network, x, y, seed, epoch, step) -> [(x, target)]; loss(logits, target) -> scalar."""

    prepare: Callable
    loss: Callable


def make(args, classes, preprocessing, teacher=None):
    """The Objective of args.train_mode. classes: their number. preprocessing: mean and std of the inputs, for pixel
    bounds. teacher: a function from the student's inputs to logits, needed by the distillations."""
    name = args.train_mode
    if name not in MODES:
        raise UsageError(f"unknown --train_mode {name}; known: {', '.join(MODES)}")
    return MODES[name](args, classes, preprocessing, teacher)


def cross_entropy(args):
    return lambda said, target: F.cross_entropy(said, target, label_smoothing=args.label_smoothing)


def naive(args, classes, preprocessing, teacher):
    return Objective(lambda network, x, y, *where: [(x, y)], cross_entropy(args))


def mixing(transform, share=None):
    """Mixup or CutMix by torchvision's transform, drawn under a stream of its own; a share of the batches, if given,
    and the others plain, as dbViz's --cutmix_prob."""
    def build(args, classes, preprocessing, teacher):
        from torchvision.transforms import v2

        alpha = args.mixup_alpha if transform == "MixUp" else args.cutmix_beta
        mix = {"MixUp": v2.MixUp, "CutMix": v2.CutMix}[transform](alpha=alpha, num_classes=classes)

        def prepare(network, x, y, seed, epoch, step):
            with seeding.fork(seed, transform, epoch, step):
                if share is not None and torch.rand(()).item() >= getattr(args, share):
                    return [(x, y)]
                return [mix(x, y)]

        return Objective(prepare, cross_entropy(args))
    return build


def adversarial(clean_too):
    """Steps on PGD examples (Madry et al. 2018); with clean_too a step on the clean batch before each of them."""
    def build(args, classes, preprocessing, teacher):
        bounds = pixel_bounds(preprocessing)

        def prepare(network, x, y, seed, epoch, step):
            generator = seeding.stream(seed, "pgd", epoch, step)
            bad = pgd(network, x, y, bounds, args.adv_epsilon, args.adv_step, args.adv_steps, generator)
            return [(x, y), (bad, y)] if clean_too else [(bad, y)]

        return Objective(prepare, cross_entropy(args))
    return build


def distillation(loss):
    def build(args, classes, preprocessing, teacher):
        if teacher is None:
            raise UsageError(f"--train_mode {args.train_mode} needs --teacher RUN_OR_CHECKPOINT")

        def prepare(network, x, y, *where):
            with torch.no_grad():
                return [(x, teacher(x).float())]

        return Objective(prepare, lambda said, target: loss(said, target, args))
    return build


def hinton(said, target, args):
    """T^2 KL(teacher || student) at temperature T, mean over images (Hinton et al. 2015; the sum over classes, where
    dbViz's default reduction divided by their number too)."""
    t = args.distill_temp
    return t * t * F.kl_div((said / t).log_softmax(1), (target / t).log_softmax(1), reduction="batchmean",
                            log_target=True)


MODES = {
    "naive": naive,
    "mixup": mixing("MixUp"),
    "cutmix": mixing("CutMix", "cutmix_prob"),
    "adv": adversarial(clean_too=False),
    "adv_mix": adversarial(clean_too=True),
    "soft_distillation": distillation(lambda said, target, args: F.mse_loss(said, target)),
    "hard_distillation": distillation(lambda said, target, args: F.cross_entropy(said, target.argmax(1))),
    "distillation": distillation(hinton),
}


# ---- PGD -----------------------------------------------------------------------------------------------------------


def pixel_bounds(preprocessing):
    """(lowest, highest, size of a pixel step of 1), each (1, C, 1, 1): what [0, 1] is in normalised units."""
    mean, std = (torch.tensor(preprocessing[k]).view(1, -1, 1, 1) for k in ("mean", "std"))
    return (0 - mean) / std, (1 - mean) / std, 1 / std


def pgd(network, x, y, bounds, epsilon, step_size, steps, generator, targeted=False):
    """Adversarial examples in the L-infinity ball of epsilon (in pixels of [0, 1]) around x, which is normalised.

    A uniform start in the ball, then `steps` steps of step_size along the sign of the gradient of the cross-entropy
    with y (against it if targeted), each projected onto the ball and onto [0, 1]. The network is attacked in eval
    mode, so that its BatchNorm statistics and dropout do not see the attack, and is left in the mode it was in.
    """
    low, high, unit = (b.to(x.device) for b in bounds)
    start = torch.rand(x.shape, generator=generator).to(x.device) * 2 - 1
    clean, adv = x, torch.maximum(torch.minimum(x + start * epsilon * unit, high), low)
    sign = -1 if targeted else 1
    with evaluating(network):
        for _ in range(steps):
            adv = adv.detach().requires_grad_()
            loss = F.cross_entropy(network(adv).float(), y, reduction="sum")  # its sign does not depend on the batch
            (gradient,) = torch.autograd.grad(loss, adv)
            with torch.no_grad():
                adv = adv + sign * step_size * unit * gradient.sign()
                adv = torch.maximum(torch.minimum(adv, clean + epsilon * unit), clean - epsilon * unit)
                adv = torch.maximum(torch.minimum(adv, high), low)
    return adv.detach()


@contextmanager
def evaluating(network):
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
