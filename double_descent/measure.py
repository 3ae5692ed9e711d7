"""Errors, ensembles and decision regions of many networks along their width, training set or epochs, in one table.

    python -m double_descent.measure --load_net runs/double_descent

Networks that differ in nothing but --along, --group_by and their training seeds share a curve; intervals are over
seeds. Errors are of images without augmentation, of the training set apart for labels that are right and wrong. What
other programs left in the run folders is taken along: class maps (save_preds.py: fragmentation, reproducibility) and
margins (regions.margins). --along epoch follows the snapshots of each run.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from landscape import cli, maps, runs
from landscape.errors import ContentError, FileProblem, UsageError

FITTED = 0.05  # a training set is fitted where the error on it is below this
# Of each network: error and loss (nats) on the test set and on the training set as given; of its images with a right
# and with a wrong label; of those with a wrong one, the error against the true label; mean highest probability.
MEASURES = {
    "test_error": "test error", "test_loss": "test loss (nats)", "train_error": "training error",
    "train_loss": "training loss (nats)", "train_error_correct": "error on correctly labelled training images",
    "train_error_mislabelled": "error on mislabelled training images, given labels",
    "train_error_mislabelled_true": "error on mislabelled training images, true labels",
    "test_confidence": "confidence on the test set", "train_confidence": "confidence on the training set",
}  # fmt: skip
# Of pairs of networks of one cell: by what differs between the two.
PAIRS = {"seeds": "seed", "init": "initial weights", "order": "data order"}


def make_parser():
    parser = cli.Parser("python -m double_descent.measure", __doc__)
    g = parser.group("networks", named=True)
    g.add_argument("--load_net", default="runs/double_descent", metavar="DIR", help="run folders, of any study")
    g.add_argument("--which", default="model", choices=("model", "best"),
                   help="the last weights, or the best on a run's validation set")
    g.add_argument("--along", default="width", metavar="KEY",
                   help="the setting along which curves run (width, train_size, …), or epoch")
    g.add_argument("--group_by", default="noise_rate", metavar="KEY,KEY,…", help="the settings that make a curve")
    cli.add_select(g)
    g = parser.group("statistics", named=True)
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals, over networks")
    g = parser.group("data on this machine")
    g.add_argument("--data_root", default=None, metavar="DIR", help="where the data sets lie")
    cli.add_machine(parser)
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    members = find(args)
    if args.dry_run:
        for m in members:
            print(f"{'done' if m.file.exists() and not args.force else 'compute'}: {m.group}: {m.file}")
        return 0
    said = logits(args, members)
    found = summary(args, members, said)
    args.force = True  # seconds of work, and the networks under DIR may be others than last time
    with runs.start("double_descent", args, f"deep_{Path(args.load_net).resolve().name}") as run:
        show(found)
        run.finish(found)
        draw(args, run, found)
        print(f"results: {run.path / 'results.json'}\ntable: {run.path / 'deep.csv'}")
    return 0


# ---- networks ------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Member:
    """One network: the run that it is of, its weights, its place x on a curve, and where its logits are kept."""

    source: runs.Source
    weights: Path
    x: float
    file: Path
    settings: dict

    @property
    def group(self):
        return self.source.group

    @property
    def cell(self):
        return self.group, self.x


def find(args):
    """The Members, sorted by group, x and seeds. UsageError where a cell holds networks that differ in more."""
    keys = args.group_by.split(",")
    sources = [s for s in runs.find_models(args.load_net, keys, args.select) if not s.foreign]
    if not sources:
        raise FileProblem(f"{args.load_net} holds no run folder: a foreign checkpoint does not say its labels or width")
    along = args.along
    members = []
    for source in sources:
        if along != "epoch" and not isinstance(source.config.get(along), int | float):
            raise UsageError(f"--along {along}: no number among the settings of {source.path.name}"
                             f"{cli.suggestion(along, source.config)}")
        files = snapshots(source) if along == "epoch" else {
            source.config[along]: source.path / {"model": "model.safetensors", "best": "best.safetensors"}[args.which]}
        for x, weights in files.items():
            held = {"dataset": source.config["dataset"], "weights": str(weights.relative_to(source.path)),
                    **maps.labels_of(source.config)}
            name = f"logits-{runs.hash8(held)}.npz"
            members.append(Member(source, weights, x, source.path / "arrays" / name, held))
    check_cells(members, {along, *keys, *cli.SEEDS})
    order = [s.path for s in sources]
    return sorted(members, key=lambda m: (m.group, m.x, order.index(m.source.path)))


def snapshots(source):
    """{epoch: file} of a run's snapshots. FileProblem where it has none."""
    files = sorted((source.path / "checkpoints").glob("epoch_*.safetensors"))
    if not files:
        raise FileProblem(f"{source.path} holds no snapshots: train it with --snapshots 1,2,4,8, or every=5")
    return {int(f.stem.removeprefix("epoch_")): f for f in files}


