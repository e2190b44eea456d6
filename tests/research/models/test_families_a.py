"""Are resnet, vgg and densenet in all their variants the networks that the libraries build?

Whole networks are only traced here; test_parity.py compares their logits with the libraries'.
"""

import functools
import re

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import cli
from research.models import densenet, registry, resnet, vgg
from research.models.classifier import Classifier
from research.models.heads import Head
from research.models.initialize import count_parameters
from research.models.layers import Conv
from research.models.normalization import BatchNorm

TORCH = ("timm", "torchvision")
ALL = (*TORCH, "keras")
# By variants: parameters, and parameters with running statistics, with 1,000 classes at 224 pixels.
COUNTS = {
    ("resnet18", TORCH): (11_689_512, 11_699_112),
    ("resnet34", TORCH): (21_797_672, 21_814_696),
    ("resnet50", TORCH): (25_557_032, 25_610_152),
    ("resnet50", ("keras",)): (25_583_592, 25_636_712),
    ("resnet101", TORCH): (44_549_160, 44_654_504),
    ("resnet101", ("keras",)): (44_601_832, 44_707_176),
    ("resnet152", TORCH): (60_192_808, 60_344_232),
    ("resnet152", ("keras",)): (60_268_520, 60_419_944),
    ("vgg16", ALL): (138_357_544, 138_357_544),
    ("vgg19", ALL): (143_667_240, 143_667_240),
    ("vgg16_bn", TORCH): (138_365_992, 138_374_440),
    ("vgg19_bn", TORCH): (143_678_248, 143_689_256),
    ("densenet121", ALL): (7_978_856, 8_062_504),
    ("densenet169", ALL): (14_149_480, 14_307_880),
    ("densenet201", ALL): (20_013_928, 20_242_984),
}


def variable_shapes(model, height=224, width=224, channels=3):
    """Shapes of the variables, without computing anything."""
    inputs = {"image": jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)}
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), inputs)


