"""What would the blood-cell study have written of this run, and do its claims hold here?

The study's own outputs: `metrics_log.csv` with its five columns (and id, parameters and seed, which it lacks), and
`report/{train,val}_accuracy_vs_model_size_epochs_N.png`, where a size is 4 bytes for each parameter and running
statistic, in MB of 2**20 bytes. The study's own figures are of Keras files, 0.10 to 0.18 MB larger.

Its claims: 12 of its models are Pareto-optimal after 10 epochs and 15 after 30, by size and training accuracy; accuracy
plateaus beyond 8 MB; longer training reduces variance.
"""

import json
import math
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from input_pipeline import plotting, tabular
from research.evaluation import predictions, statistics
from research.report import tables
from research.report.writer import read_jsonl
from research.search import pareto
from research.search.front import Front, Objective

SIZE = "model_size(MB)"
LOG_COLUMNS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", SIZE)
CLAIMED = {10.0: 12, 30.0: 15}
PLATEAU = 8.0  # MB
_SPLITS = {"train": "training", "val": "validation"}
_STAGES = ("search", "extend")
_RIVALS = 20  # models on each side of the plateau that a resample may make the best
_RESAMPLES = 2000


def write(folder: pathlib.Path) -> tuple[list[dict], list[str]]:
    """Writes the study's outputs of a run folder.

    Returns:
      The figures, {"path" relative to `report/`, "caption", "section": "search"} each, and the claims as sentences.
    """
    table = read(folder)
    columns = [*LOG_COLUMNS, "id", "parameters", "seed"]
    rows = [{k: None if pd.isna(v) else v for k, v in row.items()} for row in table[columns].to_dict("records")]
    tabular.write_csv(folder / "metrics_log.csv", columns, rows)
    figures = []
    models = over_folds(table)
    for epochs, part in models.groupby("epochs"):
        for split, word in _SPLITS.items():
            if (found := front(part, split)) is None:
                continue
            name = f"{split}_accuracy_vs_model_size_epochs_{epochs:g}.png"
            draw(found, f"{epochs:g} epochs", word, folder / "report" / name)
            caption = f"The study's picture: {word} accuracy against size after {epochs:g} epochs."
            figures.append({"path": name, "caption": caption, "section": "search"})
    return figures, claims(models, folder)


