"""Planes and class maps as settings and files: what determines them, how their files are called, which ones runs share.

A file of class maps, <run>/arrays/class_maps-<hash8>.npz, holds labels (P, S), triplets (P, 3), anchors (P, 3, 2) and
extents (P, 4) of the planes, complete (planes done), rechecked, classes and settings (JSON); with --save_probs also
probs (P, S, C), float16. Its name is the hash of its settings. Older files have no anchors and extents. No torch.
"""

import json
from pathlib import Path

from landscape.errors import ContentError, FileProblem, UsageError
from landscape.runs import Source, describe, digest, few, find_models, hash8, measure_folder, read_arrays, read_json

GRID = ("planes", "resolution", "range_l", "range_r", "plane_seed", "split", "as_published", "anchors")
CHOSEN = (*GRID, "which", "refine")  # what tells files of class maps of one network apart
NEEDS = ("labels", "triplets", "complete", "rechecked", "classes", "settings")
LABELS = ("noise_rate", "noise_kind", "noise_file", "noise_seed", "data_seed", "train_size", "val_size")
LABELLED = ("correct", "incorrect", "one_mislabelled")  # anchors chosen by the labels that the networks were given
FOREIGN = ("net", "width", "image_size", "channels", "normalize")
TRIPLETS = {"dataset", "split", "anchors", "plane_seed", "as_published", "data", "triplets"}


# ---- settings ------------------------------------------------------------------------------------------------------


def settings(args, sources):
    """The settings that class maps of these sources have, data set included. UsageError for a grid of one point or
    sources of several data sets."""
    if args.resolution < 2:
        raise UsageError(f"--resolution {args.resolution}: at least 2 points a side are needed")
    if args.refine and getattr(args, "save_probs", False):
        raise UsageError("--refine leaves most points out, and --save_probs keeps the probabilities of all: give one "
                         "of the two")
    check_attacked(args, sources)
    sets = {s.config.get("dataset", getattr(args, "dataset", None)) for s in sources}
    if len(sets) > 1:
        raise UsageError(f"the networks were trained on different data sets ({', '.join(sorted(map(str, sets)))}): "
                         "compare those of one, in a folder of their own")
    return {**{k: getattr(args, k) for k in GRID}, "dataset": sets.pop(), "which": args.which,
            **probability_settings(args),
            **({"refine": args.refine} if args.refine else {}), **point_settings(args),
            **anchor_settings(args, [s.config for s in sources]), **attacked_settings(args, sources),
            **foreign_settings(args, sources)}


def probability_settings(args):
    """Probabilities in bf16 are others, where labels, computed again near boundaries, are not."""
    if not getattr(args, "save_probs", False):
        return {}
    return {"save_probs": "bf16" if args.map_precision == "bf16" else True}


def attacked_settings(args, sources):
    """By its weights, the network that --anchors pgd attacks: --attack_net, or the first of the sources."""
    if not args.anchors.startswith("pgd"):
        return {}
    if args.attack_net:  # of a run the last weights, as landscape.train.attacked takes them
        return {"attacked": digest(Source(Path(args.attack_net), "", "", {}))}
    return {"attacked": digest(sources[0], args.which)}


def check_same_data(source, trained, settings):
    """ContentError for a network of another data set, which has no business on these planes."""
    of = trained.preprocessing.get("dataset", settings["dataset"])
    if of != settings["dataset"]:
        raise ContentError(f"{source.path} was trained on {of}, the planes are of {settings['dataset']}: compare "
                           "networks of one data set, or put them into folders of their own")


def check_attacked(args, sources):
    """Raise UsageError where --anchors pgd attacks a file that does not say how its inputs were normalised and the
    command does not either: the radius of the attack is one of pixels."""
    path = Path(args.attack_net) if args.attack_net else sources[0].path
    if args.anchors.startswith("pgd") and path.is_file() and not describe(path) and "normalize" not in args.given:
        raise UsageError(f"--anchors {args.anchors}: {path} does not say how its inputs were normalised, and an attack "
                         "moves pixels; give --normalize dataset, legacy, imagenet, none or M1,M2,M3/S1,S2,S3")


