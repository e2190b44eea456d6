"""Is the calibration term that of the whole batch, wherever its rows lie and however it is trained?"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from research.losses import registry
from research.losses.calibrated import dca
from research.training import sharding, steps
from tests.research.training.test_steps import batch as images
from tests.research.training.test_steps import make, step


def plain_dca(logits, targets, weights):
    """By loops in float64."""
    right = sure = 0.0
    for z, t, w in zip(logits, targets, weights, strict=True):
        if w:
            p = softmax(np.asarray(z, np.float64))
            right += w * t[np.argmax(p)]
            sure += w * p.max()
    return abs(right - sure) / sum(weights)


def batch(rows, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (rows, num_classes)).astype(np.float32)
    return logits, np.eye(num_classes, dtype=np.float32)[rng.integers(0, num_classes, rows)]


def test_it_is_the_difference_of_the_means():
    logits, targets = batch(9)
    for weights in (np.ones(9), np.array([1, 0, 2, 0.5, 1, 1, 0, 0, 3.0])):
        np.testing.assert_allclose(dca(logits, targets, weights), plain_dca(logits, targets, weights), rtol=1e-5)
        mixed = 0.6 * targets + 0.4 * targets[::-1]
        np.testing.assert_allclose(dca(logits, mixed, weights), plain_dca(logits, mixed, weights), rtol=1e-5)


def test_a_perfectly_calibrated_batch_costs_nothing():
    """Four examples of confidence 3/4, three of them right; and one more that is wrong costs the difference."""
    logits = np.log(np.array([[0.75, 0.125, 0.125]] * 5, np.float32))
    targets = np.eye(3, dtype=np.float32)[[0, 0, 0, 2, 1]]
    np.testing.assert_allclose(dca(logits, targets, np.array([1.0, 1, 1, 1, 0])), 0.0, atol=1e-7)
    np.testing.assert_allclose(dca(logits, targets, np.ones(5)), 0.75 - 3 / 5, rtol=1e-6)


def test_certain_batches():
    """Always right and nearly certain: the sum of the doubts, with its digits. Always wrong: 1. Padding alone: 0."""
    logits = np.array([[80.0, 0, -80], [30, 0, 0]], np.float32)
    right, wrong = np.eye(3, dtype=np.float32)[[0, 0]], np.eye(3, dtype=np.float32)[[1, 2]]
    np.testing.assert_allclose(dca(logits, right, np.ones(2)), (np.exp(-80.0) + 2 * np.exp(-30.0)) / 2, rtol=1e-5)
    np.testing.assert_allclose(dca(logits, wrong, np.ones(2)), 1.0, rtol=1e-6)
    value, gradient = jax.value_and_grad(dca)(jnp.full((2, 3), jnp.nan), right, jnp.zeros(2))
    assert value == 0 and not np.asarray(gradient).any()


def test_the_gradient_lowers_confidence_that_exceeds_accuracy_and_raises_the_other():
    logits = np.array([[2.0, 0, -1], [1.5, 0, 0]], np.float32)
    sure_and_wrong = jax.grad(dca)(jnp.asarray(logits), np.eye(3, dtype=np.float32)[[1, 2]], jnp.ones(2))
    unsure_and_right = jax.grad(dca)(jnp.asarray(logits), np.eye(3, dtype=np.float32)[[0, 0]], jnp.ones(2))
    assert (sure_and_wrong[:, 0] > 0).all() and (unsure_and_right[:, 0] < 0).all()
    np.testing.assert_allclose(sure_and_wrong, -unsure_and_right, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "rows"),
    [("softmax_cross_entropy", 10), ("kl_divergence", 11), ("focal_categorical", 11), ("categorical_hinge", 11)],
)
def test_a_batch_on_two_devices_has_the_value_and_gradient_of_the_whole(name, rows):
    """The first half is all right and the second all wrong, so the mean of both devices' own terms differs."""
    logits, _ = batch(rows)
    predicted = logits.argmax(1)
    label = np.where(np.arange(rows) < rows // 2, predicted, (predicted + 1) % 3)
    targets, weights = np.eye(3, dtype=np.float32)[label], np.ones(rows, np.float32)
    weights[-1] = 0.0
    mesh = sharding.make_mesh(jax.devices()[:2])
    assert mesh.size == 2
    loss = registry.get(name, dca_weight=1.0)
    full = sharding.rows_for(mesh, rows)
    padded = {
        key: np.concatenate([value, np.zeros((full - rows, *value.shape[1:]), np.float32)])
        for key, value in (("logits", logits), ("targets", targets), ("weights", weights))
    }
    placed = sharding.put_batch(mesh, padded)
    assert len(placed["logits"].addressable_shards) == 2 and placed["logits"].addressable_shards[0].data.shape[0] < rows

    @jax.jit
    def differentiate(logits, targets, weights):
        cut = [
            jax.lax.with_sharding_constraint(x[:rows], sharding.over_batch(mesh)) for x in (logits, targets, weights)
        ]
        return jax.value_and_grad(loss.mean)(*cut)

    value, gradient = differentiate(**placed)
    expected, expected_gradient = jax.jit(jax.value_and_grad(loss.mean))(logits, targets, weights)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-8)
    term = value - registry.get(name).mean(logits, targets, weights)
    np.testing.assert_allclose(term, plain_dca(logits, targets, weights), rtol=1e-4)
    halves = [plain_dca(logits[s], targets[s], weights[s]) for s in (slice(rows // 2), slice(rows // 2, None))]
    assert abs(np.mean(halves) - plain_dca(logits, targets, weights)) > 0.1


def test_members_that_differ_in_the_weight_share_one_program():
    logits, targets = batch(7)

    def mean(dca_weight):
        return registry.get("focal_categorical", dca_weight=dca_weight).mean(logits, targets)

    together = jax.jit(jax.vmap(mean))(jnp.array([0.0, 0.5, 1.0]))
    plain = registry.get("focal_categorical").mean(logits, targets)
    term = plain_dca(logits, targets, np.ones(7))
    np.testing.assert_allclose(together, [plain, plain + 0.5 * term, plain + term], rtol=1e-6)


def test_class_weights_of_a_training_step_act_on_the_first_term_alone():
    logits, targets = batch(8)
    class_weights = jnp.array([0.5, 1.0, 3.0])
    valid = jnp.array([True] * 8)
    parts = steps.StepParts(
        model=None, loss=registry.get("softmax_cross_entropy"), class_weights=class_weights, transformation=None,
        trainable=(), augment=None, normalize=None, batch_size=8, num_classes=3, multi_label=False,
    )  # fmt: skip
    first = steps.batch_loss(parts, logits, targets, valid)
    loss = registry.get("softmax_cross_entropy", dca_weight=2.0)
    both = steps.batch_loss(dataclasses.replace(parts, loss=loss), logits, targets, valid)
    np.testing.assert_allclose(both, first + 2.0 * plain_dca(logits, targets, np.ones(8)), rtol=1e-5)


def test_accumulated_micro_batches_train_the_term_of_the_whole_batch():
    results = []
    for accumulate in (1, 3):
        parts, start = make(batch_norm=False, accumulate=accumulate)
        loss = registry.get("focal_categorical", dca_weight=1.0)
        parts = dataclasses.replace(parts, loss=loss, class_weights=jnp.array([0.5, 1.0, 3.0]))
        results.append(step(parts)(start, images(), 0.1))
    whole, split = results
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(split.sums[name], whole.sums[name], rtol=1e-5)
