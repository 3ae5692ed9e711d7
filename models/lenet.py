"""LeNet after LeCun et al. 1998, with ReLU and max pooling; parameter names as in kuangliu/pytorch-cifar."""

import torch.nn.functional as F
from torch import nn


class LeNet(nn.Module):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2  # two 5x5 convolutions without padding, each halved
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))

    def axes(self, walk, x):
        for layer in self.children():
            x = walk(layer, x)
        return x


def lenet(num_classes, in_channels, image_size):
    """Images from 16x16."""
    return LeNet(num_classes, in_channels, image_size)
