"""How is a collection prepared that is too large for one machine?

    python -m input_pipeline.prepare … --runner=direct|dataflow|flink|spark [--beam_options="--region=… …"]

Apache Beam (extra `beam`, in an environment of its own) does what is work: it reads and describes every image, and
later writes every shard. What needs to see all images at once (copies, roles, shards) happens in between on this
machine, with what was found out about them, by the same code as without Beam; so the shards are the same bytes. No
image travels through Beam: the machine that writes a shard reads its images again, one at a time, and refuses those
that have changed.

RAW and DIR are read and written by all machines: a disk that they share, or addresses of a store (`s3://`, `gs://`).
They need this package as well: a container with it, or `--beam_options="--setup_file=./setup.py …"`.
Lists of what is to be done lie in `.beam/` in DIR meanwhile. Tasks may be repeated or run twice: they write the same.
"""

import base64
import concurrent.futures
import contextlib
import copy
import dataclasses
import functools
import io
import json
import os
import pathlib
import shlex
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

from input_pipeline import raw, remote_source
from input_pipeline.assemble import Shard, any_captions, encode
from input_pipeline.cli import UserError, atomic_write, progress
from input_pipeline.ingest import Ingested, Reader, ingest
from input_pipeline.records import RecordWriter, index_shard
from input_pipeline.remote import TRANSFERS, Store, is_remote
from input_pipeline.signatures import SIGNATURE
from input_pipeline.studies.manifest import Manifest, RawExample

RUNNERS = {"direct": "", "dataflow": "DataflowRunner", "flink": "FlinkRunner", "spark": "SparkRunner"}

CHUNK = 256
"""So many images are one task of reading."""

_SCRATCH = ".beam"


class Place:
    """The folder that all machines write to: one on a shared disk, or one of a store. Picklable."""

    def __init__(self, target: str):
        self._store = Store(target) if is_remote(target) else None
        self._folder = pathlib.Path(target)

    def put(self, name: str, content: bytes) -> None:
        """Writes a file whole."""
        if self._store:
            self._store.write(name, content)
            return
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)

    def put_file(self, path: pathlib.Path) -> None:
        """Copies a file of this machine whole, under its name."""
        if self._store:
            self._store.upload(path, path.name)
            return
        temporary = self._folder / _SCRATCH / uuid.uuid4().hex
        shutil.copyfile(path, temporary)
        os.replace(temporary, self._folder / path.name)

    def get(self, name: str) -> bytes:
        """The content of a file."""
        return self._store.read(name) if self._store else (self._folder / name).read_bytes()

    def clear(self) -> None:
        """Deletes the lists of what was to be done."""
        if self._store:
            self._store.delete(list(self._store.names(_SCRATCH)))
        else:
            shutil.rmtree(self._folder / _SCRATCH, ignore_errors=True)


class OneMachine:
    """Reads with worker processes on this machine; the shards are written from what was read."""

    write_shards = None

    def __init__(self, workers: int):
        self._workers = workers

    def read(self, reader: Reader, examples: Sequence[RawExample]) -> Iterator[Ingested]:
        """See `ingest`."""
        return ingest(reader, examples, self._workers)


