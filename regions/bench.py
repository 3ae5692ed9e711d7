"""The rows of scripts/benchmark.py on planes, class maps and their agreement.

The twins work as dbViz does: a plane is a data set whose DataLoader, with 2 workers, computes one point at a time; the
network's answers are collected row by row; a model's class maps are a list of int64 tensors in a file that is read
again for each ordered pair of models.
"""

import itertools
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch.utils.data import DataLoader, Dataset

from landscape import cli, evaluate, metrics, plane, refine, runs, seeding, train
from landscape import data as datasets
from regions import images
from regions import margins as margin_module

POINTS = 1e-5  # largest difference of two computations of a plane's points
TIE = 1e-4  # two best logits closer than this may change places by the rounding of float32 alone


# ---- the plain twins -----------------------------------------------------------------------------------------------

class PlanePoints(Dataset):
    """The points of a plane, images (C, H, W), computed one at a time when they are asked for."""

    def __init__(self, flat, coords):
        self.base, self.u, self.w = (v.view(flat.shape).permute(2, 0, 1).contiguous()
                                     for v in (flat.origin, flat.u, flat.w))
        self.first, self.second = coords[:, 0].contiguous(), coords[:, 1].contiguous()

    def __len__(self):
        return len(self.first)

    def __getitem__(self, i):
        return self.base + self.first[i] * self.u + self.second[i] * self.w


def plain_loader(flat, coords):
    return DataLoader(PlanePoints(flat, coords), batch_size=256, shuffle=False, num_workers=2)


@torch.no_grad()
def plain_logits(network, flat, coords):
    rows = []
    for x in plain_loader(flat, coords):
        rows.extend(network(x))
    return torch.stack(rows)


def plain_labels(network, flat, coords):
    return plain_logits(network, flat, coords).softmax(1).argmax(1)


def plain_agreement(first, second):
    """Share of equal labels in two files of class maps."""
    a, b = torch.cat(torch.load(first, weights_only=True)), torch.cat(torch.load(second, weights_only=True))
    return (a == b).float().mean().item()


# ---- what both sides start from ------------------------------------------------------------------------------------

def seeded_planes(data, count, resolution):
    """[(plane, grid coordinates)] through seeded test images of different classes, in the data set's space."""
    space, found = evaluate.image_space(data.entry), []
    for r in range(count):
        ids = plane.random_triplet(data.test.true_labels, seeding.stream(1, "triplet", r))
        flat = evaluate.image_plane(data.test, ids, space)
        found.append((flat, plane.grid(flat, resolution)))
    return found


def plain_fragments(class_map, classes):
    """Connected regions (8 neighbours) of a class map (R, R), class by class, as dbViz counts them."""
    structure = np.ones((3, 3))
    return sum(ndimage.label(class_map == c, structure)[1] for c in range(classes))


def trained_network(bench, data, **changes):
    """A landscape.runs.Trained after 200 steps, since the maps of an untrained one are ties everywhere. changes: its
    settings, net among them."""
    count = bench.size(25_600, 256)
    root = {"data_root": bench.data_root} if bench.data_root else {}
    args = cli.library(**changes, dataset=bench.dataset, train_size=count, val_size=0, epochs=1,
                       scheduler="cosine", augment="crop,flip", eval_every=0, device="cpu",
                       runs=bench.cache / "runs", **root)
    run = runs.start("benchmark", args)
    if not run.finished:
        network, described = train.make_network(args, data)
        none = data.test.subset(torch.arange(0))
        small = replace(data, train=data.full.subset(torch.arange(count)), val=none, test=none)
        run.finish(train.fit(network, small, args, run, described))
    run.close()
    return runs.load(run.path)


def seen_planes(bench, data, count, resolution, **changes):
    """(a trained network, [(plane as it sees it, grid coordinates)])"""
    trained, space = trained_network(bench, data, **changes), evaluate.image_space(data.entry)
    return trained.network.eval(), [(evaluate.seen_by(flat, space, trained.preprocessing), coords)
                                    for flat, coords in seeded_planes(data, count, resolution)]


