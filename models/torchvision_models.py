"""Networks of torchvision, with fresh weights."""

from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck


def wide_resnet50(num_classes, in_channels, image_size, widen_factor=2):
    """The wide ResNet-50 of Zagoruyko & Komodakis 2016 for ImageNet, its bottlenecks widen_factor as wide; any
    image_size."""
    network = ResNet(Bottleneck, [3, 4, 6, 3], num_classes=num_classes, width_per_group=64 * widen_factor)
    if in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network
