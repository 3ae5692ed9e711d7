"""Training a star: its step against plain autograd, known star points, alignment, resuming, files, and refusals."""

import os
import shutil
import signal

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import main
import models
from landscape import cli, evaluate, permute, runs, subspace, train, weights
from landscape.errors import ContentError, FileProblem, Interrupted, UsageError
from models import ModelError
from models.axes import Axes, axes_of
from star import barriers, stars
from star import train as learn

torch.set_num_threads(1)
DATA = ["--dataset", "digits", "--train_size", "192", "--val_size", "64", "--bs", "48", "--precision", "fp32",
        "--device", "cpu", "--threads", "1", "--lr", "0.05"]  # fmt: skip
MLP, CNN = ["--net", "mlp1", "--width", "12"], ["--net", "resnet20", "--width", "4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The runs of five MLPs and three ResNets that differ in seed."""
    root = tmp_path_factory.mktemp("stars")
    for net, seeds in ((MLP, 5), (CNN, 3)):
        for seed in range(seeds):
            main.main([*DATA, *net, "--epochs", "2", "--seed", str(seed), "--imgs", "none", "--runs", str(root)])
    return root


def of(root, net, *seeds):
    """The run folders of some seeds."""
    found = runs.find_models(root / "regions", select=[f"net={net[1]}", f"init_seed={'|'.join(map(str, seeds))}"])
    return [str(s.path) for s in found]


def arguments(root, out, net=MLP, seeds=(0, 1, 2), *more):
    return [*DATA, *net, "--epochs", "2", "--anchors", *of(root, net, *seeds), "--runs", str(out), *more]


def trained(*given):
    """The run folder of a small training."""
    argv = arguments(*given)
    assert learn.main(argv) == 0
    args = cli.resolve(learn.make_parser().settings(argv))
    anchors, _ = learn.sources(args)
    return runs.folder("star", args, learn.head(args, anchors))


def small(seed, sizes=(4, 6, 3)):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.mlp.FullyConnected(list(sizes))


def star_of(count=3, **more):
    return stars.Star(small(9), weights.of(small(0)), (weights.of(small(1 + n)) for n in range(count)), count, **more)


# ---- the rule and the step -----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("sampling", "mean", "square"), [("uniform", 1 / 2, 1 / 3), ("beta", 1 / 2, 3 / 10),
                                                          ("constant", 1 / 2, 1 / 4)])
def test_positions_have_the_moments_of_their_distribution(sampling, mean, square):
    rule = subspace.Spokes("star", 5, None, sampling)
    torch.manual_seed(0)
    drawn = rule.draw(40000)
    assert torch.allclose(drawn.sum(1), torch.ones(len(drawn))) and ((drawn[:, 1:] != 0).sum(1) <= 1).all()
    t = 1 - drawn[:, 0]
    assert t.mean().item() == pytest.approx(mean, abs=0.01) and (t**2).mean().item() == pytest.approx(square, abs=0.01)
    assert torch.allclose(drawn.mean(0), rule.mean, atol=0.01)
    assert torch.equal(rule.centre, torch.tensor([1.0, 0, 0, 0, 0])) and rule.pull(range(1, 5)) == 0.5


@pytest.mark.parametrize("samples", [1, 3])
def test_the_gradient_is_that_of_a_hand_written_interpolation(samples):
    star = star_of(samples=samples).train()
    x, y = torch.randn(12, 4), torch.randint(0, 3, (12,))
    F.cross_entropy(star(x), y).backward()
    own = {k: w.clone().requires_grad_() for k, w in small(0).named_parameters()}
    parts = []
    for part, drawn in zip(x.chunk(samples), star.drawn):
        (row,) = drawn
        (n,) = row[1:].nonzero()[0].tolist()
        anchor, t = weights.of(small(1 + n)), row[1 + n].item()
        parts.append(functional_call(small(9), {k: (1 - t) * w + t * anchor[k] for k, w in own.items()}, (part,)))
    gradients = torch.autograd.grad(F.cross_entropy(torch.cat(parts), y), own.values())
    expected = dict(zip(own, gradients))
    for name, gradient in star.views(star.stack.grad[0]).items():
        assert torch.allclose(gradient, expected[name], atol=1e-6), name
    assert star.fixed.grad is None and len({tuple(d.flatten().tolist()) for d in star.drawn}) == samples


