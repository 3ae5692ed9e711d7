"""The 5-layer CNN of Nakkiran et al. 2019 (arXiv 1912.02292): four convolutions and a linear layer.

Layers are numbered as in the authors' code (0 the first convolution, 17 the linear layer).
"""

from torch import nn

from .vgg import conv_bn_relu


def mcnn(num_classes, in_channels, image_size, c=64):
    """c, 2c, 4c and 8c channels, the largest value of each at the end; images from 8x8."""
    layers = conv_bn_relu(in_channels, c)
    for inputs in (c, 2 * c, 4 * c):
        layers += [*conv_bn_relu(inputs, 2 * inputs), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8 * c, num_classes))
