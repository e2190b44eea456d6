"""How do the weights of a classifier become those of a part of a larger network?

The parts are the encoder of a U-Net, and the backbone that looks at the images of `captioned`.
"""

import inspect
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from research.models import fusion, registry
from research.models.call_order import call_order
from research.models.classifier import Classifier
from research.models.heads import Head
from research.models.initialize import initialize

_SIDE = 224  # of the images that shapes are found with; none of a backbone's variables depends on it


def part(settings: ConfigDict) -> tuple[str, str]:
    """The part of the model of `config.model` that pretrained weights are for, and its architecture.

    Returns:
      The name of the part, which is that of an option of the model and of an attribute of its backbone, and the name of
      a family; "" and "" if the weights are for the whole, a name and "" if the model was given no such part.
    """
    entry, _ = registry.find(settings.name)
    name = "encoder" if entry.segments else "image" if entry.name == fusion.NAME else ""
    options = inspect.signature(entry.build).parameters
    if name not in options:
        return "", ""
    return name, settings.options.get(name, options[name].default)


def holds_whole(plan: Any, name: str) -> bool:
    """Whether a file that was read for the part `name` holds the whole network."""
    return any(path.startswith(f"params/backbone/{name}/") for path in plan.file.arrays)


def load(plan: Any, name: str, model: Classifier, variables: Any, channels: int) -> tuple[Any, dict[str, Any]]:
    """Fills the variables of a part; everything else stays as it is.

    Args:
      plan: of `research.models.pretrained.plan` for the family of the part.
      name: of the part, see `part`.
      model: whose backbone has it.
      variables: {"params", "batch_stats"}, nested.
      channels: of the images.

    Returns:
      The variables and the report of `Pretrained.load`, in which nothing is said of the file's classifier.

    Raises:
      UserError: the file belongs to another family, is damaged, or holds NaN.
    """
    whole = Classifier(backbone=getattr(model.backbone, name).clone(parent=None), head=Head(num_classes=1))
    shapes = jax.eval_shape(lambda: initialize(whole, jax.random.key(0), _SIDE, channels))
    own = {
        kind: dict(tree) | {"backbone": variables[kind]["backbone"][name]} if "backbone" in tree else tree
        for kind, tree in shapes.items()
    }
    filled, report = plan.load(whole, own, call_order(whole, _SIDE, channels)[0])
    flat = flatten_dict(dict(variables), sep="/")
    for path, value in flatten_dict(dict(filled), sep="/").items():
        kind, _, rest = path.partition("/")
        if rest.startswith("backbone/"):
            flat[f"{kind}/backbone/{name}/{rest.removeprefix('backbone/')}"] = value
    missing = [path for path in report["missing"] if "/head/" not in path]
    result = unflatten_dict({tuple(path.split("/")): value for path, value in flat.items()})
    return result, report | {"missing": missing, "replaced_head": "", "part": name}
