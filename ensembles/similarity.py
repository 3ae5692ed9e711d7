"""How similar networks are, in function space and in weight space: between members, and along their trajectories.

    python -m ensembles.similarity --members runs/ensembles

K networks of any study (--members), N images of --split. Between the networks: disagreement, Jensen-Shannon and
Kullback-Leibler divergence, cosine of the probabilities, cosine of the weights, (K, K) each, with intervals over pairs
clustered by network. Along the snapshots of each of them: the same, epoch by epoch. All trajectories together are
embedded in two dimensions by their predictions. After Fort et al. 2019 (arXiv 1912.02757).
"""

import numpy as np

from landscape import cli, predictions, results, runs
from landscape.errors import UsageError

FUNCTION = {"disagreement": "disagreement", "js": "Jensen–Shannon divergence (nats)",
            "kl": "Kullback–Leibler divergence (nats)", "cosine": "cosine of probabilities"}
# Which parameters count in a cosine of weights; as_published is the re-implementation's choice, the first tensor of
# each layer, which takes BatchNorm's scales along.
WEIGHTS = {"weight_cosine": "cosine of weights", "weight_cosine_kernels": "cosine of kernels",
           "weight_cosine_no_norms": "cosine of weights, without normalisation layers",
           "weight_cosine_as_published": "cosine of weights, without biases",
           "displacement_cosine": "cosine of displacements from initialisation",
           "weight_cosine_aligned": "cosine of weights, hidden units matched (--align)"}
# Two conventions of disagreement by the errors that were there to be made: of Fort et al. 2019, divided by the error of
# the column's model; of robustness_metrics, mean over pairs divided by the error of the ensemble.
NORMALISED = {"disagreement_per_error": "disagreement / (1 − accuracy)"}


def make_parser():
    parser = cli.Parser("python -m ensembles.similarity", __doc__)
    predictions.add_networks(parser, cli, "runs/ensembles")
    g = parser.group("similarity", named=True)
    g.add_argument("--split", default="test", choices=("test", "val", "train"),
                   help="the images; val and train where all members split the data in one way")
    g.add_argument("--trajectories", type=cli.natural, default=3, metavar="T",
                   help="of the first T members with snapshots, compare these too")
    g.add_argument("--late", type=cli.positive, default=10, metavar="E", help="the last E snapshots count as late")
    g.add_argument("--align", default="none", choices=("none", "weights", "published"),
                   help="cosines of members with the hidden units of one matched to the other's by weights, or so "
                        "without what rebasin 0.0.47 omits")
    g.add_argument("--embed_images", type=cli.positive, default=1024, help="images whose probabilities are embedded")
    g.add_argument("--embed_seed", type=int, default=0, help="of t-SNE")
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals")
    cli.add_machine(parser)
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    networks = predictions.find(args)
    paths = [list(predictions.snapshots(n).values()) for n in networks if predictions.late(n, 1)][:args.trajectories]
    if args.dry_run:
        for n in networks:
            print(f"compare: {n.path}")
        for path in paths:
            print(f"follow: {len(path)} snapshots of {path[0].source.path}")
        return 0
    held = predictions.split_settings(networks, args, args.split)
    labels = predictions.labels_of(held, args)
    again, args.force = args.force, True  # what is kept is kept with the networks; these may be others than last time
    with runs.start("ensembles", args, "similarity") as run:
        args.force = again
        found, arrays = compare(args, networks, paths, held, labels)
        runs.write_arrays(run.path / "arrays" / "similarity.npz", **arrays)
        show(found)
        run.finish(found)
        draw(args, run, found)
        print(f"results: {run.path / 'results.json'}\nmatrices: {run.path / 'arrays' / 'similarity.npz'}")
    return 0


# ---- what is compared ----------------------------------------------------------------------------------------------

