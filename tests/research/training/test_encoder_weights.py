"""Does the encoder of a U-Net get the weights of a classifier's file, and nothing else of the U-Net?"""

import dataclasses
import types

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from configs import lung_masks
from input_pipeline.cli import UserError
from research.models import registry
from research.models.call_order import call_order
from research.models.initialize import initialize
from research.models.pretrained import plan
from research.training import build, encoder_weights, start_weights
from tests.research.models.pretrained.weights import resnet18_state, write_safetensors

SIZE, CHANNELS = 64, 3


def settings(weights, **changes) -> ConfigDict:
    config = lung_masks.get_config()
    model = ConfigDict(config.model.to_dict())
    model.update(name="unet", weights=str(weights), variant="")
    model.options = ConfigDict({"encoder": "resnet18", "decoder": (8, 8, 8, 8, 8), **changes})
    return model


def unet():
    model = registry.create("unet", num_classes=1, encoder="resnet18", decoder=(8, 8, 8, 8, 8))
    return model, initialize(model, jax.random.key(1), SIZE, CHANNELS)


@pytest.fixture
def file(tmp_path):
    return write_safetensors(tmp_path / "resnet18.safetensors", resnet18_state())


def test_the_encoder_alone_is_filled(file):
    model, drawn = unet()
    start = start_weights.Starts().settle(settings(file), "trial")
    assert (start.model, start.part) == ("resnet18", "encoder")
    filled, report = start.load(model, drawn, call_order(model, SIZE, CHANNELS)[0], CHANNELS)
    classifier = registry.create("resnet18", num_classes=1000, variant=start.variant)
    fresh = initialize(classifier, jax.random.key(0), SIZE, CHANNELS)
    known, _ = plan("resnet18", "", str(file)).load(classifier, fresh)
    before, after = flatten_dict(dict(drawn), sep="/"), flatten_dict(dict(filled), sep="/")
    wanted = {k: v for k, v in flatten_dict(dict(known), sep="/").items() if "/backbone/" in f"/{k}"}
    assert before.keys() == after.keys() and report["part"] == "encoder" and not report["missing"]
    inside = {name for name in after if "/encoder/" in name}
    assert len(inside) == len(wanted)
    for name in after:
        want = wanted[name.replace("/encoder", "", 1)] if name in inside else before[name]
        np.testing.assert_array_equal(after[name], want, err_msg=name)
    image = {"image": np.random.default_rng(0).normal(size=(1, SIZE, SIZE, CHANNELS)).astype(np.float32)}
    maps = model.apply(filled, image, train=False).feature_maps
    np.testing.assert_allclose(
        maps["layer4"], classifier.apply(known, image, train=False).feature_maps["layer4"], rtol=1e-5, atol=1e-5
    )


def test_a_continued_run_needs_its_record_only(file):
    first = start_weights.Starts().settle(settings(file), "trial")
    record = {"trial": first.record() | {"report": {}}}
    again = start_weights.Starts(record).settle(settings(file), "trial")
    assert again == first
    file.unlink()
    assert start_weights.Starts(record).settle(settings(file), "trial") == first


def test_files_of_the_whole_network_are_for_the_whole(tmp_path):
    model, drawn = unet()
    arrays = {name: np.asarray(value) for name, value in flatten_dict(dict(drawn), sep="/").items()}
    own = write_safetensors(tmp_path / "unet.safetensors", arrays, {"format": "own", "model": "unet"})
    start = start_weights.Starts().settle(settings(own), "trial")
    assert (start.model, start.part) == ("unet", "")


def test_weights_of_another_family_are_refused(file):
    model, drawn = unet()
    wrong = registry.create("unet", num_classes=1, encoder="vgg16", decoder=(8, 8, 8, 8, 8))
    with pytest.raises(UserError):
        start = start_weights.Starts().settle(settings(file, encoder="vgg16"), "trial")
        start.load(wrong, initialize(wrong, jax.random.key(0), SIZE, CHANNELS), (), CHANNELS)


def test_the_files_variant_is_that_of_the_encoder(file):
    config = lung_masks.get_config()
    start = dataclasses.replace(start_weights.Starts().settle(settings(file), "trial"), variant="tf")
    trial = types.SimpleNamespace(config=config, start=start, num_classes=1, text=None)
    assert config.model.options.get("encoder", "efficientnet_b0") == "efficientnet_b0"
    wanted = registry.backbone("efficientnet_b0", variant="tf")
    assert build.build_model(trial).backbone.encoder == wanted != registry.backbone("efficientnet_b0")
    assert encoder_weights.part(ConfigDict({"name": "resnet18", "options": {}})) == ("", "")
