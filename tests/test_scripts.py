"""Every script and every config: --help is quick, --dry_run writes nothing, --smoke takes the whole path."""

import importlib
import itertools
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from landscape import cli, runs

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("main.py", "save_preds.py", "calculate_iou.py")
MODULES = tuple(f"python -m ensembles.{name}" for name in ("train", "similarity", "evaluate", "paths", "shift"))
FIGURES = sorted(p.name for p in (ROOT / "scripts").glob("fig_[dr]*.sh"))
CONFIGS = sorted(p.name for p in (ROOT / "configs").glob("*.yaml"))


def module(script):
    """The module of a config's `script:`, such as main.py or python -m regions.plot."""
    return importlib.import_module(script.removeprefix("python -m ").removesuffix(".py").replace("/", "."))


def settings(name):
    return yaml.safe_load((ROOT / "configs" / name).read_text())


def files(folder):
    return sorted(str(p) for p in folder.rglob("*"))


def call(script, *argv, cwd):
    began = time.monotonic()
    done = subprocess.run([sys.executable, str(ROOT / script), *argv], cwd=cwd, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, time.monotonic() - began


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_instant_and_opens_with_an_example(script, tmp_path):
    text, seconds = call(script, "--help", cwd=tmp_path)
    if seconds > 1.5:  # a busy machine: the better of two counts
        seconds = call(script, "--help", cwd=tmp_path)[1]
    assert seconds < 1.5  # 0.5 s on an idle machine
    assert f"    python {script} " in text.split("options:")[0]
    assert files(tmp_path) == []


def test_the_three_scripts_work_after_each_other(tmp_path):
    """As a user calls them, from a folder of his own: one process a script."""
    said = [call(script, "--smoke", cwd=tmp_path)[0] for script in SCRIPTS]
    assert "test accuracy" in said[0] and "resnet18" in said[1] and "agreement" in said[2]
    made = files(tmp_path / "runs/smoke/regions")
    for end in ("done", "model.safetensors", "results.json", "agreement.csv", "figures/agreement.png"):
        assert any(name.endswith(end) for name in made), end
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["smoke"]


@pytest.mark.parametrize("script", MODULES)
def test_help_of_a_study_opens_with_an_example(script, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        module(script).main(["--help"])
    assert stop.value.code == 0 and files(tmp_path) == []
    assert f"    {script} " in capsys.readouterr().out.split("options:")[0]


@pytest.mark.parametrize("script", SCRIPTS + MODULES)
def test_print_config_gives_what_can_be_read_back(script, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        module(script).main(["--runs", "elsewhere", "--print_config"])
    assert stop.value.code == 0
    held = yaml.safe_load(capsys.readouterr().out)
    assert held["script"] == script and held["runs"] == "elsewhere"
    assert files(tmp_path) == []


def test_a_dry_run_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert module("main.py").main(["--net", "mlp", "--dataset", "digits", "--dry_run"]) == 0
    assert files(tmp_path) == []
    assert "trained: runs/regions/digits_mlp" in capsys.readouterr().out

    module("main.py").main(["--net", "mlp", "--smoke"])
    before = files(tmp_path)
    module("save_preds.py").main(["--smoke", "--dry_run"])
    assert files(tmp_path) == before
    module("save_preds.py").main(["--smoke"])
    before = files(tmp_path)
    module("calculate_iou.py").main(["--smoke", "--dry_run"])
    module("main.py").main(["--smoke", "--load_net", "runs/regions", "--dry_run"])
    assert files(tmp_path) == before


def planned(name, root, *flags):
    """(settings of each training, words of each --select) of what a figure's script would do."""
    done = subprocess.run(["bash", f"scripts/{name}", "--dry_run", *flags], cwd=ROOT, text=True,
                          capture_output=True, check=False, env={"PATH": "/usr/bin:/bin", "RUNS": str(root)})
    assert done.returncode == 0, done.stderr
    trained, selected = [], []
    for line in done.stdout.splitlines():
        _, python, call = line.partition("python ")
        script, *argv = shlex.split(call) if python else [""]
        script, argv = (f"python -m {argv[0]}", argv[1:]) if script == "-m" else (script, argv)
        if "--select" in argv:
            rest = argv[argv.index("--select") + 1:]
            selected.append(list(itertools.takewhile(lambda word: not word.startswith("--"), rest)))
        elif script in ("main.py", "python -m double_descent.deep", "python -m ensembles.train"):
            trained.append(vars(cli.resolve(module(script).make_parser().settings(argv))))
    assert trained and selected
    return trained, selected


@pytest.mark.parametrize("flags", [[], ["--smoke"]], ids=["whole", "smoke"])
@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize("name", FIGURES)
def test_what_a_figure_selects_is_among_what_it_trains(name, scale, flags, tmp_path):
    trained, selected = planned(name, tmp_path, "--scale", scale, *flags)
    for words in selected:
        assert any(runs.fits(config, words) for config in trained), words


def test_figures_that_share_a_folder_train_a_network_in_one_way(tmp_path):
    ways = {}
    for name in FIGURES:
        if name.startswith("fig_regions"):
            for c in planned(name, tmp_path, "--scale", "paper")[0]:
                network = c["runs"], c["net"], c["width"], c["opt"], c["sam_radius"], c["train_mode"]
                ways.setdefault(network, set()).add((c["epochs"], c["bs"], c["scheduler"], c["lr"]))
    assert {len(found) for found in ways.values()} == {1}


def test_a_lone_yaml_file_is_a_config(tmp_path, capsys):
    file = str(ROOT / "configs/regions_digits_resnet20.yaml")
    for script_argv in ([file], ["--config", file]):
        with pytest.raises(SystemExit):
            module("main.py").main([*script_argv, "--print_config"])
    one, two = capsys.readouterr().out.split("script: main.py")[1:]
    assert yaml.safe_load(one) | {"config": None} == yaml.safe_load(two) | {"config": None}
    assert yaml.safe_load(one)["epochs"] == settings(Path(file).name)["epochs"]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_runs_and_its_head_names_its_command(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    path, held = ROOT / "configs" / name, settings(name)
    head = re.match(r"(#.*\n)+", path.read_text())[0]
    if name.startswith("fig_"):  # a grid that a script runs
        script = re.search(r"bash (scripts/fig_\w+\.sh)", head)[1]
        assert "configs/" + name.rsplit("_", 1)[0] in (ROOT / script).read_text()
    else:
        command = "python " + held["script"].removeprefix("python ")
        assert command in head or "scripts/sweep.py run" in head
        assert f"configs/{name}" in head
    timed = re.search(r"\d (CPU )?(seconds|minutes|hours)\b", head)
    assert timed or "not run yet" in head, "its head says how long it takes"
    if {"grid", "each"} & held.keys():  # a sweep: its first run here, all of it in the tests of the sweep
        first = {**held.get("base", {}), **(held.get("each") or [{}])[0]}
        first |= {k: values[0] for k, values in held.get("grid", {}).items()}
        argv = [f"--{k}" if v is True else f"--{k}={v}" for k, v in first.items() if v is not False]
    else:
        argv = ["--config", str(path)]
    assert not module(held["script"]).main([*argv, "--smoke"])
    assert list(tmp_path.glob("runs/smoke/*/*/done"))
