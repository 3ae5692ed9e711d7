"""The figures of double_descent.spectra from what it saved. No torch."""

import numpy as np

from double_descent.spectra import marchenko_pastur
from landscape import plots, runs

SHOWN = (1, 2, 3, 4, 10, 25, 100, 1500)  # of the nested subsets
REACH = np.array((16, 9, 7))  # half the sides of the box that is drawn


def figures(folder, results):
    """{name: Figure} of a run."""
    arrays = folder / "arrays"
    return {"geometry": geometry(runs.read_arrays(arrays / "geometry.npz")),
            "sigma_min": sigma_min({d: runs.read_arrays(arrays / f"sigma_min-{d}.npz") for d in results["dimensions"]}),
            "eigenvalues": histograms({(n, d): runs.read_arrays(arrays / f"eigenvalues-{n}-{d}.npz")["values"]
                                       for n in results["sides"] for d in results["sides"]})}  # fmt: skip


@plots.styled
def geometry(held):
    """Nested subsets in three dimensions; arrows of length sqrt(lambda) along the principal axes, both ways."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(12, 6.4))
    axes = fig.subplots(2, 4, subplot_kw={"projection": "3d"}).ravel()
    for ax, n in zip(axes, SHOWN):
        i = list(held["subsets"]).index(n)
        points, variances = held["points"][:n], held["variances"][i]
        ax.scatter(*points.T, s=10 if n < 100 else 3, color="0.3", alpha=0.9 if n < 100 else 0.4, linewidth=0)
        for k, (variance, axis) in enumerate(zip(variances, held["axes"][i])):
            if k < min(n, 3):
                ends = np.outer([-1, 1], variance**0.5 * axis)
                ax.plot(*ends.T, color=f"C{(0, 1, 3)[k]}", linewidth=2.2, label=f"√λ = {variance**0.5:.2f}")
        ax.set(**{f"{name}lim": (-reach, reach) for name, reach in zip("xyz", REACH)})
        ax.set_box_aspect(REACH, zoom=1.05)
        ax.set_title(f"N = {n}", y=0.98)
        ax.tick_params(labelsize=5, pad=-4)
        ax.set_xticks((-10, 0, 10))
        ax.set_yticks((-5, 0, 5))
        ax.set_zticks((-5, 0, 5))
        ax.set_xlabel("$x_1$", labelpad=-9)
        ax.set_ylabel("$x_2$", labelpad=-9)
        ax.set_zlabel("$x_3$", labelpad=-9)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.04), ncols=3, fontsize=6, handlelength=0.8,
                  columnspacing=0.8)
        ax.view_init(22, -62)
    fig.subplots_adjust(left=0.01, right=0.97, bottom=0.06, top=0.95, wspace=0.12, hspace=0.14)
    return fig


@plots.styled
def sigma_min(held):
    """Smallest non-zero singular value against N: median and 5 to 95 % over seeds, and the law's edge."""
    fig, axes = plots.figure(1, len(held), width=3.6 * len(held), height=3.0, squeeze=False)
    for (d, arrays), ax in zip(held.items(), axes[0]):
        x, values = arrays["sizes"], arrays["sigma_min"]
        ax.plot(x, np.median(values, axis=1), color="C0", label="median")
        ax.fill_between(x, *np.quantile(values, (0.05, 0.95), axis=1), color="C0", alpha=0.2, linewidth=0,
                        label=f"5 to 95 % of {values.shape[1]} seeds")
        if arrays["isotropic"]:
            fine = np.geomspace(1, x[-1], 800)
            ax.plot(fine, np.abs(fine**0.5 - d**0.5), ":", color="black", label="|√N − √D|")
        ax.axvline(d, color="0.4", linestyle="--", linewidth=0.8, label=f"N = D = {d}")
        least = np.quantile(values, 0.01, axis=1).min()
        ax.set(xscale="log", yscale="log", xlabel="rows N", ylim=(least / 2, values.max() * 1.5),
               title="three dimensions, correlated" if not arrays["isotropic"] else f"{d} dimensions, isotropic",
               ylabel="smallest non-zero singular value" if ax is axes[0, 0] else "")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.legend(fontsize=7)
    return fig


@plots.styled
def histograms(held):
    """Eigenvalues of X'X / N that are not 0 by rank, and the Marchenko-Pastur density."""
    sides = sorted({n for n, _ in held})
    fig, axes = plots.figure(len(sides), len(sides), width=2.6 * len(sides) + 0.4, height=2.1 * len(sides) + 0.3,
                             squeeze=False)
    for (n, d), values in held.items():
        ax, ratio = axes[sides.index(n), sides.index(d)], d / n
        low, high = (1 - ratio**0.5)**2, (1 + ratio**0.5)**2
        ax.hist(values, bins=60, density=True, color="C0", alpha=0.45, label="measured")
        # Cosines of equal angles crowd at both ends, where the density turns.
        fine = (low + high) / 2 + (high - low) / 2 * np.cos(np.linspace(np.pi - 1e-3, 1e-3, 400))
        law = marchenko_pastur(fine, ratio)
        ax.plot(fine, law, color="C3", label="Marchenko–Pastur")
        if ratio == 1:  # the density has a pole at 0
            ax.set_ylim(0, 3)
        ax.set_title(f"N = {n}, D = {d}" + (f" ({1 - 1 / ratio:.0%} of D are 0)" if ratio > 1 else ""), fontsize=8)
        ax.set_xlabel("eigenvalue of XᵀX / N" if n == sides[-1] else "")
        ax.set_ylabel("density" if d == sides[0] else "")
    axes[0, 0].legend(fontsize=7)
    return fig
