"""What does the report need to know? The schema of the dict that `page.write_page` is given.

Every part but the title and the command may be missing; numbers may be NumPy scalars, and None or NaN is unknown.
"""

from typing import Any, NotRequired, TypedDict


class Estimate(TypedDict):
    """A number with its interval; `low` and `high` are None where no interval was computed."""

    value: float | None
    low: NotRequired[float | None]
    high: NotRequired[float | None]


class Headline(Estimate):
    """A metric of the chosen trial on the final role, with what the interval was resampled over."""

    name: str  # a metric's name in the code, such as macro_f1
    role: NotRequired[str]  # "test"
    n_examples: NotRequired[int]
    n_groups: NotRequired[int]


class Baseline(TypedDict):
    name: str  # such as "majority class"
    metrics: dict[str, Estimate | float]  # on the same examples as the headline
    description: NotRequired[str]


class ClassRow(TypedDict, total=False):
    """{"class": "Nucleoli", ...} and any subset of the numbers (`class` is a keyword, so it is not listed below).

    An interval is given either inside an `Estimate` or as two more keys, `<number>_low` and `<number>_high`.
    """

    precision: float | Estimate
    recall: float | Estimate
    f1: float
    f1_low: float | None
    f1_high: float | None
    average_precision: float | Estimate
    auroc: float | Estimate
    dice: float | Estimate
    iou: float | Estimate
    threshold: float
    support: int


class Fold(TypedDict):
    fold: int | str  # 0, 1, … or "mean"
    metrics: dict[str, Estimate | float]
    n_examples: NotRequired[int]
    n_groups: NotRequired[int]


class Calibration(TypedDict, total=False):
    temperature: float
    ece_before: float
    ece_after: float
    log_loss_before: float
    log_loss_after: float
    role: str  # the role that the temperature was fitted on


class Thresholds(TypedDict, total=False):
    method: str  # "per-class F1-optimal"
    role: str  # the role that they were fitted on
    fallback: str  # what happens to an example that no threshold accepts
    rows: list[dict[str, Any]]  # {"class": …, "threshold": …, further columns}


class Figure(TypedDict):
    path: str  # inside the report folder, relative to it
    caption: str
    section: NotRequired[str]  # "result", "classes", "training", "calibration", "data"; otherwise "More figures"


class Mistake(TypedDict):
    image: str  # PNG inside the report folder, relative to it
    id: str
    true: list[str]
    predicted: list[str]
    probability: float  # of the wrong decision, 0..1
    note: NotRequired[str]


class RoleCount(TypedDict):
    role: str
    n_examples: int
    used_for: str  # "early stopping and choice of checkpoint"
    n_groups: NotRequired[int]


class Provenance(TypedDict, total=False):
    roles: list[RoleCount]
    bootstrap: dict[str, Any]  # {"resamples": 2000, "seed": 0, "level": 0.95, "unit": "group"}
    statements: list[str]  # one sentence each


class Context(TypedDict):
    """What `write_page` shows. Only `title` and `command` are required."""

    title: str
    command: str  # what reproduces the run folder
    summary: NotRequired[str]  # a sentence or two under the title
    task: NotRequired[str]  # "single-label", "multi-label" or "segmentation"
    warnings: NotRequired[list[str]]  # "SIMULATED DATA: …", "LEAKY SPLIT: …"
    headline: NotRequired[list[Headline]]
    baselines: NotRequired[list[Baseline]]
    per_class: NotRequired[list[ClassRow]]
    settings: NotRequired[dict[str, Any]]  # {"rows" of `settings_table.build`, "chosen", "role", "cited"}
    merged: NotRequired[dict[str, Any]]  # {"classes": names of those counted as one, "metrics": Estimates by name}
    trials: NotRequired[list[dict[str, Any]]]  # rows as in `tables`
    chosen_trial: NotRequired[str]  # id; set in bold
    folds: NotRequired[list[Fold]]
    thresholds: NotRequired[Thresholds]
    calibration: NotRequired[Calibration]
    figures: NotRequired[list[Figure]]
    mistakes: NotRequired[list[Mistake]]
    config: NotRequired[dict[str, Any]]  # the whole configuration, nested or flat
    config_summary: NotRequired[dict[str, Any]]  # the few settings that a reader asks for first
    environment: NotRequired[dict[str, Any]]  # versions, devices, commit
    provenance: NotRequired[Provenance]
    files: NotRequired[dict[str, str]]  # path relative to the run folder -> what it is
