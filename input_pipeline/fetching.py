"""How does one file come over HTTPS, completely and unchanged, however often the connection or this process dies?

`fetch` writes into NAME.part and notes in NAME.part.json what the server said of it (ETag, Last-Modified, length). The
next attempt, of this process or of another, asks for the rest of it (Range) on the condition that it is still the
same file (If-Range), and begins anew where the server cannot give a part, or the file has changed. Errors that pass
(timeouts, 408, 429, 5xx, a connection that ends early) are tried again with growing pauses. Redirects are followed to
HTTPS only (HTTP from this machine itself is allowed), and the token goes to the first host alone. Names of files are
never taken from a server. Addresses are shown without their query, which may be signed.
"""

import base64
import binascii
import dataclasses
import email.utils
import fcntl
import hashlib
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import BinaryIO

from input_pipeline.cli import UserError, atomic_write, progress

ATTEMPTS = 6
"""So many attempts in a row that add nothing end the download; what has arrived is kept."""

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""

SPARE = 64 * 2**20
"""Bytes that stay free on the disk."""

_CHUNK = 2**20
_LONGEST_PAUSE = 600.0
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_LOCAL = {"localhost", "127.0.0.1", "::1"}
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Refused(Exception):
    """The server answers with an HTTP status that does not pass. `status` is that status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status


class _Passing(Exception):
    """An error that may pass; the message is the reason. `pause`: seconds that the server asks for, or None."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A complete file: its size in bytes and its digests, hexadecimal."""

    size: int
    sha256: str
    md5: str


