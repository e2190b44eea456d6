"""How faithful are the maps of some cases: figures of each, their means, and what random weights do to the maps?"""

from collections.abc import Mapping, Sequence

import numpy as np

from research.evaluation import intervals, resampling
from research.explain import randomization
from research.explain.cases import Case
from research.explain.faithfulness import area_under_curve, mass_inside, pointing_game
from research.explain.methods import METHODS, Explainer, enlarge

RANDOM = "random order"
COLUMNS = ("id", "group", "verdict", "class", "probability", "truth", "predicted", "method", "layer", "deletion_auc",
           "insertion_auc", "pointing", "mass_inside", "region_share", "completeness_gap", "logit_rise")  # fmt: skip
FIGURES = ("deletion_auc", "insertion_auc", "pointing", "mass_inside")
CASCADE_COLUMNS = ("method", "random_from", "random_modules", "rank_correlation", "rank_correlation_absolute", "ssim",
                   "images")  # fmt: skip
_RESAMPLES = 2000


def rows(
    explainer: Explainer,
    cases: Sequence[Case],
    images: np.ndarray,
    maps: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
    regions: np.ndarray | None,
    curves: bool,
) -> list[dict]:
    """A row of `COLUMNS` for each case and method, and with `curves` for a random order of the pixels.

    Args:
      images: raw `[N, H, W, C]` of the cases.
      maps: method -> its raw maps and gaps, as `Explainer.maps` gives them.
      regions: bool `[N, H, W]`; an empty one is unknown. None without any.
      curves: whether to compute deletion and insertion curves.
    """
    targets = np.array([case.target for case in cases])
    found = []
    every = dict(maps)
    if curves:
        drawn = np.random.default_rng(explainer.options.seed).random(images.shape[:3], np.float32)
        every[RANDOM] = drawn, None
    for name, (raw, gap) in every.items():
        areas, inside = {}, {}
        if curves:
            title = METHODS[name].title if name in METHODS else name
            walked = explainer.curves(images, targets, raw, f"deletion and insertion, {title}")
            areas = {f"{kind}_auc": area_under_curve(curve) for kind, curve in walked.items()}
        if regions is not None:
            own = enlarge(raw, *images.shape[1:3])
            inside = {"pointing": pointing_game(own, regions).astype(float), "mass_inside": mass_inside(own, regions),
                      "region_share": regions.mean(axis=(1, 2))}  # fmt: skip
            inside = {key: np.where(regions.any(axis=(1, 2)), value, np.nan) for key, value in inside.items()}
        extra = {} if gap is None else {"completeness_gap": gap, "logit_rise": raw.sum(axis=(1, 2)) - gap}
        layer = explainer.options.layer if name in METHODS and METHODS[name].uses_layer else None
        for i, case in enumerate(cases):
            numbers = {key: _known(value[i]) for key, value in (areas | inside | extra).items()}
            found.append(_about(case) | {"method": name, "layer": layer} | numbers)
    return found


def _about(case: Case) -> dict:
    truth = None if case.truth is None else " + ".join(case.truth) or "none"
    return {"id": case.id, "group": case.group, "verdict": case.verdict, "class": case.name,
            "probability": case.probability, "truth": truth,
            "predicted": " + ".join(case.predicted) or "none"}  # fmt: skip


def _known(value) -> float | None:
    return None if np.isnan(value) else float(value)


def summary(table: Sequence[Mapping], seed: int = 0) -> list[dict]:
    """The means of `FIGURES` by method, {"value", "low", "high"} each: 95 % percentile bootstrap over groups."""
    found = []
    for method in dict.fromkeys(row["method"] for row in table):
        own = [row for row in table if row["method"] == method]
        line = {"method": METHODS[method].title if method in METHODS else method, "n": len(own)}
        for figure in FIGURES:
            known = [row for row in own if row.get(figure) is not None]
            if known:
                line[figure] = _mean([row[figure] for row in known], [row["group"] for row in known], seed)
        gaps = [abs(row["completeness_gap"]) / max(abs(row["logit_rise"]), 1e-12)
                for row in own if row.get("completeness_gap") is not None]  # fmt: skip
        if gaps:
            line["gap"] = float(np.median(gaps))
        found.append(line)
    return found


def _mean(values: Sequence[float], groups: Sequence[str], seed: int) -> dict:
    index, count = resampling.group_index(groups, len(values))
    sums, sizes = np.bincount(index, values, count), np.bincount(index, minlength=count)
    drawn = np.concatenate([(own @ sums) / (own @ sizes) for own in resampling.weights(count, _RESAMPLES, seed)])
    low, high = intervals.percentile(drawn, 0.95) if count > 1 else (None, None)
    return {"value": float(np.mean(values)), "low": None if low is None else float(low),
            "high": None if high is None else float(high)}  # fmt: skip


def cascade_rows(
    explainer: Explainer, cases: Sequence[Case], images: np.ndarray, maps: Mapping[str, tuple[np.ndarray, object]]
) -> list[dict]:
    """Rows of `CASCADE_COLUMNS`: how alike the maps stay when more and more modules are random, means over the cases.

    Maps of which one is constant have no rank correlation and are left out of its mean; `images` says how many count.
    """
    targets, found = np.array([case.target for case in cases]), []
    size, channels = images.shape[1], images.shape[3]
    for lowest, count, network in randomization.cascade(explainer.net, size, channels, explainer.options.seed):
        for name, (raw, _) in maps.items():
            label = f"{METHODS[name].title}, {count} random module{'s' if count > 1 else ''}"
            other, _ = explainer.maps(name, images, targets, network, label)
            pairs = [(first, second) for first, second in zip(raw, other, strict=True)]
            correlations = [randomization.rank_correlation(*pair) for pair in pairs]
            absolute = [randomization.rank_correlation(*map(np.abs, pair)) for pair in pairs]
            scaled = [randomization.scaled(enlarge(own, *images.shape[1:3])) for own in (raw, other)]
            alike = [randomization.ssim(*pair) for pair in zip(*scaled, strict=True)]
            found.append({
                "method": name, "random_from": lowest, "random_modules": count,
                "rank_correlation": _nanmean(correlations), "rank_correlation_absolute": _nanmean(absolute),
                "ssim": float(np.mean(alike)), "images": int(np.isfinite(correlations).sum()),
            })  # fmt: skip
    return found


def _nanmean(values: Sequence[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None
