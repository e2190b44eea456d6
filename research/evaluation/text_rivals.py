"""What do linear models and forests on the words of a caption predict, fitted in the usual ways for several labels?

Features are TF-IDF weights of words and pairs of words (Salton & Buckley 1988), learned on `train`. Labels are
predicted in one of three ways:

* binary relevance: one classifier for each label, on its own;
* classifier chains (Read et al. 2009): each classifier also sees the labels before it in a random order, true ones when
  it is fitted and predicted ones afterwards; probabilities are means over `CHAINS` orders;
* label powerset: one classifier whose classes are whole sets of labels, the `MOST_SETS` most frequent ones of `train`.
  An example with a rarer set counts as its largest subset among them (pruned sets, Read 2008), or is left out. The
  probability of a label is the sum over the sets that hold it.

The learner is logistic regression, or a random forest of `TREES` trees on the `FOREST_TERMS` most frequent terms.
Everything is fitted on `train`; the strength C of the regressions has the best macro F1 on `validation`; thresholds
come from `calibration`, as the network's.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from input_pipeline.cli import UserError
from input_pipeline.loader import available_cores
from research.evaluation.baselines import Baseline
from research.evaluation.metrics import check_labels, example_counts, from_counts
from research.evaluation.thresholds import decide, fixed, per_class_f1

KINDS: Mapping[str, tuple[str, str]] = {
    "binary_relevance": ("binary relevance", "logistic regression"),
    "classifier_chains": ("classifier chains", "logistic regression"),
    "label_powerset": ("label powerset", "logistic regression"),
    "binary_relevance_forest": ("binary relevance", "random forest"),
    "classifier_chains_forest": ("classifier chains", "random forest"),
    "label_powerset_forest": ("label powerset", "random forest"),
}
"""What a config may ask for: the way of predicting several labels, and the learner."""

STRENGTHS = (1.0, 3.0, 10.0, 30.0)
"""What C is chosen from."""
CHAINS = 3
TREES = 60  # of a forest; those of a label are shared out among the chains
FOREST_TERMS = 2000
FOREST_LEAF = 2  # examples in a leaf at least
MOST_SETS = 100
MAX_ITERATIONS = {"binary relevance": 200, "classifier chains": 200, "label powerset": 50}

# Features sparse `[n, F]` -> probabilities float64 `[n, K]`.
_Predict = Callable[[object], np.ndarray]
_Fit = Callable[[object, np.ndarray, Callable[[int], object], int], _Predict]


def name_of(kind: str) -> str:
    """What a table calls a rival of `KINDS`.

    Raises:
        UserError: for another word.
    """
    if kind not in KINDS:
        raise UserError(f"unknown rival on captions {kind!r}; choose from: {', '.join(KINDS)}.")
    way, learner = KINDS[kind]
    return f"TF-IDF + {learner}" if way == "binary relevance" else f"TF-IDF + {learner}, {way}"


def rival(
    kind: str,
    captions: Sequence[str | None],
    labels: np.ndarray,
    roles: Mapping[str, np.ndarray],
    seed: int = 0,
    check: Callable[[], None] = lambda: None,
) -> Baseline:
    """Predictions for the examples of `roles["test"]`, in their order.

    Args:
        kind: one of `KINDS`.
        captions: of all examples, N texts; a missing one (None or "") has no words.
        labels: multi-hot `[N, K]`; those of `test` are never looked at.
        roles: indices of the examples by role: "train" and "test", and "validation" and "calibration" where there are
            any. Without validation examples C is 1, without calibration examples thresholds are 0.5.
        seed: of the chains' orders and of the forests. Equal input gives equal output, on any number of cores.
        check: called between fits; may raise, to stop.

    Raises:
        UserError: an unknown kind, no training examples or labels that are not 0 or 1.
    """
    name, (way, learner) = name_of(kind), KINDS[kind]
    forest = learner == "random forest"
    parts = {role: np.asarray(roles.get(role, ()), np.int64) for role in ("train", "validation", "calibration", "test")}
    labels = np.asarray(labels)
    num_classes = labels.shape[1]
    true = check_labels(labels[parts["train"]], num_classes, True, len(parts["train"]))
    features = tfidf(captions, parts, FOREST_TERMS if forest else None)
    strengths: Sequence[float] = STRENGTHS if len(parts["validation"]) and not forest else (1.0,)
    best: tuple[float, Baseline] | None = None
    for strength in strengths:
        check()
        predict = _fitted(_WAYS[way], features["train"], true, _learner(forest, strength, way), seed)
        scores = predict(features["calibration"])
        cuts = per_class_f1(scores, labels[parts["calibration"]]) if len(scores) else fixed(num_classes)
        value = 0.0
        if len(strengths) > 1:
            given = decide(predict(features["validation"]), cuts)
            counts = example_counts(labels[parts["validation"]] > 0.5, given).sum(axis=0)
            value = float(from_counts(counts, True)["macro_f1"])
        if best is None or value > best[0]:
            scores = predict(features["test"])
            best = value, Baseline(name, scores, decide(scores, cuts), cuts)
    return best[1]


def tfidf(captions: Sequence[str | None], roles: Mapping[str, np.ndarray], most_terms: int | None = None) -> dict:
    """TF-IDF weights of words and pairs of words that at least two training captions hold.

    Counts enter by 1 + log(count), and rows have length 1. Without such words there is one column of zeros.

    Args:
        captions: N texts. roles: indices by role, among them "train".
        most_terms: the most frequent terms only; None = all.

    Returns:
        role -> sparse float64 `[n, F]` (CSR).
    """
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = {role: [captions[i] or "" for i in indices] for role, indices in roles.items()}
    terms = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, max_features=most_terms)
    words = terms.build_analyzer()
    seen: set[str] = set()
    # TfidfVectorizer refuses texts without a term that two of them share; such captions say nothing.
    if not any(seen.intersection(found) or seen.update(found) for found in (set(words(t)) for t in texts["train"])):
        return {role: csr_matrix((len(own), 1)) for role, own in texts.items()}
    terms.fit(texts["train"])
    return {
        role: terms.transform(own) if own else csr_matrix((0, len(terms.vocabulary_))) for role, own in texts.items()
    }


def frequent_sets(true: np.ndarray, most: int = MOST_SETS) -> tuple[np.ndarray, np.ndarray]:
    """The most frequent sets of labels, and which of them each example counts as.

    Args:
        true: bool `[N, K]`.
        most: sets that are kept.

    Returns:
        sets bool `[S, K]`, the most frequent first (ties by their labels), and int64 `[N]`: the example's own set; if
        that is rarer its largest subset that is kept (the most frequent of equally large ones); -1 without any. The
        empty set is nobody's subset but its own.
    """
    found, own, counts = np.unique(true, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    sets = found[order]
    sizes = sets.sum(axis=1)
    inside = ~(sets[None] & ~found[:, None]).any(axis=2) & (sizes > 0)  # [sets found, kept]
    target = np.where(inside.any(axis=1), np.where(inside, sizes, -1).argmax(axis=1), -1)
    target[order] = np.arange(len(order))
    return sets, target[own.reshape(-1)]


def _learner(forest: bool, strength: float, way: str) -> Callable[[int], object]:
    """An unfitted scikit-learn classifier by seed."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    if forest:
        trees = max(1, TREES // CHAINS) if way == "classifier chains" else TREES
        settings = {"min_samples_leaf": FOREST_LEAF, "n_jobs": available_cores()}
        return lambda seed: RandomForestClassifier(trees, random_state=seed, **settings)
    # liblinear is the fastest for two classes in sparse features, and cannot do more than two.
    solver, iterations = "lbfgs" if way == "label powerset" else "liblinear", MAX_ITERATIONS[way]
    return lambda seed: LogisticRegression(C=strength, solver=solver, max_iter=iterations, random_state=seed)


def _fitted(fit: _Fit, train, true: np.ndarray, learner: Callable[[int], object], seed: int) -> _Predict:
    """Probabilities of all K labels; one that all or no training examples have gets 1 or 0 always."""
    from sklearn.exceptions import ConvergenceWarning

    varied = true.any(axis=0) & ~true.all(axis=0)
    predict = None
    if varied.any():
        with warnings.catch_warnings():
            # The bound on the iterations is meant, as in `baselines.regression`.
            warnings.simplefilter("ignore", ConvergenceWarning)
            predict = fit(train, true[:, varied], learner, seed)

    def probabilities(features) -> np.ndarray:
        scores = np.tile(true.mean(axis=0), (features.shape[0], 1))
        if predict is not None and len(scores):
            scores[:, varied] = predict(features).clip(0.0, 1.0)
        return scores

    return probabilities


def _one_core(model):
    """A fitted model that predicts on one core: threads of a forest add up in an order of their own."""
    if hasattr(model, "estimators_"):
        model.set_params(n_jobs=1)
    return model


def _binary_relevance(train, true: np.ndarray, learner: Callable[[int], object], seed: int) -> _Predict:
    models = [_one_core(learner(seed).fit(train, column)) for column in true.T]
    return lambda features: np.stack([model.predict_proba(features)[:, 1] for model in models], axis=1)


def _classifier_chains(train, true: np.ndarray, learner: Callable[[int], object], seed: int) -> _Predict:
    from sklearn.multioutput import ClassifierChain

    generator = np.random.default_rng(seed)
    chains = []
    for number in range(CHAINS):
        chain = ClassifierChain(learner(seed + number), order=generator.permutation(true.shape[1]).tolist())
        chain.fit(train, true)
        for model in chain.estimators_:
            _one_core(model)
        chains.append(chain)
    return lambda features: np.mean([chain.predict_proba(features) for chain in chains], axis=0)


def _label_powerset(train, true: np.ndarray, learner: Callable[[int], object], seed: int) -> _Predict:
    sets, target = frequent_sets(true)
    used = target >= 0
    if len(np.unique(target[used])) < 2:
        return lambda features: np.tile(true.mean(axis=0), (features.shape[0], 1))
    model = _one_core(learner(seed).fit(train[np.flatnonzero(used)], target[used]))
    holds = sets[model.classes_].astype(np.float64)
    return lambda features: model.predict_proba(features) @ holds


_WAYS: Mapping[str, _Fit] = {
    "binary relevance": _binary_relevance,
    "classifier chains": _classifier_chains,
    "label powerset": _label_powerset,
}
