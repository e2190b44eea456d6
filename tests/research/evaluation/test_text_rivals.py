"""Do the rivals on captions predict what scikit-learn's meta-estimators and brute force predict, and nothing else?"""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain

from input_pipeline.cli import UserError
from research.evaluation import metrics, text_rivals, thresholds

K = 4
WORDS = (("cat", "cats"), ("dog", "puppy"), ("red car",), ("person", "man"))
CUTS = (83, 29, 31, 41)  # examples by role


@pytest.fixture(scope="module")
def study():
    """Captions that name most of their labels, in a random order, amid words that mean nothing."""
    generator = np.random.default_rng(6)
    labels = generator.random((sum(CUTS), K)) < [0.3, 0.4, 0.25, 0.6]
    labels[labels.sum(axis=1) == 0, 3] = True
    captions = []
    for row in labels:
        named = [generator.choice(WORDS[k]) for k in np.flatnonzero(row) if generator.random() < 0.85]
        noise = generator.choice(["a", "the", "street", "grass", "on", "red", "big"], 4).tolist()
        captions.append(" ".join(generator.permutation(named + noise)) + ".")
    captions[5], captions[100] = None, ""
    order = generator.permutation(len(labels))
    parts = np.split(order, np.cumsum(CUTS)[:-1])
    roles = dict(zip(("train", "validation", "calibration", "test"), parts, strict=True))
    return captions, labels.astype(np.float32), roles


def texts(captions, indices):
    return [captions[i] or "" for i in indices]


def without(roles, *names):
    return {name: indices for name, indices in roles.items() if name not in names}


@pytest.fixture(scope="module")
def features(study):
    """scikit-learn's own vectors of train and test."""
    captions, _, roles = study
    terms = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    train = terms.fit_transform(texts(captions, roles["train"]))
    return train, terms.transform(texts(captions, roles["test"]))


def regression(seed=0):
    return LogisticRegression(C=1.0, solver="liblinear", max_iter=200, random_state=seed)


def test_binary_relevance_equals_one_versus_rest(study, features):
    captions, labels, roles = study
    found = text_rivals.rival("binary_relevance", captions, labels, without(roles, "validation", "calibration"))
    expected = OneVsRestClassifier(regression()).fit(features[0], labels[roles["train"]]).predict_proba(features[1])
    np.testing.assert_allclose(found.scores, expected, atol=1e-6)
    np.testing.assert_array_equal(found.thresholds, [0.5] * K)
    np.testing.assert_array_equal(found.predicted, thresholds.decide(expected, 0.5))
    assert found.name == "TF-IDF + logistic regression"


def test_chains_equal_those_of_scikit_learn_in_the_drawn_orders(study, features):
    captions, labels, roles = study
    found = text_rivals.rival("classifier_chains", captions, labels, without(roles, "validation"), seed=3)
    generator, parts = np.random.default_rng(3), []
    for number in range(text_rivals.CHAINS):
        chain = ClassifierChain(regression(3 + number), order=generator.permutation(K).tolist())
        parts.append(chain.fit(features[0], labels[roles["train"]]).predict_proba(features[1]))
    np.testing.assert_allclose(found.scores, np.mean(parts, axis=0), atol=1e-6)


def test_a_chain_by_hand(study, features):
    """Each classifier sees the labels before it: true ones when fitted, decided ones afterwards."""
    captions, labels, roles = study
    train, test = (part.toarray() for part in features)
    true, parts = labels[roles["train"]], []
    generator = np.random.default_rng(0)
    for _ in range(text_rivals.CHAINS):
        scores = np.zeros((len(test), K))
        before, decided = np.zeros((len(train), 0)), np.zeros((len(test), 0))
        for label in generator.permutation(K):
            model = regression().fit(np.hstack([train, before]), true[:, label])
            scores[:, label] = model.predict_proba(np.hstack([test, decided]))[:, 1]
            before = np.hstack([before, true[:, label : label + 1]])
            decided = np.hstack([decided, scores[:, label : label + 1] > 0.5])
        parts.append(scores)
    found = text_rivals.rival("classifier_chains", captions, labels, without(roles, "validation"))
    np.testing.assert_allclose(found.scores, np.mean(parts, axis=0), atol=2e-3)


def test_powerset_sums_the_probabilities_of_the_sets(study, features):
    captions, labels, roles = study
    found = text_rivals.rival("label_powerset", captions, labels, without(roles, "validation"))
    names = ["".join(str(int(value)) for value in row) for row in labels[roles["train"]]]
    model = LogisticRegression(C=1.0, max_iter=200).fit(features[0], names)
    each = model.predict_proba(features[1])
    expected = np.zeros_like(found.scores)
    for column, name in enumerate(model.classes_):
        for label in range(K):
            expected[:, label] += each[:, column] * (name[label] == "1")
    np.testing.assert_allclose(found.scores, expected, atol=2e-3)


