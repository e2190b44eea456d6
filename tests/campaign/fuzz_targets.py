"""Which readers are fuzzed, with which sound files, and who else reads what they accepted?"""

import contextlib
import csv
import dataclasses
import io
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from input_pipeline import raw, records, tabular
from input_pipeline.expression import parsing
from input_pipeline.studies import captions_table
from research.evaluation import predictions
from research.models.pretrained import formats
from research.models.pretrained.weight_file import FLOATING
from research.report import tables
from research.report.writer import read_jsonl
from tests.campaign.common import Fault


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader under attack.

    Attributes:
      name: of the reader.
      files: the sound files by name; `mutated`: the names of those that are mutated.
      tokens: what may be inserted.
      read: reads the folder; raises UserError to refuse.
      compare: raises Fault when what was read is not what an independent reader finds.
    """

    name: str
    files: Mapping[str, bytes]
    mutated: tuple[str, ...]
    tokens: tuple[bytes, ...]
    read: Callable[[pathlib.Path], Any]
    compare: Callable[[pathlib.Path, Any], None]


TARGETS: dict[str, Callable[[pathlib.Path], Target]] = {}
TEXT = (b"\0", b"\n", b"\r", b"\r\n", b'"', b'""', b",", b"\t", b";", b"'", b"=", b"\xff", b"\xef\xbb\xbf", b"nan",
        b"inf", b"-1", b"1e999", b"1_0", b" ", b"\xc2\xa0", b"\xe2\x80\xa8", b"0x1p3",
        b"," * 50, b'"' * 31)  # fmt: skip


def target(function: Callable[[pathlib.Path], Target]):
    """Registers a target under the name of its function."""
    TARGETS[function.__name__] = function
    return function


def expect(condition: bool, words: str) -> None:
    """Raises Fault with the words unless the condition holds."""
    if not condition:
        raise Fault(words)


PAYLOADS = [bytes([i]) * (i * 7) for i in range(12)]


def _records(folder: pathlib.Path, name: str, mutated: Callable[[str], bool]) -> Target:
    folder.mkdir(parents=True)
    for shard, part in enumerate((PAYLOADS[:7], PAYLOADS[7:])):
        with records.RecordWriter(folder / f"tiny-train.tfrecord-{shard:05d}-of-00002") as writer:
            for payload in part:
                writer.write(payload)
    records.write_index(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    def read(place: pathlib.Path) -> list[bytes]:
        source = records.RecordSource(place)
        return [source[index] for index in range(len(source))]

    def compare(place: pathlib.Path, found: list[bytes]) -> None:
        expect(found == PAYLOADS, f"{len(found)} records were read, not the {len(PAYLOADS)} that were written")

    chosen = tuple(file for file in files if mutated(file))
    tokens = (b"\n", b" ", b"0 16\n", b"-1", b"9" * 30, b"{", b"}", b'"', b"\0" * 16, b"1e3", b"NaN", b"\xff\xfe")
    return Target(name, files, chosen, tokens, read, compare)


@target
def records_(folder):
    return _records(folder, "records", lambda file: True)


@target
def index(folder):
    return _records(folder, "index", lambda file: file.endswith(".idx"))


TARGETS = {"records" if name == "records_" else name: make for name, make in TARGETS.items()}


@target
def expression(folder):
    """Rows of a table of gene expression, with a header that is known."""
    columns = tuple(f"TCGA-{i:02d}" for i in range(8))
    table = parsing.Table("table.tsv", "\t", "gene", columns, True)
    rng = np.random.default_rng(0)
    lines = ["\t".join(("gene", *columns))]
    for gene in range(12):
        cells = [f"{value:.4f}" for value in rng.normal(5, 3, 8)]
        cells[gene % 8] = ("NA", "", "1e-3", "-0", " 7 ")[gene % 5] or "NA"
        lines.append("\t".join((f"G{gene}|{gene}", *cells)))

    def read(place: pathlib.Path) -> list:
        found = list(parsing.blocks(raw.open_source(place), table, None, 100))
        return [(name, row) for block, _ in found for name, row in zip(block.names, block.values, strict=True)]

    def compare(place: pathlib.Path, found: list) -> None:
        text = (place / "table.tsv").read_bytes().decode("latin-1").removeprefix("ï»¿")
        given = [line.rstrip("\r\n") for line in io.StringIO(text, newline="\n")]
        rows = [line for line in given if line.strip(" \t\n\r\v\f")][1:]
        expect(len(rows) == len(found), f"{len(found)} rows were read, the file has {len(rows)}")
        for line, (name, values) in zip(rows, found, strict=True):
            cells = next(csv.reader([line], delimiter="\t")) if '"' in line else line.split("\t")
            expect(cells[0].encode("latin-1").decode().strip() == name, f"the name {name!r} is not {cells[0]!r}")
            for cell, value in zip(cells[1:], values, strict=True):
                expect(_same_number(cell, float(value)), f"{cell!r} was read as {value}")

    return Target("expression", {"table.tsv": ("\n".join(lines) + "\n").encode()}, ("table.tsv",), TEXT, read, compare)


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _same_number(cell: str, value: float) -> bool:
    """Whether the text is a number by the grammar of decimal fractions, and this one; or a missing value and NaN."""
    text = cell.strip()
    if math.isnan(value):
        return text.lower() in {word.lower() for word in parsing.MISSING}
    return bool(_NUMBER.fullmatch(text)) and math.isfinite(value) and float(np.float32(float(text))) == value


def _captions(folder: pathlib.Path, name: str, text: str) -> Target:
    def read(place: pathlib.Path) -> captions_table.Table:
        return captions_table.read(raw.open_source(place), "train.csv")

    def compare(place: pathlib.Path, found: captions_table.Table) -> None:
        content = (place / "train.csv").read_bytes().decode("utf-8-sig")
        content = content.replace("\r\n", "\n").replace("\r", "\n")  # whatever system wrote the caption
        expect(bool(found.records), "no records, and no refusal")
        for record in found.records:
            if found.dialect == "original":
                parts = (record.id, record.labels, record.caption)
                expect(all(part is None or part in content for part in parts), f"{parts} does not stand in the file")
        if found.dialect == "quoted":
            delimiter = next(d for d in ",;\t" if d in content.splitlines()[0])
            rows = [row for row in csv.reader(io.StringIO(content, newline=""), delimiter=delimiter) if any(row)][1:]
            expect([row[0].strip() for row in rows if "".join(row).strip()] == [r.id for r in found.records],
                   "other ids than csv reads")  # fmt: skip
            expect([row[-1] for row in rows if "".join(row).strip()] == [r.caption for r in found.records],
                   "other captions than csv reads")  # fmt: skip

    return Target(name, {"train.csv": text.encode()}, ("train.csv",), TEXT, read, compare)


CAPTIONS = ("A plain caption.", 'a sign that reads "Stop".', 'the word "stop," and a comma', "two\nlines", "", "ünï")


@target
def captions(folder):
    rows = "".join(f'{i}.jpg,1 {i},"{text}"\n' for i, text in enumerate(CAPTIONS))
    return _captions(folder, "captions", f"ImageID,Labels,Caption\n{rows}")


@target
def captions_quoted(folder):
    text = io.StringIO(newline="")
    rows = [[f"{number}.jpg", "1", caption] for number, caption in enumerate(CAPTIONS)]
    csv.writer(text).writerows([["ImageID", "Labels", "Caption"], *rows])
    return _captions(folder, "captions_quoted", text.getvalue())


@target
def ledger(folder):
    folder.mkdir(parents=True)
    rows = [{"id": f"t{i}", "status": "finished", "seed": i, "overrides": {"a": (1, "x")}, "parameters": 10,
             "metrics": {"test": {"accuracy": 0.25 * i}}} for i in range(4)]  # fmt: skip
    tables.write_trials_csv(folder / "trials.csv", rows)

    def compare(place: pathlib.Path, found: list[dict]) -> None:
        text = (place / "trials.csv").read_text(encoding="utf-8")
        header, *given = csv.reader(io.StringIO(text, newline=""))
        place_of_id = [tabular.parse_cell(cell) for cell in header].index("id")
        expect(len(given) == len(found), f"{len(found)} rows were read, csv reads {len(given)}")
        for row, cells in zip(found, given, strict=True):
            name = tabular.parse_cell(cells[place_of_id])
            expect(str(row.get("id")) == str(name), f"{row.get('id')!r} is not {name!r}")

    files = {"trials.csv": (folder / "trials.csv").read_bytes()}
    return Target("ledger", files, ("trials.csv",), TEXT, lambda p: tables.read_trials_csv(p / "trials.csv"), compare)


@target
def prediction_files(folder):
    folder.mkdir(parents=True)
    logits = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    ids = ["a", "=b", 'c"', "d,e", "'f", "g\n"]
    predictions.write(folder / "p.csv", ids, ids, np.arange(6) % 3, logits, ("x", "y", "z"))

    def compare(place: pathlib.Path, found: predictions.Predictions) -> None:
        text = (place / "p.csv").read_bytes().decode("utf-8", "surrogatepass")
        given = list(csv.reader(io.StringIO(text, newline="")))[1:]
        expect(len(given) == len(found.ids), f"{len(found.ids)} rows were read, csv reads {len(given)}")
        for row, values in zip(given, found.logits, strict=True):
            cells = [float(np.float32(float(cell))) for cell in row[-found.logits.shape[1] :]]
            expect(cells == values.tolist() and np.isfinite(values).all(), f"{row} was read as {values}")

    files = {"p.csv": (folder / "p.csv").read_bytes()}
    return Target("prediction_files", files, ("p.csv",), TEXT, lambda p: predictions.read(p / "p.csv"), compare)


@target
def metrics(folder):
    rows = [{"trial": "t", "step": i, "split": "train", "loss": i / 3} for i in range(8)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    tokens = (*TEXT, b"{", b"}", b"[", b"null", b"[" * 5000, b'{"trial": "t", "step": 1}\n', b"1" * 5000)

    def compare(place: pathlib.Path, found: list[dict]) -> None:
        lines = (place / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        expect(len(found) == len(lines), f"{len(found)} rows of {len(lines)} lines")
        expect(all("trial" in row and "step" in row for row in found), "a row without trial or step")

    files = {"metrics.jsonl": content}
    return Target("metrics", files, ("metrics.jsonl",), tokens, lambda p: read_jsonl(p / "metrics.jsonl"), compare)


def _arrays(place: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays that a model could take: others (counters, say) are never read."""
    file = formats.read(place / "weights")
    names = [name for name, array in file.arrays.items() if array.dtype.newbyteorder("=") in FLOATING]
    return {name: file.read(name) for name in names}


