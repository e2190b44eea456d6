"""Where are compiled programs kept, so that the second launch of a program does not compile again?"""

import hashlib
import os
import pathlib
import platform

import jax

# A program that was compiled faster than this is not worth a file.
_LEAST_SECONDS = 0.3


def keep_programs() -> pathlib.Path | None:
    """Turns JAX's persistent compilation cache on, unless the environment already says where it is.

    The folder is `$XDG_CACHE_HOME/research-jax/<machine>` (`~/.cache/...` without it). JAX's keys name versions and
    accelerators but not the processor, whose instructions a program for CPU uses: the machines of a cluster that
    share a home folder need a folder for each kind of processor.

    Returns:
      The folder; None where none can be written, and then every launch compiles.
    """
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    if jax.config.jax_compilation_cache_dir:
        return pathlib.Path(jax.config.jax_compilation_cache_dir)
    try:
        base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        folder = base / "research-jax" / _processor()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the latter: this user has no home
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _processor() -> str:
    """The kind of processor, such as "x86_64-1a2b3c4d"; kinds with other instructions differ."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
