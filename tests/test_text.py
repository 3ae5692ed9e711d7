"""Sets of texts: the reader against a plain reading, a classifier through the training path, and what is refused."""

import collections
import csv
import json
import re

import numpy as np
import pytest
import torch
import yaml

import main
from landscape import data as datasets
from landscape import evaluate, permute, predictions, readers, runs, weights
from landscape.errors import ContentError, FileProblem, UsageError
from models.axes import axes_of
from star import barriers

torch.set_num_threads(1)
WORDS = [["match", "team", "coach", "cup"], ["shares", "profit", "bank", "oil"], ["chip", "web", "software", "virus"],
         ["minister", "troops", "vote", "talks"]]  # fmt: skip


def rows(count, seed):
    """Of a class from 1 to 4, a title and a description, as AG-News has them."""
    draw = np.random.default_rng(seed)
    out = []
    for n in range(count):
        own = WORDS[n % 4]
        title, text = ([str(w) for w in draw.choice([*own, "the", "of", "a"], k)] for k in (3, draw.integers(4, 9)))
        out.append([str(n % 4 + 1), " ".join(title).title(), " ".join(text) + f", said \"no {n}\"."])
    return out


def write(folder, train=160, test=40):
    folder.mkdir(parents=True, exist_ok=True)
    for part, count, seed in (("train", train, 0), ("test", test, 1)):
        with open(folder / f"{part}.csv", "w", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows(count, seed))
    return folder


@pytest.fixture(scope="module")
def news(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("news") / "ag_news")
    (folder / "classes.txt").write_text("Sports\nBusiness\nSci/Tech\nWorld\n")
    return folder


@pytest.fixture(scope="module")
def trained(news, tmp_path_factory):
    """Two classifiers as main.py trains them, and the folder of their runs."""
    root = tmp_path_factory.mktemp("runs")
    for seed in ("0", "1"):
        argv = ["--net", "text_classifier", "--width", "12", "--dataset", f"text:{news}", "--imgs", "none", "--epochs",
                "8", "--bs", "16", "--lr", "1", "--seed", seed, "--runs", str(root), "--threads", "1"]
        assert main.main(argv) == 0
    return root


# ---- the reader ----------------------------------------------------------------------------------------------------

def test_texts_are_read_as_a_plain_reading_has_them(news):
    data = datasets.load(f"text:{news}", val_size=0)
    split = [re.findall(r"\w+|[^\w\s]", f"{title} {text}".lower()) for _, title, text in rows(160, 0)]
    counts = collections.Counter(w for text in split for w in text)
    often = [w for w, n in counts.items() if n >= readers.MIN_COUNT]
    assert data.entry.classes == ("Sports", "Business", "Sci/Tech", "World") and data.entry.text
    assert data.entry.channels == len(often) + 2 == int(data.full.store.max()) + 1
    assert data.entry.image_size == max(map(len, split)) and data.full.shape == (len(often) + 2, data.entry.image_size)
    assert (len(data.full), len(data.test)) == data.entry.sizes == (160, 40)
    assert data.full.labels.tolist() == [n % 4 for n in range(160)]
    known = {}  # each word has one id, and each id one word
    for text, ids in zip(split, data.full.store.tolist()):
        assert ids[len(text):] == [readers.PADDING] * (data.entry.image_size - len(text))
        for word, number in zip(text, ids):
            assert (number == readers.UNKNOWN) == (counts[word] < readers.MIN_COUNT) and number != readers.PADDING
            assert number == readers.UNKNOWN or known.setdefault(word, number) == number
    assert len(set(known.values())) == len(known) == len(often)
    falling = [counts[w] for w in sorted(known, key=known.get)]
    assert falling == sorted(falling, reverse=True)
    again = readers._read_texts.__wrapped__(news, ())[1]["train"][0]
    assert torch.equal(again, data.full.store)


def test_a_vocabulary_and_a_text_are_cut_at_their_limits(news, monkeypatch):
    whole = datasets.load(f"text:{news}", val_size=0)
    assert torch.equal(datasets.load(f"text:{news}", image_size=5, val_size=0).full.store, whole.full.store[:, :5])
    monkeypatch.setattr(readers, "MOST_WORDS", 7)
    monkeypatch.setattr(readers, "MOST_TOKENS", 6)
    known, parts = readers._read_texts.__wrapped__(news, ())
    ids = parts["train"][0]
    assert (known.channels, known.image_size) == (7, 6) and ids.max() < 7 and ids.shape == (160, 6)
    rare = whole.full.store[:, :6] >= 7
    assert torch.equal(ids, torch.where(rare, readers.UNKNOWN, whole.full.store[:, :6]))


def test_splits_and_batches_are_those_of_images(news):
    data = datasets.load(f"text:{news}", val_size=40, train_size=100, noise=0.2)
    assert (len(data.train), len(data.val), data.train.store.dtype) == (100, 40, torch.int32)
    assert not set(data.train.ids.tolist()) & set(data.val.ids.tolist())
    assert 10 <= (data.train.labels != data.train.true_labels).sum() <= 20
    x, y, where = next(iter(data.train.batches(torch.tensor([7, 3]), 2, None)))
    assert torch.equal(x, data.train.store[data.train.ids[[7, 3]]]) and where.tolist() == [7, 3] and len(y) == 2


