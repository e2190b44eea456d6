"""Do the samplers propose what may be trained, each setting once, the same ones after a restart, and good ones?"""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.search import samplers
from research.search.front import hypervolume
from research.search.samplers import Asked, parse_space, propose
from tests.running import ROOT

pytest.importorskip("optuna")

SPACE = parse_space(
    (
        ("width", ("integer", 4, 64)),
        ("depth", ("integer", 1, 4)),
        ("learning_rate", ("log", 1e-5, 1.0)),
        ("weight_decay", ("log", 1e-6, 1.0)),
        ("dropout", ("uniform", 0.0, 0.9)),
        ("loss", ("choice", "a", "b", "c")),
    )
)
SMALL = parse_space((("filters", ("choice", (8, 16), (16, 32), (8,))), ("flag", ("choice", True, False, 1))))
MAXIMIZE = (False, True)


def size(overrides):
    return float(np.log10(9 * overrides["width"] ** 2 * overrides["depth"]))


def objectives(overrides):
    """A size, and an accuracy that falls with the distance to the best optimiser's settings."""
    error = 1 / size(overrides) + 0.05 * (np.log10(overrides["learning_rate"]) + 2) ** 2
    error += 0.03 * (np.log10(overrides["weight_decay"]) + 4) ** 2 + 0.3 * (overrides["dropout"] - 0.2) ** 2
    return size(overrides), float(1 - error - 0.1 * "abc".index(overrides["loss"]))


def told(proposal, values=None):
    return Asked(proposal.overrides, False, values or objectives(proposal.overrides), proposal.generation)


def search(sampler, count, batch, seed, **options):
    history = []
    while len(history) < count:
        history += [told(p) for p in propose(sampler, SPACE, MAXIMIZE, history, batch, seed, **options)]
    return history


@pytest.mark.parametrize("sampler, count, batch", [("tpe", 64, 16), ("nsga2", 160, 32)])
def test_it_beats_random_search(sampler, count, batch):
    def volume(name, seed):
        values = np.array([asked.values for asked in search(name, count, batch, seed)])
        return hypervolume(np.column_stack([values[:, 0], 1 - values[:, 1]]), np.array([5.0, 1.0]))

    found, random = ([volume(name, seed) for seed in range(5)] for name in (sampler, "random"))
    assert sum(one > other for one, other in zip(found, random, strict=True)) >= 4
    assert np.mean(found) > 1.05 * np.mean(random)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_proposals_depend_on_the_history_alone(sampler):
    history = search(sampler, 80, 40, 3)
    at_once = propose(sampler, SPACE, MAXIMIZE, history, 12, 3)
    assert at_once == propose(sampler, SPACE, MAXIMIZE, list(history), 12, 3)
    assert at_once != propose(sampler, SPACE, MAXIMIZE, history, 12, 4)
    first = propose(sampler, SPACE, MAXIMIZE, history, 5, 3)
    running = [Asked(p.overrides, True, None, p.generation) for p in first]
    assert at_once == first + propose(sampler, SPACE, MAXIMIZE, history + running, 7, 3)


def continued(sampler):
    return [p.overrides for p in propose(sampler, SPACE, MAXIMIZE, search(sampler, 48, 24, 1), 3, 1)]


def test_a_fresh_process_proposes_the_same():
    code = "from tests.research.search.test_samplers import continued; print(continued('tpe'), continued('nsga2'))"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == f"{continued('tpe')} {continued('nsga2')}"


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_what_is_not_feasible_is_replaced(sampler):
    judged = []

    def feasible(overrides):
        judged.append(samplers.identity(overrides))
        return size(overrides) < 3.8  # about a third of the space

    history = search(sampler, 32, 16, 0, feasible=feasible)
    assert max(size(asked.overrides) for asked in history) < 3.8
    assert len({samplers.identity(asked.overrides) for asked in history}) == 32 < len(judged)
    assert history == search(sampler, 32, 16, 0, feasible=feasible)
    free = propose(sampler, SPACE, MAXIMIZE, history, 8, 0)
    assert free == propose(sampler, SPACE, MAXIMIZE, history, 8, 0, feasible=lambda overrides: True)


def test_limits_that_leave_nothing_are_reported():
    with pytest.raises(UserError, match="widen the space or the limits"):
        propose("tpe", SPACE, MAXIMIZE, [], 1, 0, feasible=lambda overrides: False)
    assert propose("tpe", SMALL, MAXIMIZE, [], 1, 0, feasible=lambda overrides: False) == []


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_a_small_space_is_used_up_without_repetition(sampler):
    first = propose(sampler, SMALL, MAXIMIZE, [], 4, 0)
    history = [told(p, (float(i), 0.5)) for i, p in enumerate(first)]
    failed = samplers.identity({"filters": (8,), "flag": True})
    rest = propose(sampler, SMALL, MAXIMIZE, history, 64, 0, taken=[failed])
    found = {samplers.identity(p.overrides) for p in first + rest} | {failed}
    everything = itertools.product(((8, 16), (16, 32), (8,)), (True, False, 1))
    assert found == {samplers.identity({"filters": f, "flag": g}) for f, g in everything}
    assert len(first + rest) == 9 - (failed not in {samplers.identity(p.overrides) for p in first})
    assert propose(sampler, SMALL, MAXIMIZE, [told(p, (1.0, 0.5)) for p in first + rest], 3, 0, taken=[failed]) == []


