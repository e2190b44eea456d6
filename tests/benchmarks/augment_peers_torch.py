"""How long do torchvision v2's transforms take? Run by augment_peers.py in the Python of torch and torchvision.

    TORCH_PYTHON tests/benchmarks/augment_peers_torch.py --party="per image" --settings=JSON --threads=2 …

Prints one line of JSON for every line of standard input: seconds and processor seconds of `--images` images. This file
imports nothing of the project. The transforms stand in the order of the captions study: random resized crop, flip,
rotation, colour jitter, affine map, conversion, normalisation, erasing.
"""

import argparse
import json
import os
import sys
import time

import numpy as np
import torch

# torchvision without its compiled operators, which none of these transforms needs.
_operators = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms", "roi_align", "_roi_align_backward", "ps_roi_align", "_ps_roi_align_backward", "roi_pool",
              "_roi_pool_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d",
              "_deform_conv2d_backward"):  # fmt: skip
    if not hasattr(torch.ops.torchvision, _name):
        _operators.define(f"{_name}(Tensor x) -> Tensor")

from torchvision.transforms import v2  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def transforms_of(settings: dict, size: int) -> v2.Compose:
    """The transforms that keys of `config.data.augment` stand for.

    Raises:
      SystemExit: an operation that has no place here.
    """
    left = dict(settings)
    interpolation = v2.InterpolationMode(left.pop("interpolation", "bilinear"))
    left.pop("rotation_fill", None)  # torchvision fills with 0
    found = []
    if crop := left.pop("resized_crop", None):
        found.append(v2.RandomResizedCrop(size, tuple(crop), interpolation=interpolation))
    if left.pop("flip_horizontal", False):
        found.append(v2.RandomHorizontalFlip())
    if left.pop("flip_vertical", False):
        found.append(v2.RandomVerticalFlip())
    if angle := left.pop("rotation", 0):
        found.append(v2.RandomRotation(angle, interpolation))
    jitter = {name: left.pop(name, 0) for name in ("brightness", "contrast", "saturation", "hue")}
    if any(jitter.values()):
        found.append(v2.ColorJitter(**jitter))
    move, scale, shear = left.pop("translate", 0), left.pop("scale", ()), left.pop("shear", 0)
    if move or scale or shear:
        found.append(v2.RandomAffine(0, (move, move), tuple(scale) or None, shear or None, interpolation))
    found += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    if probability := left.pop("erasing", 0):
        found.append(v2.RandomErasing(probability, tuple(left.pop("erasing_area", ())) or (0.02, 0.33)))
    if left:
        raise SystemExit(f"no transform of torchvision stands here for: {', '.join(left)}")
    return v2.Compose(found)


class Images(torch.utils.data.Dataset):
    """Images in memory, transformed one by one."""

    def __init__(self, images: list, count: int, transform) -> None:
        self.images, self.count, self.transform = images, count, transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.images[index % len(self.images)])


def _processor_seconds(children: list[int]) -> float:
    """Of this process, and of its workers, whose time the system counts only once they have ended."""
    ticks = 0
    for process in children:
        with open(f"/proc/{process}/stat", encoding="ascii") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--party", choices=("per image, PIL", "per image", "batched"), required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    for name in ("image_size", "batch_size", "images", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    shape = (arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))
    transform = transforms_of(arguments.settings, arguments.image_size)
    batches = arguments.images // arguments.batch_size
    torch.set_num_threads(arguments.threads)
    loader, iterator = None, None
    if arguments.party != "batched":
        images = [v2.functional.to_pil_image(image) for image in batch] if "PIL" in arguments.party else list(batch)
        loader = torch.utils.data.DataLoader(
            Images(images, batches * arguments.batch_size, transform), arguments.batch_size,
            num_workers=arguments.threads, persistent_workers=True,
        )  # fmt: skip
    for _ in sys.stdin:
        if loader is not None and iterator is None:
            iterator = iter(loader)
            sum(len(one) for one in iterator)
        children = [worker.pid for worker in getattr(iterator, "_workers", ())]
        wall, processor = time.perf_counter(), _processor_seconds(children)
        if loader is None:
            for _ in range(batches):
                transform(batch)
        else:
            sum(len(one) for one in loader)
        found = {"seconds": time.perf_counter() - wall, "processor_seconds": _processor_seconds(children) - processor}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
