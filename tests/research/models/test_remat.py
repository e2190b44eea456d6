"""Are gradients the same, from less, where blocks are computed again?"""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.models import registry
from research.models.classifier import Classifier
from research.models.heads import Head
from research.models.layers import ConvBatchNorm, Dropout
from research.models.lowering import lowering_for
from research.models.remat import recomputed_blocks
from tests.research.models.test_models import FAMILIES, init_shapes, train_outputs, with_slow


class Block(nn.Module):
    """With a block inside, statistics, and a mask to draw."""

    is_block = True

    @nn.compact
    def __call__(self, inputs, *, train):
        outputs = ConvBatchNorm(5, momentum=0.9, name="inner")(inputs, train=train)
        return inputs + Dropout(0.4)(outputs, train=train)


class Backbone(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        outputs = ConvBatchNorm(5, momentum=0.9, name="stem")(images, train=train)
        for number in range(3):
            outputs = Block(name=f"block{number}")(outputs, train=train)
        return outputs.mean((1, 2)), {"last": outputs}


def kept_bytes(function, *arguments) -> int:
    """Bytes that autodiff keeps for the backward pass, the arguments included."""
    kept = jax.eval_shape(lambda *given: jax.vjp(function, *given)[1], *arguments)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def test_the_gradients_are_the_same():
    model = Classifier(Backbone(), Head(num_classes=3))
    images = jax.random.normal(jax.random.key(0), (6, 9, 7, 2))
    variables = model.init(jax.random.key(1), {"image": images}, train=False)

    def gradients(remat: bool):
        def loss(params):
            with recomputed_blocks() if remat else contextlib.nullcontext():
                output, updates = model.apply(
                    variables | {"params": params}, {"image": images}, train=True,
                    rngs={"dropout": jax.random.key(2)}, mutable=["batch_stats"],
                )  # fmt: skip
            return jnp.sum(jnp.sin(output.logits)), updates

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients(True), gradients(False))


@pytest.mark.parametrize("name", with_slow(
    ["resnet18", "densenet121", "efficientnet_b0", "inception_v3", "inception_resnet_v2", "xception"],
    "densenet121|inception_resnet_v2",
))  # fmt: skip
def test_less_is_kept(name):
    """Half at most, on GPU, at the smallest size of the tests, where kernels are a large part of it."""
    model = registry.create(name, num_classes=3)
    variables = init_shapes(model, *FAMILIES[name], 3)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
    batch = jax.ShapeDtypeStruct((8, *FAMILIES[name], 3), jnp.float32)

    def logits(params, batch):
        return train_outputs(model, zeros | {"params": params}, batch)[0].logits

    given = jax.tree.leaves((variables["params"], batch))
    arguments = sum(leaf.size * leaf.dtype.itemsize for leaf in given)
    with lowering_for("cuda"):
        whole = kept_bytes(logits, variables["params"], batch)
        with recomputed_blocks():
            less = kept_bytes(logits, variables["params"], batch)
    assert 0 < less - arguments < 0.5 * (whole - arguments)


def test_a_model_without_blocks_is_refused():
    model = registry.create("vgg16", num_classes=3)
    variables = init_shapes(model, 33, 47, 3)
    batch = jax.ShapeDtypeStruct((2, 33, 47, 3), jnp.float32)
    with pytest.raises(UserError, match="no blocks"), recomputed_blocks():
        jax.eval_shape(functools.partial(train_outputs, model), variables, batch)
