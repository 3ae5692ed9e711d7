"""The networks by name: the table MODELS, and `build`, which makes one.

Nothing here loads torch: a name maps to "module:function" inside this package, imported when it is built.
Every such function takes num_classes, in_channels, image_size (pixels of a side, square images) and its own
settings by keyword, and returns a network from images (B, in_channels, image_size, image_size) to logits
(B, num_classes); one of texts is from token ids (B, image_size), each below in_channels.
"""

import difflib
import importlib
import inspect
import re
from dataclasses import dataclass, field


class ModelError(ValueError):
    """A name, a size or a setting that a network cannot have; the message says how to mend it."""

    exit_code = 2


@dataclass(frozen=True)
class Entry:
    """One row of MODELS.

    width is the name of the argument of `factory` that scales the network ("" if none does). Images must have
    at least min_size pixels a side (exactly, if fixed_size), and a multiple of `multiple`. text: it takes texts.
    """

    factory: str
    aliases: tuple = ()
    width: str = ""
    settings: dict = field(default_factory=dict)
    min_size: int = 1
    fixed_size: bool = False
    multiple: int = 1
    note: str = ""
    text: bool = False


def _resnet(depth, *aliases):
    note = "He et al. 2016, CIFAR stem; width: channels of the first stage (64)"
    return Entry("resnet:resnet", aliases, "width", {"depth": depth}, min_size=8, note=note)


def _preact(depth, *aliases):
    note = "pre-activation, He et al. 2016b; width: channels of the first stage (64)"
    return Entry("preact:preact_resnet", aliases, "width", {"depth": depth}, min_size=8, note=note)


def _resnet_cifar(depth):
    note = "He et al. 2016 sec. 4.2, parameter-free shortcuts; width: channels of the first stage (16)"
    return Entry("resnet_cifar:resnet_cifar", (), "width", {"depth": depth}, min_size=4, note=note)


def _vgg(depth, *aliases):
    note = "with BatchNorm and one linear layer; width: channels of the first stage (64)"
    return Entry("vgg:vgg", aliases, "width", {"depth": depth}, min_size=32, note=note)


def _plain_vgg(depth):
    note = "without BatchNorm, three linear layers with dropout; width: channels of the first stage (64)"
    return Entry("vgg:plain_vgg", (), "width", {"depth": depth}, min_size=32, note=note)


def _wide(depth, widen_factor, *aliases, bias=False):
    settings = {"depth": depth, "widen_factor": widen_factor, "bias": bias}
    note = f"Zagoruyko & Komodakis 2016; width: the widening factor ({widen_factor})"
    return Entry("wideresnet:wideresnet", aliases, "widen_factor", settings, min_size=4, note=note)


def _timm(factory, timm_name, alias, pretrained, note, **sizes):
    settings = {"timm_name": timm_name, "pretrained": pretrained}
    return Entry(f"timm_models:{factory}", (alias,), "", settings, note=f"{note}; needs timm", **sizes)


