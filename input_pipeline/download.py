"""How does the raw data of a study come here?

    python -m input_pipeline.download --study=NAME --out=RAW [--only=PLACE] [--token=FILE]
    python -m input_pipeline.download --list [--study=NAME]

downloads what `input_pipeline.prepare` reads, from the publisher or from Kaggle, and says which command is next. --list
names all places with their licences; --only takes another place than the first. Kaggle's data sets need no token, its
competitions do (input_pipeline/kaggle_token.py says which tokens are found), and their rules have to be accepted once
in a browser. Archives are not unpacked: `prepare` reads a .zip in place.

RAW gets the files and `download.json`, with the size and SHA-256 of each. Stopped at any moment, the same command goes
on where it was; of complete files it checks the sums. A file whose sum is neither the known one nor the one of the
first download is refused. Exit status: 0 everything is there, 2 a mistake or a refusal of the server, 130 Ctrl-C.
"""

import argparse
import json
import pathlib
import sys
import zipfile
from collections.abc import Sequence
from typing import NoReturn

from input_pipeline import fetching, kaggle_token
from input_pipeline.cli import UserError, atomic_write, run
from input_pipeline.sources import MANUAL, PLACES, File, Place

RECORD = "download.json"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python -m input_pipeline.download --help.")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line. Raises `UserError`."""
    parser = _Parser(
        prog="python -m input_pipeline.download",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--study", help=", ".join([*PLACES, *MANUAL]))
    parser.add_argument("--out", help="folder for the raw data")
    parser.add_argument("--only", help="the place to take, one of those that --list names")
    parser.add_argument("--token", help="file of your Kaggle token (default: where Kaggle's own tools look)")
    parser.add_argument("--list", action="store_true", help="name places, licences and files, and download nothing")
    flags = parser.parse_args(arguments)
    if not flags.list and not (flags.study and flags.out):
        parser.error("--study and --out are needed")
    return flags


def places(study: str) -> dict[str, Place]:
    """The places of a study. Raises `UserError` for one that has none, with what to do instead."""
    if study in MANUAL:
        raise UserError(f"{study} cannot be downloaded: {MANUAL[study]}.")
    if study not in PLACES:
        raise UserError(f"unknown study {study!r}: choose one of {', '.join(PLACES)}.")
    return dict(PLACES[study])


def listing(studies: Sequence[str]) -> str:
    """All places in words."""
    lines = []
    for study in studies:
        for name, place in PLACES.get(study, {}).items():
            needs = {"competition": "; needs a Kaggle token and accepted rules"}.get(place.kaggle, "")
            lines.append(f"{study} --only={name}: {place.title}\n  licence: {place.licence}{needs}\n  {place.page}")
            lines += [f"    {file.name}" + (f", {file.size:,} bytes" if file.size else "") for file in place.files]
        if study in MANUAL:
            lines.append(f"{study}: {MANUAL[study]}.")
    return "\n".join(lines)


class _Record:
    """`download.json`: which place a folder is of, and size and SHA-256 of its files."""

    def __init__(self, out: pathlib.Path, study: str, place: str) -> None:
        self._path = out / RECORD
        self._content = {"study": study, "place": place, "files": {}}
        if self._path.exists():
            stored = self._read()
            if (stored["study"], stored["place"]) != (study, place):
                raise UserError(
                    f"{out} holds {stored['study']} from {stored['place']}, not {study} from {place}: choose another "
                    "--out."
                )
            self._content = stored

    def _read(self) -> dict:
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            _ = stored["study"], stored["place"], [entry["sha256"] for entry in stored["files"].values()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self._path} is damaged: remove it, and the sums are recorded anew.") from error
        return stored

    def sha256(self, name: str) -> str:
        """What was recorded at the first download, or ""."""
        return self._content["files"].get(name, {}).get("sha256", "")

    def write(self, file: File, found: fetching.Fetched) -> None:
        """Records a file."""
        entry = {"bytes": found.size, "sha256": found.sha256, "from": fetching.plain(file.url)}
        self._content["files"][file.name] = entry
        self._content["files"] = dict(sorted(self._content["files"].items()))
        atomic_write(self._path, json.dumps(self._content, indent=1) + "\n")


def wrong(file: File, found: fetching.Fetched, recorded: str, stated_md5: str = "") -> str:
    """Why a complete file is not the one that is wanted, or "".

    Args:
        file: what is known of it.
        found: what it is.
        recorded: SHA-256 of the first download, or "".
        stated_md5: what the server says of it, or "".
    """
    if file.size is not None and found.size != file.size:
        return f"has {found.size:,} bytes where {file.size:,} are expected"
    if file.md5 and found.md5 != file.md5:
        return f"has the MD5 {found.md5} where {file.md5} is expected"
    if stated_md5 and found.md5 != stated_md5:
        return f"has the MD5 {found.md5} where the server states {stated_md5}"
    if recorded and found.sha256 != recorded:
        return f"has another SHA-256 than the one in {RECORD}, from the first download"
    return ""


def is_kind(path: pathlib.Path, kind: str) -> bool:
    """Whether a file is of its kind, see `File`, and not a web page that asks to log in."""
    with open(path, "rb") as opened:
        start = opened.read(512)
    if kind == "zip":
        return zipfile.is_zipfile(path)
    if kind == "gzip":
        return start.startswith(b"\x1f\x8b")
    other = start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"\x1f\x8b", b"pk\x03\x04"))
    return bool(start) and b"\0" not in start and not other


