"""ResNets after He et al. 2016 (arXiv 1512.03385) with a 3x3 stem for small images.

Parameter names as in kuangliu/pytorch-cifar: conv1, bn1, layer1.0.conv1, ..., layer2.0.shortcut.0, linear.
"""

import torch.nn.functional as F
from torch import nn


def conv3x3(inputs, outputs, stride=1, bias=False):
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)


def conv1x1(inputs, outputs, stride=1, bias=False):
    return nn.Conv2d(inputs, outputs, 1, stride, bias=bias)


def projection(inputs, outputs, stride):
    """A shortcut that is the identity where it can be, else a 1x1 convolution with BatchNorm."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    expansion = 1
    make_shortcut = staticmethod(projection)

    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.conv1 = conv3x3(inputs, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = self.make_shortcut(inputs, planes, stride)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))

    def axes(self, walk, x):
        hidden = walk(self.bn1, walk(self.conv1, x))
        out = walk(self.shortcut, x)
        return walk(self.bn2, walk(self.conv2, hidden, out))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs, planes, stride):
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = conv1x1(inputs, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv1x1(planes, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = projection(inputs, outputs, stride)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))

    def axes(self, walk, x):
        hidden = walk(self.bn2, walk(self.conv2, walk(self.bn1, walk(self.conv1, x))))
        out = walk(self.shortcut, x)
        return walk(self.bn3, walk(self.conv3, hidden, out))


class Trunk(nn.Module):
    """A stem convolution, stages layer1, layer2, ... and a linear layer on the global average.

    Each stage after the first halves the image and doubles the planes; blocks holds the blocks of each.
    """

    def __init__(self, block, blocks, width, num_classes, in_channels):
        super().__init__()
        self.conv1 = conv3x3(in_channels, width)
        self.add_stem(width)
        self.names = [f"layer{i}" for i in range(1, len(blocks) + 1)]
        inputs = width
        for i, (name, count) in enumerate(zip(self.names, blocks)):
            planes = width * 2**i
            stage = [block(inputs, planes, 1 if i == 0 else 2)]
            inputs = planes * block.expansion
            stage += [block(inputs, planes, 1) for _ in range(count - 1)]
            self.add_module(name, nn.Sequential(*stage))
        self.linear = nn.Linear(inputs, num_classes)

    def add_stem(self, width):
        """What follows conv1 and has parameters; registered here, so that they stay in the order of use."""

    def stem(self, x):
        return self.conv1(x)

    def forward(self, x):
        x = self.stem(x)
        for name in self.names:
            x = self.get_submodule(name)(x)
        return self.linear(x.mean((2, 3)))

    def axes(self, walk, x):
        x = self.stem_axes(walk, x)
        for name in self.names:
            x = walk(self.get_submodule(name), x)
        walk.omit(x)  # it gave a residual stream that is averaged no permutation
        return walk(self.linear, x)

    def stem_axes(self, walk, x):
        return walk(self.conv1, x)


class ResNet(Trunk):
    def add_stem(self, width):
        self.bn1 = nn.BatchNorm2d(width)

    def stem(self, x):
        return F.relu(self.bn1(self.conv1(x)))

    def stem_axes(self, walk, x):
        return walk(self.bn1, walk(self.conv1, x))


BLOCKS = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
    152: (Bottleneck, [3, 8, 36, 3]),
}


def resnet(num_classes, in_channels, image_size, depth, width=64):
    """ResNet-`depth`, a key of BLOCKS, with `width` channels in the first stage; any image_size."""
    block, blocks = BLOCKS[depth]
    return ResNet(block, blocks, width, num_classes, in_channels)
