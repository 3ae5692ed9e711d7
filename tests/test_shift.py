"""Ensembles under shift: every number against a plain reading of the same networks, and what is refused."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats
import torch

from ensembles import shift, shift_figures, train
from landscape import corruptions, data, metrics, predictions, results, runs
from landscape.errors import ContentError, FileProblem, UsageError

TRAIN = ["--dataset", "digits", "--net", "mlp", "--width", "16", "--train_size", "300", "--epochs", "3", "--lr", "0.01",
         "--snapshots", "", "--eval_every", "0", "--threads", "1"]
SHIFT = ["--corruptions", "gaussian_noise,contrast", "--severities", "1,5", "--ood", "fake", "--images", "90",
         "--threads", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Four networks of digits, and the folder of their runs."""
    root = tmp_path_factory.mktemp("shift")
    train.main([*TRAIN, "--members", "4", "--runs", str(root)])
    return root


@pytest.fixture(scope="module")
def measured(trained):
    """(results, run folder) of shift on all four."""
    return run_shift(trained)


def run_shift(root, *more, members=None):
    out = root / f"out{len(list(root.glob('out*')))}"
    shift.main([*SHIFT, "--members", *map(str, members or [root / "ensembles"]), "--runs", str(out), *more])
    (path,) = out.rglob("results.json")
    return json.loads(path.read_text(), parse_constant=pytest.fail), path.parent


def plain(root, images):
    """Probabilities (K, N, C) of the networks on uint8 images (N, H, W, C), by a loop."""
    out = []
    for source in runs.find_models(root / "ensembles"):
        held = runs.load(source.path)
        x = data.to_float(torch.from_numpy(images), held.preprocessing)
        with torch.no_grad():
            out.append(held.network(x).double().softmax(1).numpy())
    return np.stack(out)


def chosen():
    """The 90 of the 360 test images of digits that shift takes, and their labels."""
    test = data.load("digits").test
    rows = shift.drawn(360, 90, 0)
    assert len(set(rows.tolist())) == 90 and (np.diff(rows) > 0).all()
    return test.images.numpy()[rows], test.labels.numpy()[rows]


def row_of(rows, **place):
    (row,) = [r for r in rows if all(r[k] == v for k, v in place.items())]
    return row


def table(root):
    """{(corruption, severity): {measure: {subset: value}}} by a loop over everything."""
    images, labels = chosen()
    out = {}
    for name, severity in [("clean", 0), *itertools.product(("gaussian_noise", "contrast"), (1, 5))]:
        seen = images if severity == 0 else corruptions.corrupted(images, name, severity, 0)
        probs = plain(root, seen)
        out[name, severity] = scores = {k: {} for k in shift.MEASURES}
        for subset in (s for m in (1, 2, 3, 4) for s in itertools.combinations(range(4), m)):
            mean = probs[list(subset)].mean(0)
            scores["accuracy"][subset] = metrics.accuracy(mean, labels)
            scores["nll"][subset] = -np.log(mean[np.arange(90), labels]).mean()
            scores["brier"][subset] = metrics.brier(mean, labels)
            scores["ece"][subset] = metrics.ece(mean, labels)
            scores["js"][subset] = (scipy.stats.entropy(mean, axis=1).mean()
                                    - np.mean([scipy.stats.entropy(probs[k], axis=1).mean() for k in subset]))
    return out


def test_curves_against_a_loop(trained, measured):
    found, _ = measured
    expected = table(trained)
    for severity in (1, 5):
        both = [expected[c, severity] for c in ("gaussian_noise", "contrast")]
        expected["mean", severity] = {k: {s: np.mean([b[k][s] for b in both]) for s in both[0][k]}
                                      for k in shift.MEASURES}
    assert found["sizes"] == [1, 2, 4] and len(found["curves"]) == 7 * 3
    for (name, severity), scores in expected.items():
        for size in (1, 2, 4):
            held = row_of(found["curves"], corruption=name, severity=severity, size=size)["measures"]
            for key, values in scores.items():
                own = [v for s, v in values.items() if len(s) == size]
                if key == "js" and size == 1:
                    assert held[key] == {"value": None, "low": None, "high": None, "n": 4}
                    continue
                assert held[key]["value"] == pytest.approx(np.mean(own), abs=2e-6)
                if size == 4:
                    assert held[key]["low"] is None and held[key]["high"] is None
                else:
                    without = [np.mean([v for s, v in values.items() if len(s) == size and k not in s])
                               for k in range(4)]
                    reach = scipy.stats.t.ppf(0.975, 3) * (3 / 4 * np.sum((without - np.mean(own)) ** 2)) ** 0.5
                    assert held[key]["high"] == pytest.approx(min(np.mean(own) + reach, BOUND.get(key, 9e9)), abs=1e-5)
                    assert held[key]["low"] == pytest.approx(max(np.mean(own) - reach, 0), abs=1e-5)


