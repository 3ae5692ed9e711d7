"""The tables of the linear study: the published ones, and the rule by which a CSV file is read."""

import csv

import numpy as np
import pytest

from double_descent import linear, tables
from landscape.errors import ContentError, FileProblem, Refusal, UsageError


def write(folder, *lines):
    (folder / "t.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "t.csv"


@pytest.mark.parametrize("name, shape, mean", [("diabetes", (442, 10), 152.13), ("student_teacher", (1000, 20), None),
                                               ("california", (20640, 8), 2.0686), ("who", (1649, 17), 69.302)])
def test_the_published_tables(name, shape, mean):
    try:
        held = tables.load(name, None)
    except FileProblem as e:
        pytest.skip(f"{name}: {e}")
    assert held.x.shape == shape and held.y.shape == shape[:1] and len(held.features) == shape[1]
    assert np.isfinite(held.x).all() and np.isfinite(held.y).all() and held.name == name
    assert mean is None or abs(held.y.mean() / mean - 1) < 1e-4
    if name == "who":
        assert len(set(held.groups)) == 133 and "Income composition of resources" not in held.features
    if name == "student_teacher":  # without noise: the features that are not seen make the residuals
        draw = np.random.RandomState(0)
        x, teacher = draw.normal(size=(1000, 30)), draw.normal(size=30)
        assert np.array_equal(held.x, x[:, :20]) and np.array_equal(held.y, x @ teacher)


def test_names_and_files_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    with pytest.raises(UsageError, match="did you mean california"):
        tables.load("californa", None)
    held, missing = tables.available(str(tmp_path))
    assert [t.name for t in held] == ["diabetes", "student_teacher"] and len(missing) == 2
    assert all(str(tmp_path) in line and "put " in line for line in missing)
    (tmp_path / "life_expectancy.csv").write_text("Country,Life expectancy\nA,1\n")
    with pytest.raises(ContentError, match="another edition.*--csv"):
        tables.load("who", str(tmp_path))


def test_a_csv_file_is_read_by_the_rule(tmp_path):
    file = write(tmp_path, "a, b ,town,y", "1,2,x,3", "2,NA,x,4", "", "4,5.5e0,y,?".replace("?", "6"), "0,1,,7")
    held = tables.from_csv(file, "y", "")
    assert held.features == ("a", "b") and held.groups is None and held.name == "t"
    assert held.x.tolist() == [[1, 2], [4, 5.5], [0, 1]] and held.y.tolist() == [3, 6, 7]
    assert held.said == "column town left out: text; 1 of 4 rows left out for a gap"
    grouped = tables.from_csv(file, "y", "town")
    assert grouped.groups.tolist() == ["x", "y", ""] and grouped.features == ("a", "b")


def test_cells_are_read_as_csv_reads_them(tmp_path):
    file = write(tmp_path, '"x, y",t', '"1","2"', "3,4", "5,7")
    with open(file, newline="") as f:
        assert list(csv.reader(f))[0] == ["x, y", "t"]
    assert tables.from_csv(file, "t", "").features == ("x, y",)


@pytest.mark.parametrize("lines, kind, words", [
    (["a,y", "1,2"], ContentError, "1 rows without gaps of 1; at least 3"),
    (["a,y"], ContentError, "no rows"),
    (["a,c,y", "1,5,1", "2,5,2", "3,5,4"], ContentError, "column c is constant"),
    (["a,y", "1,5", "2,5", "3,5"], ContentError, "column y is constant"),
    (["a,y", "1,1", "2,nan", "3,4"], ContentError, "row 3 has nan in the target y"),
    (["a,y", "1,1", "2,", "3,4"], ContentError, "row 3 has nothing in the target y"),
    (["a,y", "1,1", "2,inf", "3,4"], ContentError, "row 3 has inf in the target y"),
    (["a,z", "1,1", "2,3"], UsageError, "has no such column; did you mean|has no such column"),
    (["a,a,y", "1,1,2"], ContentError, "more than one column is called 'a'"),
    (["a,y", "1,1", "2"], ContentError, "row 3 has 1 cells, the head line 2"),
    (["a,y", "x,1", "y,2", "z,3"], ContentError, "no column of numbers"),
])
def test_bad_files_are_refused_in_one_line(lines, kind, words, tmp_path):
    file = write(tmp_path, *lines)
    with pytest.raises(kind, match=words) as caught:
        linear.main(["--csv", str(file), "--target", "y", "--runs", str(tmp_path / "runs")])
    assert "\n" not in str(caught.value) and "t.csv" in str(caught.value)
    assert caught.value.exit_code == {ContentError: 4, UsageError: 2}[kind]
    assert not (tmp_path / "runs").exists()


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileProblem, match="no such file"):
        tables.from_csv(tmp_path / "none.csv", "y", "")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00a,b\n")
    with pytest.raises(Refusal, match="not a CSV file"):
        tables.from_csv(tmp_path / "b.csv", "y", "")
