"""Are large files streamed by the rules that small ones are read by: no links out, no bombs, a stated bound?"""

import bz2
import gzip
import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from input_pipeline import raw

DATA = np.random.default_rng(0).integers(0, 256, 3_000_017, np.uint8).tobytes()


def drain(source, name, **options):
    with io.BufferedReader(source.open(name, **options)) as stream:
        return stream.read()


@pytest.fixture(params=["folder", "stored", "deflated"])
def make(request, tmp_path):
    """Makes a source of named contents."""

    def source(files):
        if request.param == "folder":
            (tmp_path / "raw").mkdir()
            for name, data in files.items():
                (tmp_path / "raw" / name).write_bytes(data)
            return raw.open_source(tmp_path / "raw")
        packing = zipfile.ZIP_STORED if request.param == "stored" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(tmp_path / "raw.zip", "w", packing) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return raw.open_source(tmp_path / "raw.zip")

    return source


def test_contents(make):
    two = gzip.compress(DATA[:1_000_000]) + gzip.compress(DATA[1_000_000:])
    source = make({"a.csv": DATA, "b.csv.gz": two, "c.csv.BZ2": bz2.compress(DATA), "empty": b""})
    for copy in (source, pickle.loads(pickle.dumps(source))):
        assert [drain(copy, name) for name in copy.names()] == [DATA, DATA, DATA, b""]
    with io.BufferedReader(source.open("b.csv.gz")) as first, io.BufferedReader(source.open("a.csv")) as second:
        assert first.read(5) + second.read(5) == DATA[:5] * 2  # two at a time
    stream = source.open("b.csv.gz")
    while stream.read(100_000):
        assert stream.consumed <= len(two)
    assert stream.consumed == len(two)
    stream.close()
    with pytest.raises(KeyError):
        source.open("../outside")


def test_no_more_than_the_bound(make):
    source = make({"a.csv": DATA, "b.csv.gz": gzip.compress(DATA)})
    for name in source.names():
        assert drain(source, name, max_bytes=len(DATA) + 2000) == DATA
        with pytest.raises(raw.Unreadable, match="larger than 2 MiB"):
            drain(source, name, max_bytes=2 * 2**20)


@pytest.mark.parametrize("packing", [gzip, bz2])
def test_bombs(tmp_path, packing):
    name = "bomb.csv.gz" if packing is gzip else "bomb.csv.bz2"
    (tmp_path / name).write_bytes(packing.compress(bytes(50 * 2**20)))
    stream = io.BufferedReader(raw.open_source(tmp_path).open(name))
    taken = 0
    with pytest.raises(raw.Unreadable, match="expands more than 200 times"):
        while part := stream.read(2**16):
            taken += len(part)
    assert taken <= 8 * 2**20


@pytest.mark.parametrize("packing", [gzip, bz2])
def test_damage(tmp_path, packing):
    name = "a.csv.gz" if packing is gzip else "a.csv.bz2"
    data = packing.compress(DATA)
    source = None
    for content, reason in [
        (data[: len(data) // 2], "ends before its content does"),
        (data[: len(data) // 2] + bytes(1000) + data[len(data) // 2 + 1000 :], "damaged|cannot be read"),
        (b"no archive at all", "damaged|cannot be read"),
    ]:
        (tmp_path / name).write_bytes(content)
        source = raw.open_source(tmp_path)
        with pytest.raises(raw.Unreadable, match=reason):
            drain(source, name)


def test_damage_in_an_archive(tmp_path):
    path = tmp_path / "raw.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", DATA)
    content = bytearray(path.read_bytes())
    content[1_500_000:1_500_100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(raw.Unreadable, match="damaged"):
        drain(raw.open_source(path), "a.csv")


def test_files_that_change_after_listing(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    root = tmp_path / "raw"
    root.mkdir()
    for name in ("link.csv", "pipe.csv", "gone.csv"):
        (root / name).write_bytes(b"x")
    source = raw.open_source(root)
    for name in source.names():
        (root / name).unlink()
    (root / "link.csv").symlink_to(tmp_path / "secret")
    os.mkfifo(root / "pipe.csv")
    for name, reason in [("link.csv", "leads out"), ("pipe.csv", "not a regular file"), ("gone.csv", "cannot be read")]:
        with pytest.raises(raw.Unreadable, match=reason):
            source.open(name)
