"""Photos with captions, 18 labels that may stand together (COMP5329, labels of COCO): what do pictures and words add?

    python -m input_pipeline.prepare --study=captions --source=RAW --out=data/captions
    python -m research.main --config=configs/captions.py --config.data.dir=data/captions --workdir=runs/captions

is the study's network: EfficientNet-B4 at 224 px joined with the counts of 676 letter pairs, focal loss of gamma 2.5
and labels smoothed by 0.1, its augmentation, batch 16 in steps of two, Adam at 1e-3 with a plateau, early stopping by
F1; for a GPU. Thresholds are chosen on `calibration`, where the study chose and scored them on one fold; groups are
photos with the same words or the same picture.

Presets, to be combined by commas:
  text      the captions alone, by a bag of words with a hidden layer; data of `prepare --captions_only` do. Two busy
            cores: half a minute; on 4,504 of 30,000 real captions micro F1 0.814 [0.807, 0.821], macro 0.736 [0.721,
            0.749], sample 0.857 [0.850, 0.863]; a rule of key words has 0.775, 0.716 and 0.777
  encoders  the captions alone: letter pairs, word pairs, words, GRU, LSTM and a transformer, three seeds each
  fusion    a small CNN at 96 px and a bag of words: image, text, and both joined or gated, three seeds each
  smoke     `fusion` with tiny networks and a few steps on simulated scenes
"""

from ml_collections import ConfigDict

from configs import common

_ENCODERS = {
    "letter pairs": ("letter_bigrams", "bag", {"width": 0, "hidden": (256,), "dropout": 0.2}),
    "word pairs": ("word_ngrams", "bag", {"width": 64, "dropout": 0.3}),
    "words": ("words", "bag", {"width": 128, "hidden": (512,), "dropout": 0.5, "word_dropout": 0.1}),
    "GRU": ("words", "gru", {"dropout": 0.5, "word_dropout": 0.15}),
    "LSTM": ("words", "lstm", {"dropout": 0.5, "word_dropout": 0.15}),
    "transformer": ("words", "transformer", {}),
}


def get_config(presets: str = "") -> ConfigDict:
    """The study's network, changed by the presets."""
    config = common.default()
    config.study = "captions"
    config.data.simulated.train = 2000
    config.data.simulated.test = 300
    config.data.channels = 3
    config.image_size = 224
    config.batch_size = 32
    config.optimizer.accumulate = 2
    config.epochs = 30.0
    config.early_stopping = 5
    config.selection = "macro_f1"
    config.model.name = "captioned"
    config.model.options = ConfigDict({"image": "efficientnet_b4", "text": "bag", "text_options": {"width": 0}})
    config.data.text.tokenizer = "letter_bigrams"
    config.loss.name = "focal_binary"
    config.loss.options = ConfigDict({"gamma": 2.5, "label_smoothing": 0.1})
    config.schedule.plateau_factor = 0.1
    config.evaluation.submission_columns = ("ImageID", "Labels")
    _augment(config)
    return common.finish(config, PRESETS, presets)


def _augment(config: ConfigDict) -> None:
    augment = config.data.augment
    augment.flip_horizontal = True
    augment.rotation = 20.0
    augment.translate = 0.1
    augment.scale = (0.8, 1.2)
    augment.brightness = augment.contrast = augment.saturation = 0.3
    augment.erasing = 0.3


def _encoder(name: str) -> dict:
    tokenizer, encoder, options = _ENCODERS[name]
    chosen = {"data.text.tokenizer": tokenizer, "model.options.text": encoder, "model.options.text_options": options}
    return {"name": name} | chosen


def _quick(config: ConfigDict) -> None:
    config.batch_size = 128
    config.optimizer.accumulate = 1
    config.early_stopping = 0
    config.loss.name = "sigmoid_cross_entropy"
    config.loss.options = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 1e-2
    config.schedule.name = "cosine"
    config.schedule.warmup = "5 %"
    config.schedule.plateau_factor = 1.0


def _text(config: ConfigDict) -> None:
    _quick(config)
    tokenizer, encoder, options = _ENCODERS["words"]
    config.image_size = 1
    config.data.channels = 0
    config.epochs = 6.0
    config.data.text.tokenizer = tokenizer
    config.model.options = ConfigDict({"image": "", "text": encoder, "text_options": options})
    config.data.augment = common.data().augment
    config.evaluation.explain = ""


def _encoders(config: ConfigDict) -> None:
    _text(config)
    config.search.trials = tuple(_encoder(name) for name in _ENCODERS)
    config.search.repeats = 3


def _fusion(config: ConfigDict) -> None:
    _quick(config)
    config.demonstration = "a small CNN at 96 px stands for EfficientNet-B4 at 224 px"
    config.image_size = 96
    config.batch_size = 32
    config.epochs = 12.0
    tokenizer, encoder, options = _ENCODERS["words"]
    config.data.text.tokenizer = tokenizer
    image = {"image": "simple_cnn", "image_options": {"widths": (16, 32, 64, 96, 96)}}
    config.model.options = ConfigDict(image | {"text": encoder, "text_options": options, "fusion": "concat"})
    config.search.trials = (
        {"name": "image", "data.text.tokenizer": "", "model.options.text": ""},
        {"name": "text", "model.options.image": ""},
        {"name": "joined"},
        {"name": "gated", "model.options.fusion": "gated"},
    )
    config.search.repeats = 3


def _smoke(config: ConfigDict) -> None:
    _fusion(config)
    config.demonstration = "smoke: tiny networks for a few steps, to see that everything runs"
    config.data.simulated.train = 160
    config.data.simulated.test = 40
    config.image_size = 32
    config.epochs = 0.0
    config.steps = 20
    config.evaluate_every = config.checkpoint_every = "10 steps"
    config.model.options.image_options.widths = (8, 16)
    config.search.trials = config.search.trials[1:3]
    config.search.repeats = 1
    config.evaluation.bootstrap = 200


PRESETS: dict[str, common.Preset] = {"encoders": _encoders, "fusion": _fusion, "smoke": _smoke, "text": _text}
