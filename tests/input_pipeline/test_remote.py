"""Folders of object stores: addresses, repeated attempts, prepared data sets there and back, raw data read there.

fsspec's local file system stands for a store (`file://`); one test at the end uses a server that speaks S3.
"""

import importlib.util
import os
import pickle
import shutil
import subprocess
import sys

import pytest

from input_pipeline import prepare, records, remote, remote_dataset, remote_source
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from input_pipeline.remote import Store, StoreError
from tests import object_store
from tests.input_pipeline import picture_files as files
from tests.input_pipeline.record_sets import write_dataset

needs_fsspec = pytest.mark.skipif(not importlib.util.find_spec("fsspec"), reason="needs fsspec")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.0)


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/store/data"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_addresses():
    assert remote.is_remote("s3://b/x") and remote.is_remote("gs://b") and remote.is_remote("s3://")
    assert not any(map(remote.is_remote, ("runs/x", "/a/b", "tfds:mnist", "C:\\x")))
    assert remote.normal("s3://bucket//runs/x/") == "s3://bucket/runs/x"
    assert remote.normal("file:///a/b") == "file:///a/b"
    for wrong in ("s3://", "s3://b/../c", "s3://key:secret@b/x", "s3://b/x?sig=1", "s3://b/\n"):
        with pytest.raises(UserError) as raised:
            remote.normal(wrong)
        assert "secret" not in str(raised.value)


def test_cache_names_differ_by_address_and_content():
    names = {remote.cache_name("s3://a/x"), remote.cache_name("s3://b/x"), remote.cache_name("s3://a/x", b"1")}
    assert len(names) == 3 and all(name.startswith("x-") for name in names)
    assert "/" not in remote.cache_name("s3://a/..") and remote.cache_name("s3://a/.x")[0] != "."


@pytest.mark.parametrize("scheme, package", [("s3", "s3fs"), ("gs", "gcsfs"), ("memory", "fsspec")])
def test_a_missing_package_is_named(monkeypatch, scheme, package):
    monkeypatch.setitem(sys.modules, "fsspec" if scheme == "memory" else package, None)
    if scheme != "memory":
        pytest.importorskip("fsspec")
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    with pytest.raises(UserError, match=rf"{package}.*\[remote\]"):
        Store(f"{scheme}://bucket/x")


def test_an_unknown_kind_of_store_is_refused():
    pytest.importorskip("fsspec")
    with pytest.raises(UserError, match="foo://"):
        Store("foo://bucket/x")


@needs_fsspec
def test_objects(url, tmp_path):
    store = pickle.loads(pickle.dumps(Store(url + "/")))
    assert store.url == url and store.names() == {}
    store.write("a/b", b"12345")
    store.write("c", b"")
    with pytest.raises(FileExistsError):
        store.write("a/b", b"other", create=True)
    assert store.read("a/b") == b"12345" and store.read_part("a/b", 1, 3) == b"23"
    with pytest.raises(StoreError, match="shorter"):
        store.read_part("a/b", 3, 9)
    with pytest.raises(FileNotFoundError):
        store.read("none")
    store.copy("a/b", "d")
    (tmp_path / "file").write_bytes(b"of this machine")
    store.upload(tmp_path / "file", "e")
    with store.open("e") as file:
        assert file.read(7) == b"of this"
    assert store.names() == {"a/b": 5, "c": 0, "d": 5, "e": 15} and store.names("a") == {"a/b": 5}
    store.delete(["a/b", "none", "c"])
    assert list(store.names()) == ["d", "e"]


class Flaky:
    """A store that fails some times."""

    def __init__(self, files, errors):
        self.files, self.errors, self.calls = files, list(errors), 0

    def cat_file(self, path, **kwargs):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.files.cat_file(path, **kwargs)


