"""Memorised examples, then features: the toy model of Henighan et al. (2023) over numbers of training examples.

    python -m double_descent.superposition
    python -m double_descent.superposition --features 1000 --sparsity 0.99 --hidden 2 --device cuda

x has n features, each 0 with probability S and else uniform in [0, 1], rescaled to norm 1. h = W x with m hidden units,
x' = ReLU(W'h + b). Of few examples the model stores the examples, as the corners of a polygon where m = 2; of many it
stores a few features; between the two its test error is at its worst (Superposition, Memorization, and Double Descent,
Transformer Circuits Thread 2023).

Where this departs from the paper, for minutes on one core: n = 200 with S = 0.95 instead of 10,000 with 0.999 (ten
features are active in an example in both, and the onset of generalising, of the order of 10 / (1 - S) examples, moves
from thousands to hundreds); 4000 steps up to a rate of 0.01 instead of 50,000 up to 0.001; one initialisation a data
seed, while the paper takes the best of several in some figures. An example without an active feature gets one.

The loop is its own: train.fit goes through batches of labelled images of one network, this is gradient descent on all
examples at once, of a model of two tensors, all data seeds stacked. Each pair (m, T) is saved when it is done; an
interrupted run goes on behind the last one. The default takes 8 minutes of one core.
"""

import math

from double_descent.polynomial import counts, ranges
from landscape import cli, runs, seeding
from landscape.errors import ContentError, Interrupted, UsageError

# K data seeds, T training examples, n features, m hidden units, M and L the numbers of different m and T.
WARMUP = 0.05  # of the steps, as in the paper
MOST = 100_000
CHECK_EVERY = 500  # steps between looks for a loss that is not finite
LOSSES = ("test_loss", "train_loss", "w_norm", "b_norm")  # one number a data seed


def make_parser():
    parser = cli.Parser("python -m double_descent.superposition", __doc__)
    g = parser.group("data", named=True)
    g.add_argument("--features", type=cli.positive, default=200, help="n (paper: 10000)")
    g.add_argument("--sparsity", type=cli.number(0), default=0.95, help="S, the probability of a 0 (paper: 0.999)")
    g.add_argument("--examples", type=ranges(MOST), default="3,5,8,12,20,30,50,80,120,200,300,500,1000,2000",
                   metavar="T,T,…", help="training examples")
    g.add_argument("--test_examples", type=cli.positive, default=2000)
    g.add_argument("--seeds", type=cli.positive, default=4, help="data seeds, each with its own initial weights")
    g.add_argument("--data_seed", type=cli.natural, default=1)
    g = parser.group("model and training", named=True)
    g.add_argument("--hidden", type=ranges(MOST), default="2,3,4,6,8,12", metavar="M,M,…", help="hidden units m")
    g.add_argument("--steps", type=cli.positive, default=4000, help="of AdamW, each on all examples (paper: 50000)")
    g.add_argument("--lr", type=cli.number(above=0), default=0.01, help="at the end of the warm-up (paper: 0.001)")
    g.add_argument("--weight_decay", type=cli.number(0), default=0.01)
    g.add_argument("--weight_seed", type=cli.natural, default=1, help="initial weights")
    g = parser.group("statistics", named=True)
    g.add_argument("--level", type=cli.number(0.5, 0.9999), default=0.95, help="of the intervals over data seeds")
    g = parser.group("machine")
    g.add_argument("--device", default="auto", help="auto, cpu, cuda[:i] or mps")
    g.add_argument("--threads", type=cli.natural, default=0, help="CPU threads; 0: as in main.py")
    g.add_argument("--deterministic", action="store_true", help="refuse kernels that are not reproducible (CUDA)")
    cli.add_output(parser)
    cli.add_figures(parser)
    return parser


