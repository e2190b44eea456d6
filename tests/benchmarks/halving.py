"""How much of a full grid's front does a search find at a quarter of its training steps?

    python -m tests.benchmarks.halving --run=RUN --reference=1e6,0.75 --log=10 --out=halving.json

REPLAYS the recorded learning curves of a full grid that was trained with several seeds; nothing is trained. RUN is a
run folder (trials.csv and metrics.jsonl) or the path of such a trials.csv. Reference point (parameters, error) and base
of the logarithm of the parameters are to be fixed before the results are looked at.

For each search seed one recorded seed is drawn for every setting, and an order of the settings; then search:

    halving            research/search/halving.py
    epsilon net        the same rungs with MO-ASHA's choice (Schmucker et al. 2021, arXiv 2106.12639): rank, then in the
                       rank that does not fit the point farthest from those chosen, again and again
    size bands         the same rungs: rank, then the better of the band of log parameters with the fewest kept
    everything         all settings: what the draw of seeds alone does to the figures
    random             the first settings of the order, trained to the end
    TPE                optuna's multi-objective TPE, ask and tell, trained to the end; a setting that is proposed again
                       costs nothing, every key is an ordered scale
    stopped if beaten  all settings in their order, stopped by research/search/dominance.py; it has no budget

A search sees validation only: its front is chosen by log parameters and validation error of the trials that it trained
to the end, then rescored on test. Its share is the hypervolume of that over the full grid's (its front chosen by
validation and rescored on test in the same way, mean over the recorded seeds). The bar: at least 98 % of the full
grid's hypervolume for at most 25 % of its steps. With few photographs the test set and the draw of the seeds move these
shares by several percent ("everything" shows how much), so the table also has what a search lost to its own draw of the
grid: validation hypervolume of its front over that of all settings with the same seeds.
"""

import argparse
import collections
import dataclasses
import json
import math
import pathlib

import numpy as np

from input_pipeline import cli
from input_pipeline.cli import UserError
from research.report import tables
from research.search import dominance, halving
from research.search.front import hypervolume, non_dominated
from research.training.control import MINIMISED


