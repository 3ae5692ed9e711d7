"""What is claimed of deep double descent, judged on the results of double_descent.measure along the width."""

import numpy as np

from landscape import results
from landscape.claims import Claim, judge
from landscape.errors import FileProblem

PAPER = "Somepalli et al. 2022"
NOISY, CLEAN = "noise_rate=0.2", "noise_rate=0.0"
COMMAND = "bash scripts/fig_double_descent.sh"
RESAMPLES = 2000
# Claimed of a place on the grid of widths: within one step of another, that is between -1.5 and 1.5 steps.
STEP = (-1.5, 1.5)


def measured(results):
    """Do these results of double_descent.measure hold what is judged: the width, with and without label noise?"""
    return results["along"] == "width" and {NOISY, CLEAN} <= set(results["threshold"])


def deep(folder, results):
    """The claims of results.json of double_descent.measure (folder is not read). Raises FileProblem where a seed was
    not measured at every width."""
    table = Table(results)
    return [*peak(table, "test_error", "test error", True), *peak(table, "test_loss", "test loss", None),
            *regions(table), *margins(table), *ensembles(table)]


class Table:
    """Values by group, width and seed of one results.json."""

    def __init__(self, held):
        self.held = held
        self.widths = sorted({c["x"] for c in held["cells"] if c["group"] == NOISY})
        self.seeds = sorted({m["init_seed"] for m in held["models"] if m["group"] == NOISY})
        rows = {(m["group"], m["x"], m["init_seed"]): m for m in held["models"]}
        wanted = [(g, w, s) for g in (NOISY, CLEAN) for w in self.widths for s in self.seeds]
        if lacking := [key for key in wanted if key not in rows]:
            raise FileProblem(f"a network is missing among those measured: {lacking[0]}; train and measure it")
        self.rows = rows
        self.threshold = held["threshold"][NOISY]

    def curve(self, name, group=NOISY):
        """(seeds, widths) of one measure of networks; NaN where it has none."""
        return np.array([[self.rows[group, w, s][name] for w in self.widths] for s in self.seeds], dtype=float)

    def pairs(self, name, group=NOISY):
        """(widths, seeds, seeds), symmetric, of one measure of pairs of networks."""
        out = np.zeros((len(self.widths), len(self.seeds), len(self.seeds)))
        for c in self.held["cells"]:
            if c["group"] == group:
                for a, b, value in c["pairs"][name]:
                    i, j = (self.seeds.index(self.held["models"][n]["init_seed"]) for n in (a, b))
                    out[self.widths.index(c["x"]), i, j] = out[self.widths.index(c["x"]), j, i] = value
        return out

    def first(self, start):
        """The measure whose name begins so, or None."""
        return next((n for n in self.held["measures"] if n.startswith(start)), None)


def rise(curve):
    """(place of the peak, place of the minimum before it) of a curve (W,): the largest rise above an earlier value; a
    curve that only falls has its peak at its first place."""
    before = np.minimum.accumulate(curve)
    top = int((curve - before).argmax())
    return top, int(curve[:top + 1].argmin())


def located(curves, statistic, seed=0):
    """(value, low, high) of a place on a mean curve: percentiles over seeds drawn anew. curves: a function of weights
    (seeds,) that gives the mean curve, or None where they give none; statistic: of a curve."""
    count = curves.seeds
    rng = np.random.default_rng(seed)
    value, draws = statistic(curves(np.ones(count))), []
    while len(draws) < RESAMPLES:
        drawn = curves(np.bincount(rng.integers(count, size=count), minlength=count).astype(float))
        if drawn is not None:
            draws.append(statistic(drawn))
    return float(value), *(float(q) for q in np.quantile(draws, (0.025, 0.975)))


class Mean:
    """The mean curve of values (seeds, widths) under weights of the seeds."""

    def __init__(self, values):
        self.values, self.seeds = values, len(values)

    def __call__(self, weights):
        return weights @ self.values / weights.sum()


class MeanOfPairs:
    """The mean curve over pairs of different seeds of values (widths, seeds, seeds)."""

    def __init__(self, values):
        self.values, self.seeds = values, values.shape[1]

    def __call__(self, weights):
        each = np.outer(weights, weights)
        np.fill_diagonal(each, 0)
        return None if each.sum() == 0 else (self.values * each).sum((1, 2)) / each.sum()


def claim(name, figure, statement, found, n, published, protocol, threshold, direction):
    value, low, high = found
    return Claim(f"deep:{name}", PAPER, figure, statement, value, low, high, n, published, protocol,
                 judge(low, high, threshold, direction), COMMAND)


