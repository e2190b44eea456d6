"""Does a model card say what the run folder says, all of it and nothing more?"""

import copy
import json

import pytest

from configs import common
from input_pipeline.cli import UserError
from research.report import markdown, model_card


def estimate(value, width=0.02):
    return {"value": value, "low": value - width, "high": value + width}


def config(**changes):
    found = common.default()
    found.study, found.steps = "cells", 40
    found.update_from_flattened_dict(changes)
    return json.loads(found.to_json_best_effort())


CLASSES = [
    {"class": "round", "support": 120, "precision": estimate(0.9), "recall": estimate(0.8), "f1": 0.85, "f1_low": 0.8,
     "f1_high": 0.88, "average_precision": 0.9, "auroc": 0.95},
    {"class": "long|thin", "support": 12, "precision": estimate(0.5), "recall": estimate(0.4), "f1": 0.44,
     "f1_low": 0.2, "f1_high": 0.6, "average_precision": 0.4, "auroc": 0.7},
]  # fmt: skip
REPORT = {
    "title": "cells: simple_cnn", "command": "python -m research.main --config=configs/cells.py",
    "task": "single-label", "warnings": [], "chosen_trial": "wide",
    "config_summary": {"seed": 1, "image size": "24 px", "normalisation": "raw", "test-time views": "none",
                       "weights": "random"},
    "trials": [
        {"id": f"{name}-seed{seed}", "setting": name, "seed": seed, "stage": "search", "status": "finished",
         "parameters": 1234, "bytes": 5000, "flops": 2.5e6, "steps": 40, "best_step": 30,
         "overrides": {"seed": seed, "optimizer.learning_rate": 0.01 if name == "wide" else 0.1}}
        for name in ("wide", "thin") for seed in (0, 1)
    ],
    "provenance": {
        "roles": [{"role": role, "n_examples": count, "n_groups": count // 2, "used_for": "the figures of this page"}
                  for role, count in (("train", 500), ("validation", 60), ("calibration", 62), ("test", 132))],
        "bootstrap": {"resamples": 200},
    },
    "headline": [{"name": "accuracy", "role": "test", "n_examples": 132, "n_groups": 66} | estimate(0.8),
                 {"name": "macro_f1", "role": "test", "n_examples": 132, "n_groups": 66} | estimate(0.7)],
    "per_class": CLASSES,
    "baselines": [{"name": "majority class", "metrics": {"accuracy": estimate(0.6), "macro_f1": estimate(0.3)}}],
    "calibration": {"temperature": 1.5, "ece_before": 0.1, "ece_after": 0.05, "log_loss_before": 0.6,
                    "log_loss_after": 0.5, "role": "calibration"},
    "settings": {"rows": [
        {"name": "wide", "kind": "model", "seeds": 2, "difference": None, "metrics": {"accuracy": estimate(0.79)}},
        {"name": "majority class", "kind": "baseline", "seeds": 1, "metrics": {},
         "difference": {"value": -0.2, "low": -0.25, "high": -0.15, "p": 0.01, "holm": 0.02}},
    ], "cited": [["Somebody 2020", {"accuracy": 0.9}]], "chosen": "wide", "role": "calibration"},
    "environment": {"python": "3.11", "platform": "Linux", "devices": ["cpu:cpu", "cpu:cpu"], "packages": {"jax": "1"},
                    "commit": "abc123+"},
}  # fmt: skip


def changed(**values):
    return copy.deepcopy(REPORT) | values


def lines_of(text, section):
    return text.split(f"## {section}\n\n")[1].split("\n\n## ")[0].splitlines()


def test_a_search_over_seeds():
    records = {"wide-seed1": {"file": "hub_file", "source": "timm", "sha256": "f00d"}}
    text = model_card.card(REPORT, config(), records, "beef")
    for words in (
        "`simple_cnn`: 1,234 parameters, 5.0 kB, 2.5 million floating-point operations",
        "gives one of 2 classes: round, long\\|thin.",
        "Input: 24 x 24 pixels, normalisation raw.",
        "It is the trial `wide-seed1`, of 4 trials in the run.",
        "chosen among 2 by loss on calibration; test had no say",
        "fingerprint of its contents and roles `beef`", "Not simulated, as the data set says.",
        "| test | 132 | 66 | the figures of this card |",
        "40 steps of 32 examples; the checkpoint of step 30 was best by loss",
        "adam, learning rate 0.01, schedule constant.", "No augmentation.",
        "Seeds 0, 1 of this setting; this is 1, the best on calibration.",
        "pretrained weights: hub\\_file (timm), SHA-256 `f00d`", "neither their licence",
        "| **this model** | 0.800 [0.780, 0.820] | 0.700 [0.680, 0.720] |",
        "| mean of 2 seeds of its setting | 0.790 [0.770, 0.810] | – |",
        "| majority class | 0.600 [0.580, 0.620] | 0.300 [0.280, 0.320] |",
        "| Somebody 2020 (literature) | 0.900 | – |", "not to be compared one to one",
        "| long\\|thin | 12 | 0.500 [0.480, 0.520] | 0.400 [0.380, 0.420] | 0.440 [0.200, 0.600] | 0.400 | 0.700 |",
        "temperature of 1.500, fitted on calibration; on test the expected calibration error is 0.050 (0.100 without)",
        "The class of the highest probability is given.",
        "majority class, is worse on the same examples: accuracy -0.200 [-0.250, -0.150], p 0.02 (Holm)",
        "Fewer than 50 test examples: long\\|thin (12)", "Weakest class: long\\|thin, F1 0.440",
        "interval wider than 0.2: long\\|thin.", "gives one of them to anything", "2 x cpu:cpu; jax 1.",
        "commit abc123 with changes that are not in it",
    ):  # fmt: skip
        assert words in text, words
    for words in ("None", "nan", "One seed", "SIMULATED", "thresholds", "group of its own", "fold"):
        assert words not in text, words


def test_every_section_has_content_and_no_line_is_empty_of_it():
    text = model_card.card(REPORT, config(), {})
    parts = text.split("\n## ")[1:]
    assert [part.splitlines()[0] for part in parts] == [
        "Model", "Intended use", "Data", "Training", "Results on test", "Decisions", "Limits",
        "Reproduction and citation",
    ]  # fmt: skip
    assert all(len(part.strip().splitlines()) > 2 for part in parts)
    for line in text.splitlines():
        assert not line.startswith("|") or len(line.replace("\\|", "").split("|")) >= 4


def test_labels_with_thresholds_on_simulated_leaky_data():
    classes = [row | {"threshold": 0.25} for row in CLASSES]
    report = changed(
        task="multi-label", per_class=classes, warnings=["SIMULATED DATA: none is real.", "LEAKY SPLIT: too good."],
        thresholds={"method": "per_class_f1", "role": "calibration", "fallback": "argmax", "rows": []}, settings={},
    )  # fmt: skip
    text = model_card.card(report, config(**{"data.split": "study"}), {})
    assert text.count("SIMULATED DATA") == 2 and "**SIMULATED DATA: none is real.**" in text
    assert "trying the software, nothing else" in text and "Intended: research" not in text
    assert "gives any number of 2 classes" in text and "gives one of them to anything" not in text
    assert "which ignores groups" in text and "never stand in two roles" not in text
    assert "the best F1 of each, fitted on calibration); an example that reaches none gets that of" in text
    assert "| 0.700 | 0.250 |" in text and "rival" not in text and "One seed" in text


def test_segmentation_and_nothing_scored():
    rows = [{"class": "lung", "dice": estimate(0.9), "iou": estimate(0.8), "support": 60}]
    headline = [{"name": "dice", "n_examples": 60, "n_groups": 60} | estimate(0.9)]
    report = changed(task="segmentation", per_class=rows, headline=headline, baselines=[], settings={})
    text = model_card.card(report, config(), {})
    assert "finds the pixels of 1 class: lung" in text and "| lung | 60 | 0.900 [0.880, 0.920] |" in text
    assert "A pixel gets the likeliest class" in text and "temperature" not in "".join(lines_of(text, "Decisions"))
    assert "Every test example is a group of its own" in text
    report = {key: value for key, value in changed().items() if key not in ("headline", "per_class", "baselines",
                                                                         "calibration", "settings")}  # fmt: skip
    report["provenance"] = {"roles": [row for row in report["provenance"]["roles"] if row["role"] == "train"]}
    text = model_card.card(report, config(), {})
    assert lines_of(text, "Results on test") == ["Nothing was scored: the run has no predictions of test."]
    for name in ("parameters", "bytes", "flops", "steps", "best_step"):
        del report["trials"][1][name]
    assert "- `simple_cnn`.\n" in model_card.card(report, config(), {})
    assert "no role test: nothing was scored" in text and "no role calibration" in text and "## Decisions" not in text


def test_folds_a_perfect_score_and_a_rival_that_is_as_good():
    report = changed()
    report["trials"] = [row | {"id": f"wide-fold{k}", "seed": 1, "setting": "wide"} for k, row in
                        enumerate(report["trials"][:3])]  # fmt: skip
    report["headline"] = [{"name": "accuracy", "n_examples": 60, "n_groups": 60, "value": 1.0, "low": 1.0, "high": 1.0}]
    report["settings"]["rows"][1]["difference"] |= {"value": -0.01, "high": 0.02}
    text = model_card.card(report, config(), {})
    assert "It is 3 trials, one for each fold, of which the first is `wide-fold0`" in text
    assert "every labelled example is test once" in text and "means over the folds" in text
    assert "**It is not shown to be better than majority class**" in text
    assert "No error among 60 groups" in text and "up to 5.0% of groups are wrong" in text


def test_overrides_options_and_captions():
    report = changed()
    report["trials"][1]["overrides"] |= {"model.options.widths": [4, 8], "data.augment.dihedral": True,
                                         "loss.options.gamma": 2.0, "data.augment.scale": [0.9, 1.1]}  # fmt: skip
    text = model_card.card(report, config(), {}, vectors=True)
    assert "Its options: widths (4, 8)." in text and "(gamma 2)" in text
    assert "Augmentation: dihedral, scale (0.9, 1.1)." in text
    assert "vectors of gene expression (scaling gene, layout alphabetical), drawn on 24 x 24 pixels" in text
    settings = config(**{"model.name": "captioned", "data.text.tokenizer": "words"})
    settings["model"]["options"] = {"image": "", "text": "bag"}
    text = model_card.card(REPORT, settings, {})
    assert "Input: captions through the tokeniser words." in text and "pixels" not in text


def test_names_cannot_act_as_markup():
    assert markdown.text("a|b\n# <c> [d](e) *f* `g` \\h") == "a\\|b \\# \\<c\\> \\[d\\](e) \\*f\\* \\`g\\` \\\\h"
    report = changed(title="x\n## Intended use")
    text = model_card.card(report, config(), {})
    assert text.count("\n## Intended use") == 1


def test_the_command_and_damaged_folders(tmp_path, capsys):
    with pytest.raises(UserError, match="is missing, so there is no finished run"):
        model_card.write(tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config()))
    for content, words in (("{", "not readable JSON"), ("[]", "no JSON object"), ("{}", "not the report of a run")):
        (tmp_path / "report" / "metrics.json").write_text(content)
        with pytest.raises(UserError, match=words):
            model_card.write(tmp_path)
    assert not (tmp_path / "report" / "model_card.md").exists()
    (tmp_path / "report" / "metrics.json").write_text(json.dumps(REPORT))
    for step, meta in (("1", "no JSON"), ("2", '{"dataset": "c0ffee"}')):
        (tmp_path / "checkpoints" / "t" / step).mkdir(parents=True)
        (tmp_path / "checkpoints" / "t" / step / "meta.json").write_text(meta)
    assert model_card.main([f"--workdir={tmp_path}"]) == 0
    assert "model_card.md" in capsys.readouterr().out
    text = (tmp_path / "report" / "model_card.md").read_text(encoding="utf-8")
    assert "`c0ffee`" in text
    assert model_card.main([f"--workdir={tmp_path}"]) == 0
    assert (tmp_path / "report" / "model_card.md").read_text(encoding="utf-8") == text
