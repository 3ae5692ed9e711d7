"""A stack of networks against the same networks trained one after the other: weights, curves, results, folders."""

import json
import signal
from pathlib import Path

import pytest
import torch

from double_descent import deep
from landscape import cli, runs, stacked, train
from landscape.errors import ContentError, Interrupted, UsageError

torch.set_num_threads(1)
CPU = torch.device("cpu")
OWN = ({"seed": 0}, {"seed": 1, "noise_rate": 0.3}, {"seed": 2, "noise_rate": 0.3, "noise_seed": 5},
       {"seed": 0, "order_seed": 7, "augment_seed": 8}, {"seed": 3, "data_seed": 4})  # fmt: skip


def settings(root, own=OWN, **changes):
    """Small trainings on digits: five steps an epoch, the last of them short."""
    small = dict(dataset="digits", net="mlp", width=8, train_size=150, val_size=60, epochs=4, bs=32, lr=0.05,
                 augment="crop", precision="fp32", eval_every=2, device="cpu", runs=str(root),
                 snapshots="0,2" if changes.get("epochs", 4) > 1 else "0")
    return [cli.library(**{**small, **changes, **one}) for one in own]


def one_by_one(members):
    for args in members:
        with runs.start("study", args) as run:
            train.train(run, args, CPU)


def outcome(args):
    """(weights by file, lines of metrics, results, settings) that a finished training left."""
    folder = runs.folder("study", args)
    assert (folder / "done").exists() and not (folder / "resume.pt").exists()
    weights = {str(f.relative_to(folder)): runs.read_weights(f)[0] for f in sorted(folder.rglob("*.safetensors"))}
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in runs.read_metrics(folder)]
    config = {k: v for k, v in runs.run_source(folder, ()).config.items() if k != "runs"}
    return weights, lines, runs.read_json(folder / "results.json"), config


def flat(value, at=""):
    """{path: leaf} of nested dicts and lists."""
    if not isinstance(value, dict | list):
        return {at: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, part in items for k, v in flat(part, f"{at}/{key}").items()}


def assert_same(ours, theirs, tolerance=2e-5):
    """Equal to the rounding of float32 in all that two trainings of each of the settings left; 0: to the bit."""
    for a, b in zip(ours, theirs, strict=True):
        one, other = runs.folder("study", a), runs.folder("study", b)
        assert one.name == other.name and {p.name for p in one.iterdir()} == {p.name for p in other.iterdir()}
        (weights, *rest, config), (others, *expected, their_config) = outcome(a), outcome(b)
        assert weights.keys() == others.keys() and config == their_config
        for file, held in weights.items():
            assert held.keys() == others[file].keys()
            for name, value in held.items():
                assert value.dtype == others[file][name].dtype
                assert torch.allclose(value, others[file][name], atol=tolerance, rtol=tolerance), (file, name)
        rest, expected = flat(rest), flat(expected)
        assert rest.keys() == expected.keys()
        for key, value in rest.items():
            assert value == (pytest.approx(expected[key], abs=tolerance) if isinstance(value, float) else expected[key])


# ---- equal to separate training ------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [
    {"nesterov": True, "scheduler": "cosine", "warmup": 0.5, "weight_decay": 0.01},
    {"opt": "Adam", "lr": 0.003, "augment": "crop,flip,rotate"},
    {"opt": "AdamW", "lr": 0.003, "label_smoothing": 0.2, "momentum": 0.0, "val_size": 0},
    {"momentum": 0.0, "eval_every": 0, "snapshots": "", "train_size": 129, "augment": "none"},
    {"net": "mcnn", "width": 2, "epochs": 2, "train_size": 80},
], ids=["sgd-nesterov-decay", "adam", "adamw-smoothed", "sgd-plain", "batchnorm"])  # fmt: skip
def test_a_stack_is_its_members_trained_separately(tmp_path, changes, capsys):
    ours, theirs = settings(tmp_path / "a", **changes), settings(tmp_path / "b", **changes)
    stacked.train_all("study", ours, CPU, "always")
    assert "5 networks, stacked" in capsys.readouterr().out
    one_by_one(theirs)
    assert_same(ours, theirs)


def test_members_differ_and_their_images_are_held_once(tmp_path):
    members = stacked.prepare(settings(tmp_path), CPU)
    assert len({id(m.data.train.store) for m in members}) == 1 and len({id(m.data.test) for m in members}) == 1
    labels = {tuple(m.data.train.labels.tolist()) for m in members}
    assert len(labels) == 4 and members[0].data is members[3].data
    expected = [train.make_data(m.args) for m in members]
    for m, data in zip(members, expected):
        for part in ("train", "val", "test"):
            mine, theirs = getattr(m.data, part), getattr(data, part)
            assert torch.equal(mine.labels, theirs.labels) and torch.equal(mine.images, theirs.images)


