"""Which Kaggle token does the user have, and how is it sent?

In this order: the file of `--token`; KAGGLE_API_TOKEN; KAGGLE_USERNAME with KAGGLE_KEY; `access_token` and then
`kaggle.json` in KAGGLE_CONFIG_DIR or ~/.kaggle. A file is either Kaggle's kaggle.json (`username`, `key`), sent as HTTP
basic authentication, or holds a token on its first line, sent as a bearer. The token itself is never printed or stored.
"""

import base64
import json
import os
import pathlib
import re
from collections.abc import Mapping

from input_pipeline.cli import UserError

_MAX_BYTES = 4096
_PLAIN = re.compile(r"[\x21-\x7e]+")
CREATE = "create a token at https://www.kaggle.com/settings under API"


def authorization(file: str | os.PathLike | None = None, environment: Mapping[str, str] | None = None) -> str:
    """The value of the header `Authorization`, or "" where there is no token.

    Args:
        file: the file of `--token`, or None.
        environment: variables; None for those of this process.

    Raises:
        UserError: a file that cannot be read or holds no token; the message never quotes its content.
    """
    given = os.environ if environment is None else environment
    if file is not None:
        return _from_file(pathlib.Path(file))
    if given.get("KAGGLE_API_TOKEN"):
        return _bearer(given["KAGGLE_API_TOKEN"].strip(), "KAGGLE_API_TOKEN")
    if given.get("KAGGLE_USERNAME") and given.get("KAGGLE_KEY"):
        return _basic(given["KAGGLE_USERNAME"].strip(), given["KAGGLE_KEY"].strip(), "KAGGLE_USERNAME and KAGGLE_KEY")
    home = pathlib.Path(given.get("HOME") or "~").expanduser()
    folder = pathlib.Path(given.get("KAGGLE_CONFIG_DIR") or home / ".kaggle")
    for name in ("access_token", "kaggle.json"):
        if (folder / name).is_file():
            return _from_file(folder / name)
    return ""


def _from_file(path: pathlib.Path) -> str:
    try:
        with open(path, "rb") as opened:
            text = opened.read(_MAX_BYTES + 1).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the Kaggle token {path} cannot be read; {CREATE}.") from error
    if len(text) > _MAX_BYTES:
        raise UserError(f"{path} is too large for a Kaggle token; {CREATE}.")
    if not text.startswith("{"):
        return _bearer(text.partition("\n")[0].strip(), str(path))
    try:
        content = json.loads(text)
        username, key = content["username"], content["key"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no kaggle.json with username and key; {CREATE}.") from error
    return _basic(str(username), str(key), str(path))


def _bearer(token: str, place: str) -> str:
    _check(token, place)
    return f"Bearer {token}"


def _basic(username: str, key: str, place: str) -> str:
    _check(username, place)
    _check(key, place)
    return "Basic " + base64.b64encode(f"{username}:{key}".encode()).decode()


def _check(part: str, place: str) -> None:
    if not _PLAIN.fullmatch(part):
        raise UserError(f"{place} holds no Kaggle token (it is empty or has blanks in it); {CREATE}.")
