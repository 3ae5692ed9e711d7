"""Ensembles under shift and out of distribution: corrupted test images of five severities, and images of other sets.

    python -m ensembles.shift --members runs/ensembles --ood FashionMNIST,MNIST

K networks of any study (--members), and of each size the mean over all subsets of them that have it: accuracy,
log-likelihood, Brier score, calibration error and Jensen-Shannon diversity against the severity, for every corruption
and averaged over them; and how well confidence, entropy and diversity tell the images of another set from the test
set's (AUROC). Corruptions are computed here (landscape/corruptions.py says how) or read from CIFAR-10-C (--source
archive). Size 1 is the mean member; an ensemble's gain is over its own members' mean. Intervals are over members.
Fort et al. 2019 (arXiv 1912.02757), section 6; Ovadia et al. 2019 (arXiv 1906.02530).
"""

import functools
from dataclasses import dataclass

import numpy as np

from landscape import cli, corruptions, predictions, results, runs
from landscape.errors import ContentError, UsageError

MEASURES = {"accuracy": "accuracy", "nll": "negative log-likelihood (nats)", "brier": "Brier score",
            "ece": "expected calibration error", "js": "Jensen–Shannon diversity (nats)"}
BETTER = {"accuracy": 1, "nll": -1, "brier": -1, "ece": -1}  # the sign that makes a gain positive
# By what an image is judged foreign. js needs two members.
SIGNS = {"confidence": "highest probability", "entropy": "entropy of the mean probabilities (nats)",
         "js": "Jensen–Shannon diversity (nats)"}
MEAN = "mean"  # the row of all corruptions together
CLEAN = "clean"  # that of severity 0


def make_parser():
    parser = cli.Parser("python -m ensembles.shift", __doc__)
    predictions.add_networks(parser, cli, "runs/ensembles")
    g = parser.group("shift", named=True)
    g.add_argument("--corruptions", type=cli.several(str), default=["all"], metavar="NAME,NAME,…",
                   help=f"all, none, or some of {', '.join(corruptions.CORRUPTIONS)}; in the archive also "
                        f"{', '.join(n for n in corruptions.ARCHIVED if n not in corruptions.CORRUPTIONS)}")
    g.add_argument("--severities", type=cli.several(cli.whole), default=[1, 2, 3, 4, 5], metavar="1-5",
                   help="of them; the clean images are always there, as severity 0")
    g.add_argument("--source", default="computed", choices=("computed", "archive"),
                   help="compute the corrupted images, or read them from CIFAR-10-C in --data_root")
    g.add_argument("--ood", type=cli.several(str), default=["FashionMNIST"], metavar="SET,SET,…",
                   help="sets whose test images are foreign (SVHN, MNIST, …), brought to the networks' inputs; none")
    g.add_argument("--images", type=cli.natural, default=10_000, metavar="N",
                   help="at most so many images of the test set and of each foreign one, drawn; 0: all")
    g.add_argument("--shift_seed", type=int, default=0, help="of that draw, of the corruptions and of drawn subsets")
    g = parser.group("ensembles", named=True)
    g.add_argument("--sizes", type=cli.several(cli.positive), default=None, metavar="1,2,4,…",
                   help="of ensembles (default: powers of two, and all members)")
    g.add_argument("--subsets", type=cli.positive, default=1000, metavar="B",
                   help="of each size at most so many subsets of the members, drawn where there are more")
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals, over members")
    cli.add_machine(parser)
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = resolved(argv)
    networks = predictions.find(args)
    scene = make_scene(args, networks)
    if args.dry_run:
        for held in [*map(scene.held, scene.conditions), *map(scene.held_of, scene.foreign)]:
            kept = sum(predictions.file_of(n, held, args).exists() for n in networks)
            what = " ".join(str(held[k]) for k in ("dataset", "corruption", "severity") if k in held)
            print(f"{what}: logits of {kept} of {len(networks)} networks are kept")
        return 0
    groups = make_groups(args, len(networks))
    shifted, scores = under_shift(args, networks, scene, groups)
    foreign, signs = out_of_distribution(args, networks, scene, groups)
    args.force = True  # seconds of work once the logits are kept, and the networks may be others than last time
    with runs.start("ensembles", args, f"shift_{scene.dataset.split(':')[0]}") as run:
        found = {"kind": "shift", "nets": predictions.names_of(networks),
                 "dataset": scene.dataset, "level": args.level, "source": args.source,
                 "images": len(scene.labels), "sizes": list(groups.parts), "corruptions": scene.corruptions,
                 "severities": args.severities, "models": shifted.pop("models"), **shifted, "ood": foreign}
        runs.write_arrays(run.path / "arrays" / "shift.npz", **scores, subsets=groups.subsets, sizes=groups.sizes)
        runs.write_arrays(run.path / "arrays" / "ood.npz", **signs)
        show(found)
        run.finish(found)
        draw(args, run, found)
        print(f"results: {run.path / 'results.json'}\ntable: {run.path / 'shift.csv'}")
    return 0


