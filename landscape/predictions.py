"""What trained networks say about fixed images: found by run folder or checkpoint, computed once, kept with the run.

N images, C classes. A Network is one set of weights: the last or best of a run, a snapshot of it, or a foreign
checkpoint. Its logits lie in its run folder, in arrays/logits-<hash8>.npz, named by the weights and the images.
"""

import glob
import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from landscape import maps, runs
from landscape.errors import ContentError, FileProblem, UsageError

NEEDS = ("logits", "settings")
COMPARED = ("mean", "std", "image_size", "channels")  # of the inputs


def add_networks(parser, cli, default):
    """The flags that name networks of any study, and those that foreign checkpoints need; returns the first group.
    default: of --members, or None for members without a flag."""
    g = parser.group("networks", named=True)
    flag, given = ("--members", {"default": [default]}) if default else ("members", {})
    g.add_argument(flag, nargs="+", metavar="GLOB", **given,
                   help="run folders of any study, folders of them, checkpoints, or patterns of these")
    g.add_argument("--which", default="model", choices=("model", "best"),
                   help="of a run: the last weights, or the best on its validation set")
    cli.add_select(g)
    g.add_argument("--any_preprocessing", action="store_true",
                   help="compare networks whose inputs are normalised or sized differently")
    cli.add_foreign(parser, named=True)
    p = parser.group("data on this machine")
    p.add_argument("--data_root", default=None, metavar="DIR",
                   help="where the data sets lie (default: $DATA_ROOT, else ~/data)")
    return parser


@dataclass(frozen=True)
class Network:
    """One set of weights. path: its file; folder: where what is measured of it is kept; epoch: of a snapshot."""

    source: runs.Source
    path: Path
    folder: Path
    epoch: int | None = None

    @property
    def name(self):
        own = self.source.seed_name if not self.source.foreign else self.source.name
        return own if self.epoch is None else f"{own}, epoch {self.epoch}"


def find(args, at_least=1):
    """The Networks that --members and --select name, each once, sorted by seeds and name, all of one data set.

    Raises FileProblem where a pattern matches nothing, UsageError where they were trained on different data sets or
    there are fewer than at_least; and what check_alike raises.
    """
    sources = {}
    for pattern in args.members:
        for source in matched(pattern, args.select):
            sources.setdefault(source.path.resolve(), source)
    found = sorted(sources.values(), key=lambda s: (*(s.config.get(k, 0) for k in ("init_seed", "order_seed")), s.name))
    if len(found) < at_least:
        raise UsageError(f"{len(found)} network in {' '.join(args.members)}: at least {at_least} are needed")
    networks = [Network(s, s.path if s.foreign else s.path / f"{args.which}.safetensors",
                        runs.measure_folder(s, args.runs)) for s in found]
    for n in networks:
        if not n.path.exists():
            raise FileProblem(f"{n.path} is missing: the run had no validation set, choose --which model")
    check_alike(networks, args)
    return networks


def matched(pattern, select):
    """The Sources that one word of --members names. A pattern passes over what is no network, such as the results that
    lie beside runs, and over runs that --select leaves out, unless nothing remains."""
    if not glob.has_magic(pattern):
        return of_runs(runs.find_models(Path(pattern), (), select), select)
    paths = sorted(map(Path, glob.glob(pattern)))
    if not paths:
        raise FileProblem(f"--members {pattern}: nothing has such a name")
    found, refusal = [], None
    for path in paths:
        if path.is_dir() or path.suffix in runs.SUFFIXES:
            try:
                found += of_runs(runs.find_models(path, (), select), select)
            except FileProblem as e:
                refusal = refusal or e
    if not found:
        raise refusal or FileProblem(f"--members {pattern}: no run folder and no checkpoint has such a name")
    return found


def of_runs(sources, select):
    """The Sources with <run>/model.safetensors, named as a file, as its run."""
    out = []
    for s in sources:
        if s.foreign and s.path.name == "model.safetensors" and (s.path.parent / "done").exists():
            out += runs.find_models(s.path.parent, (), select)
        else:
            out.append(s)
    return out


def dataset_of(networks, args):
    """The name of the data set that all of them were trained on."""
    return networks[0].source.config.get("dataset", args.dataset)


def names_of(networks):
    """The names of their architectures, each once, sorted; of a foreign checkpoint the name of its folder."""
    return sorted({runs.describe(n.path).get("architecture", {}).get("name", n.source.group) for n in networks})


def late(network, most):
    """The last snapshots of a run, at most so many, in order; that of before its first step is never late."""
    return [n for e, n in snapshots(network).items() if e][-most:]


def snapshots(network):
    """{epoch: Network} of the snapshots of a run, in order; {} where it kept none."""
    folder = network.source.path / "checkpoints"
    files = sorted(folder.glob("epoch_*.safetensors"))
    found = {e: replace(network, path=f, epoch=e) for f in files for e in [int(f.stem.removeprefix("epoch_"))]}
    config = network.source.config
    if "snapshots" in config:
        from landscape import train

        wanted = {e for e in train.snapshot_epochs(SimpleNamespace(**config)) if e <= config["epochs"]}
        if missing := sorted(wanted - found.keys()):
            raise FileProblem(f"{folder} lacks the snapshot of epoch {missing[0]}; copy the whole run folder, or run "
                              "its command again with --force")
    return found


def load(network, args, entry):
    """The landscape.runs.Trained of a Network, for the data set of entry."""
    from landscape import train

    held = described(network, args, entry)
    trained = runs.load(network.path, held["architecture"], held["preprocessing"])
    train.check_classes(network.path, trained.architecture, trained.preprocessing, entry)
    return trained


