"""Which labels does a study give to the images that have none, as a contest wants them?"""

import pathlib

import numpy as np

from input_pipeline.cli import UserError, atomic_write
from input_pipeline.tabular import csv_text, safe_text
from research.evaluation import calibration, predictions, score, thresholds


def write(folder: pathlib.Path, config, members) -> bool:
    """Writes `submission.csv` for the role `unlabelled` (mean probabilities over the folds); False without such images.

    A row for each image, in the order of the data set: its id, and its labels separated by spaces, decided with the
    thresholds fitted on calibration. A label is its class's place, from 0, or as `evaluation.submission_labels` says.

    Args:
      folder: the run folder.
      config: the study's config.
      members: the trials that the report shows.

    Raises:
      UserError: the predictions are not of these images, each once.
    """
    files = [folder / "predictions" / f"{trial.name}_unlabelled.csv" for trial in members]
    if not all(file.exists() for file in files):
        return False
    dataset = members[0].dataset
    wanted = [str(name) for name in dataset.ids[dataset.indices("unlabelled")]]
    probabilities, cuts = [], []
    for trial, file in zip(members, files, strict=True):
        part = predictions.read(file)
        place = {str(name): row for row, name in enumerate(part.ids)}
        if len(part.ids) != len(wanted) or set(place) != set(wanted):
            raise UserError(
                f"{file} has not one row for each of the {len(wanted)} unlabelled images; remove it and run again."
            )
        fitted = folder / "predictions" / f"{trial.name}_calibration.csv"
        fitted = predictions.read(fitted) if fitted.exists() else None
        temperature, own = score.fit(fitted, dataset.multi_label, config.evaluation)
        logits = part.logits[[place[name] for name in wanted]]
        probabilities.append(calibration.probabilities(logits, dataset.multi_label, temperature))
        cuts.append(thresholds.fixed(len(part.class_names)) if own is None else own)
    names = config.evaluation.submission_labels or tuple(map(str, range(len(dataset.class_names))))
    given = _decide(np.mean(probabilities, axis=0), np.mean(cuts, axis=0), dataset.multi_label, config.evaluation)
    rows = [(safe_text(name), " ".join(names[k] for k in labels)) for name, labels in zip(wanted, given, strict=True)]
    atomic_write(folder / "submission.csv", csv_text([config.evaluation.submission_columns, *rows]))
    return True


def _decide(mean: np.ndarray, cuts: np.ndarray, multi_label: bool, evaluation) -> list[np.ndarray]:
    """The classes of each of `[N, K]` probabilities."""
    if not multi_label:
        return list(mean.argmax(axis=1)[:, None])
    return [np.flatnonzero(row) for row in thresholds.decide(mean, cuts, evaluation.fallback)]