def resolved(argv):
    """The settings; under --smoke few images, two corruptions, and a foreign set that needs no file."""
    args = make_parser().settings(argv)
    if args.smoke:
        args.images = min(args.images or 64, 64)
        args.corruptions = ["gaussian_noise", "contrast"] if args.corruptions == ["all"] else args.corruptions
        args.severities, args.source = args.severities[-2:], "computed"
        args.ood = args.ood if args.ood == ["none"] else ["fake"]
    args = cli.resolve(args)
    wrong = [s for s in args.severities if s not in (0, *corruptions.SEVERITIES)]
    if wrong:
        raise UsageError(f"--severities {wrong[0]}: 1 to 5 are known (0, the clean images, is always there)")
    args.severities = sorted(set(args.severities) - {0})
    if args.corruptions != ["none"] and not args.severities:
        raise UsageError("--severities 0 alone: give --corruptions none for the clean images only")
    return args


# ---- images --------------------------------------------------------------------------------------------------------

@dataclass
class Scene:
    """The test set of the networks' data, N images of it (rows), their corruptions and the foreign sets, by name.
    Images are made when a network has to see them."""

    args: object
    dataset: str
    corruptions: list
    foreign: list
    rows: np.ndarray
    labels: np.ndarray
    count: int  # of the images that rows were drawn from: of an archive

    @property
    def conditions(self):
        """[(corruption, severity)], the clean images first."""
        return [(CLEAN, 0), *((c, s) for c in self.corruptions for s in self.args.severities)]

    def held(self, condition):
        """What names the images of a condition; the clean ones are the whole test set, as other programs name it."""
        name, severity = condition
        plain = {"dataset": self.dataset, "split": "test"}
        if severity == 0:
            return plain
        return {**plain, "corruption": name, "severity": severity, "source": self.args.source, "of": self.count,
                "images": len(self.rows), "shift_seed": self.args.shift_seed}

    def held_of(self, name):
        """What names the images of a foreign set."""
        return {"dataset": name, "split": "test", "images": self.args.images, "shift_seed": self.args.shift_seed}

    def images(self, condition):
        """uint8 (N, H, W, C) numpy images of a condition; of the clean one all of the test set."""
        name, severity = condition
        if severity == 0:
            return test_images(self.dataset, self.args.data_root).images.numpy()
        if self.args.source == "archive":
            from landscape import readers

            return corruptions.read_archive(readers.root_of(self.args.data_root), name, severity)[0][self.rows]
        clean = test_images(self.dataset, self.args.data_root)
        return corruptions.corrupted(take(clean, self.rows), name, severity, self.args.shift_seed)

    def foreign_images(self, name):
        images = test_images(name, self.args.data_root)
        return take(images, drawn(len(images), self.args.images, self.args.shift_seed))


@functools.lru_cache(maxsize=4)
def test_images(dataset, data_root):
    """The landscape.data.Images of a set's test images, as its files have them."""
    from landscape import data as datasets

    return datasets.load(dataset, data_root, val_size=0).test


def take(images, rows):
    import torch

    return images.gather(torch.from_numpy(rows)).numpy()


def drawn(count, most, seed):
    """Ascending rows of at most `most` of `count` images, drawn; 0: all."""
    from landscape.seeding import numpy_stream

    if most in (0, count) or most > count:
        return np.arange(count)
    return np.sort(numpy_stream(seed, "images", count).permutation(count)[:most])


