"""Fully connected networks with ReLU: fc1, fc2, ... on the flattened image."""

import torch.nn.functional as F
from torch import nn


class FullyConnected(nn.Module):
    """Linear layers of the given sizes, inputs first and outputs last."""

    def __init__(self, sizes):
        super().__init__()
        for i, (inputs, outputs) in enumerate(zip(sizes, sizes[1:]), start=1):
            self.add_module(f"fc{i}", nn.Linear(inputs, outputs))

    def forward(self, x):
        x = x.flatten(1)
        *hidden, last = self.children()
        for layer in hidden:
            x = F.relu(layer(x))
        return last(x)

    def axes(self, walk, x):
        for layer in self.children():
            x = walk(layer, x)
        return x


def fcnet(num_classes, in_channels, image_size):
    """dbViz's FCNet: pixels-1024-512-256-64-classes."""
    return FullyConnected([in_channels * image_size**2, 1024, 512, 256, 64, num_classes])


def mlp1(num_classes, in_channels, image_size, width=256):
    """pixels-width-classes."""
    return FullyConnected([in_channels * image_size**2, width, num_classes])


def mlp(num_classes, in_channels, image_size, width=256):
    """pixels-width-width-classes."""
    return FullyConnected([in_channels * image_size**2, width, width, num_classes])
