"""Are the convolutions equal to XLA's own, forward and backward, whatever their shapes?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from research.models import convolution
from research.models.convolution import conv2d, depthwise_conv2d
from research.models.lowering import lowering_for
from research.models.pooling import explicit_padding

SHAPES = [
    # (height, width), window, strides
    ((9, 12), (1, 1), (1, 1)),
    ((9, 12), (1, 1), (2, 3)),
    ((9, 12), (3, 3), (1, 1)),
    ((8, 11), (3, 3), (2, 2)),
    ((7, 7), (5, 5), (2, 2)),
    ((10, 7), (1, 7), (1, 1)),
    ((10, 9), (4, 2), (3, 1)),
    ((11, 8), (2, 3), (3, 3)),
    ((5, 3), (5, 3), (1, 2)),
    ((9, 4), (7, 1), (1, 1)),
]
PADDINGS = ["same", "valid", 1, ((0, 2), (3, 1))]


def random(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def plain(groups, strides, padding):
    """lax.conv_general_dilated with the arguments of `conv2d`."""

    def apply(inputs, kernel):
        pairs = explicit_padding(inputs.shape[1:3], kernel.shape[:2], strides, padding)
        return lax.conv_general_dilated(
            inputs,
            kernel,
            strides,
            pairs,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
            precision=lax.Precision.HIGHEST,
        )

    return apply


def results(function, inputs, kernel):
    """Values, and the gradients of a weighted sum of their squares (so that they depend on both arguments)."""
    values = function(inputs, kernel)
    weights = random(values.shape, 9, jnp.float32)

    def objective(x, k):
        return jnp.sum(jnp.square(function(x, k).astype(jnp.float32)) * weights)

    return (values, *jax.grad(objective, (0, 1))(inputs, kernel))


def assert_close(actual, expected, tolerance):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-6))


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("sizes, window, strides", SHAPES)
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
def test_equals_lax(depthwise, sizes, window, strides, padding):
    channels = 5
    inputs = random((3, *sizes, channels))
    kernel = random((*window, 1 if depthwise else channels, channels if depthwise else 4), 1)
    ours = depthwise_conv2d if depthwise else conv2d
    expected = jax.jit(lambda x, k: results(plain(channels if depthwise else 1, strides, padding), x, k))
    actual = jax.jit(lambda x, k: results(lambda a, b: ours(a, b, strides, padding), x, k))
    assert_close(actual(inputs, kernel), expected(inputs, kernel), 1e-5)


@pytest.mark.parametrize("rows_together", [1, 4, 23])
@pytest.mark.parametrize(
    "window, strides, padding",
    [((3, 3), (1, 1), "same"), ((3, 3), (1, 1), "valid"), ((5, 2), (1, 1), 2), ((4, 3), (2, 1), "valid")],
)
def test_large_images_in_blocks_of_rows(window, strides, padding, rows_together, monkeypatch):
    """The kernel's gradient comes from blocks that do not always divide the rows; 16 channels are many."""
    inputs, kernel = random((2, 47, 29, 16)), random((*window, 16, 9), 1)
    outputs = jax.eval_shape(lambda: conv2d(inputs, kernel, strides, padding)).shape
    row = 4 * outputs[2] * window[1] * 16
    monkeypatch.setattr(convolution, "_WINDOWS_BYTES", row * rows_together)
    expected = jax.jit(lambda x, k: results(plain(1, strides, padding), x, k))(inputs, kernel)
    actual = jax.jit(lambda x, k: results(lambda a, b: conv2d(a, b, strides, padding), x, k))(inputs, kernel)
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("image", [(7, 7), (19, 23)])
def test_dense_half_precision_sums_in_float32(image):
    inputs, kernel = (v.astype(jnp.bfloat16) for v in (random((2, *image, 16)), random((3, 3, 16, 9), 1) / 12))
    expected = results(plain(1, (1, 1), "same"), inputs.astype(jnp.float32), kernel.astype(jnp.float32))
    actual = results(lambda x, k: conv2d(x, k, (1, 1), "same"), inputs, kernel)
    assert all(values.dtype == jnp.bfloat16 for values in actual)
    assert_close([values.astype(jnp.float32) for values in actual], expected, 3e-2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (5, 5)])
def test_half_precision_is_as_exact_as_its_type(window, dtype):
    inputs, kernel = random((2, 9, 8, 6)), random((*window, 1, 6), 1) / window[0]
    half = [values.astype(dtype) for values in (inputs, kernel)]
    for strides in ((1, 1), (2, 2)):
        expected = results(plain(6, strides, "same"), *(values.astype(jnp.float32) for values in half))
        actual = results(lambda x, k, s=strides: depthwise_conv2d(x, k, s, "same"), *half)
        assert all(values.dtype == dtype for values in actual)
        assert_close([values.astype(jnp.float32) for values in actual], expected, 3e-2)


def layers(inputs, dense, pointwise, depthwise):
    values = conv2d(inputs, dense, (2, 2), "same")
    values = jnp.tanh(depthwise_conv2d(values, depthwise, (1, 1), "same"))
    values = depthwise_conv2d(conv2d(values, pointwise, (1, 1), "valid"), depthwise, (2, 2), 1)
    return jnp.sum(jnp.square(values))


def arguments(*leading):
    return [
        random((*leading, *shape), seed)
        for seed, shape in enumerate([(2, 9, 10, 3), (3, 3, 3, 4), (1, 1, 4, 4), (3, 3, 1, 4)])
    ]


def test_members_under_vmap_equal_members_alone():
    numbers = (0, 1, 2, 3)
    together = arguments(3)
    actual = jax.jit(jax.vmap(jax.value_and_grad(layers, numbers)))(*together)
    for member in range(3):
        expected = jax.value_and_grad(layers, numbers)(*(values[member] for values in together))
        one = jax.tree.map(lambda values, i=member: values[i], actual)
        assert_close(jax.tree.leaves(one), jax.tree.leaves(expected), 1e-5)


def test_recomputation_gives_the_same_gradients():
    actual = jax.jit(jax.grad(jax.checkpoint(layers), (0, 1, 2, 3)))(*arguments())
    assert_close(actual, jax.grad(layers, (0, 1, 2, 3))(*arguments()), 1e-5)


def test_second_derivatives():
    inputs, dense, pointwise, depthwise = arguments()

    def curvature(function, x):
        slope = jax.grad(lambda k: jnp.sum(jnp.square(jnp.tanh(function(x, k)))))
        return jax.grad(lambda k: jnp.sum(jnp.square(slope(k))))(depthwise)

    x = conv2d(inputs, dense, (1, 1), "same")
    actual = curvature(lambda a, k: depthwise_conv2d(a, k, (2, 2), "same"), x)
    assert_close([actual], [curvature(plain(4, (2, 2), "same"), x)], 1e-5)


def test_other_platforms_get_lax_convolutions():
    """Programs exported for a GPU leave all convolutions to its library."""
    values = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in arguments()]
    programs = {}
    for platform in ("cpu", "cuda", "tpu"):
        with lowering_for(platform):
            exported = jax.export.export(jax.jit(lambda *a: layers(*a)), platforms=[platform])(*values)
        programs[platform] = exported.mlir_module().count("stablehlo.convolution")
    assert programs == {"cpu": 1, "cuda": 4, "tpu": 4}


def test_lowerings_agree():
    expected = jax.value_and_grad(layers, (0, 1, 2, 3))(*arguments())
    with lowering_for("cuda"):
        actual = jax.value_and_grad(layers, (0, 1, 2, 3))(*arguments())
    assert_close(jax.tree.leaves(actual), jax.tree.leaves(expected), 1e-5)
