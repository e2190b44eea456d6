"""Which members, how many, and with which weights? Everything that is chosen, from one role alone.

`fit` sees the labels of `part.calibration` and of nothing else. Members are ranked by the metric on calibration (equal
ones by log loss, then by name), and the top K of this ranking are combined, for every K. Two methods differ: greedy
selection draws K times from all members, with replacement, and a stacker's calibration metrics come from models that
were fitted without the example's fold.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from input_pipeline.cli import UserError
from research.ensemble import combine, stacking
from research.ensemble.library import Library, Part, Role
from research.evaluation import calibration, metrics, predictions, score, thresholds

METHODS = {
    "majority": "the class with the most votes; ties go to the higher mean probability",
    "mean": "of the probabilities, all members alike",
    "weighted": "weights between 0 and 1, of sum 1, of least log loss (SLSQP)",
    "rank": "mean of the probabilities' ranks among each member's own calibration probabilities",
    "greedy": "mean over K draws with replacement, each of the member that lowers the log loss most",
    "logistic": "multinomial logistic regression on the members' log probabilities",
    "dense": "the members' probabilities, a dense layer of as many units with ReLU, softmax",
}
STACKERS = ("logistic", "dense")
_FLOOR = 1e-12


@dataclasses.dataclass(frozen=True)
class Fitted:
    """An ensemble on one part.

    Attributes:
      method: of `METHODS`. k: the number of members, or of draws (greedy).
      members: their indices, the best first.
      weights: one per member, or None where the method has none.
      settled: what else was fitted: a stacker's parameters.
      calibration, test: float32 logits `[N, K]`, `[N', K]` whose softmax or sigmoid is the ensemble's probability.
      metrics: of calibration.
    """

    method: str
    k: int
    members: tuple[int, ...]
    weights: tuple[float, ...] | None
    settled: dict
    calibration: np.ndarray
    test: np.ndarray
    metrics: dict[str, float]


def available(library: Library, wanted: str) -> tuple[list[str], list[str]]:
    """The methods of a comma-separated list, or with "all" those that suit the data; and why others were left out.

    Raises:
      UserError: an unknown method, or one that does not suit the data.
    """
    reasons = {}
    if library.multi_label:
        text = "gives one label per example, but these examples may have several"
        reasons |= dict.fromkeys(STACKERS, text)
        if library.evaluation.thresholds == "fixed":
            reasons["rank"] = "gives ranks, to which the fixed thresholds of config.evaluation do not apply"
    else:
        try:
            for part in library.parts:
                stacking.inner_folds(part.calibration.labels, part.calibration.groups, library.seed)
        except UserError as error:
            reasons |= dict.fromkeys(STACKERS, f"cannot be fitted here: {error}".rstrip("."))
    if wanted == "all":
        return [name for name in METHODS if name not in reasons], [f"{k} {why}" for k, why in reasons.items()]
    names = list(dict.fromkeys(name.strip() for name in wanted.split(",") if name.strip()))
    if not names or not set(names) <= set(METHODS):
        raise UserError(f"--methods={wanted} is unknown; choose of {', '.join(METHODS)}, or all.")
    for name in names:
        if name in reasons:
            raise UserError(f"the method {name} {reasons[name]}; leave it out of --methods.")
    return names, []


def as_logits(scores: np.ndarray, multi_label: bool) -> np.ndarray:
    """float32 `[N, K]` of which the softmax (single-label, rows sum to one) or the sigmoid gives the scores back."""
    scores = np.clip(np.asarray(scores, np.float64), _FLOOR, 1.0)
    if not multi_label:
        return np.log(scores).astype(np.float32)
    return (np.log(scores) - np.log(np.clip(1 - scores, _FLOOR, 1.0))).astype(np.float32)


def is_vote(method: str, multi_label: bool) -> bool:
    """Whether the scores are votes whose threshold is one half by definition, neither fitted nor scaled."""
    return multi_label and method == "majority"


def table(role: Role, logits: np.ndarray, library: Library, fold: int | None = None) -> predictions.Predictions:
    """An ensemble's predictions of a role, as if a trial had made them."""
    folds = None if fold is None else np.full(len(role.ids), fold, np.int64)
    return predictions.Predictions(role.ids, role.groups, role.label_indices, logits, library.class_names, folds)


def measure(role: Role, logits: np.ndarray, library: Library, vote: bool = False) -> dict[str, float]:
    """Every metric on the role that temperature and thresholds are fitted on, too (`score.fit`)."""
    many, settings = library.multi_label, library.evaluation
    heat, cuts = (1.0, None) if vote else score.fit(table(role, logits, library), many, settings)
    scores = calibration.probabilities(logits, many, heat)
    cuts = thresholds.fixed(scores.shape[1]) if many and cuts is None else cuts
    given = thresholds.decide(scores, cuts, settings.fallback) if many else scores.argmax(axis=1)
    return metrics.evaluate(scores, role.labels, many, predicted=given)


