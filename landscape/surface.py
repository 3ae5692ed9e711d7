"""The loss on a plane of weight space: around a network, through three networks, or along a training.

    python -m landscape.surface runs/regions --select net=mlp
    python -m landscape.surface RUN --plane trajectory

random: two random directions around each network, scaled filter by filter to its weights, so that networks can be
compared (Li et al. 2018, arXiv 1712.09913). three: through three networks of any runs, equal distances on both axes.
trajectory: of each run with --snapshots, the first two principal components of its snapshots' differences to the final
weights, with the snapshots where they project to. Cross-entropy, accuracy and error on training and test images;
BatchNorm's statistics are estimated anew at every point, or stay as they are stored (--bn). Points are kept with the
networks as they are measured: the same command goes on.

P points, R points a side, S splits, T snapshots.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from landscape import cli, plots, predictions, redraw, results, runs, seeding
from landscape.errors import FileProblem, UsageError
from landscape.seeding import numpy_stream

PLANES = ("random", "three", "trajectory")
SPLITS = ("train", "val", "test")
BLOCK = 256e6  # bytes of weights that are held at once
MOST = 16  # points that share a pass over the images at most: a stop waits for their end
MISSING = ("--hessian needs a package that is not installed: pip install curvlinops-for-pytorch (it is optional, and "
           "nothing else needs it)")


def make_parser():
    parser = cli.Parser("python -m landscape.surface", __doc__)
    predictions.add_networks(parser, cli, None)
    g = parser.group("plane", named=True)
    g.add_argument("--plane", default="random", choices=PLANES, help="which plane")
    g.add_argument("--resolution", type=cli.side, default=21, metavar="R", help="points a side")
    g.add_argument("--span", type=cli.number(above=0), default=1.0, metavar="X", help="of random: from -X to X")
    g.add_argument("--normalise", default="filter", choices=("filter", "layer", "none"),
                   help="of random: give each filter (row of a weight), each layer, or nothing the norm of the weights")
    g.add_argument("--ignore", default="biasbn", choices=("biasbn", "none"),
                   help="of random: leave biases and normalisation layers (tensors of one axis) as they are")
    g.add_argument("--direction_seed", type=int, default=0, help="of random: the directions, the same for all networks")
    g.add_argument("--margin", type=cli.number(0, 10), default=0.25,
                   help="of three and trajectory: around the networks, share of their box")
    g = parser.group("measuring", named=True)
    g.add_argument("--splits", type=cli.several(str), default=["train", "test"], metavar="NAME,…",
                   help=f"of {', '.join(SPLITS)}; training labels are those given")
    g.add_argument("--images", type=cli.natural, default=2000, metavar="N", help="of each split, drawn; 0: all")
    g.add_argument("--sample_seed", type=int, default=0, help="of the images that are drawn")
    g.add_argument("--bn", default="reestimate", choices=("reestimate", "stored"),
                   help="BatchNorm's statistics: estimated at every point, or as stored (of three: interpolated)")
    g.add_argument("--bn_images", type=cli.natural, default=2000, metavar="N",
                   help="training images that they are estimated on; 0: all")
    g.add_argument("--hessian", type=cli.natural, default=0, metavar="K",
                   help="of random and trajectory: the K leading eigenvalues and the trace of the training loss's "
                        "Hessian at each network, by curvlinops (an optional package); 0: none")
    cli.add_machine(parser)
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = make_parser().settings(argv)
    if args.smoke:
        args.images, args.bn_images = min(args.images or 100, 100), min(args.bn_images or 64, 64)
    args = cli.resolve(args)
    networks = checked(args)
    if args.dry_run:
        print(f"{args.plane}: {args.resolution**2} points " + ("through " if args.plane == "three" else "for each of ")
              + ", ".join(str(n.path) for n in networks))
        return 0
    again, args.force = args.force, True  # what is kept is kept with the networks; these may be others than last time
    with runs.start("surfaces", args, args.plane) as run:
        args.force = again
        with runs.stoppable() as stop:
            found, arrays = measure(args, networks, stop)
        runs.write_arrays(run.path / "arrays" / "surface.npz", **arrays)
        rows = list(rows_of(found, arrays))
        results.write_csv(run.path / "surface.csv", rows, list(rows[0]))
        show(found)
        run.finish(found)
        redraw.show(run, figures(run.path, found), args.formats)
        print(f"results: {run.path / 'results.json'}\npoints: {run.path / 'surface.csv'}")
    return 0


def checked(args):
    """The networks; bad settings are refused before anything is written."""
    if wrong := [s for s in args.splits if s not in SPLITS]:
        raise UsageError(f"--splits {wrong[0]}: known are {', '.join(SPLITS)}{cli.suggestion(wrong[0], SPLITS)}")
    networks = predictions.find(args)
    if args.plane == "three" and len(networks) != 3:
        raise UsageError(f"--plane three goes through three networks, and {' '.join(args.members)} holds "
                         f"{len(networks)}: name them, or choose with --select")
    if args.plane == "three":
        check_three(networks, args)
    if args.plane == "three" and args.hessian:
        raise UsageError("--hessian is of one network: give --plane random or trajectory")
    if args.plane == "trajectory":
        for network in networks:
            if len(predictions.snapshots(network)) < 2:
                raise FileProblem(f"{network.source.path} holds fewer than two snapshots: train it with --snapshots "
                                  "every=1, or choose with --select")
    for split in args.splits:
        held = predictions.split_settings(networks, args, split)
        if split == "val":
            predictions.split_images(held, args)  # there may be none
    if args.hessian:
        try:
            import curvlinops  # noqa: F401
        except ModuleNotFoundError:
            raise UsageError(MISSING) from None
    return networks


def check_three(networks, args):
    """Raise UsageError unless the networks are of one architecture. Weights are not read."""
    from landscape import data as datasets

    entry = datasets.entry(predictions.dataset_of(networks, args), args.data_root)
    first, *others = ((n.path, predictions.described(n, args, entry)["architecture"]) for n in networks)
    for path, own in others:
        if differs := [k for k in {**first[1], **own} if first[1].get(k) != own.get(k)]:
            k = differs[0]
            raise UsageError(f"{first[0]} and {path} differ in their architecture ({k}: {first[1].get(k)}, "
                             f"{own.get(k)}): there is no plane through them; choose with --select")


# ---- planes --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Cut:
    """A plane of weight space about an origin (a complete weight dict): two directions (dicts of the entries that they
    move), coordinates x and y (R,), what the axes are, points with a name [(name, x, y)], and plain values to tell."""

    name: str
    origin: dict
    directions: tuple
    x: np.ndarray
    y: np.ndarray
    axes: tuple
    marks: list
    facts: dict = field(default_factory=dict)

    def point(self, a, b):
        """The weight dict at coordinates (a, b). Statistics that go beyond what can be, variances below 0, are 0."""
        out = dict(self.origin)
        for k in self.directions[0]:
            out[k] = out[k] + a * self.directions[0][k] + b * self.directions[1][k]
            if k.endswith("running_var"):
                out[k] = out[k].clamp_min(0)
        return out

    @property
    def coords(self):
        """(P, 2), x slow and y fast."""
        return np.stack(np.meshgrid(self.x, self.y, indexing="ij"), axis=-1).reshape(-1, 2)


def random_cut(name, network, args):
    """Two random directions about a network."""
    from landscape import weights
    from landscape.seeding import stream

    own = weights.of(network)
    names = [k for k, _ in network.named_parameters()]
    directions = tuple(random_direction({k: own[k] for k in names}, stream(args.direction_seed, "direction", n),
                                        args.normalise, args.ignore) for n in (1, 2))
    axis = np.linspace(-args.span, args.span, args.resolution)
    unit = {"filter": "filter-normalised", "layer": "layer-normalised", "none": "standard normal"}[args.normalise]
    facts = {"norms": [norm(d) for d in directions], "cosine": weights.cosine(*directions),
             "weight_norm": norm({k: own[k] for k in names})}
    return Cut(name, own, tuple(with_tied(network, d) for d in directions), axis, axis,
               tuple(f"{unit} direction {n}" for n in (1, 2)), [(name, 0.0, 0.0)], facts)


def random_direction(parameters, generator, normalise, ignore):
    """A direction in the space of parameters {name: tensor} from a torch.Generator: standard normal, then each filter,
    a slice along the first axis of a tensor (a number of a tensor of one axis), or each tensor scaled to the norm of
    the weights there; 0 in tensors of one axis where ignore is "biasbn" (Li et al. 2018, section 4)."""
    import torch

    out = {}
    for k, w in parameters.items():
        z = torch.randn(w.shape, generator=generator)  # always drawn: what is ignored changes nothing else
        if ignore == "biasbn" and w.dim() < 2:
            z = torch.zeros_like(w)
        elif normalise != "none":
            flat = (len(w), -1) if normalise == "filter" and w.dim() else (1, -1)
            length = z.reshape(flat).norm(dim=1, keepdim=True).clamp_min(1e-30)
            z = (z.reshape(flat) / length * w.reshape(flat).norm(dim=1, keepdim=True)).reshape(w.shape)
        out[k] = z
    return out


def norm(direction):
    return math.sqrt(sum(float(v.double().square().sum()) for v in direction.values()))


def with_tied(network, direction):
    """A direction with the other names of tied parameters too."""
    from landscape import subspace

    return {**direction, **{alias: direction[k] for alias, k in subspace.aliases(network).items()}}


def three_cut(names, loaded, args):
    """The plane through three networks; statistics of BatchNorm are interpolated as the weights are."""
    import torch

    from landscape import plane as planes
    from landscape import weights

    own = [weights.of(n) for n in loaded]
    parameters = [k for k, _ in loaded[0].named_parameters()]
    for name, other in zip(names[1:], own[1:]):
        weights.check_same(own[0], other, names[0], name)
    try:
        flat = planes.through(*[torch.cat([w[k].flatten() for k in parameters]) for w in own])
    except planes.PlaneError as e:
        raise UsageError(f"--plane three: through {', '.join(names)} there is no plane: {e}") from None
    (_, _), (d, _), (p, q) = flat.anchors.tolist()
    floats = [k for k, v in own[0].items() if v.is_floating_point()]
    u = {k: (own[1][k] - own[0][k]) / d for k in floats}
    w = {k: (own[2][k] - own[0][k] - p * u[k]) / q for k in floats}
    xmin, xmax, ymin, ymax = planes.extent(flat, args.margin, args.margin)
    marks = [(name, *place) for name, place in zip(names, flat.anchors.tolist())]
    gaps = flat.anchors[[1, 2, 2]] - flat.anchors[[0, 0, 1]]
    return Cut("three", own[0], (u, w), np.linspace(xmin, xmax, args.resolution),
               np.linspace(ymin, ymax, args.resolution), ("distance in weight space",) * 2, marks,
               {"sides": gaps.norm(dim=1).tolist()})


def trajectory_cut(name, network, snapshots, args):
    """The plane through a network along the two principal components of its snapshots. snapshots: {epoch: network}."""
    from landscape import weights

    own = weights.of(network)
    parameters = [k for k, _ in network.named_parameters()]
    apart = [{k: s[k] - own[k] for k in parameters} for s in map(weights.of, snapshots.values())]
    loads, places, explained, within = principal(sum(weights.grams(apart, parameters).values()).numpy())
    directions = tuple(with_tied(network, weights.combine(apart, row.tolist())) for row in loads)
    low, high = np.minimum(places.min(0), 0), np.maximum(places.max(0), 0)
    room = args.margin * (high - low)
    x, y = (np.linspace(*ends, args.resolution) for ends in zip(low - room, high + room))
    facts = {"epochs": list(snapshots), "places": places.tolist(), "explained_variance": explained.tolist(),
             "displacement_in_plane": within}
    words = tuple(f"component {n}: {share:.1%} of the variance" for n, share in enumerate(explained, 1))
    return Cut(name, own, directions, x, y, words, [(name, 0.0, 0.0)], facts)


def principal(gram):
    """The two leading principal components of T vectors with inner products gram (T, T): (loads (2, T), so that
    component k is the sum of loads[k, t] times vector t; coordinates (T, 2) of the vectors along them, the first one's
    not negative; the shares (2,) of the variance about their mean that they explain; the share of all squared lengths
    that lies in their plane). The components are unit vectors of the vectors' deviations from their mean (Li et al.
    2018, section 7). UsageError where the vectors span no plane."""
    count = len(gram)
    centre = np.eye(count) - 1 / count
    values, vectors = np.linalg.eigh(centre @ gram @ centre)
    values, vectors = values[::-1][:2], vectors[:, ::-1][:, :2]
    total = float(np.trace(centre @ gram @ centre))
    if count < 3 or values[1] <= 1e-12 * max(total, 1e-300):
        raise UsageError("--plane trajectory: the snapshots lie on one line, or are equal: they span no plane; keep "
                         "more of them (--snapshots every=1)")
    loads = (centre @ vectors / np.sqrt(values)).T
    places = gram @ loads.T
    signs = np.where(places[0] < 0, -1.0, 1.0)
    loads, places = loads * signs[:, None], places * signs
    return loads, places, values / total, float((places**2).sum() / np.trace(gram))


# ---- what is measured there ----------------------------------------------------------------------------------------

class Scene:
    """The images of every split, and those for BatchNorm's statistics."""

    def __init__(self, args, networks, stop):
        self.args, self.stop, self.device = args, stop, cli.set_up_device(args)
        self.networks, self.kept = networks, {}
        self.held = {split: predictions.split_settings(networks, args, split) for split in args.splits}
        self.progress = None

    def images(self, split, preprocessing):
        """The images of a split for networks that see them so, or a part of them, drawn once and for all."""
        import torch

        key = split, preprocessing["channels"], preprocessing["image_size"]
        if key not in self.kept:
            whole = predictions.split_images(self.held[split], self.args, *key[1:])
            if 0 < self.args.images < len(whole):
                draw = numpy_stream(self.args.sample_seed, "images", len(whole))
                whole = whole.subset(torch.as_tensor(np.sort(draw.choice(len(whole), self.args.images, replace=False))))
            self.kept[key] = whole.to(self.device)
        return self.kept[key]

    def statistics(self, network, preprocessing):
        """The training images of a Network that BatchNorm's statistics are estimated on."""
        from landscape import data as datasets
        from landscape import maps

        given = {"val_size": 0}
        if not network.source.foreign:
            given = datasets.given_by(maps.labels_of(network.source.config))
        images = datasets.load(predictions.dataset_of([network], self.args), self.args.data_root, **given,
                               image_size=preprocessing["image_size"], channels=preprocessing["channels"]).train
        return images.subset(images.some_rows(self.args.bn_images)).to(self.device)

    def measure(self, cut, network, trained):
        """{"loss": (P, S) nats, "accuracy": (P, S)} at the points of a Cut, kept with a Network; NaN where the logits
        are not finite. trained: its landscape.runs.Trained, which all points are given the weights to."""
        from landscape import evaluate

        args, shell = self.args, trained.network.to(self.device)
        training = None
        if args.bn == "reestimate" and evaluate.norm_layers(shell):
            training = self.statistics(network, trained.preprocessing)
        parts = [self.images(split, trained.preprocessing) for split in args.splits]
        coords = cut.coords
        spanned_by = [[w[k].numpy() for k in sorted(w)] for w in (cut.origin, *cut.directions)]
        held = {"splits": self.held, "images": args.images, "sample_seed": args.sample_seed,
                "bn": args.bn_images if training is not None else "stored", "coords": runs.content_hash(coords),
                "weights": [runs.content_hash(*arrays) for arrays in spanned_by]}

        def block(start, stop):
            points = [{k: v.to(self.device) for k, v in cut.point(*c).items()} for c in coords[start:stop].tolist()]
            if training is not None:
                points = evaluate.reestimate_bn(shell, training, trained.preprocessing, points)
            out = {"loss": [], "accuracy": []}
            for images in parts:
                losses, right = (v.numpy() for v in evaluate.losses_at(shell, points, images, trained.preprocessing,
                                                                       args.eval_bs))
                out["loss"].append(np.where(np.isfinite(losses), losses, np.nan).mean(1, dtype=float))
                out["accuracy"].append(right.mean(1))
            return {k: np.stack(v, axis=1) for k, v in out.items()}

        file = network.folder / "arrays" / f"surface-{runs.hash8(held)}.npz"
        size = max(1, min(MOST, int(BLOCK // sum(v.nbytes for v in cut.origin.values()))))
        return runs.grown(file, ("loss", "accuracy"), len(coords), size, block, held, f"points of {cut.name}",
                          self.progress, self.stop, args.force)


def measure(args, networks, stop):
    """(results as plain values, {name: array})."""
    from landscape import data as datasets

    scene = Scene(args, networks, stop)
    entry = datasets.entry(predictions.dataset_of(networks, args), args.data_root)
    count = 1 if args.plane == "three" else len(networks)
    scene.progress = runs.Progress(count * args.resolution**2, "points")
    out, arrays = {"kind": "surface", "plane": args.plane, "splits": args.splits, "bn": args.bn, "surfaces": []}, {}
    for number in range(count):
        network = networks[number]
        loaded = [predictions.load(n, args, entry) for n in (networks if args.plane == "three" else [network])]
        cut, trained = cut_of(args, networks, network, loaded, entry), loaded[0]
        found = scene.measure(cut, network, trained)
        own = {"name": cut.name, "path": str(network.path), "axes": list(cut.axes), "marks": cut.marks, **cut.facts,
               "values": {split: summary({k: v[:, s] for k, v in found.items()}, cut)
                          for s, split in enumerate(args.splits)}}
        if args.hessian:
            own["hessian"] = hessian(args, scene, network, trained)
        out["surfaces"].append(own)
        side = (args.resolution, args.resolution)
        arrays |= {f"{number}_x": cut.x, f"{number}_y": cut.y}
        arrays |= {f"{number}_{split}_{k}": v[:, s].reshape(side) for k, v in found.items()
                   for s, split in enumerate(args.splits)}
    scene.progress.close()
    out["images"] = {split: len(scene.images(split, trained.preprocessing)) for split in args.splits}
    return out, arrays


def cut_of(args, networks, network, loaded, entry):
    """The Cut that the settings ask for."""
    if args.plane == "three":
        return three_cut([n.name for n in networks], [t.network for t in loaded], args)
    if args.plane == "random":
        return random_cut(network.name, loaded[0].network, args)
    along = {e: predictions.load(n, args, entry).network for e, n in predictions.snapshots(network).items()}
    return trajectory_cut(network.name, loaded[0].network, along, args)


def summary(found, cut):
    """Of one split: the loss and accuracy at the grid's point nearest to the origin, the least and the largest loss,
    and the share of points whose loss is not finite."""
    loss, accuracy = found["loss"], found["accuracy"]
    middle = int((cut.coords**2 / np.ptp(cut.coords, axis=0) ** 2).sum(1).argmin())
    fine = np.isfinite(loss)
    ends = (float(loss[fine].min()), float(loss[fine].max())) if fine.any() else (None, None)
    return {"loss": float(loss[middle]) if fine[middle] else None, "accuracy": float(accuracy[middle]),
            "least_loss": ends[0], "largest_loss": ends[1], "not_finite": float(1 - fine.mean())}


def hessian(args, scene, network, trained):
    """{"eigenvalues": the K largest of the Hessian of the mean cross-entropy on the training images (K,), "trace",
    "images"}: in eval mode at the network as it is stored, by matrix-free products (curvlinops)."""
    import curvlinops
    import torch
    from scipy.sparse.linalg import eigsh

    split = "train" if "train" in args.splits else args.splits[0]
    images = scene.images(split, trained.preprocessing)
    shell = trained.network.to(scene.device).eval()
    parameters = [p.requires_grad_(True) for p in shell.parameters()]
    batches = [(x, y) for x, y, _ in images.batches(None, 256, trained.preprocessing)]
    operator = curvlinops.HessianLinearOperator(shell, torch.nn.CrossEntropyLoss(), parameters, batches,
                                                check_deterministic=False)
    with seeding.fork(args.direction_seed, "trace"):
        trace = float(curvlinops.hutchpp_trace(operator, num_matvecs=30))
    start = numpy_stream(args.direction_seed, "hessian").normal(size=operator.shape[0])
    values = eigsh(operator.to_scipy(dtype=np.float64), k=args.hessian, which="LA", v0=start,
                   return_eigenvectors=False)
    return {"eigenvalues": sorted(map(float, values), reverse=True), "trace": trace, "images": len(images),
            "split": split}


# ---- tables and figures --------------------------------------------------------------------------------------------

def show(found):
    for own in found["surfaces"]:
        for split, values in own["values"].items():
            loss = "not finite" if values["loss"] is None else f"{values['loss']:.4f}"
            ends = "" if values["least_loss"] is None else (f", loss from {values['least_loss']:.4f} to "
                                                            f"{values['largest_loss']:.4f}")
            print(f"{own['name']}: {split}: at the point nearest to {own['marks'][0][0]} loss {loss}, accuracy "
                  f"{values['accuracy']:.4f}{ends}")
        if "explained_variance" in own:
            first, second = own["explained_variance"]
            print(f"{own['name']}: two components explain {first:.1%} and {second:.1%} of the snapshots' variance; "
                  f"{own['displacement_in_plane']:.1%} of their squared distances lie in the plane")
        if "hessian" in own:
            held = own["hessian"]
            print(f"{own['name']}: Hessian: largest eigenvalues {', '.join(f'{v:.4g}' for v in held['eigenvalues'])}, "
                  f"trace {held['trace']:.4g} ({held['images']} {held['split']} images)")


def rows_of(found, arrays):
    """Every point as a row of a table."""
    for number, own in enumerate(found["surfaces"]):
        for split in found["splits"]:
            loss, accuracy = (arrays[f"{number}_{split}_{k}"] for k in ("loss", "accuracy"))
            for i, x in enumerate(arrays[f"{number}_x"]):
                for j, y in enumerate(arrays[f"{number}_y"]):
                    yield {"surface": own["name"], "x": x, "y": y, "split": split, "loss": loss[i, j],
                           "accuracy": accuracy[i, j], "error": 1 - accuracy[i, j]}


def figures(folder, found):
    """{name: Figure} of a results.json of this program, with the arrays in folder/arrays."""
    arrays = runs.read_arrays(folder / "arrays" / "surface.npz")
    out = {}
    for number, own in enumerate(found["surfaces"]):
        name = "surface" if len(found["surfaces"]) == 1 else f"surface_{number}"
        out[name] = drawn(found, own, {k.partition("_")[2]: v for k, v in arrays.items()
                                       if k.partition("_")[0] == str(number)})
    return out


@plots.styled
def drawn(found, own, arrays):
    """Loss and accuracy of each split on one plane, with the networks and the way of the snapshots."""
    from matplotlib.colors import LogNorm

    x, y, splits = arrays["x"], arrays["y"], found["splits"]
    left, bottom = ((v[1] - v[0]) / 2 for v in (x, y))
    extent = x[0] - left, x[-1] + left, y[0] - bottom, y[-1] + bottom
    fig, axes = plots.figure(len(splits), 2, width=8.6, height=3.5 * len(splits) + 0.5, squeeze=False, sharex=True,
                             sharey=True)
    losses = np.concatenate([arrays[f"{s}_loss"].ravel() for s in splits])
    losses = losses[np.isfinite(losses)]
    low, high = (losses.min(), losses.max()) if len(losses) else (0.0, 1.0)
    scale = {"norm": LogNorm(low, high)} if low > 0 and high > 20 * low else {"vmin": low, "vmax": high}
    for row, split in zip(axes, splits):
        for ax, what, words, colours in ((row[0], "loss", f"{split} loss (nats)", {**scale, "cmap": "viridis_r"}),
                                         (row[1], "accuracy", f"{split} accuracy", {"vmin": 0, "vmax": 1})):
            values = arrays[f"{split}_{what}"].T
            plots.heat_map(ax, values, extent, label=words, aspect="auto", **colours)
            if np.isfinite(values).any() and np.nanmax(values) > np.nanmin(values):
                logarithmic = what == "loss" and "norm" in scale
                levels = np.geomspace(low, high, 10) if logarithmic else 8
                ax.contour(x, y, np.ma.masked_invalid(values), levels, colors="white", linewidths=0.4, alpha=0.7)
            mark(ax, found, own)
            ax.set(xlim=extent[:2], ylim=extent[2:], aspect="auto" if found["plane"] == "trajectory" else "equal")
            ax.label_outer()
        row[0].set_ylabel(own["axes"][1])
    for ax in axes[-1]:
        ax.set_xlabel(own["axes"][0])
    handles, words = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, words, loc="outside lower center", ncols=3)
    counted = ", ".join(f"{found['images'][s]:,} {s} images" for s in splits)
    fig.suptitle(counted if found["plane"] == "three" else f"{own['name']}; {counted}")
    return fig


def mark(ax, found, own):
    """The networks of a plane, and the snapshots of a trajectory."""
    if "places" in own:
        px, py = np.array(own["places"]).T
        ax.plot(px, py, "-o", color="black", markeredgecolor="white", markersize=4, markeredgewidth=0.5, linewidth=1,
                label=f"snapshots, epochs {own['epochs'][0]} to {own['epochs'][-1]}")
        ax.plot(px[0], py[0], "*", color="black", markeredgecolor="white", markersize=11, markeredgewidth=0.7,
                linestyle="", label=f"epoch {own['epochs'][0]}")
    for (name, a, b), shape in zip(own["marks"], plots.MARKERS):
        ax.plot(a, b, shape, color="black", markeredgecolor="white", markersize=8, markeredgewidth=0.9, linestyle="",
                label=f"{name}, final weights" if "places" in own else name)


if __name__ == "__main__":
    cli.run(main)
