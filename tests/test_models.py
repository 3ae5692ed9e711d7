"""Every row of MODELS gets the same tests; counts and names are pinned: checkpoints depend on them."""

import importlib
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision

import models
import models.keras_cnn
from models import MODELS, ModelError, __main__, build, canonical, entry, known, own_width, with_width
from models.resnet_cifar import ZeroPadded
from models.vit import Attention, Patches

torch.set_num_threads(1)

NAMES = sorted(MODELS)
NEED_TIMM = {name for name in NAMES if MODELS[name].factory.startswith("timm_models:")}
OURS = [name for name in NAMES if name not in NEED_TIMM]
# a small width, by the name of the argument
SMALL = {"width": 4, "k": 2, "c": 2, "growth_rate": 4, "widen_factor": 1, "dim": 16}

PARAMETERS = {  # at 10 classes, 3 channels, 32x32 (or the only size); texts: 50,000 words
    "densenet-40-12": 1_019_722,
    "densenet-40-12-stem24": 1_059_298,
    "densenet121": 6_956_298,
    "fcnet": 3_819_978,
    "googlenet": 6_166_250,
    "lenet": 62_006,
    "mcnn": 1_558_026,
    "medium_cnn": 245_290,
    "medium_cnn_paper": 971_146,
    "mlp": 855_050,
    "mlp1": 789_258,
    "mlpmixer4": 25_649_418,
    "mlpmixer_pt": 18_020_394,
    "mobilenetv2": 2_296_922,
    "preactresnet18": 11_171_146,
    "preactresnet34": 21_279_306,
    "resnet101": 42_512_970,
    "resnet110": 1_727_962,
    "resnet152": 58_156_618,
    "resnet18": 11_173_962,
    "resnet18_torch": 11_181_642,
    "resnet18k": 11_171_146,
    "resnet20": 269_722,
    "resnet50_torch": 23_528_522,
    "resnet20v1": 571_114,
    "resnet20_proj": 272_464,  # learning-subspaces' cifar_resnet_20
    "resnet32": 464_154,
    "resnet34": 21_282_122,
    "resnet44": 658_586,
    "resnet50": 23_520_842,
    "resnet56": 853_018,
    "small_cnn": 15_722,
    "text_classifier": 3_200_650,
    "vgg11": 9_750_922,
    "vgg11_bn": 9_231_114,
    "vgg13_bn": 9_416_010,
    "vgg16_bn": 14_728_266,
    "vgg19": 20_554_826,
    "vgg19_bn": 20_040_522,
    "vit4": 9_523_722,
    "vit_npt_interpolate": 21_669_514,
    "vit_pt": 21_669_514,
    "vit_pt_interpolate": 21_669_514,
    "wide_resnet50_2": 66_854_730,  # 68,883,240 at 1000 classes, torchvision's documentation
    "wrn-28-10": 36_479_194,
    "wrn-28-20": 145_815_514,
    "wrn-28-30": 328_009_434,
}
MILLION_MACS = {  # of one image, as published or as measured on dbViz's networks
    "densenet121": 888,
    "fcnet": 3.8,
    "googlenet": 1522,
    "lenet": 0.7,
    "mlpmixer4": 1814,
    "mobilenetv2": 91,
    "resnet18": 555,
    "vgg19_bn": 398,
    "vit4": 641,
    "wrn-28-10": 5243,
    "wrn-28-20": 20920,
}
RESNET18K = {  # k: parameters
    1: 2_947, 2: 11_332, 4: 44_446, 7: 134_977, 8: 176_050, 10: 274_540, 12: 394_822, 16: 700_762,
    20: 1_093_870, 30: 2_458_000, 40: 4_366_930, 64: 11_171_146,
}  # fmt: skip
BIASED = {  # starlight's wide ResNets
    "16-1": 175_626, "22-1": 273_066, "22-2": 1_081_226, "22-4": 4_302_122, "22-8": 17_164_394, "28-1": 370_506,
    "34-1": 467_946, "40-1": 565_386,
}  # fmt: skip
DIGITS = [
    "resnet20", "resnet18", "resnet18k", "preactresnet18", "wrn-16-1", "fcnet", "mlp", "vit4", "mlpmixer4",
    "mcnn", "densenet121", "densenet-40-12", "mobilenetv2", "googlenet", "small_cnn", "resnet20v1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def same_weights():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def need(name):
    if name in NEED_TIMM:
        pytest.importorskip("timm")


def default_size(name):
    return __main__.own_size(entry(name))


def meta_logits(name, batch=2, num_classes=10, in_channels=0, image_size=0, width=0):
    """(logits of images without values, the network) on the meta device: shapes only, at no cost."""
    size = image_size or default_size(name)
    row = entry(name)
    network = __main__.empty(name, row, num_classes, in_channels, size, width)
    return network(__main__.inputs(row, batch, in_channels or 3, size, "meta")), network


def drawn_inputs(row, batch, channels, size):
    """Images, or token ids of `channels` words."""
    if row.text:
        return torch.randint(channels, (batch, size))
    return torch.randn(batch, channels, size, size).to(memory_format=torch.channels_last)


# --- every row of the table


def test_the_counts_cover_the_table():
    assert sorted(PARAMETERS) == NAMES == known()


@pytest.mark.parametrize("name", NAMES)
def test_forward_backward_and_parameters_at_full_size(name):
    need(name)
    logits, network = meta_logits(name)
    assert logits.shape == (2, 10)
    assert __main__.parameters(network) == PARAMETERS[name]
    logits.sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("name", BIASED)
def test_wide_resnets_with_biases_have_starlights_parameters(name):
    assert __main__.parameters(meta_logits(f"wrn-{name}-bias")[1]) == BIASED[name]


def test_the_text_classifier_has_starlights_parameters():
    network = meta_logits("simple_text_classifier", num_classes=4, in_channels=95_811)[1]
    assert __main__.parameters(network) == 6_132_164


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_torchvisions_networks_have_its_names_and_read_its_weights(name):
    ours = name if name.startswith("wide") else f"{name}_torch"
    network = meta_logits(ours, num_classes=1000, image_size=224)[1]
    with torch.device("meta"):
        theirs = vars(torchvision.models)[name]().state_dict()
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in theirs.items()}


