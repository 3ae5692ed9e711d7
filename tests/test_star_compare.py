"""Stars beside regular networks: the program against star.barriers, paths, bends, figures, claims, scripts."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from landscape import claims as ledger
from landscape import cli, evaluate, permute, runs, train, weights
from landscape.errors import ContentError, FileProblem, UsageError
from models.axes import axes_of
from star import barriers, bma, claims, compare, compare_figures, comparisons, plot, sources, starlight, stars
from star import train as learn
from subspaces import train as curves

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)
SMALL = ["--net", "mlp1", "--dataset", "digits", "--train_size", "300", "--augment", "none", "--epochs", "8",
         "--bs", "48", "--eval_every", "0", "--precision", "fp32", "--device", "cpu", "--threads", "1"]  # fmt: skip
LINES = ["--points", "5", "--bn_images", "100", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Networks of seeds 0 to 4 of two widths, and a star of seeds 0 to 2 for each width."""
    root = tmp_path_factory.mktemp("compare")
    for width in ("6", "12"):
        sources.main([*SMALL, "--width", width, "--seeds", "0-4", "--runs", str(root)])
        learn.main([*SMALL, "--width", width, "--anchors", str(root / "star_sources"), "--select", f"width={width}",
                    "init_seed=0|1|2", "--seed", "100", "--runs", str(root)])
    return root


def measured(root, out, *more, width="12"):
    """The results of star.compare on the star of a width."""
    assert compare.main(["--stars", str(root / "star"), "--select", f"width={width}", "--held_out",
                         str(root / "star_sources"), "--held_out_select", f"width={width}", "init_seed=3|4", *LINES,
                         "--runs", str(out), *more]) == 0
    (file,) = [f for f in Path(out).rglob("results.json") if runs.read_json(f)["star"]["width"] == int(width)]
    return file.parent, runs.read_json(file)


@pytest.fixture(scope="module")
def found(root, tmp_path_factory):
    return measured(root, tmp_path_factory.mktemp("out"), "--align", "none,weights")


def source(root, seed, width=12):
    (one,) = runs.find_models(root / "star_sources", select=[f"width={width}", f"init_seed={seed}"])
    return str(one.path)


def data_of(path):
    return train.make_data(cli.argparse.Namespace(**runs.run_source(Path(path), ["net"]).config))


def test_the_barriers_are_those_of_star_barriers(root, found, tmp_path):
    folder, held = found
    (star,) = runs.find_models(root / "star", select=["width=12"])
    for kind, a, b in (("star_held_out", str(star.path), [source(root, s) for s in (3, 4)]),
                       ("anchor_held_out", source(root, 0), [source(root, s) for s in (3, 4)])):
        barriers.main(["-a", a, "-b", *b, "--align", "none,weights", *LINES, "--runs", str(tmp_path / kind)])
        (file,) = (tmp_path / kind).rglob("results.json")
        for theirs in runs.read_json(file)["lines"]:
            number = {m["path"]: m["number"] for m in held["models"]}
            ours = next(r for r in held["lines"] if (r["a"], r["b"], r["align"]) == (
                number[a], number[b[theirs["b"] - 1]], theirs["align"]))
            assert ours["kind"] == kind
            for part in ("train", "test"):
                expected = {k: v for k, v in theirs[part].items() if k not in ("low", "high")}
                assert {k: ours[part][k] for k in expected} == expected


def test_every_pair_is_there_and_means_are_over_pairs(found):
    folder, held = found
    counts = {"star_held_out": 2, "star_anchor": 3, "anchor_held_out": 6, "mean_held_out": 2, "mean_anchor": 3}
    for how in ("none", "weights"):
        for kind, count in counts.items():
            values = [r["train"]["loss_barrier"] for r in held["lines"] if (r["kind"], r["align"]) == (kind, how)]
            row = comparisons.cell(held, kind, how)
            assert len(values) == count == row["pairs"] and row["value"] == pytest.approx(np.mean(values))
    regular = {}
    for row in held["lines"]:
        if (row["kind"], row["align"]) == ("anchor_held_out", "weights"):
            regular.setdefault(row["a"], []).append(row["train"]["loss_barrier"])
    best = comparisons.cell(held, "best_held_out", "weights")["value"]
    assert best == pytest.approx(min(map(np.mean, regular.values())))
    for name in ("barriers.csv", "models.csv", "starlight.yaml", "figures/barriers.png", "done"):
        assert (folder / name).exists(), name
    theirs = starlight.read(folder / "starlight.yaml")
    assert [len(theirs[k]) for k in starlight.KINDS] == [6, 2, 3]


