"""How fast is research.predict beside a timm script with the same network, on the same image files? Prints JSON.

    python -m tests.benchmarks.predict_peers --run=RUN --images=DIR --timm=PYTHON
        [--count=512] [--rounds=5] [--batch_size=32] [--workers=0,2]

RUN is a finished run of a network that timm has under the same name, such as resnet18 at 224 px, without test-time
views; PYTHON an interpreter with PyTorch and timm. The peer is what a user of timm writes: a DataLoader with 0 or 2
workers, `timm.create_model` with random weights, its transform for evaluation without crop (full decode by Pillow,
bilinear resize to the same square, normalisation), `torch.inference_mode`, channels last, float32. Both decode fully
and resize then.

The two take turns, each time as a process of its own (A B A C, A B A C, …). Per peer: medians over the rounds of
images/s as a whole (from the start of the process to its last prediction: imports, weights, compilation) and steady
(behind the first two batches), and steady per second of the processor's time, workers included, which says more where
others use the machine; and medians of the ratios within a round. `loads` are the machine's load averages meanwhile.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = ("whole", "steady", "processor")


def run(command: list[str]) -> dict:
    """The JSON on the last line of a command's output.

    Raises:
      SystemExit: the command failed; says how.
    """
    # Waiting threads of OpenMP would otherwise take the processor from the workers that decode.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(arguments: argparse.Namespace) -> dict:
    """All that is measured, by number of the peer's workers."""
    config = json.loads((pathlib.Path(arguments.run) / "config.json").read_text(encoding="utf-8"))
    if config["evaluation"]["tta"] != "none":
        sys.exit("the run looks at several views of an image, the peer at one; train with config.evaluation.tta=none.")
    common = [f"--images={arguments.images}", f"--count={arguments.count}", f"--batch_size={arguments.batch_size}"]
    ours = [sys.executable, "-m", "tests.benchmarks.predict_ours", f"--run={arguments.run}", *common]
    theirs = [arguments.timm, str(ROOT / "tests" / "benchmarks" / "peers" / "timm_predict.py"), *common]
    theirs += [f"--model={config['model']['name']}", f"--image_size={config['image_size']}"]
    workers = [int(number) for number in arguments.workers.split(",")]
    rounds: dict[int, list[tuple[dict, dict]]] = {number: [] for number in workers}
    loads = []
    for turn in range(arguments.rounds):
        for number in workers:
            rounds[number].append((run(ours), run([*theirs, f"--workers={number}"])))
            loads.append(os.getloadavg()[0])
            print(f"round {turn}, {number} workers: {rounds[number][-1]}", file=sys.stderr, flush=True)
    result = {"model": config["model"]["name"], "image_size": config["image_size"], "loads": loads}
    for number, pairs in rounds.items():
        entry = {}
        for kind in KINDS:
            mine, other = [a[kind] for a, _ in pairs], [b[kind] for _, b in pairs]
            ratios = [a / b for a, b in zip(mine, other, strict=True)]
            entry[kind] = {
                "ours": statistics.median(mine),
                "timm": statistics.median(other),
                "ratio": statistics.median(ratios),
                "ratios": ratios,
            }
        result[f"workers_{number}"] = entry
    return result


def main() -> None:
    """Prints the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--timm", required=True)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--workers", default="0,2")
    print(json.dumps(compare(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
