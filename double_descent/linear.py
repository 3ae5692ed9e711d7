"""Linear double descent: errors of least squares against the number of training rows, and what removes the peak.

    python -m double_descent.linear

Schaeffer et al. 2023 (arXiv 2303.14151). Of every size it fits --repeats training sets; all other rows are the test
set. Ablations: small singular values cut off; only leading modes; test rows drawn in to where training rows vary; no
residuals (targets from the best linear model); ridge. Then adversarial test rows and training targets. --as_published
is the paper's own procedure: no intercept, no scaling, absolute cut-offs and budgets, signs as the factorisation has
them. What each measure is stands in the README; a CSV file is read by the rule in double_descent/tables.py: columns of
text and rows with gaps are left out, and said.
"""

from double_descent.polynomial import counts, ranges
from landscape import cli, runs
from landscape.errors import UsageError

PUBLISHED = {"no_intercept": True, "scaling": "none", "split_by": "row"}
MODES = {"student_teacher": "5,10,15,20"}  # the paper's; of other tables 1 to 10
CUTOFFS = "0.001,0.00316,0.01,0.0316,0.1,0.316,1"
# What is measured: label, and the list of settings that its first axis runs over, if any.
MEASURES = {
    "test_mse": ("test", None), "train_mse": ("training", None),
    "cutoff_test_mse": ("test, singular values cut off", "cutoffs"),
    "cutoff_train_mse": ("training, singular values cut off", "cutoffs"),
    "mode_test_mse": ("test, leading modes", "modes"), "mode_train_mse": ("training, leading modes", "modes"),
    "feature_test_mse": ("test, rows drawn in", "ratios"),
    "noresidual_test_mse": ("test, no residuals", None), "noresidual_train_mse": ("training, no residuals", None),
    "ridge_test_mse": ("test, ridge", "lambdas"), "ridge_train_mse": ("training, ridge", "lambdas"),
    "ridge_loo_test_mse": ("test, ridge by leave-one-out", None),
    "attack_mode_test_mse": ("test rows moved along the smallest mode", "budgets"),
    "attack_worst_test_mse": ("each test row moved to its worst", "budgets"),
    "attack_target_test_mse": ("training targets moved along the smallest mode", "budgets"),
    "sigma_min": ("smallest non-zero singular value", None), "bias": ("bias squared", None),
    "bias_as_published": ("bias squared, as published", None), "variance": ("variance of the residuals", None),
    "cross": ("bias times variance", None), "noise_cross": ("residual times both", None),
    "outside": ("share of test rows' squares outside the training rows' span", None),
}  # fmt: skip
SHOWN = ("test_mse", "train_mse", "sigma_min", "cutoff_test_mse", "mode_test_mse", "feature_test_mse",
         "noresidual_test_mse", "ridge_loo_test_mse", "attack_mode_test_mse", "attack_worst_test_mse",
         "attack_target_test_mse")  # fmt: skip
ATTACKS = {"attack_mode_test_mse": "test rows along the smallest mode", "attack_worst_test_mse": "the worst test rows",
           "attack_target_test_mse": "training targets"}
NOTHING = 1.5  # an attack that does not reach this factor in the median of the repeats of any size has no effect


