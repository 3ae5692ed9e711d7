"""Many runs into one table of records, and bootstrap intervals over what really varies. No torch.

    python -m landscape.results runs --columns net,init_seed,last.test_accuracy
    python -m landscape.results runs --curves --format csv

prints the finished runs below a folder, a row each, or their metrics of every epoch, a row for each number.

Every interval is a percentile bootstrap, stretched about its value for small samples as Hesterberg (2015,
The American Statistician 69) argues: plain 95 % percentiles of three seeds hold the truth 73 times in 100, of
five 83 times; stretched they hold it 93 to 98 times, and the stretch tends to 1 for many. (Simulated on
normal values; tests/test_results.py.) An end may therefore lie beyond the range of the values.
"""

import csv
import io
import json
from pathlib import Path

import numpy as np

from landscape.errors import ContentError, FileProblem, UsageError
from landscape.runs import below, read_json, read_metrics, write_bytes

# ---- records -----------------------------------------------------------------------------------------------


def load_records(root):
    """One dict for each finished run (its folder holds `done`) at or below root, sorted by folder, without those of
    --smoke.

    Keys: `folder`, relative to root; every setting of config.yaml; every number, text or null of
    results.json, nested ones with dots (`test.accuracy`), those that a setting's name hides as
    `results.NAME`; those of meta.json as `meta.NAME`. Raises FileProblem when root is missing and
    ContentError when a file of a run is damaged.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileProblem(f"{root} is not a folder; give the folder that holds the runs")
    records = []
    for done in below(root, "done"):
        folder = done.parent
        record = {"folder": str(folder.relative_to(root)), **config_of(folder / "config.yaml")}
        if (folder / "results.json").exists():
            for name, value in flattened(read_json(folder / "results.json")).items():
                record[f"results.{name}" if name in record else name] = value
        if (folder / "meta.json").exists():
            record.update(flattened(read_json(folder / "meta.json"), "meta."))
        records.append(record)
    return records


def flattened(values, prefix=""):
    """The numbers, texts and nulls of a nested dict under dotted names; lists are left out, since they are
    curves and matrices, not cells of a table."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(flattened(value, f"{prefix}{name}."))
        elif not isinstance(value, list):
            flat[f"{prefix}{name}"] = value
    return flat


def varying(records):
    """The columns whose values differ between the records, or all for a single one; none of meta."""
    names = [n for n in dict.fromkeys(n for r in records for n in r) if not n.startswith("meta.")]
    return [n for n in names if len(records) == 1 or len({repr(r.get(n)) for r in records}) > 1]


def load_curves(root, records):
    """One dict for each number of each line of metrics.jsonl of the runs that load_records gave of root: `folder`, the
    settings that differ between the runs, `epoch`, `metric` and `value` (losses in nats, accuracies as shares)."""
    root, out = Path(root), []
    records = [r for r in records if (root / r["folder"] / "metrics.jsonl").exists()]
    own = {name for record in records for name in config_of(root / record["folder"] / "config.yaml")}
    names = [name for name in varying(records) if name in own] if len(records) > 1 else []
    for record in records:
        run = {name: record.get(name) for name in ("folder", *names)}
        for line in read_metrics(root / record["folder"]):
            out += [{**run, "epoch": line.get("epoch"), "metric": name, "value": value}
                    for name, value in line.items() if name != "epoch" and isinstance(value, int | float)]
    return out


