"""Barriers: what must hold of any line, against plain versions; the program, its files, and what it refuses."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

import models
from landscape import data as datasets
from landscape import evaluate, lines, permute, runs, seeding, weights
from landscape.errors import ContentError, FileProblem, UsageError
from models import ModelError
from models.axes import axes_of
from star import barriers, plot, starlight

torch.set_num_threads(1)
PLAIN = {"kind": "none", "mean": (0.0,), "std": (1.0,)}
TS = [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.fixture(scope="module")
def digits():
    data = datasets.load("digits", train_size=200)
    data.test = data.test.subset(torch.arange(60))
    return data


def network(name="resnet20", seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = models.build(name, 10, in_channels=1, image_size=8, width=4 if name == "resnet20" else 12).eval()
        for key, tensor in net.state_dict().items():
            if tensor.dim() == 1:
                low = 0.5 if key.endswith(("weight", "running_var")) else -0.3
                tensor.uniform_(low, low + 0.6)
            elif name == "mlp":
                tensor.mul_(4)
        return net


def scene(digits, name="resnet20", images=128):
    return lines.Scene.of(network(name), digits, PLAIN, images, 64)


def line(of, a, b, norm):
    own = lines.ends(of, [a, b], "reset" if norm == "repair" and of.normed else norm.replace("repair", "stored"))
    first = lines.ends(of, [a, b], "stored") if norm == "published" else own
    return lines.Line(a, b, norm, barriers.both(first, own, 0, 1))


def excess(of, a, b, norm, ts=TS):
    (found,) = lines.measure(of, [line(of, a, b, norm)], ts)
    return {part: barriers.curve(*found[part], ts, 0.95) for part in found}


# ---- lines ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("norm", [n for n in lines.NORMS if n != "published"])  # whose ends are not treated alike
def test_identical_networks_have_no_barrier(digits, norm):
    of, a = scene(digits), weights.of(network())
    found = excess(of, a, {k: v.clone() for k, v in a.items()}, norm)
    for part in ("train", "test"):
        assert max(map(abs, found[part]["excess"])) < 1e-5 and found[part]["accuracy_barrier"] == 0


@pytest.mark.parametrize("norm", [n for n in lines.NORMS if n != "published"])  # whose ends are not treated alike
def test_a_line_and_its_reverse_are_the_same(digits, norm):
    of, a, b = scene(digits), weights.of(network()), weights.of(network(seed=1))
    one, other = excess(of, a, b, norm), excess(of, b, a, norm)
    for part in ("train", "test"):
        assert np.allclose(one[part]["losses"], other[part]["losses"][::-1], atol=1e-4)
        assert one[part]["loss_barrier"] == pytest.approx(other[part]["loss_barrier"], abs=1e-4)


def test_the_ends_are_the_networks(digits):
    of, a, b = scene(digits), weights.of(network()), weights.of(network(seed=1))
    first, last = lines.points(of, lines.Line(a, b, "stored", {}), [0.0, 1.0])
    assert all(torch.equal(first[k], a[k]) and torch.equal(last[k], b[k]) for k in a if a[k].is_floating_point())
    for end, net in zip(lines.ends(of, [a, b], "stored"), (network(), network(seed=1))):
        said = evaluate.logits(net, digits.test, PLAIN)
        losses, right = end["test"]
        assert np.allclose(losses, F.cross_entropy(said, digits.test.labels, reduction="none"), atol=1e-4)
        assert right.mean() == pytest.approx((said.argmax(1) == digits.test.labels).float().mean().item())


def augmented(of):
    """The batches of the published statistics, of all images of the scene."""
    order, draws = (seeding.stream(0, "statistics", what) for what in ("order", "augment"))
    rows = of.rows[torch.randperm(len(of.rows), generator=order)]
    drawn = of.train.draw(of.augment, draws)
    return [of.train.batch(some, PLAIN, of.augment, drawn) for some in rows.split(128)]


@pytest.mark.parametrize("norm", ["stored", "reset", "published"])
def test_points_equal_a_plain_loop(digits, norm):
    """The twin copies the network for each t, lets it see the images in train mode with a cumulative average of batch
    statistics (momentum None), and evaluates it; on one batch of all images the two estimates are one. As published it
    sees augmented batches in turn, with the momentum 0.1 that BatchNorm has, and A stays as it is."""
    of, a, b = scene(digits, images=200), weights.of(network()), weights.of(network(seed=1))
    of.augment = datasets.parse_augment("crop,flip", digits.entry)  # digits have none of their own
    (found,) = lines.measure(of, [line(of, a, b, norm)], TS)
    x, y = digits.train.batch(torch.arange(200), PLAIN), digits.train.labels
    for n, t in enumerate(TS):
        net = copy.deepcopy(of.network)
        net.load_state_dict({k: (1 - t) * a[k] + t * b[k] if a[k].is_floating_point() else a[k] for k in a})
        if norm == "reset" or (norm == "published" and t):
            for module in net.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.reset_running_stats()
                    module.momentum = None if norm == "reset" else 0.1
            net.train()
            with torch.no_grad():
                for seen in [x] if norm == "reset" else augmented(of):
                    net(seen)
        with torch.no_grad():
            said = net.eval()(x)
        assert np.allclose(found["train"][0][n], F.cross_entropy(said, y, reduction="none"), atol=2e-3)
        assert found["train"][0][n].mean() == pytest.approx(F.cross_entropy(said, y).item(), abs=1e-4)


@pytest.mark.parametrize("name", ["mlp", "resnet20"])
@pytest.mark.parametrize("how", ["weights", "activations"])
def test_alignment_takes_the_barrier_of_a_permuted_copy_away(digits, name, how):
    of, a = scene(digits, name), weights.of(network(name))
    axes = axes_of(of.network)
    b = permute.apply(a, axes, permute.random(axes, 1))
    norm = "reset" if of.normed else "stored"
    aligned, perms = lines.align(how, of, a, b, axes, 0)
    before, after = (excess(of, a, other, norm)["train"] for other in (b, aligned))
    assert max(map(abs, before["excess"])) > 0.02
    assert max(map(abs, after["excess"])) < (1e-5 if how == "weights" else 0.02)
    assert lines.align("none", of, a, b, None, 0) == (b, None)
    back = permute.apply(a, axes, permute.inverse(perms))  # from the other side: the same line
    there, here = excess(of, a, aligned, norm)["test"], excess(of, back, b, norm)["test"]
    assert np.allclose(there["losses"], here["losses"], atol=1e-4)


def test_a_line_in_bf16_is_nearly_that_in_fp32(digits):
    of, (a, b) = scene(digits), (weights.of(network(seed=s)) for s in (1, 2))
    exact = excess(of, a, b, "reset")
    of.precision = "bf16"
    found = excess(of, a, b, "reset")
    for part in ("train", "test"):
        gap = np.abs(np.subtract(found[part]["losses"], exact[part]["losses"]))
        assert 0 < gap.max() < 0.02 * max(exact[part]["losses"])


def test_wrong_axes_stop_with_the_layer(digits):
    of, a, b = scene(digits), weights.of(network()), weights.of(network(seed=1))
    axes = axes_of(of.network)
    broken = {k: v for k, v in axes.tensors.items() if k != "layer2.0.bn1.bias"}
    with pytest.raises(ContentError, match=r"layer2\.0\.bn1"):
        lines.align("weights", of, a, b, type(axes)(broken, axes.groups, axes.omitted), 0)


@pytest.mark.parametrize("name", ["mlp", "resnet20"])
def test_repair_gives_each_layer_the_interpolated_statistics(digits, name):
    of, a, b = scene(digits, name, images=200), weights.of(network(name)), weights.of(network(name, 1))
    layers = lines.corrected_layers(of)
    assert list(layers) == (["fc1", "fc2"] if name == "mlp" else
                            [k for k, m in of.network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)])
    (middle,) = lines.points(of, lines.Line(a, b, "repair", {}), [0.3])
    ends = evaluate.reestimate_bn(of.network, digits.train, PLAIN, [a, b], of.rows)
    x = digits.train.batch(of.rows, PLAIN)

    def statistics(w):
        said = {}
        hooks = [m.register_forward_hook(lambda m, i, o, k=k: said.__setitem__(k, o.transpose(0, 1).flatten(1)))
                 for k, m in of.network.named_modules() if k in layers]
        with torch.no_grad():
            torch.func.functional_call(of.network, w, (x,))
        for hook in hooks:
            hook.remove()
        return {k: (v.mean(1), v.std(1, correction=0)) for k, v in said.items()}

    one, two, found = statistics(ends[0]), statistics(ends[1]), statistics(middle)
    for key in layers:
        for p, q, r in zip(one[key], two[key], found[key]):
            assert torch.allclose(r, 0.7 * p + 0.3 * q, atol=5e-3)


def test_a_parabola_is_found_and_an_adaptive_search_finds_the_top(digits):
    def curve(ts):
        return [(t, -(t - 0.37) ** 2) for t in ts]

    assert lines.vertex(curve([0, 0.25, 0.5, 0.75, 1]), 0.03) == pytest.approx(0.37)
    assert lines.vertex(curve([0, 0.25, 0.36, 0.5, 1]), 0.03) is None
    assert lines.vertex([(0, 0), (0.5, 0), (1, 0)], 0.03) is None
    of, a = scene(digits, images=200), weights.of(network())
    b = permute.apply(a, axes_of(of.network), permute.random(axes_of(of.network), 1))
    a, b = ({k: 20 * v if k.startswith("linear") else v for k, v in w.items()} for w in (a, b))
    end = copy.deepcopy(of.network)
    end.load_state_dict(a)
    evaluate.reestimate_bn(end, of.train, PLAIN)
    of.train = of.train.relabel(evaluate.logits(end, of.train, PLAIN).argmax(1))  # both ends are right
    one = line(of, a, b, "reset")
    (t,) = lines.find_highest(of, [one])
    dense = excess(of, a, b, "reset", np.linspace(0, 1, 13).tolist())["train"]
    height = dict(one.search)[t]
    assert dense["loss_barrier"] > 0.2 and len(one.search) <= 8
    assert height == pytest.approx(dense["loss_barrier"], rel=0.03)
    sparse = excess(of, a, b, "reset", [0.0, t, 1.0])["train"]
    assert sparse["loss_barrier"] == pytest.approx(height, abs=1e-6)  # all training images are those of the search


# ---- numbers -------------------------------------------------------------------------------------------------------

def test_a_curve_and_its_interval():
    generator = np.random.default_rng(0)
    losses = generator.exponential(size=(3, 4000)).astype(np.float32) + np.array([[0.0], [0.5], [0.0]])
    right = np.array([[True] * 3, [True, False, False], [True] * 3])[:, generator.integers(0, 3, 4000)]
    found = barriers.curve(losses, right, [0.0, 0.5, 1.0], 0.95)
    assert found["loss_barrier"] == pytest.approx(0.5, abs=0.1) and found["at"] == 0.5
    assert found["low"] < found["loss_barrier"] < found["high"] and found["high"] - found["low"] < 0.2
    assert found["accuracy_barrier"] == pytest.approx(-2 / 3, abs=0.03)
    assert found["area"] == pytest.approx(found["loss_barrier"] / 2)
    flat = barriers.curve(losses - np.array([[0], [3], [0]]), right, [0.0, 0.5, 1.0], 0.95)
    assert flat["loss_barrier"] == 0 and flat["excess"][1] < -2  # the signed excess is kept


def test_the_order_of_the_images_matters_little_to_intervals():
    """Sets of images in folders are sorted by class, and losses differ between classes."""
    rng = np.random.default_rng(0)
    losses = np.stack([np.zeros(20000), np.repeat(rng.random(100), 200) + rng.random(20000), np.zeros(20000)])
    widths = [np.diff(barriers.over_images(some, [0.0, 0.5, 1.0], 0.95)).item()
              for some in (losses, losses[:, rng.permutation(20000)])]
    assert widths[0] == pytest.approx(2 * 1.96 * losses[1].std() / 20000**0.5, rel=0.25)
    assert widths[0] == pytest.approx(widths[1], rel=0.25)
    uneven = barriers.over_images(losses[:, :701], [0.0, 0.5, 1.0], 0.95)
    assert uneven[0] < losses[1, :701].mean() < uneven[1]


def test_intervals_over_pairs_are_clustered_by_network():
    generator = np.random.default_rng(1)
    rows, columns = generator.normal(size=4), generator.normal(size=5)
    between = {(f"a{i}", f"b{j}"): 1 + rows[i] + columns[j] for i in range(4) for j in range(5)}
    found = starlight.over_pairs(between)
    naive = 2 * found["stdev"] / 20**0.5
    assert found["pairs"] == 20 and found["networks"] == 9
    assert found["high"] - found["value"] > 1.5 * naive  # 20 pairs of 9 networks are not 20 values
    within = {(i, j): 1.0 + i + j for i in range(4) for j in range(i)}
    assert starlight.over_pairs(within)["low"] is not None
    star = {("star", j): float(j) for j in range(5)}
    assert starlight.over_pairs(star)["low"] < 2 < starlight.over_pairs(star)["high"]
    assert starlight.over_pairs({("a", "b"): 1.0})["stdev"] is None
    odd = {("a", "b"): 1.0, ("b", "c"): 2.0, ("a", "d"): 2.0}  # neither all pairs of one set nor of two
    assert starlight.over_pairs(odd)["low"] is None


# ---- the program ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three MLPs as main.py trains them, tiny, and one of another width."""
    import main

    root = tmp_path_factory.mktemp("runs")
    for seed, width in ((0, 12), (1, 12), (2, 12), (0, 16)):
        argv = ["--net", "mlp", "--width", str(width), "--dataset", "digits", "--lr", "0.1", "--imgs", "none"]
        main.main([*argv, "--seed", str(seed), "--smoke", "--runs", str(root)])
    return root


