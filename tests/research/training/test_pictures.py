"""Are vectors drawn as their layout and scaling say, the same in a run and after it, from training examples alone?"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import cancer_genes
from input_pipeline import prepare
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from research import study
from research.training import build, pictures, sharding
from tests.input_pipeline.expression_sets import G, expression, replace_reader


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "raw").mkdir()
    (folder / "raw" / "table.tsv").write_text("gene\n")
    with pytest.MonkeyPatch.context() as patch:
        replace_reader(patch, expression())
        prepare.prepare("cancer_genes", folder / "raw", folder / "data")
    return open_dataset(folder / "data")


def trial_of(dataset, **changes):
    config = ConfigDict(cancer_genes.get_config("cpu,one").to_dict())
    config.update_from_flattened_dict({"data.layout.side": 11, "image_size": 22, "data.cache": "none"} | changes)
    (trial,) = study.expand(config.lock(), dataset)
    return trial


def attached(trial, folder=None):
    return study.SharedImages(folder).attach(trial, sharding.make_mesh())


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_a_picture_is_scaled_by_training_and_laid_out(dataset, cache):
    trial = attached(trial_of(dataset, **{"data.cache": cache, "data.channels": 3}))
    train = np.stack([dataset.vector(i) for i in dataset.indices("train")])
    own = dataset.vector(int(dataset.indices("test")[0]))
    drawn = np.asarray(build.build_drawing(trial)(jnp.asarray(own)[None, None, :, None]))
    scores = (own - train.mean(0)) / train.std(0)
    want = np.full(121, 0.0)
    want[: len(own)] = scores[np.argsort(dataset.genes)]
    want = 255 * (0.5 + want.reshape(11, 11).repeat(2, 0).repeat(2, 1) / 6)
    assert drawn.shape == (1, 22, 22, 3)
    np.testing.assert_allclose(drawn[0], np.repeat(want[..., None], 3, -1), rtol=2e-5, atol=1e-3)
    given = build.build_normalize(trial)(jnp.asarray(own)[None, None, :, None])
    np.testing.assert_allclose(given, drawn / 127.5 - 1, rtol=1e-5, atol=1e-5)


def test_the_studys_grey_levels_are_those_of_all_samples(dataset):
    trial = attached(trial_of(dataset, **{"data.layout.scaling": "study"}))
    every = np.stack([dataset.vector(i) for i in range(len(dataset))])
    labelled = every[dataset.roles != "unlabelled"]
    own = labelled[3]
    levels = np.where(own < 1, 0, np.round(255 * own / labelled.max()))
    drawn = np.asarray(build.build_drawing(trial)(jnp.asarray(own)[None, None, :, None]))[0, ::2, ::2, 0]
    want = np.zeros(121)
    want[: len(own)] = levels[np.argsort(dataset.genes)]
    np.testing.assert_allclose(drawn, want.reshape(11, 11), atol=1e-3)


def test_what_a_run_has_drawn_with_is_read_again(dataset, tmp_path):
    trial = trial_of(dataset, **{"data.layout.name": "random", "data.layout.scaling": "global"})
    first = attached(trial, tmp_path).picture
    files = sorted((tmp_path / "layouts").iterdir())
    assert len(files) == 2
    content = json.loads(files[1].read_text()) if "scaling" in files[0].name else json.loads(files[0].read_text())
    assert content["pixel"] == first.layout.pixel.tolist()
    # As if another version built layouts in another way: what stands in the run folder counts.
    stored = next(file for file in files if "scaling" not in file.name)
    stored.write_text(stored.read_text().replace('"notes":"seed 0"', '"notes":"kept"'))
    assert attached(trial, tmp_path).picture.layout.notes == "kept"
    other = attached(trial_of(dataset, **{"data.layout.run": str(tmp_path), "data.layout.name": "random"}))
    assert other.picture.layout.notes == "kept"
    with pytest.raises(UserError, match="0 layouts"):
        attached(trial_of(dataset, **{"data.layout.run": str(tmp_path)}))


def test_trials_that_draw_alike_share_a_picture(dataset):
    shared, mesh = study.SharedImages(), sharding.make_mesh()
    one, other, third = (
        shared.attach(trial_of(dataset, **changes), mesh).picture
        for changes in ({}, {"optimizer.learning_rate": 0.5}, {"data.layout.name": "random"})
    )
    assert one is other is not third


@pytest.mark.parametrize(("changes", "words"), [
    ({"data.layout.name": "spiral"}, "layout.name"),
    ({"data.layout.scaling": "log"}, "layout.scaling"),
    ({"data.augment.rotation": 5.0}, "augment.rotation"),
    ({"data.normalize": "dataset"}, "normalize"),
    ({"evaluation.tta": "flips"}, "tta"),
    ({"data.layout.name": "chromosome"}, "positions"),
    ({"data.layout.name": "chromosome", "data.layout.positions": "nowhere.csv"}, "nowhere.csv"),
    ({"image_size": 10}, "image_size = 10 would leave out genes of a layout of 11"),
    ({"model.name": "unet"}, "masks"),
])  # fmt: skip
def test_settings_without_sense_are_refused(dataset, changes, words):
    trial = trial_of(dataset, **changes)
    with pytest.raises(UserError, match=words):
        study.check(trial)


def test_shots_are_drawn_by_seed_and_class(dataset):
    chosen = {seed: trial_of(dataset, **{"data.shots": 3, "seed": seed}).train_indices for seed in (0, 1)}
    for rows in chosen.values():
        assert set(dataset.roles[rows]) == {"train"} and (np.bincount(dataset.labels[rows]) == 3).all()
    assert set(chosen[0]) != set(chosen[1]) and len(dataset.genes) == G
    assert pictures.FOLDER == "layouts"
