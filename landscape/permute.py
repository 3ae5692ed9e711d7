"""Permutations of hidden units: applied, checked, and found so that one network comes close to another (re-basin).

A permutation of a network is a dict {group: LongTensor (units,)} for the groups of its Axes (models.axes): unit i of
the permuted network is unit perm[i] of the given one. `align` is all that a caller with two dicts of weights needs;
`match` finds permutations by the weights, `match_activations` by what the units say, `sinkhorn` by gradient descent
over softened permutations. M networks, n units of a group.
"""

import copy
from concurrent.futures import ThreadPoolExecutor

import torch
from scipy.optimize import linear_sum_assignment

from landscape import weights as algebra
from landscape.errors import ContentError
from landscape.seeding import stream

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


# ---- permutations --------------------------------------------------------------------------------------------------

def identity(axes):
    return {group: torch.arange(size) for group, size in axes.groups.items()}


def random(axes, seed):
    """Uniformly drawn permutations of every group."""
    generator = stream(seed, "permutation")
    return {group: torch.randperm(size, generator=generator) for group, size in axes.groups.items()}


def compose(first, second):
    """Applying it is applying first, then second."""
    return {group: perm[second[group]] for group, perm in first.items()}


def inverse(perms):
    return {group: perm.argsort() for group, perm in perms.items()}


def index(axis, perms):
    """LongTensor (size,): which place along an Axis comes to each place."""
    where = torch.arange(axis.size)
    for group, places in axis.places.items():
        where[places] = places[perms[group]]
    return where


def apply(weights, axes, perms):
    """The weights of the permuted network, running statistics included: the same function. A new dict."""
    out = {}
    for name, tensor in weights.items():
        for dim, axis in enumerate(axes.tensors.get(name, ())):
            if axis.places:
                tensor = tensor.index_select(dim, index(axis, perms).to(tensor.device))
        out[name] = tensor.clone()
    return out


def parameters(weights):
    """The dict without running statistics: what a network has learned, and what a distance is taken of."""
    return {k: v for k, v in weights.items() if not k.endswith(STATISTICS)}


def distance(a, b):
    """Euclidean distance of the parameters of two dicts of weights."""
    return algebra.distance(parameters(a), parameters(b))


@torch.no_grad()
def check(network, weights, axes, perms, x, tolerance=1e-4):
    """Raise ContentError, naming the first layer, unless the permuted network says of a batch x what the network with
    `weights` says, in eval and in train mode (dropout off; BatchNorm normalises by the batch, two images or more).

    Inside the network a layer's outputs are compared in ascending order, image by image. All in float64 where the
    device has it, since rounding grows with depth. Returns the largest difference, as a share of the largest output of
    its layer, as the tolerance is. The network itself is left alone.
    """
    twin = copy.deepcopy(network)
    if x.device.type != "mps":
        twin = twin.double()
    x, worst = x.to(next(twin.parameters()).dtype) if x.is_floating_point() else x, 0.0
    for train in (False, True):
        twin.train(train)
        for module in twin.modules():
            if isinstance(module, torch.nn.modules.dropout._DropoutNd):
                module.eval()
        before, after = (outputs(twin, w, x) for w in (weights, apply(weights, axes, perms)))
        for name, value in before.items():
            gap = ((after[name] - value).abs().max() / value.abs().max().clamp_min(1e-30)).item()
            if not gap <= tolerance:
                raise ContentError(f"the permutation changes the function, first at {name or 'the output'} (in "
                                   f"{'train' if train else 'eval'} mode, by {gap:.1e} of its largest value): the "
                                   "network's permutation axes are wrong; --align none does without")
            worst = max(worst, gap)
    return worst


def outputs(network, weights, x):
    """{layer: what it says of x, sorted for each image} of the modules with weights of their own, in the order of use;
    last, under "", what the network says."""
    said, hooks = {}, []

    def listen(name):
        def hook(module, inputs, output):
            said[name] = output.flatten(1).sort(1).values
        return hook

    for name, module in network.named_modules():
        if name and next(module.parameters(recurse=False), None) is not None:
            hooks.append(module.register_forward_hook(listen(name)))
    network.load_state_dict(weights)
    out = network(x)
    for hook in hooks:
        hook.remove()
    return {**said, "": out}


# ---- by the weights ------------------------------------------------------------------------------------------------

GAIN = 1e-6  # a change must gain this share of the largest entry of its Gram matrix: more than float32's rounding