def test_padding_says_nothing_of_a_text():
    network = build("text_classifier", 4, in_channels=9, image_size=5)
    text = torch.tensor([[3, 7, 0, 0, 0], [3, 7, 7, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.int32)
    vectors = network.embedding.weight
    means = torch.stack([(vectors[3] + vectors[7]) / 2, (vectors[3] + 2 * vectors[7]) / 3, 0 * vectors[0]])
    assert torch.allclose(network(text), network.fc(means), atol=1e-6)


def test_the_mlp_of_one_layer_has_starlights_parameters():
    assert __main__.parameters(meta_logits("mlp_mnist", in_channels=1, image_size=28)[1]) == 203_530


@pytest.mark.parametrize("name", OURS)
def test_gradients_of_a_small_version_are_finite(name):
    row = entry(name)
    size = row.min_size if row.min_size > 1 else 8
    network = build(name, 7, in_channels=2, image_size=size, width=SMALL.get(row.width, 0))
    logits = network(drawn_inputs(row, 3, 2, size))
    assert logits.shape == (3, 7)
    F.cross_entropy(logits, torch.tensor([0, 3, 6])).backward()
    for key, weight in network.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), key


@pytest.mark.parametrize("name", NAMES)
def test_any_classes_channels_and_sizes(name):
    need(name)
    row = entry(name)
    odd = row.min_size + (0 if row.fixed_size else 5 * row.multiple)
    with torch.no_grad():
        logits, _ = meta_logits(name, 2, 100, 1, odd, SMALL.get(row.width, 0))
    assert logits.shape == (2, 100)


@pytest.mark.parametrize("name", [name for name in NAMES if MODELS[name].min_size > 1])
def test_a_size_too_small_is_refused_with_the_mend(name):
    least = MODELS[name].min_size
    with pytest.raises(ModelError, match=rf"{least}x{least} pixels.*--image_size {least}$"):
        build(name, image_size=least - 1)


@pytest.mark.parametrize("name", OURS)
def test_width(name):
    row = entry(name)
    if not row.width:
        with pytest.raises(ModelError, match="leave --width out"):
            build(name, width=4)
        return
    narrow = SMALL[row.width]
    small, large = (
        __main__.parameters(__main__.empty(name, row, width=width)) for width in (narrow, 2 * narrow)
    )
    assert small < large <= 5 * small  # five, not four: wrn keeps a stem of 16


@pytest.mark.parametrize("name", OURS)
def test_its_own_width_is_known(name):
    row = entry(name)
    width = own_width(name)
    assert bool(width) == bool(row.width)
    whole, named = (__main__.parameters(__main__.empty(name, row, width=w)) for w in (0, width))
    assert whole == named
    assert with_width({"name": name, "width": 0})["width"] == width
    assert with_width({"name": name, "width": 3})["width"] == 3


@pytest.mark.parametrize("name", DIGITS)
def test_digits_fit(name):
    row = entry(name)
    network = build(name, in_channels=1, image_size=8, width=SMALL.get(row.width, 0)).eval()
    with torch.no_grad():
        logits = network(torch.rand(2, 1, 8, 8))
    assert logits.shape == (2, 10) and logits.isfinite().all()


@pytest.mark.parametrize("name", OURS)
def test_the_seed_decides_the_weights(name):
    row = entry(name)
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        network = build(name, image_size=default_size(name), width=SMALL.get(row.width, 0))
        weights.append(torch.cat([weight.detach().flatten() for weight in network.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


# --- counts


def measured(network):
    return __main__.measure(network, torch.empty(1, 3, 32, 32, device="meta"))


@pytest.mark.parametrize("name", sorted(MILLION_MACS))
def test_macs(name):
    _, network = meta_logits(name)
    macs, stages = measured(network)
    assert macs / 1e6 == pytest.approx(MILLION_MACS[name], rel=0.01, abs=0.06)
    assert sum(stage[3] for stage in stages) == macs
    # the class token and the positions of a ViT stand beside its stages
    beside = 0 if name != "vit4" else 66 * 512
    assert sum(stage[2] for stage in stages) + beside == PARAMETERS[name]


@pytest.mark.parametrize("k", sorted(RESNET18K))
def test_resnet18k(k):
    _, network = meta_logits("resnet18k", width=k)
    assert __main__.parameters(network) == RESNET18K[k]
    macs = {1: 0.16, 4: 2.27, 10: 13.8, 20: 54.6, 64: 555}
    if k in macs:
        assert measured(network)[0] / 1e6 == pytest.approx(macs[k], rel=0.02)


def test_wide_resnets_of_any_depth():
    assert __main__.parameters(build("wrn-16-1")) == 175_066
    assert __main__.parameters(meta_logits("wrn-40-4")[1]) == 8_949_210
    assert __main__.parameters(meta_logits("WideResNet", width=20)[1]) == PARAMETERS["wrn-28-20"]


# --- parameter names


def norm(prefix):
    keys = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [f"{prefix}.{key}" for key in keys]


def linear(prefix):
    return [f"{prefix}.weight", f"{prefix}.bias"]


def test_names_of_resnet18():
    names = ["conv1.weight", *norm("bn1")]
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            at = f"layer{stage}.{block}"
            names += [f"{at}.conv1.weight", *norm(f"{at}.bn1"), f"{at}.conv2.weight", *norm(f"{at}.bn2")]
            if stage > 1 and block == 0:
                names += [f"{at}.shortcut.0.weight", *norm(f"{at}.shortcut.1")]
    weights = build("resnet18", width=2).state_dict()
    assert list(weights) == [*names, *linear("linear")]
    assert weights["layer2.0.shortcut.0.weight"].shape == (4, 2, 1, 1)


def test_names_of_the_bottlenecks():
    weights = build("resnet50", width=2).state_dict()
    assert {"layer1.0.conv3.weight", "layer1.0.bn3.weight", "layer1.0.shortcut.1.weight"} <= set(weights)
    assert {key.split(".")[1] for key in weights if key.startswith("layer3")} == set("012345")


def test_names_of_preactresnet18():
    names = ["conv1.weight"]
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            at = f"layer{stage}.{block}"
            names += [*norm(f"{at}.bn1"), f"{at}.conv1.weight", *norm(f"{at}.bn2"), f"{at}.conv2.weight"]
            if stage > 1 and block == 0:
                names += [f"{at}.shortcut.0.weight"]
    assert list(build("preactresnet18", width=2).state_dict()) == [*names, *linear("linear")]
    assert list(build("resnet18k", width=2).state_dict()) == [*names, *linear("linear")]


def test_names_of_the_cifar_resnets():
    keys = list(build("resnet20").state_dict())
    assert not [key for key in keys if "shortcut" in key]
    assert keys[:2] == ["conv1.weight", "bn1.weight"] and keys[-2:] == linear("linear")
    assert "layer3.2.conv2.weight" in keys and "layer3.3.conv1.weight" not in keys


def test_names_of_vgg():
    places = [0, 4, 8, 11, 15, 18, 22, 25]  # conv, bn, relu each, and five poolings
    names = [key for at in places for key in [*linear(f"features.{at}"), *norm(f"features.{at + 1}")]]
    assert list(build("vgg11_bn", width=2).state_dict()) == [*names, *linear("classifier")]
    assert "features.49.weight" in build("VGG", width=2).state_dict()


def test_names_of_densenet121():
    names = ["conv1.weight"]
    for stage, layers in enumerate([6, 12, 24, 16], start=1):
        for layer in range(layers):
            at = f"dense{stage}.{layer}"
            names += [*norm(f"{at}.bn1"), f"{at}.conv1.weight", *norm(f"{at}.bn2"), f"{at}.conv2.weight"]
        if stage < 4:
            names += [*norm(f"trans{stage}.bn"), f"trans{stage}.conv.weight"]
    assert list(build("densenet121", width=2).state_dict()) == [*names, *norm("bn"), *linear("linear")]


def test_names_of_googlenet():
    names = [*linear("pre_layers.0"), *norm("pre_layers.1")]
    for block in ("a3", "b3", "a4", "b4", "c4", "d4", "e4", "a5", "b5"):
        for branch, convolutions in (("b1", [0]), ("b2", [0, 3]), ("b3", [0, 3, 6]), ("b4", [1])):
            for at in convolutions:
                names += [*linear(f"{block}.{branch}.{at}"), *norm(f"{block}.{branch}.{at + 1}")]
    assert list(meta_logits("googlenet")[1].state_dict()) == [*names, *linear("linear")]


def test_names_of_mobilenetv2():
    names = ["conv1.weight", *norm("bn1")]
    for block in range(17):
        for i in (1, 2, 3):
            names += [f"layers.{block}.conv{i}.weight", *norm(f"layers.{block}.bn{i}")]
        if block in (0, 1, 10, 16):  # stride 1 and other channels
            names += [f"layers.{block}.shortcut.0.weight", *norm(f"layers.{block}.shortcut.1")]
    names += ["conv2.weight", *norm("bn2"), *linear("linear")]
    assert list(meta_logits("mobilenetv2")[1].state_dict()) == names


@pytest.mark.parametrize(
    ("name", "layers"),
    [("lenet", ["conv1", "conv2", "fc1", "fc2", "fc3"]), ("fcnet", ["fc1", "fc2", "fc3", "fc4", "fc5"])],
)
def test_names_of_lenet_and_fcnet(name, layers):
    assert list(meta_logits(name)[1].state_dict()) == [key for layer in layers for key in linear(layer)]


def test_names_of_dbviz_own_networks():
    wide = set(build("wrn-16-2").state_dict())
    assert {"conv1.weight", "block1.layer.0.convShortcut.weight", "block3.layer.1.bn2.bias"} <= wide
    assert {"bn1.weight", "fc.weight"} <= wide and "block1.layer.1.convShortcut.weight" not in wide

    vit = list(build("vit4", width=8).state_dict())
    attention = ["norm.weight", "norm.bias", "fn.to_qkv.weight", *linear("fn.to_out.0")]
    mlp = ["norm.weight", "norm.bias", *linear("fn.net.0"), *linear("fn.net.3")]
    inside = {f"transformer.layers.0.{i}.{key}" for i, keys in enumerate((attention, mlp)) for key in keys}
    assert {key for key in vit if ".layers.0." in key} == inside
    ends = [*linear("to_patch_embedding.1"), *linear("mlp_head.0"), *linear("mlp_head.1")]
    assert [key for key in vit if ".layers." not in key] == ["pos_embedding", "cls_token", *ends]

    mixer = build("mlpmixer4", width=8).state_dict()
    assert mixer["2.0.fn.0.weight"].shape == (256, 64, 1) and mixer["13.1.fn.3.weight"].shape == (8, 32)
    assert {"1.weight", "2.1.norm.bias", "14.weight", "16.bias"} <= set(mixer)


# --- Keras' networks: sizes and initial weights as its documentation defines them


def layers_of(network, kind):
    return [m for m in network.modules() if isinstance(m, kind)]


@pytest.mark.parametrize(("name", "each"), [
    ("small_cnn", [448, 4640, 9248, 1056, 330]), ("medium_cnn", [896, 18496, 73856, 147584, 4128, 330]),
    ("medium_cnn_paper", [1792, 73856, 295168, 590080, 10250]),
])  # fmt: skip
def test_parameters_of_keras_layers(name, each):
    layers = layers_of(build(name), (torch.nn.Conv2d, torch.nn.Linear))
    assert [__main__.parameters(layer) for layer in layers] == each


@pytest.mark.parametrize("name", ["small_cnn", "medium_cnn", "medium_cnn_paper"])
def test_glorot_uniform_weights(name):
    for layer in layers_of(build(name), (torch.nn.Conv2d, torch.nn.Linear)):
        w = layer.weight.detach()
        field = w[0, 0].numel()
        variance = 2 / (field * (w.shape[0] + w.shape[1]))
        assert w.abs().max() <= (3 * variance) ** 0.5 * 1.0001 and w.abs().max() > 0.95 * (3 * variance) ** 0.5
        assert w.var() == pytest.approx(variance, rel=4 * (0.8 / w.numel()) ** 0.5)  # four standard errors
        bound = (3 / len(layer.bias)) ** 0.5
        if name == "medium_cnn_paper":
            assert 0.5 * bound < layer.bias.abs().max() <= bound and layer.bias.abs().min() > 0
        else:
            assert not layer.bias.any()
    if name == "medium_cnn_paper":
        biases = torch.cat([m.bias.detach() * len(m.bias) ** 0.5 for m in layers_of(build(name), torch.nn.Conv2d)])
        assert biases.var() == pytest.approx(1, rel=4 * (0.8 / len(biases)) ** 0.5)


def test_he_normal_weights_and_keras_batchnorm_of_resnet20v1():
    network = build("resnet20v1")
    for layer in layers_of(network, (torch.nn.Conv2d, torch.nn.Linear)):
        w = layer.weight.detach()
        variance = 2 / w[0].numel()
        cut = 2 * (variance / 0.7737) ** 0.5  # 0.7737: variance of a standard normal cut off at two
        assert 0.8 * cut < w.abs().max() <= cut * 1.0001
        assert w.var() == pytest.approx(variance, rel=4 * (1.6 / w.numel()) ** 0.5)
        assert not layer.bias.any()
    norms = layers_of(network, torch.nn.BatchNorm2d)
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}  # Keras' momentum of 0.99 is torch's of 0.01
    state = network.state_dict()
    assert sum(v.numel() for v in state.values() if v.is_floating_point()) == 575_114
    assert sum(v.numel() for k, v in state.items() if "running" in k) == 4_000
    assert sum(m.weight.numel() for m in norms) == 2_000
    assert sum(v.numel() for v in state.values() if v.dim() > 1) == 564_912


def test_layers_of_resnet20v1():
    network = build("resnet20v1")
    convolutions = {k: m for k, m in network.named_modules() if isinstance(m, torch.nn.Conv2d)}
    shortcuts = {k: m for k, m in convolutions.items() if "shortcut" in k}
    assert len(convolutions) == 22 and len(shortcuts) == 3
    assert all(m.bias is not None for m in convolutions.values())
    assert [(m.in_channels, m.out_channels, m.stride[0]) for m in shortcuts.values()] == [
        (16, 64, 1), (64, 128, 2), (128, 256, 2)]  # fmt: skip
    assert not [k for k, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm2d) and "shortcut" in k]


def test_a_bottleneck_is_its_formula():
    block = models.keras_cnn.Bottleneck(3, 2, 8, 2).eval()
    for m in layers_of(block, torch.nn.BatchNorm2d):
        torch.nn.init.uniform_(m.running_mean)
        torch.nn.init.uniform_(m.running_var, 0.5, 2)
    x = torch.randn(2, 3, 6, 6)

    def norm(m, y):
        held = [v[:, None, None] for v in (m.running_mean, m.running_var, m.weight, m.bias)]
        return (y - held[0]) / (held[1] + 1e-3).sqrt() * held[2] + held[3]

    y = norm(block.bn1, F.conv2d(x, block.conv1.weight, block.conv1.bias)).clamp_min(0)
    y = norm(block.bn2, F.conv2d(y, block.conv2.weight, block.conv2.bias, stride=2, padding=1)).clamp_min(0)
    y = norm(block.bn3, F.conv2d(y, block.conv3.weight, block.conv3.bias))
    y = (y + F.conv2d(x, block.shortcut.weight, block.shortcut.bias, stride=2)).clamp_min(0)
    assert torch.allclose(block(x), y, atol=1e-5)


@pytest.mark.parametrize(("name", "sides"), [
    ("small_cnn", [32, 16, 16, 8, 8, 4]), ("medium_cnn", [32, 16, 14, 7, 7, 3, 3, 1]),
    ("medium_cnn_paper", [32, 16, 16, 8, 8, 4, 4, 2]),
])  # fmt: skip
def test_feature_maps_of_keras_networks(name, sides):
    network, seen = build(name), []
    for m in layers_of(network, (torch.nn.Conv2d, torch.nn.MaxPool2d)):
        m.register_forward_hook(lambda m, x, y: seen.append(y.shape[2]))
    network.eval()(torch.rand(1, 3, 32, 32))
    assert seen == sides


# --- functions, against slow or independent twins


def test_resnet18_is_torchvisions_with_a_small_stem():
    torchvision = pytest.importorskip("torchvision")
    twin = torchvision.models.resnet18(num_classes=10)
    twin.conv1, twin.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    for module in twin.modules():  # so that BatchNorm is not the identity
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    ours = build("resnet18")
    weights = {key.replace("downsample", "shortcut"): value for key, value in twin.state_dict().items()}
    ours.load_state_dict({key.replace("fc.", "linear."): value for key, value in weights.items()})
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(ours.eval()(x), twin.eval()(x), atol=1e-5)


def test_attention_is_scaled_dot_product_attention():
    attention, x = Attention(dim=12, heads=3, head_dim=4, dropout=0.0), torch.randn(2, 5, 12)
    q, k, v = (part.view(2, 5, 3, 4).transpose(1, 2) for part in attention.to_qkv(x).chunk(3, 2))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 12)
    assert torch.allclose(attention(x), attention.to_out(mixed), atol=1e-6)


def test_patches_one_by_one():
    x = torch.randn(2, 3, 8, 12)
    patches = Patches(4)(x)
    assert patches.shape == (2, 6, 48)
    for i in range(6):
        row, column = divmod(i, 3)
        piece = x[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert torch.equal(patches[:, i], piece.permute(0, 2, 3, 1).reshape(2, 48))


def test_zero_padded_shortcut():
    x = torch.randn(2, 4, 6, 6)
    out = ZeroPadded(4, 8, 2)(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any() and not out[:, 6:].any()


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet", "mobilenetv2", "vgg11_bn"])
def test_batches_and_memory_layouts_do_not_matter_in_evaluation(name):
    network = build(name, width=SMALL.get(entry(name).width, 0)).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        logits = network(x)
        singly = torch.cat([network(image[None].to(memory_format=torch.channels_last)) for image in x])
    assert torch.allclose(logits, singly, atol=1e-4, rtol=1e-4)


# --- names


def test_importing_models_loads_no_torch():
    code = "import sys, models, models.__main__; print({'torch', 'torchvision', 'timm'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_aliases():
    for name, row in MODELS.items():
        assert canonical(name) == name
        for alias in row.aliases:
            assert canonical(alias) == name and alias not in MODELS
    assert len(models.ALIASES) == sum(len(row.aliases) for row in MODELS.values())


@pytest.mark.parametrize(
    ("dbviz", "name"),
    [
        ("ResNet", "resnet18"), ("resnet", "resnet18"), ("VGG", "vgg19_bn"), ("vgg", "vgg19_bn"),
        ("GoogLeNet", "googlenet"), ("DenseNet", "densenet121"), ("densenet", "densenet121"),
        ("MobileNet", "mobilenetv2"), ("LeNet", "lenet"), ("FCNet", "fcnet"), ("fcnet", "fcnet"),
        ("ViT4", "vit4"), ("vit", "vit4"), ("ViT_pt_interpolate", "vit_pt_interpolate"),
        ("ViT_npt_interpolate", "vit_npt_interpolate"), ("ViT_pt", "vit_pt"), ("MLPMixer4", "mlpmixer4"),
        ("MLPMixer_pt", "mlpmixer_pt"), ("WideResNet", "wrn-28-10"), ("WideResNet_10", "wrn-28-10"),
        ("WideResNet_20", "wrn-28-20"), ("WideResNet_30", "wrn-28-30"),
    ],
)  # fmt: skip
def test_names_of_dbviz(dbviz, name):
    assert canonical(dbviz) == name


def test_other_names_are_their_own():
    for name in ("wrn-16-4", "timm:resnet18", "package.module:factory"):
        assert canonical(name) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "did you mean resnet18"),
        ("RESNET18", "did you mean resnet18|did you mean ResNet18"),
        ("quantum", "known: densenet-40-12, densenet-40-12-stem24, densenet121, .*wrn-28-30"),
        ("", "unknown model ''"),
        (None, "not None"),
        ("wrn-27-10", "must be 6n . 4: wrn-10-10, wrn-16-10"),
        ("wrn-4-10", "must be 6n"),
        ("wrn-28-0", "unknown model"),
    ],
)
def test_unknown_names(name, message):
    for ask in (canonical, entry, build):
        with pytest.raises(ModelError, match=message) as refusal:
            ask(name)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "--num_classes 0: must be at least 1"),
        ({"in_channels": 0}, "--in_channels 0"),
        ({"image_size": -8}, "--image_size -8"),
        ({"width": -1}, "--width -1"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ModelError, match=message):
        build("resnet20", **settings)


