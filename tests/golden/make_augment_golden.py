"""What do torchvision v2's augmentations give for the parameters and numbers of our tests?

Runs where torch 2.13 and torchvision 0.28 are installed, never in the test suite:

    python -m venv VENV && VENV/bin/pip install torch==2.13.0 numpy pillow
    VENV/bin/pip install --no-deps torchvision==0.28.0
    VENV/bin/python tests/golden/make_augment_golden.py

Writes augment_geometry.npz, augment_color.npz, augment_auto.npz, augment_mix.npz, augment_draw.npz and
augment_captions.npz beside itself. Images are stored as uint8 [N, H, W, C] and float results as float32 in
0..255. In augment_draw.npz torchvision's own `make_params` was run on recorded uniform numbers in place of its
random generator; in augment_captions.npz whole transforms, those of the captions study with its settings.
"""

import itertools
import math
import pathlib
import unittest.mock

import numpy as np
import torch

_operators = torch.library.Library("torchvision", "DEF")
_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
for _name in (
    "qnms",
    "roi_align",
    "_roi_align_backward",
    "ps_roi_align",
    "_ps_roi_align_backward",
    "roi_pool",
    "_roi_pool_backward",
    "ps_roi_pool",
    "_ps_roi_pool_backward",
    "deform_conv2d",
    "_deform_conv2d_backward",
):
    _operators.define(f"{_name}(Tensor x) -> Tensor")

from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as F  # noqa: E402

FOLDER = pathlib.Path(__file__).parent
random = np.random.default_rng(2013)
SMALL = random.integers(0, 256, (2, 13, 17, 3)).astype(np.uint8)
# Uneven histograms, so that autocontrast and equalize have something to do; the last channel has a single
# value.
LARGE = np.stack(
    [
        (40 + 60 * random.beta(2, 5, (29, 31, 3))).astype(np.uint8),
        np.concatenate([random.binomial(255, 0.3, (29, 31, 2)), np.full((29, 31, 1), 77)], axis=-1).astype(np.uint8),
    ]
)


def tensor(images: np.ndarray) -> torch.Tensor:
    """[N, H, W, C] -> [N, C, H, W], dtype kept."""
    return torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, -3)


