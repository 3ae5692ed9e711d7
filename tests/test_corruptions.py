"""Corruptions: every row of the table alike, single ones against plain twins, and the archive's reader."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from landscape import corruptions
from landscape.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from landscape.errors import ContentError, FileProblem, UsageError

NAMES = sorted(CORRUPTIONS)


def photographs(count, side=32, channels=3):
    """uint8 (count, side, side, channels): pieces of the two photographs that come with scikit-learn, made small."""
    rng = np.random.default_rng(0)
    out = []
    for i in range(count):
        picture = load_sample_images().images[i % 2]
        top, left = rng.integers(0, 200), rng.integers(0, 400)
        piece = Image.fromarray(picture[top:top + 220, left:left + 220]).resize((side, side))
        out.append(np.asarray(piece if channels == 3 else piece.convert("L")).reshape(side, side, channels))
    return np.stack(out)


@pytest.fixture(scope="module")
def colour():
    return photographs(24)


def distance(a, b):
    return np.abs(a.astype(float) - b).mean()


@pytest.mark.parametrize("name", NAMES)
def test_a_corruption_grows_with_its_severity(name, colour):
    far = [distance(corrupted(colour, name, s, 0), colour) for s in SEVERITIES]
    assert far[0] > 0.3 and all(f < 100 for f in far)
    # saturate takes colour away at 1 and 2 and adds it from 3 on; the two radii of motion differ, and its angles.
    rising = [(0, 1), (2, 3), (3, 4)] if name == "saturate" else [(i, i + 1) for i in range(4)]
    assert all(far[b] > far[a] * (0.97 if name == "motion_blur" else 1) for a, b in rising), far


@pytest.mark.parametrize("name", NAMES)
def test_a_corruption_keeps_type_and_shape_and_the_original(name, colour):
    before = colour.copy()
    for images in (colour[:3], photographs(3, 28), photographs(3, 8), photographs(2, 48)):
        out = corrupted(images, name, 3, 0)
        assert out.dtype == np.uint8 and out.shape == images.shape and (out != images).any()
    assert (colour == before).all()


@pytest.mark.parametrize("name", NAMES)
def test_grey_images_are_corrupted_or_refused(name):
    grey = photographs(3, 28, 1)
    if CORRUPTIONS[name].colour:
        with pytest.raises(UsageError, match="grey"):
            corrupted(grey, name, 3, 0)
    else:
        out = corrupted(grey, name, 3, 0)
        assert out.dtype == np.uint8 and out.shape == grey.shape and (out != grey).any()


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_bytes_whatever_the_global_state(name, colour):
    images = colour[:4]
    np.random.seed(0)
    first = corrupted(images, name, 2, 5)
    np.random.seed(1)
    torch.manual_seed(1)
    state = np.random.get_state()[1].copy()
    second = corrupted(images, name, 2, 5)
    assert (first == second).all()
    assert (np.random.get_state()[1] == state).all()


RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "motion_blur", "fog")


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_gives_other_draws_and_only_where_there_are_draws(name, colour):
    same = (corrupted(colour[:4], name, 3, 0) == corrupted(colour[:4], name, 3, 1)).all()
    assert same == (name not in RANDOM)


@pytest.mark.parametrize("name", RANDOM)
def test_images_of_one_call_have_draws_of_their_own(name, colour):
    twice = corrupted(np.stack([colour[0], colour[0]]), name, 3, 0)
    assert (twice[0] != twice[1]).any()


def test_severities_have_streams_of_their_own():
    grey = np.full((1, 16, 16, 1), 128, np.uint8)
    noise = [corrupted(grey, "gaussian_noise", s, 0).astype(float).ravel() - 128 for s in (3, 5)]
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.3


def test_blocks_are_not_seen(monkeypatch, colour):
    whole = corrupted(colour[:6], "jpeg_compression", 3, 0)
    monkeypatch.setattr(corruptions, "BLOCK", 4)
    assert (corrupted(colour[:6], "jpeg_compression", 3, 0) == whole).all()


def test_severity_0_is_the_image_and_others_are_refused(colour):
    for name in NAMES:
        assert (corrupted(colour, name, 0, 0) == colour).all()
    for severity in (6, -1, 2.5):
        with pytest.raises(UsageError, match="severity"):
            corrupted(colour, "contrast", severity, 0)
    with pytest.raises(UsageError, match="did you mean gaussian_noise"):
        corrupted(colour, "gausian_noise", 1, 0)
    with pytest.raises(UsageError, match="archive"):
        corrupted(colour, "frost", 1, 0)


def test_noise_has_the_moments_that_its_constant_says():
    grey = np.full((40, 32, 32, 3), 128, np.uint8)
    level = 128 / 255
    for severity in SEVERITIES:
        c = {n: CORRUPTIONS[n].settings[severity - 1] for n in RANDOM[:4]}
        x = {n: corrupted(grey, n, severity, 3) / 255 for n in c}
        assert x["gaussian_noise"].std() == pytest.approx(c["gaussian_noise"], rel=0.02)
        assert x["shot_noise"].mean() == pytest.approx(level, rel=0.01)
        assert x["shot_noise"].std() == pytest.approx((level / c["shot_noise"]) ** 0.5, rel=0.02)
        assert x["speckle_noise"].std() == pytest.approx(c["speckle_noise"] * level, rel=0.02)
        flipped = x["impulse_noise"] != level
        assert flipped.mean() == pytest.approx(c["impulse_noise"], rel=0.1)
        assert set(np.unique(x["impulse_noise"][flipped])) == {0, 1}
        assert (x["impulse_noise"] == 1).mean() == pytest.approx(c["impulse_noise"] / 2, rel=0.15)


@pytest.mark.parametrize("name", ["brightness", "saturate"])
def test_hue_saturation_and_value_against_a_loop(name, colour):
    image = colour[:1].copy()
    image[0, 0, :3] = [[0, 0, 0], [90, 90, 90], [255, 0, 10]]  # no value, no hue, full value
    for severity in SEVERITIES:
        c = CORRUPTIONS[name].settings[severity - 1]
        out = corrupted(image, name, severity, 0)[0]
        for (i, j), got in zip(np.ndindex(32, 32), out.reshape(-1, 3)):
            h, s, v = colorsys.rgb_to_hsv(*(image[0, i, j] / 255))
            if name == "brightness":
                v = min(v + c, 1)
            else:
                s = min(max(s * c[0] + c[1], 0), 1)
            assert got == pytest.approx(np.array(colorsys.hsv_to_rgb(h, s, v)) * 255, abs=0.51)


def test_contrast_keeps_the_mean_of_each_channel(colour):
    for severity in SEVERITIES:
        out = corrupted(colour, "contrast", severity, 0).astype(float)
        c, mean = CORRUPTIONS["contrast"].settings[severity - 1], colour.mean((1, 2))
        assert out.mean((1, 2)) == pytest.approx(mean, abs=0.4)
        assert out - mean[:, None, None] == pytest.approx(c * (colour - mean[:, None, None]), abs=0.51)


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur"])
def test_blurs_leave_a_flat_image_alone(name):
    flat = np.full((2, 32, 32, 3), 77, np.uint8)
    for severity in SEVERITIES:
        assert (corrupted(flat, name, severity, 0) == 77).all()


def test_gaussian_blur_of_a_point_is_the_gaussian():
    point = np.zeros((1, 33, 33, 1), np.uint8)
    point[0, 16, 16] = 255
    out = corrupted(point, "gaussian_blur", 5, 0)[0, :, :, 0]
    tap = np.exp(-np.arange(-4, 5) ** 2 / 2)
    tap /= tap.sum()
    assert out[12:21, 12:21] == pytest.approx(255 * np.outer(tap, tap), abs=0.51)


def test_defocus_of_a_point_is_a_disk():
    point = np.zeros((1, 33, 33, 1), np.uint8)
    point[0, 16, 16] = 255
    out = corrupted(point, "defocus_blur", 5, 0)[0, :, :, 0]  # radius 1.5, hardly softened: nine equal pixels
    assert out[15:18, 15:18] == pytest.approx(255 / 9, abs=0.6) and out.sum() == pytest.approx(255, abs=5)
    soft = corrupted(point, "defocus_blur", 1, 0)[0, 15:18, 15:18, 0]
    tap = np.exp(-np.arange(-1, 2) ** 2 / (2 * 0.4**2))
    assert soft == pytest.approx(255 * np.outer(tap, tap) / tap.sum() ** 2, abs=0.51)


def test_motion_blur_smears_along_one_line():
    point = np.zeros((8, 65, 65, 1), np.uint8)
    point[:, 32, 32] = 255
    for image in corrupted(point, "motion_blur", 5, 0)[..., 0]:
        rows, columns = np.nonzero(image)
        rows, columns = 32 - rows, 32 - columns
        assert columns.min() >= 0 and (abs(rows) <= columns + 1).all()  # behind it, within 45 degrees
        slope = (rows * columns).sum() / (columns**2).sum()
        assert np.abs(rows - slope * columns).max() <= 1
        assert image[32, 32] == image.max() and image.sum() == pytest.approx(255, abs=6)


def test_zoom_blur_is_the_mean_of_enlargements_against_a_loop():
    ramp = np.repeat(np.arange(0, 248, 8, dtype=np.uint8)[None, :], 31, axis=0)[None, :, :, None]
    out = corrupted(ramp, "zoom_blur", 5, 0)[0, :, :, 0].astype(float)
    factors = [1.0, *(1 + k / 100 for k in range(26))]
    for j in range(31):  # a ramp stays a ramp about the middle, less steep by the mean of 1 / factor
        assert out[:, j] == pytest.approx(np.mean([8 * (15 + (j - 15) / f) for f in factors]), abs=0.51)


def test_fog_is_between_the_image_and_its_brightest_value(colour):
    weak, thick = (corrupted(colour, "fog", s, 0).astype(float) for s in (1, 5))
    brightest = colour.max((1, 2, 3), keepdims=True).astype(float)
    assert (thick <= brightest + 1).all() and thick.mean() > weak.mean() * 0.9
    black = corrupted(np.concatenate([np.zeros((1, 32, 16, 1), np.uint8), np.full((1, 32, 16, 1), 255, np.uint8)], 2),
                      "fog", 4, 0)[0, :, :16, 0].astype(float)
    assert black.std() > 10  # a cloud, not a veil
    near = np.abs(np.diff(black, axis=1)).mean()
    assert near < np.abs(black[:, :8] - black[:, 8:]).mean()  # and it is smooth


def test_pixelate_and_jpeg_against_pillow(colour):
    for severity in SEVERITIES:
        c = CORRUPTIONS["pixelate"].settings[severity - 1]
        side = int(32 * c)
        for image, out in zip(colour[:3], corrupted(colour[:3], "pixelate", severity, 0)):
            small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
            assert (np.asarray(small.resize((32, 32), Image.Resampling.BOX)) == out).all()
        file = io.BytesIO()
        Image.fromarray(colour[0]).save(file, "JPEG", quality=CORRUPTIONS["jpeg_compression"].settings[severity - 1])
        assert (np.asarray(Image.open(file)) == corrupted(colour[:1], "jpeg_compression", severity, 0)[0]).all()


# ---- the archive ---------------------------------------------------------------------------------------------------

def write_archive(root, images, labels):
    (root / "CIFAR-10-C").mkdir(exist_ok=True)
    np.save(root / "CIFAR-10-C" / "fog.npy", images)
    np.save(root / "CIFAR-10-C" / "labels.npy", labels)


def test_the_archive_holds_five_severities_in_turn(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5 * 3, 32, 32, 3)).astype(np.uint8)
    labels = np.tile(np.array([4, 1, 7], np.uint8), 5)
    write_archive(tmp_path, images, labels)
    for severity in SEVERITIES:
        theirs, said = corruptions.read_archive(tmp_path, "fog", severity)
        assert (theirs == images[3 * severity - 3: 3 * severity]).all() and theirs.dtype == np.uint8
        assert said.tolist() == [4, 1, 7] and said.dtype == np.int64


def test_an_archive_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(FileProblem, match=r"CIFAR-10-C/fog.npy is missing.*CIFAR-10-C.tar"):
        corruptions.read_archive(tmp_path, "fog", 1)
    good = np.zeros((10, 32, 32, 3), np.uint8)
    for images, labels, what in ((good[:9], np.zeros(9), "5 n"), (good.astype(float), np.zeros(10), "float64"),
                                 (good, np.zeros(7), "7")):
        write_archive(tmp_path, images, labels)
        with pytest.raises(ContentError, match=what):
            corruptions.read_archive(tmp_path, "fog", 1)
    (tmp_path / "CIFAR-10-C" / "fog.npy").write_bytes(b"not an array")
    with pytest.raises(ContentError, match="damaged"):
        corruptions.read_archive(tmp_path, "fog", 1)
