"""How does a program become one StableHLO file for several platforms, and how is it read again?

The file is what `jax.export.Exported.serialize` writes: StableHLO as a portable artefact, with the weights in it. A
file for several platforms holds two lowerings of the network, one for CPU and one for accelerators, and the weights
once; whoever compiles it drops the other.
"""

import importlib.util
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.cli import UserError
from research.export.program import Program
from research.models.lowering import lowering_for

FILE = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def require() -> None:
    """Raises a UserError where the file cannot be written."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("StableHLO files need the package flatbuffers; run `pip install -e '.[latency]'`.")


def write(path: pathlib.Path, program: Program, batch: int | None, platforms: Sequence[str]) -> dict:
    """Writes the file.

    Args:
      batch: the one batch size that it takes; None for any.
      platforms: of `PLATFORMS`.

    Returns:
      What the description says of it.

    Raises:
      UserError: the network cannot be exported for any batch size.
    """
    (size,) = (batch,) if batch else jax.export.symbolic_shape("batch")
    specs = [entry.spec(size) for entry in program.inputs]
    function = jax.jit(_for_platforms(program, platforms))
    try:
        exported = jax.export.export(function, platforms=platforms)(*specs)
    except (TypeError, ValueError, NotImplementedError, jax.errors.InconclusiveDimensionOperation) as error:
        if batch:
            raise
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{program.name} cannot be exported for any batch size ({reason}); give one with --batch_size=N."
        ) from error
    path.write_bytes(exported.serialize())
    return {"platforms": list(exported.platforms), "calling_convention": exported.calling_convention_version}


def _for_platforms(program: Program, platforms: Sequence[str]) -> Callable:
    arrays = jax.tree.map(jnp.asarray, {kind: dict(flat) for kind, flat in program.arrays.items()})

    def lowered(platform):
        def function(arrays, *given):
            with lowering_for(platform):
                return program.outputs(arrays, *given)

        return function

    if tuple(platforms) == ("cpu",):
        return lambda *given: lowered("cpu")(arrays, *given)
    # The arrays are handed over, not closed over: so they stand in the file once.
    return lambda *given: jax.lax.platform_dependent(arrays, *given, cpu=lowered("cpu"), default=lowered("cuda"))


def load(path: pathlib.Path) -> Callable[[Sequence[np.ndarray]], dict[str, np.ndarray]]:
    """The function of a file, from the inputs in their order to the outputs by name; compiled for each batch size."""
    call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return lambda given: {name: np.asarray(value) for name, value in call(*given).items()}
