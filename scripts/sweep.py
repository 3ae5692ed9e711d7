"""Run a grid of settings of one script, several processes at a time; what is finished is not done again.

    python scripts/sweep.py run configs/sweep_example.yaml --jobs 2

plan lists the runs and what they cost, and writes nothing; run does those that are missing and goes on with those
broken off; status says how far a sweep is; collect makes one table of the finished ones. The grid is a YAML file:
script, base (settings of every run), grid (a list of values a setting; the last one varies fastest), each (a list of
settings that go together). Ctrl-C lets the running ones save; the same command goes on.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from landscape import cli, runs  # noqa: E402
from landscape.errors import ContentError, FileProblem, Interrupted, UsageError  # noqa: E402
from scripts import sweep_work as work  # noqa: E402
from scripts.sweep_grid import Sweep, at_work  # noqa: E402

TIMED_STEPS = 30  # steps of a run that plan --time times


def make_parser():
    parser = cli.Parser("scripts/sweep.py", __doc__)
    parser.add_argument("action", choices=("plan", "run", "status", "collect"))
    parser.add_argument("grid", metavar="GRID.yaml")
    parser.add_argument("--jobs", type=cli.natural, default=0, metavar="N",
                        help="runs at a time, one CPU thread each; 0: one a core, or as many as the GPUs take; with "
                             "--cluster: no limit")
    parser.add_argument("--per_gpu", type=cli.positive, default=1, metavar="K",
                        help="runs at a time on one GPU; each sees one of those in CUDA_VISIBLE_DEVICES (not set: all)")
    parser.add_argument("--retry", action="store_true", help="start those that failed again, too")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="replace or add settings; KEY=[A,B] is a list for the grid")
    parser.add_argument("--time", action="store_true",
                        help=f"plan: time {TIMED_STEPS} steps of one run of each kind that costs differently")
    parser.add_argument("--out", default="", metavar="FILE.csv", help="collect: write the table there (default: print)")
    g = parser.group("cluster")
    g.add_argument("--cluster", default="none", choices=("none", "slurm"),
                   help="run: submit the runs as one job array instead of working here (needs submitit)")
    g.add_argument("--partition", default=None, metavar="NAME")
    g.add_argument("--gpus_per_node", type=cli.natural, default=0, metavar="N", help="GPUs of a run")
    g.add_argument("--cpus_per_task", type=cli.positive, default=1, metavar="N", help="cores of a run")
    g.add_argument("--mem", default=None, metavar="SIZE", help="memory of a run, such as 8GB")
    g.add_argument("--timeout_min", type=cli.positive, default=720, metavar="MINUTES",
                   help="time limit of a job; a run that takes longer saves, is queued again and goes on")
    g.add_argument("--sbatch", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                   help="further options of sbatch, such as account=NAME qos=low")
    g = parser.group("output")
    g.add_argument("--runs", default="runs", metavar="DIR",
                   help="the folder of all runs; the sweep's own is DIR/sweeps/NAME-HASH")
    g.add_argument("--smoke", "--dryrun", action="store_true", help="every run with --smoke, in DIR/smoke")
    g.add_argument("--dry_run", action="store_true", help="the same as plan")
    return parser


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0].endswith((".yaml", ".yml")):
        raise UsageError(f"say what to do with it: sweep.py plan {argv[0]}, or run, status or collect")
    args = make_parser().settings(argv)
    sweep = Sweep.read(args)
    if args.action == "status":
        return status(sweep)
    if args.action == "collect":
        return collect(sweep, args.out)
    if args.action == "plan" or args.dry_run:
        return plan(sweep, args)
    if at_work(sweep.home):
        pids = [m.read(sweep.home).get("pid") for m in sweep.members if at_work(m.own(sweep.home))]
        raise FileProblem(f"{sweep.home}: another sweep.py is at work on this grid, or runs that a killed one left "
                          f"(process {', '.join(map(str, pids)) or 'unknown'}); wait for them, or kill them: they save")
    lock = runs.hold(sweep.home)
    try:
        sweep.sign()
        return submit(sweep, args) if args.cluster == "slurm" else execute(sweep, args, lock)
    finally:
        runs.release(lock)


# ---- plan ----------------------------------------------------------------------------------------------------------

def plan(sweep, args):
    for member in sweep.members:
        print(f"{member.number}  {sweep.state(member):<9}  {member.command}")
    print(f"{sweep.counts()}; sweep: {sweep.home}")
    todo = [m for m in sweep.members if sweep.state(m) != "done"]
    costs, sources = known_costs(sweep), []
    if costs:
        sources.append("finished runs alike")
    unknown = {m.kind: m for m in todo if m.kind not in costs}
    if args.time and unknown:
        print(f"timing {TIMED_STEPS} steps of {len(unknown)} runs, one after the other", flush=True)
        costs |= {kind: trial(m) for kind, m in unknown.items()}
        sources.append(f"timed steps of {len(unknown)} runs")
    if missing := [m for m in todo if m.kind not in costs]:
        kinds = len({m.kind for m in missing})
        print(f"cost: not known of {len(missing)} runs, {kinds} of which cost differently: plan --time times them in "
              f"{kinds} short trials (some ten seconds each)")
    if priced := [costs[m.kind] for m in todo if m.kind in costs]:
        mean, low, high = (sum(part) for part in zip(*priced))
        jobs, _ = work.places(todo, args.jobs, args.per_gpu)
        wall = max(mean / jobs, max(c[0] for c in priced))
        print(f"cost of {len(priced)} runs: about {lasting(mean)} of computing ({lasting(low)} to {lasting(high)}), "
              f"{lasting(wall)} with {jobs} at a time; from {' and '.join(sources)}\n"
              "    expect up to half as much again: runs at one time slow each other, and drawing is not counted")
    return 0


def known_costs(sweep):
    """{kind: (mean, least, most) seconds} of the finished runs that were done in one go; a run's meta.json holds the
    seconds since it was last resumed."""
    spent = {}
    for member in sweep.members:
        whole = member.folder is not None and (member.folder / "done").exists()
        if whole and member.read(sweep.home).get("starts", 1) == 1:
            spent.setdefault(member.kind, []).append(runs.read_json(member.folder / "meta.json")["seconds"])
    return {kind: (statistics.fmean(s), min(s), max(s)) for kind, s in spent.items()}


def trial(member):
    """(mean, low, high) seconds that a run would take, from a few timed steps by the script itself and the time that it
    takes to start. The ends are what the faster and the slower half of the steps would come to."""
    began = time.monotonic()
    names = work.gpus() if member.gpu else []
    done = subprocess.run([*work.started(member.words), "--time_steps", str(TIMED_STEPS)], capture_output=True,
                          env=work.environment(names[:1]), text=True, stdin=subprocess.DEVNULL, check=False)
    found = re.search(r"^timed: (.+)$", done.stdout, re.M)
    if done.returncode or not found:
        why = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise ContentError(f"run {member.number} ({member.label}) cannot be timed, exit {done.returncode}: {why}")
    said = json.loads(found[1])
    start = time.monotonic() - began - said["measuring"]
    return tuple(start + said[key] for key in ("seconds", "low", "high"))


def lasting(seconds):
    """12.3 as '12 s'; minutes from two on, hours from two on."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


