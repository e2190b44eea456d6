"""Which genes do the networks of a finished run go by, and how far can that be trusted?

The networks are the seeds of one setting on the same roles. Every sample of a role is attributed to its genes by each
network, for its own type; what all seeds say together is the ranking, what they say apart is its stability.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from input_pipeline import tabular
from input_pipeline.cli import UserError
from research import runs
from research.explain import opening, randomization
from research.explain.network import Network
from research.genes import attribution, deletion, enrichment, overlay, ranking
from research.training import build, pictures
from research.training.signals import StopSignal
from research.training.state import nest

IG, F_TEST, RANDOM = "integrated gradients", "F-test", deletion.RANDOM


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
      role: whose samples are attributed.
      limit: samples of each type at most, the first by hash order of the data set; 0 = all.
      score: whose gradients are taken, see `attribution.RawNetwork`.
      integral: settings of the attributions.
      top: genes that count as a type's first in sets and stability.
      sets: a GMT file of gene sets, or None.
      planted: a table of gene and type that a simulation has planted, or None.
    """

    role: str = "test"
    limit: int = 0
    score: str = "contrast"
    integral: attribution.Options = attribution.Options()
    top: int = 100
    sets: pathlib.Path | None = None
    planted: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What was found about G genes and K types with S networks.

    Attributes:
      names, genes: K and G names.
      seeds: S names of the trials.
      rankings: one for each type, pooled over the seeds.
      orders: by method, int `[K, G]`.
      f: F statistics of the training samples, `[K, G]`.
      stabilities: by type, where there are several seeds.
      deletions: by method, of the first seed's network.
      random_weights: figures of `deletion.alike`.
      patients: of the samples, `[N]`. accuracy: of each seed's network on them.
      completeness: a sentence for each seed.
      planted: by type, positions of the genes; None if unknown.
      enriched: rows of `enrichment.over_representation`, None without sets. sets: as `enrichment.matched`.
      maps: by type, the mean attributions at their pixels, `[side, side]`.
    """

    names: tuple[str, ...]
    genes: tuple[str, ...]
    seeds: tuple[str, ...]
    rankings: list[ranking.Ranking]
    orders: Mapping[str, np.ndarray]
    f: np.ndarray
    stabilities: Mapping[str, ranking.Stability]
    deletions: Mapping[str, deletion.Deletion]
    random_weights: Mapping[str, float]
    patients: np.ndarray
    accuracy: tuple[float, ...]
    completeness: tuple[str, ...]
    planted: Mapping[str, np.ndarray] | None
    enriched: list[dict] | None
    sets: Mapping[str, frozenset[str]] | None
    maps: Mapping[str, np.ndarray]


def siblings(run: runs.Run, name: str) -> list[build.Trial]:
    """The finished trial of a name ("" for the one that the report shows) and its setting's other seeds, it first.

    Raises:
      UserError: no such trial, not finished, or not of expression vectors.
    """
    first = opening.pick(run, name)
    if not first.dataset.genes:
        raise UserError(f"{run.path} was trained on images, which have no genes; use research.explain.")
    own = [
        trial
        for trial in run.trials.values()
        if trial.setting == first.setting
        and trial.overrides.get("search.fold") == first.overrides.get("search.fold")
        and run.rows.get(trial.name, {}).get("status") == "finished"
    ]
    return [first, *(trial for trial in own if trial.name != first.name)]


def find(folder: pathlib.Path, trials: Sequence[build.Trial], options: Options, mesh, stop: StopSignal) -> Found:
    """Attributes, ranks and checks.

    Args:
      folder: the run folder.
      trials: of `siblings`.

    Raises:
      UserError: no samples, unreadable sets or planted genes, or a checkpoint is missing.
    """
    dataset = trials[0].dataset
    names, genes = dataset.class_names, dataset.genes
    sets = enrichment.matched(genes, enrichment.read_gmt(options.sets)) if options.sets else None
    planted = read_planted(options.planted, genes, names) if options.planted else None
    rows = _chosen(dataset, options)
    labels, patients = dataset.labels[rows], dataset.groups[rows]
    trials = [opening.attached(folder, trial, mesh) for trial in trials]
    vectors = pictures.vectors(trials[0], rows)[:, None, :, None]
    train = trials[0].train_indices
    training = pictures.vectors(trials[0], train)
    networks = [_network(folder, trial, options.score, mesh, stop) for trial in trials]
    found, correct = [], []
    for trial, network in zip(trials, networks, strict=True):
        correct.append(_logits(network, vectors, options.integral.batch_size, stop).argmax(axis=1) == labels)
        found.append(
            attribution.attribute(
                network, vectors, labels, training, options.integral, label=trial.name, stop=stop.check
            )
        )
    values, used = np.concatenate([own.values for own in found]), np.concatenate(correct)
    several = len(trials)
    rankings = ranking.by_type(values, np.tile(labels, several), used, np.tile(patients, several), names)
    each = np.stack([
        ranking.type_scores(own.values, labels, right, len(names)) for own, right in zip(found, correct, strict=True)
    ])  # fmt: skip
    f = ranking.f_scores(training, dataset.labels[train], len(names))
    orders = {
        IG: np.stack([own.order for own in rankings]), F_TEST: ranking.order_of(f),
        RANDOM: ranking.random_orders(len(names), len(genes), options.integral.seed),
    }  # fmt: skip
    tops = {own.name: [genes[gene] for gene in own.order[: options.top]] for own in rankings if own.samples}
    return Found(
        names=names,
        genes=genes,
        seeds=tuple(trial.name for trial in trials),
        rankings=rankings,
        orders=orders,
        f=f,
        stabilities=_stabilities(each, names) if several > 1 else {},
        deletions=_deletions(networks[0], vectors, labels, orders, training.mean(axis=0), options, stop),
        random_weights=_alike(networks[0], trials[0], vectors, labels, correct[0], each[0], training, options, stop),
        patients=patients,
        accuracy=tuple(float(own.mean()) for own in correct),
        completeness=tuple(own.note() for own in found),
        planted=planted,
        enriched=enrichment.over_representation(tops, genes, enrichment.read_gmt(options.sets)) if sets else None,
        sets=sets,
        maps=_maps(rankings, trials[0].picture.layout),
    )


def read_planted(path: pathlib.Path, genes: Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Positions of the genes that a simulation has planted for each type, from a CSV file with columns gene and type.

    Raises:
      UserError: the file or a column is missing, or no gene of it is in the data set.
    """
    position = {gene: number for number, gene in enumerate(genes)}
    found: dict[str, list[int]] = {name: [] for name in names}
    columns, rows = tabular.read_csv(path)
    if not {"gene", "type"} <= set(columns):
        raise UserError(f"{path} has the columns {', '.join(columns)}; planted genes need gene and type.")
    for row in rows:
        if row["type"] in found and row["gene"] in position:
            found[row["type"]].append(position[row["gene"]])
    if not any(found.values()):
        raise UserError(f"{path} names no gene and type of this data set; give the table that the simulation wrote.")
    return {name: np.array(sorted(set(own)), int) for name, own in found.items()}


