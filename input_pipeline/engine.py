"""Starts Ray on this machine, or joins a cluster by address. Ray schedules, retries and spills.

Ray is an extra: `pip install -e '.[ray]'`. Nothing else in the project starts or stops it.
"""

import collections
import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType

from input_pipeline import cores
from input_pipeline.cli import UserError

_ANSWER_S = 10.0  # time limit for an address to accept a connection
# Ray would take 30% of the memory for objects; the queue between decoding and scoring needs far
# less.
_OBJECT_STORE_BYTES = 1 << 30


def require() -> ModuleType:
    """The module `ray`. Raises UserError where it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"Ray is not installed ({error}): pip install -e '.[ray]'") from None
    return ray


@contextlib.contextmanager
def running(
    address: str | None, *, cpus: int | None = None, object_store_bytes: int = _OBJECT_STORE_BYTES
) -> Iterator[ModuleType]:
    """Ray, ready for tasks; disconnects at the end.

    Args:
        address: HOST:PORT of a cluster's head, or "auto": the cluster this machine is part of;
            None: start Ray on this machine alone and stop it at the end.
        cpus: the cores that a Ray of this machine may use; None: all that this process may use.
        object_store_bytes: shared memory of a Ray of this machine; the rest spills to disk.

    Raises:
        UserError: Ray is not installed, or nothing answers at `address`.
    """
    # Before Ray is imported: turns off its usage reports.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = require()
    if address is not None:
        _check(address)
    options = {"address": address}
    if address is None:
        options = {
            "num_cpus": cpus or cores.available(),
            "object_store_memory": object_store_bytes,
            "include_dashboard": False,
        }
    try:
        ray.init(**options, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--ray={address}: {reason}; expected HOST:PORT of a running head node, or auto"
            if address
            else f"Ray does not start on this machine: {reason}"
        ) from error
    quiet()
    try:
        yield ray
    finally:
        ray.shutdown()


def quiet() -> None:
    """Silences Ray Data's own progress bars and log lines, except errors."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    # The warning is about max_retries, which cannot be set in any other way yet.
    warnings.filterwarnings("ignore", "`ray_remote_args`", DeprecationWarning)
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _check(address: str) -> None:
    """Checks that something answers at `address`: Ray itself would try for over a minute."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise UserError(
            f"--ray={address}: expected HOST:PORT of a cluster's head, or auto"
            " (a job is sent to a cluster from outside as launch/ray does)"
        )
    try:
        socket.create_connection((host, int(port)), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"--ray={address}: nobody answers ({reason}); expected HOST:PORT of a running head"
        ) from None


def user_error(error: BaseException | None) -> UserError | None:
    """The UserError that a task raised, unwrapped from Ray's error; None for any other error."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, UserError):
            return UserError(*error.args[:1])
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


def in_order(ray: ModuleType, task: Callable, calls: Iterable[tuple]) -> Iterator:
    """Yields what `task` returns for each call, in order. Limits the calls in flight to two per
    core, so that neither arguments nor results pile up.

    Args:
        task: a function; runs in processes of Ray, and again if a process is lost.
        calls: its arguments.

    Raises:
        UserError: a task raised it.
    """
    remote = ray.remote(task)
    ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending = collections.deque()
    try:
        for call in calls:
            pending.append(remote.remote(*call))
            if len(pending) >= ahead:
                yield ray.get(pending.popleft())
        while pending:
            yield ray.get(pending.popleft())
    except ray.exceptions.RayError as error:
        raise user_error(error) or error from None
