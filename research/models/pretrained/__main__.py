"""`python -m research.models.pretrained`: what does a network with given weights answer to given images?

    python -m research.models.pretrained --model=resnet50 --weights=resnet50.safetensors --input=images.npy \\
        --output=logits.npy

The input is float32 `[B, H, W, C]` as the network takes it: nothing is resized or normalised, so that the output can
be compared with that of the library that wrote the weights. The output is float32 `[B, K]`, the logits.
"""

import argparse
import io
import json
import pathlib

import jax
import numpy as np

from input_pipeline import cli
from input_pipeline.cli import UserError
from research.models.pretrained.loading import build, plan

BATCH = 32  # images at a time


def read_images(path: str) -> np.ndarray:
    """Images `[B, H, W, C]` from an `.npy` file.

    Raises:
      UserError: it is missing, no float32 array of four axes, empty, or holds NaN or infinity.
    """
    try:
        images = np.load(path, allow_pickle=False, mmap_mode="r")
    except FileNotFoundError:
        raise UserError(f"there is no input {path}; give an .npy file of images.") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"the input {path} is no .npy file ({str(error).splitlines()[0]}); write it with numpy.save."
        ) from error
    if not isinstance(images, np.ndarray) or images.dtype != np.float32 or images.ndim != 4 or 0 in images.shape:
        what = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else "an archive"
        raise UserError(f"the input {path} is {what}; give float32 images [batch, height, width, channels].")
    if not np.isfinite(images).all():
        raise UserError(f"the input {path} holds NaN or infinity; give finite images.")
    return images


def answer(model, variables, images: np.ndarray) -> np.ndarray:
    """Logits `[B, K]` of images `[B, H, W, C]`.

    Raises:
      UserError: the images are too small for the network.
    """
    apply = jax.jit(lambda values, batch: model.apply(values, {"image": batch}, train=False).logits)
    logits = [np.asarray(apply(variables, images[start : start + BATCH])) for start in range(0, len(images), BATCH)]
    return np.concatenate(logits)


def describe(report: dict) -> str:
    """The report of a loading for people."""
    lines = [
        f"{report['model']}" + (f" ({report['variant']})" if report["variant"] else "") + f" from {report['file']}",
        f"  {report['source']}, {report['names']} names, SHA-256 {report['sha256']}",
        f"  {report['loaded']} arrays with {report['parameters']:,} numbers were loaded",
    ]
    if report["adapted_stem"]:
        lines.append(f"  stem: {report['adapted_stem']}")
    if report["replaced_head"]:
        lines.append(f"  head: new, because {report['replaced_head']}")
    if report["preprocessing"]:
        lines.append(
            f"  preprocessing that belongs to the weights (not applied): {json.dumps(report['preprocessing'])}"
        )
    lines += [f"  unused: {name}" for name in report["unused"]]
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, writes the logits."""
    parser = argparse.ArgumentParser(prog="python -m research.models.pretrained", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="name of the model, see research/models")
    parser.add_argument("--weights", required=True, help="file, checkpoint folder or hf://timm/NAME")
    parser.add_argument("--input", required=True, help="float32 [B, H, W, C] in an .npy file")
    parser.add_argument("--output", required=True, help="where to write the logits, float32 [B, K]")
    parser.add_argument("--classes", type=int, help="number of classes, if not the file's")
    parser.add_argument("--variant", default="", help="form of the architecture, such as timm, tf or keras")
    parser.add_argument("--report", action="store_true", help="say what was loaded, adapted and left over")
    arguments = parser.parse_args()
    if arguments.classes is not None and arguments.classes < 1:
        raise UserError(f"--classes={arguments.classes} is impossible; give a positive number.")
    if not pathlib.Path(arguments.output).absolute().parent.is_dir():
        raise UserError(f"the folder of {arguments.output} does not exist; make it or choose another --output.")
    images = read_images(arguments.input)
    pretrained = plan(arguments.model, arguments.variant, arguments.weights)
    model, variables, report = build(pretrained, arguments.classes, images.shape[1:3], images.shape[3])
    buffer = io.BytesIO()
    np.save(buffer, answer(model, variables, images).astype(np.float32))
    cli.atomic_write(arguments.output, buffer.getvalue())
    if arguments.report:
        print(describe(report))


if __name__ == "__main__":
    cli.run(main)
