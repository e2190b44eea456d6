"""Do the text encoders compute what their papers say, and does padding change nothing?"""

import functools
import itertools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from sklearn.feature_extraction.text import TfidfTransformer, TfidfVectorizer

from input_pipeline.cli import UserError
from research.models.initializers import drawn_together
from research.text import bert, encoders, recurrent, tokenizers
from research.text.layers import pool
from research.text.tokenizers_base import Weights, words

BERT = pathlib.Path(__file__).with_name("bert")
IDS = np.array([[3, 5, 1, 5, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0], [0] * 7, [6, 4, 3, 2, 1, 5, 6]], np.int32)
SIZES = {"width": 6, "layers": 1, "heads": 3, "intermediate": 10, "positions": 9}
CASES = {
    "bag": {"width": 5, "hidden": (4, 3)},
    "lstm": {"width": 5, "units": 3},
    "gru": {"width": 5, "units": 3},
    "transformer": {"width": 6, "heads": 2, "layers": 1, "positions": 9},
    "bert": SIZES,
}
each = pytest.mark.parametrize("name", CASES)


def made(name, ids=IDS, **options):
    """An encoder and variables of it, random all of them."""
    encoder = encoders.create(name, vocabulary=7, **(CASES[name] | options))
    shapes = jax.eval_shape(functools.partial(encoder.init, train=False), jax.random.key(0), ids)
    random = np.random.default_rng(4)
    values = jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.5, leaf.shape), jnp.float32), shapes)
    return encoder, values


@functools.lru_cache
def program(encoder, dtype):
    return jax.jit(functools.partial(encoder.apply, train=False, dtype=dtype))


def encode(encoder, variables, ids, dtype=jnp.float32):
    return program(encoder, dtype)(variables, ids)


@each
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_outputs_and_types_keep_the_contract(name, dtype):
    encoder, variables = made(name)
    found = encode(encoder, variables, IDS, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert found.features.dtype == jnp.float32 and found.sequence.dtype == dtype and found.mask.dtype == bool
    widths = {"bag": (3, 5), "lstm": (12, 6), "gru": (12, 6), "transformer": (12, 6), "bert": (6, 6)}[name]
    assert (found.features.shape, found.sequence.shape) == ((4, widths[0]), (4, 7, widths[1]))
    np.testing.assert_array_equal(found.mask, IDS != 0)
    assert not np.asarray(found.features[2]).any() and not np.asarray(found.sequence, np.float32)[IDS == 0].any()
    assert np.isfinite(found.features).all() and np.asarray(found.features).any(axis=1).tolist() == [1, 1, 0, 1]
    np.testing.assert_allclose(found.features, encode(encoder, variables, IDS).features, rtol=0.1, atol=0.1)


@each
def test_more_padding_changes_nothing(name):
    encoder, variables = made(name)
    found = encode(encoder, variables, IDS)
    for length in (4, 9):
        other = encode(encoder, variables, np.pad(IDS[:3], ((0, 0), (0, 2)))[:, :length])
        np.testing.assert_allclose(other.features, found.features[:3], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other.sequence[:, :4], found.sequence[:3, :4], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["bag", "lstm", "gru", "transformer"])
def test_padding_may_stand_anywhere(name):
    encoder, variables = made(name)
    expected = encode(encoder, variables, IDS[:1]).features[0]
    places = list(itertools.combinations(range(7), 4))
    spread = np.zeros((len(places), 7), np.int32)
    for row, chosen in zip(spread, places, strict=True):
        row[list(chosen)] = IDS[0, :4]
    found = encode(encoder, variables, spread)
    np.testing.assert_allclose(found.features, np.tile(expected, (len(places), 1)), rtol=1e-5, atol=1e-6)


@each
def test_the_order_of_words_counts_but_for_bags(name):
    encoder, variables = made(name)
    found = encode(encoder, variables, np.stack([IDS[3], IDS[3, ::-1]])).features
    assert (np.abs(found[0] - found[1]).max() < 1e-5) == (name == "bag")


@each
def test_gradients_are_finite_and_a_missing_caption_has_none(name):
    encoder, variables = made(name)

    def total(values, ids):
        return jnp.sum(encoder.apply(values, ids, train=False).features ** 2)

    slopes = jax.jit(jax.grad(total))
    with jax.debug_nans(True):
        mixed, missing = (slopes(variables, ids) for ids in (IDS, np.zeros_like(IDS)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(mixed))
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(mixed))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(missing))


