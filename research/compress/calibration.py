"""Which numbers do the inputs of an int8 network's layers run over, and what does rounding them shift?

Both are found on the float network's own activations for some training images, before anything runs in int8.
"""

from collections.abc import Callable, Iterable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.cli import UserError
from research.compress.quantize import Layout, Range, fold, int8_layer, rounded, stored_of
from research.training.state import Flat, nest

# Shares of the greatest absolute value that are tried as limit.
_LIMITS = np.linspace(0.3, 1.0, 15)

Statistic = Callable[[nn.Module, str, jax.Array], jax.Array]  # of a layer, its path and its inputs


def _observer(
    model: nn.Module, variables: Mapping[str, Flat], layers: Iterable[str], statistic: Statistic
) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """A compiled function of normalised images `[B, H, W, C]` to the statistic of each layer, by path."""
    nested, layers = {name: nest(flat) for name, flat in variables.items()}, frozenset(layers)

    @jax.jit
    def observe(image: jax.Array) -> dict[str, jax.Array]:
        seen: dict[str, jax.Array] = {}

        def interceptor(call, args, kwargs, context):
            path = "/".join(context.module.path)
            if context.method_name == "__call__" and path in layers:
                seen[path] = statistic(context.module, path, args[0].astype(jnp.float32))
            return call(*args, **kwargs)

        with nn.intercept_methods(interceptor):
            model.apply(nested, {"image": image}, train=False)
        return seen

    return lambda image: jax.device_get(observe(image))


def calibrate(
    model: nn.Module, variables: Mapping[str, Flat], plan: Layout, batches: Iterable[jax.Array]
) -> dict[str, Range]:
    """The range of each layer's inputs, by path.

    Of 15 limits between 0.3 and 1 of the greatest absolute value, at which the inputs' range is cut off, the one with
    the smallest squared error (Nagel et al. 2021, arXiv:2106.08295, section 3.1).

    Args:
      variables: {"params", "batch_stats"}, arrays by path.
      plan: see `quantize.layout`.
      batches: normalised images `[B, H, W, C]`, gone through twice.

    Raises:
      UserError: there are no images, or the inputs of a layer are not finite.
    """
    batches = list(batches)
    if not batches:
        raise UserError("there are no training images to calibrate int8 with; prepare the data with a training share.")

    def ends(module: nn.Module, path: str, values: jax.Array) -> jax.Array:
        found = jnp.stack([jnp.min(values), jnp.max(values)])
        return jnp.where(jnp.all(jnp.isfinite(values)), found, jnp.nan)  # XLA's maximum may lose a NaN

    observe = _observer(model, variables, plan.layers, ends)
    seen = [observe(image) for image in batches]
    ranges = {}
    for path in plan.layers:
        low, high = np.min([own[path][0] for own in seen]), np.max([own[path][1] for own in seen])
        if not np.isfinite([low, high]).all():
            raise UserError(f"the inputs of {path} are not finite on the training images; train the model again.")
        limits = _LIMITS * max(abs(low), abs(high))
        ranges[path] = [Range.over(max(low, -limit), min(high, limit)) for limit in limits]

    def errors(module: nn.Module, path: str, values: jax.Array) -> jax.Array:
        def squared(pair: jax.Array) -> jax.Array:
            restored = (rounded(values, pair[0], pair[1]) - pair[1]) * pair[0]
            return jnp.mean(jnp.square(restored - values))

        # A loop: the program of all ranges side by side takes several times as long to compile.
        return jax.lax.map(squared, np.array([(r.scale, r.zero) for r in ranges[path]], np.float32))

    observe = _observer(model, variables, plan.layers, errors)
    found = [observe(image) for image in batches]
    return {p: ranges[p][int(np.argmin(np.sum([own[p] for own in found], 0, dtype=np.float64)))] for p in plan.layers}


def correct(
    model: nn.Module,
    variables: Mapping[str, Flat],
    plan: Layout,
    arrays: Mapping[str, np.ndarray],
    batches: Iterable[jax.Array],
) -> dict[str, np.ndarray]:
    """The int8 network with biases that take back what rounding and clipping add to each channel on average.

    Empirical bias correction (Nagel et al. 2019, arXiv:1906.04721, section 4.2). Copies of one photograph are equally
    near to a decision, and a shift moves all of them over it.

    Args:
      variables, plan: as for `calibrate`.
      arrays: see `quantize.quantize`.
      batches: as for `calibrate`.
    """
    kernels, biases, _ = fold(plan, variables)

    def shift(module: nn.Module, path: str, values: jax.Array) -> jax.Array:
        exact = {"params": {"kernel": kernels[path]} | ({"bias": biases[path]} if path in biases else {})}
        plain = module.clone(parent=None, **({"use_bias": path in biases} if hasattr(module, "use_bias") else {}))
        error = int8_layer(module, stored_of(arrays, path), values) - plain.apply(exact, values)
        return jnp.mean(error, tuple(range(error.ndim - 1)))

    observe = _observer(model, variables, kernels, shift)
    shifts = [observe(image) for image in batches]
    corrected = dict(arrays)
    for path in kernels:
        mean = np.mean([own[path] for own in shifts], 0, dtype=np.float64)
        corrected[f"{path}/bias"] = np.asarray(arrays.get(f"{path}/bias", 0.0) - mean, np.float32)
    return corrected