@dataclasses.dataclass(frozen=True)
class Grid:
    """A recorded grid of S settings, K seeds and E evaluations.

    Attributes:
      overrides: of each setting, without the seed.
      sizes: log parameters `[S]`.
      steps: of the evaluations `[E]`; the last is the whole training.
      curves: validation accuracy `[K, S, E]`.
      signals: the validation metric that rungs decide by, more is better, `[K, S, E]`.
      validation, test: accuracy of the best checkpoint `[K, S]`.
    """

    overrides: list[dict]
    sizes: np.ndarray
    steps: np.ndarray
    curves: np.ndarray
    signals: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What one search meets: `curves`, `signals [S, E]`, `validation`, `test [S]`, and an order of the settings."""

    grid: Grid
    curves: np.ndarray
    signals: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    order: np.ndarray
    seed: int


def read_grid(path: pathlib.Path, base: float, metric: str) -> Grid:
    """The grid of a run folder; rungs decide by `metric` of the validation rows.

    Raises:
      UserError: a trial is not finished or has no curve, or the settings were not all trained and evaluated alike.
    """
    ledger = path if path.is_file() else path / "trials.csv"
    curves = _read_curves(ledger.parent / "metrics.jsonl", metric)
    settings, steps = collections.defaultdict(list), set()
    for row in tables.read_trials_csv(ledger):
        if row.get("stage", "search") != "search":
            continue  # confirmations, extensions and compressed models are no part of the grid
        if row["status"] != "finished" or row["id"] not in curves:
            raise UserError(
                f"{ledger}: trial {row['id']} has not finished or has no curve; let the study run to its end."
            )
        overrides = {key: value for key, value in row["overrides"].items() if key != "seed"}
        settings[json.dumps(overrides, sort_keys=True)].append(row)
        steps |= set(curves[row["id"]])
    steps = sorted(steps)
    seeds = {len(rows) for rows in settings.values()}
    if len(seeds) != 1 or any(len(curves[row["id"]]) < len(steps) for rows in settings.values() for row in rows):
        raise UserError(f"{ledger}: settings differ in their number of seeds or their evaluations; replay a full grid.")
    rows = list(settings.values())
    by_seed = lambda value: np.array([[value(row) for row in one] for one in rows]).T  # noqa: E731
    recorded = np.array([[[curves[r["id"]][s] for s in steps] for r in one] for one in rows]).swapaxes(0, 1)
    return Grid(
        overrides=[json.loads(text) for text in settings],
        sizes=np.log(by_seed(lambda row: row["parameters"])[0]) / math.log(base),
        steps=np.array(steps),
        curves=recorded[..., 0],
        signals=recorded[..., 1],
        validation=by_seed(lambda row: row["metrics"]["validation"]["accuracy"]),
        test=by_seed(lambda row: row["metrics"]["test"]["accuracy"]),
    )


def _read_curves(path: pathlib.Path, metric: str) -> dict[str, dict[int, tuple[float, float]]]:
    """Of each trial, by step: validation accuracy, and `metric` turned so that more is better."""
    curves = collections.defaultdict(dict)
    for row in map(json.loads, path.read_text().splitlines()):
        if row["split"] == "validation":
            if metric not in row:
                raise UserError(f"{path} has no {metric}; name a metric of its validation rows with --metric.")
            curves[row["trial"]][row["step"]] = row["accuracy"], -row[metric] if metric in MINIMISED else row[metric]
    return dict(curves)


def draw(grid: Grid, seed: int) -> Drawn:
    """The recorded seeds and the order that a search seed stands for."""
    generator = np.random.default_rng(seed)
    picked, every = generator.integers(len(grid.curves), size=len(grid.sizes)), np.arange(len(grid.sizes))
    order = generator.permutation(len(every))
    chosen = (values[picked, every] for values in (grid.curves, grid.signals, grid.validation, grid.test))
    return Drawn(grid, *chosen, order, seed)


def rescored(sizes, validation, test, chosen, reference) -> float:
    """Hypervolume on test of the front of the `chosen` trials by validation."""
    chosen = np.asarray(chosen)
    front = chosen[non_dominated(np.column_stack([sizes[chosen], 1 - validation[chosen]]))]
    return hypervolume(np.column_stack([sizes[front], 1 - test[front]]), reference)


def epsilon_net(points: np.ndarray, count: int, sizes: np.ndarray) -> np.ndarray:
    """MO-ASHA's choice; the first of a rank is the smallest model, distances are of costs scaled to 0..1."""
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)

    def fill(layer: list[int], room: int, kept: list[int]) -> list[int]:
        chosen = [min(layer, key=lambda i: (scaled[i, 0], i))]
        while len(chosen) < room:
            left = [i for i in layer if i not in chosen]
            chosen.append(max(left, key=lambda i: (np.linalg.norm(scaled[chosen] - scaled[i], axis=1).min(), -i)))
        return chosen

    return _by_rank(points, count, fill)


def size_bands(points: np.ndarray, count: int, sizes: np.ndarray, bands: int = 8) -> np.ndarray:
    """Rank, then the better trial of the band with the fewest kept; equally wide bands of all log parameters."""
    width = max(np.ptp(sizes), 1e-9) / bands
    band = np.minimum(((points[:, 0] - sizes.min()) / width).astype(int), bands - 1)

    def fill(layer: list[int], room: int, kept: list[int]) -> list[int]:
        chosen: list[int] = []
        while len(chosen) < room:
            held = np.bincount(band[[*kept, *chosen]], minlength=bands)
            chosen.append(min((i for i in layer if i not in chosen), key=lambda i: (held[band[i]], points[i, 1], i)))
        return chosen

    return _by_rank(points, count, fill)


def _by_rank(points: np.ndarray, count: int, fill) -> np.ndarray:
    rank, kept = halving.ranks(points), []
    for value in range(rank.max() + 1):
        layer, room = np.flatnonzero(rank == value).tolist(), count - len(kept)
        kept += layer if len(layer) <= room else fill(layer, room, kept)
        if len(kept) == count:
            break
    return np.sort(kept)


