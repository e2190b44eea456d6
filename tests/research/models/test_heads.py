"""Are the studies' heads what their formulas say, in shapes and in numbers?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.models import registry
from research.models.heads import Head

EPSILON = 1e-3  # of Keras's BatchNormalization
# Heads of the gene expression study, as arguments of `registry.create`.
GENES_POOLED = {"head": (2048, 512), "head_batch_norm": True, "head_dropout": 0.5, "head_dropout_at": "first"}
GENES_FLAT = {**GENES_POOLED, "head": (512, 512), "head_pool": "flatten"}
XCEPTION = {"head_batch_norm": True, "head_dropout": 0.5}
ORGANELLES = {"head": (512,)}


def shapes_of(name: str, size: int, classes: int = 33, **options) -> dict[str, tuple[int, ...]]:
    """Shapes of the head's variables, "dense_1/kernel" and so on."""
    model = registry.create(name, num_classes=classes, **options)
    tree = jax.eval_shape(
        lambda: model.init({"params": jax.random.key(0)}, {"image": jnp.zeros((1, size, size, 3))}, train=False)
    )
    return {
        "/".join(key.key for key in path[2:]): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if path[1].key == "head"
    }


def test_pooled_head_of_resnet50():
    """GAP - BatchNorm - Dropout - Dense 2048 - Dense 512 - Dense 33."""
    shapes = shapes_of("resnet50", 64, **GENES_POOLED)
    assert {k: v for k, v in shapes.items() if k.endswith("kernel")} == {
        "dense_1/kernel": (2048, 2048), "dense_2/kernel": (2048, 512), "logits/kernel": (512, 33),
    }  # fmt: skip
    assert shapes["norm/scale"] == shapes["norm/mean"] == (2048,)


def test_flat_head_of_vgg19():
    """Flatten (7·7·512 at 224 px) - BatchNorm - Dropout - Dense 512 - Dense 512 - Dense 33, not VGG's own layers."""
    shapes = shapes_of("vgg19", 224, top=False, **GENES_FLAT)
    assert {k: v for k, v in shapes.items() if k.endswith("kernel")} == {
        "dense_1/kernel": (25088, 512), "dense_2/kernel": (512, 512), "logits/kernel": (512, 33),
    }  # fmt: skip
    assert shapes["norm/scale"] == (25088,)


def test_short_heads():
    assert shapes_of("simple_cnn", 32, classes=10, **ORGANELLES)["logits/kernel"] == (512, 10)
    shapes = shapes_of("simple_cnn", 32, **XCEPTION)
    assert sorted(shapes) == ["logits/bias", "logits/kernel", "norm/bias", "norm/mean", "norm/scale", "norm/var"]


def random_variables(head: Head, features) -> dict:
    rng = np.random.default_rng(3)
    variables = head.init(jax.random.key(0), features, train=False)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32), variables)


@pytest.fixture(scope="module")
def features():
    return jnp.asarray(np.random.default_rng(2).normal(size=(6, 5)), jnp.float32)


def by_hand(variables, values, train: bool):
    """The formula of the pooled head in float64, without dropout."""
    p, s = variables["params"], variables["batch_stats"]["norm"]
    values = np.asarray(values, np.float64)
    mean, variance = (values.mean(0), values.var(0)) if train else (s["mean"], s["var"])
    values = (values - mean) / np.sqrt(variance + EPSILON) * p["norm"]["scale"] + p["norm"]["bias"]
    for name in ("dense_1", "dense_2"):
        values = np.maximum(values @ p[name]["kernel"] + p[name]["bias"], 0.0)
    return values @ p["logits"]["kernel"] + p["logits"]["bias"]


@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_and_dense_layers_by_hand(features, train):
    head = Head(num_classes=3, widths=(7, 4), batch_norm=True)
    variables = random_variables(head, features)
    logits = head.apply(variables, features, train=train, mutable=["batch_stats"] if train else False)
    logits, updates = logits if train else (logits, None)
    np.testing.assert_allclose(logits, by_hand(variables, features, train), rtol=2e-5)
    if train:
        old = variables["batch_stats"]["norm"]["mean"]
        expected = 0.99 * np.asarray(old) + 0.01 * np.asarray(features).mean(0)
        np.testing.assert_allclose(updates["batch_stats"]["norm"]["mean"], expected, rtol=1e-6)


@pytest.mark.parametrize(("where", "expected"), [("every", [1, 1, 1]), ("first", [1, 0, 0]), ("last", [0, 0, 1])])
def test_dropout_stands_where_it_is_said(features, where, expected):
    """With identity-like layers (no BatchNorm) zeros appear at the input of the chosen dense layers only."""
    head = Head(num_classes=3, widths=(7, 4), dropout=0.5, dropout_at=where)
    variables = random_variables(head, features)
    inputs = jnp.abs(features) + 1.0
    _, seen = head.apply(variables, inputs, train=True, rngs={"dropout": jax.random.key(5)}, capture_intermediates=True)
    found = seen["intermediates"]
    dropped = [int(bool((found[name]["__call__"][0] == 0).any())) for name in ("dropout_1", "dropout_2", "dropout")]
    assert dropped == expected
    np.testing.assert_allclose(
        head.apply(variables, inputs, train=False),
        Head(num_classes=3, widths=(7, 4)).apply(variables, inputs, train=True),
        rtol=1e-6,
    )


@pytest.mark.parametrize("pool", ["average", "max", "flatten"])
def test_pools_of_the_last_map(pool):
    model = registry.create("simple_cnn", num_classes=3, widths=(4, 6), head_pool=pool)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 13, 13, 3)), jnp.float32)
    variables = model.init({"params": jax.random.key(0)}, {"image": images}, train=False)
    output = model.apply(variables, {"image": images}, train=False)
    last = np.asarray(output.feature_maps["block_2"])
    expected = {"average": last.mean((1, 2)), "max": last.max((1, 2)), "flatten": last.reshape(2, -1)}[pool]
    np.testing.assert_allclose(output.features, expected, rtol=1e-5, atol=1e-6)
    assert output.logits.shape == (2, 3)


def test_unknown_choices_are_named(features):
    with pytest.raises(UserError, match="head_dropout_at is 'all'; choose one of every, first, last"):
        Head(num_classes=3, dropout_at="all").init(jax.random.key(0), features, train=False)
    model = registry.create("simple_cnn", num_classes=3, head_pool="sum")
    with pytest.raises(UserError, match="head_pool is 'sum'; choose average, max or flatten"):
        model.init(jax.random.key(0), {"image": jnp.zeros((1, 16, 16, 3))}, train=False)
