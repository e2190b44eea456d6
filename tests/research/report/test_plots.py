"""Do the figures show the right numbers, always the same bytes, and survive awkward class names and empty classes?"""

import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from input_pipeline import plotting
from research.report import plots, rank_curves

ROOT = pathlib.Path(__file__).parents[3]
NAMES = ["Nucleoplasm", "A $ name $x^2$ <b>", "third, a rather long class name that goes on"]


def picture(path):
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None and image.std() > 1
    return image


def generator():
    return np.random.default_rng(7)


def curve_rows(trials=2):
    rows = []
    for trial in range(trials):
        for step in range(0, 90):
            rows.append({"trial": f"t{trial}", "step": step, "split": "train", "loss": 1 / (step + 1) + trial,
                         "learning_rate": 10 ** (-step / 20)})  # fmt: skip
            if step % 20 == 0:
                rows.append({"trial": f"t{trial}", "step": step, "split": "validation", "loss": float("nan"),
                             "macro_f1": step / 100})  # fmt: skip
    return rows


DRAWN = {
    "learning_curves": lambda path: plots.learning_curves(curve_rows(), path, phases=[(0, "head")], best={"t0": 80}),
    "many_trials": lambda path: plots.learning_curves(curve_rows(7), path, best={"t3": 80}),
    "no_rows": lambda path: plots.learning_curves([{"trial": "a", "step": 1, "split": "train", "loss": 1.0}], path),
    "confusion": lambda path: plots.confusion([[5, 1, 0], [0, 0, 0], [2, 2, 8]], NAMES, path),
    "label_predictions": lambda path: plots.label_predictions(
        generator().random((9, 3)) < 0.4, generator().random((9, 3)) < 0.6, NAMES, path
    ),
    "per_class": lambda path: plots.per_class(
        [{"class": name, "f1": value, "f1_low": 0.1, "f1_high": 0.9, "support": 5}
         for name, value in zip(NAMES, [0.5, None, float("nan")], strict=True)], path, {NAMES[0]: 0.2},
    ),
    "comparison": lambda path: plots.comparison(
        [{"name": "model", "kind": "model", "metrics": {"macro_f1": {"value": 0.5, "low": 0.4, "high": 0.6}}},
         {"name": "majority", "kind": "baseline", "metrics": {"macro_f1": {"value": 0.2, "low": None, "high": None}}}],
        path,
    ),
    "several_metrics": lambda path: plots.comparison(
        [{"name": "model", "kind": "model", "metrics": {"macro_f1": {"value": 0.5, "low": 0.4, "high": 0.6}}}] * 3,
        path, ["macro_f1", "micro_f1"],
    ),
    "reliability": lambda path: plots.reliability(
        {"before": [{"confidence": 0.5, "accuracy": 0.4, "count": 3}, {"confidence": 0, "accuracy": 0, "count": 0}]},
        path,
    ),
    "pr_curves": lambda path: rank_curves.pr_curves(
        generator().random((20, 3)) < [0.5, 0.2, 0.0], generator().random((20, 3)), NAMES, path, [0.5, 2.0, 0.5]
    ),
    "roc_curves": lambda path: rank_curves.roc_curves(
        generator().random((20, 3)) < [0.5, 1.0, 0.0], generator().random((20, 3)), NAMES, path
    ),
    "mistakes": lambda path: plots.mistakes(
        [np.zeros((8, 12, 1), np.uint8), np.full((5, 4, 4), 60000, np.uint16)],
        [{"true": NAMES[:2], "predicted": [], "probability": 0.9}] * 2, path,
    ),
    "many_classes": lambda path: rank_curves.pr_curves(
        generator().random((40, 15)) < 0.5, generator().random((40, 15)), [f"class {k}" for k in range(15)], path
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_drawn_and_reproducible(tmp_path, name):
    DRAWN[name](tmp_path / "a.png")
    DRAWN[name](tmp_path / "b.png")
    picture(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes()
    assert b"Software" not in data and b"Creation" not in data
    assert round(int.from_bytes(data[data.index(b"pHYs") + 4 :][:4]) * 0.0254) >= 150  # dots per inch


def test_eighty_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(plotting, "DPI", 50)
    names = [f"class number {index} with a long name" for index in range(80)]
    labels = generator().random((40, 80)) < 0.1
    plots.label_predictions(labels, labels, names, tmp_path / "a.png")
    plotting.label_distribution({"train": labels.sum(axis=0)}, names, tmp_path / "b.png")
    assert max(picture(tmp_path / f"{name}.png").shape[0] for name in "ab") < 80 * 25


def heatmap_values(monkeypatch, draw):
    seen = {}
    original = plotting.heatmap

    def spy(axes, values, rows, columns, texts=None, limit=1.0):
        seen.update(values=np.array(values), rows=rows, texts=texts)
        return original(axes, values, rows, columns, texts, limit)

    monkeypatch.setattr(plotting, "heatmap", spy)
    draw()
    return seen


def test_label_predictions_are_conditional_shares(tmp_path, monkeypatch):
    true, predicted = generator().random((50, 3)) < 0.4, generator().random((50, 3)) < 0.6
    seen = heatmap_values(monkeypatch, lambda: plots.label_predictions(true, predicted, NAMES, tmp_path / "a.png"))
    for i in range(3):
        for j in range(3):
            assert seen["values"][i, j] == pytest.approx(predicted[true[:, i], j].mean())
    assert seen["rows"][0].endswith(f"({true[:, 0].sum()})")


def test_cooccurrence_shares(tmp_path, monkeypatch):
    labels = generator().random((50, 3)) < 0.4
    labels[:, 1] = False
    counts = labels.T.astype(int) @ labels.astype(int)
    seen = heatmap_values(monkeypatch, lambda: plotting.cooccurrence(counts, NAMES, tmp_path / "a.png"))
    assert seen["values"][0, 2] == pytest.approx(labels[labels[:, 0], 2].mean())
    assert np.isnan(seen["values"][0, 0]) and np.isnan(seen["values"][1]).all()
    assert seen["texts"][0][2] == str(counts[0, 2])


def test_average_precision_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    random = generator()
    for _ in range(5):
        labels, scores = random.random(60) < 0.3, random.integers(0, 12, 60) / 11  # with ties
        recall, precision, area = rank_curves._pr_curve(labels, scores)
        assert area == pytest.approx(metrics.average_precision_score(labels, scores), abs=1e-12)
        want_precision, want_recall, _ = metrics.precision_recall_curve(labels, scores)
        np.testing.assert_allclose(recall, want_recall[::-1], atol=1e-12)
        np.testing.assert_allclose(precision[1:], want_precision[::-1][1:], atol=1e-12)


def test_roc_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    random = generator()
    for _ in range(5):
        labels, scores = random.random(60) < 0.3, random.integers(0, 12, 60) / 11  # with ties
        false, sensitivity, area = rank_curves._roc_curve(labels, scores)
        assert area == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
        want_false, want_sensitivity, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
        np.testing.assert_allclose(false, want_false, atol=1e-12)
        np.testing.assert_allclose(sensitivity, want_sensitivity, atol=1e-12)


def test_smoothing_starts_unbiased_and_skips_gaps():
    smoothed = plots._smooth(np.array([4.0, 4.0, np.nan, 4.0]), 0.9)
    np.testing.assert_allclose(smoothed, 4.0)
    np.testing.assert_allclose(plots._smooth(np.array([0.0, 1.0]), 0.5), [0.0, 0.5 / 0.75])


@pytest.mark.parametrize(("image", "want"), [
    (np.full((2, 3), 7, np.uint8), [7, 7, 7]),
    (np.full((2, 3, 1), 0x1234, np.uint16), [0x12] * 3),
    (np.full((2, 3, 2), 9, np.uint8), [9, 9, 0]),
    (np.full((2, 3, 4), 300.0, np.float32), [255] * 3),
    (np.full((2, 3, 3), np.nan), [0, 0, 0]),
])  # fmt: skip
def test_to_rgb(image, want):
    shown = plotting.to_rgb(image)
    assert shown.shape == (2, 3, 3) and shown.dtype == np.uint8
    np.testing.assert_array_equal(shown[0, 0], want)


def test_nothing_is_written_when_drawing_fails(tmp_path):
    with pytest.raises(RuntimeError), plotting.figure(tmp_path / "a.png"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_colours_differ_in_grey():
    def lightness(colour):
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)  # sRGB
        return linear @ [0.2126, 0.7152, 0.0722]

    shades = [lightness(colour) for colour in plotting.COLOURS]
    assert all(abs(a - b) > 0.05 for a, b in zip(shades, shades[1:], strict=False))


def test_importing_does_not_load_matplotlib():
    code = "import sys, research.report.page, research.report.plots; print('matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "False", result.stderr
