"""Are samples of gene expression and captions predicted as the run did it, from tables of any form?"""

import csv
import dataclasses
import gzip
import pathlib

import jax
import numpy as np
import pandas as pd
import pytest

import research
from configs import cancer_genes, captions
from input_pipeline import prepare
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from research import predict
from research.prediction import commands, expression
from research.prediction.model import Model
from tests.research.prediction import runs
from tests.research.prediction.test_predict import numbers, saved, table

SAMPLES, GENES = 60, 23


@pytest.fixture(scope="module")
def genes(tmp_path_factory):
    """Counts `[samples, genes]` as a table, and a run on their logarithms."""
    root = tmp_path_factory.mktemp("genes")
    random = np.random.default_rng(1)
    names = [f"S{number:02d}" for number in range(SAMPLES)]
    counts = pd.DataFrame(
        random.gamma(2.0, 300.0, (SAMPLES, GENES)).round(2), names, [f"GENE{k}" for k in range(GENES)]
    )
    counts.iloc[::3, 4] = 0.0
    counts.index.name = "sample_id"
    (root / "raw").mkdir()
    counts.to_csv(root / "raw" / "expression.csv")
    kinds = "".join(f"{name},{'AB'[number % 2]}\n" for number, name in enumerate(names))
    (root / "raw" / "labels.csv").write_text("sample,label\n" + kinds)
    prepare.prepare("cancer_genes", root / "raw", root / "prepared", workers=1)
    changes = {"model.name": "mlp", "model.head_pool": "average", "model.options": {}}
    return counts, runs.finished(root / "run", cancer_genes.get_config("smoke"), root / "prepared", **changes)


def predicted(run, path, out, *arguments):
    assert predict.main([f"--workdir={run}", f"--table={path}", f"--out={out}", *arguments]) == 0
    return table(out)


def test_tables_of_any_form(genes, tmp_path, capsys):
    counts, run = genes
    expected = saved(run, False)
    forms = {
        "plain.csv": counts,
        "genes_in_rows.tsv": counts.T.rename_axis("gene_id"),
        "shuffled.csv": counts[counts.columns[::-1]].assign(OTHER=3.5),
        "logarithms.csv": np.log2(counts + 1),
        "no_corner.csv": counts.rename_axis(None),
    }
    for name, content in forms.items():
        content.to_csv(tmp_path / name, sep="\t" if name.endswith("tsv") else ",")
    counts.reset_index().to_parquet(tmp_path / "table.parquet")
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress((tmp_path / "plain.csv").read_bytes()))
    for name in [*forms, "table.parquet", "packed.csv.gz"]:
        rows = predicted(run, tmp_path / name, tmp_path / "out.csv")
        assert list(rows) == list(counts.index), name
        of_test = [rows[sample] for sample in expected.ids]
        np.testing.assert_allclose(numbers(of_test, expected.class_names), expected.scores, atol=1e-6, err_msg=name)
    assert "Scale: linear (detected), as the run has log2p1." in capsys.readouterr().err
    assert predict.main([f"--workdir={run}", "--role=test", f"--out={tmp_path / 'role.csv'}"]) == 0
    assert list(table(tmp_path / "role.csv")) == list(expected.ids)
    model = research.load(run)
    dataset = open_dataset(run.parent / "prepared")
    vectors = np.stack([dataset.vector(index) for index in dataset.indices("test")])
    np.testing.assert_allclose(model.predict(vectors).probabilities, expected.scores, atol=1e-6)
    assert model.genes == tuple(counts.columns)


def test_missing_genes_and_values_get_training_means(genes, tmp_path, capsys):
    counts, run = genes
    model = Model(run)
    dataset = model.trial.dataset
    means = np.mean([dataset.vector(index) for index in dataset.indices("train")], axis=0, dtype=np.float64)
    some = counts.drop(columns=["GENE3", "GENE7"])
    some.iloc[1, 0] = np.nan
    some.to_csv(tmp_path / "some.csv", na_rep="NA")
    found = expression.read(tmp_path / "some.csv", model.trial, "auto", tmp_path)
    wanted = np.log2(counts.to_numpy() + 1)
    wanted[:, [3, 7]] = means[[3, 7]]
    wanted[1, 0] = means[0]
    np.testing.assert_allclose(found.vectors, wanted, atol=1e-5)
    assert "2 of 23 genes are not in" in found.notes[1] and "1 missing values" in found.notes[2]
    predicted(run, tmp_path / "some.csv", tmp_path / "out.csv")
    assert "2 of 23 genes" in capsys.readouterr().err