class Descent:
    """Coordinate descent of M networks towards one reference, together: products of units in one call for all, one
    linear assignment each, in threads.

    tied[group]: [(tensor, dimension, places or None for the whole axis, groups along its other dimensions)].
    now: {tensor: (M, ...)}, the networks as permuted so far by perms: {group: [M permutations]}.
    """

    def __init__(self, reference, others, axes, starts, as_published=False):
        self.groups = [g for g in axes.groups if not (as_published and g in axes.omitted)]
        self.tied = {g: [] for g in self.groups}
        for name, table in axes.tensors.items():
            if name.endswith(STATISTICS) or (as_published and len(table) == 1):
                continue
            for dim, axis in enumerate(table):
                along = {g for d, a in enumerate(table) if d != dim for g in a.places}
                for group in axis.places.keys() & self.tied.keys():
                    if group in along:
                        raise ValueError(f"{name}: {group} lies along two of its dimensions")
                    places = axis.places[group].to(reference[name].device)
                    whole = places.shape == (axis.size, 1) and torch.equal(places[:, 0], places[:, 0].sort().values)
                    self.tied[group].append((name, dim, None if whole else places, along & self.tied.keys()))
        self.others = {g: set().union(*(along for *_, along in terms)) for g, terms in self.tied.items()}
        names = {name for terms in self.tied.values() for name, *_ in terms}
        self.fixed = {(name, g): rows(reference[name][None].float(), dim, places)[0]
                      for g, terms in self.tied.items() for name, dim, places, _ in terms}
        self.perms = {g: [start[g].clone() for start in starts] for g in axes.groups}
        moved = [apply({name: other[name] for name in names}, axes, start) for other, start in zip(others, starts)]
        self.now = {name: torch.stack([w[name].float() for w in moved]) for name in names}

    def gram(self, group, which, settled=None):
        """(len(which), n, n): products of the reference's units with those of some networks, over all that is tied to
        the group; with `settled`, over tensors whose other groups are all settled."""
        total = 0
        for name, dim, places, along in self.tied[group]:
            if settled is None or along <= settled:
                now = self.now[name]
                now = now if len(which) == len(now) else now[which]
                total = total + self.fixed[name, group] @ rows(now, dim, places).mT
        return total

    def improve(self, group, which, pool, settled=None):
        """Permute the group of some networks as is best with the rest held; returns those that gained."""
        grams = self.gram(group, which, settled)
        if not torch.is_tensor(grams):
            return []
        gained = []
        for m, (perm, gain) in zip(which, pool.map(solve, grams)):
            if gain > GAIN * grams.abs().max().item():
                self.perms[group][m] = self.perms[group][m][perm]
                for name, dim, places, _ in self.tied[group]:
                    move(self.now[name][m], dim, places, perm)
                gained.append(m)
        return gained

    def from_the_input(self, pool):
        """Settle the groups one after the other, always the one whose ties are settled for the largest share."""
        settled = set()
        while left := [g for g in self.groups if g not in settled]:
            group = max(left, key=lambda g: self.share(g, settled))
            self.improve(group, range(len(self.perms[group])), pool, settled)
            settled.add(group)

    def share(self, group, settled):
        sizes = [(self.fixed[name, group].numel(), along <= settled) for name, *_, along in self.tied[group]]
        return sum(size for size, there in sizes if there) / max(sum(size for size, _ in sizes), 1)

    def descend(self, sweeps, generator, pool):
        """Until no group of any network gains, in at most so many sweeps; a group waits until a neighbour has moved."""
        models = range(len(next(iter(self.perms.values()), [])))
        stale = {g: set(models) for g in self.groups}
        for _ in range(sweeps):
            if not any(stale.values()):
                break
            for k in torch.randperm(len(self.groups), generator=generator).tolist():
                group = self.groups[k]
                which = sorted(stale[group])
                stale[group] = set()
                if which:
                    for m in self.improve(group, which, pool):
                        for other in self.others[group]:
                            stale[other].add(m)


def rows(tensors, dim, places):
    """(M, n, r): the entries of each of n units in tensors (M, ...), whose dimension dim + 1 holds them."""
    tensors = tensors.movedim(dim + 1, 1)
    return (tensors if places is None else tensors[:, places]).flatten(2) if tensors.dim() > 2 or places is not None \
        else tensors[:, :, None]


