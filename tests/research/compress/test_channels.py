"""Channel pruning is exact: what is dead goes without a trace, and an ordinary model is left."""

import jax
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.compress import channels
from research.models import registry
from research.models.initialize import initialize
from research.training.state import flatten, nest

SIZE, CLASSES = 21, 3
TOLERANCE = 1e-6
MODELS = {
    "simple": {"name": "simple_cnn", "widths": (5, 7, 6)},
    "simple, head": {"name": "simple_cnn", "widths": (5, 7), "head": (16, 14), "head_batch_norm": True},
    "simple, flat": {"name": "simple_cnn", "widths": (5, 7), "head_pool": "flatten", "head_batch_norm": True},
    "simple, max": {"name": "simple_cnn", "widths": (4, 6), "head_pool": "max"},
    "cnn2": {"name": "cnn2", "widths": (4, 6)},
    "cnn2, flat": {"name": "cnn2", "widths": (4, 6), "head_pool": "flatten", "head": (15,)},
    "grid": {"name": "grid_cnn", "filters": (4, 6), "kernels": 3, "dense": (17, 15)},
    "grid, every": {"name": "grid_cnn", "filters": (4, 6), "kernels": (3, 3, 9), "dense": (), "batch_norm": "every",
                    "padding": "same", "activation": "swish"},
    "grid, none": {"name": "grid_cnn", "filters": (4, 6), "kernels": 3, "dense": (11,), "batch_norm": "none",
                   "pooling": "average", "head": (16,)},
    "grid, max": {"name": "grid_cnn", "filters": (4, 6), "kernels": 3, "dense": (17, 15), "head_pool": "max"},
}  # fmt: skip


def build(options, **changes):
    options = {**options, **changes}
    return registry.create(options.pop("name"), num_classes=CLASSES, **options)


def draw(model):
    """Variables in which nothing is zero or one: biases, scales and running statistics too."""
    random = np.random.default_rng(0)
    variables = initialize(model, jax.random.key(0), SIZE, 3)
    flat = {kind: {p: np.array(v) for p, v in flatten(variables[kind]).items()} for kind in ("params", "batch_stats")}
    for own in flat.values():
        for path, value in own.items():
            if not path.endswith("kernel"):
                own[path] = random.uniform(0.5, 1.5, value.shape).astype(np.float32)
                own[path] *= 1.0 if path.endswith("var") else random.choice((-1, 1), value.shape)
    return flat


def images(count=4):
    """Images that differ in contrast and colour, so that their logits differ."""
    random = np.random.default_rng(1)
    values = random.normal(size=(count, SIZE, SIZE, 3)) * np.linspace(0.5, 2, count)[:, None, None, None]
    return (values + random.normal(size=(count, 1, 1, 3))).astype(np.float32)


def logits(model, variables):
    """float32 [4, K] of `images()`."""
    apply = jax.jit(lambda v, x: model.apply(v, {"image": x}, train=False).logits)
    return np.asarray(apply({kind: nest(flat) for kind, flat in variables.items()}, images()))


def dead_channels(chain, variables, random):
    """Some channels of each layer; layers that share a width lose equally many."""
    dead = {}
    for unit in chain:
        count = variables["params"][f"{unit.layer}/kernel"].shape[-1]
        dead[unit.layer] = random.choice(count, 2, replace=False)
    return dead


def alive(chain, variables, dead):
    sizes = {unit.layer: variables["params"][f"{unit.layer}/kernel"].shape[-1] for unit in chain}
    return {layer: np.setdiff1d(np.arange(size), dead[layer]) for layer, size in sizes.items()}


def rebuilt(options, changes):
    """The model that a config with these overrides builds."""
    return build(options, **{key.rpartition(".")[2]: value for key, value in changes.items()})


def check_same(options, chain, variables, dead):
    model = build(options)
    kept = alive(chain, variables, dead)
    smaller = channels.without(variables, chain, kept)
    changes = channels.overrides(chain, kept)
    new = rebuilt(options, changes)
    shapes = flatten(jax.eval_shape(lambda: initialize(new, jax.random.key(0), SIZE, 3)))
    mine = {f"{kind}/{path}": value.shape for kind, flat in smaller.items() for path, value in flat.items()}
    assert mine == {path: value.shape for path, value in shapes.items()}
    before, after = logits(model, variables), logits(new, smaller)
    assert np.abs(before - after).max() <= TOLERANCE * max(1, np.abs(before).max())
    assert np.abs(before - before.mean(0)).max() > 1e-3  # the images do make a difference


