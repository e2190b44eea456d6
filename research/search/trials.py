"""Which settings does a search try? `config.search` to a list of named override sets.

Every source that is not empty gives a list of override sets, and the trials are all combinations of one of each:

    trials   as they are listed: ({"name": "fixed", "data.normalize": "fixed"}, …)
    sheet    one per row of a spreadsheet, see research/search/sheets.py
    zip      lists of values taken in step: (("image_size", (32, 64)), ("batch_size", (64, 16)))
    grid     the full product of lists of values: (("optimizer.learning_rate", (1e-3, 3e-3)), ("seed", (0, 1, 2)))
    random   `count` draws: (("optimizer.learning_rate", ("log", 1e-4, 1e-1)), ("seed", ("integer", 0, 99)),
             ("model.head_dropout", ("uniform", 0.0, 0.5)), ("loss.name", ("choice", "focal", "hinge")))

No two trials have the same settings, and none is left out. All of them begin from the setting that the finished run
`base` chose, if it is named: an ablation of a comparison's winner.
"""

import dataclasses
import itertools
import json
import math
import pathlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.cli import UserError
from research.report import tables
from research.search import sheets


@dataclasses.dataclass(frozen=True)
class OverrideSet:
    """Keys of the config and their values, and a name for people ("" for what has none).

    Attributes:
      setting: the setting that it trains again, if not its own.
    """

    name: str
    overrides: dict[str, Any]
    setting: str = ""


def recorded_sets(rows: Iterable[Mapping[str, Any]]) -> list[OverrideSet]:
    """The settings that the rows of a ledger searched, as `expand` wants them."""
    sets = {}
    for row in rows:
        if row["stage"] == "search":
            overrides = {key: sheets.tuples(value) for key, value in row["overrides"].items() if key != "search.fold"}
            sets[row["setting"]] = OverrideSet(row["setting"], overrides)
    return list(sets.values())


def override_sets(search) -> list[OverrideSet]:
    """The settings of `config.search`, in the order of the sources above; without a source one empty set.

    Raises:
      UserError: a source cannot be read, two sources set one key, or two trials are the same.
    """
    sources = [
        _listed("trials", search.trials),
        _listed("rows", sheets.read_trials(search.sheet)) if search.sheet else [],
        _zipped(parse_pairs("zip", search.zip)),
        _product(parse_pairs("grid", search.grid)),
        _drawn(parse_pairs("random", search.random), search.count, search.seed),
    ]
    sets = [_merged(parts) for parts in itertools.product(*filter(None, sources))]
    if search.base:
        winner = chosen_overrides(pathlib.Path(search.base))
        sets = [dataclasses.replace(entry, overrides=winner | entry.overrides) for entry in sets]
    seen: dict[str, OverrideSet] = {}
    for number, entry in enumerate(sets):
        if (twin := seen.setdefault(repr(sorted(entry.overrides.items())), entry)) is not entry:
            raise UserError(
                f"config.search has the trials {twin.name!r} and {entry.name!r} (number {number}) with the same "
                "settings; remove one."
            )
    return sets