def shapes(model, height=224, width=224, channels=3, train=False):
    """Shapes of the variables and of the outputs."""
    variables = variable_shapes(model, height, width, channels)
    inputs = {"image": jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)}
    apply = functools.partial(model.apply, train=train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    return variables, jax.eval_shape(apply, variables, inputs)[0]


def module_paths(variables):
    """Paths of the modules that own variables."""
    return sorted({"/".join(path[1:-1]) for path in flax.traverse_util.flatten_dict(variables)})


@pytest.mark.parametrize("name, variants", COUNTS)
def test_counts_and_names(name, variants):
    entry, _ = registry.find(name)
    assert set(entry.names) == set(entry.variants)
    traced = []
    for variant in variants:
        model = registry.create(name, num_classes=1000, variant=variant)
        if model.backbone not in traced:
            traced.append(model.backbone)
            variables = variable_shapes(model)
            assert (count_parameters(variables["params"]), count_parameters(variables)) == COUNTS[name, variants]
            paths = module_paths(variables)
        mapping = entry.names[variant](paths)
        assert set(mapping) == set(paths) and len(set(mapping.values())) == len(paths)
        # Neither the order nor modules that the library does not have matter, such as hidden layers of the head.
        assert entry.names[variant]([*reversed(paths), "head/dense_1", "head/norm"]) == mapping
        assert "head/logits" not in entry.names[variant]([path for path in paths if path != "head/logits"])
    # timm's and torchvision's are one graph, except for the end of VGG.
    graphs = (
        len(variants) if name.startswith("vgg") else 2 if name.startswith("densenet") and "keras" in variants else 1
    )
    assert len(traced) == graphs


@pytest.mark.parametrize(
    "name, library, expected",
    [
        ("resnet50", "timm", {"layer4_2/conv3": "layer4.2.conv3", "layer1_0/downsample_norm": "layer1.0.downsample.1"}),
        (
            "resnet18",
            "torchvision",
            {"conv1": "conv1", "norm1": "bn1", "layer2_0/downsample_conv": "layer2.0.downsample.0"},
        ),
        (
            "resnet50",
            "keras",
            {"norm1": "conv1_bn", "layer4_2/norm3": "conv5_block3_3_bn", "head/logits": "predictions"},
        ),
        (
            "resnet152",
            "keras",
            {"layer2_0/downsample_conv": "conv3_block1_0_conv", "layer3_35/conv1": "conv4_block36_1_conv"},
        ),
        ("vgg16", "timm", {"block3_conv1": "features.10", "block5_conv3": "features.28", "fc2": "pre_logits.fc2"}),
        (
            "vgg19_bn",
            "torchvision",
            {"block1_norm2": "features.4", "block5_conv4": "features.49", "fc2": "classifier.3"},
        ),
        ("vgg19", "keras", {"block5_conv4": "block5_conv4", "fc1": "fc1"}),
        ("densenet169", "keras", {"denseblock4/denselayer32/norm1": "conv5_block32_0_bn", "norm5": "bn"}),
        (
            "densenet121",
            "keras",
            {"denseblock1/denselayer2/conv2": "conv2_block2_2_conv", "transition3/conv": "pool4_conv"},
        ),
        ("densenet201", "timm", {"denseblock3/denselayer48/norm2": "features.denseblock3.denselayer48.norm2"}),
        ("densenet121", "torchvision", {"transition1/norm": "features.transition1.norm", "head/logits": "classifier"}),
    ],
)
def test_names_are_the_libraries(name, library, expected):
    variables = variable_shapes(registry.create(name, num_classes=5), 64, 64)
    mapping = registry.find(name)[0].names[library](module_paths(variables))
    for path, other in expected.items():
        assert mapping[path if path.startswith("head/") else f"backbone/{path}"] == other


def test_the_last_ten_layers_of_keras_resnet50_are_its_last_block():
    variables = variable_shapes(registry.create("resnet50", num_classes=5, variant="keras"))
    assert count_parameters(variables["params"]["backbone"]["layer4_2"]) == 4_465_664  # as the study reports


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "vgg16_bn"])
def test_keras_does_not_have_all(name):
    with pytest.raises(cli.UserError, match=f"{name} has no variant 'keras'; it has timm, torchvision"):
        registry.create(name, num_classes=3, variant="keras")


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "vgg16", "vgg19_bn", "densenet121"])
@pytest.mark.parametrize("height, width, channels", [(65, 98, 1), (131, 65, 5)])
def test_output_contract(name, height, width, channels):
    for variant in registry.find(name)[0].variants:
        model = registry.create(name, num_classes=7, variant=variant, dtype=jnp.bfloat16)
        variables, output = shapes(model, height, width, channels, train=True)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        assert output.logits.shape == (2, 7) and output.logits.dtype == output.features.dtype == jnp.float32
        maps = sorted(output.feature_maps.values(), key=lambda value: -value.shape[1])
        assert all(value.dtype == jnp.bfloat16 for value in maps)
        # Every resolution once: halved, rounded up by strided convolutions with padding, down by 2x2 pools.
        sizes = [value.shape[1:3] for value in maps]
        assert all(
            0 <= 2 * b - a + 1 <= 2
            for larger, smaller in zip(sizes, sizes[1:], strict=False)
            for a, b in zip(larger, smaller, strict=True)
        )
        assert len(set(sizes)) == len(sizes) == (6 if name.startswith("vgg") else 5)


@pytest.mark.parametrize("size", [224, 128, 330])
def test_dense_layers_of_vgg(size):
    side = size // 32
    for variant in ALL:
        variables, output = shapes(registry.create("vgg16", num_classes=3, variant=variant), size, size)
        window = side if variant == "keras" else 7
        assert variables["params"]["backbone"]["fc1"]["kernel"].shape == (window, window, 512, 4096)
        assert output.features.shape == (2, 4096) and output.feature_maps["pool5"].shape == (2, side, side, 512)
    model = registry.create("vgg19", num_classes=3, top=False, head_pool="flatten", head=(9,))
    variables, output = shapes(model, size, size)
    assert count_parameters(variables["params"]["backbone"]) == 20_024_384
    assert output.features.shape == (2, side * side * 512)
    assert shapes(registry.create("vgg16", num_classes=3, top=False), size, size)[1].features.shape == (2, 512)


def test_small_images_are_refused():
    with pytest.raises(cli.UserError, match="larger image_size"):
        shapes(registry.create("vgg16", num_classes=3), 31, 40)


