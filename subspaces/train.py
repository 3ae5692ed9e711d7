"""Learn a line, a curve or a simplex of networks in one training, or a standard network to compare it with.

    python -m subspaces.train --net resnet20 --dataset digits --epochs 20 --family line

Each step is at a point drawn from the subspace, and a regulariser keeps its vertices apart (Wortsman et al. 2021, arXiv
2102.10472). Any network will do. The curves of the training are those of the centre, with BatchNorm statistics
re-estimated there, and so are the statistics that are saved: a run is loaded as its centre wherever a run is loaded,
and at other points with --point. subspaces.evaluate measures the whole of it. --family standard trains one network, for
ensembles and averages of its snapshots.
"""

import argparse

from landscape import cli, runs
from landscape.errors import UsageError

FAMILIES = ("line", "curve", "chain", "simplex", "standard")


def make_parser():
    parser = cli.training_parser("python -m subspaces.train", __doc__)
    g = parser.group("subspace", named=True)
    g.add_argument("--family", default="line", choices=FAMILIES,
                   help="curve: Bézier, of --vertices less 1 degrees; chain: straight pieces; standard: one network")
    g.add_argument("--vertices", type=cli.natural, default=0, metavar="M",
                   help="0: 2 of a line or simplex, 3 of a curve or chain")
    g.add_argument("--granularity", default="network", choices=("network", "module", "tensor"),
                   help="what draws coefficients of its own; module: the paper's layerwise variant")
    g.add_argument("--beta", type=cli.number(0), default=1.0, help="weight of the squared cosine between vertices")
    g.add_argument("--pairs", default="sampled", choices=("sampled", "all"),
                   help="of the regulariser: one pair of vertices a step, as published, or the mean over all")
    g.add_argument("--per_layer", action="store_true", help="cosines of each matrix by itself instead of all together")
    g.add_argument("--samples", type=cli.positive, default=1, metavar="S",
                   help="points a step, each on its part of the batch; a short last batch is in fewer parts, of two "
                        "images or more")
    g.add_argument("--decay", default="vertices", choices=("vertices", "point"),
                   help="what weight decay shrinks: every vertex, as published, or the drawn point")
    g.add_argument("--rescale_lr", action="store_true",
                   help="SGD: raise the learning rate (and lower weight decay) by as much as a step moves the centre "
                        "too little, m of a line or simplex with m vertices")
    g.add_argument("--ends", default="", metavar="RUN,RUN", help="of a curve or chain: fix its ends to these networks")
    g.add_argument("--start", default="", metavar="RUN,RUN,…",
                   help="begin with these networks as vertices (default: fresh weights for each vertex)")
    g.add_argument("--start_noise", type=cli.number(0), default=0.0, metavar="SIGMA",
                   help="begin every vertex at --init_from, plus noise of this share of each tensor's root mean square")
    g.add_argument("--dropout", type=cli.number(0, 0.99), default=0.0, help="probability of the network's dropouts")
    g.add_argument("--ema", type=cli.number(0, 0.999999), default=0.0, metavar="DECAY",
                   help="of --family standard: what is measured and kept is the average of the weights of all steps, "
                        "those of a step earlier weighing DECAY as much; 0: off")
    g.add_argument("--bn_images", type=cli.natural, default=5000,
                   help="training images from which BatchNorm statistics of the centre are re-estimated; 0: all")
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    check(args)
    path = runs.folder("subspaces", args)
    if args.dry_run:
        state = "finished" if (path / "done").exists() else "resumed" if (path / "resume.pt").exists() else "trained"
        print(f"{state}: {path}\n{words(args)} of {args.net} on {args.dataset}, {args.epochs} epochs of batches of "
              f"{args.bs}, {args.opt}, {args.precision}")
        return 0
    if args.time_steps:
        from landscape import train

        device = cli.set_up_device(args)
        prepared = prepare(args, device)
        return train.time_run(rescaled(args), device, prepared, penalty(args), settling(args, prepared))
    prepared = None
    if args.force or not (path / "done").exists():
        prepared = prepare(args, cli.set_up_device(args))
    with runs.start("subspaces", args) as run:
        if not run.finished:
            train_into(run, args, prepared)
        draw_curves(run, args)
        last = runs.read_json(run.path / "results.json")["last"]
        said = [f"{k.replace('_', ' ')} {last[k]:.4f}" for k in ("train_accuracy", "val_accuracy", "test_accuracy",
                                                                "test_loss") if last.get(k) is not None]
        print(f"{words(args)}: {', '.join(said)}\nrun: {run.path}")
    return 0


