"""Which official files of ImageNet weights exist, and how must images be prepared for them?

Collected from the sources of Keras 3.15, torchvision 0.28 and timm 1.0.31. Hashes are those that these publish: MD5 in
Keras, the first digits of the SHA-256 in torchvision's file names; the hub keeps its own.
"""

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Callable
from typing import Any

_GOOGLE = "https://storage.googleapis.com/"
_KERAS = f"{_GOOGLE}tensorflow/keras-applications/"
_TORCH = "https://download.pytorch.org/models/"
HUB = "https://huggingface.co/timm/"

IMAGENET = {"kind": "fixed", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"kind": "fixed", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}  # "inception" in timm, "tf" in Keras
RAW = {"kind": "raw"}
CAFFE = {"kind": "caffe"}

# Model: folder of the URL, MD5 of the file, MD5 of the file without classifier, preprocessing, image size.
_KERAS_FILES = {
    "densenet121": ("densenet/", "9d60b8095a5708f2dcce2bca79d332c7", "30ee3e1110167f948a6b9946edeeb738", IMAGENET, 224),
    "densenet169": ("densenet/", "d699b8f76981ab1b30698df4c175e90b", "b8c4d4c20dd625c148057b9ff1c1176b", IMAGENET, 224),
    "densenet201": ("densenet/", "1ceb130c1ea1b78c3bf6114dbdfd8807", "c13680b51ded0fb44dff2d8f86ac8bb1", IMAGENET, 224),
    "efficientnet_b0": ("", "902e53a9f72be733fc0bcb005b3ebbac", "50bc09e76180e00e4465e1a485ddc09d", RAW, 224),
    "efficientnet_b1": ("", "1d254153d4ab51201f1646940f018540", "74c4e6b3e1f6a1eea24c589628592432", RAW, 240),
    "efficientnet_b2": ("", "b15cce36ff4dcbd00b6dd88e7857a6ad", "111f8e2ac8aa800a7a99e3239f7bfb39", RAW, 260),
    "efficientnet_b3": ("", "ffd1fdc53d0ce67064dc6a9c7960ede0", "af6d107764bb5b1abb91932881670226", RAW, 300),
    "efficientnet_b4": ("", "18c95ad55216b8f92d7e70b3a046e2fc", "ebc24e6d6c33eaebbd558eafbeedf1ba", RAW, 380),
    "efficientnet_b5": ("", "ace28f2a6363774853a83a0b21b9421a", "38879255a25d3c92d5e44e04ae6cec6f", RAW, 456),
    "efficientnet_b6": ("", "165f6e37dce68623721b423839de8be5", "9ecce42647a20130c1f39a5d4cb75743", RAW, 528),
    "efficientnet_b7": ("", "8c03f828fec3ef71311cd463b6759d99", "cbcfe4450ddf6f3ad90b1b398090fe4a", RAW, 600),
    "inception_resnet_v2": (
        "inception_resnet_v2/",
        "e693bd0210a403b3192acc6073ad2e96",
        "d19885ff4a710c122648d3b5c3b684e4",
        HALF,
        299,
    ),
    "inception_v3": (
        "inception_v3/",
        "9a0d58056eeedaa3f26cb7ebd46da564",
        "bcbd6486424b2319ff4ef7d526e38f63",
        HALF,
        299,
    ),
    "resnet50": ("resnet/", "2cb95161c43110f7111970584f804107", "4d473c1dd8becc155b73f8504c6f6626", CAFFE, 224),
    "resnet101": ("resnet/", "f1aeb4b969a6efcfb50fad2f0c20cfc5", "88cf7a10940856eca736dc7b7e228a21", CAFFE, 224),
    "resnet152": ("resnet/", "100835be76be38e30d865e96f2aaae62", "ee4c566cf9a93f14d82f913c2dc6dd0c", CAFFE, 224),
    "vgg16": ("vgg16/", "64373286793e3c8b2b4e3219cbf3544b", "6d6bbae143d832006294945121d1f1fc", CAFFE, 224),
    "vgg19": ("vgg19/", "cbe5617147190e668d6c5d5026f83318", "253f8cb515780f3b799900260a226db6", CAFFE, 224),
    "xception": ("xception/", "0a58e3b7378bc2990ea3b43d5981f1f6", "b0042744bf5b25fce3cb969f33bebb97", HALF, 299),
}

