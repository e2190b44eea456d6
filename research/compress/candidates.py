"""Which candidates come out of a trained network, and how good, how large and how fast is each?

A candidate is a chain of methods, such as "channels+int8": first channels are removed and the rest is trained on, then
that network becomes int8. Every beginning of a chain is a candidate too, made once and kept in a file, so that chains
share it and a continued command goes on from there. `compressed.csv` has a row for each, with the columns of
`trials.csv` and these:

    trial               the trial that it comes from
    method              the chain
    compression         all settings of the chain, in words; with others the candidate is made again
    keep                share of the channels that were kept
    sparsity            share of zeros among the stored entries of all kernels
    parameters          of the architecture, without running statistics; zeros and int8 numbers count like others
    nonzero_parameters  stored numbers that are not zero, without running statistics
    bytes               of the stored arrays, see research/compress/storage.py
    file_bytes          of the file in compressed/, header included
    int8_products       how many of the convolutions and products of the program multiply int8 by int8 into int32
    finetune_steps      of all fine-tunings of the chain
    train_seconds       of the last one
"""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.cli import UserError
from research import runs
from research.compress import channels, network, storage, timing
from research.compress.finetune import Settings, finetune
from research.compress.network import Network
from research.models.flops import flops
from research.report import tables
from research.training import build
from research.training.progress import minutes
from research.training.signals import StopSignal

METHODS = ("channels", "magnitude", "int8")  # in the order in which one may follow another
TABLE, FOLDER = "compressed.csv", "compressed"
# What a trial's row says of its own network alone.
_NOT_INHERITED = ("state_sha256", "latency_p50_ms", "latency_p95_ms", "latency_runtime", "peak_memory_bytes")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A method of `METHODS` and its share: of kept channels, or of zeros; None for int8."""

    method: str
    share: float | None = None

    @property
    def label(self) -> str:
        """As in a candidate's name."""
        return self.method if self.share is None else f"{self.method}{self.share:g}"


Chain = tuple[Stage, ...]


@dataclasses.dataclass(frozen=True)
class Options:
    """How candidates are made; `criterion` as in `channels`, `latency_runs` 0 measures no latency."""

    finetune: Settings
    criterion: str
    latency_runs: int


def chains(methods: str, keeps: Sequence[float], sparsities: Sequence[float]) -> list[Chain]:
    """The chains of a comma-separated list such as "magnitude,channels+int8", with every share, beginnings first.

    Raises:
      UserError: an unknown method, an impossible order or share, or a method without its share.
    """
    shares = {"channels": tuple(keeps), "magnitude": tuple(sparsities), "int8": (None,)}
    result: dict[Chain, None] = {}
    for text in filter(None, (part.strip() for part in methods.split(","))):
        names = text.split("+")
        if unknown := [name for name in names if name not in METHODS]:
            raise UserError(f"--methods has the unknown method '{unknown[0]}'; choose of {', '.join(METHODS)}.")
        if [METHODS.index(name) for name in names] != sorted({METHODS.index(name) for name in names}):
            raise UserError(f"--methods has '{text}'; in a chain each comes once, in the order {'+'.join(METHODS)}.")
        for combination in itertools.product(*(shares[name] for name in names)):
            chain = tuple(Stage(name, share) for name, share in zip(names, combination, strict=True))
            result |= dict.fromkeys(chain[:length] for length in range(1, len(chain) + 1))
    if not result:
        raise UserError(f"--methods={methods} and the shares given leave nothing to do; see --help.")
    for stage in itertools.chain(*result):
        low, high = (0.0, 1.0) if stage.method == "channels" else (-1e-9, 1 - 1e-9)
        if stage.share is not None and not low < stage.share <= high:
            raise UserError(f"a share of {stage.share} is impossible for {stage.method}; choose one between 0 and 1.")
    return list(result)


