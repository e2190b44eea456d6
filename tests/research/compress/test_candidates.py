"""From a finished run to candidates: what is read, made, stored, predicted and left alone the second time."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from configs import blood_cells, hpa
from input_pipeline.cli import UserError
from research import runs, study
from research.compress import __main__ as command
from research.compress import candidates, channels, finetune, network, storage
from research.evaluation import metrics as evaluation_metrics
from research.evaluation import predictions
from research.models.initialize import initialize
from research.report import tables
from research.run_folder import RunFolder
from research.training import build, inference, sharding
from research.training.checkpoint import Checkpoints
from research.training.loop import Training
from research.training.signals import StopSignal
from research.training.state import flatten

NAMES = ("hpa-int8", "hpa-channels0.5", "hpa-channels0.5-int8", "hpa-magnitude0.7")


def configure(directory):
    config = hpa.get_config("smoke").unlock()
    config.update_from_flattened_dict({
        "epochs": 0.0, "steps": 6, "batch_size": 20, "image_size": 16, "evaluate_every": "6 steps",
        "checkpoint_every": "6 steps", "optimizer.ema": 0.5, "data.dir": str(directory), "evaluation.tta": "none",
    })  # fmt: skip
    return config.lock()


@pytest.fixture(scope="module")
def finished(simulated, tmp_path_factory):
    """A run folder with one finished trial, and the variables that its training ended with."""
    path = tmp_path_factory.mktemp("compress") / "run"
    config = configure(simulated.directory)
    folder = RunFolder(path, config)
    (trial,) = study.expand(config, simulated)
    training = Training(trial, folder.path, sharding.make_mesh(jax.devices()[:1]), StopSignal())
    training.run()
    best = jax.tree.map(np.asarray, training.best().variables)
    row = {"id": trial.name, "status": "finished", "seed": 0, "overrides": {}, "parameters": 1, "bytes": 4}
    row |= {"state_sha256": "a", "latency_p50_ms": 9.0, "setting": trial.setting, "stage": "search"}
    metrics = {"metrics": {"validation": {"macro_f1": 0.5}}}
    tables.write_trials_csv(path / "trials.csv", [row | metrics])
    return path, best


@pytest.fixture
def run_command(monkeypatch):
    """Runs the command in this process, on one device, without its signal handlers; gives the ids it made."""
    made = []
    original = network.write
    monkeypatch.setattr(StopSignal, "install", lambda self: None)
    whole = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda devices=None: whole(devices or jax.devices()[:1]))
    monkeypatch.setattr(
        network, "write", lambda path, *rest: (made.append(pathlib.Path(path).stem), original(path, *rest))[1]
    )

    def run(path, *changes):
        made.clear()
        arguments = [f"--workdir={path}", "--trials=front", "--methods=int8,channels+int8,magnitude"]
        arguments += ["--sparsity=0.7", "--keep=0.5", "--finetune=3 steps", "--latency_runs=0", *changes]
        assert command.main(arguments) == 0
        return list(made)

    return run


def test_candidates_of_a_run(finished, run_command, tmp_path, simulated):
    pytest.importorskip("qwix")
    path = tmp_path / "run"
    shutil.copytree(finished[0], path)
    ledger = (path / "trials.csv").read_bytes()
    assert run_command(path) == list(NAMES)
    rows = {row["id"]: row for row in tables.read_trials_csv(path / candidates.TABLE)}
    assert tuple(rows) == NAMES and (path / "trials.csv").read_bytes() == ledger
    _check_rows(rows, path)
    _check_networks(rows, path, simulated)
    before = (path / candidates.TABLE).read_bytes()
    assert run_command(path) == [] and (path / candidates.TABLE).read_bytes() == before
    # A lost row, a damaged file: what is concerned is made again, with the same result.
    tables.write_trials_csv(path / candidates.TABLE, [row for name, row in rows.items() if name != NAMES[0]])
    file = path / "compressed" / f"{NAMES[2]}.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    assert run_command(path) == [NAMES[0], NAMES[2]]
    again = {row["id"]: row for row in tables.read_trials_csv(path / candidates.TABLE)}
    assert {name: row["metrics"] for name, row in again.items()} == {name: row["metrics"] for name, row in rows.items()}


@pytest.mark.parametrize("changes", [{"duration": "4 steps"}, {"rate": 0.5}, {"scope": "layer"}, {"gradual": False}])
def test_other_settings_make_a_candidate_again(changes, tmp_path, finished):
    settings = finetune.Settings("3 steps", 1.0)
    (chain,) = candidates.chains("magnitude", (), (0.5,))
    made = {"compression": candidates.in_words(chain, candidates.Options(settings, "scale", 0)), "parent": "a"}
    trial = runs.open_run(finished[0]).trials["hpa"]
    (tmp_path / candidates.FOLDER).mkdir()
    network.write(tmp_path / candidates.FOLDER / "x.safetensors", network.Network(trial, finished[1]), made)
    assert candidates._is_made(tmp_path, "x", made) and not candidates._is_made(tmp_path, "x", made | {"parent": "b"})
    other = candidates.Options(dataclasses.replace(settings, **changes), "scale", 0)
    assert not candidates._is_made(tmp_path, "x", made | {"compression": candidates.in_words(chain, other)})
    assert not candidates._is_made(tmp_path, "y", made)


def _check_rows(rows, path):
    parent = rows["hpa-int8"]
    assert {row["stage"] for row in rows.values()} == {"compress"} and {row["trial"] for row in rows.values()} == {
        "hpa"
    }
    assert [row["method"] for row in rows.values()] == ["int8", "channels", "channels+int8", "magnitude"]
    assert parent["int8_products"] == "3 of 3" and "int8_products" not in rows["hpa-channels0.5"]
    assert all("latency_p50_ms" not in row and row["setting"] == "hpa" for row in rows.values())
    assert rows["hpa-channels0.5"]["overrides"] == {"model.options.widths": [4, 8]}
    assert rows["hpa-magnitude0.7"]["sparsity"] == pytest.approx(0.7, abs=1e-3)
    assert rows["hpa-channels0.5"]["parameters"] < rows["hpa-magnitude0.7"]["parameters"] == parent["parameters"]
    assert rows["hpa-channels0.5-int8"]["bytes"] < rows["hpa-channels0.5"]["bytes"]
    for name, row in rows.items():
        arrays, _ = storage.read(path / "compressed" / f"{name}.safetensors")
        assert storage.stored_bytes(arrays) == row["bytes"] < row["file_bytes"]
        found = predictions.read(path / "predictions" / f"{name}_validation.csv")
        again = evaluation_metrics.evaluate(found.scores(True), found.labels(True), True)
        assert row["metrics"]["validation"]["macro_f1"] == pytest.approx(again["macro_f1"], abs=1e-6)


def _check_networks(rows, path, simulated):
    """A program that knows only the file and the row's overrides gets the saved predictions."""
    (trial,) = study.expand(configure(simulated.directory), simulated)
    loaded, _ = network.read(path / "compressed" / "hpa-channels0.5.safetensors", trial)
    changed = runs.changed_trial(trial, rows["hpa-channels0.5"]["overrides"])
    assert build.build_model(changed) == build.build_model(loaded.trial)
    indices = simulated.indices("validation")
    mesh = sharding.make_mesh(jax.devices()[:1])
    logits = inference.Predictor(changed, mesh, StopSignal())(loaded.arrays, indices)
    saved = predictions.read(path / "predictions" / "hpa-channels0.5_validation.csv")
    np.testing.assert_allclose(saved.logits, logits, atol=1e-5)
    assert list(saved.ids) == [simulated.ids[i] for i in indices]


