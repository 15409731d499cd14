"""Programs are kept between runs, also after a run that was killed while it kept one."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import jax
from mnv4_jax.runtime import compilation_cache
compilation_cache.enable()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x + 1)(1)
"""


def _run(cache, **variables):
    env = os.environ | {"MNV4_CACHE": str(cache)} | variables
    del env["JAX_COMPILATION_CACHE_DIR"]
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120)


def test_a_half_written_entry_does_not_end_the_cache(tmp_path):
    folder = tmp_path / "xla"
    folder.mkdir()
    (folder / "jit_half-0-cache").write_bytes(b"written just before the kill")
    done = _run(tmp_path)
    assert "Error writing" not in done.stderr
    entries = {file.name.removesuffix("-cache") for file in folder.glob("*-cache")}
    assert entries
    assert entries == {file.name.removesuffix("-atime") for file in folder.glob("*-atime")}


TWO_PROGRAMS = f"{SCRIPT}\njax.jit(lambda x: x + 2)(1)\nprint(jax.jit(lambda x: x + 3)(1))"


@pytest.mark.parametrize("variable", ["HOME", "MNV4_CACHE", "JAX_COMPILATION_CACHE_DIR"])
def test_where_nothing_can_be_written_one_line_says_so(tmp_path, variable):
    """Below a file, where root cannot write either."""
    (tmp_path / "file").write_text("")
    names = ("MNV4_CACHE", "JAX_COMPILATION_CACHE_DIR", "HOME")
    env = {k: v for k, v in os.environ.items() if k not in names}
    env |= {"HOME": str(tmp_path), variable: str(tmp_path / "file" / "x")}
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", TWO_PROGRAMS],
        env=env, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == "4\n"
    (line,) = done.stderr.splitlines()
    named = "JAX_COMPILATION_CACHE_DIR" if variable.startswith("JAX") else "MNV4_CACHE"
    assert f"cannot be written to (Not a directory); set {named} to a folder" in line


def test_an_unbounded_cache_keeps_its_entries(tmp_path):
    folder = tmp_path / "xla"
    _run(tmp_path, JAX_COMPILATION_CACHE_MAX_SIZE="-1")
    times = {file.stat().st_mtime_ns for file in folder.glob("*-cache")}
    assert times
    _run(tmp_path, JAX_COMPILATION_CACHE_MAX_SIZE="-1")
    assert {file.stat().st_mtime_ns for file in folder.glob("*-cache")} == times