def measure(root, *argv):
    return barriers.main(["-a", str(root / "smoke/regions"), "--select", "width=12", "--runs", str(root / "out"),
                          "--points", "5", *argv])


def results_of(root):
    (file,) = sorted((root / "out").rglob("results.json"))
    return file.parent, json.loads(file.read_text())


def test_the_program_measures_all_pairs_and_goes_on_where_it_was(trained, tmp_path, capsys):
    root = tmp_path / "r"
    root.symlink_to(trained)
    out = tmp_path / "out"
    assert measure(root, "--runs", str(out), "--dry_run") == 0
    assert not out.exists() and "3 pairs of 3 networks" in capsys.readouterr().out
    assert measure(root, "--runs", str(out), "--bn", "reset,repair", "--as_published") == 0
    said = capsys.readouterr().out
    (file,) = out.rglob("results.json")
    folder, found = file.parent, json.loads(file.read_text())
    assert found["bn"] == ["stored", "repair"]  # an MLP has no BatchNorm
    assert found["align"] == ["none", "weights", "published"]
    assert len(found["lines"]) == 3 * 3 * 2 and len(found["summary"]) == 3 * 2 * 4
    for row in found["lines"]:
        assert (row["distance"] < row["distance_before"]) == (row["align"] != "none")
        for part, count in (("train", 96), ("test", 360)):
            assert len(row[part]["losses"]) == 5 and row[part]["loss_barrier"] >= 0 >= row[part]["accuracy_barrier"]
            held = runs.read_arrays(folder / "arrays" / f"line-{row['a']}-{row['b']}-{row['align']}-{row['bn']}.npz")
            assert held[f"{part}_losses"].shape == (5, count) and held[f"{part}_right"].dtype == bool
            assert np.allclose(held[f"{part}_losses"].mean(1, dtype=float), row[part]["losses"], rtol=1e-3)
    assert "weights" in said and "3 networks, 96 training and 360 test images" in said
    for name in ("barriers.csv", "done", "figures/lines.png", "figures/barriers.png", "starlight-weights-stored.yaml"):
        assert (folder / name).exists(), name

    before = file.read_bytes()
    (folder / "done").unlink()  # as if it had been broken off, with one line missing
    (folder / "arrays/line-0-1-weights-stored.npz").unlink()
    assert measure(root, "--runs", str(out), "--bn", "reset,repair", "--as_published") == 0
    assert file.read_bytes() == before
    assert plot.main([str(out), "--plot_path", str(tmp_path / "figures"), "--formats", "pdf"]) == 0
    assert len(list((tmp_path / "figures").glob("*/*.pdf"))) == 2


