"""What is claimed of deep double descent, judged on the results of double_descent.measure along the width."""

from collections import Counter

import numpy as np

from landscape import results
from landscape.claims import Claim, judge
from landscape.errors import FileProblem

PAPER = "Somepalli et al. 2022"
NOISY, CLEAN = "noise_rate=0.2", "noise_rate=0.0"
COMMAND = "bash scripts/fig_double_descent.sh"
# Claimed of a place on the grid of widths: within one step of another, that is between -1.5 and 1.5 steps.
STEP = (-1.5, 1.5)


def measured(results):
    """Do these results of double_descent.measure hold what is judged: the width, with and without label noise?"""
    return results["along"] == "width" and {NOISY, CLEAN} <= set(results["threshold"])


def deep(folder, results):
    """The claims of results.json of double_descent.measure (folder is not read). Raises FileProblem where a seed was
    not measured at every width, or a seed's initial weights with several data orders."""
    table = Table(results)
    return [*peak(table, "test_error", "test error", True), *peak(table, "test_loss", "test loss", None),
            *regions(table), *margins(table), *ensembles(table)]


def repeated(results):
    """(group, width, seed) that several networks share, or None: there they differ in their data order alone."""
    keys = Counter((m["group"], m["x"], m["init_seed"]) for m in results["models"])
    return next((key for key, count in keys.items() if count > 1), None)


class Table:
    """Values by group, width and seed of one results.json."""

    def __init__(self, held):
        self.held = held
        self.widths = sorted({c["x"] for c in held["cells"] if c["group"] == NOISY})
        self.seeds = sorted({m["init_seed"] for m in held["models"] if m["group"] == NOISY})
        rows = {(m["group"], m["x"], m["init_seed"]): m for m in held["models"]}
        wanted = [(g, w, s) for g in (NOISY, CLEAN) for w in self.widths for s in self.seeds]
        if twice := repeated(held):
            raise FileProblem("several of the networks measured share {}, width {}, init_seed {}: measure one data "
                              "order of each, with --select order_seed=…".format(*twice))
        if lacking := [key for key in wanted if key not in rows]:
            raise FileProblem(f"a network is missing among those measured: {lacking[0]}; train and measure it")
        self.rows = rows

    def curve(self, name, group=NOISY):
        """(seeds, widths) of one measure of networks; NaN where it has none."""
        return np.array([[self.rows[group, w, s][name] for w in self.widths] for s in self.seeds], dtype=float)

    def pairs(self, name, group=NOISY):
        """(widths, seeds, seeds), symmetric, of one measure of pairs of networks; NaN where it has none."""
        out = np.full((len(self.widths), len(self.seeds), len(self.seeds)), np.nan)
        for c in self.held["cells"]:
            if c["group"] == group:
                for a, b, value in c["pairs"].get(name, ()):
                    i, j = (self.seeds.index(self.held["models"][n]["init_seed"]) for n in (a, b))
                    out[self.widths.index(c["x"]), i, j] = out[self.widths.index(c["x"]), j, i] = value
        out[:, range(len(self.seeds)), range(len(self.seeds))] = 0  # not read
        return out

    def first(self, start):
        """The measure whose name begins so, or None."""
        return next((n for n in self.held["measures"] if n.startswith(start)), None)

    def fitted(self, curve):
        """The place on a mean curve of training errors where the set is just fitted; behind the last if nowhere."""
        return int(np.append(curve < self.held["fitted_below"], True).argmax())


def rise(curve):
    """(place of the peak, place of the minimum before it) of a curve (W,): the largest rise above an earlier value; a
    curve that only falls has its peak at its first place."""
    before = np.minimum.accumulate(curve)
    top = int((curve - before).argmax())
    return top, int(curve[:top + 1].argmin())


def flanks(curves):
    """(rise, fall), each (S,), of curves (S, W): each seed's own values at the peak, less those at the minimum before
    it and at the last place. The places are those of the mean curve of the other seeds: at the places of its own
    largest rise a curve without a peak rises too, by chance."""
    out = []
    for s, curve in enumerate(curves):
        others = np.delete(curves, s, axis=0) if len(curves) > 1 else curves
        top, before = rise(others.mean(0))
        out.append((curve[top] - curve[before], curve[top] - curve[-1]))
    return np.array(out).T


def claim(name, figure, statement, found, n, published, protocol, threshold, direction):
    value, low, high = found
    return Claim(f"deep:{name}", PAPER, figure, statement, value, low, high, n, published, protocol,
                 judge(low, high, threshold, direction), COMMAND)


