"""How does a worker go through a search whose trials a sampler proposes, or several workers share?

Every worker runs the same command with a workdir of its own and the same `config.search.storage`. It asks for as many
trials as fit into a cohort, trains them, tells what came out and asks again, until nobody has anything left to do.
"""

import itertools
import json
import math
import pathlib
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.cli import UserError
from research.report import tables
from research.search.execution import Execution, size_of, validation_metrics
from research.search.front import Objective
from research.search.points import Claim
from research.search.trials import OverrideSet, override_sets, recorded_sets
from research.training.build import Trial

SETTINGS = "all_trials.csv"  # the rows of all workers
_COLUMNS = ("parameters", "bytes", "flops", "steps", "best_step", "train/loss", "train/accuracy", "train/macro_f1")
_OVER = ("finished", "stopped", "failed")
_SOURCES = ("trials", "sheet", "zip", "grid", "random")


def is_sweep(config: ConfigDict) -> bool:
    """Whether the trials come from a storage, not from lists alone."""
    return bool(config.search.sampler or config.search.storage)


def has_lists(config: ConfigDict) -> bool:
    """Whether `config.search` lists settings."""
    return any(config.search[source] for source in _SOURCES)


def objectives(config: ConfigDict, multi_label: bool) -> list[Objective]:
    """`config.search.objectives`, or their defaults.

    Raises:
      UserError: one is not written as "min COLUMN", "max COLUMN", "min log COLUMN" or "max log COLUMN".
    """
    score = "macro_f1" if multi_label else "accuracy"
    found = []
    for text in config.search.objectives or ("min log parameters", f"max validation/{score}"):
        word, *rest = text.split()
        log = rest[:1] == ["log"] and len(rest) == 2
        if word not in ("min", "max") or len(rest) - log != 1:
            raise UserError(f"config.search.objectives has {text!r}; write for example 'min log parameters'.")
        found.append(Objective(rest[-1], word == "max", log))
    return found


def check(config: ConfigDict, multi_label: bool, reach: bool) -> None:
    """Refuses a shared search that cannot begin, before anything is written but the shared storage.

    Args:
      config: of the study.
      multi_label: of the data set.
      reach: whether to try that storage, which makes it where it does not exist.

    Raises:
      UserError: the sampler has no budget or space, an objective is not understood, or the storage cannot be used.
    """
    from research.search import samplers, shared

    search = config.search
    if search.sampler and search.budget < 1:
        raise UserError("config.search.sampler needs config.search.budget, the number of settings to try.")
    found = objectives(config, multi_label)
    names = validation_metrics(multi_label)
    columns = [*_COLUMNS, *(f"{split}/{name}" for split in ("validation", "test") for name in names)]
    if unknown := [objective.column for objective in found if objective.column not in columns]:
        raise UserError(
            f"config.search.objectives names {', '.join(unknown)}, which is not known when a trial ends; choose from "
            f"{', '.join(columns)}."
        )
    samplers.load_optuna()
    if search.sampler:
        samplers.check(search.sampler, samplers.parse_space(search.space))
    if search.storage and reach:
        shared.SharedStudy(search.storage, search.study or config.study, found, worker="check").close()