def make_parser():
    parser = cli.Parser("python -m double_descent.linear", __doc__)
    g = parser.group("tables", named=True)
    g.add_argument("--tables", default="", metavar="NAME,…",
                   help="california, diabetes, student_teacher, who (default: those that are there)")
    g.add_argument("--csv", default="", metavar="FILE", help="a table of your own instead")
    g.add_argument("--target", default="", metavar="COLUMN", help="of --csv: what is predicted")
    g.add_argument("--split_by", default="row", metavar="row|COLUMN",
                   help="row: test on all rows not trained on; a column (country, of who): train on half of its values "
                        "and test on the other half, drawn anew in each repeat")
    g = parser.group("fits", named=True)
    g.add_argument("--repeats", type=cli.positive, default=50, help="training sets of each size")
    g.add_argument("--sizes", type=ranges(100_000), default="1-39", metavar="N,A-B,…", help="training rows")
    g.add_argument("--no_intercept", action="store_true", help="fit and centre nothing")
    g.add_argument("--scaling", default="train", choices=("train", "all", "none"),
                   help="each feature by its standard deviation (with --no_intercept its root mean square) in the "
                        "training rows, in all rows, or not at all")
    g.add_argument("--as_published", action="store_true",
                   help="the paper's procedure: --no_intercept --scaling none, absolute --cutoffs and --budgets, signs "
                        "as the factorisation has them, training rows the last N of RandomState(repeat).permutation")
    g.add_argument("--seed", type=int, default=1, help="of the choice of rows; not --as_published")
    g = parser.group("ablations and attacks", named=True)
    g.add_argument("--cutoffs", default=CUTOFFS, metavar="C,…",
                   help="least singular value kept, as a share of the largest (--as_published: absolute)")
    g.add_argument("--modes", type=ranges(100_000), default=None, metavar="K,A-B,…",
                   help="leading modes kept (default: 1-10, of student_teacher 5,10,15,20)")
    g.add_argument("--ratios", default="1,10,100", metavar="R,…",
                   help="most that test rows may vary along a mode, in the training rows' mean square")
    g.add_argument("--lambdas", default="1e-4,1e-3,1e-2,3e-2,0.1,0.3,1,3,10,100,1000", metavar="L,…",
                   help="ridge penalties, in mean squares of a feature times N")
    g.add_argument("--budgets", default="", metavar="C,…",
                   help="size of the attacks: shares of the median norm of a training row and of the targets' standard "
                        "deviation (default 0,0.01,0.0316,0.1,0.316,1); --as_published: absolute (default 0, 0.1 to "
                        "31.6)")
    m = parser.group("data on this machine")
    m.add_argument("--data_root", default=None, metavar="DIR",
                   help="where california and who lie (default: $DATA_ROOT, else ~/data)")
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = resolved(argv)
    chosen, missing = tables_of(args)
    for line in missing:
        print(f"left out     {line}")
    lists = {t.name: settings_of(args, t) for t in chosen}
    head = f"linear_{chosen[0].name}" if args.csv else "linear"
    if args.dry_run:
        print(f"run: {runs.folder('double_descent', args, head)}")
        for t in chosen:
            print(f"{t.name}: {len(t.y)} rows, {t.x.shape[1]} features, {args.repeats} x "
                  f"{len(lists[t.name].sizes)} fits")
        return 0
    args.force = True  # seconds of work, and the files may hold other rows than last time
    with runs.start("double_descent", args, head) as run:
        found = {"kind": "linear", "as_published": args.as_published, "repeats": args.repeats,
                 "split_by": args.split_by, "scaling": args.scaling, "intercept": not args.no_intercept,
                 "left_out": missing, "tables": {}}  # fmt: skip
        rows = []
        for table in chosen:
            arrays, about = measured(args, table, lists[table.name])
            runs.write_arrays(run.path / "arrays" / f"{table.name}.npz", **arrays)
            found["tables"][table.name] = about
            rows += summary(table.name, arrays, about)
            show(about, arrays, rows)
        write(args, run, found, rows)
    return 0


def resolved(argv):
    """The settings of a call, checked against each other."""
    args = cli.resolve(make_parser().settings(argv))
    if args.csv and args.tables:
        raise UsageError("--csv and --tables: give one of the two")
    if bool(args.csv) != bool(args.target):
        raise UsageError("--csv FILE and --target COLUMN go together")
    if args.as_published:
        for flag, value in PUBLISHED.items():
            if flag in args.differs and getattr(args, flag) != value:
                raise UsageError(f"--as_published has its own {flag}: leave --{flag} out")
            setattr(args, flag, value)
    if args.smoke and not args.tables and not args.csv:
        args.tables = "diabetes"
    return args


