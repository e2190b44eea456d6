"""How fast are batches made, beside the bare decoding and resizing of the same images? Prints one line of JSON.

    python -m tests.benchmarks.loader --dataset=DIR [--image_size=128] [--batch_size=32] [--threads=N] [--rounds=5]

`loader` is the whole pipeline (global shuffle, checksums, decoding, resizing, batches; no cache), `bare` is decoding
and resizing from memory on one thread, `bare_threads` the same on all threads at once, all in images/s: medians over
rounds in which the three take turns, and of the ratios within a round. `loader_over_bare_times_cores` is the share of
what the cores could do at best, and `parallel` what the machine itself loses when all cores work. On a machine shared
with other programs wall time says little: `cpu_share` (processor time per image, bare / loader) is the loader's cost
free of them.
"""

import argparse
import concurrent.futures
import functools
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from input_pipeline import cli, images, loader
from input_pipeline.dataset import Dataset, open_dataset
from input_pipeline.sampling import Sampler


def _timed(work: Callable[[], int]) -> tuple[float, float]:
    """Images per second of wall time and of processor time, where `work` returns how many it made."""
    wall, processor = time.perf_counter(), time.process_time()
    count = work()
    return count / (time.perf_counter() - wall), count / (time.process_time() - processor)


def _load(dataset: Dataset, round_number: int, arguments: argparse.Namespace, count: int) -> int:
    steps = count // arguments.batch_size
    sampler = Sampler("uniform", dataset.labels, np.arange(len(dataset)), seed=round_number)
    batches = loader.train_batches(
        dataset, sampler, arguments.batch_size, 0, steps, arguments.image_size, threads=arguments.threads
    )
    return sum(int(batch["valid"].sum()) for batch in batches)


def _decode_all(encoded: list[bytes], image_size: int, channels: int) -> None:
    for data in encoded:
        images.resize(images.decode(data, channels), image_size)


def _bare(encoded: list[bytes], image_size: int, channels: int, threads: int) -> int:
    parts = [encoded[part::threads] for part in range(threads)]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: _decode_all(part, image_size, channels), parts))
    return len(encoded)


def measure(arguments: argparse.Namespace) -> dict:
    """The rates in images/s and their ratios."""
    dataset = open_dataset(arguments.dataset)
    threads = arguments.threads = arguments.threads or loader.available_cores()
    count = arguments.images // arguments.batch_size * arguments.batch_size
    encoded = [dataset.encoded(index % len(dataset)) for index in range(count)]
    size, channels = arguments.image_size, dataset.channels
    works = {
        "bare": lambda round_number: _bare(encoded, size, channels, 1),
        "loader": lambda round_number: _load(dataset, round_number, arguments, count),
        "bare_threads": lambda round_number: _bare(encoded, size, channels, threads),
    }
    _load(dataset, 0, arguments, count)  # warms the page cache
    rates: dict[str, list[float]] = {name: [] for name in works}
    processor: dict[str, list[float]] = {name: [] for name in works}
    for round_number in range(arguments.rounds):
        for name, work in works.items():
            wall_rate, processor_rate = _timed(functools.partial(work, round_number))
            rates[name].append(wall_rate)
            processor[name].append(processor_rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}

    def ratio(one: list[float], other: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(one, other, strict=True))

    cores = loader.available_cores()
    return {
        "images": count,
        "image_size": arguments.image_size,
        "batch_size": arguments.batch_size,
        "threads": threads,
        "cores": cores,
        **{f"{name}_images_per_second": round(rate, 1) for name, rate in medians.items()},
        **{
            f"{name}_images_per_processor_second": round(statistics.median(values), 1)
            for name, values in processor.items()
        },
        "loader_over_bare_times_cores": round(ratio(rates["loader"], rates["bare"]) / cores, 3),
        "loader_over_bare_threads": round(ratio(rates["loader"], rates["bare_threads"]), 3),
        "cpu_share": round(ratio(processor["loader"], processor["bare"]), 3),
        "parallel": round(ratio(rates["bare_threads"], rates["bare"]) / threads, 3),
        "rounds": {name: [round(value, 1) for value in values] for name, values in rates.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="a prepared data set")
    parser.add_argument("--image_size", type=int, default=128, help="pixels")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, help="decoding threads; all cores by default")
    parser.add_argument("--images", type=int, default=8192, help="images per round, over epochs if need be")
    parser.add_argument("--rounds", type=int, default=5)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    cli.run(main)
