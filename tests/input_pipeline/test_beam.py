"""Prepared under Apache Beam: the same bytes as without, and one sentence where it cannot be."""

import importlib.util
import json
import shutil
import types

import pytest

from input_pipeline import assemble, beam_prepare, prepare, raw, simulate
from input_pipeline.cli import UserError
from input_pipeline.ingest import Reader, ingest
from tests.input_pipeline import picture_files as files

needs_beam = pytest.mark.skipif(not importlib.util.find_spec("apache_beam"), reason="needs apache-beam")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class InProcess(beam_prepare.Cluster):
    """Runs the tasks here, in a strange order and some of them twice, as a cluster may."""

    def _run(self, what, work, count):
        for number in [*reversed(range(count)), *range(0, count, 2)]:
            assert work(number) == number


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(beam_prepare, "Cluster", InProcess)
    monkeypatch.setattr(beam_prepare, "_beam", lambda *_: None)
    monkeypatch.setattr(beam_prepare, "CHUNK", 7)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Class folders with sound, repaired, unreadable and copied images, and what `prepare` makes of them."""
    root = tmp_path_factory.mktemp("mixed")
    content = files.class_folders(root / "raw")
    content["dog/exif.jpg"] = files.jpeg(77, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")
    content["cat/copy.jpg"] = content["cat/01.jpg"]
    content["cat/cut.jpg"] = content["cat/02.jpg"][:500]
    files.write(root / "raw", content)
    prepare.prepare("folder", root / "raw", root / "out", workers=1, folds=3)
    return root


@pytest.mark.parametrize("source", ["folder", "zip", "store"])
def test_tasks_in_any_order_give_the_same_bytes(mixed, tmp_path, in_process, source):
    place = mixed / "raw"
    if source == "zip":
        place = shutil.make_archive(str(tmp_path / "raw"), "zip", place)
    elif source == "store":
        pytest.importorskip("fsspec")
        place = f"file://{place}"
    prepare.prepare("folder", place, tmp_path / "out", workers=1, folds=3, runner="direct")
    ours, theirs = contents(tmp_path / "out"), contents(mixed / "out")
    if source == "zip":  # the report counts what lies in the source
        ours.pop("ingest_report.json"), theirs.pop("ingest_report.json")
    assert ours == theirs


def test_several_shards_and_a_store(mixed, tmp_path, in_process, monkeypatch):
    pytest.importorskip("fsspec")
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assemble.write_dataset, "__defaults__", (6000,))
    prepare.prepare("folder", mixed / "raw", tmp_path / "local", workers=1)
    prepare.prepare("folder", mixed / "raw", f"file://{tmp_path}/store", workers=1, runner="direct")
    stored = contents(tmp_path / "store")
    assert stored == contents(tmp_path / "local") and sum("train.tfrecord" in name for name in stored) > 6


def test_an_image_that_changes_meanwhile_is_refused(mixed, tmp_path, in_process, monkeypatch):
    shutil.copytree(mixed / "raw", tmp_path / "raw")
    original = InProcess.write_shards

    def write_shards(self, plan):
        (tmp_path / "raw" / "cat" / "02.jpg").write_bytes(files.jpeg(999))
        return original(self, plan)

    monkeypatch.setattr(InProcess, "write_shards", write_shards)
    with pytest.raises(UserError, match=r"cat/02.jpg cannot be used any more \(it has changed"):
        prepare.prepare("folder", tmp_path / "raw", tmp_path / "out", workers=1, runner="direct")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_readers_travel_without_the_listing(mixed):
    reader = Reader(raw.open_source(mixed / "raw"), (), 10**6, True)
    light = beam_prepare._light(reader)
    assert not light.source.names() and reader.source.names() and not light.source.problems
    assert light.source.path == reader.source.path


def test_what_is_known_survives_the_way(mixed, tmp_path, in_process):
    from input_pipeline.studies import load

    source = raw.open_source(mixed / "raw")
    manifest = load("folder").scan(source, {})
    reader = Reader(source, (), 10**6, True)
    here = list(ingest(reader, manifest.examples, 1))
    with beam_prepare.machines("direct", "", tmp_path, tmp_path, manifest, 1) as cluster:
        there = list(cluster.read(reader, manifest.examples))
    assert not list(tmp_path.iterdir())
    for a, b in zip(here, there, strict=True):
        assert b.num_bytes == len(a.data) and not b.data
        assert (a.signature is None) == (b.signature is None)
        assert a.signature is None or a.signature.tobytes() == b.signature.tobytes()
        for name in ("error", "format", "height", "width", "repaired", "file_hash", "content_hash"):
            assert getattr(a, name) == getattr(b, name)


@pytest.mark.parametrize("runner, options, message", [
    ("abacus", "", "unknown"), ("", "--region=x", "needs --runner"),
])  # fmt: skip
def test_mistakes(mixed, tmp_path, runner, options, message):
    with pytest.raises(UserError, match=message):
        prepare.prepare("folder", mixed / "raw", tmp_path / "out", runner=runner, beam_options=options)


def test_a_missing_package_is_named(mixed, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"\[beam\]"):
        prepare.prepare("folder", mixed / "raw", tmp_path / "out", runner="direct")


def test_studies_without_files_are_refused(tmp_path):
    manifest = types.SimpleNamespace(has_files=False, study="cancer_genes")
    with pytest.raises(UserError, match="collections of image files"):
        with beam_prepare.machines("direct", "", tmp_path, tmp_path, manifest, 1):
            pass


@needs_beam
def test_a_failing_pipeline_is_one_sentence(mixed, tmp_path, monkeypatch):
    def fail(number):
        raise UserError("cat/02.jpg cannot be used any more")

    monkeypatch.setattr(beam_prepare, "_read_chunk", lambda place, reader, number: fail(number))
    with pytest.raises(UserError, match="pipeline failed while reading: .*cat/02.jpg"):
        prepare.prepare("folder", mixed / "raw", tmp_path / "out", workers=1, runner="direct")
    assert not list(tmp_path.iterdir())
    for options, message in (
        ("--regoin=x", "regoin is no option of Apache Beam"),
        ("--direct_num_workers=many", "direct_num_workers: invalid int value: 'many'"),
        ("--region='x", "No closing quotation"),
    ):
        with pytest.raises(UserError, match=message):
            prepare.prepare("folder", mixed / "raw", tmp_path / "out", runner="direct", beam_options=options)


@needs_beam
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_direct_runner(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(beam_prepare, "CHUNK", 16)
    simulate.hpa(tmp_path / "raw", num_train=90, num_test=5, size=64, seed=1, workers=1)
    prepare.prepare("hpa", tmp_path / "raw", tmp_path / "local", workers=1)
    prepare.prepare("hpa", tmp_path / "raw", tmp_path / "beam", workers=workers, runner="direct")
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    assert json.loads((tmp_path / "beam" / "records.json").read_text())["shards"]
