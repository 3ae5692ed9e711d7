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


def test_no_maps_at_all(tmp_path):
    with pytest.raises(FileProblem, match="no runs for any claim|no finished run"):
        claims.main([str(tmp_path)])
