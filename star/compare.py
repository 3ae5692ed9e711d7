"""Measure a star: its barriers to held-out networks and to its anchors, beside what else could be at its place.

    python -m star.compare --stars runs/star --held_out runs/star_sources --held_out_select init_seed=3

For each star: barriers on the lines star to held-out, star to anchor, and anchor to held-out (two regular networks);
the same from the mean of the anchors, their units aligned to each other, from averages of one training's snapshots
(--swa), and from any networks (--others). The best anchor is the one whose barriers to the held-out networks are least,
chosen after the fact, in its own favour. Loss and accuracy of each network; the path anchor, star, anchor beside the
straight line between the two and learned bends (--bends: curves of subspaces.train with fixed ends). Intervals are
clustered by network.
"""

from pathlib import Path

from landscape import cli, runs
from landscape.errors import ContentError, FileProblem, UsageError
from star import barriers, comparisons, starlight

# What is on a line: its first and its second end.
LINES = {"star_held_out": ("star", "held_out"), "star_anchor": ("star", "anchor"),
         "anchor_held_out": ("anchor", "held_out"), "mean_held_out": ("mean", "held_out"),
         "mean_anchor": ("mean", "anchor"), "other_held_out": ("other", "held_out"),
         "other_anchor": ("other", "anchor")}
BEST = "best_held_out"  # those of anchor_held_out that begin at the best anchor


def make_parser():
    parser = cli.Parser("python -m star.compare", __doc__)
    g = parser.group("networks", named=True)
    g.add_argument("--stars", nargs="+", default=[], metavar="RUN", help="runs of star.train, or folders of these")
    cli.add_select(g)
    g.add_argument("--held_out", nargs="+", default=[], metavar="RUN_OR_CHECKPOINT",
                   help="networks that are no anchors: run folders, checkpoints, folders of these, or a .txt file")
    g.add_argument("--held_out_select", nargs="+", default=[], metavar="KEY=VALUE|VALUE", help="--select of these")
    g.add_argument("--others", nargs="+", default=[], metavar="RUN_OR_CHECKPOINT",
                   help="further networks at the star's place")
    g.add_argument("--swa", nargs="+", default=[], metavar="RUN",
                   help="trainings with --snapshots (best: cycles): the average of the snapshots of each, likewise")
    g.add_argument("--bends", nargs="+", default=[], metavar="RUN",
                   help="curves of subspaces.train whose ends are anchors")
    g.add_argument("--anchors_measured", type=cli.natural, default=0, metavar="K",
                   help="of the anchors, only the first K have lines (the mean is of all); 0: all")
    g.add_argument("--paths", type=cli.natural, default=3, metavar="K",
                   help="pairs of anchors whose straight line is compared with the path over the star")
    g.add_argument("--which", default="model", choices=("model", "best"),
                   help="of a run: the last weights, or the best on its validation set; of anchors those that the star "
                        "was trained with")
    cli.add_foreign(parser, dataset="", named=True)
    g = parser.group("lines", named=True)
    barriers.add_points(g)
    g.add_argument("--align", type=cli.several_of(barriers.ALIGNMENTS), default=["weights"], metavar="HOW,…",
                   help=f"some of {', '.join(barriers.ALIGNMENTS)}: by what units are matched, side by side")
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals")
    cli.add_data_here(parser)
    cli.add_machine(parser)
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    stars = [s for s in barriers.find(args.stars, args.select) if described(s, args.which)]
    if not stars:
        raise UsageError("no star is given: --stars RUN, a run of star.train")
    if not args.held_out:
        raise UsageError("no held-out network is given: --held_out RUN_OR_CHECKPOINT …")
    shared = dict(args.differs)
    for star in stars:
        args.differs = dict(shared)
        measure(args, star)
    return 0


def described(source, which):
    """{"anchors", …} of a run of a star, None of any other."""
    file = source.path / f"{which}.safetensors"
    return None if source.foreign or not file.exists() else runs.describe(file).get("star")


