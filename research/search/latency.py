"""How long does a trained model take for one image, and how much memory?

Measured is the whole program from a raw image in memory to its logits, with the normalisation, one image
at a time on one thread: in ONNX Runtime where `onnxruntime` and `onnx` are installed (extra `latency`), otherwise, or
for a model with an operation that the export below does not know, in XLA. For the smallest models XLA mostly measures
its own dispatch (0.2 ms against 0.03 ms), so that figures of both are not comparable; the result says which it was.

A child process on one core measures, so that neither the threads nor the memory of a running search have a part in it.
"""

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.extend import core
from ml_collections import ConfigDict

from research.models.flops import sub_jaxprs
from research.models.lowering import lowering_for
from research.training import build, steps

RUNS, WARM_UP = 500, 50
TOLERANCE = 1e-5  # of the logits, relative to the largest if that is above 1
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NPROC": "1", "JAX_NUM_CPU_DEVICES": "1"}
OPSET, IR = 18, 9
# Primitives whose ONNX operator takes the same operands and broadcasts them as NumPy does.
_SAME = {
    "abs": "Abs", "add": "Add", "and": "And", "ceil": "Ceil", "div": "Div", "eq": "Equal", "erf": "Erf", "exp": "Exp",
    "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "log": "Log", "logistic": "Sigmoid",
    "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul", "neg": "Neg", "not": "Not", "or": "Or", "pow": "Pow",
    "sign": "Sign", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh",
}  # fmt: skip
# Those made of several operators; e is the equation, g the graph.
_COMPOSED = {
    "clamp": lambda g, e, low, x, high: g.add("Min", g.add("Max", x, low), high),
    "concatenate": lambda g, e, *values: g.add("Concat", *values, axis=e.params["dimension"]),
    "copy": lambda g, e, x: x,
    "copy_p": lambda g, e, x: x,
    "expm1": lambda g, e, x: g.add("Sub", g.add("Exp", x), g.constant(np.ones((), e.invars[0].aval.dtype))),
    "integer_pow": lambda g, e, x: g.add("Pow", x, g.constant(np.asarray(e.params["y"], e.invars[0].aval.dtype))),
    "ne": lambda g, e, x, y: g.add("Not", g.add("Equal", x, y)),
    "reduce_max": lambda g, e, x: g.add("ReduceMax", x, g.integers(e.params["axes"]), keepdims=0),
    "reduce_min": lambda g, e, x: g.add("ReduceMin", x, g.integers(e.params["axes"]), keepdims=0),
    "reduce_sum": lambda g, e, x: g.add("ReduceSum", x, g.integers(e.params["axes"]), keepdims=0),
    "reshape": lambda g, e, x: g.reshape(x, e.outvars[0].aval.shape),
    "rsqrt": lambda g, e, x: g.add("Reciprocal", g.add("Sqrt", x)),
    "square": lambda g, e, x: g.add("Mul", x, x),
    "squeeze": lambda g, e, x: g.reshape(x, e.outvars[0].aval.shape),
    "transpose": lambda g, e, x: g.transpose(x, e.params["permutation"]),
}
_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vmap_call", "remat2")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is known of one model's inference; the names are the ledger's columns.

    Attributes:
      latency_p50_ms, latency_p95_ms: median and 95th percentile over the runs, in milliseconds.
      latency_runtime: "onnxruntime 1.31.1" or "xla 0.10.2"; in brackets why not ONNX Runtime, where that is installed.
      peak_memory_bytes: arguments (variables and image), outputs and temporaries of the program that XLA compiles for
        one image on CPU; the code and the runtime themselves are left out. The same whichever runtime is timed.
    """

    latency_p50_ms: float
    latency_p95_ms: float
    latency_runtime: str
    peak_memory_bytes: int


def measure(
    models: Sequence[tuple[build.Trial, Mapping[str, Mapping[str, Any]]]], runs: int = RUNS, warm_up: int = WARM_UP
) -> list[Measured | None]:
    """Measures several models in one child process: seconds to start, seconds for each to trace and compile, its runs.

    `StopSignal.interruptible` keeps a caller answering meanwhile.

    Args:
      models: (trial, {"params": {path: array}, "batch_stats": {path: array}}) each. A model whose type is left to the
        device is measured in float32.
      runs: timed calls of each, after `warm_up` others.

    Returns:
      One result each, in order; None for those that the child process could not measure, which is logged: no search
      should end because of it.
    """
    if runs < 1:
        raise ValueError(f"a latency needs at least one run, not {runs}")
    with tempfile.TemporaryDirectory(prefix="latency-") as folder:
        jobs = [_write_job(pathlib.Path(folder, f"{number}"), *model) for number, model in enumerate(models)]
        job = {"models": jobs, "runs": runs, "warm_up": warm_up}
        pathlib.Path(folder, "jobs.json").write_text(json.dumps(job), encoding="utf-8")
        environment = os.environ | THREADS | {"JAX_PLATFORMS": "cpu"}
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
        command, root = [sys.executable, "-m", "research.search.latency", folder], pathlib.Path(__file__).parents[2]
        child = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
        if child.returncode:
            logging.warning("The latencies were not all measured: %s", child.stderr.strip()[-2000:])
        found = [pathlib.Path(folder, f"{number}.json") for number in range(len(models))]
        return [Measured(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None for file in found]


def inference(trial: build.Trial) -> Callable[[Mapping[str, Any], jax.Array], jax.Array]:
    """The measured function: (variables as for `measure`, a raw image `[1, H, W, C]`) to float32 logits `[1, K]`."""
    if trial.config.model.dtype == "auto":
        config = ConfigDict(trial.config.to_dict())
        config.model.dtype = "float32"
        trial = dataclasses.replace(trial, config=config)
    model, normalize = build.build_model(trial), build.build_normalize(trial)
    # What the words are makes no difference to the time, how many there are does.
    caption = None if trial.text is None else jnp.ones((1, trial.tokens), jnp.int32)
    return lambda variables, image: steps.eval_step(model, normalize, variables, image, caption)


def _write_job(stem: pathlib.Path, trial: build.Trial, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The files of one model: its program for XLA, its variables, and its ONNX graph if it has one."""
    function = inference(trial)
    image = trial.raw
    variables = {kind: {k: np.asarray(v) for k, v in flat.items()} for kind, flat in variables.items()}
    with lowering_for("cpu"):
        exported = jax.export.export(jax.jit(lambda *arguments: function(*arguments)), platforms=("cpu",))(
            jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), variables), image
        )
    stem.with_suffix(".xla").write_bytes(exported.serialize())
    arrays = {f"{kind}:{path}": array for kind, flat in variables.items() for path, array in flat.items()}
    np.savez(stem.with_suffix(".npz"), **arrays)
    refusal = ""
    if all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        try:
            # The plain lowering has one operation for a convolution, as ONNX has.
            with lowering_for("cuda"):
                graph = to_onnx(lambda image: function(variables, image), image)
            stem.with_suffix(".onnx").write_bytes(graph)
        except Unsupported as error:
            refusal = str(error)
    described = {"shape": image.shape, "dtype": str(image.dtype)}
    return described | {"kinds": sorted(variables), "refusal": refusal}


