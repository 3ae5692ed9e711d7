"""Every measure of every pair of networks in one table: do decision regions, predictions, weights and barriers agree?

    python -m landscape.pairs --members runs/regions

One row for each pair of networks of any studies, trained on one data set: agreement of their decision regions on the
same planes (the class maps of save_preds.py), disagreement and divergence of their predictions and what their average
gains, distance and cosine of their weights, and the barrier on the straight line between them, the last three also with
the hidden units of one matched to the other's. A measure that does not apply, such as a barrier between two widths, is
an empty cell. Rank correlations of all measures stand beside it, with intervals by a jackknife over networks, since
pairs that share a network are not independent.
"""

import hashlib
import itertools

import numpy as np

from landscape import claims, cli, maps, metrics, predictions, results, runs
from landscape.errors import UsageError

# what each part of the table measures: {column: words}
PARTS = {
    "regions": {"agreement": "agreement of decision regions", "mean_iou": "mean IoU of decision regions"},
    "predictions": {"disagreement": "disagreement of predictions", "js": "Jensen–Shannon divergence (nats)",
                    "ensemble_gain": "accuracy gained by averaging the two"},
    "weights": {"weight_distance": "distance of weights", "weight_cosine": "cosine of weights"},
    "barriers": {"train_loss_barrier": "training loss barrier (nats)", "test_loss_barrier": "test loss barrier (nats)",
                 "test_accuracy_barrier": "test accuracy barrier"},
}
ALIGNED = ("weights", "barriers")  # these are measured after each alignment too
ALIGNMENTS = {"none": "", "published": "_published", "weights": "_aligned"}  # and what their columns end in
SHOWN = ("agreement", "disagreement", "js", "ensemble_gain", "weight_cosine_aligned", "test_loss_barrier",
         "test_loss_barrier_aligned")  # in the scatter matrix


def make_parser():
    parser = cli.Parser("python -m landscape.pairs", __doc__)
    predictions.add_networks(parser, cli, "runs/regions")
    g = parser.group("measures", named=True)
    g.add_argument("--measures", type=cli.several_of(PARTS), default=list(PARTS), metavar="PART,…",
                   help=f"of {', '.join(PARTS)}")
    g.add_argument("--align", type=cli.several_of(ALIGNMENTS), default=list(ALIGNMENTS), metavar="HOW,…",
                   help=f"of {', '.join(ALIGNMENTS)}: weights as they are, with units matched by weights, and likewise "
                        "without what rebasin 0.0.47 omits")
    g.add_argument("--match_seed", type=int, default=0, help="order in which groups of units are matched")
    g.add_argument("--points", type=cli.side, default=11, help="of a line, its ends included")
    g.add_argument("--images", type=cli.natural, default=2000, metavar="N",
                   help="drawn images of the training and of the test set on which barriers are measured; 0: all")
    g.add_argument("--bn_images", type=cli.natural, default=2000, metavar="N",
                   help="of these training images, those that estimate BatchNorm's statistics on a line; 0: all")
    cli.add_maps(parser, chosen=False)
    g = parser.group("statistics")
    g.add_argument("--claims", default="", metavar="FILE",
                   help="judge what we claim of such pairs, and write it there (results/across/claims.json)")
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals")
    cli.add_machine(parser)
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    networks = predictions.find(args, at_least=2)
    files = class_maps(args, networks) if "regions" in args.measures else []
    # Other networks or class maps, another folder.
    args.differs["weights"] = runs.hash8([runs.digest(n.source, args.which) for n in networks])
    if files:
        args.differs["maps"] = runs.hash8([hashlib.sha256(file.read_bytes()).hexdigest() for _, file in files])
    if args.dry_run:
        count = len(networks) * (len(networks) - 1) // 2
        print(f"{runs.state_of(runs.folder('across', args, 'pairs'))}: {runs.folder('across', args, 'pairs')}\n"
              f"{count} pairs of {len(networks)} networks: {', '.join(args.measures)}")
        return 0
    folder, found = runs.measured("across", args, "pairs", lambda run: compute(args, run, networks, files),
                                  lambda run, found: draw(args, run, found))
    show(found)
    if args.claims:
        claims.record(args.claims, judged(found))
    print(f"results: {folder / 'results.json'}\ntable: {folder / 'pairs.csv'}")
    return 0


def class_maps(args, networks):
    """[(source, file)] of the class maps that all networks share."""
    args.load_net = args.members[0]
    if args.which == "best":
        raise UsageError("--measures regions is of the last weights: leave --which best or regions out")
    return maps.common(args, [n.source for n in networks])[0]


# ---- measuring -----------------------------------------------------------------------------------------------------

