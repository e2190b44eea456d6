"""Do tables, figures and overlays show the right numbers, also with types that have none?"""

import cv2
import numpy as np
import pytest

from input_pipeline import tabular
from research.genes import deletion, overlay, plots, ranking, tables

TYPES = ["BRCA", "a type = with, a long name <b> $x$", "never right"]
GENES = [f"GENE{i}|{100 + i}" for i in range(40)]


@pytest.fixture(scope="module")
def found():
    """Rankings of two seeds, planted genes 0 to 4 and 5 to 9."""
    random = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], 12)
    patients = [f"p{i // 2}" for i in range(36)]
    planted = {TYPES[0]: list(range(5)), TYPES[1]: list(range(5, 10))}
    rankings = []
    for _ in range(2):
        values = random.normal(0, 0.3, (36, 40))
        values[:12, :5] += 1
        values[12:24, 5:10] += 1
        rankings.append(ranking.by_type(values, labels, labels < 2, patients, TYPES, resamples=100))
    stable = {
        name: ranking.stability([seed[kind].order for seed in rankings], common_of=5)
        for kind, name in enumerate(TYPES[:2])
    }
    f = ranking.f_scores(random.normal(size=(36, 40)) + (labels[:, None] == 0) * (np.arange(40) < 3), labels, 3)
    return {"rankings": rankings[0], "planted": planted, "stabilities": stable, "f": f, "labels": labels}


def test_gene_rows(found, tmp_path):
    sets = {"S1": frozenset({"GENE0", "GENE6"}), "S2": frozenset({"GENE0"})}
    rows = tables.gene_rows(found["rankings"], GENES, found["f"], found["stabilities"], sets, found["planted"], top=7)
    assert len(rows) == 14 and {row["type"] for row in rows} == set(TYPES[:2])
    assert [row["rank"] for row in rows[:7]] == list(range(1, 8)) and rows[6]["planted"] is False
    own = next(row for row in rows if row["gene"] == "GENE0|100" and row["type"] == "BRCA")
    assert own["in_sets"] == "S1; S2" and own["planted"] and own["low"] <= own["attribution"] <= own["high"]
    assert own["f_rank"] == 1 + list(ranking.order_of(found["f"][0])).index(0) and own["seeds"] == 2
    assert own["of_seeds"] == 2 and own["mean_overlap"] == found["stabilities"]["BRCA"].mean_overlap
    tables.write(tmp_path / "genes.csv", rows)
    columns, read = tabular.read_csv(tmp_path / "genes.csv")
    assert tuple(columns) == tables.COLUMNS and read == [{**dict.fromkeys(columns), **row} for row in rows]
    plain = tables.gene_rows(found["rankings"], GENES, top=2)
    tables.write(tmp_path / "plain.csv", plain)
    assert tuple(tabular.read_csv(tmp_path / "plain.csv")[0]) == tables.COLUMNS[:8]


def test_precision_and_stability_rows(found):
    orders = {"attributions": np.stack([own.order for own in found["rankings"]]), "F": ranking.order_of(found["f"])}
    rows = tables.precision_rows(orders, found["planted"], TYPES, k=5)
    assert rows[0]["mean"] == 1 and rows[0]["BRCA"] == 1 and "never right" not in rows[0]
    assert rows[1]["ranking"] == "F" and rows[1]["BRCA"] == ranking.precision_at(orders["F"][0], range(5), 5)
    assert rows[2]["ranking"] == "chance" and rows[2]["mean"] == pytest.approx(5 / 40)
    stable = tables.stability_rows(found["stabilities"], 0.1)
    assert [row["type"] for row in stable] == TYPES[:2] and stable[0]["overlap_by_chance"] == 0.1
    assert {"jaccard_10", "jaccard_20"} <= set(stable[0]) and stable[0]["overlap"] > 0.5


def test_overlay():
    pixel = np.array([0, 5, 5, -1, 8], np.int32)
    values = np.array([1.0, 2.0, -0.5, 100.0, 4.0])
    found = overlay.overlay(values, pixel, 3)
    expected = np.full((3, 3), np.nan)
    expected[0, 0], expected[1, 2], expected[2, 2] = 1, 1.5, 4
    np.testing.assert_array_equal(found, expected)
    for wrong in (np.array([0, 1, 2, 3, 9]), np.array([0, 1])):
        with pytest.raises(ValueError):
            overlay.overlay(values, wrong, 3)
    assert np.isnan(overlay.overlay(values, np.full(5, -1), 2)).all()


def drawn(found):
    random = np.random.default_rng(0)
    counts = np.array([0, 1, 2, 5, 10])
    curves = {
        name: deletion.Deletion(counts, random.random((5, 9)) < height, random.random((5, 9)) * height)
        for name, height in (("integrated gradients", 0.5), (deletion.RANDOM, 0.9))
    }
    bands = {deletion.RANDOM: deletion.band(curves[deletion.RANDOM], np.arange(9), 50)}
    rows = [{"type": kind, "set": f"SET {i}", "size": 10, "overlap": i, "expected": 1.5, "q": 10.0**-i}
            for kind in TYPES for i in range(7)]  # fmt: skip
    maps = {
        name: overlay.overlay(own.scores, np.arange(40), 7) for name, own in zip(TYPES, found["rankings"], strict=True)
    }
    overlaps = {name: own.overlaps for name, own in found["stabilities"].items()}
    return {
        "top": lambda path: plots.top_genes(found["rankings"], GENES, path, marked=found["planted"]),
        "few": lambda path: plots.top_genes(found["rankings"][2:], GENES, path, top=3),
        "heat": lambda path: plots.heatmap(found["rankings"], GENES, path),
        "deletion": lambda path: plots.deletion_curves(curves, path, bands, chance=0.3),
        "matrix": lambda path: plots.overlap_matrix(overlaps, ["seed 0", "seed 1"], path),
        "enrichment": lambda path: plots.enrichment(rows, path),
        "no_enrichment": lambda path: plots.enrichment([], path),
        "overlays": lambda path: overlay.draw(maps, path),
    }


@pytest.mark.parametrize(
    "name", ["top", "few", "heat", "deletion", "matrix", "enrichment", "no_enrichment", "overlays"]
)
def test_figures(found, tmp_path, name):
    for place in ("a.png", "b.png"):
        drawn(found)[name](tmp_path / place)
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture is not None and picture.std() > 1 and max(picture.shape) < 4000
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
