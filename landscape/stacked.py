"""Trainings that differ in seeds and labels alone, as one stacked network where that is faster than one by one.

    python -m double_descent.deep --net mlp --width 16 --dataset digits --augment none --seeds 0-15

The weights of M networks become tensors with a first axis M, a step of all of them is one step under vmap, and one
optimiser moves them all, since SGD, Adam and AdamW treat every number by itself. Initial weights, batch order,
augmentation and labels are each member's own, drawn as train.fit draws them. Every member fills the run folder that
train.train would fill, and its weights are those of a separate training up to the rounding of float32.

What a stack saves is the work of Python and of dispatching. Where the arithmetic counts (convolutions on a CPU, wide
layers) a stack is slower, so a few steps of both ways are timed first.
"""

# M members, B images of a batch, N images of a set, C classes.

import copy
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, groupby

import torch
import torch.nn.functional as F
from torch.func import functional_call, stack_module_state

from landscape import data as datasets
from landscape import evaluate, parallel, runs, seeding, train
from landscape.errors import ContentError, Interrupted, UsageError

ROUNDS = 5  # timed steps of each way, after one to warm up
MARGIN = 1.2  # a stack must be so much faster, since clocks are not exact

# What members may differ in.
FREE = {"seed", "init_seed", "order_seed", "augment_seed", "data_seed", "noise_seed", "noise_rate"}

# What a stack can do; with another value of one of these, members are trained one after the other.
STACKS = {"train_mode": "naive", "precision": "fp32", "accumulate": 1, "clip_norm": 0.0, "sam_radius": None,
          "compile": False, "active_log": False}


@dataclass
class Member:
    """One of the networks: its settings, what train.prepare made of them, and, once that is open, its run."""

    args: object
    data: object
    network: object
    described: dict
    run: object = None
    state: dict | None = None
    error: ContentError | None = None  # what ended it: it has diverged, or its saved state is damaged

    @property
    def position(self):
        return self.state["epoch"], self.state["step"]

    @contextmanager
    def noting(self):
        """Inside, what ends this member is noted, and stops no other."""
        try:
            yield
        except ContentError as e:
            self.error = e


def train_all(study, settings, device, mode):
    """Train what each of the settings (of cli.resolve, alike but for FREE) describes, into its own run folder; finished
    runs are left alone.

    mode: "auto" stacks where it can and where that is measured to be faster, and says so in a line; "always" where it
    can, and raises UsageError where it cannot; "never", as under torchrun. Raises Interrupted when asked to stop (all
    states saved), and at the end ContentError where networks have failed, such as by diverging, which does not stop the
    others.
    """
    for key in settings[0].flags:
        if key not in FREE and any(vars(a)[key] != vars(settings[0])[key] for a in settings):
            raise ValueError(f"networks to be trained together differ in {key}")
    todo = [a for a in settings if a.force or not (runs.folder(study, a) / "done").exists()]
    members = prepare(todo, device)
    if len(members) > 1 and mode != "never" and not parallel.joined() and chosen(members, device, mode):
        train_stacked(study, members, device)
    else:
        for member in members:
            with runs.start(study, member.args) as member.run:
                train_one(member, device)
    if failed := [m for m in members if m.error]:
        raise failed[0].error if len(settings) == 1 else ContentError(
            f"{len(failed)} of {len(settings)} networks failed, first {failed[0].run.path.name}: {failed[0].error}")


def prepare(settings, device):
    """The Members of some settings. Equal labels are one Data, and all of them share the images."""
    made, members = {}, []
    for args in settings:
        key = tuple(datasets.given_by(vars(args)).items())
        if key not in made:
            data = train.make_data(args, device)
            made[key] = sharing(data, next(iter(made.values()))) if made else data
        data, network, described = train.prepare(args, device, made[key])
        members.append(Member(args, data, network.to(device), described))
    return members


def sharing(data, other):
    """data with the images of other, which are the same ones; its splits and labels stay its own."""
    store = other.full.store
    val = other.val if torch.equal(data.val.ids, other.val.ids) else data.val.to(store.device, store)
    return replace(data, train=data.train.to(store.device, store), val=val, test=other.test, full=other.full)


def train_one(member, device):
    """Train a member by itself."""
    if not member.run.finished:
        with member.noting():
            train.train(member.run, member.args, device, (member.data, member.network, member.described))