def test_the_mean_is_that_of_aligned_anchors(root, found):
    _, held = found
    nets = [weights.of(runs.load(source(root, s)).network) for s in (0, 1, 2)]
    network = runs.load(source(root, 0)).network
    mean = stars.aligned_mean(nets, axes_of(network), 0)
    plain = weights.combine(nets, [1 / 3] * 3)
    perms = permute.match_together(nets, axes_of(network))
    assert torch.allclose(mean["fc1.weight"], sum(permute.apply(n, axes_of(network), p)["fc1.weight"]
                                                  for n, p in zip(nets, perms)) / 3)
    assert not torch.allclose(mean["fc1.weight"], plain["fc1.weight"])
    (row,) = [m for m in held["models"] if m["role"] == "mean"]
    network.load_state_dict(mean)
    said = evaluate.score(network, data_of(source(root, 0)).test, runs.load(source(root, 0)).preprocessing)
    assert row["test_accuracy"] == pytest.approx(said["accuracy"])
    assert row["test_loss"] == pytest.approx(said["loss"], abs=1e-4)


def test_a_mean_is_matched_by_its_own_statistics(tmp_path):
    """The mean of a network with BatchNorm and its permuted copy is that network: matched by activations, a further
    copy comes to lie on it."""
    small = ["--net", "resnet20", "--width", "4", *SMALL[2:]]
    sources.main([*small, "--seeds", "0", "--runs", str(tmp_path / "a")])
    (one,) = runs.find_models(tmp_path / "a")
    held = runs.load(one.path)
    axes, own = axes_of(held.network), weights.of(held.network)
    for name, seed in (("anchors/b.pt", 1), ("held/c.pt", 2)):
        file = tmp_path / "resnet20" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(permute.apply(own, axes, permute.random(axes, seed)), file)
    learn.main([*small, "--epochs", "1", "--anchors", str(one.path), str(tmp_path / "resnet20/anchors/b.pt"),
                "--seed", "7", "--runs", str(tmp_path)])
    compare.main(["--stars", str(tmp_path / "star"), "--held_out", str(tmp_path / "resnet20/held/c.pt"), *small[:4],
                  "--dataset", "digits", *LINES, "--align", "activations", "--runs", str(tmp_path / "out")])
    (file,) = (tmp_path / "out").rglob("results.json")
    (row,) = [r for r in runs.read_json(file)["lines"] if r["kind"] == "mean_held_out"]
    assert row["distance"] < 1e-3 < row["distance_before"] and row["train"]["loss_barrier"] < 1e-3


def test_anchors_are_those_that_the_star_was_trained_with(tmp_path):
    more = ["--val_size", "60", "--eval_every", "1", "--net", "mlp1", "--width", "6", "--runs", str(tmp_path)]
    few = [a for a in SMALL[2:] if a not in ("--eval_every", "0")]
    sources.main([*few, *more, "--lr", "1.5", "--seeds", "0-2"])
    nets = [str(s.path) for s in runs.find_models(tmp_path / "star_sources")]
    assert any((Path(n) / "best.safetensors").read_bytes() != (Path(n) / "model.safetensors").read_bytes()
               for n in nets[:2])
    learn.main([*few, *more, "--anchors", *nets[:2], "--which", "best", "--seed", "9"])
    assert compare.main(["--stars", str(tmp_path / "star"), "--held_out", nets[2], *LINES, "--runs",
                         str(tmp_path / "out")]) == 0


def test_a_star_of_one_anchor_is_compared_too(root, tmp_path):
    """The mean of its anchors is that anchor."""
    learn.main([*SMALL, "--width", "12", "--anchors", source(root, 0), "--seed", "7", "--runs", str(tmp_path)])
    held = measured(tmp_path, tmp_path / "out", "--align", "weights", "--held_out", source(root, 3), source(root, 4))[1]
    values = {kind: comparisons.cell(held, kind, "weights")["value"] for kind in ("mean_held_out", "anchor_held_out")}
    assert values["mean_held_out"] == pytest.approx(values["anchor_held_out"], abs=1e-6)
    assert comparisons.cell(held, "star_anchor", "weights")["pairs"] == 1


