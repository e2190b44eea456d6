"""Do all models keep the contract: sizes, outputs, types, transformations, freezing?"""

import functools
import re

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import cli
from research.models import registry
from research.models.initialize import count_parameters, initialize

# (parameters, parameters and running statistics) with 1,000 classes and three channels in the first variant; the former
# as timm counts, the latter as Keras counts.
PARAMETERS = {
    "cnn2": (5_200_296, 5_204_136),
    "densenet121": (7_978_856, 8_062_504),
    "densenet169": (14_149_480, 14_307_880),
    "densenet201": (20_013_928, 20_242_984),
    "efficientnet_b0": (5_288_548, 5_330_564),
    "efficientnet_b1": (7_794_184, 7_856_232),
    "efficientnet_b2": (9_109_994, 9_177_562),
    "efficientnet_b3": (12_233_232, 12_320_528),
    "efficientnet_b4": (19_341_616, 19_466_816),
    "efficientnet_b5": (30_389_784, 30_562_520),
    "efficientnet_b6": (43_040_704, 43_265_136),
    "efficientnet_b7": (66_347_960, 66_658_680),
    "cnn1d": (1_585_960, 1_585_960),
    "grid_cnn": (1_494_370, 1_496_910),
    "inception_resnet_v2": (55_813_192, 55_873_736),
    "inception_v3": (23_834_568, 23_869_000),
    "merged": (2_073_416, 2_076_296),
    "mlp": (77_266_792, 77_268_072),
    "resnet101": (44_549_160, 44_654_504),
    "resnet152": (60_192_808, 60_344_232),
    "resnet18": (11_689_512, 11_699_112),
    "resnet34": (21_797_672, 21_814_696),
    "resnet50": (25_557_032, 25_610_152),
    "simple_cnn": (645_896, 646_856),
    "unet": (5_441_668, 5_484_420),
    "vgg16": (138_357_544, 138_357_544),
    "vgg16_bn": (138_365_992, 138_374_440),
    "vgg19": (143_667_240, 143_667_240),
    "vgg19_bn": (143_678_248, 143_689_256),
    "xception": (22_855_952, 22_910_480),
}
# One of every family, with an image that is neither square nor even.
FAMILIES = {
    "cnn2": (47, 66),
    "densenet121": (33, 47),
    "efficientnet_b0": (33, 47),
    "cnn1d": (33, 47),
    "grid_cnn": (207, 210),
    "inception_resnet_v2": (75, 98),
    "inception_v3": (75, 98),
    "merged": (33, 50),
    "mlp": (33, 47),
    "resnet18": (33, 47),
    "simple_cnn": (33, 50),
    "vgg16": (33, 47),
    "vgg16_bn": (33, 66),
    "xception": (71, 84),
}
SMALL = {"widths": (8, 12)}


def init_shapes(model, height, width, channels):
    inputs = {"image": jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)}
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), inputs)


def shapes(model, height, width, channels, train=False):
    """Shapes of the variables and of the outputs, without computing anything."""
    inputs = {"image": jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)}
    variables = init_shapes(model, height, width, channels)

    def apply(values, batch):
        return model.apply(values, batch, train=train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})

    return variables, jax.eval_shape(apply, variables, inputs)[0]


def small_model(channels=3, size=11, **options):
    model = registry.create("simple_cnn", num_classes=4, **SMALL, **options)
    return model, initialize(model, jax.random.key(0), size, channels)


def images(batch=5, size=11, channels=3):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, size, size, channels)), jnp.float32)


def with_slow(names, slow):
    """Test parameters, of which those that `slow` matches are left to long campaigns."""
    return [pytest.param(name, marks=[pytest.mark.slow] * bool(re.fullmatch(slow, name))) for name in names]


# What lies between the smallest and the largest of a family takes long to trace and tells little.
@pytest.mark.parametrize("name", with_slow(PARAMETERS, "efficientnet_b[1-6]|densenet169|resnet(34|50|101)|vgg19(_bn)?"))
def test_every_model_has_its_parameter_count_and_names(name):
    model = registry.create(name, num_classes=1000)
    called = []

    def note(call, args, kwargs, context):
        called.append("/".join(context.module.path))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        variables = init_shapes(model, 224, 224, 3)
    assert (count_parameters(variables["params"]), count_parameters(variables)) == PARAMETERS[name]
    owners = {"/".join(path[1:-1]) for path in flax.traverse_util.flatten_dict(variables)}
    modules = [path for path in dict.fromkeys(called) if path in owners]
    for library, mapping in registry.find(name)[0].names.items():
        names = mapping([*modules, "head/dense_1"])
        assert set(names) == owners, library  # all of them, and no hidden layer of the head
        assert len(set(names.values())) == len(names), library


