"""Does `captioned` join image and caption as documented, and do without either?"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from input_pipeline.cli import UserError
from research.models import fusion, registry
from research.models.classifier import Classifier, Output
from research.models.heads import Head
from research.models.initializers import drawn_together
from research.text import encoders

IDS = np.array([[3, 5, 1, 0, 0], [2, 0, 0, 0, 0], [0] * 5, [6, 4, 3, 2, 1]], np.int32)
PIXELS = np.random.default_rng(1).normal(size=(4, 9, 7, 2)).astype(np.float32)
BATCH = {"image": PIXELS, "caption": IDS}
PLAIN = {"filters": (4, 6), "kernels": 3, "dense": (), "padding": "same", "batch_norm": "none", "conv_dropout": 0.0}
IMAGE = {"image": "grid_cnn", "image_options": PLAIN}
TEXT = {"text": "gru", "text_options": {"vocabulary": 7, "width": 5, "units": 3, "dropout": 0.0}}
WIDTH = {"width": 8, "heads": 2}
each = pytest.mark.parametrize("kind", fusion.FUSIONS)


class Captioning(Classifier):
    """A classifier whose backbone says what it takes."""

    @nn.compact
    def __call__(self, inputs, *, train):
        given = {name: inputs[name] for name in self.backbone.takes}
        features, maps = self.backbone(given, train=train, dtype=self.dtype)
        return Output(self.head(features, train=train), features, maps)


def made(seed=2, batch=BATCH, **options):
    """A network and random variables of it."""
    backbone = registry.backbone("captioned", **options)
    model = Captioning(backbone, Head(num_classes=3))
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), batch)
    random = np.random.default_rng(seed)
    return model, jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.5, leaf.shape), jnp.float32), shapes)


@functools.lru_cache
def program(model, train=False):
    return jax.jit(functools.partial(model.apply, train=train))


def apply(model, variables, batch=BATCH, train=False):
    return program(model, train)(variables, batch, rngs={"dropout": jax.random.key(5)})


def parts(variables, batch=BATCH):
    """What both parts give alone, with the variables of the whole: features, last map, and `Encoded`."""
    params = {"params": variables["params"]["backbone"]["image"]}
    features, maps = program(registry.backbone("grid_cnn", **PLAIN))(params, batch["image"])
    encoded = program(encoders.create("gru", **TEXT["text_options"]))(
        {"params": variables["params"]["backbone"]["text"]}, batch["caption"]
    )
    return np.asarray(features), np.asarray(maps["block_2"]), encoded


def dense(values, layer):
    return np.asarray(values) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


@each
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_outputs_and_types_keep_the_contract(kind, dtype):
    model, variables = made(fusion=kind, **IMAGE, **TEXT, **WIDTH)
    found = apply(model.clone(dtype=dtype), variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert found.logits.shape == (4, 3) and found.logits.dtype == found.features.dtype == jnp.float32
    assert found.features.shape == (4, 24 if kind == "cross_attention" else 8)
    assert {name: value.dtype for name, value in found.feature_maps.items()} == {"block_1": dtype, "block_2": dtype}
    assert np.isfinite(found.logits).all()
    if dtype == jnp.float32:
        np.testing.assert_allclose(found.feature_maps["block_2"], parts(variables)[1], rtol=1e-5, atol=1e-6)


def test_one_modality_is_that_part_alone():
    both, variables = made(**IMAGE, **TEXT, **WIDTH)
    features, _, encoded = parts(variables)
    for name, expected, options in (
        ("image", features, IMAGE | {"text": ""}),
        ("text", encoded.features, TEXT | {"image": ""}),
    ):
        taken = {"image": "image", "text": "caption"}[name]
        batch = {taken: BATCH[taken]}
        model, own = made(batch=batch, **options)
        assert model.backbone.takes == (taken,) and set(own["params"]["backbone"]) == {name}
        own["params"]["backbone"] = {name: variables["params"]["backbone"][name]}
        found = apply(model, own, batch)
        np.testing.assert_allclose(found.features, expected, rtol=1e-5, atol=1e-6)
        assert list(found.feature_maps) == (["block_1", "block_2"] if name == "image" else [])
    assert both.backbone.takes == ("image", "caption")


def test_concatenation_and_gate_equal_products():
    for kind, width in (("concat", 0), ("concat", 8), ("gated", 8)):
        model, variables = made(fusion=kind, width=width, **IMAGE, **TEXT)
        features, _, encoded = parts(variables)
        joined = np.concatenate([features, encoded.features], axis=1)
        layers = variables["params"]["backbone"]
        if kind == "gated":
            gate = expit(dense(joined, layers["gate"]))
            gate[2] = 1.0  # there is no caption
            image, text = np.tanh(dense(features, layers["image_unit"])), dense(encoded.features, layers["text_unit"])
            joined = gate * image + (1 - gate) * np.tanh(text)
        elif width:
            joined = np.maximum(dense(joined, layers["joint"]), 0)
        np.testing.assert_allclose(apply(model, variables).features, joined, rtol=1e-4, atol=1e-5)


def _attend(layer, queries, keys):
    """Attention of `[Q, D]` to `[K, D]`, head by head."""
    query, key, value = (dense(given, layer[name]) for given, name in
                         ((queries, "query"), (keys, "key"), (keys, "value")))  # fmt: skip
    heads = [slice(0, 4), slice(4, 8)]
    joined = [softmax(query[:, head] @ key[:, head].T / 2, axis=1) @ value[:, head] for head in heads]
    return dense(np.concatenate(joined, axis=1), layer["output"])


def _normal(values, layer):
    values = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-6)
    return values * np.asarray(layer["norm"]["scale"]) + np.asarray(layer["norm"]["bias"])


def test_cross_attention_equals_loops():
    model, variables = made(fusion="cross_attention", **IMAGE, **TEXT, **WIDTH)
    _, maps, encoded = parts(variables)
    layers = variables["params"]["backbone"]
    for row, found in enumerate(apply(model, variables).features):
        cells = dense(maps[row].reshape(-1, 6), layers["cells"])
        words = dense(encoded.sequence[row][IDS[row] > 0], layers["words"])
        normal_cells, normal_words = _normal(cells, layers["cells_norm"]), _normal(words, layers["words_norm"])
        read = np.zeros(16)
        if len(words):
            cells = cells + _attend(layers["cells_to_words"], normal_cells, normal_words)
            words = words + _attend(layers["words_to_cells"], normal_words, normal_cells)
            read = np.concatenate([words.max(0), words.mean(0)])
        np.testing.assert_allclose(found, np.concatenate([cells.mean(0), read]), rtol=1e-3, atol=1e-4)


@each
def test_without_a_caption_the_image_is_used_alone(kind):
    model, variables = made(fusion=kind, **IMAGE, **TEXT, **WIDTH)
    batch = BATCH | {"caption": np.zeros_like(IDS)}
    other = jax.tree.map(lambda leaf: leaf, variables)
    other["params"]["backbone"]["text"] = made(seed=9, **IMAGE, **TEXT, **WIDTH)[1]["params"]["backbone"]["text"]
    found = apply(model, variables, batch).logits
    np.testing.assert_array_equal(found, apply(model, other, batch).logits)
    assert np.abs(np.asarray(found) - apply(model, variables).logits)[[0, 1, 3]].max(1).min() > 1e-3
    assert np.std(found, axis=0).min() > 1e-3
    np.testing.assert_allclose(found[2], apply(model, variables).logits[2], rtol=1e-4, atol=1e-5)


@each
def test_gradients_are_finite(kind):
    model, variables = made(fusion=kind, **IMAGE, **TEXT, **WIDTH)

    def total(values, batch):
        return jnp.sum(model.apply(values, batch, train=False).logits ** 2)

    gradient = jax.jit(jax.grad(total))
    for ids in (IDS, np.zeros_like(IDS)):
        with jax.debug_nans(True):
            slopes = gradient(variables, BATCH | {"caption": ids})["params"]["backbone"]
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
        assert np.asarray(slopes["image"]["conv_1"]["kernel"]).any()
        assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(slopes["text"])) == bool(ids.any())


@each
def test_hidden_modalities(kind):
    """With probability 1 every example shows either its image or its caption, and without a caption its image."""
    rows = 60
    batch = {name: np.tile(values, (rows // 4,) + (1,) * (values.ndim - 1)) for name, values in BATCH.items()}
    shown, hidden = (made(fusion=kind, modality_dropout=rate, **IMAGE, **TEXT, **WIDTH) for rate in (0.0, 1.0))
    variables = shown[1]
    np.testing.assert_array_equal(apply(shown[0], variables).logits, apply(hidden[0], variables).logits)
    found = np.asarray(apply(hidden[0], variables, batch, train=True).features)
    alone = np.asarray(apply(shown[0], variables, batch | {"caption": np.zeros_like(batch["caption"])}).features)
    equal = np.abs(found - alone).max(1) < 1e-4
    assert equal[2::4].all() and 10 < equal.sum() - 15 < 35
    # The others do not depend on their image.
    moved = dict(batch, image=batch["image"] + 3.0)
    again = np.asarray(apply(hidden[0], variables, moved, train=True).features)
    np.testing.assert_allclose(again[~equal], found[~equal], rtol=1e-5, atol=1e-6)
    assert np.abs(again[equal] - found[equal]).max(1).min() > 1e-4


def test_the_share_of_hidden_modalities():
    model, variables = made(fusion="concat", width=0, modality_dropout=0.3, **IMAGE, **TEXT)
    batch = {"image": np.tile(PIXELS[:1], (3000, 1, 1, 1)), "caption": np.tile(IDS[:1], (3000, 1))}
    features = np.asarray(apply(model, variables, batch, train=True).features)
    image, text = (features[:, :6] == 0).all(1), (features[:, 6:] == 0).all(1)
    assert not (image & text).any()
    assert abs(image.mean() - 0.15) < 0.03 and abs(text.mean() - 0.15) < 0.03


def test_members_with_traced_rates_equal_each_alone():
    variables = made(fusion="gated", **IMAGE, **TEXT, **WIDTH)[1]

    def logits(rate):
        backbone = registry.backbone("captioned", fusion="gated", modality_dropout=rate, **IMAGE, **TEXT, **WIDTH)
        model = Captioning(backbone, Head(num_classes=3))
        return model.apply(variables, BATCH, train=True, rngs={"dropout": jax.random.key(1)}).logits

    rates = jnp.array([0.0, 0.9])
    members = jax.jit(jax.vmap(logits))(rates)
    np.testing.assert_allclose(members, [jax.jit(logits)(rate) for rate in rates], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(members[0], jax.jit(lambda: logits(0.0))(), rtol=1e-4, atol=1e-5)
    assert np.abs(members[1] - members[0]).max() > 1e-3


def test_networks_are_hashable_and_drawn_together():
    options = {"fusion": "cross_attention", **IMAGE, **TEXT, **WIDTH}
    first, second = (registry.backbone("captioned", **options) for _ in range(2))
    assert first == second and hash(first) == hash(second)
    model, shapes = made(**options)
    small = BATCH | {"caption": jnp.zeros((1, 1), jnp.int32), "image": PIXELS[:1]}
    draw = jax.jit(lambda key: drawn_together(lambda: model.init({"params": key}, small, train=False), key))
    drawn = draw(jax.random.key(1))  # the length of the captions does not matter
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, shapes)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image": "", "text": ""}, "needs an image, a caption or both"),
        ({"fusion": "sum"}, "no fusion 'sum'"),
        ({"fusion": "gated", "width": 0}, "cannot have width 0"),
        ({"fusion": "cross_attention", "width": 9}, "width 9 cannot have 4 heads"),
        ({"width": -1}, "concat cannot have width -1"),
        ({"heads": 0}, "concat cannot have heads 0"),
        ({"modality_dropout": 1.5}, "modality_dropout of 1.5 is impossible"),
        ({"image": "unet"}, "cannot look at images with unet"),
        ({"image": "captioned"}, "cannot look at images with captioned"),
        ({"image": "resnet51"}, "there is no model 'resnet51'"),
        ({"text": "rnn"}, "no text encoder 'rnn'"),
        ({"text_options": {}}, "needs the option vocabulary"),
        ({"image_options": {"filter": 3}}, "the model grid_cnn has no option filter"),
        ({"texts": "bag"}, "captioned has no option texts"),
        (
            {"fusion": "cross_attention", "text": "bag", "text_options": {"vocabulary": 7, "width": 0}},
            "a bag of width 0 has none",
        ),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        made(**(IMAGE | TEXT | options))