def plain(url: str) -> str:
    """A URL for messages: without query, user and fragment."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def check_secure(url: str) -> None:
    """Raises `UserError` for an address that is neither HTTPS nor HTTP of this machine."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOCAL):
        raise UserError(f"{plain(url)} is no https address: nothing was read from there; download the file by hand.")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to secure addresses; the token stays with the host that it is for."""

    def redirect_request(self, request, file, code, message, headers, url):
        check_secure(url)
        following = super().redirect_request(request, file, code, message, headers, url)
        token = request.unredirected_hdrs.get("Authorization")
        if following is not None and token and _origin(url) == _origin(request.full_url):
            following.add_unredirected_header("Authorization", token)
        return following


def _origin(url: str) -> tuple:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _open(url: str, authorization: str, headers: dict[str, str]):
    """The server's answer, whatever its status."""
    check_secure(url)
    always = {"User-Agent": "research-jax", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers | always)
    if authorization:
        request.add_unredirected_header("Authorization", authorization)
    opener = urllib.request.build_opener(_Redirects)
    try:
        return opener.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        return error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise UserError(
                f"the certificate of {plain(url)} is not trusted ({error.reason.verify_message}): check the clock and "
                "the certificates of this machine."
            ) from error
        raise _Passing(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Passing(str(error) or type(error).__name__) from error


@dataclasses.dataclass
class _Note:
    """What the server said of the file that is being fetched; kept beside it as JSON."""

    url: str = ""
    etag: str = ""
    modified: str = ""
    size: int | None = None
    md5: str = ""

    @classmethod
    def read(cls, path: pathlib.Path) -> "_Note":
        """The note, or an empty one where there is none that can be read."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, path: pathlib.Path) -> None:
        atomic_write(path, json.dumps(dataclasses.asdict(self)) + "\n")

    @property
    def validator(self) -> str:
        """What If-Range may hold: a strong ETag, or the date of the last change."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def same(self, other: "_Note") -> bool:
        """Whether the other note can be of the same file; what one side does not state is not compared."""
        pairs = ((self.etag, other.etag), (self.modified, other.modified), (self.md5, other.md5))
        return all(a == b for a, b in pairs if a and b) and (None in (self.size, other.size) or self.size == other.size)


def _stated_md5(headers) -> str:
    """The MD5 of Google's storage in `x-goog-hash`, hexadecimal, or ""."""
    for part in ", ".join(headers.get_all("x-goog-hash") or ()).split(","):
        name, _, value = part.strip().partition("=")
        if name == "md5":
            try:
                return base64.b64decode(value, validate=True).hex()
            except binascii.Error:
                return ""
    return ""


def _note_of(url: str, response) -> _Note:
    """The answer's note; the size is that of the whole file, also where a part of it comes."""
    headers = response.headers
    found = _RANGE.fullmatch(headers.get("Content-Range") or "")
    length = int(found[3]) if found else headers.get("Content-Length")
    size = int(length) if length is not None and str(length).isdigit() else None
    return _Note(plain(url), headers.get("ETag") or "", headers.get("Last-Modified") or "", size, _stated_md5(headers))


def _asked_pause(headers) -> float | None:
    """Seconds of `Retry-After`, which is a number or a date."""
    value = headers.get("Retry-After")
    if not value:
        return None
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


class Download:
    """One file on its way: `path`.part, opened and locked, and its note."""

    def __init__(self, url: str, path: pathlib.Path, authorization: str, size: int | None, checked: bool) -> None:
        self.url, self.path, self._authorization = url, path, authorization
        self._size, self._checked = size, checked
        self._note_path = path.with_name(path.name + ".part.json")
        self.part = path.with_name(path.name + ".part")
        self.file: BinaryIO = open(self.part, "ab")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.file.close()
            raise UserError(f"another process is downloading {self.part}: wait for it.") from error
        self.note = _Note.read(self._note_path)

    @property
    def position(self) -> int:
        """Bytes that have arrived."""
        return os.fstat(self.file.fileno()).st_size

    def restart(self) -> None:
        """Throws away what has arrived."""
        self.file.truncate(0)
        self.note = _Note()
        self._note_path.unlink(missing_ok=True)

    def leave(self) -> int:
        """Keeps what has arrived for another time; returns how many bytes."""
        self.file.flush()
        kept = self.position
        if not kept:
            self.discard()
        self.file.close()
        return kept

    def discard(self) -> None:
        """Removes the file and its note."""
        self.file.close()
        self.part.unlink(missing_ok=True)
        self._note_path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Gives the file its name."""
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.part, self.path)
        self._note_path.unlink(missing_ok=True)

    def attempt(self) -> None:
        """Fetches what is missing. Raises `_Passing`, `Refused` and `UserError`."""
        if self.position and (self.note.url != plain(self.url) or not (self.note.validator or self._checked)):
            self.restart()  # of another address, or nothing would tell whether the rest belongs to it
        begin, headers = self.position, {}
        if begin:
            headers = {"Range": f"bytes={begin}-"} | ({"If-Range": self.note.validator} if self.note.validator else {})
        with _open(self.url, self._authorization, headers) as response:
            if self._answered(response, begin):
                self._take(response)

    def _answered(self, response, begin: int) -> bool:
        """Judges the answer to a request that began at a byte; False when the file was complete already."""
        status, note = response.status, _note_of(self.url, response)
        if status in _PASSING:
            raise _Passing(f"HTTP status {status}", _asked_pause(response.headers))
        if status == 416 and begin:
            if (response.headers.get("Content-Range") or "").rpartition("/")[2] == str(begin):
                return False
            self.restart()
            raise _Passing("the file has become shorter", 0.0)
        if status not in (200, 206):
            raise Refused(status)
        if (response.headers.get("Content-Encoding") or "identity") != "identity":
            raise UserError(f"{plain(self.url)} comes packed by the server: download it by hand as {self.path}.")
        if status == 206:
            found = _RANGE.fullmatch(response.headers.get("Content-Range") or "")
            if not found or int(found[1]) != begin or not self.note.same(note):
                self.restart()
                raise _Passing("the server gave another part, or the file has changed", 0.0)
        elif begin:
            self.restart()
        self._admit(note, response)
        return True

    def _admit(self, note: _Note, response) -> None:
        """Notes what comes, if it can be taken: of the right size, of a known length, with room on the disk."""
        known = note.size if note.size is not None else self._size
        if self._size is not None and note.size not in (None, self._size):
            raise UserError(
                f"{plain(self.url)} has {note.size} bytes where {self._size} are expected: it has been replaced there; "
                f"download it by hand as {self.path} if that is right."
            )
        if known is None and not getattr(response, "chunked", False):
            raise _Passing("the server does not say how long the file is")
        free = shutil.disk_usage(self.path.parent).free
        if known is not None and known - self.position + SPARE > free:
            raise UserError(
                f"{self.path.name} has {known:,} bytes, of which {known - self.position:,} are to come, and only "
                f"{free:,} are free in {self.path.parent}: free space or choose another --out."
            )
        self.note = note
        note.write(self._note_path)

    def _take(self, response) -> None:
        size = self.note.size if self.note.size is not None else self._size
        if size is None:
            for block in self._blocks(response, None):
                self.file.write(block)
        else:
            count = -(-max(size - self.position, 0) // _CHUNK)
            for block in progress(self._blocks(response, size - self.position), count, f"{self.path.name} (MiB)"):
                self.file.write(block)
        self.file.flush()
        if size is not None and self.position != size:
            raise _Passing(f"the connection ended at byte {self.position} of {size}")

    def _blocks(self, response, left: int | None) -> Iterator[bytes]:
        """The body in blocks of one MiB, the last one shorter, at most `left` bytes; network errors are `_Passing`."""
        while left is None or left > 0:
            try:
                block = response.read(_CHUNK if left is None else min(_CHUNK, left))
            except http.client.IncompleteRead as error:
                block, left = error.partial, -1  # what has arrived counts; the loop ends and the length tells
                if self.note.size is None:
                    raise _Passing("the connection ended early") from error
            except (OSError, http.client.HTTPException) as error:
                self.file.flush()
                raise _Passing(str(error) or type(error).__name__) from error
            if not block:
                return
            self._room()
            yield block
            left = None if left is None else left - len(block)

    def _room(self) -> None:
        """Nothing may fill the disk, whatever length was stated."""
        if shutil.disk_usage(self.path.parent).free < SPARE:
            self.file.flush()
            raise UserError(f"the disk of {self.path.parent} is full: free space and run the same command again.")


def sleep(seconds: float) -> None:
    """Waits; a name of its own, so that tests need not."""
    time.sleep(seconds)


def fetch(
    url: str, path: pathlib.Path, authorization: str = "", size: int | None = None, checked: bool = False
) -> Download:
    """Downloads `url` into `path`.part, going on where an earlier call or process stopped.

    Args:
        url: address; https, or http of this machine.
        path: what the file will be called.
        authorization: value of the header, sent to the host of `url` alone, or "".
        size: bytes that it must have, where that is known.
        checked: whether a known checksum will be compared, so that a part without validators may be continued.

    Returns:
        The complete download: `digests(download.part)`, then `download.finish()` or `download.discard()`.

    Raises:
        Refused: the server refuses, such as with status 403 or 404.
        UserError: the file cannot be had for another reason; what has arrived is kept.
    """
    download = Download(url, path, authorization, size, checked)
    failures, farthest = 0, download.position
    while True:
        try:
            download.attempt()
            return download
        except _Passing as error:
            download.file.flush()
            failures = 0 if download.position > farthest else failures + 1
            farthest = max(farthest, download.position)
            if failures >= ATTEMPTS:
                kept = download.leave()
                raise UserError(
                    f"{path.name} could not be had from {plain(url)} ({error}); {kept:,} bytes are kept: run the same "
                    "command again to go on."
                ) from error
            pause = error.pause if error.pause is not None else min(60.0, 2.0**failures) * random.uniform(0.5, 1.0)
            print(f"{path.name}: {error}; trying again", file=sys.stderr, flush=True)
            sleep(min(pause, _LONGEST_PAUSE))
        except BaseException:
            download.leave()
            raise


def digests(path: pathlib.Path) -> Fetched:
    """Size, SHA-256 and MD5 of a file, read once."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return Fetched(size, sha256.hexdigest(), md5.hexdigest())
