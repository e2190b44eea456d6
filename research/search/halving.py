"""Which trials of a search go on to the next rung, when several objectives count?

Successive halving (Jamieson and Talwalkar 2016): all trials train to the first rung, the better part of them to the
next, and the last survivors to the end. Here "better" is meant for several objectives: by non-dominated rank, and in
the rank that does not fit whole by coverage of the front, which is measured by the volume that a selection dominates
(greedy hypervolume subset selection, Guerreiro, Fonseca and Paquete 2016). Points are costs `[N, M]`, less is better.

Which error? Accuracies are noisy early in the training. On recorded curves of small CNNs (36 settings x 3 seeds, 600
steps) the best macro AUROC so far at 1/12 of the training had a rank correlation of 0.65 with the final accuracy, the
best accuracy so far one of 0.27 (at 1/4: 0.85 and 0.80), so 1 minus the AUROC makes the better column. Inside a
rank, coverage by volume kept 97 % of the front's validation hypervolume, MO-ASHA's choice of the farthest point
(Schmucker et al. 2021, arXiv 2106.12639) 96 % and equal bands of log parameters 86 %; tests/benchmarks/halving.py
compares them.

Everything here is a pure function of numbers, ties go to the trial that comes first, and so a search that was
interrupted takes the same decisions again.
"""

import dataclasses
import heapq
import math
from collections.abc import Sequence

import numpy as np

from input_pipeline.cli import UserError
from research.search.front import hypervolume, non_dominated

_EDGE = 0.05  # the reference point lies beyond the worst cost by this share of the range


@dataclasses.dataclass(frozen=True)
class Rung:
    """A stop on the way: after `step` steps of its training a trial waits, and `keep` trials go on."""

    step: int
    keep: int


def rungs(
    total_steps: int, eta: float, first: float, trials: int, budget: float, last: float = 0.25, every: int = 1
) -> list[Rung]:
    """The rungs of a search that spends at most `budget` of the steps of training all trials to the end.

    Rungs lie at the shares `first`, `first * eta`, `first * eta**2`, … of the training, up to `last`. At each of them
    (nearly) the same share of the trials goes on, the largest that the budget allows: what a front of many sizes needs
    are finalists, and the classic 1/eta at ever later rungs would leave fewer of them than there are sizes. Steps that
    rounding leaves over become finalists.

    Args:
      total_steps: length of one training.
      eta: ratio of the steps of two rungs that follow each other, above 1.
      first: the first rung as a share of the training, between 0 and 1.
      trials: how many enter.
      budget: share of `trials * total_steps`, above 0; with 1 or more no trial is stopped.
      last: no rung lies beyond this share of the training; at least `first`.
      every: steps between evaluations; rungs lie on multiples of it.

    Raises:
      UserError: an argument is out of its range, or the budget does not last for one finalist.
    """
    _check(total_steps, eta, first, trials, budget, last, every)
    steps: list[int] = []
    share = first
    while share <= last * (1 + 1e-9) and (step := max(1, round(share * total_steps / every)) * every) < total_steps:
        steps += [step] if step not in steps else []
        share *= eta
    limit = budget * trials * total_steps * (1 + 1e-12)
    if cost(_counted(steps, trials, 0.0), trials, total_steps) > limit:
        raise UserError(
            f"a budget of {budget:g} is too small for {trials} trials with a first rung at {first:g} of the training; "
            "raise the budget or lower `first`."
        )
    low, high = 0.0, 1.0
    for _ in range(60):  # bisection: the cost grows with the share that goes on
        middle = (low + high) / 2
        fits = cost(_counted(steps, trials, middle), trials, total_steps) <= limit
        low, high = (middle, high) if fits else (low, middle)
    return _filled(_counted(steps, trials, low), trials, total_steps, limit)


