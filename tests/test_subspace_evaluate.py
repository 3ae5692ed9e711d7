"""Points of subspaces and of snapshots: logits against one network at a time, ensembles and features against loops."""

import itertools

import numpy as np
import pytest
import torch

import models
from landscape import data, evaluate, metrics, results, runs, seeding, subspace, train, weights
from landscape.errors import ContentError, FileProblem, UsageError
from subspaces import evaluate as measure
from subspaces import plot, points
from subspaces import train as learn

torch.set_num_threads(1)
TINY = ["--dataset", "digits", "--net", "resnet20", "--width", "2", "--train_size", "144", "--epochs", "3", "--bs",
        "48", "--precision", "fp32", "--device", "cpu", "--threads", "1", "--lr", "0.05", "--bn_images", "100",
        "--eval_every", "0"]  # fmt: skip
LOOK = ["--device", "cpu", "--threads", "1", "--bn_images", "100", "--positions", "5", "--random", "2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two lines, a simplex, and two standard networks with snapshots."""
    root = tmp_path_factory.mktemp("runs")
    for more in (["--seed", "1"], ["--seed", "2"], ["--family", "simplex", "--vertices", "3"],
                 *(["--family", "standard", "--snapshots", "all", "--seed", s] for s in "12")):
        assert learn.main([*TINY, *more, "--runs", str(root)]) == 0
    return root


def measured(root, *more):
    argv = ["--load_net", str(root / "subspaces"), "--runs", str(root), *LOOK, *more]
    assert measure.main(argv) == 0
    newest = max(root.glob("subspaces/measured_*/results.json"), key=lambda f: f.stat().st_mtime)
    return newest.parent, runs.read_json(newest)


@pytest.fixture(scope="module")
def found(root):
    return measured(root)


def of(found, **wanted):
    return [r for r in found["runs"] if all(r[k] == v for k, v in wanted.items())]


def test_each_point_says_what_its_network_says_alone(root, found):
    row = of(found[1], family="line", init_seed=1)[0]
    (file,) = runs.Path(row["path"]).glob("arrays/points-*.npz")
    arrays = runs.read_arrays(file)
    assert arrays["names"].tolist() == ["t=0", "t=0.25", "t=0.5", "t=0.75", "t=1"]
    config = runs.run_source(runs.Path(row["path"]), ["net"]).config
    images = train.make_data(learn.argparse.Namespace(**config))
    for n, point in enumerate(("vertex=0", "t=0.25", "centre", "t=0.75", "vertex=1")):
        held = runs.load(row["path"], point=point)
        evaluate.reestimate_bn(held.network, images.train, held.preprocessing, rows=images.train.some_rows(100))
        said = evaluate.logits(held.network, images.test, held.preprocessing)
        assert np.allclose(arrays["logits"][n], said.numpy(), atol=2e-4)
    assert row["points"][2]["accuracy"] == metrics.accuracy(arrays["logits"][2], arrays["labels"])


def test_mirrored_pairs_meet_at_the_midpoint(found):
    for row in of(found[1], family="line"):
        middle, ends = row["mirrored"][2], row["mirrored"][0]
        assert middle["t"] == 0.5 and middle["disagreement"] == 0 and middle["total_variation"] == 0
        assert np.isclose(middle["cosine"], 1) and ends["cosine"] < 0.9999
        assert middle["accuracy_logit"] == middle["accuracy_probability"] == row["points"][2]["accuracy"]
        assert ends["disagreement"] == row["mirrored"][-1]["disagreement"] > 0
        assert -1 <= row["growth"]["disagreement"] <= 1
        assert len(row["vertex_distance"]) == 2 and row["vertex_distance"][0][1] > 1


def test_a_simplex_has_vertices_centre_and_random_points(found):
    (row,) = of(found[1], family="simplex")
    assert [p["kind"] for p in row["points"]] == ["vertex"] * 3 + ["centre"] + ["random"] * 2
    assert {(e["kind"], e["members"]) for e in row["ensembles"]} == {("vertex", 3), ("random", 2)}


def test_the_best_epoch_of_a_curve_is_noted(found):
    row = found[1]["runs"][0]
    curve = [r for r in runs.read_metrics(row["path"]) if "test_accuracy" in r]
    assert row["early_stopping"] is None and not curve  # --eval_every 0: no curve
    source = runs.run_source(runs.Path(row["path"]), ["net"])
    before = (source.path / "metrics.jsonl").read_bytes()
    lines = ['{"epoch": 1, "test_accuracy": 0.4}', '{"epoch": 2, "test_accuracy": 0.3}']
    (source.path / "metrics.jsonl").write_text("\n".join(lines))
    assert measure.early_stopping(source) == {"epoch": 1, "test_accuracy": 0.4}
    runs.write_bytes(source.path / "metrics.jsonl", before)


def test_two_standard_networks_are_an_independent_ensemble(found):
    (pair,) = found[1]["independent"]
    a, b = (runs.read_arrays(next(runs.Path(found[1]["runs"][pair[k]]["path"]).glob("arrays/points-*.npz")))
            for k in "ab")
    both = metrics.softmax(a["logits"][0]) + metrics.softmax(b["logits"][0])
    assert pair["accuracy_probability"] == (both.argmax(1) == a["labels"]).mean()
    both = a["logits"][0] + b["logits"][0]
    assert pair["accuracy_logit"] == (both.argmax(1) == a["labels"]).mean()
    assert pair["disagreement"] == (a["logits"][0].argmax(1) != b["logits"][0].argmax(1)).mean()
    said = zip(a["logits"][0].argmax(1), b["logits"][0].argmax(1), a["labels"])
    assert np.isclose(pair["disagreement_one_right"], np.mean([x != y and z in (x, y) for x, y, z in said]))


def test_only_networks_of_one_test_set_are_an_ensemble():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4, 9, 3)), rng.integers(0, 3, 9)
    standard = {0: ("a", "digits", logits[0], labels), 1: ("a", "fake", logits[1], labels),
                2: ("a", "digits", logits[2], labels[::-1]), 5: ("a", "digits", logits[3], labels),
                6: ("b", "digits", logits[3], labels)}
    assert [(p["a"], p["b"]) for p in measure.independent(standard)] == [(0, 5)]


