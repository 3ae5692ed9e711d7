"""The run folder: its computed name, config, metadata, metrics lines, checkpoints, resume, `done`; loading a model.

    runs/<study>/<readable>-<hash8>/
        config.yaml meta.json metrics.jsonl model.safetensors best.safetensors checkpoints/ resume.pt
        arrays/*.npz results.json figures/ done

A file is either whole or not there: everything is written beside its place and moved. `done` is written last, and its
presence is the only meaning of "finished". Nothing here imports torch until weights are read or written.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import models
from landscape import parallel
from landscape.errors import ContentError, FileProblem, Interrupted, UsageError
from landscape.wandb_sink import open_sink

KEY = "landscape"  # the one metadata key of model.safetensors: sorted JSON; several keys are written in random order


MEND = "make room or choose another --runs folder, then run the same command again"


# ---- files ---------------------------------------------------------------------------------------------------------

def write_bytes(path, data):
    """Write data to path so that path is whole or as it was. Raises FileProblem if it cannot be written. Of several
    processes (landscape/parallel.py) one writes."""
    if parallel.follows():
        return
    path = Path(path)
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    except OSError as e:
        beside.unlink(missing_ok=True) if beside.parent.is_dir() else None
        raise FileProblem(f"cannot write {path}: {(e.strerror or str(e)).lower()}; {MEND}") from e


def tidy(path):
    """Delete the half files that processes killed in write_bytes have left under a folder, which nobody else writes."""
    for leftover in Path(path).rglob(".*.tmp-*"):
        leftover.unlink(missing_ok=True)


def write_json(path, value):
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def write_arrays(path, **arrays):
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def read_arrays(path, needs=(), only=None):
    """The arrays of an .npz file as a dict (of those named in `only`, where that is given, the ones it has);
    ContentError if it is damaged or lacks one of `needs`. Pickled objects are never read."""
    import zipfile
    import zlib

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as z:
            if missing := [k for k in needs if k not in z.files]:
                raise ValueError(f"it holds no {missing[0]}")
            held = {k: z[k] for k in z.files if only is None or k in only}
        return held
    except FileNotFoundError:
        raise FileProblem(f"{path} is missing") from None
    except (ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as e:
        raise ContentError(f"{path} is damaged ({e}); delete it and run the command that made it again") from None


def grown(file, names, count, size, block, held, words, progress, stop, force=False):
    """{name: array (count, …)} of `count` items, computed `size` at a time and kept in an .npz file as it grows: what
    is there is not computed again.

    block: a function of (start, stop) that gives {name: array (stop - start, …)}. held: plain values, kept beside.
    words: what the items are, for messages. stop: of stoppable. Raises Interrupted between two blocks.
    """
    import numpy as np

    done = read_arrays(file, names, names) if file.exists() and not force else None
    start = len(done[names[0]]) if done else 0
    if start:
        progress.step(start)
    while start < count:
        new = block(start, min(start + size, count))
        done = {k: np.concatenate([done[k], new[k]]) for k in names} if done else new
        write_arrays(file, **done, settings=json.dumps(held, sort_keys=True))
        progress.step(len(done[names[0]]) - start, words)
        start = len(done[names[0]])
        if stop.requested:
            raise Interrupted(f"{stop.requested}: stopped after {start} of {count} {words}; saved in {file}; the same "
                              "command goes on")
    return done


def content_hash(*arrays):
    """16 hex digits of the content of arrays."""
    import numpy as np

    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.shape} {array.dtype}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def read_json(path, kind=dict):
    """What a JSON file holds, of this kind. Raises FileProblem or ContentError."""
    mend = "delete it and run the command that made it again"
    try:
        held = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise FileProblem(f"{path} is missing") from None
    except ValueError as e:
        raise ContentError(f"{path} is not JSON ({e}); {mend}") from None
    if not isinstance(held, kind):
        raise ContentError(f"{path} holds no {'mapping' if kind is dict else 'list'}; {mend}")
    return held


# ---- the run -------------------------------------------------------------------------------------------------------

def hash8(value):
    """Eight hex digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def name_of(head, differs):
    """<head>_<key=value ...>-<hash8>, from the settings that differ from their defaults.

    The hash is of all of them. To read, three equal training seeds are one word, and what the head says is left out.
    """
    words = dict(differs)
    seeds = [words.get(k) for k in ("init_seed", "order_seed", "augment_seed")]
    if seeds[0] is not None and len(set(seeds)) == 1:
        words = {k: v for k, v in words.items() if k not in ("init_seed", "order_seed", "augment_seed")}
        words["seed"] = seeds[0]
    hidden = {"precision", "dataset", "net", "load_net", "teacher", "init_from", "members", "connector"}
    shown = [f"{k}={v}" for k, v in sorted(words.items()) if k not in hidden]
    readable = re.sub(r"[^\w.=+-]+", "-", "_".join([head, *shown]))[:72].rstrip("-_.")
    return f"{readable}-{hash8(differs)}"


