"""Which direction a step goes: optax transformations without the learning rate, and what is frozen.

The learning rate multiplies the direction outside of optax, as an argument of the compiled step. So schedules, plateaus
and (later) whole grids of learning rates run through one program, and nothing has to be injected.
"""

import re
from collections.abc import Iterable

import optax

from input_pipeline.cli import UserError


def direction(settings) -> optax.GradientTransformation:
    """Returns the ascent direction u of `settings` (config.optimizer); the caller applies θ ← θ − rate·u.

    sgd (momentum, Nesterov), adam (Kingma & Ba 2015), amsgrad (Reddi et al. 2018), adamw and decoupled `weight_decay`
    for all of them (Loshchilov & Hutter 2019), lion (Chen et al. 2023), rmsprop. `clip_norm` clips the global norm of
    the gradient first.
    """
    s = settings
    kinds = {
        "sgd": lambda: optax.trace(s.momentum, nesterov=s.nesterov) if s.momentum else optax.identity(),
        "adam": lambda: optax.scale_by_adam(s.beta1, s.beta2, s.epsilon),
        "adamw": lambda: optax.scale_by_adam(s.beta1, s.beta2, s.epsilon),
        "amsgrad": lambda: optax.scale_by_amsgrad(s.beta1, s.beta2, s.epsilon),
        "lion": lambda: optax.scale_by_lion(s.beta1, s.beta2),
        "rmsprop": lambda: optax.scale_by_rms(s.beta2, s.epsilon),
    }
    if s.name not in kinds:
        raise UserError(f"config.optimizer.name is '{s.name}'; choose one of {', '.join(kinds)}.")
    parts = [optax.clip_by_global_norm(s.clip_norm)] if s.clip_norm else []
    parts.append(kinds[s.name]())
    if s.weight_decay:
        parts.append(optax.add_decayed_weights(s.weight_decay))
    return optax.chain(*parts)


def trainable_paths(paths: Iterable[str], freeze: Iterable[str]) -> tuple[str, ...]:
    """Paths ("backbone/conv/kernel") that no pattern of `freeze` matches, in order.

    Raises:
      UserError: a pattern matches nothing, or nothing is left to train.
    """
    paths = tuple(paths)
    for pattern in freeze:
        if not any(re.search(pattern, path) for path in paths):
            raise UserError(f"The freeze pattern '{pattern}' matches no parameter; paths look like '{paths[0]}'.")
    trainable = tuple(p for p in paths if not any(re.search(f, p) for f in freeze))
    if not trainable:
        raise UserError(f"The freeze patterns {tuple(freeze)} leave no parameter to train; freeze less.")
    return trainable
