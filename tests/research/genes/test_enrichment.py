"""Are gene sets read and tested as counting by hand and statsmodels say, and is a broken line named?"""

from math import comb

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.genes.enrichment import COLUMNS, matched, over_representation, read_gmt, symbol

GOOD = "SET_A\thttp://a\tTP53\tBRCA1\tTP53\r\n\r\nSET_B\t\tEGFR\t\t\n"


def gmt(tmp_path, text):
    path = tmp_path / "sets.gmt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_gmt(tmp_path):
    assert read_gmt(gmt(tmp_path, GOOD)) == {"SET_A": ("TP53", "BRCA1"), "SET_B": ("EGFR",)}
    assert list(read_gmt(gmt(tmp_path, "\ufeffA\td\tX\nÄ\td\tY"))) == ["A", "Ä"]


@pytest.mark.parametrize(
    "text, named",
    [
        (GOOD + "SET_C\tdescription\n", "line 4: "),
        (GOOD + "SET_C TP53 BRCA1\n", "line 4: "),
        (GOOD + "\tdescription\tTP53\n", "line 4: "),
        (GOOD + "SET_C\td\tTP53\t\tBRCA1\n", "line 4: gene 2 of SET_C is empty"),
        (GOOD + "SET_A\td\tMYC\n", "line 4: the set SET_A is also on line 1"),
        ("\n\n", "no gene sets"),
        (b"A\td\t\xff\xfe\n", "UTF-8"),
    ],
)
def test_broken_gmt(tmp_path, text, named):
    with pytest.raises(UserError, match=named):
        read_gmt(gmt(tmp_path, text))


def test_missing_gmt(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_gmt(tmp_path / "no.gmt")


def test_matching():
    assert [symbol(gene) for gene in ("TP53|7157", "TP53", "?|100130426", "HLA-A|3105")] == [
        "TP53", "TP53", "?|100130426", "HLA-A"]  # fmt: skip
    background = ["TP53|7157", "SLC35E2|9906", "SLC35E2|728661", "?|100130426", "C1orf112"]
    sets = {"a": ["tp53", "SLC35E2", "GONE"], "b": ["C1ORF112", "?"], "c": ["728661", "7157", "100130426"], "d": ["9"]}
    assert matched(background, sets) == {
        "a": {"TP53", "SLC35E2"}, "b": {"C1orf112"}, "c": {"SLC35E2", "TP53", "?|100130426"}, "d": frozenset(),
    }  # fmt: skip


def test_over_representation_by_counting():
    random = np.random.default_rng(0)
    genes = [f"G{i}|{i}" for i in range(60)]
    sets = {f"S{i}": [f"G{j}" for j in random.permutation(80)[: random.integers(4, 30)]] for i in range(12)}
    sets |= {"tiny": ["G1", "G2"], "everything": [symbol(gene) for gene in genes]}
    tops = {"one": genes[5:17], "two": [genes[i] for i in random.permutation(60)[:9]]}
    rows = over_representation(tops, genes, sets, smallest=3, largest=50)
    assert {row["set"] for row in rows}.isdisjoint({"tiny", "everything"}) and set(rows[0]) == set(COLUMNS)
    for row in rows:
        top = {symbol(gene) for gene in tops[row["type"]]}
        own = set(sets[row["set"]]) & {symbol(gene) for gene in genes}
        m, n, k = len(own), len(top), len(own & top)
        assert (row["size"], row["top"], row["overlap"]) == (m, n, k) and row["genes"] == " ".join(sorted(own & top))
        tail = sum(comb(m, i) * comb(60 - m, n - i) for i in range(k, min(m, n) + 1)) / comb(60, n)
        assert row["p"] == pytest.approx(tail, rel=1e-9)
        assert row["expected"] == pytest.approx(n * m / 60) and row["fold"] == pytest.approx(k / (n * m / 60))
    values = [row["p"] for row in rows]
    for row in rows:  # Benjamini & Hochberg 1995: the smallest level at which the row is rejected
        levels = [p * len(values) / sum(other <= p for other in values) for p in values if p >= row["p"]]
        assert row["q"] == pytest.approx(min(1.0, *levels, 1.0), rel=1e-9)
    assert [row["type"] for row in rows] == sorted(row["type"] for row in rows)
    own = [row["p"] for row in rows if row["type"] == "one"]
    assert own == sorted(own)


def test_adjusted_p_equal_statsmodels():
    multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
    genes = [f"G{i}" for i in range(50)]
    sets = {f"S{i}": genes[i : i + 5 + i] for i in range(15)}
    rows = over_representation({"t": genes[3:15]}, genes, sets)
    adjusted = multipletests([row["p"] for row in rows], method="fdr_bh")[1]
    np.testing.assert_allclose([row["q"] for row in rows], adjusted, rtol=1e-9)


def test_genes_with_one_symbol_count_once():
    genes = ["A|1", "A|2", "B|3", "C|4", "D|5", "E|6"]
    row = over_representation({"t": ["A|1", "A|2"]}, genes, {"s": ["A", "B"]}, smallest=1)[0]
    assert (row["top"], row["size"], row["overlap"]) == (1, 2, 1) and row["p"] == pytest.approx(2 / 5)


def test_nothing_to_test():
    assert over_representation({"t": ["A"]}, ["A", "B"], {"s": ["X"]}) == []
    assert over_representation({}, ["A", "B"], {"s": ["A"]}, smallest=1) == []
    with pytest.raises(ValueError, match="Z of t"):
        over_representation({"t": ["Z"]}, ["A", "B"], {"s": ["A"]})
