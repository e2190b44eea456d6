"""Turns a finished run folder (ledger, metrics, predictions) into its report; may be run again at any time."""

import pathlib
import shutil

import numpy as np

from input_pipeline import label_counts, plotting
from input_pipeline.cli import atomic_write
from research.evaluation import calibration, metrics, score
from research.losses import notes as loss_notes
from research.report import (
    augmentations,
    choice,
    masks,
    model_card,
    page,
    plots,
    rank_curves,
    rivals,
    settings_table,
    submission,
    tables,
)
from research.report import search as search_report
from research.report.writer import MetricWriter, read_jsonl
from research.training import start_weights

MISTAKES = 10
USES = {
    "train": "fitting the weights",
    "validation": "choice of checkpoint, learning rate, early stopping",
    "calibration": "temperature and thresholds, choice among settings",
    "test": "the figures of this page, once",
    "unlabelled": "predicted, never scored",
}


def report(folder: pathlib.Path, config, trials, environment: dict, stop) -> None:
    """Writes `report/index.html`, its pictures, `report/metrics.json` and, for unlabelled images, `submission.csv`.

    Args:
      folder: the run folder.
      config: the study's config. trials: its training.build.Trial objects.
      environment: as in `environment.json`.
      stop: StopSignal, checked between the slow parts.
    """
    ledger = tables.read_trials_csv(folder / "trials.csv")
    settings = choice.settings_of(trials, ledger)
    metric = choice.metric_of(config, settings)
    chosen, role = choice.choose(settings, ledger, metric)
    members = choice.shown(settings, chosen, ledger, role, metric)
    multi_label = members[0].dataset.multi_label
    segments = members[0].task.segments
    scored = None if segments else score.score(folder, [t.name for t in members], multi_label, config.evaluation)
    context = {
        "title": f"{config.study}: {members[0].config.model.name}",
        "command": environment["command"],
        "summary": _summary(config, trials, settings),
        "task": "segmentation" if segments else "multi-label" if multi_label else "single-label",
        "warnings": warnings_of(config, members[0].dataset),
        "trials": [{k: v for k, v in row.items() if k != "state_sha256"} for row in ledger],
        "chosen_trial": chosen,
        "config": config.to_dict(),
        "config_summary": _config_summary(members[0]),
        "environment": environment,
        "provenance": _provenance(config, members, scored),
        "figures": _training_figures(folder, ledger, [t.name for t in members]),
        "files": {"trials.csv": "one row per trial", "metrics.jsonl": "loss and metrics by step",
                  "predictions/": "logits by image and role", "tensorboard/": "curves, images, PR curves",
                  "report/model_card.md": "what to know before using the model"},
    }  # fmt: skip
    search, compared = None, choice.names_of(settings)
    if len(settings) > 1:
        context["provenance"]["statements"].append(
            f"The setting is the best of {len(settings)} by {metric} on {role}; that flatters its figures there, not "
            "those of test."
        )
        losses = [(own[0].config.loss.name, own[0].config.loss.options.to_dict()) for own in settings.values()]
        context["provenance"]["statements"] += loss_notes.notes(losses, members[0].num_classes)
    if len(settings) > 1 or (folder / "compressed.csv").exists():
        stop.check()
        search = search_report.build(folder, ledger, config, multi_label)
        context["files"] |= search.files
        compared = choice.compared(compared, chosen, search.members, config.evaluation.reference)
        compared |= {name: {config.seed: trials} for name, trials in search.compressed.items()}
    if scored is not None:
        stop.check()
        _add_scored(context, folder, config, members, scored, compared, stop)
        context["settings"] |= {"chosen": chosen, "reference": config.evaluation.reference or chosen, "role": role}
    if segments:
        masks.add(context, masks.parts(folder, config, settings, members, stop))
    if (folder / start_weights.RECORD).exists():
        context["files"][start_weights.RECORD] = "pretrained weights by trial: file, hash, what was loaded and replaced"
    if not segments and submission.write(folder, config, members):
        context["files"]["submission.csv"] = "labels of the unlabelled images, joined by id"
    page.write_page(folder, context, search)
    model_card.write(folder)


