"""Training lines, curves and simplexes: what is saved is loaded anywhere, resumed to the bit, fixed ends stay."""

import os
import signal
from pathlib import Path

import pytest
import torch

import main
import save_preds
from landscape import cli, evaluate, runs, seeding, subspace, train, weights
from landscape.errors import ContentError, FileProblem, Interrupted, UsageError
from models import ModelError
from subspaces import convert
from subspaces import train as learn

torch.set_num_threads(1)
TINY = ["--dataset", "digits", "--net", "resnet20", "--width", "4", "--train_size", "192", "--val_size", "64",
        "--epochs", "2", "--bs", "48", "--precision", "fp32", "--device", "cpu", "--threads", "1", "--lr", "0.05",
        "--bn_images", "100"]  # fmt: skip


def trained(root, *more):
    """The run folder of a small training."""
    argv = [*TINY, *more, "--runs", str(root)]
    assert learn.main(argv) == 0
    args = cli.resolve(learn.make_parser().settings(argv))
    learn.check(args)
    return runs.folder("subspaces", args)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("subspaces")


@pytest.fixture(scope="module")
def line(root):
    return trained(root)


@pytest.fixture(scope="module")
def standard(root):
    return [trained(root, "--family", "standard", "--seed", str(s)) for s in (1, 2)]


def space_of(path):
    return subspace.split_state(runs.read_weights(path / "model.safetensors")[0])


def data_of(path):
    config = runs.run_source(path, ["net"]).config
    return train.make_data(cli.argparse.Namespace(**config))


def test_a_run_is_loaded_as_its_centre_and_says_what_was_measured(line):
    held = runs.load(line)
    vertices, _ = space_of(line)
    middle = weights.combine(vertices, [0.5, 0.5])
    assert torch.allclose(held.network.state_dict()["linear.weight"], middle["linear.weight"])
    found = evaluate.score(held.network, data_of(line).test, held.preprocessing)
    last = runs.read_json(line / "results.json")["last"]
    assert found["accuracy"] == last["test_accuracy"] and abs(found["loss"] - last["test_loss"]) < 1e-5
    assert not held.stale and runs.load(line, point="t=0.3").stale


def test_its_statistics_are_those_of_the_centre(line):
    held = runs.load(line)
    data = data_of(line)
    before = {k: v.clone() for k, v in held.network.state_dict().items() if "running" in k}
    evaluate.reestimate_bn(held.network, data.train, held.preprocessing, rows=data.train.some_rows(100))
    for k, v in before.items():
        assert torch.allclose(held.network.state_dict()[k], v, rtol=1e-4, atol=1e-5), k


def test_a_line_of_no_steps_holds_the_standard_network_of_its_seed(root):
    vertices, _ = space_of(trained(root, "--epochs", "0"))
    one = runs.load(trained(root, "--epochs", "0", "--family", "standard")).network.state_dict()
    assert all(torch.equal(w, one[k]) for k, w in vertices[0].items())
    assert not torch.equal(vertices[1]["conv1.weight"], one["conv1.weight"])


def test_points_are_accepted_where_runs_are(line, standard, tmp_path, capsys):
    for point in ("centre", "vertex=1", "t=0.3"):
        argv = ["--load_net", str(line), "--point", point, "--device", "cpu", "--resolution", "6",
                "--dataset", "digits", "--imgs", "5,42,17"]
        assert main.main([*argv, "--plot_path", str(tmp_path / point)]) == 0
    planes = sorted((line / "arrays").glob("plane-*.npz"))
    maps = [runs.read_arrays(f)["confidence"] for f in planes]
    assert len(planes) == 3 and not (maps[0] == maps[1]).all() and not (maps[1] == maps[2]).all()
    assert save_preds.main(["--load_net", str(line), "--point", "vertex=0", "--planes", "2", "--resolution", "5",
                            "--device", "cpu"]) == 0
    for path, point, error, says in ((standard[0], "vertex=1", UsageError, "holds one network, not a subspace"),
                                     (line, "vertex=2", UsageError, "vertex=0 … vertex=1"),
                                     (line, "t=1.2", UsageError, "T in [0, 1]")):
        with pytest.raises(error) as caught:
            main.main(["--load_net", str(path), "--point", point, "--dataset", "digits", "--imgs", "5,42,17"])
        assert says in str(caught.value)


