"""Campaigns of some minutes: a hundred SIGKILLs at random moments, a hundred bad inputs drawn at random.

    bash scripts/test.sh --slow

Not among the tests that `bash scripts/test.sh` runs. Each prints its counts.
"""

import importlib
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_readme import PARSED, ROOT, fenced_commands, prepared, run, workspace  # noqa: F401
from test_resume import child, readable, sha

import main
import models
import save_preds
from landscape import cli, runs
from scripts import sweep
from star import train as star_train

pytestmark = pytest.mark.slow
torch.set_num_threads(1)

# ---- killed at random ----------------------------------------------------------------------------------------------

KILLS = 25  # of each job
LIMIT = 60.0  # seconds; whatever takes longer hangs
SMALL = ["--dataset", "digits", "--bs", "32", "--precision", "fp32", "--device", "cpu", "--threads", "1"]
NETS = [*SMALL, "--net", "mlp1", "--width", "32", "--train_size", "300", "--imgs", "none"]
GRID = """script: main.py
base: {dataset: digits, net: mlp, width: 16, bs: 32, train_size: 300, epochs: 30, imgs: none, device: cpu,
       precision: fp32, save_every: 0}
grid: {init_seed: [0, 1, 2, 3]}
"""


def trained():
    """Networks of three seeds, for jobs that begin with networks."""
    for seed in range(3):
        assert main.main([*NETS, "--epochs", "2", "--seed", str(seed)]) == 0


def training():
    main.main([*NETS, "--net", "vit4", "--width", "16", "--epochs", "4", "--augment", "crop,flip", "--snapshots", "0,2",
               "--opt", "Adam", "--lr", "0.003", "--save_every", "0"])  # fmt: skip


def predictions():
    save_preds.main(["--load_net", "runs/regions", "--planes", "80", "--resolution", "30", "--save_every", "0",
                     "--device", "cpu", "--threads", "1"])  # fmt: skip


def star():
    anchors = sorted(str(done.parent) for done in Path("runs").glob("regions/*/done"))
    star_train.main([*SMALL, "--net", "mlp1", "--width", "32", "--train_size", "600", "--epochs", "8", "--align_every",
                     "2", "--anchors", *anchors[:2], "--held_out", anchors[2], "--lr", "0.05", "--save_every", "0"])


def a_sweep():
    """A grid of four trainings, two at a time; this process becomes the sweep's."""
    Path("grid.yaml").write_text(GRID)
    os.dup2(1, 2)
    os.execv(sys.executable, [sys.executable, str(ROOT / "scripts/sweep.py"), "run", "grid.yaml", "--jobs", "2",
                              "--retry"])


# What is done, and what has to be there before.
JOBS = {"training": (training, list), "predictions": (predictions, trained), "star": (star, trained),
        "sweep": (a_sweep, list)}  # fmt: skip


def begun(work, folder):
    """The id of a process that works in folder."""
    def inside():
        os.chdir(folder)
        work()

    return child(inside)


def content(root):
    """All that a job left under root, but for times, logs and pictures, by its path."""
    found = {}
    for file in sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")):
        name = str(file.relative_to(root))
        if "sweeps/" in name or file.name == "meta.json" or file.suffix == ".png":
            continue
        if file.name == "metrics.jsonl":
            found[name] = [{k: v for k, v in line.items() if k != "seconds"} for line in runs.read_metrics(file.parent)]
        elif file.suffix == ".npz":
            found[name] = {k: (v.dtype.str, v.shape, v.tobytes()) for k, v in runs.read_arrays(file).items()}
        else:
            found[name] = sha(file)
    return found


