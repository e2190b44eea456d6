"""Logits of whole roles, or counts of their pixels: every example once, in order, on any number of devices."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.loader import eval_batches
from research.evaluation.tta import tta_logits
from research.training import sharding
from research.training.build import Trial, build_loss, build_model, build_normalize
from research.training.signals import StopSignal
from research.training.state import Flat
from research.training.steps import eval_step
from research.training.task import decide


class Predictor:
    """Evaluates variables of a trial's model; compiled at its first use.

    Args:
      trial: gives model, normalisation, image size and batch size.
      mesh: devices.
      stop: checked before each batch and during compilation.
      views: "none", "flips" or "dihedral": test-time augmentation, averaged logits.
    """

    def __init__(self, trial: Trial, mesh, stop: StopSignal, views: str = "none") -> None:
        self.trial, self.mesh, self.stop, self.images = trial, mesh, stop, trial.images
        self.batch_size = trial.config.evaluation.batch_size or trial.config.batch_size
        self.views = views
        self._rows = trial.task.rows(build_loss(trial))
        step = functools.partial(eval_step, build_model(trial), build_normalize(trial))
        self._function = jax.jit(step, out_shardings=sharding.replicated(mesh))
        self._compiled = None

    def __call__(self, variables: dict[str, Flat], indices: np.ndarray) -> np.ndarray:
        """Rows of the examples `indices` `[n]`: logits float32 `[n, K]`, averaged over the views, or counts of pixels.

        Raises:
          Stopped: a stop was asked for.
        """
        return self.of_members([variables], indices)[0]

    def of_members(self, variables: Sequence[dict[str, Flat]], indices: np.ndarray) -> np.ndarray:
        """As a call for each of M `variables`, reading each batch once: float32 `[M, n, columns]`."""
        columns = self.trial.task.columns(self.trial.num_classes)
        found = np.zeros((len(variables), len(indices), columns), np.float32)
        done = 0
        for logits, batch, count in self._batches(variables, indices):
            rows = [self._rows(own, batch) for own in logits]
            found[:, done : done + count] = np.stack([sharding.to_host(own)[:count] for own in rows])
            done += count
        return found

    def maps(self, variables: dict[str, Flat], indices: np.ndarray) -> Iterator[np.ndarray]:
        """The class numbers uint8 `[H, W]` of each of the examples `indices`, of a model that segments.

        Raises:
          Stopped: a stop was asked for.
        """
        for (logits,), _, count in self._batches([variables], indices):
            yield from sharding.to_host(decide(logits))[:count]

    def _batches(self, variables: Sequence[dict[str, Flat]], indices: np.ndarray) -> Iterator[tuple[list, dict, int]]:
        """Logits of each of `variables`, the batch on the devices, and how many of its rows are examples."""
        batches = eval_batches(**loader_arguments(self.trial, self.mesh), indices=indices, batch_size=self.batch_size)
        # Moved once, not for each batch.
        variables = [self.place(own) for own in variables]
        for start, batch in zip(range(0, len(indices), self.batch_size), batches, strict=True):
            self.stop.check()
            batch = gather(sharding.put_batch(self.mesh, self._read(batch)), self.images)
            rows = [self.logits(own, batch) for own in variables]
            yield rows, batch, min(self.batch_size, len(indices) - start)

    def place(self, variables: dict[str, Flat]) -> dict[str, Flat]:
        """The variables on the devices; what lies there stays."""
        return jax.tree.map(self._on_devices, variables)

    def logits(self, variables: dict[str, Flat], batch: dict[str, jax.Array]) -> jax.Array:
        """Logits float32 `[B, K]` of a batch that lies on the devices, averaged over the views.

        Args:
          variables: as `place` gives them.
          batch: image `[B, ...]`, and caption int32 `[B, L]` where captions are read; B is that of the first call.

        Raises:
          Stopped: a stop was asked for during compilation.
        """
        image, captions = batch["image"], [batch[name] for name in ("caption",) if name in batch]
        if self._compiled is None:
            lowered = functools.partial(self._function.lower, variables, image, *captions)
            self._compiled = self.stop.interruptible(lambda: lowered().compile())
        # Outside of jit, so that the views share one program; they are laid out like the batch.
        return tta_logits(functools.partial(self._apply, variables, captions), image, self.views)

    def _read(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Only what the evaluation reads."""
        return {name: value for name, value in batch.items() if name in self.trial.task.read_in_evaluation}

    def _on_devices(self, leaf: jax.Array | np.ndarray) -> jax.Array:
        return leaf if isinstance(leaf, jax.Array) else sharding.place(leaf, sharding.replicated(self.mesh))

    def _apply(self, variables: dict[str, Flat], captions: list[jax.Array], images: jax.Array) -> jax.Array:
        return self._compiled(variables, sharding.place(images, sharding.over_batch(self.mesh)), *captions)


def gather(batch: dict[str, jax.Array], images: jax.Array | None) -> dict[str, jax.Array]:
    """Takes the batch's images from the decoded data set on the device, where it lies there."""
    return batch if images is None else batch | {"image": jnp.take(images, batch["index"], axis=0)}


def loader_arguments(trial: Trial, mesh) -> dict:
    """What training and evaluation tell the loader alike."""
    data = trial.config.data
    return {
        "dataset": trial.dataset,
        "image_size": trial.config.image_size,
        "channels": trial.channels,
        "threads": trial.threads,
        "prefetch": data.prefetch,
        "resize": data.resize,
        "segmentation": trial.task.segments,
        "captions": None if trial.text is None else trial.text.ids,
        "cache": "device" if trial.images is not None else trial.cache,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "pad_to": len(mesh.local_devices),
    }
