"""How do ingested images, or vectors, with roles become the files of a prepared dataset?

Examples of a role are ordered by the SHA-256 of their id, as TFDS does, so that a program that reads the shards one
after the other meets the classes mixed. Encoded images wait in a spool file between ingesting and this step, so that a
raw file is read once and memory holds one image at a time.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from input_pipeline import images, tfds_metadata
from input_pipeline.cli import atomic_write
from input_pipeline.example_proto import encode_example
from input_pipeline.ingest import Ingested
from input_pipeline.records import FRAMING, RecordWriter, index_shard, write_manifest
from input_pipeline.studies.manifest import Manifest, RawExample

SHARD_BYTES = 128 * 2**20
"""A shard holds about this many bytes of images at most."""


class Spool:
    """Encoded images in one temporary file, appended once and read back in any order."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._file = open(path, "w+b")
        self._end = 0

    def append(self, data: bytes) -> tuple[int, int]:
        """Stores the bytes; returns where they lie (offset, size)."""
        self._file.write(data)
        place = (self._end, len(data))
        self._end += len(data)
        return place

    def flush(self) -> None:
        """Makes what has been appended readable."""
        self._file.flush()

    def read(self, place: tuple[int, int]) -> bytes:
        """The bytes at (offset, size)."""
        offset, size = place
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise OSError(5, "a temporary file is shorter than what was written to it", str(self.path))
        return data

    def remove(self) -> None:
        """Closes and deletes the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def vectors(manifest: Manifest) -> Iterator[Ingested]:
    """Yields the vector of every example in order, as `ingest` does images; `data` are float32, little-endian."""
    for row in manifest.values:
        row = np.ascontiguousarray(row, "<f4")
        if not np.isfinite(row).all():
            gene = manifest.genes[int(np.flatnonzero(~np.isfinite(row))[0])]
            yield Ingested(error=f"its value of the gene {gene} is no finite number")
            continue
        data, digest = row.tobytes(), hashlib.sha256(row).hexdigest()
        yield Ingested(
            data=data, format="float32", height=1, width=row.size, channels=1, bit_depth=32, file_hash=digest,
            content_hash=digest,
        )  # fmt: skip


def grey_pixels(manifest: Manifest) -> Iterator[Ingested]:
    """Yields the same picture, one grey pixel, for every example in order, where only captions are of interest.

    Each has its own content hash, so that nobody takes these pictures for copies of one another.
    """
    data = images.encode_png(np.full((1, 1, 1), 128, np.uint8))
    for example in manifest.examples:
        record = f"{example.id}\0{example.caption or ''}".encode("utf-8", "surrogateescape")
        yield Ingested(
            data=data, format="PNG", height=1, width=1, channels=1, bit_depth=8,
            file_hash=hashlib.sha256(record).hexdigest(), content_hash=hashlib.sha256(example.id.encode()).hexdigest(),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Kept:
    """An example whose image (and segmentation) is stored: `facts` without the bytes, which lie at `place`."""

    example: RawExample
    facts: Ingested
    place: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Role, group and fold (or None) of an example."""

    role: str
    group: str
    fold: int | None


def record_order(kept: Sequence[Kept], assignments: Sequence[Assignment]) -> list[int]:
    """Indices of the examples in the order in which they are stored: by role, then by hash of the id."""
    key = [(a.role, hashlib.sha256(k.example.id.encode()).digest()) for k, a in zip(kept, assignments, strict=True)]
    return sorted(range(len(kept)), key=key.__getitem__)


