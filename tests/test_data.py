"""Data: torchvision as the slow twin of batches, properties of splits and label noise, bad files by kind."""

import functools
import hashlib
import http.server
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest
import torch
import torchvision.datasets as readers
from PIL import Image
from torchvision.transforms import functional as T

from landscape import data
from landscape.augment import AUGMENTS, resized_boxes
from landscape.errors import ContentError, FileProblem, UsageError
from landscape.seeding import stream

torch.set_num_threads(1)
WITH_FILES = [name for name, known in data.DATASETS.items() if known.files]


def need(name):
    """Skip, by name, where the real set is not at hand."""
    if not all((data.root_of() / path).is_file() for path, _ in data.DATASETS[name].files):
        pytest.skip(f"{name} is not in {data.root_of()}")


def random_bytes(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream(seed, "test"))


def images_of(store, labels=None):
    return data.Images(store, torch.zeros(len(store), dtype=torch.long) if labels is None else labels)


def augment(text, name="CIFAR10"):
    return data.parse_augment(text, data.DATASETS[name])


# --- the table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(name for name, known in data.DATASETS.items() if not known.text))
def test_the_table_says_what_the_files_hold(name):
    need(name)
    known, loaded = data.entry(name), data.load(name)
    assert loaded.preprocessing == dict(dataset=name, image_size=known.image_size, channels=known.channels)
    assert (len(loaded.full), len(loaded.test)) == known.sizes
    assert loaded.full.shape == (known.channels, known.image_size, known.image_size)
    assert set(loaded.full.labels.tolist()) == set(range(len(known.classes)))
    first = second = 0
    for part in loaded.full.store.split(1000):
        x = part.flatten(0, 2).double() / 255
        first, second = first + x.mean(0) * len(part), second + (x * x).mean(0) * len(part)
    mean = first / len(loaded.full)
    std = (second / len(loaded.full) - mean**2).sqrt()
    assert torch.allclose(mean, torch.tensor(known.mean, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(std, torch.tensor(known.std, dtype=torch.float64), atol=1e-4)


def test_checksums_are_torchvisions():
    for name in ("CIFAR10", "CIFAR100"):
        reader = getattr(readers, name)
        sums = [*reader.train_list, *reader.test_list, [reader.meta["filename"], reader.meta["md5"]]]
        assert data.DATASETS[name].files == tuple((f"{reader.base_folder}/{file}", md5) for file, md5 in sums)
    split = readers.SVHN.split_list
    assert data.DATASETS["SVHN"].files == tuple(tuple(split[part][1:]) for part in ("train", "test"))


def test_digits_are_scaled_and_the_last_360_are_the_test_set():
    from sklearn.datasets import load_digits

    loaded, raw = data.load("digits"), load_digits()
    assert torch.equal(loaded.test.labels, torch.from_numpy(raw.target[-360:]).long())
    assert np.abs(loaded.full.images[..., 0].numpy() - raw.images[:-360] * 255 / 16).max() <= 0.5


def test_fake_is_deterministic_and_can_be_learned():
    first, second = data.load("fake:1x12x12:4:200"), data.load("fake:1x12x12:4:200")
    assert torch.equal(first.train.images, second.train.images) and first.train.shape == (1, 12, 12)
    assert len(first.entry.classes) == 4 and len(first.test) == 100
    x, y = first.train.images.double().flatten(1), first.train.labels
    centres = torch.stack([x[y == c].mean(0) for c in range(4)])
    guess = torch.cdist(first.test.images.double().flatten(1), centres).argmin(1)
    assert (guess == first.test.labels).double().mean() > 0.95


@pytest.mark.parametrize(
    ("name", "word"),
    [("CIFAR-10", "CIFAR10"), ("mnist", "MNIST"), ("digit", "digits"), ("x", "known"), ("fake:3x8", "form")],
)
def test_an_unknown_name_is_refused_with_a_hint(name, word):
    with pytest.raises(UsageError, match=word):
        data.load(name)


# --- batches against torchvision ----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_torchvisions_to_the_bit(channels):
    size, pad, n = 32, 4, 60
    images = images_of(random_bytes(n, size, size, channels))
    known = data.DATASETS["CIFAR10" if channels == 3 else "MNIST"]
    normalize = data.normalization("dataset", known)
    steps = augment("crop,flip,vflip")
    draws = images.draw(steps, stream(1, "draws"))
    rows = torch.randperm(n, generator=stream(2, "rows"))[:40]
    ours = images.batch(rows, normalize, steps, draws)
    assert ours.shape == (40, channels, size, size) and ours.dtype == torch.float32
    assert ours.is_contiguous(memory_format=torch.channels_last)
    for x, row in zip(ours, rows.tolist()):
        top, left = draws["crop"][row].tolist()
        twin = T.to_pil_image(images.images[row].permute(2, 0, 1))
        twin = T.crop(T.pad(twin, pad), top, left, size, size)
        twin = T.hflip(twin) if draws["flip"][row] else twin
        twin = T.vflip(twin) if draws["vflip"][row] else twin
        assert torch.equal(x, T.normalize(T.to_tensor(twin), known.mean, known.std))


def test_pixels_are_plain_and_never_augmented():
    images = images_of(random_bytes(5, 8, 8, 3)).subset(torch.tensor([4, 2, 0]))
    assert torch.equal(images.pixels([2, 0]), images.store[[0, 4]].permute(0, 3, 1, 2).float() / 255)


@pytest.mark.parametrize("text", ["crop,flip", "resized,rotate,jitter"])
def test_batch_size_and_order_change_nothing(text):
    images, steps = images_of(random_bytes(23, 16, 16, 3), torch.arange(23)), augment(text)
    normalize = data.normalization("legacy", data.DATASETS["CIFAR10"])
    draws = images.draw(steps, stream(0, "draws"))
    whole = images.batch(torch.arange(23), normalize, steps, draws)
    rows = torch.randperm(23, generator=stream(0, "rows"))
    for size in (1, 7, 23, 100):
        seen = list(images.batches(rows, size, normalize, steps, draws))
        assert torch.equal(torch.cat([r for _, _, r in seen]), rows)
        assert torch.equal(torch.cat([y for _, y, _ in seen]), rows)
        assert torch.equal(torch.cat([x for x, _, _ in seen]), whole[rows])


def test_draws_come_from_their_generator_alone():
    images = images_of(random_bytes(9, 8, 8, 3))
    steps = augment("resized," + ",".join(name for name in AUGMENTS if name != "resized"))
    state = torch.random.get_rng_state()
    first, second = (images.draw(steps, stream(5, "draws")) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) and len(first[k]) == 9 for k in first)
    assert list(first) == [name for name, _ in steps.steps] and len(first) == len(AUGMENTS)
    images.batch(torch.arange(9), None, steps, first)
    assert torch.equal(state, torch.random.get_rng_state())


# --- each augmentation against torchvision's functional -----------------------------------------------------


def apply(text, images):
    """The augmented images as (B, C, H, W), their draws, and the images as (B, C, H, W)."""
    steps = augment(text)
    draws = steps.draw(len(images), stream(3, "draws"), images.shape[1])
    out = steps.apply(images.clone(), draws)
    assert out.dtype == torch.uint8 and out.shape == images.shape
    return out.permute(0, 3, 1, 2), next(iter(draws.values())), images.permute(0, 3, 1, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness(channels):
    ours, factors, images = apply("brightness=0.6", random_bytes(40, 9, 9, channels))
    for x, factor, image in zip(ours, factors.tolist(), images):
        assert torch.equal(x, T.adjust_brightness(image, factor))
    assert factors.min() >= 0.4 and factors.max() <= 1.6


def test_rotate():
    ours, angles, images = apply("rotate=40", random_bytes(40, 20, 20, 3))
    twin = torch.stack([T.rotate(image, angle) for image, angle in zip(images, angles.tolist())])
    assert (ours != twin).float().mean() < 1e-3  # halfway between two pixels either may be taken
    assert angles.abs().max() <= 40 and angles.min() < -20 and angles.max() > 20


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("which", range(4))
def test_each_part_of_jitter(which, channels):
    changes = (T.adjust_brightness, T.adjust_contrast, T.adjust_saturation, T.adjust_hue)
    text = "jitter=" + "/".join("0.4" if i == which else "0" for i in range(4))
    ours, rows, images = apply(text, random_bytes(40, 9, 9, channels))
    for x, factor, image in zip(ours, rows[:, which].tolist(), images):
        near = (x.int() - changes[which](image, factor).int()).abs().max()
        assert near <= (1 if which == 3 else 0)  # hue has another formula and rounds otherwise


def test_jitter_takes_its_parts_in_the_drawn_order():
    changes = (T.adjust_brightness, T.adjust_contrast, T.adjust_saturation)
    ours, rows, images = apply("jitter=0.5", random_bytes(40, 9, 9, 3))
    for x, row, image in zip(ours, rows, images):
        for which in row[4:].long().tolist():
            image = changes[which](image, row[which].item()) if which < 3 else image
        assert torch.equal(x, image)
    assert len({tuple(order) for order in rows[:, 4:].tolist()}) > 10


def test_shift_moves_and_clips():
    ours, deltas, images = apply("shift=0.5", random_bytes(40, 9, 9, 3))
    exact = (images.float() / 255 + deltas.view(-1, 1, 1, 1)).clamp(0, 1)
    assert (ours.float() / 255 - exact).abs().max() <= 0.5 / 255 + 1e-6


def test_resized_is_torchvisions_up_to_one_level():
    smooth = T.resize(random_bytes(30, 3, 9, 9), [40, 40]).permute(0, 2, 3, 1).contiguous()
    for images in (smooth, random_bytes(30, 40, 40, 3)):
        ours, rows, plain = apply("resized=0.1", images)
        boxes = resized_boxes(rows, 40, 40, (0.1,)).tolist()
        twin = torch.stack([T.resized_crop(i, *box, [40, 40]) for i, box in zip(plain, boxes)])
        assert (ours.int() - twin.int()).abs().max() <= 1


def test_resized_boxes_have_torchvisions_shapes():
    rows = torch.rand(4000, 22, generator=stream(0, "rows"))
    for height, width in ((64, 64), (50, 90), (8, 200)):
        top, left, tall, wide = resized_boxes(rows, height, width, (0.08,)).double().unbind(1)
        assert (top >= 0).all() and (left >= 0).all() and (tall >= 1).all() and (wide >= 1).all()
        assert (top + tall <= height).all() and (left + wide <= width).all()
        shape = wide / tall
        assert shape.min() > 0.6 and shape.max() < 1.6
    top, left, tall, wide = resized_boxes(rows, 64, 64, (0.08,)).double().unbind(1)
    share = (tall * wide / 64**2).sort().values
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    picture = torch.zeros(1, 64, 64)
    twin = [RandomResizedCrop.get_params(picture, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(4000)]
    twin = torch.tensor(twin)
    theirs = (twin[:, 2] * twin[:, 3] / 64**2).double().sort().values
    assert (share - theirs).abs().max() < 0.05  # the quantiles of two samples of 4,000
    assert abs(top.mean() - twin[:, 0].double().mean()) < 0.6


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("crp", "did you mean crop"),
        ("crop,crop", "twice"),
        ("flip,resized", "first"),
        ("flip=2", "0..1"),
        ("rotate=much", "not a number"),
        ("jitter=1/2", "needs 4"),
        ("none,flip", "unknown"),
    ],
)
def test_an_augmentation_that_makes_no_sense_is_refused(text, word):
    with pytest.raises(UsageError, match=word):
        augment(text)


def test_auto_and_the_written_form():
    assert str(augment("auto")) == "crop=0,flip=0.5" and str(augment("auto", "digits")) == "none"
    assert not augment("none") and augment("flip")
    for text in ("crop=2,rotate=30", "jitter=0.2", "resized,flip,shift"):
        assert augment(str(augment(text))) == augment(text)


# --- normalisation ------------------------------------------------------------------------------------------


def test_normalizations():
    cifar, mnist = data.DATASETS["CIFAR10"], data.DATASETS["MNIST"]
    assert data.normalization("dataset", cifar)["std"] == (0.2470, 0.2435, 0.2616)
    assert data.normalization("legacy", cifar)["std"] == (0.2023, 0.1994, 0.2010)
    assert data.normalization("dataset", mnist, 3)["mean"] == (0.1307,) * 3
    assert data.normalization(".5/.25", cifar) == {"kind": "custom", "mean": (0.5,) * 3, "std": (0.25,) * 3}
    x = random_bytes(2, 4, 4, 3)
    assert torch.equal(data.to_float(x, data.normalization("none", cifar)), data.to_float(x))
    for bad in ("datset", "1,2/3,4", ".5,.5,.5/0,1,1"):
        with pytest.raises(UsageError, match="--normalize"):
            data.normalization(bad, cifar)
    with pytest.raises(UsageError, match="--normalize legacy"):
        data.normalization("legacy", mnist)


# --- sizes, splits, subsets ---------------------------------------------------------------------------------


def test_any_set_takes_the_size_and_channels_asked_for():
    loaded = data.load("digits", image_size=32, channels=3)
    assert loaded.train.shape == loaded.test.shape == (3, 32, 32)
    one = data.load("digits").full.images[:20].permute(0, 3, 1, 2)
    twin = T.resize(one, [32, 32], antialias=True).expand(-1, 3, -1, -1)
    assert torch.equal(loaded.full.images[:20].permute(0, 3, 1, 2), twin)
    for wrong in ({"channels": 1}, {"channels": 2}, {"image_size": -1}):
        with pytest.raises(UsageError):
            data.load("fake", **wrong)


def test_the_split_is_a_partition_that_data_seed_owns():
    base = data.load("digits", val_size=300, train_size=500, data_seed=1)
    again = data.load("digits", val_size=300, train_size=500, data_seed=1, noise_seed=9)
    other = data.load("digits", val_size=300, train_size=500, data_seed=2)
    assert torch.equal(base.train.ids, again.train.ids) and torch.equal(base.val.ids, again.val.ids)
    assert not torch.equal(base.val.ids, other.val.ids) and not torch.equal(base.train.ids, other.train.ids)
    assert torch.equal(base.test.images, other.test.images)
    assert torch.equal(base.full.images, other.full.images)
    whole = data.load("digits", val_size=300, data_seed=1)
    assert torch.equal(whole.val.ids, base.val.ids)
    assert sorted(whole.train.ids.tolist() + whole.val.ids.tolist()) == list(range(len(base.full)))
    smaller = data.load("digits", val_size=300, train_size=100, data_seed=1)
    assert set(smaller.train.ids.tolist()) < set(base.train.ids.tolist()) < set(whole.train.ids.tolist())
    for part in (base.train, base.val):
        assert torch.equal(part.images, base.full.images[part.ids])
        assert torch.equal(part.labels, base.full.labels[part.ids])
        assert part.store.data_ptr() == base.full.store.data_ptr()  # a split copies nothing


def test_the_validation_set_is_5000_of_a_large_set_and_none_of_a_small_one():
    assert len(data.load("digits").val) == 0
    assert len(data.load("fake:1x2x2:2:20000").val) == 5000
    assert list(data.load("digits").val.batches(None, 8, None)) == []


@pytest.mark.parametrize("key, size", [("val_size", 1437), ("val_size", -1), ("train_size", 1438)])
def test_sizes_that_do_not_fit_are_refused(key, size):
    with pytest.raises(UsageError, match=f"{key} {size} does not fit"):
        data.load("digits", **{key: size})


def test_moving_keeps_the_store_shared():
    moved = data.load("digits", val_size=100).to("meta")
    assert moved.train.labels.device.type == moved.test.store.device.type == "meta"
    assert moved.train.store is moved.full.store is moved.val.store


# --- label noise --------------------------------------------------------------------------------------------


def test_noise_is_balanced_symmetric_and_leaves_the_global_state():
    labels = torch.arange(10).repeat_interleave(torch.arange(1, 11) * 500)
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    given, changed = data.noisy_labels(labels, 0.2, 10, stream(0, "noise"))
    assert torch.equal(states[0], torch.random.get_rng_state()) and states[2] == random.getstate()
    assert (states[1] == np.random.get_state()[1]).all()
    assert torch.equal((given != labels).nonzero().squeeze(1), changed)
    assert torch.bincount(labels[changed]).tolist() == [int(0.2 * 500 * k) for k in range(1, 11)]
    counts = torch.bincount(labels[changed] * 10 + given[changed], minlength=100).view(10, 10).double()
    assert counts.diagonal().sum() == 0
    share = counts[9] / counts[9].sum()  # 1,000 draws among 9 classes
    assert (share[:9] - 1 / 9).abs().max() < 0.04
    same, _ = data.noisy_labels(labels, 0.2, 10, stream(0, "noise"))
    other, _ = data.noisy_labels(labels, 0.2, 10, stream(1, "noise"))
    assert torch.equal(same, given) and not torch.equal(other, given)
    none, changed = data.noisy_labels(labels, 0.0, 10, stream(0, "noise"))
    assert torch.equal(none, labels) and len(changed) == 0


def test_uniform_noise_may_draw_the_true_class():
    labels = torch.arange(10).repeat(2000)
    given, changed = data.noisy_labels(labels, 0.5, 10, stream(0, "noise"), "uniform")
    assert torch.equal((given != labels).nonzero().squeeze(1), changed)
    assert abs(len(changed) / len(labels) - 0.5 * 0.9) < 4 * (0.45 * 0.55 / len(labels)) ** 0.5
    drawn = torch.bincount(given[changed], minlength=10) / len(changed)
    assert (drawn - 0.1).abs().max() < 0.02


def test_asymmetric_noise_changes_the_confused_classes_alone():
    cifar = data.entry("CIFAR10")
    names, labels = cifar.classes, torch.arange(10).repeat_interleave(100)
    given, changed = data.noisy_labels(labels, 0.4, 10, stream(0, "noise"), "asymmetric", data.confusions(cifar))
    found = {(names[a], names[b]) for a, b in zip(labels[changed].tolist(), given[changed].tolist())}
    assert found == {("truck", "automobile"), ("bird", "airplane"), ("cat", "dog"), ("dog", "cat"), ("deer", "horse")}
    assert torch.bincount(labels[changed], minlength=10).tolist() == [0, 0, 40, 40, 40, 40, 0, 0, 0, 40]
    with pytest.raises(UsageError, match="asymmetric is for CIFAR10"):
        data.load("digits", noise=0.2, noise_kind="asymmetric")
    with pytest.raises(UsageError, match="known are symmetric"):
        data.load("digits", noise=0.2, noise_kind="asymetric")


def test_cifar_gets_1000_wrong_labels_a_class_whatever_the_global_state():
    need("CIFAR10")
    torch.manual_seed(1)
    one = data.load("CIFAR10", val_size=0, noise=0.2).train
    torch.manual_seed(2)
    other = data.load("CIFAR10", val_size=0, noise=0.2).train
    wrong = one.labels != one.true_labels
    assert torch.bincount(one.true_labels[wrong]).tolist() == [1000] * 10
    assert torch.equal(one.labels, other.labels)


def test_noise_touches_the_training_labels_alone():
    clean = data.load("digits", val_size=200, data_seed=3)
    noisy = data.load("digits", val_size=200, data_seed=3, noise=0.3, noise_seed=0)
    other = data.load("digits", val_size=200, data_seed=3, noise=0.3, noise_seed=1)
    assert torch.equal(noisy.train.true_labels, clean.train.labels)
    assert torch.equal(noisy.train.ids, clean.train.ids) and torch.equal(other.train.ids, clean.train.ids)
    assert not torch.equal(noisy.train.labels, other.train.labels)
    share = (noisy.train.labels != noisy.train.true_labels).float().mean()
    assert 0.29 < share <= 0.3
    for part in ("val", "test", "full"):
        assert torch.equal(getattr(noisy, part).labels, getattr(clean, part).true_labels)
    _, given, _ = next(noisy.train.batches(None, 64, None))
    assert torch.equal(given, noisy.train.labels[:64])


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(rate):
    with pytest.raises(UsageError, match="--noise"):
        data.load("fake", noise=rate)


def test_noise_from_a_file(tmp_path):
    labels = torch.randint(0, 10, (1437,), generator=stream(0, "test"))
    np.save(tmp_path / "l.npy", labels.numpy())
    np.savez(tmp_path / "l.npz", worse=labels.numpy(), other=labels.numpy()[:10])
    np.savetxt(tmp_path / "l.txt", labels.numpy(), fmt="%d")
    torch.save({"worse": labels}, tmp_path / "l.pt")
    for spec in ("l.npy", "l.npz:worse", "l.txt", "l.pt", "l.pt:worse"):
        loaded = data.load("digits", val_size=400, noise_file=f"{tmp_path}/{spec}")
        assert torch.equal(loaded.train.labels, labels[loaded.train.ids])
        assert torch.equal(loaded.train.true_labels, loaded.full.labels[loaded.train.ids])
        assert torch.equal(loaded.val.labels, loaded.full.labels[loaded.val.ids])


def test_a_noise_file_that_does_not_fit_is_refused(tmp_path):
    good = np.zeros(1437, dtype=np.int64)
    np.savez(tmp_path / "two.npz", a=good, b=good)
    np.save(tmp_path / "short.npy", good[:-1])
    np.save(tmp_path / "eleven.npy", good + 10)
    np.save(tmp_path / "half.npy", good + 0.5)
    np.save(tmp_path / "code.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "code.pt").write_bytes(pickle.dumps(print))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:100])
    (tmp_path / "word.txt").write_text("cat\n")
    refusals = {
        "two.npz": UsageError, "two.npz:c": UsageError, "l.csv": UsageError, "none.npy": FileProblem,
        "short.npy": ContentError, "eleven.npy": ContentError, "half.npy": ContentError,
        "code.npy": ContentError, "code.pt": ContentError, "cut.npz": ContentError, "word.txt": ContentError,
    }  # fmt: skip
    for spec, refusal in refusals.items():
        with pytest.raises(refusal, match="--noise_file") as caught:
            data.load("digits", noise_file=f"{tmp_path}/{spec}")
        assert "\n" not in str(caught.value), spec


def test_a_stored_permutation_of_the_training_images(tmp_path):
    rng = np.random.default_rng(0)
    order, drawn = rng.permutation(1437), rng.integers(10, size=1437)
    np.save(tmp_path / "digits.npy", order)
    with pytest.raises(UsageError, match="needs .*digits_labels.npy beside it"):
        data.load("digits", noise=0.2, noise_file=f"{tmp_path}/digits.npy")
    np.save(tmp_path / "digits_labels.npy", drawn)
    clean = data.load("digits", val_size=0).train.labels.numpy()
    wanted = clean.copy()
    for k in range(int(1437 * 0.2)):
        wanted[order[k]] = drawn[k]
    found = data.load("digits", val_size=100, noise=0.2, noise_file=f"{tmp_path}/digits.npy").train
    assert np.array_equal(found.labels.numpy(), wanted[found.ids.numpy()])
    assert np.array_equal(found.true_labels.numpy(), clean[found.ids.numpy()])
    wrong = (wanted != clean).mean()
    assert 0.16 < wrong < 0.2  # about 0.9 of the rate: the own class is among the labels
    more = data.load("digits", val_size=0, noise=0.4, noise_file=f"{tmp_path}/digits.npy").train.labels.numpy()
    assert np.array_equal(more[order[:287]], wanted[order[:287]])  # rates are nested
    order[0] = order[1]
    np.save(tmp_path / "digits.npy", order)
    with pytest.raises(ContentError, match="an image twice"):
        data.load("digits", noise=0.2, noise_file=f"{tmp_path}/digits.npy")
    with pytest.raises(FileProblem, match="no such file"):
        data.load("digits", noise=0.2, noise_file=f"{tmp_path}/none.npy")


def test_cifar10n_has_its_published_share_of_wrong_labels():
    need("CIFAR10")
    path = data.root_of() / "cifar10n" / "CIFAR-10_human.npz"
    if not path.is_file():
        pytest.skip(f"CIFAR-10N is not in {data.root_of()}")
    train = data.load("CIFAR10", val_size=0, noise_file=f"{path}:worse_label").train
    assert abs((train.labels != train.true_labels).double().mean().item() - 0.4021) < 1e-4
    balanced = data.noisy_labels(train.true_labels, 0.2, 10, stream(0, "noise"))[1]
    assert torch.bincount(train.true_labels[balanced]).tolist() == [1000] * 10


# --- folders and streaming ----------------------------------------------------------------------------------


def write_pictures(root, sizes, parts=(("train", 12), ("val", 5)), classes=("ant", "bee", "cow")):
    """An ImageFolder of random pictures; their sizes are taken in turn."""
    seed = 0
    for part, count in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                height, width = sizes[seed % len(sizes)]
                picture = T.to_pil_image(random_bytes(3, height, width, seed=seed))
                picture.save(root / part / name / f"{index:03}.png")
                seed += 1
    return f"folder:{root}"


@pytest.mark.parametrize("image_size", [0, 12])
@pytest.mark.parametrize("text", ["crop,flip", "resized,flip,jitter"])
def test_streamed_and_resident_give_the_same_batches(tmp_path, text, image_size):
    name = write_pictures(tmp_path, [(16, 16)])
    options = {"val_size": 6, "noise": 0.2, "image_size": image_size}
    resident = data.load(name, **options)
    streamed = data.load(name, **options, resident=False, workers=2)
    assert type(resident.train) is data.Images and type(streamed.train) is data.Streamed
    assert resident.train.shape == streamed.train.shape == (3, image_size or 16, image_size or 16)
    steps, normalize = data.parse_augment(text, resident.entry), data.normalization("dataset", resident.entry)
    rows = torch.randperm(len(resident.train), generator=stream(0, "rows"))
    state = torch.random.get_rng_state()
    both = []
    for loaded in (resident, streamed):
        draws = loaded.train.draw(steps, stream(0, "draws"))
        both.append(list(loaded.train.batches(rows, 8, normalize, steps, draws)))
        alone = loaded.train.batch(rows[8:16], normalize, steps, draws)
        assert torch.equal(alone, both[-1][1][0])
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(both[0]) == len(both[1]) == 4
    for ours, theirs in zip(*both):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
        assert ours[0].stride() == theirs[0].stride()
    assert torch.equal(resident.full.pixels([3, 1]), streamed.full.pixels([3, 1]))
    assert torch.equal(resident.test.images, streamed.test.images)
    assert torch.equal(streamed.to("cpu").val.images, resident.val.images)


def test_pictures_of_many_sizes_are_seen_as_imagenet_is(tmp_path):
    name = write_pictures(tmp_path, [(40, 60), (70, 50), (64, 64)], (("train", 4), ("val", 3), ("test", 2)))
    loaded = data.load(name, image_size=28, workers=0)
    assert loaded.entry.image_size == 224 and type(loaded.train) is data.Streamed
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (12, 9, 6)
    steps = data.parse_augment("auto", loaded.entry)
    draws = loaded.train.draw(steps, stream(0, "draws"))
    ours = loaded.train.batch(torch.arange(12), None, steps, draws)
    for row in range(12):
        picture = Image.open(loaded.train.reader.paths[row])
        plain = T.center_crop(T.resize(picture, 32), 28)
        assert torch.equal(loaded.train.pixels([row])[0], T.to_tensor(plain))
        boxes = resized_boxes(draws["resized"], picture.height, picture.width, (0.08,))
        twin = T.resized_crop(picture, *boxes[row].tolist(), [28, 28])
        twin = T.hflip(twin) if draws["flip"][row] else twin
        assert torch.equal(ours[row], T.to_tensor(twin))
    for wrong in ({"resident": True}, {"val_size": 3}, {"channels": 1}):
        with pytest.raises(UsageError):
            data.load(name, **wrong)


def test_tinyimagenets_layout(tmp_path):
    classes = ["n01", "n02"]
    for seed, name in enumerate(classes):
        (tmp_path / "train" / name / "images").mkdir(parents=True)
        for index in range(3):
            picture = T.to_pil_image(random_bytes(3, 16, 16, seed=10 * seed + index))
            picture.save(tmp_path / "train" / name / "images" / f"{name}_{index}.JPEG")
    lines = []
    for part in ("val", "test"):
        (tmp_path / part / "images").mkdir(parents=True)
        for index in range(4):
            T.to_pil_image(random_bytes(3, 16, 16, seed=90 + index)).save(
                tmp_path / part / "images" / f"{part}_{index}.JPEG"
            )
            lines += [f"{part}_{index}.JPEG\t{classes[index % 2]}\t0\t0\t62\t62\n"] if part == "val" else []
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    loaded = data.load(f"folder:{tmp_path}")
    assert loaded.entry.classes == ("n01", "n02") and loaded.entry.sizes == (6, 4)
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and loaded.test.labels.tolist() == [0, 1, 0, 1]
    assert len(loaded.val) == 0 and loaded.train.shape == (3, 16, 16)
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn03\n")
    with pytest.raises(ContentError, match="val_annotations"):
        data.load(f"folder:{tmp_path}")


def test_a_folder_that_is_not_right_is_refused(tmp_path):
    with pytest.raises(FileProblem, match="no train/"):
        data.load(f"folder:{tmp_path}")
    name = write_pictures(tmp_path, [(8, 8)], (("train", 2),))
    with pytest.raises(FileProblem, match="neither val/ nor test/"):
        data.load(name)
    (tmp_path / "val" / "dog").mkdir(parents=True)
    with pytest.raises(ContentError, match="dog"):
        data.load(name)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_named_in_one_line(tmp_path, workers):
    name = write_pictures(tmp_path, [(16, 16)], (("train", 200), ("val", 2)), ("ant", "bee"))
    broken = tmp_path / "train" / "ant" / "001.png"
    broken.write_bytes(broken.read_bytes()[:200])
    loaded = data.load(name, resident=False, workers=workers)
    with pytest.raises(ContentError, match="001.png") as caught:
        list(loaded.train.batches(None, 8, None))
    assert "\n" not in str(caught.value)
    with pytest.raises(ContentError, match="001.png"):
        data.load(name)
    with pytest.raises(ContentError, match="001.png"):
        data.main(["verify", name])


# --- files: missing, corrupt, small ones of the same format -------------------------------------------------


@pytest.mark.parametrize("name", WITH_FILES)
def test_a_missing_set_names_the_command_that_mends_it(name, tmp_path):
    with pytest.raises(FileProblem, match=f"landscape.data fetch {name}.*digits") as caught:
        data.load(name, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["CIFAR10", "MNIST"])
def test_a_truncated_file_is_named(name, tmp_path):
    need(name)
    files = [path for path, _ in data.DATASETS[name].files]
    for path in files:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(data.root_of() / path, tmp_path / path)
    raw = (tmp_path / files[1]).read_bytes()
    (tmp_path / files[1]).unlink()
    (tmp_path / files[1]).write_bytes(raw[: len(raw) // 2])
    verify = ["verify", name, "--data_root", str(tmp_path)]
    for refused in (lambda: data.load(name, tmp_path), lambda: data.main(verify)):
        with pytest.raises(ContentError, match=f"{files[1]} is corrupt.*landscape.data fetch {name}"):
            refused()


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def declare(monkeypatch, name, root, paths):
    """Make our table expect these files."""
    known = data.DATASETS[name]
    files = tuple((path, md5(root / path)) for path in paths)
    monkeypatch.setitem(data.DATASETS, name, data.replace(known, files=files))
    return {os.path.basename(path): sum for path, sum in files}


def write_cifar100(root, monkeypatch):
    """CIFAR-100's files with a few images, and torchvision's reader told their checksums."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rows = {"train": random_bytes(30, 3072, seed=1).numpy(), "test": random_bytes(10, 3072, seed=2).numpy()}
    for part, images in rows.items():
        entry = {"data": images, "fine_labels": [7 * i % 100 for i in range(len(images))]}
        (folder / part).write_bytes(pickle.dumps(entry))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(data.DATASETS["CIFAR100"].classes)}))
    names = [f"cifar-100-python/{name}" for name in ("train", "test", "meta")]
    sums = declare(monkeypatch, "CIFAR100", root, names)
    monkeypatch.setattr(readers.CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(readers.CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(readers.CIFAR100, "meta", {**readers.CIFAR100.meta, "md5": sums["meta"]})
    return rows


def test_cifar100_is_read(tmp_path, monkeypatch):
    rows = write_cifar100(tmp_path, monkeypatch)
    loaded = data.load("CIFAR100", tmp_path)
    assert loaded.train.images.permute(0, 3, 1, 2).reshape(30, -1).equal(torch.from_numpy(rows["train"]))
    assert loaded.test.labels.tolist() == [7 * i % 100 for i in range(10)]


def test_svhn_is_read(tmp_path, monkeypatch):
    from scipy.io import savemat

    images = random_bytes(32, 32, 3, 20).numpy()
    for part in ("train", "test"):
        savemat(tmp_path / f"{part}_32x32.mat", {"X": images, "y": np.arange(1, 21).reshape(-1, 1) % 10 + 1})
    sums = declare(monkeypatch, "SVHN", tmp_path, ["train_32x32.mat", "test_32x32.mat"])
    split = {part: ["", f"{part}_32x32.mat", sums[f"{part}_32x32.mat"]] for part in ("train", "test")}
    monkeypatch.setattr(readers.SVHN, "split_list", split)
    loaded = data.load("SVHN", tmp_path)
    assert torch.equal(loaded.train.images, torch.from_numpy(images).permute(3, 0, 1, 2))
    assert loaded.train.store.is_contiguous()  # a transposed view would make each batch slow
    assert sorted(set(loaded.test.labels.tolist())) == list(range(10)) and loaded.test.labels[8] == 0


# --- the command --------------------------------------------------------------------------------------------


def test_list_shows_every_set_and_its_state(tmp_path, capsys):
    (tmp_path / "train_32x32.mat").touch()
    data.main(["list", "--data_root", str(tmp_path)])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(data.DATASETS) < set(lines)
    assert "needs none" in lines["digits"] and "missing" in lines["CIFAR10"] and "1 of 2" in lines["SVHN"]


def test_verify(tmp_path, capsys):
    data.main(["verify", "digits"])
    assert "digits: OK" in capsys.readouterr().out
    with pytest.raises(FileProblem, match="is missing"):
        data.main(["verify", "SVHN", "--data_root", str(tmp_path)])
    with pytest.raises(UsageError, match="did you mean MNIST"):
        data.main(["verify", "mnist"])
    with pytest.raises(UsageError, match="name"):
        data.main(["fetch"])
    data.main(["verify", write_pictures(tmp_path, [(8, 9)])])
    assert "OK (51 files)" in capsys.readouterr().out


@pytest.fixture
def server(tmp_path):
    """A folder, and the URL under which this machine serves it."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            """Nothing on stderr."""

    (tmp_path / "server").mkdir()
    handler = functools.partial(Handler, directory=tmp_path / "server")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield tmp_path / "server", f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_fetch_takes_a_mirror_checks_md5_and_is_done_once(server, tmp_path, monkeypatch, capsys):
    (source, url), root = server, tmp_path / "root"
    write_cifar100(source, monkeypatch)
    archive = source / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source / "cifar-100-python", "cifar-100-python")
    monkeypatch.setattr(readers.CIFAR100, "tgz_md5", md5(archive))
    fetch = ["fetch", "CIFAR100", "--data_root", str(root), "--mirror"]
    data.main([*fetch, f"{url}/{archive.name}"])
    assert "CIFAR100: OK (3 files)" in capsys.readouterr().out
    assert len(data.load("CIFAR100", root).train) == 30
    data.main([*fetch, "http://127.0.0.1:9"])  # everything is there: nothing is asked of the mirror
    (root / "cifar-100-python" / "train").write_bytes(b"cut")
    (root / archive.name).unlink()
    data.main([*fetch, f"{url}/"])  # mended, from a folder's URL
    shutil.rmtree(root)
    archive.write_bytes(archive.read_bytes()[:-20])
    with pytest.raises(ContentError, match="md5"):
        data.main([*fetch, url])
    with pytest.raises(FileProblem, match="could not be fetched") as caught:
        data.main([*fetch, f"{url}/nowhere"])
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="several files"):
        data.fetch("MNIST", root, "http://x/train.gz")
    with pytest.raises(UsageError, match="must begin with"):
        data.fetch("CIFAR100", root, str(source))


def test_fetch_without_a_network_is_one_line(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    for name in WITH_FILES:
        with pytest.raises(FileProblem, match=f"{name} could not be fetched") as caught:
            data.fetch(name, tmp_path)
        assert "\n" not in str(caught.value)


def test_the_command_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "landscape.data", "verify", "SVHN", "--data_root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and done.stdout == "" and len(done.stderr.strip().splitlines()) == 1
