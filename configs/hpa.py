"""Protein organelle localisation in confocal images: ten labels, multi-label, macro F1 (Human Protein Atlas).

    python -m input_pipeline.prepare --study=hpa --source=RAW --out=data/hpa
    python -m research.main --config=configs/hpa.py:method --config.data.dir=data/hpa --workdir=runs/hpa

Without data, `--config=configs/hpa.py` is a demonstration on simulated cells: under 8 minutes on two CPU cores,
installation included. It shrinks network, image size and steps (see `config.demonstration`); `method` is the study's
own recipe: InceptionResNetV2 with a dense layer of 512, 128 px in [-1, 1], rotations and flips, soft macro F1, AMSGrad,
50 epochs at 1e-4 with batch 512 and a frozen backbone, then 16 epochs of all layers at 1e-6 with batch 128; learning
rate halved on a plateau of 2 epochs. Nothing is frozen when no pretrained weights are given.

The demonstration measured test macro F1 0.826 [0.792, 0.854] beside 0.248 for every label and 0.400 for a colour
histogram + logistic regression; that says that the program learns, and nothing about real cells.

Presets, to be combined by commas:
  method         the study's recipe, on prepared data
  bce, focal     the study's other losses
  simple_cnn     a small network from scratch, 170 epochs
  normalization  four trials that differ in the normalisation only
  comparison     four backbones (ResNet50, DenseNet121, InceptionResNetV2, EfficientNet-B0) × batches of 32 and 128 in
                 one table: 5 epochs of the head (with pretrained weights), then 25 of all layers
  smoke          half a minute, for trying and for tests; after `comparison` it shrinks images and steps only

Pretrained weights, for any preset: --config.model.weights=FILE, or for the comparison a file per backbone,

    python -m research.main --config=configs/hpa.py:comparison --config.data.dir=data/hpa --workdir=runs/comparison \
        '--config.model.weights=weights/{name}.safetensors'

For a GPU with 24 GB or more: a guess of 3 to 6 hours for the eight trials on the course's 15,389 images, not measured.
Without weights and data, `comparison,smoke` shows the table on simulated cells: about 15 minutes of processor time
(13.4 measured with some programs in the compilation cache), nearly all of it compilation.

Kaggle's public score of the study was 0.209 macro F1, below 0.245 for predicting every label: its test images were
shuffled against their ids. Submissions are joined by id here.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(presets: str = "") -> ConfigDict:
    """The demonstration, changed by the presets."""
    config = common.default()
    config.study = "hpa"
    config.data.simulated.train = 3000
    config.data.simulated.test = 300
    config.data.augment.dihedral = True
    config.evaluation.tta = "dihedral"
    config.evaluation.submission_columns = ("Image", "Label")
    config.selection = "macro_f1"
    _demonstration(config)
    return common.finish(config, PRESETS, presets)


def _demonstration(config: ConfigDict) -> None:
    config.demonstration = (
        "simple_cnn at 64 px for 20 epochs stands for InceptionResNetV2 at 128 px for 66 epochs, on simulated "
        "cells; the preset `method` is the study's recipe"
    )
    config.image_size = 64
    config.batch_size = 32
    config.epochs = 20.0
    config.model.options = ConfigDict({"widths": (16, 32, 64, 128)})
    config.loss.name = "sigmoid_cross_entropy"
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 3e-3
    config.schedule.name = "one_cycle"


def _method(config: ConfigDict) -> None:
    config.demonstration = ""
    config.image_size = 128
    config.batch_size = 512
    config.epochs = 0.0
    config.phases = (
        {"name": "head", "epochs": 50, "batch_size": 512, "learning_rate": 1e-4, "train": ("head",)},
        {"name": "all layers", "epochs": 16, "batch_size": 128, "learning_rate": 1e-6},
    )
    config.model.name = "inception_resnet_v2"
    config.model.options = ConfigDict()
    config.model.head = (512,)
    config.loss.name = "soft_f1"
    config.optimizer.name = "amsgrad"
    config.schedule.name = "constant"
    config.schedule.plateau_factor = 0.5
    config.schedule.plateau_floor = 1e-7
    config.data.augment.dihedral = False
    config.data.augment.flip_horizontal = True
    config.data.augment.flip_vertical = True
    config.data.augment.rotation = 180.0
    config.data.augment.rotation_fill = "reflect"


def _bce(config: ConfigDict) -> None:
    config.loss.name = "sigmoid_cross_entropy"


def _focal(config: ConfigDict) -> None:
    config.loss.name = "focal_binary"
    config.loss.options = ConfigDict({"alpha": 0.75, "gamma": 2.0})


def _simple_cnn(config: ConfigDict) -> None:
    _demonstration(config)
    config.demonstration = ""
    config.image_size = 128
    config.epochs = 170.0
    config.phases = ()
    config.model.name = "simple_cnn"
    config.model.options = ConfigDict()
    config.model.head = ()


def _normalization(config: ConfigDict) -> None:
    kinds = ("fixed", "dataset", "per_image", "channel_intensity")
    config.search.trials = tuple({"name": kind, "data.normalize": kind} for kind in kinds)


def _comparison(config: ConfigDict) -> None:
    _method(config)
    config.phases = (
        {"name": "head", "epochs": 5, "train": ("head",), "learning_rate": 1e-3},
        {"name": "all layers", "epochs": 25, "learning_rate": 1e-4},
    )
    config.model.head = ()
    config.loss.name = "sigmoid_cross_entropy"
    config.search.trials = tuple(
        {"name": f"{backbone}-{batch_size}", "model.name": backbone, "batch_size": batch_size}
        for backbone in ("resnet50", "densenet121", "inception_resnet_v2", "efficientnet_b0")
        for batch_size in (32, 128)
    )


def _smoke(config: ConfigDict) -> None:
    config.data.simulated.train = 240
    config.data.simulated.test = 12
    config.phases = ()
    config.evaluation.bootstrap = 200
    config.evaluation.explain = ""
    if any("model.name" in trial for trial in config.search.trials):
        config.demonstration = "smoke: a few steps on a few small simulated images, to see that everything runs"
        config.image_size = 75  # the least that InceptionResNetV2 takes
        config.steps = 2
        config.evaluation.tta = "none"
        config.evaluation.batch_size = 32  # one program for both batch sizes
        return
    config.demonstration = "smoke: a tiny network on a few simulated images, to see that everything runs"
    config.image_size = 32
    config.batch_size = 32
    config.epochs = 3.0
    config.model.name = "simple_cnn"
    config.model.options = ConfigDict({"widths": (8, 16)})
    config.model.head = ()


PRESETS = {
    "method": _method,
    "bce": _bce,
    "focal": _focal,
    "simple_cnn": _simple_cnn,
    "normalization": _normalization,
    "comparison": _comparison,
    "smoke": _smoke,
}
