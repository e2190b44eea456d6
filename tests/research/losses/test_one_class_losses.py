"""Do the losses for one class per example equal their formulas in float64, in value and gradient, and in their limits?

The reference goes example by example and class by class, and takes its gradient by central differences.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from input_pipeline.cli import UserError
from research.losses import registry

COUNTS = np.array([400, 25, 90, 3, 1000, 61, 7])  # the first K of them are a training set's
B = 6


def log_p(row):
    return row - logsumexp(row)


def smoothed(target, epsilon):
    return [t * (1 - epsilon) + epsilon / len(target) for t in target]


def cross_entropy(z, t, label_smoothing=0.0, entropy_weight=0.0):
    q = log_p(z)
    entropy = -sum(np.exp(a) * a for a in q)
    return -sum(s * a for s, a in zip(smoothed(t, label_smoothing), q, strict=True)) - entropy_weight * entropy


def kl(z, t, label_smoothing=0.0):
    return sum(s * (np.log(s) - a) for s, a in zip(smoothed(t, label_smoothing), log_p(z), strict=True) if s > 0)


def others(z, k):
    """The probabilities of all classes but k."""
    return np.exp(np.delete(log_p(z), k))


def focal(z, t, alpha=1.0, gamma=2.0, label_smoothing=0.0):
    s, q = smoothed(t, label_smoothing), log_p(z)
    return -alpha * sum(s[k] * others(z, k).sum() ** gamma * q[k] for k in range(len(z)))


def hinge(z, t):
    p = np.exp(log_p(z))
    return sum(t[k] * max(0.0, 1 + others(z, k).max() - p[k]) for k in range(len(z)))


def adjusted(z, t, tau=1.0, label_smoothing=0.0):
    shares = COUNTS[: len(z)] / COUNTS[: len(z)].sum()
    return cross_entropy(np.array([a + tau * np.log(s) for a, s in zip(z, shares, strict=True)]), t, label_smoothing)


def ldam(z, t, max_margin=0.5, scale=30.0):
    margins = COUNTS[: len(z)] ** -0.25
    margins = margins * (max_margin / margins.max())
    total = 0.0
    for k in range(len(z)):
        moved = z.copy()
        moved[k] -= margins[k]
        total -= t[k] * log_p(scale * moved)[k]
    return total


def asymmetric(z, t, gamma_positive=0.0, gamma_negative=4.0, label_smoothing=0.1):
    """ASLSingleLabel of Alibaba-MIIL/ASL, losses.py, for one-hot targets."""
    s, q = smoothed(t, label_smoothing), log_p(z)
    exponents = [gamma_positive if a == 1 else gamma_negative for a in t]
    bases = [others(z, k).sum() if t[k] == 1 else np.exp(q[k]) for k in range(len(z))]
    return -sum(s[k] * q[k] * bases[k] ** exponents[k] for k in range(len(z)))


REFERENCES = {
    "softmax_cross_entropy": cross_entropy,
    "kl_divergence": kl,
    "focal_categorical": focal,
    "categorical_hinge": hinge,
    "logit_adjusted": adjusted,
    "ldam": ldam,
    "asymmetric_categorical": asymmetric,
}
# The twelve of the paper, then the losses for unequal classes, then what they can be combined to.
CASES = [
    ("softmax_cross_entropy", {}),
    ("softmax_cross_entropy", {"entropy_weight": 2.0}),
    ("kl_divergence", {}),
    ("focal_categorical", {"alpha": 1.0, "gamma": 2.0}),
    ("categorical_hinge", {}),
    ("softmax_cross_entropy", {"label_smoothing": 0.2}),
    ("focal_categorical", {"label_smoothing": 0.2}),
    ("softmax_cross_entropy", {"dca_weight": 1.0}),
    ("kl_divergence", {"dca_weight": 1.0}),
    ("focal_categorical", {"dca_weight": 1.0}),
    ("categorical_hinge", {"dca_weight": 1.0}),
    ("softmax_cross_entropy", {"entropy_weight": 0.001, "dca_weight": 1.0}),
    ("logit_adjusted", {"tau": 0.7}),
    ("ldam", {}),
    ("asymmetric_categorical", {"gamma_positive": 1.0}),
    ("kl_divergence", {"label_smoothing": 0.2, "dca_weight": 0.3}),
    ("focal_categorical", {"alpha": 0.25, "gamma": 0.5, "label_smoothing": 0.1, "dca_weight": 3.0}),
    ("ldam", {"max_margin": 1.0, "scale": 2.0, "dca_weight": 0.5}),
]


def get(name, num_classes, **options):
    return registry.get(name, COUNTS[:num_classes] if registry.needs_class_counts(name) else None, **options)


def reference(name, logits, targets, weights, class_weights, dca_weight=0.0, **options):
    """The mean loss of a batch in float64; class weights on the loss, none on the calibration."""
    total = confidence = accuracy = 0.0
    for z, t, w in zip(logits, targets, weights, strict=True):
        if w == 0:
            continue
        total += w * sum(a * c for a, c in zip(t, class_weights, strict=True)) * REFERENCES[name](z, t, **options)
        confidence += w * np.exp(log_p(z)).max()
        accuracy += w * t[np.argmax(z)]
    return (total + dca_weight * abs(accuracy - confidence)) / weights.sum()


def central_differences(function, logits, step=1e-5):
    gradient = np.zeros_like(logits)
    for index in np.ndindex(logits.shape):
        high, low = logits.copy(), logits.copy()
        high[index] += step
        low[index] -= step
        gradient[index] = (function(high) - function(low)) / (2 * step)
    return gradient


def scenarios(num_classes, one_hot):
    """(logits, targets, weights, class weights): ordinary, up to ±80, smoothed targets, examples without weight."""
    rng = np.random.default_rng(num_classes)
    logits = rng.normal(0, 2, (B, num_classes)).astype(np.float32).astype(np.float64)
    large = np.round(logits * (80 / np.abs(logits).max()) * 4) / 4
    hot = np.eye(num_classes)[rng.integers(0, num_classes, B)]
    soft = 0.7 * hot + 0.3 / num_classes
    ones, none = np.ones(B), np.ones(num_classes)
    weights = np.array([1.0, 0.0, 0.5, 2.0, 1.0, 0.0])
    classes = np.linspace(0.5, 2.0, num_classes)
    yield logits, hot, ones, none
    yield large, hot, ones, none
    yield logits, hot if one_hot else soft, weights, classes
    yield large, hot if one_hot else soft, weights, classes
    yield logits, hot, np.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0]), classes


@pytest.mark.parametrize(
    ("name", "options", "num_classes"), [(*case, (3, 5, 7)[i % 3]) for i, case in enumerate(CASES)]
)
def test_values_and_gradients_equal_the_reference_in_float64(name, options, num_classes):
    loss = get(name, num_classes, **options)
    assert loss.per_example == ("dca_weight" not in options) and loss.multi_label is False
    differentiate = jax.jit(jax.value_and_grad(loss.mean))
    unit = 30.0 if name == "ldam" else 1.0
    for logits, targets, weights, class_weights in scenarios(num_classes, one_hot=name == "asymmetric_categorical"):
        broken = np.where(weights[:, None] > 0, logits, np.nan)  # what padding holds does not matter

        def mean(z, targets=targets, weights=weights, class_weights=class_weights):
            return reference(name, z, targets, weights, class_weights, **options)

        value, gradient = differentiate(*map(jnp.float32, (broken, targets, weights, class_weights)))
        # Near its minimum a loss has the rounding of p, 6e-8, and so has p - y in its gradient, times LDAM's scale.
        np.testing.assert_allclose(value, mean(logits), rtol=1e-5, atol=1e-7)
        expected = central_differences(mean, logits)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7 * options.get("scale", unit))
    value, gradient = differentiate(jnp.full((B, num_classes), jnp.nan), jnp.zeros((B, num_classes)), jnp.zeros(B))
    assert value == 0 and not np.asarray(gradient).any()


@pytest.mark.parametrize(("name", "expected"), [("categorical_hinge", 3.0), ("focal_categorical", 0.0)])
def test_small_losses_keep_their_digits(name, expected):
    # Σ of the others plus the largest of them: 3 e^-30, which 1 + e^-30 - p would round to zero.
    value = get(name, 3).fn(jnp.array([[30.0, 0.0, 0.0]]), jnp.array([[1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(value, expected * np.exp(-30.0), rtol=1e-5, atol=1e-30)


def random_batch(num_classes=5, rows=11):
    rng = np.random.default_rng(8)
    logits = jnp.asarray(rng.normal(0, 3, (rows, num_classes)), jnp.float32)
    return logits, jnp.asarray(np.eye(num_classes)[rng.integers(0, num_classes, rows)], jnp.float32)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("focal_categorical", {"gamma": 0.0}), ("softmax_cross_entropy", {})),
        (("focal_categorical", {"gamma": 0.0, "label_smoothing": 0.2}), ("kl_divergence", {"label_smoothing": 0.2})),
        (("focal_categorical", {"label_smoothing": 0.0}), ("focal_categorical", {})),
        (("softmax_cross_entropy", {"entropy_weight": 0.0, "label_smoothing": 0.0}), ("softmax_cross_entropy", {})),
        (("kl_divergence", {}), ("softmax_cross_entropy", {})),
        (("kl_divergence", {"dca_weight": 1.0}), ("softmax_cross_entropy", {"dca_weight": 1.0})),
        (("logit_adjusted", {"tau": 0.0}), ("softmax_cross_entropy", {})),
        (("ldam", {"max_margin": 0.0, "scale": 1.0}), ("softmax_cross_entropy", {})),
        (
            ("asymmetric_categorical", {"gamma_positive": 2.0, "label_smoothing": 0.0}),
            ("focal_categorical", {}),
        ),
    ],
)
def test_limits(one, other):
    """The gradients agree; the values as well, but for the entropy of smoothed targets."""
    logits, targets = random_batch()
    (value, gradient), (other_value, other_gradient) = (
        jax.jit(jax.value_and_grad(get(name, 5, **options).mean))(logits, targets) for name, options in (one, other)
    )
    np.testing.assert_allclose(gradient, other_gradient, rtol=1e-5, atol=1e-7)
    entropy = -sum(s * np.log(s) for s in smoothed([1, 0, 0, 0, 0], 0.2) if s) if other[1].get("label_smoothing") else 0
    np.testing.assert_allclose(value, other_value + entropy, rtol=1e-5)


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "categorical_hinge", "ldam"])
def test_a_calibration_weight_of_zero_leaves_the_loss_as_it_was(name):
    logits, targets = random_batch()
    weights, class_weights = jnp.linspace(0.0, 2.0, 11), jnp.linspace(0.5, 2.0, 5)
    plain, zero = get(name, 5), get(name, 5, dca_weight=jnp.float32(0.0))
    assert get(name, 5, dca_weight=0.0).per_example and not zero.per_example
    for one, other in zip(
        jax.jit(jax.value_and_grad(plain.mean))(logits, targets, weights, class_weights),
        jax.jit(jax.value_and_grad(zero.mean))(logits, targets, weights, class_weights),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", list(REFERENCES))
def test_members_with_traced_options_equal_each_alone(name):
    logits, targets = random_batch()
    options = registry.parameters(name)
    assert all("float" in str(p.annotation) and "Array" in str(p.annotation) for p in options.values())
    members = [{key: round(0.1 + 0.17 * i + 0.2 * m, 3) for i, key in enumerate(options)} for m in range(3)]
    stacked = {key: jnp.array([member[key] for member in members], jnp.float32) for key in options}

    @jax.jit
    def differentiate(values):
        return jax.value_and_grad(get(name, 5, **values).mean)(logits, targets)

    together = jax.jit(jax.vmap(differentiate))(stacked)
    for index, member in enumerate(members):
        for one, other in zip(differentiate(member), together, strict=True):
            np.testing.assert_allclose(other[index], one, rtol=1e-5, atol=1e-7)


def test_every_loss_with_one_class_is_tested_here():
    assert {name for name in registry.available() if registry.LOSSES[name][1] is False} == set(REFERENCES)
    ranges = {option for name in registry.available() for option in registry.parameters(name)}
    assert ranges == set(registry._RANGES)


@pytest.mark.parametrize("name", [n for n in registry.available() if registry.needs_class_counts(n)])
def test_class_counts_come_from_the_data_set_alone(name):
    assert "class_counts" not in registry.parameters(name)
    with pytest.raises(UserError, match="no option 'class_counts'"):
        registry.get(name, COUNTS, **{"class_counts": 3})
    with pytest.raises(UserError, match="none of class 1, 3; leave these classes out"):
        registry.get(name, [4, 0, 2, 0])
    with pytest.raises(ValueError, match="needs the class counts"):
        registry.get(name)
    assert not registry.needs_class_counts("softmax_cross_entropy") and not registry.needs_class_counts("nonsense")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("categorical_hinge", {"margin": 1.0}, "has no option 'margin'; it takes: dca_weight"),
        ("kl_divergence", {"entropy_weight": 1.0}, "has no option 'entropy_weight'; it takes: label_smoothing"),
        ("sigmoid_cross_entropy", {"dca_weight": 1.0}, "has no option 'dca_weight'"),
        ("soft_f1", {"dca_weight": 1.0}, "has no option 'dca_weight'"),
        ("softmax_cross_entropy", {"entropy_weight": -1.0}, "at least 0"),
        ("softmax_cross_entropy", {"dca_weight": float("inf")}, "at least 0"),
        ("softmax_cross_entropy", {"dca_weight": True}, "must be a number"),
        ("softmax_cross_entropy", {"dca_weight": "1"}, "must be a number"),
        ("logit_adjusted", {"tau": -0.1}, "at least 0"),
        ("ldam", {"scale": 0.0}, "above 0"),
        ("ldam", {"max_margin": float("nan")}, "at least 0"),
        ("asymmetric_categorical", {"gamma_negative": -1}, "at least 0"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(name, options, words):
    with pytest.raises(UserError, match=words):
        get(name, 3, **options)


@pytest.mark.parametrize("name", ["focal_categorical", "categorical_hinge", "asymmetric_categorical"])
def test_one_class_is_refused(name):
    with pytest.raises(UserError, match=f"'{name}' needs at least two classes"):
        get(name, 1).fn(jnp.zeros((4, 1)), jnp.ones((4, 1)))


def test_options_are_those_of_the_functions():
    for name, (function, _) in registry.LOSSES.items():
        own = inspect.signature(function).parameters
        for option, parameter in registry.parameters(name).items():
            assert option == "dca_weight" or parameter == own[option]
    with pytest.raises(UserError, match="unknown loss 'hinge'; set config.loss.name to one of: .*categorical_hinge"):
        registry.parameters("hinge")
