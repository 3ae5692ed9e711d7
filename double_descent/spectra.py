"""Why the smallest singular value dips at N = D: spectra of Gaussian data, and three dimensions that can be seen.

    python -m double_descent.spectra

Three parts, after Schaeffer et al. 2023 (arXiv 2303.14151): nested subsets of one draw in three dimensions with their
principal axes, of length sqrt(eigenvalue); the smallest non-zero singular value against N over many seeds, beside the
edge of the Marchenko-Pastur law; and eigenvalues of X'X / N for several shapes, beside the law's density.
"""

import numpy as np

from double_descent.polynomial import counts, ranges
from landscape import cli, runs
from landscape.seeding import numpy_stream

COVARIANCE = ((23, 9, 4), (9, 6, 2), (4, 2, 5))  # of the paper's figure; eigenvalues 27.756, 4.154, 2.090
DRAWS = 1500
MOST = 5000  # a factorisation takes the cube of it
SUBSETS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 25, 100, 1500)


def make_parser():
    parser = cli.Parser("python -m double_descent.spectra", __doc__)
    g = parser.group("spectra", named=True)
    g.add_argument("--dimensions", type=ranges(MOST), default="3,20", metavar="D,…",
                   help="features of the smallest singular values; 3: with the covariance of the geometry")
    g.add_argument("--repeats", type=cli.positive, default=200, help="seeds of the smallest singular values")
    g.add_argument("--sides", type=ranges(MOST), default="10,100,1000", metavar="N,…",
                   help="rows and features of the shapes")
    g.add_argument("--eigenvalues", type=cli.positive, default=10_000,
                   help="of each shape, from as many draws as it takes")
    g.add_argument("--seed", type=int, default=1, help="of all but the geometry, whose draw is the published one")
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    if args.smoke:
        args.sides, args.eigenvalues = "10,20", 200
    dimensions, sides = counts(args.dimensions), counts(args.sides)
    if args.dry_run:
        print(f"run: {runs.folder('double_descent', args, 'spectra')}\ngeometry of {DRAWS} points; smallest singular "
              f"values of {args.repeats} seeds in {args.dimensions} dimensions; {len(sides)**2} shapes")
        return 0
    args.force = True  # seconds of work
    with runs.start("double_descent", args, "spectra") as run:
        shape = geometry()
        runs.write_arrays(run.path / "arrays" / "geometry.npz", **shape)
        for d in dimensions:
            runs.write_arrays(run.path / "arrays" / f"sigma_min-{d}.npz", **smallest(d, args.repeats, args.seed))
        for n in sides:
            for d in sides:
                values = eigenvalues(n, d, args.eigenvalues, args.seed)
                runs.write_arrays(run.path / "arrays" / f"eigenvalues-{n}-{d}.npz", values=values)
        found = {"kind": "spectra", "dimensions": dimensions, "sides": sides, "repeats": args.repeats,
                 "variances": {str(n): shape["variances"][i, :min(n, 3)].tolist() for i, n in enumerate(SUBSETS)},
                 "sigma_min": {str(n): float((n * shape["variances"][i, min(n, 3) - 1])**0.5)
                               for i, n in enumerate(SUBSETS)}}  # fmt: skip
        print("geometry: N, variances along the principal axes, smallest singular value")
        for n in SUBSETS:
            said = "  ".join(f"{v:7.3g}" for v in found["variances"][str(n)])
            print(f"{n:>6}  {said:<27}{found['sigma_min'][str(n)]:8.3g}")
        write(args, run, found)
    return 0


def write(args, run, found):
    from double_descent import plot

    run.sink.table("geometry", [{"rows": int(n), "variances": " ".join(f"{v:.4g}" for v in values),
                                 "sigma_min": found["sigma_min"][n]} for n, values in found["variances"].items()])
    for path in plot.draw(run.path, found, args.formats.split(","), run.path / "figures"):
        run.sink.image(path.stem, path)
        print(f"figure: {path}")
    run.finish(found)
    print(f"results: {run.path / 'results.json'}")


# ---- the three parts -----------------------------------------------------------------------------------------------


def geometry():
    """points (1500, 3) of the published draw; of the first N points, N of SUBSETS, the second moment's eigenvalues
    (S, 3), 0 where N is less than 3, and its axes (S, 3, 3) as rows. Not the covariance: nothing is centred."""
    # The published draw: legacy seeding, and numpy's factor of the covariance.
    points = np.random.RandomState(0).multivariate_normal(np.zeros(3), np.array(COVARIANCE), DRAWS)
    variances, axes = np.zeros((len(SUBSETS), 3)), np.zeros((len(SUBSETS), 3, 3))
    for i, n in enumerate(SUBSETS):
        _, sigma, vt = np.linalg.svd(points[:n] / n**0.5, full_matrices=False)
        variances[i, :len(sigma)], axes[i, :len(sigma)] = sigma**2, vt
    return {"points": points, "subsets": np.array(SUBSETS), "variances": variances, "axes": axes}


def smallest(d, repeats, seed):
    """sizes (S,) and the smallest non-zero singular values (S, B) of the first N rows of Gaussian data (N, d), for N
    up to 4 d, or 100 if that is more; deviation: of each feature, for the law's edge |sqrt(N) - sqrt(d)|."""
    sizes = np.unique(np.round(np.geomspace(1, max(4 * d, 100), 80)).astype(int))
    sizes = np.union1d(sizes, np.arange(max(1, d - 3), d + 4))
    factor = np.linalg.cholesky(np.array(COVARIANCE)) if d == 3 else np.eye(d)
    x = np.stack([numpy_stream(seed, "double_descent", "sigma_min", d, r).normal(size=(sizes[-1], d))
                  for r in range(repeats)]) @ factor.T
    values = np.stack([np.linalg.svd(x[:, :n], compute_uv=False)[:, -1] for n in sizes])
    return {"sizes": sizes, "sigma_min": values, "isotropic": np.array(d != 3)}


def eigenvalues(n, d, count, seed):
    """At least `count` eigenvalues of X'X / n that are not 0 by rank, of Gaussian X (n, d) of variance 1, sorted."""
    repeats = -(-count // min(n, d))
    draw = numpy_stream(seed, "double_descent", "eigenvalues", n, d)
    found = []
    for _ in range(repeats):
        x = draw.normal(size=(n, d))
        found.append(np.linalg.eigvalsh(x @ x.T if n < d else x.T @ x) / n)
    return np.sort(np.concatenate(found))


def marchenko_pastur(x, ratio):
    """Density at x of the non-zero eigenvalues of X'X / N for features of variance 1 and D / N = ratio, as both grow
    (Marchenko & Pastur 1967): sqrt((b - x)(x - a)) / (2 pi ratio x) on [a, b] = (1 -+ sqrt(ratio))^2, whose integral is
    min(1, 1 / ratio); it is divided by that."""
    low, high = (1 - ratio**0.5)**2, (1 + ratio**0.5)**2
    inside = np.maximum((high - x) * (x - low), 0)
    return np.sqrt(inside) / (2 * np.pi * ratio * x) * max(1, ratio)


if __name__ == "__main__":
    cli.run(main)