def test_every_model_is_tested():
    # What reads captions needs the size of a vocabulary; test_fusion.py is about it.
    assert registry.available() == sorted({*PARAMETERS, "captioned"})
    modules = {registry.find(name)[0].build.__module__ for name in FAMILIES}
    # The U-Net, which gives logits for every pixel, has tests of its own.
    pooled = [name for name in PARAMETERS if not registry.find(name)[0].segments]
    assert modules == {registry.find(name)[0].build.__module__ for name in pooled}


def test_simple_cnn_documents_its_size():
    from research.models import simple_cnn

    variables, _ = shapes(registry.create("simple_cnn", num_classes=10), 32, 32, 3)
    assert f"{count_parameters(variables):,}" in simple_cnn.__doc__


@pytest.mark.parametrize("name", FAMILIES)
def test_any_channels_and_odd_sizes_keep_the_output_contract(name):
    channels = 1 + len(name) % 5
    model = registry.create(name, num_classes=7, head=(9,), head_dropout=0.5, dtype=jnp.bfloat16)
    variables, output = shapes(model, *FAMILIES[name], channels, train=True)
    assert {"params"} <= set(variables) <= {"params", "batch_stats"}
    for collection in variables.values():
        assert set(collection) <= {"backbone", "head"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert (output.logits.shape, output.logits.dtype) == ((2, 7), jnp.float32)
    assert output.features.shape == (2, variables["params"]["head"]["dense_1"]["kernel"].shape[0])
    assert output.features.dtype == jnp.float32
    maps = output.feature_maps.values()
    assert all(value.dtype == jnp.bfloat16 and value.shape[0] == 2 for value in maps)
    # `merged` gives one map for each member, and vectors have none.
    assert len({value.shape[1:3] for value in maps}) > 3 or name in ("merged", "mlp", "cnn1d")
    smallest = min(value.shape[1] for value in maps)
    pooled = {value.shape[-1] for value in maps if value.shape[1] == smallest}
    dense_layers = name.startswith("vgg") or name in ("grid_cnn", "cnn1d")  # behind the last map
    assert output.features.shape[-1] in pooled or dense_layers


@pytest.mark.parametrize("name", with_slow(FAMILIES, "densenet121|efficientnet_b0|inception.*"))
def test_gradients_of_members_can_be_rematerialised_in_half_precision(name):
    model = registry.create(name, num_classes=3, dtype=jnp.bfloat16)
    variables = init_shapes(model, *FAMILIES[name], 3)

    def loss(values, batch):
        return jnp.sum(train_outputs(model, values, batch)[0].logits ** 2)

    members = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), variables)
    batch = jax.ShapeDtypeStruct((2, *FAMILIES[name], 3), jnp.float32)
    gradients = jax.eval_shape(jax.vmap(jax.grad(jax.checkpoint(loss)), (0, None)), members, batch)
    assert gradients == members


