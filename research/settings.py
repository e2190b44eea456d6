"""Which values of a config can no study mean? Each is refused by a sentence that names its key.

And what does a config mean that an older version wrote, without the keys that came since?
"""

import re
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import normalize
from input_pipeline.cli import UserError
from research.search import plans
from research.training import optimizers

_EXPLANATIONS = ("gradcam", "gradcam++", "scorecam", "integrated_gradients", "smoothgrad", "occlusion")
_CHOICES = {
    "nonfinite": ("skip", "abort"),
    "data.split": ("roles", "study"),
    "data.cache": ("auto", "none", "ram", "device"),
    "data.resize": ("stretch", "crop"),
    "data.normalize": ("auto", *normalize.KINDS),
    "data.sampler": ("uniform", "class_balanced", "repeat_factor"),
    "evaluation.explain": ("", *_EXPLANATIONS),
    "evaluation.tta": ("none", "flips", "dihedral"),
    "evaluation.thresholds": ("fixed", "per_class_f1", "grid"),
    "model.head_pool": ("average", "max", "flatten"),
    "model.head_dropout_at": ("every", "first", "last"),
    "schedule.name": ("constant", "cosine", "one_cycle"),
    "search.sampler": ("", "tpe", "nsga2", "random"),
    "search.order": ("shared", "own"),
    "search.plan": ("auto", *plans.KINDS),
    "loss.class_weights": ("none", "balanced", "effective"),
}


def completed(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored config with the defaults of the keys that it lacks; every default leaves things as they were.

    Raises:
      KeyError: it lacks what every version had.
    """
    from configs import common  # the only place where a default lives

    if missing := {"study", "data", "model", "loss", "optimizer"} - stored.keys():
        raise KeyError(min(missing))

    return _over(common.default().to_dict(), stored)


def _over(defaults: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    both = {key for key in defaults if isinstance(defaults[key], dict) and isinstance(own.get(key), dict)}
    return defaults | own | {key: _over(defaults[key], own[key]) for key in both}


def validate(config: ConfigDict) -> None:
    """Refuses impossible numbers and unknown choices.

    Raises:
      UserError: names the first one.
    """
    positive = {
        "batch_size": config.batch_size,
        "image_size": config.image_size,
        "search.cohort": config.search.cohort,
        "search.repeats": config.search.repeats,
        "optimizer.accumulate": config.optimizer.accumulate,
        "optimizer.learning_rate": config.optimizer.learning_rate,
    }
    for i, phase in enumerate(config.phases):
        positive[f"phases[{i}].learning_rate"] = phase.get("learning_rate", 1.0)
    for name, value in positive.items():
        if not value > 0 or not np.isfinite(value):
            raise UserError(f"config.{name} is {value}; it must be a positive number.")
    shares = {
        "optimizer.ema": config.optimizer.ema,
        "schedule.final": config.schedule.final,
        "model.head_dropout": config.model.head_dropout,
    }
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise UserError(f"config.{name} is {value}; it must be at least 0 and below 1.")
    if not 0 < config.optimizer.layer_decay <= 1:
        raise UserError(
            f"config.optimizer.layer_decay is {config.optimizer.layer_decay}; it must be above 0 and at most 1 (off)."
        )
    profile = config.get("profile", "")  # finished runs of earlier versions have none of these keys and can be read
    steps = re.fullmatch(r"(\d+):(\d+)", profile)
    if profile and not (steps and int(steps[1]) < int(steps[2])):
        raise UserError(f"config.profile is '{profile}'; write the first step and the one after the last: 10:20.")
    if sum(config.get(name, False) for name in ("find_batch_size", "learning_rate_finder", "overfit_one_batch")) > 1:
        raise UserError("set only one of config.find_batch_size, learning_rate_finder and overfit_one_batch.")
    for name in ("rates", "l2"):
        optimizers.pairs(config.optimizer[name], f"optimizer.{name}")
    if config.unfreeze.groups < 0:
        raise UserError(f"config.unfreeze.groups is {config.unfreeze.groups}; it must be 0 (off) or more.")
    for name, allowed in _CHOICES.items():
        value = config
        for part in name.split("."):
            value = value[part]
        if value not in allowed:
            raise UserError(f"config.{name} is '{value}'; choose one of {', '.join(allowed)}.")
