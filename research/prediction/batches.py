"""How do inputs become batches for a network: read, checked, decoded, resized by threads, in order, in little memory?

A file goes through the policy of `input_pipeline.images`, as `prepare` does with it, and is resized as the loader does
it, so that the network sees the same pixels in both ways. Every batch is of full size; the last one is padded.
"""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Iterator

import cv2
import numpy as np

from input_pipeline import images, raw
from input_pipeline.decoding import keep_freed_memory
from input_pipeline.image_headers import BadImage
from research.prediction.inputs import Inputs
from research.segment import applying
from research.training.build import Trial

_CHUNK = 8  # images that a thread decodes at once: fewer cost more in handing over, more leave threads without work
_AHEAD = 2  # batches in the making or waiting beside the one that is used
GREY = 128  # of the picture that stands for no picture, as in `input_pipeline.assemble.grey_pixels`


@dataclasses.dataclass(frozen=True)
class Batch:
    """Inputs `start`, …, `start + count - 1`, and padding.

    Attributes:
      arrays: what the network takes: image `[rows, ...]`, and caption int32 `[rows, L]` where captions are read.
      errors: by row, why an input could not be read; its image is black.
    """

    start: int
    count: int
    arrays: dict[str, np.ndarray]
    errors: dict[int, str]


def batches(inputs: Inputs, trial: Trial, batch_size: int, rows: int) -> Iterator[Batch]:
    """Yields the inputs in order.

    Args:
      inputs: N of them, with whatever the trial's network needs.
      trial: gives shape and type of an image, threads, and the tokeniser of captions.
      batch_size: inputs in a batch. rows: of its arrays, at least as many.
    """
    if inputs.vectors is not None:
        made = _of_vectors(inputs, trial, batch_size, rows)
    elif inputs.read is None:
        made = _without_images(inputs, trial, batch_size, rows)
    else:
        made = _of_images(inputs, trial, batch_size, rows)
    for batch in made:
        if trial.text is not None:
            captions: list = [None] * rows
            if inputs.captions is not None:
                captions[: batch.count] = inputs.captions[batch.start : batch.start + batch.count]
            batch.arrays["caption"] = trial.text.tokenizer.encode(captions)
        yield batch


def _of_vectors(inputs: Inputs, trial: Trial, batch_size: int, rows: int) -> Iterator[Batch]:
    for start in range(0, len(inputs), batch_size):
        values = inputs.vectors[start : start + batch_size]
        image = np.zeros((rows, 1, values.shape[1], 1), trial.dataset.dtype)
        image[: len(values), 0, :, 0] = values
        yield Batch(start, len(values), {"image": image}, {})


def _without_images(inputs: Inputs, trial: Trial, batch_size: int, rows: int) -> Iterator[Batch]:
    for start in range(0, len(inputs), batch_size):
        image = np.full((rows, *trial.raw.shape[1:]), GREY, trial.dataset.dtype)
        yield Batch(start, min(batch_size, len(inputs) - start), {"image": image}, {})


def _of_images(inputs: Inputs, trial: Trial, batch_size: int, rows: int) -> Iterator[Batch]:
    cv2.setNumThreads(1)  # the images are what is done in parallel
    keep_freed_memory()
    waiting: collections.deque = collections.deque()

    def finished() -> Batch:
        batch, tasks = waiting.popleft()
        for task in tasks:
            batch.errors.update(task.result())
        return batch

    pool = concurrent.futures.ThreadPoolExecutor(trial.threads)
    try:
        for start in range(0, len(inputs), batch_size):
            count = min(batch_size, len(inputs) - start)
            image = np.empty((rows, *trial.raw.shape[1:]), trial.dataset.dtype)
            image[count:] = 0
            chunks = [range(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK)]
            tasks = [pool.submit(_fill, inputs, trial, image, start, chunk) for chunk in chunks]
            waiting.append((Batch(start, count, {"image": image}, {}), tasks))
            if len(waiting) > _AHEAD:
                yield finished()
        while waiting:
            yield finished()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fill(inputs: Inputs, trial: Trial, image: np.ndarray, start: int, chunk: range) -> dict[int, str]:
    """Reads the rows `chunk` of a batch into `image` `[rows, S, S, C]`; returns the reasons of those that fail."""
    errors = {}
    for row in chunk:
        reason = inputs.refused.get(start + row, "")
        if not reason:
            try:
                image[row] = _image(inputs.read(start + row), trial)
                continue
            except (raw.Unreadable, BadImage) as error:
                reason = str(error)
            except (MemoryError, cv2.error):
                reason = "does not fit into memory"
        image[row] = 0
        errors[row] = reason
    return errors


def _image(found: bytes | np.ndarray, trial: Trial) -> np.ndarray:
    """One image `[S, S, C]` of the trial's type, of an encoded one or of pixels `[H, W, C]`.

    Raises:
      BadImage: the reason why it cannot be used.
    """
    size, channels, dtype = trial.config.image_size, trial.channels, trial.dataset.dtype
    if isinstance(found, np.ndarray):
        if found.shape[2] == channels and found.dtype == dtype:
            return images.resize(found, size, trial.config.data.resize)
        found = images.encode_png(found)
    picture = applying.decode("", found, size, channels, trial.config.data.resize, dtype)
    if picture.image is None:
        raise BadImage(picture.error)
    return picture.image
