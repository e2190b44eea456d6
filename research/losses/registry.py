"""Which losses exist, and how does a config's name and options become a function?

A new loss is one function in this package plus one line in `LOSSES`. A function whose third parameter is
`weights` is a loss over the whole batch; all others return one value per example, and example weights are
applied outside. A function with a parameter `class_counts` gets the training set's. Every loss per example with one
class per example also has the option `dca_weight`, which adds the calibration term of `calibrated`.
"""

import dataclasses
import functools
import inspect
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.cli import UserError
from research.losses import calibrated, imbalance, multi_label, segmentation, single_label
from research.losses.single_label import mean_over_examples, without_padding

PIXELS = "pixels"

LOSSES: dict[str, tuple[Callable[..., jax.Array], bool | str | None]] = {
    # name: (function, True = many labels per example, False = one class, None = either, PIXELS = a class per pixel)
    "softmax_cross_entropy": (single_label.softmax_cross_entropy, False),
    "focal_categorical": (single_label.focal_categorical, False),
    "kl_divergence": (single_label.kl_divergence, False),
    "categorical_hinge": (single_label.categorical_hinge, False),
    "logit_adjusted": (imbalance.logit_adjusted, False),
    "ldam": (imbalance.ldam, False),
    "asymmetric_categorical": (imbalance.asymmetric_categorical, False),
    "sigmoid_cross_entropy": (multi_label.sigmoid_cross_entropy, True),
    "focal_binary": (multi_label.focal_binary, True),
    "focal_scalar": (multi_label.focal_scalar, True),
    "asymmetric": (multi_label.asymmetric, True),
    "soft_f1": (multi_label.soft_f1, True),
    "bce_soft_f1": (multi_label.bce_soft_f1, True),
    "bce_dice": (segmentation.bce_dice, PIXELS),
    "focal_pixels": (segmentation.focal_pixels, PIXELS),
    "tversky": (segmentation.tversky, PIXELS),
    "focal_tversky": (segmentation.focal_tversky, PIXELS),
}

# What `Loss.require` says of a kind of targets.
_HAS = {True: "the dataset has many labels", False: "the dataset has one class", PIXELS: "the model segments"}
_SUITS = {True: "many labels per example", False: "one class per example", PIXELS: "models that segment"}

# What a number given for an option must satisfy, in words and as a test.
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "label_smoothing": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "margin": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "gamma": ("a finite number of at least 0", lambda value: 0 <= value < float("inf")),
    "gamma_positive": ("a finite number of at least 0", lambda value: 0 <= value < float("inf")),
    "gamma_negative": ("a finite number of at least 0", lambda value: 0 <= value < float("inf")),
    "f1_weight": ("a finite number of at least 0", lambda value: 0 <= value < float("inf")),
    "entropy_weight": ("a finite number of at least 0", lambda value: 0 <= value < float("inf")),
    "dca_weight": ("a finite number of at least 0", lambda value: 0 <= value < float("inf")),
    "tau": ("a finite number of at least 0", lambda value: 0 <= value < float("inf")),
    "max_margin": ("a finite number of at least 0", lambda value: 0 <= value < float("inf")),
    "scale": ("above 0 and finite", lambda value: 0 < value < float("inf")),
    "alpha": ("above 0 and finite, and at most 1 in a binary focal loss", lambda value: 0 < value < float("inf")),
    "dice_weight": ("a finite number of at least 0", lambda value: 0 <= value < float("inf")),
    "missed_weight": ("at least 0 and at most 1", lambda value: 0 <= value <= 1),
    "smooth": ("above 0 and finite", lambda value: 0 < value < float("inf")),
    "epsilon": ("above 0 and at most 0.01", lambda value: 0 < value <= 0.01),
}


