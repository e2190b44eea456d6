"""What does an image file say about itself, before a single pixel is decoded?

A header costs kilobytes to read and a decoded image can cost gigabytes (a 140 kB PNG can hold 144 million pixels), so
format, size and everything that the policy in images.py asks about are known before memory is allocated.
"""

import dataclasses
import io
import struct
import warnings
import zlib

from PIL import Image

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
"""The only formats whose parsers are ever started; a .png that is a PostScript or SVG file is not recognised."""

MAX_PIXELS = 64_000_000
"""Default limit of pixels in an image: 192 MB decoded as 8-bit RGB."""

MAX_SCANS = 100
"""Limit of scans in a progressive JPEG; each one costs a pass over the image, and encoders write about ten."""

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


class BadImage(Exception):
    """An image that cannot be used; the message is the reason, without the name of the file."""


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """What the header of an image file declares.

    Attributes:
        format: one of `FORMATS`.
        width, height: in pixels, before any orientation is applied.
        channels: samples of a pixel as stored (palette 1, CMYK 4, alpha counted).
        bit_depth: bits of a sample.
        mode: Pillow's name of the pixel layout ("L", "P", "RGBA", "CMYK", "I;16", ...).
        alpha: whether there is transparency of any kind (alpha channel, transparent colour, transparent palette entry).
        orientation: EXIF orientation 1..8.
        animated: whether there is more than one frame or page.
        trailing: whether bytes follow the end of a PNG.
    """

    format: str
    width: int
    height: int
    channels: int
    bit_depth: int
    mode: str
    alpha: bool
    orientation: int
    animated: bool
    trailing: bool = False


def _orientation(exif: Image.Exif) -> int:
    value = exif.get(_ORIENTATION)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def read_png_chunks(data: bytes) -> dict[bytes, bytes]:
    """Walks through the chunks of a PNG, checks every checksum, and returns the first chunk of each kind but IDAT.

    A key `b"trailing"` holds what follows the end of the PNG, if anything does.

    Raises:
        BadImage: the file is truncated or a checksum does not match.
    """
    chunks: dict[bytes, bytes] = {}
    view, position = memoryview(data), len(_PNG_SIGNATURE)
    while b"IEND" not in chunks:
        if position + 12 > len(data):
            raise BadImage("truncated PNG")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise BadImage("truncated PNG")
        if zlib.crc32(view[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise BadImage("damaged PNG: a checksum does not match")
        if kind == b"IDAT":
            chunks.setdefault(kind, b"")
        else:
            chunks.setdefault(kind, data[position + 8 : end - 4])
        position = end
    if position < len(data):
        chunks[b"trailing"] = data[position:]
    return chunks


def _probe_png(data: bytes) -> ImageInfo:
    chunks = read_png_chunks(data)
    if len(chunks.get(b"IHDR", b"")) != 13 or b"IDAT" not in chunks:
        raise BadImage("damaged PNG: no header or no pixels")
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    if colour not in _PNG_SAMPLES:
        raise BadImage("damaged PNG: unknown colour type")
    exif = Image.Exif()
    if b"eXIf" in chunks:
        try:
            exif.load(b"Exif\0\0" + chunks[b"eXIf"])
        except Exception:  # a malformed EXIF block says nothing about the pixels, and its parser may raise anything
            exif = Image.Exif()
    mode = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}[colour]
    return ImageInfo(
        format="PNG",
        width=width,
        height=height,
        channels=_PNG_SAMPLES[colour],
        bit_depth=depth,
        mode=mode if depth == 8 else f"{mode};{depth}",
        alpha=colour in (4, 6) or b"tRNS" in chunks,
        orientation=_orientation(exif),
        animated=b"acTL" in chunks,
        trailing=b"trailing" in chunks,
    )


def _bits(image: Image.Image) -> int:
    if image.format == "TIFF":
        declared = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))
        return max(declared) if isinstance(declared, tuple) else int(declared)
    if image.mode.startswith("I;16"):
        return 16
    return {"1": 1, "I": 32, "F": 32}.get(image.mode, 8)


def _probe_with_pillow(data: bytes) -> ImageInfo:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            # A JPEG that carries further pictures behind the first (MPO) is an ordinary JPEG to every other reader.
            kind = "JPEG" if image.format == "MPO" else image.format
            if kind == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0 and _bits(image) > 8:
                raise BadImage("16-bit TIFF with inverted grey levels: convert it to PNG first")
            try:
                orientation = 1 if kind == "TIFF" else _orientation(image.getexif())  # Pillow turns TIFF by itself
            except Exception:  # see _probe_png
                orientation = 1
            return ImageInfo(
                format=kind,
                width=image.width,
                height=image.height,
                channels=len(image.getbands()),
                bit_depth=_bits(image),
                mode=image.mode,
                alpha="transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"),
                orientation=orientation,
                animated=kind != "JPEG" and bool(getattr(image, "is_animated", False)),
            )
    except (BadImage, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise BadImage("more pixels than the limit") from None
    except Image.UnidentifiedImageError:
        raise BadImage("not an image in JPEG, PNG, BMP, TIFF, WebP or GIF format") from None
    except Exception as error:  # parsers of foreign bytes may raise anything; whatever it is, the file is unusable
        raise BadImage("truncated or damaged header") from error


def probe(data: bytes) -> ImageInfo:
    """Reads the header of an encoded image; decodes no pixel.

    Raises:
        BadImage: empty or truncated file, unknown format, damaged header.
    """
    if not data:
        raise BadImage("empty file")
    if data.startswith(_PNG_SIGNATURE):
        info = _probe_png(data)
    else:
        info = _probe_with_pillow(data)
    if info.width < 1 or info.height < 1:
        raise BadImage("no pixels: a side of length zero")
    if info.format == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
        raise BadImage(f"more than {MAX_SCANS} scans in a progressive JPEG")
    return info
