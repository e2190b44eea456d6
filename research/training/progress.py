"""Which numbers does a training report: metrics of train and validation, speed, memory, time left?"""

import math
import resource

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.cli import UserError
from research.evaluation import metrics as evaluation_metrics


class Diverged(UserError):
    """A trial has no result, because numbers of its model are not finite; others are not concerned."""


def train_metrics(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over the steps since the last log line, from the sums of `steps.train_metrics`."""
    count = max(1.0, float(sums["steps"]))
    f1 = 2 * sums["tp"] / np.maximum(2 * sums["tp"] + sums["fp"] + sums["fn"], 1e-9)
    return {
        "loss": float(sums["loss"]) / count,
        "gradient_norm": float(sums["gradient_norm"]) / count,
        "accuracy": float(sums["correct"] / max(1.0, sums["examples"])),
        "macro_f1": float(np.mean(f1)),
    }


def speed(images: float, seconds: float, waiting: float) -> dict[str, float]:
    """Speed over `images`, which took `seconds`, `waiting` of them for input; and the memory used so far."""
    return {
        "images_per_second": images / max(seconds, 1e-9),
        "input_wait_share": waiting / max(seconds, 1e-9),
        "memory_bytes": memory_bytes(),
    }


def validation_metrics(loss, logits: np.ndarray, labels: np.ndarray, multi_label: bool) -> dict[str, float]:
    """The loss over the whole set and the metrics that need no fitted threshold (0.5, argmax).

    Args:
      logits: `[n, K]`; labels: int `[n]` or multi-hot `[n, K]`.

    Raises:
      UserError: there are no examples.
      Diverged: the loss is not finite.
    """
    if not len(labels):
        raise UserError("No example has the role 'validation'; prepare the data with a validation share.")
    num_classes = logits.shape[1]
    target = labels if multi_label else np.eye(num_classes, dtype=np.float32)[labels]
    value = float(loss.mean(jnp.asarray(logits), jnp.asarray(target, jnp.float32)))
    if not math.isfinite(value) or not np.isfinite(logits).all():
        raise Diverged("The validation loss is not finite; lower the learning rate.")
    scores = np.asarray(jax.nn.sigmoid(logits) if multi_label else jax.nn.softmax(logits), np.float64)
    return {"loss": value} | evaluation_metrics.evaluate(scores, labels, multi_label)


@jax.jit
def all_finite(tree) -> jax.Array:
    """bool []: whether every number of a tree of arrays is."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def memory_bytes() -> int:
    """Peak memory of the first device, or of this process where the device does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def minutes(seconds: float) -> str:
    """ "42 s" or "3.5 min"."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
