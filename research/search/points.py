"""What does a shared study say of one setting? Its trials, which of them counts, and its row of the ledger."""

import dataclasses
import json
import math
from typing import Any

from research.search.front import Objective
from research.search.sheets import tuples

# Where a trial's facts stand among its system attributes.
KEY, NAME, OVERRIDES, WORKER, GENERATION, GONE = (
    f"research:{word}" for word in ("key", "name", "overrides", "worker", "generation", "gone")
)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A trial that this worker is to train.

    Attributes:
      number: of the setting's first trial; it stays when the trial is taken over.
      name: for people, and for files; it stays too.
      overrides: keys of the config and their values.
      trial_id: of this attempt, in the storage.
    """

    number: int
    name: str
    overrides: dict[str, Any]
    trial_id: int


@dataclasses.dataclass(frozen=True)
class Point:
    """A setting and its trials, by number."""

    trials: tuple

    @property
    def standing(self):
        """The trial that counts, or None if all are gone."""
        return next((trial for trial in self.trials if not is_gone(trial)), None)

    @property
    def abandoned(self) -> int:
        """How many workers fell silent over it."""
        return sum(is_gone(trial) and trial.system_attrs[GONE] == "abandoned" for trial in self.trials)

    def claim(self, trial) -> Claim:
        """A trial of this point as its worker knows it."""
        attributes = trial.system_attrs
        return Claim(
            self.trials[0].number,
            attributes[NAME].format(self.trials[0].number),
            {key: tuples(value) for key, value in attributes[OVERRIDES].items()},
            trial._trial_id,
        )


def is_gone(trial) -> bool:
    """Whether a trial was ended because it is not to count."""
    return trial.state.name == "FAIL" and GONE in trial.system_attrs


def objective_value(cell: Any, objective: Objective) -> float:
    """An objective as the sampler gets it; NaN where it is no number."""
    if isinstance(cell, str) or cell is None:
        return math.nan
    if objective.log:
        return math.log10(cell) if cell > 0 else math.nan
    return float(cell)


def plain(value: Any) -> Any:
    """A cell as JSON has it: no NumPy, no NaN, which a browser cannot read."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def row(claim: Claim, trial) -> dict[str, Any]:
    """The ledger's row that `SharedStudy.tell` was given, and the worker."""
    row: dict[str, Any] = {"id": claim.name, "status": trial.state.name.lower(), "overrides": claim.overrides}
    metrics: dict[str, dict[str, float]] = {}
    for key, value in trial.user_attrs.items():
        split, slash, metric = key.partition("/")
        if slash and value is not None:
            metrics.setdefault(split, {})[metric] = value
        elif value is not None and not slash:
            row[key] = json.loads(value) if key == "overrides" else value
    return row | {"metrics": metrics}
