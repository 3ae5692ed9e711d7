"""How far images are from the decision boundary: the distance along a direction to the first change of the prediction.

    python -m regions.margins --load_net runs/regions --points 1000 --directions 10

Distances are in the data set's normalised space, against each network's own prediction. A coarse scan outwards finds
the first change, bisection its place. A direction without a change up to --t_max is censored: counted, and larger than
any other in the median of an image; the mean is over the rest, where they are at least half. --check tells how often a
dense scan finds an earlier change. --as_published is the paper's scan of 200 steps.
"""

import itertools

import numpy as np

from landscape import cli, runs
from landscape.errors import ContentError, UsageError
from regions import images

# dbViz's 200 distances; from 41 on they are 10 and 20 apart (spec B32).
PUBLISHED = np.cumsum(np.repeat([0, 0.01, 0.1, 0.5, 1, 10, 20], [1, 11, 9, 31, 25, 25, 98]))
MEASURES = {"mean": "median over images of the mean margin\n(normalised units)",
            "median": "median over images of the median margin\n(normalised units)",
            "censored": "share of censored directions"}  # fmt: skip


def make_parser():
    parser = cli.Parser("python -m regions.margins", __doc__)
    images.add_flags(parser, tuple(images.TOWARDS))
    g = parser.group("margins", named=True)
    g.add_argument("--t_max", type=cli.number(above=0), default=100.0, metavar="DISTANCE",
                   help="where a direction is given up, in normalised units (CIFAR-10 images are 50 to 90 apart)")
    g.add_argument("--tolerance", type=cli.number(above=0), default=0.01, metavar="DISTANCE",
                   help="width of the last bracket; a margin is its middle")
    g.add_argument("--step", type=cli.number(above=0), default=0.5, metavar="DISTANCE",
                   help="of the coarse scan, near the image")
    g.add_argument("--growth", type=cli.number(above=1), default=1.2,
                   help="of the coarse scan: the most that a distance is of the one before, where that is over --step")
    g.add_argument("--as_published", action="store_true",
                   help="the paper's 200 distances and dbViz's 0.2023 std: the last one before the change, from up to "
                        "10 partners more than --directions, failures dropped")
    g.add_argument("--check", type=cli.natural, default=0, metavar="PAIRS",
                   help="scan so many directions densely for an earlier change")
    g.add_argument("--check_step", type=cli.number(above=0), default=0.05, metavar="DISTANCE", help="of that scan")
    return parser


def main(argv=None):
    args = images.resolved(make_parser(), argv)
    check_flags(args)
    sources = runs.find_models(args.load_net, args.group_by.split(","), args.select)
    held = images.settings(args, sources, *(() if args.as_published else ("t_max", "tolerance", "step", "growth")))
    if args.dry_run:
        images.plan(args, "margins", held, sources)
        return 0
    found = images.measured(args, "margins", held, sources, measure)
    checked = None
    if args.check:
        pairs = min(args.check, args.points * args.directions)
        dense = {**held, "check": pairs, "check_step": args.check_step, "t_max": args.t_max}
        checked = images.measured(args, "margins_check", dense, sources, scan)
    results = summary(args, held, found, checked)
    show(args, results)
    if all(row["constant"] for row in results["models"]):
        raise ContentError("no direction of any network meets another class: constant networks have no margin; look "
                           "farther with --t_max, or choose others with --select")
    images.write(args, "margins", results, MEASURES)
    return 0


def check_flags(args):
    if args.as_published and args.towards == "random":
        raise UsageError("--as_published goes towards other images: leave --towards random out")
    if args.as_published and args.check:
        raise UsageError("--check is for the bisection: leave --as_published out")
    if args.tolerance >= args.t_max or args.step > args.t_max or args.check_step > args.t_max:
        raise UsageError(f"--t_max {args.t_max:g} is less than --tolerance, --step or --check_step")


# ---- one network ---------------------------------------------------------------------------------------------------

