"""Train a star: a network whose straight lines to N given networks, its anchors, have a low loss.

    python -m star.train --anchors runs/star_sources --net mlp1 --width 16 --dataset MNIST --epochs 60 --align weights

A step is at (1-t) star + t anchor with a drawn anchor and t, and moves the star (Sonthalia et al. 2025, arXiv
2403.07968). The anchors, trained by star.sources, main.py or elsewhere, stay as they are on disk; here their hidden
units are permuted towards the star before each epoch. What is saved is the star as an ordinary network, which any study
loads, with BatchNorm statistics of its own and its anchors' paths in its description. star.compare measures it.
"""

import hashlib

import models
from landscape import cli, runs
from landscape.errors import UsageError
from star import barriers

SAMPLINGS = ("uniform", "beta", "constant")


def make_parser():
    parser = cli.training_parser("python -m star.train", __doc__)
    g = parser.group("star", named=True)
    g.add_argument("--anchors", nargs="+", default=[], metavar="RUN_OR_CHECKPOINT",
                   help="run folders, checkpoints, folders of these, 'patterns*', or a .txt file with one a line")
    g.add_argument("--which", default="model", choices=("model", "best"),
                   help="of a run: the last weights, or the best on its validation set")
    cli.add_select(g)
    g.add_argument("--t_sampling", default="uniform", choices=SAMPLINGS,
                   help="how t is drawn: uniform, Beta(2, 2), or always 1/2")
    g.add_argument("--samples", type=cli.positive, default=1, metavar="S",
                   help="draws of an anchor and t a step, on parts of its batch")
    g.add_argument("--mu", type=cli.number(0), default=0.0,
                   help="weight of the star's own loss: (path loss + mu own loss) / (1 + mu) is minimised")
    g.add_argument("--anti", action="store_true",
                   help="an anti-star, of high loss on the lines: the path loss is replaced by 1 / path loss, as "
                        "starlight's loss_sign")
    g.add_argument("--align", default="weights", choices=barriers.ALIGNMENTS,
                   help="by what the anchors' units are matched to the star's; published: without what rebasin 0.0.47 "
                        "omits")
    g.add_argument("--align_every", type=cli.natural, default=1, metavar="EPOCHS",
                   help="epochs between alignments, each from where the last one ended; 0: once, before the first step")
    g.add_argument("--match_seed", type=int, default=0, help="order in which groups of units are matched")
    g.add_argument("--init", default="scratch", choices=("scratch", "mean"),
                   help="begin with fresh weights (or --init_from), or with the mean of the anchors, aligned to each "
                        "other (as they are with --align none)")
    g.add_argument("--bn_images", type=cli.natural, default=5000,
                   help="training images from which BatchNorm statistics are re-estimated; 0: all")
    g = parser.group("held-out networks", named=True)
    g.add_argument("--held_out", nargs="+", default=[], metavar="RUN_OR_CHECKPOINT",
                   help="networks that are no anchors, likewise: the barriers to them enter the metrics")
    g.add_argument("--held_out_select", nargs="+", default=[], metavar="KEY=VALUE|VALUE", help="--select of these")
    g.add_argument("--held_out_every", type=cli.natural, default=0, metavar="EPOCHS",
                   help="epochs between these barriers; 0: after the last only")
    g.add_argument("--held_out_images", type=cli.positive, default=1000, help="training images for them")
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    check(args)
    anchors, held_out = sources(args)
    path = runs.folder("star", args, head(args, anchors))
    if args.dry_run:
        print(f"{runs.state_of(path)}: {path}\na star of {len(anchors)} {args.net} on {args.dataset}, aligned by "
              f"{args.align}, t {args.t_sampling}, {args.epochs} epochs; {len(held_out)} held-out networks")
        return 0
    if args.time_steps:
        from landscape import train

        device = cli.set_up_device(args)
        work = Work(args, anchors, held_out, device)
        return train.time_run(args, device, (work.data, work.star, work.described), settle=work.settle,
                              objective=work.objective, begin=work.begin)
    work = None
    if args.force or not (path / "done").exists():
        work = Work(args, anchors, held_out, cli.set_up_device(args))
    with runs.start("star", args, head(args, anchors)) as run:
        if not run.finished:
            work.train(run)
        found = runs.read_json(run.path / "results.json")
        said = [f"train accuracy {found['star']['train_accuracy']:.4f}"]
        said += [f"test accuracy {found['last']['test_accuracy']:.4f}"] if "test_accuracy" in found["last"] else []
        said += [f"held-out loss barrier {found['star']['held_out_barrier']:.4f}"] if held_out else []
        print(f"star of {len(anchors)}: {', '.join(said)}\nrun: {run.path}")
    return 0


def head(args, anchors):
    return f"{args.dataset.split(':')[0]}_{models.canonical(args.net)}_star{len(anchors)}"


def check(args):
    """UsageError for settings that do not go together."""
    if args.samples > args.bs:
        raise UsageError(f"--samples {args.samples} is more than --bs {args.bs}")
    if args.sam_radius:
        raise UsageError("--sam_radius is not offered for stars: its two passes would be at different points")
    if args.train_mode.startswith("adv"):
        raise UsageError(f"--train_mode {args.train_mode} is not offered for stars: an attack is on one network")
    if args.init == "mean" and args.init_from:
        raise UsageError("--init mean and --init_from: give one of the two")
    for flag in ("held_out_every", "held_out_select"):
        if getattr(args, flag) and not args.held_out:
            raise UsageError(f"--{flag} needs --held_out")


