"""Draw the saved results of this study, and of landscape.surface, in other formats or another style.

    python -m ensembles.plot runs/ensembles --formats pdf,svg

Under the given folders it draws every run whose results.json names a kind of FIGURES, into the run's figures/ or, with
--plot_path DIR, into DIR/<run>.
"""

from landscape import cli, redraw

FIGURES = {"similarity": "ensembles.similarity_figures:figures", "ensembles": "ensembles.evaluate_figures:figures",
           "paths": "ensembles.paths_figures:figures", "shift": "ensembles.shift_figures:figures",
           "surface": "landscape.surface:figures"}  # fmt: skip


def make_parser():
    return redraw.make_parser("python -m ensembles.plot", __doc__)


def main(argv=None):
    return redraw.redraw(cli.resolve(make_parser().settings(argv)), FIGURES)


if __name__ == "__main__":
    cli.run(main)