def make_scene(args, networks):
    """The Scene that args describe. UsageError for what does not go with the networks' data, FileProblem and
    ContentError for an archive that is missing or is of other images."""
    from landscape import data as datasets

    dataset = predictions.dataset_of(networks, args)
    entry = datasets.entry(dataset, args.data_root)
    foreign = [] if args.ood == ["none"] else args.ood
    for name in foreign:
        if name == dataset:
            raise UsageError(f"--ood {name}: that is the set that the networks were trained on; name another, or none")
        test_images(name, args.data_root)  # a missing file is said now
    if not foreign and args.corruptions == ["none"]:
        raise UsageError("--ood none with --corruptions none leaves nothing to measure")
    known = corruptions.ARCHIVED if args.source == "archive" else corruptions.CORRUPTIONS
    if args.source == "archive" and dataset != "CIFAR10":
        raise UsageError(f"--source archive: CIFAR-10-C is of CIFAR10, and the networks are of {dataset}")
    if args.corruptions == ["all"]:
        names = [n for n in known if entry.channels == 3 or not corruptions.CORRUPTIONS[n].colour]
    else:
        names = [] if args.corruptions == ["none"] else args.corruptions
        corruptions.check(names, known, entry.channels)
    test = test_images(dataset, args.data_root)
    labels = test.labels.cpu().numpy()
    count = archived_count(args, names, labels) if args.source == "archive" else len(labels)
    rows = drawn(count, args.images, args.shift_seed)
    return Scene(args, dataset, list(names), foreign, rows, labels[rows], count)


def archived_count(args, names, labels):
    """Images of one severity in the archive, checked to be the first of the test set with the given labels."""
    from landscape import readers

    root, counts = readers.root_of(args.data_root), set()
    for name in names:
        for severity in args.severities:
            _, theirs = corruptions.read_archive(root, name, severity)
            counts.add(len(theirs))
            if not np.array_equal(theirs, labels[:len(theirs)]):
                raise ContentError(f"{root / corruptions.FOLDER}: its labels are not those of CIFAR-10's test set, in "
                                   "the order of its files")
    if len(counts) > 1:
        raise ContentError(f"{root / corruptions.FOLDER}: its files hold {sorted(counts)} images of each severity")
    return counts.pop() if counts else len(labels)


def logits(args, networks, held, images, labels, what):
    """(K, N, C) float32 logits on images (a function that gives uint8 (N, H, W, C)), kept with the networks."""
    import torch

    from landscape import data as datasets

    made = functools.cache(images)

    def images_for(preprocessing):
        pixels = datasets.fitted(torch.from_numpy(made()), preprocessing["image_size"], preprocessing["channels"])
        return datasets.Images(pixels, torch.zeros(len(pixels), dtype=torch.int64) if labels is None else labels)

    return np.stack(predictions.logits(networks, args, held, images_for, what))


# ---- ensembles -----------------------------------------------------------------------------------------------------

@dataclass
class Groups:
    """Subsets of K members, one below the other, (B, K) bool: parts maps each size to its rows, without is the rows of
    all members but one, in their order (empty for K < 3); sizes (B,)."""

    subsets: np.ndarray
    parts: dict
    without: slice

    @property
    def sizes(self):
        return self.subsets.sum(1)

    @property
    def members(self):
        return self.subsets.shape[1]


def make_groups(args, members):
    from landscape import metrics

    sizes = args.sizes or [1 << b for b in range(members.bit_length()) if 1 << b <= members] + [members]
    if max(sizes) > members:
        raise UsageError(f"--sizes {max(sizes)}: there are {members} networks")
    blocks = {m: metrics.subsets(members, m, args.subsets, args.shift_seed) for m in sorted({1, *sizes})}
    if members > args.subsets:
        blocks[1] = np.eye(members, dtype=bool)  # gains are over each member
    parts, at = {}, 0
    for size, block in blocks.items():
        parts[size] = slice(at, at + len(block))
        at += len(block)
    rest = ~np.eye(members, dtype=bool)[: members if members > 2 else 0]
    return Groups(np.concatenate([*blocks.values(), rest]), parts, slice(at, at + len(rest)))


def gains(scores, groups):
    """How much better than the mean of its own members each subset is, (B,), from scores (B,) of which more is
    better."""
    single = np.empty(groups.members)
    rows = groups.parts[1]
    single[groups.subsets[rows].argmax(1)] = scores[rows]
    return scores - groups.subsets @ single / groups.sizes


def over_members(values, groups, size, level):
    """(mean over the subsets of a size, low, high) of values (B,). The full ensemble is one subset, and has no
    interval."""
    rows = groups.parts[size]
    return results.over_subsets(values[rows], groups.subsets[rows], level)


def of_gain(values, groups, size, level):
    """The same of gains; that of the full ensemble has an interval too, from the ensembles without one member."""
    if size < groups.members or groups.members < 3:
        return over_members(values, groups, size, level)
    value = float(values[groups.parts[size]].mean())
    return value, *results.jackknife(value, values[groups.without], level)