def test_head_options():
    prior = (-1.0, 0.5, 2.0, 0.0)
    model, variables = small_model(head=(6, 5), head_batch_norm=True, head_bias_init=prior)
    head = variables["params"]["head"]
    assert set(head) == {"norm", "dense_1", "dense_2", "logits"}
    assert [head[name]["kernel"].shape for name in ("dense_1", "dense_2", "logits")] == [
        (12, 6),
        (6, 5),
        (5, 4),
    ]
    np.testing.assert_array_equal(head["logits"]["bias"], prior)
    np.testing.assert_array_equal(head["dense_1"]["bias"], np.zeros(6))
    logits = model.apply(variables, {"image": images()}, train=False).logits
    kernels = {name: np.asarray(layer["kernel"]) for name, layer in head.items() if name != "norm"}
    features = np.asarray(model.apply(variables, {"image": images()}, train=False).features) / np.sqrt(1 + 1e-3)
    hidden = np.maximum(np.maximum(features @ kernels["dense_1"], 0) @ kernels["dense_2"], 0)
    np.testing.assert_allclose(logits, hidden @ kernels["logits"] + prior, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "resnet19"}, "no model 'resnet19'.*resnet18"),
        ({"name": "resnet18", "widths": (3,)}, "resnet18 has no option widths.*batch_norm_momentum"),
        ({"name": "simple_cnn", "widths": ()}, "at least one width"),
        ({"name": "simple_cnn", "head": (0,)}, "positive numbers"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(cli.UserError, match=message):
        registry.create(**options, num_classes=3)


def test_wrong_sizes_are_named():
    with pytest.raises(cli.UserError, match="larger image_size"):
        shapes(registry.create("inception_resnet_v2", num_classes=3), 60, 60, 3)
    with pytest.raises(cli.UserError, match="2 values for 3 classes"):
        shapes(registry.create("simple_cnn", num_classes=3, head_bias_init=(0.0, 1.0)), 16, 16, 3)


def test_initialisation_is_a_function_of_the_key_also_under_vmap():
    model = registry.create("simple_cnn", num_classes=4, **SMALL)
    keys = jax.random.split(jax.random.key(5), 2)
    members = jax.vmap(lambda key: initialize(model, key, 11, 3))(keys)
    alone = initialize(model, keys[1], 11, 3)
    jax.tree.map(lambda many, one: np.testing.assert_array_equal(many[1], one), members, alone)
    kernels = flax.traverse_util.flatten_dict(alone["params"])
    assert all(not np.any(value) for path, value in kernels.items() if path[-1] == "bias")
    first, second = members["params"]["head"]["logits"]["kernel"]
    assert not np.array_equal(first, second)


def train_outputs(model, variables, batch, seed=0):
    keys = {"dropout": jax.random.key(seed)}
    return model.apply(variables, {"image": batch}, train=True, mutable=["batch_stats"], rngs=keys)


def test_members_under_vmap_with_traced_dropout_equal_each_alone():
    rates = jnp.array([0.1, 0.4, 0.0])
    keys = jax.random.split(jax.random.key(0), 3)
    batch = images()

    def gradients(key, rate):
        model = registry.create("simple_cnn", num_classes=4, head=(6,), head_dropout=rate, **SMALL)
        variables = initialize(model, key, 11, 3)

        def loss(params):
            output, state = train_outputs(model, {**variables, "params": params}, batch)
            return jnp.mean(output.logits**2), state

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    members = jax.jit(jax.vmap(gradients))(keys, rates)
    alone = jax.jit(gradients)
    for index in range(3):
        jax.tree.map(
            lambda many, one, index=index: np.testing.assert_allclose(many[index], one, rtol=1e-3, atol=1e-5),
            members,
            alone(keys[index], rates[index]),
        )


def test_bfloat16_stays_near_float32():
    model, variables = small_model(head=(6,))
    low, _ = small_model(head=(6,), dtype=jnp.bfloat16)
    expected = train_outputs(model, variables, images())[0].logits
    actual, state = train_outputs(low, variables, images())
    assert actual.logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(actual.logits, expected, atol=0.05 * float(jnp.abs(expected).max()))
    assert np.any(np.asarray(actual.logits) != np.asarray(expected))


def test_frozen_batch_norm_keeps_its_statistics_and_ignores_the_batch():
    model, variables = small_model(head_batch_norm=True)
    frozen = model.clone(frozen=("^backbone/",))
    output, state = train_outputs(frozen, variables, images())
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"]["backbone"], variables["batch_stats"]["backbone"])
    assert np.any(state["batch_stats"]["head"]["norm"]["mean"] != 0)
    evaluated = model.apply(variables, {"image": images()}, train=False)
    np.testing.assert_allclose(output.features, evaluated.features, rtol=1e-6)
    moving, state = train_outputs(model, variables, images())
    assert np.any(state["batch_stats"]["backbone"]["block_1_1"]["norm"]["mean"] != 0)
    assert not np.allclose(moving.features, evaluated.features)
    part, state = train_outputs(model.clone(frozen=("block_2",)), variables, images())
    layers = state["batch_stats"]["backbone"]
    moved = {name: bool(np.any(layer["norm"]["mean"] != 0)) for name, layer in layers.items()}
    assert moved == {"block_1_1": True, "block_2_1": False}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "inception_resnet_v2"])
def test_large_models_lower_their_loss(name):
    model = registry.create(name, num_classes=3, dtype=jnp.float32)
    variables = initialize(model, jax.random.key(0), 75, 3)
    batch, targets = images(6, 75), jnp.eye(3)[jnp.arange(6) % 3]

    @jax.jit
    def step(variables):
        def loss(params):
            output, state = train_outputs(model, {**variables, "params": params}, batch)
            return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(output.logits), -1)), state

        (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.003 * g, variables["params"], gradients)
        return {"params": params, **state}, value

    losses = []
    for _ in range(6):
        variables, value = step(variables)
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0] and np.all(np.isfinite(losses))
