"""Draw saved decision regions and agreement matrices again, in another form: no network, no GPU, no torch.

    python -m regions.plot runs/regions --formats pdf,svg

Under the given folders it reads what main.py (arrays/plane-*.npz), calculate_iou.py and regions.between (results.json)
saved. Networks that lie on the same plane go into one grid of panels.
"""

import json
from pathlib import Path

from landscape import cli, redraw, runs
from landscape.errors import FileProblem


def make_parser():
    parser = cli.Parser("python -m regions.plot", __doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="runs, or folders of runs")
    cli.add_figures(parser)
    parser.add_argument("--plot_path", default="figures", metavar="DIR", help="where the figures go")
    parser.add_argument("--group_by", default="net,width", metavar="KEY,KEY,…",
                        help="the settings that make one row of a grid of panels")
    parser.add_argument("--flat", action="store_true", help="plain colours, no shading by confidence")
    parser.add_argument("--style", default="", metavar="FILE.mplstyle", help="fonts and sizes on top of ours")
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    from landscape import plots

    if args.style:
        plots.add_style(args.style)
    planes, agreements = found(args.folders, args.group_by.split(","))
    paths = dict(redraw.found(args.folders, ["between"]))
    if not planes and not agreements and not paths:
        raise FileProblem(f"{', '.join(args.folders)}: no saved planes (arrays/plane-*.npz) and no agreement "
                          "(results.json of calculate_iou.py); run main.py or calculate_iou.py first")
    figures = {}
    for (name, ids), cells in planes.items():
        figures[f"regions_{ids}_{name}"] = plots.plane_panels(cells, shaded=not args.flat)
    for folder, held in agreements.items():
        for name, fig in plots.agreement_figures(held, {s: s for s in held["scores"]}).items():
            figures[f"{name}_{folder}"] = fig
    for folder, held in paths.items():
        figures[f"between_{folder.name}"] = plots.between_figure(held["rows"], held["level"], held.get("along"))
    for name, fig in figures.items():
        for path in plots.save(fig, Path(args.plot_path) / name, args.formats.split(",")):
            print(f"figure: {path}")
    return 0


def found(folders, group_by):
    """({(file name, ids): [(group, name, arrays)]}, {run folder's name: agreement results}) under the folders."""
    planes, agreements = {}, {}
    for root in map(Path, folders):
        if not root.exists():
            raise FileProblem(f"{root} does not exist")
        for file in sorted(root.rglob("plane-*.npz")):
            arrays, folder = runs.read_arrays(file), file.parent.parent
            ours = (folder / "config.yaml").exists()
            source = runs.run_source(folder, group_by) if ours else runs.Source(file, folder.name, folder.name, {})
            key = file.stem.removeprefix("plane-"), "-".join(map(str, arrays["ids"]))
            seed = source.config.get("init_seed", 0)
            planes.setdefault(key, []).append((source.group, seed, source.seed_name, arrays))
        for file in sorted(root.rglob("results.json")):
            held = json.loads(file.read_text())
            if "scores" in held and "groups" in held:
                agreements[file.parent.name] = held
    rows = {key: sorted(cells, key=lambda cell: cell[:3]) for key, cells in planes.items()}
    return {key: [(g, name, arrays) for g, _, name, arrays in cells] for key, cells in rows.items()}, agreements


if __name__ == "__main__":
    cli.run(main)
