"""What Wortsman et al. 2021 claim of learned subspaces, judged on the results of subspaces.evaluate.

    python -m subspaces.claims runs/subspaces

Of several results the one with most runs counts, without corruptions. Everything is paired over seeds: a difference is
of runs that share initial weights (the line's first vertex), data order and data. The thresholds were written down
before the numbers. Writes results/subspaces/claims.json, which python -m landscape.claims renders.
"""

import itertools

from landscape import claims, cli, results, runs
from landscape.claims import Claim, judge
from landscape.errors import FileProblem, UsageError

PAPER = "Wortsman et al. 2021"
POINT = 0.01  # of accuracy: "within one point"
COMMAND = "bash scripts/fig_subspaces.sh"
MEND = "claims are of one; measure it alone, with subspaces.evaluate --select KEY=VALUE"
SAME = ("net", "width", "dataset", "train_size", "data_seed")  # of all runs of a claim
PLAIN = {"granularity": "network", "beta": 1.0, "samples": 1, "label_smoothing": 0.0, "dropout": 0.0,
         "ema": 0.0}


def make_parser():
    return claims.study_parser("subspaces", __doc__)


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    found = newest(args.folder)
    made = judged(found)
    if not made:
        raise FileProblem(f"{args.folder}: the results hold no line beside standard networks of the same seeds")
    claims.record(args.out, made)
    return 0


def newest(folder):
    """The results of subspaces.evaluate with most runs, among those of clean images."""
    held = [runs.read_json(f) for f in runs.below(folder, "results.json") if (f.parent / "done").exists()]
    held = [h for h in held if h.get("kind") == "subspaces" and not h["corruption"]]
    if not held:
        raise FileProblem(f"{folder} holds no results of subspaces.evaluate: run it first")
    return max(held, key=lambda h: len(h["runs"]))


# ---- runs ----------------------------------------------------------------------------------------------------------

def chosen(found, **wanted):
    """{seed: row} of the runs with these settings, the published ones where nothing is said; those of fewest epochs.
    Raises UsageError where they are of several rows of the table, or two of one seed."""
    wanted = {**PLAIN, "noise_rate": 0.0, "scheduler": "cosine", **wanted}
    if wanted["family"] == "standard":
        wanted = {k: v for k, v in wanted.items() if k not in ("granularity", "beta", "samples")}
    rows = [r for r in found["runs"] if all(r.get(k) == v for k, v in wanted.items())]
    least = min((r["epochs"] for r in rows), default=0)
    rows = [r for r in rows if r["epochs"] == least]
    for a, b in itertools.combinations(rows, 2):
        if a["group"] != b["group"] or a["init_seed"] == b["init_seed"]:
            raise UsageError(f"{a['path']} and {b['path']} are two treatments, or two runs of one seed: {MEND}")
    return {r["init_seed"]: r for r in rows}


def of_kind(row, kind):
    return [p for p in row["points"] if p["kind"] == kind]


def middle(row):
    """The midpoint of a path. Raises UsageError where it was not measured."""
    for p in of_kind(row, "path"):
        if p["t"] == 0.5:
            return p
    raise UsageError(f"{row['path']}: its midpoint was not measured; give subspaces.evaluate an odd --positions")


def paired(a, b, value_a, value_b):
    """{seed: value_a of a's row less value_b of b's} over the seeds that both have."""
    return {s: value_a(a[s]) - value_b(b[s]) for s in a.keys() & b.keys()}


def less_pairs(found, standard, values):
    """{seed: row} of a symmetric matrix over networks: the mean of the values {seed: number} of two seeds less the
    accuracy of the ensemble of their standard networks. Drawing networks then draws their values with them."""
    places, together = {found["runs"].index(row): seed for seed, row in standard.items()}, {}
    for p in found["independent"]:
        if p["a"] in places and p["b"] in places:
            s, t = places[p["a"]], places[p["b"]]
            together[s, t] = together[t, s] = p["accuracy_probability"]
    seeds = sorted(standard.keys() & values.keys())
    if len(seeds) < 2 or not together:
        return {}
    return {s: [0.0 if s == t else (values[s] + values[t]) / 2 - together[s, t] for t in seeds] for s in seeds}


# ---- claims --------------------------------------------------------------------------------------------------------

