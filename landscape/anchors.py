"""The three points that span a plane: images of a data set, or what is made of them, or noise.

A Draw says where anchors come from; anchors(draw, r) is a function of it and of the number r of the plane alone, the
same for every network. Points lie in the plane's space: (3, H, W, C), normalised with the data set's own statistics.
Scripts describe a Draw by plain settings (which name the files of class maps) and open it with open_draw.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from landscape import data as datasets
from landscape import evaluate, objectives, plane
from landscape.errors import ContentError, UsageError
from landscape.maps import LABELLED
from landscape.runs import hash8, write_json
from landscape.seeding import numpy_stream, stream


@dataclass(frozen=True)
class Draw:
    """images: landscape.data.Images. space: mean and std of the planes. kind: a name in KINDS. ids: three given ones
    for every plane, or P triplets (P, 3), or None to draw them. extra: what the kind needs besides (foreign images,
    an attack)."""

    images: object
    space: dict
    kind: str
    seed: int
    ids: object = None
    as_published: bool = False
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Anchors:
    """points (3, H, W, C) float32; ids (3,) with -1 for what is no image of the set; labels (3,) with -1 for none."""

    points: torch.Tensor
    ids: tuple
    labels: tuple


@dataclass(frozen=True)
class Kind:
    """choose(draw, generator) -> ids of the images that are used, as many as the kind needs; make(draw, points, r) ->
    the three anchors from their normalised points (n, H, W, C)."""

    choose: Callable
    make: Callable
    help: str


def anchors(draw, r=0):
    """The Anchors of plane r. Raises UsageError where the data set cannot give them."""
    if draw.kind not in KINDS:
        raise UsageError(f"unknown anchors {draw.kind!r}; known: {', '.join(KINDS)}")
    kind, images = KINDS[draw.kind], draw.images
    generator = stream(draw.seed, "triplet", r)
    if draw.ids is not None:
        given = draw.ids[r] if np.ndim(draw.ids) == 2 else draw.ids
        ids = [int(i) for i in given if i >= 0]
    elif draw.as_published and draw.kind == "distinct":
        ids = list(plane.published_triplet(images.true_labels, draw.seed + r))
    else:
        try:
            ids = list(kind.choose(draw, generator))
        except plane.PlaneError as e:
            raise UsageError(f"--anchors {draw.kind}: {e}") from None
    if ids and max(ids) >= len(images):
        raise UsageError(f"anchor {max(ids)} does not exist: ids go from 0 to {len(images) - 1}")
    points = normalised(images, ids, draw.space)
    labels = images.true_labels[torch.tensor(ids, dtype=torch.long, device=images.true_labels.device)].tolist()
    return kind.make(draw, points, ids, labels, r)


def normalised(images, ids, space):
    """(n, H, W, C) float32 on the CPU: images in the plane's space, never augmented."""
    mean, std = torch.tensor(space["mean"]), torch.tensor(space["std"])
    if not ids:
        return torch.empty(0, space["image_size"], space["image_size"], space["channels"])
    return (images.pixels(torch.tensor(ids)).permute(0, 2, 3, 1).cpu() - mean) / std


