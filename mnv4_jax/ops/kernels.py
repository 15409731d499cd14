"""The operations of kernels.cc as JAX functions: float32, one CPU device.

The C++ is compiled by the machine's own compiler when it is first needed, in a few seconds, and
kept under MNV4_CACHE (~/.cache/mnv4_jax). Without a compiler `available` says so once, and `conv`
takes the pure JAX forms: the same numbers to rounding, about half the speed.
"""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import threading

import jax
import jaxlib
import numpy as np

from input_pipeline import cache

_SOURCE = pathlib.Path(__file__).with_name("kernels.cc")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-w")
_TIMEOUT_S = 120
_NAMES = ("depthwise", "depthwise_dx", "depthwise_dk", "dense", "dense_dx", "dense_dk", "sums")


_BUILDING = threading.Lock()


def prepare() -> None:
    """Builds the kernels ahead of their first use, from a thread; says nothing where it cannot."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        _build()


@functools.cache
def available() -> bool:
    """Whether the kernels are there; builds and registers them at the first call."""
    try:
        library = ctypes.CDLL(str(_build()))
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).warning(
            "running in pure JAX, at about half the speed: the C++ cannot be built (%s)",
            error,
        )
        return False
    for name in _NAMES:
        handler = jax.ffi.pycapsule(getattr(library, f"mnv4_{name}"))
        jax.ffi.register_ffi_target(f"mnv4_{name}", handler, platform="cpu")
    return True


def _build() -> pathlib.Path:
    """The shared library for this source, jaxlib, compiler and processor; compiled if need be."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise FileNotFoundError("no g++ or clang++")
    source = _SOURCE.read_bytes()
    name = hashlib.sha256(
        b"\0".join([source, *(s.encode() for s in (jaxlib.__version__, compiler, _processor()))])
    ).hexdigest()[:16]
    folder = cache.root() / "kernels"
    path = folder / f"{name}.so"
    with _BUILDING:
        if not path.exists():
            if cache.why_not_writable(folder):  # for this process alone then
                folder = pathlib.Path(tempfile.mkdtemp(prefix="mnv4_kernels_"))
                atexit.register(shutil.rmtree, folder, ignore_errors=True)
                path = folder / path.name
            _compile(compiler, path)
    return path


def _compile(compiler: str, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        built = pathlib.Path(scratch, path.name)
        command = [compiler, *_FLAGS, f"-I{jax.ffi.include_dir()}", str(_SOURCE), "-o", built]
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
        os.replace(built, path)  # whole or not at all, whichever other process is building it


def _processor() -> str:
    """What -march=native depends on; a cache folder may be shared between machines."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(line for line in lines[:40] if line.startswith(("model", "flags", "Feat")))
    except OSError:
        return platform.platform() + platform.processor()


def _call(name, shape, a, b, stride, padding):
    result = jax.ShapeDtypeStruct(shape, np.float32)
    call = jax.ffi.ffi_call(f"mnv4_{name}", result, vmap_method="sequential")
    return call(a, b, stride=np.int64(stride), padding=np.int64(padding))


def _out_shape(x, kernel, features, stride, padding):
    height, width = (
        (n + 2 * padding - k) // stride + 1
        for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    )
    return x.shape[0], height, width, features


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x, kernel, stride: int, padding: int):
    """x [B, H, W, C] float32 with kernel [kh, kw, C] -> [B, Ho, Wo, C]."""
    shape = _out_shape(x, kernel, x.shape[3], stride, padding)
    return _call("depthwise", shape, x, kernel, stride, padding)


def _depthwise_bwd(stride, padding, residuals, dy):
    x, kernel = residuals
    return (
        _call("depthwise_dx", x.shape, dy, kernel, stride, padding),
        _call("depthwise_dk", kernel.shape, x, dy, stride, padding),
    )


depthwise.defvjp(lambda x, k, stride, pad: (depthwise(x, k, stride, pad), (x, k)), _depthwise_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dense(x, kernel, stride: int, padding: int):
    """x [B, H, W, Cin] float32 with kernel [kh, kw, Cin, Cout] -> [B, Ho, Wo, Cout]."""
    shape = _out_shape(x, kernel, kernel.shape[3], stride, padding)
    return _call("dense", shape, x, kernel, stride, padding)


def _dense_bwd(stride, padding, residuals, dy):
    x, kernel = residuals
    return (
        _call("dense_dx", x.shape, dy, kernel.transpose(0, 3, 1, 2), stride, padding),
        _call("dense_dk", kernel.shape, x, dy, stride, padding),
    )


dense.defvjp(lambda x, k, stride, pad: (dense(x, k, stride, pad), (x, k)), _dense_bwd)


def sums(a, b):
    """a, b [..., C] float32 -> (sum of a, sum of a * b) over everything but channels, [C] each."""
    result = jax.ShapeDtypeStruct((2, a.shape[-1]), np.float32)
    both = jax.ffi.ffi_call("mnv4_sums", result, vmap_method="sequential")(a, b)
    return both[0], both[1]