def test_diverged_and_foreign_settings_do_no_harm():
    history = search("tpe", 30, 15, 0)
    strange = [
        Asked({"width": 10_000}, False, (1.0, 1.0)),
        Asked(history[0].overrides | {"width": 65}, False, (0.0, 1.0)),
        Asked(history[0].overrides | {"loss": "z"}, False, (0.0, 1.0)),
    ]
    assert propose("tpe", SPACE, MAXIMIZE, history, 1, 0, taken=["a", "b", "c"]) == propose(
        "tpe", SPACE, MAXIMIZE, history + strange, 1, 0
    )
    diverged = [Asked(asked.overrides, False, None) for asked in history]
    assert len(propose("nsga2", SPACE, MAXIMIZE, diverged, 3, 0)) == 3


def test_values_are_the_configs():
    drawn = [p.overrides for p in propose("random", SPACE, MAXIMIZE, [], 50, 0)]
    rng = np.random.default_rng(0)
    for overrides in drawn + [SPACE.draw(rng) for _ in range(50)]:
        assert type(overrides["width"]) is int and 4 <= overrides["width"] <= 64
        assert type(overrides["dropout"]) is float and 0 <= overrides["dropout"] <= 0.9
        assert float(f"{overrides['learning_rate']:.4g}") == overrides["learning_rate"] >= 1e-5
        assert SPACE.decode(SPACE.encode(overrides)) == overrides
    odd = parse_space((("x", ("uniform", 0.123456, 0.123459)),))  # four digits would lie outside
    assert all(0.123456 <= odd.draw(rng)["x"] <= 0.123459 for _ in range(10))
    assert SMALL.decode({"filters": "8x16", "flag": "True"}) == {"filters": (8, 16), "flag": True}
    assert parse_space((("b", ("choice", 1, 1, None, "x")),)).dimensions[0].labels == (1, None, "x")


@pytest.mark.parametrize(
    "pairs, sentence",
    [
        ((("a", ("log", 0, 1)),), "draws a from"),
        ((("a", ("uniform", 2, 1)),), "draws a from"),
        ((("a", ("uniform", 0.0, float("inf"))),), "draws a from"),
        ((("a", ("integer", 0.5, 3)),), "draws a from"),
        ((("a", ("integer", False, True)),), "draws a from"),
        ((("a", ("choice",)),), "draws a from"),
        ((("a", ("normal", 0, 1)),), "draws a from"),
        ((("a", "choice"),), r"write \(key, values\) pairs"),
        ((("a", ("choice", 1)), ("a", ("choice", 2))), "names a twice"),
    ],
)
def test_what_is_no_space(pairs, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_space(pairs)


def test_unknown_samplers_and_empty_spaces_are_refused():
    with pytest.raises(UserError, match="choose tpe, nsga2"):
        propose("gp", SPACE, MAXIMIZE, [], 1, 0)
    with pytest.raises(UserError, match="config.search.space is empty"):
        propose("tpe", parse_space(()), MAXIMIZE, [], 1, 0)


def test_grids_become_parameters_that_optuna_can_plot():
    sets = [{"rate": 1e-3, "filters": (8, 16), "n": 1}, {"rate": 1e-1, "filters": (16, 32), "n": 3}, {"on": True}]
    (first, kinds), (second, _), (third, _) = samplers.parameters_of_lists(sets, {})
    assert first == {"rate": 1e-3, "filters": "8x16", "n": 1} and second["filters"] == "16x32" and third == {"on": True}
    assert kinds["rate"].log and (kinds["rate"].low, kinds["rate"].high) == (1e-3, 1e-1) and kinds["n"].high == 3
    ((_, longer),) = samplers.parameters_of_lists([{"rate": 0.2, "n": 7}], kinds)
    assert longer["rate"].log and longer["n"].high == 7
    ((again, same),) = samplers.parameters_of_lists([{"filters": (16, 32)}], kinds)
    assert again == {"filters": "16x32"} and same["filters"] == kinds["filters"]
    ((given, _),) = samplers.parameters_of_lists([{"filters": (8,), "flag": True}], SMALL.distributions())
    assert given == {"filters": "8", "flag": "True"}
    for other in ({"filters": (4,)}, {"n": "many"}, {"n": 2.5}):
        with pytest.raises(UserError, match="begin another study"):
            samplers.parameters_of_lists([other], kinds)


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"'.\[sweep\]'"):
        propose("tpe", SPACE, MAXIMIZE, [], 1, 0)


def test_optuna_is_imported_only_where_it_is_used():
    code = (
        "import sys\nfrom research.search import shared\nfrom research.search.samplers import parse_space\n"
        "parse_space((('a', ('log', 1, 2)),))\nassert not {'optuna', 'sqlalchemy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
