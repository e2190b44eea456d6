"""Is every layer found by name, in order, and does the network fall into two halves that are the network?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.explain import methods, network
from research.explain.network import Network, NoSuchLayer
from research.models import registry
from tests.research.explain import tiny


def test_layers_are_listed_in_the_order_of_computing():
    like, extra = tiny.images(2, 5, 7, 2), tiny.images(2, 3)
    net = tiny.network(tiny.Shared(), like, expression=extra)
    found = network.layers(net, like)
    assert [(layer.name, layer.shape, layer.feature_map) for layer in found] == [
        ("conv", (5, 7, 2), False),
        ("early", (5, 7, 2), True),
        ("conv#2", (5, 7, 2), False),
        ("pooled", (1, 1, 2), True),
    ]
    assert network.default_layer(net, like) == "early"  # the last map with more than one pixel


@pytest.mark.parametrize("layer", ["conv", "early", "conv#2", "pooled"])
def test_the_two_halves_are_the_network(layer):
    like, extra = tiny.images(2, 5, 7, 2), tiny.images(2, 3, seed=1)
    net = tiny.network(tiny.Shared(), like, expression=extra)
    activation, rest = jax.jit(lambda net, x: (lambda cut: (cut[0], cut[1](cut[0])))(network.cut(net, x, layer)))(
        net, like
    )
    np.testing.assert_allclose(rest, net.logits(like), rtol=1e-5, atol=1e-6)
    # Every reader of a layer gets what stands in its place: the shared convolution's first output has two.
    changed = network.cut(net, like, layer)[1](activation + 1.0)
    assert np.abs(changed - rest).max() > 1e-3


def test_gradient_of_a_layer_is_the_difference_quotient():
    like, extra = tiny.images(1, 4, 5, 2), tiny.images(1, 3, seed=1)
    net = tiny.network(tiny.Shared(), like, expression=extra)
    with jax.enable_x64(True):
        net = jax.tree.map(lambda x: x.astype(jnp.float64), net)

        @jax.jit
        def compare(net, images):
            activation, rest = network.cut(net, images, "conv")
            step = jnp.zeros(activation.shape, activation.dtype).at[0, 2, 3, 1].set(1e-2)
            quotient = (rest(activation + step)[0, 1] - rest(activation - step)[0, 1]) / 2e-2
            return jax.grad(lambda x: rest(x)[0, 1])(activation)[0, 2, 3, 1], quotient

        gradient, quotient = compare(net, like.astype(jnp.float64))
        assert abs(gradient) > 1e-3
        np.testing.assert_allclose(gradient, quotient, rtol=2e-3)


def test_unknown_layer():
    like = tiny.images(1, 4, 4, 1)
    with pytest.raises(NoSuchLayer, match="conv9"):
        network.cut(tiny.network(tiny.TwoLayers(), like), like, "conv9")


@pytest.mark.parametrize(
    "name, layer",
    [("vgg16", "pool5"), ("simple_cnn", "block_4"), ("merged", "merge")],
)
def test_maps_of_registered_models(name, layer):
    """Also maps that no module returns, such as the ReLUs behind VGG's convolutions. Shapes only."""
    model = registry.create(name, num_classes=3)
    image = jax.ShapeDtypeStruct((2, 75, 75, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), {"image": x}, train=False), image)
    net = Network(variables, model)
    options = methods.check(("gradcam",), net, image.shape, methods.Options())
    assert options.layer == layer
    if name == "vgg16":  # too many to list
        with pytest.raises(UserError, match="no layer backbone/block5_conv; choose of block1, .*pool5, .*block5_conv1"):
            methods.check(("gradcam",), net, image.shape, methods.Options(layer="backbone/block5_conv"))
    found = network.layers(net, image)
    maps = [item for item in found if item.feature_map]
    assert len(maps) >= 4 and len(found) > len(maps)
    for item in (maps[0], maps[-1]):
        given = jax.eval_shape(lambda n, x, item=item: network.cut(n, x, item.name)[0], net, image)
        assert given.shape == (2, *item.shape)
