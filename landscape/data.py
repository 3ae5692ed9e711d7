"""Data sets as uint8 tensors that live on the device: table, readers, splits, label noise, batches, command.

    python -m landscape.data list
    python -m landscape.data fetch CIFAR10
    python -m landscape.data verify CIFAR10

Crop, flip and normalisation happen per batch and give to the bit what torchvision gives with the same draws.
Loading never downloads; only `fetch` does.
"""

# N images, B images of a batch, H rows, W columns, C channels.

import argparse
import contextlib
import copy
import ctypes
import difflib
import fcntl
import functools
import io
import os
import pickle
import socket
import warnings
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from landscape.augment import AUGMENTS, Augment, parse_augment, resized_boxes
from landscape.errors import ContentError, FileProblem, Refusal, UsageError
from landscape.seeding import stream

__all__ = [
    "AUGMENTS", "Augment", "DATASETS", "Data", "Entry", "Images", "Streamed", "entry", "fetch", "load",
    "noisy_labels", "normalization", "parse_augment", "read_noise_file", "to_float", "verify",
]  # fmt: skip

LEGACY = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))  # the std that most CIFAR code copied
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LARGE = 20_000  # training sets from here on give 5,000 images to validation
RESIDENT_BYTES = 2_000_000_000
TEST_VIEW = 256 / 224  # pictures of many sizes: shorter side to 256, then the middle 224


