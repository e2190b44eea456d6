"""How a run is stopped: SIGTERM and Ctrl-C ask, a second one forces; compilation does not delay the answer."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from input_pipeline import cli

T = TypeVar("T")

_ONE_REQUEST = 1.0  # seconds in which a scheduler and a wrapper may pass on one and the same request
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped on request, everything saved; the same command continues


class Stopped(Exception):
    """A stop was asked for; what is to be saved has been saved by the handlers on the way up."""


def run_and_leave(main: Callable[[], int]) -> NoReturn:
    """Runs a command that can be stopped and leaves the process with its exit status.

    Without waiting for threads of a compilation, of grain or of a failed save.
    """
    try:
        cli.run(main)
    except SystemExit as finished:
        status = finished.code
    except Stopped:
        print("Stopped; run the same command to continue.", file=sys.stderr)
        status = EXIT_STOPPED
    sys.stdout.flush()
    os._exit(status)


class StopSignal:
    """Remembers that the process was asked to stop."""

    def __init__(self) -> None:
        self.requested, self._asked = False, 0.0

    def install(self) -> None:
        """Takes over SIGTERM and SIGINT. The first asks; another a second later ends the process: 128 + its number."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame) -> None:
        now = time.monotonic()
        if self.requested:
            if now - self._asked < _ONE_REQUEST:
                return
            os._exit(128 + number)
        self.requested, self._asked = True, now
        os.write(2, b"\nStopping: saving the state; once more to leave at once.\n")

    def check(self) -> None:
        """Raises `Stopped` if a stop was asked for."""
        if self.requested:
            raise Stopped

    def interruptible(self, function: Callable[[], T]) -> T:
        """Runs a long native call (compilation) in a thread, so that the main thread can answer a stop meanwhile.

        After `Stopped` the thread still runs; leave the process with `os._exit`.
        """
        outcome: dict = {}

        def work() -> None:
            try:
                outcome["value"] = function()
            except BaseException as error:  # handed to the caller below
                outcome["error"] = error

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive():
            self.check()
            thread.join(0.1)
        if "error" in outcome:
            raise outcome["error"]
        return outcome["value"]


class Clock:
    """Seconds spent by kind ("step", "input", "compile", "evaluate", "save"), so that an ETA excludes compilation."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = 0.0

    def measure(self, kind: str) -> "_Measured":
        """Context manager that adds its duration to `kind`."""
        return _Measured(self, kind)

    def take(self, kind: str) -> float:
        """Returns and clears the seconds of `kind`."""
        return self.seconds.pop(kind, 0.0)


class _Measured:
    def __init__(self, clock: Clock, kind: str) -> None:
        self.clock, self.kind = clock, kind

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, *error) -> None:
        spent = time.monotonic() - self.start
        self.clock.seconds[self.kind] = self.clock.seconds.get(self.kind, 0.0) + spent
