"""Downloads arrive complete and unchanged, or not at all, whatever the server does and whenever the process dies."""

import base64
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from input_pipeline import download, fetching, sources
from input_pipeline.cli import UserError
from input_pipeline.sources import File, Place
from input_pipeline.studies import STUDIES
from tests.input_pipeline.file_server import Server, archive

ROOT = pathlib.Path(__file__).parents[2]
TOKEN = "KGAT-secret-0123456789abcdef"


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that would have been made."""
    made: list[float] = []
    monkeypatch.setattr(fetching, "sleep", made.append)
    return made


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path_factory):
    """No token of the person who runs the tests, and no proxy."""
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path_factory.mktemp("kaggle")))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def put(monkeypatch, url: str, name: str = "data.zip", kaggle: str = "", **known) -> None:
    """Makes `blood_cells` a study of one file at `url`."""
    file = File(name, url, "zip", **known)
    place = Place("cells", "MIT", "https://example.org/terms", (file,), name, kaggle)
    monkeypatch.setattr(download, "PLACES", {"blood_cells": {"here": place, "there": place}})


def get(out: pathlib.Path, **options) -> bytes:
    download.download("blood_cells", out, **options)
    assert sorted(p.name for p in out.iterdir()) == ["data.zip", "download.json"]
    return (out / "data.zip").read_bytes()


def test_arrives_and_is_recorded(server, monkeypatch, tmp_path):
    put(monkeypatch, f"{server.address}/file?signed=1")
    line = download.download("blood_cells", tmp_path / "raw")
    assert (tmp_path / "raw" / "data.zip").read_bytes() == server.content
    record = json.loads((tmp_path / "raw" / "download.json").read_text())
    entry = record["files"]["data.zip"]
    assert entry["sha256"] == hashlib.sha256(server.content).hexdigest() and entry["bytes"] == len(server.content)
    assert "signed" not in json.dumps(record)
    assert line.endswith(f"--study=blood_cells --source={tmp_path / 'raw' / 'data.zip'} --out=data/blood_cells")
    download.download("blood_cells", tmp_path / "raw")  # a second time nothing is fetched
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "plan",
    [
        [{"cut": 700_001}, {"cut": 900_000}, {}],
        [{"status": 500}, {"status": 503}, {}],
        [{"status": 429, "headers": {"Retry-After": "7"}}, {}],
        [{"cut": 1_200_000}, {"no_range": True}],
        [{"cut": 1_200_000}, {"offset": 3}, {}],
        [{"cut": 1_200_000}, {"ignore_if_range": True, "change": (archive(2_000_000, 5), '"second"')}, {}],
        [{"cut": 1_200_000}, {"change": (archive(2_000_000, 5), '"second"')}],
        [{"cut": 1_200_000}, {"change": (archive(800_000, 6), '"second"'), "ignore_if_range": True}, {}],
        [{"chunked": True}],
        [{"chunked": True, "cut": 1_100_000}, {"chunked": True}],
        [{"lengthless": True}, {}],
        [{"cut": 0}, {}],
    ],
    ids=["truncates", "500", "429", "ignores-range", "wrong-part", "changes-unconditionally", "changes", "shrinks",
         "chunked", "chunked-truncated", "no-length", "empty"],
)  # fmt: skip
def test_server_misbehaves(server, pauses, monkeypatch, tmp_path, plan):
    put(monkeypatch, f"{server.address}/file")
    server.plan = plan
    assert get(tmp_path) == server.content
    if plan[0].get("status") == 429:
        assert pauses == [7.0]


def test_continues_where_it_stopped(server, pauses, monkeypatch, tmp_path):
    put(monkeypatch, f"{server.address}/file")
    server.plan = [{"cut": 1_000_000}, {}]
    get(tmp_path)
    assert [r.get("range") for r in server.requests] == [None, "bytes=1000000-"]
    assert server.requests[1]["if-range"] == '"first"'


def test_without_validators_begins_anew(server, pauses, monkeypatch, tmp_path):
    put(monkeypatch, f"{server.address}/file")
    server.etag, server.plan = "", [{"cut": 1_000_000}, {}]
    assert get(tmp_path) == server.content
    assert [r.get("range") for r in server.requests] == [None, None]


def test_weak_etag_is_no_condition_but_is_compared(server, pauses, monkeypatch, tmp_path):
    put(monkeypatch, f"{server.address}/file", md5=hashlib.md5(server.content).hexdigest())
    server.etag, server.plan = 'W/"x"', [{"cut": 1_000_000}, {}]
    assert get(tmp_path) == server.content
    assert server.requests[1]["range"] == "bytes=1000000-" and "if-range" not in server.requests[1]


def test_gives_up_and_keeps_what_arrived(server, pauses, monkeypatch, tmp_path):
    put(monkeypatch, f"{server.address}/file?signed=1")
    server.plan = [{"cut": 1_000_000}, {"status": 502}]
    with pytest.raises(UserError, match=r"1,000,000 bytes are kept") as error:
        download.download("blood_cells", tmp_path)
    assert "signed" not in str(error.value)
    assert len(server.requests) == 1 + fetching.ATTEMPTS and max(pauses) <= 60 and pauses[-1] > pauses[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.zip.part", "data.zip.part.json"]
    server.plan = [{}]
    assert get(tmp_path) == server.content and server.requests[-1]["range"] == "bytes=1000000-"


def test_complete_part_of_a_killed_process(server, monkeypatch, tmp_path):
    put(monkeypatch, f"{server.address}/file")
    (tmp_path / "data.zip.part").write_bytes(server.content)
    note = {"url": f"{server.address}/file", "etag": server.etag, "size": len(server.content)}
    (tmp_path / "data.zip.part.json").write_text(json.dumps(note))
    assert get(tmp_path) == server.content and len(server.requests) == 1


@pytest.mark.parametrize("note", ["", "{", "[1]", '{"url": 3}', '{"other": 1}'])
def test_damaged_note_begins_anew(server, monkeypatch, tmp_path, note):
    put(monkeypatch, f"{server.address}/file")
    (tmp_path / "data.zip.part").write_bytes(b"rubbish")
    (tmp_path / "data.zip.part.json").write_text(note)
    assert get(tmp_path) == server.content


def test_known_checksum_and_size(server, monkeypatch, tmp_path):
    put(monkeypatch, f"{server.address}/file", md5=hashlib.md5(b"other").hexdigest())
    with pytest.raises(UserError, match="MD5"):
        download.download("blood_cells", tmp_path)
    assert not list(tmp_path.iterdir())
    put(monkeypatch, f"{server.address}/file", size=len(server.content) + 1)
    with pytest.raises(UserError, match="bytes where"):
        download.download("blood_cells", tmp_path)
    assert not list(tmp_path.iterdir())
    put(monkeypatch, f"{server.address}/file", size=len(server.content), md5=hashlib.md5(server.content).hexdigest())
    server.plan = [{"lengthless": True}]
    assert get(tmp_path) == server.content


@pytest.mark.parametrize("right", [True, False])
def test_checksum_that_the_server_states(server, monkeypatch, tmp_path, right):
    put(monkeypatch, f"{server.address}/file")
    digest = hashlib.md5(server.content if right else b"other").digest()
    stated = {"x-goog-hash": f"crc32c=AAAAAA==,md5={base64.b64encode(digest).decode()}"}
    server.plan = [{"headers": stated}]
    if right:
        assert get(tmp_path) == server.content
    else:
        with pytest.raises(UserError, match="the server states"):
            download.download("blood_cells", tmp_path)
        assert not list(tmp_path.iterdir())


def test_recorded_checksum(server, monkeypatch, tmp_path):
    put(monkeypatch, f"{server.address}/file")
    get(tmp_path)
    (tmp_path / "data.zip").write_bytes(server.content[:-1] + b"!")
    with pytest.raises(UserError, match="SHA-256.*remove it"):
        download.download("blood_cells", tmp_path)
    (tmp_path / "data.zip").unlink()
    first, server.content = server.content, archive(2_500_001, 9)
    with pytest.raises(UserError, match="SHA-256"):
        download.download("blood_cells", tmp_path)
    server.content = first
    assert get(tmp_path) == first


def test_stranger_in_the_folder(server, monkeypatch, tmp_path):
    put(monkeypatch, f"{server.address}/file")
    (tmp_path / "data.zip").write_bytes(b"mine")
    with pytest.raises(UserError, match="move it away"):
        download.download("blood_cells", tmp_path)
    assert (tmp_path / "data.zip").read_bytes() == b"mine" and not server.requests


@pytest.mark.parametrize("content", ["{", "[]", '{"study": "blood_cells"}', '{"study": 1, "place": 2, "files": []}'])
def test_damaged_record(server, monkeypatch, tmp_path, content):
    put(monkeypatch, f"{server.address}/file")
    (tmp_path / "download.json").write_text(content)
    with pytest.raises(UserError, match=r"download\.json is damaged"):
        download.download("blood_cells", tmp_path)


def test_folder_of_another_place(server, monkeypatch, tmp_path):
    put(monkeypatch, f"{server.address}/file")
    get(tmp_path)
    with pytest.raises(UserError, match="choose another --out"):
        download.download("blood_cells", tmp_path, only="there")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>log in</html>", b"", b"PK but not really"])
def test_page_instead_of_the_file(server, monkeypatch, tmp_path, page):
    put(monkeypatch, f"{server.address}/file")
    server.plan = [{"body": page}]
    with pytest.raises(UserError, match="is not the file"):
        download.download("blood_cells", tmp_path)
    assert not list(tmp_path.iterdir())


def test_kinds(tmp_path):
    for name, content, kind in (
        ("a", b"\x1f\x8b\x08", "gzip"),
        ("b", b"gene_id\tTCGA", "text"),
        ("c", archive(10), "zip"),
    ):
        (tmp_path / name).write_bytes(content)
        assert [k for k in ("gzip", "text", "zip") if download.is_kind(tmp_path / name, k)] == [kind]


def test_packed_by_the_server(server, monkeypatch, tmp_path):
    put(monkeypatch, f"{server.address}/file")
    server.plan = [{"headers": {"Content-Encoding": "gzip"}}]
    with pytest.raises(UserError, match="packed by the server"):
        download.download("blood_cells", tmp_path)


@pytest.mark.parametrize(
    ("kaggle", "status", "words"),
    [
        ("competition", 403, "accept the rules at https://example.org/terms"),
        ("dataset", 403, "accept the terms at https://example.org/terms"),
        ("competition", 401, "does not accept the token"),
        ("", 404, "whether the file has moved"),
        ("", 403, "status 403"),
    ],
)
def test_refusals(server, monkeypatch, tmp_path, capfd, kaggle, status, words):
    put(monkeypatch, f"{server.address}/file", kaggle=kaggle)
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    server.plan = [{"status": status}]
    with pytest.raises(UserError, match=words) as error:
        download.download("blood_cells", tmp_path)
    assert not list(tmp_path.iterdir()) and len(server.requests) == 1
    assert TOKEN not in str(error.value) + "".join(capfd.readouterr())


def test_token_goes_to_the_first_host_alone(server, monkeypatch, tmp_path, capfd):
    other = Server()
    try:
        put(monkeypatch, f"{server.address}/file", kaggle="competition")
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
        server.plan = [
            {"status": 302, "headers": {"Location": f"{server.address}/again"}},
            {"status": 302, "headers": {"Location": f"{other.address}/store?signature=xyz"}},
        ]
        download.download("blood_cells", tmp_path)
    finally:
        other.close()
    assert [r.get("authorization") for r in server.requests] == [f"Bearer {TOKEN}"] * 2
    assert [r.get("authorization") for r in other.requests] == [None]
    stored = "".join(p.read_text(errors="replace") for p in tmp_path.glob("*.json"))
    assert TOKEN not in stored + "".join(capfd.readouterr()) and "signature" not in stored


def test_token_is_not_sent_elsewhere(server, monkeypatch, tmp_path):
    put(monkeypatch, f"{server.address}/file")
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    get(tmp_path)
    assert "authorization" not in server.requests[0]


@pytest.mark.parametrize("where", ["http://example.org/file", "ftp://example.org/file", "file:///etc/passwd"])
def test_insecure_addresses(server, monkeypatch, tmp_path, where):
    put(monkeypatch, where)
    with pytest.raises(UserError, match="no https address"):
        download.download("blood_cells", tmp_path / "a")
    put(monkeypatch, f"{server.address}/file")
    server.plan = [{"status": 302, "headers": {"Location": where}}]
    with pytest.raises(UserError, match="no https address|status 302"):
        download.download("blood_cells", tmp_path / "b")


def test_endless_redirects(server, pauses, monkeypatch, tmp_path):
    put(monkeypatch, f"{server.address}/file")
    server.plan = [{"status": 302, "headers": {"Location": f"{server.address}/file"}}]
    with pytest.raises(UserError, match="status 302"):
        download.download("blood_cells", tmp_path)


def test_no_room(server, monkeypatch, tmp_path):
    put(monkeypatch, f"{server.address}/file")
    usage = dataclasses.make_dataclass("Usage", ["free"])
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage(fetching.SPARE + len(server.content) - 1))
    with pytest.raises(UserError, match="only .* are free"):
        download.download("blood_cells", tmp_path)
    assert not list(tmp_path.glob("*.zip*"))


def test_server_that_is_not_there(pauses, monkeypatch, tmp_path):
    put(monkeypatch, "http://127.0.0.1:9/file")
    with pytest.raises(UserError, match="0 bytes are kept"):
        download.download("blood_cells", tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_downloads_of_one_file(server, monkeypatch, tmp_path):
    put(monkeypatch, f"{server.address}/file")
    first = fetching.Download(f"{server.address}/file", tmp_path / "data.zip", "", None, False)
    with pytest.raises(UserError, match="another process"):
        download.download("blood_cells", tmp_path)
    first.discard()


def test_places_are_sound():
    assert set(sources.PLACES) | set(sources.MANUAL) == set(STUDIES)
    for study, known in sources.PLACES.items():
        for place in known.values():
            assert place.page.startswith("https://") and place.licence and place.title
            assert place.source in ("", *(file.name for file in place.files))
            for file in place.files:
                fetching.check_secure(file.url)
                assert re.fullmatch(r"[A-Za-z0-9][\w.+-]*", file.name) and file.kind in ("zip", "gzip", "text")
                assert re.fullmatch(r"([0-9a-f]{32})?", file.md5)
        assert study in download.listing([study])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--study=blood_cells"], "--out"),
        (["--study=nonsense", "--out=x"], "unknown study"),
        (["--study=captions", "--out=x"], "members of the course"),
        (["--study=pneumonia", "--out=x", "--only=nowhere"], "choose one of mendeley"),
        (["--study=hpa", "--out=x"], "KAGGLE_API_TOKEN"),
        (["--study=hpa", "--out=x", "--token=missing.json"], "cannot be read"),
        (["--list", "--study=nonsense"], "unknown study"),
        (["--nonsense"], "--help"),
    ],
)
def test_mistakes(arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        download.main(arguments)
    assert not list(tmp_path.iterdir())


DRIVER = """
import sys
from input_pipeline import cli, download
from input_pipeline.sources import File, Place
file = File("data.zip", sys.argv[1], "zip")
download.PLACES = {"blood_cells": {"here": Place("cells", "MIT", "https://example.org/terms", (file,), "data.zip")}}
cli.run(lambda: download.main(["--study=blood_cells", "--out=" + sys.argv[2]]))
"""


def test_killed_in_the_middle(server, tmp_path):
    """Kills the process four times at growing sizes; each start goes on, and the file is whole at the end."""
    server.content = archive(3_000_000)
    server.plan = [{"pause": 0.02}]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DRIVER, f"{server.address}/file", str(tmp_path)]
    part, kept = tmp_path / "data.zip.part", []
    for kill in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        target = (kept[-1] if kept else 0) + 900_000
        while not (part.exists() and part.stat().st_size > target):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(kill)
        process.communicate()
        kept.append(part.stat().st_size)
    server.plan = [{}]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "data.zip").read_bytes() == server.content
    assert [r.get("range") for r in server.requests[1:]] == [f"bytes={size}-" for size in kept]
    assert "python -m input_pipeline.prepare" in result.stdout
