"""The figures of linear double descent from what double_descent.linear saved, in the paper's form: log-log, parameters
over training rows, a dashed line where they are equal, a panel a table. No torch."""

import numpy as np

from landscape import plots, runs

TRAIN, TEST = "Blues", "Oranges"  # apart in hue for every reader, and each in steps of lightness
BAND = (0.25, 0.75)
FLOOR = 1e-3  # of the least error of interest: what is 0 up to rounding is drawn off the axes
SMALL = 1e-300


def figures(folder, results):
    """{name: Figure} of a run. results["statistic"] is median (with quantile bands; the default) or mean."""
    held = [Panel(about, runs.read_arrays(folder / "arrays" / f"{name}.npz"), results)
            for name, about in results["tables"].items()]
    relative = not results["as_published"]
    out = {"double_descent": errors(held), "cutoffs": ablation(
        held, "cutoff", "cutoffs", "singular values kept:\n" + ("σ ≥ c max(σ), c =" if relative else "σ ≥ c, c ="))}
    out["modes"] = ablation(held, "mode", "modes", "test rows on the\nleading k modes, k =")
    out["features"] = curves(held, "feature_test_mse", "ratios", "test rows drawn in to\nE(x·v)² ≤ γσ²/N, γ =", "as is")
    out["no_residuals"] = no_residuals(held)
    out["ridge"] = ridge(held)
    out["sigma_min"] = sigma_min(held)
    out["decomposition"] = decomposition(held, results["as_published"])
    out["mode_variance"] = mode_variance(held)
    along = "test rows + c v, c =" if not relative else "test rows + c |x| v, c ="
    out["attack_test_rows"] = curves(held, "attack_mode_test_mse", "budgets", along)
    if relative:
        out["attack_worst_rows"] = curves(held, "attack_worst_test_mse", "budgets",
                                          "each test row moved\nto its worst by c |x|, c =")
    targets = "training targets + c u, c =" if not relative else "training targets\n+ c sd(y) u, c ="
    out["attack_targets"] = curves(held, "attack_target_test_mse", "budgets", targets, train=True)
    return out


