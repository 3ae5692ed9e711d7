"""Figures of subspaces.evaluate drawn again, in other formats or styles; needs no torch.

    python -m subspaces.plot runs/subspaces --formats pdf,svg

Every run's figures go into its figures/ or, with --plot_path DIR, into DIR/<run>. Where the folders hold results on
corrupted images (subspaces.evaluate --corruption), one figure of all of them goes into the first folder's figures/ or
into DIR.
"""

from pathlib import Path

from landscape import cli, plots, redraw, results

LEVEL = 0.95
CYCLES = ("swa_cyclic", "swa_constant", "cyclic", "fge")  # schedules of networks that are averaged or kept together
FIGURES = {"subspaces": "subspaces.plot:figures"}


def make_parser():
    return redraw.make_parser("python -m subspaces.plot", __doc__)


def main(argv=None):
    args = cli.resolve(make_parser().settings(argv))
    redraw.redraw(args, FIGURES)
    if figure := corruptions([found for _, found in redraw.found(args.folders, FIGURES)]):
        place = Path(args.plot_path or Path(args.folders[0]) / "figures")
        for path in plots.save(figure, place / "corruptions", args.formats.split(",")):
            print(f"figure: {path}")
    return 0


def figures(folder, found):
    """{name: Figure} of the results.json of subspaces.evaluate: what its runs allow."""
    out = {}
    names = labels([r["group"] for r in found["runs"]])
    paths = {g: rows for g, rows in grouped(found["runs"]).items() if of_kind(rows[0], "path")}
    if paths:
        out["along"] = along(found, paths, names)
    sizes = [r for r in found["runs"] if of_kind(r, "centre")]
    if len({r["vertices"] for r in sizes}) > 1:
        out["simplexes"] = simplexes(found, sizes)
    if len({r["noise_rate"] for r in found["runs"]}) > 1:
        out["noise"] = noise(found)
    if not out:
        out["points"] = bars(found, names)
    return out


def of_kind(row, kind):
    return [p for p in row["points"] if p["kind"] == kind]


def grouped(rows):
    out = {}
    for r in rows:
        out.setdefault(r["group"], []).append(r)
    return out


def labels(groups):
    """{group: a short name}: without the settings that all groups share."""
    split = {g: [w for w in g.split(" ") if "=" in w] for g in groups}
    shared = set.intersection(*(set(words) for words in split.values())) if len(split) > 1 else set()
    out = {}
    for g, words in split.items():
        kept = dict(w.split("=", 1) for w in words if w not in shared and not w.endswith(("=-", "=None")))
        family = kept.pop("family", "")
        if family not in ("simplex", "chain", ""):
            kept.pop("vertices", None)  # a line has two, a curve three
        if family == "standard":
            kept = {k: v for k, v in kept.items() if k in ("noise_rate", "scheduler")}
        out[g] = ", ".join(filter(None, [family, *(said(k, v) for k, v in kept.items())])) or g
    return out


def said(key, value):
    """A setting of a group in a legend's words; "" where it is what a reader expects."""
    if key == "granularity":
        return "" if value == "network" else f"by {value}"
    if key == "beta":
        return f"β = {float(value):g}"
    if key == "noise_rate":
        return f"{float(value):.0%} noise" if float(value) else ""
    return f"{key}={value}"


def over_runs(rows, value):
    """(value, low, high) of a number of each run, or None where no run has it. No number here is below 0, which an
    interval of few runs may pass."""
    values = [v for v in map(value, rows) if v is not None]
    if not values:
        return None
    value, low, high = results.bootstrap(values, level=LEVEL)
    return value, None if low is None else max(low, 0.0), high


def level_band(ax, found, colour, label):
    """A horizontal line with its interval."""
    if found is None:
        return
    value, low, high = found
    ax.axhline(value, color=colour, linewidth=1, label=label)
    if low is not None:
        ax.axhspan(low, high, color=colour, alpha=0.15, linewidth=0)


# What a panel shows: (words for the axis, a measure of points, a measure of mirrored pairs); each perhaps None.
PANELS = (
    ("test accuracy", "accuracy", "accuracy_probability"), ("expected calibration error", "ece", "ece_probability"),
    ("negative log-likelihood (nats)", "nll", "nll_probability"),
    ("disagreement of t and 1 - t", None, "disagreement"), ("total variation of t and 1 - t", None, "total_variation"),
    ("squared cosine of features, t and 1 - t", None, "cosine_squared"),
)


