"""Claims of the regions study on made-up maps whose truth is known."""

import json

import numpy as np
import pytest
import yaml

from landscape import claims as ledger
from landscape import runs
from landscape.errors import FileProblem
from regions import claims

PLANES, SIDE = 30, 12


def noisy(base, share, rng):
    """A copy of class maps (P, S) with a share of the points drawn anew."""
    change = rng.random(base.shape) < share
    return np.where(change, rng.integers(0, 10, base.shape), base).astype(np.uint8)


def write(root, net, seed, maps, anchors="distinct", **config):
    folder = root / "regions" / f"{net}-{seed}-{'-'.join(map(str, config.values())).replace('/', '_')}"
    if not folder.exists():
        plain = {"opt": "SGD", "train_mode": "naive", "sam_radius": None}
        config = {"net": net, "width": 0, "init_seed": seed, "order_seed": seed, **plain, **config}
        runs.write_bytes(folder / "config.yaml", yaml.safe_dump(config).encode())
        for name in ("done", "model.safetensors"):
            runs.write_bytes(folder / name, b"")
    settings = {"anchors": anchors, "planes": len(maps), "resolution": SIDE, "dataset": "CIFAR10", "split": "test"}
    runs.write_arrays(folder / "arrays" / f"class_maps-{anchors[:8]}.npz", labels=maps, complete=len(maps),
                      settings=json.dumps(settings))  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """Convolutional nets near one truth, the wide one nearest; an MLP near another; planes of noise nearly constant."""
    rng = np.random.default_rng(0)
    conv, other = (rng.integers(0, 10, (PLANES, SIDE * SIDE)) for _ in range(2))
    nets = (("wrn-10-1", conv, 0.4), ("wrn-10-2", conv, 0.1), ("lenet", conv, 0.3), ("mlp", other, 0.3))
    for net, truth, share in nets:
        for seed in range(3):
            write(tmp_path, net, seed, noisy(truth, share, rng))
            for kind in ("uniform", "shuffled"):
                write(tmp_path, net, seed, noisy(np.full((PLANES, SIDE * SIDE), seed), 0.02, rng), kind)
    return tmp_path


def test_claims_that_are_true_hold_and_missing_ones_are_named(root, tmp_path, capsys):
    out = tmp_path / "claims.json"
    assert claims.main([str(root), "--out", str(out)]) == 0
    found = {c.id: c for c in ledger.read(out)}
    assert set(found) == {"conv-families", "same-architecture", "width", "off-manifold-uniform",
                          "off-manifold-shuffled"}  # fmt: skip
    assert all(c.verdict == "holds" and c.low <= c.value <= c.high for c in found.values())
    said = capsys.readouterr().out
    assert "left out     optimisers" in said and "left out     mixup" in said
    assert "CIFAR10, 30 planes of 12x12 points" in found["width"].protocol


def test_a_false_claim_fails(root, tmp_path):
    rng = np.random.default_rng(1)
    for seed in range(3):
        for kind in ("uniform", "shuffled"):
            for net in ("wrn-10-1", "wrn-10-2", "lenet", "mlp"):
                write(root, net, seed, rng.integers(0, 10, (PLANES, SIDE * SIDE)).astype(np.uint8), kind)
    out = tmp_path / "claims.json"
    claims.main([str(root), "--out", str(out)])
    assert {c.verdict for c in ledger.read(out) if c.id.startswith("off")} == {"fails"}


def test_optimisers_and_mixup_are_compared_within_and_between_their_groups(root, tmp_path):
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 10, (PLANES, SIDE * SIDE))
    for seed in range(3):
        write(root, "resnet20", seed, noisy(truth, 0.2, rng))
        write(root, "resnet20", seed, noisy(truth, 0.05, rng), sam_radius=0.05)
        write(root, "resnet20", seed, noisy(truth, 0.4, rng), opt="Adam")
        write(root, "resnet20", seed, noisy(truth, 0.5, rng), train_mode="mixup")
    out = tmp_path / "claims.json"
    claims.main([str(root), "--out", str(out)])
    found = {c.id: c for c in ledger.read(out)}
    for name in ("optimiser-sgd+sam-sgd", "optimiser-sgd-adam", "mixup"):
        assert found[name].verdict == "holds", found[name]
    assert found["optimiser-sgd-adam"].value > 0 > found["mixup"].value


