"""What do a bidirectional LSTM and GRU read in a text?

LSTM: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000, whose bias begins at 1 (Jozefowicz et
al. 2015). GRU: Cho et al. 2014 (arXiv:1406.1078) in the form of cuDNN and PyTorch, in which the reset gate acts on the
product of state and kernel. A step leaves the state as it is where there is padding, so padding changes nothing
wherever it stands. Features are the largest and the mean state of each unit over the text (Conneau et al. 2017,
arXiv:1705.02364).

The products of inputs and kernels are one matrix product for all times; a step of the `scan` holds the product of the
states alone, with the kernels of all gates in one.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.initializers import GLOROT_UNIFORM, VarianceScaling, zeros
from research.models.layers import Dropout
from research.text.layers import Embedding, Encoded, encoded, hide, hide_ids, on_rows, pool, require_positive

# Every unit's sum over the states has the variance of a state.
RECURRENT = VarianceScaling(1.0, "fan_in", "normal")

# From (product of the inputs `[..., G H]`, product of the states `[..., G H]`, states, each `[..., H]`) to new states,
# of which the first is the output.
Cell = Callable[[jax.Array, jax.Array, tuple[jax.Array, ...]], tuple[jax.Array, ...]]


def lstm_cell(given: jax.Array, recalled: jax.Array, states: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """States (output, cell); gates in the order input, forget, candidate, output."""
    gates = (given + recalled).astype(jnp.float32)
    admit, keep, candidate, show = jnp.split(gates, 4, axis=-1)
    cell = nn.sigmoid(keep + 1.0) * states[1] + nn.sigmoid(admit) * jnp.tanh(candidate)
    return nn.sigmoid(show) * jnp.tanh(cell), cell


def gru_cell(given: jax.Array, recalled: jax.Array, states: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """States (output,); gates in the order reset, update, candidate."""
    (reset, update, candidate), (reset_h, update_h, candidate_h) = (
        jnp.split(product.astype(jnp.float32), 3, axis=-1) for product in (given, recalled)
    )
    kept = nn.sigmoid(update + update_h)
    new = jnp.tanh(candidate + nn.sigmoid(reset + reset_h) * candidate_h)
    return ((1.0 - kept) * new + kept * states[0],)


CELLS: dict[str, tuple[Cell, int, int]] = {"lstm": (lstm_cell, 4, 2), "gru": (gru_cell, 3, 1)}  # cell, gates, states


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run(cell: str, given: jax.Array, there: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The states of a recurrent network, from states of zero.

    The backward pass is written out: its scan goes back through the steps alone, and the gradient of the kernel is one
    product over all times behind it instead of a sum that grows step by step.

    Args:
      cell: one of `CELLS`.
      given: products of the inputs `[L, B, G H]`, in the order of the time.
      there: bool `[L, B, 1]`; the states stay as they are where it is False.
      kernel: `[H, G H]` and
      bias: `[G H]`, of the states, in the type of `given`.

    Returns:
      float32 `[L, B, H]`.
    """
    return _run_forward(cell, given, there, kernel, bias)[0]


def _run_forward(cell, given, there, kernel, bias):
    step, _, number = CELLS[cell]

    def advance(states, now):
        products, valid = now
        new = step(products, states[0].astype(kernel.dtype) @ kernel + bias, states)
        kept = tuple(jnp.where(valid, after, before) for after, before in zip(new, states, strict=True))
        return kept, kept

    start = (jnp.zeros((given.shape[1], kernel.shape[0])),) * number
    _, states = jax.lax.scan(advance, start, (given, there))
    return states[0], (given, there, kernel, bias, states)


def _run_backward(cell, residuals, outputs_bar):
    given, there, kernel, bias, states = residuals
    step, turned = CELLS[cell][0], kernel.T
    before = tuple(jnp.concatenate([jnp.zeros_like(state[:1]), state[:-1]]) for state in states)
    recalled = on_rows(lambda rows: rows @ kernel + bias, before[0].astype(kernel.dtype))

    def retreat(states_bar, now):
        products, product, valid, old, output_bar = now
        states_bar = (states_bar[0] + output_bar, *states_bar[1:])
        _, backwards = jax.vjp(step, products, product, old)
        given_bar, recalled_bar, old_bar = backwards(tuple(jnp.where(valid, bar, 0.0) for bar in states_bar))
        passed = [new + jnp.where(valid, 0.0, bar) for new, bar in zip(old_bar, states_bar, strict=True)]
        passed[0] = passed[0] + (recalled_bar @ turned).astype(passed[0].dtype)
        return tuple(passed), (given_bar, recalled_bar)

    end = tuple(jnp.zeros_like(state[0]) for state in states)
    times = (given, recalled, there, before, outputs_bar)
    _, (given_bar, recalled_bar) = jax.lax.scan(retreat, end, times, reverse=True)
    rows = recalled_bar.reshape(-1, kernel.shape[1])
    kernel_bar = before[0].astype(kernel.dtype).reshape(-1, kernel.shape[0]).T @ rows
    return given_bar, None, kernel_bar, jnp.sum(rows, axis=0)


