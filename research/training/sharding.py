"""Where arrays live: one mesh axis over all devices, batches split along it, parameters whole or split by rule.

jit with shardings replaces pmap: the program is written for the global batch, so BatchNorm, losses and metrics see all
of it without axis names, one program serves one device or many hosts, and a batch need not divide evenly.
"""

import math
import re
from collections.abc import Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def make_mesh(devices=None) -> Mesh:
    """A one-dimensional mesh over `devices` (default: all of all hosts)."""
    return Mesh(np.asarray(devices if devices is not None else jax.devices()), (AXIS,))


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
