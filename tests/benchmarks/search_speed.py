"""How many small CNNs an hour does a search train, beside training them one by one? Prints tables, writes JSON.

    python -m tests.benchmarks.search_speed --data=PREPARED_DATASET --out=DIR [--keras=KERAS_PYTHON] [--steps=3740]
        [--filters=8,16;16,32] [--rounds=1] [--parties=ours,one by one,flax,flax reshape,keras]

64 trials: 8 shapes (2 filter sets x kernels of 3 and 5 x dense layers of 32 and 64) x 8 settings (learning rate, weight
decay, dropout). The parties, each a process that uses all cores:

    ours          research.main as it is, plan auto
    one by one    research.main with config.search.plan="one by one"
    flax          plain Flax, one jitted step for each shape, settings as its arguments
    flax reshape  the same with max-pooling by reshape
    keras         Keras on JAX, `compile` and `fit` for each trial; left out without --keras

A machine that others use is fast in one minute and slow in the next, so the parties of a round run in turns: all but
one are stopped (SIGSTOP), and the party that has come least far goes on until it prints a line after `--turn` seconds.
Only a party's own turns count. Times begin with the launch of the process, with imports and compilations; caches of
compiled programs and plans are empty. The others get decoded images, while ours decodes its own.

* models an hour: until the last model is tested; "with report": until the process ends;
* processor seconds a model: of all cores, to the end of the process; says more where others use the machine;
* ms per model-step: median over stretches of training without first steps, evaluations or checkpoints;
* test accuracy: of the best of 4 checkpoints by validation loss; mean and standard deviation over the trials.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import queue
import re
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time

import numpy as np

from input_pipeline import cli
from input_pipeline.dataset import open_dataset
from input_pipeline.loader import DecodedCache
from research.report import tables
from tests.benchmarks import search_speed_config as trials

_ROOT = pathlib.Path(__file__).parents[2]
_TRIALS = (
    len(trials.KERNELS)
    * len(trials.UNITS)
    * len(trials.LEARNING_RATES)
    * len(trials.WEIGHT_DECAYS)
    * len(trials.DROPOUTS)
)
_OURS = ("ours", "one by one")
_LOGGED = re.compile(r"(cohort-\w+)  step (\d+)/\d+  (\d+) members")
_ENDED = re.compile(r"cohort-\w+: \d+ trials took")


@dataclasses.dataclass
class Party:
    """A process and what it has said so far.

    Attributes:
      spent: seconds of its turns.
      lines: (seconds of its turns, text).
      steps: model-steps taken, by part of the work.
      processor: seconds of processor time, known at the end.
    """

    name: str
    process: subprocess.Popen
    folder: pathlib.Path
    said: queue.Queue
    spent: float = 0.0
    lines: list[tuple[float, str]] = dataclasses.field(default_factory=list)
    steps: dict[str, int] = dataclasses.field(default_factory=dict)
    processor: float = 0.0

    def hear(self, seconds: float, text: str) -> None:
        """Takes a line in."""
        self.lines.append((seconds, text))
        if found := _LOGGED.match(text):
            self.steps[found[1]] = int(found[2]) * int(found[3])
        elif text.startswith("{") and "steps" in (own := json.loads(text)):
            self.steps[str(len(self.steps))] = own["steps"]

    def signal(self, number: int) -> None:
        """To the process and those that it started."""
        os.killpg(self.process.pid, number)


def decode(directory: str, file: pathlib.Path) -> None:
    """The images of a prepared data set as the peers get them: uint8 `[n, 28, 28, 3]` and int32 labels by role."""
    dataset = open_dataset(directory)
    cache = DecodedCache(dataset, trials.IMAGE_SIZE, 3, "stretch")
    images, arrays = cache.fill().array, {}
    for role in ("train", "validation", "test"):
        indices = dataset.indices(role)
        arrays |= {role: np.asarray(images[indices]), f"{role}_labels": dataset.labels[indices].astype(np.int32)}
    np.savez(file, **arrays)


def command(name: str, filters: str, options: argparse.Namespace, folder: pathlib.Path) -> list[str]:
    """The command line of a party."""
    if name in _OURS:
        every = options.steps // trials.EVALUATIONS
        return [
            *(sys.executable, "-m", "research.main", "--allow_cpu", f"--workdir={folder / 'run'}"),
            f"--config={_ROOT / 'tests/benchmarks/search_speed_config.py'}:{filters.replace(',', 'x')}",
            *(f"--config.data.dir={options.data}", f"--config.steps={options.steps}"),
            *(f"--config.evaluate_every={every} steps", f"--config.checkpoint_every={every} steps"),
            f"--config.log_every={every // 2} steps",
            f"--config.search.plan={'auto' if name == 'ours' else name}",
        ]
    grid = {"kernels": trials.KERNELS, "units": trials.UNITS, "learning_rate": trials.LEARNING_RATES}
    grid |= {"weight_decay": trials.WEIGHT_DECAYS, "dropout": trials.DROPOUTS}
    library = name.split()[0]
    return [
        *(options.keras if library == "keras" else sys.executable, __file__.replace(".py", f"_{library}.py")),
        *(f"--data={options.out}/images.npz", f"--filters={filters}", f"--grid={json.dumps(grid)}"),
        *(f"--steps={options.steps}", f"--evaluations={trials.EVALUATIONS}", f"--batch_size={trials.BATCH_SIZE}"),
        *(["--reshape"] if "reshape" in name else []),
    ]


def launch(name: str, filters: str, options: argparse.Namespace, folder: pathlib.Path) -> Party:
    """Starts a party, stopped at once."""
    folder.mkdir(parents=True)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(_ROOT),
        "PYTHONUNBUFFERED": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # as research.main sets it; for all
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    process = subprocess.Popen(
        command(name, filters, options, folder),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=(folder / "errors.log").open("w"),
        text=True,
        start_new_session=True,
    )
    said: queue.Queue = queue.Queue()

    def listen() -> None:
        for line in process.stdout:
            said.put((time.perf_counter(), line.rstrip()))
        said.put((time.perf_counter(), None))

    party = Party(name, process, folder, said)
    party.signal(signal.SIGSTOP)
    threading.Thread(target=listen, daemon=True).start()
    return party


def _of_children() -> float:
    """Processor seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def take_turn(party: Party, seconds: float) -> bool:
    """Lets a party go on until it says something after `seconds`; whether it has more to do."""
    start = time.perf_counter()
    before = party.spent
    party.signal(signal.SIGCONT)
    while True:
        moment, line = party.said.get()
        if line is None:
            party.spent = before + moment - start
            before_exit = _of_children()
            status = party.process.wait()
            party.processor = _of_children() - before_exit
            if status:
                raise cli.UserError(f"{party.name} failed; read {party.folder / 'errors.log'}.")
            return False
        party.hear(before + max(0.0, moment - start), line)
        if moment - start > seconds:
            party.signal(signal.SIGSTOP)
            party.spent = before + time.perf_counter() - start
            return True


