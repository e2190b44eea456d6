"""How much of a network's decision about a sample is due to each gene?

Integrated gradients of a logit with respect to the expression vector itself: the path runs through the scaling, the
layout, the upsampling and the network, so a gene has one attribution wherever and however often its value is drawn in
the picture, and the sum over genes is exactly what completeness speaks of. The number of gradients along the path is
doubled until the attributions of a sample add up to what they should.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import cli
from input_pipeline.cli import UserError
from research.explain.network import Network

BASELINES = ("zero", "mean", "expected")
SCORES = ("logit", "contrast")


@flax.struct.dataclass
class RawNetwork:
    """A network as a function of raw vectors; a pytree like `Network`, so that weights are not compiled in.

    Attributes:
      network: takes images; without `extras`.
      normalize: from raw vectors `[B, 1, G, 1]` to the images, pure; the same object for the same function, since a new
        one is compiled anew.
      score: "logit" is that of the class. "contrast" is the logit less the mean of all logits, which does not change
        when all of them rise together, as a softmax does not.
    """

    network: Network
    normalize: Callable[[jax.Array], jax.Array] = flax.struct.field(pytree_node=False)
    score: str = flax.struct.field(pytree_node=False, default="logit")

    def __call__(self, vectors: jax.Array, targets: jax.Array) -> jax.Array:
        """float32 `[B]` of raw vectors `[B, 1, G, 1]` and classes `[B]`."""
        if self.score not in SCORES:
            raise UserError(f"the score {self.score!r} is unknown; choose of {', '.join(SCORES)}.")
        logits = self.network.logits(self.normalize(vectors))
        own = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        return own - logits.mean(axis=1) if self.score == "contrast" else own


@dataclasses.dataclass(frozen=True, eq=False)
class Attributions:
    """What `attribute` found.

    Attributes:
      values: float32 `[N, G]`, in units of the score (logit).
      rise: float64 `[N]`, the score of the sample less that of its baseline (the mean over several).
      gap: float64 `[N]`, the sum of `values` less `rise`; zero for the exact integral.
      error: float64 `[N]`, |gap| / max(|rise|, floor).
      steps: int `[N]`, gradients along the path behind `values`.
      tolerance: that `error` was to keep.
    """

    values: np.ndarray
    rise: np.ndarray
    gap: np.ndarray
    error: np.ndarray
    steps: np.ndarray
    tolerance: float

    @property
    def converged(self) -> np.ndarray:
        """bool `[N]`."""
        return self.error <= self.tolerance

    def note(self) -> str:
        """One sentence on completeness, for tables and captions."""
        late = int((~self.converged).sum())
        said = f"completeness error at most {100 * self.error.max():.2g} % with {self.steps.max()} steps at most"
        return f"{said}; {late} of {len(self.error)} samples miss {100 * self.tolerance:g} %" if late else said


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of `attribute`.

    Attributes:
      baseline: "zero", the vector of zeros: no transcript on a log2(x + 1) scale, an ordinary value on others. It lies
        far from every sample, so that genes count which all samples express, and with scaling by their deviation most
        of all those that hardly vary in training. "mean", the mean of the training vectors. "expected": expected
        gradients (Erion et al. 2021, arXiv:1906.10670, equation 4), the mean over `draws` training vectors as
        baselines. Instead of a random point each of their paths gets the whole quadrature, so the only chance left is
        which vectors are drawn.
      tolerance: of the completeness error relative to the rise of the score, |F(x) - F(x')|.
      first_steps, most_steps: gradients along a path, at first and at most.
      draws: training vectors for each sample, without replacement; all of them where there are no more. They depend on
        `seed` and the sample's row only.
      floor: rises smaller than this many logits count as this large: the relative error of a difference that is about
        zero says nothing. With 0.1, attributions of such a sample add up to within 0.001 logit.
      batch_size: samples at once.
      seed: of the draws.
    """

    baseline: str = "mean"
    tolerance: float = 0.01
    first_steps: int = 8
    most_steps: int = 512
    draws: int = 16
    floor: float = 0.1
    batch_size: int = 32
    seed: int = 0


