"""How good are the predictions? Exact metrics over a whole set, equal to scikit-learn's to 1e-6.

Everything is computed from two kinds of sums, so that the bootstrap of `statistics.py` can reweight groups of
examples instead of computing anything again: counts per class (`example_counts`, `from_counts`), and
cumulative counts along the sorted scores (`ranking`).

Undefined cases, once for all metrics:

* precision, recall and F1 of a class (or an example) without predictions, positives or both are 0 and enter
  the means;
* AUROC of a class without positives or without negatives, and average precision of a class without positives,
  are NaN; the macro means leave such classes out, and are NaN when no class is left;
* Cohen's kappa is NaN when chance agreement is 1 (one class alone, in labels and predictions); MCC is then 0.

"accuracy" in a multi-label task is the share of the N * K decisions that are right; scikit-learn's
`accuracy_score` of multi-hot arrays is "exact_match" here. MCC and kappa are the multi-class coefficients, or
in a multi-label task the means over the classes; "ece" and "log_loss" go over the top class and the true
class, or over all N * K decisions.
"""

from collections.abc import Sequence

import numpy as np

from input_pipeline.cli import UserError
from research.evaluation import calibration
from research.evaluation.thresholds import decide

COUNT_METRICS = (
    "accuracy",
    "macro_f1",
    "micro_f1",
    "sample_f1",
    "precision_macro",
    "recall_macro",
    "mcc",
    "kappa",
    "exact_match",
)
SCORE_METRICS = ("auroc_macro", "auprc_macro", "ece", "log_loss")
METRICS = COUNT_METRICS + SCORE_METRICS


def ratio(numerator: np.ndarray, denominator: np.ndarray, undefined: float = 0.0) -> np.ndarray:
    """`numerator / denominator`, and `undefined` where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.full(denominator.shape, undefined), where=denominator != 0)


def mean_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1), np.nan)


def check_labels(labels: np.ndarray, num_classes: int, multi_label: bool, num_examples: int) -> np.ndarray:
    """The labels as one-hot or multi-hot bool `[N, K]`.

    Raises:
        UserError: no examples, a shape that does not fit, unlabelled examples (-1), labels outside 0..K-1,
            values other than 0 and 1.
    """
    labels = np.asarray(labels)
    expected = (num_examples, num_classes) if multi_label else (num_examples,)
    if labels.shape != expected:
        raise UserError(f"labels of shape {labels.shape} do not fit the predictions, which need {expected}.")
    if not num_examples:
        raise UserError("there are no examples to evaluate; check the roles of the dataset.")
    if multi_label:
        if not np.isin(labels, (0, 1)).all():
            raise UserError("multi-label labels must be 0 or 1; unlabelled examples are predicted, never evaluated.")
        return labels.astype(bool)
    if (labels != np.floor(labels)).any() or labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"labels must be whole numbers from 0 to {num_classes - 1}; "
            "unlabelled examples (-1) are predicted, never evaluated."
        )
    return labels.astype(np.int64)[:, None] == np.arange(num_classes)


def check_scores(scores: np.ndarray, multi_label: bool) -> np.ndarray:
    """The scores as float64 `[N, K]` probabilities.

    Raises:
        UserError: scores that are not finite or outside [0, 1], or single-label rows that do not sum to one
            (1e-3).
    """
    scores = calibration.check_finite(scores, "scores")
    if scores.size and (scores.min() < -1e-6 or scores.max() > 1 + 1e-6):
        raise UserError("scores must be probabilities between 0 and 1; turn logits into them first.")
    if not multi_label and np.any(np.abs(scores.sum(axis=1) - 1) > 1e-3):
        raise UserError("the scores of a single-label example must sum to one; turn logits into them by softmax.")
    return scores


def decisions(
    scores: np.ndarray,
    multi_label: bool,
    thresholds: float | Sequence[float] | np.ndarray | None = None,
    predicted: np.ndarray | None = None,
) -> np.ndarray:
    """What is predicted, as bool `[N, K]`: `predicted` if given, else by `thresholds`, else the top class or
    0.5.

    Args:
        scores: probabilities `[N, K]`.
        multi_label: whether an example may have any number of labels.
        thresholds: multi-label: one number or `[K]`; no fallback is applied (call `thresholds.decide` for
            one).
        predicted: int `[N]`, or bool/0-1 `[N, K]`.
    """
    num_examples, num_classes = np.shape(scores)
    if predicted is not None:
        predicted = np.asarray(predicted)
        return check_labels(predicted, num_classes, predicted.ndim == 2, num_examples)
    if multi_label:
        return decide(scores, 0.5 if thresholds is None else thresholds, fallback="none")
    if thresholds is not None:
        raise UserError("thresholds belong to multi-label tasks; a single-label prediction is the top class.")
    return np.argmax(scores, axis=1)[:, None] == np.arange(num_classes)


def example_counts(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Per example: true positives, false positives, false negatives by class, F1, exact match, 1; float64
    `[N, 3K+3]`.

    Summed over any set of examples, repeated or not, they give every metric of `COUNT_METRICS`.

    Args:
        true: bool `[N, K]`, one-hot or multi-hot.
        predicted: bool `[N, K]`.
    """
    both = true & predicted
    sizes = true.sum(axis=1) + predicted.sum(axis=1)
    sample_f1 = ratio(2 * both.sum(axis=1), sizes)
    exact = (true == predicted).all(axis=1)
    summary = np.stack([sample_f1, exact, np.ones(len(true))], axis=1)
    return np.concatenate([both, predicted & ~true, true & ~predicted, summary], axis=1).astype(np.float64)


