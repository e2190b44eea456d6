"""Is the page complete, safe and self-contained, and are its numbers the ones it was given?"""

import base64
import hashlib
import html.parser
import json
import re

import numpy as np
import pytest

from input_pipeline import plotting
from research.report import markup, page

EVIL = "<script>alert(\"x\")</script>' onload='y"


class Reader(html.parser.HTMLParser):
    """Collects tags, references, texts and tables, and checks that tags nest."""

    void = {"meta", "link", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.tables, self.text, self._open = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.references += [value for name, value in attributes if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in self.void:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.text.append(data)
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    def table(self, *headings):
        (found,) = [table for table in self.tables if table[0][: len(headings)] == list(headings)]
        return found


def estimate(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def full_context(report):
    report.mkdir(parents=True)
    for name in ("curves.png", "odd: name#1.png", "mistake.png"):
        (report / name).write_bytes(plotting.encode_png(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)))
    return {
        "title": EVIL,
        "summary": "multi-label",
        "command": f"python -m research.main --config='{EVIL}'",
        "task": "multi-label",
        "warnings": ["SIMULATED DATA", EVIL],
        "headline": [
            {"name": "macro_f1", **estimate(0.5), "role": "test", "n_examples": 1200, "n_groups": np.int64(300)},
            {"name": "ece", **estimate(0.3)},
        ],
        "baselines": [
            {"name": "majority class", "metrics": {"macro_f1": estimate(0.2), "ece": 0.1}, "description": EVIL},
            {"name": EVIL, "metrics": {"macro_f1": 0.35}},
        ],
        "per_class": [
            {"class": EVIL, "f1": np.float32(0.5), "f1_low": 0.25, "f1_high": 0.75, "support": np.int64(1234)},
            {"class": "Nucleoli", "f1": float("nan"), "precision": estimate(0.9), "threshold": 0.4, "support": 0},
        ],
        "trials": [
            {"id": "a", "seed": 0, "overrides": {"loss.name": EVIL}, "metrics": {"test": {"macro_f1": 0.5, "mcc": 0}}},
            {"id": "b", "seed": 1, "status": EVIL, "metrics": {"validation": {"macro_f1": 0.4}}},
        ],
        "chosen_trial": "a",
        "folds": [
            {"fold": 0, "metrics": {"macro_f1": estimate(0.5)}, "n_examples": 9},
            {"fold": "mean", "metrics": {}},
        ],
        "thresholds": {"method": EVIL, "role": "calibration", "rows": [{"class": "Nucleoli", "threshold": 0.25}]},
        "calibration": {"temperature": 1.5, "ece_before": 0.2, "ece_after": 0.1, "role": "calibration"},
        "figures": [
            {"path": "curves.png", "caption": EVIL, "section": "training"},
            {"path": "odd: name#1.png", "caption": "odd", "section": "nowhere"},
        ],
        "mistakes": [
            {"image": "mistake.png", "id": EVIL, "true": [EVIL], "predicted": [], "probability": 0.75, "note": EVIL}
        ],
        "config": {"seed": 0, "data": {"dir": EVIL, "empty": {}}},
        "config_summary": {"image size": [128, 128]},
        "environment": {"jax": "0.10.2", "devices": ["cpu:0"]},
        "provenance": {
            "roles": [{"role": "test", "n_examples": 1200, "used_for": EVIL}],
            "bootstrap": {"resamples": 2000, "level": 0.95},
            "statements": [EVIL],
        },
        "files": {"trials.csv": EVIL},
    }


@pytest.fixture
def written(tmp_path):
    context = full_context(tmp_path / "report")
    path = page.write_page(tmp_path, context)
    return path, path.read_text(encoding="utf-8"), Reader(path.read_text(encoding="utf-8"))


def test_everything_is_escaped_and_nothing_is_fetched(written):
    path, text, reader = written
    assert "<script>alert" not in text and "' onload" not in text
    assert sum(tag == "script" for tag, _ in reader.tags) == 1
    assert "".join(reader.text).count('<script>alert("x")</script>') >= 12  # shown as text
    for reference in reader.references:
        assert re.fullmatch(r"#[a-z]+|data:,|[\w.%/-]+\.png", reference), reference
    assert "odd%3A%20name%231.png" in reader.references
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttp", text)


def test_policy_allows_exactly_the_script(written):
    _, text, _ = written
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text


def test_tables_hold_the_numbers(written):
    _, text, reader = written
    shown = " ".join("".join(reader.text).split())
    assert "95% interval 0.400 to 0.600" in shown and "on test (1,200 images, 300 groups)" in shown
    assert f"best baseline 0.350 ({EVIL}): the whole interval is better" in shown
    assert "best baseline 0.100 (majority class): the interval is NOT wholly better" in shown  # lower ECE is better
    baselines = reader.table("", "macro F1")
    assert baselines[1][:3] == ["a", "0.500 [0.400, 0.600]", "0.300 [0.200, 0.400]"]
    assert baselines[3][:3] == [EVIL, "0.350", "–"]
    per_class = reader.table("class", "F1")
    assert per_class[1] == [EVIL, "0.500 [0.250, 0.750]", "–", "–", "1,234"]
    assert per_class[2] == ["Nucleoli", "–", "0.900 [0.800, 1.000]", "0.400", "0"]
    trials = reader.table("id")
    assert trials[0] == ["id", "status", "seed", "overrides", "validation macro F1", "test macro F1"]
    assert trials[2] == ["b", EVIL, "1", "none", "0.400", "–"]
    assert reader.table("fold")[2] == ["mean", "–", "–"]
    assert "Temperature 1.500, fitted on the role calibration." in shown
    assert ["data.dir", EVIL] in [row for table in reader.tables for row in table]
    assert '<tr class="chosen"><td data-key="a">' in text


def test_metrics_json_is_strict_and_complete(written):
    path, _, _ = written

    def refuse(name):
        raise AssertionError(name)

    metrics = json.loads((path.parent / "metrics.json").read_text(), parse_constant=refuse)
    assert metrics["headline"][0] == {
        "name": "macro_f1", "value": 0.5, "low": 0.4, "high": 0.6, "role": "test", "n_examples": 1200, "n_groups": 300
    }  # fmt: skip
    assert metrics["per_class"][1]["f1"] is None and metrics["per_class"][0]["support"] == 1234


def test_same_context_same_bytes(tmp_path):
    context = full_context(tmp_path / "report")
    first = page.write_page(tmp_path, context).read_bytes()
    assert page.write_page(tmp_path, context).read_bytes() == first


def test_without_test_labels_the_page_says_so(tmp_path):
    path = page.write_page(tmp_path, {"title": "contest", "command": "x"})
    reader = Reader(path.read_text())
    assert "no labelled test images" in "".join(reader.text)
    assert [attributes["id"] for tag, attributes in reader.tags if tag == "section"] == ["result", "run"]


def test_single_label_without_intervals(tmp_path):
    context = {"title": "blood", "command": "x", "headline": [{"name": "accuracy", "value": 0.9}]}
    assert "no interval" in page.write_page(tmp_path, context).read_text()


@pytest.mark.parametrize(("change", "message"), [
    ({"titel": "x"}, "titel"),
    ({"figures": [{"path": "none.png", "caption": ""}]}, "none.png"),
    ({"figures": [{"path": "../trials.csv", "caption": ""}]}, "trials.csv"),
    ({"figures": [{"path": "text.png", "caption": ""}]}, "not a PNG"),
])  # fmt: skip
def test_refusals_leave_no_page(tmp_path, change, message):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "text.png").write_text("no picture")
    (tmp_path / "trials.csv").write_text("id\n")
    with pytest.raises(ValueError, match=message):
        page.write_page(tmp_path, {"title": "t", "command": "c", **change})
    assert not (tmp_path / "report" / "index.html").exists()


def test_estimates_and_sorting_keys():
    text = markup.table({"x": "x"}, [{"x": None}, {"x": float("nan")}, {"x": -2}, {"x": "a"}])
    assert re.findall(r'data-key="([^"]*)"', text) == ["", "", "-2.0", "a"]
    assert markup.estimate({"value": 0.5, "low": None, "high": 0.6}) == "0.500"
