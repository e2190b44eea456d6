"""Does timm itself take what is exported, and compute the same with it?"""

import importlib.util

import jax
import numpy as np
import pytest

from research.models import registry
from research.models.call_order import call_order
from research.models.pretrained import export
from tests.research.models.reference import Case, import_torch, model_and_variables, relative_error

MODELS = (
    "resnet18",
    "vgg16_bn",
    "densenet121",
    "legacy_xception",
    "inception_v3",
    "inception_resnet_v2",
    "tf_efficientnet_b0",
)


@pytest.mark.parametrize("name", MODELS)
def test_timm_loads_what_is_exported(name):
    if importlib.util.find_spec("timm") is None:  # importing it here would be too early, see import_torch
        pytest.skip("needs timm")
    torch = import_torch()
    import timm

    case = Case("timm", name, 79)
    entry, _ = registry.find(name)
    model, variables = model_and_variables(case)
    arrays = export.torch_arrays(entry, case.variant, call_order(model)[0], variables)
    theirs = timm.create_model(name, num_classes=7).eval()
    result = theirs.load_state_dict({key: torch.tensor(value) for key, value in arrays.items()}, strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    images = np.random.default_rng(0).normal(size=(2, 79, 79, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    actual = jax.jit(lambda values, batch: model.apply(values, {"image": batch}, train=False).logits)(variables, images)
    error = relative_error(np.asarray(actual), expected)
    print(f"{name}: relative error {error:.1e}")
    assert error < 1e-4