def applied(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A copy of `config` with other values; a dictionary takes the place of the one that was there.

    Raises:
      KeyError, TypeError, ValueError: an override does not fit the config.
    """
    changed = ConfigDict(config.to_dict())
    for key in (key for key, value in overrides.items() if isinstance(value, Mapping)):
        *groups, last = key.split(".")
        place = changed
        for group in groups:
            place = place[group]
        place[last] = ConfigDict()
    changed.update_from_flattened_dict(dict(overrides))
    return changed


def chosen_overrides(run: pathlib.Path) -> dict[str, Any]:
    """What the setting changed that a finished run chose, without its seed.

    Args:
      run: its folder.

    Raises:
      UserError: it is no finished run.
    """
    try:
        chosen = json.loads((run / "report" / "metrics.json").read_text(encoding="utf-8"))["chosen_trial"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"config.search.base is {run}, which has no report that names a chosen setting; give the folder of a "
            "finished run."
        ) from error
    rows = tables.read_trials_csv(run / "trials.csv")
    (entry, *_) = [entry for entry in recorded_sets(rows) if entry.name == chosen] or [OverrideSet("", {})]
    return {key: value for key, value in entry.overrides.items() if key != "seed"}


def _merged(parts: Sequence[OverrideSet]) -> OverrideSet:
    overrides: dict[str, Any] = {}
    for part in parts:
        if both := sorted(set(overrides) & set(part.overrides)):
            raise UserError(f"two parts of config.search set {', '.join(both)}; leave it to one.")
        overrides |= part.overrides
    return OverrideSet(",".join(part.name for part in parts if part.name), overrides)


def _listed(kind: str, entries: Sequence[Mapping[str, Any]]) -> list[OverrideSet]:
    sets = []
    for number, entry in enumerate(entries):
        overrides = {key: value for key, value in dict(entry).items() if key != "name"}
        fallback = f"{'trial' if kind == 'trials' else 'row'}{number}" if overrides else ""
        sets.append(OverrideSet(str(entry.get("name", fallback)), overrides))
    return sets


def parse_pairs(source: str, pairs: Sequence) -> list[tuple[str, tuple]]:
    """(key, values) pairs, checked."""
    result = []
    for pair in pairs:
        right = isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], str)
        if not right or isinstance(pair[1], str) or not isinstance(pair[1], Sequence) or not len(pair[1]):
            raise UserError(
                f"config.search.{source} holds {pair!r}; write (key, values) pairs such as "
                '("optimizer.learning_rate", (0.001, 0.003)).'
            )
        result.append((pair[0], tuple(pair[1])))
    keys = [key for key, _ in result]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise UserError(f"config.search.{source} names {', '.join(twice)} twice; put all values into one list.")
    return result


def _named(overrides: dict[str, Any]) -> OverrideSet:
    return OverrideSet(",".join(f"{key.rpartition('.')[2]}={short(v)}" for key, v in overrides.items()), overrides)


def short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "x".join(map(short, value)) if isinstance(value, list | tuple) else str(value)


def _zipped(pairs: list[tuple[str, tuple]]) -> list[OverrideSet]:
    if len({len(values) for _, values in pairs}) > 1:
        lengths = ", ".join(f"{key} {len(values)}" for key, values in pairs)
        raise UserError(f"config.search.zip has lists of different lengths ({lengths}); make them equal.")
    keys = [key for key, _ in pairs]
    return [_named(dict(zip(keys, row, strict=True))) for row in zip(*(values for _, values in pairs), strict=True)]


def _product(pairs: list[tuple[str, tuple]]) -> list[OverrideSet]:
    keys = [key for key, _ in pairs]
    rows = itertools.product(*(values for _, values in pairs)) if pairs else ()
    return [_named(dict(zip(keys, row, strict=True))) for row in rows]


def _drawn(pairs: list[tuple[str, tuple]], count: int, seed: int) -> list[OverrideSet]:
    """Draw n of a key depends on the seed, n and the key alone: more draws or keys leave the others as they are."""
    if bool(pairs) != (count > 0):
        raise UserError("config.search.random and config.search.count belong together; set both or neither.")
    sets = []
    for number in range(count):
        values = {}
        for key, distribution in pairs:
            generator = np.random.default_rng([seed, number, zlib.crc32(key.encode())])
            values[key] = _draw(key, distribution, generator)
        sets.append(OverrideSet(f"random{number}", values))
    return sets


def _draw(key: str, distribution: tuple, generator: np.random.Generator) -> Any:
    """One value; floats are rounded to four digits, so that tables show what was used."""
    kind, *numbers = distribution
    if kind == "choice" and numbers:
        return numbers[int(generator.integers(len(numbers)))]
    real = len(numbers) == 2 and all(isinstance(number, int | float) for number in numbers)
    if real and numbers[0] < numbers[1]:
        low, high = numbers
        if kind == "uniform":
            return float(f"{generator.uniform(low, high):.4g}")
        if kind == "log" and low > 0:
            return float(f"{math.exp(generator.uniform(math.log(low), math.log(high))):.4g}")
        if kind == "integer" and all(isinstance(number, int) for number in numbers):
            return int(generator.integers(low, high, endpoint=True))
    raise UserError(
        f'config.search.random draws {key} from {distribution!r}; write ("uniform", low, high), '
        '("log", low above 0, high), ("integer", low, high) or ("choice", value, …).'
    )
