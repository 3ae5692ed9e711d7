"""Metrics against slow twins, exact cases and the libraries of the field."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax
from scipy.stats import entropy
from sklearn.metrics import cohen_kappa_score, confusion_matrix, jaccard_score

from landscape import metrics


def test_debiasing_takes_off_what_few_examples_add():
    """Of a network that is calibrated by construction the error is 0; of one with a large gap it stays what it is."""
    rng = np.random.default_rng(0)
    plain, debiased = [], []
    for _ in range(40):
        confidence = rng.uniform(0.55, 0.95, 300)
        probs = np.stack([confidence, 1 - confidence], 1)
        labels = (rng.uniform(size=300) > confidence).astype(int)
        plain.append(metrics.ece(probs, labels, 20))
        debiased.append(metrics.ece_debiased(probs, labels, 20))
    # Two gaps of spread s: E|N(0, s)| = 0.80 s is what the error is too large by, and 2 * 0.80 s - 1.13 s is left.
    assert np.mean(plain) > 0.04 and 0.45 < np.mean(debiased) / np.mean(plain) < 0.75
    sure = np.tile([0.9, 0.1], (400, 1))
    wrong = (np.arange(400) % 2).astype(int)
    assert np.isclose(metrics.ece_debiased(sure, wrong, 20), 0.4) and np.isclose(metrics.ece(sure, wrong, 20), 0.4)
    assert metrics.ece_debiased(np.tile([1.0, 0.0], (5, 1)), np.ones(5, dtype=int)) == 1


def test_the_mean_of_a_folded_normal_is_what_is_taken_off():
    probs = np.tile([0.7, 0.3], (50, 1))
    labels = (np.arange(50) >= 38).astype(int)  # 76 % right at a confidence of 70 %: a gap of 0.06
    spread = np.sqrt(0.76 * 0.24 / 50)
    drawn = np.abs(np.random.default_rng(0).normal(0.06, spread, 400_000)).mean()
    assert np.isclose(metrics.ece_debiased(probs, labels), 2 * 0.06 - drawn, atol=3e-4)


def test_total_variation_against_a_loop():
    a, b = (metrics.softmax(drawn(seed)[0]) for seed in (0, 1))
    assert np.isclose(metrics.total_variation(a, b), np.mean([abs(p - q).sum() / 2 for p, q in zip(a, b)]))
    assert metrics.total_variation(a, a) == 0
    assert metrics.total_variation(np.eye(3), np.roll(np.eye(3), 1, 0)) == 1
    with pytest.raises(ValueError, match="one shape"):
        metrics.total_variation(a, b[:5])


MAPS = hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 80)),
                  elements=st.integers(0, 4))  # fmt: skip


def drawn(seed, n=200, classes=7):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, classes)) * 3, rng.integers(0, classes, n)


@pytest.mark.parametrize("seed", range(3))
def test_predictions_against_loops(seed):
    logits, labels = drawn(seed)
    logs = log_softmax(logits, axis=1)
    probs = metrics.softmax(logits)
    assert np.allclose(np.log(probs), logs)
    assert metrics.accuracy(logits, labels) == np.mean([np.argmax(r) == y for r, y in zip(logits, labels)])
    assert np.isclose(metrics.nll(logits, labels), -np.mean([r[y] for r, y in zip(logs, labels)]))
    squares = [sum((p - (c == y)) ** 2 for c, p in enumerate(r)) for r, y in zip(probs, labels)]
    assert np.isclose(metrics.brier(probs, labels), np.mean(squares))
    total = 0
    for b in range(15):
        inside = [k for k, r in enumerate(probs) if b / 15 < max(r) <= (b + 1) / 15]
        if inside:
            right = np.mean([np.argmax(probs[k]) == labels[k] for k in inside])
            total += len(inside) / len(probs) * abs(right - np.mean([max(probs[k]) for k in inside]))
    assert np.isclose(metrics.ece(probs, labels), total)


def test_known_values_of_predictions():
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert metrics.ece(certain, [0, 1]) == 0 and metrics.brier(certain, [0, 1]) == 0
    assert metrics.ece(certain, [1, 0]) == 1 and metrics.brier(certain, [1, 0]) == 2
    assert np.isclose(metrics.nll(np.zeros((4, 10)), [0, 1, 2, 3]), np.log(10))
    assert metrics.nll([[1e4, 0.0]], [1]) == 1e4
    # bins are closed on the right: with two bins, 0.5 and 0.4 share the lower one and their gaps cancel
    probs = np.array([[0.5, 0.3, 0.2], [0.4, 0.3, 0.3]])
    assert np.isclose(metrics.ece(probs, [0, 1], bins=2), abs((1 - 0.5) + (0 - 0.4)) / 2)


# ---- many models


def twins(logits):
    """metrics.pairwise, one pair and one example after the other."""
    probs = np.exp(log_softmax(np.asarray(logits, float), axis=2))
    models, examples, _ = probs.shape
    out = {k: np.zeros((models, models)) for k in ("disagreement", "js", "kl", "cosine")}
    for i in range(models):
        for j in range(models):
            for n in range(examples):
                p, q = probs[i, n], probs[j, n]
                mean = (p + q) / 2
                out["disagreement"][i, j] += p.argmax() != q.argmax()
                out["kl"][i, j] += sum(a * np.log(a / b) for a, b in zip(p, q))
                out["js"][i, j] += (sum(a * np.log(a / m) for a, m in zip(p, mean))
                                    + sum(b * np.log(b / m) for b, m in zip(q, mean))) / 2
                out["cosine"][i, j] += p @ q / np.sqrt(p @ p * (q @ q))
    return {k: v / examples for k, v in out.items()}


@pytest.mark.parametrize(("models", "examples", "classes"), [(5, 30, 10), (1, 4, 3), (2, 1, 2), (4, 7, 100)])
def test_pairs_of_models_against_a_loop(models, examples, classes):
    logits = np.random.default_rng(models).normal(size=(models, examples, classes)).astype(np.float32) * 4
    fast, slow = metrics.pairwise(logits), twins(logits)
    for name, expected in slow.items():
        assert np.allclose(fast[name], expected, atol=1e-9), name
        assert name == "kl" or np.allclose(fast[name], fast[name].T, atol=1e-12), name
    assert not fast["disagreement"].diagonal().any() and not fast["js"].diagonal().any()
    assert 0 <= fast["js"].min() and fast["js"].max() <= np.log(2)


def test_blocks_of_examples_do_not_change_the_divergence():
    logits = np.random.default_rng(0).normal(size=(2, 30_000, 10))  # 300,000 numbers of each: several blocks
    fast = metrics.pairwise(logits)["js"][0, 1]
    p, q = metrics.softmax(logits)
    m = (p + q) / 2
    assert np.isclose(fast, ((p * np.log(p / m)).sum(1) + (q * np.log(q / m)).sum(1)).mean() / 2)


def test_models_that_are_sure_of_different_classes_are_as_far_apart_as_can_be():
    sure = np.array([[[900.0, 0.0]], [[0.0, 900.0]]])
    found = metrics.pairwise(sure)
    assert np.allclose(found["js"], [[0, np.log(2)], [np.log(2), 0]])
    assert np.allclose(found["kl"], [[0, 900], [900, 0]]) and np.allclose(found["cosine"], np.eye(2))
    with pytest.raises(ValueError):
        metrics.pairwise(np.full((2, 1, 2), np.nan))


def test_subsets_are_all_of_them_or_different_ones():
    every = metrics.subsets(5, 2)
    assert every.shape == (10, 5) and (every.sum(1) == 2).all() and len(np.unique(every, axis=0)) == 10
    some = metrics.subsets(20, 10, most=300, seed=4)
    assert some.shape == (300, 20) and (some.sum(1) == 10).all() and len(np.unique(some, axis=0)) == 300
    assert np.array_equal(some, metrics.subsets(20, 10, most=300, seed=4))
    assert not np.array_equal(some, metrics.subsets(20, 10, most=300, seed=5))
    assert abs(some.mean(0) - 0.5).max() < 0.15  # no member is favoured
    for size in (0, 6):
        with pytest.raises(ValueError, match=f"a subset of {size} of 5"):
            metrics.subsets(5, size)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_scores_of_subsets_are_those_of_their_mean_probabilities(kind):
    rng = np.random.default_rng(3)
    probs = metrics.softmax(rng.normal(size=(4, 60, 7)) * 2).astype(kind)
    labels = rng.integers(0, 7, 60)
    subsets = np.concatenate([metrics.subsets(4, size) for size in (1, 2, 3, 4)])
    found = metrics.subset_scores(probs, labels, subsets)
    for b, subset in enumerate(subsets):
        members = probs[subset].astype(float)
        mean = members.mean(0)
        assert found["accuracy"][b] == (mean.argmax(1) == labels).mean()
        assert np.isclose(found["nll"][b], -np.log(mean[range(60), labels]).mean(), rtol=1e-5)
        assert np.isclose(found["brier"][b], metrics.brier(mean / mean.sum(1, keepdims=True), labels), rtol=1e-5)
        assert np.isclose(found["ece"][b], metrics.ece(mean / mean.sum(1, keepdims=True), labels), atol=1e-5)
        own = np.mean([-(m * np.log(m)).sum(1).mean() for m in members])
        assert np.isclose(found["js"][b], -(mean * np.log(mean)).sum(1).mean() - own, atol=1e-5)
    assert not found["js"][subsets.sum(1) == 1].any()
    assert (found["js"] >= 0).all() and (found["js"] <= np.log(subsets.sum(1)) + 1e-9).all()


def test_the_diversity_of_a_pair_is_its_divergence_and_of_sure_models_the_logarithm_of_their_number():
    logits = np.random.default_rng(1).normal(size=(2, 40, 5))
    both = metrics.subset_scores(metrics.softmax(logits), np.zeros(40, int), np.array([[True, True]]))
    assert np.isclose(both["js"][0], metrics.pairwise(logits)["js"][0, 1])
    sure = np.eye(3)[:, None, :]  # three models, one image, each sure of a class of its own
    found = metrics.subset_scores(sure, np.array([0]), np.array([[True, True, True], [False, True, True]]))
    assert np.allclose(found["js"], [np.log(3), np.log(2)])
    assert np.isfinite(found["nll"]).all() and found["nll"][1] > 80  # a probability of 0 at the label


@settings(max_examples=60, deadline=None)
@given(MAPS)
def test_scores_of_maps_equal_their_slow_twins_exactly(maps):
    fast, scores = metrics.agreement_per_plane(maps), metrics.scores_per_plane(maps, 5)
    for i, a in enumerate(maps):
        for j, b in enumerate(maps):
            counts = metrics.confusion(a, b, 5)
            for k in range(len(a)):
                slow = sum(int(x == y) for x, y in zip(a[k], b[k])) / a.shape[1]
                assert fast[i, j, k] == scores["agreement"][i, j, k] == slow == metrics.agreement(a[k], b[k])
            assert np.allclose(scores["mean_iou"][i, j], metrics.mean_iou(counts))
            assert np.allclose(scores["kappa"][i, j], metrics.kappa(counts), equal_nan=True)
    assert np.array_equal(fast, fast.transpose(1, 0, 2))


def test_scores_of_maps_work_beyond_256_classes():
    maps = np.random.default_rng(0).integers(0, 700, (3, 2, 100)).astype(np.uint16)
    scores = metrics.scores_per_plane(maps, 1000)
    assert np.array_equal(metrics.agreement_per_plane(maps), scores["agreement"])
    assert np.allclose(scores["kappa"][0, 1], metrics.kappa(metrics.confusion(maps[0], maps[1], 1000)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_confusion_iou_and_kappa_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 4, 50)
    b = np.where(rng.random(50) < 0.6, a, rng.integers(0, 4, 50))
    counts = metrics.confusion(a, b, 5)
    assert np.array_equal(counts, confusion_matrix(a, b, labels=range(5)))
    present = np.union1d(a, b)
    assert np.isclose(metrics.mean_iou(counts), jaccard_score(a, b, labels=present, average="macro"))
    assert np.isnan(metrics.iou_per_class(counts)[4])
    assert np.isclose(metrics.kappa(counts), cohen_kappa_score(a, b))


def test_kappa_of_two_equal_constant_maps_is_not_defined():
    same = np.zeros((1, 9), dtype=np.uint8)
    assert np.isnan(metrics.kappa(metrics.confusion(same, same, 3)))
    assert np.isnan(metrics.scores_per_plane(np.stack([same, same]), 3)["kappa"]).all()
    assert metrics.kappa(metrics.confusion(same, same + 1, 3)) == 0


def test_fragments_of_small_maps():
    board = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    assert metrics.fragments(board) == 2 and metrics.fragments(board, connectivity=4) == 4
    assert metrics.fragments(np.full((5, 5), 3)) == 1
    ring = np.zeros((5, 5), dtype=int)
    ring[1:4, 1:4] = 1
    ring[2, 2] = 0
    assert metrics.fragments(ring) == 3


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.uint8, (6, 7), elements=st.integers(0, 2)), st.sampled_from([4, 8]))
def test_fragments_against_a_flood_fill(class_map, connectivity):
    near = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a or b) and (connectivity == 8 or not a * b)]
    left, count = {(i, j) for i in range(6) for j in range(7)}, 0
    while left:
        count += 1
        stack = [left.pop()]
        while stack:
            i, j = stack.pop()
            for cell in [(i + a, j + b) for a, b in near]:
                if cell in left and class_map[cell] == class_map[i, j]:
                    left.remove(cell)
                    stack.append(cell)
    assert metrics.fragments(class_map, connectivity) == count


def test_barrier_is_the_height_above_the_line_between_the_ends():
    ts = np.linspace(0, 1, 11)
    assert metrics.barrier(2 + 3 * ts, ts) < 1e-12
    assert metrics.barrier((ts - 0.5) ** 2, ts) == 0
    assert np.isclose(metrics.barrier(1 + ts + 4 * ts * (1 - ts), ts), 1)
    assert np.allclose(metrics.excess(1 + ts - ts * (1 - ts), ts), -ts * (1 - ts))
    uneven = np.array([0.0, 0.1, 0.7, 1.0])
    assert np.allclose(metrics.excess(5 * uneven, uneven), 0)


BAD = {
    "NaN logits": lambda: metrics.accuracy([[np.nan, 1.0]], [0]),
    "infinite logits": lambda: metrics.nll([[np.inf, 1.0]], [0]),
    "logits for probabilities": lambda: metrics.ece([[3.0, 1.0]], [0]),
    "label out of range": lambda: metrics.brier([[0.5, 0.5]], [2]),
    "fractional labels": lambda: metrics.agreement([0.5], [0.5]),
    "different shapes": lambda: metrics.agreement([1, 2], [1]),
    "nothing": lambda: metrics.agreement(np.array([], int), np.array([], int)),
    "flat maps": lambda: metrics.agreement_per_plane(np.zeros((2, 3), np.uint8)),
    "class beyond": lambda: metrics.scores_per_plane(np.full((1, 1, 2), 5, np.uint8), 5),
    "confusion beyond": lambda: metrics.confusion([5], [0], 5),
    "NaN loss": lambda: metrics.barrier([0.0, np.nan, 1.0], [0, 0.5, 1]),
    "falling ts": lambda: metrics.barrier([0.0, 1.0], [1, 0]),
    "subsets of others": lambda: metrics.subset_scores(np.ones((2, 1, 1)), [0], np.ones((1, 3), bool)),
    "an empty subset": lambda: metrics.subset_scores(np.ones((2, 1, 1)), [0], np.zeros((1, 2), bool)),
    "subsets by number": lambda: metrics.subset_scores(np.ones((2, 1, 1)), [0], np.array([[0, 1]])),
    "connectivity 6": lambda: metrics.fragments(np.zeros((2, 2), int), 6),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    with pytest.raises(ValueError):
        BAD[name]()


# ---- ensembles -----------------------------------------------------------------------------------------------------

def members(seed=0, k=4, n=60, c=5):
    """Probabilities (k, n, c), one of them 0 at a label, and labels."""
    rng = np.random.default_rng(seed)
    probs = metrics.softmax(3 * rng.normal(size=(k, n, c)))
    labels = rng.integers(c, size=n)
    probs[0, 0] = np.eye(c)[(labels[0] + 1) % c]
    return probs, labels


def test_subsets_are_all_or_so_many_different_ones():
    pairs = list(itertools.combinations(range(4), 2))
    assert metrics.subsets(4, 2).tolist() == [[i in pair for i in range(4)] for pair in pairs]
    assert metrics.subsets(3, 3).tolist() == [[True] * 3] and metrics.subsets(1, 1).tolist() == [[True]]
    some = metrics.subsets(12, 5, 100, 3)
    assert some.shape == (100, 12) and (some.sum(1) == 5).all() and len({tuple(s) for s in some.tolist()}) == 100
    assert (some == metrics.subsets(12, 5, 100, 3)).all() and (some != metrics.subsets(12, 5, 100, 4)).any()
    assert len(metrics.subsets(12, 5, 792)) == 792
    with pytest.raises(ValueError, match="a subset of 5 of 4"):
        metrics.subsets(4, 5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_scores_of_subsets_against_a_loop(dtype):
    probs, labels = members()
    every = np.concatenate([metrics.subsets(4, m) for m in (1, 2, 3, 4)])
    found = metrics.subset_scores(probs.astype(dtype), labels, every)
    for b, subset in enumerate(every):
        mean = probs[subset].mean(0)
        at = np.maximum(mean[np.arange(60), labels], np.finfo(dtype).tiny)
        js = entropy(mean, axis=1).mean() - entropy(probs[subset], axis=2).mean()
        plain = {"accuracy": metrics.accuracy(mean, labels), "nll": -np.log(at).mean(),
                 "brier": metrics.brier(mean, labels), "ece": metrics.ece(mean, labels), "js": js}
        for name, value in plain.items():
            assert found[name][b] == pytest.approx(value, abs=1e-12 if dtype == np.float64 else 2e-6), (name, subset)
        assert 0 <= found["js"][b] <= np.log(subset.sum()) and (subset.sum() > 1 or found["js"][b] == 0)


def test_scores_of_subsets_at_the_ends_of_diversity():
    probs = np.repeat(np.eye(3)[:, None], 7, axis=1)  # three members, each sure of a class of its own
    found = metrics.subset_scores(probs, np.zeros(7, int), np.ones((1, 3), bool))
    assert found["js"] == pytest.approx(np.log(3)) and found["accuracy"] == 1
    same = metrics.subset_scores(probs[[1, 1]], np.ones(7, int), np.ones((1, 2), bool))
    assert same["js"] == 0 and same["nll"] == 0 and same["brier"] == 0


def test_blocks_of_subsets_are_not_seen():
    probs, labels = members(1, 8, 50_000, 4)
    every = metrics.subsets(8, 4)
    found = metrics.subset_scores(probs.astype(np.float32), labels, every)
    one = metrics.subset_scores(probs.astype(np.float32), labels, every[-1:])
    assert all(found[k][-1] == pytest.approx(one[k][0], rel=1e-6) for k in found)


def test_scores_of_subsets_refuse_what_is_none():
    probs, labels = members()
    with pytest.raises(ValueError, match="without members"):
        metrics.subset_scores(probs, labels, np.zeros((1, 4), bool))
    with pytest.raises(ValueError, match="subsets"):
        metrics.subset_scores(probs, labels, np.ones((1, 3), bool))
    with pytest.raises(ValueError, match="sum to 1"):
        metrics.subset_scores(2 * probs, labels, np.ones((1, 4), bool))


def test_tempered_takes_back_a_temperature_and_helps_an_overconfident_network():
    """Labels are drawn from softmax(z): scaled by any factor, the probabilities come back near the true ones, and they
    are what a search over a fine grid of temperatures on the other half gives."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=(2000, 4)) * 2
    true = metrics.softmax(z)
    labels = (rng.random((2000, 1)) > true.cumsum(1)).sum(1)
    once, sharp = metrics.tempered(true, labels), metrics.tempered(metrics.softmax(5 * z), labels)
    assert np.allclose(once, sharp, atol=1e-3) and np.abs(once - true).mean() < 0.02
    assert metrics.nll(5 * z, labels) > 1.5 * metrics.nll(np.log(sharp), labels)
    assert (sharp.argmax(1) == z.argmax(1)).all() and np.allclose(sharp.sum(1), 1)
    for half, other in ((0, 1), (1, 0)):
        grid = np.geomspace(0.5, 2, 2001)
        best = grid[np.argmin([metrics.nll(z[other::2] / t, labels[other::2]) for t in grid])]
        assert np.allclose(once[half::2], metrics.softmax(z[half::2] / best), atol=1e-3)
    assert np.isfinite(metrics.tempered(np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 2, 1]))).all()
    with pytest.raises(ValueError, match="two examples"):
        metrics.tempered(true[:1], labels[:1])
