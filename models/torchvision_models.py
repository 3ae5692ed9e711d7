"""ResNets of torchvision, with fresh weights: the stem of ImageNet, torchvision's parameter names."""

from torch import nn
from torchvision.models import resnet as theirs


class BasicBlock(theirs.BasicBlock):
    def axes(self, walk, x):
        hidden = walk(self.bn1, walk(self.conv1, x))
        out = x if self.downsample is None else walk(self.downsample, x)
        return walk(self.bn2, walk(self.conv2, hidden, out))


class Bottleneck(theirs.Bottleneck):
    def axes(self, walk, x):
        hidden = walk(self.bn2, walk(self.conv2, walk(self.bn1, walk(self.conv1, x))))
        out = x if self.downsample is None else walk(self.downsample, x)
        return walk(self.bn3, walk(self.conv3, hidden, out))


class ResNet(theirs.ResNet):
    def axes(self, walk, x):
        x = walk(self.bn1, walk(self.conv1, x))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = walk(stage, x)
        walk.omit(x)  # as in models.resnet
        return walk(self.fc, x)


BLOCKS = {18: (BasicBlock, [2, 2, 2, 2]), 50: (Bottleneck, [3, 4, 6, 3])}


def resnet(num_classes, in_channels, image_size, depth, widen_factor=1):
    """ResNet-`depth`, a key of BLOCKS; any image_size. widen_factor: of bottlenecks (Zagoruyko & Komodakis 2016)."""
    block, blocks = BLOCKS[depth]
    network = ResNet(block, blocks, num_classes=num_classes, width_per_group=64 * widen_factor)
    if in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network
