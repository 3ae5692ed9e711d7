"""What Sonthalia et al. 2025 claim of stars, judged on the results of star.compare.

    python -m star.claims runs/star

The widths are those of the network that was measured at most of them, the numbers of anchors those of the network that
has stars of most. Barriers are of the loss on the training set, with units aligned by weights. Where the interval is
over held-out networks, a value of each is its mean over all lines that end there, so that differences are paired. The
thresholds were written down before the numbers. Writes results/star/claims.json, which python -m landscape.claims
renders.
"""

from pathlib import Path

from landscape import claims, cli, results
from landscape.claims import Claim, judge
from landscape.errors import FileProblem
from star import comparisons

PAPER = "Sonthalia et al. 2025"
HOW = "weights"
SLOPES = (0.2, 0.45)  # "about 0.3"
COMMANDS = {"width": "bash scripts/fig_star_mnist_width.sh", "anchors": "bash scripts/fig_star_cifar.sh"}


def make_parser():
    parser = cli.Parser("python -m star.claims", __doc__)
    parser.add_argument("folder", metavar="RUNS", help="the folder of the study's runs")
    parser.add_argument("--out", default="results/star/claims.json", metavar="FILE")
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    made = judged(comparisons.comparisons(args.folder))
    if not made:
        raise FileProblem(f"{args.folder}: no star was compared with two held-out networks or more, aligned by {HOW}")
    claims.write(Path(args.out), made)
    for c in made:
        interval = "" if c.low is None else f" [{c.low:.3g}, {c.high:.3g}]"
        print(f"{c.verdict:<12} {c.id}: {c.value:.3g}{interval} ({c.statement})")
    print(f"claims: {args.out}")
    return 0


# ---- values --------------------------------------------------------------------------------------------------------

def per_held_out(found, kind, how=HOW, value=lambda row: row["train"]["loss_barrier"]):
    """{held-out network: mean value over the lines of a kind that end there}."""
    held = {}
    for row in found["lines"]:
        if (row["kind"], row["align"]) == (kind, how):
            held.setdefault(row["b"], []).append(value(row))
    return {b: sum(values) / len(values) for b, values in held.items()}


def difference(a, b):
    """(mean, low, high, n) of values of held-out networks less others of the same ones."""
    values = [a[k] - b[k] for k in sorted(a.keys() & b.keys())]
    return (*results.bootstrap(values), len(values)) if values else None


def slope(sets):
    """(a, low, high, held-out networks of all widths) of star = a regular + b over the widths, least squares. Resampled
    are the held-out networks of each width, for both barriers together."""
    import numpy as np

    pairs = []
    for _, found in sets:
        regular, star = (per_held_out(found, kind) for kind in ("anchor_held_out", "star_held_out"))
        pairs.append(np.array([[regular[k], star[k]] for k in sorted(regular.keys() & star.keys())]))

    def fitted(means):
        return float(np.polyfit(*np.array(means).T, 1)[0])

    return (*results.bootstrap_strata(pairs, fitted), sum(map(len, pairs)))


def decay(sets):
    """(exponent, low, high, n) of the barrier to held-out networks as a power of the number of anchors; the held-out
    networks are resampled, the same ones for every number."""
    import numpy as np

    held = [per_held_out(found, "star_held_out") for _, found in sets]
    names = [set(named(found, h).items()) for (_, found), h in zip(sets, held)]
    shared = sorted(set.intersection(*({path for path, _ in some} for some in names)))
    table = np.array([[dict(some)[path] for path in shared] for some in names])
    if table.shape[1] < 2 or (table.mean(1) <= 0).any():
        return None
    counts = np.log([n for n, _ in sets])

    def fitted(columns):
        return float(np.polyfit(counts, np.log(columns.mean(0).clip(min=1e-6)), 1)[0])

    return (*results.bootstrap(table.T, fitted), len(shared))


def named(found, held):
    paths = {m["number"]: m["path"] for m in found["models"]}
    return {paths[k]: v for k, v in held.items()}


# ---- claims --------------------------------------------------------------------------------------------------------

