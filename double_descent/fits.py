"""Least squares on many training sets of one table at once: all repeats of a size in one stacked factorisation.

Schaeffer et al. 2023, "Double descent demystified" (arXiv 2303.14151). A training set X (N, D), centred and scaled by
its own rows, is U diag(sigma) V'. A predictor is a coefficient for each of its K = min(N, D) modes v_r; least squares
of minimum norm has kappa_r = u_r.y / sigma_r. theta* is the best linear model of all rows, e its residuals, f* its
values.

No test set is ever multiplied out. With F = [1, X, y] of all rows (or of the rows of all test groups) and its QR
factorisation F = Q R, the errors of a predictor theta there are F (theta, -1), so that their sum of squares is
|R (theta, -1)|^2, and their products are those of such vectors z; what the training rows add is taken off. z holds
differences of predictions, not of their squares: an error that should be 0 comes out as the square of a rounding error.
"""

# B repeats, S sizes, N training rows, D features, P parameters (D, and 1 for the intercept), K modes, M predictors.

from dataclasses import dataclass

import numpy as np

from landscape.seeding import numpy_stream


@dataclass(frozen=True)
class Rules:
    """How a model is fitted and attacked. scaling: train, all or none; by standard deviations, or without an
    intercept by root mean squares, since nothing is centred then. relative: cut-offs are shares of the largest
    singular value; budgets are shares of the median norm of a training row, and of the targets' standard deviation;
    signs are the worst ones. Else both are absolute, and signs those of the factorisation (as published)."""

    intercept: bool
    scaling: str
    relative: bool


@dataclass(frozen=True)
class Settings:
    """What to measure: lists of sizes, cut-offs, leading modes, ratios of factor 2, budgets and ridge penalties."""

    sizes: tuple
    cutoffs: tuple
    modes: tuple
    ratios: tuple
    budgets: tuple
    penalties: tuple


@dataclass(frozen=True)
class Scene:
    """A table, its training rows in their order (B, most), and what the sums over test rows need. root (1 or B, P+1,
    P+1) and ones = Q'1 (1 or B, P+1) are of the pool: all rows, of which the training rows are taken off (inside), or
    the rows of the test groups. pool_rows (1 or B,): how many; member (n, B) is 1 where a row is in it, or None."""

    x: np.ndarray
    y: np.ndarray
    rules: Rules
    order: np.ndarray
    inside: bool
    root: np.ndarray
    ones: np.ndarray
    pool_rows: np.ndarray
    member: np.ndarray | None
    ideal: np.ndarray
    residual: np.ndarray


def orders(n, repeats, seed, published):
    """Permutations (B, n) of the rows, of which the last N are the training set: sizes are nested, and all sizes share
    the repeat's draw. As published: of RandomState(repeat), which is what scikit-learn's train_test_split does."""
    if published:
        return np.stack([np.random.RandomState(r).permutation(n) for r in range(repeats)])
    return np.stack([numpy_stream(seed, "double_descent", "rows", r).permutation(n) for r in range(repeats)])


def make_scene(table, rules, repeats, seed, published, by_group):
    """The Scene of a table. by_group: in each repeat half of the groups, at random, are for training, the others for
    testing; else every row that is not trained on is a test row."""
    x, y = table.x, table.y
    if rules.intercept:  # fits do not change with the origin, and scaled ones not with units; rounding errors do
        x = x - x.mean(axis=0)
    if rules.scaling != "none":
        x = x / np.sqrt((x**2).mean(axis=0))
    order = orders(len(y), repeats, seed, published)
    columns = np.column_stack([*([np.ones(len(y))] if rules.intercept else []), x, y])
    if by_group:
        names, group = np.unique(table.groups, return_inverse=True)
        tested = np.stack([numpy_stream(seed, "double_descent", "groups", r).permutation(len(names)) < len(names) // 2
                           for r in range(repeats)])[:, group]
        most = (~tested).sum(axis=1).min()
        order = np.stack([rows[~out[rows]][-most:] for rows, out in zip(order, tested)])
        parts = [np.linalg.qr(columns[rows]) for rows in tested]
        root, ones = np.stack([r for _, r in parts]), np.stack([q.sum(axis=0) for q, _ in parts])
        pool, member = tested.sum(axis=1), tested.T.astype(float)
    else:
        q, r = np.linalg.qr(columns)
        root, ones, pool, member = r[None], q.sum(axis=0)[None], np.array([len(y)]), None
    scaled = columns[:, :-1] / np.abs(columns[:, :-1]).max(axis=0)
    ideal = np.linalg.lstsq(scaled, y, rcond=None)[0] / np.abs(columns[:, :-1]).max(axis=0)
    return Scene(x, y, rules, order, not by_group, root, ones, pool, member, ideal, y - columns[:, :-1] @ ideal)


