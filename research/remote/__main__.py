"""Fetches a run from an object store, to look at it, or to use it with the commands that read run folders.

    python -m research.remote --url=s3://bucket/runs/x --out=DIR

DIR must not exist; it appears when the run is complete in it, as its newest state in the store was, every part checked
by its SHA-256. The run may still be at work. Exit status: 0, 2 a mistake or a store that cannot be reached.
"""

import argparse
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import NoReturn

from input_pipeline import cli
from input_pipeline.cli import UserError
from input_pipeline.remote import Store, is_remote
from research.remote.generations import pull


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python -m research.remote --help.")


def fetch(url: str, out: pathlib.Path) -> None:
    """Fetches the newest state of a run into the new folder `out`.

    Raises:
      UserError: there is no run at the address, it is damaged, or `out` exists.
    """
    if not is_remote(url):
        raise UserError(f"{url} is no address of a store, such as s3://bucket/runs/x.")
    if out.exists():
        raise UserError(f"{out} exists; choose another --out.")
    temporary = out.with_name(f".{out.name}.fetching")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        if pull(Store(url), temporary) is None:
            raise UserError(f"there is no run in {url}; check the address.")
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = _Parser(prog="python -m research.remote", description="Fetches a run from an object store.")
    parser.add_argument("--url", required=True, help="the --workdir of the run")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder that appears")
    flags = parser.parse_args(arguments)
    fetch(flags.url, flags.out)
    print(f"{flags.out} holds the run of {flags.url}.", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
