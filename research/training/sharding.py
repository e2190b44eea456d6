"""Where arrays live: one mesh axis over all devices, batches split along it, parameters whole or split by rule.

jit with shardings replaces pmap: the program is written for the global batch, so BatchNorm, losses and metrics see all
of it without axis names, one program serves one device or many hosts, and a batch need not divide evenly.
"""

import math
import re
from collections.abc import Iterable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.training import cluster

AXIS = "data"


def make_mesh(devices=None) -> Mesh:
    """A one-dimensional mesh over `devices` (default: all of all hosts, those of a host side by side)."""
    if devices is None:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(devices), (AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Rows split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def rows_for(mesh: Mesh, batch_size: int) -> int:
    """`batch_size` rounded up to a multiple of the devices: what is transferred; the step cuts the padding off."""
    return math.ceil(batch_size / mesh.size) * mesh.size


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Moves this host's rows `[b, ...]` of a batch to its devices; the result is global `[B, ...]`, without ids."""
    sharding = over_batch(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for name, value in batch.items()
        if name != "id"
    }


def place(tree, where):
    """Puts arrays, of which every process has the whole, on the devices.

    Args:
      where: a sharding, or one for each array; already global arrays are moved where they are not there yet.
    """
    if cluster.count() == 1:
        return jax.device_put(tree, where)
    if isinstance(where, NamedSharding):
        return jax.tree.map(lambda leaf: _global(leaf, where), tree)
    return jax.tree.map(_global, tree, where)


def _global(leaf, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            return leaf
        return jax.jit(lambda array: array, out_shardings=sharding)(leaf)
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def to_host(leaf) -> np.ndarray:
    """The whole array on every host; all processes must ask for it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def from_first(value: np.ndarray) -> np.ndarray:
    """The array of process 0, bit for bit, in all processes; the others give one of the same shape and type."""
    if cluster.count() == 1:
        return value
    # As bytes: the sum behind the broadcast would make 0.0 of -0.0.
    value = np.asarray(value)
    sent = multihost_utils.broadcast_one_to_all(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    return np.asarray(sent).view(value.dtype).reshape(value.shape)


def spec_of(path: str, shape: tuple[int, ...], rules: Iterable[str], devices: int) -> PartitionSpec:
    """Splits the largest dimension that `devices` divides, if a rule (regular expression) matches `path`."""
    if any(re.search(rule, path) for rule in rules):
        for axis in sorted(range(len(shape)), key=lambda a: -shape[a]):
            if shape[axis] >= devices and shape[axis] % devices == 0:
                return PartitionSpec(*(AXIS if a == axis else None for a in range(len(shape))))
    return PartitionSpec()


def shardings(tree, mesh: Mesh, rules: Iterable[str]):
    """NamedShardings of a tree whose arrays stand under keys that are parameter paths (also optax states)."""
    rules = tuple(rules)

    def one(key_path, leaf) -> NamedSharding:
        name = "/".join(str(k.key) for k in key_path if isinstance(k, jax.tree_util.DictKey))
        return NamedSharding(mesh, spec_of(name, tuple(leaf.shape), rules, mesh.size))

    return jax.tree_util.tree_map_with_path(one, tree)
