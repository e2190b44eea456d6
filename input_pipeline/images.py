"""How does an encoded image become an array, and which images are stored as they came?

Only two formats are ever stored, and each has one decoder, since decoders disagree: JPEG (simplejpeg, that is
libjpeg-turbo, with accurate transforms) and PNG (OpenCV). The written policy of `admit`:

* A sound JPEG (8-bit grey or colour) and a sound PNG (8- or 16-bit, grey or RGB) are kept byte for byte.
* Everything below is decoded once and stored as PNG, without further loss, and listed as repaired:
  - EXIF orientation 2..8: the pixels are turned upright (no reader then has to know about the tag).
  - Alpha, a transparent colour or a transparent palette entry: composited over black, `round(colour * alpha)`; an alpha
    channel that is opaque everywhere thereby just disappears.
  - Palette: its RGB colours. CMYK: RGB by Pillow's conversion. 1-, 2- and 4-bit grey: stretched to 0..255.
  - Animation or several pages: the first frame.
  - BMP, TIFF, WebP, GIF, and a PNG with bytes behind its end: the same pixels as PNG.
* 16-bit samples stay 16-bit (`uint16`, full range, never rescaled); colour profiles and gamma are ignored.
* Refused, with the reason: truncated or damaged files (a JPEG with any decoder warning), more pixels than the limit,
  32-bit or floating-point samples, 16-bit colour TIFF, 16-bit PNG with a transparent colour, unknown formats.

Size and format are read before anything is decoded (image_headers.py). One flipped bit inside the entropy-coded data
of a JPEG usually decodes without a warning, so from `prepare` on the record checksums guard every byte.
"""

import dataclasses
import io
import warnings
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from input_pipeline.image_headers import FORMATS, MAX_PIXELS, BadImage, ImageInfo, probe

__all__ = ["MAX_PIXELS", "Admitted", "BadImage", "ImageInfo", "admit", "decode", "encode_png", "merge_channels"]
__all__ += ["probe", "resize"]


@dataclasses.dataclass(frozen=True)
class Admitted:
    """An image fit for storing.

    Attributes:
        data: encoded bytes, the original ones unless `repaired`.
        format: "JPEG" or "PNG".
        height, width: in pixels, after orientation.
        channels: 1 or 3 (4 only for merged single-channel files).
        bit_depth: 8 or 16.
        repaired: what was changed, or an empty string.
        image: the decoded pixels, uint8 or uint16 `[H, W, C]`.
    """

    data: bytes
    format: str
    height: int
    width: int
    channels: int
    bit_depth: int
    repaired: str
    image: np.ndarray


def decode(data: bytes, channels: int | None = None) -> np.ndarray:
    """Decodes a stored JPEG or PNG.

    Args:
        data: encoded bytes.
        channels: None for what is stored; 1 takes the luma of a colour image (ITU-R BT.601), 3 repeats a grey one; the
            fourth channel of a four-channel PNG is left out when fewer are asked for.

    Returns:
        uint8 or uint16 `[H, W, C]` in RGB order, as a fresh array.

    Raises:
        BadImage: damaged data, another format, or channels that cannot be made from what is stored.
    """
    if data[:2] == b"\xff\xd8":
        try:
            if channels is None:
                channels = 1 if simplejpeg.decode_jpeg_header(data)[2] == "Gray" else 3
            if channels in (1, 3):
                return simplejpeg.decode_jpeg(data, "GRAY" if channels == 1 else "RGB")
        except ValueError as error:
            raise BadImage(f"truncated or damaged JPEG: {error}") from error
        raise BadImage(f"a JPEG has no {channels} channels")
    if data[:4] != b"\x89PNG":
        raise BadImage("neither JPEG nor PNG")
    # IMREAD_UNCHANGED also ignores EXIF orientation, as the policy asks.
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # more pixels than OpenCV ever decodes, whatever it was prepared with
        raise BadImage("a PNG that declares too many pixels") from error
    if image is None:
        raise BadImage("damaged PNG: its pixels cannot be unpacked")
    return _with_channels(image, channels)


