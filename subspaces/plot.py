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
    paths = {g: rows for g, rows in grouped(found["runs"]).items() if of_kind(rows[0], "path")}
    if paths:
        out["along"] = along(found, paths)
    sizes = [r for r in found["runs"] if of_kind(r, "centre") and r["vertices"]]
    if len({r["vertices"] for r in sizes}) > 1:
        out["simplexes"] = simplexes(found, sizes)
    if len(set(map(rate, found["runs"]))) > 1:
        out["noise"] = noise(found)
    if not out:
        out["points"] = bars(found)
    return out


def of_kind(row, kind):
    return [p for p in row["points"] if p["kind"] == kind]


def rate(row):
    """The rate of label noise; 0 of a network that does not say."""
    return row["noise_rate"] or 0.0


def grouped(rows, but=()):
    """{group: rows}; the settings named in but do not count."""
    out = {}
    for r in rows:
        kept = [w for w in r["group"].split(" ") if w.split("=")[0] not in but]
        out.setdefault(" ".join(kept), []).append(r)
    return out


OF_SUBSPACES = ("vertices", "granularity", "beta", "samples")


def labels(groups):
    """{group: a short name}: its family, and the settings that not all groups share."""
    split = {g: [w for w in g.split(" ") if "=" in w] for g in groups}
    shared = set.intersection(*map(set, split.values())) if split else set()
    out = {}
    for g, words in split.items():
        family = dict(w.split("=", 1) for w in words).get("family", "")
        kept = dict(w.split("=", 1) for w in words if w not in shared and not w.endswith(("=-", "=None")))
        unsaid = {"standard": OF_SUBSPACES, "line": ("vertices",), "curve": ("vertices",)}.get(family, ())
        kept = {k: v for k, v in kept.items() if k not in ("family", *unsaid)}
        out[g] = ", ".join(filter(None, [family, *(said(k, v) for k, v in kept.items())])) or g
    return out


def named(word, rows):
    """{words: rows} of each group of standard networks: the word alone where they are of one."""
    groups = grouped(rows)
    names = labels(groups)
    return {word if len(groups) == 1 else f"{word}: {names[g].removeprefix('standard, ')}": own
            for g, own in groups.items()}


def averages(rows):
    """The same of standard networks whose snapshots are averaged: SWA, and averages of other schedules."""
    own = [r for r in rows if usual(r) and of_kind(r, "swa")]
    swa = [r for r in own if r["scheduler"] in ("swa_cyclic", "swa_constant")]
    return {**named("SWA", swa), **named("average of snapshots", [r for r in own if r not in swa])}


def said(key, value):
    """A setting of a group in a legend's words; "" where it is what a reader expects."""
    if key == "granularity":
        return "" if value == "network" else f"by {value}"
    if key == "scheduler":
        return value
    if key == "samples":
        return "" if value == "1" else f"{value} samples"
    if key == "beta":
        return f"β = {float(value):g}"
    if key == "noise_rate":
        return f"{float(value):.0%} noise" if float(value) else ""
    if key in ("label_smoothing", "dropout", "ema") and not float(value):
        return ""
    return f"{key}={value}"


def over_runs(rows, value):
    """(value, low, high) of a number of each run, or None where no run has it."""
    values = [v for v in map(value, rows) if v is not None]
    return above_0(*results.bootstrap(values, level=LEVEL)) if values else None


def above_0(value, low, high):
    """No number here is below 0, which an interval of few runs may pass."""
    return value, None if low is None else max(low, 0.0), high


def over_pairs(pairs, measure):
    """(value, low, high) of a measure of each two of some networks, drawing networks; None where it is missing."""
    models = sorted({p[k] for p in pairs for k in "ab"})
    if not models or measure not in pairs[0] or len(pairs) != len(models) * (len(models) - 1) / 2:
        return None
    matrix = [[0.0] * len(models) for _ in models]
    for p in pairs:
        i, j = models.index(p["a"]), models.index(p["b"])
        matrix[i][j] = matrix[j][i] = p[measure]
    return above_0(*results.bootstrap_pairs(matrix, level=LEVEL))


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


def along(found, paths):
    """Every measure along the path, and of the ensemble (or pair) of t and 1 - t, dashed (figure 4 of Wortsman et al.
    2021, and beyond); horizontal: standard networks, and two of them together, without label noise. Of several rates
    of label noise the lowest."""
    lowest = min(rate(rows[0]) for rows in paths.values())
    paths = {g: rows for g, rows in paths.items() if rate(rows[0]) == lowest}
    names = labels(paths)
    fig, axes = plots.figure(2, 3, width=11.0, height=6.6, sharex=True)
    standard = named("standard", filter(plain, found["runs"]))
    for ax, (words, own, mirrored) in zip(axes.flat, PANELS):
        for colour, (group, rows) in zip(plots.palette(len(paths)), paths.items()):
            for measure, part, style in ((own, "points", "-"), (mirrored, "mirrored", "--")):
                if measure:
                    curve(ax, rows, part, measure, style, colour, names[group] if style == "-" or not own else "")
        for label, rows in standard.items():
            pairs = [p for p in found["independent"] if p["group"] == rows[0]["group"]]
            if own:
                level_band(ax, over_runs(rows, lambda r, k=own: r["points"][0][k]), "0.3", label)
            level_band(ax, over_pairs(pairs, mirrored), "0.6", label.replace("standard", "two standard networks"))
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


