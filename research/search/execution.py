"""How does a search go through its trials: together, rung by rung, until nothing is left to learn?"""

import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from input_pipeline.cli import UserError, atomic_write
from input_pipeline.loader import available_cores
from research import outcome
from research.evaluation import metrics
from research.models.initialize import count_parameters
from research.outcome import Ledger
from research.search import dominance, halving, latency
from research.search.cohort import Cohort, group
from research.search.cohort_training import CohortTraining
from research.search.planner import Planner
from research.search.trials import override_sets
from research.training import begin, cluster
from research.training.build import Trial
from research.training.control import MINIMISED, Controls
from research.training.loop import Best, Training
from research.training.phases import phases
from research.training.progress import Diverged
from research.training.signals import StopSignal
from research.training.state import TrainState


def use_all_cores(config: ConfigDict) -> bool:
    """On CPU makes every core a device, so that members of a cohort train beside each other; before JAX begins.

    Returns:
      Whether it did: not for a single setting, which uses all cores anyway, nor where the number of devices is given.
    """
    given = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    given = given or "JAX_NUM_CPU_DEVICES" in os.environ
    alone = config.search.cohort == 1 or not (config.search.sampler or len(override_sets(config.search)) > 1)
    if alone or given or available_cores() == 1:
        return False
    try:
        jax.config.update("jax_num_cpu_devices", available_cores())
    except RuntimeError:  # JAX has begun
        logging.info("JAX has its devices already; the members of a cohort share them.")
        return False
    return jax.default_backend() == "cpu"


