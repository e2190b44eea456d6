"""What is in a checkpoint of this project?

A run folder holds `checkpoints/TRIAL/STEP/`, see research/training/checkpoint.py. Where a folder leaves the choice, the
best step by the run's selection metric is taken. Averaged weights go before the raw ones, as in evaluation.
"""

import functools
import json
import pathlib

import numpy as np

from input_pipeline.cli import UserError
from research.models.pretrained.weight_file import Array, WeightFile, checked_shape, refuse

_META = "meta.json"


def read(folder: pathlib.Path) -> WeightFile:
    """Reads the list of arrays of a run folder, a trial's checkpoints or one step, and checks its checksums.

    Raises:
      UserError: there is no checkpoint, several trials have one, or it is damaged.
    """
    from research.training.checkpoint import damage

    step = _step_folder(folder)
    if problem := damage(step):
        raise refuse(step, f"the checkpoint is damaged ({problem})", "choose another step or train again")
    try:
        shapes = json.loads((step / _META).read_text(encoding="utf-8"))["shapes"]
        prefix = "ema/" if any(name.startswith("ema/params/") for name in shapes) else ""
        stored = {_name(name[len(prefix) :]): name for name in shapes if name.startswith(_collections(prefix))}
        whole = functools.cache(lambda: _restore(step, list(stored.values())))
        arrays = {
            name: Array(checked_shape(shapes[key][0]), np.dtype(shapes[key][1]), _reader(whole, key))
            for name, key in stored.items()
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise refuse(step, f"the checkpoint is damaged ({error})", "choose another step or train again") from error
    return WeightFile(step, "checkpoint" + (" (averaged weights)" if prefix else ""), "own", arrays, _metadata(step))


def _collections(prefix: str) -> tuple[str, str]:
    return f"{prefix}params/", f"{prefix}batch_stats/"


def _name(stored: str) -> str:
    """ "params/backbone.conv1.kernel", as a state stands in a checkpoint, to "params/backbone/conv1/kernel"."""
    collection, _, path = stored.partition("/")
    return f"{collection}/{path.replace('.', '/')}"


def _reader(whole, key):
    return lambda: whole()[key]


def _step_folder(folder: pathlib.Path) -> pathlib.Path:
    if (folder / _META).is_file():
        return folder.absolute()
    steps = sorted((int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / _META).is_file()), reverse=True)
    if steps:
        return (folder / str(_best(folder, steps))).absolute()
    trials = sorted(p for p in (folder / "checkpoints").glob("*") if p.is_dir())
    if len(trials) > 1:
        raise UserError(
            f"the run {folder} has the checkpoints of {len(trials)} trials; choose one, such as {trials[0]}."
        )
    if not trials:
        raise UserError(f"the folder {folder} holds no checkpoint; choose a weight file, or the folder of a run.")
    return _step_folder(trials[0])


def _best(folder: pathlib.Path, steps: list[int]) -> int:
    """The step that the newest checkpoint calls the best, or the newest."""
    try:
        meta = json.loads((folder / str(steps[0]) / _META).read_text(encoding="utf-8"))
        best = int(meta["controls"]["best_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return steps[0]
    return best if best in steps else steps[0]


def _metadata(step: pathlib.Path) -> dict[str, str]:
    """Model, variant, options and preprocessing of the run that a checkpoint lies in; what is known of them."""
    run, trial = step.parents[2], step.parent.name
    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        model, data = config["model"], config["data"]
        found = {"model": str(model["name"]), "variant": str(model.get("variant", ""))}
        found["options"] = json.dumps(dict(model.get("options", {})))
        kind = {"auto": "fixed"}.get(data["normalize"], data["normalize"])
        if kind in ("fixed", "raw", "caffe"):
            numbers = {name: np.atleast_1d(data[name]).tolist() for name in ("mean", "std")} if kind == "fixed" else {}
            found["preprocessing"] = json.dumps({"kind": kind, **numbers})
        if (run / "weights.json").exists():  # the trial began with pretrained weights
            record = json.loads((run / "weights.json").read_text(encoding="utf-8")).get(trial, {})
            found["variant"] = str(record.get("variant", found["variant"]))
            if data["normalize"] == "auto" and record.get("preprocessing"):
                found["preprocessing"] = json.dumps(record["preprocessing"])
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}


def _restore(step: pathlib.Path, keys: list[str]) -> dict[str, np.ndarray]:
    """Reads some arrays of a checkpoint; the optimiser's state, twice as large, stays on the disk."""
    import jax
    import orbax.checkpoint as ocp
    from flax.traverse_util import flatten_dict, unflatten_dict

    item = unflatten_dict({tuple(key.split("/")): 0 for key in keys})
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(
                step / "state", ocp.args.PyTreeRestore(item, restore_args=arguments, partial_restore=True)
            )
    except (ValueError, KeyError, OSError) as error:
        raise refuse(step, f"the checkpoint is damaged ({error})", "choose another step or train again") from error
    return {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(tree).items()}
