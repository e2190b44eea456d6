"""Do the inceptions carry their libraries' names and sizes, and are the scratch networks what the studies built?"""

import csv
import functools
import hashlib
import importlib
import itertools
import pathlib

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import cli
from research.models import registry
from research.models.initialize import count_parameters, initialize
from research.models.pooling import average_pool

# (parameters, parameters and running statistics) with 1,000 classes and three channels. PyTorch counts the former,
# Keras the latter.
COUNTS = {
    ("inception_v3", "timm"): (23_834_568, 23_869_000),
    ("inception_v3", "torchvision"): (23_834_568, 23_869_000),
    ("inception_v3", "keras"): (23_817_352, 23_851_784),
    ("inception_resnet_v2", "keras"): (55_813_192, 55_873_736),
    ("inception_resnet_v2", "timm"): (55_843_464, 55_904_008),
    ("simple_cnn", ""): (645_896, 646_856),
    ("cnn2", ""): (5_200_296, 5_204_136),
    ("grid_cnn", ""): (1_494_370, 1_496_910),
}
# Number and digest of the names of the modules that own variables, from files that timm 1.0.31, torchvision 0.28 (less
# AuxLogits) and Keras 3.15 wrote.
NAMES = {
    ("inception_v3", "timm"): (189, "596bf63099db318f"),
    ("inception_v3", "torchvision"): (189, "596bf63099db318f"),
    ("inception_v3", "keras"): (189, "438289da1f9d06f3"),
    ("inception_resnet_v2", "keras"): (449, "29747f4d898ed7b6"),
    ("inception_resnet_v2", "timm"): (449, "78e3df7cf48f967e"),
}
SOME_NAMES = {
    ("inception_v3", "timm"): {
        "backbone/conv2d_1a_3x3/conv": "Conv2d_1a_3x3.conv",
        "backbone/mixed_6a/branch3x3/norm": "Mixed_6a.branch3x3.bn",
        "backbone/mixed_7b/branch3x3dbl_3b/norm": "Mixed_7b.branch3x3dbl_3b.bn",
        "head/logits": "fc",
    },
    ("inception_v3", "keras"): {
        "backbone/conv2d_1a_3x3/conv": "conv2d",
        "backbone/mixed_7c/branch_pool/norm": "batch_normalization_93",
        "head/logits": "predictions",
    },
    ("inception_resnet_v2", "keras"): {
        "backbone/block8_10/branch1_2/conv": "conv2d_202",
        "backbone/block35_3/conv": "block35_3_conv",
        "backbone/conv2d_7b/norm": "conv_7b_bn",
    },
    ("inception_resnet_v2", "timm"): {
        "backbone/mixed_5b/branch3_1/norm": "mixed_5b.branch3.1.bn",
        "backbone/block35_1/branch0/conv": "repeat.0.branch0.conv",
        "backbone/block17_20/branch1_2/norm": "repeat_1.19.branch1.2.bn",
        "backbone/block8_9/conv": "repeat_2.8.conv2d",
        "backbone/block8_10/conv": "block8.conv2d",
        "backbone/conv2d_7b/conv": "conv2d_7b.conv",
        "head/logits": "classif",
    },
}
# The grid of `hyper_paremetes.xlsx`, and the sizes in `metrics_log_epoch_10.csv` that its 24 models had.
DENSE = (
    (250, 300),
    (380, 430, 477),
    (200, 210, 300, 350),
    (70, 95, 120, 100, 4),
    (150, 208, 300, 350, 405, 450),
    (300, 250, 200, 180, 175, 160, 150),
)
FILTERS = (
    (70, 80, 100, 140, 180, 220),
    (80, 100, 160, 200, 210, 220),
    (120, 140, 160, 180, 200, 256),
    (128, 150, 180, 200, 256),
)
KERNELS = (7, 5, 5, 3, 3, 3)
MEGABYTES = (
    *(4.6565, 7.0775, 8.4247, 8.0872, 5.9156, 8.3366, 9.7016, 9.3640, 5.1674, 7.5872, 8.9275, 8.5905),
    *(4.3650, 6.7841, 8.1085, 7.7710, 6.3582, 8.7792, 10.1126, 9.7762, 5.4221, 7.8411, 9.1951, 8.8596),
)
STUDY = pathlib.Path(__file__).parents[3].parent / "shared/data/blood_cells/metrics_log_epoch_10.csv"
SMALL_GRID = {"filters": (5, 6, 7), "kernels": (5, 3, 3), "dense": (6, 4)}


def model_of(name, variant="", classes=1000, **options):
    return registry.create(name, num_classes=classes, variant=variant, **options)


def variables_of(model, size, channels=3):
    inputs = {"image": jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)}
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), inputs)


