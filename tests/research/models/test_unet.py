"""Does the U-Net give logits for every pixel, of any size, with any family as its encoder?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.models import registry, unet
from research.models.initialize import initialize

ENCODERS = {
    "efficientnet_b0": (97, {}),
    "simple_cnn": (51, {"widths": (4, 6, 8)}),
    "cnn2": (45, {}),
    "resnet18": (61, {}),
    "vgg16": (65, {"top": False}),
    "inception_v3": (111, {}),
    "xception": (90, {}),
    "grid_cnn": (40, {"filters": (4, 6, 8), "kernels": (3, 3, 3), "dense": ()}),
}


def build(encoder: str, options: dict, **more):
    given = {"decoder": (8, 8, 6, 6, 4)} | more
    return registry.create("unet", num_classes=2, encoder=encoder, encoder_options=options, **given)


def shapes(model, size: int):
    images = jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32)

    def run(key, x):
        return model.init_with_output({"params": key}, {"image": x}, train=False)

    return jax.eval_shape(run, jax.random.key(0), images)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_family_gives_logits_for_every_pixel(encoder):
    size, options = ENCODERS[encoder]
    output, variables = shapes(build(encoder, options), size)
    assert output.logits.shape == (2, size, size, 2) and output.logits.dtype == jnp.float32
    assert output.features.shape == (2, size, size, 4)
    assert all(path in variables["params"]["backbone"] for path in ("encoder", "decoder_1_1", "decoder_1_2"))


def test_the_skips_of_efficientnet_are_those_of_segmentation_models():
    """The expanded inputs of the reducing blocks, and the top (qubvel's `segmentation_models`, backbones factory)."""
    body = registry.backbone("efficientnet_b0")
    maps = jax.eval_shape(
        lambda: body.init_with_output(jax.random.key(0), jnp.zeros((1, 96, 96, 3)), train=False)[0][1]
    )
    found = [value.shape for value in unet.by_resolution(maps)]
    assert found == [(1, 3, 3, 1280), (1, 6, 6, 672), (1, 12, 12, 240), (1, 24, 24, 144), (1, 48, 48, 96)]


@pytest.mark.parametrize("widths", [(5,), (7, 6, 5), (9, 8, 7, 6, 5, 4, 3)])
def test_a_decoder_ends_early_or_takes_the_last_widths(widths):
    output, variables = shapes(build("simple_cnn", {"widths": (4, 6, 8)}, decoder=widths), 30)
    assert output.logits.shape == (2, 30, 30, 2)
    steps = min(len(widths), 2)  # 7 to 15 to 30 pixels; the first map has the size of the image
    assert output.features.shape[-1] == widths[-1]
    assert [name for name in variables["params"]["backbone"] if name.endswith("_1")] == [
        f"decoder_{step}_1" for step in range(1, steps + 1)
    ]


def test_enlarging():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    odd = unet.enlarge(x, 3, 6)
    np.testing.assert_array_equal(odd[0, ..., 0], [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]])
    assert unet.enlarge(x, 2, 3) is x
    other = unet.enlarge(x, 5, 7)
    np.testing.assert_allclose(other, jax.image.resize(x, (1, 5, 7, 1), "linear"))


def test_logits_and_gradients_at_an_odd_size():
    model = build("simple_cnn", {"widths": (4, 6, 8)})
    variables = initialize(model, jax.random.key(1), 21, 1)
    images = jax.random.normal(jax.random.key(2), (3, 21, 21, 1))

    def loss(params):
        output, _ = model.apply(variables | {"params": params}, {"image": images}, train=True, mutable=["batch_stats"])
        return jnp.sum(output.logits**2)

    value, gradient = jax.jit(jax.value_and_grad(loss))(variables["params"])
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_a_pixel_far_away_changes_nothing():
    """The logits of a pixel come from its surroundings: the maps are put together without a shift."""
    model = build("simple_cnn", {"widths": (4, 6)}, decoder=(4,), convolutions=1)
    variables = initialize(model, jax.random.key(1), 40, 1)
    images = jnp.zeros((1, 40, 40, 1))
    apply = jax.jit(lambda x: model.apply(variables, {"image": x}, train=False).logits)
    moved = np.abs(apply(images.at[0, 10, 30].set(9.0)) - apply(images))[0].max(-1)
    rows, columns = np.nonzero(moved)
    assert abs(rows.mean() - 10) < 1 and abs(columns.mean() - 30) < 1 and rows.max() < 20 and columns.min() > 20


def test_mistakes_are_named():
    with pytest.raises(UserError, match="the encoder unet segments itself"):
        build("unet", {})
    with pytest.raises(UserError, match="there is no model 'unknown_net'"):
        build("unknown_net", {})
    with pytest.raises(UserError, match="simple_cnn has no option depth"):
        build("simple_cnn", {"depth": 3})
    for more in ({"decoder": ()}, {"decoder": (8, 0)}, {"convolutions": 0}):
        with pytest.raises(UserError, match="cannot be built"):
            build("simple_cnn", {}, **more)