class Cluster:
    """Reads images and writes shards by pipelines of Apache Beam.

    Args:
        runner: one of `RUNNERS`.
        options: of the pipeline, as one writes them for Beam.
        place: where shards and lists are written.
        manifest: the study.
        workers: processes of the runner `direct`.
    """

    def __init__(self, runner: str, options: str, place: Place, manifest: Manifest, workers: int):
        self._runner, self._options, self._workers = runner, options, workers
        self._place, self._manifest = place, manifest
        self._reader: Reader | None = None

    def read(self, reader: Reader, examples: Sequence[RawExample]) -> Iterator[Ingested]:
        """What is known of every example, in order; the images stay where they are.

        Raises:
            UserError: the pipeline failed.
        """
        self._reader = reader
        starts = range(0, len(examples), CHUNK)
        for number, start in enumerate(starts):
            self._put_list("read", number, reader, [{"example": e} for e in examples[start : start + CHUNK]])
        self._run("reading", functools.partial(_read_chunk, self._place, _light(reader)), len(starts))
        for number in range(len(starts)):
            for found in json.loads(self._place.get(_name("read", number, "done"))):
                if found["signature"]:
                    found["signature"] = np.frombuffer(base64.b64decode(found["signature"]), SIGNATURE)[0]
                yield Ingested(**found | {"data": b""})

    def write_shards(self, plan: Sequence[Shard]) -> dict[str, dict]:
        """Writes all shards and their indexes; returns their entries in `records.json` by name.

        Raises:
            UserError: the pipeline failed, or an image has changed since it was read.
        """
        for number, shard in enumerate(plan):
            members = [
                {"example": kept.example, "group": assignment.group, "file_hash": kept.facts.file_hash}
                for kept, assignment in shard.members
            ]
            self._put_list("write", number, self._reader, members, shard=shard.name)
        # Signatures were taken at the first reading; of the manifest goes what it says of all examples.
        reader = _light(self._reader)
        reader.near_duplicates = False
        manifest = dataclasses.replace(self._manifest, examples=[], problems=[], notes={}, tables={})
        write = functools.partial(_write_shard, self._place, reader, manifest, any_captions(self._manifest))
        self._run("writing", write, len(plan))
        return {
            shard.name: json.loads(self._place.get(_name("write", number, "done"))) for number, shard in enumerate(plan)
        }

    def _put_list(self, kind: str, number: int, reader: Reader, members: Sequence[dict], **more: str) -> None:
        """Writes what a task has to do: a pipeline's own description may not grow with the collection."""
        files = [name for member in members for name in (*member["example"].paths, *member["example"].masks)]
        sizes = {name: reader.source.size(name) for name in files}
        members = [member | {"example": dataclasses.asdict(member["example"])} for member in members]
        content = json.dumps({"members": members, "sizes": sizes} | more)
        self._place.put(_name(kind, number, "todo"), content.encode("ascii"))

    def _run(self, what: str, work: Callable[[int], int], count: int) -> None:
        beam, runner, options = _beam(self._runner, self._options, self._workers)
        for _ in progress([None], 1, f"{what} with Apache Beam ({self._runner}), {count} tasks"):
            pipeline = beam.Pipeline(runner=runner, options=options)
            _ = pipeline | beam.Create(range(count)) | beam.Reshuffle() | beam.Map(work)
            try:
                state = pipeline.run().wait_until_finish()
            except Exception as error:  # each runner has its own
                said = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
                mistake = next((line for line in said if "UserError: " in line), said[-1])
                text = mistake.rpartition("UserError: ")[2].strip()
                raise UserError(f"the Beam pipeline failed while {what}: {text[:300]}") from error
            if state not in (None, "DONE"):
                raise UserError(f"the Beam pipeline ended as {state} while {what}; its own log says why.")


@contextlib.contextmanager
def machines(
    runner: str, options: str, out: str | os.PathLike, folder: pathlib.Path, manifest: Manifest, workers: int
) -> Iterator[OneMachine | Cluster]:
    """Whoever reads and writes: this machine where no runner is named.

    Args:
        runner, options, manifest, workers: see `Cluster`; the runner may be "".
        out: what was asked for.
        folder: the local one that becomes it, or is pushed to it.
    """
    if not runner:
        yield OneMachine(workers)
        return
    if not manifest.has_files:
        raise UserError(f"--runner is for collections of image files, and the study {manifest.study} reads none here.")
    place = Place(os.fspath(out) if is_remote(out) else str(folder.absolute()))
    place.clear()
    try:
        yield Cluster(runner, options, place, manifest, workers)
    finally:
        place.clear()


def check(runner: str, options: str) -> None:
    """Refuses what cannot work before anything is read.

    Raises:
        UserError: the runner is unknown, Apache Beam or what the runner needs is missing, or Beam has no such option.
    """
    if options and not runner:
        raise UserError("--beam_options needs --runner.")
    if runner:
        _beam(runner, options, 1)