def test_a_head_line_is_passed_over_and_bad_files_are_named(tmp_path, capsys):
    folder = write(tmp_path / "t")
    plain = datasets.load(f"text:{folder}", val_size=0).full.store
    for part in ("train", "test"):
        text = (folder / f"{part}.csv").read_text()
        (folder / f"{part}.csv").write_text("Class Index,Title,Description\n" + text)
    readers._read_texts.cache_clear()
    assert torch.equal(datasets.load(f"text:{folder}", val_size=0).full.store, plain)
    assert datasets.load("text:t", tmp_path, val_size=0).entry.classes == tuple("1234")
    datasets.main(["verify", "text:t", "--data_root", str(tmp_path)])
    assert "text:t: OK (2 files)" in capsys.readouterr().out
    for bad, error, match in (("1,a b\nx,c d\n", ContentError, "train.csv: line 2 is not a class"),
                              ("1,a b\n3,c d\n", ContentError, "without gaps"), ("", ContentError, "holds no text"),
                              ("0,a\n", ContentError, "line 1"), (None, FileProblem, "train.csv is missing")):
        (folder / "train.csv").unlink(missing_ok=True)
        if bad is not None:
            (folder / "train.csv").write_text(bad)
        readers._read_texts.cache_clear()
        with pytest.raises(error, match=match):
            datasets.load(f"text:{folder}")


# ---- a classifier --------------------------------------------------------------------------------------------------

def test_it_learns_and_goes_through_the_common_path(trained, news):
    found = runs.find_models(trained)
    assert len(found) == 2
    for source in found:
        results = json.loads((source.path / "results.json").read_text())
        assert results["last"]["test_accuracy"] > 0.9 and not list(source.path.glob("figures/regions*"))
    held = runs.load(found[0].path)
    assert held.architecture["in_channels"] == datasets.entry(f"text:{news}").channels
    data = datasets.load(f"text:{news}", val_size=0)
    said = evaluate.logits(held.network, data.test, held.preprocessing)
    with torch.no_grad():
        assert torch.allclose(said, held.network(data.test.store), atol=1e-6)
    args = predictions.add_networks(barriers.cli.Parser("x", ""), barriers.cli, str(trained)).parse_args([])
    args.runs = str(trained)
    assert len(predictions.find(args)) == 2


def test_two_of_them_are_aligned_and_have_a_barrier(trained, tmp_path):
    one, two = (runs.load(s.path).network for s in runs.find_models(trained))
    axes = axes_of(one)
    assert axes.groups == {"embedding": 12}
    turned = permute.apply(weights.of(two), axes, permute.random(axes, 0))
    assert permute.distance(permute.apply(turned, axes, permute.match(weights.of(two), [turned], axes)[0]),
                            weights.of(two)) < 1e-5
    out = ["--runs", str(tmp_path), "--threads", "1", "--points", "5"]
    assert barriers.main(["-a", str(trained), "--align", "none,weights,activations", *out]) == 0
    (file,) = tmp_path.rglob("results.json")
    lines = json.loads(file.read_text())["lines"]
    assert len(lines) == 3 and all(line["test"]["accuracies"][0] > 0.9 for line in lines)
    assert lines[1]["distance"] < lines[1]["distance_before"]


@pytest.mark.parametrize("study", ["ensembles", "subspaces"])
def test_other_studies_train_it_on_made_texts(study, tmp_path):
    import ensembles.train
    import subspaces.train

    argv = ["--net", "text_classifier", "--dataset", "fake_text", "--epochs", "1", "--runs", str(tmp_path)]
    if study == "ensembles":
        assert not ensembles.train.main([*argv, "--members", "2", "--stack", "never"])
    else:
        assert not subspaces.train.main([*argv, "--family", "line"])
    assert list(tmp_path.rglob("done"))


def test_made_texts_can_be_learned_and_stand_in_for_others_in_smoke(tmp_path):
    argv = ["--net", "text_classifier", "--dataset", "text:ag_news", "--imgs", "none", "--runs", str(tmp_path)]
    assert main.main([*argv, "--smoke"]) == 0
    (config,) = tmp_path.rglob("config.yaml")
    assert yaml.safe_load(config.read_text())["dataset"] == "fake_text"
    full = ["--net", "text_classifier", "--dataset", "fake_text", "--epochs", "20", "--lr", "2", "--imgs", "none"]
    assert main.main([*full, "--runs", str(tmp_path / "full"), "--bs", "32"]) == 0
    (file,) = (tmp_path / "full").rglob("results.json")
    assert json.loads(file.read_text())["last"]["test_accuracy"] > 0.6  # of four classes


def test_what_is_refused(news, trained, tmp_path):
    name = f"text:{news}"

    def refused(error, match, *argv):
        with pytest.raises(error, match=match):
            main.main([*argv, "--runs", str(tmp_path), "--epochs", "1"])
        assert not list(tmp_path.iterdir())

    text = ["--net", "text_classifier", "--dataset", name]
    refused(UsageError, "set of texts.*--imgs none draws nothing", *text)
    refused(ContentError, "--net mlp takes images, the data set holds texts", "--net", "mlp", "--dataset", name)
    refused(ContentError, "takes texts, the data set holds images", "--net", "text_classifier", "--dataset", "digits")
    refused(UsageError, "texts are not augmented", *text, "--augment", "crop", "--imgs", "none")
    refused(UsageError, "texts are not normalised", *text, "--normalize", "imagenet", "--imgs", "none")
    refused(UsageError, "mixup mixes", *text, "--train_mode", "mixup", "--imgs", "none")
    refused(UsageError, "texts of .* tokens", *text, "--image_size", "1000", "--imgs", "none")
    refused(FileProblem, "train.csv is missing", "--net", "text_classifier", "--dataset", "text:nowhere")
    (run,) = trained.glob("regions/*seed=0*")
    refused(UsageError, "set of texts", "--load_net", str(run))
    other = write(tmp_path / "other", train=24)
    with pytest.raises(ContentError, match="another vocabulary"):
        barriers.main(["-a", str(trained), "--dataset", f"text:{other}", "--runs", str(tmp_path / "r")])
