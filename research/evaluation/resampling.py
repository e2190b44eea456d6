"""How often does each group of examples count in a replicate of the bootstrap?

Whole groups (patients, photographs) are drawn with replacement, as many as there are, and every draw of a group brings
all its examples (Davison & Hinkley 1997, section 3.8). Stratified: within every stratum as many groups as it has, so
that a rare class keeps its size instead of vanishing from some replicates (Davison & Hinkley 1997, section 3.2).
The same seed draws the same groups for every model and metric: comparisons are paired without further care.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from input_pipeline.cli import UserError

# Numbers held at once for a block of replicates (float64: 32 MB); a block's size does not change what is drawn.
BLOCK = 4_000_000


def check(n: int, level: float) -> None:
    """Raises `UserError` without a replicate, or for a level outside (0, 1)."""
    if n < 1 or not 0 < level < 1:
        raise UserError(f"a bootstrap needs at least one replicate and a level between 0 and 1, not {n} and {level}.")


def group_index(groups: Sequence | np.ndarray | None, num_examples: int) -> tuple[np.ndarray, int]:
    """Each example's group as int64 `[N]` in 0..G-1, and G. `groups` None: every example is its own group.

    Raises:
        UserError: as many groups as examples are needed.
    """
    if groups is None:
        return np.arange(num_examples), num_examples
    if len(groups) != num_examples:
        raise UserError(f"{len(groups)} groups do not fit {num_examples} examples.")
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    return index.reshape(-1), len(names)


def group_strata(strata: Sequence | np.ndarray | None, index: np.ndarray, num_groups: int) -> np.ndarray | None:
    """The stratum of each group, int64 `[G]`; None where `strata` is None.

    A group with examples of several strata (a patient with both infections) belongs to the stratum of most of them,
    the lowest among equals: it cannot be drawn in parts. The sizes of the classes are then kept about, not exactly.
    A stratum of a single group is drawn in every replicate and adds nothing to the spread.

    Args:
        strata: `[N]`, usually the labels. index: group of each example, int `[N]`, as `group_index`.

    Raises:
        UserError: as many strata as examples are needed.
    """
    if strata is None:
        return None
    if len(strata) != len(index):
        raise UserError(f"{len(strata)} strata do not fit {len(index)} examples.")
    names, code = np.unique(np.asarray(strata), return_inverse=True)
    flat = index * len(names) + code.reshape(-1)
    counts = np.bincount(flat, minlength=num_groups * len(names)).reshape(num_groups, len(names))
    return counts.argmax(axis=1)


def draws(num_groups: int, n: int, seed: int, width: int = 1, strata: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Blocks of drawn groups int64 `[r, G]`, n rows in all.

    Args:
        num_groups: G. n: replicates. seed: of the draws.
        width: numbers that the caller needs per replicate; decides how many replicates a block has.
        strata: of the groups, int `[G]`, or None.
    """
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // max(width, num_groups))
    if strata is None:
        members, first, size = np.arange(num_groups), 0, num_groups
    else:
        # Positions in the order of the strata; each draws from the positions of its own stratum.
        members = np.argsort(strata, kind="stable")
        sizes = np.bincount(strata)
        of_position = strata[members]
        first, size = (np.cumsum(sizes) - sizes)[of_position], sizes[of_position]
    for start in range(0, n, block):
        drawn = generator.integers(0, size, (min(block, n - start), num_groups), dtype=np.int64)
        yield drawn if strata is None else members[first + drawn]


def weights(
    num_groups: int, n: int, seed: int, width: int = 1, strata: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Blocks of how often each group is drawn, float64 `[r, G]`; arguments as `draws`."""
    for drawn in draws(num_groups, n, seed, width, strata):
        flat = (drawn + np.arange(len(drawn))[:, None] * num_groups).ravel()
        yield np.bincount(flat, minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def jackknife_weights(num_groups: int, width: int = 1) -> Iterator[np.ndarray]:
    """Blocks of weights float64 `[r, G]`, G rows in all: row g counts every group once but g not at all."""
    block = max(1, BLOCK // max(width, num_groups))
    for start in range(0, num_groups, block):
        rows = np.ones((min(block, num_groups - start), num_groups))
        rows[np.arange(len(rows)), start + np.arange(len(rows))] = 0.0
        yield rows


def members_of(index: np.ndarray, num_groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Examples sorted by group `[N]`, and the start and size of every group therein, each int64 `[G]`."""
    sizes = np.bincount(index, minlength=num_groups)
    return np.argsort(index, kind="stable"), np.cumsum(sizes) - sizes, sizes


def examples_of(drawn: np.ndarray, members: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Indices of all examples of the groups `drawn` `[D]`, in their order, with repetitions; int64 `[M]`."""
    length = sizes[drawn]
    # Each start repeated, plus 0, 1, ... within the group.
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    return members[np.repeat(starts[drawn], length) + within]
