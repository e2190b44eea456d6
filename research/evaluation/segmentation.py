"""How well do predicted masks cover the true ones, image by image and over all of them?

Masks are maps of class numbers, 0 for the background. For an image and a class, with I the pixels that both masks give
to it, P those of the prediction and T those of the truth,

    Dice = 2 I / (P + T)        IoU (Jaccard) = I / (P + T - I)

* Neither mask has a pixel of the class (P = T = 0): both are 1, for nothing was missed and nothing invented.
* One has none and the other does: both are 0.
* "dice" and "iou" are the means over the images, each counting alike; "pooled_dice" and "pooled_iou" come from the sums
  of I, P and T over all images, so that large objects count more. Over several classes the plain mean is taken.

A prediction file of masks is a CSV with the columns `id`, `group`, `mask` (PNG beside it) and for each class
`dice_<class>`, `iou_<class>`, and the pixels `both_<class>` (I), `predicted_<class>` (P), `true_<class>` (T).
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from input_pipeline import tabular
from input_pipeline.cli import UserError
from research.evaluation import intervals, statistics

METRICS = ("dice", "iou", "pooled_dice", "pooled_iou")
_PIXELS = ("both", "predicted", "true")


def counts(predicted: np.ndarray, true: np.ndarray, num_classes: int) -> np.ndarray:
    """I, P and T of every image and class, int64 `[N, K, 3]`.

    Args:
      predicted, true: class numbers 0..K, `[N, H, W]`.
      num_classes: K, without the background.

    Raises:
      ValueError: the shapes differ, or a number is not a class.
    """
    if predicted.shape != true.shape or predicted.ndim != 3:
        raise ValueError(f"masks of shape {predicted.shape} and {true.shape} cannot be compared; give [N, H, W] twice")
    if max(predicted.max(initial=0), true.max(initial=0)) > num_classes:
        raise ValueError(f"a mask holds a number above the {num_classes} classes")
    result = np.empty((len(true), num_classes, 3), np.int64)
    for k in range(num_classes):
        ours, theirs = predicted == k + 1, true == k + 1
        result[:, k] = np.stack([(ours & theirs).sum((1, 2)), ours.sum((1, 2)), theirs.sum((1, 2))], axis=-1)
    return result


def dice(pixels: np.ndarray) -> np.ndarray:
    """Dice float64 `[...]` of I, P and T, `[..., 3]`."""
    both, predicted, true = np.moveaxis(np.asarray(pixels, np.float64), -1, 0)
    return _ratio(2 * both, predicted + true)


def iou(pixels: np.ndarray) -> np.ndarray:
    """Intersection over union float64 `[...]` of I, P and T, `[..., 3]`."""
    both, predicted, true = np.moveaxis(np.asarray(pixels, np.float64), -1, 0)
    return _ratio(both, predicted + true - both)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.ones_like(above), where=below > 0)


def evaluate(pixels: np.ndarray) -> dict[str, float]:
    """Every metric of `METRICS`, means over the classes, of I, P and T `[N, K, 3]`.

    Raises:
      UserError: there is no image.
    """
    return {name: float(values.mean()) for name, values in by_class(pixels).items()}


def by_class(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric of `METRICS` of each class, float64 `[K]`, of I, P and T `[N, K, 3]`.

    Raises:
      UserError: there is no image.
    """
    if not len(pixels):
        raise UserError("there is no image to compare masks of; prepare the data with a share for this role.")
    total = np.sum(pixels, axis=0, dtype=np.float64)
    return {
        "dice": dice(pixels).mean(axis=0),
        "iou": iou(pixels).mean(axis=0),
        "pooled_dice": dice(total),
        "pooled_iou": iou(total),
    }


def estimates(pixels: np.ndarray, groups: Sequence | np.ndarray, resamples: int, seed: int = 0) -> dict[str, dict]:
    """Every metric with its 95 % interval over groups: name → {"value", "low", "high"}.

    The percentile bootstrap of `statistics`, same seed same groups; (NaN, NaN) with fewer than two groups.

    Args:
      pixels: I, P and T, `[N, K, 3]`. groups: `[N]`. resamples: replicates. seed: of the draws.
    """
    found = evaluate(pixels)
    n, k = pixels.shape[:2]
    columns = [np.ones((n, 1)), dice(pixels), iou(pixels), np.asarray(pixels, np.float64).reshape(n, 3 * k)]
    totals = statistics.resampled_totals(np.concatenate(columns, axis=1), groups, resamples, seed)
    if totals is None:
        return {name: {"value": value, "low": float("nan"), "high": float("nan")} for name, value in found.items()}
    number, sums = totals[:, :1], totals[:, 1 + 2 * k :].reshape(-1, k, 3)
    replicates = {
        "dice": totals[:, 1 : 1 + k] / number,
        "iou": totals[:, 1 + k : 1 + 2 * k] / number,
        "pooled_dice": dice(sums),
        "pooled_iou": iou(sums),
    }
    result = {}
    for name, values in replicates.items():
        low, high = intervals.percentile(values.mean(axis=1), 0.95)
        result[name] = {"value": found[name], "low": float(low), "high": float(high)}
    return result


@dataclasses.dataclass(frozen=True)
class Masks:
    """The rows of one prediction file.

    Attributes:
      ids, groups: `[N]` strings.
      files: `[N]` paths of the predicted masks, beside the file.
      pixels: I, P and T, int64 `[N, K, 3]`.
      class_names: K names, without the background.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    files: tuple[pathlib.Path, ...]
    pixels: np.ndarray
    class_names: tuple[str, ...]


def write(
    path: str | os.PathLike,
    ids: Sequence[str],
    groups: Sequence[str],
    files: Sequence[str],
    pixels: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Writes a prediction file (see above), atomically.

    Args:
      path: the CSV. ids, groups, files: `[N]`; files relative to the folder of `path`.
      pixels: I, P and T, int `[N, K, 3]`. class_names: K.
    """
    own, overlaps = dice(pixels), iou(pixels)
    rows = []
    for i, name in enumerate(ids):
        row: dict = {"id": str(name), "group": str(groups[i]), "mask": files[i]}
        for k, label in enumerate(class_names):
            row |= {f"dice_{label}": float(own[i, k]), f"iou_{label}": float(overlaps[i, k])}
            row |= {f"{kind}_{label}": int(pixels[i, k, j]) for j, kind in enumerate(_PIXELS)}
        rows.append(row)
    columns = ["id", "group", "mask"]
    columns += [f"{kind}_{label}" for label in class_names for kind in ("dice", "iou", *_PIXELS)]
    tabular.write_csv(path, columns, rows)


def read(path: str | os.PathLike) -> Masks:
    """Reads what `write` wrote.

    Raises:
      UserError: the file is missing or holds something else.
    """
    path = pathlib.Path(path)
    columns, rows = tabular.read_csv(path)
    names = [column.removeprefix("dice_") for column in columns if column.startswith("dice_")]
    wanted = {"id", "group", "mask"} | {f"{kind}_{name}" for name in names for kind in _PIXELS}
    if not names or not wanted <= set(columns):
        raise UserError(f"{path} is no prediction file of masks; run the study that writes it again.")
    try:
        pixels = np.array(
            [[[int(row[f"{kind}_{name}"]) for kind in _PIXELS] for name in names] for row in rows], np.int64
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} holds a count that is no number; run the study that writes it again.") from error
    return Masks(
        tuple(str(row["id"]) for row in rows),
        tuple(str(row["group"]) for row in rows),
        tuple(path.parent / str(row["mask"]) for row in rows),
        pixels.reshape(len(rows), len(names), 3),
        tuple(names),
    )
