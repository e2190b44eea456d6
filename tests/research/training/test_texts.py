"""Do captions reach the network as their tokeniser says, in every place that calls a model?"""

import json
import pathlib
import shutil

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
from research.text import bert_weights
from research.training import begin, build, inference, sharding, texts
from research.training.signals import StopSignal
from research.training.state import flatten
from tests.research.models.pretrained.weights import resnet18_state, write_safetensors

BERT = pathlib.Path(__file__).parent.parent / "text" / "bert"
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


def bert_trial(dataset, folder, vocabulary):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "cat", "on", "mat", "two", "##s"]
    vocabulary.write_text("\n".join(pieces) + "\n")
    options = {"image": "", "text": "bert", "text_options": {"folder": str(folder)}}
    text = {"data.text.tokenizer": "wordpiece", "data.text.options": {"vocabulary": str(vocabulary), "max_length": 12}}
    return trial_of(dataset, **text, **{"model.options": options})


def test_a_pretrained_bert_is_what_training_begins_with(dataset, tmp_path):
    trial = bert_trial(dataset, BERT, tmp_path / "vocab.txt")
    study.check(trial)
    variables = begin.variables(trial, tmp_path, StopSignal())
    want, _ = bert_weights.load(str(BERT), variables["params"]["backbone"]["text"])
    jax.tree.map(np.testing.assert_array_equal, variables["params"]["backbone"]["text"], want)
    record = json.loads((tmp_path / texts.RECORD).read_text())[trial.name]
    assert record["loaded"] == 55 and len(record["sha256"]) == 64
    with pytest.raises(UserError, match="model.safetensors"):
        shutil.copy(BERT / "config.json", tmp_path)
        study.check(bert_trial(dataset, tmp_path, tmp_path / "vocab.txt"))


def test_pretrained_weights_are_for_the_part_that_looks_at_images(dataset, tmp_path):
    file = write_safetensors(tmp_path / "resnet18.safetensors", resnet18_state())
    options = {"image": "resnet18", "text": "bag", "text_options": {"width": 4}}
    change = {"model.options": options, "model.weights": str(file), "image_size": 32}
    trial = trial_of(dataset, **change)
    assert (trial.start.part, trial.start.model) == ("image", "resnet18")
    study.check(trial)
    model, drawn = build.build_model(trial), begin.variables(trial_of(dataset, **change), tmp_path, StopSignal())
    fresh = initialize(model, jax.random.key(trial.config.seed), 32, trial.channels)
    known, new = flatten(drawn["params"]), flatten(fresh["params"])
    changed = {path for path in known if not np.array_equal(known[path], new[path])}
    assert changed and all(path.startswith("backbone/image/") for path in changed)
    assert {path for path in new if path.endswith("conv1/kernel") and "/image/" in path} <= changed
    alone = trial_of(dataset, **{"model.weights": str(file), "image_size": 1})
    assert alone.start is None
