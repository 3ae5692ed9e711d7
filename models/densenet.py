"""DenseNets (Huang et al. 2017, arXiv 1608.06993).

Parameter names as in kuangliu/pytorch-cifar: conv1, dense1.0.bn1, ..., trans1.bn, trans1.conv, ..., linear.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .axes import join
from .resnet import conv1x1, conv3x3


class PlainLayer(nn.Module):
    """BN-ReLU-conv3x3; the new channels come before the old ones."""

    def __init__(self, inputs, growth_rate):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, growth_rate)

    def forward(self, x):
        return torch.cat([self.conv1(F.relu(self.bn1(x))), x], 1)

    def axes(self, walk, x):
        return join(walk(self.conv1, walk(self.bn1, x)), x)


class BottleneckLayer(nn.Module):
    """The same behind a 1x1 convolution to four times the growth rate (the paper's DenseNet-B)."""

    def __init__(self, inputs, growth_rate):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv1x1(inputs, 4 * growth_rate)
        self.bn2 = nn.BatchNorm2d(4 * growth_rate)
        self.conv2 = conv3x3(4 * growth_rate, growth_rate)

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([self.conv2(F.relu(self.bn2(out))), x], 1)

    def axes(self, walk, x):
        hidden = walk(self.bn2, walk(self.conv1, walk(self.bn1, x)))
        return join(walk(self.conv2, hidden), x)


class Transition(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = conv1x1(inputs, outputs)

    def forward(self, x):
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)

    def axes(self, walk, x):
        return walk(self.conv, walk(self.bn, x))


class DenseNet(nn.Module):
    """Dense blocks dense1, dense2, ... of `layers` layers each, with transitions trans1, ... between them.

    A transition multiplies the channels by `compression` and halves the image.
    """

    def __init__(self, layer, layers, growth_rate, stem, compression, num_classes, in_channels):
        super().__init__()
        self.conv1 = conv3x3(in_channels, stem)
        self.names = []
        channels = stem
        for i, count in enumerate(layers, start=1):
            block = [layer(channels + j * growth_rate, growth_rate) for j in range(count)]
            self.add_stage(f"dense{i}", nn.Sequential(*block))
            channels += count * growth_rate
            if i < len(layers):
                self.add_stage(f"trans{i}", Transition(channels, int(channels * compression)))
                channels = int(channels * compression)
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def add_stage(self, name, stage):
        self.names.append(name)
        self.add_module(name, stage)

    def forward(self, x):
        x = self.conv1(x)
        for name in self.names:
            x = self.get_submodule(name)(x)
        return self.linear(F.relu(self.bn(x)).mean((2, 3)))

    def axes(self, walk, x):
        x = walk(self.conv1, x)
        walk.omit(x)  # it found no permutation at all in a DenseNet
        for name in self.names:
            x = walk(self.get_submodule(name), x)
            walk.omit(x)
        return walk(self.linear, walk(self.bn, x))


def densenet121(num_classes, in_channels, image_size, growth_rate=32):
    """DenseNet-BC of 121 layers; images from 8x8."""
    layers = [6, 12, 24, 16]
    return DenseNet(BottleneckLayer, layers, growth_rate, 2 * growth_rate, 0.5, num_classes, in_channels)


def densenet40(num_classes, in_channels, image_size, growth_rate=12, stem=16):
    """The paper's first network: 40 layers, no bottleneck, no compression, a stem of 16; images from 4x4."""
    return DenseNet(PlainLayer, [12, 12, 12], growth_rate, stem, 1.0, num_classes, in_channels)
