"""White blood cells in four classes (Kaggle `paultimothymooney/blood-cells`): one small CNN, tested by photograph.

    python -m input_pipeline.prepare --study=blood_cells --source=RAW --out=data/blood_cells
    python -m research.main --config=configs/blood_cells.py --config.data.dir=data/blood_cells

The 9,957 training files are rotations, flips and shifts of about 276 photographs, so the five folds are of photographs
(near-duplicate clusters), not of files. Two CPU cores: about 30 minutes. Measured: mean test accuracy 85.6 % over the
folds (77.6, 78.0, 85.5, 94.6, 92.4), pooled 85.5 % [79.9, 90.5] over photographs; majority class 23.8 %, colour
histogram + logistic regression 51.0 %. Whole photographs are right or wrong, which is why folds differ so much.

Presets: smoke (one fold, a few steps), single (no folds: the stored roles).
"""

from ml_collections import ConfigDict

from configs import common


def get_config(presets: str = "") -> ConfigDict:
    """Five photograph-grouped folds of one small CNN, changed by the presets."""
    config = common.default()
    config.study = "blood_cells"
    config.image_size = 96
    config.batch_size = 32
    config.steps = 2000
    config.evaluate_every = "250 steps"
    config.checkpoint_every = "250 steps"
    config.model.options = ConfigDict({"widths": (16, 32, 64, 128, 128)})
    config.model.head_dropout = 0.3
    config.loss.options = ConfigDict({"label_smoothing": 0.1})
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.ema = 0.99
    config.schedule.name = "one_cycle"
    # Copies of one photograph differ in brightness and white balance; dividing each channel by its mean removes both.
    config.data.normalize = "channel_intensity"
    augment = config.data.augment
    augment.dihedral = True
    augment.rotation = 180.0
    augment.scale = (0.85, 1.25)
    augment.brightness = 0.2
    augment.contrast = 0.2
    augment.saturation = 0.3
    augment.hue = 0.05
    config.evaluation.tta = "flips"
    config.search.folds = 5
    config.search.fold_fractions.validation = 0.1
    config.search.fold_fractions.calibration = 0.05
    return common.finish(config, PRESETS, presets)


def _single(config: ConfigDict) -> None:
    config.search.folds = 0


def _smoke(config: ConfigDict) -> None:
    config.demonstration = "smoke: a tiny network for a few steps, to see that everything runs"
    config.search.folds = 0
    config.image_size = 32
    config.steps = 60
    config.evaluate_every = config.checkpoint_every = "30 steps"
    config.data.limit = 1000
    config.model.options = ConfigDict({"widths": (8, 16)})
    config.evaluation.bootstrap = 200


PRESETS = {"single": _single, "smoke": _smoke}