def tables_of(args):
    """([Table], [why others are left out])."""
    from double_descent import tables

    by = "" if args.split_by == "row" else args.split_by
    if args.csv:
        return [tables.from_csv(args.csv, args.target, by)], []
    if args.tables:
        found, missing = [tables.load(name, args.data_root) for name in args.tables.split(",")], []
        lacking = [t.name for t in found if by and t.groups is None]
        if lacking:
            raise UsageError(f"--split_by {by}: {lacking[0]} has no such column; who has country")
    else:
        found, missing = tables.available(args.data_root)
        if by:
            missing += [f"{t.name}: it has no column {by}" for t in found if t.groups is None]
            found = [t for t in found if t.groups is not None]
    if by and not args.csv and by.lower() != "country":
        raise UsageError(f"--split_by {by}: row or country is expected, or a column of --csv")
    if not found:
        raise UsageError(f"--split_by {by}: no table that is there has such a column")
    return found, missing


def settings_of(args, table):
    """The fits.Settings of a table. UsageError where it has too few rows for the sizes."""
    from double_descent.fits import Settings

    sizes = counts(args.sizes)
    most = len(table.y) - 2
    if args.split_by != "row":
        import numpy as np

        rows = np.sort(np.unique(table.groups, return_counts=True)[1])
        if len(rows) < 4:
            raise UsageError(f"--split_by {args.split_by}: {table.name} has {len(rows)} values of it; 4 are needed")
        most = int(rows[:len(rows) - len(rows) // 2].sum())
    if sizes[-1] > most:
        raise UsageError(f"--sizes {args.sizes}: {table.name} has {len(table.y)} rows, which leaves at most {most} for "
                         f"training; give --sizes 1-{most} or less")
    dim = table.x.shape[1]
    modes = counts(args.modes or MODES.get(table.name, "1-10"))
    budgets = args.budgets or ("0,0.1,0.316,1,3.16,10,31.6" if args.as_published else "0,0.01,0.0316,0.1,0.316,1")
    return Settings(tuple(sizes), numbers("--cutoffs", args.cutoffs), tuple(k for k in modes if k <= dim) or (dim,),
                    numbers("--ratios", args.ratios), numbers("--budgets", budgets),
                    numbers("--lambdas", args.lambdas))


def numbers(flag, text):
    """'0,0.1' as (0.0, 0.1), sorted, each once."""
    try:
        out = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"{flag} {text}: numbers are expected, such as 0.01,0.1,1") from None
    if not 0 <= out[0] <= out[-1] < 1e30:
        raise UsageError(f"{flag} {text}: numbers from 0 are expected")
    return tuple(out)


# ---- one table -----------------------------------------------------------------------------------------------------


def measured(args, table, settings):
    """(arrays, about): what fits.measure gives, with the settings beside it; and the table in plain values."""
    import numpy as np

    from double_descent import fits

    rules = fits.Rules(not args.no_intercept, args.scaling, not args.as_published)
    scene = fits.make_scene(table, rules, args.repeats, args.seed, args.as_published, args.split_by != "row")
    found = fits.measure(scene, settings)
    about = {"name": table.name, "rows": len(table.y), "features": table.x.shape[1], "said": table.said,
             "parameters": table.x.shape[1] + rules.intercept, "ideal_mse": float((scene.residual**2).mean()),
             "target_variance": float(table.y.var()), "sizes": list(settings.sizes),
             "cutoffs": list(settings.cutoffs), "modes": list(settings.modes), "ratios": list(settings.ratios),
             "budgets": list(settings.budgets), "lambdas": list(settings.penalties)}  # fmt: skip
    factors = {name: paired(found, name)[-1] for name in ATTACKS if name in found}
    about["attack_factor"] = {name: float(np.nanmax(np.median(f, axis=-1))) for name, f in factors.items()}
    lists = {k: about[k] for k in ("sizes", "cutoffs", "modes", "ratios", "budgets", "lambdas", "parameters")}
    return {**found, **{k: np.array(v) for k, v in lists.items()}}, about


def paired(arrays, name):
    """Test MSE under an attack over that of the same fit without it, (budgets, S, B); NaN where that is 0."""
    import numpy as np

    clean = arrays["test_mse"]
    return np.divide(arrays[name], clean, where=clean > 0, out=np.full(arrays[name].shape, np.nan))


def summary(name, arrays, about):
    """Rows over repeats: mean, median, quantiles and geometric mean, of each measure, setting and size."""
    import numpy as np

    out = []
    for measure, (_, over) in MEASURES.items():
        if measure not in arrays:
            continue
        values = arrays[measure] if over else arrays[measure][None]
        for setting, curve in zip(about[over] if over else [None], values):
            for size, repeats in zip(about["sizes"], curve):
                held = repeats[np.isfinite(repeats)]
                row = {"table": name, "measure": measure, "setting": setting, "size": size,
                       "parameters_per_row": about["parameters"] / size, "repeats": len(held)}
                out.append(row | statistics(held))
    return out


def statistics(values):
    import numpy as np

    if not len(values):
        return dict.fromkeys(("mean", "median", "q05", "q25", "q75", "q95", "geometric_mean"))
    q05, q25, median, q75, q95 = (float(q) for q in np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)))
    with np.errstate(divide="ignore", invalid="ignore"):
        geometric = float(np.exp(np.log(values).mean())) if (values >= 0).all() else None
    return {"mean": float(values.mean()), "median": median, "q05": q05, "q25": q25, "q75": q75, "q95": q95,
            "geometric_mean": geometric}


