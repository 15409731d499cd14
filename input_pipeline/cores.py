"""How many cores this process may use."""

import os


def available() -> int:
    """Under taskset or SLURM fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
