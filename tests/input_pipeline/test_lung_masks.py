"""Does every X-ray get its own mask from every layout, and does a mask arrive in a batch where its image is?"""

import collections
import pathlib
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

from input_pipeline import images, loader, masks, prepare, raw
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from input_pipeline.decoding import Decoder
from input_pipeline.example_proto import decode_example
from input_pipeline.records import RecordSource
from input_pipeline.sampling import Sampler
from input_pipeline.studies import lung_masks
from tests.input_pipeline import picture_files as files
from tests.input_pipeline.picture_files import tree
from tests.input_pipeline.record_sets import write_dataset

REAL = pathlib.Path(__file__).parents[3] / "shared/data/lung_masks"
IDS = ["CHNCXR_0001_0", "CHNCXR_0327_1", "MCUCXR_0001_0", "MCUCXR_0104_1"]


def pairs_of(manifest):
    return {example.id: (*example.paths, *example.masks) for example in manifest.examples}


# -------------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("above", ["", "lung_masks/", "masks/shared/"])
@pytest.mark.parametrize("folder", ["cxr", "images", "CXR_png", "img"])
def test_two_folders(tmp_path, above, folder):
    names = [f"{above}{part}/{name}.png" for name in IDS for part in (folder, "masks")]
    found = lung_masks.scan(tree(tmp_path, *names, f"{above}{folder}/Thumbs.db", f"{above}.DS_Store"), {})
    assert pairs_of(found) == {i: (f"{above}{folder}/{i}.png", f"{above}masks/{i}.png") for i in IDS}
    assert [e.labels for e in found.examples] == [(0,), (1,), (0,), (1,)] and not found.problems
    assert found.class_names == ("normal", "tuberculosis") and found.grey and not found.official_split
    assert found.segmentation_classes == ("background", "lung")


def test_montgomery(tmp_path):
    names = [f"MontgomerySet/CXR_png/{i}.png" for i in IDS]
    names += [f"MontgomerySet/ManualMask/{side}Mask/{i}.png" for i in IDS[:3] for side in ("left", "right")]
    names += [f"MontgomerySet/ManualMask/leftMask/{IDS[3]}.png", "MontgomerySet/ClinicalReadings/x.txt"]
    found = lung_masks.scan(tree(tmp_path, *names), {})
    above = "MontgomerySet/ManualMask"
    assert {e.id: e.masks for e in found.examples} == {
        i: (f"{above}/leftMask/{i}.png", f"{above}/rightMask/{i}.png") for i in IDS[:3]
    }
    assert found.problems == [(f"MontgomerySet/CXR_png/{IDS[3]}.png", "has no mask of the right lung")]
    assert found.notes["united_from_two_lungs"] == 3


def test_shenzhen_apart_and_side_by_side(tmp_path):
    apart = [f"ChinaSet_AllFiles/CXR_png/{i}.png" for i in IDS] + [f"mask/mask/{i}_mask.png" for i in IDS]
    found = pairs_of(lung_masks.scan(tree(tmp_path / "a", *apart), {}))
    assert found == {i: (f"ChinaSet_AllFiles/CXR_png/{i}.png", f"mask/mask/{i}_mask.png") for i in IDS}
    beside = [f"all/{i}{end}.png" for i in IDS for end in ("", "_mask")]
    assert pairs_of(lung_masks.scan(tree(tmp_path / "b", *beside), {})).keys() == set(IDS)
    halves = [f"all/{i}{end}.png" for i in IDS for end in ("", "_left_mask", "-mask-right")]
    found = lung_masks.scan(tree(tmp_path / "c", *halves), {})
    assert pairs_of(found)[IDS[0]][1:] == (f"all/{IDS[0]}_left_mask.png", f"all/{IDS[0]}-mask-right.png")