# Settings that do not change what a network is.
FREE = {"runs", "device", "threads", "workers", "data_root", "save_every", "save_net", "eval_every", "eval_bs", "seed",
        "snapshots", "load_net", "which", "imgs", "resolution", "formats", "plot_path", "group_by", "select", "force",
        "smoke", "dry_run", "split", "plane_seed", "flat", "k", "asym", "dd_epoch_study", "noise_seed", "deterministic"}


def check_cells(members, free):
    first = {}
    for m in members:
        one = first.setdefault(m.cell, m).source.config
        other = m.source.config
        wrong = [k for k in one.keys() & other.keys() - free - FREE
                 if one[k] != other[k] and not k.startswith(("wandb", "range_", "map_", "active"))]
        if wrong:
            key = sorted(wrong)[0]
            raise UsageError(f"networks of one curve differ in {key} ({one[key]}, {other[key]}): choose with --select "
                             f"{key}={one[key]}, or add {key} to --group_by")
    for (group, x), count in Counter(m.cell for m in members).items():
        seeds = Counter(m.source.config["init_seed"] for m in members if m.cell == (group, x))
        if 1 < len(seeds) < count:  # neither independent networks nor those of one start
            twice = seeds.most_common(1)[0][0]
            raise UsageError(f"several networks of {group}, {x} share the initial weights of init_seed {twice}: choose "
                             f"one of each seed with --select order_seed=…, or init_seed={twice} alone")


# ---- what the networks say -----------------------------------------------------------------------------------------

NEEDS = ("train", "train_labels", "train_true", "test", "test_labels", "settings")


def logits(args, members):
    """[arrays] of each member: logits train (N, C) and test (M, C), float32, and the labels train_labels (as given),
    train_true and test_labels; read from its run folder where they are there already."""
    todo = [m for m in members if args.force or not m.file.exists()]
    if todo:
        from landscape import data as datasets
        from landscape import evaluate

        device, key, data = cli.set_up_device(args), None, None
        progress = runs.Progress(len(todo), "logits")
        for m in sorted(todo, key=lambda m: sorted(map(str, m.settings.items()))):
            trained = runs.load(m.weights)
            seen = trained.preprocessing
            wanted = (m.settings["dataset"], *maps.labels_of(m.settings).values(), seen["image_size"], seen["channels"])
            if wanted != key:
                data = datasets.load(m.settings["dataset"], args.data_root, **datasets.given_by(m.settings),
                                     image_size=seen["image_size"], channels=seen["channels"], device=device)
                key = wanted
            network = trained.network.to(device, memory_format=evaluate.torch.channels_last)
            train, test = (evaluate.logits(network, part, seen, args.eval_bs).numpy()
                           for part in (data.train, data.test))
            if not (abs(train).max() < float("inf") and abs(test).max() < float("inf")):
                raise ContentError(f"{m.weights}: the network's logits are not finite; it has diverged")
            lock = runs.hold(m.file.parent)
            try:
                runs.write_arrays(m.file, train=train, test=test, train_labels=data.train.labels.cpu().numpy(),
                                  train_true=data.train.true_labels.cpu().numpy(),
                                  test_labels=data.test.labels.cpu().numpy(),
                                  settings=json.dumps(m.settings, sort_keys=True))
            finally:
                runs.release(lock)
            progress.step()
        progress.close()
    return [runs.read_arrays(m.file, NEEDS) for m in members]


def of_network(said):
    """{measure: value, or None where there is no such image} of one network's arrays."""
    from landscape import metrics

    given, true = said["train_labels"], said["train_true"]
    right, out = given == true, {}
    for name, part, labels in (("test", "test", said["test_labels"]), ("train", "train", given)):
        out[f"{name}_error"] = 1 - metrics.accuracy(said[part], labels)
        out[f"{name}_loss"] = metrics.nll(said[part], labels)
        out[f"{name}_confidence"] = float(metrics.softmax(said[part]).max(1).mean())
    for name, rows, labels in (("correct", right, given), ("mislabelled", ~right, given),
                               ("mislabelled_true", ~right, true)):
        out[f"train_error_{name}"] = 1 - metrics.accuracy(said["train"][rows], labels[rows]) if rows.any() else None
    return {k: out[k] for k in MEASURES}


