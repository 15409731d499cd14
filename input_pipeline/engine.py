"""Ray, which schedules, retries and spills: started on this machine, or joined by address.

An extra: `pip install -e '.[ray]'`. Nothing else in the project starts or stops it.
"""

import collections
import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType

from input_pipeline.cli import UserError

_ANSWER_S = 10.0  # within which an address has to take a connection
# Ray would take 30% of the memory for objects; what waits between decoding and scoring is bounded
# by far less.
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
    """Ray, ready for tasks; left again at the end.

    Args:
        address: HOST:PORT of a cluster's head, or "auto": the cluster this machine is part of;
            None: Ray is started on this machine alone and stopped at the end.
        cpus: that a Ray of this machine may use; None: all that this process may.
        object_store_bytes: shared memory of a Ray of this machine; what is more goes to the disk.

    Raises:
        UserError: Ray is not installed, or nothing answers at `address`.
    """
    # Before Ray is imported: nothing is reported to anyone.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = require()
    if address is not None:
        _check(address)
    options = {"address": address}
    if address is None:
        options = {
            "num_cpus": cpus or len(os.sched_getaffinity(0)),
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
    """Ray Data reports by progress bars and log lines of its own: only warnings are kept."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    # Of max_retries, which has no other name yet.
    warnings.filterwarnings("ignore", "`ray_remote_args`", DeprecationWarning)
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _check(address: str) -> None:
    """Whether something answers at `address`: Ray itself would try for a minute and more."""
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
    """The UserError that a task of Ray raised, out of what Ray made of it; None: another error."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, UserError):
            return UserError(*error.args[:1])
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


def in_order(
    ray: ModuleType, task: Callable, calls: Iterable[tuple], *, ahead: int | None = None
) -> Iterator:
    """What `task` returns for each call, in order; a bounded number of them at a time, so that
    neither arguments nor results pile up.

    Args:
        task: a function; it runs in processes of Ray, again where one is lost.
        calls: its arguments.
        ahead: calls in flight; None: two a core.

    Raises:
        UserError: that a task raised.
    """
    remote = ray.remote(task)
    ahead = ahead or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
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
