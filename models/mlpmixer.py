"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601), as dbViz's MLPMixer4, with its parameter names."""

from functools import partial

from torch import nn

from .vit import Patches, Residual, feed_forward


class MeanToken(nn.Module):
    def forward(self, x):
        return x.mean(1)

    def axes(self, walk, x):
        return x


def mlpmixer(num_classes, in_channels, image_size, dim=512):
    """Patches of 4x4, 12 layers, hidden layers of four times their input; image_size a multiple of 4."""
    patch, depth, expansion = 4, 12, 4
    tokens = (image_size // patch) ** 2
    across_tokens = partial(nn.Conv1d, kernel_size=1)  # a dense layer over dimension 1 of (B, tokens, dim)
    blocks = [
        nn.Sequential(
            Residual(dim, feed_forward(tokens, expansion * tokens, 0.0, across_tokens)),
            Residual(dim, feed_forward(dim, expansion * dim, 0.0)),
        )
        for _ in range(depth)
    ]
    return nn.Sequential(
        Patches(patch),
        nn.Linear(patch**2 * in_channels, dim),
        *blocks,
        nn.LayerNorm(dim),
        MeanToken(),
        nn.Linear(dim, num_classes),
    )