def of_pair(one, other):
    """{measure: value} of two networks on the test set: disagreement, error of the mean of their probabilities, and
    how far that is below the mean of their errors."""
    import numpy as np

    from landscape import metrics

    labels = one["test_labels"]
    together = ensemble_error([one, other])
    own = np.mean([1 - metrics.accuracy(n["test"], labels) for n in (one, other)])
    return {"disagreement": metrics.disagreement(one["test"].argmax(1), other["test"].argmax(1)),
            "ensemble_error_of_2": together, "ensemble_gain_of_2": float(own - together)}


def ensemble_error(said):
    """Test error of the mean probabilities of some networks' arrays."""
    from landscape import metrics

    probs = sum(metrics.softmax(n["test"]) for n in said) / len(said)
    return float((probs.argmax(1) != said[0]["test_labels"]).mean())


# ---- what other programs left --------------------------------------------------------------------------------------

def of_regions(members):
    """({name: [value of each member, or None]}, {name: [labels and triplets of each member, or None]}) of margins and
    fragmentation, and of the class maps themselves, that lie in the run folders; a name says of which images."""
    import numpy as np

    from landscape import metrics

    values, kept = {}, {}
    for i, m in enumerate(members):
        if m.weights.parent != m.source.path:
            continue  # a snapshot: class maps and margins are of the run's last or best weights
        for arrays, of in saved(m, "class_maps", maps.NEEDS):
            if int(arrays["complete"]) == of["planes"]:
                name = f"{of['anchors']}_{of['split']}", f"{of['planes']}x{of['resolution']}_{same(of)}"
                side = of["resolution"]
                found = metrics.fragmentation(arrays["labels"].reshape(-1, side, side), 8, 1)
                values.setdefault(("fragments", *name), {})[i] = float(np.mean(found["fragments"]))
                kept.setdefault(("reproducibility", *name), {})[i] = {k: arrays[k] for k in ("labels", "triplets")}
        for arrays, of in saved(m, "margins", ("margins", "settings")):
            hit = np.where(np.isfinite(arrays["margins"]), arrays["margins"], np.nan)
            enough = np.isfinite(hit).sum(1) * 2 >= hit.shape[1]
            if enough.any():
                name = f"{of['base']}_{of['split']}", f"{of['towards']}_{of['points']}_{same(of)}"
                values.setdefault(("margin", *name), {})[i] = float(np.median(np.nanmean(hit[enough], axis=1)))
    return named(values, len(members)), named(kept, len(members))


def same(settings):
    """A hash of settings but for the labels that a network was given: with others the measure is the same."""
    return runs.hash8({k: v for k, v in settings.items() if k != "given_labels"})


def saved(member, kind, needs):
    """[(arrays, settings)] of the arrays of one kind in a member's run folder that are of its weights."""
    out = []
    for file in sorted((member.source.path / "arrays").glob(f"{kind}-*.npz")):
        arrays = runs.read_arrays(file, needs)
        of = maps.read_settings(arrays, file)
        if f"{of['which']}.safetensors" == member.weights.name:
            out.append((arrays, of))
    return out


def named(table, count):
    """{(kind, images, settings): {number of a member: value}} as {name: [value or None]} for `count` members. The
    settings are left out of a name that has one kind of them."""
    kinds = Counter((kind, images) for kind, images, _ in table)
    return {"_".join(key if kinds[key[:2]] > 1 else key[:2]): [values.get(i) for i in range(count)]
            for key, values in table.items()}


# ---- one table -----------------------------------------------------------------------------------------------------

def relation(one, other):
    """What differs between two networks of a cell: a key of PAIRS."""
    init, order = (one.source.config[k] != other.source.config[k] for k in ("init_seed", "order_seed"))
    return "seeds" if init and order else "init" if init else "order"


def summary(args, members, said):
    """Everything, as plain values: rows of networks, of cells (group, x), and each group's interpolation threshold."""
    values = [of_network(s) for s in said]
    regions, kept = of_regions(members)
    rows = [{"group": m.group, "x": m.x, "name": m.source.seed_name, "path": str(m.source.path),
             **{k: m.source.config[k] for k in cli.SEEDS}, **v,
             **{name: column[i] for name, column in regions.items()}}
            for i, (m, v) in enumerate(zip(members, values))]
    cells = {}
    for i, m in enumerate(members):
        cells.setdefault(m.cell, []).append(i)
    names = (*MEASURES, *regions)
    out = [cell(args, group, x, held, rows, members, said, kept, names) for (group, x), held in cells.items()]
    pairs = [n for n in dict.fromkeys(n for c in out for n in c["measures"]) if n not in names]
    return {"kind": "deep", "along": args.along, "group_by": args.group_by, "level": args.level, "fitted_below": FITTED,
            "measures": [*names, *pairs], "models": rows, "cells": out, "threshold": thresholds(out)}


