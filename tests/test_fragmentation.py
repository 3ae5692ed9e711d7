"""Connected components of class maps: drawn patterns, a slow twin, and the command."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import main
import save_preds
from landscape import metrics, runs
from landscape.errors import UsageError
from regions import fragmentation


def pattern(*rows):
    return np.array([[int(c) for c in row] for row in rows], dtype=np.uint8)[None]


@pytest.mark.parametrize(("map_", "eight", "four"), [
    (pattern("00", "00"), 1, 1),
    (pattern("01", "10"), 2, 4),  # dbViz's rule joins both diagonals at once
    (pattern("000", "010", "000"), 2, 2),
    (pattern("012", "012", "012"), 3, 3),
    (pattern("0110", "1001", "1001", "0110"), 2, 9),  # a ring, and what its corners let through
    (pattern("01010", "01010", "01110"), 4, 4),
])  # fmt: skip
def test_drawn_patterns(map_, eight, four):
    assert metrics.fragmentation(map_, 8)["fragments"][0] == eight
    assert metrics.fragmentation(map_, 4)["fragments"][0] == four


def twin(maps, connectivity):
    """Components class by class with scipy.ndimage.label."""
    structure = np.ones((3, 3)) if connectivity == 8 else None
    found = []
    for p, m in enumerate(maps):
        for c in np.unique(m):
            label, count = ndimage.label(m == c, structure)
            found += [(p, c, int((label == k + 1).sum())) for k in range(count)]
    return sorted(found)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 9), st.integers(2, 7), st.integers(1, 4))
def test_components_equal_those_found_class_by_class(seed, planes, rows, columns, classes):
    maps = np.random.default_rng(seed).integers(0, classes, (planes, rows, columns)).astype(np.uint8)
    for connectivity in (4, 8):
        got = sorted(zip(*(a.tolist() for a in metrics.components(maps, connectivity))))
        assert got == twin(maps, connectivity)


def test_other_measures_by_hand():
    maps = np.concatenate([pattern("0011", "0011", "0000", "0002"), pattern("1111", "1111", "1111", "1111")])
    got = metrics.fragmentation(maps)
    assert got["fragments"].tolist() == [3, 1] and got["classes"].tolist() == [3, 1]
    assert np.allclose(got["largest"], [11 / 16, 1])
    shares = np.array([11, 4, 1]) / 16
    assert np.allclose(got["entropy"], [-(shares * np.log(shares)).sum(), 0])
    assert np.allclose(got["boundary"], [(2 + 2 + 1 + 1) / 24, 0])
    assert metrics.fragmentation(maps, min_area=2)["fragments"].tolist() == [2, 1]
    assert metrics.fragmentation(maps, min_area=5)["fragments"].tolist() == [1, 1]


def test_turning_and_renaming_changes_nothing():
    maps = np.random.default_rng(0).integers(0, 3, (4, 12, 12)).astype(np.uint8)
    for connectivity in (4, 8):
        here = metrics.fragmentation(maps, connectivity)
        for other in (maps.transpose(0, 2, 1), maps[:, ::-1], maps + 5):
            there = metrics.fragmentation(other, connectivity)
            assert all(np.allclose(here[k], there[k]) for k in here)


def test_connectivity_is_4_or_8():
    with pytest.raises(ValueError, match="4 or 8"):
        metrics.components(np.zeros((1, 2, 2)), 6)


def test_the_command(tmp_path, capsys):
    where = ["--runs", str(tmp_path)]
    for seed in ("0", "1"):
        main.main(["--dataset", "digits", "--net", "mlp", "--epochs", "1", "--train_size", "200", "--imgs", "none",
                   "--seed", seed, "--device", "cpu", *where])  # fmt: skip
    load = ["--load_net", str(tmp_path / "regions"), *where]
    save_preds.main([*load, "--planes", "5", "--resolution", "12", "--device", "cpu"])
    assert fragmentation.main([*load, "--connectivity", "4"]) == 0
    (folder,) = tmp_path.glob("regions/fragmentation_*")
    found = runs.read_json(folder / "results.json")
    held = [runs.read_arrays(f)["labels"].reshape(5, 12, 12) for f in tmp_path.glob("regions/digits*/arrays/*.npz")]
    expected = np.mean([len(twin(m, 4)) / 5 for m in held])
    (row,) = found["groups"]
    assert abs(row["fragments"]["value"] - expected) < 1e-9
    assert row["fragments"]["low"] <= expected <= row["fragments"]["high"]
    assert row["models"] == 2 and (folder / "fragmentation.csv").exists()
    assert (folder / "figures" / "fragmentation.png").exists() and "fragments" in capsys.readouterr().out
    with pytest.raises(UsageError, match="144 points"):
        fragmentation.main([*load, "--min_area", "1000"])
