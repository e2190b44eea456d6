"""Do the arrays of a file reach the right variables, and is everything else said?"""

import jax
import ml_dtypes
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.models import registry
from research.models.pretrained import export, plan
from research.models.pretrained.names import flatten
from tests.research.models.pretrained import weights
from tests.research.models.pretrained.weights import resnet18_state, write_safetensors


@pytest.fixture(scope="module")
def state():
    return resnet18_state()


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    return write_safetensors(tmp_path_factory.mktemp("weights") / "resnet18.safetensors", state)


def load(path, name="resnet18", variables=None, variant="", **model):
    """Loads a file into a model's shapes, or into given variables."""
    pretrained = plan(name, variant, str(path))
    order = weights.call_order(name, pretrained.variant, head=model.get("head", ()))
    if variables is None:
        variables = weights.shapes(name, pretrained.variant, **model)
    loaded, report = pretrained.load(None, variables, order)
    return flatten(loaded), report


def test_every_array_in_its_place(file, state):
    variables, report = load(file)
    assert report["loaded"] == 102 and report["parameters"] == 11_689_512 + 9_600
    assert report["unused"] == report["missing"] == [] and report["replaced_head"] == report["adapted_stem"] == ""
    assert report["preprocessing"] == {"kind": "fixed", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    expected = {
        "params/backbone/conv1/kernel": state["conv1.weight"].transpose(2, 3, 1, 0),
        "params/backbone/layer2_0/conv1/kernel": state["layer2.0.conv1.weight"].transpose(2, 3, 1, 0),
        "params/backbone/layer3_0/downsample_norm/scale": state["layer3.0.downsample.1.weight"],
        "params/backbone/layer3_0/downsample_norm/bias": state["layer3.0.downsample.1.bias"],
        "batch_stats/backbone/layer4_1/norm2/mean": state["layer4.1.bn2.running_mean"],
        "batch_stats/backbone/layer4_1/norm2/var": state["layer4.1.bn2.running_var"],
        "params/head/logits/kernel": state["fc.weight"].T,
        "params/head/logits/bias": state["fc.bias"],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(variables[name], values)
    assert all(isinstance(value, jax.Array) and value.dtype == np.float32 for value in variables.values())


def test_loaded_variables_may_be_donated(file):
    """They are no views of the file, which lives on."""
    variables, _ = load(file)
    double = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)
    before = np.array(variables["params/head/logits/bias"])
    doubled = double(variables)
    np.testing.assert_array_equal(doubled["params/head/logits/bias"], 2 * before)
    again, _ = load(file)
    np.testing.assert_array_equal(again["params/head/logits/bias"], before)


@pytest.mark.parametrize("head", [(), (16,)])
def test_another_head_stays_fresh(file, head):
    classes = 7 if not head else 1000
    variables, report = load(file, classes=classes, head=head)
    fresh = [name for name in variables if name.startswith("params/head/")]
    assert sorted(report["missing"]) == sorted(fresh) and len(fresh) == 2 + 2 * len(head)
    assert all(isinstance(variables[name], jax.ShapeDtypeStruct) for name in fresh)
    assert report["loaded"] == 100 and report["unused"] == ["fc.weight (1000, 512)", "fc.bias (1000,)"]
    expected = "the head has layers that the file does not know" if head else "the file has 1000 classes, the model 7"
    assert report["replaced_head"] == expected


def test_a_file_without_classifier(tmp_path, state):
    arrays = {name: value for name, value in state.items() if not name.startswith("fc")}
    _, report = load(write_safetensors(tmp_path / "x", arrays))
    assert report["replaced_head"] == "the file has no classifier" and report["loaded"] == 100


def test_a_classifier_of_another_name(tmp_path, state):
    """timm's files from before 2021 have "last_linear"."""
    arrays = {name.replace("fc.", "last_linear."): value for name, value in state.items()}
    variables, report = load(write_safetensors(tmp_path / "x", arrays))
    assert report["replaced_head"] == "" and report["unused"] == []
    np.testing.assert_array_equal(variables["params/head/logits/bias"], state["fc.bias"])


def test_half_precision_files(tmp_path, state):
    arrays = {name: v.astype(ml_dtypes.bfloat16) if v.dtype == np.float32 else v for name, v in state.items()}
    variables, _ = load(write_safetensors(tmp_path / "x", arrays))
    np.testing.assert_array_equal(variables["params/head/logits/bias"], arrays["fc.bias"].astype(np.float32))


def test_a_grey_image_gives_what_its_three_equal_channels_gave(file):
    grey = np.random.default_rng(0).normal(size=(2, 37, 41, 1)).astype(np.float32)
    outputs = []
    for channels in (3, 1):
        variables, report = load(file, channels=channels)
        model = registry.create("resnet18", num_classes=1000)
        images = np.repeat(grey, channels, 3)
        nested = weights.abstract(model, channels)
        filled = jax.tree.unflatten(jax.tree.structure(nested), [variables[name] for name in sorted_names(nested)])
        outputs.append(
            np.asarray(jax.jit(lambda v, x, m=model: m.apply(v, {"image": x}, train=False).logits)(filled, images))
        )
    assert report["adapted_stem"].endswith("first convolution were summed for 1")
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-4 * np.abs(outputs[0]).max())