def peak(table, name, words, published):
    """Claims of the peak of one measure: the paper's of the test error, and the same of the test loss."""
    curves, clean = table.curve(name), table.curve(name, CLEAN)
    top, before = rise(curves.mean(0))
    widths, n = table.widths, len(curves)
    setting = f"20 % label noise; seeds of initial weights and order; peak at width {widths[top]}"
    paired = f"{setting}, paired over {n} seeds; the places are those of the mean curve"
    key, figure = name.removeprefix("test_"), "Figure 6" if published else "beyond the paper"
    out = [
        claim(f"{key}-rises", figure, f"with label noise, the {words} rises to a peak above a narrower network's",
              results.bootstrap(curves[:, top] - curves[:, before]), n,
              published and ".25 at k = 4, .3-.35 at k = 8-10",
              f"{paired}; the minimum before it is at width {widths[before]}", 0, "above"),
        claim(f"{key}-falls", figure, f"beyond the peak the {words} falls again",
              results.bootstrap(curves[:, top] - curves[:, -1]), n, published and ".3-.35 at k = 8-10, .20 at k = 64",
              f"{paired}, against width {widths[-1]}", 0, "above"),
    ]
    own = [[curve[rise(curve)[0]] - curve[rise(curve)[1]] for curve in each] for each in (curves, clean)]
    out.append(claim(f"{key}-noise", figure, f"without label noise the peak of the {words} is absent or smaller",
                     results.bootstrap(np.subtract(*own)), n, published and "no clear double descent without noise",
                     f"{setting}; largest rise of each seed's own curve, with noise less without, paired over {n} "
                     "seeds", 0, "above"))
    if table.threshold is not None:
        at = widths.index(table.threshold)
        out.append(claim(
            f"{key}-threshold", "Figure 16" if published else figure, f"the peak of the {words} stands where the noisy "
            "training set is just fitted (within one step of the grid of widths)",
            located(Mean(curves), lambda c: rise(c)[0] - at), n, published and "peak and interpolation near k = 10",
            f"{setting}; steps from width {table.threshold}, the smallest with a training error below 5 %; seeds drawn "
            "anew", STEP, "between"))
    return out


def regions(table):
    top = rise(table.curve("test_error").mean(0))[0]
    width, n, out = table.widths[top], len(table.seeds), []
    if name := table.first("fragments_random_train") or table.first("fragments_"):
        out.append(claim(
            "fragmentation", "Figure 10", "fragmentation has its maximum at the peak of the test error (within one "
            "step)", located(Mean(table.curve(name)), lambda c: rise(c)[0] - top), n,
            "sharp peak at k = 10, as the test error's",
            f"{name}, 20 % label noise; steps from width {width}; largest rise above a narrower network's; seeds drawn "
            "anew, planes fixed", STEP, "between"))
    if name := table.first("reproducibility_distinct") or table.first("reproducibility_"):
        out.append(claim(
            "reproducibility", "Figure 11", "reproducibility has its minimum at the peak of the test error (within one "
            "step)", located(MeanOfPairs(table.pairs(name)), lambda c: rise(-c)[0] - top), n,
            "dip at k = 10: .40-.45 from .60-.65", f"{name}, 20 % label noise; steps from width {width}; largest fall "
            "below a narrower network's; seeds drawn anew, planes fixed", STEP, "between"))
    return out


def margins(table):
    top, out = rise(table.curve("test_error").mean(0))[0], []
    for base, words in (("all", "margins grow"), ("mislabelled", "margins of mislabelled images grow too")):
        if name := table.first(f"margin_{base}_"):
            values = table.curve(name)
            if np.isnan(values[:, [top, -1]]).any():
                continue  # too few directions of some network have a change
            out.append(claim(
                f"margin-{base}", "Figure 12", f"beyond the peak {words}",
                results.bootstrap(values[:, -1] - values[:, top]), len(values), "rises for k >= 10, mislabelled too",
                f"median over training images of the mean margin, 20 % label noise, width {table.widths[-1]} less "
                f"width {table.widths[top]}, paired over {len(values)} seeds; normalised units", 0, "above"))
    return out


def ensembles(table):
    errors = table.curve("test_error").mean(0)
    top, before = rise(errors)
    gain, out = table.pairs("ensemble_gain_of_2"), []
    for at, side in ((before, "narrower"), (len(errors) - 1, "wider")):
        out.append(claim(
            f"ensemble-{side}", "beyond the paper", f"ensembling flattens the peak: it gains more there than at the "
            f"{side} flank", results.bootstrap_pairs(gain[top] - gain[at]), len(table.seeds), None,
            f"mean error of two networks less the error of their mean probabilities, width {table.widths[top]} less "
            f"width {table.widths[at]}; all pairs of {len(table.seeds)} seeds, clustered by seed; 20 % label noise", 0,
            "above"))
    return out
