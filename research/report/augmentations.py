"""What does the augmentation of a run do to its training images: each operation alone, then all of them together?"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import augment, plotting
from input_pipeline.loader import eval_batches
from research.training.build import Trial

_IMAGES = 2
_STYLE = ("rotation_fill", "interpolation", "erasing_value", "erasing_area")  # how, not whether
_WORDS = {
    "flip_horizontal": "mirrored: half of them",
    "flip_vertical": "upside down: half of them",
    "dihedral": "flips and quarter turns",
    "rotation": "rotation up to {:g}°",
    "resized_crop": "crop of {:.0%} to {:.0%}, resized",
    "translate": "shift up to {:.0%}",
    "scale": "zoom {:g} to {:g}",
    "shear": "shear up to {:g}°",
    "brightness": "brightness ± {:.0%}",
    "contrast": "contrast ± {:.0%}",
    "saturation": "saturation ± {:.0%}",
    "hue": "hue up to ± {:.0%} of a turn",
    "randaugment": "RandAugment, {} of magnitude {:g}",
    "trivialaugment": "TrivialAugment",
    "erasing": "erasing: {:.0%} of them",
    "mixup": "mixup, α {:g}",
    "cutmix": "CutMix, α {:g}",
}


def operations(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What `config.data.augment` switches on: words -> the settings of that operation alone."""
    style = {key: settings[key] for key in _STYLE if key in settings}
    return {
        words.format(*(value if isinstance(value, tuple | list) else [value])): {key: value, **style}
        for key, words in _WORDS.items()
        if (value := settings.get(key))
    }


def draw(path: pathlib.Path, trial: Trial, count: int = 6) -> bool:
    """Draws two training images as they are read, a row for each operation alone, and one for all of them together.

    Every picture is a draw of its own, by the functions that the training uses. Erased and mixed images are shown in
    the units of pixels, where what is erased is the middle of the range.

    Args:
      path: the PNG to write.
      trial: whose images and `config.data.augment` are shown.
      count: draws in a row, half of each image.

    Returns:
      False, without a file, where nothing is switched on or the examples are no images.
    """
    settings = trial.config.data.augment.to_dict()
    alone = operations(settings)
    indices = trial.train_indices
    if not alone or trial.picture is not None or not len(indices):
        return False
    chosen = indices[np.linspace(0, len(indices) - 1, min(_IMAGES, len(indices))).round().astype(np.int64)]
    batches = eval_batches(
        trial.dataset, chosen, len(chosen), trial.config.image_size, trial.channels,
        threads=trial.threads, resize=trial.config.data.resize, cache=trial.cache,
    )  # fmt: skip
    read = next(iter(batches))["image"][: len(chosen)]
    images = np.repeat(read, -(-count // len(chosen)), axis=0)[:count]
    rows = {"as it is read": images}
    together = {"all together": settings} if len(alone) > 1 else {}
    for number, (name, own) in enumerate((alone | together).items()):
        rows[name] = _augmented(own, images, jax.random.fold_in(jax.random.key(trial.config.seed), number))
    pictures = [image for row in rows.values() for image in row]
    title = f"Augmentation of {trial.dataset.name} at {trial.config.image_size} px"
    plotting.montage(pictures, [""] * len(pictures), path, len(images), title, list(rows), cell=1.0)
    return True


def _augmented(settings: Mapping[str, Any], images: np.ndarray, key: jax.Array) -> np.ndarray:
    """Both stages of an augmentation on images `[n, H, W, C]`: float32 in 0..255."""
    chosen = augment.build(settings)
    batch = {"image": jnp.asarray(images), "target": jnp.eye(len(images)), "valid": jnp.ones(len(images), bool)}

    @jax.jit
    def both(batch):
        batch = chosen.before(key, batch)
        # The second stage writes 0 and noise of deviation 1, so it needs values around 0.
        return 127.5 + 127.5 * chosen.after(key, {**batch, "image": batch["image"] / 127.5 - 1.0})["image"]

    return np.asarray(both(batch))
