"""Fine-tuning in whole trainings: weights, their preprocessing and their record, frozen phases, gradual unfreezing."""

import dataclasses
import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research import settings, study
from research.models.call_order import call_order
from research.training import build, freezing, sharding, start_weights
from research.training.loop import Training
from research.training.phases import phases
from research.training.signals import Stopped, StopSignal
from tests.test_trainings import configure, train

CAFFE = {"kind": "caffe", "mean": [103.939, 116.779, 123.68], "std": [1.0, 1.0, 1.0]}


@dataclasses.dataclass
class Plan:
    """Stands for `research.models.pretrained`'s: a file of bytes whose sum fills all kernels of the backbone."""

    path: pathlib.Path
    variant: str = ""
    preprocessing: dict | None = dataclasses.field(default_factory=lambda: CAFFE)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def source(self) -> str:
        return f"the test's file {self.path.name}"

    def load(self, model, variables, modules):
        assert modules[-1] == "head/logits"
        value = sum(self.path.read_bytes()) / 1e4

        def fill(path, leaf):
            names = [key.key for key in path]
            if names[1] == "head" or names[-1] != "kernel":
                return leaf
            return leaf + value * jnp.sign(leaf)

        return jax.tree_util.tree_map_with_path(fill, variables), {"loaded": 2, "replaced_head": ["head/logits"]}


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file of weights, and a reader for it in the place of the real one."""
    file = tmp_path / "simple_cnn.weights"
    file.write_bytes(b"weights")

    def read(name, variant, path):
        if not pathlib.Path(path).exists():
            raise UserError(f"There is no file {path}.")
        return Plan(pathlib.Path(path))

    monkeypatch.setattr(start_weights, "read_plan", read)
    return file


def test_weights_come_in_and_their_preprocessing_is_used_and_recorded(simulated, tmp_path, weights, capsys):
    config = configure(steps=2, model__weights=str(tmp_path / "{name}.weights"), data__normalize="auto")
    (trial,) = study.expand(config, simulated)
    study.check(trial)
    study.announce(config, simulated, [trial], tmp_path)
    assert "Model simple_cnn: the test's file simple_cnn.weights; normalisation caffe" in capsys.readouterr().out
    image = jnp.full((1, 2, 2, 3), 100, jnp.uint8)
    np.testing.assert_allclose(build.build_normalize(trial)(image)[0, 0, 0], 100 - np.array(CAFFE["mean"]), rtol=1e-6)
    training = train(config, simulated, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "weights.json").read_text())["hpa"]
    assert record["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert record["preprocessing"] == CAFFE and record["report"]["replaced_head"] == ["head/logits"]
    plain = train(configure(steps=2, data__normalize="caffe"), simulated, tmp_path / "plain")
    kernel = "backbone/block_1_1/conv/kernel"
    assert np.abs(training.state.params[kernel]).mean() > np.abs(plain.state.params[kernel]).mean() + 0.05


def test_a_frozen_phase_moves_the_head_alone(simulated, tmp_path, weights):
    stretches = ({"name": "head", "steps": 3, "train": "head"}, {"steps": 3, "freeze": ("first 1 block",)})
    config = configure(steps=0, phases=stretches, model__weights=str(weights), data__normalize="caffe",
                       checkpoint_every="1 steps", evaluate_every="3 steps", optimizer__ema=0.0)  # fmt: skip
    trained = []
    training = train(config, simulated, tmp_path / "run")
    for phase in training.phases:
        trained.append(freezing.trainable(training.layers, phase.freeze, phase.train))
    assert {path.split("/")[0] for path in trained[0]} == {"head"}
    fresh = Training(training.trial, tmp_path / "fresh", training.mesh, StopSignal())
    (tmp_path / "fresh").mkdir(exist_ok=True)
    fresh._initialize(None)
    for name in ("params", "batch_stats"):
        before, after = getattr(fresh.state, name), getattr(training.state, name)
        same = {path for path in before if np.array_equal(before[path], after[path])}
        assert {path.split("/")[1] for path in same} == {"block_1_1"} and same == {p for p in before if "block_1" in p}
    moments = [leaf for leaf in jax.tree.leaves(training.state.opt_state) if leaf.ndim]
    assert len(moments) == 2 * len(trained[1])


def test_a_run_goes_on_without_the_file_and_notices_another(simulated, tmp_path, weights, monkeypatch):
    """Stopped in the second phase, the weights' file gone: the same end, to the bit."""
    stretches = ({"steps": 4, "train": ("head",), "batch_size": 16}, {"steps": 4, "learning_rate": 1e-4})
    config = configure(steps=0, phases=stretches, model__weights=str(weights), data__normalize="auto")
    whole = train(config, simulated, tmp_path / "whole").best().state_sha256
    original, stop = Training._train_one, StopSignal()

    def stopping(self, phase, batches, done):
        original(self, phase, batches, done)
        stop.requested = self.meta["phase"] == 1 and done == 1

    folder = tmp_path / "stopped"
    (folder / "predictions").mkdir(parents=True)
    mesh = sharding.make_mesh(jax.devices()[:1])
    (trial,) = study.expand(config, simulated)
    monkeypatch.setattr(Training, "_train_one", stopping)
    with pytest.raises(Stopped):
        Training(study.SharedImages().attach(trial, mesh), folder, mesh, stop).run()
    monkeypatch.setattr(Training, "_train_one", original)

    content = weights.read_bytes()
    weights.write_bytes(b"others")
    records = start_weights.read_records(folder)
    with pytest.raises(UserError, match="have changed since this run began"):
        study.expand(config, simulated, records)
    weights.unlink()
    with pytest.raises(UserError, match="There is no file"):
        study.expand(config, simulated)  # of a new run
    (trial,) = study.expand(config, simulated, records)
    assert trial.start.preprocessing == CAFFE
    again = Training(study.SharedImages().attach(trial, mesh), folder, mesh, StopSignal())
    again.run()
    assert again.best().state_sha256 == whole
    weights.write_bytes(content)
    assert study.expand(config, simulated, records)[0].start.sha256 == records["hpa"]["sha256"]