def test_kaggles_merge_twice_in_a_zip(tmp_path):
    """Both namings of masks, X-rays without a mask, some of them again in test/, masks without an X-ray."""
    one = [f"CXR_png/{i}.png" for i in [*IDS, "CHNCXR_0025_0"]] + ["test/CHNCXR_0025_0.png"]
    one += [f"masks/{i}{'_mask' if i.startswith('CHN') else ''}.png" for i in [*IDS, "MCUCXR_0999_1"]]
    roots = ("Lung Segmentation", "data/Lung Segmentation")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        for root in roots:
            for name in one:
                archive.writestr(f"{root}/{name}", "")
    found = lung_masks.scan(raw.open_source(tmp_path / "archive.zip"), {})
    assert {name.split("/")[0] for files_of in pairs_of(found).values() for name in files_of} == {roots[0]}
    assert list(pairs_of(found)) == IDS
    reasons = collections.Counter(reason for _, reason in found.problems)
    assert reasons == {
        "a second copy of an X-ray": 7,  # five in the second tree, and two in test/
        "another mask of the same X-ray": 4,
        "has no mask": 1,
        "a mask without an X-ray": 2,
    }


def test_own_pairs_have_one_class(tmp_path):
    names = [f"{part}/scan{i}.png" for i in range(3) for part in ("images", "masks")]
    found = lung_masks.scan(tree(tmp_path / "a", *names), {})
    assert found.class_names == ("chest",) and {e.labels for e in found.examples} == {(0,)}
    normal = [f"{part}/{IDS[0]}.png" for part in ("images", "masks")]
    assert lung_masks.scan(tree(tmp_path / "b", *normal), {}).class_names == ("chest",)


def test_refusals(tmp_path):
    with pytest.raises(
        UserError, match=r"1 X-rays and 1 masks, but no X-ray with its mask .*more\.zip is still packed"
    ):
        lung_masks.scan(tree(tmp_path / "a", "cxr/1.png", "masks/2.png", "more.zip"), {})
    with pytest.raises(UserError, match="0 X-rays and 0 masks"):
        lung_masks.scan(tree(tmp_path / "b", "notes.txt"), {})
    source = tree(tmp_path / "c", "a/cxr/1.png", "a/masks/1.png", "b/cxr/1.png")
    assert lung_masks.scan(source, {}).problems == [("b/cxr/1.png", "a second copy of an X-ray")]
    (tmp_path / "c" / "b/cxr/1.png").write_bytes(b"another")
    with pytest.raises(UserError, match="a/cxr/1.png and b/cxr/1.png .* have one name but differ: rename"):
        lung_masks.scan(raw.open_source(tmp_path / "c"), {})
    with pytest.raises(UserError, match="no option 'side'"):
        lung_masks.scan(raw.open_source(tmp_path / "c"), {"side": "left"})


# ---------------------------------------------------------------------------------------------------- files of one mask


def disc(height: int = 40, width: int = 30, x: float = 0.5, radius: float = 0.3) -> np.ndarray:
    """A filled ellipse, bool `[height, width]`."""
    rows, columns = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None] + 0.5) / width
    return (rows - 0.5) ** 2 + (columns - x) ** 2 < radius**2


def merged(*encoded: bytes, height: int = 40, width: int = 30) -> np.ndarray:
    data, _ = masks.merge(encoded, height, width, 10**6)
    found = images.decode(data)
    assert found.shape == (height, width, 1) and found.dtype == np.uint8 and found.max() == 1
    return found[..., 0] == 1


def palette(shape: np.ndarray) -> bytes:
    image = Image.fromarray(shape.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0])  # the dark red of VOC masks, whose luma is below the threshold
    return files.save(image, "PNG")


@pytest.mark.parametrize(
    "encode",
    [
        lambda shape: files.save(shape[..., None].astype(np.uint8) * 255, "PNG"),
        lambda shape: files.save(shape[..., None].astype(np.uint8), "PNG"),  # class numbers
        lambda shape: files.save(np.repeat(shape[..., None], 3, axis=2).astype(np.uint8) * 255, "PNG"),
        lambda shape: images.encode_png(shape[..., None].astype(np.uint16) * 65535),
        lambda shape: images.encode_png(shape[..., None].astype(np.uint16)),
        lambda shape: files.save(Image.fromarray(shape), "PNG"),  # one bit
        lambda shape: files.save(shape[..., None].astype(np.uint8) * 255, "BMP"),
        lambda shape: files.save(Image.fromarray(shape.astype(np.uint8) * 255).convert("LA"), "PNG"),
        palette,
    ],
)
def test_kinds_of_mask_files(encode):
    np.testing.assert_array_equal(merged(encode(disc())), disc())