def _chosen(dataset, options: Options) -> np.ndarray:
    """Dataset indices of the samples, ascending."""
    rows = dataset.indices(options.role)
    rows = rows[dataset.labels[rows] >= 0]
    if options.limit:
        kept = [rows[dataset.labels[rows] == kind][: options.limit] for kind in range(len(dataset.class_names))]
        rows = np.sort(np.concatenate(kept))
    if not len(rows):
        raise UserError(f"no labelled sample of {dataset.directory} has the role {options.role}; give another --role.")
    return rows


def _network(folder: pathlib.Path, trial: build.Trial, score: str, mesh, stop: StopSignal) -> attribution.RawNetwork:
    variables = {kind: nest(flat) for kind, flat in runs.load(trial, folder, mesh, stop).items()}
    return attribution.RawNetwork(Network(variables, build.build_model(trial)), build.build_normalize(trial), score)


@jax.jit
def _apply(network: attribution.RawNetwork, vectors: jax.Array) -> jax.Array:
    return network.network.logits(network.normalize(vectors))


def _logits(network: attribution.RawNetwork, vectors: np.ndarray, batch: int, stop: StopSignal) -> np.ndarray:
    """float32 `[N, K]` of raw vectors `[N, 1, G, 1]`, in batches of one size."""
    parts = []
    for start in range(0, len(vectors), batch):
        stop.check()
        rows = np.minimum(np.arange(start, start + batch), len(vectors) - 1)
        parts.append(np.asarray(_apply(network, vectors[rows]))[: len(vectors) - start])
    return np.concatenate(parts)


def _stabilities(each: np.ndarray, names: Sequence[str]) -> dict[str, ranking.Stability]:
    """By type, for those that every seed's network recognises at least once; `each` is `[S, K, G]`."""
    known = np.isfinite(each).all(axis=(0, 2))
    return {name: ranking.stability(ranking.order_of(each[:, kind])) for kind, name in enumerate(names) if known[kind]}


def _deletions(network, vectors, labels, orders, fill, options: Options, stop) -> dict[str, deletion.Deletion]:
    predict = functools.partial(_logits, network, batch=options.integral.batch_size, stop=stop)
    found = {name: deletion.delete(predict, vectors, labels, orders[name], fill) for name in (IG, F_TEST)}
    return found | {RANDOM: deletion.delete_random(predict, vectors, labels, fill, seed=options.integral.seed)}


def _alike(network, trial, vectors, labels, correct, trained, training, options, stop) -> dict[str, float]:
    """How alike the trained network's scores and those of one with random weights are, on the same samples."""
    config = trial.config
    *_, (_, _, bare) = randomization.cascade(
        network.network, config.image_size, trial.channels, options.integral.seed, shares=(1.0,)
    )
    other = attribution.attribute(
        network.replace(network=bare), vectors, labels, training, options.integral, label="random weights",
        stop=stop.check,
    )  # fmt: skip
    return deletion.alike(trained, ranking.type_scores(other.values, labels, correct, len(trial.dataset.class_names)))


def _maps(rankings: Sequence[ranking.Ranking], layout) -> dict[str, np.ndarray]:
    shown = [own for own in rankings if own.samples]
    return {own.name: overlay.overlay(own.scores, layout.pixel, layout.side) for own in shown}