def test_gradual_unfreezing(simulated, tmp_path, weights):
    config = configure(
        steps=9, unfreeze__groups=2, unfreeze__every="2 steps", model__weights=str(weights), data__normalize="auto"
    )
    stretches = phases(config, 120)
    assert [(p.name, p.length.steps, p.train) for p in stretches] == [
        ("head", 2, ("head",)),
        ("head and last 1 of 2 groups", 2, ("head", "last 1 of 2 groups")),
        ("all layers", 5, ()),
    ]
    training = train(config, simulated, tmp_path / "run")
    counts = [len(freezing.trainable(training.layers, p.freeze, p.train)) for p in stretches]
    assert counts == [2, 5, 8] and training._step() == 9
    without = phases(configure(steps=9, unfreeze__groups=2, unfreeze__every="2 steps"), 120)
    assert [(p.name, p.length.steps) for p in without] == [("training", 9)]


def test_a_file_of_weights_for_other_classes(simulated, tmp_path):
    """The real reader: a safetensors file of the same network for five classes, whose images were 0..255."""
    from research.models import pretrained, registry
    from research.models.initialize import initialize
    from research.models.pretrained.export import export

    model = registry.create("simple_cnn", num_classes=5, widths=(8, 16))
    variables = initialize(model, jax.random.key(7), 24, 3)
    modules, _ = call_order(model, 24, 3)
    file = tmp_path / "five.safetensors"
    export(file, registry.find("simple_cnn")[0], "", variables, modules, "own", {"preprocessing": {"kind": "raw"}})
    stretches = ({"steps": 2, "train": ("head",)},)
    config = configure(steps=0, phases=stretches, model__weights=str(file), data__normalize="auto")
    training = train(config, simulated, tmp_path / "run")
    for path, value in freezing.flatten(variables["params"]["backbone"]).items():
        np.testing.assert_array_equal(training.state.params[f"backbone/{path}"], value)
    record = start_weights.read_records(tmp_path / "run")["hpa"]
    assert record["preprocessing"] == {"kind": "raw"} and record["sha256"] == pretrained.read(file).sha256
    assert record["report"]["replaced_head"] and not record["report"]["adapted_stem"]
    assert training.state.params["head/logits/kernel"].shape == (16, 10)


