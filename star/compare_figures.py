"""Figures of star.compare: one star beside its baselines; several over widths and over numbers of anchors. No torch."""

import numpy as np

from landscape import plots
from landscape.results import bootstrap
from star import starlight
from star.comparisons import KINDS, PUBLISHED, by_anchors, by_recipe, by_width, cell


def figures(folder, found):
    """{"barriers": those of each kind of line and alignment, "paths": ways from anchor to anchor, if measured}"""
    paths = {"paths": path_figure(found)} if found["paths"] else {}
    return {"barriers": star_figure(found), **paths}


def star_figure(found):
    """A panel for each split and measure; a row for each kind of line and alignment, grey marks for pairs."""
    measures = {f"{part}_{m}_barrier": f"{part} {m} barrier" for part in ("train", "test")
                for m in ("loss", "accuracy")}
    groups, pairs = [], []
    others = {m["name"] for m in found["models"] if m["role"] == "other"}
    other = others.pop() if len(others) == 1 else "other"
    for how in found["align"]:
        for kind, words in KINDS.items():
            cells = {name: cell(found, kind, how, *name.split("_", 1)) for name in measures}
            if cells["train_loss_barrier"] is None:
                continue
            name = words.replace("other", other) + f", {how}" * (len(found["align"]) > 1)
            groups.append({"group": name, **cells})
            pairs += [{"group": name, **{f"{part}_{m}_barrier": {"value": r[part][f"{m}_barrier"]}
                                         for part in ("train", "test") for m in ("loss", "accuracy")}}
                      for r in found["lines"] if (r["kind"], r["align"]) == (kind, how)]
    star = found["star"]
    note = (f"star of {star['anchors']} {star['net']} on {star['dataset']}, {star['held_out']} held-out networks; "
            f"{found['level']:.0%} intervals")
    return plots.interval_figure(groups, pairs, measures, note, each="pair")


def path_figure(found):
    """A row for each way from anchor to anchor: straight, over the star, along a learned curve; grey: each pair."""
    ways = {f"{words}, {how}" if len(found["align"]) > 1 else words: [
        {part: p[f"{part}_{key}"] for part in ("train", "test")} for p in found["paths"] if p["align"] == how]
        for how in found["align"] for key, words in (("straight", "straight"), ("over_star", "over the star"))}
    if found["bends"]:
        ways["learned curve, units as they are"] = [{part: b[f"{part}_barrier"] for part in ("train", "test")}
                                                    for b in found["bends"]]
    measures = {part: f"anchor to anchor: {part} loss barrier (nats)" for part in ("train", "test")}
    groups = [{"group": name, **{part: dict(zip(("value", "low", "high"), bootstrap([p[part] for p in some])))
                                 for part in measures}} for name, some in ways.items()]
    pairs = [{"group": name, **{part: {"value": p[part]} for part in measures}} for name, some in ways.items()
             for p in some]
    star = found["star"]
    note = f"{star['net']} on {star['dataset']}; 95% intervals over {len(found['paths']) // len(found['align'])} pairs"
    return plots.interval_figure(groups, pairs, measures, note, each="pair")


def over_stars(results):
    """{"width": barriers against the width, and star against regular; "anchors": barriers against the number of
    anchors; "recipes": how the stars were trained}, of the results of star.compare that allow it; in the last alignment
    that all of them have."""
    out = {}
    for name, draw, sets in (("width", width_figure, by_width(results)), ("anchors", anchor_figure,
                                                                          by_anchors(results))):
        shared = [how for how in sets[0][1]["align"] if all(how in r["align"] for _, r in sets)] if sets else []
        if len(sets) > 1 and shared:
            out[name] = draw(sets, shared[-1])
    recipes = by_recipe(results)
    every = [found for some in recipes.values() for found in some]
    shared = [how for how in every[0]["align"] if all(how in f["align"] for f in every)] if every else []
    if len(recipes) > 1 and shared:
        out["recipes"] = recipe_figure(recipes, shared[-1])
    return out


def recipe_figure(sets, how):
    """A row for each way to train a star: barriers to held-out networks, own loss, and accuracy, of several stars."""
    measures = {"barrier": "star to held-out: train loss barrier (nats)", "loss": "train loss of the star (nats)",
                "accuracy": "test accuracy of the star"}
    groups, stars = [], []
    for name, some in sets.items():
        pairs = {(found["star"]["path"], line["b"]): line["train"]["loss_barrier"] for found in some
                 for line in found["lines"] if (line["kind"], line["align"]) == ("star_held_out", how)}
        own = {k: [next(m[which] for m in found["models"] if m["role"] == "star") for found in some]
               for k, which in (("loss", "train_loss"), ("accuracy", "test_accuracy"))}
        cells = {k: dict(zip(("value", "low", "high"), bootstrap(v))) for k, v in own.items()}
        groups.append({"group": name, "barrier": starlight.over_pairs(pairs), **cells})
        stars += [{"group": name, "barrier": {"value": cell(found, "star_held_out", how)["value"]},
                   **{k: {"value": own[k][n]} for k in own}} for n, found in enumerate(some)]
    first = next(iter(sets.values()))[0]["star"]
    note = (f"{first['net']}, width {first['width']}, on {first['dataset']}, {first['anchors']} anchors, "
            f"{first['held_out']} held-out networks, aligned by {how}; 95% intervals")
    return plots.interval_figure(groups, stars, measures, note, each="star")


