"""Which samples of a download of gene expression become examples, with which tumour types, patients and roles?

Every layout of tables and labels that circulates, their scales, filters and options (`--set`) are the business of
`input_pipeline.expression.reading`. Here its answer becomes what `prepare` takes: a vector for each sample, classes in
alphabetical order, the patient as group, so that the tumour, the metastasis and the normal tissue of a patient stay on
one side of every split.
"""

import pathlib
import re
from collections.abc import Mapping

from input_pipeline.cli import UserError
from input_pipeline.expression import Expression, reading
from input_pipeline.raw import RawSource, Unreadable
from input_pipeline.studies.manifest import Manifest, RawExample

POSITIONS, PLANTED = "expression.positions.csv", "expression.planted.csv"
TABLES = {"positions.csv": POSITIONS, "programmes.csv": PLANTED}
"""Tables of a download that come with the data set: where genes lie, and in simulations which were planted."""

_PLACE = re.compile(r"(?P<place>.*?, line \d+(?:, column \d+)?): (?P<reason>.*)", re.DOTALL)


def _reason_alone(problem: tuple[str, str]) -> tuple[str, str]:
    """A problem with its place beside the name, so that the report counts a reason once wherever it occurred."""
    found = _PLACE.fullmatch(problem[1])
    return (f"{problem[0]} ({found['place']})", found["reason"]) if found else problem


def _tables(source: RawSource) -> dict[str, bytes]:
    """What the download knows of its genes, the outermost file of each name in `TABLES`."""
    found = {}
    for name in sorted(source.names(), key=lambda name: (-name.count("/"), name)):
        kept = TABLES.get(name.rpartition("/")[2].lower())
        if kept:
            try:
                found[kept] = source.read(name)
            except Unreadable as error:
                raise UserError(f"{name} in {source.path} cannot be used ({error}): replace it.") from error
    return found


def manifest_of(found: Expression, tables: Mapping[str, bytes] | None = None) -> Manifest:
    """The manifest of expression data; an example of a class "" is unlabelled.

    Raises:
        ValueError: when the parts of `found` are not of one length.
    """
    class_names = tuple(sorted(set(found.labels) - {""}))
    index = {name: (label,) for label, name in enumerate(class_names)} | {"": ()}
    columns = zip(found.ids, found.labels, found.official_roles, found.patients, strict=True)
    examples = [RawExample(name, (), index[label], role, patient) for name, label, role, patient in columns]
    if found.values.shape != (len(examples), len(found.genes)):
        raise ValueError(f"{len(examples)} samples of {len(found.genes)} genes have values {found.values.shape}")
    return Manifest(
        study="cancer_genes",
        class_names=class_names,
        multi_label=False,
        examples=examples,
        problems=[_reason_alone(problem) for problem in found.problems],
        official_split="test" in found.official_roles,
        notes=dict(found.notes),
        genes=tuple(found.genes),
        values=found.values,
        tables=tables or {},
    )


def scan(source: RawSource, options: Mapping[str, str], scratch: pathlib.Path) -> Manifest:
    """Reads the tables and labels of a download.

    Args:
        source: the download.
        options: see `input_pipeline.expression.reading`.
        scratch: an empty folder that lives until the data set is written; large values are mapped from a file in it.

    Raises:
        UserError: an option or the data cannot be used, or no sample has a label.
    """
    found = reading.read(source, options, scratch)
    manifest = manifest_of(found, _tables(source))
    if not manifest.class_names:
        raise UserError(
            f"none of the {len(manifest.examples)} samples in {source.path} has a label: put a table of tumour types "
            "by sample or by patient beside the expression."
        )
    return manifest
