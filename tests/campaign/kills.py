"""Does a run that is killed at any moment end as if nobody had touched it?

    python -m tests.campaign.kills [--count=100] [--points=1] [--seed=0] [--out=summary.json] [--folder=DIR]

Three tiny studies take turns: trials one by one with everything that a state can hold, two cohorts of two members, and
successive halving. First SIGKILL at every named point of `tests.campaign.driver` (`--points=0` leaves these out), then
`--count` SIGKILLs at moments drawn uniformly over the life of a process (three in ten) or over what follows its imports
(seven in ten); a run that was killed is started again until it finishes, and the next kills hit a new run. Every
finished run must have the states (SHA-256), ledger, metric rows, predictions, figures and files of the undisturbed run,
and leave no process, shared memory or temporary file.
"""

import pathlib
import random
import signal
import subprocess
import sys
import time

from tests.campaign import common, driver

ONLY = {"plan.json: before the rename": "cohorts", "rungs.json: before the rename": "halving"}
"""Points that only one study passes; the others are met by the studies in turn."""


class Attacked:
    """A study under attack: its reference, and the run that is being killed."""

    def __init__(self, study: common.Study) -> None:
        self.study = study
        self.reference, self.seconds = common.undisturbed(study)
        self.log = study.folder / f"{study.name}.log"
        self.runs = 0
        self.hits: list[str] = []

    @property
    def workdir(self) -> pathlib.Path:
        """Of the run that is being killed."""
        return self.study.folder / f"{self.study.name}-{self.runs}"

    def settle(self, status: int) -> None:
        """A finished run is compared, and the next one begins."""
        workdir, hits = self.workdir, " | ".join(self.hits)
        self.runs, self.hits = self.runs + 1, []
        if status:
            text = self.log.read_text(encoding="utf-8", errors="replace")[-600:]
            raise common.Fault(f"status {status} after {hits}; the log ends with {text!r}")
        try:
            common.assert_same(workdir, self.reference)
        except AssertionError as error:
            raise common.Fault(f"after {hits}: {common.in_words(error)}") from error

    def kill_after(self, share: float, at_work: bool) -> str:
        """Kills a process of the run after a share of its life; says in what activity, or "finished before the kill".

        With `at_work` the share is of the time behind the imports, which take most of the life of so short a run.
        """
        process, begun = self.study.start(self.workdir, self.log), time.monotonic()
        while at_work and process.poll() is None and self.study.activity() == "start":
            time.sleep(0.002)
        waited = time.monotonic() - begun
        seconds = share * max(0.2, self.seconds - waited) if at_work else share * self.seconds
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            activity = self.study.activity()
            process.send_signal(signal.SIGKILL)
            process.wait()
            self.hits.append(f"{activity} at {waited + seconds:.2f} s")
            return f"killed in {activity}"
        self.settle(status)
        return "finished before the kill"

    def kill_at(self, point: str, number: int) -> bool:
        """Kills at the n-th passage of a point; returns whether the run came there (else it has finished)."""
        status = self.study.finish(self.workdir, self.log, CRASH_POINT=f"{point}:{number}")
        if status == -signal.SIGKILL:
            self.hits.append(f"{point} ({number})")
            return True
        self.settle(status)
        return False


def campaign(count: int, seed: int, folder: pathlib.Path, points: int = 1) -> common.Tally:
    """See the docstring of this file."""
    rng = random.Random(seed)
    attacked = {
        name: Attacked(common.study(name, folder / name, **changes))
        for name, changes in (("single", common.SINGLE), ("cohorts", common.COHORTS), ("halving", common.HALVING))
    }
    named = list(driver.POINTS) if points else []
    tally = common.Tally("SIGKILL", seed, len(named) + count)
    leftovers = {name: common.Leftovers(own.study.folder) for name, own in attacked.items()}
    turns = list(attacked)
    for position, point in enumerate(named):
        name = ONLY.get(point, turns[position % len(turns)])
        with tally.attempt(f"{name}, {point}"):
            number = rng.choice((1, 2))
            if point.startswith(("config", "environment", "report", "plan", "rungs")):
                number = 1
            # A run that is nearly over may not pass the point again; the next one does.
            if not any(attacked[name].kill_at(point, number) for _ in range(2)):
                raise common.Fault("the point was not met in a whole run")
            tally.count("killed at a named point")
            leftovers[name].check()
    kills = 0
    while kills < count:
        name, finished = rng.choice(turns), False
        with tally.attempt(f"{name}, kill {kills}"):
            outcome = attacked[name].kill_after(rng.uniform(0, 1.05), at_work=rng.random() < 0.7)
            finished = outcome.startswith("finished")
            leftovers[name].check()
            tally.count(outcome)
        kills += not finished
    for name, own in attacked.items():
        if own.hits:
            with tally.attempt(f"{name}, to the end"):
                own.settle(own.study.finish(own.workdir, own.log))
                leftovers[name].check()
                tally.count("finished undisturbed after kills")
    return tally


if __name__ == "__main__":
    sys.exit(common.main("kills", __doc__, campaign, 100, points=(int, 1, "whether to crash at the named points")))
