"""Does a run that is asked to stop say so, save, and go on later as if nothing had happened?

    python -m tests.campaign.signals [--count=30] [--bound=60] [--seed=0] [--out=summary.json] [--folder=DIR]

SIGTERM and SIGINT in turn, during compilation, training, evaluation, saving and the report, at a random moment after
the activity was first seen. The process must end with status 75 within `--bound` seconds (of a busy machine) and leave
no process; after a second signal, which every third attempt sends, it may also end with 128 + the signal at once. The
same command then goes on; the finished run equals the undisturbed one in all that `common.assert_same` compares.
"""

import pathlib
import random
import signal
import subprocess
import sys
import time

from research.training.signals import EXIT_STOPPED
from tests.campaign import common
from tests.campaign.kills import Attacked

LONGEST = {"compile": 1.0, "step": 0.1, "save": 0.03, "evaluate": 0.1, "report": 1.0}
"""Activities, and up to how many seconds after their beginning the signal comes."""


def stop(own: Attacked, activity: str, number: int, rng: random.Random, bound: float, twice: bool) -> str:
    """Signals a process of the run in an activity; says how it ended."""
    process = own.study.start(own.workdir, own.log)
    occurrence = rng.choice((1, 1, 1, 2))
    seen = _wait_for(own, process, activity, occurrence)
    time.sleep(rng.uniform(0, LONGEST[activity]))
    if process.poll() is not None:
        own.settle(process.returncode)
        return "finished before the signal"
    seen = own.study.activity()
    process.send_signal(number)
    begun = time.monotonic()
    if twice:
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(number)
    try:
        status = process.wait(bound)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.wait()
        raise common.Fault(f"in {seen}: alive {bound:.0f} s after signal {number}") from error
    own.hits.append(f"signal {number} in {seen}, status {status} after {time.monotonic() - begun:.1f} s")
    if status == 0:  # it was about to end
        own.settle(status)
        return "finished with the signal"
    if status not in ((EXIT_STOPPED, 128 + number) if twice else (EXIT_STOPPED,)):
        raise common.Fault(f"in {seen}: status {status} after signal {number}{' twice' if twice else ''}")
    return f"{'forced' if status > 127 else 'stopped'} in {seen}"


def _wait_for(own: Attacked, process: subprocess.Popen, activity: str, occurrence: int) -> None:
    """Returns when the activity has begun so many times, or the process has ended."""
    times, before = 0, ""
    while process.poll() is None and times < occurrence:
        now = own.study.activity()
        times += now == activity and before != activity
        before = now
        time.sleep(0.001)


def campaign(count: int, seed: int, folder: pathlib.Path, bound: float = 60.0) -> common.Tally:
    """See the docstring of this file."""
    rng = random.Random(seed)
    attacked = [
        Attacked(common.study(name, folder / name, **changes))
        for name, changes in (("single", common.SINGLE), ("cohorts", common.COHORTS))
    ]
    leftovers = [common.Leftovers(own.study.folder) for own in attacked]
    tally = common.Tally("signals", seed, count)
    activities, done, tries = list(LONGEST), 0, 0
    while done < count and tries < 3 * count:
        own, tries = attacked[tries % 2], tries + 1
        activity = activities[done % len(activities)]
        number = (signal.SIGTERM, signal.SIGINT)[done // len(activities) % 2]
        ended = "failed"
        with tally.attempt(f"{own.study.name}, {number.name} in {activity}"):
            ended = stop(own, activity, number, rng, bound, twice=done % 3 == 2)
            leftovers[tries % 2 - 1].check()
            tally.count(ended)
        done += not ended.startswith("finished")
    for own in attacked:
        if own.hits:
            with tally.attempt(f"{own.study.name}, to the end"):
                own.settle(own.study.finish(own.workdir, own.log))
                tally.count("resumed to the same end")
    return tally


if __name__ == "__main__":
    options = {"bound": (float, 60.0, "seconds that a stop may take")}
    sys.exit(common.main("signals", __doc__, campaign, 30, **options))