def judged(found):
    for k in SAME:
        if len(values := {str(r.get(k)) for r in found["runs"]}) > 1:
            raise UsageError(f"the results are of runs of several {k}, {', '.join(sorted(values))}: {MEND}")
    line, standard = chosen(found, family="line"), chosen(found, family="standard")
    averaged = chosen(found, family="standard", scheduler="swa_cyclic")
    rate = max((r["noise_rate"] for r in found["runs"] if r["noise_rate"]), default=None)

    def model(key):
        return lambda row: of_kind(row, "model")[0][key]

    def swa(key):
        return lambda row: of_kind(row, "swa")[0][key]

    def midpoint(key):
        return lambda row: middle(row)[key]

    averaged = {s: r for s, r in averaged.items() if of_kind(r, "swa")}
    at = {s: m for s, row in line.items() if (m := mirrored(row, 0.2))}
    both = less_pairs(found, standard, {s: m["accuracy_probability"] for s, m in at.items()})
    out = [
        claim("flat", "Figure 4", "every network along the line is within one point of accuracy of standard training",
              paired(line, standard, lambda r: min(p["accuracy"] for p in of_kind(r, "path")), model("accuracy")),
              -POINT, "above", "the worst of the line's points less the standard network"),
        claim("midpoint-accuracy", "Figure 4", "the midpoint is more accurate than standard training",
              paired(line, standard, midpoint("accuracy"), model("accuracy")), 0, "above", "difference of accuracies"),
        claim("midpoint-ece", "Section 4.3", "the midpoint is better calibrated than standard training",
              paired(line, standard, midpoint("ece"), model("ece")), 0, "below", "difference of ECE, 20 bins"),
        claim("midpoint-swa-accuracy", "abstract", "the midpoint is more accurate than stochastic weight averaging",
              paired(line, averaged, midpoint("accuracy"), swa("accuracy")), 0, "above",
              "difference of accuracies; SWA of the cyclic schedule, the same epochs in all"),
        claim("midpoint-swa-ece", "Section 4.3", "the midpoint is better calibrated than stochastic weight averaging",
              paired(line, averaged, midpoint("ece"), swa("ece")), 0, "below", "difference of ECE, 20 bins"),
        claim("ensemble", "abstract, figure 4", "the ensemble of two points of one line comes within one point of "
              "accuracy of the ensemble of two independent networks", both, -POINT, "above",
              "points 0.2 and 0.8; mean of probabilities; of each seed's network with each of the others; networks are "
              "drawn, not pairs", results.bootstrap_pairs),
        claim("ensemble-midpoint", "figure 4", "the ensemble of two points of one line is more accurate than its "
              "midpoint", {s: at[s]["accuracy_probability"] - middle(line[s])["accuracy"] for s in at}, 0, "above",
              "points 0.2 and 0.8"),
        claim("diversity", "beyond the paper", "disagreement grows with the distance along the line",
              {s: r["growth"]["disagreement"] for s, r in line.items()
               if r["growth"] and r["growth"]["disagreement"] is not None}, 0, "above",
              "rank correlation over all pairs of points"),
        claim("regulariser", "Section 3", "the regulariser keeps the ends apart: without it their squared cosine is "
              "larger", paired(chosen(found, family="line", beta=0.0), line, lambda r: r["squared_cosines"][0],
                               lambda r: r["squared_cosines"][0]), 0, "above",
              "squared cosine of the ends' matrices at the end of training, beta 0 less beta 1"),
    ]
    if rate:
        noisy = {"noise_rate": rate}
        out.append(claim(
            "noise", "Section 4.4", "the midpoint is more robust to label noise than standard training",
            paired(chosen(found, family="line", **noisy), chosen(found, family="standard", **noisy),
                   midpoint("accuracy"), model("accuracy")), 0, "above",
            f"difference of accuracies on clean test labels, {rate:.0%} of the training labels drawn anew"))
    return [c for c in out if c is not None]


def mirrored(row, t):
    near = [m for m in row["mirrored"] if abs(m["t"] - t) < 1e-6]
    return near[0] if near else None


def claim(name, figure, statement, values, threshold, direction, protocol, bootstrap=results.bootstrap):
    """A Claim on numbers {seed: value}, or None without any. The paper's own numbers stand only in its figures."""
    if not values:
        return None
    value, low, high = bootstrap([values[s] for s in sorted(values)])
    return Claim(f"subspaces:{name}", PAPER, figure, statement, value, low, high, len(values), None,
                 f"{protocol}; paired over {len(values)} seeds", judge(low, high, threshold, direction), COMMAND)


if __name__ == "__main__":
    cli.run(main)
