"""What does a model card say of a model's quality: results beside rivals, how decisions are made, limits?"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from research.report import markdown
from research.report.plots import metric_name

FEW = 50  # test examples of a class below which its figures are named as uncertain
WIDE = 0.2  # width of an interval of F1 from which a class is named as uncertain
_NAMES = {"f1": "F1", "auroc": "AUROC", "iou": "IoU", "dice": "Dice"}  # of metrics of one class
_THRESHOLDS = {"fixed": "0.5 for each", "per_class_f1": "the best F1 of each", "grid": "the best F1 of each on a grid"}
_FALLBACKS = {"argmax": "gets that of the highest probability", "none": "stays without any"}


class Facts:
    """What is known of the run, and of the trials that its report shows.

    Attributes:
      report: report/metrics.json. summary: its `config_summary`. records: weights.json, by trial.
      fingerprint: of the data set, or "". vectors: whether examples are vectors of gene expression.
      chosen: the setting. members: rows of its trials that are shown: one, or one for each fold.
      config: with the overrides of the first member. settings: names of all.
      classes, headline, roles: of the report, empty where it has none; roles by name.
    """

    def __init__(self, report, config, records, fingerprint, vectors) -> None:
        self.report, self.records, self.fingerprint, self.vectors = report, records, fingerprint, vectors
        self.summary, self.chosen = report["config_summary"], report["chosen_trial"]
        trials = [row for row in report["trials"] if row.get("stage", "search") == "search"]
        own = [row for row in trials if row.get("setting", row["id"]) == self.chosen]
        self.members = [row for row in own if row.get("seed") == self.summary["seed"]] or own
        self.config = _changed(config, self.members[0].get("overrides") or {})
        self.settings = {row.get("setting", row["id"]) for row in trials}
        self.segments, self.multi_label = report["task"] == "segmentation", report["task"] == "multi-label"
        self.classes = report.get("per_class", [])
        self.headline = report.get("headline", [])
        self.simulated = any(line.startswith("SIMULATED") for line in report.get("warnings", []))
        self.leaky = config["data"]["split"] != "roles"
        self.roles = {row["role"]: row for row in report.get("provenance", {}).get("roles", [])}


def _changed(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config with a trial's overrides in it."""
    changed = json.loads(json.dumps(config))
    for key, value in overrides.items():
        *groups, last = key.split(".")
        place = changed
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return changed


def results(facts: Facts) -> list[str]:
    """The model beside its rivals on the headline metrics, and its classes."""
    if not facts.headline:
        return ["Nothing was scored: the run has no predictions of test."]
    names = [row["name"] for row in facts.headline]
    first, report = facts.headline[0], facts.report
    boot = report.get("provenance", {}).get("bootstrap", {})
    lines = [
        f"On {first['n_examples']:,} examples of {first['n_groups']:,} groups, once. In brackets 95 % intervals by "
        f"bootstrap over groups ({boot.get('resamples', 0):,} resamples).",
        "",
        markdown.row(["", *map(metric_name, names)]),
        markdown.row(["---"] * (len(names) + 1)),
        markdown.row(["**this model**", *map(markdown.estimate, facts.headline)]),
    ]
    own = next((row for row in _rows(facts) if row["name"] == facts.chosen and row.get("seeds", 1) > 1), None)
    if own:
        means = (markdown.estimate(own["metrics"].get(name)) for name in names)
        lines.append(markdown.row([f"mean of {own['seeds']} seeds of its setting", *means]))
    for rival in report.get("baselines", []):
        lines.append(markdown.row([rival["name"], *(markdown.estimate(rival["metrics"].get(name)) for name in names)]))
    cited = [(markdown.text(name), values) for name, values in report.get("settings", {}).get("cited", [])]
    for name, values in cited:
        lines.append(markdown.row([f"{name} (literature)", *(markdown.estimate(values.get(k)) for k in names)]))
    if cited:
        lines += ["", "Figures of the literature are of other test examples and not to be compared one to one."]
    return lines + (["", *_classes(facts)] if facts.classes else [])


def _classes(facts: Facts) -> list[str]:
    columns = ("dice", "iou") if facts.segments else ("precision", "recall", "f1", "average_precision", "auroc")
    columns = [name for name in columns if any(row.get(name) is not None for row in facts.classes)]
    cut = any("threshold" in row for row in facts.classes)
    titles = [_NAMES.get(name, metric_name(name)) for name in columns]
    lines = [
        markdown.row(["class", "test examples", *titles, *(["threshold"] if cut else [])]),
        markdown.row(["---"] * (2 + len(columns) + cut)),
    ]
    for row in facts.classes:
        cells = [markdown.text(row["class"]), f"{row['support']:,}"]
        cells += [markdown.estimate(_of_class(row, name)) for name in columns]
        lines.append(markdown.row(cells + ([f"{row['threshold']:.3f}"] if cut else [])))
    return lines


