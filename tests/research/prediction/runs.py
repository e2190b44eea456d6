"""Tiny finished runs, made in the process of the test."""

import pathlib

import jax
import numpy as np
from PIL import Image

from research import outcome, study
from research.report import tables
from research.run_folder import RunFolder
from research.training import sharding
from research.training.loop import Training
from research.training.signals import StopSignal

STEPS = {
    "epochs": 0.0, "steps": 3, "batch_size": 14, "evaluate_every": "3 steps", "checkpoint_every": "3 steps",
    "search.trials": (), "search.grid": (), "search.repeats": 1, "early_stopping": 0, "schedule.warmup": "0 steps",
}  # fmt: skip


def finished(folder: pathlib.Path, config, dataset: pathlib.Path, **changes) -> pathlib.Path:
    """Trains the one trial of a config for three steps on one device and saves its predictions; returns the run."""
    config = config.unlock()
    config.update_from_flattened_dict(STEPS | {"data.dir": str(dataset)} | changes)
    run = RunFolder(folder, config.lock())
    (trial,) = study.expand(config, study.open_data(config, run.path))
    mesh, stop = sharding.make_mesh(jax.devices()[:1]), StopSignal()
    trial = study.SharedImages(run.path).attach(trial, mesh)
    training = Training(trial, run.path, mesh, stop)
    training.run()
    predictor = outcome.predictor_of(trial, mesh, stop)
    row = outcome.finish(trial, training.best(), training.meta["history"], run.path, predictor)
    row |= {"id": trial.name, "status": "finished", "seed": 0, "overrides": {}, "setting": trial.setting}
    tables.write_trials_csv(run.path / "trials.csv", [row | {"stage": "search"}])
    return run.path


def photographs(folder: pathlib.Path, count: int = 26) -> pathlib.Path:
    """Two classes of noise as class folders: JPEG, PNG, WebP, grey, turned and palette images of odd sizes."""
    random = np.random.default_rng(3)
    for number in range(count):
        height, width = random.integers(9, 60, 2)
        colour = random.integers(0, 255, (height, width, 3), np.uint8)
        place = folder / ("dark" if number % 2 else "light") / f"image {number:02d}"
        place.parent.mkdir(parents=True, exist_ok=True)
        colour = (colour // 3 if number % 2 else colour).astype(np.uint8)
        _save(place, colour, number % 6)
    return folder


def _save(place: pathlib.Path, colour: np.ndarray, kind: int) -> None:
    picture = Image.fromarray(colour)
    if kind == 0:
        picture.save(place.with_suffix(".png"))
    elif kind == 1:
        picture.save(place.with_suffix(".JPG"), "JPEG", quality=80)
    elif kind == 2:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(place.with_suffix(".jpeg"), quality=90, exif=exif)
    elif kind == 3:
        picture.convert("L").save(place.with_suffix(".png"))
    elif kind == 4:
        picture.quantize(17).save(place.with_suffix(".gif"))
    else:
        picture.convert("RGBA").save(place.with_suffix(".webp"), lossless=True)
