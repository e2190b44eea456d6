"""How do the 28 classes and four single-channel files of HPA-2018 become the ten classes and one image of the course?

The Kaggle competition "Human Protein Atlas Image Classification" (2018) gives each image as `<uuid>_red`
(microtubules), `_green` (the protein), `_blue` (nucleus) and `_yellow` (endoplasmic reticulum).
"""

import collections
from collections.abc import Iterable, Mapping

from input_pipeline.cli import UserError
from input_pipeline.studies.manifest import list_briefly

CLASS_NAMES = (
    "Mitochondria",
    "Nuclear bodies",
    "Nucleoli",
    "Golgi apparatus",
    "Nucleoplasm",
    "Nucleoli fibrillar center",
    "Cytosol",
    "Plasma membrane",
    "Centrosome",
    "Nuclear speckles",
)
NUM_LABELS = 28
MAPPING = {23: 0, 5: 1, 2: 2, 7: 3, 0: 4, 3: 5, 25: 6, 21: 7, 19: 8, 4: 9}
"""Label of HPA-2018 -> index into `CLASS_NAMES`."""

RULE = (
    "The ten labels are renamed; the other eighteen are dropped from images that also have one of the ten; images that "
    "have none of the ten are left out."
)
CHANNELS = ("red", "green", "blue", "yellow")


def parse_channels(text: str) -> tuple[str, ...]:
    """The option `channels`, "red,green,blue", as names.

    Raises:
        UserError: an unknown or repeated channel, or a number of channels that no image format stores.
    """
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    if len(set(names)) != len(names) or not set(names) <= set(CHANNELS) or len(names) not in (1, 3, 4):
        raise UserError(f"channels={text} must list one, three or four different names of {', '.join(CHANNELS)}.")
    return names


def translate(
    labels: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, tuple[int, ...]], list[str], dict[str, int]]:
    """Applies `RULE`.

    Returns:
        id -> ascending indices into `CLASS_NAMES`; ids with none of the ten labels; and how many images lost which of
        the other labels (label as text -> count, ids with none of the ten not counted).
    """
    usable, left_out = {}, []
    dropped: collections.Counter[int] = collections.Counter()
    for identifier, found in labels.items():
        kept = tuple(sorted(MAPPING[label] for label in found if label in MAPPING))
        if kept:
            usable[identifier] = kept
            dropped.update(label for label in found if label not in MAPPING)
        else:
            left_out.append(identifier)
    return usable, left_out, {str(label): count for label, count in sorted(dropped.items())}


def missing(identifier: str, files: Mapping[str, str], channels: Iterable[str]) -> str:
    """Which of the channels have no file, as a reason; an empty string when none is missing."""
    absent = [channel for channel in channels if f"{identifier}_{channel}" not in files]
    if not absent:
        return ""
    return f"missing channel{'s' if len(absent) > 1 else ''}: {', '.join(absent)}"


def complete_ids(ids: Iterable[str], files: Mapping[str, str], channels: Iterable[str]) -> set[str]:
    """Ids that have a file for every channel."""
    return {identifier for identifier in ids if not missing(identifier, files, channels)}


def ids_of(files: Iterable[str]) -> set[str]:
    """Ids of the file stems that end like a channel's."""
    return {key.rpartition("_")[0] for key in files if key.rpartition("_")[2] in CHANNELS and "_" in key}


def describe_incomplete(
    where: str, table: str, ids: Iterable[str], files: Mapping[str, str], channels: tuple[str, ...]
) -> str:
    """The sentence about a download in which no id has all channels."""
    ids = list(ids)
    have = {channel: sum(f"{identifier}_{channel}" in files for identifier in ids) for channel in CHANNELS}
    lacking = ", ".join(f"{channel} is missing for {len(ids) - have[channel]}" for channel in channels)
    without = sum(not any(f"{identifier}_{channel}" in files for channel in CHANNELS) for identifier in ids)
    best = max(CHANNELS, key=lambda channel: have[channel])
    remedy = "download the images again"
    if have[best]:
        remedy += f", or prepare a single channel with --set channels={best} ({have[best]} ids have it)"
    return (
        f"none of the {len(ids)} ids of {table} has all of the channels {list_briefly(channels, 4)} in {where}: "
        f"{lacking}, and {without} have no file at all; {remedy}."
    )
