"""Do captions reach the network as their tokeniser says, in every place that calls a model?"""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import captions
from input_pipeline import prepare
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from input_pipeline.loader import eval_batches
from research import study
from research.models.initialize import initialize
from research.training import build, inference, sharding, texts
from research.training.signals import StopSignal
from research.training.state import flatten

WORDS = ("a dog", "a cat on a mat", "two horses and a dog", "", "a very long caption of a person with a dog and a cat")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    (folder / "raw").mkdir()
    rows = [f'{i}.jpg,{1 + i % 3},"{WORDS[i % 5]} {i // 5}"' for i in range(60)]
    (folder / "raw" / "train.csv").write_text("ImageID,Labels,Caption\n" + "\n".join(rows) + "\n")
    prepare.prepare("captions", folder / "raw", folder / "data", options={"captions_only": "yes"})
    return open_dataset(folder / "data")


def trial_of(dataset, **changes):
    config = ConfigDict(captions.get_config("text").to_dict())
    config.update_from_flattened_dict({"data.cache": "none", "batch_size": 7} | changes)
    (trial,) = study.expand(config.lock(), dataset)
    return trial


def test_ids_are_the_tokenisers_of_the_training_captions(dataset):
    trial = trial_of(dataset)
    all_captions = dataset.captions
    assert trial.text.ids.shape == (60, trial.tokens) and trial.text.ids.dtype == np.int32
    np.testing.assert_array_equal(trial.text.ids, trial.text.tokenizer.encode(all_captions))
    again = trial_of(dataset, **{"optimizer.learning_rate": 0.5})
    assert again.text is trial.text and build.build_model(trial) == build.build_model(again)


def test_batches_hold_the_captions_of_their_examples(dataset):
    trial = trial_of(dataset)
    rows = np.array([5, 40, 2, 17, 33])
    (first, second) = eval_batches(dataset, rows, 3, 1, captions=trial.text.ids)
    np.testing.assert_array_equal(np.concatenate([first["caption"], second["caption"]])[:5], trial.text.ids[rows])
    assert not second["caption"][2].any()


def test_predictions_are_those_of_the_model_called_by_hand(dataset):
    mesh = sharding.make_mesh(jax.devices()[:1])
    trial = study.SharedImages().attach(trial_of(dataset), mesh)
    model = build.build_model(trial)
    variables = initialize(model, jax.random.key(3), 1, trial.channels)
    flat = {kind: flatten(tree) for kind, tree in variables.items()}
    rows = np.arange(11)
    found = inference.Predictor(trial, mesh, StopSignal())(flat, rows)
    given = {"image": np.zeros((11, 1, 1, trial.channels), np.float32), "caption": trial.text.ids[rows]}
    np.testing.assert_allclose(found, model.apply(variables, given, train=False).logits, rtol=1e-5, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0


@pytest.mark.parametrize(("changes", "words"), [
    ({"data.text.tokenizer": "letters"}, "letters"),
    ({"data.text.tokenizer": ""}, "tokenizer"),
    ({"model.name": "simple_cnn", "model.options": {}}, "captioned"),
    ({"data.augment.mixup": 0.2}, "mixup"),
    ({"data.text.tokenizer": "letter_bigrams", "model.options.text": "gru", "model.options.text_options": {}}, "order"),
])  # fmt: skip
def test_nonsense_is_refused(dataset, changes, words):
    plain = {key: value for key, value in changes.items() if key != "model.options"}
    with pytest.raises(UserError, match=words):
        trial = trial_of(dataset, **plain)
        study.check(trial)


def test_data_without_captions_are_refused(tmp_path):
    class Bare:
        fingerprint, directory, captions = "bare", tmp_path, None

        @staticmethod
        def indices(role):
            return np.arange(3)

    with pytest.raises(UserError, match="no captions"):
        texts.Texts().of(captions.get_config("text"), Bare)
