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
    `jax.distributed.initialize` and makes all processes agree on a call of `stop_requested` that
    none has passed. JAX has no such service for a process on its own: there SIGTERM sets a flag.
    Only one such block may be entered in the life of a process of several.
    """

    def __init__(self):
        self._told = False
        self._asked = 0
        self._previous = None

    def __enter__(self) -> "Preemption":
        if not jax.distributed.is_initialized():
            self._previous = signal.signal(signal.SIGTERM, self._on_sigterm)
        return self

    def __exit__(self, *_) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def stop_requested(self) -> bool:
        """Whether to save now and leave; once yes, always yes.

        Every process must ask equally often, after each step and before each batch of an
        evaluation: the n-th call has the same answer on all of them.
        """
        self._asked += 1
        if not self._told and jax.distributed.is_initialized():
            # JAX answers yes to one call only, the one after the furthest that any had reached.
            self._told = multihost_utils.reached_preemption_sync_point(self._asked)
        return self._told

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        self._told = True
