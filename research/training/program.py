"""What is compiled for a step of a trial: made of shapes alone, before any array exists."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.loader import train_batches
from input_pipeline.sampling import Sampler
from research.training import begin, build, freezing, inference, sharding, steps
from research.training.phases import Phase, needs_layers, phases
from research.training.state import TrainState


def layers_of(trial: build.Trial) -> freezing.Layers:
    """The layers of a trial's model, in their order only where that matters."""
    if needs_layers(trial.config):
        return build.build_layers(trial)
    return freezing.unordered(begin.shapes(trial)["params"])


def train_function(trial: build.Trial, phase: Phase, layers: freezing.Layers, mesh) -> tuple[steps.StepParts, Callable]:
    """The parts of a phase's step, and the step `(state, batch, rate, images of the data set or None) -> state`."""
    parts = build.build_parts(trial, phase, layers, mesh)

    def step(current: TrainState, batch, rate, images) -> TrainState:
        return steps.train_step(parts, current, inference.gather(batch, images), rate)

    return parts, step


def abstract_state(trial: build.Trial, phase: Phase, layers: freezing.Layers, mesh) -> TrainState:
    """Shapes, types and places of the state at the beginning of a phase."""
    made = jax.eval_shape(lambda v: begin.fresh_state(trial, layers, phase, v), begin.shapes(trial))
    where = sharding.shardings(made, mesh, trial.config.shard_parameters)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), made, where)


def abstract_batch(trial: build.Trial, batch_size: int, mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and places of a batch on the devices, as the loader gives it."""
    sampler = Sampler("uniform", trial.dataset.labels, trial.train_indices, 0, 0.1)
    given = inference.loader_arguments(trial, mesh) | {"threads": 1, "prefetch": 1, "cache": None}
    if trial.images is not None:
        given["cache"] = "device"
    one = next(train_batches(**given, sampler=sampler, batch_size=mesh.size, start_step=0, num_steps=1))
    rows, place = sharding.rows_for(mesh, batch_size), sharding.over_batch(mesh)
    return {
        name: jax.ShapeDtypeStruct((rows, *value.shape[1:]), jax.dtypes.canonicalize_dtype(value.dtype), sharding=place)
        for name, value in one.items()
        if name != "id"
    }


def arguments(trial: build.Trial, phase: Phase, layers: freezing.Layers, mesh) -> tuple[Any, ...]:
    """What the step of `train_function` is traced with."""
    images = trial.images
    if images is not None:
        images = jax.ShapeDtypeStruct(images.shape, images.dtype, sharding=sharding.replicated(mesh))
    state, batch = abstract_state(trial, phase, layers, mesh), abstract_batch(trial, phase.batch_size, mesh)
    return state, batch, np.float32(0), images


def lowered(trial: build.Trial, mesh, batch_size: int = 0) -> jax.stages.Lowered:
    """The step of a trial's first phase, with another batch size if one is given; `.compile()` needs no arrays."""
    phase = phases(trial.config, len(trial.train_indices))[0]
    phase = dataclasses.replace(phase, batch_size=batch_size or phase.batch_size)
    layers = layers_of(trial)
    given = arguments(trial, phase, layers, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, given[0])
    _, step = train_function(trial, phase, layers, mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=places).lower(*given)


def exported(trial: build.Trial, platform: str) -> tuple[jax.export.Exported, jax.export.Exported]:
    """Training and evaluation step of a trial for one device of a platform ("tpu", "cuda", "cpu") that is not here."""
    from research.models.lowering import lowering_for

    mesh = sharding.make_mesh(jax.devices()[:1])
    phase = phases(trial.config, len(trial.train_indices))[0]
    layers = layers_of(trial)
    state, batch, _, images = _without_places(arguments(trial, phase, layers, mesh))
    _, step = train_function(trial, phase, layers, mesh)
    evaluated = jax.eval_shape(lambda s: s.evaluated(), state)
    model, normalize = build.build_model(trial), build.build_normalize(trial)
    captions = [batch[name] for name in ("caption",) if name in batch]
    with lowering_for(platform):
        # Fresh functions: a trace for another platform must not be taken from a cache.
        train = jax.export.export(jax.jit(lambda *given: step(*given)), platforms=[platform])(
            state, batch, jax.ShapeDtypeStruct((), jnp.float32), images
        )
        evaluate = jax.export.export(
            jax.jit(lambda *given: steps.eval_step(model, normalize, *given)), platforms=[platform]
        )(evaluated, batch["image"], *captions)
    return train, evaluate


def _without_places(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "sharding") else leaf, tree
    )
