"""What is exported: which network of a run, and which function of which inputs?

The function takes raw inputs, as the loader gives them, and gives probabilities and logits: drawing of vectors,
normalisation, test-time views, temperature and softmax or sigmoid are inside. It computes in float32 whatever the run
computed in, so that it means the same everywhere.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.cli import UserError
from input_pipeline.normalize import to_float
from research import runs, study
from research.compress import candidates, network, quantize
from research.evaluation import calibration, predictions, score, thresholds
from research.evaluation.tta import VIEWS
from research.explain import opening
from research.report import tables
from research.training import build, steps, task
from research.training.signals import StopSignal

PROBABILITIES, LOGITS, MASK = "probabilities", "logits", "mask"


@dataclasses.dataclass(frozen=True)
class Input:
    """An input without its batch axis.

    Attributes:
      name: "image" `[H, W, C]`, "expression" `[G]` or "caption" `[L]`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def spec(self, batch: Any) -> jax.ShapeDtypeStruct:
        """With the batch axis; `batch` is a number or a symbol of `jax.export`."""
        return jax.ShapeDtypeStruct((batch, *self.shape), self.dtype)


@dataclasses.dataclass(frozen=True)
class Program:
    """A trained network as it is exported.

    Attributes:
      run: the run that it comes from.
      name: of the trial, or of the candidate of research.compress.
      trial: gives architecture, normalisation and data; computes in float32.
      row: its row in the ledger.
      arrays: {"params", "batch_stats"} or {"int8"}, arrays by path.
      temperature: that logits are divided by; 1 for segmentation.
      cuts: thresholds of the labels float64 `[K]`; None where an example has one class.
      inputs: in the order of the function's arguments.
    """

    run: runs.Run
    name: str
    trial: build.Trial
    row: Mapping[str, Any]
    arrays: Mapping[str, Mapping[str, Any]]
    temperature: float
    cuts: np.ndarray | None
    inputs: tuple[Input, ...]

    @property
    def task(self) -> str:
        """ "segmentation", "multi-label" or "single-label"."""
        if self.trial.task.segments:
            return "segmentation"
        return "multi-label" if self.trial.dataset.multi_label else "single-label"

    @property
    def is_int8(self) -> bool:
        """Whether the network computes in int8."""
        return network.INT8 in self.arrays

    def logits(self, arrays: Mapping[str, Any], *given: jax.Array) -> jax.Array:
        """Float32 logits `[B, K]`, `[B, H, W, K]` of a model that segments, of the inputs `[B, …]` in their order."""
        trial, named = self.trial, dict(zip((entry.name for entry in self.inputs), given, strict=True))
        caption = named.get("caption")
        if "expression" in named:
            image = named["expression"][:, None, :, None]
        elif "image" in named:
            image = named["image"]
        else:  # the network reads the caption alone
            image = jnp.zeros((caption.shape[0], *trial.raw.shape[1:]), trial.raw.dtype)
        model = build.build_model(trial)
        normalize = _each(build.build_normalize(trial))
        if self.is_int8:
            found = [quantize.int8_logits(model, normalize, arrays[network.INT8], view) for view in self._views(image)]
        else:
            found = [steps.eval_step(model, normalize, arrays, view, caption) for view in self._views(image)]
        return functools.reduce(jnp.add, found) / len(found) if len(found) > 1 else found[0]

    def _views(self, image: jax.Array) -> list[jax.Array]:
        """As `tta.tta_logits` sees an image; the first view is the image."""
        first, *others = VIEWS[self.trial.config.evaluation.tta]
        return [first(image), *(_each(view)(image) for view in others)]

    def outputs(self, arrays: Mapping[str, Any], *given: jax.Array) -> dict[str, jax.Array]:
        """The exported function: float32 `probabilities` and `logits`, and the class numbers `mask` uint8 `[B, H, W]`
        of a model that segments (0 is the background)."""
        logits = self.logits(arrays, *given)
        scaled = logits if self.temperature == 1 else logits * np.float32(1 / self.temperature)
        found = jax.nn.softmax(scaled) if self.task == "single-label" else jax.nn.sigmoid(scaled)
        found = {PROBABILITIES: found, LOGITS: logits}
        return found | {MASK: task.decide(logits)} if self.task == "segmentation" else found

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Float64, of the shape of the logits, by NumPy: what the exported function's are compared with."""
        flat = logits.reshape(-1, logits.shape[-1])
        return calibration.probabilities(flat, self.task != "single-label", self.temperature).reshape(logits.shape)

    def decisions(self, probabilities: np.ndarray) -> np.ndarray:
        """Classes `[B]`, labels bool `[B, K]`, or of a model that segments class numbers `[B, H, W]`."""
        if self.task == "single-label":
            return probabilities.argmax(axis=-1)
        if self.task == "multi-label":
            return thresholds.decide(probabilities, self.cuts, self.trial.config.evaluation.fallback)
        return np.where(probabilities.max(axis=-1) > 0.5, probabilities.argmax(axis=-1) + 1, 0)

    def feed(self, batch: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The inputs of a batch of the loader."""
        found = []
        for entry in self.inputs:
            value = np.asarray(batch["caption" if entry.name == "caption" else "image"])
            value = value.reshape(len(value), *entry.shape)
            whole = entry.name == "image" and entry.dtype == np.float32 and value.dtype != np.float32
            found.append(np.asarray(to_float(jnp.asarray(value))) if whole else value.astype(entry.dtype, copy=False))
        return found


def _each(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """A function of batches, image by image: beside a symbolic batch JAX makes gathers of reversals and cuts; under
    vmap it does not see the symbol."""
    return jax.vmap(lambda image: jnp.squeeze(function(image[None]), 0))


def open_program(workdir: pathlib.Path, name: str, float_images: bool, mesh, stop: StopSignal) -> Program:
    """Opens a network of a finished run.

    Args:
      workdir: the run folder.
      name: of a trial or of a candidate in compressed.csv; "" for the trial that the report speaks of, of several
        folds the first.
      float_images: whether images come as float32 in 0..255 instead of the type that is stored.
      mesh: of one device.

    Raises:
      UserError: no finished run, no such network, or it is damaged.
    """
    run = runs.open_run(workdir)
    compressed = {row["id"]: row for row in _rows(workdir / candidates.TABLE)}
    made = compressed.get(name)
    trial = opening.pick(run, str(made["trial"]) if made else name)
    name = name if made else trial.name
    trial = runs.changed_trial(trial, {"model.dtype": "float32", "data.cache": "none"})
    trial = study.SharedImages(workdir).attach(trial, mesh)  # for what its normalisation needs
    if made:
        found, _ = network.read(workdir / candidates.FOLDER / f"{build.as_file_name(name)}.safetensors", trial)
        trial, arrays = found.trial, found.arrays
    else:
        arrays = runs.load(trial, workdir, mesh, stop)
    temperature, cuts = _fitted(workdir, name, trial)
    return Program(run, name, trial, made or run.rows[name], arrays, temperature, cuts, _inputs(trial, float_images))


def _rows(file: pathlib.Path) -> list[dict[str, Any]]:
    return tables.read_trials_csv(file) if file.exists() else []


def _fitted(workdir: pathlib.Path, name: str, trial: build.Trial) -> tuple[float, np.ndarray | None]:
    """Temperature and thresholds, fitted on the predictions of `calibration` as the report does."""
    if trial.task.segments:
        return 1.0, None
    multi_label, file = trial.dataset.multi_label, workdir / "predictions" / f"{name}_calibration.csv"
    if not file.exists() and len(trial.dataset.indices("calibration")):
        raise UserError(f"{file} is missing, so that no temperature can be fitted; run research.main on {workdir}.")
    part = predictions.read(file) if file.exists() else None
    temperature, cuts = score.fit(part, multi_label, trial.config.evaluation)
    return float(temperature), thresholds.fixed(trial.num_classes) if multi_label and cuts is None else cuts


def _inputs(trial: build.Trial, float_images: bool) -> tuple[Input, ...]:
    takes = getattr(build.build_model(trial).backbone, "takes", ("image",))
    found = []
    if trial.dataset.genes:
        found.append(Input("expression", (len(trial.dataset.genes),), np.dtype(np.float32)))
    elif "image" in takes:
        found.append(Input("image", trial.raw.shape[1:], np.dtype(np.float32 if float_images else trial.raw.dtype)))
    if "caption" in takes:
        found.append(Input("caption", (trial.tokens,), np.dtype(np.int32)))
    return tuple(found)
