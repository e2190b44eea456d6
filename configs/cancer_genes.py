"""33 tumour types from gene expression (TCGA RNA-seq): vectors drawn as pictures, and back from pictures to genes.

    python -m input_pipeline.prepare --study=cancer_genes --source=RAW --out=data/cancer_genes
    python -m research.main --config=configs/cancer_genes.py --config.data.dir=data/cancer_genes --workdir=runs/cancer \
        '--config.model.weights=weights/{name}.h5'
    python -m research.genes --workdir=runs/cancer

is the study's comparison: ResNet50, VGG19, DenseNet169 and Xception with its heads and trainable parts, 102 x 102 genes
in alphabetical order enlarged to 224 px, batch 32, Adam 1e-4, 25 epochs; for a GPU. What differs on purpose: tumours
only, roles by patient, and values that are neither cut at 1 nor rounded to 8 bits (preset `study` does all of that as
the study did). RAW holds the PanCanAtlas table and the clinical labels, or another form that input_pipeline knows; the
data set holds the vectors, so one serves all layouts. Without ImageNet weights nothing is frozen.

Rivals in every report: logistic regression and linear SVM on the genes. Measured with `cpu` on two busy cores, test:
four real types (871 samples, 1,577 genes, prepared from one table for each cohort; 10 minutes): balanced accuracy 0.972
[0.938, 0.997] alphabetical, 0.989 [0.973, 1.000] correlation, 1.000 MLP and both rivals. Simulated (`cpu,chromosome`
without data; 9 minutes): accuracy 0.633 [0.545, 0.717] alphabetical, 0.704 random, 0.663 chromosome, 0.909 [0.848,
0.960] correlation, 0.899 DeepInsight, 0.741 by PCA, 0.872 MLP, 0.808 1-D CNN, 0.929 logistic regression: neighbours
that vary together are what a small CNN needs. Of the first 20 genes by integrated gradients 98 % are planted ones (81 %
of the alphabetical CNN, 2.5 % by chance), of an F-test 100 %.

Presets, to be combined by commas:
  study       the original preprocessing: values below 1 become 0, 8 bits, 102 x 102 with zero padding (its table of
              10,362 genes gives its pictures; prepare with --set samples=all), scaled by the greatest value of all
              samples, and its random split: both are leaky
  layouts     ResNet50 with each layout: alphabetical, random, correlation, DeepInsight (t-SNE and PCA)
  crossed     the four backbones with each layout, twenty networks
  finetuning  ResNet50: head alone, the study's layers, all layers, and all from scratch
  cpu         small networks for a CPU: a CNN with each layout, an MLP and a 1-D CNN, three seeds each
  one         the first of the list alone, with one seed
  chromosome  adds the layout by position on the chromosomes to that of `cpu` or `layouts`, before it in the list; its
              table is --config.data.layout.positions=FILE
  few         a network meets new types with 1, 5 and 20 samples of each, trained before or from scratch; see below
  smoke       tiny networks for a few steps on simulated tumours

New tumour types, after `cpu`: the first run leaves them out, the second has only them, with the first one's layout,

    … --config=configs/cancer_genes.py:cpu,one --config.data.without_classes="('UCS', 'READ')" --workdir=runs/known
    … --config=configs/cancer_genes.py:cpu,few --config.data.classes="('UCS', 'READ')" --workdir=runs/new \
        --config.model.weights=runs/known --config.data.layout.run=runs/known
"""

from ml_collections import ConfigDict

from configs import common

LAYOUTS = ("alphabetical", "random", "correlation", "deepinsight", "deepinsight_pca")
_WIDE_HEAD = {"model.head": (2048, 512), "optimizer.l2": (("head/dense_1/kernel", 0.01),)}
_VGG_HEAD = {
    "model.head": (512, 512), "model.head_pool": "flatten", "model.options.top": False,
    "optimizer.l2": (("head/dense_1/kernel", 0.01),),
}  # fmt: skip
# Head, the layers that the study trained besides (see research/training/freezing.py), and epochs.
BACKBONES = {
    "resnet50": (_WIDE_HEAD, ("conv5_block3",), 25),
    "vgg19": (_VGG_HEAD, ("block5_conv4",), 25),
    "densenet169": (_WIDE_HEAD, ("conv5_block32", "bn"), 25),
    "xception": ({"model.head": (), "optimizer.l2": ()}, ("block14",), 15),
}


def get_config(presets: str = "") -> ConfigDict:
    """The study's comparison, changed by the presets."""
    config = common.default()
    config.study = "cancer_genes"
    config.data.simulated.train = 600
    config.data.simulated.test = 120
    config.data.channels = 3
    config.image_size = 224
    config.batch_size = 32
    config.selection = "accuracy"
    config.optimizer.learning_rate = 1e-4
    config.model.name = "resnet50"
    config.model.head_batch_norm = True
    config.model.head_dropout = 0.5
    config.model.head_dropout_at = "first"
    config.model.variant = "keras"
    config.evaluation.merge = (("COAD", "READ"),)
    config.phases = ({"name": "the study's layers", "epochs": 25, "train": ("head",)},)
    config.search.trials = tuple(_trial(name) for name in BACKBONES)
    return common.finish(config, PRESETS, presets)


