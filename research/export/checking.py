"""Does an exported file say what the run's network says, on real examples of its data set?"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from input_pipeline.cli import UserError, progress
from input_pipeline.loader import eval_batches
from research.evaluation import predictions
from research.export.program import LOGITS, PROBABILITIES, Program
from research.training import inference
from research.training.signals import StopSignal

# Of the probabilities. A network in int8 rounds each activation: what lies on an edge falls by the last bit of a float.
TOLERANCE, TOLERANCE_INT8 = 1e-4, 1e-2
ROLES = ("test", "validation", "train")
_BATCH, _ODD = 32, 3
_SAME = 0.9  # of the decisions that a run has saved, at least

Call = Callable[[Sequence[np.ndarray]], dict[str, np.ndarray]]


@dataclasses.dataclass
class Agreement:
    """How far a file agrees with the network.

    Attributes:
      examples: that both have seen.
      max_difference: largest absolute difference of a probability.
      same: share of equal decisions: the class, all labels of an example, or the class of a pixel.
      logits: largest absolute difference of a logit over the largest logit, or over 1 if that is larger. Probabilities
        of a network that is sure of nothing are close together whatever its logits are.
    """

    examples: int = 0
    max_difference: float = 0.0
    same: float = 0.0
    logits: float = 0.0

    def add(self, program: Program, found: np.ndarray, expected: np.ndarray) -> None:
        """Takes in the probabilities of a batch."""
        # A NaN stays: np.maximum, unlike max, hands it on.
        self.max_difference = float(np.maximum(self.max_difference, np.abs(found - expected).max()))
        equal = program.decisions(np.nan_to_num(found)) == program.decisions(expected)
        count, total = len(found), self.examples
        mean = equal.reshape(count, -1).all(axis=1) if program.task != "segmentation" else equal
        self.same = float((self.same * total + mean.mean() * count) / (total + count))
        self.examples += count

    def add_logits(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Takes in the logits of a batch."""
        self.logits = float(np.maximum(self.logits, np.abs(found - expected).max() / max(1.0, np.abs(expected).max())))

    def report(self) -> dict[str, float | int]:
        """For JSON."""
        found = {"examples": self.examples, "max_difference": self.max_difference, "same_decisions": self.same}
        return found | {"max_logit_difference": self.logits}


def tolerance(program: Program) -> float:
    """Largest difference of a probability that is let through."""
    return TOLERANCE_INT8 if program.is_int8 else TOLERANCE


def examples(program: Program, count: int) -> tuple[str, np.ndarray]:
    """The role that is checked on, and `count` of its examples, spread evenly over it, or all."""
    dataset = program.trial.dataset
    role = next(role for role in ROLES if len(dataset.indices(role)))
    own = dataset.indices(role)
    return role, own[np.unique(np.linspace(0, len(own) - 1, min(count, len(own))).round().astype(int))]


def compare(
    program: Program,
    calls: Mapping[str, Call],
    batch: int | None,
    role: str,
    indices: np.ndarray,
    mesh,
    stop: StopSignal,
) -> tuple[dict[str, Agreement], Agreement | None]:
    """Compares files with the network, and the network with the predictions that the run has saved.

    Args:
      calls: by file; from the inputs to the outputs.
      batch: the size that the files take; None for any, of which 3 and 32 are tried.
      role, indices: as `examples` gives them.

    Returns:
      By file how far it agrees; how far the saved predictions do, None without any.

    Raises:
      UserError: the saved predictions are not those of this network.
    """
    found = {name: Agreement() for name in calls}
    reference, kept = jax.jit(program.logits), []
    loader = inference.loader_arguments(program.trial, mesh)
    batches = eval_batches(**loader, indices=indices, batch_size=_BATCH)
    total = -(-len(indices) // _BATCH)
    for number, part in enumerate(progress(batches, total, "Checking, batches")):
        stop.check()
        given, valid = program.feed(part), np.asarray(part["valid"])
        logits = np.asarray(reference(program.arrays, *given), np.float64)[valid]
        expected = program.probabilities(logits)
        for name, call in calls.items():
            own = _in_batches(call, given, batch, _ODD if number == 0 else 0)
            found[name].add(program, own[PROBABILITIES][valid], expected)
            found[name].add_logits(own[LOGITS][valid], logits)
        if program.task != "segmentation":
            kept.append(expected)
    return found, _saved(program, role, indices, np.concatenate(kept)) if kept else None


def _in_batches(call: Call, given: Sequence[np.ndarray], batch: int | None, odd: int) -> dict[str, np.ndarray]:
    """Outputs of a batch of 32; with `odd` those of its first examples come from a batch of that size."""
    if batch is None:
        parts = [call(given)]
        if odd:
            parts = [call([value[:odd] for value in given]), {name: value[odd:] for name, value in parts[0].items()}]
    else:
        # The last example fills the last batch up.
        rows = [np.minimum(np.arange(start, start + batch), _BATCH - 1) for start in range(0, _BATCH, batch)]
        parts = [call([value[own] for value in given]) for own in rows]
    return {name: np.concatenate([part[name] for part in parts])[:_BATCH] for name in parts[0]}


def _saved(program: Program, role: str, indices: np.ndarray, expected: np.ndarray) -> Agreement | None:
    file = program.run.path / "predictions" / f"{program.name}_{role}.csv"
    if not file.exists():
        return None
    saved = predictions.read(file)
    place = {name: row for row, name in enumerate(saved.ids)}
    ids = [str(name) for name in program.trial.dataset.ids[indices]]
    if saved.class_names != program.trial.dataset.class_names or not all(name in place for name in ids):
        raise UserError(f"{file} is of other classes or examples than the data set; run research.main again.")
    agreement = Agreement()
    agreement.add(program, program.probabilities(saved.logits[[place[name] for name in ids]]), expected)
    if agreement.same < _SAME:
        raise UserError(
            f"only {agreement.same:.0%} of the decisions in {file} are those of the checkpoint of {program.name}, so "
            "one of them is not of this run; restore it."
        )
    return agreement
