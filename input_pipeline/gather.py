"""Copies the crops of a batch from decoded pictures, which are stored one after another."""

import ctypes
import functools
import logging
import pathlib
import subprocess
from collections.abc import Callable

import numpy as np

from input_pipeline import compiled

_SOURCE = pathlib.Path(__file__).with_name("gather.cc")


def gather(
    pixels: np.ndarray,
    starts: np.ndarray,
    strides: np.ndarray,
    places: np.ndarray,
    out: np.ndarray,
) -> None:
    """Copies crops into some rows of a batch; releases the GIL meanwhile.

    Args:
        pixels: [bytes] uint8.
        starts: [n] int64, offset in `pixels` of each crop's first byte.
        strides: [n] int64, bytes from one line of the crop's picture to the next.
        places: [n] int64, the rows of `out` to write.
        out: [B, size, size, 3] uint8, contiguous.
    """
    (_native() or with_numpy)(pixels, starts, strides, places, out)


def with_numpy(pixels, starts, strides, places, out) -> None:
    """The same without a compiler."""
    size, line = out.shape[1], out.shape[2] * out.shape[3]
    for start, stride, place in zip(starts, strides, places, strict=True):
        lines = np.lib.stride_tricks.as_strided(pixels[start:], (size, line), (stride, 1))
        out[place] = lines.reshape(out.shape[1:])


@functools.cache
def _native() -> Callable | None:
    try:
        function = ctypes.CDLL(str(compiled.library(_SOURCE))).gather
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).warning("copying crops with NumPy: no C++ here (%s)", error)
        return None
    array = functools.partial(np.ctypeslib.ndpointer, flags="C_CONTIGUOUS")
    whole = array(np.int64, ndim=1)
    number = ctypes.c_int64
    function.restype = None
    function.argtypes = [
        array(np.uint8), number, whole, whole, whole, number, number, array(np.uint8),
    ]  # fmt: skip

    def call(pixels, starts, strides, places, out):
        size, line = out.shape[1], out.shape[2] * out.shape[3]
        function(pixels, len(starts), starts, strides, places, size, line, out)

    return call