def test_a_member_is_a_view_of_its_stack(tmp_path):
    members = stacked.prepare(settings(tmp_path, net="mcnn", width=1), CPU)
    before = [{k: v.clone() for k, v in m.network.state_dict().items()} for m in members]
    stack = stacked.Stack([m.network for m in members])
    for m, member in enumerate(members):
        for name, value in member.network.state_dict().items():
            assert torch.equal(value, before[m][name]) and torch.equal(stack.held()[name][m], value)
    with torch.no_grad():
        for p in stack.parameters():
            p[3] += 1
    assert torch.equal(members[3].network.state_dict()["0.bias"], before[3]["0.bias"] + 1)
    assert torch.equal(members[2].network.state_dict()["0.bias"], before[2]["0.bias"])


# ---- finished, stopped, failed -------------------------------------------------------------------------------------

def test_finished_members_are_left_alone(tmp_path):
    ours, theirs = settings(tmp_path / "a"), settings(tmp_path / "b")
    one_by_one(ours[1:3])
    files = [f for args in ours[1:3] for f in runs.folder("study", args).rglob("*")]
    before = {f: f.stat().st_mtime_ns for f in files}
    stacked.train_all("study", ours, CPU, "always")
    one_by_one(theirs)
    assert_same(ours, theirs)
    assert before == {f: f.stat().st_mtime_ns for f in files}
    stacked.train_all("study", ours, CPU, "always")
    assert before == {f: f.stat().st_mtime_ns for f in files}


def stopping(monkeypatch, module, call):
    """Ask this process to stop in the call-th step from now on."""
    plain, steps = module.take_step, [0]

    def step(*args):
        steps[0] += 1
        if steps[0] == call:
            signal.raise_signal(signal.SIGTERM)
        return plain(*args)

    monkeypatch.setattr(module, "take_step", step)
    monkeypatch.setattr(stacked, "measure", lambda *_: (2.0, 1.0))


@pytest.mark.parametrize("opt", ["SGD", "Adam"])
def test_a_stopped_stack_goes_on_as_a_stack_or_one_by_one(tmp_path, monkeypatch, opt):
    whole, again, singly = (settings(tmp_path / part, opt=opt, lr=0.01) for part in ("whole", "again", "singly"))
    stacked.train_all("study", whole, CPU, "always")
    for calls, ours in (((3, 7, 1, 4), again), ((8,), singly)):  # of 5 steps an epoch and 20 in all
        for call in calls:
            with monkeypatch.context() as patch, pytest.raises(Interrupted, match="5 networks .* resumes them") as stop:
                stopping(patch, stacked, call)
                stacked.train_all("study", ours, CPU, "always")
            assert stop.value.exit_code == 75 and "\n" not in str(stop.value)
        states = [torch.load(runs.folder("study", a) / "resume.pt", weights_only=True) for a in ours]
        assert len({(s["epoch"], s["step"]) for s in states}) == 1
    stacked.train_all("study", again, CPU, "always")
    stacked.train_all("study", singly, CPU, "never")
    assert_same(again, whole, 0)
    assert_same(singly, whole)


def test_what_one_by_one_left_behind_goes_on_in_stacks(tmp_path, monkeypatch):
    ours, theirs = settings(tmp_path / "a"), settings(tmp_path / "b")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stopping(patch, train, 20 + 8)  # the first is done, the second stands in epoch 2, three have not begun
        stacked.train_all("study", ours, CPU, "never")
    seen, plain = [], stacked.fit
    monkeypatch.setattr(stacked, "fit", lambda members, *more: (seen.append(len(members)), plain(members, *more)))
    stacked.train_all("study", ours, CPU, "always")
    assert seen == [3]
    one_by_one(theirs)
    assert_same(ours, theirs)


def test_states_are_saved_on_the_way(tmp_path):
    """And a saved state holds one network, not the stack that its tensors are views of."""
    ours = settings(tmp_path, save_every=0.0)
    held, plain = [], runs.Run.save_state

    def save_state(run, state):
        plain(run, state)
        held.append((run.path, state["epoch"], state["step"], (run.path / "resume.pt").stat().st_size))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.Run, "save_state", save_state)
        stacked.train_all("study", ours, CPU, "always")
        lone = settings(tmp_path / "lone", save_every=0.0)[:1]
        count = len(held)
        one_by_one(lone)
    own = [h[1:3] for h in held[:count] if h[0] == runs.folder("study", ours[0])]
    assert own == [h[1:3] for h in held[count:]] and len(own) == 20
    assert held[0][3] < 1.2 * held[count][3]


