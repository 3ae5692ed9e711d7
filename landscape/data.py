"""Data sets as uint8 tensors that live on the device: splits, label noise, batches; and their command.

    python -m landscape.data list
    python -m landscape.data fetch CIFAR10
    python -m landscape.data verify CIFAR10

Crop, flip and normalisation happen per batch and give to the bit what torchvision gives with the same draws.
Loading never downloads; only `fetch` does.
"""

# N images, B images of a batch, H rows, W columns, C channels.

import argparse
import copy
import functools
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from landscape.augment import AUGMENTS, Augment, parse_augment, resized_boxes
from landscape.errors import ContentError, FileProblem, Refusal, UsageError
from landscape.readers import (
    DATASETS,
    IMAGENET,
    LEGACY,
    UNREADABLE,
    Entry,
    entry,
    fetch,
    first_line,
    read,
    read_texts,
    root_of,
    scan_folder,
    show,
    unreadable,
    verify,
)  # fmt: skip
from landscape.seeding import stream

__all__ = [
    "AUGMENTS", "Augment", "DATASETS", "Data", "Entry", "Images", "Streamed", "entry", "fetch", "load",
    "NOISE_KINDS", "given_by", "noisy_labels", "normalization", "parse_augment", "permuted_labels",
    "read_noise_file", "to_float", "verify",
]  # fmt: skip

LARGE = 20_000  # training sets from here on give 5,000 images to validation
RESIDENT_BYTES = 2_000_000_000
TEST_VIEW = 256 / 224  # pictures of many sizes: shorter side to 256, then the middle 224


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

    def some_rows(self, count, purpose="statistics"):
        """`count` rows (all: 0, or as many as there are), drawn once and for all for each purpose."""
        return torch.randperm(len(self), generator=stream(0, purpose))[: count or None]

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


class Texts(Images):
    """The same for texts: store int32 (M, L) of token ids. A batch is int32 (B, L); nothing is normalised."""

    def __init__(self, store, labels, words):
        super().__init__(store, labels)
        self.words = words

    @property
    def shape(self):
        """(V, L): words of the vocabulary, tokens."""
        return self.words, self.store.shape[1]

    @property
    def images(self):
        raise UsageError("this is a set of texts, and images are needed here")

    def pixels(self, rows):
        return self.images

    def batch(self, rows, normalize, augment=None, draws=None):
        return self.gather(rows.to(self.device))


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
            raise unreadable(self.paths[index], error) from None
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


def _stack(images):
    return next((i for i in images if isinstance(i, Refusal)), None) or torch.stack(images)


def _resize(images, size):
    """uint8 (N, H, W, C) to (N, size, size, C): torchvision's antialiased bilinear, nothing if they fit."""
    if tuple(images.shape[1:3]) == (size, size):
        return images
    from torchvision.transforms import functional as T

    parts = [T.resize(part.permute(0, 3, 1, 2), [size, size], antialias=True) for part in images.split(1000)]
    return torch.cat(parts).permute(0, 2, 3, 1).contiguous()


