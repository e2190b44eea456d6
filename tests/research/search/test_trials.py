"""Does a search try what its config says, each setting once?"""

import pathlib
import zipfile

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs import common
from input_pipeline.cli import UserError
from research.models import registry
from research.models.initialize import count_parameters
from research.report import tables
from research.search import sheets, trials
from research.search.trials import override_sets

STUDY = pathlib.Path(__file__).parents[4] / "shared" / "data" / "blood_cells" / "hyper_paremetes.xlsx"
RATES = ("optimizer.learning_rate", (1e-3, 3e-3))


def sets(**sources):
    search = common.default().search
    with search.unlocked():
        search.update(sources)
    return override_sets(search)


def test_without_a_source_there_is_one_trial():
    (only,) = sets()
    assert only.name == "" and only.overrides == {}


def test_sources_are_combined():
    entries = sets(
        trials=({"name": "a", "data.normalize": "fixed"}, {"name": "b", "data.normalize": "dataset"}),
        zip=(("image_size", (32, 64)), ("batch_size", (64, 16))),
        grid=(RATES, ("model.head", ((), (8, 4)))),
    )
    assert len(entries) == 2 * 2 * 4 and len({entry.name for entry in entries}) == 16
    assert entries[1].name == "a,image_size=32,batch_size=64,learning_rate=0.001,head=8x4"
    assert entries[-1].overrides == {
        "data.normalize": "dataset",
        "image_size": 64,
        "batch_size": 16,
        "optimizer.learning_rate": 3e-3,
        "model.head": (8, 4),
    }


def test_random_draws_stay_when_there_are_more():
    space = (("optimizer.learning_rate", ("log", 1e-4, 1e-1)), ("seed", ("integer", 0, 3)))
    few = sets(random=space, count=3, seed=5)
    more = (*space, ("model.head_dropout", ("uniform", 0.0, 0.5)), ("loss.name", ("choice", "focal", "hinge")))
    many = sets(random=more, count=40, seed=5)
    for one, other in zip(few, many, strict=False):
        assert one.overrides.items() <= other.overrides.items()
    rates = [entry.overrides["optimizer.learning_rate"] for entry in many]
    assert min(rates) < 1e-3 and max(rates) > 1e-2 and all(1e-4 <= rate <= 1e-1 for rate in rates)
    assert {entry.overrides["seed"] for entry in many} == {0, 1, 2, 3}
    assert {entry.overrides["loss.name"] for entry in many} == {"focal", "hinge"}
    assert sets(random=space, count=3, seed=6) != few


@pytest.mark.parametrize(
    "sources, words",
    [
        ({"grid": (RATES,), "zip": (RATES,)}, "two parts of config.search set optimizer.learning_rate"),
        ({"grid": (("seed", (0, 0)),)}, "same settings"),
        ({"grid": (RATES, RATES)}, "names optimizer.learning_rate twice"),
        ({"grid": (("seed", 3),)}, r"write \(key, values\) pairs"),
        ({"grid": (("seed", "012"),)}, r"write \(key, values\) pairs"),
        ({"zip": (("seed", (0, 1)), ("batch_size", (4, 8, 16)))}, "seed 2, batch_size 3"),
        ({"random": (("seed", ("log", 0, 3)),), "count": 2}, "config.search.random draws seed"),
        ({"random": (("seed", ("integer", 0, 3)),)}, "belong together"),
        ({"count": 3}, "belong together"),
        ({"sheet": "nowhere.csv"}, "does not exist"),
    ],
)
def test_mistakes_are_one_sentence(sources, words):
    with pytest.raises(UserError, match=words):
        sets(**sources)


def test_csv_of_trials(tmp_path):
    sheet = tmp_path / "trials.csv"
    sheet.write_text(
        "name,optimizer.learning_rate,model.head,optimizer.name,data.augment.dihedral\n"
        'first,0.001,"[512, 64]",adamw,TRUE\n,1e-2,"(8,)",,\n\n'
    )
    first, second = sets(sheet=str(sheet))
    assert first.name == "first" and first.overrides == {
        "optimizer.learning_rate": 0.001,
        "model.head": (512, 64),
        "optimizer.name": "adamw",
        "data.augment.dihedral": True,
    }
    assert second.name == "row1" and second.overrides == {"optimizer.learning_rate": 0.01, "model.head": (8,)}


@pytest.mark.parametrize(
    "text, words",
    [
        ('seed,model.head\n1,"[512, 64"\n', r"cell B2 .* no list that Python can read: \[512, 64"),
        ("seed\n1,2\n", "cell B2 .* has no heading"),
        ("seed,seed\n1,2\n", "heading seed stands twice"),
        ("seed\n", "no row below its headings"),
        ('seed\n"1\n', "no CSV table"),
    ],
)
def test_malformed_cells_are_named(text, words, tmp_path):
    (tmp_path / "trials.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        sheets.read_trials(str(tmp_path / "trials.csv"))


def workbook(path, rows):
    """A workbook with inline strings and numbers; None leaves the cell out."""
    lines = []
    for number, row in enumerate(rows, 1):
        cells = ""
        for column, value in zip("ABCD", row, strict=False):
            if isinstance(value, str):
                cells += f'<c r="{column}{number}" t="inlineStr"><is><t>{value}</t></is></c>'
            elif value is not None:
                cells += f'<c r="{column}{number}"><v>{value}</v></c>'
        lines.append(f'<row r="{number}">{cells}</row>')
    space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "xl/worksheets/sheet1.xml",
            f'<worksheet xmlns="{space}"><sheetData>{"".join(lines)}</sheetData></worksheet>',
        )