CHOICES = {
    "halving": lambda points, count, sizes: halving.survivors(points, count),
    "epsilon net": epsilon_net,
    "size bands": size_bands,
}


def by_halving(drawn: Drawn, schedule: list[halving.Rung], choose) -> tuple[np.ndarray, int]:
    """Trials trained to the end, and steps spent."""
    grid, alive = drawn.grid, drawn.order
    for rung in schedule:
        best = drawn.signals[alive][:, grid.steps <= rung.step].max(1)
        points = np.column_stack([grid.sizes[alive], -best])
        alive = alive[choose(points, rung.keep, grid.sizes)]
    return alive, halving.cost(schedule, len(drawn.order), int(grid.steps[-1]))


def _scale(values: list[str], sizes: np.ndarray) -> list[str]:
    """The different values (as JSON) in an order: numbers by value, others by the mean size of the models with them."""
    different = sorted(set(values))
    if all(isinstance(json.loads(value), int | float) for value in different):
        return sorted(different, key=json.loads)
    means = {value: np.mean([s for v, s in zip(values, sizes, strict=True) if v == value]) for value in different}
    return sorted(different, key=means.get)


def by_tpe(drawn: Drawn, count: int) -> tuple[np.ndarray, int]:
    """`count` settings that optuna asked for, trained to the end, and steps spent.

    Half of the trials, at most 10 (optuna's default), are random.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    grid = drawn.grid
    texts = [{key: json.dumps(value) for key, value in overrides.items()} for overrides in grid.overrides]
    keys = sorted({key for overrides in texts for key in overrides})
    scales = {key: _scale([overrides.get(key, "null") for overrides in texts], grid.sizes) for key in keys}
    index = {tuple(o.get(key, "null") for key in scales): number for number, o in enumerate(texts)}
    sampler = optuna.samplers.TPESampler(seed=drawn.seed, n_startup_trials=min(10, max(1, count // 2)))
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    space = {key: optuna.distributions.IntDistribution(0, len(values) - 1) for key, values in scales.items()}
    trained: list[int] = []
    for _ in range(50 * count):
        if len(trained) == count:
            break
        trial = study.ask(space)
        number = index.get(tuple(scales[key][trial.params[key]] for key in scales))
        if number is None:  # not of the grid
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        study.tell(trial, [float(grid.sizes[number]), float(1 - drawn.validation[number])])
        trained += [number] if number not in trained else []
    trained += [number for number in drawn.order if number not in trained][: count - len(trained)]
    return np.array(trained), count * int(grid.steps[-1])


def by_dominance(drawn: Drawn, standard_error: float, coverage: float) -> tuple[np.ndarray, int]:
    """All settings in their order, each checked at every evaluation; those trained to the end, and steps spent."""
    grid, spent = drawn.grid, 0
    shares = grid.steps / grid.steps[-1]
    sizes, histories, finished = [], [], []
    for number in drawn.order:
        curve = list(zip(shares.tolist(), drawn.curves[number].tolist(), strict=True))
        for seen in range(1, len(curve) + 1):
            state = [*sizes, grid.sizes[number]], [*histories, curve[:seen]], [*finished, False]
            if seen == len(curve) or dominance.beaten(*state, standard_error, coverage)[-1]:
                break
        sizes, histories, finished = state[0], state[1], [*finished, seen == len(curve)]
        spent += int(grid.steps[seen - 1])
    return drawn.order[np.array(finished)], spent


def campaign(grid: Grid, options: argparse.Namespace, reference: np.ndarray) -> dict:
    """Every search on every seed: hypervolume shares, step shares and counts of trials trained to the end."""
    total, settings = int(grid.steps[-1]), len(grid.sizes)
    every = int(grid.steps[0])
    schedule = halving.rungs(total, options.eta, options.first, settings, options.budget, options.last, every)
    count = max(1, math.floor(options.budget * settings + 1e-9))
    searches = {name: lambda d, c=choose: by_halving(d, schedule, c) for name, choose in CHOICES.items()}
    searches["everything"] = lambda d: (d.order, settings * total)
    searches["random"] = lambda d: (d.order[:count], count * total)
    try:
        import optuna  # noqa: F401

        searches["TPE"] = lambda d: by_tpe(d, count)
    except ImportError:
        print("optuna is not installed, so there is no TPE; `pip install 'optuna>=5'`.")
    searches["stopped if beaten"] = lambda d: by_dominance(d, options.standard_error, options.coverage)
    all_settings = np.arange(settings)
    full = [
        rescored(grid.sizes, v, t, all_settings, reference) for v, t in zip(grid.validation, grid.test, strict=True)
    ]
    results = {name: {"hypervolume": [], "of the draw": [], "steps": [], "finished": []} for name in searches}
    for seed in range(options.searches):
        drawn = draw(grid, seed)
        for name, search in searches.items():
            chosen, spent = search(drawn)
            volume = rescored(grid.sizes, drawn.validation, drawn.test, chosen, reference)
            results[name]["hypervolume"].append(volume / float(np.mean(full)))
            found, best = (
                rescored(grid.sizes, drawn.validation, drawn.validation, which, reference)
                for which in (chosen, all_settings)
            )
            results[name]["of the draw"].append(found / best)
            results[name]["steps"].append(spent / (settings * total))
            results[name]["finished"].append(len(chosen))
    return {
        "settings": settings,
        "seeds": len(grid.curves),
        "reference": reference.tolist(),
        "full": full,
        "rungs": [dataclasses.asdict(rung) for rung in schedule],
        "searches": results,
    }


def _say(result: dict) -> None:
    volumes = np.array(result["full"])
    rungs = ", ".join(f"{rung['keep']} go on at step {rung['step']}" for rung in result["rungs"])
    print(f"{result['settings']} settings x {result['seeds']} seeds; rungs: {rungs}")
    print(f"full grid: hypervolume {volumes.mean():.4f} ({' '.join(f'{v:.4f}' for v in volumes)}) = 100 %\n")
    titles = f"{'hypervolume %':>15s}{'range':>18s}{'of the draw %':>15s}{'range':>18s}{'steps %':>9s}{'range':>16s}"
    print(f"{'search':18s}{titles}{'finished':>10s}")
    for name, found in result["searches"].items():
        text = ""
        for key, width, span in (("hypervolume", 15, 18), ("of the draw", 15, 18), ("steps", 9, 16)):
            share = 100 * np.array(found[key])
            text += f"{share.mean():{width}.1f}{f'{share.min():.1f} .. {share.max():.1f}':>{span}s}"
        print(f"{name:18s}{text}{np.mean(found['finished']):10.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run folder, or its trials.csv")
    parser.add_argument("--reference", required=True, help="parameters,error: the worst point of the hypervolume")
    parser.add_argument("--log", type=float, default=10.0, help="base of the logarithm of the parameters")
    parser.add_argument("--out", default="", help="JSON file")
    parser.add_argument("--searches", type=int, default=5, help="search seeds")
    parser.add_argument("--budget", type=float, default=0.25, help="share of the full grid's steps")
    parser.add_argument("--eta", type=float, default=3.0, help="ratio of successive rungs")
    parser.add_argument("--first", type=float, default=1 / 12, help="first rung, as a share of the training")
    parser.add_argument("--last", type=float, default=1 / 4, help="no rung lies beyond this share")
    parser.add_argument("--metric", default="auroc_macro", help="of the validation rows, whose best decides at rungs")
    parser.add_argument("--standard_error", type=float, default=0.01, help="of an accuracy, for stopping by dominance")
    parser.add_argument("--coverage", type=float, default=0.95, help="of the bound on gains, for stopping by dominance")
    options = parser.parse_args()
    try:
        parameters, error = map(float, options.reference.split(","))
    except ValueError:
        raise UserError(f"--reference={options.reference} is not parameters,error, such as 1e6,0.75.") from None
    reference = np.array([math.log(parameters, options.log), error])
    result = campaign(read_grid(pathlib.Path(options.run), options.log, options.metric), options, reference)
    _say(result)
    if options.out:
        cli.atomic_write(options.out, json.dumps(vars(options) | result, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