# The child process


def _measure_here(folder: pathlib.Path) -> None:
    """Measures what `_write_job` wrote; one file per result, so that a crash does not lose those before it."""
    if hasattr(os, "sched_setaffinity"):
        # Before JAX makes its threads, which are as many as there are cores.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    job = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
    for number, model in enumerate(job["models"]):
        result = _measure_one(folder / f"{number}", model, job["runs"], job["warm_up"])
        (folder / f"{number}.json").write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")


def _measure_one(stem: pathlib.Path, model: dict[str, Any], runs: int, warm_up: int) -> Measured:
    image = np.random.default_rng(0).integers(0, 256, model["shape"]).astype(model["dtype"])
    variables = {kind: {} for kind in model["kinds"]}
    with np.load(stem.with_suffix(".npz")) as stored:
        for name in stored.files:
            kind, _, path = name.partition(":")
            variables[kind][path] = jnp.asarray(stored[name])
    exported = jax.export.deserialize(bytearray(stem.with_suffix(".xla").read_bytes()))
    compiled = jax.jit(exported.call).lower(variables, image).compile()

    def in_xla(image):
        return np.asarray(compiled(variables, image))

    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    function, runtime, refusal = in_xla, f"xla {jax.__version__}", model["refusal"]
    if stem.with_suffix(".onnx").exists():
        in_onnx, refusal = _session(stem.with_suffix(".onnx"), image, in_xla(image))
        if in_onnx is not None:
            function, runtime = in_onnx, f"onnxruntime {importlib.metadata.version('onnxruntime')}"
    if refusal:
        runtime += f" ({refusal})"
    p50, p95 = np.quantile(times(lambda: function(image), runs, warm_up), [0.5, 0.95])
    return Measured(float(p50), float(p95), runtime, int(used))


