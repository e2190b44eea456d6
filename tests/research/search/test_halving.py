"""Do rungs keep to their budget, do the right trials go on, and does the replay add up?"""

import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.report import tables
from research.search import front, halving
from tests.running import ENVIRONMENT, ROOT


def trained_steps(schedule, trials, total):
    """Every trial on its own: how far it came; the first ones go on."""
    ends = [total] * trials
    for rung in reversed(schedule):
        ends = [rung.step if index >= rung.keep else end for index, end in enumerate(ends)]
    return sum(ends)


@pytest.mark.parametrize("trials", [1, 7, 36, 64, 501])
@pytest.mark.parametrize("eta, first, every", [(2, 1 / 24, 25), (5, 1 / 24, 25), (3, 0.1, 1), (10, 0.013, 7)])
@pytest.mark.parametrize("budget", [0.25, 0.6])
@pytest.mark.parametrize("last", [0.25, 0.99])
def test_rungs_keep_to_the_budget_and_use_it(trials, eta, first, every, budget, last):
    total = 600
    try:
        schedule = halving.rungs(total, eta, first, trials, budget, last, every)
    except UserError:
        least = [halving.Rung(step, 1) for step in sorted({max(1, round(first * total / every)) * every})]
        assert trained_steps(least, trials, total) > budget * trials * total
        return
    steps, kept = [rung.step for rung in schedule], [trials, *(rung.keep for rung in schedule)]
    assert all(step % every == 0 and 0 < step < total for step in steps) and steps == sorted(set(steps))
    assert max(steps) <= max(last * total + every / 2, every)
    assert kept == sorted(kept, reverse=True) and kept[-1] >= 1
    spent = halving.cost(schedule, trials, total)
    assert spent == trained_steps(schedule, trials, total)
    assert spent <= budget * trials * total + 1e-6
    if kept[-1] < kept[-2]:  # one more finalist would be too dear
        assert spent + total - steps[-1] > budget * trials * total


def test_rungs_by_hand():
    """8 % of 600 steps, then 3 times that; 64 x 50 + 23 x 100 + 9 x 450 steps are 24.9 % of 64 x 600."""
    assert halving.rungs(600, 3, 1 / 12, 64, 0.25, every=25) == [halving.Rung(50, 23), halving.Rung(150, 9)]
    assert [rung.step for rung in halving.rungs(600, 2, 0.1, 64, 0.25)] == [60, 120]
    assert [rung.step for rung in halving.rungs(600, 2, 0.1, 64, 0.25, last=0.5)] == [60, 120, 240]
    assert [rung.keep for rung in halving.rungs(600, 5, 1 / 24, 64, 1.0)] == [64, 64]
    assert halving.rungs(1, 5, 0.2, 3, 1.0) == []  # too short for a rung
    assert halving.rungs(600, 5, 0.001, 50, 0.5)[0].step == 1


@pytest.mark.parametrize(
    "change",
    [{"eta": 1}, {"eta": float("nan")}, {"first": 0}, {"first": 1}, {"budget": 0}, {"budget": float("inf")},
     {"trials": 0}, {"total_steps": 0}, {"every": 0}, {"budget": 0.03}, {"trials": 1}, {"last": 0.04}, {"last": 1.0}],
)  # fmt: skip
def test_rungs_refuse_nonsense(change):
    given = {"total_steps": 600, "eta": 5, "first": 1 / 24, "trials": 64, "budget": 0.25} | change
    with pytest.raises(UserError):
        halving.rungs(**given)


def brute_force_ranks(points):
    """The longest chain of points that beat each other, down to each point."""
    beats = np.array([[(q <= p).all() and (q < p).any() for q in points] for p in points])
    result = np.zeros(len(points), int)
    for _ in points:
        for index in range(len(points)):
            result[index] = max((result[j] + 1 for j in np.flatnonzero(beats[index])), default=0)
    return result


