"""Which array of a file goes into which variable of a model, and what becomes of the rest?"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from input_pipeline.cli import UserError
from research.models import registry
from research.models.call_order import call_order
from research.models.pretrained import adapt, names
from research.models.pretrained.weight_file import WeightFile, refuse
from research.models.registry import Entry

HEAD, LOGITS = "params/head/", "head/logits"
SHOWN = 5  # mismatches in a message


@dataclasses.dataclass
class Plan:
    """How a file fills a model.

    Attributes:
      library: whose names the file has.
      sources: from our variables to arrays of the file that fit, perhaps after adaptation of the stem.
      head: why the head stays as it is, or "".
      stem: how the first convolution was adapted, or "".
      fresh: our variables that stay as they are.
      unused: arrays of the file that go nowhere, and are worth a mention.
      problems: what does not fit, in words.
    """

    library: str
    sources: dict[str, str]
    head: str = ""
    stem: str = ""
    fresh: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def match(entry: Entry, file: WeightFile, modules: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    """Finds the arrays of a model's variables.

    Args:
      modules: see `research.models.call_order`.
      shapes: of our variables by name, "params/backbone/conv1/kernel".

    Raises:
      UserError: the file belongs to another model; names the first arrays that do not fit, with both shapes.
    """
    places = {module: place for place, module in enumerate(modules)}
    order = {kind: place for place, kind in enumerate(names.KERAS_ORDER)}

    def place(name):
        owner, kind = names.owner_and_kind(name)
        return places.get(owner, len(places)), order.get(kind, len(order))

    shapes = {name: shapes[name] for name in sorted(shapes, key=place)}
    libraries = ("own",) if file.naming == "own" else names.LIBRARIES[file.naming]
    plans = [_plan(entry, library, file, modules, shapes) for library in libraries if library in (*entry.names, "own")]
    if not plans:
        raise refuse(
            file.path, f"{entry.name} is not known by the names of {' or '.join(libraries)}", "choose another model"
        )
    best = min(plans, key=lambda plan: len(plan.problems))
    if best.problems:
        raise _mismatch(entry, file, best)
    if foreign := _foreign_convolutions(entry, file, best):
        raise refuse(
            file.path,
            f"it has {len(foreign)} convolutions that {entry.name} has not, the first is {foreign[0]}",
            "set config.model.name, or --model, to the model that the file belongs to",
        )
    return best


def _mismatch(entry: Entry, file: WeightFile, plan: Plan) -> UserError:
    shown = "; ".join(plan.problems[:SHOWN])
    more = len(plan.problems) - SHOWN
    return refuse(
        file.path,
        f"it does not fit {entry.name} ({plan.library} names): {shown}" + (f"; and {more} more" if more > 0 else ""),
        "set config.model.name and the variant to what the file belongs to",
        limit=1000,
    )


def _plan(
    entry: Entry, library: str, file: WeightFile, modules: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> Plan:
    wanted = names.in_file(entry, library, modules, shapes, file)
    plan = Plan(library, {})
    _match_head(plan, file, wanted, modules, shapes)
    counts = _layer_counts(file, wanted) if library == "keras" else {}
    stem = input_modules(modules, shapes)
    for name, shape in shapes.items():
        if name.startswith(HEAD) or name.startswith("batch_stats/head/"):
            continue
        owner, kind = names.owner_and_kind(name)
        expected = adapt.stored_shape(file.naming, kind, shape)
        if wanted.get(name) not in file.arrays and any(re.search(pattern, owner) for pattern in entry.additions):
            plan.fresh.append(name)
        elif name not in wanted:
            plan.problems.append(f"{name} {shape} has no name there")
        elif wanted[name] not in file.arrays:
            plan.problems.append(f"{wanted[name]}: expected {expected}, missing")
        elif problem := counts.get(wanted[name].rpartition("/")[0]):
            plan.problems.append(problem)
        else:
            found = file.arrays[wanted[name]].shape
            arranged = adapt.arranged_shape(file.naming, found, shape)
            if arranged == shape:
                plan.sources[name] = wanted[name]
            elif owner in stem and _differs_in_channels(kind, arranged, shape):
                plan.sources[name] = wanted[name]
                plan.stem = _stem_sentence(kind, arranged, shape) or plan.stem
            else:
                plan.problems.append(f"{wanted[name]}: expected {expected}, got {found}")
    plan.problems = list(dict.fromkeys(plan.problems))
    used = set(plan.sources.values())
    plan.unused = [name for name in file.arrays if name not in used and not _silent(entry, file, name, used)]
    return plan


def _match_head(
    plan: Plan, file: WeightFile, wanted: dict[str, str], modules: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Loads the classifier if it is the only layer of the head and has the file's shape; otherwise says why not."""
    mine = {name: shape for name, shape in shapes.items() if name.partition("/")[2].startswith("head/")}
    if plan.library != "own":
        _rename_classifier(file, wanted, mine)
    found = {name: file.arrays[wanted[name]].shape for name in mine if wanted.get(name) in file.arrays}
    arranged = {name: adapt.arranged_shape(file.naming, shape, mine[name]) for name, shape in found.items()}
    if plan.library != "own" and any(names.owner_and_kind(name)[0] != LOGITS for name in mine):
        plan.head = "the head has layers that the file does not know"
    elif len(found) < len(mine):
        plan.head = "the file has no classifier" if not found else "the file's classifier lacks an array"
    elif arranged != mine:
        kernel = f"params/{LOGITS}/kernel"
        ours, theirs = mine[kernel], arranged[kernel]
        plan.head = (
            f"the file has {theirs[-1]} classes, the model {ours[-1]}"
            if ours[:-1] == theirs[:-1]
            else f"the file's classifier reads {theirs[0]} features, the model's {ours[0]}"
        )
    if plan.head:
        plan.fresh = list(mine)
    else:
        plan.sources.update({name: wanted[name] for name in mine})


