"""How do several predictions become one? Voting, means, ranks, weights, and greedy selection.

All functions take probabilities of M members, float64 `[M, N, K]`, and return the ensemble's `[N, K]`: rows that sum to
one in a single-label task, independent probabilities in a multi-label one. None looks at labels except `weights` and
`greedy`, which get the probabilities that the members gave to what was true.
"""

import numpy as np

_FLOOR = 1e-12  # least probability whose logarithm is taken
_GAP = 1e-9  # of the log loss, in nats: how far the weights may be from the optimum
_EM_STEPS = 2000


def mean(scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean of the probabilities, weighted by `weights` `[M]` that sum to one."""
    return scores.mean(axis=0) if weights is None else np.tensordot(weights, scores, axes=1)


def majority(scores: np.ndarray) -> np.ndarray:
    """Single-label majority vote: (votes + mean probability) / (M + 1).

    The top class has the most votes, and among classes with equally many the **higher mean probability**: mean
    probabilities lie between 0 and 1, so they never outweigh a vote, and a class with a vote has one above 0. (The
    original's tie rule is the highest class index.)
    """
    members, _, classes = scores.shape
    votes = (scores.argmax(axis=2)[:, :, None] == np.arange(classes)).sum(axis=0)
    return (votes + scores.mean(axis=0)) / (members + 1)


def majority_per_label(scores: np.ndarray, given: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Multi-label majority vote, label by label: at least 0.5 where more than half of the members give the label.

    Where exactly half do, the mean probability decides, beside the mean threshold: (votes + t) / (M + 1), with t from 0
    to 1 (exclusive), and at least 0.5 where the mean probability reaches the mean threshold.

    Args:
      given: bool `[M, N, K]`, each member's decisions with its own thresholds.
      thresholds: `[M, K]`.
    """
    probability, cut = scores.mean(axis=0), np.clip(thresholds.mean(axis=0), 1e-9, 1 - 1e-9)
    below, above = 0.5 * probability / cut, 0.5 + 0.5 * (probability - cut) / (1 - cut)
    lean = np.where(probability >= cut, above, np.minimum(below, np.nextafter(0.5, 0)))
    return (given.sum(axis=0) + np.clip(lean, 0, 1 - 1e-9)) / (len(scores) + 1)


def ranks(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Each probability's rank among a member's own calibration probabilities, from 0 to 1, `[M, N, K]`.

    The rank is taken among all N * K probabilities of the member, so that it is one rising function per member: it
    changes no member's order of classes, and takes away that one member states extreme and another cautious
    probabilities. Between the reference's values it is linear, and it does not depend on the other images that are
    ranked with it.

    Args:
      reference: the members' calibration probabilities `[M, N', K]`.
    """
    result = []
    for own, known in zip(scores, reference, strict=True):
        values, counts = np.unique(known, return_counts=True)
        middle = (np.cumsum(counts) - counts / 2) / known.size
        knots, heights = np.concatenate([[-1e-9], values, [1 + 1e-9]]), np.concatenate([[0.0], middle, [1.0]])
        result.append(np.interp(own, knots, heights))
    return np.stack(result)


def rank_average(scores: np.ndarray, reference: np.ndarray, multi_label: bool) -> np.ndarray:
    """Mean of `ranks`; in a single-label task divided by its sum over the classes."""
    average = ranks(scores, reference).mean(axis=0)
    return average if multi_label else average / average.sum(axis=1, keepdims=True)


def likelihoods(scores: np.ndarray, labels: np.ndarray, multi_label: bool) -> np.ndarray:
    """The probability that each member gave to what is true, `[M, N]`, or with labels multi-hot `[M, N * K]`.

    Because weights sum to one, the mean's likelihood is the weighted mean of these, in both tasks.
    """
    if multi_label:
        true = np.asarray(labels) > 0.5
        return np.where(true, scores, 1 - scores).reshape(len(scores), -1)
    return scores[:, np.arange(len(labels)), labels]


def log_loss(likelihood: np.ndarray) -> np.ndarray:
    """Mean negative logarithm over the last axis, in nats."""
    return -np.log(np.maximum(likelihood, _FLOOR)).mean(axis=-1)


def weights(likelihood: np.ndarray) -> np.ndarray:
    """Weights `[M]` in [0, 1] that sum to one and minimise the log loss of the weighted mean.

    The problem is convex: every local minimum is a global one, so SLSQP starts once, at equal weights, and the
    original's 50 random starts are not needed (where members are equal, many weights are optimal and the start settles
    which). The duality gap of the optimum, max_m mean(q_m / q) - 1, bounds how much better any weights could be; while
    it is above 1e-9 nats, steps of expectation maximisation, which never worsen the loss, follow.

    Args:
      likelihood: `[M, N]`, see `likelihoods`.
    """
    from scipy.optimize import minimize

    likelihood = np.maximum(likelihood, _FLOOR)
    count = len(likelihood)
    equal = np.full(count, 1 / count)
    if count == 1:
        return equal
    found = minimize(
        lambda w: log_loss(w @ likelihood),
        equal,
        jac=lambda w: -(likelihood / np.maximum(w @ likelihood, _FLOOR)).mean(axis=1),
        method="SLSQP",
        bounds=[(0.0, 1.0)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(count)},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    start = np.clip(found.x, 0, None) if np.isfinite(found.x).all() and found.x.max() > 0 else equal
    start = start / start.sum()
    best = start if log_loss(start @ likelihood) <= log_loss(equal @ likelihood) else equal
    for _ in range(_EM_STEPS):
        pull = (likelihood / np.maximum(best @ likelihood, _FLOOR)).mean(axis=1)
        if pull.max() - 1 <= _GAP:
            break
        best = np.maximum(best, 1e-12) * pull  # a weight of exactly 0 could not come back
        best = best / best.sum()
    return best


def greedy(likelihood: np.ndarray, draws: int) -> list[int]:
    """Members drawn one after the other with replacement, each the one that lowers the log loss most (Caruana 2004).

    Returns `draws` indices; of equally good members the first is drawn.

    Args:
      likelihood: `[M, N]`, see `likelihoods`.
    """
    total, chosen = np.zeros(likelihood.shape[1]), []
    for number in range(1, draws + 1):
        losses = log_loss((total + likelihood) / number)
        chosen.append(int(np.flatnonzero(losses <= losses.min() + 1e-12)[0]))
        total = total + likelihood[chosen[-1]]
    return chosen
