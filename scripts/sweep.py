"""Run a grid of settings of one script, several processes at a time; what is finished is not done again.

    python scripts/sweep.py run configs/sweep_example.yaml --jobs 2

plan lists the runs and starts nothing; run does those that are missing and goes on with those broken off; status says
how far a sweep is. The grid is a YAML file: script, base (settings of every run), grid (a list of values a setting;
the last one varies fastest). Ctrl-C lets the running ones save; the same command goes on.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from landscape import cli, runs
from landscape.errors import ContentError, FileProblem, Interrupted, Refusal, UsageError
from models import ModelError

ROOT = Path(__file__).resolve().parent.parent
OWN = ("runs", "smoke", "dry_run", "force")  # settings of the sweep, or none that a run of a sweep may have
POLL = 0.05  # seconds between looks at the running processes
STARTS = 3  # how often one call starts a run that leaves by itself with 75, "run me again"


def make_parser():
    parser = cli.Parser("scripts/sweep.py", __doc__)
    parser.add_argument("action", choices=("plan", "run", "status"))
    parser.add_argument("grid", metavar="GRID.yaml")
    parser.add_argument("--jobs", type=cli.natural, default=0, metavar="N",
                        help="processes at a time, one thread each; 0: one a core")
    parser.add_argument("--retry", action="store_true", help="start those that failed again, too")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="replace or add settings; KEY=[A,B] is a list for the grid")
    g = parser.group("output")
    g.add_argument("--runs", default="runs", metavar="DIR",
                   help="the folder of all runs; the sweep's own is DIR/sweeps/NAME-HASH")
    g.add_argument("--smoke", "--dryrun", action="store_true", help="every run with --smoke, in DIR/smoke")
    g.add_argument("--dry_run", action="store_true", help="the same as plan")
    return parser


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0].endswith((".yaml", ".yml")):
        raise UsageError(f"say what to do with it: sweep.py plan {argv[0]}, or run, or status")
    args = make_parser().settings(argv)
    sweep = Sweep.read(args)
    if args.action == "status":
        return status(sweep)
    if args.action == "plan" or args.dry_run:
        return plan(sweep)
    lock = runs.hold(sweep.home)
    try:
        return execute(sweep, args.jobs or cores(), args.retry, lock)
    finally:
        runs.release(lock)


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- the grid file -------------------------------------------------------------------------------------------------

def read_grid(path):
    """(script, base, grid, each, lines): settings as they stand, and lines[section, key] for messages."""
    import yaml

    try:
        text = Path(path).read_text()
    except OSError as e:
        raise FileProblem(f"grid {path}: {e.strerror.lower()}") from None
    except UnicodeDecodeError:
        raise UsageError(f"grid {path}: not a text file") from None
    try:
        values = yaml.load(text, strict_loader()) or {}
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as e:
        raise UsageError(f"grid {path}: not YAML: {' '.join(str(e).split())}") from None
    except UsageError as e:
        raise UsageError(f"grid {path}, {e}") from None
    if not isinstance(values, dict):
        raise UsageError(f"grid {path}: a mapping with script, base and grid is expected")
    lines = {}
    for key, node in root.value if values else []:
        lines[None, key.value] = key.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            lines.update({(key.value, k.value): k.start_mark.line + 1 for k, _ in node.value})
    known = ("script", "base", "grid", "each")
    for key in values:
        if key not in known:
            raise UsageError(f"grid {path}, line {lines.get((None, str(key)), '?')}: unknown key {key!r}"
                             f"{cli.suggestion(str(key), known)}; settings of the script go under base or grid")
    if not isinstance(values.get("script"), str):
        raise UsageError(f"grid {path}: it names no script; write 'script: main.py', or another")
    parts = []
    for section in ("base", "grid"):
        part = values.get(section) or {}
        if not isinstance(part, dict):
            where = f"grid {path}, line {lines.get((None, section), '?')}"
            raise UsageError(f"{where}: {section} is a mapping of settings, not {part!r}")
        parts.append(part)
    each = values.get("each") or []
    if not (isinstance(each, list) and all(isinstance(e, dict) and e for e in each)):
        raise UsageError(f"grid {path}, line {lines.get((None, 'each'), '?')}: each is a list of mappings of settings, "
                         "such as [{net: mlp}, {net: mcnn, width: 12}]")
    return values["script"], *parts, each, lines


def strict_loader():
    """yaml.SafeLoader that refuses a key given twice, where YAML itself would quietly take the last."""
    import yaml

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in seen:
                        raise UsageError(f"line {key.start_mark.line + 1}: the key {key.value} is given twice")
                    seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep)

    return Strict


def set_values(words, base, grid):
    """--set KEY=VALUE: VALUE, read as YAML, replaces what base or grid say about KEY. Returns the keys."""
    import yaml

    keys = []
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise UsageError(f"--set {word}: KEY=VALUE is expected, and GRID.yaml before it")
        try:
            value = yaml.load(value, strict_loader()) if value else ""
        except yaml.YAMLError:
            pass  # not YAML: a plain word
        part, other = (grid, base) if isinstance(value, list) else (base, grid)
        other.pop(key, None)
        part[key] = value
        keys.append(key)
    return keys


def find_script(script, where):
    """(words that start it, its module) of 'main.py' or 'python -m regions.train'."""
    words = shlex.split(script)
    words = words[1:] if words[:1] == ["python"] else words
    try:
        if len(words) == 2 and words[0] == "-m":
            module = importlib.import_module(words[1])
        elif len(words) == 1 and words[0].endswith(".py"):
            path = ROOT / words[0]  # an absolute path stays what it is
            if not path.is_file():
                near = cli.suggestion(words[0], [p.name for p in ROOT.glob("*.py")])
                raise UsageError(f"{where}: there is no script {path}{near}")
            spec = importlib.util.spec_from_file_location(f"swept_{path.stem}", path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            raise UsageError(f"{where}: script is a file such as main.py, or python -m PACKAGE.MODULE, not {script!r}")
    except ModuleNotFoundError as e:
        raise UsageError(f"{where}: script {script}: {e}") from None
    if not (hasattr(module, "make_parser") and hasattr(module, "main")):
        raise UsageError(f"{where}: {script} has no make_parser() and main(argv), so its settings cannot be checked")
    return words, module


def flags(action, value):
    """The words of the command line that give an action a value of the YAML file."""
    if isinstance(action, argparse._StoreTrueAction):
        return action.option_strings[:1] if value else []
    if isinstance(action, argparse.BooleanOptionalAction):
        return [action.option_strings[0 if value else -1]]
    name = action.option_strings[0]
    if isinstance(value, list) and action.nargs:
        return [name, *map(str, value)]
    value = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


# ---- the sweep -----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Member:
    """One run of a sweep. words: its command line after `python`. folder: its run folder, None where the script's
    --dry_run names none. draws: the script has work left when the folder is done."""

    number: str
    label: str
    words: tuple
    folder: Path | None
    draws: bool

    @property
    def command(self):
        return shlex.join(["python", *self.words])


@dataclass
class Sweep:
    """The members of a grid in order, and what earlier calls recorded about them in home/state.json."""

    home: Path
    members: list
    records: dict

    @classmethod
    def read(cls, args):
        """The sweep that the arguments describe, every member checked by the script itself; nothing is written."""
        path = args.grid
        script, base, grid, each, lines = read_grid(path)
        given = set_values(args.set, base, grid)
        words, module = find_script(script, f"grid {path}, line {lines.get((None, 'script'), '?')}")
        parser = module.make_parser()
        actions = {f.lstrip("-").replace("-", "_"): a for a in parser._actions for f in a.option_strings}
        options, origin = {}, {}  # by the script's own name of a setting: its (label, flags) in order; (section, key)
        for section, key, values in [("base", k, [v]) for k, v in base.items()] + [("grid", *i) for i in grid.items()]:
            where = "--set" if key in given else f"grid {path}, line {lines.get((section, str(key)), '?')}"
            if not (isinstance(values, list) and values):
                raise UsageError(f"{where}: grid takes a list of values for {key}, not {values!r}; one value for all "
                                 "runs goes under base")
            for value in values:
                dest = checked(parser, actions, where, key, value)
                if origin.setdefault(dest, (section, key)) != (section, key):
                    raise UsageError(f"{where}: {key} is given already, as {origin[dest][1]} under {origin[dest][0]}")
                option = (f"{key}={shown(value)}" if section == "grid" else "", flags(actions[key], value))
                if option in options.setdefault(dest, []):
                    raise UsageError(f"{where}: {key} has the value {shown(value)} twice")
                options[dest].append(option)
        together = []
        for settings in each:
            words_of, labels_of = [], []
            for key, value in settings.items():
                where = f"grid {path}, line {lines.get((None, 'each'), '?')}"
                dest = checked(parser, actions, where, key, value)
                if origin.setdefault(dest, ("each", key))[0] != "each":
                    raise UsageError(f"{where}: {key} is given already, under {origin[dest][0]}")
                words_of += flags(actions[key], value)
                labels_of.append(f"{key}={shown(value)}")
            together.append((" ".join(labels_of), words_of))
        if together:
            options = {"each": together, **options}
        choices = [([label for label, _ in c if label], [w for _, f in c for w in f])
                   for c in itertools.product(*options.values())]
        extra = common(parser, args, options)
        members = [make_member(f"{n:03}", " ".join(labels) or "the one run", words, own + extra, module)
                   for n, (labels, own) in enumerate(choices)]
        name = re.sub(r"[^\w.=+-]+", "-", Path(path).stem)
        home = Path(args.runs) / ("smoke" if args.smoke else "") / "sweeps"
        home = home / f"{name}-{runs.hash8([words, [own for _, own in choices], args.smoke])}"
        state = home / "state.json"
        return cls(home, members, runs.read_json(state)["runs"] if state.exists() else {})

    def record(self, member, **changes):
        """Note something about a member, and write state.json."""
        self.records.setdefault(member.number, {"command": member.command, "starts": 0}).update(changes)
        runs.write_json(self.home / "state.json", {"runs": self.records})

    def log(self, member):
        return self.home / "logs" / f"{member.number}.log"

    def state(self, member):
        """done, failed, resumable or new: by the run folder where it is known, else by what was recorded."""
        outcome = self.records.get(member.number, {}).get("outcome")
        if member.folder is None:
            known = {"done": "done", "failed": "failed", "interrupted": "resumable"}  # running: of a killed sweep
            return known.get(outcome, "new")
        finished = (member.folder / "done").exists()
        if finished and (outcome == "done" or not member.draws):
            return "done"
        if outcome == "failed":
            return "failed"
        return "resumable" if finished or (member.folder / "resume.pt").exists() else "new"

    def counts(self):
        count = Counter(self.state(m) for m in self.members)
        said = ", ".join(f"{count[s]} {s}" for s in ("done", "resumable", "new", "failed") if count[s])
        return f"{len(self.members)} runs: {said}"


def checked(parser, actions, where, key, value):
    """The script's own name of a setting, if its parser takes this value; else UsageError that begins with where."""
    dest, _ = parser.checked(where, key, value, actions)
    if dest in OWN:
        raise UsageError(f"{where}: {key} is no setting of a sweep's runs; see sweep.py --help for --runs and --smoke")
    return dest


