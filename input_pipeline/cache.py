"""Where what is made once and used again is kept: the demo set, XLA's programs, C++ kernels."""

import os
import pathlib


def root() -> pathlib.Path:
    """`$MNV4_CACHE`, or `~/.cache/mnv4_jax`; need not exist."""
    return pathlib.Path(os.environ.get("MNV4_CACHE") or "~/.cache/mnv4_jax").expanduser()