def _add_scored(context: dict, folder, config, members, scored, compared: choice.Settings, stop) -> None:
    """Adds what was predicted on test: metrics, rivals, explanations and the table of settings."""
    evaluation, multi_label = config.evaluation, scored.multi_label
    found = rivals.predict(members, scored, config.seed, stop) if evaluation.baselines else []
    context |= _scored_parts(folder, config, members, scored, found, context["figures"])
    if evaluation.explain:
        from research.explain import report as explanations  # imports the study, which imports this file

        context["figures"] += explanations.figures(folder, members[0], scored, stop, evaluation.explain)
    seeds = {name: _of_seeds(folder, by_seed, config, multi_label) for name, by_seed in compared.items()}
    reference = evaluation.reference or context["chosen_trial"]
    rows = settings_table.build(seeds, reference, found, scored, evaluation.bootstrap, config.seed)
    context["settings"] = {"rows": rows, "cited": evaluation.cited}
    _comparison(folder, rows, context)


def warnings_of(config, dataset) -> list[str]:
    """What a reader must know before any figure."""
    found = []
    if dataset.simulated:
        found.append("SIMULATED DATA: a program made the examples; no figure here says anything about real ones.")
    if config.demonstration:
        found.append(f"DEMONSTRATION: {config.demonstration}.")
    if config.data.split == "study":
        found.append("LEAKY SPLIT: the study's own random split; related images stand on both sides of it.")
    return found


def _summary(config, trials, settings) -> str:
    folds = config.search.folds
    text = f"{len(settings)} setting(s)" if len(settings) > 1 else "One setting"
    text += f", {folds} folds by group, test predictions pooled over the folds" if folds else ""
    models = ", ".join(dict.fromkeys(trial.config.model.name for trial in trials))
    return f"{text}; {len(trials)} trial(s) of {models} on {trials[0].dataset.name}."


def _config_summary(trial) -> dict:
    config = trial.config
    return {
        "model": config.model.name,
        "weights": f"{trial.start.source}, {trial.start.file}" if trial.start else "random",
        "image size": f"{config.image_size} px",
        "batch size": config.batch_size,
        "loss": config.loss.name,
        "optimiser": f"{config.optimizer.name}, learning rate {config.optimizer.learning_rate:g}",
        "schedule": config.schedule.name,
        "normalisation": start_weights.in_words(start_weights.preprocessing(config.data, trial.start)),
        "test-time views": config.evaluation.tta,
        "seed": config.seed,
    }


def _provenance(config, members, scored) -> dict:
    dataset = members[0].dataset
    roles, uses = [], USES | (masks.USES if members[0].task.segments else {})
    for role, use in uses.items():
        indices = dataset.indices(role)
        if len(indices):
            groups = len(set(dataset.groups[indices]))
            roles.append({"role": role, "n_examples": len(indices), "used_for": use, "n_groups": groups})
    statements = [
        f"The checkpoint was chosen by {config.selection} on validation, evaluated every {config.evaluate_every}.",
        masks.STATEMENT
        if members[0].task.segments
        else "Temperature and thresholds were fitted on calibration; nothing was chosen on test.",
        "Groups (copies, near-duplicates, patients, photographs) never stand in two labelled roles."
        if config.data.split == "roles"
        else "The split ignores groups: the figures are too good.",
    ]
    if len(members) > 1:
        statements.append("The roles are those of the first fold; every labelled image is test in exactly one fold.")
    if dataset.multi_label:
        statements.append(
            f"An image without a label above its threshold gets the fallback {config.evaluation.fallback}."
        )
    return {
        "roles": roles,
        "statements": statements,
        "bootstrap": {"resamples": config.evaluation.bootstrap, "seed": config.seed, "level": 0.95, "unit": "group"},
    }


