"""Is a data set of some classes the same as one that never had the others?"""

import numpy as np
import pytest

from input_pipeline import prepare, subset
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from tests.input_pipeline.expression_sets import TYPES, expression, replace_reader


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subset")
    (folder / "raw").mkdir()
    (folder / "raw" / "table.tsv").write_text("gene\n")
    (folder / "raw" / "positions.csv").write_text("gene,chromosome,start\nGENE1|1,chr1,5\n")
    with pytest.MonkeyPatch.context() as patch:
        replace_reader(patch, expression())
        prepare.prepare("cancer_genes", folder / "raw", folder / "data")
    return folder / "data"


def test_classes_are_left_out_and_renumbered(prepared):
    whole = open_dataset(prepared)
    part = subset.of_classes(whole, without=("KIRC",))
    assert part.class_names == ("BRCA", "LUAD") == subset.of_classes(whole, ("LUAD", "BRCA")).class_names
    assert part.fingerprint == subset.of_classes(whole, ("LUAD", "BRCA")).fingerprint != whole.fingerprint
    kept = [i for i in range(len(whole)) if whole.class_names[whole.labels[i]] != "KIRC"]
    assert len(part) == len(kept) == len(part.labels) == len(part.groups)
    for row, index in enumerate(kept):
        assert part.ids[row] == whole.ids[index] and part.roles[row] == whole.roles[index]
        assert part.class_names[part.labels[row]] == whole.class_names[whole.labels[index]]
        np.testing.assert_array_equal(part.vector(row), whole.vector(index))
    assert subset.of_classes(whole) is whole and part.captions is None


@pytest.mark.parametrize(("only", "without"), [(("KIRC",), ()), ((), TYPES[:2]), (("ACC", "KIRC"), ())])
def test_nonsense_is_refused(prepared, only, without):
    with pytest.raises(UserError):
        subset.of_classes(open_dataset(prepared), only, without)


def test_tables_of_the_download_come_with_the_data_set(prepared):
    assert (prepared / "expression.positions.csv").read_text().startswith("gene,chromosome,start\nGENE1|1")