# Model: files, the newest first, and their image size. Inception's are normalised by ImageNet's figures and then,
# inside the network (`transform_input`), as HALF.
_TORCHVISION_FILES = {
    "densenet121": (("densenet121-a639ec97.pth", 224),),
    "densenet169": (("densenet169-b2777c0a.pth", 224),),
    "densenet201": (("densenet201-c1103571.pth", 224),),
    "efficientnet_b0": (("efficientnet_b0_rwightman-7f5810bc.pth", 224),),
    "efficientnet_b1": (("efficientnet_b1-c27df63c.pth", 240), ("efficientnet_b1_rwightman-bac287d4.pth", 240)),
    "efficientnet_b2": (("efficientnet_b2_rwightman-c35c1473.pth", 288),),
    "efficientnet_b3": (("efficientnet_b3_rwightman-b3899882.pth", 300),),
    "efficientnet_b4": (("efficientnet_b4_rwightman-23ab8bcd.pth", 380),),
    "efficientnet_b5": (("efficientnet_b5_lukemelas-1a07897c.pth", 456),),
    "efficientnet_b6": (("efficientnet_b6_lukemelas-24a108a5.pth", 528),),
    "efficientnet_b7": (("efficientnet_b7_lukemelas-c5b4e57e.pth", 600),),
    "inception_v3": (("inception_v3_google-0cc3c7bd.pth", 299),),
    "resnet18": (("resnet18-f37072fd.pth", 224),),
    "resnet34": (("resnet34-b627a593.pth", 224),),
    "resnet50": (("resnet50-11ad3fa6.pth", 224), ("resnet50-0676ba61.pth", 224)),
    "resnet101": (("resnet101-cd907fc2.pth", 224), ("resnet101-63fe2227.pth", 224)),
    "resnet152": (("resnet152-f82ba261.pth", 224), ("resnet152-394f9c45.pth", 224)),
    "vgg16": (("vgg16-397923af.pth", 224),),
    "vgg16_bn": (("vgg16_bn-6c64b313.pth", 224),),
    "vgg19": (("vgg19-dcbb9e9d.pth", 224),),
    "vgg19_bn": (("vgg19_bn-c79401a0.pth", 224),),
}

# Model: timm's default weights, their preprocessing and image size in training.
_TIMM_FILES = {
    "densenet121": (("densenet121.ra_in1k", IMAGENET, 224),),
    "densenet169": (("densenet169.tv_in1k", IMAGENET, 224),),
    "densenet201": (("densenet201.tv_in1k", IMAGENET, 224),),
    "efficientnet_b0": (("efficientnet_b0.ra_in1k", IMAGENET, 224), ("tf_efficientnet_b0.ns_jft_in1k", IMAGENET, 224)),
    "efficientnet_b1": (("efficientnet_b1.ft_in1k", IMAGENET, 224), ("tf_efficientnet_b1.ns_jft_in1k", IMAGENET, 240)),
    "efficientnet_b2": (("efficientnet_b2.ra_in1k", IMAGENET, 256), ("tf_efficientnet_b2.ns_jft_in1k", IMAGENET, 260)),
    "efficientnet_b3": (("efficientnet_b3.ra2_in1k", IMAGENET, 288), ("tf_efficientnet_b3.ns_jft_in1k", IMAGENET, 300)),
    "efficientnet_b4": (("efficientnet_b4.ra2_in1k", IMAGENET, 320), ("tf_efficientnet_b4.ns_jft_in1k", IMAGENET, 380)),
    "efficientnet_b5": (
        ("efficientnet_b5.sw_in12k_ft_in1k", IMAGENET, 448),
        ("tf_efficientnet_b5.ns_jft_in1k", IMAGENET, 456),
    ),
    "efficientnet_b6": (("tf_efficientnet_b6.ns_jft_in1k", IMAGENET, 528),),
    "efficientnet_b7": (("tf_efficientnet_b7.ns_jft_in1k", IMAGENET, 600),),
    "inception_resnet_v2": (("inception_resnet_v2.tf_in1k", IMAGENET, 299),),
    "inception_v3": (("inception_v3.tv_in1k", HALF, 299),),
    "resnet18": (("resnet18.a1_in1k", IMAGENET, 224),),
    "resnet34": (("resnet34.a1_in1k", IMAGENET, 224),),
    "resnet50": (("resnet50.a1_in1k", IMAGENET, 224),),
    "resnet101": (("resnet101.a1h_in1k", IMAGENET, 224),),
    "resnet152": (("resnet152.a1h_in1k", IMAGENET, 224),),
    "vgg16": (("vgg16.tv_in1k", IMAGENET, 224),),
    "vgg16_bn": (("vgg16_bn.tv_in1k", IMAGENET, 224),),
    "vgg19": (("vgg19.tv_in1k", IMAGENET, 224),),
    "vgg19_bn": (("vgg19_bn.tv_in1k", IMAGENET, 224),),
}

