"""Shared defaults of every study: the only place where a default lives.

Durations are strings with a unit ("500 steps", "2 epochs", "10000 examples", "5 %" of the training) except the length
of the training itself, which is one of `steps`, `epochs` and `examples`.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

Preset = Callable[[ConfigDict], None]


def default() -> ConfigDict:
    """Returns the defaults of all keys; a study's file changes what it needs and adds no keys of its own."""
    config = ConfigDict()
    config.study = ""  # names the run; also the study given to `input_pipeline.prepare`
    config.seed = 0
    config.image_size = 128  # pixels, both sides
    config.batch_size = 32  # global, over all devices and hosts
    config.steps = 0  # length of the training: exactly one of steps, epochs and examples
    config.epochs = 0.0
    config.examples = 0
    # Stretches of the training: name, one of steps, epochs and examples, optionally learning_rate and batch_size, and
    # freeze or train: what rests, or what alone is trained, named as in research/training/freezing.py. E.g.
    # ({"name": "head", "epochs": 50, "train": ("head",)}, {"epochs": 9, "freeze": ("first 3 blocks",)})
    config.phases = ()
    # Gradual unfreezing instead of phases: the head alone for `every`, then one more group of the backbone's blocks
    # after each `every`, from the top; 0 groups = off.
    config.unfreeze = ConfigDict({"groups": 0, "every": "1 epochs"})
    config.demonstration = ""  # what this run shrinks against the study's method, in words; printed in log and report
    config.data = data()
    config.model = model()
    config.loss = loss()
    config.optimizer = optimizer()
    config.schedule = schedule()
    config.selection = "loss"  # the metric on `validation` that chooses the checkpoint
    config.early_stopping = 0  # evaluations without improvement of `selection` before stopping; 0 = off
    config.nonfinite = "skip"  # skip a batch with a NaN or infinite loss or gradient, or abort
    config.evaluate_every = "1 epochs"
    config.checkpoint_every = "1 epochs"
    config.log_every = "50 steps"
    config.find_batch_size = False  # take the largest batch that fits instead of `batch_size`, on all devices together
    config.profile = ""  # steps traced for TensorBoard and XProf, such as "10:20"
    config.learning_rate_finder = False  # instead of a training: which learning rates the first trial could have
    config.overfit_one_batch = False  # instead of a training: can the first trial learn one batch by heart?
    config.remat = False  # compute blocks again for the backward pass: less memory, more time
    config.shard_parameters = ()  # regular expressions of parameter paths to be split over the devices
    config.evaluation = ConfigDict(
        {
            "thresholds": "per_class_f1",  # multi-label: fixed, per_class_f1, grid; fitted on `calibration`
            "fallback": "argmax",  # multi-label: no example is left without a label
            "temperature": True,  # temperature scaling fitted on `calibration`
            "tta": "none",  # none, flips, dihedral
            "bootstrap": 2000,  # resamples for the intervals
            "baselines": True,
            # Rivals that read captions, see research/evaluation/text_rivals.py: binary_relevance, classifier_chains and
            # label_powerset by logistic regression, or with _forest behind it by random forests.
            "text_rivals": ("binary_relevance",),
            "explain": "gradcam",  # how the report explains its most confident cases; "" = not at all
            "cited": (),  # figures of the literature for the report's table: (name, {metric: value}) pairs
            "merge": (),  # classes counted as one in further figures, e.g. (("COAD", "READ"),)
            "submission_columns": ("id", "label"),  # header of submission.csv
            "submission_labels": (),  # how it writes the classes, in their order; () = by their places, from 0
            "reference": "",  # the setting that others are compared with in the report; "" = the chosen one
            "batch_size": 0,  # 0 = batch_size
        }
    )
    config.search = search()
    return config


