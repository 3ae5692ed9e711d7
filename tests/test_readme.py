"""What the README says can be done: its commands run (tiny), its Python runs, its files and links exist."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import models

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
STUDIES = ("regions", "double_descent", "ensembles", "subspaces", "star")
SMOKED = ("main", "save_preds", "calculate_iou", "landscape.pairs", "landscape.surface")  # and all of the studies
PARSED = ("scripts.benchmark", "star.starlight")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def blocks(language):
    """The fenced blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def fenced_commands():
    return [line for block in blocks("bash") for line in block.splitlines() if line.startswith("python ")]


def table_commands():
    """The commands in our column of the tables under "Coming from"."""
    rows = [row.split("|") for row in README.split("## Coming from")[1].splitlines() if row.startswith("|")]
    return [c for row in rows for c in re.findall(r"`(python [^`]*)`", row[2])]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder to run the README's commands in: our configs and results, somebody's module and checkpoints."""
    for name in ("configs", "results"):
        (tmp_path / name).symlink_to(ROOT / name)
    for block in blocks("python"):
        if block.startswith("# mynets.py"):
            (tmp_path / "mynets.py").write_text(block)
    (tmp_path / "checkpoints/resnet20").mkdir(parents=True)
    for number in range(2):  # of the bundled digits, which --smoke puts in the place of every set
        weights = models.build("resnet20", 10, in_channels=1, image_size=8).state_dict()
        torch.save(weights, tmp_path / f"checkpoints/resnet20/{number}.pth")
    line = dict(models.build("resnet20_proj", 10, in_channels=1, image_size=8).named_parameters())
    state = {f"{k}{n}": w.detach() for k, w in line.items() for n in ("", "1")}  # both vertices, their way
    state |= dict(models.build("resnet20_proj", 10, in_channels=1, image_size=8).named_buffers())
    torch.save({"state_dicts": [state]}, tmp_path / "epoch_160_iter_62560.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "wandb", None)  # its absence stops nothing; tests/test_runs.py reads one back
    yield tmp_path
    sys.modules.pop("mynets", None)


def prepared(command):
    """(module, argv) of a command, tiny; in the place of a download stands a check of the bundled digits."""
    words = shlex.split(command, comments=True)[1:]
    name = words.pop(1) if words[0] == "-m" else words[0].removesuffix(".py").replace("/", ".")
    argv = words[1:]
    if name == "models":
        name = "models.__main__"
    module = importlib.import_module(name)
    if name == "landscape.data" and argv[0] == "fetch":
        argv = ["verify", "digits"] if argv[1] in module.DATASETS else argv
    elif name == "scripts.sweep":
        argv = ["plan", *argv[1:], "--smoke"]
    elif name in [f"{study}.plot" for study in STUDIES]:
        argv = [a.replace("runs/", "runs/smoke/") for a in argv]
    elif name == "landscape.results":
        argv = ["runs/smoke" if a == "runs" else a for a in argv]
    elif name == "subspaces.convert":
        argv = [*argv, "--dataset", "digits", "--normalize", "dataset"]
    elif name not in PARSED and (name in SMOKED or name.split(".")[0] in STUDIES):
        argv = [*argv, "--smoke"]
    return module, argv


def run(command):
    """Run a command in this process, tiny. What starts processes of its own is only parsed."""
    module, argv = prepared(command)
    if module.__name__ in PARSED:
        module.make_parser().settings(argv)
        return 0
    return module.main(argv) or 0


@pytest.mark.parametrize("commands", [fenced_commands, table_commands], ids=lambda f: f.__name__)
def test_the_commands_run_in_their_order(commands, workspace, capsys):
    if commands is table_commands:  # the grid of panels needs a network to draw
        run("python main.py --net mlp --dataset digits --imgs none")
    assert len(commands()) >= 5
    for command in commands():
        try:
            code = run(command)
        except Exception as error:
            raise AssertionError(f"{command}: {type(error).__name__}: {error}") from error
        assert code == 0, command
    assert list(workspace.glob("runs/smoke/regions/agreement_*/results.json"))
    if commands is table_commands:
        assert list(workspace.glob("runs/smoke/regions/*/seed0.pth"))


def test_the_python_runs_as_it_stands(workspace):
    code = [b for b in blocks("python") if not b.startswith("# mynets.py")]
    assert len(code) == 1
    found = {}
    exec(code[0], found)
    assert found["said"]["labels"].unique().numel() > 1
    assert (found["run"].path / "done").exists()


def tree():
    """The paths (some of them patterns) that the README's file tree names; two spaces are one level, and what stands
    before two more spaces are names."""
    head, out = "", []
    for line in re.search(r"^```\n(main\.py.*?)^```", README, re.M | re.S)[1].splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split()
        head = head if line.startswith("  ") else ""
        out += [head + name for name in names]
        head = names[0] if names[0].endswith("/") and not line.startswith("  ") else head
    return out


def test_the_file_tree_is_the_tree():
    assert [name for name in tree() if not list(ROOT.glob(name))] == []
    named = {str(p.relative_to(ROOT)) for name in tree() for p in ROOT.glob(name)}
    # Two that stand in the remarks on their neighbours.
    named |= {"scripts/bench_training.py", "scripts/fig.sh", "regions/images.py"}
    here = [*ROOT.glob("*.py"), *(p for d in ("landscape", *STUDIES, "scripts")
                                  for e in ("py", "sh") for p in ROOT.glob(f"{d}/*.{e}"))]  # fmt: skip
    here += [p.parent for p in ROOT.glob("*/*.py")]
    unsaid = {str(p.relative_to(ROOT)) for p in here if p.name != "__init__.py" and p.name[0] != "."} - named
    assert not unsaid, f"README.md, What is where: say a word about {', '.join(sorted(unsaid))}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_flags_it_names_exist_and_those_left_out_do_not():
    left_out = r"\*Left out\*:.*?\n\n"
    known = {"--flag", "--mirror", "--num_classes", "--jobs"}  # of landscape.data, models, sweep
    known |= {"--nproc_per_node"}  # of torchrun
    known |= {"--columns", "--format", "--curves"}  # of landscape.results
    known |= {"--scale", "--superposition", "--slow"}  # of the fig_*.sh and test.sh
    studied = [f"{study}.{p.stem}" for study in (*STUDIES, "landscape") for p in ROOT.glob(f"{study}/*.py")
               if re.search(r"def make_parser\(\)", p.read_text())]
    for name in ("main", "save_preds", "calculate_iou", "scripts.sweep", "scripts.benchmark", *studied):
        actions = importlib.import_module(name).make_parser()._actions
        known |= {flag for action in actions for flag in action.option_strings}
    flag = r"(?<![\w-])--[a-z]\w*"
    assert set(re.findall(flag, re.sub(left_out, "", README, flags=re.S))) - known == set()
    some = {"--train_mode", "--imgs", "--anchors"}  # of these, some values are left out
    assert set(re.findall(flag, re.search(left_out, README, re.S)[0])) & known <= some
