"""How long, and at which learning rate: durations with units, schedules over steps."""

import dataclasses
import math
import re
from collections.abc import Callable

from input_pipeline.cli import UserError

_DURATION = re.compile(r"\s*([0-9.eE+-]+)\s*(steps?|epochs?|examples?|%)\s*")


@dataclasses.dataclass(frozen=True)
class Length:
    """Length of one phase: `steps` optimiser steps of `batch_size` out of `num_examples` training examples."""

    steps: int
    batch_size: int
    num_examples: int

    @property
    def steps_per_epoch(self) -> float:
        """Steps that see as many examples as the training set holds; rarely a whole number."""
        return self.num_examples / self.batch_size

    def parse(self, duration: str, name: str) -> int:
        """Converts "500 steps", "2 epochs", "10000 examples" or "5 %" to a whole number of steps.

        Raises:
          UserError: the text is not a duration.
        """
        match = _DURATION.fullmatch(duration)
        try:
            value = float(match[1]) if match else math.nan
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"config.{name} is '{duration}'; write for example '500 steps', '2 epochs' or '5 %'.")
        scale = {
            "step": 1.0,
            "epoc": self.steps_per_epoch,
            "exam": 1.0 / self.batch_size,
            "%": self.steps / 100.0,
        }[match[2][:4]]
        return int(round(value * scale))


def length_of(settings, batch_size: int, num_examples: int, default=None) -> Length:
    """The length named by exactly one of `settings` steps, epochs and examples (a mapping), in optimiser steps.

    Raises:
      UserError: none or several are set, one is negative, or the batch is larger than the training set.
    """
    chosen = {k: settings.get(k) or 0 for k in ("steps", "epochs", "examples")}
    if any(v < 0 for v in chosen.values()):
        raise UserError(f"The length of training must not be negative: {chosen}.")
    given = {k: v for k, v in chosen.items() if v > 0}
    if len(given) != 1:
        raise UserError(
            f"Set exactly one of steps, epochs and examples ({', '.join(given) or 'none'} is set), the others to 0."
        )
    if batch_size > num_examples:
        raise UserError(
            f"config.batch_size is {batch_size} but there are only {num_examples} training examples; make it smaller."
        )
    ((unit, value),) = given.items()
    examples = {"steps": value * batch_size, "epochs": value * num_examples, "examples": value}[unit]
    return Length(max(1, int(round(examples / batch_size))), batch_size, num_examples)


def learning_rate(schedule, base: float, length: Length) -> Callable[[int], float]:
    """Learning rate of step `s` (0-based) of a phase, without the plateau's factor.

    constant: base. cosine: base·(f + (1−f)·(1+cos πt)/2), t = share of the steps after the warm-up, f = `final`.
    one_cycle (Smith 2018): base/25 up to base over the first 30 %, then down to base/10⁴, both as half cosines.
    A warm-up of w steps multiplies the rate by (s+1)/w before step w.
    """
    warmup = length.parse(schedule.warmup, "schedule.warmup")

    def half_cosine(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2

    def rate(step: int) -> float:
        """The rate of `step`."""
        ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
        if schedule.name == "cosine":
            share = (step - warmup) / max(1, length.steps - warmup)
            return ramp * half_cosine(base, base * schedule.final, share)
        if schedule.name == "one_cycle":
            peak = max(1.0, 0.3 * length.steps)
            if step < peak:
                return ramp * half_cosine(base / 25, base, step / peak)
            return ramp * half_cosine(base, base * 1e-4, (step - peak) / max(1.0, length.steps - peak))
        return ramp * base

    if schedule.name not in ("constant", "cosine", "one_cycle"):
        raise UserError(f"config.schedule.name is '{schedule.name}'; choose constant, cosine or one_cycle.")
    return rate
