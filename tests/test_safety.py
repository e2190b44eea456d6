"""Does the program keep away from what would let a file run code, write elsewhere, or be run by a spreadsheet?

The source is searched, not run: every use of such a function is found, also one that no test reaches.
"""

import ast
import csv
import functools
import io
import pathlib
import struct
import zlib

import numpy as np
import pytest

from input_pipeline import images, tabular
from input_pipeline.studies import captions
from input_pipeline.studies.manifest import RawExample
from research.evaluation import predictions
from research.report import tables

ROOT = pathlib.Path(__file__).parents[1]
FORMULAS = ("=cmd|' /C calc'!A0", "+1+cmd", "-2+3+cmd|' '!A0", "@SUM(1+9)", "\t=1+1", "\r=1+1", "=1\n2")


@functools.cache
def trees() -> dict[str, ast.Module]:
    """The syntax trees of all files of the program, by path."""
    rooms = ("research", "input_pipeline", "configs", "launch")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(files)}


@functools.cache
def all_calls() -> dict[str, list[tuple[str, ast.Call]]]:
    """Every call by the name of the function or method: (file:line, call)."""
    found: dict[str, list[tuple[str, ast.Call]]] = {}
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                found.setdefault(called, []).append((f"{file}:{node.lineno}", node))
    return found


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Every call of a function or method of this name."""
    return all_calls().get(name, [])


@functools.cache
def imported() -> dict[str, set[str]]:
    """Modules that are imported anywhere, with the files that do."""
    found: dict[str, set[str]] = {}
    for file, tree in trees().items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in names:
                found.setdefault(name, set()).add(file)
    return found


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    """The value of a keyword argument."""
    return next((given.value for given in call.keywords if given.arg == name), None)


def test_the_search_finds_what_is_there():
    assert len(trees()) > 150 and calls("atomic_write") and "numpy" in imported()


def test_no_pickle_is_loaded():
    unpicklers = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch"}
    found = {name: files for name, files in imported().items() if name.split(".")[0] in unpicklers}
    assert not found, found
    assert not calls("read_pickle") and not calls("load_model") and not calls("loads_pickle")
    for place, call in calls("load"):
        allowed = keyword(call, "allow_pickle")
        assert allowed is None or (isinstance(allowed, ast.Constant) and allowed.value is False), place
    for place, call in calls("save") + calls("savez") + calls("savez_compressed"):
        assert keyword(call, "allow_pickle") is None, place


def test_a_carriage_return_ends_no_row(tmp_path):
    rows = [{"a": "one\r=two", "b": "x\r\ny"}, {"a": "\r", "b": -3}]
    tabular.write_csv(tmp_path / "t.csv", ["a", "b"], rows)
    assert tabular.read_csv(tmp_path / "t.csv") == (["a", "b"], rows)
    assert len(list(csv.reader(io.StringIO((tmp_path / "t.csv").read_bytes().decode(), newline="")))) == 3


def test_no_text_is_run_as_code():
    names = ("eval", "exec", "compile", "__import__", "execfile", "unsafe_load", "full_load")
    for place, call in [found for name in names for found in calls(name)]:
        builtin = isinstance(call.func, ast.Name)
        assert not builtin, f"{place} runs text"
    assert "yaml" not in imported(), imported().get("yaml")
    for place, call in calls("system") + calls("popen"):
        assert not isinstance(call.func, ast.Attribute) or getattr(call.func.value, "id", "") != "os", place
    for name in ("run", "Popen", "call", "check_call", "check_output"):
        for place, call in calls(name):
            shell = keyword(call, "shell")
            assert shell is None or (isinstance(shell, ast.Constant) and shell.value is False), place


def test_modules_are_imported_by_fixed_names_only():
    """Each of these takes a name out of a table that stands in the source, never out of a file."""
    tables_of_names = {
        "research/models/registry.py", "input_pipeline/simulate.py", "input_pipeline/studies/__init__.py",
    }  # fmt: skip
    for place, call in calls("import_module"):
        literal = bool(call.args) and isinstance(call.args[0], ast.Constant)
        assert literal or place.partition(":")[0] in tables_of_names, f"{place} imports by a name from elsewhere"


def test_archives_are_never_unpacked_blindly():
    for name in ("extractall", "unpack_archive", "extract"):
        assert not calls(name), calls(name)
    assert "tarfile" not in imported(), "members of a tar may be links: see input_pipeline/raw.py for what to check"


def test_who_listens_listens_at_a_stated_address():
    """Nothing of the program is a server but JAX's coordinator, whose default is every address of the machine."""
    servers = {"http.server", "socketserver", "xmlrpc.server", "flask", "uvicorn", "tensorboard.program"}
    assert not servers & imported().keys()
    assert not calls("bind")
    assert not [place for place, call in calls("listen") if not ast.unparse(call.func).endswith("event.listen")]
    for place, call in calls("initialize"):
        called = ast.unparse(call.func)
        if called.startswith("jax.distributed"):
            assert keyword(call, "coordinator_bind_address") is not None, place
    for path in [*(ROOT / "launch").rglob("*"), ROOT / "README.md"]:
        if path.is_file() and path.suffix not in (".pyc", ".png"):
            text = path.read_text(encoding="utf-8", errors="replace")
            assert "--bind_all" not in text and "--host=0.0.0.0" not in text, path