# What the readers raise when a file's content is not theirs.
UNREADABLE = (
    RuntimeError, ValueError, TypeError, EOFError, KeyError, AssertionError, pickle.UnpicklingError,
    zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What is known of a data set: class names, true per-pixel mean and std in [0, 1], size, channels.

    sizes are (train, test); augment is what "auto" means; files are (path under the root, md5).
    """

    classes: tuple
    mean: tuple
    std: tuple
    image_size: int
    channels: int
    sizes: tuple
    augment: str = "none"
    files: tuple = ()


TEN = tuple("0123456789")


def _idx(folder, *sums):
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple((f"{folder}/raw/{name}-ubyte", md5) for name, md5 in zip(names, sums))


DATASETS = {
    "digits": Entry(TEN, (0.3054,), (0.3753,), 8, 1, (1437, 360)),
    "MNIST": Entry(
        TEN, (0.1307,), (0.3081,), 28, 1, (60_000, 10_000),
        files=_idx("MNIST", "6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
                   "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
    ),
    "FashionMNIST": Entry(
        ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
         "ankle boot"),
        (0.2860,), (0.3530,), 28, 1, (60_000, 10_000),
        files=_idx("FashionMNIST", "f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9",
                   "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
    ),
    "CIFAR10": Entry(
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 32, 3, (50_000, 10_000), "crop,flip",
        (
            ("cifar-10-batches-py/data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ("cifar-10-batches-py/data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("cifar-10-batches-py/data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ("cifar-10-batches-py/data_batch_4", "634d18415352ddfa80567beed471001a"),
            ("cifar-10-batches-py/data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
            ("cifar-10-batches-py/test_batch", "40351d587109b95175f43aff81a1287e"),
            ("cifar-10-batches-py/batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        ),
    ),
    "CIFAR100": Entry(
        tuple(
            "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
            "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
            "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo "
            "keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse "
            "mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy "
            "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
            "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
            "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm".split()
        ),
        (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762), 32, 3, (50_000, 10_000), "crop,flip",
        (
            ("cifar-100-python/train", "16019d7e3df5f24257cddd939b257f8d"),
            ("cifar-100-python/test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
            ("cifar-100-python/meta", "7973b15100ade9c7d40fb424638fde48"),
        ),
    ),
    "SVHN": Entry(
        TEN, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), 32, 3, (73_257, 26_032), "crop",
        (
            ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        ),
    ),
    "fake": Entry(TEN, (0.5032, 0.4977, 0.4941), (0.2116, 0.2067, 0.2007), 32, 3, (512, 256)),
}  # fmt: skip


def entry(name, data_root=None):
    """The Entry of a name: a key of DATASETS, "fake:CxHxW:CLASSES:N" or "folder:PATH" (which is read).

    Raises UsageError for an unknown name, FileProblem and ContentError for a folder.
    """
    if name in DATASETS:
        return DATASETS[name]
    if name.startswith("folder:"):
        return _scan(name, data_root)[0]
    if name.startswith("fake:"):
        return _fake_entry(name)
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in DATASETS], 1, 0.5)
    near = [n for n in DATASETS if n.lower() in near]
    known = ", ".join([*DATASETS, "folder:PATH", "fake:CxHxW:CLASSES:N"])
    hint = f"did you mean {near[0]}?" if near else f"known: {known}"
    raise UsageError(f"unknown data set {name!r}; {hint}")


def _line(error):
    """The first line of what another library's error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def root_of(data_root=None):
    """The folder of the data sets: the argument, else $DATA_ROOT, else ~/data."""
    return Path(data_root or os.environ.get("DATA_ROOT") or "~/data").expanduser()


# --- images and batches -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _constants(mean, std, width, device):
    # White is a tensor, since CUDA turns division by a plain number into a product with its reciprocal, which
    # differs in the last bit. Mean and std are laid out for a whole row of pixels: over three channels alone
    # the CPU does not vectorise (5 times slower).
    rows = [None if v is None else torch.tensor(v).repeat(width).to(device) for v in (mean, std)]
    return torch.tensor(255.0, device=device), *rows


def to_float(images, normalize=None):
    """uint8 (B, H, W, C) to float32 (B, C, H, W) in channels_last memory: to the bit ToTensor and Normalize.

    normalize comes from normalization(); None leaves [0, 1].
    """
    count, height, width, channels = images.shape
    plain = normalize is None or normalize["kind"] == "none"
    mean, std = (None, None) if plain else (tuple(normalize["mean"]), tuple(normalize["std"]))
    white, mean, std = _constants(mean, std, width, images.device)
    x = images.reshape(count, height, width * channels).float().div_(white)
    if not plain:
        x.sub_(mean).div_(std)
    return x.view(count, height, width, channels).permute(0, 3, 1, 2)


class Images:
    """Images that live on a device, and their labels. Subsets share one store: a split costs no memory.

    store uint8 (M, H, W, C); ids int64 (N,) into it, which for a training set are the ids in the unsplit set;
    labels int64 (N,) as given, true_labels int64 (N,) before label noise. A row is a position 0..N-1.
    """

    def __init__(self, store, labels, ids=None, true_labels=None):
        self.store = store
        self.labels = labels.to(self.device)
        self.true_labels = self.labels if true_labels is None else true_labels.to(self.device)
        self.ids = torch.arange(len(labels), device=self.device) if ids is None else ids.to(self.device)

    def __len__(self):
        return len(self.ids)

    @property
    def device(self):
        return self.store.device

    @property
    def images(self):
        """All of them, uint8 (N, H, W, C), copied out of the store."""
        return self.gather(torch.arange(len(self), device=self.device))

    @property
    def shape(self):
        """(C, H, W) of one image."""
        height, width, channels = self.store.shape[1:]
        return channels, height, width

    def subset(self, rows):
        """The images of some rows, in their order."""
        rows = rows.to(self.device)
        part = copy.copy(self)
        part.ids, part.labels, part.true_labels = self.ids[rows], self.labels[rows], self.true_labels[rows]
        return part

    def relabel(self, labels):
        """The same images with other given labels; true_labels stay."""
        part = copy.copy(self)
        part.labels = labels.to(self.device)
        return part

    def to(self, device, store=None):
        """The same images on a device; store is the store if it is there already."""
        part = copy.copy(self)
        part.store = self.store.to(device) if store is None else store
        part.labels, part.true_labels = self.labels.to(device), self.true_labels.to(device)
        part.ids = self.ids.to(device)
        return part

    def draw(self, augment, generator):
        """One epoch's draws for every row."""
        return augment.draw(len(self), generator, self.shape[1])

    def gather(self, rows, augment=None, draws=None):
        """uint8 (B, H, W, C), augmented if an augmentation and its draws (of all N rows) are given."""
        images = self.store.index_select(0, self.ids[rows])
        return augment.apply(images, _rows_of(draws, rows)) if augment else images

    def pixels(self, rows):
        """float32 (B, C, H, W) in [0, 1], never augmented. rows: a tensor or list of positions."""
        return to_float(self.gather(torch.as_tensor(rows, device=self.device)))

    def batch(self, rows, normalize, augment=None, draws=None):
        """float32 (B, C, H, W), channels_last, of rows (LongTensor); draws come from draw(), for all N."""
        rows = rows.to(self.device)
        return to_float(self.gather(rows, augment, draws), normalize)

    def batches(self, rows, batch_size, normalize, augment=None, draws=None):
        """Yield (x, given labels, rows) over rows in their order (None: all); the last may be smaller."""
        rows = torch.arange(len(self)) if rows is None else rows
        rows, draws = rows.to(self.device), _on(self.device, draws)
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            yield self.batch(part, normalize, augment, draws), self.labels[part], part


def _on(device, draws):
    return {name: value.to(device) for name, value in (draws or {}).items()}


def _rows_of(draws, rows):
    return {name: value[rows] for name, value in _on(rows.device, draws).items()}


class Streamed(Images):
    """The same for files too many for memory, or of many sizes: they are decoded when a batch asks for them.

    reader is a _Reader; batches() decodes in `workers` processes, in the order of its rows.
    """

    def __init__(self, reader, labels, device, workers):
        super().__init__(torch.empty(0, device=device), labels)  # the store is empty and marks the device
        self.reader, self.workers = reader, workers

    @property
    def shape(self):
        return 3, self.reader.size, self.reader.size

    def gather(self, rows, augment=None, draws=None):
        return self._finish(self._decoded(rows, len(rows), 0, augment, draws), rows, augment, draws)

    def batches(self, rows, batch_size, normalize, augment=None, draws=None):
        rows = torch.arange(len(self)) if rows is None else rows
        on_device = _on(self.device, draws)
        images = self._decoded(rows, batch_size, self.workers, augment, draws)
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size].to(self.device)
            x = to_float(self._finish(images, part, augment, on_device), normalize)
            yield x, self.labels[part], part

    def _decoded(self, rows, batch_size, workers, augment, draws):
        boxes = None
        if augment and augment.values("resized") and not self.reader.uniform:
            boxes = (draws["resized"].cpu()[rows.cpu()], augment.values("resized"))
        return self.reader.batches(self.ids[rows.to(self.device)].tolist(), batch_size, workers, boxes)

    def _finish(self, decoded, rows, augment, draws):
        images = next(decoded).to(self.device)
        if not augment:
            return images
        done = () if self.reader.uniform else ("resized",)  # taken out of the original picture by the reader
        return augment.apply(images, _rows_of(draws, rows.to(self.device)), done)


