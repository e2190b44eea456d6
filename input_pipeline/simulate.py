"""How can a study run, and be tested, before its data are downloaded? With simulated files in their layout.

    python -m input_pipeline.simulate --study=NAME --out=DIR [--train=N] [--test=N] [--seed=0]

Studies: hpa, pneumonia, lung_masks (both in simulate_lungs.py), captions (simulate_captions.py), cancer_genes
(simulate_expression.py; the numbers are those of samples, and there is no size).

The folder holds what the original download holds, file for file, plus `SIMULATED.txt`, by which
`input_pipeline.prepare` knows that the images are simulated and says so in the prepared dataset.
"""

import argparse
import concurrent.futures
import functools
import importlib
import multiprocessing
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence

import cv2
import numpy as np

from input_pipeline import simulate_cells
from input_pipeline.cli import UserError, progress, run

MARKER = "SIMULATED.txt"
# Raise it with every change that changes an image: another version's folder is not mistaken for this one.
VERSION = 1

HPA_ID_COUNT = 31_072  # ids are row numbers of the 31,072-row HPA-2018 table
HPA_NUM_TRAIN = 3_000  # the course has 15,389
HPA_NUM_TEST = 300  # the course has 3,847
# Label sets (one digit a label) and how many of 15,389 train images carry them. The course's own counts of
# each label and of labels an image, its 122 sets and its 12 singletons are met exactly. Which labels go
# together is modelled: the table is the integer one closest to the proportions in the public HPA-2018 label
# table (31,072 rows) reduced to the ten labels.
HPA_LABEL_SETS = """
4:2259 46:1389 6:1271 0:970 7:771 3:689 24:652 1:645 9:640 2:579 47:490 34:402 5:397 04:350 8:317 14:310
67:291 48:253 45:230 26:212 16:202 246:160 69:159 467:109 36:104 346:87 68:85 146:81 56:78 02:77 06:58
456:58 79:56 468:53 27:49 234:46 23:43 49:43 17:36 046:35 024:32 347:32 13:29 09:25 247:24 37:24 147:20
05:16 01:15 2467:15 08:14 134:14 267:14 28:14 35:14 39:14 29:13 78:13 07:12 478:12 679:12 12:11 124:11
027:10 3467:10 57:10 047:9 126:9 248:9 045:8 38:8 59:8 678:8 148:7 167:7 18:7 236:7 249:7 89:7 014:6
026:6 067:6 345:6 367:6 458:6 048:5 567:5 2346:4 369:4 58:4 1456:3 1467:3 15:3 19:3 239:3 2468:3 269:3
278:3 348:3 457:3 479:3 569:3 016:2 0246:2 03:2 034:2 056:2 136:2 245:2 379:2 015:1 078:1 127:1 145:1
168:1 2347:1 2367:1 2478:1 268:1 3468:1 469:1 5679:1
"""

_CHUNK = 32  # images per task of a worker process
_ALONE = 256  # fewer images than this are rendered sooner than worker processes start


@functools.cache
def hpa_label_sets() -> tuple[tuple[int, ...], ...]:
    """The 15,389 label sets of the simulated train set, ascending labels 0..9, sets in order of frequency."""
    pairs = (entry.split(":") for entry in HPA_LABEL_SETS.split())
    return tuple(tuple(map(int, labels)) for labels, count in pairs for _ in range(int(count)))


def check(
    num_train: int, num_test: int, seed: int, most: int, least: int = 1, size: int = 32, workers: int | None = None
) -> None:
    """Raises UserError unless images can be simulated: `least` to train on, `most` in all, 32 to 1024 pixels a side."""
    if num_train < least or num_test < 0 or num_train + num_test > most:
        raise UserError(
            f"{num_train} train and {num_test} test images cannot be simulated; ask for at least {least} train "
            f"image{'s' if least > 1 else ''}, no negative number and at most {most} in all."
        )
    if not 32 <= size <= 1024:
        raise UserError(f"Images of {size} pixels cannot be simulated; choose a size from 32 to 1024.")
    if seed < 0:
        raise UserError(f"The seed {seed} is negative; choose 0 or more.")
    if workers is not None and workers < 1:
        raise UserError(f"{workers} worker processes cannot work; choose 1 or more.")