def descendants(pid):
    """The processes that pid has started and what these have, from the table of processes."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            pass
    found, rest = [], [pid]
    while rest:
        one = rest.pop()
        below = [p for p, parent in parents.items() if parent == one]
        found, rest = found + below, rest + below
    return found


def kill(pid, draw):
    """kill -9: the process, or with those that it started, or one of these alone. True where one was alive."""
    below = descendants(pid)
    victims = draw.choice([[pid], [pid, *below], *[[one] for one in below]])
    hit = False
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
            hit = True
        except ProcessLookupError:
            pass
    return hit


def ended(pid, seconds):
    """Does the process end within so many seconds?"""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.02)
    return False


def at_rest(root):
    """Wait until what a killed sweep had started has ended by itself."""
    until = time.monotonic() + LIMIT
    while any(sweep.at_work(home) for home in root.glob("runs/sweeps/*")):
        assert time.monotonic() < until, "a run of a killed sweep hangs"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no table of processes here")
@pytest.mark.parametrize("name", JOBS)
def test_kills_lose_nothing(name, tmp_path, capsys):
    """Killed at random and begun again until it is done, every time a job ends as an undisturbed one does."""
    work, prepare = JOBS[name]
    source, calm = tmp_path / "source", tmp_path / "calm"
    source.mkdir()
    assert ended(begun(prepare, source), LIMIT), "hangs"
    shutil.copytree(source, calm)
    began = time.monotonic()
    assert ended(begun(work, calm), LIMIT), "hangs"
    whole, expected = time.monotonic() - began, content(calm)
    draw, kills, finished = random.Random(), 0, 0
    while kills < KILLS:
        place, since = tmp_path / str(finished), kills
        shutil.copytree(source, place)
        while kills < KILLS:
            pid, began = begun(work, place), time.monotonic()
            if ended(pid, draw.uniform(0, whole)):
                if kills == since:  # it was never disturbed
                    whole = min(whole, time.monotonic() - began)
                break
            kills += kill(pid, draw)
            assert ended(pid, LIMIT), f"hangs after kill {kills}"
            at_rest(place)
            readable(place)
        if kills > since:  # the last kill may not have been followed by a call
            assert ended(begun(work, place), LIMIT), "hangs"
            at_rest(place)
        assert content(place) == expected, f"differs from an undisturbed one after {kills - since} kills"
        assert not list(place.rglob(".*.tmp-*")), "leaves a half file"
        finished += 1
    with capsys.disabled():
        print(f"\n{name}: {kills} kills over {finished} jobs of {whole:.1f} s, 0 lost")


# ---- bad inputs ----------------------------------------------------------------------------------------------------

BAD_INPUTS = 100
WORDS = ["", " ", "nan", "inf", "-1", "0", "-0.5", "1.5", "1e999", "1e-320", "99999999999999999999", "abc", "a,b,c",
         ",", "1,,2", "1,2", "0,0,0", "every=0", "k=", "=", "a=b", "[", "{}", "null", "é\u2028", "%s", "$HOME", "\\",
         "..", "*", "x" * 300, "digits:", "folder:", "fake:1x8x8", "timm:nowhere", "os:system"]  # fmt: skip
FILES = ["nowhere", "nowhere/at/all.pth", "empty.pth", "empty.safetensors", "folder", "text.pth", "text.yaml",
         "half.npz", "half.safetensors", "half.pth", "random.safetensors", "nan.safetensors", "three.pth", "binary.csv",
         "other/mlp/0.pth", "/proc/nowhere/x", "/dev/null", "config.yaml", "broken_run", "link"]


def make_bad_files(folder):
    """Write FILES into folder: what is damaged, empty, another thing, or not there."""
    mlp = models.build("mlp", 7, in_channels=3, image_size=8, width=4)
    for name in ("empty.pth", "empty.safetensors"):
        (folder / name).write_bytes(b"")
    for name in ("text.pth", "text.yaml"):
        (folder / name).write_text("404: not found\n- [")
    (folder / "folder").mkdir()
    (folder / "other/mlp").mkdir(parents=True)
    torch.save(mlp.state_dict(), folder / "other/mlp/0.pth")
    torch.save(torch.ones(3), folder / "three.pth")
    (folder / "half.pth").write_bytes((folder / "other/mlp/0.pth").read_bytes()[:900])
    (whole,) = list(folder.glob("runs/smoke/regions/*/model.safetensors"))[:1]
    (folder / "half.safetensors").write_bytes(whole.read_bytes()[:1000])
    (folder / "random.safetensors").write_bytes(random.Random(0).randbytes(2000))
    tensors, described = runs.read_weights(whole)
    runs.save_weights(folder / "nan.safetensors", {k: v * float("nan") for k, v in tensors.items()}, described)
    (maps,) = list(folder.glob("runs/smoke/regions/*/arrays/*.npz"))[:1]
    (folder / "half.npz").write_bytes(maps.read_bytes()[:500])
    (folder / "binary.csv").write_bytes(bytes(range(256)))
    (folder / "config.yaml").write_text("epochz: 3\nnet: mlp\n")
    shutil.copytree(whole.parent, folder / "broken_run")
    (folder / "broken_run/model.safetensors").write_bytes(b"{")
    (folder / "link").symlink_to("nothing_behind")


def refusal(command):
    """(exit code, stderr, seconds) of a command in a process of its own; code None where it takes longer than LIMIT."""
    module, argv = command

    def alone():
        sys.stderr = open("stderr.txt", "w", buffering=1)  # pytest has another in the place of the process's own
        os.dup2(sys.stderr.fileno(), 2)
        sys.argv = [module.__file__, *argv]
        try:
            cli.run(module.main)
        except SystemExit as leaving:
            sys.stderr.flush()
            os._exit(leaving.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(1)

    pid = child(alone)
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), Path("stderr.txt").read_text()
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None, ""


@st.composite
def spoilt(draw, commands):
    """(module, argv, what was done): one of the README's commands with one thing wrong in it."""
    module, argv = draw(st.sampled_from(commands))
    actions = [a for a in module.make_parser()._actions if a.option_strings and a.dest != "help"]
    kind = draw(st.sampled_from(["flag", "value", "value", "file", "file", "config", "argument"]))
    known = [flag for a in actions for flag in a.option_strings]
    valued = [a for a in actions if a.nargs != 0]
    word = st.sampled_from(WORDS) | st.text(max_size=8).filter(lambda t: "\0" not in t and not t.startswith("-"))
    file = st.sampled_from(FILES)
    if kind == "flag":
        flag = draw(st.sampled_from(known))
        at = draw(st.integers(2, len(flag) - 1))
        wrong = draw(st.sampled_from([flag[:at] + flag[at + 1:], flag[:at] + flag[at] + flag[at:], flag + "s"]))
        assume(wrong not in known and len(wrong) > 2)
        return module, [*argv, wrong], kind
    if kind == "argument":
        places = [i for i, a in enumerate(argv) if not a.startswith("-")]
        assume(places)
        at = draw(st.sampled_from(places))
        return module, [*argv[:at], draw(file | word), *argv[at + 1:]], kind
    if kind == "config":
        Path("drawn.yaml").write_text(draw(st.sampled_from(known)).lstrip("-") + f": {draw(word)}\n")
        return module, [*argv, "--config", "drawn.yaml"], kind
    texts = [a for a in valued if a.type is None and a.choices is None]
    action = draw(st.sampled_from(texts if kind == "file" and texts else valued))
    return module, [*argv, f"{action.option_strings[0]}={draw(file if kind == 'file' else word)}"], kind


