"""For which platform is a program being traced, and which of XLA's choices are overruled there?"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
from jax import lax

_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)
# To `optimization_barrier`, which XLA on CPU otherwise drops before it fuses operations.
_CPU_OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


@contextlib.contextmanager
def lowering_for(platform: str) -> Iterator[None]:
    """Within, functions are traced for `platform` ("cpu", "cuda", "tpu", ...) instead of the default backend's.

    For `jax.export` to another platform: the result of any lowering is right on any platform, this one is fast.
    """
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def on_cpu() -> bool:
    """Whether functions are being traced for CPU."""
    return (_PLATFORM.get() or jax.default_backend()) == "cpu"


def compiler_options() -> dict[str, str]:
    """For `jax.jit(..., compiler_options=...)` of a training step; without them `materialize` does nothing."""
    return dict(_CPU_OPTIONS) if jax.default_backend() == "cpu" else {}


def materialize(values: jax.Array) -> jax.Array:
    """The same values, on CPU as an array in memory that all users share.

    XLA on CPU fuses an element-wise operation into each of its users, which then compute it again, often in an order
    in which they jump through memory, and it writes a copy for every shape in which a matrix product sees the array.
    """
    return lax.optimization_barrier(values) if on_cpu() else values
