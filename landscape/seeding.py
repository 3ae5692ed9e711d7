"""Named private random streams, and the one place that touches global random state.

A stream is a function of its seed and its names alone: stream(3, "order", 7) gives the same numbers in every
process and on every machine, whatever else was drawn before. Nothing here imports torch until it is asked for a
torch generator, so that scripts without torch can use numpy_stream.
"""

import hashlib
import os
from contextlib import contextmanager


def key(seed, *names):
    """A 63-bit integer that depends on seed (int) and names (strings or ints), and on nothing else."""
    text = "/".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def stream(seed, *names):
    """A private torch.Generator on the CPU. Draws are moved to the device, so that devices agree."""
    import torch

    return torch.Generator().manual_seed(key(seed, *names))


def numpy_stream(seed, *names):
    """A private numpy Generator."""
    import numpy as np

    return np.random.default_rng(key(seed, *names))


@contextmanager
def fork(seed, *names):
    """Inside, torch's global generators (CPU and CUDA) run from the named stream; outside they are as before.

    For initialisers and dropout, which take no generator.
    """
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(key(seed, *names))
        yield


def deterministic(strict):
    """Ask torch for reproducible kernels: strict=True also refuses operations that have none (slower on a GPU)."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not strict
    torch.backends.cudnn.deterministic = strict
    torch.use_deterministic_algorithms(strict, warn_only=not strict)
