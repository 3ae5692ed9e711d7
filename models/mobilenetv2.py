"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) with early strides of 1 for small images.

Parameter names as in kuangliu/pytorch-cifar, whose blocks of stride 1 project their shortcut where the
channels change (the paper has no shortcut there).
"""

import torch.nn.functional as F
from torch import nn

from .resnet import conv1x1, conv3x3, projection

STAGES = [  # expansion, channels, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; a shortcut only where the image keeps its size."""

    def __init__(self, inputs, outputs, expansion, stride):
        super().__init__()
        planes = expansion * inputs
        self.conv1 = conv1x1(inputs, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, groups=planes, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv1x1(planes, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = projection(inputs, outputs, stride) if stride == 1 else None

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out if self.shortcut is None else out + self.shortcut(x)

    def axes(self, walk, x):
        hidden = walk(self.bn1, walk(self.conv1, x))
        hidden = walk(self.bn2, walk(self.conv2, hidden))
        out = None if self.shortcut is None else walk(self.shortcut, x)
        return walk(self.bn3, walk(self.conv3, hidden, out))


class MobileNetV2(nn.Module):
    def __init__(self, width, num_classes, in_channels):
        super().__init__()
        self.conv1 = conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        blocks, inputs = [], width
        for expansion, channels, count, stride in STAGES:
            outputs = max(1, channels * width // 32)
            for i in range(count):
                blocks.append(InvertedResidual(inputs, outputs, expansion, stride if i == 0 else 1))
                inputs = outputs
        self.layers = nn.Sequential(*blocks)
        self.conv2 = conv1x1(inputs, 40 * width)
        self.bn2 = nn.BatchNorm2d(40 * width)
        self.linear = nn.Linear(40 * width, num_classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(self.layers(x))))
        return self.linear(x.mean((2, 3)))

    def axes(self, walk, x):
        for child in self.children():
            x = walk(child, x)
        return x


def mobilenetv2(num_classes, in_channels, image_size, width=32):
    """`width` channels in the stem, all others in proportion (rounded down); images from 8x8."""
    return MobileNetV2(width, num_classes, in_channels)
