"""What would somebody score who has not looked at the image, or only at its colours?

Every report puts these beside the network. Baselines see what the network sees: they are fitted on `train`,
their thresholds on `calibration`, and they are scored on the same test ids.
"""

import dataclasses
import warnings
from collections.abc import Callable

import numpy as np

from input_pipeline.cli import UserError
from research.evaluation.metrics import check_labels
from research.evaluation.thresholds import decide, fixed, per_class_f1

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""What `linear_svm` chooses its C from."""


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Predictions of a trivial rival for the rows of the test set.

    Attributes:
        name: what to call it in a table.
        scores: probabilities float64 `[N, K]`; single-label rows sum to one.
        predicted: int64 `[N]` (single-label) or bool `[N, K]` (multi-label).
        thresholds: float64 `[K]` behind `predicted`, where there are any.
    """

    name: str
    scores: np.ndarray
    predicted: np.ndarray
    thresholds: np.ndarray | None = None


def class_shares(labels: np.ndarray, num_classes: int, multi_label: bool) -> np.ndarray:
    """The share of examples with each class, float64 `[K]`; labels int `[N]` or multi-hot `[N, K]`."""
    return check_labels(labels, num_classes, multi_label, len(labels)).mean(axis=0)


def majority(train_labels: np.ndarray, num_examples: int, num_classes: int, multi_label: bool) -> Baseline:
    """Always the most frequent class of `train`; multi-label: every label of at least half of it, else
    the most frequent.

    The scores are the class shares of `train`, so that the log loss means something.
    """
    shares = class_shares(train_labels, num_classes, multi_label)
    scores = np.tile(shares, (num_examples, 1))
    if multi_label:
        return Baseline("majority class", scores, decide(scores, 0.5, "argmax"))
    return Baseline("majority class", scores, np.full(num_examples, shares.argmax()))


def predict_all(train_labels: np.ndarray, num_examples: int, num_classes: int) -> Baseline:
    """Every label for every example (multi-label): macro F1 is then the mean of `2 q / (1 + q)` over test
    shares q.
    """
    scores = np.tile(class_shares(train_labels, num_classes, True), (num_examples, 1))
    return Baseline("every label", scores, np.ones((num_examples, num_classes), bool))


def prevalence(
    train_labels: np.ndarray, num_examples: int, num_classes: int, multi_label: bool, seed: int = 0
) -> Baseline:
    """Guessing: each example gets the label, or label set, of a train example drawn at random."""
    scores = np.tile(class_shares(train_labels, num_classes, multi_label), (num_examples, 1))
    drawn = np.random.default_rng(seed).integers(0, len(train_labels), num_examples)
    labels = np.asarray(train_labels)[drawn]
    return Baseline("random by prevalence", scores, labels > 0.5 if multi_label else labels.astype(np.int64))


def trivial(
    train_labels: np.ndarray, num_examples: int, num_classes: int, multi_label: bool, seed: int = 0
) -> list[Baseline]:
    """The baselines that need no images: majority, prevalence and, for multi-label tasks, every label."""
    found = [
        majority(train_labels, num_examples, num_classes, multi_label),
        prevalence(train_labels, num_examples, num_classes, multi_label, seed),
    ]
    return found + [predict_all(train_labels, num_examples, num_classes)] if multi_label else found