def test_one_that_diverges_stops_no_other(tmp_path, monkeypatch):
    ours, theirs = settings(tmp_path / "a"), settings(tmp_path / "b")
    plain = train.make_network

    def make_network(args, data):
        network, described = plain(args, data)
        if args.init_seed == 1:
            network.fc1.weight.data[0, 0] = float("nan")
        return network, described

    monkeypatch.setattr(train, "make_network", make_network)
    for mode in ("always", "never"):
        with pytest.raises(ContentError, match="1 of 5 networks failed, .*the loss is not finite in epoch 1, step 1"):
            stacked.train_all("study", ours if mode == "always" else theirs, CPU, mode)
    assert not (runs.folder("study", ours[1]) / "done").exists()
    assert_same([ours[0], *ours[2:]], [theirs[0], *theirs[2:]])


def test_a_damaged_state_stops_no_other(tmp_path):
    ours = settings(tmp_path)
    runs.start("study", ours[2]).close()
    (runs.folder("study", ours[2]) / "resume.pt").write_bytes(b"half")
    with pytest.raises(ContentError, match="1 of 5 networks failed, .*resume.pt is damaged"):
        stacked.train_all("study", ours, CPU, "always")
    assert sum((runs.folder("study", a) / "done").exists() for a in ours) == 4


# ---- the choice ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("times", "stacks"), [((1.0, 1.0), False), ((1.19, 1.0), False), ((1.21, 1.0), True)])
def test_it_stacks_only_where_that_was_measured_to_be_faster(tmp_path, monkeypatch, capsys, times, stacks):
    members = settings(tmp_path, epochs=1)
    seen, plain = [], stacked.fit
    monkeypatch.setattr(stacked, "measure", lambda *_: times)
    monkeypatch.setattr(stacked, "fit", lambda *given: (seen.append(1), plain(*given)))
    stacked.train_all("study", members, CPU, "auto")
    assert bool(seen) == stacks and all((runs.folder("study", a) / "done").exists() for a in members)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (f"5 networks, {'stacked' if stacks else 'one after the other'}: a step of all takes 1000.00 ms "
                    f"stacked, {times[0] * 1e3:.2f} ms one after the other")


def test_measuring_trains_nothing(tmp_path):
    members = stacked.prepare(settings(tmp_path / "a", net="mcnn", width=1), CPU)
    before = [{k: v.clone() for k, v in m.network.state_dict().items()} for m in members]
    assert min(stacked.measure(members, CPU)) > 0 and not list(tmp_path.rglob("*"))
    assert all(torch.equal(v, before[m][k]) for m, x in enumerate(members) for k, v in x.network.state_dict().items())


def test_both_ways_are_measured_on_what_training_does(tmp_path, monkeypatch):
    """The timed steps are those of the first epoch: the same losses, one after the other and stacked."""
    members = stacked.prepare(settings(tmp_path), CPU)
    alone, together, plain, plain_stack = [], [], train.take_step, stacked.take_step
    monkeypatch.setattr(train, "take_step", lambda *a: (alone.append(plain(*a)), alone[-1])[1])
    monkeypatch.setattr(stacked, "take_step", lambda *a: (together.append(plain_stack(*a)), together[-1])[1])
    stacked.measure(members, CPU)
    assert len(together) == 1 + stacked.ROUNDS and len(alone) == 5 * len(together)
    alone, together = torch.stack([loss for loss, _ in alone]), torch.cat([losses for losses, _ in together])
    assert torch.allclose(alone, together, atol=1e-5)


def test_a_lone_last_image_is_left_out_of_the_timed_steps_too(tmp_path, monkeypatch):
    sizes, plain = [], train.take_step
    monkeypatch.setattr(train, "take_step", lambda *a: (sizes.append(len(a[3][0])), plain(*a))[1])
    stacked.measure(stacked.prepare(settings(tmp_path, OWN[:2], train_size=65), CPU), CPU)
    assert set(sizes) == {32}


OTHER = {"train_mode": "mixup", "precision": "bf16", "accumulate": 2, "clip_norm": 1.0, "sam_radius": 0.1,
         "compile": True, "active_log": True}  # fmt: skip


@pytest.mark.parametrize("key", stacked.STACKS)
def test_what_a_stack_cannot_do_is_no_stack(tmp_path, key):
    member = stacked.prepare(settings(tmp_path, OWN[:1]), CPU)[0]
    assert stacked.obstacle(member) == ""
    vars(member.args)[key] = OTHER[key]
    assert stacked.obstacle(member) == f"--{key} {OTHER[key]}"