def test_sizes_that_are_not_whole_patches():
    with pytest.raises(ModelError, match="vit4 takes images whose side is a multiple of 4.*--image_size 32$"):
        build("ViT4", image_size=30)
    with pytest.raises(ModelError, match="vit_pt takes only images of 224x224.*--image_size 224$"):
        build("ViT_pt", image_size=448)


# --- networks of other packages


FOREIGN = """
from torch import nn

def plain(num_classes):
    return nn.Linear(3, num_classes)

def full(num_classes, in_channels, image_size, width=5, bias=True):
    first = nn.Linear(in_channels * image_size**2, width)
    return nn.Sequential(nn.Flatten(), first, nn.Linear(width, num_classes, bias))

def keywords(**kwargs):
    return nn.Linear(3, **{"out_features": kwargs.pop("num_classes"), **kwargs})

def none(classes):
    return nn.Linear(3, classes)

def wrong(num_classes):
    return [num_classes]

value = 3
"""


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    (tmp_path / "foreign_nets.py").write_text(FOREIGN)
    (tmp_path / "foreign_broken.py").write_text("raise KeyError('two\\nlines')\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    sys.modules.pop("foreign_nets", None)


def test_a_factory_gets_what_it_names(foreign):
    assert build("foreign_nets:plain", 7).out_features == 7
    assert build("foreign_nets:keywords", 7).out_features == 7
    network = build("foreign_nets:full", 7, in_channels=1, image_size=8, width=9, bias=False)
    assert network[1].weight.shape == (9, 64) and network[2].bias is None
    assert build("foreign_nets:full", 7)[1].weight.shape == (5, 3072)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("foreign_absent:net", "importing 'foreign_absent' failed: ModuleNotFoundError"),
        ("foreign_broken:net", "importing 'foreign_broken' failed: KeyError"),
        ("foreign_nets:absent", "module foreign_nets has no function or class 'absent'"),
        ("foreign_nets:value", "no function or class 'value'"),
        ("foreign_nets:none", "must take num_classes"),
        ("foreign_nets:wrong", "returned a list, not a torch.nn.Module"),
        (":net", "importing '' failed"),
    ],
)
def test_a_factory_that_cannot_be_used(foreign, name, message):
    with pytest.raises(ModelError, match=message) as refusal:
        build(name)
    assert "\n" not in str(refusal.value)