def cell(found, n, least=-np.inf, most=np.inf):
    """A value and its ends, cut at what it can be; nulls where it is not defined."""
    value, *ends = found
    low, high = (None if end is None else float(min(max(end, least), most)) for end in ends)
    return {"value": value, "low": low, "high": high, "n": n}


NOTHING = (None, None, None)

# ---- shift ---------------------------------------------------------------------------------------------------------

def under_shift(args, networks, scene, groups):
    """(results, arrays): models, curves (every corruption, severity and size) and gains, as lists of plain dicts."""
    from landscape import metrics

    conditions, table, classes = scene.conditions, {}, 0
    progress = runs.Progress(len(conditions), "shift")
    for condition in conditions:
        name, severity = condition
        said = logits(args, networks, scene.held(condition), functools.partial(scene.images, condition), None,
                      f"{name} {severity}" if severity else CLEAN)
        said = said[:, scene.rows] if severity == 0 else said
        table[condition] = metrics.subset_scores(metrics.softmax(said).astype(np.float32), scene.labels, groups.subsets)
        classes = said.shape[2]
        progress.step()
    progress.close()
    lines = dict(table)
    for severity in args.severities if scene.corruptions else ():
        lines[MEAN, severity] = {k: np.mean([table[c, severity][k] for c in scene.corruptions], axis=0)
                                 for k in MEASURES}
    clean = {k: gains(BETTER[k] * lines[CLEAN, 0][k], groups) for k in BETTER}
    curves, gained = [], []
    for (name, severity), scores in lines.items():
        better = {k: gains(BETTER[k] * scores[k], groups) for k in BETTER}
        for size in groups.parts:
            place = {"corruption": name, "severity": severity, "size": size}
            curves.append({**place, "measures": {k: curve_cell(k, scores, groups, size, classes, args.level)
                                                 for k in MEASURES}})
            if size > 1:
                gained.append({**place, "measures": {
                    k: cell(of_gain(better[k], groups, size, args.level), groups.members) for k in BETTER},
                    "growth": {k: cell(of_gain(better[k] - clean[k], groups, size, args.level), groups.members)
                               for k in BETTER}})
    single = groups.parts[1]
    models = [{"name": n.name, "path": str(n.path), **{k: float(lines[CLEAN, 0][k][single][i]) for k in BETTER}}
              for i, n in enumerate(networks)]
    arrays = {"scores": np.array([[lines[c][k] for k in MEASURES] for c in lines]), "measures": np.array([*MEASURES]),
              "corruption": np.array([c for c, _ in lines]), "severity": np.array([s for _, s in lines])}
    return {"models": models, "curves": curves, "gains": gained}, arrays


def curve_cell(measure, scores, groups, size, classes, level):
    if measure == "js" and size == 1:
        return cell(NOTHING, groups.members)
    most = {"nll": np.inf, "brier": 2, "js": np.log(min(size, classes))}.get(measure, 1)
    return cell(over_members(scores[measure], groups, size, level), groups.members, 0, most)


# ---- out of distribution -------------------------------------------------------------------------------------------

def out_of_distribution(args, networks, scene, groups):
    """(rows, arrays): of every foreign set and size the AUROC of each of SIGNS and their means over the own test images
    and the foreign ones; the arrays hold, per image, what single members (K, N) and the full ensemble (N,) say."""
    from landscape import metrics

    if not scene.foreign:
        return [], {}
    condition = (CLEAN, 0)
    own = logits(args, networks, scene.held(condition), functools.partial(scene.images, condition), None, CLEAN)
    own = metrics.softmax(own[:, scene.rows]).astype(np.float32)
    classes, rows = own.shape[2], []
    arrays = per_image("own", own)
    for number, name in enumerate(scene.foreign):
        other = logits(args, networks, scene.held_of(name), functools.partial(scene.foreign_images, name), None, name)
        other = metrics.softmax(other).astype(np.float32)
        arrays |= per_image(f"foreign_{number}", other)
        found = apart(own, other, groups)
        for size in groups.parts:
            measures = {}
            for key, values in found.items():
                undefined = size == 1 and key in ("js_own", "js_foreign", "auroc_js")
                most = np.log(classes) if key.startswith(("entropy", "js")) else 1
                of = NOTHING if undefined else over_members(values, groups, size, args.level)
                measures[key] = cell(of, groups.members, 0, most)
            rows.append({"set": name, "images": other.shape[1], "size": size, "measures": measures})
    return rows, arrays


