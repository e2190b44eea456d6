"""From saved predictions to scored ones: temperature and thresholds from `calibration`, metrics on `test`.

Reads files only, so a report can be made again, and tested, without training.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from research.evaluation import calibration, metrics, predictions, statistics, thresholds

HEADLINE = {
    True: ("macro_f1", "micro_f1", "sample_f1", "auprc_macro"),
    False: ("accuracy", "macro_f1", "mcc", "auroc_macro"),
}


@dataclasses.dataclass(frozen=True)
class Scored:
    """Predictions of the test role, of one trial or pooled over the folds of one setting.

    Attributes:
      ids, groups: str `[N]`.
      labels: int32 `[N]` or multi-hot float32 `[N, K]`.
      before, scores: probabilities float64 `[N, K]`, before and after temperature scaling.
      predicted: int `[N]` or bool `[N, K]`.
      folds: int `[N]`, the part (0, 1, …) that each row comes from.
      temperatures: one per part. thresholds: float64 `[parts, K]`, or None for single-label.
      multi_label, class_names: the task.
    """

    ids: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    before: np.ndarray
    scores: np.ndarray
    predicted: np.ndarray
    folds: np.ndarray
    temperatures: tuple[float, ...]
    thresholds: np.ndarray | None
    multi_label: bool
    class_names: tuple[str, ...]


def fit(part: predictions.Predictions | None, multi_label: bool, settings) -> tuple[float, np.ndarray | None]:
    """(temperature, thresholds) fitted on the predictions of `calibration`; (1, 0.5) where that role is empty."""
    num_classes = len(part.class_names) if part is not None else 0
    if part is None or not len(part.ids):
        return 1.0, None
    labels = part.labels(multi_label)
    temperature = calibration.fit_temperature(part.logits, labels, multi_label) if settings.temperature else 1.0
    if not multi_label:
        return temperature, None
    scores = calibration.probabilities(part.logits, True, temperature)
    if settings.thresholds == "fixed":
        return temperature, thresholds.fixed(num_classes)
    return temperature, thresholds.fit(scores, labels, settings.thresholds)


def score(folder: pathlib.Path, trials: list[str], multi_label: bool, settings) -> Scored | None:
    """Scores the test predictions of `trials` (the folds of a setting, or one trial), pooled; None without any.

    Args:
      folder: the run folder; reads `predictions/<trial>_{calibration,test}.csv`.
      settings: config.evaluation.
    """
    parts = []
    for number, name in enumerate(trials):
        files = {role: folder / "predictions" / f"{name}_{role}.csv" for role in ("calibration", "test")}
        if not files["test"].exists():
            continue
        test = predictions.read(files["test"])
        fitted = predictions.read(files["calibration"]) if files["calibration"].exists() else None
        temperature, cuts = fit(fitted, multi_label, settings)
        scores = calibration.probabilities(test.logits, multi_label, temperature)
        cuts = thresholds.fixed(scores.shape[1]) if multi_label and cuts is None else cuts
        predicted = thresholds.decide(scores, cuts, settings.fallback) if multi_label else scores.argmax(1)
        before = calibration.probabilities(test.logits, multi_label)
        parts.append((test, before, scores, predicted, np.full(len(test.ids), number), temperature, cuts))
    if not parts:
        return None
    tests, before, scores, predicted, folds, temperatures, cuts = zip(*parts, strict=True)
    return Scored(
        ids=np.concatenate([np.array(t.ids, object) for t in tests]),
        groups=np.concatenate([np.array(t.groups, object) for t in tests]),
        labels=np.concatenate([t.labels(multi_label) for t in tests]),
        before=np.concatenate(before),
        scores=np.concatenate(scores),
        predicted=np.concatenate(predicted),
        folds=np.concatenate(folds),
        temperatures=temperatures,
        thresholds=np.stack(cuts) if multi_label else None,
        multi_label=multi_label,
        class_names=tests[0].class_names,
    )


def merged(scored: Scored, together: Sequence[Sequence[str]]) -> Scored | None:
    """Single-label predictions where classes count as one: its probability is the sum of theirs, its name "A+B".

    Args:
      together: names of classes, those that are counted as one in each entry; classes that are not there are left out,
        and with fewer than two there is nothing to merge.

    Returns:
      None where nothing is merged. The merged class stands where the first of its classes stood.
    """
    names = list(scored.class_names)
    target = {name: name for name in names}
    for entry in together:
        present = [name for name in names if name in entry]
        if len(present) > 1:
            target |= {name: "+".join(present) for name in present}
    kept = list(dict.fromkeys(target.values()))
    if len(kept) == len(names):
        return None
    column = np.array([kept.index(target[name]) for name in names])
    before, scores = (part @ np.eye(len(kept))[column] for part in (scored.before, scored.scores))
    return dataclasses.replace(
        scored,
        labels=column[scored.labels].astype(np.int32),
        before=before,
        scores=scores,
        predicted=scores.argmax(axis=1),
        class_names=tuple(kept),
    )


def estimates(scored: Scored, resamples: int, seed: int = 0) -> dict[str, dict]:
    """Every metric with its interval, clustered by group: name → {"value", "low", "high"}."""
    values = metrics.evaluate(scored.scores, scored.labels, scored.multi_label, predicted=scored.predicted)
    k = len(scored.class_names)
    intervals = statistics.metric_intervals(
        scored.labels, scored.predicted, k, scored.multi_label, scored.groups, resamples, seed
    )
    ranked, _ = statistics.score_intervals(
        scored.scores, scored.labels, scored.multi_label, scored.groups, resamples, seed
    )
    return {name: interval_of(value, (intervals | ranked).get(name)) for name, value in values.items()}


def baseline_estimates(predicted: np.ndarray, scored: Scored, resamples: int, seed: int = 0) -> dict[str, dict]:
    """Metrics of a baseline's decisions on the same examples, with intervals from the same resamples."""
    k = len(scored.class_names)
    true = metrics.check_labels(scored.labels, k, scored.multi_label, len(scored.ids))
    given = metrics.decisions(np.zeros((len(scored.ids), k)), scored.multi_label, predicted=predicted)
    values = metrics.from_counts(metrics.example_counts(true, given).sum(axis=0), scored.multi_label)
    intervals = statistics.metric_intervals(
        scored.labels, predicted, k, scored.multi_label, scored.groups, resamples, seed
    )
    return {name: interval_of(float(value), intervals[name]) for name, value in values.items()}