def attribute(
    network_scores: Callable[[jax.Array, jax.Array], jax.Array],
    vectors: np.ndarray,
    targets: np.ndarray,
    training: np.ndarray | None = None,
    options: Options = Options(),
    *,
    label: str = "integrated gradients",
    stop: Callable[[], None] = lambda: None,
) -> Attributions:
    """Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365, equation 1) of genes, as accurate as asked for.

    Gauss-Legendre quadrature with `first_steps` nodes, then twice as many for the samples whose completeness error is
    above the tolerance, and so on up to `most_steps`; a sample keeps the most accurate of its results. One program is
    compiled for all numbers of steps: it takes a gradient at a time, which on CPU is also faster than convolutions
    inside `scan`.

    Args:
      network_scores: raw vectors `[B, 1, G, 1]` and classes int `[B]` to float32 `[B]`; a pytree that can be called
        (`RawNetwork`), whose arrays become arguments of the program, or any function. It must treat samples apart from
        each other.
      vectors: `[N, 1, G, 1]` raw, on the scale as stored.
      targets: int `[N]`, the class to explain for each.
      training: `[M, 1, G, 1]` or `[M, G]`, for the baselines "mean" and "expected".
      label: of the progress line. stop: called before each batch; may raise.

    Raises:
      UserError: an unknown baseline, no training vectors, impossible numbers, or a network that gives NaN.
    """
    vectors = np.asarray(vectors, np.float32)
    _check(vectors, targets, training, options)
    run = _Runner(_as_pytree(network_scores), min(options.batch_size, len(vectors)), stop)
    targets = np.asarray(targets, np.int32)
    starts = _Baselines(options, training, vectors.shape[2])
    count = len(vectors)
    values = np.zeros((count, vectors.shape[2]), np.float32)
    rise, gap, error = np.zeros(count), np.zeros(count), np.full(count, np.inf)
    used, steps, waiting = np.zeros(count, int), options.first_steps, np.arange(count)
    while len(waiting):
        for rows in run.batches(waiting, f"{label}, {steps} steps"):
            found, own_rise = run.integrate(vectors[rows], targets[rows], starts, rows, steps)
            own_gap = found.sum(axis=1, dtype=np.float64) - own_rise
            own_error = np.abs(own_gap) / np.maximum(np.abs(own_rise), options.floor)
            if not np.isfinite(own_error).all():
                raise UserError(
                    "the network's score or its gradient is not finite for some samples; train it again with a smaller "
                    "learning rate, or name another checkpoint."
                )
            better = own_error < error[rows]
            own = rows[better]
            values[own], used[own] = found[better], steps
            rise[own], gap[own], error[own] = own_rise[better], own_gap[better], own_error[better]
        steps *= 2
        waiting = np.flatnonzero(error > options.tolerance) if steps <= options.most_steps else waiting[:0]
    return Attributions(values, rise, gap, error, used, options.tolerance)


def _check(vectors: np.ndarray, targets: np.ndarray, training: np.ndarray | None, options: Options) -> None:
    if vectors.ndim != 4 or vectors.shape[1] != 1 or vectors.shape[3] != 1 or not len(vectors):
        raise ValueError(f"vectors are [N, 1, G, 1] with at least one sample, not {vectors.shape}")
    if len(targets) != len(vectors):
        raise ValueError(f"{len(targets)} targets do not fit {len(vectors)} vectors")
    if options.baseline not in BASELINES:
        raise UserError(f"the baseline {options.baseline!r} is unknown; choose of {', '.join(BASELINES)}.")
    if options.baseline != "zero" and (training is None or not len(training)):
        raise UserError(f"the baseline {options.baseline!r} needs training samples, and there are none; choose zero.")
    counts = (options.first_steps, options.draws, options.batch_size)
    positive = options.tolerance > 0 and options.floor > 0
    if min(counts) < 1 or options.most_steps < options.first_steps or not positive:
        raise UserError(
            "attributions need draws, a batch size and steps of at least 1, the most steps not below the first, and a "
            f"positive tolerance and floor, not {options}."
        )


