"""The 32 trials of one filter set in `search_speed`: 4 shapes of small CNNs x 8 optimiser settings.

Presets: 8x16, 16x32 (the filters of the two blocks).
"""

from ml_collections import ConfigDict

from configs import common

# Every party trains these; kernels and dense units are the shapes, the others the settings.
KERNELS, UNITS = (3, 5), (32, 64)
LEARNING_RATES, WEIGHT_DECAYS, DROPOUTS = (1e-3, 3e-3), (1e-4, 1e-2), (0.1, 0.3)
BATCH_SIZE, IMAGE_SIZE, EVALUATIONS = 32, 28, 4


def get_config(presets: str = "") -> ConfigDict:
    """The search; its length and its cadence come from the command line."""
    config = common.default()
    config.study = "search_speed"
    config.image_size = IMAGE_SIZE
    config.batch_size = BATCH_SIZE
    config.model.name = "grid_cnn"
    config.model.options = ConfigDict(
        {
            "filters": (8, 16),
            "kernels": 3,
            "dense": (32,),
            "padding": "same",
            "conv_dropout": 0.0,
            "dense_dropout": 0.1,
            "batch_norm_momentum": 0.9,
        }
    )
    config.optimizer.name = "adamw"
    config.data.channels = 3
    config.data.normalize = "fixed"
    augment = config.data.augment
    augment.flip_horizontal = augment.flip_vertical = True
    augment.brightness = augment.contrast = 0.2
    config.evaluation.batch_size = 256
    config.search.grid = (
        ("model.options.kernels", KERNELS),
        ("model.options.dense", tuple((units,) for units in UNITS)),
        ("optimizer.learning_rate", LEARNING_RATES),
        ("optimizer.weight_decay", WEIGHT_DECAYS),
        ("model.options.dense_dropout", DROPOUTS),
    )
    return common.finish(config, PRESETS, presets)


def _small(config: ConfigDict) -> None:
    config.model.options.filters = (8, 16)


def _large(config: ConfigDict) -> None:
    config.model.options.filters = (16, 32)


PRESETS: dict[str, common.Preset] = {"8x16": _small, "16x32": _large}
