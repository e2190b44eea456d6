"""Reading downloads that must not be trusted: folders and archives with every hostile entry of the list."""

import os
import pickle
import stat
import struct
import zipfile

import pytest

from input_pipeline import raw
from input_pipeline.cli import UserError

FILES = {"train/b/2.png": b"two", "train/a/1.png": b"one" * 5, "labels.csv": b"", "Straße/é 1.jpg": b"umlaut"}


def fill(root, content=FILES):
    for name, data in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def pack(path, entries, compression=zipfile.ZIP_DEFLATED):
    """A .zip of (name or ZipInfo, data), written without any check of names."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


@pytest.fixture(params=["folder", "zip"])
def source(request, tmp_path):
    if request.param == "folder":
        (fill(tmp_path / "raw") / "empty" / "deeper").mkdir(parents=True)
        return raw.open_source(tmp_path / "raw")
    return raw.open_source(pack(tmp_path / "raw.zip", [*FILES.items(), ("empty/deeper/", b"")]))


def test_names_sizes_contents(source):
    assert source.names() == sorted(FILES)
    assert source.folders() == ["Straße", "empty", "empty/deeper", "train", "train/a", "train/b"]
    for copy in (source, pickle.loads(pickle.dumps(source))):
        for name, data in FILES.items():
            assert copy.read(name) == data and copy.size(name) == len(data)
    assert source.problems == []
    with pytest.raises(KeyError):
        source.read("../outside")


def test_digest_follows_the_listing(tmp_path):
    first = raw.open_source(fill(tmp_path / "one")).digest()
    again = raw.open_source(fill(tmp_path / "two")).digest()
    longer = raw.open_source(fill(tmp_path / "three", {**FILES, "labels.csv": b"x"})).digest()
    assert first == again != longer


def test_files_of_the_operating_system_are_left_out(tmp_path):
    strays = dict.fromkeys(
        ["__MACOSX/train/._1.png", "train/.DS_Store", ".git/config", "train/Thumbs.db", "desktop.ini"], b"x"
    )
    fill(tmp_path, {**FILES, **strays})
    assert raw.open_source(tmp_path).names() == sorted(FILES)
    archive = pack(tmp_path / "raw.zip", [*FILES.items(), *strays.items()])
    assert raw.open_source(archive).names() == sorted(FILES)


def test_links_and_devices_in_a_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "elsewhere").mkdir()
    root = fill(tmp_path / "raw")
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "relative.png").symlink_to("../secret.png")
    (root / "broken.png").symlink_to("nowhere.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "inside.png").symlink_to("train/b/2.png")
    (root / "folder").symlink_to(tmp_path / "elsewhere")
    (root / "device.png").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.png")
    source = raw.open_source(root)
    assert source.names() == sorted([*FILES, "inside.png"]) and source.read("inside.png") == b"two"
    reasons = dict(source.problems)
    assert set(reasons) == {
        "out.png", "relative.png", "broken.png", "loop.png", "folder", "device.png", "pipe.png"
    }  # fmt: skip
    for name in ("out.png", "relative.png", "device.png", "folder"):
        assert "leads out" in reasons[name]
    assert reasons["pipe.png"] == "not a regular file"


def test_a_file_that_turns_into_a_link_or_pipe_after_listing(tmp_path):
    root = fill(tmp_path / "raw")
    (tmp_path / "secret").write_bytes(b"secret")
    source = raw.open_source(root)
    for name in ("labels.csv", "train/a/1.png"):
        (root / name).unlink()
    (root / "labels.csv").symlink_to(tmp_path / "secret")
    os.mkfifo(root / "train/a/1.png")
    (root / "train/b/2.png").unlink()
    for name, reason in (("labels.csv", "leads out"), ("train/a/1.png", "regular"), ("train/b/2.png", "No such file")):
        with pytest.raises(raw.Unreadable, match=reason):
            source.read(name)


def test_a_file_without_permission(tmp_path, monkeypatch):
    source = raw.open_source(fill(tmp_path))

    def refuse(*_):
        raise PermissionError(13, "Permission denied", "labels.csv")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(raw.Unreadable, match="cannot be read: Permission denied"):
        source.read("labels.csv")


def test_size_limit(tmp_path):
    root = fill(tmp_path / "raw", {"a.png": bytes(4 * 2**20), "b.png": b"x"})
    for path in (root, pack(tmp_path / "raw.zip", [("a.png", os.urandom(4 * 2**20)), ("b.png", b"x")])):
        source = raw.open_source(path, max_file_bytes=3 * 2**20)
        with pytest.raises(raw.Unreadable, match="larger than 3 MiB"):
            source.read("a.png")
        assert source.read("b.png") == b"x"
    grown = raw.open_source(root, max_file_bytes=3 * 2**20)
    (root / "b.png").write_bytes(bytes(4 * 2**20))
    with pytest.raises(raw.Unreadable, match="larger than 3 MiB"):
        grown.read("b.png")


@pytest.mark.parametrize(
    "name,reason",
    [
        ("../up.png", "leads out"),
        ("a/../../up.png", "leads out"),
        ("a/./b.png", "leads out"),
        ("a//b.png", "leads out"),
        ("/etc/passwd", "absolute"),
        ("C:/x.png", "absolute"),
        ("a\\b.png", "backslash"),
        ("nul\0.png", "control character"),
        ("line\nbreak.png", "control character"),
        ("x" * 300 + ".png", "too long"),
        ("a/" * 700 + "b.png", "too long"),
        ("surrogate\udcff.png", "not UTF-8"),
        ("", "empty"),
    ],
)
def test_harmful_names(name, reason):
    assert reason in raw.refusal(name)


def test_harmless_names():
    for name in ("a.png", "a/b c/é.png", "..a/b...png", "=cmd|x.png", "-rf.png"):
        assert raw.refusal(name) == ""


def test_names_that_a_folder_can_hold(tmp_path):
    fill(tmp_path, {"line\nbreak.png": b"x", "good.png": b"x", "bad\nfolder/x.png": b"x"})
    (tmp_path / os.fsdecode(b"latin\xe9.png")).write_bytes(b"x")
    source = raw.open_source(tmp_path)
    assert source.names() == ["good.png"] and len(source.problems) == 3
    assert all(name.isprintable() for name, _ in source.problems)


def test_hostile_archive(tmp_path):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    pipe = zipfile.ZipInfo("pipe.png")
    pipe.external_attr = (stat.S_IFIFO | 0o644) << 16
    path = tmp_path / "raw.zip"
    with pytest.warns(UserWarning, match="Duplicate"):
        entries = ["../up.png", "/abs.png", "C:/x.png", "good.png", "good.png", link, pipe, "bomb.png"]
        pack(path, [(name, bytes(2**21) if name == "bomb.png" else b"data") for name in entries])
    pack(tmp_path / "lzma.zip", [("packed.png", b"data"), ("other.png", b"data")], zipfile.ZIP_LZMA)
    source = raw.open_source(path)
    assert source.names() == ["good.png"] and source.read("good.png") == b"data"
    reasons = dict(source.problems)
    assert "zip bomb" in reasons["bomb.png"] and "second time" in reasons["good.png"]
    assert reasons["link.png"] == reasons["pipe.png"] == "not a regular file"
    assert "leads out" in reasons["../up.png"] and len(reasons) == 7
    with pytest.raises(UserError, match="another method than deflate"):
        raw.open_source(tmp_path / "lzma.zip")


def test_name_with_nul_in_an_archive(tmp_path):
    path = pack(tmp_path / "raw.zip", [("nul_.png", b"x"), ("good.png", b"x")])
    path.write_bytes(path.read_bytes().replace(b"nul_.png", b"nul\0.png"))
    source = raw.open_source(path)
    assert source.names() == ["good.png"] and "control character" in source.problems[0][1]


def test_encrypted_entry(tmp_path):
    path = pack(tmp_path / "raw.zip", [("a.png", b"x")])
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="encrypted"):
        raw.open_source(path)


def test_archive_that_lies_about_its_content(tmp_path):
    path = pack(tmp_path / "raw.zip", [("a.png", b"x" * 1000), ("b.png", b"y" * 50)], zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\1\2")
    data[data.index(b"x" * 1000) + 500] ^= 1
    path.write_bytes(data)
    source = raw.open_source(path)
    with pytest.raises(raw.Unreadable, match="damaged in the archive"):
        source.read("a.png")
    assert source.read("b.png") == b"y" * 50
    struct.pack_into("<I", data, directory + 24, 10)  # a declared size smaller than what is packed
    path.write_bytes(data)
    with pytest.raises(raw.Unreadable, match="damaged in the archive"):
        raw.open_source(path).read("a.png")


def test_what_is_no_source(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.tar").write_bytes(b"no zip")
    archive = pack(tmp_path / "cut.zip", [("a.png", b"x" * 100)] * 1)
    archive.write_bytes(archive.read_bytes()[:-30])
    for name, message in (
        ("missing", "does not exist"),
        ("empty", "holds no files"),
        ("data.tar", "neither a folder nor a .zip"),
        ("cut.zip", "neither a folder nor a .zip"),
    ):
        with pytest.raises(UserError, match=message):
            raw.open_source(tmp_path / name)
