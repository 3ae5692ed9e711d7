"""GoogLeNet (Szegedy et al. 2015, arXiv 1409.4842) with BatchNorm and a 3x3 stem for small images.

Parameter names and branches as in kuangliu/pytorch-cifar: the 5x5 branch is two 3x3 convolutions.
"""

import torch
from torch import nn

from .axes import join
from .vgg import conv_bn_relu


class Inception(nn.Module):
    """Four branches side by side: 1x1; 1x1 and 3x3; 1x1 and two 3x3; max pooling and 1x1."""

    def __init__(self, inputs, one, reduce_three, three, reduce_five, five, pooled):
        super().__init__()
        self.b1 = nn.Sequential(*conv_bn_relu(inputs, one, 1))
        self.b2 = nn.Sequential(*conv_bn_relu(inputs, reduce_three, 1), *conv_bn_relu(reduce_three, three))
        self.b3 = nn.Sequential(
            *conv_bn_relu(inputs, reduce_five, 1), *conv_bn_relu(reduce_five, five), *conv_bn_relu(five, five)
        )
        self.b4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), *conv_bn_relu(inputs, pooled, 1))

    def forward(self, x):
        return torch.cat([self.b1(x), self.b2(x), self.b3(x), self.b4(x)], 1)

    def axes(self, walk, x):
        return join(*(walk(branch, x) for branch in (self.b1, self.b2, self.b3, self.b4)))


class GoogLeNet(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.pre_layers = nn.Sequential(*conv_bn_relu(in_channels, 192))
        self.a3 = Inception(192, 64, 96, 128, 16, 32, 32)
        self.b3 = Inception(256, 128, 128, 192, 32, 96, 64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.a4 = Inception(480, 192, 96, 208, 16, 48, 64)
        self.b4 = Inception(512, 160, 112, 224, 24, 64, 64)
        self.c4 = Inception(512, 128, 128, 256, 24, 64, 64)
        self.d4 = Inception(512, 112, 144, 288, 32, 64, 64)
        self.e4 = Inception(528, 256, 160, 320, 32, 128, 128)
        self.a5 = Inception(832, 256, 160, 320, 32, 128, 128)
        self.b5 = Inception(832, 384, 192, 384, 48, 128, 128)
        self.linear = nn.Linear(1024, num_classes)

    def forward(self, x):
        x = self.b3(self.a3(self.pre_layers(x)))
        x = self.maxpool(x)
        x = self.e4(self.d4(self.c4(self.b4(self.a4(x)))))
        x = self.maxpool(x)
        return self.linear(self.b5(self.a5(x)).mean((2, 3)))

    def axes(self, walk, x):
        for child in self.children():
            x = walk(child, x)
        return x


def googlenet(num_classes, in_channels, image_size):
    """Any image_size."""
    return GoogLeNet(num_classes, in_channels)
