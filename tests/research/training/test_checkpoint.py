"""Checkpoints: exact, complete or absent, verified, and refused when they belong to another model."""

import random
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.cli import UserError
from research.training.checkpoint import Checkpoints, damage


def tree(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {"params": {"conv": jnp.asarray(rng.normal(size=(7, 5)))}, "step": jnp.asarray(seed, jnp.int32)}


def test_round_trip_and_pruning(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (3, 5, 9, 11):
        checkpoints.save(step, tree(step), {"phase": 1}, best_step=3)
    assert checkpoints.steps() == [3, 9, 11]
    assert checkpoints.latest() == 11 and checkpoints.meta(11)["phase"] == 1
    restored = checkpoints.restore(11, tree(0))
    np.testing.assert_array_equal(restored["params"]["conv"], tree(11)["params"]["conv"])
    checkpoints.save(11, tree(12), {"phase": 2}, best_step=3)
    assert checkpoints.meta(11)["phase"] == 2 and checkpoints.steps() == [3, 9, 11]


def test_every_damage_is_noticed(tmp_path):
    """Flipped bits, truncation, deletion and addition anywhere in the folder: none is trusted."""
    rng = random.Random(1)
    for trial in range(20):
        checkpoints = Checkpoints(tmp_path / str(trial))
        checkpoints.save(1, tree(1), {}, best_step=0)
        checkpoints.save(2, tree(2), {}, best_step=0)
        folder = checkpoints.folder / "2"
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
        file = rng.choice(files)
        kind = trial % 4
        data = bytearray(file.read_bytes())
        if kind == 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
        elif kind == 1:
            file.write_bytes(data[: rng.randrange(len(data))])
        elif kind == 2:
            file.unlink()
        else:
            (file.parent / "stray").write_bytes(b"x")
        # A flipped bit in the manifest's own white space or key order changes nothing that is checked.
        harmless = file.name == "manifest.json" and not damage(folder)
        assert checkpoints.latest() == (2 if harmless else 1)


def test_all_damaged_is_an_error_and_another_model_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path / "a")
    checkpoints.save(1, tree(1), {}, best_step=0)
    with pytest.raises(UserError, match="another model: params/conv"):
        checkpoints.restore(1, {"params": {"conv": jnp.zeros((7, 4))}, "step": jnp.zeros((), jnp.int32)})
    (checkpoints.folder / "1" / "meta.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        checkpoints.latest()


def test_left_overs_of_a_killed_save_are_removed(tmp_path):
    Checkpoints(tmp_path).save(4, tree(4), {}, best_step=0)
    (tmp_path / ".tmp.5").mkdir()
    assert Checkpoints(tmp_path).latest() == 4 and not (tmp_path / ".tmp.5").exists()


def test_a_disk_that_refuses_in_the_middle_is_one_sentence(tmp_path):
    """Nothing of the tracebacks of orbax's threads; what was there before stays. No file may be larger than 20 kB."""
    code = """
import resource, sys
import numpy as np
from input_pipeline.cli import UserError
from research.training.checkpoint import Checkpoints
kept = Checkpoints(sys.argv[1])
kept.save(1, {"a": np.zeros(3)}, {}, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    kept.save(2, {"a": np.random.default_rng(0).normal(size=(9, 10_000)), "b": np.ones(10)}, {}, 2)
except UserError as error:
    print(error, kept.steps())
"""
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout.startswith("The checkpoint could not be written to") and result.stdout.endswith("[1]\n")