@dataclass(frozen=True)
class Fits:
    """All repeats of one size. x (B, N, D) as the model sees it, y (B, N) less its mean, u, sigma, vt: x's factors with
    sigma 0 for a mode below the tolerance; kept (B, K); kappa, kappa_ideal (B, K): the modes' coefficients for the
    targets and for the ideal model's values, mean and mean_ideal (B,) of both; images in the space of z: modes
    (B, P+1, K), one (B, P+1) of the constant 1, target and ideal (1 or B, P+1); energy (B,): sum of squares of all
    features of the pool; frame: centre and scale (B, D) of the features."""

    x: np.ndarray
    y: np.ndarray
    residual: np.ndarray
    u: np.ndarray
    sigma: np.ndarray
    vt: np.ndarray
    kept: np.ndarray
    kappa: np.ndarray
    kappa_ideal: np.ndarray
    mean: np.ndarray
    mean_ideal: np.ndarray
    modes: np.ndarray
    energy: np.ndarray
    one: np.ndarray
    target: np.ndarray
    ideal: np.ndarray
    frame: tuple


def fit(scene, size):
    """The Fits of the last `size` rows in the order of every repeat."""
    rules, rows = scene.rules, scene.order[:, -size:]
    x, y = scene.x[rows], scene.y[rows]
    repeats, dim = len(x), x.shape[2]
    centre, scale = np.zeros((repeats, dim)), np.ones((repeats, dim))
    mean = mean_ideal = np.zeros(repeats)
    if rules.intercept:
        centre, mean, mean_ideal = x.mean(axis=1), y.mean(axis=1), (y - scene.residual[rows]).mean(axis=1)
        x = x - centre[:, None]
    if rules.scaling == "train":
        scale = np.sqrt((x**2).mean(axis=1))
        scale = np.where(scale > 1e-12, scale, np.inf)  # a feature that is constant in the training rows is none
        x = x / scale[:, None]
    y = y - mean[:, None]
    u, sigma, vt = np.linalg.svd(x, full_matrices=False)
    # As published every mode above 0 counts; else those above the rounding errors of the rows and of the factorisation.
    reach = np.maximum(sigma[:, 0], size**0.5 * (np.abs(scene.x[rows]).max(axis=1) / scale).max(axis=1))
    kept = sigma > (max(size, dim) * np.finfo(float).eps * reach[:, None] if rules.relative else 0)
    if rules.intercept:
        kept[:, size - 1:] = False  # centred rows have a rank of N - 1 at most
    sigma = np.where(kept, sigma, 0)
    inverse = np.divide(1, sigma, where=kept, out=np.zeros_like(sigma))
    kappa = inverse * np.einsum("bnk,bn->bk", u, y)
    # v_r.theta* in the model's own units, which is u_r.f* / sigma_r without a division by what may be small.
    slope = scene.ideal[rules.intercept:] * np.where(np.isfinite(scale), scale, 0)
    kappa_ideal = np.where(kept, np.einsum("bkd,bd->bk", vt, slope), 0)
    one = scene.root[:, :, 0] if rules.intercept else np.zeros((1, scene.root.shape[2]))
    slopes = scene.root[:, :, 1:-1] if rules.intercept else scene.root[:, :, :-1]
    seen = slopes / scale[:, None] - one[:, :, None] * (centre / scale)[:, None]
    ideal = scene.root[:, :, :-1] @ scene.ideal
    return Fits(x, y, scene.residual[rows], u, sigma, vt, kept, kappa, kappa_ideal, mean, mean_ideal,
                seen @ vt.transpose(0, 2, 1), (seen**2).sum(axis=(1, 2)), one, scene.root[:, :, -1], ideal,
                (centre, scale))


