"""Are the layers equal to XLA's, Flax's and brute-force arithmetic, forward and backward?"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from input_pipeline import cli
from research.models import initializers
from research.models.convolution import conv2d
from research.models.layers import Conv, Dropout
from research.models.normalization import BatchNorm
from research.models.pooling import average_pool, max_pool


def random(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def assert_same_with_gradients(function, expected, *arguments, tolerance=1e-5):
    """Compares two functions in value and in the gradients of a weighted sum of their values."""
    value, expected_value = function(*arguments), expected(*arguments)
    assert value.shape == expected_value.shape and value.dtype == expected_value.dtype
    weights = random(value.shape, seed=9)
    numbers = tuple(range(len(arguments)))
    gradients, expected_gradients = (
        jax.grad(lambda *a, f=f: jnp.sum(f(*a) * weights), numbers)(*arguments) for f in (function, expected)
    )
    for actual, reference in zip((value, *gradients), (expected_value, *expected_gradients), strict=True):
        scale = float(jnp.abs(reference).max())
        np.testing.assert_allclose(actual.astype(float), reference.astype(float), atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (1, 7)])
def test_convolution_equals_lax(window, padding, stride):
    def plain(inputs, kernel):
        return lax.conv_general_dilated(
            inputs, kernel, (stride, stride), padding.upper(), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    inputs, kernel = random((2, 9, 12, 3)), random((*window, 3, 5), 1)
    assert_same_with_gradients(lambda x, k: conv2d(x, k, (stride, stride), padding), plain, inputs, kernel)


def test_convolution_with_pixels_of_padding():
    inputs, kernel = random((2, 6, 7, 3)), random((3, 3, 3, 4), 1)
    padded = jnp.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    np.testing.assert_allclose(
        conv2d(inputs, kernel, (2, 2), 1), conv2d(padded, kernel, (2, 2), "valid"), rtol=1e-6, atol=1e-6
    )


def test_window_larger_than_the_map_is_refused():
    with pytest.raises(cli.UserError, match="larger image_size"):
        jax.eval_shape(lambda x: Conv(4, (3, 3), padding="valid").init(jax.random.key(0), x), jnp.ones((1, 2, 8, 3)))


def window_max(inputs, window, stride, padding):
    pads = padding.upper() if isinstance(padding, str) else ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0))
    return lax.reduce_window(inputs, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads)


@pytest.mark.parametrize(
    "window, stride, padding", [(2, 2, "valid"), (3, 2, "valid"), (3, 2, "same"), (3, 2, 1), (2, 3, "valid")]
)
def test_max_pool_equals_reduce_window_with_ties(window, stride, padding):
    inputs = jnp.round(random((2, 9, 10, 3)) * 1.5)  # few distinct values, so that most windows have ties
    assert_same_with_gradients(
        lambda x: max_pool(x, window, stride, padding),
        lambda x: window_max(x, window, stride, padding),
        inputs,
    )


def test_max_pool_passes_nan_on():
    inputs = random((1, 4, 4, 1)).at[0, 0, 1, 0].set(jnp.nan)
    assert np.isnan(np.asarray(max_pool(inputs, 2))).sum() == 1


@pytest.mark.parametrize("window, stride, padding", [(3, 1, "same"), (2, 2, "valid"), (3, 2, "same"), (3, 2, 1)])
def test_average_pool_counts_only_real_pixels(window, stride, padding):
    def plain(inputs):
        pads = padding.upper() if isinstance(padding, str) else ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0))

        def total(x):
            return lax.reduce_window(x, 0.0, lax.add, (1, window, window, 1), (1, stride, stride, 1), pads)

        return total(inputs) / total(jnp.ones_like(inputs))

    assert_same_with_gradients(lambda x: average_pool(x, window, stride, padding), plain, random((2, 7, 10, 3)))


def batch_norms(dtype):
    flax_layer = nn.BatchNorm(momentum=0.99, epsilon=1e-3, dtype=dtype, use_fast_variance=False)
    variables = {
        "params": {"scale": random((5,), 1) + 2, "bias": random((5,), 2)},
        "batch_stats": {"mean": random((5,), 3), "var": jnp.abs(random((5,), 4)) + 0.5},
    }
    return BatchNorm(), flax_layer, variables


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_equals_flax(dtype, tolerance, train):
    layer, flax_layer, variables = batch_norms(dtype)
    inputs = (3 * random((4, 5, 3, 5)) + 1).astype(dtype)

    def ours(x, params):
        values = {**variables, "params": params}
        return layer.apply(values, x, train=train, mutable=["batch_stats"])[0]

    def theirs(x, params):
        values = {**variables, "params": params}
        return flax_layer.apply(values, x, use_running_average=not train, mutable=["batch_stats"])[0]

    for function in (ours, theirs):
        assert function(inputs, variables["params"]).dtype == dtype
    value = random(inputs.shape, 8)
    results = [
        (f(inputs, variables["params"]),)
        + jax.grad(lambda x, p, f=f: jnp.sum(f(x, p) * value), (0, 1))(inputs, variables["params"])
        for f in (ours, theirs)
    ]
    for actual, expected in zip(*map(jax.tree.leaves, results), strict=True):
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(actual.astype(float), expected.astype(float), atol=tolerance * scale, rtol=0)


def test_batch_norm_moves_running_statistics_as_flax_does():
    layer, flax_layer, variables = batch_norms(jnp.float32)
    inputs = 3 * random((4, 5, 3, 5)) + 1
    _, ours = layer.apply(variables, inputs, train=True, mutable=["batch_stats"])
    _, theirs = flax_layer.apply(variables, inputs, use_running_average=False, mutable=["batch_stats"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)
    assert not np.allclose(ours["batch_stats"]["mean"], variables["batch_stats"]["mean"])
    _, same = layer.apply(variables, inputs, train=False, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, same["batch_stats"], variables["batch_stats"])


def test_gradient_reaches_the_batch_statistics():
    from research.models.normalization import normalize_batch

    inputs = random((6, 5))

    def closed(x):
        _, mean, variance = normalize_batch(x, jnp.ones(5), jnp.zeros(5), 1e-3)
        return jnp.sum(mean**3 + variance**2)

    expected = jax.grad(lambda x: jnp.sum(x.mean(0) ** 3 + x.var(0) ** 2))(inputs)
    np.testing.assert_allclose(jax.grad(closed)(inputs), expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_over_a_sharded_batch_uses_the_whole_batch():
    layer, _, variables = batch_norms(jnp.float32)
    inputs = random((16, 3, 3, 5)) * jnp.arange(1, 17)[:, None, None, None]
    function = jax.jit(lambda v, x: layer.apply(v, x, train=True, mutable=["batch_stats"]))
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    sharded = jax.device_put(inputs, jax.NamedSharding(mesh, jax.P("data")))
    alone = function(variables, inputs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5),
        function(variables, sharded),
        alone,
    )


def test_dropout_keeps_its_share_and_the_mean():
    key = {"dropout": jax.random.key(3)}
    dropped = Dropout(0.3).apply({}, jnp.ones((100, 100)), train=True, rngs=key)
    assert abs(float((dropped == 0).mean()) - 0.3) < 0.02
    np.testing.assert_allclose(dropped[dropped != 0], 1 / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(Dropout(0.3).apply({}, jnp.ones(7), train=False), jnp.ones(7))
    np.testing.assert_array_equal(Dropout(0.0).apply({}, jnp.ones(7), train=True), jnp.ones(7))
    with pytest.raises(cli.UserError, match=r"choose one in \[0, 1\)"):
        Dropout(1.0).apply({}, jnp.ones(7), train=True, rngs=key)


def test_traced_dropout_rate_equals_a_fixed_one():
    def drop(rate):
        return Dropout(rate).apply({}, jnp.ones((4, 9)), train=True, rngs={"dropout": jax.random.key(1)})

    rates = jnp.array([0.0, 0.25, 0.5])
    for rate, dropped in zip(rates, jax.jit(jax.vmap(drop))(rates), strict=True):
        np.testing.assert_allclose(dropped, drop(float(rate)), rtol=1e-6)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (initializers.GLOROT_UNIFORM, nn.initializers.glorot_uniform()),
        (initializers.HE_NORMAL, nn.initializers.he_normal()),
        (initializers.HE_NORMAL_FAN_OUT, nn.initializers.variance_scaling(2.0, "fan_out", "normal")),
    ],
)
def test_initializers_have_the_moments_of_jax_s(ours, theirs):
    shape = (3, 3, 20, 50)
    together = initializers.drawn_together(lambda: {"a": ours(None, shape), "b": ours(None, shape)}, jax.random.key(2))
    assert np.abs(np.corrcoef(together["a"].ravel(), together["b"].ravel())[0, 1]) < 0.05
    expected = np.asarray(theirs(jax.random.key(0), shape))
    for values in (ours(jax.random.key(1), shape), together["a"], together["b"]):
        np.testing.assert_allclose(np.std(values), np.std(expected), rtol=0.03)
        np.testing.assert_allclose(np.abs(values).max(), np.abs(expected).max(), rtol=0.25)
        assert abs(float(np.mean(values))) < 0.03 * np.std(expected)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("activation", ["relu", "swish"])
def test_batch_norm_with_its_activation_equals_the_two_apart(activation, train):
    _, _, variables = batch_norms(jnp.float32)
    inputs = 3 * random((4, 5, 3, 5)) + 1

    def apply(layer, x, params):
        return layer.apply({**variables, "params": params}, x, train=train, mutable=["batch_stats"])[0]

    def apart(x, params):
        return {"relu": nn.relu, "swish": nn.swish}[activation](apply(BatchNorm(), x, params))

    value = random(inputs.shape, 8)
    results = [
        (f(inputs, variables["params"]),)
        + jax.grad(lambda x, p, f=f: jnp.sum(f(x, p) * value), (0, 1))(inputs, variables["params"])
        for f in (lambda x, p: apply(BatchNorm(activation=activation), x, p), apart)
    ]
    for actual, expected in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))