def _beam(name: str, options: str, workers: int) -> tuple:
    """The package, and the runner and options of a pipeline."""
    if name not in RUNNERS:
        raise UserError(f"--runner={name} is unknown; choose one of {', '.join(RUNNERS)}.")
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, WorkerOptions
        from apache_beam.portability.api import beam_provision_api_pb2
        from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo, FnApiRunner
        from apache_beam.runners.portability.portable_runner import JobServiceHandle
    except ImportError as error:
        raise UserError(
            "--runner needs Apache Beam, in an environment of its own since it holds other packages back: "
            "pip install -e '.[beam]'."
        ) from error
    said = io.StringIO()  # of argparse, which Beam leaves the options to: the usage, and in the last line the mistake
    try:
        with contextlib.redirect_stderr(said):
            parsed = PipelineOptions(shlex.split(options))
            known = parsed.get_all_options(drop_default=True)
            given = parsed.get_all_options(drop_default=True, retain_unknown_options=True)
        runner = None if name == "direct" else apache_beam.runners.runner.create_runner(RUNNERS[name])
    except (ValueError, ImportError, SystemExit) as error:
        text = said.getvalue().rpartition("error: ")[2] if isinstance(error, SystemExit) else str(error)
        raise UserError(f"--beam_options or --runner={name}: {' '.join(text.split())[:300]}.") from error
    if unknown := sorted(given.keys() - known.keys()):
        raise UserError(f"--beam_options: {unknown[0]} is no option of Apache Beam.")
    if name == "direct":
        direct = parsed.view_as(DirectOptions)
        if "direct_num_workers" not in known and workers > 1:
            direct.direct_num_workers, direct.direct_running_mode = workers, "multi_processing"
        parsed.view_as(WorkerOptions).default_sdk_harness_log_level = "ERROR"
        # This runner itself: Beam's DirectRunner would first try to download a program for the same purpose.
        encoded = JobServiceHandle.encode_pipeline_options(parsed.get_all_options())
        info = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
        runner = FnApiRunner(provision_info=ExtendedProvisionInfo(info))
    return apache_beam, runner, parsed


# What happens on the machines


def _name(kind: str, number: int, end: str) -> str:
    return f"{_SCRATCH}/{kind}-{number:08d}.{end}"


def _light(reader: Reader) -> Reader:
    """The reader without the listing of the source, which each task brings along for its own files; a .zip needs it."""
    reader = copy.copy(reader)
    if not isinstance(reader.source, raw.ZipSource):
        reader.source = copy.copy(reader.source)
        reader.source._sizes, reader.source._folders, reader.source.problems = {}, set(), []
    return reader


def _members(place: Place, reader: Reader, kind: str, number: int) -> tuple[Reader, dict, list[RawExample]]:
    """The reader for a task, what the task says, and its examples."""
    cv2.setNumThreads(1)
    task = json.loads(place.get(_name(kind, number, "todo")))
    if not isinstance(reader.source, raw.ZipSource):
        reader = copy.copy(reader)
        reader.source = copy.copy(reader.source)
        reader.source._sizes = task["sizes"]
    lists = [member["example"] for member in task["members"]]
    examples = [
        RawExample(**{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()})
        for entry in lists
    ]
    return reader, task, examples


def _read_each(reader: Reader, examples: Sequence[RawExample]) -> Iterator[Ingested]:
    """Reads examples in order; those in a store some at a time, as each has to be waited for."""
    if not isinstance(reader.source, remote_source.RemoteSource):
        yield from (reader.read(example.paths, example.masks) for example in examples)
        return
    with concurrent.futures.ThreadPoolExecutor(TRANSFERS) as pool:
        for start in range(0, len(examples), 2 * TRANSFERS):
            some = examples[start : start + 2 * TRANSFERS]
            yield from pool.map(lambda example: reader.read(example.paths, example.masks), some)


def _read_chunk(place: Place, reader: Reader, number: int) -> int:
    """Reads the images of a task and writes what is known of them."""
    reader, _, examples = _members(place, reader, "read", number)
    rows = []
    for found in _read_each(reader, examples):
        signature = "" if found.signature is None else base64.b64encode(found.signature.tobytes()).decode("ascii")
        row = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        rows.append(row | {"data": "", "num_bytes": len(found.data), "signature": signature or None})
    place.put(_name("read", number, "done"), json.dumps(rows).encode("ascii"))
    return number


def _write_shard(place: Place, reader: Reader, manifest: Manifest, captions: bool, number: int) -> int:
    """Reads the images of a shard again and writes it, its index, and its entry for `records.json`."""
    reader, task, examples = _members(place, reader, "write", number)
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch, task["shard"])
        with RecordWriter(path) as writer:
            for example, member, found in zip(examples, task["members"], _read_each(reader, examples), strict=True):
                if found.error or found.file_hash != member["file_hash"]:
                    reason = found.error or "it has changed since it was read"
                    raise UserError(f"{raw.printable(example.id)} cannot be used any more ({reason}): prepare again.")
                writer.write(encode(example, found, member["group"], found.data, manifest, captions))
        entry = index_shard(path)
        place.put_file(path)
        place.put_file(path.with_name(f"{path.name}.idx"))
    place.put(_name("write", number, "done"), json.dumps(entry).encode("ascii"))
    return number