class Errors:
    """Sums over training and test rows of the errors of predictors. z (..., P+1) are their images in the space of the
    pool, train (..., N) their errors on the training rows, with B as the first axis of both."""

    def __init__(self, scene, size):
        self.scene, self.size = scene, size
        self.rows = scene.pool_rows - (size if scene.inside else 0)  # of the test set

    def product(self, one, two):
        """Mean over test rows of the products of two kinds of error, each (z, train)."""
        total = (one[0] * two[0]).sum(axis=-1)
        if self.scene.inside:
            total = total - (one[1] * two[1]).sum(axis=-1)
        return total / self.spread(total)

    def mse(self, error):
        return np.maximum(self.product(error, error), 0)

    def mean(self, error):
        """Mean over test rows of an error (z (B, P+1), train (B, N))."""
        total = (error[0] * self.scene.ones).sum(axis=-1)
        if self.scene.inside:
            total = total - error[1].sum(axis=-1)
        return total / self.rows

    def spread(self, total):
        return self.rows.reshape(-1, *[1] * (total.ndim - 1))


def errors_of(f, coefficients):
    """(z (B, M, P+1), train (B, M, N)) of predictors with coefficients (B, M, K) of the modes, and the mean of y."""
    z = coefficients @ f.modes.transpose(0, 2, 1) + (f.one * f.mean[:, None] - f.target)[:, None]
    return z, (coefficients * f.sigma[:, None]) @ f.u.transpose(0, 2, 1) - f.y[:, None]


def measure_size(scene, settings, size):
    """Everything of one size: {name: (B,), (B, M) or (B, K)}; the names are those of MEASURES."""
    f, e = fit(scene, size), Errors(scene, size)
    repeats, modes = f.sigma.shape
    rules, out = scene.rules, {}
    plain = f.kappa[:, None]
    masks = cut_masks(f, settings, rules)
    coefficients = np.concatenate([plain, plain * masks["cutoff"], plain * masks["mode"]], axis=1)
    z, train = errors_of(f, coefficients)
    test_mse, train_mse = e.mse((z, train)), (train**2).mean(axis=-1)
    cuts = 1 + len(settings.cutoffs)
    for name, part in (("", 0), ("cutoff_", slice(1, cuts)), ("mode_", slice(cuts, None))):
        out |= {f"{name}test_mse": test_mse[:, part], f"{name}train_mse": train_mse[:, part]}
    error = z[:, 0], train[:, 0]

    # The error is bias + variance - e: what the span of the training rows lacks of theta*, and their residuals' part.
    shift, part = f.mean - f.mean_ideal, f.kappa - f.kappa_ideal
    bias = (f.one * f.mean_ideal[:, None] + modes_of(f, f.kappa_ideal) - f.ideal,
            fitted(f, f.kappa_ideal) - (f.y - f.residual + shift[:, None]))
    variance = f.one * shift[:, None] + modes_of(f, part), fitted(f, part) + shift[:, None]
    noise = np.broadcast_to(f.target - f.ideal, error[0].shape), f.residual
    out["noresidual_test_mse"], out["noresidual_train_mse"] = e.mse(bias), (bias[1]**2).mean(axis=-1)
    out["bias"], out["variance"] = out["noresidual_test_mse"], e.mse(variance)
    out["cross"], out["noise_cross"] = 2 * e.product(bias, variance), -2 * (
        e.product(bias, noise) + e.product(variance, noise))
    out["bias_as_published"] = e.mean(bias)**2

    # Of each mode: the mean square of the test rows along it, and what it gives to the variance.
    energy = (f.modes**2).sum(axis=1) - (f.sigma**2 if scene.inside else 0)
    energy = np.where(f.kept, np.maximum(energy, 0), 0) / e.spread(energy)
    out["sigma"] = np.where(f.kept, f.sigma, np.nan)
    out["mode_energy"] = np.where(f.kept, energy, np.nan)
    out["mode_residual"] = np.where(f.kept, np.abs(np.einsum("bnk,bn->bk", f.u, f.residual)), np.nan)
    out["mode_variance"] = np.where(f.kept, energy * part**2, np.nan)
    whole = (f.energy - ((f.x**2).sum(axis=(1, 2)) if scene.inside else 0)) / e.rows
    out["outside"] = 1 - np.divide(energy.sum(axis=1), whole, where=whole > 0, out=np.full(repeats, np.nan))
    out["sigma_min"] = np.where(f.kept.any(axis=1), np.where(f.kept, f.sigma, np.inf).min(axis=1), np.nan)

    # Factor 2 for itself: rows are drawn in along the modes until their mean square is at most ratio * sigma^2 / N.
    # The ideal model says the targets of the rows so moved, and their residuals stay: only the variance shrinks.
    most = np.asarray(settings.ratios)[:, None] * f.sigma[:, None]**2 / size  # (B, ratios, K)
    shrink = np.sqrt(np.minimum(1, np.divide(most, energy[:, None], where=energy[:, None] > 0,
                                             out=np.ones(most.shape))))
    drawn = shrink * part[:, None]
    pulled = ((f.one * shift[:, None] + bias[0] - noise[0])[:, None] + drawn @ f.modes.transpose(0, 2, 1),
              (drawn * f.sigma[:, None]) @ f.u.transpose(0, 2, 1) + (shift[:, None] + bias[1] - f.residual)[:, None])
    out["feature_test_mse"] = e.mse(pulled)

    out |= ridge(f, e, settings)
    out |= attacks(scene, f, e, settings, error)
    return {k: np.ascontiguousarray(v) for k, v in out.items()}


