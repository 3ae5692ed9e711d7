"""scripts/sweep.py on a script made for it and on a Slurm made for it, and one real sweep of two trainings."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from landscape.errors import ContentError, FileProblem, Interrupted, UsageError
from scripts import sweep, sweep_work

ROOT = Path(__file__).resolve().parent.parent

# A run that notes when it began and ended, and ends as its --mode says.
FAKE = '''
"""A run for tests.

    python fake.py --value 1
"""
import json, os, signal, time
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
    g.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", default="")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--time_steps", type=int, default=0)
    cli.add_output(parser)
    return parser


def note(word, value):
    with open("events.txt", "a") as f:
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES") or "-"
        f.write(f"{word} {value} {os.getpid()} {time.time()} {gpu} {os.getppid()}\\n")


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    if args.value < 0:
        raise ContentError(f"--value {args.value} is below 0")
    folder = Path(args.runs) / "fake" / runs.name_of("fake", args.differs)
    if args.dry_run:
        print(f"{'finished' if (folder / 'done').exists() else 'trained'}: {folder}")
        return 0
    if args.time_steps:
        cost = {"seconds": 100.0 * args.value, "low": 90.0 * args.value, "high": 120.0 * args.value, "measuring": 0}
        print("timed: " + json.dumps(cost))
        return 0
    first = not (folder / "resume.pt").exists()
    with runs.start("fake", args, "fake") as run, runs.stoppable() as stop:
        until = time.time() + (0.1 if args.mode != "meet" else 20)
        note("begin", args.value)
        print("threads", os.environ["OMP_NUM_THREADS"])
        if args.mode == "fail" and not Path("mended").exists():
            raise ContentError("the loss is NaN in step 7")
        if args.mode == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        while time.time() < until or (args.mode == "wait" and not Path("go").exists()):
            if args.mode == "meet" and Path("events.txt").read_text().count("begin") >= int(os.environ["MEET"]):
                break
            if stop.requested or (args.mode == "again" and first):
                (folder / "resume.pt").touch()
                raise Interrupted("saved")
            time.sleep(0.01)
        if args.mode != "hollow":
            run.finish({"last": {"score": args.value / 3}, "curve": [1, 2], "value": -args.value})
        note("end", args.value)
    return 0


if __name__ == "__main__":
    cli.run(main)
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("MEET", "2")
    (tmp_path / "fake.py").write_text(FAKE)
    return tmp_path


def grid(here, rest, name="grid.yaml", script=None):
    (here / name).write_text(f"script: {script or here / 'fake.py'}\n{rest}\n")
    return name


def events(here, word="begin"):
    """[(value, pid, time)] of the fake runs that began or ended, in order."""
    file = here / "events.txt"
    rows = [row.split() for row in file.read_text().splitlines()] if file.exists() else []
    return [(int(value), int(pid), float(at)) for what, value, pid, at, *_ in rows if what == word]


def most_at_once(here, gpu=None):
    """The most runs that were at work together (on that GPU)."""
    rows = [row.split() for row in (here / "events.txt").read_text().splitlines()]
    changes = sorted((float(at), 1 if word == "begin" else -1) for word, _, _, at, on, _ in rows if gpu in (None, on))
    return max(sum(change for _, change in changes[:n + 1]) for n in range(len(changes)))


def state(here):
    """How each run that was ever started ended, as recorded."""
    files = sorted(here.glob("runs/sweeps/*/*/record.json"))
    return {f.parent.name: json.loads(f.read_text())["outcome"] for f in files}


def until(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for 30 s")


def launched(path):
    return subprocess.Popen([sys.executable, str(ROOT / "scripts" / "sweep.py"), "run", path, "--jobs", "2"],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


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
    (log,) = here.glob("runs/sweeps/grid-*/000/run.log")
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
    assert most_at_once(here) == 2
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
    first, second, last, _ = capsys.readouterr().out.splitlines()
    assert first.endswith("--label l --value 1 --runs elsewhere --smoke") and "--value 2" in second
    assert "elsewhere/smoke/sweeps/grid-" in last
    two, three = (sweep.Sweep.read(sweep.make_parser().settings(["plan", path, *more])).home
                  for more in ([], ["--set", "value=4"]))
    assert two != three  # another grid has another folder


def test_the_gpus_are_shared_out(here, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    path = grid(here, "grid: {value: [1, 2, 3, 4, 5, 6]}")
    assert sweep.main(["run", path, "--jobs", "6"]) == 0
    assert most_at_once(here, "2") == most_at_once(here, "5") == 1
    (here / "events.txt").unlink()
    monkeypatch.setenv("MEET", "4")  # the first three wait for a fourth
    path = grid(here, "base: {mode: meet}\ngrid: {value: [1, 2, 3, 4, 5, 6]}")
    assert sweep.main(["run", path, "--per_gpu", "2"]) == 0
    assert most_at_once(here, "2") == most_at_once(here, "5") == 2
    (here / "events.txt").unlink()
    path = grid(here, "base: {mode: meet, device: cpu}\ngrid: {value: [7, 8, 9, 10]}")
    assert sweep.main(["run", path, "--jobs", "4"]) == 0  # four at once, since they ask for none
    assert most_at_once(here, "2,5") == 4


@pytest.mark.parametrize(("said", "names"), [
    ("", []), ("-1", []), ("NoDevFiles", []), ("0", ["0"]), (" 2, 5", ["2", "5"]), ("1,-1,2", ["1"]),
    ("GPU-8f2e,GPU-11", ["GPU-8f2e", "GPU-11"]), ("MIG-1-a,MIG-2", ["MIG-1-a", "MIG-2"]),
])  # fmt: skip
def test_cuda_visible_devices_is_read_as_cuda_reads_it(monkeypatch, said, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert sweep_work.gpus() == names


def test_without_it_the_machine_is_asked(here, monkeypatch):
    listing = ("GPU 0: NVIDIA H200 (UUID: GPU-aa-1)\nGPU 1: NVIDIA H200 (UUID: GPU-bb-2)\n"
               "  MIG 3g.71gb     Device  0: (UUID: MIG-c)\n  MIG 3g.71gb     Device  1: (UUID: MIG-d)\n"
               "GPU 2: NVIDIA H200 (UUID: GPU-ee-5)\n")
    program(here, "nvidia-smi", f"print({listing!r})")
    monkeypatch.setenv("PATH", str(here / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert sweep_work.gpus() == ["GPU-aa-1", "MIG-c", "MIG-d", "GPU-ee-5"]
    monkeypatch.setenv("PATH", "")
    assert sweep_work.gpus() == []


def program(here, name, code):
    """An executable bin/NAME that runs this Python code."""
    (here / "bin").mkdir(exist_ok=True)
    (here / "bin" / name).write_text(f"#!{sys.executable}\n{code}\n")
    (here / "bin" / name).chmod(0o755)


def minutes(said):
    """The minutes of work, and their bounds, in what plan prints."""
    number = r"([\d.]+) min"
    return [float(m) for m in re.search(rf"about {number} of computing \({number} to {number}\)", said).groups()]


def test_the_plan_says_what_the_runs_cost(here, capsys):
    path = grid(here, "grid: {value: [1, 3], seed: [0, 1]}")  # a seed costs nothing
    sweep.main(["plan", path])
    assert "cost: not known of 4 runs, 2 of which cost differently: plan --time" in capsys.readouterr().out
    sweep.main(["plan", path, "--time", "--jobs", "2"])
    said = capsys.readouterr().out
    assert not (here / "runs").exists() and not events(here)
    for got, seconds in zip(minutes(said), (800, 720, 960)):
        assert seconds / 60 - 0.1 < got < seconds / 60 + 0.7  # four times the start of a process
    assert "with 2 at a time; from timed steps of 2 runs" in said
    assert 6.6 < float(re.search(r" ([\d.]+) min with 2 at a time", said)[1]) < 7.1
    sweep.main(["run", path, "--set", "value=1"])  # the other half of the grid is still to do
    for meta, seconds in zip(sorted(here.glob("runs/fake/*/meta.json")), (240, 480)):
        meta.write_text(json.dumps({**json.loads(meta.read_text()), "seconds": seconds}))
    (here / "runs/fake").joinpath(sorted(p.name for p in here.glob("runs/fake/*"))[0], "done").unlink()
    capsys.readouterr()
    sweep.main(["plan", path])
    said = capsys.readouterr().out
    assert "cost: not known of 2 runs, 1 of which" in said
    assert "cost of 1 runs: about 8 min of computing (8 min to 8 min)" in said and "from finished runs alike" in said
    path = grid(here, "grid: {value: [-1]}")
    with pytest.raises(ContentError, match="below 0"):
        sweep.main(["plan", path, "--time"])
    (here / "fake.py").write_text(FAKE.replace("    if args.time_steps:", "    if args.time_steps and 0:"))
    path = grid(here, "base: {mode: fail}")
    with pytest.raises(ContentError, match=r"000 \(the one run\) cannot be timed, exit 4: fake.py: the loss is NaN"):
        sweep.main(["plan", path, "--time"])


def test_collect_gives_one_table_in_the_order_of_the_grid(here, capsys):
    path = grid(here, "base: {label: x}\ngrid: {value: [5, 4], seed: [1, 0]}")
    with pytest.raises(FileProblem, match="no run of .* is finished"):
        sweep.main(["collect", path])
    sweep.main(["run", path, "--set", "value=5"])
    capsys.readouterr()
    assert sweep.main(["collect", path, "--out", "half.csv"]) == 0
    assert "left out: 002, 003" in capsys.readouterr().err
    sweep.main(["run", path])
    assert sweep.main(["collect", path, "--out", "all.csv"]) == 0
    rows = (here / "all.csv").read_text().splitlines()
    assert rows[0] == "value,seed,last.score,results.value"  # the setting hides a result of the same name
    assert [row.split(",")[:2] for row in rows[1:]] == [["5", "1"], ["5", "0"], ["4", "1"], ["4", "0"]]
    assert rows[1] == f"5,1,{5 / 3},-5"
    assert (here / "half.csv").read_text().splitlines() == rows[:3]
    capsys.readouterr()
    sweep.main(["collect", path])
    assert capsys.readouterr().out.startswith("value  seed  last.score")


# ---- what goes wrong -----------------------------------------------------------------------------------------------

def test_failures_are_reported_at_the_end_and_retried_on_demand(here, capsys):
    path = grid(here, "grid: {mode: [fail, done, killed, hollow]}")
    with pytest.raises(ContentError, match="3 of 4 runs failed.*--retry"):
        sweep.main(["run", path, "--jobs", "2"])
    said = capsys.readouterr().out
    assert "failed: 000, exit 4: fake.py: the loss is NaN in step 7" in said
    assert "failed: 002, killed by SIGKILL (out of memory?)" in said
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
    (log,) = here.glob("runs/sweeps/*/000/run.log")
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
    with pytest.raises(FileProblem, match="at work on this grid.*process .*they save"):  # its runs are
        sweep.main(["run", path])
    for _, pid, _ in events(here):
        os.kill(pid, signal.SIGTERM)
    home = next(here.glob("runs/sweeps/*"))
    until(lambda: not sweep.at_work(home))
    (here / "go").touch()
    assert sweep.main(["run", path]) == 0
    assert sorted(value for value, _, _ in events(here, "end")) == [1, 2]


def test_twelve_runs_killed_twice_are_each_done_once_and_give_the_same_table(here):
    path = grid(here, "grid: {value: [1, 2, 3, 4, 5, 6], seed: [0, 1]}")

    def work_until(count, number):
        process = launched(path)
        until(lambda: len(events(here, "end")) >= count or process.poll() is not None)
        os.killpg(process.pid, number)
        said, _ = process.communicate(timeout=60)
        until(lambda: not sweep.at_work(next(here.glob("runs/sweeps/*"))))  # what kill -9 left ends by itself
        return process.returncode, said

    assert work_until(3, signal.SIGKILL)[0] == -signal.SIGKILL
    code, said = work_until(7, signal.SIGINT)
    assert code == Interrupted.exit_code and "runs to go" in said
    assert 7 <= len(events(here, "end")) < 12
    (half,) = [home / ".sweep.json.tmp-1" for home in here.glob("runs/sweeps/*")]
    half.write_text("{")  # as kill -9 leaves it in the middle of a file
    assert sweep.main(["run", path, "--jobs", "2"]) == 0
    assert not half.exists()
    assert sorted(value for value, _, _ in events(here, "end")) == sorted(2 * [1, 2, 3, 4, 5, 6])
    sweep.main(["collect", path, "--out", "disturbed.csv"])
    sweep.main(["run", path, "--jobs", "2", "--runs", "calm"])
    sweep.main(["collect", path, "--runs", "calm", "--out", "calm.csv"])
    assert (here / "disturbed.csv").read_bytes() == (here / "calm.csv").read_bytes()
    assert len((here / "calm.csv").read_text().splitlines()) == 13


def test_a_full_disk_leaves_no_process_behind(here, monkeypatch):
    path = grid(here, "base: {mode: wait}\ngrid: {value: [1, 2, 3]}")
    plain, written = sweep.runs.write_json, []

    def full(file, value):
        written.append(file)
        if len(written) == 3:  # the sweep's own, the first run's, the second run's
            until(lambda: len(events(here)) == 2)
            raise FileProblem("cannot write: no space left on device")
        plain(file, value)

    monkeypatch.setattr(sweep.runs, "write_json", full)
    with pytest.raises(FileProblem, match="no space"):
        sweep.main(["run", path, "--jobs", "2"])
    for _, pid, _ in events(here):
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
    ("each: [{value: 1, seed: 2}, {value: 1, seed: 2}]", "line 2: value=1 seed=2 stands there twice"),
    ("base: {time_steps: 3}", "line 2: time_steps is no setting"),
    ("grid: {device: ['cuda:1']}", "run 000 .*device cuda:1: a sweep shares out the GPUs itself"),
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
    with pytest.raises(UsageError, match="plan .*or run, status or collect"):
        sweep.main([grid(here, "")])
    assert not (here / "runs").exists()


def test_the_folder_of_another_grid_is_refused(here):
    path = grid(here, "grid: {value: [1, 2]}")
    other = grid(here, "grid: {value: [3]}", "other.yaml")
    sweep.main(["run", path])
    (folder,) = here.glob("runs/sweeps/*")
    folder.rename(sweep.Sweep.read(sweep.make_parser().settings(["plan", other])).home)
    for action in ("plan", "run", "status", "collect"):
        with pytest.raises(ContentError, match="other-.* is the folder of another grid's sweep"):
            sweep.main([action, other])


# ---- on a cluster --------------------------------------------------------------------------------------------------

# A Slurm of this machine: its four programs in one file, jobs in the folder queue, one file each.
SLURM = r'''
import os, re, subprocess, sys
from pathlib import Path
home = Path(__file__).resolve().parent.parent
name, argv = Path(sys.argv[0]).name, sys.argv[1:]
if argv[:1] == ["task"]:  # one task: its script, and again as long as somebody puts it into the queue again
    job, place = argv[1], home / "queue" / argv[1]
    number, _, task = job.partition("_")
    env = {**os.environ, "JOB": job, "SLURM_JOB_ID": number}
    if task:
        env |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task}
    while place.read_text() != "RUNNING":
        place.write_text("RUNNING")
        subprocess.run(["bash", home / f"submitted.{number}"], env=env)
    place.unlink()
elif name == "squeue":
    print("\n".join(f"{job.name} {job.read_text()}" for job in sorted((home / "queue").glob("*"))))
elif name == "scontrol":
    (home / "queue" / argv[1]).write_text("REQUEUED")
elif name == "srun":
    out = open(argv[argv.index("--output") + 1].replace("%A_%a", os.environ["JOB"]).replace("%t", "0"), "a")
    program = argv[argv.index(sys.executable):]
    sys.exit(subprocess.run(program, stdout=out, stderr=out).returncode)
else:
    text = Path(argv[0]).read_text()
    if "--partition=closed" in text:
        sys.exit("sbatch: error: invalid partition specified: closed")
    tasks = int(re.search(r"--array=0-(\d+)", text)[1]) + 1 if "--array" in text else 1
    (home / "queue").mkdir(exist_ok=True)
    number = len(list(home.glob("submitted.*"))) + 7
    (home / f"submitted.{number}").write_text(text)
    for task in range(tasks):
        job = f"{number}_{task}" if tasks > 1 else f"{number}"
        (home / "queue" / job).write_text("PENDING")
        subprocess.Popen([sys.executable, __file__, "task", job], start_new_session=True,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"Submitted batch job {number}")
'''


@pytest.fixture
def slurm(here, monkeypatch):
    pytest.importorskip("submitit")
    for name in ("sbatch", "srun", "squeue", "scontrol"):
        program(here, name, SLURM)
    monkeypatch.setenv("PATH", f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return here


def test_slurm_jobs_go_on_where_they_were_stopped(slurm, capsys):
    path = grid(slurm, "base: {mode: wait}\ngrid: {value: [1, 2]}")
    submit = ["run", path, "--cluster", "slurm", "--partition", "p", "--timeout_min", "60", "--jobs", "1",
              "--mem", "2GB", "--gpus_per_node", "1", "--sbatch", "account=lab"]
    assert sweep.main(submit) == 0
    text = (slurm / "submitted.7").read_text()
    for flag in ("time=60", "partition=p", "mem=2GB", "gpus-per-node=1", "cpus-per-task=1", "account=lab", "requeue",
                 "array=0-1%1", "signal=USR2@120"):
        assert f"#SBATCH --{flag}\n" in text
    until(lambda: len(events(slurm)) == 2)
    capsys.readouterr()
    sweep.main(submit)  # a second time: nothing
    assert "2 runs: 2 running; 0 to submit" in capsys.readouterr().out and not (slurm / "submitted.8").exists()
    sweep.main(["run", path])  # nor here
    assert "2 runs: 2 running; 0 to do" in capsys.readouterr().out

    def job_of(value):  # the process in the job, which started the run
        rows = [row.split() for row in (slurm / "events.txt").read_text().splitlines()]
        return next(int(parent) for word, v, *_, parent in rows if (word, v) == ("begin", str(value)))

    os.kill(job_of(1), signal.SIGUSR2)  # its time is nearly up
    until(lambda: [value for value, _, _ in events(slurm)].count(1) == 2)  # it has saved, and goes on
    os.kill(job_of(2), signal.SIGTERM)  # scancel
    until(lambda: not (slurm / "queue/7_1").exists())
    capsys.readouterr()
    sweep.main(["status", path])
    assert re.search(r"000  running.*\n001  resumable", capsys.readouterr().out)
    sweep.main(submit)
    until(lambda: len(events(slurm)) == 4)
    (slurm / "go").touch()
    until(lambda: not list((slurm / "queue").glob("*")))
    capsys.readouterr()
    sweep.main(["status", path])
    assert "2 runs: 2 done; sweep" in capsys.readouterr().out
    assert sorted(value for value, _, _ in events(slurm, "end")) == [1, 2]
    assert sweep.main(["collect", path, "--out", "t.csv"]) == 0
    assert len((slurm / "t.csv").read_text().splitlines()) == 3


def test_what_becomes_of_jobs_is_said(slurm, capsys, monkeypatch):
    path = grid(slurm, "grid: {mode: [fail, killed]}")
    submit = ["run", path, "--cluster", "slurm"]
    with pytest.raises(UsageError, match="sbatch refuses: sbatch: error: invalid partition"):
        sweep.main([*submit, "--partition", "closed"])
    with pytest.raises(UsageError, match="--sbatch account: KEY=VALUE"):
        sweep.main([*submit, "--sbatch", "account"])
    assert sweep.main(submit) == 0
    until(lambda: not list((slurm / "queue").glob("*")))
    capsys.readouterr()
    sweep.main(["status", path])
    said = capsys.readouterr().out
    assert "exit 4: fake.py: the loss is NaN" in said and "killed by SIGKILL (out of memory?)" in said
    (slurm / "mended").touch()
    sweep.main(submit)
    assert "2 failed; 0 to submit" in capsys.readouterr().out
    program(slurm, "srun", "raise SystemExit('no such image')")
    sweep.main([*submit, "--set", "mode=[done]"])
    until(lambda: not list((slurm / "queue").glob("*")))
    sweep.main(["status", path, "--set", "mode=[done]"])
    assert re.search("000  new .*\n     its job 8 has left the queue without a word", capsys.readouterr().out)
    program(slurm, "squeue", "raise SystemExit('slurm_load_jobs error: Unable to contact slurm controller')")
    with pytest.raises(FileProblem, match="squeue does not answer.*Unable to contact"):
        sweep.main(submit)
    with pytest.raises(FileProblem, match="no run of .* is finished"):
        sweep.main(["collect", path])  # which asks the folders alone


def test_without_submitit_or_slurm_a_cluster_is_refused(here, monkeypatch):
    submit = ["run", grid(here, "base: {value: 1}"), "--cluster", "slurm"]
    monkeypatch.delitem(sys.modules, "scripts.sweep_slurm", raising=False)
    monkeypatch.delattr("scripts.sweep_slurm", raising=False)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "submitit", None)
        with pytest.raises(UsageError, match="pip install submitit"):
            sweep.main(submit)
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="srun"):
        sweep.main(submit)


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


def test_a_run_of_several_networks_is_done_when_all_of_them_are(here, capsys):
    path = grid(here, "base: {net: mlp, dataset: digits, epochs: 1, device: cpu}\ngrid: {members: [1, 2]}",
                script="python -m ensembles.train")
    assert sweep.main(["run", path, "--smoke", "--set", "members=[1]"]) == 0
    capsys.readouterr()
    sweep.main(["plan", path, "--smoke"])
    assert "2 runs: 1 done, 1 new" in capsys.readouterr().out
    assert sweep.main(["run", path, "--smoke"]) == 0
    assert len(list(here.glob("runs/smoke/ensembles/*/model.safetensors"))) == 2


def test_a_training_times_itself(here, capsys):
    path = grid(here, "base: {dataset: digits, epochs: 40, imgs: none, device: cpu, net: mlp}\ngrid: {seed: [0, 1]}",
                script="main.py")
    sweep.main(["plan", path, "--smoke", "--time"])
    assert "from timed steps of 1 runs" in capsys.readouterr().out
    assert not (here / "runs").exists()


def test_the_example_is_planned_without_torch():
    code = ("import sys\nfrom scripts import sweep\nsweep.make_parser().format_help()\n"
            "sweep.main(['plan', 'configs/sweep_example.yaml', '--set', 'device=cpu'])\n"
            "print([m for m in ('torch', 'wandb') if m in sys.modules])")
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "\n6 runs: " in said and said.endswith("[]\n")