def _with_channels(image: np.ndarray, channels: int | None) -> np.ndarray:
    """OpenCV's `[H, W]`, BGR or BGRA array as `[H, W, C]` in RGB order."""
    stored = 1 if image.ndim == 2 else image.shape[2]
    channels = channels or stored
    if stored == 1 and channels == 1:
        return image[..., None]
    conversion = {
        (1, 3): cv2.COLOR_GRAY2RGB,
        (3, 1): cv2.COLOR_BGR2GRAY,
        (3, 3): cv2.COLOR_BGR2RGB,
        (4, 1): cv2.COLOR_BGRA2GRAY,
        (4, 3): cv2.COLOR_BGRA2RGB,
        (4, 4): cv2.COLOR_BGRA2RGBA,
    }.get((stored, channels))
    if conversion is None:
        raise BadImage(f"it has {stored} channels where {channels} are wanted")
    converted = cv2.cvtColor(image, conversion)
    return converted[..., None] if channels == 1 else converted


def encode_png(image: np.ndarray) -> bytes:
    """PNG of uint8 or uint16 `[H, W, C]` with 1, 3 (RGB) or 4 channels; equal pixels give equal bytes."""
    if image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    elif image.shape[2] == 4:
        image = cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA)
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(image))
    if not done:
        raise BadImage("cannot be encoded as PNG")
    return encoded.tobytes()


def admit(data: bytes, max_pixels: int = MAX_PIXELS) -> Admitted:
    """Applies the policy of this module to one encoded image, decoding it once.

    Raises:
        BadImage: the reason why the image cannot be used.
    """
    info = probe(data)
    if info.width * info.height > max_pixels:
        raise BadImage(f"more pixels than the limit of {max_pixels / 1e6:g} million: {info.width} x {info.height}")
    changes = _changes(info)
    image = _pixels(data, info, changes)
    height, width, channels = image.shape
    if changes:
        data, kind = encode_png(image), "PNG"
    else:
        kind = info.format
    return Admitted(data, kind, height, width, channels, image.itemsize * 8, "; ".join(changes), image)


def _changes(info: ImageInfo) -> list[str]:
    """What has to be changed before the image is stored; an empty list when it is kept as it is."""
    changes = []
    if info.format not in ("JPEG", "PNG"):
        changes.append(f"{info.format} stored as PNG")
    if info.animated:
        changes.append("animation or several pages: first frame kept")
    if info.orientation != 1:
        changes.append(f"EXIF orientation {info.orientation} applied")
    if info.alpha:
        changes.append("transparency composited over black")
    if info.mode[0] == "P":
        changes.append("palette expanded to RGB")
    if info.mode == "CMYK":
        changes.append("CMYK converted to RGB")
    if info.format == "PNG":
        if info.bit_depth < 8 and info.mode[0] != "P":
            changes.append(f"{info.bit_depth}-bit grey stretched to 8 bits")
        if info.trailing:
            changes.append("bytes behind the end of the PNG removed")
    return changes


def _pixels(data: bytes, info: ImageInfo, changes: Sequence[str]) -> np.ndarray:
    """The decoded image `[H, W, C]`, upright, with 1 or 3 channels."""
    if info.bit_depth > 16 or info.mode in ("I", "F"):
        raise BadImage(f"{info.bit_depth}-bit or floating-point samples: only 8 and 16 bits are supported")
    if info.format == "TIFF" and info.bit_depth > 8 and not info.mode.startswith("I;16"):
        raise BadImage("16-bit colour TIFF: convert it to PNG first")
    if not changes or (info.format == "JPEG" and info.mode != "CMYK"):
        image = decode(data)
        if image.shape[:2] != (info.height, info.width):
            raise BadImage("damaged: its header declares another size than its pixels have")
        return np.ascontiguousarray(_upright(image, info.orientation))
    if info.format == "PNG" and info.bit_depth == 16:
        return np.ascontiguousarray(_upright(_deep_png(data, info), info.orientation))
    return _pixels_with_pillow(data)