def find_between(args):
    """The Sources that --between names, one each, or with --along those of its one folder. Fills in --at where it was
    not given: quarters of every line; with --along the networks themselves. Raises UsageError and FileProblem."""
    sources = sorted_along(args) if args.along else [one_source(path) for path in args.between]
    last = len(sources) - 1
    if last < 1:
        raise UsageError("--between needs two networks, a comma between them; --along finds them in a folder")
    parts = 1 if args.along else 4
    args.at = args.at or [k / parts for k in range(parts * last + 1)]
    if max(args.at) > last:
        raise UsageError(f"--at {max(args.at):g}: the last of {last + 1} networks stands at {last}")
    if args.along and any(p % 1 for p in args.at):
        raise UsageError("--along has no networks between the given ones: --at takes whole numbers")
    sets = {s.config.get("dataset", args.dataset) for s in sources}
    if len(sets) > 1:
        raise UsageError(f"the networks were trained on different data sets ({', '.join(sorted(sets))}): name networks "
                         "of one")
    return sources


def one_source(path):
    sources = find_models(path)
    if len(sources) > 1:
        raise UsageError(f"--between {path} holds {len(sources)} networks: name runs or checkpoints, or give --along")
    return sources[0]


def sorted_along(args):
    """The Sources in the folder --between in the order of the setting --along, of which each value comes once."""
    if len(args.between) != 1:
        raise UsageError(f"--along {args.along} orders the networks of one folder: --between DIR")
    folder, key = args.between[0], args.along
    sources = find_models(folder, select=args.select)
    values = [s.config.get(key) for s in sources]
    strange = [v for v in values if isinstance(v, bool) or not isinstance(v, int | float)]
    if strange:
        raise UsageError(f"--along {key}: a setting with a number in every run of {folder} is expected, such as width; "
                         f"{strange[0]} is none (--select leaves runs out)")
    for value in sorted(values):
        if values.count(value) > 1:
            raise UsageError(f"--between {folder}: {values.count(value)} networks have the {key} {value:g}; --select "
                             "KEY=VALUE chooses one of each")
    return [s for _, s in sorted(zip(values, sources), key=lambda pair: pair[0])]


def between_settings(args, sources):
    """What determines the networks of a path, besides their positions."""
    return {"between": [digest(s, args.which) for s in sources], "align": args.align, "bn_images": args.bn_images}


def names_between(sources, positions, along=""):
    """What the networks at these positions are called: a given one by its name, or by its value of a setting."""
    def name(p):
        if p % 1:
            return f"{p:g}"
        return f"{along} {sources[int(p)].config[along]:g}" if along else f"{p:g}: {sources[int(p)].seed_name}"

    return [name(p) for p in positions]


def point_settings(args):
    """What --point says of subspaces, where it is not their centre."""
    if getattr(args, "point", "") in ("", "centre"):
        return {}
    return {"point": args.point, "bn_images": args.bn_images}


def foreign_settings(args, sources):
    """What the user says of checkpoints that do not describe themselves; it decides what their class maps are."""
    if not any(s.foreign for s in sources):
        return {}
    return {"foreign": {k: getattr(args, k) for k in FOREIGN}}


def anchor_settings(args, configs):
    """What determines anchors besides their seed, as plain values; configs: of the runs that are drawn."""
    out = {"anchors": args.anchors}
    if args.anchors in LABELLED:
        found = [labels_of(c) for c in configs]
        if any(f != found[0] for f in found):
            raise UsageError(f"--anchors {args.anchors}: the networks were given different labels; draw those of one "
                             "label noise alone")
        out["given_labels"] = found[0]
    if args.anchors == "foreign":
        out["foreign_set"] = args.foreign_set
    if args.anchors.startswith("pgd"):
        out["attack_steps"] = args.attack_steps
    if args.triplets:
        out["triplets"] = hash8(read_triplets(args.triplets)["triplets"])
    return out


