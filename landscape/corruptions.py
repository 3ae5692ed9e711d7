"""Images under corruptions of five severities, computed here in the manner of CIFAR-10-C, and the reader of its files.

N images, H rows, W columns, C channels (1 or 3), uint8. The constants of each severity are those of CIFAR-10-C
(Hendrycks & Dietterich 2019, arXiv 1903.12261), whose files were made on 32 x 32 colour images; they hold for any size.
Each value is rounded here, where the archive cuts off its decimals (images there are darker by half a grey level on
average). What else differs is said at each corruption. Four of its fifteen and one of its four extra corruptions are
not computed: frost and snow (photographs, layers of flakes), glass_blur (swaps pixel after pixel), spatter, and
elastic_transform, whose five settings are not grades of one strength; with the archive they can be read.

Every draw comes from a stream that is named by corruption and severity: equal seeds give equal bytes. Grey images get
one draw, so that a network that sees them as three equal channels sees the noise so too. No torch.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from landscape.errors import ContentError, FileProblem, UsageError
from landscape.seeding import numpy_stream

SEVERITIES = (1, 2, 3, 4, 5)
BLOCK = 1000  # images at a time: draws come block by block, so that it is part of what a seed means

# ---- noise ---------------------------------------------------------------------------------------------------------
# Each corruption takes images x (n, H, W, C) float32 in [0, 1], its setting c and a numpy generator, and gives images
# that may leave [0, 1].


def gaussian_noise(x, c, draw):
    """Adds normal noise of standard deviation c to each value."""
    return x + c * draw.standard_normal(x.shape, np.float32)


def shot_noise(x, c, draw):
    """Each value as a count of photons, Poisson of mean c times the value, over c."""
    return draw.poisson(x * c).astype(np.float32) / c


def impulse_noise(x, c, draw):
    """The share c of the values (of channels, not pixels) becomes 0 or 1, each in half of the cases."""
    u = draw.random(x.shape, np.float32)
    return np.where(u < c / 2, np.float32(0), np.where(u < c, np.float32(1), x))


def speckle_noise(x, c, draw):
    """Adds normal noise of standard deviation c times the value."""
    return x + c * x * draw.standard_normal(x.shape, np.float32)


# ---- blur ----------------------------------------------------------------------------------------------------------


def gaussian_blur(x, c, draw):
    """Gaussian of standard deviation c pixels, cut off at four; the border's pixels go on outside."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, (0, c, c, 0), mode="nearest", truncate=4)


def defocus_blur(x, c, draw):
    """A disk of radius c[0] pixels, softened by 3 x 3 weights of a Gaussian of standard deviation c[1]; mirrored
    outside. A radius below 1 is one pixel, so that severities 1 to 3 are the softening alone, as in the archive."""
    from scipy.ndimage import convolve

    radius, soft = c
    place = np.arange(-int(radius) - 1, int(radius) + 2)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float64)
    tap = np.exp(-(np.arange(-1, 2) ** 2) / (2 * soft**2))
    tap /= tap.sum()
    kernel = convolve(disk / disk.sum(), np.outer(tap, tap), mode="constant")
    return convolve(x, kernel[None, :, :, None].astype(np.float32), mode="mirror")


def motion_blur(x, c, draw):
    """Each pixel is the mean of the 2 c[0] + 1 pixels behind it along one direction, weighted by half a Gaussian of
    standard deviation c[1] pixels; the direction of each image is uniform in -45 to 45 degrees, the border's pixels go
    on outside. The archive's filter is ImageMagick's, which places its taps by another rounding."""
    taps, spread = 2 * c[0] + 1, c[1]
    weights = np.exp(-(np.arange(taps) ** 2) / (2 * spread**2))
    weights /= weights.sum()
    angles = np.deg2rad(draw.uniform(-45, 45, len(x)))
    n, height, width, _ = x.shape
    image = np.arange(n)[:, None, None]
    out = np.zeros_like(x)
    for k, weight in enumerate(weights.astype(np.float32)):
        down, right = (np.rint(k * f(angles)).astype(int)[:, None] for f in (np.sin, np.cos))
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        out += weight * x[image, rows[:, :, None], columns[:, None, :]]
    return out