def _refusal(error: fetching.Refused, place: Place, file: File, has_token: bool) -> UserError:
    """What a person does about an answer of the server."""
    if place.kaggle and error.status == 401:
        what = "does not accept the token" if has_token else f"wants a token for {file.name}"
        return UserError(f"Kaggle {what} (status 401): {kaggle_token.CREATE}.")
    if place.kaggle and error.status == 403:
        accept = "accept the rules" if place.kaggle == "competition" else "accept the terms"
        return UserError(f"Kaggle refuses {file.name} (status 403): {accept} at {place.page}, then run this again.")
    return UserError(
        f"{fetching.plain(file.url)} answers with status {error.status}: see {place.page} whether the file has moved, "
        f"and put it as {file.name} into another folder for `prepare`."
    )


def _get(place: Place, file: File, out: pathlib.Path, record: _Record, authorization: str) -> None:
    """One file: checked if it is there, downloaded and checked if not."""
    path = out / file.name
    recorded = record.sha256(file.name)
    if path.exists():
        if not recorded and not file.md5:
            raise UserError(f"{path} is not from this command ({RECORD} does not know it): move it away.")
        print(f"{file.name}: is there, checking it", file=sys.stderr, flush=True)
        found = fetching.digests(path)
        if reason := wrong(file, found, recorded):
            raise UserError(f"{path} {reason}: remove it and run this again.")
        record.write(file, found)
        return
    try:
        download = fetching.fetch(
            file.url, path, authorization if place.kaggle else "", file.size, checked=bool(file.md5 or recorded)
        )
    except fetching.Refused as error:
        raise _refusal(error, place, file, bool(authorization)) from error
    found = fetching.digests(download.part)
    if reason := wrong(file, found, recorded, download.note.md5):
        download.discard()
        raise UserError(
            f"{file.name} {reason}; it was thrown away: run this again, and if that does not help the file has been "
            f"replaced at {place.page}."
        )
    if not is_kind(download.part, file.kind):
        download.discard()
        raise UserError(f"what {fetching.plain(file.url)} sent is not the file but perhaps a page: see {place.page}.")
    record.write(file, found)  # first: a file without a record would be a stranger to the next call
    download.finish()


def download(study: str, out: pathlib.Path, only: str | None = None, token: str | None = None) -> str:
    """Downloads a study's raw data; returns the command that comes next.

    Args:
        study: a name in `PLACES`.
        out: folder that gets the files; made if it does not exist.
        only: the place, or None for the first.
        token: file of a Kaggle token, or None for where Kaggle's tools look.

    Raises:
        UserError: a mistake, a refusal, or a file that is not the one wanted.
    """
    known = places(study)
    name = only or next(iter(known))
    if name not in known:
        raise UserError(f"--only={name} is no place of {study}: choose one of {', '.join(known)}.")
    place = known[name]
    authorization = kaggle_token.authorization(token) if place.kaggle or token else ""
    if place.kaggle == "competition" and not authorization:
        raise UserError(
            f"the competition {place.page} needs your Kaggle token: {kaggle_token.CREATE}, set KAGGLE_API_TOKEN or "
            "give its file as --token, and accept the rules on that page."
        )
    out.mkdir(parents=True, exist_ok=True)
    record = _Record(out, study, name)
    print(f"{place.title}\n  licence: {place.licence}; terms: {place.page}", file=sys.stderr, flush=True)
    for file in place.files:
        _get(place, file, out, record, authorization)
    if place.remark:
        print(place.remark, file=sys.stderr)
    return f"python -m input_pipeline.prepare --study={study} --source={out / place.source} --out=data/{study}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    flags = parse(arguments)
    if flags.list:
        if flags.study and flags.study not in (*PLACES, *MANUAL):
            places(flags.study)
        print(listing([flags.study] if flags.study else [*PLACES, *MANUAL]))
        return
    following = download(flags.study, pathlib.Path(flags.out), flags.only, flags.token)
    print(f"Everything is in {flags.out}. Next:\n  {following}")


if __name__ == "__main__":
    run(main)