def owners(model, size):
    """The shapes of the variables, and the modules that own them in the order of their calls."""
    called = []

    def note(call, args, kwargs, context):
        called.append("/".join(context.module.path))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        variables = variables_of(model, size)
    paths = flax.traverse_util.flatten_dict(variables, sep="/")
    owning = {path.split("/", 1)[1].rsplit("/", 1)[0] for path in paths}
    return variables, tuple(module for module in dict.fromkeys(called) if module in owning)


def apply_shapes(model, height, width, channels):
    inputs = {"image": jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)}

    def run(inputs):
        variables = model.init(jax.random.key(0), inputs, train=False)
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, inputs, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    return jax.eval_shape(run, inputs)


@pytest.mark.parametrize("name, variant", COUNTS)
def test_counts_and_names(name, variant):
    variables, modules = owners(model_of(name, variant), 211)
    expected = COUNTS[name, variant]
    assert (count_parameters(variables["params"]), count_parameters(variables)) == expected
    document = importlib.import_module(f"research.models.{name}").__doc__
    assert any(f"{count:,}" in document for count in expected)
    if (name, variant) in NAMES:
        names = registry.find(name)[0].names[variant](modules)
        assert set(names) == set(modules)
        digest = hashlib.sha256("\n".join(sorted(names.values())).encode()).hexdigest()[:16]
        assert (len(set(names.values())), digest) == NAMES[name, variant]
        expected_names = SOME_NAMES.get((name, variant), {})
        assert expected_names == {module: names[module] for module in expected_names}


def test_a_hidden_head_has_no_name_in_the_libraries():
    modules = ("backbone/conv2d_1a_3x3/conv", "head/norm", "head/dense_1", "head/logits")
    for library, names in registry.find("inception_v3")[0].names.items():
        assert set(names(modules)) == {modules[0], modules[-1]}, library
    modules = ("backbone/conv_1", "backbone/norm_2", "backbone/dense_1", "head/norm", "head/dense_1", "head/logits")
    names = registry.find("grid_cnn")[0].names["keras"](modules)
    assert list(names.values()) == ["conv2d", "batch_normalization", "dense", "dense_1"]


def test_names_of_timm_mean_its_form():
    assert registry.find("tf_inception_v3")[1] == "timm"
    assert registry.find("ens_adv_inception_resnet_v2.tf_in1k")[1] == "timm"
    assert registry.find("InceptionResNetV2")[0].variants == ("keras", "timm")


@pytest.mark.parametrize(
    "name, variant, size, features, maps",
    [
        ("inception_v3", "timm", (75, 98), 2048, (64, 192, 288, 768, 2048)),
        ("inception_v3", "keras", (131, 101), 2048, (64, 192, 288, 768, 2048)),
        ("inception_resnet_v2", "timm", (75, 98), 1536, (64, 192, 320, 1088, 1536)),
        ("simple_cnn", "", (8, 9), 256, (32, 64, 128, 256)),
        ("cnn2", "", (8, 9), 512, (64, 128, 256, 512)),
        ("grid_cnn", "", (206, 211), 300, (70, 80, 100, 140, 180, 220)),
    ],
)
def test_outputs(name, variant, size, features, maps):
    output = apply_shapes(model_of(name, variant, classes=7, dtype=jnp.bfloat16), *size, 5)
    assert (output.logits.shape, output.logits.dtype) == ((2, 7), jnp.float32)
    assert (output.features.shape, output.features.dtype) == ((2, features), jnp.float32)
    found = sorted(output.feature_maps.values(), key=lambda value: -value.shape[1])
    assert tuple(value.shape[-1] for value in found) == maps
    assert len({value.shape for value in found}) == len(maps)
    assert all(value.dtype == jnp.bfloat16 for value in found)


@pytest.mark.parametrize(
    "name, size, message",
    [
        ("inception_v3", 74, "larger image_size"),
        ("inception_resnet_v2", 74, "larger image_size"),
        ("simple_cnn", 7, "larger image_size"),
        ("cnn2", 7, "larger image_size"),
        ("grid_cnn", 205, 'at least 206x206 pixels, not 205x205.*larger image_size.*padding to "same"'),
    ],
)
def test_too_small_images_are_named(name, size, message):
    variables_of(model_of(name), size + 1)
    with pytest.raises(cli.UserError, match=message):
        variables_of(model_of(name), size)


def test_the_24_models_of_the_blood_cell_study_have_their_sizes():
    for megabytes, (dense, filters) in zip(MEGABYTES, itertools.product(DENSE, FILTERS), strict=True):
        model = model_of("grid_cnn", classes=4, filters=filters, kernels=KERNELS, dense=dense)
        variables = variables_of(model, 224, channels=1)
        overhead = megabytes - 4 * count_parameters(variables) / 2**20
        assert 0.10 < overhead < 0.18, (dense, filters)
        assert set(variables["params"]["backbone"]) >= {f"conv_{len(filters)}", f"dense_norm_{len(dense)}"}
        assert "norm_1" not in variables["params"]["backbone"]


