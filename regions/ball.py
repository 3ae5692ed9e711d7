"""How many classes a network predicts within a small distance of an image.

    python -m regions.ball --load_net runs/regions --points 1000 --directions 10 --delta 0.5

The number of different classes among an image and --directions points at distance --delta from it, in the data set's
normalised space: towards other images, as the paper's authors did it, or in random directions.
"""

import numpy as np

from landscape import cli, runs
from regions import images

MEASURES = {"mean": "mean number of classes", "several": "share of images with more than one class"}


def make_parser():
    parser = cli.Parser("python -m regions.ball", __doc__)
    images.add_flags(parser, tuple(images.TOWARDS))
    g = parser.group("ball", named=True)
    g.add_argument("--delta", type=cli.number(above=0), default=0.5, metavar="DISTANCE",
                   help="of the points from their image, in normalised units")
    return parser


def main(argv=None):
    args = images.resolved(make_parser(), argv)
    sources = runs.find_models(args.load_net, args.group_by.split(","), args.select)
    held = images.settings(args, sources, "delta")
    if args.dry_run:
        images.plan(args, "ball", held, sources)
        return 0
    found = images.measured(args, "ball", held, sources, measure)
    values = [{"mean": (n := arrays["distinct"].astype(float)), "several": (n > 1).astype(float)}
              for _, arrays in found]
    models, groups = images.summaries(
        found, values, {"mean": ("mean", np.mean, 1.0), "several": ("several", np.mean, 0.0, 1.0)}, args.level)
    print(f"{held['points']} images of {held['dataset']} {held['split']} ({held['base']}), {held['directions']} points "
          f"at {held['delta']:g} towards {images.TOWARDS[held['towards']]}; {args.level:.0%} intervals")
    images.show(groups, MEASURES)
    images.write(args, "ball", {"settings": held, "level": args.level, "models": models, "groups": groups}, MEASURES)
    return 0


def measure(scene, network, bs):
    """Arrays: labels (N, 1 + K), of each image and of the points around it, and distinct (N,), how many differ."""
    import torch

    found, waiting = [], []
    with torch.no_grad():
        for n in range(len(scene.rows)):
            point = scene.points([n])
            waiting.append(torch.cat([point, point + scene.held["delta"] * scene.directions(n, point[0])]))
            if sum(map(len, waiting)) >= bs or n + 1 == len(scene.rows):
                x = torch.cat(waiting)
                full = len(x) if n + 1 == len(scene.rows) else len(x) // bs * bs
                found += [images.said(network, part) for part in x[:full].split(bs)]
                waiting = [x[full:]]
    labels = np.concatenate(found).reshape(len(scene.rows), -1)
    return {"labels": labels, "distinct": (np.diff(np.sort(labels, axis=1), axis=1) != 0).sum(1) + 1}


if __name__ == "__main__":
    cli.run(main)
