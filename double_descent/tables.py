"""The tables of the linear study: features (n, D) and a target (n,), float64, without gaps. No torch, no download.

    python -m double_descent.linear --tables diabetes,student_teacher

Any other table is a CSV file with a head line, --csv FILE --target COLUMN, read by this rule: a column with a cell that
is neither a number nor a gap is text and left out; a row with a gap in another column is left out; both are said. A row
without a target is refused, and so is a column that is constant in the rows that remain. A gap is an empty cell or one
of GAPS, in capitals or not.
"""

import csv
import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from landscape.cli import suggestion
from landscape.errors import ContentError, FileProblem, UsageError

GAPS = ("", "na", "n/a", "nan", "null", "none", "?")
CALIFORNIA = "CaliforniaHousing/cal_housing.data", "01d0b31df796a8d4b7a6ce4c37f42dbc"
WHO = "life_expectancy.csv", "690708e4b2a84f855fe9aa3175310f9b"
# Of the file's 22 columns, those that are no features: identity, the target, and one that the paper leaves out.
WHO_OTHERS = ("Country", "Year", "Status", "Life expectancy", "Income composition of resources")


@dataclass(frozen=True)
class Table:
    """features (D,) names the columns of x (n, D); y (n,); groups (n,) of texts, or None where rows are independent;
    said: what was left out, in words."""

    name: str
    features: tuple
    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray | None = None
    said: str = ""


def load(name, data_root):
    """The table of that name. UsageError for an unknown name, FileProblem where its file is not there."""
    if name not in TABLES:
        raise UsageError(f"unknown table {name!r}{suggestion(name, TABLES)}; known: {', '.join(TABLES)}")
    # The same place as for images (landscape/readers.py, which loads torch).
    return TABLES[name](Path(data_root or os.environ.get("DATA_ROOT") or "~/data").expanduser())


def available(data_root):
    """([Table], [why another is left out]) of all tables whose files are there."""
    found, missing = [], []
    for name in TABLES:
        try:
            found.append(load(name, data_root))
        except FileProblem as e:
            missing.append(f"{name}: {e}")
    return found, missing


# ---- the four of Schaeffer et al. 2023 -----------------------------------------------------------------------------


def diabetes(root):
    """442 x 10, bundled with scikit-learn: columns centred and of norm 1, the target's mean is 152."""
    from sklearn.datasets import load_diabetes

    held = load_diabetes()
    return Table("diabetes", tuple(held.feature_names), held.data, held.target)


def student_teacher(root):
    """1000 x 20: a linear teacher of 30 Gaussian features of which the student sees the first 20; no noise."""
    draw = np.random.RandomState(0)  # the published draw
    x = draw.normal(size=(1000, 30))
    return Table("student_teacher", tuple(f"x{i}" for i in range(1, 21)), x[:, :20], x @ draw.normal(size=30))


def california(root):
    """20,640 x 8, StatLib: the features that scikit-learn forms, the target in 100,000 $."""
    names = ("MedInc", "HouseAge", "AveRooms", "AveBedrms", "Population", "AveOccup", "Latitude", "Longitude")
    path = root / CALIFORNIA[0]
    if path.is_file():
        checked(path, CALIFORNIA[1])
        long, lat, age, rooms, bedrooms, people, homes, income, value = np.loadtxt(path, delimiter=",").T
        x = np.stack([income, age, rooms / homes, bedrooms / homes, people, people / homes, lat, long], axis=1)
        return Table("california", names, x, value / 100_000)
    from sklearn.datasets import fetch_california_housing

    try:
        held = fetch_california_housing(download_if_missing=False)
    except OSError:
        raise FileProblem(f"{path} is missing, and scikit-learn has no copy: put cal_housing.data (StatLib) there, or "
                          "let scikit-learn fetch it: python -c 'from sklearn.datasets import "
                          "fetch_california_housing as f; f()'") from None
    return Table("california", names, held.data, held.target, said="from scikit-learn's cache")


