"""What margins, class skips and balls share: images and their partners, a loop over networks, and tables of intervals.

N images, K partners of each. Images, partners and noise are functions of --plane_seed and of an image's place in its
data set alone, the same for every network. Each network's numbers lie in its own run folder, in arrays/<kind>-<hash8>
.npz, named by the settings that they depend on, and are not computed again.
"""

import json
from functools import cached_property
from pathlib import Path

import numpy as np

from landscape import cli, maps, runs
from landscape.errors import ContentError, UsageError

FAMILIES = ("all", "correct", "mislabelled")
TOWARDS = {"image": "other images", "random": "Gaussian noise", "true": "images of its true class",
           "assigned": "images of the class it was given", "random_class": "images of other classes, drawn anew"}
CHOICE = ("base", "partners", "towards", "points", "directions", "split", "partner_split", "plane_seed", "as_published")
SPARE = 10  # partners beyond K that are drawn too: the image itself, equal images, and the paper's failures


# ---- settings ------------------------------------------------------------------------------------------------------

def add_flags(parser, towards):
    """The flags of all three commands. towards: the names in TOWARDS that this measure takes, its default first."""
    g = parser.group("networks", named=True)
    g.add_argument("--load_net", default="runs/regions", metavar="DIR",
                   help="run folders, or DIR/<architecture>/*.pth; or one of them")
    g.add_argument("--which", default="model", choices=("model", "best"),
                   help="of a run: the last weights, or the best on its validation set")
    cli.add_point(g)
    g.add_argument("--group_by", default="net,width", metavar="KEY,KEY,…", help="the settings that make a group")
    cli.add_select(g)
    g = parser.group("images", named=True)
    g.add_argument("--points", type=cli.positive, default=1000, help="images that are measured")
    g.add_argument("--directions", type=cli.positive, default=10, help="partners, or noises, of each image")
    g.add_argument("--base", default="all", choices=FAMILIES,
                   help="by their given label, where there is label noise (--split train)")
    g.add_argument("--towards", default=towards[0], choices=towards,
                   help="; ".join(f"{name}: {TOWARDS[name]}" for name in towards))
    g.add_argument("--partners", default="all", choices=FAMILIES, help="which images may be partners")
    g.add_argument("--split", default="test", choices=("test", "train"),
                   help="where the images come from; train: those that the networks were trained on, where these are "
                        "the same for all of them")
    g.add_argument("--partner_split", default="same", choices=("same", "test", "train"),
                   help="where partners come from")
    g.add_argument("--plane_seed", "--set_data_seed", type=int, default=1, help="choice of images and directions")
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals")
    cli.add_foreign(parser, net="ResNet")
    g = parser.group("computing")
    g.add_argument("--data_root", default=None, metavar="DIR",
                   help="where the data sets lie (default: $DATA_ROOT, else ~/data)")
    cli.add_machine(parser)
    cli.add_output(parser)
    cli.add_figures(parser)


def resolved(parser, argv):
    """The settings of a command of ours; --smoke measures a few images only."""
    args = parser.settings(argv)
    if args.smoke:
        args.points, args.directions = min(args.points, 12), min(args.directions, 3)
    return cli.resolve(args)


def settings(args, sources, *more):
    """What the numbers of these networks depend on, besides the weights: the choice of images, and the flags `more`."""
    sets = {s.config.get("dataset", args.dataset) for s in sources}
    if len(sets) > 1:
        raise UsageError(f"the networks were trained on different data sets ({', '.join(sorted(map(str, sets)))}): "
                         "measure those of one, in a folder of their own")
    out = {k: getattr(args, k, False) for k in CHOICE} | {k: getattr(args, k) for k in more}
    out |= {"dataset": sets.pop(), "which": args.which, **maps.point_settings(args),
            **maps.foreign_settings(args, sources)}
    labels = [maps.labels_of(s.config) for s in sources]
    alike = all(found == labels[0] for found in labels) and not any(s.foreign for s in sources)
    out["given_labels"] = labels[0] if alike and "train" in (args.split, args.partner_split) else None
    noisy = out["given_labels"] and (labels[0]["noise_rate"] or labels[0]["noise_file"])
    for flag, split in (("base", args.split), ("partners", args.partner_split.replace("same", args.split))):
        if getattr(args, flag) == "mislabelled" and (split != "train" or not noisy):
            raise UsageError(f"--{flag} mislabelled needs train images and networks that were trained with one and the "
                             "same label noise (--noise_rate or --noise_file): no label is wrong here")
    return out


