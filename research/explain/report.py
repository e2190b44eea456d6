"""What do a run's report and TensorBoard show of explanations? Grad-CAM of the most confident wrong and right cases."""

import dataclasses
import pathlib

import jax
import numpy as np

from input_pipeline.cli import UserError
from research.evaluation.score import Scored
from research.explain import opening, pages, pictures, sources
from research.explain.cases import Case, choose
from research.explain.methods import METHODS, Explainer, Options, check, enlarge
from research.report.writer import MetricWriter
from research.training import sharding
from research.training.build import Trial

CASES = 8
_BATCH = 8
_PREFIX = "explained_"


def cases_of(scored: Scored, most: int = CASES) -> list[Case]:
    """The most confident wrong and right cases of scored test predictions; `row` is that of `scored`."""
    k = len(scored.class_names)
    decided = scored.predicted if scored.multi_label else scored.predicted[:, None] == np.arange(k)
    known = np.ones(len(scored.ids), bool)
    ids, groups = list(map(str, scored.ids)), list(map(str, scored.groups))
    decided = np.asarray(decided, bool)
    return choose(scored.scores, decided, scored.labels, known, ids, groups, scored.class_names, most)


def figures(
    folder: pathlib.Path, trial: Trial, scored: Scored, stop, method: str = "gradcam", most: int = CASES
) -> list[dict]:
    """Writes `report/explained_N.png` and TensorBoard images of the test images that `trial` predicted.

    Args:
      folder: the run folder.
      trial: a finished trial; of several folds only the images of this one's test role are explained.
      scored: its predictions, or those pooled over the folds.
      stop: a StopSignal, checked between the slow parts.

    Returns:
      Figures for `research.report.page`, section "explanations"; none where the method does not suit the model, or
      the trial's checkpoint is gone.
    """
    own = set(map(str, trial.dataset.ids[trial.dataset.indices("test")]))
    mine = np.array([str(name) in own for name in scored.ids])
    cases = cases_of(_rows(scored, mine), most) if mine.any() else []
    if not cases or not suits(trial, method):
        return []
    mesh = sharding.make_mesh(jax.devices()[:1])
    trial = opening.attached(folder, trial, mesh)
    try:
        explainer = opening.explainer(folder, trial, (method,), Options(), _BATCH, mesh, stop)
    except UserError as error:  # a report can be made again where the checkpoints are no longer kept
        print(f"No explanations in the report: {error}")
        return []
    images = read_images(trial, cases)
    maps = case_maps(explainer, cases, images, method)
    title, signed = METHODS[method].title, METHODS[method].signed
    found = []
    for number, (case, image, values) in enumerate(zip(cases, images, maps, strict=True)):
        stop.check()
        name = f"{_PREFIX}{number}.png"
        row = (title, values, signed, METHODS[method].unit)
        pictures.draw(folder / "report" / name, image, [row], pages.title_of(case))
        caption = f"{title}, {pages.title_of(case)}".replace("\n", "; ")
        found.append({"path": name, "caption": caption, "section": "explanations"})
    write_images(folder / "tensorboard" / trial.name / "test", 0, f"explain/{method}", images, maps, signed)
    return found


def suits(trial: Trial, method: str) -> bool:
    """Whether the method can be used with the trial's model, which has to see the image alone."""
    if trial.text is not None:
        return False
    try:
        check((method,), *opening.abstract(trial), Options())
    except UserError:
        return False
    return True


def read_images(trial: Trial, cases: list[Case]) -> np.ndarray:
    """The raw images of cases by their ids, `[N, S, S, C]`."""
    return sources.by_ids(trial, [case.id for case in cases])


def case_maps(explainer: Explainer, cases: list[Case], images: np.ndarray, method: str) -> np.ndarray:
    """Maps float32 `[N, S, S]` of the cases' classes on the grid of their raw images `[N, S, S, C]`."""
    raw, _ = explainer.maps(method, images, np.array([case.target for case in cases]))
    return enlarge(raw, *images.shape[1:3])


def write_images(
    directory: pathlib.Path, step: int, tag: str, images: np.ndarray, maps: np.ndarray, signed: bool
) -> None:
    """Adds strips of image, map and overlay to the TensorBoard run `directory`."""
    writer = MetricWriter(directory)
    strips = [pictures.strip(image, values, signed) for image, values in zip(images, maps, strict=True)]
    writer.write_images(step, {tag: np.stack(strips)})
    writer.close()


def _rows(scored: Scored, kept: np.ndarray) -> Scored:
    names = ("ids", "groups", "labels", "before", "scores", "predicted", "folds")
    return dataclasses.replace(scored, **{name: getattr(scored, name)[kept] for name in names})
