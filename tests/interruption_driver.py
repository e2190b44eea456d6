"""Runs `research.main` and writes what it is doing (compile, step, save, evaluate, report) to the file STATUS_FILE.

The interruption tests read that file to kill the process in a chosen activity. The program itself has no such hook.
"""

import functools
import os
import sys

from input_pipeline import cli
from research import main as entry

STATUS = os.environ["STATUS_FILE"]


def say(activity: str) -> None:
    """Replaces the content of the status file."""
    with open(STATUS + ".new", "w", encoding="ascii") as file:
        file.write(activity)
    os.replace(STATUS + ".new", STATUS)


def marked(function, activity: str):
    """`function` with the activity in the status file while it runs."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        before = open(STATUS, encoding="ascii").read() if os.path.exists(STATUS) else "start"
        say(activity)
        try:
            return function(*args, **kwargs)
        finally:
            say(before)

    return wrapper


def main() -> int:
    """Marks the activities, then runs the program as the command line says."""
    from research import study
    from research.report import assemble
    from research.training.checkpoint import Checkpoints
    from research.training.inference import Predictor
    from research.training.loop import Training

    Training._compile = marked(Training._compile, "compile")
    Training._train_one = marked(Training._train_one, "step")
    Checkpoints.save = marked(Checkpoints.save, "save")
    Predictor.__call__ = marked(Predictor.__call__, "evaluate")
    assemble.report = study.assemble.report = marked(assemble.report, "report")
    return entry.main()


if __name__ == "__main__":
    from research.training.signals import EXIT_STOPPED, Stopped

    say("start")
    try:
        cli.run(main)
    except Stopped:
        sys.stdout.flush()
        os._exit(EXIT_STOPPED)
