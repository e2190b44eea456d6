"""Which plan is the fastest for a cohort on this machine? They are timed for a few steps and the answer is kept.

`RUN/plan.json` says for every cohort what was measured and chosen; a resumed run keeps its plans, because another plan
gives other bits. The user's cache folder keeps the choices by device, versions, program and number of members, so that
the next search does not measure again.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import time

import jax
import numpy as np

from input_pipeline.cli import UserError, atomic_write
from input_pipeline.loader import RAM_SHARE, available_bytes
from research.search import plans
from research.search.cohort import Cohort
from research.search.cohort_training import CohortTraining
from research.search.plans import Plan

_STEPS = 16  # in one call of a plan with a loop over steps
_CHUNKS = (2, 4)
_SAVING = 0.5  # share of a training one by one that another plan may save; a third was measured, this is generous
_NEAR = 1.15  # plans this close to the best of a like cohort are timed again, others are not


class Planner:
    """Chooses plans for the cohorts of a run folder.

    Args:
      folder: the run folder.
      forced: `config.search.plan`: one of `plans.KINDS`, or "auto".
      cache: folder for the choices of this machine; None where none can be written.

    Raises:
      UserError: there is no such plan.
    """

    def __init__(self, folder: pathlib.Path, forced: str, cache: pathlib.Path | None) -> None:
        if forced not in ("auto", *plans.KINDS):
            raise UserError(f"config.search.plan is '{forced}'; choose auto, {', '.join(plans.KINDS)}.")
        self.forced = forced
        self.file = folder / "plan.json"
        self.cache = cache / "plans.json" if cache else None
        self.runners: dict = {}  # programs, for cohorts that can use them again
        self._said: set[str] = set()
        self.records: list[dict] = _read(self.file).get("cohorts", [])

    def choose(self, training: CohortTraining) -> Plan:
        """The plan of a cohort whose members are ready to train; says it, and why."""
        cohort = training.cohort
        record = next((known for known in self.records if known["cohort"] == cohort.name), None)
        if record is None:
            record = self._decide(training)
            self.records.append(record)
            atomic_write(self.file, json.dumps({"cohorts": self.records}, indent=1) + "\n")
        plan = Plan(**record["settings"])
        if cohort.name not in self._said:
            times = ", ".join(f"{name} {value:.2f}" for name, value in record["milliseconds"].items())
            why = record["reason"] + (f" (ms per model and step: {times})" if times else "")
            print(f"{cohort.name}: {len(cohort.trials)} members, plan {plan}; {why}.", flush=True)
            self._said.add(cohort.name)
        return plan

    def plan_of(self, cohort: str) -> str:
        """What was chosen for a cohort, in words."""
        return next(known["plan"] for known in self.records if known["cohort"] == cohort)

    def _decide(self, training: CohortTraining) -> dict:
        cohort = training.cohort
        members = len(cohort.trials)
        candidates = candidates_for(members, len(jax.local_devices()))
        found: dict[Plan, float] = {}
        known = _read(self.cache).get(_key(cohort)) if self.cache else None
        if self.forced != "auto":
            chosen = next(plan for plan in candidates if plan.kind == self.forced)
            reason = "as config.search.plan says"
        elif known:
            chosen, found = Plan(**known["settings"]), {}
            reason = f"the fastest when it was measured on this machine before ({known['milliseconds']:.2f} ms)"
        else:
            chosen, found, reason = self._measure(training, self._shortened(cohort, candidates))
        record = {
            "cohort": cohort.name,
            "trials": [trial.name for trial in cohort.trials],
            "members": members,
            "plan": str(chosen),
            "settings": dataclasses.asdict(chosen),
            "steps": training.length.steps,
            "milliseconds": {str(plan): round(1000 * seconds, 4) for plan, seconds in found.items()},
            "kind": _kind(cohort),
            "reason": reason,
        }
        if len(found) > 1 and self.cache:
            kept = {"settings": dataclasses.asdict(chosen), "milliseconds": 1000 * found[chosen]}
            _add(self.cache, _key(cohort), kept)
        return record

    def _shortened(self, cohort: Cohort, candidates: list[Plan]) -> list[Plan]:
        """Of the candidates those that were near the best for a like cohort of this run."""
        alike = [known for known in self.records if known["kind"] == _kind(cohort) and len(known["milliseconds"]) > 2]
        if not alike:
            return candidates
        times = alike[-1]["milliseconds"]
        near = {name for name, value in times.items() if value <= _NEAR * min(times.values())}
        return [plan for plan in candidates if str(plan) in near] or candidates

    def _measure(self, training: CohortTraining, candidates: list[Plan]) -> tuple[Plan, dict[Plan, float], str]:
        """Times the plans, each on the members as they are; nothing of it is kept."""
        if len(candidates) == 1:
            return candidates[0], {}, "by far the fastest for a like cohort of this run"
        members = len(training.members)
        left = members * (training.length.steps - training.step)
        batches = training.some_batches(_STEPS)
        times: dict[Plan, float] = {}
        skipped = []
        for plan in candidates:
            training.stop.check()
            runner = training.runner_of(plan)
            runner.place(training.host, training.cohort.values, training.trial.images)
            began = time.monotonic()
            runner.compile(batches)
            compiling = time.monotonic() - began
            if (needed := runner.bytes_needed()) > RAM_SHARE * _free_bytes():
                skipped.append(f"{plan} needs {needed / 2**30:.1f} GiB")
                runner.release()
                continue
            times[plan] = _time(runner, batches, members)
            runner.release()  # the next plan needs the room for its own copy of the members
            if plan.kind == "one by one" and _SAVING * left * times[plan] < compiling * (len(candidates) - 1):
                return plan, times, f"{left * times[plan]:.0f} s of training are not worth compiling the other plans"
        chosen = min(times, key=times.get)
        return chosen, times, "; ".join([f"the fastest of {len(times)} that were timed", *skipped])


def candidates_for(members: int, devices: int) -> list[Plan]:
    """The plans for a cohort; "one by one" first."""
    used = math.gcd(members, devices) if members < devices else devices
    result = [Plan("one by one", devices=min(members, devices))]
    result += [Plan(kind, devices=used) for kind in ("unrolled", "im2col")]
    result.append(Plan("scan", steps=_STEPS, devices=used))
    # The smallest chunk is always there, so that the plan can be forced.
    chunks = [chunk for chunk in _CHUNKS if chunk * used <= members] or [min(_CHUNKS)]
    return result + [Plan("map", chunk=chunk, steps=_STEPS, devices=used) for chunk in chunks]


def time_of(training: CohortTraining, plan: Plan, count: int) -> float:
    """Seconds per model and step of a plan, from `count` steps that leave no trace."""
    runner, batches = training.runner_of(plan), training.some_batches(count)
    runner.place(training.host, training.cohort.values, training.trial.images)
    runner.compile(batches)
    return _time(runner, batches, len(training.members))


def _time(runner, batches, members: int) -> float:
    """Seconds per model and step: the best of three runs, or of fewer where they are long."""
    rates = np.zeros((len(batches), members), np.float32)
    best, spent = math.inf, 0.0
    while spent < 1.5:
        start = time.perf_counter()
        runner.run(batches, rates)
        jax.block_until_ready(runner.members)
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + max(seconds, 0.5)
    return best / len(batches) / members


def _free_bytes() -> int:
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return available_bytes()


def _kind(cohort: Cohort) -> str:
    """What makes two cohorts so much alike that the slow plans of one need not be tried for the other."""
    config = cohort.trials[0].config
    kernels = config.model.options.get("kernels", "")  # other windows have other winners
    return f"{config.model.name} {config.image_size} {config.batch_size} {kernels} {len(cohort.trials)}"


def _key(cohort: Cohort) -> str:
    """Device, versions, program and number of members."""
    device = jax.devices()[0]
    program = hashlib.sha256(f"{cohort.signature} {sorted(cohort.values)}".encode()).hexdigest()[:16]
    parts = (device.device_kind, len(jax.devices()), os.cpu_count(), jax.__version__, program, len(cohort.trials))
    return " ".join(map(str, parts))


def _read(file: pathlib.Path) -> dict:
    """A JSON object, empty where there is none; a damaged cache is as good as none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _add(file: pathlib.Path, key: str, value: dict) -> None:
    try:
        atomic_write(file, json.dumps(_read(file) | {key: value}, indent=1) + "\n")
    except OSError:  # a cache that cannot be written is no reason to stop
        return