def test_networks_of_another_training_are_no_further_seeds(root, tmp_path, capsys):
    """Two longer trainings, of other regions, leave the claims as they are; SAM is compared with its own SGD."""
    claims.main([str(root), "--out", str(tmp_path / "before.json")])
    before = {c.id: c.value for c in ledger.read(tmp_path / "before.json")}
    rng = np.random.default_rng(6)
    for seed in range(2):
        write(root, "lenet", seed, rng.integers(0, 10, (PLANES, SIDE * SIDE)).astype(np.uint8), epochs=200)
    for (config,) in (root.glob(f"regions/lenet-{seed}-/config.yaml") for seed in range(3)):
        runs.write_bytes(config, config.read_bytes() + b"epochs: 100\n")
    claims.main([str(root), "--out", str(tmp_path / "after.json")])
    after = {c.id: c.value for c in ledger.read(tmp_path / "after.json")}
    assert {k: after[k] for k in ("conv-families", "width")} == {k: before[k] for k in ("conv-families", "width")}
    assert "left out     lenet-0-200: epochs is 200, of the other lenet networks 100" in capsys.readouterr().out
    for seed in range(3):
        truth = np.zeros((PLANES, SIDE * SIDE))
        write(root, "resnet20", seed, noisy(truth, 0.9, rng), epochs=100)
        for number, how in enumerate(({}, {"sam_radius": 0.05}, {"opt": "Adam"})):
            write(root, "resnet20", seed, noisy(truth, 0.05 + 0.1 * number, rng), epochs=200, **how)
    claims.main([str(root), "--out", str(tmp_path / "after.json")])
    found = {c.id: c for c in ledger.read(tmp_path / "after.json")}
    assert found["optimiser-sgd-adam"].verdict == "holds" and found["optimiser-sgd+sam-sgd"].verdict == "fails"


def test_claims_of_too_few_networks_are_left_out(tmp_path, capsys):
    rng = np.random.default_rng(7)
    truth = rng.integers(0, 10, (PLANES, SIDE * SIDE))
    for net in ("wrn-10-1", "resnet20", "mlp"):
        write(tmp_path, net, 0, noisy(truth, 0.2, rng))
    write(tmp_path, "resnet20", 0, noisy(truth, 0.2, rng), sam_radius=0.05)
    write(tmp_path, "resnet20", 0, noisy(truth, 0.2, rng), train_mode="mixup")
    claims.main([str(tmp_path), "--out", str(tmp_path / "claims.json")])
    (found,) = ledger.read(tmp_path / "claims.json")
    assert found.id == "conv-families" and found.low is None and found.verdict == "not decided"
    said = capsys.readouterr().out
    assert "two seeds each" in said and "two seeds without it" in said


def test_a_wide_network_is_as_wide_as_its_setting_says(tmp_path):
    rng = np.random.default_rng(8)
    truth = rng.integers(0, 10, (PLANES, SIDE * SIDE))
    for seed in range(3):
        write(tmp_path, "wrn-10-30", seed, noisy(truth, 0.4, rng), width=1)
        write(tmp_path, "wrn-10-2", seed, noisy(truth, 0.1, rng))
    claims.main([str(tmp_path), "--out", str(tmp_path / "claims.json")])
    found = {c.id: c for c in ledger.read(tmp_path / "claims.json")}["width"]
    assert found.verdict == "holds" and "(wrn-10-2 less wrn-10-30 width=1)" in found.statement


def test_students_of_one_teacher_and_of_two_architectures_all_count(tmp_path):
    rng = np.random.default_rng(9)
    own = rng.integers(0, 10, (PLANES, SIDE * SIDE))
    write(tmp_path, "vgg11_bn", 0, noisy(own, 0.1, rng))
    (teacher,) = tmp_path.glob("regions/*")
    for net, share in (("resnet20", 0.2), ("lenet", 0.5)):
        for seed in range(3):
            write(tmp_path, net, seed, noisy(rng.integers(0, 10, own.shape), 0.2, rng), teacher="")
            write(tmp_path, net, seed, noisy(own, share, rng), train_mode="distillation", teacher=teacher.name)
    claims.main([str(tmp_path), "--out", str(tmp_path / "claims.json")])
    found = {c.id: c for c in ledger.read(tmp_path / "claims.json")}["distillation"]
    assert found.n == 6 and found.verdict == "holds" and 0.4 < found.value < 0.65


