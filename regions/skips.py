"""How often the predicted class changes along the segment between two images.

    python -m regions.skips --load_net runs/regions --points 1000 --split train --base mislabelled --partners correct

Each of the images is joined to --directions partners, and each segment is looked at in --along equally spaced points,
its ends included. Families: --base and --partners; one class alone: --towards true, or assigned. The table by class is
by the true class of the first image.
"""

import numpy as np

from landscape import cli, runs
from regions import images

MEASURES = {"mean": "mean number of changes of class", "median": "median number of changes of class"}


def make_parser():
    parser = cli.Parser("python -m regions.skips", __doc__)
    images.add_flags(parser, ("image", "true", "assigned", "random_class"))
    parser.set_defaults(directions=1)
    g = parser.group("segments", named=True)
    g.add_argument("--along", type=cli.side, default=100, metavar="POINTS", help="points of a segment, ends included")
    return parser


def main(argv=None):
    args = images.resolved(make_parser(), argv)
    sources = runs.find_models(args.load_net, args.group_by.split(","), args.select)
    held = images.settings(args, sources, "along")
    if args.dry_run:
        images.plan(args, "skips", held, sources)
        return 0
    found = images.measured(args, "skips", held, sources, measure)
    results = summary(args, held, found)
    print(f"{held['points']} images of {held['dataset']} {held['split']} ({held['base']}), each joined to "
          f"{held['directions']} of {images.TOWARDS[held['towards']]} ({held['partners']}); {args.level:.0%} intervals")
    images.show(results["groups"], MEASURES)
    images.show(results["by_class"], MEASURES, "class")
    images.write(args, "skips", results, MEASURES)
    return 0


def measure(scene, network, bs):
    """Arrays: skips (N, K), changes of class along each segment, and classes_met (N, K), how many differ on it. Points
    of all segments follow each other in full batches."""
    import torch

    along, k = scene.held["along"], scene.held["directions"]
    total, found = len(scene.rows) * k * along, []
    share = torch.linspace(0, 1, along, device=scene.device)
    with torch.no_grad():
        for start in range(0, total, bs):
            at = torch.arange(start, min(start + bs, total))
            segment, place = at // along, (at % along).to(scene.device)
            these, which = segment.unique(return_inverse=True)
            here, there = scene.points(these // k), scene.pixels(scene.others, scene.partner_rows.flatten()[these])
            which = which.to(scene.device)
            found.append(images.said(network, here[which].lerp(there[which], share[place].view(-1, 1, 1, 1))))
    labels = np.concatenate(found).reshape(-1, k, along)
    ordered = np.sort(labels, axis=2)
    return {"skips": (np.diff(labels, axis=2) != 0).sum(2), "classes_met": (np.diff(ordered, axis=2) != 0).sum(2) + 1}


def summary(args, held, found):
    statistics = {"mean": ("skips", np.mean), "median": ("skips", np.median)}
    values = [{"skips": arrays["skips"].mean(1)} for _, arrays in found]
    models, groups = images.summaries(found, values, statistics, args.level)
    first, by_class = found[0][1], []
    for c in np.unique(first["true"]):
        of = first["true"] == c
        for group in (g["group"] for g in groups):
            table = np.stack([v["skips"][of] for (s, _), v in zip(found, values) if s.group == group])
            row = {m: images.estimate(table, statistic, args.level) for m, (_, statistic) in statistics.items()}
            by_class.append({"class": f"{group}: {first['classes'][c]}", "group": group, "label": int(c), **row})
    return {"settings": held, "level": args.level, "models": models, "groups": groups, "by_class": by_class}


if __name__ == "__main__":
    cli.run(main)
