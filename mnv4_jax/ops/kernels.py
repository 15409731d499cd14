"""The operations of kernels.cc and network.cc as JAX functions: float32, one CPU device.

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
import threading
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jaxlib
import numpy as np

from input_pipeline import compiled

_CONVOLUTIONS = ("depthwise", "depthwise_dx", "depthwise_dk", "dense", "dense_dx", "dense_dk")
_NAMES = {"kernels.cc": (*_CONVOLUTIONS, "product_dk", "sums", "split"), "network.cc": ("network",)}


def prepare(*sources: str) -> None:
    """Starts to build these files, if needed, each in a thread; silent if it fails."""

    def build(source):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            _build(source)

    for source in sources:
        threading.Thread(target=build, args=(source,), daemon=True).start()


@functools.cache
def available(source: str) -> bool:
    """Whether the kernels of a file are available; builds and registers them at the first call."""
    try:
        library = ctypes.CDLL(str(_build(source)))
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).warning(
            "running in pure JAX, at about half the speed: the C++ cannot be built (%s)",
            error,
        )
        return False
    for name in _NAMES[source]:
        handler = jax.ffi.pycapsule(getattr(library, f"mnv4_{name}"))
        jax.ffi.register_ffi_target(f"mnv4_{name}", handler, platform="cpu")
    return True


def _build(source: str) -> pathlib.Path:
    return compiled.library(
        pathlib.Path(__file__).with_name(source),
        include=[jax.ffi.include_dir()],
        version=jaxlib.__version__,
    )


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


def product_dk(x, dy):
    """x [M, K], dy [M, N] float32 -> [K, N]: the gradient to the matrix of x times a matrix."""
    result = jax.ShapeDtypeStruct((x.shape[1], dy.shape[1]), np.float32)
    return jax.ffi.ffi_call("mnv4_product_dk", result, vmap_method="sequential")(x, dy)


def sums(a, b):
    """a, b [..., C] float32 -> (sum of a, sum of a * b) over all axes but channels, [C] each."""
    results = [jax.ShapeDtypeStruct(a.shape[-1:], np.float32)] * 2
    return tuple(jax.ffi.ffi_call("mnv4_sums", results, vmap_method="sequential")(a, b))


def split(vector, shapes: list[tuple[int, ...]]) -> list[jax.Array]:
    """vector [N] float32 -> its parts, one after the other, in the given shapes."""
    results = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return jax.ffi.ffi_call("mnv4_split", results, vmap_method="sequential")(vector)


BYTES, DENSE, DEPTHWISE, MEAN = range(4)
INPUT, MEANS, RESULT, BUFFERS = range(4)


class Layer(NamedTuple):
    """A layer of `network` on [h, w, c]: pixels to be scaled and shifted, a convolution inside
    `k // 2` zeros and the bias, shortcut and ReLU behind it, or the mean of the positions, with a
    stride of all of them."""

    kind: int
    source: int  # of activations: INPUT, MEANS, RESULT, or a buffer from BUFFERS on
    add: int  # likewise, the shortcut; -1: none
    out: int  # likewise
    h: int
    w: int
    c: int
    k: int
    stride: int
    n: int  # channels of the output
    relu: bool
    weights: int  # where its kernel begins; its bias follows


def network(
    x, weights, layers: Sequence[Layer], sizes: Sequence[int], shape: tuple[int, ...]
) -> jax.Array:
    """x [B, H, W, C] float32, or uint8 if the first layer is `BYTES`, through `layers` -> `shape`.

    Args:
      x: the pictures.
      weights: [N] float32, as `models.folded` lays them out.
      layers: in order. One is a mean; those behind it take the batch as a row of one picture.
      sizes: of the buffers, in floats.
      shape: of the result.
    """
    call = jax.ffi.ffi_call("mnv4_network", jax.ShapeDtypeStruct(shape, np.float32))
    return call(x, weights, layers=np.ravel(layers).astype(np.int64), sizes=np.int64(sizes))


@functools.cache
def panel() -> int:
    """The columns of a dense kernel that network.cc reads at once, on this machine."""
    return ctypes.CDLL(str(_build("network.cc"))).mnv4_panel()