def usual(row):
    """Is it a standard network with the usual labels, without dropout and averages of its steps?"""
    special = row["noise_rate"] or row["label_smoothing"] or row["dropout"] or row["ema"]
    return row["family"] in ("standard", None) and not special and row["points"][0]["kind"] == "model"


def plain(row):
    """Is it trained as subspaces are, too?"""
    return usual(row) and row["scheduler"] not in CYCLES


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
    kinds = grouped(rows, but=("vertices",))
    names = labels(kinds)
    for ax, (measure, words) in zip(axes, TWO):
        for colour, (kind, own) in zip(plots.palette(len(kinds)), kinds.items()):
            against(ax, own, "vertices", measure, colour, names[kind])
        for label, own in named("standard", filter(plain, found["runs"])).items():
            level_band(ax, over_runs(own, lambda r, k=measure: r["points"][0][k]), "0.3", label)
        for label, own in averages(found["runs"]).items():
            level_band(ax, over_runs(own, lambda r, k=measure: of_kind(r, "swa")[0][k]), "0.6", label)
        ax.set_xlabel("vertices")
        ax.set_ylabel(f"{words} of the centre")
    axes[0].legend(fontsize=7)
    return fig


def against(ax, rows, key, measure, colour, label):
    """A curve of the runs' middles against one of their settings, with intervals."""
    xs = sorted({r[key] for r in rows})
    values = [over_runs([r for r in rows if r[key] == x], lambda r: middle(r)[measure]) for x in xs]
    ends = [[abs(v - (v if e is None else e)) for v, e in ((v[0], v[n]) for v in values)] for n in (1, 2)]
    ax.errorbar(xs, [v[0] for v in values], yerr=ends, marker="o", color=colour, capsize=2, label=label)
    ax.set_xticks(xs)
    ax.grid(True)


def at(row, t):
    """The point of a path at t, or None where it was not measured."""
    return next((p for p in of_kind(row, "path") if p["t"] == t), None)


def middle(row):
    """The point that stands for a run: the midpoint of a path (None where it was not measured), a simplex's centre, the
    average of snapshots, or the network itself."""
    if of_kind(row, "path"):
        return at(row, 0.5)
    for kind in ("centre", "swa", "model"):
        if own := of_kind(row, kind):
            return own[0]
    return row["points"][0]


NOISE = ("noise_rate", "noise_kind", "noise_seed", "noise_file")


def noise(found):
    """Accuracy and calibration of the middle of each kind of run against the rate of the label noise."""
    fig, axes = plots.figure(1, 2, width=8.0, height=3.4)
    kinds = grouped(filter(middle, found["runs"]), but=NOISE)
    kinds = {k: rows for k, rows in kinds.items() if len(set(map(rate, rows))) > 1}
    names, curves = labels(kinds), {}
    for k, rows in kinds.items():
        of = {r.get("noise_kind") for r in rows if rate(r)}
        for one in sorted(of):
            label = names[k] if len(of) == 1 else f"{names[k]}, {one} noise"
            curves[label] = [r for r in rows if not rate(r) or r.get("noise_kind") == one]
    for ax, (measure, words) in zip(axes, TWO):
        for colour, (label, rows) in zip(plots.palette(len(curves)), curves.items()):
            against(ax, rows, "noise_rate", measure, colour, label)
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
    families, out = {r["group"]: r["family"] or "subspace" for r in rows if of_kind(r, "path")}, []
    names = labels(families) if len(families) > 1 else families
    for group, name in names.items():
        def ends(r, k, group=group):
            own = [at(r, t) for t in (0.0, 1.0)] if r["group"] == group else [None]
            return (own[0][k] + own[1][k]) / 2 if all(own) else None

        def midpoint(r, k, group=group):
            return at(r, 0.5)[k] if r["group"] == group and at(r, 0.5) else None

        def together(r, k, group=group):
            own = [m for m in r["mirrored"] if m["t"] == 0.0] if r["group"] == group else []
            return own[0][f"{k}_probability"] if own else None

        out += [(f"{name}: ends", ends), (f"{name}: midpoint", midpoint), (f"{name}: ensemble of its ends", together)]
    for kind, found in (("swa", averages(rows)), ("model", named("standard", filter(plain, rows)))):
        for label, own in found.items():
            def value(r, k, group=own[0]["group"], kind=kind):
                return of_kind(r, kind)[0][k] if r["group"] == group and of_kind(r, kind) else None

            out.append((label, value))
    return out


def bars(found):
    """Accuracy and calibration error of each group's points, where there is nothing to draw them against."""
    fig, axes = plots.figure(1, 2, width=8.0, height=0.35 * len(found["table"]) + 1.6, sharey=True)
    names = labels([r["group"] for r in found["runs"]])
    lines = [f"{names[r['group']]}: {r['point']}" for r in found["table"]]
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
