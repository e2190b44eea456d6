"""Are the maps what their papers' formulas give, worked out by hand or by loops?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from input_pipeline.cli import UserError
from research.explain import baselines, gradcam, integrated_gradients, methods, occlusion, scorecam, smoothgrad
from research.explain.network import Network
from tests.research.explain import tiny

# Jitted, as they are used, which also compiles one program instead of one for each operation.
activations_and_gradients = jax.jit(gradcam.activations_and_gradients, static_argnames="layer")
upsample = gradcam.upsample
gradcam_plus_plus = jax.jit(gradcam.gradcam_plus_plus, static_argnames=("layer", "epsilon"))
gradcam = jax.jit(gradcam.gradcam, static_argnames="layer")
scorecam = jax.jit(scorecam.scorecam, static_argnames=("layer", "channels_at_once"))
integrated_gradients = jax.jit(integrated_gradients.integrated_gradients, static_argnames="steps")
smoothgrad = jax.jit(smoothgrad.smoothgrad, static_argnames=("samples", "noise"))
occlusion = jax.jit(occlusion.occlusion, static_argnames=("window", "stride", "windows_at_once"))
logits = jax.jit(Network.logits)
TARGETS = jnp.array([2, 0])


def two_layers():
    """The network, its images, and by hand its map A `[B, h, w, c]` and dense kernel `[c, K]`."""
    images = tiny.images(2, 5, 3, 2)
    net = tiny.network(tiny.TwoLayers(), images)
    params = net.variables["params"]
    maps = np.maximum(np.asarray(images) @ np.asarray(params["conv"]["kernel"])[0, 0] + params["conv"]["bias"], 0)
    return net, images, maps, np.asarray(params["logits"]["kernel"])


def test_gradcam_by_hand():
    net, images, maps, kernel = two_layers()
    # The logit's derivative at every place of channel c is kernel[c, k] / (h w), so its mean is that as well.
    expected = [np.maximum((maps[b] * kernel[:, k] / 15).sum(-1), 0) for b, k in enumerate(TARGETS)]
    np.testing.assert_allclose(gradcam(net, images, TARGETS, layer="map"), expected, rtol=1e-5, atol=1e-7)
    assert np.max(expected) > 0


def test_gradcam_is_of_the_logit():
    """A logit that is sure of itself has no gradient of its probability, but its map stays as it is."""
    net, images, _, _ = two_layers()
    before = gradcam(net, images, TARGETS, layer="map")
    bias = net.variables["params"]["logits"]["bias"].at[2].add(100.0)
    params = net.variables["params"]
    sure = net.replace(variables={"params": params | {"logits": params["logits"] | {"bias": bias}}})
    np.testing.assert_array_equal(gradcam(sure, images, TARGETS, layer="map"), before)


def test_gradcam_plus_plus_by_the_papers_derivatives():
    net, images, maps, kernel = two_layers()
    before = np.asarray(logits(net, images), np.float64)
    for b, k in enumerate(TARGETS):
        score = np.exp(before[b, k])
        slope = kernel[:, k].astype(np.float64) / 15  # the same at every place
        first, second, third = (score * slope**power for power in (1, 2, 3))
        alpha = second / (2 * second + maps[b].sum((0, 1)) * third)
        weights = 15 * alpha * np.maximum(first, 0)
        expected = np.maximum((maps[b] * weights).sum(-1), 0) / score
        found = gradcam_plus_plus(net, images, TARGETS, layer="map")[b]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_scorecam_by_loops():
    net, images, maps, _ = two_layers()
    found = scorecam(net, images, TARGETS, layer="map", channels_at_once=3)
    for b, k in enumerate(TARGETS):
        scores = []
        for channel in np.moveaxis(maps[b], -1, 0):
            mask = (channel - channel.min()) / (np.ptp(channel) + 1e-8)
            scores.append(float(logits(net, images[b : b + 1] * mask[None, ..., None])[0, k]))
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(found[b], np.maximum((maps[b] * weights).sum(-1), 0), rtol=1e-4, atol=1e-6)


def test_maps_are_enlarged_between_pixel_centres():
    maps = np.random.default_rng(0).normal(size=(1, 3, 4)).astype(np.float32)
    expected = zoom(maps[0], (4, 3), order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(upsample(jnp.asarray(maps), 12, 12)[0], expected, atol=1e-6)


def test_integrated_gradients_of_a_linear_model():
    weights = np.random.default_rng(1).normal(size=(3, 5, 4, 2))
    images, baseline = tiny.images(2, 5, 4, 2), tiny.images(2, 5, 4, 2, seed=9)
    found, gap = integrated_gradients(tiny.linear(weights), images, TARGETS, baseline, steps=1)
    np.testing.assert_allclose(found, (images - baseline) * weights[np.asarray(TARGETS)], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gap, 0, atol=1e-4)


def test_integrated_gradients_of_powers_and_products():
    """logit 0 = sum x^3 (attribution x^3 - b^3 for b = 0), logit 1 = x0 x1 (each half)."""
    net = Network({}, tiny.Formula(lambda x: jnp.stack([(x**3).sum((1, 2, 3)), x[:, 0, 0, 0] * x[:, 0, 1, 0]], -1)))
    images = tiny.images(2, 3, 3, 1)
    found, gap = integrated_gradients(net, images, jnp.array([0, 1]), jnp.zeros(()), steps=2)  # exact to degree 3
    np.testing.assert_allclose(found[0], images[0] ** 3, rtol=1e-4, atol=1e-6)
    half = float(images[1, 0, 0, 0] * images[1, 0, 1, 0]) / 2
    np.testing.assert_allclose(found[1, 0, :2, 0], [half, half], rtol=1e-5)
    np.testing.assert_allclose(found[1, 1:], 0)
    np.testing.assert_allclose(gap, 0, atol=1e-4)


def test_completeness_gap_falls_with_the_steps():
    images = tiny.images(2, 5, 7, 2)
    net = tiny.network(tiny.TwoLayers(features=9), images)
    gaps = [np.abs(integrated_gradients(net, images, TARGETS, -images, steps=n)[1]).max() for n in (1, 8, 64)]
    assert gaps[0] > 3 * gaps[1] > 3 * gaps[2] and gaps[2] < 5e-3


def test_smoothgrad_without_noise_is_the_gradient_and_with_noise_its_mean():
    net = Network({}, tiny.Formula(lambda x: jnp.stack([(x**3).sum((1, 2, 3)), x.sum((1, 2, 3))], -1)))
    images, targets = tiny.images(2, 3, 5, 2), jnp.array([0, 1])
    keys = jax.random.split(jax.random.key(7), 2)
    plain = smoothgrad(net, images, targets, keys, samples=1, noise=0.0)
    np.testing.assert_allclose(plain, np.stack([3 * images[0] ** 2, np.ones((3, 5, 2))]), rtol=1e-5)
    smooth = smoothgrad(net, images, targets, keys, samples=800, noise=0.2)
    spread = 0.2 * float(images[0].max() - images[0].min())
    # The mean of 3 (x + n)^2 is 3 (x^2 + s^2), with a standard error of a few per cent of s^2.
    np.testing.assert_allclose(smooth[0], 3 * (images[0] ** 2 + spread**2), atol=0.6 * (1 + spread**2))
    np.testing.assert_allclose(smooth[1], 1.0, rtol=1e-5)


@pytest.mark.parametrize("window, stride", [(3, 2), (4, 4), (5, 3)])
def test_occlusion_by_loops(window, stride):
    images, baseline = tiny.images(2, 7, 6, 2), tiny.images(2, 7, 6, 2, seed=5)
    net = tiny.network(tiny.TwoLayers(), images)
    found = occlusion(net, images, TARGETS, baseline, window=window, stride=stride, windows_at_once=3)
    total, count = np.zeros((2, 7, 6)), np.zeros((7, 6))
    plain = np.asarray(logits(net, images))[[0, 1], TARGETS]
    reach = [range(0, side - window + stride, stride) for side in (7, 6)]
    for top in reach[0]:
        for left in reach[1]:
            place = slice(top, top + window), slice(left, left + window)
            covered = np.array(images)
            covered[:, *place] = np.asarray(baseline)[:, *place]
            fall = plain - np.asarray(logits(net, jnp.asarray(covered)))[[0, 1], TARGETS]
            total[:, *place] += fall[:, None, None]
            count[place] += 1
    assert count.min() > 0
    np.testing.assert_allclose(found, total / count, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("window, stride", [(0, 1), (3, 4), (3, 0), (7, 1)])
def test_impossible_windows(window, stride):
    images = tiny.images(1, 7, 6, 2)
    with pytest.raises(ValueError, match="do not fit images of 7 x 6"):
        occlusion(tiny.network(tiny.TwoLayers(), images), images, TARGETS[:1], images, window=window, stride=stride)


def test_baselines():
    raw = jnp.asarray(np.random.default_rng(2).integers(0, 256, (2, 19, 32, 3)), jnp.uint8)

    def normalize(image):
        return image.astype(jnp.float32) / 127.5 - 1

    np.testing.assert_array_equal(baselines.make("black", raw, normalize), -1.0)
    mean = np.asarray(normalize(raw)).mean((1, 2), keepdims=True)
    np.testing.assert_allclose(baselines.make("mean", raw, normalize), np.broadcast_to(mean, raw.shape), atol=1e-6)
    expected = [[gaussian_filter(np.asarray(normalize(raw))[b, ..., c], 19 / 16, mode="nearest", radius=4)
                 for c in range(3)] for b in range(2)]  # fmt: skip
    found = baselines.make("blur", raw, normalize)
    np.testing.assert_allclose(found, np.moveaxis(expected, 1, -1), atol=1e-5)
    with pytest.raises(ValueError, match="no baseline 'white'"):
        baselines.make("white", raw, normalize)


def explainer(net, batch_size, **options):
    return methods.Explainer(net, lambda x: x / 255 - 0.5, batch_size, False, methods.Options(layer="map", **options))


@pytest.mark.parametrize("name", ["gradcam", "integrated_gradients", "smoothgrad", "occlusion"])
def test_batches_change_nothing(name):
    raw = np.random.default_rng(4).uniform(0, 255, (5, 7, 6, 2)).astype(np.float32)
    net = tiny.network(tiny.TwoLayers(), jnp.asarray(raw))
    targets = np.array([0, 1, 2, 0, 1])
    settings = {"steps": 3, "samples": 2, "window": 3}
    whole, gap = explainer(net, 9, **settings).maps(name, raw, targets)
    parts, _ = explainer(net, 2, **settings).maps(name, raw, targets)
    np.testing.assert_allclose(parts, whole, rtol=2e-4, atol=1e-6)
    assert whole.shape == (5, 7, 6) and np.isfinite(whole).all()
    assert (gap is not None) == (name == "integrated_gradients")
    assert methods.METHODS[name].signed or whole.min() >= 0


def test_a_second_input_goes_with_its_image():
    raw = np.random.default_rng(5).uniform(0, 255, (5, 7, 6, 2)).astype(np.float32)
    expression = tiny.images(5, 3, seed=6)
    net = tiny.network(tiny.Shared(), jnp.asarray(raw), expression=expression)
    expected = logits(net, raw / 255 - 0.5)
    np.testing.assert_allclose(explainer(net, 2).logits(raw), expected, rtol=1e-4, atol=1e-5)


def test_options_are_checked():
    like = tiny.images(2, 8, 8, 2)
    net = tiny.network(tiny.TwoLayers(), like)

    def refused(words, names=("gradcam",), network=net, **options):
        with pytest.raises(UserError, match=words):
            methods.check(names, network, like.shape, methods.Options(**options))

    assert methods.check(("gradcam",), net, like.shape, methods.Options()).layer == "map"
    refused("--method=deeplift is unknown; choose of gradcam", ("gradcam", "deeplift"))
    refused("no layer block9; choose of conv, map", layer="block9")
    refused("--layer=conv is of no use to occlusion", ("occlusion",), layer="conv")
    refused("--baseline=white is unknown", baseline="white")
    refused("--window=9 and --stride=4 is impossible", ("occlusion",), window=9)
    refused("feature map of more than one pixel", network=tiny.linear(np.ones((3, 8, 8, 2))))
    pixels = Network({}, tiny.Formula(lambda x: x))
    refused("decides about pixels", network=pixels)
    like = tiny.images(2, 8, 8, 2)
    shared = tiny.network(tiny.Shared(), like, expression=tiny.images(2, 3))
    refused("one pixel large", network=shared, layer="pooled")


def test_a_model_whose_image_has_no_gradient():
    raw = np.full((2, 6, 6, 2), 9.0, np.float32)
    weights = np.ones((3, 6, 6, 2), np.float32)
    resting = Network({}, tiny.Formula(lambda x: jnp.einsum("bhwc,khwc->bk", jax.lax.stop_gradient(x), weights)))
    for name in ("integrated_gradients", "smoothgrad"):
        with pytest.raises(UserError, match="no gradient of this model reaches its image"):
            explainer(resting, 2, baseline="black").maps(name, raw, np.array([0, 1]))
    maps, _ = explainer(resting, 2, baseline="black").maps("occlusion", raw, np.array([0, 1]))
    np.testing.assert_allclose(maps, 2 * 9 / 255, rtol=1e-2)  # windows of one pixel


def test_a_constant_image_and_a_map_of_zeros():
    images = jnp.zeros((1, 5, 5, 2))
    net = tiny.network(tiny.TwoLayers(), images)
    activation, gradients = activations_and_gradients(net, images, TARGETS[:1], layer="map")
    assert activation.shape == gradients.shape == (1, 5, 5, 4)
    for method in (gradcam, gradcam_plus_plus, scorecam):
        np.testing.assert_array_equal(method(net, images, TARGETS[:1], layer="map"), 0.0)
