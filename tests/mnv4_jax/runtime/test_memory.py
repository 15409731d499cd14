"""Memory that was freed is used again without being mapped again."""

import subprocess
import sys

SCRIPT = """
import resource
import numpy as np
from mnv4_jax.runtime import memory
if {keep}:
    memory.keep_freed()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(64 << 20, np.uint8)
before = faults()
np.ones(64 << 20, np.uint8)
print(faults() - before)
"""


def _faults_of_second_use(keep: bool) -> int:
    code = SCRIPT.format(keep=keep)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def test_second_use_of_freed_memory_has_no_page_faults():
    assert _faults_of_second_use(keep=False) > 20  # or this machine's C library does it by itself
    assert _faults_of_second_use(keep=True) < 20
