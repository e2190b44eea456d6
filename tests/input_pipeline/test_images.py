"""The written policy of images.py, format by format, against Pillow; and every kind of unusable image."""

import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from input_pipeline import images
from input_pipeline.images import BadImage, admit, decode, probe, resize
from tests.input_pipeline import picture_files as files


def deep(channels: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 65536, (11, 13, channels), dtype=np.uint16)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_sound_images_keep_their_bytes(kind, channels):
    data = files.save(files.pixels(channels=channels), kind)
    found = admit(data)
    assert found.data is data and found.repaired == "" and found.format == kind
    assert (found.height, found.width, found.channels, found.bit_depth) == (23, 31, channels, 8)
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")).reshape(23, 31, -1)
    np.testing.assert_allclose(found.image.astype(int), reference, atol=2 if kind == "JPEG" else 0)
    np.testing.assert_array_equal(found.image, decode(data))


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_png_stays_sixteen_bit(channels):
    image = deep(channels)
    data = files.raw_png(13, 11, 16, 0 if channels == 1 else 2, files.png_rows(image))
    found = admit(data)
    assert found.data is data and found.bit_depth == 16 and found.image.dtype == np.uint16
    np.testing.assert_array_equal(found.image, image)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = files.save(files.pixels(), kind, exif=exif)
    found = admit(data)
    assert f"EXIF orientation {orientation} applied" in found.repaired and found.format == "PNG"
    reference = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_allclose(found.image.astype(int), reference, atol=2 if kind == "JPEG" else 0)
    np.testing.assert_array_equal(decode(found.data), found.image)
    assert admit(found.data).repaired == ""


