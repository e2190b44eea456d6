"""Trains one trial: phases, evaluations, controls, checkpoints; stops and goes on anywhere, with the same result.

What happens at a step is decided by the step and the history alone, never by what this process did before:

    at step s:  evaluate if due and not in the history → stop early? → phase over? → take batch s → step

so a restored (state, history) continues exactly, wherever the process was stopped or killed.
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib

import jax
import numpy as np
from absl import logging

from input_pipeline.cli import UserError
from input_pipeline.loader import stage, train_batches
from input_pipeline.sampling import Sampler
from research.models.initialize import count_parameters
from research.report.writer import JsonlLog, MetricWriter
from research.training import (
    begin,
    budget,
    build,
    cluster,
    freezing,
    inference,
    optimizers,
    pace,
    program,
    progress,
    schedules,
    sharding,
    state,
    steps,
)
from research.training.checkpoint import Checkpoints
from research.training.control import Controls
from research.training.phases import Phase, needs_layers, phases
from research.training.signals import Clock, Stopped, StopSignal

STREAK = 20  # steps in a row that are not finite: training has diverged


@dataclasses.dataclass(frozen=True)
class Best:
    """The variables of the best checkpoint, its step, the last step, and the SHA-256 of the last state."""

    variables: dict[str, state.Flat]
    step: int
    last_step: int
    state_sha256: str


class Training:
    """The training of one trial in a run folder.

    Args:
      trial: what to train.
      folder: the run folder.
      mesh: devices.
      stop: set when the process is asked to stop.
    """

    def __init__(self, trial: build.Trial, folder: pathlib.Path, mesh, stop: StopSignal) -> None:
        self.trial, self.config, self.mesh, self.stop, self.images = trial, trial.config, mesh, stop, trial.images
        self.name = build.as_file_name(trial.name)
        self.indices = trial.train_indices
        self.phases = phases(self.config, len(self.indices))
        self.loss = build.build_loss(trial)
        self.folder = folder
        self.clock, self.pace = Clock(), pace.Pace()
        self.profile = pace.Profile(self.config.get("profile", ""), folder / "profile" / self.name, cluster.is_first())
        self.checkpoints = Checkpoints(folder / "checkpoints" / self.name)
        self.predictor = inference.Predictor(trial, mesh, stop)
        self.meta = {"phase": 0, "phase_start": 0, "done": False, "history": []}
        self.controls = Controls()
        self.saved_step = -1
        self.train_step = None
        self.state: state.TrainState | None = None
        self.layers: freezing.Layers | None = None

    # Beginning

    def run(self) -> None:
        """Trains to the end, from the newest undamaged checkpoint if there is one.

        Raises:
          Stopped: a stop was asked for; the state of the last step is saved.
          UserError: the training diverged, or the checkpoint belongs to another model.
        """
        step = self.checkpoints.latest()
        if step is not None and self.checkpoints.meta(step)["done"]:
            self._take_meta(step)
            return
        self._initialize(step)
        if step is not None:
            print(f"{self.trial.name}: continuing from step {step}.", flush=True)
        log = JsonlLog(self.folder / "metrics.jsonl" if cluster.is_first() else os.devnull)
        log.truncate_after(self.name, -1)
        for row in self.meta["history"]:
            log.append(row)
        self.log = log
        run = self.folder / "tensorboard" / self.name
        self.writer = MetricWriter(run, resume_step=step, active=cluster.is_first())
        try:
            while self.meta["phase"] < len(self.phases):
                self._run_phase(self.phases[self.meta["phase"]])
                self._start_phase(self.meta["phase"] + 1)
            self.meta["done"] = True
            self.save()
        except Stopped:
            if self._step() != self.saved_step:
                self.save()
            raise
        finally:
            self.profile.stop(self.state)
            log.close()
            self.writer.close()

    def restore(self) -> None:
        """Reads the newest undamaged checkpoint."""
        self._initialize(self.checkpoints.latest())

    def _initialize(self, step: int | None) -> None:
        fresh = step is None
        # On resume only the shapes count; the values come from the checkpoint.
        variables = begin.variables(self.trial, self.folder, self.stop) if fresh else begin.shapes(self.trial)
        if self.layers is None:
            known = needs_layers(self.config)
            self.layers = build.build_layers(self.trial) if known else freezing.unordered(variables["params"])
        if step is None:
            count = count_parameters(variables["params"])
            print(f"Model {self.config.model.name}: {count:,} parameters.", flush=True)
            self._set_state(begin.fresh_state(self.trial, self.layers, self.phases[0], variables))
            return
        self._take_meta(step)
        phase = self.phases[min(self.meta["phase"], len(self.phases) - 1)]
        template = jax.eval_shape(lambda v: begin.fresh_state(self.trial, self.layers, phase, v), variables)
        shardings = sharding.shardings(template, self.mesh, self.config.shard_parameters)
        template = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), template, shardings)
        restored = self.checkpoints.restore(step, state.to_tree(template))
        self._set_state(state.from_tree(template, restored))
        self.saved_step = step

    def _trained(self, phase: Phase) -> tuple[str, ...]:
        return freezing.trainable(self.layers, phase.freeze, phase.train)

    def _set_state(self, value: state.TrainState) -> None:
        self.shardings = sharding.shardings(value, self.mesh, self.config.shard_parameters)
        self.state = sharding.place(value, self.shardings)

    def _take_meta(self, step: int) -> None:
        stored = self.checkpoints.meta(step)
        if stored["dataset"] != self.trial.dataset.fingerprint:
            raise UserError(
                f"{self.checkpoints.folder} was made with other data than {self.trial.dataset.directory} "
                "holds now; choose another --workdir or restore the data set."
            )
        if strangers := {row["trial"] for row in stored["history"]} - {self.name}:
            raise UserError(
                f"{self.checkpoints.folder} holds a checkpoint of the trial {strangers.pop()}; restore the folder, or "
                "remove it to train the trial again."
            )
        self.meta = {k: stored[k] for k in self.meta}
        self.controls = Controls(**stored["controls"])

    def _step(self) -> int:
        return int(self.state.step)

    def best(self) -> "Best":
        """What the trial is evaluated with, after `run`.

        A best checkpoint that was damaged since is replaced by the last one, aloud.
        """
        if self.state is None:
            self.restore()
        digest, last, best = state.fingerprint(self.state), self._step(), self.controls.best_step
        if best != last:
            if self.checkpoints.is_whole(best):
                self._initialize(best)
            else:
                logging.warning("The best checkpoint (step %d) is damaged; the last one (%d) is used.", best, last)
                best = last
        return Best(self.state.evaluated(), best, last, digest)

    # Phases

    def _start_phase(self, index: int) -> None:
        self.meta |= {"phase": index, "phase_start": self._step()}
        self.controls.start_phase()
        if index < len(self.phases):
            transformation = optimizers.direction(self.config.optimizer)
            opt_state = transformation.init({p: self.state.params[p] for p in self._trained(self.phases[index])})
            self._set_state(self.state.replace(opt_state=opt_state))
            self.train_step = None
            self.save()

    def _run_phase(self, phase: Phase) -> None:
        length, start = phase.length, self.meta["phase_start"]
        self.log_every = max(1, length.parse(self.config.log_every, "log_every"))
        evaluate_every = max(1, length.parse(self.config.evaluate_every, "evaluate_every"))
        self.checkpoint_every = max(1, length.parse(self.config.checkpoint_every, "checkpoint_every"))
        self.rate = schedules.learning_rate(self.config.schedule, phase.learning_rate, length)
        sizes = {path: value.size for path, value in self.state.params.items()}
        trained = sum(sizes[path] for path in self._trained(phase))
        print(
            f"Phase '{phase.name}': {length.steps} steps of {phase.batch_size} images, "
            f"{length.steps_per_epoch:.1f} steps an epoch; {trained:,} of {sum(sizes.values()):,} parameters trained.",
            flush=True,
        )
        first = self._step() - start
        batches = self._batches(phase, first)
        for done in itertools.count(first):
            if done and (done % evaluate_every == 0 or done >= length.steps):
                self._evaluate(phase, start + done)
                if self.controls.should_stop(self.config):
                    print(
                        f"Stopping early: no better {self.config.selection} for {self.controls.stale} evaluations.",
                        flush=True,
                    )
                    return
            if done >= length.steps:
                return
            self.stop.check()
            self._train_one(phase, batches, done)
            if (done + 1) % self.log_every == 0 or done + 1 == length.steps:
                self._log_train(phase, done + 1)

    def _batches(self, phase: Phase, first: int):
        """Batches on the devices, from step `first` of a phase on: a pure function of seed, phase and step."""
        data = self.config.data
        seed = self.trial.data_seed * 1_000_003 + self.meta["phase"]
        sampler = Sampler(data.sampler, self.trial.dataset.labels, self.indices, seed, data.repeat_threshold)
        batches = train_batches(
            **inference.loader_arguments(self.trial, self.mesh),
            sampler=sampler,
            batch_size=phase.batch_size,
            start_step=first,
            num_steps=phase.length.steps - first,
        )
        return stage(batches, functools.partial(sharding.put_batch, self.mesh))

    def _train_one(self, phase: Phase, batches, done: int) -> None:
        with self.clock.measure("input"):
            batch = next(batches)
        rate = np.float32(self.rate(done) * self.controls.rate_factor)
        if self.train_step is None:
            with self.clock.measure("compile"):
                self._compile(phase, batch, rate, first=done == 0)
        self.profile.at(self.meta["phase_start"] + done, self.state)
        with self.clock.measure("step"):
            jax.block_until_ready(self.state.step)  # the batch was fetched while the step before was computed
            self.pace.tick()
            self.state = self.train_step(self.state, batch, rate, self.images)

    def _compile(self, phase: Phase, batch, rate, first: bool) -> None:
        parts, step = program.train_function(self.trial, phase, self.layers, self.mesh)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=self.shardings)
        self.train_step = self.stop.interruptible(lambda: jitted.lower(self.state, batch, rate, self.images).compile())
        budget.check(self.trial, self.train_step, phase.batch_size, self.mesh, self.stop)
        if first and self.meta["phase"] == 0:
            self._show_batch(parts, batch)

    def _show_batch(self, parts: steps.StepParts, batch) -> None:
        """Writes up to eight augmented images of the first batch, stretched to the full range, to TensorBoard."""
        few = functools.partial(steps.prepare_batch, dataclasses.replace(parts, batch_sharding=None))
        image = jax.jit(lambda b, i: few(inference.gather(b, i), jax.random.key(0))["image"])(batch, self.images)
        image = sharding.to_host(image)[:8]
        low, high = image.min((1, 2, 3), keepdims=True), image.max((1, 2, 3), keepdims=True)
        self.writer.write_images(0, {"augmented": (image - low) / np.maximum(high - low, 1e-6) * 255.0})

    # Numbers

    def _log_train(self, phase: Phase, done: int) -> None:
        with self.clock.measure("step"):
            sums = jax.device_get(self.state.sums)
        self.state = self.state.replace(sums=sharding.place(steps.reset_sums(self.state).sums, self.shardings.sums))
        skipped, streak = int(self.state.skipped), int(self.state.streak)
        count = max(1.0, float(sums["steps"]))
        seconds = self.clock.take("step") + self.clock.seconds.get("input", 0.0)
        speed = progress.speed(count * phase.batch_size, seconds, self.clock.take("input"))
        speed |= self.pace.take() | pace.use(self.trial, speed["images_per_second"], self.mesh.size)
        row = self._row("train", phase, done) | self.trial.task.train_metrics(sums)
        row |= {"learning_rate": self.rate(done - 1) * self.controls.rate_factor, "skipped": skipped}
        self._write(row, speed)
        left = (phase.length.steps - done) * seconds / count
        print(
            f"{self.trial.name}  step {row['step']}  {phase.name} {done}/{phase.length.steps}  loss {row['loss']:.4f}  "
            f"{speed['images_per_second']:.0f} images/s  input {100 * speed['input_wait_share']:.0f}%"
            f"{pace.in_words(speed)}  ETA {progress.minutes(left)}",
            flush=True,
        )
        if skipped and self.config.nonfinite == "abort":
            raise progress.Diverged(f"Loss or gradient was not finite by step {row['step']}; lower the learning rate.")
        if streak >= STREAK:
            raise progress.Diverged(
                f"Training diverged: {streak} steps in a row without a finite loss; lower the learning rate."
            )

    def _evaluate(self, phase: Phase, step: int) -> None:
        """Evaluates on `validation`, once per step, and lets the controls act on it."""
        last = self.meta["history"][-1] if self.meta["history"] else {}
        if last.get("split") == "validation" and last["step"] == step:
            return
        self.pace.pause()
        with self.clock.measure("evaluate"):
            indices = self.trial.dataset.indices("validation")
            rows = self.predictor(self.state.evaluated(), indices)
            row = self._row("validation", phase, step - self.meta["phase_start"])
            row |= self.trial.task.metrics(self.loss, rows, self.trial.dataset, indices)
        best = self.controls.observe(self.config, step, row, phase.learning_rate)
        self._write(row, {})
        print(
            f"{self.trial.name}  step {step}  validation  "
            + "  ".join(f"{k} {row[k]:.4f}" for k in self.trial.task.shown if k in row)
            + ("  (best)" if best else ""),
            flush=True,
        )
        due = (step - self.meta["phase_start"]) % self.checkpoint_every == 0
        if best or due:
            self.save()

    def _row(self, split: str, phase: Phase, done: int) -> dict:
        return {
            "trial": self.name,
            "step": self.meta["phase_start"] + done,
            "epoch": round(done / phase.length.steps_per_epoch, 4),
            "phase": phase.name,
            "split": split,
        }

    def _write(self, row: dict, speed: dict) -> None:
        """Adds a row to history, metrics.jsonl and TensorBoard; `speed` is not part of the (exact) history."""
        self.meta["history"].append(row)
        self.log.append(row)
        scalars = {k: v for k, v in (row | speed).items() if isinstance(v, int | float) and k != "step"}
        self.writer.write_scalars(row["step"], {f"{row['split']}/{k}": v for k, v in scalars.items()})

    # Ends

    def save(self) -> None:
        """Saves state, controls, position and history.

        Raises:
          Diverged: the parameters are not finite; the last good checkpoint stays.
        """
        if not bool(progress.all_finite((self.state.params, self.state.batch_stats))):
            raise progress.Diverged(f"The parameters are not finite at step {self._step()}; lower the learning rate.")
        meta = self.meta | {
            "controls": dataclasses.asdict(self.controls),
            "dataset": self.trial.dataset.fingerprint,
            "position": {
                "seed": self.config.seed,
                "phase": self.meta["phase"],
                "step": self._step() - self.meta["phase_start"],
            },
        }
        if cluster.is_first():
            self.writer.flush()
            self.log.flush()
        with self.clock.measure("save"):
            self.checkpoints.save(
                self._step(), state.to_tree(self.state), json.loads(json.dumps(meta)), self.controls.best_step
            )
        self.saved_step = self._step()