def _compare_arrays(found: dict[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    for name, values in found.items():
        expect(name in other, f"the other reader knows no array {name!r}")
        given = np.asarray(other[name], np.float32)
        expect(given.shape == values.shape and np.array_equal(given, values), f"{name} differs from the other reader's")


@target
def safetensors(folder):
    from safetensors.numpy import load, save

    rng = np.random.default_rng(0)
    arrays = {f"layer{i}.weight": rng.normal(size=(3, i + 1)).astype((np.float32, np.float16)[i % 2]) for i in range(5)}

    def compare(place: pathlib.Path, found: dict[str, np.ndarray]) -> None:
        _compare_arrays(found, load((place / "weights").read_bytes()))

    tokens = (b'"F64"', b"[", b"]", b"{", b"}", b",", b"-1", b"9" * 20, b"\0" * 8, b'"', b"1e3", b"\xff" * 8)
    return Target("safetensors", {"weights": save(arrays)}, ("weights",), tokens, _arrays, compare)


DATA = pathlib.Path(__file__).parents[1] / "research" / "models" / "pretrained" / "files"


@target
def torch(folder):
    """No second reader: what is accepted must be arrays of finite numbers."""
    tokens = (b"\x80\x02", b"cos\nsystem\n", b"R", b"\x85", b"t", b"}", b"Q", b".", b"PK\x05\x06", b"\xff" * 4)

    def compare(place: pathlib.Path, found: dict[str, np.ndarray]) -> None:
        expect(all(np.isfinite(values).all() for values in found.values()), "numbers that are not finite")

    return Target("torch", {"weights": (DATA / "small_old.pth").read_bytes()}, ("weights",), tokens, _arrays, compare)


def _datasets(group, depth: int = 0):
    """All arrays that h5py finds below a group; what a file has broken off is nobody's, so it is left out."""
    import h5py

    with contextlib.suppress(RuntimeError, KeyError, OSError, ValueError):
        for name in list(group):
            with contextlib.suppress(RuntimeError, KeyError, OSError, ValueError, TypeError):
                item = group[name]
                if isinstance(item, h5py.Dataset):
                    yield item[()]
                elif isinstance(item, h5py.Group) and depth < 12:  # a damaged file may be a ring
                    yield from _datasets(item, depth + 1)


@target
def h5(folder):
    """The other reader is h5py, which has read the same file without a crash before, in another process."""
    import h5py

    tokens = (b"\x89HDF\r\n\x1a\n", b"OHDR", b"TREE", b"SNOD", b"HEAP", b"GCOL", b"\xff" * 8, b"\0" * 8)

    def compare(place: pathlib.Path, found: dict[str, np.ndarray]) -> None:
        with h5py.File(place / "weights", "r") as file:
            known = list(_datasets(file))
        numbers = [a.view(ml_dtypes.bfloat16) if a.dtype.str == "|V2" else a for a in map(np.asarray, known)]
        values = {(a.shape, a.astype(np.float32).tobytes()) for a in numbers if a.dtype.newbyteorder("=") in FLOATING}
        for name, array in found.items():
            expect((array.shape, array.tobytes()) in values, f"h5py has no array like {name}")

    files = {"weights": (DATA / "small.weights.h5").read_bytes()}
    return Target("h5", files, ("weights",), tokens, _arrays, compare)
