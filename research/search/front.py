"""Which points of several objectives are beaten by none, and how good is such a front?

Points are float `[N, M]`, and less is better in every column. `Front` is what was found in a table.
"""

import dataclasses
import math

import numpy as np
import pandas as pd


def non_dominated(points: np.ndarray) -> np.ndarray:
    """Which points no other point beats: bool `[N]`.

    One point beats another if it is nowhere worse and somewhere better (Pareto dominance), so that equal points do not
    beat each other and all stay. All numbers must be finite.
    """
    points = np.asarray(points, float)
    # A point can be beaten only by one that comes before it in lexicographic order, and then by one of the front.
    order = np.lexsort(points.T[::-1])
    kept: list[int] = []
    front = np.empty((0, points.shape[1]))
    for index in order:
        nowhere_worse = (front <= points[index]).all(1)
        if not (nowhere_worse & (front < points[index]).any(1)).any():
            kept.append(index)
            front = points[kept]
    result = np.zeros(len(points), bool)
    result[kept] = True
    return result


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Volume of what the points beat, up to the reference point `[M]` (Zitzler and Thiele 1998).

    Points that do not beat the reference add nothing. Two objectives by a sweep, more by slices along the last one
    (While et al. 2006): fine for hundreds of points with up to four objectives.
    """
    points, reference = np.asarray(points, float), np.asarray(reference, float)
    points = np.unique(points[(points < reference).all(1)], axis=0)
    return _volume(points, reference)


def _volume(points: np.ndarray, reference: np.ndarray) -> float:
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(reference[0] - points.min())
    points = points[np.argsort(points[:, -1], kind="stable")]
    heights = np.diff(np.append(points[:, -1], reference[-1]))
    if points.shape[1] == 2:
        return float(np.sum((reference[0] - np.minimum.accumulate(points[:, 0])) * heights))
    total, front = 0.0, points[:0, :-1]
    for point, height in zip(points[:, :-1], heights, strict=True):
        front = np.vstack([front[~(point <= front).all(1)], point])
        if height > 0:
            total += height * _volume(front, reference[:-1])
    return total


def scaled(front: np.ndarray) -> np.ndarray:
    """The front's points with every objective moved and stretched to 0..1; a constant one becomes 0."""
    low, high = front.min(0), front.max(0)
    return (front - low) / np.where(high > low, high - low, 1.0)


def knee(front: np.ndarray) -> int:
    """Index of the point that bulges furthest from the plane through the front's extremes (Das 1999).

    With every objective scaled to 0..1 over the front this is the point with the smallest sum.
    """
    return int(np.argmin(scaled(front).sum(1)))


def spacing(front: np.ndarray) -> float:
    """How unevenly the front is covered (Schott 1995): 0 for equal distances.

    The standard deviation (by n - 1) of the distances from each point to its nearest neighbour, in the sum of absolute
    differences of the scaled objectives. Equal points count once; NaN for fewer than three.
    """
    points = np.unique(scaled(front), axis=0)
    if len(points) < 3:
        return float("nan")
    distances = np.abs(points[:, None] - points[None]).sum(2)
    np.fill_diagonal(distances, np.inf)
    return float(np.std(distances.min(1), ddof=1))


@dataclasses.dataclass(frozen=True)
class Objective:
    """A column to be minimised or maximised.

    Attributes:
      column: its name.
      maximize: whether more is better.
      log: whether its logarithm counts, in distances, volumes and drawings.
    """

    column: str
    maximize: bool
    log: bool

    def cost(self, values: np.ndarray) -> np.ndarray:
        """The values as costs: less is better, and equal steps are equally good."""
        values = np.log10(values) if self.log else np.asarray(values, float)
        return -values if self.maximize else values


@dataclasses.dataclass(frozen=True)
class Front:
    """What was found in a table.

    Attributes:
      table: all rows as texts, in the order of the file.
      objectives: 2 to 4.
      lines: line of each row in the file, `[N]`.
      values: float `[N, M]`, the objectives' columns; NaN where a row has no number.
      usable: bool `[N]`, rows in which all objectives are finite.
      rows: indices of the non-dominated rows, in the order of the first objective.
      knee: index of a row, one of `rows`.
      reference: the worst point of the hypervolume, in the columns' own units, `[M]`.
      hypervolume, spacing: of the costs, that is with logarithms taken.
    """

    table: pd.DataFrame
    objectives: tuple[Objective, ...]
    lines: np.ndarray
    values: np.ndarray
    usable: np.ndarray
    rows: np.ndarray
    knee: int
    reference: np.ndarray
    hypervolume: float
    spacing: float

    def summary(self) -> dict:
        """All but the rows, for JSON."""
        return {
            "objectives": [dataclasses.asdict(objective) for objective in self.objectives],
            "rows": len(self.table),
            "left_out_lines": self.lines[~self.usable].tolist(),
            "non_dominated": len(self.rows),
            "non_dominated_lines": self.lines[self.rows].tolist(),
            "knee_line": int(self.lines[self.knee]),
            "hypervolume": self.hypervolume,
            "reference": self.reference.tolist(),
            "spacing": None if math.isnan(self.spacing) else self.spacing,
        }