def real(images: np.ndarray) -> torch.Tensor:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W] in 0..1."""
    return tensor(images).to(torch.float32) / 255.0


def array(images: torch.Tensor) -> np.ndarray:
    """Back to [N, H, W, C], float results in 0..255."""
    images = images.movedim(-3, -1)
    return np.ascontiguousarray(((images * 255.0) if images.is_floating_point() else images).numpy())


def geometry() -> dict[str, np.ndarray]:
    parameters = np.array(
        [
            # angle, translate x, translate y, scale, shear x, shear y
            [33.3, 0, 0, 1.0, 0, 0],
            [-71.9, 2, -3, 1.0, 0, 0],
            [0, -4, 1, 0.83, 0, 0],
            [0, 0, 0, 1.27, 13.7, 0],
            [151.2, 3, 2, 0.71, -21.3, 8.9],
        ],
        np.float32,
    )
    result = {"images": SMALL, "affine": parameters}
    for mode in ("nearest", "bilinear"):
        interpolation = v2.InterpolationMode(mode)
        outputs = []
        for angle, x, y, scale, *shear in parameters.tolist():
            # fill=None is black, too. An explicit fill=0 multiplies bilinear border pixels by their weight
            # twice.
            outputs.append(F.affine(real(SMALL), angle, [int(x), int(y)], scale, shear, interpolation, fill=None))
        result[f"affine_{mode}"] = np.stack([array(output) for output in outputs])
        result[f"rotate_{mode}"] = array(F.rotate(real(SMALL), 27.4, interpolation))
    result["rotate_angle"] = np.array(27.4)
    flipped = F.affine(F.horizontal_flip(F.vertical_flip(real(SMALL))), 47.1, [0, 0], 1.0, [0.0, 0.0])
    result["flip_then_affine_nearest"] = array(flipped)
    boxes = np.array([[0, 0, 13, 17], [2, 5, 7, 9], [6, 1, 5, 14]])
    result["crop"] = boxes
    result["crop_bilinear"] = np.stack(
        [array(F.resized_crop(real(SMALL), *box, [13, 17], antialias=True)) for box in boxes.tolist()]
    )
    # Reflection has no torchvision operation: the same grid, read by torch with mirrored borders.
    angle = math.radians(62.5)
    y, x = torch.meshgrid(torch.arange(13.0) - 6.0, torch.arange(17.0) - 8.0, indexing="ij")
    cosine, sine = math.cos(angle), math.sin(angle)
    source = torch.stack([cosine * x - sine * y, sine * x + cosine * y], dim=-1)  # counter-clockwise, as F.rotate
    grid = (source / torch.tensor([8.5, 6.5])).expand(2, -1, -1, -1)
    for mode in ("nearest", "bilinear"):
        output = torch.nn.functional.grid_sample(
            real(SMALL), grid, mode=mode, padding_mode="reflection", align_corners=False
        )
        result[f"reflect_{mode}"] = array(output)
    result["reflect_angle"] = np.array(62.5)
    return result


def color() -> dict[str, np.ndarray]:
    result = {"images": SMALL, "large": LARGE, "factors": np.array([0.0, 0.35, 1.0, 1.8], np.float32)}
    for name in ("brightness", "contrast", "saturation", "sharpness"):
        adjust = getattr(F, f"adjust_{name}")
        for suffix, images in (("", SMALL), ("_grey", SMALL[..., :1])):
            result[name + suffix] = np.stack([array(adjust(real(images), factor)) for factor in (0.0, 0.35, 1.0, 1.8)])
    result["shifts"] = np.array([-0.5, -0.13, 0.0, 0.29], np.float32)
    flat = SMALL.copy()
    flat[:, :4] = flat[:, :4, :, :1]  # grey pixels have no hue
    result["hue_images"] = flat
    result["hue"] = np.stack([array(F.adjust_hue(real(flat), shift)) for shift in result["shifts"].tolist()])
    result["orders"] = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1], [3, 0, 1, 2]])
    result["strengths"] = np.array([1.6, 1.4, 0.5, 0.21], np.float32)
    adjusts = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    outputs = []
    for order in result["orders"]:
        output = real(SMALL)
        for number in order:
            output = adjusts[number](output, float(result["strengths"][number]))
        outputs.append(array(output))
    result["jitter"] = np.stack(outputs)
    result["posterize"] = np.stack([array(F.posterize(tensor(LARGE), bits)) for bits in range(9)])
    result["thresholds"] = np.array([0.0, 76.5, 128.0, 255.0])
    result["solarize"] = np.stack([array(F.solarize(tensor(LARGE), t)) for t in result["thresholds"].tolist()])
    for name in ("autocontrast", "equalize"):
        result[name] = array(getattr(F, name)(tensor(LARGE)))
        result[f"{name}_grey"] = array(getattr(F, name)(tensor(LARGE[..., :1])))
    return result


def auto() -> dict[str, np.ndarray]:
    names = list(v2.RandAugment._AUGMENTATION_SPACE)
    result = {"images": SMALL, "large": LARGE, "names": np.array(names)}
    for kind in (v2.RandAugment, v2.TrivialAugmentWide):
        tables = []
        for magnitudes, _ in kind._AUGMENTATION_SPACE.values():
            values = magnitudes(31, 13, 17)
            tables.append(np.zeros(31) if values is None else values.numpy().astype(np.float64))
        result[kind.__name__] = np.stack(tables)
    operator = v2.RandAugment()
    numbers, magnitudes, moved = [], [], []
    for number, name in enumerate(names[: names.index("Posterize")]):
        greatest = {"Rotate": 28.7, "TranslateX": 7.7, "TranslateY": 5.9}.get(name, 0.7)
        for magnitude in (greatest, -0.6 * greatest):
            output = (
                operator._apply_image_or_video_transform(real(SMALL), name, magnitude, v2.InterpolationMode.NEAREST, {})
                if name != "Identity"
                else real(SMALL)
            )
            numbers.append(number)
            magnitudes.append(magnitude)
            moved.append(array(output))
    result.update(numbers=np.array(numbers), magnitudes=np.array(magnitudes, np.float32), moved=np.stack(moved))
    toned = []
    tone_magnitudes = {"Posterize": 3.0, "Solarize": 0.3, "AutoContrast": 0.0, "Equalize": 0.0}
    for name, magnitude in tone_magnitudes.items():
        output = operator._apply_image_or_video_transform(
            tensor(LARGE), name, magnitude, v2.InterpolationMode.NEAREST, {}
        )
        toned.append(array(output))
    result.update(tone_magnitudes=np.array(list(tone_magnitudes.values()), np.float32), toned=np.stack(toned))
    return result


def mix() -> dict[str, np.ndarray]:
    images = random.normal(size=(4, 7, 9, 2)).astype(np.float32)
    labels = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1]], np.float32)
    result = {"images": images, "labels": labels, "share": np.array(0.37, np.float32)}
    pixels, targets = tensor(images), torch.from_numpy(labels)
    mixup = v2.MixUp(alpha=1.0)
    parameters = {"labels": targets, "batch_size": 4, "lam": float(result["share"])}
    result["mixup_images"] = mixup.transform(pixels, parameters).movedim(-3, -1).numpy()
    result["mixup_labels"] = mixup.transform(targets, parameters).numpy()
    cutmix = v2.CutMix(alpha=1.0)
    box = (2, 1, 8, 4)
    parameters = {"labels": targets, "batch_size": 4, "box": box, "lam_adjusted": 1.0 - 18 / 63}
    result["box"] = np.array([box[1], box[0], box[3], box[2]])  # top, left, bottom, right
    result["cutmix_images"] = cutmix.transform(pixels, parameters).movedim(-3, -1).numpy()
    result["cutmix_labels"] = cutmix.transform(targets, parameters).numpy()
    result["erase_box"] = np.array([2, 3, 4, 5])
    result["erased"] = F.erase(pixels, 2, 3, 4, 5, torch.zeros(2, 1, 1)).movedim(-3, -1).numpy()
    return result


class Numbers:
    """Stands in for torch's generator: hands out recorded uniform numbers in the order of the calls."""

    def __init__(self, continuous, whole=()):
        self.continuous, self.whole = iter(continuous), iter(whole)

    def uniform_(self, values, low=0.0, high=1.0):
        return values.fill_(float(low + next(self.continuous) * (high - low)))

    def randint(self, low, high=None, size=(), **_):
        if isinstance(high, tuple):
            high = None
        low, high = (0, low) if high is None else (low, high)
        number = int(np.float32(next(self.whole)) * np.float32(high - low))
        return torch.full(size, low + min(number, high - low - 1))

    def __enter__(self):
        self.patches = [
            unittest.mock.patch.object(torch.Tensor, "uniform_", lambda *a, **k: self.uniform_(*a, **k)),
            unittest.mock.patch.object(torch, "randint", lambda *a, **k: self.randint(*a, **k)),
        ]
        for patch in self.patches:
            patch.start()

    def __exit__(self, *_):
        for patch in self.patches:
            patch.stop()


