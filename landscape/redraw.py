"""What programs that draw share: figures of a run shown, and saved results drawn again in another form. No torch.

A study has a table FIGURES of the kinds of its results.json ("kind") and the function of each, "module:function", which
takes (folder, results) and gives {name: Figure}.
"""

import importlib
from pathlib import Path

from landscape import cli, runs
from landscape.errors import FileProblem


def make_parser(script, doc):
    parser = cli.Parser(script, doc)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="runs, or folders of runs")
    cli.add_figures(parser)
    parser.add_argument("--plot_path", default="", metavar="DIR", help="default: each run's own figures/")
    parser.add_argument("--style", default="", metavar="FILE.mplstyle", help="fonts and sizes on top of ours")
    return parser


def redraw(args, kinds, **more):
    """Draw every finished run of a kind in `kinds` under args.folders, into its figures/ or into --plot_path/<run>.
    more: is added to the results that the functions get. Raises FileProblem where there is no such run."""
    from landscape import plots

    if args.style:
        plots.add_style(args.style)
    held = found(args.folders, kinds)
    if not held:
        raise FileProblem(f"{', '.join(args.folders)}: no finished run of {', '.join(kinds)}; the other programs of "
                          "this study make them")
    for folder, results in held:
        place = Path(args.plot_path) / folder.name if args.plot_path else folder / "figures"
        for path in draw(folder, {**results, **more}, kinds, args.formats.split(","), place):
            print(f"figure: {path}")
    return 0


def draw(folder, results, kinds, formats, place):
    """Draw one run into the folder `place`; the paths."""
    from landscape import plots

    module, function = kinds[results["kind"]].split(":")
    figures = vars(importlib.import_module(module))[function](folder, results)
    return [path for name, figure in figures.items() for path in plots.save(figure, place / name, formats)]


def show(run, figures, formats):
    """Save {name: Figure} of an open landscape.runs.Run into its figures/, in formats such as "png,pdf", send them to
    wandb where that is on, and print where they are."""
    from landscape import plots

    for name, figure in figures.items():
        for path in plots.save(figure, run.path / "figures" / name, formats.split(",")):
            run.sink.image(name, path)
            print(f"figure: {path}")


def found(folders, kinds):
    """[(folder, results)] of the finished runs of these kinds under the folders."""
    out = []
    for root in map(Path, folders):
        if not root.exists():
            raise FileProblem(f"{root} does not exist")
        for file in sorted(root.rglob("results.json")):
            results = runs.read_json(file)
            if results.get("kind") in kinds and (file.parent / "done").exists():
                out.append((file.parent, results))
    return out
