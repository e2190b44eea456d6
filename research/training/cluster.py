"""Which processes make up this job, and how do they stay one?

A job is one process, or N that run the same command on one or several hosts:

    python -m research.main --config=… --workdir=… --coordinator=HOST:PORT --num_processes=N --process_id=I

On TPU pods, in SLURM steps (`srun`), under Open MPI 4 and in indexed Kubernetes jobs (with the package `kubernetes`)
nothing has to be said; --num_processes=1 says that each process there is by itself, as workers of a search are. HOST is
where process 0 runs, and its coordinator listens on that address only (JAX_COORDINATOR_BIND_ADDRESS=IP:PORT where HOST
is not an address of its own machine).

All processes go through the same program and compute together. Process 0 alone touches the run folder, which the others
need not see; what it reads there, or decides, it tells the others (`from_first`). The data set every host reads itself.
If one dies, the others end with status 76, and the same commands continue from the last checkpoint.
"""

import contextlib
import ctypes
import ipaddress
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from absl import flags, logging

from input_pipeline.cli import UserError
from research.training.signals import Stopped, StopSignal

T = TypeVar("T")

EXIT_PEER = 76  # EX_PROTOCOL: another process of the job has ended; the same command continues
_LOST = (
    "\nAnother process of the job has ended, so this one ends too; everything up to the last checkpoint is kept: start "
    "all processes again with the same commands.\n"
)
# What runtimes say when the other side of a connection is gone.
_SIGNS = ("gloo", "nccl", "connection closed", "connection reset", "socket closed", "coordination service", "heartbeat")
# Only where one of these is set (or on a TPU) JAX is asked for a cluster: never on somebody's laptop.
_MARKS = ("SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri", "JOB_COMPLETION_INDEX")
_START_SECONDS, _END_SECONDS, _SHUTDOWN_SECONDS = 300, 5, 30
_POLL_MS, _LONG_MS, _KEPT = 1000, 24 * 3600 * 1000, 100
_STOP = "research/stop"

_job = {"count": 1, "index": 0, "turn": 0, "alone": False}


def define_flags() -> None:
    """The flags of a job of several processes."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for a job of several processes.")
    flags.DEFINE_integer("num_processes", None, "How many processes the job has.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.", lower_bound=0)
    flags.DEFINE_integer("peer_timeout", 100, "Seconds of silence after which a process counts as dead.", lower_bound=5)


def count() -> int:
    """Processes that compute together here: those of the job, or one in an `alone` part."""
    return 1 if _job["alone"] else _job["count"]


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return _job["index"] == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the job that flags or cluster speak of, if any, and leaves it at the end, in agreement with the others.

    Raises:
      UserError: the flags contradict each other, or the job does not come together.
    """
    place = None
    if flags.FLAGS.num_processes != 1:  # that says that this process is by itself, in whatever cluster
        place = _stated(flags.FLAGS) or _detected()
    if place is None:
        yield
        return
    _join(*place, flags.FLAGS.peer_timeout)
    try:
        yield
    except (UserError, OSError):
        _leave("research/ended", _END_SECONDS)  # a mistake is found by all at once; let each say it
        raise
    except Stopped:
        _leave("research/stopped", _START_SECONDS)
        raise
    except Exception as error:
        if any(sign in str(error).lower() for sign in _SIGNS):
            logging.info("%s", error)
            _leave_alone()
        try:
            traceback.print_exc()
        finally:  # at once: the end of the interpreter would wait for the others, and they for this process
            os._exit(1)
    _leave("research/finished", _START_SECONDS)


def _stated(values: flags.FlagValues) -> tuple[str, int, int, None] | None:
    """Coordinator, number of processes and own number, as the flags say; None without any."""
    stated = {name: values[name].value for name in ("coordinator", "num_processes", "process_id")}
    if all(value is None for value in stated.values()):
        return None
    if missing := [name for name, value in stated.items() if value is None]:
        raise UserError(f"--{missing[0]} is missing; --coordinator, --num_processes and --process_id go together.")
    coordinator, number, own = stated.values()
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator} is not HOST:PORT; for example --coordinator=10.0.0.1:8476.")
    if own >= number:
        raise UserError(f"--process_id={own} is none of 0 to {number - 1}; see --num_processes.")
    return coordinator, number, own, None


