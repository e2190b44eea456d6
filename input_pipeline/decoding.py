"""How does the image of an example get into its row of a batch without wasted memory traffic?

The pixels are those of `images.decode` and `images.resize`. What is added here only decides where bytes lie, which is
worth about a tenth of the throughput: the processor spends that long waiting for memory otherwise.
"""

import ctypes
import functools
import threading

import cv2
import numpy as np
import simplejpeg

from input_pipeline import images, masks
from input_pipeline.cli import UserError
from input_pipeline.dataset import Dataset

_JPEG_COLOURS = {1: "GRAY", 3: "RGB"}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


@functools.cache
def keep_freed_memory() -> None:
    """Tells glibc to keep the memory of freed batches for the next ones instead of returning it to the system.

    Every new batch otherwise pays for its pages again, 5 to 8% of the throughput on two cores. It holds for the whole
    process and keeps at most 512 MiB behind; other C libraries are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_TRIM_THRESHOLD, 512 * 2**20)
    mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)


def image_shape(dataset: Dataset, image_size: int, channels: int | None = None) -> tuple[int, int, int]:
    """The shape of a decoded example: `[S, S, C]`, or `[1, G, 1]` for a vector of G genes, whatever is asked for."""
    if dataset.genes:
        return 1, len(dataset.genes), 1
    return image_size, image_size, dataset.channels if channels is None else channels


class Decoder:
    """Writes the decoded, resized image of an example into a row of a batch; shared by all threads.

    A vector of gene expression is an image of one row, float32 `[1, G, 1]`: it has no other size, channels or resizing.

    Args:
        dataset: where the encoded images come from.
        image_size: S, in pixels.
        channels: C; the data set's own when None.
        resize: "stretch" or "crop" (see `images.resize`).
    """

    def __init__(self, dataset: Dataset, image_size: int, channels: int | None, resize: str):
        self.dataset = dataset
        self.shape = image_shape(dataset, image_size, channels)
        self.channels = self.shape[-1]
        self.dtype = dataset.dtype
        self._resize = resize
        self._thread = threading.local()
        # The batches are the parallel unit: OpenCV's own threads would only fight with them for the cores.
        cv2.setNumThreads(1)
        keep_freed_memory()

    def read(self, index: int, row: np.ndarray) -> None:
        """Fills `row`, uint8 or uint16 `[S, S, C]` or float32 `[1, G, 1]`, with example `index`.

        Raises:
            UserError: the record is damaged, or its image cannot be decoded.
        """
        if self.dataset.genes:
            row[0, :, 0] = self.dataset.vector(index)
            return
        encoded = self.dataset.encoded(index)
        try:
            image = self._decode(encoded)
        except images.BadImage as error:
            raise UserError(
                f"the image of example {self.dataset.ids[index]!r} of {self.dataset.directory} cannot be decoded "
                f"({error}): prepare the data again with `python -m input_pipeline.prepare`."
            ) from error
        size = self.shape[0]
        if self._resize == "stretch" and image.dtype == self.dtype and min(image.shape[:2]) >= size:
            # What `images.resize` does in this commonest case, but without a copy.
            cv2.resize(image, (size, size), dst=row, interpolation=cv2.INTER_AREA)
            return
        image = images.resize(image, size, self._resize)
        if image.dtype != self.dtype:
            # 8 and 16 bits in one data set: full scale stays full scale (255 * 257 = 65535).
            image = image * np.uint16(257) if self.dtype == np.uint16 else (image >> 8)
        row[...] = image

    def read_segmentation(self, index: int, row: np.ndarray) -> None:
        """Fills `row`, uint8 `[S, S]`, with the class numbers of example `index`, resized as its image is.

        Raises:
            UserError: the data set has no segmentations, the record is damaged, or it holds another class number.
        """
        encoded = self.dataset.encoded_segmentation(index)
        try:
            labels = images.decode(encoded)
            if labels.shape[2] != 1 or labels.dtype != np.uint8:
                raise images.BadImage("it is no 8-bit picture of one channel")
            if labels.max() >= len(self.dataset.segmentation_classes):
                raise images.BadImage(f"it holds the class number {labels.max()}")
        except images.BadImage as error:
            raise UserError(
                f"the mask of example {self.dataset.ids[index]!r} of {self.dataset.directory} cannot be used "
                f"({error}): prepare the data again with `python -m input_pipeline.prepare`."
            ) from error
        row[...] = masks.resize(labels[..., 0], row.shape[0], self._resize)

    def _decode(self, encoded: bytes) -> np.ndarray:
        """What `images.decode` gives, but a JPEG lies in a buffer of the thread until the next call."""
        if encoded[:2] == b"\xff\xd8" and self.channels in _JPEG_COLOURS:
            try:
                height, width = simplejpeg.decode_jpeg_header(encoded)[:2]
                buffer = self._buffer(height * width * self.channels)
                return simplejpeg.decode_jpeg(encoded, _JPEG_COLOURS[self.channels], buffer=buffer)
            except ValueError:
                pass  # `images.decode` says what is wrong with it
        return images.decode(encoded, self.channels)

    def _buffer(self, size: int) -> np.ndarray:
        """At least `size` bytes that this thread reuses, at an address that is 16 modulo 64.

        To addresses that are multiples of 32 libjpeg-turbo writes past the processor's caches, from where resizing has
        to fetch the image back: 5 to 10% slower, and more when other cores use the memory as well.
        """
        buffer = getattr(self._thread, "buffer", None)
        if buffer is None or len(buffer) < size:
            block = np.empty(size + 64, np.uint8)
            start = (16 - block.ctypes.data) % 64
            self._thread.buffer = buffer = block[start : start + size]
        return buffer
