"""Are curves, pointing game, mass and the randomisation check what loops, SciPy and closed forms give?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from scipy.special import expit
from scipy.stats import spearmanr

from research.explain import checks, faithfulness, methods, randomization
from research.explain.cases import Case
from research.explain.faithfulness import area_under_curve, mass_inside, pointing_game
from research.explain.network import Network
from research.models import registry
from research.models.initialize import initialize
from tests.research.explain import tiny

curve = jax.jit(faithfulness.curve, static_argnames=("steps", "multi_label", "insertion"))


@pytest.mark.parametrize("insertion", [False, True])
@pytest.mark.parametrize("multi_label", [False, True])
def test_curves_of_a_linear_model(insertion, multi_label):
    """Of a linear logit the map of contributions is known, and with it the whole curve."""
    random = np.random.default_rng(0)
    weights = random.normal(size=(2, 3, 5, 2))
    weights[1] = 0  # the other logit is 0.5 whatever the image
    images = random.normal(size=(2, 3, 5, 2))
    maps = (images * weights[0]).sum(-1)  # contribution of each pixel against a black baseline
    found = curve(
        tiny.linear(weights), jnp.asarray(images, jnp.float32), jnp.array([0, 0]), jnp.asarray(maps, jnp.float32),
        jnp.zeros(()), steps=5, multi_label=multi_label, insertion=insertion,
    )  # fmt: skip
    ordered = -np.sort(-maps.reshape(2, -1), axis=1)
    gone = np.concatenate([np.zeros((2, 1)), ordered.cumsum(1)], axis=1)[:, ::3]  # 0, 3, … 15 pixels
    logit = 0.5 + (gone if insertion else maps.sum((1, 2))[:, None] - gone)
    expected = expit(logit) if multi_label else expit(logit - 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(area_under_curve(found), np.trapezoid(expected, dx=0.2, axis=1), rtol=1e-4)
    # No other order deletes faster, or inserts faster.
    other = curve(
        tiny.linear(weights), jnp.asarray(images, jnp.float32), jnp.array([0, 0]), tiny.images(2, 3, 5),
        jnp.zeros(()), steps=5, multi_label=multi_label, insertion=insertion,
    )  # fmt: skip
    better = area_under_curve(found) - area_under_curve(other)
    assert (better > 0).all() if insertion else (better < 0).all()


def test_equal_values_go_in_reading_order():
    net = tiny.linear(np.arange(6).reshape(1, 2, 3, 1) * np.array([1.0, 0.0]).reshape(2, 1, 1, 1))
    found = curve(
        net,
        jnp.ones((1, 2, 3, 1)),
        jnp.array([0]),
        jnp.zeros((1, 2, 3)),
        jnp.zeros(()),
        steps=6,
        multi_label=False,
        insertion=True,
    )
    np.testing.assert_allclose(found[0], expit(np.cumsum([0, 0, 1, 2, 3, 4, 5])), rtol=1e-5)


def test_pointing_game_and_mass():
    maps = np.array([[[0, 3, -9], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]], [[-1, -2, -3], [-4, -5, -6]]], float)
    regions = np.zeros((3, 2, 3), bool)
    regions[:, :, 0] = True
    np.testing.assert_array_equal(pointing_game(maps, regions), [False, False, True])
    np.testing.assert_allclose(mass_inside(maps, regions), [0.25, np.nan, np.nan])
    with pytest.raises(ValueError, match="do not fit regions"):
        mass_inside(maps, regions[:, :, :2])


def test_rank_correlation():
    random = np.random.default_rng(1)
    first, second = random.integers(0, 5, (2, 6, 7))  # many draws
    assert randomization.rank_correlation(first, second) == pytest.approx(spearmanr(first.ravel(), second.ravel())[0])
    assert randomization.rank_correlation(first, np.exp(first)) == pytest.approx(1.0)
    assert np.isnan(randomization.rank_correlation(first, np.ones((6, 7))))


def test_ssim_of_small_and_constant_maps():
    flat = np.zeros((3, 2))
    assert randomization.ssim(flat, flat) == pytest.approx(1.0)
    assert randomization.ssim(flat, flat + 1.0) < 0.01
    np.testing.assert_array_equal(randomization.scaled(np.stack([flat, flat + 2])), 0.0)


def small_network(seed: int = 0) -> Network:
    model = registry.create("simple_cnn", num_classes=3, widths=(4, 5))
    return Network(initialize(model, jax.random.key(seed), 9, 2), model)


def test_cascade_replaces_modules_from_the_logits_downwards():
    net = small_network()
    before, last = flatten_dict(net.variables, sep="/"), set()
    order = ["head/logits", "block_2_1/norm", "block_2_1/conv", "block_1_1/norm", "block_1_1/conv"]
    for lowest, count, changed in randomization.cascade(net, 9, 2, seed=0, shares=(0.0, 0.4, 1.0)):
        after = flatten_dict(changed.variables, sep="/")
        assert after.keys() == before.keys() and lowest.endswith(order[count - 1])
        # Biases and running statistics have one initial value, so only kernels tell.
        differ = {path for path, value in after.items() if not np.array_equal(value, before[path])}
        expected = {f"{name}/kernel" for name in order[:count] if not name.endswith("norm")}
        assert {path.removeprefix("params/").removeprefix("backbone/") for path in differ} == expected
        assert differ > last or count == 2
        last = differ
    assert count == 5


def test_tables_of_a_few_cases():
    """Every figure of the table, its means, the control of a random order, and what random weights do."""
    net = small_network(1)
    raw = np.random.default_rng(3).integers(0, 256, (4, 9, 9, 2)).astype(np.uint8)
    explainer = methods.Explainer(
        net, lambda x: x.astype(jnp.float32) / 255, 3, False, methods.Options(layer="block_1", steps=4, curve_steps=4)
    )
    cases = [Case(f"a{i}", i, i % 3, "abc"[i % 3], 0.5, ("a",), ("b",), False, f"g{i // 2}") for i in range(4)]
    targets = np.array([case.target for case in cases])
    maps = {name: explainer.maps(name, raw, targets) for name in ("gradcam", "integrated_gradients")}
    regions = np.zeros((4, 9, 9), bool)
    regions[:3, :, :4] = True  # the last one is unknown
    table = checks.rows(explainer, cases, raw, maps, regions, curves=True)
    assert [row["method"] for row in table[::4]] == ["gradcam", "integrated_gradients", checks.RANDOM]
    assert all(set(row) <= set(checks.COLUMNS) for row in table)
    assert [row["pointing"] is None for row in table[:4]] == [False, False, False, True]
    assert table[0]["region_share"] == pytest.approx(4 / 9) and table[0]["layer"] == "block_1"
    attributed = maps["integrated_gradients"][0].sum((1, 2))
    np.testing.assert_allclose(attributed - [row["logit_rise"] for row in table[4:8]],
                               [row["completeness_gap"] for row in table[4:8]], atol=1e-5)  # fmt: skip
    means = checks.summary(table)
    own = np.mean([row["deletion_auc"] for row in table[:4]])
    assert means[0]["deletion_auc"]["value"] == pytest.approx(own) and means[0]["n"] == 4
    assert means[0]["deletion_auc"]["low"] <= own <= means[0]["deletion_auc"]["high"]
    assert "gap" in means[1] and "gap" not in means[0] and "pointing" in means[2]
    lines = checks.cascade_rows(explainer, cases, raw, maps)
    assert len(lines) == 2 * 5 - 2 and {line["method"] for line in lines} == set(maps)  # 0.0 and 0.25 are one module
    assert min(line["ssim"] for line in lines) < 0.9
