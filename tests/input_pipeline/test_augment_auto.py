"""Do RandAugment and TrivialAugment draw and apply what torchvision v2 draws and applies?"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import augment_auto as auto

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "augment_auto.npz")


def layers(operations):
    return [auto.Operation(*layer) for layer in zip(*operations, strict=True)]


apply = jax.jit(auto.apply_operation, static_argnames=("interpolation", "fill"))


def run(images, number, magnitude, segmentation=None):
    operation = auto.Operation(jnp.asarray(number, jnp.int32), jnp.asarray(magnitude, jnp.float32))
    images = jnp.asarray(images, jnp.float32)
    return apply(images, segmentation, operation, interpolation="nearest", fill="constant")


def test_operations_are_torchvision_s_in_its_order(golden):
    assert tuple(golden["names"]) == auto.OPERATIONS


def test_geometry_and_blends_equal_torchvision_all_in_one_batch(golden):
    """Every example of the batch carries another operation."""
    count = len(golden["numbers"])
    for image in range(2):
        images = np.repeat(golden["images"][image : image + 1], count, axis=0)
        ours, _ = run(images, golden["numbers"], golden["magnitudes"])
        off = np.abs(np.asarray(ours) - golden["moved"][:, image]) > 5e-3
        for number, share in zip(golden["numbers"], off.any(axis=-1).mean(axis=(1, 2)), strict=True):
            assert share < 0.01, auto.OPERATIONS[number]


def test_tones_equal_torchvision_on_bytes(golden):
    numbers = [auto.NUMBER[name] for name in ("Posterize", "Solarize", "AutoContrast", "Equalize")]
    for image in range(2):
        images = np.repeat(golden["large"][image : image + 1], 4, axis=0)
        ours, _ = run(images, numbers, golden["tone_magnitudes"])
        np.testing.assert_array_equal(np.asarray(ours).astype(np.uint8), golden["toned"][:, image])


def test_segmentation_follows_what_moves_and_nothing_else(golden):
    images = np.repeat(golden["images"][:1], len(auto.OPERATIONS), axis=0)
    segmentation = jnp.asarray(images[..., 0], jnp.int32)
    numbers = np.arange(len(auto.OPERATIONS))
    magnitudes = np.where(numbers <= auto.NUMBER["Rotate"], 3.0, 0.5) * (numbers > 0)
    magnitudes[1:6] = (0.3, 0.3, 3.0, 3.0, 20.0)
    moved, followed = run(images, numbers, magnitudes, segmentation)
    moving = slice(0, auto.NUMBER["Brightness"])
    assert followed.dtype == jnp.int32
    np.testing.assert_array_equal(followed[moving], np.asarray(moved)[moving, ..., 0])
    assert np.any(np.asarray(followed[1:6]) != np.asarray(segmentation[1:6]), axis=(1, 2)).all()
    np.testing.assert_array_equal(followed[auto.NUMBER["Brightness"] :], segmentation[auto.NUMBER["Brightness"] :])


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_colour_leaves_other_channel_counts_alone(channels):
    images = np.random.default_rng(0).uniform(0, 255, (1, 6, 5, channels)).astype(np.float32)
    ours, _ = run(images, [auto.NUMBER["Color"]], [0.7])
    np.testing.assert_allclose(ours, images, atol=1e-3)


def test_magnitudes_are_torchvision_s(golden):
    fraction = jax.random.uniform(jax.random.key(1), (600, 4))
    draw = jax.jit(lambda fraction, level: auto.draw_randaugment(fraction, 13, 17, 2, level))
    signs = set()
    for level in (0, 9, 30):
        for operation in layers(draw(fraction, level)):
            expected = golden["RandAugment"][np.asarray(operation.number), level]
            np.testing.assert_allclose(np.abs(operation.magnitude), expected, atol=1e-5)
            signs |= set(np.unique(np.sign(operation.magnitude)))
    assert signs == {-1.0, 0.0, 1.0}
    (drawn,) = layers(auto.draw_trivialaugment(fraction))
    level = np.minimum((np.asarray(fraction[:, 2]) * 31).astype(int), 30)
    expected = golden["TrivialAugmentWide"][np.asarray(drawn.number), level]
    np.testing.assert_allclose(np.abs(drawn.magnitude), expected, atol=1e-4)
    negative = np.asarray(drawn.magnitude) < 0
    assert set(np.asarray(drawn.number)[negative]) == set(auto.SIGNED)


def test_operations_are_drawn_evenly():
    fraction = jax.random.uniform(jax.random.key(2), (7000, 4))
    for operation in layers(auto.draw_randaugment(fraction, 64, 64, 2, 9)):
        count = np.bincount(operation.number, minlength=14)
        assert np.sum((count - 500) ** 2 / 500) < 34.5  # chi-squared, 13 degrees of freedom, p = 0.001
