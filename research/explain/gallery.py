"""What does a call of `python -m research.explain` write, and in what order?

Everything that takes long is computed before the first file of an earlier call is replaced.
"""

import dataclasses
import io
import json
import pathlib
import shutil
import tempfile

import numpy as np

from input_pipeline import cli, tabular
from input_pipeline.cli import UserError
from research import runs
from research.evaluation import predictions
from research.explain import cases as case_choice
from research.explain import checks, opening, pages, pictures, sources
from research.explain.cases import Case
from research.explain.methods import METHODS, Explainer, Options, enlarge
from research.report import assemble
from research.training.build import Trial
from research.training.signals import StopSignal

_BLOCK = 256  # images read at once where logits are computed


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for; see `python -m research.explain --help`."""

    workdir: pathlib.Path
    trial: str
    images: str
    methods: tuple[str, ...]
    target: str
    count: int
    regions: str
    checks: tuple[str, ...]
    batch_size: int
    out: pathlib.Path | None
    options: Options
    command: str


def run(request: Request, mesh, stop: StopSignal) -> pathlib.Path:
    """Explains and writes; returns the path of the page.

    Raises:
      UserError: run, trial, images, method or layer do not exist or do not suit each other.
    """
    opened = runs.open_run(request.workdir)
    trial = opening.attached(request.workdir, opening.pick(opened, request.trial), mesh)
    out = request.out or request.workdir / "explanations" / trial.name
    check_out(out)
    source = sources.open_images(trial, request.images, request.regions)
    explainer = opening.explainer(
        request.workdir, trial, request.methods, request.options, request.batch_size, mesh, stop
    )
    logits = logits_of(request.workdir, trial, source, explainer)
    scores, decided = case_choice.decide(request.workdir, trial, logits)
    cases = case_choice.choose(
        scores, decided, source.labels, source.known, source.ids, source.groups, trial.dataset.class_names,
        request.count, request.target,
    )  # fmt: skip
    print(f"{trial.name}: {len(cases)} of {len(source.ids)} images, {', '.join(request.methods)}", flush=True)
    chosen = np.array([case.row for case in cases])
    images = source.read(chosen)
    regions = source.read_regions(chosen) if source.read_regions else None
    targets = np.array([case.target for case in cases])
    maps = {name: explainer.maps(name, images, targets) for name in request.methods}
    table = checks.rows(explainer, cases, images, maps, regions, "curves" in request.checks)
    cascade = checks.cascade_rows(explainer, cases, images, maps) if "randomization" in request.checks else []
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".explain.", dir=out) as scratch:
        place = pathlib.Path(scratch)
        files = draw(place / "pictures", explainer, cases, images, maps, regions, stop)
        save_maps(place / "maps", explainer, cases, maps)
        for name in ("pictures", "maps"):
            shutil.rmtree(out / name, ignore_errors=True)
            (place / name).replace(out / name)
    tabular.write_csv(out / "faithfulness.csv", checks.COLUMNS, table)
    if cascade:
        tabular.write_csv(out / "randomization.csv", checks.CASCADE_COLUMNS, cascade)
    else:
        (out / "randomization.csv").unlink(missing_ok=True)
    warnings = assemble.warnings_of(trial.config, trial.dataset)
    text = pages.page(trial, request, explainer.options, source, cases, files, table, cascade, warnings)
    cli.atomic_write(out / "index.html", text)
    return out / "index.html"


def check_out(out: pathlib.Path) -> None:
    """Refuses a folder in which something else would be replaced."""
    if (out / "trials.csv").exists():
        raise UserError(f"--out={out} is a run folder; name a folder of its own for the explanations.")
    ours = (out / "faithfulness.csv").exists()
    if not ours and any((out / name).exists() for name in ("pictures", "maps", "index.html")):
        raise UserError(f"--out={out} holds files of something else; name a new folder.")


def logits_of(workdir: pathlib.Path, trial: Trial, source: sources.Images, explainer: Explainer) -> np.ndarray:
    """Logits float32 `[N, K]`: the saved predictions of a role, or else computed from the images."""
    file = workdir / "predictions" / f"{trial.name}_{source.role}.csv"
    if source.role and file.exists():
        saved = predictions.read(file)
        position = {name: row for row, name in enumerate(saved.ids)}
        if all(name in position for name in source.ids):
            return saved.logits[[position[name] for name in source.ids]]
    blocks = np.array_split(np.arange(len(source.ids)), -(-len(source.ids) // _BLOCK))
    return np.concatenate([explainer.logits(source.read(block)) for block in blocks])


def draw(
    folder: pathlib.Path, explainer: Explainer, cases: list[Case], images: np.ndarray, maps: dict, regions, stop
) -> list[str]:
    """Writes a picture of every case with all methods; returns their names below the folder of `folder`."""
    sides, files = images.shape[1:3], []
    large = {name: enlarge(raw, *sides) for name, (raw, _) in maps.items()}
    for number, case in enumerate(cli.progress(cases, len(cases), "pictures")):
        stop.check()
        own = [(METHODS[name].title, large[name][number], METHODS[name].signed, METHODS[name].unit) for name in maps]
        files.append(f"{folder.name}/case_{number:03d}.png")
        region = None if regions is None else regions[number]
        pictures.draw(folder.parent / files[-1], images[number], own, pages.title_of(case), region)
    return files


def save_maps(folder: pathlib.Path, explainer: Explainer, cases: list[Case], maps: dict) -> None:
    """One file for each method: `ids`, `classes` `[N]`, `maps` float32 `[N, h, w]`, `settings` as JSON.

    `numpy.load` reads it without pickle.
    """
    folder.mkdir(parents=True)
    for name, (raw, gap) in maps.items():
        content = {
            "ids": np.array([case.id.encode("utf-8", "replace").decode() for case in cases], str),
            "classes": np.array([case.name for case in cases], str),
            "maps": raw.astype(np.float32),
            "settings": np.array(json.dumps({"method": name, **dataclasses.asdict(explainer.options)})),
        }
        if gap is not None:
            content["completeness_gap"] = gap
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **content)
        cli.atomic_write(folder / f"{name}.npz", buffer.getvalue())
