"""Wide ResNets (Zagoruyko & Komodakis 2016, arXiv 1605.07146) without dropout.

Parameter names as in dbViz: conv1, block1.layer.0.bn1, ..., block1.layer.0.convShortcut, ..., bn1, fc.
"""

import torch.nn.functional as F
from torch import nn

from .resnet import conv1x1, conv3x3


class WideBlock(nn.Module):
    def __init__(self, inputs, outputs, stride, bias):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride, bias)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs, bias=bias)
        self.convShortcut = conv1x1(inputs, outputs, stride, bias) if inputs != outputs else None

    def forward(self, x):
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))

    def axes(self, walk, x):
        active = walk(self.bn1, x)
        hidden = walk(self.bn2, walk(self.conv1, active))
        out = x if self.convShortcut is None else walk(self.convShortcut, active)
        return walk(self.conv2, hidden, out)


class WideStage(nn.Module):
    def __init__(self, inputs, outputs, blocks, stride, bias):
        super().__init__()
        rest = [WideBlock(outputs, outputs, 1, bias) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride, bias), *rest)

    def forward(self, x):
        return self.layer(x)

    def axes(self, walk, x):
        return walk(self.layer, x)


class WideResNet(nn.Module):
    def __init__(self, depth, widen_factor, num_classes, in_channels, bias):
        super().__init__()
        blocks, width = (depth - 4) // 6, 16 * widen_factor
        self.conv1 = conv3x3(in_channels, 16, bias=bias)
        self.block1 = WideStage(16, width, blocks, 1, bias)
        self.block2 = WideStage(width, 2 * width, blocks, 2, bias)
        self.block3 = WideStage(2 * width, 4 * width, blocks, 2, bias)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))

    def axes(self, walk, x):
        for stage in (self.conv1, self.block1, self.block2, self.block3, self.bn1):
            x = walk(stage, x)
        return walk(self.fc, x)


def wideresnet(num_classes, in_channels, image_size, depth, widen_factor, bias=False):
    """WRN-depth-widen_factor, depth = 6n + 4, initialised as dbViz's; bias: of the convolutions; any image_size."""
    return WideResNet(depth, widen_factor, num_classes, in_channels, bias)
