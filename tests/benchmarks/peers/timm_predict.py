"""How many images a second does a timm model do in PyTorch, channels last? Prints one line of JSON.

    TORCH_PYTHON timm_predict.py --model=resnet18 --image_size=224 --images=DIR --count=512 --batch_size=32 --workers=2

`whole`: from the start of the process to the last row; `steady`: behind the first two batches; `processor`: the same by
a second of the processor's time, that of the workers included.
"""

import argparse
import json
import os
import pathlib
import time

import torch
from PIL import Image
from timm_alone import timm

ENDINGS = (".jpg", ".jpeg", ".png")


class Files(torch.utils.data.Dataset):
    """Images of files by number."""

    def __init__(self, files: list[pathlib.Path], transform) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


def processor_seconds(workers: list[int]) -> float:
    """The processor's time of this process and of its workers so far."""
    ticks = 0
    for number in workers:
        fields = pathlib.Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def started() -> float:
    """When this process began, in seconds since 1970."""
    fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    uptime = float(pathlib.Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Prints the line."""
    begin = started()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--image_size", type=int, required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    arguments = parser.parse_args()
    files = sorted(file for file in pathlib.Path(arguments.images).rglob("*") if file.suffix.lower() in ENDINGS)
    transform = timm.data.create_transform(
        (3, arguments.image_size, arguments.image_size), interpolation="bilinear", crop_pct=1.0, crop_mode="squash"
    )
    loader = torch.utils.data.DataLoader(
        Files(files[: arguments.count], transform), arguments.batch_size, num_workers=arguments.workers
    )
    model = timm.create_model(arguments.model, pretrained=False, num_classes=4).eval()
    model = model.to(memory_format=torch.channels_last)
    times, spent, count = [], [], 0
    with torch.inference_mode():
        batches = iter(loader)
        workers = [process.pid for process in getattr(batches, "_workers", ())]
        for images in batches:
            found = model(images.contiguous(memory_format=torch.channels_last)).softmax(-1).numpy()
            count += len(found)
            times.append(time.time())
            if len(times) in (2, len(loader)):  # the workers end with the last batch
                spent.append(processor_seconds(workers))
    rest = count - 2 * arguments.batch_size
    whole, steady = count / (times[-1] - begin), rest / (times[-1] - times[1])
    print(json.dumps({"whole": whole, "steady": steady, "processor": rest / (spent[1] - spent[0]), "count": count}))


if __name__ == "__main__":
    main()
