"""How fast is a training step of a timm model in PyTorch, channels last? Prints one line of JSON.

    TORCH_PYTHON torch_step.py --model=resnet50 --image_size=128 --batch_size=16 --steps=10 [--out=DIR]
        [--device=cuda --amp --compile]

SGD with momentum 0.9, BatchNorm updating, cross-entropy, no dropout. `--out` saves the first weights
(`weights.safetensors`) and the batch (`input.npy`, NHWC; its labels are 0, 1, ... modulo the classes).
"""

import argparse
import json
import pathlib
import resource
import statistics
import time

import numpy as np
import torch
from safetensors.torch import save_file
from timm_alone import timm

NAMES = {"xception": "legacy_xception"}


def main() -> None:
    """Prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--learning_rate", type=float, default=0.01)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = timm.create_model(
        NAMES.get(arguments.model, arguments.model), num_classes=arguments.classes, drop_rate=0.0
    ).train()
    images = np.random.default_rng(0).standard_normal(
        (arguments.batch_size, arguments.image_size, arguments.image_size, 3), np.float32
    )
    if arguments.out:
        folder = pathlib.Path(arguments.out)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(weights, str(folder / "weights.safetensors"))
        np.save(folder / "input.npy", images)
    model = model.to(arguments.device, memory_format=torch.channels_last)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).to(arguments.device, memory_format=torch.channels_last)
    labels = (torch.arange(arguments.batch_size) % arguments.classes).to(arguments.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.learning_rate, momentum=0.9)
    forward = torch.compile(model) if arguments.compile else model
    seconds, processor, losses = [], [], []
    for _ in range(arguments.steps):
        wall, work = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.amp):
            loss = torch.nn.functional.cross_entropy(forward(batch).float(), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - wall)
        processor.append(time.process_time() - work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if arguments.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    print(
        json.dumps(
            {
                "model": arguments.model,
                "images_per_second": arguments.batch_size / statistics.median(seconds[2:] or seconds),
                "processor_seconds": statistics.median(processor[2:] or processor),
                "peak_memory_bytes": peak,
                "losses": losses[:5],
                "version": f"torch {torch.__version__}, timm {timm.__version__}",
            }
        )
    )


if __name__ == "__main__":
    main()