# timm weights whose preprocessing is another one than that of their architecture's default.
_TIMM_OTHERS = {
    "efficientnet_b0.ra4_e3600_r224_in1k": HALF,
    "efficientnet_b1.ra4_e3600_r240_in1k": HALF,
    "inception_v3.gluon_in1k": IMAGENET,
    "resnet34.ra4_e3600_r224_in1k": HALF,
} | {f"tf_efficientnet_b{size}.ap_in1k": HALF for size in range(8)}


@dataclasses.dataclass(frozen=True)
class Official:
    """An official file.

    Attributes:
      model: its name here.
      library: "keras", "torchvision" or "timm".
      file: its name; for timm the name of the weights.
      url: where it is.
      published: hash as published ("MD5 9a0d..."), or "".
      size: pixels a side of the images that it was trained for.
      preprocessing: see `Pretrained`.
      weights: what `--weights` takes directly, for timm's on the hub; else "".
    """

    model: str
    library: str
    file: str
    url: str
    published: str
    size: int
    preprocessing: dict[str, Any]
    weights: str = ""


def _keras(model: str) -> list[Official]:
    folder, top, no_top, preprocessing, size = _KERAS_FILES[model]
    if model.startswith("efficientnet"):
        base, stem, endings = f"{_GOOGLE}keras-applications/", model.replace("_", ""), (".h5", "_notop.h5")
    else:
        base, stem = _KERAS + folder, f"{model}_weights_tf_dim_ordering_tf_kernels"
        endings = (".h5", "_notop.h5")
    return [
        Official(model, "keras", stem + ending, base + stem + ending, f"MD5 {md5}", size, preprocessing)
        for ending, md5 in zip(endings, (top, no_top), strict=True)
    ]


def _torchvision(model: str) -> list[Official]:
    preprocessing = HALF if model == "inception_v3" else IMAGENET
    return [
        Official(
            model,
            "torchvision",
            file,
            _TORCH + file,
            f"SHA-256 {pathlib.PurePath(file).stem.rpartition('-')[2]}...",
            size,
            preprocessing,
        )
        for file, size in _TORCHVISION_FILES[model]
    ]


def _timm(model: str) -> list[Official]:
    return [
        Official(model, "timm", name, f"{HUB}{name}", "", size, preprocessing, f"hf://timm/{name}")
        for name, preprocessing, size in _TIMM_FILES[model]
    ]


_CADENE = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene/"
_LEGACY_XCEPTION = "xception-43020ad28.pth"


def official(model: str) -> list[Official]:
    """The official files of a model, by library; empty if there are none."""
    found = []
    for files, rows in ((_KERAS_FILES, _keras), (_TORCHVISION_FILES, _torchvision), (_TIMM_FILES, _timm)):
        if model in files:
            found += rows(model)
    if model == "xception":
        url, published = _CADENE + _LEGACY_XCEPTION, "SHA-256 43020ad28..."
        found.append(Official(model, "timm", _LEGACY_XCEPTION, url, published, 299, HALF))
    return found