def test_threshold():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(merged(files.save(ramp, "PNG"), height=16, width=16), ramp > 127)
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(merged(images.encode_png(deep[..., None]), height=16, width=16), deep > 32767)


def test_two_lungs_are_united_and_may_be_empty_alone():
    left, right = (disc(x=x, radius=0.2) for x in (0.25, 0.75))
    encoded = [files.save(lung[..., None].astype(np.uint8) * 255, "PNG") for lung in (left, right)]
    np.testing.assert_array_equal(merged(*encoded), left | right)
    nothing = files.save(np.zeros((40, 30, 1), np.uint8), "PNG")
    np.testing.assert_array_equal(merged(nothing, encoded[1]), right)


@pytest.mark.parametrize("encode", [lambda m: m * np.uint8(255), lambda m: m.astype(np.uint8)])
@pytest.mark.parametrize("height,width", [(80, 60), (20, 15), (41, 31)])
def test_another_size(height, width, encode):
    """The mask of a smaller or larger copy is the ellipse at the image's own size but for pixels on its border."""
    data, changes = masks.merge([files.save(encode(disc())[..., None], "PNG")], height, width, 10**6)
    assert changes == "mask resized to the size of its image"
    found, wanted = images.decode(data)[..., 0] == 1, disc(height, width)
    assert found.shape == wanted.shape and 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.95


@pytest.mark.parametrize(
    "encoded,reason",
    [
        (lambda: files.save(np.zeros((40, 30, 1), np.uint8), "PNG"), "its mask is empty"),
        (lambda: files.save(np.full((40, 30, 1), 127, np.uint8), "PNG"), "its mask is empty"),
        (lambda: files.save(np.full((40, 30, 1), 255, np.uint8), "PNG"), "its mask covers the whole image"),
        (lambda: files.png(height=30, width=40), "its mask has another shape: 40 x 30 for 30 x 40 pixels"),
        (lambda: files.png(height=40, width=30)[:-30], "its mask cannot be used: .*(truncated|damaged)"),
        (lambda: b"no image", "its mask cannot be used"),
        (lambda: files.save(np.zeros((1200, 900, 1), np.uint8), "PNG"), "more pixels than the limit"),
    ],
)
def test_unusable_masks(encoded, reason):
    with pytest.raises(images.BadImage, match=reason):
        masks.merge([encoded()], 40, 30, 10**6)


# ------------------------------------------------------------------------------------------------------------- resizing


@pytest.mark.parametrize("method", ["stretch", "crop"])
@pytest.mark.parametrize("size", [6, 12, 30, 47, 80])
def test_the_mask_lies_where_its_image_lies(size, method):
    """A white ellipse is resized as image and as mask: the mask is where the image is more than half white."""
    shape = disc(48, 36, 0.4)
    image = images.resize(shape.astype(np.float32)[..., None], size, method)[..., 0]
    found = masks.resize(shape.astype(np.uint8), size, method)
    assert found.dtype == np.uint8 and set(np.unique(found)) == {0, 1}
    np.testing.assert_array_equal(found == 1, image > 0.5)


