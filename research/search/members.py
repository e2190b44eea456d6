"""What is kept of a cohort's members: places in the program, arrays in one stack, what the host remembers of each.

Arrays of all members lie in one stack `[M, …]`; those of a network that is narrower than the widest stand in the corner
of zeros.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from research.training import state
from research.training.control import Controls


@dataclasses.dataclass
class Member:
    """What the host remembers of one member; plain values, so that it can stand in a checkpoint's JSON."""

    status: str = "training"  # or "finished", "stopped: …", "failed: …"
    last_step: int = 0
    controls: Controls = dataclasses.field(default_factory=Controls)
    history: list[dict] = dataclasses.field(default_factory=list)


def places(total: int, alive: Sequence[int]) -> list[int]:
    """Whom the program holds: its size is halved whenever half of its places are free, so that few are compiled.

    A pure function of who trains, so that a resumed cohort runs the program of the uninterrupted one. Places that are
    free are filled by repeating members, whose copies are ignored.
    """
    size = total
    while size > 1 and len(alive) <= size // 2:
        size = -(-size // 2)
    return list(alive) + [alive[-1]] * (size - len(alive))


def widened(leaf: jax.Array, like) -> np.ndarray:
    """The array in the corner of zeros of the shape of `like`."""
    wide = np.zeros(like.shape, like.dtype)
    wide[tuple(map(slice, leaf.shape))] = leaf
    return wide


def narrowed(leaf: np.ndarray, like) -> np.ndarray:
    """The corner in the shape of `like`."""
    return leaf[tuple(map(slice, like.shape))]


def put(whole: np.ndarray, indices: list[int], part: np.ndarray) -> np.ndarray:
    whole = np.array(whole)
    whole[indices] = part
    return whole


def to_tree(members: state.TrainState, best: dict[str, state.Flat]) -> dict:
    """The content of a checkpoint: "members" as `state.to_tree`, and the best variables by path."""
    named = {kind: {k.replace("/", "."): v for k, v in flat.items()} for kind, flat in best.items() if flat}
    return {"members": state.to_tree(members), "best": named}