def of_every_program():
    """[(module, argv)]: the README's commands, tiny, and each other program as it stands."""
    found = [prepared(c) for c in fenced_commands()]
    found = [(m, a) for m, a in found if hasattr(m, "make_parser") and m.__name__ not in PARSED]
    files = [f for f in ROOT.glob("*/*.py") if f.parent.name != "tests" and "cli.run(main)" in f.read_text()]
    names = {f"{f.parent.name}.{f.stem}" for f in files} - {m.__name__ for m, _ in found} - {"scripts.benchmark"}
    others = [importlib.import_module(name) for name in sorted(names)]
    return found + [(m, []) for m in others if hasattr(m, "make_parser")]


def test_a_hundred_bad_inputs_are_refused_in_one_line(workspace, capsys):  # noqa: F811
    for command in fenced_commands():
        assert run(command) == 0, command
    make_bad_files(workspace)
    for name in ("configs", "results"):  # nothing that is drawn shall write into ours
        (workspace / name).unlink()
        shutil.copytree(ROOT / name, workspace / name)
    pristine = workspace.with_name("pristine")
    shutil.copytree(workspace, pristine, symlinks=True)
    given_files = {p: sha(p) for p in (workspace / "runs").rglob("*.safetensors")}  # others may be asked for as --out
    commands = of_every_program()
    count = Counter()

    @settings(max_examples=BAD_INPUTS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(spoilt(commands))
    def campaign(drawn):
        module, argv, kind = drawn
        code, said = refusal((module, argv))
        words = f"python -m {module.__name__} {argv}: exit {code}: {said}"
        if code in (0, None):  # a right value after all
            count["accepted" if code == 0 else "slow"] += 1
            shutil.rmtree(workspace / "runs")
            shutil.copytree(pristine / "runs", workspace / "runs", symlinks=True)
            assume(False)
        assert code in (2, 3, 4), words
        assert len(said.splitlines()) == 1 and said.endswith("\n"), words
        assert {p: sha(p) for p in given_files} == given_files, words
        count[kind] += 1

    campaign()
    refused = sum(count[kind] for kind in ("flag", "value", "file", "config", "argument"))
    assert refused >= BAD_INPUTS
    with capsys.disabled():
        print(f"\n{refused} bad inputs refused in one line, 0 tracebacks: {dict(count)} over "
              f"{len({m.__name__ for m, _ in commands})} programs")