def words(args):
    """The subspace of the settings in a few words."""
    if args.family == "standard":
        return "one network"
    shape = f"{args.family} of {args.vertices} vertices"
    return shape + f", points of each {args.granularity}" * (args.granularity != "network")


def check(args):
    """Fill in --vertices. UsageError for settings that do not go together."""
    if args.family == "standard":
        for flag in ("vertices", "granularity", "beta", "pairs", "per_layer", "samples", "decay", "rescale_lr", "ends",
                     "start", "start_noise"):
            if flag in args.differs:
                raise UsageError(f"--{flag} is of a subspace: --family standard trains one network")
        if args.ema and (args.accumulate > 1 or args.sam_radius):
            raise UsageError("--ema is not offered with --accumulate or --sam_radius: it would count a step twice")
        if args.ema and args.snapshots:
            raise UsageError("--snapshots is not offered with --ema, which measures and keeps the average at the end")
        return
    if args.ema:
        raise UsageError("--ema is of one network: give --family standard")
    from landscape import subspace

    own = {"curve": 3, "chain": 3}.get(args.family, 2)
    if args.vertices in (0, own):
        args.vertices = own
        args.differs.pop("vertices", None)  # said or not, it is the same run
    subspace.rule(args.family, args.vertices)
    if args.sam_radius:
        raise UsageError("--sam_radius is not offered for subspaces: its two passes would be at different points")
    if args.train_mode.startswith("adv"):
        raise UsageError(f"--train_mode {args.train_mode} is not offered for subspaces: an attack is on one network")
    if args.rescale_lr and args.opt != "SGD":
        raise UsageError(f"--rescale_lr is for SGD: {args.opt} moves every vertex by --lr, whatever its coefficient")
    if args.decay == "point" and args.opt == "AdamW":
        raise UsageError("--decay point is not for AdamW, which shrinks what it trains, the vertices")
    if args.samples > 1 and 2 * args.samples > args.bs:
        raise UsageError(f"--samples {args.samples}: a part of --bs {args.bs} images has two of them at least")
    if args.accumulate > 1:
        raise UsageError("--accumulate is not offered for subspaces: its parts would be at points of their own, "
                         "which is what --samples is for")
    if sum(map(bool, (args.ends, args.start, args.start_noise))) > 1:
        raise UsageError("--ends, --start and --start_noise: give one of the three")
    if args.ends and args.family not in ("curve", "chain"):
        raise UsageError(f"--ends: a {args.family} between two fixed networks leaves nothing to train, or has no ends; "
                         "use --family curve or chain")
    if args.init_from and not args.start_noise:
        raise UsageError("--init_from alone makes all vertices equal, and they stay equal: add --start_noise SIGMA")
    if args.start_noise and not args.init_from:
        raise UsageError("--start_noise needs --init_from CHECKPOINT, the network that it is added to")
    for flag, wanted in (("ends", 2), ("start", args.vertices)):
        given = getattr(args, flag)
        if given and len(given.split(",")) != wanted:
            raise UsageError(f"--{flag} {given}: {wanted} networks are expected, with commas between them")


def prepare(args, device):
    """(data, network or Subspace, what describes it) of a training: bad input is refused before anything is written."""
    import torch

    from landscape import subspace, train

    data, network, described = train.prepare(args, device)
    set_dropout(network, args.dropout)
    if args.family == "standard":
        return data, averaging(network, args.ema) if args.ema else network, described
    rule = subspace.rule(args.family, args.vertices)
    vertices = first_vertices(args, data, network, described, rule)
    x, _, _ = next(data.test.batches(torch.arange(2), 2, described["preprocessing"]))
    subspace.check_call(network.to(device), {k: v.to(device) for k, v in vertices[-1].items()}, x)
    frozen = (0, rule.m - 1) if args.ends else ()
    space = subspace.Subspace(network.cpu(), vertices, rule, args.granularity, args.samples, frozen)
    if args.beta and not space.matrices:
        raise UsageError("this network has no weight of two axes: there is no angle to regularise; give --beta 0")
    held = {"family": args.family, "vertices": rule.m, "granularity": args.granularity, "tied": space.aliases}
    return data, space, {**described, "subspace": held}