def test_resizing_several_classes_takes_the_largest_share():
    labels = np.random.default_rng(0).choice([0, 2, 5], (24, 24), p=[0.4, 0.3, 0.3]).astype(np.uint8)
    found = masks.resize(labels, 8, "stretch")
    for row, column in np.ndindex(8, 8):
        block = labels[3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        counts = np.bincount(block.ravel(), minlength=6)
        assert counts[found[row, column]] == counts.max()
    np.testing.assert_array_equal(masks.resize(labels, 24, "stretch"), labels)
    assert (masks.resize(np.full((9, 7), 3, np.uint8), 5, "crop") == 3).all()
    draw = np.array([[0, 1], [1, 0]], np.uint8)
    assert masks.resize(draw, 1, "stretch") == 0


# ------------------------------------------------------------------------------------------- from raw files to a batch


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """24 pairs of several kinds, one X-ray of each fate; the mask of a pair is an ellipse that its image shows."""
    root = tmp_path_factory.mktemp("lungs")
    content, shapes = {}, {}
    for i in range(24):
        height, width = 40 + i % 5, 48 - i % 7
        shape = disc(height, width, 0.3 + 0.015 * i)
        grey = files.pixels(height, width, 1, seed=i) // 3 + 160 * shape[..., None].astype(np.uint8)
        image = np.repeat(grey, 3, axis=2) if i % 6 == 5 else grey
        name = f"CHNCXR_{i:04d}_{i % 2}"
        content[f"cxr/{name}.png"] = files.save(image, "PNG")
        soft = cv2.GaussianBlur(shape.astype(np.float32) * 255, (0, 0), 0.8)
        content[f"masks/{name}_mask.png"] = files.save(soft.round().astype(np.uint8)[..., None], "PNG")
        shapes[name] = soft.round() > 127
    extra = files.save(files.pixels(40, 48, 1, seed=99), "PNG")
    content["cxr/CHNCXR_0100_0.png"] = extra
    content["cxr/CHNCXR_0101_1.png"] = files.save(files.pixels(40, 48, 1, seed=98), "PNG")
    content["masks/CHNCXR_0101_1_mask.png"] = files.save(np.zeros((40, 48, 1), np.uint8), "PNG")
    content["masks/CHNCXR_0102_1_mask.png"] = files.save(np.zeros((40, 48, 1), np.uint8), "PNG")
    files.write(root / "raw", content)
    report = prepare.prepare("lung_masks", root / "raw", root / "out", workers=1)
    return root, content, shapes, report


def test_prepared(prepared):
    root, content, shapes, report = prepared
    dataset = open_dataset(root / "out")
    assert sorted(dataset.ids) == sorted(shapes) and dataset.channels == 1 and not report["warnings"]
    assert dataset.segmentation_classes == ("background", "lung")
    assert dataset.with_roles(dataset.roles).segmentation_classes == ("background", "lung")
    assert report["skipped"] == {"its mask is empty": {"count": 1, "ids": ["CHNCXR_0101_1"]}}
    assert list(report["left_out"]) == ["a mask without an X-ray", "has no mask"]
    source = RecordSource(root / "out")
    for index, name in enumerate(dataset.ids):
        assert dataset.encoded(index) == content[f"cxr/{name}.png"]
        stored = images.decode(dataset.encoded_segmentation(index))
        np.testing.assert_array_equal(stored[..., 0] == 1, shapes[name])
        assert sorted(decode_example(source[index])) == [
            "group", "id", "image", "image/channels", "image/height", "image/width", "label", "segmentation",
        ]  # fmt: skip


def test_any_number_of_workers_gives_the_same_bytes(prepared, tmp_path):
    root = prepared[0]
    prepare.prepare("lung_masks", root / "raw", tmp_path / "out", workers=2)
    assert files.snapshot(tmp_path / "out") == files.snapshot(root / "out")


def test_the_report_changes_with_a_mask(prepared, tmp_path):
    """The hash of the content covers masks: a mirrored mask is another data set."""
    _, content, _, report = prepared
    name = "masks/CHNCXR_0003_1_mask.png"
    mirrored = files.save(images.decode(content[name])[:, ::-1], "PNG")
    files.write(tmp_path / "raw", {**content, name: mirrored})
    other = prepare.prepare("lung_masks", tmp_path / "raw", tmp_path / "out", workers=1)
    assert other["source"]["content_sha256"] != report["source"]["content_sha256"]


def test_tfds_knows_the_masks(prepared):
    tfds = pytest.importorskip("tensorflow_datasets")
    feature = tfds.builder_from_directory(prepared[0] / "out").info.features["segmentation"]
    assert feature.names == ["background", "lung"] and feature.shape == (None, None, 1)


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("cached", [False, True])
def test_batches(prepared, resize, cached):
    dataset = open_dataset(prepared[0] / "out")
    size = 20
    cache = loader.DecodedCache(dataset, size, None, resize, 2, segmentation=True) if cached else None
    sampler = Sampler("uniform", dataset.labels, np.arange(len(dataset)), 0)
    options = {"resize": resize, "cache": cache, "segmentation": True, "pad_to": 4}
    batches = list(loader.train_batches(dataset, sampler, 5, 0, 6, size, **options))
    batches += list(loader.eval_batches(dataset, np.arange(7), 5, size, **options))
    for batch in batches:
        assert batch["segmentation"].shape == (8, size, size) and batch["segmentation"].dtype == np.uint8
        assert not batch["segmentation"][~batch["valid"]].any()
        for row in np.flatnonzero(batch["valid"]):
            stored = images.decode(dataset.encoded_segmentation(batch["index"][row]))[..., 0]
            wanted = images.resize(stored.astype(np.float32)[..., None], size, resize)[..., 0] > 0.5
            np.testing.assert_array_equal(batch["segmentation"][row] == 1, wanted)
            # The ellipse is bright in the image, so that a shift between the two would show.
            bright = batch["image"][row, ..., 0] > 130
            overlap = 2 * (bright & wanted).sum() / (bright.sum() + wanted.sum())
            assert overlap > 0.9, (batch["id"][row], overlap)


def test_masks_only_when_they_are_asked_for(prepared, tmp_path):
    dataset = open_dataset(prepared[0] / "out")
    assert "segmentation" not in next(loader.eval_batches(dataset, np.arange(3), 3, 8))
    on_device = next(loader.eval_batches(dataset, np.arange(3), 3, 8, cache="device", segmentation=True))
    assert "image" not in on_device and "segmentation" not in on_device
    with pytest.raises(ValueError, match="segmentation=True"):
        cache = loader.DecodedCache(dataset, 8, threads=1)
        loader.eval_batches(dataset, np.arange(3), 3, 8, cache=cache, segmentation=True)
    needed = [loader.DecodedCache.bytes_needed(dataset, 8, 1, segmentation) for segmentation in (False, True)]
    assert needed == [len(dataset) * 64, len(dataset) * 128]
    without = open_dataset(write_dataset(tmp_path / "plain", 3))
    for refused in (
        lambda: without.encoded_segmentation(0),
        lambda: loader.eval_batches(without, np.arange(3), 3, 8, segmentation=True),
        lambda: loader.DecodedCache(without, 8, segmentation=True),
    ):
        with pytest.raises(UserError, match="has no masks: prepare one that has"):
            refused()


@pytest.mark.parametrize(
    "stored,message",
    [
        (images.encode_png(np.full((9, 9, 1), 2, np.uint8)), "holds the class number 2"),
        (images.encode_png(np.zeros((9, 9, 3), np.uint8)), "no 8-bit picture of one channel"),
        (images.encode_png(np.zeros((9, 9, 1), np.uint16)), "no 8-bit picture of one channel"),
        (b"no image", "neither JPEG nor PNG"),
        (None, "has no feature `segmentation`"),
    ],
)
def test_damaged_records(tmp_path, stored, message):
    good = images.encode_png(np.ones((9, 9, 1), np.uint8))
    changes = {i: {"segmentation": stored if i == 1 else good} for i in range(3)}
    directory = write_dataset(tmp_path / "data", 3, changes=changes)
    features = directory / "features.json"
    features.write_text(
        features.read_text().replace('"features": {"image"', '"features": {"segmentation": {}, "image"')
    )
    with pytest.raises(UserError, match="segmentation.labels.txt does not name the classes"):
        open_dataset(directory)
    (directory / "segmentation.labels.txt").write_text("background\nlung\n")
    dataset = open_dataset(directory)
    decoder, row = Decoder(dataset, 5, None, "stretch"), np.zeros((5, 5), np.uint8)
    decoder.read_segmentation(0, row)
    assert row.all()
    with pytest.raises(UserError, match=message):
        decoder.read_segmentation(1, row)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/lung_masks")
def test_the_real_pairs():
    source = raw.open_source(REAL)
    found = lung_masks.scan(source, {})
    assert len(found.examples) == 110 and not found.problems
    assert collections.Counter(e.labels[0] for e in found.examples) == {0: 44, 1: 66}
    for example in found.examples[::37]:
        data = source.read(example.masks[0])
        soft = np.asarray(Image.open(REAL / example.masks[0]).convert("L"))
        assert len(np.unique(soft)) > 2, "the real masks are antialiased"
        hard = images.decode(masks.merge([data], *soft.shape, 10**6)[0])[..., 0]
        np.testing.assert_array_equal(hard == 1, soft > 127)