def who(root):
    """1,649 x 17, life expectancy by country and year (WHO): the rows without gaps in any column."""
    path = root / WHO[0]
    if not path.is_file():
        raise FileProblem(f"{path} is missing: put 'Life Expectancy Data.csv' of the WHO (kaggle.com, data set "
                          "kumarajarshi/life-expectancy-who) there under that name")
    checked(path, WHO[1])
    head, rows = read_cells(path)
    whole = [row for row in rows if not any(gap(cell) for cell in row)]
    names = tuple(c for c in head if c not in WHO_OTHERS)
    x, y = (np.array([[float(row[head.index(c)]) for c in chosen] for row in whole])
            for chosen in (names, ["Life expectancy"]))
    return Table("who", names, x, y[:, 0], np.array([row[head.index("Country")] for row in whole]),
                 f"{len(rows) - len(whole)} of {len(rows)} rows left out for a gap")


TABLES = {"california": california, "diabetes": diabetes, "student_teacher": student_teacher, "who": who}


def checked(path, md5):
    if hashlib.md5(path.read_bytes()).hexdigest() != md5:
        raise ContentError(f"{path} is damaged or another edition (its md5 is not {md5}); read another edition with "
                           "--csv FILE --target COLUMN")


# ---- any CSV file --------------------------------------------------------------------------------------------------


def from_csv(path, target, group):
    """The Table of a CSV file, by the rule at the head of this module; group: the column for --split_by, or ""."""
    head, rows = read_cells(path)
    for flag, name in (("--target", target), ("--split_by", group)):
        if name not in head and (name or flag == "--target"):
            raise UsageError(f"{flag} {name}: {path} has no such column{suggestion(name, head)}; it has "
                             f"{', '.join(head)}")
    y = np.array([number_in(path, target, row[head.index(target)], line) for line, row in enumerate(rows, 2)])
    columns = {c: [row[i] for row in rows] for i, c in enumerate(head) if c not in (target, group)}
    text = [c for c, cells in columns.items() if not all(gap(cell) or is_number(cell) for cell in cells)]
    names = tuple(c for c in columns if c not in text)
    if not names:
        raise ContentError(f"{path} has no column of numbers besides {target}")
    x = np.array([[math.nan if gap(cell) else float(cell) for cell in columns[c]] for c in names]).T
    whole = np.isfinite(x).all(axis=1)
    x, y = x[whole], y[whole]
    if len(y) < 3:
        raise ContentError(f"{path}: {len(y)} rows without gaps of {len(rows)}; at least 3 are needed")
    constant = [c for c, column in zip((*names, target), (*x.T, y)) if np.ptp(column) == 0]
    if constant:
        raise ContentError(f"{path}: column {constant[0]} is constant in its {len(y)} rows without gaps; remove it")
    said = [f"column {c} left out: text" for c in text]
    said += [f"{(~whole).sum()} of {len(rows)} rows left out for a gap"] * (not whole.all())
    groups = np.array([row[head.index(group)] for row, kept in zip(rows, whole) if kept]) if group else None
    return Table(Path(path).stem, names, x, y, groups, "; ".join(said))


def read_cells(path):
    """(column names, rows of cells), both stripped of blanks."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            rows = [[cell.strip() for cell in row] for row in csv.reader(f, strict=True) if row]
    except OSError as e:
        raise FileProblem(f"{path}: {(e.strerror or str(e)).lower()}") from None
    except (UnicodeDecodeError, csv.Error) as e:
        raise ContentError(f"{path} is not a CSV file in UTF-8 ({e})") from None
    if len(rows) < 2:
        raise ContentError(f"{path} holds no rows: a head line with the columns' names is expected, then rows")
    head = rows[0]
    twice = [c for c in head if head.count(c) > 1]
    if twice:
        raise ContentError(f"{path}: more than one column is called {twice[0]!r}")
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(head):
            raise ContentError(f"{path}: row {line} has {len(row)} cells, the head line {len(head)}")
    return head, rows[1:]


def gap(cell):
    return cell.lower() in GAPS


def is_number(cell):
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def number_in(path, column, cell, line):
    if not is_number(cell):
        raise ContentError(f"{path}: row {line} has {cell or 'nothing'} in the target {column}, where a number is "
                           "expected; remove such rows, or choose another --target")
    return float(cell)
