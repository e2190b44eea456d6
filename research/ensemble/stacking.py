"""What does a second model, trained on the members' predictions, make of them? (Wolpert 1992)

Both stackers are for one label per example, and both see `calibration` alone. It is dealt into grouped folds: they
settle how strong the regularisation is, or when training stops, and give the predictions of calibration that the choice
of K and the temperature rest on, each made without the example's own fold. The final model is fitted on all of it.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from input_pipeline import splits
from input_pipeline.cli import UserError

FOLDS = 5
FLOOR = 1e-6  # least probability in a logarithm: one careless member must not shift a linear model without bound
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse regularisation C of the logistic regression
LEARNING_RATE, WEIGHT_DECAY = 1e-2, 1e-3  # AdamW on all examples at once
STEPS, PATIENCE = 600, 40  # of the dense layer: at most so many, and so many without a better held-out loss


@dataclasses.dataclass(frozen=True)
class Stacked:
    """A fitted stacker.

    Attributes:
      calibration: probabilities `[N, K]`, each from the model that was fitted without the example's fold.
      test: probabilities `[N', K]` of the model that was fitted on all of calibration.
      on_fitted: its probabilities `[N, K]` of the examples that it was fitted on.
      settled: what the folds settled, and the parameters, by name.
    """

    calibration: np.ndarray
    test: np.ndarray
    on_fitted: np.ndarray
    settled: dict


def inner_folds(labels: np.ndarray, groups: Sequence[str], seed: int) -> np.ndarray:
    """Grouped stratified folds of calibration, int64 `[N]`: five, or as many as the rarest class has groups.

    Raises:
      UserError: fewer than two classes, or a class with a single group.
    """
    having = [len({g for g, y in zip(groups, labels, strict=True) if y == label}) for label in np.unique(labels)]
    if len(having) < 2 or min(having) < 2:
        raise UserError(
            "stacking needs two classes and two patients or photographs of each in calibration; leave logistic and "
            "dense out of --methods, or prepare the data with a larger calibration share."
        )
    return splits.assign_folds(np.asarray(labels), list(groups), min(FOLDS, *having), seed, False)


def logistic(scores: np.ndarray, labels: np.ndarray, folds: np.ndarray, test: np.ndarray) -> Stacked:
    """Multinomial logistic regression on the members' log probabilities, with an L2 penalty of the best strength.

    Args:
      scores: of calibration `[M, N, K]`.
      labels: int `[N]`.
      folds: int `[N]`, see `inner_folds`.
      test: `[M, N', K]`.
    """
    features, unseen = _logarithms(scores), _logarithms(test)
    classes = scores.shape[2]
    held = {
        strength: _held_out(features, labels, folds, lambda x, y, c=strength: _fit_logistic(x, y, c), classes)
        for strength in STRENGTHS
    }
    losses = {strength: _log_loss(held[strength], labels) for strength in STRENGTHS}
    best = min(STRENGTHS, key=lambda strength: (losses[strength], strength))  # the stronger penalty among equals
    model = _fit_logistic(features, labels, best)
    # With two classes scikit-learn keeps one row, the second class against the first.
    rows = len(model.classes_)
    kernel = model.coef_ if rows > 2 else np.concatenate([np.zeros_like(model.coef_), model.coef_])
    bias = model.intercept_ if rows > 2 else np.append(0.0, model.intercept_)
    settled = {"C": best, "classes": model.classes_.tolist(), "kernel": kernel.tolist(), "bias": bias.tolist()}
    return Stacked(held[best], _predict(model, unseen, classes), _predict(model, features, classes), settled)


def _logarithms(scores: np.ndarray) -> np.ndarray:
    """`[M, N, K]` -> `[N, M * K]`."""
    return np.log(np.maximum(_joined(scores), FLOOR))


def _joined(scores: np.ndarray) -> np.ndarray:
    """`[M, N, K]` -> `[N, M * K]`."""
    return np.moveaxis(scores, 0, 1).reshape(scores.shape[1], -1)


def _fit_logistic(features: np.ndarray, labels: np.ndarray, strength: float):
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    # Collinear features need ten times as many steps with L-BFGS; products so small only wait for a second thread.
    with threadpool_limits(1):
        return LogisticRegression(C=strength, solver="newton-cg", max_iter=500, tol=1e-6).fit(features, labels)


def _predict(model, features: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities `[N, K]`; a class that the model has not seen gets the floor."""
    result = np.full((len(features), classes), FLOOR)
    result[:, model.classes_] = model.predict_proba(features)
    return result / result.sum(axis=1, keepdims=True)


def _held_out(features, labels, folds, fit, classes: int) -> np.ndarray:
    """Each example's probabilities `[N, K]` from the model that was fitted without its fold."""
    result = np.empty((len(features), classes))
    for fold in np.unique(folds):
        rest = folds != fold
        result[~rest] = _predict(fit(features[rest], labels[rest]), features[~rest], classes)
    return result


