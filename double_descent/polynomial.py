"""Double descent in polynomial regression (Schaeffer et al. 2023, arXiv 2303.14151): minimum-norm fits of 2x + cos 25x.

    python -m double_descent.polynomial
    python -m double_descent.polynomial --as_published --gallery

A repeat's training points are the same for every number of features P and for every basis, so that the errors are
paired. The pseudo-inverse picks, of all coefficients that fit equally well, those of least norm: what a fit beyond
P = N is like depends on how the features are scaled, which is why Legendre's polynomials stand beside the same ones at
norm 1. --as_published draws as the tutorial's script does: a new training set for each P and repeat, from numpy's older
generator (here one of our own, seeded by --data_seed, not the global one with seed 0).
"""

import argparse

from landscape import cli, runs, seeding
from landscape.errors import UsageError

# K curves (a basis and a number of training points), R repeats, P numbers of features, N training points.
BASES = {"legendre": "Legendre polynomials", "orthonormal": "Legendre polynomials of norm 1",
         "fourier": "sines and cosines", "relu": "random ReLU features"}  # fmt: skip
TEST_POINTS = 1000  # equispaced in [-1, 1], ends included
BLOCK = 20  # repeats under way at a time: what ReLU features, which differ from repeat to repeat, need of memory
MOST = 5000  # features, and training points
QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}


def make_parser():
    parser = cli.Parser("python -m double_descent.polynomial", __doc__)
    g = parser.group("data", named=True)
    g.add_argument("--train_points", "--points", type=ranges(MOST), default="15", metavar="N,N-N,…",
                   help="training points, uniform in [-1, 1]; several make a sweep")
    g.add_argument("--repeats", type=cli.positive, default=None,
                   help="training sets (default: 100; 30 with --as_published)")
    g.add_argument("--noise", type=cli.number(0), default=0.0,
                   help="standard deviation of normal noise on the training targets")
    g.add_argument("--data_seed", type=cli.natural, default=None, help="default: 1; 0 with --as_published")
    g.add_argument("--as_published", action="store_true", help="the tutorial's draws, repeats and basis")
    g = parser.group("features", named=True)
    g.add_argument("--basis", default=None, metavar="NAME,NAME,…",
                   help=f"{', '.join(BASES)} (default: legendre,orthonormal; legendre with --as_published)")
    g.add_argument("--degrees", type=ranges(MOST), default="1-25,30,40,50,100,200", metavar="P,P-P,…",
                   help="numbers of features; of polynomials the degrees 1 to P, without a constant")
    g = parser.group("statistics", named=True)
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals")
    cli.add_output(parser)
    cli.add_figures(parser)
    parser.add_argument("--gallery", action="store_true", help="draw fits of three repeats too")
    return parser


def main(argv=None):
    args = resolved(argv)
    sizes, degrees, bases = counts(args.train_points), counts(args.degrees), args.basis.split(",")
    if args.dry_run:
        print(f"{' and '.join(bases)}: {args.repeats} repeats of {', '.join(map(str, sizes))} points, "
              f"{len(degrees)} numbers of features up to {degrees[-1]}")
        return 0
    args.force = True  # a second of work
    with runs.start("double_descent", args, "polynomial") as run:
        curves = []
        for basis in bases:
            for points in sizes:
                name = f"polynomial-{basis}-{points}" if curves else "polynomial"
                arrays = measure(args, basis, points, degrees)
                runs.write_arrays(run.path / "arrays" / f"{name}.npz", **arrays)
                curves.append({"arrays": f"{name}.npz", "basis": basis, "points": points,
                               **summary(args, points, arrays)})  # fmt: skip
        found = {"kind": "polynomial", "as_published": args.as_published, "repeats": args.repeats,
                 "noise": args.noise, "data_seed": args.data_seed, "level": args.level, "degrees": degrees,
                 "quantiles": QUANTILES, "curves": curves}  # fmt: skip
        show(found)
        write(args, run, found)
        run.finish(found)
        print(f"results: {run.path / 'results.json'}\ntable: {run.path / 'polynomial.csv'}")
    return 0


def resolved(argv):
    """The settings, with the defaults that --as_published changes filled in."""
    args = make_parser().settings(argv)
    own = {"basis": "legendre,orthonormal", "repeats": 100, "data_seed": 1}
    if args.as_published:
        own = {"basis": "legendre", "repeats": 30, "data_seed": 0}
    for name, value in own.items():
        args.defaults[name] = value
        setattr(args, name, value if getattr(args, name) is None else getattr(args, name))
    for basis in args.basis.split(","):
        if basis not in BASES:
            raise UsageError(f"--basis {basis}: known are {', '.join(BASES)}{cli.suggestion(basis, BASES)}")
    if args.as_published and (args.basis != "legendre" or args.noise):
        raise UsageError("--as_published is legendre without noise: leave --basis and --noise out")
    return cli.resolve(args)