@dataclass(frozen=True)
class _Reader:
    """Picture files as uint8 squares (size, size, 3).

    uniform: all files have one square size, and size is that or a resize of it. Otherwise the shorter side is
    brought to size * 256 / 224 and the middle taken, as ImageNet is tested.
    """

    paths: list
    size: int
    uniform: bool

    def picture(self, index, box=None):
        from PIL import Image
        from torchvision.transforms import functional as T

        try:
            with Image.open(self.paths[index]) as file:
                picture = file.convert("RGB")
        except FileNotFoundError:
            raise FileProblem(f"{self.paths[index]} is gone since the folder was read; start again") from None
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(self.paths[index], error) from None
        if box is not None:
            width, height = picture.size
            place = resized_boxes(box[0][None], height, width, box[1])[0].tolist()
            picture = T.resized_crop(picture, *place, [self.size, self.size])
        elif not self.uniform:
            picture = T.center_crop(T.resize(picture, round(self.size * TEST_VIEW)), self.size)
        image = torch.from_numpy(np.array(picture))
        return _resize(image[None], self.size)[0]

    def batches(self, order, batch_size, workers, boxes=None):
        """Yield uint8 (B, size, size, 3) of the files of some indices, in their order."""
        source = _Ordered(self, order, boxes)
        # Without a generator of its own a DataLoader takes a seed for its workers from the global one.
        own = torch.Generator().manual_seed(0)
        loader = DataLoader(source, batch_size, num_workers=workers, collate_fn=_stack, generator=own)
        for images in loader:
            if isinstance(images, Refusal):
                raise images
            yield images


@dataclass(frozen=True)
class _Ordered:
    """A _Reader's files in a given order, each with its row of draws: what a DataLoader asks for."""

    reader: _Reader
    order: list
    boxes: tuple | None

    def __len__(self):
        return len(self.order)

    def __getitem__(self, position):
        box = None if self.boxes is None else (self.boxes[0][position], self.boxes[1])
        try:
            return self.reader.picture(self.order[position], box)
        except Refusal as refusal:  # raised in a worker it would arrive as a traceback of many lines
            return refusal


def _unreadable(path, error):
    return ContentError(f"{path} is not a readable picture ({_line(error)}); replace or remove it")


