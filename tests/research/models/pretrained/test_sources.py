"""Is the table of official files whole, and is preprocessing told apart where it differs?"""

import pathlib
import re

import pytest

from input_pipeline.cli import UserError
from research.models import registry
from research.models.pretrained import plan, sources


def test_a_model_with_official_files_has_those_of_every_library():
    for name in registry.available():
        entry, _ = registry.find(name)
        libraries = {row.library for row in sources.official(name)}
        assert libraries == set(entry.names) or not libraries, name
    assert set(sources.models()) <= set(registry.available())


def test_rows():
    for model in sources.models():
        for row in sources.official(model):
            assert row.url.startswith("https://") and row.preprocessing["kind"] in ("fixed", "raw", "caffe")
            if row.library == "keras":
                assert re.fullmatch(r"MD5 [0-9a-f]{32}", row.published) and row.url.endswith(row.file)
            if row.library == "torchvision":
                digits = re.fullmatch(r"SHA-256 ([0-9a-f]{8})\.\.\.", row.published)[1]
                assert row.file.endswith(f"-{digits}.pth")
            if row.weights:
                found, variant = registry.find(row.file)
                assert found.name == model and variant == ("tf" if row.file.startswith("tf_") else "")


@pytest.mark.parametrize(
    ("model", "library", "variant", "hint", "expected"),
    [
        ("resnet50", "keras", "keras", "x.h5", sources.CAFFE),
        ("vgg16", "keras", "keras", "x.h5", sources.CAFFE),
        ("densenet121", "keras", "keras", "x.h5", sources.IMAGENET),
        ("xception", "keras", "keras", "x.h5", sources.HALF),
        ("efficientnet_b3", "keras", "keras", "x.h5", sources.RAW),
        ("resnet50", "timm", "timm", "resnet50.a1_in1k.safetensors", sources.IMAGENET),
        ("resnet34", "timm", "timm", "/cache/resnet34.ra4_e3600_r224_in1k.safetensors", sources.HALF),
        ("efficientnet_b0", "timm", "tf", "tf_efficientnet_b0.ap_in1k", sources.HALF),
        ("inception_v3", "torchvision", "torchvision", "x.pth", sources.HALF),
        ("inception_resnet_v2", "timm", "timm", "x.pth", sources.IMAGENET),
        ("grid_cnn", "timm", "", "x.pth", None),
    ],
)
def test_preprocessing(model, library, variant, hint, expected):
    assert sources.preprocessing(model, library, variant, (hint,)) == expected


def test_official_files_are_recognised(tmp_path, monkeypatch):
    path = tmp_path / "resnet18-f37072fd.pth"
    path.write_bytes(b"x")
    assert sources.recognised("resnet18", path, lambda: "f37072fd" + 56 * "0").endswith("SHA-256 as published")
    assert sources.recognised("resnet18", path, lambda: 64 * "0").endswith("but with another SHA-256")
    assert sources.recognised("resnet34", path, lambda: 64 * "0") == ""
    path = tmp_path / "xception_weights_tf_dim_ordering_tf_kernels.h5"
    path.write_bytes(b"x")
    assert sources.recognised("xception", path, lambda: "") == (
        "named like the official file of keras, but with another MD5"
    )


def test_a_missing_file_says_where_to_get_one(tmp_path):
    with pytest.raises(UserError) as error:
        plan("resnet50", "", str(tmp_path / "resnet50.h5"))
    message = str(error.value)
    assert (
        "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5 (keras, MD5 4d473c1dd8becc155b73f8504c6f6626)" in message
    )
    assert "resnet50-11ad3fa6.pth (torchvision, SHA-256 11ad3fa6...)" in message
    assert "hf://timm/resnet50.a1_in1k" in message and "\n" not in message


def test_the_readme_has_the_table():
    readme = pathlib.Path(__file__).parents[4] / "README.md"
    assert sources.table() in readme.read_text(encoding="utf-8")
