"""With which variables and optimiser state does a training begin?"""

import pathlib

import jax

from research.models.call_order import call_order
from research.models.initialize import initialize
from research.training import build, cluster, freezing, optimizers, start_weights, state, texts
from research.training.phases import Phase
from research.training.signals import StopSignal


def variables(trial: build.Trial, folder: pathlib.Path, stop: StopSignal):
    """Drawn variables of a trial's model, with its pretrained weights in them if it has some; records what came in."""
    model, key = build.build_model(trial), jax.random.key(trial.config.seed)
    size, channels = trial.config.image_size, trial.channels
    drawn = stop.interruptible(lambda: initialize(model, key, size, channels))
    drawn = texts.with_weights(trial, drawn, folder)
    start = trial.start
    if start is None:
        return drawn
    modules, _ = call_order(model, size, channels)
    loaded, report = stop.interruptible(lambda: start.load(model, drawn, modules, channels))
    name = build.as_file_name(trial.name)
    if cluster.is_first():
        start_weights.write_record(folder, name, start, report)
    print(f"{name}: weights of {start.source}; {start_weights.RECORD} lists what was loaded.", flush=True)
    return loaded


def shapes(trial: build.Trial):
    """The shapes of `variables`, whose values come from a checkpoint."""
    model, key = build.build_model(trial), jax.random.key(trial.config.seed)
    return jax.eval_shape(lambda: initialize(model, key, trial.config.image_size, trial.channels))


def fresh_state(
    trial: build.Trial, layers: freezing.Layers, phase: Phase, variables, opt_state=None
) -> state.TrainState:
    """The state at the beginning of a phase; an optimiser state that is given is taken instead of a fresh one."""
    return state.create(
        variables,
        trial.config.seed,
        optimizers.direction(trial.config.optimizer),
        freezing.trainable(layers, phase.freeze, phase.train),
        optimizers.on(trial.config.optimizer.ema),
        trial.num_classes,
        opt_state,
        loss_scale=trial.config.model.dtype == "float16",
    )
