"""How long does the exact choice of thresholds take, beside scikit-learn's precision-recall curve? Prints JSON.

    python -m tests.benchmarks.thresholds_speed [--examples=1000000] [--classes=18] [--rounds=3]

Scores are drawn at random, float32 as a network gives them, with the label shares of a multi-label study (a half to a
hundredth). Per implementation: the median over the rounds of wall and processor seconds, the rounds taken in turns, and
how much F1 the thresholds reach. Exit status 1 if the two do not reach the same F1.
"""

import argparse
import json
import statistics
import sys
import time

import numpy as np

from research.evaluation.thresholds import per_class_f1


def of_scikit_learn(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Thresholds `[K]` of the greatest F1 along `precision_recall_curve`."""
    from sklearn.metrics import precision_recall_curve

    found = []
    for own, true in zip(scores.T, labels.T, strict=True):
        precision, recall, cuts = precision_recall_curve(true, own)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        found.append(cuts[f1[:-1].argmax()])
    return np.array(found)


def macro_f1(scores: np.ndarray, labels: np.ndarray, cuts: np.ndarray) -> float:
    """The mean over classes of the F1 of `scores >= cuts`."""
    given = scores >= cuts
    return float(np.mean(2 * (given & labels).sum(axis=0) / (given.sum(axis=0) + labels.sum(axis=0))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=18)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    shape = (arguments.examples, arguments.classes)
    labels = generator.random(shape, np.float32) < np.geomspace(0.5, 0.01, arguments.classes)
    logits = generator.standard_normal(shape, np.float32) + 2 * labels - 1
    scores = 1 / (1 + np.exp(-logits))
    functions = {"ours": per_class_f1, "scikit-learn": of_scikit_learn}
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    reached = {}
    for _ in range(arguments.rounds):
        for name, function in functions.items():
            wall, processor = time.perf_counter(), time.process_time()
            cuts = function(scores, labels)
            rounds[name].append((time.perf_counter() - wall, time.process_time() - processor))
            reached[name] = macro_f1(scores, labels, cuts)
    result = {"examples": shape[0], "classes": shape[1]}
    for name, times in rounds.items():
        wall, processor = (round(statistics.median(one), 2) for one in zip(*times, strict=True))
        result[name] = {"seconds": wall, "processor_seconds": processor, "macro_f1": round(reached[name], 9)}
    print(json.dumps(result))
    return int(abs(reached["ours"] - reached["scikit-learn"]) > 1e-9)


if __name__ == "__main__":
    sys.exit(main())
