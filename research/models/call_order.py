"""Which modules of a network own variables, in the order in which a forward pass calls them?"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict


@functools.lru_cache(maxsize=16)
def call_order(
    model: nn.Module, image_size: int = 224, channels: int = 3
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """(paths of the modules, {path of a module with parameters: its parameter paths}), both in the order of the calls.

    The forward pass on `[1, image_size, image_size, channels]` is traced, nothing is computed; 1.5 s for resnet50.
    Paths look like "backbone/layer1_0/conv1" and "backbone/layer1_0/conv1/kernel".
    """
    order: dict[str, None] = {}

    def record(call, args, kwargs, context):
        order.setdefault("/".join(context.module.path))
        return call(*args, **kwargs)

    def trace():
        inputs = {
            "image": jnp.zeros((1, image_size, image_size, channels)),
            "caption": jnp.zeros((1, 1), jnp.int32),
        }
        with nn.intercept_methods(record):
            return model.init({"params": jax.random.key(0)}, inputs, train=False)

    parameters: dict[str, list[str]] = {}
    owners = set()
    for collection, tree in jax.eval_shape(trace).items():
        for path in flatten_dict(tree, sep="/"):
            owner = path.rpartition("/")[0]
            owners.add(owner)
            if collection == "params":
                parameters.setdefault(owner, []).append(path)
    modules = tuple(module for module in order if module in owners)
    return modules, {module: tuple(parameters[module]) for module in modules if module in parameters}