def move(tensor, dim, places, perm):
    """Let the units of a tensor change places along a dimension, in place."""
    view, perm = tensor.movedim(dim, 0), perm.to(tensor.device)
    if places is None:
        view.copy_(view[perm])
    else:
        view[places] = view[places[perm]]


def solve(gram):
    """(the permutation that maximises sum_i gram[i, perm[i]], by how much more than the identity)"""
    gram = gram.double().cpu().numpy()
    perm = linear_sum_assignment(gram, maximize=True)[1]
    return torch.from_numpy(perm), float(gram[range(len(gram)), perm].sum() - gram.trace())


@torch.no_grad()
def match(reference, others, axes, *, starts=None, restarts=0, sweeps=100, seed=0, as_published=False):
    """[perms] of M networks, each permuted as near as it comes to the reference: minimises the squared distance of the
    parameters, every tensor once (Ainsworth et al. 2023, arXiv 2209.04836, algorithm 1, with biases and norms).

    reference, others: dicts of weights, on the device where the products of units are to be computed. Coordinate
    descent over the groups in a drawn order, each solved exactly with the others held, until no group gains. It
    begins with starts[m] where given (perms, a warm start), else from the input: groups in the order in which what
    they are tied to is settled, by the settled part alone, which recovers a permuted copy. restarts: further descents
    from random permutations; the nearest counts. as_published: without what rebasin 0.0.47 omitted, vectors and some
    groups (models.axes). Raises ContentError for weights of other names or shapes.
    """
    for other in others:
        algebra.check_same(reference, other, "the reference", "the other network")
    best = [None] * len(others)
    with ThreadPoolExecutor() as pool:
        for k in range(restarts + 1):
            if k == 0:
                begin = starts or [identity(axes) for _ in others]
            else:
                begin = [random(axes, seed + k) for _ in others]
                begin = [{g: p if g not in axes.omitted or not as_published else torch.arange(len(p))
                          for g, p in start.items()} for start in begin]
            descent = Descent(reference, others, axes, begin, as_published)
            if k == 0 and starts is None:
                descent.from_the_input(pool)
            descent.descend(sweeps, stream(seed, "sweeps", k), pool)
            for m, other in enumerate(others):
                perms = {g: found[m] for g, found in descent.perms.items()}
                far = distance(reference, apply(other, axes, perms))
                if best[m] is None or far < best[m][0]:
                    best[m] = far, perms
    return [perms for _, perms in best]


def align(reference, other, axes, **how):
    """The weights of `other`, permuted as near as they come to the reference; how: see match."""
    return apply(other, axes, match(reference, [other], axes, **how)[0])


@torch.no_grad()
def match_together(networks, axes, rounds=100, seed=0):
    """[perms] of M networks that bring all of them together: each in turn, in a drawn order, is permuted towards the
    mean of the others, until none comes nearer to it (Ainsworth et al. 2023, algorithm 3). One alone stays as it is."""
    perms = [identity(axes) for _ in networks]
    now = [dict(w) for w in networks]
    order = stream(seed, "together")
    for _ in range(rounds if len(networks) > 1 else 0):
        moved = False
        for k in torch.randperm(len(networks), generator=order).tolist():
            rest = now[:k] + now[k + 1:]
            mean = algebra.combine(rest, [1 / len(rest)] * len(rest))
            found = match(mean, [now[k]], axes, seed=seed)[0]
            nearer = apply(now[k], axes, found)
            if distance(mean, nearer) < distance(mean, now[k]) * (1 - GAIN):
                perms[k], now[k], moved = compose(perms[k], found), nearer, True
        if not moved:
            break
    return perms


# ---- by what the units say -----------------------------------------------------------------------------------------

@torch.no_grad()
def match_activations(network, reference, other, axes, batches):
    """The perms of `other` that maximise the correlation of its units with those of the reference (Li et al. 2016,
    arXiv 1511.07543), as the layers that read them see them: behind activation functions and residual sums. Each reader
    of a group counts alike. batches: a function that returns an iterable of inputs x, the same each time it is called;
    the network, which runs with both weights, is left alone.
    """
    network = copy.deepcopy(network).eval()
    readers = {}
    for name, module in network.named_modules():
        table = axes.tensors.get(f"{name}.weight", ())
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d) and table[1].places:
            readers[name] = table[1], -1 if isinstance(module, torch.nn.Linear) else 1
    perms = identity(axes)
    # A layer across tokens reads numbers that lie along units of a stream: the stream must be matched first.
    across = any(isinstance(module, torch.nn.Conv1d) for module in network.modules())
    for _ in range(2 if across else 1):
        sums = {}
        for x in batches():
            a, b = (read(network, w, x, readers) for w in (reference, apply(other, axes, perms)))
            for name, (axis, _) in readers.items():
                for group, places in axis.places.items():
                    add(sums, (group, name), unit_rows(a[name], places), unit_rows(b[name], places))
        for group in axes.groups:
            found = [correlation(*parts) for (owner, _), parts in sums.items() if owner == group]
            if found:
                perms[group] = perms[group][solve(sum(found))[0]]
    return perms


