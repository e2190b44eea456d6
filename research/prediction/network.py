"""How does a trial of a finished run say something of batches: logits as in its own test predictions, or features?"""

import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from research import outcome
from research.prediction.batches import Batch
from research.training import build, sharding
from research.training.signals import StopSignal
from research.training.state import Flat, nest

Step = Callable[[dict[str, jax.Array]], jax.Array]


class Network:
    """A trained network on the devices, compiled at its first use for one size of batches.

    Args:
      trial: with what its normalisation needs, see `study.SharedImages.attach`.
      variables: of its best checkpoint.
      mesh: devices.
      stop: checked before each batch and during compilation.
      batch_size: B; 0 for that of the run's own predictions, which gives the same program.
    """

    def __init__(self, trial: build.Trial, variables: dict[str, Flat], mesh, stop: StopSignal, batch_size: int = 0):
        self.trial, self.mesh, self.stop = trial, mesh, stop
        self._predictor = outcome.predictor_of(trial, mesh, stop)
        self.batch_size = batch_size or self._predictor.batch_size
        self.rows = sharding.rows_for(mesh, self.batch_size)
        self._variables = self._predictor.place(variables)
        step = functools.partial(_features, build.build_model(trial), build.build_normalize(trial))
        self._features = jax.jit(step, out_shardings=sharding.replicated(mesh))

    def logits(self, batch: dict[str, jax.Array]) -> jax.Array:
        """Logits float32 `[rows, K]`, averaged over the views of the run's test-time augmentation."""
        return self._predictor.logits(self._variables, batch)

    def features(self, batch: dict[str, jax.Array]) -> jax.Array:
        """The pooled features float32 `[rows, D]` that the head reads, of the upright view alone."""
        return self._features(self._variables, batch)

    def over(self, step: Step, batches: Iterable[Batch]) -> Iterator[tuple[Batch, np.ndarray]]:
        """Each batch with the rows float32 `[count, columns]` of `logits` or `features`; the next step runs meanwhile.

        Raises:
          Stopped: a stop was asked for.
        """
        before = None
        for batch in batches:
            self.stop.check()
            running = step(sharding.put_batch(self.mesh, batch.arrays))
            if before is not None:
                yield before[0], np.asarray(before[1])[: before[0].count]
            before = batch, running
        if before is not None:
            yield before[0], np.asarray(before[1])[: before[0].count]


def _features(model, normalize, variables: dict[str, Flat], batch: dict[str, jax.Array]) -> jax.Array:
    nested = {name: nest(flat) for name, flat in variables.items()}
    inputs = {**batch, "image": normalize(batch["image"])}
    return model.apply(nested, inputs, train=False).features.astype(jnp.float32)
