"""Do attributions of genes equal Captum's, add up, and stop when they are accurate enough?"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.explain.integrated_gradients import integrated_gradients
from research.explain.network import Network
from research.genes.attribution import Options, RawNetwork, attribute
from tests.research.explain import tiny

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "genes.npz"


def images_of(table: np.ndarray) -> np.ndarray:
    return np.asarray(table, np.float32)[:, None, :, None]


def random_network(num_genes: int = 13, seed: int = 5):
    """A network that takes pictures of 4 x 4 with each gene twice, and what renders them."""
    pixel = np.random.default_rng(seed).permutation(np.arange(2 * 16) % num_genes).reshape(4, 8)

    def render(raw):
        return raw[:, 0, pixel, :] / 4 - 1

    pictures = render(jnp.zeros((1, 1, num_genes, 1)))
    return tiny.network(tiny.TwoLayers(), pictures), render


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN))


def golden_scores(golden):
    def scores(raw, targets):
        hidden = jax.nn.relu(raw[:, 0, :, 0] @ golden["kernel0"] + golden["bias0"])
        hidden = jnp.tanh(hidden @ golden["kernel1"] + golden["bias1"])
        logits = hidden @ golden["kernel2"] + golden["bias2"]
        return jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]

    return scores


@pytest.mark.parametrize("baseline", ["zero", "mean", "expected"])
def test_captum(golden, baseline):
    """golden/make_genes_golden.py ran Captum 0.9: 64 nodes in double precision, with the weights in genes.npz."""
    options = Options(baseline, first_steps=64, most_steps=64, batch_size=3, draws=len(golden["training"]))
    found = attribute(
        golden_scores(golden), images_of(golden["vectors"]), golden["targets"], golden["training"], options
    )
    expected = golden[baseline]
    assert np.linalg.norm(found.values - expected) <= 1e-3 * np.linalg.norm(expected)
    np.testing.assert_allclose(found.values, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(found.rise + found.gap, found.values.sum(1), rtol=1e-5, atol=1e-5)
    if baseline == "zero":
        own = golden["logits"][np.arange(len(found.rise)), golden["targets"]]
        at_zero = golden_scores(golden)(jnp.zeros((5, 1, 13, 1)), jnp.asarray(golden["targets"]))
        np.testing.assert_allclose(found.rise, own - at_zero, rtol=1e-4)


def test_expected_gradients_beside_captums_gradient_shap(golden):
    """GradientShap draws baseline and place on the path at random: 40,000 points leave about a percent."""
    difference = golden["expected"] - golden["gradient_shap"]
    assert np.linalg.norm(difference) < 0.03 * np.linalg.norm(golden["expected"])


def test_steps_are_doubled_until_each_sample_is_accurate(golden):
    vectors, targets = images_of(golden["vectors"]), golden["targets"]
    found = attribute(golden_scores(golden), vectors, targets, golden["training"], Options(first_steps=1, batch_size=2))
    assert found.converged.all() and found.error.max() <= 0.01
    assert set(found.steps) <= {1, 2, 4, 8, 16, 32, 64, 128, 256, 512} and len(set(found.steps)) > 1
    np.testing.assert_allclose(found.error, np.abs(found.gap) / np.maximum(np.abs(found.rise), 0.1))
    # With fewer steps than it took, the error was above the tolerance.
    worst = int(found.steps.argmax())
    before = Options(first_steps=int(found.steps[worst]) // 2, most_steps=int(found.steps[worst]) // 2)
    earlier = attribute(golden_scores(golden), vectors[[worst]], targets[[worst]], golden["training"], before)
    assert earlier.error[0] > 0.01 and not earlier.converged[0] and "1 of 1 samples miss 1 %" in earlier.note()
    assert "miss" not in found.note()


def test_equals_integrated_gradients_of_images_summed_through_the_layout():
    """The chain rule through the layout: a gene's attribution is the sum of those of its pixels."""
    net, render = random_network()
    vectors = images_of(np.random.default_rng(0).uniform(0, 9, (3, 13)))
    training = np.random.default_rng(1).uniform(0, 9, (6, 13)).astype(np.float32)
    targets = np.array([2, 0, 1])
    options = Options(first_steps=32, most_steps=32, batch_size=2)
    found = attribute(RawNetwork(net, render), vectors, targets, training, options)
    start = render(jnp.asarray(images_of(training.mean(0, keepdims=True))))
    drawn, gap = integrated_gradients(net, render(jnp.asarray(vectors)), jnp.asarray(targets), start, 32)
    pixel = np.asarray(render(jnp.arange(13.0)[None, None, :, None])[0, :, :, 0] * 4 + 4).round().astype(int)
    summed = np.stack([np.bincount(pixel.ravel(), np.asarray(own).ravel(), 13) for own in drawn])
    np.testing.assert_allclose(found.values, summed, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.gap, gap, atol=1e-4)