def measure(scene, network, bs):
    """Arrays: margins (N, K), inf where censored; predicted (N,) classes and crossed (N, K), the class behind the
    margin or -1; tried (N,), the directions that were looked at."""
    held = scene.held
    own = predictions(scene, network, bs)
    if held["as_published"]:
        return published(scene, network, bs, own)
    everything = [(n, k) for n in range(len(own)) for k in range(held["directions"])]
    grid = coarse_grid(held["t_max"], held["step"], held["growth"])
    low, high, label = crossings(network, along(scene, everything), np.repeat(own, held["directions"]), grid,
                                 held["tolerance"], bs)
    shape = len(own), held["directions"]
    return {"margins": ((low + high) / 2).reshape(shape), "predicted": own, "crossed": label.reshape(shape),
            "tried": np.full(len(own), held["directions"])}


def published(scene, network, bs, own):
    """What measure gives, by the paper's scan: each image's partners in turn until K of them succeed."""
    wanted, available = scene.held["directions"], scene.held["directions"] + images.SPARE
    margins, crossed = np.full((len(own), wanted), np.inf), np.full((len(own), wanted), -1)
    tried, done = np.zeros(len(own), int), np.zeros(len(own), int)
    while True:
        count = np.minimum(wanted - done, available - tried)
        pairs = [(n, tried[n] + k) for n in range(len(own)) for k in range(count[n])]
        if not pairs:
            return {"margins": margins, "predicted": own, "crossed": crossed, "tried": tried}
        owner = np.array([n for n, _ in pairs])
        low, high, label = crossings(network, along(scene, pairs), own[owner], PUBLISHED[1:], None, bs)
        for n, margin, after, behind in zip(owner, low, high, label):
            if after < np.inf:
                margins[n, done[n]], crossed[n, done[n]] = margin, behind
                done[n] += 1
        tried += count


def scan(scene, network, bs):
    """Arrays (n,) of a dense scan without bisection along some of the directions: image and direction, and the first
    distance behind a change, or inf."""
    import torch

    held = scene.held
    order = torch.randperm(held["points"] * held["directions"], generator=scene.stream("check"))[:held["check"]]
    pairs = [divmod(p, held["directions"]) for p in sorted(order.tolist())]
    own = predictions(scene, network, bs)[[n for n, _ in pairs]]
    grid = np.arange(1, np.ceil(held["t_max"] / held["check_step"] - 1e-9) + 1) * held["check_step"]
    _, high, _ = crossings(network, along(scene, pairs), own, np.minimum(grid, held["t_max"]), None, bs)
    return {"pairs": np.array(pairs), "first": high}


def predictions(scene, network, bs):
    """The classes (N,) of the images themselves."""
    import torch

    with torch.no_grad():
        return np.concatenate([images.said(network, scene.points(part))
                               for part in torch.arange(len(scene.rows)).split(bs)])


def along(scene, pairs):
    """Yield (image, unit direction), each (C, H, W), of pairs [(image's number, direction's number)], sorted."""
    for n, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        point = scene.points([n])[0]
        directions = scene.directions(n, point)
        for _, k in group:
            yield point, directions[k]


def coarse_grid(t_max, step, growth):
    """Distances (G,) up to t_max: step apart, and from where growth asks for more, each growth times the last."""
    grid = [min(step, t_max)]
    while grid[-1] < t_max:
        grid.append(min(max(grid[-1] + step, grid[-1] * growth), t_max))
    return np.array(grid)


