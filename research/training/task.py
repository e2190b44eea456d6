"""What does a model decide: one thing about an image, or something about each of its pixels?

A `Task` is all that training, evaluation and predictions do differently for the two. The model's name says which it is
(`registry.Entry.segments`). Both give one row of numbers for each example that is evaluated, from which the metrics and
predictions come, so that nothing of the size of the images is kept: the logits, or the loss and counts of pixels.
"""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import images
from input_pipeline.cli import UserError, atomic_write
from research.evaluation import predictions, segmentation
from research.losses.registry import PIXELS
from research.models import registry
from research.training import progress

Batch = dict[str, Any]


class Classification:
    """One class for each image, or any number of labels."""

    segments = False
    read_in_training = ("image", "label", "valid", "caption")
    read_in_evaluation = ("image", "index", "caption")
    shown = ("loss", "accuracy", "macro_f1")  # of validation, while training

    def class_names(self, dataset) -> tuple[str, ...]:
        """K names, one for each logit."""
        return dataset.class_names

    def targets(self, dataset) -> bool | str:
        """The kind of targets, as a loss has it: True many labels, False one class, PIXELS a class for every pixel."""
        return dataset.multi_label

    def check(self, trial) -> None:
        """Raises `UserError` where the trial's config asks for what this task does not have."""
        names, k = trial.config.evaluation.submission_labels, trial.num_classes
        if names and len(names) != k:
            raise UserError(f"config.evaluation.submission_labels has {len(names)} labels for {k} classes; write each.")

    def labelled(self, batch: Batch, num_classes: int, multi_label: bool) -> Batch:
        """The batch with its labels as dense `target` float32 `[B, K]`, before it is augmented."""
        target = batch.pop("label")
        if not multi_label:
            target = jax.nn.one_hot(target, num_classes, dtype=jnp.float32)
        return batch | {"target": target.astype(jnp.float32)}

    def augmented(self, batch: Batch, num_classes: int) -> Batch:
        """The batch with the `target` that the loss takes, after it was augmented."""
        return batch

    def decisions(self, logits, target, valid, num_classes: int, multi_label: bool) -> dict[str, jax.Array]:
        """Sums for the log line: right decisions, and counts per class at probability 0.5.

        "correct" is the number of right classes, or with several labels an example's share of right decisions.

        Args:
          logits, target: `[B, K]`. valid: float32 `[B, 1]`.
        """
        truth = (target > 0.5).astype(jnp.float32) * valid
        if multi_label:
            predicted = (logits > 0).astype(jnp.float32) * valid
            correct = jnp.mean(predicted == truth, -1, keepdims=True)
        else:
            predicted = jax.nn.one_hot(jnp.argmax(logits, -1), num_classes) * valid
            correct = jnp.argmax(logits, -1, keepdims=True) == jnp.argmax(target, -1, keepdims=True)
        return {
            "correct": jnp.sum(correct * valid),
            "tp": jnp.sum(predicted * truth, 0),
            "fp": jnp.sum(predicted * (1 - truth) * valid, 0),
            "fn": jnp.sum((1 - predicted) * truth, 0),
        }

    def train_metrics(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        """Means over the steps since the last log line."""
        return progress.train_metrics(sums)

    def columns(self, num_classes: int) -> int:
        """Numbers in the row of an example that is evaluated."""
        return num_classes

    def rows(self, loss) -> Callable[[jax.Array, Batch], jax.Array]:
        """From logits and batch to the rows, float32 `[B, columns]`."""
        return lambda logits, batch: logits

    def metrics(self, loss, rows: np.ndarray, dataset, indices: np.ndarray) -> dict[str, float]:
        """Loss and metrics of the examples `indices` `[n]` of the data set, from their rows `[n, columns]`."""
        return progress.validation_metrics(loss, rows, dataset.labels[indices], dataset.multi_label)

    def write(self, path: pathlib.Path, rows: np.ndarray, maps: Callable, dataset, indices: np.ndarray) -> None:
        """Writes the predictions of the examples `indices` as the CSV `path`."""
        predictions.write(
            path,
            [dataset.ids[i] for i in indices],
            [dataset.groups[i] for i in indices],
            dataset.labels[indices],
            rows,
            dataset.class_names,
        )


class Segmentation:
    """A class for each pixel, those of the data set's masks; logits and targets `[B, H, W, K]`, background aside.

    A row is the loss and, for each class, the pixels of `segmentation.counts`, exact in float32 up to 16 million.
    """

    segments = True
    read_in_training = ("image", "label", "valid", "segmentation")
    read_in_evaluation = ("image", "index", "segmentation")
    shown = ("loss", "dice", "iou")

    def class_names(self, dataset) -> tuple[str, ...]:
        """K names, without the background."""
        return dataset.segmentation_classes[1:]

    def targets(self, dataset) -> str:
        """PIXELS, whatever the images' labels are."""
        return PIXELS

    def check(self, trial) -> None:
        """Refuses what has no meaning for pixels, or was not made for them.

        Raises:
          UserError: names the key, or the data set without masks.
        """
        trial.dataset.check_segmentation()
        config, search = trial.config, trial.config.search
        wanted = {
            "data.cache": (config.data.cache, ("auto", "ram", "none")),
            "data.augment.mixup": (config.data.augment.mixup, (0.0,)),
            "evaluation.tta": (config.evaluation.tta, ("none",)),
            "loss.class_weights": (config.loss.class_weights, ("none",)),
            "model.head_pool": (config.model.head_pool, ("average",)),
            "selection": (config.selection, segmentation.METRICS),
            "schedule.plateau_metric": (config.schedule.plateau_metric, ("loss", *segmentation.METRICS)),
            "search.sampler": (search.sampler, ("",)),
            "search.storage": (search.storage, ("",)),
            "search.halving.budget": (search.halving.budget, (1.0,)),
            "search.dominance.coverage": (search.dominance.coverage, (0.0,)),
            "search.confirm_seeds": (search.confirm_seeds, (0,)),
            "search.extend": (search.extend, (1.0,)),
        }
        for key, (value, allowed) in wanted.items():
            if value not in allowed:
                words = ", ".join(repr(choice) for choice in allowed)
                raise UserError(
                    f"config.{key} is {value!r}, which the model {config.model.name}, that segments, cannot have; "
                    f"choose {words}."
                )

    def labelled(self, batch: Batch, num_classes: int, multi_label: bool) -> Batch:
        """Without the images' own labels; cutmix wants a target to mix, and gets zeros."""
        label = batch.pop("label")
        return batch | {"target": jnp.zeros((label.shape[0], 1), jnp.float32)}

    def augmented(self, batch: Batch, num_classes: int) -> Batch:
        """`target` float32 `[B, H, W, K]` from the masks, which were moved together with the images."""
        numbers = batch.pop("segmentation")
        return batch | {"target": one_hot(numbers, num_classes)}

    def decisions(self, logits, target, valid, num_classes: int, multi_label: bool) -> dict[str, jax.Array]:
        """As in classification, in shares of the pixels of an image."""
        predicted, weight = one_hot(decide(logits), num_classes), valid[:, 0]

        def total(pixels):
            return jnp.tensordot(weight, jnp.mean(pixels, axis=(1, 2)), axes=1)

        return {
            "correct": total(jnp.all(predicted == target, axis=-1).astype(jnp.float32)),
            "tp": total(predicted * target),
            "fp": total(predicted * (1 - target)),
            "fn": total((1 - predicted) * target),
        }

    def train_metrics(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        """Means over the steps since the last log line; "accuracy" is the share of right pixels."""
        found = progress.train_metrics(sums)
        return {"pooled_dice" if name == "macro_f1" else name: value for name, value in found.items()}

    def columns(self, num_classes: int) -> int:
        """The loss, and three counts for each class."""
        return 1 + 3 * num_classes

    def rows(self, loss) -> Callable[[jax.Array, Batch], jax.Array]:
        """From logits `[B, H, W, K]` and the batch's `segmentation` to float32 `[B, 1 + 3 K]`."""
        return functools.partial(_pixel_rows, loss)

    def metrics(self, loss, rows: np.ndarray, dataset, indices: np.ndarray) -> dict[str, float]:
        """Mean loss and the metrics of `segmentation.evaluate`.

        Raises:
          Diverged: the loss is not finite.
          UserError: there are no examples.
        """
        found = segmentation.evaluate(pixels_of(rows))
        value = float(np.mean(rows[:, 0], dtype=np.float64))
        if not math.isfinite(value):
            raise progress.Diverged("The validation loss is not finite; lower the learning rate.")
        return {"loss": value} | found

    def write(self, path: pathlib.Path, rows: np.ndarray, maps: Callable, dataset, indices: np.ndarray) -> None:
        """Writes the CSV of `segmentation.write` and beside it `<name>_masks/`, a PNG for each example.

        A pixel's brightness is its class number times 255 // K.
        """
        folder = path.with_name(f"{path.stem}_masks")
        folder.mkdir(exist_ok=True)
        scale, files = 255 // len(self.class_names(dataset)), []
        for number, mask in enumerate(maps()):
            files.append(f"{folder.name}/{number:05d}.png")
            atomic_write(path.parent / files[-1], images.encode_png((mask * scale)[..., None]))
        ids, groups = dataset.ids[indices], dataset.groups[indices]
        segmentation.write(path, ids, groups, files, pixels_of(rows), self.class_names(dataset))


Task = Classification | Segmentation
CLASSIFICATION, SEGMENTATION = Classification(), Segmentation()


def of(model: str) -> Task:
    """The task of the model of this name.

    Raises:
      UserError: there is no such model.
    """
    return SEGMENTATION if registry.find(model)[0].segments else CLASSIFICATION


def decide(logits: jax.Array) -> jax.Array:
    """Class numbers uint8 `[..., H, W]` of logits `[..., H, W, K]`: the likeliest class above 0.5, 0 where none is."""
    numbers = jnp.argmax(logits, axis=-1).astype(jnp.uint8) + jnp.uint8(1)
    return jnp.where(jnp.max(logits, axis=-1) > 0, numbers, jnp.uint8(0))


def one_hot(numbers: jax.Array, num_classes: int) -> jax.Array:
    """Class numbers `[...]` to float32 `[..., K]`; the background has no entry."""
    return (numbers[..., None] == jnp.arange(1, num_classes + 1, dtype=numbers.dtype)).astype(jnp.float32)


def pixels_of(rows: np.ndarray) -> np.ndarray:
    """The counts int64 `[n, K, 3]` of rows `[n, 1 + 3 K]`."""
    return np.rint(rows[:, 1:]).astype(np.int64).reshape(len(rows), -1, 3)


@functools.partial(jax.jit, static_argnums=0)
def _pixel_rows(loss, logits: jax.Array, batch: Batch) -> jax.Array:
    num_classes = logits.shape[-1]
    target, predicted = one_hot(batch["segmentation"], num_classes), one_hot(decide(logits), num_classes)
    sums = [jnp.sum(pixels, axis=(1, 2)) for pixels in (predicted * target, predicted, target)]
    counts = jnp.stack(sums, axis=-1).reshape(len(logits), -1)
    return jnp.concatenate([loss.fn(logits, target)[:, None], counts], axis=1)