def models() -> list[str]:
    """The models that have official files, sorted."""
    return sorted({*_KERAS_FILES, *_TORCHVISION_FILES, *_TIMM_FILES})


def preprocessing(model: str, library: str, variant: str, hints: tuple[str, ...]) -> dict[str, Any] | None:
    """How images are prepared for a library's weights of a model; None if the library has no official ones.

    Args:
      variant: of the model; "tf" are timm's weights named tf_...
      hints: names that may say which of timm's weights they are ("resnet50.a1_in1k.safetensors").
    """
    rows = [row for row in official(model) if row.library == library]
    if library == "timm":
        for hint in hints:
            name = ".".join(pathlib.PurePath(hint).name.split(".")[:2])
            if name in _TIMM_OTHERS:
                return dict(_TIMM_OTHERS[name])
        rows = [row for row in rows if row.file.startswith("tf_") == (variant == "tf")] or rows
    return dict(rows[0].preprocessing) if rows else None


def checked(settings: Any) -> dict[str, Any]:
    """A preprocessing that stood in a file.

    Raises:
      ValueError, TypeError, KeyError: it is none; its deviations must be positive, for example.
    """
    if settings["kind"] not in ("fixed", "raw", "caffe"):
        raise ValueError(f"the preprocessing {settings['kind']!r} is unknown")
    if settings["kind"] != "fixed":
        return {"kind": settings["kind"]}
    mean, std = ([float(number) for number in settings[name]] for name in ("mean", "std"))
    if not mean or len(mean) != len(std) or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError("mean and std of the preprocessing are impossible")
    return {"kind": "fixed", "mean": mean, "std": std}


def recognised(model: str, path: pathlib.Path, sha256: Callable[[], str]) -> str:
    """Whether a file named like an official one has the published hash, as a phrase; "" for other names.

    Args:
      sha256: gives that of the file.
    """
    row = next((row for row in official(model) if row.file == path.name and row.published), None)
    if row is None or not path.is_file():
        return ""
    kind, _, digits = row.published.partition(" ")
    if kind == "MD5":
        with open(path, "rb") as file:
            actual = hashlib.file_digest(file, "md5").hexdigest()
    else:
        actual = sha256()
    if actual.startswith(digits.rstrip(".")):
        return f"official file of {row.library}, {kind} as published"
    return f"named like the official file of {row.library}, but with another {kind}"


def suggestion(model: str) -> str:
    """Where weights of a model can be had, for the message that a file is missing."""
    rows = official(model)
    if not rows:
        return f"there are no official weights of {model}"
    return "official files are " + ", ".join(
        row.weights or f"{row.url} ({row.library}, {row.published})" for row in rows
    )


def describe(settings: dict[str, Any]) -> str:
    """A preprocessing in a few words."""
    if settings["kind"] == "raw":
        return "0..255"
    if settings["kind"] == "caffe":
        return "BGR - mean"
    return "ImageNet mean, std" if settings["mean"] == IMAGENET["mean"] else "-1..1"


def table() -> str:
    """All official files as a table in Markdown, a row per model and library."""
    lines = [
        "| Model | Library | Files | Hashes as published | Pixels | Input |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for model in models():
        rows = official(model)
        for library in dict.fromkeys(row.library for row in rows):
            group = [row for row in rows if row.library == library]
            files = "<br>".join(f"[{row.weights or row.file}]({row.url})" for row in group)
            hashes = "<br>".join(f"{row.published}" or "on the hub" for row in group)
            pixels = "<br>".join(dict.fromkeys(str(row.size) for row in group))
            prepared = "<br>".join(dict.fromkeys(describe(row.preprocessing) for row in group))
            lines.append(f"| {model} | {library} | {files} | {hashes} | {pixels} | {prepared} |")
    return "\n".join(lines)
