"""White blood cells in four classes (Kaggle `paultimothymooney/blood-cells`): many CNNs, and the front of their sizes.

    python -m input_pipeline.prepare --study=blood_cells --source=RAW --out=data/blood_cells
    python -m research.main --config=configs/blood_cells.py --config.data.dir=data/blood_cells

trains the study's own 24 networks (four lists of filters times six lists of dense units, "valid" padding, 224 px, grey)
for 10 epochs; one GPU is meant. With its spreadsheet instead of the built-in lists:

    python -m research.main --config=configs/blood_cells.py:sheet --config.search.sheet=hyper_paremetes.xlsx …

The 9,957 training files are rotations, flips and shifts of about 276 photographs, so all roles and folds are of
photographs (near-duplicate clusters), not of files; the study's accuracies are not.

Presets:
    epochs10, epochs30  the study's lengths (10 is the default)
    cpu      the 24 networks with "same" padding at 64 px, 1,000 steps of 16 images, no dropout: 1.5 to 2 hours on two
             quiet cores. Measured (from the spreadsheet; 28 photographs of validation): 3 of 24 are beaten by none, of
             1.11, 1.19 and 1.83 million parameters and 43.9, 71.1 and 86.1 % on validation; nine stay below 35 %,
             those with the deepest dense stacks above all
    folds    five folds of one small CNN. Two CPU cores: about 30 minutes. Measured (with the validation photographs of
             all folds drawn alike, not from the next fold as now): mean test accuracy 85.6 % over the
             folds (77.6, 78.0, 85.5, 94.6, 92.4), pooled 85.5 % [79.9, 90.5] over photographs; majority class 23.8 %,
             colour histogram + logistic regression 51.0 %. Whole photographs are right or wrong, which is why folds
             differ so much.
    screening  64 settings of tiny networks at 28 px, three seeds each, 600 steps: what searches of the same settings
             are compared with (tests/benchmarks/halving.py), on data prepared with `--fractions validation=0.25
             calibration=0 test=0.3`, because 28 photographs rank no networks. Two busy CPU cores: 20 minutes. Measured:
             halving 100.5 % (96.0 to 108.4 over 5 search seeds) of the grid's hypervolume on test at 24.9 % of its
             steps, random search 89.0 %, TPE 95.2 %; all settings with seeds drawn alike 104.8 %
    small    five folds of networks of 26, 51 and 501 kB. Two busy CPU cores: 70 minutes. Measured on test, pooled:
             25,592 bytes 83.6 % [77.7, 88.8], 51,120 bytes 84.7 % [79.1, 89.7], 500,960 bytes 86.6 % [81.0, 91.3]; mean
             accuracy on validation 87.0, 88.8 and 88.1 %. By `python -m research.compress --methods=int8,magnitude+int8
             --sparsity=0.5 --finetune="30 %"`: int8 126,338 bytes 86.7 %, half pruned and int8 8,530 bytes 85.5 %
             [80.0, 90.3]
    single   `folds` without folds: the stored roles
    smoke    eight tiny networks for a few steps
"""

from ml_collections import ConfigDict

from configs import common

FILTERS = (
    (70, 80, 100, 140, 180, 220),
    (80, 100, 160, 200, 210, 220),
    (120, 140, 160, 180, 200, 256),
    (128, 150, 180, 200, 256),
)
DENSE = (
    (250, 300),
    (380, 430, 477),
    (200, 210, 300, 350),
    (70, 95, 120, 100, 4),
    (150, 208, 300, 350, 405, 450),
    (300, 250, 200, 180, 175, 160, 150),
)


def get_config(presets: str = "") -> ConfigDict:
    """The study's grid, changed by the presets."""
    config = common.default()
    config.study = "blood_cells"
    config.image_size = 224
    config.batch_size = 32
    config.epochs = 10.0
    config.selection = "accuracy"
    config.data.channels = 1
    config.data.normalize = "raw"
    config.model.name = "grid_cnn"
    config.model.options = ConfigDict({"filters": FILTERS[0], "kernels": (7, 5, 5, 3, 3, 3), "dense": DENSE[0]})
    config.search.grid = (("model.options.dense", DENSE), ("model.options.filters", FILTERS))
    config.search.latency = True
    return common.finish(config, PRESETS, presets)


def _epochs10(config: ConfigDict) -> None:
    config.epochs = 10.0


def _epochs30(config: ConfigDict) -> None:
    config.epochs = 30.0


def _sheet(config: ConfigDict) -> None:
    config.search.grid = ()