def along(found, paths, names):
    """Every measure along the path, and of the ensemble (or pair) of t and 1 - t, dashed (figure 4 of Wortsman et al.
    2021, and beyond); horizontal: standard networks, and two of them together, without label noise. Of several rates
    of label noise the lowest."""
    lowest = min(rows[0]["noise_rate"] for rows in paths.values())
    paths = {g: rows for g, rows in paths.items() if rows[0]["noise_rate"] == lowest}
    names = labels(list(paths)) if len(paths) > 1 else names
    fig, axes = plots.figure(2, 3, width=11.0, height=6.6, sharex=True)
    standard = [r for r in found["runs"] if plain(r)]
    pairs = [p for p in found["independent"] if any(p["group"] == r["group"] for r in standard)]
    for ax, (words, own, mirrored) in zip(axes.flat, PANELS):
        for colour, (group, rows) in zip(plots.palette(len(paths)), paths.items()):
            for measure, part, style in ((own, "points", "-"), (mirrored, "mirrored", "--")):
                if measure:
                    curve(ax, rows, part, measure, style, colour, names[group] if style == "-" or not own else "")
        if own:
            level_band(ax, over_runs(standard, lambda r, k=own: r["points"][0][k]), "0.3", "standard")
        if pairs:
            level_band(ax, over_runs(pairs, lambda p, k=mirrored: p.get(k)), "0.6", "two standard networks")
        ax.set_ylabel(words)
        ax.grid(True)
        low, high = ax.get_ylim()
        ax.set_ylim(max(low, 0), high if own == "nll" else min(high, 1.02))  # bands of few seeds pass what can be
    for ax in axes[-1]:
        ax.set_xlabel("t")
    handles, words = axes.flat[0].get_legend_handles_labels()
    handles.append(axes.flat[0].plot([], [], "--", color="0.3")[0])
    fig.legend(handles, [*words, "ensemble of t and 1 - t"], loc="outside upper center", ncols=4, fontsize=8)
    return fig


def plain(row):
    """Is it a standard network with the usual labels, trained as subspaces are?"""
    special = row["noise_rate"] or row["label_smoothing"] or row["dropout"] or row["ema"] or row["scheduler"] in CYCLES
    return row["family"] in ("standard", None) and not special and row["points"][0]["kind"] == "model"


def curve(ax, rows, part, measure, style, colour, label):
    ts = [p["t"] for p in rows[0][part] if p["t"] is not None]
    values = [over_runs(rows, lambda r, n=n: r[part][n][measure] if n < len(r[part]) else None)
              for n in range(len(ts))]
    ax.plot(ts, [v for v, _, _ in values], style, color=colour, label=label, linewidth=1.2)
    if values and values[0][1] is not None:
        ax.fill_between(ts, [v[1] for v in values], [v[2] for v in values], color=colour, alpha=0.15, linewidth=0)


TWO = (("accuracy", "test accuracy"), ("ece", "expected calibration error"))


def simplexes(found, rows):
    """Accuracy and calibration of a simplex's centre against its number of vertices (figure 5)."""
    fig, axes = plots.figure(1, 2, width=8.0, height=3.4)
    kinds = sorted({(r["granularity"], r["noise_rate"]) for r in rows})
    averages = [r for r in found["runs"] if of_kind(r, "swa") and not r["noise_rate"]]
    for ax, (measure, words) in zip(axes, TWO):
        for colour, kind in zip(plots.palette(len(kinds)), kinds):
            own = [r for r in rows if (r["granularity"], r["noise_rate"]) == kind]
            against(ax, own, "vertices", measure, colour, of=kind)
        level_band(ax, over_runs(filter(plain, found["runs"]), lambda r, k=measure: middle(r)[k]), "0.3", "standard")
        level_band(ax, over_runs(averages, lambda r, k=measure: middle(r)[k]), "0.6", "SWA")
        ax.set_xlabel("vertices")
        ax.set_ylabel(f"{words} of the centre")
    axes[0].legend(fontsize=7)
    return fig


def against(ax, rows, key, measure, colour, of):
    """A curve of the runs' middles against one of their settings, with intervals. of: (granularity, noise rate)."""
    xs = sorted({r[key] for r in rows})
    values = [over_runs([r for r in rows if r[key] == x], lambda r: middle(r)[measure]) for x in xs]
    ends = [[abs(v - (v if e is None else e)) for v, e in ((v[0], v[n]) for v in values)] for n in (1, 2)]
    words = [rows[0]["family"] or "standard"] + ["each module by itself"] * (of[0] == "module")
    words += [f"label noise {of[1]:g}"] * bool(of[1])
    ax.errorbar(xs, [v[0] for v in values], yerr=ends, marker="o", color=colour, capsize=2, label=", ".join(words))
    ax.set_xticks(xs)
    ax.grid(True)


def middle(row):
    """The point that stands for a run: the midpoint of a path, a simplex's centre, the average of snapshots, or the
    network itself."""
    for kind in ("path", "centre", "swa", "model"):
        if own := of_kind(row, kind):
            return min(own, key=lambda p: abs(p["t"] - 0.5)) if kind == "path" else own[0]
    return row["points"][0]


