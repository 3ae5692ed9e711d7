"""Train a network of a study of double descent: a width, a label noise, a seed, a number of epochs; or several at once.

    python -m double_descent.deep --net mcnn --width 8 --train_size 2000 --augment none --epochs 120 --lr 0.001

main.py's training under other defaults, those of dbViz's double-descent scripts: ResNet18-k with Adam at a constant
rate of 1e-4, float32, 20 % symmetric label noise, all training images, nothing drawn. Widths, noises and seeds are
swept by scripts/sweep.py, epochs by --snapshots; what comes of it is measured by double_descent.measure, regions and
calculate_iou.py. Small networks of several seeds and noises, as in --seeds 0-15, train faster together
(landscape/stacked.py), each into the run folder that it would have alone.
"""

from landscape import cli, runs
from landscape.errors import UsageError

DEFAULTS = {"net": "resnet18k", "width": 64, "noise_rate": 0.2, "val_size": 0, "epochs": 200, "opt": "Adam", "lr": 1e-4,
            "scheduler": "constant", "precision": "fp32"}


def make_parser():
    parser = cli.training_parser("python -m double_descent.deep", __doc__)
    parser.set_defaults(**DEFAULTS)
    g = parser.group("dbViz's words")
    g.add_argument("--k", type=cli.positive, default=None, metavar="WIDTH", help="--width")
    g.add_argument("--asym", action="store_true", help="--noise_kind asymmetric")
    g.add_argument("--dd_epoch_study", action="store_true",
                   help="--snapshots at the epochs of dbViz's study of epoch-wise double descent")
    cli.add_several(parser)
    return parser


def main(argv=None):
    args = translated(make_parser().settings(argv))
    members = cli.each(args)
    paths = [runs.folder("double_descent", member) for member in members]
    if args.dry_run:
        if len(members) > 1:
            print(f"{len(members)} networks:")
        for member, path in zip(members, paths):
            print(f"{runs.state_of(path)}: {path}\n{member.net} of width {member.width} on {member.dataset}, "
                  f"{member.noise_rate:.0%} {member.noise_kind} label noise, {member.epochs} epochs")
        return 0
    if args.time_steps:
        from landscape import train

        if len(members) > 1:
            raise UsageError("--time_steps times one network: leave out --seeds, --noise_rates and --noise_seeds")
        return train.time_run(members[0], cli.set_up_device(members[0]))
    if args.force or not all((path / "done").exists() for path in paths):
        from landscape import stacked

        stacked.train_all("double_descent", members, cli.set_up_device(members[0]), args.stack)
    for path in paths:
        last = runs.read_json(path / "results.json")["last"]
        print(f"train accuracy {last['train_accuracy']:.4f} (given labels, while training), test accuracy "
              f"{last['test_accuracy']:.4f}, test loss {last['test_loss']:.4f}\nrun: {path}")
    return 0


EPOCHS = (1, 5, 10, 16, 21, 24, 29, 42, 52, 58, 73, 85, 96, 127, 212)
LATE = {True: (430, 455, 504), False: (458, 571, 883, 1000)}  # of widths above 20, and of the others


def translated(args):
    """dbViz's words in ours."""
    if args.k is not None:
        args.width = args.k
    if args.asym:
        args.noise_kind = "asymmetric"
    if args.dd_epoch_study:
        if args.snapshots:
            raise UsageError("--dd_epoch_study and --snapshots: give one of the two")
        args.snapshots = ",".join(str(e) for e in (*EPOCHS, *LATE[args.width > 20]) if e <= args.epochs)
    return args


if __name__ == "__main__":
    cli.run(main)