def _cpu(config: ConfigDict) -> None:
    config.demonstration = (
        'the study\'s 24 networks with "same" padding at 64 px, 1,000 steps of 16 images and no dropout, for a CPU'
    )
    config.image_size = 64
    config.batch_size = 16
    config.epochs = 0.0
    config.steps = 1000
    config.evaluate_every = config.checkpoint_every = "125 steps"
    config.log_every = "125 steps"
    config.model.options.padding = "same"
    config.model.options.batch_norm_momentum = 0.9
    config.model.options.conv_dropout = config.model.options.dense_dropout = 0.0
    config.data.channels = 3
    config.data.augment.dihedral = True
    _robust(config)
    config.optimizer.learning_rate = 2e-3
    config.optimizer.ema = 0.98


def _robust(config: ConfigDict) -> None:
    # Copies of one photograph differ in brightness and white balance; dividing each channel by its mean removes both.
    config.data.normalize = "channel_intensity"
    config.schedule.name = "one_cycle"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 1e-2
    config.loss.options = ConfigDict({"label_smoothing": 0.1})


def _single(config: ConfigDict) -> None:
    _robust(config)
    config.search.grid = ()
    config.image_size = 96
    config.epochs = 0.0
    config.steps = 2000
    config.selection = "loss"
    config.evaluate_every = config.checkpoint_every = "250 steps"
    config.data.channels = 0
    config.model.name = "simple_cnn"
    config.model.options = ConfigDict({"widths": (16, 32, 64, 128, 128)})
    config.model.head_dropout = 0.3
    config.optimizer.ema = 0.99
    augment = config.data.augment
    augment.dihedral = True
    augment.rotation = 180.0
    augment.scale = (0.85, 1.25)
    augment.brightness = 0.2
    augment.contrast = 0.2
    augment.saturation = 0.3
    augment.hue = 0.05
    config.evaluation.tta = "flips"


def _folds(config: ConfigDict) -> None:
    _single(config)
    config.search.folds = 5
    config.search.fold_fractions.validation = 0.1
    config.search.fold_fractions.calibration = 0.05


def _small(config: ConfigDict) -> None:
    _folds(config)
    config.steps = 2400
    config.evaluate_every = config.checkpoint_every = "400 steps"
    config.log_every = "200 steps"
    config.evaluation.tta = "dihedral"
    # Sizes are compared on validation: as many photographs as training can spare, none for a calibration not needed.
    config.search.fold_fractions.validation = 0.15
    config.search.fold_fractions.calibration = 0.0
    config.search.grid = (("model.options.widths", ((6, 8, 12, 16, 20), (8, 12, 16, 24, 28), (12, 24, 48, 96, 80))),)


def _screening(config: ConfigDict) -> None:
    _single(config)
    config.image_size = 28
    config.steps = 600
    config.evaluate_every = config.checkpoint_every = "50 steps"
    config.log_every = "100 steps"
    # Rungs compare networks in the middle of their training: without the long warm-up of one_cycle, and by averaged
    # weights, they stand there more nearly as they end.
    config.schedule.name = "cosine"
    config.schedule.warmup = "5 %"
    config.optimizer.ema = 0.98
    config.evaluation.tta = "none"
    config.search.grid = (
        (
            "model.options.widths",
            ((4, 8), (6, 12), (8, 16), (12, 24), (16, 32), (8, 16, 32), (12, 24, 48), (16, 32, 64)),
        ),
        ("optimizer.learning_rate", (1e-3, 3e-3, 1e-2, 3e-2)),
        ("model.head_dropout", (0.0, 0.3)),
        ("seed", (0, 1, 2)),
    )
    config.search.latency = False


def _smoke(config: ConfigDict) -> None:
    _single(config)
    config.demonstration = "smoke: tiny networks for a few steps, to see that everything runs"
    config.image_size = 32
    config.steps = 60
    config.evaluate_every = config.checkpoint_every = "30 steps"
    config.data.limit = 1000
    config.model.options = ConfigDict({"widths": (8, 16)})
    config.search.grid = (
        ("model.options.widths", ((4, 8), (8, 16))),
        ("optimizer.learning_rate", (1e-3, 3e-3)),
        ("model.head_dropout", (0.0, 0.3)),
    )
    config.search.latency = False
    config.evaluation.bootstrap = 200
    config.evaluation.explain = ""


PRESETS = {
    "cpu": _cpu,
    "epochs10": _epochs10,
    "epochs30": _epochs30,
    "folds": _folds,
    "sheet": _sheet,
    "screening": _screening,
    "single": _single,
    "small": _small,
    "smoke": _smoke,
}
