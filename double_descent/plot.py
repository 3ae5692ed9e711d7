"""Draw the saved runs of this study again, in another form or with another statistic: nothing is computed anew.

    python -m double_descent.plot runs/double_descent --formats pdf,svg

Under the given folders it draws every run whose results.json names a kind of FIGURES, into the run's figures/ or, with
--plot_path DIR, into DIR/<run>.
"""

from landscape import cli, redraw

FIGURES = {"linear": "double_descent.linear_figures:figures", "spectra": "double_descent.spectra_figures:figures",
           "polynomial": "double_descent.polynomial_figures:figures",
           "superposition": "double_descent.superposition_figures:figures",
           "deep": "double_descent.deep_figures:figures"}  # fmt: skip


def make_parser():
    parser = redraw.make_parser("python -m double_descent.plot", __doc__)
    parser.add_argument("--statistic", default="median", choices=("median", "mean"),
                        help="of the lines of linear runs: medians with quantile bands, or means with theirs")
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    return redraw.redraw(args, FIGURES, statistic=args.statistic)


def draw(folder, results, formats, place):
    """Draw one run into the folder `place`; the paths."""
    return redraw.draw(folder, results, FIGURES, formats, place)


if __name__ == "__main__":
    cli.run(main)
