"""A run folder as a search leaves it, without any training."""

import json
import pathlib

import numpy as np

from configs import common
from research.evaluation import predictions
from research.report import tables

CLASSES = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")


def config_of(study="", epochs=10.0):
    """A config with a cheap bootstrap."""
    config = common.default()
    config.study, config.epochs, config.evaluation.bootstrap = study, epochs, 50
    return config


def write_predictions(file: pathlib.Path, accuracy: float, seed: int, images: int = 120, groups: int = 12) -> None:
    """`images` predictions of which about the share `accuracy` are right, on images that depend on the role only."""
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % len(CLASSES)
    wrong = generator.random(images) >= accuracy
    chosen = (labels + wrong * generator.integers(1, len(CLASSES), images)) % len(CLASSES)
    logits = generator.normal(size=(images, len(CLASSES))) * 0.1 + 4.0 * np.eye(len(CLASSES))[chosen]
    ids = [f"{file.stem.rpartition('_')[2]}{i}" for i in range(images)]
    file.parent.mkdir(parents=True, exist_ok=True)
    predictions.write(file, ids, [f"photograph{i % groups}" for i in range(images)], labels, logits, CLASSES)


def row_of(number: int, filters: int, rate: float, seed: int = 0, **values) -> dict:
    """A row of the ledger: more filters are more accurate, up to noise."""
    generator = np.random.default_rng([number, seed])
    accuracy = float(
        np.clip(0.35 + 0.11 * np.log2(filters) + 0.05 * np.log10(rate) + generator.normal(0, 0.04), 0, 0.99)
    )
    parameters = 9 * 3 * filters + 18 * filters * filters + 8 * filters + 4
    return {
        "id": f"filters-{filters}-learning_rate-{rate:g}-{number}", "setting": f"filters={filters},{number}",
        "status": "finished", "stage": "search", "seed": seed, "cohort": f"c{filters}", "plan": "unrolled",
        "overrides": {"model.options.filters": [filters, 2 * filters], "optimizer.learning_rate": rate},
        "parameters": parameters, "bytes": 4 * parameters, "flops": 600 * parameters, "steps": 300, "best_step": 300,
        "latency_p50_ms": 0.02 + parameters * 2e-6, "latency_p95_ms": 0.03 + parameters * 2e-6,
        "latency_runtime": "onnxruntime 1.31.1", "peak_memory_bytes": 5 * parameters + 9000, "train_seconds": 2.5,
        "metrics": {"train": {"accuracy": min(accuracy + 0.05, 1.0), "loss": 1.2 - accuracy, "macro_f1": accuracy},
                    "validation": {"accuracy": accuracy, "loss": 1.5 - accuracy, "macro_f1": accuracy - 0.02},
                    "test": {"accuracy": accuracy - 0.03}},
    } | values  # fmt: skip


def metric_lines(row: dict, steps: int = 300, times: int = 5) -> list[dict]:
    """The evaluations of a trial."""
    lines = []
    for done in range(1, times + 1):
        step = steps * done // times
        shared = {"trial": row["id"], "step": step, "epoch": 10.0 * done / times, "phase": "training"}
        accuracy = row["metrics"].get("validation", {}).get("accuracy", 0.3) * done / times
        lines.append(shared | {"split": "train", "loss": 1.4 - accuracy, "accuracy": accuracy, "learning_rate": 1e-3})
        lines.append(shared | {"split": "validation", "loss": 1.5 - accuracy, "accuracy": accuracy})
    return lines


def write_run(folder: pathlib.Path, rows: list[dict], lines: list[dict] | None = None, config=None) -> None:
    """The ledger, the log and the config of a run."""
    (folder / "report").mkdir(parents=True, exist_ok=True)
    tables.write_trials_csv(folder / "trials.csv", rows)
    lines = [line for row in rows for line in metric_lines(row)] if lines is None else lines
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    config = config or config_of()
    (folder / "config.json").write_text(config.to_json_best_effort(), encoding="utf-8")


def grid(count: int) -> list[dict]:
    """`count` settings of different widths and rates."""
    widths, rates = (2, 3, 4, 6, 8, 12, 16, 24), (1e-3, 3e-3, 1e-2)
    return [row_of(i, widths[i % len(widths)], rates[i % len(rates)]) for i in range(count)]


def write_whole(folder: pathlib.Path, count: int = 12) -> list[dict]:
    """A search with a plan, rungs, a failed trial, longer and compressed candidates and confirmed settings."""
    rows = grid(count)
    rows[1] |= {"status": "failed: the loss was not finite", "metrics": {}}
    searched = [row for row in rows if row["metrics"]]
    kept = searched[: count // 2]
    plan = {"cohorts": [
        {"cohort": "c0", "trials": [row["id"] for row in rows], "members": 8, "plan": "unrolled", "steps": 300,
         "milliseconds": {"one by one": 3.0, "unrolled": 1.25, "map": None}, "reason": "the fastest that fits"},
        {"cohort": "c1", "trials": ["unknown"], "members": 1, "plan": "one by one", "steps": 10, "milliseconds": {}},
    ]}  # fmt: skip
    rungs = [
        {"rung": 0, "step": 100, "entered": [row["id"] for row in rows], "kept": [row["id"] for row in kept]},
        {"rung": 1, "step": 300, "entered": [row["id"] for row in kept], "kept": [row["id"] for row in kept]},
    ]
    small = {"bytes": 500, "finetune_steps": 30, "latency_p50_ms": 0.01}
    rows.append(row_of(900, 4, 1e-3, stage="compress", setting=rows[2]["setting"], **small))
    rows.append(row_of(901, 8, 1e-2, stage="extend", steps=900, setting=rows[4]["setting"]))
    for number, base in enumerate((rows[0], rows[3], rows[5])):
        for seed in (11, 12, 13):
            name = f"confirm-{base['setting']}-{seed}".replace("=", "-").replace(",", "-")
            row = row_of(950 + number, base["overrides"]["model.options.filters"][0], 1e-3, seed)
            rows.append(row | {"id": name, "setting": base["setting"], "stage": "confirm"})
            for role in ("calibration", "test"):
                write_predictions(folder / "predictions" / f"{name}_{role}.csv", 0.5 + 0.15 * number, seed)
    compressed = [row for row in rows if row["stage"] == "compress"]
    write_run(folder, [row for row in rows if row not in compressed])
    tables.write_trials_csv(folder / "compressed.csv", compressed)
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    (folder / "rungs.json").write_text(json.dumps(rungs), encoding="utf-8")
    return rows
