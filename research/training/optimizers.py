"""Which direction does a step go, and how far for each parameter?

The learning rate multiplies the direction outside of optax, as an argument of the compiled step. So schedules, plateaus
and (later) whole grids of learning rates run through one program, and nothing has to be injected. The factors of single
parameters multiply there too, so that they work with every optimiser.
"""

import math

import jax
import optax

from input_pipeline.cli import UserError
from research.training.freezing import Layers, select


def direction(settings) -> optax.GradientTransformation:
    """Returns the ascent direction u of `settings` (config.optimizer); the caller applies θ ← θ − rate·factor·u.

    sgd (momentum, Nesterov), adam (Kingma & Ba 2015), amsgrad (Reddi et al. 2018), adamw and decoupled `weight_decay`
    for all of them (Loshchilov & Hutter 2019), lion (Chen et al. 2023), rmsprop. `clip_norm` clips the global norm of
    the gradient first. The decay is part of u, so a parameter's factor slows both. Numbers may be traced; a number 0
    leaves its part out.
    """
    s = settings
    kinds = {
        "sgd": lambda: optax.trace(s.momentum, nesterov=s.nesterov) if on(s.momentum) else optax.identity(),
        "adam": lambda: optax.scale_by_adam(s.beta1, s.beta2, s.epsilon),
        "adamw": lambda: optax.scale_by_adam(s.beta1, s.beta2, s.epsilon),
        "amsgrad": lambda: optax.scale_by_amsgrad(s.beta1, s.beta2, s.epsilon),
        "lion": lambda: optax.scale_by_lion(s.beta1, s.beta2),
        "rmsprop": lambda: optax.scale_by_rms(s.beta2, s.epsilon),
    }
    if s.name not in kinds:
        raise UserError(f"config.optimizer.name is '{s.name}'; choose one of {', '.join(kinds)}.")
    parts = [optax.clip_by_global_norm(s.clip_norm)] if on(s.clip_norm) else []
    parts.append(kinds[s.name]())
    if on(s.weight_decay):
        parts.append(optax.add_decayed_weights(s.weight_decay))
    return optax.chain(*parts)


def on(value: float | jax.Array) -> bool:
    """Whether a part belongs in the program: an array says so, whatever its value."""
    return isinstance(value, jax.Array) or bool(value)


def factors(layers: Layers, settings) -> dict[str, float]:
    """What multiplies the learning rate of each parameter path, where that is not 1.

    `layer_decay` (Howard & Ruder 2018, ULMFiT, with 1/2.6; Clark et al. 2020, ELECTRA): decay^d, where d is 0 for the
    head, 1 for the backbone's last block (see `freezing`), and so on down to the image. `rates`: pairs (specification,
    factor); all that mean a parameter multiply.

    Raises:
      UserError: a specification means nothing.
    """
    result = dict.fromkeys(layers.paths, 1.0)
    for depth, block in enumerate(reversed(layers.blocks), 1):
        for layer in block:
            result |= dict.fromkeys(layers.parameters[layer], settings.layer_decay**depth)
    for specification, factor in pairs(settings.rates, "optimizer.rates"):
        for path in select(layers, specification):
            result[path] *= factor
    return {path: factor for path, factor in result.items() if factor != 1.0}


def penalties(layers: Layers, settings) -> dict[str, float]:
    """The coefficient λ of each parameter path that config.optimizer.l2 penalises; several add up.

    The penalty λ·Σθ² is Keras's `kernel_regularizer=l2(λ)` where the specification names a kernel: 2·λ·θ joins the
    gradient before clipping and moments. It is left out of the reported loss, which thus compares with validation's.

    Raises:
      UserError: a specification means nothing.
    """
    result: dict[str, float] = {}
    for specification, coefficient in pairs(settings.l2, "optimizer.l2"):
        for path in select(layers, specification):
            result[path] = result.get(path, 0.0) + coefficient
    return result


def pairs(value, name: str) -> tuple[tuple[str, float], ...]:
    """A config value as pairs (specification, positive number).

    Raises:
      UserError: it is something else.
    """
    right = isinstance(value, tuple | list) and all(
        isinstance(item, tuple | list)
        and len(item) == 2
        and isinstance(item[0], str)
        and isinstance(item[1], int | float)
        and math.isfinite(item[1])
        and item[1] > 0
        for item in value
    )
    if not right:
        raise UserError(f"config.{name} is {value!r}; give pairs of layer and positive number, as (('head', 10.0),).")
    return tuple((item[0], float(item[1])) for item in value)