def test_malformed_exif_is_ignored():
    data = files.save(files.pixels(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert admit(data).data is data


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_composited_over_black(mode):
    channels = len(mode)
    image = files.pixels(channels=channels, seed=4)
    image[..., -1] = np.linspace(0, 255, image[..., -1].size).reshape(image.shape[:2])
    found = admit(files.save(Image.fromarray(image, mode) if mode == "LA" else image, "PNG"))
    exact = image[..., :-1] * (image[..., -1:] / 255.0)
    assert found.channels == channels - 1 and "transparency" in found.repaired
    assert np.abs(found.image - exact).max() <= 0.5 + 1e-9


def test_opaque_alpha_just_disappears():
    image = np.dstack([files.pixels(), np.full((23, 31), 255, np.uint8)])
    np.testing.assert_array_equal(admit(files.save(image, "PNG")).image, image[..., :3])


@pytest.mark.parametrize("colour,channels", [(4, 2), (6, 4)])
def test_sixteen_bit_alpha(colour, channels):
    image = deep(channels)
    found = admit(files.raw_png(13, 11, 16, colour, files.png_rows(image)))
    exact = image[..., :-1] * (image[..., -1:] / 65535.0)
    assert found.bit_depth == 16 and found.image.shape == (11, 13, channels - 1)
    assert np.abs(found.image - exact).max() <= 0.5 + 1e-6


def test_transparent_colour_and_palette():
    data = files.save(Image.fromarray(np.full((4, 5, 3), 9, np.uint8)), "PNG", transparency=(9, 9, 9))
    assert admit(data).image.max() == 0
    with pytest.raises(BadImage, match="transparent colour"):
        rows = files.png_rows(deep(3))
        admit(files.raw_png(13, 11, 16, 2, rows, files.chunk(b"tRNS", bytes(6))))
    palette = Image.fromarray(files.pixels(seed=8)).quantize(17)
    found = admit(files.save(palette, "PNG"))
    assert "palette" in found.repaired and found.channels == 3
    np.testing.assert_array_equal(found.image, np.asarray(palette.convert("RGB")))
    transparent = admit(files.save(palette, "PNG", transparency=0))
    index = np.asarray(palette)
    assert "transparency" in transparent.repaired and transparent.image[index == 0].max() == 0
    np.testing.assert_array_equal(transparent.image[index != 0], found.image[index != 0])


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bit_grey_is_stretched(depth):
    values = np.arange(8).reshape(1, 8) % 2**depth
    packed = np.packbits(((values[..., None] >> np.arange(depth)[::-1]) & 1).reshape(1, -1), axis=1)
    found = admit(files.raw_png(8, 1, depth, 0, b"\0" + packed.tobytes()))
    np.testing.assert_array_equal(found.image[..., 0], values * (255 // (2**depth - 1)))
    assert f"{depth}-bit grey" in found.repaired and found.bit_depth == 8


def test_cmyk_becomes_rgb():
    image = Image.fromarray(files.pixels()).convert("CMYK")
    for kind in ("JPEG", "TIFF"):
        data = files.save(image, kind)
        found = admit(data)
        assert "CMYK" in found.repaired and found.format == "PNG"
        np.testing.assert_array_equal(found.image, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind,options", [("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("GIF", {})])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_formats_become_png(kind, options, channels):
    data = files.save(files.pixels(channels=channels), kind, **options)
    found = admit(data)
    assert found.format == "PNG" and f"{kind} stored as PNG" in found.repaired
    reference = Image.open(io.BytesIO(data))
    reference = np.asarray(reference.convert("L" if reference.mode == "L" else "RGB")).reshape(23, 31, -1)
    np.testing.assert_array_equal(found.image, reference)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (9, 7), (60 * i, 10, 200)) for i in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    found = admit(files.save(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert "first frame" in found.repaired
    np.testing.assert_array_equal(found.image, np.asarray(frames[0]))


def test_sixteen_bit_tiff_and_refused_samples():
    image = deep(1)[..., 0]
    found = admit(files.save(Image.fromarray(image), "TIFF"))
    assert found.bit_depth == 16
    np.testing.assert_array_equal(found.image[..., 0], image)
    with pytest.raises(BadImage, match="32-bit"):
        admit(files.save(Image.fromarray(image.astype(np.float32)), "TIFF"))
    colour = cv2.imencode(".tif", deep(3))[1].tobytes()
    with pytest.raises(BadImage, match="16-bit colour TIFF"):
        admit(colour)


def test_one_pixel():
    found = admit(files.png(height=1, width=1))
    assert found.image.shape == (1, 1, 3)
    assert resize(found.image, 5).shape == (5, 5, 3)


JPEG, PNG = files.jpeg(), files.png()
UNUSABLE = {
    "empty": (b"", "empty file"),
    "text": (b"not a picture", "not an image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "not an image"),
    "JPEG cut in its header": (JPEG[:100], "damaged|not an image"),
    "JPEG cut in its pixels": (JPEG[: len(JPEG) * 2 // 3], "truncated or damaged JPEG"),
    "JPEG without its last two bytes": (JPEG[:-2], "truncated or damaged JPEG"),
    "PNG cut in its header": (PNG[:20], "truncated PNG"),
    "PNG cut in its pixels": (PNG[: len(PNG) // 2], "truncated PNG"),
    "PNG without its end": (PNG[:-12], "truncated PNG"),
    "PNG of too few rows": (files.raw_png(31, 23, 8, 2, bytes(94 * 20)), "damaged PNG"),
    "PNG of an unknown colour type": (files.raw_png(3, 3, 8, 5, bytes(90)), "colour type"),
    "PNG without pixels": (b"\x89PNG\r\n\x1a\n" + files.chunk(b"IEND", b""), "no header or no pixels"),
    "GIF cut": (files.save(files.pixels(), "GIF")[:900], "truncated or damaged"),
    "PNG of width 0": (files.raw_png(0, 3, 8, 2, b"\0\0\0"), "length zero"),
    "header of 60000 squared": (files.raw_png(60000, 60000, 8, 2, b"\0"), "more pixels than the limit"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_images_say_why(name):
    data, reason = UNUSABLE[name]
    with pytest.raises(BadImage, match=reason):
        admit(data)


def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    """140 kB that decode to 432 MB."""
    side = 12000
    packed = zlib.compressobj(9)
    rows = b"".join(packed.compress(bytes(3 * side + 1)) for _ in range(side)) + packed.flush()
    assert len(rows) < 1_000_000
    whole = files.raw_png(side, side, 8, 2, b"")
    empty = files.chunk(b"IDAT", zlib.compress(b"", 9))
    bomb = whole.replace(empty, files.chunk(b"IDAT", rows))
    monkeypatch.setattr(images, "decode", None)
    with pytest.raises(BadImage, match="12000 x 12000"):
        admit(bomb)


def test_any_flipped_bit_of_a_png_is_noticed():
    rng = np.random.default_rng(0)
    for position in rng.integers(8, len(PNG), 60):
        damaged = bytearray(PNG)
        damaged[position] ^= 1 << rng.integers(8)
        with pytest.raises(BadImage):
            admit(bytes(damaged))


def test_bytes_behind_the_end():
    assert "behind the end" in admit(PNG + b"tail").repaired
    assert admit(JPEG + b"tail").repaired == ""


def test_probe_reads_no_pixels():
    info = probe(files.raw_png(60000, 50000, 16, 6, b"\0", files.chunk(b"acTL", bytes(8))))
    assert (info.width, info.height, info.bit_depth, info.channels) == (60000, 50000, 16, 4)
    assert info.alpha and info.animated and info.orientation == 1


def test_too_many_scans():
    with pytest.raises(BadImage, match="scans"):
        probe(JPEG[:-2] + b"\xff\xda\0\x0c" * 200 + JPEG[-2:])


def test_decode_converts_channels():
    colour, grey = files.pixels(), files.pixels(channels=1)
    luma = np.asarray(Image.fromarray(colour).convert("L")).astype(int)
    for kind, tolerance in (("PNG", 1), ("JPEG", 3)):
        data = files.save(colour, kind, **({"quality": 95} if kind == "JPEG" else {}))
        np.testing.assert_allclose(decode(data, 1)[..., 0].astype(int), luma, atol=tolerance)
        repeated = decode(files.save(grey, kind), 3)
        assert (repeated == repeated[..., :1]).all() and repeated.shape == (23, 31, 3)
    four = images.encode_png(files.pixels(channels=4))
    np.testing.assert_array_equal(decode(four), files.pixels(channels=4))
    np.testing.assert_array_equal(decode(four, 3), files.pixels(channels=4)[..., :3])
    for data, channels in ((PNG, 4), (JPEG, 4), (b"GIF89a", None)):
        with pytest.raises(BadImage):
            decode(data, channels)


def test_merge_channels():
    planes = [files.pixels(channels=1, seed=i) for i in range(4)]
    parts = [admit(files.save(plane, "PNG")) for plane in planes]
    names = ("red", "green", "blue", "yellow")
    merged = images.merge_channels(parts, names)
    np.testing.assert_array_equal(decode(merged.data), np.dstack(planes))
    assert images.merge_channels(parts[:1], names[:1]) is parts[0]
    as_colour = np.zeros((23, 31, 3), np.uint8)
    as_colour[..., 1] = planes[1][..., 0]
    coloured = admit(files.save(as_colour, "PNG"))
    repeated = admit(files.save(np.repeat(planes[2], 3, axis=2), "PNG"))
    merged = images.merge_channels([parts[0], coloured, repeated], names[:3])
    np.testing.assert_array_equal(merged.image, np.dstack(planes[:3]))
    with pytest.raises(BadImage, match="the green file is a colour image"):
        images.merge_channels([parts[0], admit(PNG), parts[2]], names[:3])
    with pytest.raises(BadImage, match="blue 8 x 7"):
        images.merge_channels([*parts[:2], admit(files.png(height=7, width=8, channels=1))], names[:3])


def test_resize_shrinks_by_area_and_grows_linearly():
    image = files.pixels(24, 32)
    blocks = image.reshape(8, 3, 8, 4, 3).mean((1, 3))
    np.testing.assert_allclose(resize(image, 8).astype(float), blocks, atol=0.51)
    cropped = resize(image, 24, "crop")
    np.testing.assert_array_equal(cropped, image[:, 4:28])
    grown = resize(image.astype(np.float32), 64)
    np.testing.assert_allclose(grown, cv2.resize(image.astype(np.float32), (64, 64)), atol=1e-3)
    mixed = resize(image, 28)  # one side grows, the other shrinks
    assert mixed.shape == (28, 28, 3) and abs(mixed.mean() - image.mean()) < 2
    assert resize(deep(1), 5).dtype == np.uint16 and resize(deep(1), 5).shape == (5, 5, 1)
    with pytest.raises(ValueError, match="squash"):
        resize(image, 8, "squash")
