"""How good are the ensembles on `test`, and are they better than the single member that was best on calibration?

Everything is scored once, from the prediction files that are left behind, by `research.evaluation.score` like any
trial. Test predictions of folds are pooled. Holm's correction is over all ensembles of the table, all methods and every
K, that are not the single member itself; of those the difference is 0 and p is 1 by definition.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from research.ensemble import fitting
from research.ensemble.fitting import Fitted, PartFit
from research.ensemble.library import Library
from research.evaluation import metrics, paired_tests, predictions, score, statistics

SHOWN = (*metrics.COUNT_METRICS, *metrics.SCORE_METRICS)
COLUMNS = (
    "name", "chosen_on", "method", "k", "chosen", "members", "weights",
    *(f"{role}/{name}" for role in ("calibration", "test") for name in SHOWN),
    "metric", "low", "high", "difference", "difference_low", "difference_high", "p", "p_holm",
    "flattered", "flattered_low", "flattered_high",
)  # fmt: skip
CHOICE = "chosen"  # name of the ensemble whose method, too, was chosen on calibration
SINGLE = "single"


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """An ensemble over all parts: one pick per part.

    Attributes:
      name: unique; the name of its files.
      method: of `fitting.METHODS`, or `SINGLE`, or several.
    """

    name: str
    method: str
    picks: tuple[Fitted, ...]

    @property
    def k(self) -> int | str:
        """Its K, or that of every part where they differ."""
        values = [pick.k for pick in self.picks]
        return values[0] if len(set(values)) == 1 else ", ".join(map(str, values))

    def calibration(self) -> dict[str, float]:
        """Its metrics on calibration, the mean over the parts."""
        return {name: float(np.mean([pick.metrics[name] for pick in self.picks])) for name in SHOWN}


@dataclasses.dataclass(frozen=True)
class Collection:
    """All ensembles that one role chose.

    Attributes:
      ensembles: the single member first.
      choices: "single", a method (its best K), or "chosen" (the best method and K) -> name of the ensemble.
    """

    ensembles: tuple[Ensemble, ...]
    choices: dict[str, str]


def gather(fits: Sequence[PartFit], methods: Sequence[str], metric: str) -> Collection:
    """The single member, every method with every K, and the choices made on each part's calibration.

    A choice that is the same on all parts is one of these; otherwise it is one more ensemble, of different picks.
    """
    keys = list(fits[0].ensembles)
    made = {key: Ensemble(f"{key[0]}-{key[1]}", key[0], tuple(fit.ensembles[key] for fit in fits)) for key in keys}
    picks = {m: [_best(fit, [key for key in keys if key[0] == m], metric) for fit in fits] for m in methods}
    picks[CHOICE] = [_best(fit, [picks[m][i] for m in methods], metric) for i, fit in enumerate(fits)]
    more, choices = [], {SINGLE: SINGLE}
    for choice, own in picks.items():
        if len(set(own)) == 1:
            choices[choice] = made[own[0]].name
            continue
        choices[choice] = CHOICE if choice == CHOICE else f"{choice}-{CHOICE}"
        parts = tuple(fit.ensembles[key] for fit, key in zip(fits, own, strict=True))
        more.append(Ensemble(choices[choice], ", ".join(dict.fromkeys(key[0] for key in own)), parts))
    single = Ensemble(SINGLE, SINGLE, tuple(fit.single for fit in fits))
    return Collection((single, *made.values(), *more), choices)


def _best(fit: PartFit, keys: Sequence[tuple[str, int]], metric: str) -> tuple[str, int]:
    """The best on the part's calibration; of equal ones the first, so the smallest K."""
    best = keys[0]
    for key in keys[1:]:
        if fitting.better(fit.ensembles[key].metrics, fit.ensembles[best].metrics, metric):
            best = key
    return best


def part_name(name: str, fold: int | None) -> str:
    """The name of an ensemble's predictions of one part, as trials of a fold are called."""
    return name if fold is None else f"{name}-fold{fold}"


def write(ensemble: Ensemble, library: Library, folder: pathlib.Path, on_test: bool = False) -> None:
    """Writes `<name>_{calibration,test}.csv`; of several folds those of each, and `<name>_test.csv` with all.

    The files are read as those of a trial: temperature and thresholds are fitted on the calibration file. A multi-label
    majority vote has none, for its threshold is one half.
    """
    pooled = []
    for part, pick in zip(library.parts, ensemble.picks, strict=True):
        roles = {"test": (part.test, pick.test)}
        if not fitting.is_vote(pick.method, library.multi_label):
            roles["calibration"] = (part.test if on_test else part.calibration, pick.calibration)
        for name, (role, logits) in roles.items():
            table = fitting.table(role, logits, library, part.fold)
            _write(table, library, folder / f"{part_name(ensemble.name, part.fold)}_{name}.csv")
            pooled += [table] if name == "test" else []
    if len(pooled) > 1:
        _write(predictions.concatenate(pooled), library, folder / f"{ensemble.name}_test.csv")


def _write(table: predictions.Predictions, library: Library, path: pathlib.Path) -> None:
    labels = table.labels(library.multi_label)
    predictions.write(path, table.ids, table.groups, labels, table.logits, table.class_names, table.folds)


def scored(ensembles: Sequence[Ensemble], library: Library, folder: pathlib.Path) -> dict[str, score.Scored]:
    """Each ensemble's test predictions as `research.evaluation.score` sees them; `folder` holds `predictions/`."""
    folds = [part.fold for part in library.parts]
    return {
        e.name: score.score(folder, [part_name(e.name, f) for f in folds], library.multi_label, library.evaluation)
        for e in ensembles
    }