@pytest.mark.skipif(not STUDY.exists(), reason="needs the study's files")
def test_the_sizes_are_those_of_the_study():
    with STUDY.open() as file:
        sizes = [float(row["model_size(MB)"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(sizes, MEGABYTES, atol=6e-5)


@pytest.mark.parametrize(
    "options, smallest",
    [
        ({"filters": FILTERS[3]}, 110),
        ({"padding": "same"}, 64),
        ({"filters": (3, 4), "kernels": 5, "strides": 2, "pooling": "average"}, 31),
        ({"filters": (3, 4), "kernels": 4, "strides": (3, 2), "padding": "same", "activation": "swish"}, 16),
        ({"filters": (3,), "kernels": (3,), "dense": (), "activation": "elu"}, 4),
    ],
)
def test_grid_options_and_their_smallest_image(options, smallest):
    model = model_of("grid_cnn", classes=4, **options)
    output = apply_shapes(model, smallest, smallest + 5, 1)
    assert output.feature_maps[f"block_{len(options.get('filters', KERNELS))}"].shape[1] == 1
    assert output.features.shape == (2, 3 if "dense" in options else 300)
    with pytest.raises(
        cli.UserError, match=f"at least {smallest}x{smallest} pixels, not {smallest + 5}x{smallest - 1}"
    ):
        apply_shapes(model, smallest + 5, smallest - 1, 1)


def test_where_the_grid_has_batch_norm():
    norms = {
        "study": {"norm_2", "norm_3", "dense_norm_1", "dense_norm_2"},
        "every": {"norm_1", "norm_2", "norm_3", "dense_norm_1", "dense_norm_2"},
        "none": set(),
    }
    for batch_norm, expected in norms.items():
        variables = variables_of(model_of("grid_cnn", batch_norm=batch_norm, **SMALL_GRID), 40)
        assert set(variables.get("batch_stats", {}).get("backbone", {})) == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kernels": (7, 5)}, "6 filters but kernels .7, 5."),
        ({"strides": 0}, "strides"),
        ({"filters": ()}, "at least one filter"),
        ({"dense": (3, 0)}, "positive numbers"),
        ({"padding": "full"}, "no padding 'full'; choose one of valid, same"),
        ({"pooling": "sum"}, "choose one of max, average"),
        ({"activation": "step"}, "choose one of relu, elu, swish"),
        ({"batch_norm": "all"}, "choose one of study, every, none"),
        ({"layers": 3}, "no option layers"),
    ],
)
def test_mistakes_in_grid_options_are_named(options, message):
    with pytest.raises(cli.UserError, match=message):
        model_of("grid_cnn", **options)


@pytest.mark.parametrize("name", ["simple_cnn", "cnn2"])
def test_scratch_networks_want_positive_widths(name):
    assert variables_of(model_of(name, widths=(3,)), 5)["params"]["head"]["logits"]["kernel"].shape == (3, 1000)
    for widths in ((), (3, 0)):
        with pytest.raises(cli.UserError, match="at least one width and positive"):
            model_of(name, widths=widths)
    with pytest.raises(cli.UserError, match="no option convolutions"):
        model_of(name, convolutions=2)


def test_padding_counts_as_zeros_where_pytorch_counts_it():
    ones = jnp.ones((1, 3, 4, 1))
    np.testing.assert_allclose(average_pool(ones, 3, 1, 1), ones, rtol=1e-6)
    rows, columns = np.array([2, 3, 2]), np.array([2, 3, 3, 2])
    expected = np.outer(rows, columns)[None, :, :, None] / 9
    np.testing.assert_allclose(average_pool(ones, 3, 1, 1, count_padding=True), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "name, options, rates",
    [
        ("grid_cnn", SMALL_GRID, ("conv_dropout", "dense_dropout")),
        ("cnn2", {"widths": (4, 6)}, ("dropout",)),
    ],
)
def test_members_with_traced_dropout_equal_each_alone(name, options, rates):
    values = jnp.array([0.0, 0.4])
    batch = {"image": jnp.asarray(np.random.default_rng(0).normal(size=(3, 39, 39, 1)), jnp.float32)}
    variables = initialize(model_of(name, classes=4, **options), jax.random.key(0), 39, 1)

    def loss(rate):
        model = model_of(name, classes=4, **options, **dict.fromkeys(rates, rate))
        output, _ = model.apply(
            variables, batch, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
        )
        return jnp.mean(output.logits**2)

    members, alone = jax.jit(jax.vmap(loss))(values), jax.jit(loss)
    np.testing.assert_allclose(members, [alone(value) for value in values], rtol=1e-4)
    assert abs(float(members[1] - members[0])) > 1e-3 * float(members[0])