def main(argv=None):
    args = resolved(argv)
    hidden, examples = counts(args.hidden), counts(args.examples)
    if args.dry_run:
        print(f"{len(hidden) * len(examples)} pairs of m in {args.hidden} and T in {args.examples}, {args.seeds} data "
              f"seeds each, {args.steps} steps; {runs.folder('double_descent', args, 'superposition')}")
        return 0
    with runs.start("double_descent", args, "superposition") as run:
        if run.finished:
            show(runs.read_json(run.path / "results.json"))
        else:
            sweep(args, run, hidden, examples)
            found = summary(args, run.path, hidden, examples)
            show(found)
            write(args, run, found)
            run.finish(found)
        print(f"results: {run.path / 'results.json'}\ntable: {run.path / 'superposition.csv'}")
    return 0


def resolved(argv):
    args = make_parser().settings(argv)
    if args.sparsity >= 1:
        raise UsageError(f"--sparsity {args.sparsity:g}: a share in [0, 1) is expected")
    if args.smoke:
        args.features, args.steps, args.test_examples = min(args.features, 20), min(args.steps, 40), 50
        args.hidden, args.examples, args.seeds = "2,3", "3,5,20", min(args.seeds, 2)
    return cli.resolve(args)


# ---- data ----------------------------------------------------------------------------------------------------------

def draw(seed, names, count, features, sparsity):
    """Examples (T, n), float32, of norm 1. The first ones of a larger count are those of a smaller one. Where chance
    gives an example no active feature (a share S^n of them), the one nearest to being active is."""
    import numpy as np

    draws = seeding.numpy_stream(seed, "superposition", *names).random((count, 2, features))
    active = draws[:, 0] >= np.minimum(sparsity, draws[:, 0].max(1, keepdims=True))
    x = active * (1 - draws[:, 1])  # in (0, 1]: an active feature is not 0
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def initial(seed, member, hidden, features):
    """Xavier's uniform weights (m, n), float32."""
    rng = seeding.numpy_stream(seed, "superposition weights", hidden, member)
    return (math.sqrt(6 / (hidden + features)) * rng.uniform(-1, 1, (hidden, features))).astype("float32")


# ---- the model -----------------------------------------------------------------------------------------------------

def losses(x, weights, bias):
    """(1/T) Σ ||x - x'||² of each member (K,): x (K, T, n), weights (K, m, n), bias (K, n)."""
    out = bias[:, None] + x @ weights.mT @ weights
    return (out.clamp(min=0) - x).square().sum((1, 2)) / x.shape[1]


def gradients(x, weights, bias):
    """The gradients of `losses` with respect to weights and bias, by hand: half the time of autograd's on a CPU."""
    import torch

    hidden = x @ weights.mT
    out = torch.baddbmm(bias[:, None], hidden, weights).clamp_(min=0)
    error = (out - x).mul_(out > 0).mul_(2 / x.shape[1])
    return hidden.mT @ error + (error @ weights.mT).mT @ x, error.sum(1)


def rate(step, steps, highest):
    """Linear up to `highest` in the first twentieth of the steps, then a cosine to 0."""
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return highest * (step + 1) / warm
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def trained(x, weights, args, stop):
    """(weights, bias) after args.steps steps of AdamW from weights (K, m, n) and bias 0 on x (K, T, n), or None when
    stop was requested. Raises ContentError when a loss is not finite."""
    import torch

    weights, bias = weights.clone(), torch.zeros_like(weights[:, 0])
    optimiser = torch.optim.AdamW([weights, bias], lr=args.lr, weight_decay=args.weight_decay)
    with torch.no_grad():
        for step in range(args.steps):
            if stop.requested:
                return None
            optimiser.param_groups[0]["lr"] = rate(step, args.steps, args.lr)
            weights.grad, bias.grad = gradients(x, weights, bias)
            optimiser.step()
            last = step + 1 == args.steps
            if (last or (step + 1) % CHECK_EVERY == 0) and not losses(x, weights, bias).isfinite().all():
                raise ContentError(f"m = {weights.shape[1]}, T = {x.shape[1]}: the loss is not finite after step "
                                   f"{step + 1}; a smaller --lr than {args.lr:g} may do")
    return weights, bias


# ---- what it stores ------------------------------------------------------------------------------------------------

