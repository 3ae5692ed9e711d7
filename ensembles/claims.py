"""What is claimed of deep ensembles, judged on the results of this study: Fort et al. 2019 (arXiv 1912.02757), and the
numbers of its re-implementation (github.com/ayulockin/LossLandscape).

    python -m ensembles.claims runs/ensembles_cpu

Reads every results.json of ensembles.similarity, evaluate and shift under the given folder; of several of one kind
and network, the one with the usual settings and most members counts. Writes results/ensembles/claims.json, which
python -m landscape.claims renders into REPRODUCTION.md; claims there of networks of which the folder holds no results
stay as they are.

The thresholds were written down before the numbers: "several times" is more than SEVERAL, "near 0" within NEAR_ZERO,
"near 1" above NEAR_ONE, "hardly" less than HARDLY of what independent networks gain, "near the upper limit" above
HALF of it, "well below" less than HALF of independent networks. Published numbers are met within the tolerances of MET.
"""

from pathlib import Path

import numpy as np

from landscape import claims, cli, results, runs
from landscape.claims import Claim, judge
from landscape.errors import FileProblem

PAPER = "Fort et al. 2019"
SEED = "LossLandscape (re-implementation)"
COMMAND = "bash scripts/fig_deep_ensembles.sh"
SEVERAL, NEAR_ZERO, NEAR_ONE, HARDLY, HALF = 2.0, 0.1, 0.95, 0.25, 0.5
SAME_ACCURACY = 0.02
# The settings that the claims are about.
USUAL = {"split": "test", "which": "model", "any_preprocessing": False, "late": 10, "max_size": 10, "align": "none",
         "source": "computed", "corruptions": ["all"], "severities": [1, 2, 3, 4, 5]}
SAMPLERS = ("random", "diagonal", "pca", "pca_scaled", "dropout")
# Of the re-implementation, read off its tables and figures: mean test accuracy of independent networks, accuracy of an
# ensemble of ten, disagreement of independent networks and of the last ten epochs, weight cosine of independent ones.
PUBLISHED = {
    "small_cnn": {"accuracy": .6436, "ensemble": .6875, "independent": .271, "late": .063, "cosine": .013},
    "medium_cnn": {"accuracy": .7741, "ensemble": .832, "independent": .222, "late": .059, "cosine": .022},
    "resnet20v1": {"accuracy": .8659, "ensemble": .898, "independent": .132, "late": .057, "cosine": .186},
}  # fmt: skip
MET = {"accuracy": .02, "ensemble": .02, "independent": .03, "late": .02}


def make_parser():
    return claims.study_parser("ensembles", __doc__)


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    held = found(args.folder)
    if not held:
        raise FileProblem(f"{args.folder}: no results of {', '.join(KINDS)}; run for example "
                          "python -m ensembles.similarity first")
    fresh, judged = [], set()
    for (kind, net), result in sorted(held.items()):
        fresh += KINDS[kind](net, result)
        judged.add((kind, net))
    claims.record(args.out, fresh, replaced=lambda c: tuple(c.id.split(":")[:2]) in judged)
    return 0


def found(root):
    """{(kind, network): results} of the finished runs under root whose networks are of one architecture; of several,
    the newest of those with the fewest settings that are not USUAL and then the most networks."""
    root, out = Path(root), {}
    if not root.is_dir():
        raise FileProblem(f"{root} is not a folder; give the folder of the study's runs")
    for file in runs.below(root, "results.json"):
        result = runs.read_json(file)
        if result.get("kind") in KINDS and (file.parent / "done").exists() and len(result["nets"]) == 1:
            result["folder"] = file.parent
            config = results.config_of(file.parent / "config.yaml")
            unusual = sum(config.get(k, v) != v for k, v in USUAL.items())
            rank = -unusual, len(result["models"]), (file.parent / "done").stat().st_mtime
            out.setdefault((result["kind"], result["nets"][0]), []).append((rank, result))
    return {key: max(several, key=lambda pair: pair[0])[1] for key, several in out.items()}


def known_of(net, held):
    """The published numbers of a network, which are of test images."""
    return PUBLISHED.get(net, {}) if held["split"] == "test" else {}


def claim(kind, net, name, source, statement, cell, published, protocol, threshold, direction):
    """A Claim of a cell {"value", "low", "high", "n"}."""
    paper, figure = source
    return Claim(f"{kind}:{net}:{name}", paper, figure, statement, cell["value"], cell["low"], cell["high"], cell["n"],
                 published, protocol, judge(cell["low"], cell["high"], threshold, direction), COMMAND)


