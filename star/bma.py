"""Bayesian model averaging over a star domain, beside the deep ensemble of the same networks.

    python -m star.bma --star runs/star/STAR --anchors runs/regions --select net=resnet20 --ood MNIST

A member is (1-t) star + t anchor, its anchor aligned to the star, t uniform; the average is of the members' softmax
(Sonthalia et al. 2024, arXiv 2403.07968). Beside it stand the deep ensemble of the same anchors, the star, single
anchors, and the mean of the weights of star-aligned anchors. BatchNorm is estimated anew for every one of them, in one
pass. Accuracy, log-likelihood, Brier score, calibration error, the second and the last also after temperature scaling
(each half of the test set with the temperature that suits the other half); and how well confidence and entropy tell
wrong answers from right ones, and foreign images from the test set's (AUROC, exact). Intervals of averages are over
--draws of their members, those of single anchors over networks.
"""

import numpy as np

from landscape import cli, results, runs
from landscape.errors import ContentError, UsageError
from star import barriers

PREDICTORS = {"bma": "star-domain average", "ensemble": "deep ensemble", "difference": "average − ensemble",
              "star": "star", "mean": "mean of the anchors", "anchor": "single anchors"}
QUALITY = {"accuracy": "accuracy", "nll": "negative log-likelihood (nats)", "brier": "Brier score",
           "ece": "calibration error"}
TEMPERED = {"nll_tempered": "negative log-likelihood after temperature scaling (nats)",
            "ece_tempered": "calibration error after temperature scaling"}  # the temperature from the other half
SIGNS = {"confidence": "highest probability", "entropy": "entropy"}


def place(text):
    """A type for --t: uniform, or one number in [0, 1]."""
    return text if text == "uniform" else cli.number(0, 1)(text)


def make_parser():
    parser = cli.Parser("python -m star.bma", __doc__)
    g = parser.group("networks")
    g.add_argument("--star", default="", metavar="RUN_OR_CHECKPOINT", help="the star")
    g.add_argument("--anchors", nargs="+", default=[], metavar="RUN_OR_CHECKPOINT",
                   help="run folders, checkpoints, folders of these, or a .txt file with one of these a line")
    g.add_argument("--which", default="model", choices=("model", "best"),
                   help="of a run: the last weights, or the best on its validation set")
    cli.add_select(g)
    cli.add_foreign(parser, dataset="", named=True)
    g = parser.group("averages", named=True)
    g.add_argument("--members", type=cli.natural, default=0, metavar="M",
                   help="of an average; each anchor serves as often as every other, if M allows; 0: one for each")
    g.add_argument("--draws", type=cli.positive, default=10, metavar="D", help="of the members and their t")
    g.add_argument("--t", type=place, default="uniform", metavar="T",
                   help="where members lie between star (0) and anchor (1): uniform, or one number for all")
    g.add_argument("--member_seed", type=int, default=0, help="of these draws")
    g.add_argument("--align", default="weights", choices=barriers.ALIGNMENTS,
                   help="by what the hidden units of anchors are matched to the star's")
    g.add_argument("--match_seed", type=int, default=0, help="order in which groups of units are matched")
    g.add_argument("--bn", default="reset", choices=("stored", "reset"),
                   help="BatchNorm's statistics: stored and interpolated, or estimated anew for every network")
    g.add_argument("--bn_images", type=cli.natural, default=5000, metavar="N",
                   help="training images for BatchNorm and activations; 0: all")
    g.add_argument("--ood", type=cli.several(str), default=["none"], metavar="SET,SET,…",
                   help="sets whose test images are foreign (SVHN, MNIST, …), brought to the networks' inputs; none")
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals")
    cli.add_data_here(parser)
    cli.add_machine(parser)
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = make_parser().settings(argv)
    if args.smoke:
        args.draws, args.ood = min(args.draws, 2), args.ood if args.ood == ["none"] else ["fake"]
    args = cli.resolve(args)
    star, anchors = find(args)
    args.members = args.members or len(anchors)
    args.differs |= {"members": args.members, "weights": runs.hash8(
        [runs.digest(m, args.which) for m in (star, *anchors)])}  # other networks, another folder
    head = f"bma_{args.members}of{len(anchors)}"
    if args.dry_run:
        path = runs.folder("star", args, head)
        print(f"{'finished' if (path / 'done').exists() else 'computed'}: {path}\n{args.draws} averages of "
              f"{args.members} members between {star.path} and {len(anchors)} anchors")
        return 0
    folder, found = runs.measured("star", args, head, lambda run: compute(args, run, star, anchors),
                                  lambda run, found: draw(args, run, found))
    show(found)
    print(f"results: {folder / 'results.json'}\ntable: {folder / 'bma.csv'}")
    return 0


