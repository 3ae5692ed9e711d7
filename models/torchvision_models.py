"""Networks of torchvision, with fresh weights."""

from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck


class Block(Bottleneck):
    def axes(self, walk, x):
        hidden = walk(self.bn2, walk(self.conv2, walk(self.bn1, walk(self.conv1, x))))
        out = x if self.downsample is None else walk(self.downsample, x)
        return walk(self.bn3, walk(self.conv3, hidden, out))


class WideResNet(ResNet):
    def axes(self, walk, x):
        x = walk(self.bn1, walk(self.conv1, x))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = walk(stage, x)
        walk.omit(x)  # as in models.resnet
        return walk(self.fc, x)


def wide_resnet50(num_classes, in_channels, image_size, widen_factor=2):
    """The wide ResNet-50 of Zagoruyko & Komodakis 2016 for ImageNet, its bottlenecks widen_factor as wide; any
    image_size."""
    network = WideResNet(Block, [3, 4, 6, 3], num_classes=num_classes, width_per_group=64 * widen_factor)
    if in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network