def counts(text):
    """'1-3,8' as [1, 2, 3, 8]: positive whole numbers, each once, in ascending order. Raises argparse's error."""
    out = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        first, last = cli.positive(first), cli.positive(last or first)
        if last < first:
            raise argparse.ArgumentTypeError(f"{part} does not ascend")
        out |= set(range(first, last + 1))
    return sorted(out)


def ranges(most):
    """A type for add_argument: a text that `counts` can read, its numbers at most so large."""
    def check(text):
        if (last := counts(text)[-1]) > most:
            raise argparse.ArgumentTypeError(f"{last} is above {most}")
        return text
    return check


# ---- data and features ---------------------------------------------------------------------------------------------

def target(x):
    import numpy as np

    return 2 * x + np.cos(25 * x)


def training_sets(args, points, degrees):
    """x and y, each (P, R, N). As published every entry is drawn anew, the degrees outermost; otherwise a repeat has
    the same points for every P, and a larger N adds points to those of a smaller one."""
    import numpy as np

    if args.as_published:
        x = np.random.RandomState(args.data_seed).uniform(-1, 1, (len(degrees), args.repeats, points))
        return x, target(x)
    x, noise = (np.stack([draw(seeding.numpy_stream(args.data_seed, name, r)) for r in range(args.repeats)])
                for name, draw in (("polynomial x", lambda rng: rng.uniform(-1, 1, points)),
                                   ("polynomial noise", lambda rng: rng.standard_normal(points))))
    y = target(x) + args.noise * noise
    shape = (len(degrees), *x.shape)
    return np.broadcast_to(x, shape), np.broadcast_to(y, shape)