def cell(args, group, x, held, rows, members, said, kept, names):
    """One (group, x): each measure with its interval over networks, or over pairs of networks, clustered by network;
    `pairs` holds the value of each pair (numbers of two rows of models)."""
    import numpy as np

    from landscape import metrics, results

    found, each = {}, {}
    for name in names:
        own = [rows[i][name] for i in held]
        if None not in own:
            found[name] = interval(name, results.bootstrap(own, level=args.level), len(own))
    for kind in PAIRS:
        chosen = [(a, b) for n, a in enumerate(held) for b in held[n + 1:] if relation(members[a], members[b]) == kind]
        pairs = {}
        for a, b in chosen:
            pair = of_pair(said[a], said[b])
            for name, maps_of in kept.items():
                one, other = maps_of[a], maps_of[b]
                if one and other and np.array_equal(one["triplets"], other["triplets"]):
                    pair[name] = float(np.mean(metrics.agreement(one["labels"], other["labels"])))
            for name, value in pair.items():
                pairs.setdefault(name, {})[a, b] = value
        for name, of in pairs.items():
            name = name if kind == "seeds" else f"{name}_{kind}"
            found[name] = over_pairs(name, of, args.level)
            each[name] = [[a, b, value] for (a, b), value in of.items()]
    if len(held) > 1:
        found["ensemble_error"] = {"value": ensemble_error([said[i] for i in held]), "low": None, "high": None, "n": 1}
    return {"group": group, "x": x, "models": len(held), "measures": found, "pairs": each}


def over_pairs(name, pairs, level):
    """Mean over pairs {(a, b): value} with an interval clustered by network, where every two of the networks that occur
    are a pair; else without one."""
    import numpy as np

    from landscape import results

    networks = sorted({i for pair in pairs for i in pair})
    if len(pairs) == len(networks) * (len(networks) - 1) // 2:
        matrix = np.zeros((len(networks),) * 2)
        for (a, b), value in pairs.items():
            i, j = networks.index(a), networks.index(b)
            matrix[i, j] = matrix[j, i] = value
        return interval(name, results.bootstrap_pairs(matrix, level=level), len(networks))
    return interval(name, (float(np.mean(list(pairs.values()))), None, None), len(networks))


def interval(name, found, n):
    """A cell of the table; the ends are cut at what the measure can be, which an interval of few networks may pass."""
    value, *ends = found
    least = -1 if "gain" in name else 0
    most = float("inf") if name.startswith(("fragments", "margin")) or name.endswith("_loss") else 1
    low, high = (None if end is None else min(max(end, least), most) for end in ends)
    return {"value": value, "low": low, "high": high, "n": n}


def thresholds(cells):
    """{group: smallest x with a mean training error below FITTED, or None}."""
    out = {c["group"]: None for c in cells}
    for c in sorted(cells, key=lambda c: -c["x"]):
        if c["measures"]["train_error"]["value"] < FITTED:
            out[c["group"]] = c["x"]
    return out


# ---- tables and figures --------------------------------------------------------------------------------------------

SHOWN = ("test_error", "test_loss", "train_error", "disagreement", "ensemble_error")


def show(found):
    for group, threshold in found["threshold"].items():
        fitted = "fitted nowhere" if threshold is None else f"fitted from {found['along']} {threshold} on"
        print(f"{group}: training set {fitted} (error below {FITTED:.0%})")
        print(f"{found['along']:<12}" + "".join(f"{name:>24}" for name in SHOWN))
        for c in found["cells"]:
            if c["group"] == group:
                print(f"{c['x']:<12}" + "".join(f"{shown(c['measures'].get(name)):>24}" for name in SHOWN))


def shown(cell):
    if cell is None:
        return "-"
    ends = "" if cell["low"] is None else f" [{cell['low']:.3f}, {cell['high']:.3f}]"
    return f"{cell['value']:.3f}{ends}"


def draw(args, run, found):
    from double_descent import deep_figures
    from landscape import redraw
    from landscape.results import write_csv

    rows = [{"group": c["group"], found["along"]: c["x"], "measure": name, **c["measures"][name]}
            for c in found["cells"] for name in found["measures"] if name in c["measures"]]
    write_csv(run.path / "deep.csv", rows, list(rows[0]))
    run.sink.table("double descent", rows)
    redraw.show(run, deep_figures.figures(run.path, found), args.formats)


if __name__ == "__main__":
    cli.run(main)