def _stack(images):
    return next((i for i in images if isinstance(i, Refusal)), None) or torch.stack(images)


def _resize(images, size):
    """uint8 (N, H, W, C) to (N, size, size, C): torchvision's antialiased bilinear, nothing if they fit."""
    if tuple(images.shape[1:3]) == (size, size):
        return images
    from torchvision.transforms import functional as T

    parts = [T.resize(part.permute(0, 3, 1, 2), [size, size], antialias=True) for part in images.split(1000)]
    return torch.cat(parts).permute(0, 2, 3, 1).contiguous()


# --- loading ------------------------------------------------------------------------------------------------


@dataclass
class Data:
    """A data set, split. full is the unsplit training set in the order of its files, with its true labels."""

    name: str
    entry: Entry
    train: Images
    val: Images
    test: Images
    full: Images
    preprocessing: dict

    def to(self, device):
        """The same data on another device; what shares a store goes on sharing it."""
        stores, moved = {}, {}
        for part in ("train", "val", "test", "full"):
            images = getattr(self, part)
            moved[part] = images.to(device, stores.get(id(images.store)))
            stores[id(images.store)] = moved[part].store
        return replace(self, **moved)


def load(
    name,
    data_root=None,
    *,
    train_size=0,
    val_size=None,
    data_seed=0,
    noise=0.0,
    noise_file="",
    noise_seed=0,
    image_size=0,
    channels=0,
    device="cpu",
    resident=None,
    workers=2,
):
    """Read a data set, split it, and return Data.

    val_size: None for 5,000 of 20,000 or more training images, else 0 (a folder with val/ beside test/ has
    its own). train_size: that many of what the split left, 0 for all. noise: share of each class whose label
    is changed; noise_file: "FILE" or "FILE:KEY" with a label for each image of the unsplit training set; both
    touch only train. image_size, channels: 0 for the set's own. resident: keep a folder's pictures in memory
    (None: if they are of one size and take less than 2 GB). Raises UsageError, FileProblem (missing) and
    ContentError (corrupt).
    """
    if noise and noise_file:
        raise UsageError("--noise and --noise_file exclude each other: give one")
    pools, known = {}, None
    if name.startswith("folder:"):
        known, files, uniform = _scan(name, data_root)
    else:
        known = entry(name)
    size, depth = image_size or known.image_size, channels or known.channels
    if size < 1 or depth not in (1, 3) or (known.channels, depth) == (3, 1):
        raise UsageError(
            f"{name} has {known.channels} channel(s) of size {known.image_size}: image_size must be positive "
            f"and channels {'3' if known.channels == 3 else '1 or 3'}; given were {size} and {depth}"
        )
    if name.startswith("folder:"):
        for part, (paths, labels) in files.items():
            reader = _Reader(paths, size, uniform)
            pools[part] = _folder_images(reader, torch.tensor(labels), device, resident, workers)
    else:
        for part, (images, labels) in _read(name, data_root).items():
            images = _resize(images, size)
            images = images if images.shape[3] == depth else images.expand(-1, -1, -1, depth).contiguous()
            pools[part] = Images(images.to(device), labels)

    full = pools["train"]
    train, val = _split(name, full, val_size, "val" in pools, data_seed)
    train = _shorten(name, train, train_size, data_seed)
    if noise_file:
        train = train.relabel(read_noise_file(noise_file, len(full), len(known.classes))[train.ids.cpu()])
    elif noise:
        generator = stream(noise_seed, "noise")
        train = train.relabel(noisy_labels(train.labels.cpu(), noise, len(known.classes), generator)[0])
    val = pools.get("val", val)
    preprocessing = {"dataset": name, "image_size": size, "channels": depth}
    return Data(name, known, train, val, pools["test"], full, preprocessing)


def _split(name, full, val_size, has_own, data_seed):
    if has_own and val_size:
        raise UsageError(f"{name} has a val/ beside its test/: leave val_size out")
    count = 5000 if val_size is None and len(full) >= LARGE and not has_own else val_size or 0
    if not 0 <= count < len(full):
        raise UsageError(f"val_size {count} does not fit: {name} has {len(full)} training images")
    order = torch.randperm(len(full), generator=stream(data_seed, "split"))
    return full.subset(order[count:].sort().values), full.subset(order[:count].sort().values)


