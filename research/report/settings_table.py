"""How good is every setting of a comparison on test, in many metrics, and does it differ from one of them?

One row per setting, such as a loss: the mean over its seeds, with 95 % intervals from a bootstrap that draws anew both
the groups (patients) that happened to be tested and the seeds. All settings and rivals see the same draws, so that
differences are paired. The p-values are those of the bootstrap, adjusted by Holm's method over all rows.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.evaluation import paired_tests, replicates, score
from research.evaluation.baselines import Baseline
from research.report import markup
from research.report.plots import metric_name

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class _Row:
    """A line of the table: its positions among the M models, and their values over seeds."""

    name: str
    kind: str
    models: tuple[int, ...]


def build(
    settings: Mapping[str, Sequence[score.Scored]],
    reference: str,
    rivals: Sequence[Baseline],
    scored: score.Scored,
    resamples: int,
    seed: int,
    metric: str = "",
) -> list[dict[str, Any]]:
    """The rows: the settings in their order, then the rivals.

    Args:
      settings: name -> the test predictions of each seed. Those of other images than `scored`'s are left out.
      reference: the setting that all are compared with.
      rivals: predictions that follow the rows of `scored`.
      scored: of one seed of any of these settings.
      resamples: of the bootstrap. seed: of its draws.
      metric: of the differences; "" = the task's first.

    Returns:
      {"name", "kind": "model" | "baseline", "seeds", "metrics": {name: {"value", "low", "high"}}, "difference"} each.
      The difference is to the reference, {"value", "low", "high", "p", "holm"}, or
      None for that one itself.
    """
    order = np.argsort(scored.ids, kind="stable")
    rows, scores, predicted = [], [], []
    for name, seeds in settings.items():
        if found := [one for one in seeds if set(one.ids) == set(scored.ids)]:
            rows.append(_Row(name, "model", tuple(range(len(scores), len(scores) + len(found)))))
            for one in found:
                own = np.argsort(one.ids, kind="stable")
                scores.append(one.scores[own])
                predicted.append(one.predicted[own])
    for rival in rivals:
        rows.append(_Row(rival.name, "baseline", (len(scores),)))
        scores.append(rival.scores[order])
        predicted.append(rival.predicted[order])
    drawn = replicates.resample(
        np.stack(scores),
        scored.labels[order],
        scored.multi_label,
        np.stack(predicted),
        scored.groups[order],
        n=resamples,
        seed=seed,
        names=replicates.LABELS_TABLE if scored.multi_label else replicates.TABLE,
    )
    return _compared(rows, reference, _of_rows(rows, drawn, seed), metric or score.HEADLINE[scored.multi_label][0])


def _of_rows(rows: Sequence[_Row], drawn: replicates.Replicates, seed: int) -> list[dict[str, Any]]:
    """Of each row by metric: (mean over its models, in every replicate that of as many drawn models, `[n]`)."""
    generator = np.random.default_rng(seed)
    result = []
    for row in rows:
        models = np.array(row.models)
        resamples = next(iter(drawn.values.values())).shape[0]
        picked = models[generator.integers(0, len(models), (resamples, len(models)))]
        result.append(
            {
                name: (float(drawn.estimates[name][models].mean()), np.take_along_axis(values, picked, axis=1).mean(1))
                for name, values in drawn.values.items()
            }
        )
    return result


def _compared(rows: Sequence[_Row], reference: str, values: Sequence[dict], metric: str) -> list[dict[str, Any]]:
    position = [row.name for row in rows].index(reference)
    base, base_drawn = values[position][metric]
    result, p_values = [], []
    for number, (row, own) in enumerate(zip(rows, values, strict=True)):
        entry: dict[str, Any] = {"name": row.name, "kind": row.kind, "seeds": len(row.models), "difference": None}
        entry["metrics"] = {name: _estimate(value, drawn) for name, (value, drawn) in own.items()}
        p_values.append(np.nan)
        if number != position:
            differences = own[metric][1] - base_drawn
            p_values[-1] = paired_tests.bootstrap_p(differences)
            entry["difference"] = _estimate(own[metric][0] - base, differences) | {"p": p_values[-1]}
        result.append(entry)
    for entry, p in zip(result, paired_tests.holm(p_values), strict=True):
        if entry["difference"] is not None:
            entry["difference"]["holm"] = float(p)
    return result


def _estimate(value: float, drawn: np.ndarray) -> dict[str, float | None]:
    defined = drawn[~np.isnan(drawn)]
    if 2 * len(defined) < len(drawn):
        return score.interval_of(value, None)
    return score.interval_of(value, tuple(np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()))


def section(
    rows: Sequence[Mapping[str, Any]], chosen: str, reference: str, role: str, cited: Sequence[tuple], metric: str
) -> str:
    """The rows as HTML, and below them figures of the literature, marked as cited.

    Args:
      rows: of `build`. chosen: the setting in bold. reference: that all are compared with. role: that the chosen one
        was chosen on. metric: of the differences.
      cited: (name, metric -> value), from publications.
    """
    names = list(rows[0]["metrics"])
    shown = []
    for row in rows:
        line = {"setting": row["name"], "seeds": row["seeds"] if row["kind"] == "model" else None, **row["metrics"]}
        if difference := row["difference"]:
            line |= {"difference": {key: difference[key] for key in ("value", "low", "high")}}
            line |= {"p": difference["p"], "holm": difference["holm"]}
        shown.append(line)
    shown += [{"setting": f"{name} (cited)"} | {n: values.get(n) for n in names} for name, values in cited]
    columns = {"setting": "setting", "seeds": "seeds", metric: metric_name(metric)}
    other = "the chosen" if reference == chosen else reference
    columns |= {"difference": f"minus that of {other}", "p": "p", "holm": "p (Holm)"}
    columns |= {name: metric_name(name) for name in names if name != metric}
    text = "Means over seeds on the same test images; 95 % intervals over groups and seeds. "
    if sum(row["kind"] == "model" for row in rows) > 1:
        text += f"The setting in bold was chosen on {role}. "
    text += "Differences are paired; p-values are two-sided, of the bootstrap, adjusted over all rows."
    if cited:
        text += " Cited figures are of other test images and stand here for orientation only."
    table = markup.table(columns, [{key: line.get(key) for key in columns} for line in shown], chosen=chosen)
    return f"<h3>Settings on test</h3>\n<p>{markup.text(text)}</p>\n{table}"
