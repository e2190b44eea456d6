"""What happens with weight files that are damaged, or made to do harm?

`python -m tests.research.models.pretrained.hostile` gives each of them to `python -m research.models.pretrained` and
prints the sentence that it ends with, the exit status, and its peak memory beside that of a good file.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from tests.research.models.pretrained.hostile_files import CASES, MARKER
from tests.research.models.pretrained.weights import resnet18_state, write_safetensors

_MEASURED = """
import atexit, pathlib, re, resource, runpy

def peak():
    own = int(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
    print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))

atexit.register(peak)
runpy.run_module("research.models.pretrained", run_name="__main__")
"""


def run(model: str, weights: pathlib.Path, images: pathlib.Path) -> tuple[int, str, float]:
    """Exit status, what stood on stderr, and peak memory in MB of the command and the process it starts."""
    arguments = [f"--model={model}", f"--weights={weights}", f"--input={images}", "--classes=1000"]
    process = subprocess.run(
        [sys.executable, "-c", _MEASURED, *arguments, f"--output={images.parent / 'logits.npy'}"],
        capture_output=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        text=True,
    )
    return process.returncode, process.stderr.strip(), int(process.stdout.split()[-1]) / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        images = folder / "images.npy"
        np.save(images, np.zeros((1, 64, 64, 3), np.float32))
        good = write_safetensors(folder / "good.safetensors", resnet18_state())
        print("| file | exit status | peak memory, MB | sentence |\n| --- | --- | --- | --- |")
        print("| a good resnet18 of 47 MB | {0} | {2:.0f} | {1} |".format(*run("resnet18", good, images)))
        for number, (title, (model, write)) in enumerate(CASES.items()):
            path = folder / f"{number}.weights"
            write(path)
            status, sentence, memory = run(model, path, images)
            print(f"| {title} | {status} | {memory:.0f} | {sentence.replace(str(folder) + '/', '')} |", flush=True)
        print("\nexecuted:", (folder / MARKER).exists())


if __name__ == "__main__":
    main()