def play(filters: str, options: argparse.Namespace, folder: pathlib.Path) -> list[Party]:
    """A round: all parties in turns, to their ends."""
    total = _TRIALS * options.steps
    parties: list[Party] = []
    try:
        parties += [launch(name, filters, options, folder / name.replace(" ", "_")) for name in options.parties]
        running = list(parties)
        while running:
            party = min(running, key=lambda one: sum(one.steps.values()) / total)
            if not take_turn(party, options.turn):
                running.remove(party)
                print(f"  {party.name}: {party.spent:.0f} s", file=sys.stderr, flush=True)
    finally:
        for party in parties:
            if party.process.poll() is None:
                party.signal(signal.SIGKILL)
    return parties


def figures(party: Party) -> dict:
    """What a party's lines say."""
    ours = party.name in _OURS
    tested = max(s for s, text in party.lines if (_ENDED.match(text) if ours else '"trial"' in text))
    stretches, plans = [], {}
    for (start, first), (end, second) in zip(party.lines, party.lines[1:], strict=False):
        if ours:
            a, b = _LOGGED.match(first), _LOGGED.match(second)
            if a and b and a[1] == b[1]:
                stretches.append((end - start) / (int(b[2]) - int(a[2])) / int(b[3]))
        elif '"begin"' in first and '"end"' in second and json.loads(first)["part"] > 0:
            stretches.append((end - start) / json.loads(second)["steps"])
    if ours:
        plans = json.loads((party.folder / "run" / "plan.json").read_text())["cohorts"]
        rows = tables.read_trials_csv(party.folder / "run" / "trials.csv")
        accuracies = {row["id"]: row["metrics"]["test"]["accuracy"] for row in rows}
    else:
        ends = [json.loads(text) for _, text in party.lines if '"trial"' in text]
        accuracies = {str(number): end["test"] for number, end in enumerate(ends)}
    if len(accuracies) != _TRIALS:
        raise cli.UserError(f"{party.name} trained {len(accuracies)} of {_TRIALS} models; read its errors.log.")
    return {
        "models_per_hour": 3600 * _TRIALS / tested,
        "with_report": 3600 * _TRIALS / party.spent,
        "milliseconds": 1000 * statistics.median(stretches),
        "processor_seconds": party.processor / _TRIALS,
        "seconds": party.spent,
        "test_accuracy": accuracies,
        "plans": plans,
        "lines": party.lines,
    }