def test_a_path_over_the_star_is_two_lines():
    def line(a, b, losses, barrier=0.0):
        part = {"losses": losses, "loss_barrier": barrier}
        return {"a": a, "b": b, "align": "none", "ts": [0.0, 0.5, 1.0], "train": part, "test": part}

    rows = [line(0, 1, [0.4, 0.9, 0.2]), line(0, 2, [0.4, 0.5, 0.6]), line(1, 2, [0, 0, 0], 2.0)]
    path = compare.path_over_the_star(rows, 1, 2, "none")
    # 0.2 at 0, 0.9 at 1/4, 0.4 at 1/2 (the star), 0.5 at 3/4, 0.6 at 1: the ends' line is 0.3 at 1/4
    assert path["train_over_star"] == pytest.approx(0.6) and path["train_straight"] == 2.0


def test_bends_and_others_stand_beside(root, tmp_path):
    few = [a for a in SMALL if a not in ("--eval_every", "0")]
    curves.main([*few, "--width", "12", "--family", "curve", "--ends", f"{source(root, 0)},{source(root, 1)}", "--beta",
                 "0", "--runs", str(tmp_path)])
    (bend,) = tmp_path.glob("subspaces/*")
    sources.main([*SMALL, "--width", "12", "--seeds", "7", "--snapshots", "0,4,8", "--runs", str(tmp_path)])
    (swa,) = tmp_path.glob("star_sources/*")
    _, held = measured(root, tmp_path / "out", "--bends", str(bend), "--others", source(root, 2), "--swa", str(swa),
                       "--anchors_measured", "2", "--adaptive")
    (one,) = held["bends"]
    assert one["family"] == "curve" and len(one["train_losses"]) == 5 and one["train_barrier"] >= 0
    ends = {m["path"]: m["train_loss"] for m in held["models"]}
    assert one["train_losses"][0] == pytest.approx(ends[source(root, 0)], abs=1e-4)
    assert one["train_losses"][-1] == pytest.approx(ends[source(root, 1)], abs=1e-4)
    assert comparisons.cell(held, "other_held_out", "weights")["pairs"] == 4
    parts = [runs.read_weights(swa / f"checkpoints/epoch_000{e}.safetensors")[0] for e in (4, 8)]
    network = runs.load(swa).network
    network.load_state_dict(weights.combine(parts, [0.5, 0.5]))
    (average,) = [m for m in held["models"] if m["name"] == "average of snapshots"]
    said = evaluate.score(network, data_of(swa).test, runs.load(swa).preprocessing)
    assert average["test_loss"] == pytest.approx(said["loss"], abs=1e-4)
    assert comparisons.cell(held, "anchor_held_out", "weights")["pairs"] == 4 and len(held["paths"]) == 1
    figure = compare_figures.path_figure(held)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["straight", "over the star",
                                                                        "learned curve, units as they are"]
    drawn = [line.get_xdata()[0] for line in figure.axes[0].get_lines() if line.get_color() == "black"]
    assert {held["paths"][0]["train_straight"], held["paths"][0]["train_over_star"], one["train_barrier"]} <= set(drawn)
    assert held["star"]["anchors"] == 3


def test_several_stars_become_figures_a_table_and_claims(root, found, tmp_path, capsys):
    out = found[0].parent.parent
    measured(root, out, "--align", "none,weights", width="6")
    assert plot.main([str(out), "--plot_path", str(tmp_path)]) == 0
    assert (tmp_path / "width.png").exists() and len(list(tmp_path.glob("*/barriers.png"))) == 2
    assert len((tmp_path / "stars.csv").read_text().splitlines()) == 5
    assert claims.main([str(out), "--out", str(tmp_path / "claims.json")]) == 0
    assert {c.id for c in ledger.read(tmp_path / "claims.json")} == {
        "star:width-lower-006", "star:width-lower-012", "star:width-slope"}


