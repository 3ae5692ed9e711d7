"""VGG (Simonyan & Zisserman 2015, arXiv 1409.1556) with BatchNorm and one linear layer.

Parameter names as in kuangliu/pytorch-cifar: features.N, classifier.
"""

from torch import nn

CONVOLUTIONS = {  # in each of the five stages
    11: [1, 1, 2, 2, 2],
    13: [2, 2, 2, 2, 2],
    16: [2, 2, 3, 3, 3],
    19: [2, 2, 4, 4, 4],
}


def conv_bn_relu(inputs, outputs, kernel=3):
    """Three layers, as a list; the image keeps its size."""
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs), nn.ReLU()]


class VGG(nn.Module):
    def __init__(self, convolutions, width, num_classes, in_channels):
        super().__init__()
        layers, inputs = [], in_channels
        for stage, count in enumerate(convolutions):
            outputs = width * min(2**stage, 8)
            for _ in range(count):
                layers += conv_bn_relu(inputs, outputs)
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))

    def axes(self, walk, x):
        return walk(self.classifier, walk(self.features, x))


def vgg(num_classes, in_channels, image_size, depth, width=64):
    """VGG-`depth`, a key of CONVOLUTIONS, with `width` channels in the first stage; images from 32x32."""
    return VGG(CONVOLUTIONS[depth], width, num_classes, in_channels)