def hpa_assignment(num_train: int, num_test: int, seed: int) -> tuple[dict[int, tuple[int, ...]], ...]:
    """Chooses the images of the train and test sets: two dicts id -> labels (ascending), ids in file order.

    Ids are a random part of 0..31071. Label sets are dealt from a shuffled deck of the course's 15,389:
    that many train images have the course's label counts exactly, fewer have them up to the luck of the draw.
    An id keeps its labels, and image number i of a set keeps its id, whatever the sizes of the two sets.

    Raises:
      UserError: if a number is out of range.
    """
    check(num_train, num_test, seed, HPA_ID_COUNT)
    rng = np.random.default_rng([seed, HPA_ID_COUNT])
    ids = rng.permutation(HPA_ID_COUNT).tolist()
    sets = hpa_label_sets()
    deck = rng.permutation(len(sets))
    labels = {identifier: sets[deck[place % len(sets)]] for place, identifier in enumerate(ids)}
    # Train takes ids from the front and test from the back, so that neither moves the other.
    train, test = ids[:num_train], ids[HPA_ID_COUNT - num_test :][::-1]
    return {i: labels[i] for i in train}, {i: labels[i] for i in test}


def hpa_image(identifier: int, labels: Sequence[int], seed: int, size: int) -> bytes:
    """Renders one image: PNG bytes, RGB `[size, size, 3]`; a function of its arguments alone."""
    image = simulate_cells.render(labels, np.random.default_rng([seed, identifier]), size)
    # OpenCV takes BGR. Stronger compression costs more time than it saves space: noise does not compress.
    done, data = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise RuntimeError(f"OpenCV could not encode image {identifier}")
    return data.tobytes()


def _write_images(tasks: Sequence[tuple[str, int, tuple[int, ...]]], seed: int, size: int) -> list[int]:
    """Renders and writes a chunk of (path, id, labels); returns the ids written."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for path, identifier, labels in tasks:
            pathlib.Path(path).write_bytes(hpa_image(identifier, labels, seed, size))
    finally:
        cv2.setNumThreads(threads)
    return [identifier for _, identifier, _ in tasks]


def in_parallel(work: Callable[[Sequence], list[int]], tasks: Sequence, workers: int | None) -> Iterator[int]:
    """Yields what `work`, a picklable function of a chunk of tasks, returns for each task, in order."""
    workers = _available_workers() if workers is None else workers
    chunks = [tasks[start : start + _CHUNK] for start in range(0, len(tasks), _CHUNK)]
    if workers == 1 or len(tasks) < _ALONE:
        for chunk in chunks:
            yield from work(chunk)
        return
    # Not fork: the caller may already run JAX's threads.
    pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        for written in pool.map(work, chunks):
            yield from written
    finally:
        pool.shutdown(cancel_futures=True)


def _csv(rows: Iterable[tuple[int, str]]) -> str:
    return "Image,Label\n" + "".join(f"{identifier},{label}\n" for identifier, label in rows)


def _marker(num_train: int, num_test: int, size: int, seed: int) -> str:
    return (
        "The images in this folder are simulated; no microscope has seen them. Train and evaluate with them "
        "to try the code, never to learn about cells.\n"
        f"study=hpa train={num_train} test={num_test} size={size} seed={seed} version={VERSION}\n"
    )


def _available_workers() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def build_folder(out_dir: str | os.PathLike, marker: str, fill: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Lets `fill` write into a new folder, which gets its name when it is complete, and `marker` in `SIMULATED.txt`.

    Returns:
        The folder, absolute; one that already holds this marker is kept as it is.

    Raises:
        UserError: if the folder holds something else.
    """
    out_dir = pathlib.Path(os.path.abspath(out_dir))
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"{out_dir} is a file; name a folder for the simulated images.")
    if out_dir.is_dir() and any(out_dir.iterdir()):
        if (out_dir / MARKER).is_file() and (out_dir / MARKER).read_text("utf-8", "replace") == marker:
            return out_dir
        raise UserError(f"{out_dir} already holds other files; remove it or name another folder.")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.partial-", dir=out_dir.parent))
    try:
        fill(partial)
        (partial / MARKER).write_text(marker, "utf-8")
        partial.chmod(0o755)
        os.rename(partial, out_dir)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out_dir


