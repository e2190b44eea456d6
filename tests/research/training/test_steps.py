"""One training step: accumulation, device counts, averaging, frozen parameters and poisoned batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from input_pipeline import augment, normalize
from research.losses import registry as losses
from research.models import registry as models
from research.models.initialize import initialize
from research.training import freezing, optimizers, sharding, state, steps

B, K, SIZE = 12, 3, 16


def make(
    batch_norm=True, loss="softmax_cross_entropy", accumulate=1, ema=0.0, freeze=(), batch_size=B, mesh=None,
    optimizer=(), **aug,
):  # fmt: skip
    """(parts, fresh state) of a tiny network; without BatchNorm it is linear on pooled pixels."""
    multi_label = loss != "softmax_cross_entropy"
    model = models.create("simple_cnn", num_classes=K, widths=(4, 6)) if batch_norm else Plain()
    variables = initialize(model, jax.random.key(1), SIZE, 3)
    layers = freezing.describe(model, SIZE, 3) if batch_norm else freezing.unordered(variables["params"])
    trainable = freezing.trainable(layers, freeze)
    if batch_norm:
        model = model.clone(frozen=freezing.resting_norms(layers, trainable))
    settings = common.default().optimizer
    settings.update({"name": "adam", "clip_norm": 1.0} | dict(optimizer))
    transformation = optimizers.direction(settings)
    parts = steps.StepParts(
        model=model,
        loss=losses.get(loss),
        class_weights=None,
        transformation=transformation,
        trainable=trainable,
        augment=augment.build(aug),
        normalize=normalize.make("fixed"),
        batch_size=batch_size,
        num_classes=K,
        multi_label=multi_label,
        accumulate=accumulate,
        ema=ema,
        factors=optimizers.factors(layers, settings),
        penalties=optimizers.penalties(layers, settings),
        batch_sharding=sharding.over_batch(mesh) if mesh is not None else None,
    )
    return parts, state.create(variables, 0, transformation, trainable, ema > 0, K)


class Plain:
    """A network without BatchNorm behind the interface of a Flax module."""

    def init(self, rngs, inputs, train):
        channels = inputs["image"].shape[-1]
        return {
            "params": {"head": {"kernel": jax.random.normal(rngs["params"], (4 * channels, K)), "bias": jnp.zeros(K)}}
        }

    def apply(self, variables, inputs, train, rngs=None, mutable=()):
        x = inputs["image"]
        x = x.reshape(x.shape[0], 2, SIZE // 2, 2, SIZE // 2, -1).mean((2, 4)).reshape(x.shape[0], -1)
        head = variables["params"]["head"]
        output = dataclasses.make_dataclass("Output", ["logits"])(jnp.tanh(x) @ head["kernel"] + head["bias"])
        return (output, {}) if train else output


def batch(rows=B, multi_label=False, seed=0):
    rng = np.random.default_rng(seed)
    label = (
        rng.integers(0, 2, (rows, K)).astype(np.float32) if multi_label else rng.integers(0, K, rows).astype(np.int32)
    )
    image = rng.integers(0, 256, (rows, SIZE, SIZE, 3), dtype=np.uint8)
    return {"image": jnp.asarray(image), "label": jnp.asarray(label), "valid": jnp.ones(rows, bool)}


def step(parts):
    return jax.jit(functools.partial(steps.train_step, parts))


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "sigmoid_cross_entropy", "soft_f1"])
@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulation_is_exact_without_batch_norm(loss, accumulate):
    data = batch(multi_label=loss != "softmax_cross_entropy")
    results = []
    for k in (1, accumulate):
        parts, start = make(batch_norm=False, loss=loss, accumulate=k)
        results.append(step(parts)(start, data, 0.1))
    whole, split = results
    np.testing.assert_allclose(split.sums["loss"], whole.sums["loss"], rtol=1e-6)
    np.testing.assert_allclose(split.sums["gradient_norm"], whole.sums["gradient_norm"], rtol=1e-5)
    for path in whole.params:
        np.testing.assert_allclose(split.params[path], whole.params[path], atol=1e-6)


def test_accumulation_with_batch_norm_equals_its_parts_by_hand():
    """Each micro-batch is normalised alone, and gradients of the sum of its losses add up."""
    parts, start = make(accumulate=2)
    parts = dataclasses.replace(parts, transformation=optax.identity())
    start = start.replace(opt_state=optax.EmptyState())
    data = batch()
    after = step(parts)(start, data, 1.0)

    def objective(params, stats, image, label):
        output, updates = parts.model.apply(
            {"params": state.nest(params), "batch_stats": state.nest(stats)},
            {"image": parts.normalize(image)},
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        terms = optax.softmax_cross_entropy_with_integer_labels(output.logits, label)
        return terms.sum() / B, state.flatten(updates["batch_stats"])

    stats, total = start.batch_stats, jax.tree.map(jnp.zeros_like, start.params)
    for half in (slice(0, B // 2), slice(B // 2, B)):
        grads, stats = jax.grad(objective, has_aux=True)(start.params, stats, data["image"][half], data["label"][half])
        total = jax.tree.map(jnp.add, total, grads)
    for path in start.params:
        np.testing.assert_allclose(after.params[path], start.params[path] - total[path], atol=2e-6)
    for path, value in stats.items():
        np.testing.assert_allclose(after.batch_stats[path], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_agree_for_a_batch_that_does_not_divide(devices):
    """11 rows with BatchNorm, rotation and mixup on 1, 2 and 8 devices; tolerance 1e-5 relative, stated beforehand."""
    losses_seen = []
    for count in (1, devices):
        mesh = sharding.make_mesh(jax.devices()[:count])
        parts, current = make(batch_size=11, mesh=mesh, dihedral=True, rotation=30.0, mixup=0.4)
        current = jax.device_put(current, sharding.replicated(mesh))
        function = step(parts)
        seen = []
        for number in range(3):
            host = batch(11, seed=number)
            rows = sharding.rows_for(mesh, 11)
            padded = {k: np.pad(np.asarray(v), [(0, rows - 11)] + [(0, 0)] * (v.ndim - 1)) for k, v in host.items()}
            current = function(current, sharding.put_batch(mesh, padded), 1e-2)
            seen.append(float(current.sums["loss"]))
        losses_seen.append((seen, current.params))
    np.testing.assert_allclose(losses_seen[1][0], losses_seen[0][0], rtol=1e-5)
    for path, value in losses_seen[0][1].items():
        np.testing.assert_allclose(losses_seen[1][1][path], value, atol=2e-4, err_msg=path)


def test_poisoned_batch_changes_nothing_but_the_counters():
    parts, start = make(ema=0.9)
    function = step(parts)
    data = batch()
    poisoned = data | {"image": jnp.full((B, SIZE, SIZE, 3), jnp.nan, jnp.float32)}
    after = function(start, poisoned, 0.1)
    assert int(after.skipped) == 1 and int(after.streak) == 1 and int(after.step) == 1
    for name in ("params", "batch_stats", "opt_state", "ema", "sums"):
        same = jax.tree.map(lambda a, b: bool((a == b).all()), getattr(after, name), getattr(start, name))
        assert all(jax.tree.leaves(same)), name
    healed = function(after, data, 0.1)
    assert int(healed.skipped) == 1 and int(healed.streak) == 0 and float(healed.sums["steps"]) == 1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_frozen_parameters_and_statistics_keep_every_bit(accumulate):
    """20 steps with weight decay, averaging and a frozen backbone; the averages of what is frozen keep theirs too."""
    parts, start = make(freeze=("backbone",), ema=0.9, accumulate=accumulate, optimizer={"weight_decay": 0.1})
    after, function = start, step(parts)
    for number in range(20):
        after = function(after, batch(seed=number), 0.1)
    moved = {p for p in start.params if not bool((after.params[p] == start.params[p]).all())}
    assert moved == set(parts.trainable) and all(p.startswith("head/") for p in moved)
    for name, value in start.batch_stats.items():
        np.testing.assert_array_equal(after.batch_stats[name], value)
        np.testing.assert_array_equal(after.ema["batch_stats"][name], value)
    for name in start.params.keys() - moved:
        np.testing.assert_array_equal(after.ema["params"][name], start.params[name])
    shapes = [leaf.shape for leaf in jax.tree.leaves(start.opt_state) if leaf.ndim]
    assert sorted(shapes) == sorted(2 * [start.params[p].shape for p in parts.trainable])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_frozen_layers_have_no_backward_pass(accumulate):
    """The compiled step saves at least the products of the convolutions that nobody needs, however they are lowered."""

    def flops(freeze) -> float:
        parts, start = make(freeze=freeze, accumulate=accumulate)
        return step(parts).lower(start, batch(), 0.1).compile().cost_analysis()["flops"]

    first, second = (2 * 9 * B * 3 * 4 * SIZE**2, 2 * 9 * B * 4 * 6 * (SIZE // 2) ** 2)  # of one pass
    whole = flops(())
    assert whole >= 2 * first + 3 * second  # the image needs no gradient
    assert whole - flops(("backbone",)) >= first + 2 * second
    assert whole - flops(("block_1_1",)) >= first + second  # its kernel's gradient, and the second's input's
    assert whole - flops(("block_2_1",)) >= second


def test_factors_and_penalties_by_their_formulas():
    """θ ← θ − rate·factor·(u + decay·θ) with u from the gradient plus 2·λ·θ; plain SGD, so that u is the gradient."""
    plain = {"name": "sgd", "momentum": 0.0, "clip_norm": 0.0, "weight_decay": 0.02}
    kernel = "head/logits/kernel"
    tuned = {"layer_decay": 0.5, "rates": (("head", 3.0), (kernel, 2.0)), "l2": ((kernel, 0.1),)}
    parts, start = make(optimizer=plain)
    base = step(parts)(start, batch(), 0.1)
    parts, start = make(optimizer=plain | tuned)
    after = step(parts)(start, batch(), 0.1)
    for path, value in start.params.items():
        gradient = (value - base.params[path]) / 0.1  # with the decay
        factor, penalty = 0.5 if "block_2" in path else 0.25, 0.0
        if path.startswith("head"):
            factor, penalty = (6.0, 0.1) if path.endswith("kernel") else (3.0, 0.0)
        expected = value - 0.1 * factor * (gradient + 2 * penalty * value)
        np.testing.assert_allclose(after.params[path], expected, atol=2e-6, err_msg=path)
    np.testing.assert_allclose(after.sums["loss"], base.sums["loss"], rtol=1e-6)


def test_average_follows_its_formula_and_covers_the_statistics():
    parts, start = make(ema=0.5)
    after = step(parts)(start, batch(), 0.1)
    decay = min(0.5, 1 / 10)  # warm-up at step 0
    for kind in ("params", "batch_stats"):
        for path, value in getattr(start, kind).items():
            expected = decay * value + (1 - decay) * getattr(after, kind)[path]
            np.testing.assert_allclose(after.ema[kind][path], expected, atol=1e-6)


def test_tree_of_a_checkpoint_and_back():
    parts, start = make(ema=0.5, freeze=("^backbone/",))
    start = step(parts)(start, batch(), 0.1)
    tree = state.to_tree(start)
    back = state.from_tree(jax.tree.map(jnp.zeros_like, start), tree)
    assert state.fingerprint(back) == state.fingerprint(start)
    changed = start.replace(step=start.step + 1)
    assert state.fingerprint(changed) != state.fingerprint(start)


def scaled(start, factor: float, good: int = 0):
    """The state with a loss scale."""
    return start.replace(scale={"factor": jnp.float32(factor), "good": jnp.int32(good)})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_loss_scale_changes_no_gradient_and_grows_after_two_thousand_good_steps(accumulate):
    """In float32 a power of two is exact: the same parameters bit for bit as without."""
    parts, start = make(accumulate=accumulate)
    function = step(parts)
    plain = function(start, batch(), 0.1)
    after = function(scaled(start, 2.0**10, good=1998), batch(), 0.1)
    for path in start.params:
        np.testing.assert_array_equal(after.params[path], plain.params[path])
    np.testing.assert_allclose(after.sums["gradient_norm"], plain.sums["gradient_norm"], rtol=1e-6)
    assert float(after.scale["factor"]) == 2.0**10 and int(after.scale["good"]) == 1999
    grown = function(after, batch(), 0.1)
    assert float(grown.scale["factor"]) == 2.0**11 and int(grown.scale["good"]) == 0


def test_overflow_halves_the_scale_and_is_no_mistake_of_the_data():
    """float16 with a scale whose gradients overflow: left out, not counted, halved; until it fits, then it trains."""
    parts, start = make(ema=0.9)
    parts = dataclasses.replace(parts, model=parts.model.clone(dtype=jnp.float16))
    function = step(parts)
    current = scaled(start, 2.0**30, good=7)
    for number in range(1, 40):
        after = function(current, batch(), 0.1)
        if int(after.scale["good"]):
            break
        assert float(after.scale["factor"]) == 2.0 ** (30 - number)
        assert int(after.skipped) == int(after.streak) == 0 and int(after.step) == number
        for name in ("params", "batch_stats", "opt_state", "ema", "sums"):
            same = jax.tree.map(lambda a, b: bool((a == b).all()), getattr(after, name), getattr(start, name))
            assert all(jax.tree.leaves(same)), name
        current = after
    assert 5 < number < 30 and float(after.scale["factor"]) == float(current.scale["factor"])
    assert any(bool((after.params[path] != start.params[path]).any()) for path in start.params)
    exact = step(make(ema=0.9)[0])(start, batch(), 0.1)
    np.testing.assert_allclose(after.sums["loss"], exact.sums["loss"], rtol=5e-3)
    np.testing.assert_allclose(after.sums["gradient_norm"], exact.sums["gradient_norm"], rtol=2e-2)


def test_a_loss_that_is_not_finite_is_no_overflow():
    """A poisoned batch is counted whatever the scale; so are gradients that overflow at the least scale."""
    parts, start = make()
    poisoned = batch() | {"image": jnp.full((B, SIZE, SIZE, 3), jnp.nan, jnp.float32)}
    after = step(parts)(scaled(start, 2.0**15, good=3), poisoned, 0.1)
    assert int(after.skipped) == int(after.streak) == 1
    assert float(after.scale["factor"]) == 2.0**15 and int(after.scale["good"]) == 0
    true, false = jnp.bool_(True), jnp.bool_(False)
    scale, forgiven = steps.rescaled({"factor": jnp.float32(1.0), "good": jnp.int32(3)}, true, false)
    assert not bool(forgiven) and float(scale["factor"]) == 1.0
    scale, forgiven = steps.rescaled({"factor": jnp.float32(2.0**24), "good": jnp.int32(1999)}, true, true)
    assert float(scale["factor"]) == 2.0**24 and int(scale["good"]) == 0
