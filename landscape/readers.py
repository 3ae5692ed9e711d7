"""The data sets: what is known of each, the reading of their files, folders of pictures, fetching and verifying.

torchvision's readers and checksums do the work where they exist. Nothing here downloads but fetch.
"""

# N images, H rows, W columns, C channels; N texts of L tokens, V words in the vocabulary.

import collections
import contextlib
import csv
import difflib
import fcntl
import functools
import hashlib
import io
import os
import pickle
import re
import socket
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from landscape.errors import ContentError, FileProblem, UsageError
from landscape.seeding import stream

LEGACY = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))  # the std that most CIFAR code copied
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# What the readers raise when a file's content is not theirs.
UNREADABLE = (
    RuntimeError, ValueError, TypeError, EOFError, KeyError, AssertionError, pickle.UnpicklingError,
    zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What is known of a data set: class names, true per-pixel mean and std in [0, 1], size, channels.

    sizes are (train, test); augment is what "auto" means; files are (path under the root, md5). text: the set holds
    texts of image_size tokens, each one of `channels` words; vocabulary is a hash of these, in their order.
    """

    classes: tuple
    mean: tuple
    std: tuple
    image_size: int
    channels: int
    sizes: tuple
    augment: str = "none"
    files: tuple = ()
    text: bool = False
    vocabulary: str = ""


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
    "fake_text": Entry(tuple("0123"), (0.0,), (1.0,), 24, 200, (512, 256), text=True),
}  # fmt: skip

# Of text:PATH. The vocabulary is made of the words that occur so often in the training texts, the most frequent first.
MIN_COUNT = 2
MOST_WORDS = 50_000
MOST_TOKENS = 128  # a longer text is cut
PADDING, UNKNOWN = 0, 1  # the first two words of every vocabulary


def entry(name, data_root=None):
    """The Entry of a name: a key of DATASETS, "fake:CxHxW:CLASSES:N", "folder:PATH" or "text:PATH" (which are read).

    Raises UsageError for an unknown name, FileProblem and ContentError for a folder.
    """
    if name in DATASETS:
        return DATASETS[name]
    if name.startswith("text:"):
        return read_texts(name, data_root)[0]
    if name.startswith("folder:"):
        return scan_folder(name, data_root)[0]
    if name.startswith("fake:"):
        return _fake_entry(name)
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in DATASETS], 1, 0.5)
    near = [n for n in DATASETS if n.lower() in near]
    known = ", ".join([*DATASETS, "folder:PATH", "text:PATH", "fake:CxHxW:CLASSES:N"])
    hint = f"did you mean {near[0]}?" if near else f"known: {known}"
    raise UsageError(f"unknown data set {name!r}; {hint}")


def first_line(error):
    """The first line of what another library's error says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def root_of(data_root=None):
    """The folder of the data sets: the argument, else $DATA_ROOT, else ~/data."""
    return Path(data_root or os.environ.get("DATA_ROOT") or "~/data").expanduser()


def unreadable(path, error):
    return ContentError(f"{path} is not a readable picture ({first_line(error)}); replace or remove it")


# --- reading ---------------------------------------------------------------------------------------------------


def read(name, data_root):
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
        what = f"{root / corrupt[0]} is corrupt" if corrupt else f"{name} in {root}: {first_line(error)}"
        raise ContentError(f"{what}; `python -m landscape.data fetch {name}` restores it") from None
    except OSError as error:
        raise FileProblem(f"{name} in {root} cannot be read: {error}") from None
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


# --- texts --------------------------------------------------------------------------------------------------


def read_texts(name, data_root=None):
    """fake_text or text:PATH to (Entry, {"train": (int32 (N, L) token ids, int64 (N,)), "test": …}).

    PATH holds train.csv and test.csv as AG-News comes: in each row the class, counted from 1, and then the text in one
    or several fields; classes.txt, where it is there, names the classes, a line each. Tokens are words and single
    punctuation marks in lower case. Raises FileProblem and ContentError.
    """
    if name == "fake_text":
        return DATASETS[name], _make_fake_text(DATASETS[name])
    root = _folder_of(name, data_root)
    files = [root / "train.csv", root / "test.csv"]
    for file in files:
        if not file.is_file():
            raise FileProblem(f"{file} is missing; text:PATH expects train.csv and test.csv, whose rows are a class, "
                              "counted from 1, and a text")
    return _read_texts(root, tuple(f.stat().st_mtime_ns for f in files))


@functools.lru_cache(maxsize=2)
def _read_texts(root, changed):
    texts, labels = zip(*(_text_rows(root / f"{part}.csv") for part in ("train", "test")))
    classes = max(labels[0])
    names = tuple(str(c) for c in range(1, classes + 1))
    if (root / "classes.txt").is_file():
        names = tuple((root / "classes.txt").read_text(encoding="utf-8").split("\n")[:classes])
    if set(labels[0]) != set(range(1, classes + 1)) or max(labels[1]) > classes or len(names) < classes or classes < 2:
        raise ContentError(f"{root}: train.csv holds the classes {sorted(set(labels[0]))[:5]} …, of which test.csv and "
                           "classes.txt must have no other; they are counted from 1, without gaps")
    words = vocabulary(texts[0])
    length = min(MOST_TOKENS, max(map(len, texts[0])))
    parts = {part: (token_ids(some, words, length), torch.tensor(own) - 1)
             for part, some, own in zip(("train", "test"), texts, labels)}
    sizes = len(labels[0]), len(labels[1])
    told = hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]
    return Entry(names, (0.0,), (1.0,), length, len(words) + 2, sizes, text=True, vocabulary=told), parts