def hpa(
    out_dir: str | os.PathLike,
    num_train: int = HPA_NUM_TRAIN,
    num_test: int = HPA_NUM_TEST,
    size: int = 128,
    seed: int = 0,
    workers: int | None = None,
) -> pathlib.Path:
    """Writes simulated raw files of the HPA organelle study, in the layout of the course's download.

    `train/train/<id>.png`, `test/test/<id>.png` (RGB: red = microtubules, green = protein, blue = nucleus),
    `train.csv` (`Image,Label`, labels 0..9 separated by spaces), `submission.csv` (dummy label 0) and
    `SIMULATED.txt`. The same numbers and seed give the same bytes with the same numpy and OpenCV, whatever
    `workers` is. The folder appears when it is complete; one that already holds this very simulation is kept.

    Args:
      out_dir: the folder to write; absent, empty, or holding the same simulation.
      num_train: number of labelled images.
      num_test: number of images without labels.
      size: height and width in pixels.
      seed: of everything drawn.
      workers: processes to render with; None = one for each core.

    Returns:
      The folder, absolute.

    Raises:
      UserError: if a number is out of range or the folder holds something else.
    """
    check(num_train, num_test, seed, HPA_ID_COUNT, size=size, workers=workers)
    train, test = hpa_assignment(num_train, num_test, seed)

    def fill(folder: pathlib.Path) -> None:
        tasks = []
        for role, chosen in (("train", train), ("test", test)):
            (folder / role / role).mkdir(parents=True)
            tasks += [(str(folder / role / role / f"{i}.png"), i, labels) for i, labels in chosen.items()]
        work = functools.partial(_write_images, seed=seed, size=size)
        for _ in progress(in_parallel(work, tasks, workers), len(tasks), "simulating images"):
            pass
        train_rows = ((identifier, " ".join(map(str, labels))) for identifier, labels in train.items())
        (folder / "train.csv").write_text(_csv(train_rows), "utf-8")
        (folder / "submission.csv").write_text(_csv((identifier, "0") for identifier in test), "utf-8")

    return build_folder(out_dir, _marker(num_train, num_test, size, seed), fill)


SIMULATIONS = {
    "hpa": "input_pipeline.simulate",
    "pneumonia": "input_pipeline.simulate_lungs",
    "lung_masks": "input_pipeline.simulate_lungs",
    "cancer_genes": "input_pipeline.simulate_expression",
    "captions": "input_pipeline.simulate_captions",
}
"""The module of each study's simulation, a function of the study's name with the arguments of `hpa`."""


def load(study: str) -> Callable[..., pathlib.Path]:
    """The simulation of a study.

    Raises:
        UserError: for a study without one.
    """
    if study not in SIMULATIONS:
        raise UserError(f"No simulation of study {study!r}; choose one of: {', '.join(SIMULATIONS)}.")
    return getattr(importlib.import_module(SIMULATIONS[study]), study)


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m input_pipeline.simulate", description=__doc__.split("\n\n")[0])
    parser.add_argument("--study", required=True, help=f"one of: {', '.join(SIMULATIONS)}")
    parser.add_argument("--out", required=True, help="folder to write the simulated raw files to")
    parser.add_argument("--train", type=int, default=None, help="train images, or samples (default: the study's own)")
    parser.add_argument("--test", type=int, default=None, help="test images, or samples (default: the study's own)")
    parser.add_argument("--size", type=int, default=128, help="pixels along each side (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default %(default)s)")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one for each core)")
    options = parser.parse_args()
    numbers = {"num_train": options.train, "num_test": options.test}
    chosen = {name: number for name, number in numbers.items() if number is not None}
    folder = load(options.study)(options.out, size=options.size, seed=options.seed, workers=options.workers, **chosen)
    print(f"the simulated files are in {folder}")


if __name__ == "__main__":
    run(main)
