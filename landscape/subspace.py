"""A network whose weights are a point among m vertices: lines, chains, Bézier curves, simplexes, stars of any network.

A Subspace holds the vertices of an unchanged network and calls it with mixed weights (torch.func.functional_call), so
no layer is written twice and every kind of layer may occur. In training each call draws a point; in evaluation the
weights are those of the centre, or of given coefficients. After Wortsman et al. 2021 (arXiv 2102.10472), Garipov et
al. 2018 (1802.10026) for curves between given ends.

What a loss at the point w = sum_k c_k W_k does to the vertices: its gradient at vertex k is c_k dL/dw. A step of size
lr therefore moves the centre of a line or a simplex by lr/m, not lr, while weight decay acts on it in full; Rule.pull
is that factor for each family, and subspaces.train --rescale_lr divides by it.
"""

# m vertices, P numbers of one network, G groups of weights with coefficients of their own, B images.

import math
from dataclasses import dataclass
from itertools import accumulate, combinations, groupby

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from landscape import weights as algebra
from landscape.errors import ContentError, UsageError

# ---- families ------------------------------------------------------------------------------------------------------

def bezier(t, m):
    """Bernstein polynomials of degree m - 1: coefficients (..., m) of the vertices at positions t (...) in [0, 1]."""
    k, t = torch.arange(m), t.unsqueeze(-1)
    choose = torch.tensor([math.comb(m - 1, i) for i in range(m)], dtype=t.dtype)
    return choose * t**k * (1 - t) ** (m - 1 - k)


def chain(t, m):
    """Straight pieces through the vertices in their order: at t (...) in [0, 1] the two nearest are mixed (..., m)."""
    return (1 - (t.unsqueeze(-1) * (m - 1) - torch.arange(m)).abs()).clamp_min(0)


@dataclass(frozen=True)
class Rule:
    """A family with m vertices: which coefficients belong to it, and how they are drawn.

    along: of paths, the function from positions (...) in [0, 1] to coefficients (..., m), which is drawn at a uniform
    position; None for a simplex, drawn from Dirichlet(1, …, 1), that is uniformly.
    """

    family: str
    m: int
    along: object

    def draw(self, groups=1):
        """Coefficients (groups, m), each row by itself, from torch's global CPU generator."""
        if self.along is not None:
            return self.along(torch.rand(groups), self.m)
        waits = torch.empty(groups, self.m).exponential_()
        return waits / waits.sum(1, keepdim=True)

    @property
    def centre(self):
        """Coefficients (m,) of the middle: t = 1/2 of a path, the barycentre of a simplex."""
        if self.along is not None:
            return self.along(torch.tensor(0.5), self.m)
        return torch.full((self.m,), 1 / self.m)

    @property
    def mean(self):
        """The mean (m,) of what draw gives."""
        out = torch.full((self.m,), 1 / self.m)
        if self.along is chain:
            out = torch.full((self.m,), 1 / (self.m - 1))
            out[0] = out[-1] = 0.5 / (self.m - 1)
        return out

    def pull(self, frozen=()):
        """By how much of lr the centre moves, on average, in a step of size lr against a gradient at the drawn point:
        sum over trainable k of centre_k E[c_k]. 1/m of a line or a simplex."""
        free = [k for k in range(self.m) if k not in frozen]
        return float((self.centre * self.mean)[free].sum())

    def at(self, point):
        """Coefficients (m,) of a point in words: "centre", "vertex=K", or "t=T" of a path and "t=C,C,…" of a simplex
        (m numbers that sum to 1). Raises UsageError for any other."""
        kind, _, said = point.partition("=")
        try:
            if kind == "centre" and not said:
                return self.centre
            if kind == "vertex" and 0 <= int(said) < self.m:
                return torch.eye(self.m)[int(said)]
            if kind == "t":
                values = torch.tensor([float(v) for v in said.split(",")])
                if self.along is not None and len(values) == 1 and 0 <= values[0] <= 1:
                    return self.along(values[0], self.m)
                if self.along is None and len(values) == self.m and values.min() >= 0 and abs(values.sum() - 1) < 1e-4:
                    return values
        except ValueError:
            pass
        form = "t=T with T in [0, 1]" if self.along is not None else f"t=… with {self.m} shares that sum to 1"
        raise UsageError(f"--point {point}: a {self.family} of {self.m} vertices has the points centre, vertex=0 … "
                         f"vertex={self.m - 1}, and {form}")


