"""How fast is a training step, how long until the first, how much memory does it take? Prints one line of JSON.

    python -m tests.benchmarks.train_step --model=resnet50 --image_size=128 --batch_size=16 --steps=20
        [--dtype=bfloat16] [--classes=1000] [--variant=NAME] [--freeze=LAYERS,...]
        [--input=X.npy --weights=FILE [--disturb]]

It is the step that `research.main` compiles: SGD with momentum 0.9, BatchNorm updating, cross-entropy, metrics and the
check for non-finite gradients, on a batch that stays on the device (random, with random labels, fixed by `--seed`).

* `images_per_second`: batch size over the median time of the steps after two to warm up; `processor_seconds` is the
  processor time of such a step on all cores, which says more on a machine that others use;
* `seconds_to_first_step`: from the launch of the process to the end of the first step, with what they went to. With
  JAX_COMPILATION_CACHE_DIR set to a folder that a run before has filled, this is the warm start;
* `peak_memory_bytes`: of the accelerator, or else of the process;
* `losses`: of the first five steps. With another library's batch (`--input`, float32 `[B, H, W, C]`, labels
  `0, 1, ...` modulo the classes) and first weights (`--weights`) they should be that library's.
"""

from research import memory

if __name__ == "__main__":  # as research.main does
    memory.restart_with_huge_pages()

import argparse
import json
import os
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from input_pipeline import augment, cli
from research.losses import registry as losses
from research.models import pretrained, registry
from research.models.initialize import initialize
from research.training import freezing, state, steps

COUNTED = 5
_IMPORTED = time.time()


def launched() -> float:
    """When the process was started, in seconds since the epoch; elsewhere than on Linux, when the imports were done."""
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        with open("/proc/uptime") as file:
            up = float(file.read().split()[0])
        return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
    except OSError:
        return _IMPORTED


def make_batch(arguments: argparse.Namespace) -> dict[str, jax.Array]:
    """image float32 `[B, H, W, 3]`, label int32 `[B]`, valid `[B]`."""
    generator = np.random.default_rng(arguments.seed)
    if arguments.input:
        images = np.load(arguments.input).astype(np.float32)
        labels = np.arange(len(images)) % arguments.classes
    else:
        images = generator.standard_normal((arguments.batch_size, *(arguments.image_size,) * 2, 3), np.float32)
        labels = generator.integers(0, arguments.classes, len(images))
    if arguments.disturb:
        images *= 1 + np.finfo(np.float32).eps * generator.choice([-1, 1], images.shape).astype(np.float32)
    return jax.tree.map(
        jnp.asarray, {"image": images, "label": labels.astype(np.int32), "valid": np.ones(len(images), bool)}
    )


def make_model(arguments: argparse.Namespace, size: int):
    """The model and its first variables, from the file of weights if there is one."""
    known = pretrained.plan(arguments.model, arguments.variant, arguments.weights) if arguments.weights else None
    options = {"variant": known.variant if known else arguments.variant, "dtype": jnp.dtype(arguments.dtype)}
    model = registry.create(arguments.model, num_classes=arguments.classes, **options)
    variables = initialize(model, jax.random.key(arguments.seed), size, 3)
    if known:
        variables, report = known.load(model, variables)
        if report["missing"] or report["replaced_head"]:
            raise cli.UserError(f"{arguments.weights} does not hold the whole model; give --classes of the file.")
    return model, variables


def make_step(arguments: argparse.Namespace, model, variables, batch):
    """The first state and the step's parts, built as `research.training.build` builds them."""
    layers = freezing.unordered(variables["params"])
    trained = layers.paths
    if arguments.freeze:
        frozen = [text for text in arguments.freeze.split(",") if text]
        trained = freezing.trainable(freezing.describe(model, batch["image"].shape[1], 3), frozen, ())
        model = model.clone(frozen=freezing.resting_norms(layers, trained))
    parts = steps.StepParts(
        model=model,
        loss=losses.get("softmax_cross_entropy"),
        class_weights=None,
        transformation=optax.trace(0.9),
        trainable=trained,
        augment=augment.build({}),
        normalize=lambda images: images,
        batch_size=len(batch["label"]),
        num_classes=arguments.classes,
        multi_label=False,
    )
    return state.create(variables, 0, parts.transformation, trained, False, arguments.classes), parts


def measure(arguments: argparse.Namespace) -> dict:
    """The figures."""
    marks = {"launch": launched(), "imports": time.time()}
    batch = make_batch(arguments)
    model, variables = make_model(arguments, batch["image"].shape[1])
    current, parts = make_step(arguments, model, variables, batch)
    rate = np.float32(arguments.learning_rate)
    jax.block_until_ready(current)
    marks["variables"] = time.time()
    step = jax.jit(
        lambda current, batch, rate: steps.train_step(parts, current, batch, rate),
        donate_argnums=0,
    )
    traced = step.lower(current, batch, rate)
    marks["trace"] = time.time()
    compiled = traced.compile()
    marks["compile"] = time.time()
    total, seconds, processor, seen = 0.0, [], [], []
    for _ in range(arguments.steps):
        wall, work = time.perf_counter(), time.process_time()
        current = compiled(current, batch, rate)
        jax.block_until_ready(current)
        seconds.append(time.perf_counter() - wall)
        processor.append(time.process_time() - work)
        marks.setdefault("first_step", time.time())
        if len(seen) < COUNTED:
            seen.append(float(current.sums["loss"]) - total)
            total += seen[-1]
    device = jax.devices()[0]
    memory = device.memory_stats() or {}
    names = list(marks)
    return {
        "model": arguments.model,
        "image_size": batch["image"].shape[1],
        "batch_size": len(batch["label"]),
        "dtype": arguments.dtype,
        "device": device.device_kind,
        "images_per_second": len(batch["label"]) / statistics.median(seconds[2:] or seconds),
        "processor_seconds": statistics.median(processor[2:] or processor),
        "seconds_to_first_step": marks["first_step"] - marks["launch"],
        "seconds": {b: round(marks[b] - marks[a], 2) for a, b in zip(names, names[1:], strict=False)},
        "peak_memory_bytes": memory.get("peak_bytes_in_use")
        or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "losses": seen,
        "loss_after_5": seen[-1],
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--variant", default="")
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--freeze", default="", help="layers as in config.phases[i].freeze, separated by commas")
    parser.add_argument("--learning_rate", type=float, default=0.01)
    parser.add_argument("--disturb", action="store_true", help="change the pixels by one rounding")
    parser.add_argument("--input")
    parser.add_argument("--weights")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main() -> None:
    """Prints the line."""
    print(json.dumps(measure(parse())), flush=True)


if __name__ == "__main__":
    cli.run(main)
