"""One HTML page of any runs, side by side: settings, versions, curves, figures, tables, claims, commands.

    python -m landscape.report runs/regions

writes runs/regions/report.html, which holds everything in itself (images too, and no script), so that it can be sent
and kept. Runs of one program stand beside each other, the settings that differ first. Runs that are not finished, and
numbers that are missing or NaN, are shown as such. No torch.
"""

import base64
import csv
import json
import math
import shlex
from pathlib import Path

import numpy as np

from landscape import claims, cli, plots, results, runs
from landscape.errors import FileProblem

IMAGES = {".png": "png", ".jpg": "jpeg", ".gif": "gif", ".svg": "svg+xml"}
ROWS = 40  # of a table that are shown
PACKAGES = ("landscape", "regions", "double_descent", "subspaces", "star", "ensembles", "models")
VERSIONS = ("python", "torch", "torchvision", "numpy", "scikit-learn", "matplotlib", "commit", "dirty", "device")
SPLITS = {"train": ":", "val": "--", "test": "-"}


def make_parser():
    parser = cli.Parser("python -m landscape.report", __doc__)
    parser.add_argument("folders", nargs="+", metavar="RUNS", help="runs, or folders of runs")
    parser.add_argument("--claims", nargs="*", default=[], metavar="FILE",
                        help="claims.json files to show besides those that lie under RUNS")
    parser.add_argument("--title", default="", help="of the page (default: the names of the folders)")
    parser.add_argument("--out", default="", metavar="FILE.html", help="default: report.html in the first folder")
    return parser


def main(argv=None):
    args = make_parser().settings(argv)
    roots = [Path(f) for f in args.folders]
    for root in roots:
        if not root.is_dir():
            raise FileProblem(f"{root} is not a folder; give the folder that holds the runs")
    held = [gathered(f, root) for root in roots for f in sorted(p.parent for p in root.rglob("config.yaml"))
            if "wandb" not in f.relative_to(root).parts]  # its own folder in a run holds a file of that name too
    if not held:
        raise FileProblem(f"no run below {', '.join(args.folders)}: a run's folder holds a config.yaml")
    files = [*args.claims, *(f for root in roots for f in sorted(root.rglob("claims.json")))]
    judged = [claim for file in dict.fromkeys(map(str, files)) for claim in claims.read(file)]
    title = args.title or f"Runs in {', '.join(map(str, roots))}"
    out = Path(args.out or roots[0] / "report.html")
    runs.write_bytes(out, page(title, held, judged).encode())
    unfinished = sum(not r["finished"] for r in held)
    print(f"report: {out} ({len(held)} runs, {unfinished} of them not finished, {len(judged)} claims)")
    return 0


# ---- what a run folder holds ---------------------------------------------------------------------------------------

def gathered(folder, root):
    """Everything of one run that a page shows, as plain values. Raises ContentError where a file of it is damaged."""
    meta = runs.read_json(folder / "meta.json") if (folder / "meta.json").exists() else {}
    found = runs.read_json(folder / "results.json") if (folder / "results.json").exists() else {}
    metrics = runs.read_metrics(folder)
    return {"folder": str(folder if folder == root else folder.relative_to(root)),
            "finished": (folder / "done").exists(), "state": state_of(folder, metrics), "meta": meta,
            "settings": results.config_of(folder / "config.yaml"), "results": results.flattened(found),
            "metrics": metrics, "command": command(meta.get("argv", [])), "script": script(meta.get("argv", [])),
            "figures": {f.stem: image(f.read_bytes(), IMAGES[f.suffix])
                        for f in sorted((folder / "figures").glob("*")) if f.suffix in IMAGES},
            "tables": [table(f) for f in sorted(folder.glob("*.csv"))]}


def state_of(folder, metrics):
    """In words: finished, or how far it is."""
    if (folder / "done").exists():
        return "finished"
    last = metrics[-1].get("epoch") if metrics else None
    far = f" after epoch {last}" if last is not None else ""
    return f"broken off{far}: its command goes on" if (folder / "resume.pt").exists() else f"not finished{far}"


