"""The CIFAR ResNets of He et al. 2016 (arXiv 1512.03385), section 4.2: stages of 16, 32 and 64 channels.

Their shortcuts have no parameters (the paper's option A), which makes resnet20 269,722 parameters. Those of
resnet20_proj are 1x1 convolutions with BatchNorm (option B), and its last layer has no bias: the variant of Frankle's
open_lth and of Wortsman et al. 2021, 272,464 parameters.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .axes import Axis
from .resnet import BasicBlock, ResNet


class ZeroPadded(nn.Module):
    """The identity between stages: every other pixel; new channels are zeros, half before and half after."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x):
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def axes(self, walk, x):
        new = torch.arange(self.before + self.after)
        new[self.before:] += x.size
        old = {group: places + self.before for group, places in x.places.items()}
        return Axis(x.size + len(new), {**old, walk.names[self]: new[:, None]})


def parameter_free(inputs, outputs, stride):
    return nn.Sequential() if stride == 1 and inputs == outputs else ZeroPadded(inputs, outputs, stride)


class CifarBlock(BasicBlock):
    make_shortcut = staticmethod(parameter_free)


class DroppingBlock(BasicBlock):
    """With a dropout behind its last BatchNorm, before the shortcut is added; its probability is 0 until it is set."""

    def __init__(self, inputs, planes, stride):
        super().__init__(inputs, planes, stride)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.dropout(self.bn2(self.conv2(out)))
        return F.relu(out + self.shortcut(x))


def resnet_cifar(num_classes, in_channels, image_size, depth, width=16):
    """ResNet-`depth`, depth = 6n + 2, with `width` channels in the first stage; any image_size."""
    return kaiming(ResNet(CifarBlock, [(depth - 2) // 6] * 3, width, num_classes, in_channels))


def resnet_proj(num_classes, in_channels, image_size, depth, width=16):
    """The same with projections for shortcuts, no bias in the last layer, and places for dropout in its blocks."""
    network = ResNet(DroppingBlock, [(depth - 2) // 6] * 3, width, num_classes, in_channels)
    network.linear = nn.Linear(network.linear.in_features, num_classes, bias=False)
    return kaiming(network)


def kaiming(network):
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)  # "the weight initialization in [13]": He et al. 2015
    return network