def test_what_it_refuses(root, found, tmp_path):
    def refused(error, match, *argv):
        with pytest.raises(error, match=match):
            compare.main([*argv, *LINES, "--runs", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()

    star = ["--stars", str(root / "star"), "--select", "width=12"]
    refused(UsageError, "no star is given")
    refused(UsageError, "no star is given", "--stars", str(root / "star_sources"))
    refused(UsageError, "no held-out network", *star)
    refused(UsageError, "is an anchor of", *star, "--held_out", source(root, 3), source(root, 1))
    refused(FileProblem, "nowhere", *star, "--held_out", "nowhere")
    with pytest.raises(ContentError, match="differ in architecture: width"):
        compare.main([*star, "--held_out", source(root, 3, 6), *LINES, "--runs", str(tmp_path / "b")])
    with pytest.raises(FileProblem, match="no star was compared"):
        claims.main([str(root / "star_sources"), "--out", str(tmp_path / "c.json")])


def test_an_anchor_that_has_changed_is_found_out(root, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(source(root, 0), copy)
    learn.main([*SMALL, "--width", "12", "--epochs", "1", "--anchors", str(copy), "--runs", str(tmp_path)])
    shutil.copyfile(Path(source(root, 1)) / "model.safetensors", copy / "model.safetensors")
    with pytest.raises(ContentError, match="no longer the network"):
        compare.main(["--stars", str(tmp_path / "star"), "--held_out", source(root, 3), *LINES, "--runs",
                      str(tmp_path / "out")])


# ---- claims on made-up results -------------------------------------------------------------------------------------

def made_up(star, regular, width=8, anchors=10, net="mlp1", noise=0.01, aligns=("none", "published", "weights")):
    """Results of star.compare with barriers `star` and `regular` to three held-out networks, less a little for each."""
    factor = {"none": 3.0, "published": 1.5, "weights": 1.0}
    rows = []
    for how in aligns:
        for k in range(3):
            for kind, a, height in (("star_held_out", 0, star), ("anchor_held_out", 1, regular),
                                    ("anchor_held_out", 2, regular), ("mean_held_out", 3, 2 * star)):
                barrier = height * factor[how] + noise * k
                rows.append({"kind": kind, "a": a, "b": 10 + k, "align": how,
                             "train": {"loss_barrier": barrier, "losses": [0.0, barrier, 0.0]}})
    models = [{"number": n, "path": f"net{n}", "role": "held_out" if n > 9 else "x"} for n in (0, 1, 2, 3, 10, 11, 12)]
    models[0] |= {"role": "star", "train_loss": 0.1, "test_accuracy": 0.9}
    return {"kind": "star", "align": list(aligns), "lines": rows, "models": models,
            "level": 0.95, "star": {"net": net, "width": width, "dataset": "digits", "anchors": anchors,
                                    "path": f"{net}{width} {anchors}", "held_out": 3, "init_seed": 0, "epochs": 60,
                                    "opt": "SGD", "t_sampling": "uniform", "mu": 0.0, "init": "scratch",
                                    "anti": False, "samples": 1, "aligned_by": "weights"}}


def verdicts(results):
    return {c.id.removeprefix("star:"): c.verdict for c in claims.judged(results)}


def test_each_claim_is_judged_on_the_stars_that_it_is_of():
    widths = [made_up(0.3 * r + 0.01, r, w) for w, r in ((4, 0.5), (8, 0.3), (16, 0.1))]
    counts = [made_up(0.4 * n**-0.5, 0.5, 64, n, "resnet18") for n in (1, 2, 5, 10)]
    good = verdicts([*widths, *counts])
    assert set(good.values()) == {"holds"} and len(good) == 3 + 1 + 6
    by_id = {c.id: c for c in claims.judged([*widths, *counts])}
    assert by_id["star:width-slope"].value == pytest.approx(0.3) and by_id["star:width-slope"].n == 9
    assert by_id["star:anchors"].value == pytest.approx(-0.5, abs=0.05)
    assert by_id["star:width-lower-008"].value == pytest.approx(-0.2)
    assert all(c.protocol.startswith(("mlp1 of width", "mlp1 on digits", "resnet18 of width 64 on digits, training "))
               and len(c.protocol) < 250 for c in by_id.values())
    assert by_id["star:levelling"].value == pytest.approx(0.4 * (10**-0.5 - 5**-0.5))
    bad = verdicts([*(made_up(0.9 * r + 0.1, r, w) for w, r in ((4, 0.5), (8, 0.3), (16, 0.1))),
                    *(made_up(0.6 + 0.01 * n, 0.5, 64, n, "resnet18") for n in (1, 2, 5, 10))])
    assert {k for k, v in bad.items() if v == "fails"} == {"width-lower-004", "width-lower-008", "width-lower-016",
                                                           "width-slope", "lower", "anchors", "levelling"}
    assert verdicts(widths).keys() == {"width-lower-004", "width-lower-008", "width-lower-016", "width-slope"}
    assert verdicts([made_up(0.1, 0.5)]) == {}


def test_the_claims_of_the_other_script_stay(tmp_path):
    def written(name, results):
        for k, one in enumerate(results):
            folder = tmp_path / name / str(k)
            runs.write_json(folder / "results.json", one)
            (folder / "done").touch()
        assert claims.main([str(tmp_path / name), "--out", str(tmp_path / "claims.json")]) == 0
        return {c.id for c in ledger.read(tmp_path / "claims.json")}

    first = written("widths", [made_up(0.3 * r + 0.01, r, w) for w, r in ((4, 0.5), (8, 0.3), (16, 0.1))])
    both = written("counts", [made_up(0.4 * n**-0.5, 0.5, 64, n, f"resnet18-{n}") | {
        "star": {**made_up(0, 0)["star"], "net": "resnet18", "width": 64, "anchors": n, "path": f"{n}"}}
        for n in (1, 2, 5)])  # fmt: skip
    again = written("fewer", [made_up(0.3 * r + 0.01, r, w) for w, r in ((4, 0.5), (8, 0.3))])
    assert len(first) == 4 and len(both) == 10 and first < both
    assert again == both - {"star:width-lower-016"}


def recipe(seed, heights, loss=0.02, accuracy=0.97, **how):
    """Made-up results of the star of a seed with these barriers to three held-out networks."""
    found = made_up(0.1, 0.3)
    found["star"] |= {"path": f"star {seed} {how}", "init_seed": seed, **how}
    for row in found["lines"]:
        if row["kind"] == "star_held_out":
            row["train"]["loss_barrier"] = heights[row["b"] - 10]
    found["models"][0] |= {"train_loss": loss, "test_accuracy": accuracy}
    for n, model in enumerate(found["models"][4:]):
        model |= {"role": "held_out", "train_loss": 0.01, "test_accuracy": 0.95 + n / 1000}
    return found


def averaged(star, auroc, ece):
    return {"kind": "bma", "star": star, "net": "mlp1 width=8", "dataset": "digits", "members": 17, "draws": 10,
            "t": "uniform", "align": "weights", "bn": "stored",
            "rows": [{"predictor": p, "measure": m, "value": v} for p, m, v in (
                ("bma", "ece", 0.5), ("difference", "wrong_confidence", auroc), ("difference", "ece", ece))]}


def test_recipes_are_judged_seed_by_seed_and_averages_star_by_star():
    bases = [(0.2, 0.3, 0.4), (0.5, 0.4, 0.6), (0.3, 0.7, 0.1)]  # far apart; between the recipes little differs
    of = {s: [np.array(b) + 0.001 * n * np.arange(3) for b in bases] for n, s in enumerate(("uniform", "beta"))}
    found = [recipe(s, of["uniform"][s]) for s in range(3)]
    found += [recipe(s, of["beta"][s] - 0.02, t_sampling="beta") for s in range(3)]
    found += [recipe(s, of["beta"][s] - 0.02 + 0.01 * (-1) ** s, loss=0.08 + s / 100, t_sampling="constant")
              for s in range(3)]
    found += [recipe(s, of["uniform"][s], accuracy=0.951 + s / 1000, mu=1.0) for s in range(3)]
    made = {c.id: c for c in claims.judged(found, [averaged(f"star {s}", 0.01 + s / 1000, -0.02) for s in range(3)])}
    said = {k.removeprefix("star:tables-"): c.verdict for k, c in made.items() if "tables" in k}
    assert said == {"beta": "holds", "half": "not decided", "half-loss": "holds", "mu": "not decided",
                    "bma-auroc": "holds", "bma-ece": "fails"}
    assert made["star:tables-beta"].value == pytest.approx(-0.02 + 0.001) and made["star:tables-beta"].n == 9
    assert made["star:tables-half-loss"].value == pytest.approx(0.07) and made["star:tables-half-loss"].n == 3
    assert made["star:tables-mu"].value == pytest.approx(0.001)
    assert made["star:tables-bma-auroc"].value == pytest.approx(0.011)
    assert {c.command for c in made.values()} == {"bash scripts/fig_star_tables.sh"}
    assert made["star:tables-beta"].protocol == ("mlp1 of width 8 on digits, training loss; difference of barriers; "
                                                 "interval over 9 lines")
    alone = verdicts([f for f in found if f["star"]["t_sampling"] != "constant"])
    assert alone.keys() == {"tables-beta", "tables-mu"}
    assert "star:tables-bma-ece" not in {c.id for c in claims.judged([], [averaged("one", 0.1, 0.1)])}


def test_averages_of_one_setting_are_taken_together(tmp_path):
    for k, one in enumerate([*(averaged(f"star {s}", 0.1, 0.1) for s in range(2)),
                             averaged("star 2", 0.1, 0.1) | {"members": 3}, averaged("star 3", 0.0, 0.0) | {"t": 1.0},
                             made_up(0.1, 0.2)]):
        runs.write_json(tmp_path / str(k) / "results.json", one)
        (tmp_path / str(k) / "done").touch()
    assert [f["star"] for f in comparisons.averages(tmp_path)] == ["star 0", "star 1"]
    assert len(comparisons.comparisons(tmp_path)) == 1


# ---- scripts -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize("name", ["fig_star_mnist_width.sh", "fig_star_cifar.sh", "fig_star_tables.sh"])
def test_a_script_says_what_it_would_do(name, scale, tmp_path):
    done = subprocess.run(["bash", f"scripts/{name}", "--scale", scale, "--dry_run"], cwd=ROOT, capture_output=True,
                          text=True, check=False, env={"PATH": "/usr/bin:/bin", "RUNS": str(tmp_path / "runs")})
    assert done.returncode == 0, done.stderr
    modules = {"sources": sources, "train": learn, "compare": compare}
    if name == "fig_star_tables.sh":
        modules |= {"barriers": barriers, "bma": bma, "subspaces.train": curves}
    commands = [line.split() for line in done.stdout.splitlines() if line.startswith("python -m ")]
    assert {c[2].removeprefix("star.") for c in commands} == {*modules, "claims"}
    for words in commands:
        if words[2] != "star.claims":
            args = modules[words[2].removeprefix("star.")].make_parser().settings(words[3:])
            assert not getattr(args, "net", "") or models.canonical(args.net)
    assert not (tmp_path / "runs").exists()


def trained(number, **how):
    """Made-up results of one star of several, with an own loss and accuracy and a summary as star.compare makes it."""
    found = made_up(0.1 + number / 100, 0.3)
    found["star"] |= {"path": f"star{number}", "init_seed": number, **how}
    found["models"][0] |= {"train_loss": 0.5 + number / 10, "test_accuracy": 0.9}
    found["summary"] = [{"kind": "star_held_out", "align": how, "split": "train", "measure": "loss_barrier",
                         "value": 0.1} for how in found["align"]]
    return found


def test_stars_of_several_recipes_are_told_apart():
    constant = [trained(n, t_sampling="constant") for n in (3, 4)]
    own_loss, uniform = [trained(5, mu=1.0)], [trained(n) for n in (0, 1, 2)]
    found = [*own_loss, *uniform, *constant]
    recipes = comparisons.by_recipe(found)
    assert {name: len(some) for name, some in recipes.items()} == {"t uniform": 3, "t constant": 2,
                                                                   "t uniform, mu = 1": 1}
    assert comparisons.by_width(found) == [(8, uniform[0])] and comparisons.by_anchors(found)[0][1] in uniform
    figure = compare_figures.recipe_figure(recipes, "weights")
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(recipes)
    assert comparisons.by_recipe(uniform).keys() == {"t uniform"}


def test_stars_of_other_settings_do_not_take_the_place_of_the_published():
    counts = [made_up(0.4 * n**-0.5, 0.5, 64, n, "resnet18") for n in (1, 2, 5, 10)]
    others = [made_up(2.0, 0.5, 64, 10, "resnet18") for _ in range(5)]
    for one, change in zip(others, ({"init": "mean"}, {"anti": True}, {"samples": 4}, {"aligned_by": "none"},
                                    {"epochs": 3})):
        one["star"] |= {"path": f"another {change}", **change}
    elsewhere = made_up(2.0, 0.5, 64, 10, "resnet18")  # the tables' script has other held-out networks
    elsewhere["star"]["path"] = "tables"
    for model in elsewhere["models"]:
        model["path"] += " of the tables"
    assert claims.judged([*counts, *others, elsewhere]) == claims.judged(counts)
    assert comparisons.recipe(others[2]) == "t uniform, 4 draws a step"
    assert comparisons.recipe(others[0]) == "t uniform, from the mean"


def test_of_a_star_measured_twice_the_results_of_more_lines_stay(tmp_path):
    small, large = made_up(0.1, 0.3), made_up(0.2, 0.3)
    small["lines"] = small["lines"][:5]
    for name, one in (("z", small), ("a", large)):
        runs.write_json(tmp_path / name / "results.json", one)
        (tmp_path / name / "done").touch()
    assert comparisons.comparisons(tmp_path) == [large]
