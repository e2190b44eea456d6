"""Where does the randomness of one example come from, so that it depends on nothing but the step and the row?

Every example owns a key, `fold_in(key, row)`, and draws one fixed row of uniform numbers from it, in which
every operation has its own places. Drawn parameters are therefore the same bits on any number of devices,
under `jax.vmap` over cohort members (threefry keys), and when another operation is switched on or off. Rows
are counted over the valid examples, so that padding a batch does not move them.
"""

import jax
import jax.numpy as jnp

# How many uniform numbers each operation may use. Part of the reproducibility promise: append, never reorder.
PLACES = {"dihedral": 3, "affine": 5, "crop": 22, "jitter": 5, "auto": 16, "erase": 23, "mix": 5}
RESERVED = 128


def row_keys(key: jax.Array, valid: jax.Array) -> jax.Array:
    """One key per example, [B]: `fold_in(key, number of valid examples before this row)`.

    Args:
      key: the key of this step.
      valid: bool [B]; False marks padding, whose keys are of no consequence.
    """
    rows = jnp.maximum(jnp.cumsum(valid.astype(jnp.int32)) - 1, 0)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def fractions(keys: jax.Array) -> dict[str, jax.Array]:
    """Uniform numbers in [0, 1) for every operation: float32 [B, PLACES[name]] by name."""
    numbers = jax.vmap(lambda key: jax.random.uniform(key, (RESERVED,), jnp.float32))(keys)
    result, start = {}, 0
    for name, count in PLACES.items():
        result[name] = numbers[:, start : start + count]
        start += count
    return result


def between(fraction: jax.Array, low: jax.Array | float, high: jax.Array | float) -> jax.Array:
    """Maps a uniform number in [0, 1) to [low, high)."""
    return low + fraction * (high - low)


def below(fraction: jax.Array, bound: jax.Array | int) -> jax.Array:
    """Maps a uniform number in [0, 1) to int32 0 .. bound - 1; `bound` may differ by example."""
    bound = jnp.asarray(bound, jnp.int32)
    return jnp.minimum((fraction * bound.astype(jnp.float32)).astype(jnp.int32), bound - 1)


def symmetric_beta(fraction: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """Maps two uniform numbers [B, 2] to one sample [B] of Beta(alpha, alpha), for any alpha > 0 (may be
    traced).

    Bailey's polar method gives T = √(2α (U^(-1/α) - 1)) · cos 2πV, Student's t with 2α degrees of freedom,
    and 1/2 + T / (2 √(2α + T²)) is Beta(α, α) (Devroye 1996, "Random variate generation in one line of
    code"). Unlike the usual sampler it needs no rejection loop, which would run as long as the unluckiest
    example of the batch.
    """
    cosine = jnp.cos(2.0 * jnp.pi * fraction[:, 1])
    log_power = jnp.log1p(-fraction[:, 0]) / alpha
    power, rest = jnp.exp(log_power), -jnp.expm1(log_power)
    share = cosine**2 * rest
    return 0.5 + 0.5 * jnp.sign(cosine) * jnp.sqrt(share / jnp.maximum(share + power, 1e-30))
