"""Which losses train a network that decides every pixel (one sigmoid per class and pixel)?

Logits and dense targets are `[B, H, W, K]` for K classes beside the background, which has no logit. Everything is
computed in float32 from log-sigmoids. Losses are per example: a mean over the K classes, and over the pixels or of a
ratio of sums over the pixels of one image. With p the probability and y the target of a pixel, for each class

    TP = Σ p y,  FP = Σ p (1 - y),  FN = Σ (1 - p) y                          (sums over the pixels of one image)

`smooth` (1 pixel by default) is added above and below a ratio, so that an image without the class has a defined loss,
which falls with FP. Class weights `[K]` multiply the terms of their class. Options may be traced floats.
"""

import jax
import jax.numpy as jnp

from research.losses.single_label import dense


def _pixels(terms: jax.Array) -> tuple[int, ...]:
    """The axes between the example and the class; none for `[B, K]`, where an example is one pixel."""
    return tuple(range(1, terms.ndim - 1))


def _mean_over_classes(terms: jax.Array, class_weights: jax.Array | None) -> jax.Array:
    """`[B, K]` to `[B]`."""
    return jnp.mean(terms if class_weights is None else terms * class_weights, axis=-1)


def _counts(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Soft TP, FP and FN, each `[B, K]`; 1 - p is a sigmoid of its own, which keeps it exact near zero."""
    inside, outside = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    sums = (inside * targets, inside * (1.0 - targets), outside * targets)
    return tuple(jnp.sum(terms, axis=_pixels(terms)) for terms in sums)


def _shortfall(logits: jax.Array, targets: jax.Array, missed: float | jax.Array, smooth: float | jax.Array):
    """1 - Tversky index, `(α FN + (1 - α) FP) / (TP + α FN + (1 - α) FP + s)`, without a difference; `[B, K]`."""
    hits, extra, lost = _counts(logits, targets)
    errors = missed * lost + (1.0 - missed) * extra
    return errors / (hits + errors + smooth)


def bce_dice(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    dice_weight: float | jax.Array = 1.0,
    smooth: float | jax.Array = 1.0,
) -> jax.Array:
    """`BCE + w (1 - (2 TP + s) / (2 TP + FP + FN + s))`: cross-entropy of the pixels plus soft Dice; `[B]`, in nats.

    The Dice loss of Milletari et al. 2016 (V-Net, arXiv:1606.04797) without squares in its denominator, as Sudre et al.
    2017 (arXiv:1707.03237) have it; the sum is the usual one of `segmentation_models`, which the study used.

    Args:
        logits: `[B, H, W, K]`.
        targets: `[B, H, W, K]` in [0, 1].
        class_weights: `[K]` or None.
        dice_weight: w >= 0; 0 leaves the cross-entropy.
        smooth: s > 0, in pixels.
    """
    logits, targets = dense(logits, targets)
    terms = -targets * jax.nn.log_sigmoid(logits) - (1.0 - targets) * jax.nn.log_sigmoid(-logits)
    # Half the weight on each kind of error makes the Tversky index the Dice coefficient, s / 2 counted once.
    dice = _shortfall(logits, targets, 0.5, smooth / 2.0)
    return _mean_over_classes(jnp.mean(terms, axis=_pixels(terms)) + dice_weight * dice, class_weights)


def focal_pixels(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    alpha: float | jax.Array = 0.25,
    gamma: float | jax.Array = 2.0,
) -> jax.Array:
    """`-α y (1 - p)^γ log p - (1 - α)(1 - y) p^γ log(1 - p)`, mean over the pixels and classes; `[B]`, in nats.

    Lin et al. 2017 (arXiv:1708.02002), equation 5, with their α and γ as defaults, at every pixel.

    Args:
        logits: `[B, H, W, K]`.
        targets: `[B, H, W, K]` in [0, 1].
        class_weights: `[K]` or None.
        alpha: weight of the pixels of the class, in (0, 1].
        gamma: focusing exponent, >= 0; 0 leaves the weighted cross-entropy.
    """
    logits, targets = dense(logits, targets)
    log_inside, log_outside = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    inside = alpha * jnp.exp(gamma * log_outside) * log_inside
    outside = (1.0 - alpha) * jnp.exp(gamma * log_inside) * log_outside
    terms = -targets * inside - (1.0 - targets) * outside
    return _mean_over_classes(jnp.mean(terms, axis=_pixels(terms)), class_weights)


def tversky(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    missed_weight: float | jax.Array = 0.7,
    smooth: float | jax.Array = 1.0,
) -> jax.Array:
    """`1 - (TP + s) / (TP + α FN + (1 - α) FP + s)`; `[B]`, in [0, 1).

    Salehi et al. 2017 (arXiv:1706.05721), equation 3, whose β (0.7) is this α, that of missed pixels; Abraham & Khan
    2019 and the study's code name the weights as here. α = 0.5 is the soft Dice loss with twice the `smooth`.

    Args:
        logits: `[B, H, W, K]`.
        targets: `[B, H, W, K]` in [0, 1].
        class_weights: `[K]` or None.
        missed_weight: α in [0, 1], of missed pixels; the others, marked without being of the class, have 1 - α.
        smooth: s > 0, in pixels.
    """
    logits, targets = dense(logits, targets)
    return _mean_over_classes(_shortfall(logits, targets, missed_weight, smooth), class_weights)


# Below this a shortfall has no slope: the power's derivative would be infinite at zero for an exponent below one.
_SMALLEST = 1e-12


def focal_tversky(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    missed_weight: float | jax.Array = 0.7,
    gamma: float | jax.Array = 0.75,
    smooth: float | jax.Array = 1.0,
) -> jax.Array:
    """`(1 - TI)^γ` with the Tversky index TI of `tversky`; `[B]`, in [0, 1).

    Abraham & Khan 2019 (arXiv:1810.07842), equation 3, whose exponent 1/γ with γ = 4/3 is the 0.75 here (an exponent
    below one makes images that are nearly right count more). γ = 1 is `tversky`.

    Args:
        logits: `[B, H, W, K]`.
        targets: `[B, H, W, K]` in [0, 1].
        class_weights: `[K]` or None.
        missed_weight: α in [0, 1], see `tversky`.
        gamma: the exponent, >= 0.
        smooth: s > 0, in pixels.
    """
    logits, targets = dense(logits, targets)
    short = _shortfall(logits, targets, missed_weight, smooth)
    counts = short > _SMALLEST
    power = jnp.where(counts, jnp.where(counts, short, 1.0) ** gamma, 0.0)
    return _mean_over_classes(power, class_weights)
