"""Which trial of a run segments new images?"""

import jax

from input_pipeline.cli import UserError
from research import runs, study
from research.report import choice
from research.training import build


def segmenting_trial(run: runs.Run, name: str, mesh: jax.sharding.Mesh) -> build.Trial:
    """The trial `name`, or the first of the setting that is best on validation, with what its normalisation needs.

    Raises:
      UserError: no trial is finished, the name is unknown, or the model classifies images.
    """
    if not any(row.get("status") == "finished" for row in run.rows.values()):
        raise UserError(f"no trial of {run.path} is finished; run research.main on it first.")
    if not name:
        ledger = list(run.rows.values())
        settings = choice.settings_of(run.trials.values(), ledger)
        metric = choice.metric_of(run.config, settings)
        chosen, role = choice.choose(settings, ledger, metric)
        name = choice.shown(settings, chosen, ledger, role, metric)[0].name
    (trial,) = runs.chosen(run, name)
    if not trial.task.segments:
        raise UserError(
            f"the model {trial.config.model.name} of {run.path} classifies images; name a --workdir whose model "
            "segments, such as one of configs/lung_masks.py."
        )
    return study.SharedImages().attach(trial, mesh)
