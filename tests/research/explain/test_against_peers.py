"""Do the methods give what Captum, pytorch-grad-cam and scikit-image give, on weights imported from timm's file?"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.explain.gradcam import activations_and_gradients, gradcam, gradcam_plus_plus, upsample
from research.explain.integrated_gradients import integrated_gradients
from research.explain.network import Network
from research.explain.occlusion import occlusion
from research.explain.randomization import ssim
from research.explain.scorecam import scorecam
from research.models import registry
from research.models.initialize import initialize
from research.models.pretrained.loading import plan
from tests.golden import make_explain_golden as golden
from tests.research.models.pretrained.weights import resnet18_state, write_safetensors

GOLDEN = np.load(golden.FILE)
TARGETS = jnp.asarray(golden.TARGETS)


def relative_error(found, expected) -> float:
    """Largest difference, as a share of the largest value."""
    assert found.shape == expected.shape
    return float(np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Network:
    """ResNet-18 with the golden weights, read from a file as timm writes it."""
    shapes = {name: value.shape for name, value in resnet18_state(golden.CLASSES).items()}
    file = write_safetensors(tmp_path_factory.mktemp("weights") / "resnet18.safetensors", golden.weights(shapes))
    model = registry.create("resnet18", num_classes=golden.CLASSES)
    variables, report = plan("resnet18", "", str(file)).load(model, initialize(model, jax.random.key(0), 64, 3))
    assert not report["missing"] and not report["replaced_head"]
    return Network(variables, model)


@pytest.fixture(scope="module")
def layers(resnet) -> dict:
    """Activations and gradients of every golden layer, from one program."""

    @jax.jit
    def run(network, images):
        return {ours: activations_and_gradients(network, images, TARGETS, ours) for ours in golden.LAYERS.values()}

    return run(resnet, jnp.asarray(golden.images(golden.LARGE)))


@pytest.fixture
def of_layer(monkeypatch, layers):
    """Makes the maps of a layer out of what the fixture `layers` holds, without compiling each layer again."""
    from research.explain import gradcam as module

    monkeypatch.setattr(module, "activations_and_gradients", lambda network, images, targets, layer: layers[layer])


def test_logits_are_the_references(resnet):
    images = jnp.asarray(golden.images(golden.LARGE))
    assert relative_error(jax.jit(Network.logits)(resnet, images), GOLDEN["logits"]) < 1e-4


@pytest.mark.parametrize("theirs", golden.LAYERS)
def test_gradcam(of_layer, theirs):
    maps = gradcam(None, None, None, golden.LAYERS[theirs])
    assert relative_error(maps, GOLDEN[f"captum_gradcam/{theirs}"]) < 1e-3
    assert relative_error(maps, GOLDEN[f"gradcam/{theirs}"]) < 1e-3


def test_gradcam_enlarged_is_the_final_picture(of_layer):
    maps = np.asarray(upsample(gradcam(None, None, None, golden.LAYERS["layer3"]), *golden.LARGE))
    low = maps.min((1, 2), keepdims=True)
    maps = (maps - low) / (maps - low).max((1, 2), keepdims=True)
    final = GOLDEN["gradcam_final/layer3"]
    # The reference scales to 0..1 before it enlarges as well; only affine, so the second scaling undoes the difference.
    assert relative_error(maps[:, ::5, ::3], final) < 1e-3


@pytest.mark.parametrize("theirs", golden.LAYERS)
def test_gradcam_plus_plus(of_layer, theirs):
    same = gradcam_plus_plus(None, None, None, golden.LAYERS[theirs], epsilon=1e-6)
    assert relative_error(same, GOLDEN[f"gradcam++/{theirs}"]) < 1e-3
    if "conv1" not in theirs:  # where maps are rectified, the reference's epsilon hardly matters
        exact = gradcam_plus_plus(None, None, None, golden.LAYERS[theirs])
        assert relative_error(exact, GOLDEN[f"gradcam++/{theirs}"]) < 0.02


def test_scorecam(resnet):
    theirs, ours = golden.SCORE_LAYER
    images = jnp.asarray(golden.images(golden.SMALL))
    maps = jax.jit(functools.partial(scorecam, layer=ours))(resnet, images, TARGETS)
    assert relative_error(maps, GOLDEN[f"scorecam/{theirs}"]) < 1e-3


def test_integrated_gradients(resnet):
    images = jnp.asarray(golden.images(golden.SMALL))
    method = jax.jit(functools.partial(integrated_gradients, steps=golden.IG_STEPS))
    attributions, gap = method(resnet, images, TARGETS, jnp.full((1, 1, 1, 1), 0.25))
    assert relative_error(attributions.sum(-1), GOLDEN["ig"]) < 1e-3
    assert relative_error(attributions.sum((1, 2)), GOLDEN["ig_channels"]) < 1e-3
    assert relative_error(gap, GOLDEN["ig_gap"]) < 1e-3


def test_occlusion(resnet):
    images = jnp.asarray(golden.images(golden.SMALL))
    method = jax.jit(functools.partial(occlusion, window=golden.WINDOW, stride=golden.STRIDE))
    maps = method(resnet, images, TARGETS, jnp.full(images.shape, 0.25))
    assert relative_error(maps, GOLDEN["occlusion"]) < 1e-3


def test_ssim():
    first, second = (golden.images(golden.SMALL)[i, ..., 0] / 6 + 0.5 for i in range(2))
    others = (0 * second, 0.1 * (second - 0.5), second - first)
    found = [ssim(first, first + other) for other in others]
    np.testing.assert_allclose(found, GOLDEN["ssim"], rtol=0, atol=1e-5)
