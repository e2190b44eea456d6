"""Do colour operations give what torchvision v2 gives for the same factors and orders?"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import augment_color as color

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "augment_color.npz")


apply_jitter = jax.jit(color.apply_jitter, static_argnames="hue")


def full(value, batch=2):
    return jnp.full(batch, value, jnp.float32)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
@pytest.mark.parametrize("suffix, channels", [("", 3), ("_grey", 1)])
def test_blends_equal_torchvision(golden, name, suffix, channels):
    images = jnp.asarray(golden["images"][..., :channels], jnp.float32)
    adjust = jax.jit(getattr(color, f"adjust_{name}"))
    for factor, expected in zip(golden["factors"], golden[name + suffix], strict=True):
        np.testing.assert_allclose(adjust(images, full(factor)), expected, atol=2e-3)


def test_every_example_has_its_own_factor(golden):
    images = jnp.asarray(golden["images"], jnp.float32)
    ours = color.adjust_contrast(images, jnp.asarray(golden["factors"][[1, 3]]))
    expected = np.stack([golden["contrast"][1, 0], golden["contrast"][3, 1]])
    np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_hue_equals_torchvision_also_on_grey_pixels(golden):
    images = jnp.asarray(golden["hue_images"], jnp.float32)
    for shift, expected in zip(golden["shifts"], golden["hue"], strict=True):
        np.testing.assert_allclose(jax.jit(color.adjust_hue)(images, full(shift)), expected, atol=5e-3)


def test_jitter_applies_the_operations_in_each_example_s_own_order(golden):
    orders = golden["orders"]
    images = jnp.asarray(np.repeat(golden["images"][:1], len(orders), axis=0), jnp.float32)
    jitter = color.Jitter(jnp.asarray(orders), *(full(value, len(orders)) for value in golden["strengths"]))
    ours = apply_jitter(images, jitter, hue=True)
    np.testing.assert_allclose(ours, golden["jitter"][:, 0], atol=2e-2)


def test_jitter_without_hue_and_on_four_channels():
    images = np.random.default_rng(0).uniform(0, 255, (2, 5, 7, 4)).astype(np.float32)
    order = jnp.array([[1, 3, 0, 2], [0, 2, 3, 1]])
    jitter = color.Jitter(order, full(1.3), full(0.6), full(0.2), full(0.4))
    ours = np.asarray(apply_jitter(jnp.asarray(images), jitter, hue=True))
    brighter = np.clip(1.3 * images[1], 0, 255)
    np.testing.assert_allclose(ours[1], np.clip(0.6 * brighter + 0.4 * brighter.mean(), 0, 255), atol=1e-3)
    contrast = np.clip(0.6 * images[0] + 0.4 * images[0].mean(), 0, 255)
    np.testing.assert_allclose(ours[0], np.clip(1.3 * contrast, 0, 255), atol=1e-3)


def test_jitter_parameters_are_those_of_torchvision_for_the_same_numbers():
    drawn = np.load(GOLDEN / "augment_draw.npz")
    fraction = jnp.asarray(drawn["jitter"])
    ours = color.draw_jitter(fraction, brightness=0.4, contrast=1.7, saturation=0.3, hue=0.2)
    ours = np.column_stack([ours.brightness, ours.contrast, ours.saturation, ours.hue])
    np.testing.assert_allclose(ours, drawn["jitter_drawn"], atol=1e-5)


def test_orders_are_uniform_permutations_of_what_is_on():
    fraction = jax.random.uniform(jax.random.key(5), (4800, 5))
    order = np.asarray(color.draw_jitter(fraction, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1).order)
    _, count = np.unique(order, axis=0, return_counts=True)
    assert len(count) == 24
    assert np.sum((count - 200) ** 2 / 200) < 49.7  # chi-squared, 23 degrees of freedom, p = 0.001
    pair = np.asarray(color.draw_jitter(fraction, contrast=0.1, hue=0.1).order)
    assert {tuple(row) for row in pair} == {(color.CONTRAST, color.HUE), (color.HUE, color.CONTRAST)}


def test_posterize_and_solarize_are_exact_on_bytes(golden):
    images = jnp.asarray(golden["large"], jnp.float32)
    for bits, expected in enumerate(golden["posterize"]):
        np.testing.assert_array_equal(color.posterize(images, full(bits).astype(jnp.int32)), expected)
    for threshold, expected in zip(golden["thresholds"], golden["solarize"], strict=True):
        np.testing.assert_array_equal(color.solarize(images, full(threshold)), expected)


@pytest.mark.parametrize("suffix, channels", [("", 3), ("_grey", 1)])
def test_equalize_and_autocontrast_are_exact_on_bytes(golden, suffix, channels):
    images = jnp.asarray(golden["large"][..., :channels], jnp.float32)
    assert np.any(golden["equalize" + suffix] != golden["large"][..., :channels])
    np.testing.assert_array_equal(color.equalize(images), golden["equalize" + suffix])
    ours = np.asarray(color.autocontrast(images)).astype(np.uint8)  # torchvision truncates
    np.testing.assert_array_equal(ours, golden["autocontrast" + suffix])


def test_equalize_leaves_images_too_small_to_equalize():
    images = np.random.default_rng(1).integers(0, 256, (2, 7, 9, 2)).astype(np.float32)
    np.testing.assert_array_equal(color.equalize(jnp.asarray(images)), images)
