"""What does drawing expression vectors as pictures on the device add to a training step? Prints one line of JSON.

    python -m tests.benchmarks.layout_speed --model=resnet50 --image_size=224 --batch_size=8 --genes=10404 --steps=6
        [--collisions] [--method=bilinear] [--scaling=gene]

The step is that of tests/benchmarks/train_step.py, once with images that are already there and once with vectors, which
are scaled, gathered, enlarged and repeated for three channels within the step; the two take turns.

* `render_seconds`: of the drawing alone, one batch (median of 30);
* `step_seconds`, `step_with_render_seconds`: medians; `processor_seconds` likewise, which says more on a machine that
  others use;
* `render_share`: `render_seconds / step_seconds`, to stay below 0.05; `added_share`: what the two steps differ by, as a
  share of the first, in processor time. It is the difference of two large numbers: read it beside `render_share`.
"""

from research import memory

if __name__ == "__main__":  # as research.main does
    memory.restart_with_huge_pages()

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import cli
from research.layouts import render
from research.layouts.layout import Layout, smallest_side
from research.layouts.scaling import fit_scale
from research.training import steps
from tests.benchmarks import train_step


def random_layout(genes: int, collisions: bool, generator: np.random.Generator) -> Layout:
    """Every gene at a random pixel of the smallest square, each on its own or wherever it falls."""
    side = smallest_side(genes)
    pixel = generator.integers(0, side**2, genes) if collisions else generator.permutation(genes)
    return Layout("random", tuple(str(number) for number in range(genes)), side, pixel)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock and of all processors."""
    wall, work = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return time.perf_counter() - wall, time.process_time() - work


def compiled_step(arguments: argparse.Namespace, image: jax.Array, normalize: Callable):
    """A function without arguments that takes one training step; its state goes on from step to step."""
    batch = train_step.make_batch(arguments)
    model, variables = train_step.make_model(arguments, arguments.image_size)
    current, parts = train_step.make_step(arguments, model, variables, batch)
    parts = dataclasses.replace(parts, normalize=normalize)
    batch["image"] = image
    rate = np.float32(arguments.learning_rate)
    compiled = (
        jax.jit(lambda current, batch, rate: steps.train_step(parts, current, batch, rate), donate_argnums=0)
        .lower(current, batch, rate)
        .compile()
    )
    held = [current]

    def step():
        held[0] = compiled(held[0], batch, rate)
        return held[0]

    return step


def measure(arguments: argparse.Namespace) -> dict:
    """The figures."""
    generator = np.random.default_rng(arguments.seed)
    tables = render.prepare(random_layout(arguments.genes, arguments.collisions, generator))
    train = generator.normal(6, 3, (50, arguments.genes)).astype(np.float32)
    scale = fit_scale(arguments.scaling, train)
    vectors = jnp.asarray(train[np.arange(arguments.batch_size) % len(train), None, :, None])

    def draw(values: jax.Array) -> jax.Array:
        return render.render(values, tables, scale, arguments.image_size, 3, arguments.method)

    alone = jax.jit(draw)
    images = jax.block_until_ready(alone(vectors))
    render_seconds = statistics.median(timed(lambda: alone(vectors))[0] for _ in range(30))
    both = (compiled_step(arguments, images, lambda values: values), compiled_step(arguments, vectors, draw))
    times = [[timed(step) for step in both] for _ in range(arguments.steps + 1)][1:]  # the first one warms up
    (wall, work), (wall_render, work_render) = (
        [statistics.median(one[column][kind] for one in times) for kind in (0, 1)] for column in (0, 1)
    )
    return {
        "model": arguments.model,
        "image_size": arguments.image_size,
        "batch_size": arguments.batch_size,
        "genes": arguments.genes,
        "largest_collision": int(tables.share is not None and round(1 / tables.share[tables.share > 0].min())) or 1,
        "device": jax.devices()[0].device_kind,
        "render_seconds": render_seconds,
        "step_seconds": wall,
        "step_with_render_seconds": wall_render,
        "processor_seconds": work,
        "processor_seconds_with_render": work_render,
        "render_share": render_seconds / wall,
        "added_share": work_render / work - 1,
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; what it does not have is as in train_step.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--genes", type=int, default=10_404)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--classes", type=int, default=33)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--scaling", default="gene")
    parser.add_argument("--method", default="nearest")
    parser.add_argument("--collisions", action="store_true", help="genes may share a pixel")
    known = parser.parse_args(argv)
    return argparse.Namespace(**vars(train_step.parse([])) | vars(known))


def main() -> None:
    """Prints the line."""
    print(json.dumps(measure(parse())), flush=True)


if __name__ == "__main__":
    cli.run(main)