def _text_rows(file):
    """([tokens of each text], [class]) of a CSV file; a head line is passed over."""
    texts, labels = [], []
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            reader = csv.reader(lines)
            for row in reader:
                if not row or (not texts and reader.line_num == 1 and not row[0].strip().isdigit()):
                    continue
                if len(row) < 2 or not row[0].strip().isdigit() or int(row[0]) < 1:
                    raise ValueError(f"line {reader.line_num} is not a class, counted from 1, and a text")
                labels.append(int(row[0]))
                texts.append(re.findall(r"\w+|[^\w\s]", " ".join(row[1:]).lower()))
        if not any(texts):
            raise ValueError("it holds no text")
    except OSError as e:
        raise FileProblem(f"{file}: {e.strerror.lower()}") from None
    except (ValueError, csv.Error) as e:  # a UnicodeDecodeError too
        raise ContentError(f"{file}: {first_line(e)}") from None
    return texts, labels


def vocabulary(texts):
    """{word: id} of lists of tokens, the most frequent first and equals in the order of the alphabet."""
    counts = collections.Counter(word for text in texts for word in text)
    often = sorted((w for w, n in counts.items() if n >= MIN_COUNT), key=lambda w: (-counts[w], w))
    return {word: UNKNOWN + 1 + i for i, word in enumerate(often[:MOST_WORDS - 2])}


def token_ids(texts, words, length):
    """int32 (N, length): ids of the first tokens of each text, then padding."""
    out = np.full((len(texts), length), PADDING, dtype=np.int32)
    for row, text in zip(out, texts):
        row[:len(text)] = [words.get(word, UNKNOWN) for word in text[:length]]
    return torch.from_numpy(out)


