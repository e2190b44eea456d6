"""How much does each class count in the loss, given how often it occurs in the training examples?"""

from collections.abc import Sequence

import numpy as np

from input_pipeline.cli import UserError

SCHEMES = ("none", "balanced", "effective")


def class_counts(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, int]:
    """How many examples carry each class, int64 `[K]`, and how many labelled examples there are.

    Args:
        labels: int `[N]` (-1 = unlabelled, left out) or multi-hot `[N, K]`.
        num_classes: K.

    Raises:
        UserError: a label outside 0..K-1, or a width other than K.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2:
        if labels.shape[1] != num_classes:
            raise UserError(f"the labels have {labels.shape[1]} columns but there are {num_classes} classes.")
        return np.count_nonzero(labels > 0.5, axis=0).astype(np.int64), len(labels)
    labelled = labels[labels >= 0].astype(np.int64)
    if labelled.size and labelled.max() >= num_classes:
        raise UserError(
            f"label {labelled.max()} is outside 0..{num_classes - 1}; check the class names of the dataset."
        )
    return np.bincount(labelled, minlength=num_classes).astype(np.int64), len(labelled)


def class_weights(
    labels: np.ndarray,
    num_classes: int,
    scheme: str = "none",
    beta: float = 0.999,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """One factor per class for the loss, float32 `[K]`.

    `none`: ones. `balanced`: `n / (K n_c)`, n labelled examples of which n_c carry class c (King & Zeng 2001,
        and
    scikit-learn's "balanced"). `effective`: `(1 - β) / (1 - β^n_c)`, scaled to sum to K (Cui et al. 2019,
    equation 4).

    Args:
        labels: of the training examples alone: int `[N]` (-1 = unlabelled, left out) or multi-hot `[N, K]`.
        num_classes: K.
        scheme: one of `SCHEMES`.
        beta: β in [0, 1), for `effective`; 0 gives ones, towards 1 it approaches inverse frequencies.
        class_names: `[K]`, to name classes in errors.

    Raises:
        UserError: an unknown scheme, a β out of range, or a class without training examples, which has no
            weight: giving it 0 would leave its output untrained, giving it infinity would be worse.
    """
    if scheme not in SCHEMES:
        raise UserError(f"unknown class weights {scheme!r}; choose one of: {', '.join(SCHEMES)}.")
    if not 0 <= beta < 1:
        raise UserError(f"beta of the class weights must be at least 0 and below 1, not {beta!r}.")
    counts, total = class_counts(labels, num_classes)
    if scheme == "none":
        return np.ones(num_classes, np.float32)
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        names = ", ".join(repr(class_names[c]) if class_names is not None else str(c) for c in empty)
        raise UserError(
            f"class weights {scheme!r} need training examples of every class; there are none of: {names}; "
            "use class weights 'none' or leave these classes out of the dataset."
        )
    if scheme == "balanced":
        weights = total / (num_classes * counts)
    elif beta == 0:
        weights = np.ones(num_classes)
    else:
        # 1 - β^n without cancellation for β close to one.
        weights = (1.0 - beta) / -np.expm1(counts * np.log(beta))
        weights *= num_classes / weights.sum()
    return weights.astype(np.float32)