def peak(table, name, words, published):
    """Claims of the peak of one measure: the paper's of the test error, and the same of the test loss."""
    curves, clean, train = table.curve(name), table.curve(name, CLEAN), table.curve("train_error")
    top, before = rise(curves.mean(0))
    widths, n = table.widths, len(curves)
    (risen, fallen), (clean_risen, _) = flanks(curves), flanks(clean)
    setting = f"20 % label noise; seeds of initial weights and order; mean curve's peak at width {widths[top]}"
    paired = f"paired over {n} seeds, each at the places of the mean curve of the others"
    key, figure = name.removeprefix("test_"), "Figure 6" if published else "beyond the paper"
    fitted = table.fitted(train.mean(0))
    where = f"width {widths[fitted]}" if fitted < len(widths) else "behind the last width"
    out = [
        claim(f"{key}-rises", figure, f"with label noise, the {words} rises to a peak above a narrower network's",
              results.bootstrap(risen), n, published and ".25 at k = 4, .3-.35 at k = 8-10",
              f"{setting}, its minimum before that at width {widths[before]}; {paired}", 0, "above"),
        claim(f"{key}-noise", figure, f"without label noise the peak of the {words} is absent or smaller",
              results.bootstrap(risen - clean_risen), n, published and "no clear double descent without noise",
              f"{setting}; rise to the peak with noise less without (there {clean_risen.mean():.3f}); {paired}", 0,
              "above"),
        claim(f"{key}-threshold", "Figure 16" if published else figure, f"the peak of the {words} stands where the "
              "noisy training set is just fitted (within one step of the grid of widths)",
              results.bootstrap(np.stack([curves, train], axis=1),
                                lambda v: rise(v[:, 0].mean(0))[0] - table.fitted(v[:, 1].mean(0))),
              n, published and "peak and interpolation near k = 10",
              f"{setting}; steps from {where}, the smallest with a mean training error below "
              f"{table.held['fitted_below']:.0%}; seeds drawn anew for both", STEP, "between"),
    ]
    if top > 0:  # else the mean curve only falls: there is nothing to fall from again
        out.append(claim(f"{key}-falls", figure, f"beyond the peak the {words} falls again",
                         results.bootstrap(fallen), n, published and ".3-.35 at k = 8-10, .20 at k = 64",
                         f"{setting}; against width {widths[-1]}; {paired}", 0, "above"))
    return out


def regions(table):
    errors = table.curve("test_error")
    width, n, out = table.widths[rise(errors.mean(0))[0]], len(table.seeds), []
    name = table.first("fragments_random_train") or table.first("fragments_")
    if name and not np.isnan(values := table.curve(name)).any():
        out.append(claim(
            "fragmentation", "Figure 10", "fragmentation has its maximum at the peak of the test error (within one "
            "step)", results.bootstrap(np.stack([values, errors], axis=1),
                                       lambda v: rise(v[:, 0].mean(0))[0] - rise(v[:, 1].mean(0))[0]), n,
            "sharp peak at k = 10, as the test error's",
            f"{name}, 20 % label noise; steps from width {width}; largest rise above a narrower network's; seeds drawn "
            "anew for both, planes fixed", STEP, "between"))
    name = table.first("reproducibility_distinct") or table.first("reproducibility_")
    if name and not np.isnan(values := table.pairs(name)).any():
        both = (errors.T[:, :, None] + errors.T[:, None]) / 2  # of pairs, so that the same networks are drawn
        out.append(claim(
            "reproducibility", "Figure 11", "reproducibility has its minimum at the peak of the test error (within one "
            "step)", results.bootstrap_pairs(np.stack([values, both]),
                                             statistic=lambda m: rise(-m[0])[0] - rise(m[1])[0]), n,
            "dip at k = 10: .40-.45 from .60-.65", f"{name}, 20 % label noise; steps from width {width}; largest fall "
            "below a narrower network's; seeds drawn anew for both, planes fixed", STEP, "between"))
    return out


def margins(table):
    top, out = rise(table.curve("test_error").mean(0))[0], []
    if top == 0:  # the error only falls: there is no peak
        return out
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
    if np.isnan(gain).any():  # networks of one seed alone
        return out
    for at, side in ((before, "narrower"), (len(errors) - 1, "wider")):
        if at == top:
            continue  # the error only falls: there is no such flank
        out.append(claim(
            f"ensemble-{side}", "beyond the paper", f"ensembling flattens the peak: it gains more there than at the "
            f"{side} flank", results.bootstrap_pairs(gain[top] - gain[at]), len(table.seeds), None,
            f"mean error of two networks less the error of their mean probabilities, width {table.widths[top]} less "
            f"width {table.widths[at]}; all pairs of {len(table.seeds)} seeds, clustered by seed; 20 % label noise", 0,
            "above"))
    return out