def _make_fake_text(known):
    """Of each text's tokens some come from its class's own words and the others from all."""
    generator = stream(0, "fake_text")
    classes, own, parts = len(known.classes), 20, {}
    for part, count in zip(("train", "test"), known.sizes):
        labels = torch.arange(count) % classes
        shape = count, known.image_size
        some = UNKNOWN + 1 + own * labels[:, None] + torch.randint(own, shape, generator=generator)
        other = torch.randint(UNKNOWN, known.channels, shape, generator=generator)
        ids = torch.where(torch.rand(shape, generator=generator) < 0.3, some, other)
        lengths = torch.randint(known.image_size // 3, known.image_size + 1, (count, 1), generator=generator)
        ids[torch.arange(known.image_size) >= lengths] = PADDING
        parts[part] = ids.int(), labels
    return parts


def _folder_of(name, data_root):
    """The folder that folder:PATH or text:PATH names: as it stands, or in the root of the data sets."""
    path = Path(name.partition(":")[2]).expanduser()
    return path if path.is_absolute() or path.is_dir() else root_of(data_root) / path


# --- folders of pictures ------------------------------------------------------------------------------------


def scan_folder(name, data_root):
    """folder:PATH to (Entry, {"train": (paths, labels), "test": …, "val": … or not}, one square size?)."""
    from torchvision.datasets.folder import find_classes

    root = _folder_of(name, data_root)
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
            raise unreadable(path, error) from None
    width, height = next(iter(sizes))
    return (True, width) if len(sizes) == 1 and width == height else (False, 224)


# --- fetching and verifying ------------------------------------------------------------------------------------


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
        reason = first_line(error)
        if "corrupted" in reason:
            raise ContentError(f"what came for {name} has a wrong md5; try again or use --mirror") from None
        raise FileProblem(f"{name} could not be fetched: {reason}; try again or name a --mirror") from None
    finally:
        socket.setdefaulttimeout(waited)
    if missing or corrupt:
        raise ContentError(f"{root / (missing + corrupt)[0]} is not right after the download; try again")


def verify(name, data_root=None):
    """Check the md5 of each file of a data set, or read all of a folder of pictures or texts; returns the number of
    files.

    Raises FileProblem (missing), ContentError (md5 differs, unreadable).
    """
    if name.startswith("folder:"):
        from PIL import Image

        paths = [path for part in scan_folder(name, data_root)[1].values() for path in part[0]]
        for path in paths:
            try:
                with Image.open(path) as file:
                    file.convert("RGB")
            except (OSError, SyntaxError, ValueError) as error:
                raise unreadable(path, error) from None
        return len(paths)
    if name.startswith("text:"):
        return len(read_texts(name, data_root)[1])
    known, root = entry(name, data_root), root_of(data_root)
    missing, corrupt = _problems(known, root, True)
    mend = f"`python -m landscape.data fetch {name}` restores it"
    if corrupt:
        raise ContentError(f"{root / corrupt[0]} is corrupt (md5; {len(corrupt)} such file(s)); {mend}")
    if missing:
        raise FileProblem(f"{root / missing[0]} is missing ({len(missing)} such file(s)); {mend}")
    return len(known.files)


def show(root):
    print(f"{'name':14}{'classes':>8}  {'shape':12}{'train':>8}{'test':>8}  files in {root}")
    for name, known in DATASETS.items():
        there = sum((root / path).is_file() for path, _ in known.files)
        state = "needs none" if not known.files else "present" if there == len(known.files) else "missing"
        if 0 < there < len(known.files):
            state = f"incomplete ({there} of {len(known.files)})"
        shape = f"{known.channels}x{known.image_size}x{known.image_size}"
        if known.text:
            shape = f"{known.image_size} tokens"
        print(f"{name:14}{len(known.classes):8}  {shape:12}{known.sizes[0]:8}{known.sizes[1]:8}  {state}")
    print("folder:PATH          pictures in PATH/train and PATH/val or PATH/test, one folder for each class")
    print(f"text:PATH            PATH/train.csv and test.csv, rows of class and text, as AG-News: words that occur "
          f"{MIN_COUNT} times, at most {MOST_WORDS:,}; the first {MOST_TOKENS} tokens")
    print("fake:CxHxW:CLASSES:N patterns and noise, made when asked for")
