"""Which weights of a network are so small that it does without them?

Magnitude pruning (Han et al. 2015, arXiv:1506.02626): the kernels' entries of the smallest absolute value are set to
zero and stay zero; biases, norms and running statistics are left alone. During fine-tuning the sparsity may rise step
by step (Zhu and Gupta 2017, arXiv:1710.01878). The masks live in the optimiser's state, so that they are saved,
restored and, with a step that was not finite, taken back together with it.

The project's step is θ ← θ − rate·factor·u with a rate that optax does not see. So `magnitude_pruning`, last in an
`optax.chain`, makes u zero where the mask is, whatever momentum, Adam or weight decay put there: what is zero stays
exactly zero. What a step masks anew is set to zero by `project`, after the step.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from input_pipeline.cli import UserError
from research.training.state import Flat, TrainState
from research.training.steps import StepParts, train_step

SCOPES = ("global", "layer")
_MASKS = "kept"  # the field of `PruningState`; no state of optax has one of this name


@dataclasses.dataclass(frozen=True)
class Cubic:
    """Sparsity over the steps of a fine-tuning, Zhu and Gupta 2017, equation 1: fast at first, then ever slower.

    s(t) = final + (initial − final)·(1 − (t − begin)/(updates·every))³ at t = begin, begin + every, …; `updates` = 0
    means that `final` holds from `begin` on.

    Attributes:
      final: share of the kernels' entries that is zero in the end, at least 0 and below 1.
      initial: the share at `begin`.
      begin: step of the first masks.
      every: steps between two changes of the masks.
      updates: how often the masks change after the first ones.
    """

    final: float
    initial: float = 0.0
    begin: int = 0
    every: int = 1
    updates: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.final < 1:
            raise UserError(
                f"a sparsity from {self.initial} to {self.final} is impossible; choose numbers that do not fall, at "
                "least 0 and below 1."
            )
        if self.begin < 0 or self.every < 1 or self.updates < 0:
            raise UserError("the steps of a pruning schedule must not be negative, and `every` at least 1.")

    @property
    def end(self) -> int:
        """The step from which on the sparsity is `final`."""
        return self.begin + self.every * self.updates

    def sparsity(self, step: jax.Array | int) -> jax.Array:
        """float32 []: the share of zeros that the masks of `step` (may be traced) have."""
        done = (jnp.asarray(step) - self.begin) // self.every
        share = jnp.clip(done / max(1, self.updates), 0.0, 1.0) if self.updates else jnp.ones(())
        value = self.final + (self.initial - self.final) * (1.0 - share) ** 3
        return jnp.where(jnp.asarray(step) < self.begin, 0.0, value).astype(jnp.float32)

    def due(self, step: jax.Array | int) -> jax.Array:
        """bool []: whether the masks change at `step`."""
        since = jnp.asarray(step) - self.begin
        return (since >= 0) & (since <= self.every * self.updates) & (since % self.every == 0)


class PruningState(NamedTuple):
    """State of `magnitude_pruning`: steps taken, int32 [], and per kernel what is kept, bool in the kernel's shape."""

    count: jax.Array
    kept: dict[str, jax.Array]


def prunable(params: Mapping[str, jax.Array]) -> tuple[str, ...]:
    """The paths of the kernels of convolutions and dense layers, sorted."""
    return tuple(sorted(path for path, value in params.items() if path.endswith("kernel") and value.ndim >= 2))


def magnitude_masks(
    params: Flat, sparsity: jax.Array | float, scope: str = "global", kept: Mapping[str, jax.Array] | None = None
) -> dict[str, jax.Array]:
    """Masks of the kernels that leave out the smallest entries: bool in the kernels' shapes, True = kept.

    round(sparsity·n) of n entries are left out, exactly; of equal ones the first in the order of paths and positions.

    Args:
      params: arrays by path.
      sparsity: share of the entries, [], may be traced.
      scope: "global" (all kernels are ranked together) or "layer" (each on its own).
      kept: earlier masks; what they leave out stays out, as long as the sparsity does not fall.
    """
    if scope not in SCOPES:
        raise UserError(f"the scope of pruning is {scope!r}; choose one of {', '.join(SCOPES)}.")
    paths = prunable(params)
    masks: dict[str, jax.Array] = {}
    for group in [paths] if scope == "global" else [(path,) for path in paths]:
        sizes = []
        for path in group:
            size = jnp.abs(params[path]).astype(jnp.float32)
            sizes.append(jnp.where(kept[path], size, -1.0).ravel() if kept else size.ravel())
        joined = jnp.concatenate(sizes)
        left_out = jnp.round(jnp.asarray(sparsity, jnp.float32) * joined.size)
        mask = jnp.zeros(joined.shape, bool).at[jnp.argsort(joined)].set(jnp.arange(joined.size) >= left_out)
        start = 0
        for path in group:
            masks[path] = mask[start : start + params[path].size].reshape(params[path].shape)
            start += params[path].size
    return masks


def magnitude_pruning(schedule: Cubic, scope: str = "global") -> optax.GradientTransformation:
    """Keeps what is pruned at zero and prunes more as the schedule says; the last part of an `optax.chain`.

    `update` needs the parameters. It renews the masks from the parameters before the step, so after the step call
    `project` with the new state.
    """

    def init(params: Flat) -> PruningState:
        return PruningState(jnp.zeros((), jnp.int32), magnitude_masks(params, schedule.sparsity(0), scope))

    def update(updates: Flat, state: PruningState, params: Flat | None = None) -> tuple[Flat, PruningState]:
        if params is None:
            raise ValueError("magnitude_pruning needs the parameters: update(updates, state, params)")
        kept = jax.lax.cond(
            schedule.due(state.count),
            lambda: magnitude_masks(params, schedule.sparsity(state.count), scope, state.kept),
            lambda: state.kept,
        )
        return project(updates, kept), PruningState(state.count + 1, kept)

    return optax.GradientTransformation(init, update)


def masks_of(opt_state) -> dict[str, jax.Array]:
    """The masks in the state of a chain that `magnitude_pruning` is part of."""
    return optax.tree_utils.tree_get(opt_state, _MASKS)


def project(values: Flat, kept: Mapping[str, jax.Array]) -> Flat:
    """`values` with exact zeros where a mask leaves an entry out, also where NaN stood there."""
    return values | {path: jnp.where(mask, values[path], 0) for path, mask in kept.items()}


def project_state(state: TrainState) -> TrainState:
    """A training state whose parameters, averaged ones included, are zero where its own masks say so."""
    kept = masks_of(state.opt_state)
    ema = state.ema | {"params": project(state.ema["params"], kept)} if state.ema else state.ema
    return state.replace(params=project(state.params, kept), ema=ema)


def pruned_step(parts: StepParts, state: TrainState, batch: dict[str, jax.Array], rate: jax.Array) -> TrainState:
    """`steps.train_step` for parts whose transformation contains `magnitude_pruning`."""
    return project_state(train_step(parts, state, batch, rate))


def sparsity_of(params: Mapping[str, jax.Array]) -> float:
    """The share of zeros among the entries of all kernels."""
    kernels = [params[path] for path in prunable(params)]
    return sum(int(jnp.sum(kernel == 0)) for kernel in kernels) / max(1, sum(kernel.size for kernel in kernels))
