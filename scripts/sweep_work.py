"""Running the members of a sweep: processes, the GPUs shared out to them, the pool, and the work inside a job."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, deque

from landscape import runs
from landscape.errors import Interrupted
from scripts.sweep_grid import ROOT, at_work

POLL = 0.05  # seconds between looks at the running processes
STARTS = 3  # how often one call starts a run that leaves by itself with 75, "run me again"
ASKED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # "save and leave", from whoever sends them


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def places(members, jobs, per_gpu):
    """(how many runs at a time, the GPUs that are shared out to them)."""
    names = gpus() if any(m.gpu for m in members) else []
    room = len(names) * per_gpu
    if names and all(m.gpu for m in members):
        return min(jobs or room, room), names
    return jobs or room or cores(), names


def gpus():
    """Names of the CUDA devices that runs may have: as CUDA reads CUDA_VISIBLE_DEVICES (up to the first word that is
    no device) where that is set, else all of this machine; [] without any."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        words = [word.strip() for word in said.split(",")]
        return list(dict.fromkeys(itertools.takewhile(re.compile(r"\d+$|(GPU|MIG)-").match, words)))
    if not shutil.which("nvidia-smi"):
        return []
    return listed(subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout)


def listed(text):
    """The UUIDs in what `nvidia-smi -L` prints: of whole GPUs, and instead of a divided one's those of its parts."""
    names = []
    for kind, uuid in re.findall(r"^\s*(GPU|MIG)\b.*\(UUID: ([\w/-]+)\)", text, re.M):
        if kind == "MIG" and names and names[-1].startswith("GPU-"):
            names.pop()
        names.append(uuid)
    return names


def environment(names):
    """Of a run: one thread, this toolkit, and the GPUs `names` alone, where there are any."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    devices = {"CUDA_VISIBLE_DEVICES": ",".join(names)} if names else {}
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **devices}


def started(words):
    """The command line of a run's process."""
    return [sys.executable, *words] if words[0] == "-m" else [sys.executable, str(ROOT / words[0]), *words[1:]]


def start(home, member, names, locks=(), job=None):
    """The process of a member, its words appended to its log.

    It has a session of its own, so that Ctrl-C reaches it once, through us; not inside a job, whose processes are all
    to end with it. It inherits the locks of the sweep and of its own folder: if we are killed, they stay held as long
    as it runs, and nobody can start it twice.
    """
    own = runs.hold(member.own(home))
    try:
        with open(member.log(home), "ab") as out:
            out.write(f"$ {member.command}\n".encode())
            out.flush()
            child = subprocess.Popen(started(member.words), env=environment(names), stdin=subprocess.DEVNULL,
                                     stdout=out, stderr=subprocess.STDOUT, start_new_session=job is None,
                                     pass_fds=(own, *locks))
        try:
            starts = member.read(home).get("starts", 0) + 1
            member.note(home, outcome="running", exit=None, starts=starts, pid=child.pid, job=job)
        except BaseException:  # a full disk: what is not written down does not run
            child.terminate()
            child.wait()
            raise
        return child
    finally:
        runs.release(own)


def settle(home, member, code, seconds):
    """Record how a member ended; returns done, interrupted or failed."""
    if code == Interrupted.exit_code or -code in ASKED:  # killed by one of these: asked before it could listen
        outcome = "interrupted"
    elif code == 0 and (member.folder is None or (member.folder / "done").exists()):
        outcome = "done"
    else:
        outcome = "failed"
    member.note(home, outcome=outcome, exit=code, seconds=round(seconds, 1))
    return outcome


def reason(code):
    if code < 0:
        return f"killed by {signal.Signals(-code).name}{' (out of memory?)' * (code == -signal.SIGKILL)}"
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


def work_off(sweep, todo, jobs, names, per_gpu, lock):
    """The pool: at most jobs processes and per_gpu on each of the GPUs `names`, never two in one run folder. Returns
    the signal that stopped it, or None."""
    waiting, active, starts, ended, told = deque(todo), {}, Counter(), 0, False
    with runs.stoppable() as stop:
        try:
            while active or (waiting and not told):
                if stop.requested and not told:
                    told = True
                    print(f"{stop.requested}: waiting for {len(active)} runs to save their state", flush=True)
                    for child, *_ in active.values():
                        child.terminate()
                load = Counter(gpu for _, _, gpu in active.values())
                while not told and len(active) < jobs and (member := startable(waiting, active, names, per_gpu, load)):
                    waiting.remove(member)
                    if at_work(member.own(sweep.home)):
                        print(f"{member.number} is at work elsewhere, and left alone: {member.label}", flush=True)
                        continue
                    gpu = freest(names, load) if names and member.gpu else None
                    load[gpu] += 1
                    starts[member] += 1
                    child = start(sweep.home, member, [] if gpu is None else [gpu], (lock,))
                    active[member] = child, time.monotonic(), gpu
                for member, (child, began, _) in list(active.items()):
                    code = child.poll()
                    if code is None:
                        continue
                    del active[member]
                    outcome = settle(sweep.home, member, code, time.monotonic() - began)
                    again = outcome == "interrupted" and not told and starts[member] < STARTS
                    if again:
                        waiting.append(member)
                    ended += outcome != "interrupted"
                    print(f"[{ended}/{len(todo)}] {member.number} {outcome}{' (goes on later)' * again} after "
                          f"{time.monotonic() - began:.1f} s: {member.label}", flush=True)
                time.sleep(POLL)
        except BaseException as e:  # a second Ctrl-C, a full disk: leave no process behind, whatever it was
            for child, *_ in active.values():
                child.kill() if isinstance(e, KeyboardInterrupt) else child.terminate()
            for child, *_ in active.values():
                child.wait()
            raise
        return stop.requested


def startable(waiting, active, names, per_gpu, load):
    """The first member waiting for which there is a place: a GPU that takes one more, if it wants one, and a run folder
    that no running one writes (settings outside a run's name share a folder)."""
    busy = {m.folder for m in active} - {None}
    room = not names or load[freest(names, load)] < per_gpu
    return next((m for m in waiting if m.folder not in busy and (room or not m.gpu)), None)


def freest(names, load):
    """The first of the GPUs with the fewest runs."""
    return min(names, key=lambda name: load[name])


def work(home, member, job):
    """One run inside the job of that id: started, told to save when the job is told to end, and started again where it
    left by itself. Returns (how it ended: done, interrupted, failed, or elsewhere; the signal that came, or None)."""
    if member.state(home) in ("done", "running"):
        return "elsewhere", None
    with runs.stoppable() as stop:
        for _ in range(STARTS):
            began, told = time.monotonic(), False
            child = start(home, member, [], job=job)
            while (code := child.poll()) is None:
                if stop.requested and not told:
                    told = True
                    child.terminate()
                time.sleep(POLL)
            outcome = settle(home, member, code, time.monotonic() - began)
            print(f"{member.number} {outcome} after {time.monotonic() - began:.1f} s", flush=True)
            if outcome != "interrupted" or stop.requested:
                break
    return outcome, stop.requested
