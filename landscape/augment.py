"""Augmentations whose randomness is a table with one row an image, drawn for a whole epoch at once.

A batch takes its rows, so that batch size, workers and device change nothing. Everything works on uint8
batches (B, H, W, C), on any device, without a loop over images, and does what torchvision does with the same
draws.
"""

# B images of a batch, H rows, W columns, C channels; N images of an epoch.

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from landscape.errors import UsageError

RATIO = (3 / 4, 4 / 3)  # shapes of the boxes of RandomResizedCrop
ATTEMPTS = 10  # boxes that RandomResizedCrop tries before it takes the middle of the picture


@dataclass(frozen=True)
class Step:
    """One augmentation: its values by default, their allowed range, and two functions.

    draw(n, generator, values, size) gives a tensor of n rows; apply(images, rows, values) is uint8 to uint8.
    """

    default: tuple
    allowed: tuple
    draw: Callable
    apply: Callable
    help: str


@dataclass(frozen=True)
class Augment:
    """Some steps, each a pair (name, values), in the order of their application."""

    steps: tuple

    def __bool__(self):
        return bool(self.steps)

    def __str__(self):
        """The form that parse_augment reads, with every value written out."""
        words = ["=".join([name, "/".join(f"{v:g}" for v in values)]) for name, values in self.steps]
        return ",".join(words) or "none"

    def values(self, name):
        """The values of a step, or None if this augmentation does not have it."""
        return dict(self.steps).get(name)

    def draw(self, n, generator, size):
        """Rows for n images of size x size pixels: a dict of CPU tensors with n rows each."""
        return {name: AUGMENTS[name].draw(n, generator, values, size) for name, values in self.steps}

    def apply(self, images, draws, done=()):
        """Augment a batch, uint8 (B, H, W, C); draws has its B rows, done names the steps taken before."""
        for name, values in self.steps:
            if name not in done:
                images = AUGMENTS[name].apply(images, draws[name], values)
        return images


def parse_augment(text, entry):
    """Read "crop,flip", "crop=2,rotate=30", "none" or "auto" (what the entry says) into an Augment.

    A step's values stand behind "=", several are parted by "/". Raises UsageError.
    """
    text = (entry.augment if text == "auto" else text) or "none"
    steps = []
    if entry.text and text != "none":
        raise UsageError(f"--augment {text}: texts are not augmented; leave it out")
    for word in [] if text == "none" else text.split(","):
        name, _, given = word.strip().partition("=")
        if name not in AUGMENTS:
            near = difflib.get_close_matches(name, [*AUGMENTS, "none", "auto"], 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(AUGMENTS)}, none, auto"
            raise UsageError(f"--augment: unknown augmentation {name!r}; {hint}")
        if name in dict(steps):
            raise UsageError(f"--augment: {name} stands there twice")
        if name == "resized" and steps:
            raise UsageError("--augment: resized takes the picture as it was and so must stand first")
        steps.append((name, _values(name, given)))
    return Augment(tuple(steps))


def _values(name, given):
    step = AUGMENTS[name]
    if not given:
        return step.default
    try:
        values = tuple(float(v) for v in given.split("/"))
    except ValueError:
        raise UsageError(f"--augment: {name}={given} is not a number; {name}: {step.help}") from None
    if name == "jitter" and len(values) == 1:
        values = values * 3 + (0.0,)
    low, high = step.allowed
    if len(values) != len(step.default) or not all(low <= v <= high for v in values):
        raise UsageError(
            f"--augment: {name}={given} needs {len(step.default)} value(s) in {low:g}..{high:g}; "
            f"{name}: {step.help}"
        )
    return values


def _uniform(n, generator, low, high, *shape):
    return torch.rand(n, *shape, generator=generator) * (high - low) + low


def _per_image(row):
    return row.view(-1, 1, 1, 1)


# --- crop and flips -----------------------------------------------------------------------------------------


def _padding(values, size):
    return int(values[0]) or size // 8


def _draw_crop(n, generator, values, size):
    return torch.randint(0, 2 * _padding(values, size) + 1, (n, 2), generator=generator)


