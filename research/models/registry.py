"""Which models are there, and how is one built from its name?"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from input_pipeline import cli
from research.models.classifier import Classifier
from research.models.heads import Head

# One line per family; importing its module registers its members.
FAMILIES = (
    "research.models.cnn1d",
    "research.models.cnn2",
    "research.models.densenet",
    "research.models.efficientnet",
    "research.models.fusion",
    "research.models.grid_cnn",
    "research.models.inception_resnet_v2",
    "research.models.inception_v3",
    "research.models.merged",
    "research.models.mlp",
    "research.models.resnet",
    "research.models.simple_cnn",
    "research.models.unet",
    "research.models.vgg",
    "research.models.xception",
)

# From the paths of the modules that own variables, in the order of their calls ("backbone/layer1_0/conv1",
# "head/logits"), to their names in another library ("layer1.0.conv1", "fc"); modules that the library does not have are
# left out.
Names = Callable[[Sequence[str]], dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of a model.

    Attributes:
      name: its name here.
      build: gives the backbone from keyword options; the signature is the list of options of `config.model.options`.
      variants: the values of its option `variant`, the default first; empty if there is one form only.
      names: by library ("timm", "torchvision", "keras"), what that library calls the modules. A Keras layer that holds
        the kernels of two modules is followed by a colon and the variable ("block2_sepconv1:pointwise_kernel").
      ignored: regular expressions of names in weight files that belong to no module, such as auxiliary classifiers.
      additions: regular expressions of modules that files need not have; they are drawn.
      widths: options that list the widths of layers. Giving them as the model's widths means: with zeros for weights, a
        wider model computes what a narrower one does, so that both can be trained in one program.
      segments: whether its features, and with them the logits, are those of every pixel: `[B, H, W, F]`.
    """

    name: str
    build: Callable[..., nn.Module]
    variants: tuple[str, ...]
    names: Mapping[str, Names]
    ignored: tuple[str, ...]
    widths: tuple[str, ...] = ()
    additions: tuple[str, ...] = ()
    segments: bool = False


_ENTRIES: dict[str, Entry] = {}
_ALIASES: dict[str, tuple[str, str]] = {}


def register(
    name: str,
    *,
    names: Mapping[str, Names] | None = None,
    aliases: Mapping[str, str] | None = None,
    ignored: Sequence[str] = (),
    widths: Sequence[str] = (),
    additions: Sequence[str] = (),
    segments: bool = False,
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorator: the function builds the backbone `name` from keyword options.

    A backbone is a module that takes images `[B, H, W, C]` and `train` and gives features `[B, F]` and a dict of
    feature maps, the last of which is the one that the features are pooled from. If the function has an option
    `variant`, its annotation is a `Literal` of the variants and its default is the first of them.

    Args:
      name: of the model, in lower case with underscores.
      names: see `Entry`.
      aliases: other names to the variant that they mean, such as `{"tf_efficientnet_b0": "tf"}`.
      ignored: see `Entry`.
      widths: see `Entry`.
      additions: see `Entry`.
      segments: see `Entry`.
    """

    def decorate(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        variant = inspect.signature(builder).parameters.get("variant")
        variants = tuple(variant.annotation.__args__) if variant else ()
        entry = Entry(name, builder, variants, names or {}, tuple(ignored), tuple(widths), tuple(additions), segments)
        if _ENTRIES.setdefault(name, entry).build is not builder:
            raise ValueError(f"two models are called {name}")
        _ALIASES.update({_plain(alias): (name, value) for alias, value in (aliases or {}).items()})
        _ALIASES[_plain(name)] = (name, "")
        return builder

    return decorate


def _plain(name: str) -> str:
    """ "ResNet50" and "resnet_50.a1_in1k" to "resnet50"."""
    return name.split(".")[0].replace("_", "").replace("-", "").lower()


def available() -> list[str]:
    """The names of all models, sorted."""
    for family in FAMILIES:
        importlib.import_module(family)
    return sorted(_ENTRIES)


def find(name: str) -> tuple[Entry, str]:
    """The model of a name, also as Keras and timm spell it, and the variant that the name implies ("" if none).

    Raises:
      UserError: there is no such model.
    """
    names = available()
    if _plain(name) not in _ALIASES:
        raise cli.UserError(f"there is no model {name!r}; set config.model.name to one of {', '.join(names)}.")
    canonical, variant = _ALIASES[_plain(name)]
    return _ENTRIES[canonical], variant


def _options(entry: Entry, variant: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a model's builder, checked, with the variant among them unless it is the default."""
    if variant and variant not in entry.variants:
        raise cli.UserError(
            f"the model {entry.name} has no variant {variant!r}; it has {', '.join(entry.variants) or 'none'}."
        )
    options = options | ({"variant": variant} if variant else {})
    known = inspect.signature(entry.build).parameters
    if unknown := sorted(set(options) - set(known)):
        raise cli.UserError(
            f"the model {entry.name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}, "
            "and every model has head, head_pool, head_dropout, head_dropout_at, head_batch_norm and head_bias_init."
        )
    return options


def backbone(name: str, variant: str = "", **options: Any) -> nn.Module:
    """The backbone of the model `name` without a head; see `create` for the arguments and errors."""
    entry, implied = find(name)
    return entry.build(**_options(entry, variant or implied, options))


def create(
    name: str,
    *,
    num_classes: int,
    variant: str = "",
    head: Sequence[int] = (),
    head_pool: str = "average",
    head_dropout: float | jax.Array = 0.0,
    head_dropout_at: str = "every",
    head_batch_norm: bool = False,
    head_bias_init: Sequence[float] = (),
    dtype: Any = jnp.float32,
    frozen: Sequence[str] = (),
    **options: Any,
) -> Classifier:
    """Builds the model `name`.

    Args:
      name: one of `available()`, or a name that `find` knows.
      num_classes: K, the number of logits.
      variant: whose form of the architecture ("timm", "keras", ...); the default of the name if empty.
      head: units of the hidden dense layers between the pooled features and the logits.
      head_pool: "average", "max" or "flatten": how the last feature map becomes the features. "average" stands for
        what the backbone itself does.
      head_dropout: dropout rate in the head; may be a traced scalar.
      head_dropout_at: "every", "first" or "last": the dense layers at whose input there is dropout.
      head_batch_norm: whether a BatchNorm comes first in the head.
      head_bias_init: K initial biases of the logits, or empty for zeros.
      dtype: compute type, such as `jnp.bfloat16`.
      frozen: paths of BatchNorm layers that keep their running statistics, see `Classifier`.
      **options: the architecture's own options.

    Raises:
      UserError: an unknown model, variant or option, or a width that is not positive.
    """
    find(name)  # an unknown model is the first thing to say
    if num_classes < 1 or any(width < 1 for width in head):
        raise cli.UserError(
            f"{num_classes} classes with head widths {tuple(head)} make no head; give positive numbers."
        )
    body = backbone(name, variant, **options)
    classifier_head = Head(
        num_classes=num_classes,
        widths=tuple(head),
        dropout=head_dropout,
        dropout_at=head_dropout_at,
        batch_norm=head_batch_norm,
        bias_init=tuple(head_bias_init),
        dtype=dtype,
    )
    return Classifier(body, classifier_head, head_pool, dtype=dtype, frozen=tuple(frozen))
