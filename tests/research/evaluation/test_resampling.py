"""Are groups drawn whole, as often as they should be, within their strata, and alike in blocks of any size?"""

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.evaluation import resampling


def drawn(num_groups, n, seed, strata=None):
    return np.concatenate(list(resampling.draws(num_groups, n, seed, strata=strata)))


def test_every_stratum_keeps_its_number_of_groups():
    strata = np.array([2, 0, 1, 0, 2, 2, 0, 3, 2, 0, 1])
    groups = drawn(11, 3001, 4, strata)
    assert groups.shape == (3001, 11)
    counts = np.stack([(strata[groups] == stratum).sum(axis=1) for stratum in range(4)])
    assert (counts == np.bincount(strata)[:, None]).all()
    # Uniform within a stratum: each group once on average.
    np.testing.assert_allclose(np.bincount(groups.ravel()) / 3001, 1.0, atol=0.1)
    assert (groups == 7).sum() == 3001  # a stratum of one


@pytest.mark.parametrize("strata", [None, np.array([0, 1, 0, 1, 1, 0, 2, 2, 0])])
def test_blocks_do_not_change_the_draws_nor_the_weights(strata, monkeypatch):
    whole = drawn(9, 101, 5, strata)
    weights = np.concatenate(list(resampling.weights(9, 101, 5, strata=strata)))
    assert np.array_equal(weights, [np.bincount(row, minlength=9) for row in whole])
    left_out = np.concatenate(list(resampling.jackknife_weights(9)))
    assert np.array_equal(left_out, 1 - np.eye(9))
    monkeypatch.setattr(resampling, "BLOCK", 9 * 7)
    assert np.array_equal(drawn(9, 101, 5, strata), whole)
    assert np.array_equal(np.concatenate(list(resampling.weights(9, 101, 5, strata=strata))), weights)
    assert np.array_equal(np.concatenate(list(resampling.jackknife_weights(9))), left_out)
    assert not np.array_equal(drawn(9, 101, 6, strata), whole)


def test_a_mixed_group_belongs_to_most_of_its_examples():
    index, num_groups = resampling.group_index(["a", "a", "b", "b", "b", "c"], 6)
    strata = resampling.group_strata([1, 0, 2, 2, 0, 1], index, num_groups)
    assert strata.tolist() == [0, 2, 1]  # a tie, a majority, one example
    assert resampling.group_strata(None, index, num_groups) is None


def test_the_examples_of_drawn_groups_are_all_of_theirs():
    index = np.array([1, 0, 2, 1, 1, 0])
    members = resampling.members_of(index, 3)
    assert resampling.examples_of(np.array([1, 1, 2]), *members).tolist() == [0, 3, 4, 0, 3, 4, 2]


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="strata do not fit"):
        resampling.group_strata([0, 1], np.arange(3), 3)
    with pytest.raises(UserError, match="groups do not fit"):
        resampling.group_index([0, 1], 3)
    with pytest.raises(UserError, match="replicate"):
        resampling.check(0, 0.95)