def class_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 per class, each `[..., K]`, from summed counts `[..., 3K+3]`."""
    true_positives, false_positives, false_negatives = np.split(counts[..., :-3], 3, axis=-1)
    return {
        "precision": ratio(true_positives, true_positives + false_positives),
        "recall": ratio(true_positives, true_positives + false_negatives),
        "f1": ratio(2 * true_positives, 2 * true_positives + false_positives + false_negatives),
    }


def from_counts(counts: np.ndarray, multi_label: bool) -> dict[str, np.ndarray]:
    """Every metric of `COUNT_METRICS`, each `[...]`, from summed counts `[..., 3K+3]` (see
    `example_counts`).
    """
    true_positives, false_positives, false_negatives = np.split(counts[..., :-3], 3, axis=-1)
    sample_f1, exact, total = counts[..., -3], counts[..., -2], counts[..., -1]
    hits, wrong, missed = (part.sum(axis=-1) for part in (true_positives, false_positives, false_negatives))
    by_class = class_scores(counts)
    coefficients = _label_coefficients if multi_label else _class_coefficients
    mcc, kappa = coefficients(true_positives, true_positives + false_positives, true_positives + false_negatives, total)
    num_decisions = total * true_positives.shape[-1]
    return {
        "accuracy": ratio(num_decisions - wrong - missed, num_decisions) if multi_label else ratio(hits, total),
        "macro_f1": by_class["f1"].mean(axis=-1),
        "micro_f1": ratio(2 * hits, 2 * hits + wrong + missed),
        "sample_f1": ratio(sample_f1, total),
        "precision_macro": by_class["precision"].mean(axis=-1),
        "recall_macro": by_class["recall"].mean(axis=-1),
        "mcc": mcc,
        "kappa": kappa,
        "exact_match": ratio(exact, total),
    }


def _class_coefficients(
    hits: np.ndarray, given: np.ndarray, actual: np.ndarray, total: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Multi-class MCC (Gorodkin 2004) and Cohen's kappa from hits, predictions and positives `[..., K]`."""
    agreement, chance = hits.sum(axis=-1), (given * actual).sum(axis=-1)
    spread = (total**2 - (given**2).sum(axis=-1)) * (total**2 - (actual**2).sum(axis=-1))
    mcc = ratio(agreement * total - chance, np.sqrt(np.maximum(spread, 0.0)))
    return mcc, ratio(agreement * total - chance, total**2 - chance, np.nan)


def _label_coefficients(
    hits: np.ndarray, given: np.ndarray, actual: np.ndarray, total: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means over the classes of the binary MCC and kappa; kappa leaves undefined classes out."""
    total = total[..., None]
    both = np.stack([hits, total - given - actual + hits], axis=-1)
    given, actual = np.stack([given, total - given], axis=-1), np.stack([actual, total - actual], axis=-1)
    mcc, kappa = _class_coefficients(both, given, actual, total)
    return mcc.mean(axis=-1), mean_defined(kappa)


def ranking(
    scores: np.ndarray, positives: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC (with ties counted half) and average precision (`Σ ΔR · P`, not interpolated) of one class, each
    `[...]`.

    Args:
        scores: `[N]`, finite.
        positives: bool `[N]`.
        weights: how often each example counts, `[..., N]`; default once. Leading axes are bootstrap
            replicates.

    Returns:
        Two arrays of the shape of `weights` without its last axis; NaN as the module's docstring says.
    """
    order = np.argsort(-scores, kind="stable")
    descending, positives = scores[order], positives[order]
    last = np.append(np.flatnonzero(np.diff(descending)), len(descending) - 1)
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)[..., order]
    given = np.cumsum(weights, axis=-1)[..., last]
    hits = np.cumsum(weights * positives, axis=-1)[..., last]
    misses = given - hits
    total_hits, total_misses = hits[..., -1], misses[..., -1]
    new_hits = np.diff(hits, axis=-1, prepend=0.0)
    new_misses = np.diff(misses, axis=-1, prepend=0.0)
    area = (new_misses * (hits - new_hits / 2)).sum(axis=-1)
    precision = ratio(hits, given)
    auroc = ratio(area, total_hits * total_misses, np.nan)
    return auroc, ratio((new_hits * precision).sum(axis=-1), total_hits, np.nan)


