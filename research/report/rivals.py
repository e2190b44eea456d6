"""What do rivals that learn next to nothing predict for the test images of a setting, and how good is that?"""

import collections
from collections.abc import Callable, Sequence

import numpy as np

from input_pipeline.loader import eval_batches
from research.evaluation import baselines, keywords, metrics, score, text_rivals
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
    k, multi_label = len(scored.class_names), scored.multi_label
    learners = _of_genes(members[0], k) if members[0].dataset.genes else _of_images(members[0], k, multi_label)
    captions = members[0].dataset.captions if multi_label else None
    if captions is not None and set(scored.class_names) <= set(keywords.WORDS):
        learners.append(_of_keywords(members[0], captions))
    for number, trial in enumerate(members):
        stop.check()
        dataset = trial.dataset
        position = {name: i for i, name in enumerate(dataset.ids)}
        test = np.array([position[name] for name in scored.ids[scored.folds == number]])
        train, fitted = trial.train_indices, dataset.indices("calibration")
        found = baselines.trivial(dataset.labels[train], len(test), k, multi_label, seed)
        fit_on = np.sort(np.random.default_rng(seed).permutation(train)[:_MOST_TRAIN])
        for learn in learners:
            stop.check()
            found.append(learn(dataset.labels, fit_on, fitted, test))
        roles = {"train": train, "validation": dataset.indices("validation"), "calibration": fitted, "test": test}
        for kind in trial.config.evaluation.text_rivals if captions is not None else ():
            found.append(text_rivals.rival(kind, captions, dataset.labels, roles, seed, stop.check))
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


# Of the labels of all examples, and the indices to fit on, of `calibration` and of `test`.
_Learner = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Baseline]


def _of_images(trial, k: int, multi_label: bool) -> list[_Learner]:
    """Regressions on colours, and with one label on pixels: with many it would be as many regressions.

    There are none where every image is a single pixel, as in a data set of captions alone.
    """
    if trial.config.image_size == 1:
        return []
    colours = _Features(trial, baselines.histogram_features)
    pixels = _Features(trial, baselines.pixel_features)

    def of_colours(labels, fit_on, fitted, test) -> Baseline:
        return baselines.histogram_regression(
            colours(fit_on), labels[fit_on], colours(test), k, multi_label, colours(fitted), labels[fitted]
        )

    def of_pixels(labels, fit_on, fitted, test) -> Baseline:
        return baselines.regression(
            "linear model on pixels", pixels(fit_on), labels[fit_on], pixels(test), k, multi_label
        )

    return [of_colours] if multi_label else [of_colours, of_pixels]


def _of_keywords(trial, captions: Sequence[str]) -> _Learner:
    """A list of words for each label, which nobody has trained."""

    def look_up(labels, fit_on, fitted, test) -> Baseline:
        found = keywords.keyword_rule([captions[i] for i in test], trial.dataset.class_names)
        return Baseline("key words of the caption", found.astype(np.float64), found)

    return look_up


def _of_genes(trial, k: int) -> list[_Learner]:
    """The linear models that every classifier of expression is measured by."""
    genes = _Features(trial, lambda images: images[:, 0, :, 0])

    def logistic(labels, fit_on, fitted, test) -> Baseline:
        name = "logistic regression on genes"
        return baselines.regression(name, genes(fit_on), labels[fit_on], genes(test), k, False)

    def support_vectors(labels, fit_on, fitted, test) -> Baseline:
        name = "linear SVM on genes"
        return baselines.linear_svm(name, genes(fit_on), labels[fit_on], genes(test), k, genes(fitted), labels[fitted])

    return [logistic, support_vectors]


class _Features:
    """`compute(images)` of images as the network's loader gives them, each computed once."""

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