# ---- images --------------------------------------------------------------------------------------------------------

class Scene:
    """The images, partners and noises that settings describe, in the data set's normalised space, on a device."""

    def __init__(self, held, data_root, device):
        import torch

        from landscape import data as datasets
        from landscape import evaluate

        self.held, self.device = held, device
        labels = held["given_labels"]
        given = {} if labels is None else datasets.given_by(labels)
        data = datasets.load(held["dataset"], data_root, **(given or {"val_size": 0}))
        train = data.train if given else data.full
        other = held["partner_split"].replace("same", held["split"])
        self.entry, self.space = data.entry, evaluate.image_space(data.entry, held["as_published"])
        self.images = data.test if held["split"] == "test" else train
        self.others = data.test if other == "test" else train
        self.same = other == held["split"]
        rows = family(self.images, held["base"])
        if held["points"] > len(rows):
            raise UsageError(f"--points {held['points']}: {len(rows)} images of {held['dataset']} {held['split']} fit"
                             + f" --base {held['base']}" * (held["base"] != "all"))
        self.rows = rows[torch.randperm(len(rows), generator=self.stream("images"))[:held["points"]]]

    def stream(self, *names):
        from landscape.seeding import stream

        return stream(self.held["plane_seed"], "regions", *names)

    def pixels(self, images, rows):
        """(n, C, H, W) of rows of images, normalised, on the device."""
        from landscape.evaluate import tensor

        x = images.pixels(rows).to(self.device)
        mean, std = (tensor(self.space[k], x).view(1, -1, 1, 1) for k in ("mean", "std"))
        return (x - mean) / std

    def points(self, numbers):
        """(n, C, H, W): the images of these numbers, 0 to N-1."""
        return self.pixels(self.images, self.rows[numbers])

    def partners(self, number):
        """(K, C, H, W): the partners of one image."""
        return self.pixels(self.others, self.partner_rows[number])

    @cached_property
    def partner_rows(self):
        """(N, K) rows of the partners, or (N, K + SPARE) as published."""
        import torch

        allowed = family(self.others, self.held["partners"])
        truth = self.others.true_labels.cpu()[allowed]
        pools = {c: allowed[truth == c] for c in truth.unique().tolist()}
        return torch.stack([self.partners_of(n, allowed, pools) for n in range(len(self.rows))])

    def partners_of(self, number, allowed, pools):
        import torch

        row, towards = self.rows[number], self.held["towards"]
        wanted = self.held["directions"] + SPARE * self.held["as_published"]
        mine = {"true": int(self.images.true_labels[row]), "assigned": int(self.images.labels[row])}
        g = self.stream("partners", towards, int(self.images.ids[row]))
        if towards == "random_class":
            others = [c for c in pools if c not in mine.values()]
            if not others:
                raise UsageError("--towards random_class: there are no images of other classes")
            drawn = torch.randint(len(others), (wanted + SPARE,), generator=g).tolist()
            found = torch.stack([pools[others[d]][torch.randint(len(pools[others[d]]), (1,), generator=g)[0]]
                                 for d in drawn])
        else:
            pool = pools.get(mine[towards], allowed[:0]) if towards in mine else allowed
            found = pool[torch.randperm(len(pool), generator=g)[:wanted + SPARE]]
        if self.same:
            found = found[found != row]
        if len(found):
            here = self.images.gather(row[None].to(self.images.device))
            found = found[(self.others.gather(found.to(self.others.device)) != here).flatten(1).any(1).cpu()]
        if len(found) < wanted:
            raise UsageError(f"--directions {self.held['directions']}: image {int(self.images.ids[row])} has "
                             f"{len(found)} partners for --towards {towards} --partners {self.held['partners']}"
                             + f"; --as_published needs {wanted}" * self.held["as_published"])
        return found[:wanted]

    def directions(self, number, point):
        """(K, C, H, W): unit vectors from an image, given as its number and as the point (C, H, W)."""
        import torch

        if self.held["towards"] == "random":
            g = self.stream("random", int(self.images.ids[self.rows[number]]))
            step = torch.randn(self.held["directions"], *point.shape, generator=g).to(point.device)
        else:
            step = self.partners(number) - point
        return step / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    def described(self):
        """Arrays (N,) that say which images these are."""
        return {"ids": self.images.ids.cpu()[self.rows].numpy(), "given": self.images.labels.cpu()[self.rows].numpy(),
                "true": self.images.true_labels.cpu()[self.rows].numpy(), "classes": np.array(self.entry.classes)}


