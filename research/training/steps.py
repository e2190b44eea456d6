"""The pure functions that are compiled: one training step and one evaluation step of one model."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from research.models import remat
from research.models.lowering import on_cpu
from research.training import task as tasks
from research.training.state import Flat, TrainState, flatten, nest, zero_sums

_GOOD_STEPS, _GREATEST_SCALE = 2000, 2.0**24


@dataclasses.dataclass(frozen=True)
class StepParts:
    """What a training step is made of.

    Attributes:
      model: Flax module, `model.apply(variables, {"image", "caption"}, train=…)` → Output.
      loss: research.losses.registry.Loss.
      class_weights: float32 [K] or None.
      transformation: optax direction without the learning rate.
      trainable: paths that receive gradients.
      augment, normalize: input_pipeline's functions on batches.
      batch_size, num_classes, multi_label: the global batch B, K, and the kind of targets.
      task: whether the images are classified or their pixels; targets and logits of pixels are `[B, H, W, K]`.
      accumulate: micro-batches per step; B must be a multiple of it.
      remat: whether blocks are computed again for the backward pass, see `research.models.remat`.
      ema: decay of the averaged weights, 0 = off.
      factors: by path, what multiplies the learning rate; 1 where it says nothing.
      penalties: by path, λ of the penalty λ·Σθ² that joins the gradient.
      class_weights_from: the step at which the class weights begin; all count 1 before.
      data_seed: of the augmentation; the model's own seed, that of dropout, is in its state.
      batch_sharding: sharding of arrays `[B, …]`, or None on one device.
    """

    model: Any
    loss: Any
    class_weights: jax.Array | None
    transformation: optax.GradientTransformation
    trainable: tuple[str, ...]
    augment: Any
    normalize: Callable[[jax.Array], jax.Array]
    batch_size: int
    num_classes: int
    multi_label: bool
    task: tasks.Task = tasks.CLASSIFICATION
    accumulate: int = 1
    remat: bool = False
    ema: float = 0.0
    factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    penalties: Mapping[str, float] = dataclasses.field(default_factory=dict)
    class_weights_from: int = 0
    data_seed: int | jax.Array = 0
    batch_sharding: Any = None


def prepare_batch(parts: StepParts, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """Cuts the transfer padding off, makes dense targets, augments and normalises.

    Args:
      batch: image uint8|uint16 `[≥B, H, W, C]`, label int32 `[≥B]` or float32 `[≥B, K]`, valid `[≥B]`,
        segmentation uint8 `[≥B, H, W]` where pixels are classified, caption int32 `[≥B, L]` where captions are read.

    Returns:
      image float32 `[B, H, W, C]` normalised, target float32 `[B, K]`, valid `[B]`.
    """
    wanted = parts.task.read_in_training
    batch = {name: value[: parts.batch_size] for name, value in batch.items() if name in wanted}
    if parts.batch_sharding is not None:
        batch = jax.lax.with_sharding_constraint(batch, parts.batch_sharding)
    batch = parts.task.labelled(batch, parts.num_classes, parts.multi_label)
    before, after = jax.random.split(key)
    batch = parts.augment.before(before, batch)
    batch["image"] = parts.normalize(batch["image"])
    return parts.task.augmented(parts.augment.after(after, batch), parts.num_classes)


def model_inputs(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The entries of a batch that models read: the image, and the caption's token ids where there are any."""
    return {name: batch[name] for name in ("image", "caption") if name in batch}


