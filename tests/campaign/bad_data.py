"""Bad raw data for `input_pipeline.prepare` and bad prepared data for training: which, and what must happen?

The numbers are those of the list of hostile inputs that the campaign set out from: 1 to 26 prepare, 27 to 38 train.
"""

import json
import os
import pathlib
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from input_pipeline import records
from input_pipeline.example_proto import decode_example, encode_example
from tests.campaign.bad_cases import Case, Place
from tests.input_pipeline import picture_files as pictures
from tests.running import ROOT

CASES: list[Case] = []
PREPARE, TRAIN = "input_pipeline.prepare", "research.main"
HEADER_ONLY = pictures.raw_png(60_000, 60_000, 8, 2, b"")
PNG = pictures.png(77)
SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"


def prepare(place: Place, study: str = "folder", *more: str, source: str = "raw") -> list[str]:
    """Arguments that prepare what the case has written."""
    given = place.given / source
    return [f"--study={study}", f"--source={given}", f"--out={place.out}", "--workers=1", "--max_bad=0.3", *more]


def one_file(name: str, file: str, data: bytes | Callable[[pathlib.Path], None], kept: bool | None = False) -> None:
    """A case of 24 sound images and a bad one, which must be skipped and listed, or kept; None: either."""

    def build(place: Place) -> list[str]:
        pictures.class_folders(place.given / "raw", 12)
        path = place.given / "raw" / "cat" / file
        if callable(data):
            data(path)
        else:
            path.write_bytes(data)
        return prepare(place)

    def check(place: Place) -> None:
        report = json.loads((place.out / "ingest_report.json").read_text())
        ids = json.loads((place.out / "splits.json").read_text())["examples"]
        stored = any(pathlib.Path(file).stem in name for name in ids)
        lists = json.dumps([report[key] for key in ("skipped", "left_out", "repaired")], ensure_ascii=False)
        listed = json.dumps(file, ensure_ascii=False)[1:-1] in lists or "not UTF-8" in lists
        assert kept is None or stored == kept, f"{file} was {'kept' if stored else 'skipped'}"
        assert stored or listed or callable(data), f"{file} was left out without a word: {report['counts']}"
        assert report["counts"]["stored"] == 24 + stored, report["counts"]

    CASES.append(Case(name, PREPARE, build, refused=False, check=check))


def case(name: str, module: str = PREPARE, **options):
    """Registers a function that writes the input and gives the arguments."""

    def decorate(build):
        CASES.append(Case(name, module, build, **options))
        return build

    return decorate


def picture(mode: str, kind: str, **options) -> bytes:
    """A picture of another colour mode."""
    return pictures.save(Image.fromarray(pictures.pixels(seed=5)).convert(mode), kind, **options)


def flipped(data: bytes, place: int) -> bytes:
    """One bit flipped."""
    changed = bytearray(data)
    changed[place] ^= 4
    return bytes(changed)


def animated() -> bytes:
    """A PNG with an animation of three frames."""
    frames = [Image.fromarray(pictures.pixels(seed=s)) for s in (31, 32, 33)]
    return pictures.save(frames[0], "PNG", save_all=True, append_images=frames[1:])


def sixteen() -> bytes:
    """A PNG of 16 bits."""
    image = np.random.default_rng(0).integers(0, 65_536, (9, 11, 3), np.uint16)
    return pictures.raw_png(11, 9, 16, 2, pictures.png_rows(image))


def rotated() -> bytes:
    """A JPEG with EXIF orientation 6."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return pictures.jpeg(78, exif=exif.tobytes())


def bomb() -> bytes:
    """About 140 kB that are 432 MB of pixels."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + 3 * 12_000)
    body = b"".join(compressor.compress(row) for _ in range(12_000)) + compressor.flush()
    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(pictures.chunk(*part) for part in parts)