BOUND = {"accuracy": 1, "ece": 1, "brier": 2, "js": np.log(2)}


def test_size_one_is_the_mean_member(trained, measured):
    found, _ = measured
    clean = row_of(found["curves"], corruption="clean", severity=0, size=1)["measures"]
    assert clean["accuracy"]["value"] == pytest.approx(np.mean([m["accuracy"] for m in found["models"]]))
    assert len({m["name"] for m in found["models"]}) == 4


def test_gains_against_a_loop(trained, measured):
    found, _ = measured
    expected = table(trained)

    def gain(scores, key, subset):
        return shift.BETTER[key] * (scores[key][subset] - np.mean([scores[key][k,] for k in subset]))

    everyone, t = (0, 1, 2, 3), scipy.stats.t.ppf(0.975, 3)
    for (name, severity), scores in expected.items():
        for key in shift.BETTER:
            held = row_of(found["gains"], corruption=name, severity=severity, size=4)
            value = gain(scores, key, everyone)
            without = [gain(scores, key, tuple(i for i in everyone if i != k)) for k in everyone]
            spread = (3 / 4 * np.sum((without - np.mean(without)) ** 2)) ** 0.5
            assert held["measures"][key]["value"] == pytest.approx(value, abs=2e-6)
            assert held["measures"][key]["low"] == pytest.approx(value - t * spread, abs=1e-5)
            more = value - gain(expected["clean", 0], key, everyone)
            assert held["growth"][key]["value"] == pytest.approx(more, abs=3e-6)
            two = row_of(found["gains"], corruption=name, severity=severity, size=2)["measures"][key]
            pairs = list(itertools.combinations(range(4), 2))
            assert two["value"] == pytest.approx(np.mean([gain(scores, key, p) for p in pairs]), abs=2e-6)
    assert all(r["measures"]["brier"]["value"] >= 0 for r in found["gains"])  # Brier is convex


def test_foreign_images_against_a_loop(trained, measured):
    found, folder = measured
    images, _ = chosen()
    foreign = data.load("fake").test
    foreign = foreign.images[torch.from_numpy(shift.drawn(256, 90, 0))]
    grey = torch.nn.functional.interpolate(foreign.permute(0, 3, 1, 2).float(), (8, 8), mode="bilinear", antialias=True)
    grey = (0.2989 * grey[:, :1] + 0.587 * grey[:, 1:2] + 0.114 * grey[:, 2:]).permute(0, 2, 3, 1)
    fitted = data.fitted(foreign, 8, 1)
    assert fitted.dtype == torch.uint8 and (fitted - grey).abs().max() < 2
    own, other = plain(trained, images), plain(trained, fitted.numpy())
    for size in (1, 2, 4):
        held = row_of(found["ood"], set="fake", size=size)["measures"]
        sums = {k: [] for k in ("confidence", "entropy", "js")}
        for subset in itertools.combinations(range(4), size):
            values = []
            for probs in (own, other):
                mean = probs[list(subset)].mean(0)
                h = scipy.stats.entropy(mean, axis=1)
                values.append({"confidence": -mean.max(1), "entropy": h,
                               "js": h - np.mean([scipy.stats.entropy(probs[k], axis=1) for k in subset], axis=0)})
            for key in sums:
                a, b = values[0][key][:, None], values[1][key][None]
                sums[key].append((np.mean((b > a) + (b == a) / 2), abs(a.mean()), abs(b.mean())))
        for key, triples in sums.items():
            names = (f"auroc_{key}", f"{key}_own", f"{key}_foreign")
            for name, value in zip(names, np.mean(triples, axis=0)):
                if key == "js" and size == 1:
                    assert held[name]["value"] is None
                else:
                    assert held[name]["value"] == pytest.approx(value, abs=2e-4)
    arrays = runs.read_arrays(folder / "arrays" / "ood.npz")
    assert arrays["own_entropy_members"].shape == (4, 90) and arrays["foreign_0_js_ensemble"].shape == (90,)
    assert arrays["foreign_0_entropy_ensemble"].mean() == pytest.approx(
        row_of(found["ood"], size=4)["measures"]["entropy_foreign"]["value"], rel=1e-5)