def test_a_factory_without_width(foreign):
    with pytest.raises(ModelError, match="takes no width"):
        build("foreign_nets:plain", width=3)
    with pytest.raises(ModelError, match="not in the table"):
        entry("foreign_nets:plain")


def test_a_factory_of_torchvision():
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        assert build("torchvision.models:squeezenet1_1", 7)(torch.empty(1, 3, 64, 64)).shape == (1, 7)


def test_any_network_of_timm():
    pytest.importorskip("timm")
    for name in ("timm:resnet10t", "timm:vit_tiny_patch16_224"):
        logits, _ = meta_logits(name, num_classes=7, in_channels=1, image_size=64)
        assert logits.shape == (2, 7)
    with pytest.raises(ModelError, match="timm knows no model 'resnet19': did you mean resnet"):
        build("timm:resnet19")


def test_up_sampling_is_nearest():
    pytest.importorskip("timm")
    from models.timm_models import Upsampled

    x = torch.rand(1, 3, 2, 2)
    larger = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(Upsampled(torch.nn.Identity(), 4)(x), larger)


def test_weights_that_cannot_be_fetched(monkeypatch):
    timm = pytest.importorskip("timm")

    def offline(*args, **kwargs):
        raise OSError("no\nroute")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ModelError, match="no pretrained weights of timm:vit_small_patch16_224: no route"):
        build("ViT_pt", image_size=224)


@pytest.mark.parametrize("name", ["ViT_npt_interpolate", "timm:resnet18"])
def test_without_timm(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match="pip install timm"):
        build(name)


# --- the listing


def test_list(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # its rows are listed all the same
    assert __main__.main(["list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    for name in NAMES:
        count = "-" if name in NEED_TIMM else f"{PARAMETERS[name]:,}"
        assert f" {count} " in lines[name]
        assert all(alias in lines[name] for alias in MODELS[name].aliases)


def test_info(capsys):
    assert __main__.main(["info", "ResNet", "--num_classes", "100"]) == 0
    out = capsys.readouterr().out
    assert "name        resnet18" in out and "11,220,132 for 100 classes" in out and "layer4" in out
    assert "555.5 M for an image of 3x32x32" in out
    for name in ("mcnn", "vit4", "wrn-16-2"):
        assert __main__.main(["info", name, "--image_size", "8", "--in_channels", "1", "--width", "8"]) == 0
        assert "1x8x8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["info", "resnet19"], "did you mean"), (["info", "vgg", "--image_size", "8"], "--image_size 32")],
)
def test_a_wrong_question_gets_one_line_and_code_2(capsys, arguments, message):
    assert __main__.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
