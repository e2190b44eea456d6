"""Does the command turn a finished run into files that others can use, and leave nothing where something is wrong?"""

import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import hpa
from input_pipeline.cli import UserError
from research import runs, study
from research.evaluation import predictions
from research.export import __main__ as command
from research.export import checking, onnx_graph, program, stablehlo, weights, writing
from research.report import tables
from research.run_folder import RunFolder
from research.training import begin, inference, sharding
from research.training.loop import Training
from research.training.signals import StopSignal

pytest.importorskip("flatbuffers")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    """A run folder with one finished trial of three steps and its predictions; the trial; a mesh."""
    config = hpa.get_config("smoke").unlock()
    config.update_from_flattened_dict({
        "epochs": 0.0, "steps": 3, "batch_size": 20, "image_size": 16, "evaluate_every": "3 steps",
        "checkpoint_every": "3 steps", "data.dir": str(simulated.directory), "evaluation.tta": "none",
        "model.head": (5,), "data.normalize": "dataset",
    })  # fmt: skip
    folder = RunFolder(tmp_path_factory.mktemp("export") / "run", config.lock())
    (trial,) = study.expand(config, simulated)
    mesh, stop = sharding.make_mesh(jax.devices()[:1]), StopSignal()
    trial = study.SharedImages(folder.path).attach(trial, mesh)
    training = Training(trial, folder.path, mesh, stop)
    training.run()
    predictor, variables = inference.Predictor(trial, mesh, stop), dict(training.best().variables)
    for role in ("calibration", "test"):
        indices = trial.dataset.indices(role)
        predictions.write(
            folder.path / "predictions" / f"{trial.name}_{role}.csv", trial.dataset.ids[indices],
            trial.dataset.groups[indices], trial.dataset.labels[indices], predictor(variables, indices),
            trial.dataset.class_names,
        )  # fmt: skip
    row = {"id": trial.name, "status": "finished", "seed": 0, "overrides": {}, "parameters": 1, "bytes": 4,
           "setting": trial.setting, "stage": "search"}  # fmt: skip
    tables.write_trials_csv(folder.path / "trials.csv", [row | {"metrics": {"validation": {config.selection: 0.5}}}])
    (folder.path / "report" / "model_card.md").write_text("# Card\n", encoding="utf-8")
    return folder.path, trial, mesh


@pytest.fixture
def export(run, monkeypatch):
    """Calls the command on the run (or another folder), on one device, without its signal handlers."""
    monkeypatch.setattr(StopSignal, "install", lambda self: None)
    whole = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda devices=None: whole(devices or jax.devices()[:1]))

    def call(*arguments, workdir=run[0]):
        quick = ("--check_images=40", "--latency_runs=0")
        return command.main([f"--workdir={workdir}", *quick, *map(str, arguments)])

    return call


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """All formats of the run."""
    out = tmp_path_factory.mktemp("out") / "model"
    request = writing.Request(run[0], out, ("stablehlo", "onnx", "safetensors"), check_images=40, latency_runs=0)
    writing.run(request, run[2], StopSignal())
    return out


def test_the_folder_and_its_description(run, exported):
    _, trial, _ = run
    about = json.loads((exported / "model.json").read_text(encoding="utf-8"))
    files = ["README.md", "model.json", "model.onnx", "model.safetensors", "model.stablehlo", "model_card.md"]
    assert sorted(path.name for path in exported.iterdir()) == files
    assert about["classes"] == list(trial.dataset.class_names) and len(about["thresholds"]) == len(about["classes"])
    data = {"name": "hpa", "fingerprint": trial.dataset.fingerprint, "simulated": True, "split": "roles"}
    assert about["data"] == data
    (entry,) = about["inputs"]
    assert entry["shape"] == ["batch", 16, 16, 3] and entry["type"] == "uint8"
    assert entry["normalisation_inside"]["kind"] == "dataset" and len(entry["normalisation_inside"]["mean"]) == 3
    count = min(40, len(trial.dataset.indices("test")))
    for name in ("model.onnx", "model.safetensors", "model.stablehlo"):
        facts = about["files"][name]
        assert facts["bytes"] == (exported / name).stat().st_size
        assert facts["check"]["examples"] == count and facts["check"]["same_decisions"] == 1.0
        assert 0 <= facts["check"]["max_difference"] <= 1e-6 and 0 <= facts["check"]["max_logit_difference"] <= 1e-5
    assert about["saved_predictions"]["examples"] == count and about["saved_predictions"]["max_difference"] < 1e-6
    assert about["files"]["model.onnx"]["opset"] == 18
    import onnx

    (entry,) = onnx.load(exported / "model.onnx").metadata_props
    assert json.loads(entry.value)["classes"] == about["classes"]
    assert "SIMULATED DATA" in (exported / "README.md").read_text(encoding="utf-8")