def crossings(network, pairs, own, grid, tolerance, bs):
    """(low, high, label), arrays (P,): the first change of the predicted class along P directions lies between the
    distances low and high, and label is the class at high; without a change low is the last of grid, high inf and label
    -1. pairs yields (point, unit direction), own (P,) are the classes at the points, grid (G,) the distances looked
    at, from the nearest; tolerance: bisect until high - low is at most that, or None for no bisection.

    bs directions are under way at a time, each at its own distance, and a finished one makes room for the next: all
    batches but the last few are full.
    """
    import torch

    low, high, label = np.zeros(len(own)), np.full(len(own), np.inf), np.full(len(own), -1)
    step, pairs = np.zeros(len(own), int), iter(pairs)
    slot = np.arange(min(bs, len(own)))  # the direction in each place of the batch
    following = len(slot)
    origin, direction = (torch.stack(parts).contiguous(memory_format=torch.channels_last)
                         for parts in zip(*itertools.islice(pairs, len(slot))))
    with torch.no_grad():
        while len(slot):
            bracketed = high[slot] < np.inf
            t = np.where(bracketed, (low[slot] + high[slot].clip(max=grid[-1])) / 2,
                         grid[step[slot].clip(max=len(grid) - 1)])
            at = torch.from_numpy(t).to(origin)
            got = images.said(network, torch.addcmul(origin, direction, at.view(-1, 1, 1, 1)))
            changed = got != own[slot]
            high[slot[changed]], label[slot[changed]] = t[changed], got[changed]
            low[slot[~changed]] = t[~changed]
            step[slot] += 1
            width = high[slot] - low[slot]
            done = np.where(width < np.inf, tolerance is None or width <= tolerance, step[slot] >= len(grid))
            for place in np.flatnonzero(done):
                if following < len(own):
                    origin[place], direction[place] = next(pairs)
                    slot[place], done[place] = following, False
                    following += 1
            if done.any():
                left = torch.from_numpy(~done).to(origin.device)
                slot, origin, direction = slot[~done], origin[left], direction[left]
    return low, high, label


# ---- all of them ---------------------------------------------------------------------------------------------------

def of_images(held, arrays):
    """Arrays (N,): mean and median margin of each image, NaN and inf where it has none, and its censored share."""
    margins, k = arrays["margins"], held["directions"]
    hit = margins < np.inf
    enough = hit.sum(1) >= max(1, k // 2 if held["as_published"] else (k + 1) // 2)
    total = np.where(hit, margins, 0).sum(1)
    return {"mean": np.where(enough, total / hit.sum(1).clip(min=1), np.nan), "median": np.median(margins, axis=1),
            "censored": 1 - hit.sum(1) / arrays["tried"]}


def summary(args, held, found, checked):
    values = [of_images(held, arrays) for _, arrays in found]
    statistics = {"mean": ("mean", np.median), "median": ("median", np.median),
                  "censored": ("censored", np.mean, 0.0, 1.0)}
    models, groups = images.summaries(found, values, statistics, args.level)
    for i, (row, (_, arrays), each) in enumerate(zip(models, found, values)):
        hit = arrays["margins"] < np.inf
        row |= {"tried": int(arrays["tried"].sum()), "without_change": int(arrays["tried"].sum() - hit.sum()),
                "images": len(hit), "images_without_mean": int(np.isnan(each["mean"]).sum()),
                "constant": not hit.any()}
        if checked:
            row["check"] = earlier(arrays["margins"], checked[i][1], held["tolerance"], args.level)
    return {"settings": held, "level": args.level, "check_step": args.check_step, "models": models, "groups": groups}


def earlier(margins, dense, tolerance, level):
    """How often the dense scan found a change before the bracket: n, missed, and their share with its interval."""
    from landscape.results import bootstrap

    n, k = dense["pairs"].T
    missed = dense["first"] < margins[n, k] - tolerance / 2
    share, low, high = bootstrap(missed, level=level)
    return {"n": len(missed), "missed": int(missed.sum()), "share": share, "low": low, "high": high}


def show(args, found):
    held = found["settings"]
    print(f"{held['points']} images of {held['dataset']} {held['split']} ({held['base']}), {held['directions']} "
          f"directions towards {images.TOWARDS[held['towards']]}; normalised units, {args.level:.0%} intervals")
    images.show(found["groups"], MEASURES)
    for row in found["models"]:
        words = f"{row['group']} {row['name']}: {row['without_change']} of {row['tried']} directions without a change"
        if row["constant"]:
            words += ": the network is constant as far as it was looked at, and has no margin"
        elif row["images_without_mean"]:
            words += f", {row['images_without_mean']} of {row['images']} images without a mean"
        if "check" in row:
            words += (f"; a dense scan finds an earlier change on {row['check']['missed']} of {row['check']['n']} "
                      f"({row['check']['share']:.1%})")
        print(words)


if __name__ == "__main__":
    cli.run(main)