def test_mixup_is_judged_on_all_its_architectures(tmp_path):
    rng = np.random.default_rng(10)
    truth = rng.integers(0, 10, (PLANES, SIDE * SIDE))
    for net, share in (("lenet", 0.8), ("resnet20", 0.1)):
        for seed in range(3):
            write(tmp_path, net, seed, noisy(truth, 0.2, rng))
            write(tmp_path, net, seed, noisy(truth, share, rng), train_mode="mixup")
    claims.main([str(tmp_path), "--out", str(tmp_path / "claims.json")])
    found = {c.id: c for c in ledger.read(tmp_path / "claims.json")}["mixup"]
    assert found.n == 12 and "lenet, resnet20" in found.statement and -0.3 < found.value < -0.1


def test_a_student_is_paired_with_its_own_teacher_and_its_vanilla_twin(root, tmp_path):
    rng = np.random.default_rng(4)
    for seed in range(3):
        own = rng.integers(0, 10, (PLANES, SIDE * SIDE))
        write(root, "vgg11_bn", seed, noisy(own, 0.2, rng))
        (teacher,) = root.glob(f"regions/vgg11_bn-{seed}-")
        write(root, "resnet20", seed, noisy(rng.integers(0, 10, own.shape), 0.2, rng), teacher="")
        student = {"train_mode": "distillation", "teacher": f"elsewhere/{teacher.name}"}
        write(root, "resnet20", seed, noisy(own, 0.5, rng), **student)
    out = tmp_path / "claims.json"
    claims.main([str(root), "--out", str(out)])
    found = {c.id: c for c in ledger.read(out)}["distillation"]
    assert found.verdict == "holds" and found.n == 3 and 0.2 < found.value < 0.5


def test_the_joint_interval_holds_the_value_and_narrows_with_networks_and_planes():
    rng = np.random.default_rng(3)

    def width(networks, planes):
        own = rng.normal(0, 0.05, networks)
        pairs = 0.7 + own[:, None, None] + own[None, :, None] + rng.normal(0, 0.1, planes)
        value, low, high = claims.joint_interval(pairs, ["a"] * networks, lambda m: m["a", "a"])
        off = ~np.eye(networks, dtype=bool)
        assert abs(value - pairs[off].mean()) < 1e-12 and low < value < high
        return high - low

    assert width(4, 20) > width(20, 400)


@pytest.mark.parametrize("statistic", [lambda m: m["a", "a"] - m["b", "b"], lambda m: m["a", "b"],
                                       lambda m: m["a", "b"] - m["a", "a"]], ids=["within", "between", "both"])
def test_the_joint_interval_covers_about_as_often_as_it_says(statistic):
    """Of three networks a group, whose own effects and whose planes are drawn; the truth of each statistic is 0."""
    rng, inside = np.random.default_rng(4), 0
    for _ in range(300):
        own = rng.normal(size=6)
        noise = rng.normal(size=(6, 6, 20))
        pairs = own[:, None, None] + own[None, :, None] + rng.normal(size=20) + noise + noise.swapaxes(0, 1)
        _, low, high = claims.joint_interval(pairs, ["a"] * 3 + ["b"] * 3, statistic)
        inside += low <= 0 <= high
    assert inside >= 0.92 * 300


def test_no_maps_at_all(tmp_path):
    with pytest.raises(FileProblem, match="no runs for any claim|no finished run"):
        claims.main([str(tmp_path)])


@pytest.mark.parametrize("name, wanted", [
    ("regions_cpu", "bash scripts/fig_regions_mixup.sh && python -m regions.claims runs/regions_cpu"),
    ("regions_paper", "bash scripts/fig_regions_mixup.sh --scale paper && python -m regions.claims runs/regions_paper"),
])  # fmt: skip
def test_the_command_of_a_claim_is_of_its_scale(tmp_path, name, wanted):
    assert claims.by_command("mixup", tmp_path / name) == wanted