def draw() -> dict[str, np.ndarray]:
    image = [torch.zeros(3, 13, 17)]
    count = 64
    result = {
        name: random.random((count, n), dtype=np.float32)
        for name, n in {"affine": 5, "crop": 22, "erase": 23, "jitter": 5, "mix": 5}.items()
    }
    affine = v2.RandomAffine(degrees=25, translate=(0.3, 0.3), scale=(0.8, 1.3), shear=11)
    crop = v2.RandomResizedCrop((13, 17), scale=(0.3, 1.0))
    erase = v2.RandomErasing(p=1.0, scale=(0.02, 0.33))
    cutmix = v2.CutMix()
    jitter = v2.ColorJitter(brightness=0.4, contrast=1.7, saturation=0.3, hue=0.2)
    rows = {"affine": [], "crop": [], "erase": [], "jitter": [], "cutmix": []}
    result["share"] = random.random(count, dtype=np.float32)
    for row in range(count):
        with Numbers(result["affine"][row]):
            drawn = affine.make_params(image)
        rows["affine"].append([drawn["angle"], *drawn["translate"], drawn["scale"], *drawn["shear"]])
        with Numbers(result["crop"][row, :20], result["crop"][row, 20:]):
            drawn = crop.make_params(image)
        rows["crop"].append([drawn[name] for name in ("top", "left", "height", "width")])
        with Numbers(result["erase"][row, :20], result["erase"][row, 21:]):
            drawn = erase.make_params(image)
        none = drawn["v"] is None
        rows["erase"].append([0, 0, 0, 0] if none else [drawn[name] for name in "ijhw"])
        with Numbers(result["jitter"][row]):
            drawn = jitter.make_params(image)
        rows["jitter"].append([drawn[f"{name}_factor"] for name in ("brightness", "contrast", "saturation", "hue")])
        with Numbers((), result["mix"][row, [4, 3]]):
            share = torch.tensor(float(result["share"][row]))
            with unittest.mock.patch.object(cutmix._dist, "sample", lambda _, share=share: share):
                drawn = cutmix.make_params(image)
        left, top, right, bottom = drawn["box"]
        rows["cutmix"].append([top, left, bottom, right, drawn["lam_adjusted"]])
    # A tall image and a great least area: most tries fail, and the central crop is taken.
    hard = v2.RandomResizedCrop((29, 11), scale=(0.9, 1.0))
    rows["hard_crop"] = []
    for row in range(count):
        with Numbers(result["crop"][row, :20], result["crop"][row, 20:]):
            drawn = hard.make_params([torch.zeros(3, 29, 11)])
        rows["hard_crop"].append([drawn[name] for name in ("top", "left", "height", "width")])
    result.update({f"{name}_drawn": np.array(values, np.float64) for name, values in rows.items()})
    return result


