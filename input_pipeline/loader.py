"""How do examples become batches: read, verified, decoded and resized by threads, in an order set by the step alone.

One grain element is one whole batch, because grain's cost per element and thread is larger than that of an image. The
order is computed before anything runs in parallel, so it is the same for any number of threads, hosts and devices.

Vectors of gene expression travel as images of one row: `image` is float32 `[b, 1, G, 1]`, and the arguments about the
size, channels and resizing of images are without effect (which gene becomes which pixel is decided on the device).
"""

import collections
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import grain
import numpy as np
import psutil

from input_pipeline.cli import UserError, progress
from input_pipeline.dataset import Dataset
from input_pipeline.decoding import Decoder, image_shape
from input_pipeline.sampling import Sampler

Batch = dict[str, np.ndarray]
Placed = TypeVar("Placed")

RAM_SHARE = 0.7
"""The share of the free memory that a decoded cache may take."""

_GROUPS, _OWN_GROUP = pathlib.Path("/sys/fs/cgroup"), pathlib.Path("/proc/self/cgroup")  # control groups, version 2


def available_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes() -> int:
    """Free memory in bytes: of the machine, or what the control group (a SLURM job, a container) leaves if less."""
    free = psutil.virtual_memory().available
    try:
        own = next(line[3:] for line in _OWN_GROUP.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return free
    group = _GROUPS / own.strip("/")
    # A limit may stand at any level; that of the whole machine has no such file.
    for level in (group, *group.parents):
        try:
            allowed = (level / "memory.max").read_text().strip()
            used = int((level / "memory.current").read_text())
            lines = (line.split() for line in (level / "memory.stat").read_text().splitlines())
            cached = sum(int(value) for name, value in lines if name in ("active_file", "inactive_file"))
        except OSError:
            continue
        if allowed != "max":
            free = min(free, max(0, int(allowed) - used + cached))
    return free


def fits(bytes_needed: int) -> bool:
    """Whether a decoded cache of this size leaves enough memory for the rest of the run."""
    return bytes_needed <= RAM_SHARE * available_bytes()


class DecodedCache:
    """The decoded, resized images of a data set in memory, `[N, S, S, C]`; filled in parallel when first needed.

    Vectors of G genes are held as `[N, 1, G, 1]`.

    Args:
        dataset: the data set, of N examples.
        image_size: S, in pixels.
        channels: C; the data set's own when None.
        resize: "stretch" or "crop" (see `images.resize`).
        threads: decoding threads; all cores when None.
        segmentation: whether to hold the segmentations as well, as `segmentation` `[N, S, S]`.

    Raises:
        UserError: when the images do not fit in the free memory, or the data set has no segmentations.
    """

    def __init__(
        self,
        dataset: Dataset,
        image_size: int,
        channels: int | None = None,
        resize: str = "stretch",
        threads: int | None = None,
        segmentation: bool = False,
    ):
        if segmentation:
            dataset.check_segmentation()
        self._decoder = Decoder(dataset, image_size, channels, resize)
        self._threads = threads or available_cores()
        self._lock = threading.Lock()
        self._filled = np.zeros(len(dataset), bool)
        bytes_needed = self.bytes_needed(dataset, image_size, channels, segmentation)
        if not fits(bytes_needed):
            raise UserError(
                f"the decoded cache needs {bytes_needed / 2**30:.1f} GiB and {available_bytes() / 2**30:.1f} GiB of "
                "memory are free: leave the cache off or choose a smaller image size."
            )
        # Untouched pages cost nothing, so roles that are never read take no memory.
        self.array = np.empty((len(dataset), *self._decoder.shape), self._decoder.dtype)
        self.segmentation = np.empty(self.array.shape[:3], np.uint8) if segmentation else None

    @staticmethod
    def bytes_needed(dataset: Dataset, image_size: int, channels: int | None = None, segmentation: bool = False) -> int:
        """The size of the whole cache in bytes."""
        height, width, depth = image_shape(dataset, image_size, channels)
        return len(dataset) * height * width * (depth * dataset.dtype.itemsize + segmentation)

    def fill(self, indices: np.ndarray | None = None) -> "DecodedCache":
        """Decodes those of `indices` (all examples when None) that are not yet there; shows progress."""
        with self._lock:
            wanted = np.arange(len(self._filled)) if indices is None else np.unique(indices)
            missing = wanted[~self._filled[wanted]]
            if len(missing):
                blocks = np.array_split(missing, -(-len(missing) // 64))
                source = grain.MapDataset.source(blocks).map(self._decode_block)
                done = source.to_iter_dataset(_read_options(self._threads, 2 * self._threads))
                counts = (1 for count in done for _ in range(count))
                for _ in progress(counts, len(missing), f"decoding {self._decoder.dataset.unit}s into memory"):
                    pass
                self._filled[missing] = True
        return self

    def _decode_block(self, block: np.ndarray) -> int:
        for index in block:
            self._decoder.read(int(index), self.array[index])
            if self.segmentation is not None:
                self._decoder.read_segmentation(int(index), self.segmentation[index])
        return len(block)


class _Batches:
    """A grain random-access source whose element `i` is this process's part of global batch `i`."""

    def __init__(
        self,
        dataset: Dataset,
        plan: Callable[[int], np.ndarray],
        count: int,
        rows: slice,
        decoder: Decoder | None,
        cache: DecodedCache | None,
        segmentation: bool,
        captions: np.ndarray | None,
    ):
        self._captions = captions
        self._dataset, self._plan, self._count, self._rows = dataset, plan, count, rows
        self._decoder, self._cache, self._segmentation = decoder, cache, segmentation

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, step: int) -> Batch:
        global_indices = self._plan(int(step))
        own = global_indices[self._rows]
        # Rows behind the end of the global batch are padding, on whichever process they fall.
        index = np.full(self._rows.stop - self._rows.start, -1, np.int64)
        index[: len(own)] = own
        valid = index >= 0
        labels = self._dataset.labels[index]
        labels[~valid] = 0
        ids = self._dataset.ids[index]
        ids[~valid] = ""
        batch = {"label": labels, "id": ids, "index": index, "valid": valid}
        if self._captions is not None:
            batch["caption"] = np.where(valid[:, None], self._captions[index], self._captions.dtype.type(0))
        if self._decoder is not None:
            image = np.empty((len(index), *self._decoder.shape), self._decoder.dtype)
            for row in range(len(own)):
                self._decoder.read(int(own[row]), image[row])
            image[len(own) :] = 0
            batch["image"] = image
            if self._segmentation:
                batch["segmentation"] = np.zeros(image.shape[:3], np.uint8)
                for row in range(len(own)):
                    self._decoder.read_segmentation(int(own[row]), batch["segmentation"][row])
        elif self._cache is not None:
            image = self._cache.array[index]
            image[~valid] = 0
            batch["image"] = image
            if self._segmentation:
                batch["segmentation"] = np.where(valid[:, None, None], self._cache.segmentation[index], np.uint8(0))
        return batch

    def __repr__(self) -> str:
        return f"_Batches({self._dataset.name!r}, {self._dataset.fingerprint!r}, rows={self._rows})"


def _read_options(threads: int, prefetch: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, threads))


def process_rows(batch_size: int, process_index: int = 0, process_count: int = 1, pad_to: int = 1) -> slice:
    """The rows of the padded global batch that a process loads: one contiguous block for each process, equally long.

    Args:
        batch_size: of the global batch.
        pad_to: what each process's rows must be a multiple of (its local devices).
    """
    block = pad_to * -(-batch_size // (process_count * pad_to))
    return slice(process_index * block, (process_index + 1) * block)


def _iterate(
    dataset: Dataset,
    plan: Callable[[int], np.ndarray],
    steps: range,
    needed: np.ndarray,
    batch_size: int,
    *,
    image_size: int,
    channels: int | None,
    threads: int | None,
    prefetch: int | None,
    resize: str,
    cache: "DecodedCache | str | None",
    segmentation: bool,
    captions: np.ndarray | None,
    process_index: int,
    process_count: int,
    pad_to: int,
) -> Iterator[Batch]:
    if isinstance(cache, str) and cache != "device":
        raise ValueError(f"cache must be a DecodedCache, 'device' or None, not {cache!r}")
    if segmentation:
        dataset.check_segmentation()
    threads = available_cores() if threads is None else threads
    prefetch = 2 * threads if prefetch is None else prefetch
    decoder = Decoder(dataset, image_size, channels, resize) if cache is None else None
    held = cache if isinstance(cache, DecodedCache) else None
    if held is not None:
        if held.array.shape[1:] != image_shape(dataset, image_size, channels):
            raise ValueError(f"the cache holds images of shape {held.array.shape[1:]}, not of size {image_size}")
        if segmentation and held.segmentation is None:
            raise ValueError("the cache holds no segmentations: make it with segmentation=True")
        held.fill(needed)
    rows = process_rows(batch_size, process_index, process_count, pad_to)
    source = _Batches(dataset, plan, steps.stop, rows, decoder, held, segmentation, captions)
    batches = grain.MapDataset.source(source)[steps.start : steps.stop]
    iterator = iter(batches.to_iter_dataset(_read_options(threads, prefetch)))
    # Decoding begins now, not at the first `next`: the caller compiles its step meanwhile.
    iterator.start_prefetch()
    return iterator


def train_batches(
    dataset: Dataset,
    sampler: Sampler,
    batch_size: int,
    start_step: int,
    num_steps: int,
    image_size: int,
    channels: int | None = None,
    *,
    threads: int | None = None,
    prefetch: int | None = None,
    resize: str = "stretch",
    cache: "DecodedCache | str | None" = None,
    segmentation: bool = False,
    captions: np.ndarray | None = None,
    process_index: int = 0,
    process_count: int = 1,
    pad_to: int = 1,
) -> Iterator[Batch]:
    """Yields this process's part of the global batches of steps `start_step`, ..., `start_step + num_steps - 1`.

    Args:
        dataset: where the images come from.
        sampler: decides the examples of each step.
        batch_size: B of the global batch.
        image_size: S, in pixels.
        channels: C; the data set's own when None.
        threads: decoding threads, each works on a batch; all cores when None.
        prefetch: batches in the making or waiting; twice the threads when None.
        resize: "stretch" or "crop".
        cache: a `DecodedCache` to take the images from; "device" to leave them out (the trainer holds them on the
            device and gathers by `index`); None to decode them.
        segmentation: whether batches that hold images hold `segmentation` as well, uint8 class numbers `[b, S, S]`.
        captions: token ids int32 `[N, L]` of all examples, from which batches get `caption`.
        process_index, process_count: which part of the global batch; see `process_rows`.
        pad_to: what the rows of each process must be a multiple of (its local devices).

    Returns:
        An iterator of dicts with leading axis b, this process's rows: `image` uint8 or uint16 `[b, S, S, C]` (float32
        `[b, 1, G, 1]` for vectors), `label` int32 `[b]` or float32 `[b, K]`, `id` object (str) and `index` int64 `[b]`,
        `valid` bool `[b]`. Padding has valid False, index -1, id "", zeros elsewhere. Raises UserError at bad records.
    """
    return _iterate(
        dataset,
        lambda step: sampler.batch(step, batch_size),
        range(start_step, start_step + num_steps),
        sampler.indices,
        batch_size,
        image_size=image_size,
        channels=channels,
        threads=threads,
        prefetch=prefetch,
        resize=resize,
        cache=cache,
        segmentation=segmentation,
        captions=captions,
        process_index=process_index,
        process_count=process_count,
        pad_to=pad_to,
    )


def eval_batches(
    dataset: Dataset,
    indices: np.ndarray,
    batch_size: int,
    image_size: int,
    channels: int | None = None,
    *,
    threads: int | None = None,
    prefetch: int | None = None,
    resize: str = "stretch",
    cache: "DecodedCache | str | None" = None,
    segmentation: bool = False,
    captions: np.ndarray | None = None,
    process_index: int = 0,
    process_count: int = 1,
    pad_to: int = 1,
) -> Iterator[Batch]:
    """Yields each of `indices` once and in order; every batch is of full size, the last one padded.

    The arguments and the batches are those of `train_batches`.
    """
    indices = np.asarray(indices, np.int64)
    return _iterate(
        dataset,
        lambda step: indices[step * batch_size : (step + 1) * batch_size],
        range(-(-len(indices) // batch_size)),
        indices,
        batch_size,
        image_size=image_size,
        channels=channels,
        threads=threads,
        prefetch=prefetch,
        resize=resize,
        cache=cache,
        segmentation=segmentation,
        captions=captions,
        process_index=process_index,
        process_count=process_count,
        pad_to=pad_to,
    )


def stage(batches: Iterable[Batch], place: Callable[[Batch], Placed], depth: int = 2) -> Iterator[Placed]:
    """Prefetch to the device: applies `place` (an asynchronous `jax.device_put`) up to `depth` batches ahead."""
    waiting: collections.deque[Placed] = collections.deque()
    for batch in batches:
        waiting.append(place(batch))
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting
