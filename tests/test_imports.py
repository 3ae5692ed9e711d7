"""Imports point downwards, and what must be instant loads no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ("regions", "double_descent", "subspaces", "star", "ensembles")
OURS = {"landscape", "models", "main", "save_preds", "calculate_iou", *STUDIES}
MAY = {"models": set(), "landscape": {"models"}, **{s: {"landscape", "models"} for s in STUDIES}}
# Which of its siblings a module of landscape may import; errors is open to all.
WITHIN = {
    "errors": set(), "parallel": set(), "seeding": set(), "weights": set(), "metrics": {"seeding"}, "plane": set(),
    "augment": set(),
    "results": {"runs", "cli"}, "wandb_sink": set(), "claims": {"results", "runs", "cli"},
    "readers": {"seeding"}, "data": {"seeding", "augment", "readers", "cli"},
    "runs": {"wandb_sink", "subspace", "parallel"}, "subspace": {"weights"}, "plots": {"runs", "results"},
    "evaluate": {"data", "metrics", "weights", "plane"},
    "train": {"cli", "data", "evaluate", "runs", "seeding", "objectives", "parallel"}, "objectives": {"seeding"},
    "stacked": {"train", "data", "evaluate", "runs", "seeding", "parallel"},
    "maps": {"runs"}, "anchors": {"seeding", "plane", "runs", "data", "evaluate", "objectives", "maps"},
    "between": {"data", "evaluate", "permute", "predictions", "runs", "train", "weights"},
    "redraw": {"cli", "runs", "plots"}, "corruptions": {"seeding", "cli"},
    "predictions": {"maps", "runs", "train", "cli", "evaluate", "data"},
    "surface": {"cli", "plots", "predictions", "redraw", "results", "runs", "seeding", "weights", "plane", "subspace",
                "data", "maps", "train", "evaluate"},
    "report": {"claims", "cli", "plots", "results", "runs"},
    "cli": {"seeding", "runs", "data", "parallel"}, "refine": {"seeding"}, "permute": {"weights", "seeding"},
    "lines": {"data", "evaluate", "permute", "weights", "seeding"},
    "pairs": {"claims", "cli", "data", "lines", "maps", "metrics", "permute", "plots", "predictions", "redraw",
              "results", "runs", "seeding", "weights"},
}  # fmt: skip


def imported(path):
    """The modules that a file imports anywhere in it, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module


@pytest.mark.parametrize("package", [p for p in MAY if (ROOT / p).is_dir()])
def test_imports_point_downwards(package):
    for path in (ROOT / package).rglob("*.py"):
        heads = {name.split(".")[0] for name in imported(path)}
        wrong = heads & OURS - MAY[package] - {package}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("path", sorted((ROOT / "landscape").glob("*.py")), ids=lambda p: p.stem)
def test_the_rooms_of_landscape_import_as_agreed(path):
    if path.stem == "__init__":
        assert path.read_text() == ""
        return
    siblings = {p.stem for p in (ROOT / "landscape").glob("*.py")}
    names = {n.split(".")[1] for n in imported(path) if n.startswith("landscape.")}
    wrong = names & siblings - WITHIN[path.stem] - {"errors", path.stem}
    assert not wrong, f"landscape/{path.name} imports {sorted(wrong)}"


@pytest.mark.parametrize("name", ["main", "save_preds", "calculate_iou"])
def test_the_top_scripts_import_only_landscape_and_models(name):
    heads = {n.split(".")[0] for n in imported(ROOT / f"{name}.py")}
    assert not heads & OURS - {"landscape", "models"}


@pytest.mark.parametrize("statement", [
    "import models", "import landscape.cli", "import landscape.runs", "import landscape.seeding",
    "import landscape.results", "import landscape.plots", "import landscape.claims", "import landscape.maps",
    "import landscape.report; landscape.report.make_parser().format_help()",
    "import landscape.surface; landscape.surface.make_parser().format_help()",
    "import double_descent.linear, double_descent.spectra, double_descent.plot, double_descent.claims",
    "import star.barriers, star.starlight, star.plot; star.barriers.make_parser().format_help()",
    "import star.bma, star.bma_figures; star.bma.make_parser().format_help()",
    "import star.train, star.sources, star.compare, star.claims; "
    "[m.make_parser().format_help() for m in vars(star).values() if hasattr(m, 'make_parser')]",
    "import double_descent.linear_figures, double_descent.spectra_figures, double_descent.bench",
    "import landscape.corruptions, ensembles.shift, ensembles.shift_figures; ensembles.shift.make_parser()",
    "import ensembles.train, ensembles.similarity, ensembles.evaluate, ensembles.paths; "
    "[m.make_parser().format_help() for m in vars(ensembles).values() if hasattr(m, 'make_parser')]",
    "import subspaces.plot, subspaces.claims",
    "import regions.between, regions.plot; regions.between.make_parser().format_help()",
    "import subspaces.train; subspaces.train.make_parser().format_help()",
    "import subspaces.evaluate; subspaces.evaluate.make_parser().format_help()",
    "import main; main.make_parser().format_help()",
    "import save_preds; save_preds.make_parser().format_help()",
    "import calculate_iou; calculate_iou.make_parser().format_help()",
])  # fmt: skip
def test_what_must_be_instant_loads_no_torch(statement):
    code = f"{statement}\nimport sys\nprint([m for m in ('torch', 'torchvision', 'wandb') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip().endswith("[]")
