"""How are raw images read, checked and described, in parallel, in a fixed order and within bounded memory?

Each example is read and decoded once, in a worker process; what comes back is the encoded image to store, hashes and
the duplicate signature. Results arrive in the order of the examples whatever the number of workers, and only a window
of tasks is in flight.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np

from input_pipeline import duplicates, images, masks, raw
from input_pipeline.boxes import Box
from input_pipeline.cli import UserError
from input_pipeline.nuclei import CellFinder
from input_pipeline.studies.manifest import RawExample

CHUNK_IMAGES = 16
CHUNK_BYTES = 16 * 2**20
"""A task holds up to this many images or raw bytes, so that large images do not pile up in memory."""

WINDOW = 4
"""Tasks in flight for each worker."""


@dataclasses.dataclass(frozen=True)
class Ingested:
    """What is known of one example after its image has been read.

    Attributes:
        error: why the image cannot be used, or an empty string; all that follows is empty with an error.
        data: encoded JPEG or PNG to store, and behind it the PNG of its segmentation, if it has one.
        segmentation_bytes: how many of the last bytes of `data` are the segmentation.
        format: "JPEG" or "PNG".
        height, width, channels, bit_depth: of the stored image.
        repaired: what was changed, or an empty string.
        file_hash: SHA-256 of the raw file (of all its channel files in order, then its masks).
        content_hash: SHA-256 of the decoded pixels, before they are cropped.
        signature: `duplicates.signature` of the pixels, or None when near duplicates are not looked for.
        num_bytes: of `data`, where that was left behind on another machine (see `beam_prepare`).
    """

    error: str = ""
    data: bytes = b""
    segmentation_bytes: int = 0
    format: str = ""
    height: int = 0
    width: int = 0
    channels: int = 0
    bit_depth: int = 0
    repaired: str = ""
    file_hash: str = ""
    content_hash: str = ""
    signature: np.ndarray | None = None
    num_bytes: int = 0


class Reader:
    """Reads examples of one source; picklable, and the same in every process."""

    def __init__(
        self,
        source: raw.RawSource,
        channel_names: Sequence[str],
        max_pixels: int,
        near_duplicates: bool,
        boxes: Mapping[str, Box] | None = None,  # by the first file of an example: what is kept of it
        cell_finder: CellFinder | None = None,  # what is added to every image, or what it is cut to
    ):
        self.source = source
        self.channel_names = tuple(channel_names)
        self.max_pixels = max_pixels
        self.near_duplicates = near_duplicates
        self.boxes = dict(boxes or {})
        self.cell_finder = cell_finder

    def read(self, paths: Sequence[str], mask_paths: Sequence[str] = ()) -> Ingested:
        """Reads one example; a file that cannot be used gives an `Ingested` with an error, never an exception."""
        digest = hashlib.sha256()
        try:
            parts = []
            for path in paths:
                data = self.source.read(path)
                digest.update(data)
                parts.append(images.admit(data, self.max_pixels))
            image = images.merge_channels(parts, self.channel_names) if self.channel_names else parts[0]
            segmentation, repaired = b"", image.repaired
            if mask_paths:
                found = [self.source.read(path) for path in mask_paths]
                for data in found:
                    digest.update(data)
                segmentation, changes = masks.merge(found, image.height, image.width, self.max_pixels)
                repaired = "; ".join(filter(None, (repaired, changes)))
            whole = image.image  # copies are found as without boxes, so that groups and roles stay as they are
            if box := self.boxes.get(paths[0]):
                image = box.admitted(image)
                segmentation = box.segmentation(segmentation) if segmentation else b""
            if self.cell_finder:
                image = self.cell_finder.applied(image)
        except (images.BadImage, raw.Unreadable) as error:
            return Ingested(error=str(error))
        except MemoryError:
            return Ingested(error="does not fit into memory")
        return Ingested(
            data=image.data + segmentation,
            segmentation_bytes=len(segmentation),
            format=image.format,
            height=image.height,
            width=image.width,
            channels=image.channels,
            bit_depth=image.bit_depth,
            repaired=repaired,
            file_hash=digest.hexdigest(),
            content_hash=duplicates.content_hash(whole),
            signature=duplicates.signature(whole) if self.near_duplicates else None,
        )


_reader: Reader | None = None


def _start_worker(reader: Reader) -> None:
    global _reader
    _reader = reader
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent does the cleaning up
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent is gone, killed ones included; otherwise it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _files(example: RawExample) -> tuple[tuple[str, ...], ...]:
    """The arguments of `Reader.read`: paths, and masks where there are any."""
    return (example.paths, example.masks) if example.masks else (example.paths,)


def _read_chunk(chunk: list[tuple[tuple[str, ...], ...]]) -> list[Ingested]:
    return [_reader.read(*files) for files in chunk]


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Keeps spawned workers from importing the caller's main module, which may be slow, load JAX or have no guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _chunks(source: raw.RawSource, examples: Sequence[RawExample]) -> Iterator[list[tuple[tuple[str, ...], ...]]]:
    chunk: list[tuple[tuple[str, ...], ...]] = []
    held = 0
    for example in examples:
        size = sum(source.size(path) for path in (*example.paths, *example.masks))
        if chunk and (len(chunk) == CHUNK_IMAGES or held + size > CHUNK_BYTES):
            yield chunk
            chunk, held = [], 0
        chunk.append(_files(example))
        held += size
    if chunk:
        yield chunk


def ingest(reader: Reader, examples: Sequence[RawExample], workers: int) -> Iterator[Ingested]:
    """Yields the outcome of every example in order.

    Args:
        reader: what to do with an example.
        examples: which ones.
        workers: processes; 1 reads in this process.

    Raises:
        UserError: a worker process died (most likely for want of memory).
    """
    if workers == 1:
        for example in examples:
            yield reader.read(*_files(example))
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(reader,)
    )
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for chunk in _chunks(reader.source, examples):
            with _without_main_module():
                pending.append(pool.submit(_read_chunk, chunk))
            while len(pending) >= WINDOW * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except concurrent.futures.BrokenExecutor as error:
        raise UserError(
            "a worker process ended without a word, most likely because the memory ran out: run again with fewer "
            "--workers, or with --workers=1 to see more."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