@pytest.mark.parametrize("sizes", [(7, 7), (3, 5), (1, 2)])
@pytest.mark.parametrize("height, width", [(7, 7), (4, 4), (1, 13), (9, 6), (16, 3), (21, 14)])
def test_adaptive_average_pool_by_brute_force(height, width, sizes):
    inputs = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    expected = np.zeros((2, *sizes, 3))
    for row in range(sizes[0]):
        for column in range(sizes[1]):
            rows = slice(int(np.floor(row * height / sizes[0])), int(np.ceil((row + 1) * height / sizes[0])))
            columns = slice(int(np.floor(column * width / sizes[1])), int(np.ceil((column + 1) * width / sizes[1])))
            expected[:, row, column] = inputs[:, rows, columns].mean((1, 2), dtype=np.float64)
    np.testing.assert_allclose(vgg.adaptive_average_pool(jnp.asarray(inputs), sizes), expected, rtol=1e-5, atol=1e-6)
    low = vgg.adaptive_average_pool(jnp.asarray(inputs, jnp.bfloat16), sizes)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), expected, atol=0.02)


class PlainDenseBlock(nn.Module):
    """The paper's: every layer concatenates, and normalises what it reads on its own. The same variables."""

    depth: int
    form: densenet.Form

    @nn.compact
    def __call__(self, inputs, *, train):
        outputs = inputs
        for index in range(1, self.depth + 1):
            new = PlainDenseLayer(self.form, name=f"denselayer{index}")(outputs, train=train)
            outputs = jnp.concatenate([outputs, new], -1)
        return outputs


class PlainDenseLayer(nn.Module):
    form: densenet.Form

    @nn.compact
    def __call__(self, inputs, *, train):
        norm = functools.partial(BatchNorm, self.form.momentum, self.form.epsilon, activation="relu")
        outputs = Conv(128, (1, 1), name="conv1")(norm(name="norm1")(inputs, train=train))
        return Conv(32, name="conv2")(norm(name="norm2")(outputs, train=train))


class Joined(nn.Module):
    """A dense block as a backbone."""

    depth: int
    plain: bool = False

    @nn.compact
    def __call__(self, images, *, train):
        kind = PlainDenseBlock if self.plain else densenet.DenseBlock
        outputs = kind(self.depth, densenet.TORCH, name="denseblock1")(images, train=train)
        outputs = outputs if self.plain else outputs.joined()
        return jnp.mean(outputs.astype(jnp.float32), (1, 2)), {"denseblock1": outputs}


def perturbed(variables):
    """Scales, biases and statistics that are not trivial."""
    rng = np.random.default_rng(3)

    def perturb(path, leaf):
        spread = {"scale": 0.4, "var": 0.4, "bias": 0.3, "mean": 0.3}.get(path[-1].key, 0.0)
        return jnp.asarray(leaf + spread * rng.uniform(-1, 1, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(perturb, variables)


def small(backbone, frozen=(), dtype=jnp.float32):
    return Classifier(backbone, Head(num_classes=3), frozen=frozen, dtype=dtype)


def images(batch=3, size=5, channels=6, seed=0):
    return jnp.asarray(1.0 + np.random.default_rng(seed).normal(size=(batch, size, size, channels)), jnp.float32)


def gradients(model, variables, batch, train=True):
    """Loss, new statistics and gradients of the parameters and of the images."""

    def loss(params, batch):
        output, state = model.apply(
            {**variables, "params": params}, {"image": batch}, train=train, mutable=["batch_stats"]
        )
        return jnp.sum(output.logits * jnp.array([1.0, -2.0, 0.5])) / len(batch), state

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables["params"], batch)


def assert_close(actual, expected, tolerance):
    """Largest error of each array relative to its largest value, or to a hundredth of the largest of all.

    The gradient of a bias that a BatchNorm takes away again is nothing but rounding.
    """
    overall = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))

    def check(path, one, other):
        scale = max(float(jnp.abs(other).max()), 0.01 * overall)
        assert float(jnp.abs(one - other).max()) < tolerance * scale, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(check, actual, expected)


@pytest.fixture(scope="module")
def dense():
    """A block of six layers, so that parts are copied together once and left apart once, and the plain form."""
    model = small(Joined(6))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), {"image": images()})
    return model, small(Joined(6, plain=True)), perturbed(variables)


@pytest.mark.parametrize("train, frozen", [(True, ()), (False, ()), (True, ("denselayer[2356]/norm1", "layer1/norm2"))])
def test_dense_block_equals_its_plain_form(dense, train, frozen):
    shared, plain, variables = dense
    expected = gradients(plain.clone(frozen=frozen), variables, images(), train)
    assert_close(gradients(shared.clone(frozen=frozen), variables, images(), train), expected, 1e-4)
    if frozen:
        statistics = expected[0][1]["batch_stats"]["backbone"]["denseblock1"]
        layers = variables["batch_stats"]["backbone"]["denseblock1"]
        kept = {
            f"{name}/{norm}"
            for name, layer in layers.items()
            for norm in layer
            if np.array_equal(layer[norm]["mean"], statistics[name][norm]["mean"])
        }
        assert kept == {f"denselayer{index}/norm1" for index in (2, 3, 5, 6)} | {"denselayer1/norm2"}


