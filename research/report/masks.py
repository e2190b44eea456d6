"""What does a report show of a study whose model segments: Dice and IoU with intervals, and contours on images.

Like the rest of the report it reads the ledger and the saved predictions, never a network.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from input_pipeline import plotting
from input_pipeline.cli import UserError
from input_pipeline.loader import eval_batches
from research.evaluation import segmentation
from research.evaluation.segmentation import Masks
from research.report import overlays, plots

SHOWN = 12  # images in each gallery, of the worst and of the best
FILES = "pixels in common by image and role, and the masks as PNG"
USES = {"calibration": "choice among the settings, where there are several"}
STATEMENT = "A pixel is of a class at a probability above 0.5; nothing was fitted on calibration or chosen on test."


def add(context: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Puts what `parts` found into the context of the page."""
    context |= dict(found) | {"figures": [*context["figures"], *found.get("figures", [])]}
    context["files"]["predictions/"] = FILES


def pooled(folder: pathlib.Path, trials: Sequence[str]) -> Masks | None:
    """The test predictions of the folds of a setting, one after the other; None without any."""
    files = [folder / "predictions" / f"{name}_test.csv" for name in trials]
    parts = [segmentation.read(file) for file in files if file.exists()]
    if not parts:
        return None
    return Masks(
        sum((part.ids for part in parts), ()),
        sum((part.groups for part in parts), ()),
        sum((part.files for part in parts), ()),
        np.concatenate([part.pixels for part in parts]),
        parts[0].class_names,
    )


def parts(folder: pathlib.Path, config, settings: Mapping[str, Sequence], members: Sequence, stop) -> dict[str, Any]:
    """Headline, classes, folds, rival and figures for `page.write_page`; {} without test predictions.

    Args:
      folder: the run folder. config: the study's.
      settings: setting → its trials. members: the trials (folds) of the chosen one.
      stop: StopSignal, checked between the slow parts.
    """
    found = pooled(folder, [trial.name for trial in members])
    if found is None:
        return {}
    n, seed = config.evaluation.bootstrap, config.seed
    estimates = segmentation.estimates(found.pixels, found.groups, n, seed)
    counts = {"role": "test", "n_examples": len(found.ids), "n_groups": len(set(found.groups))}
    result: dict[str, Any] = {
        "headline": [{"name": name} | counts | estimates[name] for name in segmentation.METRICS],
        "per_class": _classes(found, n, seed),
        "baselines": [],
    }
    stop.check()
    if config.evaluation.baselines:
        result["baselines"] = [_mean_mask(found, members, n, seed)]
    if len(members) > 1:
        result["folds"] = _folds(folder, members)
    figures = _comparison(folder, settings, result["baselines"], n, seed)
    stop.check()
    return result | {"figures": figures + _galleries(folder, found, members)}


def _classes(found: Masks, n: int, seed: int) -> list[dict[str, Any]]:
    """A row for each class: Dice and IoU with intervals, and the images that have it."""
    rows = []
    for k, name in enumerate(found.class_names):
        own = segmentation.estimates(found.pixels[:, k : k + 1], found.groups, n, seed)
        rows.append(
            {"class": name, "dice": own["dice"], "iou": own["iou"], "support": int((found.pixels[:, k, 2] > 0).sum())}
        )
    return rows


def _folds(folder: pathlib.Path, members: Sequence) -> list[dict[str, Any]]:
    rows = []
    for number, trial in enumerate(members):
        if own := pooled(folder, [trial.name]):
            counts = {"n_examples": len(own.ids), "n_groups": len(set(own.groups))}
            rows.append({"fold": number, "metrics": segmentation.evaluate(own.pixels)} | counts)
    return rows