def interval_of(value: float, interval: tuple[float, float] | None) -> dict:
    """{"value", "low", "high"}."""
    low, high = interval or (None, None)
    return {"value": value, "low": low, "high": high}


def per_class(scored: Scored, resamples: int, seed: int = 0) -> list[dict]:
    """One row per class: precision, recall and F1 with intervals, average precision, AUROC, support, mean threshold."""
    rows = metrics.per_class(
        scored.scores, scored.labels, scored.multi_label, predicted=scored.predicted, class_names=scored.class_names
    )
    intervals = statistics.per_class_intervals(
        scored.labels, scored.predicted, len(scored.class_names), scored.multi_label, scored.groups, resamples, seed
    )
    for k, row in enumerate(rows):
        for name in ("precision", "recall"):
            row[name] = interval_of(row[name], (intervals[name][0][k], intervals[name][1][k]))
        row["f1_low"], row["f1_high"] = intervals["f1"][0][k], intervals["f1"][1][k]
        if scored.thresholds is not None:
            row["threshold"] = float(scored.thresholds[:, k].mean())
        else:
            del row["threshold"]
        del row["predicted"]
    return rows


def confident_mistakes(scored: Scored, most: int) -> list[dict]:
    """The wrong decisions with the highest probability: {"row", "true", "predicted" (class names), "probability"}.

    Single-label: the probability of the wrong top class. Multi-label: of a wrongly given label, or one minus that of a
    label that was missed; an example counts once, with its worst decision.
    """
    names = np.array(scored.class_names, object)
    if scored.multi_label:
        true, given = scored.labels > 0.5, scored.predicted.astype(bool)
        confidence = np.where(given, scored.scores, 1 - scored.scores) * (true != given)
    else:
        true = scored.labels[:, None] == np.arange(len(names))
        given = scored.predicted[:, None] == np.arange(len(names))
        confidence = scored.scores * (given & ~true)
    worst = confidence.max(axis=1)
    order = np.argsort(-worst, kind="stable")[:most]
    return [
        {
            "row": int(i),
            "true": list(names[true[i]]),
            "predicted": list(names[given[i]]),
            "probability": float(worst[i]),
        }
        for i in order
        if worst[i] > 0
    ]
