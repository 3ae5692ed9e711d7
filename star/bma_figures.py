"""The figure of star.bma: every predictor's measures with their intervals. No torch."""

from landscape import plots
from star.bma import PREDICTORS, QUALITY


def figures(folder, found):
    """{"bma": a panel for each measure of quality and for each AUROC by confidence}"""
    measures = {**QUALITY, "wrong_confidence": "AUROC of wrong answers",
                **{f"{name}_confidence": f"AUROC of {name}" for name in found["foreign"]}}
    words = {k: v for k, v in PREDICTORS.items() if k != "difference"}
    groups = [{"group": word, **{r["measure"]: r for r in found["rows"] if r["predictor"] == key}}
              for key, word in words.items()]
    anchors = [{"group": words["anchor"], **{m: {"value": a[m]} for m in measures}} for a in found["anchors"]]
    note = (f"{found['members']} members, {len(found['anchors'])} anchors, {found['images']['test']} images; "
            f"{found['level']:.0%} intervals over {found['draws']} draws (single anchors: over networks)")
    return {"bma": plots.interval_figure(groups, anchors, measures, note)}
