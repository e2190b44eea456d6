"""How does a raw download become a prepared dataset?

    python -m input_pipeline.prepare --study=NAME --source=RAW --out=DIR [--workers=N] [--seed=0] [--folds=K]
        [--set key=value ...] [--max_bad=0.05] [--boxes=boxes.csv] [--runner=direct|dataflow|flink|spark]

RAW is a folder (or its address, s3://…) or a .zip and is only read. DIR appears when it is complete, with TFRecord
shards, an index, TFDS metadata, `splits.json` and `ingest_report.json`; the same input gives the same bytes, whatever
the number of workers.
Studies: hpa, blood_cells, pneumonia, lung_masks, captions (photos with captions, or the captions alone with
--captions_only), folder (class folders), table (a CSV with paths and labels); their options are described in
input_pipeline/studies/. With the boxes that research.segment found, images are cropped. DIR may be an address (s3://…),
and collections beyond one machine are prepared under Apache Beam (input_pipeline/beam_prepare.py).
The study cancer_genes has vectors of gene expression instead of images (input_pipeline/expression/).
"""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from input_pipeline import beam_prepare, duplicates, ingest_report, raw, remote_dataset, remote_source, splits
from input_pipeline import boxes as boxes_of
from input_pipeline.assemble import Assignment, Kept, ShardWriter, Spool, grey_pixels, vectors, write_dataset
from input_pipeline.building import building, check_target
from input_pipeline.cli import UserError, atomic_write, progress, run
from input_pipeline.image_headers import MAX_PIXELS
from input_pipeline.ingest import Ingested, Reader
from input_pipeline.prepare_flags import MAX_BAD, check_arguments, check_fractions, pairs, parse, shares
from input_pipeline.records import seal
from input_pipeline.signatures import SIGNATURE
from input_pipeline.simulate import MARKER
from input_pipeline.studies import EXPRESSION, load
from input_pipeline.studies import manifest as manifests
from input_pipeline.studies.manifest import Manifest

_FEW = 64
"""Fewer images than this are read sooner than worker processes start."""


def _refuse_flags_of_images(study: str, given: Mapping[str, bool]) -> None:
    """Refuses what only a study of images can have; `given` is flag -> whether it was set."""
    for flag in (flag for flag, was_set in given.items() if was_set):
        raise UserError(f"--{flag} is about pictures, and the study {study} has none: leave it out.")


def _too_many(skipped: Sequence[tuple[str, str]], seen: int, manifest: Manifest, max_bad: float) -> UserError:
    reason, found = next(iter(ingest_report.by_reason(skipped).items()))
    total = f"{manifest.unit}s of {len(manifest.examples)}"
    return UserError(
        f"{len(skipped)} of the first {seen} {total} cannot be used, more than {max_bad:.0%} of all "
        f"({found['count']} times: {reason}, for example {found['first'][0]}): download them again, or raise --max_bad."
    )


def _same_depth(kept: list[Kept], skipped: list[tuple[str, str]]) -> list[int]:
    """Indices of the images of the more frequent bit depth; a batch has one data type."""
    depths = collections.Counter(item.facts.bit_depth for item in kept)
    if len(depths) < 2:
        return list(range(len(kept)))
    depth = max(depths, key=lambda d: (depths[d], d))
    for item in kept:
        if item.facts.bit_depth != depth:
            skipped.append((item.example.id, f"{item.facts.bit_depth}-bit image among {depth}-bit images"))
    return [i for i, item in enumerate(kept) if item.facts.bit_depth == depth]