def test_the_examples_of_the_readme_run(exported):
    """In a process of their own that cannot import this project."""
    blocks = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2 and all(len(block.splitlines()) <= 15 for block in blocks)
    refuse = "import sys; sys.modules['research'] = sys.modules['input_pipeline'] = None\n"
    for block in blocks:
        child = subprocess.run([sys.executable, "-c", refuse + block], cwd=exported, capture_output=True, text=True)
        assert child.returncode == 0, child.stderr
        assert len(child.stdout.splitlines()) == 2


def test_a_training_that_begins_with_the_weights_gives_equal_logits(run, exported, tmp_path):
    folder, trial, mesh = run
    config = ConfigDict(trial.config.to_dict())
    config.model.weights, config.data.normalize = str(exported / "model.safetensors"), "auto"
    (again,) = study.expand(config.lock(), trial.dataset)
    variables = begin.variables(again, tmp_path, StopSignal())
    indices = trial.dataset.indices("test")
    expected = predictions.read(folder / "predictions" / f"{trial.name}_test.csv").logits
    flat = {kind: weights.flatten(variables[kind]) for kind in variables}
    found = inference.Predictor(again, mesh, StopSignal())(flat, indices)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    arrays = runs.load(trial, folder, mesh, StopSignal())
    for path, value in arrays["params"].items():
        np.testing.assert_array_equal(flat["params"][path], value)


def test_one_batch_size(export, tmp_path, capsys):
    assert export("--format=onnx", "--batch_size=5", "--input=float32", f"--out={tmp_path / 'new' / 'out'}") == 0
    about = json.loads((tmp_path / "new" / "out" / "model.json").read_text(encoding="utf-8"))
    assert about["inputs"][0]["shape"][0] == 5 and about["inputs"][0]["type"] == "float32"
    assert "Finished" in capsys.readouterr().out