# t in [0, 1] of `groups` points between a star and its anchors, by name; the mean is 1/2 in each.
POSITIONS = {
    "uniform": lambda groups: torch.rand(groups),
    "beta": lambda groups: torch.rand(groups, 3).median(1).values,  # Beta(2, 2) is the middle of three uniform numbers
    "constant": lambda groups: torch.full((groups,), 0.5),
}


@dataclass(frozen=True)
class Spokes(Rule):
    """A star of m vertices: the straight lines from vertex 0, the star, to the others, its anchors (Sonthalia et al.
    2025, arXiv 2403.07968). Drawn are an anchor, uniformly, and t from sampling, of POSITIONS: (1-t) star + t anchor.
    """

    sampling: str = "uniform"

    def draw(self, groups=1):
        out = torch.zeros(groups, self.m)
        anchors, t = torch.randint(1, self.m, (groups,)), POSITIONS[self.sampling](groups)
        out[:, 0], out[torch.arange(groups), anchors] = 1 - t, t
        return out

    @property
    def centre(self):
        return torch.eye(self.m)[0]

    @property
    def mean(self):
        return torch.tensor([0.5] + [0.5 / (self.m - 1)] * (self.m - 1))


# family: (its function along, fewest vertices, most, what to say to fewer)
FAMILIES = {
    "line": (bezier, 2, 2, ""),
    "chain": (chain, 3, None, "with two vertices it is a line"),
    "curve": (bezier, 3, None, "with two vertices it is a line; the vertices between the ends bend it"),
    "simplex": (None, 2, None, "one vertex is a network, not a subspace"),
}


def rule(family, m):
    """The Rule of a family of FAMILIES with m vertices. Raises UsageError."""
    if family not in FAMILIES:
        raise UsageError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    along, least, most, why = FAMILIES[family]
    if m < least or (most and m > most):
        wanted = f"has {least} vertices" if least == most else f"needs at least {least} vertices"
        raise UsageError(f"a {family} {wanted}, not {m}{': ' * bool(why)}{why}")
    return Rule(family, m, along)


GRANULARITIES = ("network", "module", "tensor")


# ---- the network ---------------------------------------------------------------------------------------------------