class Execution:
    """Trains trials and enters their results in the ledger.

    Args:
      config: of the study.
      folder: the run folder.
      mesh: the devices of a trial that trains alone.
      attach: gives a trial its images.
      alone: trains a trial that shares its program with no other.
      stop: set when the process is asked to stop.
      ledger: of the run.
      programs: folder for compiled programs and the planner's choices, or None.
    """

    def __init__(
        self,
        config: ConfigDict,
        folder: pathlib.Path,
        mesh,
        attach: Callable[[Trial], Trial],
        alone: Callable[[Trial], None],
        stop: StopSignal,
        ledger: Ledger,
        programs: pathlib.Path | None,
    ) -> None:
        self.config, self.folder, self.mesh, self.stop, self.ledger = config, folder, mesh, stop, ledger
        self.attach, self.alone = attach, alone
        self.cohorts: list[Cohort] = []
        self.planner = Planner(folder, config.search.plan, programs)

    def run(self, trials: Sequence[Trial]) -> None:
        """Trains all trials that are not in the ledger yet, and those only in part.

        Raises:
          Stopped: a stop was asked for; everything is saved.
        """
        cohorts = group(trials, self.config.search.cohort, self.config.search.padding)
        self.cohorts += cohorts
        if self.config.search.halving.budget < 1 and trials[0].stage == "search":
            self._run_rungs(trials, cohorts)
            return
        for cohort in cohorts:
            if all(self.ledger.ended(trial.name) for trial in cohort.trials):
                continue
            if self._is_together(cohort):
                self._run_cohort(cohort)
            else:
                self.run_alone(cohort.trials[0])

    def run_alone(self, trial: Trial) -> None:
        """Trains a trial that shares with no other; one that diverges fails by itself where there are others."""
        try:
            self.alone(self.attach(trial))
        except Diverged as error:
            if len(self.ledger.rows) == 1:
                raise
            self.ledger.update(trial.name, status=f"failed: {error}")
            print(f"{trial.name}: failed: {error}", flush=True)

    def remember(self, trials: Sequence[Trial]) -> None:
        """Finds the cohorts of trials that an earlier process has trained here in batches."""
        by_name = {trial.name: trial for trial in trials}
        for names in (record["trials"] for record in self.planner.records):
            if all(name in by_name for name in names):
                self.cohorts += group([by_name[name] for name in names], len(names), self.config.search.padding)

    def ending(self, trial: Trial) -> tuple[TrainState, Best, list[dict], Controls]:
        """Last state, best variables, history and controls of a trial that was trained here."""
        for cohort in self.cohorts:
            names = [member.name for member in cohort.trials]
            if trial.name in names and self._is_together(cohort):
                training, index = self._begun(cohort), names.index(trial.name)
                member = training.members[index]
                return training.state_of(index), training.result(index), member.history, member.controls
        single = Training(trial, self.folder, self.mesh, self.stop)
        single.restore()
        last = single.state
        return last, single.best(), single.meta["history"], single.controls

    def _is_together(self, cohort: Cohort) -> bool:
        """Whether a cohort is trained as one; a trial that shares with no other has all devices for itself."""
        return len(cohort.trials) > 1 or self._judges(cohort) or self.config.search.halving.budget < 1

    def _judges(self, cohort: Cohort) -> bool:
        """Whether its members may be stopped as beaten: not those that repeat a setting of the front."""
        return self.config.search.dominance.coverage > 0 and cohort.trials[0].stage == "search"

    def _open(self, cohort: Cohort) -> CohortTraining:
        """A cohort with its images, members as they were saved."""
        waiting = [trial.name for trial in cohort.trials if not self.ledger.ended(trial.name)]
        for name in waiting:
            self.ledger.rows[name] |= {"status": "running"}
        if waiting:
            self.ledger.update(waiting[0])
        return self._begun(cohort)

    def _begun(self, cohort: Cohort) -> CohortTraining:
        trials, widest = tuple(map(self.attach, cohort.trials)), self.attach(cohort.widest)
        together = dataclasses.replace(cohort, trials=trials, widest=widest)
        training = CohortTraining(together, self.folder, self.stop, self.planner.runners)
        training.begin()
        return training

    def _run_cohort(self, cohort: Cohort) -> None:
        start = time.monotonic()
        training = self._open(cohort)
        plan = self.planner.choose(training)
        training.run(plan, judge=self._judge(cohort) if self._judges(cohort) else None)
        self._enter(training, str(plan))
        seconds = time.monotonic() - start
        count = len(cohort.trials)
        print(
            f"{cohort.name}: {count} trials took {seconds:.0f} s here, {3600 * count / seconds:.0f} an hour.",
            flush=True,
        )

    def _enter(self, training: CohortTraining, plan: str) -> None:
        """Writes predictions and rows of the members that have ended."""
        predictors = {}  # one program for all members of a network
        for index, trial in enumerate(training.cohort.trials):
            member = training.members[index]
            if self.ledger.ended(trial.name) or member.status == "training":
                continue
            self.stop.check()
            row, status = {"cohort": training.cohort.name, "plan": plan}, member.status
            given = (trial, training.result(index), member.history)
            if status == "finished":
                if (network := _network(trial)) not in predictors:
                    predictors[network] = outcome.predictor_of(trial, self.mesh, self.stop)
                try:
                    row |= outcome.finish(*given, self.folder, predictors[network])
                except Diverged as error:
                    status = f"failed: {error}"
            elif status.startswith("stopped"):
                row |= outcome.stopped(*given)
            self.ledger.update(trial.name, status=status, **row)

    def measure_latency(self, trials: Sequence[Trial]) -> None:
        """Enters how long one image takes, once for each network: its weights do not matter."""
        networks: dict[str, list[Trial]] = {}
        for trial in trials:
            if self.ledger.rows[trial.name]["status"] == "finished":
                networks.setdefault(_network(trial), []).append(trial)
        waiting = [own for own in networks.values() if any("latency_p50_ms" not in self._row(t) for t in own)]
        if not waiting:
            return
        print(f"Measuring the latency of {len(waiting)} networks on one core.", flush=True)
        models = [(own[0], self.ending(self.attach(own[0]))[1].variables) for own in waiting]

        def measure() -> list[dict | None]:
            found = self.stop.interruptible(lambda: latency.measure(models))
            return [dataclasses.asdict(measured) if measured else None for measured in found]

        for own, measured in zip(waiting, cluster.from_first(measure), strict=True):
            for trial in own if measured else ():
                self.ledger.rows[trial.name] |= measured
        self.ledger.update(waiting[0][0].name)

    def _row(self, trial: Trial) -> dict:
        return self.ledger.rows[trial.name]

    # Stopping by dominance

    def _judge(self, cohort: Cohort) -> Callable:
        """Says after each evaluation of a cohort which members a model that is not larger has beaten for good."""
        settings = self.config.search.dominance
        rows = [row for row in self.ledger.rows.values() if "parameters" in row and row.get("cohort") != cohort.name]
        logged = _accuracies(self.folder / "metrics.jsonl")
        sizes = {trial.name: size_of(trial) for trial in cohort.trials}
        total = phases(self.config, len(cohort.trials[0].train_indices))[0].length.steps

        def judge(step: int, histories: dict[str, list[dict]]) -> dict[str, str]:
            """Names and reasons of those who stop."""
            running = {name: _curve(history, total) for name, history in histories.items()}
            before = {row["id"]: [(s / row["steps"], a) for s, a in logged.get(row["id"], [])] for row in rows}
            names = [*before, *running]
            finished = [row["status"] == "finished" for row in rows] + [False] * len(running)
            beaten = dominance.beaten(
                np.array([row["parameters"] for row in rows] + [sizes[name] for name in running]),
                [(before | running)[name] for name in names],
                np.array(finished, bool),
                settings.standard_error,
                settings.coverage,
                settings.minimum,
            )
            late = {name for name, is_beaten in zip(names, beaten, strict=True) if is_beaten} & running.keys()
            return {name: f"stopped: beaten at step {step}" for name in late}

        return judge

    # Successive halving

    def _run_rungs(self, trials: Sequence[Trial], cohorts: Sequence[Cohort]) -> None:
        schedule = _schedule(self.config, trials)
        file = self.folder / "rungs.json"
        decided = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        sizes = {trial.name: size_of(trial) for trial in trials}
        open_: dict[str, CohortTraining] = {}
        for number, rung in enumerate([*schedule, None]):
            if number < len(decided):
                continue
            gone = {name: _reason(past) for past in decided for name in set(past["entered"]) - set(past["kept"])}
            for cohort in cohorts:
                if all(trial.name in gone or self.ledger.ended(trial.name) for trial in cohort.trials):
                    continue
                training = open_.get(cohort.name) or self._open(cohort)
                open_[cohort.name] = training
                training.drop(gone)
                plan = self.planner.choose(training)
                training.run(plan, until=rung.step if rung else None)
            if rung:
                entered = [trial.name for trial in trials if trial.name not in gone]
                kept = self._survivors(open_, entered, sizes, rung)
                decided.append({"rung": number, "step": rung.step, "entered": entered, "kept": kept})
                atomic_write(file, json.dumps(decided, indent=1) + "\n")
                print(f"Rung at step {rung.step}: {len(kept)} of {len(entered)} trials go on.", flush=True)
        gone = {name: _reason(past) for past in decided for name in set(past["entered"]) - set(past["kept"])}
        for cohort in cohorts:
            if not all(self.ledger.ended(trial.name) for trial in cohort.trials):
                training = open_.get(cohort.name) or self._open(cohort)
                training.drop(gone)
                self._enter(training, self.planner.plan_of(cohort.name))

    def _survivors(self, trainings: dict, entered: Sequence[str], sizes: dict[str, int], rung) -> list[str]:
        """Who goes on: best log parameters and metric so far."""
        metric = self.config.search.halving.metric
        histories = {
            trial.name: training.members[index].history
            for training in trainings.values()
            for index, trial in enumerate(training.cohort.trials)
            if training.members[index].status in ("training", "finished")
        }
        points = []
        for name in entered:
            rows = [r for r in histories.get(name, []) if r["split"] == "validation" and r["step"] <= rung.step]
            costs = [row[metric] if metric in MINIMISED else 1 - row[metric] for row in rows]
            points.append((math.log(sizes[name]), min(filter(math.isfinite, costs), default=math.nan)))
        if histories and not any(math.isfinite(cost) for _, cost in points):
            raise UserError(
                f"config.search.halving.metric is '{metric}', which the validation images do not define; choose "
                "another --workdir and metric."
            )
        return [entered[i] for i in halving.survivors(np.reshape(points, (-1, 2)), rung.keep)]


