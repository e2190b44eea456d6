"""What a trial carries from step to step, as one tree of arrays."""

import hashlib
from typing import Any

import flax.serialization
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from research.training import sharding

Flat = dict[str, jax.Array]  # arrays by path, "backbone/conv/kernel"
FIRST_SCALE = 2.0**15  # of the loss in float16; below its greatest number, 65504


@flax.struct.dataclass
class TrainState:
    """State of one member. Paths are flat so that freezing, averaging and sharding speak of the same names.

    Attributes:
      step: int32 [], optimiser steps taken since the start of the trial.
      key: uint32 [2], threefry key data; the keys of a step are folded from it and `step`.
      params, batch_stats: all arrays of the model, float32.
      opt_state: optax state over the trainable paths of the phase only.
      ema: {"params", "batch_stats"} averaged, or {}.
      skipped, streak: int32 [], steps left out because they were not finite: all, and in a row.
      sums: float32 sums of the training metrics since the last log line.
      scale: {"factor": float32 [], "good": int32 []} of a loss that is computed in float16 (`steps.rescaled`), or {}.
    """

    step: jax.Array
    key: jax.Array
    params: Flat
    batch_stats: Flat
    opt_state: Any
    ema: dict[str, Flat]
    skipped: jax.Array
    streak: jax.Array
    sums: dict[str, jax.Array]
    scale: dict[str, jax.Array] = flax.struct.field(default_factory=dict)

    def evaluated(self) -> dict[str, Flat]:
        """The variables that evaluation and predictions use: the averaged ones where there are any."""
        return dict(self.ema) or {"params": self.params, "batch_stats": self.batch_stats}

    def with_evaluated(self, variables: dict[str, Flat]) -> "TrainState":
        """The state whose `evaluated` variables are these."""
        return self.replace(ema=variables) if self.ema else self.replace(**variables)


def flatten(tree) -> Flat:
    """Nested variables to {path: array}."""
    return flatten_dict(tree, sep="/")


def nest(flat: Flat):
    """{path: array} to nested variables, as Flax takes them."""
    return unflatten_dict(flat, sep="/")


def zero_sums(num_classes: int) -> dict[str, jax.Array]:
    """Empty sums of the training metrics of `steps.train_metrics`."""
    scalars = {k: jnp.zeros((), jnp.float32) for k in ("steps", "loss", "gradient_norm", "examples", "correct")}
    counts = {k: jnp.zeros((num_classes,), jnp.float32) for k in ("tp", "fp", "fn")}
    return scalars | counts


def create(
    variables,
    seed: int,
    transformation: optax.GradientTransformation,
    trainable,
    ema: bool,
    num_classes: int,
    opt_state: Any = None,
    loss_scale: bool = False,
) -> TrainState:
    """A fresh state from Flax `variables` ({"params", "batch_stats"}, nested), with `opt_state` if there is one."""
    params, stats = flatten(variables["params"]), flatten(variables.get("batch_stats", {}))
    if opt_state is None:
        opt_state = jax.jit(transformation.init)({p: params[p] for p in trainable})  # one program for all arrays
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(seed, impl="threefry2x32")),
        params=params,
        batch_stats=stats,
        opt_state=opt_state,
        # Copies: a donated step may not be given one buffer twice.
        ema=jax.tree.map(jnp.copy, {"params": params, "batch_stats": stats}) if ema else {},
        skipped=jnp.zeros((), jnp.int32),
        streak=jnp.zeros((), jnp.int32),
        sums=zero_sums(num_classes),
        scale={"factor": jnp.float32(FIRST_SCALE), "good": jnp.int32(0)} if loss_scale else {},
    )


def to_tree(state: TrainState) -> dict[str, Any]:
    """Plain nested dictionaries for a checkpoint; empty ones are left out because orbax does not keep them."""
    tree = flax.serialization.to_state_dict(state)
    flat = flatten_dict(tree, keep_empty_nodes=False)
    return unflatten_dict({tuple(str(k).replace("/", ".") for k in path): value for path, value in flat.items()})


def from_tree(template: TrainState, tree: dict[str, Any]) -> TrainState:
    """Puts the arrays of `to_tree` back into a state shaped like `template`."""
    named = flax.serialization.to_state_dict(template)
    arrays = flatten_dict(tree)
    flat = flatten_dict(named, keep_empty_nodes=True)
    filled = {path: arrays.get(tuple(str(k).replace("/", ".") for k in path), value) for path, value in flat.items()}
    return flax.serialization.from_state_dict(template, unflatten_dict(filled))


def fingerprint(state: TrainState) -> str:
    """SHA-256 over names, shapes, types and bytes of all arrays of the state."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(to_tree(state)).items()):
        array = sharding.to_host(leaf)
        digest.update(f"{'/'.join(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
