"""Arrays in, numbers out: quality of predictions, agreement of class maps, barriers of paths. numpy only.

N examples, C classes, M models, K members, B subsets of them, P planes, S points of a plane, T points of a path. Labels
and class maps hold integers 0..C-1. NaN in an input is a ValueError, never a NaN in a result, except where a docstring
says so.
"""

import itertools
import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.special import entr, erf

from landscape.seeding import numpy_stream

# ---- predictions -------------------------------------------------------------------------------------------


def softmax(logits):
    """Probabilities (..., C), float64, of logits (..., C)."""
    logits = _finite("logits", logits)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def accuracy(logits, labels):
    """Share of N examples whose largest logit or probability (N, C), first of equals, is at labels (N,)."""
    logits, labels = _predictions(logits, labels)
    return float((logits.argmax(axis=1) == labels).mean())


def nll(logits, labels):
    """Cross-entropy: mean negative log-likelihood, in nats, of labels (N,) under softmax(logits (N, C))."""
    logits, labels = _predictions(logits, labels)
    top = logits.max(axis=1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return float((total - logits[np.arange(len(labels)), labels]).mean())


def brier(probs, labels):
    """Mean over examples of the squared distance of probabilities (N, C) from the one-hot label: 0 to 2,
    summed over classes (Brier 1950). Pass softmax(logits) for logits."""
    probs, labels = _probabilities(probs, labels)
    error = probs.copy()
    error[np.arange(len(labels)), labels] -= 1
    return float((error**2).sum(axis=1).mean())


def ece(probs, labels, bins=15):
    """Expected calibration error of probabilities (N, C) (Guo et al. 2017, eq. 3; 15 bins there): the mean of
    |accuracy - confidence| over bins of equal width in the confidence, ((b-1)/bins, b/bins], weighted by
    their examples. Pass softmax(logits) for logits."""
    probs, labels = _probabilities(probs, labels)
    which, right, confidence = _binned(probs, labels, bins)
    gaps = np.bincount(which, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def _binned(probs, labels, bins):
    """(bin, is it right, confidence) of each example, arrays (N,)."""
    confidence = probs.max(axis=1)
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    return which, probs.argmax(axis=1) == labels, confidence


def ece_debiased(probs, labels, bins=15):
    """`ece` less what it is too large by, each bin's gap being a mean over few examples: that bias is estimated for
    each bin from a normal law about the gap it shows, and the result is at least 0 (after Kumar et al. 2019,
    arXiv 1909.10155, section 5)."""
    probs, labels = _probabilities(probs, labels)
    which, right, confidence = _binned(probs, labels, bins)
    counts = np.bincount(which, minlength=bins)
    filled = counts > 0
    counts = counts[filled]
    hit = np.bincount(which, weights=right, minlength=bins)[filled] / counts
    gap = np.abs(hit - np.bincount(which, weights=confidence, minlength=bins)[filled] / counts)
    spread = np.sqrt(hit * (1 - hit) / counts)
    ratio = np.minimum(gap, 40 * spread) / np.maximum(spread, 1e-300)  # beyond 40 spreads nothing changes
    # The mean of |N(gap, spread)|; a bin without spread has its gap for certain.
    inside = np.where(spread > 0, erf(ratio / math.sqrt(2)), 1)
    folded = spread * math.sqrt(2 / math.pi) * np.exp(-(ratio**2) / 2) + gap * inside
    return float(max(0.0, (counts * (2 * gap - folded)).sum() / len(labels)))


def tempered(probs, labels):
    """Probabilities (N, C) after temperature scaling, softmax(log p / T), T of least nll (Guo et al. 2017). So that no
    example helps to choose its own T, that of the even rows serves the odd ones and the other way round (as Ashukha
    et al. 2020, arXiv 2002.06470, section 3, on halves of the test set). T lies between 1/20 and 20. Raises
    ValueError for a single example."""
    probs, labels = _probabilities(probs, labels)
    logits = np.log(np.maximum(probs, np.finfo(probs.dtype).tiny), dtype=np.float64)
    out = np.empty_like(logits)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        other = slice(1 - half.start, None, 2)
        if not len(labels[other]):
            raise ValueError("temperature scaling needs two examples or more")
        found = minimize_scalar(lambda u, rows: nll(logits[rows] / math.exp(u), labels[rows]), args=(other,),
                                bounds=(-math.log(20), math.log(20)), method="bounded")
        out[half] = softmax(logits[half] / math.exp(found.x))
    return out


def total_variation(a, b):
    """Mean over examples of half the L1 distance of two models' probabilities (N, C): 0 to 1."""
    a, b = _finite("probabilities", a), _finite("probabilities", b)
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"probabilities (N, C) of one shape expected, not {a.shape} and {b.shape}")
    return float(np.abs(a - b).sum(axis=1).mean() / 2)


def disagreement(a, b):
    """Share of examples to which two models give different labels (N,) (Fort et al. 2019, section 4)."""
    return 1 - agreement(a, b)


# ---- many models -------------------------------------------------------------------------------------------


def pairwise(logits):
    """How far the predictions of M models on N examples lie apart, from logits (M, N, C): a dict of (M, M) arrays.

    disagreement: share of examples with different labels (Fort et al. 2019). js: Jensen-Shannon divergence of the two
    probability vectors, in nats, 0 to log 2, mean over examples. kl: Kullback-Leibler divergence of the column's model
    from the row's, sum_c p_row (log p_row - log p_column), in nats. cosine: of the two probability vectors, mean over
    examples. All but js are matrix products.
    """
    logits = _finite("logits", logits)
    models, examples, classes = logits.shape
    said = logits.argmax(axis=2)
    hot = (said[:, :, None] == np.arange(classes)).reshape(models, -1).astype(np.float32)
    apart = 1 - (hot @ hot.T).astype(np.float64) / examples  # counts up to 2**24 are exact in float32
    logs = logits - logits.max(axis=2, keepdims=True)
    probs = np.exp(logs)
    total = probs.sum(axis=2, keepdims=True)
    probs /= total
    logs -= np.log(total)
    flat, flat_logs = probs.reshape(models, -1), logs.reshape(models, -1)
    entropies = -np.einsum("ij,ij->i", flat, flat_logs) / examples
    kl = -(flat @ flat_logs.T) / examples - entropies[:, None]
    np.fill_diagonal(kl, 0)  # 0 up to rounding
    unit = (probs / np.linalg.norm(probs, axis=2, keepdims=True)).reshape(models, -1)
    return {"disagreement": apart, "js": _js(flat, entropies, examples), "kl": np.maximum(kl, 0),
            "cosine": unit @ unit.T / examples}


def _js(flat, entropies, examples):
    """Jensen-Shannon divergences (M, M) from probabilities (M, N*C) and mean entropies (M,). Blocks stay in the cache;
    a tiny number keeps the logarithm of 0 away."""
    models, length = flat.shape
    together = np.zeros((models, models))
    block = max(1, 200_000 // models)
    for start in range(0, length, block):
        part = flat[:, start : start + block]
        for i in range(1, models):
            mean = (part[:i] + part[i]) / 2
            together[i, :i] -= np.einsum("ij,ij->i", mean, np.log(mean + 1e-300))
    together = (together + together.T) / examples
    out = np.clip(together - (entropies[:, None] + entropies) / 2, 0, np.log(2))
    np.fill_diagonal(out, 0)
    return out


# ---- ensembles ---------------------------------------------------------------------------------------------


def subsets(members, size, most=10_000, seed=0):
    """Subsets of `size` of K members as bool (B, K): all of them in lexicographic order, or where they are more than
    `most`, so many different ones, drawn at random with the seed."""
    if not 1 <= size <= members:
        raise ValueError(f"a subset of {size} of {members} members")
    if math.comb(members, size) <= most:
        chosen = list(itertools.combinations(range(members), size))
    else:
        draw = numpy_stream(seed, "subsets", members, size)
        found = {}
        while len(found) < most:
            found[tuple(sorted(draw.choice(members, size, replace=False).tolist()))] = True
        chosen = list(found)
    out = np.zeros((len(chosen), members), bool)
    np.put_along_axis(out, np.array(chosen), True, axis=1)
    return out


def subset_scores(probs, labels, subsets, bins=15):
    """Quality of the mean probabilities of subsets of members: {measure: (B,)}, float64.

    probs (K, N, C); labels (N,); subsets (B, K) bool, at least one member in each. accuracy, nll (nats), brier and ece
    are those of the functions of that name; js is the Jensen-Shannon diversity of the members, in nats: the entropy of
    the mean probabilities less the mean of the members' entropies, 0 for a subset of one. A probability of 0 at the
    label counts as the smallest normal number of its type.
    """
    probs = np.asarray(probs)
    subsets = np.asarray(subsets)
    if probs.ndim != 3 or subsets.ndim != 2 or subsets.dtype != bool or subsets.shape[1] != len(probs):
        raise ValueError(f"probabilities (K, N, C) and subsets (B, K) expected, not {probs.shape}, {subsets.shape}")
    for one in probs:
        _probabilities(one, labels)
    if not subsets.any(axis=1).all():
        raise ValueError("a subset without members")
    labels = np.asarray(labels)
    members, examples, classes = probs.shape
    flat = probs.reshape(members, -1)
    weights = (subsets / subsets.sum(axis=1, keepdims=True)).astype(probs.dtype)
    own = entropy(probs).mean(axis=1)
    out = {name: np.empty(len(subsets)) for name in ("accuracy", "nll", "brier", "ece", "js")}
    block = max(1, 4_000_000 // flat.shape[1])  # 32 MB of float64
    for start in range(0, len(subsets), block):
        part = slice(start, start + block)
        mean = (weights[part] @ flat).reshape(-1, examples, classes)
        at_label = mean[:, np.arange(examples), labels]
        right = mean.argmax(axis=2) == labels
        out["accuracy"][part] = right.mean(axis=1)
        out["nll"][part] = -np.log(np.maximum(at_label, np.finfo(mean.dtype).tiny)).mean(axis=1, dtype=float)
        out["brier"][part] = 1 + ((mean**2).sum(axis=2) - 2 * at_label).mean(axis=1, dtype=float)
        out["ece"][part] = _eces(mean.max(axis=2), right, bins)
        out["js"][part] = entropy(mean).mean(axis=1) - weights[part] @ own
    out["js"] = np.where(subsets.sum(axis=1) == 1, 0, np.maximum(out["js"], 0))
    return out


def entropy(probs):
    """Entropy (...), in nats, float64, of probabilities (..., C); 0 log 0 is 0."""
    return entr(probs).sum(axis=-1, dtype=float)


def _eces(confidence, right, bins):
    """Expected calibration errors (B,) from confidences and hits (B, N), as ece has them."""
    rows, examples = confidence.shape
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    which = which + np.arange(rows)[:, None] * bins
    gaps = np.bincount(which.ravel(), weights=(right - confidence.astype(float)).ravel(), minlength=rows * bins)
    return np.abs(gaps).reshape(rows, bins).sum(axis=1) / examples


# ---- class maps --------------------------------------------------------------------------------------------


def agreement(a, b):
    """Share of equal labels in two arrays of one shape: on class maps the reproducibility score of Somepalli
    et al. 2022 (eq. 1), which they call IoU."""
    a, b = _labels(a), _labels(b)
    if a.shape != b.shape:
        raise ValueError(f"labels of different shapes: {a.shape} and {b.shape}")
    if not a.size:
        raise ValueError("no labels to compare")
    return float((a == b).mean())


def agreement_per_plane(maps):
    """Agreement (M, M, P) of each pair of class maps (M, P, S) on each plane: symmetric, 1 on the diagonal.
    Its mean over planes is the published score of the pair, since all planes have equally many points."""
    maps = _maps(maps)
    models, planes, size = maps.shape
    same = np.empty((planes, size), dtype=bool)
    result = np.ones((models, models, planes))
    for i in range(models):
        for j in range(i):
            np.equal(maps[i], maps[j], out=same)
            # Eight points to a byte before counting: a third of the time of count_nonzero along the points.
            counts = np.bitwise_count(np.packbits(same, axis=1)).sum(axis=1, dtype=np.int64)
            result[i, j] = result[j, i] = counts / size
    return result


def scores_per_plane(maps, classes, where=None):
    """Three similarities of each pair of class maps (M, P, S) on each plane, as a dict of arrays (M, M, P):
    `agreement`, `mean_iou` and `kappa`, each as `confusion` and the function of that name give it for that
    pair and plane (kappa is NaN where it is not defined). The confusion matrices themselves are never made: shared
    and marginal counts suffice.
    where (P, S), bool: only these points count; each plane has at least one."""
    maps = _maps(maps)
    models, planes, size = maps.shape
    if where is not None:
        size = where.sum(axis=1)
        if not size.all():
            raise ValueError(f"plane {int(size.argmin())} has no point that counts")
    agree, expected, iou, present = (np.zeros((models, models, planes)) for _ in range(4))
    for _, areas, shared in _overlaps(maps, classes, where):
        union = areas[:, None] + areas - shared
        agree += shared
        expected += areas[:, None] * areas
        iou += shared / np.maximum(union, 1)
        present += union > 0
    scores = {"agreement": agree / size, "mean_iou": iou / np.maximum(present, 1)}
    scores["kappa"] = _kappa(agree / size, expected / size**2)
    return scores


def class_iou_per_plane(maps, classes, where=None):
    """Yields (class, IoU (M, M, P)) for each class that occurs in class maps (M, P, S): as in `iou_per_class` NaN where
    it is in neither map of a pair on a plane. where: as in `scores_per_plane`."""
    for c, areas, shared in _overlaps(_maps(maps), classes, where):
        union = areas[:, None] + areas - shared
        yield c, np.where(union > 0, shared / np.maximum(union, 1), np.nan)


def _overlaps(maps, classes, where):
    """Yields (class, points of it (M, P), points of it in both of two maps (M, M, P)), class by class."""
    models, planes, _ = maps.shape
    if maps.max() >= classes:
        raise ValueError(f"class maps hold class {maps.max()}, but there are {classes} classes")
    for c in np.unique(maps):
        bits = _words(maps == c if where is None else (maps == c) & where)
        shared = np.empty((models, models, planes), dtype=np.int64)
        for i in range(models):
            for j in range(i + 1):
                shared[i, j] = shared[j, i] = np.bitwise_count(bits[i] & bits[j]).sum(axis=1, dtype=np.int64)
        yield int(c), np.diagonal(shared).T, shared


def weighted_per_plane(probs, where=None):
    """Probability-weighted agreement (M, M, P) of each pair: one less the total variation between the two probability
    vectors of a point, mean over the points of a plane. It is the agreement of two draws of classes that are coupled
    as well as can be; of one-hot vectors it is `agreement`. probs: M arrays (P, S, C); where: as in
    `scores_per_plane`."""
    planes = len(probs[0])
    out = np.ones((len(probs), len(probs), planes))
    for p in range(planes):
        points = slice(None) if where is None else where[p]
        held = [np.asarray(one[p][points], dtype=np.float32) for one in probs]
        if not held[0].size or not all(np.isfinite(h).all() for h in held):
            raise ValueError(f"plane {p} has no point that counts, or a probability that is NaN")
        for i in range(len(held)):
            for j in range(i):
                apart = np.abs(held[i] - held[j]).sum(dtype=np.float64) / 2 / len(held[i])
                out[i, j, p] = out[j, i, p] = min(max(1 - apart, 0.0), 1.0)
    return out


def confusion(a, b, classes):
    """Counts (..., C, C) of points of class i in a and class j in b, for labels (..., S) of one shape."""
    a, b = _labels(a), _labels(b)
    if a.shape != b.shape:
        raise ValueError(f"labels of different shapes: {a.shape} and {b.shape}")
    if not a.size:
        raise ValueError("no labels to compare")
    if max(a.max(), b.max()) >= classes or min(a.min(), b.min()) < 0:
        raise ValueError(f"labels outside 0..{classes - 1}")
    rows = int(np.prod(a.shape[:-1]))
    cell = a.reshape(rows, -1).astype(np.int64) * classes + b.reshape(rows, -1)
    cell += np.arange(rows)[:, None] * classes**2
    counts = np.bincount(cell.ravel(), minlength=rows * classes**2)
    return counts.reshape(*a.shape[:-1], classes, classes)


def iou_per_class(counts):
    """Intersection over union (..., C) of each class from counts (..., C, C): points of the class in both
    maps over points of the class in either. NaN for a class in neither map."""
    counts = _counts(counts)
    shared = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(axis=-1) + counts.sum(axis=-2) - shared
    return np.where(union > 0, shared / np.maximum(union, 1), np.nan)


def mean_iou(counts):
    """Mean (...) of `iou_per_class` over the classes that occur in either map, from counts (..., C, C)."""
    return np.nanmean(iou_per_class(counts), axis=-1)


def kappa(counts):
    """Cohen's kappa (...) from counts (..., C, C): agreement beyond that of independent maps with the same
    areas, 1 = equal, 0 = chance (Cohen 1960). NaN where both maps hold one and the same class: there chance
    agrees everywhere too, kappa is 0/0 and not defined."""
    counts = _counts(counts)
    total = counts.sum(axis=(-2, -1))
    agree = np.trace(counts, axis1=-2, axis2=-1) / total
    expected = (counts.sum(axis=-1) * counts.sum(axis=-2)).sum(axis=-1) / total**2
    return _kappa(agree, expected)


def fragments(class_map, connectivity=8):
    """Number of connected components of a class map (R, R), summed over its classes, with 8 neighbours (as
    dbViz's fragmentation score) or 4. With 8, two diagonal neighbours of either class may both count as
    connected."""
    from scipy import ndimage

    if connectivity not in (4, 8):
        raise ValueError(f"connectivity {connectivity}: 4 or 8")
    class_map = _labels(class_map)
    if class_map.ndim != 2:
        raise ValueError(f"a class map is (R, R), not {class_map.shape}")
    structure = ndimage.generate_binary_structure(2, 2 if connectivity == 8 else 1)
    return sum(ndimage.label(class_map == c, structure)[1] for c in np.unique(class_map))


# ---- paths -------------------------------------------------------------------------------------------------


def components(maps, connectivity=8):
    """The connected components of class maps (P, R, R), as arrays with one entry each: plane, class, size in points.

    Neighbours are the 8 around a point, or 4. All planes and classes in one pass: the runs of equal class along the
    fast axis are the nodes of a graph, runs of one class that touch in neighbouring rows are joined.
    """
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity is 4 or 8, not {connectivity}")
    maps = np.asarray(maps)
    if maps.ndim != 3:
        raise ValueError(f"class maps (P, R, R) expected, not {maps.shape}")
    planes, rows, columns = maps.shape
    begins = np.ones(maps.shape, dtype=bool)
    np.not_equal(maps[:, :, 1:], maps[:, :, :-1], out=begins[:, :, 1:])
    run = np.cumsum(begins.ravel(), dtype=np.int32).reshape(maps.shape) - 1
    ends = []
    for shift in (0, 1, -1) if connectivity == 8 else (0,):
        up, down = slice(max(0, -shift), columns - max(0, shift)), slice(max(0, shift), columns + min(0, shift))
        # A pair of touching runs is named once: where one of the two begins, or at the border.
        named = begins[:, :-1, up] | begins[:, 1:, down]
        named[:, :, 0] = True
        named &= maps[:, :-1, up] == maps[:, 1:, down]
        ends.append((run[:, :-1, up][named], run[:, 1:, down][named]))
    above, below = (np.concatenate(e) for e in zip(*ends))
    first = np.flatnonzero(begins)
    graph = csr_matrix((np.ones(len(above), dtype=np.int8), (above, below)), shape=(len(first),) * 2)
    count, label = connected_components(graph, directed=False)
    sizes = np.bincount(label, weights=np.diff(np.append(first, maps.size)), minlength=count).astype(np.int64)
    plane, value = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    plane[label], value[label] = first // (rows * columns), maps.ravel()[first]
    return plane, value, sizes


def fragmentation(maps, connectivity=8, min_area=1):
    """What class maps (P, R, R) look like, as a dict of arrays (P,):

    fragments: connected components of at least min_area points (dbViz's score: connectivity 8, min_area 1);
    largest: share of the largest component; classes: how many occur; entropy: of the shares of the classes, in nats;
    boundary: share of neighbouring pairs of points (of 4) that differ in class.
    """
    maps = np.asarray(maps)
    plane, _, sizes = components(maps, connectivity)
    planes, points = len(maps), maps[0].size
    kept = sizes >= min_area
    largest = np.zeros(planes, dtype=np.int64)
    np.maximum.at(largest, plane, sizes)
    flat = maps.reshape(planes, -1).astype(np.int64)
    classes = int(flat.max()) + 1
    cells = flat + classes * np.arange(planes)[:, None]
    shares = np.bincount(cells.ravel(), minlength=planes * classes).reshape(planes, classes) / points
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(shares > 0, shares * np.log(shares), 0).sum(axis=1)
    changes = (maps[:, 1:] != maps[:, :-1]).sum((1, 2)) + (maps[:, :, 1:] != maps[:, :, :-1]).sum((1, 2))
    pairs = (maps.shape[1] - 1) * maps.shape[2] + maps.shape[1] * (maps.shape[2] - 1)
    return {"fragments": np.bincount(plane[kept], minlength=planes), "largest": largest / points,
            "classes": (shares > 0).sum(axis=1), "entropy": entropy, "boundary": changes / pairs}


def excess(losses, ts):
    """Signed height (T,) of losses (T,) at ts (T,) above the straight line between the two ends of the path.
    ts rise from the first to the last end."""
    losses, ts = _finite("losses", losses), _finite("ts", ts)
    if losses.shape != ts.shape or ts.ndim != 1 or len(ts) < 2:
        raise ValueError(
            f"a path needs losses and ts of one length of at least 2, not {losses.shape} and {ts.shape}"
        )
    if not (np.diff(ts) > 0).all():
        raise ValueError("ts must rise")
    along = (ts - ts[0]) / (ts[-1] - ts[0])
    return losses - ((1 - along) * losses[0] + along * losses[-1])


def barrier(losses, ts):
    """Largest `excess`, at least 0, since it is 0 at the ends. Against the line between the ends (Entezari et
    al. 2022), not their mean (Frankle et al. 2020): the ends may differ."""
    return float(excess(losses, ts).max())


# ---- checks ------------------------------------------------------------------------------------------------


def _finite(name, values):
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} hold NaN or infinity")
    return values


def _predictions(scores, labels):
    scores, labels = _finite("predictions", scores), _labels(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(
            f"predictions (N, C) and labels (N,) expected, not {scores.shape} and {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels outside 0..{scores.shape[1] - 1}")
    return scores, labels


def _probabilities(probs, labels):
    probs, labels = _predictions(probs, labels)
    if probs.min() < 0 or np.abs(probs.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError("probabilities expected: rows of numbers from 0 that sum to 1; use softmax(logits)")
    return probs, labels


def _labels(labels):
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iub":
        raise ValueError(f"labels are integers, not {labels.dtype}")
    return labels


def _maps(maps):
    maps = _labels(maps)
    if maps.ndim != 3 or not maps.size:
        raise ValueError(f"class maps (M, P, S) expected, not {maps.shape}")
    if maps.min() < 0:
        raise ValueError("class maps hold a negative class")
    return maps


def _counts(counts):
    counts = _finite("counts", counts)
    if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2] or (counts.sum(axis=(-2, -1)) <= 0).any():
        raise ValueError(f"counts (..., C, C) with at least one point each expected, not {counts.shape}")
    return counts


def _kappa(agree, expected):
    certain = expected >= 1
    return np.where(certain, np.nan, (agree - expected) / np.where(certain, 1.0, 1 - expected))


def _words(mask):
    """A bool array (..., S) as machine words (..., ceil(S/64)), the last one filled up with zeros."""
    packed = np.packbits(mask, axis=-1)
    padding = [(0, 0)] * (mask.ndim - 1) + [(0, -packed.shape[-1] % 8)]
    return np.pad(packed, padding).view(np.uint64)
