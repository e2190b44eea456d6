"""Does a model that segments train through the same steps, loader and evaluation as one that classifies?"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import lung_masks
from input_pipeline import augment, images, loader, prepare, simulate_lungs
from input_pipeline.cli import UserError
from input_pipeline.dataset import open_dataset
from input_pipeline.decoding import Decoder
from input_pipeline.sampling import Sampler
from research import outcome, study
from research.evaluation import segmentation
from research.losses import registry
from research.models.classifier import Output
from research.training import build, sharding, state, steps, task
from research.training.loop import Training
from research.training.signals import Stopped, StopSignal


def configure(**changes):
    """The smoke preset with a few steps; keys are written with double underscores."""
    config = lung_masks.get_config("smoke").unlock()
    config.update_from_flattened_dict({
        "steps": 6, "batch_size": 6, "image_size": 21, "evaluate_every": "3 steps", "checkpoint_every": "3 steps",
        "log_every": "2 steps", "model.options.encoder_options.widths": (4, 6), "model.options.decoder": (4,),
    })  # fmt: skip
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config.lock()


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return simulate_lungs.lung_masks(tmp_path_factory.mktemp("chests") / "raw", 40, size=48, seed=1, workers=1)


@pytest.fixture(scope="module")
def chests(raw):
    """A prepared data set of 40 simulated chests with lung masks."""
    prepare.prepare("lung_masks", raw, raw.parent / "prepared", workers=1)
    return open_dataset(raw.parent / "prepared")


def train(config, dataset, folder, devices=1):
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    trial = study.expand(config, dataset)[0]
    study.check(trial)
    training = Training(study.SharedImages().attach(trial, mesh), folder, mesh, StopSignal())
    training.run()
    return training


@pytest.fixture(scope="module")
def trained(chests, tmp_path_factory):
    return train(configure(), chests, tmp_path_factory.mktemp("trained"))


def finish(training):
    predictor = outcome.predictor_of(training.trial, training.mesh, StopSignal())
    best = training.best()
    row = outcome.finish(training.trial, best, training.meta["history"], training.folder, predictor)
    return best, row


def test_the_history_holds_dice_and_the_checkpoint_follows_it(trained):
    validation = [row for row in trained.meta["history"] if row["split"] == "validation"]
    assert [row["step"] for row in validation] == [3, 6]
    assert {"loss", "dice", "iou", "pooled_dice", "pooled_iou"} <= set(validation[0])
    assert trained.controls.best == max(row["dice"] for row in validation)
    shown = [row for row in trained.meta["history"] if row["split"] == "train"]
    assert all(0 <= row["accuracy"] <= 1 and 0 <= row["pooled_dice"] <= 1 for row in shown)


def test_predictions_equal_a_forward_pass_of_our_own(trained):
    """CSV, PNGs and metrics of `test`, from logits of one image at a time and masks read from the records."""
    best, row = finish(trained)
    trial, folder = trained.trial, trained.folder / "predictions"
    dataset = trial.dataset
    indices = dataset.indices("test")
    saved = segmentation.read(folder / f"{trial.name}_test.csv")
    assert saved.ids == tuple(dataset.ids[indices]) and saved.groups == tuple(dataset.groups[indices])
    assert saved.class_names == ("lung",)
    network, normalize = build.build_model(trial), build.build_normalize(trial)
    decoder = Decoder(dataset, 21, 1, "stretch")
    losses, counts = [], []
    for place, index in enumerate(indices):
        image, truth = np.empty((21, 21, 1), np.uint8), np.empty((21, 21), np.uint8)
        decoder.read(index, image)
        decoder.read_segmentation(index, truth)
        logits = np.asarray(steps.eval_step(network, normalize, best.variables, jnp.asarray(image[None])))
        mask = (logits[0, ..., 0] > 0).astype(np.uint8)
        stored = images.decode(saved.files[place].read_bytes())[..., 0]
        assert (stored != 255 * mask).mean() < 0.01  # logits of zero up to rounding
        counts.append(segmentation.counts((stored > 0).astype(np.uint8)[None], truth[None], 1)[0])
        losses.append(float(registry.get("bce_dice").fn(logits, truth[None, ..., None].astype(np.float32))[0]))
    np.testing.assert_array_equal(saved.pixels, counts)
    expected = segmentation.evaluate(np.array(counts))
    assert {name: row["metrics"]["test"][name] for name in expected} == expected
    assert row["metrics"]["test"]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_images_and_masks_move_together_through_loader_and_step(tmp_path):
    """Images that are their own masks: after every kind of motion the target is still where the image is bright."""
    rng = np.random.default_rng(0)
    for number in range(12):
        y, x = np.mgrid[:60, :60]
        centre, radius = rng.uniform(18, 42, 2), rng.uniform(9, 16, 2)
        disc = (((np.stack([y, x], -1) - centre) / radius) ** 2).sum(-1) < 1
        data = images.encode_png((255 * disc).astype(np.uint8)[..., None])
        for part in ("cxr", "masks"):
            (tmp_path / "raw" / part).mkdir(parents=True, exist_ok=True)
            (tmp_path / "raw" / part / f"{number}.png").write_bytes(data)
    prepare.prepare("lung_masks", tmp_path / "raw", tmp_path / "out", near_duplicates=False)
    dataset = open_dataset(tmp_path / "out")
    moves = {"flip_horizontal": True, "rotation": 40.0, "scale": (0.7, 1.3), "translate": 0.2, "shear": 20.0,
             "rotation_fill": "constant"}  # fmt: skip
    for settings in (moves, {"dihedral": True}, {"resized_crop": (0.4, 1.0)}, {"cutmix": 1.0}):
        parts = steps.StepParts(
            model=None, loss=None, class_weights=None, transformation=None, trainable=(), batch_size=7, num_classes=1,
            augment=augment.build(settings), normalize=lambda image: image / 255.0, multi_label=True,
            task=task.SEGMENTATION,
        )  # fmt: skip
        sampler = Sampler("uniform", dataset.labels, np.arange(12), 0, 0.1)
        batches = loader.train_batches(dataset, sampler, 7, 0, 2, 32, 1, segmentation=True, pad_to=4)
        prepared = jax.jit(lambda batch, key, parts=parts: steps.prepare_batch(parts, batch, key))
        for number, batch in enumerate(batches):
            batch = {name: batch[name] for name in ("image", "label", "valid", "segmentation")}
            found = prepared(batch, jax.random.key(number))
            target, image = np.asarray(found["target"][..., 0]), np.asarray(found["image"][..., 0])
            assert target.shape == (7, 32, 32) and set(np.unique(target)) <= {0.0, 1.0}
            assert (((image > 0.5) == (target > 0)).mean((1, 2)) > 0.94).all(), settings
            assert np.abs(image - batch["image"][:7, ..., 0] / 255).mean((1, 2)).max() > 0.05, settings


def test_a_batch_in_parts_has_the_gradients_of_the_whole():
    """A network without BatchNorm, in whose loss every example counts for itself."""

    class Pixels(nn.Module):
        @nn.compact
        def __call__(self, inputs, *, train):
            x = nn.relu(nn.Conv(3, (3, 3))(inputs["image"]))
            logits = nn.Conv(2, (1, 1))(x)
            return Output(logits, x, {})

    rng = np.random.default_rng(0)
    pixels, masks = rng.integers(0, 255, (6, 9, 9, 1)), rng.integers(0, 3, (6, 9, 9))
    batch = {"image": pixels.astype(np.uint8), "segmentation": masks.astype(np.uint8)}
    batch |= {"label": np.zeros(6, np.int32), "valid": np.arange(6) < 5}
    variables = Pixels().init(jax.random.key(0), {"image": jnp.zeros((1, 9, 9, 1))}, train=False)
    found = []
    for accumulate in (1, 3):
        paths = tuple(state.flatten(variables["params"]))
        transformation = optax.identity()
        parts = steps.StepParts(
            model=Pixels(), loss=registry.get("focal_tversky"), class_weights=None, transformation=transformation,
            trainable=paths, batch_size=6, num_classes=2, augment=augment.build({}), multi_label=True,
            normalize=lambda image: image / 255.0, task=task.SEGMENTATION, accumulate=accumulate,
        )  # fmt: skip
        begin = state.create(variables, 0, transformation, paths, False, 2)
        found.append(jax.jit(functools.partial(steps.train_step, parts))(begin, batch, np.float32(0.1)))
    ours, theirs = (jax.tree.map(np.asarray, (end.params, end.sums)) for end in found)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)
    assert any(np.abs(ours[0][path] - begin.params[path]).max() > 1e-4 for path in paths)


def test_devices_and_caches_agree(chests, tmp_path, trained):
    """A batch of 6 on 1 and 4 devices; decoded anew and held in memory, as in `trained`."""
    config = configure(data__cache="none")
    found = [train(config, chests, tmp_path / "one"), trained, train(config, chests, tmp_path / "four", 4)]
    assert found[0].best().state_sha256 == found[1].best().state_sha256
    losses = [[row["loss"] for row in training.meta["history"]] for training in found]
    np.testing.assert_allclose(losses[2], losses[0], rtol=2e-3)


def test_stopped_and_continued_equals_uninterrupted(chests, tmp_path, trained, monkeypatch):
    """Stopped after every second step; training, masks and ledger row are the same, bit for bit."""
    folder, starts = tmp_path / "again", 0
    (folder / "predictions").mkdir(parents=True)
    step = Training._train_one

    def train_one(self, phase, batches, done):
        step(self, phase, batches, done)
        self.stop.requested = done % 2 == 1

    monkeypatch.setattr(Training, "_train_one", train_one)
    while starts < 9:
        trial = study.SharedImages().attach(study.expand(configure(), chests)[0], trained.mesh)
        training = Training(trial, folder, trained.mesh, StopSignal())
        starts += 1
        try:
            training.run()
            break
        except Stopped:
            continue
    monkeypatch.undo()
    assert starts == 4  # the last stop comes at the evaluation
    training.stop.requested = False
    assert training.meta["done"] and training.meta["history"] == trained.meta["history"]
    (_, ours), (_, theirs) = finish(training), finish(trained)
    assert ours == theirs
    for file in (trained.folder / "predictions").rglob("*.*"):
        again = folder / "predictions" / file.relative_to(trained.folder / "predictions")
        assert file.is_dir() or again.read_bytes() == file.read_bytes()


def test_several_classes_are_decided_exclusively():
    logits = jnp.array([[[-1.0, -2.0], [3.0, 1.0], [0.5, 2.0]]])
    numbers = task.decide(logits)
    assert numbers.dtype == jnp.uint8 and numbers.tolist() == [[0, 1, 2]]
    np.testing.assert_array_equal(task.one_hot(numbers, 2), [[[0, 0], [1, 0], [0, 1]]])
    target = task.one_hot(jnp.array([[0, 1, 1]], jnp.uint8), 2)[:, None]
    found = task.SEGMENTATION.decisions(logits[:, None], target, jnp.ones((1, 1)), 2, True)
    assert found["correct"] == pytest.approx(2 / 3)
    np.testing.assert_allclose(found["tp"], [1 / 3, 0], atol=1e-7)
    np.testing.assert_allclose(found["fp"], [0, 1 / 3], atol=1e-7)
    np.testing.assert_allclose(found["fn"], [1 / 3, 0], atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss__name": "softmax_cross_entropy"}, "the model segments; set config.loss.name to one of: bce_dice"),
        ({"loss__class_weights": "balanced"}, "config.loss.class_weights is 'balanced'"),
        ({"data__cache": "device"}, "config.data.cache is 'device'.*choose 'auto', 'ram', 'none'"),
        ({"data__augment__mixup": 0.2}, "config.data.augment.mixup is 0.2"),
        ({"evaluation__tta": "flips"}, "config.evaluation.tta is 'flips'"),
        ({"model__head_pool": "max"}, "config.model.head_pool"),
        ({"selection": "accuracy"}, "config.selection is 'accuracy'.*'dice'"),
        ({"selection": "loss"}, "config.selection is 'loss'"),
        ({"schedule__plateau_metric": "macro_f1"}, "config.schedule.plateau_metric"),
        ({"search__halving__budget": 0.3}, "config.search.halving.budget"),
        ({"search__confirm_seeds": 2}, "config.search.confirm_seeds"),
        ({"model__options": {"encoder": "unet"}}, "the encoder unet segments itself"),
    ],
)
def test_mistakes_are_named(chests, changes, words):
    with pytest.raises(UserError, match=words):
        study.check(study.expand(configure(**changes), chests)[0])


def test_a_data_set_without_masks_is_refused(simulated):
    with pytest.raises(UserError, match="has no masks"):
        study.check(study.expand(configure(), simulated)[0])


def test_the_task_of_a_model():
    assert task.of("unet") is task.SEGMENTATION and task.of("resnet18") is task.CLASSIFICATION
