"""Are the losses of masks what their formulas say, values and gradients, in float64 by NumPy?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.losses import registry

NAMES = ("bce_dice", "focal_pixels", "tversky", "focal_tversky")
B, H, W, K = 3, 5, 7, 2


def reference(name: str, logits, targets, weights=None, **options) -> np.ndarray:
    """The formulas written out in loops over examples and classes; float64 `[B]`."""
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    result = np.zeros(len(p))
    for b in range(len(p)):
        for k in range(p.shape[-1]):
            q, y = p[b, ..., k].ravel(), np.asarray(targets[b, ..., k], np.float64).ravel()
            tp, fp, fn = (q * y).sum(), (q * (1 - y)).sum(), ((1 - q) * y).sum()
            s = options.get("smooth", 1.0)
            if name == "bce_dice":
                entropy = -(y * np.log(q) + (1 - y) * np.log(1 - q)).mean()
                term = entropy + options.get("dice_weight", 1.0) * (1 - (2 * tp + s) / (2 * tp + fp + fn + s))
            elif name == "focal_pixels":
                a, g = options.get("alpha", 0.25), options.get("gamma", 2.0)
                term = -(a * y * (1 - q) ** g * np.log(q) + (1 - a) * (1 - y) * q**g * np.log(1 - q)).mean()
            else:
                a = options.get("missed_weight", 0.7)
                term = 1 - (tp + s) / (tp + a * fn + (1 - a) * fp + s)
                term = term ** options.get("gamma", 0.75) if name == "focal_tversky" else term
            result[b] += term * (1.0 if weights is None else weights[k]) / p.shape[-1]
    return result


@pytest.fixture(scope="module")
def maps():
    rng = np.random.default_rng(3)
    targets = (rng.random((B, H, W, K)) < 0.4).astype(np.float32)
    targets[1, ..., 0] = 0.0  # an image without a class
    return 3 * rng.normal(size=(B, H, W, K)).astype(np.float32), targets


OPTIONS = {
    "bce_dice": {"dice_weight": 0.3, "smooth": 2.5},
    "focal_pixels": {"alpha": 0.6, "gamma": 1.3},
    "tversky": {"missed_weight": 0.2, "smooth": 0.5},
    "focal_tversky": {"missed_weight": 0.4, "gamma": 1.7},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("given", (False, True))
def test_values(maps, name, given):
    options = OPTIONS[name] if given else {}
    loss = registry.get(name, **options)
    assert loss.per_example
    np.testing.assert_allclose(loss.fn(*maps), reference(name, *maps, **options), rtol=1e-5)
    weights = np.array([0.5, 3.0], np.float32)
    np.testing.assert_allclose(loss.fn(*maps, weights), reference(name, *maps, weights, **options), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_reference(maps, name):
    logits, targets = maps
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(registry.get(name).fn(z, targets))))(logits)
    rng, step = np.random.default_rng(0), 1e-5
    for _ in range(6):
        direction = rng.normal(size=logits.shape)
        up, down = (reference(name, logits + sign * step * direction, targets).sum() for sign in (1, -1))
        assert np.isclose(np.sum(gradient * direction), (up - down) / (2 * step), rtol=1e-4, atol=1e-6)


def test_limits(maps):
    """Dice weight 0 is the cross-entropy; γ = 0 the weighted one; α = 1/2 Dice; γ = 1 the Tversky loss."""
    logits, targets = maps
    entropy = registry.get("bce_dice", dice_weight=0.0).fn(logits, targets)
    np.testing.assert_allclose(
        2 * registry.get("focal_pixels", gamma=0.0, alpha=0.5).fn(logits, targets), entropy, rtol=1e-6
    )
    dice = registry.get("bce_dice", smooth=2.0).fn(logits, targets) - entropy
    half = registry.get("tversky", missed_weight=0.5, smooth=1.0).fn(logits, targets)
    np.testing.assert_allclose(half, dice, rtol=1e-5)
    one = registry.get("focal_tversky", gamma=1.0).fn(logits, targets)
    np.testing.assert_allclose(one, registry.get("tversky").fn(logits, targets), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_and_perfect_masks_have_finite_gradients(maps, name):
    _, targets = maps
    for scale in (20.0, 200.0, 1e4):
        for sign in (1.0, -1.0):
            logits = jnp.asarray(sign * scale * (2 * targets - 1))
            value, gradient = jax.value_and_grad(lambda z: jnp.sum(registry.get(name).fn(z, targets)))(logits)
            assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_leaves_padding_out(maps, name):
    logits, targets = maps
    loss, broken = registry.get(name), logits.copy()
    broken[1] = np.nan
    found = loss.mean(jnp.asarray(broken), targets, jnp.array([1.0, 0.0, 3.0]))
    own = loss.fn(logits, targets)
    np.testing.assert_allclose(found, (own[0] + 3 * own[2]) / 4, rtol=1e-6)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="'bce_dice' is for models that segment, but the dataset has one class"):
        registry.get("bce_dice").require(False)
    with pytest.raises(UserError, match="'softmax_cross_entropy' is for one class per example, but the model segments"):
        registry.get("softmax_cross_entropy").require(registry.PIXELS)
    registry.get("tversky").require(registry.PIXELS)
    with pytest.raises(UserError, match="'missed_weight' of the loss 'tversky' must be at least 0 and at most 1"):
        registry.get("tversky", missed_weight=1.2)
    with pytest.raises(UserError, match="'smooth' of the loss 'bce_dice' must be above 0"):
        registry.get("bce_dice", smooth=0.0)
    with pytest.raises(UserError, match="'alpha' of the loss 'focal_pixels'"):
        registry.get("focal_pixels", alpha=1.5)
    with pytest.raises(UserError, match="'tversky' has no option 'gamma'"):
        registry.get("tversky", gamma=2.0)
    with pytest.raises(ValueError, match="one shape"):
        registry.get("tversky").fn(jnp.zeros((2, 4, 4, 1)), jnp.zeros((2, 4, 4)))
