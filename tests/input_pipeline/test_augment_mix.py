"""Do erasing, mixup and cutmix give what torchvision v2 gives, and does padding stay out of the mixture?"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import augment_mix as mixing
from input_pipeline.augment_random import symmetric_beta

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "augment_mix.npz")


@pytest.fixture(scope="module")
def drawn():
    return np.load(GOLDEN / "augment_draw.npz")


def mix_of(golden, *, cut, own):
    box = jnp.asarray(np.repeat(golden["box"][None], 4, axis=0), jnp.int32)
    partner = mixing.partners(jnp.ones(4, bool))
    return mixing.Mix(partner, jnp.full(4, cut), jnp.full(4, own, jnp.float32), box)


@pytest.mark.parametrize("name, cut, own", [("mixup", False, 0.37), ("cutmix", True, 1 - 18 / 63)])
def test_mixing_equals_torchvision(golden, name, cut, own):
    images, targets, _ = mixing.apply_mix(
        jnp.asarray(golden["images"]), jnp.asarray(golden["labels"]), None, mix_of(golden, cut=cut, own=own)
    )
    np.testing.assert_allclose(images, golden[f"{name}_images"], atol=1e-6)
    np.testing.assert_allclose(targets, golden[f"{name}_labels"], atol=1e-6)


def test_segmentation_takes_the_pasted_box(golden):
    segmentation = jnp.asarray(np.arange(4 * 7 * 9).reshape(4, 7, 9), jnp.int32)
    mix = mix_of(golden, cut=True, own=1 - 18 / 63)
    _, _, pasted = mixing.apply_mix(jnp.asarray(golden["images"]), jnp.asarray(golden["labels"]), segmentation, mix)
    expected = np.array(segmentation)
    expected[:, 1:4, 2:8] = np.roll(expected, 1, axis=0)[:, 1:4, 2:8]
    np.testing.assert_array_equal(pasted, expected)


def test_erasing_equals_torchvision(golden):
    box = mixing.Erase(*(jnp.full(4, side) for side in golden["erase_box"]))
    np.testing.assert_array_equal(mixing.apply_erase(jnp.asarray(golden["images"]), box), golden["erased"])
    nothing = box._replace(height=jnp.zeros(4, jnp.int32))
    np.testing.assert_array_equal(mixing.apply_erase(jnp.asarray(golden["images"]), nothing), golden["images"])


def test_erased_boxes_are_those_of_torchvision_for_the_same_numbers(drawn):
    draw = jax.jit(lambda fraction, probability: mixing.draw_erase(fraction, 13, 17, probability))
    ours = np.column_stack(draw(drawn["erase"], 1.0))
    erased = ours[:, 2] > 0
    np.testing.assert_array_equal(erased, drawn["erase_drawn"][:, 2] > 0)
    np.testing.assert_array_equal(ours[erased], drawn["erase_drawn"][erased])
    few = np.asarray(draw(drawn["erase"], 0.3).height) > 0
    np.testing.assert_array_equal(few, erased & (drawn["erase"][:, 20] < 0.3))


def test_noise_is_standard_normal_and_differs_by_example():
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), jnp.arange(3))
    noise = np.asarray(mixing.draw_noise(keys, (20, 20, 3)))
    assert abs(noise.mean()) < 0.06 and abs(noise.std() - 1) < 0.05
    assert np.abs(noise[0] - noise[1]).max() > 0.5


def test_cutmix_boxes_and_shares_are_those_of_torchvision(drawn, monkeypatch):
    share = jnp.asarray(drawn["share"])
    monkeypatch.setattr(mixing, "symmetric_beta", lambda fraction, alpha: share)
    valid = jnp.ones(len(share), bool)
    mix = mixing.draw_mix(jnp.asarray(drawn["mix"]), valid, 13, 17, cutmix=1.0)
    np.testing.assert_array_equal(mix.box, drawn["cutmix_drawn"][:, :4])
    np.testing.assert_allclose(mix.own, drawn["cutmix_drawn"][:, 4], atol=1e-6)
    assert np.all(mix.cut)
    mix = mixing.draw_mix(jnp.asarray(drawn["mix"]), valid, 13, 17, mixup=1.0)
    np.testing.assert_array_equal(mix.own, share)
    both = mixing.draw_mix(jnp.asarray(drawn["mix"]), valid, 13, 17, mixup=0.2, cutmix=1.0)
    np.testing.assert_array_equal(both.cut, drawn["mix"][:, 2] < 0.5)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 5.0])
def test_shares_follow_the_beta_distribution(alpha):
    stats = pytest.importorskip("scipy.stats")
    fraction = jax.random.uniform(jax.random.key(7), (20000, 2))
    sample = np.asarray(jax.jit(symmetric_beta)(fraction, alpha), np.float64)
    assert np.all((sample >= 0) & (sample <= 1))
    # Points, not the sample: float32 rounds tiny shares to 0, which a Kolmogorov-Smirnov test would count.
    for point in (0.01, 0.05, 0.2, 0.5, 0.7, 0.95, 0.99):
        expected = stats.beta.cdf(point, alpha, alpha)
        assert abs(np.mean(sample <= point) - expected) < 4 * np.sqrt(expected * (1 - expected) / 20000) + 1e-9


def test_partners_skip_padding_wherever_it_is():
    valid = jnp.array([False, True, True, False, True, False])
    np.testing.assert_array_equal(mixing.partners(valid), [0, 4, 1, 3, 2, 5])
    np.testing.assert_array_equal(mixing.partners(jnp.ones(4, bool)), np.roll(np.arange(4), 1))
    np.testing.assert_array_equal(mixing.partners(jnp.zeros(2, bool)), [0, 1])


@pytest.mark.parametrize("alphas", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_padding_is_neither_mixed_nor_mixed_in(alphas):
    valid = jnp.array([True, True, True, False, False])
    images = jnp.where(valid[:, None, None, None], 1.0, jnp.nan) * jnp.ones((5, 6, 6, 1))
    targets = jnp.where(valid[:, None], jnp.eye(5), 9.0)
    fraction = jax.random.uniform(jax.random.key(0), (5, 5))

    @jax.jit
    def run(fraction, valid, images, targets):
        return mixing.apply_mix(images, targets, None, mixing.draw_mix(fraction, valid, 6, 6, **alphas))

    mixed, mixed_targets, _ = run(fraction, valid, images, targets)
    assert np.all(np.isfinite(mixed[:3]))
    np.testing.assert_allclose(mixed_targets.sum(axis=1)[:3], 1.0, atol=1e-6)
    np.testing.assert_array_equal(mixed_targets[3:], targets[3:])


def test_an_alpha_of_zero_that_is_an_input_never_mixes():
    fraction = jax.random.uniform(jax.random.key(0), (5, 5))
    own = jax.jit(lambda alpha: mixing.draw_mix(fraction, jnp.ones(5, bool), 6, 6, mixup=alpha).own)
    np.testing.assert_array_equal(own(0.0), 1.0)
    assert np.all(np.asarray(own(1.0)) < 1.0)