def zoom_blur(x, c, draw):
    """Mean of the image and of its c enlargements by 1.00, 1.01, 1.02, … (up to 1.05 and 1.10 were meant at the first
    two severities; rounding in the archive's range of numbers gave one more). Here each is interpolated linearly about
    the exact centre; the archive cuts out whole pixels first."""
    total = x.copy()
    for k in range(c):
        rows, columns = (enlarging(size, 1 + k / 100) for size in x.shape[1:3])
        total += np.einsum("ij,njwc->niwc", rows, np.einsum("vw,njwc->njvc", columns, x, optimize=True), optimize=True)
    return total / (c + 1)


def enlarging(size, factor):
    """(size, size) weights that enlarge `size` pixels by a factor of at least 1 about their middle, linearly."""
    middle = (size - 1) / 2
    place = middle + (np.arange(size) - middle) / factor
    low = np.clip(np.floor(place).astype(int), 0, max(size - 2, 0))
    out = np.zeros((size, size), np.float32)
    rest = place - low
    out[np.arange(size), low] += 1 - rest
    out[np.arange(size), np.minimum(low + 1, size - 1)] += rest
    return out


# ---- weather and light ---------------------------------------------------------------------------------------------


def fog(x, c, draw):
    """Adds c[0] times a cloud, then darkens so that the brightest possible value is the image's own maximum. The cloud
    of each image is a sum of noises on grids of 2, 4, 8, … points a side, linear between them and periodic, each
    c[1] ** 2 times weaker than the coarser one, scaled to [0, 1]; the archive's comes from midpoint displacement, which
    has the same grids and amplitudes and rougher edges."""
    n, height, width, _ = x.shape
    cloud, points, strength = np.zeros((n, height, width)), 2, 1.0
    while points <= max(height, width, 2):
        grid = draw.uniform(-1, 1, (n, points, points))
        cloud += strength * np.einsum("hp,npq,wq->nhw", periodic(height, points), grid, periodic(width, points),
                                      optimize=True)
        points, strength = 2 * points, strength / c[1] ** 2
    cloud -= cloud.min((1, 2), keepdims=True)
    cloud /= np.maximum(cloud.max((1, 2), keepdims=True), 1e-12)
    brightest = x.max((1, 2, 3), keepdims=True)
    return (x + c[0] * cloud[..., None].astype(np.float32)) * brightest / (brightest + c[0])


def periodic(size, points):
    """(size, points) weights of linear interpolation from grid points that repeat to `size` pixels."""
    place = np.arange(size) * points / size
    low = np.floor(place).astype(int)
    out = np.zeros((size, points))
    out[np.arange(size), low % points] += 1 - (place - low)
    out[np.arange(size), (low + 1) % points] += place - low
    return out


def brightness(x, c, draw):
    """Adds c to V of hue, saturation and value (grey images: to the value)."""
    value = x.max(3, keepdims=True)
    brighter = np.minimum(value + np.float32(c), 1)
    return np.where(value > 0, x * brighter / np.maximum(value, 1e-6), brighter)


def contrast(x, c, draw):
    """Shrinks towards the image's mean, of each channel, to the share c."""
    mean = x.mean((1, 2), keepdims=True)
    return mean + np.float32(c) * (x - mean)


def saturate(x, c, draw):
    """S of hue, saturation and value becomes c[0] S + c[1] in [0, 1]; a grey pixel, which has no hue, turns towards red
    where c[1] is above 0, as in the archive. Severities 1 and 2 take colour away, 3 to 5 add to it."""
    value, least = x.max(3, keepdims=True), x.min(3, keepdims=True)
    spread = value - least
    saturation = spread / np.maximum(value, 1e-6)
    new = np.clip(c[0] * saturation + np.float32(c[1]), 0, 1)
    red = np.array([0, 1, 1], np.float32)
    below = np.where(spread > 0, (value - x) / np.maximum(spread, 1e-6), red)  # 0 for the largest channel, 1 for the
    return value * (1 - new * below)  # smallest: all that hue says


# ---- coding --------------------------------------------------------------------------------------------------------


def pixelate(x, c, draw):
    """Means over boxes that bring the side to int(c side) pixels, and back to the nearest."""
    from PIL import Image

    def coarse(picture):
        small = picture.resize([max(1, int(c * side)) for side in picture.size], Image.Resampling.BOX)
        return small.resize(picture.size, Image.Resampling.BOX)
    return through_pictures(x, coarse)