@dataclass
class Run:
    """One run folder, open for writing by this process. As a context manager it closes itself."""

    path: Path
    config: dict
    finished: bool
    sink: object
    began: float
    lock: int | None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def log(self, record):
        """Append one line to metrics.jsonl, and to wandb where that is on."""
        if parallel.follows():
            return
        path = self.path / "metrics.jsonl"
        before = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "a") as f:
                f.write(json.dumps(record, sort_keys=True) + "\n")
        except OSError as e:
            if path.exists():
                os.truncate(path, before)  # a full disk takes half a line
            raise FileProblem(f"cannot write {path}: {(e.strerror or str(e)).lower()}; {MEND}") from e
        self.sink.log(record)

    def metrics(self):
        return read_metrics(self.path)

    def save_state(self, state):
        """Replace resume.pt by state (tensors, numbers, strings, lists and dicts only)."""
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self.path / "resume.pt", buffer.getvalue())

    def load_state(self):
        """The state last saved, or None; metrics lines that came after it are dropped."""
        import torch

        path = self.path / "resume.pt"
        if not path.exists():
            if not parallel.follows():
                (self.path / "metrics.jsonl").unlink(missing_ok=True)
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as e:  # torch.load raises many kinds for a damaged file; all mean the same
            raise ContentError(f"{path} is damaged ({type(e).__name__}); delete it to start this run again") from None
        kept = [r for r in self.metrics() if r.get("epoch", 0) <= state["epoch"]]
        write_bytes(self.path / "metrics.jsonl", "".join(json.dumps(r, sort_keys=True) + "\n" for r in kept).encode())
        return state

    def save_weights(self, name, weights, described):
        """Write weights (a dict) with what describes them to <run>/<name>.safetensors."""
        save_weights(self.path / f"{name}.safetensors", weights, described)

    def finish(self, results):
        """Write results.json, the wall time, and `done`; remove resume.pt; close wandb."""
        if not parallel.follows():
            write_json(self.path / "results.json", results)
            meta = read_json(self.path / "meta.json")
            meta["seconds"] = round(meta.get("seconds", 0) + time.time() - self.began, 1)
            meta["wandb_id"] = self.sink.id or meta.get("wandb_id")
            write_json(self.path / "meta.json", meta)
            write_bytes(self.path / "done", b"")
            (self.path / "resume.pt").unlink(missing_ok=True)
        parallel.wait()
        self.finished = True

    def close(self):
        """Close wandb and give the folder free; a second time it does nothing."""
        self.sink.finish()
        if self.lock is not None:
            release(self.lock)
            self.lock = None


def start(study, args, head=""):
    """Open the run that args (from cli.resolve) describe, new or broken off, and return it.

    study: folder under args.runs. head: first words of the folder's name (data set and network of a training). A
    finished run comes back with finished=True and untouched, unless args.force. Raises FileProblem if the folder
    cannot be written or another process holds it.
    """
    path = folder(study, args, head)
    config = {k: getattr(args, k) for k in sorted(args.flags)}
    if parallel.follows():
        finished = parallel.told(None) if parallel.joined() else (path / "done").exists() and not args.force
        return Run(path, config, finished, open_sink(None, path, config, None), time.time(), None)
    run = opened(study, args, path, config)
    parallel.told(run.finished)
    return run


def measured(study, args, head, compute, draw):
    """(folder, results) of a measurement: compute(run) gives its results as plain values, draw(run, results) its tables
    and figures. A finished one is only read."""
    with start(study, args, head) as run:
        if not run.finished:
            found = compute(run)
            draw(run, found)
            run.finish(found)
        return run.path, read_json(run.path / "results.json")