def train_stacked(study, members, device):
    """Train members in stacks: one for each step at which saved states stand."""
    with ExitStack() as folders:
        for member in members:
            member.run = folders.enter_context(runs.start(study, member.args))
            if not member.run.finished:
                with member.noting():
                    member.state = train.load_state(member.run)
        unfinished = sorted((m for m in members if m.state), key=lambda m: m.position)
        for _, group in groupby(unfinished, key=lambda m: m.position):
            group = list(group)
            if len(group) > 1:
                fit(group, device)
            else:
                train_one(group[0], device)


# ---- the choice ----------------------------------------------------------------------------------------------------

def chosen(members, device, mode):
    """Whether to stack; a line says why."""
    why, many = obstacle(members[0]), len(members)
    if not why:
        try:
            alone, together = measure(members, device)
        except RuntimeError as e:  # what vmap cannot do, such as dropout, or what a GPU's memory cannot hold
            why = (str(e).strip().splitlines() or [type(e).__name__])[0]
    if why and mode == "always":
        raise UsageError(f"--stack always: these networks cannot be stacked ({why})")
    if why:
        print(f"{many} networks, one after the other: they cannot be stacked ({why})", flush=True)
        return False
    stack = mode == "always" or alone >= MARGIN * together
    print(f"{many} networks, {'stacked' if stack else 'one after the other'}: a step of all takes "
          f"{together * 1e3:.2f} ms stacked, {alone * 1e3:.2f} ms one after the other", flush=True)
    return stack


def obstacle(member):
    """Why members like this cannot be stacked, in words; "" where nothing is known against it."""
    for key, value in STACKS.items():
        if vars(member.args)[key] != value:
            return f"--{key} {vars(member.args)[key]}"
    if not member.args.epochs:
        return "--epochs 0"
    return "their images are decoded from files" if isinstance(member.data.train, datasets.Streamed) else ""


def measure(members, device):
    """Seconds of a step of all members, data included, (one after the other, stacked): the least of ROUNDS; of this
    process's time on a CPU, where others may be at work. The steps are those of copies."""
    ways = [steps_alone(members, device), steps_stacked(members)]
    best = [float("inf"), float("inf")]
    for turn in range(ROUNDS + 1):
        for i, way in enumerate(ways):
            began = clock(device)
            next(way)
            if turn:
                best[i] = min(best[i], clock(device) - began)
    return best


def clock(device):
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def steps_alone(members, device):
    """At every next() a step of a copy of each member as train.fit takes it."""
    args = members[0].args
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    work = []
    for m in members:
        network = copy.deepcopy(m.network).to(memory_format=torch.channels_last).train()
        sums = train.Sums(device, [0.0, 0.0, 0.0])
        work.append((network, train.make_optimiser(network, args), sums, batches_alone(m)))
    objective = train.make_objective(args, members[0].data, members[0].described, device)
    while True:
        for network, optimiser, sums, batches in work:
            x, y, _ = next(batches)
            loss, said = train.take_step(network, network, objective, (x, y), args, optimiser, scaler)
            sums.add(loss, (said.argmax(1) == y).sum(), len(x))
        yield


def batches_alone(member):
    images, augment = member.data.train, datasets.parse_augment(member.args.augment, member.data.entry)
    for epoch in count():
        order, draws = drawn(member, augment, epoch)
        yield from images.batches(order, member.args.bs, member.described["preprocessing"], augment, draws)


def steps_stacked(members):
    """At every next() a step of a stack of copies of the members."""
    stack = Stack([copy.deepcopy(m.network) for m in members])
    optimiser = train.make_optimiser(stack, members[0].args)
    sums = train.Sums(evaluate.device_of(stack), [[0.0] * len(members), [0.0] * len(members), 0.0])
    for epoch in count():
        for x, y in batches_stacked(members, epoch, 0):
            sums.add(*take_step(stack, optimiser, x, y, members[0].args.label_smoothing), y.shape[1])
            yield


# ---- the stack -----------------------------------------------------------------------------------------------------

