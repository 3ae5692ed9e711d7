"""What is claimed of double descent, judged on the runs of this study: Schaeffer et al. 2023 of linear models, and
Somepalli et al. 2022 of deep ones (deep_claims.py).

    python -m double_descent.claims runs/double_descent

Each kind of run has a function that judges it; of several runs of one kind, the one with most repeats (or networks)
counts. Writes results/double_descent/claims.json, which python -m landscape.claims renders into REPRODUCTION.md; claims
there of kinds of which the folder holds no run stay as they are.

The thresholds for linear models were written down before the numbers: an error "peaks" where it is more than TWICE what
it is at both flanks, half and twice as many rows (or the most measured); an ablation removes the peak where it is less.
"""

from pathlib import Path

from double_descent.deep_claims import deep, measured, repeated
from landscape import claims, cli, runs
from landscape.claims import Claim, judge
from landscape.errors import FileProblem

PAPER = "Schaeffer et al. 2023"
TWICE = 2.0
TENFOLD = 10.0
# The settings that are judged, chosen beforehand: right and as published (absolute, where the figures show an effect).
# The largest budget of the paper's figures was added after the others had been judged, and is a claim of its own.
CHOSEN = {False: {"cutoffs": 0.1, "budgets": (1.0,)}, True: {"cutoffs": 1.0, "budgets": (10.0, 31.6)}}
OURS = "no number; this ablation is ours"
COMMAND = "bash scripts/fig_linear_double_descent.sh"


def make_parser():
    return claims.study_parser("double_descent", __doc__)


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    held, judged = found(args.folder), {}
    for kind, make in KINDS.items():
        for published in (False, True):
            run = held.get((kind, published))
            if run:
                judged[family(kind, published)] = make(*run)
    if not judged:
        raise FileProblem(f"{args.folder}: no finished run of {', '.join(KINDS)}; run for example "
                          "python -m double_descent.linear first")
    missing = [f"{family(kind, published)}: {args.folder} holds no such run" for kind in KINDS
               for published in (False, True)
               if family(kind, published) not in judged and (kind, published) != ("deep", True)]
    claims.record(args.out, [c for made in judged.values() for c in made], missing,
                  lambda c: c.id.split(":")[0] in judged)
    return 0


def family(kind, published):
    """What the ids of a run's claims begin with, before a colon."""
    return kind + "_as_published" * published


def found(folder):
    """{(kind, as published): (folder, results)} of the runs with most repeats or networks, the newest of equal ones,
    among those that are judged."""
    out = {}
    if not Path(folder).is_dir():
        raise FileProblem(f"{folder} is not a folder; give the folder of the study's runs")
    for file in runs.below(folder, "results.json"):
        results = runs.read_json(file)
        if results.get("kind") not in KINDS or not (file.parent / "done").exists():
            continue
        if JUDGED[results["kind"]](results):
            rank = extent(results), (file.parent / "done").stat().st_mtime
            key = results["kind"], results.get("as_published", False)
            out.setdefault(key, []).append((rank, file.parent, results))
    return {key: max(several, key=lambda one: one[0])[1:] for key, several in out.items()}


def extent(results):
    """What the run that counts has most of; of deep ones first those with one network a seed."""
    return (not repeated(results), len(results["models"])) if results["kind"] == "deep" else results["repeats"]


def as_said(results):
    """Is a linear run what its claims say: of our own tables, by rows, centred and scaled unless as published?"""
    from double_descent.tables import TABLES

    usual = results["as_published"] or (results["intercept"] and results["scaling"] == "train")
    return usual and results["split_by"] == "row" and set(results["tables"]) <= set(TABLES)


def claim(name, figure, statement, interval, threshold, direction, n, published, said):
    value, low, high = interval
    return Claim(id=name, paper=PAPER, figure=figure, statement=statement, value=shorter(value), low=shorter(low),
                 high=shorter(high), n=n, published=published, protocol=said, command=COMMAND,
                 verdict=judge(low, high, threshold, direction))


def shorter(value):
    return None if value is None else float(f"{value:.4g}")


# ---- linear regression ---------------------------------------------------------------------------------------------