_SHARES = ("focal_binary", "focal_pixels")  # their alpha is the positives' share of the weight


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss with its options bound.

    Attributes:
        name: its name in `LOSSES`.
        per_example: True: `fn(logits [B, K], targets [B, K], class_weights=None) -> [B]`; False: the loss
            exists only over a whole batch, `fn(logits, targets, weights [B], class_weights=None) -> scalar`,
            and a mean of it over parts of the batch would be another loss.
        multi_label: the kind of targets: True many labels, False one class, None either, PIXELS those of every pixel
            (logits and targets are then `[B, H, W, K]`).
        fn: the function; float32, jit-, vmap- and grad-able.
        options: the options that were bound.
    """

    name: str
    per_example: bool
    multi_label: bool | str | None
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
        weights = jnp.ones(logits.shape[0], jnp.float32) if weights is None else jnp.asarray(weights, jnp.float32)
        if not self.per_example:
            return self.fn(logits, targets, weights, class_weights)
        return mean_over_examples(self.fn(without_padding(logits, weights), targets, class_weights), weights)

    def require(self, multi_label: bool | str) -> None:
        """Raises `UserError` if the loss does not fit the labels of the dataset (`multi_label` of the
        dataset), or a model that decides every pixel (PIXELS).
        """
        if self.multi_label is not None and self.multi_label != multi_label:
            has, suits = _HAS[multi_label], _SUITS[self.multi_label]
            fitting = ", ".join(name for name in available() if LOSSES[name][1] in (None, multi_label))
            raise UserError(
                f"the loss {self.name!r} is for {suits}, but {has}; set config.loss.name to one of: {fitting}."
            )


def available() -> list[str]:
    """The names that `get` accepts, sorted."""
    return sorted(LOSSES)


def needs_class_counts(name: str) -> bool:
    """Whether the loss `name` is to be given the examples of each class; False for a name that `get` refuses."""
    return name in LOSSES and "class_counts" in inspect.signature(LOSSES[name][0]).parameters


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The options that a config may give to the loss `name`, with their defaults and annotations.

    Raises:
        UserError: for an unknown name; the sentence lists what is accepted.
    """
    if name not in LOSSES:
        raise UserError(f"unknown loss {name!r}; set config.loss.name to one of: {', '.join(available())}.")
    function, takes_many = LOSSES[name]
    own = inspect.signature(function).parameters
    accepted = {
        key: value
        for key, value in own.items()
        if value.kind is inspect.Parameter.KEYWORD_ONLY and key != "class_counts"
    }
    if takes_many is False and "weights" not in own:
        term = inspect.signature(calibrated.with_dca).parameters["dca_weight"]
        accepted["dca_weight"] = term.replace(default=0.0)
    return accepted


def get(name: str, class_counts: Sequence[int] | np.ndarray | None = None, /, **options: Any) -> Loss:
    """The loss `name` with its options bound.

    Args:
        name: a key of `LOSSES`.
        class_counts: `[K]`, the examples of each class in the training set, where `needs_class_counts`; else unused.
        **options: those of `parameters(name)`; numbers, or arrays and traced values inside a transformation.

    Raises:
        UserError: for an unknown name or option, or a number out of range; the sentence lists what is
            accepted. Also for a class without training examples, if the loss needs their counts.
        ValueError: such a loss without counts.
    """
    accepted = parameters(name)
    for option, value in options.items():
        if option not in accepted:
            raise UserError(f"the loss {name!r} has no option {option!r}; it takes: {', '.join(accepted)}.")
        _check_option(name, option, value)
    function, takes_many = LOSSES[name]
    bound = dict(options)
    dca_weight = bound.pop("dca_weight", 0.0)
    if needs_class_counts(name):
        bound["class_counts"] = _checked_counts(name, class_counts)
    fn = functools.partial(function, **bound)
    per_example = "weights" not in inspect.signature(function).parameters
    if not (isinstance(dca_weight, numbers.Real) and dca_weight == 0):
        fn = functools.partial(calibrated.with_dca, fn, dca_weight=dca_weight)
        per_example = False
    return Loss(name, per_example, takes_many, fn, dict(options))


def _checked_counts(name: str, class_counts: Sequence[int] | np.ndarray | None) -> np.ndarray:
    if class_counts is None:
        raise ValueError(f"the loss {name!r} needs the class counts of the training set")
    counts = np.asarray(class_counts)
    if empty := np.flatnonzero(counts <= 0).tolist():
        raise UserError(
            f"the loss {name!r} needs training examples of every class; there are none of class "
            f"{', '.join(map(str, empty))}; leave these classes out of the dataset or use 'softmax_cross_entropy'."
        )
    return counts.astype(np.float32)


def _check_option(name: str, option: str, value: Any) -> None:
    if value is None and name == "focal_binary" and option == "alpha":
        return
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        words, allowed = _RANGES[option]
        if allowed(float(value)) and not (name in _SHARES and option == "alpha" and value > 1):
            return
        raise UserError(f"the option {option!r} of the loss {name!r} must be {words}, not {value!r}.")
    # Arrays and traced values have no value to look at here.
    if not hasattr(value, "dtype"):
        raise UserError(f"the option {option!r} of the loss {name!r} must be a number, not {value!r}.")
