"""The networks of the loss-landscape study of deep ensembles (Fort et al. 2019, arXiv 1912.02757), with Keras' layers.

Its re-implementation in Keras (github.com/ayulockin/LossLandscape) gives the layers, sizes and initial weights of
`small_cnn`, `medium_cnn` and `resnet20v1`; the authors' own notebook those of `medium_cnn_paper`. Inputs are meant in
[0, 1] (--normalize none), those of `medium_cnn_paper` in 0 ... 255.
"""

import math

from torch import nn

SPREAD = 0.87962566103423978  # standard deviation of a standard normal cut off at two; Keras divides by it


def glorot(network):
    """Keras' default: uniform weights of variance 2 / (inputs + outputs), biases 0 (Glorot & Bengio 2010)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return network


def he_normal(network):
    """Keras' he_normal: normal, cut off at two standard deviations, variance 2 / inputs (He et al. 2015); biases 0."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            std = math.sqrt(2 / layer.weight[0].numel()) / SPREAD
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(layer.bias)
    return network


def small_cnn(num_classes, in_channels, image_size):
    """Three 3x3 convolutions of 16, 32 and 32 channels, each halved; mean over pixels; 32 units; images from 8x8."""
    layers, inputs = [], in_channels
    for channels in (16, 32, 32):
        layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        inputs = channels
    return glorot(nn.Sequential(*layers, *keras_head(inputs, num_classes)))


def medium_cnn(num_classes, in_channels, image_size):
    """Four 3x3 convolutions of 32, 64, 128 and 128 channels, the second without padding; images from 20x20."""
    layers, inputs = [], in_channels
    for channels, padding in ((32, 1), (64, 0), (128, 1), (128, 1)):
        layers += [nn.Conv2d(inputs, channels, 3, padding=padding), nn.ReLU(), nn.Dropout(0.1), nn.MaxPool2d(2)]
        inputs = channels
    return glorot(nn.Sequential(*layers, *keras_head(inputs, num_classes)))


def keras_head(channels, num_classes):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 32), nn.ReLU(), nn.Dropout(0.1),
            nn.Linear(32, num_classes)]


def medium_cnn_paper(num_classes, in_channels, image_size):
    """The authors' own: 64, 128, 256 and 256 channels, dropout before the pooling, one linear layer; images from 16x16.
    Biases are drawn as weights are (of n of them uniform with variance 1 / n)."""
    layers, inputs = [], in_channels
    for channels in (64, 128, 256, 256):
        layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.Dropout(0.1), nn.MaxPool2d(2), nn.ReLU()]
        inputs = channels
    layers.pop()  # no ReLU behind the last block
    network = glorot(nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * (image_size // 16) ** 2, num_classes)))
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = math.sqrt(3 / len(layer.bias))
            nn.init.uniform_(layer.bias, -bound, bound)
    return network


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with biases, each with BatchNorm; a projection has none (BatchNorm) on its side."""

    def __init__(self, inputs, channels, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, channels, 1), keras_norm(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, stride, 1), keras_norm(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, outputs, 1), keras_norm(outputs)
        project = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if project else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + self.shortcut(x))

    def axes(self, walk, x):
        hidden = walk(self.bn2, walk(self.conv2, walk(self.bn1, walk(self.conv1, x))))
        return walk(self.bn3, walk(self.conv3, hidden, walk(self.shortcut, x)))


def keras_norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def resnet20v1(num_classes, in_channels, image_size):
    """Two bottlenecks in each of three stages of 64, 128 and 256 channels, convolutions with biases; images from 4x4.
    Not He et al.'s ResNet-20 of basic blocks, which is resnet20. Keras pads a convolution of stride 2 below and on the
    right alone, this one on all sides."""
    layers, inputs = [nn.Conv2d(in_channels, 16, 3, padding=1), keras_norm(16), nn.ReLU()], 16
    for channels, outputs, stride in ((16, 64, 1), (64, 128, 2), (128, 256, 2)):
        layers += [Bottleneck(inputs, channels, outputs, stride), Bottleneck(outputs, channels, outputs, 1)]
        inputs = outputs
    return he_normal(nn.Sequential(*layers, keras_norm(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                   nn.Linear(inputs, num_classes)))
