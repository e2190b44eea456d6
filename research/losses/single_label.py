"""Which losses train a classifier with exactly one class per example (softmax over the classes)?

Every function takes logits `[B, K]` and dense targets `[B, K]` (one-hot, or soft after mixup), computes in
float32 and returns one loss per example, `[B]`. Everything is built from log-probabilities, so that values
and gradients stay finite at any finite logit. Options may be traced floats: a cohort trains one loss with a
different option per member.
"""

import jax
import jax.numpy as jnp

from input_pipeline.cli import UserError


def dense(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both as float32; a `[B]` target would broadcast silently, so unequal shapes raise `ValueError`."""
    if logits.shape != targets.shape or logits.ndim < 2:
        raise ValueError(f"a loss takes logits and targets of one shape [B, K], not {logits.shape} and {targets.shape}")
    return jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32)


def mean_over_examples(losses: jax.Array, weights: jax.Array) -> jax.Array:
    """`Σ w l / Σ w` of losses and weights `[B]`; 0 where there are no weights, as in a batch of padding."""
    total = jnp.sum(weights)
    return jnp.sum(weights * losses) / jnp.where(total > 0, total, 1.0)


def without_padding(logits: jax.Array, weights: jax.Array) -> jax.Array:
    """The logits `[B, ...]`, zeros where the weight is 0: a NaN there times 0 would be NaN, in the gradient as well."""
    return jnp.where(jnp.expand_dims(weights, tuple(range(1, logits.ndim))) > 0, logits, 0.0)


def smooth(targets: jax.Array, label_smoothing: float | jax.Array) -> jax.Array:
    """`t (1 - ε) + ε / K` (Szegedy et al. 2016, section 7): a distribution stays a distribution."""
    return targets * (1.0 - label_smoothing) + label_smoothing / targets.shape[-1]


def example_weight(targets: jax.Array, class_weights: jax.Array | None) -> jax.Array | float:
    """`w[y]` for a one-hot target, its mean under a soft one; taken before smoothing, which says nothing
    about `y`.
    """
    return 1.0 if class_weights is None else jnp.sum(targets * class_weights, axis=-1)


def log_complement(log_probabilities: jax.Array) -> jax.Array:
    """`log(1 - p)` `[B, K]` from `log p`, exact also where p rounds to one.

    Only the largest p of a row can exceed 1/2, so only there `1 - p` must be summed from the other classes.
    """
    num_classes = log_probabilities.shape[-1]
    largest = jnp.argmax(log_probabilities, axis=-1, keepdims=True) == jnp.arange(num_classes)
    others = jax.nn.logsumexp(log_probabilities, axis=-1, keepdims=True, where=~largest)
    # The inner `where` keeps the branch that is not taken finite, as its gradient is multiplied by zero, not
    # left out.
    small = jnp.where(largest, 0.0, jnp.exp(log_probabilities))
    return jnp.where(largest, others, jnp.log1p(-small))


def at_least_two_classes(logits: jax.Array, name: str) -> None:
    """Raises `UserError` with one class, where every p is one and nothing can be learnt."""
    if logits.shape[-1] < 2:
        raise UserError(f"the loss {name!r} needs at least two classes; use 'focal_binary' for one.")


def softmax_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    label_smoothing: float | jax.Array = 0.0,
    entropy_weight: float | jax.Array = 0.0,
) -> jax.Array:
    """`-Σ_k t'_k log p_k - β H(p)` with `t' = t (1 - ε) + ε / K` and `H(p) = -Σ_k p_k log p_k`; `[B]`, in nats.

    With β > 0 certain answers cost more (the confidence penalty of Pereyra et al. 2017, section 3.1). For every
    β > 0 the loss has its minimum at a p of the true class below one, and a large β makes that p small.

    Args:
        logits: `[B, K]`.
        targets: `[B, K]`, rows that sum to one.
        class_weights: `[K]` or None; an example counts `w[y]` times.
        label_smoothing: ε in [0, 1).
        entropy_weight: β >= 0.
    """
    logits, targets = dense(logits, targets)
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    factors = entropy_weight * jnp.exp(log_probabilities) - smooth(targets, label_smoothing)
    loss = jnp.sum(factors * log_probabilities, axis=-1)
    return loss * example_weight(targets, class_weights)


def focal_categorical(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    alpha: float | jax.Array = 1.0,
    gamma: float | jax.Array = 2.0,
    label_smoothing: float | jax.Array = 0.0,
) -> jax.Array:
    """`-α Σ_k t'_k (1 - p_k)^γ log p_k` (Lin et al. 2017, equation 5, over a softmax); `[B]`, in nats.

    γ = 0 is the cross-entropy times α. Smoothed targets are `t (1 - ε) + ε / K`.

    Args:
        logits: `[B, K]`, K >= 2.
        targets: `[B, K]`, rows that sum to one.
        class_weights: `[K]` or None; an example counts `w[y]` times.
        alpha: factor of the whole loss, > 0.
        gamma: focusing exponent, >= 0.
        label_smoothing: ε in [0, 1).

    Raises:
        UserError: with one class, where every p is one and nothing can be learnt.
    """
    logits, targets = dense(logits, targets)
    at_least_two_classes(logits, "focal_categorical")
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    # (1 - p)^γ as an exponential: its gradient in p is finite for every γ, that of a power is not for γ < 1.
    modulation = jnp.exp(gamma * log_complement(log_probabilities))
    loss = -alpha * jnp.sum(smooth(targets, label_smoothing) * modulation * log_probabilities, axis=-1)
    return loss * example_weight(targets, class_weights)


def kl_divergence(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    label_smoothing: float | jax.Array = 0.0,
) -> jax.Array:
    """`Σ_k t'_k log(t'_k / p_k)` with `t' = t (1 - ε) + ε / K` and `0 log 0 = 0`; `[B]`, in nats, >= 0.

    Kullback & Leibler 1951. It is the cross-entropy less the entropy of t', which does not depend on the network:
    zero for a one-hot target, a constant for a smoothed one. Its gradient is that of the cross-entropy.

    Args:
        logits: `[B, K]`.
        targets: `[B, K]`, rows that sum to one.
        class_weights: `[K]` or None; an example counts `w[y]` times.
        label_smoothing: ε in [0, 1).
    """
    logits, targets = dense(logits, targets)
    smoothed = smooth(targets, label_smoothing)
    log_targets = jnp.log(jnp.where(smoothed > 0, smoothed, 1.0))
    loss = jnp.sum(smoothed * (log_targets - jax.nn.log_softmax(logits, axis=-1)), axis=-1)
    return loss * example_weight(targets, class_weights)


def categorical_hinge(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
) -> jax.Array:
    """`Σ_k t_k max(0, 1 + max_{j≠k} p_j - p_k)`; `[B]`, in 0..2.

    The multi-class hinge of Crammer & Singer 2001 on probabilities instead of scores, as in Keras and in Rajaraman
    et al. (2021). Linear in the target, so a mixed target is the expectation over its labels. On probabilities the
    bracket is never negative: the loss has no flat part for right answers, and its gradient fades for answers that
    are certain and wrong.

    Args:
        logits: `[B, K]`, K >= 2.
        targets: `[B, K]`, rows that sum to one.
        class_weights: `[K]` or None; an example counts `w[y]` times.

    Raises:
        UserError: with one class.
    """
    logits, targets = dense(logits, targets)
    at_least_two_classes(logits, "categorical_hinge")
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    probabilities = jnp.exp(log_probabilities)
    largest = jnp.argmax(logits, axis=-1, keepdims=True) == jnp.arange(logits.shape[-1])
    second = jnp.max(probabilities, axis=-1, keepdims=True, where=~largest, initial=0.0)
    first = jnp.sum(probabilities, axis=-1, keepdims=True, where=largest)
    # 1 - p is summed from the others: the difference would lose the digits of small losses.
    margins = jnp.exp(log_complement(log_probabilities)) + jnp.where(largest, second, first)
    return jnp.sum(targets * margins, axis=-1) * example_weight(targets, class_weights)
