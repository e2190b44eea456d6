"""Do the networks compute what Keras and timm compute?

The golden logits come from the reference libraries (see reference.py). Where Keras or timm is installed, the
comparison is made afresh at other sizes and with 1,000 classes.
"""

import importlib.util
import json

import jax
import numpy as np
import pytest

from research.models.initialize import count_parameters
from tests.research.models import reference

TOLERANCE = 1e-4


def logits(model, variables, size):
    outputs = jax.jit(lambda values, images: model.apply(values, {"image": images}, train=False).logits)
    return np.asarray(outputs(variables, reference.images(size)))


@pytest.mark.parametrize("name", sorted(reference.REFERENCES))
def test_golden_logits(name):
    golden = json.loads(reference.GOLDEN.read_text())[name]
    assert golden["library"] == reference.REFERENCES[name][0]
    model, variables = reference.model_and_variables(name)
    actual = logits(model, variables, golden["image_size"])
    assert reference.relative_error(actual, np.array(golden["logits"])) < TOLERANCE


@pytest.mark.parametrize("size", [171, 139, 96])
def test_inception_resnet_v2_equals_keras(size, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    pytest.importorskip("keras")
    model, variables = reference.model_and_variables("inception_resnet_v2", classes=1000)
    keras_model, parameters = reference.keras_model("inception_resnet_v2", size, model, variables)
    assert count_parameters(variables) == parameters == 55_873_736
    expected = np.asarray(keras_model(reference.images(size), training=False))
    error = reference.relative_error(logits(model, variables, size), expected)
    print(f"inception_resnet_v2 {size} px: relative error {error:.1e}")
    assert error < TOLERANCE


@pytest.mark.parametrize("size", [171, 128])
def test_resnet18_equals_timm(size):
    if importlib.util.find_spec("timm") is None:  # importing it here would be too early, see import_timm
        pytest.skip("needs timm")
    model, variables = reference.model_and_variables("resnet18", classes=1000)
    error = reference.relative_error(
        logits(model, variables, size), reference.reference_logits("resnet18", size, model, variables)
    )
    print(f"resnet18 {size} px: relative error {error:.1e}")
    assert error < TOLERANCE