def test_a_row_of_the_tables_is_of_one_treatment(tmp_path):
    zero = [*TINY, "--epochs", "0", "--family", "standard", "--runs", str(tmp_path)]
    for more in ([], ["--lr", "0.1"], ["--seed", "2"], ["--decay", "point"], ["--opt", "Adam"], ["--data_seed", "2"],
                 ["--train_size", "100"], ["--width", "4"], ["--snapshots", "all", "--seed", "3"]):
        assert learn.main([*zero, *(["--family", "line"] if "--decay" in more else []), *more]) == 0

    def groups(*more):
        args = learn.cli.resolve(measure.make_parser().settings(["--load_net", str(tmp_path), *more]))
        measure.check(args)
        return [m.source.group for m in measure.find(args)]

    assert sorted(map(groups().count, set(groups()))) == [1] * 6 + [3]
    assert set(groups("--select", "lr=0.05")) == {g for g in groups() if "lr=" in g}
    with pytest.raises(UsageError, match="of the same seeds in one row of the tables: choose one"):
        groups("--group_by", "family")
    assert len(set(groups("--group_by", "family,lr,opt,width,train_size"))) == 6


def test_tables_figures_and_what_is_kept(root, found):
    folder, held = found
    assert {(r["point"], r["runs"]) for r in held["table"] if r["group"].startswith("family=line")} == {
        ("ends", 2), ("midpoint", 2), ("worst", 2)}
    assert all(0 <= r["ece_debiased"] <= r["ece"] <= 1 and 0 <= r["accuracy_low"] for r in held["table"]
               if r["accuracy_low"] is not None)
    assert (folder / "figures/along.png").exists() and (folder / "subspaces.csv").exists()
    files = sorted(root.glob("subspaces/*/arrays/points-*.npz"))
    before = [f.stat().st_mtime_ns for f in files]
    measured(root)
    assert [f.stat().st_mtime_ns for f in files] == before  # logits are kept
    assert plot.main([str(folder), "--formats", "svg"]) == 0 and (folder / "figures/along.svg").exists()
    assert {"simplexes", "noise"} <= plot.figures(folder, {**held, "runs": [
        *held["runs"], *({**r, "vertices": 4, "noise_rate": 0.2} for r in held["runs"])]}).keys()


