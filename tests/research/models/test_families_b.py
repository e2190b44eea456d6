"""Are EfficientNet and Xception as large, as deep and as named as in the libraries that they follow?"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from input_pipeline import cli
from research.models import efficientnet, registry, xception
from research.models.initialize import count_parameters
from research.models.layers import DropPath

# Parameters, and parameters with running statistics, as timm 1.0 and torchvision 0.28 count; Keras's EfficientNets have
# seven statistics more, of which `count` is not kept here.
EFFICIENTNETS = {
    "b0": (5_288_548, 5_330_564),
    "b1": (7_794_184, 7_856_232),
    "b2": (9_109_994, 9_177_562),
    "b3": (12_233_232, 12_320_528),
    "b4": (19_341_616, 19_466_816),
    "b5": (30_389_784, 30_562_520),
    "b6": (43_040_704, 43_265_136),
    "b7": (66_347_960, 66_658_680),
}
XCEPTION = (22_855_952, 22_910_480)


@functools.cache
def variable_shapes(name, channels=3, **options):
    """Shapes of the variables, without computing anything."""
    model = registry.create(name, num_classes=1000, **options)
    inputs = {"image": jax.ShapeDtypeStruct((2, 32, 32, channels), jnp.float32)}
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), inputs)


def output_shapes(name, height, width, channels, **options):
    """Shapes and types of the outputs in training, bfloat16."""
    variables = variable_shapes(name, channels, **options)
    model = registry.create(name, num_classes=1000, dtype=jnp.bfloat16, **options)
    inputs = {"image": jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)}
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    return jax.eval_shape(apply, variables, inputs)[0]


def modules(variables):
    return list(dict.fromkeys("/".join(path[1:-1]) for path in flatten_dict(variables)))


def counts(variables):
    return count_parameters(variables["params"]), count_parameters(variables)


@pytest.mark.parametrize("size", EFFICIENTNETS)
def test_efficientnet_sizes(size):
    variables = variable_shapes(f"efficientnet_{size}", variant="keras")
    expected = EFFICIENTNETS[size]
    assert counts(variables) == (expected[0], expected[1] + 6)
    row = next(line for line in efficientnet.__doc__.splitlines() if line.split()[:1] == [size])
    assert row.split()[1:3] == [f"{number:,}" for number in expected]


@pytest.mark.parametrize("variant", ["timm", "torchvision", "tf"])
def test_variants_of_efficientnet_have_the_same_parameters(variant):
    variables = variable_shapes("efficientnet_b0", variant=variant)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert counts(variables) == EFFICIENTNETS["b0"]


@pytest.mark.parametrize("variant", ["keras", "timm"])
def test_size_of_xception(variant):
    assert counts(variable_shapes("xception", variant=variant)) == XCEPTION
    assert all(f"{number:,}" in xception.__doc__ for number in XCEPTION)


@pytest.mark.parametrize(
    "name, variant, epsilon, momentum",
    [
        ("efficientnet_b4", "timm", 1e-5, 0.9),
        ("efficientnet_b5", "timm", 1e-5, 0.9),
        ("efficientnet_b4", "torchvision", 1e-5, 0.9),
        ("efficientnet_b5", "torchvision", 1e-3, 0.99),
        ("tf_efficientnet_b7", "", 1e-3, 0.9),
        ("EfficientNetB2", "keras", 1e-3, 0.99),
        ("legacy_xception", "", 1e-5, 0.9),
        ("Xception", "", 1e-3, 0.99),
    ],
)
def test_batch_norm_of_the_variants(name, variant, epsilon, momentum):
    backbone = registry.create(name, num_classes=2, variant=variant).backbone
    found = backbone.form.epsilon if hasattr(backbone, "form") else backbone.epsilon
    assert (found, backbone.momentum) == (epsilon, momentum)
    backbone = registry.create(name, num_classes=2, variant=variant, batch_norm_momentum=0.5).backbone
    assert backbone.momentum == 0.5


@pytest.mark.parametrize("variant", ["timm", "keras"])
def test_efficientnet_gives_the_maps_of_stages_and_decoders(variant):
    output = output_shapes("efficientnet_b0", 139, 47, 4, variant=variant)
    sides = {2: (70, 24), 4: (35, 12), 8: (18, 6), 16: (9, 3), 32: (5, 2)}
    stages = [(2, 16), (4, 24), (8, 40), (16, 80), (16, 112), (32, 192), (32, 320)]
    expected = {f"block{number}": (2, *sides[stride], width) for number, (stride, width) in enumerate(stages, 1)}
    for number, stride, width in ((2, 2, 96), (3, 4, 144), (4, 8, 240), (6, 16, 672)):
        expected[f"block{number}_0_expand"] = (2, *sides[stride], width)
    expected["top"] = (2, *sides[32], 1280)
    assert {name: value.shape for name, value in output.feature_maps.items()} == expected
    assert {value.dtype for value in output.feature_maps.values()} == {jnp.dtype("bfloat16")}
    assert (output.features.shape, output.features.dtype) == ((2, 1280), jnp.float32)


@pytest.mark.parametrize("variant", ["keras", "timm"])
def test_xception_gives_the_last_map_of_every_stride(variant):
    output = output_shapes("xception", 139, 74, 1, variant=variant)
    sides = [(67, 34), (34, 17), (17, 9), (9, 5), (5, 3)]
    widths = {"block1": 64, "block2": 128, "block3": 256, "block12": 728, "block14": 2048}
    maps = {name: (2, *side, width) for (name, width), side in zip(widths.items(), sides, strict=True)}
    assert {name: value.shape for name, value in output.feature_maps.items()} == maps
    assert {value.dtype for value in output.feature_maps.values()} == {jnp.dtype("bfloat16")}
    assert (output.features.shape, output.features.dtype) == ((2, 2048), jnp.float32)


@pytest.mark.parametrize(
    "name, options, library, examples",
    [
        (
            "efficientnet_b0",
            {"variant": "timm"},
            "timm",
            {
                "backbone/block1_0/depthwise": "blocks.0.0.conv_dw",
                "backbone/block1_0/depthwise_norm": "blocks.0.0.bn1",
                "backbone/block1_0/project/norm": "blocks.0.0.bn2",
                "backbone/block5_2/project/conv": "blocks.4.2.conv_pwl",
                "backbone/block5_2/se_reduce": "blocks.4.2.se.conv_reduce",
                "backbone/top/norm": "bn2",
                "head/logits": "classifier",
            },
        ),
        (
            "efficientnet_b0",
            {"variant": "torchvision"},
            "torchvision",
            {
                "backbone/stem/norm": "features.0.1",
                "backbone/block1_0/depthwise": "features.1.0.block.0.0",
                "backbone/block1_0/se_expand": "features.1.0.block.1.fc2",
                "backbone/block5_2/project/norm": "features.5.2.block.3.1",
                "head/logits": "classifier.1",
            },
        ),
        (
            "efficientnet_b7",
            {"variant": "keras"},
            "keras",
            {
                "backbone/normalization": "normalization",
                "backbone/block1_3/depthwise_norm": "block1d_bn",
                "backbone/block6_12/expand/norm": "block6m_expand_bn",
                "head/logits": "predictions",
            },
        ),
        (
            "xception",
            {"variant": "timm"},
            "timm",
            {
                "backbone/block1_conv2/norm": "bn2",
                "backbone/block2_sepconv1/depthwise": "block1.rep.0.conv1",
                "backbone/block2_sepconv2/norm": "block1.rep.4",
                "backbone/block3_sepconv1/pointwise": "block2.rep.1.pointwise",
                "backbone/block12_sepconv3/norm": "block11.rep.8",
                "backbone/block13_shortcut/norm": "block12.skipbn",
                "backbone/block14_sepconv2/depthwise": "conv4.conv1",
            },
        ),
        (
            "xception",
            {"variant": "keras"},
            "keras",
            {
                "backbone/block1_conv1/conv": "block1_conv1",
                "backbone/block2_shortcut/conv": "conv2d",
                "backbone/block13_shortcut/norm": "batch_normalization_3",
                "backbone/block14_sepconv2/pointwise": "block14_sepconv2:pointwise_kernel",
                "backbone/block14_sepconv2/norm": "block14_sepconv2_bn",
            },
        ),
    ],
)
def test_names_in_other_libraries(name, options, library, examples):
    paths = modules(variable_shapes(name, **options))
    names = registry.find(name)[0].names[library]([*paths, "head/dense_1"])
    assert set(names) == set(paths)
    assert len(set(names.values())) == len(names)
    assert {path: names[path] for path in examples} == examples


def test_rates_of_drop_path_grow_with_the_block():
    rates = {}

    def record(call, args, kwargs, context):
        if isinstance(context.module, DropPath):
            rates[context.module.path[-2]] = context.module.rate
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        variable_shapes("efficientnet_b0", drop_path=0.2)
    # The blocks with a shortcut are number 2, 4, 6, 7, 9, 10, 12, 13, 14 of 16; Keras: drop_connect_rate * b / blocks.
    blocks = ["2_1", "3_1", "4_1", "4_2", "5_1", "5_2", "6_1", "6_2", "6_3"]
    expected = zip(blocks, (2, 4, 6, 7, 9, 10, 12, 13, 14), strict=True)
    assert rates == pytest.approx({f"block{block}": 0.2 * number / 16 for block, number in expected})


def test_traced_drop_path_under_vmap_skips_whole_examples():
    form = efficientnet.FORMS["timm"]
    block = functools.partial(efficientnet.InvertedResidual, form, 0.9, 8, 3, 1, 2)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5, 7, 8)), jnp.float32)
    variables = block(0.0).init(jax.random.key(0), images, train=False)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def member(rate, values):
        rngs = {"dropout": jax.random.key(1)}
        return block(rate).apply(values, images, train=True, mutable=["batch_stats"], rngs=rngs)[0][0]

    whole, half = np.asarray(member(jnp.array([0.0, 0.5]), variables) - images)
    kept = np.any(half != 0, axis=(1, 2, 3))
    assert 0 < kept.sum() < 6
    np.testing.assert_allclose(half, 2 * whole * kept[:, None, None, None], rtol=1e-4, atol=1e-5)
    with pytest.raises(cli.UserError, match="dropout rate of 1.5"):
        block(1.5).apply(variables, images, train=True, mutable=["batch_stats"])


@pytest.fixture
def small(monkeypatch):
    """Builds an EfficientNet of three blocks, the last with a shortcut."""
    monkeypatch.setattr(efficientnet, "STAGES", ((1, 3, 1, 1, 16), (2, 5, 2, 2, 24)))

    def build(variant, **options):
        form = efficientnet.FORMS[variant]
        return efficientnet.EfficientNet(form, form.momentum, 0.1, 1.0, **options)

    return build


def test_input_layers_of_keras_stand_for_the_usual_preprocessing(small):
    images = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (3, 21, 34, 2)), jnp.float32)
    variables = jax.jit(functools.partial(small("keras").init, train=False))(jax.random.key(0), images)
    layer = variables["batch_stats"]["normalization"]
    np.testing.assert_array_equal(layer["mean"], [0, 0])
    np.testing.assert_array_equal(layer["var"], [1, 1])
    mean, deviation = jnp.array([0.485, 0.456]), jnp.array([0.229, 0.224])
    layer |= {"mean": mean, "var": deviation**2}

    @jax.jit
    def both(variables):
        keras = small("keras").apply(variables, images, train=True, mutable=["batch_stats"])
        usual = (images / 255 - mean) / deviation
        return *keras, small("tf").apply(variables, usual, train=True, mutable=["batch_stats"])[0]

    (features, maps), updates, expected = both(variables)
    np.testing.assert_allclose(features, expected[0], rtol=1e-3, atol=1e-4)
    assert maps["top"].shape == (3, 6, 9, 128)
    after = updates["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, after.pop("normalization"), layer)
    assert set(after) | {"normalization"} == set(variables["batch_stats"])
    assert not np.array_equal(after["stem"]["norm"]["mean"], variables["batch_stats"]["stem"]["norm"]["mean"])


def test_gradients_rematerialised_and_in_half_precision(small):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 19, 24, 3)), jnp.float32)
    model = small("timm", drop_path=0.2)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)

    def loss(params, batch):
        values = {**variables, "params": params}
        rngs = {"dropout": jax.random.key(2)}
        features, _ = model.apply(values, batch, train=True, mutable=["batch_stats"], rngs=rngs)[0]
        return jnp.mean(jnp.square(features))

    @jax.jit
    def gradients(params):
        return jax.grad(loss)(params, images), jax.grad(jax.checkpoint(loss))(params, images)

    plain, again = gradients(variables["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), again, plain)
    half = jax.eval_shape(jax.grad(loss), variables["params"], images.astype(jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}


def test_too_small_images_are_named():
    with pytest.raises(cli.UserError, match="larger image_size"):
        output_shapes("xception", 6, 6, 3)
