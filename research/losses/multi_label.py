"""Which losses train a classifier with any number of labels per example (one sigmoid per class)?

Logits and dense targets are `[B, K]`, everything is computed in float32 from log-sigmoids, and values and
gradients are finite at any finite logit. Losses per example are the **mean** over the K classes, so that a
learning rate means the same for 10 and for 28 labels. Class weights `[K]` multiply the terms of their class.
The soft F1 exists only over a whole batch: it takes the example weights `[B]` (0 for padding) and returns a
scalar. Options may be traced floats.
"""

import jax
import jax.numpy as jnp

from research.losses.single_label import dense, mean_over_examples, without_padding

# Below this a shifted probability counts as zero: its logarithm's derivative would overflow float32.
_SMALLEST = 1e-30


def smooth(targets: jax.Array, label_smoothing: float | jax.Array) -> jax.Array:
    """`y (1 - ε) + ε / 2`: the two-class case of Szegedy et al. 2016."""
    return targets * (1.0 - label_smoothing) + label_smoothing / 2.0


def _mean_over_classes(terms: jax.Array, class_weights: jax.Array | None) -> jax.Array:
    return jnp.mean(terms if class_weights is None else terms * class_weights, axis=-1)


def sigmoid_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    label_smoothing: float | jax.Array = 0.0,
) -> jax.Array:
    """Binary cross-entropy `-y log p - (1 - y) log(1 - p)`, mean over the classes; `[B]`, in nats.

    Args:
        logits: `[B, K]`.
        targets: `[B, K]` in [0, 1].
        class_weights: `[K]` or None.
        label_smoothing: ε in [0, 1); targets become `y (1 - ε) + ε / 2`.
    """
    logits, targets = dense(logits, targets)
    targets = smooth(targets, label_smoothing)
    terms = -targets * jax.nn.log_sigmoid(logits) - (1.0 - targets) * jax.nn.log_sigmoid(-logits)
    return _mean_over_classes(terms, class_weights)


def focal_binary(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    alpha: float | jax.Array | None = 0.25,
    gamma: float | jax.Array = 2.0,
    label_smoothing: float | jax.Array = 0.0,
) -> jax.Array:
    """`-α y (1 - p)^γ log p - (1 - α)(1 - y) p^γ log(1 - p)`, mean over the classes; `[B]`, in nats.

    Lin et al. 2017, equation 5, with their α and γ as defaults. Linear in the target, so a smoothed or mixed
    target is the expectation over its two labels (implementations that put the soft target inside the
    modulating factor differ there).

    Args:
        logits: `[B, K]`.
        targets: `[B, K]` in [0, 1].
        class_weights: `[K]` or None.
        alpha: weight of the positives in [0, 1], or None for no weight on either side.
        gamma: focusing exponent, >= 0; 0 leaves the weighted cross-entropy.
        label_smoothing: ε in [0, 1).
    """
    logits, targets = dense(logits, targets)
    targets = smooth(targets, label_smoothing)
    log_positive, log_negative = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    weight_positive, weight_negative = (1.0, 1.0) if alpha is None else (alpha, 1.0 - alpha)
    # Powers of p and 1 - p as exponentials of log-sigmoids: finite gradients for every γ.
    positive = weight_positive * jnp.exp(gamma * log_negative) * log_positive
    negative = weight_negative * jnp.exp(gamma * log_positive) * log_negative
    return _mean_over_classes(-targets * positive - (1.0 - targets) * negative, class_weights)


def focal_scalar(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    class_counts: jax.Array,
    gamma: float | jax.Array = 2.5,
    label_smoothing: float | jax.Array = 0.1,
) -> jax.Array:
    """`α (1 - e^{-b})^γ b` with the cross-entropy b of each class, mean over the classes; `[B]`, in nats.

    The captions study's focal loss: its soft target stays inside b, so that the modulating factor sees it; the target
    is smoothed over the classes, `y (1 - ε) + ε / K`; and `α = mean_c Σn / (K n_c)` of the labels' counts n is one
    number for all classes, which balances nothing and only scales the loss.

    Args:
        logits: `[B, K]`.
        targets: `[B, K]` in [0, 1].
        class_weights: `[K]` or None.
        class_counts: `[K]`, n.
        gamma: focusing exponent, >= 0.
        label_smoothing: ε in [0, 1).
    """
    logits, targets = dense(logits, targets)
    counts = jnp.asarray(class_counts, jnp.float32)
    alpha = jnp.mean(jnp.sum(counts) / (counts.size * counts))
    targets = targets * (1.0 - label_smoothing) + label_smoothing / counts.size
    terms = -targets * jax.nn.log_sigmoid(logits) - (1.0 - targets) * jax.nn.log_sigmoid(-logits)
    # A term can be zero to rounding, where the power of 1 - e^{-b} has no finite gradient for γ < 1.
    easy = -jnp.expm1(-jnp.maximum(terms, _SMALLEST))
    return _mean_over_classes(alpha * easy**gamma * terms, class_weights)