def _crop(images, rows, values):
    count, height, width, channels = images.shape
    pad = _padding(values, height)
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))
    wide, tall = width + 2 * pad, height + 2 * pad
    # A row of a crop is `width` neighbouring pixels: with one entry for every place where it may start, the
    # crop of the whole batch is one index_select, which copies rows and not pixels.
    places = padded.view(-1).as_strided((count * tall * wide - width + 1, width * channels), (channels, 1))
    device = images.device
    first = torch.arange(count, device=device) * (tall * wide) + rows[:, 0] * wide + rows[:, 1]
    starts = first[:, None] + torch.arange(height, device=device) * wide
    return places.index_select(0, starts.view(-1)).view(count, height, width, channels)


def _draw_flip(n, generator, values, size):
    return torch.rand(n, generator=generator) < values[0]


def _flip_along(axis):
    def flip(images, rows, values):
        if images.device.type != "cpu":  # counting the chosen rows would make the host wait for the device
            return torch.where(_per_image(rows), images.flip(axis), images)
        chosen = rows.nonzero().squeeze(1)
        both = torch.cat([images, images.index_select(0, chosen).flip(axis)])
        order = torch.arange(len(images))
        order[chosen] = torch.arange(len(images), len(both))
        return both.index_select(0, order)  # half the time of writing the flipped ones back

    return flip


# --- rotation and resized crops -----------------------------------------------------------------------------


def _draw_rotate(n, generator, values, size):
    return _uniform(n, generator, -values[0], values[0])


def _rotate(images, rows, values):
    """Counter-clockwise by rows degrees about the centre; nearest pixel, black outside."""
    count, height, width, channels = images.shape
    device = images.device
    y = (torch.arange(height, device=device) - (height - 1) / 2)[:, None]
    x = torch.arange(width, device=device) - (width - 1) / 2
    cos, sin = torch.deg2rad(rows).cos().view(-1, 1, 1), torch.deg2rad(rows).sin().view(-1, 1, 1)
    from_x = (x * cos - y * sin + (width - 1) / 2).round().long()
    from_y = (x * sin + y * cos + (height - 1) / 2).round().long()
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    index = (from_y * width + from_x).where(inside, 0).view(count, -1, 1).expand(-1, -1, channels)
    turned = images.reshape(count, -1, channels).gather(1, index).view_as(images)
    return turned * inside.unsqueeze(3)


def _draw_resized(n, generator, values, size):
    return torch.rand(n, 2 * ATTEMPTS + 2, generator=generator)


def resized_boxes(rows, height, width, values):
    """The boxes that RandomResizedCrop takes out of height x width pixels: (B, 4), top, left, height, width.

    rows (B, 22) are uniform numbers, values the least share of the area.
    """
    area, shape = rows[:, :ATTEMPTS], rows[:, ATTEMPTS : 2 * ATTEMPTS]
    area = height * width * (area * (1 - values[0]) + values[0])
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    shape = (shape * (high - low) + low).exp()
    wide, tall = (area * shape).sqrt().round(), (area / shape).sqrt().round()
    fits = (wide >= 1) & (wide <= width) & (tall >= 1) & (tall <= height)
    chosen = fits.int().argmax(1, keepdim=True)  # the first that fits
    wide, tall = wide.gather(1, chosen).squeeze(1), tall.gather(1, chosen).squeeze(1)
    # Nothing fits: the middle, in the allowed shape that is nearest to the picture's own.
    whole = min(max(width / height, RATIO[0]), RATIO[1])
    none = ~fits.any(1)
    wide = wide.masked_fill(none, min(width, round(height * whole)))
    tall = tall.masked_fill(none, min(height, round(width / whole)))
    top, left = rows[:, -2].masked_fill(none, 0.5), rows[:, -1].masked_fill(none, 0.5)
    top, left = (top * (height - tall + 1)).floor(), (left * (width - wide + 1)).floor()
    return torch.stack([top.minimum(height - tall), left.minimum(width - wide), tall, wide], 1).long()


def _resized(images, rows, values):
    """A box of each picture, brought to the picture's own size: antialiased and bilinear, as two products."""
    count, height, width, channels = images.shape
    top, left, tall, wide = resized_boxes(rows, height, width, values).unbind(1)
    across = _triangles(left, wide, width)
    x = torch.matmul(across.unsqueeze(1), images.float())  # (B, 1, W, W) x (B, H, W, C)
    x = x.round_().view(count, height, width * channels)  # between the two products bytes, as in PIL
    x = torch.matmul(_triangles(top, tall, height), x)
    return x.round_().clamp_(0, 255).to(torch.uint8).view(count, height, width, channels)