def compute(args, run, networks, files):
    """Everything, as plain values."""
    from landscape import data as datasets

    entry = datasets.entry(predictions.dataset_of(networks, args), args.data_root)
    pairs = list(itertools.combinations(range(len(networks)), 2))
    described = [predictions.described(n, args, entry) for n in networks]
    columns, accuracy = {}, None
    if "regions" in args.measures:
        columns |= of_regions(files)
    if "predictions" in args.measures:
        found, accuracy = of_predictions(args, networks)
        columns |= found
    rows = [{"a": i, "b": j, "differ": differing(networks[i], networks[j], described[i], described[j]),
             **{k: float(v[i, j]) for k, v in columns.items()}} for i, j in pairs]
    if set(args.measures) & set(ALIGNED):
        lines = of_lines(args, run, networks, described, entry)
        rows = [{**row, **lines.get((row["a"], row["b"]), {})} for row in rows]
    names = measured(args)
    models = [{"name": n.name, "path": str(n.path), "architecture": d["architecture"], **(
        {} if accuracy is None else {"accuracy": accuracy[k]})} for k, (n, d) in enumerate(zip(networks, described))]
    return {"kind": "pairs", "dataset": predictions.dataset_of(networks, args), "level": args.level,
            "images": args.images, "columns": names, "models": models,
            "rows": [{**dict.fromkeys(names), **row} for row in rows],
            "correlations": correlations(rows, names, len(networks), args.level)}


def measured(args):
    """{column: words} of the table, in its order."""
    out = {}
    for part in args.measures:
        for how in args.align if part in ALIGNED else ["none"]:
            said = {"none": "", "published": ", matched as published", "weights": ", matched"}[how]
            out |= {f"{column}{ALIGNMENTS[how]}": words + said for column, words in PARTS[part].items()}
    return out


WORDS = {cli.SEEDS: "seed", cli.SEEDS[1:]: "data order"}  # of seeds that differ
SETTINGS = ("width", "opt", "lr", "train_mode", "noise_rate", "train_size", "augment", "epochs", "epoch")


def differing(one, other, first, second):
    """What tells two networks apart, in words: their architecture, or seeds and settings of their training."""
    if first["architecture"]["name"] != second["architecture"]["name"]:
        return "net"
    ours, theirs = ({**n.source.config, "epoch": n.epoch} for n in (one, other))
    seeds, settings = ([k for k in keys if ours.get(k) != theirs.get(k)] for keys in (cli.SEEDS, SETTINGS))
    if first["architecture"] != second["architecture"] and "width" not in settings:
        settings.insert(0, "width")
    named = [WORDS[tuple(seeds)]] if tuple(seeds) in WORDS else seeds
    return ", ".join(named + settings) or "file"


def of_regions(files):
    """{"agreement", "mean_iou": (K, K)}, means over the planes."""
    held = maps.read_together(files)
    found = metrics.scores_per_plane(np.stack([h["labels"] for h in held]), len(held[0]["classes"]))
    return {k: found[k].mean(-1) for k in PARTS["regions"]}


def of_predictions(args, networks):
    """({"disagreement", "js", "ensemble_gain": (K, K)}, [accuracy]) on the test set."""
    held = predictions.split_settings(networks, args, "test")
    labels = predictions.labels_of(held, args)
    said = np.stack(predictions.logits(networks, args, held, lambda p: predictions.split_images(
        held, args, p["channels"], p["image_size"])))
    found, count = metrics.pairwise(said), len(networks)
    probs = metrics.softmax(said)
    own = metrics.subset_scores(probs, labels, np.eye(count, dtype=bool))["accuracy"]
    pairs = metrics.subsets(count, 2, most=count**2)
    gain = np.zeros((count, count))
    for pair, both in zip(pairs, metrics.subset_scores(probs, labels, pairs)["accuracy"]):
        i, j = np.flatnonzero(pair)
        gain[i, j] = both - (own[i] + own[j]) / 2
    return {**{k: found[k] for k in ("disagreement", "js")}, "ensemble_gain": gain}, own.tolist()


