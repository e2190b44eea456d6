"""Do the probabilities mean what they say (ECE, Brier, reliability), and which temperature makes them?"""

import numpy as np

from input_pipeline.cli import UserError

BINS = 15
BINNINGS = ("equal_width", "equal_mass")
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
        raise UserError("a temperature cannot be fitted without examples; give the dataset a calibration role.")
    if labels.shape != (logits.shape if multi_label else logits.shape[:1]):
        raise UserError(f"labels of shape {labels.shape} do not fit logits of shape {logits.shape}.")
    if multi_label:
        targets = (labels > 0.5).astype(np.float64)
    else:
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise UserError("a temperature is fitted on labelled examples alone; leave the unlabelled ones out.")
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


def bin_totals(
    confidence: np.ndarray, outcome: np.ndarray, bins: int = BINS, edges: np.ndarray | None = None
) -> np.ndarray:
    """Per row and bin: how many, their summed confidence, their summed outcome; float64 `[N, 3, bins]`.

    Bins have equal width, or the given `edges`, and hold their upper edge: `(i/bins, (i+1)/bins]`, the first also 0.
    """
    edges = np.linspace(0.0, 1.0, bins + 1) if edges is None else edges
    bins = len(edges) - 1
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    rows = np.arange(len(confidence))[:, None]
    totals = np.zeros((len(confidence), 3, bins))
    for position, values in enumerate((np.ones_like(confidence), confidence, outcome)):
        flat = np.bincount((rows * bins + index).ravel(), values.ravel(), len(confidence) * bins)
        totals[:, position] = flat.reshape(-1, bins)
    return totals


def bin_edges(confidence: np.ndarray, bins: int, binning: str) -> np.ndarray:
    """Edges float64 `[bins + 1]` from 0 to 1 of bins of equal width or of (about) equal mass.

    Equal mass (adaptive; Nixon et al. 2019): bin i ends at the largest of the first `ceil((i + 1) M / bins)` of the M
    sorted confidences, so that sizes differ by one at most. Equal confidences stay in one bin, whatever their order
    among the examples; bins then merge, and there are fewer of them.

    Raises:
        UserError: an unknown kind of bins, or fewer than one.
    """
    if binning not in BINNINGS or bins < 1:
        raise UserError(
            f"calibration needs at least one bin, of a kind among {', '.join(BINNINGS)}; not {bins} of {binning!r}."
        )
    values = np.sort(np.asarray(confidence, np.float64), axis=None)
    if binning == "equal_width" or not len(values):
        return np.linspace(0.0, 1.0, bins + 1)
    last = np.ceil(np.arange(1, bins) * len(values) / bins).astype(np.int64) - 1
    inner = np.unique(values[np.maximum(last, 0)])
    return np.concatenate([[0.0], inner[(inner > 0) & (inner < 1)], [1.0]])


def calibration_error(totals: np.ndarray) -> np.ndarray:
    """Expected calibration error `Σ_b n_b / n |mean outcome - mean confidence|` from bin totals `[..., 3,
    bins]`.

    Naeini et al. 2015; Guo et al. 2017, equation 3.
    """
    gap = np.abs(totals[..., 2, :] - totals[..., 1, :]).sum(axis=-1)
    return gap / totals[..., 0, :].sum(axis=-1)


def expected_calibration_error(
    scores: np.ndarray, labels: np.ndarray, multi_label: bool, bins: int = BINS, binning: str = "equal_width"
) -> float:
    """ECE of the top class (single-label) or of all N * K probabilities (multi-label); NaN without examples.

    Args:
        scores: probabilities `[N, K]`, finite. labels: int `[N]`, or multi-hot `[N, K]` if `multi_label`.
        multi_label: which of the two.
        bins: at most so many. binning: "equal_width", or "equal_mass" (adaptive; see `bin_edges`).

    Raises:
        UserError: scores that are not finite, or an unknown kind of bins.
    """
    confidence, outcome = confidences(check_finite(scores, "scores"), labels, multi_label)
    return _error(confidence, outcome, bins, binning)


def _error(confidence: np.ndarray, outcome: np.ndarray, bins: int, binning: str) -> float:
    edges = bin_edges(confidence, bins, binning)
    if not confidence.size:
        return float("nan")
    return float(calibration_error(bin_totals(confidence, outcome, edges=edges).sum(axis=0)))


def class_calibration_errors(
    scores: np.ndarray, labels: np.ndarray, multi_label: bool, bins: int = BINS, binning: str = "equal_width"
) -> np.ndarray:
    """ECE of every class's own probability against its presence, float64 `[K]`; arguments as above.

    Their mean is the class-wise (static) calibration error of Kull et al. 2019 and Nixon et al. 2019. It sees what the
    ECE of the top class does not: probabilities of the classes that were not chosen. A class without positives counts
    too: all its probability is then error.
    """
    scores = check_finite(scores, "scores")
    labels = np.asarray(labels)
    present = labels > 0.5 if multi_label else labels[:, None] == np.arange(scores.shape[1])
    columns = [slice(c, c + 1) for c in range(scores.shape[1])]
    return np.array([_error(scores[:, c], present[:, c].astype(np.float64), bins, binning) for c in columns])


def example_brier(scores: np.ndarray, true: np.ndarray, multi_label: bool) -> np.ndarray:
    """Brier score per example, float64 `[N]`: its mean is Brier's (1950).

    Single-label: the squared error summed over the classes, 0 to 2 (twice the binary score for two classes).
    Multi-label: the mean of the K binary scores, 0 to 1.

    Args:
        scores: probabilities `[N, K]`. true: bool `[N, K]`, one-hot or multi-hot.
    """
    squares = (np.asarray(scores, np.float64) - true) ** 2
    return squares.mean(axis=1) if multi_label else squares.sum(axis=1)


def brier(scores: np.ndarray, labels: np.ndarray, multi_label: bool) -> float:
    """Mean of `example_brier`; NaN without examples. Labels int `[N]`, or multi-hot `[N, K]` if `multi_label`.

    Raises:
        UserError: scores that are not finite.
    """
    scores = check_finite(scores, "scores")
    labels = np.asarray(labels)
    true = labels > 0.5 if multi_label else labels[:, None] == np.arange(scores.shape[1])
    return float(example_brier(scores, true, multi_label).mean()) if len(scores) else float("nan")


def reliability_table(
    scores: np.ndarray, labels: np.ndarray, multi_label: bool, bins: int = BINS, binning: str = "equal_width"
) -> list[dict]:
    """One dict per bin: `lower`, `upper`, `count`, `confidence`, `accuracy` (means; NaN in an empty bin).

    Multi-label: `accuracy` is the share of labels present among the N * K decisions of the bin.

    Args:
        scores: probabilities `[N, K]`.
        labels: int `[N]`, or multi-hot `[N, K]` if `multi_label`.
        multi_label: which of the two.
        bins: at most so many. binning: "equal_width" or "equal_mass" (`bin_edges`).
    """
    confidence, outcome = confidences(scores, labels, multi_label)
    edges = bin_edges(confidence, bins, binning)
    count, summed, right = bin_totals(confidence, outcome, edges=edges).sum(axis=0)
    filled = np.maximum(count, 1)
    return [
        {
            "lower": float(edges[i]),
            "upper": float(edges[i + 1]),
            "count": int(count[i]),
            "confidence": float(summed[i] / filled[i]) if count[i] else float("nan"),
            "accuracy": float(right[i] / filled[i]) if count[i] else float("nan"),
        }
        for i in range(len(edges) - 1)
    ]