REFUSED = {
    "an unknown format": (("--format=tflite",), "--format=tflite is unknown; choose of stablehlo, onnx, safetensors"),
    "no format": (("--format=,",), "names nothing"),
    "an unknown platform": (("--format=stablehlo", "--platforms=cpu,gpu"), "--platforms=gpu is unknown"),
    "no cpu": (("--format=stablehlo", "--platforms=cuda"), "add it to --platforms"),
    "no batch": (("--format=onnx", "--batch_size=0"), "give any, or a number"),
    "a batch in words": (("--format=onnx", "--batch_size=all"), "give any, or a number"),
    "no images": (("--format=onnx", "--check_images=0"), "give 1 or more"),
    "a trial that is not there": (("--format=onnx", "--trial=other"), "there is no trial other"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_are_one_sentence_and_leave_nothing(name, export, tmp_path):
    arguments, words = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(words)):
        export(*arguments, f"--out={tmp_path / 'out'}")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_stays_as_it_is(export, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(UserError, match="exists already"):
            export("--format=onnx", f"--out={tmp_path / name}")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine.txt"]
    (tmp_path / "empty").mkdir()
    assert export("--format=safetensors", f"--out={tmp_path / 'empty'}") == 0
    assert (tmp_path / "empty" / "model.safetensors").exists()


def copied(run, tmp_path):
    return shutil.copytree(run[0], tmp_path / "copy")


def test_runs_that_cannot_be_exported(run, export, tmp_path):
    folder, name = copied(run, tmp_path), run[1].name
    out = f"--out={tmp_path / 'out'}"
    with pytest.raises(UserError, match="no config.json"):
        export("--format=onnx", out, workdir=tmp_path)
    calibration = folder / "predictions" / f"{name}_calibration.csv"
    content = calibration.read_bytes()
    calibration.unlink()
    with pytest.raises(UserError, match="no temperature can be fitted"):
        export("--format=onnx", out, workdir=folder)
    calibration.write_bytes(content)
    test = predictions.read(folder / "predictions" / f"{name}_test.csv")
    predictions.write(
        folder / "predictions" / f"{name}_test.csv", test.ids, test.groups, test.labels(True),
        -test.logits[:, ::-1] * 3 + 1, test.class_names,
    )  # fmt: skip
    with pytest.raises(UserError, match="one of them is not of this run"):
        export("--format=safetensors", out, workdir=folder)
    for file in folder.glob("checkpoints/*/*/state/**/*"):
        if file.is_file() and file.stat().st_size > 200:
            file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(UserError, match="damaged"):
        export("--format=onnx", out, workdir=folder)
    rows = tables.read_trials_csv(folder / "trials.csv")
    tables.write_trials_csv(folder / "trials.csv", [rows[0] | {"status": "running"}])
    with pytest.raises(UserError, match="finished"):
        export("--format=onnx", out, workdir=folder)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("change", [1e-2, np.nan])
def test_a_file_that_does_not_agree_is_not_written(change, export, tmp_path, monkeypatch):
    whole = onnx_graph.write

    def wrong(path, exported, batch, metadata):
        arrays = {kind: dict(flat) for kind, flat in exported.arrays.items()}
        arrays["params"]["head/logits/bias"] = np.asarray(arrays["params"]["head/logits/bias"]) + np.float32(change)
        return whole(path, program.dataclasses.replace(exported, arrays=arrays), batch, metadata)

    monkeypatch.setattr(onnx_graph, "write", wrong)
    with pytest.raises(UserError, match="the probabilities of model.onnx differ from the network's by"):
        export("--format=onnx", f"--out={tmp_path / 'out'}")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(export, tmp_path, monkeypatch):
    for module, name in ((stablehlo, "stablehlo"), (onnx_graph, "onnx")):
        with monkeypatch.context() as patched:
            patched.setattr(module.importlib.util, "find_spec", lambda package: None)
            with pytest.raises(UserError, match=r"pip install -e '\.\[latency\]'"):
                export(f"--format={name}", f"--out={tmp_path / 'out'}")


def test_the_difference_is_the_largest_and_nan_stays():
    class Two:
        task = "single-label"

        def decisions(self, probabilities):
            return probabilities.argmax(axis=-1)

    agreement = checking.Agreement()
    agreement.add(Two(), np.array([[0.4, 0.6], [0.9, 0.1]]), np.array([[0.45, 0.55], [0.9, 0.1]]))
    agreement.add(Two(), np.array([[0.4, 0.6]]), np.array([[0.6, 0.4]]))
    assert agreement.examples == 3 and agreement.same == pytest.approx(2 / 3)
    assert agreement.max_difference == pytest.approx(0.2)
    agreement.add_logits(np.array([[8.0, 1.0]]), np.array([[10.0, 1.0]]))
    agreement.add_logits(np.array([[0.1, 0.2]]), np.array([[0.1, 0.1]]))
    assert agreement.logits == pytest.approx(0.2)
    agreement.add(Two(), np.array([[np.nan, 0.6]]), np.array([[0.6, 0.4]]))
    agreement.add(Two(), np.array([[0.6, 0.4]]), np.array([[0.6, 0.4]]))
    assert np.isnan(agreement.max_difference)
