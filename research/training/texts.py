"""How do the captions of a data set become token ids for a network, and with which weights does it begin to read?

A tokeniser is fitted to the captions of a trial's training examples, which is quick and always gives the same, so that
nothing has to be kept beside the run's config and data set. The encoder `bert` with the option `folder` begins with the
weights there; what was loaded stands in `text_weights.json` of the run folder, by trial.
"""

import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np

from input_pipeline.cli import UserError, atomic_write
from research.evaluation import text_rivals
from research.text import bert_weights, encoders, tokenizers
from research.text.tokenizers_base import Tokenizer

MODEL = "captioned"
RECORD = "text_weights.json"


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
    for kind in trial.config.evaluation.text_rivals:
        text_rivals.name_of(kind)
    if source := _pretrained(trial):
        bert_weights.find(source)
    if trial.text is not None:
        for name in ("mixup", "cutmix"):
            if trial.config.data.augment[name]:
                raise UserError(f"config.data.augment.{name} cannot mix captions; set it to 0.")


def _pretrained(trial) -> str:
    """The folder of the text encoder's weights; "" without."""
    options = trial.config.model.options
    if trial.text is None or options.get("text") != "bert":
        return ""
    return (options.get("text_options") or {}).get("folder", "")


def with_weights(trial, variables: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """The drawn variables of a trial's model, with the weights of its text encoder in them if there are some.

    Args:
      trial: training.build.Trial.
      variables: {"params", "batch_stats"}, nested.
      folder: the run folder, where the record is kept.

    Raises:
      UserError: the weights are missing, damaged, or of another network.
    """
    if not (source := _pretrained(trial)):
        return variables
    params = variables["params"]
    loaded, report = bert_weights.load(source, params["backbone"]["text"])
    if jax.process_index() == 0:
        file = folder / RECORD
        records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        atomic_write(file, json.dumps(records | {trial.name: report}, indent=1, sort_keys=True) + "\n")
    print(f"{trial.name}: text weights of {report['file']}; {RECORD} lists what was loaded.", flush=True)
    backbone = {**params["backbone"], "text": loaded}
    return {**variables, "params": {**params, "backbone": backbone}}