def test_best_variables_are_loaded_and_nothing_is_trained(finished, monkeypatch):
    path, best = finished
    run = runs.open_run(path)
    monkeypatch.setattr(Training, "run", lambda self: pytest.fail("trained"))
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    found = runs.load(run.trials["hpa"], path, sharding.make_mesh(jax.devices()[:1]), StopSignal())
    assert before == {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    for kind, flat in best.items():
        assert sorted(found[kind]) == sorted(flat)
        for name, value in flat.items():
            np.testing.assert_array_equal(found[kind][name], value)


def test_members_of_a_cohort_are_loaded(simulated, tmp_path):
    """Stacked in one checkpoint, the narrower member with zeros behind its channels."""
    config = configure(simulated.directory).unlock()
    config.search.grid = (("model.options.widths", ((8, 16), (5, 9))),)
    trials = study.expand(config.lock(), simulated)
    own = []
    for number, trial in enumerate(trials):
        variables = initialize(build.build_model(trial), jax.random.key(number), 16, trial.channels)
        own.append({kind: {p: np.asarray(v) for p, v in flatten(variables[kind]).items()} for kind in variables})
    best = {}
    for kind, flat in own[0].items():
        best[kind] = {}
        for path, wide in flat.items():
            narrow = np.zeros_like(wide)
            narrow[tuple(map(slice, own[1][kind][path].shape))] = own[1][kind][path]
            best[kind][path.replace("/", ".")] = np.stack([wide, narrow])
    meta = {"trials": [trial.name for trial in trials], "members": [], "dataset": simulated.fingerprint}
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "cohort-1")
    checkpoints.save(6, {"members": {"step": np.zeros(2, np.int32)}, "best": best}, meta, 6)
    for trial, wanted in zip(trials, own, strict=True):
        found = runs.load(trial, tmp_path, None, StopSignal())
        assert {kind: sorted(flat) for kind, flat in found.items()} == {k: sorted(flat) for k, flat in wanted.items()}
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    with pytest.raises(UserError, match="no checkpoint"):
        runs.load(dataclasses.replace(trials[0], name="other"), tmp_path, None, StopSignal())
    changed = dataclasses.replace(trials[0], dataset=dataclasses.replace(simulated, fingerprint="other"))
    with pytest.raises(UserError, match="other data"):
        runs.load(changed, tmp_path, None, StopSignal())