def test_tables_arrays_and_figures_are_written(measured):
    found, folder = measured
    assert (folder / "shift.csv").read_text().startswith("what,corruption,severity,size,measure,value,low,high,n\n")
    assert (folder / "ood.csv").read_text().count("\n") == 1 + 3 * 9
    arrays = runs.read_arrays(folder / "arrays" / "shift.npz")
    assert arrays["scores"].shape == (7, 5, 4 + 6 + 1 + 4) and np.isfinite(arrays["scores"]).all()
    drawn = {p.stem for p in (folder / "figures").glob("*.png")}
    assert drawn == {"severity", "corruptions", "gain", "ood_distributions", "ood_auroc"}
    assert set(shift_figures.figures(folder, found)) == drawn
    size = sum(p.stat().st_size for p in folder.rglob("*.npz"))
    assert size < 60_000


def test_logits_are_kept_and_used_again(trained, measured, monkeypatch):
    monkeypatch.setattr(predictions, "load", lambda *a: pytest.fail("a network was loaded again"))
    found, _ = run_shift(trained)
    assert found == measured[0]


def test_one_network_gives_nulls_and_two_no_intervals(trained):
    networks = [s.path for s in runs.find_models(trained / "ensembles")]
    found, folder = run_shift(trained, members=networks[:1])
    assert found["sizes"] == [1] and found["gains"] == []
    assert all(r["measures"]["js"]["value"] is None for r in found["curves"])
    assert found["ood"][0]["measures"]["auroc_js"]["value"] is None
    assert found["ood"][0]["measures"]["auroc_entropy"]["low"] is None
    assert {p.stem for p in (folder / "figures").iterdir()} == {"severity", "corruptions", "ood_distributions",
                                                                "ood_auroc"}
    found, _ = run_shift(trained, members=networks[:2])
    assert found["sizes"] == [1, 2]
    assert all(c["low"] is None for r in found["curves"] + found["gains"] for c in r["measures"].values())
    assert row_of(found["curves"], corruption="clean", size=2)["measures"]["js"]["value"] > 0


def test_drawn_subsets_and_chosen_sizes(trained):
    found, folder = run_shift(trained, "--sizes", "2,3", "--subsets", "3", "--ood", "none")
    sizes = runs.read_arrays(folder / "arrays" / "shift.npz")["sizes"].tolist()
    assert found["sizes"] == [1, 2, 3] and sizes == [1] * 4 + [2] * 3 + [3] * 3 + [3] * 4 and found["ood"] == []


def test_all_corruptions_of_grey_images_leave_colour_out(trained):
    found, _ = run_shift(trained, "--corruptions", "all", "--severities", "3", "--ood", "none", "--images", "20")
    assert set(found["corruptions"]) == set(corruptions.CORRUPTIONS) - {"saturate"}
    found, _ = run_shift(trained, "--corruptions", "none")
    assert found["corruptions"] == [] and {r["severity"] for r in found["curves"]} == {0}