def shown(value):
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def common(parser, args, options):
    """What every command ends with: one thread, the folder of runs, --smoke; as far as the script has such flags."""
    known = {f for a in parser._actions for f in a.option_strings}
    extra = ["--threads", "1"] if "--threads" in known and "threads" not in options else []
    if args.runs != "runs" and "--runs" in known:
        extra += ["--runs", args.runs]
    if args.smoke:
        if "--smoke" not in known:
            raise UsageError(f"--smoke: {parser.script} has no such flag")
        extra.append("--smoke")
    return extra


def make_member(number, label, script, words, module):
    """A Member, with its settings checked against each other and its folder found by the script's own --dry_run,
    called in this process; the folder stands in its first line, as 'trained: runs/…'."""
    said = io.StringIO()
    try:
        parser = module.make_parser()
        draws = getattr(parser.settings(words), "imgs", "none") != "none"
        if any("--dry_run" in a.option_strings for a in parser._actions):
            with contextlib.redirect_stdout(said):
                module.main([*words, "--dry_run"])
    except ModelError as e:
        raise UsageError(f"run {number} ({label}): {e}") from None
    except Refusal as e:
        raise type(e)(f"run {number} ({label}): {e}") from None
    found = re.match(r"(?:finished|resumed|trained): (.+)\n", said.getvalue())
    return Member(number, label, (*script, *words), Path(found[1]) if found else None, draws)


