"""Who trains, who chooses, who calibrates and who is tested: roles and folds by group, stratified and seeded.

A group (patient, photograph, cluster of near duplicates) is never cut. Stratification is the iterative one of Sechidis,
Tsoumakas and Vlahavas (ECML 2011), moved from examples to groups: the label with the fewest examples left is served
first, its groups go, largest first, to the subset that still wants most examples of that label. Single-label data are
the special case of one label each. Ties are broken by a hash of seed and group name, so neither the order of the
examples nor anything but the seed decides.
"""

import dataclasses
import hashlib
import math
import random
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.cli import UserError

DUPLICATE_OF_TEST = "duplicate_of_test"
"""Role of a labelled image whose copy is in `test`: it neither trains, nor is anything chosen or scored on it."""

UNLABELLED = "unlabelled"
ROLES = ("train", "validation", "calibration", "test", UNLABELLED, DUPLICATE_OF_TEST)

RULE = (
    "Groups are never cut. Roles that the source fixes stay; a labelled image whose group has a member fixed as test "
    f"gets the role {DUPLICATE_OF_TEST} unless it is itself fixed as test; a group with members fixed as calibration, "
    "validation or train goes as a whole to the first of these that occurs in it; unlabelled images stay unlabelled. "
    "All other groups are assigned by iterative stratification (Sechidis et al. 2011) over groups, largest first, ties "
    "by SHA-256 of seed and group; a role that comes out empty receives the smallest group of the largest role."
)

STUDY_HELD_OUT = {"hpa": (0.1, 42), "blood_cells": (0.2, 42)}
"""Share of images that each study held out at random, and the seed."""

STUDY_SHARES = {"cancer_genes": (0.8, 0.1, 10)}
"""Shares of each class that a study trained and validated on, the rest being its test set, and the seed."""


@dataclasses.dataclass(frozen=True)
class StudySplit:
    """A study's own split by image: roles `[N]`, and the sentence that every figure from it has to carry."""

    roles: list[str]
    note: str


def label_matrix(labels: Sequence, multi_label: bool) -> np.ndarray:
    """Labels as a bool matrix `[N, K]`.

    Args:
        labels: N sequences of class indices (empty or None: no label), or int `[N]` (negative: none), or, multi-label,
            a 0/1 matrix `[N, K]` given as a numpy array.
        multi_label: whether a row may have several labels.

    Raises:
        ValueError: when a single-label row has several labels.
    """
    if isinstance(labels, np.ndarray) and labels.ndim == 2:
        return labels > 0
    rows = [() if item is None else np.atleast_1d(np.asarray(item, dtype=np.int64)) for item in labels]
    rows = [[int(value) for value in row if value >= 0] for row in rows]
    if not multi_label and any(len(row) > 1 for row in rows):
        raise ValueError("a single-label example has several labels")
    matrix = np.zeros((len(rows), 1 + max((max(row) for row in rows if row), default=-1)), bool)
    for index, row in enumerate(rows):
        matrix[index, row] = True
    return matrix


def _order(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _stratify(matrix: np.ndarray, groups: Sequence[str], shares: Sequence[float], seed: int) -> np.ndarray:
    """Subset index `[N]` of each example: whole groups, the label counts of subset j near shares[j] of all.

    Args:
        matrix: bool `[N, K]`.
        groups: N names.
        shares: one positive number for each subset; they sum to one.
        seed: breaks ties.
    """
    names = sorted(set(groups), key=lambda name: _order(seed, name))
    position = {name: index for index, name in enumerate(names)}
    member = np.array([position[name] for name in groups], np.int64)
    # The last column counts examples; it serves the groups without any label, after all labels.
    columns = np.concatenate([matrix, np.ones((len(matrix), 1), bool)], axis=1).astype(np.int64)
    counts = np.zeros((len(names), columns.shape[1]), np.int64)
    np.add.at(counts, member, columns)
    wanted = np.outer(np.asarray(shares, np.float64), counts.sum(0))
    left = np.ones(len(names), bool)
    subset = np.zeros(len(names), np.int64)
    while left.any():
        remaining = counts[left].sum(0)
        open_labels = np.flatnonzero(remaining[:-1] > 0)
        label = open_labels[np.argmin(remaining[open_labels])] if len(open_labels) else len(remaining) - 1
        waiting = np.flatnonzero(left & (counts[:, label] > 0))
        for group in waiting[np.argsort(-counts[waiting, label], kind="stable")]:
            # Most wanted label first, then most wanted examples; rounding keeps a sum's last bit from deciding a tie.
            need = np.round(wanted, 6)
            best = np.flatnonzero(need[:, label] == need[:, label].max())
            best = best[need[best, -1] == need[best, -1].max()]
            chosen = best[int.from_bytes(_order(seed, f"tie:{names[group]}")[:8], "big") % len(best)]
            subset[group] = chosen
            wanted[chosen] -= counts[group]
            left[group] = False
    return subset[member]


def _shares(fractions: Mapping[str, float], provided: set[str]) -> dict[str, float]:
    """Shares of the roles to carve, train among them; roles that the source provides are not carved."""
    shares = {}
    for role in ("validation", "calibration", "test"):
        fraction = float(fractions.get(role, 0.0))
        if not 0 <= fraction < 1:
            raise UserError(f"the fraction of {role} is {fraction}: give a number from 0 to below 1.")
        if fraction and role not in provided:
            shares[role] = fraction
    if unknown := set(fractions) - {"train", "validation", "calibration", "test"}:
        raise UserError(f"unknown role {min(unknown)} in the fractions: use validation, calibration and test.")
    if sum(shares.values()) >= 1:
        raise UserError("the fractions of validation, calibration and test leave nothing to train on: lower them.")
    return {"train": 1 - sum(shares.values()), **shares}


def _fill_empty(subset: np.ndarray, groups: list[str], roles: list[str], seed: int) -> None:
    """Gives each empty subset the smallest group of the largest one, in place."""
    for empty in range(len(roles)):
        if (subset == empty).any():
            continue
        sizes: dict[int, dict[str, int]] = {}
        for index, name in zip(subset.tolist(), groups, strict=True):
            inside = sizes.setdefault(index, {})
            inside[name] = inside.get(name, 0) + 1
        donors = [index for index, inside in sizes.items() if len(inside) > 1]
        if not donors:
            raise UserError(
                f"the role {roles[empty]} would be empty: {len(set(groups))} photographs or patients cannot fill "
                f"{len(roles)} roles; add images or set the fraction of {roles[empty]} to 0."
            )
        donor = sizes[min(donors, key=lambda index: (-sum(sizes[index].values()), index))]
        given = min(donor, key=lambda name: (donor[name], _order(seed, name)))
        subset[[name == given for name in groups]] = empty


def assign_roles(
    labels: Sequence,
    groups: Sequence[str],
    fixed_roles: Sequence[str | None],
    fractions: Mapping[str, float],
    seed: int,
    multi_label: bool,
) -> list[str]:
    """Assigns a role to each of N examples by the rule in `RULE`.

    Args:
        labels: see `label_matrix`; without a label, a single-label example is unlabelled, a multi-label one negative.
        groups: N names.
        fixed_roles: N roles that the source fixes, None to carve.
        fractions: shares of the carved examples for "validation", "calibration" and "test", the rest trains. A role
            that the source fixes for any example is not carved.
        seed: of the tie-breaking.
        multi_label: whether examples may have several labels.

    Returns:
        N roles out of `ROLES`, independent of the order of the examples.

    Raises:
        UserError: for a wrong fraction, and when there are fewer groups than roles to fill.
    """
    matrix = label_matrix(labels, multi_label)
    if unknown := set(fixed_roles) - set(ROLES) - {None}:
        raise UserError(f"unknown role {min(unknown)}: use train, validation, calibration, test or unlabelled.")
    fixed: list[str | None] = list(fixed_roles)
    if not multi_label:
        fixed = [UNLABELLED if not row.any() else role for row, role in zip(matrix, fixed, strict=True)]
    shares = _shares(fractions, {role for role in fixed if role})
    inside: dict[str, set[str | None]] = {}
    for group, role in zip(groups, fixed, strict=True):
        inside.setdefault(group, set()).add(role)
    roles: list[str] = [""] * len(fixed)
    for index, (group, role) in enumerate(zip(groups, fixed, strict=True)):
        if role in ("test", UNLABELLED, DUPLICATE_OF_TEST):
            roles[index] = role
        elif "test" in inside[group]:
            roles[index] = DUPLICATE_OF_TEST
        else:
            first = (name for name in ("calibration", "validation", "train") if name in inside[group])
            roles[index] = next(first, "")
    carved = [index for index, role in enumerate(roles) if not role]
    if carved:
        carved_groups, names = [groups[index] for index in carved], list(shares)
        subset = _stratify(matrix[carved], carved_groups, list(shares.values()), seed)
        _fill_empty(subset, carved_groups, names, seed)
        for index, chosen in zip(carved, subset, strict=True):
            roles[index] = names[chosen]
    return roles


def assign_folds(
    labels: Sequence,
    groups: Sequence[str],
    k: int,
    seed: int,
    multi_label: bool,
    eligible: Sequence[bool] | None = None,
    class_names: Sequence[str] | None = None,
) -> np.ndarray:
    """Grouped stratified folds.

    Args:
        labels: see `label_matrix`.
        groups: N names.
        k: number of folds, at least 2.
        seed: of the tie-breaking.
        multi_label: whether examples may have several labels.
        eligible: N truth values; False leaves an example out (unlabelled images). A single-label example without a
            label is always left out.
        class_names: K names for the error message.

    Returns:
        int64 `[N]`: the fold 0..k-1 in which the example is tested, -1 where it is left out.

    Raises:
        UserError: when k is below 2, when there are fewer groups than folds, and, single-label, when a class has fewer
            groups than folds, so that a fold would lack it. (A rare label of multi-label data may miss a fold.)
    """
    if k < 2:
        raise UserError(f"folds={k}: give at least 2, or 0 for none.")
    matrix = label_matrix(labels, multi_label)
    use = np.ones(len(matrix), bool) if eligible is None else np.asarray(eligible, bool).copy()
    if not multi_label:
        use &= matrix.any(1)
    chosen = np.flatnonzero(use)
    names = [groups[index] for index in chosen]
    for label in range(matrix.shape[1]):
        having = {name for name, index in zip(names, chosen, strict=True) if matrix[index, label]}
        if having and len(having) < k and not multi_label:
            name = class_names[label] if class_names is not None else str(label)
            raise UserError(
                f"class {name} has {len(having)} photographs or patients, fewer than {k} folds: "
                + (f"ask for at most {len(having)} folds" if len(having) > 1 else "ask for none")
                + " or leave the class out."
            )
    if len(set(names)) < k:
        raise UserError(f"{len(set(names))} photographs or patients cannot fill {k} folds: ask for fewer folds.")
    folds = np.full(len(matrix), -1, np.int64)
    subset = _stratify(matrix[chosen], names, [1 / k] * k, seed)
    _fill_empty(subset, names, [f"fold {fold}" for fold in range(k)], seed)
    folds[chosen] = subset
    return folds


def fold_roles(
    labels: Sequence,
    groups: Sequence[str],
    folds: np.ndarray,
    fold: int,
    fractions: Mapping[str, float],
    seed: int,
    multi_label: bool,
) -> list[str]:
    """Roles of one fold of a cross-validation.

    `fold` is test. `validation` and `calibration` come from the folds after it, cyclically, as few as they fill, and
    the rest trains. So the k validation sets of a cross-validation overlap as little as they can, not at all if they
    fit into one fold, and their mean rests on as many groups as possible; carving each anew from all that is not tested
    would serve the same few groups again and again.

    Args:
        labels, groups, seed, multi_label: see `assign_roles`.
        folds: int `[N]`, 0..k-1, no group in two.
        fold: which is tested.
        fractions: shares of "validation" and "calibration" of the examples outside the test fold.

    Returns:
        N roles, as `assign_roles`.

    Raises:
        UserError: see `assign_roles`.
    """
    k = int(np.max(folds)) + 1
    share = math.fsum(fractions.values())
    donors = min(math.floor(share * (k - 1) + 1e-9) + 1, k - 1)  # one more than they fill: some of it still trains
    ahead = (np.asarray(folds) - fold) % k  # 0: tested, 1: the next fold, …
    # Shares are of all but the test fold, and only so many of the k - 1 others give.
    scaled = {role: fraction * (k - 1) / donors for role, fraction in fractions.items()}
    fixed = ["test" if a == 0 else "train" if a > donors else None for a in ahead]
    return assign_roles(labels, groups, fixed, scaled, seed, multi_label)


def study_split(
    study: str, roles: Sequence[str], labels: np.ndarray | None = None, seed: int | None = None
) -> StudySplit:
    """The random split by example that the study itself used, for comparison with its published figures.

    That of cancer_genes is split-folders': the examples of each class, shuffled by Python's generator, are cut at the
    shares, rounded down. It has no calibration examples. Of the other studies the held-out share is drawn as
    scikit-learn's `train_test_split(test_size=share, random_state=seed)` draws it, over the labelled examples in the
    order given (the study's own file order is not kept, so the images differ, the procedure does not). It becomes
    `test`. The study chose its thresholds and its checkpoint on these images too; here
    validation and calibration, half that size each, are cut from the rest instead, so that nothing is chosen on test.

    Args:
        study: "hpa", "blood_cells", "captions" or "cancer_genes".
        roles: N roles of the prepared dataset; unlabelled examples stay so, all others are drawn from.
        labels: int `[N]`, for a split by class.
        seed: replaces the study's own.

    Raises:
        UserError: for a study that has no random split of its own, or too few examples.
    """
    if study in STUDY_SHARES and labels is not None:
        return _split_by_class(study, roles, labels, seed)
    if study not in STUDY_HELD_OUT:
        raise UserError(
            f"the study {study} has no random split of its own: use config.data.split = 'roles' "
            f"(split = 'study' exists for {', '.join(sorted({*STUDY_HELD_OUT, *STUDY_SHARES}))})."
        )
    share, own_seed = STUDY_HELD_OUT[study]
    labelled = np.flatnonzero([role != UNLABELLED for role in roles])
    held_out = int(np.ceil(share * len(labelled)))
    side = held_out // 2
    if side < 1 or len(labelled) <= held_out + 2 * side:
        raise UserError(f"{len(labelled)} labelled images are too few for the study's split: add images.")
    drawn = labelled[np.random.RandomState(own_seed if seed is None else seed).permutation(len(labelled))]
    assigned = np.array(roles, dtype=object)
    assigned[drawn] = "train"
    assigned[drawn[:held_out]] = "test"
    assigned[drawn[-side:]] = "validation"
    assigned[drawn[-2 * side : -side]] = "calibration"
    used = own_seed if seed is None else seed
    note = (
        f"LEAKY: split at random by image ({share:.0%} held out, seed {used}) as the study did; copies of one "
        "photograph or cells of one patient may stand on both sides, so figures are too high."
    )
    return StudySplit([str(role) for role in assigned], note)


def _split_by_class(study: str, roles: Sequence[str], labels: np.ndarray, seed: int | None) -> StudySplit:
    """See `study_split`."""
    first, second, own_seed = STUDY_SHARES[study]
    used = own_seed if seed is None else seed
    assigned = np.array(roles, dtype=object)
    for label in np.unique(labels[labels >= 0]):
        drawn = np.flatnonzero(labels == label).tolist()
        random.Random(used).shuffle(drawn)
        end = int(first * len(drawn))
        assigned[drawn] = "test"
        assigned[drawn[:end]] = "train"
        assigned[drawn[end : end + int(second * len(drawn))]] = "validation"
    note = (
        f"LEAKY: split at random by sample ({first:.0%} to train, seed {used}) as the study did; several samples of "
        "one patient may stand on both sides, so figures are too high."
    )
    return StudySplit([str(role) for role in assigned], note)