def _log_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(np.maximum(scores[np.arange(len(labels)), labels], 1e-12)).mean())


def dense(
    scores: np.ndarray, labels: np.ndarray, folds: np.ndarray, test: np.ndarray, seed: int, width: int = 0
) -> Stacked:
    """The paper's stacker: the members' M * K probabilities, a dense layer of as many units with ReLU, softmax.

    Trained by AdamW on all examples at once. One network per fold is trained beside the one on all of calibration; all
    stop at the step at which the pooled loss of the held-out examples was lowest (the original has SGD 1e-3 and no rule
    for its end).

    Args:
      scores, labels, folds, test: as `logistic`.
      seed: of the first weights.
      width: pad the network with zeros to so many inputs and units, which changes nothing but that networks of several
        K share one program; 0 = no padding.
    """
    import jax

    features, unseen = _joined(scores), _joined(test)
    inputs, classes = features.shape[1], scores.shape[2]
    width = max(width, inputs)
    generator = np.random.default_rng([seed, inputs])
    hidden = np.zeros((width, width))
    hidden[:inputs, :inputs] = generator.normal(0, np.sqrt(2 / inputs), (inputs, inputs))
    output = np.zeros((width, classes))
    output[:inputs] = generator.normal(0, np.sqrt(1 / inputs), (inputs, classes))
    start = {"hidden": hidden, "hidden_bias": np.zeros(width), "output": output, "output_bias": np.zeros(classes)}
    start = {name: value.astype(np.float32) for name, value in start.items()}
    numbers = np.unique(folds)
    fitted_on = np.stack([*(folds != fold for fold in numbers), np.ones(len(folds), bool)]).astype(np.float32)
    padded = np.pad(features, ((0, 0), (0, width - inputs))).astype(np.float32)
    found, step, loss = jax.device_get(_train()(start, padded, np.asarray(labels, np.int32), fitted_on))
    networks = [{name: value[i] for name, value in found.items()} for i in range(len(numbers) + 1)]
    held = np.empty((len(labels), classes))
    for fold, network in zip(numbers, networks, strict=False):
        held[folds == fold] = _forward(network, features[folds == fold])
    final = networks[-1]
    used = {"hidden": final["hidden"][:inputs, :inputs], "hidden_bias": final["hidden_bias"][:inputs],
            "output": final["output"][:inputs], "output_bias": final["output_bias"]}  # fmt: skip
    settled = {"steps": int(step), "held_out_loss": float(loss)} | {name: _digits(v) for name, v in used.items()}
    return Stacked(held, _forward(final, unseen), _forward(final, features), settled)


def _digits(values: np.ndarray) -> list:
    """Nested lists of numbers with nine digits, which give back the same float32."""
    return np.array([float(f"{value:.9g}") for value in values.ravel()]).reshape(values.shape).tolist()


def _forward(network: dict[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    """Probabilities float64 `[N, K]`."""
    inputs = features.shape[1]
    hidden = np.maximum(features @ network["hidden"][:inputs].astype(float) + network["hidden_bias"], 0)
    logits = hidden @ network["output"].astype(float) + network["output_bias"]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@functools.cache
def _train():
    """The jitted training of R networks side by side: (parameters at the best step, stacked; that step; its loss)."""
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def losses(network, features, labels):
        hidden = jax.nn.relu(features @ network["hidden"] + network["hidden_bias"])
        logits = hidden @ network["output"] + network["output_bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def objective(network, features, labels, use):
        each = losses(network, features, labels)
        return (each * use).sum() / use.sum(), (each * (1 - use)).sum()  # the second: of the held-out examples

    @jax.jit
    def train(start, features, labels, fitted_on):
        many = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(fitted_on), *leaf.shape)), start)
        gradients = jax.vmap(jax.value_and_grad(objective, has_aux=True), (0, None, None, 0))

        def improving(state):
            return (state["step"] < STEPS) & (state["step"] - state["best_step"] <= PATIENCE)

        def advance(state):
            (_, held), slope = gradients(state["networks"], features, labels, fitted_on)
            loss = held.sum() / (1 - fitted_on).sum()
            better = loss < state["best_loss"]
            keep = jax.tree.map(lambda new, old: jnp.where(better, new, old), state["networks"], state["best"])
            updates, memory = optimizer.update(slope, state["memory"], state["networks"])
            return {
                "networks": optax.apply_updates(state["networks"], updates), "memory": memory, "best": keep,
                "step": state["step"] + 1, "best_step": jnp.where(better, state["step"], state["best_step"]),
                "best_loss": jnp.where(better, loss, state["best_loss"]),
            }  # fmt: skip

        zero = jnp.zeros((), jnp.int32)
        state = {"networks": many, "memory": optimizer.init(many), "best": many, "step": zero, "best_step": zero,
                 "best_loss": jnp.full((), jnp.inf)}  # fmt: skip
        state = jax.lax.while_loop(improving, advance, state)
        return state["best"], state["best_step"], state["best_loss"]

    return train