MODELS = {
    "resnet18": _resnet(18, "ResNet", "resnet", "ResNet18"),
    "resnet34": _resnet(34, "ResNet34"),
    "resnet50": _resnet(50, "ResNet50"),
    "resnet101": _resnet(101, "ResNet101"),
    "resnet152": _resnet(152, "ResNet152"),
    "preactresnet18": _preact(18, "PreActResNet18"),
    "preactresnet34": _preact(34, "PreActResNet34"),
    "resnet18k": Entry(
        "preact:resnet18k", ("make_resnet18k",), "k", min_size=8,
        note="Nakkiran et al. 2019, pre-activation ResNet18; width: k channels in the first stage (64)",
    ),
    "mcnn": Entry(
        "mcnn:mcnn", ("make_cnn",), "c", min_size=8,
        note="Nakkiran et al. 2019, 5-layer CNN; width: c channels in the first layer (64)",
    ),
    "resnet20": _resnet_cifar(20),
    "resnet32": _resnet_cifar(32),
    "resnet44": _resnet_cifar(44),
    "resnet56": _resnet_cifar(56),
    "resnet110": _resnet_cifar(110),
    "resnet20_proj": Entry(
        "resnet_cifar:resnet_proj", ("cifar_resnet_20",), "width", {"depth": 20}, min_size=4,
        note="as resnet20 with 1x1 convolutions for shortcuts, no last bias; width: channels of the first stage (16)",
    ),
    "vgg11": _plain_vgg(11),
    "vgg19": _plain_vgg(19),
    "vgg11_bn": _vgg(11),
    "vgg13_bn": _vgg(13),
    "vgg16_bn": _vgg(16),
    "vgg19_bn": _vgg(19, "VGG", "vgg"),
    "wrn-28-10": _wide(28, 10, "WideResNet", "WideResNet_10"),
    "wrn-28-20": _wide(28, 20, "WideResNet_20"),
    "wrn-28-30": _wide(28, 30, "WideResNet_30"),
    "resnet18_torch": Entry(
        "torchvision_models:resnet", (), "", {"depth": 18}, min_size=32, note="torchvision's resnet18, ImageNet stem",
    ),
    "resnet50_torch": Entry(
        "torchvision_models:resnet", (), "widen_factor", {"depth": 50}, min_size=32,
        note="torchvision's resnet50, ImageNet stem; width: the widening factor of its bottlenecks (1)",
    ),
    "wide_resnet50_2": Entry(
        "torchvision_models:resnet", (), "widen_factor", {"depth": 50, "widen_factor": 2}, min_size=32,
        note="torchvision's, ImageNet stem; width: the widening factor of its bottlenecks (2)",
    ),
    "densenet121": Entry(
        "densenet:densenet121", ("DenseNet", "densenet", "DenseNet121"), "growth_rate", min_size=8,
        note="Huang et al. 2017, bottleneck and compression; width: the growth rate (32)",
    ),
    "densenet-40-12": Entry(
        "densenet:densenet40", ("DenseNet-40-12", "densenet_40_12"), "growth_rate", min_size=4,
        note="Huang et al. 2017, without these two; width: the growth rate (12)",
    ),
    "densenet-40-12-stem24": Entry(
        "densenet:densenet40", ("densenet_cifar",), "growth_rate", {"stem": 24}, min_size=4,
        note="the same with 24 channels in the first layer, as starlight has it; width: the growth rate (12)",
    ),
    "googlenet": Entry(
        "googlenet:googlenet", ("GoogLeNet",), min_size=4,
        note="Szegedy et al. 2015 with BatchNorm, CIFAR stem",
    ),
    "mobilenetv2": Entry(
        "mobilenetv2:mobilenetv2", ("MobileNet", "MobileNetV2"), "width", min_size=8,
        note="Sandler et al. 2018; width: channels of the stem (32), the others in proportion",
    ),
    "lenet": Entry(
        "lenet:lenet", ("LeNet",), min_size=16,
        note="LeCun et al. 1998, with ReLU and max pooling",
    ),
    "small_cnn": Entry(
        "keras_cnn:small_cnn", ("SmallCNN",), min_size=8,
        note="deep ensembles, 16-32-32 channels, Keras' initial weights",
    ),
    "medium_cnn": Entry(
        "keras_cnn:medium_cnn", ("MediumCNN",), min_size=20,
        note="deep ensembles, 32-64-128-128 channels, Keras' initial weights",
    ),
    "medium_cnn_paper": Entry(
        "keras_cnn:medium_cnn_paper", ("MediumCNN_paper",), min_size=16,
        note="Fort et al. 2019, 64-128-256-256 channels",
    ),
    "resnet20v1": Entry(
        "keras_cnn:resnet20v1", ("ResNet20v1",), min_size=4,
        note="deep ensembles, bottlenecks of 64-128-256 channels, biases, Keras' initial weights and BatchNorm",
    ),
    "fcnet": Entry("mlp:fcnet", ("FCNet",), note="pixels-1024-512-256-64-classes"),
    "mlp1": Entry(
        "mlp:mlp1", ("mlp_mnist",), "width",
        note="pixels-256-classes; width: units of the hidden layer (256)",
    ),
    "mlp": Entry(
        "mlp:mlp", (), "width",
        note="pixels-256-256-classes; width: units of a hidden layer (256)",
    ),
    "vit4": Entry(
        "vit:vit", ("ViT4", "vit"), "dim", min_size=4, multiple=4,
        note="Dosovitskiy et al. 2021, patches of 4x4, 6 layers; width: the embedding (512)",
    ),
    "mlpmixer4": Entry(
        "mlpmixer:mlpmixer", ("MLPMixer4",), "dim", min_size=4, multiple=4,
        note="Tolstikhin et al. 2021, patches of 4x4, 12 layers; width: the embedding (512)",
    ),
    "text_classifier": Entry(
        "text:text_classifier", ("simple_text_classifier",), "width", text=True,
        note="of texts: mean of the words' vectors, one linear layer; width: the vectors' length (64)",
    ),
    "vit_pt_interpolate": _timm(
        "upsampled", "vit_small_patch16_224", "ViT_pt_interpolate", True,
        "pretrained ViT-S/16, up-samples to 224 inside",
    ),
    "vit_npt_interpolate": _timm(
        "upsampled", "vit_small_patch16_224", "ViT_npt_interpolate", False,
        "ViT-S/16 from scratch, up-samples to 224 inside",
    ),
    "vit_pt": _timm(
        "timm_model", "vit_small_patch16_224", "ViT_pt", True,
        "pretrained ViT-S/16", min_size=224, fixed_size=True,
    ),
    "mlpmixer_pt": _timm(
        "timm_model", "mixer_s16_224", "MLPMixer_pt", True,
        "pretrained Mixer-S/16", min_size=224, fixed_size=True,
    ),
}

ALIASES = {alias: name for name, row in MODELS.items() for alias in row.aliases}


def known():
    """The names of MODELS, sorted."""
    return sorted(MODELS)