def test_the_star_itself_answers_in_evaluation_and_is_what_is_saved():
    star, x = star_of(axes=axes_of(small(0))).eval(), torch.randn(5, 4)
    assert torch.equal(star(x), small(0)(x))
    assert stars.plain(star.state_dict()).keys() == small(0).state_dict().keys()
    held = sum(v.numel() for v in star.state_dict().values())
    assert held == sum(p.numel() for p in small(0).parameters()) + 3 * 6  # one network, and permutations of 6 units


def test_a_fused_step_adds_the_loss_of_the_star_itself(root, tmp_path):
    def loss(*more):
        args = cli.resolve(learn.make_parser().settings(arguments(root, tmp_path, MLP, (0, 1), *more)))
        work = learn.Work(args, *learn.sources(args), torch.device("cpu"))
        star, (x, y, _) = work.star.train(), next(work.data.train.batches(torch.arange(32), 32,
                                                                         work.described["preprocessing"]))
        torch.manual_seed(3)
        value = work.objective.loss(star(x), y)
        (gradient,) = torch.autograd.grad(value, star.stack)
        own = functional_call(star.shell, star.vertex(0), (x,))
        alone = F.cross_entropy(own, y)
        return value.item(), gradient, alone.item(), torch.autograd.grad(alone, star.stack)[0]

    path, gradient, own, own_gradient = loss()
    both, both_gradient, *_ = loss("--mu", "3")
    assert both == pytest.approx((path + 3 * own) / 4, rel=1e-5) and abs(path - own) > 1e-3
    assert torch.allclose(both_gradient, (gradient + 3 * own_gradient) / 4, atol=1e-6)
    anti, anti_gradient, *_ = loss("--anti")
    assert anti == pytest.approx(1 / path, rel=1e-5)
    assert torch.allclose(anti_gradient, -gradient / path**2, atol=1e-6)  # up the path loss
    assert loss("--anti", "--mu", "1")[0] == pytest.approx((1 / path + own) / 2, rel=1e-5)


