"""Do Keras's layers reach the right modules: automatic numbers, separable convolutions, EfficientNet's normalisation?

The parity campaign compares the logits of files that Keras wrote; here the files are made by hand.
"""

import h5py
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.models import registry
from research.models.pretrained import adapt, plan
from research.models.pretrained.names import flatten, owner_and_kind
from tests.research.models.pretrained import weights
from tests.research.models.reference import formula

ORDER = ("depthwise_kernel", "pointwise_kernel", "kernel", "scale", "bias", "mean", "var")


def layers_of(name: str, channels: int = 3, classes: int = 11) -> dict[str, list[np.ndarray]]:
    """Arrays by layer as Keras keeps them, from the formula; the layers' names are the registry's."""
    names = registry.find(name)[0].names["keras"](weights.call_order(name, "keras"))
    found: dict[str, list[tuple[int, np.ndarray]]] = {}
    for path, leaf in flatten(weights.shapes(name, "keras", classes=classes, channels=channels)).items():
        owner, kind = owner_and_kind(path)
        layer, _, part = names[owner].partition(":")
        values = formula(path, leaf.shape) + (1 if kind == "var" else 0)
        if kind == "kernel" and len(leaf.shape) == 4 and leaf.shape[2] == 1 and leaf.shape[3] > 1 and channels > 1:
            values = values.transpose(0, 1, 3, 2)
        found.setdefault(layer, []).append((ORDER.index(part or kind), values))
    return {
        layer: [values for _, values in sorted(arrays, key=lambda item: item[0])] for layer, arrays in found.items()
    }


def write(path, layers: dict[str, list[np.ndarray]]):
    with h5py.File(path, "w") as file:
        for number, (layer, arrays) in enumerate(layers.items()):
            group = file.create_group(f"layers/layer_{number}/vars")
            group.attrs["name"] = layer
            for index, values in enumerate(arrays):
                group[str(index)] = values
    return path


def load(path, name, channels=3, classes=11):
    pretrained = plan(name, "", str(path))
    variables = weights.shapes(name, "keras", classes=classes, channels=channels)
    loaded, report = pretrained.load(None, variables, weights.call_order(name, "keras"))
    return flatten(loaded), report


@pytest.fixture(scope="module")
def efficientnet():
    return layers_of("efficientnet_b0")


def test_separable_convolutions_and_a_session_that_began_later(tmp_path):
    layers = layers_of("xception")
    assert layers["block2_sepconv1"][0].shape == (3, 3, 64, 1) and layers["block2_sepconv1"][1].shape == (1, 1, 64, 128)
    automatic = {"conv2d": "conv2d_9", "conv2d_1": "conv2d_10", "conv2d_2": "conv2d_11", "conv2d_3": "conv2d_100"}
    automatic |= {"batch_normalization": "batch_normalization_4", "batch_normalization_1": "batch_normalization_12"}
    automatic |= {"batch_normalization_2": "batch_normalization_13", "batch_normalization_3": "batch_normalization_15"}
    assert set(automatic) < set(layers)
    renamed = {automatic.get(layer, layer): arrays for layer, arrays in layers.items()}
    variables, report = load(write(tmp_path / "x.weights.h5", dict(sorted(renamed.items()))), "xception")
    assert report["unused"] == report["missing"] == [] and report["replaced_head"] == ""
    for path, values in variables.items():
        expected = formula(path, values.shape) + (1 if path.endswith("/var") else 0)
        np.testing.assert_array_equal(values, expected)


def test_a_users_classifier_and_other_layers(tmp_path, efficientnet):
    layers = dict(efficientnet)
    layers["dense_7"] = layers.pop("predictions")
    layers["extra"] = [np.zeros((5, 6), np.float32)]
    variables, report = load(write(tmp_path / "x.weights.h5", layers), "efficientnet_b0")
    assert report["replaced_head"] == "" and report["unused"] == ["extra/0 (5, 6)"]
    np.testing.assert_array_equal(variables["params/head/logits/kernel"], layers["dense_7"][0])


