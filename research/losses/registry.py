"""Which losses exist, and how does a config's name and options become a function?

A new loss is one function in this package plus one line in `LOSSES`. A function whose third parameter is
`weights` is a loss over the whole batch; all others return one value per example, and example weights are
applied outside.
"""

import dataclasses
import functools
import inspect
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from input_pipeline.cli import UserError
from research.losses import multi_label, single_label

LOSSES: dict[str, tuple[Callable[..., jax.Array], bool | None]] = {
    # name: (function, True = many labels per example, False = one class, None = either)
    "softmax_cross_entropy": (single_label.softmax_cross_entropy, False),
    "focal_categorical": (single_label.focal_categorical, False),
    "sigmoid_cross_entropy": (multi_label.sigmoid_cross_entropy, True),
    "focal_binary": (multi_label.focal_binary, True),
    "asymmetric": (multi_label.asymmetric, True),
    "soft_f1": (multi_label.soft_f1, True),
    "bce_soft_f1": (multi_label.bce_soft_f1, True),
}

# What a number given for an option must satisfy, in words and as a test.
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "label_smoothing": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "margin": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "gamma": ("a finite number of at least 0", lambda value: 0 <= value < float("inf")),
    "gamma_positive": ("a finite number of at least 0", lambda value: 0 <= value < float("inf")),
    "gamma_negative": ("a finite number of at least 0", lambda value: 0 <= value < float("inf")),
    "f1_weight": ("a finite number of at least 0", lambda value: 0 <= value < float("inf")),
    "alpha": ("above 0 and finite, and at most 1 for 'focal_binary'", lambda value: 0 < value < float("inf")),
    "epsilon": ("above 0 and at most 0.01", lambda value: 0 < value <= 0.01),
}


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss with its options bound.

    Attributes:
        name: its name in `LOSSES`.
        per_example: True: `fn(logits [B, K], targets [B, K], class_weights=None) -> [B]`; False: the loss
            exists only over a whole batch, `fn(logits, targets, weights [B], class_weights=None) -> scalar`,
            and gradient accumulation over parts of the batch would train another loss.
        multi_label: the kind of targets: True many labels, False one class, None either.
        fn: the function; float32, jit-, vmap- and grad-able.
        options: the options that were bound.
    """

    name: str
    per_example: bool
    multi_label: bool | None
    fn: Callable[..., jax.Array]
    options: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def mean(
        self,
        logits: jax.Array,
        targets: jax.Array,
        weights: jax.Array | None = None,
        class_weights: jax.Array | None = None,
    ) -> jax.Array:
        """The loss of a batch as a scalar, whichever kind it is; `weights` `[B]` are 0 for padding (default
        ones).

        Per-example losses are averaged as `Σ w l / Σ w`; a batch of padding alone gives 0 (whole-batch losses
        give what their formula says).
        """
        weights = (
            jnp.ones(logits.shape[0], jnp.float32) if weights is None else jnp.asarray(weights, jnp.float32)
        )
        if not self.per_example:
            return self.fn(logits, targets, weights, class_weights)
        # Padding is replaced before the loss: a NaN there times zero would still be NaN, in the gradient as
        # well.
        counted = jnp.where(weights[:, None] > 0, logits, 0.0)
        total = jnp.sum(weights)
        return jnp.sum(weights * self.fn(counted, targets, class_weights)) / jnp.where(total > 0, total, 1.0)

    def require(self, multi_label: bool) -> None:
        """Raises `UserError` if the loss does not fit the labels of the dataset (`multi_label` of the
        dataset).
        """
        if self.multi_label is not None and self.multi_label != multi_label:
            has, suits = ("many labels", "one class") if multi_label else ("one class", "many labels")
            fitting = ", ".join(name for name in available() if LOSSES[name][1] in (None, multi_label))
            raise UserError(
                f"the loss {self.name!r} is for {suits} per example, but the dataset has {has}; "
                f"set config.loss.name to one of: {fitting}."
            )


def available() -> list[str]:
    """The names that `get` accepts, sorted."""
    return sorted(LOSSES)


def get(name: str, **options: Any) -> Loss:
    """The loss `name` with its options bound.

    Args:
        name: a key of `LOSSES`.
        **options: keyword options of that loss; numbers, or arrays and traced values inside a transformation.

    Raises:
        UserError: for an unknown name or option, or a number out of range; the sentence lists what is
            accepted.
    """
    if name not in LOSSES:
        raise UserError(f"unknown loss {name!r}; set config.loss.name to one of: {', '.join(available())}.")
    function, takes_many = LOSSES[name]
    parameters = inspect.signature(function).parameters
    accepted = [key for key, value in parameters.items() if value.kind is inspect.Parameter.KEYWORD_ONLY]
    for option, value in options.items():
        if option not in accepted:
            raise UserError(f"the loss {name!r} has no option {option!r}; it takes: {', '.join(accepted)}.")
        _check_option(name, option, value)
    bound = functools.partial(function, **options)
    return Loss(name, "weights" not in parameters, takes_many, bound, dict(options))


def _check_option(name: str, option: str, value: Any) -> None:
    if value is None and name == "focal_binary" and option == "alpha":
        return
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        words, allowed = _RANGES[option]
        if allowed(float(value)) and not (name == "focal_binary" and option == "alpha" and value > 1):
            return
        raise UserError(f"the option {option!r} of the loss {name!r} must be {words}, not {value!r}.")
    # Arrays and traced values have no value to look at here.
    if not hasattr(value, "dtype"):
        raise UserError(f"the option {option!r} of the loss {name!r} must be a number, not {value!r}.")