# ---- figures of made-up results ------------------------------------------------------------------------------------

USUAL = {"family": "standard", "vertices": 0, "granularity": "network", "beta": 1.0, "samples": 1, "noise_rate": 0.0,
         "noise_kind": "symmetric", "scheduler": "cosine", "label_smoothing": 0.0, "dropout": 0.0, "ema": 0.0}


def made_row(accuracy, kinds=("model",), **settings):
    """A row of results.json of a run with these settings."""
    own = {**USUAL, **settings}
    ts = {"path": (0.0, 0.5, 1.0)}
    points = [{"name": kind, "kind": kind, "t": t, **dict.fromkeys(measure.MEASURES, accuracy)}
              for kind in kinds for t in ts.get(kind, (None,))]
    mirrored = [{"t": t, **dict.fromkeys(measure.PAIRS, accuracy)} for t in ts["path"]] if "path" in kinds else []
    return {**own, "group": " ".join(f"{k}={v}" for k, v in own.items()), "points": points, "mirrored": mirrored}


def curves_of(figure):
    """{label: heights} of the first panel: of lines and of points with intervals."""
    ax = figure.axes[0]
    out = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    return out | {c.get_label(): list(c.lines[0].get_ydata()) for c in ax.containers}


def test_figures_of_foreign_subspaces_are_made():
    def foreign(kinds, name):
        return {**made_row(0.7, kinds), **dict.fromkeys(USUAL), "group": name}

    figures = plot.figures(None, {"runs": [foreign(("path",), "a"), foreign(("path",), "b"), foreign(["centre"], "c")],
                                  "independent": []})
    assert figures.keys() == {"along"} and {"a", "b"} <= curves_of(figures["along"]).keys()


def test_what_is_trained_otherwise_is_named():
    special = ({"dropout": 0.3}, {"label_smoothing": 0.1}, {"ema": 0.99}, {"samples": 2}, {})
    runs_of = [made_row(0.9 if not more else 0.5, (kind,), family=family, noise_rate=r, **more)
               for family, kind in (("standard", "model"), ("line", "path")) for r in (0.0, 0.4) for more in special
               if not (family == "standard" and "samples" in more or family == "line" and "ema" in more)]
    curves = curves_of(plot.noise({"runs": runs_of}))
    assert curves["standard"] == curves["line"] == [0.9, 0.9] and curves["line, 2 samples"] == [0.5, 0.5]
    assert curves["standard, dropout=0.3"] == curves["standard, label_smoothing=0.1"] == [0.5, 0.5]


def test_each_average_of_snapshots_is_named():
    both = [made_row(a, ("model", "swa"), scheduler=s) for a, s in ((0.6, "swa_cyclic"), (0.8, "swa_constant"),
                                                                    (0.9, "fge"))]
    simplexes = [made_row(0.7, ["centre"], family="simplex", vertices=m) for m in (3, 4)]
    curves = curves_of(plot.simplexes({"runs": [*both, *simplexes]}, simplexes))
    assert curves["SWA: swa_cyclic"] == [0.6, 0.6] and curves["average of snapshots"] == [0.9, 0.9]
    assert curves["SWA: swa_constant"] == [0.8, 0.8] and curves["simplex"] == [0.7, 0.7]
    assert {"SWA", "simplex"} <= curves_of(plot.simplexes({"runs": [both[0], *simplexes]}, simplexes)).keys()