def sources(args):
    """(anchors, held-out networks) as Sources; what they are, not where they lie, becomes part of the run's name."""
    anchors = barriers.find(args.anchors, args.select)
    if not anchors:
        raise UsageError("a star needs at least one anchor: --anchors RUN_OR_CHECKPOINT …")
    held_out = barriers.find(args.held_out, args.held_out_select)
    digests = [sorted(runs.digest(s, args.which) for s in group) for group in (anchors, held_out)]
    for source, one in ((s, runs.digest(s, args.which)) for s in held_out):
        if one in digests[0]:
            raise UsageError(f"{source.path} is among --anchors and among --held_out: what a star has seen tells "
                             "nothing of networks that it has not")
    for name in ("anchors", "held_out", "select", "held_out_select"):
        args.differs.pop(name, None)
    args.differs["anchors"] = runs.hash8(digests[0])
    if held_out:
        args.differs["held_out"] = runs.hash8(digests[1])
    return anchors, held_out


class Work:
    """A training of a star, all of whose input has been looked at: refusals come before anything is written."""

    def __init__(self, args, anchors, held_out, device):
        import torch

        from landscape import evaluate, lines, subspace, train, weights
        from landscape.objectives import Objective
        from models.axes import axes_of
        from star import stars

        self.args, self.device = args, device
        self.data, network, described = train.prepare(args, device)
        self.axes = axes_of(network) if args.align != "none" else None
        normalize, images = described["preprocessing"], self.data.train
        x, _, _ = next(self.data.test.batches(torch.arange(2), 2, normalize))
        network = network.to(device)
        own = weights.of(network)
        subspace.check_call(network, own, x)
        self.held_out = [self.load(source, described) for source in held_out]
        held, digests = [content(w) for w in self.held_out], []

        def loaded():
            for source in anchors:
                one = self.load(source, described)
                digests.append(content(one))
                if digests[-1] in held:
                    raise UsageError(f"{source.path} has the weights of {held_out[held.index(digests[-1])].path}, a "
                                     "held-out network")
                yield one

        shell = runs.build(described["architecture"])
        self.star = stars.Star(shell, own, loaded(), len(anchors), args.t_sampling, args.samples, self.axes,
                               args.mu > 0)
        if args.init == "mean":
            vertices = [self.star.vertex(1 + n) for n in range(len(anchors))]
            self.star.set_vertex(0, stars.aligned_mean(vertices, self.axes, args.match_seed))
        self.star.to(device)
        named = [{"path": str(s.path), "digest": d} for s, d in zip(anchors, digests)]
        self.described = {**described, "star": {"anchors": named, "which": args.which, "align": args.align,
                                                "t_sampling": args.t_sampling, "mu": args.mu, "anti": args.anti}}
        rows = images.some_rows(args.bn_images)
        self.scene = lines.Scene(network.eval(), images, self.data.test, normalize,
                                 images.some_rows(args.held_out_images), args.eval_bs)
        self.align = stars.Aligner(args.align, network, images, normalize, rows, args.match_seed)
        self.settle = None
        if evaluate.norm_layers(network):
            self.settle = train.settling(self.data, normalize, args.bn_images)
        plain = train.make_objective(args, self.data, described, device)
        self.objective = Objective(plain.prepare, self.fused(plain.loss))

    def load(self, source, described):
        """The weights of a source, on the CPU. Raises FileProblem, ContentError and UsageError that name it."""
        from landscape import train, weights

        return weights.of(train.load_like(source.path, self.args, self.data, described, self.args.which).network)

    def fused(self, loss):
        """(path loss + mu own loss) / (1 + mu), or with 1 / path loss."""
        args = self.args

        def of(said, target):
            path = loss(said, target)
            if args.anti:
                path = 1 / path
            return (path + args.mu * loss(self.star.own, target)) / (1 + args.mu) if args.mu else path

        return of

    def begin(self, star, epoch):
        every = self.args.align_every
        if self.axes is not None and (epoch % every == 0 if every else epoch == 0):
            self.align(star, epoch // every if every else 0)

    def note(self, star, epoch):
        """Further metrics after an epoch: the mean distance to the anchors, the barriers to held-out networks."""
        args = self.args
        out = {"anchor_distance": star.distances().mean().item()}
        due = args.held_out_every and epoch % args.held_out_every == 0
        return out | (self.barriers() if self.held_out and (due or epoch == args.epochs) else {})

    def barriers(self):
        from star import stars

        own = self.star.state_at(self.star.centre)
        others = [{k: v.to(self.device) for k, v in w.items()} for w in self.held_out]
        height, drop = stars.held_out_barriers(self.scene, own, others, self.args.align, self.axes,
                                               self.args.match_seed)
        return {"held_out_barrier": height, "held_out_accuracy_barrier": drop}

    def train(self, run):
        from landscape import evaluate, train
        from star import stars

        args, star, data = self.args, self.star, self.data
        run.sink.describe({"parameters": sum(star.sizes)})
        found = train.fit(star, data, args, run, self.described, settle=self.settle, objective=self.objective,
                          begin=self.begin, note=self.note)
        stars.strip(run, self.described)
        own = evaluate.score(star, data.train, self.described["preprocessing"], args.eval_bs)
        found["star"] = {"anchors": len(star.fixed), **{f"train_{k}": v for k, v in own.items()},
                         "anchor_distances": star.distances().tolist()}
        if self.held_out:
            curve = run.metrics()
            last = curve[-1] if curve else self.barriers()
            found["star"] |= {k: last[k] for k in ("held_out_barrier", "held_out_accuracy_barrier")}
        train.finish(run, args, data, self.scene.network, self.described, found)


def content(weights):
    """A hash of the learned weights of a network, wherever and however they are stored."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        if not name.endswith("num_batches_tracked"):
            found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    cli.run(main)