def _deep_png(data: bytes, info: ImageInfo) -> np.ndarray:
    """A 16-bit PNG, which Pillow would reduce to 8 bits."""
    if info.alpha and not info.mode.startswith(("LA", "RGBA")):
        raise BadImage("16-bit PNG with a transparent colour: remove the transparency first")
    image = decode(data)
    if image.shape[2] == 4:
        colour, alpha = image[..., :3].astype(np.uint64), image[..., 3:].astype(np.uint64)
        image = ((colour * alpha + 32767) // 65535).astype(np.uint16)
    return image[..., :1] if info.mode[0] == "L" else image


def _pixels_with_pillow(data: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                return np.asarray(image).astype(np.uint16)[..., None]
            grey = image.mode in ("1", "L", "LA", "La")
            if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
                visible = np.asarray(image.convert("RGBA")).astype(np.uint32)
                pixels = ((visible[..., :3] * visible[..., 3:] + 127) // 255).astype(np.uint8)
                return np.ascontiguousarray(pixels[..., :1] if grey else pixels)
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
            return pixels[..., None].copy() if grey else pixels.copy()
    except Exception as error:  # decoders of foreign bytes may raise anything; whatever it is, the file is unusable
        raise BadImage(f"truncated or damaged: {str(error) or type(error).__name__}") from error


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes EXIF orientation 1..8 (CIPA DC-008, tag 0x0112)."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def merge_channels(parts: Sequence[Admitted], names: Sequence[str]) -> Admitted:
    """Makes one image from single-channel files, in the order given; one part stays as it is.

    A part with three channels is accepted when they are equal, or when only one of them holds anything (a grey
    picture saved as colour).

    Args:
        parts: 1, 3 or 4 admitted images of one size and depth.
        names: what each part is called in messages ("red").

    Raises:
        BadImage: the parts differ in size or depth, or a part shows more than one channel.
    """
    planes = [_single_plane(part.image, name) for part, name in zip(parts, names, strict=True)]
    if len({(plane.shape, plane.dtype) for plane in planes}) > 1:
        sizes = ", ".join(f"{name} {p.width} x {p.height}" for name, p in zip(names, parts, strict=True))
        raise BadImage(f"its channels differ in size or depth: {sizes}")
    changes = [f"{name}: {p.repaired}" for name, p in zip(names, parts, strict=True) if p.repaired]
    if len(parts) == 1 and parts[0].channels == 1:
        return parts[0]
    image = np.stack(planes, axis=-1)
    height, width, channels = image.shape
    return Admitted(encode_png(image), "PNG", height, width, channels, image.itemsize * 8, "; ".join(changes), image)


def _single_plane(image: np.ndarray, name: str) -> np.ndarray:
    if image.shape[2] == 1:
        return image[..., 0]
    filled = [c for c in range(image.shape[2]) if image[..., c].any()]
    if len(filled) <= 1:
        return image[..., filled[0] if filled else 0]
    if all(np.array_equal(image[..., 0], image[..., c]) for c in range(1, image.shape[2])):
        return image[..., 0]
    raise BadImage(f"the {name} file is a colour image, not a single channel")


def resize(image: np.ndarray, size: int, method: str = "stretch") -> np.ndarray:
    """Resizes to a square: area averaging along a side that shrinks, linear interpolation along one that grows.

    Args:
        image: uint8, uint16 or float32 `[H, W, C]`, at most 4 channels.
        size: side of the result in pixels.
        method: "stretch" changes the aspect ratio; "crop" takes the central square first.

    Returns:
        `[size, size, C]` of the same type.

    Raises:
        ValueError: for another method.
    """
    if method not in ("stretch", "crop"):
        raise ValueError(f"unknown resize method {method!r}: use 'stretch' or 'crop'")
    height, width, channels = image.shape
    if method == "crop" and height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image, height, width = image[top : top + side, left : left + side], side, side
    if height > size or width > size:
        image = cv2.resize(image, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
    if height < size or width < size:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return image.reshape(size, size, channels)
