"""Do the losses equal their formulas, and stay finite where a naive formula does not?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_expit, log_softmax, softmax

from input_pipeline.cli import UserError
from research.losses import registry

B, K = 7, 5


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(3)
    logits = generator.normal(0, 2, (B, K))
    many = (generator.random((B, K)) < 0.4).astype(np.float64)
    many[:, 2] = 0  # a class without positives
    one = np.eye(K)[generator.integers(0, K, B)]
    return logits, many, one


def call(name, logits, targets, class_weights=None, **options):
    loss = registry.get(name, **options)
    assert loss.per_example
    arrays = (jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32), class_weights)
    return np.asarray(jax.jit(loss.fn)(*arrays))


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


def test_softmax_cross_entropy_equals_scikit_learn_and_the_smoothed_formula(data):
    from sklearn.metrics import log_loss

    logits, _, one = data
    expected = [log_loss([np.argmax(t)], [softmax(z)], labels=range(K)) for z, t in zip(logits, one, strict=True)]
    close(call("softmax_cross_entropy", logits, one), expected)
    smoothed = one * 0.8 + 0.2 / K
    close(
        call("softmax_cross_entropy", logits, one, label_smoothing=0.2),
        -(smoothed * log_softmax(logits, axis=1)).sum(axis=1),
    )


def test_class_weights_of_a_single_label_loss_multiply_the_example(data):
    logits, _, one = data
    weights = np.linspace(0.5, 2, K)
    for name in ("softmax_cross_entropy", "focal_categorical"):
        plain = call(name, logits, one, label_smoothing=0.1)
        close(call(name, logits, one, weights, label_smoothing=0.1), plain * weights[one.argmax(1)])
        mixed = 0.3 * one + 0.7 * one[::-1]
        weight = 0.3 * weights[one.argmax(1)] + 0.7 * weights[one[::-1].argmax(1)]
        close(call(name, logits, mixed, weights), call(name, logits, mixed) * weight)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.5])
def test_focal_categorical_equals_its_formula(data, gamma):
    logits, _, one = data
    p = softmax(logits, axis=1)
    expected = -(0.7 * (0.9 * one + 0.1 / K) * (1 - p) ** gamma * np.log(p)).sum(axis=1)
    close(call("focal_categorical", logits, one, alpha=0.7, gamma=gamma, label_smoothing=0.1), expected)


def test_focal_categorical_keeps_the_digits_that_one_minus_p_loses():
    logits = np.array([[30.0, 0.0, 0.0]])
    p_others = 2 * np.exp(-30.0)  # 1 - p, which float32 rounds to zero
    expected = np.sqrt(p_others) * p_others
    actual = call("focal_categorical", logits, np.array([[1.0, 0, 0]]), gamma=0.5)
    # -log p itself underflows in float32 log-softmax to 0: the value is zero, not NaN.
    assert abs(actual[0] - expected) < 1e-12


def test_sigmoid_cross_entropy_equals_scikit_learn(data):
    from sklearn.metrics import log_loss

    logits, many, _ = data
    expected = [
        np.mean([log_loss([t], [q], labels=[0, 1]) for t, q in zip(row, expit(z), strict=True)])
        for row, z in zip(many, logits, strict=True)
    ]
    close(call("sigmoid_cross_entropy", logits, many), expected)
    smoothed = many * 0.9 + 0.05
    terms = -smoothed * log_expit(logits) - (1 - smoothed) * log_expit(-logits)
    weights = np.linspace(0.5, 2, K)
    close(
        call("sigmoid_cross_entropy", logits, many, weights, label_smoothing=0.1),
        (terms * weights).mean(axis=1),
    )


@pytest.mark.parametrize("alpha", [None, 0.75])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_binary_equals_its_formula(data, alpha, gamma):
    logits, many, _ = data
    p = expit(logits)
    agreed = many * p + (1 - many) * (1 - p)  # p_t of Lin et al. 2017
    balance = 1.0 if alpha is None else many * alpha + (1 - many) * (1 - alpha)
    weights = np.linspace(0.5, 2, K)
    expected = -(weights * balance * (1 - agreed) ** gamma * np.log(agreed)).mean(axis=1)
    close(call("focal_binary", logits, many, weights, alpha=alpha, gamma=gamma), expected)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.3])
def test_asymmetric_equals_the_reference_formula(data, margin):
    logits, many, _ = data
    p = expit(logits)
    remainder = np.minimum(1 - p + margin, 1)  # as in Alibaba-MIIL/ASL, losses.py
    terms = many * np.log(p) * (1 - p) ** 1.0 + (1 - many) * np.log(remainder) * (1 - remainder) ** 3.0
    close(
        call("asymmetric", logits, many, gamma_positive=1.0, gamma_negative=3.0, margin=margin),
        -terms.mean(axis=1),
    )


def test_asymmetric_without_asymmetry_is_the_cross_entropy(data):
    logits, many, _ = data
    plain = call("asymmetric", logits, many, gamma_positive=0, gamma_negative=0, margin=0)
    close(plain, call("sigmoid_cross_entropy", logits, many))


def soft_f1_by_loops(logits, targets, weights, class_weights=None, epsilon=1e-7):
    p, scores = expit(logits), []
    for c in range(K):
        tp = sum(w * y * q for w, y, q in zip(weights, targets[:, c], p[:, c], strict=True))
        fp = sum(w * (1 - y) * q for w, y, q in zip(weights, targets[:, c], p[:, c], strict=True))
        fn = sum(w * y * (1 - q) for w, y, q in zip(weights, targets[:, c], p[:, c], strict=True))
        precision, recall = tp / (tp + fp + epsilon), tp / (tp + fn + epsilon)
        scores.append(2 * precision * recall / (precision + recall + epsilon))
    return 1 - np.average(scores, weights=class_weights)


def test_soft_f1_equals_the_studys_formula_and_leaves_padding_out(data):
    logits, many, _ = data
    loss = registry.get("soft_f1")
    assert not loss.per_example and loss.multi_label
    weights = np.array([1, 1, 0.5, 2, 1, 1, 0.25])
    class_weights = np.linspace(0.5, 2, K)
    compiled = jax.jit(loss.fn)
    close(compiled(logits, many, weights), soft_f1_by_loops(logits, many, weights))
    close(compiled(logits, many, weights, class_weights), soft_f1_by_loops(logits, many, weights, class_weights))
    padded = np.concatenate([logits, np.full((2, K), np.nan)])
    targets, valid = np.concatenate([many, np.ones((2, K))]), np.append(np.ones(B), [0, 0])
    close(compiled(padded, targets, valid), soft_f1_by_loops(logits, many, np.ones(B)))
    gradient = jax.jit(jax.grad(loss.fn))(jnp.asarray(padded, jnp.float32), targets, valid)
    assert np.isfinite(gradient).all() and not gradient[B:].any()


def test_soft_f1_of_certain_predictions_is_one_minus_macro_f1(data):
    from sklearn.metrics import f1_score

    logits, many, _ = data
    value = registry.get("soft_f1").fn(logits * 1e4, many, np.ones(B))
    close(value, 1 - f1_score(many, logits > 0, average="macro", zero_division=0))


def test_bce_soft_f1_is_the_sum(data):
    logits, many, _ = data
    weights = np.array([1, 1, 0, 2, 1, 1, 0.5])
    value = registry.get("bce_soft_f1", f1_weight=0.3, label_smoothing=0.1).fn(logits, many, weights)
    entropy = call("sigmoid_cross_entropy", logits, many, label_smoothing=0.1)
    close(value, np.average(entropy, weights=weights) + 0.3 * soft_f1_by_loops(logits, many, weights))


@pytest.mark.parametrize("name", registry.available())
def test_values_and_gradients_are_finite_at_extreme_logits(data, name):
    logits, many, one = data
    counts = np.arange(1, K + 1) if registry.needs_class_counts(name) else None
    loss = registry.get(name, counts)
    # Exponents below one: the derivative of a plain power is infinite at zero.
    hard = {
        "focal_binary": {"gamma": 0.5},
        "focal_categorical": {"gamma": 0.5},
        "asymmetric_categorical": {"gamma_negative": 0.5, "gamma_positive": 0.5},
        "softmax_cross_entropy": {"entropy_weight": 2.0, "dca_weight": 1.0},
        "categorical_hinge": {"dca_weight": 1.0},
        "asymmetric": {"gamma_negative": 0.5, "margin": 0.0},
    }
    targets = jnp.asarray(many if loss.multi_label else one, jnp.float32)
    scales = np.array([0.0, 17.0, 88.0, 104.0, 200.0, 1e4])[:, None, None]
    extreme = jnp.asarray(np.sign(logits) * scales, jnp.float32)
    for tried in [loss] + ([registry.get(name, **hard[name])] if name in hard else []):
        differentiate = jax.jit(jax.vmap(jax.value_and_grad(tried.mean), (0, None)))
        value, gradient = differentiate(extreme, targets)
        assert np.isfinite(value).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "sigmoid_cross_entropy", "asymmetric"])
def test_gradients_at_extreme_logits_still_point_to_the_target(name):
    options = {"gamma_negative": 0, "margin": 0} if name == "asymmetric" else {}
    loss = registry.get(name, **options)
    gradient = jax.jit(jax.grad(loss.mean))(jnp.array([[1e4, -1e4, -1e4]]), jnp.array([[0.0, 1.0, 0.0]]))
    assert gradient[0, 0] > 0 and gradient[0, 1] < 0


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("softmax_cross_entropy", "label_smoothing"),
        ("focal_categorical", "gamma"),
        ("focal_binary", "alpha"),
        ("asymmetric", "margin"),
        ("asymmetric", "gamma_negative"),
        ("bce_soft_f1", "f1_weight"),
    ],
)
def test_options_may_be_traced(data, name, option):
    logits, many, one = data
    targets = many if registry.get(name).multi_label else one
    values = jnp.array([0.0, 0.1, 0.45])

    def value(x):
        return registry.get(name, **{option: x}).mean(jnp.asarray(logits, jnp.float32), targets)

    batched = jax.jit(jax.vmap(value))(values)
    allowed = [x for x in values.tolist() if not (option == "alpha" and x == 0)]
    alone = [jax.jit(registry.get(name, **{option: x}).mean)(logits, targets) for x in allowed]
    close(batched[-len(alone) :], alone)
    assert np.isfinite(jax.jit(jax.grad(value))(0.1))


def test_losses_are_the_same_in_a_vmapped_cohort(data):
    logits, many, _ = data
    members = jnp.asarray(np.stack([logits, -logits, logits / 3]), jnp.float32)
    loss = registry.get("soft_f1")
    compiled = jax.jit(lambda z: loss.fn(z, many, jnp.ones(B)))
    close(jax.vmap(compiled)(members), [compiled(z) for z in members])


def test_bfloat16_logits_are_computed_in_float32(data):
    logits, many, _ = data
    value = registry.get("sigmoid_cross_entropy").fn(jnp.asarray(logits, jnp.bfloat16), many)
    assert value.dtype == jnp.float32


def test_the_mean_of_a_batch_weighs_examples_and_ignores_padding(data):
    logits, _, one = data
    loss = registry.get("softmax_cross_entropy")
    each = call("softmax_cross_entropy", logits, one)
    weights = np.array([1, 0, 1, 0.5, 2, 0, 1])
    close(loss.mean(logits, one, weights), np.average(each, weights=weights))
    broken = jnp.asarray(logits, jnp.float32).at[1].set(jnp.nan)
    value, gradient = jax.jit(jax.value_and_grad(loss.mean))(broken, one, weights)
    close(value, np.average(each, weights=weights))
    assert np.isfinite(gradient).all()
    assert loss.mean(logits, one, np.zeros(B)) == 0


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cross_entropy", {}, "softmax_cross_entropy"),
        ("soft_f1", {"gamma": 2}, "epsilon"),
        ("softmax_cross_entropy", {"label_smoothing": 1.0}, "below 1"),
        ("focal_binary", {"gamma": -1}, "at least 0"),
        ("focal_binary", {"alpha": 1.5}, "at most 1"),
        ("focal_categorical", {"alpha": None}, "must be a number"),
        ("asymmetric", {"margin": "0.05"}, "must be a number"),
        ("asymmetric", {"gamma_negative": float("nan")}, "at least 0"),
    ],
)
def test_wrong_names_and_options_are_refused_in_one_sentence(name, options, words):
    with pytest.raises(UserError, match=words):
        registry.get(name, **options)


def test_a_loss_for_the_other_kind_of_labels_is_refused():
    registry.get("soft_f1").require(multi_label=True)
    with pytest.raises(UserError, match="softmax_cross_entropy"):
        registry.get("soft_f1").require(multi_label=False)


def test_targets_that_would_broadcast_are_refused(data):
    logits, _, one = data
    with pytest.raises(ValueError, match="one shape"):
        registry.get("softmax_cross_entropy").fn(logits[:K], one.argmax(1)[:K])
    with pytest.raises(UserError, match="two classes"):
        registry.get("focal_categorical").fn(logits[:, :1], one[:, :1])


def test_the_captions_studys_focal_loss_is_its_formula_with_one_alpha(data):
    logits, many, _ = data
    counts = np.array([40, 3, 7, 11, 90])
    loss = registry.get("focal_scalar", counts, gamma=2.5, label_smoothing=0.1)
    smoothed = many * 0.9 + 0.1 / K
    terms = -smoothed * log_expit(logits) - (1 - smoothed) * log_expit(-logits)
    alpha = np.mean([counts.sum() / (K * n) for n in counts])
    expected = alpha * ((1 - np.exp(-terms)) ** 2.5 * terms).mean(axis=1)
    close(loss.fn(jnp.asarray(logits, jnp.float32), jnp.asarray(many, jnp.float32)), expected)
    for gamma in (0.0, 0.5, 2.5):
        flat = registry.get("focal_scalar", counts, gamma=gamma, label_smoothing=0.0)
        certain = jnp.where(jnp.asarray(many) > 0, 200.0, -200.0)
        assert np.isfinite(jax.grad(lambda z, f=flat: jnp.sum(f.fn(z, jnp.asarray(many))))(certain)).all()
