"""Do the probabilities mean what they say, and which temperature makes them?"""

import numpy as np

from input_pipeline.cli import UserError

BINS = 15
# Outside these the calibration examples do not determine a temperature: they are separable, or contradict the
# logits.
TEMPERATURE_RANGE = (0.05, 20.0)


def probabilities(logits: np.ndarray, multi_label: bool, temperature: float = 1.0) -> np.ndarray:
    """Sigmoid (multi-label) or softmax of `logits / temperature`, float64 `[N, K]`, without overflow.

    Raises:
        UserError: logits that are not finite, or a temperature that is not a positive number.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise UserError(f"a temperature must be a positive number, not {temperature!r}.")
    scaled = check_finite(logits) / temperature
    if multi_label:
        # The exponent is never positive, so neither side overflows.
        small = np.exp(-np.abs(scaled))
        return np.where(scaled >= 0, 1.0, small) / (1.0 + small)
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def check_finite(values: np.ndarray, what: str = "logits") -> np.ndarray:
    """The values `[N, K]` as float64.

    Raises:
        UserError: for NaN or infinities, with the number of rows and the first of them; `what` names them.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2:
        raise UserError(f"{what} must have the shape [N, K], not {values.shape}.")
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise UserError(
            f"{bad.size} of {len(values)} rows of {what} are not finite (the first is row {bad[0]}); "
            "the model diverged: lower its learning rate and train again."
        )
    return values


def fit_temperature(logits: np.ndarray, labels: np.ndarray, multi_label: bool) -> float:
    """The temperature T that minimises the negative log-likelihood of `logits / T` (Guo et al. 2017).

    The likelihood is convex in 1/T, so the root of its derivative is the answer; it is found by Brent's
    method to relative 1e-10. Fit it on `calibration`. Where no minimum lies inside `TEMPERATURE_RANGE` the
    nearer end is returned. Multi-label: one T for all classes, over the N * K binary likelihoods.

    Args:
        logits: `[N, K]`, finite.
        labels: int `[N]`, or multi-hot `[N, K]` if `multi_label`.
        multi_label: sigmoid instead of softmax.

    Raises:
        UserError: no examples, unlabelled examples, shapes that do not fit, logits that are not finite.
    """
    logits = check_finite(logits)
    labels = np.asarray(labels)
    if not len(logits):
        raise UserError(
            "a temperature cannot be fitted without examples; give the dataset a calibration role."
        )
    if labels.shape != (logits.shape if multi_label else logits.shape[:1]):
        raise UserError(f"labels of shape {labels.shape} do not fit logits of shape {logits.shape}.")
    if multi_label:
        targets = (labels > 0.5).astype(np.float64)
    else:
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise UserError(
                "a temperature is fitted on labelled examples alone; leave the unlabelled ones out."
            )
        targets = np.eye(logits.shape[1])[labels.astype(np.int64)]

    def slope(log_temperature: float) -> float:
        """Derivative of the summed negative log-likelihood in 1/T."""
        predicted = probabilities(logits, multi_label, float(np.exp(log_temperature)))
        return float(np.sum((predicted - targets) * logits))

    low, high = np.log(TEMPERATURE_RANGE)
    at_low, at_high = slope(low), slope(high)
    if at_low == 0 and at_high == 0:
        return 1.0  # Logits that say nothing fit equally badly at every temperature.
    if at_low <= 0:
        return TEMPERATURE_RANGE[0]
    if at_high >= 0:
        return TEMPERATURE_RANGE[1]
    from scipy.optimize import brentq

    return float(np.exp(brentq(slope, low, high, xtol=1e-10)))


def confidences(scores: np.ndarray, labels: np.ndarray, multi_label: bool) -> tuple[np.ndarray, np.ndarray]:
    """What calibration compares, both float64 `[N, 1]` (single-label) or `[N, K]` (multi-label): confidence,
    outcome.

    Single-label: the highest probability, and whether its class is the true one. Multi-label: every
    probability, and whether the label is present.
    """
    scores = np.asarray(scores, np.float64)
    if multi_label:
        return scores, (np.asarray(labels) > 0.5).astype(np.float64)
    top = scores.argmax(axis=1)
    return scores.max(axis=1)[:, None], (top == np.asarray(labels)).astype(np.float64)[:, None]


def bin_totals(confidence: np.ndarray, outcome: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Per row and bin: how many, their summed confidence, their summed outcome; float64 `[N, 3, bins]`.

    Bins have equal width and hold their upper edge: `(i/bins, (i+1)/bins]`, the first also 0.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    rows = np.arange(len(confidence))[:, None]
    totals = np.zeros((len(confidence), 3, bins))
    for position, values in enumerate((np.ones_like(confidence), confidence, outcome)):
        flat = np.bincount((rows * bins + index).ravel(), values.ravel(), len(confidence) * bins)
        totals[:, position] = flat.reshape(-1, bins)
    return totals


def calibration_error(totals: np.ndarray) -> np.ndarray:
    """Expected calibration error `Σ_b n_b / n |mean outcome - mean confidence|` from bin totals `[..., 3,
    bins]`.

    Naeini et al. 2015; Guo et al. 2017, equation 3.
    """
    gap = np.abs(totals[..., 2, :] - totals[..., 1, :]).sum(axis=-1)
    return gap / totals[..., 0, :].sum(axis=-1)


def reliability_table(
    scores: np.ndarray, labels: np.ndarray, multi_label: bool, bins: int = BINS
) -> list[dict]:
    """One dict per bin: `lower`, `upper`, `count`, `confidence`, `accuracy` (means; NaN in an empty bin).

    Multi-label: `accuracy` is the share of labels present among the N * K decisions of the bin.

    Args:
        scores: probabilities `[N, K]`.
        labels: int `[N]`, or multi-hot `[N, K]` if `multi_label`.
        multi_label: which of the two.
        bins: number of bins of equal width.
    """
    count, confidence, outcome = bin_totals(*confidences(scores, labels, multi_label), bins).sum(axis=0)
    filled = np.maximum(count, 1)
    return [
        {
            "lower": i / bins,
            "upper": (i + 1) / bins,
            "count": int(count[i]),
            "confidence": float(confidence[i] / filled[i]) if count[i] else float("nan"),
            "accuracy": float(outcome[i] / filled[i]) if count[i] else float("nan"),
        }
        for i in range(bins)
    ]
