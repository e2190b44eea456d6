"""Does the ledger read back as it was written, in a fixed layout, harmless in a spreadsheet?"""

import csv

import numpy as np
import pytest

from input_pipeline import cli, tabular
from research.report import tables

ROWS = [
    {
        "id": "0001",
        "status": "finished",
        "seed": 0,
        "overrides": {"optimizer.learning_rate": 1e-4, "loss.name": "soft_f1"},
        "parameters": np.int64(55_873_736),
        "bytes": 223_494_944,
        "wall_seconds": 12.5,
        "metrics": {"test": {"mcc": -0.25, "macro_f1": 0.1 + 0.2}, "validation": {"macro_f1": float("nan")}},
    },
    {"id": "=cmd()", "status": "failed: loss is NaN, at step 3\n", "seed": 1, "metrics": {"train": {"loss": 1e-30}}},
]


def test_round_trip(tmp_path):
    path = tmp_path / "trials.csv"
    tables.write_trials_csv(path, ROWS)
    first, second = tables.read_trials_csv(path)
    assert first["overrides"] == ROWS[0]["overrides"] and first["id"] == "0001" and first["seed"] == 0
    assert first["parameters"] == 55_873_736 and isinstance(first["parameters"], int)
    assert first["metrics"]["test"] == {"mcc": -0.25, "macro_f1": 0.1 + 0.2}
    assert np.isnan(first["metrics"]["validation"]["macro_f1"])
    assert second["id"] == "=cmd()" and second["status"] == ROWS[1]["status"] and second["overrides"] == {}
    assert second["metrics"] == {"train": {"loss": 1e-30}} and "parameters" not in second


def test_columns_do_not_depend_on_the_order_of_rows(tmp_path):
    flat = [tables.flatten(row) for row in ROWS]
    columns = tables.column_order(flat)
    assert columns == tables.column_order(flat[::-1])
    assert columns == [*tables.FIRST_COLUMNS, "wall_seconds", "train/loss", "validation/macro_f1", "test/macro_f1",
                       "test/mcc"]  # fmt: skip


def test_no_cell_is_a_formula_and_numbers_stay_numbers(tmp_path):
    path = tmp_path / "trials.csv"
    tables.write_trials_csv(path, ROWS)
    with open(path, newline="") as file:
        read = list(csv.DictReader(file))
    for line in read:
        for cell in line.values():
            assert not cell.startswith(("=", "+", "@", "\t", "\r")) and (not cell.startswith("-") or float(cell))
    assert read[0]["test/mcc"] == "-0.25" and read[1]["id"] == "'=cmd()"


@pytest.mark.parametrize("value", [
    None, True, 0, -7, 1.5, -1e-300, float("inf"), "", "a", "12", "-1", "nan", "1_0", " 3", "True", "'quoted",
    "=SUM(A1)", "@x", "+1", "\tx", "a,b\n\"c\"", "λ",
])  # fmt: skip
def test_every_cell_reads_back_with_its_type(tmp_path, value):
    path = tmp_path / "table.csv"
    tabular.write_csv(path, ["x", "y"], [{"x": value, "y": 1}])
    columns, ((row),) = tabular.read_csv(path)
    assert columns == ["x", "y"] and row["x"] == value and type(row["x"]) is type(value)


def test_refusals(tmp_path):
    path = tmp_path / "trials.csv"
    with pytest.raises(ValueError, match="ids"):
        tables.write_trials_csv(path, [ROWS[0], ROWS[0]])
    with pytest.raises(ValueError, match="slash"):
        tables.write_trials_csv(path, [{"id": "a", "test/macro_f1": 1.0}])
    with pytest.raises(ValueError, match="no column"):
        tabular.write_csv(path, ["x"], [{"z": 1}])
    assert not path.exists()
    with pytest.raises(cli.UserError, match="does not exist"):
        tables.read_trials_csv(path)
    path.write_text("id,seed\na\n")
    with pytest.raises(cli.UserError, match="line 2"):
        tables.read_trials_csv(path)
    path.write_text("id,overrides\na,not json\n")
    with pytest.raises(cli.UserError, match="overrides"):
        tables.read_trials_csv(path)
    path.write_text("name\na\n")
    with pytest.raises(cli.UserError, match="column id"):
        tables.read_trials_csv(path)


@pytest.mark.parametrize(("value", "text"), [
    (None, "–"), (float("nan"), "–"), (0.12345, "0.123"), (-0.5, "−0.500"), (12345, "12,345"), (1e-7, "1e−07"),
    (0.0, "0.000"), (True, "yes"), (float("inf"), "∞"), (2.5e9, "2.5e+09"),
])  # fmt: skip
def test_format_number(value, text):
    assert tabular.format_number(value) == text