def test_bands_of_pairs_draw_networks():
    pairs = [{"a": i, "b": j, "accuracy_probability": (i + j) / 20} for i, j in itertools.combinations((1, 4, 9), 2)]
    wanted = results.bootstrap_pairs([[(i + j) / 20 for j in (1, 4, 9)] for i in (1, 4, 9)])
    assert np.allclose(plot.over_pairs(pairs, "accuracy_probability"), (wanted[0], max(wanted[1], 0), wanted[2]))
    assert plot.over_pairs(pairs, "cosine") is None and plot.over_pairs(pairs[:2], "accuracy_probability") is None


@pytest.mark.parametrize(("ts", "names"), [((0.7, 0.2), []), ((1.0, 0.2, 0.0), ["ends"]), ((0.5, 0.0), ["midpoint"])])
def test_ends_and_midpoints_are_where_they_say(ts, names):
    points = [{"kind": "path", "t": t, **dict.fromkeys(measure.MEASURES, t)} for t in ts]
    found = measure.chosen({"points": points, "ensembles": []})
    assert list(found) == [*names, "worst"] and all(found[n]["accuracy"] == 0.5 for n in names)


# ---- snapshots and corruptions -------------------------------------------------------------------------------------

def test_methods_of_snapshots(root):
    _, held = measured(root, "--select", "family=standard", "--methods", ",".join(measure.METHODS))
    kinds = [p["kind"] for p in held["runs"][0]["points"]]
    assert {k: kinds.count(k) for k in dict.fromkeys(kinds)} == {
        "model": 1, "swa": 1, "snapshots": 4, "line": 5, "endpoints": 4, "random": 2, "random_module": 2,
        "random_weight": 2, "swag": 2}
    assert ("snapshots", 4) in {(e["kind"], e["members"]) for e in held["runs"][0]["ensembles"]}


def test_corrupted_images(root):
    clean = measured(root, "--select", "family=line")[1]
    bad = measured(root, "--select", "family=line", "--corruption", "gaussian_noise:5")[1]
    assert bad["corruption"] == "gaussian_noise:5"
    assert bad["runs"][0]["points"][2]["nll"] != clean["runs"][0]["points"][2]["nll"]


def test_one_figure_of_all_corruptions(root, capsys):
    for corruption in ("gaussian_noise:5", "contrast:5"):
        measured(root, "--corruption", corruption, "--select", "family=line|standard", "--methods", "swa")
    assert plot.main([str(root)]) == 0
    assert (root / "figures/corruptions.png").stat().st_size > 10_000
    held = [runs.read_json(f) for f in root.glob("subspaces/measured_*/results.json")]
    figure = plot.corruptions(held)
    labels = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert labels == ["clean", "contrast, severity 5", "gaussian noise, severity 5"]
    shown = {c.get_label(): c for c in figure.axes[0].containers}
    assert {"ends", "midpoint", "ensemble of its ends"} <= {k.split(": ")[-1] for k in shown}
    assert "average of snapshots" in shown
    found = next(f for f in held if f["corruption"] == "contrast:5")
    wanted = np.mean([r["points"][0]["accuracy"] for r in found["runs"] if r["family"] == "standard"])
    assert np.isclose(shown["standard"].lines[0].get_ydata()[1], wanted)
    middle = np.mean([r["points"][2]["accuracy"] for r in found["runs"] if r["family"] == "line"])
    assert np.isclose(next(v for k, v in shown.items() if "midpoint" in k).lines[0].get_ydata()[1], middle)
    assert plot.corruptions([found]) is None and plot.corruptions([f for f in held if not f["corruption"]]) is None