# ---- status and collect --------------------------------------------------------------------------------------------

def status(sweep):
    for member in sweep.members:
        record, job = member.read(sweep.home), sweep.jobs.get(member.number)
        state = sweep.state(member)
        took = f"{record['seconds']:.1f} s" if "seconds" in record else ""
        print(f"{member.number}  {state:<9}  {took:>9}  {member.label}")
        if state == "failed":
            print(f"     {failure(sweep, member)}")
        elif job and state in ("new", "resumable") and (
                record.get("starts", 0) == job["starts"]
                or (record.get("job"), record.get("outcome")) == (job["job"], "running")):
            print(f"     its job {job['job']} has left the queue without a word; what it said: "
                  f"{sweep.home / 'slurm' / job['job']}_0_log.out")
    print(f"{sweep.counts()}; sweep: {sweep.home}{' (at work)' * at_work(sweep.home)}")
    return 0


def failure(sweep, member):
    log = member.log(sweep.home)
    return f"{work.reason(member.read(sweep.home)['exit'])}: {work.last_line(log)}  ({log})"


def collect(sweep, out):
    """One row a finished run, in the order of the grid: what varies, as the run's config.yaml has it, then the numbers
    of its results.json. Neither times nor folders, so that the table is the same however often the sweep was broken
    off."""
    from landscape import results

    if any(m.folder is None for m in sweep.members):
        raise ContentError("the script's --dry_run names no run folders, so there is nothing to collect from")
    records, missing = [], []
    for member in sweep.members:
        if (member.folder / "done").exists():
            (record,) = [r for r in results.load_records(member.folder) if r["folder"] == "."]
            measured = results.flattened(runs.read_json(member.folder / "results.json"))
            names = [f"results.{n}" if f"results.{n}" in record else n for n in measured]
            records.append({n: record.get(n) for n in [*sweep.columns, *names]})
        else:
            missing.append(member.number)
    if not records:
        raise FileProblem(f"no run of {sweep.home} is finished")
    columns = list(dict.fromkeys(n for r in records for n in r))
    if out:
        results.write_csv(out, records, columns)
        print(f"{out}: {len(records)} runs, {len(columns)} columns")
    else:
        print(results.table(records, columns), end="")
    if missing:
        print(f"not finished, and left out: {runs.few(missing)}", file=sys.stderr)
    return 0