# ---- what comes out ------------------------------------------------------------------------------------------------


def show(about, arrays, rows):
    p, sizes = about["parameters"], about["sizes"]
    at = [n for n in dict.fromkeys((1, p - 1, p, p + 1, sizes[-1])) if n in sizes]
    print(f"\n{about['name']}: {about['rows']} rows, {about['features']} features, {p} parameters; best linear model's "
          f"MSE {about['ideal_mse']:.5g}" + (f"\n{about['said']}" if about["said"] else ""))
    print(f"{'median (mean) at N =':<28}" + "".join(f"{n:>22}" for n in at))
    held = {(r["measure"], r["setting"], r["size"]): r for r in rows if r["table"] == about["name"]}
    for measure in SHOWN:
        over = MEASURES[measure][1]
        listed = about[over] if over else [None]
        for setting in dict.fromkeys((listed[0], listed[len(listed) // 2], listed[-1])):
            cells = [held.get((measure, setting, n)) for n in at]
            if all(cells):
                said = measure.removesuffix("_mse") + (f" {setting:g}" if over else "")
                print(f"{said:<28}" + "".join(f"{cell(c):>22}" for c in cells))
    for name, factor in about["attack_factor"].items():
        none = "no effect, " if factor < NOTHING else ""
        print(f"attack on {ATTACKS[name]}: {none}at most x{factor:.3g} (median, budget {about['budgets'][-1]:g})")


def cell(row):
    return "–" if row["median"] is None else f"{row['median']:.3g} ({row['mean']:.3g})"


def write(args, run, found, rows):
    from double_descent import plot
    from landscape.results import write_csv

    write_csv(run.path / "linear.csv", rows, list(rows[0]))
    run.sink.table("linear", rows)
    for path in plot.draw(run.path, found, args.formats.split(","), run.path / "figures"):
        run.sink.image(path.stem, path)
        print(f"figure: {path}")
    run.finish(found)
    print(f"results: {run.path / 'results.json'}\ntable: {run.path / 'linear.csv'}")


if __name__ == "__main__":
    cli.run(main)
