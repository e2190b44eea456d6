"""Explains what a trained model says of images: heat maps, their faithfulness, and a page.

    python -m research.explain --workdir=RUN --images=test|FILE.csv|FOLDER --method=gradcam[,integrated_gradients,…]
        [--trial=NAME] [--layer=NAME] [--class=predicted] [--count=16] [--regions=FOLDER] [--out=DIR]

Methods: gradcam, gradcam++, scorecam (of a layer, the last feature map unless --layer names another;
--method=layers lists them), integrated_gradients, smoothgrad, occlusion (of the image). Images are those of a role, of
a CSV file with a column id, or of a folder; the most confident wrong and right cases come first. Writes into DIR
(RUN/explanations/TRIAL): index.html, pictures/, maps/METHOD.npz (raw maps joined by id), faithfulness.csv (deletion and
insertion curves; with a region pointing game and mass inside it) and randomization.csv. Exit status: 0 finished, 2 a
mistake, 75 stopped by SIGTERM or Ctrl-C.
"""

from research import memory

if __name__ == "__main__":
    memory.restart_with_huge_pages()

import argparse
import pathlib
import sys
from collections.abc import Sequence

from input_pipeline.cli import UserError
from research.training.signals import StopSignal, run_and_leave

LAYERS, CHECKS = "layers", ("curves", "randomization")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; lists come back as tuples."""
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m research.explain", description=__doc__, formatter_class=text)
    add = parser.add_argument
    add("--workdir", required=True, help="folder of a finished run")
    add("--trial", default="", help="of trials.csv; default: the one that the run's report speaks of")
    add("--images", default="test", help="a role, a CSV file with a column id, or a folder of images")
    add("--method", default="gradcam", help="methods, separated by commas; or layers, which lists the layers")
    add("--layer", default="", help="feature map or path of a module; default: the last feature map")
    add("--class", dest="target", default="predicted", help="predicted, true, or the name of a class")
    add("--count", type=int, default=16, help="images at most; 0 = all")
    add("--regions", default="", help="folder of masks named like the ids; default: the data set's own, if any")
    add("--checks", default=",".join(CHECKS), help=f"of {', '.join(CHECKS)}; or none")
    add("--baseline", default="mean", help="of integrated gradients and occlusion: black, mean or blur")
    add("--steps", type=int, default=64, help="gradients along the path of integrated gradients")
    add("--samples", type=int, default=32, help="noisy copies of SmoothGrad")
    add("--noise", type=float, default=0.15, help="their deviation, as a share of the image's range")
    add("--window", type=int, default=0, help="pixels a side of occlusion; 0 = an eighth of the image's side")
    add("--stride", type=int, default=0, help="pixels from one window to the next; 0 = half a window")
    add("--curve_steps", type=int, default=32, help="steps of the deletion and insertion curves")
    add("--batch_size", type=int, default=16, help="images at once")
    add("--seed", type=int, default=0, help="of noise, random order and random weights")
    add("--out", default="", help="folder for the results; default RUN/explanations/TRIAL")
    values = parser.parse_args(arguments)
    for name in ("steps", "samples", "curve_steps", "batch_size"):
        if getattr(values, name) < 1:
            raise UserError(f"--{name}={getattr(values, name)} is impossible; give 1 or more.")
    for name in ("count", "noise", "window", "stride", "seed"):
        if not getattr(values, name) >= 0:
            raise UserError(f"--{name}={getattr(values, name)} is impossible; give 0 or more.")
    values.method, values.checks = _list(values.method), _list(values.checks)
    if values.checks == ("none",):
        values.checks = ()
    if strangers := [name for name in values.checks if name not in CHECKS]:
        raise UserError(f"--checks={strangers[0]} is unknown; choose of {', '.join(CHECKS)}, or none.")
    return values


def _list(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, opens the run, explains."""
    values = parse(arguments)
    from research.explain import gallery, opening  # imports JAX; mistakes above answer without
    from research.explain.methods import Options
    from research.training import compilation, sharding

    compilation.keep_programs()
    stop = StopSignal()
    stop.install()
    mesh, workdir = sharding.make_mesh(), pathlib.Path(values.workdir)
    if values.method == (LAYERS,):
        print("\n".join(opening.list_layers(workdir, values.trial)))
        return 0
    options = Options(
        layer=values.layer, baseline=values.baseline, steps=values.steps, samples=values.samples, noise=values.noise,
        window=values.window, stride=values.stride, curve_steps=values.curve_steps, seed=values.seed,
    )  # fmt: skip
    request = gallery.Request(
        workdir=workdir, trial=values.trial, images=values.images, methods=values.method, target=values.target,
        count=values.count, regions=values.regions, checks=values.checks, batch_size=values.batch_size,
        out=pathlib.Path(values.out) if values.out else None, options=options,
        command=" ".join(["python -m research.explain", *(sys.argv[1:] if arguments is None else arguments)]),
    )  # fmt: skip
    print(f"Finished: {gallery.run(request, mesh, stop)}")
    return 0


if __name__ == "__main__":
    run_and_leave(main)