def _training_figures(folder: pathlib.Path, ledger: list[dict], chosen: list[str]) -> list[dict]:
    rows = read_jsonl(folder / "metrics.jsonl")
    if len(ledger) > choice.MOST:
        rows = [row for row in rows if row["trial"] in chosen]
    best = {row["id"]: int(row["best_step"]) for row in ledger if row["id"] in chosen}
    first = [row for row in rows if row["trial"] == chosen[0]]
    phases = list(dict.fromkeys((_phase_start(first, row["phase"]), row["phase"]) for row in first))
    phases = phases if len(phases) > 1 else ()
    plots.learning_curves(rows, folder / "report" / "training_metrics.png", phases=phases, best=best)
    caption = "Learning curves; the star marks the checkpoint that was chosen."
    return [{"path": "training_metrics.png", "caption": caption, "section": "training"}]


def _phase_start(rows: list[dict], phase: str) -> int:
    return min(row["step"] for row in rows if row["phase"] == phase)


def _scored_parts(folder, config, members, scored, found, figures: list[dict]) -> dict:
    """Headline, per-class table, folds, baselines, calibration and mistakes; appends to `figures`."""
    n, seed, multi_label = config.evaluation.bootstrap, config.seed, scored.multi_label
    estimates = score.estimates(scored, n, seed)
    groups = len(set(scored.groups))
    parts = {
        "headline": [{"name": name, "role": "test", "n_examples": len(scored.ids), "n_groups": groups} | estimates[name]
                     for name in score.HEADLINE[multi_label]],
        "per_class": score.per_class(scored, n, seed),
        "baselines": rivals.table(found, scored, n, seed),
    }  # fmt: skip
    if len(members) > 1:
        parts["folds"] = _folds(scored)
    parts |= _calibration(config, scored)
    out = folder / "report"
    every = next((b for b in parts["baselines"] if b["name"] == "every label"), None)
    plots.per_class(parts["per_class"], out / "per_class.png", every and every["by_class"])
    for baseline in parts["baselines"]:
        baseline.pop("by_class")
    true = scored.labels > 0.5 if multi_label else scored.labels[:, None] == np.arange(len(scored.class_names))
    if multi_label:
        plots.label_predictions(true, scored.predicted, scored.class_names, out / "confusion.png")
    else:
        matrix = metrics.confusion(scored.labels, scored.predicted, len(scored.class_names))
        plots.confusion(matrix, scored.class_names, out / "confusion.png")
    cuts = scored.thresholds.mean(axis=0) if scored.thresholds is not None else None
    rank_curves.pr_curves(true, scored.scores, scored.class_names, out / "pr_curves.png", cuts)
    rank_curves.roc_curves(true, scored.scores, scored.class_names, out / "roc_curves.png")
    curves = {"before": scored.before, "after temperature scaling": scored.scores}
    plots.reliability({k: calibration.reliability_table(v, scored.labels, multi_label) for k, v in curves.items()},
                      out / "reliability.png")  # fmt: skip
    _tensorboard(folder, members[0].name, true, scored)
    figures += [
        {"path": "per_class.png", "caption": "F1 of each class with its 95 % interval.", "section": "classes"},
        {"path": "confusion.png", "caption": "What is predicted, given what is true.", "section": "classes"},
        {
            "path": "pr_curves.png",
            "caption": "Precision and recall; diamonds mark the thresholds.",
            "section": "classes",
        },
        {"path": "roc_curves.png", "caption": "Sensitivity and false positive rate.", "section": "classes"},
        {
            "path": "reliability.png",
            "caption": "Stated probability against observed frequency.",
            "section": "calibration",
        },
    ]
    figures += _data_figures(out, members[0])
    parts |= _merged(config, scored)
    parts["mistakes"] = [] if members[0].dataset.genes else _mistakes(out, members[0].dataset, scored)
    return parts


def _data_figures(out: pathlib.Path, trial) -> list[dict]:
    label_counts.draw(trial.dataset, out / "label_distribution.png")
    found = [{"path": "label_distribution.png", "caption": "Examples of each class by role.", "section": "data"}]
    if augmentations.draw(out / "augmentations.png", trial):
        caption = "What each augmentation of training does to the same images, as the network sees them."
        found.append({"path": "augmentations.png", "caption": caption, "section": "data"})
    return found


