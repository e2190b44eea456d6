"""Do the networks compute what Keras, timm and torchvision compute?

The golden logits come from the reference libraries (see reference.py). Where one of them is installed, the comparison
is made afresh at other sizes and with 1,000 classes. `parity.py` compares every model through the library's own files.
"""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest

from research.models import registry
from research.models.initialize import count_parameters
from tests.research.models import reference

TOLERANCE = 1e-4
GOLDEN = json.loads(reference.GOLDEN.read_text())


def logits(case, model, variables):
    def apply(values, images):
        return model.apply(values, {"image": images}, train=False).logits

    # Compiling dominates here, and the least optimisation halves it.
    lowered = jax.jit(apply).lower(variables, reference.images(case))
    return np.asarray(lowered.compile({"xla_backend_optimization_level": 0})(variables, reference.images(case)))


def test_every_family_and_library_has_golden_logits():
    assert set(GOLDEN) == {case.key for case in reference.CASES}
    # Libraries whose names are made by one function have one graph; grid_cnn is a study's own network.
    models = [registry.find(name)[0] for name in registry.available() if name != "grid_cnn"]
    mappings = {mapping for model in models for mapping in model.names.values()}
    assert mappings == {registry.find(case.name)[0].names[case.library] for case in reference.CASES}


@pytest.mark.parametrize("case", reference.CASES, ids=lambda case: case.key)
def test_golden_logits(case):
    model, variables = reference.model_and_variables(case)
    assert reference.relative_error(logits(case, model, variables), np.array(GOLDEN[case.key])) < TOLERANCE


@pytest.mark.parametrize("case", reference.CASES, ids=lambda case: case.key)
def test_models_equal_their_reference_at_another_size(case):
    if importlib.util.find_spec(case.library) is None:
        pytest.skip(f"needs {case.library}")
    case = dataclasses.replace(case, size=case.size + 21)
    model, variables = reference.model_and_variables(case, classes=1000)
    error = reference.relative_error(logits(case, model, variables), reference.reference_logits(case, model, variables))
    print(f"{case.key}: relative error {error:.1e}, {count_parameters(variables):,} parameters and statistics")
    assert error < TOLERANCE