def labels_of(config):
    """What a run's config says of the labels that it was given; None for each where it says nothing."""
    return {k: config.get(k, "symmetric" if k == "noise_kind" else None) for k in LABELS}


def read_triplets(path):
    """The dict in a file that --save_triplets wrote: dataset, split, anchors, plane_seed, as_published, triplets, …
    Raises FileProblem or ContentError."""
    held = read_json(path)
    if TRIPLETS - held.keys():
        raise ContentError(f"{path} is no file of triplets: {', '.join(sorted(TRIPLETS))} are expected in it")
    triplets = held["triplets"]
    if not (isinstance(triplets, list) and triplets and all(
            isinstance(t, list) and len(t) == 3 and all(type(i) is int for i in t) for t in triplets)):
        raise ContentError(f"{path} is damaged: its triplets are not lists of three ids")
    return held


def follow_triplets(args):
    """Take over what a --triplets file says of its planes: split, kind, seed, and how many at the most."""
    if args.triplets:
        held = read_triplets(args.triplets)
        args.split, args.anchors, args.plane_seed = held["split"], held["anchors"], held["plane_seed"]
        args.as_published = held["as_published"]
        if hasattr(args, "planes"):
            args.planes = min(args.planes, len(held["triplets"]))


# ---- files ---------------------------------------------------------------------------------------------------------


def file_name(held):
    """The file name of class maps with these settings."""
    return f"class_maps-{hash8(held)}.npz"


def read_settings(held, file):
    """The settings in the arrays of a file of class maps."""
    try:
        return json.loads(str(held["settings"]))
    except ValueError:
        raise ContentError(f"{file} is damaged (its settings are not JSON); run save_preds.py --force") from None


def common(args, sources):
    """([(source, file)], settings): the finished class maps that all sources have and the flags of
    landscape.cli.add_maps and --which select. Raises FileProblem if there are none, UsageError if there are several."""
    asked = {k: getattr(args, k) for k in CHOSEN if getattr(args, k) not in (None, False)}
    held = []
    for source in sources:
        folder = measure_folder(source, args.runs) / "arrays"
        found = {}
        for file in sorted(folder.glob("class_maps-*.npz")):
            arrays = read_arrays(file, NEEDS, only=("complete", "settings"))
            of = read_settings(arrays, file)
            if int(arrays["complete"]) == of["planes"] and all(of.get(k, 0) == v for k, v in asked.items()):
                found[file.name] = file, of
        held.append(found)
    names = set.intersection(*map(set, held))
    if not names:
        lacking = [s.name for s, found in zip(sources, held) if not found]
        who = f"{few(lacking, 3)} have none" if lacking else "each has others"
        raise FileProblem(f"no finished class maps that all {len(sources)} networks under {args.load_net} share "
                          f"({who}): python save_preds.py --load_net {args.load_net}")
    planes = {n: {k: v for k, v in held[0][n][1].items() if k != "save_probs"} for n in names}
    full = [planes[n] for n in names if "save_probs" in held[0][n][1]]  # with probabilities the same planes say more
    names = {n for n in names if "save_probs" in held[0][n][1] or planes[n] not in full}
    if len(names) > 1 and not args.as_published:  # not asked for, they come second
        names = {n for n in names if not held[0][n][1]["as_published"]} or names
    if len(names) > 1:
        kinds = [held[0][name][1] for name in sorted(names)]
        keys = dict.fromkeys((*CHOSEN, *(k for s in kinds for k in s)))
        values = {k: sorted({str(s.get(k, 0)) for s in kinds}) for k in keys}
        varying = [k for k in values if len(values[k]) > 1]
        choices = ", ".join(f"--{k} {'/'.join(values[k])}" for k in varying if k in CHOSEN)
        first = held[0][min(names)][0]
        raise UsageError(f"there are {len(names)} sets of class maps: " + (
            f"choose by {choices}" if choices else f"they differ in {' and '.join(varying)}, which no flag chooses; "
            f"move away what is not wanted, such as {first}"))
    name = names.pop()
    return [(s, found[name][0]) for s, found in zip(sources, held)], held[0][name][1]


