"""Are values scaled by training data alone, as scikit-learn and the study do it?"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from input_pipeline.cli import UserError
from research.layouts import scaling
from research.layouts.scaling import fit_scale

GENES = tuple("ABCDEFG")


def tables(samples: int = 301) -> tuple[np.ndarray, np.ndarray]:
    """Training values, more rows than are read at a time, of which the last gene is constant; and others."""
    random = np.random.default_rng(0)
    train = random.normal(4, 3, (samples, 7)).astype(np.float32)
    train[:, 6] = np.float32(0.1)
    return train, random.normal(4, 6, (9, 7)).astype(np.float32)


def test_z_scores_are_scikit_learn_s_and_constant_genes_are_0():
    train, other = tables()
    expected = StandardScaler().fit(train[:, :6].astype(np.float64)).transform(other[:, :6])
    scaled = fit_scale("gene", train)(other)
    np.testing.assert_allclose(scaled[:, :6], expected, rtol=1e-4, atol=1e-5)
    assert not np.any(scaled[:, 6])


def test_a_constant_gene_is_known_although_its_mean_is_rounded():
    assert not fit_scale("gene", np.full((301, 2), 0.1)).factor.any()


def test_minima_and_maxima_of_genes_are_scikit_learn_s():
    train, other = tables()
    expected = MinMaxScaler(clip=True).fit(train[:, :6]).transform(other[:, :6])
    scaled = fit_scale("gene_minmax", train)(other)
    np.testing.assert_allclose(scaled[:, :6], expected, atol=1e-6)
    assert not np.any(scaled[:, 6])
    assert {float(jnp.min(scaled)), float(jnp.max(scaled))} == {0.0, 1.0}


def test_global_scaling_is_cut_to_the_training_range():
    train, other = tables()
    least, greatest = train.min(), train.max()
    np.testing.assert_allclose(
        fit_scale("global", train)(other), np.clip((other - least) / (greatest - least), 0, 1), atol=1e-6
    )
    np.testing.assert_array_equal(fit_scale("none", train)(other), other)


def study(values: np.ndarray) -> np.ndarray:
    """Grey levels uint8 of a whole table, by the study's steps."""
    values = np.where(values < 1, 0, values.astype(np.float64))
    padded = np.concatenate([values, np.zeros((len(values), 3))], axis=1)
    scaled = 255 * (padded - padded.min()) / (padded.max() - padded.min())
    return np.round(scaled).astype(np.uint8)[:, : values.shape[1]]


def test_the_study_s_grey_levels():
    train, _ = tables()
    train[0, 0], train[0, 1] = 1.0, np.nextafter(np.float32(1), np.float32(0))
    levels = np.asarray(fit_scale("study", train)(train)) * 255
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    np.testing.assert_array_equal(np.round(levels).astype(np.uint8), study(train))
    assert levels[0, 0] > 0 and levels[0, 1] == 0
    assert np.max(fit_scale("study", train)(train + 5)) == 1.0


def test_rounding_lets_gradients_through():
    scale = fit_scale("study", np.array([[0.0, 10.0]]))
    gradient = jax.grad(lambda x: scale(x).sum())(jnp.array([0.5, 1.5, 9.0, 30.0]))
    np.testing.assert_allclose(gradient, [0, 0.1, 0.1, 0], atol=1e-7)


@pytest.mark.parametrize("kind", scaling.KINDS)
def test_every_kind_is_finite_where_nothing_varies_and_a_pytree_everywhere(kind):
    for constant in (0.0, -3.0, 7.0):
        scale = fit_scale(kind, np.full((4, 3), constant, np.float32))
        assert np.isfinite(scale(np.array([[-50.0, constant, 50.0]]))).all()
    train, other = tables()
    scale = fit_scale(kind, train)
    np.testing.assert_allclose(jax.jit(lambda s, x: s(x))(scale, other), scale(other), rtol=1e-5, atol=1e-6)
    memory_map = np.broadcast_to(train, train.shape)
    np.testing.assert_array_equal(fit_scale(kind, memory_map).factor, scale.factor)
    if kind not in ("none", "gene"):
        assert np.min(scale(other)) >= 0 and np.max(scale(other)) <= 1


@pytest.mark.parametrize("kind", scaling.KINDS)
def test_every_bit_comes_back_from_a_file(kind, tmp_path):
    scale = fit_scale(kind, tables()[0])
    scaling.save_scale(scale, GENES, tmp_path / "a.json")
    loaded = scaling.load_scale(tmp_path / "a.json", GENES)
    assert loaded.kind == kind
    np.testing.assert_array_equal(loaded.offset, scale.offset)
    np.testing.assert_array_equal(loaded.factor, scale.factor)
    scaling.save_scale(loaded, GENES, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "cubic"}, "kind 'cubic'"),
        ({"offset": [1.0, 2.0]}, r"\(2,\)"),
        ({"factor": ["x"] * 7}, "is no scaling"),
        ({"offset": None}, "is no scaling"),
        ({"factor": [float("nan")] * 7}, "not finite"),
        ({"genes": 3}, "is no scaling"),
        ({"genes": list("ABCDEFH")}, "has 'H' as gene 7, the data set 'G'"),
    ],
)
def test_wrong_files_are_refused(change, message, tmp_path):
    path = tmp_path / "scale.json"
    scaling.save_scale(fit_scale("gene", tables()[0]), GENES, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        scaling.load_scale(path, GENES)
    path.write_text("{}")
    with pytest.raises(UserError, match="lacks"):
        scaling.load_scale(path)


@pytest.mark.parametrize(
    "kind, values, message",
    [
        ("cubic", np.zeros((2, 3)), "'cubic' is unknown; choose of none, global"),
        ("gene", np.zeros((0, 3)), "no samples"),
        ("gene", np.zeros((3, 0)), "no samples or no genes"),
        ("gene", np.zeros(3), "no samples"),
        ("none", np.array([[1.0, np.inf]]), "not finite"),
    ],
)
def test_nonsense_is_refused(kind, values, message):
    with pytest.raises(UserError, match=message):
        fit_scale(kind, values)
