"""Allows one run per workdir: two would mix their logs and overwrite each other's checkpoints."""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator

import filelock
from absl import logging
from etils import epath

from input_pipeline.cli import UserError
from mnv4_jax.runtime.line_file import in_bucket, replace_text


@contextlib.contextmanager
def hold(workdir: epath.Path, *, flag: str = "--workdir") -> Iterator[None]:
    """Holds `workdir` for this run; process 0 of a run calls it for all of its processes.
    `flag`: the flag that named it.

    The operating system drops the lock (flock) when the process ends in any way, so neither a kill
    nor a reboot leaves a stale one. On a network file system it holds between hosts only if that
    system supports it. A bucket has no locks: there, and if locking fails, this logs one warning
    and holds nothing.

    Raises:
      UserError: another process holds it; says which, on which host, since when.
    """
    if in_bucket(workdir):
        logging.warning("%s has no locks: make sure that no other run uses it", workdir)
        yield
        return
    owner = workdir / ".lock.json"
    lock = filelock.FileLock(workdir / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(
            f"{flag}={workdir} is in use by {_describe(owner)}: wait for it, stop it, or name"
            f" another {flag}"
        ) from None
    except (OSError, NotImplementedError) as error:
        logging.warning("cannot lock %s (%s): make sure that no other run uses it", workdir, error)
        yield
        return
    try:
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        me = {"host": socket.gethostname(), "process": os.getpid(), "since": since}
        replace_text(owner, json.dumps(me))
        yield
    finally:
        lock.release()


def _describe(owner: epath.Path) -> str:
    try:
        return "process {process} on {host} since {since}".format(**json.loads(owner.read_text()))
    except (OSError, ValueError, KeyError):  # the holder has not written its name yet
        return "another process"
