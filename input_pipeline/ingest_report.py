"""What does `ingest_report.json` tell about a prepared dataset: what was read, kept, changed, left out and doubled?

It holds no times, no machine and no absolute paths, so that the same input gives the same bytes.
"""

import collections
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from input_pipeline import raw
from input_pipeline.assemble import Assignment, Kept
from input_pipeline.boxes import Boxes
from input_pipeline.splits import DUPLICATE_OF_TEST
from input_pipeline.studies.manifest import Manifest

FIRST = 20
"""How many ids are listed for a reason that may have thousands."""

MOST_SETS = 1000
"""How many sets of exact duplicates are listed."""


def by_reason(problems: Iterable[tuple[str, str]], limit: int | None = FIRST) -> dict[str, dict]:
    """Groups `(id, reason)`: reason -> count and (first) ids, the most frequent reason first."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    for identifier, reason in problems:
        found[reason].append(identifier)
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return {reason: {"count": len(ids), "ids" if limit is None else "first": ids[:limit]} for reason, ids in ordered}


def duplicates_of(kept: Sequence[Kept], assignments: Sequence[Assignment], statistics: dict) -> dict:
    """Sets of ids whose decoded pixels are identical, and what is remarkable about them."""
    sets: dict[str, list[int]] = collections.defaultdict(list)
    for i, item in enumerate(kept):
        sets[item.facts.content_hash].append(i)
    repeated = [members for members in sets.values() if len(members) > 1]
    across, conflicting, same_bytes = [], [], 0
    for members in repeated:
        ids = [kept[i].example.id for i in members]
        same_bytes += len(members) - len({kept[i].facts.file_hash for i in members})
        if len({kept[i].example.role for i in members}) > 1:
            across.append(ids)
        if len({kept[i].example.labels for i in members if assignments[i].role != "unlabelled"}) > 1:
            conflicting.append(ids)
    return {
        "statistics": statistics,
        "exact_sets": len(repeated),
        "exact_copies": sum(len(members) - 1 for members in repeated),
        "byte_identical_copies": same_bytes,
        "sets_across_official_roles": {"count": len(across), "first": across[:FIRST]},
        "sets_with_conflicting_labels": {"count": len(conflicting), "first": conflicting[:FIRST]},
        "sets": [[kept[i].example.id for i in members] for members in repeated[:MOST_SETS]],
    }


def clusters_by_class(kept: Sequence[Kept], assignments: Sequence[Assignment], manifest: Manifest) -> dict[str, dict]:
    """For each class: files, groups, groups of one file, the median and largest size, and size -> number of groups."""
    result = {}
    for label, name in enumerate(manifest.class_names):
        groups = [a.group for k, a in zip(kept, assignments, strict=True) if label in k.example.labels]
        sizes = sorted(collections.Counter(groups).values())
        histogram = collections.Counter(sizes)
        result[name] = {
            "files": len(groups),
            "groups": len(sizes),
            "singletons": histogram[1],
            "median_size": float(np.median(sizes)) if sizes else 0.0,
            "largest": sizes[-1] if sizes else 0,
            "sizes": {str(size): count for size, count in sorted(histogram.items())},
        }
    return result


def _roles(kept: Sequence[Kept], assignments: Sequence[Assignment], manifest: Manifest) -> dict[str, dict]:
    result: dict[str, dict] = {}
    for role in sorted({a.role for a in assignments} - {DUPLICATE_OF_TEST}):
        members = [i for i, a in enumerate(assignments) if a.role == role]
        labels = collections.Counter(label for i in members for label in kept[i].example.labels)
        result[role] = {
            "files": len(members),
            "groups": len({assignments[i].group for i in members}),
            "labels": {name: labels[i] for i, name in enumerate(manifest.class_names)},
        }
    return result


def warnings(manifest: Manifest, kept: Sequence[Kept], assignments: Sequence[Assignment]) -> list[str]:
    """Which roles lack which classes altogether, in words; figures of such a class cannot be relied on."""
    sentences = []
    for role, entry in _roles(kept, assignments, manifest).items():
        absent = [name for name, count in entry["labels"].items() if not count]
        if absent and role != "unlabelled":
            sentences.append(f"no {manifest.unit} in {role} has the label {', '.join(absent)}")
    return sentences


def crops(table: Boxes, kept: Sequence[Kept]) -> dict:
    """The part `boxes`: how many of the readable images were cropped, and which others stayed whole and why.

    Args:
        table: what `prepare --boxes` was given.
        kept: what could be read.
    """
    rows = [(item.example.id, table.row(item.example)) for item in kept]
    whole = [(name, row.reason if row else "no row") for name, row in rows if row is None or row.status != "cropped"]
    return {
        "file_sha256": hashlib.sha256(table.content).hexdigest(),
        "cropped": len(rows) - len(whole),
        "whole": by_reason(whole, limit=None),
    }


def _count(values: Iterable, limit: int = FIRST) -> dict[str, int]:
    counts = collections.Counter(map(str, values))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return dict(ordered[:limit])


def _contents(manifest: Manifest, kept: Sequence[Kept]) -> dict[str, dict]:
    """The part `images`: formats and sizes; or `expression`: how many genes, and which, as a hash of their names."""
    if manifest.genes:
        names = hashlib.sha256("\n".join(manifest.genes).encode()).hexdigest()
        return {"expression": {"genes": len(manifest.genes), "genes_sha256": names, "dtype": "float32"}}
    return {
        "images": {
            "formats": _count(item.facts.format for item in kept),
            "sizes": _count(f"{item.facts.width}x{item.facts.height}" for item in kept),
            "channels": _count(item.facts.channels for item in kept),
            "bit_depths": _count(item.facts.bit_depth for item in kept),
        }
    }


def build(
    manifest: Manifest,
    source: raw.RawSource,
    kept: Sequence[Kept],
    skipped: Sequence[tuple[str, str]],
    assignments: Sequence[Assignment],
    statistics: dict,
    header: dict,
) -> dict:
    """The content of `ingest_report.json`.

    Args:
        manifest, source: what was read.
        kept, assignments: what could be read, in the same order; copies of official test images are among them.
        skipped: `(id, reason)` of images that could not be used.
        statistics: of the clustering.
        header: what `splits.json` says besides the examples.
    """
    content = hashlib.sha256()
    for item in sorted(kept, key=lambda item: item.example.id):
        content.update(f"{item.example.id}\0{item.facts.file_hash}\n".encode())
    repaired = [(item.example.id, item.facts.repaired) for item in kept if item.facts.repaired]
    copies = [k.example.id for k, a in zip(kept, assignments, strict=True) if a.role == DUPLICATE_OF_TEST]
    left_out = [*manifest.problems, *source.problems]
    folds = collections.Counter(a.fold for a in assignments if a.fold is not None)
    return {
        **{key: header[key] for key in ("study", "simulated", "seed", "rule", "class_names", "multi_label")},
        "official_split": manifest.official_split,
        "counts": {
            "read": len(manifest.examples),
            "readable": len(kept),
            "stored": sum(a.role != DUPLICATE_OF_TEST for a in assignments),
            "skipped": len(skipped),
            "repaired": len(repaired),
            "left_out": len(left_out),
        },
        "skipped": by_reason(skipped, limit=None),
        "repaired": by_reason(repaired),
        "left_out": by_reason(left_out),
        "copies_of_test": {"count": len(copies), "ids": copies},
        "duplicates": duplicates_of(kept, assignments, statistics),
        "clusters": clusters_by_class(kept, assignments, manifest),
        "roles": _roles(kept, assignments, manifest),
        "warnings": warnings(manifest, kept, assignments),
        "folds": {str(fold): count for fold, count in sorted(folds.items())},
        **_contents(manifest, kept),
        "source": {
            "files": len(source.names()),
            "listing_sha256": source.digest(),
            "content_sha256": content.hexdigest(),
        },
        "notes": manifest.notes,
    }
