"""Does the command turn a finished run into pictures, maps, tables and a page, and refuse what it cannot do?"""

import html
import json

import jax
import numpy as np
import pytest

from configs import hpa
from input_pipeline.cli import UserError
from research import study
from research.evaluation import predictions, score
from research.explain import __main__ as command
from research.explain import report
from research.report import tables
from research.run_folder import RunFolder
from research.training import inference, sharding
from research.training.loop import Training
from research.training.signals import StopSignal


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    """A run folder with one finished trial of three steps, its trial and its predictions of test."""
    config = hpa.get_config("smoke").unlock()
    config.update_from_flattened_dict({
        "epochs": 0.0, "steps": 3, "batch_size": 20, "image_size": 16, "evaluate_every": "3 steps",
        "checkpoint_every": "3 steps", "data.dir": str(simulated.directory), "evaluation.tta": "none",
    })  # fmt: skip
    folder = RunFolder(tmp_path_factory.mktemp("explain") / "run", config.lock())
    (trial,) = study.expand(config, simulated)
    mesh, stop = sharding.make_mesh(jax.devices()[:1]), StopSignal()
    training = Training(trial, folder.path, mesh, stop)
    training.run()
    indices = trial.dataset.indices("test")
    logits = inference.Predictor(trial, mesh, stop)(dict(training.best().variables), indices)
    (folder.path / "predictions").mkdir(exist_ok=True)
    predictions.write(
        folder.path / "predictions" / f"{trial.name}_test.csv", trial.dataset.ids[indices],
        trial.dataset.groups[indices], trial.dataset.labels[indices], logits, trial.dataset.class_names,
    )  # fmt: skip
    row = {"id": trial.name, "status": "finished", "seed": 0, "overrides": {}, "parameters": 1, "bytes": 4,
           "setting": trial.setting, "stage": "search"}  # fmt: skip
    tables.write_trials_csv(folder.path / "trials.csv", [row | {"metrics": {"validation": {config.selection: 0.5}}}])
    return folder.path, trial, mesh


@pytest.fixture
def explain(run, monkeypatch):
    """Calls the command on the run, on one device, without its signal handlers."""
    monkeypatch.setattr(StopSignal, "install", lambda self: None)
    whole = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda devices=None: whole(devices or jax.devices()[:1]))
    return lambda *arguments: command.main([f"--workdir={run[0]}", *arguments])


def test_what_is_written(run, explain, tmp_path, capsys):
    folder, trial, _ = run
    out = tmp_path / "out"
    methods = "--method=gradcam,integrated_gradients"
    quick = ("--count=5", "--steps=4", "--curve_steps=4", f"--out={out}", "--batch_size=4")
    assert explain(methods, *quick, "--layer=block_1") == 0
    ids = set(predictions.read(folder / "predictions" / f"{trial.name}_test.csv").ids)
    columns, rows = tables.tabular.read_csv(out / "faithfulness.csv")
    assert {row["method"] for row in rows} == {"gradcam", "integrated_gradients", "random order"}
    assert {row["id"] for row in rows} <= ids and len(rows) == 15
    for name in ("gradcam", "integrated_gradients"):
        with np.load(out / "maps" / f"{name}.npz") as saved:
            assert list(saved["ids"]) == [row["id"] for row in rows if row["method"] == name]
            assert saved["maps"].shape[0] == 5 and np.isfinite(saved["maps"]).all()
            assert json.loads(str(saved["settings"]))["layer"] == "block_1"
            assert ("completeness_gap" in saved) == (name != "gradcam")
    assert sorted(p.name for p in (out / "pictures").iterdir()) == [f"case_{n:03d}.png" for n in range(5)]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "SIMULATED DATA" in page and all(html.escape(row["id"]) in page for row in rows)
    assert (out / "randomization.csv").exists()
    # A second call replaces everything, also what it does not write again.
    assert explain("--method=occlusion", "--count=2", f"--out={out}", "--checks=none", "--window=5") == 0
    assert [p.name for p in (out / "maps").iterdir()] == ["occlusion.npz"] and len([*out.iterdir()]) == 4
    assert sorted(p.name for p in (out / "pictures").iterdir()) == ["case_000.png", "case_001.png"]


def test_layers_are_listed(explain, capsys):
    assert explain("--method=layers") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("backbone/block_1_1/conv  16 x 16 x ") for line in lines)
    assert any(line.startswith("block_1  ") and line.endswith("feature map") for line in lines)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--method=lime"], "--method=lime is unknown; choose of gradcam"),
        (["--layer=block_9"], "no layer block_9; choose of backbone/block_1_1/conv"),
        (["--method=occlusion", "--layer=block_1"], "--layer=block_1 is of no use to occlusion"),
        (["--trial=other"], "no trial other"),
        (["--images=nowhere"], "--images=nowhere is neither a role"),
        (["--class=unicorn"], "no class 'unicorn'"),
        (["--checks=all"], "--checks=all is unknown"),
        (["--count=-1"], "--count=-1 is impossible"),
        (["--batch_size=0"], "--batch_size=0 is impossible"),
        (["--noise=nan"], "--noise=nan is impossible"),
    ],
)
def test_mistakes(explain, tmp_path, arguments, words):
    with pytest.raises(UserError, match=words):
        explain(f"--out={tmp_path / 'out'}", *arguments)
    assert not (tmp_path / "out").exists()


def test_folders_of_something_else(run, explain, tmp_path):
    with pytest.raises(UserError, match="is a run folder"):
        explain(f"--out={run[0]}")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match="holds files of something else"):
        explain(f"--out={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_figures_of_the_report(run):
    folder, trial, _ = run
    scored = score.score(folder, [trial.name], trial.dataset.multi_label, trial.config.evaluation)
    found = report.figures(folder, trial, scored, StopSignal(), most=3)
    assert [figure["path"] for figure in found] == [f"explained_{n}.png" for n in range(3)]
    assert all((folder / "report" / figure["path"]).exists() for figure in found)
    assert all(figure["section"] == "explanations" and "Grad-CAM" in figure["caption"] for figure in found)
    assert any((folder / "tensorboard" / trial.name / "test").iterdir())


def test_a_report_without_checkpoints(run, tmp_path, capsys):
    folder, trial, _ = run
    scored = score.score(folder, [trial.name], trial.dataset.multi_label, trial.config.evaluation)
    assert report.figures(tmp_path, trial, scored, StopSignal()) == []
    assert "No explanations in the report: " in capsys.readouterr().out and not any(tmp_path.iterdir())
