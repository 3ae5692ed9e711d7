"""How much faster than plain code, on this machine and in one run.

    python scripts/benchmark.py --only plane

Each row does one piece of work twice, ours and a plain twin written as the seed repositories do it, and prints the
ratio of their CPU seconds (this process and its children, so that a busy neighbour counts little), one thread on both
sides, in turns, as median and range over --rounds. Beside it stands a check that both give the same. A row takes one
to three minutes. Exit code 4 where a check fails, and with --strict where a goal is missed.
"""

import platform
import resource
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from landscape import cli, runs  # noqa: E402
from landscape.errors import ContentError, UsageError  # noqa: E402

# Each holds ROWS: name -> function of a Bench.
MODULES = ("scripts.bench_training", "regions.bench", "double_descent.bench", "ensembles.bench", "subspaces.bench",
           "star.bench")  # fmt: skip

LESS = ("MB", "s")  # units of which little is good


@dataclass(frozen=True)
class Row:
    """One line of the table. values: a ratio (goal: at least), or megabytes or CPU seconds (goal: less than), of each
    round."""

    what: str
    goal: float
    unit: str
    values: tuple
    equal: bool
    check: str

    @property
    def met(self):
        return median(self.values) < self.goal if self.unit in LESS else median(self.values) >= self.goal


@dataclass(frozen=True)
class Bench:
    """What a row is told: how often, how large, where scratch files go, on which data."""

    rounds: int
    quick: bool
    cache: Path
    dataset: str
    data_root: str | None

    def size(self, full, tiny):
        return tiny if self.quick else full

    def ratio(self, what, goal, ours, twin, check, share=1.0):
        """The Row of a ratio. check() gives (equal, words) and warms both sides up; the twin does `share` of the
        work that ours does, and its seconds are scaled up."""
        equal, words = check()
        values = []
        for _ in range(self.rounds):
            fast = cpu_seconds(ours)
            values.append(cpu_seconds(twin) / share / fast)
        return Row(what, goal, "x", tuple(values), bool(equal), words)

    def seconds(self, what, goal, work, check):
        """The Row of CPU seconds that work() takes."""
        equal, words = check()
        return Row(what, goal, "s", tuple(cpu_seconds(work) for _ in range(self.rounds)), bool(equal), words)

    def memory(self, what, goal, measure, words):
        """The Row of a peak in megabytes that measure() gives; once, since memory does not flicker."""
        return Row(what, goal, "MB", (measure(),), True, words)


def cpu_seconds(work):
    """CPU seconds, own and of children that have ended, that work() takes."""
    def now():
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used)

    before = now()
    work()
    return now() - before


def make_parser():
    parser = cli.Parser("scripts/benchmark.py", __doc__)
    parser.add_argument("--only", default="", metavar="NAME,…", help="these rows; --list shows the names")
    parser.add_argument("--list", action="store_true", help="print the rows' names, and stop")
    parser.add_argument("--rounds", type=cli.positive, default=5)
    parser.add_argument("--quick", action="store_true", help="every row tiny, on made-up images; no goal is judged")
    parser.add_argument("--strict", action="store_true", help="exit code 4 for a missed goal too")
    parser.add_argument("--json", default="", metavar="FILE", help="write the rows there too")
    parser.add_argument("--cache", default=str(Path(tempfile.gettempdir()) / "landscape-benchmark"), metavar="DIR",
                        help="scratch files, and a briefly trained network that the next call finds again")
    parser.add_argument("--data_root", default=None, metavar="DIR",
                        help="where the data sets lie (default: $DATA_ROOT, else ~/data)")
    return parser


def all_rows():
    import importlib

    return {name: function for module in MODULES for name, function in importlib.import_module(module).ROWS.items()}


def main(argv=None):
    args = make_parser().settings(argv)
    rows = all_rows()
    if args.list:
        print("\n".join(rows))
        return 0
    chosen = args.only.split(",") if args.only else list(rows)
    for name in chosen:
        if name not in rows:
            raise UsageError(f"--only: unknown row {name!r}{cli.suggestion(name, rows)}; known: {', '.join(rows)}")
    import torch

    torch.set_num_threads(1)
    cli.keep_memory()  # both sides gain
    dataset, why = choose_data(args)
    bench = Bench(1 if args.quick else args.rounds, args.quick, Path(args.cache), dataset, args.data_root)
    machine = {"cpu": cpu_name(), "torch": torch.__version__, "precision": cli.resolved_precision("auto", "cpu"),
               "data": dataset, "rounds": bench.rounds}
    print(", ".join(f"{k}: {v}" for k, v in machine.items()) + why, flush=True)
    print(f"{'row':<15} {'goal':>8} {'median':>8} {'range':>15}  verdict", flush=True)
    done = {}
    for name in chosen:
        done[name] = row = rows[name](bench)
        show(name, row, args.quick)
    if args.json:
        runs.write_json(args.json, {"machine": machine, "rows": {n: asdict(r) for n, r in done.items()}})
    failed = [n for n, r in done.items() if not r.equal]
    missed = [n for n, r in done.items() if not r.met and not args.quick]
    if failed:
        raise ContentError(f"ours and the twin differ in {', '.join(failed)}: the lines above say how much")
    if missed and args.strict:
        raise ContentError(f"the goal is missed by {', '.join(missed)}")
    return 0


def show(name, row, quick):
    verdict = "NOT EQUAL" if not row.equal else "not judged" if quick else "met" if row.met else "MISSED"
    sign, digits = "<" if row.unit in LESS else "≥", 0 if row.unit == "MB" else 2
    low, high = min(row.values), max(row.values)
    numbers = [f"{median(row.values):.{digits}f}{row.unit}", f"{low:.{digits}f} – {high:.{digits}f}"]
    print(f"{name:<15} {f'{sign}{row.goal:g}{row.unit}':>8} {numbers[0]:>8} {numbers[1]:>15}  {verdict}\n"
          f"    {row.what}\n    check: {row.check}", flush=True)


def choose_data(args):
    """(name of the data set, words for the head of the table): CIFAR-10, or made-up images of the same shape."""
    from landscape import data as datasets

    made_up = f"fake:3x32x32:10:{512 if args.quick else 20_000}"
    if args.quick:
        return made_up, ""
    root = datasets.root_of(args.data_root)
    if all((root / path).is_file() for path, _ in datasets.DATASETS["CIFAR10"].files):
        return "CIFAR10", ""
    return made_up, f"\nCIFAR-10 is not in {root}: made-up images of its shape instead"


def cpu_name():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    cli.run(main)
