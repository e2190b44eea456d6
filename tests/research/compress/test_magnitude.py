"""Magnitude pruning against NumPy, and through every optimiser with the project's own step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from input_pipeline.cli import UserError
from research.compress import magnitude
from research.training import optimizers, state
from tests.research.training.test_steps import batch, make


def parameters(seed=0):
    """Kernels of a convolution and two dense layers, with equal entries and zeros among them, and what is no kernel."""
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(np.round(random.normal(size=shape), 1), jnp.float32)  # noqa: E731
    return {
        "backbone/conv/kernel": draw(3, 3, 2, 5),
        "backbone/conv/bias": draw(5),
        "backbone/norm/scale": draw(5),
        "head/dense_1/kernel": draw(7, 3) * 10,
        "head/logits/kernel": draw(3, 4),
        "head/logits/bias": draw(4),
    }


@pytest.mark.parametrize("scope", magnitude.SCOPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.03, 0.77])
def test_masks_leave_out_exactly_the_smallest(scope, sparsity):
    params = parameters()
    masks = magnitude.magnitude_masks(params, sparsity, scope)
    assert sorted(masks) == ["backbone/conv/kernel", "head/dense_1/kernel", "head/logits/kernel"]
    groups = [sorted(masks)] if scope == "global" else [[path] for path in masks]
    for group in groups:
        sizes = [(float(abs(v)), p, i) for p in group for i, v in enumerate(np.asarray(params[p]).ravel())]
        out = {(p, i) for _, p, i in sorted(sizes)[: int(np.round(np.float32(sparsity) * len(sizes)))]}
        found = {(p, i) for p in group for i in np.flatnonzero(~np.asarray(masks[p]).ravel())}
        assert found == out


def test_what_is_out_stays_out_while_the_sparsity_rises():
    params, kept = parameters(), None
    for sparsity in (0.1, 0.4, 0.4, 0.8):
        new = magnitude.magnitude_masks(params, sparsity, "global", kept)
        if kept is not None:
            assert not any(bool((new[path] & ~kept[path]).any()) for path in new)
        kept = new
        # What was masked comes back large, and must not come in again.
        params = {path: jnp.where(kept[path], value, 99.0) if path in kept else value for path, value in params.items()}


def test_the_cubic_schedule_is_the_papers():
    schedule = magnitude.Cubic(final=0.9, initial=0.2, begin=10, every=5, updates=4)
    for step in range(50):
        if step < 10:
            expected = 0.0
        else:
            t = min(step - (step - 10) % 5, 30)
            expected = 0.9 + (0.2 - 0.9) * (1 - (t - 10) / 20) ** 3
        assert float(schedule.sparsity(step)) == pytest.approx(expected, abs=1e-6)
        assert bool(schedule.due(step)) == (step in (10, 15, 20, 25, 30))
    assert schedule.end == 30


@pytest.mark.parametrize("values", [{"final": 1.0}, {"final": -0.1}, {"final": 0.2, "initial": 0.3}, {"final": np.nan}])
def test_impossible_sparsities_are_refused(values):
    with pytest.raises(UserError, match="sparsity"):
        magnitude.Cubic(**values)


def test_unknown_scope_is_refused():
    with pytest.raises(UserError, match="global, layer"):
        magnitude.magnitude_masks(parameters(), 0.5, "rows")


OPTIMIZERS = {
    "sgd": {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "adamw": {"name": "adamw", "weight_decay": 0.1, "clip_norm": 0.5},
    "lion": {"name": "lion", "weight_decay": 0.1},
}


def walk(transformation, rate_of, count=12, after=None):
    """Takes steps θ ← θ − rate·u as the project does, with gradients that do not care for masks."""
    params = parameters()
    opt_state = transformation.init(params)

    @jax.jit
    def step(params, opt_state, gradients, rate):
        updates, opt_state = transformation.update(gradients, opt_state, params)
        return {path: params[path] - rate * update for path, update in updates.items()}, opt_state

    for number in range(count):
        random = np.random.default_rng(100 + number)
        gradients = {path: jnp.asarray(random.normal(size=v.shape), jnp.float32) for path, v in params.items()}
        params, opt_state = step(params, opt_state, gradients, rate_of(number))
        if after:
            params = after(number, params, opt_state)
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_pruned_stays_exactly_zero(name):
    """Momentum, Adam's moments and weight decay go on inside of the chain, the rate changes outside of it."""
    settings = common.default().optimizer
    settings.update(OPTIMIZERS[name])
    schedule = magnitude.Cubic(0.8, initial=0.3, begin=2, every=3, updates=2)
    chain = optax.chain(optimizers.direction(settings), magnitude.magnitude_pruning(schedule))
    shares = []

    def after(number, params, opt_state):
        kept = magnitude.masks_of(opt_state)
        if number not in (2, 5, 8):  # no new masks: what was zero must be so without help
            assert all(bool((params[path][~mask] == 0).all()) for path, mask in kept.items())
        params = magnitude.project(params, kept)
        shares.append(magnitude.sparsity_of(params))
        return params

    walk(chain, lambda number: 0.1 / (1 + number), after=after)
    size = sum(parameters()[path].size for path in magnitude.prunable(parameters()))
    expected = [0.0] * 2 + [0.3] * 3 + [0.8 - 0.5 / 8] * 3 + [0.8] * 4
    # Rounded zeros of the first parameters go under weight decay alone, if ever.
    assert np.abs(np.array(shares)[2:] - expected[2:]).max() <= 1 / size


def test_without_sparsity_nothing_changes():
    settings = common.default().optimizer
    settings.update(OPTIMIZERS["adamw"])
    plain = optimizers.direction(settings)
    chained = optax.chain(plain, magnitude.magnitude_pruning(magnitude.Cubic(0.0)))
    for a, b in zip(*(walk(t, lambda _: 0.01).values() for t in (plain, chained)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_steps_keep_parameters_and_average_zero():
    """The project's own step with averaging; a step that is not finite takes its masks back."""
    parts, first = make(ema=0.9)
    pruning = magnitude.magnitude_pruning(magnitude.Cubic(0.6, every=1, updates=4), "layer")
    parts = dataclasses.replace(
        parts,
        transformation=optax.chain(parts.transformation, pruning),
        normalize=lambda image: jnp.where(jnp.any(image > 0), image / 255.0, jnp.nan),
    )
    nested = {"params": state.nest(first.params), "batch_stats": state.nest(first.batch_stats)}
    current = state.create(nested, 0, parts.transformation, parts.trainable, True, parts.num_classes)
    step = jax.jit(lambda s, b: magnitude.pruned_step(parts, s, b, jnp.float32(0.01)))
    for number in range(6):
        before = current
        data = batch(seed=number)
        poisoned = number == 3  # the step at which the fourth masks are due; the next one makes up for it
        current = step(current, data | {"image": jnp.zeros_like(data["image"])} if poisoned else data)
        kept = magnitude.masks_of(current.opt_state)
        for params in (current.params, current.ema["params"]):
            assert all(bool((params[path][~mask] == 0).all()) for path, mask in kept.items())
        if poisoned:
            jax.tree.map(np.testing.assert_array_equal, current.opt_state, before.opt_state)
            jax.tree.map(np.testing.assert_array_equal, current.params, before.params)
    assert int(current.skipped) == 1
    for path, mask in kept.items():
        assert int((~mask).sum()) == round(0.6 * mask.size), path
        assert bool((current.params[path][mask] != 0).all())