def dimensionality(vectors):
    """||v_i||² / Σ_j (v̂_i·v_j)² of vectors (..., N, m), in the last axis but one: the share of a dimension that each
    has to itself (Henighan et al. 2023). 1 for orthogonal ones, m/N for a regular polygon; 0 for a vector of 0."""
    import numpy as np

    v = np.asarray(vectors, dtype=float)
    squares = (v * v).sum(-1)
    shared = ((v @ (v.swapaxes(-1, -2) @ v)) * v).sum(-1)  # Σ_j (v_i·v_j)²
    return np.divide(squares**2, shared, out=np.zeros_like(squares), where=shared > 0)


def best_dimensionality(vectors):
    """The most that a direction u can give: sup_u (u·v_i)² / Σ_j (u·v_j)². With M = Σ_j v_j v_jᵀ it is reached at
    M⁺ v_i and equals v_iᵀ M⁺ v_i, so that it sums to the rank over i."""
    import numpy as np

    v = np.asarray(vectors, dtype=float)
    inverse = np.linalg.pinv(v.swapaxes(-1, -2) @ v, hermitian=True)
    return ((v @ inverse) * v).sum(-1)


# ---- the sweep -----------------------------------------------------------------------------------------------------

def cell_file(folder, hidden, examples):
    return folder / "arrays" / f"cell-m{hidden}-T{examples}.npz"


def sweep(args, run, hidden, examples):
    """Train every pair that has no file yet and save it: W (K, m, n), b (K, n), h (K, T, m), those of LOSSES (K,),
    example_dimensionality and best_example_dimensionality (K, T), feature_dimensionality (K, n)."""
    import numpy as np
    import torch

    device = cli.set_up_device(args)
    said = args.features, args.sparsity
    test = torch.from_numpy(draw(args.data_seed, ["test"], args.test_examples, *said)).to(device)
    pairs = [(m, t) for m in hidden for t in examples]
    left = [pair for pair in pairs if not cell_file(run.path, *pair).exists()]
    progress = runs.Progress(len(pairs), "pairs of m and T", len(pairs) - len(left))
    with runs.stoppable() as stop:
        for m, t in left:
            x = np.stack([draw(args.data_seed, ["train", k], t, *said) for k in range(args.seeds)])
            start = np.stack([initial(args.weight_seed, k, m, args.features) for k in range(args.seeds)])
            x = torch.from_numpy(x).to(device)
            ended = trained(x, torch.from_numpy(start).to(device), args, stop)
            if ended is None:
                done = len(pairs) - len(left) + left.index((m, t))
                raise Interrupted(f"{stop.requested}: stopped after {done} of {len(pairs)} pairs; saved in {run.path}; "
                                  "the same command goes on")
            weights, bias = ended
            h = (x @ weights.mT).cpu().numpy()
            arrays = {"W": weights, "b": bias, "train_loss": losses(x, weights, bias),
                      "w_norm": weights.norm(dim=(1, 2)), "b_norm": bias.norm(dim=1),
                      "test_loss": torch.cat([losses(test[None], weights[k:k + 1], bias[k:k + 1])
                                              for k in range(args.seeds)])}  # fmt: skip
            arrays = {name: value.cpu().numpy() for name, value in arrays.items()}
            runs.write_arrays(cell_file(run.path, m, t), h=h, **arrays, example_dimensionality=dimensionality(h),
                              best_example_dimensionality=best_dimensionality(h),
                              feature_dimensionality=dimensionality(arrays["W"].swapaxes(1, 2)))
            run.log({"hidden": m, "examples": t, **{name: float(arrays[name].mean()) for name in LOSSES}})
            progress.step(1, f"m {m} T {t} test loss {arrays['test_loss'].mean():.3f}")
    progress.close()