def _session(file: pathlib.Path, image: np.ndarray, expected: np.ndarray) -> tuple[Callable | None, str]:
    """The model in ONNX Runtime on one thread, or None and why it may not be used."""
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
        difference = np.abs(session.run(None, {"image": image})[0] - expected).max() / max(1.0, np.abs(expected).max())
    except Exception as error:  # ONNX Runtime's exceptions have no common class of their own
        return None, f"ONNX Runtime refused: {' '.join(str(error).split())[:80]}"
    if not difference <= TOLERANCE:
        return None, f"ONNX Runtime's logits differ by {difference:.1e}"
    return lambda image: session.run(None, {"image": image})[0], ""


def times(call: Callable[[], Any], runs: int, warm_up: int) -> np.ndarray:
    """Milliseconds of each call, `[runs]`."""
    for _ in range(warm_up):
        call()
    times = np.empty(runs)
    for index in range(runs):
        start = time.perf_counter_ns()
        call()
        times[index] = time.perf_counter_ns() - start
    return times / 1e6


# The export to ONNX


class Unsupported(Exception):
    """The program has an operation that has no counterpart here."""


def to_onnx(function: Callable[[Any], Any], image: jax.ShapeDtypeStruct) -> bytes:
    """A function of one array to one array, as an ONNX model with the input "image" and the output "logits".

    Raises:
      Unsupported: names the operation.
    """
    import onnx
    from onnx import helper

    traced = jax.make_jaxpr(function)(image)
    graph = Graph()
    (output,) = graph.convert(traced.jaxpr, traced.consts, ["image"])
    graph.nodes.append(helper.make_node("Identity", [output], ["logits"]))
    ends = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype)), value.shape)
        for name, value in (("image", image), ("logits", traced.out_avals[0]))
    ]
    whole = helper.make_graph(graph.nodes, "model", ends[:1], ends[1:], graph.constants)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model)
    return model.SerializeToString()


