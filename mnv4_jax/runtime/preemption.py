"""Turns SIGTERM or a preemption notice into "all processes save at this step and exit".

The loop asks once per step. If told to stop, it saves, waits for the write and exits with
`EXIT_STATUS`; the launchers then start the same command again.
"""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again


class Preemption:
    """Listens for the order to stop while its `with` block lasts.

    With several processes JAX listens: since `jax.distributed.initialize` it has waited for SIGTERM
    and the cloud's notices. It makes all processes agree on a call of `stop_requested` that none
    has passed. JAX has no such service for a single process: there SIGTERM sets a flag.
    With several processes, a process may enter only one such block in its life.
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
        """Whether to save now and exit; once True, always True.

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