def summary(args, folder, hidden, examples):
    """The numbers of all pairs, and the curves over T; writes arrays/superposition.npz with LOSSES as (M, L, K)."""
    import numpy as np

    from landscape.results import bootstrap

    test = draw(args.data_seed, ["test"], args.test_examples, args.features, args.sparsity).astype(float)
    constant = float(((test - test.mean(0)) ** 2).sum(1).mean())
    grid, cells = {name: np.empty((len(hidden), len(examples), args.seeds)) for name in LOSSES}, []
    for i, m in enumerate(hidden):
        for j, t in enumerate(examples):
            arrays = runs.read_arrays(cell_file(folder, m, t))
            strength = np.linalg.norm(arrays["W"], axis=1)  # (K, n)
            stored = strength > 0.5 * strength.max(1, keepdims=True)
            row = {"hidden": m, "examples": t}
            for name in LOSSES:
                grid[name][i, j] = arrays[name]
                value, low, high = bootstrap(arrays[name], level=args.level)
                row |= {name: value, f"{name}_low": None if low is None else max(0.0, low), f"{name}_high": high}
            row |= {"example_dimensionality": float(np.median(arrays["example_dimensionality"])),
                    "best_example_dimensionality": float(np.median(arrays["best_example_dimensionality"])),
                    "features_stored": float(stored.sum(1).mean()),
                    "feature_dimensionality": float(arrays["feature_dimensionality"][stored].mean())}
            cells.append(row)
    runs.write_arrays(folder / "arrays" / "superposition.npz", hidden=np.array(hidden), examples=np.array(examples),
                      **grid)
    curves = [{"hidden": m, **curve(examples, {k: v[i].mean(1) for k, v in grid.items()}, constant)}
              for i, m in enumerate(hidden)]
    return {"kind": "superposition", "features": args.features, "sparsity": args.sparsity, "seeds": args.seeds,
            "steps": args.steps, "lr": args.lr, "weight_decay": args.weight_decay, "level": args.level,
            "hidden": hidden, "examples": examples, "constant_loss": constant, "cells": cells, "curves": curves}


def curve(examples, means, constant):
    """Of one m, from its means (L,): where the test loss and the norm of W are largest, and the onset of generalising:
    the fewest examples from which on the test loss stays below that of the best constant prediction."""
    peak, norm = means["test_loss"].argmax(), means["w_norm"].argmax()
    above = [j for j, loss in enumerate(means["test_loss"]) if loss >= constant]
    onset = above[-1] + 1 if above else 0
    return {"peak_examples": examples[peak], "peak_test_loss": float(means["test_loss"][peak]),
            "last_test_loss": float(means["test_loss"][-1]), "peak_norm_examples": examples[norm],
            "onset": examples[onset] if onset < len(examples) else None}  # fmt: skip


def show(found):
    print(f"{found['features']} features, S = {found['sparsity']:g}, {found['seeds']} data seeds, "
          f"{found['steps']} steps; test loss of the best constant prediction {found['constant_loss']:.4f}")
    for c in found["curves"]:
        print(f"\nm = {c['hidden']}: largest test loss {c['peak_test_loss']:.3f} at T = {c['peak_examples']}, "
              f"norm of W largest at T = {c['peak_norm_examples']}, generalises from T = {c['onset'] or '–'}\n"
              f"{'T':>7}{'test loss':>11}{'train loss':>12}{'|W|':>8}{'|b|':>8}{'D of examples':>15}{'m/T':>8}"
              f"{'features':>10}{'their D':>9}")
        for r in found["cells"]:
            if r["hidden"] == c["hidden"]:
                polygon = min(1, r["hidden"] / r["examples"])
                print(f"{r['examples']:>7}{r['test_loss']:>11.4f}{r['train_loss']:>12.4f}{r['w_norm']:>8.2f}"
                      f"{r['b_norm']:>8.2f}{r['example_dimensionality']:>15.4f}{polygon:>8.4f}"
                      f"{r['features_stored']:>10.2f}{r['feature_dimensionality']:>9.3f}")


def write(args, run, found):
    """The table and the figures."""
    from double_descent.superposition_figures import figures
    from landscape import plots
    from landscape.results import write_csv

    write_csv(run.path / "superposition.csv", found["cells"], list(found["cells"][0]))
    run.sink.table("superposition", found["cells"])
    for name, fig in figures(run.path, found).items():
        for path in plots.save(fig, run.path / "figures" / name, args.formats.split(",")):
            run.sink.image(name, path)
            print(f"figure: {path}")


if __name__ == "__main__":
    cli.run(main)
