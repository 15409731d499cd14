"""Programs are kept between runs, also after a run that was killed while it kept one."""

import os
import subprocess
import sys

SCRIPT = """
import jax
from mnv4_jax import compilation_cache
compilation_cache.enable()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x + 1)(1)
"""


def test_a_half_written_entry_does_not_end_the_cache(tmp_path):
    folder = tmp_path / "xla"
    folder.mkdir()
    (folder / "jit_half-0-cache").write_bytes(b"written just before the kill")
    env = os.environ | {"MNV4_CACHE": str(tmp_path)}
    del env["JAX_COMPILATION_CACHE_DIR"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "Error writing" not in done.stderr
    assert list(folder.glob("*-cache"))
