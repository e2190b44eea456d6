"""For which platform is a program being traced?"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


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
