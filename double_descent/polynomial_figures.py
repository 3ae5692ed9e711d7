"""The figures of polynomial regression from what double_descent.polynomial saved: arrays in, figures out, no torch."""

import numpy as np

from double_descent.polynomial import BASES, TEST_POINTS, target
from landscape import plots, runs

FLOOR = 1e-3  # the lowest error drawn, as in the tutorial's figure: beyond P = N the training error is rounding
CUT = 3  # fits are drawn up to ±3, as in the tutorial


def figures(folder, results):
    """{name: Figure} of a run's folder (a Path) and its results.json: the errors against the number of features; with
    several numbers of training points the median test errors of all; with --gallery the fits of each curve."""
    sizes = list(dict.fromkeys(c["points"] for c in results["curves"]))
    out = {"polynomial": errors(results, [c for c in results["curves"] if c["points"] == sizes[0]])}
    if len(sizes) > 1:
        out["polynomial_points"] = over_points(results)
    for curve in results["curves"]:
        arrays = runs.read_arrays(folder / "arrays" / curve["arrays"], needs=("degrees", "test_mse"))
        if "fits" in arrays:
            out[f"polynomial_gallery-{curve['basis']}-{curve['points']}"] = gallery(curve, arrays)
    return out


@plots.styled
def errors(results, curves):
    """Train and test error against P, a panel a basis: medians, 10 to 90 % bands, and the test error's mean."""
    fig, axes = plots.figure(1, len(curves), width=3.4 * len(curves) + 0.6, height=3.4, sharey=True, squeeze=False)
    x = results["degrees"]
    for ax, curve in zip(axes[0], curves):
        series = {f"{split}: median, 10 to 90 %": tuple(curve[split][k] for k in ("median", "low", "high"))
                  for split in ("test", "train")}
        plots.curves(ax, x, series, xlabel="features P", xscale="log", yscale="log",
                     ylabel="mean squared error" if ax is axes[0, 0] else "")  # fmt: skip
        ax.plot(x, curve["test"]["mean"], ":", color="black", linewidth=1, label="test: mean")
        ax.axvline(curve["points"], color="0.5", linestyle="--", linewidth=0.8, label=f"P = N = {curve['points']}")
        ax.set_title(BASES[curve["basis"]])
        ax.set_ylim(bottom=FLOOR)
        ax.get_legend().remove()
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


@plots.styled
def over_points(results):
    """The median test error against P / N, a line each number of training points N, a panel a basis."""
    bases = list(dict.fromkeys(c["basis"] for c in results["curves"]))
    fig, axes = plots.figure(1, len(bases), width=3.4 * len(bases) + 0.6, height=3.4, sharey=True, squeeze=False)
    for ax, basis in zip(axes[0], bases):
        for number, curve in enumerate(c for c in results["curves"] if c["basis"] == basis):
            ax.plot(np.array(results["degrees"]) / curve["points"], curve["test"]["median"],
                    ("-", "--", "-.", ":")[number % 4], label=f"N = {curve['points']}")  # fmt: skip
        ax.axvline(1, color="0.5", linestyle="--", linewidth=0.8)
        ax.set(xscale="log", yscale="log", xlabel="features per training point, P / N", title=BASES[basis])
        ax.grid(True)
    axes[0, 0].set_ylabel("median test error (mean squared)")
    axes[0, -1].legend()
    return fig


@plots.styled
def gallery(curve, arrays):
    """Fits of a curve's first repeats (rows) at a few numbers of features (columns), with the training points."""
    fits, degrees = arrays["fits"], arrays["fits_degrees"]
    fig, axes = plots.figure(*fits.shape[:2], width=1.75 * fits.shape[1] + 0.5, height=1.35 * len(fits) + 1,
                             sharex=True, sharey=True, squeeze=False)  # fmt: skip
    grid = np.linspace(-1, 1, TEST_POINTS)
    for row in range(len(fits)):
        for ax, degree, fit, x, y in zip(axes[row], degrees, fits[row], arrays["fits_x"][row], arrays["fits_y"][row]):
            ax.plot(grid, target(grid), color="0.6", linewidth=0.8, label="2x + cos 25x")
            ax.plot(grid, np.clip(fit, -2 * CUT, 2 * CUT), linewidth=1, label="minimum-norm fit")
            ax.plot(x, y, "o", color="black", markersize=2.5, label=f"{curve['points']} training points")
            ax.set(ylim=(-CUT, CUT), xlim=(-1, 1))
            if row == 0:
                ax.set_title(f"P = {degree}")
        axes[row, 0].set_ylabel("y")
    for ax in axes[-1]:
        ax.set_xlabel("x")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig
