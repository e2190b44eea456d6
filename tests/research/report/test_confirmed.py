"""Are the means, intervals and probabilities of a confirmed front those of plain loops over the predictions?"""

import types

import numpy as np
import pytest

from research.evaluation import predictions, statistics
from research.report import confirmed
from tests.research.report import fake_search

SETTINGS = types.SimpleNamespace(temperature=True, thresholds="fixed", fallback="argmax")


def row_of(setting, seed, parameters=10, **values):
    name = f"{setting}-{seed}"
    return {"id": name, "setting": setting, "stage": "confirm", "status": "finished", "seed": seed,
            "parameters": parameters} | values  # fmt: skip


def write(folder, row, accuracy, seed, **values):
    file = folder / "predictions" / f"{row['id']}_test.csv"
    fake_search.write_predictions(file, accuracy, seed, **values)
    return predictions.read(file)


def right(part):
    return (part.logits.argmax(1) == part.labels(False)).astype(float)


def test_one_seed_has_the_interval_of_the_plain_bootstrap(tmp_path):
    row = row_of("a", 0)
    part = write(tmp_path, row, 0.7, 1, groups=9)
    (found,) = confirmed.confirmed(tmp_path, [row], False, SETTINGS, seed=3)
    hits = right(part)
    low, high = statistics.cluster_bootstrap(lambda rows: hits[rows].mean(), part.groups, confirmed.RESAMPLES, seed=3)
    assert found["test"]["value"] == pytest.approx(hits.mean())
    assert (found["test"]["low"], found["test"]["high"]) == pytest.approx((low, high))
    assert (found["images"], found["groups"], found["seeds"], found["non_dominated"]) == (120, 9, 1, 1.0)


def test_two_settings_with_seeds_against_a_loop(tmp_path):
    rows, parts = [], {}
    for setting, parameters, accuracy in (("small", 10, 0.62), ("large", 90, 0.66), ("larger", 91, 0.64)):
        for seed in (5, 6):
            rows.append(row_of(setting, seed, parameters))
            parts[setting, seed] = write(tmp_path, rows[-1], accuracy, parameters + seed, groups=7)
    found = confirmed.confirmed(tmp_path, rows[::-1], False, SETTINGS, seed=1)
    assert [row["setting"] for row in found] == ["small", "large", "larger"]
    hits = {key: right(part) for key, part in parts.items()}
    groups = np.unique(parts["small", 5].groups, return_inverse=True)[1]
    generator = np.random.default_rng(0)
    means = np.empty((4000, 3))
    for replicate in means:
        chosen = np.concatenate([np.flatnonzero(groups == g) for g in generator.integers(0, 7, 7)])
        for column, setting in enumerate(("small", "large", "larger")):
            seeds = generator.choice([5, 6], 2)
            replicate[column] = np.mean([hits[setting, seed][chosen].mean() for seed in seeds])
    for column, row in enumerate(found):
        values = [hits[row["setting"], seed].mean() for seed in (5, 6)]
        assert row["test"]["value"] == pytest.approx(np.mean(values))
        low, high = np.quantile(means[:, column], [0.025, 0.975])
        assert row["test"]["low"] == pytest.approx(low, abs=0.02)
        assert row["test"]["high"] == pytest.approx(high, abs=0.02)
    expected = [1.0, np.mean(means[:, 1] > means[:, 0]), np.mean(means[:, 2] > means[:, :2].max(1))]
    assert [row["non_dominated"] for row in found] == pytest.approx(expected, abs=0.05)


def test_probabilities_equal_brute_force():
    generator = np.random.default_rng(0)
    parameters = generator.integers(1, 4, 6).astype(float)
    replicates = np.round(generator.random((6, 50)), 1)  # with ties
    expected = np.zeros(6)
    for column in replicates.T:
        for i in range(6):
            beaten = [
                parameters[j] <= parameters[i] and column[j] >= column[i]
                and (parameters[j] < parameters[i] or column[j] > column[i])
                for j in range(6)
            ]  # fmt: skip
            expected[i] += not any(beaten)
    assert confirmed.probabilities(parameters, replicates) == pytest.approx(expected / 50)


def test_folds_of_a_seed_are_pooled_and_their_order_does_not_matter(tmp_path):
    generator = np.random.default_rng(2)
    ids, labels = [f"i{n}" for n in range(40)], np.arange(40) % 4
    logits = generator.normal(size=(40, 4)).astype(np.float32)
    groups = [f"g{n % 10}" for n in range(40)]
    (tmp_path / "predictions").mkdir()

    def store(name, rows):
        predictions.write(tmp_path / "predictions" / f"{name}_test.csv", [ids[i] for i in rows],
                          [groups[i] for i in rows], labels[rows], logits[rows], fake_search.CLASSES)  # fmt: skip

    store("folded-fold0", np.arange(39, 19, -1))
    store("folded-fold1", np.arange(20))
    store("whole", generator.permutation(40))
    rows = [
        row_of("folded", 0, 10, id="folded-fold0", overrides={"search.fold": 0}),
        row_of("folded", 0, 10, id="folded-fold1", overrides={"search.fold": 1}),
        row_of("whole", 0, 10, id="whole"),
    ]
    first, second = confirmed.confirmed(tmp_path, rows, False, SETTINGS)
    assert first["test"] == second["test"] and (first["seeds"], first["images"]) == (1, 40)
    assert first["non_dominated"] == second["non_dominated"] == 1.0  # equal points do not beat each other


def test_what_cannot_be_compared_is_left_out(tmp_path):
    rows = [row_of("a", 0), row_of("b", 0), row_of("other images", 0), row_of("untested", 0),
            row_of("failed", 0, status="failed: memory"), row_of("searched", 0, stage="search")]  # fmt: skip
    for row in (*rows[:2], *rows[4:]):
        write(tmp_path, row, 0.5, 1)
    write(tmp_path, rows[2], 0.9, 1, images=60)
    assert [row["setting"] for row in confirmed.confirmed(tmp_path, rows, False, SETTINGS)] == ["a", "b"]
    assert confirmed.confirmed(tmp_path, rows[3:], False, SETTINGS) == []
    assert confirmed.confirmed(tmp_path, [], False, SETTINGS) == []


def test_one_photograph_has_no_interval(tmp_path):
    row = row_of("a", 0)
    write(tmp_path, row, 0.5, 1, groups=1)
    (found,) = confirmed.confirmed(tmp_path, [row], False, SETTINGS)
    assert found["test"]["low"] is None and found["non_dominated"] is None


def test_multi_label_is_scored_by_macro_f1(tmp_path):
    generator = np.random.default_rng(0)
    labels = (generator.random((30, 3)) < 0.4).astype(np.float32)
    logits = generator.normal(size=(30, 3)) + 2 * labels - 1
    (tmp_path / "predictions").mkdir()
    row = row_of("a", 0)
    predictions.write(
        tmp_path / "predictions" / "a-0_test.csv", [f"i{n}" for n in range(30)], [f"g{n % 6}" for n in range(30)],
        labels, logits, ("x", "y", "z"),
    )  # fmt: skip
    (found,) = confirmed.confirmed(tmp_path, [row], True, SETTINGS)
    metrics = pytest.importorskip("sklearn.metrics")
    given = logits > 0
    given[~given.any(1), logits[~given.any(1)].argmax(1)] = True
    assert found["test"]["value"] == pytest.approx(metrics.f1_score(labels, given, average="macro"))
    assert found["test"]["low"] < found["test"]["value"] < found["test"]["high"]