def judged(found):
    """The claims that these results of star.compare allow."""
    found = [f for f in found if HOW in f["align"] and len(per_held_out(f, "star_held_out")) > 1]
    widths, counts = comparisons.by_width(found), comparisons.by_anchors(found)
    out = []
    if len(widths) > 1:
        out += over_widths(widths)
    if len(counts) > 1:
        out += over_anchors(counts)
    return [c for c in out if c is not None]


def over_widths(sets):
    kinds = "star_held_out", "anchor_held_out"
    out = [claim(f"lower-{width:03}", "Table 2", f"at width {width} the barrier between star and held-out networks is "
                 "below that between regular ones", difference(*(per_held_out(one, kind) for kind in kinds)), 0,
                 "below", "difference of barriers", published(width), one, "width") for width, one in sets]
    return [*out, claim(
        "slope", "Figure 4", "over the widths, the star's barrier is about 0.3 of the regular one", slope(sets), SLOPES,
        "between", "slope of the least-squares line with an offset; held-out networks resampled at each width",
        comparisons.PUBLISHED["slope"], sets[0][1], "width")]


def published(width):
    if width not in comparisons.PUBLISHED["widths"]:
        return None
    k = comparisons.PUBLISHED["widths"].index(width)
    return f"{comparisons.PUBLISHED['star'][k]} against {comparisons.PUBLISHED['regular'][k]}"


def over_anchors(sets):
    (fewer, before), (most, last) = sets[-2:]
    star, regular = (per_held_out(last, kind) for kind in ("star_held_out", "anchor_held_out"))
    drop = difference(shared_values(last), shared_values(before))
    out = [
        claim("lower", "Table 1", "the barrier between star and held-out networks is below that between regular ones",
              difference(star, regular), 0, "below", f"difference of barriers, {most} anchors", "0.077 against 0.381 "
              "(50 anchors)", last, "anchors"),
        claim("anchors", "Figure 1", "the barrier falls with the number of anchors", decay(sets), 0, "below",
              f"exponent of N over N = {', '.join(str(n) for n, _ in sets)}", "-0.55 for N from 10 to 50", last,
              "anchors"),
        claim("levelling", "Figure 1", f"it does not level off: it still falls from {fewer} to {most} anchors", drop, 0,
              "below", "difference of barriers", None, last, "anchors"),
        claim("mean-path", "beyond the paper", "the highest loss on the way to held-out networks is lower from the "
              "star than from the aligned mean of its anchors", difference(
                  *(per_held_out(last, kind, value=lambda r: max(r["train"]["losses"]))
                    for kind in ("star_held_out", "mean_held_out"))), 0, "below",
              f"difference of the highest losses, {most} anchors", None, last, "anchors"),
    ]
    if {"none", "published"} <= set(last["align"]):
        def by(how):
            return per_held_out(last, "anchor_held_out", how)

        out += [
            claim("alignment", "Section 3", "alignment lowers the barrier between regular networks",
                  difference(by("weights"), by("none")), 0, "below", "difference of barriers, aligned less as they are",
                  None, last, "anchors"),
            claim("full-alignment", "beyond the paper", "matching all units by all weights lowers it further than the "
                  "published matching (rebasin 0.0.47)", difference(by("weights"), by("published")), 0, "below",
                  "difference of barriers", None, last, "anchors"),
        ]
    return out


def shared_values(found):
    return named(found, per_held_out(found, "star_held_out"))


def claim(name, figure, statement, value, threshold, direction, protocol, said, found, study):
    """A Claim on (value, low, high, n), None without."""
    if value is None:
        return None
    value, low, high, n = value
    star = found["star"]
    where = (f"{star['net']}{'' if study == 'width' else ' of width ' + str(star['width'])} on {star['dataset']}, "
             f"training loss; {protocol}; interval over {n} held-out networks")
    return Claim(f"star:{study}-{name}" if study == "width" else f"star:{name}", PAPER, figure, statement, value, low,
                 high, n, said, where, judge(low, high, threshold, direction), COMMANDS[study])


if __name__ == "__main__":
    cli.run(main)
