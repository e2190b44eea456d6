"""How are rows written as they come, so that the file is there only when it is whole?"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from input_pipeline.cli import UserError
from research.evaluation import predictions

_ROWS = 1024  # of a row group of Parquet


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary name beside `path`, which takes its place when the block ends well and vanishes otherwise."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        os.close(descriptor)
        yield pathlib.Path(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


class Csv:
    """Rows of texts and numbers; texts are guarded as in the predictions of a run, numbers have nine digits.

    Args:
      path: of the file. texts: names of the text columns. numbers: of the columns of numbers, which stand behind
        `split` of the texts.
    """

    def __init__(self, path: pathlib.Path, texts: Sequence[str], numbers: Sequence[str], split: int) -> None:
        # Names of files that are not valid UTF-8 hold lone surrogates.
        self._file = open(path, "w", encoding="utf-8", errors="surrogatepass", newline="")
        self._split = split
        self._line([*texts[:split], *numbers, *texts[split:]])

    def _line(self, cells: Sequence[str]) -> None:
        self._file.write(",".join(map(predictions.quote, cells)) + "\n")

    def add(self, texts: Sequence[Sequence[str]], numbers: np.ndarray) -> None:
        """Writes n rows: n lists of texts, and numbers `[n, columns]`, of which NaN is an empty cell."""
        for row, values in zip(texts, numbers.tolist(), strict=True):
            cells = [predictions.guard(cell) for cell in row]
            shown = ["" if value != value else f"{value:.9g}" for value in values]
            self._line([*cells[: self._split], *shown, *cells[self._split :]])

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


class Parquet:
    """The same columns as Parquet: texts, and float32.

    Raises:
      UserError: pyarrow is not installed.
    """

    def __init__(self, path: pathlib.Path, texts: Sequence[str], numbers: Sequence[str], split: int) -> None:
        self._arrow, parquet = load_pyarrow()
        fields = [(name, self._arrow.string()) for name in texts]
        fields[split:split] = [(name, self._arrow.float32()) for name in numbers]
        self._schema, self._split = self._arrow.schema(fields), split
        self._writer = parquet.ParquetWriter(path, self._schema)
        self._texts: list[Sequence[str]] = []
        self._numbers: list[np.ndarray] = []

    def add(self, texts: Sequence[Sequence[str]], numbers: np.ndarray) -> None:
        """As `Csv.add`; NaN becomes a missing value."""
        self._texts += texts
        self._numbers.append(numbers)
        if len(self._texts) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._texts:
            return
        # Lone surrogates, of file names that are not UTF-8, cannot be in a string of Parquet.
        columns = [
            self._arrow.array([cell.encode("utf-8", "backslashreplace").decode() for cell in column])
            for column in zip(*self._texts, strict=True)
        ]
        values = np.concatenate(self._numbers).astype(np.float32)
        columns[self._split : self._split] = [
            self._arrow.array(np.ascontiguousarray(column), from_pandas=True) for column in values.T
        ]
        self._writer.write_table(self._arrow.Table.from_arrays(columns, schema=self._schema))
        self._texts, self._numbers = [], []

    def close(self) -> None:
        """Writes what is left and ends the file."""
        self._flush()
        self._writer.close()


def load_pyarrow():
    """`pyarrow` and `pyarrow.parquet`.

    Raises:
      UserError: they are not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("Parquet needs pyarrow; run `pip install pyarrow`, or give --out a name in .csv.") from error
    return pyarrow, parquet


def check_target(out: pathlib.Path, endings: Sequence[str] = ()) -> None:
    """Refuses a file that cannot be written, before anything is computed.

    Raises:
      UserError: its folder is missing, it is a folder, or its name ends otherwise than in one of `endings`.
    """
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}; make it, or name another --out.")
    if out.is_dir():
        raise UserError(f"--out={out} is a folder; name a file.")
    if endings and out.suffix.lower() not in endings:
        raise UserError(f"--out={out} must end in {' or '.join(endings)}; rename it.")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"--out={out}: the folder cannot be written to; name another.")
