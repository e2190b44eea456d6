"""What the validation metrics decide: checkpoint choice, reduce-on-plateau, early stopping."""

import dataclasses
import math

MINIMISED = ("loss", "log_loss", "ece", "brier")


def improves(metric: str, value: float, best: float | None, tolerance: float = 0.0) -> bool:
    """Whether `value` of `metric` beats `best` by more than `tolerance`; NaN never does, None is always beaten."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value < best - tolerance if metric in MINIMISED else value > best + tolerance


@dataclasses.dataclass
class Controls:
    """State between evaluations; plain numbers, so that it can stand in a checkpoint's JSON."""

    best: float | None = None  # of config.selection, over the whole trial
    best_step: int = 0
    stale: int = 0  # evaluations since the best one, within the phase
    plateau_best: float | None = None
    plateau_stale: int = 0
    rate_factor: float = 1.0  # what the plateau has multiplied the learning rate by

    def start_phase(self) -> None:
        """Forgets the counts of the phase before; the best checkpoint stays the best of the whole trial."""
        self.stale = self.plateau_stale = 0
        self.plateau_best = None
        self.rate_factor = 1.0

    def observe(self, config, step: int, metrics: dict[str, float], base_rate: float) -> bool:
        """Takes the validation metrics of an evaluation; returns whether this step is the best so far.

        Plateau (Keras's ReduceLROnPlateau, min_delta 1e-4): after `plateau_patience` evaluations without improvement
        the learning rate is multiplied by `plateau_factor`, never below `plateau_floor`.
        """
        schedule = config.schedule
        value = metrics[config.selection]
        is_best = improves(config.selection, value, self.best)
        if is_best:
            self.best, self.best_step, self.stale = value, step, 0
        else:
            self.stale += 1
        if schedule.plateau_factor < 1.0:
            value = metrics[schedule.plateau_metric]
            if improves(schedule.plateau_metric, value, self.plateau_best, 1e-4):
                self.plateau_best, self.plateau_stale = value, 0
            else:
                self.plateau_stale += 1
                if self.plateau_stale >= schedule.plateau_patience:
                    floor = min(1.0, schedule.plateau_floor / base_rate)
                    self.rate_factor = max(self.rate_factor * schedule.plateau_factor, floor)
                    self.plateau_stale = 0
        return is_best

    def should_stop(self, config) -> bool:
        """Whether `early_stopping` evaluations have passed without a better `selection` metric."""
        return bool(config.early_stopping) and self.stale >= config.early_stopping