def averaging(network, decay):
    """The network with an exponential moving average of its weights (torch.optim.swa_utils), which evaluation sees: the
    weights that a step has left enter it when the next one begins, and those of the last step when it is settled."""
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    class Averaging(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.live = network
            self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
            self.average.module.requires_grad_(False)
            self.register_buffer("fresh", torch.tensor(False))  # does it hold the weights that the last step left?

        def refresh(self):
            if not self.fresh:
                self.average.update_parameters(self.live)
            self.fresh.fill_(True)

        def forward(self, x):
            if not self.training:
                return self.average.module(x)
            self.refresh()
            self.fresh.fill_(False)
            return self.live(x)

    return Averaging()


def set_dropout(network, probability):
    import torch

    layers = [m for m in network.modules() if isinstance(m, torch.nn.Dropout)]
    if probability and not layers:
        raise UsageError(f"--dropout {probability:g}: this network has no dropout; resnet20_proj has")
    for layer in layers if probability else ():
        layer.p = probability


def first_vertices(args, data, network, described, rule):
    """The m weight dicts that a training begins with. Vertex 0 of fresh ones is the standard network of that
    --init_seed."""
    from landscape import seeding, subspace, train, weights

    def given(path):
        return weights.of(train.load_like(path, args, data, described).network)

    own = weights.of(network)
    if args.start_noise:
        return [subspace.noisy(own, args.start_noise, seeding.stream(args.init_seed, "vertex", k))
                for k in range(rule.m)]
    if args.start:
        return [given(path) for path in args.start.split(",")]
    if args.ends:
        first, last = (given(path) for path in args.ends.split(","))
        return [weights.lerp(first, last, k / (rule.m - 1)) for k in range(rule.m)]
    vertices = [own]
    for k in range(1, rule.m):
        with seeding.fork(args.init_seed, "init", k):
            vertices.append(weights.of(runs.build(described["architecture"])))
    return vertices


def rescaled(args):
    """The settings of the loop: learning rate and weight decay as --rescale_lr and --decay have them."""
    from landscape import subspace

    out = argparse.Namespace(**vars(args))
    if args.family == "standard":
        return out
    if args.rescale_lr:
        pull = subspace.rule(args.family, args.vertices).pull((0, args.vertices - 1) if args.ends else ())
        for rate in ("lr", "swa_lr"):
            setattr(out, rate, getattr(args, rate) / pull)
        out.weight_decay = args.weight_decay * pull
    if args.decay == "point":
        out.weight_decay = 0.0
    return out


def penalty(args):
    """What is added to each step's loss, as train.fit takes it."""
    decay = args.weight_decay if args.decay == "point" else 0.0
    if args.family == "standard" or not (args.beta or decay):
        return None

    def of(space):
        apart = args.beta * space.regulariser(args.pairs, args.per_layer) if args.beta else 0.0
        return apart + space.drawn_decay(decay) if decay else apart

    return of


def settling(args, prepared):
    """What brings BatchNorm statistics to the centre before it is measured, as train.fit takes it."""
    from landscape import evaluate, train

    data, network, described = prepared
    rows = data.train.some_rows(args.bn_images)

    def settle_average(pair):
        pair.refresh()
        evaluate.reestimate_bn(pair.average.module, data.train, described["preprocessing"], rows=rows)

    if args.ema:
        return settle_average
    if args.family == "standard" or not evaluate.norm_layers(network):
        return None
    return train.settling(data, described["preprocessing"], args.bn_images)


def train_into(run, args, prepared):
    from landscape import train

    data, network, described = prepared
    network = network.to(cli.set_up_device(args))
    one = network.average.module if args.ema else network
    run.sink.describe({"parameters": train.parameter_count(one)})
    found = train.fit(network, data, rescaled(args), run, described, penalty(args), settling(args, prepared))
    if args.ema:  # of the pair, the average is the run's network
        for name in ("model", "best"):
            if (run.path / f"{name}.safetensors").exists():
                held, _ = runs.read_weights(run.path / f"{name}.safetensors")
                run.save_weights(name, {k.removeprefix("average.module."): w for k, w in held.items()
                                        if k.startswith("average.module.")}, described)
    if args.family != "standard":
        cosines = network.squared_cosines().tolist() if network.matrices else []
        found["vertices"] = {"squared_cosines": cosines, "distances": distances(network)}
    train.finish(run, args, data, one, described, found)


def distances(space):
    """Euclidean distance of each two vertices, in the order of Subspace.squared_cosines."""
    from landscape import weights

    vertices = [space.vertex(k) for k in range(space.rule.m)]
    return [weights.distance(a, b) for i, a in enumerate(vertices) for b in vertices[i + 1:]]


def draw_curves(run, args):
    """The training's own figure, where it is not there yet."""
    stem = run.path / "figures" / "curves"
    if run.metrics() and not stem.with_suffix(".png").exists():
        from landscape import plots

        for path in plots.save(plots.training_curves(run.metrics()), stem, ["png"]):
            run.sink.image("curves", path)


if __name__ == "__main__":
    cli.run(main)
