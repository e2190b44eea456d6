"""How does a data set look when only some of its classes exist?

For questions such as: what does a network that has never seen a tumour type need to learn it from a few samples?
"""

import dataclasses
import hashlib
from collections.abc import Collection, Sequence

import numpy as np

from input_pipeline.cli import UserError
from input_pipeline.dataset import Dataset, ImageStore


def of_classes(dataset: Dataset, only: Sequence[str] = (), without: Collection[str] = ()) -> Dataset:
    """The examples of some classes, which are numbered anew in their old order; unlabelled examples are left out.

    Args:
        dataset: with one class for each example.
        only: names of the classes that stay; empty for all.
        without: names of classes that go.

    Raises:
        UserError: an unknown name, fewer than two classes left, or several labels for each example.
    """
    if not only and not without:
        return dataset
    if dataset.multi_label:
        raise UserError("examples with several labels cannot be chosen by class: leave config.data.classes empty.")
    if unknown := [name for name in (*only, *without) if name not in dataset.class_names]:
        raise UserError(f"{dataset.directory} has no class {unknown[0]!r}; it has {', '.join(dataset.class_names)}.")
    names = [name for name in dataset.class_names if (not only or name in only) and name not in without]
    if len(names) < 2:
        raise UserError(f"{len(names)} classes of {dataset.directory} are left, and two are needed: choose others.")
    number = np.full(dataset.num_classes + 1, -1, np.int32)  # the last one is that of unlabelled examples
    number[[dataset.class_names.index(name) for name in names]] = np.arange(len(names))
    labels = number[dataset.labels]
    rows = np.flatnonzero(labels >= 0)
    return dataclasses.replace(
        dataset,
        class_names=tuple(names),
        fingerprint=hashlib.sha256("\n".join([dataset.fingerprint, *names]).encode()).hexdigest(),
        ids=dataset.ids[rows],
        labels=labels[rows],
        roles=dataset.roles[rows],
        groups=dataset.groups[rows],
        folds=dataset.folds[rows],
        images=_Rows(dataset.images, rows),
    )


class _Rows:
    """Some of the images of a store; an `ImageStore`."""

    def __init__(self, images: ImageStore, rows: np.ndarray):
        self._images, self._rows = images, rows

    def encoded(self, index: int) -> bytes:
        return self._images.encoded(int(self._rows[index]))

    def encoded_segmentation(self, index: int) -> bytes:
        return self._images.encoded_segmentation(int(self._rows[index]))

    def captions(self) -> list[str] | None:
        found = self._images.captions()
        return found and [found[row] for row in self._rows]
