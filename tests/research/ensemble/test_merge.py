"""Do merged members keep what they learnt, rest, and stand in the file under the model's names?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from input_pipeline.cli import UserError
from research.ensemble import merge
from research.models import registry
from research.models.initialize import initialize
from research.models.pretrained import plan, safetensors_files

OPTIONS = {"widths": (4, 6)}
IMAGES = {"image": jax.random.normal(jax.random.key(1), (3, 13, 10, 1))}


def member(seed):
    model = registry.create("simple_cnn", num_classes=3, **OPTIONS)
    return model, initialize(model, jax.random.key(seed), 13, 1)


def flat(variables):
    return {kind: flatten_dict(tree, sep="/") for kind, tree in variables.items()}


@pytest.fixture
def merged(tmp_path):
    """A merged model, filled from a file of two members."""
    arrays = merge.merged_arrays([flat(member(seed)[1]) for seed in (0, 1)])
    assert not any("head" in name for name in arrays)
    header = {"format": "pt", "names": "own", "model": "merged", "variant": ""}
    safetensors_files.write(tmp_path / "two.safetensors", arrays, header | {"preprocessing": '{"kind": "raw"}'})
    model = registry.create("merged", num_classes=3, of="simple_cnn", members=2, options=OPTIONS, width=5)
    drawn = initialize(model, jax.random.key(7), 13, 1)
    loaded, report = plan("merged", "", str(tmp_path / "two.safetensors")).load(model, drawn)
    assert any("merge/kernel" in name for name in report["missing"]) and not report["unused"]
    known = {key: value for key, value in flatten_dict(loaded).items()}
    return model, unflatten_dict(flatten_dict(drawn) | known)


def test_maps_are_those_of_the_members(merged):
    model, variables = merged
    output = model.apply(variables, IMAGES, train=False)
    for number, seed in enumerate((0, 1)):
        own, trained = member(seed)
        expected = own.apply(trained, IMAGES, train=False).feature_maps["block_2"]
        np.testing.assert_allclose(output.feature_maps[f"member{number}"], expected, rtol=1e-5, atol=1e-6)
    assert output.feature_maps["merge"].shape == (3, 6, 5, 5) and output.features.shape == (3, 5)


def test_members_rest_in_training(merged):
    model, variables = merged

    def loss(params):
        rngs = {"dropout": jax.random.key(0)}
        output, updates = model.apply(
            {**variables, "params": params}, IMAGES, train=True, mutable=["batch_stats"], rngs=rngs
        )
        return jnp.sum(output.logits**2), (output.logits, updates)

    gradients, (logits, updates) = jax.grad(loss, has_aux=True)(variables["params"])
    for path, gradient in flatten_dict(gradients, sep="/").items():
        assert bool((gradient == 0).all()) == path.startswith("backbone/members_"), path
    np.testing.assert_allclose(logits, model.apply(variables, IMAGES, train=False).logits, rtol=1e-6)
    kept = flatten_dict(updates.get("batch_stats", {}), sep="/")
    before = flatten_dict(variables["batch_stats"], sep="/")
    assert all(np.array_equal(value, before[path]) for path, value in kept.items())


def test_wrong_options_are_refused():
    with pytest.raises(UserError, match="at least one member"):
        registry.create("merged", num_classes=3, members=0)
    model = registry.create("merged", num_classes=3, layer="top", options=OPTIONS)
    with pytest.raises(UserError, match=r"no map 'top'; set model.options.layer to block_1, block_2"):
        initialize(model, jax.random.key(0), 13, 1)
    for flags in (["--members=0"], ["--metric=luck"]):
        with pytest.raises(UserError, match="is impossible|is unknown"):
            merge.parse(["--workdir=x", "--out=y", *flags])