def search() -> ConfigDict:
    """Defaults of `config.search`: which trials a study has, and how they are trained together."""
    return ConfigDict(
        {
            # The trials are all combinations of what these give; research/search/trials.py tells how they are written.
            "base": "",  # a finished run whose chosen setting all trials begin from, as in an ablation of the winner
            "trials": (),  # named override sets, e.g. ({"name": "fixed", "data.normalize": "fixed"}, …)
            "sheet": "",  # a .csv or .xlsx with a trial in each row
            "zip": (),  # (key, values) pairs, their values taken in step
            "grid": (),  # (key, values) pairs, all combinations, e.g. (("optimizer.learning_rate", (1e-3, 3e-3)),)
            "random": (),  # (key, distribution) pairs, e.g. (("optimizer.learning_rate", ("log", 1e-4, 1e-1)),)
            "count": 0,  # of random draws
            "seed": 0,  # of random draws
            "order": "shared",  # of the examples: shared by all trials, or own, by each trial's seed
            "cohort": 32,  # trials trained together in one program, at most; 1 = each alone
            "padding": 1.0,  # let other widths in, at up to so many times a trial's own operations; 1 = off
            "plan": "auto",  # how they are: auto (timed), one by one, unrolled, im2col, map, scan
            # Instead of lists, or after them, a sampler may choose: tpe, nsga2 or random, from a space of (key,
            # distribution) pairs written as those of `random`, until there are `budget` settings in all.
            "sampler": "",
            "space": (),
            "budget": 0,
            "max_parameters": 0,  # larger models are not trained; 0 = no limit
            # What is to be improved: at most four of "min COLUMN", "max COLUMN", "min log COLUMN" of trials.csv. Empty:
            # "min log parameters" and "max validation/accuracy" (macro_f1 with several labels).
            "objectives": (),
            # Where the trials are kept for several workers: a file (.journal, .db) or postgresql://…, under the name
            # `study`. Each worker has a workdir of its own, and a name that stays when it is started again.
            "storage": "",
            "study": "",  # "" = config.study
            "worker": "",  # "" = host and workdir
            "lease_seconds": 120.0,  # silence after which a worker counts as dead and its trials go to others
            # Successive halving: budget is a share of the steps of training all trials to the end; 1 = off. Rungs lie
            # at the shares first, first·eta, … up to last of a training; the metric ranks the trials there.
            "halving": {"budget": 1.0, "eta": 3.0, "first": 1 / 12, "last": 0.25, "metric": "auroc_macro"},
            # Stop a trial whose optimistic final accuracy a model that is not larger has beaten already: coverage of
            # the bound on what it may still gain (0 = off), standard error of an accuracy, finished trials needed.
            "dominance": {"coverage": 0.0, "standard_error": 0.01, "minimum": 8},
            "confirm_seeds": 0,  # train the members of the front again with so many fresh seeds
            "extend": 1.0,  # train the members of the front on to so many times their length; 1 = off
            "latency": False,  # measure how long one image takes, for every finished trial
            "repeats": 1,  # train every setting with so many seeds: config.seed, config.seed + 1, …
            "folds": 0,  # cross-validation by group: fold k is the test of trial k
            "fold_fractions": {"validation": 0.1, "calibration": 0.1},  # of the examples outside the test fold
        }
    )


def model() -> ConfigDict:
    """Defaults of `config.model`: the architecture, its head and its weights."""
    return ConfigDict(
        {
            "name": "simple_cnn",
            # A file of pretrained weights (Keras .h5 or .keras, .safetensors, .pth, a checkpoint of this project) or
            # hf://timm/NAME; "{name}" in it stands for the model's name. Without weights nothing is frozen.
            "weights": "",
            "variant": "",  # whose form of the architecture: keras, timm, …; "" = what weights or name imply
            "head": (),  # widths of the dense layers between pooling and logits
            "head_pool": "average",  # how the last feature map becomes features: average, max, flatten
            "head_dropout": 0.0,
            "head_dropout_at": "every",  # dense layers with dropout at their input: every, first, last
            "head_batch_norm": False,  # at the beginning of the head
            "options": {},  # further arguments of the architecture, such as widths of simple_cnn
            # Computation: auto (bfloat16 on GPU and TPU, float32 on CPU), float32, bfloat16, or for GPUs without
            # bfloat16 float16, the gradients scaled against underflow
            "dtype": "auto",
        }
    )


def loss() -> ConfigDict:
    """Defaults of `config.loss`."""
    return ConfigDict(
        {
            "name": "softmax_cross_entropy",
            "options": {},  # arguments of the loss, such as gamma
            "class_weights": "none",  # none, balanced, effective
            "beta": 0.999,  # of the effective number of samples
            "defer": "0 %",  # of the training, before class weights begin (deferred re-weighting)
        }
    )


def optimizer() -> ConfigDict:
    """Defaults of `config.optimizer`; the schedule changes the learning rate."""
    return ConfigDict(
        {
            "name": "adam",
            "learning_rate": 1e-3,
            "weight_decay": 0.0,  # decoupled
            "l2": (),  # penalties λ·Σθ², e.g. (("head/dense_1/kernel", 0.01),); the reported loss leaves them out
            "layer_decay": 1.0,  # learning rate × this at each block of the backbone, from the head down; 1 = off
            "rates": (),  # factors of the learning rate of chosen layers, e.g. (("head", 10.0),)
            "momentum": 0.9,
            "nesterov": False,
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 1e-8,
            "clip_norm": 0.0,  # global norm of the gradient; 0 = off
            "accumulate": 1,  # micro-batches per step
            "ema": 0.0,  # decay of the averaged weights that are evaluated; 0 = off
        }
    )


