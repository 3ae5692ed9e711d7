"""Networks of timm by name, and dbViz's two that up-sample small images to timm's 224 inside."""

import difflib

import torch.nn.functional as F
from torch import nn

from . import ModelError


def timm_model(num_classes, in_channels, image_size, timm_name, pretrained, **settings):
    """timm's network with a new last layer.

    Where its weights depend on the size of the image (transformers, mixers) it is made for image_size.
    Raises ModelError when timm is absent, does not know the name, or cannot fetch the weights.
    """
    try:
        import timm
    except ImportError:
        raise ModelError(f"timm:{timm_name} needs timm, which is not installed: pip install timm") from None
    if not timm.is_model(timm_name):
        close = difflib.get_close_matches(timm_name, timm.list_models())
        hint = f": did you mean {' or '.join(close)}?" if close else ""
        raise ModelError(f"timm knows no model {timm_name!r}{hint}")
    if timm.get_pretrained_cfg_value(timm_name, "fixed_input_size"):
        settings["img_size"] = image_size
    try:
        return timm.create_model(
            timm_name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **settings
        )
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"no pretrained weights of timm:{timm_name}: {reason}") from error


class Upsampled(nn.Module):
    """`net` behind a nearest-neighbour enlargement to size x size."""

    def __init__(self, net, size):
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x):
        return self.net(F.interpolate(x, size=(self.size, self.size)))


def upsampled(num_classes, in_channels, image_size, timm_name, pretrained):
    """timm's network at 224x224, whatever image_size is."""
    return Upsampled(timm_model(num_classes, in_channels, 224, timm_name, pretrained), 224)
