"""A small vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929), as dbViz's ViT4.

Parameter names as there: to_patch_embedding.1, transformer.layers.0.0.fn.to_qkv, ..., mlp_head.1.
B images, N tokens, H heads, D channels of a head.
"""

from collections import OrderedDict

import torch
from torch import nn

from .axes import fixed, spread, tile, units


class Patches(nn.Module):
    """Images (B, C, S, S) -> patches (B, (S/size)**2, size*size*C); inside one: row, column, channel."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        x = x.unflatten(3, (-1, self.size)).unflatten(2, (-1, self.size))  # (B, C, row, y, column, x)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def axes(self, walk, x):
        return x


class Residual(nn.Module):
    """x + fn(norm(x))"""

    def __init__(self, dim, fn):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x):
        return x + self.fn(self.norm(x))

    def axes(self, walk, x):
        walk(self.norm, x)
        first = next(module for module in self.fn.modules() if hasattr(module, "weight"))
        if isinstance(first, nn.Conv1d):  # MLP-Mixer's layers across tokens, which are pixels
            tokens = fixed(first.in_channels)
            walk(self.fn, tokens, tokens)
        else:
            walk(self.fn, x, x)
        return x


def feed_forward(dim, hidden, dropout, dense=nn.Linear):
    first, last = dense(dim, hidden), dense(hidden, dim)
    return nn.Sequential(first, nn.GELU(), nn.Dropout(dropout), last, nn.Dropout(dropout))


class Attention(nn.Module):
    def __init__(self, dim, heads, head_dim, dropout):
        super().__init__()
        self.heads, self.scale = heads, head_dim**-0.5
        self.to_qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, dim), nn.Dropout(dropout))

    def forward(self, x):
        q, k, v = self.to_qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
        # Written out: on a CPU the backward of scaled_dot_product_attention takes a third of the step.
        weights = (self.scale * q @ k.transpose(2, 3)).softmax(3)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))

    def axes(self, walk, x, out):
        dim = self.to_qkv.out_features // (3 * self.heads)
        heads = spread(units(f"{walk.names[self]}.heads", self.heads), dim)  # a head moves as a whole
        walk(self.to_qkv, x, tile(heads, 3))
        return walk(self.to_out, heads, out)


class ViT(nn.Module):
    def __init__(self, num_classes, in_channels, image_size, patch, dim, depth, heads, head_dim, dropout):
        super().__init__()
        self.to_patch_embedding = nn.Sequential(Patches(patch), nn.Linear(patch**2 * in_channels, dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, (image_size // patch) ** 2 + 1, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.dropout = nn.Dropout(dropout)
        layers = [
            nn.Sequential(
                Residual(dim, Attention(dim, heads, head_dim, dropout)),
                Residual(dim, nn.Sequential(OrderedDict(net=feed_forward(dim, dim, dropout)))),
            )
            for _ in range(depth)
        ]
        self.transformer = nn.Sequential(OrderedDict(layers=nn.Sequential(*layers)))
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))

    def forward(self, x):
        x = self.to_patch_embedding(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embedding
        return self.mlp_head(self.transformer(self.dropout(x))[:, 0])

    def axes(self, walk, x):
        x = walk(self.to_patch_embedding, x)
        for name in ("pos_embedding", "cls_token"):
            walk.note(self, name, fixed(1), fixed(self.get_parameter(name).shape[1]), x)
        return walk(self.mlp_head, walk(self.transformer, x))


def vit(num_classes, in_channels, image_size, dim=512):
    """Patches of 4x4, 6 layers, 8 heads of 64, dropout 0.1, a class token; image_size a multiple of 4."""
    return ViT(
        num_classes, in_channels, image_size, patch=4, dim=dim, depth=6, heads=8, head_dim=64, dropout=0.1
    )
