"""Corrupted test images, after Hendrycks & Dietterich 2019 (arXiv 1903.12261), at the severities of their CIFAR-10-C.

Made from the images at hand, so any data set will do; of ImageNet-C itself, give a folder of it as --dataset folder:….
"""

# N images, H rows, W columns, C channels.

import math

import torch

from landscape import seeding
from landscape.data import Images
from landscape.errors import UsageError


def noise(x, c, g):
    return x + c * torch.randn(x.shape, generator=g)


def shot(x, c, g):
    return torch.poisson(x * c, generator=g) / c


def impulse(x, c, g):
    """Salt and pepper on a share c of all numbers."""
    drawn = torch.rand(x.shape, generator=g)
    return torch.where(drawn < c / 2, 0.0, torch.where(drawn < c, 1.0, x))


def blur(x, c, g):
    """Gaussian, of c pixels standard deviation, cut at four of them, edges repeated."""
    half = math.ceil(4 * c)
    kernel = torch.exp(-(torch.arange(-half, half + 1) ** 2) / (2 * c * c))
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    n, h, w, channels = x.shape
    x = x.permute(0, 3, 1, 2).reshape(-1, 1, h, w)
    for size in ((1, -1), (-1, 1)):
        pad = (half, half, 0, 0) if size[0] == 1 else (0, 0, half, half)
        x = torch.nn.functional.conv2d(torch.nn.functional.pad(x, pad, mode="replicate"), kernel.view(1, 1, *size))
    return x.view(n, channels, h, w).permute(0, 2, 3, 1)


def contrast(x, c, g):
    """Towards each channel's mean."""
    mean = x.mean((1, 2), keepdim=True)
    return (x - mean) * c + mean


def brightness(x, c, g):
    """c is added to the value of hue, saturation and value."""
    value = x.amax(3, keepdim=True)
    return torch.where(value > 0, x * ((value + c).clamp_max(1) / value.clamp_min(1e-6)), c)


def jpeg(x, c, g):
    """Compression at quality c."""
    from torchvision.io import decode_jpeg, encode_jpeg

    whole = (x * 255).round().to(torch.uint8).permute(0, 3, 1, 2)
    return torch.stack([decode_jpeg(encode_jpeg(image, quality=c)) for image in whole]).permute(0, 2, 3, 1) / 255


KINDS = {
    "noise": (noise, (0.04, 0.06, 0.08, 0.09, 0.10)), "shot": (shot, (500, 250, 100, 75, 50)),
    "impulse": (impulse, (0.01, 0.02, 0.03, 0.05, 0.07)), "blur": (blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)), "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "jpeg": (jpeg, (80, 65, 58, 50, 40)),
}  # fmt: skip


def parse(spec):
    """(function, its parameter) of "KIND:SEVERITY", severities being 1 to 5. Raises UsageError."""
    kind, _, severity = spec.partition(":")
    if kind not in KINDS or severity not in "12345" or not severity:
        raise UsageError(f"--corruption {spec}: KIND:SEVERITY is expected, with a kind of {', '.join(KINDS)} and a "
                         "severity from 1 to 5")
    function, values = KINDS[kind]
    return function, values[int(severity) - 1]


def images(clean, spec):
    """landscape.data.Images like the clean ones, corrupted; the same draws whatever network looks at them."""
    function, value = parse(spec)
    if not isinstance(clean, Images):
        raise UsageError("--corruption is for sets that fit in memory; give a folder of corrupted pictures instead")
    g = seeding.stream(0, "corruption", spec)
    parts = [function(part.float() / 255, value, g) for part in clean.images.cpu().split(1000)]
    store = (torch.cat(parts).clamp(0, 1) * 255).round().to(torch.uint8)
    return Images(store.to(clean.device), clean.labels)
