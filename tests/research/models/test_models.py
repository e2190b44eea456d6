"""Do all models keep the contract: sizes, outputs, types, transformations, freezing?"""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import cli
from research.models import registry
from research.models.initialize import count_parameters, initialize

# (parameters, parameters and running statistics) with 1,000 classes and three channels; the former as
# torchvision counts, the latter as Keras counts.
PARAMETERS = {
    "inception_resnet_v2": (55_813_192, 55_873_736),
    "resnet18": (11_689_512, 11_699_112),
    "resnet34": (21_797_672, 21_814_696),
    "resnet50": (25_557_032, 25_610_152),
    "resnet101": (44_549_160, 44_654_504),
    "resnet152": (60_192_808, 60_344_232),
    "simple_cnn": (645_896, 646_856),
}
SMALL = {"widths": (8, 12)}


def shapes(model, height, width, channels, train=False):
    """Shapes of the variables and of the outputs, without computing anything."""
    inputs = {"image": jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)}
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), inputs)

    def apply(values, batch):
        return model.apply(
            values, batch, train=train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )

    return variables, jax.eval_shape(apply, variables, inputs)[0]


def small_model(channels=3, size=11, **options):
    model = registry.create("simple_cnn", num_classes=4, **SMALL, **options)
    return model, initialize(model, jax.random.key(0), size, channels)


def images(batch=5, size=11, channels=3):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, size, size, channels)), jnp.float32)


def test_every_model_has_its_parameter_count():
    assert registry.available() == sorted(PARAMETERS)
    for name, expected in PARAMETERS.items():
        variables, _ = shapes(registry.create(name, num_classes=1000), 97, 97, 3)
        assert (count_parameters(variables["params"]), count_parameters(variables)) == expected, name


def test_simple_cnn_documents_its_size():
    from research.models import simple_cnn

    variables, _ = shapes(registry.create("simple_cnn", num_classes=10), 32, 32, 3)
    assert f"{count_parameters(variables):,}" in simple_cnn.__doc__


@pytest.mark.parametrize(
    "name, height, width, channels",
    [
        ("inception_resnet_v2", 75, 98, 5),
        ("resnet18", 33, 47, 1),
        ("resnet50", 131, 131, 4),
        ("simple_cnn", 8, 9, 1),
        ("simple_cnn", 131, 131, 6),
    ],
)
def test_any_channels_and_odd_sizes_keep_the_output_contract(name, height, width, channels):
    model = registry.create(name, num_classes=7, head=(9,), head_dropout=0.5, dtype=jnp.bfloat16)
    variables, output = shapes(model, height, width, channels, train=True)
    assert set(variables) == {"params", "batch_stats"}
    for collection in variables.values():
        assert set(collection) <= {"backbone", "head"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert (output.logits.shape, output.logits.dtype) == ((2, 7), jnp.float32)
    assert output.features.shape == (2, variables["params"]["head"]["dense_1"]["kernel"].shape[0])
    assert output.features.dtype == jnp.float32
    maps = sorted(output.feature_maps.values(), key=lambda value: -value.shape[1])
    assert len({value.shape[1:3] for value in maps}) == len(maps) > 3
    assert all(value.dtype == jnp.bfloat16 and value.shape[0] == 2 for value in maps)
    assert maps[-1].shape[-1] == output.features.shape[-1]


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
    features = np.asarray(model.apply(variables, {"image": images()}, train=False).features) / np.sqrt(
        1 + 1e-3
    )
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
    jax.tree.map(
        np.testing.assert_array_equal, state["batch_stats"]["backbone"], variables["batch_stats"]["backbone"]
    )
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
