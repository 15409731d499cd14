"""Keeps XLA programs on disk between runs: compiling the step costs more than a small epoch."""

import os
import pathlib
import sys

import jax

from input_pipeline import cache
from mnv4_jax.runtime.line_file import in_bucket

_MAX_BYTES = 1 << 30
_MIN_COMPILE_S = 0.05  # reading a small program takes 0.01 s


def enable() -> None:
    """Turns on JAX's persistent cache, in JAX_COMPILATION_CACHE_DIR or else under MNV4_CACHE
    (~/.cache/mnv4_jax). Its size is bounded: the least recently used programs go first. If the
    folder is not writable, prints one line and uses no cache.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache.root() / "xla"))
    if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
        jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_S)
    folder = jax.config.jax_compilation_cache_dir
    if not in_bucket(folder) and (why := cache.why_not_writable(folder)):
        # Otherwise JAX would warn at every program that it compiles.
        jax.config.update("jax_enable_compilation_cache", False)
        given = "JAX_COMPILATION_CACHE_DIR" in os.environ
        variable = "JAX_COMPILATION_CACHE_DIR" if given else "MNV4_CACHE"
        print(
            f"no cache of compiled programs: {folder} cannot be written to ({why}); set {variable}"
            " to a folder that can",
            file=sys.stderr,
        )
        return
    if jax.config.jax_compilation_cache_max_size != -1 and not in_bucket(folder):
        _drop_halves(pathlib.Path(folder))


def _drop_halves(folder: pathlib.Path) -> None:
    """Removes incomplete entries. A bounded cache writes an entry and then the time of its use;
    after a kill between the two, every later write would fail.
    """
    for entry in folder.glob("*-cache"):
        if not entry.with_name(entry.name.removesuffix("cache") + "atime").exists():
            entry.unlink(missing_ok=True)
