"""Pre-activation ResNets (He et al. 2016b, arXiv 1603.05027) and the resnet18k of Nakkiran et al. 2019.

As in kuangliu/pytorch-cifar, and with its parameter names, nothing normalises the last stage before it is
averaged; Nakkiran et al. (arXiv 1912.02292) built theirs on that network, so that k = 64 is preactresnet18.
"""

import torch.nn.functional as F
from torch import nn

from .resnet import BLOCKS, Trunk, conv1x1, conv3x3


class PreActBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        # None or one: a projection starts from the activated input, the identity from the input itself.
        self.shortcut = nn.ModuleList()
        if stride != 1 or inputs != planes:
            self.shortcut.append(conv1x1(inputs, planes, stride))

    def forward(self, x):
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        for project in self.shortcut:
            x = project(active)
        return out + x

    def axes(self, walk, x):
        active = walk(self.bn1, x)
        hidden = walk(self.bn2, walk(self.conv1, active))
        for project in self.shortcut:
            x = walk(project, active)
        return walk(self.conv2, hidden, x)


def preact_resnet(num_classes, in_channels, image_size, depth, width=64):
    """Pre-activation ResNet of depth 18 or 34 with `width` channels in the first stage; any image_size."""
    return Trunk(PreActBlock, BLOCKS[depth][1], width, num_classes, in_channels)


def resnet18k(num_classes, in_channels, image_size, k=64):
    """Pre-activation ResNet18 with k, 2k, 4k and 8k channels; any image_size."""
    return preact_resnet(num_classes, in_channels, image_size, depth=18, width=k)
