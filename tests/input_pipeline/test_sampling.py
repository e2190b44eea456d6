"""The order of examples: a pure function of seed, step and batch size, balanced as its kind says."""

import concurrent.futures
import hashlib
import pickle

import numpy as np
import pytest

from input_pipeline.cli import UserError
from input_pipeline.sampling import KINDS, Sampler, epoch_order, repeat_factors

LABELS = np.array([0] * 23 + [1] * 9 + [2] * 2 + [3] * 1)
INDICES = np.arange(0, 35)[::-1]
MULTI = np.zeros((29, 4), np.float32)
MULTI[:27, 0] = 1
MULTI[5:10, 1] = 1
MULTI[8, 2] = 1

GOLDEN_ORDER = [5, 7, 0, 4, 2, 3, 6, 8, 1, 9]
GOLDEN_HASH = "f009785ad8a597fedfb180cf1650ff67ed468154808c5a0d560fa72c8773637d"


def stream(sampler: Sampler, draws: int, batch_size: int) -> np.ndarray:
    return np.concatenate([sampler.batch(step, batch_size) for step in range(-(-draws // batch_size))])[:draws]


def test_epoch_order_is_a_permutation_that_never_changes():
    order = epoch_order(0, 0, 1000)
    assert order.dtype == np.int64 and sorted(order) == list(range(1000))
    # Golden: the order belongs to checkpoints, so it may never change, with any version of NumPy.
    assert epoch_order(3, 5, 10).tolist() == GOLDEN_ORDER
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest() == GOLDEN_HASH
    assert epoch_order(0, 0, 0).tolist() == [] and epoch_order(0, 0, 1).tolist() == [0]


def test_seeds_and_epochs_are_hashed():
    orders = {(seed, epoch): tuple(epoch_order(seed, epoch, 50)) for seed in range(5) for epoch in range(5)}
    assert len(set(orders.values())) == 25


def test_epoch_order_is_uniform():
    """Each example at each place equally often: chi-squared over 8 x 8 cells, 49 degrees of freedom."""
    counts = np.zeros((8, 8))
    for epoch in range(2000):
        counts[np.arange(8), epoch_order(1, epoch, 8)] += 1
    statistic = ((counts - 250) ** 2 / 250).sum()
    assert 15 < statistic < 110


def test_uniform_covers_every_epoch_and_straddles_epochs():
    sampler = Sampler("uniform", LABELS, INDICES, seed=7)
    drawn = stream(sampler, 35 * 3, batch_size=8)  # 35 is no multiple of 8
    for epoch in range(3):
        part = drawn[35 * epoch : 35 * (epoch + 1)]
        assert sorted(part) == list(range(35))
        assert part.tolist() == INDICES[epoch_order(7, epoch, 35)].tolist()
    straddling = sampler.batch(4, 8)  # positions 32..39
    assert straddling.tolist() == drawn[32:40].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [LABELS[:29], MULTI], ids=["single", "multi"])
def test_batch_is_a_pure_function(kind, labels):
    """Neither what was asked before, nor threads, nor pickling, nor the batch size change the stream."""
    indices = np.arange(29)
    sampler = Sampler(kind, labels, indices, seed=3, repeat_threshold=0.2)
    expected = stream(sampler, 120, batch_size=7)
    fresh = Sampler(kind, labels, indices, seed=3, repeat_threshold=0.2)
    for step in (9, 2, 16, 0, 9):
        assert fresh.batch(step, 7).tolist() == expected[7 * step : 7 * step + 7].tolist()
    copy = pickle.loads(pickle.dumps(sampler))
    for batch_size in (1, 29, 64):
        assert stream(copy, 120, batch_size).tolist() == expected.tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(lambda step: Sampler.batch(copy, step, 5), range(24)))
    assert np.concatenate(batches).tolist() == expected.tolist()
    other = stream(Sampler(kind, labels, indices, seed=4, repeat_threshold=0.2), 120, 7)
    assert other.tolist() != expected.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_given_indices_are_drawn(kind):
    indices = np.array([31, 2, 30, 33, 4])
    drawn = stream(Sampler(kind, LABELS, indices, seed=0), 50, batch_size=4)
    assert set(drawn) == set(indices)


def test_class_balanced_draws_classes_equally_often():
    sampler = Sampler("class_balanced", LABELS, INDICES, seed=1)
    assert sampler.epoch_length == 35
    drawn = stream(sampler, 35 * 8, batch_size=6)
    for epoch in range(8):
        counts = np.bincount(LABELS[drawn[35 * epoch : 35 * (epoch + 1)]], minlength=4)
        assert counts.max() - counts.min() <= 1
    assert np.bincount(LABELS[drawn]).tolist() == [70] * 4
    # A class uses up its examples before it repeats one.
    counts = np.bincount(drawn, minlength=35)
    for label in range(4):
        own = counts[LABELS == label]
        assert own.max() - own.min() <= 1 and own.min() >= 1
    # And classes are mixed, not in turn.
    assert len({tuple(LABELS[drawn[4 * i : 4 * i + 4]]) for i in range(60)}) > 20


def test_class_balanced_multi_label_includes_examples_without_labels():
    drawn = stream(Sampler("class_balanced", MULTI, np.arange(29), seed=1), 29 * 4, batch_size=5)
    counts = np.bincount(drawn, minlength=29)
    # Four pools (three classes that occur, and no label at all) share 116 draws: 29 each.
    assert counts[27:].sum() == 29
    assert counts[8] >= 29  # the only example of class 2
    assert (counts > 0).all()


def test_repeat_factors_are_those_of_the_paper():
    factors = repeat_factors(MULTI, threshold=0.5)
    frequency = {0: 27 / 29, 1: 5 / 29, 2: 1 / 29}
    for row in range(29):
        own = [frequency[c] for c in range(3) if MULTI[row, c]] or [2 / 29]  # two examples have no label
        assert factors[row] == pytest.approx(max(max(1.0, np.sqrt(0.5 / f)) for f in own), rel=1e-12)
    assert (repeat_factors(LABELS, 1e-6) == 1).all()


def test_repeat_factor_sampling_has_the_wanted_frequencies():
    factors = repeat_factors(LABELS, threshold=0.4)
    sampler = Sampler("repeat_factor", LABELS, np.arange(35), seed=2, repeat_threshold=0.4)
    length = sampler.epoch_length
    assert length == int(np.ceil(factors.sum()))
    wanted = factors * length / factors.sum()
    counts = np.stack([np.bincount(sampler.epoch(epoch), minlength=35) for epoch in range(400)])
    assert (counts.sum(axis=1) == length).all()
    assert (counts >= np.floor(wanted)).all() and (counts <= np.ceil(wanted)).all() and counts.min() >= 1
    # A count is floor or ceil, so its standard deviation is at most 1/2 per epoch, 0.025 over 400: five of them.
    assert np.abs(counts.mean(axis=0) - wanted).max() < 0.125


def test_repeat_factor_without_rare_classes_is_an_ordinary_epoch():
    sampler = Sampler("repeat_factor", LABELS, np.arange(35), seed=2)
    assert sampler.epoch_length == 35 and sorted(sampler.epoch(3)) == list(range(35))


def test_refusals():
    with pytest.raises(UserError, match="unknown sampler 'balanced': choose one of uniform, class_balanced"):
        Sampler("balanced", LABELS, INDICES, 0)
    with pytest.raises(UserError, match="no examples to sample from"):
        Sampler("uniform", LABELS, [], 0)
    with pytest.raises(UserError, match="must be a fraction"):
        Sampler("repeat_factor", LABELS, INDICES, 0, repeat_threshold=2)