def test_statistics_move_only_where_they_may(dense):
    shared, _, variables = dense
    output = shared.apply(variables, {"image": images()}, train=True)
    moved = shared.apply(variables, {"image": images()}, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(output.logits, moved[0].logits, rtol=1e-5)
    first = moved[1]["batch_stats"]["backbone"]["denseblock1"]["denselayer1"]["norm1"]
    before = variables["batch_stats"]["backbone"]["denseblock1"]["denselayer1"]["norm1"]
    np.testing.assert_allclose(first["mean"], 0.9 * before["mean"] + 0.1 * images().mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(first["var"], 0.9 * before["var"] + 0.1 * images().var((0, 1, 2)), rtol=1e-4)


def _small_resnet(form):
    return resnet.ResNet((1, 1), True, form)


def _small_densenet(form):
    return densenet.DenseNet((2, 1), form)


# VGG's dense layers are too large for a test; its dropout is tested below.
SMALLEST = {
    "resnet timm": lambda: _small_resnet(resnet.FORMS["timm"]),
    "resnet keras": lambda: _small_resnet(resnet.FORMS["keras"]),
    "densenet": lambda: _small_densenet(densenet.TORCH),
    "vgg_bn": lambda: vgg.VGG((1, 1, 1, 1, 1), True, "timm", False, 0.0, 0.9),
}


@pytest.fixture(scope="module", params=SMALLEST)
def smallest(request):
    model = small(SMALLEST[request.param]())
    batch = images(4, 33, 2)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), {"image": batch})
    return model, perturbed(variables), batch


def forward(model, variables, batch):
    return model.apply(variables, {"image": batch}, train=True, mutable=["batch_stats"])[0].logits


def test_bfloat16_stays_near_float32(smallest):
    model, variables, batch = smallest
    expected = jax.jit(functools.partial(forward, model))(variables, batch)
    actual = jax.jit(functools.partial(forward, model.clone(dtype=jnp.bfloat16)))(variables, batch)
    assert actual.dtype == jnp.float32 and np.any(np.asarray(actual) != np.asarray(expected))
    np.testing.assert_allclose(actual, expected, atol=0.1 * float(jnp.abs(expected).max()))


def test_members_under_vmap_and_remat_equal_each_alone(smallest):
    model, variables, batch = smallest
    other = perturbed(variables)
    members = jax.tree.map(lambda *leaves: jnp.stack(leaves), variables, other)

    def loss(variables, batch):
        return jnp.sum(forward(model, variables, batch) ** 2)

    together = jax.jit(jax.vmap(jax.grad(jax.checkpoint(loss)), (0, None)))(members, batch)
    alone = jax.jit(jax.grad(loss))
    for index, one in enumerate((variables, other)):
        params = jax.tree.map(lambda leaf, index=index: leaf[index], together)["params"]
        assert_close(params, alone(one, batch)["params"], 2e-3)


def test_dropout_of_vgg_may_be_traced():
    batch = {"image": jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)}

    def build(rate):
        return registry.create("vgg16", num_classes=3, dropout=rate, variant="keras")

    variables = jax.eval_shape(functools.partial(build(0.0).init, train=False), jax.random.key(0), batch)

    def apply(variables, batch, rate):
        return build(rate).apply(variables, batch, train=True, rngs={"dropout": jax.random.key(0)}).logits

    assert jax.eval_shape(apply, variables, batch, jnp.float32(0.5)).shape == (2, 3)
    trace = str(jax.make_jaxpr(apply)(variables, batch, jnp.float32(0.5)))
    assert len(re.findall("random_bits", trace)) == 1  # one mask, behind fc1
    assert "random_bits" not in str(jax.make_jaxpr(lambda v, b: apply(v, b, 0.0))(variables, batch))


def test_documented_counts():
    for module in (resnet, vgg, densenet):
        family = module.__name__.rsplit(".", 1)[1]
        for (name, _), counts in COUNTS.items():
            if name.startswith(family):
                assert all(f"{count:,}" in module.__doc__ for count in counts), name