def described(network, args, entry):
    """{"architecture", "preprocessing"} of a Network, weights unread. A checkpoint that does not describe itself is the
    network --net, or that of its folder's name, with the inputs that the flags say."""
    import models
    from landscape import train

    held = runs.describe(network.path)
    if held:
        return held
    net = args.net or network.source.group
    try:
        return train.foreign(net, args, entry)
    except models.ModelError as e:
        if args.net:
            raise
        raise UsageError(f"{network.path}: the name of its folder says what network it is, and {e}; or name the "
                         "network with --net") from None


def check_alike(networks, args):
    """Raise UsageError unless all networks were trained on one data set, have its classes, and see images in the same
    way, or --any_preprocessing. Weights are not read, only what describes them."""
    from landscape import data as datasets
    from landscape import train

    sets = {dataset_of([n], args): n.source for n in networks}
    if len(sets) > 1:
        (one, a), (other, b), *_ = sets.items()
        raise UsageError(f"the networks were trained on different data: {a.path} on {one}, {b.path} on {other}; choose "
                         f"with --select dataset={one}")
    entry = datasets.entry(dataset_of(networks, args), args.data_root)
    first, ways = networks[0], []
    for network in networks:
        held = described(network, args, entry)
        train.check_classes(network.path, held["architecture"], held["preprocessing"], entry)
        ways.append(held["preprocessing"])
        wrong = [k for k in COMPARED if list_of(ways[0][k]) != list_of(ways[-1][k])]
        if wrong and not args.any_preprocessing:
            k = wrong[0]
            raise UsageError(f"{first.path} and {network.path} differ in the {k} of their inputs ({ways[0][k]}, "
                             f"{ways[-1][k]}): they answer to different images; choose with --select, or compare them "
                             "all the same with --any_preprocessing")


def list_of(value):
    """Numbers of a preprocessing as they compare: JSON makes lists of tuples."""
    return list(value) if isinstance(value, list | tuple) else value


def file_of(network, held, args):
    """Where the logits of a network on images `held` are kept."""
    of = {**held, "weights": network.path.name}
    if network.source.foreign:
        of |= {k: getattr(args, k) for k in ("net", "width", "dataset", "normalize", "image_size", "channels")}
    return network.folder / "arrays" / f"logits-{runs.hash8(of)}.npz"


def logits(networks, args, held, images_for, what="logits", keep=True):
    """[(N, C) float32 logits of each network] on the images that `held` (a dict of plain values) names.

    Those that are kept in the run folders are read; the others are computed, and kept if `keep`. images_for: a function
    of a preprocessing dict (image_size, channels, …) that gives the landscape.data.Images; it is called once for each
    way of seeing. Raises ContentError where logits are not finite, UsageError where the networks see differently.
    """
    files = [file_of(n, held, args) for n in networks]
    todo = [i for i, f in enumerate(files) if not (f.exists() and not args.force)]
    fresh = computed([networks[i] for i in todo], [files[i] for i in todo], args, held, images_for, what, keep)
    done = dict(zip(todo, fresh))
    return [done[i] if i in done else runs.read_arrays(f, NEEDS)["logits"] for i, f in enumerate(files)]


def computed(networks, files, args, held, images_for, what, keep):
    """Yield the logits of networks whose files are not there, one after the other."""
    if not networks:
        return
    from landscape import cli, evaluate
    from landscape import data as datasets

    device, seen = cli.set_up_device(args), {}
    entry = datasets.entry(dataset_of(networks, args), args.data_root)
    progress = runs.Progress(len(networks), what)
    for network, file in zip(networks, files):
        trained = load(network, args, entry)
        key = json.dumps([trained.preprocessing[k] for k in ("image_size", "channels")])
        if key not in seen:
            seen[key] = images_for(trained.preprocessing).to(device)
        model = trained.network.to(device, memory_format=evaluate.torch.channels_last)
        said = evaluate.logits(model, seen[key], trained.preprocessing, args.eval_bs).numpy()
        if not abs(said).max() < float("inf"):
            raise ContentError(f"{network.path}: the network's logits are not finite; it has diverged")
        if keep:
            # No lock: others may measure the same network, and write the same numbers, whole or not at all.
            runs.write_arrays(file, logits=said, settings=json.dumps(held, sort_keys=True))
        progress.step()
        yield said
    progress.close()


def split_settings(networks, args, split):
    """The dict that names a split of the data set of the networks: "test", "val" or "train" (true labels); of val and
    train, how it was split. UsageError where the networks split differently, so that one saw what another did not."""
    held = {"dataset": dataset_of(networks, args), "split": split}
    if split == "test":
        return held
    first = networks[0].source
    for n in networks:
        if n.source.foreign:
            raise UsageError(f"{n.path} does not say which images it was trained on: use --split test")
        if maps.labels_of(n.source.config) != maps.labels_of(first.config):
            raise UsageError(f"{first.path.name} and {n.source.path.name} were trained on different parts or labels of "
                             f"{held['dataset']}: use --split test, or choose with --select")
    return {**held, **maps.labels_of(first.config)}


def split_images(held, args, channels=0, image_size=0):
    """The landscape.data.Images that split_settings names."""
    from landscape import data as datasets

    given = {"val_size": 0} if held["split"] == "test" else datasets.given_by(held)
    data = datasets.load(held["dataset"], args.data_root, **given, image_size=image_size, channels=channels)
    images = getattr(data, held["split"])
    if len(images) == 0:
        raise UsageError(f"the networks were trained without a {held['split']} set: use --split test")
    return images


def labels_of(held, args):
    """The labels (N,) of the images that split_settings names, as a numpy array: of train the given ones."""
    return split_images(held, args).labels.cpu().numpy()


def classes_of(held, args):
    """The names of the classes of the data set that split_settings names."""
    from landscape import data as datasets

    return datasets.entry(held["dataset"], args.data_root).classes
