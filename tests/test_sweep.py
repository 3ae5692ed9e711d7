"""The pool of scripts/sweep.py on a script made for it, and one real sweep of two trainings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from landscape.errors import ContentError, FileProblem, Interrupted, UsageError
from scripts import sweep

ROOT = Path(__file__).resolve().parent.parent

# A run that notes when it began and ended, and ends as its --mode says.
FAKE = '''
"""A run for tests.

    python fake.py --value 1
"""
import os, signal, time
from pathlib import Path
from landscape import cli, runs
from landscape.errors import ContentError, Interrupted


def make_parser():
    parser = cli.Parser("fake.py", __doc__)
    g = parser.group("all", named=True)
    g.add_argument("--value", "--number", type=int, default=0)
    g.add_argument("--mode", default="done", choices=("done", "fail", "killed", "hollow", "meet", "wait", "again"))
    g.add_argument("--steps", default="1", metavar="N,N,…")
    g.add_argument("--quiet", action="store_true")
    parser.add_argument("--label", default="")
    cli.add_output(parser)
    return parser


def note(word, value):
    with open("events.txt", "a") as f:
        f.write(f"{word} {value} {os.getpid()} {time.time()}\\n")


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    if args.value < 0:
        raise ContentError(f"--value {args.value} is below 0")
    folder = Path(args.runs) / "fake" / runs.name_of("fake", args.differs)
    if args.dry_run:
        print(f"{'finished' if (folder / 'done').exists() else 'trained'}: {folder}")
        return 0
    lock = runs.hold(folder)
    first = not (folder / "resume.pt").exists()
    until = time.time() + (0.1 if args.mode != "meet" else 20)
    with runs.stoppable() as stop:
        note("begin", args.value)
        print("threads", os.environ["OMP_NUM_THREADS"])
        if args.mode == "fail" and not Path("mended").exists():
            raise ContentError("the loss is NaN in step 7")
        if args.mode == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        while time.time() < until or (args.mode == "wait" and not Path("go").exists()):
            if args.mode == "meet" and Path("events.txt").read_text().count("begin") >= 2:
                break
            if stop.requested or (args.mode == "again" and first):
                (folder / "resume.pt").touch()
                raise Interrupted("saved")
            time.sleep(0.01)
    note("end", args.value)
    if args.mode != "hollow":
        (folder / "done").touch()
    return 0


if __name__ == "__main__":
    cli.run(main)
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fake.py").write_text(FAKE)
    return tmp_path


def grid(here, rest, name="grid.yaml", script=None):
    (here / name).write_text(f"script: {script or here / 'fake.py'}\n{rest}\n")
    return name


def events(here, word="begin"):
    """[(value, pid, time)] of the fake runs that began or ended, in order."""
    file = here / "events.txt"
    rows = [row.split() for row in file.read_text().splitlines()] if file.exists() else []
    return [(int(value), int(pid), float(at)) for what, value, pid, at in rows if what == word]


def state(here):
    (file,) = here.glob("runs/sweeps/*/state.json")
    return {number: r["outcome"] for number, r in json.loads(file.read_text())["runs"].items()}


def until(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for 30 s")


def launched(path):
    return subprocess.Popen([sys.executable, str(ROOT / "scripts" / "sweep.py"), "run", path, "--jobs", "2"],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


# ---- what is run ---------------------------------------------------------------------------------------------------

def test_runs_are_done_in_order_once_and_those_done_are_skipped(here, capsys):
    path = grid(here, "base: {label: x, quiet: true}\ngrid: {steps: [[1, 2], 3], value: [5, 4]}")
    sweep.main(["plan", path])
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("fake.py ")[1] for row in rows[:4]] == [
        "--label x --quiet --steps 1,2 --value 5", "--label x --quiet --steps 1,2 --value 4",
        "--label x --quiet --steps 3 --value 5", "--label x --quiet --steps 3 --value 4"]
    assert rows[0].startswith("000  new") and rows[4].startswith("4 runs: 4 new")
    assert not (here / "runs").exists()  # planning writes nothing
    assert sweep.main(["run", path, "--jobs", "1"]) == 0
    assert [value for value, _, _ in events(here)] == [5, 4, 5, 4]
    (log,) = here.glob("runs/sweeps/grid-*/logs/000.log")
    assert log.read_text().splitlines()[1:] == ["threads 1"]
    begun = [at for _, _, at in events(here)]
    ended = [at for _, _, at in events(here, "end")]
    assert all(a <= b for a, b in zip(ended, begun[1:]))  # one at a time
    for done in here.glob("runs/fake/*steps=3*value=4*/done"):
        done.unlink()
    capsys.readouterr()
    assert sweep.main(["run", path]) == 0
    assert [value for value, _, _ in events(here)] == [5, 4, 5, 4, 4]
    assert "4 runs: 3 done, 1 new; 1 to do" in capsys.readouterr().out
    assert sweep.main(["status", path]) == 0
    assert "4 runs: 4 done" in capsys.readouterr().out


def test_n_at_a_time_are_n(here):
    path = grid(here, "base: {mode: meet}\ngrid: {value: [1, 2, 3, 4, 5]}")  # the first waits for the second
    assert sweep.main(["run", path, "--jobs", "2"]) == 0
    changes = sorted([(at, 1) for _, _, at in events(here)] + [(at, -1) for _, _, at in events(here, "end")])
    running = [sum(change for _, change in changes[:n + 1]) for n in range(len(changes))]
    assert max(running) == 2
    assert set(state(here).values()) == {"done"}


def test_two_runs_of_one_folder_are_not_run_at_once(here):
    path = grid(here, "grid: {label: [a, b, c]}")  # a label is no part of a run's name
    assert sweep.main(["run", path, "--jobs", "3"]) == 0
    assert set(state(here).values()) == {"done"}


def test_an_empty_grid_is_one_run_and_set_changes_it(here, capsys):
    path = grid(here, "base: {value: 3}")
    assert sweep.main(["plan", path]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("1 runs: 1 new")
    sweep.main(["plan", path, "--set", "value=[1,2]", "label=l", "--smoke", "--runs", "elsewhere"])
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.endswith("--label l --value 1 --runs elsewhere --smoke") and "--value 2" in second
    assert "elsewhere/smoke/sweeps/grid-" in last
    two, three = (sweep.Sweep.read(sweep.make_parser().settings(["plan", path, *more])).home
                  for more in ([], ["--set", "value=4"]))
    assert two != three  # another grid has another folder


# ---- what goes wrong -----------------------------------------------------------------------------------------------

def test_failures_are_reported_at_the_end_and_retried_on_demand(here, capsys):
    path = grid(here, "grid: {mode: [fail, done, killed, hollow]}")
    with pytest.raises(ContentError, match="3 of 4 runs failed.*--retry"):
        sweep.main(["run", path, "--jobs", "2"])
    said = capsys.readouterr().out
    assert "failed: 000, exit 4: fake.py: the loss is NaN in step 7" in said
    assert "failed: 002, killed by SIGKILL" in said
    assert "failed: 003, ended without finishing its run" in said
    assert f"python {here / 'fake.py'} --mode fail" in said
    (here / "mended").touch()
    count = len(events(here))
    with pytest.raises(ContentError, match="3 of 4"):
        sweep.main(["run", path])
    assert len(events(here)) == count  # not by itself
    capsys.readouterr()
    sweep.main(["status", path])
    assert "exit 4: fake.py: the loss is NaN" in capsys.readouterr().out
    with pytest.raises(ContentError, match="2 of 4"):
        sweep.main(["run", path, "--retry"])
    assert len(events(here)) == count + 3
    assert state(here) == {"000": "done", "001": "done", "002": "failed", "003": "failed"}
    (log,) = here.glob("runs/sweeps/*/logs/000.log")
    assert log.read_text().count("$ python") == 2  # the first attempt's words are kept


def test_75_means_run_again(here, capsys):
    path = grid(here, "base: {mode: again}\ngrid: {value: [1, 2]}")
    assert sweep.main(["run", path, "--jobs", "1"]) == 0
    assert [value for value, _, _ in events(here)] == [1, 2, 1, 2]
    assert "000 interrupted (goes on later)" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_lets_the_running_ones_save_and_the_next_call_goes_on(here, capsys, number):
    path = grid(here, "base: {mode: wait}\ngrid: {value: [1, 2, 3]}")
    process = launched(path)
    until(lambda: len(events(here)) == 2)
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == Interrupted.exit_code, said
    assert "with 3 runs to go" in said and "Traceback" not in said
    assert state(here) == {"000": "interrupted", "001": "interrupted"}
    assert len(list(here.glob("runs/fake/*/resume.pt"))) == 2 and not events(here, "end")
    sweep.main(["plan", path])
    assert "3 runs: 2 resumable, 1 new" in capsys.readouterr().out
    (here / "go").touch()
    assert sweep.main(["run", path]) == 0
    assert sorted(value for value, _, _ in events(here, "end")) == [1, 2, 3]


def test_after_kill_9_nothing_is_started_twice(here):
    path = grid(here, "base: {mode: wait}\ngrid: {value: [1, 2]}")
    process = launched(path)
    until(lambda: len(events(here)) == 2)
    process.kill()
    process.communicate()
    with pytest.raises(FileProblem, match="another process"):  # its runs are still at work
        sweep.main(["run", path])
    for _, pid, _ in events(here):
        os.kill(pid, signal.SIGTERM)
    home = next(here.glob("runs/sweeps/*"))
    until(lambda: not sweep.running(home))
    (here / "go").touch()
    assert sweep.main(["run", path]) == 0
    assert sorted(value for value, _, _ in events(here, "end")) == [1, 2]


def test_a_full_disk_leaves_no_process_behind(here, monkeypatch):
    path = grid(here, "base: {mode: wait}\ngrid: {value: [1, 2, 3]}")
    plain, written = sweep.runs.write_json, []

    def full(file, value):
        written.append(file)
        if len(written) == 2:
            until(lambda: events(here))
            raise FileProblem("cannot write: no space left on device")
        plain(file, value)

    monkeypatch.setattr(sweep.runs, "write_json", full)
    with pytest.raises(FileProblem, match="no space"):
        sweep.main(["run", path, "--jobs", "2"])
    ((_, pid, _),) = events(here)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


BAD = [
    ("base: {valu: 1}", "line 2: unknown key 'valu'; did you mean value"),
    ("base: {quiet: true}\ngrid:\n  value: [1]\n  moed: [done]", "line 5: unknown key 'moed'; did you mean mode"),
    ("bsae: {value: 1}", "line 2: unknown key 'bsae'; did you mean base"),
    ("grid: {value: [1]}\ngrid: {value: [2]}", "line 3: the key grid is given twice"),
    ("grid:\n  value: [1]\n  value: [2]", "line 4: the key value is given twice"),
    ("base: {value: 1}\ngrid: {value: [2]}", "line 3: value is given already, as value under base"),
    ("grid: {value: [2], number: [3]}", "line 2: number is given already, as value under grid"),
    ("grid: {value: 3}", "line 2: grid takes a list of values for value"),
    ("grid: {value: []}", "line 2: grid takes a list"),
    ("grid: [value]", "line 2: grid is a mapping"),
    ("grid: {value: [1, 2, 1]}", "line 2: value has the value 1 twice"),
    ("grid: {value: [one]}", "line 2: .*invalid int value: 'one'"),
    ("grid: {mode: [dnoe]}", "line 2: .*invalid choice: 'dnoe'"),
    ("base: {quiet: 1}", "line 2: quiet is true or false"),
    ("base: {dryrun: true}", "line 2: dryrun is no setting of a sweep's runs"),
    ("base: {runs: there}", "line 2: runs is no setting"),
    ("base: {config: x.yaml}", "line 2: unknown key 'config'"),
    ("base: {value: [}", "not YAML"),
]


@pytest.mark.parametrize(("rest", "message"), BAD)
def test_a_bad_grid_is_refused_before_anything_starts(here, rest, message):
    with pytest.raises(UsageError, match=message):
        sweep.main(["run", grid(here, rest)])
    assert not (here / "runs").exists()


def test_other_bad_input(here):
    for script, message in [("mian.py", "no script .*did you mean main.py"), ("python -m regions.no", "no.* module"),
                            ("main.py --net mlp", "script is a file"), (str(here / "bare.py"), "no make_parser")]:
        (here / "bare.py").write_text("")
        with pytest.raises(UsageError, match=f"line 1: .*{message}"):
            sweep.main(["plan", grid(here, "", script=script)])
    with pytest.raises(ContentError, match=r"run 001 \(value=-1\): --value -1 is below 0"):  # the script's own check
        sweep.main(["run", grid(here, "grid: {value: [1, -1]}")])
    with pytest.raises(UsageError, match="unknown model|did you mean"):
        sweep.main(["run", grid(here, "grid: {net: [mlp, mpl]}", script="main.py")])
    with pytest.raises(UsageError, match="did you mean value"):
        sweep.main(["plan", grid(here, ""), "--set", "vlaue=1"])
    with pytest.raises(UsageError, match="--set value: KEY=VALUE"):
        sweep.main(["plan", grid(here, ""), "--set", "value"])
    with pytest.raises(FileProblem, match="no such file"):
        sweep.main(["plan", "none.yaml"])
    with pytest.raises(UsageError, match="names no script"):
        (here / "no.yaml").write_text("base: {value: 1}\n")
        sweep.main(["plan", "no.yaml"])
    with pytest.raises(UsageError, match="plan .*or run, or status"):
        sweep.main([grid(here, "")])
    assert not (here / "runs").exists()


# ---- the real thing ------------------------------------------------------------------------------------------------

def test_a_real_sweep(here, capsys):
    path = grid(here, "base: {dataset: digits, epochs: 1, imgs: none, device: cpu}\ngrid: {net: [mlp], seed: [0, 1]}",
                script="main.py")
    assert sweep.main(["run", path, "--jobs", "2", "--smoke"]) == 0
    assert len(list(here.glob("runs/smoke/regions/*/model.safetensors"))) == 2
    capsys.readouterr()
    assert sweep.main(["run", path, "--jobs", "2", "--smoke"]) == 0
    assert "2 runs: 2 done; 0 to do" in capsys.readouterr().out
    drawn = grid(here, "base: {dataset: digits, epochs: 1, device: cpu}\ngrid: {net: [mlp], seed: [0, 1]}",
                 script="main.py")
    sweep.main(["plan", drawn, "--smoke"])  # the same trainings, but here their regions are to be drawn
    assert "2 runs: 2 resumable" in capsys.readouterr().out


def test_the_example_is_planned_without_torch():
    code = ("import sys\nfrom scripts import sweep\nsweep.make_parser().format_help()\n"
            "sweep.main(['plan', 'configs/sweep_example.yaml', '--set', 'device=cpu'])\n"
            "print([m for m in ('torch', 'wandb') if m in sys.modules])")
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "\n6 runs: " in said and said.endswith("[]\n")