def _read(trial, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images `[n, S, S, C]` and class numbers `[n, S, S]` of examples, as the network saw them."""
    config = trial.config
    batches = eval_batches(
        trial.dataset,
        indices,
        min(64, len(indices)),
        config.image_size,
        trial.channels,
        threads=trial.threads,
        resize=config.data.resize,
        segmentation=True,
    )
    found = [(batch["image"][batch["valid"]], batch["segmentation"][batch["valid"]]) for batch in batches]
    return tuple(np.concatenate(own) for own in zip(*found, strict=True))


def _mean_mask(found: Masks, members: Sequence, n: int, seed: int) -> dict[str, Any]:
    """The rival that looks at no image: every pixel gets the class that most training masks have there."""
    pixels, k = {}, len(found.class_names)
    for trial in members:
        dataset = trial.dataset
        shares = np.zeros((k, trial.config.image_size, trial.config.image_size))
        for block in np.array_split(trial.train_indices, -(-len(trial.train_indices) // 256)):
            _, numbers = _read(trial, block)
            shares += np.stack([(numbers == c + 1).sum(0) for c in range(k)])
        shares /= len(trial.train_indices)
        usual = np.where(shares.max(0) > 0.5, shares.argmax(0) + 1, 0).astype(np.uint8)
        test = dataset.indices("test")
        _, truth = _read(trial, test)
        own = segmentation.counts(np.broadcast_to(usual, truth.shape), truth, k)
        pixels |= dict(zip(map(str, dataset.ids[test]), own, strict=True))
    rival = np.stack([pixels[name] for name in found.ids])
    metrics = segmentation.estimates(rival, found.groups, n, seed)
    return {"name": "mean training mask", "metrics": metrics, "description": "one mask for all images"}


def _comparison(folder, settings: Mapping[str, Sequence], baselines: Sequence[Mapping], n: int, seed: int):
    """All settings and the rival on Dice."""
    rows = []
    for name, trials in settings.items():
        if own := pooled(folder, [trial.name for trial in trials if trial.config.seed == trials[0].config.seed]):
            rows.append(
                {"name": name, "kind": "model", "metrics": segmentation.estimates(own.pixels, own.groups, n, seed)}
            )
    rows += [{"name": rival["name"], "kind": "baseline", "metrics": rival["metrics"]} for rival in baselines]
    plots.comparison(rows, folder / "report" / "model_comparison.png", ["dice"])
    caption = "Dice on the same test images, 95 % intervals over groups."
    return [{"path": "model_comparison.png", "caption": caption, "section": "result"}]


def _galleries(folder: pathlib.Path, found: Masks, members: Sequence) -> list[dict[str, str]]:
    """The images with the lowest and the highest Dice, with the contours of both masks."""
    scores = segmentation.dice(found.pixels).mean(axis=1)
    order = np.argsort(scores, kind="stable")
    figures = []
    for name, rows in (("worst", order[:SHOWN]), ("best", order[::-1][:SHOWN])):
        drawings = [_drawn(found, row, members) for row in rows]
        captions = [f"{plotting.shorten(found.ids[row], 20)}\nDice {scores[row]:.3f}" for row in rows]
        plotting.montage(drawings, captions, folder / "report" / f"masks_{name}.png", 6, cell=1.6)
        caption = f"The {len(rows)} images with the {name} Dice on test: truth green, prediction orange."
        figures.append({"path": f"masks_{name}.png", "caption": caption, "section": "masks"})
    return figures


def _drawn(found: Masks, row: int, members: Sequence) -> np.ndarray:
    trial = next(t for t in members if found.files[row].parent.name == f"{t.name}_test_masks")
    index = np.flatnonzero(trial.dataset.ids == found.ids[row])
    (image,), (truth,) = _read(trial, index)
    predicted = cv2.imread(str(found.files[row]), cv2.IMREAD_GRAYSCALE)
    if predicted is None:
        raise UserError(f"{found.files[row]} is missing or damaged; restore it, or run the study in another --workdir.")
    canvas = overlays.enlarged(image)
    for k in range(len(found.class_names)):
        overlays.outline(canvas, truth == k + 1, overlays.TRUE, 2)
        overlays.outline(canvas, predicted == (k + 1) * (255 // len(found.class_names)), overlays.PREDICTED, 1)
    return canvas
