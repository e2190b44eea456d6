"""How many images a second does research.predict do? Prints one line of JSON.

    python -m tests.benchmarks.predict_ours --run=RUN --images=DIR --count=512 --batch_size=32

`whole`: from the start of the process to the last row; `steady`: behind the first two batches; `processor`: the same by
a second of the processor's time.
"""

from research import memory

if __name__ == "__main__":
    memory.restart_with_huge_pages()

import argparse
import dataclasses
import json
import time

import psutil


def main() -> None:
    """Prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    arguments = parser.parse_args()
    import research
    from research.prediction import inputs

    model = research.load(arguments.run, batch_size=arguments.batch_size)
    found = inputs.of_images(arguments.images, {})
    count = min(arguments.count, len(found))
    found = dataclasses.replace(found, ids=found.ids[:count], paths=found.paths[:count])
    times = [(time.time(), time.process_time()) for _ in model.scored(found)]
    wall, processor = (end - start for start, end in zip(times[1], times[-1], strict=True))
    rest = count - 2 * arguments.batch_size
    whole = count / (times[-1][0] - psutil.Process().create_time())
    print(json.dumps({"whole": whole, "steady": rest / wall, "processor": rest / processor, "count": count}))


if __name__ == "__main__":
    main()