# ---- rows ----------------------------------------------------------------------------------------------------------

def points(bench):
    data = datasets.load(bench.dataset, bench.data_root, val_size=0)
    planes = seeded_planes(data, bench.size(8, 1), bench.size(50, 6))

    def each_batch():
        for flat, coords in planes:
            buffer = torch.empty(128, *flat.shape)
            for part in coords.split(128):
                yield plane.points(flat, part, out=buffer)

    def ours():
        return sum(len(x) for x in each_batch())

    def twin():
        return sum(len(x) for flat, coords in planes for x in plain_loader(flat, coords))

    def check():
        fast = torch.cat([x.clone() for x in each_batch()]).permute(0, 3, 1, 2)
        slow = torch.cat([x for flat, coords in planes for x in plain_loader(flat, coords)])
        worst = (fast - slow).abs().max().item()
        return worst <= POINTS, f"{len(slow)} points differ by {worst:.1e} at most (≤ {POINTS:.0e})"

    return bench.ratio(f"the points of {len(planes)} planes: in batches / one at a time, DataLoader with 2 workers",
                       20, ours, twin, check)


def class_map(bench):
    data = datasets.load(bench.dataset, bench.data_root, val_size=0)
    network, planes = seen_planes(bench, data, bench.size(4, 1), bench.size(50, 8), net="resnet20")
    precision = cli.resolved_precision("auto", "cpu")
    mapper = evaluate.ClassMapper(network, precision)
    turn_ours, turn_twin = itertools.cycle(planes), itertools.cycle(planes)

    def ours():
        return mapper(*next(turn_ours))

    def twin():
        return plain_labels(network, *next(turn_twin))

    def check():
        total, wrong, ties, twice, changed = 0, 0, 0, 0, 0
        for flat, coords in planes:
            slow = plain_logits(network, flat, coords)
            said = mapper(flat, coords)
            fast = mapper.forward(mapper.fast or network, flat, coords).argmax(1)
            best = slow.topk(2, dim=1).values
            differ, tie = said["labels"] != slow.argmax(1), best[:, 0] - best[:, 1] < TIE
            total, twice = total + len(coords), twice + said["rechecked"]
            wrong, ties = wrong + int((differ & ~tie).sum()), ties + int((differ & tie).sum())
            changed += int((fast != slow.argmax(1)).sum())
        return wrong == 0, (f"{total - wrong - ties} of {total} labels on {len(planes)} planes equal fp32"
                            + f", {ties} more are ties below {TIE:g}" * bool(ties)
                            + f"; {twice / total:.1%} labelled twice, without which {changed} would differ")

    return bench.ratio(f"a plane of {len(planes[0][1])} points through resnet20 to labels: {precision} and recheck / "
                       f"dbViz's path; {len(planes)} planes in turn", 3.5, ours, twin, check)


def affine_map(bench):
    data = datasets.load(bench.dataset, bench.data_root, val_size=0)
    network, planes = seen_planes(bench, data, bench.size(4, 1), bench.size(50, 8), net="fcnet", lr=0.05)
    mapper = evaluate.ClassMapper(network, "fp32")

    def ours():
        return torch.cat([mapper(*one)["labels"] for one in planes])

    def twin():
        with torch.no_grad():
            return torch.cat([mapper.forward(network, *one).argmax(1) for one in planes])

    def check():
        fast, slow = ours(), twin()
        equal = int((fast == slow).sum())
        return equal == len(slow), f"{equal} of {len(slow)} labels on {len(planes)} planes equal"

    return bench.ratio(f"{len(planes)} planes of {len(planes[0][1])} points through fcnet to labels, fp32: its first "
                       "layer applied to three points and recheck / to every point, in the same batches",
                       3, ours, twin, check)


