"""Which models are there, and how is one built from its name?"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline import cli
from research.models.classifier import Classifier
from research.models.heads import Head

# One line per family; importing its module registers its members.
FAMILIES = (
    "research.models.inception_resnet_v2",
    "research.models.resnet",
    "research.models.simple_cnn",
)

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def register(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorator: the function builds the backbone `name` from keyword options.

    A backbone is a module that takes images `[B, H, W, C]` and `train` and gives features `[B, F]` and a dict
    of feature maps. The function's signature is the list of options that a config may set under
    `config.model`.
    """

    def decorate(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if _BUILDERS.setdefault(name, builder) is not builder:
            raise ValueError(f"two models are called {name}")
        return builder

    return decorate


def available() -> list[str]:
    """The names of all models, sorted."""
    for family in FAMILIES:
        importlib.import_module(family)
    return sorted(_BUILDERS)


def create(
    name: str,
    *,
    num_classes: int,
    head: Sequence[int] = (),
    head_dropout: float | jax.Array = 0.0,
    head_batch_norm: bool = False,
    head_bias_init: Sequence[float] = (),
    dtype: Any = jnp.float32,
    frozen: Sequence[str] = (),
    **options: Any,
) -> Classifier:
    """Builds the model `name`.

    Args:
      name: one of `available()`.
      num_classes: K, the number of logits.
      head: units of the hidden dense layers between the pooled features and the logits.
      head_dropout: dropout rate at the input of each dense layer; may be a traced scalar.
      head_batch_norm: whether a BatchNorm comes first in the head.
      head_bias_init: K initial biases of the logits, or empty for zeros.
      dtype: compute type, such as `jnp.bfloat16`.
      frozen: paths of BatchNorm layers that keep their running statistics, see `Classifier`.
      **options: the architecture's own options.

    Raises:
      UserError: an unknown model, an option which the model does not have, or a width that is not positive.
    """
    names = available()
    if name not in names:
        raise cli.UserError(
            f"there is no model {name!r}; set config.model.name to one of {', '.join(names)}."
        )
    if num_classes < 1 or any(width < 1 for width in head):
        raise cli.UserError(
            f"{num_classes} classes with head widths {tuple(head)} make no head; give positive numbers."
        )
    known = inspect.signature(_BUILDERS[name]).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise cli.UserError(
            f"the model {name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}, "
            "and every model has head, head_dropout, head_batch_norm and head_bias_init."
        )
    classifier_head = Head(
        num_classes=num_classes,
        widths=tuple(head),
        dropout=head_dropout,
        batch_norm=head_batch_norm,
        bias_init=tuple(head_bias_init),
        dtype=dtype,
    )
    return Classifier(_BUILDERS[name](**options), classifier_head, dtype=dtype, frozen=tuple(frozen))