def histogram_features(images: np.ndarray, bins: int = 32, joint_bins: int = 4) -> np.ndarray:
    """Colour histograms: where in the image a colour stands is forgotten.

    Per channel the share of pixels in each of `bins` equal intervals, then the share in each cell of the
    joint histogram with `joint_bins` intervals per channel (of the first four channels, the first varying
    slowest; left out for one channel, where it says nothing new). Each of these histograms sums to one.

    Args:
        images: uint8 or uint16 `[N, H, W, C]`, over the full range of their type.
        bins: intervals per channel, a power of two up to 256.
        joint_bins: intervals per channel of the joint histogram, a power of two.

    Returns:
        float32 `[N, C * bins + joint_bins ** min(C, 4)]`.

    Raises:
        UserError: another type or shape, or numbers of bins that are no powers of two.
    """
    images = np.asarray(images)
    if images.dtype not in (np.uint8, np.uint16) or images.ndim != 4 or 0 in images.shape[1:]:
        raise UserError(
            f"colour histograms need uint8 or uint16 images [N, H, W, C], not {images.dtype} {images.shape}."
        )
    for number in (bins, joint_bins):
        if not 1 <= number <= 256 or number & (number - 1):
            raise UserError(f"the number of histogram bins must be a power of two up to 256, not {number}.")
    depth = images.dtype.itemsize * 8
    num_examples, height, width, channels = images.shape
    joint_channels = min(channels, 4) if channels > 1 else 0
    joint = joint_bins**joint_channels if joint_channels else 0
    features = np.empty((num_examples, channels * bins + joint), np.float32)
    # Shifts instead of divisions: interval i of n holds the values with i in their highest log2(n) bits.
    fine, coarse = depth - (bins.bit_length() - 1), depth - (joint_bins.bit_length() - 1)
    offsets = np.arange(channels, dtype=np.int32) * bins
    for row, image in enumerate(images):
        pixels = image.reshape(-1, channels)
        counts = np.bincount(((pixels >> fine) + offsets).ravel(), minlength=channels * bins)
        features[row, : channels * bins] = counts
        if joint:
            cells = (pixels[:, :joint_channels] >> coarse).astype(np.int32)
            powers = joint_bins ** np.arange(joint_channels, dtype=np.int32)[::-1]
            features[row, channels * bins :] = np.bincount(cells @ powers, minlength=joint)
    return features / np.float32(height * width)


def histogram_regression(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    num_classes: int,
    multi_label: bool,
    calibration_features: np.ndarray | None = None,
    calibration_labels: np.ndarray | None = None,
    max_iterations: int = 200,
) -> Baseline:
    """Logistic regression on colour histograms (`histogram_features`): what colours alone are worth.

    Takes square roots of the histograms (the Hellinger kernel, Vedaldi & Zisserman 2012); see `regression`.
    """

    def roots(features: np.ndarray | None) -> np.ndarray | None:
        return None if features is None else np.sqrt(np.asarray(features, np.float64))

    return regression(
        "colour histogram + logistic regression", roots(train_features), train_labels, roots(test_features),
        num_classes, multi_label, roots(calibration_features), calibration_labels, max_iterations,
    )  # fmt: skip


def pixel_features(images: np.ndarray, side: int = 32) -> np.ndarray:
    """The mean of the channels, at most `side` x `side` pixels, each the mean of the area that it covers.

    Args:
        images: `[N, H, W, C]`.

    Returns:
        float32 `[N, min(H, side) * min(W, side)]`.
    """
    grey = np.asarray(images, np.float32).mean(axis=-1)
    for axis in (1, 2):
        length = grey.shape[axis]
        parts = min(length, side)
        starts = np.arange(parts) * length // parts
        sums = np.add.reduceat(grey, starts, axis=axis)
        counts = np.diff(np.append(starts, length)).astype(np.float32)
        grey = sums / np.expand_dims(counts, tuple(i for i in range(3) if i != axis))
    return grey.reshape(len(grey), -1)


def regression(
    name: str,
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    num_classes: int,
    multi_label: bool,
    calibration_features: np.ndarray | None = None,
    calibration_labels: np.ndarray | None = None,
    max_iterations: int = 200,
) -> Baseline:
    """Logistic regression on features that need no learning.

    Standardised by the statistics of `train`; multinomial, or one-vs-rest with the thresholds that maximise each
    class's F1 on `calibration` (0.5 without calibration examples) and the highest score where none is reached, as the
    network's own. Deterministic. L2 with scikit-learn's C = 1; L-BFGS stops after `max_iterations`, so the
    time is bounded (seconds for 5,000 images).

    Args:
        name: of the baseline.
        train_features: `[N, F]`. train_labels: int `[N]` or multi-hot `[N, K]`.
        test_features: `[M, F]`.
        num_classes: K.
        multi_label: which of the two.
        calibration_features: `[L, F]` or None. calibration_labels: as `train_labels`; used if `multi_label`.
        max_iterations: of the solver, per class if `multi_label`.

    Raises:
        UserError: no training examples, unlabelled ones, or labels that do not fit.
    """
    true = check_labels(train_labels, num_classes, multi_label, len(train_features))
    standardise = _standardiser(train_features)
    train, test = standardise(train_features), standardise(test_features)
    if not multi_label:
        scores = _fit_and_score(train, np.asarray(train_labels).astype(np.int64), [test], num_classes, max_iterations)[
            0
        ]
        return Baseline(name, scores, scores.argmax(axis=1))
    sets = [test]
    if calibration_features is not None and len(calibration_features):
        sets.append(standardise(calibration_features))
    columns = [_fit_and_score(train, true[:, c].astype(np.int64), sets, 2, max_iterations) for c in range(num_classes)]
    scores = [np.stack([column[i][:, 1] for column in columns], axis=1) for i in range(len(sets))]
    cuts = per_class_f1(scores[1], calibration_labels) if len(sets) > 1 else fixed(num_classes)
    return Baseline(name, scores[0], decide(scores[0], cuts), cuts)