def schedule() -> ConfigDict:
    """Defaults of `config.schedule`: the learning rate over the steps of a phase."""
    return ConfigDict(
        {
            "name": "constant",  # constant, cosine, one_cycle
            "warmup": "0 steps",
            "final": 0.0,  # last learning rate of cosine, as a share of the first
            "plateau_factor": 1.0,  # multiply the rate when `plateau_metric` has not improved; 1 = off
            "plateau_patience": 2,  # evaluations
            "plateau_floor": 0.0,  # smallest learning rate
            "plateau_metric": "loss",
        }
    )


def data() -> ConfigDict:
    """Defaults of `config.data`."""
    return ConfigDict(
        {
            "dir": "",  # a prepared dataset
            "source": "",  # or "tfds:NAME", any TensorFlow Datasets data set in array_record form
            "simulated": {"train": 0, "test": 0},  # images of the built-in sample, if neither of the above is set
            "split": "roles",  # roles (stored in the dataset, by group) or study (the study's own, leaky)
            "classes": (),  # names of the classes that exist; () = all
            "without_classes": (),  # names of classes that do not
            "shots": 0,  # training examples of each class at most, drawn by `seed`; 0 = all
            "limit": 0,  # use this many training examples only; 0 = all
            "channels": 0,  # 0 = as stored
            "resize": "stretch",  # stretch, crop
            "cache": "auto",  # none, ram, device; auto = ram where the decoded images fit
            "threads": 0,  # 0 = one per core
            "prefetch": 4,  # batches
            "sampler": "uniform",  # uniform, class_balanced, repeat_factor
            "repeat_threshold": 0.1,  # of repeat_factor: classes rarer than this share are repeated
            # auto (what the pretrained weights were trained with; `fixed` without weights), fixed, dataset, per_image,
            # channel_intensity, raw (0..255), caffe (BGR minus means, as many Keras weights want it)
            "normalize": "auto",
            "mean": (0.5,),  # of `fixed`, in units of the full range
            "std": (0.5,),
            # Captions become token ids for the model `captioned`: letter_bigrams, word_ngrams, words or wordpiece, with
            # its options (research/text/tokenizers.py); "" = captions are not read
            "text": {"tokenizer": "", "options": {}},
            "layout": layout(),
            "augment": {
                "flip_horizontal": False,
                "flip_vertical": False,
                "dihedral": False,
                "rotation": 0.0,  # greatest angle, degrees
                "rotation_fill": "reflect",  # outside of the image: reflect, constant
                "interpolation": "bilinear",  # bilinear, nearest
                "resized_crop": (),  # (least, greatest) share of the area
                "translate": 0.0,  # greatest shift, share of the side
                "scale": (),  # (least, greatest) zoom
                "shear": 0.0,  # greatest, degrees
                "brightness": 0.0,  # factors from 1 - x to 1 + x
                "contrast": 0.0,
                "saturation": 0.0,
                "hue": 0.0,  # greatest turn, up to 0.5
                "randaugment": (),  # (operations, magnitude 0..30)
                "trivialaugment": False,
                "erasing": 0.0,  # probability
                "erasing_area": (),  # (least, greatest) share of the area; () = 0.02 to 0.33
                "erasing_value": "zero",  # zero, noise
                "mixup": 0.0,  # alpha
                "cutmix": 0.0,  # alpha
            },
        }
    )


def layout() -> dict:
    """Defaults of `config.data.layout`: how vectors of gene expression become pictures of `image_size`.

    A layout is made from the training vectors, see research/layouts.
    """
    return {
        "name": "alphabetical",  # chromosome, random, correlation, deepinsight, deepinsight_pca, deepinsight_umap
        "side": 0,  # pixels of the layout, which is enlarged to `image_size`; 0 = as few as hold all genes
        "positions": "",  # table of gene, chromosome and start, for `chromosome`
        "scaling": "gene",  # of the values: none, global, gene, gene_minmax, log_global, study
        "upsampling": "nearest",  # nearest, bilinear
        "run": "",  # a run folder whose layout and scaling are taken, for training on few examples
    }


def finish(config: ConfigDict, presets: dict[str, Preset], names: str) -> ConfigDict:
    """Applies comma-separated presets in order and locks the config; a ValueError lists them for an unknown one."""
    for name in filter(None, names.split(",")):
        if name not in presets:
            raise ValueError(f"unknown preset '{name}'; choose from {', '.join(sorted(presets))}")
        presets[name](config)
    return config.lock()
