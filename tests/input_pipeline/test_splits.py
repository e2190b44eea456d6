"""Are groups never cut, labels evenly spread, test never contaminated, and is only the seed what decides?"""

import collections
import random

import numpy as np
import pytest

from input_pipeline import splits
from input_pipeline.cli import UserError

FRACTIONS = {"validation": 0.1, "calibration": 0.1, "test": 0.15}


def grouped_examples(seed: int = 0, classes: int = 4, groups: int = 130):
    """Single-label examples in groups of unequal size, with unequal class frequencies."""
    generator = np.random.default_rng(seed)
    labels, names = [], []
    for group in range(groups):
        label = int(generator.choice(classes, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()))
        for _ in range(int(generator.integers(1, 9))):
            labels.append((label,))
            names.append(f"photograph{group}")
    return labels, names


def multi_labels(n: int = 251, k: int = 9, seed: int = 3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.random((n, k)) < np.geomspace(0.5, 0.015, k)


def label_deviation(matrix: np.ndarray, subset: np.ndarray, shares: list[float]) -> float:
    """Mean over labels and subsets of |positives found - positives wanted| / positives (Sechidis et al., section 4)."""
    totals = np.maximum(matrix.sum(0), 1)
    found = np.stack([matrix[subset == j].sum(0) / totals for j in range(len(shares))])
    return float(np.abs(found - np.array(shares)[:, None]).mean())


def test_roles_keep_groups_whole_and_shares_near():
    labels, groups = grouped_examples()
    roles = splits.assign_roles(labels, groups, [None] * len(labels), FRACTIONS, 5, False)
    by_group = collections.defaultdict(set)
    for group, role in zip(groups, roles, strict=True):
        by_group[group].add(role)
    assert all(len(found) == 1 for found in by_group.values())
    for role, share in {**FRACTIONS, "train": 0.65}.items():
        assert abs(roles.count(role) / len(roles) - share) < 0.04
        for label in range(4):
            of_class = [r for r, own in zip(roles, labels, strict=True) if own == (label,)]
            assert abs(of_class.count(role) / len(of_class) - share) < 0.12


FOLDS = [
    (5, {"validation": 0.1}),
    (5, {"validation": 0.15, "calibration": 0.1}),
    (3, {"validation": 0.3, "calibration": 0.3}),
    (2, {"validation": 0.2}),
]


@pytest.mark.parametrize(("k", "fractions"), FOLDS)
def test_fold_roles_take_validation_from_the_next_folds(k, fractions):
    labels, groups = grouped_examples(6)
    folds = splits.assign_folds(labels, groups, k, 4, False)
    seen = {role: [] for role in fractions}
    for fold in range(k):
        roles = np.array(splits.fold_roles(labels, groups, folds, fold, fractions, 4, False))
        assert (roles[folds == fold] == "test").all() and (roles[folds != fold] != "test").all()
        for role, share in fractions.items():
            assert abs((roles == role).sum() / (folds != fold).sum() - share) < 0.05
            seen[role].append({group for group, own in zip(groups, roles, strict=True) if own == role})
        assert len({(g, r) for g, r in zip(groups, roles, strict=True)}) == len(set(groups))  # no group is cut
    if sum(fractions.values()) * (k - 1) < 1:  # they fit into one fold: no group validates twice
        assert all(sum(map(len, sets)) == len(set.union(*sets)) for sets in seen.values())


def test_fold_roles_leave_something_to_train_on():
    labels, groups = grouped_examples(6)
    folds = splits.assign_folds(labels, groups, 5, 4, False)
    assert "train" in splits.fold_roles(labels, groups, folds, 0, {"validation": 0.25}, 4, False)
    with pytest.raises(UserError, match="leave nothing to train on"):
        splits.fold_roles(labels, groups, folds, 0, {"validation": 0.5, "calibration": 0.5}, 4, False)


def test_only_seed_decides_not_order():
    labels, groups = grouped_examples(1)
    order = np.random.default_rng(0).permutation(len(labels))
    fixed = [None] * len(labels)
    roles = splits.assign_roles(labels, groups, fixed, FRACTIONS, 7, False)
    moved = splits.assign_roles([labels[i] for i in order], [groups[i] for i in order], fixed, FRACTIONS, 7, False)
    assert [roles[i] for i in order] == moved
    assert roles != splits.assign_roles(labels, groups, fixed, FRACTIONS, 8, False)
    folds = splits.assign_folds(labels, groups, 5, 7, False)
    again = splits.assign_folds([labels[i] for i in order], [groups[i] for i in order], 5, 7, False)
    np.testing.assert_array_equal(folds[order], again)


def test_copy_of_a_test_image_is_in_no_other_role():
    labels = [(0,), (0,), (1,), (1,), (), (0,), (1,), (0,), (1,)]
    groups = ["a", "a", "b", "b", "a", "c", "d", "e", "f"]
    fixed = ["test", None, "train", "test", "unlabelled", None, None, "validation", "train"]
    roles = splits.assign_roles(labels, groups, fixed, {"calibration": 0.4, "test": 0.2}, 0, False)
    assert roles[:5] == ["test", splits.DUPLICATE_OF_TEST, splits.DUPLICATE_OF_TEST, "test", "unlabelled"]
    assert roles[7:] == ["validation", "train"]
    assert sorted(roles[5:7]) == ["calibration", "train"]  # an official test set leaves no test to carve


def test_group_with_several_official_roles_moves_as_a_whole():
    roles = splits.assign_roles([(0,)] * 4, ["a", "a", "a", "b"], ["train", "validation", None, "train"], {}, 0, False)
    assert roles == ["validation"] * 3 + ["train"]


def test_every_role_is_filled_or_refused():
    roles = splits.assign_roles([(0,)] * 4, list("abcd"), [None] * 4, FRACTIONS, 0, False)
    assert sorted(roles) == ["calibration", "test", "train", "validation"]
    with pytest.raises(UserError, match="would be empty"):
        splits.assign_roles([(0,)] * 9, list("aaabbbccc"), [None] * 9, FRACTIONS, 0, False)


@pytest.mark.parametrize("fractions", [{"test": 1.0}, {"test": -0.1}, {"test": 0.6, "validation": 0.5}, {"tset": 0.1}])
def test_wrong_fractions_are_named(fractions):
    with pytest.raises(UserError):
        splits.assign_roles([(0,)] * 9, list("abcdefghi"), [None] * 9, fractions, 0, False)
    with pytest.raises(UserError, match="unknown role"):
        splits.assign_roles([(0,)], ["a"], ["tests"], {}, 0, False)


def test_folds_are_grouped_and_stratified():
    labels, groups = grouped_examples(2)
    folds = splits.assign_folds([*labels, ()], [*groups, "contest"], 5, 0, False)
    assert folds[-1] == -1
    assert all(len(set(folds[np.array([*groups, "contest"]) == name])) == 1 for name in set(groups))
    matrix = splits.label_matrix(labels, False)
    assert label_deviation(matrix, folds[:-1], [0.2] * 5) < 0.03


def test_sixteen_photographs_of_a_hundred_files_fill_five_folds():
    labels = [(0,)] * (16 * 31) + [(1,)] * (159 * 3)
    groups = [f"monocyte{i // 31}" for i in range(16 * 31)] + [f"neutrophil{i // 3}" for i in range(159 * 3)]
    folds = splits.assign_folds(labels, groups, 5, 0, False)
    photographs = [{groups[i] for i in np.flatnonzero(folds == fold) if labels[i] == (0,)} for fold in range(5)]
    assert sorted(map(len, photographs)) == [3, 3, 3, 3, 4]


def test_iterative_stratification_is_as_even_as_the_reference_package():
    reference = pytest.importorskip("iterstrat.ml_stratifiers")
    matrix = multi_labels()
    folds = splits.assign_folds(matrix, [str(i) for i in range(len(matrix))], 5, 0, True)
    other = np.zeros(len(matrix), int)
    splitter = reference.MultilabelStratifiedKFold(n_splits=5, shuffle=True, random_state=0)
    for fold, (_, test) in enumerate(splitter.split(matrix, matrix)):
        other[test] = fold
    random = np.random.default_rng(0).permutation(len(matrix)) % 5
    ours, theirs, chance = (label_deviation(matrix, subset, [0.2] * 5) for subset in (folds, other, random))
    assert ours <= 1.1 * theirs + 1e-3
    assert ours < 0.5 * chance
    assert np.ptp(np.bincount(folds)) <= 12


def test_multi_label_rows_as_tuples_and_negatives():
    matrix = multi_labels(151, 3)
    rows = [tuple(np.flatnonzero(row).tolist()) for row in matrix]
    groups = [str(i) for i in range(151)]
    assert not matrix.any(1).all()
    roles = splits.assign_roles(rows, groups, [None] * 151, FRACTIONS, 0, True)
    assert "unlabelled" not in roles
    np.testing.assert_array_equal(
        splits.assign_folds(rows, groups, 3, 0, True), splits.assign_folds(matrix, groups, 3, 0, True)
    )
    eligible = np.arange(151) % 2 == 0
    assert (splits.assign_folds(rows, groups, 3, 0, True, eligible=eligible)[~eligible] == -1).all()


def test_folds_beyond_the_groups_of_a_class_are_refused():
    labels, groups = [(0,)] * 12 + [(1,)] * 12, [f"g{i}" for i in range(12)] + ["x", "y", "z"] * 4
    with pytest.raises(UserError, match="class MONOCYTE has 3 .* fewer than 5 folds: ask for at most 3"):
        splits.assign_folds(labels, groups, 5, 0, False, class_names=["NEUTROPHIL", "MONOCYTE"])
    with pytest.raises(UserError, match="at least 2"):
        splits.assign_folds(labels, groups, 1, 0, False)
    with pytest.raises(ValueError, match="several labels"):
        splits.assign_folds([(0, 1)], ["a"], 2, 0, False)


def test_study_split_is_scikit_learns_and_says_leaky():
    model_selection = pytest.importorskip("sklearn.model_selection")
    roles = ["train"] * 53 + ["unlabelled"] * 7 + ["test"] * 50
    found = splits.study_split("hpa", roles)
    labelled = [i for i, role in enumerate(roles) if role != "unlabelled"]
    rest, held_out = model_selection.train_test_split(labelled, test_size=0.1, random_state=42)
    assert {i for i, role in enumerate(found.roles) if role == "test"} == set(held_out)
    assert {i for i, r in enumerate(found.roles) if r in ("train", "validation", "calibration")} == set(rest)
    assert found.roles[53:60] == ["unlabelled"] * 7
    assert collections.Counter(found.roles)["validation"] == collections.Counter(found.roles)["calibration"] == 5
    assert found.note.startswith("LEAKY")
    with pytest.raises(UserError, match="no random split"):
        splits.study_split("folder", roles)
    with pytest.raises(UserError, match="too few"):
        splits.study_split("hpa", ["train"] * 3)


def test_study_split_of_cancer_genes_is_split_folders():
    labels = np.array([2] * 41 + [0] * 13 + [-1] * 3 + [1] * 27)
    roles = ["train"] * 54 + ["unlabelled"] * 3 + ["test"] * 27
    found = np.array(splits.study_split("cancer_genes", roles, labels).roles)
    for label, count in ((0, 13), (1, 27), (2, 41)):
        # What split-folders' `ratio(seed=10, ratio=(.8, .1, .1))` does with the sorted files of a folder.
        files = np.flatnonzero(labels == label).tolist()
        random.seed(10)
        random.shuffle(files)
        train, validation = int(0.8 * count), int(0.8 * count) + int(0.1 * count)
        assert set(found[files[:train]]) == {"train"} and set(found[files[train:validation]]) <= {"validation"}
        assert set(found[files[validation:]]) == {"test"}
    assert set(found[54:57]) == {"unlabelled"}
    with pytest.raises(UserError, match="cancer_genes"):
        splits.study_split("folder", ["train"] * 9)
