"""Do class counts reach the losses that need them, and do deferred class weights begin at their step?"""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from input_pipeline.cli import UserError
from research.losses import registry
from research.training import build
from tests.research.training.test_steps import batch, make, step

LABELS = np.array([0] * 40 + [1] * 10 + [2] * 50)


def trial(labels=LABELS, multi_label=False, num_classes=3, **loss):
    """What `build` reads of a trial."""
    config = common.default()
    config.epochs = 10.0
    config.batch_size = 8
    with config.unlocked():
        for key, value in loss.items():
            config.loss[key] = value
    dataset = types.SimpleNamespace(labels=labels, multi_label=multi_label)
    return types.SimpleNamespace(
        config=config, dataset=dataset, train_indices=np.arange(len(labels)), num_classes=num_classes
    )


def test_counts_are_those_of_the_training_examples():
    own = trial(name="logit_adjusted")
    own.train_indices = np.arange(10, 60)  # 30, 10 and 10 of the classes
    logits, targets = jnp.zeros((3, 3)), jnp.eye(3)
    expected = -np.log(np.array([0.6, 0.2, 0.2]))
    np.testing.assert_allclose(build.build_loss(own).fn(logits, targets), expected, rtol=1e-6)
    np.testing.assert_allclose(
        build.build_loss(trial(name="logit_adjusted", options={"tau": 0.0})).fn(logits, targets), np.log(3), rtol=1e-6
    )
    with pytest.raises(UserError, match="'ldam' needs training examples of every class; there are none of class 3"):
        build.build_loss(trial(name="ldam", num_classes=4))
    with pytest.raises(UserError, match="'ldam' is for one class per example"):
        build.build_loss(trial(np.eye(3)[LABELS], multi_label=True, name="ldam"))


@pytest.mark.parametrize(("accumulate", "options"), [(1, {}), (2, {"dca_weight": 1.0})])
def test_deferred_weights_are_one_before_their_step_and_all_there_from_it_on(accumulate, options):
    parts, start = make(batch_norm=False, accumulate=accumulate)
    parts = dataclasses.replace(parts, loss=registry.get("softmax_cross_entropy", **options))
    weights = jnp.array([0.2, 1.0, 4.0])
    without, deferred, weighted = (
        step(dataclasses.replace(parts, class_weights=w, class_weights_from=first))
        for w, first in ((None, 0), (weights, 2), (weights, 0))
    )
    plain = late = start
    for seed in range(2):
        plain, late = without(plain, batch(seed=seed), 0.1), deferred(late, batch(seed=seed), 0.1)
    for path in plain.params:
        np.testing.assert_allclose(late.params[path], plain.params[path], rtol=1e-5, atol=1e-7)
    expected, unweighted, late = weighted(late, batch(seed=2), 0.1), without(late, batch(seed=2), 0.1), deferred(
        late, batch(seed=2), 0.1
    )  # fmt: skip
    for path in late.params:
        np.testing.assert_allclose(late.params[path], expected.params[path], rtol=1e-5, atol=1e-7)
    assert max(np.abs(late.params[p] - unweighted.params[p]).max() for p in late.params) > 1e-3


def test_the_step_is_a_share_of_the_whole_training():
    # 100 examples, 10 epochs of 12.5 batches
    assert build.weights_begin(trial()) == 0
    assert build.weights_begin(trial(defer="0 %")) == 0
    assert build.weights_begin(trial(defer="80 %")) == 100
    assert build.weights_begin(trial(defer="2 epochs")) == 25
    two = trial(defer="50 %")
    two.config.phases = ({"name": "a", "steps": 30}, {"name": "b", "steps": 10, "batch_size": 16})
    assert build.weights_begin(two) == 20
    with pytest.raises(UserError, match="config.loss.defer is 'late'"):
        build.weights_begin(trial(defer="late"))
    with pytest.raises(UserError, match="step 125, but the training has 125 steps"):
        build.weights_begin(trial(defer="100 %"))
