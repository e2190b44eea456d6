"""Which models, sizes, weight files and inner layers does the parity campaign compare?"""

import dataclasses

from research.models import registry

KERAS_FILES = ("weights.h5", "h5", "legacy.h5", "keras")
TORCH_FILES = ("safetensors", "pth")


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of a reference library.

    Attributes:
      library: "keras", "timm" or "torchvision".
      name: what the library calls the model.
      sizes: pixels a side, the first odd.
      files: formats of its weights; at the sizes behind the first only the first format is compared.
      inner: from our feature maps to the library's layers that compute them.
      statistics: the kinds of weights, the first with every file and size, the others with the first of each.
    """

    library: str
    name: str
    sizes: tuple[int, ...]
    files: tuple[str, ...]
    inner: dict[str, str] = dataclasses.field(default_factory=dict)
    statistics: tuple[str, ...] = ("random", "calibrated")

    @property
    def variant(self) -> str:
        """The form of the architecture that the library has."""
        entry, implied = registry.find(self.name)
        return implied or (self.library if self.library in entry.variants else "")

    def rows(self, statistics: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The sizes and the files that are compared."""
        return (self.sizes, self.files) if statistics == self.statistics[0] else (self.sizes[:1], self.files[:1])

    @property
    def key(self) -> str:
        """Such as "keras_VGG16"."""
        return f"{self.library}_{self.name}"


# By family and library: our feature maps and the layers of the reference that compute them.
INNER = {
    "keras_ResNet50": {"layer1": "conv2_block3_out", "layer2": "conv3_block4_out", "layer3": "conv4_block6_out"},
    "timm_resnet50": {"layer1": "layer1", "layer2": "layer2", "layer3": "layer3"},
    "torchvision_resnet50": {"layer1": "layer1", "layer2": "layer2", "layer3": "layer3"},
    "keras_VGG16": {"block2": "block2_conv2", "block3": "block3_conv3", "block4": "block4_conv3"},
    "timm_vgg16": {"block2": "features.8", "block3": "features.15", "block4": "features.22"},
    "timm_vgg16_bn": {"block2": "features.12", "block3": "features.22", "block4": "features.32"},
    "torchvision_vgg16": {"block2": "features.8", "block3": "features.15", "block4": "features.22"},
    "keras_DenseNet121": {
        "denseblock1": "conv2_block6_concat",
        "denseblock2": "conv3_block12_concat",
        "denseblock3": "conv4_block24_concat",
    },
    "timm_densenet121": {f"denseblock{index}": f"features.denseblock{index}" for index in (1, 2, 3)},
    "torchvision_densenet121": {f"denseblock{index}": f"features.denseblock{index}" for index in (1, 2, 3)},
    "keras_Xception": {"block1": "block1_conv2_act", "block3": "add_1", "block12": "add_10"},
    "timm_legacy_xception": {"block2": "block1", "block3": "block2", "block12": "block11"},
    "keras_InceptionV3": {"mixed_5d": "mixed2", "mixed_6e": "mixed7", "mixed_7c": "mixed10"},
    "timm_inception_v3": {"mixed_5d": "Mixed_5d", "mixed_6e": "Mixed_6e", "mixed_7c": "Mixed_7c"},
    "torchvision_inception_v3": {"mixed_5d": "Mixed_5d", "mixed_6e": "Mixed_6e", "mixed_7c": "Mixed_7c"},
    "keras_InceptionResNetV2": {
        "block35_10": "block35_10_ac",
        "block17_20": "block17_20_ac",
        "conv2d_7b": "conv_7b_ac",
    },
    "timm_inception_resnet_v2": {"block35_10": "repeat", "block17_20": "repeat_1", "conv2d_7b": "conv2d_7b"},
    "keras_EfficientNetB0": {"block2": "block2b_add", "block3": "block3b_add", "block5": "block5c_add"},
    "timm_efficientnet_b0": {"block2": "blocks.1", "block3": "blocks.2", "block5": "blocks.4"},
    "timm_tf_efficientnet_b0": {"block2": "blocks.1", "block3": "blocks.2", "block5": "blocks.4"},
    "torchvision_efficientnet_b0": {"block2": "features.2", "block3": "features.3", "block5": "features.5"},
}


def _cases() -> list[Model]:
    sizes, large, inception, residual = (139, 128), (139, 96), (139, 96), (171, 96)
    first = [
        Model("timm", "resnet18", sizes, TORCH_FILES),
        Model("timm", "resnet50", sizes, TORCH_FILES[:1]),
        Model("torchvision", "resnet50", sizes, TORCH_FILES),
        Model("keras", "ResNet50", sizes, KERAS_FILES),
        Model("timm", "densenet121", sizes, TORCH_FILES[:1]),
        Model("torchvision", "densenet121", sizes, TORCH_FILES),
        Model("keras", "DenseNet121", sizes, KERAS_FILES),
        Model("timm", "legacy_xception", sizes, TORCH_FILES[:1]),
        Model("keras", "Xception", sizes, KERAS_FILES),
        Model("timm", "inception_v3", inception, TORCH_FILES[:1]),
        Model("torchvision", "inception_v3", inception, TORCH_FILES),
        Model("keras", "InceptionV3", inception, KERAS_FILES),
        Model("timm", "inception_resnet_v2", residual, TORCH_FILES[:1]),
        Model("keras", "InceptionResNetV2", residual, KERAS_FILES),
        Model("timm", "efficientnet_b0", sizes, TORCH_FILES[:1]),
        Model("timm", "tf_efficientnet_b0", sizes, TORCH_FILES[:1]),
        Model("torchvision", "efficientnet_b0", sizes, TORCH_FILES),
        Model("keras", "EfficientNetB0", sizes, KERAS_FILES),
        # At 139 px the last map is smaller than the window of the first dense layer, at 257 px larger.
        Model("timm", "vgg16", (139, 224, 257), TORCH_FILES[:1]),
        Model("torchvision", "vgg16", (139, 224, 257), TORCH_FILES),
        Model("keras", "VGG16", (97, 128), ("weights.h5", "legacy.h5")),
    ]
    torch = [Model("timm", name, sizes, TORCH_FILES[:1]) for name in ("resnet34", "resnet101", "resnet152")]
    torch += [Model("timm", name, sizes, TORCH_FILES[:1]) for name in ("densenet169", "densenet201")]
    torch += [Model("timm", name, (139, 224), TORCH_FILES[:1]) for name in ("vgg16_bn", "vgg19", "vgg19_bn")]
    keras = [Model("keras", name, sizes, KERAS_FILES[:1]) for name in ("ResNet101", "ResNet152")]
    keras += [Model("keras", name, sizes, KERAS_FILES[:1]) for name in ("DenseNet169", "DenseNet201")]
    keras += [Model("keras", "VGG19", (97, 128), KERAS_FILES[:1])]
    for size in range(1, 8):
        for prefix in ("", "tf_"):
            torch.append(Model("timm", f"{prefix}efficientnet_b{size}", large, TORCH_FILES[:1]))
        keras.append(Model("keras", f"EfficientNetB{size}", large, KERAS_FILES[:1]))
    # With random statistics a deep EfficientNet is chaotic: PyTorch's float32 logits are off its float64 ones by 0.7.
    rest = [dataclasses.replace(model, statistics=("calibrated",)) for model in torch + keras]
    return [dataclasses.replace(model, inner=INNER.get(model.key, {})) for model in first + rest]


MODELS = _cases()