@pytest.mark.parametrize("name", MODELS)
def test_channels_that_nobody_reads_leave_the_logits(name):
    options = MODELS[name]
    model = build(options)
    variables, chain = draw(model), channels.units(model)
    dead = dead_channels(chain, variables, np.random.default_rng(2))
    for unit in chain:
        size = variables["params"][f"{unit.layer}/kernel"].shape[-1]
        for reader in unit.readers:
            kernel = variables["params"][f"{reader}/kernel"]
            kernel.reshape(*kernel.shape[:-2], -1, size, kernel.shape[-1])[..., dead[unit.layer], :] = 0
    check_same(options, chain, variables, dead)


@pytest.mark.parametrize("name", ["simple", "cnn2, flat", "grid, none"])
def test_channels_that_are_zero_leave_the_logits(name):
    """No BatchNorm stands between the zero and its readers here."""
    options = MODELS[name]
    model = build(options)
    variables, chain = draw(model), channels.units(model)
    dead = dead_channels(chain, variables, np.random.default_rng(3))
    params = variables["params"]
    for unit in chain:
        for path in [f"{norm}/{name}" for norm in unit.norms for name in ("scale", "bias")] or [
            f"{unit.layer}/kernel", f"{unit.layer}/bias"
        ]:  # fmt: skip
            params[path][..., dead[unit.layer]] = 0
    check_same(options, chain, variables, dead)


@pytest.mark.parametrize("name", ["simple, flat", "cnn2", "grid, none", "grid, max"])
def test_a_share_is_kept_in_every_layer(name):
    options = MODELS[name]
    model = build(options)
    variables = draw(model)
    smaller, changes = channels.prune(model, variables, 0.5)
    for key, widths in changes.items():
        option = key.rpartition(".")[2]
        assert widths == tuple(max(1, round(0.5 * width)) for width in options[option])
    assert logits(rebuilt(options, changes), smaller).shape == (4, CLASSES)
    same, unchanged = channels.prune(model, variables, 1.0)
    assert all(tuple(options[key.rpartition(".")[2]]) == widths for key, widths in unchanged.items())
    np.testing.assert_array_equal(logits(model, variables), logits(model, same))


def test_scores_by_hand():
    model = build(MODELS["simple, flat"])
    variables = draw(model)
    params = variables["params"]
    first, last = channels.units(model)
    kernel, reader = params["backbone/block_2_1/conv/kernel"], params["head/logits/kernel"]
    scale = params["backbone/block_2_1/norm/scale"]
    for channel in range(7):
        size = sum(abs(float(v)) for v in kernel[..., channel].ravel())
        read = sum(abs(float(v)) for row in range(channel, len(reader), 7) for v in reader[row])
        assert channels.scores(variables, last, "l1")[channel] == pytest.approx(size)
        assert channels.scores(variables, last, "scale")[channel] == pytest.approx(abs(scale[channel]))
        assert channels.scores(variables, last)[channel] == pytest.approx(abs(scale[channel]) * read)
    kept = channels.choose(variables, (first, last), 0.4, "scale")[last.layer]
    assert set(kept) == set(np.argsort(-np.abs(scale))[:3]) and list(kept) == sorted(kept)


def test_a_layer_without_norm_falls_back_to_l1():
    model = build(MODELS["grid"])
    variables, unit = draw(model), channels.units(model)[0]
    np.testing.assert_array_equal(channels.scores(variables, unit, "scale"), channels.scores(variables, unit, "l1"))


def test_mistakes_are_refused():
    model = build(MODELS["simple"])
    variables = draw(model)
    for keep in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(UserError, match="share"):
            channels.prune(model, variables, keep)
    with pytest.raises(UserError, match="contribution, scale, l1"):
        channels.prune(model, variables, 0.5, "size")
    with pytest.raises(UserError, match="magnitude"):
        channels.units(registry.create("resnet18", num_classes=3))
    chain = channels.units(build(MODELS["cnn2"]))
    kept = {unit.layer: np.arange(2 + index) for index, unit in enumerate(chain)}
    with pytest.raises(ValueError, match="equally many"):
        channels.overrides(chain, kept)
