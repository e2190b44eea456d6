"""How fast is a training step of a `keras.applications` model on JAX? Prints one line of JSON.

    KERAS_PYTHON keras_step.py --model=resnet50 --image_size=128 --batch_size=16 --steps=10 [--out=DIR]

Keras's own compiled training step (`model.train_on_batch`): SGD with momentum 0.9, BatchNorm updating,
cross-entropy. `--out` saves the first weights (`weights.weights.h5`) and the batch (`input.npy`, NHWC; its labels are
0, 1, ... modulo the classes).
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import time

os.environ["KERAS_BACKEND"] = "jax"
import keras  # noqa: E402
import numpy as np  # noqa: E402

NAMES = {
    "resnet50": "ResNet50",
    "efficientnet_b0": "EfficientNetB0",
    "efficientnet_b4": "EfficientNetB4",
    "inception_resnet_v2": "InceptionResNetV2",
    "inception_v3": "InceptionV3",
    "xception": "Xception",
    "densenet121": "DenseNet121",
    "densenet169": "DenseNet169",
    "vgg16": "VGG16",
}


def without_dropout(layer):
    """Dropout layers at rate 0, so that the losses can be compared."""
    if isinstance(layer, keras.layers.Dropout):
        layer.rate = 0.0
    return layer


def main() -> None:
    """Prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--learning_rate", type=float, default=0.01)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    size = arguments.image_size
    model = getattr(keras.applications, NAMES[arguments.model])(
        weights=None, input_shape=(size, size, 3), classes=arguments.classes, classifier_activation=None
    )
    for layer in model.layers:
        without_dropout(layer)
    images = np.random.default_rng(0).standard_normal((arguments.batch_size, size, size, 3), np.float32)
    if arguments.model.startswith("efficientnet"):  # it takes 0..255 and normalises by itself
        images = (127.5 + 60.0 * images).astype(np.float32)
    labels = np.arange(arguments.batch_size) % arguments.classes
    if arguments.out:
        folder = pathlib.Path(arguments.out)
        folder.mkdir(parents=True, exist_ok=True)
        model.save_weights(folder / "weights.weights.h5")
        np.save(folder / "input.npy", images)
    model.compile(
        keras.optimizers.SGD(arguments.learning_rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    seconds, processor, losses = [], [], []
    for _ in range(arguments.steps):
        wall, work = time.perf_counter(), time.process_time()
        # The mean over the steps so far; without a reset it is not this step's loss.
        model.reset_metrics()
        losses.append(float(model.train_on_batch(images, labels)))
        seconds.append(time.perf_counter() - wall)
        processor.append(time.process_time() - work)
    print(
        json.dumps(
            {
                "model": arguments.model,
                "images_per_second": arguments.batch_size / statistics.median(seconds[2:] or seconds),
                "processor_seconds": statistics.median(processor[2:] or processor),
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "losses": losses[:5],
                "version": f"keras {keras.__version__} on jax",
            }
        )
    )


if __name__ == "__main__":
    main()
