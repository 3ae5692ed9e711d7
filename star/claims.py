"""What Sonthalia et al. 2025 claim of stars, judged on the results of star.compare and star.bma.

    python -m star.claims runs/star

The widths are those of the network that was measured at most of them, the numbers of anchors those of the network that
has stars of most, and so on. Barriers are of the loss on the training set, with units aligned by weights. Where the
interval is over held-out networks, a value of each is its mean over all lines that end there, so that differences are
paired; ways to train a star are compared star by star (one seed) and held-out network by held-out network. The
thresholds were written down before the numbers. Writes results/star/claims.json, which python -m landscape.claims
renders.
"""

from landscape import claims, cli, results
from landscape.claims import Claim, judge
from landscape.errors import FileProblem
from star import comparisons

PAPER = "Sonthalia et al. 2025"
HOW = "weights"
SLOPES = (0.2, 0.45)  # "about 0.3"
COMMANDS = {"width": "bash scripts/fig_star_mnist_width.sh", "anchors": "bash scripts/fig_star_cifar.sh",
            "tables": "bash scripts/fig_star_tables.sh"}


def make_parser():
    return claims.study_parser("star", __doc__)


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    made = judged(comparisons.comparisons(args.folder), comparisons.averages(args.folder))
    if not made:
        raise FileProblem(f"{args.folder}: no star was compared with two held-out networks or more, aligned by {HOW}, "
                          "and none averaged by star.bma")
    commands = {claim.command for claim in made}
    claims.record(args.out, made, replaced=lambda claim: claim.command in commands)  # those of the other script stay
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


def apart(sets, one, other):
    """(mean, low, high, lines) of the barriers between stars of one recipe and held-out networks, less those of stars
    of another, of the same seeds; both stars and held-out networks are resampled. None without a seed in common."""
    import numpy as np

    first, second = ({found["star"]["init_seed"]: shared_values(found) for found in sets.get(name, ())}
                     for name in (one, other))
    table = [[first[seed][b] - second[seed][b] for b in sorted(first[seed])]
             for seed in sorted(first.keys() & second.keys()) if first[seed].keys() == second[seed].keys()]
    return (*results.bootstrap_between(table), np.size(table)) if table else None


def by_seed(some, which):
    """{seed: what the star itself gives}, "train_loss" or "test_accuracy"."""
    return {found["star"]["init_seed"]: next(m[which] for m in found["models"] if m["role"] == "star")
            for found in some}


def over_single(some, which):
    """(difference, low, high, stars) of stars less the regular networks beside them; both are resampled."""
    import numpy as np

    if not some:
        return None
    stars = np.array(list(by_seed(some, which).values()))
    regular = {m["path"]: m[which] for found in some for m in found["models"] if m["role"] in ("anchor", "held_out")}
    return (*results.bootstrap_strata([stars, np.array(list(regular.values()))], lambda means: means[0] - means[1]),
            len(stars))


def named(found, held):
    paths = {m["number"]: m["path"] for m in found["models"]}
    return {paths[k]: v for k, v in held.items()}


# ---- claims --------------------------------------------------------------------------------------------------------

def judged(found, averages=()):
    """The claims that these results of star.compare and of star.bma allow."""
    found = [f for f in found if HOW in f["align"] and len(per_held_out(f, "star_held_out")) > 1]
    widths, counts, recipes = comparisons.by_width(found), comparisons.by_anchors(found), comparisons.by_recipe(found)
    out = []
    if len(widths) > 1:
        out += over_widths(widths)
    if len(counts) > 1:
        out += over_anchors(counts)
    if len(recipes) > 1:
        out += over_recipes(recipes)
    if len(averages) > 1:
        out += over_averages(averages)
    return [c for c in out if c is not None]


def over_widths(sets):
    kinds, first = ("star_held_out", "anchor_held_out"), sets[0][1]["star"]
    out = [claim(f"width-lower-{width:03}", "width study", f"at width {width} the barrier between star and held-out "
                 "networks is below that between regular ones",
                 difference(*(per_held_out(one, kind) for kind in kinds)), 0, "below", "difference of barriers",
                 published(width), of(one), "width") for width, one in sets]
    return [*out, claim(
        "width-slope", "width study", "over the widths, the star's barrier is about 0.3 of the regular one",
        slope(sets), SLOPES, "between", "slope of the least-squares line with an offset; held-out networks resampled "
        "at each width", comparisons.PUBLISHED["slope"], f"{first['net']} on {first['dataset']}, training loss",
        "width")]


def published(width):
    if width not in comparisons.PUBLISHED["widths"]:
        return None
    k = comparisons.PUBLISHED["widths"].index(width)
    return f"{comparisons.PUBLISHED['star'][k]} against {comparisons.PUBLISHED['regular'][k]}"