class Subspace(nn.Module):
    """`shell`, a network, with weights at a point among vertices; it takes and gives what the shell takes and gives.

    The parameters of the m vertices are the rows of one matrix (m, P), matrices (tensors of two and more axes) first;
    `vertex` and `point` hand them out as dicts of views under the shell's own names. The shell keeps its buffers and
    gives up its parameters, so that a subspace costs m networks and nothing more. BatchNorm's running statistics are
    buffers: they are not mixed, follow the drawn points in training and are right for none; re-estimate them where
    one is to be measured (evaluate.reestimate_bn).

    rule: a Rule. vertices: m dicts, which may come from a generator, with the shell's parameters by name; other entries
    are left out. granularity: what draws coefficients of its own in training, of GRANULARITIES: the network, each
    module with parameters (the paper's layerwise variant), or each tensor. samples: parts of a batch, each at a point
    of its own and of two images or more. frozen: numbers of vertices that are not trained. Raises UsageError for a
    network whose weights cannot be mixed.
    """

    def __init__(self, shell, vertices, rule, granularity="network", samples=1, frozen=()):
        super().__init__()
        if granularity not in GRANULARITIES:
            raise UsageError(f"granularity {granularity!r}; known: {', '.join(GRANULARITIES)}")
        check_shell(shell)
        own = dict(shell.named_parameters())
        names = sorted(own, key=lambda k: own[k].dim() < 2)  # stable: matrices first
        self.rule, self.samples, self.granularity = rule, samples, granularity
        self.names, self.shapes = names, [own[k].shape for k in names]
        self.sizes = [own[k].numel() for k in names]
        self.strides = [strides(shape) for shape in self.shapes]
        self.matrices = sum(own[k].dim() > 1 for k in names)
        self.aliases = aliases(shell)
        # Autocast would cast every matrix and nothing else reads one: they may be cast together.
        self.plain = not self.aliases and all(takes_low_precision(shell, k) for k in names[:self.matrices])
        owners = [k.rpartition(".")[0] for k in names]
        label = {"network": lambda i: "", "module": lambda i: owners[i], "tensor": lambda i: names[i]}[granularity]
        places = {}
        group = [places.setdefault(label(i), len(places)) for i in range(len(names))]  # of each tensor
        self.groups = len(places)
        # (group, how many numbers) of each run of neighbours in a row that draw together
        self.runs = [(g, sum(self.sizes[i] for i in run)) for g, run in groupby(range(len(names)), lambda i: group[i])]
        self.free = [k for k in range(rule.m) if k not in frozen]
        self.frozen = [k for k in range(rule.m) if k in frozen]
        if not self.free:
            raise UsageError(f"all {rule.m} vertices are fixed: nothing is left to train")
        self.stack = nn.Parameter(torch.empty(len(self.free), sum(self.sizes)))
        self.register_buffer("fixed", torch.empty(len(self.frozen), sum(self.sizes)))
        count = 0
        for count, vertex in enumerate(vertices, 1):  # one by one: they may be many
            if count <= rule.m:
                self.set_vertex(count - 1, vertex)
        if count != rule.m:
            raise ContentError(f"a {rule.family} of {rule.m} vertices was given {count}")
        self.register_buffer("centre", rule.centre)
        for p in shell.parameters():
            p.requires_grad_(False)
            p.data = torch.empty(0, dtype=p.dtype, device=p.device)
        self.shell = shell

    # -- vertices and points

    def flat(self, vertex):
        """A dict of the shell's parameters as one row (P,)."""
        if missing := [k for k in self.names if k not in vertex]:
            raise ContentError(f"a vertex lacks {algebra.listed(missing)}: it is of another architecture")
        if wrong := [k for k, s in zip(self.names, self.shapes) if vertex[k].shape != s]:
            sizes = ", ".join(f"{k} {tuple(vertex[k].shape)}" for k in wrong[:3])
            raise ContentError(f"a vertex is of another architecture (or class count, width): {sizes}")
        return torch.cat([as_row(vertex[k].detach()) for k in self.names])

    def views(self, row):
        """A row (P,) as a dict of views under the shell's names."""
        return dict(zip(self.names, Unpacked.apply(row, self.shapes, self.strides)))

    def row(self, k):
        return self.stack[self.free.index(k)] if k in self.free else self.fixed[self.frozen.index(k)]

    def rows(self):
        """All vertices, (m, P)."""
        if not self.frozen:
            return self.stack
        order = [(self.free + self.frozen).index(k) for k in range(self.rule.m)]
        return torch.cat([self.stack, self.fixed])[order]

    def vertex(self, k):
        """The parameters of vertex k, views."""
        return self.views(self.row(k))

    def set_vertex(self, k, vertex):
        """Overwrite vertex k with a dict of parameters."""
        with torch.no_grad():
            self.row(k).copy_(self.flat(vertex))

    def point(self, coeffs):
        """The parameters at coefficients (m,), or (G, m) with a row for each group, as a dict of views."""
        return self.views(self.mix(coeffs))

    def mix(self, coeffs):
        """The parameters at coefficients, as `point` takes them, as one row (P,); float32 also under autocast."""
        coeffs = coeffs.to(self.stack.device)
        with torch.autocast(self.stack.device.type, enabled=False):
            if coeffs.dim() == 1 or len(coeffs) == 1:
                return self.mixed(coeffs.reshape(-1), self.stack, self.fixed)
            sizes = [size for _, size in self.runs]
            parts = zip(self.stack.split(sizes, 1), self.fixed.split(sizes, 1))
            return torch.cat([self.mixed(coeffs[g], *part) for (g, _), part in zip(self.runs, parts)])

    def mixed(self, coeffs, stack, fixed):
        if not self.frozen:
            return coeffs @ stack
        return coeffs[self.free] @ stack + coeffs[self.frozen] @ fixed

    def state_at(self, coeffs):
        """What a plain network at these coefficients has for state_dict, detached; with the shell's buffers."""
        with torch.no_grad():
            own = {k: v.clone() for k, v in self.point(coeffs).items()}
        buffers = {k: v.detach().clone() for k, v in self.buffers_of_shell().items()}
        return {**own, **buffers, **{alias: own[k] for alias, k in self.aliases.items()}}

    def buffers_of_shell(self):
        """The buffers that belong to the shell's state_dict, by their names there."""
        return {k: v for k, v in self.shell.state_dict().items() if k not in self.names and k not in self.aliases}

    # -- calls

    def forward(self, x, coeffs=None):
        if coeffs is None and self.training:
            # A part of one image has no BatchNorm statistics.
            parts = x.tensor_split(min(self.samples, max(len(x) // 2, 1)))
            self.drawn = [self.draw() for _ in parts]
            return torch.cat([self.at(part, drawn) for part, drawn in zip(parts, self.drawn)])
        return self.at(x, self.centre if coeffs is None else coeffs)

    def at(self, x, coeffs):
        return self.call(x, self.mix(coeffs))

    def call(self, x, row):
        """What the shell says of x with the weights of a row (P,); under autocast its matrices are cast in one step."""
        device = self.stack.device.type
        low = torch.get_autocast_dtype(device) if self.plain and torch.is_autocast_enabled(device) else None
        tensors = Unpacked.apply(row, self.shapes, self.strides, low, self.matrices)
        return functional_call(self.shell, dict(zip(self.names, tensors)), (x,), tie_weights=bool(self.aliases))

    @torch.compiler.disable
    def draw(self):
        return self.rule.draw(self.groups).to(self.stack.device, non_blocking=True)  # else the GPU is waited for

    # -- how far apart the vertices are

    def squared_cosines(self, per_layer=False):
        """(pairs,): squared cosines of the angles between two vertices j < k, each vertex being all its matrices in one
        vector; per_layer: the mean over the matrices of theirs. Biases, BatchNorm and the like do not count: the
        published regulariser is of convolutions, the classifier being one there."""
        with torch.no_grad():
            found, _ = cosines(self.rows(), self.vectors(per_layer))
        j, k = torch.triu_indices(self.rule.m, self.rule.m, 1, device=found.device)
        return (found**2).mean(0)[j, k]

    def vectors(self, per_layer):
        """How many numbers the vectors have between which the angles are: all matrices together, or each of them."""
        if self.matrices == 0:
            raise UsageError("this network has no weight of two axes: there is no angle to regularise")
        sizes = self.sizes[:self.matrices]
        return sizes if per_layer else [sum(sizes)]

    def regulariser(self, pairs="sampled", per_layer=False):
        """The squared cosine of Wortsman et al. 2021, equation 3: of one pair of vertices, drawn from torch's global
        CPU generator, as published, or the mean over all pairs, which is what the draws give on average."""
        m, sizes = self.rule.m, self.vectors(per_layer)
        if pairs == "sampled":
            both = list(combinations(range(m), 2))
            j, k = both[torch.randint(len(both), ())]
            shares = torch.zeros(m, m)
            shares[j, k] = shares[k, j] = 1 / 2 / len(sizes)
        else:
            shares = torch.full((m, m), 1 / (m * (m - 1)) / len(sizes)).fill_diagonal_(0)
        return SquaredCosine.apply(self.rows(), sizes, shares.to(self.stack, non_blocking=True))

    def drawn_decay(self, weight_decay):
        """weight_decay/2 times the mean squared length of the points drawn last: decay of the mixed weights."""
        points = [w for drawn in self.drawn for w in self.point(drawn).values()]
        return weight_decay / 2 / len(self.drawn) * sum((w**2).sum() for w in points)

    # -- on disk

    def state_dict(self, *args, destination=None, prefix="", keep_vars=False):
        """vertices.K.<name> for every vertex K and parameter of the shell, buffers.<name> for its buffers."""
        out = {} if destination is None else destination
        for k in range(self.rule.m):
            for name, w in self.vertex(k).items():
                out[f"{prefix}vertices.{k}.{name}"] = w if keep_vars else w.detach()
        for name, b in self.buffers_of_shell().items():
            out[f"{prefix}buffers.{name}"] = b
        return out

    def load_state_dict(self, state_dict, strict=True, assign=False):
        """Raises ContentError where vertices or names are others."""
        vertices, buffers = split_state(state_dict)
        if len(vertices) != self.rule.m or buffers.keys() != self.buffers_of_shell().keys():
            raise ContentError(f"these are not the weights of a {self.rule.family} of {self.rule.m} vertices of this "
                               "network")
        for k, vertex in enumerate(vertices):
            self.set_vertex(k, vertex)
        for name, b in self.buffers_of_shell().items():
            b.copy_(buffers[name])


def as_row(w):
    """A tensor as a vector, images' channels last: its view as a tensor is then channels_last, as convolutions want."""
    return (w.permute(0, 2, 3, 1) if w.dim() == 4 else w).reshape(-1)


def strides(shape):
    """The strides with which a vector made by as_row is a tensor of this shape."""
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, device="meta", memory_format=layout).stride()


class Unpacked(torch.autograd.Function):
    """A row (P,) as a tuple of tensors of these shapes and strides, its views; the first `count` in precision `low`, if
    one is given, are views of a copy.

    Their gradients become one row at once, where autograd would take a step or two for each of them: in a small network
    on a GPU these steps cost as much as its convolutions do.
    """

    @staticmethod
    def forward(ctx, row, shapes, strides, low=None, count=0):
        begins = list(accumulate(map(math.prod, shapes), initial=0))
        ctx.count, ctx.dtype = count if low else 0, row.dtype
        parts = [row[: begins[ctx.count]].to(low)] * ctx.count + [row] * len(shapes)
        return tuple(part.as_strided(shape, stride, part.storage_offset() + begin)
                     for part, shape, stride, begin in zip(parts, shapes, strides, begins))

    @staticmethod
    def backward(ctx, *slopes):
        rows = [as_row(slope) for slope in slopes]
        if ctx.count:
            rows = [torch.cat(rows[: ctx.count]).to(ctx.dtype), *rows[ctx.count:]]
        return torch.cat(rows), None, None, None, None


def cosines(rows, sizes):
    """(cosines, norms), both (L, m, m): of the angle between rows j and k of (m, P) in their first `sizes[0]` numbers,
    in the next, and so on for L sizes; and 1 / (|v_j| |v_k|) there. A row of zeros is orthogonal to all."""
    parts = rows[:, :sum(sizes)].split(sizes, 1)
    products = torch.stack([part @ part.T for part in parts])
    lengths = products.diagonal(dim1=1, dim2=2).clamp_min(1e-30).rsqrt()
    norms = lengths.unsqueeze(2) * lengths.unsqueeze(1)
    return products * norms, norms


class SquaredCosine(torch.autograd.Function):
    """The sum over l, j and k of shares_jk c_jk² (Wortsman et al. 2021, equation 3, for all pairs), c being the cosines
    (L, m, m) of rows (m, P). shares: (m, m), symmetric, 0 on its diagonal.

    The gradient is written out, since autograd would take thirty steps over matrices of m by m: at row j, in part l, it
    is 4 sum_k shares_jk c_jk v_k / (|v_j| |v_k|) - 4 (sum_k shares_jk c_jk²) v_j / |v_j|².
    """

    @staticmethod
    def forward(ctx, rows, sizes, shares):
        c, norms = cosines(rows, sizes)
        weighted = shares * c
        each = (weighted * c).sum(2)
        ctx.sizes = sizes
        ctx.save_for_backward(rows, (weighted - torch.diag_embed(each)) * norms)
        return each.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        rows, turns = ctx.saved_tensors
        out = torch.zeros_like(rows)
        held, made = (w[:, :sum(ctx.sizes)].split(ctx.sizes, 1) for w in (rows, out))
        for turn, part, into in zip(4 * slope * turns, held, made):
            torch.mm(turn, part, out=into)
        return out, None, None


def takes_low_precision(network, name):
    """Is this the weight of a plain convolution or linear layer, which autocast casts and nothing else reads?"""
    owner, _, last = name.rpartition(".")
    return last == "weight" and type(network.get_submodule(owner)) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def aliases(network):
    """{name: the first name of the same parameter} of tied parameters."""
    first, out = {}, {}
    for k, p in network.named_parameters(remove_duplicate=False):
        if first.setdefault(id(p), k) != k:
            out[k] = first[id(p)]
    return out


def check_shell(shell):
    """Raise UsageError for a network whose parameters cannot be given from outside and mixed."""
    what = type(shell).__name__
    if isinstance(shell, torch.jit.ScriptModule):
        raise UsageError(f"{what} is a ScriptModule, which keeps its weights to itself: give what it was made of")
    own = dict(shell.named_parameters())
    if not own:
        raise UsageError(f"{what} has no parameters: there is nothing to mix")
    for k, p in own.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise UsageError(f"{what}: {k} has no shape yet; call the network once on a batch first")
        if p.dtype != torch.float32:
            raise UsageError(f"{what}: {k} is {str(p.dtype).removeprefix('torch.')}; vertices are float32 (train with "
                             "--precision bf16 for speed)")


def check_call(shell, vertex, x):
    """Raise UsageError unless the network, given parameters from outside, says on a batch x what it says with these
    loaded, and not what it said. The parameters are a vertex's, moved a little: with a head of zeros all networks would
    say the same. shell: the network itself, which is left as it was."""
    what = type(shell).__name__
    before, was_training = algebra.of(shell), shell.training
    g = torch.Generator().manual_seed(0)
    moved = {k: vertex[k] + 0.01 * torch.randn(vertex[k].shape, generator=g).to(vertex[k])
             for k, _ in shell.named_parameters()}
    tied = {alias: moved[k] for alias, k in aliases(shell).items()}
    shell.eval()
    try:
        with torch.no_grad():
            said = shell(x)
            given = functional_call(shell, moved, (x,))
            shell.load_state_dict({**before, **moved, **tied})
            loaded = shell(x)
    except Exception as e:  # whatever a module of somebody else raises
        first = (str(e).splitlines() or [""])[0]
        raise UsageError(f"{what} cannot be called with weights from outside ({type(e).__name__}: {first})") from None
    finally:
        shell.load_state_dict(before)
        shell.train(was_training)
    if not torch.allclose(given, loaded, rtol=1e-3, atol=1e-4) or torch.equal(given, said):
        raise UsageError(f"{what} says something else when its weights are given from outside: it keeps copies of them "
                         "elsewhere, which a mix cannot reach")


# ---- vertices ------------------------------------------------------------------------------------------------------

def noisy(vertex, sigma, generator):
    """A vertex plus Gaussian noise of sigma times each floating tensor's root mean square."""
    out = {}
    for k, w in vertex.items():
        noise = torch.randn(w.shape, generator=generator)
        out[k] = w + sigma * w.float().square().mean().sqrt() * noise if w.is_floating_point() else w.clone()
    return out


def split_state(state_dict):
    """([a dict for each vertex], buffers) of the entries vertices.K.<name> and buffers.<name>. Raises ContentError."""
    vertices, buffers = {}, {}
    for key, w in state_dict.items():
        kind, _, rest = key.partition(".")
        if kind == "vertices":
            k, _, name = rest.partition(".")
            vertices.setdefault(int(k), {})[name] = w
        elif kind == "buffers":
            buffers[rest] = w
        else:
            raise ContentError(f"{key} is no weight of a subspace: vertices.K.<name> is expected")
    if sorted(vertices) != list(range(len(vertices))):
        raise ContentError(f"vertices 0 to {max(vertices, default=0)} are expected, there are {sorted(vertices)}")
    return [vertices[k] for k in range(len(vertices))], buffers


def state_of(state_dict, described, point):
    """The plain state_dict at a point in words (Rule.at) of what a Subspace saved. described: its {"family",
    "vertices"}. The buffers are those of the file."""
    vertices, buffers = split_state(state_dict)
    coeffs = rule(described["family"], len(vertices)).at(point)
    own = algebra.combine(vertices, coeffs.tolist())
    return {**own, **buffers, **{alias: own[k] for alias, k in described["tied"].items()}}
