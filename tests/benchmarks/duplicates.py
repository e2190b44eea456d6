"""How well does the grouping find photographs: on class folders, and on augmented copies whose truth is known?

    python -m tests.benchmarks.duplicates --images=../shared/data/blood_cells/images/TRAIN \\
        --expected=LYMPHOCYTE=92,EOSINOPHIL=33,MONOCYTE=155,NEUTROPHIL=16 --montage=/tmp/montage.png

prints one JSON object: signatures per second, groups per class folder, the share of files in groups within 15% of the
expected size, and, for distinct photographs (one file of each group found, or every file with --distinct) copied in
the way of Keras (rotation, flips, shifts with black fill, JPEG at quality 75 to 95), the pairwise precision and recall.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import json
import multiprocessing
import pathlib
import time

import cv2
import numpy as np

from input_pipeline import duplicates
from input_pipeline.cli import UserError, run

SUFFIXES = {".jpg", ".jpeg", ".png"}


def keras_copy(image: np.ndarray, generator: np.random.Generator, shift: float = 0.1) -> np.ndarray:
    """A copy of uint8 `[H, W, 3]`: rotated by any angle, shifted by up to `shift` of the sides, flipped, as JPEG."""
    height, width = image.shape[:2]
    transform = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), generator.uniform(-180, 180), 1.0)
    transform[:, 2] += generator.uniform(-shift, shift, 2) * (width, height)
    copy = cv2.warpAffine(image, transform, (width, height), flags=cv2.INTER_LINEAR, borderValue=0)
    copy = copy[:, :: generator.choice([-1, 1])][:: generator.choice([-1, 1])]
    quality = int(generator.integers(75, 96))
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(copy), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


def pairwise(groups: list[str], truth: list) -> tuple[float, float]:
    """Precision and recall over all pairs of files: put together, and belonging together."""
    both = collections.Counter(zip(groups, truth, strict=True))
    count = {
        name: sum(n * (n - 1) // 2 for n in c.values())
        for name, c in {"both": both, "found": collections.Counter(groups), "true": collections.Counter(truth)}.items()
    }
    return count["both"] / max(count["found"], 1), count["both"] / max(count["true"], 1)


def _read(path: pathlib.Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _describe(path: pathlib.Path) -> tuple[str, np.ndarray]:
    cv2.setNumThreads(1)
    return hashlib.sha256(path.read_bytes()).hexdigest(), duplicates.signature(_read(path))


def _copies(task: tuple[int, pathlib.Path, int, float]) -> list[tuple[str, np.ndarray]]:
    cv2.setNumThreads(1)
    index, path, copies, shift = task
    image, generator = _read(path), np.random.default_rng(index)
    made = [keras_copy(image, generator, shift) for _ in range(copies)]
    return [(duplicates.content_hash(copy), duplicates.signature(copy)) for copy in made]


def synthetic(paths: list[pathlib.Path], copies: int, shift: float, pool: concurrent.futures.Executor) -> dict:
    """Precision and recall of the grouping of `copies` augmented copies of each of distinct photographs."""
    tasks = [(index, path, copies, shift) for index, path in enumerate(paths)]
    found = [item for items in pool.map(_copies, tasks, chunksize=4) for item in items]
    truth = [index for index in range(len(paths)) for _ in range(copies)]
    ids = [f"{index:06d}" for index in range(len(found))]
    clusters = duplicates.cluster(ids, None, [key for key, _ in found], np.stack([record for _, record in found]))
    precision, recall = pairwise(clusters.groups, truth)
    return {
        "photographs": len(paths),
        "copies": copies,
        "shift": shift,
        "groups": clusters.statistics["groups"],
        "precision": round(precision, 5),
        "recall": round(recall, 5),
    }


def montage(path: str, files: list[pathlib.Path], groups: list[str], rows: int = 10, columns: int = 8) -> None:
    """Writes a PNG: each row shows files of one group, spread over it; the groups are spread over the class folders."""
    members = collections.defaultdict(list)
    for file, group in zip(files, groups, strict=True):
        members[group].append(file)
    large = sorted((sorted(m) for m in members.values() if len(m) >= columns), key=lambda m: str(m[0]))
    lines = []
    for chosen in large[:: max(1, len(large) // rows)][:rows]:
        shown = chosen[:: len(chosen) // columns][:columns]
        lines.append(np.hstack([cv2.resize(cv2.imread(str(file)), (160, 120)) for file in shown]))
    if not lines:
        raise UserError(f"no group has {columns} files; leave out --montage.")
    cv2.imwrite(path, np.vstack(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder of class folders, or of images")
    parser.add_argument("--expected", default="", help="CLASS=files per photograph, separated by commas")
    parser.add_argument("--stride", type=int, default=1, help="take every n-th file")
    parser.add_argument("--copies", type=int, default=6, help="augmented copies of each distinct photograph")
    parser.add_argument("--photographs", type=int, default=300, help="at most so many distinct photographs")
    parser.add_argument("--shift", type=float, default=0.1, help="largest shift, as a share of the side")
    parser.add_argument("--distinct", action="store_true", help="every file is a photograph of its own")
    parser.add_argument("--montage", default="", help="PNG of ten groups, eight files each")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    root = pathlib.Path(options.images)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)[:: options.stride]
    if not files:
        raise UserError(f"--images={options.images} holds no JPEG or PNG files; name a folder with images.")
    report: dict = {"images": str(root), "files": len(files)}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        distinct = files
        if not options.distinct:
            start = time.monotonic()
            described = list(pool.map(_describe, files, chunksize=32))
            report["signatures_per_second"] = round(len(files) / (time.monotonic() - start), 1)
            ids = [str(file.relative_to(root)) for file in files]
            classes = [str(file.parent.relative_to(root)) for file in files]
            start = time.monotonic()
            found = duplicates.cluster(ids, classes, [d[0] for d in described], np.stack([d[1] for d in described]))
            report["cluster_seconds"] = round(time.monotonic() - start, 1)
            report["statistics"] = found.statistics
            expected = {k: float(v) for k, v in (item.split("=") for item in options.expected.split(",") if item)}
            report["classes"] = {}
            for name in sorted(set(classes)):
                sizes = collections.Counter(g for g, c in zip(found.groups, classes, strict=True) if c == name)
                report["classes"][name] = {"files": sizes.total(), "groups": len(sizes)}
                report["classes"][name]["sizes"] = dict(sorted(collections.Counter(sizes.values()).items()))
                if name in expected:
                    near = [n for n in sizes.values() if abs(n / expected[name] - 1) <= 0.15]
                    report["classes"][name]["share_in_expected_size"] = round(sum(near) / sizes.total(), 4)
            if options.montage:
                montage(options.montage, files, found.groups)
            firsts = dict(zip(reversed(found.groups), reversed(files), strict=True))
            distinct = sorted(firsts.values())
        step = max(1, len(distinct) // options.photographs)
        report["synthetic"] = synthetic(distinct[::step][: options.photographs], options.copies, options.shift, pool)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    run(main)
