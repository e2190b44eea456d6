"""The 32 trials of `search_speed` one after another in Keras on JAX. Prints lines of JSON that `search_speed` reads.

    KERAS_PYTHON search_speed_keras.py --data=DATA.npz --filters=8,16 --steps=400

As one would write it by hand: a `Sequential` model with the preprocessing layers of Keras in front, `compile`, `fit`.
A dropout rate and a weight decay are constants of a Keras program, so that every trial compiles its own.
"""

import argparse
import itertools
import json
import os

os.environ["KERAS_BACKEND"] = "jax"
import keras  # noqa: E402
import numpy as np  # noqa: E402


def build(filters, kernel, units, dropout, size, classes):
    """The network of the other parties."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((size, size, 3)),
            layers.RandomFlip("horizontal_and_vertical"),
            layers.RandomBrightness(0.2),
            layers.RandomContrast(0.2, value_range=(0, 255)),
            layers.Rescaling(1 / 127.5, -1.0),
            layers.Conv2D(filters[0], kernel, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(filters[1], kernel, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.BatchNormalization(momentum=0.9),
            layers.GlobalAveragePooling2D(),
            layers.Dense(units, activation="relu"),
            layers.BatchNormalization(momentum=0.9),
            layers.Dropout(dropout),
            layers.Dense(classes),
        ]
    )


def say(**values) -> None:
    """Prints a line for `search_speed`."""
    print(json.dumps(values), flush=True)


class Marks(keras.callbacks.Callback):
    """Says when a stretch of training begins and ends; the validation lies behind it."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        say(event="begin", part=epoch)

    def on_test_begin(self, logs=None):
        if self.epoch >= 0:
            say(event="end", part=self.epoch, steps=self.params["steps"])
            self.epoch = -1


def batches(images, labels, size):
    """Batches from memory, epoch after epoch."""
    generator = np.random.default_rng(0)
    while True:
        order = generator.permutation(len(labels))
        for chosen in order[: len(order) // size * size].reshape(-1, size):
            yield images[chosen], labels[chosen]


def train_one(shape, setting, data, arguments) -> None:
    """One trial."""
    keras.utils.set_random_seed(0)
    filters = tuple(map(int, arguments.filters.split(",")))
    size, classes = data["train"].shape[1], int(data["train_labels"].max()) + 1
    model = build(filters, *shape, setting["dropout"], size, classes)
    model.compile(
        keras.optimizers.AdamW(setting["learning_rate"], weight_decay=setting["weight_decay"]),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    best = keras.callbacks.EarlyStopping(patience=arguments.evaluations, restore_best_weights=True)
    history = model.fit(
        batches(data["train"], data["train_labels"], arguments.batch_size),
        steps_per_epoch=arguments.steps // arguments.evaluations,
        epochs=arguments.evaluations,
        validation_data=(data["validation"], data["validation_labels"]),
        validation_batch_size=256,
        shuffle=False,
        callbacks=[Marks(), best],
        verbose=0,
    ).history
    _, test = model.evaluate(data["test"], data["test_labels"], batch_size=256, verbose=0)
    say(event="trial", validation=history["val_accuracy"][int(np.argmin(history["val_loss"]))], test=test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--filters", required=True)
    parser.add_argument("--grid", required=True, help="JSON: kernels, units, learning_rate, weight_decay, dropout")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--evaluations", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=32)
    arguments = parser.parse_args()
    grid = json.loads(arguments.grid)
    with np.load(arguments.data) as file:
        data = dict(file)
    names = ("learning_rate", "weight_decay", "dropout")
    for shape in itertools.product(grid["kernels"], grid["units"]):
        for values in itertools.product(*(grid[name] for name in names)):
            train_one(shape, dict(zip(names, values, strict=True)), data, arguments)


if __name__ == "__main__":
    main()