def modes_of(f, coefficients):
    """z (B, P+1) of coefficients (B, K), without a constant."""
    return np.einsum("bpk,bk->bp", f.modes, coefficients)


def fitted(f, coefficients):
    return np.einsum("bnk,bk->bn", f.u, f.sigma * coefficients)


def cut_masks(f, settings, rules):
    """Which modes stay: (B, M, K) of 0 and 1, for every cut-off of singular values and every number of leading modes.

    Projecting the test rows on the leading modes, the paper's second ablation, predicts the same as leaving the other
    modes out of the model: x'V_k V_k'b is the sum of (x.v_r) kappa_r over those modes."""
    least = np.asarray(settings.cutoffs)[None, :, None] * (f.sigma[:, :1, None] if rules.relative else 1)
    leading = np.arange(f.sigma.shape[1]) < np.asarray(settings.modes)[:, None]
    return {"cutoff": f.sigma[:, None] >= least, "mode": np.broadcast_to(leading, (len(f.sigma), *leading.shape))}


def ridge(f, e, settings):
    """Penalties l * (|X|^2 / D) |b|^2 beside the sum of squares: |X|^2 / D is N for scaled features. The penalty that
    leaving one row out chooses needs no test row: its error is that of the fit over 1 - h, h the row's own leverage."""
    squares, size = f.sigma**2, f.y.shape[1]
    unit = squares.sum(axis=1) / f.x.shape[2]
    penalties = np.asarray(settings.penalties)[None, :, None] * unit[:, None, None]
    keep = np.divide(squares[:, None], squares[:, None] + penalties, where=f.kept[:, None],
                     out=np.zeros((len(unit), len(settings.penalties), f.sigma.shape[1])))
    error = errors_of(f, keep * f.kappa[:, None])
    test, train = e.mse(error), (error[1]**2).mean(axis=-1)
    constant = 1 / size if np.any(f.one) else 0
    left = 1 - constant - keep @ (f.u**2).transpose(0, 2, 1)  # (B, penalties, N)
    ratio = np.divide(error[1], left, where=left > 1e-9, out=np.full(left.shape, np.inf))
    outside = (ratio**2).mean(axis=-1)
    lowest = outside <= outside.min(axis=1, keepdims=True) * (1 + 1e-9)
    chosen = lowest.shape[1] - 1 - lowest[:, ::-1].argmax(axis=1)  # of equal ones the largest
    return {"ridge_test_mse": test, "ridge_train_mse": train,
            "ridge_loo_test_mse": test[np.arange(len(test)), chosen], "ridge_loo_index": chosen.astype(float)}


