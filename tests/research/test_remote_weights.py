"""Do weights come from an object store as they lie there?"""

import os
import pathlib

import pytest

from input_pipeline.cli import UserError
from research.remote import mirror, weights
from tests.research.memory_store import read, state, write


def test_weights_of_a_run_and_of_a_file(tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    url = f"file://{tmp_path}/store"
    monkeypatch.setattr(weights, "PART_BYTES", 10)
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))
    with mirror.local(f"{url}/runs/x") as folder:
        write(folder, state(1))
    run = pathlib.Path(weights.local_copy(f"{url}/runs/x"))
    assert read(run) == state(1)
    trial = pathlib.Path(weights.local_copy(f"{url}/runs/x/checkpoints/a/"))
    assert trial == run / "checkpoints" / "a" and read(trial / "1")["x"].startswith("checkpoint of step 1")
    with mirror.local(f"{url}/runs/x") as folder:
        write(folder, state(2))
    assert read(pathlib.Path(weights.local_copy(f"{url}/runs/x"))) == state(2)
    (tmp_path / "store" / "w.safetensors").write_bytes(b"weights of 25 bytes, old.")
    path = pathlib.Path(weights.local_copy(f"{url}/w.safetensors"))
    assert path.name == "w.safetensors" and path.read_bytes() == b"weights of 25 bytes, old."
    assert weights.local_copy(f"{url}/w.safetensors") == str(path)
    os.utime(tmp_path / "store" / "w.safetensors", (1, 1))
    (tmp_path / "store" / "w.safetensors").write_bytes(b"weights of 25 bytes, new.")
    assert pathlib.Path(weights.local_copy(f"{url}/w.safetensors")).read_bytes() == b"weights of 25 bytes, new."
    assert weights.local_copy("weights/{name}.h5") == "weights/{name}.h5"
    for wrong in (f"{url}/none", f"{url}/runs/y/checkpoints/a"):
        with pytest.raises(UserError, match="neither a file nor a run"):
            weights.local_copy(wrong)
