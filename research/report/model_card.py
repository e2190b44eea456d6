"""What must somebody know before using the model of a run? `report/model_card.md`, after Mitchell et al. 2019.

    python -m research.report.model_card --workdir=RUN

writes the card of a finished run again (every report writes it). It holds what the run folder says and nothing else:
report/metrics.json, config.json, environment.json, weights.json, the fingerprint in the checkpoints. A part of which
nothing is known is left out. Exit status: 0 finished, 2 a mistake.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline import augment, cli
from input_pipeline.cli import UserError, atomic_write
from research.report import markdown
from research.report.model_card_results import Facts, decisions, limits, results
from research.report.plots import metric_name
from research.training import start_weights

FILE = "model_card.md"


def write(folder: pathlib.Path) -> pathlib.Path:
    """Writes the card of a run folder, from its files alone.

    Args:
      folder: the run folder, whose report/metrics.json is written.

    Raises:
      UserError: one of its files is missing or damaged.
    """
    report = _read(folder / "report" / "metrics.json")
    config = _read(folder / "config.json")
    records = start_weights.read_records(folder)
    path = folder / "report" / FILE
    try:
        text = card(report, config, records, _fingerprint(folder), (folder / "layouts").is_dir())
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{folder / 'report' / 'metrics.json'} is not the report of a run of this version ({type(error).__name__}: "
            f"{error}); run research.main on {folder} again."
        ) from error
    atomic_write(path, text)
    return path


def _read(file: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} is missing, so there is no finished run; run research.main first.") from error
    except ValueError as error:
        raise UserError(f"{file} is not readable JSON; run research.main again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is no JSON object; run research.main again.")
    return content


def _fingerprint(folder: pathlib.Path) -> str:
    """Of the data set, as the checkpoints hold it; "" without any."""
    for file in sorted(folder.glob("checkpoints/*/*/meta.json")):
        try:
            if found := json.loads(file.read_text(encoding="utf-8")).get("dataset"):
                return str(found)
        except (OSError, ValueError, AttributeError):
            continue
    return ""


def card(
    report: Mapping[str, Any],
    config: Mapping[str, Any],
    records: Mapping[str, Any],
    fingerprint: str = "",
    vectors: bool = False,
) -> str:
    """The text.

    Args:
      report: report/metrics.json, see `research.report.context.Context`.
      config: config.json.
      records: weights.json, by trial.
      fingerprint: of the data set, or "".
      vectors: whether the examples are vectors of gene expression.
    """
    facts = Facts(report, config, records, fingerprint, vectors)
    parts = {
        "Model": _model(facts),
        "Intended use": _use(facts),
        "Data": _data(facts),
        "Training": _training(facts),
        "Results on test": results(facts),
        "Decisions": decisions(facts),
        "Limits": [f"- {line}" for line in limits(facts)],
        "Reproduction and citation": _reproduction(facts),
    }
    lines = [f"# Model card: {markdown.text(report['title'])}", ""]
    lines += [line for warning in report.get("warnings", []) for line in (f"**{markdown.text(warning)}**", "")]
    for name, content in parts.items():
        if content:
            lines += [f"## {name}", "", *content, ""]
    return "\n".join(lines).rstrip() + "\n"


def _model(facts: Facts) -> list[str]:
    first, model = facts.members[0], facts.config["model"]
    size = []
    if first.get("parameters"):  # a trial that was stopped or failed has none
        size += [f"{first['parameters']:,} parameters", markdown.size(first["bytes"])]
    if first.get("flops"):
        size.append(f"{markdown.large(first['flops'])} floating-point operations for one example")
    kind = "finds the pixels of" if facts.segments else "gives any number of" if facts.multi_label else "gives one of"
    names = [row["class"] for row in facts.classes]
    classes = [f"{kind} {len(names)} class{'es' * (len(names) > 1)}: {markdown.names(names)}"] if names else []
    said = "; ".join(filter(None, [", ".join(size), *classes]))
    lines = [f"- `{model['name']}`: {said}." if said else f"- `{model['name']}`."]
    if options := {key: value for key, value in model["options"].items() if value not in (None, "", [])}:
        lines.append(f"- Its options: {markdown.settings(options)}.")
    lines.append(f"- Input: {'; '.join(_input(facts))}.")
    trial = f"It is the trial `{first['id']}`"
    if len(facts.members) > 1:
        trial = f"It is {len(facts.members)} trials, one for each fold, of which the first is `{first['id']}`"
    count = len(facts.report["trials"])
    lines.append(f"- {trial}, of {count} trials in the run." if count > 1 else f"- {trial}, the only one of the run.")
    if len(facts.settings) > 1:
        role, metric = facts.report.get("settings", {}).get("role", "validation"), facts.config["selection"]
        count = len(facts.settings)
        lines.append(f"- Its setting was chosen among {count} by {metric_name(metric)} on {role}; test had no say.")
    return lines


def _input(facts: Facts) -> list[str]:
    data, summary, found = facts.config["data"], facts.summary, []
    if facts.config["model"]["name"] != "captioned" or facts.config["model"]["options"].get("image", True):
        side = summary["image size"].split()[0]
        text = f"{side} x {side} pixels, normalisation {summary['normalisation']}"
        if facts.vectors:
            layout = data["layout"]
            drawn = f"scaling {layout['scaling']}, layout {layout['name']}"
            text = f"vectors of gene expression ({drawn}), drawn on {text}"
        found.append(text)
    if data["text"]["tokenizer"]:
        found.append(f"captions through the tokeniser {data['text']['tokenizer']}")
    views = summary["test-time views"]
    return found + ([f"logits are means over test-time views ({views})"] if views != "none" else [])


def _use(facts: Facts) -> list[str]:
    intended = (
        f"- Intended: research on the question of the study `{facts.config['study']}`, with examples taken and "
        "prepared like those of its data set, and comparison with other methods on the same data."
    )
    if facts.simulated:
        intended = "- Intended: trying the software, nothing else, because a program made its training examples."
    lines = [
        intended,
        "- Not intended: decisions about a person, diagnosis among them. It was validated for none and is no medical "
        "device.",
        "- Not measured: examples from other sources, instruments, sites or populations than those of the data set.",
    ]
    if not facts.segments and not facts.multi_label:
        lines.append("- It knows no other class than those above and gives one of them to anything that it is shown.")
    return lines


def _data(facts: Facts) -> list[str]:
    data, report = facts.config["data"], facts.report
    where = data["source"] or pathlib.PurePath(data["dir"]).name
    first = f"- Data set {markdown.text(where)}" if where else "- The built-in simulated sample"
    known = f"; SHA-256 fingerprint of its contents and roles `{facts.fingerprint}`" if facts.fingerprint else ""
    lines = [f"{first} of the study `{facts.config['study']}`{known}."]
    lines.append("- Simulated by a program." if facts.simulated else "- Not simulated, as the data set says.")
    if facts.leaky:
        lines.append(f"- Split: `{data['split']}`, which ignores groups: related examples stand on both sides.")
    else:
        lines.append("- Split by group: copies, near-duplicates, patients and photographs never stand in two roles.")
    for key, text in (("classes", "only the classes"), ("without_classes", "without the classes")):
        if data[key]:
            lines.append(f"- Used {text} {markdown.names(data[key])}.")
    if facts.roles:
        lines += ["", "| role | examples | groups | used for |", "|---|---|---|---|"]
        for role, row in facts.roles.items():
            used, groups = row["used_for"].replace("page", "card"), row.get("n_groups", row["n_examples"])
            lines.append(markdown.row([role, f"{row['n_examples']:,}", f"{groups:,}", used]))
        if len(facts.members) > 1 or report.get("folds"):
            lines += ["", "The roles are those of the first fold; over the folds every labelled example is test once."]
    return lines


def _training(facts: Facts) -> list[str]:
    config, first = facts.config, facts.members[0]
    optimizer, schedule, loss, data = config["optimizer"], config["schedule"], config["loss"], config["data"]
    if first.get("steps") and first.get("best_step") is not None:
        lines = [
            f"- {first['steps']:,} steps of {config['batch_size']} examples; the checkpoint of step "
            f"{first['best_step']:,} was best by {metric_name(config['selection'])} on validation, evaluated every "
            f"{config['evaluate_every']}."
        ]
    else:
        lines = [f"- Batches of {config['batch_size']} examples."]
    parts = [f"{optimizer['name']}, learning rate {optimizer['learning_rate']:g}, schedule {schedule['name']}"]
    if not schedule["warmup"].startswith("0"):
        parts.append(f"warm-up {schedule['warmup']}")
    words = {"weight_decay": "weight decay", "clip_norm": "gradients clipped at norm", "ema": "averaged weights, decay"}
    parts += [f"{text} {optimizer[key]:g}" for key, text in words.items() if optimizer[key]]
    lines.append(f"- Optimiser: {', '.join(parts)}.")
    options = f" ({markdown.settings(loss['options'])})" if loss["options"] else ""
    weights = f", class weights {loss['class_weights']}" if loss["class_weights"] != "none" else ""
    lines.append(f"- Loss: {loss['name'].replace('_', ' ')}{options}{weights}.")
    used = {k: v for k, v in data["augment"].items() if v and v != _as_json(augment.NEUTRAL.get(k))}
    lines.append(f"- Augmentation: {markdown.settings(used)}." if used else "- No augmentation.")
    further = {"dropout in the head": config["model"]["head_dropout"], "early stopping": config["early_stopping"]}
    further |= {"training examples at most": data["limit"], "examples of each class at most": data["shots"]}
    further |= {"sampler": data["sampler"] if data["sampler"] != "uniform" else ""}
    further |= {"phases": " then ".join(markdown.settings(phase) for phase in config["phases"])}
    if further := {key: value for key, value in further.items() if value}:
        lines.append(f"- Further: {markdown.settings(further)}.")
    seeds = sorted({row["seed"] for row in facts.report["trials"] if row.get("setting") == facts.chosen})
    role = facts.report.get("settings", {}).get("role", "validation")
    several = f"Seeds {', '.join(map(str, seeds))} of this setting; this is {first['seed']}, the best on {role}"
    return [*lines, f"- {several}." if len(seeds) > 1 else f"- Seed {first['seed']}.", _start(facts)]


def _start(facts: Facts) -> str:
    record = facts.records.get(facts.members[0]["id"])
    if not record:
        weights = facts.summary["weights"]
        return f"- Started from {'random weights' if weights == 'random' else markdown.text(weights)}."
    file, source = markdown.text(record["file"]), markdown.text(record["source"])
    return (
        f"- Started from pretrained weights: {file} ({source}), SHA-256 `{record['sha256']}`. The run "
        "records neither their licence nor what they were trained on; see their source."
    )


def _reproduction(facts: Facts) -> list[str]:
    environment = facts.report.get("environment", {})
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    lines = ["```", facts.report["command"], "```", ""]
    if environment:
        devices = environment.get("devices", [])
        kinds = ", ".join(f"{devices.count(kind)} x {kind}" for kind in dict.fromkeys(devices))
        lines.append(f"- Python {environment['python']} on {environment['platform']}; {kinds}; {packages}.")
        if environment.get("commit"):
            changed = " with changes that are not in it" if environment["commit"].endswith("+") else ""
            lines.append(f"- Code: commit {environment['commit'].rstrip('+')}{changed}.")
    digest = facts.members[0].get("state_sha256")
    lines.append(
        f"- Cite the data set as its source asks, and this model as: {markdown.text(facts.report['title'])}, trial "
        f"{facts.members[0]['id']}"
        + (f", commit {environment['commit'].rstrip('+')}" if environment.get("commit") else "")
        + (f", state {digest[:12]}" if digest else "")
        + "."
    )
    return lines


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line, writes the card."""
    parser = argparse.ArgumentParser("python -m research.report.model_card", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="folder of a finished run")
    print(f"Finished: {write(pathlib.Path(parser.parse_args(arguments).workdir))}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