def family(images, name):
    """The rows (n,) of all images, or of those whose given label is right or wrong."""
    import torch

    right = (images.labels == images.true_labels).cpu()
    return {"all": torch.ones_like(right), "correct": right, "mislabelled": ~right}[name].nonzero()[:, 0]


def said(network, x):
    """Predicted classes (n,) int64 on the CPU. ContentError where the network has diverged."""
    logits = network(x)
    if not logits.isfinite().all():
        raise ContentError("the network gives NaN or infinite logits: its weights have diverged")
    return logits.argmax(1).cpu().numpy()


# ---- the loop over networks ----------------------------------------------------------------------------------------

def measured(args, kind, held, sources, compute):
    """[(source, arrays)]: for each network what compute(scene, network, bs) gives, read from its run folder where it
    is there already. The network takes points of the scene's space."""
    files = [runs.measure_folder(s, args.runs) / "arrays" / f"{kind}-{runs.hash8(held)}.npz" for s in sources]
    todo = [s for s, f in zip(sources, files) if args.force or not f.exists()]
    if todo:
        from landscape import evaluate, train

        device = cli.set_up_device(args)
        scene = Scene(held, args.data_root, device)
        progress = runs.Progress(len(todo), kind)
        for source, file in zip(sources, files):
            if source not in todo:
                continue
            trained = train.load_source(source, args, scene.entry)
            of = trained.preprocessing.get("dataset", held["dataset"])
            if of != held["dataset"]:
                raise ContentError(f"{source.path} was trained on {of}, the images are of {held['dataset']}: measure "
                                   "networks of one data set")
            network = evaluate.Adapted(trained.network.to(device), scene.space, trained.preprocessing).eval()
            pixels = trained.preprocessing["image_size"] ** 2
            arrays = compute(scene, network, evaluate.batch_size(device, args.eval_bs, pixels))
            lock = runs.hold(file.parent)
            try:
                runs.write_arrays(file, **arrays, **scene.described(), settings=json.dumps(held, sort_keys=True))
            finally:
                runs.release(lock)
            progress.step()
        progress.close()
    return [(s, runs.read_arrays(f, ("settings", "ids"))) for s, f in zip(sources, files)]


def plan(args, kind, held, sources):
    """What --dry_run prints."""
    for source in sources:
        file = runs.measure_folder(source, args.runs) / "arrays" / f"{kind}-{runs.hash8(held)}.npz"
        print(f"{'done' if file.exists() and not args.force else 'compute'}: {source.group}: {file}")


# ---- tables --------------------------------------------------------------------------------------------------------

