"""Figures of star.barriers: barriers with their intervals, loss and accuracy along the lines. No torch."""

import numpy as np

from landscape import plots


def figures(folder, found):
    """{"barriers": barriers with intervals, "lines": loss and accuracy along t (not of adaptive points)}"""
    out = {"barriers": barrier_figure(found)}
    if not found["adaptive"]:
        out["lines"] = line_figure(found)
    return out


def variants(found):
    return [(how, norm) for how in found["align"] for norm in found["bn"]]


def barrier_figure(found):
    """A panel for each split and measure; a row for each alignment and kind of BatchNorm, grey marks for pairs."""
    measures = {f"{part}_{m}_barrier": f"{part} {m} barrier" for part in ("train", "test")
                for m in ("loss", "accuracy")}
    groups, pairs = [], []
    for how, norm in variants(found):
        group = {"group": f"{how}, {norm}"}
        for row in found["summary"]:
            if (row["align"], row["bn"]) == (how, norm):
                group[f"{row['split']}_{row['measure']}"] = {k: row[k] for k in ("value", "low", "high")}
        groups.append(group)
        for line in found["lines"]:
            if (line["align"], line["bn"]) == (how, norm):
                pairs.append({"group": group["group"], **{
                    f"{part}_{m}_barrier": {"value": line[part][f"{m}_barrier"]} for part in ("train", "test")
                    for m in ("loss", "accuracy")}})
    note = (f"{groups and found['summary'][0]['pairs']} pairs of {len(found['models'])} networks, {found['level']:.0%} "
            "intervals")
    return plots.interval_figure(groups, pairs, measures, note, each="pair")


def line_figure(found):
    """Mean loss and accuracy over pairs along t on both splits, with the range of the pairs."""
    fig, axes = plots.figure(2, 2, width=8.0, height=6.0, sharex=True)
    ts = found["lines"][0]["ts"]
    for column, part in enumerate(("train", "test")):
        for ax, (what, label) in zip(axes[:, column], (("losses", "loss (nats)"), ("accuracies", "accuracy"))):
            series = {}
            for how, norm in variants(found):
                values = np.array([r[part][what] for r in found["lines"] if (r["align"], r["bn"]) == (how, norm)])
                series[f"{how}, {norm}"] = values.mean(0), values.min(0), values.max(0)
            plots.curves(ax, ts, series, ylabel=f"{part} {label}", xlabel="t" if what == "accuracies" else "")
    return fig
