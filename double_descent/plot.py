"""Draw the saved runs of this study again, in another form or with another statistic: nothing is computed anew.

    python -m double_descent.plot runs/double_descent --formats pdf,svg

Under the given folders it draws every run whose results.json names a kind of FIGURES, into the run's figures/ or, with
--plot_path DIR, into DIR/<run>.
"""

import importlib
from pathlib import Path

from landscape import cli, runs
from landscape.errors import FileProblem

# Of each kind of run the function of (folder, results) that gives {name: Figure}.
FIGURES = {"linear": "double_descent.linear_figures:figures", "spectra": "double_descent.spectra_figures:figures",
           "polynomial": "double_descent.polynomial_figures:figures",
           "superposition": "double_descent.superposition_figures:figures",
           "deep": "double_descent.deep_figures:figures"}  # fmt: skip


def make_parser():
    parser = cli.Parser("python -m double_descent.plot", __doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="runs, or folders of runs")
    cli.add_figures(parser)
    parser.add_argument("--plot_path", default="", metavar="DIR", help="default: each run's own figures/")
    parser.add_argument("--statistic", default="median", choices=("median", "mean"),
                        help="of the lines of linear runs: medians with quantile bands, or means with theirs")
    parser.add_argument("--style", default="", metavar="FILE.mplstyle", help="fonts and sizes on top of ours")
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    from landscape import plots

    if args.style:
        plots.add_style(args.style)
    held = found(args.folders)
    if not held:
        raise FileProblem(f"{', '.join(args.folders)}: no finished run of {', '.join(FIGURES)}; run for example "
                          "python -m double_descent.linear first")
    for folder, results in held:
        results = {**results, "statistic": args.statistic}
        place = Path(args.plot_path) / folder.name if args.plot_path else folder / "figures"
        for path in draw(folder, results, args.formats.split(","), place):
            print(f"figure: {path}")
    return 0


def found(folders):
    """[(folder, results)] of the finished runs of this study under the folders."""
    out = []
    for root in map(Path, folders):
        if not root.exists():
            raise FileProblem(f"{root} does not exist")
        for file in sorted(root.rglob("results.json")):
            results = runs.read_json(file)
            if results.get("kind") in FIGURES and (file.parent / "done").exists():
                out.append((file.parent, results))
    return out


def draw(folder, results, formats, place):
    """Draw a run into the folder `place`; the paths."""
    from landscape import plots

    module, function = FIGURES[results["kind"]].split(":")
    figures = vars(importlib.import_module(module))[function](folder, results)
    return [path for name, fig in figures.items() for path in plots.save(fig, place / name, formats)]


if __name__ == "__main__":
    cli.run(main)