def test_points_that_all_say_the_same_have_no_rank_correlation(root, monkeypatch):
    args = learn.cli.resolve(measure.make_parser().settings(["--load_net", str(root / "subspaces"), *LOOK]))
    measure.check(args)
    member = next(m for m in measure.find(args) if m.source.config["family"] == "line")
    measure.measure_all(args, [member])
    arrays = runs.read_arrays(member.file, measure.NEEDS)
    arrays["logits"][:] = arrays["logits"][:1]
    monkeypatch.setattr(measure, "kept_tables", lambda _, held: measure.pair_tables(held))
    assert measure.of_run(member, arrays)["growth"] == {"disagreement": None, "total_variation": None}


@pytest.mark.parametrize("bn", ["cumulative", "ema"])
def test_published_statistics_are_of_the_trainings_batches(root, bn):
    found = measured(root, "--bn", bn, "--bn_images", "0", "--select", "family=line", "init_seed=1")[1]
    path = runs.Path(of(found, family="line")[0]["path"])
    config = runs.run_source(path, ["net"]).config
    images = train.make_data(learn.argparse.Namespace(**config)).train
    held = runs.load(path, point="vertex=1")
    rows, augment = images.some_rows(0), data.parse_augment(config["augment"], data.entry("digits"))
    draws = images.draw(augment, seeding.stream(0, "statistics", "augment"))
    evaluate.reestimate_bn(held.network, images, held.preprocessing, None, rows, 48, "fp32", bn, augment, draws)
    said = evaluate.logits(held.network, data.load("digits", val_size=0).test, held.preprocessing).numpy()
    file = max(path.glob("arrays/points-*.npz"), key=lambda f: f.stat().st_mtime)
    assert np.allclose(runs.read_arrays(file)["logits"][-1], said, atol=2e-3)


# ---- points of snapshots -------------------------------------------------------------------------------------------

def some(count):
    out = []
    for k in range(count):
        with seeding.fork(0, "some", k):
            network = models.build("mlp", 3, in_channels=1, image_size=2, width=4)
        out.append({n: p.detach() for n, p in network.named_parameters()})
    return network, out


def made(methods, vertices, network, **settings):
    args = learn.argparse.Namespace(**{"point_seed": 1, "share": 0.5, "random": 3, "ts": [0, 0.5, 1], **settings})
    held = {**network.state_dict(), **vertices[-1]}
    return points.of_snapshots(network, held, vertices, methods, args)


def test_averages_are_what_they_say():
    network, vertices = some(3)
    (swa,) = made(["swa"], vertices, network)
    assert torch.allclose(swa.weights["fc1.weight"], sum(v["fc1.weight"] for v in vertices) / 3, atol=1e-6)
    ends = made(["endpoints"], vertices, network, share=0.7)
    wanted = 0.7 * vertices[1]["fc2.bias"] + 0.15 * (vertices[0]["fc2.bias"] + vertices[2]["fc2.bias"])
    assert torch.allclose(ends[1].weights["fc2.bias"], wanted, atol=1e-6)
    line = made(["line"], vertices, network)
    assert torch.equal(line[0].weights["fc1.weight"], vertices[0]["fc1.weight"])
    assert torch.equal(line[2].weights["fc1.weight"], vertices[2]["fc1.weight"])


def shares(point, vertices, name):
    """The coefficients of the vertices in one tensor of a point, by least squares."""
    basis = torch.stack([v[name].flatten() for v in vertices], 1)
    return torch.linalg.lstsq(basis, point.weights[name].flatten()).solution