def _shorten(name, train, train_size, data_seed):
    if not 0 <= train_size <= len(train):
        raise UsageError(f"train_size {train_size} does not fit: {name} has {len(train)} after the split")
    if not train_size:
        return train
    order = torch.randperm(len(train), generator=stream(data_seed, "subset"))
    return train.subset(order[:train_size].sort().values)


def _folder_images(reader, labels, device, resident, workers):
    if resident is None:
        resident = reader.uniform and len(labels) * reader.size**2 * 3 < RESIDENT_BYTES
    if not resident:
        return Streamed(reader, labels, device, workers)
    if not reader.uniform:
        raise UsageError("resident needs pictures of one square size; these differ: leave resident out")
    few = len(labels) < 1000  # not worth starting processes
    store = torch.cat(list(reader.batches(range(len(labels)), 256, 0 if few else workers)))
    return Images(store.to(device), labels)


def _read(name, data_root):
    """{"train": (uint8 (N, H, W, C), int64 (N,)), "test": …}, as the files have them."""
    if name == "digits":
        return _read_digits()
    if name.startswith("fake"):
        return _make_fake(name)
    import torchvision.datasets as readers

    root, known = root_of(data_root), DATASETS[name]
    missing, corrupt = _problems(known, root, name.endswith("MNIST"))  # the other readers look at md5
    if missing:
        raise FileProblem(
            f"{name} is not in {root}: {missing[0]} is missing; `python -m landscape.data fetch {name}` "
            "downloads it, --data_root names another folder, and `--dataset digits` needs no files"
        )
    parts = {}
    try:
        if corrupt:
            raise ValueError("md5 differs")
        for part, train in (("train", True), ("test", False)):
            if name == "SVHN":
                raw = readers.SVHN(root, split=part)
                images, labels = raw.data.transpose(0, 2, 3, 1), raw.labels
            else:
                raw = getattr(readers, name)(root, train=train)
                images, labels = raw.data, raw.targets
            images = torch.as_tensor(images).contiguous()  # the readers give transposed views, slow to index
            parts[part] = (images.unsqueeze(3) if images.dim() == 3 else images, torch.as_tensor(labels))
            del raw
    except UNREADABLE as error:
        corrupt = corrupt or _problems(known, root, True)[1]
        what = f"{root / corrupt[0]} is corrupt" if corrupt else f"{name} in {root}: {_line(error)}"
        raise ContentError(f"{what}; `python -m landscape.data fetch {name}` restores it") from None
    except OSError as error:
        raise FileProblem(f"{name} in {root} cannot be read: {error}") from None
    # What the readers unpacked stays with the process otherwise: up to 160 MB after CIFAR-10 with glibc.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)
    return parts


def _problems(known, root, sums):
    """The files of an entry that are missing, and, if sums, those whose md5 is wrong."""
    from torchvision.datasets.utils import check_integrity

    missing = [path for path, _ in known.files if not (root / path).is_file()]
    there = [(path, md5) for path, md5 in known.files if sums and path not in missing]
    return missing, [path for path, md5 in there if not check_integrity(root / path, md5)]


def _read_digits():
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(np.rint(raw.images * (255 / 16)).astype(np.uint8)).unsqueeze(3)
    labels = torch.from_numpy(raw.target).long()
    return {"train": (images[:-360], labels[:-360]), "test": (images[-360:], labels[-360:])}


def _fake_shape(name):
    """("fake:3x32x32:10:512") to channels, size, classes, train images."""
    try:
        _, shape, classes, count = name.split(":")
        channels, height, width = (int(v) for v in shape.split("x"))
        numbers = channels, height, int(classes), int(count)
        if height != width or channels not in (1, 3) or min(numbers) < 1 or numbers[2] < 2:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"data set {name!r}: the form is fake:CxHxW:CLASSES:N, such as fake:3x32x32:10:512, with 1 or 3 "
            "channels, H equal to W and at least 2 classes"
        ) from None
    return numbers