def over_anchors(sets):
    (fewer, before), (most, last) = sets[-2:]
    star, regular = (per_held_out(last, kind) for kind in ("star_held_out", "anchor_held_out"))
    drop, where = difference(shared_values(last), shared_values(before)), of(last)
    out = [
        claim("lower", "main table", "the barrier between star and held-out networks is below that between regular "
              "ones", difference(star, regular), 0, "below", f"difference of barriers, {most} anchors",
              "0.077 against 0.381 (50 anchors)", where, "anchors"),
        claim("anchors", "Figure 1", "the barrier falls with the number of anchors", decay(sets), 0, "below",
              f"exponent of N over N = {', '.join(str(n) for n, _ in sets)}", "-0.55 for N from 10 to 50", where,
              "anchors"),
        claim("levelling", "Figure 1", f"it does not level off: it still falls from {fewer} to {most} anchors", drop, 0,
              "below", "difference of barriers", None, where, "anchors"),
        claim("mean-path", "beyond the paper", "the highest loss on the way to held-out networks is lower from the "
              "star than from the aligned mean of its anchors", difference(
                  *(per_held_out(last, kind, value=lambda r: max(r["train"]["losses"]))
                    for kind in ("star_held_out", "mean_held_out"))), 0, "below",
              f"difference of the highest losses, {most} anchors", None, where, "anchors"),
    ]
    if {"none", "published"} <= set(last["align"]):
        def by(how):
            return per_held_out(last, "anchor_held_out", how)

        out += [
            claim("alignment", "method", "alignment lowers the barrier between regular networks",
                  difference(by("weights"), by("none")), 0, "below", "difference of barriers, aligned less as they are",
                  None, where, "anchors"),
            claim("full-alignment", "beyond the paper", "matching all units by all weights lowers it further than the "
                  "published matching (rebasin 0.0.47)", difference(by("weights"), by("published")), 0, "below",
                  "difference of barriers", None, where, "anchors"),
        ]
    return out


def over_recipes(sets):
    where = of(next(iter(sets.values()))[0])
    uniform, beta, half, own = "t uniform", "t beta", "t constant", "t uniform, mu = 1"
    return [
        claim("tables-beta", "t sampling", "drawing t from Beta(2, 2) lowers the barrier to held-out networks below "
              "that of uniform t", apart(sets, beta, uniform), 0, "below", "difference of barriers",
              "0.069 against 0.084", where, "tables", "{n} lines"),
        claim("tables-half", "t sampling", "t = 1/2 throughout lowers it further", apart(sets, half, beta), 0, "below",
              "difference of barriers, less Beta(2, 2)", "0.018 against 0.069", where, "tables", "{n} lines"),
        claim("tables-half-loss", "t sampling", "but then the star itself has a higher loss than with uniform t",
              difference(*(by_seed(sets.get(name, ()), "train_loss") for name in (half, uniform))), 0, "above",
              "difference of the stars' losses", "0.082 against 0.001", where, "tables", "{n} seeds"),
        claim("tables-mu", "fusion", "a star that is trained on its own loss too (mu = 1) is more accurate than "
              "regular networks", over_single(sets.get(own), "test_accuracy"), 0, "above",
              "difference of test accuracies", "78.4 against 77.3 % on CIFAR-100, 50 anchors", where, "tables",
              "{n} stars and the regular networks"),
    ]


def over_averages(some):
    """Of results of star.bma: the average over the star domain less the deep ensemble, a value for each star."""
    found = some[0]
    held = {m: {f["star"]: next(r["value"] for r in f["rows"] if (r["predictor"], r["measure"]) == ("difference", m))
                for f in some} for m in ("wrong_confidence", "ece")}
    values = {m: (*results.bootstrap(list(v.values())), len(v)) for m, v in held.items() if None not in v.values()}
    where = f"{found['net']} on {found['dataset']}"
    how = f"{found['members']} members, mean over {found['draws']} draws; star-domain average less deep ensemble"
    return [
        claim("tables-bma-auroc", "star-domain averages", "averaged over the star domain, predictions tell wrong "
              "answers from right ones better than the deep ensemble of the anchors", values.get("wrong_confidence"),
              0, "above", f"AUROC by the highest probability, {how}", "better (a figure without numbers)", where,
              "tables", "{n} stars"),
        claim("tables-bma-ece", "star-domain averages", "and they are calibrated worse", values.get("ece"), 0, "above",
              f"calibration error, {how}", "worse (a figure without numbers)", where, "tables", "{n} stars"),
    ]


def shared_values(found):
    return named(found, per_held_out(found, "star_held_out"))


def of(found):
    """What a comparison measured, in words."""
    star = found["star"]
    return f"{star['net']} of width {star['width']} on {star['dataset']}, training loss"


def claim(name, figure, statement, value, threshold, direction, protocol, said, where, study,
          over="{n} held-out networks"):
    """A Claim on (value, low, high, n), None without. said: what the paper says; where: on what we measured; over: what
    the interval runs over, in words."""
    if value is None:
        return None
    value, low, high, n = value
    return Claim(f"star:{name}", PAPER, figure, statement, value, low, high, n, said,
                 f"{where}; {protocol}; interval over {over.format(n=n)}", judge(low, high, threshold, direction),
                 COMMANDS[study])


if __name__ == "__main__":
    cli.run(main)
