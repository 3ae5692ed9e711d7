"""The rows of scripts/benchmark.py on all pairwise measures of many networks.

The twin is a loop over pairs and, within a pair, over examples, each measure written down as it is defined. It gets
the probabilities ready-made; ours begins with logits.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

import models
from landscape import metrics, seeding, weights

FUNCTION = ("disagreement", "js", "kl", "cosine")
EQUAL = 1e-5  # largest difference of two computations of a measure, of a part of them in float32


def made_up(count, examples, classes=10):
    """(logits (M, N, C), weight dicts of M SmallCNNs), drawn from a seed."""
    draw = seeding.numpy_stream(0, "benchmark")
    logits = draw.normal(0, 2, (count, examples, classes)).astype(np.float32)
    points = []
    for k in range(count):
        with seeding.fork(k, "benchmark"):
            points.append(weights.of(models.build("small_cnn", classes, in_channels=3, image_size=32)))
    return logits, points


def compare(logits, points):
    """Every measure of every pair: {measure: (M, M)}."""
    grams = weights.grams(points, list(points[0]))
    return {**metrics.pairwise(logits), "weight_cosine": weights.cosines(sum(grams.values())).numpy()}


# ---- the plain twins -----------------------------------------------------------------------------------------------

def plain_pair(p, q, a, b):
    """The measures of two networks from probabilities (N, C), example by example, and from weight dicts."""
    out = dict.fromkeys(FUNCTION, 0.0)
    for one, other in zip(p, q):
        mean = (one + other) / 2
        out["disagreement"] += one.argmax() != other.argmax()
        out["js"] += ((one * np.log(one / mean)).sum() + (other * np.log(other / mean)).sum()) / 2
        out["kl"] += (one * np.log(one / other)).sum()
        out["cosine"] += one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
    out = {k: v / len(p) for k, v in out.items()}
    return {**out, "weight_cosine": plain_cosine(a, b)}


def plain_cosine(a, b):
    first, second = (torch.cat([w.flatten() for w in held.values()]) for held in (a, b))
    return (first @ second / (first.norm() * second.norm())).item()


def examples_at_once(p, q, a, b):
    """The same without the loop over examples."""
    mean = (p + q) / 2
    cosines = (p * q).sum(1) / (np.linalg.norm(p, axis=1) * np.linalg.norm(q, axis=1))
    return {"disagreement": (p.argmax(1) != q.argmax(1)).mean(), "kl": (p * np.log(p / q)).sum(1).mean(),
            "js": ((p * np.log(p / mean)).sum(1) + (q * np.log(q / mean)).sum(1)).mean() / 2,
            "cosine": cosines.mean(), "weight_cosine": plain_cosine(a, b)}


# ---- rows ----------------------------------------------------------------------------------------------------------

def size(bench):
    return bench.size(100, 4), bench.size(10_000, 30)


def words(count, examples):
    return (f"disagreement, Jensen-Shannon, Kullback-Leibler, cosines of probabilities and of weights of all pairs of "
            f"{count} networks on {examples} examples of 10 classes")


def pairwise(bench):
    count, examples = size(bench)
    logits, points = made_up(count, examples)
    probs = metrics.softmax(logits)
    # Unordered pairs, though ours has the Kullback-Leibler divergence in both orders: that favours the twin.
    every = [(i, j) for i in range(count) for j in range(i)]
    some = every[::len(every) // 3][:3]

    def ours():
        return compare(logits, points)

    def twin(pair=plain_pair):
        return [pair(probs[i], probs[j], points[i], points[j]) for i, j in some]

    def check():
        found, worst = ours(), 0.0
        for pair in (plain_pair, examples_at_once):
            for (i, j), said in zip(some, twin(pair)):
                worst = max(worst, *[abs(found[k][i, j] - v) for k, v in said.items()])
        began = time.process_time()
        ours()
        middle = time.process_time()
        twin(examples_at_once)
        plainer = (time.process_time() - middle) * len(every) / len(some) / (middle - began)
        said = f"{len(some)} of {len(every)} pairs differ by {worst:.0e} at most (≤ {EQUAL:.0e})"
        return worst <= EQUAL, f"{said}; a loop over pairs alone, all examples at once, takes {plainer:.1f} times ours"

    return bench.ratio(f"{words(count, examples)}: matrix products / a loop over pairs and examples (timed on "
                       f"{len(some)} of {len(every)} pairs and scaled up)", 50, ours, twin, check,
                       share=len(some) / len(every))


def pairwise_time(bench):
    logits, points = made_up(*size(bench))
    return bench.seconds(f"{words(*size(bench))}: CPU seconds", 5, lambda: compare(logits, points),
                         lambda: (True, "the row pairwise compares the numbers"))


def pairwise_memory(bench):
    count, examples = size(bench)

    def measure():
        code = (f"from ensembles import bench; bench.compare(*bench.made_up({count}, {examples})); "
                "print(open('/proc/self/status').read())")
        root = Path(__file__).resolve().parent.parent
        said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
        peak = next(line for line in said.stdout.splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / 1e6

    return bench.memory(f"{words(count, examples)}: peak memory of the process, imports and inputs included", 2000,
                        measure, "the row pairwise compares the numbers")


ROWS = {"pairwise": pairwise, "pairwise-time": pairwise_time, "pairwise-memory": pairwise_memory}