def better(first: dict[str, float], second: dict[str, float], metric: str) -> bool:
    """Whether the metrics `first` are better: a higher `metric`, or the same and a lower log loss."""
    return (first[metric], -first["log_loss"]) > (second[metric], -second["log_loss"])


@dataclasses.dataclass(frozen=True)
class PartFit:
    """All ensembles of one part.

    Attributes:
      order: the members' indices, the best on calibration first.
      temperatures: of the members, in their own order.
      members: their metrics on calibration, in their own order.
      single: the best member, as an ensemble of one.
      ensembles: (method, K) -> ensemble.
    """

    order: tuple[int, ...]
    temperatures: np.ndarray
    members: tuple[dict[str, float], ...]
    single: Fitted
    ensembles: dict[tuple[str, int], Fitted]


def fit(library: Library, part: Part, methods: Sequence[str], most: int, metric: str, on_test: bool = False) -> PartFit:
    """All ensembles of a part, for every K from 1 to `most`.

    Args:
      metric: a name of `metrics.COUNT_METRICS`; more is better.
      on_test: do on `test` what belongs to `calibration`, as the original study did, to see how much that flatters.
        A stacker then predicts the examples that it was fitted on.
    """
    if on_test:
        part = dataclasses.replace(part, calibration=part.test)
    many, role = library.multi_label, part.calibration
    own, unseen, heat = part.scores(many, library.evaluation.temperature)
    found = [measure(role, as_logits(scores, many), library) for scores in own]
    order = tuple(sorted(range(len(own)), key=lambda m: (-found[m][metric], found[m]["log_loss"], m)))
    fitter = _Fitter(library, part, own, unseen, order, on_test, most)
    single = fitter.build("mean", 1)
    ensembles = {(method, k): fitter.build(method, k) for method in methods for k in range(1, most + 1)}
    return PartFit(order, heat, tuple(found), single, ensembles)


class _Fitter:
    """One part's scores and what several K share."""

    def __init__(self, library, part: Part, own, unseen, order, on_test: bool, most: int) -> None:
        self.library, self.part, self.own, self.unseen = library, part, own, unseen
        self.order, self.on_test, self.most = order, on_test, most
        self.likelihoods = combine.likelihoods(own, part.calibration.labels, library.multi_label)
        self.drawn = combine.greedy(self.likelihoods, most)
        self.folds = None
        self.cuts = None

    def build(self, method: str, k: int) -> Fitted:
        """The ensemble of the top `k` members (greedy: of `k` draws)."""
        members, weights, settled = self.order[:k], None, {}
        if method in STACKERS:
            own, unseen, settled = self._stack(method, members)
        elif method == "majority" and self.library.multi_label:
            own, unseen = self._vote(members)
        elif method == "rank":
            own, unseen = (
                combine.rank_average(scores[list(members)], self.own[list(members)], self.library.multi_label)
                for scores in (self.own, self.unseen)
            )
        elif method == "majority":
            own, unseen = (combine.majority(scores[list(members)]) for scores in (self.own, self.unseen))
        else:
            if method == "greedy":
                counts = np.bincount(self.drawn[:k], minlength=len(self.own))
                members = tuple(sorted(set(self.drawn[:k]), key=lambda m: (-counts[m], self.order.index(m))))
                weights = counts[list(members)] / k
            elif method == "weighted":
                weights = combine.weights(self.likelihoods[list(members)])
            else:
                weights = np.full(k, 1 / k)
            own, unseen = (combine.mean(scores[list(members)], weights) for scores in (self.own, self.unseen))
        logits, held = (as_logits(scores, self.library.multi_label) for scores in (own, unseen))
        vote = is_vote(method, self.library.multi_label)
        found = measure(self.part.calibration, logits, self.library, vote)
        shown = None if weights is None else tuple(float(w) for w in weights)
        return Fitted(method, k, tuple(members), shown, settled, logits, held, found)

    def _stack(self, method: str, members) -> tuple[np.ndarray, np.ndarray, dict]:
        labels, seed = self.part.calibration.labels, self.library.seed
        if self.folds is None:
            self.folds = stacking.inner_folds(labels, self.part.calibration.groups, seed)
        given = (self.own[list(members)], labels, self.folds, self.unseen[list(members)])
        width = self.most * self.own.shape[2]
        made = stacking.logistic(*given) if method == "logistic" else stacking.dense(*given, seed, width)
        return made.on_fitted if self.on_test else made.calibration, made.test, made.settled

    def _vote(self, members) -> tuple[np.ndarray, np.ndarray]:
        settings, labels = self.library.evaluation, self.part.calibration.labels
        if self.cuts is None:
            fixed = settings.thresholds == "fixed"
            self.cuts = np.stack([
                thresholds.fixed(labels.shape[1]) if fixed else thresholds.fit(scores, labels, settings.thresholds)
                for scores in self.own
            ])  # fmt: skip
        chosen = list(members)
        return tuple(
            combine.majority_per_label(
                scores[chosen],
                np.stack([thresholds.decide(scores[m], self.cuts[m], settings.fallback) for m in chosen]),
                self.cuts[chosen],
            )
            for scores in (self.own, self.unseen)
        )