def jpeg_compression(x, c, draw):
    """JPEG of quality c; the bytes depend on the version of libjpeg behind PIL."""
    from PIL import Image

    def coded(picture):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=c)
        return Image.open(file)
    return through_pictures(x, coded)


def through_pictures(x, change):
    """Images (n, H, W, C) in [0, 1], each through a function of PIL pictures."""
    from PIL import Image

    out = np.empty_like(x)
    for i, image in enumerate(np.rint(x * 255).astype(np.uint8)):
        out[i] = np.asarray(change(Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)),
                            np.float32).reshape(image.shape) / 255
    return out


# ---- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corruption:
    """function of (x, setting, generator); settings, one for each severity; colour: it needs three channels."""

    function: Callable
    settings: tuple
    colour: bool = False


CORRUPTIONS = {
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": Corruption(speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": Corruption(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus_blur": Corruption(defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "motion_blur": Corruption(motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": Corruption(zoom_blur, (7, 12, 16, 21, 26)),
    "fog": Corruption(fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "saturate": Corruption(saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), colour=True),
    "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Corruption(jpeg_compression, (80, 65, 58, 50, 40)),
}
# The files of the archive: those above, and what is only there.
ARCHIVED = (*CORRUPTIONS, "elastic_transform", "frost", "glass_blur", "snow", "spatter")


def check(names, known, channels):
    """Raise UsageError unless all names are among the known ones (CORRUPTIONS or ARCHIVED) and go with the channels."""
    from landscape.cli import suggestion

    for name in names:
        if name not in known:
            archived = "; only CIFAR-10-C has it: ensembles.shift --source archive" if name in ARCHIVED else ""
            hint = archived or suggestion(name, known) or f"; known are {', '.join(known)}"
            raise UsageError(f"unknown corruption {name!r}{hint}")
        if channels == 1 and name in CORRUPTIONS and CORRUPTIONS[name].colour:
            raise UsageError(f"corruption {name} changes colours, and the images are grey: leave it out")


def corrupted(images, name, severity, seed):
    """uint8 images (N, H, W, C) as a key of CORRUPTIONS makes them at severity 1..5; severity 0 is the images.

    Raises UsageError for another name or severity and for grey images where colour is needed.
    """
    check([name], CORRUPTIONS, images.shape[3])
    if severity not in (0, *SEVERITIES):
        raise UsageError(f"severity {severity}: 0 (none) to 5 are known")
    if severity == 0:
        return images.copy()
    row, draw = CORRUPTIONS[name], numpy_stream(seed, "corruption", name, severity)
    out = np.empty_like(images)
    for start in range(0, len(images), BLOCK):
        x = images[start : start + BLOCK].astype(np.float32) / 255
        x = row.function(x, row.settings[severity - 1], draw)
        out[start : start + BLOCK] = np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)
    return out


# ---- the archive ---------------------------------------------------------------------------------------------------

FOLDER = "CIFAR-10-C"


def read_archive(root, name, severity):
    """(images uint8 (n, H, W, C), labels int64 (n,)) of one corruption and severity 1..5 from ROOT/CIFAR-10-C, whose
    arrays hold all severities in turn (n = 10,000 in the published files). Raises FileProblem and ContentError."""
    folder = Path(root) / FOLDER
    images, labels = (one_array(folder / f"{stem}.npy") for stem in (name, "labels"))
    if images.ndim != 4 or images.dtype != np.uint8 or len(images) % 5 or not len(images):
        raise ContentError(f"{folder / name}.npy holds {images.dtype} {images.shape}: uint8 (5 n, H, W, C) is expected")
    if labels.shape != images.shape[:1]:
        raise ContentError(f"{folder / 'labels.npy'} holds {labels.shape} labels for {len(images)} images")
    count = len(images) // 5
    part = slice((severity - 1) * count, severity * count)
    return np.array(images[part]), np.array(labels[part]).astype(np.int64)


def one_array(path):
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileProblem(f"{path} is missing: unpack CIFAR-10-C.tar (Zenodo, record 2535967) there, or leave --source "
                          "archive out and have the corruptions computed") from None
    except (ValueError, EOFError) as e:
        raise ContentError(f"{path} is damaged ({e}); unpack CIFAR-10-C.tar again") from None
    except OSError as e:
        raise FileProblem(f"{path} cannot be read: {e.strerror or e}") from None