def test_contrast_does_not_change_when_all_logits_rise_together():
    net, render = random_network()
    params = net.variables["params"]
    vectors, targets = images_of(np.random.default_rng(0).uniform(0, 9, (2, 13))), np.array([0, 2])
    common = jnp.linspace(-3, 3, 4)[:, None]
    logits = params["logits"] | {"kernel": params["logits"]["kernel"] + common}
    other = Network({"params": params | {"logits": logits}}, net.model)
    options = Options("zero", most_steps=8)
    by_score = {
        score: [
            attribute(RawNetwork(own, render, score), vectors, targets, None, options).values for own in (net, other)
        ]
        for score in ("logit", "contrast")
    }
    np.testing.assert_allclose(*by_score["contrast"], atol=1e-4)
    assert np.abs(np.subtract(*by_score["logit"])).max() > 0.1


def test_batches_and_rows_do_not_change_the_result():
    net, render = random_network()
    vectors = images_of(np.random.default_rng(0).uniform(0, 9, (5, 13)))
    training = np.random.default_rng(1).uniform(0, 9, (30, 13))
    targets = np.array([2, 0, 1, 1, 0])
    run = {size: attribute(RawNetwork(net, render), vectors, targets, training, Options("expected", draws=3,
           most_steps=8, batch_size=size, seed=4)) for size in (2, 5, 32)}  # fmt: skip
    np.testing.assert_allclose(run[2].values, run[5].values, atol=1e-5)
    np.testing.assert_array_equal(run[5].values, run[32].values)
    other = attribute(RawNetwork(net, render), vectors, targets, training, Options("expected", draws=3, most_steps=8,
                      seed=5))  # fmt: skip
    assert np.abs(other.values - run[5].values).max() > 1e-3
    # Three drawn baselines: the rise is from the mean of their scores, which lies inside the range of all.
    scores = np.asarray(RawNetwork(net, render)(jnp.asarray(images_of(training)), jnp.zeros(30, int)))
    own = float(RawNetwork(net, render)(jnp.asarray(vectors[1:2]), jnp.zeros(1, int))[0])
    assert own - scores.max() <= run[5].rise[1] <= own - scores.min()


def test_the_weights_are_arguments_of_the_program():
    """A network with other weights runs the same program, so a cascade of random networks compiles once."""
    calls = []
    net, render = random_network()

    def counted(raw):
        calls.append(raw)
        return render(raw)

    vectors, targets = images_of(np.ones((2, 13))), np.array([0, 1])
    options = Options("zero", first_steps=2, most_steps=4, tolerance=1e-9)
    first = attribute(RawNetwork(net, counted), vectors, targets, None, options)
    traced = len(calls)
    other = net.replace(variables=jax.tree.map(lambda leaf: 2 * leaf, net.variables))
    second = attribute(RawNetwork(other, counted), vectors, targets, None, options)
    assert len(calls) == traced and traced > 0
    assert np.abs(first.values - second.values).max() > 1e-3


def test_floor_for_rises_of_nothing():
    """A score that is the same at both ends has no relative error; its attributions still add up to about zero."""

    def scores(raw, targets):
        return 5 * jnp.sin(raw[:, 0, 0, 0]) + 0 * targets

    vectors = images_of(np.array([[np.pi, 1.0], [2 * np.pi, 1.0]]))
    found = attribute(scores, vectors, np.zeros(2, int), None, Options("zero"))
    assert found.converged.all() and (np.abs(found.rise) < 1e-4).all()
    np.testing.assert_allclose(found.error, np.abs(found.gap) / 0.1)
    assert (found.values[:, 1] == 0).all()


@pytest.mark.parametrize(
    "options, training",
    [
        (Options("median"), np.ones((2, 13))),
        (Options("mean"), None),
        (Options("expected"), np.ones((0, 13))),
        (Options("zero", first_steps=0), None),
        (Options("zero", first_steps=16, most_steps=8), None),
        (Options("expected", draws=0), np.ones((2, 13))),
        (Options("zero", tolerance=float("nan")), None),
        (Options("zero", batch_size=0), None),
    ],
)
def test_nonsense(options, training):
    net, render = random_network()
    with pytest.raises(UserError):
        attribute(RawNetwork(net, render), images_of(np.ones((2, 13))), np.zeros(2, int), training, options)


def test_networks_that_are_broken_or_do_not_fit():
    vectors, targets = images_of(np.ones((2, 13))), np.zeros(2, int)
    with pytest.raises(UserError, match="not finite"):
        attribute(lambda raw, own: jnp.sqrt(raw.sum((1, 2, 3)) - 20), vectors, targets, None, Options("zero"))
    net, render = random_network()
    with pytest.raises(UserError, match="unknown"):
        attribute(RawNetwork(net, render, "softmax"), vectors, targets, None, Options("zero"))
    with pytest.raises(ValueError, match="7 genes"):
        attribute(RawNetwork(net, render), vectors, targets, np.ones((4, 7)))
    for own, classes in ((vectors[:, 0], targets), (vectors, targets[:1]), (vectors[:0], targets[:0])):
        with pytest.raises(ValueError):
            attribute(RawNetwork(net, render), own, classes, None, Options("zero"))
