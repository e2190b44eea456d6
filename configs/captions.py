"""Photos with captions, 18 labels that may stand together (COMP5329, labels of COCO): what do pictures and words add?

    python -m input_pipeline.prepare --study=captions --source=RAW --out=data/captions
    python -m research.main --config=configs/captions.py --config.data.dir=data/captions --workdir=runs/captions

is the study's network: EfficientNet-B4 at 224 px joined with the counts of 676 letter pairs, its focal loss (gamma 2.5,
labels smoothed by 0.1, one alpha from the label counts), its augmentation, batch 16 in steps of two, Adam at 1e-3 with
a plateau, early stopping by F1; for a GPU. Thresholds are chosen on `calibration`, where the study chose and scored
them on one fold; groups are photos with the same words or the same picture (`--config.data.split=study` for its random
split). Without data everything runs on simulated scenes.

Presets, to be combined by commas:
  comparison  the study's Table 1: five CNNs on images alone for 3 epochs, three seeds each
  ablation    its Table 2, one factor at a time: captions, image, loss, learning rate, augmentation, letter pairs or
              words, three seeds each; --config.search.base=RUN takes the network that a finished comparison chose
  factorial   captions x loss x learning rate, all combinations
  cpu         after one of these three: 96 px, fewer images, for two cores
  text        the captions alone, by a bag of words with a hidden layer; data of `prepare --captions_only` do. Two busy
              cores: half a minute; on 4,504 of 30,000 real captions micro F1 0.814 [0.807, 0.821], macro 0.736 [0.721,
              0.749], sample 0.857 [0.850, 0.863]; a rule of key words has 0.775, 0.716 and 0.777
  encoders    the captions alone: letter pairs, word pairs, words, GRU, LSTM and a transformer, three seeds each. Two
              busy cores: 17 minutes. Micro F1 of the same 4,504: 0.784, 0.784, 0.812, 0.815, 0.807 and 0.810; TF-IDF
              and logistic regression 0.805. Against words only letter pairs, word pairs and the LSTM differ in macro F1
  bert        the captions alone, by a BERT from Hugging Face: --config.model.options.text_options.folder=FOLDER and
              --config.data.text.options.vocabulary=FOLDER name the folder of its model.safetensors and vocab.txt
  fusion      a small CNN at 96 px and a bag of words: image, text, and both joined, gated, or by cross-attention, three
              seeds each
  smoke       `fusion` with tiny networks and a few steps on simulated scenes
"""

from ml_collections import ConfigDict

from configs import common
from input_pipeline.studies import captions

_ENCODERS = {
    "letter pairs": ("letter_bigrams", "bag", {"width": 0, "hidden": (256,), "dropout": 0.2}),
    "word pairs": ("word_ngrams", "bag", {"width": 64, "dropout": 0.3}),
    "words": ("words", "bag", {"width": 128, "hidden": (512,), "dropout": 0.5, "word_dropout": 0.1}),
    "GRU": ("words", "gru", {"dropout": 0.5, "word_dropout": 0.15}),
    "LSTM": ("words", "lstm", {"dropout": 0.5, "word_dropout": 0.15}),
    "transformer": ("words", "transformer", {}),
}

_NO_CAPTIONS = {"data.text.tokenizer": "", "model.options.text": ""}

