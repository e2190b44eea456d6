"""What do the networks of `keras.applications` compute with random weights and statistics?

Runs in an environment of its own (`pip install keras jax h5py`) and imports nothing of this project:

    python keras_reference.py InceptionV3 --sizes=139,128 --formats=weights.h5,h5,keras --out=DIR

writes the weights, for every size `input_SIZE.npy` (float32 NHWC) and `logits_SIZE.npy`, with `--layers` also
`inner_SIZE.npz` (the outputs of these layers, `cotangent` `[K]` and `gradient`: of the sum of logits times `cotangent`
with respect to the input, and `gradient64`, the same in double precision), and `reference.json` with the numbers of
parameters.

Formats: `weights.h5` and `keras` are Keras 3's own, `h5` is the legacy whole model, `legacy.h5` the legacy file of
weights alone, which is how the ImageNet weights of `keras.applications` are published. The file is
`DIR/weights.FORMAT` (`DIR/weights.weights.h5`), or `DIR/weights_SIZE.FORMAT` if the shapes depend on the image (VGG).
"""

import argparse
import json
import os
import pathlib
from unittest import mock

os.environ["KERAS_BACKEND"] = "jax"
import h5py  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras.src.backend.common import dtypes  # noqa: E402


def build(name: str, size: int, classes: int):
    """The model as the first one of a fresh session (automatic names start at zero)."""
    keras.backend.clear_session()
    application = getattr(keras.applications, name)
    return application(weights=None, input_shape=(size, size, 3), classes=classes, classifier_activation=None)


def randomize(model, generator: np.random.Generator) -> None:
    """Gives every BatchNorm and input normalisation values that are not trivial."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            values = []
            for weight in layer.weights:
                if "moving_mean" in weight.name or "beta" in weight.name:
                    values.append(generator.normal(0, 0.2, weight.shape))
                elif "moving_var" in weight.name:
                    values.append(generator.uniform(0.5, 1.5, weight.shape))
                else:
                    values.append(generator.uniform(0.6, 1.4, weight.shape))
            layer.set_weights(values)
        elif isinstance(layer, keras.layers.Normalization):
            mean, variance, count = layer.get_weights()
            layer.set_weights(
                [generator.uniform(0.4, 0.6, mean.shape), generator.uniform(0.04, 0.09, variance.shape), count]
            )
            layer.finalize_state()


def calibrate(model, size: int, generator: np.random.Generator) -> None:
    """Random biases, and running statistics that are those of a batch but for random factors.

    With statistics drawn from nowhere activations vanish or explode in deep networks, and the logits show little of the
    first layers or of the biases; so they keep their scale. Offsets near 1 keep most units active: around 0 every
    layer multiplies a rounding error by 1.2 (Poole et al. 2016), and the logits of 100 layers are mostly noise.
    """
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in model.layers:
        for weight in layer.weights:
            if weight.name == "bias":
                weight.assign(generator.normal(0, 0.2, weight.shape))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.beta.assign_add(jnp.ones(norm.beta.shape))
    model(images(model.name, 4, size, generator), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        mean, variance = np.asarray(norm.moving_mean), np.maximum(np.asarray(norm.moving_variance), 1e-3)
        norm.moving_mean.assign(mean + 0.2 * np.sqrt(variance) * generator.normal(size=mean.shape))
        # The mean of 1 / factor is below 1: scales above 1 would multiply over dozens of layers.
        norm.moving_variance.assign(variance * generator.uniform(0.75, 1.75, variance.shape))


def images(name: str, batch: int, size: int, generator: np.random.Generator) -> np.ndarray:
    values = generator.normal(size=(batch, size, size, 3)).astype(np.float32)
    # EfficientNet takes 0..255 and normalises by itself.
    return np.clip(127 + 60 * values, 0, 255) if name.lower().startswith("efficientnet") else values


def save(model, formats: list[str], stem: str) -> None:
    for kind in formats:
        if kind == "legacy.h5":
            from keras.src.legacy.saving import legacy_h5_format

            with h5py.File(f"{stem}.{kind}", "w") as file:
                legacy_h5_format.save_weights_to_hdf5_group(file, model)
        elif kind == "weights.h5":
            model.save_weights(f"{stem}.{kind}")
        else:
            model.save(f"{stem}.{kind}")


def input_gradient(model, image, cotangent: np.ndarray) -> np.ndarray:
    return np.asarray(jax.grad(lambda pixels: jnp.sum(model(pixels, training=False) * cotangent))(jnp.asarray(image)))


def inner(model, image: np.ndarray, layers: list[str], generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Outputs of layers, and the gradient with respect to the input."""
    maps = keras.Model(model.input, [model.get_layer(layer).output for layer in layers])(image, training=False)
    cotangent = generator.normal(size=model.output.shape[-1]).astype(np.float32)
    kept = {layer: np.asarray(values) for layer, values in zip(layers, maps, strict=True)}
    return {**kept, "cotangent": cotangent, "gradient": input_gradient(model, image, cotangent)}


def double_gradient(name: str, weights: list[np.ndarray], image: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
    """The gradient with respect to the input in double precision."""
    floatx = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        # On JAX, Keras takes float64 for float32 in many operations, BatchNorm among them.
        with jax.enable_x64(True), mock.patch.dict(dtypes.BIT64_TO_BIT32_DTYPE, {"float64": "float64"}):
            model = build(name, image.shape[1], cotangent.shape[0])
            set_weights(model, weights)
            return input_gradient(model, image.astype(np.float64), cotangent.astype(np.float64))
    finally:
        keras.config.set_floatx(floatx)


def set_weights(model, weights: list[np.ndarray]) -> None:
    model.set_weights(weights)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def counts(model) -> dict[str, int]:
    """`count_params` without the input normalisation, whose three variables are constants of the preprocessing."""
    total = model.count_params()
    normalisation = sum(layer.count_params() for layer in model.layers if isinstance(layer, keras.layers.Normalization))
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    return {
        "parameters": trainable,
        "statistics": total - trainable - normalisation,
        "input_normalisation": normalisation,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--sizes", default="139,128")
    parser.add_argument("--formats", default="weights.h5")
    parser.add_argument("--layers", default="")
    parser.add_argument("--calibrate", action="store_true", help="statistics near those of a batch; random biases")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    generator = np.random.default_rng(args.seed)
    folder = pathlib.Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    formats, weights, largest, counted = args.formats.split(","), None, {}, {}
    for size in map(int, args.sizes.split(",")):
        model = build(args.name, size, args.classes)
        by_size = args.name.startswith("VGG")
        if weights is None or by_size:
            randomize(model, generator)
            if args.calibrate:
                calibrate(model, size, generator)
            weights = model.get_weights()
            save(model, formats, str(folder / (f"weights_{size}" if by_size else "weights")))
        else:
            set_weights(model, weights)
        image = images(args.name, args.batch, size, generator)
        logits = np.asarray(model(image, training=False))
        np.save(folder / f"input_{size}.npy", image)
        np.save(folder / f"logits_{size}.npy", logits)
        largest[size], counted[size] = float(np.abs(logits).max()), counts(model)
        if args.layers:
            kept = inner(model, image, args.layers.split(","), generator)
            kept["gradient64"] = double_gradient(args.name, weights, image, kept["cotangent"])
            np.savez(folder / f"inner_{size}.npz", **kept)
    known = {"library": "keras", "name": args.name, "by_size": counted, "largest_logit": largest}
    (folder / "reference.json").write_text(json.dumps(known))
    print(known)


if __name__ == "__main__":
    main()
