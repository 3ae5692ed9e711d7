"""landscape.pairs against plain loops on small networks, and its rank correlations and claims."""

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

import main as train_main
import save_preds
from landscape import data as datasets
from landscape import pairs, runs, weights
from landscape.errors import FileProblem, UsageError

TRAINED = ["--net", "mlp1", "--dataset", "digits", "--val_size", "0", "--epochs", "2", "--imgs", "none", "--augment",
           "none"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(results, folder of runs, the arguments) of four networks: two seeds of width 8, a copy of the first's training
    with another data order, and one of width 16."""
    root = tmp_path_factory.mktemp("pairs")
    for flags in (["--seed", "0"], ["--seed", "1"], ["--init_seed", "0", "--order_seed", "5"],
                  ["--seed", "0", "--width", "16"]):
        width = [] if "--width" in flags else ["--width", "8"]
        train_main.main([*TRAINED, *width, *flags, "--runs", str(root)])
    save_preds.main(["--load_net", str(root / "regions"), "--planes", "3", "--resolution", "8", "--runs", str(root)])
    argv = ["--members", str(root / "regions"), "--images", "200", "--points", "5", "--runs", str(root)]
    pairs.main([*argv, "--claims", str(root / "claims.json")])
    (file,) = (root / "across").glob("*/results.json")
    return runs.read_json(file), root, argv


def test_every_cell_equals_a_plain_loop(found):
    results, root, _ = found
    paths = [m["path"] for m in results["models"]]
    loaded = [runs.load(p) for p in paths]
    data = datasets.load("digits", val_size=0)
    batches = list(data.test.batches(torch.arange(len(data.test)), 64, loaded[0].preprocessing))
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    said = []
    for one in loaded:
        one.network.eval()
        with torch.no_grad():
            said.append(one.network(x).softmax(1))
    for row in results["rows"]:
        a, b = row["a"], row["b"]
        assert row["disagreement"] == pytest.approx((said[a].argmax(1) != said[b].argmax(1)).float().mean().item())
        own = [(p.argmax(1) == y).float().mean().item() for p in (said[a], said[b], (said[a] + said[b]) / 2)]
        assert row["ensemble_gain"] == pytest.approx(own[2] - (own[0] + own[1]) / 2, abs=1e-6)
        if loaded[a].architecture != loaded[b].architecture:
            assert row["differ"].endswith("width") and row["weight_cosine"] is row["test_loss_barrier"] is None
            continue
        u, v = (torch.cat([p.flatten() for p in loaded[k].network.parameters()]) for k in (a, b))
        assert row["weight_cosine"] == pytest.approx(F.cosine_similarity(u, v, 0).item(), abs=1e-5)
        assert row["weight_distance"] == pytest.approx((u - v).norm().item(), rel=1e-4)
        assert row["weight_distance_aligned"] <= row["weight_distance"] + 1e-4
        rows = data.test.some_rows(200, "lines")
        losses = []
        for t in np.linspace(0, 1, 5):
            between = runs.load(paths[a]).network
            between.load_state_dict(weights.lerp(weights.of(loaded[a].network), weights.of(loaded[b].network), t))
            with torch.no_grad():
                losses.append(F.cross_entropy(between.eval()(x[rows]), y[rows]).item())
        line = np.linspace(losses[0], losses[-1], 5)
        assert row["test_loss_barrier"] == pytest.approx(max(0, (np.array(losses) - line).max()), abs=1e-5)


def test_the_same_start_with_another_order_differs_in_that_alone(found):
    results, *_ = found
    kinds = sorted(row["differ"] for row in results["rows"])
    assert kinds.count("data order") == kinds.count("width") == 1 and kinds.count("seed") == 2


def test_agreement_is_that_of_the_class_maps(found):
    results, *_ = found
    assert all(0 <= row["agreement"] <= 1 for row in results["rows"])
    folders = [runs.find_models(m["path"])[0].path.parent for m in results["models"]]
    maps = [next(iter((f / "arrays").glob("class_maps-*.npz"))) for f in folders]
    labels = [runs.read_arrays(m)["labels"] for m in maps]
    for row in results["rows"]:
        assert row["agreement"] == pytest.approx((labels[row["a"]] == labels[row["b"]]).mean())


def test_it_goes_on_where_it_was_stopped(found, tmp_path, monkeypatch):
    """What was measured of a line is not measured again."""
    results, root, argv = found
    (run,) = (root / "across").glob("*/lines.json")
    held = json.loads(run.read_text())
    calls = []
    whole = pairs.Lines.between

    def counted(self, i, j):
        calls.append((i, j))
        if len(calls) == 2 and not tmp_path.joinpath("stopped").exists():
            tmp_path.joinpath("stopped").touch()
            raise KeyboardInterrupt
        return whole(self, i, j)

    monkeypatch.setattr(pairs.Lines, "between", counted)
    argv = [*argv[:-1], str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        pairs.main(argv)
    pairs.main(argv)
    assert len(calls) == len(held) + 1
    (again,) = (tmp_path / "across").glob("*/results.json")
    assert runs.read_json(again)["rows"] == results["rows"]


def test_class_maps_made_anew_are_another_folder(found, capsys):
    results, _, argv = found
    (file,) = runs.Path(results["models"][0]["path"]).parent.glob("arrays/class_maps-*.npz")
    before = file.read_bytes()
    pairs.main([*argv, "--dry_run"])
    arrays = runs.read_arrays(file)
    runs.write_arrays(file, **{**arrays, "labels": 9 - arrays["labels"]})
    pairs.main([*argv, "--dry_run"])
    runs.write_bytes(file, before)
    pairs.main([*argv, "--dry_run"])
    states = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "/across/pairs" in line]
    assert states == ["finished", "trained", "finished"]


def test_rank_correlation_is_spearmans_and_its_interval_holds_it():
    generator = np.random.default_rng(0)
    place = generator.normal(size=12)
    rows = [{"a": i, "b": j, "x": abs(place[i] - place[j]), "y": abs(place[i] - place[j]) ** 2 + generator.normal() / 9,
             "z": None} for i, j in itertools.combinations(range(12), 2)]
    (xy, xz, yz) = pairs.correlations(rows, ["x", "y", "z"], 12, 0.95)
    assert xy["value"] == pytest.approx(spearmanr([r["x"] for r in rows], [r["y"] for r in rows])[0])
    assert -1 <= xy["low"] < xy["value"] < xy["high"] <= 1 and xy["pairs"] == 66
    assert xz["value"] is xz["low"] is yz["value"] is None and xz["pairs"] == 0


def test_the_interval_covers_about_as_often_as_it_says():
    """Of independent measures the correlation is 0 on average, and 0 lies in most intervals."""
    generator, inside = np.random.default_rng(1), 0
    for _ in range(60):
        u, v = generator.normal(size=(2, 10))
        rows = [{"a": i, "b": j, "x": u[i] * u[j], "y": v[i] * v[j]} for i, j in itertools.combinations(range(10), 2)]
        (cell,) = pairs.correlations(rows, ["x", "y"], 10, 0.95)
        inside += cell["low"] <= 0 <= cell["high"]
    assert inside >= 50


def test_claims_are_judged(found):
    results, root, _ = found
    held = json.loads((root / "claims.json").read_text())
    by_name = {c["id"]: c for c in held}
    assert {"across:barrier-agreement", "across:matching"} <= by_name.keys()
    assert all(c["paper"] == "ours" for c in held)
    same = [r["test_loss_barrier"] - r["test_loss_barrier_aligned"] for r in results["rows"]
            if r["test_loss_barrier"] is not None]
    assert by_name["across:matching"]["value"] == pytest.approx(np.mean(same))


def test_bad_input_is_refused(found, tmp_path):
    _, root, argv = found
    with pytest.raises(UsageError, match="at least 2"):
        pairs.main(["--members", *[str(next((root / "regions").glob("*width=16*")))], "--runs", str(tmp_path)])
    with pytest.raises(FileProblem, match="no finished class maps"):
        pairs.main([*argv, "--resolution", "9"])
    with pytest.raises(UsageError, match="'region' is none of regions, predictions"):
        pairs.main([*argv, "--measures", "region"])