def asymmetric(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    gamma_positive: float | jax.Array = 0.0,
    gamma_negative: float | jax.Array = 4.0,
    margin: float | jax.Array = 0.05,
) -> jax.Array:
    """Asymmetric loss of Ridnik et al. 2021 (equations 4 to 7), mean over the classes; `[B]`, in nats.

    `-y (1 - p)^γ₊ log p - (1 - y) p_m^γ₋ log(1 - p_m)` with `p_m = max(p - m, 0)`: easy negatives below the
    margin cost nothing. Differentiated in full, as in the paper (its reference code holds the focusing factor
    constant, and sums over the classes). γ₊ = γ₋ = m = 0 is `sigmoid_cross_entropy`.

    Args:
        logits: `[B, K]`.
        targets: `[B, K]` in [0, 1].
        class_weights: `[K]` or None.
        gamma_positive: γ₊ >= 0.
        gamma_negative: γ₋ >= 0.
        margin: m in [0, 1).
    """
    logits, targets = dense(logits, targets)
    log_positive, log_negative = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    positive = jnp.exp(gamma_positive * log_negative) * log_positive
    shifted = jax.nn.sigmoid(logits) - margin
    counts = shifted > _SMALLEST
    log_shifted = jnp.log(jnp.where(counts, shifted, 1.0))
    # log(1 - p + m) without ever forming 1 - p, which rounds to zero at large logits; no margin, no logarithm
    # of it.
    shifts = jnp.asarray(margin) > 0
    log_margin = jnp.log(jnp.where(shifts, margin, 1.0))
    log_remainder = jnp.where(shifts, jnp.logaddexp(log_negative, log_margin), log_negative)
    negative = jnp.where(counts, jnp.exp(gamma_negative * log_shifted) * jnp.minimum(log_remainder, 0.0), 0.0)
    return _mean_over_classes(-targets * positive - (1.0 - targets) * negative, class_weights)


def soft_f1(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    epsilon: float | jax.Array = 1e-7,
) -> jax.Array:
    """`1 - mean_c 2 P_c R_c / (P_c + R_c + ε)` over the whole batch; a scalar in [0, 1].

    The HPA study's soft macro F1: with `tp = Σ y p`, `fp = Σ (1 - y) p`, `fn = Σ y (1 - p)` per class over
    the batch, `P = tp / (tp + fp + ε)` and `R = tp / (tp + fn + ε)`. A class without positives in the batch
    costs a constant and has no gradient. Not a mean over examples: accumulating it over parts of a batch is
    another loss.

    Args:
        logits: `[B, K]`.
        targets: `[B, K]` in [0, 1].
        weights: `[B]`, enter the three sums; 0 leaves an example (padding) out, whatever its logits.
        class_weights: `[K]` or None; the mean over the classes becomes a weighted mean.
        epsilon: ε > 0 (the study's Keras constant).
    """
    logits, targets = dense(logits, targets)
    weights = jnp.asarray(weights, jnp.float32)[:, None]
    probabilities = jax.nn.sigmoid(jnp.where(weights > 0, logits, 0.0))
    true_positives = jnp.sum(weights * targets * probabilities, axis=0)
    false_positives = jnp.sum(weights * (1.0 - targets) * probabilities, axis=0)
    false_negatives = jnp.sum(weights * targets * (1.0 - probabilities), axis=0)
    precision = true_positives / (true_positives + false_positives + epsilon)
    recall = true_positives / (true_positives + false_negatives + epsilon)
    f1 = 2.0 * precision * recall / (precision + recall + epsilon)
    if class_weights is None:
        return 1.0 - jnp.mean(f1)
    return 1.0 - jnp.sum(f1 * class_weights) / jnp.sum(class_weights)


def bce_soft_f1(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    f1_weight: float | jax.Array = 1.0,
    label_smoothing: float | jax.Array = 0.0,
    epsilon: float | jax.Array = 1e-7,
) -> jax.Array:
    """Mean `sigmoid_cross_entropy` of the batch plus `f1_weight` times `soft_f1`; a scalar.

    The cross-entropy gives a gradient where the soft F1 is flat: classes without positives, saturated
    probabilities. Arguments as in the two losses; smoothing acts on the cross-entropy only.
    """
    weights = jnp.asarray(weights, jnp.float32)
    counted = without_padding(logits, weights)
    cross_entropy = sigmoid_cross_entropy(counted, targets, class_weights, label_smoothing=label_smoothing)
    f1 = soft_f1(logits, targets, weights, class_weights, epsilon=epsilon)
    return mean_over_examples(cross_entropy, weights) + f1_weight * f1