def _detected() -> tuple[str, int, int, list[int] | None] | None:
    """What TPU pod, SLURM, Open MPI or Kubernetes say, by JAX's own detection; None for a process by itself."""
    from jax._src import clusters
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm

    if not running_in_cloud_tpu_vm and not any(mark in os.environ for mark in _MARKS):
        return None
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, _START_SECONDS)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"the cluster does not say which processes the job has ({' '.join(str(error).split())}); pass "
            "--coordinator, --num_processes and --process_id."
        ) from error
    coordinator, number, own, devices = found
    if os.environ.get("SLURM_NTASKS") == os.environ.get("SLURM_STEP_NUM_NODES", ""):
        devices = None  # one task a node has all of the node's GPUs, of which JAX would give it the first
    return None if None in (coordinator, number, own) or number == 1 else (coordinator, number, own, devices)


def _bind_address(coordinator: str, detected: bool) -> str:
    """Where process 0 listens: at the stated address.

    Some clusters' nodes know their own name as 127.0.1.1 only, where no other node could reach them.
    """
    if given := os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
        return given
    host, _, port = coordinator.rpartition(":")
    with contextlib.suppress(OSError):
        if detected and ipaddress.ip_address(socket.gethostbyname(host)).is_loopback:
            return f"[::]:{port}"
    return coordinator


def _join(coordinator: str, number: int, own: int, devices: list[int] | None, silence: int) -> None:
    import jax

    detected = flags.FLAGS.coordinator is None
    try:
        jax.distributed.initialize(
            coordinator,
            number,
            own,
            local_device_ids=devices,
            cluster_detection_method="deactivate",
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=silence,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            coordinator_bind_address=_bind_address(coordinator, detected),
        )
    except (RuntimeError, ValueError) as error:
        text = str(error).splitlines()[0]
        if "DEADLINE_EXCEEDED" in str(error):  # a peer that comes late is no mistake
            _leave_alone(f"\nNot all {number} processes of the job came in {_START_SECONDS} s; start all again.\n")
        raise UserError(
            f"process {own} of {number} could not join the job at {coordinator} ({text}); check --coordinator, that "
            "its port is free, and that all processes were started."
        ) from error
    _job.update(count=number, index=own)
    _end_in_words()
    if own:  # the first one speaks for all; errors are each one's own
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    print(f"Job of {number} processes, coordinator {coordinator}.", flush=True)


