"""Barriers in the YAML form of aktsonthalia/starlight (results/out/*.yaml), written and read; and their summary.

    python -m star.starlight --read results/out/resnet18_cifar10_sgd.yaml

Prints mean ± standard deviation and an interval clustered by network of each list in the files. A list holds pairs:
model1_id, model2_id, barriers of loss (at least 0) and accuracy (at most 0, a share) on both splits, and the curves,
accuracies in percent. Here nothing is rounded.
"""

from landscape import cli
from landscape.errors import ContentError, FileProblem, UsageError
from landscape.runs import write_bytes

KINDS = ("anchor_held_out", "star_held_out", "star_anchor")
NUMBERS = ("train_loss_barrier", "test_loss_barrier", "train_acc_barrier", "test_acc_barrier")


def write(path, found, how, norm, kind):
    """The lines of one alignment and kind of BatchNorm, of what star.barriers found, as a YAML file."""
    import yaml

    some = [r for r in found["lines"] if (r["align"], r["bn"]) == (how, norm)]
    pairs = pairs_of(some, [m["path"] for m in found["models"]])
    held = {"model": found["models"][0]["group"], "dataset": found.get("dataset", ""), "setting": f"{how}_{norm}",
            **{k: pairs if k == kind else [] for k in KINDS}}
    write_bytes(path, yaml.safe_dump(held, sort_keys=False).encode())


def pairs_of(rows, names):
    """Lines of star.barriers, whose ends have these names, as such a list."""
    pairs = []
    for row in rows:
        one = {"model1_id": names[row["a"]], "model2_id": names[row["b"]], "ts": row["ts"]}
        for part in ("train", "test"):
            one[f"{part}_loss_barrier"] = row[part]["loss_barrier"]
            one[f"{part}_acc_barrier"] = row[part]["accuracy_barrier"]
            one[f"{part}_losses"] = row[part]["losses"]
            one[f"{part}_accuracies"] = [100 * v for v in row[part]["accuracies"]]
        pairs.append(one)
    return pairs


def read(path):
    """{"model", "dataset", "setting", kind: [pairs]} of such a file. Raises FileProblem and ContentError."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            held = yaml.safe_load(file)
    except OSError as e:
        raise FileProblem(f"{path}: {e.strerror.lower()}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ContentError(f"{path} is not YAML: {' '.join(str(e).split())[:200]}") from None
    if not isinstance(held, dict) or not any(isinstance(held.get(k), list) for k in KINDS):
        raise ContentError(f"{path} holds none of the lists {', '.join(KINDS)}")
    for kind in KINDS:
        held[kind] = held.get(kind) or []
        for number, pair in enumerate(held[kind]):
            try:
                pair |= {k: float(pair[k]) for k in NUMBERS}
                pair["model1_id"], pair["model2_id"]
            except (KeyError, TypeError, ValueError) as e:
                raise ContentError(f"{path}: pair {number} of {kind} lacks {e}") from None
    return held


def over_pairs(values, level=0.95):
    """{"pairs", "networks", "value", "stdev", "least", "most", "low", "high"} of {(a, b): value}, a and b any names.

    The interval is clustered by network, where the pairs are all of two sets or all of one; over pairs where one of two
    sets is a single network; None else, and for too few networks. It is cut at 0 where no value lies beyond: barriers
    have one sign.
    """
    import numpy as np

    from landscape import results

    firsts, seconds = (list(dict.fromkeys(pair[k] for pair in values)) for k in (0, 1))
    numbers = np.array(list(values.values()))
    everyone = list(dict.fromkeys([*firsts, *seconds]))
    found = float(numbers.mean()), None, None
    if len(numbers) == len(firsts) * len(seconds) and not set(firsts) & set(seconds):
        table = np.array([[values[a, b] for b in seconds] for a in firsts])
        found = (results.bootstrap(numbers, level=level) if min(table.shape) == 1 else
                 results.bootstrap_between(table, level=level))
    elif len(numbers) == len(everyone) * (len(everyone) - 1) // 2:
        table = np.zeros((len(everyone),) * 2)
        for (a, b), value in values.items():
            i, j = everyone.index(a), everyone.index(b)
            table[i, j] = table[j, i] = value
        found = results.bootstrap_pairs(table, level=level)
    least, most = (0 if numbers.min() >= 0 else -np.inf), (0 if numbers.max() <= 0 else np.inf)
    low, high = (end if end is None else float(np.clip(end, least, most)) for end in found[1:])
    return {"pairs": len(numbers), "networks": len(everyone), "value": found[0],
            "stdev": float(numbers.std(ddof=1)) if len(numbers) > 1 else None, "least": float(numbers.min()),
            "most": float(numbers.max()), "low": low, "high": high}


def shown(row):
    spread = "" if row["stdev"] is None else f" ± {row['stdev']:.4f}"
    ends = "" if row["low"] is None else f" [{row['low']:.4f}, {row['high']:.4f}]"
    return f"{row['value']:.4f}{spread}{ends}"


def make_parser():
    parser = cli.Parser("python -m star.starlight", __doc__)
    parser.add_argument("--read", nargs="+", default=[], metavar="FILE.yaml", help="files of this form")
    parser.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals")
    return parser


def main(argv=None):
    args = make_parser().settings(argv)
    if not args.read:
        raise UsageError("--read names no file")
    for path in args.read:
        held = read(path)
        print(f"{path}: {held.get('model')} {held.get('dataset')} {held.get('setting')}")
        for kind in (k for k in KINDS if held[k]):
            for name in NUMBERS:
                values = {(p["model1_id"], p["model2_id"]): p[name] for p in held[kind]}
                row = over_pairs(values, args.level)
                print(f"  {kind:<16} {name:<20} {row['pairs']:>4} pairs  {shown(row)}")
    return 0


if __name__ == "__main__":
    cli.run(main)
