"""How many examples of a data set carry which labels?"""

import collections
import pathlib
from collections.abc import Iterable

import numpy as np

from input_pipeline import plotting
from input_pipeline.dataset import ROLES, Dataset

_SETS_SHOWN = 20


def label_matrix(dataset: Dataset) -> np.ndarray:
    """Multi-hot labels, bool `[N, K]`; rows of unlabelled examples are False."""
    if dataset.multi_label:
        return np.asarray(dataset.labels) > 0.5
    return np.asarray(dataset.labels)[:, None] == np.arange(len(dataset.class_names))


def roles_present(dataset: Dataset) -> list[str]:
    """The roles that have examples, in the order of `dataset.ROLES`."""
    return [role for role in ROLES if np.any(dataset.roles == role)]


def count_labels(dataset: Dataset) -> dict[str, np.ndarray]:
    """Labelled role -> examples of each class, int64 `[K]`."""
    labels = label_matrix(dataset)
    labelled = [role for role in roles_present(dataset) if role != "unlabelled"]
    return {role: labels[dataset.roles == role].sum(axis=0) for role in labelled}


def count_label_sets(dataset: Dataset) -> list[tuple[tuple[int, ...], int]]:
    """(class indices, number of labelled examples with exactly these), the most frequent first, ties by index."""
    labels = label_matrix(dataset)[dataset.roles != "unlabelled"]
    counts = collections.Counter(tuple(np.flatnonzero(row).tolist()) for row in labels)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def count_pairs(dataset: Dataset) -> np.ndarray:
    """Examples that carry both labels, int64 `[K, K]`; the diagonal counts each label."""
    labels = label_matrix(dataset)[dataset.roles != "unlabelled"].astype(np.float64)
    return np.rint(labels.T @ labels).astype(np.int64)


def label_names(dataset: Dataset, classes: Iterable[int]) -> str:
    """The names of class indices, joined."""
    return " + ".join(dataset.class_names[index] for index in classes) or "(no label)"


def draw(dataset: Dataset, path: pathlib.Path) -> None:
    """How many examples of each role carry each class, and with many labels the most frequent sets of them."""
    sets = count_label_sets(dataset)[:_SETS_SHOWN] if dataset.multi_label else []
    shown = [(label_names(dataset, key), count) for key, count in sets]
    plotting.label_distribution(count_labels(dataset), dataset.class_names, path, shown, dataset.multi_label)
