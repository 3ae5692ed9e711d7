"""Draw the saved results of this study again, in other formats or another style: nothing is computed anew.

    python -m star.plot runs/star --formats pdf,svg

Under the given folders it draws every run whose results.json names a kind of FIGURES, into the run's figures/ or, with
--plot_path DIR, into DIR/<run>.
"""

from landscape import cli, redraw

FIGURES = {"barriers": "star.barrier_figures:figures", "bma": "star.bma_figures:figures"}


def make_parser():
    return redraw.make_parser("python -m star.plot", __doc__)


def main(argv=None):
    return redraw.redraw(cli.resolve(make_parser().settings(argv)), FIGURES)


if __name__ == "__main__":
    cli.run(main)
