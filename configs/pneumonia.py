"""Pneumonia in children's chest X-rays: normal, bacterial or viral; twelve losses on imbalanced classes (Kermany 2018).

    python -m input_pipeline.prepare --study=pneumonia --source=RAW --out=data/pneumonia
    python -m research.main --config=configs/pneumonia.py --config.data.dir=data/pneumonia --workdir=runs/pneumonia
    python -m research.ensemble --runs=runs/pneumonia --out=runs/pneumonia-ensembles --compare_with_test_selection
    python -m research.explain --workdir=runs/pneumonia --images=test --method=gradcam

is the study's comparison (Rajaraman et al. 2021, doi 10.1371/journal.pone.0261307) with three seeds of each loss:
the EfficientNet-B0 encoder of a U-Net cut behind its fifth stage, a 3x3 convolution of 512, 512 px, balanced class
weights, SGD at 1e-4; for a GPU. Splits are by patient, which the study's were not. Names of the losses are those of
the paper; research/losses/notes.py says in the report where the original's were degenerate.

For lung crops train configs/lung_masks.py first, run `python -m research.segment` on RAW, and prepare with --boxes.

Presets:
    cpu      a small CNN at 96 px stands for the encoder: all losses and seeds. Two busy CPU cores: under two hours.
             Accuracy on 782 images of 494 patients, means of three seeds: 0.799 (calibrated hinge) to 0.817 (calibrated
             CCE); calibrated focal, chosen on calibration, 0.810 [0.781, 0.838], none differs from it (Holm), linear
             model on pixels 0.073 [0.042, 0.105] below. Of 252 ensembles the one that calibration chose has 0.826
             [0.798, 0.853]; choosing on test would have said 0.857
    one      the cross-entropy alone, with one seed; after `cpu` or not. `cpu,one` on 3,391 training images: 1.5 minutes
             on two cores; accuracy 80.8 % [77.8, 83.7] on 782 images of 494 patients, 80.6 % on lung crops,
             linear model on pixels 73.7 %
    encoder  the study's network at 128 px for a few epochs of Adam, with one seed of the cross-entropy. Two cores: 5
             minutes; accuracy 77.6 % [74.4, 80.9]
    merge    a model-level ensemble: the maps of frozen members, a 1x1 convolution of 512 and a new head, cross-entropy;
             after `cpu` if the members are; `python -m research.ensemble.merge` writes its --config.model.weights
    smoke    four losses on simulated X-rays, half a minute
"""

from ml_collections import ConfigDict

from configs import common

_CCE, _FOCAL, _HINGE, _KL = "softmax_cross_entropy", "focal_categorical", "categorical_hinge", "kl_divergence"
LOSSES = (
    ("CCE", _CCE, {}),
    ("CCE with entropy", _CCE, {"entropy_weight": 2.0}),
    ("KL", _KL, {}),
    ("focal", _FOCAL, {}),
    ("hinge", _HINGE, {}),
    ("LS-CCE", _CCE, {"label_smoothing": 0.2}),
    ("LS-focal", _FOCAL, {"label_smoothing": 0.2}),
    ("calibrated CCE", _CCE, {"dca_weight": 1.0}),
    ("calibrated KL", _KL, {"dca_weight": 1.0}),
    ("calibrated focal", _FOCAL, {"dca_weight": 1.0}),
    ("calibrated hinge", _HINGE, {"dca_weight": 1.0}),
    ("calibrated negative entropy", _CCE, {"entropy_weight": 0.001, "dca_weight": 1.0}),
)
# Three classes; the first with weighted means of precision, recall and F1, and micro AUROC and AUPRC.
CITED = (
    (
        "Rajaraman 2021, best ensemble",
        {"accuracy": 0.9391, "auroc_macro": 0.9933, "auprc_macro": 0.9881, "precision_macro": 0.9396,
         "recall_macro": 0.9391, "macro_f1": 0.9392, "mcc": 0.9068},
    ),
    ("Ayan 2021", {"accuracy": 0.9071}),
)  # fmt: skip


def get_config(presets: str = "") -> ConfigDict:
    """The study's comparison, changed by the presets."""
    config = common.default()
    config.study = "pneumonia"
    config.data.simulated.train = 600
    config.data.simulated.test = 120
    config.data.channels = 3
    config.image_size = 512
    config.batch_size = 16
    config.epochs = 64.0
    config.selection = "accuracy"
    config.early_stopping = 5
    config.model.name = "efficientnet_b0"
    config.model.options = ConfigDict({"stages": 5, "extra_conv": 512})
    config.loss.class_weights = "balanced"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.nesterov = True
    config.schedule.plateau_factor = 0.5
    config.schedule.plateau_patience = 5
    config.schedule.plateau_floor = 1e-5
    config.search.trials = tuple(
        {"name": name, "loss.name": loss} | {f"loss.options.{key}": value for key, value in options.items()}
        for name, loss, options in LOSSES
    )
    config.search.repeats = 3
    config.evaluation.cited = CITED
    return common.finish(config, PRESETS, presets)


def _cpu(config: ConfigDict) -> None:
    config.demonstration = "a small CNN at 96 px for 12 epochs stands for the EfficientNet-B0 encoder at 512 px"
    config.data.channels = 1
    config.image_size = 96
    config.batch_size = 32
    config.epochs = 12.0
    config.early_stopping = 0
    config.model.name = "simple_cnn"
    config.model.options = ConfigDict({"widths": (12, 24, 48, 96, 96)})
    config.model.head_dropout = 0.2
    _quick(config)


def _quick(config: ConfigDict) -> None:
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.ema = 0.99
    config.schedule.name = "one_cycle"
    config.schedule.plateau_factor = 1.0
    augment = config.data.augment
    augment.rotation = 10.0
    augment.scale = (0.9, 1.1)
    augment.brightness = augment.contrast = 0.15


def _one(config: ConfigDict) -> None:
    config.search.trials = ()
    config.search.repeats = 1


def _encoder(config: ConfigDict) -> None:
    _one(config)
    config.demonstration = "the study's network at 128 px for 8 epochs of Adam, for a CPU"
    config.image_size = 128
    config.batch_size = 32
    config.epochs = 8.0
    config.early_stopping = 0
    config.model.options.batch_norm_momentum = 0.9
    _quick(config)
    config.optimizer.learning_rate = 1e-3


def _merge(config: ConfigDict) -> None:
    _one(config)
    options = {"of": config.model.name, "options": config.model.options.to_dict(), "members": 3}
    config.model.name = "merged"
    config.model.options = ConfigDict(options)
    length = {"steps": config.steps} if config.steps else {"epochs": config.epochs}
    config.phases = ({"name": "merge", "train": ("merge", "head"), **length},)
    config.steps, config.epochs = 0, 0.0


def _smoke(config: ConfigDict) -> None:
    _cpu(config)
    config.demonstration = "smoke: four losses on tiny networks for a few steps, to see that everything runs"
    config.data.simulated.train = 120
    config.data.simulated.test = 24
    config.image_size = 32
    config.batch_size = 16
    config.epochs = 0.0
    config.steps = 20
    config.evaluate_every = config.checkpoint_every = "10 steps"
    config.model.options.widths = (8, 16)
    config.search.trials = config.search.trials[::3]
    config.search.repeats = 2 if config.search.trials else 1
    config.evaluation.bootstrap = 200
    config.evaluation.explain = ""


PRESETS: dict[str, common.Preset] = {"cpu": _cpu, "encoder": _encoder, "merge": _merge, "one": _one, "smoke": _smoke}
