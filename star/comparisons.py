"""Saved results of star.compare: found, ordered by width and by the number of anchors, as a table; and those of
star.bma. No torch."""

from landscape import runs

KINDS = {"star_held_out": "star to held-out", "star_anchor": "star to anchor", "anchor_held_out": "regular to regular",
         "mean_held_out": "mean of anchors to held-out", "mean_anchor": "mean of anchors to anchor",
         "best_held_out": "best anchor to held-out", "other_held_out": "other to held-out",
         "other_anchor": "other to anchor"}  # fmt: skip
# star = a regular + b as published over the widths of the MLP on MNIST, and what it was fitted to (starlight's files)
PUBLISHED = {"widths": (4, 8, 16, 32, 64, 128, 256), "slope": 0.302, "offset": 0.007,
             "regular": (0.368, 0.261, 0.312, 0.193, 0.049, 0.015, 0.006),
             "star": (0.089, 0.117, 0.111, 0.063, 0.021, 0.008, 0.003)}  # fmt: skip


def cell(found, kind, how, split="train", measure="loss_barrier"):
    """The row of a summary with "value", "low" and "high", None where that was not measured."""
    wanted = {"kind": kind, "align": how, "split": split, "measure": measure}
    return next((r for r in found["summary"] if all(r[k] == v for k, v in wanted.items())), None)


def comparisons(folder):
    """The results of star.compare under a folder, of each star those of most lines."""
    held = sorted(finished(folder, "star"), key=lambda found: len(found["lines"]))
    return list({found["star"]["path"]: found for found in held}.values())


def averages(folder):
    """The results of star.bma under a folder with t uniform, one of each star; those of the network, data, number of
    members and alignment with most stars."""
    held = {}
    for found in finished(folder, "bma"):
        if found["t"] == "uniform" and "net" in found:  # earlier versions did not say
            same = held.setdefault(tuple(found[k] for k in ("net", "dataset", "members", "align", "bn")), {})
            same[found["star"]] = found
    return list(max(held.values(), key=len, default={}).values())


def finished(folder, kind):
    """The results of a kind of the finished measurements under a folder."""
    held = [runs.read_json(f) for f in runs.below(folder, "results.json") if (f.parent / "done").exists()]
    return [found for found in held if found.get("kind") == kind]


def recipe(found):
    """How a star was trained, in words: where t was drawn, and what differs from the published way."""
    star = found["star"]
    words = [f"t {star['t_sampling']}", f"mu = {star['mu']:g}" if star["mu"] else "",
             "anti-star" if star.get("anti") else "", f"{n} draws a step" if (n := star.get("samples", 1)) > 1 else "",
             f"from the {star['init']}" if star["init"] != "scratch" else "",
             f"aligned by {star['aligned_by']}" if star["aligned_by"] != "weights" else ""]
    return ", ".join(w for w in words if w)


def published(results):
    """Those of stars that were trained as published: t uniform, mu 0."""
    return [found for found in results if recipe(found) == "t uniform"]


def training(star):
    """What stars must share besides their width to be compared."""
    return tuple(star[k] for k in ("net", "dataset", "epochs", "opt"))


def by_recipe(results):
    """{recipe: [results]} of the network, data and number of anchors with stars of most recipes."""
    held = {}
    for found in results:
        star = found["star"]
        same = held.setdefault((*training(star), star["width"], star["anchors"]), {})
        same.setdefault(recipe(found), []).append(found)
    return dict(sorted(max(held.values(), key=len, default={}).items()))


def by_width(results):
    """[(width, results)] in ascending order, of the network and data with published stars of most widths; of each width
    the star of most anchors."""
    held = {}
    for found in sorted(published(results), key=lambda r: (r["star"]["anchors"], -r["star"]["init_seed"])):
        star = found["star"]
        held.setdefault(training(star), {})[star["width"]] = found
    return sorted(max(held.values(), key=len, default={}).items())


def by_anchors(results):
    """[(N, results)] in ascending order, of the network, data and held-out networks with published stars of most
    numbers of anchors."""
    held = {}
    for found in published(results):
        star = found["star"]
        others = frozenset(m["path"] for m in found["models"] if m["role"] == "held_out")
        held.setdefault((*training(star), star["width"], others), {})[star["anchors"]] = found
    return sorted(max(held.values(), key=len, default={}).items())


def table(results):
    """A row for each star: what it is, and loss barriers on both splits with their intervals."""
    rows = []
    for found in results:
        for how in found["align"]:
            row = {k: found["star"][k] for k in ("net", "width", "dataset", "anchors", "held_out", "init_seed",
                                                 "t_sampling", "mu")} | {"align": how}
            for kind in ("star_held_out", "star_anchor", "anchor_held_out", "mean_held_out", "best_held_out"):
                for part in ("train", "test"):
                    value = cell(found, kind, how, part)
                    row |= {f"{kind}_{part}{end}": value and value[k] for end, k in
                            (("", "value"), ("_low", "low"), ("_high", "high"))}
            for role in ("star", "anchor", "mean"):
                some = [m for m in found["models"] if m["role"] == role]
                row |= {f"{role}_{k}": sum(m[k] for m in some) / len(some) for k in ("train_loss", "test_accuracy")}
            rows.append(row)
    return sorted(rows, key=lambda r: [r[k] for k in ("net", "dataset", "width", "anchors", "t_sampling", "mu",
                                                      "init_seed", "align")])