def rows(own: Collection, found: Mapping[str, score.Scored], library: Library, metric: str) -> list[dict]:
    """One row of `ensembles.csv` each, with intervals over groups and the comparison with the single member."""
    result, family = [], []
    first, single = own.ensembles[0], found[SINGLE]
    for ensemble in own.ensembles:
        row, mine = _row(ensemble, own, found[ensemble.name], library, metric), found[ensemble.name]
        result.append(row)
        if ensemble.name == SINGLE:
            continue
        row |= difference(mine, single, library, metric, "difference")
        alone = all(set(pick.members) == set(known.members) and pick.method not in fitting.STACKERS
                    for pick, known in zip(ensemble.picks, first.picks, strict=True))  # fmt: skip
        if alone and np.array_equal(mine.predicted, single.predicted):
            row |= {"p": 1.0, "p_holm": 1.0}
            continue
        row["p"] = _p_value(mine, single, library, metric, exchanges(len(own.ensembles) - 1))
        family.append(row)
    for row, value in zip(family, paired_tests.holm([row["p"] for row in family]), strict=True):
        row["p_holm"] = float(value)
    return result


def exchanges(tests: int) -> int:
    """Random exchanges of a permutation test: after Holm's correction for `tests` its least p is still about 0.01."""
    return max(10_000, 100 * tests)


def _p_value(own: score.Scored, rival: score.Scored, library: Library, metric: str, count: int) -> float:
    """Of the paired permutation test: whole groups exchange the decisions of the two, in `count` random ways."""
    found = paired_tests.count_permutation(
        own.predicted, rival.predicted, own.labels, len(own.class_names), own.multi_label, own.groups,
        count, library.seed,
    )  # fmt: skip
    return found[metric].p


def _row(ensemble: Ensemble, own: Collection, result: score.Scored, library: Library, metric: str) -> dict:
    values = metrics.evaluate(result.scores, result.labels, result.multi_label, predicted=result.predicted)
    low, high = statistics.metric_intervals(
        result.labels, result.predicted, len(result.class_names), result.multi_label, result.groups,
        library.evaluation.bootstrap, library.seed,
    )[metric]  # fmt: skip
    marks = [choice for choice, name in own.choices.items() if name == ensemble.name and choice != SINGLE]
    marks = ["method and K" if mark == CHOICE else "K" for mark in marks]
    row = {"name": ensemble.name, "chosen_on": "calibration", "method": ensemble.method, "k": ensemble.k,
           "chosen": ", ".join(marks) or None, "metric": metric, "low": low, "high": high}  # fmt: skip
    row["members"] = _cell(ensemble, library, lambda pick: [library.members[m] for m in pick.members])
    if any(pick.weights is not None for pick in ensemble.picks):
        row["weights"] = _cell(ensemble, library, lambda pick: pick.weights and [round(w, 6) for w in pick.weights])
    row |= {f"calibration/{name}": value for name, value in ensemble.calibration().items()}
    return row | {f"test/{name}": values[name] for name in SHOWN}


def _cell(ensemble: Ensemble, library: Library, of) -> str:
    """JSON: what `of` says of the one pick, or {fold: …}."""
    values = [of(pick) for pick in ensemble.picks]
    by_fold = {str(part.fold): value for part, value in zip(library.parts, values, strict=True)}
    return json.dumps(values[0] if len(values) == 1 else by_fold, ensure_ascii=False)


def difference(own: score.Scored, rival: score.Scored, library: Library, metric: str, name: str) -> dict:
    """`name`, `name`_low, `name`_high: `own` minus `rival` on the same examples, interval over groups."""
    ours, theirs = (
        metrics.evaluate(s.scores, s.labels, s.multi_label, predicted=s.predicted)[metric] for s in (own, rival)
    )
    low, high = statistics.difference_intervals(
        own.labels, own.predicted, rival.predicted, len(own.class_names), own.multi_label, own.groups,
        library.evaluation.bootstrap, library.seed,
    )[metric]  # fmt: skip
    return {name: ours - theirs, f"{name}_low": low, f"{name}_high": high}


def test_rows(
    own: Collection,
    found: Mapping[str, score.Scored],
    honest_found: Mapping[str, score.Scored],
    library: Library,
    metric: str,
) -> list[dict]:
    """Rows of what was fitted on test, and by how much that flatters the same method and K fitted on calibration.

    There is no p value: after a choice on test it would mean nothing.
    """
    result = []
    for ensemble in own.ensembles:
        row = _row(ensemble, own, found[ensemble.name], library, metric) | {"chosen_on": "test"}
        if ensemble.name in honest_found:
            row |= difference(found[ensemble.name], honest_found[ensemble.name], library, metric, "flattered")
        result.append(row)
    return result


def flattering(
    own: Collection,
    found: Mapping[str, score.Scored],
    honest: Collection,
    honest_found: Mapping[str, score.Scored],
    library: Library,
    metric: str,
) -> list[dict]:
    """What choosing on test gains in print: a row for the single member, each method with its K, and the best of all.

    {"choice", "on_calibration", "calibration_value", "on_test", "test_value", "flattered", "…_low", "…_high"}: names of
    the two ensembles, both scored on test, and the difference with its interval.
    """
    result = []
    for choice, name in own.choices.items():
        mine, theirs = found[name], honest_found[honest.choices[choice]]
        values = [
            metrics.evaluate(s.scores, s.labels, s.multi_label, predicted=s.predicted)[metric] for s in (theirs, mine)
        ]
        row = {"choice": choice, "on_calibration": honest.choices[choice], "calibration_value": values[0],
               "on_test": name, "test_value": values[1]}  # fmt: skip
        result.append(row | difference(mine, theirs, library, metric, "flattered"))
    return result
