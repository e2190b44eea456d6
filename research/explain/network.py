"""How does a model give its logits, and how is it cut in two behind any of its layers?

No model has to be prepared for this. A forward pass is traced once with every module's output and every feature map of
`Output` among its results; the trace then says which of its variables a layer is. What comes before it is the one half
of the network and what comes after it the other, also for maps that no module returns, such as the concatenations of
DenseNet. The gradient with respect to the layer is the ordinary gradient of the second half.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun


class NoSuchLayer(ValueError):
    """The network has no layer of this name."""


@flax.struct.dataclass
class Network:
    """A trained model, as the methods take it; a pytree, so that the methods can be jitted over it.

    Attributes:
      variables: as Flax takes them, {"params": …, "batch_stats": …}, nested.
      model: any Flax module that is called with inputs {"image": `[B, H, W, C]`, …} and `train` and gives an `Output`.
      extras: entries of the inputs beside the image, `[B, …]` each; they are held fixed.
    """

    variables: Any
    model: nn.Module = flax.struct.field(pytree_node=False)
    extras: dict[str, jax.Array] = flax.struct.field(default_factory=dict)

    def logits(self, images: jax.Array) -> jax.Array:
        """float32 `[B, K]` of images as the model takes them (normalised), `[B, H, W, C]`."""
        return self.model.apply(self.variables, self.inputs(images), train=False).logits.astype(jnp.float32)

    def scores(self, images: jax.Array, targets: jax.Array) -> jax.Array:
        """The logit of each image's class `targets` `[B]`; float32 `[B]`."""
        return of_class(self.logits(images), targets)

    def inputs(self, images: jax.Array) -> dict[str, jax.Array]:
        """What the model is called with."""
        return {**self.extras, "image": images}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer that a class activation map can be made of.

    Attributes:
      name: of a feature map of `Output` ("layer4"), or the path of a module ("backbone/layer4_1/conv2"); further calls
        of a shared module have "#2", "#3", … behind it.
      shape: (h, w, channels) of its output.
      feature_map: whether it is one of `Output.feature_maps`.
    """

    name: str
    shape: tuple[int, int, int]
    feature_map: bool


def of_class(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """`[B, K]` and `[B]` to `[B]`."""
    return jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]


def layers(network: Network, images: Any) -> tuple[Layer, ...]:
    """The layers whose output is `[B, h, w, c]`, in the order in which they are computed; nothing is computed here.

    Args:
      images: `[B, H, W, C]`, or a `jax.ShapeDtypeStruct`.
    """
    trace = _traced(network, images)
    order = {variable: index for index, equation in enumerate(trace.closed.jaxpr.eqns) for variable in equation.outvars}
    found = sorted(trace.found, key=lambda name: (order[trace.found[name]], name))  # one array may have several names
    return tuple(Layer(name, tuple(trace.found[name].aval.shape[1:]), name in trace.maps) for name in found)


def default_layer(network: Network, images: Any) -> str:
    """The feature map that is computed last and has more than one pixel; "" if there is none."""
    maps = [layer for layer in layers(network, images) if layer.feature_map and layer.shape[0] * layer.shape[1] > 1]
    return maps[-1].name if maps else ""


def cut(network: Network, images: jax.Array, layer: str) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Cuts the network behind a layer.

    Args:
      images: `[B, H, W, C]`, as the model takes them.
      layer: a name of `layers`.

    Returns:
      The layer's output `[B, h, w, c]`, and the function from any such array in its place to the logits float32
      `[B, K]`; every reader of the layer gets the array, what runs beside the layer stays as it is.

    Raises:
      NoSuchLayer: the network has no such layer.
    """
    trace = _traced(network, images)
    if layer not in trace.found:
        raise NoSuchLayer(layer)
    program, wanted = trace.closed.jaxpr, trace.found[layer]
    place = next(i for i, equation in enumerate(program.eqns) if wanted in equation.outvars) + 1
    later = [atom for equation in program.eqns[place:] for atom in equation.invars] + [trace.logits]
    before = {*program.constvars, *program.invars, *(v for e in program.eqns[:place] for v in e.outvars)}
    passed = dict.fromkeys([wanted, *(atom for atom in later if not isinstance(atom, Literal) and atom in before)])
    head = program.replace(eqns=program.eqns[:place], outvars=list(passed))
    tail = program.replace(constvars=[], invars=list(passed), eqns=program.eqns[place:], outvars=[trace.logits])
    given = jax.tree.leaves((network.variables, network.inputs(images)))
    activation, *others = jaxpr_as_fun(ClosedJaxpr(head, trace.closed.consts))(*given)

    def rest(output: jax.Array) -> jax.Array:
        (logits,) = jaxpr_as_fun(ClosedJaxpr(tail, []))(output, *others)
        return logits.astype(jnp.float32)

    return activation, rest


@dataclasses.dataclass(frozen=True)
class _Trace:
    """A traced forward pass: its program, and which variable is which."""

    closed: Any
    logits: Any
    found: dict[str, Any]  # layer -> variable
    maps: frozenset[str]  # those that are feature maps


def _traced(network: Network, images: Any) -> _Trace:
    maps: list[str] = []

    def run(variables, inputs):
        outputs: dict[str, jax.Array] = {}
        with nn.intercept_methods(_recorder(outputs)):
            output = network.model.apply(variables, inputs, train=False)
        maps.extend(name for name, value in output.feature_maps.items() if value.ndim == 4)
        return output.logits, outputs | {name: output.feature_maps[name] for name in maps}

    closed, shapes = jax.make_jaxpr(run, return_shape=True)(network.variables, network.inputs(images))
    logits, found = jax.tree.unflatten(jax.tree.structure(shapes), closed.jaxpr.outvars)
    # A module that hands its input on, such as dropout at the images, has nothing of its own to be explained.
    computed = {variable for equation in closed.jaxpr.eqns for variable in equation.outvars}
    own = {name: var for name, var in found.items() if not isinstance(var, Literal) and var in computed}
    return _Trace(closed, logits, own, frozenset(maps))


def _recorder(outputs: dict[str, jax.Array]):
    """An interceptor that keeps the output `[B, h, w, c]` of every call of a module."""
    calls: dict[str, int] = {}

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(output, jax.Array) and output.ndim == 4:
            path = "/".join(context.module.path)
            calls[path] = calls.get(path, 0) + 1
            outputs[path if calls[path] == 1 else f"{path}#{calls[path]}"] = output
        return output

    return record
