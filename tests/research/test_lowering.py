"""Can the steps be compiled for TPU and CUDA, none of which is here? `jax.export` lowers them as a job there would.

All families: `pytest -m slow tests/research/test_lowering.py`, about four minutes on two cores.
"""

import jax
import pytest

from configs import hpa
from research import study
from research.training import program

# The least image of a model, where 32 pixels are too few; batch of 3, so that nothing divides.
QUICK = {"simple_cnn": 16, "resnet18": 32}
SLOW = {
    "cnn2": 48,
    "densenet121": 33,
    "efficientnet_b0": 33,
    "cnn1d": 33,
    "grid_cnn": 207,
    "inception_resnet_v2": 75,
    "inception_v3": 75,
    "merged": 33,
    "mlp": 16,
    "resnet50": 33,
    "vgg16_bn": 33,
    "xception": 75,
}
CASES = [*QUICK.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW.items())]


def trial_of(dataset, name: str, size: int, **changes):
    config = hpa.get_config("smoke").unlock()
    config.update_from_flattened_dict(
        {"epochs": 0.0, "steps": 2, "batch_size": 3, "image_size": size, "model.name": name, "model.dtype": "bfloat16",
         "data.augment.rotation": 30.0, "data.augment.mixup": 0.2, "model.head_dropout": 0.1} | changes
    )  # fmt: skip
    if name != "simple_cnn":
        config.model.options = {}
    return study.expand(config.lock(), dataset)[0]


@pytest.mark.parametrize("name, size", CASES)
def test_steps_lower_for_accelerators(simulated, name, size):
    trial = trial_of(simulated, name, size)
    for platform in ("tpu", "cuda"):
        train, evaluate = program.exported(trial, platform)
        assert train.platforms == evaluate.platforms == (platform,)
        (logits,) = evaluate.out_avals
        assert logits.shape == (3, trial.num_classes) and logits.dtype == "float32"
        # The state that comes out can go in again.
        count = len(train.out_avals)
        assert [(a.shape, a.dtype) for a in train.out_avals] == [(a.shape, a.dtype) for a in train.in_avals[:count]]
        text = train.mlir_module()
        assert "bf16" in text
        if name != "mlp":
            assert "stablehlo.convolution" in text  # not the forms that are fast on CPU


def test_float16_and_parts_of_a_batch_lower(simulated):
    changes = {"model.dtype": "float16", "optimizer.accumulate": 3}
    train, _ = program.exported(trial_of(simulated, "simple_cnn", 16, **changes), "cuda")
    text = train.mlir_module()
    assert "f16" in text and "stablehlo.while" in text  # a loop over the parts, which on CPU is unrolled


def test_evaluation_lowers_to_what_it_computes_here(simulated):
    """The program for this platform, exported in the same way, gives the evaluation's logits."""
    from research.models.initialize import initialize
    from research.training import build, state, steps

    trial = trial_of(simulated, "simple_cnn", 16, **{"model.dtype": "float32"})
    _, evaluate = program.exported(trial, "cpu")
    model = build.build_model(trial)
    drawn = initialize(model, jax.random.key(0), 16, 3)
    variables = {kind: state.flatten(tree) for kind, tree in drawn.items()}
    image = jax.random.randint(jax.random.key(1), (3, 16, 16, 3), 0, 255).astype("uint8")
    expected = steps.eval_step(model, build.build_normalize(trial), variables, image)
    assert abs(evaluate.call(variables, image) - expected).max() < 1e-6
