"""How is a classifier trained to be as certain as it is right?

Any loss per example with one class per example can get the difference between confidence and accuracy as a second
term, by its option `dca_weight`. The "calibrated" losses of Rajaraman et al. 2021 (PLOS ONE 16(12), e0261307) are
these, with a weight of 1:

    calibrated CCE                softmax_cross_entropy
    calibrated KL                 kl_divergence
    calibrated focal              focal_categorical
    calibrated hinge              categorical_hinge
    calibrated negative entropy   softmax_cross_entropy with entropy_weight 0.001

The term is an absolute value of a mean, so it exists over a whole batch only: sums over the global batch under `jit`,
on however many devices its rows lie.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.losses.single_label import dense, mean_over_examples, without_padding


def dca(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Difference between confidence and accuracy, `|mean_i t_i[ŷ_i] - mean_i max_j p_ij|`; a scalar in [0, 1].

    Liang et al. 2020 (Improved trainable calibration method, BMVC), with ŷ the most probable class, the
    first of several. For one-hot targets `t[ŷ]` is 1 for a right answer and 0 for a wrong one; for mixed targets it is
    the expectation. The accuracy is a constant: the gradient goes through the confidence alone, and at a difference
    of exactly 0 there is none.

    Args:
        logits: `[B, K]`.
        targets: `[B, K]`, rows that sum to one.
        weights: `[B]`, of the examples in both means; 0 leaves an example (padding) out, whatever its logits. A batch
            of padding gives 0.
    """
    logits, targets = dense(logits, targets)
    weights = jnp.asarray(weights, jnp.float32)
    logits = without_padding(logits, weights)
    probabilities = jax.nn.softmax(logits, axis=-1)
    predicted = jnp.argmax(logits, axis=-1, keepdims=True) == jnp.arange(logits.shape[-1])
    accuracy = jax.lax.stop_gradient(jnp.sum(targets, axis=-1, where=predicted))
    confidence = jnp.sum(probabilities, axis=-1, where=predicted)
    doubt = jnp.sum(probabilities, axis=-1, where=~predicted)  # 1 - confidence, with all its digits
    return jnp.abs(mean_over_examples(accuracy * doubt - (1.0 - accuracy) * confidence, weights))


def with_dca(
    base: Callable[..., jax.Array],
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    dca_weight: float | jax.Array,
) -> jax.Array:
    """Mean of a loss per example plus `dca_weight` times `dca`; a scalar.

    Class weights act on the loss per example. The calibration term has none: accuracy and confidence are compared as
    often as the classes occur.

    Args:
        base: `base(logits, targets, class_weights) -> [B]`.
        logits: `[B, K]`.
        targets: `[B, K]`, rows that sum to one.
        weights: `[B]`, 0 for padding; a batch of padding gives 0.
        class_weights: `[K]` or None.
        dca_weight: >= 0; 0 leaves the mean of `base`.
    """
    weights = jnp.asarray(weights, jnp.float32)
    mean = mean_over_examples(base(without_padding(logits, weights), targets, class_weights), weights)
    return mean + dca_weight * dca(logits, targets, weights)
