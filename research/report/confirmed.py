"""Which settings of a front stay non-dominated when they are trained again with fresh seeds and tested?

A front is the best of many noisy numbers and so looks better than it is. The rows of stage "confirm" train its settings
again; they are scored on the test role, and their uncertainty is that of two draws: of the photographs (groups) that
happened to be tested, and of the seeds. The bootstrap draws both anew; the groups are the same for all settings in a
replicate, so that settings are compared on the same photographs.
"""

import collections
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.evaluation import metrics, score, statistics
from research.search import front as fronts

RESAMPLES, LEVEL = 2000, 0.95


def confirmed(
    folder: pathlib.Path, ledger: Sequence[Mapping[str, Any]], multi_label: bool, settings, seed: int = 0
) -> list[dict]:
    """The confirmed settings, by parameters.

    Args:
      folder: the run folder; reads `predictions/<trial>_{calibration,test}.csv`.
      ledger: rows as in `tables`; those of stage "confirm" count, if they are finished and were tested.
      multi_label: the task: macro F1 is tested if so, else accuracy.
      settings: config.evaluation.
      seed: of the draws.

    Returns:
      {"setting", "parameters", "seeds", "images", "groups", "test": {"value", "low", "high"}, "non_dominated"} each.
      `test` is the mean over the seeds, `non_dominated` the share of the replicates in which no other confirmed setting
      has no more parameters, no worse mean, and one of the two better. Settings that were tested on other images than
      most cannot be compared and are left out.
    """
    metric = "macro_f1" if multi_label else "accuracy"
    tested = collections.defaultdict(dict)
    parameters = {}
    for (setting, number), rows in _by_seed(ledger).items():
        # The folds of a seed are pooled, as everywhere.
        scored = score.score(folder, [row["id"] for row in rows], multi_label, settings)
        if scored is not None:
            tested[setting][number] = scored
            parameters[setting] = round(np.mean([row["parameters"] for row in rows]))
    tested = _same_images(tested)
    if not tested:
        return []
    generator = np.random.default_rng(seed)
    rows, replicates = [], []
    for setting, by_seed in sorted(tested.items(), key=lambda item: (parameters[item[0]], item[0])):
        value, drawn = _replicates(list(by_seed.values()), metric, generator, seed)
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        one = next(iter(by_seed.values()))
        known = not np.isnan(drawn).any()
        rows.append({
            "setting": setting, "parameters": parameters[setting], "seeds": len(by_seed), "images": len(one.ids),
            "groups": len(set(one.groups)),
            "test": {"value": value, "low": float(low) if known else None, "high": float(high) if known else None},
        })  # fmt: skip
        replicates.append(drawn)
    shares = probabilities(np.array([row["parameters"] for row in rows]), np.array(replicates))
    return [row | {"non_dominated": share} for row, share in zip(rows, shares, strict=True)]


def _by_seed(ledger: Sequence[Mapping[str, Any]]) -> dict[tuple[str, Any], list[Mapping[str, Any]]]:
    found = collections.defaultdict(list)
    for row in ledger:
        if row.get("stage") == "confirm" and row.get("status") == "finished":
            found[str(row["setting"]), row["seed"]].append(row)
    return found


def _same_images(tested: Mapping[str, Mapping[Any, score.Scored]]) -> dict[str, dict[Any, score.Scored]]:
    """Those scored on the most frequent set of images, in its order."""
    counts = collections.Counter(frozenset(one.ids) for by_seed in tested.values() for one in by_seed.values())
    if not counts:
        return {}
    ((common, _),) = counts.most_common(1)
    kept = {s: {k: v for k, v in by_seed.items() if frozenset(v.ids) == common} for s, by_seed in tested.items()}
    return {setting: by_seed for setting, by_seed in kept.items() if by_seed}


def _replicates(
    runs: Sequence[score.Scored], metric: str, generator: np.random.Generator, seed: int
) -> tuple[float, np.ndarray]:
    """The mean of a metric over the seeds, and in every replicate `[RESAMPLES]`; NaN with fewer than two groups."""
    values, drawn = [], []
    for run in runs:
        order = np.argsort(run.ids, kind="stable")
        k = len(run.class_names)
        true = metrics.check_labels(run.labels, k, run.multi_label, len(run.ids))
        given = metrics.decisions(np.zeros(true.shape), run.multi_label, predicted=run.predicted)
        counts = metrics.example_counts(true, given)[order]
        values.append(float(metrics.from_counts(counts.sum(axis=0), run.multi_label)[metric]))
        totals = statistics.resampled_totals(counts, np.asarray(run.groups)[order], RESAMPLES, seed)
        drawn.append(
            np.full(RESAMPLES, np.nan) if totals is None else metrics.from_counts(totals, run.multi_label)[metric]
        )
    chosen = generator.integers(0, len(runs), (len(runs), RESAMPLES))
    return float(np.mean(values)), np.take_along_axis(np.array(drawn), chosen, axis=0).mean(axis=0)


def probabilities(parameters: np.ndarray, replicates: np.ndarray) -> list[float | None]:
    """Share of the replicates in which a setting is non-dominated.

    Args:
      parameters: `[S]`, less is better.
      replicates: `[S, R]`, more is better.

    Returns:
      S numbers, None where nothing could be resampled.
    """
    if np.isnan(replicates).any():
        return [None] * len(parameters)
    counts = np.zeros(len(parameters))
    for column in replicates.T:
        counts += fronts.non_dominated(np.column_stack([parameters, -column]))
    return (counts / replicates.shape[1]).tolist()
