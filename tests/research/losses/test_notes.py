"""Does a comparison of losses say which of them are one, and is what it says true?"""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from input_pipeline.cli import UserError
from research.losses.notes import best_probability, equal_gradients, notes

CE, KL, FOCAL = ("softmax_cross_entropy", {}), ("kl_divergence", {}), ("focal_categorical", {})


def test_kl_and_cross_entropy_are_one_loss():
    (text, explanation) = notes([CE, KL, FOCAL, CE], 3)
    assert text.startswith("softmax_cross_entropy and kl_divergence minimise one function: ")
    assert "one-hot" in explanation
    assert notes([CE, FOCAL], 3) == []
    assert len(notes([KL], 3)) == 1


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (CE, KL, True),
        (CE, ("kl_divergence", {"dca_weight": 1.0}), False),
        (("softmax_cross_entropy", {"dca_weight": 1}), ("kl_divergence", {"dca_weight": 1.0}), True),
        (("softmax_cross_entropy", {"entropy_weight": 0.001}), KL, False),
        (CE, ("softmax_cross_entropy", {"label_smoothing": 0.0}), True),
        (CE, ("softmax_cross_entropy", {"label_smoothing": 0.2}), False),
        (FOCAL, ("focal_categorical", {"gamma": 2.0, "alpha": 1.0}), True),
        (FOCAL, CE, False),
        (("focal_categorical", {"gamma": 0.0}), CE, True),
        (("focal_categorical", {"gamma": 0.0, "alpha": 0.5}), CE, False),
        (("asymmetric_categorical", {"label_smoothing": 0.0}), CE, True),
        (("asymmetric_categorical", {}), CE, False),
        (("logit_adjusted", {"tau": 0.0}), KL, True),
        (("logit_adjusted", {}), ("ldam", {}), False),
    ],
)
def test_equal_gradients(one, other, equal):
    assert bool(equal_gradients([one, other])) == equal
    assert equal_gradients([one, one]) == []  # seeds of one setting


@pytest.mark.parametrize(("beta", "num_classes"), [(2.0, 3), (0.1, 3), (1.0, 28), (5.0, 2)])
def test_the_best_probability_under_the_entropy_regulariser(beta, num_classes):
    def loss(p):
        rest = (1 - p) / (num_classes - 1)
        return -np.log(p) + beta * (p * np.log(p) + (1 - p) * np.log(rest))

    found = minimize_scalar(loss, bounds=(1 / num_classes, 1 - 1e-9), method="bounded", options={"xatol": 1e-9})
    assert abs(best_probability(beta, num_classes) - found.x) < 1e-5


def test_every_defect_of_the_original_is_named_once():
    paper = [
        CE,
        ("softmax_cross_entropy", {"entropy_weight": 2.0}),
        KL,
        FOCAL,
        ("categorical_hinge", {}),
        ("focal_categorical", {"label_smoothing": 0.2}),
        ("softmax_cross_entropy", {"dca_weight": 1.0}),
        ("kl_divergence", {"dca_weight": 1.0}),
    ]
    found = notes(paper * 3, 3)
    assert len(found) == len(set(found))
    for words in (
        "softmax_cross_entropy (dca_weight 1) and kl_divergence (dca_weight 1) minimise",
        "1 + ε / 2",
        "so max(0, ·) does nothing",
        "returned nothing",
        "not class-weighted",
        "with β = 2 and 3 classes: even an example that is fitted perfectly gets a probability of 0.553",
    ):
        assert sum(words in text for text in found) == 1, words
    assert all(text.endswith(".") for text in found)


def test_unknown_losses_are_refused():
    with pytest.raises(UserError, match="unknown loss"):
        notes([("hinge", {})], 3)