def read(network, weights, x, readers):
    """{reader's name: its input, (places, …)} of one batch."""
    seen, hooks = {}, []

    def listen(name, dim):
        def hook(module, inputs):
            seen[name] = inputs[0].movedim(dim, 0)
        return hook

    for name, (_, dim) in readers.items():
        hooks.append(network.get_submodule(name).register_forward_pre_hook(listen(name, dim)))
    network.load_state_dict(weights)
    network(x)
    for hook in hooks:
        hook.remove()
    return seen


def unit_rows(seen, places):
    """(n, numbers): all that each of n units said."""
    return seen[places.to(seen.device)].flatten(1).float()


def add(sums, key, a, b):
    """Add a batch to (count, sums of a and b, of their squares, of their products), in float64 but on MPS."""
    wide = torch.float32 if a.device.type == "mps" else torch.float64
    new = (a.shape[1], *(v.to(wide) for v in (a.sum(1), b.sum(1), (a**2).sum(1), (b**2).sum(1), a @ b.T)))
    sums[key] = tuple(x + y for x, y in zip(sums[key], new)) if key in sums else new


def correlation(count, a, b, aa, bb, ab):
    """(n, n) correlations of the units of two networks; 0 of units that always say the same."""
    a, b = a / count, b / count
    spread = ((aa / count - a**2).clamp_min(0)[:, None] * (bb / count - b**2).clamp_min(0)).sqrt()
    return torch.where(spread > 1e-12, (ab / count - a[:, None] * b) / spread.clamp_min(1e-12), 0.0)


# ---- by gradient descent over softened permutations ----------------------------------------------------------------

def sinkhorn(reference, other, axes, *, start=None, steps=100, lr=0.1, temperature=1.0, iterations=20):
    """The nearest perms met by Adam on the logits X of softened permutations S(X), n x n for each group: rows and
    columns of exp(X / temperature) are normalised in turn `iterations` times, and ‖reference - S · other‖² falls (Peña
    et al. 2023, arXiv 2212.12042). The permutation of X is the one that maximises its sum. Starts at `start`, or the
    identity; what is returned is never farther than that."""
    begin = start or identity(axes)
    best = distance(reference, apply(other, axes, begin)), begin
    device = next(iter(reference.values())).device
    logits = {g: torch.nn.functional.one_hot(p).float().to(device).requires_grad_() for g, p in begin.items()}
    adam = torch.optim.Adam(logits.values(), lr)
    names = [k for k in parameters(reference) if any(axis.places for axis in axes.tensors[k])]
    for _ in range(steps):
        soft = {g: doubly_stochastic(x / temperature, iterations) for g, x in logits.items()}
        loss = sum(((reference[k].float() - softened(other[k].float(), axes.tensors[k], soft)) ** 2).sum()
                   for k in names)
        adam.zero_grad()
        loss.backward()
        adam.step()
        perms = {g: solve(x.detach())[0] for g, x in logits.items()}
        far = distance(reference, apply(other, axes, perms))
        if far < best[0]:
            best = far, perms
        if far == 0:
            break
    return best[1]


def doubly_stochastic(x, iterations):
    """exp(x) with rows and columns normalised in turn."""
    for _ in range(iterations):
        x = x - x.logsumexp(0, keepdim=True)
        x = x - x.logsumexp(1, keepdim=True)
    return x.exp()


def softened(tensor, table, soft):
    """The tensor with each unit replaced by the average of units that a row of soft[group] weighs."""
    for dim, axis in enumerate(table):
        for group, places in axis.places.items():
            view, places = tensor.movedim(dim, 0), places.to(tensor.device)
            mixed = torch.tensordot(soft[group], view[places], 1)
            tensor = view.index_put((places,), mixed).movedim(0, dim)
    return tensor
