"""Which losses train a classifier with one class per example whose classes differ much in frequency?

They take logits and dense targets `[B, K]` and return `[B]`, as those of `single_label`. Those with `class_counts` get
the examples of each class in the training set, `[K]`, from the data set and not from the config. Class-balanced
training (Cui et al. 2019) is no loss but class weights, `config.loss.class_weights = "effective"`, and deferred
re-weighting (Cao et al. 2019) is class weights that begin late, `config.loss.defer`.
"""

import jax
import jax.numpy as jnp

from research.losses.single_label import at_least_two_classes, dense, example_weight, log_complement, smooth


def logit_adjusted(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    class_counts: jax.Array,
    tau: float | jax.Array = 1.0,
    label_smoothing: float | jax.Array = 0.0,
) -> jax.Array:
    """Softmax cross-entropy of `z_k + τ log π_k`, π the class shares of the training set; `[B]`, in nats.

    Menon et al. 2021 (Long-tail learning via logit adjustment, equation 10). The network's own logits `z` are used for
    predictions: with τ = 1 they suit a test set in which all classes are equally frequent.

    Args:
        logits: `[B, K]`.
        targets: `[B, K]`, rows that sum to one.
        class_weights: `[K]` or None; an example counts `w[y]` times.
        class_counts: `[K]`, all > 0.
        tau: τ >= 0; 0 is the cross-entropy.
        label_smoothing: ε in [0, 1).
    """
    logits, targets = dense(logits, targets)
    counts = jnp.asarray(class_counts, jnp.float32)
    log_probabilities = jax.nn.log_softmax(logits + tau * jnp.log(counts / jnp.sum(counts)), axis=-1)
    loss = -jnp.sum(smooth(targets, label_smoothing) * log_probabilities, axis=-1)
    return loss * example_weight(targets, class_weights)


def ldam(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    class_counts: jax.Array,
    max_margin: float | jax.Array = 0.5,
    scale: float | jax.Array = 30.0,
) -> jax.Array:
    """Label-distribution-aware margin loss, the cross-entropy of `s (z_k - Δ_y [k = y])`; `[B]`, in nats.

    Cao et al. 2019 (Learning imbalanced datasets with LDAM, section 3.2) with the constants of their code:
    `Δ_c = C / n_c^(1/4)`, C such that the rarest class has the largest margin. Linear in the target, so a mixed target
    is the expectation over its labels.

    Their logits are cosines (last layer and features of unit length), which the scale s = 30 spreads. With an ordinary
    last layer s is a temperature: the network's own softmax is then less certain than the loss, and probabilities need
    the temperature that is fitted on `calibration`, or s = 1.

    Args:
        logits: `[B, K]`.
        targets: `[B, K]`, rows that sum to one.
        class_weights: `[K]` or None; an example counts `w[y]` times.
        class_counts: `[K]`, all > 0.
        max_margin: the largest Δ, >= 0; 0 is the cross-entropy of `s z`.
        scale: s > 0.
    """
    logits, targets = dense(logits, targets)
    counts = jnp.asarray(class_counts, jnp.float32)
    margins = max_margin * (jnp.min(counts) / counts) ** 0.25
    # One row of logits for each class that the label may be, [B, K, K].
    shifted = scale * (logits[:, None, :] - jnp.diag(margins))
    log_probabilities = jnp.diagonal(jax.nn.log_softmax(shifted, axis=-1), axis1=-2, axis2=-1)
    return -jnp.sum(targets * log_probabilities, axis=-1) * example_weight(targets, class_weights)


def asymmetric_categorical(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    gamma_positive: float | jax.Array = 0.0,
    gamma_negative: float | jax.Array = 4.0,
    label_smoothing: float | jax.Array = 0.1,
) -> jax.Array:
    """`-Σ_k t'_k log p_k (t_k (1 - p_k)^γ₊ + (1 - t_k) p_k^γ₋)` with `t' = t (1 - ε) + ε / K`; `[B]`, in nats.

    The form for one class per example of Ridnik et al. 2021 (ASLSingleLabel of their code, with its defaults). Only
    smoothing gives the other classes a share in the loss: with ε = 0 it is the focal loss with γ₊.

    Args:
        logits: `[B, K]`, K >= 2.
        targets: `[B, K]`, rows that sum to one.
        class_weights: `[K]` or None; an example counts `w[y]` times.
        gamma_positive: γ₊ >= 0.
        gamma_negative: γ₋ >= 0.
        label_smoothing: ε in [0, 1).

    Raises:
        UserError: with one class.
    """
    logits, targets = dense(logits, targets)
    at_least_two_classes(logits, "asymmetric_categorical")
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    positive = jnp.exp(gamma_positive * log_complement(log_probabilities))
    negative = jnp.exp(gamma_negative * log_probabilities)
    modulation = targets * positive + (1.0 - targets) * negative
    loss = -jnp.sum(smooth(targets, label_smoothing) * modulation * log_probabilities, axis=-1)
    return loss * example_weight(targets, class_weights)
