"""Starts and ends a run of several processes.

Nothing here may touch a device before `initialize`, which every command calls first.
"""

import argparse
import contextlib
import faulthandler
import logging
import os
import pathlib
import re
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags
from jax._src.clusters import ClusterEnv  # JAX has no public way to ask "am I in a cluster?"

from input_pipeline.cli import UserError
from mnv4_jax.runtime import preemption
from mnv4_jax.runtime.line_file import in_bucket

_PEERS_GONE = re.compile(
    r"^(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED)\b"
    r"|closed by peer|Connection reset|Broken pipe|heartbeat|Gloo context initialization failed",
    re.IGNORECASE,
)
_FLAGS = (
    ("coordinator", str, None, "host:port of process 0, where several processes run together"),
    ("num_processes", int, None, "how many processes run together"),
    ("process_id", int, None, "which of them this is, from 0"),
    ("peer_timeout_s", int, 300, "how long to wait for the other processes at the start"),
)


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    peer_timeout_s: int = 300,
) -> None:
    """Joins the other processes of this run, if there are any; must precede any use of a device.

    Missing arguments come from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, else
    from the cluster JAX detects (Cloud TPU, GKE, SLURM, Open MPI). Without any of these it does
    nothing: the run has one process.

    Raises UserError if only some of the three are known or they make no sense. If a peer does not
    come within `peer_timeout_s`, prints one line and ends the process with status 2.
    """
    if jax.distributed.is_initialized():
        return
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _number("num_processes", num_processes, "JAX_NUM_PROCESSES")
    process_id = _number("process_id", process_id, "JAX_PROCESS_ID")
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if missing and not _in_cluster():
        if len(missing) == len(given):
            return
        raise UserError(
            f"--{missing[0]} is missing: several processes need --coordinator, --num_processes"
            " and --process_id, or none of them on a cluster that JAX detects"
        )
    _check(coordinator, num_processes, process_id)
    if coordinator and process_id == 0:
        _check_port(coordinator)
    with _Watchdog(coordinator, num_processes, process_id, peer_timeout_s):
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # JAX aborts with a stack dump at its timeout; the watchdog reports earlier.
            initialization_timeout=peer_timeout_s + 60,
        )


@contextlib.contextmanager
def exit_promptly() -> Iterator[None]:
    """Around a command's `run`: a process that fails among several exits immediately,
    with its own status.

    Otherwise JAX makes it wait at exit for the others, which wait for it in the middle of a step.
    After five minutes JAX aborts them all, with status 134 instead of the true one.

    A process whose peers are gone has made no error. It says so in one line and exits with the
    status that tells launchers to start again.
    """
    try:
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        if status in (0, None, preemption.EXIT_STATUS) or not jax.distributed.is_initialized():
            raise
        if lost_peers(error):
            status = preemption.EXIT_STATUS
            reason = str(error).splitlines()[0][:200]
            print(
                f"error: lost its peers: {reason}; run the same command to go on", file=sys.stderr
            )
            logging.getLogger(__name__).exception("lost its peers")
        elif not isinstance(error, SystemExit):
            traceback.print_exc()
            # No jax.process_index() here: before the first use of a device it waits for all.
            logging.getLogger(__name__).exception("failed")
        sys.stdout.flush()
        logging.shutdown()
        os._exit(status)


def lost_peers(error: BaseException) -> bool:
    """Whether `error` is what a computation raises when another process of the run has died.

    Decides by its text: JAX has one exception for all errors of its runtime. A TPU's runtime says
    UNAVAILABLE, ABORTED or CANCELLED; Gloo, on CPUs, says that the peer closed the connection.
    """
    return isinstance(error, jax.errors.JaxRuntimeError) and bool(_PEERS_GONE.search(str(error)))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --coordinator, --num_processes, --process_id and --peer_timeout_s."""
    group = parser.add_argument_group("several processes (needless on one machine)")
    for name, kind, default, text in _FLAGS:
        group.add_argument(f"--{name}", type=kind, default=default, help=text)


def define_flags() -> None:
    """The same four as absl flags."""
    for name, kind, default, text in _FLAGS:
        define = flags.DEFINE_integer if kind is int else flags.DEFINE_string
        define(name, default, text)


def initialize_from(args: Any) -> None:
    """Calls `initialize` with the flags of `add_flags` (parsed arguments) or `define_flags`."""
    initialize(**{name: getattr(args, name) for name, *_ in _FLAGS})


def log_to(workdir: str) -> None:
    """Appends this process's log to WORKDIR/logs/process_<i>.log as well.

    The Python stack also goes there if JAX aborts because a peer is gone. In a bucket (gs://…)
    files cannot be appended to: there the log stays on the standard error, which the cluster keeps.
    """
    if in_bucket(workdir):
        return
    folder = pathlib.Path(workdir, "logs").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(folder / f"process_{jax.process_index()}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    faulthandler.enable(handler.stream)


class _LogFile(logging.FileHandler):
    """Prints no traceback for a line lost to a full disk."""

    def handleError(self, record):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def _number(name: str, value: int | None, variable: str) -> int | None:
    if value is not None or variable not in os.environ:
        return value
    try:
        return int(os.environ[variable])
    except ValueError:
        raise UserError(f"{variable}={os.environ[variable]!r} is not a whole number") from None


def _in_cluster() -> bool:
    return any(
        cluster.is_env_present()
        for cluster in ClusterEnv._cluster_types
        if not cluster.opt_in_only_method
    )


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    if coordinator is not None:
        host, colon, port = coordinator.rpartition(":")
        if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
            raise UserError(f"--coordinator={coordinator} is not host:port, like 10.0.0.1:1234")
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num_processes={num_processes} must be at least 1")
    if None not in (num_processes, process_id) and not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must be from 0 to {num_processes - 1}"
            f" with --num_processes={num_processes}"
        )


def _check_port(coordinator: str) -> None:
    """Checks the port first: if JAX cannot listen there, some versions raise and others crash."""
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except OSError as error:
        raise UserError(
            f"--coordinator={coordinator}: process 0 cannot listen there: {error.strerror}"
        ) from None


class _Watchdog(threading.Timer):
    """Ends the process with one line and status 2 unless its `with` block ends in time.

    It is a thread because JAX waits in C++ without the interpreter lock and then aborts: no
    exception reaches Python.
    """

    def __init__(self, coordinator, num_processes, process_id, timeout_s):
        super().__init__(timeout_s, self._give_up)
        self.daemon = True
        self._coordinator, self._count, self._id = coordinator, num_processes, process_id
        self._timeout_s = timeout_s

    def __enter__(self):
        self.start()

    def __exit__(self, *_):
        self.cancel()

    def _give_up(self):
        me = "this process" if self._id is None else f"process {self._id}"
        others = "the others" if self._count is None else f"all {self._count} processes"
        where = f" at {self._coordinator}" if self._coordinator else ""
        if self._id != 0 and self._coordinator and not _answers(self._coordinator):
            what = f"found no process 0{where}: is it running, and is the address right?"
        else:
            what = f"waited for {others}{where} in vain: are all of them running?"
        print(f"error: {me} {what} (gave up after {self._timeout_s} s)", file=sys.stderr)
        sys.stderr.flush()
        os._exit(2)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except OSError:
        return False