def read(folder: pathlib.Path) -> pd.DataFrame:
    """The finished trials of a run: the study's columns, and id, model, setting, parameters, seed and epochs.

    `model` is the id without the number of a fold. What the ledger does not know is NaN. The epochs are those of the
    trial's config, or else those that `metrics.jsonl` shows, mean over the folds of a model.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    reached: dict[str, float] = {}
    for row in read_jsonl(folder / "metrics.jsonl"):
        reached[row["trial"]] = max(reached.get(row["trial"], 0.0), float(row.get("epoch", 0.0)))
    rows = []
    for row in tables.read_trials_csv(folder / "trials.csv"):
        if row.get("status") != "finished" or row.get("stage", "search") not in _STAGES:
            continue
        metrics = {short: row["metrics"].get(split, {}) for short, split in (("train", "train"), ("val", "validation"))}
        planned = float(row["overrides"].get("epochs") or config.get("epochs") or 0.0)
        rows.append(
            {f"{split}_{name}": metrics[split].get(name) for split in metrics for name in ("loss", "accuracy")}
            | {SIZE: row["bytes"] / 2**20, "id": row["id"], "setting": row.get("setting", row["id"])}
            | {"parameters": row["parameters"], "seed": row["seed"]}
            | {"model": re.sub(r"-fold\d+$", "", row["id"]) if "search.fold" in row["overrides"] else row["id"]}
            | {"epochs": planned or reached.get(row["id"], 0.0)}
        )
    table = pd.DataFrame(rows, columns=[*LOG_COLUMNS, "id", "model", "setting", "parameters", "seed", "epochs"])
    # So many steps are not as many epochs in every fold.
    table["epochs"] = [float(f"{mean:.3g}") for mean in table.groupby("model")["epochs"].transform("mean")]
    return table.astype(dict.fromkeys(LOG_COLUMNS, float))


def over_folds(table: pd.DataFrame) -> pd.DataFrame:
    """One row per model: the means over its folds. The id of a model with folds is "", as no one file is its own."""
    groups = table.groupby(["model", "epochs"], sort=False)
    models = groups[list(LOG_COLUMNS)].mean().join(groups[["id", "setting", "parameters", "seed"]].first())
    models["id"] = models["id"].where(groups.size() == 1, "")
    return models.reset_index()


def front(table: pd.DataFrame, split: str) -> Front | None:
    """The models that no other beats in size and accuracy on `split` ("train" or "val"); None without accuracies."""
    accuracy = f"{split}_accuracy"
    if not np.isfinite(table[accuracy]).any():
        return None
    objectives = [Objective(SIZE, False, False), Objective(accuracy, True, False)]
    return pareto.find(table, np.arange(len(table)), objectives)


def draw(found: Front, title: str, word: str, path: pathlib.Path) -> None:
    """All models, and those of the front."""
    beaten = np.setdiff1d(np.flatnonzero(found.usable), found.rows)
    best = found.values[found.rows]
    with plotting.figure(path, 5.2, 3.9) as canvas:
        axes = canvas.subplots()
        axes.scatter(*found.values[beaten].T, s=18, c="#9A9A9A", label=f"beaten ({len(beaten)})")
        axes.step(*best.T, where="post", color=plotting.BLUE, linewidth=1.1)
        axes.scatter(*best.T, s=30, c=plotting.BLUE, marker="s", label=f"Pareto-optimal ({len(best)})", zorder=3)
        sizes = found.values[found.usable, 0]
        if sizes.max() > 10 * sizes.min():
            plotting.log_scale(axes.xaxis)
        axes.set(xlabel="model size (MB of 2^20 bytes)", ylabel=f"{word} accuracy", title=title)
        canvas.legend(loc="outside lower center", ncols=2)


def claims(table: pd.DataFrame, folder: pathlib.Path | None = None) -> list[str]:
    """The study's claims, each with this table's figures.

    Args:
      table: the study's columns and `epochs`; `id` for intervals, `setting` to pair models of different lengths.
      folder: the run folder with the predictions on validation, for the interval over photographs.
    """
    sentences = []
    for epochs, part in table.groupby("epochs"):
        sentences += _points(epochs, part)
        sentences += _plateau(epochs, part, folder)
    return sentences + _variance(table)


def _points(epochs: float, part: pd.DataFrame) -> list[str]:
    sentences = []
    for split, word in _SPLITS.items():
        if (found := front(part, split)) is not None:
            claim = f" (the study claims {CLAIMED[epochs]})" if epochs in CLAIMED and split == "train" else ""
            sentences.append(
                f"After {epochs:g} epochs {len(found.rows)} of {int(found.usable.sum())} models are non-dominated by "
                f"size and {word} accuracy{claim}."
            )
    return sentences


def _plateau(epochs: float, part: pd.DataFrame, folder: pathlib.Path | None) -> list[str]:
    """Compares the best validation accuracy on both sides of the plateau."""
    part = part[np.isfinite(part["val_accuracy"])].sort_values("val_accuracy", ascending=False, kind="stable")
    above = part[part[SIZE] > PLATEAU]
    below = part[part[SIZE] <= PLATEAU]
    if not len(part):
        return []
    if not len(above) or not len(below):
        where = "above" if not len(above) else "below"
        return [
            f"After {epochs:g} epochs no model lies {where} {PLATEAU:g} MB, so that no plateau there can be tested."
        ]
    best = [side["val_accuracy"].iloc[0] for side in (below, above)]
    text = (
        f"After {epochs:g} epochs the best validation accuracy is {best[0]:.3f} up to {PLATEAU:g} MB "
        f"({len(below)} models) and {best[1]:.3f} beyond ({len(above)}), a gain of {_signed(best[1] - best[0])}"
    )
    interval = _gain_interval(folder, below, above)
    if interval is None:
        return [f"{text}; without predictions for the same images it has no interval."]
    low, high = interval
    if high <= 0:
        verdict = "the larger models are worse"
    else:
        verdict = (
            "the larger models are better: no plateau" if low > 0 else "no gain can be told from noise, as on a plateau"
        )
    return [f"{text} [{_signed(low)}, {_signed(high)}] over photographs: {verdict}."]


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _gain_interval(folder: pathlib.Path | None, below: pd.DataFrame, above: pd.DataFrame) -> tuple[float, float] | None:
    """Interval of (best above) - (best below), the best chosen anew in every resample of the groups."""
    if folder is None:
        return None
    columns, first = [], None
    sides = [list(side["id"][:_RIVALS]) for side in (below, above)]
    for name in [*sides[0], *sides[1]]:
        file = folder / "predictions" / f"{name}_validation.csv"
        if not file.exists():
            return None
        part = predictions.read(file)
        first = first or part
        if part.ids != first.ids:  # folds: the models were validated on different images
            return None
        columns.append(part.logits.argmax(1) == part.labels(False))
    values = np.column_stack([*columns, np.ones(len(first.ids))]).astype(float)
    totals = statistics.resampled_totals(values, first.groups, _RESAMPLES)
    if totals is None:
        return None
    accuracies = totals[:, :-1] / totals[:, -1:]
    gains = accuracies[:, len(sides[0]) :].max(1) - accuracies[:, : len(sides[0])].max(1)
    return tuple(float(end) for end in np.quantile(gains, (0.025, 0.975)))


def _variance(table: pd.DataFrame) -> list[str]:
    """Compares the spread of accuracies over the models after different lengths of training."""
    lengths = sorted(set(table["epochs"]))
    sentences = []
    for short, long in zip(lengths, lengths[1:], strict=False):
        pair = [table[table["epochs"] == length] for length in (short, long)]
        for split, word in _SPLITS.items():
            first, second = (side[np.isfinite(side[f"{split}_accuracy"])] for side in pair)
            if "setting" in table.columns:
                common = set(first["setting"]) & set(second["setting"])
                first, second = (side[side["setting"].isin(common)] for side in (first, second))
            if min(len(first), len(second)) >= 3:
                values = [side[f"{split}_accuracy"].to_numpy(float) for side in (first, second)]
                sentences.append(_spread(short, long, word, *values))
    return sentences


def _spread(short: float, long: float, word: str, first: np.ndarray, second: np.ndarray) -> str:
    deviations = [float(np.std(values, ddof=1)) for values in (first, second)]
    text = (
        f"Over the models, {word} accuracy has a standard deviation of {deviations[0]:.3f} after {short:g} epochs "
        f"({len(first)}) and {deviations[1]:.3f} after {long:g} ({len(second)})"
    )
    low, high = ratio_interval(first, second)
    if math.isnan(low):
        return f"{text}; there is too little variation for an interval of their ratio."
    verdict = "longer training reduced the spread" if high < 1 else "it did not" if low > 1 else "neither can be told"
    return f"{text}, a ratio of {deviations[1] / deviations[0]:.2f} [{low:.2f}, {high:.2f}] over models: {verdict}."


def ratio_interval(first: Sequence[float], second: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of std(second) / std(first), from independent resamples of both; NaN where one has no spread."""
    generator = np.random.default_rng(seed)
    deviations = []
    for values in (np.asarray(first, float), np.asarray(second, float)):
        drawn = values[generator.integers(0, len(values), (_RESAMPLES, len(values)))]
        deviations.append(np.std(drawn, axis=1, ddof=1))
    possible = (deviations[0] > 1e-9) & (deviations[1] > 1e-9)
    if possible.mean() < 0.5:
        return float("nan"), float("nan")
    return tuple(float(end) for end in np.quantile(deviations[1][possible] / deviations[0][possible], (0.025, 0.975)))