@needs_fsspec
def test_failures_are_tried_again(url):
    store = Store(url)
    store.write("a", b"1")
    store._files = flaky = Flaky(store._files, [OSError("reset"), TimeoutError(), RuntimeError("503 https://x/?sig=s")])
    assert store.read("a") == b"1" and flaky.calls == 4
    flaky.errors = [RuntimeError("503 https://host/a?X-Amz-Signature=secret")] * 9
    with pytest.raises(StoreError, match=r"5 attempts.*503") as raised:
        store.read("a")
    assert "secret" not in str(raised.value)
    flaky.errors, flaky.calls = [PermissionError("Access Denied")], 0
    with pytest.raises(StoreError, match="Access Denied.*rights"):
        store.read("a")
    assert flaky.calls == 1


def test_threads_end_with_the_first_error():
    done = []

    def work(item):
        if item == 5:
            raise ValueError
        done.append(item)
        return item

    assert sorted(remote.in_parallel(lambda item: item + 1, range(100), 3)) == list(range(1, 101))
    with pytest.raises(ValueError):
        list(remote.in_parallel(work, range(10_000), 3))
    assert len(done) < 100


@needs_fsspec
def test_a_data_set_there_and_back(url, tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "prepared", 17)
    store = Store(url)
    remote_dataset.push(folder, store)
    monkeypatch.setattr(remote_dataset, "PART_BYTES", 1000)
    dataset = open_dataset(url)
    assert dataset.fingerprint == open_dataset(folder).fingerprint
    assert contents(dataset.directory) == contents(folder)
    monkeypatch.setattr(Store, "read_part", lambda *_: pytest.fail("fetched twice"))
    assert open_dataset(url).directory == dataset.directory
    shutil.rmtree(folder)
    write_dataset(folder, 6)  # another data set at the same address
    store.delete(list(store.names()))
    remote_dataset.push(folder, store)
    monkeypatch.undo()
    assert len(open_dataset(url)) == 6


@needs_fsspec
def test_a_broken_fetch_goes_on_where_it_stopped(url, tmp_path, monkeypatch):
    remote_dataset.push(write_dataset(tmp_path / "prepared", 17), Store(url))
    monkeypatch.setattr(remote_dataset, "PART_BYTES", 700)
    original, fetched = Store.read_part, []

    def read_part(self, name, start, end):
        if len(fetched) == 5:
            raise StoreError("the network is gone")
        data = original(self, name, start, end)
        fetched.append((name, start))
        return data

    monkeypatch.setattr(remote, "TRANSFERS", 1)
    monkeypatch.setattr(remote_dataset, "in_parallel", lambda work, items: remote.in_parallel(work, items, 1))
    monkeypatch.setattr(Store, "read_part", read_part)
    with pytest.raises(StoreError):
        remote_dataset.fetch(url)
    first, fetched = fetched, []
    folder = None
    for _ in range(50):
        try:
            folder = remote_dataset.fetch(url)
            break
        except StoreError:
            first, fetched = first + fetched, []
    first += fetched
    assert folder and len(first) == len(set(first)), "a part was fetched twice"
    assert contents(folder) == contents(tmp_path / "prepared")