def opened(study, args, path, config):
    """The Run of a process that writes; see start."""
    if (path / "done").exists() and not args.force:  # no lock: others may read it too, and nobody need write here
        return Run(path, config, True, open_sink(None, path, config, None), time.time(), None)
    lock = hold(path)
    try:
        if (path / "done").exists():
            if not args.force:  # another process has done it since
                release(lock)
                return Run(path, config, True, open_sink(None, path, config, None), time.time(), None)
            clear(path)
        tidy(path)
        import yaml

        write_bytes(path / "config.yaml", yaml.safe_dump(config, sort_keys=True).encode())
        meta = read_json(path / "meta.json") if (path / "meta.json").exists() else {}
        seeds = {k: v for k, v in config.items() if k.endswith("seed")}
        write_json(path / "meta.json", {**meta, "argv": sys.argv, "study": study, "seeds": seeds, **versions(),
                                        "device": config.get("device", "cpu"), "processes": parallel.processes()})
        return Run(path, config, False, join(path, args, config), time.time(), lock)
    except BaseException:
        release(lock)
        raise


def join(path, args, config=None):
    """The wandb sink of a run folder, in the wandb run that its meta.json names; a new one's id is noted there, so that
    a later script, or the same one resumed, joins it."""
    file = Path(path) / "meta.json"
    meta = read_json(file) if file.exists() else {}
    if getattr(args, "active_log", False):
        Path(path).mkdir(parents=True, exist_ok=True)
    sink = open_sink(args, Path(path), config or {}, meta.get("wandb_id"))
    if sink.id and sink.id != meta.get("wandb_id"):
        write_json(file, {**meta, "wandb_id": sink.id})
    return sink


def folder(study, args, head=""):
    """The path of that run, whether it exists or not."""
    head = head or f"{args.dataset.split(':')[0]}_{models.canonical(args.net)}"
    return Path(args.runs) / study / name_of(head, args.differs)


def state_of(path):
    """What a training's command would find its folder to be: "finished", "resumed" or "trained" (anew)."""
    return "finished" if (path / "done").exists() else "resumed" if (path / "resume.pt").exists() else "trained"


def hold(path):
    """Make the folder and lock it against other processes; returns the lock (closing it gives it free)."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDONLY)
        if not os.access(path, os.W_OK):
            os.close(lock)
            raise PermissionError(13, "permission denied")
    except OSError as e:
        raise FileProblem(f"cannot write to {path}: {(e.strerror or str(e)).lower()}; "
                          "choose another folder with --runs") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise FileProblem(f"{path} is being written by another process; wait for it, or change a setting") from None
    return lock


def release(lock):
    """Give a held folder free."""
    os.close(lock)


def clear(path):
    """Remove what a finished run left: `done` first, so that a half-cleared run never looks finished. What wandb has
    still to upload stays."""
    import shutil

    (path / "done").unlink(missing_ok=True)
    for child in path.iterdir():
        if child.name != "wandb":
            shutil.rmtree(child) if child.is_dir() else child.unlink()


def versions():
    """Commit and dirty flag of this toolkit, and the versions of what it stands on."""
    from importlib import metadata

    root = Path(__file__).resolve().parent.parent
    out = {"python": sys.version.split()[0]}
    for name in ("torch", "torchvision", "numpy", "scikit-learn", "matplotlib"):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = None
    out["commit"], out["dirty"] = None, None
    if (root / ".git").exists():
        git = ["git", "-C", str(root)]
        said = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if said.returncode == 0:
            out["commit"] = said.stdout.strip()
            status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
            out["dirty"] = bool(status.stdout.strip())
    return out


def read_metrics(path):
    """The lines of a run's metrics.jsonl as dicts; a half line at the end (a killed process) is left out."""
    file = Path(path) / "metrics.jsonl"
    out = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        try:
            out.append(json.loads(line))
        except ValueError:
            break
    return out