def check(config: ConfigDict, trials: Sequence[Trial]) -> None:
    """Refuses searches that cannot be carried out, before anything is written.

    Args:
      trials: of the search; where a sampler will choose them, one with the study's own settings.

    Raises:
      UserError: says what does not go together.
    """
    search, reference = config.search, config.evaluation.reference
    if reference and reference not in (names := {trial.setting for trial in trials}):
        raise UserError(
            f"config.evaluation.reference is '{reference}', which is no setting of this study; choose of "
            f"{', '.join(sorted(names)[:12])}."
        )
    stretches = [phases(trial.config, len(trial.train_indices)) for trial in trials]
    asked = {
        "halving.budget": search.halving.budget < 1,
        "dominance.coverage": search.dominance.coverage > 0,
        "extend": search.extend > 1,
    }
    for key in (key for key, given in asked.items() if given):
        if any(len(stretch) > 1 for stretch in stretches) or config.shard_parameters:
            raise UserError(
                f"config.search.{key} needs trainings of one phase whose parameters are not spread over devices; "
                "leave it at its default, or phases, unfreeze and shard_parameters."
            )
    if search.halving.budget < 1:
        known = validation_metrics(trials[0].dataset.multi_label)
        if search.halving.metric not in known:
            raise UserError(
                f"config.search.halving.metric is '{search.halving.metric}'; the validation has {', '.join(known)}."
            )
        if search.sampler or search.storage:
            raise UserError(
                "successive halving needs all trials at once, which a sampler or a shared storage does not give; set "
                "config.search.halving.budget to 1."
            )
        _schedule(config, trials)


