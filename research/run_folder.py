"""The run folder: one run at a time, one configuration, and a record of what ran where."""

import fcntl
import json
import os
import pathlib
import platform
import subprocess
import sys
from importlib import metadata

from ml_collections import ConfigDict

from input_pipeline.cli import UserError, atomic_write, remove_unfinished
from research.settings import completed
from research.training import cluster

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "scipy",
    "scikit-learn",
    "opencv-python-headless",
    "simplejpeg",
)


class RunFolder:
    """Opens (or creates) `path` for this run alone.

    Raises:
      UserError: another process runs in it, or it holds a run of another configuration.
    """

    def __init__(self, path: pathlib.Path, config: ConfigDict) -> None:
        self.path = path.absolute()
        cluster.from_first(lambda: self._open(config))

    def _open(self, config: ConfigDict) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            text = f"Another run is at work in {self.path}; wait for it or choose another --workdir."
            raise UserError(text) from error
        self._check_config(json.loads(config.to_json_best_effort()))
        for name in ("", "predictions", "report"):
            (self.path / name).mkdir(exist_ok=True)
            remove_unfinished(self.path / name)  # of a process that was killed: nobody else holds the lock

    def _check_config(self, wanted: dict) -> None:
        file = self.path / "config.json"
        if file.exists():
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
                stored = json.loads(json.dumps(completed(content)))
            except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
                raise UserError(f"{file} is damaged; restore it or choose another --workdir.") from error
            for key in sorted(_flat(stored).keys() | _flat(wanted).keys()):
                before, now = _flat(stored).get(key), _flat(wanted).get(key)
                if before != now:
                    raise UserError(
                        f"{self.path} holds a run with config.{key} = {before!r}, now {now!r}; choose another "
                        "--workdir or the same configuration."
                    )
        else:
            atomic_write(file, json.dumps(wanted, indent=1, sort_keys=True) + "\n")

    def write_environment(self, seconds_to_here: float | None = None) -> dict:
        """Writes `environment.json` (versions, devices, commit, command) and returns it."""
        import jax

        environment = {
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "cpus": os.cpu_count(),
            "packages": {name: metadata.version(name) for name in _PACKAGES},
            "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
            "processes": jax.process_count(),
            "commit": _commit(),
            "command": " ".join(["python -m research.main", *sys.argv[1:]]),
        }
        if cluster.is_first():
            atomic_write(self.path / "environment.json", json.dumps(environment, indent=1) + "\n")
        return environment


def _flat(tree: dict, prefix: str = "") -> dict:
    result = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        result |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return result


def _commit() -> str:
    """The commit of the code, with "+" if it was changed since; "" outside a checkout."""
    here = pathlib.Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
    except OSError:
        return ""
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "") if commit.returncode == 0 else ""