def linear_svm(
    name: str,
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    num_classes: int,
    calibration_features: np.ndarray | None = None,
    calibration_labels: np.ndarray | None = None,
) -> Baseline:
    """A linear support vector machine for each class against the rest; the greatest decision value wins.

    Standardised as in `regression`; squared hinge and L2. C is the one of `STRENGTHS` with the best accuracy on
    `calibration`, the smallest of equal ones, and 1 without such examples. Deterministic. The scores are a softmax of
    the decision values, so they rank but are not calibrated.

    Args:
        train_features: `[N, F]`. train_labels: int `[N]`. test_features: `[M, F]`. num_classes: K.
        calibration_features: `[L, F]` or None. calibration_labels: int `[L]`.

    Raises:
        UserError: no training examples, unlabelled ones, or labels that do not fit.
    """
    check_labels(train_labels, num_classes, False, len(train_features))
    standardise = _standardiser(train_features)
    labels = np.asarray(train_labels).astype(np.int64)
    train, sets = standardise(train_features), [standardise(test_features)]
    strengths = (1.0,)
    if calibration_features is not None and len(calibration_features):
        sets.append(standardise(calibration_features))
        strengths = STRENGTHS
    found = [_decision_values(train, labels, sets, num_classes, strength) for strength in strengths]
    right = [0.0 if len(sets) == 1 else np.mean(own[1].argmax(axis=1) == calibration_labels) for own in found]
    values = found[int(np.argmax(right))][0]
    scores = np.exp(values - values.max(axis=1, keepdims=True))
    return Baseline(name, scores / scores.sum(axis=1, keepdims=True), values.argmax(axis=1))


def _decision_values(
    train: np.ndarray, labels: np.ndarray, sets: list[np.ndarray], num_classes: int, strength: float
) -> list[np.ndarray]:
    """Decision values float64 `[M, K]` of each set; those of classes that `train` lacks are minus infinity."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    present = np.unique(labels)
    model = LinearSVC(C=strength, random_state=0)
    if len(present) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # as in `_fit_and_score`
            model.fit(train, labels)
    results = []
    for features in sets:
        values = np.full((len(features), num_classes), -np.inf)
        found = model.decision_function(features) if len(present) > 1 else np.zeros((len(features), 1))
        values[:, present] = np.stack([-found, found], axis=1) / 2 if found.ndim == 1 else found
        results.append(values)
    return results


def _standardiser(train_features: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Features less their means over `train`, divided by their deviations there; constant ones become 0."""
    train_features = np.asarray(train_features, np.float64)
    mean, scale = train_features.mean(axis=0), train_features.std(axis=0)
    scale[scale == 0] = 1.0
    return lambda features: (np.asarray(features, np.float64) - mean) / scale


def _fit_and_score(
    train: np.ndarray, labels: np.ndarray, sets: list[np.ndarray], num_classes: int, max_iterations: int
) -> list[np.ndarray]:
    """Probabilities float64 `[M, K]` of each set; classes that `train` lacks get 0."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = np.unique(labels)
    if len(present) == 1:
        return [np.tile(np.eye(num_classes)[present[0]], (len(features), 1)) for features in sets]
    model = LogisticRegression(max_iter=max_iterations)
    with warnings.catch_warnings():
        # The bound on the iterations is meant: a baseline may stop short of the optimum, not take hours.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train, labels)
    results = []
    for features in sets:
        scores = np.zeros((len(features), num_classes))
        if len(features):
            scores[:, model.classes_] = model.predict_proba(features)
        results.append(scores)
    return results
