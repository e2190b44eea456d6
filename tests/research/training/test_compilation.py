"""Is the compilation cache put where it can be written, and nowhere else?"""

import jax
import pytest

from research.training import compilation


@pytest.fixture
def unset():
    """No cache folder during the test."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def test_the_users_cache_folder_is_used(unset, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compilation.keep_programs()
    assert folder.is_dir() and folder.parent == tmp_path / "research-jax"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert compilation.keep_programs() == folder


def test_a_folder_that_is_set_already_stays(unset, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert compilation.keep_programs() == tmp_path / "own"


def test_without_a_place_to_write_nothing_is_kept(unset, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compilation.keep_programs() is None
    assert jax.config.jax_compilation_cache_dir is None