HEADINGS = ["Dense layers", "number of nuerons in dense layers", "number of convolution layers ", "kernel size"]


def test_workbook_of_trials(tmp_path):
    file = tmp_path / "trials.xlsx"
    workbook(file, [["seed", None, "model.head"], [3, None, "[8, 4]"], [None, None, "[2]"]])
    assert sheets.read_trials(str(file)) == [{"seed": 3, "model.head": (8, 4)}, {"model.head": (2,)}]


@pytest.mark.parametrize(
    "cells, words",
    [
        (["[2]", "[[8, 4]", "[[8, 16]]", "[3, 3]"], "cell B2 .* no list"),
        (["[2]", "[[8, -4]]", "[[8, 16]]", "[3, 3]"], "cell B2 .* lists of positive whole numbers"),
        (["[2]", "[[8, 4]]", "[8, 16]", "[3, 3]"], "cell C2 .* lists of positive whole numbers"),
        (["[2]", "[[8, 4]]", "[[8, 16]]", "[3]"], "cell D2 .* 1 kernels for 2 filters"),
        (["[3]", "[[8, 4]]", "[[8, 16]]", "[3, 3]"], "cell A2 .* counts"),
        (["[2]", "[[8, 4]]", "[[8, 16]]"], "3 of the four lists"),
    ],
)
def test_malformed_cells_of_the_study_s_workbook_are_named(cells, words, tmp_path):
    workbook(tmp_path / "grid.xlsx", [HEADINGS, cells])
    with pytest.raises(UserError, match=words):
        sheets.read_trials(str(tmp_path / "grid.xlsx"))


def test_damaged_workbooks(tmp_path):
    file = tmp_path / "grid.xlsx"
    file.write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(UserError, match="no Excel workbook"):
        sheets.read_trials(str(file))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    with pytest.raises(UserError, match="no Excel workbook"):
        sheets.read_trials(str(file))


@pytest.mark.skipif(not STUDY.exists(), reason="needs the study's spreadsheet")
def test_the_study_s_workbook_gives_its_24_models():
    entries = sets(sheet=str(STUDY))
    assert len(entries) == 24
    assert entries[0].overrides == {
        "model.options.dense": (250, 300),
        "model.options.filters": (70, 80, 100, 140, 180, 220),
        "model.options.kernels": (7, 5, 5, 3, 3, 3),
    }
    assert {len(entry.overrides["model.options.kernels"]) for entry in entries} == {5, 6}
    options = {key.rpartition(".")[2]: value for key, value in entries[0].overrides.items()}
    model = registry.create("grid_cnn", num_classes=4, **options)
    images = {"image": jax.ShapeDtypeStruct((1, 224, 224, 1), jnp.float32)}
    shapes = jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch, train=False), images)
    assert count_parameters(shapes) == 1_190_254


def test_a_dictionary_replaces_the_one_that_was_there():
    config = ConfigDict({"model": {"name": "a", "options": {"image_options": {"widths": (1, 2)}, "image": "x"}}})
    changed = trials.applied(config.lock(), {"model.options.image_options": {}, "model.name": "b"})
    assert changed.to_dict() == {"model": {"name": "b", "options": {"image_options": {}, "image": "x"}}}
    assert config.model.options.image_options.widths == (1, 2)
    with pytest.raises(KeyError):
        trials.applied(config, {"model.nothing.at_all": {}})


def test_all_settings_begin_from_the_winner_of_a_finished_run(tmp_path):
    rows = [
        {"id": f"{name}-seed{seed}", "status": "finished", "stage": "search", "setting": name, "seed": seed,
         "overrides": {"model.name": name, "model.options.image_options": {"widths": [4, 8]}, "seed": seed}}
        for name in ("small", "large") for seed in (0, 1)
    ]  # fmt: skip
    tables.write_trials_csv(tmp_path / "trials.csv", rows)
    sources = {"base": str(tmp_path), "trials": ({"name": "as it is"}, {"name": "other", "loss.name": "focal"})}
    with pytest.raises(UserError, match="no report"):
        sets(**sources)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "metrics.json").write_text('{"chosen_trial": "large"}')
    winner = {"model.name": "large", "model.options.image_options": {"widths": (4, 8)}}
    found = {entry.name: entry.overrides for entry in sets(**sources)}
    assert found == {"as it is": winner, "other": winner | {"loss.name": "focal"}}
