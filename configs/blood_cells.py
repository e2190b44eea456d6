"""White blood cells in four classes (Kaggle `paultimothymooney/blood-cells`): one small CNN, tested by photograph.

    python -m input_pipeline.prepare --study=blood_cells --source=RAW --out=data/blood_cells
    python -m research.main --config=configs/blood_cells.py --config.data.dir=data/blood_cells

The 9,957 training files are rotations, flips and shifts of about 280 photographs, so the five folds are of photographs
(near-duplicate clusters), not of files. Hardware: two CPU cores.

Presets: smoke (one fold, a few steps), single (no folds: the stored roles).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(presets: str = "") -> ConfigDict:
    """Five photograph-grouped folds of one small CNN, changed by the presets."""
    config = common.default()
    config.study = "blood_cells"
    config.image_size = 80
    config.batch_size = 64
    config.epochs = 12.0
    config.model.name = "simple_cnn"
    config.model.options = ConfigDict({"widths": (24, 48, 96, 192)})
    config.model.head_dropout = 0.3
    config.loss.options = ConfigDict({"label_smoothing": 0.1})
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.ema = 0.99
    config.schedule.name = "one_cycle"
    config.selection = "macro_f1"
    augment = config.data.augment
    augment.dihedral = True
    augment.brightness = 0.2
    augment.contrast = 0.2
    augment.saturation = 0.2
    augment.hue = 0.03
    config.search.folds = 5
    return common.finish(config, PRESETS, presets)


def _single(config: ConfigDict) -> None:
    config.search.folds = 0


def _smoke(config: ConfigDict) -> None:
    config.demonstration = "smoke: a tiny network for a few steps, to see that everything runs"
    config.search.folds = 0
    config.image_size = 32
    config.epochs = 0.0
    config.steps = 60
    config.data.limit = 1000
    config.model.options = ConfigDict({"widths": (8, 16)})
    config.evaluation.bootstrap = 200


PRESETS = {"single": _single, "smoke": _smoke}