class Stack(torch.nn.Module):
    """M networks of one architecture as one, whose weights and buffers have a first axis M. Those of the networks
    become views of them, so that each network goes on being what the stack has made of it."""

    def __init__(self, networks):
        super().__init__()
        weights, self.kept = stack_module_state(networks)  # by names with dots, which register_buffer refuses
        self.names = list(weights)
        self.weights = torch.nn.ParameterList(torch.nn.Parameter(w.detach(), w.requires_grad) for w in weights.values())
        self.like = [networks[0]]  # in a list, so that its weights are not the stack's too
        for m, network in enumerate(networks):
            for name, own in [*network.named_parameters(), *network.named_buffers()]:
                own.data = self.held()[name].data[m]

    def held(self):
        return {**dict(zip(self.names, self.weights)), **self.kept}

    def said(self, x, each, axis):
        """Logits with the members along `axis`, of x (M, B, …), a batch for each, or (B, …), one for all."""
        self.like[0].train(self.training)
        return torch.vmap(lambda held, x: functional_call(self.like[0], held, (x,)), in_dims=(0, 0 if each else None),
                          out_dims=axis)(self.held(), x)

    def forward(self, x):
        """Logits (B, M, C) of images (B, …) that all members see."""
        return self.said(x, each=False, axis=1)


def take_step(stack, optimiser, x, y, smoothing):
    """A step of each member on its batch, x (M, B, …) with labels y (M, B). Returns losses (M,), and how many of each
    batch were right (M,)."""
    optimiser.zero_grad(set_to_none=True)
    said = stack.said(x, each=True, axis=0)
    losses = F.cross_entropy(said.flatten(0, 1), y.flatten(), reduction="none", label_smoothing=smoothing)
    losses = losses.view(y.shape).mean(1)
    losses.sum().backward()  # a member's weights have a part in its own loss alone
    optimiser.step()
    return losses.detach(), (said.detach().argmax(2) == y).sum(1)


def drawn(member, augment, epoch):
    """(order of the training images that an epoch uses, draws of their augmentation) as in train.fit."""
    images, args = member.data.train, member.args
    order = torch.randperm(len(images), generator=seeding.stream(args.order_seed, "order", epoch))
    order = order[:train.steps_per_epoch(len(images), args.bs) * args.bs]
    return order, images.draw(augment, seeding.stream(args.augment_seed, "augment", epoch))


def batches_stacked(members, epoch, first):
    """Yield images (M, B, C, H, W) and given labels (M, B) of an epoch's steps from `first` on. Each member's are those
    that train.fit would take; they are gathered for all members at once."""
    args, many = members[0].args, len(members)
    augment = datasets.parse_augment(args.augment, members[0].data.entry)
    columns = {}
    for m in members:
        order, draws = drawn(m, augment, epoch)
        order, images = order[first * args.bs:], m.data.train
        own = {"ids": images.ids.cpu(), "labels": images.labels.cpu(), **draws}
        for name, column in own.items():
            columns.setdefault(name, []).append(column[order])
    # Row by row as the steps want them: the first batch of each member, the second batch of each, …
    columns = {k: torch.cat([rows.flatten(0, 1) for rows in torch.stack(v).split(args.bs, 1)])
               for k, v in columns.items()}
    store = members[0].data.train.store
    joint = datasets.Images(store, columns.pop("labels"), columns.pop("ids"))
    for x, y, _ in joint.batches(None, many * args.bs, members[0].described["preprocessing"], augment, columns):
        yield x.unflatten(0, (many, -1)), y.view(many, -1)


# ---- training ------------------------------------------------------------------------------------------------------

