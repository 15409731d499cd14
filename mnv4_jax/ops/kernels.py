"""The operations of kernels.cc as JAX functions: float32, one CPU device.

The machine's own compiler builds the C++ on first use, in a few seconds; the result is kept under
MNV4_CACHE (~/.cache/mnv4_jax). Without a compiler `available` says so once, and `conv` uses the
pure JAX forms: the same numbers up to rounding, at about half the speed.
"""

import contextlib
import ctypes
import functools
import logging
import pathlib
import subprocess

import jax
import jaxlib
import numpy as np

from input_pipeline import compiled

_SOURCE = pathlib.Path(__file__).with_name("kernels.cc")
_CONVOLUTIONS = ("depthwise", "depthwise_dx", "depthwise_dk", "dense", "dense_dx", "dense_dk")
_NAMES = (*_CONVOLUTIONS, "sums", "split")


def prepare() -> None:
    """Builds the kernels before their first use, from a thread; silent if it fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        _build()


@functools.cache
def available() -> bool:
    """Whether the kernels are available; builds and registers them at the first call."""
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
    return compiled.library(_SOURCE, include=[jax.ffi.include_dir()], version=jaxlib.__version__)


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
    """a, b [..., C] float32 -> (sum of a, sum of a * b) over all axes but channels, [C] each."""
    results = [jax.ShapeDtypeStruct(a.shape[-1:], np.float32)] * 2
    return tuple(jax.ffi.ffi_call("mnv4_sums", results, vmap_method="sequential")(a, b))


def split(vector, shapes: list[tuple[int, ...]]) -> list[jax.Array]:
    """vector [N] float32 -> its parts, one after the other, in the given shapes."""
    results = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return jax.ffi.ffi_call("mnv4_split", results, vmap_method="sequential")(vector)