def attacks(scene, f, e, settings, error):
    """Test MSE (B, budgets) under attacks, in closed form, along the smallest mode R (Schaeffer et al. 2023).

    test rows += c v_R:          MSE + 2 c kappa_R mean(error) + c^2 kappa_R^2
    training targets += c u_R:   kappa_R grows by c / sigma_R, and the training errors stay as they are
    each test row += its worst:  mean (|error| + c |kappa|)^2, for all moves of norm c
    """
    rules, budgets = scene.rules, np.asarray(settings.budgets)
    last = np.maximum(f.kept.sum(axis=1) - 1, 0)
    pick = np.arange(len(last)), last
    sigma, kappa, there = f.sigma[pick], f.kappa[pick], f.kept.any(axis=1)
    inverse = np.divide(1, sigma, where=there, out=np.zeros_like(sigma))
    clean = e.mse(error)
    along = f.modes[pick[0], :, last], sigma[:, None] * f.u[pick[0], :, last]
    pull, lean = e.product(error, along), e.mean(error)
    energy = e.mse(along)
    step = np.broadcast_to(budgets, (len(last), len(budgets)))
    target = step
    if rules.relative:
        step = budgets * np.median(np.linalg.norm(f.x, axis=-1), axis=1)[:, None]
        target = np.where(there[:, None], budgets * scene.y.std(), 0)
        pull, lean, kappa_ = np.abs(pull), np.abs(lean), np.abs(kappa)
    else:
        kappa_ = kappa
    clean, kappa_, lean = clean[:, None], kappa_[:, None], lean[:, None]
    rate = (target * inverse[:, None])
    out = {"attack_mode_test_mse": clean + 2 * step * kappa_ * lean + (step * kappa_)**2,
           "attack_target_test_mse": clean + 2 * rate * pull[:, None] + rate**2 * energy[:, None]}
    if rules.relative:
        slope = np.sqrt((f.kappa**2).sum(axis=1))[:, None]
        mean = mean_size(scene, f)[:, None]
        out["attack_worst_test_mse"] = clean + 2 * step * slope * mean + (step * slope)**2
    return out


def mean_size(scene, f):
    """Mean over test rows of |error| (B,): the one measure that needs every row, one product for all repeats."""
    centre, scale = f.frame
    slope = np.einsum("bkd,bk->bd", f.vt, f.kappa) / scale
    constant = f.mean - (centre * slope).sum(axis=1)
    sizes = scene.x @ slope.T
    sizes += constant
    sizes -= scene.y[:, None]
    np.abs(sizes, out=sizes)
    if not scene.inside:
        return (sizes * scene.member).sum(axis=0) / scene.pool_rows
    size = f.y.shape[1]
    total = sizes.sum(axis=0)
    own = np.take_along_axis(sizes, scene.order[:, -size:].T, axis=0).sum(axis=0)
    return (total - own) / (len(scene.y) - size)


def measure(scene, settings):
    """{name: array (S, B), or (M, S, B) for M settings, or (S, B, D) for modes, NaN where a size has fewer}."""
    found = [measure_size(scene, settings, size) for size in settings.sizes]
    out, dim = {}, scene.x.shape[1]
    for name in found[0]:
        parts = [part[name] for part in found]
        if name in MODES:
            parts = [np.pad(p, ((0, 0), (0, dim - p.shape[1])), constant_values=np.nan) for p in parts]
        stacked = np.stack(parts)
        out[name] = stacked.transpose(2, 0, 1) if stacked.ndim == 3 and name not in MODES else stacked
    return out


MODES = ("sigma", "mode_energy", "mode_residual", "mode_variance")
