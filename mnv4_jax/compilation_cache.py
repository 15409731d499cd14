"""XLA programs are kept on disk between runs: compiling the step costs more than a small epoch."""

import os

import jax

_MAX_BYTES = 1 << 30


def enable() -> None:
    """Turns JAX's persistent cache on, in JAX_COMPILATION_CACHE_DIR or else under MNV4_CACHE
    (~/.cache/mnv4_jax). Bounded: the least recently used programs go first.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        root = os.environ.get("MNV4_CACHE") or "~/.cache/mnv4_jax"
        folder = os.path.join(os.path.expanduser(root), "xla")
        jax.config.update("jax_compilation_cache_dir", folder)
    if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
        jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