def compare(args, networks, paths, held, labels):
    """(results as plain values, {name: array}) of networks and of the snapshots `paths` of some of them, on the images
    `held` with these labels."""
    from landscape import metrics

    cached = {}

    def images_for(preprocessing):
        key = preprocessing["channels"], preprocessing["image_size"]
        cached[key] = predictions.split_images(held, args, *key)
        return cached[key]

    said = np.stack(predictions.logits(networks, args, held, images_for))
    names = [n.name for n in networks]
    errors = np.array([1 - metrics.accuracy(one, labels) for one in said])
    arrays = {f"members_{k}": v for k, v in metrics.pairwise(said).items()}
    arrays["members_disagreement_per_error"] = per_error(arrays["members_disagreement"], errors)
    between, layers = weight_cosines(args, networks, [first_snapshot(n) for n in networks])
    arrays |= {f"members_{k}": v for k, v in between.items()}
    if args.align != "none":
        arrays["members_weight_cosine_aligned"] = aligned_cosines(args, networks)
    measures = {m: over_pairs(m, v, args.level) for k, v in arrays.items() for m in [k.removeprefix("members_")]}
    measures["disagreement_per_ensemble_error"] = {
        "value": per_ensemble_error(arrays["members_disagreement"], said, labels), "low": None, "high": None, "n": 1}
    out = {"kind": "similarity", "nets": predictions.names_of(networks), "images": len(labels), "split": args.split,
           "level": args.level, "late": args.late,
           "models": [{"name": n.name, "path": str(n.path), "accuracy": 1 - float(e)}
                      for n, e in zip(networks, errors)],
           "accuracy": interval(results.bootstrap(1 - errors, level=args.level), len(errors)),
           "measures": measures, "layers": layers, "trajectories": []}
    arrays["names"] = np.array(names)
    followed = []
    for number, path in enumerate(paths):
        logits = np.stack(predictions.logits(path, args, held, images_for, f"snapshots of {path[0].name}"))
        followed.append(logits)
        one = {f"trajectory_{number}_{k}": v for k, v in metrics.pairwise(logits).items()}
        along, _ = weight_cosines(args, path, [path[0] if path[0].epoch == 0 else None] * len(path))
        arrays |= one | {f"trajectory_{number}_{k}": v for k, v in along.items()}
        out["trajectories"].append({
            "name": path[0].source.seed_name, "epochs": [n.epoch for n in path],
            "accuracy": [metrics.accuracy(x, labels) for x in logits],
            "loss": [metrics.nll(x, labels) for x in logits]})
    if followed:
        out["late_measures"] = late(arrays, out["trajectories"], args)
        sources = [n.source for n in networks]
        out["ratios"] = ratios(arrays, args, [sources.index(path[0].source) for path in paths], out["trajectories"])
        if len({f.shape for f in followed}) > 1:
            print("the trajectories have different numbers of snapshots and are not embedded together")
        elif len(np.concatenate(followed)) > 2:
            out["embedding"] = embedded(followed, out["trajectories"][0]["epochs"], args, arrays)
    return out, arrays


