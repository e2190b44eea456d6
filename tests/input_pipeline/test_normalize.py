"""Do the normalisations and the statistics of a dataset equal their definitions?"""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import normalize
from input_pipeline.cli import UserError


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(4).integers(0, 256, (3, 7, 5, 3)).astype(np.uint8)


def test_fixed_is_minus_one_to_one_unless_told_otherwise(images):
    ours = normalize.make("fixed")(jnp.asarray(images))
    np.testing.assert_allclose(ours, images / 127.5 - 1, atol=1e-6)
    given = normalize.make("fixed", {"mean": [0.1, 0.2, 0.3], "std": 0.25})(jnp.asarray(images))
    np.testing.assert_allclose(given, (images / 255 - [0.1, 0.2, 0.3]) / 0.25, atol=1e-5)


def test_sixteen_bits_and_floats_mean_the_same(images):
    for kind in ("fixed", "per_image", "channel_intensity", "raw", "caffe"):
        function = jax.jit(normalize.make(kind))
        expected = function(jnp.asarray(images))
        wide = jnp.asarray(images.astype(np.uint16) * 257)
        np.testing.assert_allclose(function(wide), expected, rtol=1e-6, atol=2e-5)
        np.testing.assert_allclose(function(jnp.asarray(images.astype(np.float32))), expected, atol=1e-6)
        assert expected.dtype == jnp.float32


def test_raw_and_caffe_as_keras_defines_them(images):
    """keras.applications.imagenet_utils.preprocess_input(mode="caffe"), written out."""
    np.testing.assert_array_equal(normalize.make("raw")(jnp.asarray(images)), images.astype(np.float32))
    expected = images[..., ::-1].astype(np.float64) - [103.939, 116.779, 123.68]
    np.testing.assert_allclose(normalize.make("caffe")(jnp.asarray(images)), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_numbers_of_rgb_weights_go_with_the_kernels_that_are_adapted(channels):
    """Kernels of the first layer and means change alike, so that an image of the means gives zero everywhere."""
    from research.models.pretrained import adapt

    means = np.array(normalize.CAFFE_MEANS)
    np.testing.assert_allclose(normalize.for_channels(means, channels), adapt.input_statistics(means, channels))
    image = np.zeros((1, 2, 2, channels)) + np.asarray(normalize.for_channels(means, channels))
    image = image if channels < 3 else np.concatenate([image[..., 2::-1], image[..., 3:]], -1)
    np.testing.assert_allclose(normalize.make("caffe")(jnp.asarray(image, jnp.float32)), 0, atol=1e-4)


def test_dataset_statistics_give_zero_mean_and_unit_variance(images):
    statistics = normalize.dataset_statistics(list(images))
    ours = np.asarray(normalize.make("dataset", statistics)(jnp.asarray(images)), np.float64)
    np.testing.assert_allclose(ours.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(ours.std(axis=(0, 1, 2)), 1, atol=1e-5)


def test_per_image(images):
    values = images.astype(np.float64)
    mean, deviation = values.mean(axis=(1, 2, 3), keepdims=True), values.std(axis=(1, 2, 3), keepdims=True)
    ours = normalize.make("per_image")(jnp.asarray(images))
    np.testing.assert_allclose(ours, (values - mean) / deviation, atol=1e-5)


def test_channel_intensity(images):
    values = images.astype(np.float64)
    ours = normalize.make("channel_intensity")(jnp.asarray(images))
    np.testing.assert_allclose(ours, values / values.mean(axis=(1, 2), keepdims=True) - 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["per_image", "channel_intensity"])
def test_a_flat_image_gives_zero_not_nan(kind):
    for value in (0, 200):
        ours = normalize.make(kind)(jnp.full((2, 4, 4, 3), value, jnp.uint8))
        np.testing.assert_array_equal(ours, 0)


def test_statistics_equal_numpy_whatever_the_batches(images):
    statistics = normalize.dataset_statistics([images[:1], images[1:]])
    np.testing.assert_allclose(statistics["mean"], (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(statistics["std"], (images / 255).std(axis=(0, 1, 2)), rtol=1e-12)
    assert statistics["images"] == 3
    reversed_order = normalize.dataset_statistics(images[::-1])
    assert reversed_order == statistics  # to the last bit
    wide = normalize.dataset_statistics(iter([images.astype(np.uint16) * 257]))
    assert wide == statistics
    assert all(isinstance(value, float) for value in statistics["mean"] + statistics["std"])


def test_statistics_leave_padding_out_and_take_sizes_as_they_come(images):
    padded = {"image": images, "valid": np.array([True, False, True])}
    expected = normalize.dataset_statistics([images[0], images[2]])
    assert normalize.dataset_statistics([padded]) == expected
    oblong = [images[0], np.zeros((2, 3, 3), np.uint8)]
    pixels = np.concatenate([image.reshape(-1, 3) for image in oblong]) / 255
    np.testing.assert_allclose(normalize.dataset_statistics(oblong)["std"], pixels.std(axis=0), rtol=1e-12)


def test_statistics_of_a_dataset_read_only_its_indices_spread_evenly(images, monkeypatch):
    read = []

    def encoded(index):
        read.append(index)
        return index

    module = types.ModuleType("input_pipeline.images")
    module.decode = lambda data, channels: images[data % 3]
    monkeypatch.setitem(sys.modules, "input_pipeline.images", module)
    dataset = types.SimpleNamespace(encoded=encoded, channels=3)
    statistics = normalize.dataset_statistics(dataset, np.arange(4, 10))
    assert read == list(range(4, 10)) and statistics["images"] == 6
    np.testing.assert_allclose(statistics["mean"], (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    read.clear()
    assert normalize.dataset_statistics(dataset, np.arange(100), limit=5)["images"] == 5
    assert read == [0, 25, 50, 74, 99]


def test_a_constant_channel_of_the_dataset_is_centred_only():
    statistics = normalize.dataset_statistics([np.full((2, 3, 3, 1), 51, np.uint8)])
    assert statistics["std"] == [0.0]
    ours = normalize.make("dataset", statistics)(jnp.full((1, 3, 3, 1), 51, jnp.uint8))
    np.testing.assert_allclose(ours, 0, atol=1e-6)


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: normalize.make("minmax"), "must be one of fixed"),
        (lambda: normalize.make("dataset"), "needs the mean and std"),
        (lambda: normalize.make("fixed", {"mean": 0.5, "std": 0.0}), "positive deviations"),
        (
            lambda: normalize.make("fixed", {"mean": [0.5] * 3, "std": [0.5] * 3})(jnp.zeros((1, 2, 2, 4))),
            "have 4",
        ),
        (lambda: normalize.dataset_statistics([]), "no training image"),
        (
            lambda: normalize.dataset_statistics([np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 1), np.uint8)]),
            "3 and 1",
        ),
        (lambda: normalize.dataset_statistics([np.zeros((2, 2, 3), np.float32)]), "uint8 or uint16"),
    ],
)
def test_a_mistake_is_one_sentence(call, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)
