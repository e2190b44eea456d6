"""What lies where in an HDF5 file of Keras weights? A program of its own, which `keras_files` runs with limits.

    python hdf5_listing.py FILE SPILL < names.json

The HDF5 library believes what a file says: a damaged one makes it allocate gigabytes, run in circles or crash. So it
runs here, in a process that may be ended, and the process that wants the weights maps the bytes that this one lists. On
standard output comes JSON: {"format": ..., "arrays": [[layer, shape, type, place, spilled], ...]} in the order of the
layers' weights, where `place` is a byte of FILE, or if `spilled` of SPILL, to which arrays that are kept in pieces or
compressed are copied; or {"refused": REASON}. `names.json` holds layers' names by place for files without them.
"""

import json
import math
import pathlib
import resource
import sys
from collections.abc import Iterator

import h5py
import numpy as np

HEADROOM = 512 * 2**20  # bytes beside the libraries; the structure of the largest files takes 20 MB
SECONDS = 10  # of one core; the largest files take one
MAX_ARRAYS = 20_000
MAX_DEPTH = 12  # nested models and wrappers
MAX_EXPANSION = 20  # times; float32 weights hardly compress

Found = list[tuple[str, h5py.Dataset]]  # layers and their data sets


class _Refused(ValueError):
    pass


def _limit(name: int, value: int) -> None:
    soft, hard = resource.getrlimit(name)
    smallest = min([value] + [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY])
    resource.setrlimit(name, (smallest, hard))


def _limit_resources() -> None:
    _limit(resource.RLIMIT_CPU, SECONDS)
    statistics = pathlib.Path("/proc/self/statm")
    if statistics.exists():  # on Linux
        _limit(resource.RLIMIT_AS, int(statistics.read_text().split()[0]) * resource.getpagesize() + HEADROOM)


def _member(group: h5py.Group, name: str):
    """The group or data set `name`, "a/b" walking down, or None; links that lead elsewhere are refused."""
    for part in name.split("/"):
        if not isinstance(group, h5py.Group):
            return None
        link = group.get(part, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise _Refused(f"{part} is a {type(link).__name__} to another place")
        group = group[part]
    return group


def _attribute(group: h5py.Group, name: str) -> list[str]:
    if name not in group.attrs:
        return []
    attribute = group.attrs.get_id(name)
    if math.prod(attribute.shape) * attribute.get_type().get_size() > 2**20:
        raise _Refused(f"the attribute {name} is too large")
    values = np.atleast_1d(group.attrs[name])
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values.tolist()]


def _names(group: h5py.Group, name: str) -> list[str]:
    """An attribute with names; Keras cuts long ones into `name0`, `name1`, ..."""
    names, part = _attribute(group, name), 0
    while f"{name}{part}" in group.attrs:
        names += _attribute(group, f"{name}{part}")
        part += 1
    if len(names) > MAX_ARRAYS:
        raise _Refused(f"{len(names):,} names are too many")
    return names


def _legacy(root: h5py.Group) -> Found:
    """By the attributes `layer_names` and `weight_names`; a model inside the model gives its layers' own names."""
    found = []
    for layer in _names(root, "layer_names"):
        group = _member(root, layer)
        if not isinstance(group, h5py.Group):
            raise _Refused(f"the layer {layer} is missing")
        weights = _names(group, "weight_names")
        # "block1_conv1/kernel:0" or Keras 1's "block1_conv1_W:0": before the slash is the layer, or its name in the
        # session that wrote the file. Only a model inside the model has several.
        owners = {weight.rpartition("/")[0] for weight in weights}
        for weight in weights:
            owner = weight.rpartition("/")[0].removeprefix(f"{layer}/") if len(owners) > 1 else layer
            found.append((owner, _checked(_member(group, weight), weight)))
    return found


def _layers(file: h5py.File, names: dict[str, str]) -> Found:
    """By Keras 3's groups `layers/CLASS_n/vars/i`; the attribute `name` of `vars` is the layer's name."""
    found = []
    for place, group in _variable_groups(file, "", 0):
        keys = sorted(group, key=lambda key: (len(key), key))
        if len(found) + len(keys) > MAX_ARRAYS:
            raise _Refused("it holds too many arrays")
        if keys:
            name = (_attribute(group, "name") or [names.get(place, "")])[0]
            if not name:
                raise _Refused(
                    f"{place} has no name, as in files of early Keras 3; save it as .keras or with a newer one"
                )
            for key in keys:
                found.append((name, _checked(_member(group, key), f"{place}/vars/{key}")))
    if not found:
        raise _Refused("it is an HDF5 file without Keras layers")
    return found


def _variable_groups(group: h5py.Group, place: str, depth: int) -> Iterator[tuple[str, h5py.Group]]:
    """The groups `vars` below a group with the path of their owner; not those of optimisers and random generators."""
    if depth > MAX_DEPTH:
        raise _Refused("its groups are nested too deep")
    if len(group) > MAX_ARRAYS:
        raise _Refused(f"{place} has {len(group):,} members")
    for key in group:
        member = _member(group, key)
        if not isinstance(member, h5py.Group) or key in ("optimizer", "seed_generator"):
            continue
        if key == "vars":
            yield place, member
        else:
            yield from _variable_groups(member, f"{place}/{key}" if place else key, depth + 1)


def _checked(data: object, name: str) -> h5py.Dataset:
    """A data set all of whose numbers are in this file."""
    if not isinstance(data, h5py.Dataset) or data.shape is None:
        raise _Refused(f"the array {name} is missing")
    if data.is_virtual or data.external:
        raise _Refused(f"the array {name} lies in another file")
    shape, size = data.shape, math.prod(data.shape)
    if data.chunks and math.prod(data.chunks) > max(2 * size, 2**20):
        raise _Refused(f"the array {name} {shape} is kept in chunks of {data.chunks}")
    needed, stored = size * data.dtype.itemsize, data.id.get_storage_size()
    compressed = data.id.get_create_plist().get_nfilters() > 0
    if needed > stored * (MAX_EXPANSION if compressed else 1):
        raise _Refused(f"the array {name} {shape} needs {needed:,} bytes and {stored:,} are stored")
    return data


def listing(path: str, spill: str, names: dict[str, str]) -> dict:
    """See the docstring of the file."""
    file = h5py.File(path, "r")
    kind, found = "Keras .weights.h5", None
    for root in (file, _member(file, "model_weights")):
        if isinstance(root, h5py.Group) and ("layer_names" in root.attrs or "layer_names0" in root.attrs):
            kind, found = "Keras .h5", _legacy(root)
            break
    arrays = []
    with open(spill, "wb") as target:
        for layer, data in _layers(file, names) if found is None else found:
            # HDF5 has no bfloat16: Keras writes two opaque bytes, in its newer formats with a remark.
            dtype = "bfloat16" if data.dtype == np.dtype("V2") else data.dtype.str
            place = data.id.get_offset()
            spilled = place is None
            if spilled:
                place = target.tell()
                target.write(data[()].tobytes())
            arrays.append([layer, list(data.shape), dtype, place, spilled])
    return {"format": kind, "arrays": arrays}


def main() -> None:
    """Takes the arrays' names on standard input, answers in JSON."""
    names = json.load(sys.stdin)
    _limit_resources()
    try:
        result = listing(sys.argv[1], sys.argv[2], names)
    except _Refused as error:
        result = {"refused": str(error)}
    except Exception as error:  # h5py passes on whatever the library says
        result = {"refused": f"its HDF5 structure is damaged ({error})"}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
