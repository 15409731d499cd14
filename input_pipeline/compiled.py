"""Compiles C++ on first use with the machine's own compiler; keeps the result under MNV4_CACHE."""

import atexit
import collections
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence

from input_pipeline import cache

# Floats are read and written as vectors of several widths, so aliasing by type must be off: GCC 12
# drops `may_alias` where it splits a vector that is wider than the machine's.
_FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-strict-aliasing", "-fPIC", "-shared", "-w"]
_TIMEOUT_S = 120
_BUILDING: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)
_TEMPORARY: dict[str, pathlib.Path] = {}  # built where the cache cannot be written to


def library(
    source: pathlib.Path, *, include: Sequence[str] = (), version: str = ""
) -> pathlib.Path:
    """The shared library of one C++ file; compiles it in a few seconds unless it is in the cache.

    Args:
        source: the file. The headers beside it count as parts of it.
        include: folders of headers.
        version: the version of the headers; another version gives another library.

    Raises:
        OSError: no compiler. subprocess.SubprocessError: it failed, or took too long.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise FileNotFoundError("no g++ or clang++")
    parts = [file.read_bytes() for file in (source, *sorted(source.parent.glob("*.h")))]
    parts += [s.encode() for s in (version, compiler, *_FLAGS, _processor())]
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    folder = cache.root() / "kernels"
    with _BUILDING[name]:
        path = _TEMPORARY.get(name, folder / f"{name}.so")
        if not path.exists():
            if cache.why_not_writable(folder):  # then for this process alone
                folder = pathlib.Path(tempfile.mkdtemp(prefix="mnv4_kernels_"))
                atexit.register(shutil.rmtree, folder, ignore_errors=True)
                path = _TEMPORARY[name] = folder / path.name
            command = [compiler, *_FLAGS, *(f"-I{name}" for name in include), str(source)]
            _compile(command, path)
    return path


def _compile(command: Sequence[str], path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        built = pathlib.Path(scratch, path.name)
        command = [*command, "-o", os.fspath(built)]
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
        os.replace(built, path)  # atomic, as other processes may build it too


def _processor() -> str:
    """The processor, on which -march=native depends: machines may share a cache folder."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(line for line in lines[:40] if line.startswith(("model", "flags", "Feat")))
    except OSError:
        return platform.platform() + platform.processor()
