"""What do rivals that learn next to nothing predict for the test images of a setting, and how good is that?"""

import collections
from collections.abc import Callable, Sequence

import numpy as np

from input_pipeline.loader import eval_batches
from research.evaluation import baselines, metrics, score
from research.evaluation.baselines import Baseline
from research.training.signals import StopSignal

_MOST_TRAIN = 5000  # images that regressions are fitted on, at most


def predict(members: Sequence, scored: score.Scored, seed: int, stop: StopSignal) -> list[Baseline]:
    """Each baseline, fitted on each fold's own train (and calibration) role, for the pooled test images.

    Args:
      members: the trials of the folds, in the order of `scored.folds`.
      scored: their predictions, whose rows the baselines' follow.
      seed: of the draws.
      stop: checked between folds.
    """
    by_name = collections.defaultdict(list)
    colours = _Features(members[0], baselines.histogram_features)
    pixels = _Features(members[0], baselines.pixel_features)
    k, multi_label = len(scored.class_names), scored.multi_label
    for number, trial in enumerate(members):
        stop.check()
        dataset = trial.dataset
        position = {name: i for i, name in enumerate(dataset.ids)}
        test = np.array([position[name] for name in scored.ids[scored.folds == number]])
        train, fitted = trial.train_indices, dataset.indices("calibration")
        found = baselines.trivial(dataset.labels[train], len(test), k, multi_label, seed)
        fit_on = np.sort(np.random.default_rng(seed).permutation(train)[:_MOST_TRAIN])
        labels = dataset.labels[fit_on]
        found.append(
            baselines.histogram_regression(
                colours(fit_on), labels, colours(test), k, multi_label, colours(fitted), dataset.labels[fitted]
            )
        )
        if not multi_label:  # with many labels it would be as many regressions
            found.append(
                baselines.regression("linear model on pixels", pixels(fit_on), labels, pixels(test), k, multi_label)
            )
        for baseline in found:
            by_name[baseline.name].append(baseline)
    return [
        Baseline(name, *(np.concatenate([getattr(part, field) for part in parts]) for field in ("scores", "predicted")))
        for name, parts in by_name.items()
    ]


def table(found: Sequence[Baseline], scored: score.Scored, resamples: int, seed: int) -> list[dict]:
    """{"name", "metrics": with intervals, "by_class": F1} of each baseline."""
    result = []
    for baseline in found:
        given = metrics.decisions(scored.scores, scored.multi_label, predicted=baseline.predicted)
        rows = metrics.per_class(
            given.astype(float),
            scored.labels,
            scored.multi_label,
            predicted=baseline.predicted,
            class_names=scored.class_names,
        )
        result.append(
            {
                "name": baseline.name,
                "metrics": score.baseline_estimates(baseline.predicted, scored, resamples, seed),
                "by_class": {row["class"]: row["f1"] for row in rows},
            }
        )
    return result


class _Features:
    """`compute(images)` of images at the size that the network sees, each computed once."""

    def __init__(self, trial, compute: Callable[[np.ndarray], np.ndarray]) -> None:
        self.trial, self.compute = trial, compute
        self.features: dict[int, np.ndarray] = {}

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """float32 `[n, F]`."""
        missing = np.array([i for i in indices if int(i) not in self.features], np.int64)
        trial = self.trial
        batches = eval_batches(
            trial.dataset,
            missing,
            256,
            trial.config.image_size,
            trial.channels,
            threads=trial.threads,
            resize=trial.config.data.resize,
            cache=trial.cache,
        )
        for batch in batches if len(missing) else ():
            found = self.compute(batch["image"][batch["valid"]])
            self.features |= dict(zip(batch["index"][batch["valid"]].tolist(), found, strict=True))
        return np.stack([self.features[int(i)] for i in indices]) if len(indices) else np.zeros((0, 1), np.float32)