@each
def test_gradients_equal_differences(name):
    encoder, variables = made(name)
    weights = np.random.default_rng(8).normal(size=(4, {"bag": 3, "bert": 6}.get(name, 12)))
    if name not in ("bag", "bert"):
        weights[:, :6] = 0.0  # the largest values have kinks, see the next test
    leaves, tree = jax.tree.flatten(variables)
    along = [jnp.asarray(np.random.default_rng(9).normal(size=leaf.shape), jnp.float32) for leaf in leaves]

    @jax.jit
    def moved(step):
        values = tree.unflatten([leaf + step * way for leaf, way in zip(leaves, along, strict=True)])
        return jnp.sum(weights * encoder.apply(values, IDS, train=False).features)

    slope = jax.jit(jax.grad(moved))(0.0)
    steps = (moved(2e-3) - moved(-2e-3)) / 4e-3
    np.testing.assert_allclose(slope, steps, rtol=2e-2, atol=2e-2)


def test_the_gradient_of_pooling_goes_to_the_largest_and_to_all():
    sequence, mask = jnp.array([[[1.0], [4.0], [9.0], [3.0]], [[2.0]] * 4]), jnp.array([[1, 1, 0, 1], [0] * 4], bool)
    np.testing.assert_allclose(pool(sequence, mask), [[4, 8 / 3], [0, 0]])
    slope = jax.grad(lambda values: jnp.sum(pool(values, mask) * jnp.array([10.0, 3.0])))(sequence)
    np.testing.assert_allclose(slope[..., 0], [[1, 11, 0, 1], [0] * 4], rtol=1e-6)


@each
def test_variables_can_be_drawn_together(name):
    encoder = encoders.create(name, vocabulary=7, **CASES[name])
    draw = jax.jit(lambda key: drawn_together(lambda: encoder.init({"params": key}, IDS, train=False), key))
    first, second = draw(jax.random.key(1)), draw(jax.random.key(2))
    assert jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, made(name)[1])
    kernels = [leaf for leaf in jax.tree.leaves(first) if leaf.ndim > 1 and np.asarray(leaf).any()]
    assert kernels and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


@each
def test_dropout_may_be_traced_and_hides_words_in_training_only(name):
    rates = jnp.array([0.0, 0.4])
    rate = "dropout" if name == "bert" else "word_dropout"
    variables = made(name)[1]
    rest = {} if name == "bert" else {"dropout": 0.0}

    def features(value, train):
        encoder = encoders.create(name, vocabulary=7, **(CASES[name] | rest | {rate: value}))
        return encoder.apply(variables, IDS, train=train, rngs={"dropout": jax.random.key(1)}).features

    members = jax.jit(jax.vmap(lambda value: features(value, True)))(rates)
    plain = encode(encoders.create(name, vocabulary=7, **(CASES[name] | rest)), variables, IDS).features
    np.testing.assert_allclose(members[0], plain, rtol=1e-4, atol=1e-5)
    assert np.abs(members[1] - plain).max() > 1e-2 and np.isfinite(members).all()


def test_bags_equal_scikit_learn():
    captions = ["a dog and a horse", "the dog", "a boat", "horse horse horse dog", ""]
    tokenizer = tokenizers.build("word_ngrams", captions, {"bits": 12, "min_count": 1})
    plain = {"width": 0, "vocabulary": tokenizer.size}
    bag = encoders.create("bag", **plain, weights=tokenizer.weights)
    found = np.asarray(encode(bag, {}, tokenizer.encode(captions)).features)
    vectorizer = TfidfVectorizer(tokenizer=words, lowercase=False, token_pattern=None, ngram_range=(1, 2))
    expected = vectorizer.fit(captions[:-1]).transform(captions).toarray()
    order = [tokenizer.encode([name])[0, 2 * name.count(" ")] - 1 for name in vectorizer.get_feature_names_out()]
    np.testing.assert_allclose(found[:, order], expected, rtol=1e-5, atol=1e-6)
    assert np.count_nonzero(found) == np.count_nonzero(expected)
    counts = encode(encoders.create("bag", **plain), {}, tokenizer.encode(captions)).features
    scaled = encode(encoders.create("bag", **plain, normalize=True), {}, tokenizer.encode(captions)).features
    expected = TfidfTransformer(use_idf=False).fit_transform(np.asarray(counts)).toarray()
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)
    assert counts[3].max() == 3