def measure(args, star):
    """One star; a finished measurement is only shown."""
    said = described(star, args.which)
    groups = {"star": [star], "anchor": [one for a in said["anchors"] for one in barriers.find([a["path"]])],
              "held_out": barriers.find(args.held_out, args.held_out_select), "other": barriers.find(args.others)}
    which = {name: said["which"] if name == "anchor" else args.which for name in groups}
    groups["held_out"] = [s for s in groups["held_out"] if not described(s, args.which)]
    if not groups["held_out"]:
        raise UsageError("--held_out gives stars only, no other network")
    seen = {runs.digest(s, which["anchor"]): s for s in groups["anchor"]}
    for source in groups["held_out"]:
        if runs.digest(source, args.which) in seen:
            raise UsageError(f"{source.path} is an anchor of {star.path}: choose others by --held_out_select")
    members = [(s, which[name]) for name, group in groups.items() for s in group]
    for name in ("stars", "select", "held_out", "held_out_select", "others", "bends", "swa"):
        args.differs.pop(name, None)
    args.differs["weights"] = runs.hash8([*(runs.digest(*m) for m in members), *args.bends, *args.swa])
    head = f"compare_{star.config['net']}_star{len(groups['anchor'])}"
    path = runs.folder("star", args, head)
    if args.dry_run:
        print(f"{'finished' if (path / 'done').exists() else 'computed'}: {path}\na star of {len(groups['anchor'])} "
              f"anchors, {len(groups['held_out'])} held-out networks, aligned by {', '.join(args.align)}")
        return
    folder, found = runs.measured("star", args, head, lambda run: compute(args, run, star, said, groups, members),
                                  lambda run, found: draw(args, run, found))
    show(found)
    print(f"results: {folder / 'results.json'}")


# ---- measuring -----------------------------------------------------------------------------------------------------

def compute(args, run, star, said, groups, members):
    """Everything, as plain values. groups: the Sources by role; members: all of them, in that order, each with what of
    it is measured ("model" or "best")."""
    from landscape import lines, permute
    from star import stars
    from star.train import content

    device = cli.set_up_device(args)
    members, which = zip(*members)
    nets = barriers.load(args, members, device, which)
    for known, source, one in zip(said["anchors"], groups["anchor"], nets.weights[1:]):
        if content(one) != known["digest"]:
            raise ContentError(f"{source.path} is no longer the network that {star.path} was trained with")
    scene, axes = barriers.scene_of(args, nets, device)
    places, at = {}, 0
    for name, group in groups.items():
        places[name] = list(range(at, at + len(group)))
        at += len(group)
    anchors = [permute.parameters(nets.weights[k]) for k in places["anchor"]]
    mean = stars.aligned_mean(anchors, axes, args.match_seed)
    swa = [average(path, nets.weights[0]) for path in args.swa]
    made = [{**nets.weights[0], **one} for one in (mean, *swa)]
    held = [*nets.weights, *lines.settled(scene, made)]
    places["mean"] = [len(nets.weights)]
    places["other"] += range(len(nets.weights) + 1, len(held))
    if args.anchors_measured:
        places["anchor"] = places["anchor"][:args.anchors_measured]
    norm = "reset" if scene.normed else "stored"
    pairs = {kind: [(i, j) for i in places[one] for j in places[other]] for kind, (one, other) in LINES.items()}
    couples = list(zip(places["anchor"][::2], places["anchor"][1::2]))[:args.paths]
    rows = barriers.measured(args, run, scene, held, [p for some in pairs.values() for p in some] + couples, axes,
                             [norm], keep=False)
    kinds = {pair: kind for kind, some in pairs.items() for pair in some}
    rows = [{"kind": kinds.get((r["a"], r["b"]), "anchor_anchor"), **r} for r in rows]
    names = [(m.seed_name, str(m.path)) for m in members] + [("mean of anchors", "")]
    names += [("average of snapshots", str(path)) for path in args.swa]
    roles = {k: role for role, some in places.items() for k in some}
    config = star.config
    bends = [bend(args, scene, path, norm) for path in args.bends]
    return {"kind": "star", "level": args.level, "align": args.align, "bn": norm, "adaptive": args.adaptive,
            "images": barriers.image_counts(scene),
            "star": {"path": str(star.path), "anchors": len(groups["anchor"]), "held_out": len(groups["held_out"]),
                     **{k: config[k] for k in ("net", "width", "dataset", "init_seed", "epochs", "opt", "t_sampling",
                                               "mu", "init", "anti", "samples")}, "aligned_by": said["align"]},
            "models": [{"number": k, "name": names[k][0], "path": names[k][1], "role": roles[k], **standing(rows, k)}
                       for k in sorted(roles)],
            "lines": rows, "summary": summary(rows, args.align, args.level), "bends": bends,
            "paths": [path_over_the_star(rows, i, j, how) for i, j in couples for how in args.align]}


