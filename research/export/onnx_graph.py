"""How does a program become an ONNX file with a batch size of its own choice, and how is it read again?

`research.search.latency` knows the operator of each primitive. Here a graph learns what a symbolic size is, so that one
file takes batches of any size, and the few primitives that a whole program has and a network alone has not.
"""

import importlib.util
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.cli import UserError
from research.export.program import Program
from research.models.lowering import lowering_for
from research.search import latency

FILE = "model.onnx"
_WHOLE = np.iinfo(np.int64).max  # the end of a slice that takes all there is


def require() -> None:
    """Raises a UserError where the file cannot be written or checked."""
    if missing := [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise UserError(f"ONNX files need the package {missing[0]}; run `pip install -e '.[latency]'`.")


def write(path: pathlib.Path, program: Program, batch: int | None, metadata: Mapping[str, Any]) -> dict:
    """Writes the file, checked by `onnx.checker`.

    Args:
      batch: the one batch size that it takes; None for any.
      metadata: stands in the file as JSON, under "description".

    Returns:
      What the description says of it.

    Raises:
      UserError: the network has an operation without a counterpart, or cannot be exported for any batch size.
    """
    (size,) = (batch,) if batch else jax.export.symbolic_shape("batch")
    arrays = jax.tree.map(jnp.asarray, {kind: dict(flat) for kind, flat in program.arrays.items()})
    try:
        # The plain lowering has one operation for a convolution, as ONNX has.
        with lowering_for("cuda"):
            content = to_onnx(
                lambda *given: program.outputs(arrays, *given),
                {entry.name: entry.spec(size) for entry in program.inputs},
                metadata,
            )
    except (latency.Unsupported, jax.errors.InconclusiveDimensionOperation) as error:
        raise UserError(
            f"{program.name} has no ONNX form here ({' '.join(str(error).split())[:120]}); export it with "
            "--format=stablehlo, or convert that with jax2onnx, in an environment of its own because it pins an older "
            "orbax (`pip install jax2onnx==0.17.1`)."
        ) from error
    path.write_bytes(content)
    return {"opset": latency.OPSET, "ir_version": latency.IR}


def load(path: pathlib.Path, names: Sequence[str], threads: int = 0) -> Callable:
    """The function of a file in ONNX Runtime on CPU, from the inputs in their order to the outputs by name.

    Args:
      names: of the inputs.
      threads: 0 for as many as there are cores.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    return lambda given: dict(zip(outputs, session.run(None, dict(zip(names, given, strict=True))), strict=True))


def to_onnx(
    function: Callable[..., dict[str, Any]],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    metadata: Mapping[str, Any] | None = None,
) -> bytes:
    """A function of arrays to a dict of arrays as an ONNX model; sizes may be one symbol of `jax.export`.

    Raises:
      Unsupported: names the operation.
    """
    import onnx
    from onnx import helper

    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*inputs.values())
    graph = Graph(inputs)
    found = graph.convert(traced.jaxpr, traced.consts, list(inputs))
    names = sorted(shapes)  # the order in which JAX flattens a dict
    graph.nodes += [helper.make_node("Identity", [own], [name]) for own, name in zip(found, names, strict=True)]

    def end(name, value):
        sizes = ["batch" if jax.export.is_symbolic_dim(size) else size for size in value.shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype)), sizes)

    ends = [end(*item) for item in inputs.items()], [end(name, shapes[name]) for name in names]
    nodes, constants = _used(graph, names)
    whole = helper.make_graph(nodes, "model", *ends, constants)
    opsets = [helper.make_opsetid("", latency.OPSET)]
    model = helper.make_model(whole, opset_imports=opsets, ir_version=latency.IR, producer_name="research")
    helper.set_model_props(model, {"description": json.dumps(metadata)} if metadata else {})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _used(graph: "Graph", outputs: Sequence[str]) -> tuple[list, list]:
    """The nodes and constants that outputs depend on; a model also computes feature maps that nobody asks for here."""
    wanted, nodes = set(outputs), []
    for node in reversed(graph.nodes):
        if wanted.intersection(node.output):
            nodes.append(node)
            wanted.update(node.input)
    return nodes[::-1], [constant for constant in graph.constants if constant.name in wanted]


class Graph(latency.Graph):
    """A graph whose sizes may depend on the batch; the batch is the first size of the first input."""

    def __init__(self, inputs: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        super().__init__()
        (self._first, spec), *_ = inputs.items()
        self._symbol, self._batch = spec.shape[0], ""

    def integers(self, values: Sequence[Any]) -> str:
        """As the base class, where a value is the batch as a value of the graph."""
        if not any(map(jax.export.is_symbolic_dim, values)):
            return super().integers(values)
        return self.add("Concat", *(self._size(value) for value in values), axis=0)

    def _size(self, value: Any) -> str:
        if not jax.export.is_symbolic_dim(value):
            return super().integers([value])
        if value != self._symbol:
            raise latency.Unsupported(f"ONNX export knows no size {value}")
        if not self._batch:
            self._batch = self.add("Shape", self._first, start=0, end=1)
        return self._batch

    def reshape(self, name: str, shape: Sequence[Any]) -> str:
        """ONNX works one size out by itself."""
        symbolic = [jax.export.is_symbolic_dim(size) for size in shape]
        if sum(symbolic) == 1:
            shape = [-1 if own else size for own, size in zip(symbolic, shape, strict=True)]
        return super().reshape(name, shape)

    def _broadcast_in_dim(self, equation, value, *_):
        before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        ones = [1] * len(after)
        for axis, size in zip(equation.params["broadcast_dimensions"], before, strict=True):
            ones[axis] = size
        value = self.reshape(value, ones) if list(before) != ones else value
        # Expanding to 1 leaves a size as it is.
        wanted = [1 if own == size else size for own, size in zip(ones, after, strict=True)]
        return self.add("Expand", value, self.integers(wanted)) if any(size != 1 for size in wanted) else value

    def _slice(self, equation, value):
        params, sizes = equation.params, equation.invars[0].aval.shape
        limits = [_WHOLE if own == size else own for own, size in zip(params["limit_indices"], sizes, strict=True)]
        steps = params["strides"] or [1] * len(sizes)
        ends = (params["start_indices"], limits, range(len(sizes)), steps)
        return self.add("Slice", value, *map(self.integers, ends))

    def _iota(self, equation):
        shape, axis = equation.params["shape"], equation.params["dimension"]
        if any(map(jax.export.is_symbolic_dim, shape)):
            raise latency.Unsupported("ONNX export knows no iota over the batch")
        along = [size if place == axis else 1 for place, size in enumerate(shape)]
        numbers = np.arange(shape[axis], dtype=equation.params["dtype"]).reshape(along)
        return self.constant(np.broadcast_to(numbers, shape))

    def _stop_gradient(self, equation, value):
        return value

    def _argmax(self, equation, value):
        (axis,) = equation.params["axes"]
        found = self.add("ArgMax", value, axis=axis, keepdims=0)
        return self._cast(found, equation.params["index_dtype"])

    def _reduce_or(self, equation, value):
        found = self.add("ReduceMax", self._cast(value, np.int32), self.integers(equation.params["axes"]), keepdims=0)
        return self._cast(found, np.bool_)

    def _gather(self, equation, table, indices):
        """Whole slices along one axis, as an embedding takes its rows; a number outside takes the nearest slice."""
        params, numbers = equation.params, equation.params["dimension_numbers"]
        (shape, given), type_ = (v.aval.shape for v in equation.invars), equation.invars[1].aval.dtype
        axis = numbers.start_index_map[0]
        taken = range(axis, axis + len(given) - 1)  # the axes of the result that are those of the indices
        rest = tuple(place for place in range(len(equation.outvars[0].aval.shape)) if place not in taken)
        whole = (*shape[:axis], 1, *shape[axis + 1 :])
        one = numbers.start_index_map == numbers.collapsed_slice_dims == (axis,) and numbers.offset_dims == rest
        if not one or tuple(params["slice_sizes"]) != whole or given[-1] != 1 or numbers.operand_batching_dims:
            raise latency.Unsupported("ONNX export knows no gather but of whole slices along one axis")
        low, high = (self.constant(np.asarray(number, type_)) for number in (0, shape[axis] - 1))
        inside = self.add("Min", self.add("Max", indices, low), high)
        return self.add("Gather", table, self.reshape(inside, given[:-1]), axis=axis)

    def _cast(self, value: str, dtype: Any) -> str:
        from onnx import helper

        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