def fit(members, device):
    """Train members that stand at the same step to the end, and mark their runs done.

    All is written as train.fit writes it, but that "seconds" of metrics.jsonl are those of the whole stack; a state
    saved by either is resumed by both. A member that diverges has its error noted and the others go on.
    """
    args, normalize = members[0].args, members[0].described["preprocessing"]
    steps = train.steps_per_epoch(len(members[0].data.train), args.bs)
    stack, optimiser = restored(members)
    at, first = members[0].position
    progress = runs.Progress(args.epochs * steps, f"{len(members)} networks", at * steps + first)
    saved = time.monotonic()

    def save(epoch, step, sums, seconds):
        for m, member, own in living(members, sums):
            with member.noting():
                own.check(epoch, step)
                weights = {k: v.clone() for k, v in member.network.state_dict().items()}  # views save what they view
                train.save_state(member.run, member.state, device, epoch=epoch, step=step, sums=own.plain(),
                                 seconds=seconds, network=weights, optimiser=part(optimiser.state_dict(), m), scaler={})

    def stopped(where):
        progress.close()
        return Interrupted(f"{stop.requested}: stopped {where}; saved in the folders of {len(members)} networks in "
                           f"{members[0].run.path.parent}; the same command resumes them")

    with runs.stoppable() as stop:
        for member in members:
            train.keep_first(member.network, member.args, member.run, member.described, member.state)
        for epoch in range(at, args.epochs):
            first, sums = members[0].state["step"], joint_sums(members, device)
            began = time.monotonic() - members[0].state["seconds"]
            stack.train()
            for step, (x, y) in enumerate(batches_stacked(members, epoch, first), first):
                rate = train.learning_rate(args, epoch * steps + step, steps)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                sums.add(*take_step(stack, optimiser, x, y, args.label_smoothing), y.shape[1])
                progress.step(1, f"epoch {epoch + 1}")
                if step + 1 < steps and (stop.requested or time.monotonic() - saved >= args.save_every):
                    save(epoch, step + 1, sums, time.monotonic() - began)
                    saved = time.monotonic()
                    if stop.requested:
                        raise stopped(f"in epoch {epoch + 1}, step {step + 1}")
            record = {"epoch": epoch + 1, "lr": rate, "seconds": round(time.monotonic() - began, 3)}
            score = scorer(stack, members, normalize, args.eval_bs)
            for m, member, own in living(members, sums):
                with member.noting():
                    own.check(epoch, steps)
                    train.check_weights(member.network, epoch, steps)
                    train.close_epoch(member.network, partial(score, m), member.data, args, member.run,
                                      member.described, member.state, {**record, **own.means()})
            for member in members:
                member.state.update(step=0, seconds=0.0, sums=[0.0, 0.0, 0.0])
            if all(member.error for member in members):
                break
            if stop.requested or time.monotonic() - saved >= args.save_every:
                save(epoch + 1, 0, joint_sums(members, device), 0.0)
                saved = time.monotonic()
                if stop.requested and epoch + 1 < args.epochs:
                    raise stopped(f"after epoch {epoch + 1}")
        progress.close()
        for member in members:
            if not member.error:
                with member.noting():
                    finish(member)


def finish(member):
    network, run = member.network, member.run
    run.save_weights("model", network.state_dict(), member.described)
    results = train.final_results(network, member.data, member.args, run, member.described, member.state["best"])
    train.finish(run, member.args, member.data, network, member.described, results)


def restored(members):
    """(Stack, optimiser) as the members' states have them."""
    states = [m.state for m in members]
    if "network" in states[0]:
        for member in members:
            member.network.load_state_dict(member.state["network"])
    stack = Stack([m.network for m in members])
    optimiser = train.make_optimiser(stack, members[0].args)
    if "optimiser" in states[0]:
        optimiser.load_state_dict(joined([s["optimiser"] for s in states]))
    return stack, optimiser


def part(held, m):
    """The state of a stack's optimiser as that of member m's own."""
    return {**held, "state": {i: {k: v[m].clone() if of_each(k, v) else v for k, v in one.items()}
                              for i, one in held["state"].items()}}


def joined(held):
    """The states of members' own optimisers as that of their stack's."""
    return {**held[0], "state": {i: {k: torch.stack([h["state"][i][k] for h in held]) if of_each(k, v) else v
                                     for k, v in one.items()} for i, one in held[0]["state"].items()}}


def of_each(name, value):
    """Is this entry of an optimiser's state one value for each weight? Adam also counts its steps, which are shared."""
    return name != "step" and isinstance(value, torch.Tensor)


def joint_sums(members, device):
    """The Sums of all members, with losses and numbers of right answers (M,)."""
    losses, right, seen = zip(*(m.state["sums"] for m in members))
    return train.Sums(device, [losses, right, seen[0]])


def living(members, sums):
    """[(number, member, its Sums)] of those that have not diverged."""
    losses, right, recent = sums.loss.tolist(), sums.right.tolist(), [()] * len(members)
    if sums.recent:
        recent = [column.unbind() for column in torch.stack(sums.recent, 1)]
    out = []
    for m, member in enumerate(members):
        own = train.Sums(sums.loss.device, [losses[m], right[m], sums.seen])
        own.recent = list(recent[m])
        if not member.error:
            out.append((m, member, own))
    return out


def scorer(stack, members, normalize, bs):
    """score(m, images): loss and accuracy of member m. Images that all members share pass through the stack once."""
    said = {}

    def score(m, images):
        if not all(images is member.data.val or images is member.data.test for member in members):
            return evaluate.score(members[m].network, images, normalize, bs)
        if id(images) not in said:
            said[id(images)] = evaluate.logits(stack, images, normalize, bs)
        return evaluate.score_logits(said[id(images)][:, m], images.labels)

    return score
