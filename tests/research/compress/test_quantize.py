"""Int8 against integer arithmetic in NumPy, and proof that the compiled program multiplies int8 by int8."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("qwix")

from input_pipeline.cli import UserError  # noqa: E402
from research.compress import calibration, quantize  # noqa: E402
from research.models import registry  # noqa: E402
from research.models.classifier import Output  # noqa: E402
from research.models.layers import Conv, Dense, DepthwiseConv  # noqa: E402
from research.training.state import flatten, nest  # noqa: E402
from tests.research.compress.test_channels import CLASSES, SIZE, draw, images, logits  # noqa: E402

MODELS = {
    "simple": {"name": "simple_cnn", "widths": (8, 12, 16), "head": (10,), "head_batch_norm": True},
    "grid": {"name": "grid_cnn", "filters": (8, 12), "kernels": (5, 3), "dense": (16,), "strides": (1, 1)},
}


@functools.cache
def made(name):
    """(model, variables, layout, int8 arrays); not to be changed."""
    options = dict(MODELS[name])
    model = registry.create(options.pop("name"), num_classes=CLASSES, **options)
    variables = draw(model)
    return model, variables, *to_int8(model, variables, [images()])


def to_int8(model, variables, batches):
    plan = quantize.layout(model, SIZE, 3)
    arrays = quantize.quantize(plan, variables, calibration.calibrate(model, variables, plan, batches))
    return plan, calibration.correct(model, variables, plan, arrays, batches)


def program(model):
    return lambda arrays, image: quantize.int8_logits(model, lambda x: x, arrays, image)


@pytest.mark.parametrize("name", MODELS)
def test_logits_stay_close_and_every_product_is_int8(name):
    model, variables, plan, arrays = made(name)
    expected = logits(model, variables)
    lowered = jax.jit(program(model)).lower(arrays, images())
    found = np.asarray(lowered.compile()(arrays, images()))
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert list(found.argmax(1)) == list(expected.argmax(1))
    types = quantize.product_types(program(model), arrays, images())
    assert len(types) == len(plan.layers) and {t[1:] for t in types} == {("int8", "int8", "int32")}
    # The program that XLA is given, not only the trace: i8 operands, i32 results.
    products = [
        line for line in lowered.as_text().splitlines() if re.search(r"stablehlo\.(convolution|dot_general)", line)
    ]
    assert len(products) == len(plan.layers)
    for line in products:
        signature = line.rpartition(" : ")[2]
        assert re.findall(r"tensor<[^>]*x(\w+)>", signature) == ["i8", "i8", "i32"], line


def test_what_is_stored():
    _, variables, plan, arrays = made("simple")
    assert plan.layers == ("backbone/block_1_1/conv", "backbone/block_2_1/conv", "backbone/block_3_1/conv",
                           "head/dense_1", "head/logits")  # fmt: skip
    assert set(plan.folded) == {f"backbone/block_{i}_1/norm" for i in (1, 2, 3)} and "head/norm" in plan.norms
    kernels = sum(variables["params"][f"{layer}/kernel"].size for layer in plan.layers)
    outputs = 8 + 12 + 16 + 10 + CLASSES
    floats = 2 * outputs + len(plan.layers) + 2 * 16  # scales and biases, inputs' scales, the head's BatchNorm
    assert sum(value.nbytes for value in arrays.values()) == kernels + 4 * floats + len(plan.layers)  # zero points
    assert all(arrays[f"{layer}/kernel"].dtype == np.int8 for layer in plan.layers)
    assert all(arrays[f"{layer}/kernel"].min() >= -128 for layer in plan.layers)


def layer_arrays(random, shape, zero):
    """Arrays of a layer, and the bias that it had before the zero point went into it."""
    kernel, scale = random.integers(-127, 128, shape), random.uniform(0.01, 0.02, shape[-1])
    bias = random.normal(size=shape[-1])
    added = zero * kernel.sum(tuple(range(len(shape) - 1))) * scale * 0.02
    own = {"kernel": np.int8(kernel), "scale": np.float32(scale), "bias": np.float32(bias - added)}
    own |= {"input_scale": np.float32(0.02), "input_zero": np.int8(zero)}
    return {name: jnp.asarray(value) for name, value in own.items()}, kernel, scale, bias


def integers(inputs, zero):
    """What the inputs are rounded to, less the zero point."""
    return np.clip(np.round(inputs / np.float32(0.02)) + zero, -128, 127).astype(np.int64) - zero


@pytest.mark.parametrize("zero", [0, -128, 37])
@pytest.mark.parametrize("stride, padding", [(1, "same"), (2, "same"), (2, "valid"), (1, ((1, 0), (2, 1)))])
def test_a_convolution_is_the_integers_own(stride, padding, zero):
    """Convolved by loops over int64 in NumPy, zeros around the image."""
    random = np.random.default_rng(4)
    layer = Conv(5, (3, 2), stride, padding, use_bias=True)
    inputs = random.normal(size=(2, 7, 6, 4)).astype(np.float32)
    own, kernel, scale, bias = layer_arrays(random, (3, 2, 4, 5), zero)
    found = np.asarray(quantize.int8_layer(layer, own, jnp.asarray(inputs)))
    pairs = ((0, 0), (0, 0)) if padding == "valid" else padding
    if padding == "same":
        sizes = [-(-n // stride) for n in (7, 6)]
        total = [max(0, (o - 1) * stride + k - n) for o, k, n in zip(sizes, (3, 2), (7, 6), strict=True)]
        pairs = tuple((t // 2, t - t // 2) for t in total)
    padded = np.pad(integers(inputs, zero), ((0, 0), *pairs, (0, 0)))
    height, width = ((padded.shape[1] - 3) // stride + 1, (padded.shape[2] - 2) // stride + 1)
    assert found.shape == (2, height, width, 5)
    for row in range(height):
        for column in range(width):
            window = padded[:, row * stride : row * stride + 3, column * stride : column * stride + 2]
            expected = np.einsum("bhwc,hwcf->bf", window, kernel) * 0.02 * scale + bias
            np.testing.assert_allclose(found[:, row, column], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("zero", [0, -128, 37])
def test_a_dense_layer_is_the_integers_own(zero):
    random = np.random.default_rng(5)
    inputs = 2 * random.normal(size=(3, 9)).astype(np.float32)  # some are clipped
    own, kernel, scale, bias = layer_arrays(random, (9, 4), zero)
    found = quantize.int8_layer(Dense(4), own, jnp.asarray(inputs))
    expected = integers(inputs, zero) @ kernel * 0.02 * scale + bias
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("low, high", [(0.0, 5.0), (-3.0, 5.0), (-4.0, -1.0), (2.0, 3.0), (0.0, 0.0), (-1e-30, 1e30)])
def test_a_range_holds_zero_and_its_ends(low, high):
    found = quantize.Range.over(low, high)
    assert -128 <= found.zero <= 127 and float(quantize.rounded(0.0, found.scale, found.zero)) == found.zero
    for end in (low, high):
        restored = (float(quantize.rounded(end, found.scale, found.zero)) - found.zero) * found.scale
        assert abs(restored - end) <= found.scale * 0.51
    assert found.scale == pytest.approx(max((max(high, 0) - min(low, 0)) / 255, 1e-20))


@pytest.mark.parametrize("positive", [False, True])
def test_the_range_is_the_one_that_errs_least(positive):
    """One outlier among 84,672 numbers is better clipped."""
    model = registry.create("simple_cnn", num_classes=CLASSES, widths=(4,))
    values = np.random.default_rng(6).normal(size=(64, SIZE, SIZE, 3)).astype(np.float32)
    values = np.abs(values) if positive else values
    values[0, 0, 0, 0] = 7.0
    plan = quantize.layout(model, SIZE, 3)
    found = calibration.calibrate(model, draw(model), plan, [jnp.asarray(values)])["backbone/block_1_1/conv"]
    errors = []
    for limit in np.linspace(0.3, 1.0, 15) * 7.0:
        low, high = max(values.min(), -limit), min(values.max(), limit)
        scale = (high - min(low, 0)) / 255
        zero = np.round(-128 - min(low, 0) / scale)
        restored = (np.clip(np.round(values / scale) + zero, -128, 127) - zero) * scale
        errors.append((np.square(restored - values).mean(), scale))
    assert found.scale == pytest.approx(min(errors)[1], rel=1e-5) and found.scale < errors[-1][1]


def test_corrected_biases_take_the_mean_error_away():
    """Each layer alone, on the float network's activations; here the first one, whose inputs are the images."""
    model, variables, plan, _ = made("grid")
    image = jnp.asarray(images())
    plain = quantize.quantize(plan, variables, calibration.calibrate(model, variables, plan, [image]))
    arrays = calibration.correct(model, variables, plan, plain, [image])
    path = "backbone/conv_1"
    layer = Conv(8, (5, 5), 1, "valid", use_bias=True)
    own = {name: variables["params"][f"{path}/{name}"] for name in ("kernel", "bias")}
    wanted = layer.apply({"params": own}, image)
    before, after = (
        np.abs((quantize.int8_layer(layer, quantize.stored_of(a, path), image) - wanted).mean((0, 1, 2))).max()
        for a in (plain, arrays)
    )
    assert after < 1e-5 < before
    others = {name for name in arrays if not name.endswith("/bias")}
    assert all(np.array_equal(arrays[name], plain[name]) for name in others)