run.defvjp(_run_forward, _run_backward)


class Direction(nn.Module):
    """A recurrent network of H units. With `input_kernel` `[E, G H]`, `state_kernel` `[H, G H]` and biases."""

    cell: str
    units: int

    @nn.compact
    def __call__(self, inputs: jax.Array, there: jax.Array) -> jax.Array:
        """`[L, B, E]` and bool `[L, B, 1]` to `[L, B, H]`."""
        wide, dtype = CELLS[self.cell][1] * self.units, inputs.dtype
        kernel = self.param("input_kernel", GLOROT_UNIFORM, (inputs.shape[-1], wide)).astype(dtype)
        bias = self.param("input_bias", zeros, (wide,)).astype(dtype)
        state_kernel = self.param("state_kernel", RECURRENT, (self.units, wide)).astype(dtype)
        state_bias = self.param("state_bias", zeros, (wide,)).astype(dtype)
        given = on_rows(lambda rows: rows @ kernel + bias, inputs)
        return run(self.cell, given, there, state_kernel, state_bias).astype(dtype)


class Bidirectional(nn.Module):
    """One layer: a network that reads `forwards` and one that reads `backwards`."""

    cell: str
    units: int

    @nn.compact
    def __call__(self, inputs: jax.Array, mask: jax.Array) -> jax.Array:
        """`[B, L, E]` and bool `[B, L]` to `[B, L, 2 H]`, the states forwards and backwards, zeros at padding."""
        inputs, there = inputs.transpose(1, 0, 2), mask.T[..., None]
        forwards = Direction(self.cell, self.units, name="forwards")(inputs, there)
        backwards = Direction(self.cell, self.units, name="backwards")(inputs[::-1], there[::-1])[::-1]
        return hide(jnp.concatenate([forwards, backwards], axis=-1).transpose(1, 0, 2), mask)


class Recurrent(nn.Module):
    """Encoder; see `recurrent` for the attributes."""

    cell: str
    vocabulary: int
    width: int
    units: int
    layers: int
    dropout: float | jax.Array
    word_dropout: float | jax.Array

    @nn.compact
    def __call__(self, ids: jax.Array, *, train: bool, dtype: Any = jnp.float32) -> Encoded:
        """int32 `[B, L]` to features `[B, 4 H]` (largest, then mean) and a sequence `[B, L, 2 H]`.

        `dtype` is the compute type; the states are float32.
        """
        ids = hide_ids(self, ids, self.word_dropout, train)
        mask = ids != 0
        sequence = Embedding(self.vocabulary, self.width, dtype, name="embedding")(ids)
        for number in range(1, self.layers + 1):
            sequence = Dropout(self.dropout, name=f"dropout_{number}")(sequence, train=train)
            sequence = Bidirectional(self.cell, self.units, name=f"layer_{number}")(sequence, mask)
        features = Dropout(self.dropout, name="dropout")(pool(sequence, mask), train=train)
        return encoded(features, sequence, mask)


def recurrent(
    cell: str,
    vocabulary: int,
    width: int = 128,
    units: int = 128,
    layers: int = 1,
    dropout: float | jax.Array = 0.3,
    word_dropout: float | jax.Array = 0.0,
) -> Recurrent:
    """Makes the encoder.

    Args:
      cell: "lstm" or "gru".
      vocabulary: number of ids, padding included.
      width: of the embedding.
      units: H, of each direction.
      layers: one upon the other.
      dropout: rate at the input of each layer and of the features; may be traced.
      word_dropout: share of the ids that is hidden in training; may be traced.

    Raises:
      UserError: an impossible number.
    """
    require_positive(cell, vocabulary=vocabulary, width=width, units=units, layers=layers)
    return Recurrent(cell, vocabulary, width, units, layers, dropout, word_dropout)