@pytest.mark.parametrize(("changes", "why"), [
    ({"clip_norm": 0.1}, "--clip_norm 0.1"),
    ({"net": "vit4", "width": 16, "epochs": 1, "train_size": 32}, "random operation"),  # its dropout
    ({"epochs": 0}, "--epochs 0"),
], ids=["clipping", "dropout", "nothing to train"])  # fmt: skip
def test_what_cannot_be_stacked_is_trained_one_after_the_other(tmp_path, capsys, changes, why):
    ours, theirs = (settings(tmp_path / part, OWN[:2], **changes) for part in ("a", "b"))
    with pytest.raises(UsageError, match=f"--stack always: .*{why}"):
        stacked.train_all("study", ours, CPU, "always")
    assert not list(tmp_path.rglob("config.yaml"))
    stacked.train_all("study", ours, CPU, "auto")
    said = capsys.readouterr().out
    assert said.startswith("2 networks, one after the other: they cannot be stacked (") and why in said
    one_by_one(theirs)
    assert_same(ours, theirs, 0)


def test_members_are_alike_in_all_else(tmp_path):
    with pytest.raises(ValueError, match="differ in lr"):
        stacked.train_all("study", [*settings(tmp_path)[:1], *settings(tmp_path, lr=0.1)], CPU, "auto")


# ---- python -m double_descent.deep ---------------------------------------------------------------------------------

COMMON = ["--dataset", "digits", "--net", "mlp", "--width", "4", "--train_size", "100", "--epochs", "2", "--lr", "0.01",
          "--eval_every", "0", "--threads", "1", "--device", "cpu"]  # fmt: skip


def held(root):
    """{name of a run: (settings, results, weights)}"""
    found = {}
    for done in Path(root).rglob("done"):
        source = runs.run_source(done.parent, ())
        config = {k: v for k, v in source.config.items() if k not in ("runs", "seed", "noise_rate", "noise_seed")}
        found[done.parent.name] = config, json.loads((done.parent / "results.json").read_text())
    return found


def test_a_command_for_several_makes_the_runs_of_a_command_for_each(tmp_path, capsys):
    several = [*COMMON, "--seeds", "0-1,5", "--noise_rates", "0,0.3", "--runs", str(tmp_path / "a")]
    assert deep.main([*several, "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "6 networks:" and sum(line.startswith("trained: ") for line in lines) == 6
    assert not list(tmp_path.iterdir())
    assert deep.main(several) == 0
    for seed in ("0", "1", "5"):
        for rate in ("0", "0.3"):
            deep.main([*COMMON, "--seed", seed, "--noise_rate", rate, "--runs", str(tmp_path / "b")])
    ours, theirs = held(tmp_path / "a"), held(tmp_path / "b")
    assert ours.keys() == theirs.keys() and len(ours) == 6
    for name, (config, results) in ours.items():
        assert config == theirs[name][0]
        assert results["last"] == pytest.approx(theirs[name][1]["last"], abs=1e-5)
    capsys.readouterr()
    assert deep.main(several) == 0
    assert capsys.readouterr().out.count("run: ") == 6
    assert deep.main([*several, "--dry_run"]) == 0
    assert capsys.readouterr().out.count("finished: ") == 6


@pytest.mark.parametrize(("words", "said"), [
    (["--seeds", "0,1,0"], "holds 0 twice"),
    (["--seeds", "0-3,2"], "holds 2 twice"),
    (["--seeds", ""], "not a whole number"),
    (["--seeds", "1,,2"], "not a whole number"),
    (["--seeds", "one"], "'one' is not a whole number"),
    (["--seeds", "0.5"], "not a whole number"),
    (["--seeds", "5-3"], "5-3 ends before it begins"),
    (["--noise_rates", "0.1-0.3"], "not a number"),
    (["--noise_rates", "0.1,1.0"], "a share in"),
    (["--noise_rates", "-0.1"], "at least 0"),
    (["--noise_seeds", "1,1"], "holds 1 twice"),
    (["--seeds", "0-2", "--seed", "4"], "--seeds and --seed: give one"),
    (["--noise_rates", "0.1", "--noise_rate", "0.3"], "--noise_rates and --noise_rate: give one"),
    (["--seeds", "0-2", "--init_seed", "1", "--order_seed", "1"], "3 networks would be the same"),
    (["--seeds", "0-2", "--time_steps", "5"], "times one network"),
    (["--stack", "allways"], "invalid choice"),
], ids=lambda v: "_".join(v) if isinstance(v, list) else None)  # fmt: skip
def test_bad_words_are_refused_in_a_line_and_nothing_is_written(tmp_path, words, said):
    with pytest.raises(UsageError, match=said) as refused:
        deep.main([*COMMON, *words, "--runs", str(tmp_path / "runs")])
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_several_seeds_from_a_config_and_other_orders_of_one_start(tmp_path):
    config = tmp_path / "several.yaml"
    config.write_text("script: python -m double_descent.deep\nseeds: [3, 4]\ninit_seed: 0\n")
    members = cli.each(deep.make_parser().settings(["--config", str(config)]))
    assert [(m.init_seed, m.order_seed) for m in members] == [(0, 3), (0, 4)]
    assert cli.each(deep.make_parser().settings(["--seeds", "-3,2"]))[0].init_seed == -3