# Tables


def is_run(cell: str) -> bool:
    """Whether a spreadsheet takes the cell for a formula (OWASP, CSV injection)."""
    return cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) and isinstance(tabular.parse_cell(cell), str)


def assert_safe(text: str) -> None:
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len(rows) > 1 and not [cell for row in rows for cell in row if is_run(cell)]


@pytest.mark.parametrize("text", FORMULAS)
def test_texts_of_tables_are_not_run(text, tmp_path):
    tabular.write_csv(tmp_path / "a.csv", ["x", text], [{"x": text, text: -0.25}])
    tables.write_trials_csv(tmp_path / "b.csv", [{"id": text, "status": text, "setting": text, "seed": -1}])
    predictions.write(tmp_path / "c.csv", [text], [text], np.array([0]), np.array([[-1.0, 2.0]]), ["x", "y"])
    example = RawExample(text, (), (0,), None, None, text)
    (tmp_path / "d.csv").write_bytes(captions.cleaned([example], labelled=False))
    for name in "abcd":
        assert_safe((tmp_path / f"{name}.csv").read_bytes().decode())
    assert tabular.read_csv(tmp_path / "a.csv")[1] == [{"x": text, text: -0.25}]


def test_front_of_a_table_with_formulas(tmp_path, monkeypatch):
    from research.search import pareto

    table = tmp_path / "t.csv"
    with open(table, "w", newline="") as file:
        rows = [[str(i), str(-i), formula] for i, formula in enumerate(FORMULAS)]
        csv.writer(file).writerows([["size", "score", "=note"], *rows])
    arguments = ["pareto", f"--ledger={table}", "--minimize=size", "--maximize=score", f"--out={tmp_path / 'out'}"]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(pareto.front_report, "draw_front", lambda *_: None)
    monkeypatch.setattr(pareto.front_report, "draw_parallel", lambda *_: None)
    pareto.main()
    text = (tmp_path / "out" / "front.csv").read_bytes().decode()
    assert_safe(text)
    assert list(csv.reader(io.StringIO(text)))[1][:2] == ["0", "0"]


def test_who_else_writes_tables():
    """Every other writer of CSV is known here; a new one is to use `tabular`, or to guard its texts and be added."""
    known = {
        "input_pipeline/tabular.py", "research/report/search.py", "research/report/runs_compared.py",
        "research/report/submission.py", "research/training/probes.py",
    }  # fmt: skip
    found = {place.partition(":")[0] for name in ("writer", "DictWriter", "to_csv") for place, call in calls(name)
             if ast.unparse(call.func) in ("csv.writer", "csv.DictWriter") or name == "to_csv"}  # fmt: skip
    assert found <= known, found - known


def test_a_stored_picture_of_billions_of_pixels_is_a_bad_image():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    with pytest.raises(images.BadImage, match="too many pixels"):
        images.decode(b"\x89PNG\r\n\x1a\n" + body)