def _shards(sizes: Sequence[int], limit: int) -> list[int]:
    """Cuts examples of the given sizes into equal shards of about `limit` bytes at most; returns where each begins."""
    total = sum(sizes)
    count = max(1, -(-total // limit))
    starts, passed = [0], 0
    for index, size in enumerate(sizes):
        if len(starts) < count and index > starts[-1] and passed + size / 2 >= total * len(starts) / count:
            starts.append(index)
        passed += size
    return starts


@dataclasses.dataclass(frozen=True)
class Shard:
    """What is to be written into one file: examples of one role, in order."""

    name: str
    role: str
    members: Sequence[tuple[Kept, Assignment]]


ShardWriter = Callable[[Sequence[Shard]], dict[str, dict]]
"""Writes all shards and their indexes; returns their entries in `records.json` by name."""


def encode(example: RawExample, facts: Ingested, group: str, data: bytes, manifest: Manifest, captions: bool) -> bytes:
    """The record of an example; of the manifest only what it says of all examples is used."""
    label = list(example.labels)
    if not label and not manifest.multi_label:
        label = [-1]
    features = {"id": example.id.encode(), "group": group.encode(), "label": label}
    end = len(data) - facts.segmentation_bytes
    if manifest.genes:
        features[tfds_metadata.EXPRESSION] = data
    else:
        sizes = {"image/height": facts.height, "image/width": facts.width, "image/channels": facts.channels}
        features |= {"image": data[:end], **sizes}
    if captions:
        features["caption"] = (example.caption or "").encode()
    if manifest.segmentation_classes:
        features["segmentation"] = data[end:]
    return encode_example(features)


def _plan(study: str, role: str, members: Sequence[tuple[Kept, Assignment]], shard_bytes: int) -> list[Shard]:
    """The shards of a role."""
    starts = _shards([kept.place[1] for kept, _ in members], shard_bytes)
    return [
        Shard(tfds_metadata.shard_name(study, role, index, len(starts)), role, members[start:end])
        for index, (start, end) in enumerate(zip(starts, [*starts[1:], len(members)], strict=True))
    ]


def _write_shards(folder: pathlib.Path, plan: Sequence[Shard], manifest: Manifest, spool: Spool) -> dict[str, dict]:
    """Writes all shards with their indexes; returns their entries in `records.json` by name."""
    captions = any_captions(manifest)
    for shard in plan:
        with RecordWriter(folder / shard.name) as writer:
            for kept, assignment in shard.members:
                data = spool.read(kept.place)
                writer.write(encode(kept.example, kept.facts, assignment.group, data, manifest, captions))
    return {shard.name: index_shard(folder / shard.name) for shard in plan}


def any_captions(manifest: Manifest) -> bool:
    """Whether the study has captions."""
    return any(example.caption is not None for example in manifest.examples)


def write_splits(
    folder: pathlib.Path,
    header: Mapping[str, object],
    kept: Sequence[Kept],
    assignments: Sequence[Assignment],
    order: Sequence[int],
) -> None:
    """Writes `splits.json`: the header, and role, group, labels and fold of each id in record order."""
    examples = {}
    for i in order:
        entry: dict = {"role": assignments[i].role, "group": assignments[i].group}
        entry["label"] = list(kept[i].example.labels)
        if assignments[i].fold is not None:
            entry["fold"] = assignments[i].fold
        examples[kept[i].example.id] = entry
    head = json.dumps(dict(header), ensure_ascii=False, indent=1)
    lines = ",\n".join(
        f"  {json.dumps(key, ensure_ascii=False)}: {json.dumps(entry, ensure_ascii=False)}"
        for key, entry in examples.items()
    )
    atomic_write(folder / "splits.json", f'{head[:-2]},\n "examples": {{\n{lines}\n }}\n}}\n')


def write_dataset(
    folder: pathlib.Path,
    manifest: Manifest,
    kept: Sequence[Kept],
    assignments: Sequence[Assignment],
    spool: Spool,
    header: Mapping[str, object],
    shard_bytes: int = SHARD_BYTES,
    *,
    write_shards: ShardWriter | None = None,
) -> None:
    """Writes shards, index, TFDS metadata and `splits.json` into an empty folder.

    Args:
        folder: where.
        manifest: the study.
        kept, assignments: the examples, in the same order.
        spool: where their encoded images lie.
        header: what `splits.json` says besides the examples.
        shard_bytes: about how large a shard may become.
        write_shards: what writes them where the images do not lie in the spool, see `beam_prepare`.
    """
    order = record_order(kept, assignments)
    by_role: dict[str, list[tuple[Kept, Assignment]]] = collections.defaultdict(list)
    for i in order:
        by_role[assignments[i].role].append((kept[i], assignments[i]))
    plan = [s for role, members in sorted(by_role.items()) for s in _plan(manifest.study, role, members, shard_bytes)]
    entries = write_shards(plan) if write_shards else _write_shards(folder, plan, manifest, spool)
    write_manifest(folder, entries)
    splits: dict[str, tuple[list[int], int]] = {}
    for shard in plan:
        lengths, num_bytes = splits.get(shard.role, ([], 0))
        records, size = entries[shard.name]["records"], entries[shard.name]["bytes"]
        splits[shard.role] = ([*lengths, records], num_bytes + size - FRAMING * records)
    write_splits(folder, header, kept, assignments, order)
    stored = {k.facts.channels for k in kept}
    depth = max(k.facts.bit_depth for k in kept)
    simulated = f"simulated {manifest.unit}s of " if header.get("simulated") else ""
    tfds_metadata.write(
        folder,
        manifest.study,
        manifest.class_names,
        manifest.multi_label,
        (1 if manifest.grey else max(stored), depth),
        any_captions(manifest),
        splits,
        f"{simulated}the study {manifest.study}, prepared by input_pipeline.prepare; roles by group: see splits.json.",
        manifest.segmentation_classes,
        manifest.genes,
    )
