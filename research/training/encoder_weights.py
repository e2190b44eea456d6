"""How do the weights of a classifier become those of the encoder of a network that segments?"""

import inspect
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from research.models import registry
from research.models.call_order import call_order
from research.models.classifier import Classifier
from research.models.heads import Head
from research.models.initialize import initialize

PART = "encoder"
_OURS = f"backbone/{PART}/"
_SIDE = 224  # of the images that shapes are found with; none of an encoder's variables depends on it


def family(settings: ConfigDict) -> str:
    """The architecture whose weights fit a part of the model of `config.model` only; "" if none is meant."""
    entry, _ = registry.find(settings.name)
    options = inspect.signature(entry.build).parameters
    return settings.options.get(PART, options[PART].default) if entry.segments and PART in options else ""


def holds_whole(plan: Any) -> bool:
    """Whether a file that was read for the encoder holds the whole network that segments."""
    return any(name.startswith(f"params/{_OURS}") for name in plan.file.arrays)


def load(plan: Any, model: Classifier, variables: Any, channels: int) -> tuple[Any, dict[str, Any]]:
    """Fills the encoder's variables; the decoder and the head stay as they are.

    Args:
      plan: of `research.models.pretrained.plan` for the encoder's family.
      model: whose backbone is a `unet.UNet`.
      variables: {"params", "batch_stats"}, nested.
      channels: of the images.

    Returns:
      The variables and the report of `Pretrained.load`, in which nothing is said of the file's classifier.

    Raises:
      UserError: the file belongs to another family, is damaged, or holds NaN.
    """
    whole = Classifier(backbone=model.backbone.encoder.clone(parent=None), head=Head(num_classes=1))
    shapes = jax.eval_shape(lambda: initialize(whole, jax.random.key(0), _SIDE, channels))
    own = {
        kind: dict(tree) | {"backbone": variables[kind]["backbone"][PART]} if "backbone" in tree else tree
        for kind, tree in shapes.items()
    }
    filled, report = plan.load(whole, own, call_order(whole, _SIDE, channels)[0])
    flat = flatten_dict(dict(variables), sep="/")
    for name, value in flatten_dict(dict(filled), sep="/").items():
        kind, _, rest = name.partition("/")
        if rest.startswith("backbone/"):
            flat[f"{kind}/{_OURS}{rest.removeprefix('backbone/')}"] = value
    missing = [name for name in report["missing"] if "/head/" not in name]
    result = unflatten_dict({tuple(name.split("/")): value for name, value in flat.items()})
    return result, report | {"missing": missing, "replaced_head": "", "part": PART}
