"""How do the captions of a data set become token ids for a network?

A tokeniser is fitted to the captions of a trial's training examples, which is quick and always gives the same, so that
nothing has to be kept beside the run's config and data set.
"""

import functools
import json

import numpy as np

from input_pipeline.cli import UserError
from research.text import encoders, tokenizers
from research.text.tokenizers_base import Tokenizer

MODEL = "captioned"


class Text:
    """The captions of a trial as its network reads them.

    Attributes:
      tokenizer: fitted to the training examples.
      ids: int32 `[N, L]` of all N examples of the data set, 0 = padding; all zeros for a missing caption.
    """

    def __init__(self, tokenizer: Tokenizer, ids: np.ndarray) -> None:
        self.tokenizer, self.ids = tokenizer, ids


class Texts:
    """Makes texts, each once."""

    def __init__(self) -> None:
        self._made: dict[str, Text] = {}
        self._captions: dict[str, list[str] | None] = {}

    def of(self, config, dataset) -> Text | None:
        """What `config.data.text` asks for; None without a tokeniser.

        Args:
          config: of a trial.
          dataset: with the trial's roles.

        Raises:
          UserError: the data set has no captions, or an option is impossible.
        """
        settings = config.data.text
        if not settings.tokenizer:
            return None
        options, train = settings.options.to_dict(), dataset.indices("train")
        key = json.dumps([settings.tokenizer, options, dataset.fingerprint, train.tolist()], sort_keys=True)
        if key not in self._made:
            captions = self._read(dataset)
            tokenizer = tokenizers.build(settings.tokenizer, [captions[i] for i in train], options)
            self._made[key] = Text(tokenizer, tokenizer.encode(captions))
        return self._made[key]

    def _read(self, dataset) -> list[str]:
        if dataset.fingerprint not in self._captions:
            self._captions[dataset.fingerprint] = dataset.captions
        captions = self._captions[dataset.fingerprint]
        if captions is None:
            raise UserError(
                f"the data set {dataset.directory} has no captions; set config.data.text.tokenizer to '', or prepare "
                "one that has, for example with `python -m input_pipeline.prepare --study=captions`."
            )
        return captions


@functools.cache
def shared() -> Texts:
    """The texts of this process."""
    return Texts()


def model_options(settings, text: Text | None) -> dict:
    """The options of `config.model` with what the text encoder needs to know of the tokeniser.

    Raises:
      UserError: a tokeniser without a model that reads captions, the other way round, or two that do not go together.
    """
    options = settings.options.to_dict()
    if settings.name != MODEL:
        if text is not None:
            raise UserError(f"{settings.name} reads no captions; set config.model.name to '{MODEL}'.")
        return options
    encoder = options.get("text", "bag")
    if not encoder:
        return options
    if text is None:
        raise UserError(
            f"the model {MODEL} reads captions; set config.data.text.tokenizer, or config.model.options.text to ''."
        )
    own = encoders.options_for(encoder, options.get("text_options") or {}, text.tokenizer)
    return options | {"text_options": own}


def check(trial) -> None:
    """Refuses settings that make no sense for captions.

    Raises:
      UserError: names the first one.
    """
    if trial.text is not None:
        for name in ("mixup", "cutmix"):
            if trial.config.data.augment[name]:
                raise UserError(f"config.data.augment.{name} cannot mix captions; set it to 0.")