@needs_fsspec
@pytest.mark.parametrize("fault, message", [
    ("flip", "not the one that records.json"), ("cut", "bytes, but"), ("shard", "is missing"), ("index", "index"),
    ("records", "no finished data set"), ("splits", "no finished data set"),
])  # fmt: skip
def test_damage_in_the_store_is_refused(url, tmp_path, fault, message):
    folder = write_dataset(tmp_path / "prepared", 7)
    remote_dataset.push(folder, Store(url))
    stored = tmp_path / "store" / "data"
    shard = stored / records.shard_names(stored)[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    if fault == "flip":
        shard.write_bytes(data)
    elif fault == "cut":
        shard.write_bytes(data[:-1])
    else:
        names = {"shard": shard.name, "index": f"{shard.name}.idx"}
        (stored / names.get(fault, f"{fault}.json")).unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            open_dataset(url)
    cached = tmp_path / "cache" / "data"
    assert not cached.exists() or all(entry.name.startswith(".") for entry in cached.iterdir())


@needs_fsspec
def test_prepare_reads_from_and_writes_to_a_store(url, tmp_path):
    files.class_folders(tmp_path / "raw", 9)
    prepare.prepare("folder", tmp_path / "raw", tmp_path / "out", workers=1)
    prepare.prepare("folder", tmp_path / "raw", url, workers=1)
    assert contents(tmp_path / "store" / "data") == contents(tmp_path / "out")
    prepare.prepare("folder", f"file://{tmp_path}/raw", url + "2", workers=1)
    assert contents(tmp_path / "store" / "data2") == contents(tmp_path / "out")
    with pytest.raises(UserError, match="is a prepared dataset already"):
        prepare.prepare("folder", tmp_path / "raw", url, workers=1)
    (tmp_path / "store" / "data" / "records.json").unlink()
    with pytest.raises(UserError, match="not empty"):
        prepare.prepare("folder", tmp_path / "raw", url, workers=1)
    Store(url).write(".preparing", b"")  # as if killed while it was written
    Store(url).write("folder-train.tfrecord-00000-of-00009", b"of an earlier attempt")
    prepare.prepare("folder", tmp_path / "raw", url, workers=1)
    assert contents(tmp_path / "store" / "data") == contents(tmp_path / "out")
    assert not list((tmp_path / "cache" / "prepared").glob("[!.]*"))
    with pytest.raises(UserError):
        prepare.prepare("folder", tmp_path / "raw" / "cat", url + "3", workers=1)
    assert set(Store(url + "3").names()) <= {".preparing"}


@needs_fsspec
def test_sources_in_a_store(tmp_path):
    root = f"file://{tmp_path}"
    with pytest.raises(UserError, match="holds no files"):
        remote_source.open_source(f"{root}/none")
    with pytest.raises(UserError, match="unpack it"):
        remote_source.open_source(f"{root}/raw.zip")
    files.write(tmp_path / "raw", {"a/1.png": b"12345", "b/evil\nname.png": b"1", ".hidden": b"1", "t.csv": b"id\n1\n"})
    source = pickle.loads(pickle.dumps(remote_source.open_source(f"{root}/raw", max_file_bytes=4)))
    assert source.names() == ["a/1.png", "t.csv"] and source.folders() == ["a"]
    assert [reason for _, reason in source.problems] == ["control character in the name"]
    with pytest.raises(remote_source.Unreadable, match="larger"):
        source.read("a/1.png")
    source = remote_source.open_source(f"{root}/raw")
    with source.open("t.csv") as stream:
        assert stream.read() == b"id\n1\n"
    (tmp_path / "raw" / "a" / "1.png").write_bytes(b"1234")
    with pytest.raises(remote_source.Unreadable, match="changed"):
        source.read("a/1.png")
    (tmp_path / "raw" / "a" / "1.png").unlink()
    with pytest.raises(remote_source.Unreadable):
        source.read("a/1.png")


@pytest.mark.skipif(not (importlib.util.find_spec("s3fs") and object_store.SERVER), reason="needs s3fs and moto_server")
def test_a_store_that_speaks_s3(tmp_path):
    files.class_folders(tmp_path / "raw", 9)
    prepare.prepare("folder", tmp_path / "raw", tmp_path / "out", workers=1)
    program = f"""
import pathlib
from input_pipeline import prepare
from input_pipeline.dataset import open_dataset
from input_pipeline.remote import Store, StoreError
if __name__ == "__main__":
    prepare.prepare("folder", {str(tmp_path / "raw")!r}, "s3://bucket/data", workers=1)
    print(open_dataset("s3://bucket/data").directory)
    store = Store("s3://bucket/x")
    store.write("a", b"1", create=True)
    try:
        store.write("a", b"2", create=True)
    except FileExistsError:
        print("exists", store.read("a"))
    try:
        Store("s3://nowhere/x").write("a", b"1")
    except StoreError as error:
        print(error)
"""
    with object_store.serving("bucket") as variables:
        result = subprocess.run(
            [sys.executable, "-c", program], env=os.environ | variables, capture_output=True, text=True, timeout=300
        )
    assert result.returncode == 0, result.stderr
    folder, exists, bucket = result.stdout.splitlines()
    assert contents(tmp_path / "out") == contents(type(tmp_path)(folder))
    assert exists == "exists b'1'" and "no such bucket" in bucket
    assert variables["AWS_SECRET_ACCESS_KEY"] not in result.stdout + result.stderr