def _triangles(start, length, size):
    """Weights (B, size, size) that make pixels start..start+length of a line into a line of size pixels."""
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    scale = length / size
    target = torch.arange(size, device=start.device).view(1, -1, 1)
    source = torch.arange(size, device=start.device).view(1, 1, -1)
    away = (source - start + 0.5 - (target + 0.5) * scale).abs()
    weights = (1 - away / scale.clamp(min=1)).clamp_(min=0)
    weights = weights * ((source >= start) & (source < start + length))
    return weights / weights.sum(2, keepdim=True)


# --- colours ------------------------------------------------------------------------------------------------


def _blend(images, other, factor):
    # Cut off and not rounded: torchvision's way with bytes.
    return (factor * images + (1 - factor) * other).clamp_(0, 255).to(torch.uint8)


def _grey(images):
    if images.shape[3] == 1:
        return images
    red, green, blue = images.split(1, 3)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).to(torch.uint8)


def _brighter(images, factor):
    return _blend(images, 0.0, factor)


def _contrast(images, factor):
    return _blend(images, _grey(images).float().mean((1, 2, 3), keepdim=True), factor)


def _saturation(images, factor):
    return images if images.shape[3] == 1 else _blend(images, _grey(images), factor)


def _hue(images, turn):
    if images.shape[3] == 1:
        return images
    red, green, blue = (images.float() / 255).split(1, 3)
    value = red.maximum(green).maximum(blue)
    spread = value - red.minimum(green).minimum(blue)
    safe = spread.where(spread > 0, 1.0)
    sector = torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    sector = torch.where(value == red, (green - blue) / safe, sector) + 6 * turn
    parts = []
    for offset in (5, 3, 1):  # hue to red, green, blue without a case for each sixth of the circle
        place = (sector + offset) % 6
        parts.append(value - spread * place.minimum(4 - place).clamp(0, 1))
    return (torch.cat(parts, 3) * 255.999).to(torch.uint8)


def _draw_jitter(n, generator, values, size):
    low = torch.tensor([max(0.0, 1 - v) for v in values[:3]] + [-values[3]])
    high = torch.tensor([1 + v for v in values[:3]] + [values[3]])
    factors = torch.rand(n, 4, generator=generator) * (high - low) + low
    order = torch.rand(n, 4, generator=generator).argsort(1)  # each image has an order of its own
    return torch.cat([factors, order], 1)


def _jitter(images, rows, values):
    for turn in range(4):
        for which, change in enumerate((_brighter, _contrast, _saturation, _hue)):
            chosen = (rows[:, 4 + turn] == which).nonzero().squeeze(1)
            if values[which] and len(chosen):
                part = change(images.index_select(0, chosen), _per_image(rows[chosen, which]))
                images = images.index_copy(0, chosen, part)
    return images


def _draw_brightness(n, generator, values, size):
    return _uniform(n, generator, max(0.0, 1 - values[0]), 1 + values[0])


def _draw_shift(n, generator, values, size):
    return _uniform(n, generator, -values[0], values[0])


def _shift(images, rows, values):
    return (images + 255 * _per_image(rows)).round_().clamp_(0, 255).to(torch.uint8)


AUGMENTS = {
    "crop": Step((0,), (0, 64), _draw_crop, _crop, "zeros around it (0: an eighth of the size), then a crop"),
    "flip": Step((0.5,), (0, 1), _draw_flip, _flip_along(2), "left to right, with this probability"),
    "vflip": Step((0.5,), (0, 1), _draw_flip, _flip_along(1), "upside down, with this probability"),
    "rotate": Step((15,), (0, 180), _draw_rotate, _rotate, "up to so many degrees either way"),
    "jitter": Step(
        (0.4, 0.4, 0.4, 0.1),
        (0, 1),
        _draw_jitter,
        _jitter,
        "brightness/contrast/saturation/hue; a single value: the first three",
    ),
    "brightness": Step(
        (0.5,),
        (0, 1),
        _draw_brightness,
        lambda images, rows, values: _brighter(images, _per_image(rows)),
        "times a factor of 1 plus or minus this",
    ),
    "shift": Step((0.5,), (0, 1), _draw_shift, _shift, "brightness plus or minus up to this share of white"),
    "resized": Step((0.08,), (0.001, 1), _draw_resized, _resized, "a box of at least this share, enlarged"),
}