def shape_in_file(
    entry: Entry, file: WeightFile, modules: Sequence[str], shapes: Mapping[str, tuple[int, ...]], name: str
) -> tuple[int, ...] | None:
    """The shape, in our layout, that a variable of ours has in a file, or None if the file has not got it."""
    for library in ("own",) if file.naming == "own" else names.LIBRARIES[file.naming]:
        if library in (*entry.names, "own"):
            wanted = names.in_file(entry, library, modules, shapes, file)
            if library != "own":
                _rename_classifier(file, wanted, {key: shape for key, shape in shapes.items() if HEAD in key})
            if wanted.get(name) in file.arrays:
                return adapt.arranged_shape(file.naming, file.arrays[wanted[name]].shape, shapes[name])
    return None


def _rename_classifier(file: WeightFile, wanted: dict[str, str], mine: Mapping[str, tuple[int, ...]]) -> None:
    """Older official files and users' models call the last layer otherwise: the one dense layer left over that fits."""
    kernel, bias = (f"params/{LOGITS}/{kind}" for kind in ("kernel", "bias"))
    if kernel not in mine or kernel not in wanted or wanted[kernel] in file.arrays:
        return
    endings = ("/0", "/1") if file.naming == "keras" else (".weight", ".bias")
    features = mine[kernel][0]
    taken = set(wanted.values())
    left = [
        name.removesuffix(endings[0])
        for name, array in file.arrays.items()
        if name.endswith(endings[0])
        and name not in taken
        and len(array.shape) == 2
        and array.shape[0 if file.naming == "keras" else 1] == features
    ]
    if len(left) == 1 and left[0] + endings[1] in file.arrays:
        wanted[kernel], wanted[bias] = left[0] + endings[0], left[0] + endings[1]