def sorted_names(nested):
    return ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(nested)]


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_other_channels_repeat_in_turn(file, state, channels):
    variables, report = load(file, channels=channels)
    kernel = np.asarray(variables["params/backbone/conv1/kernel"])
    original = state["conv1.weight"].transpose(2, 3, 1, 0)
    for channel in range(channels):
        np.testing.assert_allclose(kernel[:, :, channel], original[:, :, channel % 3] * 3 / channels, rtol=1e-6)
    assert f"scaled by 3/{channels}" in report["adapted_stem"] and report["loaded"] == 102


def test_a_file_for_grey_images_takes_colour(tmp_path):
    state = resnet18_state(channels=1)
    variables, _ = load(write_safetensors(tmp_path / "x", state))
    kernel = np.asarray(variables["params/backbone/conv1/kernel"])
    np.testing.assert_allclose(kernel[:, :, 2], state["conv1.weight"][:, 0].transpose(1, 2, 0) / 3, rtol=1e-6)


def test_other_shapes_are_listed(tmp_path, state):
    arrays = dict(state)
    for block in range(2):
        for conv in range(1, 3):
            arrays[f"layer1.{block}.conv{conv}.weight"] = np.zeros((64, 64, 1, 1), np.float32)
    del arrays["bn1.running_mean"], arrays["layer4.1.bn2.bias"]
    with pytest.raises(UserError) as error:
        load(write_safetensors(tmp_path / "x", arrays))
    message = str(error.value)
    assert "does not fit resnet18" in message and message.endswith("what the file belongs to.")
    assert "layer1.0.conv1.weight: expected (64, 64, 3, 3), got (64, 64, 1, 1)" in message
    assert "bn1.running_mean: expected (64,), missing" in message and "and 1 more" in message
    assert "\n" not in message


def test_another_models_file_is_refused(file, tmp_path, state):
    with pytest.raises(UserError, match=r"does not fit resnet34 .*layer1\.2\.conv1\.weight: expected .*, missing"):
        load(file, "resnet34")
    deeper = state | {"layer1.2.conv1.weight": np.zeros((64, 64, 3, 3), np.float32)}
    with pytest.raises(UserError, match=r"1 convolutions that resnet18 has not, the first is layer1\.2\.conv1\.weight"):
        load(write_safetensors(tmp_path / "x", deeper))
    with pytest.raises(UserError, match="Keras has no resnet18"):
        plan("resnet18", "", str(weights.DATA / "small.keras"))


