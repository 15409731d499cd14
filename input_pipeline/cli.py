"""What every command line of the project shares: errors of one line, and their exit status.

It lives here because `input_pipeline` stands apart and has a command of its own.
"""

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user can put right; one line: what, where, what would be right."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are one line and exit status 2."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Calls `main` and exits: 0 or what it returned, 2 for a user's error, 130 for Ctrl-C."""
    try:
        status = main() or 0
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"error: {error.strerror}{where}: free some space or name another folder",
            file=sys.stderr,
            flush=True,
        )
        status = 2
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            # What else is written at the exit would fail as well, at length.
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(status)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
