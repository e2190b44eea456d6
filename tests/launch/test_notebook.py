"""The notebook for Colab and Kaggle is well formed and runs on the simulated sample, all cells."""

import ast
import json
import os
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "launch" / "notebooks" / "study.ipynb"


def sources(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_cells_are_python_without_results():
    for source in sources("code"):
        ast.parse(source)
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_parameters_are_used():
    parameters, *others = sources("code")
    names = re.findall(r"^(\w+) = .*# @param", parameters, re.MULTILINE)
    assert len(names) == sum(not line.startswith("#") for line in parameters.splitlines())
    for name in names:
        assert any(re.search(rf"\b{name}\b", other) for other in others), name


def test_form():
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))


def executed(folder: pathlib.Path, monkeypatch, parameters: str):
    """The notebook after running all cells, with further parameters."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("PATH", os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]))
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "LAUNCH_DATA", "LAUNCH_RAW", "LAUNCH_STUDY"):
        monkeypatch.delenv(name, raising=False)
    book = nbformat.read(NOTEBOOK, as_version=4)
    place = next(i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", []))
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(f"ROOT = {str(folder)!r}\n{parameters}"))
    nbclient.NotebookClient(book, timeout=900, resources={"metadata": {"path": str(ROOT)}}).execute()
    return book


def shown(book) -> tuple[str, int]:
    """Everything that the cells printed, and how many pictures they show."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
def test_runs_on_the_simulated_sample_and_again(tmp_path, monkeypatch):
    text, pictures = shown(executed(tmp_path, monkeypatch, ""))
    assert "Finished:" in text and pictures >= 2
    assert (tmp_path / "runs" / "hpa-smoke" / "report" / "index.html").exists()
    again, same = shown(executed(tmp_path, monkeypatch, ""))  # after a disconnect: nothing is trained twice
    assert same == pictures and "step 15" not in again


@pytest.mark.slow
def test_mistake_ends_the_notebook_with_its_sentence(tmp_path, monkeypatch):
    pytest.importorskip("nbclient")
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError, match="ended with status 2"):
        executed(tmp_path, monkeypatch, "CONFIG = 'configs/nowhere.py'")