def test_unused_arrays_are_named(tmp_path, state):
    arrays = state | {"projection.weight": np.zeros((3, 4), np.float32)}
    _, report = load(write_safetensors(tmp_path / "x", arrays))
    assert report["unused"] == ["projection.weight (3, 4)"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(tmp_path, state, value):
    arrays = state | {"layer3.1.bn2.bias": np.full(256, value, np.float32)}
    with pytest.raises(UserError, match=r"layer3\.1\.bn2\.bias \(256,\) holds NaN or infinity"):
        load(write_safetensors(tmp_path / "x", arrays))
    arrays = state | {"bn1.running_var": -np.ones(64, np.float32)}
    with pytest.raises(UserError, match=r"bn1\.running_var are negative"):
        load(write_safetensors(tmp_path / "x", arrays))


def test_which_variant_a_file_means(tmp_path, file):
    assert plan("resnet18", "", str(file)).variant == "timm"
    assert plan("resnet18", "torchvision", str(file)).variant == "torchvision"
    with pytest.raises(UserError, match="has no variant 'keras'"):
        plan("resnet18", "keras", str(file))
    arrays = {"conv_stem.weight": np.zeros((32, 3, 3, 3), np.float32)}
    plain, tensorflow = (
        write_safetensors(tmp_path / f"{name}.safetensors", arrays)
        for name in ("efficientnet_b0.ra_in1k", "tf_efficientnet_b0.ap_in1k")
    )
    assert plan("efficientnet_b0", "", str(plain)).variant == "timm"
    assert plan("tf_efficientnet_b0", "", str(plain)).variant == "tf"
    assert plan("efficientnet_b0", "", str(tensorflow)).variant == "tf"
    assert plan("efficientnet_b0", "timm", str(tensorflow)).variant == "timm"
    # timm's "AdvProp" weights want images in -1..1, unlike their neighbours.
    assert plan("efficientnet_b0", "", str(tensorflow)).preprocessing["mean"] == [0.5, 0.5, 0.5]
    assert plan("efficientnet_b0", "", str(plain)).preprocessing["mean"] == [0.485, 0.456, 0.406]
    assert plan("EfficientNetB0", "", str(weights.DATA / "small.h5")).variant == "keras"
    assert plan("EfficientNetB0", "", str(weights.DATA / "small.h5")).preprocessing == {"kind": "raw"}
    torchvision = {"features.0.0.weight": np.zeros((32, 3, 3, 3), np.float32)}
    path = write_safetensors(tmp_path / "weights.safetensors", torchvision)
    assert plan("efficientnet_b0", "", str(path)).variant == "torchvision"


@pytest.mark.parametrize(
    "text", ['{"kind": "fixed", "mean": [0.5], "std": [0]}', '{"kind": "fixed"}', '{"kind": "run"}', "[", '"x"', "{}"]
)
def test_impossible_preprocessing_in_metadata(tmp_path, text):
    path = write_safetensors(tmp_path / "x", {"fc.bias": np.zeros(3, np.float32)}, {"preprocessing": text})
    with pytest.raises(UserError, match="its metadata are damaged"):
        plan("resnet18", "", str(path))


def test_a_network_cut_short_takes_the_whole_ones_file(tmp_path):
    entry, _ = registry.find("efficientnet_b0")
    whole = registry.create("efficientnet_b0", num_classes=1000)
    shapes = weights.abstract(whole)
    filled = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes)
    arrays = export.torch_arrays(entry, "timm", weights.call_order("efficientnet_b0"), filled)
    path = write_safetensors(tmp_path / "whole.safetensors", arrays)
    cut = registry.create("efficientnet_b0", num_classes=3, stages=5, extra_conv=512)
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), weights.abstract(cut))
    order = weights.call_order("efficientnet_b0", stages=5, extra_conv=512)
    loaded, report = plan("efficientnet_b0", "", str(path)).load(None, fresh, order)
    loaded = flatten(loaded)
    assert (loaded["params/backbone/block5_2/project/conv/kernel"] == 0.5).all()
    assert (loaded["params/backbone/extra_conv/kernel"] == 0).all()
    assert loaded["params/backbone/extra_conv/kernel"].shape == (3, 3, 112, 512)
    assert any("extra_conv/kernel" in name for name in report["missing"])
    assert any("blocks.6" in name for name in report["unused"])
