"""Is a layout kept as it was, with the same bytes, and refused where it does not belong?"""

import json

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.layouts import layout as layouts
from research.layouts.layout import Layout

GENES = ("B2M", "A|1", "é", "TP53", "SEPT9")


def small() -> Layout:
    return Layout("deepinsight", GENES, 3, np.array([4, 0, -1, 4, 8]), "tsne, seed 3")


def test_what_is_loaded_is_what_was_saved_with_the_same_bytes(tmp_path):
    layouts.save(small(), tmp_path / "a.json")
    loaded = layouts.load(tmp_path / "a.json", GENES)
    assert (loaded.name, loaded.genes, loaded.side, loaded.notes) == ("deepinsight", GENES, 3, "tsne, seed 3")
    np.testing.assert_array_equal(loaded.pixel, [4, 0, -1, 4, 8])
    assert loaded.pixel.dtype == np.int32
    layouts.save(loaded, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_summary():
    assert layouts.summary(small()) == {
        "name": "deepinsight",
        "side": 3,
        "genes": 5,
        "placed": 4,
        "empty": 6,
        "collisions": 2,
        "largest_collision": 2,
        "notes": "tsne, seed 3",
    }
    assert layouts.describe(small()) == (
        "layout deepinsight: 4 of 5 genes on 3 x 3 pixels, 6 of them empty; 2 genes share a pixel, at most 2 of them "
        "one; tsne, seed 3"
    )
    nothing = Layout("random", ("A",), 2, np.array([-1]))
    assert layouts.summary(nothing)["largest_collision"] == 0
    assert layouts.describe(nothing) == "layout random: 0 of 1 genes on 2 x 2 pixels, 4 of them empty"
    np.testing.assert_array_equal(small().counts(), [[1, 0, 0], [0, 2, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    "genes, message",
    [
        (GENES[:4], "is for 5 genes, the data set has 4"),
        (("B2M", "A|2", *GENES[2:]), "has 'A|1' as gene 2, the data set 'A|2'.*train again"),
    ],
)
def test_other_genes_are_refused(genes, message, tmp_path):
    layouts.save(small(), tmp_path / "layout.json")
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        layouts.load(tmp_path / "layout.json", genes)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pixel": [9, 0, 1, 2, 3]}, "0 ... 8"),
        ({"pixel": [0.5, 0, 1, 2, 3]}, "whole numbers"),
        ({"pixel": [1, 2]}, "5 genes need as many"),
        ({"pixel": None}, "whole numbers"),
        ({"side": 0}, "side 0"),
        ({"side": "three"}, "is no layout"),
        ({"genes": ["A"] * 5}, "unique"),
        ({"genes": 5}, "is no layout"),
    ],
)
def test_broken_files_are_refused(change, message, tmp_path):
    path = tmp_path / "layout.json"
    layouts.save(small(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        layouts.load(path)


def test_files_that_are_no_layouts_are_refused(tmp_path):
    path = tmp_path / "layout.json"
    with pytest.raises(UserError, match="there is no layout"):
        layouts.load(path)
    for content, message in (
        (b"{", "is no layout"),
        (b"[]", "no JSON object|not a JSON object"),
        (b"{}", "lacks 'name'"),
        (b"\xff", "is no layout"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            layouts.load(path)


def test_the_smallest_square():
    sides = [layouts.smallest_side(genes) for genes in (1, 2, 4, 5, 9, 10, 10_404, 10_405, 20_531)]
    assert sides == [1, 2, 2, 3, 3, 4, 102, 103, 144]
