"""Settings of all tests: eight simulated CPU devices, and a compilation cache so that repeated runs compile once."""

import os
import pathlib

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


import pytest  # noqa: E402  (JAX reads the environment above when it is first imported)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """A prepared data set of simulated cells: 150 labelled images and 7 unlabelled ones."""
    from input_pipeline import prepare, simulate
    from input_pipeline.dataset import open_dataset

    root = tmp_path_factory.mktemp("simulated")
    simulate.hpa(root / "raw", num_train=150, num_test=7, size=64, seed=1, workers=1)
    prepare.prepare("hpa", root / "raw", root / "prepared", workers=1)
    return open_dataset(root / "prepared")