class Separable(nn.Module):
    """A depthwise convolution between two ordinary layers."""

    @nn.compact
    def __call__(self, inputs, *, train):
        outputs = Conv(4, (1, 1), name="first")(inputs["image"])
        outputs = DepthwiseConv(name="depthwise")(outputs)
        return Output(Dense(CLASSES, name="logits")(outputs.mean((1, 2))), outputs, {})


def test_depthwise_convolutions_stay_float():
    model = Separable()
    params = flatten(model.init(jax.random.key(0), {"image": images()}, train=False)["params"])
    plan, arrays = to_int8(model, {"params": params}, [images()])
    assert plan.layers == ("first", "logits") and arrays["depthwise/kernel"].dtype == np.float32
    found = jax.jit(program(model))(arrays, images())
    expected = model.apply({"params": nest(params)}, {"image": images()}, train=False).logits
    np.testing.assert_allclose(found, expected, atol=0.05 * float(jnp.abs(expected).max()))


def test_calibration_refuses_what_it_cannot_use():
    model = registry.create("simple_cnn", num_classes=CLASSES, widths=(4,))
    variables, plan = draw(model), quantize.layout(model, SIZE, 3)
    with pytest.raises(UserError, match="no training images"):
        calibration.calibrate(model, variables, plan, [])
    with pytest.raises(UserError, match="not finite"):
        calibration.calibrate(model, variables, plan, [images() * np.nan])


def test_dead_layers_stay_dead():
    """A layer of zeros has no range of its own, and its neighbours none of their inputs'."""
    model = registry.create("simple_cnn", num_classes=CLASSES, widths=(4, 4))
    variables = draw(model)
    for name in ("norm/scale", "norm/bias", "conv/kernel"):
        variables["params"][f"backbone/block_1_1/{name}"][...] = 0
    _, arrays = to_int8(model, variables, [images()])
    found = jax.jit(program(model))(arrays, images(4))
    np.testing.assert_allclose(found, logits(model, variables), atol=1e-3)