def of_lines(args, run, networks, described, entry):
    """{(i, j): {column: value}} of weights and barriers, of pairs of one architecture that see images alike. What is
    found is kept in run.path / lines.json, pair by pair."""
    groups = {}
    for k, one in enumerate(described):
        seen = {key: predictions.list_of(one["preprocessing"][key]) for key in predictions.COMPARED}
        groups.setdefault(runs.hash8([one["architecture"], seen]), []).append(k)
    file = run.path / "lines.json"
    held = runs.read_json(file) if file.exists() else {}
    progress = runs.Progress(sum(len(g) * (len(g) - 1) // 2 for g in groups.values()), "lines", len(held))
    for group in groups.values():
        todo = [(i, j) for i, j in itertools.combinations(group, 2) if f"{i} {j}" not in held]
        work = Lines(args, networks, group, entry) if todo else None
        for i, j in todo:
            held[f"{i} {j}"] = work.between(i, j)
            runs.write_json(file, held)
            progress.step()
    progress.close()
    return {tuple(map(int, key.split())): row for key, row in held.items()}


class Lines:
    """Networks of one architecture, and images to measure the lines between them on."""

    def __init__(self, args, networks, group, entry):
        from landscape import data as datasets
        from landscape import lines, weights
        from models.axes import axes_of

        self.args, self.lines, device = args, lines, cli.set_up_device(args)
        trained = [predictions.load(networks[k], args, entry) for k in group]
        seen = trained[0].preprocessing
        data = datasets.load(predictions.dataset_of(networks, args), args.data_root, val_size=0,
                             image_size=seen["image_size"], channels=seen["channels"], device=device)
        self.network = trained[0].network.to(device)
        data.train, data.test = (some.subset(some.some_rows(args.images, "lines").sort().values)
                                 for some in (data.train, data.test))
        self.scene = lines.Scene.of(self.network, data, seen, args.bn_images, args.eval_bs)
        self.norm = "reset" if self.scene.normed else "stored"
        self.weights = {k: {n: w.to(device) for n, w in weights.of(t.network).items()} for k, t in zip(group, trained)}
        self.own = {}
        if "barriers" in args.measures:
            self.own = dict(zip(group, lines.ends(self.scene, list(self.weights.values()), self.norm)))
        try:
            self.axes = axes_of(self.network)
        except UsageError as e:
            self.axes = None
            print(f"not aligned: {e}")

    def between(self, i, j):
        """{column: value} of one pair."""
        from landscape import permute

        out, (a, b) = {}, (self.weights[i], self.weights[j])
        for how in self.args.align:
            if how != "none" and self.axes is None:
                continue
            moved, _ = self.lines.align(how, self.scene, a, b, self.axes, self.args.match_seed)
            end = ALIGNMENTS[how]
            if "weights" in self.args.measures:
                out |= {f"weight_distance{end}": permute.distance(a, moved), f"weight_cosine{end}": cosine(a, moved)}
            if "barriers" in self.args.measures:
                out |= {f"{k}{end}": v for k, v in self.barriers(i, j, a, moved).items()}
        return out

    def barriers(self, i, j, a, b):
        ts = np.linspace(0, 1, self.args.points)
        ends = {part: tuple(map(np.stack, zip(self.own[i][part], self.own[j][part]))) for part in ("train", "test")}
        (said,) = self.lines.measure(self.scene, [self.lines.Line(a, b, self.norm, ends)], ts.tolist())
        (train, _), (test, right) = said["train"], said["test"]
        return {"train_loss_barrier": metrics.barrier(train.mean(1, dtype=float), ts),
                "test_loss_barrier": metrics.barrier(test.mean(1, dtype=float), ts),
                "test_accuracy_barrier": metrics.barrier(-right.mean(1, dtype=float), ts)}


def cosine(a, b):
    from landscape import permute, weights

    return weights.cosine(permute.parameters(a), permute.parameters(b))


# ---- rank correlations ---------------------------------------------------------------------------------------------

def correlations(rows, names, models, level):
    """[{"one", "other", "value", "low", "high", "pairs"}]: Spearman's rank correlation of each two measures over the
    pairs that have both; the interval by a jackknife over the networks, five or more, cut at -1 and 1."""
    ends = np.array([(row["a"], row["b"]) for row in rows])
    values = {k: np.array([np.nan if row.get(k) is None else row[k] for row in rows], dtype=float) for k in names}
    out = []
    for one, other in itertools.combinations(names, 2):
        both = np.isfinite(values[one]) & np.isfinite(values[other])
        x, y, who = values[one][both], values[other][both], ends[both]
        value, low, high = spearman(x, y), None, None
        if value is not None:
            inside = [m for m in range(models) if (who == m).any()]
            without = [spearman(x[rest], y[rest]) for m in inside for rest in [(who != m).all(1)]]
            if None not in without and len(inside) > 4:
                low, high = (e if e is None else float(np.clip(e, -1, 1))
                             for e in results.jackknife(value, without, level))
        out.append({"one": one, "other": other, "value": value, "low": low, "high": high, "pairs": int(both.sum())})
    return out


def spearman(x, y):
    """Spearman's rank correlation of values (P,), or None where it is not defined: under three, or all equal."""
    from scipy.stats import rankdata

    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


# ---- claims --------------------------------------------------------------------------------------------------------

# (id, what is claimed, one measure, the other, sign of their rank correlation). Written down before the numbers.
RANKED = (
    ("barrier-agreement", "The lower the loss barrier after matching, the more the decision regions agree",
     "test_loss_barrier_aligned", "agreement", "below"),
    ("raw-barrier-agreement", "The lower the loss barrier without matching, the more the decision regions agree",
     "test_loss_barrier", "agreement", "below"),
    ("disagreement-agreement", "The more the predictions disagree, the less the decision regions agree",
     "disagreement", "agreement", "below"),
    ("divergence-gain", "The more the predictions diverge, the more their average gains", "js", "ensemble_gain",
     "above"),
    ("cosine-barrier", "The nearer the weights after matching, the lower the loss barrier", "weight_cosine_aligned",
     "test_loss_barrier_aligned", "below"),
)
LOWERED = (
    ("matching", "Matching the units lowers the loss barrier (test set, nats)", "test_loss_barrier",
     "test_loss_barrier_aligned"),
    ("published-matching", "The full matching lowers it further than the published one", "test_loss_barrier_published",
     "test_loss_barrier_aligned"),
)


def judged(found):
    """The claims, ours, of a table of pairs; those of which it holds the measures."""
    kinds = ", ".join(sorted({row["differ"] for row in found["rows"]}))
    how = (f"{found['dataset']}, {len(found['models'])} networks, pairs that differ in {kinds}; interval by a "
           "jackknife over networks")
    common = {"paper": "ours", "figure": "pairs", "n": len(found["models"]), "published": None, "protocol": how,
              "command": "bash scripts/fig_across.sh"}
    out = []
    cells = {(c["one"], c["other"]): c for c in found["correlations"]}
    for name, statement, one, other, side in RANKED:
        cell = cells.get((one, other)) or cells.get((other, one))
        if cell:
            ends = [cell[k] for k in ("value", "low", "high")]
            out.append(claims.Claim(f"across:{name}", statement=f"{statement} (Spearman's rank correlation)",
                                    **dict(zip(("value", "low", "high"), ends)),
                                    verdict=claims.judge(*ends[1:], 0.0, side), **common))
    for name, statement, before, after in LOWERED:
        gained = {(r["a"], r["b"]): r[before] - r[after] for r in found["rows"]
                  if None not in (r.get(before), r.get(after))}
        if len(gained) > 1:
            members = sorted({m for pair in gained for m in pair})
            value = float(np.mean(list(gained.values())))
            parts = [[v for pair, v in gained.items() if m not in pair] for m in members]
            without = [np.mean(part) for part in parts if part]
            low, high = results.jackknife(value, without, found["level"])
            out.append(claims.Claim(f"across:{name}", statement=statement, value=value, low=low, high=high,
                                    verdict=claims.judge(low, high, 0.0, "above"), **common))
    return out


# ---- tables and figures --------------------------------------------------------------------------------------------

def show(found):
    print(f"{len(found['rows'])} pairs of {len(found['models'])} networks on {found['dataset']}\n"
          f"{'measure':<34}{'pairs':>6} {'mean':>9} {'least':>9} {'most':>9}")
    for name in found["columns"]:
        some = [row[name] for row in found["rows"] if row[name] is not None]
        numbers = (sum(some) / len(some), min(some), max(some)) if some else ()
        print(f"{name:<34}{len(some):>6} " + " ".join(f"{v:9.4f}" for v in numbers))
    print(f"rank correlations, [{found['level']:.0%} interval]")
    for row in found["correlations"]:
        if row["one"] in SHOWN and row["other"] in SHOWN and row["value"] is not None:
            ends = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
            print(f"  {row['one']} and {row['other']}: {row['value']:.2f}{ends}, {row['pairs']} pairs")


def draw(args, run, found):
    from landscape import plots, redraw

    names = [m["name"] for m in found["models"]]
    rows = [{**row, "a": names[row["a"]], "b": names[row["b"]]} for row in found["rows"]]
    results.write_csv(run.path / "pairs.csv", rows, ["a", "b", "differ", *found["columns"]])
    results.write_csv(run.path / "correlations.csv", found["correlations"])
    run.sink.table("pairs", rows)
    redraw.show(run, {"pairs": plots.scatter_matrix(
        {found["columns"][k]: [row[k] for row in rows] for k in SHOWN if k in found["columns"]},
        [row["differ"] for row in rows],
        {(found["columns"][c["one"]], found["columns"][c["other"]]): (c["value"], c["low"], c["high"])
         for c in found["correlations"]})}, args.formats)


if __name__ == "__main__":
    cli.run(main)
