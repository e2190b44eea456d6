"""How much does a model compute for one image?

Counted are the multiplications and additions of convolutions and matrix products, 2 for each multiply-add; MACs, and
what many papers call FLOPs, are half of these numbers. Bias, BatchNorm, activations and pools are left out. A window
over the padding at an image's edge counts in full. Dilated inputs, as of transposed convolutions, count with their
zeros.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from research.models.lowering import lowering_for


@functools.lru_cache(maxsize=256)  # the trials of a search have few architectures
def flops(model: nn.Module, image_size: int, channels: int, tokens: int = 1) -> int:
    """Operations of the forward pass of one image `[1, image_size, image_size, channels]` up to the logits.

    A model that reads captions is given one of `tokens` ids beside it.

    The model (a `Classifier`) is traced and never run: a large one takes a second or two.

    Raises:
      UserError: the image is too small for the model.
      ValueError: the model has a loop of unknown length.
    """
    inputs = {
        "image": jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32),
        "caption": jax.ShapeDtypeStruct((1, tokens), jnp.int32),
    }
    # Elsewhere than on CPU every convolution is one operation of the program.
    with lowering_for("cuda"):
        key = jax.eval_shape(lambda: jax.random.key(0))
        variables = jax.eval_shape(lambda key, inputs: model.init(key, inputs, train=False), key, inputs)
        traced = jax.make_jaxpr(lambda v, i: model.apply(v, i, train=False).logits)(variables, inputs)
    return of_jaxpr(traced.jaxpr)


def of_jaxpr(jaxpr: core.Jaxpr, wanted: tuple[bool, ...] | None = None) -> int:
    """Operations of a traced program; what its outputs do not depend on is left out, as XLA leaves it out.

    Args:
      jaxpr: may hold calls, loops of known length and branches, of which the costliest counts.
      wanted: which outputs are used; None for all.

    Raises:
      ValueError: a loop of unknown length with convolutions or matrix products in it.
    """
    wanted = wanted or (True,) * len(jaxpr.outvars)
    needed = {var for var, used in zip(jaxpr.outvars, wanted, strict=True) if used and isinstance(var, core.Var)}
    total = 0
    for equation in reversed(jaxpr.eqns):
        used = tuple(var in needed for var in equation.outvars)
        if any(used) or equation.effects:
            total += _of_equation(equation, used)
            needed |= {var for var in equation.invars if isinstance(var, core.Var)}
    return total


def _of_equation(equation: Any, used: tuple[bool, ...]) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * (math.prod(kernel) // features)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        inputs = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(inputs[axis] for axis in contracted)
    inner = list(sub_jaxprs(params))
    if not inner:
        return 0
    if name == "scan":
        return params["length"] * of_jaxpr(inner[0])
    if name == "while":
        if any(map(of_jaxpr, inner)):
            raise ValueError("the operations of a loop of unknown length cannot be counted")
        return 0
    return max(of_jaxpr(jaxpr, used if len(jaxpr.outvars) == len(used) else None) for jaxpr in inner)


def sub_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The programs among the parameters of an equation: of a call, a loop, the branches of a condition."""
    for value in params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
