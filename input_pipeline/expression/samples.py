"""Which columns (or rows) of a table become samples, under which label, and what of a sample measured twice?"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from input_pipeline.cli import UserError
from input_pipeline.expression import barcodes
from input_pipeline.expression.labels import Labels
from input_pipeline.expression.parsing import Table
from input_pipeline.raw import printable
from input_pipeline.studies.manifest import list_briefly

NORMAL = "normal"
"""The extra class of normal tissue."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A sample as it stands in a table.

    Attributes:
        id: its name there.
        position: its place among the samples that are kept of all tables, from 0.
        place: where its name stands: file, line and column.
        label: its class, "" without one.
        patient: its group.
        role: the role that the source fixes, "unlabelled" without a label, otherwise None.
    """

    id: str
    position: int
    place: str
    label: str
    patient: str
    role: str | None


class Chooser:
    """Takes samples in, table after table, and lists those that are left out.

    Attributes:
        samples: what was taken so far.
        problems: `("sample (place)", reason)` of those left out and of those without a label; a reason names no place,
            so that the ingest report can count them.
        counts: how many samples met which fate, for the ingest report.
    """

    def __init__(self, mode: str, labels: Labels | None, codes: Mapping[str, str]):
        self.samples: list[Sample] = []
        self.problems: list[tuple[str, str]] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self._mode = mode
        self._labels = labels
        self._codes = codes

    def take(self, table: Table, name: str, place: str) -> bool:
        """Decides on one sample; True when it is kept."""
        self.counts["found"] += 1
        reason = self._exclusion(name)
        label, patient, role = table.label or self._codes.get(name, ""), "", None
        if not reason and self._labels is not None:
            entry, unknown = self._labels.find(name)
            if entry is not None:
                patient, role = entry.patient, entry.role
                if entry.refused:
                    reason = f"marked Do_not_use in {self._labels.name}"
                label = label or entry.label
                unknown = f"{self._labels.name} has a line but no label for it"
                place += f"; {self._labels.name}, line {entry.line}" if entry.refused or not label else ""
            if not label and not reason and not self._is_extra_class(name):
                self.problems.append((f"{name} ({place})", f"{unknown}; kept without a label"))
        if reason:
            self.counts["left out"] += 1
            self.problems.append((f"{name} ({place})", reason))
            return False
        label = NORMAL if self._is_extra_class(name) else label
        role = role if label else "unlabelled"
        if barcodes.canonical(name) is not None:
            patient = barcodes.patient(name)
        self.samples.append(Sample(name, len(self.samples), place, label, patient or name, role))
        self.counts["normal tissue" if barcodes.is_normal(name) else "tumour or unknown tissue"] += 1
        self.counts["without label"] += not label
        return True

    def _is_extra_class(self, name: str) -> bool:
        return self._mode == "normals" and barcodes.is_normal(name)

    def _exclusion(self, name: str) -> str:
        """Why the mode leaves a sample out, or "" when it does not."""
        kind = barcodes.SAMPLE_TYPES.get(barcodes.type_code(name) or 0, "unknown")
        if self._mode == "tumours" and barcodes.is_normal(name):
            return f"{kind}; --set samples=all or samples=normals takes it in"
        if self._mode != "all" and barcodes.is_control(name):
            return f"{kind}, no tumour"
        return ""

    def check(self) -> None:
        """Holds what was taken against the labels.

        Raises:
            UserError: no sample is left, or none has a label.
        """
        if not self.samples:
            raise UserError(
                f"none of the {self.counts['found']} samples is a tumour: take all with --set samples=all."
                if self.counts["found"]
                else "the table has no samples: download it again."
            )
        if not any(sample.label for sample in self.samples):
            known = list_briefly(self._labels.exact) if self._labels else "nothing"
            file = self._labels.name if self._labels else "the source"
            raise UserError(
                f"{file} has a label for none of the {len(self.samples)} samples of the table: it knows {known}, the "
                f"table has {list_briefly(sample.id for sample in self.samples)}; name the right file with --set "
                "labels=NAME."
            )


def merge_aliquots(
    samples: Sequence[Sample], mode: str, problems: list[tuple[str, str]]
) -> tuple[list[str], list[list[Sample]]]:
    """The final ids, ascending, and for each the measurements that it is made of.

    Several measurements are of one sample when the first 15 characters of their barcodes agree. They are ordered by
    barcode, then by their place in the tables.

    Args:
        samples: in the order of the tables.
        mode: "first" keeps the first measurement, "mean" averages them all under the first one's id, "all" keeps each;
            where a name is there several times, the later ones are called `NAME#2`, `NAME#3`, …
        problems: gets what is left out.

    Raises:
        UserError: a name that can stand for one measurement only occurs twice, or measurements of one sample have
            different labels.
    """
    groups: dict[str, list[Sample]] = {}
    names: dict[str, Sample] = {}
    for sample in samples:
        twin = names.setdefault(barcodes.canonical(sample.id) or sample.id, sample)
        if twin is not sample and barcodes.names_one_aliquot(sample.id):
            raise UserError(
                f"{sample.place}: the sample {printable(sample.id, 60)} occurs a second time, first at {twin.place}; "
                "remove or rename one."
            )
        groups.setdefault(barcodes.sample(sample.id), []).append(sample)
    final: dict[str, list[Sample]] = {}
    for key, members in groups.items():
        members = sorted(members, key=lambda sample: (sample.id, sample.position))
        members = _with_one_label(key, members)
        if mode == "all":
            for member in members:
                final[_free_name(member.id, final)] = [member]
            continue
        final[members[0].id] = members if mode == "mean" else members[:1]
        if mode == "first":
            for other in members[1:]:
                twins = f"{other.id} ({other.place}; kept is that at {members[0].place})"
                problems.append((twins, "a further measurement of a sample (aliquots=first)"))
    ids = sorted(final)
    return ids, [final[name] for name in ids]


def _with_one_label(key: str, members: list[Sample]) -> list[Sample]:
    labelled = [member for member in members if member.label]
    for member in labelled:
        if member.label != labelled[0].label:
            raise UserError(
                f"{member.place}: {printable(key, 60)} is {member.label} here and {labelled[0].label} at "
                f"{labelled[0].place}; remove one."
            )
    if not labelled:
        return members
    return [dataclasses.replace(member, label=labelled[0].label, role=labelled[0].role) for member in members]


def _free_name(name: str, taken: Mapping[str, object]) -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name}#{number}" in taken:
        number += 1
    return f"{name}#{number}"