def features(basis, x, count, seed, repeats):
    """The first `count` features of x (..., N): (..., N, P). seed and repeats (the numbers of those along x's first
    axis) are for ReLU features, of which every repeat has its own."""
    import numpy as np

    if basis == "relu":  # max(0, s (x - t)): half look right and half left, their kinks uniform in [-1, 1]
        streams = [seeding.numpy_stream(seed, "polynomial relu", r) for r in repeats]
        kinks, signs = np.stack([rng.uniform(-1, 1, (count, 2)) for rng in streams]).transpose(2, 0, 1)[:, :, None]
        return np.maximum(0, np.where(signs < 0, -1, 1) * (x[..., None] - kinks))
    if basis == "fourier":  # sin πx, cos πx, sin 2πx, …: orthonormal in the mean over [-1, 1]
        k = np.arange(count)
        angle = np.pi * (k // 2 + 1) * x[..., None]
        return 2**0.5 * np.where(k % 2, np.cos(angle), np.sin(angle))
    values = np.polynomial.legendre.legvander(x, count)[..., 1:]
    if basis == "orthonormal":  # the mean over [-1, 1] of L_k squared is 1 / (2k + 1)
        values *= np.sqrt(2 * np.arange(1, count + 1) + 1)
    return values


# ---- the fits ------------------------------------------------------------------------------------------------------

def measure(args, basis, points, degrees):
    """Arrays of one curve: degrees (P,), test_mse and train_mse (R, P); with --gallery also what it shows of three
    repeats at G degrees: fits_degrees (G,), fits (3, G, T), fits_x and fits_y (3, G, N).

    The test error is the mean over 1000 equispaced points against the target without noise, of fits as they are (the
    tutorial cuts them at ±3 in its pictures only).
    """
    import numpy as np

    x, y = training_sets(args, points, degrees)
    grid = np.linspace(-1, 1, TEST_POINTS)
    truth = target(grid)
    train, test = np.empty((2, args.repeats, len(degrees)))
    chosen = gallery_degrees(points, degrees) if args.gallery else []
    fits = []
    for i, count in enumerate(degrees):
        for first in range(0, args.repeats, BLOCK):
            part = range(first, min(first + BLOCK, args.repeats))
            said_train, said = fit(args, basis, x[i, part], y[i, part], grid, count, part)
            train[part, i] = ((said_train - y[i, part]) ** 2).mean(1)
            test[part, i] = ((said - truth) ** 2).mean(1)
            if count in chosen and first == 0:
                fits.append(said[:3])
    arrays = {"degrees": np.array(degrees), "test_mse": test, "train_mse": train}
    if args.gallery:
        at = [degrees.index(p) for p in chosen]
        arrays |= {"fits_degrees": np.array(chosen), "fits": np.stack(fits, axis=1),
                   "fits_x": x[at, :3].swapaxes(0, 1), "fits_y": y[at, :3].swapaxes(0, 1)}  # fmt: skip
    return arrays


def fit(args, basis, x, y, grid, count, repeats):
    """Predictions of the minimum-norm fits to x, y (R, N): on x (R, N), and on grid (R, T).

    Singular values below `cutoff` times the largest count as 0: numpy.linalg.pinv's own 1e-15 as published, else what
    rounding leaves of them (numpy.linalg.matrix_rank's rule).
    """
    import numpy as np

    a = features(basis, x, count, args.data_seed, repeats)
    b = features(basis, grid, count, args.data_seed, repeats)
    cutoff = 1e-15 if args.as_published else max(a.shape[-2:]) * np.finfo(float).eps
    beta = np.linalg.pinv(a, rcond=cutoff) @ y[..., None]
    return (a @ beta)[..., 0], (b @ beta)[..., 0]


def gallery_degrees(points, degrees):
    """Up to five of the degrees: the nearest to 1, N/2, N, 2N, and the largest."""
    return sorted({min(degrees, key=lambda p: abs(p - wanted))
                   for wanted in (1, points // 2, points, 2 * points, degrees[-1])})


# ---- the numbers ---------------------------------------------------------------------------------------------------

def summary(args, points, arrays):
    """Of each P the mean and the quantiles over repeats of both errors; the best P below N and above it; and of every P
    above N the ratio of its test error to that of the best P below N: the geometric mean over repeats of the ratio
    within a repeat (the same training set unless as published), its interval, and the share of repeats below 1."""
    import numpy as np

    from landscape.results import bootstrap_planes

    degrees, test = arrays["degrees"], arrays["test_mse"]
    out = {split: {"mean": arrays[f"{split}_mse"].mean(0).tolist(),
                   **{name: np.quantile(arrays[f"{split}_mse"], q, axis=0).tolist() for name, q in QUANTILES.items()}}
           for split in ("train", "test")}
    medians = np.array(out["test"]["median"])
    best = {name: int(np.flatnonzero(side)[medians[side].argmin()]) if side.any() else None
            for name, side in (("first", degrees < points), ("second", degrees > points))}
    out |= {name: None if i is None else {"degree": int(degrees[i]), "median": float(medians[i])}
            for name, i in best.items()}
    out["contrast"] = []
    if None not in best.values():
        beyond = degrees > points
        logs = np.log(test[:, beyond] / test[:, [best["first"]]]).T
        ends = bootstrap_planes(logs, level=args.level)  # its planes are our repeats
        ratio, low, high = (len(logs) * [None] if end is None else np.exp(end).tolist() for end in ends)
        out["contrast"] = [dict(zip(("degree", "ratio", "low", "high", "share_below"), row)) for row in
                           zip(degrees[beyond].tolist(), ratio, low, high, (logs < 0).mean(1).tolist())]
    return out


def rows(found):
    """The table: one row a curve and number of features."""
    for curve in found["curves"]:
        for i, degree in enumerate(found["degrees"]):
            yield {"basis": curve["basis"], "points": curve["points"], "degree": degree,
                   **{f"{split}_{name}": values[i] for split in ("train", "test")
                      for name, values in curve[split].items()}}  # fmt: skip


def show(found):
    draws = "a new training set for each P" if found["as_published"] else "the same training sets for every P"
    for curve in found["curves"]:
        print(f"\n{BASES[curve['basis']]}, N = {curve['points']}, {found['repeats']} repeats, {draws}\n"
              f"{'P':>5}{'train: median':>16}{'test: mean':>14}{'median':>12}{'10 %':>12}{'90 %':>12}")
        for r in rows({**found, "curves": [curve]}):
            print(f"{r['degree']:>5}{r['train_median']:>16.3g}{r['test_mean']:>14.3g}{r['test_median']:>12.3g}"
                  f"{r['test_low']:>12.3g}{r['test_high']:>12.3g}")
        if curve["contrast"]:
            row = next(c for c in curve["contrast"] if c["degree"] == curve["second"]["degree"])
            ends = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
            print(f"best P above N against best below it (P = {row['degree']} against {curve['first']['degree']}): "
                  f"{row['ratio']:.3f}{ends} times the test error; less in {row['share_below']:.0%} of repeats")


def write(args, run, found):
    """The table and the figures."""
    from double_descent.polynomial_figures import figures
    from landscape import plots
    from landscape.results import write_csv

    table = list(rows(found))
    write_csv(run.path / "polynomial.csv", table, list(table[0]))
    run.sink.table("polynomial", table)
    for name, fig in figures(run.path, found).items():
        for path in plots.save(fig, run.path / "figures" / name, args.formats.split(",")):
            run.sink.image(name, path)
            print(f"figure: {path}")


if __name__ == "__main__":
    cli.run(main)