class Sweep:
    """A worker of a shared search.

    Args:
      config: of the study.
      folder: the worker's run folder.
      multi_label: of the data set.
      expand: from override sets to trials.
      check: refuses a trial that cannot be trained.
      execution: trains trials.
    """

    def __init__(
        self,
        config: ConfigDict,
        folder: pathlib.Path,
        multi_label: bool,
        expand: Callable[..., list[Trial]],
        check: Callable[[Trial], None],
        execution: Execution,
    ) -> None:
        from research.search import samplers, shared

        search = config.search
        self.config, self.folder, self.expand, self.check, self.execution = config, folder, expand, check, execution
        self.study = shared.SharedStudy(
            search.storage or str(folder / "trials.journal"),
            search.study or config.study,
            objectives(config, multi_label),
            search.sampler,
            samplers.parse_space(search.space) if search.sampler else None,
            search.seed,
            search.budget or math.inf,
            search.worker or f"{socket.gethostname()}:{folder}",
            search.lease_seconds,
        )

    def run(self) -> list[Trial]:
        """Works until the search is over; returns the trials that this worker has trained, now or before.

        Raises:
          Stopped: a stop was asked for; the same command goes on.
        """
        search, stop = self.config.search, self.execution.stop
        done = {trial.name: trial for trial in self._done_before()}
        with self.study.renewing():
            if has_lists(self.config):
                self.study.enqueue(override_sets(search))
            for batch in itertools.count():
                claims = self.study.ask(search.cohort, self._feasible if search.max_parameters else None)
                if claims:
                    print(f"Batch {batch}: {len(claims)} trials, {self.study.unfinished()} not ended yet.", flush=True)
                    done |= {trial.name: trial for trial in self._train(claims)}
                elif not self.study.unfinished():
                    break
                else:  # a worker that dies leaves trials to this one
                    until = time.monotonic() + search.lease_seconds / 10
                    while time.monotonic() < until:
                        stop.check()
                        time.sleep(0.2)
        tables.write_trials_csv(self.folder / SETTINGS, self.study.rows())
        self.study.close()
        if not done:
            raise UserError("the shared search is over and this worker has trained nothing; read another one's report.")
        return list(done.values())

    def _done_before(self) -> list[Trial]:
        """The trials that this worker's ledger says are over; others may have gone to another worker since."""
        sets = recorded_sets(self.execution.ledger.known_rows())
        over = {row["id"] for row in self.execution.ledger.known_rows() if row["status"].startswith(_OVER)}
        known = self.expand(sets=sets) if sets else []
        self.execution.remember(known)
        trials = [trial for trial in known if trial.name in over]
        self.execution.ledger.add(trials)
        return trials

    def _feasible(self, overrides: dict[str, Any]) -> bool:
        try:
            (trial, *_) = self.expand(sets=[OverrideSet("proposal", overrides)])
            return size_of(trial) <= self.config.search.max_parameters
        except UserError:  # no model can have it, which is told as its result
            return True

    def _train(self, claims: Sequence[Claim]) -> list[Trial]:
        """Trains a batch and tells the results; a setting that no model can have is told as failed."""
        ledger, trials = self.execution.ledger, {}
        for claim in claims:
            try:
                own = self.expand(sets=[OverrideSet(claim.name, dict(claim.overrides))])
                for trial in own:
                    self.check(trial)
            except UserError as error:
                self.study.fail(claim, str(error))
                continue
            trials[claim.number] = own
        everything = [trial for own in trials.values() for trial in own]
        ledger.add(everything)
        if everything:
            self.execution.run(everything)
        for claim in claims:
            rows = [ledger.rows[trial.name] for trial in trials.get(claim.number, ())]
            failed = [row for row in rows if row["status"].startswith("failed")]
            if failed:
                self.study.fail(claim, failed[0]["status"].removeprefix("failed: "), _mean(claim.name, rows))
            elif rows:
                self.study.tell(claim, _mean(claim.name, rows))
        return everything


def _mean(name: str, rows: Sequence[dict]) -> dict:
    """The rows of a setting's folds as one: their first, with mean metrics."""
    metrics: dict[str, dict[str, float]] = {}
    for split in rows[0].get("metrics", {}):
        for metric in rows[0]["metrics"][split]:
            values = [row.get("metrics", {}).get(split, {}).get(metric, math.nan) for row in rows]
            metrics.setdefault(split, {})[metric] = float(np.mean(values))
    overrides = {key: value for key, value in rows[0]["overrides"].items() if key != "search.fold"}
    return json.loads(json.dumps(rows[0] | {"id": name, "overrides": overrides, "metrics": metrics}))