def test_random_averages_by_network_by_module_and_by_weight():
    network, vertices = some(3)
    whole, module, weight = (made([m], vertices, network)[0] for m in ("random", "random_module", "random_weight"))
    names = ("fc1.weight", "fc1.bias", "fc2.weight")
    a, b, c = (shares(whole, vertices, n) for n in names)
    assert torch.allclose(a, b, atol=1e-3) and torch.allclose(a, c, atol=1e-3) and abs(a.sum() - 1) < 1e-3
    a, b, c = (shares(module, vertices, n) for n in names)
    assert torch.allclose(a, b, atol=1e-3) and not torch.allclose(a, c, atol=1e-2)
    low, high = (torch.stack([v["fc2.weight"] for v in vertices]).aminmax(dim=0))
    assert ((weight.weights["fc2.weight"] >= low - 1e-6) & (weight.weights["fc2.weight"] <= high + 1e-6)).all()
    again = made(["random"], vertices, network)[0]
    assert torch.equal(again.weights["fc1.weight"], whole.weights["fc1.weight"])


def test_swag_has_the_moments_of_its_gaussian_and_is_never_nan():
    generator = torch.Generator().manual_seed(0)
    vertices = [{"w": torch.randn(40, generator=generator) * 0.05} for _ in range(4)]
    stack = torch.stack([v["w"] for v in vertices])
    with seeding.fork(0, "swag"):
        sample = points.swag(vertices)
        drawn = torch.stack([sample()["w"] for _ in range(20_000)])
    variance = stack.var(0, correction=0) / 2 + stack.var(0, correction=1) / 2
    assert torch.allclose(drawn.mean(0), stack.mean(0), atol=3e-3)
    assert torch.allclose(drawn.var(0), variance, rtol=0.06)
    covariance = ((stack[:, 0] - stack[:, 0].mean()) * (stack[:, 1] - stack[:, 1].mean())).sum() / (2 * 3)
    assert torch.allclose(drawn.T.cov()[0, 1], covariance, atol=2e-4)
    for spread in (0.0, 1e-4, 1e-8):  # a difference of two large squares would be below 0 here
        near = [{"w": torch.full((1000,), 0.05) + spread * torch.randn(1000, generator=generator)} for _ in range(3)]
        with seeding.fork(0, "swag"):
            assert points.swag(near)()["w"].isfinite().all()


# ---- numbers -------------------------------------------------------------------------------------------------------

def test_an_ensemble_of_identical_members_is_the_member():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    own, both = measure.quality(logits, labels), measure.ensemble(np.stack([logits] * 3), labels)
    for kind in ("probability", "logit"):
        assert all(np.isclose(both[kind][k], own[k]) for k in own)
    pair = measure.of_pair(logits, logits, labels)
    assert pair["disagreement"] == pair["total_variation"] == 0 and pair["accuracy_logit"] == own["accuracy"]


def test_cosines_of_features_against_a_loop():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    images = data.Images(torch.randint(0, 256, (7, 2, 2, 3), dtype=torch.uint8), torch.arange(7) % 3)
    normal = {"kind": "custom", "mean": [0.5] * 3, "std": [0.3] * 3}
    vertices = [weights.of(network), {k: v + 0.3 * torch.randn_like(v) for k, v in weights.of(network).items()}]
    for name in ("", "1"):
        features = measure.Features(network, name, 2)
        with features:
            evaluate.logits_at(network, vertices, images, normal, bs=3, watch=features.compare)
        seen = []
        for w in vertices:
            network.load_state_dict(w)
            (x, _, _), = images.batches(None, 7, normal)
            seen.append(network[1 if name else 2](network[1](network[0](x)) if not name else network[0](x)).detach())
        cosines = torch.nn.functional.cosine_similarity(*seen, dim=1)
        assert np.isclose(features.mean(1)[0, 1], cosines.mean(), atol=1e-5)
        assert np.isclose(features.mean(2)[1, 0], (cosines**2).mean(), atol=1e-5)
    with pytest.raises(UsageError, match="no such module; did you mean"):
        measure.Features(network, "11", 2)


class Twice(torch.nn.Module):
    """Calls one of its layers twice, another never, and one that gives a tuple."""

    def __init__(self):
        super().__init__()
        self.one, self.never, self.several = torch.nn.Linear(12, 12), torch.nn.Linear(3, 3), torch.nn.GRU(12, 3)

    def forward(self, x):
        return self.several(self.one(self.one(x.flatten(1))))[0]