def per_error(apart, errors):
    """Disagreement (K, K) of row and column over the error of the column's model; NaN where that is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(errors > 0, apart / errors, np.nan)


def per_ensemble_error(apart, said, labels):
    """Mean disagreement of pairs over the error of the mean of all probabilities; None for one model or no error."""
    from landscape import metrics

    if len(said) < 2:
        return None
    error = float((metrics.softmax(said).mean(0).argmax(1) != labels).mean())
    count = len(said) * (len(said) - 1)
    return float(apart.sum() / count / error) if error else None


def first_snapshot(network):
    """The snapshot of a network before its first step, or None."""
    return predictions.snapshots(network).get(0)


def weight_cosines(args, networks, starts):
    """({measure of WEIGHTS: (M, M)}, {layer: {measure: mean over pairs}}) of networks of one architecture, and ({}, {})
    where they have several. starts: of each the snapshot before its first step, or None: then no displacement."""
    from landscape import data as datasets
    from landscape import weights

    entry = datasets.entry(predictions.dataset_of(networks, args), args.data_root)
    architectures = [predictions.described(n, args, entry)["architecture"] for n in networks]
    if any(a != architectures[0] for a in architectures):
        return {}, {}
    kinds = parameter_kinds(architectures[0])
    points = [{k: w[k] for k in kinds["weight_cosine"]} for n in networks for w in [runs.read_weights(n.path)[0]]]
    grams = weights.grams(points, kinds["weight_cosine"])
    out = {measure: weights.cosines(sum(grams[k] for k in names)).numpy()
           for measure, names in kinds.items() if names}
    layers = {k: {"weight_cosine": mean_of_pairs(weights.cosines(g).numpy())} for k, g in grams.items()}
    if all(starts):
        begun = [runs.read_weights(n.path)[0] for n in starts]
        moved = [{k: w[k].double() - b[k].double() for k in kinds["weight_cosine"]} for w, b in zip(points, begun)]
        grams = weights.grams(moved, kinds["weight_cosine"])
        out["displacement_cosine"] = weights.cosines(sum(grams.values())).numpy()
        for k, g in grams.items():
            layers[k]["displacement_cosine"] = mean_of_pairs(weights.cosines(g).numpy())
    return out, layers


def aligned_cosines(args, networks):
    """(K, K): cosines of the parameters of each two networks, the hidden units of the second matched to the first's
    (landscape.permute.match). UsageError for networks of several architectures, or of one without known axes."""
    from landscape import data as datasets
    from landscape import permute, weights
    from models.axes import axes_of

    entry = datasets.entry(predictions.dataset_of(networks, args), args.data_root)
    trained = [predictions.load(n, args, entry) for n in networks]
    other = next((t for t in trained if t.architecture != trained[0].architecture), None)
    if other is not None:
        raise UsageError(f"--align {args.align}: {trained[0].source} and {other.source} are of different "
                         "architectures; choose with --select")
    axes, points = axes_of(trained[0].network), [weights.of(t.network) for t in trained]
    out = np.eye(len(points))
    for i, reference in enumerate(points[:-1]):
        others = points[i + 1:]
        found = permute.match(reference, others, axes, as_published=args.align == "published")
        for j, (w, perms) in enumerate(zip(others, found), i + 1):
            moved = permute.parameters(permute.apply(w, axes, perms))
            out[i, j] = out[j, i] = weights.cosine(permute.parameters(reference), moved)
    return out


def parameter_kinds(architecture):
    """{measure of WEIGHTS: names of the parameters that count in it} of a network: no statistics of BatchNorm."""
    import torch

    with torch.device("meta"):
        point = dict(runs.build(architecture).named_parameters())
    every = list(point)
    # A layer of a bias and a weight of one axis normalises; nothing else in the registered networks has such weights.
    norms = {k.rpartition(".")[0] for k in every if k.endswith("weight") and point[k].dim() == 1}
    return {"weight_cosine": every, "weight_cosine_kernels": [k for k in every if point[k].dim() > 1],
            "weight_cosine_no_norms": [k for k in every if k.rpartition(".")[0] not in norms],
            "weight_cosine_as_published": [k for k in every if not k.endswith("bias")]}


# ---- numbers -------------------------------------------------------------------------------------------------------

def mean_of_pairs(matrix):
    """Mean off the diagonal, or None for fewer than two models or where nothing is defined."""
    rest = matrix[~np.eye(len(matrix), dtype=bool)]
    return float(rest.mean()) if rest.size and np.isfinite(rest).all() else None


def over_pairs(measure, matrix, level):
    """Mean over pairs of models with its interval, clustered by model; nulls where there is no pair."""
    found = (None, None, None)
    if mean_of_pairs(matrix) is not None:
        found = results.bootstrap_pairs((matrix + matrix.T) / 2, level=level)
    return interval(found, len(matrix), *RANGE.get(measure, (-1, 1)))


# What a measure can be: the intervals of few networks are cut there.
RANGE = {"accuracy": (0, 1), "disagreement": (0, 1), "js": (0, np.log(2)), "kl": (0, np.inf), "cosine": (0, 1),
         "disagreement_per_error": (0, np.inf), "ratio": (0, np.inf)}


def interval(found, n, least=0, most=1):
    """A cell of the table; its ends are cut at what the measure can be."""
    value, *ends = found
    low, high = (None if end is None else float(min(max(end, least), most)) for end in ends)
    return {"value": value, "low": low, "high": high, "n": n}


def late_rows(epochs, args):
    """Numbers of the last args.late snapshots of a trajectory of these epochs; that of before training is not one."""
    return [i for i, epoch in enumerate(epochs) if epoch][-args.late:]


def late(arrays, trajectories, args):
    """{measure: mean over pairs of the last args.late snapshots, with its interval over trajectories; nulls where one
    of them has no pair}."""
    out = {}
    for measure in (*FUNCTION, *WEIGHTS):
        held = [arrays.get(f"trajectory_{i}_{measure}") for i in range(len(trajectories))]
        means = [None if m is None else mean_of_pairs(m[np.ix_(rows, rows)])
                 for m, t in zip(held, trajectories) for rows in [late_rows(t["epochs"], args)]]
        if not any(m is None for m in held):
            ends = (None, None, None) if None in means else results.bootstrap(means, level=args.level)
            out[measure] = interval(ends, len(means), *RANGE.get(measure, (-1, 1)))
    late_accuracy = [np.mean(np.array(t["accuracy"])[late_rows(t["epochs"], args)]) for t in trajectories]
    out["accuracy"] = interval(results.bootstrap(late_accuracy, level=args.level), len(late_accuracy))
    return out


def ratios(arrays, args, rows, trajectories):
    """{"disagreement": independent networks' over late snapshots'}; the interval is over the members whose trajectories
    are there, networks of these numbers, each with its mean disagreement with all other networks."""
    apart = arrays["members_disagreement"]
    near = [mean_of_pairs(arrays[f"trajectory_{i}_disagreement"][np.ix_(ends, ends)])
            for i, t in enumerate(trajectories) for ends in [late_rows(t["epochs"], args)]]
    if len(apart) < 2 or not all(near):
        return {"disagreement": interval((None, None, None), len(rows))}
    far = apart.sum(1)[rows] / (len(apart) - 1)
    return {"disagreement": interval(results.bootstrap(far / np.array(near), level=args.level), len(rows),
                                     *RANGE["ratio"])}


def embedded(followed, epochs, args, arrays):
    """Two coordinates for every snapshot of every trajectory, (T, E, 2), by t-SNE and PCA of the probabilities and by
    classical scaling of the disagreements; into arrays. Returns how far the ends of the trajectories are apart, see
    separation."""
    from landscape import metrics

    count = len(followed)
    every = np.concatenate(followed)
    rows = metrics.softmax(every[:, :args.embed_images]).reshape(len(every), -1)
    flat = {"tsne": tsne(rows, args.embed_seed), "pca": pca(rows),
            "mds": classical_scaling(metrics.pairwise(every)["disagreement"])}
    out = {}
    for name, coords in flat.items():
        arrays[f"embedding_{name}"] = coords = coords.reshape(count, len(epochs), 2)
        out[name] = separation(coords[:, late_rows(epochs, args)], args.level)
    return out


def tsne(rows, seed):
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(1.0, (len(rows) - 1) / 3))
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows).astype(float)


def pca(rows):
    """Two leading principal components (M, 2); signs so that the largest entry of each is positive."""
    centred = rows - rows.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    return signed(left[:, :2] * sizes[:2])


def classical_scaling(apart):
    """Two leading coordinates (M, 2) of points whose squared distances are twice the disagreements (M, M), as those of
    one-hot labels over N images are: an exact embedding (Torgerson 1952), not an iterative one."""
    centre = np.eye(len(apart)) - 1 / len(apart)
    values, vectors = np.linalg.eigh(-centre @ apart @ centre)
    return signed(vectors[:, :-3:-1] * np.sqrt(np.maximum(values[:-3:-1], 0)))


def signed(coords):
    largest = coords[np.abs(coords).argmax(0), range(coords.shape[1])]
    return coords * np.where(largest < 0, -1.0, 1.0)


def separation(ends, level):
    """How far the last points (T, E, 2) of T trajectories lie apart: between two trajectories the distance of their
    centres over the mean distance of a point from its own centre. {"ratio": mean over pairs with its interval,
    clustered by trajectory, "least": of all pairs}; nulls for one trajectory or without any spread."""
    centres = ends.mean(1)
    spread = np.linalg.norm(ends - centres[:, None], axis=2).mean(1)
    count = len(ends)
    if count < 2 or not (spread > 1e-6 * np.ptp(ends, axis=(0, 1)).max()).all():  # 0 up to rounding is none
        return {"ratio": interval((None, None, None), count), "least": None}
    apart = np.linalg.norm(centres[:, None] - centres, axis=2) / ((spread[:, None] + spread) / 2)
    return {"ratio": interval(results.bootstrap_pairs(apart, level=level), count, *RANGE["ratio"]),
            "least": float(apart[~np.eye(count, dtype=bool)].min())}


# ---- tables and figures --------------------------------------------------------------------------------------------

def rows_of(found):
    """The measures as rows of a table."""
    rows = [{"of": of, "measure": name, **cell} for of, held in
            (("members", found["measures"]), ("late snapshots", found.get("late_measures", {}))) for name, cell in
            held.items()]
    return [{"of": "members", "measure": "accuracy", **found["accuracy"]}, *rows]


def show(found):
    print(f"{len(found['models'])} networks, {found['images']} {found['split']} images")
    for row in rows_of(found):
        value = "-" if row["value"] is None else f"{row['value']:.4f}"
        ends = "" if row["low"] is None else f" [{row['low']:.4f}, {row['high']:.4f}]"
        print(f"{row['of']:<15} {row['measure']:<34} {value}{ends}  n={row['n']}")
    for name, cell in found.get("ratios", {}).items():
        if cell["value"] is not None:
            print(f"{name}: independent networks over late snapshots {cell['value']:.2f}")
    for name, cell in (found.get("embedding") or {}).items():
        if cell["least"] is not None:
            print(f"{name}: ends of trajectories {cell['ratio']['value']:.1f} times their own spread apart, "
                  f"the nearest two {cell['least']:.1f}")


def draw(args, run, found):
    from ensembles import similarity_figures
    from landscape import redraw

    rows = rows_of(found)
    results.write_csv(run.path / "similarity.csv", rows, list(rows[0]))
    run.sink.table("similarity", rows)
    redraw.show(run, similarity_figures.figures(run.path, found), args.formats)


if __name__ == "__main__":
    cli.run(main)