def test_an_embedding_is_linear_on_the_bag():
    weights = Weights(np.array([0, 1, 2, 0.5, 0, 3, 1]))
    encoder, variables = made("bag", hidden=(), weights=weights)
    table = np.asarray(variables["params"]["embedding"]["embedding"])
    for row, found in zip(IDS, encode(encoder, variables, IDS).features, strict=True):
        bag = np.bincount(row[row > 0], minlength=7) * weights.values
        np.testing.assert_allclose(found, bag @ table / max(np.linalg.norm(bag), 1e-9), rtol=1e-5, atol=1e-6)


def test_a_bag_whose_words_weigh_nothing_is_finite():
    encoder, variables = made("bag", weights=Weights(np.zeros(7)))
    with jax.debug_nans(True):
        slopes = jax.jit(jax.grad(lambda values: jnp.sum(encoder.apply(values, IDS, train=False).features)))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def _run(name, layer, vectors):
    """The states of one layer over `[l, E]`, forwards and backwards, `[l, 2 H]`, by loops."""
    directions = []
    for way, part in ((1, layer["forwards"]), (-1, layer["backwards"])):
        state = cell = np.zeros(len(part["state_kernel"]))
        states = []
        for vector in vectors[::way]:
            given = vector @ part["input_kernel"] + part["input_bias"]
            recalled = state @ part["state_kernel"] + part["state_bias"]
            if name == "lstm":
                admit, keep, candidate, show = np.split(given + recalled, 4)
                cell = expit(keep + 1) * cell + expit(admit) * np.tanh(candidate)
                state = expit(show) * np.tanh(cell)
            else:
                (r, z, n), (r_h, z_h, n_h) = np.split(given, 3), np.split(recalled, 3)
                update, new = expit(z + z_h), np.tanh(n + expit(r + r_h) * n_h)
                state = (1 - update) * new + update * state
            states.append(state)
        directions.append(np.array(states)[::way])
    return np.concatenate(directions, axis=1)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_recurrent_networks_equal_loops(name):
    encoder, variables = made(name, layers=2)
    params = jax.tree.map(np.asarray, variables["params"])
    found = encode(encoder, variables, IDS)
    for row, features, sequence in zip(IDS, found.features, found.sequence, strict=True):
        if not row.any():
            continue
        states = params["embedding"]["embedding"][row[row > 0]]
        for layer in ("layer_1", "layer_2"):
            states = _run(name, params[layer], states)
        np.testing.assert_allclose(sequence[: len(states)], states, rtol=1e-4, atol=1e-5)
        expected = np.concatenate([states.max(0), states.mean(0)])
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_the_written_gradient_equals_that_of_a_plain_loop(name):
    """Every gradient, with padding anywhere, in one program of all steps without a scan."""
    random = np.random.default_rng(6)
    cell, gates, number = recurrent.CELLS[name]
    arrays = [random.normal(size=shape).astype(np.float32)
              for shape in ((5, 3, 4 * gates), (4, 4 * gates), (4 * gates,), (5, 3, 4))]  # fmt: skip
    there = random.random((5, 3, 1)) < 0.6

    def loop(given, kernel, bias):
        states, outputs = (jnp.zeros((3, 4)),) * number, []
        for products, valid in zip(given, there, strict=True):
            new = cell(products, states[0] @ kernel + bias, states)
            states = tuple(jnp.where(valid, after, before) for after, before in zip(new, states, strict=True))
            outputs.append(states[0])
        return jnp.stack(outputs)

    def written(given, kernel, bias):
        return recurrent.run(name, given, there, kernel, bias)

    def slopes(run):
        one = jax.value_and_grad(lambda *given: jnp.sum(run(*given) * arrays[3]), (0, 1, 2))
        twice = [np.stack([array, array / 2]) for array in arrays[:3]]
        return jax.jit(one)(*arrays[:3]), jax.jit(jax.vmap(one))(*twice)

    for found, expected in zip(*map(jax.tree.leaves, (slopes(written), slopes(loop))), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def _normal(values, layer):
    scaled = (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + 1e-6)
    return scaled * layer["norm"]["scale"] + layer["norm"]["bias"]


def _dense(values, layer):
    return values @ layer["kernel"] + layer["bias"]


def test_the_transformer_equals_loops():
    encoder, variables = made("transformer", layers=2)
    params = jax.tree.map(np.asarray, variables["params"])
    found = encode(encoder, variables, IDS)
    for row, features in zip(IDS, found.features, strict=True):
        ids = row[row > 0]
        if not len(ids):
            continue
        values = params["words"]["embedding"][ids] + params["positions"]["embedding"][: len(ids)]
        for number in (1, 2):
            block = params[f"block_{number}"]
            normal, heads = _normal(values, block["attention_norm"]), []
            query, key, value = (_dense(normal, block["attention"][part]) for part in ("query", "key", "value"))
            for head in (slice(0, 3), slice(3, 6)):
                shares = np.exp(query[:, head] @ key[:, head].T / np.sqrt(3))
                heads.append(shares / shares.sum(1, keepdims=True) @ value[:, head])
            values = values + _dense(np.concatenate(heads, axis=1), block["attention"]["output"])
            inner = np.asarray(jax.nn.gelu(_dense(_normal(values, block["dense_norm"]), block["dense_1"])))
            values = values + _dense(inner, block["dense_2"])
        values = _normal(values, params["norm"])
        np.testing.assert_allclose(features, np.concatenate([values.max(0), values.mean(0)]), rtol=1e-3, atol=1e-4)


def test_tokenizers_imply_options(tmp_path):
    bags = tokenizers.build("word_ngrams", ["a dog"], {"bits": 5})
    sequences = tokenizers.build("words", ["a dog"], {"max_length": 11})
    implied = encoders.options_for("bag", {"width": 3}, bags)
    assert implied == {"vocabulary": 33, "weights": bags.weights, "width": 3}
    assert encoders.options_for("transformer", {}, sequences) == {"vocabulary": sequences.size, "positions": 11}
    assert encoders.options_for("lstm", {}, sequences) == {"vocabulary": sequences.size}
    for name, tokenizer in (("lstm", bags), ("transformer", bags), ("bert", sequences), ("bird", bags)):
        with pytest.raises(UserError):
            encoders.options_for(name, {}, tokenizer)


def test_an_encoder_with_weights_is_hashable():
    """Programs are found again by the model."""
    first, second = (encoders.create("bag", vocabulary=3, weights=Weights([0, 1, 2])) for _ in range(2))
    assert first == second and hash(first) == hash(second)


def test_an_id_that_is_unknown_to_the_encoder_is_no_silent_number():
    encoder, variables = made("lstm")
    assert np.isnan(encode(encoder, variables, np.array([[7, 1]], np.int32)).features).any()


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("rnn", {}, "no text encoder 'rnn'; choose one of bag, lstm"),
        ("lstm", {"vocabulary": 7, "cell": "gru"}, "has no option cell; it has vocabulary, width, units"),
        ("lstm", {"vocabulary": 7, "units": 0}, "lstm cannot have units 0"),
        ("gru", {}, "needs the option vocabulary"),
        ("bag", {"vocabulary": 7, "hidden": (3, -1)}, "hidden_1 -1"),
        ("bag", {"vocabulary": 7, "weights": Weights(np.ones(6))}, "7 ids cannot have 6 weights"),
        ("transformer", {"vocabulary": 7, "width": 6, "heads": 4}, "cannot have 4 heads"),
        ("transformer", {"vocabulary": 7, "positions": 6}, "has 6 positions for texts of 7 ids"),
        ("bert", {"vocabulary": 7, **SIZES, "positions": 6}, "max_length to 6 or less"),
        ("bert", {"vocabulary": 7, **SIZES, "heads": 4}, "cannot have 4 heads"),
        ("bert", {"vocabulary": 7, **SIZES, "epsilon": 0.0}, "epsilon 0.0"),
        ("lstm", {"vocabulary": 7, "word_dropout": 1.0}, "word_dropout of 1.0 is impossible"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(
            lambda: encoders.create(name, **options).init(
                {"params": jax.random.key(0), "dropout": jax.random.key(1)}, IDS, train=True
            )
        )


def test_configs_of_other_networks_are_refused(tmp_path):
    path = tmp_path / "config.json"
    shutil.copy(BERT / "config.json", path)
    content = json.loads(path.read_text())
    assert bert.read_sizes(str(tmp_path)) == bert.read_sizes(str(path))
    assert encoders.create("bert", **bert.options(str(path))).sizes == bert.read_sizes(str(path))
    for change in (
        {"model_type": "roberta"}, {"hidden_act": "relu"}, {"position_embedding_type": "relative_key"},
        {"is_decoder": True}, {"hidden_size": "24"}, {"num_attention_heads": 5}, {"layer_norm_eps": "x"},
        {"num_hidden_layers": 0}, {"vocab_size": None},
    ):  # fmt: skip
        path.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match="config.json"):
            bert.read_sizes(str(path))
    for text in ("{", "[]", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            bert.read_sizes(str(path))
    with pytest.raises(UserError, match="there is no"):
        encoders.create("bert", folder=str(tmp_path / "none"))
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="knows 61 ids and the tokeniser has 62"):
        encoders.create("bert", vocabulary=62, folder=str(tmp_path))
