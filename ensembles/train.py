"""Train the members of a deep ensemble: networks that differ in their seeds alone, with a snapshot of every epoch.

    python -m ensembles.train --net small_cnn --members 3 --dataset digits --epochs 5

main.py's training under other defaults, those of the re-implementation of Fort et al. 2019: all of CIFAR-10 in [0, 1]
without augmentation, Adam at 1.6e-3 halved at epochs 9, 19 and 29, 40 epochs. Member k has the seeds --seed + k;
--vary init, order or augment varies one of the three and holds the others at --seed, so that what makes members differ
can be told apart. Each member has a run folder of its own, and the same one whichever command trained it: on many
machines or cores, sweep --seed with --members 1 (scripts/sweep.py). What the members then say is measured by
ensembles.similarity, evaluate, paths and shift.
"""

import copy

from landscape import cli, runs
from landscape.errors import UsageError

DEFAULTS = {"net": "small_cnn", "epochs": 40, "opt": "Adam", "lr": 1.6e-3, "adam_eps": 1e-7, "scheduler": "drop_a",
            "augment": "none", "normalize": "none", "val_size": 0, "snapshots": "all"}
SEEDS = ("init", "order", "augment")


def make_parser():
    parser = cli.training_parser("python -m ensembles.train", __doc__)
    parser.set_defaults(**DEFAULTS)
    g = parser.group("members")
    g.add_argument("--members", type=cli.positive, default=10, metavar="K", help="networks, with seeds of their own")
    g.add_argument("--vary", default="init,order,augment", metavar="SEED,…",
                   help="the seeds that differ between members: init, order, augment")
    g.add_argument("--stack", default="auto", choices=("auto", "always", "never"),
                   help="train them as one stacked network; auto: where a few timed steps say that it is faster")
    return parser


def main(argv=None):
    args = make_parser().settings(argv)
    if args.smoke:
        args.members = min(args.members, 3)
    members = each(args)
    paths = [runs.folder("ensembles", member) for member in members]
    if args.dry_run:
        for member, path in zip(members, paths):
            print(f"{runs.state_of(path)}: {path}\n{member.net} on {member.dataset}, {member.epochs} epochs")
        return 0
    if args.time_steps:
        from landscape import train

        return train.time_run(members[0], cli.set_up_device(members[0]))
    if args.force or not all((path / "done").exists() for path in paths):
        from landscape import stacked

        stacked.train_all("ensembles", members, cli.set_up_device(members[0]), args.stack)
    for path in paths:
        last = runs.read_json(path / "results.json")["last"]
        print(f"test accuracy {last['test_accuracy']:.4f}, test loss {last['test_loss']:.4f}\nrun: {path}")
    return 0


def each(args):
    """The resolved settings of each member: those that it would have alone."""
    varied = args.vary.split(",")
    if wrong := sorted(set(varied) - set(SEEDS)):
        raise UsageError(f"--vary {args.vary}: {wrong[0] or 'nothing'} is none of {', '.join(SEEDS)}")
    starts = {name: getattr(args, f"{name}_seed") for name in SEEDS}
    starts = {name: args.seed if own is None else own for name, own in starts.items()}
    if args.augment_seed is None:
        starts["augment"] = starts["order"]
    members = []
    for k in range(args.members):
        member = copy.copy(args)
        for name, start in starts.items():
            setattr(member, f"{name}_seed", start + k if name in varied else start)
        if set(varied) == set(SEEDS):
            member.seed = args.seed + k
        member = cli.resolve(member)
        member.flags = [f for f in member.flags if f not in ("members", "vary", "stack")]  # how it came, not what it is
        members.append(member)
    return members


if __name__ == "__main__":
    cli.run(main)