class _Intake:
    """Images (or vectors) read so far: their bytes and signatures in temporary files, all the rest in memory."""

    def __init__(self, folder: pathlib.Path, manifest: Manifest):
        self.manifest = manifest
        self.spool = Spool(folder / "images.spool")
        self._signatures = Spool(folder / "signatures.spool")
        self._rows: list[int] = []
        self.kept: list[Kept] = []
        self.skipped: list[tuple[str, str]] = []

    def read_all(self, read: Iterator[Ingested], max_bad: float) -> None:
        """Takes in every example of the manifest, `read` in its order.

        Raises:
            UserError: as soon as more than `max_bad` of all images are known to be unusable.
        """
        examples = self.manifest.examples
        with contextlib.closing(read) as outcomes:
            for example, found in zip(examples, progress(outcomes, len(examples), "reading"), strict=True):
                if found.error:
                    self.skipped.append((example.id, found.error))
                    if len(self.skipped) > max_bad * len(examples):
                        seen = len(self.kept) + len(self.skipped)
                        raise _too_many(self.skipped, seen, self.manifest, max_bad)
                    continue
                if found.signature is not None:
                    self._signatures.append(found.signature.tobytes())
                place = self.spool.append(found.data) if found.data else (0, found.num_bytes)
                self.kept.append(Kept(example, dataclasses.replace(found, data=b"", signature=None), place))
        self.spool.flush()
        self._signatures.flush()
        self._rows = _same_depth(self.kept, self.skipped)
        self.kept = [self.kept[i] for i in self._rows]
        if len(self.skipped) > max_bad * len(examples):
            raise _too_many(self.skipped, len(examples), self.manifest, max_bad)

    @property
    def signatures(self) -> np.ndarray | None:
        """Signatures of the images kept, `[N]`, or None where none were taken; read from disk, not held."""
        if not os.path.getsize(self._signatures.path):
            return None
        # Mapped for reading only: a write into a mapped file on a full disk would kill the process.
        stored = np.memmap(self._signatures.path, SIGNATURE, "r")
        return stored if len(stored) == len(self._rows) else stored[self._rows]

    def __enter__(self) -> "_Intake":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Deletes the temporary files."""
        self.spool.remove()
        self._signatures.remove()


def _check_kept(manifest: Manifest, kept: Sequence[Kept], source: raw.RawSource) -> None:
    if not kept:
        raise UserError(f"none of the {manifest.unit}s in {source.path} can be used: download them again.")
    found = {label for item in kept if item.example.role in (None, "train") for label in item.example.labels}
    absent = [name for label, name in enumerate(manifest.class_names) if label not in found]
    if absent and not manifest.multi_label:
        raise UserError(
            f"no {manifest.unit} of the class {absent[0]} in {source.path} can be used for training: "
            f"restore its {manifest.unit}s or remove the class."
        )


def join_groups(clusters: Sequence[str], given: Sequence[str | None]) -> list[str]:
    """Joins clusters of duplicates with the groups that the study gives (patients), transitively.

    Args:
        clusters: name of the cluster of each of N images.
        given: group that the study gives it, or None.

    Returns:
        N names: the smallest given group in the joined set, or the cluster's name where none is given.
    """
    parent: dict[tuple[int, str], tuple[int, str]] = {}

    def find(key: tuple[int, str]) -> tuple[int, str]:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    # Given groups sort before clusters, so that the smallest member of a set, its root, carries the name wanted.
    for cluster, group in zip(clusters, given, strict=True):
        first, second = sorted((find((1, cluster)), find((0, group)) if group is not None else find((1, cluster))))
        parent[second] = first
    return [find((1, cluster))[1] for cluster in clusters]


def _assign(manifest: Manifest, kept: Sequence[Kept], groups: Sequence[str], header: Mapping) -> list[Assignment]:
    """Roles and folds; the official test set stays out of the folds."""
    labels = [item.example.labels for item in kept]
    fixed = [item.example.role for item in kept]
    roles = splits.assign_roles(labels, groups, fixed, header["fractions"], header["seed"], manifest.multi_label)
    folds: Sequence[int] = [-1] * len(kept)
    if header["folds"]:
        folds = splits.assign_folds(
            labels,
            groups,
            header["folds"],
            header["seed"],
            manifest.multi_label,
            eligible=[
                official != "test" and role not in (splits.UNLABELLED, splits.DUPLICATE_OF_TEST)
                for official, role in zip(fixed, roles, strict=True)
            ],
            class_names=manifest.class_names,
        )
    return [
        Assignment(role, group, int(fold) if fold >= 0 else None)
        for role, group, fold in zip(roles, groups, folds, strict=True)
    ]


def prepare(
    study: str,
    source: str | os.PathLike,
    out: str | os.PathLike,
    workers: int | None = None,
    seed: int = 0,
    folds: int = 0,
    options: Mapping[str, str] | None = None,
    fractions: Mapping[str, float] | None = None,
    simulated: bool = False,
    max_bad: float = MAX_BAD,
    max_pixels: int | None = None,
    near_duplicates: bool | None = None,
    boxes: str | os.PathLike | None = None,
    runner: str = "",
    beam_options: str = "",
) -> dict:
    """Prepares a dataset.

    Args:
        study: a name in `input_pipeline.studies.STUDIES`.
        source: folder or .zip of the raw download, or the address of a folder in an object store.
        out: folder that will appear, or its address in an object store (see `remote_dataset`).
        workers: processes that read images; None for one for each core.
        seed: of the carved roles and the folds.
        folds: number of grouped stratified folds to store, or 0.
        options: of the study, such as `{"channels": "green"}`.
        fractions: shares of the carved roles, where they differ from `FRACTIONS`.
        simulated: whether the images are; a file `SIMULATED.txt` in the source says it too.
        max_bad: share of unusable images above which nothing is written. max_pixels: of an image, None: `MAX_PIXELS`.
        near_duplicates: whether augmented and re-encoded copies are looked for as well; None: where there are images.
        boxes: table of the part of each image that is kept, see `input_pipeline.boxes`, or None for whole images.
        runner, beam_options: see `beam_prepare`; "" works on this machine.

    Returns:
        The content of `ingest_report.json`.

    Raises:
        UserError: a mistake in the arguments or the data; nothing has been written then.
    """
    check_arguments(workers, seed, folds, max_bad, max_pixels)
    fractions = check_fractions(fractions or {})
    load(study)
    beam_prepare.check(runner, beam_options)
    given = {"boxes": boxes is not None, "max_pixels": max_pixels is not None, "duplicates=near": near_duplicates}
    _refuse_flags_of_images(study, given if study in EXPRESSION else {})
    source = remote_source.open_source(source)
    table = boxes_of.read(boxes) if boxes else None
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(remote_dataset.pushed(out))
        folder, manifest = stack.enter_context(_scanned(study, source, target, dict(options or {})))
        intake = stack.enter_context(_Intake(folder, manifest))
        _refuse_flags_of_images(study, {} if manifest.has_files else given)
        simulated = simulated or any(name.rpartition("/")[2] == MARKER for name in source.names())
        header = _header(study, simulated, seed, manifest, fractions, folds)
        workers = workers or (1 if len(manifest.examples) < _FEW else len(os.sched_getaffinity(0)))
        reader = _reader(source, manifest, table, max_pixels, near_duplicates)
        with beam_prepare.machines(runner, beam_options, out, folder, manifest, workers) as work:
            intake.read_all(work.read(reader, manifest.examples) if manifest.has_files else _made(manifest), max_bad)
            return _write(folder, intake, source, header, workers, table, work.write_shards)


def _made(manifest: Manifest):
    """The examples of a study without files: vectors of genes, or captions with a grey pixel each."""
    return vectors(manifest) if manifest.genes else grey_pixels(manifest)


def _reader(source, manifest: Manifest, table, max_pixels: int | None, near_duplicates: bool | None) -> Reader:
    crops = table.of(manifest.examples) if table else {}
    near = near_duplicates is not False
    return Reader(source, manifest.channels, max_pixels or MAX_PIXELS, near, crops, manifest.cell_finder)


@contextlib.contextmanager
def _scanned(
    study: str, source: raw.RawSource, out: pathlib.Path, options: dict[str, str]
) -> Iterator[tuple[pathlib.Path, Manifest]]:
    """The folder that becomes `out`, see `building`, and what the study says about the source.

    Images are listed before the folder is made; vectors are read into a file in it, which is gone before it is `out`.
    """
    check_target(out, pathlib.Path(source.path))
    with contextlib.ExitStack() as stack:
        if study in EXPRESSION:
            folder = stack.enter_context(building(out))
            scratch = folder / "scratch"
            scratch.mkdir()
            # Leaves in reverse: the scratch folder goes before the folder gets its name.
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            manifest = load(study).scan(source, options, scratch)
            manifests.check(manifest, source)
        else:
            manifest = load(study).scan(source, options)
            manifests.check(manifest, source)
            folder = stack.enter_context(building(out))
        yield folder, manifest


def _header(study: str, simulated: bool, seed: int, manifest: Manifest, fractions: Mapping, folds: int) -> dict:
    """What `splits.json` says besides the examples."""
    return {
        "study": study,
        "simulated": simulated,
        "seed": seed,
        "rule": splits.RULE,
        "class_names": list(manifest.class_names),
        "multi_label": manifest.multi_label,
        "fractions": fractions,
        "folds": folds,
    }


def _write(
    folder: pathlib.Path,
    intake: _Intake,
    source: raw.RawSource,
    header: dict,
    workers: int,
    table: boxes_of.Boxes | None,
    write_shards: ShardWriter | None,
) -> dict:
    """Groups and splits what was read and writes the dataset; returns the report."""
    manifest, kept = intake.manifest, intake.kept
    _check_kept(manifest, kept, source)
    ids = [item.example.id for item in kept]
    labels = [item.example.labels or None for item in kept]
    hashes = [item.facts.content_hash for item in kept]
    print(f"looking for copies among {len(kept)} {manifest.unit}s, then writing", file=sys.stderr, flush=True)
    clusters = duplicates.cluster(ids, labels, hashes, intake.signatures, workers)
    groups = join_groups(clusters.groups, [item.example.group for item in kept])
    assignments = _assign(manifest, kept, groups, header)
    # Copies of official test images belong to no role: they are listed in the report, not stored.
    stored = [i for i, a in enumerate(assignments) if a.role != splits.DUPLICATE_OF_TEST]
    members, their = [kept[i] for i in stored], [assignments[i] for i in stored]
    write_dataset(folder, manifest, members, their, intake.spool, header, write_shards=write_shards)
    for name, content in manifest.tables.items():
        atomic_write(folder / name, content)
    intake.remove()
    for warning in ingest_report.warnings(manifest, kept, assignments):
        print(f"warning: {warning}", file=sys.stderr)
    report = ingest_report.build(manifest, source, kept, intake.skipped, assignments, clusters.statistics, header)
    if table:
        report["boxes"] = ingest_report.crops(table, kept)
        atomic_write(folder / boxes_of.NAME, table.content)
    seal(folder)
    atomic_write(folder / "ingest_report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return report


def _summary(report: dict, out: str) -> str:
    counts, duplicated = report["counts"], report["duplicates"]
    unit = "samples" if "expression" in report else "images"
    unit = "records" if report["notes"].get("captions_only") else unit
    roles = ", ".join(f"{role} {entry['files']}" for role, entry in report["roles"].items())
    lines = [
        f"{out}: {counts['stored']} of {counts['read']} {unit} stored ({roles})",
        f"  repaired {counts['repaired']}, unusable {counts['skipped']}, left out by the study {counts['left_out']}",
        f"  {duplicated['statistics']['groups']} groups of copies, {duplicated['exact_copies']} exact copies",
    ]
    if "boxes" in report:
        cropped = report["boxes"]["cropped"]
        lines.append(f"  {cropped} cropped to their boxes, {counts['readable'] - cropped} left whole")
    if report["copies_of_test"]["count"]:
        lines.append(f"  {report['copies_of_test']['count']} copies of official test {unit} left out")
    for part in ("skipped", "left_out"):
        for reason, entry in list(report[part].items())[:5]:
            lines.append(f"  {entry['count']} x {reason}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: prepares and prints a summary."""
    flags = parse(arguments)
    report = prepare(
        flags.study,
        flags.source,
        flags.out,
        workers=flags.workers,
        seed=flags.seed,
        folds=flags.folds,
        options=pairs("--set", flags.set),
        fractions=shares(flags.fractions),
        max_bad=flags.max_bad,
        max_pixels=flags.max_pixels,
        near_duplicates=flags.duplicates and flags.duplicates == "near",
        boxes=flags.boxes,
        runner=flags.runner,
        beam_options=flags.beam_options,
    )
    print(_summary(report, flags.out))


if __name__ == "__main__":
    run(main)