def captions() -> dict[str, np.ndarray]:
    """Each operation of the captions study alone, drawn and applied to 7 images by torchvision itself."""
    own = np.random.default_rng(11)
    count, height, width = 7, 19, 16
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * a + y * b + c) for a, b, c in own.uniform(0.1, 0.9, (count * 3, 3))]
    smooth = np.stack(waves).reshape(count, 3, height, width).transpose(0, 2, 3, 1)
    images = np.clip(127 + 100 * smooth + own.normal(0, 15, smooth.shape), 0, 255).astype(np.uint8)
    bilinear = v2.InterpolationMode.BILINEAR
    # Name -> transform, numbers of our table that its continuous draws are, and those of its whole ones.
    transforms = {
        "resized_crop": (v2.RandomResizedCrop((height, width)), "crop", slice(0, 20), [20, 21]),
        "rotation": (v2.RandomRotation(20, bilinear, fill=None), "affine", [0], []),
        "affine": (v2.RandomAffine(0, (0.1, 0.1), (0.8, 1.2), None, bilinear, None), "affine", slice(0, 4), []),
        "brightness": (v2.ColorJitter(brightness=0.3), "jitter", [0], []),
        "contrast": (v2.ColorJitter(contrast=0.3), "jitter", [1], []),
        "saturation": (v2.ColorJitter(saturation=0.3), "jitter", [2], []),
        "jitter": (v2.ColorJitter(0.3, 0.3, 0.3), "jitter", slice(0, 3), []),
        "erasing": (v2.RandomErasing(p=0.3, scale=(0.02, 0.2)), "erase", slice(0, 20), [21, 22]),
    }
    result = {"images": images}
    for table, places in {"dihedral": 3, "affine": 5, "crop": 22, "jitter": 5, "erase": 23}.items():
        result[f"{table}_numbers"] = own.random((count, places), dtype=np.float32)
    orders = list(itertools.permutations(range(3)))
    for name, (transform, table, continuous, whole) in transforms.items():
        outputs = []
        for row, numbers in enumerate(result[f"{table}_numbers"]):
            image = real(images[row : row + 1])
            order = orders[min(int(numbers[4] * np.float32(6)), 5)] if name == "jitter" else ()
            hue = (3,) if name == "jitter" else range(len(order), 4)
            permutation = torch.tensor([*order, *hue])
            with Numbers(numbers[continuous], numbers[whole]):
                with unittest.mock.patch.object(torch, "randperm", lambda _, chosen=permutation: chosen):
                    drawn = transform.make_params([image])
            applied = name != "erasing" or numbers[20] < np.float32(0.3)
            outputs.append(array(transform.transform(image, drawn) if applied else image)[0])
        result[name] = np.stack(outputs)
    pairs = zip(images, result["dihedral_numbers"][:, 1] < 0.5, strict=True)
    result["flip_horizontal"] = np.stack(
        [array(F.horizontal_flip(tensor(image)) if flip else tensor(image)) for image, flip in pairs]
    )
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    result["normalized"] = F.normalize(real(images), mean, std).movedim(-3, -1).numpy()
    return result


if __name__ == "__main__":
    for make in (geometry, color, auto, mix, draw, captions):
        path = FOLDER / f"augment_{make.__name__}.npz"
        np.savez_compressed(path, **make())
        print(path.name, path.stat().st_size, "bytes")