@pytest.mark.parametrize("flags, error, match", [
    (["--corruptions", "contrats"], UsageError, "did you mean contrast"),
    (["--corruptions", "saturate"], UsageError, "grey"),
    (["--corruptions", "snow"], UsageError, "--source archive"),
    (["--severities", "6"], UsageError, "1 to 5"),
    (["--severities", "0"], UsageError, "--corruptions none"),
    (["--ood", "FashonMNIST"], UsageError, "did you mean FashionMNIST"),
    (["--ood", "digits"], UsageError, "trained on"),
    (["--ood", "none", "--corruptions", "none"], UsageError, "nothing to measure"),
    (["--sizes", "2,5"], UsageError, "there are 4 networks"),
    (["--source", "archive"], UsageError, "of digits"),
    (["--ood", "SVHN", "--data_root", "/nowhere"], FileProblem, "fetch SVHN"),
])
def test_bad_flags_are_refused_before_anything_is_written(trained, tmp_path, flags, error, match):
    with pytest.raises(error, match=match):
        shift.main([*SHIFT, "--members", str(trained / "ensembles"), "--runs", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


def test_members_of_different_data_are_refused(trained, tmp_path):
    other = [*TRAIN, "--dataset", "fake:1x8x8:10:64", "--train_size", "0", "--epochs", "1"]
    train.main([*other, "--members", "1", "--runs", str(tmp_path)])
    with pytest.raises(UsageError, match="different data"):
        shift.main([*SHIFT, "--members", str(trained / "ensembles"), str(tmp_path / "ensembles"), "--runs",
                    str(tmp_path / "out")])


def test_dry_run_writes_nothing(trained, tmp_path, capsys):
    shift.main([*SHIFT, "--members", str(trained / "ensembles"), "--runs", str(tmp_path / "out"), "--dry_run"])
    said = capsys.readouterr().out
    assert "digits contrast 5: logits of" in said and "fake: logits of" in said and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """Three networks of colour images, and the images: a stand-in for CIFAR-10 and its test set."""
    root = tmp_path_factory.mktemp("colour")
    name = "fake:3x32x32:10:80"
    train.main([*TRAIN, "--dataset", name, "--train_size", "0", "--members", "3", "--runs", str(root)])
    return root, data.load(name, val_size=0).test


def as_cifar(monkeypatch, images):
    monkeypatch.setattr(shift, "test_images", lambda *_: images)
    monkeypatch.setattr(predictions, "dataset_of", lambda *_: "CIFAR10")


def write_archive(folder, images, labels, names, seed=0):
    (folder / "CIFAR-10-C").mkdir(parents=True)
    for name in names:
        made = [corruptions.corrupted(images, name, s, seed) for s in corruptions.SEVERITIES]
        np.save(folder / "CIFAR-10-C" / f"{name}.npy", np.concatenate(made))
    np.save(folder / "CIFAR-10-C" / "labels.npy", np.tile(labels.astype(np.uint8), 5))


def test_the_archive_gives_what_its_images_are(coloured, tmp_path, monkeypatch):
    root, test = coloured
    as_cifar(monkeypatch, test)
    images, labels = test.images.numpy(), test.labels.numpy()
    names = ("contrast", "brightness")
    write_archive(tmp_path, images, labels, names)
    flags = ["--corruptions", ",".join(names), "--ood", "none", "--images", "25", "--data_root", str(tmp_path)]
    computed, _ = run_shift(root, *flags)
    archived, _ = run_shift(root, *flags, "--source", "archive")
    assert archived["source"] == "archive" and archived["images"] == 25
    assert archived["curves"] == computed["curves"]


def test_an_archive_of_fewer_images_is_of_the_first_ones(coloured, tmp_path, monkeypatch):
    root, test = coloured
    as_cifar(monkeypatch, test)
    images, labels = test.images.numpy()[:12], test.labels.numpy()[:12]
    write_archive(tmp_path, images, labels, ["contrast"])
    flags = ["--corruptions", "contrast", "--ood", "none", "--source", "archive", "--data_root", str(tmp_path)]
    found, _ = run_shift(root, *flags)
    assert found["images"] == 12
    probs = plain(root, corruptions.corrupted(images, "contrast", 5, 0))
    held = row_of(found["curves"], corruption="contrast", severity=5, size=3)["measures"]
    assert held["accuracy"]["value"] == pytest.approx(metrics.accuracy(probs.mean(0), labels))
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", np.tile((labels + 1) % 10, 5).astype(np.uint8))
    with pytest.raises(ContentError, match="labels are not those"):
        run_shift(root, *flags)
    with pytest.raises(FileProblem, match=r"frost.npy is missing"):
        run_shift(root, *flags, "--corruptions", "frost")


def test_colour_images_are_saturated_and_channels_count(coloured, monkeypatch):
    root, _ = coloured
    found, _ = run_shift(root, "--corruptions", "saturate", "--ood", "digits")
    assert found["corruptions"] == ["saturate"] and found["ood"][0]["set"] == "digits"
    fitted = data.fitted(torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8, 1), 8, 3)
    assert fitted.shape == (1, 8, 8, 3) and (fitted[..., 0] == fitted[..., 2]).all()


def test_smoke_takes_the_whole_path(tmp_path):
    train.main(["--smoke", "--members", "2", "--runs", str(tmp_path)])
    shift.main(["--smoke", "--members", str(tmp_path / "ensembles"), "--runs", str(tmp_path)])
    (path,) = (tmp_path / "smoke" / "ensembles").glob("shift_digits*/results.json")
    found = json.loads(path.read_text())
    assert found["ood"][0]["set"] == "fake" and found["severities"] == [4, 5] and len(found["models"]) == 2


def test_gain_of_the_full_ensemble_covers_its_expectation():
    """Members with normal values and an ensemble worth their mean plus 0.1: the interval is of the right width."""
    groups = shift.make_groups(type("A", (), {"sizes": None, "subsets": 1000, "shift_seed": 0}), 6)
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        quality = rng.normal(size=6)
        spread = groups.subsets @ quality**2 / groups.sizes - (groups.subsets @ quality / groups.sizes) ** 2
        scores = groups.subsets @ quality / groups.sizes + spread  # the gain is the variance among its members
        value, low, high = shift.of_gain(shift.gains(scores, groups), groups, 6, 0.95)
        assert value == pytest.approx(quality.var())
        held += low <= 5 / 6 <= high
    assert 0.7 < held / 300 < 0.99  # a variance of six normal values is skewed


def test_wandb_gets_tables_without_a_hole(measured):
    shifted, foreign = shift.records(measured[0])
    for rows in (shifted, foreign):
        assert rows and len({tuple(r) for r in rows}) == 1
    assert {r["what"] for r in shifted} == {"value", "gain", "growth of gain"}
    assert results.csv_text(foreign, list(foreign[0])).count("\n") == len(foreign) + 1
