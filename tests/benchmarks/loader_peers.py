"""How fast are tf.data and PyTorch's DataLoader on the images that loader.py measures? Prints one line of JSON.

One peer, run by the Python of the peer's own virtual environment (this file imports nothing of the project):

    PEER_PYTHON tests/benchmarks/loader_peers.py --peer=tf.data --records=DIR
    PEER_PYTHON tests/benchmarks/loader_peers.py --peer=torch --files=DIR

All of them in turn, A B C A B C, with medians and ratios (the project's Python):

    python -m tests.benchmarks.loader_peers --records=DIR --files=DIR --tf_python=PATH --torch_python=PATH [--rounds=3]

Each gets what its own documentation recommends: tf.data a shuffle buffer as large as the data, a parallel map,
batches and prefetching, all tuned automatically; PyTorch a DataLoader with a worker process per core. All decode in
full (accurate transform), resize to a square by area and give uint8 batches (`--tf_resize=antialias` takes TensorFlow's
antialiased bilinear filter, what torchvision does, in place of area). Rates are images/s of wall time and of processor
time (children included), after as many images to warm up.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

CORES = len(os.sched_getaffinity(0))


def _tensorflow_epochs(arguments: argparse.Namespace) -> Callable[[], int]:
    import tensorflow as tf

    names = sorted(str(path) for path in pathlib.Path(arguments.records).glob("*.tfrecord-*-of-*[0-9]"))
    size, batch_size = arguments.image_size, arguments.batch_size

    def decode(record):
        feature = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([1], tf.int64)}
        example = tf.io.parse_single_example(record, feature)
        image = tf.image.decode_jpeg(example["image"], channels=3, dct_method="INTEGER_ACCURATE")
        if arguments.tf_resize == "area":
            image = tf.image.resize(image, (size, size), method="area")
        else:
            image = tf.image.resize(image, (size, size), method="bilinear", antialias=True)
        return tf.cast(tf.round(image), tf.uint8), example["label"][0]

    records = tf.data.TFRecordDataset(names, num_parallel_reads=tf.data.AUTOTUNE)
    count = sum(1 for _ in records)
    batches = records.shuffle(count, reshuffle_each_iteration=True).repeat()
    batches = batches.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    iterator = iter(batches.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE))

    def epoch() -> int:
        return sum(len(next(iterator)[1]) for _ in range(arguments.images // batch_size))

    return epoch


def _torch_epochs(arguments: argparse.Namespace) -> Callable[[], int]:
    import numpy as np
    import torch
    from PIL import Image

    suffixes = {".jpg", ".jpeg", ".png"}
    files = sorted(path for path in pathlib.Path(arguments.files).rglob("*") if path.suffix.lower() in suffixes)
    files = files[:: max(1, len(files) // arguments.images)][: arguments.images]
    classes = sorted({path.parent.name for path in files})

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(files)

        def __getitem__(self, index):
            path = files[index]
            with Image.open(path) as image:
                pixels = image.convert("RGB").resize((arguments.image_size,) * 2, Image.Resampling.BOX)
            return torch.from_numpy(np.array(pixels)), classes.index(path.parent.name)

    batches = torch.utils.data.DataLoader(
        Images(), arguments.batch_size, shuffle=True, num_workers=CORES, drop_last=True
    )
    return lambda: sum(len(labels) for _, labels in batches)


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def run_peer(arguments: argparse.Namespace) -> dict:
    """Rates of one peer in images/s, by wall time and by processor time."""
    epoch = {"tf.data": _tensorflow_epochs, "torch": _torch_epochs}[arguments.peer](arguments)
    epoch()
    wall, processor = time.perf_counter(), _processor_seconds()
    count = epoch()
    return {
        "peer": arguments.peer,
        "images_per_second": round(count / (time.perf_counter() - wall), 1),
        "images_per_processor_second": round(count / (_processor_seconds() - processor), 1),
        "images": count,
        "cores": CORES,
    }


def _last_json(command: list[str]) -> dict:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(arguments: argparse.Namespace) -> dict:
    """The loader and its peers in turn: medians over the rounds, and the loader's rate over each peer's."""
    options = [f"--{name}={getattr(arguments, name)}" for name in ("image_size", "batch_size", "images")]
    here = [f"--records={arguments.records}", f"--files={arguments.files}", f"--tf_resize={arguments.tf_resize}"]
    rounds: dict[str, list[dict]] = {"loader": [], "tf.data": [], "torch": []}
    for _ in range(arguments.rounds):
        command = [sys.executable, "-m", "tests.benchmarks.loader", f"--dataset={arguments.records}", "--rounds=1"]
        rounds["loader"].append(_last_json(command + options))
        for peer, python in (("tf.data", arguments.tf_python), ("torch", arguments.torch_python)):
            rounds[peer].append(_last_json([python, __file__, f"--peer={peer}", *here, *options]))
    result = {}
    for kind, key in (("wall", "images_per_second"), ("processor", "images_per_processor_second")):
        rates = {"loader": [one[f"loader_{key}"] for one in rounds["loader"]]}
        rates["bare"] = [one[f"bare_{key}"] for one in rounds["loader"]]
        rates |= {peer: [one[key] for one in rounds[peer]] for peer in ("tf.data", "torch")}
        medians = {name: statistics.median(values) for name, values in rates.items()}
        ratios = {f"loader_over_{peer}": round(medians["loader"] / medians[peer], 2) for peer in ("tf.data", "torch")}
        # Bare decoding runs on one core; processor time counts the cores already.
        cores = CORES if kind == "wall" else 1
        ratios["loader_over_bare"] = round(medians["loader"] / (medians["bare"] * cores), 3)
        result[kind] = {"images_per_second": medians, **ratios, "rounds": rates}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=("tf.data", "torch"), help="measure this one here; otherwise compare all")
    parser.add_argument("--records", help="a prepared data set of JPEG images")
    parser.add_argument("--files", help="a folder of the raw images, in folders of classes")
    parser.add_argument("--tf_python", help="the Python of an environment with TensorFlow")
    parser.add_argument("--torch_python", help="the Python of an environment with torch and pillow")
    parser.add_argument("--tf_resize", choices=("area", "antialias"), default="area", help="tf.data's resizing")
    parser.add_argument("--image_size", type=int, default=128, help="pixels")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--images", type=int, default=8192, help="images per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(json.dumps(run_peer(arguments) if arguments.peer else compare(arguments)))


if __name__ == "__main__":
    main()