def refinement(bench):
    data, side, stride, share = datasets.load(bench.dataset, bench.data_root, val_size=0), bench.size(500, 20), 16, 0.02
    network, planes = seen_planes(bench, data, 10, side, net="resnet20")
    precision = cli.resolved_precision("auto", "cpu")
    mapper = evaluate.ClassMapper(network, precision)
    most = bench.size(15, 400)  # fragments

    def coarse(flat, coords):
        kept = torch.arange(0, side, max(1, side // 50))
        return mapper(flat, coords.view(side, side, 2)[kept][:, kept].reshape(-1, 2))["labels"].view(len(kept), -1)

    flat, coords = next(one for one in planes if metrics.fragments(coarse(*one).numpy()) <= most)
    some = coords[::round(1 / share)]

    def ours():
        return refine.class_map(mapper, flat, coords, stride)

    def check():
        fast, slow = ours(), mapper(flat, coords)["labels"]
        equal, (evaluated, sampled, differ) = (fast["labels"] == slow).float().mean().item(), fast["refined"]
        counts = [metrics.fragments(labels.view(side, side).numpy()) for labels in (fast["labels"], slow)]
        return equal >= 0.999, (f"{equal:.3%} of {len(slow)} labels equal the full grid's, fragments {counts[0]} and "
                                f"{counts[1]}; {evaluated} points evaluated; {differ} of {sampled} in its own sample "
                                "differ")

    return bench.ratio(f"a plane of {len(coords)} points through resnet20 to labels, {precision} and recheck: "
                       f"--refine {stride} / every point (timed on {share:.0%} of the points and scaled up)",
                       6, ours, lambda: mapper(flat, some), check, share=len(some) / len(coords))


def fragments(bench):
    planes, classes = bench.size(1000, 10), 10
    (maps,) = made_up_maps(1, planes, bench.size(50, 10))
    maps = maps.reshape(planes, bench.size(50, 10), -1)

    def ours():
        return metrics.fragmentation(maps)["fragments"]

    def twin():
        return np.array([plain_fragments(one, classes) for one in maps])

    def check():
        fast, slow = ours(), twin()
        return np.array_equal(fast, slow), f"{slow.sum()} fragments on {planes} planes, equal on each"

    return bench.ratio(f"fragmentation of {planes} planes, the other four measures included: all planes in one graph / "
                       "a loop over planes and classes with scipy.ndimage.label", 3, ours, twin, check)


def agreement(bench):
    models, count, pairs = bench.size(30, 4), bench.size(500, 20), bench.size(15, 2)
    folder = bench.cache / "class_maps"
    folder.mkdir(parents=True, exist_ok=True)
    for i, maps in enumerate(made_up_maps(models, count, bench.size(50, 10))):
        runs.write_arrays(folder / f"{i}.npz", labels=maps)
        torch.save(list(torch.from_numpy(maps).long()), folder / f"{i}.pth")
    ordered = [(i, j) for i in range(models) for j in range(models) if i != j]
    spread_out = ordered[:: len(ordered) // pairs][:pairs]

    def ours():
        maps = np.stack([runs.read_arrays(folder / f"{i}.npz")["labels"] for i in range(models)])
        return metrics.agreement_per_plane(maps).mean(axis=2)

    def twin():
        return [plain_agreement(folder / f"{i}.pth", folder / f"{j}.pth") for i, j in spread_out]

    def check():
        matrix = ours()
        worst = max(abs(matrix[pair] - value) for pair, value in zip(spread_out, twin()))
        return worst <= 1e-6, f"{pairs} of {len(ordered)} scores differ by {worst:.0e} at most (≤ 1e-6)"

    row = bench.ratio(f"agreement of {models} models on {count} planes, reading included: uint8 maps / int64 maps read "
                      f"for each ordered pair (timed on {pairs} of {len(ordered)} pairs and scaled up)",
                      200, ours, twin, check, share=pairs / len(ordered))
    for file in folder.glob("*"):
        file.unlink()
    return row


def plain_margin(network, point, partner, grid):
    """The paper's margin of a point (C, H, W) towards a partner: the last of 200 distances before the first change, or
    inf."""
    step = (partner - point) / (partner - point).norm()
    with torch.no_grad():
        labels = network(torch.stack([point + float(t) * step for t in grid])).argmax(1)
    changes = (labels[1:] != labels[:-1]).nonzero()
    return float(grid[changes[0, 0]]) if len(changes) else np.inf


def margins(bench):
    data, per_point = datasets.load(bench.dataset, bench.data_root, val_size=0), 10
    trained = trained_network(bench, data, net="resnet20")
    flags = {"points": bench.size(40, 3), "directions": per_point, "t_max": 100.0, "tolerance": 0.01, "step": 0.5,
             "growth": 1.2}
    held = {"base": "all", "partners": "all", "towards": "image", "split": "test", "dataset": bench.dataset,
            "partner_split": "same", "plane_seed": 1, "as_published": False, "given_labels": None, **flags}
    scene = images.Scene(held, bench.data_root, torch.device("cpu"))
    network = evaluate.Adapted(trained.network.eval(), scene.space, trained.preprocessing)
    few, grid = bench.size(2, 1), margin_module.PUBLISHED

    def ours():
        return margin_module.measure(scene, network, evaluate.batch_size("cpu"))["margins"]

    def twin():
        return np.array([[plain_margin(network, scene.points([n])[0], partner, grid) for partner in scene.partners(n)]
                         for n in range(few)])

    def check():
        fast, slow, edge, wrong, apart = ours()[:few], twin(), flags["tolerance"], 0, 0
        fast, slow = fast.ravel(), np.where(slow >= flags["t_max"], np.inf, slow).ravel()
        after = np.append(grid, np.inf)[np.searchsorted(grid, slow, "right").clip(max=len(grid))]
        for pair in np.flatnonzero((fast < slow - edge) | (fast > after + edge)):
            n, k = divmod(int(pair), per_point)
            apart += 1
            wrong += fast[pair] < np.inf and not crosses(network, scene, n, k, float(fast[pair]), edge)
        return wrong == 0 and apart <= max(1, 0.1 * len(fast)), (
            f"{len(fast) - apart} of {len(fast)} margins lie within the scan's step, to {edge:g} instead of 0.01 – 20; "
            f"{apart} are of another crossing on a direction that has several")

    return bench.ratio(f"margins of {len(scene.rows)} images x {per_point} directions through resnet20: bracketing and "
                       f"bisection / the paper's scan of 200 steps (timed on {few} and scaled up)",
                       6, ours, twin, check, share=few / len(scene.rows))


def crosses(network, scene, n, k, at, width):
    """Does the prediction change within this width about a distance along a direction?"""
    point = scene.points([n])[0]
    with torch.no_grad():
        step = scene.directions(n, point)[k]
        labels = network(torch.stack([point + (at - width) * step, point + (at + width) * step])).argmax(1)
    return bool(labels[0] != labels[1])


def made_up_maps(models, planes, resolution):
    """Class maps uint8 (planes, resolution**2) of each model: smooth regions of 10 classes, partly shared."""
    shared = torch.randn(planes, 10, 5, 5, generator=seeding.stream(0, "maps"))
    for i in range(models):
        own = torch.randn(planes, 10, 5, 5, generator=seeding.stream(0, "maps", i))
        scores = F.interpolate(shared + 0.5 * own, (resolution, resolution), mode="bilinear")
        yield scores.argmax(1).flatten(1).to(torch.uint8).numpy()


ROWS = {"points": points, "plane": class_map, "plane-fcnet": affine_map, "refine": refinement, "agreement": agreement,
        "fragments": fragments, "margins": margins}