def test_scales_become_the_runs(genes, tmp_path):
    counts, run = genes
    model = Model(run)
    shifted = np.log2(counts + 0.001)
    shifted.to_csv(tmp_path / "shifted.csv")
    found = expression.read(tmp_path / "shifted.csv", model.trial, "auto", tmp_path)
    np.testing.assert_allclose(found.vectors, np.log2(counts + 1), atol=1e-4)
    above = counts.clip(lower=1)
    np.log2(above + 0.001).to_csv(tmp_path / "above.csv")  # nothing tells it from log2(x + 1), but the user may
    found = expression.read(tmp_path / "above.csv", model.trial, "log2p0.001", tmp_path)
    np.testing.assert_allclose(found.vectors, np.log2(above + 1), atol=1e-4)
    backwards = dataclasses.replace(model.trial)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expression, "_scale_of", lambda trial: "log2p0.001")
        found = expression.read(run.parent / "raw" / "expression.csv", backwards, "auto", tmp_path)
        np.testing.assert_allclose(found.vectors, np.log2(counts + 0.001), atol=2e-3)


def test_mistakes_in_tables_end_in_one_sentence(genes, tmp_path):
    counts, run = genes
    counts[counts.columns[:11]].to_csv(tmp_path / "few.csv")
    scores = (counts - counts.mean()) / counts.std()
    scores.to_csv(tmp_path / "scores.csv")
    pd.concat([counts, counts.iloc[:1]]).to_csv(tmp_path / "twice.csv")
    (tmp_path / "text.csv").write_text("a,b\nx,y\n")
    broken = counts.astype(str)
    broken.iloc[2, 3] = "much"
    broken.to_csv(tmp_path / "broken.csv")
    cases = [
        ([f"--table={tmp_path / 'few.csv'}"], "has only 11 of the 23 genes"),
        ([f"--table={tmp_path / 'scores.csv'}"], "looks zscore, but the run was trained on log2p1"),
        ([f"--table={tmp_path / 'twice.csv'}"], "the sample S00 twice"),
        ([f"--table={tmp_path / 'text.csv'}"], "no table of gene expression"),
        ([f"--table={tmp_path / 'broken.csv'}"], "line 4 .*much"),
        ([f"--table={tmp_path / 'missing.csv'}"], "is no file"),
        ([f"--table={tmp_path / 'few.csv'}", "--scale=log10"], "is unknown"),
        ([f"--images={tmp_path}"], "holds no image file"),
    ]
    for arguments, sentence in cases:
        with pytest.raises(UserError, match=sentence) as raised:
            predict.main([f"--workdir={run}", f"--out={tmp_path / 'out.csv'}", *arguments])
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("*out.csv*"))
    with pytest.raises(UserError, match=r"\[N, 23\]"):
        research.load(run).predict(np.zeros((2, 22)))