@pytest.mark.parametrize("most", [1, 2, 5, 100])
def test_rare_sets_count_as_their_largest_frequent_subset(most):
    true = np.random.default_rng(most).random((61, 5)) < 0.4
    sets, target = text_rivals.frequent_sets(true, most)
    kept, counts = [tuple(row) for row in sets], {}
    for row in true.tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert [counts[one] for one in kept] == sorted(counts.values(), reverse=True)[:most]
    for row, number in zip(true, target, strict=True):
        if tuple(row) in kept:
            assert kept[number] == tuple(row)
            continue
        subsets = [one for one in kept if any(one) and not np.any(np.array(one) & ~row)]
        expected = max(subsets, key=lambda one: (sum(one), -kept.index(one))) if subsets else None
        assert (kept[number] if number >= 0 else None) == expected


def test_forests_are_those_of_scikit_learn(study, monkeypatch):
    captions, labels, roles = study
    monkeypatch.setattr(text_rivals, "TREES", 9)
    monkeypatch.setattr(text_rivals, "FOREST_TERMS", 12)
    terms = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, max_features=12)
    train = terms.fit_transform(texts(captions, roles["train"]))
    test = terms.transform(texts(captions, roles["test"]))
    found = text_rivals.rival("binary_relevance_forest", captions, labels, roles, seed=5)
    for k in range(K):
        model = RandomForestClassifier(9, min_samples_leaf=text_rivals.FOREST_LEAF, random_state=5)
        expected = model.fit(train, labels[roles["train"], k]).predict_proba(test)[:, 1]
        np.testing.assert_allclose(found.scores[:, k], expected, atol=1e-9)


@pytest.mark.parametrize("kind", text_rivals.KINDS)
def test_every_kind_beats_guessing_and_never_looks_at_the_labels_of_test(study, kind, monkeypatch):
    captions, labels, roles = study
    monkeypatch.setattr(text_rivals, "TREES", 9)
    monkeypatch.setattr(text_rivals, "STRENGTHS", (0.3, 10.0))
    found = text_rivals.rival(kind, captions, labels, roles, seed=1)
    hidden = labels.copy()
    hidden[roles["test"]] = np.nan
    again = text_rivals.rival(kind, captions, hidden, roles, seed=1)
    np.testing.assert_array_equal(found.scores, again.scores)
    np.testing.assert_array_equal(found.predicted, again.predicted)
    assert found.scores.shape == found.predicted.shape == (CUTS[3], K) and found.predicted.dtype == bool
    true = labels[roles["test"]]
    everything = metrics.evaluate(np.ones_like(true), true, True)["macro_f1"]
    assert metrics.evaluate(found.scores, true, True, predicted=found.predicted)["macro_f1"] > everything + 0.1


def test_terms_and_weights_come_from_train_alone(study):
    captions, _, roles = study
    changed = list(captions)
    for role in ("validation", "calibration", "test"):
        for index in roles[role]:
            changed[index] = f"{captions[index]} zebra zebra"
    own, other = (text_rivals.tfidf(texts, roles)["test"] for texts in (captions, changed))
    np.testing.assert_array_equal(own.toarray(), other.toarray())


def test_c_is_the_best_on_validation_with_thresholds_of_calibration(study, monkeypatch):
    captions, labels, roles = study
    strengths, values, each = (1e-3, 0.1, 50.0), [], []
    for strength in strengths:
        monkeypatch.setattr(text_rivals, "STRENGTHS", (strength,))
        each.append(text_rivals.rival("binary_relevance", captions, labels, roles))
        judged = roles | {"test": roles["validation"]}
        on_validation = text_rivals.rival("binary_relevance", captions, labels, judged)
        true = labels[roles["validation"]]
        values.append(metrics.evaluate(on_validation.scores, true, True, predicted=on_validation.predicted)["macro_f1"])
    monkeypatch.setattr(text_rivals, "STRENGTHS", strengths)
    found = text_rivals.rival("binary_relevance", captions, labels, roles)
    assert len(set(values)) > 1
    np.testing.assert_array_equal(found.scores, each[int(np.argmax(values))].scores)


@pytest.mark.parametrize("kind", text_rivals.KINDS)
def test_labels_that_all_or_none_have_and_captions_without_words(kind, monkeypatch):
    monkeypatch.setattr(text_rivals, "TREES", 3)
    labels = np.zeros((17, 3), np.float32)
    labels[:, 0] = 1
    labels[::2, 2] = 1
    roles = {"train": np.arange(11), "test": np.arange(11, 17)}
    for captions in ([None] * 17, ["", "犬", "one two", *[f"word{i}" for i in range(14)]]):
        found = text_rivals.rival(kind, captions, labels, roles)
        np.testing.assert_array_equal(found.scores[:, :2], [[1.0, 0.0]] * 6)
        assert np.isfinite(found.scores).all() and found.predicted.any(axis=1).all()
    labels[:, 2] = 0  # nothing left to learn
    np.testing.assert_array_equal(text_rivals.rival(kind, captions, labels, roles).scores, [[1.0, 0.0, 0.0]] * 6)


def test_mistakes_are_refused_and_stops_are_heard(study):
    captions, labels, roles = study
    with pytest.raises(UserError, match="unknown rival on captions 'chains'; choose from: binary_relevance"):
        text_rivals.rival("chains", captions, labels, roles)
    with pytest.raises(UserError, match="no examples"):
        text_rivals.rival("binary_relevance", captions, labels, {"train": [], "test": [0]})
    assert text_rivals.rival("binary_relevance", captions, labels, roles | {"test": []}).scores.shape == (0, K)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        text_rivals.rival("binary_relevance", captions, labels, roles, check=stop)