def find(args):
    """(the star, [anchors]), Sources. Raises UsageError and FileProblem."""
    if not args.star or not args.anchors:
        raise UsageError("a star and its anchors are needed: python -m star.bma --star RUN --anchors RUN RUN …")
    stars = runs.find_models(args.star)
    if len(stars) > 1:
        raise UsageError(f"--star {args.star} holds {len(stars)} networks: name one run or checkpoint")
    anchors = barriers.find(args.anchors, args.select)
    if stars[0].path.resolve() in {a.path.resolve() for a in anchors}:
        raise UsageError(f"{stars[0].path} is the star and among --anchors: leave it out of one of them")
    own = args.dataset or stars[0].config.get("dataset")
    if own in args.ood:
        raise UsageError(f"--ood {own}: that is the set that the networks were trained on; name another, or none")
    return stars[0], anchors


# ---- measuring -----------------------------------------------------------------------------------------------------

def compute(args, run, star, anchors):
    """Everything, as plain values; probabilities of the networks and of each average go to run.path / arrays."""
    from landscape import lines, weights
    from models.axes import axes_of

    device = cli.set_up_device(args)
    nets = barriers.load(args, [star, *anchors], device)
    network = nets.trained[0].network.to(device)
    scene = lines.Scene.of(network, nets.data, nets.trained[0].preprocessing, args.bn_images, args.eval_bs)
    foreign = [] if args.ood == ["none"] else args.ood
    sets = [scene.test, *(foreign_images(name, args, scene.normalize).to(device) for name in foreign)]
    centre = nets.weights[0]
    axes = axes_of(network) if args.align != "none" else None
    ends = [lines.align(args.align, scene, centre, w, axes, args.match_seed)[0] for w in nets.weights[1:]]
    drawn = draws(args, len(ends))
    files = [run.path / "arrays" / f"draw-{d}.npz" for d in range(args.draws)]
    progress = runs.Progress(1 + args.draws, "averages")
    own = run.path / "arrays" / "networks.npz"
    if not own.exists():
        mean = weights.combine(ends, [1 / len(ends)] * len(ends))
        keep(own, answers(scene, [centre, mean, *ends], sets, args.bn), order=np.array(["star", "mean", *(
            str(a.path) for a in anchors)]))
    progress.step()
    for file, (chosen, ts) in zip(files, drawn):
        if not file.exists():
            members = [weights.lerp(centre, ends[k], t) for k, t in zip(chosen, ts)]
            keep(file, [said.mean(0) for said in answers(scene, members, sets, args.bn)], chosen=chosen, ts=ts)
        progress.step()
    progress.close()
    single = parts(own, len(sets))
    averages = [np.stack(some) for some in zip(*(parts(f, len(sets)) for f in files))]
    labels = scene.test.labels.cpu().numpy()
    rows, each = table(single, averages, [set(chosen.tolist()) for chosen, _ in drawn], labels, foreign, args.level)
    return {"kind": "bma", "dataset": nets.data.name, "images": {"train": len(scene.train), "test": len(scene.test),
            "batchnorm": len(scene.rows)}, "foreign": {n: len(s) for n, s in zip(foreign, sets[1:])},
            "level": args.level, "align": args.align, "bn": args.bn if scene.normed else "stored", "t": args.t,
            "members": args.members, "draws": args.draws, "star": str(star.path), "net": star.group,
            "anchors": [{"path": str(a.path), "name": a.seed_name, **e} for a, e in zip(anchors, each)], "rows": rows}


def foreign_images(name, args, preprocessing):
    """The test images of another set, as networks with this preprocessing see them."""
    import torch

    from landscape import data as datasets

    pixels = datasets.fitted(datasets.load(name, args.data_root, val_size=0).test.images, preprocessing["image_size"],
                             preprocessing["channels"])
    return datasets.Images(pixels, torch.zeros(len(pixels), dtype=torch.int64))