def _check(total_steps: int, eta: float, first: float, trials: int, budget: float, last: float, every: int) -> None:
    rules = (
        ("total_steps", total_steps, total_steps >= 1, "at least 1"),
        ("eta", eta, 1 < eta < math.inf, "above 1, such as 3"),
        ("first", first, 0 < first < 1, "between 0 and 1, such as 0.08"),
        ("trials", trials, trials >= 1, "at least 1"),
        ("budget", budget, 0 < budget < math.inf, "above 0, such as 0.25"),
        ("last", last, first <= last < 1, f"from first = {first:g} to below 1"),
        ("every", every, every >= 1, "at least 1"),
    )
    for name, value, right, remedy in rules:
        if not right:
            raise UserError(f"successive halving cannot have {name} {value}; choose a number {remedy}.")


def _counted(steps: Sequence[int], trials: int, share: float) -> list[Rung]:
    return [Rung(step, max(1, round(trials * share**k))) for k, step in enumerate(steps, 1)]


def _filled(chosen: list[Rung], trials: int, total_steps: int, limit: float) -> list[Rung]:
    """One more trial at the last rung, or the one before, …, as long as the budget lasts."""
    for k in reversed(range(len(chosen))):
        while chosen[k].keep < (chosen[k - 1].keep if k else trials):
            more = [*chosen[:k], Rung(chosen[k].step, chosen[k].keep + 1), *chosen[k + 1 :]]
            if cost(more, trials, total_steps) > limit:
                break
            chosen = more
    return chosen


def cost(schedule: Sequence[Rung], trials: int, total_steps: int) -> int:
    """Training steps of a whole search of so many trials."""
    spent, before, alive = 0, 0, trials
    for rung in schedule:
        spent += alive * (rung.step - before)
        before, alive = rung.step, rung.keep
    return spent + alive * (total_steps - before)


def ranks(points: np.ndarray) -> np.ndarray:
    """Non-dominated rank of finite points `[N, M]`: 0 for the front, 1 for the front of the others, …; int `[N]`.

    Goldberg 1989, as in NSGA-II (Deb et al. 2002).
    """
    points = np.asarray(points, float)
    result = np.full(len(points), -1)
    for rank in range(len(points)):
        left = np.flatnonzero(result < 0)
        if not len(left):
            break
        result[left[non_dominated(points[left])]] = rank
    return result


def survivors(points: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` trials that go on, in ascending order.

    Args:
      points: costs `[N, M]`: log parameters, validation error, more if wanted. Columns need no common scale. A trial
        with a cost that is not finite (it diverged) never goes on, even if fewer than `count` are left then.
      count: how many go on, at least 1.

    Raises:
      ValueError: the points are no table, or the count is below 1.
    """
    points = np.asarray(points, float)
    if points.ndim != 2 or count < 1:
        raise ValueError(f"survivors needs points [N, M] and a count of at least 1, not {points.shape} and {count}")
    finite = np.flatnonzero(np.isfinite(points).all(1))
    inside = points[finite]
    rank = ranks(inside)
    kept: list[int] = []
    for value in range(int(rank.max(initial=-1)) + 1):
        layer = np.flatnonzero(rank == value)
        room = count - len(kept)
        kept += list(layer if len(layer) <= room else layer[_covering(inside[layer], room, inside)])
        if len(kept) == count:
            break
    return finite[np.sort(np.asarray(kept, int))]


def _covering(layer: np.ndarray, count: int, everyone: np.ndarray) -> list[int]:
    """Greedily the `count` points of a layer that dominate the most volume, up to a reference beyond all points.

    A point's gain never grows while others are chosen, so that only gains that may still be the largest are computed
    again (lazy greedy, Minoux 1978).
    """
    low, high = everyone.min(0), everyone.max(0)
    reference = high + np.where(high > low, _EDGE * (high - low), 1.0)
    chosen: list[int] = []
    volume = 0.0
    losses = [(-hypervolume(layer[[index]], reference), index) for index in range(len(layer))]
    heapq.heapify(losses)
    while len(chosen) < count:
        _, index = heapq.heappop(losses)
        loss = volume - hypervolume(layer[[*chosen, index]], reference)
        if losses and (loss, index) > losses[0]:  # among equals the first trial
            heapq.heappush(losses, (loss, index))
        else:
            chosen.append(index)
            volume -= loss
    return chosen
