"""The cache folder, for the demo set, XLA's programs, C++ kernels and decoded pictures; and whether
a file has changed since something made from it was kept there."""

import contextlib
import hashlib
import os
import pathlib
import tempfile


def root() -> pathlib.Path:
    """`$MNV4_CACHE`, or `~/.cache/mnv4_jax`; need not exist."""
    return pathlib.Path(os.environ.get("MNV4_CACHE") or "~/.cache/mnv4_jax").expanduser()


def why_not_writable(folder: str | os.PathLike) -> str | None:
    """Why no file can be made in `folder`, or None if one can; makes the folder.

    Tests by making a file: permissions do not bind every user, and a file system may be read-only.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__


def stamp(path: str | os.PathLike) -> bytes:
    """16 bytes that depend on a file's path, size and modification time.

    Does not raise for an inaccessible file: reading it gives the reason later.
    """
    facts = os.path.abspath(path)
    with contextlib.suppress(OSError):
        found = os.stat(path)
        facts = f"{facts}\0{found.st_size}\0{found.st_mtime_ns}"
    facts = facts.encode(errors="surrogateescape")
    return hashlib.blake2b(facts, digest_size=16).digest()
