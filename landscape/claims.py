"""The form of a claim, and the ledger of all claims. No torch, no study.

A claim is one published statement, the number that a command of ours recomputes for it, and a verdict. A
study writes its claims to results/<study>/claims.json, and

    python -m landscape.claims

renders all of them into REPRODUCTION.md.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from landscape.errors import ContentError, FileProblem
from landscape.runs import read_json, write_bytes

VERDICTS = ("holds", "fails", "not decided")
EMPTY = "No claim is recorded yet.\n"
HEAD = (
    "What the papers state, what we measure, and whether it holds. `python -m landscape.claims` writes this",
    "page from `results/*/claims.json`; nothing here is written by hand. A claim *holds* when the whole 95 %",
    "interval of our number is on the claimed side, *fails* when none of it is, and is *not decided* else.",
)


@dataclass(frozen=True)
class Claim:
    """One row of the ledger. `published` is what the paper says, in words or as a number, or None where it
    gives no number; `protocol` says how ours was measured and over what the interval runs (n units); low and
    high are the ends of the interval, or None where n allows none."""

    id: str
    paper: str
    figure: str
    statement: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    published: float | str | None
    protocol: str
    verdict: str
    command: str

    def __post_init__(self):
        for field in ("id", "paper", "figure", "statement", "protocol", "verdict", "command"):
            if not isinstance(getattr(self, field), str) or not getattr(self, field):
                raise ContentError(f"claim {self.id!r}: {field} is a text that is not empty")
        for field in ("value", "low", "high"):
            if not _number_or_none(getattr(self, field)):
                raise ContentError(f"claim {self.id!r}: {field} is a finite number or null")
        if not isinstance(self.published, str) and not _number_or_none(self.published):
            raise ContentError(f"claim {self.id!r}: published is a text, a finite number or null")
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 0:
            raise ContentError(f"claim {self.id!r}: n is a whole number from 0")
        if self.verdict not in VERDICTS:
            raise ContentError(f"claim {self.id!r}: verdict {self.verdict!r}; known: {', '.join(VERDICTS)}")
        if (self.low is None) != (self.high is None) or (self.low is not None and self.low > self.high):
            raise ContentError(f"claim {self.id!r}: an interval has two ends, the lower one first")


def judge(low, high, threshold, direction):
    """The verdict on "the number is above, or below, threshold" or "between" two thresholds, given its
    interval.

    "holds" when the whole interval is strictly on the claimed side, "fails" when none of it is, else "not
    decided": the data do not tell. An interval of None is "not decided" too.
    """
    if direction not in ("above", "below", "between"):
        raise ValueError(f"direction {direction!r}; known: above, below, between")
    bounds = {"above": (threshold, math.inf), "below": (-math.inf, threshold), "between": threshold}
    bottom, top = bounds[direction]
    if low is None or high is None:
        return "not decided"
    if math.isnan(low) or math.isnan(high) or low > high:
        raise ValueError(f"[{low}, {high}] is no interval")
    if low > bottom and high < top:
        return "holds"
    return "fails" if high <= bottom or low >= top else "not decided"


def write(path, claims):
    """Write claims to results/<study>/claims.json, sorted by id. ContentError if an id occurs twice."""
    claims = sorted(claims, key=lambda claim: claim.id)
    _check_ids(path, claims)
    text = json.dumps(
        [dataclasses.asdict(claim) for claim in claims], indent=1, allow_nan=False, ensure_ascii=False
    )
    write_bytes(path, (text + "\n").encode())


def study_parser(study, doc):
    """The flags of python -m <study>.claims: the folder of its runs, and --out."""
    from landscape.cli import Parser

    parser = Parser(f"python -m {study}.claims", doc)
    parser.add_argument("folder", metavar="RUNS", help="the folder of the study's runs")
    parser.add_argument("--out", default=f"results/{study}/claims.json", metavar="FILE", help="where they go")
    return parser


def record(path, fresh, missing=(), replaced=None):
    """Write fresh claims into path and print them, with a line for each of the missing ones. Claims that are there stay
    where replaced(claim) is false; without it none does."""
    path = Path(path)
    kept = [c for c in read(path) if not replaced(c)] if replaced and path.exists() else []
    write(path, kept + fresh)
    for claim in fresh:
        interval = "" if claim.low is None else f" [{claim.low:.3g}, {claim.high:.3g}]"
        value = "-" if claim.value is None else f"{claim.value:.3g}"
        print(f"{claim.verdict:<12} {claim.id}: {value}{interval} ({claim.statement})")
    for line in missing:
        print(f"left out     {line}")
    if replaced:
        print(f"kept: {len(kept)} claims of other runs")
    print(f"claims: {path}")


def read(path):
    """The claims of a claims.json. ContentError names the file and what is wrong with it."""
    rows = read_json(path, list)
    if not all(isinstance(row, dict) for row in rows):
        raise ContentError(f"{path}: a list of claims is expected; run the study's claims command again")
    fields = {field.name for field in dataclasses.fields(Claim)}
    claims = []
    for number, row in enumerate(rows, 1):
        if row.keys() != fields:
            wrong = ", ".join(sorted(row.keys() ^ fields))
            raise ContentError(
                f"{path}: claim {number} lacks or should not have: {wrong}; run its command again"
            )
        try:
            claims.append(Claim(**row))
        except ContentError as error:
            raise ContentError(f"{path}: {error}") from None
    _check_ids(path, claims)
    return claims


def render(studies):
    """The ledger as Markdown: studies maps each study's name to its claims."""
    lines = ["# Reproduction", "", *HEAD, ""]
    studies = {name: claims for name, claims in sorted(studies.items()) if claims}
    if not studies:
        return "\n".join(lines) + "\n" + EMPTY
    counts = {v: sum(c.verdict == v for claims in studies.values() for c in claims) for v in VERDICTS}
    lines.append("Claims: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + ".")
    for name, claims in studies.items():
        lines += ["", f"## {name.replace('_', ' ')}", ""]
        lines.append(
            "| Claim | Source | Statement | Ours [interval] | n | Published | Verdict | Protocol | Command |"
        )
        lines.append("|---|---|---|---|---|---|---|---|---|")
        for claim in sorted(claims, key=lambda claim: claim.id):
            source = f"{claim.paper}, {claim.figure}"
            cells = [claim.id, source, claim.statement, _measured(claim), claim.n, _shown(claim.published)]
            cells += [f"**{claim.verdict}**", claim.protocol, f"`{claim.command}`"]
            lines.append("| " + " | ".join(_escaped(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _check_ids(path, claims):
    ids = [claim.id for claim in claims]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise ContentError(f"{path}: more than one claim has the id {twice[0]!r}")


def _number_or_none(value):
    return value is None or (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    )


def _measured(claim):
    interval = "" if claim.low is None else f" [{_shown(claim.low)}, {_shown(claim.high)}]"
    return _shown(claim.value) + interval


def _shown(value):
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _escaped(cell):
    return " ".join(str(cell).split()).replace("|", "\\|")


def main(argv=None):
    from landscape.cli import Parser

    parser = Parser("python -m landscape.claims", __doc__)
    parser.add_argument("--results", default="results", metavar="DIR", help="folder with <study>/claims.json")
    parser.add_argument("--out", default="REPRODUCTION.md", metavar="FILE", help="page to write")
    args = parser.settings(argv)
    root = Path(args.results)
    if not root.is_dir():
        raise FileProblem(f"{root} is not a folder; give the folder of <study>/claims.json with --results")
    studies = {path.parent.name: read(path) for path in sorted(root.glob("*/claims.json"))}
    write_bytes(args.out, render(studies).encode())
    print(f"{sum(map(len, studies.values()))} claims of {len(studies)} studies in {args.out}")


if __name__ == "__main__":
    from landscape.cli import run

    run(main)