def test_unfinished_and_missing_trainings_are_refused(finished, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(finished[0], path)
    run = runs.open_run(path)
    arguments = (run.trials["hpa"], path, sharding.make_mesh(jax.devices()[:1]), StopSignal())
    last = max((path / "checkpoints" / "hpa").iterdir(), key=lambda p: int(p.name))
    meta = json.loads((last / "meta.json").read_text())
    (last / "meta.json").write_text(json.dumps(meta | {"done": False}))
    (last / "manifest.json").unlink()
    with pytest.raises(UserError, match="damaged|not finished"):
        runs.load(*arguments)
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint"):
        runs.load(*arguments)
    assert not (path / "checkpoints").exists()
    with pytest.raises(UserError, match="there is no trial other"):
        runs.chosen(run, "hpa,other")
    rows = tables.read_trials_csv(path / "trials.csv")
    tables.write_trials_csv(path / "trials.csv", [rows[0] | {"status": "running"}])
    with pytest.raises(UserError, match="not finished"):
        runs.chosen(runs.open_run(path), "hpa")
    with pytest.raises(UserError, match="names no trial"):
        runs.chosen(runs.open_run(path), "front")


@pytest.mark.parametrize("config", [hpa.get_config("method"), hpa.get_config("normalization,smoke"),
                                    hpa.get_config("comparison"), blood_cells.get_config()])  # fmt: skip
def test_a_stored_config_is_the_config(config, tmp_path):
    RunFolder(tmp_path, config)
    found = runs.read_config(tmp_path)
    assert json.loads(found.to_json_best_effort()) == json.loads(config.to_json_best_effort())
    assert type(found.model.head) is tuple and type(found.search.trials) is tuple and found.is_locked
    RunFolder(tmp_path, found)  # the same run for the folder's own check


@pytest.mark.parametrize("content", ["", "[]", '{"seed": 0}', None])
def test_damaged_configs_are_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError):
        runs.read_config(tmp_path)


def test_chains_have_every_beginning_once():
    found = candidates.chains("channels+magnitude+int8, int8,channels", (0.5, 0.25), (0.8,))
    assert ["-".join(stage.label for stage in chain) for chain in found] == [
        "channels0.5", "channels0.5-magnitude0.8", "channels0.5-magnitude0.8-int8",
        "channels0.25", "channels0.25-magnitude0.8", "channels0.25-magnitude0.8-int8", "int8",
    ]  # fmt: skip


@pytest.mark.parametrize("methods, keep, sparsity, text", [
    ("int4", (), (), "unknown method 'int4'"), ("int8+channels", (0.5,), (), "order"), ("", (), (), "nothing to do"),
    ("channels", (), (), "nothing to do"), ("channels", (1.2,), (), "1.2"), ("channels", (0.0,), (), "0.0"),
    ("magnitude", (), (1.0,), "1.0"), ("magnitude", (), (-0.1,), "-0.1"), ("magnitude", (), (float("nan"),), "nan"),
    ("magnitude+magnitude", (), (0.5,), "each comes once"),
])  # fmt: skip
def test_impossible_chains_are_refused(methods, keep, sparsity, text):
    with pytest.raises(UserError, match=text):
        candidates.chains(methods, keep, sparsity)


@pytest.mark.parametrize("flag", ["--sparsity=half", "--finetune_rate=0", "--latency_runs=-1"])
def test_wrong_flags_are_refused(flag):
    with pytest.raises(UserError):
        command.parse(["--workdir=x", flag])


def test_fine_tuning_of_no_steps_changes_nothing_but_the_mask(finished):
    path, best = finished
    trial = runs.open_run(path).trials["hpa"]
    mesh, stop = sharding.make_mesh(jax.devices()[:1]), StopSignal()
    settings = finetune.Settings("0 steps", 1.0, gradual=False)
    same = finetune.finetune(trial, best, settings, mesh, stop)
    for name, value in best["params"].items():
        np.testing.assert_array_equal(same["params"][name], value)
    pruned = finetune.finetune(trial, best, settings, mesh, stop, sparsity=0.5)["params"]
    kernels = np.concatenate([value.ravel() for name, value in pruned.items() if name.endswith("kernel")])
    assert (kernels == 0).mean() == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(UserError, match="finetune"):
        finetune.Settings("soon", 1.0).steps(trial)


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 333])
def test_the_last_masks_come_within_the_training(steps):
    schedule = finetune.schedule_for(0.8, steps, gradual=True)
    assert schedule.end <= steps - 1 and float(schedule.sparsity(schedule.end)) == pytest.approx(0.8)
    assert bool(schedule.due(schedule.end))


def test_changed_trials_build(finished):
    trial = runs.open_run(finished[0]).trials["hpa"]
    model = build.build_model(trial)
    flat = {"params": finished[1]["params"], "batch_stats": finished[1]["batch_stats"]}
    variables, changes = channels.prune(model, flat, 0.5)
    new = runs.changed_trial(trial, json.loads(json.dumps(changes)))
    assert build.build_model(new).backbone.widths == (4, 8) and new.config.is_locked
    assert trial.config.model.options.widths == (8, 16) and new.overrides == {"model.options.widths": (4, 8)}
    assert variables["params"]["backbone/block_1_1/conv/kernel"].shape[-1] == 4
