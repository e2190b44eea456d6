"""Which examples make up the batch of step s: a pure function of the seed, the step and the global batch size.

Nothing here depends on threads, workers, hosts or devices, and nothing is kept between calls except a cache. The
stream of examples runs through epochs; position p of the stream (p = step * batch_size + row) belongs to epoch
p // epoch_length, so a batch may straddle two epochs, and a resumed run needs no state but its step.
"""

import hashlib
import math
import threading
from collections.abc import Sequence

import numpy as np

from input_pipeline.cli import UserError

KINDS = ("uniform", "class_balanced", "repeat_factor")


def _random_words(n: int, *key: int | str) -> np.ndarray:
    """`n` random uint64 words keyed by the SHA-256 of `key`.

    Raw Philox words: NumPy promises that they stay the same between versions, which it does not for `permutation`.
    """
    digest = hashlib.sha256("/".join(str(part) for part in key).encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], "<u8").astype(np.uint64)).random_raw(n)


def _permutation(n: int, *key: int | str) -> np.ndarray:
    return np.argsort(_random_words(n, *key), kind="stable")


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of `n` examples in an epoch: a permutation, int64 `[n]`.

    The generator is keyed by a hash of (seed, epoch), so that epoch 1 of seed 0 is not epoch 0 of seed 1.
    """
    return _permutation(n, "epoch", seed, epoch)


def class_pools(labels: np.ndarray) -> list[np.ndarray]:
    """The rows that carry each class: one int64 array for each class that occurs, in class order.

    Args:
        labels: int32 `[N]`, or multi-hot `[N, K]`. Examples without any label form a last pool of their own.
    """
    if labels.ndim == 1:
        return [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])] + (
            [np.flatnonzero(labels < 0)] if (labels < 0).any() else []
        )
    carried = labels > 0
    pools = [np.flatnonzero(carried[:, label]) for label in range(labels.shape[1])]
    return [pool for pool in [*pools, np.flatnonzero(~carried.any(axis=1))] if len(pool)]


def repeat_factors(labels: np.ndarray, threshold: float) -> np.ndarray:
    """How often each example is wanted per epoch: float64 `[N]`, at least 1.

    `r_i = max over the labels c of i of max(1, sqrt(threshold / f_c))`, with f_c the fraction of examples that carry c
    (Gupta, Dollár and Girshick 2019, LVIS; their threshold was 0.001, with 1,230 classes).
    """
    factors = np.ones(len(labels))
    for pool in class_pools(labels):
        wanted = np.sqrt(threshold * len(labels) / len(pool))
        factors[pool] = np.maximum(factors[pool], wanted)
    return factors


class Sampler:
    """Draws dataset indices for each step.

    Kinds:
        uniform: every example once per epoch.
        class_balanced: each class equally often in every epoch (to one draw), whatever its frequency; a class goes
            through all of its examples before it repeats one (class-aware sampling, Shen, Lin and Huang 2016). Of an
            example with several labels each label may draw it; examples without a label count as a class of their own.
        repeat_factor: example i occurs `repeat_factors(...)[i]` times per epoch: the integer below or above, drawn so
            that the mean over epochs is the factor, and never less than once.

    Args:
        kind: one of `KINDS`.
        labels: int32 `[N]` or multi-hot `[N, K]` of the whole data set.
        indices: the dataset indices to draw from, int64 `[n]`.
        seed: any integer.
        repeat_threshold: the t of repeat-factor sampling; classes rarer than this fraction are repeated.

    Raises:
        UserError: for an unknown kind, no examples, or a threshold that is not a fraction.
    """

    def __init__(
        self,
        kind: str,
        labels: np.ndarray,
        indices: Sequence[int] | np.ndarray,
        seed: int,
        repeat_threshold: float = 0.001,
    ):
        if kind not in KINDS:
            raise UserError(f"unknown sampler {kind!r}: choose one of {', '.join(KINDS)}.")
        self.indices = np.asarray(indices, np.int64)
        if not len(self.indices):
            raise UserError("there are no examples to sample from: check the roles in splits.json.")
        if kind == "repeat_factor" and not 0 < repeat_threshold <= 1:
            raise UserError(f"the repeat threshold must be a fraction between 0 and 1, not {repeat_threshold}.")
        self.kind = kind
        self.seed = int(seed)
        self.epoch_length = len(self.indices)
        """Examples per epoch: n, or for repeat_factor the sum of the factors, rounded up."""
        own_labels = np.asarray(labels)[self.indices]
        if kind == "class_balanced":
            self._pools = class_pools(own_labels)
        elif kind == "repeat_factor":
            factors = repeat_factors(own_labels, repeat_threshold)
            total = math.fsum(factors)
            self.epoch_length = math.ceil(total)
            # Stretched to a whole number of draws (by less than one), so that every epoch is equally long.
            self._factors = factors * (self.epoch_length / total)
        self._epochs: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def batch(self, step: int, batch_size: int) -> np.ndarray:
        """The dataset indices of the global batch of `step`, int64 `[batch_size]`."""
        parts, position, left = [], step * batch_size, batch_size
        while left:
            epoch, start = divmod(position, self.epoch_length)
            part = self.epoch(epoch)[start : start + left]
            parts.append(part)
            position += len(part)
            left -= len(part)
        return np.concatenate(parts)

    def epoch(self, epoch: int) -> np.ndarray:
        """The dataset indices of a whole epoch in order, int64 `[epoch_length]`."""
        with self._lock:
            if epoch not in self._epochs:
                # Two epochs are in use at a time: threads work on batches on both sides of the boundary.
                self._epochs = {known: self._epochs[known] for known in sorted(self._epochs)[-1:]}
                rows = {"uniform": self._uniform, "class_balanced": self._balanced, "repeat_factor": self._repeated}
                self._epochs[epoch] = self.indices[rows[self.kind](epoch)]
            return self._epochs[epoch]

    def _uniform(self, epoch: int) -> np.ndarray:
        return epoch_order(self.seed, epoch, len(self.indices))

    def _balanced(self, epoch: int) -> np.ndarray:
        """Draw t of the whole run goes to class t % classes and takes the (t // classes)-th of that class's stream."""
        n, classes = self.epoch_length, len(self._pools)
        rows = np.empty(n, np.int64)
        for rank, pool in enumerate(self._pools):
            slots = np.arange((rank - epoch * n) % classes, n, classes)
            occurrence = (epoch * n + slots) // classes
            rounds, places = np.divmod(occurrence, len(pool))
            turns, starts = np.unique(rounds, return_index=True)
            for turn, start, stop in zip(turns, starts, [*starts[1:], len(slots)], strict=True):
                order = _permutation(len(pool), "class", self.seed, rank, int(turn))
                rows[slots[start:stop]] = pool[order[places[start:stop]]]
        return rows[epoch_order(self.seed, epoch, n)]

    def _repeated(self, epoch: int) -> np.ndarray:
        """Systematic sampling: the factors laid end to end in random order, one draw at each u, u + 1, u + 2, ..."""
        order = _permutation(len(self._factors), "repeat", self.seed, epoch)
        offset = float(_random_words(1, "offset", self.seed, epoch)[0] >> np.uint64(11)) / 2**53
        ends = np.cumsum(self._factors[order])
        # Pins the end against the rounding of the sum, so that exactly `epoch_length` draws fall inside.
        ends[-1] = self.epoch_length
        draws = np.searchsorted(ends, offset + np.arange(self.epoch_length), side="right")
        return order[draws][epoch_order(self.seed, epoch, self.epoch_length)]

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        state["_epochs"] = {}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