@contextmanager
def stoppable():
    """Inside, SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 only set .requested, so that the loop can save and leave.

    A second SIGINT stops at once. Outside the main thread it does nothing.
    """
    class Stop:
        requested = None

    stop, previous = Stop(), {}

    def ask(number, frame):
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = signal.Signals(number).name

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            previous[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Progress:
    """tqdm on a terminal; otherwise one plain line every 30 s with position, note and time left."""

    def __init__(self, total, what, done=0):
        from tqdm import tqdm

        self.total, self.what, self.at, self.first = total, what, done, done
        self.began = self.said = time.monotonic()
        self.bar = tqdm(total=total, desc=what, initial=done, leave=False) if sys.stderr.isatty() else None

    def step(self, n=1, note=""):
        """n more are done. note: a string, or a function that makes one when it is shown."""
        self.at += n
        if self.bar is not None:
            if note and time.monotonic() - self.said >= 0.5:
                self.bar.set_postfix_str(note() if callable(note) else note, refresh=False)
                self.said = time.monotonic()
            self.bar.update(n)
        elif time.monotonic() - self.said >= 30:
            self.said = time.monotonic()
            left = (self.said - self.began) / max(self.at - self.first, 1) * (self.total - self.at)
            note = note() if callable(note) else note
            print(f"{self.what}: {self.at}/{self.total} {note} ({left / 60:.1f} min left)", file=sys.stderr, flush=True)

    def close(self):
        if self.bar is not None:
            self.bar.close()


# ---- weights on disk -----------------------------------------------------------------------------------------------

def save_weights(path, weights, described):
    """weights: {name: tensor}. described: {"architecture": …, "preprocessing": …}, read back by load."""
    from safetensors.torch import save

    plain = {k: v.detach().cpu().contiguous().clone() for k, v in weights.items()}
    write_bytes(path, save(plain, metadata={KEY: json.dumps(described, sort_keys=True)}))


def read_weights(path):
    """(weights, described) of a checkpoint: ours or foreign (.safetensors, .pth, .pt, .th, .tar).

    Foreign files may hold the state_dict bare or under state_dict / net / model, with prefixes module. or _orig_mod.;
    for them described is {}. Pickled code is never run. Raises FileProblem or ContentError.
    """
    path = Path(path)
    if not path.exists():
        near = sorted(p.name for p in path.parent.iterdir())[:5] if path.parent.is_dir() else []
        hint = f"; its folder holds {', '.join(near)}" if near else ""
        raise FileProblem(f"checkpoint {path} does not exist{hint}")
    if path.is_dir():
        raise FileProblem(f"checkpoint {path} is a folder; name a file in it, such as {path / 'model.safetensors'}")
    described = {}
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as f:
                weights = {k: f.get_tensor(k) for k in f.keys()}
                described = json.loads((f.metadata() or {}).get(KEY, "{}"))
            if not isinstance(described, dict):
                raise ValueError(f"its metadata key {KEY} holds no settings")
        except PermissionError as e:
            raise FileProblem(f"checkpoint {path}: {e.strerror.lower()}") from None
        except (SafetensorError, ValueError, OSError) as e:
            raise ContentError(f"checkpoint {path} is truncated or not a safetensors file ({e})") from None
    else:
        weights = read_foreign(path)
    bad = [k for k, v in weights.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise ContentError(f"checkpoint {path} holds NaN or infinite weights, first in {bad[0]}")
    return weights, described


def describe(path):
    """What describes the weights of a checkpoint of ours ({"architecture", "preprocessing"}), without reading them; {}
    of a foreign one. Raises ContentError for a damaged file."""
    if Path(path).suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as f:
            described = json.loads((f.metadata() or {}).get(KEY, "{}"))
    except (SafetensorError, ValueError, OSError) as e:
        raise ContentError(f"checkpoint {path} is truncated or not a safetensors file ({e})") from None
    if "architecture" in described:
        described["architecture"] = models.with_width(described["architecture"])
    return described


def read_foreign(path):
    import pickle
    import warnings

    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # the refusals below say it in one line
            held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        with open(path, "rb") as f:
            torch_file = f.read(2).startswith((b"PK", b"\x80"))  # a zip archive, or a bare pickle of older versions
        if torch_file:
            raise ContentError(f"checkpoint {path} holds pickled code or objects, which are never loaded; save only "
                               "its state_dict: torch.save(model.state_dict(), …)") from None
        raise ContentError(f"checkpoint {path} is not a torch file") from None
    except OSError as e:
        if e.errno == errno.EINVAL:  # a truncated archive sends its reader to places before its beginning
            raise ContentError(f"checkpoint {path} is truncated or not a torch file") from None
        raise FileProblem(f"checkpoint {path}: {(e.strerror or str(e)).lower()}") from None
    except Exception as e:  # torch.load raises RuntimeError, EOFError, … for damaged files; all mean the same
        raise ContentError(f"checkpoint {path} is truncated or not a torch file ({type(e).__name__})") from None
    several = held.get("state_dicts") if isinstance(held, dict) else None
    if isinstance(several, list) and len(several) == 1:  # learning-subspaces
        held = several[0]
    for key in ("state_dict", "net", "model"):
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
            break
    if not isinstance(held, dict) or not held or not all(
            isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in held.items()):
        raise ContentError(f"checkpoint {path} holds no state_dict (bare, or under state_dict, net or model)")
    for prefix in ("module.", "_orig_mod."):
        if all(k.startswith(prefix) for k in held):
            held = {k.removeprefix(prefix): v for k, v in held.items()}
    return held


@dataclass
class Trained:
    """A network with the weights of a checkpoint, in eval mode on the CPU, and what it expects of its inputs. stale: a
    point of a subspace whose BatchNorm statistics are those of the centre, to be re-estimated."""

    network: object
    architecture: dict
    preprocessing: dict
    source: Path
    label: str
    stale: bool = False


def build(architecture):
    """The network that an architecture dict (name, num_classes, in_channels, image_size, width) describes, with fresh
    weights: nothing pretrained is fetched."""
    rest = dict(architecture)
    row = models.MODELS.get(rest["name"])
    if row and "pretrained" in row.settings:
        rest["pretrained"] = False
    return models.build(rest.pop("name"), rest.pop("num_classes"), **rest)


def load(path, architecture=None, preprocessing=None, which="model", point=""):
    """A Trained from a run folder, or from a checkpoint file.

    architecture, preprocessing: dicts for foreign files, which carry neither. which: "model" or "best" of a run
    folder. point: of a subspace, as Rule.at of landscape.subspace has it, its centre by default; for other points see
    Trained.stale. Raises FileProblem (missing), ContentError (damaged, other architecture or class count), UsageError
    (a foreign file without --net, a point of a network that is no subspace).
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "done").exists():
            hint = ("it is not finished: run its command again to resume it" if (path / "config.yaml").exists()
                    else "it is no run folder (no config.yaml)")
            raise FileProblem(f"{path}: {hint}")
        path = path / f"{which}.safetensors"
    weights, described = read_weights(path)
    architecture = described.get("architecture", architecture)
    preprocessing = described.get("preprocessing", preprocessing)
    if architecture is None:
        raise UsageError(f"{path} does not say what network it is: give --net NAME")
    architecture = models.with_width(architecture)
    if "subspace" in described:
        from landscape import subspace

        weights = subspace.state_of(weights, described["subspace"], point or "centre")
    elif point:
        raise UsageError(f"--point {point}: {path} holds one network, not a subspace")
    network = build(architecture)
    fill(network, weights, f"checkpoint {path}", architecture)
    label = path.parent.name if path.name in ("model.safetensors", "best.safetensors") else path.stem
    return Trained(network.eval(), architecture, preprocessing, path, label, point not in ("", "centre"))


def fill(network, weights, what, architecture):
    """Copy weights into network; ContentError with the list of missing, unexpected and misshapen keys."""
    own = network.state_dict()
    counters = {k for k in own.keys() - weights.keys() if k.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - weights.keys() - counters)
    unexpected = sorted(weights.keys() - own.keys())
    if missing or unexpected:
        raise ContentError(f"{what} is not a {architecture['name']}: missing {few(missing)}; "
                           f"unexpected {few(unexpected)}")
    wrong = [f"{k} is {tuple(weights[k].shape)}, {architecture['name']} with {architecture['num_classes']} classes has "
             f"{tuple(own[k].shape)}" for k in own if k not in counters and weights[k].shape != own[k].shape]
    if wrong:
        raise ContentError(f"{what} does not fit (another class count, width or image size?): {few(wrong, 3)}")
    network.load_state_dict({**weights, **{k: own[k] for k in counters}})


def few(names, most=6):
    shown = ", ".join(names[:most]) or "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


# ---- finding models ------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Source:
    """A model on disk: where it lies, the group it is compared in, and a readable name. config: {} when foreign."""

    path: Path
    group: str
    name: str
    config: dict

    @property
    def foreign(self):
        return not self.config

    @property
    def seed_name(self):
        """A short name within the group: the seed of a run whose training seeds are one, else the name."""
        seeds = {self.config.get(k) for k in ("init_seed", "order_seed")}
        return f"seed {seeds.pop()}" if len(seeds) == 1 and not self.foreign else self.name


SUFFIXES = (".pth", ".pt", ".th", ".safetensors")


def below(root, pattern):
    """The paths below root that fit a pattern, sorted; not those in a folder smoke, which --smoke makes there, nor in
    wandb's own."""
    return sorted(p for p in Path(root).rglob(pattern) if not {"smoke", "wandb"} & {*p.relative_to(root).parts[:-1]})


def find_models(root, group_by=("net", "width"), select=()):
    """Every finished run under root, and every foreign checkpoint in dbViz's layout root/<architecture>/*.pth.

    root may also be one run folder or one checkpoint. What --smoke left below it is not read. select: "KEY=VALUE" or
    "KEY=VALUE|VALUE"; only runs with these settings, and no foreign checkpoints. Sorted by group, seeds and name.
    Raises FileProblem if there is nothing. The group of a run is made of its settings named in group_by; that of a
    foreign file is its folder's name.
    """
    root = Path(root)
    if not root.exists():
        raise FileProblem(f"{root} does not exist")
    if root.is_file():
        return [Source(root, root.parent.name, root.stem, {})]
    found, broken = [], []
    for config in below(root, "config.yaml"):
        folder = config.parent
        if (folder / "done").exists() and (folder / "model.safetensors").exists():
            source = run_source(folder, group_by)
            if fits(source.config, select):
                found.append(source)
        elif not (folder / "done").exists():
            broken.append(folder.name)
    ours = {s.path for s in found}
    for file in [] if select else sorted(p for s in SUFFIXES for p in below(root, f"*{s}")):
        inside = any((parent / "config.yaml").exists() for parent in file.parents if parent not in root.parents)
        if not inside and "pred" not in file.name and file.parent not in ours:
            found.append(Source(file, file.parent.name, f"{file.parent.name}/{file.stem}", {}))
    if not found:
        more = (f" ({len(broken)} unfinished: {few(broken, 3)}; the command of each, again, finishes it)" if broken
                else "")
        if select:
            raise FileProblem(f"{root} holds no finished run with {' '.join(select)}{more}")
        raise FileProblem(f"{root} holds no finished run and no <architecture>/*.pth checkpoint{more}")
    seeds = ("init_seed", "order_seed")
    return sorted(found, key=lambda s: (s.group, *(s.config.get(k, 0) for k in seeds), s.name))


def fits(config, select):
    """Do a run's settings agree with every KEY=VALUE|VALUE? Raises UsageError for an unknown key."""
    for word in select:
        key, equals, values = word.partition("=")
        if not equals or key not in config:
            raise UsageError(f"--select {word}: KEY=VALUE is expected, with a setting of the runs as KEY")
        if not any(said(key, config[key], value) for value in values.split("|")):
            return False
    return True


def said(key, own, text):
    """Is a run's own setting what the user wrote? Networks have aliases, and 0 is 0.0."""
    if key == "net":
        return models.canonical(own) == models.canonical(text)
    if isinstance(own, float):
        try:
            return own == float(text)
        except ValueError:
            return False
    return str(own) == text


def run_source(folder, group_by):
    import yaml

    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict):
        raise ContentError(f"{folder / 'config.yaml'} is damaged; run the command of this run again with --force")
    unknown = [k for k in group_by if k not in config]
    if unknown:
        raise UsageError(f"--group_by {unknown[0]}: the runs have no such setting")
    words = [models.canonical(config[k]) if k == "net" else f"{k}={config[k]}" for k in group_by
             if config[k] not in (None, "") and (k, config[k]) != ("width", 0)]
    return Source(folder, " ".join(words) or "all", config.get("save_net") or folder.name, config)


def digest(source, which="model"):
    """A hash of the bytes of a network's weights: of a foreign checkpoint, or of a run's last or best."""
    file = source.path / f"{which}.safetensors" if source.path.is_dir() else source.path
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError as e:
        raise FileProblem(f"{file}: {e.strerror.lower()}") from None


def measure_folder(source, root):
    """Where measures of a model go: its own run folder, or for a foreign file a folder named by its content."""
    if not source.foreign:
        return source.path
    digest = hashlib.sha256()
    with open(source.path, "rb") as f:
        while block := f.read(1 << 22):
            digest.update(block)
    name = re.sub(r"[^\w.=+-]+", "-", f"foreign_{source.group}_{source.path.stem}")
    return Path(root) / "regions" / f"{name}-{digest.hexdigest()[:8]}"