def cell(triple, n):
    value, low, high = triple
    return {"value": value, "low": low, "high": high, "n": n}


# ---- similarity ----------------------------------------------------------------------------------------------------

def similarity(net, held):
    known = known_of(net, held)
    between, late = held["measures"], held.get("late_measures", {})
    images = f"{held['images']} {held['split']} images"
    alone = f"{net}, {len(held['models'])} networks that differ in all seeds, {images}"
    ends = f"{net}, the last {held['late']} epochs of {len(held['trajectories'])} trainings, {images}"
    out = []

    def add(name, figure, statement, found, published, protocol, threshold, direction, paper=PAPER):
        if found and found["value"] is not None:
            out.append(claim("similarity", net, name, (paper, figure), statement, found, published, protocol, threshold,
                             direction))

    if known:
        lasting = late.get("disagreement") if held["late"] == 10 else None
        for name, words, found, how in (
                ("accuracy", "Mean test accuracy of independent networks", held["accuracy"], f"{alone}; over networks"),
                ("independent", "Disagreement of independent networks", between["disagreement"],
                 f"{alone}; interval over pairs, clustered by network"),
                ("late", "Disagreement of the last ten epochs of one training", lasting,
                 f"{ends}; interval over trainings")):
            add(f"met-{name}", "tables and figures", f"{words} is as published, within {MET[name]}", found, known[name],
                how, (known[name] - MET[name], known[name] + MET[name]), "between", SEED)
    if late:
        add("ratio", "similarity", "Independent solutions disagree several times more than late snapshots (ratio above "
            f"{SEVERAL:g})", held["ratios"]["disagreement"],
            f"{known['independent']} / {known['late']}" if known else "qualitative",
            f"{alone}; {ends}; interval over trainings", SEVERAL, "above")
        gap = [abs(np.mean(t["accuracy"][-held["late"]:]) - t["accuracy"][-1]) for t in held["trajectories"]]
        add("equal-accuracy", "similarity", "... at equal accuracy (late snapshots within "
            f"{SAME_ACCURACY:g} of the last)", cell(results.bootstrap(gap), len(gap)), "equal",
            f"{ends}; mean distance of the accuracies; interval over trainings", SAME_ACCURACY, "below")
    add("cosine-independent", "similarity", "Weights of independent solutions are orthogonal (cosine within "
        f"{NEAR_ZERO:g} of 0)", between.get("weight_cosine"), known.get("cosine"),
        f"{alone}; all weights and biases; interval over pairs, clustered by network", (-NEAR_ZERO, NEAR_ZERO),
        "between")
    add("cosine-late", "similarity", f"Weights of late snapshots are nearly parallel (cosine above {NEAR_ONE:g})",
        late.get("weight_cosine"), "about .99" if known else "qualitative", f"{ends}; interval over trainings",
        NEAR_ONE, "above")
    if held.get("embedding"):
        add("tsne", "t-SNE", "In the t-SNE of predictions the ends of different trainings lie farther apart than their "
            "own spread (ratio above 1)", held["embedding"]["tsne"]["ratio"], "separate arms",
            f"{ends}; distance of two centres over the mean distance from one's own; interval over pairs, clustered by "
            "training", 1.0, "above")
    return out


# ---- ensembles -----------------------------------------------------------------------------------------------------

