"""Which settings does a search try next, given what the earlier ones reached? TPE and NSGA-II, by optuna.

`config.search.space` is written as `config.search.random` is:

    (("optimizer.learning_rate", ("log", 1e-4, 1e-1)), ("model.head_dropout", ("uniform", 0.0, 0.5)),
     ("seed", ("integer", 0, 99)), ("model.options.filters", ("choice", (8, 16), (16, 32))))

A proposal depends on the seed and the earlier settings with their results, and on nothing else: not on the process, its
restarts, or how many settings are asked for at once. For that, every draw has a sampler of its own, seeded by the
search's seed and the number of settings before it, in a study in memory that mirrors the real one.

Limits that are known before training (a size, say) are kept by drawing again, so that a proposal follows the sampler's
distribution under the condition that the limits hold (after 16 draws in vain, an even one). Optuna's own constraints
would not do here: they need objectives or a state for a setting that is never trained. As PRUNED trials, infeasible
settings end TPE's random beginning early, raise the number of settings that it counts as good, and become good ones
themselves while there are few others; NSGA-II does not see them. As COMPLETE ones with invented objectives they fill
NSGA-II's generations.
"""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.cli import UserError
from research.search.trials import parse_pairs, short

_TRIES = 16  # of the sampler for one proposal; after that, what is left is drawn from evenly
_EVEN_DRAWS = 2000  # before limits are said to leave nothing
_LISTABLE = 20_000  # settings of a space that is small enough to be listed