def average(path, like):
    """The mean of the parameters of a training's snapshots, on the device of `like`. Raises FileProblem and
    ContentError."""
    from landscape import permute
    from landscape import weights as algebra

    files = [f for f in sorted((Path(path) / "checkpoints").glob("*.safetensors")) if f.stem != "epoch_0000"]
    if not files:
        raise FileProblem(f"{path} holds no snapshots: train it with --snapshots cycles, or another list of epochs")
    found = [permute.parameters(runs.read_weights(f)[0]) for f in files]
    algebra.check_same(permute.parameters(like), found[0], "the star", path)
    return {k: v.to(like[k].device) for k, v in algebra.combine(found, [1 / len(found)] * len(found)).items()}


def standing(rows, k):
    """Loss and accuracy on both splits of network k, from any line that it is an end of."""
    row = next(r for r in rows if k in (r["a"], r["b"]))
    end = 0 if row["a"] == k else -1
    return {f"{part}_{name}": row[part][key][end] for part in ("train", "test")
            for name, key in (("loss", "losses"), ("accuracy", "accuracies"))}


def summary(rows, aligns, level):
    """One row for each kind of line, alignment, split and measure: mean over pairs, spread, clustered interval."""
    out = []
    for how in aligns:
        some = [r for r in rows if r["align"] == how]
        for kind in [*LINES, BEST]:
            of_kind = [r for r in some if r["kind"] == kind]
            if kind == BEST:
                of_kind = best_of([r for r in some if r["kind"] == "anchor_held_out"])
            for part in ("train", "test") if of_kind else ():
                for measure in ("loss_barrier", "accuracy_barrier"):
                    values = {(r["a"], r["b"]): r[part][measure] for r in of_kind}
                    out.append({"kind": kind, "align": how, "split": part, "measure": measure,
                                **starlight.over_pairs(values, level)})
    return out


def best_of(rows):
    """The rows that begin at the network with the least mean barrier of loss on the training set."""
    held = {}
    for row in rows:
        held.setdefault(row["a"], []).append(row)
    return min(held.values(), key=lambda some: sum(r["train"]["loss_barrier"] for r in some) / len(some))


def path_over_the_star(rows, i, j, how):
    """The barrier of loss on the path anchor i, star, anchor j, over the straight line between the losses of its ends,
    and the barrier on the straight line between the two."""
    def line(a, b):
        return next(r for r in rows if (r["a"], r["b"], r["align"]) == (a, b, how))

    first, second, straight, out = line(0, i), line(0, j), line(i, j), {"a": i, "b": j, "align": how}
    for part in ("train", "test"):
        points = [((1 - t) / 2, loss) for t, loss in zip(first["ts"], first[part]["losses"])]
        points += [((1 + t) / 2, loss) for t, loss in zip(second["ts"], second[part]["losses"])]
        ends = first[part]["losses"][-1], second[part]["losses"][-1]
        out[f"{part}_over_star"] = max(loss - (1 - s) * ends[0] - s * ends[1] for s, loss in points)
        out[f"{part}_straight"] = straight[part]["loss_barrier"]
    return out


