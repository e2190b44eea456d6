"""Are fronts, volumes and the rest what brute force says?"""

import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from research.search import front, pareto
from tests.running import ENVIRONMENT, ROOT

LOGS = pathlib.Path(__file__).parents[4] / "shared" / "data" / "blood_cells"


def random_points(count, objectives, seed, levels=None):
    """With `levels` few distinct values, so that there are ties and equal points."""
    generator = np.random.default_rng(seed)
    points = generator.random((count, objectives))
    return np.round(points * levels) / levels if levels else points


def brute_force(points):
    return np.array(
        [not any((q <= p).all() and (q < p).any() for q in points) for p in points],
    )


@pytest.mark.parametrize("objectives", [2, 3, 4])
@pytest.mark.parametrize("levels", [None, 4])
def test_non_dominated_equals_brute_force(objectives, levels):
    for seed in range(20):
        points = random_points(60, objectives, seed, levels)
        np.testing.assert_array_equal(front.non_dominated(points), brute_force(points))


def test_equal_points_all_stay():
    points = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [1.0, 3.0]])
    assert front.non_dominated(points).tolist() == [True, True, True, False, False]


def volume_by_cells(points, reference):
    """The sum over all cells of the grid that the points span of those below some point."""
    edges = [np.unique(np.append(points[:, i], reference[i])) for i in range(points.shape[1])]
    total = 0.0
    for corner in itertools.product(*(range(len(edge) - 1) for edge in edges)):
        low = np.array([edge[i] for edge, i in zip(edges, corner, strict=True)])
        high = np.array([edge[i + 1] for edge, i in zip(edges, corner, strict=True)])
        if (points <= low).all(1).any():
            total += np.prod(high - low)
    return total


@pytest.mark.parametrize("objectives, count", [(2, 30), (3, 12), (4, 8)])
@pytest.mark.parametrize("levels", [None, 3])
def test_hypervolume_equals_the_cells_below_the_points(objectives, count, levels):
    for seed in range(5):
        points = random_points(count, objectives, seed, levels)
        inside = points[(points < 0.9).all(1)]
        expected = volume_by_cells(inside, np.full(objectives, 0.9)) if len(inside) else 0.0
        assert front.hypervolume(points, np.full(objectives, 0.9)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_equals_moocore(objectives):
    moocore = pytest.importorskip("moocore")
    for seed in range(5):
        points = random_points(100, objectives, seed)
        worst = np.full(objectives, 1.05)
        assert front.hypervolume(points, worst) == pytest.approx(moocore.hypervolume(points, ref=worst), rel=1e-9)


def test_knee_and_spacing():
    even = np.array([[0.0, 4.0], [1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [4.0, 0.0]])
    assert front.spacing(even) == pytest.approx(0.0, abs=1e-12)
    assert front.spacing(np.array([[0.0, 4.0], [0.1, 3.9], [4.0, 0.0]])) > 0.5
    assert np.isnan(front.spacing(even[:2]))
    assert front.knee(np.array([[0.0, 4.0], [0.5, 0.8], [4.0, 0.0]])) == 1


def command(ledger, out, *flags):
    words = [sys.executable, "-m", "research.search.pareto", f"--ledger={ledger}", f"--out={out}", *flags]
    return subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def test_command_on_ties_missing_numbers_and_quoted_lines(tmp_path):
    ledger = tmp_path / "ledger.csv"
    ledger.write_text(
        'name,size,accuracy,latency\n"a\nb",1,0.5,3\nc,1,0.5,3\nd,2,0.4,1\n"=e",nan,0.9,1\n\nf,inf,1,1\ng,10,0.8,9\nh,10,,2\n'
    )
    done = command(ledger, tmp_path / "out", "--minimize=size,latency", "--maximize=accuracy", "--log=size")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "front.json").read_text())
    assert found["non_dominated_lines"] == [2, 4, 5, 9] and found["left_out_lines"] == [6, 8, 10]
    assert pd.read_csv(tmp_path / "out" / "front.csv")["name"].tolist() == ["a\nb", "c", "d", "g"]
    assert "line 6, 8, 10" in done.stdout
    page = (tmp_path / "out" / "front.html").read_text()
    assert page.count("<circle") == 3 * 4 and "accuracy: 0.8" in page and "<script>" in page
    for name in ("front.png", "parallel.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--minimize=size"], "two to four objectives, not 1"),
        (["--minimize=size,size"], "named twice"),
        (["--minimize=size", "--maximize=acuracy"], "no column 'acuracy'; the table has name, size, accuracy"),
        (["--minimize=size", "--maximize=accuracy", "--log=loss"], "not among the objectives"),
        (["--minimize=size", "--maximize=accuracy", "--log=accuracy"], "no logarithm"),
        (["--minimize=size", "--maximize=name"], "no row has numbers"),
        (["--minimize=size", "--maximize=accuracy", "--reference=1"], "one number for each of size, accuracy"),
    ],
)
def test_mistakes_are_one_sentence(flags, words, tmp_path):
    ledger = tmp_path / "ledger.csv"
    ledger.write_text("name,size,accuracy\na,1,0\nb,2,0.7\n")
    arguments = dict(flag.lstrip("-").split("=", 1) for flag in flags)
    with pytest.raises(pareto.UserError, match=words):
        objectives = pareto.parse_objectives(*(arguments.get(name, "") for name in ("minimize", "maximize", "log")))
        reference = pareto._reference(arguments.get("reference", ""), objectives)
        pareto.find(*pareto.read_table(str(ledger)), objectives, reference)


def test_missing_and_broken_tables(tmp_path):
    with pytest.raises(pareto.UserError, match="does not exist"):
        pareto.read_table(str(tmp_path / "none.csv"))
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(pareto.UserError, match="not a CSV table"):
        pareto.read_table(str(tmp_path / "empty.csv"))
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(pareto.UserError, match="not a CSV table"):
        pareto.read_table(str(tmp_path / "picture.csv"))


@pytest.mark.skipif(not LOGS.exists(), reason="needs the study's logs")
@pytest.mark.parametrize("epochs, rows, count", [(10, 24, 4), (30, 19, 6)])
def test_the_study_s_logs_do_not_have_the_points_it_claims(epochs, rows, count, tmp_path):
    """The study speaks of 12 and 15 Pareto-optimal models, by training accuracy."""
    objectives = [pareto.Objective("model_size(MB)", False, True), pareto.Objective("train_accuracy", True, False)]
    found = pareto.find(*pareto.read_table(str(LOGS / f"metrics_log_epoch_{epochs}.csv")), objectives)
    assert (len(found.table), len(found.rows)) == (rows, count)
    costs = found.values * [1, -1]
    np.testing.assert_array_equal(np.flatnonzero(brute_force(costs)), np.sort(found.rows))
