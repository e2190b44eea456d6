"""Which pretrained weights does a trial start from, how do they want their images, and what is written down of them?

`config.model.weights` is settled once, before anything is written: which form of the architecture the file means, and
how its images were prepared. What was settled and what was loaded stands in `weights.json` of the run folder, by trial.
A continued run goes on with what stands there; it needs the file only for trials that have not begun.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from input_pipeline.cli import UserError, atomic_write
from research.training import encoder_weights

RECORD = "weights.json"


@dataclasses.dataclass(frozen=True)
class Start:
    """Weights that a trial starts from.

    Attributes:
      model: name of the model, or of the part's architecture.
      file: as in the config, with the model's name in the place of "{name}".
      path: where it lies (a download has another path than its name).
      sha256: of the file.
      source: where the weights come from, in words.
      variant: form of the architecture, "" if there is one only.
      preprocessing: {"kind": "fixed" | "raw" | "caffe", "mean": [...], "std": [...]}, or None if nobody knows.
      part: of the model that the weights are for, "" for all of it.
      plan: what reads the file; None if the file is not there any more.
    """

    model: str
    file: str
    path: str
    sha256: str
    source: str
    variant: str
    preprocessing: dict[str, Any] | None
    part: str = ""
    plan: Any = dataclasses.field(default=None, compare=False, repr=False)

    def load(self, model, variables, modules, channels: int) -> tuple[Any, dict[str, Any]]:
        """The initial variables with the file's weights in them, and what was loaded, replaced and adapted.

        `modules` are the paths of the model's modules that own variables, in the order of their calls; `channels` those
        of the images.

        Raises:
          UserError: the file is missing, damaged, or belongs to another model.
        """
        plan = self.plan or read_plan(self.model, self.variant, self.file)
        if self.part:
            return encoder_weights.load(plan, self.part, model, variables, channels)
        return plan.load(model, variables, modules)

    def record(self) -> dict[str, Any]:
        """All but the plan, for JSON."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "plan"}


def read_plan(name: str, variant: str, file: str):
    """`research.models.pretrained.plan`, imported where weights are used only."""
    from research.models import pretrained

    return pretrained.plan(name, variant, file)


class Starts:
    """Settles the weights of trials; each file is read once.

    Args:
      records: what `read_records` found in the run folder.
    """

    def __init__(self, records: Mapping[str, dict] | None = None) -> None:
        self.records = records or {}
        self._plans: dict[tuple[str, str, str], Any] = {}

    def settle(self, settings, trial: str) -> Start | None:
        """The start of a trial with the settings config.model, or None without weights or what they are for.

        Raises:
          UserError: the file is missing, unreadable or changed since the run began.
        """
        if not settings.weights:
            return None
        name, part, variant = settings.name, "", settings.variant
        own_part, family = encoder_weights.part(settings)
        if own_part and not family:
            return None
        file = settings.weights.replace("{name}", family or name)
        stored = self.records.get(trial)
        if stored:
            name, part, variant = stored["model"], stored.get("part", ""), stored["variant"]
        elif family and not encoder_weights.holds_whole(read_plan(family, "", file), own_part):
            name, part = family, own_part
            variant = (settings.options.get(f"{part}_options") or {}).get("variant", "")
        key = (name, variant, file)
        try:
            if key not in self._plans:
                self._plans[key] = read_plan(*key)
            plan = self._plans[key]
        except UserError:
            if stored is None:
                raise
            return _from_record(stored)
        for record in self.records.values():
            if record["file"] == file and record["sha256"] != plan.sha256:
                raise UserError(
                    f"The weights {file} have changed since this run began (SHA-256 {plan.sha256[:12]}…, was "
                    f"{record['sha256'][:12]}…); put the old file back or choose another --workdir."
                )
        if stored:
            return dataclasses.replace(_from_record(stored), plan=plan)
        return Start(name, file, str(plan.path), plan.sha256, plan.source, plan.variant, plan.preprocessing, part, plan)


def _from_record(record: Mapping[str, Any]) -> Start:
    return Start(**{f.name: record[f.name] for f in dataclasses.fields(Start) if f.name in record})


def read_records(folder: pathlib.Path) -> dict[str, dict]:
    """{trial: record with the report of what was loaded} of a run folder; empty without the file."""
    file = folder / RECORD
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def write_record(folder: pathlib.Path, trial: str, start: Start, report: Mapping[str, Any]) -> None:
    """Adds a trial to the run folder's record."""
    records = read_records(folder) | {trial: start.record() | {"report": dict(report)}}
    atomic_write(folder / RECORD, json.dumps(records, indent=1, sort_keys=True) + "\n")


def preprocessing(data, start: Start | None) -> dict[str, Any]:
    """The normalisation that config.data.normalize means: {"kind", "mean", "std"}.

    "auto" is what the weights were trained with, or without weights "fixed" with the config's mean and std.

    Raises:
      UserError: "auto", and nobody knows what the weights were trained with.
    """
    kind = data.normalize
    if kind == "auto" and start is not None:
        if start.preprocessing is None:
            raise UserError(
                f"{start.file} does not say how its images were prepared; set config.data.normalize (raw, caffe, or "
                "fixed with config.data.mean and config.data.std)."
            )
        return dict(start.preprocessing)
    kind = "fixed" if kind == "auto" else kind
    return {"kind": kind} | ({"mean": data.mean, "std": data.std} if kind == "fixed" else {})


def in_words(settings: Mapping[str, Any]) -> str:
    """A normalisation as a short text, such as "fixed (mean 0.5, std 0.5)"."""
    numbers = [
        f"{name} {' '.join(f'{x:.4g}' for x in _several(settings[name]))}"
        for name in ("mean", "std")
        if settings["kind"] == "fixed" and settings.get(name) is not None
    ]
    return f"{settings['kind']} ({', '.join(numbers)})" if numbers else settings["kind"]


def _several(value) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