def validation_metrics(multi_label: bool) -> list[str]:
    """Names of the metrics of every evaluation."""
    labels = np.eye(2, dtype=int) if multi_label else np.arange(2)
    return ["loss", *metrics.evaluate(np.array([[0.9, 0.1], [0.2, 0.8]]), labels, multi_label)]


def _schedule(config: ConfigDict, trials: Sequence[Trial]) -> list[halving.Rung]:
    """The rungs of successive halving."""
    lengths = {phases(trial.config, len(trial.train_indices))[-1].length.steps for trial in trials}
    if len(lengths) > 1:
        raise UserError("successive halving needs trials of one length; set config.search.halving.budget to 1.")
    (total,) = lengths
    settings = config.search.halving
    length = phases(trials[0].config, len(trials[0].train_indices))[0].length
    every = max(1, length.parse(config.evaluate_every, "evaluate_every"))
    return halving.rungs(total, settings.eta, settings.first, len(trials), settings.budget, settings.last, every)


def _reason(past: dict) -> str:
    return f"stopped: rung at step {past['step']}"


def _network(trial: Trial) -> str:
    """What decides how long an image takes."""
    model = {key: value for key, value in _flat(trial.config.model.to_dict()).items() if "dropout" not in key}
    return str((sorted(model.items()), trial.config.image_size, trial.channels, trial.config.data.normalize))


def _flat(tree: Mapping, prefix: str = "") -> dict[str, str]:
    result = {}
    for key, value in tree.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return result


def size_of(trial: Trial) -> int:
    """Parameters of a trial's model, without drawing them."""
    return count_parameters(begin.shapes(trial)["params"])


def _curve(history: Sequence[dict], total: int) -> list[tuple[float, float]]:
    return [(row["step"] / total, row["accuracy"]) for row in history if row["split"] == "validation"]


def _accuracies(log: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """(step, validation accuracy) of each trial in metrics.jsonl."""
    found: dict[str, list[tuple[int, float]]] = {}
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    for row in map(json.loads, lines):
        if row["split"] == "validation":
            found.setdefault(row["trial"], []).append((row["step"], row["accuracy"]))
    return found