one_file("1 empty file", "bad.jpg", b"")
one_file("2 truncated JPEG", "bad.jpg", pictures.jpeg(70)[:300])
one_file("3 truncated PNG", "bad.png", PNG[:300])
one_file("4 JPEG with a flipped bit", "bad.jpg", flipped(pictures.jpeg(71), 500), kept=None)
one_file("5 PNG with a wrong checksum", "bad.png", flipped(PNG, len(PNG) // 2))
one_file("6 PNG of 60,000 x 60,000 pixels, header only", "bad.png", HEADER_ONLY)
one_file("7 PNG of 140 kB with 432 MB of pixels", "bad.png", bomb(), kept=None)
one_file("8 EPS named .png", "bad.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(EXECUTED) print\n")
one_file("8 SVG named .png", "bad.png", b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>')
one_file("8 GIF named .png", "bad.png", picture("P", "GIF"), kept=True)
one_file("9 animated PNG", "bad.png", animated(), kept=True)
one_file("10 CMYK", "bad.jpg", picture("CMYK", "JPEG"), kept=True)
one_file("11 16 bits among 8", "bad.png", sixteen(), kept=None)
one_file("12 palette with alpha", "bad.png", picture("P", "PNG", transparency=0), kept=True)
one_file("13 EXIF orientation 6", "bad.jpg", rotated(), kept=True)
one_file("14 one pixel", "bad.png", pictures.png(79, 1, 1), kept=True)
one_file("17 link out of the source", "bad.png", lambda path: path.symlink_to("/etc/passwd"))
one_file("17 link to a folder outside", "bad", lambda path: path.symlink_to("/etc"))
one_file("18 FIFO", "bad.png", os.mkfifo)
one_file("19 name with a newline", "bad\nname.png", PNG, kept=None)
one_file("19 name of 240 bytes", "bad" + "x" * 230 + ".png", PNG, kept=None)
one_file("19 name that is a formula", "=cmd|' calc'!A1.png", PNG, kept=None)
one_file("19 name that is not UTF-8", os.fsdecode(b"bad\xff.png"), PNG, kept=None)
one_file("text named .jpg", "bad.jpg", b"<!DOCTYPE html><title>Not found</title>")
one_file("JPEG with stray scans", "bad.jpg", pictures.jpeg(72)[:-2] + SCAN * 9, kept=None)


@case("15 empty class folder", words=("hollow",))
def _(place):
    pictures.class_folders(place.given / "raw", 12)
    (place.given / "raw" / "hollow").mkdir()
    return prepare(place)


def _no_copy_across(place: Place) -> None:
    examples = json.loads((place.out / "splits.json").read_text())["examples"].values()
    roles: dict[str, set[str]] = {}
    for example in examples:
        roles.setdefault(example["group"], set()).add(example["role"])
    assert all(len(found - {"duplicate_of_test"}) == 1 for found in roles.values()), roles


@case("16 the same picture on both sides of a split", refused=False, check=_no_copy_across)
def _(place):
    for part in ("train", "test"):
        pictures.class_folders(place.given / "raw" / part, 12, part=part)
    data = (place.given / "raw" / "train" / "traincat" / "01.jpg").read_bytes()
    (place.given / "raw" / "test" / "testcat" / "50.jpg").write_bytes(data)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            os.rename(place.given / "raw" / part / f"{part}{name}", place.given / "raw" / part / name)
    return prepare(place)


def archive(place: Place, names: dict[str, bytes]) -> list[str]:
    """A zip with sound images and some more."""
    content = pictures.class_folders(place.given / "unpacked", 12)
    shutil.rmtree(place.given / "unpacked")
    with zipfile.ZipFile(place.given / "raw.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in (content | names).items():
            file.writestr(name, data)
    return prepare(place, source="raw.zip")


HARMFUL = ("../bad.png", "cat/../../bad.png", "/tmp/bad.png", "C:\\bad.png", "cat/" + "x" * 300 + ".png")


def _listed(*words: str) -> Callable[[Place], None]:
    def check(place: Place) -> None:
        report = json.loads((place.out / "ingest_report.json").read_text())
        assert report["counts"]["stored"] == 24, report["counts"]
        assert all(word in json.dumps(report["left_out"]) for word in words), report["left_out"]

    return check


@case("19 archive with names that lead outside", refused=False, check=_listed("leads out", "absolute"))
def _(place):
    return archive(place, dict.fromkeys(HARMFUL, PNG))


@case("24 archive with an entry of 4 GB in 4 MB", refused=False, check=_listed("zip bomb"))
def _(place):
    given = archive(place, {})
    with zipfile.ZipFile(place.given / "raw.zip", "a", zipfile.ZIP_DEFLATED) as file:
        with file.open("cat/bomb.png", "w", force_zip64=True) as entry:
            for _ in range(4096):
                entry.write(bytes(2**20))
    return given


@case("24 truncated archive")
def _(place):
    given = archive(place, {})
    os.truncate(place.given / "raw.zip", 4000)
    return given


@case("25 tar with links")
def _(place):
    with tarfile.open(place.given / "raw.tar", "w") as file:
        for kind, name in ((tarfile.SYMTYPE, "cat/a.png"), (tarfile.LNKTYPE, "cat/b.png")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            file.addfile(entry)
    return prepare(place, source="raw.tar")


@case("26 file without permission", refused=False, unprivileged=True)
def _(place):
    pictures.class_folders(place.given / "raw", 12)
    os.chmod(place.given / "raw" / "cat" / "01.jpg", 0)
    for folder in (place.root, place.tmp, place.home):
        os.chmod(folder, 0o777)
    place.log.touch()
    os.chmod(place.log, 0o666)
    return prepare(place)


# Prepared data


def train(place: Place, *more: str, data: pathlib.Path | None = None) -> list[str]:
    """Arguments that train two steps on the data set of the case."""
    tiny = ("--config.epochs=0", "--config.steps=2", "--config.evaluation.baselines=False", "--config.batch_size=8",
            "--config.image_size=16", "--config.model.options.widths=(4,)")  # fmt: skip
    folder = data or place.given / "data"
    config = ROOT / "configs" / "blood_cells.py"
    return [f"--config={config}:single", f"--workdir={place.out}", f"--config.data.dir={folder}", *tiny, *more]


def damaged(name: str, words: tuple[str, ...], begun: bool = False):
    """Registers a function that damages a copy of the striped data set, with which training is tried."""

    def decorate(break_it):
        def build(place: Place) -> list[str]:
            shutil.copytree(place.shared["data"], place.given / "data")
            shard = sorted((place.given / "data").glob("*-train.tfrecord-*-of-?????"))[0]
            return train(place, *(break_it(place.given / "data", shard) or ()))

        CASES.append(Case(name, TRAIN, build, words=words, begun=begun))
        return break_it

    return decorate


@damaged("27 a record of 2^62 bytes", ("damaged",), begun=True)
def _(folder, shard):
    length = struct.pack("<Q", 2**62)
    checked = length + struct.pack("<I", records.masked_crc32c(length))
    shard.write_bytes(checked + shard.read_bytes()[12:])


@damaged("28 a checksum that does not match", ("damaged",), begun=True)
def _(folder, shard):
    shard.write_bytes(flipped(shard.read_bytes(), 300))


@damaged("29 a stale index", ("stale",))
def _(folder, shard):
    index = shard.with_name(f"{shard.name}.idx")
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))


@damaged("30 a shard that is missing", ("missing",))
def _(folder, shard):
    shard.unlink()


def rewrite(folder: pathlib.Path, shard: pathlib.Path, change: Callable[[dict], dict]) -> None:
    """Changes the features of every example of a shard; framing and index are as they must be."""
    payloads = [frame[12:-4] for frame in records.read_frames(shard)]
    with records.RecordWriter(shard) as writer:
        for payload in payloads:
            writer.write(encode_example(change(decode_example(payload))))
    records.write_index(folder)


@damaged("31 examples without an image", ("image",), begun=True)
def _(folder, shard):
    rewrite(folder, shard, lambda features: {k: v for k, v in features.items() if k != "image"})


@damaged("31 an image that is a number", ("image",), begun=True)
def _(folder, shard):
    rewrite(folder, shard, lambda features: features | {"image": [7]})


@damaged("31 an image that is none", (), begun=True)
def _(folder, shard):
    rewrite(folder, shard, lambda features: features | {"image": [b"no picture"]})


@damaged("31 an image of 60,000 x 60,000 pixels", (), begun=True)
def _(folder, shard):
    rewrite(folder, shard, lambda features: features | {"image": [HEADER_ONLY]})


@damaged("31 no example at all", (), begun=True)
def _(folder, shard):
    (folder / shard.name).write_bytes(b"")
    records.write_index(folder)


@damaged("34 NaN as learning rate", ("learning_rate",))
def _(folder, shard):
    return ("--config.optimizer.learning_rate=nan",)


@damaged("34 infinite learning rate", ("learning_rate",))
def _(folder, shard):
    return ("--config.optimizer.learning_rate=inf",)


@damaged("34 an unknown key", ("learning_rat",))
def _(folder, shard):
    return ("--config.optimizer.learning_rat=1",)


@damaged("34 a text for a number", ("many",))
def _(folder, shard):
    return ("--config.batch_size=many",)


@damaged("35 a batch larger than the data", ("4096",))
def _(folder, shard):
    return ("--config.batch_size=4096",)


@damaged("a batch of 0", ("batch_size",))
def _(folder, shard):
    return ("--config.batch_size=0",)


@damaged("a negative number of steps", ("steps",))
def _(folder, shard):
    return ("--config.steps=-5",)


@damaged("an unknown model", ("no_such_net",))
def _(folder, shard):
    return ("--config.model.name=no_such_net",)


@damaged("an image size of 0", ("image_size",))
def _(folder, shard):
    return ("--config.image_size=0",)