def fitted(images, size, channels):
    """uint8 (N, H, W, C) to (N, size, size, channels): resized as above; a grey channel is repeated, three become their
    luminance."""
    images = _resize(images, size)
    if images.shape[3] == channels:
        return images
    if channels == 1:
        from torchvision.transforms import functional as T

        return T.rgb_to_grayscale(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()
    return images.expand(-1, -1, -1, channels).contiguous()


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
    noise_kind="symmetric",
    image_size=0,
    channels=0,
    device="cpu",
    resident=None,
    workers=2,
):
    """Read a data set, split it, and return Data.

    val_size: None for 5,000 of 20,000 or more training images, else 0 (a folder with val/ beside test/ has
    its own). train_size: that many of what the split left, 0 for all. noise: rate of the label noise of
    noise_kind (noisy_labels); noise_file: "FILE" or "FILE:KEY" with a label for each image of the unsplit
    training set, or with noise a stored permutation (permuted_labels); both touch only train. image_size,
    channels: 0 for the set's own. resident: keep a folder's pictures in memory (None: if they are of one size
    and take less than 2 GB). Raises UsageError, FileProblem (missing) and ContentError (corrupt).
    """
    pools, known = {}, None
    if name.startswith("folder:"):
        known, files, uniform = scan_folder(name, data_root)
    else:
        known = entry(name, data_root)
    size, depth = image_size or known.image_size, channels or known.channels
    if known.text:
        if depth != known.channels or not 1 <= size <= known.image_size:
            raise UsageError(f"{name} has texts of {known.image_size} tokens from {known.channels} words; {size} of "
                             f"{depth} were asked for (--image_size gives the tokens of a text)")
    elif size < 1 or depth not in (1, 3) or (known.channels, depth) == (3, 1):
        raise UsageError(
            f"{name} has {known.channels} channel(s) of size {known.image_size}: image_size must be positive "
            f"and channels {'3' if known.channels == 3 else '1 or 3'}; given were {size} and {depth}"
        )
    if name.startswith("folder:"):
        for part, (paths, labels) in files.items():
            reader = _Reader(paths, size, uniform)
            pools[part] = _folder_images(reader, torch.tensor(labels), device, resident, workers)
    elif known.text:
        for part, (tokens, labels) in read_texts(name, data_root)[1].items():
            pools[part] = Texts(tokens[:, :size].contiguous().to(device), labels, depth)
    else:
        for part, (images, labels) in read(name, data_root).items():
            pools[part] = Images(fitted(images, size, depth).to(device), labels)

    full = pools["train"]
    train, val = _split(name, full, val_size, "val" in pools, data_seed)
    train = _shorten(name, train, train_size, data_seed)
    if noise_file and noise:
        given = permuted_labels(noise_file, full.labels.cpu(), noise, len(known.classes))
        train = train.relabel(given[train.ids.cpu()])
    elif noise_file:
        train = train.relabel(read_noise_file(noise_file, len(full), len(known.classes))[train.ids.cpu()])
    elif noise:
        generator = stream(noise_seed, "noise")
        given, _ = noisy_labels(train.labels.cpu(), noise, len(known.classes), generator, noise_kind, confusions(known))
        train = train.relabel(given)
    val = pools.get("val", val)
    preprocessing = {"dataset": name, "image_size": size, "channels": depth}
    if known.text:
        preprocessing["vocabulary"] = known.vocabulary
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


# --- normalisation and label noise --------------------------------------------------------------------------


def normalization(choice, entry, channels=0):
    """{"kind", "mean", "std"} for dataset, legacy, imagenet, none or "M1,M2,M3/S1,S2,S3".

    channels: of the network's input, 0 for the entry's own; a single value is repeated. Raises UsageError.
    """
    channels = channels or entry.channels
    if entry.text:
        if choice not in ("dataset", "none"):
            raise UsageError(f"--normalize {choice}: texts are not normalised; leave it out")
        return {"kind": "none", "mean": (0.0,), "std": (1.0,)}
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


NOISE_KINDS = {
    "symmetric": "int(rate * n) of the n images of each class get another class, uniformly (dbViz)",
    "uniform": "int(rate * N) of all N images get any class, their own among them (learning-subspaces): about "
               "rate * (1 - 1/C) are wrong",
    "asymmetric": "int(rate * n) of the n images of a class get the one it is taken for (CIFAR-10: truck to "
                  "automobile, bird to airplane, cat to dog and back, deer to horse); other classes keep theirs",
}  # fmt: skip
# Patrini et al. 2017 (arXiv 1609.03683), section 5; dbViz follows it.
CONFUSED = {"truck": "automobile", "bird": "airplane", "cat": "dog", "dog": "cat", "deer": "horse"}


def confusions(known):
    """{class: the class that it is taken for} of an Entry, by number; empty where none is known."""
    if not CONFUSED.keys() <= set(known.classes):
        return {}
    return {known.classes.index(a): known.classes.index(b) for a, b in CONFUSED.items()}


