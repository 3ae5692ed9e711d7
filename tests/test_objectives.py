"""Training modes and SAM, each against a plain twin."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape import cli, data, evaluate, objectives, runs, train
from landscape.errors import ContentError, UsageError

torch.set_num_threads(1)
PLAIN = {"mean": (0.3, 0.4, 0.5), "std": (0.2, 0.25, 0.3), "channels": 3, "image_size": 6}


def settings(**changes):
    names = dict(train_mode="naive", label_smoothing=0.0, mixup_alpha=1.0, cutmix_beta=1.0, cutmix_prob=0.5,
                 adv_epsilon=8 / 255, adv_step=2 / 255, adv_steps=5, distill_temp=4.0, teacher="t", accumulate=1,
                 precision="fp32", clip_norm=0.0, sam_radius=None)
    return SimpleNamespace(**{**names, **changes})


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


def batch(n=16):
    torch.manual_seed(1)
    pixels = torch.rand(n, 3, 6, 6)
    mean, std = (torch.tensor(PLAIN[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    return (pixels - mean) / std, torch.randint(5, (n,))


def test_every_mode_of_the_flag_is_an_objective():
    assert set(objectives.MODES) == set(cli.TRAIN_MODES)
    with pytest.raises(UsageError, match="unknown --train_mode"):
        objectives.make(settings(train_mode="nave"), 5, PLAIN)


# ---- mixing --------------------------------------------------------------------------------------------------------


def test_mixup_mixes_images_and_labels_with_the_same_share():
    x, y = batch()
    mode = objectives.make(settings(train_mode="mixup"), 5, PLAIN)
    ((mixed, target),) = mode.prepare(None, x, y, 3, 0, 7)
    # torchvision pairs each image with its neighbour; the share is what solves for the images.
    other, onehot = x.roll(1, 0), F.one_hot(y, 5).float()
    share = (((mixed - other) * (x - other)).sum() / ((x - other) ** 2).sum()).item()
    assert 0 < share < 1
    assert torch.allclose(mixed, share * x + (1 - share) * other, atol=1e-5)
    assert torch.allclose(target, share * onehot + (1 - share) * onehot.roll(1, 0), atol=1e-5)
    # The loss is the mixup criterion lambda CE(a) + (1 - lambda) CE(b).
    said = network()(mixed)
    expected = share * F.cross_entropy(said, y) + (1 - share) * F.cross_entropy(said, y.roll(1, 0))
    assert torch.allclose(mode.loss(said, target), expected, atol=1e-5)


def test_cutmix_pastes_boxes_weighs_labels_by_area_and_leaves_a_share_of_batches_plain():
    x, y = batch()
    mode = objectives.make(settings(train_mode="cutmix"), 5, PLAIN)
    plain = 0
    for step in range(200):
        ((mixed, target),) = mode.prepare(None, x, y, 3, 0, step)
        if target is y:
            plain += 1
            assert mixed is x
            continue
        pasted = (mixed != x).any(1)
        assert torch.allclose(mixed[pasted.unsqueeze(1).expand_as(x)], x.roll(1, 0)[pasted.unsqueeze(1).expand_as(x)])
        area = pasted[0].float().mean()
        onehot = F.one_hot(y, 5).float()
        assert torch.allclose(target, (1 - area) * onehot + area * onehot.roll(1, 0), atol=1e-5)
    assert 70 < plain < 130


def test_draws_are_a_function_of_seed_epoch_and_step():
    x, y = batch()
    mode = objectives.make(settings(train_mode="mixup"), 5, PLAIN)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = mode.prepare(None, x, y, 3, 1, 7)[0][0]
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(10)
    assert torch.equal(one, mode.prepare(None, x, y, 3, 1, 7)[0][0])
    assert not torch.equal(one, mode.prepare(None, x, y, 3, 1, 8)[0][0])


# ---- adversarial ---------------------------------------------------------------------------------------------------


def plain_pgd(model, x, y, epsilon, step, steps, generator, aim=1):
    """Pixel by pixel in [0, 1]: the definition of Madry et al., on un-normalised images."""
    mean, std = (torch.tensor(PLAIN[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    clean = x * std + mean
    start = torch.rand(x.shape, generator=generator) * 2 - 1
    adv = (clean + epsilon * start).clamp(0, 1)
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        F.cross_entropy(model((adv - mean) / std), y).backward()
        adv = (adv + aim * step * adv.grad.sign()).detach()
        adv = (clean + (adv - clean).clamp(-epsilon, epsilon)).clamp(0, 1)
    return (adv - mean) / std


@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_equals_the_definition_in_pixels(targeted):
    x, y = batch()
    model = network().eval()
    got = objectives.pgd(model, x, y, objectives.pixel_bounds(PLAIN), 8 / 255, 2 / 255, 6,
                         torch.Generator().manual_seed(4), targeted)  # fmt: skip
    expected = plain_pgd(model, x, y, 8 / 255, 2 / 255, 6, torch.Generator().manual_seed(4), -1 if targeted else 1)
    assert ((got - expected).abs() < 1e-4).float().mean() > 0.995  # a gradient of about 0 may round to either sign


def test_pgd_stays_in_the_ball_and_in_the_pixels_and_raises_the_loss():
    x, y = batch()
    model = network().train()
    counted = copy.deepcopy(model.state_dict())
    bounds = objectives.pixel_bounds(PLAIN)
    adv = objectives.pgd(model, x, y, bounds, 8 / 255, 2 / 255, 10, torch.Generator().manual_seed(4))
    low, high, unit = bounds
    assert ((adv - x).abs() <= 8 / 255 * unit + 1e-5).all()
    assert (adv >= low - 1e-5).all() and (adv <= high + 1e-5).all()
    assert model.training and all(torch.equal(v, counted[k]) for k, v in model.state_dict().items())
    model.eval()
    assert F.cross_entropy(model(adv), y) > F.cross_entropy(model(x), y)
    toward = objectives.pgd(model, x, (y + 1) % 5, bounds, 8 / 255, 2 / 255, 10, torch.Generator(), targeted=True)
    assert F.cross_entropy(model(toward), (y + 1) % 5) < F.cross_entropy(model(x), (y + 1) % 5)


def test_adv_mix_takes_a_clean_and_an_adversarial_step():
    x, y = batch()
    parts = objectives.make(settings(train_mode="adv_mix"), 5, PLAIN).prepare(network(), x, y, 0, 0, 0)
    assert len(parts) == 2 and parts[0][0] is x and not torch.equal(parts[1][0], x)
    assert len(objectives.make(settings(train_mode="adv"), 5, PLAIN).prepare(network(), x, y, 0, 0, 0)) == 1


# ---- distillation --------------------------------------------------------------------------------------------------


def test_the_three_distillations_by_hand():
    x, y = batch()
    teacher = network(5).eval()
    said, told = network().eval()(x), teacher(x)

    def loss(mode):
        one = objectives.make(settings(train_mode=mode), 5, PLAIN, teacher)
        ((_, target),) = one.prepare(None, x, y, 0, 0, 0)
        assert not target.requires_grad and torch.allclose(target, told)
        return one.loss(said, target)

    t = 4.0
    p, q = (told / t).softmax(1), (said / t).softmax(1)
    assert torch.allclose(loss("distillation"), t * t * (p * (p.log() - q.log())).sum(1).mean(), atol=1e-5)
    assert torch.allclose(loss("soft_distillation"), ((said - told) ** 2).mean())
    assert torch.allclose(loss("hard_distillation"), -said.log_softmax(1)[range(16), told.argmax(1)].mean())


def test_a_distillation_without_a_teacher_is_refused():
    with pytest.raises(UsageError, match="--teacher"):
        objectives.make(settings(train_mode="distillation"), 5, PLAIN)


# ---- SAM -----------------------------------------------------------------------------------------------------------


def test_a_sam_step_is_the_base_step_with_the_gradient_at_the_perturbed_weights():
    x, y = batch()
    model = network().train()
    twin = copy.deepcopy(model)
    args = settings(sam_radius=0.3)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    mode, scaler = objectives.make(args, 5, PLAIN), torch.amp.GradScaler("cpu", enabled=False)
    train.take_step(model, model, mode, (x, y), args, sgd, scaler)

    # The twin, by hand: g, then the gradient at w + rho g/|g|, then w - lr * that gradient.
    w = [p.detach().clone() for p in twin.parameters()]
    g = torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.parameters()))
    norm = sum((v**2).sum() for v in g) ** 0.5
    statistics = {k: v.clone() for k, v in twin.state_dict().items() if "running" in k or "num" in k}
    with torch.no_grad():
        for p, v in zip(twin.parameters(), g):
            p.add_(0.3 * v / norm)
    moved = sum(((p - v) ** 2).sum() for p, v in zip(twin.parameters(), w)) ** 0.5
    assert torch.allclose(moved, torch.tensor(0.3), atol=1e-6)
    second = torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.parameters()))
    for p, start, v in zip(model.parameters(), w, second):
        assert torch.allclose(p, start - 0.1 * v, atol=1e-6)
    for k, v in statistics.items():  # BatchNorm counted the batch once
        assert torch.allclose(model.state_dict()[k].float(), v.float(), atol=1e-6), k


def test_sam_perturbs_by_rho_and_restores_to_the_bit():
    x, y = batch()
    model = network()
    F.cross_entropy(model(x), y).backward()
    before = copy.deepcopy(model.state_dict())
    with train.perturbed(model, 0.05):
        distance = sum(((v - before[k]) ** 2).sum() for k, v in model.named_parameters()) ** 0.5
        assert abs(distance.item() - 0.05) < 1e-6
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# ---- in the loop ---------------------------------------------------------------------------------------------------


def trained(tmp_path, **changes):
    small = dict(dataset="digits", net="mcnn", width=4, train_size=200, epochs=2, bs=50, lr=0.05, precision="fp32",
                 device="cpu", runs=str(tmp_path / "runs"))
    args = cli.library(**{**small, **changes})
    run = runs.start("regions", args)
    if not run.finished:
        train.train(run, args, torch.device("cpu"))
    run.close()
    return run


@pytest.mark.parametrize("mode", ["mixup", "cutmix", "adv", "adv_mix"])
def test_every_mode_trains_and_changes_the_weights(tmp_path, mode):
    plain, run = trained(tmp_path), trained(tmp_path, train_mode=mode, adv_steps=2)
    a, b = (runs.read_weights(r.path / "model.safetensors")[0] for r in (plain, run))
    assert any(not torch.equal(a[k], b[k]) for k in a)
    assert run.metrics()[-1]["train_loss"] < 2.6


def test_sam_trains_with_any_base_optimiser(tmp_path):
    for opt in ("SGD", "Adam"):
        assert trained(tmp_path, opt=opt, lr=0.01, sam_radius=0.05).metrics()[-1]["test_accuracy"] > 0.1


def test_a_student_comes_nearer_its_teacher_than_a_vanilla_network(tmp_path):
    teacher = trained(tmp_path, epochs=10)
    same = {"epochs": 20, "init_seed": 7, "order_seed": 7}
    student = trained(tmp_path, **same, train_mode="soft_distillation", teacher=str(teacher.path))
    vanilla = trained(tmp_path, **same)
    images = data.load("digits", train_size=200).train
    said = {}
    for name, run in (("teacher", teacher), ("student", student), ("vanilla", vanilla)):
        held = runs.load(run.path)
        said[name] = evaluate.logits(held.network, images, held.preprocessing)
    far = {k: (v - said["teacher"]).square().mean().item() for k, v in said.items()}
    assert far["student"] < 0.5 * far["vanilla"]


def test_a_teacher_with_other_inputs_sees_the_students_images_its_own_way(tmp_path):
    teacher = trained(tmp_path, image_size=16, channels=3, normalize="imagenet", epochs=1)
    args = cli.library(dataset="digits", net="mlp", width=4, train_mode="soft_distillation", teacher=str(teacher.path),
                       precision="fp32", runs=str(tmp_path))  # fmt: skip
    d = train.make_data(args)
    _, described = train.make_network(args, d)
    x = d.train.batch(torch.arange(3), described["preprocessing"])
    ((_, told),) = train.make_objective(args, d, described).prepare(None, x, None, 0, 0, 0)
    theirs = data.load("digits", image_size=16, channels=3).full.subset(d.train.ids[:3])
    held = runs.load(teacher.path)
    expected = evaluate.logits(held.network, theirs, held.preprocessing)
    assert torch.allclose(told, expected, atol=0.05)  # stored pixels are rounded to 1/255 after resizing


def test_a_teacher_of_another_class_count_is_refused(tmp_path):
    runs.save_weights(tmp_path / "t.safetensors", runs.build(
        {"name": "mlp", "num_classes": 7, "in_channels": 1, "image_size": 8, "width": 4}).state_dict(),
        {"architecture": {"name": "mlp", "num_classes": 7, "in_channels": 1, "image_size": 8, "width": 4},
         "preprocessing": {"dataset": "digits", **PLAIN}})  # fmt: skip
    args = cli.library(dataset="digits", net="mlp", train_mode="distillation", teacher=str(tmp_path / "t.safetensors"))
    with pytest.raises(ContentError, match="7 classes"):
        train.prepare(args, torch.device("cpu"))


@pytest.mark.parametrize("argv", [["--sam_radius", "0"], ["--sam_radius", "-1"], ["--teacher", "x"],
                                  ["--train_mode", "distillation"], ["--mixup_alpha", "0"]])  # fmt: skip
def test_impossible_settings_are_refused(argv):
    with pytest.raises(UsageError):
        cli.resolve(cli.training_parser("main.py", "").settings(argv))