def example_log_loss(scores: np.ndarray, true: np.ndarray, multi_label: bool) -> np.ndarray:
    """Negative log-likelihood per example `[N]`, in nats; multi-label: mean of the K binary ones.

    Probabilities are clipped to the float64 epsilon, as scikit-learn does.
    """
    epsilon = np.finfo(np.float64).eps
    clipped = np.clip(scores, epsilon, 1 - epsilon)
    if multi_label:
        return -np.where(true, np.log(clipped), np.log1p(-clipped)).mean(axis=1)
    return -np.log(clipped[true])


def evaluate(
    scores: np.ndarray,
    labels: np.ndarray,
    multi_label: bool,
    thresholds: float | Sequence[float] | np.ndarray | None = None,
    predicted: np.ndarray | None = None,
) -> dict[str, float]:
    """Every metric of `METRICS` over one set of examples.

    Args:
        scores: probabilities `[N, K]`, finite; single-label rows sum to one.
        labels: int `[N]` in 0..K-1, or multi-hot `[N, K]` if `multi_label`.
        multi_label: which of the two.
        thresholds: multi-label: one number or `[K]`, 0.5 by default.
        predicted: int `[N]` or bool `[N, K]` decisions instead of thresholds (fallbacks, baselines, votes).

    Raises:
        UserError: see `check_scores` and `check_labels`; nothing that is not finite becomes a number.
    """
    scores = check_scores(scores, multi_label)
    true = check_labels(labels, scores.shape[1], multi_label, len(scores))
    counts = example_counts(true, decisions(scores, multi_label, thresholds, predicted)).sum(axis=0)
    result = {name: float(value) for name, value in from_counts(counts, multi_label).items()}
    ranked = [ranking(scores[:, c], true[:, c]) for c in range(scores.shape[1])]
    result["auroc_macro"], result["auprc_macro"] = (float(mean_defined(np.array(v))) for v in zip(*ranked, strict=True))
    totals = calibration.bin_totals(*calibration.confidences(scores, labels, multi_label)).sum(axis=0)
    result["ece"] = float(calibration.calibration_error(totals))
    result["log_loss"] = float(example_log_loss(scores, true, multi_label).mean())
    return result


def per_class(
    scores: np.ndarray,
    labels: np.ndarray,
    multi_label: bool,
    thresholds: float | Sequence[float] | np.ndarray | None = None,
    predicted: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
) -> list[dict]:
    """One dict per class: `class`, `support` (positives), `predicted` (how often), `precision`, `recall`,
    `f1`, `average_precision`, `auroc`, `threshold` (NaN if single-label or not given). Arguments and errors
    as `evaluate`.
    """
    scores = check_scores(scores, multi_label)
    num_classes = scores.shape[1]
    true = check_labels(labels, num_classes, multi_label, len(scores))
    given = decisions(scores, multi_label, thresholds, predicted)
    by_class = class_scores(example_counts(true, given).sum(axis=0))
    names = range(num_classes) if class_names is None else class_names
    cuts = np.broadcast_to(np.nan if thresholds is None else np.asarray(thresholds, float), (num_classes,))
    rows = []
    for c, name in enumerate(names):
        auroc, average_precision = ranking(scores[:, c], true[:, c])
        row = {"class": str(name), "support": int(true[:, c].sum()), "predicted": int(given[:, c].sum())}
        row |= {key: float(values[c]) for key, values in by_class.items()}
        row |= {
            "average_precision": float(average_precision),
            "auroc": float(auroc),
            "threshold": float(cuts[c]),
        }
        rows.append(row)
    return rows


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Confusion matrix of a single-label task, int64 `[K, K]`, rows true and columns predicted.

    Args:
        labels: int `[N]`.
        predicted: int `[N]`.
        num_classes: K.
    """
    true = check_labels(labels, num_classes, False, len(labels))
    given = check_labels(predicted, num_classes, False, len(labels))
    return true.astype(np.int64).T @ given.astype(np.int64)
