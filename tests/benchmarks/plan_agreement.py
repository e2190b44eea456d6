"""Do all plans train what a trial trains alone? Ten trials, every plan, on real images.

    python -m tests.benchmarks.plan_agreement --data=data/blood_cells [--kinked] [--steps=100] [--out=table.json]

Tolerances, stated beforehand: a final parameter differs by at most 2 % of the largest of its array, the final
validation accuracy by at most one point. Plans add up the same numbers in another order, and training lets rounding
grow: the row "control" trains alone from parameters that differ by one part in ten million, about one rounding. The
network is smooth (swish, average pooling) and the optimiser SGD with momentum. With ReLU and max-pooling (`--kinked`)
one rounding decides differently which pixel wins, after a few steps the control itself is beyond the tolerances, and
only the comparison with it means something.
"""

import argparse
import json
import pathlib
import tempfile

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import blood_cells
from input_pipeline.dataset import open_dataset
from research import study
from research.search import plans
from research.search.cohort import group
from research.search.cohort_training import CohortTraining
from research.search.planner import candidates_for
from research.training import sharding
from research.training.loop import Training
from research.training.signals import StopSignal

PARAMETERS, ACCURACY = 0.02, 0.01


def configure(steps: int, kinked: bool) -> ConfigDict:
    """Ten settings of one small network: learning rates times regularisation."""
    config = blood_cells.get_config("single").unlock()
    config.image_size = 28
    config.steps = steps
    config.evaluate_every = config.checkpoint_every = f"{steps} steps"
    config.model.name = "grid_cnn"
    config.model.options = ConfigDict(
        {"filters": (8, 16), "kernels": 3, "dense": (32,), "padding": "same", "batch_norm_momentum": 0.9}
    )
    config.model.head_dropout = 0.0
    if not kinked:
        config.model.options.update({"activation": "swish", "pooling": "average"})
    config.optimizer.name = "sgd"
    config.search.trials = (
        {"name": "plain"},
        {"name": "decay", "optimizer.weight_decay": 0.05},
        {"name": "dropout", "model.options.conv_dropout": 0.1, "model.options.dense_dropout": 0.2},
        {"name": "seed", "seed": 7},
        {"name": "smooth", "loss.options.label_smoothing": 0.0},
    )
    config.search.grid = (("optimizer.learning_rate", (1e-2, 3e-2)),)
    return config.lock()


def differences(trials, training, alone) -> dict[str, float]:
    """The greatest differences over the trials."""
    parameters, accuracies = [], []
    for index, trial in enumerate(trials):
        params, accuracy = alone[trial.name]
        own = training.state_of(index)
        parameters += [np.abs(own.params[p] - v).max() / np.abs(v).max() for p, v in params.items()]
        accuracies.append(abs(training.members[index].history[-1]["accuracy"] - accuracy))
    return {"parameters": float(max(parameters)), "accuracy": float(max(accuracies))}


def main() -> None:
    """Trains alone and under every plan, prints the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--kinked", action="store_true")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    dataset = open_dataset(arguments.data)
    shared, mesh = study.SharedImages(), sharding.make_mesh(jax.devices()[:1])
    config = configure(arguments.steps, arguments.kinked)
    trials = [shared.attach(trial, mesh) for trial in study.expand(config, dataset)]
    table, alone = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for trial in trials:
            training = Training(trial, pathlib.Path(folder), mesh, StopSignal())
            training.run()
            alone[trial.name] = jax.device_get(training.state.params), training.meta["history"][-1]["accuracy"]
        (cohort,) = group(trials, 64)
        candidates = candidates_for(len(trials), len(jax.devices()))
        chosen = {str(p): p for p in (next(p for p in candidates if p.kind == kind) for kind in plans.KINDS)}
        for name, plan in (chosen | {"control": plans.Plan("one by one")}).items():
            together = CohortTraining(cohort, pathlib.Path(folder) / name, StopSignal(), {})
            together.begin()
            if name == "control":
                moved = {path: np.float32(values * (1 + 1e-7)) for path, values in together.host.params.items()}
                together.host = together.host.replace(params=moved)
            together.run(plan)
            table[name] = differences(trials, together, alone)
    for name, found in table.items():
        right = found["parameters"] <= PARAMETERS and found["accuracy"] <= ACCURACY
        numbers = f"parameters {found['parameters']:.2e} (at most {PARAMETERS}), accuracy {found['accuracy']:.4f}"
        print(f"{name}: {numbers} (at most {ACCURACY}){'' if right else '  EXCEEDED'}")
    if arguments.out:
        pathlib.Path(arguments.out).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
