"""The row of scripts/benchmark.py on linear double descent.

The twin works as the tutorial's two scripts do, fit by fit: scikit-learn splits the table, numpy factorises and inverts
anew for each number of modes and each budget, and scikit-learn's mean squared error compares predictions of all test
rows. Both sides follow the published procedure on the same rows.
"""

import numpy as np

from double_descent import fits, linear, tables
from double_descent.polynomial import counts

RULES = fits.Rules(False, "none", False)
WORST = {True: 1e-9, False: 1e-7}  # relative difference allowed where training sets have a condition up to EASY; beyond
EASY = 1e6  # rounding alone then moves a solution by 1e-10
ZERO = 1e-12  # of the targets' mean square: what is less on both sides is 0 up to rounding


def settings(table, sizes):
    modes = counts(linear.MODES.get(table.name, "1-10"))
    return fits.Settings(sizes, linear.numbers("--cutoffs", linear.CUTOFFS),
                         tuple(k for k in modes if k <= table.x.shape[1]), (1.0,),
                         (0.0, 0.1, 0.316, 1.0, 3.16, 10.0, 31.6), (0.1,))


def plain(x, y, repeat, chosen):
    """{measure: list over sizes} of one repeat."""
    out = {}
    for size in chosen.sizes:
        for name, value in (ablations(x, y, repeat, size, chosen) | attacks(x, y, repeat, size, chosen)).items():
            out.setdefault(name, []).append(value)
    return out


def ablations(x, y, repeat, size, chosen):
    from sklearn.metrics import mean_squared_error as mse
    from sklearn.model_selection import train_test_split

    ideal = np.linalg.lstsq(x, y, rcond=None)[0]
    a, b, t, s = train_test_split(x, y, test_size=len(y) - size, random_state=repeat, shuffle=True)
    u, sigma, vt = np.linalg.svd(a, full_matrices=False)
    beta = vt.T @ np.diag(1 / sigma) @ u.T @ t
    found = {"condition": sigma[0] / sigma[-1], "sigma_min": sigma[-1], "test_mse": mse(s, b @ beta),
             "train_mse": mse(t, a @ beta)}
    cut = []
    for least in chosen.cutoffs:
        part = vt.T @ np.diag(np.where(sigma >= least, 1 / sigma, 0)) @ u.T @ t
        cut.append((mse(s, b @ part), mse(t, a @ part)))
    found["cutoff_test_mse"], found["cutoff_train_mse"] = zip(*cut)
    modes = []
    for count in chosen.modes:
        leading = u[:, :count] @ np.diag(sigma[:count]) @ vt[:count]
        project = np.linalg.pinv(leading) @ leading
        modes.append((mse(s, b @ project @ beta), mse(t, a @ project @ beta)))
    found["mode_test_mse"], found["mode_train_mse"] = zip(*modes)
    straight = vt.T @ np.diag(1 / sigma) @ u.T @ (a @ ideal)
    found["noresidual_test_mse"] = mse(b @ ideal, b @ straight)
    bias = (b @ vt.T @ vt - b) @ ideal
    found["bias"], found["bias_as_published"] = (bias**2).mean(), bias.mean()**2
    return found


def attacks(x, y, repeat, size, chosen):
    from sklearn.metrics import mean_squared_error as mse
    from sklearn.model_selection import train_test_split

    a, b, t, s = train_test_split(x, y, test_size=len(y) - size, random_state=repeat, shuffle=True)
    u, _, vt = np.linalg.svd(a, full_matrices=False)
    rows, targets = [], []
    for budget in chosen.budgets:
        rows.append(mse(s, (b + budget * vt[-1]) @ (np.linalg.pinv(a) @ t)))
        targets.append(mse(s, b @ (np.linalg.pinv(a) @ (t + budget * u[:, -1]))))
    return {"attack_mode_test_mse": rows, "attack_target_test_mse": targets}


def linear_row(bench):
    held, missing = tables.available(bench.data_root)
    held = [t for t in held if not bench.quick or t.name in ("diabetes", "student_teacher")]
    repeats, sizes = bench.size(50, 3), tuple(range(1, bench.size(40, 24)))
    work = [(t, settings(t, sizes)) for t in held]

    def ours():
        return [fits.measure(fits.make_scene(t, RULES, repeats, 0, True, False), chosen) for t, chosen in work]

    def twin():
        return [plain(t.x, t.y, 0, chosen) for t, chosen in work]

    def check():
        worst = {True: (0.0, ""), False: (0.0, "")}
        for (t, _), fast, slow in zip(work, ours(), twin()):
            easy = np.array(slow.pop("condition")) <= EASY
            for name, values in slow.items():
                values, mine = np.moveaxis(np.array(values), 0, -1), fast[name][..., 0]
                larger = np.maximum(np.abs(values), np.abs(mine))
                apart = np.divide(np.abs(mine - values), larger, where=larger > ZERO * (t.y**2).mean(),
                                  out=np.zeros(larger.shape))
                for kind, among in ((True, easy), (False, ~easy)):
                    if among.any():
                        worst[kind] = max(worst[kind], (float(apart[..., among].max()), f"{name} of {t.name}"))
        said = f"{worst[True][0]:.0e} apart at most (≤ {WORST[True]:.0e})"
        if worst[False][1]:
            said += (f", {worst[False][0]:.0e} (≤ {WORST[False]:.0e}) where a training set's condition is above "
                     f"{EASY:.0e}, in {worst[False][1]}")
        absent = f"; not there: {', '.join(m.split(':')[0] for m in missing)}" * bool(missing)
        return all(worst[kind][0] <= WORST[kind] for kind in worst), said + absent

    return bench.ratio(f"{', '.join(t.name for t in held)}: {repeats} training sets of {len(sizes)} sizes, ablations "
                       f"and attacks: at once / fit by fit (timed on 1 of {repeats} and scaled up)",
                       60, ours, twin, check, share=1 / repeats)


ROWS = {"linear": linear_row}