def noise(found):
    """Accuracy and calibration of each family's middle against the rate of the label noise."""
    fig, axes = plots.figure(1, 2, width=8.0, height=3.4)
    kinds = {}
    for r in found["runs"]:
        kind = tuple(str(r[k]) for k in ("family", "vertices", "granularity", "scheduler"))
        kinds.setdefault((*kind, str(r["beta"])) if r["family"] != "standard" else kind, []).append(r)
    kinds = {k: rows for k, rows in kinds.items() if len({r["noise_rate"] for r in rows}) > 1}
    for ax, (measure, words) in zip(axes, TWO):
        for colour, rows in zip(plots.palette(len(kinds)), kinds.values()):
            against(ax, rows, "noise_rate", measure, colour, of=(rows[0]["granularity"], 0))
        ax.set_xlabel("rate of label noise in training")
        ax.set_ylabel(words)
    axes[0].legend(fontsize=7) if kinds else None
    return fig


def corruptions(results_of_all):
    """Accuracy and calibration error under each corruption that was measured, and on clean images where they were: of a
    path's ends, its midpoint and the ensemble of its ends, of averages of snapshots and of standard networks, with
    intervals over runs. None where there are no two such results. Of two of one corruption that with more runs counts.
    """
    held = {f["corruption"]: f["runs"] for f in sorted(results_of_all, key=lambda f: len(f["runs"]))}
    if not any(held) or len(held) < 2:
        return None
    groups = {r["group"] for name, rows in held.items() if name for r in rows}
    held = {name: [r for r in held[name] if r["group"] in groups] for name in sorted(held)}
    series = corruption_series(held)
    fig, axes = plots.figure(1, 2, width=max(8.0, 0.9 * len(held) * 2 + 2), height=4.2)
    for ax, (measure, words) in zip(axes, TWO):
        for number, (colour, mark, (label, value)) in enumerate(zip(plots.palette(len(series)), MARKS * 9, series)):
            found = [over_runs(rows, lambda r, v=value, k=measure: v(r, k)) for rows in held.values()]
            points = [(x + 0.7 * ((number + 0.5) / len(series) - 0.5), *f) for x, f in enumerate(found) if f]
            ends = [[abs(p[1] - (p[1] if p[n] is None else p[n])) for p in points] for n in (2, 3)]
            ax.errorbar([p[0] for p in points], [p[1] for p in points], yerr=ends, fmt=mark, color=colour, capsize=2,
                        markersize=5, label=label)
        said = [name.replace("_", " ").replace(":", ", severity ") or "clean" for name in held]
        ax.set_xticks(range(len(held)), said, rotation=35, ha="right", rotation_mode="anchor")
        for x in range(1, len(held)):
            ax.axvline(x - 0.5, color="0.85", linewidth=0.8)
        ax.set(ylabel=words, ylim=(0, None), xlim=(-0.5, len(held) - 0.5))
        ax.grid(True, axis="y")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    return fig


MARKS = ("o", "s", "^", "D", "v", "X", "P")


def corruption_series(held):
    """[(label, value of a row and a measure, None where it has none)] of the runs {corruption: rows}."""
    rows = [r for own in held.values() for r in own]
    families, out = {r["group"]: r["family"] for r in rows if of_kind(r, "path")}, []
    names = labels(list(families)) if len(families) > 1 else families
    for group, name in names.items():
        def ends(r, k, group=group):
            own = of_kind(r, "path") if r["group"] == group else []
            return (own[0][k] + own[-1][k]) / 2 if own else None

        def midpoint(r, k, group=group):
            return middle(r)[k] if r["group"] == group else None

        def together(r, k, group=group):
            return r["mirrored"][0][f"{k}_probability"] if r["group"] == group and r["mirrored"] else None

        out += [(f"{name}: ends", ends), (f"{name}: midpoint", midpoint), (f"{name}: ensemble of its ends", together)]
    if any(of_kind(r, "swa") for r in rows):
        out.append(("SWA", lambda r, k: middle(r)[k] if of_kind(r, "swa") else None))
    if any(map(plain, rows)):
        out.append(("standard", lambda r, k: r["points"][0][k] if plain(r) else None))
    return out


def bars(found, names):
    """Accuracy and calibration error of each group's points, where there is nothing to draw them against."""
    fig, axes = plots.figure(1, 2, width=8.0, height=0.35 * len(found["table"]) + 1.6, sharey=True)
    lines = [f"{names.get(r['group'], r['group'])}: {r['point']}" for r in found["table"]]
    for ax, measure in zip(axes, ("accuracy", "ece")):
        for place, r in enumerate(found["table"]):
            ends = [[abs(r[measure] - (r[measure] if r[f"{measure}_{k}"] is None else r[f"{measure}_{k}"]))]
                    for k in ("low", "high")]
            ax.errorbar(r[measure], place, xerr=ends, fmt="o", color="black", markersize=4, capsize=2)
        ax.set_xlabel({"accuracy": "test accuracy", "ece": "expected calibration error"}[measure])
        ax.set_yticks(range(len(lines)), lines)
        ax.set_ylim(len(lines) - 0.5, -0.5)
    return fig


if __name__ == "__main__":
    cli.run(main)