def canonical(name):
    """The one name of the network that `name`, perhaps an alias, stands for.

    wrn-D-K[-bias], timm:NAME and package.module:factory are their own names. Raises ModelError for any other name.
    """
    if not isinstance(name, str):
        raise ModelError(f"the name of a model is a word such as resnet18, not {name!r}")
    if name in MODELS or ":" in name:
        return name
    if name in ALIASES:
        return ALIASES[name]
    if match := re.fullmatch(r"wrn-([1-9]\d*)-([1-9]\d*)(-bias)?", name):
        depth, factor = int(match[1]), match[2]
        if depth < 10 or (depth - 4) % 6:
            raise ModelError(f"{name}: the depth must be 6n + 4: wrn-10-{factor}, wrn-16-{factor}, ...")
        return name
    lower = {word.lower(): word for word in [*ALIASES, *MODELS]}
    close = [lower[word] for word in difflib.get_close_matches(name.lower(), lower)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ModelError(
        f"unknown model {name!r}: {hint}known: {', '.join(known())}, wrn-DEPTH-FACTOR[-bias], timm:NAME, "
        "package.module:factory"
    )


def entry(name):
    """The row of MODELS of a name or alias; one is made for any wrn-D-K[-bias] and timm:NAME.

    Raises ModelError for unknown names, and for package.module:factory, about which nothing is known.
    """
    name = canonical(name)
    if name in MODELS:
        return MODELS[name]
    if name.startswith("timm:"):
        settings = {"timm_name": name.removeprefix("timm:"), "pretrained": False}
        return Entry("timm_models:timm_model", settings=settings, note="from timm")
    if name.startswith("wrn-"):
        _, depth, widen_factor, *bias = name.split("-")
        return _wide(int(depth), int(widen_factor), bias=bool(bias))
    raise ModelError(f"{name} is not in the table of models: nothing is known about it here")


def own_width(name):
    """The width of the network of that name where none is asked for; 0 of one that comes in one width, and of
    package.module:factory."""
    if ":" in canonical(name) or not (row := entry(name)).width:
        return 0
    if row.width in row.settings:
        return row.settings[row.width]
    module, function = row.factory.split(":")
    made_by = vars(importlib.import_module(f"{__name__}.{module}"))[function]
    return inspect.signature(made_by).parameters[row.width].default


def with_width(architecture):
    """An architecture dict (name, …, width) whose width is a number where the network has one: 0 meant its own."""
    return {**architecture, "width": architecture.get("width") or own_width(architecture["name"])}


def build(name, num_classes=10, *, in_channels=3, image_size=32, width=0, **extra):
    """The network of that name with fresh weights, drawn from torch's global generator.

    name: a name or alias of MODELS, wrn-D-K[-bias], timm:NAME, or package.module:factory, which is called with
    num_classes, `extra`, and those of in_channels, image_size and width that it names as parameters.
    image_size: pixels of a side. width: scales the network as Entry.note says; 0 is the network's own.
    extra: further settings of the family, such as pretrained=False.
    Raises ModelError for unknown names, and for sizes and settings that the network cannot have.
    """
    name = canonical(name)
    shape = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    for what, value in shape.items():
        if value < 1:
            raise ModelError(f"--{what} {value}: must be at least 1")
    if width < 0:
        raise ModelError(f"--width {width}: must be positive, or 0 for the network's own")
    if ":" in name and not name.startswith("timm:"):
        return _build_foreign(name, shape, width, extra)

    row = entry(name)
    _check_size(name, row, image_size)
    settings = {**row.settings, **extra}
    if width:
        if not row.width:
            raise ModelError(f"{name} comes in one width: leave --width out")
        settings[row.width] = width
    module, function = row.factory.split(":")
    return vars(importlib.import_module(f"{__name__}.{module}"))[function](**shape, **settings)


def _check_size(name, row, size):
    mend = least = row.min_size
    if row.fixed_size and size != least:
        problem = f"only images of {least}x{least} pixels"
    elif size < least:
        problem = f"images of at least {least}x{least} pixels"
    elif size % row.multiple:
        problem = f"images whose side is a multiple of {row.multiple} pixels"
        mend = (size // row.multiple + 1) * row.multiple
    else:
        return
    raise ModelError(f"{name} takes {problem}, not {size}x{size}: pass --image_size {mend}")


def _build_foreign(name, shape, width, extra):
    """Call the factory of another package."""
    from torch import nn

    path, _, function = name.partition(":")
    try:
        module = importlib.import_module(path)
    except Exception as error:  # whatever a module of somebody else raises when it is imported
        reason = " ".join(str(error).split())
        raise ModelError(f"{name}: importing {path!r} failed: {type(error).__name__}: {reason}") from error
    factory = getattr(module, function, None)
    if not callable(factory):
        raise ModelError(f"{name}: module {path} has no function or class {function!r}")
    takes = inspect.signature(factory).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    if "num_classes" not in takes and not anything:
        raise ModelError(f"{name} must take num_classes: it is called as {function}(num_classes=...)")
    if width and "width" not in takes:
        raise ModelError(f"{name} takes no width: leave --width out")
    arguments = {key: shape[key] for key in shape if key in takes or key == "num_classes"}
    if width:
        arguments["width"] = width
    network = factory(**arguments, **extra)
    if not isinstance(network, nn.Module):
        raise ModelError(f"{name} returned a {type(network).__name__}, not a torch.nn.Module")
    return network
