"""Lungs in chest X-rays, pixel by pixel: a U-Net on the pairs of the U.S. National Library of Medicine.

    python -m input_pipeline.prepare --study=lung_masks --source=RAW --out=data/lung_masks
    python -m research.main --config=configs/lung_masks.py --config.data.dir=data/lung_masks --workdir=runs/lung_masks
    python -m research.segment --workdir=runs/lung_masks --source=RAW_XRAYS --out=boxes.csv
    python -m input_pipeline.prepare --study=pneumonia --source=RAW_XRAYS --boxes=boxes.csv --out=data/pneumonia_lungs

The second line trains, the third finds the box around the lungs in other X-rays (with overlays to look at), the fourth
crops them. The study's own network: encoder EfficientNet-B0 and binary focal loss at 512 px, batch 2, Adam 1e-4, up to
64 epochs (preset `method`). The default is its shape at 128 px with cross-entropy plus Dice and a small decoder.

Measured on 110 real pairs (72 for training), random weights, two CPU cores shared with other work: 9.5 minutes, test
Dice 0.965 [0.959, 0.971] and IoU 0.933 [0.921, 0.943] over 17 films; the mean training mask has Dice 0.775. On 5,216
X-rays of children (2 minutes) 97 % get a box. The others are mostly lungs white with pneumonia (5.2 % of the bacterial,
0.2 % of the normal films), so being kept whole goes with the class: judge a classifier on crops with that in mind.

ImageNet weights for the encoder: --config.model.weights=FILE of its family (Keras, timm, torchvision).

Without data the built-in sample is drawn: 120 simulated chests with their masks.

Presets, to be combined by commas:
  method   the study's recipe; for a GPU, not measured
  losses   four trials: BCE + Dice, focal, Tversky, focal Tversky
  small    a small encoder, simple_cnn: 3 minutes, test Dice 0.966 [0.958, 0.972], measured in the same way
  smoke    a tiny network for a few steps, under 90 s on two cores
"""

from ml_collections import ConfigDict

from configs import common


def get_config(presets: str = "") -> ConfigDict:
    """U-Net on EfficientNet-B0 at 128 px, changed by the presets."""
    config = common.default()
    config.study = "lung_masks"
    config.image_size = 128
    config.batch_size = 8
    config.epochs = 60.0
    config.evaluate_every = config.checkpoint_every = "5 epochs"
    config.selection = "dice"
    config.data.simulated.train = 100
    config.data.simulated.test = 20
    # Exposure differs from film to film, and other hospitals' films differ more.
    config.data.normalize = "per_image"
    augment = config.data.augment
    augment.flip_horizontal = True
    augment.rotation = 10.0
    augment.rotation_fill = "constant"
    augment.translate = 0.08
    augment.scale = (0.8, 1.2)
    augment.brightness = 0.3
    augment.contrast = 0.3
    config.model.name = "unet"
    config.model.options = ConfigDict({"encoder": "efficientnet_b0", "decoder": (64, 48, 32, 24, 16)})
    config.loss.name = "bce_dice"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 1e-2
    config.optimizer.ema = 0.98
    config.schedule.name = "one_cycle"
    return common.finish(config, PRESETS, presets)


def _method(config: ConfigDict) -> None:
    config.image_size = 512
    config.batch_size = 2
    config.epochs = 64.0
    config.evaluate_every = config.checkpoint_every = "1 epochs"
    config.early_stopping = 10
    config.data.augment.rotation = 0.2
    config.data.augment.translate = 0.05
    config.data.augment.scale = (0.95, 1.05)
    config.data.augment.shear = 2.9  # 0.05 rad
    config.data.augment.brightness = config.data.augment.contrast = 0.0
    config.model.options.decoder = (256, 128, 64, 32, 16)
    config.loss.name = "focal_pixels"
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.0
    config.optimizer.ema = 0.0
    config.schedule.name = "constant"
    config.schedule.plateau_factor = 0.5
    config.schedule.plateau_patience = 5


def _losses(config: ConfigDict) -> None:
    config.search.grid = (("loss.name", ("bce_dice", "focal_pixels", "tversky", "focal_tversky")),)


def _small(config: ConfigDict) -> None:
    config.model.options = ConfigDict(
        {"encoder": "simple_cnn", "encoder_options": {"widths": (12, 24, 48, 64, 96)}, "decoder": (48, 32, 24, 12)}
    )


def _smoke(config: ConfigDict) -> None:
    config.demonstration = "smoke: a tiny network for a few steps, to see that everything runs"
    _small(config)
    config.model.options.encoder_options.widths = (8, 16, 24)
    config.model.options.decoder = (16, 8)
    config.image_size = 32
    config.epochs = 0.0
    config.steps = 60
    config.evaluate_every = config.checkpoint_every = "20 steps"
    config.optimizer.learning_rate = 1e-2
    config.data.simulated.train = 60
    config.evaluation.bootstrap = 200


PRESETS = {"losses": _losses, "method": _method, "small": _small, "smoke": _smoke}
