"""Studies of image classification in JAX: training, evaluation and reports; `load` gives a trained model."""


def load(workdir, trial: str | None = None, batch_size: int = 0):
    """The model of a finished run, ready to predict.

    Args:
      workdir: the run folder.
      trial: name of one of its trials; None for the one that its report shows, chosen on calibration.
      batch_size: inputs at once; 0 for that of the run's own predictions, with which results are theirs bit for bit.
        A smaller one answers sooner where inputs come one by one.

    Returns:
      research.prediction.model.Model: `predict(images)`, `features(images)`, `classes`, `thresholds`.

    Raises:
      input_pipeline.cli.UserError: no finished run, no such trial, or a model that segments.
    """
    from research.prediction import model  # imports JAX

    return model.load(workdir, trial, batch_size)
