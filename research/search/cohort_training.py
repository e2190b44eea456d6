"""Trains the members of a cohort together, each as if it were alone; stops and goes on anywhere, with the same result.

As in `research.training.loop`, what happens at a step is decided by the step and the history alone:

    at step s:  evaluate the members if due and not in their histories → who stops? → over? → steps up to the next event

A member that stops early, diverges or is dropped by the search keeps the state that it had, and leaves the program as
soon as half of the program's places are free.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.cli import UserError
from input_pipeline.loader import train_batches
from input_pipeline.sampling import Sampler
from research.report.writer import JsonlLog, MetricWriter
from research.search import plans
from research.search.cohort import Cohort, with_values
from research.search.members import Member, narrowed, places, put, to_tree, widened
from research.search.plans import Plan
from research.training import begin, build, freezing, inference, progress, schedules, sharding, state
from research.training.checkpoint import Checkpoints
from research.training.control import Controls
from research.training.loop import STREAK, Best
from research.training.phases import needs_layers, phases
from research.training.signals import Clock, Stopped, StopSignal

Judge = Callable[[int, dict[str, list[dict]]], dict[str, str]]


class CohortTraining:
    """The training of one cohort in a run folder.

    Args:
      cohort: who is trained.
      folder: the run folder.
      stop: set when the process is asked to stop.
      runners: programs of earlier cohorts by signature and plan, to be used again.
    """

    def __init__(self, cohort: Cohort, folder: pathlib.Path, stop: StopSignal, runners: dict) -> None:
        self.cohort, self.folder, self.stop, self.runners = cohort, folder, stop, runners
        self.trial = cohort.widest
        self.config = self.trial.config  # what the members have in common is read from it
        (self.phase,) = phases(self.config, len(self.trial.train_indices))
        self.length = self.phase.length
        self.losses = [build.build_loss(trial) for trial in cohort.trials]
        self.rates = [
            schedules.learning_rate(trial.config.schedule, trial.config.optimizer.learning_rate, self.length)
            for trial in cohort.trials
        ]
        self.checkpoints = Checkpoints(folder / "checkpoints" / cohort.name)
        one_device = sharding.make_mesh(jax.devices()[:1])
        self.predictor = inference.Predictor(self.trial, one_device, stop)
        self.clock = Clock()
        self.members = [Member() for _ in cohort.trials]
        self.step = self.saved_step = 0
        self.host: state.TrainState | None = None  # all members [M, …]; those that train are newer on the devices
        self.best: dict[str, state.Flat] = {}
        self.placed: list[int] = []
        self.every = {
            name: max(1, self.length.parse(self.config[name], name))
            for name in ("log_every", "evaluate_every", "checkpoint_every")
        }

    # Beginning

    def begin(self) -> None:
        """Draws the members' variables, or restores them from the newest undamaged checkpoint."""
        step = self.checkpoints.latest()
        shapes = begin.shapes(self.trial)
        known = needs_layers(self.config)
        self.layers = build.build_layers(self.trial) if known else freezing.unordered(shapes["params"])
        if step is None:
            self.host = self._fresh(shapes)
            self.best = jax.tree.map(np.copy, self.host.evaluated())
        else:
            self._restore(step, shapes)

    def _fresh(self, shapes) -> state.TrainState:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        # The optimisers' states begin as zeros, whatever the parameters are.
        first = begin.fresh_state(self._with_arrays(), self.layers, self.phase, zeros)
        states = []
        for trial in self.cohort.trials:
            variables = jax.tree.map(widened, begin.variables(trial, self.folder, self.stop), shapes)
            states.append(begin.fresh_state(trial, self.layers, self.phase, variables, first.opt_state))
        return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *states)

    def _with_arrays(self) -> build.Trial:
        """The first trial, its optimiser with all parts that one of the members needs."""
        return with_values(self.trial, {key: jnp.asarray(value[0]) for key, value in self.cohort.values.items()})

    def _restore(self, step: int, shapes) -> None:
        one = jax.eval_shape(lambda v: begin.fresh_state(self._with_arrays(), self.layers, self.phase, v), shapes)
        count = len(self.members)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

        def stacked(leaf):
            return jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype, sharding=device)

        many = jax.tree.map(stacked, one)
        template = to_tree(many, many.evaluated())
        restored = jax.device_get(self.checkpoints.restore(step, template))
        self.host = state.from_tree(many, restored["members"])
        self.best = {kind: {k.replace(".", "/"): v for k, v in flat.items()} for kind, flat in restored["best"].items()}
        self.best |= {kind: {} for kind in many.evaluated() if kind not in self.best}
        meta = self.checkpoints.meta(step)
        if meta["dataset"] != self.trial.dataset.fingerprint:
            raise UserError(
                f"{self.checkpoints.folder} was made with other data than {self.trial.dataset.directory} holds now; "
                "choose another --workdir or restore the data set."
            )
        if meta["trials"] != [trial.name for trial in self.cohort.trials]:
            raise UserError(
                f"{self.checkpoints.folder} holds a checkpoint of other trials; restore the folder, or remove it to "
                "train these again."
            )
        self.members = [Member(**own | {"controls": Controls(**own["controls"])}) for own in meta["members"]]
        self.step = self.saved_step = step
        print(f"{self.cohort.name}: continuing from step {step}.", flush=True)

    # Running

    def run(self, plan: Plan, until: int | None = None, judge: Judge | None = None) -> None:
        """Trains to the end, or to step `until` with its evaluation.

        Args:
          plan: how.
          until: where to pause; the next call goes on from there.
          judge: after each evaluation, given the step and the histories by trial, says which of them stop and why.

        Raises:
          Stopped: a stop was asked for; everything is saved.
        """
        self.runner = self.runner_of(plan)
        self.placed = []
        end = min(until or self.length.steps, self.length.steps)
        self.log = JsonlLog(self.folder / "metrics.jsonl")
        self.writers = []
        try:
            self.log.truncate_after({trial.name for trial in self.cohort.trials}, -1)
            for trial, member in zip(self.cohort.trials, self.members, strict=True):
                for row in member.history:
                    self.log.append(row)
                path = self.folder / "tensorboard" / trial.name
                self.writers.append(MetricWriter(path, resume_step=self.step or None))
            self._run(end, judge)
        except Stopped:
            if self.step != self.saved_step:
                self.save()
            raise
        finally:
            self.runner.release()
            self.placed = []
            self.log.close()
            for writer in self.writers:
                writer.close()

    def runner_of(self, plan: Plan):
        """What carries a plan out; cohorts with equal programs share it."""
        key = (self.cohort.signature, str(self.trial.statistics), self.trial.picture, plan)
        if key not in self.runners:
            self.runners[key] = plans.build_runner(plan, self.cohort, self.phase, self.layers, self.stop)
        return self.runners[key]

    def some_batches(self, count: int) -> list[dict[str, np.ndarray]]:
        """The batches that come next, for timing."""
        count = min(count, self.length.steps - self.step)
        batches = self._batches(self.step, self.step + count)
        return [plans.host_batch(batch) for batch in batches]

    def alive(self) -> list[int]:
        """Indices of the members that train."""
        return [i for i, member in enumerate(self.members) if member.status == "training"]

    def _run(self, end: int, judge: Judge | None) -> None:
        batches = self._batches(self.step, end)
        while self.alive():
            due = self.step and (self.step % self.every["evaluate_every"] == 0 or self.step >= end)
            if due:
                self._evaluate(judge)
            if self.step >= end or not self.alive():
                break
            self.stop.check()
            self._advance(batches, min(end, *(self.step - self.step % n + n for n in self.every.values())))
            if self.step % self.every["log_every"] == 0 or self.step == self.length.steps:
                self._log_train()
        if self.step >= self.length.steps:
            for index in self.alive():
                self.members[index].status = "finished"
        self._pull()
        self.save()

    def _batches(self, first: int, end: int):
        data = self.config.data
        sampler = Sampler(
            data.sampler,
            self.trial.dataset.labels,
            self.trial.train_indices,
            self.trial.data_seed * 1_000_003,
            data.repeat_threshold,
        )
        one_device = sharding.make_mesh(jax.devices()[:1])
        arguments = inference.loader_arguments(self.trial, one_device)
        return train_batches(
            **arguments,
            sampler=sampler,
            batch_size=self.phase.batch_size,
            start_step=first,
            num_steps=end - first,
        )

    def _advance(self, batches, target: int) -> None:
        """Takes the members that train to step `target`."""
        self._place()
        while self.step < target:
            self.stop.check()  # not at the target, whose log line is still to be written
            count = min(target - self.step, max(self.runner.plan.steps, 8))
            with self.clock.measure("input"):
                part = [plans.host_batch(next(batches)) for _ in range(count)]
            rates = [
                [self.rates[i](self.step + s) * self.members[i].controls.rate_factor for i in self.placed]
                for s in range(count)
            ]
            with self.clock.measure("step"):
                self.runner.run(part, np.asarray(rates, np.float32))
            self.step += count

    def _place(self) -> None:
        """Gives the devices those who train, and as many others as the program's size has places for."""
        wanted = places(len(self.members), self.alive())
        if self.placed != wanted:
            self._pull()
            self.placed = wanted
            part = jax.tree.map(lambda leaf: leaf[wanted], self.host)
            self.runner.place(part, self.cohort.take(wanted), self.trial.images)

    def _pull(self) -> None:
        """Copies the members that train from the devices."""
        if self.placed:
            with self.clock.measure("step"):
                found = self.runner.state()
            training = [(row, index) for row, index in enumerate(self.placed) if index in set(self.alive())]
            if training:
                rows, indices = map(list, zip(*training, strict=True))
                self.host = jax.tree.map(lambda whole, part: put(whole, indices, part[rows]), self.host, found)

    # Numbers

    def _log_train(self) -> None:
        self._pull()
        seconds = self.clock.take("step") + self.clock.seconds.get("input", 0.0)
        alive = self.alive()
        count = max(1.0, float(self.host.sums["steps"][alive[0]]))
        speed = progress.speed(count * self.phase.batch_size * len(alive), seconds, self.clock.take("input"))
        for index in alive:
            own = jax.tree.map(lambda leaf, i=index: leaf[i], self.host.sums)
            rate = self.rates[index](self.step - 1) * self.members[index].controls.rate_factor
            row = self._row("train", index) | progress.train_metrics(own)
            row |= {"learning_rate": rate, "skipped": int(self.host.skipped[index])}
            self._write(index, row, speed)
            self._judge_divergence(index, row)
        # Sums begin anew, on the devices as well.
        zeros = jax.tree.map(np.zeros_like, self.host.sums)
        self.host = self.host.replace(sums=zeros)
        self.placed = []
        left = (self.length.steps - self.step) * seconds / count
        done = f"{self.step}/{self.length.steps}"
        print(
            f"{self.cohort.name}  step {done}  {len(alive)} members  {speed['images_per_second']:.0f} images/s  "
            f"input {100 * speed['input_wait_share']:.0f}%  ETA {progress.minutes(left)}",
            flush=True,
        )

    def _judge_divergence(self, index: int, row: dict) -> None:
        if row["skipped"] and self.cohort.trials[index].config.nonfinite == "abort":
            self._end(index, f"failed: loss or gradient not finite by step {self.step}")
        elif int(self.host.streak[index]) >= STREAK:
            self._end(index, f"failed: {int(self.host.streak[index])} steps in a row without a finite loss")

    def _end(self, index: int, status: str, why: str = "") -> None:
        """Takes a member out, with the state that it has."""
        self.members[index].status = status
        self.members[index].last_step = self.step
        words = f"{status} {why}".strip()
        print(f"{self.cohort.trials[index].name}: {words} (step {self.step}).", flush=True)

    def _evaluate(self, judge: Judge | None) -> None:
        """Evaluates on `validation`, once per step, lets each member's controls act on it, and asks the judge."""
        waiting = [i for i in self.alive() if not self._evaluated(i)]
        if waiting:
            self._pull()
            with self.clock.measure("evaluate"):
                self._score(waiting)
        if judge is not None and waiting:
            self.drop(judge(self.step, {self.cohort.trials[i].name: self.members[i].history for i in self.alive()}))
        if self.step % self.every["checkpoint_every"] == 0 and waiting:
            self.save()

    def _evaluated(self, index: int) -> bool:
        rows = [row for row in self.members[index].history if row["split"] == "validation"]
        return bool(rows) and rows[-1]["step"] == self.step

    def _score(self, indices: list[int]) -> None:
        dataset = self.trial.dataset
        examples = dataset.indices("validation")
        evaluated = self.host.evaluated()
        variables = [jax.tree.map(lambda leaf, i=i: leaf[i], evaluated) for i in indices]
        lines = []
        for index, logits in zip(indices, self.predictor.of_members(variables, examples), strict=True):
            trial, member = self.cohort.trials[index], self.members[index]
            member.last_step = self.step
            try:
                metrics = progress.validation_metrics(
                    self.losses[index], logits, dataset.labels[examples], dataset.multi_label
                )
            except UserError:
                self._end(index, f"failed: the validation loss is not finite at step {self.step}")
                continue
            row = self._row("validation", index) | metrics
            base = trial.config.optimizer.learning_rate
            if member.controls.observe(trial.config, self.step, row, base):
                self.best = jax.tree.map(
                    lambda best, now, i=index: put(best, [i], now[i : i + 1]), self.best, evaluated
                )
            self._write(index, row, {})
            lines.append((row[trial.config.selection], trial.name))
            if member.controls.should_stop(trial.config):
                self._end(index, "finished", f"early, no better {trial.config.selection}")
        if lines:
            values = sorted(value for value, _ in lines)
            print(
                f"{self.cohort.name}  step {self.step}  validation {self.config.selection} of {len(lines)} members: "
                f"{values[0]:.4f} to {values[-1]:.4f}",
                flush=True,
            )

    def _row(self, split: str, index: int) -> dict:
        return {
            "trial": self.cohort.trials[index].name,
            "step": self.step,
            "epoch": round(self.step / self.length.steps_per_epoch, 4),
            "phase": self.phase.name,
            "split": split,
        }

    def _write(self, index: int, row: dict, speed: dict) -> None:
        self.members[index].history.append(row)
        self.log.append(row)
        scalars = {k: v for k, v in (row | speed).items() if isinstance(v, int | float) and k != "step"}
        self.writers[index].write_scalars(row["step"], {f"{row['split']}/{k}": v for k, v in scalars.items()})

    # Ends

    def save(self) -> None:
        """Saves the members, their best variables, controls and histories."""
        self._pull()
        self.log.flush()
        for writer in self.writers:
            writer.flush()
        meta = {
            "dataset": self.trial.dataset.fingerprint,
            "trials": [trial.name for trial in self.cohort.trials],
            "members": [dataclasses.asdict(member) for member in self.members],
        }
        with self.clock.measure("save"):
            tree = to_tree(self.host, self.best)
            self.checkpoints.save(self.step, tree, json.loads(json.dumps(meta)), self.step)
        self.saved_step = self.step

    def drop(self, reasons: dict[str, str]) -> None:
        """Ends members by name, each with a status such as "stopped: rung at step 310"."""
        for index in self.alive():
            if reason := reasons.get(self.cohort.trials[index].name):
                self._end(index, reason)

    def result(self, index: int) -> Best:
        """What a member is evaluated with."""
        own = self.state_of(index)
        best = jax.tree.map(lambda leaf, like: narrowed(leaf[index], like), self.best, own.evaluated())
        return Best(best, self.members[index].controls.best_step, int(own.step), state.fingerprint(own))

    def state_of(self, index: int) -> state.TrainState:
        """A member's own state, in its own widths, as it was when it ended."""
        shapes = begin.shapes(self.cohort.trials[index])
        given = (self._with_arrays(), self.layers, self.phase)
        like = jax.eval_shape(lambda variables: begin.fresh_state(*given, variables), shapes)
        return jax.tree.map(lambda leaf, own: narrowed(leaf[index], own), self.host, like)