@pytest.mark.parametrize("objectives", [2, 3])
def test_ranks_equal_brute_force(objectives):
    for seed in range(10):
        points = np.random.default_rng(seed).integers(0, 5, (23, objectives)).astype(float)
        np.testing.assert_array_equal(halving.ranks(points), brute_force_ranks(points))
    assert halving.ranks(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.parametrize("count", [1, 5, 11, 22])
def test_no_survivor_has_a_worse_rank_than_one_that_stays_behind(objectives, count):
    for seed in range(10):
        points = np.random.default_rng(seed).random((23, objectives))
        kept = halving.survivors(points, count)
        assert len(kept) == count and (np.diff(kept) > 0).all()
        rank = halving.ranks(points)
        assert rank[kept].max() <= np.delete(rank, kept).min()


def test_a_rank_that_does_not_fit_is_covered_well():
    """Greedy choice reaches at least 1 - 1/e of the best possible volume (Nemhauser et al. 1978), mostly far more."""
    for seed in range(8):
        x = np.sort(np.random.default_rng(seed).random(9))
        points = np.column_stack([x, (1 - x) ** 2])
        reference = points.max(0) + 0.05 * np.ptp(points, axis=0)
        for count in (1, 2, 4):
            best = max(front.hypervolume(points[list(s)], reference) for s in itertools.combinations(range(9), count))
            assert front.hypervolume(points[halving.survivors(points, count)], reference) >= 0.9 * best


@pytest.mark.parametrize("objectives", [2, 3])
def test_coverage_equals_plain_greedy_choice(objectives):
    for seed in range(5):
        raw = np.abs(np.random.default_rng(seed).normal(size=(17, objectives)))
        points = 1 - raw / np.linalg.norm(raw, axis=1, keepdims=True)  # none beats another
        reference = points.max(0) + 0.05 * np.ptp(points, axis=0)
        chosen: list[int] = []
        for _ in range(6):
            left = [index for index in range(17) if index not in chosen]
            chosen.append(max(left, key=lambda i: front.hypervolume(points[[*chosen, i]], reference)))  # noqa: B023
        assert halving.survivors(points, 6).tolist() == sorted(chosen)


def test_coverage_spreads_over_the_sizes():
    """Nine like models at the large end do not crowd out the only small and the only medium one."""
    large = np.column_stack([5 + 0.01 * np.arange(9), 0.10 - 0.001 * np.arange(9)])
    points = np.vstack([large, [[2.0, 0.5]], [[3.5, 0.3]]])
    assert {9, 10} <= set(halving.survivors(points, 3).tolist())


def test_survivors_do_not_depend_on_units_and_ties_go_to_the_first():
    points = np.random.default_rng(0).random((31, 2))
    kept = halving.survivors(points, 9)
    np.testing.assert_array_equal(halving.survivors(points * [1000, 0.01] + [5, -3], 9), kept)
    same = np.tile([[1.0, 2.0]], (6, 1))
    assert halving.survivors(same, 2).tolist() == [0, 1]
    shuffled = np.random.default_rng(1).permutation(31)
    assert set(shuffled[halving.survivors(points[shuffled], 9)]) == set(kept)


def test_diverged_trials_never_go_on():
    points = np.array([[1.0, np.nan], [2.0, 0.5], [3.0, np.inf], [4.0, 0.9]])
    assert halving.survivors(points, 3).tolist() == [1, 3]
    assert halving.survivors(points[:1], 3).tolist() == []
    assert halving.survivors(np.empty((0, 2)), 2).tolist() == []


@pytest.mark.parametrize("points, count", [(np.ones((3, 2)), 0), (np.ones(3), 1)])
def test_survivors_refuse_nonsense(points, count):
    with pytest.raises(ValueError):
        halving.survivors(points, count)


def write_run(folder: pathlib.Path, damaged: bool = False) -> None:
    """8 sizes x 4 rates x 2 seeds; accuracy grows with size and the first rate is the best from the beginning."""
    generator = np.random.default_rng(0)
    rows, lines = [], []
    for size, rate, seed in itertools.product(range(8), range(4), range(2)):
        name = f"w{size}-r{rate}-s{seed}"
        top = 0.9 - 0.4 * 0.7**size - 0.05 * rate + 0.002 * generator.normal()
        curve = [0.25 + (top - 0.25) * (1 - 0.75**step) for step in range(1, 13)]
        lines += [
            json.dumps(
                {"trial": name, "step": 10 * step, "split": "validation", "accuracy": accuracy, "loss": -accuracy}
            )
            for step, accuracy in enumerate(curve, 1)
        ]
        overrides = {"model.options.widths": [2**size], "optimizer.learning_rate": 0.1**rate, "seed": seed}
        metrics = {"validation": {"accuracy": max(curve)}, "test": {"accuracy": top}}
        status = "running" if damaged and not rows else "finished"
        row = {"id": name, "status": status, "seed": seed, "overrides": overrides, "metrics": metrics}
        rows.append(row | {"parameters": 100 * 3**size, "bytes": 0})
    later = {"id": "again", "stage": "confirm", "parameters": 1, "metrics": {"test": {"accuracy": 1.0}}}
    rows.append(rows[-1] | later)
    lines.append(json.dumps({"trial": "again", "step": 5, "split": "validation", "accuracy": 1.0, "loss": 0.0}))
    folder.mkdir()
    tables.write_trials_csv(folder / "trials.csv", rows)
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def replay(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.benchmarks.halving", f"--run={folder}", "--reference=1e6,0.75"]
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


def test_replay_finds_the_front_of_clean_curves(tmp_path):
    write_run(tmp_path / "run")
    done = replay(tmp_path / "run", f"--out={tmp_path / 'out.json'}", "--searches=3", "--metric=loss", "--budget=0.4")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    searches = found["searches"]
    assert max(searches["halving"]["steps"]) <= 0.4 and max(searches["random"]["steps"]) <= 0.4
    assert min(searches["halving"]["of the draw"]) > 0.98  # 8 or more finalists for 8 sizes
    assert min(searches["everything"]["hypervolume"]) > 0.98 and set(searches["everything"]["of the draw"]) == {1.0}
    assert min(searches["stopped if beaten"]["of the draw"]) > 0.98
    assert max(searches["stopped if beaten"]["steps"]) < 0.8
    assert np.mean(searches["random"]["of the draw"]) < np.mean(searches["halving"]["of the draw"])
    # The yardstick by hand: the front of clean curves is the best rate of each size, of either seed.
    rows = tables.read_trials_csv(tmp_path / "run" / "trials.csv")
    for seed, volume in enumerate(found["full"]):
        points = [
            (np.log10(row["parameters"]), 1 - row["metrics"]["test"]["accuracy"])
            for row in rows
            if row["id"] != "again" and row["seed"] == seed and row["overrides"]["optimizer.learning_rate"] == 1.0
        ]
        assert front.hypervolume(np.array(points), np.array([6.0, 0.75])) == pytest.approx(volume)


def test_replay_refuses_an_unfinished_grid(tmp_path):
    write_run(tmp_path / "run", damaged=True)
    done = replay(tmp_path / "run", "--metric=loss")
    assert done.returncode == 2 and "has not finished" in done.stderr and "Traceback" not in done.stderr
    assert replay(tmp_path / "nowhere").returncode == 2
    write_run(tmp_path / "whole")
    done = replay(tmp_path / "whole", "--metric=auroc_macro")
    assert done.returncode == 2 and "auroc_macro" in done.stderr