def _merged(config, scored) -> dict:
    """{"merged": …} with the metrics where classes of `config.evaluation.merge` count as one."""
    together = None if scored.multi_label else score.merged(scored, config.evaluation.merge)
    if together is None:
        return {}
    joined = [name for name in together.class_names if name not in scored.class_names]
    found = score.estimates(together, config.evaluation.bootstrap, config.seed)
    return {"merged": {"classes": joined, "metrics": found}}


def _folds(scored) -> list[dict]:
    rows = []
    for fold in np.unique(scored.folds):
        where = scored.folds == fold
        found = metrics.evaluate(
            scored.scores[where], scored.labels[where], scored.multi_label, predicted=scored.predicted[where]
        )
        rows.append({"fold": int(fold), "metrics": {k: found[k] for k in score.HEADLINE[scored.multi_label]},
                     "n_examples": int(where.sum()), "n_groups": len(set(scored.groups[where]))})  # fmt: skip
    mean = {k: float(np.mean([r["metrics"][k] for r in rows])) for k in rows[0]["metrics"]}
    return [*rows, {"fold": "mean", "metrics": mean}]


def _calibration(config, scored) -> dict:
    before = metrics.evaluate(scored.before, scored.labels, scored.multi_label, predicted=scored.predicted)
    after = metrics.evaluate(scored.scores, scored.labels, scored.multi_label, predicted=scored.predicted)
    parts = {
        "calibration": {
            "temperature": float(np.mean(scored.temperatures)),
            "ece_before": before["ece"], "ece_after": after["ece"],
            "log_loss_before": before["log_loss"], "log_loss_after": after["log_loss"],
            "role": "calibration",
        }
    }  # fmt: skip
    if scored.thresholds is not None:
        rows = [
            {"class": name, "threshold": float(cut)}
            for name, cut in zip(scored.class_names, scored.thresholds.mean(axis=0), strict=True)
        ]
        parts["thresholds"] = {"method": config.evaluation.thresholds, "role": "calibration",
                               "fallback": str(config.evaluation.fallback), "rows": rows}  # fmt: skip
    return parts


def _tensorboard(folder: pathlib.Path, trial: str, true: np.ndarray, scored) -> None:
    run = folder / "tensorboard" / trial / "test"
    shutil.rmtree(run, ignore_errors=True)  # the report may be made again
    writer = MetricWriter(run)
    writer.write_pr_curve(
        0,
        {
            f"test/{name}": (true[:, k].astype(int), scored.scores[:, k].clip(0, 1))
            for k, name in enumerate(scored.class_names)
        },
    )
    writer.close()


def _mistakes(out: pathlib.Path, dataset, scored) -> list[dict]:
    from input_pipeline.images import decode

    position = {name: i for i, name in enumerate(dataset.ids)}
    rows = score.confident_mistakes(scored, MISTAKES)
    for number, row in enumerate(rows):
        row["id"] = str(scored.ids[row.pop("row")])
        row["image"] = f"mistake_{number}.png"
        image = decode(dataset.encoded(position[row["id"]]))
        atomic_write(out / row["image"], plotting.encode_png(image))
    return rows


def _of_seeds(folder, by_seed: dict, config, multi_label: bool) -> list[score.Scored]:
    found = [score.score(folder, trials, multi_label, config.evaluation) for trials in by_seed.values()]
    return [one for one in found if one is not None]


def _comparison(folder, rows: list[dict], context: dict) -> None:
    """Draws settings and rivals on the headline's metrics."""
    metrics = [metric["name"] for metric in context["headline"]][:3]
    plots.comparison(rows, folder / "report" / "model_comparison.png", metrics)
    caption = "Settings and trivial baselines on the same test images, 95 % intervals over groups."
    context["figures"].insert(0, {"path": "model_comparison.png", "caption": caption, "section": "result"})