def summaries(found, values, measures, level):
    """(rows of networks, rows of groups). values: one dict of arrays (N,) a network, NaN where an image has no value
    and inf where it is beyond what was looked at; measures: {name: (key of values, statistic over images)}, and after
    them, where they are not 0 and infinity, the least and the most that it can be.

    Intervals are over images; those of a group also over its networks, under <name>_models.
    """
    models, groups = [], {}
    for (source, _), held in zip(found, values):
        row = {"group": source.group, "name": source.seed_name, "path": str(source.path)}
        for name, (key, statistic, *ends) in measures.items():
            row[name] = estimate(held[key][None], statistic, level, *ends)
        models.append(row)
        groups.setdefault(source.group, []).append((row, held))
    out = []
    for group, members in groups.items():
        row = {"group": group, "models": len(members)}
        for name, (key, statistic, *ends) in measures.items():
            row[name] = estimate(np.stack([held[key] for _, held in members]), statistic, level, *ends)
            row[f"{name}_models"] = over_models([r[name]["value"] for r, _ in members], level, *ends)
        out.append(row)
    return models, out


def estimate(table, statistic, level, least=0.0, most=np.inf):
    """The mean over networks of a statistic over images, from a table (M, N), with its interval over images, cut at
    what the statistic can be, and the least number n of images that count. A value or an end that is not finite is
    None."""
    from landscape.results import bootstrap

    def of(rows):
        return np.mean([statistic(part[~np.isnan(part)]) if not np.isnan(part).all() else np.nan
                        for part in table[:, rows.astype(int)]])

    count = int((~np.isnan(table)).sum(1).min())
    with np.errstate(invalid="ignore"):  # inf - inf, where resampled medians are censored
        if not np.isfinite(of(np.arange(table.shape[1]))):
            return {"value": None, "low": None, "high": None, "n": count}
        value, *ends = bootstrap(np.arange(table.shape[1]), of, level=level)
    low, high = (None if end is None or not np.isfinite(end) else min(max(end, least), most) for end in ends)
    return {"value": value, "low": low, "high": high, "n": count}


def over_models(values, level, least=0.0, most=np.inf):
    from landscape.results import bootstrap

    if None in values:
        return {"value": None, "low": None, "high": None}
    value, *ends = bootstrap(values, level=level)
    low, high = (None if end is None else min(max(end, least), most) for end in ends)
    return {"value": value, "low": low, "high": high}


def shown(cell, digits=3):
    if cell["value"] is None:
        return "-"
    ends = ["…" if cell[k] is None else f"{cell[k]:.{digits}f}" for k in ("low", "high")]
    return f"{cell['value']:.{digits}f}" + f" [{', '.join(ends)}]" * (ends != ["…", "…"])


def show(rows, measures, head="group"):
    print(f"{head:<28}" + "".join(f"{name:>26}" for name in measures))
    for row in rows:
        print(f"{row[head]:<28}" + "".join(f"{shown(row[m]):>26}" for m in measures))


def write(args, kind, found, measures):
    """Results, CSV and figure of a measure in a run folder of its own. measures: {name: words for the figure}."""
    args.force = True  # seconds of work, and the networks under DIR may be others than last time
    with runs.start("regions", args, f"{kind}_{Path(args.load_net).resolve().name}") as run:
        from landscape import plots
        from landscape.results import write_csv

        rows = [{"of": of, "group": row["group"], "name": row.get("name"), "measure": m, "n": row[m]["n"],
                 **{k: row[m][k] for k in ("value", "low", "high")},
                 **{f"{k}_models": row.get(f"{m}_models", {}).get(k) for k in ("low", "high")}}
                for of in ("models", "groups") for row in found[of] for m in measures]
        write_csv(run.path / f"{kind}.csv", rows, list(rows[0]))
        run.sink.table(kind, rows)
        note = f"{found['settings']['points']} images, {found['level']:.0%} intervals"
        figure = plots.interval_figure(found["groups"], found["models"], measures, note)
        for path in plots.save(figure, run.path / "figures" / kind, args.formats.split(",")):
            run.sink.image(kind, path)
            print(f"figure: {path}")
        run.finish(found)
        print(f"results: {run.path / 'results.json'}")