class Table:
    """`compressed.csv`, rewritten atomically at each change."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.rows = {row["id"]: row for row in tables.read_trials_csv(path)} if path.exists() else {}

    def put(self, row: dict[str, Any]) -> None:
        """Enters a row in the place of the one with its id."""
        self.rows[row["id"]] = row
        tables.write_trials_csv(self.path, self.rows.values())


def compress(
    run: runs.Run, trial: build.Trial, wanted: Sequence[Chain], options: Options, mesh, stop: StopSignal
) -> list[dict[str, Any]]:
    """Makes the candidates of a trial that are not there yet; gives the table's rows of all.

    Args:
      trial: with its images attached (`study.SharedImages`).
      wanted: see `chains`; each chain's beginnings come before it.

    Raises:
      UserError: the architecture cannot be pruned, a checkpoint is damaged, or a fine-tuning diverged.
      Stopped: a stop was asked for; what is finished is in the table.
    """
    if trial.text is not None:
        raise UserError(f"{trial.name} reads captions, and only networks of images alone are compressed; name another.")
    table = Table(run.path / TABLE)
    (run.path / FOLDER).mkdir(exist_ok=True)
    parent = run.rows[trial.name]
    original: Network | None = None
    names = [name_of(trial, chain) for chain in wanted]
    for number, (name, chain) in enumerate(zip(names, wanted, strict=True), 1):
        made = {"compression": in_words(chain, options), "parent": str(parent.get("state_sha256", ""))}
        if table.rows.get(name, {}).get("status") == "finished" and _is_made(run.path, name, made):
            continue
        stop.check()
        print(f"{trial.name}: candidate {number} of {len(wanted)}, {name}", flush=True)
        start = time.monotonic()
        if len(chain) > 1:
            before, _ = network.read(_file(run.path, name_of(trial, chain[:-1])), trial)
        else:
            before = original = original or Network(trial, runs.load(trial, run.path, mesh, stop))
        result = apply_stage(before, chain[-1], options, mesh, stop, name)
        file_bytes = network.write(_file(run.path, name), result, made)
        row = {key: value for key, value in parent.items() if key not in _NOT_INHERITED}
        row |= _columns(result, chain, options, stop) | {"id": name, "file_bytes": file_bytes}
        row |= {"compression": made["compression"], "metrics": network.evaluate(result, run.path, name, mesh, stop)}
        table.put(row)
        print(f"{name}: {_summary(row)}; {minutes(time.monotonic() - start)}", flush=True)
    return [table.rows[name] for name in names]


def _file(workdir: pathlib.Path, name: str) -> pathlib.Path:
    return workdir / FOLDER / f"{name}.safetensors"


def _is_made(workdir: pathlib.Path, name: str, made: Mapping[str, str]) -> bool:
    """Whether the candidate's file is there, whole, and was made in this way from the same checkpoint."""
    try:
        _, metadata = storage.read(_file(workdir, name))
    except UserError:
        return False
    return all(metadata.get(key) == text for key, text in made.items())


def name_of(trial: build.Trial, chain: Chain) -> str:
    """Names a candidate's row and files."""
    return build.as_file_name("-".join([trial.name, *(stage.label for stage in chain)]))


def in_words(chain: Chain, options: Options) -> str:
    """Everything that decides what a chain makes of a trial."""
    tuned = options.finetune
    training = f"finetune {tuned.duration} at {tuned.rate:g}"
    words = {
        "channels": f"by {options.criterion}, {training}",
        "magnitude": f"{tuned.scope}, {'gradual' if tuned.gradual else 'at once'}, {training}",
        "int8": f"{network.CALIBRATION_IMAGES} images",
    }
    return "; ".join(f"{stage.label} ({words[stage.method]})" for stage in chain)


def apply_stage(before: Network, stage: Stage, options: Options, mesh, stop: StopSignal, label: str) -> Network:
    """The network after one more method, fine-tuned where the method needs it."""
    if stage.method == "int8":
        return network.to_int8(before, mesh)
    trial, variables, changes, tuned = before.trial, before.arrays, {}, options.finetune
    if stage.method == "channels":
        variables, changes = channels.prune(build.build_model(trial), variables, stage.share, options.criterion)
        trial = runs.changed_trial(trial, changes)
    start = time.monotonic()
    sparsity = stage.share if stage.method == "magnitude" else None
    variables = finetune(trial, variables, tuned, mesh, stop, sparsity, label)
    steps, seconds = before.steps + tuned.steps(trial), time.monotonic() - start
    return Network(trial, variables, {**before.changes, **changes}, steps, seconds)


def _columns(result: Network, chain: Chain, options: Options, stop: StopSignal) -> dict[str, Any]:
    """The row of a candidate, but for its name, its file and its metrics."""
    trial = result.trial
    shares = {stage.method: stage.share for stage in chain}
    columns = {
        "status": "finished",
        "stage": "compress",
        "trial": trial.name,
        "method": "+".join(stage.method for stage in chain),
        "overrides": trial.overrides,
        "keep": shares.get("channels"),
        "sparsity": round(result.sparsity(), 6),
        "parameters": result.parameters(),
        "nonzero_parameters": result.nonzero(),
        "bytes": storage.stored_bytes(result.flat),
        "flops": flops(build.build_model(trial), trial.config.image_size, trial.channels, trial.tokens),
        "finetune_steps": result.steps,
        "train_seconds": round(result.seconds, 1),
        "int8_products": network.int8_products(result) if result.is_int8 else None,
    }
    if options.latency_runs:
        program = network.int8_program(trial) if result.is_int8 else None
        measure = lambda: timing.columns(trial, result.arrays, program, options.latency_runs)  # noqa: E731
        columns |= stop.interruptible(measure)
    return columns


def _summary(row: Mapping[str, Any]) -> str:
    scores = []
    for role, metrics in row["metrics"].items():
        name = "accuracy" if "accuracy" in metrics else "macro_f1"
        scores.append(f"{role} {name} {metrics[name]:.4f}")
    return f"{row['bytes']:,} bytes  {'  '.join(scores)}"
