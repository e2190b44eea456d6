"""What may be written behind `python -m input_pipeline.prepare`, and what holds where nothing is?"""

import argparse
from collections.abc import Mapping, Sequence
from typing import NoReturn

from input_pipeline.cli import UserError
from input_pipeline.image_headers import MAX_PIXELS
from input_pipeline.studies import STUDIES

FRACTIONS = {"validation": 0.1, "calibration": 0.1, "test": 0.15}
"""Shares of the examples that are carved out for the roles that the source does not provide."""

MAX_BAD = 0.05
"""Share of unreadable images above which nothing is written."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python -m input_pipeline.prepare --help.")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; `set` and `fractions` are lists of KEY=VALUE. Raises `UserError`."""
    parser = _Parser(
        prog="python -m input_pipeline.prepare", description="Turns a raw download into a prepared dataset."
    )
    parser.add_argument("--study", required=True, help=", ".join(STUDIES))
    parser.add_argument("--source", required=True, help="folder (or s3://…) or .zip of the raw download; only read")
    parser.add_argument("--out", required=True, help="folder (or s3://…, gs://…) that appears when all is complete")
    parser.add_argument("--workers", type=int, help="processes that read images (default: one for each core)")
    parser.add_argument("--seed", type=int, default=0, help="of the carved roles and the folds (default 0)")
    parser.add_argument("--folds", type=int, default=0, help="store K grouped stratified folds (default 0: none)")
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="options of the study"
    )
    parser.add_argument(
        "--captions_only", action="append_const", dest="set", const="captions_only=yes",
        help="short for --set captions_only=yes: the study captions without its image files",
    )  # fmt: skip
    parser.add_argument(
        "--fractions", nargs="+", default=[], metavar="ROLE=SHARE",
        help="of the roles to carve (default " + " ".join(f"{role}={share}" for role, share in FRACTIONS.items()) + ")",
    )  # fmt: skip
    parser.add_argument(
        "--max_bad", type=float, default=MAX_BAD, help=f"stop above this share of bad images (default {MAX_BAD})"
    )
    parser.add_argument("--max_pixels", type=int, help=f"limit of pixels in an image (default {MAX_PIXELS})")
    parser.add_argument(
        "--duplicates",
        choices=("near", "exact"),
        help="look for augmented and re-encoded copies (near, default for images) or for identical ones only (exact)",
    )
    parser.add_argument("--boxes", help="table of the part of each image to keep, written by research.segment")
    parser.add_argument(
        "--runner", default="", help="prepare under Apache Beam: direct, dataflow, flink or spark (extra beam)"
    )
    parser.add_argument("--beam_options", default="", help='options of the runner, such as "--region=europe-west4"')
    return parser.parse_args(arguments)


def pairs(flag: str, given: Sequence[str]) -> dict[str, str]:
    """The KEY=VALUE texts of a flag as a dict. Raises `UserError` for another text."""
    options = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"{flag} {pair} is no KEY=VALUE pair.")
        options[key] = value
    return options


def shares(given: Sequence[str]) -> dict[str, float]:
    """The texts of --fractions as shares by role. Raises `UserError` where one is no number."""
    try:
        return {role: float(share) for role, share in pairs("--fractions", given).items()}
    except ValueError as error:
        raise UserError(f"--fractions {' '.join(given)}: write shares as numbers, such as test=0.2.") from error


def check_arguments(workers: int | None, seed: int, folds: int, max_bad: float, max_pixels: int | None) -> None:
    """Refuses numbers that mean nothing. Raises `UserError`."""
    if workers is not None and workers < 1:
        raise UserError(f"--workers={workers} must be at least 1.")
    if seed < 0:
        raise UserError(f"--seed={seed} must not be negative.")
    if folds < 0 or folds == 1:
        raise UserError(f"--folds={folds} must be 0 (no folds) or at least 2.")
    if not 0 <= max_bad <= 1:
        raise UserError(f"--max_bad={max_bad} must be a share between 0 and 1.")
    if max_pixels is not None and max_pixels < 1:
        raise UserError(f"--max_pixels={max_pixels} must be positive.")


def check_fractions(fractions: Mapping[str, float]) -> dict[str, float]:
    """All shares, the given ones and those of `FRACTIONS`. Raises `UserError` for what is no share of a role."""
    for role, fraction in fractions.items():
        if role not in FRACTIONS or not 0 <= fraction < 1:
            raise UserError(f"the fraction {role}={fraction} must be a share of {', '.join(FRACTIONS)}, 0 or more.")
    complete = {**FRACTIONS, **fractions}
    if sum(complete.values()) >= 1:
        raise UserError(f"the fractions {complete} leave nothing to train on: lower them.")
    return complete
