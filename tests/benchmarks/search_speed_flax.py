"""The 32 trials of `search_speed` one after another in plain Flax. Prints lines of JSON that `search_speed` reads.

    python search_speed_flax.py --data=DATA.npz --filters=8,16 --steps=400 [--reshape]

As one would write it by hand: `flax.linen.Conv`, `max_pool` (or, with --reshape, pooling by reshape), `BatchNorm`,
`Dense` with their default initialisers, one jitted step that augments, normalises and updates with `optax.adamw`. The
settings are arguments of the step, so that there is one compilation for each of the 4 shapes. Batches are drawn from
uint8 images in memory while the device works.
"""

import argparse
import functools
import itertools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax


class SmallCNN(nn.Module):
    """conv - relu - pool, conv - relu - pool - BatchNorm, mean, dense - relu - BatchNorm - dropout, logits."""

    filters: tuple[int, int]
    kernel: int
    units: int
    classes: int
    reshape: bool

    @nn.compact
    def __call__(self, images, dropout, *, train):
        outputs = images
        for block, width in enumerate(self.filters):
            outputs = nn.relu(nn.Conv(width, (self.kernel, self.kernel))(outputs))
            outputs = _pool_by_reshape(outputs) if self.reshape else nn.max_pool(outputs, (2, 2), (2, 2))
            if block:
                outputs = nn.BatchNorm(use_running_average=not train, momentum=0.9)(outputs)
        outputs = nn.relu(nn.Dense(self.units)(outputs.mean((1, 2))))
        outputs = nn.BatchNorm(use_running_average=not train, momentum=0.9)(outputs)
        if train:  # nn.Dropout wants a rate that is known at compilation
            kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - dropout, outputs.shape)
            outputs = jnp.where(kept, outputs / (1 - dropout), 0.0)
        return nn.Dense(self.classes)(outputs)


def _pool_by_reshape(values):
    batch, height, width, channels = values.shape
    return values.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


def _normalise(images):
    return images.astype(jnp.float32) / 127.5 - 1.0


def _augment(key, images):
    """Flips, brightness and contrast of uint8 images; gives floats in 0..255."""
    count, keys = len(images), jax.random.split(key, 4)
    images = images.astype(jnp.float32)
    factor = functools.partial(jax.random.uniform, shape=(count, 1, 1, 1), minval=0.8, maxval=1.2)
    for axis, own in ((1, keys[0]), (2, keys[1])):
        images = jnp.where(jax.random.bernoulli(own, 0.5, (count, 1, 1, 1)), jnp.flip(images, axis), images)
    images = images * factor(keys[2])
    mean = images.mean((1, 2, 3), keepdims=True)
    return jnp.clip((images - mean) * factor(keys[3]) + mean, 0, 255)


def _optimizer(setting):
    return optax.adamw(setting["learning_rate"], weight_decay=setting["weight_decay"])


def make_steps(model):
    """The jitted start (from a key and one image), training step and evaluation of a shape."""

    def start(key, image):
        variables = model.init(key, image, 0.0, train=False)
        return variables, _optimizer({"learning_rate": 0.0, "weight_decay": 0.0}).init(variables["params"])

    def train(variables, opt_state, setting, images, labels, key, step):
        augmenting, dropping = jax.random.split(jax.random.fold_in(key, step))
        images = _normalise(_augment(augmenting, images))

        def loss_of(params):
            logits, updated = model.apply(
                {"params": params, "batch_stats": variables["batch_stats"]},
                images,
                setting["dropout"],
                train=True,
                rngs={"dropout": dropping},
                mutable=["batch_stats"],
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated["batch_stats"]

        (loss, stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
        updates, opt_state = _optimizer(setting).update(gradients, opt_state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), "batch_stats": stats}, opt_state, loss

    def evaluate(variables, images, labels):
        logits = model.apply(variables, _normalise(images), 0.0, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.sum(), (logits.argmax(-1) == labels).sum()

    return jax.jit(start), jax.jit(train, donate_argnums=(0, 1)), jax.jit(evaluate)


def score(evaluate, variables, images, labels, size=256):
    """Mean loss and accuracy."""
    parts = [evaluate(variables, images[i : i + size], labels[i : i + size]) for i in range(0, len(labels), size)]
    loss, right = np.sum(jax.device_get(parts), 0)
    return float(loss / len(labels)), float(right / len(labels))


def batches(labels, size, seed):
    """Indices of the training examples, epoch after epoch."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(len(labels))
        yield from order[: len(order) // size * size].reshape(-1, size)


def say(**values) -> None:
    """Prints a line for `search_speed`."""
    print(json.dumps(values), flush=True)


def train_one(functions, setting, data, arguments) -> None:
    """One trial: `arguments.evaluations` stretches of training with a validation after each, then the test."""
    start, train, evaluate = functions
    key = jax.random.key(0)
    variables, opt_state = start(key, np.zeros((1, *data["train"].shape[1:]), np.float32))
    indices, best = batches(data["train_labels"], arguments.batch_size, 0), (np.inf, 0.0, None)
    every = arguments.steps // arguments.evaluations
    for part in range(arguments.evaluations):
        say(event="begin", part=part)
        for step in range(part * every, (part + 1) * every):
            chosen = next(indices)
            batch = data["train"][chosen], data["train_labels"][chosen]
            variables, opt_state, loss = train(variables, opt_state, setting, *batch, key, step)
        say(event="end", part=part, steps=every, loss=float(loss))
        own = score(evaluate, variables, data["validation"], data["validation_labels"])
        if own[0] < best[0]:
            best = (*own, jax.tree.map(jnp.copy, variables))
    _, accuracy = score(evaluate, best[2], data["test"], data["test_labels"])
    say(event="trial", validation=best[1], test=accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--filters", required=True)
    parser.add_argument("--grid", required=True, help="JSON: kernels, units, learning_rate, weight_decay, dropout")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--evaluations", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--reshape", action="store_true")
    arguments = parser.parse_args()
    grid = json.loads(arguments.grid)
    filters = tuple(map(int, arguments.filters.split(",")))
    with np.load(arguments.data) as file:
        data = dict(file)
    names = ("learning_rate", "weight_decay", "dropout")
    for kernel, units in itertools.product(grid["kernels"], grid["units"]):
        model = SmallCNN(filters, kernel, units, int(data["train_labels"].max()) + 1, arguments.reshape)
        functions = make_steps(model)
        for values in itertools.product(*(grid[name] for name in names)):
            train_one(functions, dict(zip(names, map(np.float32, values), strict=True)), data, arguments)


if __name__ == "__main__":
    main()