def noisy_labels(labels, rate, classes, generator, kind="symmetric", confused=None):
    """Label noise of one of NOISE_KINDS. labels int64 (N,); confused: {class: class}, for "asymmetric".

    Returns (given labels (N,), rows whose label is now wrong, ascending). Raises UsageError.
    """
    if not 0 <= rate < 1:
        raise UsageError(f"--noise_rate {rate}: the share of changed labels must be at least 0 and less than 1")
    if kind not in NOISE_KINDS:
        raise UsageError(f"--noise_kind {kind}: known are {', '.join(NOISE_KINDS)}")
    if kind == "asymmetric" and not confused:
        raise UsageError("--noise_kind asymmetric is for CIFAR10: of this data set it is not known which class is "
                         "taken for which; use symmetric, or --noise_file")
    given = labels.clone()
    if kind == "uniform":
        chosen = torch.randperm(len(labels), generator=generator)[: int(rate * len(labels))]
        given[chosen] = torch.randint(0, classes, (len(chosen),), generator=generator)
    else:
        for label in confused if kind == "asymmetric" else range(classes):
            rows = (labels == label).nonzero().squeeze(1)
            chosen = rows[torch.randperm(len(rows), generator=generator)[: int(rate * len(rows))]]
            if kind == "asymmetric":
                given[chosen] = confused[label]
            else:
                away = torch.randint(1, classes, (len(chosen),), generator=generator)
                given[chosen] = (label + away) % classes
    return given, (given != labels).nonzero().squeeze(1)


def given_by(settings):
    """What a run's settings (a dict) say of its training labels, as arguments of load."""
    own = settings["val_size"]
    return {"train_size": settings["train_size"], "val_size": None if own < 0 else own,
            "noise": settings["noise_rate"],
            **{k: settings[k] for k in ("noise_file", "noise_seed", "noise_kind", "data_seed")}}


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
        raise ContentError(f"--noise_file {path} holds no plain array of labels ({first_line(error)})") from None
    whole = labels.long()
    if len(labels) != count:
        raise ContentError(f"--noise_file {path}: {len(labels)} labels; the unsplit training set has {count}")
    if not bool((whole == labels).all()) or int(whole.min()) < 0 or int(whole.max()) >= classes:
        raise ContentError(f"--noise_file {path}: labels must be whole numbers in 0..{classes - 1}")
    return whole


def permuted_labels(path, labels, rate, classes):
    """Label noise int64 (N,) that learning-subspaces has stored: path is FILE.npy, a permutation of the N images of the
    unsplit training set, and beside it lies FILE_labels.npy, N labels. The first int(rate * N) images of the
    permutation get the first of those labels, their own class among them. Raises UsageError, FileProblem, ContentError.
    """
    order, beside = read_noise_file(path, len(labels), len(labels)), path.removesuffix(".npy") + "_labels.npy"
    if not os.path.exists(beside):
        raise UsageError(f"--noise_file {path} with --noise_rate is a permutation of the training images and needs "
                         f"{beside} beside it; for a file of labels leave --noise_rate out")
    if len(order.unique()) < len(order):
        raise ContentError(f"--noise_file {path}: it names an image twice; with --noise_rate a permutation is expected")
    chosen, given = order[:int(rate * len(order))], labels.clone()
    given[chosen] = read_noise_file(beside, len(labels), classes)[:len(chosen)]
    return given


# --- python -m landscape.data -----------------------------------------------------------------------------


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
        return show(root_of(args.data_root))
    if not args.name:
        raise UsageError(f"{args.action} needs a data set's name; `python -m landscape.data list` shows them")
    if args.action == "fetch":
        fetch(args.name, args.data_root, args.mirror)
    print(f"{args.name}: OK ({verify(args.name, args.data_root)} files)")


if __name__ == "__main__":
    from landscape import cli

    cli.run(main)