class _Baselines:
    """Where the paths begin."""

    def __init__(self, options: Options, training: np.ndarray | None, num_genes: int):
        self._seed = options.seed
        if options.baseline == "zero":
            self._vectors = np.zeros((1, num_genes), np.float32)
        else:
            known = np.asarray(training).reshape(len(training), -1)
            if known.shape[1] != num_genes:
                raise ValueError(f"training vectors of {known.shape[1]} genes do not fit samples of {num_genes}")
            mean = options.baseline == "mean"
            self._vectors = known.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32) if mean else known
        self.count = min(options.draws, len(self._vectors))

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Baselines of samples, float32 `[count, B, 1, G, 1]`."""
        chosen = np.array([self._drawn(int(row)) for row in rows]).T
        return np.asarray(self._vectors[chosen], np.float32)[:, :, None, :, None]

    def _drawn(self, row: int) -> np.ndarray:
        known = len(self._vectors)
        if self.count == known:
            return np.arange(known)
        return np.random.default_rng((self._seed, row)).choice(known, self.count, replace=False)


@dataclasses.dataclass(frozen=True)
class _Runner:
    """Runs a network over rows in batches of one size."""

    scores: Any
    batch_size: int
    stop: Callable[[], None]

    def batches(self, rows: np.ndarray, label: str) -> Iterator[np.ndarray]:
        """`rows` in parts of at most `batch_size`; shows progress."""
        shown = cli.progress(rows, len(rows), label)
        next(shown)  # its clock begins; asked for the next row, it counts one as done
        for start in range(0, len(rows), self.batch_size):
            self.stop()
            own = rows[start : start + self.batch_size]
            yield own
            for _ in own:
                next(shown, None)

    def integrate(
        self, vectors: np.ndarray, targets: np.ndarray, starts: _Baselines, rows: np.ndarray, steps: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Attributions float32 `[B, G]` and rises float64 `[B]` of the samples with the numbers `rows`."""
        kept = len(rows)
        padding = (0, self.batch_size - kept)
        vectors = jnp.asarray(np.pad(vectors, [padding, (0, 0), (0, 0), (0, 0)], mode="edge"))
        targets = jnp.asarray(np.pad(targets, padding, mode="edge"))
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        nodes, weights = ((nodes + 1) / 2).astype(np.float32), (weights / 2).astype(np.float32)
        # GPUs and TPUs multiply float32 with fewer digits unless told otherwise, and completeness would suffer.
        with jax.default_matmul_precision("float32"):
            top = np.asarray(_score(self.scores, vectors, targets), np.float64)
            total, bottom = jnp.zeros_like(vectors), np.zeros(self.batch_size)
            for start in starts.of(rows):
                start = jnp.asarray(np.pad(start, [padding, (0, 0), (0, 0), (0, 0)], mode="edge"))
                mean = jnp.zeros_like(vectors)
                for place, weight in zip(nodes, weights, strict=True):
                    mean = _add_gradient(self.scores, mean, vectors, start, targets, place, weight)
                total = total + (vectors - start) * mean
                bottom += np.asarray(_score(self.scores, start, targets), np.float64)
        values = np.asarray(total / starts.count)[:kept, 0, :, 0]
        return values, (top - bottom / starts.count)[:kept]


@jax.jit
def _score(scores, vectors, targets):
    return scores(vectors, targets).astype(jnp.float32)


@jax.jit
def _add_gradient(scores, total, vectors, start, targets, place, weight):
    gradient = jax.grad(lambda inputs: jnp.sum(scores(inputs, targets)))
    return total + weight * gradient(vectors - (1 - place) * (vectors - start))


@flax.struct.dataclass
class _Function:
    """A function as a pytree without arrays."""

    function: Callable = flax.struct.field(pytree_node=False)

    def __call__(self, vectors, targets):
        return self.function(vectors, targets)


def _as_pytree(scores: Callable) -> Any:
    leaves = jax.tree.leaves(scores)
    return _Function(scores) if len(leaves) == 1 and leaves[0] is scores else scores
