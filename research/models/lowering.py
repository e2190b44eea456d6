"""For which platform, and for how many models at once, is a program being traced?"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

MEMBER_CONVOLUTIONS = ("unrolled", "im2col")

_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)
_MEMBERS: contextvars.ContextVar[str] = contextvars.ContextVar("members", default="")


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


@contextlib.contextmanager
def convolutions_of_members(kind: str) -> Iterator[None]:
    """Within, convolutions are traced so that `jax.vmap` over kernels, or a loop around them, is fast.

    Args:
      kind: "unrolled" or "im2col", see `research.models.member_convolution`; "" for one model at a time.
    """
    token = _MEMBERS.set(kind)
    try:
        yield
    finally:
        _MEMBERS.reset(token)


def member_convolutions() -> str:
    """The kind that is in force, "" outside."""
    return _MEMBERS.get()