@pytest.mark.parametrize(("name", "says"), [("one", "called 2 times"), ("", "linear layer is called 0 times"),
                                            ("several", "gives a tuple, not a tensor")])
def test_a_feature_is_one_tensor_of_each_forward(name, says):
    network = Twice()
    images = data.Images(torch.randint(0, 256, (7, 2, 2, 3), dtype=torch.uint8), torch.arange(7) % 3)
    normal = {"kind": "custom", "mean": [0.5] * 3, "std": [0.3] * 3}
    features = measure.Features(network, name, 2)
    with features, pytest.raises(UsageError, match=says):
        evaluate.logits_at(network, [weights.of(network)] * 2, images, normal, bs=3, watch=features.compare)


def test_pairs_are_those_of_every_two_points():
    rng = np.random.default_rng(1)
    arrays = {"logits": rng.normal(size=(3, 20, 4)), "labels": rng.integers(0, 4, 20), "cosine": np.eye(3),
              "cosine_squared": np.eye(3)}
    tables = measure.pair_tables(arrays)
    for i, j in itertools.product(range(3), repeat=2):
        wanted = (arrays["logits"][i].argmax(1) != arrays["logits"][j].argmax(1)).mean()
        assert np.isclose(tables["disagreement"][i, j], wanted)


@pytest.mark.parametrize(("flags", "error", "says"), [
    (["--at", "0,1.5"], UsageError, "at most 1"), (["--at", "-0.1"], UsageError, "at least 0"),
    (["--methods", "swab"], UsageError, "did you mean swa"),
    (["--corruption", "frog:1"], UsageError, "did you mean fog"),
    (["--corruption", "snow:1"], UsageError, "ensembles.shift --source archive"),
    (["--corruption", "gaussian_noise:6"], UsageError, "from 1 to 5"), (["--positions", "1"], UsageError, "two ends"),
    (["--select", "family=standard", "init_seed=1", "--at", "0.5"], UsageError, "one network, not a subspace"),
    (["--which", "best"], FileProblem, "has no best"),
    (["--select", "family=line", "init_seed=1", "--feature", "layer9"], UsageError, "no such module"),
])  # fmt: skip
def test_bad_input_is_refused(root, flags, error, says):
    with pytest.raises(error) as caught:
        measure.main(["--load_net", str(root / "subspaces"), "--runs", str(root), *LOOK, *flags])
    assert says in str(caught.value), str(caught.value)


def test_snapshots_and_finite_logits_are_needed(root, tmp_path):
    line = runs.Path(of(measured(root)[1], family="line")[0]["path"])
    plain = tmp_path / "r"
    assert learn.main([*TINY, "--family", "standard", "--epochs", "1", "--runs", str(plain)]) == 0
    with pytest.raises(FileProblem, match="holds 0 snapshots"):
        measure.main(["--load_net", str(plain / "subspaces"), "--runs", str(plain), *LOOK, "--methods", "swa"])
    held, described = runs.read_weights(line / "model.safetensors")
    held["vertices.0.linear.bias"][0] = 3e38
    held["vertices.0.linear.weight"][:] = 3e38
    runs.save_weights(tmp_path / "broken.safetensors", held, described)
    with pytest.raises(ContentError, match="not finite"):
        measure.main(["--load_net", str(tmp_path / "broken.safetensors"), "--runs", str(tmp_path), *LOOK])


def test_a_dry_run_writes_nothing(root, capsys):
    before = sorted(root.rglob("*"))
    measure.main(["--load_net", str(root / "subspaces"), "--runs", str(root), *LOOK, "--random", "9", "--dry_run"])
    assert sorted(root.rglob("*")) == before and "compute: " in capsys.readouterr().out
    assert subspace.FAMILIES.keys() == set(learn.FAMILIES) - {"standard"}