class Panel:
    """One table: its arrays, and the line and band of a measure."""

    def __init__(self, about, arrays, results):
        self.about, self.arrays = about, arrays
        self.mean = results.get("statistic", "median") == "mean"
        self.x = about["parameters"] / np.array(about["sizes"])
        self.xlabel = "(D + 1) / N" if results["intercept"] else "D / N"

    def line(self, values):
        """(line, low, high), each (S,), of values (S, B): median and its quantile band, or mean and 95 % of its error,
        as factors, since the axes are logarithmic."""
        values = np.maximum(values, SMALL)
        if not self.mean:
            return np.nanmedian(values, axis=1), *np.nanquantile(values, BAND, axis=1)
        mean = np.nanmean(values, axis=1)
        factor = np.exp(1.96 * np.nanstd(values, axis=1) / np.sqrt(values.shape[1]) / mean)
        return mean, mean / factor, mean * factor

    def draw(self, ax, values, band=True, **style):
        seen = np.isfinite(values).any(axis=1)
        line, low, high = self.line(values[seen])
        (drawn,) = ax.plot(self.x[seen], line, **style)
        if band:
            ax.fill_between(self.x[seen], low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
        return drawn

    def limits(self, shown, train):
        """Limits of a logarithmic axis of errors: above the greatest line or band; below the least line that is not
        rounding and, with train, half the training error just over the threshold."""
        lines = [self.line(v) for v in (self.arrays["test_mse"], *shown)]
        least = self.about["ideal_mse"] * FLOOR
        low = np.concatenate([line for line, _, _ in lines])
        if train:
            over = np.array(self.about["sizes"]) > self.about["parameters"]
            low = np.concatenate([low, self.line(self.arrays["train_mse"])[0][over][:1]])
        low, high = low[low > least], max(lines[0][2].max(), *(line.max() for line, _, _ in lines))
        return (0.5 * low.min(), 1.5 * high) if len(low) else ()


def frame(held, rows=1, height=2.7):
    """A figure with a column of panels for each table."""
    width, height = 2.7 * len(held) + 1.7, height * rows
    fig, axes = plots.figure(rows, len(held), width=width, height=height, squeeze=False)
    fig.set_layout_engine(None)  # the panels are regular; finding that out takes half of the time of drawing
    fig.subplots_adjust(left=0.6 / width, right=1 - 1.75 / width, bottom=0.45 / height, top=1 - 0.25 / height,
                        wspace=0.32, hspace=0.28)
    for panel, column in zip(held, axes.T):
        column[0].set_title(f"{panel.about['name'].replace('_', ' ')} (D = {panel.about['features']})")
    return fig, axes


def against_size(panel, ax, ylabel, limits=True, shown=(), train=False):
    ax.axvline(1, color="0.4", linestyle="--", linewidth=0.8)
    ax.set(xscale="log", yscale="log", xlabel=panel.xlabel, ylabel=ylabel)
    low, high = panel.x.min(), panel.x.max()
    ticks = [t for t in 2.0 ** np.arange(-7, 12) if low <= t <= high]
    ax.set_xticks(ticks[ticks.index(1) % 2::2] if len(ticks) > 5 and 1 in ticks else ticks)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()  # they take two thirds of the time of drawing
    if limits:
        ax.set_ylim(*panel.limits(shown, train))


def said(held, what, band=True):
    """What lines and bands are, for a legend's title."""
    lines, bands = ("mean", "95 % of its error") if held[0].mean else ("median", "25 to 75 %")
    return f"{what}\n({lines}, {bands})" if band else f"{what}\n({lines}s)"


def beside(fig, handles, labels, title):
    from matplotlib.legend_handler import HandlerTuple

    legend = fig.legend(handles, labels, title=title, loc="center left", fontsize=7,
                        bbox_to_anchor=(1 - 1.7 / fig.get_figwidth(), 0.5), title_fontsize=7,
                        handler_map={tuple: HandlerTuple(ndivide=None)}, handlelength=2.6)
    legend.get_title().set_multialignment("center")


def shades(name, n):
    import matplotlib

    return matplotlib.colormaps[name](np.linspace(0.35, 0.95, n) if n > 1 else [0.75])


@plots.styled
def errors(held):
    """Test and training error of least squares."""
    fig, axes = frame(held)
    test, train = shades(TEST, 1)[0], shades(TRAIN, 1)[0]
    for panel, ax in zip(held, axes[0]):
        one = panel.draw(ax, panel.arrays["test_mse"], color=test)
        two = panel.draw(ax, panel.arrays["train_mse"], color=train, linestyle="-.")
        ideal = ax.axhline(panel.about["ideal_mse"], color="0.4", linestyle=":", linewidth=0.8)
        against_size(panel, ax, "mean squared error" if ax is axes[0, 0] else "", train=True)
    beside(fig, [one, two, ideal], ["test", "training", "best linear\nmodel of all rows"], said(held, "least squares"))
    return fig


@plots.styled
def ablation(held, name, over, title):
    """Test (orange) and training error (blue) for each setting of an ablation."""
    fig, axes = frame(held)
    pairs, values = {}, sorted({v for p in held for v in p.about[over]})
    for panel, ax in zip(held, axes[0]):
        shown = panel.arrays[f"{name}_test_mse"]
        for setting, test, train in zip(panel.about[over], shown, panel.arrays[f"{name}_train_mse"]):
            at = values.index(setting)
            colours = [shades(m, len(values))[at] for m in (TEST, TRAIN)]
            pair = (panel.draw(ax, test, color=colours[0], linewidth=1.1, band=False),
                    panel.draw(ax, train, color=colours[1], linewidth=0.9, band=False, linestyle="-."))
            pairs[setting] = pair
        plain = panel.draw(ax, panel.arrays["test_mse"], color="black", linewidth=0.9, linestyle=":", band=False)
        against_size(panel, ax, "mean squared error" if ax is axes[0, 0] else "", shown=shown, train=True)
    order = sorted(pairs)
    beside(fig, [plain, *(pairs[s] for s in order)], ["test, all kept", *(f"{s:g}" for s in order)],
           title + f"\n(test, training; {'means' if held[0].mean else 'medians'})")
    return fig


@plots.styled
def curves(held, measure, over, title, zero="", train=False):
    """Test error for each setting of `over`, with bands; the error without it dotted where a name for it is given;
    train: the training error, which no setting changes."""
    fig, axes = frame(held)
    values = sorted({v for p in held for v in p.about[over]})
    handles = {}
    for panel, ax in zip(held, axes[0]):
        shown = panel.arrays[measure]
        for setting, test in zip(panel.about[over], shown):
            colour = shades(TEST, len(values))[values.index(setting)]
            handles[f"{setting:g}"] = panel.draw(ax, test, color=colour, linewidth=1.2, band=len(values) < 4)
        if zero:
            handles[zero] = panel.draw(ax, panel.arrays["test_mse"], color="black", linewidth=0.9, linestyle=":",
                                       band=False)
        if train:
            handles["training, any c"] = panel.draw(ax, panel.arrays["train_mse"], color=shades(TRAIN, 1)[0],
                                                    linewidth=1, linestyle="-.", band=False)
        words = "mean squared error" if train else "test error (MSE)"
        against_size(panel, ax, words if ax is axes[0, 0] else "", shown=shown, train=train)
    beside(fig, list(handles.values()), list(handles), said(held, title, band=len(values) < 4))
    return fig


@plots.styled
def no_residuals(held):
    """Test error with targets that are linear in the features: the bias alone, and 0 from N = P on."""
    fig, axes = frame(held)
    for panel, ax in zip(held, axes[0]):
        plain = panel.draw(ax, panel.arrays["test_mse"], color="black", linewidth=0.9, linestyle=":", band=False)
        clean = panel.draw(ax, panel.arrays["noresidual_test_mse"], color=shades(TEST, 1)[0])
        against_size(panel, ax, "test error (MSE)" if ax is axes[0, 0] else "",
                     shown=[panel.arrays["noresidual_test_mse"]])
        sizes = np.array(panel.about["sizes"])
        if (sizes >= panel.about["parameters"]).any() and (sizes < panel.about["parameters"]).any():
            ax.set_ylim(bottom=0.1 * ax.get_ylim()[0])
            ax.annotate("0 up to rounding", (0.03, 0.04), xycoords="axes fraction", color=shades(TEST, 1)[0],
                        fontsize=6, rotation=90)
    beside(fig, [plain, clean], ["targets as given", "targets of the best\nlinear model"], said(held, "test error"))
    return fig


@plots.styled
def ridge(held):
    """Above test error against size for each penalty, the best and the one by leave-one-out; below against the penalty
    at three sizes."""
    fig, axes = frame(held, rows=2)
    handles, below = {}, {}
    for panel, column in zip(held, axes.T):
        tests, lambdas = panel.arrays["ridge_test_mse"], panel.about["lambdas"]
        best = np.take_along_axis(tests, panel_best(panel)[None, :, None], axis=0)[0]
        for k, (penalty, test) in enumerate(zip(lambdas, tests)):
            handles[f"λ = {penalty:g}"] = panel.draw(column[0], test, color=shades(TEST, len(lambdas))[k],
                                                     linewidth=0.8, band=False)
        handles["least squares"] = panel.draw(column[0], panel.arrays["test_mse"], color="black", linewidth=0.9,
                                              linestyle=":", band=False)
        handles["best λ of each size\n(by the test rows)"] = panel.draw(column[0], best, color="C0", linewidth=1.8)
        handles["leave-one-out's λ"] = panel.draw(column[0], panel.arrays["ridge_loo_test_mse"], color="C4",
                                                  linestyle="--")
        against_size(panel, column[0], "test error (MSE)" if column[0] is axes[0, 0] else "", shown=[best])
        sizes, p = panel.about["sizes"], panel.about["parameters"]
        for k, n in enumerate((max(1, p // 2), p, 2 * p)):
            if n in sizes:
                line, low, high = panel.line(tests[:, sizes.index(n)])
                (below[("N = P / 2", "N = P", "N = 2 P")[k]],) = column[1].plot(lambdas, line, color=f"C{(0, 1, 2)[k]}",
                                                                              linestyle=("-.", "-", "--")[k])
                column[1].fill_between(lambdas, low, high, color=f"C{k}", alpha=0.15, linewidth=0)
        column[1].set(xscale="log", yscale="log", xlabel="penalty λ",
                      ylabel="test error (MSE)" if column[1] is axes[1, 0] else "")
        column[1].minorticks_off()
    beside(fig, [*handles.values(), *below.values()], [*handles, *below], said(held, "ridge"))
    return fig


def panel_best(panel):
    """Of each size the penalty with the least median test error: indices (S,)."""
    return np.median(panel.arrays["ridge_test_mse"], axis=-1).argmin(axis=0)


@plots.styled
def sigma_min(held):
    fig, axes = frame(held)
    for panel, ax in zip(held, axes[0]):
        line = panel.draw(ax, panel.arrays["sigma_min"], color="C0")
        against_size(panel, ax, "smallest non-zero singular value" if ax is axes[0, 0] else "", limits=False)
    beside(fig, [line], ["of the training\nrows"], said(held, "σ min"))
    return fig


@plots.styled
def decomposition(held, published):
    """Excess of the test error over the best linear model's: what the span lacks, what residuals add."""
    fig, axes = frame(held)
    handles = {}
    for panel, ax in zip(held, axes[0]):
        arrays = panel.arrays
        parts = {"bias²": (arrays["bias"], "C0", "-"), "variance": (arrays["variance"], "C1", "-"),
                 "|cross terms|": (np.abs(arrays["cross"] + arrays["noise_cross"]), "C2", "--"),
                 "test error": (arrays["test_mse"], "black", ":")}  # fmt: skip
        if published:
            parts["bias² as published\n(square of the mean)"] = (arrays["bias_as_published"], "C4", "-.")
        for name, (values, colour, style) in parts.items():
            handles[name] = panel.draw(ax, values, color=colour, linestyle=style, band=name == "variance")
        against_size(panel, ax, "part of the test error (MSE)" if ax is axes[0, 0] else "")
        ax.set_ylim(bottom=panel.about["ideal_mse"] * FLOOR * 10)
    beside(fig, list(handles.values()), list(handles), said(held, "parts"))
    return fig


@plots.styled
def mode_variance(held):
    """What each mode gives to the variance: E (x.v)^2 (u.e)^2 / sigma^2."""
    fig, axes = frame(held)
    handles = {}
    for panel, ax in zip(held, axes[0]):
        sizes, p = panel.about["sizes"], panel.about["parameters"]
        chosen = [(name, n) for name, n in (("N = P / 2", max(2, p // 2)), ("N = P", p), ("N = 2 P", 2 * p))
                  if n in sizes]
        for k, (name, n) in enumerate(chosen):
            values = panel.arrays["mode_variance"][sizes.index(n)]
            there = np.isfinite(values).any(axis=0)
            line, low, high = panel.line(values[:, there].T)
            order = np.flatnonzero(there) + 1
            (handles[name],) = ax.plot(order, line, marker="os^"[k], linestyle=("-.", "-", "--")[k], color=f"C{k}")
            ax.fill_between(order, low, high, color=f"C{k}", alpha=0.15, linewidth=0)
        ax.set(yscale="log", xlabel="mode, from the largest σ",
               ylabel="its variance in the test error" if ax is axes[0, 0] else "")
        ax.minorticks_off()
        ax.xaxis.get_major_locator().set_params(integer=True)
    beside(fig, list(handles.values()), list(handles), said(held, "E(x·v)² (u·e)² / σ²"))
    return fig
