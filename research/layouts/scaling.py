"""How are expression values brought to a scale that a network likes, with numbers taken from training data only?

Values x are on a log2 scale. Kinds, and what they give:

    none          x as it is
    global        (x - least) / (greatest - least) over all genes, cut to 0..1
    gene          (x - mean) / deviation of each gene: about -3..3, not cut; the deviation is that of scikit-learn
    gene_minmax   (x - least) / (greatest - least) of each gene, cut to 0..1 (DeepInsight's norm-1)
    log_global    log(x + |least of the gene| + 1), divided by its greatest value over all genes, cut to 0..1
                  (DeepInsight's norm-2: Sharma et al. 2019, doi:10.1038/s41598-019-47765-6, as pyDeepInsight has it)
    study         values below 1 become 0, then 255 * x / greatest, rounded to whole numbers, cut to 0..255, divided by
                  255: the grey levels of the study's PNG files, in 0..1; whether it rounded or cut is not published

A gene without variation in training becomes 0 with `gene` and `gene_minmax`. Rounding has a derivative of zero almost
everywhere, which would silence every attribution; `study` is differentiated as if it did not round.
"""

import os
from collections.abc import Iterator, Sequence

import flax
import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.cli import UserError
from research.layouts.layout import read_json, require_same_genes, write_json

KINDS = ("none", "global", "gene", "gene_minmax", "log_global", "study")
LEVELS = 255  # of a grey PNG
CUT = 1.0  # the study's least log2 value that counts
_ROWS = 256


@flax.struct.dataclass
class Scale:
    """A fitted scaling, a pytree.

    Attributes:
      offset: float32 `[G]` or `[]`.
      factor: float32 `[G]` or `[]`.
      kind: one of `KINDS`.
    """

    offset: jax.Array | np.ndarray
    factor: jax.Array | np.ndarray
    kind: str = flax.struct.field(pytree_node=False)

    def __call__(self, values: jax.Array) -> jax.Array:
        """Scales `[..., G]` to float32 of the same shape."""
        values = jnp.asarray(values, jnp.float32)
        if self.kind == "none":
            return values
        if self.kind == "study":
            levels = jnp.where(values < CUT, 0.0, values) * self.factor
            rounded = levels + jax.lax.stop_gradient(jnp.round(levels) - levels)
            return jnp.clip(rounded, 0.0, LEVELS) / LEVELS
        if self.kind == "log_global":
            # What lies below the training data's least value has no larger a logarithm than 0 anyway.
            return jnp.clip(jnp.log(jnp.maximum(values + self.offset, 1.0)) * self.factor, 0.0, 1.0)
        scaled = (values - self.offset) * self.factor
        return scaled if self.kind == "gene" else jnp.clip(scaled, 0.0, 1.0)


def _chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows at a time in double precision, so that a memory map of gigabytes need not be copied."""
    for start in range(0, len(values), _ROWS):
        yield np.asarray(values[start : start + _ROWS], np.float64)


def _extremes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest value of each gene, float64 `[G]`."""
    least = np.full(values.shape[1], np.inf)
    greatest = -least
    for rows in _chunks(values):
        np.minimum(least, rows.min(0), out=least)
        np.maximum(greatest, rows.max(0), out=greatest)
    return least, greatest


def _inverse(values: np.ndarray) -> np.ndarray:
    """1 / values, and 0 where they are not positive."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


def fit_scale(kind: str, train_values: np.ndarray) -> Scale:
    """Fits a scaling.

    Args:
      kind: one of `KINDS`.
      train_values: `[N, G]` on a log2 scale, finite; the training examples only. May be a memory map.

    Returns:
      The scaling, with NumPy arrays.

    Raises:
      UserError: an unknown kind, no values, or values that are not finite.
    """
    if kind not in KINDS:
        raise UserError(f"the scaling {kind!r} is unknown; choose of {', '.join(KINDS)}.")
    require_values(train_values)
    least, greatest = _extremes(train_values)
    offset, factor = np.float64(0.0), np.float64(1.0)
    if kind == "global":
        offset = least.min()
        factor = _inverse(greatest.max() - offset)
    elif kind == "study":
        top = greatest.max()
        factor = LEVELS / top if top >= CUT else np.float64(0.0)
    elif kind == "gene_minmax":
        offset, factor = least, _inverse(greatest - least)
    elif kind == "log_global":
        offset = np.abs(least) + 1.0
        factor = _inverse(np.log(greatest + offset).max())
    elif kind == "gene":
        offset = sum(rows.sum(0) for rows in _chunks(train_values)) / len(train_values)
        variance = sum(np.square(rows - offset).sum(0) for rows in _chunks(train_values)) / len(train_values)
        # The mean of equal numbers is rounded too: what does not vary is known by its extremes.
        factor = _inverse(np.where(greatest > least, np.sqrt(variance), 0.0))
    return Scale(np.asarray(offset, np.float32), np.asarray(factor, np.float32), kind)


def require_values(values: np.ndarray) -> None:
    """Checks that `values` are `[N, G]`, not empty and finite.

    Raises:
      UserError: they are not.
    """
    if values.ndim != 2 or 0 in values.shape:
        raise UserError(
            f"expression values of shape {values.shape} have no samples or no genes; prepare a data set with both."
        )
    if not all(np.isfinite(rows).all() for rows in _chunks(values)):
        raise UserError("there are expression values that are not finite; prepare the data set again with imputation.")


def save_scale(scale: Scale, genes: Sequence[str], path: str | os.PathLike) -> None:
    """Writes the scaling for `genes` as JSON; the same scaling gives the same bytes, and every bit comes back."""
    numbers = {name: np.asarray(getattr(scale, name), np.float64).tolist() for name in ("offset", "factor")}
    write_json(path, {"kind": scale.kind, "genes": list(genes), **numbers})


def load_scale(path: str | os.PathLike, genes: Sequence[str] | None = None) -> Scale:
    """Reads a scaling.

    Args:
      path: of the JSON file that `save_scale` wrote.
      genes: of the data set that it is to be used with; None to skip the check.

    Raises:
      UserError: the file is missing or broken, or the scaling is for other genes.
    """
    content = read_json(path, "scaling")
    try:
        offset, factor = (np.asarray(content[name], np.float32) for name in ("offset", "factor"))
        shapes = {(), (len(content["genes"]),)}
        if content["kind"] not in KINDS or not {offset.shape, factor.shape} <= shapes:
            raise ValueError(f"kind {content['kind']!r} with {offset.shape} and {factor.shape} numbers")
        if not (np.isfinite(offset).all() and np.isfinite(factor).all()):
            raise ValueError("numbers that are not finite")
    except KeyError as error:
        raise UserError(f"{path} is no scaling: it lacks {error}; restore the file or train again.") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is no scaling: {error}; restore the file or train again.") from None
    if genes is not None:
        require_same_genes(content["genes"], genes, f"the scaling {path}")
    return Scale(offset, factor, content["kind"])