def signs(probs, entropies, subset):
    """{sign: (N,)} of one subset (K,) bool of members with probabilities (K, N, C) and entropies (K, N)."""
    from landscape import metrics

    mean = probs[subset].mean(0)
    together = metrics.entropy(mean)
    return {"confidence": mean.max(1), "entropy": together,
            "js": np.maximum(together - entropies[subset].mean(0), 0)}


def apart(own, other, groups):
    """{auroc_SIGN, SIGN_own, SIGN_foreign: (B,)} of every subset, from probabilities (K, N, C) and (K, M, C). An image
    is judged foreign by a low confidence, a high entropy or a high diversity."""
    from sklearn.metrics import roc_auc_score

    from landscape import metrics

    foreign = np.repeat([0, 1], [own.shape[1], other.shape[1]])
    entropies = [metrics.entropy(p) for p in (own, other)]
    out = {f"{start}{k}{end}": np.zeros(len(groups.subsets)) for k in SIGNS
           for start, end in (("auroc_", ""), ("", "_own"), ("", "_foreign"))}
    for b, subset in enumerate(groups.subsets[: groups.without.start]):
        here, there = (signs(p, h, subset) for p, h in zip((own, other), entropies))
        for k in SIGNS:
            out[f"{k}_own"][b], out[f"{k}_foreign"][b] = here[k].mean(), there[k].mean()
            score = np.concatenate([here[k], there[k]])
            out[f"auroc_{k}"][b] = roc_auc_score(foreign, -score if k == "confidence" else score)
    return out


def per_image(name, probs):
    """What a figure of distributions needs of probabilities (K, N, C), float32."""
    from landscape import metrics

    entropies = metrics.entropy(probs)
    full = signs(probs, entropies, np.ones(len(probs), bool))
    out = {f"{name}_entropy_members": entropies, f"{name}_confidence_members": probs.max(2)}
    out |= {f"{name}_{k}_ensemble": v for k, v in full.items() if k != "js" or len(probs) > 1}
    return {k: v.astype(np.float32) for k, v in out.items()}


# ---- tables and figures --------------------------------------------------------------------------------------------

def show(found):
    print(f"{len(found['models'])} networks of {found['dataset']}, {found['images']} images, "
          f"{len(found['corruptions'])} corruptions ({found['source']})")
    print(f"{'severity':<9}{'size':>5}" + "".join(f"{k:>24}" for k in MEASURES))
    for row in found["curves"]:
        if row["corruption"] in (MEAN, CLEAN):
            print(f"{row['severity']:<9}{row['size']:>5}" +
                  "".join(f"{shown(row['measures'][k]):>24}" for k in MEASURES))
    for row in found["gains"]:
        if row["corruption"] in (MEAN, CLEAN):
            print(f"gain of {row['size']} at severity {row['severity']}: accuracy "
                  f"{shown(row['measures']['accuracy'])}, Brier {shown(row['measures']['brier'])}")
    for row in found["ood"]:
        print(f"{row['set']}, size {row['size']}: AUROC by " +
              ", by ".join(f"{k} {shown(row['measures'][f'auroc_{k}'])}" for k in SIGNS))


def shown(held):
    if held["value"] is None:
        return "-"
    ends = "" if held["low"] is None else f" [{held['low']:.3f}, {held['high']:.3f}]"
    return f"{held['value']:.3f}{ends}"


def records(found):
    """(rows of the shift table, rows of the foreign sets' table): one value with its interval a row."""
    kinds = (("curves", "measures", "value"), ("gains", "measures", "gain"), ("gains", "growth", "growth of gain"))
    shift = [{"what": what, **{k: row[k] for k in ("corruption", "severity", "size")}, "measure": k, **held}
             for kind, part, what in kinds for row in found[kind] for k, held in row[part].items()]
    ood = [{**{k: row[k] for k in ("set", "images", "size")}, "measure": k, **held}
           for row in found["ood"] for k, held in row["measures"].items()]
    return shift, ood


def draw(args, run, found):
    from ensembles import shift_figures
    from landscape import redraw

    for name, rows in zip(("shift", "ood"), records(found)):
        if rows:
            results.write_csv(run.path / f"{name}.csv", rows, list(rows[0]))
            run.sink.table(name, rows)
    redraw.show(run, shift_figures.figures(run.path, found), args.formats)


if __name__ == "__main__":
    cli.run(main)