def script(argv):
    """How the program of a command line is called, such as "main.py" or "python -m star.barriers"."""
    path = Path(argv[0]) if argv else Path("unknown")
    return f"python -m {path.parent.name}.{path.stem}" if path.parent.name in PACKAGES else f"python {path.name}"


def command(argv):
    return " ".join([script(argv), shlex.join(argv[1:])]).strip()


def image(data, kind):
    """The bytes of an image as the address that an <img> shows without a file."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def table(file):
    """The first ROWS rows of a CSV file, numbers as numbers and empty cells as None."""
    with open(file, newline="", encoding="utf-8") as f:
        columns, *rows = list(csv.reader(f)) or [[]]
    return {"name": file.name, "columns": columns, "count": len(rows),
            "rows": [[value(text) for text in row] for row in rows[:ROWS]]}


def value(text):
    """A cell of a CSV file: a number, None where it is empty, else the text."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


# ---- the page ------------------------------------------------------------------------------------------------------

def page(title, held, judged):
    """The page as text. held: what gathered gave of each run; judged: landscape.claims.Claim."""
    import jinja2

    here = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                              undefined=jinja2.StrictUndefined)
    here.filters["shown"], here.tests["broken"] = shown, broken
    groups = {}
    for run in held:
        groups.setdefault(run["script"], []).append(run)
    sections = [section(name, own) for name, own in groups.items()]
    return here.get_template("report.html").render(title=title, sections=sections, claims=judged, width=420)


def section(name, own):
    """What the page says of the runs of one program, numbered from 1."""
    own = [{**run, "number": n} for n, run in enumerate(own, 1)]
    names = list(dict.fromkeys(k for run in own for k in run["settings"]))
    differing = results.varying([run["settings"] for run in own]) if len(own) > 1 else []
    figures = {}
    for run in own:
        for figure, address in run["figures"].items():
            figures.setdefault(figure, []).append((run, address))
    curves = curves_of(own)
    return {"script": name, "runs": own, "unfinished": sum(not run["finished"] for run in own),
            "differing": differing, "equal": [k for k in names if k not in differing],
            "numbers": list(dict.fromkeys(k for run in own for k in run["results"])), "figures": figures,
            "curves": image(plots.encoded(curves, "png"), "png") if curves else None,
            "versions": [v for v in VERSIONS if any(v in run["meta"] for run in own)]}


def curves_of(own):
    """A Figure of loss and accuracy over epochs, a colour each run, or None without curves. NaN leaves a gap."""
    trained = [run for run in own if any(f"{s}_{w}" in r for r in run["metrics"] for s in SPLITS
                                         for w in ("loss", "accuracy"))]
    if not trained:
        return None
    fig, axes = plots.figure(1, 2, width=9.0, height=3.4)
    splits = [s for s in SPLITS if any(f"{s}_{w}" in r for run in trained for r in run["metrics"]
                                       for w in ("loss", "accuracy"))]
    for ax, what, words in zip(axes, ("loss", "accuracy"), ("cross-entropy (nats)", "accuracy")):
        for colour, run in zip(plots.palette(len(trained)), trained):
            for split in splits:
                points = [(r["epoch"], r[f"{split}_{what}"]) for r in run["metrics"] if f"{split}_{what}" in r]
                x, y = np.array(points, dtype=float).reshape(-1, 2).T
                ax.plot(x, y, SPLITS[split], color=colour, marker="." if len(x) < 30 else None)
        ax.set(xlabel="epoch", ylabel=words)
        ax.grid(True)
    handles = [axes[0].plot([], [], SPLITS[s], color="0.3", label=s)[0] for s in splits]
    if 1 < len(trained) <= 12:
        handles += [axes[0].plot([], [], color=c, label=f"run {run['number']}")[0]
                    for c, run in zip(plots.palette(len(trained)), trained)]
    fig.legend(handles=handles, loc="outside lower center", ncols=8)
    return fig


def broken(value):
    return isinstance(value, float) and not math.isfinite(value)


def shown(value):
    """A value in a cell: six digits of a number (all of them stand in its tooltip), a dash where there is none."""
    if value is None:
        return "–"
    if broken(value):
        return "NaN" if math.isnan(value) else "infinite"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    cli.run(main)