def _end_in_words() -> None:
    """Makes the runtime's abort at a peer's death end with one sentence and a status.

    The runtime calls `abort` from a thread of its own, where a handler of Python's module signal never gets its turn.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: _leave_alone())
    library = ctypes.CDLL(None)
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    library.signal(int(signal.SIGABRT), ctypes.cast(handler, ctypes.c_void_p))
    _job["handler"] = handler  # must outlive this function


def _leave_alone(text: str = _LOST) -> None:
    os.write(2, text.encode())
    os._exit(EXIT_PEER)


def _client() -> Any:
    from jax._src import distributed  # JAX has no public name for its key-value store; orbax uses it like this

    return distributed.global_state.client


def _leave(name: str, seconds: float) -> None:
    """Ends the job together with the others, if all are there within so many seconds; else they see that one is gone.

    Whoever just left would look dead to the others.
    """
    import jax

    with contextlib.suppress(Exception):
        _client().wait_at_barrier(name, int(1000 * seconds))
        jax.distributed.shutdown()


# Agreement


def from_first(function: Callable[[], T]) -> T:
    """What `function` returns, a JSON value, or the error that it raises, in process 0; all processes get it.

    The others wait for as long as it takes. In it, process 0 is `alone`.
    """
    if count() == 1:
        return function()
    _job["turn"] += 1
    key = f"research/first/{_job['turn']}"
    if is_first():
        _forget(f"research/first/{_job['turn'] - _KEPT}")
        return _tell(key, function)
    return _told(key)


def _tell(key: str, function: Callable[[], T]) -> T:
    try:
        with alone():
            value = function()
        answer = {"value": value}
    except Stopped:
        answer = {"stopped": True}
        raise
    except (UserError, OSError) as error:
        answer = {"error": str(error)}
        raise
    except BaseException:
        answer = {"error": "process 0 has failed; its own message says why."}
        raise
    finally:
        _client().key_value_set_bytes(key, json.dumps(answer).encode())
    return json.loads(json.dumps(value))  # tuples become lists here as well


def _told(key: str) -> Any:
    stop_sent = False
    while True:
        try:
            answer = json.loads(_client().blocking_key_value_get_bytes(key, _POLL_MS))
            break
        except Exception as error:  # jaxlib has no class of its own for a time-out
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if _STOPS and _STOPS[-1].requested and not stop_sent:
            _client().key_value_set(_STOP, "1", allow_overwrite=True)
            stop_sent = True
    if "stopped" in answer:
        raise Stopped
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


def _forget(key: str) -> None:
    with contextlib.suppress(Exception):
        _client().key_value_delete(key)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A part in which this process computes by itself."""
    before, _job["alone"] = _job["alone"], True
    try:
        yield
    finally:
        _job["alone"] = before


def one_after_another(function: Callable[[], T]) -> T:
    """Calls `function` in one process after another: what the first leaves in a shared folder, the others find."""
    if count() == 1:
        return function()
    result: list[T] = []
    from_first(lambda: result.append(function()))
    for number in range(1, count()):
        if number == _job["index"]:
            with alone():
                result.append(function())
        _job["turn"] += 1
        _client().wait_at_barrier(f"research/turn/{_job['turn']}", _LONG_MS)
    return result[0]


# Stopping

_STOPS: list[StopSignal] = []


def stop_signal() -> StopSignal:
    """The stop of this process, agreed upon where there are several."""
    stop = StopSignal() if _job["count"] == 1 else SharedStop()
    _STOPS.append(stop)
    return stop


class SharedStop(StopSignal):
    """A stop that reaches all processes at the same step: whoever is asked to stop takes the others along.

    Every process calls `check` equally often; about every two seconds one call compares them all.
    """

    _SECONDS, _MOST = 2.0, 1000

    def __init__(self) -> None:
        super().__init__()
        self._calls, self._next, self._since, self._waiting = 0, 1, time.monotonic(), False

    def check(self) -> None:
        """Raises `Stopped` in all processes if one of them was asked to stop."""
        if self._waiting:
            return
        if count() == 1:
            self._check_alone()
            return
        self._calls += 1
        if self._calls < self._next:
            return
        from jax.experimental import multihost_utils

        now = time.monotonic()
        own = [float(self.requested), now - self._since]
        found = multihost_utils.process_allgather(_as_array(own))
        if found[:, 0].any():
            raise Stopped
        # From the numbers of process 0, so that all come to the same.
        interval = round(self._calls * self._SECONDS / max(float(found[0, 1]), 1e-3))
        self._calls, self._next, self._since = 0, min(max(1, interval), self._MOST), now

    def _check_alone(self) -> None:
        """Process 0 at work by itself also answers those who wait for it."""
        with contextlib.suppress(Exception):
            self.requested = self.requested or bool(_client().key_value_try_get(_STOP))
        super().check()

    def interruptible(self, function: Callable[[], T]) -> T:
        """Runs `function` to its end: the others compile as well, and a stop is answered at the next step."""
        self._waiting = True
        try:
            return super().interruptible(function)
        finally:
            self._waiting = False


def _as_array(values: list[float]):
    import numpy as np

    return np.asarray(values, np.float32)