def bars(ax, x, cells, label, **style):
    """Values with their intervals."""
    ax.errorbar(x, [c["value"] for c in cells], yerr=errors(cells), capsize=2, markersize=4, label=label, **style)


def width_figure(sets, how):
    """Left: barriers on the training set against the width. Right: star against regular, our line and the published."""
    fig, (left, right) = plots.figure(1, 2, width=9.0, height=3.8)
    widths = [width for width, _ in sets]
    colours = plots.palette(3)
    for k, (kind, colour) in enumerate(zip(("anchor_held_out", "star_held_out", "star_anchor"), colours)):
        places = [width * 1.05 ** (k - 1) for width in widths]
        bars(left, places, [cell(found, kind, how) for _, found in sets], KINDS[kind], fmt="o-", color=colour)
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    left.set_xticks(widths, [str(w) for w in widths])
    left.set_xlabel("width")
    left.set_ylabel("train loss barrier (nats)")
    left.legend(fontsize=8)
    regular, star = ([cell(found, kind, how) for _, found in sets] for kind in ("anchor_held_out", "star_held_out"))
    x, y = (np.array([c["value"] for c in cells]) for cells in (regular, star))
    slope, offset = np.polyfit(x, y, 1)
    right.errorbar(x, y, xerr=errors(regular), yerr=errors(star), fmt="o", markersize=4, capsize=2, color=colours[1],
                   label=f"ours: {slope:.3f} x {offset:+.3f}")
    for (width, _), a, b in zip(sets, x, y):
        right.annotate(str(width), (a, b), xytext=(3, 3), textcoords="offset points", fontsize=7)
    ends = [*x, *PUBLISHED["regular"]]
    grid = np.geomspace(min(ends), max(ends), 50)
    right.plot(grid, slope * grid + offset, color=colours[1])
    right.plot(PUBLISHED["regular"], PUBLISHED["star"], "s", color="0.5", markersize=4, markerfacecolor="none",
               label=f"published: {PUBLISHED['slope']} x +{PUBLISHED['offset']}")
    right.plot(grid, PUBLISHED["slope"] * grid + PUBLISHED["offset"], "--", color="0.5")
    right.set_xscale("log")
    right.set_yscale("log")
    if (least := min(*y, *PUBLISHED["star"])) > 0:  # a line with a negative offset falls below any height
        right.set_ylim(bottom=least / 2)
    right.set_xlabel("regular to regular: train loss barrier (nats)")
    right.set_ylabel("star to held-out: train loss barrier (nats)")
    right.legend(fontsize=8)
    found = sets[0][1]
    fig.supxlabel(f"{found['star']['net']} on {found['star']['dataset']}, {found['star']['anchors']} anchors, "
                  f"{found['star']['held_out']} held-out networks, aligned by {how}; {found['level']:.0%} intervals; "
                  "numbers: widths", fontsize=8)
    return fig


def errors(cells):
    return [[abs(c["value"] - (c["value"] if c[k] is None else c[k])) for c in cells] for k in ("low", "high")]


def anchor_figure(sets, how):
    """Barriers on the training set against the number of anchors; grey: regular to regular, of the most anchors."""
    fig, ax = plots.figure(width=5.5, height=4.0)
    counts = [n for n, _ in sets]
    for kind, colour in zip(("star_held_out", "star_anchor", "mean_held_out"), plots.palette(3)):
        bars(ax, counts, [cell(found, kind, how) for _, found in sets], KINDS[kind], fmt="o-", color=colour)
    regular = cell(sets[-1][1], "anchor_held_out", how)
    ax.axhline(regular["value"], color="0.5", linestyle="--", label=KINDS["anchor_held_out"])
    if regular["low"] is not None:
        ax.axhspan(regular["low"], regular["high"], color="0.5", alpha=0.15)
    ax.set_xscale("log")
    ax.set_xticks(counts, [str(n) for n in counts])
    ax.minorticks_off()
    ax.set_ylim(0)
    ax.set_xlabel("anchors N")
    ax.set_ylabel("train loss barrier (nats)")
    ax.legend(fontsize=8)
    found = sets[0][1]
    fig.supxlabel(f"{found['star']['net']} on {found['star']['dataset']}, {found['star']['held_out']} held-out "
                  f"networks, aligned by {how}; {found['level']:.0%} intervals", fontsize=8)
    return fig
