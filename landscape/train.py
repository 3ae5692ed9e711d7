"""The training loop: fit(network, data, settings, run), and what it needs: optimisers, schedules, precision.

Every draw comes from a named stream of its own seed, so a run is a function of its settings: batch order from
order_seed, augmentation (keyed by image) from augment_seed, dropout from order_seed, weights from init_seed. A run
that is stopped at any step and resumed gives the same weights to the bit on a CPU.
"""

import argparse
import json
import math
import time
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import torch

import models
from landscape import cli, evaluate, objectives, parallel, runs, seeding
from landscape import data as datasets
from landscape.errors import ContentError, Interrupted, UsageError

CHECK_EVERY = 50  # steps between looks at the losses for NaN: each look waits for the device


def make_data(args, device="cpu"):
    """The data set that the settings describe, sized for their network. Returns landscape.data.Data."""
    entry = datasets.entry(args.dataset, args.data_root)
    return datasets.load(
        args.dataset, args.data_root, **datasets.given_by(vars(args)),
        image_size=input_size(args.net, entry.image_size, args.image_size), channels=args.channels, device=device,
        workers=args.workers)


def input_size(net, own, asked):
    """Pixels a side: as asked, or the data set's own size, or the least that the network takes if that is larger."""
    if asked or (":" in net and not net.startswith("timm:")):
        return asked or own
    row = models.entry(net)
    size = max(own, row.min_size)
    return -(-size // row.multiple) * row.multiple


def make_network(args, data):
    """(network with fresh weights drawn under init_seed, what describes it and its inputs for the checkpoint)."""
    architecture = models.with_width({
        "name": models.canonical(args.net), "num_classes": len(data.entry.classes),
        "in_channels": data.preprocessing["channels"], "image_size": data.preprocessing["image_size"],
        "width": args.width})
    check_inputs(f"--net {args.net}", args.net, data.entry)
    normalize = datasets.normalization(args.normalize, data.entry, data.preprocessing["channels"])
    described = {"architecture": architecture, "preprocessing": {**data.preprocessing, **normalize}}
    with seeding.fork(args.init_seed, "init"):
        rest = dict(architecture)
        network = models.build(rest.pop("name"), rest.pop("num_classes"), **rest)
    if args.init_from:
        weights, _ = runs.read_weights(args.init_from)
        runs.fill(network, weights, f"checkpoint {args.init_from}", architecture)
    return network, described


def load_source(source, args, entry):
    """The landscape.runs.Trained of a landscape.runs.Source, for the data set of entry.

    A foreign file is a network of the name of its folder (dbViz's layout), or --net where the file itself was given;
    its inputs are normalised by --normalize. Raises ContentError where the class count differs from the data set's.
    """
    net = args.net if Path(args.load_net).is_file() else source.group
    if source.foreign:
        try:
            models.canonical(net)
        except models.ModelError as e:
            if net == args.net:
                raise
            raise UsageError(f"{source.path}: the name of its folder says what network it is, and {e}; or give this "
                             "file itself to --load_net, with --net NAME") from None
    return load_network(source.path, net, args, entry, getattr(args, "which", "model"), getattr(args, "point", ""))


def load_network(path, net, args, entry, which="model", point=""):
    """The Trained of a run folder or of a checkpoint; where a file does not describe itself it is the network `net`
    with the inputs that args.image_size, channels and normalize say. point: of a subspace; BatchNorm statistics are
    re-estimated there, on args.bn_images training images."""
    held = foreign(net, args, entry) if Path(path).is_file() else {}
    trained = runs.load(path, **held, which=which, point=point)
    check_classes(path, trained.architecture, trained.preprocessing, entry)
    if trained.stale and evaluate.norm_layers(trained.network):
        seen = trained.preprocessing
        images = datasets.load(seen["dataset"], args.data_root, val_size=0, image_size=seen["image_size"],
                               channels=seen["channels"]).train
        evaluate.reestimate_bn(trained.network, images, seen, rows=images.some_rows(args.bn_images))
    return trained


def load_like(path, args, data, described, which="model"):
    """The Trained of a network that is to be mixed with the one described. ContentError for another architecture or
    other inputs."""
    trained = load_network(path, args.net, args, data.entry, which)
    if trained.architecture != described["architecture"]:
        key, here = next((k, v) for k, v in described["architecture"].items() if trained.architecture.get(k) != v)
        raise ContentError(f"{path} is of another architecture: its {key} is {trained.architecture.get(key)}, not "
                           f"{here}")
    for k in ("mean", "std"):
        if list(trained.preprocessing[k]) != list(described["preprocessing"][k]):
            raise ContentError(f"{path} was trained on inputs normalised otherwise: give the --normalize that it had")
    return trained


def foreign(net, args, entry):
    """{"architecture", "preprocessing"} of a file that does not describe itself, as the flags and the data set say."""
    size = input_size(net, entry.image_size, args.image_size)
    channels = args.channels or entry.channels
    architecture = {"name": models.canonical(net), "num_classes": len(entry.classes), "in_channels": channels,
                    "image_size": size, "width": args.width}
    return {"architecture": models.with_width(architecture),
            "preprocessing": {"image_size": size, "channels": channels,
                              **datasets.normalization(args.normalize, entry, channels)}}


def check_classes(path, architecture, preprocessing, entry):
    """Raise ContentError where a network's class count or vocabulary differs from the data set's."""
    if architecture["num_classes"] != len(entry.classes):
        raise ContentError(f"{path} has {architecture['num_classes']} classes, the data set has {len(entry.classes)}: "
                           "give the --dataset that it was trained on")
    check_inputs(path, architecture["name"], entry)
    if entry.text and preprocessing.get("vocabulary", entry.vocabulary) != entry.vocabulary:
        raise ContentError(f"{path} was trained with another vocabulary than that of the data set's training texts: "
                           "give the --dataset that it was trained on")


def check_inputs(what, net, entry):
    """Raise ContentError where a network takes texts and the data set holds images, or the other way round."""
    if ":" in net and not net.startswith("timm:"):
        return  # nothing is known of it
    if models.entry(net).text != entry.text:
        kinds = ("texts", "images") if entry.text else ("images", "texts")
        raise ContentError(f"{what} takes {kinds[1]}, the data set holds {kinds[0]}: give another --net or --dataset")


def attacked(args, sources, entry):
    """The Trained that --attack_net names, or the first of the sources."""
    if args.attack_net:
        return load_network(args.attack_net, args.net, args, entry)
    return load_source(sources[0], args, entry)


def prepare(args, device, data=None):
    """(data, network, what describes it) of a training, every setting looked at: bad input is refused before anything
    is written. data: what make_data gives, if it was made before. Raises UsageError, FileProblem and ContentError."""
    data = data or make_data(args, device)
    network, described = make_network(args, data)
    if args.epochs and len(data.train) == 0:
        raise UsageError("the training set is empty: lower --val_size or raise --train_size")
    datasets.parse_augment(args.augment, data.entry)
    parallel.check(args)
    if args.sync_bn and device.type != "cuda":
        raise UsageError("--sync_bn is for CUDA: PyTorch has no SyncBatchNorm on a CPU")
    if late := [e for e in sorted(snapshot_epochs(args)) if not 0 <= e <= args.epochs]:
        raise UsageError(f"--snapshots {args.snapshots}: there is no epoch {late[0]} in a training of {args.epochs}")
    milestones(args)
    make_optimiser(network, args)
    make_objective(args, data, described)
    return data, network, described


def train(run, args, device, prepared=None):
    """Train what args (from cli.resolve) describe into the run folder `run`, and mark it done.

    prepared: what prepare returned, if it was called before. Raises Interrupted when asked to stop (state saved),
    ContentError on NaN.
    """
    data, network, described = prepared or prepare(args, device)
    run.sink.describe({"parameters": parameter_count(network)})
    finish(run, args, data, network, described, fit(network.to(device), data, args, run, described))


def finish(run, args, data, network, described, results):
    """Mark a training done whose last weights are written; results are those of fit."""
    if args.wandb_artifact:
        run.sink.artifact(run.path / "model.safetensors")
    run.finish({**results, "parameters": parameter_count(network),
                "images": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
                "architecture": described["architecture"]})


def parameter_count(network):
    return sum(p.numel() for p in network.parameters())


def settling(data, normalize, bn_images):
    """What brings the BatchNorm statistics of a landscape.subspace.Subspace to its centre, as fit takes it."""
    rows = data.train.some_rows(bn_images)

    def settle(space):
        (new,) = evaluate.reestimate_bn(space.shell, data.train, normalize, [space.state_at(space.centre)], rows)
        for name, buffer in space.buffers_of_shell().items():
            buffer.copy_(new[name])

    return settle


def fit(network, data, args, run, described, penalty=None, settle=None, objective=None, begin=None, note=None):
    """Train network on data.train and return the results of the last and of the best epoch.

    network: on its device. data: landscape.data.Data. args: the training settings of landscape.cli. run: a
    landscape.runs.Run that takes metrics, snapshots, states and weights; a state in it is resumed. described: goes
    into the checkpoints. penalty: a function of the network whose value is added to each step's loss. settle: a
    function of the network, called before it is scored and before its last weights are written. objective: in place of
    what the settings say. begin: a function of the network and of the epoch (from 0), called before its first step.
    note: a function of the network and of the epoch (from 1) that gives further entries of its line of metrics.
    Returns {"last": {...}, "best": {...} or None}: losses in nats, accuracies as shares; "best" is the epoch of
    highest validation accuracy (the first of equals), None without a validation set. The test set chooses nothing.
    """
    if args.epochs and len(data.train) == 0:
        raise UsageError("the training set is empty: lower --val_size or raise --train_size")
    device = evaluate.device_of(network)
    network.to(memory_format=torch.channels_last)
    if args.sync_bn:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    whole = {"size": args.bs}
    parallel.share_dropout(network, whole)
    optimiser = make_optimiser(network, args)
    # GradScaler exists for fp16 alone; disabled it passes everything through.
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")
    forward = torch.compile(network) if args.compile else network
    objective = objective or make_objective(args, data, described, device)
    augment = datasets.parse_augment(args.augment, data.entry)
    normalize = described["preprocessing"]
    steps = steps_per_epoch(len(data.train), args.bs)
    state = load_state(run)
    restore(state, network, optimiser, scaler)
    progress = runs.Progress(args.epochs * steps, run.path.name, state["epoch"] * steps + state["step"])
    saved = began = time.monotonic()

    def save(epoch, step, sums, seconds):
        save_state(run, state, device, epoch=epoch, step=step, sums=sums, seconds=seconds,
                   network=network.state_dict(), optimiser=optimiser.state_dict(), scaler=scaler.state_dict())

    with runs.stoppable() as stop:
        keep_first(network, args, run, described, state)
        for epoch in range(state["epoch"], args.epochs):
            order = torch.randperm(len(data.train), generator=seeding.stream(args.order_seed, "order", epoch))
            draws = data.train.draw(augment, seeding.stream(args.augment_seed, "augment", epoch))
            first, sums, seconds = state["step"], Sums(device, state["sums"]), state["seconds"]
            began = time.monotonic() - seconds
            if begin is not None and not first:
                begin(network, epoch)
            own = parallel.share(order[first * args.bs:steps * args.bs], args.bs)
            batches = data.train.batches(own.rows, own.bs, normalize, augment, draws)
            network.train()
            with seeding.fork(args.order_seed, "dropout", epoch):
                if first:
                    torch.set_rng_state(state["rng"])
                    if state["cuda_rng"] is not None:
                        torch.cuda.set_rng_state(state["cuda_rng"], device)
                for step, ((x, y, _), share, size) in enumerate(zip(batches, own.shares, own.sizes), first):
                    whole["size"] = size
                    rate = learning_rate(args, epoch * steps + step, steps)
                    for group in optimiser.param_groups:
                        group["lr"] = rate
                    for part in objective.prepare(network, x, y, args.augment_seed, epoch, step):
                        loss, said = take_step(network, forward, objective, part, args, optimiser, scaler, penalty,
                                               share)
                    sums.add(*parallel.total(loss, (said.argmax(1) == y).sum() * (share > 0)), size)
                    progress.step(1, lambda s=sums, e=epoch: f"epoch {e + 1} loss {s.mean_loss():.4f}")
                    if (step + 1) % CHECK_EVERY == 0:
                        sums.check(epoch, step + 1)
                    if step + 1 < steps and due(stop, saved, args, device, step + 1):
                        sums.check(epoch, step + 1)
                        save(epoch, step + 1, sums.plain(), time.monotonic() - began)
                        saved = time.monotonic()
                        if stop.requested:
                            progress.close()
                            raise Interrupted(f"{stop.requested}: stopped in epoch {epoch + 1}, step {step + 1}; "
                                              f"saved in {run.path}; the same command resumes it")
            sums.check(epoch, steps)
            parallel.share_buffers(network)
            check_weights(network, epoch, steps)
            record = {"epoch": epoch + 1, "lr": rate, **sums.means(), "seconds": round(time.monotonic() - began, 3)}
            if settle is not None and curve_due(args, epoch + 1):
                settle(network)
            if note is not None:
                record |= note(network, epoch + 1)
            close_epoch(network, score_of(network, normalize, args.eval_bs), data, args, run, described, state, record)
            state["step"], state["seconds"], state["sums"] = 0, 0.0, [0.0, 0.0, 0.0]
            if due(stop, saved, args, device):
                save(epoch + 1, 0, [0.0, 0.0, 0.0], 0.0)
                saved = time.monotonic()
                if stop.requested and epoch + 1 < args.epochs:
                    progress.close()
                    raise Interrupted(f"{stop.requested}: stopped after epoch {epoch + 1}; saved in {run.path}; "
                                      "the same command resumes it")
        progress.close()
        if settle is not None and not (args.eval_every and args.epochs):
            settle(network)
        run.save_weights("model", network.state_dict(), described)
        parallel.wait()  # for the metrics that are read now
        return final_results(network, data, args, run, described, state["best"])


def due(stop, saved, args, device, step=0):
    """Is it time to save the state: long enough since `saved`, or somebody asked to stop? Several processes agree on
    it, every CHECK_EVERY steps, since that waits for the device."""
    late = time.monotonic() - saved >= args.save_every
    if parallel.joined():
        if step % CHECK_EVERY:
            return False
        asked, late = parallel.anyone(stop.requested, late, device=device)
        stop.requested = stop.requested or asked and "another process was asked to stop"
    return bool(stop.requested or late)


def load_state(run):
    """The state that a run was left in, or that of its beginning."""
    return run.load_state() or {"epoch": 0, "step": 0, "sums": [0.0, 0.0, 0.0], "seconds": 0.0, "best": None}


def save_state(run, state, device, **now):
    """Bring the state of a run up to what is `now`, with torch's global random state, and write it."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    state.update(now, rng=torch.get_rng_state(), cuda_rng=cuda)
    run.save_state(state)


def keep_first(network, args, run, described, state):
    """The snapshot of epoch 0, where one is wanted and nothing has been trained."""
    if 0 in snapshot_epochs(args) and state["epoch"] == 0 and state["step"] == 0:
        run.save_weights("checkpoints/epoch_0000", network.state_dict(), described)


def close_epoch(network, score, data, args, run, described, state, record):
    """What follows the last step of an epoch: a point of the curve and the best weights so far, where they are due,
    the snapshot, and record, {"epoch": counted from 1, …}, as a line of metrics. score: as score_of gives it."""
    epoch = record["epoch"]
    if curve_due(args, epoch):
        record |= curve_point(score, data)
        better = state["best"] is None or record.get("val_accuracy", 0) > state["best"]["val_accuracy"]
        if "val_accuracy" in record and better:
            state["best"] = {"epoch": epoch, "val_accuracy": record["val_accuracy"], "val_loss": record["val_loss"]}
            run.save_weights("best", network.state_dict(), described)
    if epoch in snapshot_epochs(args):
        run.save_weights(f"checkpoints/epoch_{epoch:04d}", network.state_dict(), described)
    # Order matters for a kill between this and saving the state: a line without its state is dropped on resuming.
    run.log(record)


def curve_due(args, epoch):
    """Does this epoch, counted from 1, have a point of the curves?"""
    return args.eval_every > 0 and (epoch % args.eval_every == 0 or epoch == args.epochs)


class Enough(Exception):
    """The stopwatch has seen enough steps."""


class Stopwatch:
    """What fit is given in the place of a runs.Run, to time its steps: it notes when each one ends, keeps nothing, and
    raises Enough after `steps` of them, or after three once LONGEST seconds have passed."""

    LONGEST = 20.0
    path = Path("timing")

    def __init__(self, steps):
        self.steps, self.ends = steps, []

    def save_state(self, state):
        self.ends.append(time.monotonic())
        passed = self.ends[-1] - self.ends[0]
        if len(self.ends) > self.steps or (passed > self.LONGEST and len(self.ends) > 3):
            raise Enough

    def save_weights(self, *_):
        """A timed network is thrown away."""

    log = save_weights

    def load_state(self):
        return None

    def metrics(self):
        return []


def time_run(args, device, prepared=None, penalty=None, settle=None, objective=None, begin=None):
    """Time args.time_steps steps of the training that args describe, and print what the whole of it would take, as one
    line `timed: JSON`: seconds of steps and of the evaluations between them; low and high, if all steps took as long
    as the faster and as the slower half; steps; step, evaluation in seconds; measuring, what this took. Writes nothing.

    The first quarter of the steps warms up and does not count. prepared, penalty, settle, objective, begin: as in train
    and fit; what begins an epoch is timed once, and counts for every epoch.
    """
    data, network, described = prepared or prepare(args, device)
    network = network.to(device)
    began = opened = time.monotonic()
    if begin is not None:
        begin(network, 0)
        began = time.monotonic()
    watch = Stopwatch(args.time_steps)
    timed = argparse.Namespace(**{**vars(args), "save_every": 0.0, "eval_every": 0, "snapshots": ""})
    with suppress(Enough):
        fit(network, data, timed, watch, described, penalty, objective=objective)
    took = [b - a for a, b in pairwise([began, *watch.ends])]
    took = sorted(took[max(1, len(took) // 4):] or took)
    half = (len(took) + 1) // 2
    mean, low, high = (math.fsum(part) / max(len(part), 1) for part in (took, took[:half], took[-half:]))
    curves = [images for images in (data.val, data.test) if len(images)]
    evaluation = sum(evaluation_seconds(network, images, described["preprocessing"], args.eval_bs) for images in curves)
    if settle is not None:
        evaluation -= time.monotonic()
        settle(network)
        evaluation += time.monotonic()
    points = max(1, math.ceil(args.epochs / args.eval_every)) if args.eval_every else 1
    steps = args.epochs * steps_per_epoch(len(data.train), args.bs)
    said = {"seconds": steps * mean, "low": steps * low, "high": steps * high}
    said = {k: v + points * evaluation + args.epochs * (began - opened) for k, v in said.items()}
    print("timed: " + json.dumps({**said, "steps": steps, "step": mean, "evaluation": evaluation,
                                  "measuring": time.monotonic() - began}))
    return 0


def evaluation_seconds(network, images, normalize, bs):
    """Seconds of scoring all these images, from at most 256 of them, after 32 to warm up."""
    part = images.subset(torch.arange(min(len(images), 256)))
    evaluate.score(network, part.subset(torch.arange(min(len(part), 32))), normalize, bs)
    began = time.monotonic()
    evaluate.score(network, part, normalize, bs)
    return (time.monotonic() - began) * len(images) / len(part)


def take_step(network, forward, objective, batch, args, optimiser, scaler, penalty=None, share=1.0):
    """One optimiser step on a batch (x, target), in args.accumulate parts. Returns (mean loss, logits (B, C)), on the
    device. share: what part of a batch of several processes this is; the loss is its part of their mean."""
    optimiser.zero_grad(set_to_none=True)
    total, said = accumulate(network, forward, objective, *batch, args, scaler, penalty, share)
    if args.sam_radius:
        with perturbed(network, args.sam_radius), no_statistics(network):
            optimiser.zero_grad(set_to_none=True)
            accumulate(network, forward, objective, *batch, args, scaler, penalty, share)
    if args.clip_norm:
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(network.parameters(), args.clip_norm)
    scaler.step(optimiser)
    scaler.update()
    return total, said


def accumulate(network, forward, objective, x, target, args, scaler, penalty, share=1.0):
    """Add the gradients of the batch's mean loss, in parts of two images at least (BatchNorm can make nothing of one),
    and those of all processes. Returns (loss, logits (B, C)), detached."""
    total, logits, parts = 0.0, [], max(1, min(args.accumulate, len(x) // 2))
    for number, (px, pt) in enumerate(zip(x.tensor_split(parts), target.tensor_split(parts)), 1):
        with evaluate.autocast(x.device, args.precision):
            said = forward(px)
            loss = objective.loss(said, pt) * (share * len(px) / len(x))
        if penalty is not None and number == parts:
            loss = loss + penalty(network) / parallel.world()[1]  # every process has the same
        total = total + loss.detach()
        logits.append(said.detach())
        scaler.scale(loss).backward()
    parallel.add_gradients(network)
    return total, torch.cat(logits)


@contextmanager
def perturbed(network, radius):
    """Inside, the weights w are w + radius * g / |g|, g being the gradients of all of them together (Foret et al.
    2021, equation 2); outside they are w to the bit. With g = 0 nothing moves."""
    moved = [p for p in network.parameters() if p.grad is not None]
    before = [p.detach().clone() for p in moved]
    norm = torch.stack([p.grad.norm() for p in moved]).norm()
    if norm > 0:
        with torch.no_grad():
            for p in moved:
                p.add_(p.grad * (radius / norm))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, w in zip(moved, before):
                p.copy_(w)


@contextmanager
def no_statistics(network):
    """Inside, BatchNorm normalises by its batch but leaves its running statistics: a batch counts once."""
    layers = evaluate.norm_layers(network).values()
    before = [(m.momentum, m.num_batches_tracked) for m in layers]
    for m in layers:
        m.momentum, m.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for m, (momentum, counted) in zip(layers, before):
            m.momentum, m.num_batches_tracked = momentum, counted


def make_objective(args, data, described, device="cpu"):
    """The landscape.objectives.Objective of the settings; a teacher is loaded once, onto the device."""
    preprocessing, teacher = described["preprocessing"], None
    if data.entry.text and args.train_mode in ("mixup", "cutmix", "adv", "adv_mix"):
        raise UsageError(f"--train_mode {args.train_mode} mixes or changes pixels, and the data set holds texts")
    if args.teacher:
        held = load_network(args.teacher, args.teacher_net or args.net, args, data.entry)
        theirs = evaluate.Adapted(held.network, preprocessing, held.preprocessing)
        teacher = theirs.to(device).requires_grad_(False).eval()
    return objectives.make(args, len(data.entry.classes), preprocessing, teacher)


def check_weights(network, epoch, step):
    """Raise ContentError if a weight is not finite after this step, whose loss was still finite."""
    held = [v for v in network.state_dict().values() if v.is_floating_point()]
    if held and not torch.stack([v.isfinite().all() for v in held]).all():
        raise diverged("the weights are", epoch, step)


def diverged(what, epoch, step):
    return ContentError(f"{what} not finite in epoch {epoch + 1}, step {step}: lower --lr, add --warmup or "
                        "--clip_norm, or use --precision fp32")


class Sums:
    """Loss, number right and number seen of an epoch, kept on the device; plain() is what a saved state holds."""

    def __init__(self, device, start):
        self.loss = torch.tensor(start[0], dtype=torch.float32, device=device)
        self.right = torch.tensor(start[1], dtype=torch.float32, device=device)
        self.seen = start[2]
        self.recent = []

    def add(self, loss, right, n):
        self.loss += loss.float() * n
        self.right += right
        self.seen += n
        self.recent.append(loss)

    def check(self, epoch, step):
        """Raise ContentError if a loss since the last check was not finite; step: steps done in this epoch."""
        finite = torch.stack(self.recent).isfinite().tolist() if self.recent else []
        if not all(finite):
            at = step - len(finite) + finite.index(False) + 1
            raise diverged("the loss is", epoch, at)
        self.recent = []

    def mean_loss(self):
        return self.loss.item() / max(self.seen, 1)

    def means(self):
        return {"train_loss": self.mean_loss(), "train_accuracy": self.right.item() / max(self.seen, 1)}

    def plain(self):
        return [self.loss.item(), self.right.item(), self.seen]


def restore(state, network, optimiser, scaler):
    """Put a saved state back into the network, the optimiser and the gradient scaler."""
    if "network" in state:
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        scaler.load_state_dict(state["scaler"])


def score_of(network, normalize, bs):
    """The function that gives loss and accuracy of the network on images."""
    return lambda images: parallel.scored(lambda part: evaluate.score(network, part, normalize, bs), images)


def curve_point(score, data):
    """Validation and test loss and accuracy, keys as in metrics.jsonl; sets that are empty are left out. ContentError
    where they are not finite."""
    out = {}
    for name, images in (("val", data.val), ("test", data.test)):
        if len(images):
            out |= {f"{name}_{k}": v for k, v in score(images).items()}
            if not math.isfinite(out[f"{name}_loss"]):
                raise ContentError(f"the network's logits on the {name} set are not finite: it has diverged; lower "
                                   "--lr, or add --warmup or --clip_norm")
    return out


def final_results(network, data, args, run, described, best):
    """Results of the last epoch and of the best epoch on the validation set, the test set scored once for each. What
    the curve holds for that epoch is not computed again."""
    curve = {r["epoch"]: r for r in run.metrics()}

    def scored(epoch):
        keys = [f"{name}_{k}" for name in ("val", "test") for k in ("loss", "accuracy")]
        record = curve.get(epoch, {})
        return {k: record[k] for k in keys if k in record}

    score = score_of(network, described["preprocessing"], args.eval_bs)
    last = {"epoch": args.epochs, **(scored(args.epochs) or curve_point(score, data))}
    if curve:
        last |= {k: curve[max(curve)][k] for k in ("train_loss", "train_accuracy")}
    return {"last": last, "best": best and {"epoch": best["epoch"], **scored(best["epoch"])}}


def steps_per_epoch(n, bs):
    """Steps of an epoch: the short last batch counts, unless it holds a single image beside full ones."""
    return max(1, math.ceil(n / bs) - (n > bs and n % bs == 1))


def make_optimiser(network, args):
    parameters = [p for p in network.parameters() if p.requires_grad]
    if args.opt == "SGD":
        if args.nesterov and not args.momentum:
            raise UsageError("--nesterov needs --momentum above 0")
        return torch.optim.SGD(parameters, args.lr, momentum=args.momentum, nesterov=args.nesterov,
                               weight_decay=args.weight_decay)
    return {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[args.opt](
        parameters, args.lr, eps=args.adam_eps, weight_decay=args.weight_decay)


def milestones(args):
    """The epochs, perhaps fractions, at which the rate drops.

    --milestones, or 3/8, 5/8 and 7/8 of the run; for --scheduler linear dbViz's whole epochs E//2.667, E//1.6,
    E//1.142 (100: 37, 62, 87; 200: 74, 124, 175), of which those at epoch 0 are left out.
    """
    if args.scheduler == "linear":
        return [m for m in (int(args.epochs // share) for share in (2.667, 1.6, 1.142)) if m]
    if args.milestones == "auto":
        return [args.epochs * share for share in (0.375, 0.625, 0.875)]
    try:
        return sorted(float(e) for e in args.milestones.split(",") if e)
    except ValueError:
        raise UsageError(f"--milestones {args.milestones}: epochs such as 30,60,90 are expected") from None


def learning_rate(args, step, steps):
    """The rate of optimiser step `step` (from 0) when an epoch has `steps`: warm-up, then the schedule, per step."""
    warm, last = args.warmup * steps, args.epochs * steps
    if step < warm:
        return args.lr * min(1, (step + 1) / warm)
    if args.scheduler == "constant":
        return args.lr
    if args.scheduler in ("multistep", "linear"):
        gamma = args.gamma if args.scheduler == "multistep" else 0.1
        return args.lr * gamma ** sum(step >= m * steps for m in milestones(args))
    if args.scheduler in cli.DROPS:
        return args.lr * 0.5 ** sum(step >= e * steps for e in cli.DROPS[args.scheduler])
    done = (step - warm) / max(last - warm, 1)
    if args.scheduler == "cyclic":  # Huang et al. 2017, equation 2; whole numbers, so that a cycle begins at its step
        return args.lr * cosine((step - warm) * args.cycles % (last - warm) / (last - warm))
    if args.scheduler == "cosine":
        return args.lr * cosine(done)
    if args.scheduler == "linear_decay":
        return args.lr * (1 - done)
    if args.scheduler == "swa_constant":  # Izmailov et al. 2018: linear from lr to swa_lr between 1/2 and 9/10
        return args.lr + (args.swa_lr - args.lr) * min(max((step / last - 0.5) / 0.4, 0), 1)
    first = args.swa_start * last  # swa_cyclic, fge: a cosine to 0, then cycles from swa_lr
    if step < first:
        return args.lr * cosine((step - warm) / max(first - warm, 1))
    cycle = args.cycles * (step - first) / max(last - first, 1) % 1
    if args.scheduler == "swa_cyclic":
        return args.swa_lr * cosine(cycle)
    return args.swa_lr * (0.01 + 0.99 * abs(1 - 2 * cycle))  # Garipov et al. 2018, equation 10: down and up again


def cosine(done):
    """From 1 at the beginning of a cycle to 0 at its end."""
    return 0.5 * (1 + math.cos(math.pi * done))


def cycle_epochs(args):
    """The epochs, whole ones, after which the weights of a schedule's cycles are kept: the ends of cosine cycles (with
    swa_cyclic that of its first decay too), the middles of fge's; of other schedules cycles + 1 from swa_start on."""
    begins = args.warmup if args.scheduler == "cyclic" else args.swa_start * args.epochs
    first = {"fge": 0.5, "cyclic": 1}.get(args.scheduler, 0)
    count = args.cycles + (first == 0)
    found = [round(begins + (first + i) * (args.epochs - begins) / args.cycles) for i in range(count)]
    if len(set(found)) < count or min(found) < 1:
        raise UsageError(f"--cycles {args.cycles}: --epochs {args.epochs} are too few, each cycle needs one of its own")
    return found


def snapshot_epochs(args):
    """The epochs whose weights are kept: "" none, "all", "every=K", "cycles" (cycle_epochs), or a list; 0 is before the
    first step."""
    text, epochs = args.snapshots, args.epochs
    if text == "cycles":
        return set(cycle_epochs(args))
    if text == "all":
        return set(range(epochs + 1))
    try:
        if text.startswith("every="):
            return set(range(0, epochs + 1, int(text.removeprefix("every="))))
        return {int(e) for e in text.split(",") if e}
    except ValueError:
        raise UsageError(f"--snapshots {text}: epochs such as 0,1,10, 'all', 'every=5' or 'cycles' are "
                         "expected") from None
