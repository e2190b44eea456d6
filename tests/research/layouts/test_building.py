"""Do the layouts put the genes where they say, for any number of genes, and is nonsense refused?"""

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.layouts import building, chromosome
from research.layouts.building import build
from research.layouts.layout import smallest_side

GENES = ("TP53", "?|100130426", "C10orf10", "A1BG", "C1orf1", "SLC35E2|728661", "MT-ND1")


def values(genes: int, samples: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3, 2, (samples, genes)).astype(np.float32)


def positions(tmp_path, text: str):
    path = tmp_path / "positions.csv"
    path.write_bytes(text.encode())
    return path


def names(layout) -> list[list[str]]:
    """The picture as rows of names."""
    grid = np.full(layout.side**2, "", object)
    grid[layout.pixel] = layout.genes
    return grid.reshape(layout.side, layout.side).tolist()


def test_alphabetical_is_the_study_s_row_by_row():
    layout = build("alphabetical", GENES, values(7))
    assert names(layout) == [
        ["?|100130426", "A1BG", "C10orf10"],
        ["C1orf1", "MT-ND1", "SLC35E2|728661"],
        ["TP53", "", ""],
    ]
    vector = np.arange(7.0)
    picture = np.zeros(25)
    picture[build("alphabetical", GENES, values(7), side=5).pixel] = vector
    np.testing.assert_array_equal(picture[:7], [1, 3, 2, 4, 6, 5, 0])  # the sorted vector, zeros behind it
    assert not picture[7:].any()