def test_a_loaded_point_has_statistics_of_its_own(line):
    args = cli.library(dataset="digits", net="resnet20")
    args.bn_images, entry = 100, data_of(line).entry
    centre, vertex = (train.load_network(line, "resnet20", args, entry, point=p) for p in ("centre", "vertex=0"))
    changed = [k for k, v in centre.network.state_dict().items()
               if "running_mean" in k and torch.equal(v, vertex.network.state_dict()[k])]
    assert not changed


def test_several_points_stand_on_one_plane(line, tmp_path, capsys):
    argv = ["--load_net", str(line), "--device", "cpu", "--resolution", "6", "--dataset", "digits", "--imgs", "5,42,17"]
    assert main.main([*argv, "--point", "vertex=0;centre;vertex=1", "--plot_path", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 1
    planes = [runs.read_arrays(f) for f in (line / "arrays").glob("plane-*.npz")]
    assert len(planes) >= 3 and all((p["anchors"] == planes[0]["anchors"]).all() for p in planes)


@pytest.mark.parametrize("net", ["vit4", "mlpmixer4"])
def test_networks_without_convolutions_learn_as_lines(tmp_path, net):
    argv = ["--dataset", "digits", "--net", net, "--width", "16", "--epochs", "2", "--bs", "32", "--opt", "Adam",
            "--lr", "0.002", "--train_size", "320", "--precision", "fp32", "--device", "cpu", "--threads", "1"]
    assert learn.main([*argv, "--runs", str(tmp_path)]) == 0
    first, last = (r["train_loss"] for r in runs.read_metrics(next(tmp_path.glob("subspaces/*"))))
    assert last < first


@pytest.mark.parametrize(("config", "shape", "classes"), [
    ("tinyimagenet", "fake:3x64x64:200:40", 200), ("imagenet", "fake:3x224x224:1000:6", 1000)])
def test_the_published_settings_run_on_images_of_their_shape(tmp_path, config, shape, classes):
    path = Path(__file__).resolve().parent.parent / "configs" / f"subspaces_{config}.yaml"
    argv = ["--config", str(path), "--dataset", shape, "--smoke", "--train_size", "4", "--bs", "4", "--threads", "1"]
    assert learn.main([*argv, "--runs", str(tmp_path)]) == 0
    (done,) = tmp_path.glob("smoke/subspaces/*/done")
    held = runs.read_json(done.parent / "results.json")
    assert held["architecture"]["num_classes"] == classes
    assert held["architecture"]["image_size"] == int(shape.split("x")[1])
    assert runs.run_source(done.parent, ["net"]).config["val_size"] == 0  # they trained on all
    assert (done.parent / "model.safetensors").stat().st_size > 4 * held["parameters"]


@pytest.mark.parametrize("more", [
    [], ["--family", "curve", "--granularity", "module"], ["--family", "simplex", "--vertices", "3", "--samples", "2"],
    ["--decay", "point", "--pairs", "all", "--per_layer"],
])  # fmt: skip
def test_resumed_equals_uninterrupted(tmp_path, monkeypatch, more):
    whole = trained(tmp_path / "a", *more)
    real, calls = train.take_step, []

    def step(*given):
        calls.append(1)
        if len(calls) in (2, 5):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)

    monkeypatch.setattr(train, "take_step", step)
    for _ in range(2):
        with pytest.raises(Interrupted):
            trained(tmp_path / "b", *more)
    again = trained(tmp_path / "b", *more)
    assert (whole / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert runs.read_json(whole / "results.json") == runs.read_json(again / "results.json")


def test_a_curve_passes_through_its_fixed_ends(root, standard):
    curve = trained(root, "--family", "curve", "--ends", ",".join(map(str, standard)))
    vertices, _ = space_of(curve)
    for end, path in ((0, standard[0]), (2, standard[1])):
        own = runs.load(path).network.state_dict()
        assert all(torch.equal(w, own[k]) for k, w in vertices[end].items())
        at = runs.load(curve, point=f"t={end // 2}").network.state_dict()
        assert all(torch.equal(at[k], own[k]) for k in vertices[end])
    middle = weights.lerp(vertices[0], vertices[2], 0.5)
    assert not torch.allclose(vertices[1]["conv1.weight"], middle["conv1.weight"])


def test_the_regulariser_pushes_vertices_apart(root, standard):
    def cosine(beta):
        start = str(standard[0] / "model.safetensors")
        run = trained(root, "--init_from", start, "--start_noise", "0.5", "--beta", beta)
        return runs.read_json(run / "results.json")["vertices"]["squared_cosines"][0]

    kept, pushed = cosine("0"), cosine("100")
    assert kept > 0.6 and pushed < kept - 0.1


def test_start_takes_trained_networks_as_vertices(root, standard):
    vertices, _ = space_of(trained(root, "--epochs", "0", "--start", ",".join(map(str, standard))))
    own = runs.load(standard[1]).network.state_dict()
    assert all(torch.equal(w, own[k]) for k, w in vertices[1].items())


def test_a_rescaled_step_moves_the_centre_as_that_of_one_network():
    """Vertices that are equal make every point the same, so the centre's steps are known exactly."""
    args = cli.resolve(learn.make_parser().settings(
        ["--family", "simplex", "--vertices", "3", "--rescale_lr", "--lr", "0.2", "--weight_decay", "0.01"]))
    learn.check(args)
    scaled = learn.rescaled(args)
    assert abs(scaled.lr - 0.6) < 1e-6 and abs(scaled.weight_decay - 0.01 / 3) < 1e-9
    assert abs(learn.rescaled(args).swa_lr - 0.15) < 1e-6 and args.lr == 0.2
    with seeding.fork(0, "net"):
        network = torch.nn.Linear(4, 3)
    own = weights.of(network)
    space = subspace.Subspace(torch.nn.Linear(4, 3), [own] * 3, subspace.rule("simplex", 3)).train()
    x, y = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
    for model, rates in ((network, args), (space, scaled)):
        optimiser = torch.optim.SGD(model.parameters(), rates.lr, momentum=0.9, weight_decay=rates.weight_decay)
        with seeding.fork(1, "draw"):
            torch.nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    centre = space.point(space.centre)
    assert all(torch.allclose(centre[k], v, atol=1e-6) for k, v in network.state_dict().items())


def test_dropout_and_standard_training(root, standard):
    more = ["--family", "standard", "--net", "resnet20_proj"]
    plain, dropped = (runs.read_json(trained(root, *more, "--dropout", p) / "results.json") for p in ("0", "0.5"))
    assert plain["last"]["train_loss"] != dropped["last"]["train_loss"]
    vertices = runs.load(standard[0]).network.state_dict()
    assert "conv1.weight" in vertices


def test_ema_is_the_average_of_the_steps_and_resumes(root, tmp_path, monkeypatch):
    more = ["--family", "standard", "--net", "mlp", "--ema", "0.6"]
    seen, real = [], train.take_step

    def step(network, *given):
        out = real(network, *given)
        seen.append({k: v.detach().clone() for k, v in network.live.named_parameters()})
        return out

    with monkeypatch.context() as patch:
        patch.setattr(train, "take_step", step)
        with seeding.fork(1, "init"):
            start = runs.build({"name": "mlp", "num_classes": 10, "in_channels": 1, "image_size": 8, "width": 4})
        run = trained(root, *more)
    average = {k: v.detach() for k, v in start.named_parameters()}
    for weights_of_step in seen:
        average = {k: 0.6 * average[k] + 0.4 * w for k, w in weights_of_step.items()}
    held = runs.load(run)
    assert all(torch.allclose(held.network.state_dict()[k], w, atol=1e-5) for k, w in average.items())
    last = runs.read_json(run / "results.json")["last"]
    found = evaluate.score(held.network, data_of(run).test, held.preprocessing)
    assert found["accuracy"] == last["test_accuracy"]


@pytest.mark.parametrize(("flags", "code", "says"), [
    (["--family", "curve", "--vertices", "2"], 2, "with two vertices it is a line"),
    (["--family", "simplex", "--vertices", "1"], 2, "one vertex is a network"),
    (["--family", "line", "--vertices", "3"], 2, "a line has 2 vertices"),
    (["--beta", "-1"], 2, "at least 0"),
    (["--family", "star"], 2, "invalid choice: 'star'"),
    (["--granularity", "layer"], 2, "module"),
    (["--family", "line", "--ends", "a,b"], 2, "leaves nothing to train"),
    (["--family", "curve", "--ends", "a"], 2, "2 networks are expected"),
    (["--family", "curve", "--ends", "no/such,run"], 3, "no/such"),
    (["--start", "a,b,c"], 2, "2 networks are expected"),
    (["--start_noise", "0.1"], 2, "needs --init_from"),
    (["--init_from", "a.safetensors"], 2, "they stay equal"),
    (["--family", "standard", "--rescale_lr"], 2, "trains one network"),
    (["--family", "standard", "--vertices", "2"], 2, "trains one network"),
    (["--rescale_lr", "--opt", "Adam"], 2, "is for SGD"),
    (["--ema", "0.9"], 2, "is of one network"),
    (["--ema", "0.9", "--family", "standard", "--accumulate", "2"], 2, "count a step twice"),
    (["--ema", "0.9", "--family", "standard", "--snapshots", "all"], 2, "keeps the average at the end"),
    *((["--family", "standard", f"--{flag}", value], 2, f"--{flag} is of a subspace") for flag, value in (
        ("samples", "2"), ("granularity", "module"), ("decay", "point"), ("pairs", "all"), ("beta", "0"))),
    (["--accumulate", "2"], 2, "what --samples is for"),
    (["--decay", "point", "--opt", "AdamW"], 2, "not for AdamW"),
    (["--sam_radius", "0.05"], 2, "two passes"),
    (["--train_mode", "adv"], 2, "not offered for subspaces"),
    (["--samples", "25"], 2, "--bs 48 images has two"),
    (["--dropout", "0.3"], 2, "no dropout"),
    (["--scheduler", "swa_cyclic", "--snapshots", "cycles"], 2, "too few"),
])  # fmt: skip
def test_wrong_settings_are_refused_before_anything_is_written(tmp_path, flags, code, says):
    with pytest.raises((UsageError, FileProblem, ModelError, ContentError)) as caught:
        learn.main([*TINY, *flags, "--runs", str(tmp_path)])
    assert caught.value.exit_code == code and says in str(caught.value), str(caught.value)
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]


def test_ends_of_another_architecture_are_refused(root, standard, tmp_path):
    other = trained(root, "--family", "standard", "--width", "8")
    with pytest.raises(ContentError, match="its width is 8, not 4"):
        learn.main([*TINY, "--family", "curve", "--ends", f"{standard[0]},{other}", "--runs", str(tmp_path)])
    inputs = trained(root, "--family", "standard", "--normalize", "none")
    with pytest.raises(ContentError, match="normalised otherwise"):
        learn.main([*TINY, "--family", "curve", "--ends", f"{standard[0]},{inputs}", "--runs", str(tmp_path)])


def test_a_module_that_cannot_be_mixed_is_refused(tmp_path, monkeypatch):
    (tmp_path / "hoarder.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n"
        "    def __init__(self, num_classes, in_channels, image_size):\n"
        "        super().__init__()\n"
        "        self.w = torch.nn.Parameter(torch.randn(in_channels * image_size**2, num_classes))\n"
        "        self.copy = [self.w.detach().clone()]\n"
        "    def forward(self, x):\n        return x.flatten(1) @ self.copy[0] + 0 * self.w.sum()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="keeps copies of them elsewhere"):
        learn.main(["--dataset", "digits", "--net", "hoarder:Net", "--epochs", "1", "--runs", str(tmp_path / "r")])


# ---- checkpoints of learning-subspaces -----------------------------------------------------------------------------

def published(vertices, buffers, to):
    """What the published code saves of vertices in its order, under its names, as of a GPU."""
    state = {}
    for k, vertex in enumerate(vertices):
        for name, w in vertex.items():
            stem, _, kind = to(name).rpartition(".")
            w = w.reshape(*w.shape, 1, 1) if stem == "fc" else w
            state[f"module.{stem}.{kind}{k or ''}"] = w
    state |= {"module." + to(name): b for name, b in buffers.items()}
    return {"epoch": 160, "iter": 62560, "arch": "CIFARResNet", "state_dicts": [state], "optimizers": [{"state": {}}],
            "best_acc1": 93.1, "curr_acc1": 93.0}


def theirs(name):
    """Our name of a parameter of resnet20_proj in theirs."""
    head, _, rest = name.partition(".")
    if head.startswith("layer"):
        block, _, rest = rest.partition(".")
        return f"blocks.{3 * (int(head[5:]) - 1) + int(block)}.{rest}"
    return f"{ {'conv1': 'conv', 'bn1': 'bn', 'linear': 'fc'}[head] }.{rest}"


@pytest.mark.parametrize(("family", "m"), [("line", 2), ("curve", 3), ("simplex", 4), ("standard", 1)])
def test_their_checkpoints_load(tmp_path, family, m):
    architecture = {"name": "resnet20_proj", "num_classes": 10, "in_channels": 1, "image_size": 8, "width": 0}
    nets = []
    for k in range(m):
        with seeding.fork(0, k):
            nets.append(runs.build(architecture))
    own = [{k: v.detach() for k, v in n.named_parameters()} for n in nets]
    buffers = {k: v for k, v in nets[0].state_dict().items() if k not in own[0]}
    torch.save(published(own, buffers, theirs), tmp_path / "epoch_160_iter_62560.pt")
    out = tmp_path / "made.safetensors"
    argv = [str(tmp_path / "epoch_160_iter_62560.pt"), "--family", family, "--out", str(out), "--dataset", "digits",
            "--normalize", "dataset"]
    assert convert.main([*argv, "--as_stored"]) == 0
    order = {"curve": [0, 2, 1]}.get(family, range(m))
    for k, theirs_k in enumerate(order):
        at = runs.load(out, point=f"vertex={k}" if m > 1 else "").network.state_dict()
        assert all(torch.equal(at[name], w) for name, w in own[theirs_k].items())
        assert all(torch.equal(at[name], b) for name, b in buffers.items())
    if family == "curve":  # 1/4 w0 + 1/2 w2 + 1/4 w1
        middle = weights.combine(own, [0.25, 0.25, 0.5])
        assert torch.allclose(runs.load(out).network.state_dict()["conv1.weight"], middle["conv1.weight"], atol=1e-6)
    assert convert.main([*argv, "--bn_images", "200"]) == 0
    assert not torch.equal(runs.load(out).network.state_dict()["bn1.running_mean"], buffers["bn1.running_mean"])


def test_what_cannot_be_converted_is_refused(tmp_path):
    network = runs.build({"name": "mlp", "num_classes": 10, "in_channels": 1, "image_size": 8, "width": 4})
    torch.save(network.state_dict(), tmp_path / "a.pt")
    base = ["--out", str(tmp_path / "o.safetensors"), "--dataset", "digits", "--normalize", "dataset", "--as_stored"]
    with pytest.raises(UsageError, match="holds 1 vertices"):
        convert.main([str(tmp_path / "a.pt"), *base, "--net", "mlp"])
    with pytest.raises(ContentError, match="is not a resnet20_proj"):
        convert.main([str(tmp_path / "a.pt"), *base, "--family", "standard"])
    with pytest.raises(UsageError, match="ends in .safetensors"):
        convert.main([str(tmp_path / "a.pt"), "--out", "x.pt"])