class Bowl(nn.Module):
    """Says its weights, whatever it is asked."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.w.expand(len(x), 2)


@pytest.mark.parametrize("sampling", ["uniform", "beta", "constant"])
def test_in_a_quadratic_bowl_the_star_comes_to_its_known_point(sampling):
    """The loss |H(w)|²/2 at w = (1-t) s + t a is least at s = -a E[t(1-t)]/E[(1-t)²], a being the mean anchor."""
    anchors = torch.tensor([[2.0, 0.5], [1.0, -1.0], [3.0, -1.0]])
    star = stars.Star(Bowl(), {"w": torch.tensor([5.0, 5.0])}, [{"w": a} for a in anchors], 3, sampling).train()
    optimiser = torch.optim.SGD([star.stack], 0.5)
    torch.manual_seed(0)
    tail = []
    for step in range(1500):
        for group in optimiser.param_groups:
            group["lr"] = 0.5 / (1 + step / 20)
        optimiser.zero_grad()
        (star(torch.zeros(1, 1)) ** 2).sum().mul(0.5).backward()
        optimiser.step()
        tail.append(star.stack[0].detach().clone())
    share = {"uniform": (1 / 6) / (1 / 3), "beta": 0.2 / 0.3, "constant": 1.0}[sampling]
    assert torch.allclose(torch.stack(tail[500:]).mean(0), -share * anchors.mean(0), atol=0.1)
    assert torch.equal(star.fixed, anchors)


def test_a_two_layer_linear_network_comes_to_a_star_of_no_barrier():
    """f(x) = b a·x with every b of one sign: solutions are the hyperbola b a = w, and the mid-point (1, w) between the
    arms' ends (c, w/c) and (1/c, wc) sees both: the path loss of a star trained from there must fall below that of the
    straight line between the two."""
    target, x = torch.tensor([[1.5, -0.5]]), torch.randn(256, 2, generator=torch.Generator().manual_seed(0))

    def linear(c):
        net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
        with torch.no_grad():
            net[0].weight.copy_(target / c)
            net[1].weight.fill_(c)
        return net

    def loss(w):
        return ((functional_call(linear(1.0), w, (x,)) - x @ target.T) ** 2).mean()

    def height(a, b):
        return max(loss(weights.lerp(a, b, t / 10)).item() for t in range(11))

    a, b = weights.of(linear(0.5)), weights.of(linear(2.0))
    star = stars.Star(linear(1.0), weights.of(linear(0.8)), [a, b], 2).train()
    optimiser = torch.optim.SGD([star.stack], 0.05)
    torch.manual_seed(0)
    for _ in range(600):
        optimiser.zero_grad()
        ((star(x) - x @ target.T) ** 2).mean().backward()
        optimiser.step()
    own = {k: w.detach() for k, w in star.vertex(0).items()}
    assert max(height(own, a), height(own, b)) < 0.4 * height(a, b)
    assert own["1.weight"].item() == pytest.approx(1.0, abs=0.1)  # as near to either, in the sense of the loss


# ---- alignment -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("net", "how"), [(MLP, "weights"), (MLP, "published"), (MLP, "sinkhorn"), (MLP, "activations"),
                                          (CNN, "weights"), (CNN, "published"), (CNN, "activations")])
def test_alignment_brings_the_anchors_nearer_and_leaves_their_functions(root, tmp_path, net, how):
    argv = arguments(root, tmp_path, net, (0, 1), "--align", how, "--bn_images", "64")
    args = cli.resolve(learn.make_parser().settings(argv))
    work = learn.Work(args, *learn.sources(args), torch.device("cpu"))
    star = work.star
    star.set_vertex(0, runs.load(of(root, net, 2)[0]).network.state_dict())
    before, rows = star.distances(), star.fixed.clone()
    work.begin(star, 0)
    if how != "activations":  # which counts what units say, not their weights
        assert (star.distances() <= before).all() and (star.distances() < before).any()
    for n in range(2):
        perms = {g: p[n] for g, p in star.perms.items()}
        again = permute.apply(star.views(rows[n]), work.axes, perms)
        assert torch.equal(star.flat(again), star.fixed[n])
        network = runs.load(of(root, net, n)[0]).network
        x = torch.randn(4, 1, 8, 8)
        said = network(x)
        network.load_state_dict(permute.apply(weights.of(network), work.axes, perms))
        assert torch.allclose(network(x), said, atol=1e-4)
    after = star.distances()
    work.begin(star, 1)  # from where they are: nothing is lost
    if how != "activations":
        assert (star.distances() <= after + 1e-5).all()


def test_how_often_the_anchors_are_aligned(root, tmp_path):
    def turns(*more):
        args = cli.resolve(learn.make_parser().settings(arguments(root, tmp_path, MLP, (0, 1), *more)))
        work, seen = learn.Work(args, *learn.sources(args), torch.device("cpu")), []
        work.align = lambda star, turn: seen.append(turn)
        for epoch in range(5):
            work.begin(work.star, epoch)
        return seen

    assert turns() == [0, 1, 2, 3, 4] and turns("--align_every", "2") == [0, 1, 2]
    assert turns("--align_every", "0") == [0] and turns("--align", "none") == []


def test_a_star_of_permuted_copies_finds_them_to_be_one_network():
    one, axes = weights.of(small(1)), axes_of(small(0))
    copies = [permute.apply(one, axes, permute.random(axes, seed)) for seed in range(3)]
    mean = stars.aligned_mean(copies, axes, 0)
    said, x = small(1), torch.randn(5, 4)
    before = said(x)
    said.load_state_dict(mean)
    assert torch.allclose(said(x), before, atol=1e-5)
    plain = stars.aligned_mean(copies, None, 0)
    assert torch.allclose(plain["fc1.weight"], sum(c["fc1.weight"] for c in copies) / 3)


def test_wrong_axes_end_the_training_with_the_layer(root, tmp_path, monkeypatch):
    def broken(network):
        axes = axes_of(network)
        return Axes({k: v for k, v in axes.tensors.items() if k != "layer2.0.bn1.bias"}, axes.groups, axes.omitted)

    monkeypatch.setattr("models.axes.axes_of", broken)
    with pytest.raises(ContentError, match=r"layer2\.0\.bn1"):
        learn.main(arguments(root, tmp_path, CNN, (0, 1)))


# ---- the program ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return trained(root, out, CNN, (0, 1), "--held_out", *of(root, CNN, 2), "--held_out_every", "1",
                   "--held_out_images", "64", "--bn_images", "100", "--snapshots", "1", "--samples", "2")


def test_a_star_is_saved_as_a_plain_network_that_knows_its_anchors(root, run):
    held = runs.load(run)
    _, described = runs.read_weights(run / "model.safetensors")
    for file in run.rglob("*.safetensors"):
        assert runs.read_weights(file)[0].keys() == held.network.state_dict().keys(), file
    data = train.make_data(cli.argparse.Namespace(**runs.run_source(run, ["net"]).config))
    results = runs.read_json(run / "results.json")
    found = evaluate.score(held.network, data.test, held.preprocessing)
    assert found["accuracy"] == results["last"]["test_accuracy"]
    own = evaluate.score(held.network, data.train, held.preprocessing)
    assert own["accuracy"] == results["star"]["train_accuracy"]
    said = described["star"]["anchors"]
    assert [a["path"] for a in said] == of(root, CNN, 0, 1)
    assert [a["digest"] for a in said] == [learn.content(weights.of(runs.load(p).network)) for p in of(root, CNN, 0, 1)]
    before = {k: v.clone() for k, v in held.network.state_dict().items() if "running" in k}
    evaluate.reestimate_bn(held.network, data.train, held.preprocessing, rows=data.train.some_rows(100))
    for k, v in before.items():  # statistics at the star
        assert torch.allclose(held.network.state_dict()[k], v, rtol=1e-4, atol=1e-5), k


def test_its_metrics_hold_the_held_out_barrier(run):
    lines = runs.read_metrics(run)
    assert len(lines) == 2 and all(r["held_out_barrier"] >= 0 >= r["held_out_accuracy_barrier"] for r in lines)
    assert lines[-1]["held_out_barrier"] == runs.read_json(run / "results.json")["star"]["held_out_barrier"]
    assert lines[-1]["anchor_distance"] > 0


def test_the_held_out_barrier_is_that_of_star_barriers(root, run, tmp_path):
    """star.barriers on the same images at the same points."""
    _, described = runs.read_weights(run / "model.safetensors")
    args = cli.resolve(learn.make_parser().settings(arguments(
        root, tmp_path, CNN, (0, 1), "--held_out", *of(root, CNN, 2), "--held_out_images", "192")))
    work = learn.Work(args, *learn.sources(args), torch.device("cpu"))
    work.star.set_vertex(0, runs.load(run).network.state_dict())
    found = work.barriers()
    barriers.main(["-a", str(run), "-b", *of(root, CNN, 2), "--align", "weights", "--points", "5", "--bn_images", "192",
                   "--runs", str(tmp_path), "--device", "cpu"])
    (file,) = tmp_path.rglob("results.json")
    (line,) = runs.read_json(file)["lines"]
    assert found["held_out_barrier"] == pytest.approx(line["train"]["loss_barrier"], abs=2e-3)
    assert found["held_out_accuracy_barrier"] == pytest.approx(line["train"]["accuracy_barrier"], abs=0.011)


@pytest.mark.parametrize(("net", "more"), [(MLP, ["--mu", "1", "--samples", "2"]), (CNN, ["--align_every", "2"]),
                                           (MLP, ["--align", "none"])])
def test_resumed_equals_uninterrupted(root, tmp_path, monkeypatch, net, more):
    whole = trained(root, tmp_path / "a", net, (0, 1), *more)
    real, calls = train.take_step, []

    def step(*given):
        calls.append(1)
        if len(calls) in (2, 6):  # of 4 in an epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)

    monkeypatch.setattr(train, "take_step", step)
    for _ in range(2):
        with pytest.raises(Interrupted):
            trained(root, tmp_path / "b", net, (0, 1), *more)
        (state,) = (tmp_path / "b").rglob("resume.pt")
        one = sum(p.numel() for p in runs.load(whole).network.parameters())
        assert state.stat().st_size < 4 * 2.5 * one + 60000  # the star and its momentum, not the anchors
    again = trained(root, tmp_path / "b", net, (0, 1), *more)
    assert len(calls) == 8
    one, two = (runs.read_weights(p / "model.safetensors")[0] for p in (whole, again))
    assert all(torch.equal(one[k], two[k]) for k in one)
    drop = {"seconds"}
    for a, b in zip(runs.read_metrics(whole), runs.read_metrics(again), strict=True):
        assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}


def test_anchors_are_found_in_lists_and_patterns_and_stay_as_they_are(root, tmp_path, capsys):
    folder = tmp_path / "mlp1"
    folder.mkdir()
    for n, path in enumerate(of(root, MLP, 0, 1, 2)):
        torch.save({"state_dict": runs.load(path).network.state_dict()}, folder / f"{n}.pt")
    (tmp_path / "list.txt").write_text("# three\nmlp1/0.pt\nmlp1/1.pt\n\nmlp1/2.pt\n")
    before = {p: p.read_bytes() for p in folder.iterdir()}
    names = set()
    for given in (["mlp1"], ["mlp1/*.pt"], ["list.txt"]):
        argv = [*DATA, *MLP, "--epochs", "1", "--runs", str(tmp_path / "out")]
        assert learn.main([*argv, "--anchors", *(str(tmp_path / g) for g in given)]) == 0
        names.add(capsys.readouterr().out.split("run: ")[1])
    assert len(names) == 1  # the same networks, the same run
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


def test_it_can_begin_at_the_mean_of_its_anchors(root, tmp_path):
    path = trained(root, tmp_path, MLP, (0, 1, 2), "--init", "mean", "--epochs", "0", "--align", "none")
    nets = [weights.of(runs.load(p).network) for p in of(root, MLP, 0, 1, 2)]
    mean = weights.combine(nets, [1 / 3] * 3)
    found = runs.load(path).network.state_dict()
    assert all(torch.allclose(found[k], mean[k], atol=1e-6) for k in mean)


def test_a_plan_and_a_timing_write_nothing(root, tmp_path, capsys):
    learn.main(arguments(root, tmp_path, MLP, (0, 1), "--dry_run"))
    assert "trained: " in capsys.readouterr().out
    learn.main(arguments(root, tmp_path, MLP, (0, 1), "--time_steps", "4"))
    assert "timed: " in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_what_it_refuses(root, tmp_path, monkeypatch):
    mlps, out = of(root, MLP, 0, 1, 2, 3), tmp_path / "out"

    def refused(error, match, *more, net=MLP):
        with pytest.raises(error, match=match):
            learn.main([*DATA, *net, "--epochs", "1", "--runs", str(out), *map(str, more)])
        assert not out.exists()

    refused(UsageError, "at least one anchor")
    (tmp_path / "empty.txt").write_text("# none\n")
    refused(UsageError, "at least one anchor", "--anchors", tmp_path / "empty.txt")
    refused(FileProblem, "matches nothing", "--anchors", tmp_path / "*.pt")
    refused(FileProblem, "nowhere", "--anchors", "nowhere")
    refused(ContentError, "its name is resnet20, not mlp1", "--anchors", mlps[0], *of(root, CNN, 0))
    refused(ContentError, "its width is 12, not 16", "--anchors", *mlps, net=["--net", "mlp1", "--width", "16"])
    refused(UsageError, "among --anchors and among --held_out", "--anchors", *mlps, "--held_out", mlps[2])
    copy = tmp_path / "copy.pt"
    torch.save(runs.load(mlps[1]).network.state_dict(), copy)
    refused(UsageError, "has the weights of .*copy.pt", "--anchors", *mlps, "--held_out", copy)
    listed, bad = [], tmp_path / "bad.pt"
    bad.write_bytes(b"PK not a network")
    for n in range(49):
        listed.append(mlps[n % 3])
    (tmp_path / "fifty.txt").write_text("\n".join([*listed[:30], str(bad), *listed[30:]]))
    refused(ContentError, r"bad\.pt", "--anchors", tmp_path / "fifty.txt")
    half = tmp_path / "half"
    shutil.copytree(mlps[0], half)
    (half / "done").unlink()
    refused(FileProblem, "half holds no finished run", "--anchors", mlps[1], half)
    refused(UsageError, "--samples 100 is more", "--anchors", *mlps, "--samples", "100")
    refused(UsageError, "not offered for stars", "--anchors", *mlps, "--sam_radius", "0.1")
    refused(UsageError, "not offered for stars", "--anchors", *mlps, "--train_mode", "adv")
    refused(UsageError, "needs --held_out", "--anchors", *mlps, "--held_out_every", "1")
    refused(UsageError, "give one of the two", "--anchors", *mlps, "--init", "mean", "--init_from", copy)
    torch.save(models.build("mlp1", 7, in_channels=1, image_size=8, width=12).state_dict(), copy)
    refused(ContentError, "another class count", "--anchors", copy)
    monkeypatch.delattr("models.mlp.FullyConnected.axes")
    refused(ModelError, "--align none", "--anchors", *mlps)
    assert learn.main(arguments(root, out, MLP, (0, 1), "--align", "none")) == 0
