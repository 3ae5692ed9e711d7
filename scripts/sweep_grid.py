"""A grid of settings: its YAML file, its runs as members of a sweep, and how far each of them is.

    python scripts/sweep.py plan configs/sweep_example.yaml

The script itself checks every setting. What a sweep knows lies in its folder, runs/sweeps/NAME-HASH:

    sweep.json                  whose folder it is
    NNN/record.json, run.log    of each run: how often it was started, how it ended, what it said
    jobs.json, slurm/           on a cluster: what was submitted, what the jobs said

Whoever runs a member holds its folder NNN by a lock, and its process inherits that.
"""

import argparse
import contextlib
import fcntl
import importlib
import importlib.util
import io
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from landscape import cli, runs
from landscape.errors import ContentError, FileProblem, Refusal, UsageError
from models import ModelError

ROOT = Path(__file__).resolve().parent.parent
# Settings of the sweep, or none that a run of a sweep may have.
OWN = ("runs", "smoke", "dry_run", "force", "time_steps")


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


# ---- its runs ------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Member:
    """One run of a sweep. words: its command line after `python`. folder: its run folder, None where the script's
    --dry_run names none. draws: the script has work left when the folder is done. gpu: it computes on a GPU if there
    is one. kind: the part of its settings that it costs by. What the sweep knows of it lies in HOME/NUMBER."""

    number: str
    label: str
    words: tuple
    folder: Path | None
    draws: bool
    gpu: bool
    kind: tuple

    @property
    def command(self):
        return shlex.join(["python", *self.words])

    def own(self, home):
        return home / self.number

    def log(self, home):
        return self.own(home) / "run.log"

    def read(self, home):
        """What is recorded of it: command, starts, outcome, exit, seconds, pid, job; {} before its first start."""
        file = self.own(home) / "record.json"
        return runs.read_json(file) if file.exists() else {}

    def note(self, home, **changes):
        runs.write_json(self.own(home) / "record.json", {"command": self.command, **self.read(home), **changes})

    def state(self, home):
        """done, running, failed, resumable or new: by the run folder where it is known, else by what is recorded."""
        outcome = self.read(home).get("outcome")
        finished = self.folder is not None and (self.folder / "done").exists()
        if outcome == "done" and (finished or self.folder is None) or finished and not self.draws:
            return "done"
        if at_work(self.own(home)):
            return "running"
        if outcome == "failed":
            return "failed"
        if self.folder is None:
            return "resumable" if outcome == "interrupted" else "new"
        return "resumable" if finished or (self.folder / "resume.pt").exists() else "new"


@dataclass
class Sweep:
    """The members of a grid in order, and what earlier calls left in its folder, home. columns: the script's own names
    of what varies. identity: what home is named by. jobs: {number: {"job": id, "starts": those before it}} as submitted
    to a cluster."""

    home: Path
    members: list
    columns: list
    identity: dict
    jobs: dict

    @classmethod
    def read(cls, args):
        """The sweep that the arguments describe, every member checked by the script itself; nothing is written."""
        path = args.grid
        script, base, grid, each, lines = read_grid(path)
        given = set_values(args.set, base, grid)
        words, module = find_script(script, f"grid {path}, line {lines.get((None, 'script'), '?')}")
        parser = module.make_parser()
        actions = {f.lstrip("-").replace("-", "_"): a for a in parser._actions for f in a.option_strings}
        options, origin = {}, {}  # by the script's own name of a setting: its Options in order; (section, key)
        for section, key, values in [("base", k, [v]) for k, v in base.items()] + [("grid", *i) for i in grid.items()]:
            where = "--set" if key in given else f"grid {path}, line {lines.get((section, str(key)), '?')}"
            if not (isinstance(values, list) and values):
                raise UsageError(f"{where}: grid takes a list of values for {key}, not {values!r}; one value for all "
                                 "runs goes under base")
            for value in values:
                dest = checked(parser, actions, where, key, value)
                if origin.setdefault(dest, (section, key)) != (section, key):
                    raise UsageError(f"{where}: {key} is given already, as {origin[dest][1]} under {origin[dest][0]}")
                option = Option.make(actions[key], key if section == "grid" else "", value)
                if option in options.setdefault(dest, []):
                    raise UsageError(f"{where}: {key} has the value {shown(value)} twice")
                options[dest].append(option)
        together, where = [], f"grid {path}, line {lines.get((None, 'each'), '?')}"
        for settings in each:
            parts = []
            for key, value in settings.items():
                dest = checked(parser, actions, where, key, value)
                if origin.setdefault(dest, ("each", key))[0] != "each":
                    raise UsageError(f"{where}: {key} is given already, under {origin[dest][0]}")
                parts.append(Option.make(actions[key], key, value))
            if Option.joined(parts) in together:
                raise UsageError(f"{where}: {Option.joined(parts).label} stands there twice")
            together.append(Option.joined(parts))
        if together:
            options = {"each": together, **options}
        choices = [Option.joined(c) for c in itertools.product(*options.values())]
        extra = common(parser, args, options)
        members = [make_member(f"{n:03}", words, choice, extra, module) for n, choice in enumerate(choices)]
        identity = {"script": words, "runs": [list(c.words) for c in choices], "smoke": args.smoke}
        name = re.sub(r"[^\w.=+-]+", "-", Path(path).stem)
        home = Path(args.runs) / ("smoke" if args.smoke else "") / "sweeps"
        home = home / f"{name}-{runs.hash8([words, identity['runs'], args.smoke])}"
        signed = home / "sweep.json"
        if signed.exists() and runs.read_json(signed) != identity:
            raise ContentError(f"{home} is the folder of another grid's sweep (its sweep.json says which): remove it, "
                               "or choose another --runs folder")
        jobs = runs.read_json(home / "jobs.json") if (home / "jobs.json").exists() else {}
        varied = [dest for dest, (section, _) in origin.items() if section != "base"]
        return cls(home, members, varied, identity, jobs)

    @cached_property
    def queue(self):
        """{job id: state} of the jobs that the cluster still knows."""
        return slurm_queue() if self.jobs else {}

    def sign(self):
        """Write down whose folder home is."""
        runs.write_json(self.home / "sweep.json", self.identity)

    def state(self, member):
        """Of a member: done, running, queued, failed, resumable or new."""
        state = member.state(self.home)
        waits = self.queue.get(self.jobs.get(member.number, {}).get("job"))
        if waits and state != "done":
            return "queued" if waits in ("PENDING", "REQUEUED", "SUSPENDED") else "running"
        return state

    def counts(self):
        count = Counter(self.state(m) for m in self.members)
        order = ("done", "running", "queued", "resumable", "new", "failed")
        return f"{len(self.members)} runs: {', '.join(f'{count[s]} {s}' for s in order if count[s])}"

    def todo(self, retry):
        wanted = ("new", "resumable", "failed") if retry else ("new", "resumable")
        return [m for m in self.members if self.state(m) in wanted]


