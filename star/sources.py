"""Train ordinary networks that differ in seed: the anchors of a star, and held-out networks to measure it with.

    python -m star.sources --net mlp1 --width 16 --dataset MNIST --epochs 60 --seeds 0-19

main.py's training under the defaults of Sonthalia et al. 2025: SGD with Nesterov momentum and a cosine rate. Small
networks train faster together (landscape/stacked.py), each into the run folder that it would have alone.
"""

import models
from landscape import cli, runs
from landscape.errors import UsageError

DEFAULTS = {"nesterov": True, "scheduler": "cosine", "epochs": 200}
STUDY = "star_sources"


def make_parser():
    parser = cli.training_parser("python -m star.sources", __doc__)
    parser.set_defaults(**DEFAULTS)
    cli.add_several(parser)
    return parser


def main(argv=None):
    args = make_parser().settings(argv)
    members = cli.each(args)
    paths = [runs.folder(STUDY, member) for member in members]
    if args.dry_run:
        for member, path in zip(members, paths):
            print(f"{runs.state_of(path)}: {path}\n{models.canonical(member.net)} on {member.dataset}, "
                  f"{member.epochs} epochs, seed {member.init_seed}")
        return 0
    if args.time_steps:
        from landscape import train

        if len(members) > 1:
            raise UsageError("--time_steps times one network: leave out --seeds, --noise_rates and --noise_seeds")
        return train.time_run(members[0], cli.set_up_device(members[0]))
    if args.force or not all((path / "done").exists() for path in paths):
        from landscape import stacked

        stacked.train_all(STUDY, members, cli.set_up_device(members[0]), args.stack)
    for path in paths:
        last = runs.read_json(path / "results.json")["last"]
        print(f"{'test accuracy {test_accuracy:.4f}, test loss {test_loss:.4f}'.format(**last)}  {path}")
    return 0


if __name__ == "__main__":
    cli.run(main)
