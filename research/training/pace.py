"""How fast are the steps, and how much of the hardware do they use?"""

import pathlib
import time

import jax
import numpy as np

from research.models.flops import flops
from research.training import build

# Dense peak in TFLOP/s of 16-bit matrix products with float32 sums, by a part of the device's name, from the makers'
# data sheets; the first that matches counts. A device of JAX is one core on TPU v2 and v3, else a chip.
_PEAKS = (
    ("B200", 2250.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("A40", 150.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("L4", 121.0),
    ("RTX 4090", 165.0),
    ("RTX 3090", 71.0),
    ("TPU v6", 918.0),
    ("TPU v5p", 459.0),
    ("TPU v5 lite", 197.0),
    ("TPU v5e", 197.0),
    ("TPU v5", 459.0),
    ("TPU v4", 275.0),
    ("TPU v3", 61.5),
    ("TPU v2", 22.5),
)
# These have no bfloat16.
_FLOAT16_ONLY = (("V100", 125.0), ("T4", 65.0))


def peak(kind: str, dtype: str) -> float | None:
    """Operations per second of a device of this kind with this compute type; None where it is not known."""
    known = {"bfloat16": _PEAKS, "float16": _PEAKS + _FLOAT16_ONLY}.get(dtype, ())
    return next((1e12 * value for name, value in known if name in kind), None)


class Pace:
    """Times between the beginnings of steps, since the last log line."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._spent: list[float] = []

    def tick(self) -> None:
        """A step begins."""
        now = time.perf_counter()
        if self._last is not None:
            self._spent.append(now - self._last)
        self._last = now

    def pause(self) -> None:
        """Something else than steps follows."""
        self._last = None

    def take(self) -> dict[str, float]:
        """Median and 95th percentile in milliseconds; nothing after a single step."""
        spent, self._spent = self._spent, []
        self.pause()
        if not spent:
            return {}
        p50, p95 = np.percentile(1000 * np.asarray(spent), (50, 95))
        return {"step_p50_ms": float(p50), "step_p95_ms": float(p95)}


def use(trial: build.Trial, images_per_second: float, devices: int) -> dict[str, float]:
    """Images per second of each device, and the model FLOPs utilisation where the device's peak is known.

    The latter (Chowdhery et al. 2022, appendix B) is the share of the peak that the model itself takes: three times the
    forward pass (the backward pass costs twice as much), whatever is frozen or computed again.
    """
    each = images_per_second / devices
    found = {"images_per_second_per_device": each}
    most = peak(jax.devices()[0].device_kind, np.dtype(build.compute_dtype(trial.config)).name)
    if most:
        work = 3 * flops(build.build_model(trial), trial.config.image_size, trial.channels, trial.tokens)
        found["model_flops_utilisation"] = each * work / most
    return found


def in_words(speed: dict[str, float]) -> str:
    """The part of a log line."""
    text = ""
    if "step_p50_ms" in speed:
        text += f"  step {speed['step_p50_ms']:.3g} ms (p95 {speed['step_p95_ms']:.3g})"
    if "model_flops_utilisation" in speed:
        text += f"  MFU {100 * speed['model_flops_utilisation']:.1f}%"
    return text


class Profile:
    """Traces the steps that `config.profile` names ("10:20" are steps 10 to 19) for TensorBoard and XProf.

    Args:
      steps: of the config; "" = none.
      folder: gets `plugins/profile/<time>/`, to be opened by `tensorboard --logdir` with the plugin `xprof`.
      active: False for all processes but the first.
    """

    def __init__(self, steps: str, folder: pathlib.Path, active: bool = True) -> None:
        self._folder, self._on = folder, False
        self._first, self._end = map(int, steps.split(":")) if steps and active else (-1, -1)

    def at(self, step: int, wait_for) -> None:
        """To be called before a step; `wait_for` is what the steps before it have made."""
        if step == self._first:
            jax.block_until_ready(wait_for)
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        elif step == self._end:
            self.stop(wait_for)

    def stop(self, wait_for=None) -> None:
        """Ends the trace, if there is one."""
        if self._on:
            jax.block_until_ready(wait_for)
            jax.profiler.stop_trace()
            self._on = False
            print(f"Profile of steps {self._first} to {self._end - 1} at most: {self._folder}", flush=True)