def bend(args, scene, path, norm):
    """The barrier of loss along a learned curve, at args.points, over the straight line between its ends' losses."""
    from landscape import evaluate, lines, metrics, subspace
    from landscape import weights as algebra

    weights, said = runs.read_weights(Path(path) / "model.safetensors")
    if "subspace" not in said:
        raise UsageError(f"--bends {path}: it holds one network, not a curve")
    ts = [k / (args.points - 1) for k in range(args.points)]
    points = [subspace.state_of(weights, said["subspace"], f"t={t}") for t in ts]
    algebra.check_same(algebra.of(scene.network), points[0], "the star", path)
    device = evaluate.device_of(scene.network)
    points = [{k: v.to(device) for k, v in p.items()} for p in points]
    if norm == "reset":
        points = lines.settled(scene, points)
    out = {"path": str(path), "family": said["subspace"]["family"]}
    for part, images in (("train", scene.train), ("test", scene.test)):
        losses, _ = lines.said_at(scene, points, images)
        out[f"{part}_losses"] = losses.mean(1, dtype=float).tolist()
        out[f"{part}_barrier"] = metrics.barrier(losses.mean(1, dtype=float), ts)
    return out


# ---- tables and figures --------------------------------------------------------------------------------------------

def show(found):
    star, images = found["star"], found["images"]
    print(f"star of {star['anchors']} {star['net']}, {star['held_out']} held-out networks; {images['train']} training "
          f"and {images['test']} test images; mean over pairs, standard deviation, [{found['level']:.0%} interval]")
    for row in found["summary"]:
        if row["measure"] == "loss_barrier":
            print(f"{comparisons.KINDS[row['kind']]:<28}{row['align']:<12}{row['split'] + ' loss barrier':<20}"
                  f"{row['pairs']:>5}  {starlight.shown(row)}")
    for role in ("star", "anchor", "held_out", "mean", "other"):
        some = [m for m in found["models"] if m["role"] == role]
        if some:
            mean = {k: sum(m[k] for m in some) / len(some) for k in ("train_loss", "test_loss", "test_accuracy")}
            print(f"{role.replace('_', '-'):<10} train loss {mean['train_loss']:.4f}, test loss "
                  f"{mean['test_loss']:.4f}, test accuracy {mean['test_accuracy']:.4f}")
    for how in found["align"]:
        some = [p for p in found["paths"] if p["align"] == how]
        if some:
            over, straight = (sum(p[k] for p in some) / len(some) for k in ("train_over_star", "train_straight"))
            print(f"anchor, star, anchor ({how}): barrier {over:.4f}; straight line {straight:.4f}; {len(some)} pairs")
    for one in found["bends"]:
        print(f"learned {one['family']} {one['path']}: barrier {one['train_barrier']:.4f}")


def draw(args, run, found):
    from landscape import redraw
    from landscape.results import write_csv
    from star import compare_figures

    write_csv(run.path / "barriers.csv", found["summary"], list(found["summary"][0]))
    write_csv(run.path / "models.csv", found["models"], list(found["models"][0]))
    run.sink.table("barriers", found["summary"])
    runs.write_bytes(run.path / "starlight.yaml", starlight_yaml(found))
    redraw.show(run, compare_figures.figures(run.path, found), args.formats)


def starlight_yaml(found):
    """The three published lists in starlight's YAML form, of the last alignment."""
    import yaml

    star, how = found["star"], found["align"][-1]
    names = {m["number"]: m["path"] or m["name"] for m in found["models"]}
    some = [r for r in found["lines"] if r["align"] == how]
    held = {kind: starlight.pairs_of([r for r in some if r["kind"] == kind], names) for kind in starlight.KINDS}
    return yaml.safe_dump({"model": star["net"], "dataset": star["dataset"], "setting": how, **held},
                          sort_keys=False).encode()


if __name__ == "__main__":
    cli.run(main)
