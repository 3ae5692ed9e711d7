"""VGG (Simonyan & Zisserman 2015, arXiv 1409.1556): with BatchNorm and one linear layer, or plain with three.

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


def conv_relu(inputs, outputs):
    """The same without BatchNorm: two layers."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]


class VGG(nn.Module):
    def __init__(self, convolutions, width, num_classes, in_channels, convolution, classifier):
        super().__init__()
        layers, inputs = [], in_channels
        for stage, count in enumerate(convolutions):
            outputs = width * min(2**stage, 8)
            for _ in range(count):
                layers += convolution(inputs, outputs)
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = classifier(inputs, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))

    def axes(self, walk, x):
        return walk(self.classifier, walk(self.features, x))


def vgg(num_classes, in_channels, image_size, depth, width=64):
    """VGG-`depth`, a key of CONVOLUTIONS, with `width` channels in the first stage; images from 32x32."""
    return VGG(CONVOLUTIONS[depth], width, num_classes, in_channels, conv_bn_relu, nn.Linear)


def three_layers(inputs, classes):
    """The classifier of a plain VGG for small images, with dropout before each hidden layer."""
    hidden = [layer for _ in range(2) for layer in (nn.Dropout(), nn.Linear(inputs, inputs), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(inputs, classes))


def plain_vgg(num_classes, in_channels, image_size, depth, width=64):
    """VGG-`depth` without BatchNorm, with a classifier of three layers; images from 32x32."""
    network = VGG(CONVOLUTIONS[depth], width, num_classes, in_channels, conv_relu, three_layers)
    for module in network.features:
        if isinstance(module, nn.Conv2d):  # torch's own leaves 16 layers without norms silent
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return network