def _of_class(row: Mapping[str, Any], name: str) -> Any:
    """A figure of a class with its interval, whichever way it stands there."""
    if f"{name}_low" in row:
        return {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}
    return row.get(name)


def decisions(facts: Facts) -> list[str]:
    """From logits to what is said of an example, and how well probabilities are calibrated."""
    report, lines, fitted = facts.report, [], "calibration" in facts.roles
    if facts.segments:
        return ["- A pixel gets the likeliest class where its probability is above 0.5, else the background."]
    if scaled := report.get("calibration"):
        numbers = [markdown.number(scaled[f"{k}_{when}"]) for k in ("ece", "log_loss") for when in ("before", "after")]
        lines.append(
            f"- Logits are divided by a temperature of {scaled['temperature']:.3f}"
            + (", fitted on calibration" if fitted else ", because there is no role that one could be fitted on")
            + f"; on test the expected calibration error is {numbers[1]} ({numbers[0]} without) and the log loss "
            f"{numbers[3]} ({numbers[2]} without)."
        )
    if cuts := report.get("thresholds"):
        method, other = _THRESHOLDS.get(cuts["method"], cuts["method"]), str(cuts["fallback"])
        lines.append(
            f"- A class is given where its probability reaches its threshold (last column above; {method}"
            + (", fitted on calibration" if fitted else "")
            + f"); an example that reaches none {_FALLBACKS.get(other, f'is decided by {markdown.text(other)}')}."
        )
    elif lines:
        lines.append("- The class of the highest probability is given.")
    if lines and len(facts.members) > 1:
        lines.append("- These numbers are means over the folds, each of which has its own.")
    return lines


def limits(facts: Facts) -> list[str]:
    """What the figures show to be weak or unknown, a sentence each."""
    found = [markdown.text(line) for line in facts.report.get("warnings", [])]
    found += [line for line in (_against_rivals(facts),) if line]
    if small := [f"{markdown.text(row['class'])} ({row['support']})" for row in facts.classes if row["support"] < FEW]:
        found.append(f"Fewer than {FEW} test examples: {', '.join(small)}; their figures are uncertain.")
    metric = "dice" if facts.segments else "f1"
    label = _NAMES[metric]
    known = [(row["class"], _of_class(row, metric)) for row in facts.classes]
    known = [(name, value if isinstance(value, Mapping) else {"value": value}) for name, value in known]
    known = [(name, value) for name, value in known if value["value"] is not None]
    if len(known) > 1 and any(value["value"] < 1 for _, value in known):
        name, worst = min(known, key=lambda item: item[1]["value"])
        found.append(f"Weakest class: {markdown.text(name)}, {label} {markdown.estimate(worst)}.")
    if wide := [markdown.text(n) for n, v in known if v.get("low") is not None and v["high"] - v["low"] > WIDE]:
        found.append(f"Classes whose {label} has an interval wider than {WIDE:g}: {', '.join(wide)}.")
    if facts.headline and facts.headline[0]["value"] == 1:
        groups = facts.headline[0]["n_groups"]
        found.append(
            f"No error among {groups} groups gives an interval without width; with 95 % confidence up to "
            f"{min(1.0, 3 / groups):.1%} of groups are wrong (rule of three)."
        )
    for role, loss in (("calibration", "temperature 1 and thresholds 0.5 were taken"), ("test", "nothing was scored")):
        if facts.roles and role not in facts.roles and not (facts.segments and role == "calibration"):
            found.append(f"The data set has no role {role}: {loss}.")
    if facts.headline and facts.headline[0]["n_examples"] == facts.headline[0]["n_groups"]:
        found.append("Every test example is a group of its own; relations that are not known are not in the intervals.")
    if facts.headline and not any(row.get("seeds", 1) > 1 for row in _rows(facts) if row["name"] == facts.chosen):
        found.append("One seed: the intervals do not hold how much the training itself varies.")
    return found


def _rows(facts: Facts) -> Sequence[Mapping[str, Any]]:
    return facts.report.get("settings", {}).get("rows", [])


def _against_rivals(facts: Facts) -> str:
    """How the model stands to the best of its simple rivals, in a paired comparison where there is one."""
    rivals = [row for row in _rows(facts) if row["kind"] == "baseline" and row.get("difference")]
    own = next((row for row in _rows(facts) if row["name"] == facts.chosen), None)
    if not rivals or own is None or own["difference"] is not None or not facts.headline:
        return ""
    best = max(rivals, key=lambda row: row["difference"]["value"])
    gap, metric, name = best["difference"], metric_name(facts.headline[0]["name"]), markdown.text(best["name"])
    interval = f"{gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}], p {gap['holm']:.2g} (Holm)"
    if gap["high"] < 0:
        return f"The best simple rival, {name}, is worse on the same examples: {metric} {interval}."
    return (
        f"**It is not shown to be better than {name}**, a simple rival on the same examples: "
        f"{metric} of that one minus its own {interval}."
    )