def _trial(name: str, train: tuple[str, ...] | None = None) -> dict:
    """A backbone with the study's head; `train` are the layers behind which all rests, the study's if None."""
    head, layers, epochs = BACKBONES[name]
    phase = {"name": "training", "epochs": epochs}
    if train is None or train:
        phase["train"] = (*(layers if train is None else train), "head")
    return {"name": name, "model.name": name, "phases": (phase,)} | head


def _study(config: ConfigDict) -> None:
    config.data.layout.name = "alphabetical"
    config.data.layout.side = 102
    config.data.layout.scaling = "study"
    config.data.split = "study"


def _layouts(config: ConfigDict) -> None:
    config.search.trials = tuple(
        _trial("resnet50") | {"name": layout, "data.layout.name": layout} for layout in LAYOUTS
    )


def _crossed(config: ConfigDict) -> None:
    config.search.grid = (("data.layout.name", LAYOUTS),)


def _finetuning(config: ConfigDict) -> None:
    phase = {"name": "training", "epochs": 25}
    config.search.trials = (
        _trial("resnet50", ("head",)) | {"name": "head only"},
        _trial("resnet50") | {"name": "the study's layers"},
        _trial("resnet50", ()) | {"name": "all layers"},
        _trial("resnet50", ()) | {"name": "from scratch", "model.weights": "", "phases": (phase,)},
    )


def _cpu(config: ConfigDict) -> None:
    config.demonstration = "small networks on 40 x 40 genes stand for ImageNet networks on 102 x 102 at 224 px"
    config.data.channels = 1
    config.data.layout.side = 40
    config.image_size = 40
    config.phases = ()
    config.epochs = 20.0
    config.evaluate_every = config.checkpoint_every = "2 epochs"
    _small_network(config)
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 1e-2
    config.schedule.name = "cosine"
    config.schedule.warmup = "5 %"
    rivals = (
        {"name": "MLP", "model.name": "mlp", "model.head_pool": "average"},
        {"name": "1-D CNN", "model.name": "cnn1d", "model.head_pool": "average"},
    )
    widths = {"model.options.widths": (16, 32, 64)}
    config.search.trials = tuple({"name": name, "data.layout.name": name} | widths for name in LAYOUTS) + rivals
    config.search.repeats = 3


def _small_network(config: ConfigDict) -> None:
    config.model.name = "simple_cnn"
    config.model.variant = ""
    config.model.head_batch_norm = False
    config.model.head_dropout = 0.2
    config.model.head_pool = "flatten"  # a gene is known by its place, which a mean over places would forget


def _chromosome(config: ConfigDict) -> None:
    first = dict(config.search.trials[0]) | {"name": "chromosome", "data.layout.name": "chromosome"}
    config.search.trials = (*config.search.trials, first)


def _one(config: ConfigDict) -> None:
    first = {key: value for key, value in config.search.trials[0].items() if key != "name"}
    for key, value in first.items():
        config.update_from_flattened_dict({key: value})
    config.search.trials = ()
    config.search.repeats = 1


def _few(config: ConfigDict) -> None:
    _one(config)
    config.epochs = 0.0
    config.steps = 200
    config.evaluate_every = config.checkpoint_every = "20 steps"
    config.search.trials = tuple(
        {"name": f"{shots} of each, {start}", "data.shots": shots, "batch_size": batch_size} | weights
        for shots, batch_size in ((1, 2), (5, 8), (20, 32))  # two new types are enough for such batches
        for start, weights in (("trained before", {}), ("from scratch", {"model.weights": ""}))
    )
    config.search.repeats = 3


def _smoke(config: ConfigDict) -> None:
    _cpu(config)
    config.demonstration = "smoke: tiny networks for a few steps, to see that everything runs"
    config.data.simulated.train = 120
    config.data.simulated.test = 40
    config.epochs = 0.0
    config.steps = 30
    config.evaluate_every = config.checkpoint_every = "15 steps"
    config.search.trials = (
        {"name": "alphabetical", "model.options.widths": (8, 16)},
        {"name": "MLP", "model.name": "mlp", "model.head_pool": "average"},
    )
    config.search.repeats = 1
    config.evaluation.bootstrap = 200
    config.evaluation.explain = ""


PRESETS: dict[str, common.Preset] = {
    "chromosome": _chromosome,
    "cpu": _cpu,
    "crossed": _crossed,
    "few": _few,
    "finetuning": _finetuning,
    "layouts": _layouts,
    "one": _one,
    "smoke": _smoke,
    "study": _study,
}
