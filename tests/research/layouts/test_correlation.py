"""Do correlated genes become neighbours, also of many genes, and is the curve Hilbert's?"""

import itertools
import pathlib

import numpy as np
import pytest

from research.layouts import correlation
from research.layouts.building import build

REAL = pathlib.Path(__file__).parents[4] / "shared/data/cancer_genes/survpath"


def programmes(genes: int, count: int, seed: int = 0, samples: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Values of genes that follow one of some programmes, up or down, in random order; and their programmes."""
    random = np.random.default_rng(seed)
    programme = random.permutation(np.arange(genes) % count)
    signal = random.normal(size=(samples, count))[:, programme] * random.choice([-1, 1], genes)
    return (signal + 0.3 * random.normal(size=(samples, genes))).astype(np.float32), programme


def runs(programme: np.ndarray) -> int:
    return 1 + int(np.sum(programme[1:] != programme[:-1]))


@pytest.mark.parametrize("side", [1, 2, 3, 7, 8, 16, 21])
def test_the_curve_visits_every_pixel_and_is_hilbert_s_where_the_side_allows(side):
    curve = correlation.hilbert(side)
    assert curve.dtype == np.int32 and sorted(curve.tolist()) == list(range(side * side))
    steps = np.abs(np.diff(np.stack(np.divmod(curve, side)), axis=1)).sum(0)
    if side & (side - 1) == 0:
        assert (steps == 1).all()
        for quarter in np.split(curve, 4) if side > 1 else ():
            rows, columns = np.divmod(quarter, side)
            assert max(np.ptp(rows), np.ptp(columns)) == side // 2 - 1  # a quarter of the curve is a quadrant
    assert np.median(steps) == 1 if side > 1 else steps.size == 0


def test_few_genes_are_in_the_best_of_all_orders_of_their_tree():
    """Of two tight pairs and a gene between them, by brute force over all orders of five genes."""
    base = np.random.default_rng(3).normal(size=(30, 3))
    values = np.stack([base[:, 0], base[:, 1], base[:, 0] + 0.2 * base[:, 2], base[:, 1] - 0.1 * base[:, 2]], 1)
    values = np.concatenate([values, (base[:, :1] + base[:, 1:2])], 1)
    distance = 1 - np.abs(np.corrcoef(values.T))

    def length(order):
        return sum(distance[one, two] for one, two in itertools.pairwise(order))

    shortest = min(itertools.permutations(range(5)), key=length)
    np.testing.assert_allclose(length(correlation.order(values)), length(shortest))


@pytest.mark.parametrize("block", [1024, 40])
def test_programmes_stay_together_whatever_the_signs(block, monkeypatch):
    """In one tree, and halved first."""
    monkeypatch.setattr(correlation, "BLOCK", block)
    values, programme = programmes(201, 6)
    order = correlation.order(values)
    assert sorted(order.tolist()) == list(range(201))
    assert runs(programme[order]) <= (6 if block > 201 else 12)
    np.testing.assert_array_equal(order, correlation.order(values))


def test_the_second_eigenvector_is_numpy_s():
    values, programme = programmes(30, 2, seed=5)
    units = correlation._unit_vectors(values).astype(np.float64)
    affinity = np.square(units @ units.T)
    root = np.sqrt(affinity.sum(1))
    expected = np.linalg.eigh(affinity / np.outer(root, root))[1][:, -2] / root
    found = correlation._second_eigenvector(units)
    assert abs(np.corrcoef(found, expected)[0, 1]) > 0.9999
    assert len(set(programme[np.argsort(found)[:15]])) == 1  # it parts the programmes


def test_halving_many_examples_works_on_reduced_genes(monkeypatch):
    monkeypatch.setattr(correlation, "BLOCK", 40)
    values, programme = programmes(203, 5, seed=1, samples=90)
    assert runs(programme[correlation.order(values)]) <= 12


def test_genes_without_variation_come_last():
    values, _ = programmes(20, 3)
    values[:, [2, 11]] = 0.1
    assert correlation.order(values)[-2:].tolist() == [2, 11]
    assert correlation.order(np.ones((5, 4), np.float32)).tolist() == [0, 1, 2, 3]
    assert correlation.order(values[:, :1]).tolist() == [0]
    assert sorted(correlation.order(values[:, :2]).tolist()) == [0, 1]


def test_locality_equals_loops():
    values, _ = programmes(7, 2, samples=12)
    pixel = np.array([0, 4, -1, 2, 8, 5, 4])
    r = np.corrcoef(values.T)
    grid = {0: 0, 2: 3, 8: 4, 5: 5, 4: 6}
    pairs = [(p, q) for p, q in itertools.combinations(grid, 2) if abs(p // 3 - q // 3) + abs(p % 3 - q % 3) == 1]
    expected = np.mean([abs(r[grid[p], grid[q]]) for p, q in pairs])
    np.testing.assert_allclose(correlation.locality(values, pixel, 3), expected, rtol=1e-5)
    assert correlation.locality(values, np.full(7, -1), 3) == 0.0


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/cancer_genes")
def test_real_genes_have_more_related_neighbours_than_random_ones():
    """The figures of the module's docstring, on 400 genes of one tumour type."""
    import pandas as pd

    table = pd.read_csv(REAL / "blca/rna_clean.csv", index_col=0).iloc[:, :400]
    values = table.to_numpy(np.float32)
    found = {}
    for name in ("correlation", "alphabetical", "random"):
        layout = build(name, tuple(table.columns), values)
        found[name] = correlation.locality(values, layout.pixel, layout.side)
    assert found["correlation"] > 1.8 * max(found["alphabetical"], found["random"])