@dataclass(frozen=True)
class Option:
    """A setting, or several that go together. label: what to call it. words: its flags. kind: those that cost."""

    label: str
    words: tuple
    kind: tuple

    @classmethod
    def make(cls, action, key, value):
        words = tuple(flags(action, value))
        return cls(f"{key}={shown(value)}" if key else "", words, () if action.dest in cli.SAME_COST else words)

    @classmethod
    def joined(cls, parts):
        return cls(" ".join(p.label for p in parts if p.label), sum((p.words for p in parts), ()),
                   sum((p.kind for p in parts), ()))


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
    return tuple(extra)


def make_member(number, script, choice, extra, module):
    """A Member, with its settings checked against each other and its folder found by the script's own --dry_run,
    called in this process, whose lines name it as 'trained: runs/…': of several networks the first that is not done."""
    said, words, label = io.StringIO(), choice.words + extra, choice.label or "the one run"
    try:
        parser = module.make_parser()
        args = parser.settings(words)
        if any("--dry_run" in a.option_strings for a in parser._actions):
            with contextlib.redirect_stdout(said):
                module.main([*words, "--dry_run"])
    except ModelError as e:
        raise UsageError(f"run {number} ({label}): {e}") from None
    except Refusal as e:
        raise type(e)(f"run {number} ({label}): {e}") from None
    named = [Path(f) for f in re.findall(r"^(?:finished|resumed|trained): (.+)$", said.getvalue(), re.MULTILINE)]
    folder = next((f for f in named if not (f / "done").exists()), named[-1] if named else None)
    device = getattr(args, "device", "auto")
    if re.fullmatch(r"cuda:[1-9]\d*", device):
        raise UsageError(f"run {number} ({label}): device {device}: a sweep shares out the GPUs itself; write cuda, "
                         "and choose them by CUDA_VISIBLE_DEVICES")
    gpu = device.startswith("cuda") or device == "auto" and not getattr(args, "smoke", False)
    return Member(number, label, (*script, *words), folder,
                  getattr(args, "imgs", "none") != "none", gpu, choice.kind)


def at_work(folder):
    """Whether a process holds this folder (of the sweep or of a member)."""
    if not folder.is_dir():
        return False
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def slurm_queue():
    """{job id: state} of the user's jobs in Slurm's queue, an array's one by one; {} where there is no Slurm."""
    if not shutil.which("squeue"):
        return {}
    done = subprocess.run(["squeue", "--me", "--array", "--noheader", "--format=%i %T"], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        raise FileProblem(f"squeue does not answer, so what is queued is not known: {done.stderr.strip()}; try later, "
                          "or remove the sweep's jobs.json when the cluster is gone")
    return dict(line.split() for line in done.stdout.splitlines() if line)
