"""What do PyTorch and Keras themselves write?

`python -m tests.research.models.pretrained.peers` writes the small files in `files/` anew, with whichever of the two
libraries the environment holds, and the numbers that they should be read as.
"""

import importlib.util
import os
import pathlib

import numpy as np

DATA = pathlib.Path(__file__).with_name("files")


def torch_files() -> None:
    import torch

    torch.manual_seed(1)
    base = torch.randn(7, 9)
    state = {
        "conv.weight": torch.randn(5, 3, 3, 2).contiguous(memory_format=torch.channels_last),
        "bn.weight": torch.randn(5).half(),
        "bn.running_mean": torch.randn(5).bfloat16(),
        "bn.running_var": torch.rand(5).double(),
        "bn.num_batches_tracked": torch.tensor(3),
        "base": base,
        "view": base[2:5, 1::2],
        "transposed": base.T,
        "fc.weight": torch.nn.Parameter(torch.randn(2, 5)),
    }
    torch.save(state, DATA / "small.pth")
    torch.save(state, DATA / "small_protocol_4.pth", pickle_protocol=4)
    wrapped = {"epoch": 3, "best": 0.5, "state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save(wrapped, DATA / "small_old.pth", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 3), DATA / "whole_module.pth")
    numbers = {name: value.detach().float().numpy() for name, value in state.items() if value.is_floating_point()}
    np.savez(DATA / "small_torch.npz", **numbers)


def keras_files() -> None:
    import keras

    keras.utils.set_random_seed(1)
    keras.layers.Conv2D(1, 1), keras.layers.Conv2D(1, 1)  # so that the session's numbers start later
    inner = keras.Sequential(
        [keras.Input((None, None, 4)), keras.layers.Conv2D(3, 1), keras.layers.BatchNormalization(scale=False)],
        name="inner",
    )
    image = keras.Input((8, 8, 3))
    values = keras.layers.Normalization(axis=-1)(keras.layers.Rescaling(1 / 255)(image))
    values = keras.layers.Conv2D(4, 3, use_bias=False)(values)
    values = keras.layers.SeparableConv2D(4, 3, name="separable")(values)
    values = keras.layers.DepthwiseConv2D(3)(values)
    values = inner(keras.layers.BatchNormalization(name="norm")(values))
    values = keras.layers.Dropout(0.5)(keras.layers.GlobalAveragePooling2D()(values))
    values = keras.layers.Dense(3, dtype="bfloat16", name="half")(values)
    model = keras.Model(image, keras.layers.Dense(2, name="predictions")(values))
    rng = np.random.default_rng(1)
    numbers = {}
    layers = [layer for layer in model.layers if layer is not inner] + inner.layers
    for layer in layers:
        weights = [variable for variable in layer.weights if "seed" not in variable.path]
        for index, variable in enumerate(weights):
            if "float" in variable.dtype:
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
                numbers[f"{layer.name}/{index}"] = np.asarray(variable.value, np.float32)
    model.save_weights(DATA / "small.weights.h5")
    model.save(DATA / "small.keras")
    model.save(DATA / "small.h5")
    np.savez(DATA / "small_keras.npz", **numbers)


def main() -> None:
    DATA.mkdir(exist_ok=True)
    if importlib.util.find_spec("torch"):
        torch_files()
    os.environ.setdefault("KERAS_BACKEND", "jax")
    if importlib.util.find_spec("keras"):
        keras_files()


if __name__ == "__main__":
    main()
