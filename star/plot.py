"""Draw the saved results of this study again, in other formats or another style: nothing is computed anew.

    python -m star.plot runs/star --formats pdf,svg

Under the given folders it draws every run whose results.json names a kind of FIGURES, into the run's figures/ or, with
--plot_path DIR, into DIR/<run>. Of several stars that star.compare measured it also draws barriers against the width,
star against regular over the widths, barriers against the number of anchors, and the ways to train a star side by side,
with the table stars.csv, into the first folder or DIR.
"""

from pathlib import Path

from landscape import cli, redraw

FIGURES = {"barriers": "star.barrier_figures:figures", "bma": "star.bma_figures:figures",
           "star": "star.compare_figures:figures"}


def make_parser():
    return redraw.make_parser("python -m star.plot", __doc__)


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    redraw.redraw(args, FIGURES)
    from landscape import plots
    from landscape.results import write_csv
    from star import compare_figures, comparisons

    stars = [found for folder in args.folders for found in comparisons.comparisons(folder)]
    place = Path(args.plot_path or args.folders[0])
    if stars:
        write_csv(place / "stars.csv", rows := comparisons.table(stars), list(rows[0]))
    for kind, fig in compare_figures.over_stars(stars).items():
        for path in plots.save(fig, place / kind, args.formats.split(",")):
            print(f"figure: {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
