"""Which augmentations does a config ask for, and how are they composed on the device?

`build(config)` returns an `Augment`: a pure function of a key and a batch, to be called inside the jitted
train step. `before` works on images in 0..255: dihedral group or flips, rotation, affine, random resized crop
(composed into one map and read once), colour jitter, RandAugment or TrivialAugment. `after` works on
normalised images: erasing, mixup, cutmix.

An operation whose value is a plain 0, False or () is left out of the program. Values may be traced (an array
inside `jax.vmap` over cohort members): the operation then stays in the program, and its rate is an input.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from input_pipeline import augment_auto as auto
from input_pipeline import augment_color as color
from input_pipeline import augment_geometry as geometry
from input_pipeline import augment_mix as mixing
from input_pipeline.augment_random import PLACES, fractions, row_keys
from input_pipeline.cli import UserError
from input_pipeline.normalize import to_float

# Every key of the config with its neutral value; a key that is left out has this value.
NEUTRAL: dict[str, Any] = {
    "flip_horizontal": False,  # with probability 1/2
    "flip_vertical": False,  # with probability 1/2
    "dihedral": False,  # all eight flips and quarter turns, evenly
    "rotation": 0.0,  # greatest angle, degrees, 0..180
    "rotation_fill": "reflect",  # outside of the image, for all geometry: "reflect" or "constant" (0)
    "interpolation": "bilinear",  # of all geometry: "bilinear" or "nearest"
    "resized_crop": (),  # (least, greatest) area fraction of a random crop that is resized to the whole image
    "translate": 0.0,  # greatest shift as a fraction of the side, 0..1
    "scale": (),  # (least, greatest) zoom factor
    "shear": 0.0,  # greatest shear along x, degrees, below 90
    "brightness": 0.0,  # factor U(max(0, 1 - x), 1 + x)
    "contrast": 0.0,  # the same
    "saturation": 0.0,  # the same; three channels only
    "hue": 0.0,  # greatest turn, 0..0.5; three channels only
    "randaugment": (),  # (number of operations 1..8, magnitude 0..30)
    "trivialaugment": False,
    "erasing": 0.0,  # probability
    "erasing_area": (),  # (least, greatest) area fraction of what is erased; () = torchvision's 0.02 to 0.33
    "erasing_value": "zero",  # "zero" or "noise" (standard normal), in normalised units
    "mixup": 0.0,  # alpha of the Beta distribution
    "cutmix": 0.0,  # alpha of the Beta distribution
}
CHOICES = {
    "rotation_fill": ("reflect", "constant"),
    "interpolation": ("bilinear", "nearest"),
    "erasing_value": ("zero", "noise"),
}
GREATEST = {"rotation": 180.0, "translate": 1.0, "shear": 89.0, "hue": 0.5, "erasing": 1.0}
JITTER = ("brightness", "contrast", "saturation", "hue")
MOST_OPERATIONS = PLACES["auto"] // 2

Batch = dict[str, Any]


def build(config: Mapping[str, Any]) -> "Augment":
    """The augmentation that `config` describes.

    Args:
      config: a dict or ConfigDict with keys of `NEUTRAL`; numbers may be traced.

    Raises:
      UserError: an unknown key, a wrong type or a value outside of its range.
    """
    unknown = sorted(set(config) - set(NEUTRAL))
    if unknown:
        raise UserError(f"augment.{unknown[0]} is not an augmentation; known are {', '.join(NEUTRAL)}.")
    settings = {key: config[key] if key in config else neutral for key, neutral in NEUTRAL.items()}
    for key, value in settings.items():
        _check(key, value)
    if _on(settings["randaugment"]) and settings["trivialaugment"]:
        raise UserError("augment.randaugment and augment.trivialaugment exclude each other; switch one of them off.")
    return Augment(settings)


def _on(value: Any) -> bool:
    """Whether an operation belongs in the program: an array does, whatever its value."""
    return isinstance(value, jax.Array) or bool(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(key: str, value: Any) -> None:
    """Refuses a wrong type or value of one key with a sentence; arrays are taken as they are."""
    neutral, name = NEUTRAL[key], f"augment.{key}"
    if isinstance(neutral, bool):
        if not isinstance(value, bool):
            raise UserError(f"{name} must be True or False, not {value!r}.")
    elif isinstance(neutral, str):
        if value not in CHOICES[key]:
            raise UserError(f"{name} must be one of {', '.join(CHOICES[key])}, not {value!r}.")
    elif isinstance(neutral, tuple):
        _check_pair(key, name, value)
    elif not isinstance(value, jax.Array):
        greatest = GREATEST.get(key, float("inf"))
        if not _is_number(value) or not 0 <= value <= greatest:
            limit = f"from 0 to {greatest:g}" if key in GREATEST else "of at least 0"
            raise UserError(f"{name} must be a number {limit}, not {value!r}.")


def _check_pair(key: str, name: str, value: Any) -> None:
    """The checks of the keys that are empty or hold two numbers."""
    if not isinstance(value, (tuple, list)) or len(value) not in (0, 2):
        raise UserError(f"{name} must be () or a pair of numbers, not {value!r}.")
    if len(value) == 0:
        return
    first, second = value
    if key == "randaugment":
        if not isinstance(first, int) or isinstance(first, bool) or not 1 <= first <= MOST_OPERATIONS:
            raise UserError(f"{name} must begin with a whole number from 1 to {MOST_OPERATIONS}, not {first!r}.")
        if not isinstance(second, jax.Array) and not (_is_number(second) and 0 <= second <= auto.LAST_BIN):
            raise UserError(f"{name} must end with a magnitude from 0 to {auto.LAST_BIN}, not {second!r}.")
        return
    if any(isinstance(number, jax.Array) for number in value):
        return
    area = key in ("resized_crop", "erasing_area")
    greatest = 1.0 if area else float("inf")
    if not all(_is_number(number) for number in value) or not 0 < first <= second <= greatest:
        limit = "0 < least <= greatest <= 1" if area else "0 < least <= greatest"
        raise UserError(f"{name} must be a pair (least, greatest) with {limit}, not {value!r}.")


@dataclasses.dataclass(frozen=True, eq=False)
class Augment:
    """A composed augmentation; make it with `build`.

    A batch is a dict with `image` [B, H, W, C], `valid` bool [B] (absent = all valid), `target` float [B, K]
    (needed by mixup and cutmix) and optionally `segmentation` [B, H, W]; other entries pass through. Both
    stages may be given the same key: they use different numbers of it.
    """

    settings: Mapping[str, Any]

    def __call__(self, key: jax.Array, batch: Batch) -> Batch:
        """Both stages in a row, for images that need no normalisation between them."""
        return self.after(key, self.before(key, batch))

    def before(self, key: jax.Array, batch: Batch) -> Batch:
        """Geometry and colour. `image` uint8, uint16 or float32 in 0..255 -> float32 in 0..255."""
        names = (
            "flip_horizontal",
            "flip_vertical",
            "dihedral",
            "rotation",
            "resized_crop",
            "translate",
            "scale",
            "shear",
            *JITTER,
            "randaugment",
            "trivialaugment",
        )
        batch = {**batch, "image": to_float(batch["image"])}
        if not any(_on(self.settings[name]) for name in names):
            return batch
        fraction = fractions(row_keys(key, _valid(batch)))
        image, segmentation = self._geometry(fraction, batch["image"], batch.get("segmentation"))
        image = self._jitter(fraction, image)
        image, segmentation = self._auto(fraction, image, segmentation)
        return _replaced(batch, image=image, segmentation=segmentation)

    def after(self, key: jax.Array, batch: Batch) -> Batch:
        """Erasing, mixup and cutmix. `image` float32, normalised.

        Raises:
          UserError: mixup with a segmentation, whose class numbers cannot be blended, or mixing without
            `target`.
        """
        settings, image = self.settings, batch["image"]
        erasing, mixup, cutmix = (_on(settings[name]) for name in ("erasing", "mixup", "cutmix"))
        if not (erasing or mixup or cutmix):
            return batch
        keys = row_keys(key, _valid(batch))
        fraction = fractions(keys)
        if erasing:
            area = settings["erasing_area"] or mixing.ERASE_SCALE
            erase = mixing.draw_erase(fraction["erase"], *image.shape[1:3], settings["erasing"], area)
            noise = settings["erasing_value"] == "noise"
            image = mixing.apply_erase(image, erase, mixing.draw_noise(keys, image.shape[1:]) if noise else 0.0)
        if not (mixup or cutmix):
            return {**batch, "image": image}
        if "target" not in batch:
            raise UserError("augment.mixup and augment.cutmix mix targets, but this batch has none; set both to 0.")
        segmentation = batch.get("segmentation")
        if mixup and segmentation is not None:
            raise UserError("augment.mixup cannot blend a segmentation's classes; set it to 0 or use augment.cutmix.")
        alphas = {
            "mixup": settings["mixup"] if mixup else None,
            "cutmix": settings["cutmix"] if cutmix else None,
        }
        mix = mixing.draw_mix(fraction["mix"], _valid(batch), *image.shape[1:3], **alphas)
        image, target, segmentation = mixing.apply_mix(image, batch["target"], segmentation, mix)
        return _replaced({**batch, "target": target}, image=image, segmentation=segmentation)

    def _geometry(self, fraction, image, segmentation):
        """Dihedral group, rotation, affine, then crop: selects where they will do, otherwise one read."""
        settings = self.settings
        batch, height, width = image.shape[:3]
        flips = {name: settings[name] for name in ("flip_horizontal", "flip_vertical", "dihedral")}
        affine = any(_on(settings[name]) for name in ("rotation", "translate", "scale", "shear"))
        crop = None
        if any(flips.values()):
            dihedral = geometry.draw_dihedral(fraction["dihedral"], square=height == width, **flips)
        if not affine and not settings["resized_crop"]:
            if any(flips.values()):
                square = settings["dihedral"] and height == width
                image = geometry.apply_dihedral(image, dihedral, square=square)
                if segmentation is not None:
                    segmentation = geometry.apply_dihedral(segmentation, dihedral, square=square)
            return image, segmentation
        matrix = geometry.identity_matrix(batch)
        if affine:
            rates = {name: settings[name] for name in ("rotation", "translate", "shear")}
            rates["scale"] = settings["scale"] or (1.0, 1.0)
            matrix = geometry.affine_matrix(geometry.draw_affine(fraction["affine"], height, width, **rates))
        if any(flips.values()):
            matrix = geometry.after_dihedral(matrix, dihedral)
        if settings["resized_crop"]:
            crop = geometry.draw_crop(fraction["crop"], height, width, settings["resized_crop"])
        y, x = geometry.positions(matrix, crop, height, width)
        fill = settings["rotation_fill"]
        image = geometry.sample(image, y, x, interpolation=settings["interpolation"], fill=fill)
        if segmentation is not None:
            segmentation = geometry.sample(segmentation[..., None], y, x, interpolation="nearest", fill=fill)[..., 0]
        return image, segmentation

    def _jitter(self, fraction, image):
        names = JITTER if image.shape[-1] == 3 else ("brightness", "contrast")
        strengths = {name: self.settings[name] for name in names if _on(self.settings[name])}
        if not strengths:
            return image
        return color.apply_jitter(image, color.draw_jitter(fraction["jitter"], **strengths), hue="hue" in strengths)

    def _auto(self, fraction, image, segmentation):
        settings = self.settings
        if settings["randaugment"]:
            count, magnitude = settings["randaugment"]
            operations = auto.draw_randaugment(fraction["auto"], *image.shape[1:3], count, magnitude)
        elif settings["trivialaugment"]:
            operations = auto.draw_trivialaugment(fraction["auto"])
        else:
            return image, segmentation
        how = {"interpolation": settings["interpolation"], "fill": settings["rotation_fill"]}
        return auto.apply_operations(image, segmentation, operations, **how)


def _valid(batch: Batch) -> jax.Array:
    """bool [B]; a batch that says nothing holds no padding."""
    if "valid" in batch:
        return batch["valid"]
    return jnp.ones(batch["image"].shape[0], bool)


def _replaced(batch: Batch, *, image: jax.Array, segmentation: jax.Array | None) -> Batch:
    """The batch with a new image and, where it has one, a new segmentation."""
    changed = {**batch, "image": image}
    return changed if segmentation is None else {**changed, "segmentation": segmentation}