# ---- plan and status -----------------------------------------------------------------------------------------------

def plan(sweep):
    for member in sweep.members:
        print(f"{member.number}  {sweep.state(member):<9}  {member.command}")
    print(f"{sweep.counts()}; sweep: {sweep.home}")
    return 0


def status(sweep):
    live = running(sweep.home)
    for member in sweep.members:
        record = sweep.records.get(member.number, {})
        state = sweep.state(member)
        if live and record.get("outcome") == "running" and state != "done":
            state = "running"
        took = f"{record['seconds']:.1f} s" if "seconds" in record else ""
        print(f"{member.number}  {state:<9}  {took:>9}  {member.label}")
        if state == "failed":
            print(f"     {reason(record['exit'])}: {last_line(sweep.log(member))}  ({sweep.log(member)})")
    print(f"{sweep.counts()}; sweep: {sweep.home}{' (at work)' * live}")
    return 0


def running(home):
    """Whether a process (a sweep, or what a killed one left running) holds the sweep's folder."""
    if not home.is_dir():
        return False
    try:
        runs.release(runs.hold(home))
    except FileProblem:
        return True
    return False


def reason(code):
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return "ended without finishing its run" if code == 0 else f"exit {code}"


def last_line(log):
    """The last line of a log that says something."""
    try:
        with open(log, "rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - 8192))
            rows = f.read().decode(errors="replace").splitlines()
    except OSError:
        return "no log"
    return next((r.strip() for r in reversed(rows) if r.strip() and not r.startswith("$ ")), "it said nothing")


# ---- run -----------------------------------------------------------------------------------------------------------

def execute(sweep, jobs, retry, lock):
    """Run what is missing, jobs at a time. Raises Interrupted when stopped, ContentError when members failed."""
    wanted = ("new", "resumable", "failed") if retry else ("new", "resumable")
    todo = [m for m in sweep.members if sweep.state(m) in wanted]
    print(f"{sweep.counts()}; {len(todo)} to do, {jobs} at a time; sweep: {sweep.home}", flush=True)
    stopped = work_off(sweep, todo, jobs, lock) if todo else None
    failed = [m for m in sweep.members if sweep.state(m) == "failed"]
    for member in failed:
        code = sweep.records[member.number]["exit"]
        print(f"failed: {member.number}, {reason(code)}: {last_line(sweep.log(member))}\n"
              f"    {member.command}\n    log: {sweep.log(member)}")
    left = [m for m in sweep.members if sweep.state(m) in ("new", "resumable")]
    print(f"{sweep.counts()}; sweep: {sweep.home}", flush=True)
    if stopped:
        raise Interrupted(f"stopped by {stopped} with {len(left)} runs to go; what was running has saved its state: "
                          "run the same command again to go on")
    if failed:
        raise ContentError(f"{len(failed)} of {len(sweep.members)} runs failed (listed above); when mended, run the "
                           "same command again with --retry")
    if left:
        raise Interrupted(f"{len(left)} runs were interrupted from outside; run the same command again to go on")
    return 0


def work_off(sweep, todo, jobs, lock):
    """The pool: at most jobs processes, never two in one run folder. Returns the signal that stopped it, or None."""
    waiting, active, starts, ended, told = deque(todo), {}, Counter(), 0, False
    with runs.stoppable() as stop:
        try:
            while active or (waiting and not told):
                if stop.requested and not told:
                    told = True
                    print(f"{stop.requested}: waiting for {len(active)} runs to save their state", flush=True)
                    for child, _ in active.values():
                        child.terminate()
                while not told and len(active) < jobs and (member := startable(waiting, active)):
                    waiting.remove(member)
                    starts[member] += 1
                    active[member] = start(sweep, member, lock), time.monotonic()
                for member, (child, began) in list(active.items()):
                    code = child.poll()
                    if code is None:
                        continue
                    del active[member]
                    outcome = settle(sweep, member, code, time.monotonic() - began)
                    again = outcome == "interrupted" and not told and starts[member] < STARTS
                    if again:
                        waiting.append(member)
                    ended += outcome != "interrupted"
                    print(f"[{ended}/{len(todo)}] {member.number} {outcome}{' (goes on later)' * again} after "
                          f"{time.monotonic() - began:.1f} s: {member.label}", flush=True)
                time.sleep(POLL)
        except BaseException as e:  # a second Ctrl-C, a full disk: leave no process behind, whatever it was
            for child, _ in active.values():
                child.kill() if isinstance(e, KeyboardInterrupt) else child.terminate()
            for child, _ in active.values():
                child.wait()
            raise
        return stop.requested


def startable(waiting, active):
    """The first member waiting whose folder no running one writes (settings outside a run's name share a folder)."""
    busy = {m.folder for m in active} - {None}
    return next((m for m in waiting if m.folder not in busy), None)


def start(sweep, member, lock):
    """The process of a member, with one thread and its words appended to its log.

    It has a session of its own, so that Ctrl-C reaches it once, through us. It inherits the sweep's lock: if we are
    killed, the folder stays held as long as a member still runs, and a second sweep cannot start it twice.
    """
    log = sweep.log(member)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    words = list(member.words)
    if words[0] != "-m":
        words[0] = str(ROOT / words[0])
    record = sweep.records.get(member.number, {})
    sweep.record(member, outcome="running", exit=None, starts=record.get("starts", 0) + 1)
    log.parent.mkdir(exist_ok=True)
    with open(log, "ab") as out:
        out.write(f"$ {member.command}\n".encode())
        out.flush()
        return subprocess.Popen([sys.executable, *words], env=env, stdin=subprocess.DEVNULL, stdout=out,
                                stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(lock,))


def settle(sweep, member, code, seconds):
    """Record how a member ended; returns done, interrupted or failed."""
    if code in (Interrupted.exit_code, -signal.SIGTERM):  # -SIGTERM: stopped before it could listen
        outcome = "interrupted"
    elif code == 0 and (member.folder is None or (member.folder / "done").exists()):
        outcome = "done"
    else:
        outcome = "failed"
    sweep.record(member, outcome=outcome, exit=code, seconds=round(seconds, 1))
    return outcome


if __name__ == "__main__":
    cli.run(main)