def _apply(parts: StepParts, params: Flat, stats: Flat, inputs: dict[str, jax.Array], key: jax.Array):
    """Training-mode forward pass: logits float32 [b, K] and the new running statistics."""
    with remat.recomputed_blocks() if parts.remat else contextlib.nullcontext():
        output, updates = parts.model.apply(
            {"params": nest(params), "batch_stats": nest(stats)},
            inputs,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
    return output.logits.astype(jnp.float32), flatten(updates.get("batch_stats", {})) or stats


def batch_loss(parts: StepParts, logits: jax.Array, target: jax.Array, valid: jax.Array) -> jax.Array:
    """The loss of (a part of) the batch; per-example losses are summed and divided by the global B, so parts add up."""
    weights = valid.astype(jnp.float32)
    options = {}
    if parts.class_weights is not None:
        if parts.multi_label or not parts.loss.per_example:
            options["class_weights"] = parts.class_weights
        else:
            weights = weights * (target @ parts.class_weights)
    if parts.loss.per_example:
        return jnp.sum(weights * parts.loss.fn(logits, target, **options)) / parts.batch_size
    return parts.loss.fn(logits, target, weights, **options)


def _whole(parts: StepParts, state: TrainState, batch, key):
    """(loss, logits, statistics, gradients of the scaled loss) in one forward and backward pass.

    Frozen parameters are constants of the objective: below the lowest trained layer nothing is kept for a backward pass
    and none is made, and above it XLA drops the frozen layers' kernel gradients, which nobody reads.
    """

    def objective(trainable: Flat):
        logits, stats = _apply(parts, state.params | trainable, state.batch_stats, model_inputs(batch), key)
        loss = batch_loss(parts, logits, batch["target"], batch["valid"])
        return _scaled(state, loss), (loss, logits, stats)

    trainable = {p: state.params[p] for p in parts.trainable}
    (_, (loss, logits, stats)), gradients = jax.value_and_grad(objective, has_aux=True)(trainable)
    return loss, logits, stats, gradients


def _accumulated(parts: StepParts, state: TrainState, batch, key):
    """As `_whole`, with the activations of one micro-batch at a time.

    Exact for every loss: the loss's gradient at the logits is taken over the whole batch first, then pulled back
    through the network micro-batch by micro-batch (gradient caching, Gao et al. 2021, arXiv:2101.06983). Per-example
    losses need no first pass, because their gradient at the logits of a micro-batch does not depend on the others.
    Networks with BatchNorm normalise over the micro-batch, as everywhere.
    """
    k = parts.accumulate
    micro = jax.tree.map(lambda x: x.reshape(k, x.shape[0] // k, *x.shape[1:]), batch)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(k))
    trainable = {p: state.params[p] for p in parts.trainable}

    def run(params, stats, inputs, key):
        return _apply(parts, state.params | params, stats, inputs, key)

    def forward(stats, part):
        logits, stats = run(trainable, stats, *part)
        return stats, logits

    cached = None
    if not parts.loss.per_example:
        _, logits = _over_parts(forward, state.batch_stats, (model_inputs(micro), keys), k)
        logits = logits.reshape(-1, *logits.shape[2:])
        cached = jax.grad(lambda z: _scaled(state, batch_loss(parts, z, batch["target"], batch["valid"])))(logits)
        cached = cached.reshape(k, -1, *cached.shape[1:])

    def backward(carry, part):
        stats, gradients = carry
        given, key, target, valid, *cotangent = part
        logits, pull, stats = jax.vjp(lambda p: run(p, stats, given, key), trainable, has_aux=True)
        own = jax.grad(lambda z: _scaled(state, batch_loss(parts, z, target, valid)))
        at_logits = cotangent[0] if cotangent else own(logits)
        (new,) = pull(at_logits)
        return (stats, jax.tree.map(jnp.add, gradients, new)), logits

    inputs = (model_inputs(micro), keys, micro["target"], micro["valid"]) + ((cached,) if cached is not None else ())
    zeros = jax.tree.map(jnp.zeros_like, trainable)
    (stats, gradients), logits = _over_parts(backward, (state.batch_stats, zeros), inputs, k)
    logits = logits.reshape(-1, *logits.shape[2:])
    return batch_loss(parts, logits, batch["target"], batch["valid"]), logits, stats, gradients


def _over_parts(function, carry, inputs, k: int):
    """`lax.scan`, unrolled on CPU, where convolutions inside loops are several times slower (jax issue 12868)."""
    if not on_cpu():
        return jax.lax.scan(function, carry, inputs)
    outputs = []
    for i in range(k):
        carry, output = function(carry, jax.tree.map(lambda x, i=i: x[i], inputs))
        outputs.append(output)
    return carry, jnp.stack(outputs)


def train_metrics(parts: StepParts, loss, gradient_norm, logits, target, valid) -> dict[str, jax.Array]:
    """Sums for the log line: loss, gradient norm, examples, and the task's decisions."""
    valid = valid.astype(jnp.float32)[:, None]
    return {
        "steps": jnp.ones(()),
        "loss": loss,
        "gradient_norm": gradient_norm,
        "examples": jnp.sum(valid),
    } | parts.task.decisions(logits, target, valid, parts.num_classes, parts.multi_label)


def train_step(parts: StepParts, state: TrainState, batch: dict[str, jax.Array], rate: jax.Array) -> TrainState:
    """One optimiser step; a step whose loss or gradient is not finite changes nothing but the counters.

    Args:
      batch: arrays as the loader gives them, `[≥B, …]`, padding rows last.
      rate: float32 [], learning rate.
    """
    batch = prepare_batch(parts, batch, augment_key(parts.data_seed, state.step))
    return update(parts, state, batch, rate)


def augment_key(data_seed: int | jax.Array, step: jax.Array) -> jax.Array:
    """The key of a step's augmentation: models with one data seed see the same images."""
    key = jax.random.key(data_seed, impl="threefry2x32")
    return jax.random.split(jax.random.fold_in(key, step))[0]


def update(parts: StepParts, state: TrainState, batch: dict[str, jax.Array], rate: jax.Array) -> TrainState:
    """The part of `train_step` after `prepare_batch`."""
    parts = _with_due_weights(parts, state.step)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl="threefry2x32"), state.step)
    dropout_key = jax.random.split(key)[1]
    gradient = _whole if parts.accumulate == 1 else _accumulated
    loss, logits, stats, gradients = gradient(parts, state, batch, dropout_key)
    if state.scale:
        gradients = jax.tree.map(lambda g: g / state.scale["factor"], gradients)
    trainable = {p: state.params[p] for p in parts.trainable}
    for path in parts.penalties.keys() & trainable.keys():
        gradients[path] = gradients[path] + 2.0 * parts.penalties[path] * trainable[path]
    norm = optax.global_norm(gradients)
    updates, opt_state = parts.transformation.update(gradients, state.opt_state, trainable)
    params = state.params | {p: trainable[p] - rate * parts.factors.get(p, 1.0) * u for p, u in updates.items()}
    ema = _average(parts, state, params, stats)
    sums = train_metrics(parts, loss, norm, logits, batch["target"], batch["valid"])
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    new = state.replace(
        params=params, batch_stats=stats, opt_state=opt_state, ema=ema, sums=jax.tree.map(jnp.add, state.sums, sums)
    )
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    bad, scale = 1 - finite.astype(jnp.int32), {}
    if state.scale:
        sound = jnp.isfinite(loss) & jnp.isfinite(jnp.sum(batch["image"]))
        scale, forgiven = rescaled(state.scale, sound, finite)
        bad = jnp.where(forgiven, 0, bad)
    return kept.replace(step=state.step + 1, skipped=state.skipped + bad, streak=bad * (state.streak + 1), scale=scale)


def _scaled(state: TrainState, loss: jax.Array) -> jax.Array:
    """The loss that is differentiated: times a factor in float16, whose least numbers gradients would fall below."""
    return loss * state.scale["factor"] if state.scale else loss


def rescaled(
    scale: dict[str, jax.Array], sound: jax.Array, finite: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Dynamic loss scaling (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).

    The factor is halved when gradients overflow, and doubled after `_GOOD_STEPS` steps in a row without.

    Args:
      sound: bool [], whether images and loss were finite. finite: bool [], whether loss and gradients were.

    Returns:
      The new scale, and whether the step was left out for the factor's sake: images and loss were finite and the
      factor can still be halved. Such a step counts as neither skipped nor diverged.
    """
    factor, good = scale["factor"], scale["good"]
    overflow = sound & ~finite
    forgiven = overflow & (factor > 1.0)
    good = jnp.where(finite, good + 1, 0)
    due = good >= _GOOD_STEPS
    grown = jnp.where(due, jnp.minimum(factor * 2, _GREATEST_SCALE), factor)
    factor = jnp.where(overflow, jnp.maximum(factor / 2, 1.0), grown)
    return {"factor": factor, "good": jnp.where(due, 0, good).astype(jnp.int32)}, forgiven


def _with_due_weights(parts: StepParts, step: jax.Array) -> StepParts:
    """Class weights of one until they begin: deferred re-weighting (Cao et al. 2019, algorithm 1)."""
    if parts.class_weights is None or not parts.class_weights_from:
        return parts
    weights = jnp.where(step < parts.class_weights_from, 1.0, parts.class_weights)
    return dataclasses.replace(parts, class_weights=weights)


def _average(parts: StepParts, state: TrainState, params: Flat, stats: Flat) -> dict[str, Flat]:
    """Exponential moving average with TensorFlow's warm-up, decay min(d, (1+t)/(10+t)); running statistics included.

    Written so that what equals its average (frozen arrays) keeps every bit.
    """
    if not state.ema:
        return state.ema
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(parts.ema, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, b: a + (1 - decay) * (b - a), state.ema, {"params": params, "batch_stats": stats})


def reset_sums(state: TrainState) -> TrainState:
    """Clears the training metrics after a log line."""
    return state.replace(sums=zero_sums(state.sums["tp"].shape[0]))


def eval_step(
    model, normalize, variables: dict[str, Flat], image: jax.Array, caption: jax.Array | None = None
) -> jax.Array:
    """Logits float32 `[B, K]` of raw images `[B, H, W, C]`, with running statistics and without dropout.

    Args:
      caption: token ids int32 `[B, L]`, for a model that reads them.
    """
    nested = {name: nest(flat) for name, flat in variables.items()}
    inputs = {"image": normalize(image)} | ({} if caption is None else {"caption": caption})
    return model.apply(nested, inputs, train=False).logits.astype(jnp.float32)
