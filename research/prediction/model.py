"""How is a finished run used from Python?

import research

model = research.load("runs/blood_cells")
found = model.predict(["a.jpg", "b.png"])        # or uint8 [N, H, W, C], arrays of several sizes, PIL images
found.predicted, found.probabilities             # ("NEUTROPHIL", …), float32 [2, K]
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from input_pipeline.cli import UserError
from research import runs, study
from research.explain import opening
from research.prediction import batches, files, rule
from research.prediction.inputs import Inputs
from research.prediction.network import Network
from research.training import compilation, sharding, texts
from research.training.signals import StopSignal

OK = "ok"
Reasons = dict[int, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of N inputs.

    Attributes:
      ids: N names.
      probabilities: float32 `[N, K]`, in the order of `classes`, after the run's temperature; NaN where an input could
        not be read.
      predicted: N names of classes, "" where an input could not be read; with several labels N tuples of names.
      status: N times "ok", or why an input could not be read.
      classes: K names.
    """

    ids: tuple[str, ...]
    probabilities: np.ndarray
    predicted: tuple[str, ...] | tuple[tuple[str, ...], ...]
    status: tuple[str, ...]
    classes: tuple[str, ...]


class Model:
    """A trained trial with its weights, preprocessing, temperature and thresholds.

    Args:
      workdir: the run folder.
      trial: name of a trial; "" for the one that the run's report shows.
      batch_size: inputs at once; 0 for that of the run's own predictions.
      mesh: devices; all by default.
      stop: asked before each batch.

    Attributes:
      trial: as `research.training.build` has it.
      rule: classes, temperature, thresholds.
      network: on the devices.

    Raises:
      UserError: no finished run, no such trial, or a model that segments.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        trial: str = "",
        batch_size: int = 0,
        mesh=None,
        stop: StopSignal | None = None,
    ) -> None:
        folder, stop = pathlib.Path(workdir), stop or StopSignal()
        if batch_size < 0:
            raise UserError(f"a batch size of {batch_size} is impossible; give 1 or more, or 0 for the run's own.")
        if trial == runs.FRONT or "," in trial:
            raise UserError(f"--trial={trial} names several trials; give one.")
        run = runs.open_run(folder)
        if not any(row.get("status") == "finished" for row in run.rows.values()):
            raise UserError(f"no trial of {folder} is finished; run research.main on it first.")
        found = opening.pick(run, trial)
        if found.task.segments:
            raise UserError(
                f"the model {found.config.model.name} of {folder} segments; use `python -m research.segment "
                f"--workdir={folder} --source=IMAGES --out=boxes.csv`."
            )
        mesh = mesh or sharding.make_mesh()
        # Only new inputs are read, so that decoded ones of the data set need no room.
        found = runs.changed_trial(found, {"data.cache": "none"})
        self.trial = study.SharedImages(folder).attach(found, mesh)
        self.rule = rule.of_run(found, folder)
        self.network = Network(self.trial, runs.load(self.trial, folder, mesh, stop), mesh, stop, batch_size)

    @property
    def classes(self) -> tuple[str, ...]:
        """K names."""
        return self.rule.classes

    @property
    def thresholds(self) -> np.ndarray | None:
        """float64 `[K]`: a label is given from this probability on; None where the likeliest class is."""
        return self.rule.thresholds

    @property
    def temperature(self) -> float:
        """What logits are divided by."""
        return self.rule.temperature

    @property
    def genes(self) -> tuple[str, ...]:
        """G names, for a run on gene expression; else none."""
        return self.trial.dataset.genes

    @property
    def looks(self) -> bool:
        """Whether the network looks at images."""
        settings = self.trial.config.model
        return not self.genes and (settings.name != texts.MODEL or settings.options.get("image", "image") != "")

    @property
    def reads(self) -> bool:
        """Whether the network reads captions."""
        return self.trial.text is not None

    def predict(
        self,
        images: np.ndarray | Sequence[Any] | None = None,
        captions: Sequence[str | None] | None = None,
        ids: Sequence[str] | None = None,
    ) -> Predictions:
        """Predicts as the run predicted its own test set.

        Args:
          images: N of them: an array uint8, uint16 or float (0..255, rounded to the type of the run's images)
            `[N, H, W, C]`, or a sequence of paths, encoded bytes, arrays `[H, W]` or `[H, W, C]` of any sizes, or PIL
            images; for gene expression float `[N, G]` in the order of `genes` and on the run's scale; None for a
            model that reads captions alone.
          captions: N texts, None for a missing one, for a model that reads them.
          ids: N names; default the paths, or the numbers from 0.

        Raises:
          UserError: something else than the model takes.
        """
        inputs = self.inputs(images, captions, ids)
        probabilities = np.full((len(inputs), len(self.classes)), np.nan, np.float32)
        decided: list[tuple[str, ...]] = []
        status: list[str] = []
        for batch, scores, given, errors in self.scored(inputs):
            probabilities[batch.start : batch.start + batch.count] = scores
            decided += given
            status += [errors.get(row, OK) for row in range(batch.count)]
        predicted = tuple(decided) if self.rule.multi_label else tuple(";".join(names) for names in decided)
        return Predictions(tuple(inputs.ids), probabilities, predicted, tuple(status), self.classes)

    def features(
        self, images: np.ndarray | Sequence[Any] | None = None, captions: Sequence[str | None] | None = None
    ) -> np.ndarray:
        """The pooled features float32 `[N, D]` that the head reads; arguments as of `predict`; NaN for unreadable."""
        found = [rows for _, rows, _ in self.featured(self.inputs(images, captions))]
        return np.concatenate(found) if found else np.zeros((0, 0), np.float32)

    def inputs(self, images, captions=None, ids: Sequence[str] | None = None) -> Inputs:
        """What Python hands over, checked; raises `UserError`."""
        if captions is not None and not self.reads:
            raise UserError("this model reads no captions; leave them out.")
        if images is None and (self.looks or self.genes or captions is None):
            raise UserError(f"this model needs {'values of genes' if self.genes else 'images'}; give them.")
        if self.genes:
            inputs = self._of_vectors(images)
        elif images is None:
            inputs = Inputs([str(i) for i in range(len(captions))], [""] * len(captions), unit="caption")
        else:
            inputs = _in_memory(images, self.trial.dataset.dtype)
        count = len(inputs)
        for what, given in (("captions", captions), ("ids", ids)):
            if given is not None and len(given) != count:
                raise UserError(f"there are {len(given)} {what} for {count} {inputs.unit}s; give one for each.")
        inputs = dataclasses.replace(inputs, captions=captions)
        return inputs if ids is None else dataclasses.replace(inputs, ids=[str(name) for name in ids])

    def _of_vectors(self, values) -> Inputs:
        values = np.asarray(values, np.float32)
        if values.ndim != 2 or values.shape[1] != len(self.genes) or not np.isfinite(values).all():
            raise UserError(f"expression must be finite numbers [N, {len(self.genes)}], not of shape {values.shape}.")
        ids = [str(number) for number in range(len(values))]
        return Inputs(ids, [""] * len(ids), vectors=values, unit="sample")

    def scored(self, inputs: Inputs) -> Iterable[tuple[batches.Batch, np.ndarray, list[tuple[str, ...]], Reasons]]:
        """Batch by batch: probabilities `[count, K]`, NaN where there are none, classes, and reasons by row."""
        for batch, logits in self.network.over(self.network.logits, self._batches(inputs)):
            errors = {row: rule.NOT_FINITE for row in np.flatnonzero(~np.isfinite(logits).all(axis=1))} | batch.errors
            logits = np.array(logits)
            logits[list(errors)] = np.nan
            scores = self.rule.probabilities(logits)
            yield batch, scores, self.rule.decide(scores), errors

    def featured(self, inputs: Inputs) -> Iterable[tuple[batches.Batch, np.ndarray, Reasons]]:
        """Batch by batch: features `[count, D]`, NaN where there are none, and reasons by row."""
        for batch, rows in self.network.over(self.network.features, self._batches(inputs)):
            errors = {row: rule.NOT_FINITE for row in np.flatnonzero(~np.isfinite(rows).all(axis=1))} | batch.errors
            rows = np.array(rows)
            rows[list(errors)] = np.nan
            yield batch, rows, errors

    def _batches(self, inputs: Inputs) -> Iterable[batches.Batch]:
        return batches.batches(inputs, self.trial, self.network.batch_size, self.network.rows)


def load(workdir: str | os.PathLike, trial: str | None = None, batch_size: int = 0) -> Model:
    """See `research.load`."""
    compilation.keep_programs()
    return Model(workdir, trial or "", batch_size)


def _in_memory(images, dtype: np.dtype) -> Inputs:
    """Paths, encoded bytes, arrays or PIL images as inputs."""
    if isinstance(images, str | bytes | os.PathLike):
        raise UserError("images are a sequence; put a single one into a list.")
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise UserError(f"an array of images has the shape [N, H, W, C], not {images.shape}.")
    ids, paths = [], []
    for number, image in enumerate(images):
        is_path = isinstance(image, str | os.PathLike)
        ids.append(os.fspath(image) if is_path else str(number))
        paths.append(os.fspath(image) if is_path else "")

    def read(row: int) -> bytes | np.ndarray:
        image = images[row]
        if isinstance(image, str | os.PathLike):
            return files.read(pathlib.Path(image))
        return bytes(image) if isinstance(image, bytes | bytearray) else pixels(image, dtype)

    for number, image in enumerate(images):  # a mistake is told now, not in a thread
        if not isinstance(image, str | os.PathLike | bytes | bytearray):
            _check_pixels(image, number)
    return Inputs(ids, paths, read)


def _check_pixels(image, number: int) -> None:
    if hasattr(image, "getbands"):  # a PIL image
        return
    shape, kind = getattr(image, "shape", None), getattr(image, "dtype", None)
    if shape is None or len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise UserError(
            f"image {number} is {type(image).__name__} of shape {shape}; give a path, [H, W], or [H, W, C] with 1, 3 "
            "or 4 channels."
        )
    kind = np.dtype(kind)
    if kind in (np.uint8, np.uint16):
        return
    values = np.asarray(image)
    if kind.kind != "f" or not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
        raise UserError(f"image {number} has the type {kind}; give uint8, uint16, or finite floats of 0 to 255.")
    if values.max() <= 1 and (values != np.rint(values)).any():
        raise UserError(f"image {number} has floats of 0 to 1, and the scale is 0 to 255; multiply by 255.")


def pixels(image, dtype: np.dtype) -> np.ndarray | bytes:
    """An array or PIL image as uint8 or uint16 `[H, W, C]`, or PNG where that says more (palettes, transparency)."""
    if hasattr(image, "getbands"):
        return _of_pil(image)
    values = np.asarray(image)
    values = values[..., None] if values.ndim == 2 else values
    if values.dtype.kind == "f":
        factor = 257 if dtype == np.uint16 else 1
        values = np.rint(values.astype(np.float64) * factor).astype(dtype)
    return np.ascontiguousarray(values)


def _of_pil(image) -> np.ndarray | bytes:
    import io

    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "RGB"):
        found = np.array(image)
        return found[..., None] if found.ndim == 2 else found
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        return np.array(image.convert("RGB"))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