# Of the study's Table 1; the layers of its SimpleCNN and CNN2 are not published.
_NETWORKS = {
    "SimpleCNN": ("simple_cnn", {"widths": (32, 64, 128)}),
    "CNN2": ("cnn2", {}),
    "ResNet18": ("resnet18", {}),
    "VGG16": ("vgg16", {}),
    "EfficientNet-B4": ("efficientnet_b4", {}),
}
_SMALL = {
    "SimpleCNN": ("simple_cnn", {"widths": (16, 32, 64)}),
    "deep SimpleCNN": ("simple_cnn", {"widths": (16, 32, 64, 96, 96)}),
    "CNN2 at a quarter of its width": ("cnn2", {"widths": (16, 32, 64, 128)}),
    "ResNet18": ("resnet18", {}),
    "EfficientNet-B0": ("efficientnet_b0", {}),
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
    config.loss.name = "focal_scalar"
    config.loss.options = ConfigDict({"gamma": 2.5, "label_smoothing": 0.1})
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.schedule.plateau_factor = 0.1
    config.evaluation.submission_columns = ("ImageID", "Labels")
    config.evaluation.submission_labels = tuple(map(str, captions.NUMBERS))
    _augment(config)
    return common.finish(config, PRESETS, presets)


def _augment(config: ConfigDict) -> None:
    augment = config.data.augment
    augment.resized_crop = (0.08, 1.0)
    augment.flip_horizontal = True
    augment.rotation = 20.0
    augment.rotation_fill = "constant"
    augment.translate = 0.1
    augment.scale = (0.8, 1.2)
    augment.brightness = augment.contrast = augment.saturation = 0.3
    augment.erasing = 0.3
    augment.erasing_area = (0.02, 0.2)


def _encoder(name: str) -> dict:
    tokenizer, encoder, options = _ENCODERS[name]
    chosen = {"data.text.tokenizer": tokenizer, "model.options.text": encoder, "model.options.text_options": options}
    return {"name": name} | chosen


def _comparison(config: ConfigDict) -> None:
    config.epochs = 3.0
    config.early_stopping = 0
    config.data.text.tokenizer = ""
    config.model.options = ConfigDict({"image": "efficientnet_b4", "text": ""})
    config.search.trials = _networks(_NETWORKS)
    config.search.repeats = 3


def _networks(families: dict[str, tuple[str, dict]]) -> tuple[dict, ...]:
    return tuple(
        {"name": name, "model.options.image": family, "model.options.image_options": options}
        for name, (family, options) in families.items()
    )


def _focal(**changes) -> dict:
    return {"loss.name": "focal_scalar", "loss.options.gamma": 2.5, "loss.options.label_smoothing": 0.1} | changes


def _ablation(config: ConfigDict) -> None:
    plain, augment = common.data().augment, config.data.augment
    without = {f"data.augment.{key}": plain[key] for key in augment if augment[key] != plain[key]}
    config.loss.options = ConfigDict()  # the trials have them, because those of one loss are not of another
    words, encoder, options = _ENCODERS["words"]
    config.search.trials = (
        {"name": "as it is", **_focal()},
        {"name": "without captions", **_focal(**_NO_CAPTIONS)},
        {"name": "without images", **_focal(**{"model.options.image": ""})},
        {"name": "words for letter pairs", **_focal(**{"data.text.tokenizer": words, "model.options.text": encoder,
                                                       "model.options.text_options": options})},
        {"name": "cross-entropy", "loss.name": "sigmoid_cross_entropy", "loss.options.label_smoothing": 0.1},
        {"name": "asymmetric loss", "loss.name": "asymmetric"},
        {"name": "rate 1e-4", **_focal(**{"optimizer.learning_rate": 1e-4})},
        {"name": "rate 5e-3", **_focal(**{"optimizer.learning_rate": 5e-3})},
        {"name": "rate 1e-2", **_focal(**{"optimizer.learning_rate": 1e-2})},
        {"name": "without augmentation", **_focal(**without)},
    )  # fmt: skip
    config.evaluation.reference = "as it is"
    config.search.repeats = 3


def _factorial(config: ConfigDict) -> None:
    config.loss.options = ConfigDict()
    config.search.trials = tuple(
        {"name": f"{text}, {name}"} | loss | ({} if text == "captions" else _NO_CAPTIONS)
        for text in ("captions", "no captions")
        for name, loss in (("focal", _focal()), ("cross-entropy", {"loss.name": "sigmoid_cross_entropy"}))
    )
    config.search.grid = (("optimizer.learning_rate", (1e-4, 1e-3, 5e-3, 1e-2)),)


def _cpu(config: ConfigDict) -> None:
    config.demonstration = "small networks and samples at 96 px stand for the study's at 224 px"
    config.data.simulated.train = 1500
    config.image_size = 96
    config.batch_size = 16
    config.optimizer.accumulate = 1
    config.schedule.name = "cosine"
    config.schedule.warmup = "5 %"
    config.schedule.plateau_factor = 1.0
    config.epochs = 8.0
    config.early_stopping = 0
    config.evaluate_every = config.checkpoint_every = "2 epochs"
    config.data.augment.resized_crop = ()  # the sample's objects are small
    if config.search.trials == _networks(_NETWORKS):
        config.search.trials = _networks(_SMALL)
    else:
        family, options = _SMALL["deep SimpleCNN"]
        config.model.options.image = family
        config.model.options.image_options = ConfigDict(options)


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
    config.data.mean, config.data.std = common.data().mean, common.data().std
    config.epochs = 6.0
    config.data.text.tokenizer = tokenizer
    config.model.options = ConfigDict({"image": "", "text": encoder, "text_options": options})
    config.data.augment = common.data().augment
    config.evaluation.explain = ""


def _encoders(config: ConfigDict) -> None:
    _text(config)
    config.search.trials = tuple(_encoder(name) for name in _ENCODERS)
    config.search.repeats = 3
    rivals = ("binary_relevance", "classifier_chains", "label_powerset")
    config.evaluation.text_rivals = (*rivals, *(f"{name}_forest" for name in rivals))


def _bert(config: ConfigDict) -> None:
    _text(config)
    config.epochs = 3.0
    config.batch_size = 32
    config.optimizer.learning_rate = 5e-5
    config.data.text.tokenizer = "wordpiece"
    config.data.text.options = ConfigDict({"vocabulary": "", "max_length": 32})
    config.model.options = ConfigDict({"image": "", "text": "bert", "text_options": {"folder": ""}})


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
        {"name": "image", **_NO_CAPTIONS},
        {"name": "text", "model.options.image": ""},
        {"name": "joined"},
        {"name": "gated", "model.options.fusion": "gated"},
        {"name": "cross-attention", "model.options.fusion": "cross_attention"},
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


PRESETS: dict[str, common.Preset] = {
    "ablation": _ablation,
    "bert": _bert,
    "comparison": _comparison,
    "cpu": _cpu,
    "encoders": _encoders,
    "factorial": _factorial,
    "fusion": _fusion,
    "smoke": _smoke,
    "text": _text,
}