def _layer_counts(file: WeightFile, wanted: Mapping[str, str]) -> dict[str, str]:
    """Keras layers with another number of arrays than ours: what would be a scale is a bias there, or the like."""
    ours, theirs = {}, {}
    for name in set(wanted.values()):
        layer = name.rpartition("/")[0]
        ours[layer] = ours.get(layer, 0) + 1
    for name, array in file.arrays.items():
        layer = name.rpartition("/")[0]
        theirs[layer] = theirs.get(layer, 0) + (array.shape != ())  # Keras's Normalization counts what it saw
    return {
        layer: f"{layer}: expected {count} arrays, got {theirs[layer]}"
        for layer, count in ours.items()
        if theirs.get(layer, count) != count
    }


def input_modules(modules: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The modules that see the images' channels: the first convolution and a normalisation before it."""
    seen = []
    for module in modules:
        seen.append(module)
        if len(shapes.get(f"params/{module}/kernel", ())) == 4:
            break
    return seen


def _differs_in_channels(kind: str, found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if kind == "kernel":
        return len(found) == len(shape) == 4 and (*found[:2], found[3]) == (*shape[:2], shape[3]) and found[2] > 0
    return kind in ("mean", "var") and len(found) == len(shape) == 1 and found[0] > 0


def _stem_sentence(kind: str, found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    if kind != "kernel":
        return ""
    there, here = found[2], shape[2]
    how = "summed" if here == 1 else f"repeated in turn and scaled by {there}/{here}"
    return f"the {there} input channels of the file's first convolution were {how} for {here}"


def _silent(entry: Entry, file: WeightFile, name: str, used: set[str]) -> bool:
    """Arrays that nobody misses: counters, and what the family declares as ignored."""
    if name.endswith("num_batches_tracked") or any(re.search(pattern, name) for pattern in entry.ignored):
        return True
    layer = name.rpartition("/")[0]
    return file.naming == "keras" and file.arrays[name].shape == () and f"{layer}/0" in used


def _foreign_convolutions(entry: Entry, file: WeightFile, plan: Plan) -> list[str]:
    """Convolutions among the unused arrays that show that the file is of a larger network of the same family.

    What the model with its default options has does not count: it was cut off on purpose.
    """
    stages = {name.partition(".")[0] for name in plan.sources.values()}
    found = [
        name
        for name in plan.unused
        if len(file.arrays[name].shape) == 4 and (file.naming == "keras" or name.partition(".")[0] in stages)
    ]
    whole = ()
    if found and plan.library in entry.names:
        whole = {layer.partition(":")[0] for layer in entry.names[plan.library](_whole(entry.name)).values()}
    return [f"{name} {file.arrays[name].shape}" for name in found if re.split(r"[./][^./]*$", name)[0] not in whole]


@functools.cache
def _whole(entry_name: str) -> tuple[str, ...]:
    """The modules of a model with its default options, in the order of their calls."""
    return call_order(registry.create(entry_name, num_classes=1))[0]


def fill(plan: Plan, file: WeightFile, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, jnp.ndarray]:
    """The variables that the file holds, float32 in our shapes.

    Raises:
      UserError: an array is damaged, holds NaN or infinity, or a variance is negative.
    """
    return {name: jnp.asarray(_value(file, source, name, shapes[name])) for name, source in plan.sources.items()}


def _value(file: WeightFile, source: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = names.owner_and_kind(name)[1]
    values = adapt.arrange(file.naming, file.read(source), shape)
    if kind == "var":
        if (values < 0).any():
            raise refuse(file.path, f"the variances {source} are negative")
        if file.naming == "keras" and _is_input_normalization(file, source):
            values = adapt.keras_input_variance(values)
    if values.shape == shape:
        return values if values.flags.owndata else values.copy()  # never a view of the mapped file
    channels = shape[2] if kind == "kernel" else shape[0]
    change: Callable = adapt.input_channels if kind == "kernel" else adapt.input_statistics
    return change(values, channels)


def _is_input_normalization(file: WeightFile, source: str) -> bool:
    """Whether a Keras layer is a Normalization: mean, variance, and a count."""
    layer = source.rpartition("/")[0]
    return f"{layer}/2" in file.arrays and file.arrays[f"{layer}/2"].shape == ()
