"""What lies between trained networks: loss, accuracy and agreement on straight lines, on a plane, on a radial slice.

    python -m ensembles.paths --members runs/ensembles --path line,plane,radial

line: between each two members (or --pairs of them), with the barrier of each pair. plane: through the first three
members, on a grid with equal distances on both axes. radial: r ((1 - u) A + u B) between the first two, the triangle
over their straight line with its apex at the origin of weight space. connector: along a path of low loss between two
members, which python -m subspaces.train --family chain --ends RUN,RUN has learned and --connector names; beside it the
straight line, and the radial slice of the path: r times each of its points. Everywhere the cross-entropy, the accuracy,
and the share of images with the same answer as each of the networks that span the path. BatchNorm's statistics are
re-estimated at every point but the networks themselves. Fort et al. 2019 (arXiv 1912.02757), section 4; barriers as in
Entezari et al. 2022 (arXiv 2110.06296).

N images, C classes, K members, V vertices (networks that span a path), P points, T points of a line, R of a side or of
the radii, M networks that answers are compared with.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ensembles.evaluate import Scene
from ensembles.similarity import interval
from landscape import cli, metrics, predictions, results, runs
from landscape.errors import ContentError, Interrupted, UsageError
from landscape.seeding import numpy_stream

KINDS = {"line": 2, "plane": 3, "radial": 2, "connector": 2}  # and how many members it takes
BLOCK = 256e6  # bytes of weights and logits that are held at once
MOST = 32  # points that share a pass over the images at most: more gain nothing, and a stop waits for their end
# Of a pair, beside what is measured along its line: what is printed, and what an interval is cut at.
OF_PAIRS = {"loss_barrier": math.inf, "error_barrier": 1, "agreement_of_ends": 1, "distance": math.inf}
CURVES = ("loss", "accuracy", "agreement_first", "agreement_second")


def make_parser():
    parser = cli.Parser("python -m ensembles.paths", __doc__)
    predictions.add_networks(parser, cli, "runs/ensembles")
    g = parser.group("paths", named=True)
    g.add_argument("--path", default="line,plane,radial", metavar="KIND,…", help=f"of {', '.join(KINDS)}")
    g.add_argument("--connector", default="", metavar="RUN",
                   help="a chain or curve that subspaces.train --ends has learned between two of the members")
    g.add_argument("--split", default="test", choices=("test", "val", "train"),
                   help="the images; val and train where all members split the data in one way")
    g.add_argument("--images", type=cli.natural, default=2000, metavar="N", help="of the split, drawn; 0: all")
    g.add_argument("--bn_images", type=cli.positive, default=2048, metavar="N",
                   help="training images that BatchNorm's statistics are estimated on, at each point")
    g.add_argument("--sample_seed", type=int, default=0, help="of the images and the pairs that are drawn")
    g = parser.group("lines", named=True)
    g.add_argument("--pairs", type=cli.natural, default=0, metavar="N", help="of members, drawn; 0: all")
    g.add_argument("--points", type=cli.side, default=21, metavar="T",
                   help="of a line or connector, both ends included; on a radial slice, of each arc")
    g.add_argument("--beyond", type=cli.number(0, 10), default=0.0, metavar="SHARE",
                   help="go on beyond both ends by this share of the line")
    g = parser.group("plane", named=True)
    g.add_argument("--resolution", type=cli.side, default=21, metavar="R", help="points a side")
    g.add_argument("--margin", type=cli.number(0, 10), default=0.25, help="around the solutions, share of their box")
    g = parser.group("radial slice", named=True)
    g.add_argument("--r_min", type=cli.number(0), default=0.2, help="least scale of the weights")
    g.add_argument("--r_max", type=cli.number(above=0), default=1.6, help="largest scale")
    g.add_argument("--radii", type=cli.side, default=15, metavar="R", help="scales, both included")
    g = parser.group("statistics", named=True)
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals")
    cli.add_machine(parser)
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = make_parser().settings(argv)
    if args.smoke:
        args.images, args.bn_images = min(args.images or 100, 100), min(args.bn_images, 64)
        args.radii = min(args.radii, 4)
    args = cli.resolve(args)
    kinds = chosen(args)
    networks = predictions.find(args)
    for kind in kinds:
        if len(networks) < KINDS[kind]:
            raise UsageError(f"--path {kind} takes {KINDS[kind]} networks, and {' '.join(args.members)} holds "
                             f"{len(networks)}")
    pairs = pairs_of(args, len(networks))
    connector = open_connector(args, networks) if "connector" in kinds else None
    if args.dry_run:
        if "line" in kinds:
            for i, j in pairs:
                print(f"line: {networks[i].path} to {networks[j].path}, {len(line_ts(args))} points")
        for kind in [k for k in kinds if k in ("plane", "radial")]:
            print(f"{kind}: {', '.join(str(n.path) for n in networks[:KINDS[kind]])}")
        if connector:
            print(f"connector: {connector.words} from {' to '.join(str(networks[k].path) for k in connector.members)}")
        return 0
    again, args.force = args.force, True  # what is kept is kept with the networks; these may be others than last time
    with runs.start("ensembles", args, "paths") as run:
        args.force = again
        with runs.stoppable() as stop:
            found, arrays = measure(args, networks, kinds, pairs, connector, stop)
        runs.write_arrays(run.path / "arrays" / "paths.npz", **arrays)
        show(found)
        run.finish(found)
        draw(args, run, found, arrays)
        print(f"results: {run.path / 'results.json'}\npoints: {run.path / 'points.csv'}")
    return 0


def chosen(args):
    if args.r_min >= args.r_max:
        raise UsageError(f"--r_min {args.r_min:g} is not below --r_max {args.r_max:g}")
    kinds = [k for k in args.path.split(",") if k]
    for kind in kinds or [args.path]:
        if kind not in KINDS:
            raise UsageError(f"--path {kind}: known are {', '.join(KINDS)}{cli.suggestion(kind, KINDS)}")
    if "connector" in kinds and not args.connector:
        raise UsageError("--path connector needs --connector RUN, a chain or curve between two of the members")
    return [k for k in KINDS if k in kinds or (k == "connector" and args.connector)]


def pairs_of(args, count):
    """[(i, j)] with i < j < count: all, or --pairs of them, drawn."""
    every = [(i, j) for i in range(count) for j in range(i + 1, count)]
    if not 0 < args.pairs < len(every):
        return every
    draw = numpy_stream(args.sample_seed, "pairs", count)
    return [every[k] for k in sorted(draw.choice(len(every), args.pairs, replace=False))]


# ---- where points lie ----------------------------------------------------------------------------------------------

def line_ts(args):
    """Positions (T,) on a line: --points from 0 to 1, and at the same distances up to --beyond both ends."""
    more = math.ceil(args.beyond * (args.points - 1) - 1e-9)
    return np.arange(-more, args.points + more) / (args.points - 1)


def polyline(vertices, ts):
    """Coefficients (T, V) of a polyline's vertices at positions ts (T,): 0 is the first vertex and 1 the last, each
    edge takes an equal part; outside the first and the last edge go on. Of two vertices it is their straight line."""
    edges = vertices - 1
    edge = np.clip(np.floor(ts * edges).astype(int), 0, edges - 1)
    along, rows = ts * edges - edge, np.arange(len(ts))
    out = np.zeros((len(ts), vertices))
    out[rows, edge], out[rows, edge + 1] = 1 - along, along
    return out


def radial_slice(coefficients, radii):
    """(R, T, V): every point of a polyline, coefficients (T, V), at scales radii (R,) of its weights."""
    return radii[:, None, None] * coefficients


def polar(coefficients, gram):
    """(distances (T,) from the origin of weight space, angles (T,) in radians) of the points of a polyline with
    coefficients (T, V) and inner products gram (V, V) of its vertices. Angles add up from point to point, so that the
    triangles under its edges lie side by side as they would on paper; those of one edge are true."""
    inner = coefficients @ gram
    norms = np.sqrt(np.maximum((inner * coefficients).sum(1), 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (inner[:-1] * coefficients[1:]).sum(1) / (norms[:-1] * norms[1:])
    steps = np.arccos(np.clip(np.nan_to_num(cosines, nan=1.0), -1, 1))
    return norms, np.concatenate([[0.0], np.cumsum(steps)])


def barycentric(anchors, coords):
    """Coefficients (P, 3), which sum to 1, of the points with coordinates (P, 2) on the plane through three anchors
    (3, 2) of landscape.plane: (0, 0), (d, 0), (p, q)."""
    (_, _), (d, _), (p, q) = anchors
    third = coords[:, 1] / q
    second = (coords[:, 0] - p * third) / d
    return np.stack([1 - second - third, second, third], axis=1)


@dataclass(frozen=True)
class Connector:
    """A learned path between two members: its run, family and vertices (dicts of parameters), and which members its
    ends are."""

    path: Path
    family: str
    vertices: list
    members: tuple

    @property
    def words(self):
        return f"{self.family} of {len(self.vertices)} vertices, {self.path},"

    def along(self, ts):
        """Coefficients (T, V) of its vertices at positions ts (T,) in [0, 1]."""
        import torch

        from landscape import subspace

        return subspace.rule(self.family, len(self.vertices)).along(torch.as_tensor(ts), len(self.vertices)).numpy()


def open_connector(args, networks):
    """The Connector that --connector names. UsageError unless it is a path between two of the networks."""
    from landscape import data as datasets
    from landscape import subspace

    sources = runs.find_models(args.connector, ())
    if len(sources) > 1:
        raise UsageError(f"--connector {args.connector} holds {len(sources)} networks: name one run")
    path = sources[0].path
    held, described = runs.read_weights(path / "model.safetensors" if path.is_dir() else path)
    family = described.get("subspace", {}).get("family", "one network")
    if subspace.FAMILIES.get(family, (None,))[0] is None:
        raise UsageError(f"--connector {path} holds {family}, which is no path between two networks: learn one with "
                         "python -m subspaces.train --family chain --ends RUN,RUN")
    vertices = [{**v, **{alias: v[k] for alias, k in described["subspace"]["tied"].items()}}
                for v in subspace.split_state(held)[0]]
    entry, ends = datasets.entry(predictions.dataset_of(networks, args), args.data_root), {}
    for k, network in enumerate(networks):
        other = predictions.described(network, args, entry)["architecture"]
        differs = [key for key, value in described["architecture"].items() if other.get(key) != value]
        if differs:
            raise UsageError(f"--connector {path} and {network.path} differ in their architecture ({differs[0]}: "
                             f"{described['architecture'][differs[0]]}, {other.get(differs[0])}): choose its ends with "
                             "--members or --select")
        own = runs.read_weights(network.path)[0]
        for end in (0, -1):
            if all(key in own and own[key].equal(w) for key, w in vertices[end].items()):
                ends.setdefault(end, k)
    if len(ends) < 2:
        said = sources[0].config.get("ends") or "free: it was trained without --ends"
        raise UsageError(f"--connector {path}: its ends are not both among the {len(networks)} members (they are "
                         f"{said.replace(',', ' and ')}); name them with --members")
    return Connector(path, family, vertices, (ends[0], ends[-1]))


# ---- what is measured there ----------------------------------------------------------------------------------------

class Between(Scene):
    """Networks of one architecture, all in memory, and the images that points between them are measured on."""

    def __init__(self, args, networks, stop):
        super().__init__(args, networks)
        self.stop, self.device = stop, cli.set_up_device(args)
        self.rows, self.named = np.arange(len(self.labels)), self.held
        if 0 < args.images < len(self.labels):
            draw = numpy_stream(args.sample_seed, "images", len(self.labels))
            self.rows = np.sort(draw.choice(len(self.labels), args.images, replace=False))
            self.named = {**self.held, "images": args.images, "sample_seed": args.sample_seed}
            self.labels = self.labels[self.rows]
        self.networks, self.vertices = networks, self.load(networks)
        self.said = np.stack(predictions.logits(networks, args, self.named, self.images))
        self.answers = self.said.argmax(2)
        self.progress = None

    def load(self, networks):
        """Every network's weights, complete; sets the one network that is given them. UsageError unless all have one
        architecture and see images in one way."""
        from landscape import data as datasets
        from landscape import evaluate, weights

        entry = datasets.entry(self.held["dataset"], self.args.data_root)
        first, out = None, []
        for network in networks:
            trained = predictions.load(network, self.args, entry)
            first = first or trained
            for what, a, b in (("architecture", first.architecture, trained.architecture),
                               ("inputs", seen(first), seen(trained))):
                differs = [k for k in {**a, **b} if a.get(k) != b.get(k)]
                if differs:
                    k = differs[0]
                    raise UsageError(
                        f"{networks[0].path} and {network.path} differ in their {what} ({k}: {a.get(k)}, {b.get(k)}): "
                        "there is no network between them; choose with --select")
            out.append(weights.of(trained.network))
        self.preprocessing = first.preprocessing
        self.network = first.network.to(self.device, memory_format=evaluate.torch.channels_last)
        self.parameters = [k for k, _ in self.network.named_parameters()]
        self.training = None
        if evaluate.norm_layers(self.network):
            self.training = self.training_images(networks[0], self.preprocessing, self.device)[0]
        return out

    def images(self, preprocessing):
        import torch

        whole = super().images(preprocessing)
        return whole if len(self.rows) == len(whole) else whole.subset(torch.as_tensor(self.rows))

    def gram(self, vertices):
        """Inner products (V, V) of the parameters of weight dicts, float64."""
        from landscape import weights

        return sum(weights.grams(vertices, self.parameters).values()).numpy()

    def cosines(self, vertices, coefficients):
        """(P, 2): cosines of the parameters of P points, coefficients (P, V), with those of the first and of the last
        vertex."""
        gram = self.gram(vertices)
        products = coefficients @ gram
        norms = np.sqrt((products * coefficients).sum(1))
        return products[:, [0, -1]] / (norms[:, None] * np.sqrt(gram.diagonal()[[0, -1]]))

    def measure(self, words, vertices, coefficients, answers, folder, stored=None):
        """{"loss": (P,) nats, "accuracy": (P,), "agreement": (P, M)} at P points of weight space.

        They are linear combinations of V weight dicts with coefficients (P, V). answers: M arrays (N,) of labels that
        those at the points are compared with. A point that is a vertex is that network as it is stored (of `stored`,
        numbers of vertices, where some are no networks of their own); elsewhere BatchNorm's statistics are estimated
        anew. Kept in folder/arrays as it grows: what is there is not measured again. ContentError where logits are not
        finite, Interrupted between two blocks of points.
        """
        from landscape import evaluate

        args, answers = self.args, np.asarray(answers)
        held = {**self.named, "coefficients": digest(coefficients), "answers": digest(answers),
                "vertices": [digest(*(w[k].numpy() for k in sorted(w))) for w in vertices]}
        if self.training is not None:
            held |= {"bn_images": args.bn_images, "bn_seed": args.sample_seed} | ({"stored": stored} if stored else {})
        file = folder / "arrays" / f"path-{runs.hash8(held)}.npz"
        done = {"loss": np.zeros(0), "accuracy": np.zeros(0), "agreement": np.zeros((0, len(answers)))}
        if file.exists() and not args.force:
            done = runs.read_arrays(file, list(done), list(done))
        self.progress.step(len(done["loss"]))
        images = self.images(self.preprocessing).to(self.device)
        vertices = [{k: v.to(self.device) for k, v in w.items()} for w in vertices]
        size = sum(v.nbytes for v in vertices[0].values()) + 4 * self.said[0].size
        block = max(1, min(MOST, int(BLOCK // size)))
        for start in range(len(done["loss"]), len(coefficients), block):
            points = [self.point(vertices, c, stored) for c in coefficients[start:start + block]]
            said = evaluate.logits_at(self.network, points, images, self.preprocessing, args.eval_bs)
            new = self.measured(said, answers, words)
            done = {k: np.concatenate([v, new[k]]) for k, v in done.items()}
            runs.write_arrays(file, **done, settings=json.dumps(held, sort_keys=True))
            self.progress.step(len(points), words)
            if self.stop.requested:
                raise Interrupted(f"{self.stop.requested}: stopped after {len(done['loss'])} of {len(coefficients)} "
                                  f"points of the {words}; saved in {file}; the same command goes on")
        return done

    def point(self, vertices, coefficients, stored=None):
        """The weight dict of one point, with BatchNorm's statistics as they belong there."""
        from landscape import evaluate, weights

        most = int(np.argmax(coefficients))
        if sorted(coefficients) == [0] * (len(vertices) - 1) + [1] and (stored is None or most in stored):
            return vertices[most]
        point = weights.combine(vertices, coefficients.tolist())
        if self.training is None:
            return point
        return evaluate.reestimate_bn(self.network, self.training, self.preprocessing, [point])[0]

    def measured(self, said, answers, words):
        """The measures of logits (P, N, C)."""
        import torch
        import torch.nn.functional as F

        if not said.isfinite().all():
            raise ContentError(f"the logits at a point of the {words} are not finite: it lies too far out; lower "
                               "--r_max, --beyond or --margin")
        labels = torch.as_tensor(self.labels).expand(len(said), -1)
        loss = F.cross_entropy(said.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        given = said.argmax(2).numpy()
        return {"loss": loss.double().mean(1).numpy(), "accuracy": (given == self.labels).mean(1),
                "agreement": (given[:, None] == answers).mean(2)}


def seen(trained):
    """How a network's inputs are made, to be compared."""
    return {k: predictions.list_of(trained.preprocessing[k]) for k in predictions.COMPARED}


def digest(*arrays):
    """16 hex digits of the content of arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.shape} {array.dtype}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def measure(args, networks, kinds, pairs, connector, stop):
    """(results as plain values, {name: array})."""
    scene = Between(args, networks, stop)
    counts = {"line": len(pairs) * len(line_ts(args)), "plane": args.resolution**2, "radial": args.radii * args.points,
              "connector": (args.radii + 2) * args.points}
    scene.progress = runs.Progress(sum(counts[k] for k in kinds), "points")
    out = {"kind": "paths", "images": len(scene.labels), "split": args.split, "level": args.level,
           "batchnorm": scene.training is not None,
           "models": [{"name": n.name, "path": str(n.path), "accuracy": metrics.accuracy(s, scene.labels),
                       "loss": metrics.nll(s, scene.labels)} for n, s in zip(networks, scene.said)]}
    arrays = {}
    for kind in kinds:
        if kind == "line":
            out[kind], more = lines(args, scene, pairs)
        elif kind == "connector":
            out[kind], more = connected(args, scene, connector)
        else:
            out[kind], more = {"plane": plane, "radial": radial}[kind](args, scene)
        arrays |= {f"{kind}_{k}": v for k, v in more.items()}
    scene.progress.close()
    return out, arrays


def lines(args, scene, pairs):
    """The straight line of every pair: (results, {"ts" (T,), "pairs" (B, 2), "loss", "accuracy" (B, T), "agreement"
    (B, T, 2)})."""
    ts, rows = line_ts(args), []
    inside = (ts >= 0) & (ts <= 1)
    for i, j in pairs:
        found = scene.measure(f"line from {scene.networks[i].name} to {scene.networks[j].name}",
                              [scene.vertices[i], scene.vertices[j]], polyline(2, ts), scene.answers[[i, j]],
                              scene.networks[i].folder)
        rows.append(found)
    arrays = {k: np.stack([r[k] for r in rows]) for k in rows[0]}
    gram, between = scene.gram(scene.vertices), []
    for (i, j), row in zip(pairs, rows):
        squared = gram[i, i] + gram[j, j] - 2 * gram[i, j]
        between.append({
            "first": i, "second": j, "loss_barrier": metrics.barrier(row["loss"][inside], ts[inside]),
            "error_barrier": metrics.barrier(1 - row["accuracy"][inside], ts[inside]),
            "agreement_of_ends": float((scene.answers[i] == scene.answers[j]).mean()),
            "distance": math.sqrt(max(squared, 0))})
    count = len(scene.networks)
    curves = {"loss": arrays["loss"], "accuracy": arrays["accuracy"], "agreement_first": arrays["agreement"][..., 0],
              "agreement_second": arrays["agreement"][..., 1]}
    out = {"ts": ts.tolist(), "pairs": between,
           "measures": {m: over_pairs([b[m] for b in between], pairs, count, most, args.level)
                        for m, most in OF_PAIRS.items()},
           "curves": {m: [over_pairs(curves[m][:, k], pairs, count, math.inf if m == "loss" else 1, args.level)
                          for k in range(len(ts))] for m in CURVES}}
    return out, {"ts": ts, "pairs": np.array(pairs), **arrays}


def over_pairs(values, pairs, count, most, level):
    """The mean over pairs of `count` members, with an interval clustered by member: a bootstrap where every pair is
    there, else a jackknife over the members that occur. most: what the measure can be at most, and 0 at least."""
    if len(pairs) == count * (count - 1) // 2:
        matrix = np.zeros((count, count))
        for (i, j), value in zip(pairs, values):
            matrix[i, j] = matrix[j, i] = value
        found = results.bootstrap_pairs(matrix, level=level)
    else:
        occurs = np.array([[k in pair for k in range(count)] for pair in pairs])
        found = results.over_subsets(values, occurs[:, occurs.any(0)], level=level)
    return interval(found, len(pairs), 0, most)


def plane(args, scene):
    """The plane through the first three members: (results, {"x", "y" (R,), "anchors" (3, 2), "loss", "accuracy"
    (R, R), "agreement" (R, R, 3)}), indexed [x, y]; distances are Euclidean, of the parameters."""
    import torch

    from landscape import plane as planes

    three = scene.vertices[:3]
    try:
        flat = planes.through(*[torch.cat([w[k].flatten() for k in scene.parameters]) for w in three])
    except planes.PlaneError as e:
        names = ", ".join(n.name for n in scene.networks[:3])
        raise UsageError(f"--path plane: through {names} there is no plane: {e}") from None
    anchors = flat.anchors.numpy()
    xmin, xmax, ymin, ymax = planes.extent(flat, args.margin, args.margin)
    x, y = np.linspace(xmin, xmax, args.resolution), np.linspace(ymin, ymax, args.resolution)
    coords = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
    found = scene.measure("plane", three, barycentric(anchors, coords), scene.answers[:3], scene.networks[0].folder)
    side = (args.resolution, args.resolution)
    arrays = {k: v.reshape(*side, *v.shape[1:]) for k, v in found.items()}
    gaps = anchors[[1, 2, 2]] - anchors[[0, 0, 1]]
    out = {"members": [0, 1, 2], "anchors": anchors.tolist(), "sides": np.linalg.norm(gaps, axis=1).tolist(),
           "extent": [xmin, xmax, ymin, ymax]}
    return out, {"x": x, "y": y, "anchors": anchors, **arrays}


def radial(args, scene):
    """The radial slice of the straight line between the first two members."""
    along = polyline(2, np.linspace(0, 1, args.points))
    return slice_of(args, scene, scene.vertices[:2], along, (0, 1), "radial slice")


def slice_of(args, scene, vertices, along, members, words, stored=None):
    """The radial slice of a path between two members, its points being mixes (T, V) of vertices: (results, {"us" (T,),
    "radii" (R,), "norms", "angles" (T,) of the path itself, "loss", "accuracy" (R, T), "agreement" (R, T, 2)})."""
    us, radii = np.linspace(0, 1, len(along)), np.linspace(args.r_min, args.r_max, args.radii)
    norms, angles = polar(along, scene.gram(vertices))
    rays = radial_slice(along, radii)
    found = scene.measure(words, vertices, rays.reshape(-1, len(vertices)), scene.answers[list(members)],
                          scene.networks[members[0]].folder, stored)
    arrays = {k: v.reshape(len(radii), len(us), *v.shape[1:]) for k, v in found.items()}
    out = {"members": list(members), "vertices": len(vertices), "angle": float(np.degrees(angles[-1])),
           "norms": [float(norms[0]), float(norms[-1])]}
    return out, {"us": us, "radii": radii, "norms": norms, "angles": angles, **arrays}


def connected(args, scene, connector):
    """A learned path between two members, the straight line between them, and the path's radial slice: (results,
    arrays). Arrays of the path: {"ts" (T,), "loss", "accuracy" (T,), "agreement", "cosine" (T, 2)}; line_ and slice_
    before a name: of the straight line (without ts), and as in slice_of."""
    ts, members = np.linspace(0, 1, args.points), list(connector.members)
    two, answers = [scene.vertices[k] for k in members], scene.answers[members]
    # Between the ends BatchNorm's statistics are none of the saved ones, whatever vertex a point is.
    vertices = [two[0], *({**two[0], **v} for v in connector.vertices[1:-1]), two[1]]
    stored, folder = [0, len(vertices) - 1], scene.networks[members[0]].folder
    rows, out = {}, {"members": members, "run": str(connector.path), "family": connector.family,
                     "vertices": len(vertices), "ts": ts.tolist()}
    for name, own, along in (("", vertices, connector.along(ts)), ("line_", two, polyline(2, ts))):
        found = scene.measure("connector" if not name else "line beside the connector", own, along, answers, folder,
                              stored if not name else None)
        rows |= {f"{name}{k}": v for k, v in found.items()} | {f"{name}cosine": scene.cosines(own, along)}
        out["line" if name else "path"] = {
            "loss_barrier": metrics.barrier(found["loss"], ts), "highest_loss": float(found["loss"].max()),
            "error_barrier": metrics.barrier(1 - found["accuracy"], ts), "length": length(along, scene.gram(own))}
    out["slice"], cut = slice_of(args, scene, vertices, connector.along(ts), members, "slice of the connector", stored)
    return out, {"ts": ts, "members": np.array(members), **rows, **{f"slice_{k}": v for k, v in cut.items()}}


def length(coefficients, gram):
    """The Euclidean length of a path through points with coefficients (T, V), inner products gram (V, V)."""
    steps = np.diff(coefficients, axis=0)
    return float(np.sqrt(np.maximum(((steps @ gram) * steps).sum(1), 0)).sum())


# ---- tables and figures --------------------------------------------------------------------------------------------

def show(found):
    print(f"{len(found['models'])} networks, {found['images']} {found['split']} images")
    if "line" in found:
        for name, cell in found["line"]["measures"].items():
            ends = "" if cell["low"] is None else f" [{cell['low']:.4f}, {cell['high']:.4f}]"
            print(f"line: {name.replace('_', ' '):<18} {cell['value']:.4f}{ends}  n={cell['n']} pairs")
    if "plane" in found:
        print("plane: the solutions are " + ", ".join(f"{s:.3f}" for s in found["plane"]["sides"]) + " apart")
    if "radial" in found:
        held = found["radial"]
        print(f"radial: weights of norm {held['norms'][0]:.3f} and {held['norms'][1]:.3f}, {held['angle']:.1f} degrees "
              "apart")
    if "connector" in found:
        for name in ("path", "line"):
            held = found["connector"][name]
            print(f"connector: {'the path' if name == 'path' else 'the line'} is {held['length']:.3f} long, loss "
                  f"barrier {held['loss_barrier']:.4f}, error barrier {held['error_barrier']:.4f}")


def rows_of(arrays):
    """Every point as a row of a table: where it lies, and what was measured there."""
    for kind, places in PLACES.items():
        if f"{kind}_loss" not in arrays:
            continue
        loss, accuracy = arrays[f"{kind}_loss"].ravel(), arrays[f"{kind}_accuracy"].ravel()
        agreement = arrays[f"{kind}_agreement"].reshape(len(loss), -1)
        for place, nats, share, same in zip(places(arrays, kind), loss, accuracy, agreement):
            agrees = {f"agreement_{k + 1}": same[k] if k < len(same) else None for k in range(3)}
            yield {"path": kind, **place, "loss": nats, "accuracy": share, "error": 1 - share, **agrees}


def line_places(arrays, kind):
    for i, j in arrays["line_pairs"]:
        for t in arrays["line_ts"]:
            yield {"of": f"{i}-{j}", "along": t, "across": None}


def plane_places(arrays, kind):
    for x in arrays["plane_x"]:
        for y in arrays["plane_y"]:
            yield {"of": "0-1-2", "along": x, "across": y}


def slice_places(arrays, kind):
    i, j = (0, 1) if kind == "radial" else arrays["connector_members"]
    for r in arrays[f"{kind}_radii"]:
        for u in arrays[f"{kind}_us"]:
            yield {"of": f"{i}-{j}", "along": u, "across": r}


def connector_places(arrays, kind):
    i, j = arrays["connector_members"]
    for t in arrays["connector_ts"]:
        yield {"of": f"{i}-{j}", "along": t, "across": None}


PLACES = {"line": line_places, "plane": plane_places, "radial": slice_places, "connector": connector_places,
          "connector_line": connector_places, "connector_slice": slice_places}


def draw(args, run, found, arrays):
    from ensembles import paths_figures
    from landscape import redraw

    rows = [{k: "" if v is None else v for k, v in r.items()} for r in rows_of(arrays)]
    results.write_csv(run.path / "points.csv", rows, list(rows[0]))
    if "line" in found:
        results.write_csv(run.path / "pairs.csv", found["line"]["pairs"], list(found["line"]["pairs"][0]))
        run.sink.table("pairs", found["line"]["pairs"])
    redraw.show(run, paths_figures.figures(run.path, found), args.formats)


if __name__ == "__main__":
    cli.run(main)