def load_optuna():
    """The module optuna, without its messages of everyday events.

    Raises:
      UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "config.search.sampler and config.search.storage need optuna; run `pip install -e '.[sweep]'`."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


# The samplers by name: from a seed to one of optuna's. TPE: Bergstra et al. 2011, for several objectives Ozaki et al.
# 2022; running trials count as bad ones (Ginsbourger's constant liar), which spreads a batch. NSGA-II: Deb et al. 2002.
SAMPLERS: dict[str, Callable] = {
    "tpe": lambda seed: load_optuna().samplers.TPESampler(seed=seed, constant_liar=True),
    "nsga2": lambda seed: load_optuna().samplers.NSGAIISampler(seed=seed, population_size=32),
    "random": lambda seed: load_optuna().samplers.RandomSampler(seed=seed),
}
_GENERATION = "NSGAIISampler:generation"  # where optuna keeps a trial's generation


def identity(overrides: Mapping[str, Any]) -> str:
    """The same text for the same settings, whatever their order; 32 hexadecimal digits."""
    text = json.dumps(overrides, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One key of a space.

    Attributes:
      key: of the config.
      kind: uniform, log, integer or choice.
      values: low and high, or the choices.
    """

    key: str
    kind: str
    values: tuple

    @property
    def labels(self) -> tuple:
        """How optuna knows the choices: as they are, or as texts where they are no plain values."""
        return _labels(self.values)

    def distribution(self):
        """As optuna has it."""
        distributions = load_optuna().distributions
        if self.kind == "choice":
            return distributions.CategoricalDistribution(self.labels)
        if self.kind == "integer":
            return distributions.IntDistribution(*self.values)
        return distributions.FloatDistribution(*map(float, self.values), log=self.kind == "log")

    def decode(self, parameter: Any) -> Any:
        """Optuna's value to the config's; floats get four digits, so that tables show what was used."""
        if self.kind == "choice":
            return self.values[self.labels.index(parameter)]
        if self.kind == "integer":
            return int(parameter)
        low, high = map(float, self.values)
        return min(max(float(f"{parameter:.4g}"), low), high)

    def encode(self, value: Any) -> Any:
        """The config's value to optuna's; ValueError where it lies outside."""
        if self.kind == "choice":
            return self.labels[[repr(choice) for choice in self.values].index(repr(value))]
        number = isinstance(value, int if self.kind == "integer" else int | float) and not isinstance(value, bool)
        if not number or not self.values[0] <= value <= self.values[1]:
            raise ValueError(f"{value!r} lies outside {self}")
        return value

    def draw(self, generator: np.random.Generator) -> Any:
        """A value for the config, each as likely as any other (in the logarithm, for `log`)."""
        if self.kind == "choice":
            return self.values[int(generator.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "integer":
            return int(generator.integers(low, high, endpoint=True))
        if self.kind == "log":
            return self.decode(math.exp(generator.uniform(math.log(low), math.log(high))))
        return self.decode(generator.uniform(low, high))

    def all(self) -> Sequence | None:
        """Every value, or None for floats."""
        if self.kind == "choice":
            return self.values
        return range(self.values[0], self.values[1] + 1) if self.kind == "integer" else None


@dataclasses.dataclass(frozen=True)
class Space:
    """Keys that are searched, in the order of the config."""

    dimensions: tuple[Dimension, ...]

    def distributions(self) -> dict:
        """As optuna has them."""
        return {dimension.key: dimension.distribution() for dimension in self.dimensions}

    def decode(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's values to overrides of the config."""
        return {dimension.key: dimension.decode(parameters[dimension.key]) for dimension in self.dimensions}

    def encode(self, overrides: Mapping[str, Any]) -> dict[str, Any] | None:
        """Overrides to optuna's values; None where they are no point of this space."""
        if set(overrides) != {dimension.key for dimension in self.dimensions}:
            return None
        try:
            return {dimension.key: dimension.encode(overrides[dimension.key]) for dimension in self.dimensions}
        except ValueError:
            return None

    def draw(self, generator: np.random.Generator) -> dict[str, Any]:
        """Overrides that are drawn evenly."""
        return {dimension.key: dimension.draw(generator) for dimension in self.dimensions}

    def all(self) -> Iterator[dict[str, Any]] | None:
        """Every setting, or None where they are too many to be listed."""
        values = [dimension.all() for dimension in self.dimensions]
        if None in values or math.prod(map(len, values)) > _LISTABLE:
            return None
        keys = [dimension.key for dimension in self.dimensions]
        return (dict(zip(keys, row, strict=True)) for row in itertools.product(*values))


def parse_space(pairs: Sequence) -> Space:
    """The space of `config.search.space`; needs no optuna.

    Raises:
      UserError: it is not written as above.
    """
    return Space(tuple(_dimension(key, distribution) for key, distribution in parse_pairs("space", pairs)))


def check(sampler: str, space: Space | None) -> None:
    """Refuses what no settings can be proposed with.

    Raises:
      UserError: the sampler is unknown, or the space is empty.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"config.search.sampler is '{sampler}'; choose {', '.join(SAMPLERS)}.")
    if space is None or not space.dimensions:
        raise UserError(
            f"config.search.sampler is '{sampler}' but config.search.space is empty; write what may be varied, such as "
            '(("optimizer.learning_rate", ("log", 1e-4, 1e-1)),).'
        )


def _dimension(key: str, distribution: tuple) -> Dimension:
    kind, *values = distribution
    if kind == "choice" and values:
        return Dimension(key, kind, tuple({repr(value): value for value in values}.values()))
    types = {"uniform": int | float, "log": int | float, "integer": int}
    if kind in types and len(values) == 2 and all(_is_number(value, types[kind]) for value in values):
        if values[0] < values[1] and (kind != "log" or values[0] > 0):
            return Dimension(key, kind, tuple(values))
    raise UserError(
        f'config.search.space draws {key} from {distribution!r}; write ("uniform", low, high), '
        '("log", low above 0, high), ("integer", low, high) or ("choice", value, …).'
    )


def _is_number(value: Any, types) -> bool:
    return isinstance(value, types) and not isinstance(value, bool) and math.isfinite(value)


def _labels(choices: Sequence) -> tuple:
    plain = all(choice is None or isinstance(choice, bool | int | float | str) for choice in choices)
    if plain and all(one != other for one, other in itertools.combinations(choices, 2)):
        return tuple(choices)
    texts = tuple(map(short, choices))
    return texts if len(set(texts)) == len(texts) else tuple(map(repr, choices))


def parameters_of_lists(sets: Sequence[Mapping[str, Any]], known: Mapping[str, Any]) -> list[tuple[dict, dict]]:
    """Optuna's parameters and distributions of given overrides, so that its plots show a grid as they show a search.

    Args:
      sets: overrides of each trial.
      known: distributions that the study has by key. Optuna allows one kind per key, and for choices the same ones.

    Raises:
      UserError: the study has a key in another way.
    """
    distributions = {}
    for key in dict.fromkeys(key for overrides in sets for key in overrides):
        values = list({repr(o[key]): o[key] for o in sets if key in o}.values())
        distributions[key] = _dimension_of(key, values, known.get(key))
    result = []
    for overrides in sets:
        labels = {key: distributions[key][0][repr(value)] for key, value in overrides.items()}
        result.append((labels, {key: distributions[key][1] for key in overrides}))
    return result


def _dimension_of(key: str, values: list, known) -> tuple[dict[str, Any], Any]:
    """Labels by the values' repr, and the distribution that holds them."""
    optuna = load_optuna()
    if all(_is_number(value, int | float) for value in values):
        integer = all(isinstance(value, int) for value in values)
        low, high = min(values), max(values)
        log = not integer and low > 0 and high >= 10 * low
        if known is not None:  # a longer list may not change the kind
            integer, log = isinstance(known, optuna.distributions.IntDistribution), getattr(known, "log", False)
        kind = optuna.distributions.IntDistribution if integer else optuna.distributions.FloatDistribution
        fits = (not log or low > 0) and (not integer or all(isinstance(value, int) for value in values))
        if fits and (known is None or type(known) is kind):
            number = int if integer else float
            return {repr(v): number(v) for v in values}, kind(number(low), number(high), log=log)
    if known is None:
        labels = dict(zip(map(repr, values), _labels(values), strict=True))
        return labels, optuna.distributions.CategoricalDistribution(tuple(labels.values()))
    labels = {
        repr(value): choice
        for value in values
        for choice in getattr(known, "choices", ())
        if any(type(choice) is type(label) and choice == label for label in (value, short(value), repr(value)))
    }
    if len(labels) == len(values):
        return labels, known
    raise UserError(
        f"the shared study has {key} as {known}, which does not hold {', '.join(map(repr, values))}; begin another "
        "study by changing config.search.study."
    )


@dataclasses.dataclass(frozen=True)
class Asked:
    """A setting that was asked for before.

    Attributes:
      overrides: of the config.
      running: whether its result is still to come.
      values: objectives; None while it is running, or where it has none (a diverged training).
      generation: what a genetic sampler noted at its proposal.
    """

    overrides: Mapping[str, Any]
    running: bool
    values: tuple[float, ...] | None
    generation: int | None = None


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A setting to be tried: for the config, for optuna, and the sampler's note."""

    overrides: dict[str, Any]
    parameters: dict[str, Any]
    generation: int | None


def propose(
    sampler: str,
    space: Space,
    maximize: Sequence[bool],
    history: Sequence[Asked],
    count: int,
    seed: int,
    feasible: Callable[[dict[str, Any]], bool] | None = None,
    taken: Sequence[str] = (),
) -> list[Proposal]:
    """The next `count` settings; fewer if the space has no more.

    Args:
      sampler: one of `SAMPLERS`.
      space: what may be varied.
      maximize: of each objective.
      history: earlier settings in the order in which they were asked for.
      seed: of the search.
      feasible: whether a setting may be trained; called once for each.
      taken: identities of further settings that are not to be proposed, such as failed ones.

    Raises:
      UserError: as `check`, or hardly any setting is feasible.
    """
    check(sampler, space)
    if count <= 0:
        return []
    study = _mirror(space, maximize, history)
    used = {identity(asked.overrides) for asked in history} | set(taken)
    verdicts: dict[str, bool] = {}

    def fresh(overrides: dict[str, Any]) -> bool:
        name = identity(overrides)
        if name not in used and name not in verdicts:
            verdicts[name] = feasible is None or bool(feasible(overrides))
        return name not in used and verdicts[name]

    # Thrown away: a genetic sampler has its parents in another order when it chooses them than when it looks them up.
    _draw(study, sampler, space, np.random.SeedSequence(0), lambda overrides: True)
    proposals = []
    for _ in range(count):
        state = np.random.SeedSequence([seed % 2**32, len(used)])
        drawn = _draw(study, sampler, space, state, fresh) or _even_draw(space, state, fresh)
        if drawn is None:
            break
        overrides, generation = drawn
        proposals.append(Proposal(overrides, space.encode(overrides), generation))
        used.add(identity(overrides))
        study.add_trial(_mirrored(space, Asked(overrides, True, None, generation)))
    return proposals


def _draw(study, sampler: str, space: Space, state: np.random.SeedSequence, fresh: Callable) -> tuple | None:
    """Overrides and generation; None after `_TRIES` that were not fresh."""
    failed = load_optuna().trial.TrialState.FAIL  # a state that no sampler looks at
    for number in state.generate_state(_TRIES):
        study.sampler = SAMPLERS[sampler](int(number))
        drawn = study.tell(study.ask(space.distributions()), state=failed)
        overrides = space.decode(drawn.params)
        if fresh(overrides):
            return overrides, drawn.system_attrs.get(_GENERATION)
    return None


def _even_draw(space: Space, state: np.random.SeedSequence, fresh: Callable) -> tuple | None:
    """Any fresh setting, each as likely as any other; None if there is none. It is of the first generation."""
    generator = np.random.default_rng(state)
    if (settings := space.all()) is not None:
        settings = list(settings)
        order = generator.permutation(len(settings))
        return next(((settings[index], 0) for index in order if fresh(settings[index])), None)
    for _ in range(_EVEN_DRAWS):
        if fresh(setting := space.draw(generator)):
            return setting, 0
    raise UserError(
        f"none of {_EVEN_DRAWS:,} draws from config.search.space is new and keeps the limits; widen the space or the "
        "limits."
    )


def _mirror(space: Space, maximize: Sequence[bool], history: Sequence[Asked]):
    """A study in memory with the settings that are points of this space."""
    optuna = load_optuna()
    directions = ["maximize" if more else "minimize" for more in maximize]
    study = optuna.create_study(directions=directions, storage=optuna.storages.InMemoryStorage())
    study.add_trials(_mirrored(space, asked) for asked in history if space.encode(asked.overrides) is not None)
    return study


def _mirrored(space: Space, asked: Asked):
    trial = load_optuna().trial
    states = trial.TrialState
    state = states.RUNNING if asked.running else states.PRUNED if asked.values is None else states.COMPLETE
    return trial.create_trial(
        state=state,
        values=None if asked.values is None else list(asked.values),
        params=space.encode(asked.overrides),
        distributions=space.distributions(),
        system_attrs={_GENERATION: asked.generation or 0},
    )