class Graph:
    """Nodes of an ONNX graph under construction; a value is the name of a tensor."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._names = (f"v{number}" for number in itertools.count())

    def convert(self, jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[str]) -> list[str]:
        """Adds a program's operations; gives the names of its outputs."""
        names = dict(zip(jaxpr.constvars, map(self.constant, consts), strict=True))
        names |= dict(zip(jaxpr.invars, inputs, strict=True))

        def name_of(atom):
            literal = isinstance(atom, core.Literal)
            return self.constant(np.asarray(atom.val, atom.aval.dtype)) if literal else names[atom]

        for equation in jaxpr.eqns:
            if any(var.aval.dtype == jnp.bfloat16 for var in equation.outvars):
                raise Unsupported("ONNX Runtime has no bfloat16 on CPU")
            outputs = self._convert_one(equation, [name_of(atom) for atom in equation.invars])
            names |= dict(zip(equation.outvars, outputs, strict=True))
        return [name_of(atom) for atom in jaxpr.outvars]

    def constant(self, value: Any) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(value), next(self._names)))
        return self.constants[-1].name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = next(self._names)
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def integers(self, values: Sequence[int]) -> str:
        return self.constant(np.asarray(values, np.int64))

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        return self.add("Reshape", name, self.integers(shape))

    def transpose(self, name: str, order: Sequence[int]) -> str:
        return name if list(order) == sorted(order) else self.add("Transpose", name, perm=list(map(int, order)))

    def _convert_one(self, equation: Any, inputs: list[str]) -> list[str]:
        name, params = equation.primitive.name, equation.params
        if name in _CALLS:
            (inner,) = sub_jaxprs(params)
            consts = next((v.consts for v in params.values() if isinstance(v, core.ClosedJaxpr)), ())
            if (pool := _as_max_pool(inner)) is None:
                return self.convert(inner, consts, inputs)
            pooled = self.add("MaxPool", self.transpose(inputs[0], (0, 3, 1, 2)), **pool)
            return [self.transpose(pooled, (0, 2, 3, 1))]
        if name == "max" and any(isinstance(a, core.Literal) and np.all(a.val == 0) for a in equation.invars):
            return [self.add("Relu", inputs[int(isinstance(equation.invars[0], core.Literal))])]
        if name in _SAME:
            return [self.add(_SAME[name], *inputs)]
        if name in _COMPOSED:
            return [_COMPOSED[name](self, equation, *inputs)]
        method = getattr(self, f"_{name}", None)
        if method is None:
            raise Unsupported(f"ONNX export knows no {name}")
        return [method(equation, *inputs)]

    # One method for each primitive, named after it

    def _conv_general_dilated(self, equation, image, kernel):
        params, layout = equation.params, equation.params["dimension_numbers"]
        if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1 or len(layout.lhs_spec) != 4:
            raise Unsupported("ONNX export knows no transposed convolution")
        (top, bottom), (left, right) = params["padding"]
        outputs = self.add(
            "Conv", self.transpose(image, layout.lhs_spec), self.transpose(kernel, layout.rhs_spec),
            group=params["feature_group_count"], pads=[top, left, bottom, right],
            strides=params["window_strides"], dilations=params["rhs_dilation"],
        )  # fmt: skip
        return self.transpose(outputs, np.argsort(layout.out_spec))

    def _dot_general(self, equation, left, right):
        (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
        ranks = [len(atom.aval.shape) for atom in equation.invars]
        if ranks == [2, 2] and (*left_sum, *right_sum) == (1, 0):  # which the runtime joins with the bias
            return self.add("MatMul", left, right)
        letters = list("abcdefghijklm"[: ranks[0]]), list("nopqrstuvwxyz"[: ranks[1]])
        for one, other in zip((*left_sum, *left_batch), (*right_sum, *right_batch), strict=True):
            letters[1][other] = letters[0][one]
        batch, summed = ({letters[0][axis] for axis in axes} for axes in (left_batch, left_sum))
        free = [letter for side in letters for letter in side if letter not in batch | summed]
        result = "".join([*(letters[0][axis] for axis in left_batch), *free])
        return self.add("Einsum", left, right, equation=f"{','.join(map(''.join, letters))}->{result}")

    def _convert_element_type(self, equation, value):
        from onnx import helper

        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"])))

    def _broadcast_in_dim(self, equation, value, *_):
        before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        ones = [1] * len(after)
        for axis, size in zip(equation.params["broadcast_dimensions"], before, strict=True):
            ones[axis] = size
        value = self.reshape(value, ones) if list(before) != ones else value
        return self.add("Expand", value, self.integers(after)) if list(after) != ones else value

    def _slice(self, equation, value):
        params = equation.params
        ends = [params["start_indices"], params["limit_indices"], range(len(params["start_indices"]))]
        steps = params["strides"] or [1] * len(ends[0])
        return self.add("Slice", value, *map(self.integers, (*ends, steps)))

    def _rev(self, equation, value):
        axes = equation.params["dimensions"]
        ends = ([-1] * len(axes), [np.iinfo(np.int64).min] * len(axes), axes, [-1] * len(axes))
        return self.add("Slice", value, *map(self.integers, ends))

    def _pad(self, equation, value, filler):
        low, high, interior = zip(*equation.params["padding_config"], strict=True)
        if any(interior):
            raise Unsupported("ONNX export knows no pad between elements")
        return self.add("Pad", value, self.integers((*low, *high)), filler)

    def _select_n(self, equation, which, *cases):
        if len(cases) != 2 or equation.invars[0].aval.dtype != np.bool_:
            raise Unsupported("ONNX export knows no select_n of integers")
        return self.add("Where", which, cases[1], cases[0])


def _as_max_pool(jaxpr: core.Jaxpr) -> dict[str, list[int]] | None:
    """The window of a program that takes the largest of all shifted slices of an image, as pooling.py does, or None."""
    slices = [equation.params for equation in jaxpr.eqns if equation.primitive.name == "slice"]
    largest = [equation for equation in jaxpr.eqns if equation.primitive.name == "max"]
    if not slices or len(jaxpr.invars) != 1 or len(jaxpr.eqns) != len(slices) + len(largest):
        return None
    used = [atom for equation in largest for atom in equation.invars]
    starts = {params["start_indices"] for params in slices}
    strides = {tuple(params["strides"] or (1,) * 4) for params in slices}
    rows, columns = (1 + max(start[axis] for start in starts) for axis in (1, 2))
    every = {(0, row, column, 0) for row in range(rows) for column in range(columns)}
    # A tree: each slice and each maximum but the last is used once.
    tree = len(used) == len({id(atom) for atom in used}) == len(jaxpr.eqns) - 1
    if starts != every or len(slices) != len(every) or len(strides) != 1 or not tree:
        return None
    return {"kernel_shape": [rows, columns], "strides": list(*strides)[1:3]}


if __name__ == "__main__":
    _measure_here(pathlib.Path(sys.argv[1]))
