"""Being told to stop: SIGTERM, or a preemption notice, becomes "all save at this step and leave".

The loop asks once per step and, on yes, saves, waits for the write and exits with `EXIT_STATUS`,
upon which the launchers start the same command again.
"""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again


class Preemption:
    """Listens for the order to stop while its `with` block lasts.

    Several processes leave it to JAX, which has listened for SIGTERM and the cloud's notices since
    `jax.distributed.initialize` and makes all processes agree on a step none has passed. JAX has no
    such service for a process on its own: there SIGTERM sets a flag.
    """

    def __init__(self):
        self._told = False
        self._previous = None

    def __enter__(self) -> "Preemption":
        if not jax.distributed.is_initialized():
            self._previous = signal.signal(signal.SIGTERM, self._on_sigterm)
        return self

    def __exit__(self, *_) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def stop_requested(self, step: int) -> bool:
        """Whether to save now and leave; the same answer on every process.

        Args:
          step: how many steps are done. Must grow by one from call to call: JAX answers yes at one
            agreed step only, the one after the furthest that any process had reached.
        """
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._told

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        self._told = True
