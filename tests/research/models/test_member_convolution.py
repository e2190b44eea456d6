"""Convolutions under vmap and in loops against lax.conv_general_dilated, member by member."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.convolution import conv2d, depthwise_conv2d
from research.models.lowering import convolutions_of_members

CASES = [
    # height, width, channels, features, window, strides, padding
    (9, 7, 3, 5, (3, 3), (1, 1), "same"),
    (12, 11, 4, 6, (5, 3), (2, 1), "valid"),
    (8, 8, 5, 2, (1, 1), (2, 2), "valid"),
    (7, 10, 2, 3, (4, 4), (3, 2), "same"),
    (5, 5, 3, 4, (5, 5), (1, 1), "valid"),
    (6, 9, 17, 4, (2, 3), (1, 2), ((1, 0), (2, 1))),
]


def _reference(inputs, kernel, strides, padding, groups):
    padding = padding.upper() if isinstance(padding, str) else padding
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        inputs, kernel, strides, padding, dimension_numbers=layout, feature_group_count=groups
    )


def _close(found, expected):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1.0, float(np.abs(theirs).max())))


@pytest.mark.parametrize("kind", ["unrolled", "im2col"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("depthwise", [False, True])
def test_members(kind, shared, case, depthwise):
    height, width, channels, features, window, strides, padding = case
    members, batch = 3, 2
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(members, batch, height, width, channels)).astype(np.float32)
    shape = (members, *window, 1, channels) if depthwise else (members, *window, channels, features)
    kernel = rng.normal(size=shape).astype(np.float32)
    inputs = inputs[0] if shared else inputs
    operation = depthwise_conv2d if depthwise else conv2d

    def pulled(function, values, kernel):
        outputs, pull = jax.vjp(function, values, kernel)
        return outputs, pull(jnp.cos(outputs))

    with convolutions_of_members(kind):
        ours = functools.partial(pulled, lambda v, k: operation(v, k, strides, padding))
        found = jax.jit(jax.vmap(ours, in_axes=(None if shared else 0, 0)))(inputs, kernel)
    groups = channels if depthwise else 1
    theirs = functools.partial(pulled, lambda v, k: _reference(v, k, strides, padding, groups))
    expected = [theirs(inputs if shared else inputs[i], kernel[i]) for i in range(members)]
    _close(found, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected))


@pytest.mark.parametrize("kind", ["unrolled", "im2col"])
def test_no_grouped_convolution_is_left(kind):
    inputs, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 3, 3, 3, 5))

    def loss(kernel, inputs):
        return jnp.sum(conv2d(conv2d(inputs, kernel, (1, 1), "same")[..., :3], kernel, (1, 1), "same") ** 2)

    with convolutions_of_members(kind):
        text = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None))).lower(kernel, inputs).as_text()
    assert "feature_group_count = 4" not in text and "batch_group_count = 4" not in text
    assert ("stablehlo.convolution" in text) == (kind == "unrolled")


def test_a_shared_input_meets_all_kernels_at_once():
    inputs, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 3, 3, 3, 5))
    with convolutions_of_members("unrolled"):
        function = jax.vmap(lambda k, x: conv2d(x, k, (1, 1), "same"), in_axes=(0, None))
        text = jax.jit(function).lower(kernel, inputs).as_text()
    assert text.count("stablehlo.convolution") == 1


def test_one_model_is_computed_as_ever_outside():
    inputs, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    with convolutions_of_members("im2col"):
        inside = conv2d(inputs, kernel, (1, 1), "same")
    np.testing.assert_allclose(inside, conv2d(inputs, kernel, (1, 1), "same"), rtol=1e-6)