def linear(folder, results):
    """Of each table: the peak, what removes it, and what attacks do to the test error at it."""
    out, published = [], results["as_published"]
    chosen = CHOSEN[published]
    head = family("linear", published)
    how = ("no intercept, no scaling, absolute cut-offs and budgets, the published draws" if published else
           "centred and scaled on the training rows, relative cut-offs and budgets, signs at their worst")
    for name, about in results["tables"].items():
        p, sizes = about["parameters"], about["sizes"]
        left, right = [n for n in sizes if n <= p / 2], [n for n in sizes if 1.5 * p <= n <= 2 * p]
        if p not in sizes or not left or not right:
            continue
        arrays = runs.read_arrays(folder / "arrays" / f"{name}.npz")
        left, right = left[-1], right[-1]
        at = [sizes.index(n) for n in (left, p, right)]
        said = (f"{name}, {results['repeats']} training sets of each size, {how}; median over them of the ratio within "
                f"a repeat, interval over repeats; N = {left}, {p}, {right}")
        peak = f"test error at N = {p} over the greater of both flanks"

        def add(key, figure, statement, values, threshold, direction, paper, head=f"{head}:{name}", said=said):
            out.append(claim(f"{head}-{key}", figure, statement, of_logs(values), threshold, direction,
                             results["repeats"], paper, said))

        add("peak", "ablations, unablated", f"Test error peaks where parameters equal training rows ({peak})",
            over_flanks(arrays["test_mse"], at), TWICE, "above", "peaks in all four tables, no number")
        k = about["cutoffs"].index(chosen["cutoffs"]) if chosen["cutoffs"] in about["cutoffs"] else None
        if k is not None:
            add("cutoff", "ablations, small singular values", "Without small singular values there is no peak "
                f"(cut-off {chosen['cutoffs']:g}: {peak})", over_flanks(arrays["cutoff_test_mse"][k], at), TWICE,
                "below", "the peak goes, no number")
        k = min(range(len(about["modes"])), key=lambda i: abs(about["modes"][i] - p / 2))
        add("modes", "ablations, test features", "With test rows on the leading modes there is no peak "
            f"(k = {about['modes'][k]}: {peak})", over_flanks(arrays["mode_test_mse"][k], at), TWICE, "below",
            "the peak goes, no number")
        if 1.0 in about["ratios"]:
            add("features", "ablations, test features", "With test rows that vary no more than training rows there is "
                f"no peak ({peak})", over_flanks(arrays["feature_test_mse"][about["ratios"].index(1.0)], at), TWICE,
                "below", OURS)
        add("residuals", "ablations, no residuals", f"Without residuals there is no peak ({peak})",
            over_flanks(arrays["noresidual_test_mse"], at), TWICE, "below", "the peak goes, no number")
        add("ridge-loo", "–", f"Ridge with the penalty by leave-one-out has no peak ({peak})",
            over_flanks(arrays["ridge_loo_test_mse"], at), TWICE, "below", OURS)
        add("ridge-best", "–", f"Ridge with the best penalty of each size has no peak ({peak})",
            over_flanks(best_ridge(arrays), at), TWICE, "below", OURS)
        for budget in chosen["budgets"]:
            if budget not in about["budgets"]:
                continue
            k, most = about["budgets"].index(budget), budget != chosen["budgets"][0]
            for key, figure, words in (("attack_mode", "adversarial, test data", "test rows moved along the smallest "
                                        "mode"), ("attack_target", "adversarial, training data", "training targets "
                                        "moved along it, at unchanged training error")):
                factor = arrays[f"{key}_test_mse"][k, at[1]] / arrays["test_mse"][at[1]]
                add(key.replace("_", "-") + "-most" * most, figure, f"Test error at N = {p} grows tenfold or more with "
                    f"{words} (budget {budget:g}{', the largest published' * most}: factor)", factor, TENFOLD, "above",
                    "10 to 1000 times")
    return out


def over_flanks(curve, at):
    """Values (B,) of a curve (S, B) at the middle of three sizes, over the greater of both flanks'."""
    import numpy as np

    left, middle, right = np.maximum(curve[at], 1e-300)
    return middle / np.maximum(left, right)


def best_ridge(arrays):
    import numpy as np

    tests = arrays["ridge_test_mse"]
    best = np.median(tests, axis=-1).argmin(axis=0)
    return np.take_along_axis(tests, best[None, :, None], axis=0)[0]


def of_logs(ratios):
    """(median, low, high) of ratios, the interval from their logarithms, since they are heavy-tailed."""
    import numpy as np

    from landscape import results

    found = results.bootstrap(np.log10(np.maximum(ratios, 1e-300)), np.median)
    return tuple(None if v is None else float(10.0**np.clip(v, -300, 300)) for v in found)


# ---- polynomials ---------------------------------------------------------------------------------------------------


def polynomial(folder, results):
    """Second descent of 15 points: median test errors at P = 30, and at the worst of P = 30 to 50, over that of the
    best P below 15."""
    import numpy as np

    from landscape.results import bootstrap

    out, head = [], family("polynomial", results["as_published"])
    for curve in results["curves"]:
        arrays = runs.read_arrays(folder / "arrays" / curve["arrays"], needs=("degrees", "test_mse"))
        degrees, test = arrays["degrees"], np.log10(arrays["test_mse"])
        first = np.flatnonzero(degrees < curve["points"])
        for key, chosen, words in (("30", degrees == 30, "P = 30"),
                                   ("30-50", (degrees >= 30) & (degrees <= 50), "each of P = 30 to 50")):
            if curve["points"] != 15 or not chosen.any():
                continue

            def ratio(values, chosen=chosen, first=first):
                medians = np.median(values, axis=0)
                return medians[chosen].max() - medians[first].min()

            interval = tuple(None if v is None else float(10.0**v) for v in bootstrap(test, ratio))
            out.append(claim(
                f"{head}:{curve['basis']}-{key}", "polynomial regression", f"The second descent at {words} beats the "
                "best fit with fewer features than points (ratio of median test errors)", interval, 1.0, "below",
                len(test), "0.359 (P = 30) and 0.515 (P = 50) against 0.519 (P = 1), means", f"15 points, "
                f"{curve['basis']} features, {len(test)} repeats, "
                f"{'new points for each P' if results['as_published'] else 'the same points for each P'}; interval "
                "over repeats"))
    return out


KINDS = {"linear": linear, "polynomial": polynomial, "deep": deep}
# Of each kind, whether results have the settings that its claims are about.
JUDGED = {"linear": as_said, "polynomial": lambda results: not results["noise"], "deep": measured}


if __name__ == "__main__":
    cli.run(main)
