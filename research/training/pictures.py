"""How do the vectors of an expression data set become pictures for a network?

A layout and a scaling are made once from a trial's training vectors and kept in the run folder (`layouts/`), so that
what is done with a finished run draws as its training did. Pictures are drawn on the device, in float32 without
rounding, on the scale of images, 0..255, so that `config.data.normalize` and pretrained weights treat them like images:

    scaled to 0..1 (global, gene_minmax, log_global, study)    255 x
    deviations (gene)                                          255 (1/2 + x / 6), three deviations are half the range
    log2 values (none)                                         255 x / 20

A pixel without a gene has the scaled value 0. The scaling `study` alone sees all labelled samples, as the study's did.
"""

import json
import pathlib
import zlib

import jax
import numpy as np

from input_pipeline import augment
from input_pipeline.cli import UserError
from input_pipeline.loader import eval_batches
from input_pipeline.studies.cancer_genes import POSITIONS
from research.layouts import building, render, scaling
from research.layouts import layout as layouts

FOLDER = "layouts"
_BRIGHTNESS = {"gene": (0.5, 1 / 6), "none": (0.0, 1 / 20)}  # offset and factor of scaled values; the others' are 0, 1
_READ = 256  # vectors at once


class Picture:
    """How the vectors of a trial are drawn.

    Attributes:
      layout: which gene stands where.
      scale: of the values.
    """

    def __init__(self, layout: layouts.Layout, scale: scaling.Scale, upsampling: str) -> None:
        self.layout, self.scale, self._upsampling = layout, scale, upsampling
        self._tables = render.prepare(layout)

    def draw(self, raw: jax.Array, size: int, channels: int) -> jax.Array:
        """Raw vectors `[B, 1, G, 1]` to pictures float32 `[B, size, size, channels]` in 0..255."""
        offset, factor = _BRIGHTNESS.get(self.scale.kind, (0.0, 1.0))
        pixels = render.render(raw, self._tables, self.scale, size, channels, self._upsampling)
        return 255.0 * (offset + factor * pixels)


def check(trial) -> None:
    """Refuses settings that make no sense for vectors.

    Raises:
      UserError: names the first one.
    """
    if not trial.dataset.genes:
        return
    config, settings = trial.config, trial.config.data.layout
    choices = {"name": building.BUILDERS, "scaling": scaling.KINDS, "upsampling": render.METHODS}
    for key, allowed in choices.items():
        if settings[key] not in allowed:
            raise UserError(f"config.data.layout.{key} is '{settings[key]}'; choose one of {', '.join(allowed)}.")
    if trial.task.segments or trial.dataset.multi_label:
        raise UserError("expression vectors have one class each and no masks; choose another config.model.name.")
    if config.data.normalize == "dataset":
        raise UserError("config.data.normalize = 'dataset' is for images; config.data.layout.scaling scales vectors.")
    own = config.data.augment
    if changed := [key for key, value in own.items() if value and augment.NEUTRAL[key] != value and key != "mixup"]:
        raise UserError(
            f"config.data.augment.{changed[0]} would move or tint genes; only mixup makes sense for expression."
        )
    if config.evaluation.tta != "none":
        raise UserError("config.evaluation.tta turns images, and a layout has one way up; set it to 'none'.")
    side = settings.side or layouts.smallest_side(len(trial.dataset.genes))
    if config.image_size < side and settings.upsampling == "nearest":
        raise UserError(
            f"config.image_size = {config.image_size} would leave out genes of a layout of {side} pixels a side; "
            "raise it, or set config.data.layout.upsampling to 'bilinear', which averages them."
        )
    _positions(trial)


def _positions(trial) -> pathlib.Path | str:
    """The table of gene positions; "" for a layout that needs none."""
    settings = trial.config.data.layout
    if settings.name != "chromosome":
        return ""
    path = pathlib.Path(settings.positions or trial.dataset.directory / POSITIONS)
    if not path.is_file():
        raise UserError(
            f"the layout by chromosome needs a table of gene, chromosome and start, and {path} does not exist; set "
            "config.data.layout.positions."
        )
    return path


class Pictures:
    """Makes pictures, each once.

    Args:
      folder: the run folder; None to keep nothing.
    """

    def __init__(self, folder: pathlib.Path | None) -> None:
        self._folder = folder and folder / FOLDER
        self._made: dict[int, Picture] = {}

    def of(self, trial) -> Picture | None:
        """The picture of a trial's vectors, see above; None for a data set of images."""
        if not trial.dataset.genes:
            return None
        settings = trial.config.data.layout
        rows = trial.train_indices
        what = json.dumps([settings.to_dict(), trial.dataset.fingerprint, trial.data_seed], sort_keys=True)
        key = zlib.crc32(rows.tobytes(), zlib.crc32(what.encode()))
        if key not in self._made:
            self._made[key] = self._open(trial, rows, f"{settings.name}-{key:08x}")
        return self._made[key]

    def _open(self, trial, rows: np.ndarray, name: str) -> Picture:
        settings, genes = trial.config.data.layout, trial.dataset.genes
        files = [self._folder / f"{name}{end}.json" for end in ("", "-scaling")] if self._folder else []
        if settings.run and not (files and all(file.exists() for file in files)):
            layout, scale = _of_run(pathlib.Path(settings.run), settings, genes)
            return self._kept(Picture(layout, scale, settings.upsampling), files)
        if files and all(file.exists() for file in files):
            return Picture(layouts.load(files[0], genes), scaling.load_scale(files[1], genes), settings.upsampling)
        values = vectors(trial, rows)
        side, seed = settings.side, int(trial.data_seed)
        layout = building.build(settings.name, genes, values, side, seed, _positions(trial))
        if settings.scaling == "study":  # which took the greatest value of all samples
            values = vectors(trial, np.flatnonzero(trial.dataset.roles != "unlabelled"))
        scale = scaling.fit_scale(settings.scaling, values)
        print(layouts.describe(layout).capitalize() + ".", flush=True)
        return self._kept(Picture(layout, scale, settings.upsampling), files)

    def _kept(self, picture: Picture, files: list[pathlib.Path]) -> Picture:
        if files:
            self._folder.mkdir(parents=True, exist_ok=True)
            layouts.save(picture.layout, files[0])
            scaling.save_scale(picture.scale, picture.layout.genes, files[1])
        return picture


def _of_run(run: pathlib.Path, settings, genes: tuple[str, ...]) -> tuple[layouts.Layout, scaling.Scale]:
    """Layout and scaling of another run, which has one of the name."""
    found = sorted(run.glob(f"{FOLDER}/{settings.name}-*-scaling.json"))
    if len(found) != 1:
        raise UserError(
            f"config.data.layout.run {run} has {len(found)} layouts of the name {settings.name}, and one is needed; "
            "name a run of one data set and one such layout."
        )
    layout = layouts.load(found[0].with_name(found[0].name.replace("-scaling", "")), genes)
    return layout, scaling.load_scale(found[0], genes)


def vectors(trial, rows: np.ndarray) -> np.ndarray:
    """The raw vectors float32 `[n, G]` of the examples `rows`."""
    if trial.cache is not None:
        return trial.cache.fill(rows).array[rows, 0, :, 0]
    found = np.empty((len(rows), len(trial.dataset.genes)), np.float32)
    batches = eval_batches(trial.dataset, rows, _READ, 1, threads=trial.threads)
    for start, batch in zip(range(0, len(rows), _READ), batches, strict=True):
        found[start : start + _READ] = batch["image"][batch["valid"], 0, :, 0]
    return found
