"""What do specifications of layers mean, and which mistakes are named?"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from input_pipeline.cli import UserError
from research.models import registry
from research.training import freezing, optimizers
from research.training.freezing import Layers

NAMES = {  # ours: Keras, timm
    "backbone/stem": ("stem_conv", "conv1"),
    "backbone/stem_norm": ("stem_bn", "bn1"),
    "backbone/block1/conv": ("block2_conv", "block1.conv"),
    "backbone/block1/norm": ("block2_conv_bn", "block1.bn"),
    "backbone/block2/conv": ("block12_sepconv1:pointwise_kernel", "block2.conv"),
    "backbone/block2/norm": ("block12_sepconv1_bn", "block2.bn"),
    "head/dense_1": None,
    "head/logits": ("predictions", "fc"),
}


def parameters(layer: str) -> tuple[str, ...]:
    norm = layer.endswith("norm")
    return tuple(f"{layer}/{kind}" for kind in (("scale", "bias") if norm else ("kernel", "bias")))


LAYERS = Layers(
    {layer: parameters(layer) for layer in NAMES},
    {
        library: {ours: theirs[i] for ours, theirs in NAMES.items() if theirs}
        for i, library in enumerate(("keras", "timm"))
    },
)


def meant(specification: str) -> set[str]:
    """Layers all of whose parameters are meant; fails if a layer is meant in part."""
    paths = set(freezing.select(LAYERS, specification))
    layers = {path.rpartition("/")[0] for path in paths}
    assert paths == {path for layer in layers for path in LAYERS.parameters[layer]}
    return {layer.removeprefix("backbone/") for layer in layers}


@pytest.mark.parametrize(
    ("specification", "expected"),
    [
        ("head", "head/dense_1 head/logits"),
        ("head/logits", "head/logits"),
        ("backbone/block2", "block2/conv block2/norm"),
        ("here:stem", "stem"),
        ("backbone/stem", "stem"),
        ("block12", "block2/conv block2/norm"),
        ("block12_sepconv1", "block2/conv"),
        ("keras:block2", "block1/conv block1/norm"),
        ("timm:block2", "block2/conv block2/norm"),
        ("block2.bn", "block2/norm"),
        ("bn1", "stem_norm"),
        ("fc", "head/logits"),
        ("last 3 layers", "block1/norm block2/conv block2/norm"),
        ("first 1 layer", "stem"),
        ("first 1 block", "stem stem_norm"),
        ("last 2 blocks", "block1/conv block1/norm block2/conv block2/norm"),
        ("last 1 of 2 groups", "block1/conv block1/norm block2/conv block2/norm"),
        ("first 1 of 2 groups", "stem stem_norm"),
        ("^backbone/.*norm", "stem_norm block1/norm block2/norm"),
    ],
)
def test_meanings(specification, expected):
    assert meant(specification) == set(expected.split())


def test_a_parameter_can_be_named():
    assert freezing.select(LAYERS, "head/logits/kernel") == ("head/logits/kernel",)
    assert len(freezing.select(LAYERS, ".*/kernel$")) == 5


@pytest.mark.parametrize(
    ("specification", "words"),
    [
        ("block3", "'block3' names no layer.*similar: block"),
        ("stm", "similar: stem"),
        ("block2", "ambiguous.*'here:block2' is .*; 'keras:block2' is .*"),
        ("^bakbone/", "matches no parameter"),
        ("(", "no regular expression"),
        ("last 9 layers", "6 layers; give 1 to 6"),
        ("last 0 blocks", "3 blocks"),
        ("last 1 of 7 groups", "3 blocks make no 7 groups"),
        ("last 3 of 2 groups", "2 groups"),
        ("torchvision:fc", "names no layer"),
    ],
)
def test_mistakes_are_named(specification, words):
    with pytest.raises(UserError, match=words):
        freezing.select(LAYERS, specification)


def test_trained_and_resting():
    train = freezing.trainable(LAYERS, train=("head", "last 1 block"))
    freeze = freezing.trainable(LAYERS, freeze=("first 2 blocks",))
    assert train == freeze and len(train) == 8
    assert freezing.trainable(LAYERS) == LAYERS.paths
    with pytest.raises(UserError, match="leaves no parameter"):
        freezing.trainable(LAYERS, freeze=("backbone", "head"))
    (expression,) = freezing.resting_norms(LAYERS, train)
    found = [layer for layer in LAYERS.parameters if re.search(expression, layer)]
    assert found == ["backbone/stem_norm", "backbone/block1/norm"]
    # A BatchNorm of which one parameter is trained does not rest.
    kept = freezing.trainable(LAYERS, freeze=(".*/scale$",))
    assert freezing.resting_norms(LAYERS, kept) == ()


def test_layers_of_a_model_stand_in_the_order_of_their_calls():
    model = registry.create("simple_cnn", num_classes=3, widths=(4, 6), head=(5,), head_batch_norm=True)
    layers = freezing.describe(model, 16, 3)
    assert list(layers.parameters) == [
        "backbone/block_1_1/conv", "backbone/block_1_1/norm", "backbone/block_2_1/conv", "backbone/block_2_1/norm",
        "head/norm", "head/dense_1", "head/logits",
    ]  # fmt: skip
    assert [len(block) for block in layers.blocks] == [2, 2]
    shapes = jax.eval_shape(
        lambda: model.init({"params": jax.random.key(0)}, {"image": jnp.zeros((1, 16, 16, 3))}, train=False)
    )
    assert sorted(layers.paths) == sorted(freezing.unordered(shapes["params"]).paths)


def test_layer_decay_counts_blocks_from_the_head():
    settings = common.default().optimizer
    settings.layer_decay, settings.rates = 0.5, (("head", 4.0), ("^backbone/stem/", 2.0))
    factors = optimizers.factors(LAYERS, settings)
    by_layer = {path.rpartition("/")[0]: factor for path, factor in factors.items()}
    assert by_layer == {
        "backbone/stem": 0.25, "backbone/stem_norm": 0.125, "backbone/block1/conv": 0.25, "backbone/block1/norm": 0.25,
        "backbone/block2/conv": 0.5, "backbone/block2/norm": 0.5, "head/dense_1": 4.0, "head/logits": 4.0,
    }  # fmt: skip
    settings.layer_decay, settings.rates = 1.0, ()
    assert optimizers.factors(LAYERS, settings) == {}


def test_pairs_of_the_config():
    assert optimizers.pairs((("head", 2), ["a", 0.5]), "x") == (("head", 2.0), ("a", 0.5))
    for value in (("head", 2.0), (("head", 0.0),), (("head", float("nan")),), (("head", "2"),), "head", (("head",),)):
        with pytest.raises(UserError, match="config.x"):
            optimizers.pairs(value, "x")


STUDIES = {  # model: what the gene expression study trained of it, parameters that Keras 3.15 counts in these layers
    "resnet50": (("conv5_block3",), 4_465_664),
    "vgg19": (("block5_conv4",), 2_359_808),
    "densenet169": (("conv5_block32", "bn"), 252_608),
    "xception": (("block14",), 4_748_800),
}


@pytest.mark.parametrize("name", STUDIES)
def test_what_the_gene_expression_study_trained(name):
    specifications, expected = STUDIES[name]
    entry, _ = registry.find(name)
    model = registry.create(name, num_classes=33, variant="keras" if "keras" in entry.variants else "")
    layers = freezing.describe(model, 128, 3, entry.names)
    shapes = jax.eval_shape(
        lambda: model.init({"params": jax.random.key(0)}, {"image": jnp.zeros((1, 128, 128, 3))}, train=False)
    )
    sizes = {path: np.prod(leaf.shape) for path, leaf in freezing.flatten(shapes["params"]).items()}
    trained = freezing.trainable(layers, train=specifications)
    assert sum(sizes[path] for path in trained) == expected
