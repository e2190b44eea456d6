"""From a trial's config to the objects of its training: data view, phases, model, loss, step parts."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import augment, normalize
from input_pipeline.cli import UserError
from input_pipeline.dataset import Dataset
from input_pipeline.loader import DecodedCache, available_cores
from research.losses import class_weights
from research.losses import registry as losses
from research.models import registry as models
from research.training import freezing, optimizers, schedules, sharding, texts
from research.training import task as tasks
from research.training.phases import Phase, phases
from research.training.pictures import Picture
from research.training.start_weights import Start, preprocessing
from research.training.steps import StepParts


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting of a study, ready to be trained.

    Attributes:
      name: names its folders and files.
      setting: the override set that it belongs to; the folds of a setting share it.
      overrides: the keys and values of that set, and `search.fold` for a fold.
      config: the whole config with the trial's overrides in it.
      dataset: the data set with the trial's roles.
      cache: decoded images, shared by the trials, or None.
      statistics: {"mean": [C], "std": [C]} of the training images in 0..1, for `normalize = dataset`; else None.
      images: uint8 `[N, H, W, C]`, the decoded data set on the device, or None.
      start: the pretrained weights that it starts from, or None.
      picture: how vectors of expression are drawn, or None for a data set of images.
      text: the captions as token ids, or None.
      data_seed: of the order of the examples and their augmentation, which the trials of a search share.
      stage: "search", or what comes after it: "confirm" (again with another seed), "extend" (trained on).
    """

    name: str
    setting: str
    overrides: dict
    config: ConfigDict
    dataset: Dataset
    cache: DecodedCache | None
    statistics: dict | None
    images: jax.Array | None = None
    start: Start | None = None
    picture: Picture | None = None
    text: texts.Text | None = None
    data_seed: int | jax.Array = 0
    stage: str = "search"

    @property
    def train_indices(self) -> np.ndarray:
        """Dataset indices of the training examples, [n]."""
        indices, shots = self.dataset.indices("train"), self.config.data.shots
        if shots:
            drawn = np.random.default_rng([self.config.seed, shots]).permutation(indices)
            labels = self.dataset.labels[drawn]
            indices = np.sort(np.concatenate([drawn[labels == kind][:shots] for kind in np.unique(labels)]))
        limit = self.config.data.limit
        return indices[:limit] if limit else indices

    @property
    def task(self) -> tasks.Task:
        """What its model decides."""
        return tasks.of(self.config.model.name)

    @property
    def num_classes(self) -> int:
        """K, the number of logits."""
        return len(self.task.class_names(self.dataset))

    @property
    def channels(self) -> int:
        """Channels of an image that the network sees."""
        return self.config.data.channels or self.dataset.channels

    @property
    def raw(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one raw image `[1, H, W, C]`, as the loader gives it."""
        size = self.config.image_size
        shape = (1, 1, len(self.dataset.genes), 1) if self.dataset.genes else (1, size, size, self.channels)
        return jax.ShapeDtypeStruct(shape, self.dataset.dtype)

    @property
    def tokens(self) -> int:
        """Token ids of a caption."""
        return 1 if self.text is None else self.text.ids.shape[1]

    @property
    def threads(self) -> int:
        """Decoding threads."""
        return self.config.data.threads or available_cores()


def compute_dtype(config: ConfigDict):
    """bfloat16 on GPU and TPU, float32 on CPU, unless the config says which."""
    if config.model.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    if config.model.dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"config.model.dtype is '{config.model.dtype}'; choose auto, float32, bfloat16 or float16.")
    return jnp.dtype(config.model.dtype)


def build_model(trial: Trial, frozen: tuple[str, ...] = ()):
    """The Flax module of a trial."""
    settings, start = trial.config.model, trial.start
    options, variant = texts.model_options(settings, trial.text), start.variant if start else settings.variant
    if start and start.part:  # the form of the part, not of the whole
        own, place = {"variant": variant} if variant else {}, f"{start.part}_options"
        options[place], variant = dict(options.get(place) or {}) | own, settings.variant
    return models.create(
        settings.name,
        num_classes=trial.num_classes,
        variant=variant,
        head=tuple(settings.head),
        head_pool=settings.head_pool,
        head_dropout=settings.head_dropout,
        head_dropout_at=settings.head_dropout_at,
        head_batch_norm=settings.head_batch_norm,
        dtype=compute_dtype(trial.config),
        frozen=frozen,
        **options,
    )


def build_layers(trial: Trial) -> freezing.Layers:
    """The layers of a trial's model, with their names in other libraries."""
    entry, _ = models.find(trial.config.model.name)
    return freezing.describe(build_model(trial), trial.config.image_size, trial.channels, entry.names)


def build_loss(trial: Trial):
    """The loss of a trial, checked against the kind of labels."""
    settings, counts = trial.config.loss, None
    if losses.needs_class_counts(settings.name):
        counts, _ = class_weights.class_counts(trial.dataset.labels[trial.train_indices], trial.num_classes)
    loss = losses.get(settings.name, counts, **settings.options.to_dict())
    loss.require(tasks.of(trial.config.model.name).targets(trial.dataset))
    return loss


def build_normalize(trial: Trial):
    """Raw images `[B, H, W, C]`, of 0..255 or vectors that are drawn first, to what the network takes."""
    normalize, draw = build_pixels(trial), build_drawing(trial)
    return normalize if draw is None else lambda raw: normalize(draw(raw))


def build_drawing(trial: Trial) -> Callable[[jax.Array], jax.Array] | None:
    """Raw vectors `[B, 1, G, 1]` to pictures float32 `[B, S, S, C]` in 0..255; None for a data set of images."""
    if trial.picture is None:
        return None
    return functools.partial(trial.picture.draw, size=trial.config.image_size, channels=trial.channels)


def build_pixels(trial: Trial):
    """Images `[B, H, W, C]` in 0..255 to what the network takes."""
    chosen = preprocessing(trial.config.data, trial.start)
    if chosen["kind"] == "dataset":
        return normalize.make("dataset", trial.statistics)
    if chosen["kind"] != "fixed":
        return normalize.make(chosen["kind"])
    statistics = {name: chosen[name] for name in ("mean", "std")}
    if trial.config.data.normalize == "auto" and trial.start:  # the weights' numbers are for RGB
        statistics = {name: normalize.for_channels(value, trial.channels) for name, value in statistics.items()}
    return normalize.make("fixed", statistics)


def build_parts(trial: Trial, phase: Phase, layers: freezing.Layers, mesh) -> StepParts:
    """What the training step of a phase is made of."""
    config = trial.config
    if phase.batch_size % config.optimizer.accumulate:
        raise UserError(
            f"config.batch_size {phase.batch_size} must be a multiple of config.optimizer.accumulate "
            f"{config.optimizer.accumulate}; change one of them."
        )
    weights = weights_of_classes(trial)
    trained = freezing.trainable(layers, phase.freeze, phase.train)
    return StepParts(
        model=build_model(trial, freezing.resting_norms(layers, trained)),
        loss=build_loss(trial),
        class_weights=None if weights is None else jnp.asarray(weights),
        class_weights_from=weights_begin(trial),
        transformation=optimizers.direction(config.optimizer),
        trainable=trained,
        augment=augment.build(config.data.augment.to_dict()),
        normalize=build_normalize(trial),
        batch_size=phase.batch_size,
        num_classes=trial.num_classes,
        multi_label=bool(trial.task.targets(trial.dataset)),
        task=trial.task,
        accumulate=config.optimizer.accumulate,
        remat=config.remat,
        ema=config.optimizer.ema,
        factors=optimizers.factors(layers, config.optimizer),
        penalties=optimizers.penalties(layers, config.optimizer),
        data_seed=trial.data_seed,
        batch_sharding=sharding.over_batch(mesh) if mesh.size > 1 else None,
    )


def weights_of_classes(trial: Trial) -> np.ndarray | None:
    """Class weights float32 `[K]` of config.loss, from the training labels; None without any."""
    loss = trial.config.loss
    if loss.class_weights == "none":
        return None
    labels = trial.dataset.labels[trial.train_indices]
    return np.asarray(class_weights.class_weights(labels, trial.num_classes, loss.class_weights, loss.beta), np.float32)


def weights_begin(trial: Trial) -> int:
    """The step at which class weights begin, config.loss.defer, counted from the beginning of the training.

    Raises:
      UserError: no duration, or one as long as the training.
    """
    defer = trial.config.loss.defer
    count = len(trial.train_indices)
    total = sum(phase.length.steps for phase in phases(trial.config, count))
    step = schedules.Length(total, trial.config.batch_size, count).parse(defer, "loss.defer")
    if step >= total:
        raise UserError(
            f"config.loss.defer {defer!r} is step {step}, but the training has {total} steps; make it shorter, or set "
            "config.loss.class_weights to 'none'."
        )
    return step


def as_file_name(name: str) -> str:
    """A trial's name as a file name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name)


def describe_model(variables: Any) -> str:
    """clu's table of parameters."""
    from clu import parameter_overview

    return parameter_overview.get_parameter_overview(variables)
