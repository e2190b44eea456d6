"""How does a trial of a finished run become a network to be explained?"""

import pathlib

import jax
import jax.numpy as jnp

from input_pipeline.cli import UserError
from research import runs, study
from research.explain import methods
from research.explain.network import Network, layers
from research.models.initialize import initialize
from research.report import choice
from research.training import build
from research.training.signals import StopSignal
from research.training.state import nest


def pick(run: runs.Run, name: str) -> build.Trial:
    """The finished trial of a name; with "" the one that the run's report shows, of several folds the first.

    Raises:
      UserError: no such trial, or it is not finished.
    """
    if not name:
        ledger = list(run.rows.values())
        settings = choice.settings_of(run.trials.values(), ledger)
        metric = choice.metric_of(run.config, settings)
        chosen, role = choice.choose(settings, ledger, metric)
        members = choice.shown(settings, chosen, ledger, role, metric)
        done = [trial.name for trial in members if run.rows[trial.name].get("status") == "finished"]
        if not done:
            raise UserError(f"no trial of {run.path} is finished; run research.main on it again.")
        name = done[0]
    found = runs.chosen(run, name)
    if len(found) > 1:
        raise UserError(f"--trial={name} names {len(found)} trials; explain one at a time.")
    return found[0]


def attached(workdir: pathlib.Path, trial: build.Trial, mesh) -> build.Trial:
    """The trial as it is explained: computing in float32, with what its normalisation needs, without cached images.

    Gradients in bfloat16 would be coarse, and images are few: neither memory nor speed asks for it.
    """
    if trial.text is not None:
        raise UserError(f"{trial.name} reads captions as well, so that maps of its images alone would not explain it.")
    trial = runs.changed_trial(trial, {"model.dtype": "float32", "data.cache": "none"})
    return study.SharedImages(workdir).attach(trial, mesh)


def explainer(
    workdir: pathlib.Path,
    trial: build.Trial,
    names: tuple[str, ...],
    options: methods.Options,
    batch_size: int,
    mesh,
    stop: StopSignal,
) -> methods.Explainer:
    """A trial's best variables with its model, checked against the methods `names`.

    It takes images, and for vectors the pictures that `sources` draws of them; genes are the matter of research.genes.

    Args:
      trial: as `attached` gives it.

    Raises:
      UserError: see `methods.check`; the checkpoint is missing or damaged.
    """
    variables = {kind: nest(flat) for kind, flat in runs.load(trial, workdir, mesh, stop).items()}
    network = Network(variables, build.build_model(trial))
    size = trial.config.image_size
    options = methods.check(names, network, (1, size, size, trial.channels), options)
    normalize = build.build_pixels(trial)
    return methods.Explainer(network, normalize, batch_size, trial.dataset.multi_label, options, stop.check)


def abstract(trial: build.Trial) -> tuple[Network, tuple[int, ...]]:
    """The network of a trial with shapes in place of variables, and the shape of one image, `(1, S, S, C)`."""
    model, size = build.build_model(runs.changed_trial(trial, {"model.dtype": "float32"})), trial.config.image_size
    shapes = jax.eval_shape(lambda: initialize(model, jax.random.key(0), size, trial.channels))
    return Network(shapes, model), (1, size, size, trial.channels)


def list_layers(workdir: pathlib.Path, name: str) -> list[str]:
    """A line for each layer that a map can be made of, in the order of computing; nothing is loaded."""
    network, shape = abstract(pick(runs.open_run(workdir), name))
    found = layers(network, jax.ShapeDtypeStruct(shape, jnp.float32))
    return [
        f"{layer.name}  {' x '.join(map(str, layer.shape))}{'  feature map' if layer.feature_map else ''}"
        for layer in found
    ]
