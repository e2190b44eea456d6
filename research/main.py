"""Runs a study: trains its trials, evaluates them and writes the report.

python -m research.main --config=configs/hpa.py [--config.KEY=VALUE …] [--workdir=DIR] [--allow_cpu] [--dry_run]
    [--coordinator=HOST:PORT --num_processes=N --process_id=I [--peer_timeout=SECONDS]]

The part after a colon chooses presets (configs/hpa.py:simple_cnn,smoke). The same command on the same folder continues
where it stopped. Several processes make one job (research/training/cluster.py). Exit status: 0 finished, 2 a mistake in
command, config or data, 75 stopped by SIGTERM or Ctrl-C with everything saved, 76 another process of the job died.
"""

from research import memory

if __name__ == "__main__":
    memory.restart_with_huge_pages()

import pathlib
import re
import sys

from absl import flags
from ml_collections import config_flags

from input_pipeline import cli
from research.training import cluster
from research.training.signals import run_and_leave

_CONFIG = config_flags.DEFINE_config_file("config", None, "The study: a file of configs/, with presets after a colon.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run folder; default runs/<config name>[-<presets>].")
_ALLOW_CPU = flags.DEFINE_bool("allow_cpu", False, "Run on the CPU although this machine has an accelerator.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only say which trials would be trained, in which cohorts, how long.")
cluster.define_flags()


def parse(argv: list[str]) -> None:
    """Parses the command line; an unknown flag, key, preset or value is a UserError in one sentence."""
    if any(a in ("--help", "-h", "-help", "--helpshort", "--helpfull") for a in argv[1:]):
        print(__doc__ + flags.FLAGS.main_module_help())
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _ = _CONFIG.value.study  # a missing or broken file is reported at its first use only
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError) as error:
        raise cli.UserError(_sentence(error)) from error
    if len(rest) > 1:
        raise cli.UserError(f"'{rest[1]}' is not a flag; flags are written --name=value.")
    if _CONFIG.value is None:
        raise cli.UserError("--config is missing; for example --config=configs/hpa.py.")


def _sentence(error: Exception) -> str:
    """What ml_collections and absl say, without their tracebacks and quoting."""
    text = " ".join(str(error.args[0] if error.args else error).split())
    if "Failed loading config file" in text:
        return f"the config file {flags.FLAGS['config'].config_filename} cannot be read; for example configs/hpa.py."
    if isinstance(error, KeyError | AttributeError):
        key, *similar = re.findall(r"\w+", text.replace("\\nDid you mean", ""))
        hint = f"did you mean '{similar[0]}'" if similar else "configs/common.py lists all keys"
        return f"'{key}' is not a key of this config; {hint}."
    return text.rpartition("Error: ")[2] if "Traceback" in text else text  # the last line says what the file raised


def main() -> int:
    """Parses, then hands over to the study."""
    parse(sys.argv)
    file, _, presets = flags.FLAGS["config"].config_filename.partition(":")
    workdir = _WORKDIR.value or "runs/" + "-".join([pathlib.Path(file).stem, *filter(None, presets.split(","))])
    from research import study  # imports JAX; --help and mistakes in flags answer without
    from research.remote import mirror

    with cluster.joined(), mirror.local(workdir, _DRY_RUN.value) as folder:
        return study.run(_CONFIG.value, folder, allow_cpu=_ALLOW_CPU.value, dry_run=_DRY_RUN.value)


if __name__ == "__main__":
    run_and_leave(main)