def pictures(points, space):
    """uint8 (3, H, W, C): the anchors as one can look at them, clipped to what a pixel can be."""
    mean, std = torch.tensor(space["mean"]), torch.tensor(space["std"])
    return ((points * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def through(draw, r=0):
    """(the plane through anchors r, the Anchors). Raises UsageError where they span none."""
    held = anchors(draw, r)
    try:
        return plane.through(*held.points.contiguous()), held
    except plane.PlaneError as e:
        raise UsageError(f"plane {r} ({draw.kind}, {', '.join(map(str, held.ids))}): {e}") from None


def open_draw(settings, args, data, network=None, ids=None):
    """The Draw that settings describe: dataset, split, anchors, plane_seed, as_published, and what the kind needs.

    data: landscape.data.Data at its own size. network: a function returning the landscape.runs.Trained that PGD
    attacks. ids: three given ids, or triplets (P, 3). Raises UsageError and FileProblem.
    """
    space = evaluate.image_space(data.entry, settings["as_published"])
    images, extra, kind = data.test if settings["split"] == "test" else data.full, {}, settings["anchors"]
    if kind in LABELLED:
        images = given_labels(settings, args, data)
    if kind == "foreign":
        extra["foreign"] = datasets.load(args.foreign_set, args.data_root, val_size=0, channels=data.entry.channels,
                                         image_size=data.entry.image_size).full
    if kind.startswith("pgd"):
        extra |= {"classes": len(data.entry.classes), "attack": attack(network(), space, args.attack_steps)}
    return Draw(images, space, kind, settings["plane_seed"], ids, settings["as_published"], extra)


def given_labels(settings, args, data):
    """The unsplit training set with the labels that the networks were given; -1 where they were given none."""
    labels = settings.get("given_labels") or {}
    if settings["split"] != "train" or not (labels.get("noise_rate") or labels.get("noise_file")):
        raise UsageError(f"--anchors {settings['anchors']} needs --split train and networks trained with --noise_rate "
                         "or --noise_file: only there are labels wrong")
    noisy = datasets.load(
        settings["dataset"], args.data_root, **datasets.given_by(labels)).train
    given = torch.full_like(data.full.true_labels, -1)
    given[noisy.ids] = noisy.labels
    return data.full.relabel(given)


def attack(trained, space, steps):
    """A function of points (n, H, W, C) in space, labels, a generator and targeted: PGD within 8/255, steps of 2/255,
    against a landscape.runs.Trained, which sees the points its own way."""
    network = evaluate.Adapted(trained.network, space, trained.preprocessing).eval()
    bounds = objectives.pixel_bounds(space)

    def found(points, labels, generator, targeted):
        x = points.permute(0, 3, 1, 2)
        adv = objectives.pgd(network, x, labels, bounds, 8 / 255, 2 / 255, steps, generator, targeted)
        return adv.permute(0, 2, 3, 1)
    return found


# ---- choosing images -----------------------------------------------------------------------------------------------


def distinct(draw, generator):
    return plane.random_triplet(draw.images.true_labels, generator)


def several(count, allowed=None):
    """count different images, among those whose row allowed(draw) marks."""
    def choose(draw, generator):
        mask = torch.ones(len(draw.images), dtype=torch.bool) if allowed is None else allowed(draw)
        rows = mask.nonzero()[:, 0]
        if len(rows) < count:
            raise UsageError(f"--anchors {draw.kind}: {len(rows)} images fit, {count} are needed")
        return rows[torch.randperm(len(rows), generator=generator)[:count]].tolist()
    return choose


def same_class(draw, generator):
    """Three images of one class, which is drawn first."""
    labels = draw.images.true_labels.cpu()
    classes = [c for c in labels.unique().tolist() if (labels == c).sum() >= 3]
    if not classes:
        raise UsageError("--anchors same_class: no class has three images")
    one = classes[torch.randint(len(classes), (1,), generator=generator).item()]
    return several(3, lambda d: d.images.true_labels.cpu() == one)(draw, generator)


def correctly(draw):
    return (draw.images.labels == draw.images.true_labels).cpu()


def wrongly(draw):
    return ~correctly(draw) & (draw.images.labels >= 0).cpu()


def one_mislabelled(draw, generator):
    """Two images of a class with their own label and one of that class with another; the class is drawn first."""
    true, right, wrong = draw.images.true_labels.cpu(), correctly(draw), wrongly(draw)
    classes = [c for c in true.unique().tolist()
               if (right & (true == c)).sum() >= 2 and (wrong & (true == c)).any()]
    if not classes:
        raise UsageError("--anchors one_mislabelled: no class has two images labelled right and one labelled wrong")
    one = classes[torch.randint(len(classes), (1,), generator=generator).item()]
    return (several(2, lambda d: right & (true == one))(draw, generator)
            + several(1, lambda d: wrong & (true == one))(draw, generator))


# ---- making anchors of them ----------------------------------------------------------------------------------------


def plain(draw, points, ids, labels, r):
    if len(ids) != 3:
        raise UsageError(f"--anchors {draw.kind} takes three ids, {len(ids)} were given")
    return Anchors(points, tuple(ids), tuple(labels))


def shape_of(draw):
    size = draw.space["image_size"]
    return size, size, draw.space["channels"]


def uniform(draw, points, ids, labels, r):
    """Three images of independent uniform pixels, in steps of 1/255."""
    rng = numpy_stream(draw.seed, "uniform", r)
    pixels = torch.from_numpy(rng.integers(0, 256, (3, *shape_of(draw))) / 255).float()
    mean, std = torch.tensor(draw.space["mean"]), torch.tensor(draw.space["std"])
    return Anchors((pixels - mean) / std, (-1, -1, -1), (-1, -1, -1))


def noise(draw, points, ids, labels, r):
    """dbViz's --imgs -1: (U(0, 1) - 1/2) / (1/4) in normalised units."""
    made = (torch.rand((3, *shape_of(draw)), generator=stream(draw.seed, "noise", r)) - 0.5) / 0.25
    return Anchors(made, (-1, -1, -1), (-1, -1, -1))


def shuffled(count):
    """The last `count` anchors with their pixels permuted, one permutation an image, shared by its channels."""
    def make(draw, points, ids, labels, r):
        out = plain(draw, points, ids, labels, r)
        made = out.points.clone()
        for n in range(3 - count, 3):
            order = torch.randperm(made[n].shape[0] * made[n].shape[1], generator=stream(draw.seed, "shuffle", r, n))
            made[n] = made[n].flatten(0, 1)[order].reshape(made[n].shape)
        return Anchors(made, out.ids, tuple(-1 if n >= 3 - count else v for n, v in enumerate(out.labels)))
    return make


def one_image(draw, points, ids, labels, r, others):
    if len(ids) != 1:
        raise UsageError(f"--anchors {draw.kind} takes one id, {len(ids)} were given")
    return Anchors(torch.stack([points[0], *others]), (ids[0], -1, -1), (labels[0], -1, -1))


def gaussian(draw, points, ids, labels, r):
    """x, x + clip(N(0, 0.5^2), 1) and x + clip(N(0, 0.25^2), 0.5), in normalised units (dbViz)."""
    g = stream(draw.seed, "gaussian", r)
    others = [points[0] + (torch.randn(points[0].shape, generator=g) * s).clamp(-2 * s, 2 * s) for s in (0.5, 0.25)]
    return one_image(draw, points, ids, labels, r, others)


def rotated(draw, points, ids, labels, r):
    """x and x turned by 90 and 180 degrees."""
    return one_image(draw, points, ids, labels, r, [points[0].rot90(k, (0, 1)) for k in (1, 2)])


def one_pixel(draw, points, ids, labels, r):
    """x and two zero images (in normalised units) of which one entry, drawn, is 1 (dbViz's --imgs -10)."""
    size = points[0].numel()
    where = torch.randperm(size, generator=stream(draw.seed, "one_pixel", r))[:2]
    others = torch.zeros(2, size)
    others[[0, 1], where] = 1
    return one_image(draw, points, ids, labels, r, others.view(2, *points[0].shape).unbind())


def foreign(draw, points, ids, labels, r):
    """Two images of the set and one of another set (dbViz's --imgs -100 with MNIST): extra["foreign"] holds its
    images in this set's size and channels."""
    others = draw.extra["foreign"]
    row = torch.randint(len(others), (1,), generator=stream(draw.seed, "foreign", r)).item()
    theirs = normalised(others, [row], draw.space)
    return Anchors(torch.cat([points[:2], theirs]), (*ids[:2], -1), (*labels[:2], -1))


def attacked(draw, points, ids, labels, r):
    """Three images, each made adversarial (dbViz's --adv): extra["attack"] is a function of (points (n, H, W, C),
    labels (n,), generator, targeted) that gives the adversarial points."""
    out = plain(draw, points, ids, labels, r)
    made = draw.extra["attack"](points, torch.tensor(labels), stream(draw.seed, "attack", r), False)
    return Anchors(made, out.ids, out.labels)


def targeted(draw, points, ids, labels, r):
    """x and two copies of it, attacked towards the next class and the one after it (dbViz's --adv --targeted)."""
    aims = torch.tensor([(labels[0] + k) % draw.extra["classes"] for k in (1, 2)])
    made = draw.extra["attack"](points[[0, 0]], aims, stream(draw.seed, "attack", r), True)
    return one_image(draw, points, ids, labels, r, made.unbind())


KINDS = {
    "distinct": Kind(distinct, plain, "three images of different classes"),
    "random": Kind(several(3), plain, "three images, whatever their classes"),
    "same_class": Kind(same_class, plain, "three images of one class"),
    "correct": Kind(several(3, correctly), plain, "three images whose given label is the true one"),
    "incorrect": Kind(several(3, wrongly), plain, "three images whose given label is wrong"),
    "one_mislabelled": Kind(one_mislabelled, plain, "two images of one class labelled right, one of it labelled wrong"),
    "uniform": Kind(lambda d, g: [], uniform, "three images of uniform noise pixels"),
    "noise": Kind(lambda d, g: [], noise, "three images of noise about the middle grey (dbViz's -1)"),
    "shuffled": Kind(distinct, shuffled(3), "three images with permuted pixels"),
    "two_shuffled": Kind(distinct, shuffled(2), "one image and two with permuted pixels"),
    "gaussian": Kind(several(1), gaussian, "one image and two noisy copies"),
    "rotated": Kind(several(1), rotated, "one image, and turned by 90 and 180 degrees"),
    "one_pixel": Kind(several(1), one_pixel, "one image and two that are zero but for one entry (dbViz's -10)"),
    "foreign": Kind(several(2), foreign, "two images and one of --foreign_set (dbViz's -100)"),
    "pgd": Kind(distinct, attacked, "three images, each made adversarial against --attack_net"),
    "pgd_targeted": Kind(several(1), targeted, "one image and two copies attacked towards the next two classes"),
}


# ---- files of triplets ---------------------------------------------------------------------------------------------


def fingerprint(images):
    """Eight hex digits of a data set's labels and size: what the ids of a file of triplets refer to."""
    return hash8([len(images), images.true_labels.cpu().tolist()])


def save_triplets(path, draw, planes, dataset, split):
    """Write the ids of `planes` planes with what determines their anchors, as JSON."""
    held = [anchors(draw, r) for r in range(planes)]
    write_json(path, {"dataset": dataset, "split": split, "anchors": draw.kind, "plane_seed": draw.seed,
                      "as_published": draw.as_published, "data": fingerprint(draw.images),
                      "triplets": [list(a.ids) for a in held], "labels": [list(a.labels) for a in held]})


def check_triplets(held, images, path):
    """Refuse a file of triplets (read by landscape.maps.read_triplets) whose ids refer to another set than images."""
    if held["data"] != fingerprint(images):
        raise ContentError(f"triplets {path} are of another data set than {held['dataset']} {held['split']} here")