def draws(args, anchors):
    """[(anchors (M,), t (M,))] of the members of each average. Anchors are drawn without replacement, afresh once all
    of them have been, so that an average at t = 1 is the deep ensemble of the same networks."""
    from landscape.seeding import numpy_stream

    out = []
    for d in range(args.draws):
        order, at = (numpy_stream(args.member_seed, what, d) for what in ("anchors", "t"))
        rounds = -(-args.members // anchors)
        chosen = np.concatenate([order.permutation(anchors) for _ in range(rounds)])[:args.members]
        ts = at.random(args.members) if args.t == "uniform" else np.full(args.members, args.t)
        out.append((chosen, ts))
    return out


def answers(scene, points, sets, bn):
    """[(P, N, C) float32 probabilities on each of the sets] of P points of weight space, BatchNorm estimated anew
    unless it is "stored"."""
    from landscape import evaluate, lines, metrics

    parts = []
    for some in lines.together(points):
        if bn == "reset":
            some = lines.settled(scene, some)
        parts.append([evaluate.logits_at(scene.network, some, images, scene.normalize, scene.bs).numpy()
                      for images in sets])
    logits = [np.concatenate(one) for one in zip(*parts)]
    if not all(np.isfinite(one).all() for one in logits):
        raise ContentError("a network between star and anchors gives NaN or infinite logits: one of them has diverged, "
                           "or BatchNorm's statistics do not suit the weights (--bn reset)")
    return [metrics.softmax(one).astype(np.float32) for one in logits]


def keep(file, probs, **more):
    runs.write_arrays(file, **{f"probs_{k}": p for k, p in enumerate(probs)}, **more)


def parts(file, sets):
    held = runs.read_arrays(file, [f"probs_{k}" for k in range(sets)])
    return [held[f"probs_{k}"] for k in range(sets)]


# ---- scores --------------------------------------------------------------------------------------------------------

def scores(probs, labels, foreign):
    """{measure: (P,)} of P predictions: probs, a list of (P, N, C) of the test set and of each set named in foreign.
    None where an AUROC is not defined, since all answers are right or all wrong."""
    from landscape import metrics

    own = probs[0]
    wrong = own.argmax(2) != labels
    out = {k: v for k, v in metrics.subset_scores(own, labels, np.eye(len(own), dtype=bool)).items() if k in QUALITY}
    scaled = [metrics.tempered(p, labels) for p in own]
    out["nll_tempered"] = [metrics.nll(np.log(np.maximum(p, 1e-300)), labels) for p in scaled]
    out["ece_tempered"] = [metrics.ece(p, labels) for p in scaled]
    signs = [{"confidence": -p.max(2), "entropy": metrics.entropy(p)} for p in probs]  # high where in doubt
    for sign in SIGNS:
        out[f"wrong_{sign}"] = [auroc(w, s) for w, s in zip(wrong, signs[0][sign])]
        for name, there in zip(foreign, signs[1:]):
            out[f"{name}_{sign}"] = [auroc(np.repeat([0, 1], [len(a), len(b)]), np.concatenate([a, b]))
                                     for a, b in zip(signs[0][sign], there[sign])]
    return {k: list(v) for k, v in out.items()}


def auroc(positive, score):
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, score)) if 0 < np.sum(positive) < len(positive) else None


def table(single, averages, chosen, labels, foreign, level):
    """([{predictor, measure, value, low, high, n}], [{measure: value} of each anchor]). single: of each set (2 + A, N,
    C) of star, mean and anchors; averages: of each set (D, N, C); chosen: the anchors of each draw."""
    alone = scores(single, labels, foreign)
    drawn = scores(averages, labels, foreign)
    together = scores([np.stack([p[2:][sorted(some)].mean(0) for some in chosen]) for p in single], labels, foreign)
    one = len({tuple(sorted(some)) for some in chosen}) == 1  # all anchors in every draw: there is one ensemble
    rows = []
    for name in alone:
        apart = [None if None in pair else pair[0] - pair[1] for pair in zip(drawn[name], together[name])]
        values = {"bma": drawn[name], "ensemble": together[name][:1] if one else together[name], "difference": apart,
                  "star": alone[name][:1], "mean": alone[name][1:2], "anchor": alone[name][2:]}
        for predictor, some in values.items():
            found = (None, None, None) if None in some else results.bootstrap(some, level=level)
            most = {"nll": np.inf, "nll_tempered": np.inf, "brier": 2}.get(name, 1)
            least = -most if predictor == "difference" else 0
            low, high = (e if e is None else float(np.clip(e, least, most)) for e in found[1:])
            rows.append({"predictor": predictor, "measure": name, "value": found[0], "low": low, "high": high,
                         "n": len(some)})
    return rows, [{k: v[2 + a] for k, v in alone.items()} for a in range(len(single[0]) - 2)]


# ---- tables and figures --------------------------------------------------------------------------------------------

def show(found):
    names = list(dict.fromkeys(r["measure"] for r in found["rows"]))
    print(f"{found['draws']} averages of {found['members']} members, {len(found['anchors'])} anchors, "
          f"{found['images']['test']} test images; [{found['level']:.0%} interval]; AUROC of wrong answers and of "
          f"foreign images by {', '.join(SIGNS)}")
    for name in names:
        print(name)
        for row in found["rows"]:
            if row["measure"] == name:
                ends = "" if row["low"] is None else f" [{row['low']:.4f}, {row['high']:.4f}]"
                value = "-" if row["value"] is None else f"{row['value']:.4f}"
                print(f"  {PREDICTORS[row['predictor']]:<22}{value}{ends}")


def draw(args, run, found):
    from landscape import redraw
    from star import bma_figures

    results.write_csv(run.path / "bma.csv", found["rows"], list(found["rows"][0]))
    run.sink.table("bma", found["rows"])
    redraw.show(run, bma_figures.figures(run.path, found), args.formats)


if __name__ == "__main__":
    cli.run(main)