def test_unknown_preprocessing_is_asked_for(simulated, weights, monkeypatch):
    plan = Plan(weights, preprocessing=None)
    monkeypatch.setattr(start_weights, "read_plan", lambda *_: plan)
    (trial,) = study.expand(configure(model__weights=str(weights)), simulated)
    with pytest.raises(UserError, match="config.data.normalize"):
        study.check(trial)
    (trial,) = study.expand(configure(model__weights=str(weights), data__normalize="raw"), simulated)
    study.check(trial)


def test_preprocessing_of_the_weights_for_other_channels(simulated, weights, monkeypatch):
    imagenet = {"kind": "fixed", "mean": [0.1, 0.2, 0.6], "std": [0.2, 0.2, 0.5]}
    monkeypatch.setattr(start_weights, "read_plan", lambda *_: Plan(weights, preprocessing=imagenet))
    (trial,) = study.expand(configure(model__weights=str(weights), data__channels=1), simulated)
    image = jnp.full((1, 2, 2, 1), 153, jnp.uint8)
    np.testing.assert_allclose(build.build_normalize(trial)(image), (0.6 - 0.3) / 0.3, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"phases": ({"steps": 2, "freeze": ("bakbone",)},)}, "'bakbone' names no layer.*similar"),
        ({"phases": ({"steps": 2, "freeze": ("^bakbone",)},)}, "'\\^bakbone' matches no parameter"),
        ({"phases": ({"steps": 2, "freeze": ("head",), "train": ("head",)},)}, "both freeze and train"),
        ({"phases": ({"steps": 2, "train": 3},)}, "phases\\[0\\].train is 3"),
        ({"phases": ({"steps": 2, "frozen": "head"},)}, "unknown key 'frozen'"),
        ({"phases": ({"steps": 2},), "unfreeze__groups": 1}, "set one of them"),
        ({"steps": 4, "unfreeze__groups": 2, "unfreeze__every": "2 steps"}, "2 groups every 2 steps"),
        ({"steps": 9, "unfreeze__groups": 3, "unfreeze__every": "2 steps"}, "2 blocks make no 3 groups"),
        ({"optimizer__rates": (("heat", 2.0),)}, "'heat' names no layer"),
        ({"optimizer__l2": (("heat", 2.0),)}, "'heat' names no layer"),
        ({"optimizer__l2": ("head", 2.0)}, "config.optimizer.l2"),
        ({"optimizer__layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"data__normalize": "imagenet"}, "choose one of auto, fixed"),
        ({"model__head_pool": "sum"}, "config.model.head_pool is 'sum'; choose one of average, max, flatten"),
        ({"model__head_dropout_at": "all"}, "choose one of every, first, last"),
        ({"model__variant": "timm", "model__weights": ""}, "has no variant 'timm'"),
        ({"unfreeze__groups": -1}, "unfreeze.groups is -1"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(simulated, weights, changes, words):
    defaults = {"steps": 0 if "phases" in changes else 4, "model__weights": str(weights)}
    with pytest.raises(UserError, match=words):
        config = configure(**(defaults | changes))
        settings.validate(config)
        study.check(study.expand(config, simulated)[0])


def test_the_comparison_preset_expands_and_its_trials_can_be_built():
    """Four backbones × two batch sizes; with smoke after it, small images and a few steps for the same backbones."""
    from configs import hpa

    for presets in ("comparison", "comparison,smoke"):
        config = hpa.get_config(presets)
        rows = [(trial["model.name"], trial["batch_size"]) for trial in config.search.trials]
        assert len(set(rows)) == 8 and len({name for name, _ in rows}) == 4
        assert config.image_size >= 75 and not config.model.options
        settings.validate(config)
        for trial in config.search.trials:
            changed = config.copy_and_resolve_references()
            changed.unlock().update_from_flattened_dict({k: v for k, v in trial.items() if k != "name"})
            assert [p.batch_size for p in phases(changed, 15389)] == [trial["batch_size"]] * (len(config.phases) or 1)