def test_another_number_of_arrays_in_a_layer(tmp_path, efficientnet):
    layers = efficientnet | {"stem_bn": efficientnet["stem_bn"][1:]}
    with pytest.raises(UserError, match="stem_bn: expected 4 arrays, got 3"):
        load(write(tmp_path / "x.weights.h5", layers), "efficientnet_b0")


def test_vgg19_is_no_vgg16(tmp_path):
    layers = {f"block{block}_conv{index}": [] for block in range(1, 6) for index in range(1, 5)}
    names = registry.find("vgg16")[0].names["keras"](weights.call_order("vgg16", "keras"))
    assert set(names.values()) - set(layers) == {"fc1", "fc2", "predictions"}
    shapes = flatten(weights.shapes("vgg16", "keras"))
    for owner, layer in names.items():
        layers[layer] = [np.zeros(shapes[f"params/{owner}/{kind}"].shape, np.float32) for kind in ("kernel", "bias")]
    layers["fc1"] = [layers["fc1"][0].reshape(-1, 4096), layers["fc1"][1]]
    extra = {f"block{block}_conv4": [np.zeros((3, 3, 4, 4), np.float32)] for block in (3, 4, 5)}
    path = write(tmp_path / "x.h5", {**{k: v for k, v in layers.items() if v}, **extra})
    with pytest.raises(
        UserError, match=r"3 convolutions that vgg16 has not, the first is block3_conv4/0 \(3, 3, 4, 4\)"
    ):
        plan("vgg16", "", str(path)).load(None, weights.shapes("vgg16", "keras"), weights.call_order("vgg16", "keras"))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_official_normalization_is_squared(tmp_path, efficientnet, channels):
    """The official files keep deviations for variances; `weights="imagenet"` divides by their root once more."""
    deviations = np.array([0.229, 0.224, 0.225], np.float32)
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    layers = efficientnet | {"normalization_2": [mean, deviations, np.array(0, np.int64)]}
    del layers["normalization"]
    variables, report = load(write(tmp_path / "x.weights.h5", layers), "efficientnet_b0", channels)
    assert report["unused"] == []
    found = [np.asarray(variables[f"batch_stats/backbone/normalization/{kind}"]) for kind in ("mean", "var")]
    expected = [mean, deviations**2]
    if channels == 1:
        expected = [values.mean(keepdims=True) for values in expected]
    if channels == 4:
        expected = [values[[0, 1, 2, 0]] for values in expected]
    for actual, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-6)


def test_an_own_normalization_is_kept(tmp_path, efficientnet):
    layers = efficientnet | {"normalization": [np.ones(3), np.array([0.2, 0.3, 0.4]), np.array(0)]}
    variables, _ = load(write(tmp_path / "x.weights.h5", layers), "efficientnet_b0")
    np.testing.assert_allclose(variables["batch_stats/backbone/normalization/var"], [0.2, 0.3, 0.4], rtol=1e-6)


def test_layouts():
    """Kernels of every kind, and the inverse for export."""
    rng = np.random.default_rng(0)
    conv, dense = rng.normal(size=(3, 2, 4, 5)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    for ours in (conv, dense, conv[:, :, :1]):
        np.testing.assert_array_equal(adapt.arrange("torch", adapt.to_torch(ours, "kernel"), ours.shape), ours)
        assert adapt.to_torch(ours, "kernel").shape == adapt.stored_shape("torch", "kernel", ours.shape)
    flat = conv.transpose(3, 2, 0, 1).reshape(5, -1)  # PyTorch flattens channels first
    np.testing.assert_array_equal(adapt.arrange("torch", flat, conv.shape), conv)
    np.testing.assert_array_equal(adapt.arrange("keras", conv.reshape(-1, 5), conv.shape), conv)
    depthwise = conv[:, :, :1]
    np.testing.assert_array_equal(adapt.arrange("keras", depthwise.transpose(0, 1, 3, 2), depthwise.shape), depthwise)
    pointwise = dense[None, None]
    np.testing.assert_array_equal(adapt.arrange("keras", pointwise, dense.shape), dense)
    np.testing.assert_array_equal(adapt.arrange("torch", dense.T[:, :, None, None], dense.shape), dense)
