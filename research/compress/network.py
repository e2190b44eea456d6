"""What is a network on its way through compression, how is it evaluated, and how does it lie in a file?"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.loader import eval_batches
from research import runs
from research.compress import calibration, quantize, storage
from research.evaluation import predictions
from research.models.initialize import count_parameters
from research.outcome import ROLES
from research.training import build, inference
from research.training.progress import validation_metrics
from research.training.signals import StopSignal

INT8 = "int8"  # the one collection of an int8 network's arrays
CALIBRATION_IMAGES, _CALIBRATION_BATCH = 256, 32


@dataclasses.dataclass(frozen=True)
class Network:
    """Arrays and the trial whose config builds their architecture.

    Attributes:
      trial: named like the trial that the network comes from.
      arrays: {"params", "batch_stats"} or {"int8"}, arrays by path.
      changes: what the config has differently from the original trial's.
      steps: of fine-tuning so far.
      seconds: of the last fine-tuning, in this process.
    """

    trial: build.Trial
    arrays: Mapping[str, Mapping[str, np.ndarray]]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0

    @property
    def is_int8(self) -> bool:
        """Whether it runs in int8."""
        return INT8 in self.arrays

    @property
    def flat(self) -> dict[str, np.ndarray]:
        """All arrays, by names such as "params/backbone/conv/kernel"."""
        return {f"{kind}/{path}": np.asarray(v) for kind, own in self.arrays.items() for path, v in own.items()}

    @property
    def image(self) -> jax.ShapeDtypeStruct:
        """The shape of one raw image, `[1, H, W, C]`."""
        return self.trial.raw

    def parameters(self) -> int:
        """Of the architecture, in the float network."""
        model, size = build.build_model(self.trial), self.trial.config.image_size
        image = jax.ShapeDtypeStruct((1, size, size, self.trial.channels), jnp.float32)
        shapes = jax.eval_shape(lambda x: model.init({"params": jax.random.key(0)}, {"image": x}, train=False), image)
        return count_parameters(shapes["params"])

    def nonzero(self) -> int:
        """Stored numbers that are not zero, without running statistics."""
        return sum(int(np.count_nonzero(v)) for path, v in self.flat.items() if not path.startswith("batch_stats/"))

    def sparsity(self) -> float:
        """Share of zeros among the entries of all kernels."""
        kernels = [value for path, value in self.flat.items() if path.endswith("/kernel")]
        return sum(int((k == 0).sum()) for k in kernels) / max(1, sum(k.size for k in kernels))


def write(path: str | os.PathLike, network: Network, metadata: Mapping[str, str]) -> int:
    """Writes a network's file, atomically; returns its size in bytes. `metadata` comes back from `read`."""
    own = {"model": network.trial.config.model.name, "steps": str(network.steps)}
    own["changes"] = json.dumps(network.changes, sort_keys=True)
    return storage.write(path, network.flat, {**metadata, **own})


def read(path: str | os.PathLike, trial: build.Trial) -> tuple[Network, dict[str, str]]:
    """The network of a file, and the file's metadata; `trial` is the one that the network comes from.

    Raises:
      UserError: the file is missing or damaged.
    """
    flat, metadata = storage.read(path)
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for name, value in flat.items():
        kind, _, rest = name.partition("/")
        arrays.setdefault(kind, {})[rest] = value
    if INT8 not in arrays:
        arrays.setdefault("batch_stats", {})  # of a network without BatchNorm
    changes = json.loads(metadata["changes"])
    return Network(runs.changed_trial(trial, changes), arrays, changes, int(metadata["steps"])), metadata


def to_int8(network: Network, mesh) -> Network:
    """The network in int8, calibrated on images spread over its trial's training set, not augmented.

    Raises:
      UserError: qwix is not installed, or there is nothing to calibrate with.
    """
    trial = network.trial
    model, normalize = build.build_model(trial), jax.jit(build.build_normalize(trial))
    plan = quantize.layout(model, trial.config.image_size, trial.channels)
    own = trial.train_indices
    spread = own[np.unique(np.linspace(0, len(own) - 1, min(len(own), CALIBRATION_IMAGES)).astype(int))]
    size = max(1, min(_CALIBRATION_BATCH, len(spread)))
    batches = []
    for batch in eval_batches(**inference.loader_arguments(trial, mesh), indices=spread, batch_size=size):
        wanted = {name: jnp.asarray(batch[name]) for name in ("image", "index") if name in batch}
        image = inference.gather(wanted, trial.images)["image"]
        batches.append(normalize(image[np.flatnonzero(batch["valid"])]))
    scales = calibration.calibrate(model, network.arrays, plan, batches)
    arrays = quantize.quantize(plan, network.arrays, scales)
    arrays = calibration.correct(model, network.arrays, plan, arrays, batches)
    return dataclasses.replace(network, arrays={INT8: arrays})


def int8_program(trial: build.Trial) -> Callable[[Mapping[str, Any], jax.Array], jax.Array]:
    """(arrays {"int8": {path: array}}, images uint8|uint16 `[B, H, W, C]`) to float32 logits `[B, K]`."""
    model, normalize = build.build_model(trial), build.build_normalize(trial)
    return lambda arrays, image: quantize.int8_logits(model, normalize, arrays[INT8], image)


def int8_products(network: Network) -> str:
    """How many of the program's convolutions and products multiply int8 by int8 into int32, such as "6 of 6"."""
    found = quantize.product_types(int8_program(network.trial), network.arrays, network.image)
    return f"{sum(types[1:] == ('int8', 'int8', 'int32') for types in found)} of {len(found)}"


class Int8Predictor(inference.Predictor):
    """Evaluates the arrays of int8 networks as `Predictor` does variables."""

    def __init__(self, trial: build.Trial, mesh, stop: StopSignal, views: str = "none") -> None:
        super().__init__(trial, mesh, stop, views)
        program = int8_program(trial)
        self._function = jax.jit(lambda arrays, image: program(arrays, image))


def evaluate(network: Network, workdir: pathlib.Path, name: str, mesh, stop: StopSignal) -> dict[str, dict[str, float]]:
    """Predicts every role, writes the predictions like those of a trial, and gives the metrics by role.

    Those of `train` are of the images as they are, without augmentation and without views; their predictions are not
    kept.
    """
    trial, dataset = network.trial, network.trial.dataset
    kind = Int8Predictor if network.is_int8 else inference.Predictor
    views, loss = trial.config.evaluation.tta, build.build_loss(trial)
    predictor, metrics = kind(trial, mesh, stop, views), {}
    plain = predictor if views == "none" else kind(trial, mesh, stop)
    for role in ("train", *ROLES):
        indices = trial.train_indices if role == "train" else dataset.indices(role)
        if not len(indices):
            continue
        logits = (plain if role == "train" else predictor)(network.arrays, indices)
        labels = dataset.labels[indices]
        if role != "train":
            ids, groups = [dataset.ids[i] for i in indices], [dataset.groups[i] for i in indices]
            path = pathlib.Path(workdir, "predictions", f"{name}_{role}.csv")
            predictions.write(path, ids, groups, labels, logits, dataset.class_names)
        if role in ("train", "validation", "test"):
            metrics[role] = validation_metrics(loss, logits, labels, dataset.multi_label)
    return metrics
