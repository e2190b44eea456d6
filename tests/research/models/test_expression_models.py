"""Are the networks for expression vectors, `mlp` and `cnn1d`, what their papers and documents say?"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.models import cnn1d, mlp, registry
from research.models.initialize import count_parameters, initialize


def variables_of(model, height, width, channels):
    inputs = {"image": jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)}
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), inputs)


def images(*shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def initial(model, batch):
    return jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), {"image": batch})


def apply(model, variables, batch, train=False):
    run = jax.jit(
        lambda values, batch: model.apply(
            values, {"image": batch}, train=train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(3)}
        )
    )
    return run(variables, batch)[0]


def test_parameters_are_those_of_the_paper_and_the_documents():
    paper = registry.create("cnn1d", num_classes=33)
    assert count_parameters(variables_of(paper, 71, 100, 1)) == 211_489
    assert count_parameters(variables_of(paper, 1, 7091, 1)) == 211_489
    assert "211,489" in cnn1d.__doc__
    for name, module in (("cnn1d", cnn1d), ("mlp", mlp)):
        variables = variables_of(registry.create(name, num_classes=33), 102, 102, 1)
        assert f"{count_parameters(variables):,}" in module.__doc__


@pytest.mark.parametrize(
    "options, height, width, channels",
    [
        ({"filters": 3, "kernel": 7, "stride": 7, "dense": 4}, 5, 9, 1),  # 45 positions, 7 windows, 4 pooled
        ({"filters": 3, "kernel": 5, "stride": 3, "dense": 4, "pool": 3}, 4, 8, 2),
        ({"filters": 2, "kernel": 9, "stride": 2, "dense": 3, "pool": 1}, 2, 3, 1),  # shorter than a window
        ({"filters": 2, "kernel": 1, "stride": 1, "dense": 3, "pool": 2}, 3, 3, 3),
    ],
)
def test_the_sequence_network_equals_loops(options, height, width, channels):
    model = registry.create("cnn1d", num_classes=3, **options)
    batch = images(2, height, width, channels)
    variables = initial(model, batch)
    body = jax.tree.map(np.asarray, variables["params"]["backbone"])
    output = apply(model, variables, batch)
    kernel, stride, pool = options["kernel"], options["stride"], options.get("pool", 2)
    for image, features, found in zip(batch, output.features, output.feature_maps["conv"], strict=True):
        sequence = [list(pixel) for row in np.asarray(image) for pixel in row]
        windows = 1
        while (windows - 1) * stride + kernel < len(sequence):
            windows += 1
        sequence += [[0.0] * channels] * (kernel + stride * windows)
        taken = np.stack([np.array(sequence[n * stride : n * stride + kernel]) for n in range(windows)])
        filtered = np.maximum(np.einsum("nkc,kcf->nf", taken, body["conv"]["kernel"][0]) + body["conv"]["bias"], 0)
        np.testing.assert_allclose(found[0], filtered, rtol=1e-4, atol=1e-5)
        pooled = np.stack([filtered[n : n + pool].max(0) for n in range(0, windows, pool)])
        dense = np.maximum(pooled.reshape(-1) @ body["dense"]["kernel"] + body["dense"]["bias"], 0)
        np.testing.assert_allclose(features, dense, rtol=1e-4, atol=1e-5)


def test_every_gene_reaches_the_sequence_network():
    """With positive weights a gene that rises far enough wins every maximum."""
    model = registry.create("cnn1d", num_classes=3, kernel=7, stride=7)
    variables = initial(model, images(1, 5, 5, 1))
    variables = jax.tree.map(jnp.abs, variables)
    raised = jnp.concatenate([jnp.zeros((1, 25)), 100 * jnp.eye(25)]).reshape(26, 5, 5, 1)
    features = np.asarray(apply(model, variables, raised).features)
    assert (features[1:] > features[0]).any(axis=1).all()


def test_the_dense_network_equals_products():
    model = registry.create("mlp", num_classes=3, hidden=(6, 4), batch_norm=False)
    batch = images(3, 5, 7, 2)
    variables = initial(model, batch)
    assert set(variables) == {"params"}
    body = jax.tree.map(np.asarray, variables["params"]["backbone"])
    values = np.asarray(batch).reshape(3, -1)
    for layer in ("dense_1", "dense_2"):
        values = np.maximum(values @ body[layer]["kernel"] + body[layer]["bias"], 0)
    output = apply(model, variables, batch)
    np.testing.assert_allclose(output.features, values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.feature_maps["dense_2"][:, 0, 0], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, options", [("mlp", {"hidden": (6, 5, 4)}), ("cnn1d", {"kernel": 9, "stride": 4})])
def test_outputs_and_types_keep_the_contract(name, options):
    model = registry.create(
        name, num_classes=7, head=(9,), head_dropout=0.5, dropout=0.3, dtype=jnp.bfloat16, **options
    )
    batch = images(2, 11, 6, 3)
    variables = variables_of(model, 11, 6, 3)
    output = jax.eval_shape(functools.partial(apply, model, train=True), variables, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert (output.logits.shape, output.logits.dtype) == ((2, 7), jnp.float32)
    assert (output.features.shape[-1], output.features.dtype) == ({"mlp": 4, "cnn1d": 128}[name], jnp.float32)
    assert all(value.dtype == jnp.bfloat16 and value.ndim == 4 for value in output.feature_maps.values())


@pytest.mark.parametrize(
    "name, options", [("mlp", {"hidden": (6, 4)}), ("cnn1d", {"kernel": 5, "stride": 5, "dense": 9})]
)
def test_members_with_traced_dropout_equal_each_alone(name, options):
    batch, rates = images(4, 6, 6, 1), jnp.array([0.0, 0.4])
    variables = initialize(registry.create(name, num_classes=3, **options), jax.random.key(0), 6, 1)

    def loss(rate):
        model = registry.create(name, num_classes=3, dropout=rate, **options)
        output, _ = model.apply(
            variables, {"image": batch}, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
        )
        return jnp.mean(output.logits**2)

    members, alone = jax.jit(jax.vmap(loss))(rates), jax.jit(loss)
    np.testing.assert_allclose(members, [alone(rate) for rate in rates], rtol=1e-4)
    assert abs(float(members[1] - members[0])) > 1e-3 * float(members[0])


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("mlp", {"hidden": ()}, "at least one layer"),
        ("mlp", {"hidden": (3, 0)}, "positive numbers"),
        ("mlp", {"widths": (3,)}, "no option widths"),
        ("mlp", {"dropout": 1.0}, "dropout rate of 1.0 is impossible"),
        ("cnn1d", {"filters": 0}, "cannot have filters 0"),
        ("cnn1d", {"pool": -2}, "cannot have pool -2"),
        ("cnn1d", {"kernel": 5, "stride": 6}, "skips genes"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        variables_of(registry.create(name, num_classes=3, **options), 4, 4, 1)
