"""Shared by all command lines of the project: one-line errors and their exit status.

It is here because `input_pipeline` imports nothing of `mnv4_jax` and has commands of its own.
"""

import argparse
import codecs
import contextlib
import errno
import gc
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What to do about the errors of the file system that a user can meet.
_CURES = {
    **dict.fromkeys(_FULL, "free some space or name another folder"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "check its permissions or name another folder"),
    errno.EROFS: "name a folder on a file system that can be written to",
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "name a folder, not a file"),
    errno.EISDIR: "name a file, not a folder",
    errno.ENOENT: "name a folder that exists or can be made",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ELOOP: "name a path whose links do not lead back to themselves",
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ENOTCONN), "check that the disk or share is still mounted"
    ),
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class UserError(Exception):
    """An error that the user can fix; one line: what, where, what would be right."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are one line and exit status 2."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def escaped(text: str) -> str:
    """`text` without control characters: a file's name could forge a line, or steer a terminal."""
    return _CONTROL.sub(lambda found: repr(found.group())[1:-1], text)


def printable(name: str) -> str:
    """`name` as text that can be written anywhere: file names need not be UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def _raw_or_escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """File names need not be UTF-8: their bytes are written as they are, so that other programs
    find the file. What an ASCII terminal cannot show is escaped."""
    error.end = error.start + 1  # one character at a time
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


_RAW_OR_ESCAPED = "raw_or_escaped"
codecs.register_error(_RAW_OR_ESCAPED, _raw_or_escaped)


def _say(line: str) -> None:
    """Writes the line at once: `print` writes it and its newline separately, and other threads may
    write between."""
    sys.stderr.write(f"{escaped(line)}\n")
    sys.stderr.flush()


def run(main: Callable[[], int | None]) -> NoReturn:
    """Calls `main` and exits: 0 or what it returned, 2 for a user's error, 130 for Ctrl-C."""
    # Tracing makes millions of objects that stay: looking for garbage at every 700 takes a tenth of
    # the time to the first loss.
    gc.set_threshold(100_000)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed, as by >&-
        stream.reconfigure(errors=_RAW_OR_ESCAPED)
    try:
        status = main() or 0
    except UserError as error:
        _say(f"error: {' '.join(str(error).split())}")
        status = 2
    except OSError as error:
        # The file system names its file, unless that is open already; sockets and locks name none.
        if error.errno not in _CURES and not (error.errno and error.filename):
            raise
        where = f" ({error.filename})" if error.filename else ""
        cure = f": {_CURES[error.errno]}" if error.errno in _CURES else ""
        _say(f"error: {error.strerror}{where}{cure}")
        status = 2
        if error.errno in _FULL:
            # Other output at exit would fail as well, with long messages.
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(status)
    except KeyboardInterrupt:
        _say("interrupted")
        status = 130
    sys.exit(status)