def test_lines_of_one_statistic_are_measured_alone(digits, tmp_path):
    """A broken measurement lacks lines of some kinds of BatchNorm, others are there."""
    of, nets = scene(digits), [weights.of(network(seed=s)) for s in (1, 2)]
    args = barriers.make_parser().settings(["--points", "3", "--align", "none"])

    def found():
        return barriers.measured(args, SimpleNamespace(path=tmp_path), of, nets, [(0, 1)], None, barriers.NORMS)

    whole = found()
    assert [row["bn"] for row in whole] == list(barriers.NORMS)
    for norm in barriers.NORMS:
        (tmp_path / "arrays" / f"line-0-1-none-{norm}.npz").unlink()
        assert found() == whole


def test_where_networks_lie_is_no_part_of_the_name_and_what_is_written_is(trained, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.symlink_to(trained / "smoke/regions")
    out = ["--runs", str(tmp_path / "out"), "--points", "3", "--align", "none", "--select", "width=12"]
    for argv in (["-a", str(trained / "smoke/regions")], ["-a", str(moved)],
                 ["-a", *(s.path.as_posix() for s in runs.find_models(moved, select=["width=12"]))]):
        assert barriers.main([*argv, *out]) == 0
        assert len(list((tmp_path / "out").rglob("results.json"))) == 1
    assert barriers.main(["-a", str(moved), *out, "--kind", "star_anchor", "--level", "0.5"]) == 0
    files = [runs.read_json(f) for f in (tmp_path / "out").rglob("results.json")]
    assert sorted(f["level"] for f in files) == [0.5, 0.95]
    assert {f["dataset"] for f in files} == {"digits"}
    kinds = [starlight.read(f) for f in (tmp_path / "out").rglob("starlight-none-stored.yaml")]
    assert sorted(len(k["star_anchor"]) for k in kinds) == [0, 3] and {k["dataset"] for k in kinds} == {"digits"}


def test_a_width_that_is_the_networks_own_makes_no_difference(tmp_path):
    import main

    for width, seed in (("0", "0"), ("256", "1")):
        main.main(["--net", "mlp1", "--width", width, "--seed", seed, "--dataset", "digits", "--imgs", "none",
                   "--smoke", "--runs", str(tmp_path)])
    assert barriers.main(["-a", str(tmp_path / "smoke/regions"), "--points", "3", "--align", "none", "--runs",
                          str(tmp_path / "out")]) == 0


def test_its_yaml_is_read_back_and_so_is_starlights(trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert measure(trained, "--runs", str(out), "--kind", "star_held_out", "--align", "weights", "--adaptive") == 0
    (file,) = out.rglob("starlight-*.yaml")
    held = starlight.read(file)
    found = json.loads((file.parent / "results.json").read_text())
    for pair, row in zip(held["star_held_out"], found["lines"], strict=True):
        assert pair["train_loss_barrier"] == row["train"]["loss_barrier"]
        assert pair["test_accuracies"] == pytest.approx([100 * v for v in row["test"]["accuracies"]])
        assert pair["model1_id"] == found["models"][row["a"]]["path"]
    numbers = {"train_loss_barrier": 0.25, "test_loss_barrier": 0.5, "train_acc_barrier": -0.1, "test_acc_barrier": 0}
    pairs = [{"model1_id": a, "model2_id": b, **numbers, "train_losses": [0.001, 0.3]} for a in "xy" for b in "zw"]
    theirs = {"model": "m", "dataset": "d", "setting": "sgd", "star_held_out": [], "anchor_held_out": pairs}
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(theirs))
    capsys.readouterr()
    assert starlight.main(["--read", str(path)]) == 0
    said = capsys.readouterr().out
    assert "anchor_held_out  train_loss_barrier      4 pairs  0.2500 ± 0.0000 [0.2500, 0.2500]" in said
    for text, problem in (("[1, 2", "not YAML"), ("a: 1", "none of the lists"),
                          ("anchor_held_out: [{model1_id: x}]", "pair 0 of anchor_held_out")):
        path.write_text(text)
        with pytest.raises(ContentError, match=problem):
            starlight.read(path)
    with pytest.raises(FileProblem):
        starlight.read(tmp_path / "nowhere.yaml")


def test_what_it_refuses(trained, tmp_path, monkeypatch):
    folders = sorted((trained / "smoke/regions").iterdir())
    small = [str(f) for f in folders if yaml.safe_load((f / "config.yaml").read_text())["width"] == 12]
    (wide,) = (str(f) for f in folders if str(f) not in small)
    out = ["--runs", str(tmp_path / "out")]

    def refused(error, match, *argv):
        with pytest.raises(error, match=match):
            barriers.main([*argv, *out])
        assert not list((tmp_path).rglob("done"))

    refused(UsageError, "two networks", "-a", small[0])
    refused(UsageError, "two networks")
    refused(UsageError, "no barrier to itself", "-a", small[0], "-b", small[0], small[1])
    refused(ContentError, "differ in architecture: width 12 and 16", "-a", small[0], "-b", wide)
    refused(UsageError, "'swap' is none of", "-a", *small, "--align", "swap")
    refused(FileProblem, "nowhere", "-a", small[0], "nowhere")
    listed = tmp_path / "list.txt"
    listed.write_text(f"# three\n{small[0]}\n{tmp_path / 'gone.pt'}\n")
    refused(FileProblem, "gone.pt", "-a", str(listed))
    foreign = tmp_path / "foreign.pt"
    torch.save(runs.load(small[0]).network.state_dict(), foreign)
    refused(UsageError, "foreign.pt does not say what data", "-a", small[0], str(foreign))
    torch.save({"state_dict": {"fc1.weight": torch.zeros(2, 2)}}, foreign)
    refused(ContentError, "is not a mlp", "-a", small[0], str(foreign), "--dataset", "digits", "--net", "mlp")
    monkeypatch.setattr("models.mlp.FullyConnected.axes", None)
    monkeypatch.delattr("models.mlp.FullyConnected.axes")
    refused(ModelError, "--align none", "-a", *small[:2])
    assert barriers.main(["-a", *small[:2], "--align", "none", "--points", "3", *out]) == 0