def test_random_depends_on_the_seed_only():
    one, again, other = (build("random", GENES, values(7, seed=seed), seed=seed // 2) for seed in (0, 1, 2))
    np.testing.assert_array_equal(one.pixel, again.pixel)
    assert (one.pixel != other.pixel).any() and one.notes == "seed 0"


@pytest.mark.parametrize("name", ["alphabetical", "random", "correlation", "deepinsight_pca"])
@pytest.mark.parametrize("genes, side", [(4, 0), (5, 0), (12, 4), (50, 11), (131, 0)])
def test_every_gene_has_a_pixel_of_the_picture(name, genes, side):
    layout = build(name, [f"G{number}" for number in range(genes)], values(genes), side)
    assert layout.side == (side or smallest_side(genes)) and layout.placed.all()
    if name not in building.SHARING:
        assert len(set(layout.pixel.tolist())) == genes
    again = build(name, [f"G{number}" for number in range(genes)], values(genes), side)
    np.testing.assert_array_equal(layout.pixel, again.pixel)


@pytest.mark.parametrize("newline, separator, mark", [("\n", ",", ""), ("\r\n", "\t", "\ufeff")])
def test_chromosomes_in_their_order(newline, separator, mark, tmp_path):
    rows = [
        ("strand", "Gene", "start", "chromosome"),
        ("1", "MT-ND1", "3307", "chrM"),
        ("-1", "TP53", "7668421", "17"),
        ("1", "C1orf1", "10", "chr1"),
        ("1", "C10orf10", "9", "10"),
        ("1", "OTHER", "1", "Y"),
        ("1", "SLC35E2", "9", "chr1"),
        ("1", "A1BG", "5", "GL000194.1"),
        ("", "", "", ""),
        ("1", "A1BG", "5", "GL000194.1"),
    ]
    path = positions(tmp_path, mark + newline.join(separator.join(row) for row in rows))
    layout = build("chromosome", GENES, values(7), positions=path)
    assert names(layout)[0] == ["SLC35E2|728661", "C1orf1", "C10orf10"]
    assert names(layout)[1:] == [["TP53", "MT-ND1", "A1BG"], ["?|100130426", "", ""]]
    assert layout.notes == "1 genes have no position in the table and come last"


def test_equal_starts_are_sorted_by_name_and_the_exact_name_goes_before_the_symbol(tmp_path):
    path = positions(tmp_path, "gene,chromosome,start\nB,2,5\nA,2,5\nC|7,1,1\nC,X,1\n")
    order, missing = chromosome.order(("C|8", "B", "C|7", "A"), path)
    assert order.tolist() == [2, 3, 1, 0] and missing == 0


@pytest.mark.parametrize(
    "text, message",
    [
        ("gene,chromosome\nA,1\n", "line 1: there is no column start"),
        ("", "line 1: there is no column gene, chromosome, start"),
        ("gene,chromosome,start\n", "no gene below its header"),
        ("gene,chromosome,start\nTP53,17,1\nA,1,x\n", "line 3: the start 'x' is no whole number"),
        ("gene,chromosome,start\nTP53,17,1.5\n", "line 2: the start '1.5'"),
        ("gene,chromosome,start\nTP53,17,-4\n", "line 2: the start '-4'"),
        ("gene,chromosome,start\nTP53,17,²\n", "line 2: the start '²'"),
        ("gene,chromosome,start\nTP53,23,4\n", "line 2: there is no chromosome '23'"),
        ("gene,chromosome,start\nTP53,,4\n", "line 2: there is no chromosome ''"),
        ("gene,chromosome,start\nTP53,chr,4\n", "line 2: there is no chromosome 'chr'"),
        ("gene,chromosome,start\nTP53,17,4\n\nTP53,17,5\n", "line 4: TP53 lies elsewhere in line 2"),
        ("gene,chromosome,start\nTP53,17\n", "line 2: 2 cells under 3 columns"),
        ("gene,chromosome,start\n,17,3\n", "line 2: the gene has no name"),
        ("gene,chromosome,start\nBRCA9,17,3\n", "has none of the 7 genes .the first is 'TP53'"),
    ],
)
def test_wrong_positions_are_named_by_line(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        build("chromosome", GENES, values(7), positions=positions(tmp_path, text))


def test_missing_and_binary_positions_are_named(tmp_path):
    with pytest.raises(UserError, match="needs a table of gene positions.*columns gene, chromosome, start"):
        build("chromosome", GENES, values(7))
    with pytest.raises(UserError, match="there is no table of gene positions"):
        build("chromosome", GENES, values(7), positions=tmp_path / "none.csv")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no text table"):
        build("chromosome", GENES, values(7), positions=tmp_path / "binary")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "spiral"}, "'spiral' is unknown; choose of alphabetical"),
        ({"genes": ("A",) * 7}, "7 genes with 1 names"),
        ({"genes": ()}, "0 genes"),
        ({"genes": GENES[:6]}, "do not fit 6 genes"),
        ({"side": 2}, "7 genes do not fit on 2 x 2 pixels; choose a side of at least 3, or 0"),
        ({"side": -1}, "choose a side"),
        ({"name": "deepinsight", "side": -3}, "choose a side"),
        ({"name": "correlation", "train_values": np.full((3, 7), np.nan)}, "not finite"),
        ({"name": "deepinsight", "train_values": np.zeros((0, 7))}, "no samples"),
        ({"name": "deepinsight", "train_values": np.zeros((1, 7))}, "2 training examples"),
        ({"name": "deepinsight_pca", "train_values": np.zeros((4, 7))}, "4 genes that vary"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    given = {"name": "random", "genes": GENES, "train_values": values(7)} | arguments
    with pytest.raises(UserError, match=message):
        build(**given)


def test_deepinsight_leaves_genes_without_variation_out():
    values = np.random.default_rng(0).normal(size=(20, 9)).astype(np.float32)
    with_constants = np.insert(values, [2, 5], 7.0, axis=1)
    names = tuple(f"gene{i}" for i in range(11))
    found = building.build("deepinsight_pca", names, with_constants, side=6)
    alone = building.build("deepinsight_pca", [names[i] for i in range(11) if i not in (2, 6)], values, side=6)
    assert found.pixel[[2, 6]].tolist() == [-1, -1] and "2 genes without variation" in found.notes
    np.testing.assert_array_equal(np.delete(found.pixel, [2, 6]), alone.pixel)