def say(filters: str, rounds: list[dict[str, dict]], steps: int) -> None:
    """The table of a filter set: medians over the rounds, and the ranges of the ratios within rounds."""
    print(f"\nfilters {filters}: {_TRIALS} models of {steps} steps, {len(rounds)} round(s)")
    titles = f"{'party':14s}{'models/h':>10s}{'with report':>13s}{'ms/step':>9s}{'processor s':>13s}"
    print(f"{titles}{'test accuracy %':>17s}{'ours is':>24s}")
    for name in rounds[0]:
        own = [found[name] for found in rounds]
        middle = {key: statistics.median(one[key] for one in own) for key in list(own[0])[:4]}
        accuracy = 100 * np.array([list(one["test_accuracy"].values()) for one in own])
        text = f"{name:14s}{middle['models_per_hour']:10.0f}{middle['with_report']:13.0f}{middle['milliseconds']:9.2f}"
        text += f"{middle['processor_seconds']:13.2f}"
        text += f"{f'{accuracy.mean():.1f} ± {accuracy.std():.1f}':>17s}"
        if "ours" in rounds[0] and name != "ours":
            ratios = [found["ours"]["models_per_hour"] / found[name]["models_per_hour"] for found in rounds]
            spread = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} .. {max(ratios):.2f})"
            text += f"{spread:>24s}"
        print(text)
    for found in rounds:
        if set(_OURS) <= set(found):
            one, other = (found[name]["test_accuracy"] for name in _OURS)
            gaps = 100 * np.abs([one[key] - other[key] for key in one])
            print(f"ours and one by one, trial by trial: {gaps.mean():.2f} points apart, at most {gaps.max():.2f}")
        for plan in found.get("ours", {}).get("plans", ()):
            print(f"  {plan['cohort']}: {plan['plan']} ({plan['reason']})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a prepared data set")
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument("--keras", default="", help="python of an environment with Keras 3 and JAX")
    parser.add_argument("--steps", type=int, default=3740, help="of each model; a multiple of 8")
    parser.add_argument("--filters", default="8,16;16,32")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--parties", default="ours,one by one,flax,flax reshape,keras")
    parser.add_argument("--turn", type=float, default=10.0, help="seconds")
    options = parser.parse_args()
    options.data, options.out = pathlib.Path(options.data).resolve(), pathlib.Path(options.out).resolve()
    options.parties = [name for name in options.parties.split(",") if options.keras or name != "keras"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no stopped process stays behind
    options.steps -= options.steps % (2 * trials.EVALUATIONS)
    if options.out.exists():
        raise cli.UserError(f"{options.out} exists; name a new folder with --out.")
    options.out.mkdir(parents=True)
    decode(options.data, options.out / "images.npz")
    results: dict[str, list] = {}
    for number in range(options.rounds):
        for filters in options.filters.split(";"):
            print(f"round {number + 1}, filters {filters}", file=sys.stderr, flush=True)
            parties = play(filters, options, options.out / f"round{number + 1}" / filters.replace(",", "x"))
            results.setdefault(filters, []).append({party.name: figures(party) for party in parties})
            content = {"steps": options.steps, "cores": len(os.sched_getaffinity(0)), "results": results}
            cli.atomic_write(options.out / "search_speed.json", json.dumps(content, indent=1) + "\n")
    for filters, rounds in results.items():
        say(filters, rounds, options.steps)


if __name__ == "__main__":
    cli.run(main)