def _fake_entry(name):
    channels, size, classes, count = _fake_shape(name)
    images = _make_fake(name)["train"][0].double() / 255
    mean, std = images.mean((0, 1, 2)).tolist(), images.std((0, 1, 2), correction=0).tolist()
    mean, std = tuple(round(v, 4) for v in mean), tuple(round(v, 4) for v in std)
    names = tuple(f"class {i}" for i in range(classes))
    return Entry(names, mean, std, size, channels, (count, (count + 1) // 2))


def _make_fake(name):
    """A coarse pattern for each class under noise; whole numbers, so that machines make the same bytes."""
    channels, size, classes, count = _fake_shape("fake:3x32x32:10:512" if name == "fake" else name)
    generator = stream(0, "fake", channels, size, classes)
    patterns = torch.randint(0, 256, (classes, 4, 4, channels), generator=generator)
    place = torch.arange(size) * 4 // size
    patterns = patterns[:, place][:, :, place]
    parts = {}
    for part, number in (("train", count), ("test", (count + 1) // 2)):
        labels = torch.arange(number) % classes
        labels = labels[torch.randperm(number, generator=generator)]
        noise = torch.randint(0, 256, (number, size, size, channels), generator=generator)
        parts[part] = (((patterns[labels] + noise) // 2).to(torch.uint8), labels)
    return parts


# --- folders of pictures ------------------------------------------------------------------------------------


def _scan(name, data_root):
    """folder:PATH to (Entry, {"train": (paths, labels), "test": …, "val": … or not}, one square size?)."""
    from torchvision.datasets.folder import find_classes

    root = Path(name.removeprefix("folder:")).expanduser()
    if not root.is_absolute() and not root.is_dir():
        root = root_of(data_root) / root
    if not (root / "train").is_dir():
        raise FileProblem(f"{root} has no train/ folder; folder:PATH expects train/CLASS/… and val/ or test/")
    try:
        classes, index = find_classes(root / "train")
    except FileNotFoundError:
        raise FileProblem(f"{root}/train has no class folders; folder:PATH expects train/CLASS/…") from None
    parts = {"train": _listing(root / "train", index)}
    for part in ("val", "test"):
        found = _listing(root / part, index)
        if found[0]:
            parts[part] = found
    if not parts["train"][0]:
        raise FileProblem(f"{root}/train has no pictures")
    if "test" not in parts:
        if "val" not in parts:
            raise FileProblem(f"{root} has neither val/ nor test/ with labelled pictures")
        parts["test"] = parts.pop("val")
    uniform, size = _common_size(parts["train"][0] + parts["test"][0])
    sizes = (len(parts["train"][0]), len(parts["test"][0]))
    return Entry(tuple(classes), *IMAGENET, size, 3, sizes, "resized,flip"), parts, uniform


def _listing(folder, index):
    """The pictures (paths, labels) of an ImageFolder or of TinyImageNet's val; none without labels."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    notes = folder / "val_annotations.txt"
    if notes.is_file():
        lines = [line.split("\t") for line in notes.read_text().splitlines() if line.strip()]
        try:
            return [str(folder / "images" / line[0]) for line in lines], [index[line[1]] for line in lines]
        except (KeyError, IndexError):
            raise ContentError(f"{notes}: a line must hold a picture, a tab and a class of train/") from None
    inside = {f.name for f in folder.iterdir() if f.is_dir()} if folder.is_dir() else set()
    if inside == {"images"} and "images" not in index:  # pictures without labels, as in TinyImageNet's test
        return [], []
    if inside - set(index):
        raise ContentError(f"{folder} has a class that train/ lacks: {sorted(inside - set(index))[0]}")
    samples = make_dataset(folder, index, IMG_EXTENSIONS, allow_empty=True)
    return [path for path, _ in samples], [label for _, label in samples]


def _common_size(paths):
    """(True, size) if the pictures are squares of one size, else (False, 224); looks at some 200 of them."""
    from PIL import Image

    sizes = set()
    for path in paths[:: max(1, len(paths) // 200)]:
        try:
            with Image.open(path) as file:
                sizes.add(file.size)
        except OSError as error:
            raise _unreadable(path, error) from None
    width, height = next(iter(sizes))
    return (True, width) if len(sizes) == 1 and width == height else (False, 224)


# --- normalisation and label noise --------------------------------------------------------------------------


def normalization(choice, entry, channels=0):
    """{"kind", "mean", "std"} for dataset, legacy, imagenet, none or "M1,M2,M3/S1,S2,S3".

    channels: of the network's input, 0 for the entry's own; a single value is repeated. Raises UsageError.
    """
    channels = channels or entry.channels
    kinds = {
        "dataset": (entry.mean, entry.std), "legacy": LEGACY, "imagenet": IMAGENET, "none": ((0.0,), (1.0,)),
    }  # fmt: skip
    if choice in kinds:
        kind, (mean, std) = choice, kinds[choice]
    else:
        kind = "custom"
        try:
            mean, std = (tuple(float(v) for v in half.split(",")) for half in choice.split("/"))
        except ValueError:
            known = ", ".join(kinds)
            raise UsageError(f"--normalize {choice!r}: give {known} or M1,M2,M3/S1,S2,S3") from None
    mean, std = (v * channels if len(v) == 1 else tuple(v) for v in (mean, std))
    if {len(mean), len(std)} != {channels} or not all(s > 0 for s in std):
        raise UsageError(f"--normalize {choice}: {channels} mean(s) and as many std above 0 are needed")
    return {"kind": kind, "mean": mean, "std": std}


def noisy_labels(labels, rate, classes, generator):
    """Symmetric label noise: int(rate * n) of the n images of each class get another class, uniformly.

    labels int64 (N,). Returns (given labels (N,), rows that were changed, ascending). Raises UsageError.
    """
    if not 0 <= rate < 1:
        raise UsageError(f"--noise {rate}: the share of changed labels must be at least 0 and less than 1")
    given = labels.clone()
    for label in range(classes):
        rows = (labels == label).nonzero().squeeze(1)
        chosen = rows[torch.randperm(len(rows), generator=generator)[: int(rate * len(rows))]]
        away = torch.randint(1, classes, (len(chosen),), generator=generator)
        given[chosen] = (label + away) % classes
    return given, (given != labels).nonzero().squeeze(1)


def read_noise_file(spec, count, classes):
    """Labels int64 (count,) from "FILE" or "FILE:KEY": .npz, .npy, .pt (plain tensors), .txt; never pickled.

    KEY chooses among several arrays (CIFAR-10N: CIFAR-10_human.npz:worse_label). Raises UsageError,
    FileProblem (missing), ContentError (not labels of this set).
    """
    path, _, key = (spec, "", "") if os.path.exists(spec) or ":" not in spec else spec.rpartition(":")
    suffix = Path(path).suffix
    try:
        if suffix in (".npz", ".npy"):
            found = np.load(path, allow_pickle=False)
        elif suffix == ".pt":
            with warnings.catch_warnings(action="ignore"):  # the refusal below says it in one line
                found = torch.load(path, weights_only=True, map_location="cpu")
        elif suffix == ".txt":
            found = np.loadtxt(path)
        else:
            raise UsageError(f"--noise_file {path}: the file must end in .npz, .npy, .pt or .txt")
        if hasattr(found, "keys"):
            keys = sorted(found.keys())
            if key not in keys and (key or len(keys) > 1):
                raise UsageError(f"--noise_file {path}: choose a key as FILE:KEY out of {', '.join(keys)}")
            found = found[key or keys[0]]
        labels = torch.as_tensor(found).flatten()
    except (UsageError, FileNotFoundError) as error:
        if isinstance(error, UsageError):
            raise
        raise FileProblem(f"--noise_file {path}: there is no such file") from None
    except (OSError, *UNREADABLE) as error:
        raise ContentError(f"--noise_file {path} holds no plain array of labels ({_line(error)})") from None
    whole = labels.long()
    if len(labels) != count:
        raise ContentError(f"--noise_file {path}: {len(labels)} labels; the unsplit training set has {count}")
    if not bool((whole == labels).all()) or int(whole.min()) < 0 or int(whole.max()) >= classes:
        raise ContentError(f"--noise_file {path}: labels must be whole numbers in 0..{classes - 1}")
    return whole


# --- python -m landscape.data -------------------------------------------------------------------------------


@contextlib.contextmanager
def _lock(path):
    """One process at a time; the others wait. The lock goes with the process that holds it."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _reader_class(name, mirror):
    """torchvision's reader, told to download from a mirror: a base URL or, for one archive, its full URL."""
    import torchvision.datasets as readers

    reader = getattr(readers, name)
    if not mirror:
        return reader
    if not mirror.startswith(("http://", "https://", "ftp://")):
        raise UsageError(f"--mirror {mirror}: the URL must begin with http://, https:// or ftp://")
    base, single = mirror.rstrip("/") + "/", name.startswith("CIFAR")
    full = mirror.endswith((".gz", ".tgz", ".mat"))
    if full and not single:
        raise UsageError(f"--mirror {mirror}: {name} has several files, so give the URL of their folder")
    if single:
        changed = {"url": mirror if full else base + reader.filename}
    elif name == "SVHN":
        changed = {"split_list": {k: [base + v[1], *v[1:]] for k, v in reader.split_list.items()}}
    else:
        changed = {"mirrors": [base]}
    return type(name, (reader,), changed)


def fetch(name, data_root=None, mirror=""):
    """Download a data set into the root by torchvision's reader; nothing to do if it is there and whole.

    Jobs in parallel wait for the first. Raises UsageError, FileProblem (network), ContentError (wrong md5).
    """
    root, known = root_of(data_root), entry(name, data_root)
    if not known.files:
        return
    reader = _reader_class(name, mirror)
    waited = socket.getdefaulttimeout()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".fetch-{name}.lock"):
            missing, corrupt = _problems(known, root, True)
            if not missing and not corrupt:
                return
            for path in corrupt:  # some readers take a file for good because it is there
                (root / path).unlink()
            socket.setdefaulttimeout(60)  # a silent server must not hang a job
            with contextlib.redirect_stdout(io.StringIO()):  # the readers' chatter
                for part in ("train", "test") if name == "SVHN" else (True,):
                    reader(root, part, download=True)
            missing, corrupt = _problems(known, root, True)
    except (OSError, RuntimeError, EOFError) as error:
        reason = _line(error)
        if "corrupted" in reason:
            raise ContentError(f"what came for {name} has a wrong md5; try again or use --mirror") from None
        raise FileProblem(f"{name} could not be fetched: {reason}; try again or name a --mirror") from None
    finally:
        socket.setdefaulttimeout(waited)
    if missing or corrupt:
        raise ContentError(f"{root / (missing + corrupt)[0]} is not right after the download; try again")


def verify(name, data_root=None):
    """Check the md5 of each file of a data set, or decode each picture of a folder; returns their number.

    Raises FileProblem (missing), ContentError (md5 differs, unreadable).
    """
    if name.startswith("folder:"):
        _, parts, uniform = _scan(name, data_root)
        paths = [path for part in parts.values() for path in part[0]]
        reader = _Reader(paths, 32, uniform)
        for index in range(len(paths)):
            reader.picture(index)
        return len(paths)
    known, root = entry(name), root_of(data_root)
    missing, corrupt = _problems(known, root, True)
    mend = f"`python -m landscape.data fetch {name}` restores it"
    if corrupt:
        raise ContentError(f"{root / corrupt[0]} is corrupt (md5; {len(corrupt)} such file(s)); {mend}")
    if missing:
        raise FileProblem(f"{root / missing[0]} is missing ({len(missing)} such file(s)); {mend}")
    return len(known.files)


def _list(root):
    print(f"{'name':14}{'classes':>8}  {'shape':12}{'train':>8}{'test':>8}  files in {root}")
    for name, known in DATASETS.items():
        there = sum((root / path).is_file() for path, _ in known.files)
        state = "needs none" if not known.files else "present" if there == len(known.files) else "missing"
        if 0 < there < len(known.files):
            state = f"incomplete ({there} of {len(known.files)})"
        shape = f"{known.channels}x{known.image_size}x{known.image_size}"
        print(f"{name:14}{len(known.classes):8}  {shape:12}{known.sizes[0]:8}{known.sizes[1]:8}  {state}")
    print("folder:PATH          pictures in PATH/train and PATH/val or PATH/test, one folder for each class")
    print("fake:CxHxW:CLASSES:N patterns and noise, made when asked for")


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m landscape.data",
        description="Example: python -m landscape.data fetch CIFAR10",
        epilog="The root is --data_root, else $DATA_ROOT, else ~/data.",
    )
    parser.add_argument("action", choices=["list", "fetch", "verify"], help="show, download, check md5")
    parser.add_argument("name", nargs="?", default="", help="a data set (for fetch and verify)")
    parser.add_argument("--data_root", default="", help="folder of the data sets")
    parser.add_argument("--mirror", default="", help="URL of a folder, or of CIFAR's archive, to fetch from")
    args = parser.parse_args(argv)
    if args.action == "list":
        return _list(root_of(args.data_root))
    if not args.name:
        raise UsageError(f"{args.action} needs a data set's name; `python -m landscape.data list` shows them")
    if args.action == "fetch":
        fetch(args.name, args.data_root, args.mirror)
    print(f"{args.name}: OK ({verify(args.name, args.data_root)} files)")


if __name__ == "__main__":
    from landscape import cli

    cli.run(main)