def ensembles(net, held):
    known, level, out = known_of(net, held), held["level"], []
    arrays = runs.read_arrays(held["folder"] / "arrays" / "evaluate.npz")
    images = f"{held['images']} {held['split']} images"
    independent, right = arrays["curve_independent_accuracy"], arrays["ensemble_right"]
    networks, size = len(independent) - 1, independent.shape[1] - 1  # the largest size whose interval is over networks

    def add(name, figure, statement, found, published, protocol, threshold, direction, paper=PAPER):
        out.append(claim("ensembles", net, name, (paper, figure), statement, found, published, f"{net}, {protocol}",
                         threshold, direction))

    if known and networks == 10 == independent.shape[1]:
        add("met-ensemble", "figures", f"Accuracy of an ensemble of ten is as published, within {MET['ensemble']}",
            over_images(right), known["ensemble"], f"all ten networks, {images}; interval over images, networks fixed",
            (known["ensemble"] - MET["ensemble"], known["ensemble"] + MET["ensemble"]), "between", SEED)
    if networks > 2:
        gains = independent[:, size - 1] - independent[:, 0]
        add("gain", "ensemble size", "Ensemble accuracy grows with the number of independent networks (size "
            f"{size} less single)", cell((float(gains[0]), *results.jackknife(gains[0], gains[1:], level)), networks),
            f"{known['accuracy']} to {known['ensemble']} (ten)" if known else "qualitative",
            f"all sets of {networks} networks, {images}; interval over networks (jackknife)", 0.0, "above")
    late = arrays.get("curve_late_snapshots_accuracy")
    if late is not None and networks > 2:
        size = min(late.shape[1], size)
        gain = independent[0, size - 1] - independent[0, 0]
    if late is not None and networks > 2 and gain:
        shares = (late[:, size - 1] - late[:, 0]) / gain
        add("gain-late", "ensemble size", "... and hardly with late snapshots of one training (share of the "
            f"independent networks' gain, below {HARDLY:g})", cell(results.bootstrap(shares, level=level), len(shares)),
            "qualitative", f"sets of {size}, {images}; interval over trainings, independent networks fixed", HARDLY,
            "below")
    groups = held["plane"]["groups"]
    own = groups.get("independent", {"each": []})
    if own["each"]:
        add("plane-independent", "diversity plane", "Independent solutions lie near the upper limit of diversity at "
            f"their accuracy (share of it above {HALF:g})", own["share_of_upper"],
            share_published(net) if known else "close to the limit",
            f"disagreement with a solution over the limit of independent errors; {images}; interval over solutions",
            HALF, "above")
    present = [s for s in SAMPLERS if s in groups and len(groups[s]["each"]) == len(own["each"]) > 0]
    if present:
        ratios = np.array([groups[s]["each"] for s in present]) / np.array(own["each"])
        highest = ratios.mean(1).argmax()
        add("plane-subspaces", "diversity plane", "Every subspace around one solution lies well below (share "
            f"of the independent solutions' diversity, below {HALF:g})",
            cell(results.bootstrap(ratios[highest], level=level), ratios.shape[1]), "well below",
            f"samples with at least 0.9 of the solutions' accuracy; the most diverse of {', '.join(present)}: "
            f"{present[highest]}; {images}; interval over solutions", HALF, "below")
    return out


def share_published(net):
    """The published disagreement of independent networks over its upper limit at their accuracy."""
    from ensembles.evaluate import upper_limit

    known = PUBLISHED[net]
    return f"{known['independent'] / upper_limit(known['accuracy'], known['accuracy'], 10):.2f} by its numbers"


def over_images(right):
    """Accuracy from hits (N,) with its interval over images: of N hits, by their standard error."""
    value, error = float(right.mean()), float(right.std() / len(right) ** 0.5)
    return cell((value, value - 1.96 * error, value + 1.96 * error), len(right))


# ---- shift ---------------------------------------------------------------------------------------------------------

def shift(net, held):
    size, out = len(held["models"]), []
    images = f"{net}, {held['images']} test images"

    def add(name, figure, statement, found, published, protocol, threshold):
        out.append(claim("shift", net, name, (PAPER, figure), statement, found, published, protocol, threshold,
                         "above"))

    for row in held["gains"]:
        if row["corruption"] == "mean" and row["severity"] == 5 and row["size"] == size:
            add("gain-severity-5", "corrupted images", f"Under the strongest corruptions an ensemble of {size} is "
                "still more accurate than its members on average (gain)", row["measures"]["accuracy"],
                "the gain persists", f"{images}, {len(held['corruptions'])} corruptions ({held['source']}); interval "
                "over networks", 0.0)
    ood = {(row["set"], row["size"]): row["measures"] for row in held["ood"]}
    within = max((s for s in held["sizes"] if 1 < s < size), default=None)  # all members together have no interval
    for name in dict.fromkeys(row["set"] for row in held["ood"]):
        if found := ood.get((name, within)):
            add(f"ood-{name}", "out of distribution", f"Members differ more about images of {name} than about their "
                f"own test images (AUROC of the Jensen-Shannon diversity of {within})", found["auroc_js"],
                "larger than any subspace's", f"{images}; interval over networks", 0.5)
    return out


KINDS = {"similarity": similarity, "ensembles": ensembles, "shift": shift}


if __name__ == "__main__":
    cli.run(main)