# ---- run -----------------------------------------------------------------------------------------------------------

def execute(sweep, args, lock):
    """Run what is missing, jobs at a time. Raises Interrupted when stopped, ContentError when members failed."""
    runs.tidy(sweep.home)
    todo = sweep.todo(args.retry)
    jobs, names = work.places(todo, args.jobs, args.per_gpu)
    print(f"{sweep.counts()}; {len(todo)} to do, {jobs} at a time{on(names)}; sweep: {sweep.home}", flush=True)
    stopped = work.work_off(sweep, todo, jobs, names, args.per_gpu, lock) if todo else None
    failed = [m for m in sweep.members if sweep.state(m) == "failed"]
    for member in failed:
        print(f"failed: {member.number}, {failure(sweep, member)}\n    {member.command}")
    left = sweep.todo(retry=False)
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


def on(names):
    return f" on {len(names)} GPUs" if names else ""


def submit(sweep, args):
    """Submit what is missing and not in the queue; whoever submits twice submits nothing the second time."""
    todo = sweep.todo(args.retry)
    print(f"{sweep.counts()}; {len(todo)} to submit; sweep: {sweep.home}", flush=True)
    if not todo:
        return 0
    try:
        from scripts import sweep_slurm
    except ModuleNotFoundError as e:
        if e.name != "submitit":
            raise
        raise UsageError("--cluster slurm needs a package that is not installed: pip install submitit") from None
    try:
        for member, job in sweep_slurm.submitted(sweep.home, todo, args):
            sweep.jobs[member.number] = {"job": job, "starts": member.read(sweep.home).get("starts", 0)}
    finally:
        runs.write_json(sweep.home / "jobs.json", sweep.jobs)
    ids = [sweep.jobs[m.number]["job"] for m in todo]
    print(f"submitted as {runs.few(ids)}; see scripts/sweep.py status {args.grid}, squeue, scancel")
    return 0


if __name__ == "__main__":
    cli.run(main)