def test_names_of_genes():
    """Whole name, Entrez number, a symbol that one gene has; an ambiguous symbol is no name."""
    table = ["A", "B|7", "C|8", "C|9", "?|4", "D"]
    wanted = ("A", "B", "X|8", "C", "?|4", "D|5", "E", "?|6")
    np.testing.assert_array_equal(expression._match(wanted, table), [0, 1, 2, -1, 4, 5, -1, -1])


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Images with captions in a table, and a run that looks and reads; and one that reads alone."""
    root = tmp_path_factory.mktemp("captions")
    raw = runs.photographs(root / "raw", 30)
    random = np.random.default_rng(2)
    words = np.array("a the dog bench man on near red old".split())
    names = sorted(file.relative_to(raw).as_posix() for file in raw.rglob("*") if file.is_file())
    with open(raw / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "labels", "caption"])
        for number, name in enumerate(names):
            text = "" if number == 4 else f"{' '.join(random.choice(words, 6))} {number}"
            writer.writerow([name, ("dark" if number % 3 else "dark;light"), text])
    prepare.prepare("table", raw, root / "prepared", workers=1)
    text = {"data.text.tokenizer": "words", "evaluation.tta": "none", "loss.options": {}}
    reading = {"model.options": {"image": "", "text": "bag", "text_options": {"width": 8, "hidden": (8,)}}}
    both = {"model.options": {"image": "simple_cnn", "text": "bag", "image_options": {"widths": (4, 8)}}}
    made = {
        name: runs.finished(root / name, captions.get_config("text"), root / "prepared", **text, **options)
        for name, options in (("reading", reading), ("both", both | {"image_size": 16, "data.channels": 3}))
    }
    return raw, made


def test_captions(captioned, tmp_path, capsys):
    raw, made = captioned
    rows = list(csv.DictReader(open(raw / "table.csv", encoding="utf-8", newline="")))
    listed = tmp_path / "captions.csv"
    with open(listed, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Name", "caption"])
        writer.writerows((row["path"], row["caption"]) for row in rows[::-1] if row["caption"])
    given = {
        ("both", f"--images={raw}", f"--captions={listed}", "--columns=id=Name"): len(rows),
        ("both", f"--images={raw / 'table.csv'}"): len(rows),
        ("both", f"--images={raw.parent / 'prepared'}"): len(rows),
        ("reading", f"--captions={listed}", "--columns=id=Name"): len(rows) - 1,
    }
    for (name, *arguments), count in given.items():
        out, expected = tmp_path / "out.csv", saved(made[name], True)
        assert predict.main([f"--workdir={made[name]}", f"--out={out}", *arguments]) == 0
        found = table(out)
        assert len(found) == count
        known = [row for row, name in enumerate(expected.ids) if name in found]
        of_test = [found[expected.ids[row]] for row in known]
        np.testing.assert_allclose(numbers(of_test, expected.class_names), expected.scores[known], atol=1e-8)
        names = np.array(expected.class_names)
        assert [row["predicted"] for row in of_test] == [";".join(names[expected.predicted[row]]) for row in known]
    assert f"1 of {len(rows)} images have no caption" in capsys.readouterr().err
    model = research.load(made["reading"])
    np.testing.assert_array_equal(model.thresholds, expected.thresholds[0])
    texts = [row["caption"] or None for row in rows]
    assert model.predict(captions=texts).ids[:2] == ("0", "1")
    assert model.features(captions=texts[:3]).shape[0] == 3
    cases = [
        ("both", [f"--images={raw}"], "reads captions; give --captions"),
        ("both", [f"--captions={listed}", "--columns=id=Name"], "looks at images; give --images"),
        ("reading", [f"--captions={listed}"], "must name the columns id, caption"),
        ("reading", [f"--captions={tmp_path / 'no.csv'}"], "is no file"),
    ]
    for name, arguments, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            predict.main([f"--workdir={made[name]}", f"--out={tmp_path / 'bad.csv'}", *arguments])


def test_memory_does_not_grow_with_the_inputs():
    """Batches are made as they are asked for: of a hundred thousand inputs a few are read ahead."""
    from research.prediction import batches
    from research.prediction.inputs import Inputs

    class Trial:
        text, threads, channels = None, 2, 3
        config = type("config", (), {"image_size": 8, "data": type("data", (), {"resize": "stretch"})})
        dataset = type("dataset", (), {"dtype": np.dtype(np.uint8)})
        raw = jax.ShapeDtypeStruct((1, 8, 8, 3), np.uint8)

    seen = []

    def read(row: int) -> np.ndarray:
        seen.append(row)
        return np.full((9, 7, 3), row % 251, np.uint8)

    inputs = Inputs(range(100_000), range(100_000), read)
    made = batches.batches(inputs, Trial, 10, 16)
    for number in range(3):
        batch = next(made)
        assert (batch.start, batch.count, batch.errors) == (10 * number, 10, {})
        np.testing.assert_array_equal(batch.arrays["image"][:10, 0, 0, 0], np.arange(10 * number, 10 * number + 10))
        assert not batch.arrays["image"][10:].any()
    made.close()
    assert max(seen) < 10 * (3 + batches._AHEAD + 1)


def test_pattern_in_flags(tmp_path):
    """The flags say what is wrong before a run is opened."""
    values = commands.parser("predict", "").parse_args(["--workdir=x", "--images=y", "--columns=path=A, id=B"])
    commands.check(values)
    assert values.columns == {"path": "A", "id": "B"} and pathlib.Path(values.workdir).name == "x"