def table(records, columns=None):
    """The records as aligned text under a head line; numbers to four digits, missing values as a dash."""
    columns = _columns(records, columns)
    rows = [columns, *([_cell(record.get(name)) for name in columns] for record in records)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(columns))]
    return "".join("  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() + "\n" for row in rows)


def csv_text(records, columns=None):
    """The records as CSV with full precision; missing values are empty."""
    columns = _columns(records, columns)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([record.get(name) for name in columns] for record in records)
    return out.getvalue()


def markdown(records, columns=None):
    """The records as a table of GitHub's Markdown; numbers as in `table`."""
    columns = _columns(records, columns)
    rows = [columns, *([_cell(record.get(name)) for name in columns] for record in records)]
    lines = ["| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in row) + " |" for row in rows]
    ends = ["---:" if numeric else "---" for numeric in _numeric(records, columns)]
    return "\n".join([lines[0], "|" + "|".join(ends) + "|", *lines[1:]]) + "\n"


TEX = str.maketrans({"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " ",
                     "<": r"\textless{}", ">": r"\textgreater{}", **{c: f"\\{c}" for c in "&%$#_{}"}})


def latex(records, columns=None):
    """The records as a tabular of LaTeX (package booktabs); numbers as in `table`."""
    columns = _columns(records, columns)
    rows = [columns, *([_cell(record.get(name)) for name in columns] for record in records)]
    head, *body = ["  " + " & ".join("--" if c == "-" else c.translate(TEX) for c in row) + r" \\" for row in rows]
    ends = "".join("r" if numeric else "l" for numeric in _numeric(records, columns))
    return "\n".join([rf"\begin{{tabular}}{{{ends}}}", r"  \toprule", head, r"  \midrule", *body, r"  \bottomrule",
                      r"\end{tabular}"]) + "\n"


def _numeric(records, columns):
    """Of each column, whether it holds numbers and nothing else."""
    def plain(value):
        return value is None or (isinstance(value, int | float) and not isinstance(value, bool))

    return [all(plain(r.get(name)) for r in records) for name in columns]


FORMATS = {"text": table, "csv": csv_text, "markdown": markdown, "latex": latex}


def write_csv(path, records, columns=None):
    """Write csv_text to path, whole or not at all."""
    write_bytes(path, csv_text(records, columns).encode())


def config_of(path):
    """The settings of a config.yaml. Raises FileProblem and ContentError."""
    import yaml

    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise FileProblem(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ContentError(
            f"{path} is damaged ({' '.join(str(error).split())}); run its command again"
        ) from None
    if not isinstance(config, dict):
        raise ContentError(f"{path} holds no settings; run its command again with --force")
    return config


def _columns(records, columns):
    if columns is None:
        return varying(records)
    known = {name for record in records for name in record}
    unknown = [name for name in columns if name not in known]
    if unknown and records:
        import difflib

        close = difflib.get_close_matches(unknown[0], sorted(known), 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(f"no run has a column {unknown[0]!r}{hint}")
    return list(columns)


def _cell(value):
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---- intervals ---------------------------------------------------------------------------------------------


def bootstrap(values, statistic=np.mean, n=2000, level=0.95, seed=0):
    """(value, low, high) of a statistic of independent values (N,) or (N, ...), resampled along the first
    axis.

    n: number of resamples. low and high are None when N is 1, since one value says nothing of its spread.
    Equal inputs and seed give equal numbers. ValueError for no values or NaN.
    """
    values = _checked(values)
    if len(values) == 0:
        raise ValueError("no values to resample")
    value = float(statistic(values))
    if len(values) == 1:
        return value, None, None
    rng = np.random.default_rng(seed)
    draws = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(n)]
    return value, *_ends(value, draws, level, len(values) - 1, 1 - 1 / len(values))


def bootstrap_pairs(values, n=2000, level=0.95, seed=0, statistic=None):
    """(mean, low, high) over the pairs i < j of M models, from a symmetric matrix (M, M), clustered by model.

    Pairs that share a model are not independent, so models are drawn, not pairs: a pair of models drawn a and
    b times weighs a*b (Davezies, D'Haultfoeuille & Guyonvarch 2021, jointly exchangeable arrays). A pair of a
    model with itself never counts and the diagonal is not read. low and high are None for fewer than three
    models; the mean is None too for fewer than two. statistic: of the means (...) of values (..., M, M), a
    number, taken in place of the mean, as of a curve the place of its peak.
    """
    values = np.array(values, dtype=float)
    models = values.shape[-1]
    if values.ndim < 2 or values.shape[-2] != models or (values.ndim > 2 and statistic is None):
        raise ValueError(f"a symmetric matrix (M, M) expected, not {values.shape}")
    values[..., range(models), range(models)] = 0
    values = _checked(values)
    if not np.allclose(values, values.swapaxes(-1, -2)):
        raise ValueError("the matrix of pairs is not symmetric")
    if models < 2:
        return None, None, None
    statistic = statistic or float
    value = float(statistic(values.sum((-2, -1)) / (models * (models - 1))))
    if models < 3:
        return value, None, None
    counts = _counts(np.random.default_rng(seed), models, n)
    weights = models**2 - (counts**2).sum(axis=1)
    # A draw of one model alone has no pair and is left out: 1 draw in 9 for 3 models, 1 in 7776 for 6.
    counts, weights = counts[weights > 0], weights[weights > 0]
    means = ((counts @ values) * counts).sum(axis=-1) / weights  # (..., n)
    # Leaving out the pairs of a model with itself shortens the spread once more, by (M-2)/(M-1).
    spread = (1 - 1 / models) * ((models - 2) / (models - 1)) ** 2
    return value, *_ends(value, [statistic(m) for m in np.moveaxis(means, -1, 0)], level, models - 1, spread)


def bootstrap_between(values, n=2000, level=0.95, seed=0):
    """(mean, low, high) over all pairs of A models of one group with B models of another, from a matrix (A,
    B); models of both groups are drawn. low and high are None when either group has one model."""
    values = _checked(values)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"a matrix (A, B) expected, not {values.shape}")
    value = float(values.mean())
    if min(values.shape) < 2:
        return value, None, None
    rng = np.random.default_rng(seed)
    rows, columns = (_counts(rng, size, n) / size for size in values.shape)
    freedom, spread = sum(values.shape) - 2, 1 - 1 / min(values.shape)
    return value, *_ends(value, ((rows @ values) * columns).sum(axis=1), level, freedom, spread)


def bootstrap_strata(strata, statistic, n=2000, level=0.95, seed=0):
    """(value, low, high) of a statistic of the list of means of several groups of independent values, each (N, ...)
    with N of its own; every group is resampled by itself. low and high are None where a group has one value."""
    strata = [_checked(values) for values in strata]
    value = float(statistic([values.mean(axis=0) for values in strata]))
    sizes = [len(values) for values in strata]
    if min(sizes) < 2:
        return value, None, None
    rng = np.random.default_rng(seed)
    draws = [statistic([values[rng.integers(len(values), size=len(values))].mean(axis=0) for values in strata])
             for _ in range(n)]  # fmt: skip
    return value, *_ends(value, draws, level, sum(sizes) - len(sizes), 1 - 1 / min(sizes))


def bootstrap_planes(per_plane, n=2000, level=0.95, seed=0):
    """(mean, low, high), arrays (...), of values (..., P) over P planes; planes are drawn, the same ones for
    all entries, so that differences of entries may be taken before. low and high are None when P is 1."""
    per_plane = _checked(per_plane)
    planes = per_plane.shape[-1]
    if planes == 0:
        raise ValueError("no planes to resample")
    mean = per_plane.mean(axis=-1)
    if planes == 1:
        return mean, None, None
    shares = _counts(np.random.default_rng(seed), planes, n) / planes
    flat = per_plane.reshape(-1, planes)
    means, ends = mean.ravel(), np.empty((2, len(flat)))
    for start in range(0, len(flat), 4096):  # at n=2000 the resampled means of 4096 entries take 65 MB
        part = slice(start, start + 4096)
        ends[:, part] = _ends(means[part], shares @ flat[part].T, level, planes - 1, 1 - 1 / planes)
    low, high = ends.reshape(2, *mean.shape)
    return mean, low, high


def bootstrap_present(per_plane, n=2000, level=0.95, seed=0):
    """bootstrap_planes for values (K, P) that are NaN on planes where there is nothing to measure: the mean of each row
    over its other planes. Returns (mean, low, high, planes), lists of K: None where a row has too few planes."""
    per_plane = np.asarray(per_plane, dtype=float)
    there = ~np.isnan(per_plane)
    _checked(per_plane[there])
    planes, counts = per_plane.shape[-1], there.sum(axis=1)
    shares = _counts(np.random.default_rng(seed), planes, n)
    mean, low, high = ([None] * len(per_plane) for _ in range(3))
    for k, (values, seen, count) in enumerate(zip(np.nan_to_num(per_plane), there, counts.tolist())):
        if count:
            mean[k] = float(values.sum() / count)
        if count > 1:
            drawn = shares @ seen
            draws = (shares @ values)[drawn > 0] / drawn[drawn > 0]
            low[k], high[k] = _ends(mean[k], draws, level, count - 1, 1 - 1 / count)
    return mean, low, high, counts.tolist()


def bootstrap_defined(per_plane, n=2000, level=0.95, seed=0):
    """bootstrap_planes for values (..., P) that are NaN on planes where they are not defined: over the other planes.
    NaN for an entry with too few of them."""
    per_plane = np.asarray(per_plane, dtype=float)
    if not np.isnan(per_plane).any():
        return bootstrap_planes(per_plane, n, level, seed)
    *found, _ = bootstrap_present(per_plane.reshape(-1, per_plane.shape[-1]), n, level, seed)
    return tuple(np.array(part, dtype=float).reshape(per_plane.shape[:-1]) for part in found)


def mean_defined(values):
    """The mean along the first axis of what is not NaN; NaN where all is."""
    values = np.asarray(values, dtype=float)
    count = (~np.isnan(values)).sum(axis=0)
    return np.where(count > 0, np.nan_to_num(values).sum(axis=0) / np.maximum(count, 1), np.nan)


def over_subsets(values, subsets, level=0.95):
    """(mean, low, high) of a statistic of subsets (B, K bool) of K members, all of one size, from values (B,).

    Subsets share members, so the interval is a jackknife over members: variance (K-1)/K sum_k (U_k - mean U)^2, U_k the
    mean over the subsets without member k (Arvesen 1969, for U-statistics), with Student's t of K-1 degrees. low and
    high are None for fewer than three members, where every subset holds all of them, and where some member is in every
    subset that was drawn. ValueError for NaN.
    """
    values, subsets = _checked(values), np.asarray(subsets, bool)
    if values.ndim != 1 or len(values) != len(subsets) or not len(values):
        raise ValueError(f"values (B,) and subsets (B, K) expected, not {values.shape} and {subsets.shape}")
    value, without = float(values.mean()), ~subsets
    if not without.any(axis=0).all():
        return value, None, None
    return value, *jackknife(value, (values @ without) / without.sum(axis=0), level)


def jackknife(value, without, level=0.95):
    """(low, high) of a statistic about its value, from its values (K,) without each of K members: Student's t of K-1
    degrees and the variance (K-1)/K sum_k (U_k - mean U)^2 (Tukey 1958). (None, None) for fewer than three members."""
    from scipy.special import stdtrit

    without = _checked(without)
    count = len(without)
    if count < 3:
        return None, None
    spread = ((count - 1) / count * ((without - without.mean()) ** 2).sum()) ** 0.5
    reach = float(stdtrit(count - 1, (1 + level) / 2) * spread)
    return value - reach, value + reach


def square(rows, names):
    """(value, low, high) as square lists of lists, symmetric, from one row a pair of groups: dicts with group_a,
    group_b, value, low, high. names orders the groups; pairs without a row are None."""
    out = {key: [[None] * len(names) for _ in names] for key in ("value", "low", "high")}
    for row in rows:
        a, b = names.index(row["group_a"]), names.index(row["group_b"])
        for key, cells in out.items():
            cells[a][b] = cells[b][a] = row[key]
    return out["value"], out["low"], out["high"]


def _checked(values):
    values = np.asarray(values, dtype=float)
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinity among the values to resample")
    return values


def _counts(rng, units, n):
    """How often each unit is drawn in each of n resamples: (n, units), float for the products that follow."""
    return rng.multinomial(units, np.full(units, 1 / units), size=n).astype(float)


def _ends(value, draws, level, freedom, spread):
    """The ends of the interval about value from resampled values `draws` (along their first axis):
    percentiles, stretched from normal tails to Student's of `freedom` degrees, and from the share `spread` of
    the variance that resampling shows, (N-1)/N for N units, to all of it."""
    from scipy.special import ndtri, stdtrit

    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    stretch = stdtrit(freedom, tails[1]) / ndtri(tails[1]) / spread**0.5
    low, high = value + stretch * (np.quantile(draws, tails, axis=0) - value)
    return (float(low), float(high)) if np.ndim(low) == 0 else (low, high)


def make_parser():
    from landscape.cli import Parser

    parser = Parser("python -m landscape.results", __doc__)
    parser.add_argument("runs", nargs="?", default="runs", metavar="RUNS", help="folder that holds the runs")
    parser.add_argument("--format", choices=(*FORMATS, "json"), default="text",
                        help="csv and json keep all digits, json every column")
    parser.add_argument(
        "--columns", default="", metavar="A,B",
        help="runs without any of these are left out (default: those that differ between the runs)"
    )
    parser.add_argument("--curves", action="store_true",
                        help="the metrics of every epoch instead: columns folder, what differs, epoch, metric, value")
    return parser


def main(argv=None):
    args = make_parser().settings(argv)
    records = load_records(args.runs)
    if not records:
        raise FileProblem(
            f"no finished run below {args.runs}; a finished run's folder holds a file named done"
        )
    columns = [name.strip() for name in args.columns.split(",")] if args.columns else None
    if args.curves:
        records = load_curves(args.runs, records)
        if not records:
            raise FileProblem(f"no run below {args.runs} has a metrics.jsonl: only trainings have curves")
        columns = columns or list(records[0])
    elif columns:
        _columns(records, columns)  # the names are right
        records = [r for r in records if any(r.get(name) is not None for name in columns)]
    if args.format == "json":
        chosen = [{k: r.get(k) for k in _columns(records, columns)} for r in records] if columns else records
        print(json.dumps(chosen, indent=1, sort_keys=True, default=str))
    else:
        print(FORMATS[args.format](records, columns), end="")


if __name__ == "__main__":
    from landscape.cli import run

    run(main)
