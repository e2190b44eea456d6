"""Are the operations of a forward pass those of hand formulas and of published tables?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from input_pipeline.cli import UserError
from research.models import registry
from research.models.flops import flops, of_jaxpr


def traced(function, *shapes):
    return of_jaxpr(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).jaxpr)


def convolution(strides, padding, groups=1):
    layout = ("NHWC", "HWIO", "NHWC")
    return lambda x, k: lax.conv_general_dilated(
        x, k, strides, padding, dimension_numbers=layout, feature_group_count=groups
    )


@pytest.mark.parametrize(
    "strides, padding, groups, image, kernel, multiply_adds",
    [
        ((1, 1), "VALID", 1, (2, 11, 13, 3), (3, 5, 3, 7), 2 * 9 * 9 * 3 * 5 * 3 * 7),
        ((1, 1), "SAME", 1, (1, 11, 13, 3), (3, 5, 3, 7), 11 * 13 * 3 * 5 * 3 * 7),
        ((2, 3), "VALID", 1, (1, 11, 13, 3), (3, 5, 3, 7), 5 * 3 * 3 * 5 * 3 * 7),
        ((2, 3), "SAME", 1, (1, 11, 13, 3), (3, 5, 3, 7), 6 * 5 * 3 * 5 * 3 * 7),
        ((2, 2), "SAME", 6, (1, 11, 13, 6), (3, 3, 1, 6), 6 * 7 * 9 * 6),
        ((1, 1), "SAME", 2, (1, 4, 4, 6), (1, 1, 3, 8), 16 * 3 * 8),
    ],
)
def test_convolutions(strides, padding, groups, image, kernel, multiply_adds):
    assert traced(convolution(strides, padding, groups), image, kernel) == 2 * multiply_adds


def test_matrix_products_calls_loops_and_branches():
    def product(x, y):
        return x @ y

    assert traced(product, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert traced(lambda x, y: jnp.einsum("bij,bkj->bik", x, y), (4, 3, 5), (4, 7, 5)) == 2 * 4 * 3 * 5 * 7
    assert traced(jax.jit(jax.vmap(product)), (4, 3, 5), (4, 5, 7)) == 2 * 4 * 3 * 5 * 7
    looped = traced(lambda x, y: lax.scan(lambda c, _: (c @ y, None), x, None, length=6)[0], (3, 5), (5, 5))
    assert looped == 6 * 2 * 3 * 5 * 5
    branches = (lambda x, y: x @ y, lambda x, y: x @ y @ y)
    assert traced(lambda x, y: lax.cond(x[0, 0] > 0, *branches, x, y), (3, 5), (5, 5)) == 2 * 2 * 3 * 5 * 5
    unknown = traced(lambda x: lax.while_loop(lambda v: v[0] < 3, lambda v: v + 1, x), (2,))
    assert unknown == 0
    with pytest.raises(ValueError, match="unknown length"):
        traced(lambda x, y: lax.while_loop(lambda v: v[0, 0] < 3, lambda v: v @ y, x), (3, 3), (3, 3))


def test_what_nobody_uses_is_not_counted():
    def two(x, y):
        return x @ y, x @ y @ y

    assert traced(lambda x, y: two(x, y)[0], (3, 5), (5, 5)) == 2 * 3 * 5 * 5
    assert traced(lambda x, y: jax.jit(two)(x, y)[0], (3, 5), (5, 5)) == 2 * 3 * 5 * 5


# MACs in units of 10^9 at 224 pixels and 1000 classes: `_ops` of torchvision's tables of weights; the second of the
# VGGs, less its three dense layers.
@pytest.mark.parametrize(
    "name, options, published",
    [
        ("resnet50", {}, 4.089),
        ("efficientnet_b0", {}, 0.386),
        ("vgg16", {}, 15.470),
        ("vgg16", {"head_pool": "max"}, 15.470 - (25088 * 4096 + 4096 * 4096 + 4096 * 1000 - 512 * 1000) / 1e9),
        ("densenet121", {}, 2.834),
    ],
)
def test_published_models(name, options, published):
    model = registry.create(name, num_classes=1000, **options)
    assert flops(model, 224, 3) / 2e9 == pytest.approx(published, abs=6e-4)


def grid_cnn_by_hand(size, filters, kernels, dense, padding, classes):
    """Of research/models/grid_cnn.py's docstring."""
    total, channels, side = 0, 3, size
    for width, kernel in zip(filters, kernels, strict=True):
        side = side if padding == "same" else side - kernel + 1
        total += side * side * kernel * kernel * channels * width
        channels, side = width, side // 2
    for width in (*dense, classes):
        total += channels * width
        channels = width
    return 2 * total


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_grid_cnn(padding):
    filters, kernels, dense = (5, 9, 6), (5, 3, 3), (11,)
    model = registry.create(
        "grid_cnn", num_classes=4, filters=filters, kernels=kernels, dense=dense, padding=padding, conv_dropout=0.1
    )
    assert flops(model, 37, 3) == grid_cnn_by_hand(37, filters, kernels, dense, padding, 4)


def test_a_model_is_not_run_and_its_mistakes_are_told():
    model = registry.create("simple_cnn", num_classes=3, widths=(8,))
    before = {id(array) for array in jax.live_arrays()}
    assert flops(model, 1024, 3) == 2 * (1024 * 1024 * 9 * 3 * 8 + 8 * 3)
    assert max((a.size for a in jax.live_arrays() if id(a) not in before), default=0) < 1024
    assert isinstance(flops(model, np.int64(9), 1), int)
    with pytest.raises(UserError, match="needs images of at least"):
        flops(registry.create("grid_cnn", num_classes=4), 100, 3)
