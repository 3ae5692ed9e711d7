"""What networks say: logits, scores, class maps of planes, many points of weight space in one pass, BatchNorm.

N images, C classes, P points of weight space, S points of a plane. Measures are float32 unless asked; class maps may
be computed in bfloat16, with every point near a boundary evaluated again in float32.
"""

import copy
import operator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.fx.experimental.optimization import fuse

from landscape import metrics
from landscape import plane as planes
from landscape.data import LEGACY
from landscape.errors import ContentError
from models.mlp import FullyConnected


def batch_size(device, given=0, pixels=1024):
    """Images a batch in measuring: 64 on a CPU (larger tensors leave its caches), 2048 of 32x32 on a GPU."""
    return given or (64 if torch.device(device).type == "cpu" else max(32, 2048 * 1024 // max(pixels, 1024)))


def device_of(network):
    return next(network.parameters()).device


@torch.no_grad()
def logits(network, images, normalize, bs=0, rows=None, precision="fp32"):
    """(N, C) float32 on the CPU: the network in eval mode on images (landscape.data.Images) in order, or on rows.

    normalize: the normalisation as data.normalization gives it.
    """
    was_training = network.training
    network.eval()
    device = device_of(network)
    out = []
    for x, _, _ in images.batches(rows, batch_size(device, bs), normalize):
        with autocast(device, precision):
            out.append(network(x).float().cpu())
    network.train(was_training)
    return torch.cat(out)


def autocast(device, precision):
    """The autocast context of a precision: none for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def score(network, images, normalize, bs=0):
    """{"loss": mean cross-entropy, "accuracy": share} on the given labels; both None for an empty set."""
    if len(images) == 0:
        return {"loss": None, "accuracy": None}
    return score_logits(logits(network, images, normalize, bs), images.labels)


def score_logits(said, labels):
    """The same of logits (N, C) and labels (N,)."""
    said, labels = said.numpy(), labels.cpu().numpy()
    if not abs(said).max() < float("inf"):  # NaN too
        return {"loss": float("nan"), "accuracy": float((said.argmax(1) == labels).mean())}
    return {"loss": metrics.nll(said, labels), "accuracy": metrics.accuracy(said, labels)}


# ---- many points of weight space -----------------------------------------------------------------------------------

@torch.no_grad()
def logits_at(network, points, images, normalize, bs=0, precision="fp32", watch=None):
    """(P, N, C) float32 on the CPU: the network with each of P weight dicts, all sharing each batch of images.

    watch: called after each batch, once all points have seen it; for what hooks on the network have kept.
    """
    network.eval()
    device = device_of(network)
    points = [given(network, w, device) for w in points]
    parts = []
    for x, _, _ in images.batches(None, batch_size(device, bs), normalize):
        with autocast(device, precision):
            parts.append(torch.stack([functional_call(network, w, (x,)).float().cpu() for w in points]))
        if watch is not None:
            watch()
    return torch.cat(parts, dim=1)


def given(network, weights, device, buffers=True):
    """The entries of a weight dict that functional_call takes: no name of a tied parameter but its first."""
    names = [k for k, _ in network.named_parameters()] + [k for k, _ in network.named_buffers()] * buffers
    return {k: weights[k].to(device) for k in names if k in weights}


@torch.no_grad()
def losses_at(network, points, images, normalize, bs=0, precision="fp32"):
    """(cross-entropy (P, N) float32, right or not (P, N) bool) of each image, on the CPU: the network with each of P
    weight dicts, all sharing each batch of images. BatchNorm is folded into the layers before it. precision: fp32 or
    bf16."""
    device = device_of(network)
    folded = []
    for weights in points:
        twin = copy.deepcopy(network).eval()
        twin.load_state_dict(weights)
        folded.append(folded_copy(twin) if precision == "fp32" else bf16_copy(twin))
    parts = []
    for x, y, _ in images.batches(None, batch_size(device, bs), normalize):
        if precision == "bf16" and x.is_floating_point():
            x = x.bfloat16()
        said = torch.stack([one(x).float() for one in folded])
        losses = F.cross_entropy(said.flatten(0, 1), y.repeat(len(folded)), reduction="none").view(said.shape[:2])
        parts.append((losses.cpu(), (said.argmax(2) == y).cpu()))
    return tuple(torch.cat(part, dim=1) for part in zip(*parts))


NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)


def norm_layers(network):
    """{name: module} of the BatchNorm layers that keep running statistics."""
    return {k: m for k, m in network.named_modules() if isinstance(m, NORMS) and m.running_mean is not None}


@torch.no_grad()
def reestimate_bn(network, images, normalize, points=None, rows=None, bs=512, precision="fp32", how="pooled",
                  augment=None, draws=None):
    """BatchNorm statistics anew, for the network itself (points None, in place) or for each of P weight dicts, which
    share each batch.

    Returns the new weight dicts (or None). how: "pooled", mean and (unbiased) variance over all images used, summed in
    float64; "cumulative", the plain mean over batches of their means and unbiased variances; "ema", those of each batch
    in its turn with weight MOMENTUM, from mean 0 and variance 1 on. augment, draws: as Images.batches takes them. Each
    batch passes in train mode, so that layers above see activations normalised by their own batch, as in training; with
    bs >= N it is exactly one big batch. A lone last image is left out. Dropout stays off. A network without BatchNorm
    is returned untouched.
    """
    layers = norm_layers(network)
    if not layers:
        return points
    own = {k: v.detach().clone() for k, v in network.state_dict().items()}
    before = [own] if points is None else points
    device, was_training = device_of(network), network.training
    weights = [given(network, w, device, buffers=False) for w in before]
    totals = [{} for _ in weights]
    network.eval()
    with batch_statistics(layers) as sums:
        for x, _, _ in images.batches(rows, bs, normalize, augment, draws):
            for w, total in zip(weights, totals):
                if len(x) > 1:
                    sums.clear()
                    with autocast(device, precision):
                        functional_call(network, w, (x,))
                    for name, new in sums.items():
                        total[name] = STATISTICS[how](total.get(name), new)
    out = [with_statistics(w, total, own) if how != "pooled" else pooled(w, total, own)
           for w, total in zip(before, totals)]
    network.load_state_dict(out[0] if points is None else own)
    network.train(was_training)
    return None if points is None else out


def pooled(weights, sums, like):
    """The weights with the running statistics that follow from {layer: (count, sum, sum of squares)}, of the dtypes of
    like."""
    return with_statistics(weights, {name: (0, *moments(new)) for name, new in sums.items()}, like)


def with_statistics(weights, found, like):
    """The weights with the running statistics {layer: (batches, mean, variance)}, of the dtypes of like."""
    new = dict(weights)
    for name, (_, mean, variance) in found.items():
        new[f"{name}.running_mean"] = mean.to(like[f"{name}.running_mean"].dtype)
        new[f"{name}.running_var"] = variance.to(like[f"{name}.running_var"].dtype)
    return new


def moments(sums):
    """(mean, unbiased variance) of (count, sum, sum of squares)."""
    count, total, square = sums
    mean = total / count
    return mean, (square / count - mean**2).clamp_min(0) * count / max(count - 1, 1)


MOMENTUM = 0.1  # of an exponential average of batch statistics, torch's default


def added(total, new):
    return new if total is None else tuple(a + b for a, b in zip(total, new))


def averaged(before, new, share=None):
    """(batches, mean, variance) of the batches before (None: none) and of one more, (count, sum, sum of squares)."""
    mean, variance = moments(new)
    seen, *old = before or (0, torch.zeros_like(mean), torch.ones_like(mean))
    share = share or 1 / (seen + 1)
    return seen + 1, *(a + share * (b - a) for a, b in zip(old, (mean, variance)))


STATISTICS = {"pooled": added, "cumulative": averaged, "ema": lambda before, new: averaged(before, new, MOMENTUM)}


@contextmanager
def batch_statistics(layers):
    """Inside, the layers normalise by their batch; afterwards they and their statistics are as they were. Yields
    a dict in which they note {name: (count, sum, sum of squares)} of their inputs, per channel, added up until it is
    cleared, over batches in float64 (float32 where the device has no float64)."""
    sums = {}

    def gather(name):
        def hook(module, inputs, output):  # a momentum of 1 has left the batch's own statistics there
            count = inputs[0].numel() // inputs[0].shape[1]
            running = module.running_mean, module.running_var
            mean, variance = (v if v.device.type == "mps" else v.double() for v in running)
            square = variance * (count - 1) / count + mean**2
            sums[name] = added(sums.get(name), (count, count * mean, count * square))
            for v in running:  # a NaN, even times 0, would stay
                v.zero_()
        return hook

    before = [(m.training, m.momentum, m.running_mean.clone(), m.running_var.clone()) for m in layers.values()]
    hooks = [m.register_forward_hook(gather(name)) for name, m in layers.items()]
    for m in layers.values():
        m.training, m.momentum = True, 1.0
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
        for m, (training, momentum, mean, variance) in zip(layers.values(), before):
            m.training, m.momentum = training, momentum
            m.running_mean.copy_(mean)
            m.running_var.copy_(variance)


# ---- class maps ----------------------------------------------------------------------------------------------------

def converted(x, from_, to):
    """Images (n, C, H, W) normalised as from_ says, as a network wants them: preprocessing dicts (mean, std, channels,
    image_size). One channel is repeated, the size changed by interpolation; everything is affine in x."""
    if all(list(from_[k]) == list(to[k]) for k in ("mean", "std")) and x.shape[-1] == to["image_size"]:
        return x
    x = x * tensor(from_["std"], x).view(1, -1, 1, 1) + tensor(from_["mean"], x).view(1, -1, 1, 1)
    if x.shape[1] == 1 and to["channels"] > 1:
        x = x.expand(-1, to["channels"], -1, -1)
    if x.shape[2] != to["image_size"]:
        x = F.interpolate(x, (to["image_size"], to["image_size"]), mode="bilinear", antialias=True)
    return (x - tensor(to["mean"], x).view(1, -1, 1, 1)) / tensor(to["std"], x).view(1, -1, 1, 1)


class Adapted(torch.nn.Module):
    """A network that is asked with images as from_ normalises them, though it was trained on those of to."""

    def __init__(self, network, from_, to):
        super().__init__()
        self.network, self.from_, self.to_ = network, from_, to

    def forward(self, x):
        return self.network(converted(x, self.from_, self.to_))


def seen_by(plane, from_, to):
    """The plane as a network sees it. Points are (H, W, C); a plane lies in the data set's space from_.

    The map to a network's inputs is affine, so it is applied to three points once (in float64), not to every point.
    Coordinates keep their meaning.
    """
    origin, basis = (v.double() if v.device.type != "mps" else v for v in (plane.origin, plane.basis))
    three = torch.stack([origin, origin + basis[0], origin + basis[1]]).view(3, *plane.shape)
    seen = converted(three.permute(0, 3, 1, 2), from_, to).permute(0, 2, 3, 1).contiguous()
    flat = seen.flatten(1)
    return replace(plane, origin=flat[0].float(), basis=(flat[1:] - flat[0]).float(), shape=tuple(seen.shape[1:]))


def tensor(values, like):
    return torch.tensor(values, dtype=like.dtype, device=like.device)


class ClassMapper:
    """Class maps of one network. precision "fp32", or "bf16": a folded bfloat16 copy of the network labels every
    point, and points whose two best logits lie closer than a tolerance are labelled again by the float32 network.

    A fully connected network starts with a linear layer, which takes a plane of images to a plane of its own outputs:
    three points go through the layer instead of all. That is a fast network too, in either precision, and its points
    near boundaries are labelled again by the whole network.

    bfloat16 errs in proportion to the size of the numbers, so errors and margins are shares of the spread of a point's
    logits. On each plane the points nearest to a boundary tell the fast network's mean error, which is taken off all
    its logits, and what scatter is left: the tolerance is SAFETY times its root mean square over all points that were
    evaluated twice. A plane's map does not depend on the planes before it.
    """

    SAMPLE = 32  # points nearest to a boundary that are evaluated twice in any case
    SAFETY = 6.0  # tolerance over the root mean square of the errors; 5 would do on 12 planes of a resnet20

    def __init__(self, network, precision="fp32", bs=0):
        self.network = network.eval()
        self.device = device_of(network)
        self.precision, self.bs = precision, bs
        self.first, rest = split(network)
        self.fast = bf16_copy(rest) if precision == "bf16" else rest if self.first is not None else None

    @torch.no_grad()
    def __call__(self, plane, coords, probs=False):
        """plane: what the network sees, points (H, W, C). coords: (S, 2). Returns a dict of CPU tensors:
        labels (S,) int64, confidence (S,) largest softmax, margin (S,) as a share of the spread, probs (S, C) if asked,
        and rechecked, the number of points labelled twice. Raises ContentError on NaN logits."""
        plane, coords = plane.to(self.device), coords.to(self.device)
        network = self.fast or self.network
        said = self.forward(network, plane, coords)
        if not said.isfinite().all():
            raise ContentError("the network gives NaN or infinite logits on this plane: its weights have diverged")
        rechecked = 0
        if self.fast is not None:
            said, rechecked = self.recheck(plane, coords, said)
        p = said.softmax(1)
        out = {"labels": said.argmax(1).cpu(), "confidence": p.amax(1).cpu(), "rechecked": rechecked,
               "margin": margin(said).cpu()}
        if probs:
            out["probs"] = p.cpu()
        return out

    def forward(self, network, plane, coords):
        fast = network is self.fast
        dtype = torch.bfloat16 if fast and self.precision == "bf16" else torch.float32
        if fast and self.first is not None:
            plane = behind(plane, self.first)
        bs = self.bs or batch_size(self.device, 0, plane.shape[0] * plane.shape[1]) * 4 // dtype.itemsize
        buffer = torch.empty((min(bs, len(coords)), *plane.shape), device=self.device)
        out = []
        for part in coords.split(bs):
            x = planes.points(plane, part, out=buffer).permute(0, 3, 1, 2)
            out.append(network(x.to(dtype)).float())
        return torch.cat(out)

    def recheck(self, plane, coords, said):
        """float32 logits in place of the fast ones wherever the two best classes are close; and how many."""
        if said.shape[1] == 1:
            return said, 0
        done = torch.zeros(len(coords), dtype=torch.bool, device=self.device)
        rows = margin(said).topk(min(self.SAMPLE, len(coords)), largest=False).indices
        exact = self.forward(self.network, plane, coords[rows])
        said = said + (exact - said[rows]).mean(0)
        errors = []
        while True:
            best = exact.topk(2, dim=1).indices
            error = spread((exact - said[rows]).gather(1, best)) / spread(exact).clamp_min(1e-12)
            errors.append(error)
            said[rows], done[rows] = exact, True
            tolerance = self.SAFETY * torch.cat(errors).square().mean().sqrt()
            rows = ((margin(said) <= tolerance) & ~done).nonzero()[:, 0]
            if len(rows) == 0:
                return said, int(done.sum())
            exact = self.forward(self.network, plane, coords[rows])


def split(network):
    """(the first layer of a fully connected network, a copy of the network that starts behind it); of any other
    (None, the network). Behind the first layer of ViT-4 or MLP-Mixer lie 99 % of the work: it gains nothing there."""
    if not isinstance(network, FullyConnected) or len(list(network.children())) < 2:
        return None, network
    rest = copy.deepcopy(network)
    rest.fc1 = torch.nn.Identity()
    return network.fc1, rest


def behind(plane, layer):
    """The plane of the outputs D of a linear layer on the flattened images (C, H, W) of a plane; points (1, 1, D)."""
    three = torch.cat([plane.origin[None], plane.basis]).view(3, *plane.shape).permute(0, 3, 1, 2).flatten(1)
    image = F.linear(three, layer.weight)
    return replace(plane, origin=image[0] + layer.bias, basis=image[1:], shape=(1, 1, image.shape[1]))


def spread(x):
    """Largest less smallest of each row: what a common shift, which changes no label, leaves alone."""
    return x.amax(1) - x.amin(1)


def margin(x):
    """Best less second best of each row, as a share of its spread; 0 of a single class."""
    if x.shape[1] == 1:
        return torch.zeros_like(x[:, 0])
    best = x.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]) / spread(x).clamp_min(1e-12)


def bf16_copy(network):
    """A bfloat16 channels_last copy of the network for inference. Where torch.fx can follow its forward, BatchNorm is
    folded into convolutions, a last linear layer and the pooling before it stay float32 (the rounding of the logits
    themselves would be half of the error), and on a CPU each convolution adds and rectifies what it has just computed.
    """
    try:
        fast = fuse(copy.deepcopy(network).eval(), inplace=True)
    except Exception:  # torch.fx fails in many ways on Python control flow; the plain copy is right too
        return as_bf16(copy.deepcopy(network).eval())
    last = next(iter(n for n in fast.graph.nodes if n.op == "output")).args[0]
    head = fast.get_submodule(last.target) if getattr(last, "op", "") == "call_module" else None
    head = copy.deepcopy(head) if isinstance(head, torch.nn.Linear) else None
    biases = {k.removesuffix(".bias"): v.detach() for k, v in fast.named_parameters() if k.endswith(".bias")}
    fast = as_bf16(fast)
    if head is not None:
        fast.set_submodule(last.target, head.requires_grad_(False))
        pool_in_float32(fast, last)
    if device_of(network).type == "cpu":
        join_convolutions(fast, biases)
    return fast


def folded_copy(network):
    """A copy for inference in the network's precision: BatchNorm folded into convolutions where torch.fx can follow its
    forward, and, on a CPU, each convolution adds and rectifies what it has just computed."""
    try:
        fast = fuse(copy.deepcopy(network).eval(), inplace=True)
    except Exception:  # as below
        fast = copy.deepcopy(network).eval()
    fast = fast.to(memory_format=torch.channels_last).requires_grad_(False)
    if device_of(network).type == "cpu" and isinstance(fast, torch.fx.GraphModule):
        join_convolutions(fast, {})
    return fast


def as_bf16(network):
    for m in network.modules():
        if isinstance(m, torch.nn.Conv2d):
            m.weight.data = rounded(m.weight.data)
    return network.to(dtype=torch.bfloat16, memory_format=torch.channels_last).requires_grad_(False)


def rounded(weight):
    """A convolution's weights (O, I, h, w), rounded to bfloat16 in such a way that the taps of each pair of channels
    keep their sum: what one loses is handed to the next. Smooth inputs then give nearly what they gave: on planes of a
    resnet20 the error is less than half of that of rounding to nearest."""
    taps = weight.flatten(2)
    out, carry = torch.empty_like(taps), torch.zeros_like(taps[:, :, 0])
    for k in range(taps.shape[2]):
        out[:, :, k] = (taps[:, :, k] + carry).bfloat16()
        carry = taps[:, :, k] + carry - out[:, :, k]
    return out.view_as(weight)


def pool_in_float32(network, head):
    """In a torch.fx GraphModule, in place: what lies between the last ReLU or layer with weights and the node of a
    float32 head (pooling, flattening) is float32."""
    modules, node = dict(network.named_modules()), head.args[0]
    while len(node.all_input_nodes) == 1 and not is_relu(node, modules) and not (
            node.op == "call_module" and list(modules[node.target].parameters())):
        node = node.all_input_nodes[0]
    with network.graph.inserting_after(node):
        wide = network.graph.call_method("float", (node,))
    node.replace_all_uses_with(wide, delete_user_cb=lambda user: user is not wide)
    network.recompile()


class Joined(torch.nn.Module):
    """A convolution, the addition of a tensor of its result's shape if one is given, and a ReLU if asked: one pass over
    the memory instead of three. These are the operators that torch.compile uses on a CPU. in_place: the result takes
    the place of the tensor added."""

    def __init__(self, conv, relu, bias):
        super().__init__()
        self.how = [list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups]
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight, *self.how)
        self.channels, self.bias, self.relu, self.in_place = conv.out_channels, bias, "relu" if relu else None, False

    def forward(self, x, other=None):
        join = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return join(x, self.weight, self.bias, *self.how, self.relu or "none", [], "")
        if other.shape[1] != self.channels:
            raise ContentError("this network adds tensors of different shapes: use --map_precision fp32")
        then = (self.weight, self.bias, *self.how, "add", 1.0, self.relu, [], "")
        if self.in_place:
            return torch.ops.mkldnn._convolution_pointwise_.binary(other, x, *then)
        return join.binary(x, other, *then)


def join_convolutions(network, biases):
    """In a torch.fx GraphModule, in place: every convolution does the addition and the ReLU that alone follow it. Those
    that add nothing take their bias of `biases`, which is float32."""
    modules = dict(network.named_modules())
    for node in list(network.graph.nodes):
        conv = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(conv, torch.nn.Conv2d) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            continue
        last, inputs, user = node, (node.args[0],), only_user(node)
        if user is not None and user.target is operator.add:
            other = next((a for a in user.args if a is not node), None)
            if getattr(other, "op", "") in ("call_module", "call_function"):
                last, inputs, user = user, (node.args[0], other), only_user(user)
        relu = user is not None and is_relu(user, modules)
        last = user if relu else last
        name = f"joined_{node.name}"
        modules[name] = Joined(conv, relu, biases.get(node.target, conv.bias) if len(inputs) == 1 else conv.bias)
        network.add_submodule(name, modules[name])
        with network.graph.inserting_after(last):
            last.replace_all_uses_with(network.graph.call_module(name, inputs))
    network.graph.eliminate_dead_code()
    add_in_place(network.graph, modules)
    network.recompile()
    network.delete_all_unused_submodules()


def add_in_place(graph, modules):
    """Joined convolutions add in place what only such convolutions have read, and none reads afterwards."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        joined = modules.get(node.target)
        if isinstance(joined, Joined) and len(node.args) == 2:
            x, other = node.args
            readers = [isinstance(modules.get(n.target), Joined) for n in (other, *other.users)]
            joined.in_place = x is not other and all(readers) and max(other.users, key=order.get) is node


def is_relu(node, modules):
    return node.target is F.relu or isinstance(modules.get(node.target), torch.nn.ReLU)


def only_user(node):
    return next(iter(node.users)) if len(node.users) == 1 else None


def image_space(entry, published=False):
    """The space in which planes of a data set lie, as a preprocessing dict: its own size and channels, normalised with
    its true mean and std; published: with the constants of dbViz, in whose space its old class maps were made."""
    mean, std = LEGACY if published and entry.channels == 3 else (entry.mean, entry.std)
    return {"mean": list(mean), "std": list(std), "channels": entry.channels, "image_size": entry.image_size}


def image_plane(images, rows, space):
    """The plane through three images (landscape.data.Images, never augmented): points (H, W, C) in `space`.

    Raises landscape.plane.PlaneError for equal or collinear anchors.
    """
    x = images.pixels(torch.as_tensor(rows)).permute(0, 2, 3, 1)
    x = (x - tensor(space["mean"], x)) / tensor(space["std"], x)
    return planes.through(*x.contiguous())