def read_together(files):
    """The arrays of each of files = [(source, file)], as `common` gives them. ContentError where they lie on different
    planes or grids, or have different classes."""
    import numpy as np

    held = [read_arrays(file, NEEDS) for _, file in files]
    first = held[0]
    for (source, file), other in zip(files, held):
        if not np.array_equal(other["triplets"], first["triplets"]):
            raise ContentError(f"{file} lies on other planes than the rest: run save_preds.py --force")
        if list(other["classes"]) != list(first["classes"]) or other["labels"].shape != first["labels"].shape:
            raise ContentError(f"{file} has other classes or another resolution than the rest ({source.name})")
    return held


def inside(anchors, extents, resolution):
    """(P, S), bool: which grid points lie in the triangle of the anchors (P, 3, 2), its edges included. The grid is
    that of landscape.plane: R = resolution values along each side of an extent (xmin, xmax, ymin, ymax), x slow."""
    import numpy as np

    out = np.empty((len(anchors), resolution**2), dtype=bool)
    for p, (corners, (xmin, xmax, ymin, ymax)) in enumerate(zip(anchors, extents)):
        x, y = np.meshgrid(np.linspace(xmin, xmax, resolution), np.linspace(ymin, ymax, resolution), indexing="ij")
        (ax, ay), sides = corners[0], corners[1:] - corners[0]
        area = sides[0, 0] * sides[1, 1] - sides[0, 1] * sides[1, 0]
        b = ((x - ax) * sides[1, 1] - (y - ay) * sides[1, 0]) / area
        c = (sides[0, 0] * (y - ay) - sides[0, 1] * (x - ax)) / area
        out[p] = (np.minimum(np.minimum(b, c), 1 - b - c) >= -1e-9).ravel()
    return out


def refined(counts, points):
    """One line on maps of so many points made by landscape.refine, counts (P, 3): what share was evaluated, and how
    many may be wrong, by Clopper and Pearson's (1934) one-sided bound on the share of a random sample."""
    from scipy.special import betaincinv

    evaluated, sampled, differ = (sum(int(row[k]) for row in counts) for k in range(3))
    total = points * len(counts)
    most = betaincinv(differ + 1, sampled - differ, 0.95) if differ < sampled else 1.0
    return (f"refined: {evaluated / total:.1%} of {total} points evaluated; of {sampled} drawn from the rest {differ} "
            f"differ: at most {most * (1 - evaluated / total):.2%} of all points (95% confidence)")


def read_dbviz(file):
    """Class maps (P, S) of one file of dbViz. ContentError where it holds anything else."""
    import numpy as np
    import torch

    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as e:
        raise FileProblem(f"{file}: {(e.strerror or str(e)).lower()}") from None
    except Exception as e:  # torch.load raises many kinds for a damaged file, and one for pickled code
        raise ContentError(f"{file} is damaged, or holds more than tensors ({type(e).__name__}); dbViz's save_preds.py "
                           "writes it again") from None
    whole = isinstance(held, list) and held and all(
        isinstance(t, torch.Tensor) and t.ndim == 1 and len(t) and not t.is_floating_point() and not t.is_complex()
        for t in held)
    if not whole:
        raise ContentError(f"{file} is no file of class maps: a list of one-dimensional tensors of classes is expected")
    if len({len(t) for t in held}) > 1 or round(len(held[0]) ** 0.5) ** 2 != len(held[0]):
        sizes = few(sorted({str(len(t)) for t in held}), 3)
        raise ContentError(f"{file}: its planes hold {sizes} points, not R*R each")
    labels = torch.stack([t.long() for t in held]).numpy()
    if labels.min() < 0 or labels.max() > 65535:
        raise ContentError(f"{file} holds a class {labels.min() if labels.min() < 0 else labels.max()}")
    return labels.astype(np.uint8 if labels.max() < 256 else np.uint16)
