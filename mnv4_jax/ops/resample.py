"""Downscaling and upscaling, and blur, in JAX, with its own strength for each picture.

Both are linear along each axis, so a picture's damage is one matrix per axis, and several kinds of
damage are a product of matrices.
"""

import jax
import jax.numpy as jnp

_BLUR_RADIUS_PX = 3


def separable(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """[B, H, W, C], [B, H, H], [B, W, W] -> [B, H, W, C]: multiplies each axis by a matrix."""
    batch, height, width, channels = images.shape
    out = rows @ images.reshape(batch, height, width * channels)
    return jnp.einsum("blk,bikc->bilc", columns, out.reshape(images.shape))


def down_and_up(size: int, factor: jax.Array) -> jax.Array:
    """[] -> [size, size]: a matrix that removes detail along an axis, as downscaling does.

    Down to round(size * factor) by means over areas, then up by cubic interpolation (a = -0.75), as
    OpenCV's INTER_AREA and INTER_CUBIC, without rounding the small picture to whole 255ths.

    Args:
      size: px of the axis.
      factor: above 0, to 1.
    """
    small = jnp.clip(jnp.round(size * factor), 1, size)
    return _cubic(small, size) @ _area(small, size)


def gaussian(size: int, sigma: jax.Array) -> jax.Array:
    """[] -> [size, size]: a Gaussian blur along an axis, truncated at 3 px; sigma in px, 0: none.

    Borders are reflected without repeating the edge (OpenCV's BORDER_REFLECT_101).
    """
    offsets = jnp.arange(-_BLUR_RADIUS_PX, _BLUR_RADIUS_PX + 1)
    taps = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 1e-3)) ** 2)
    taps = taps / taps.sum()
    at = jnp.arange(size)[:, None] + offsets
    at = (size - 1) - jnp.abs((size - 1) - jnp.abs(at))
    pixel = jnp.arange(size)[None, :]
    return sum(jnp.where(at[:, i, None] == pixel, taps[i], 0) for i in range(len(taps)))


def _area(n: jax.Array, size: int) -> jax.Array:
    """[] -> [size, size]: row i < n is the mean over the i-th of n equal parts; the rest are 0."""
    step = size / n
    start = jnp.arange(size)[:, None] * step
    pixel = jnp.arange(size)[None, :]
    overlap = jnp.minimum(start + step, pixel + 1) - jnp.maximum(start, pixel)
    return jnp.where(jnp.arange(size)[:, None] < n, jnp.clip(overlap, 0, 1) / step, 0)


def _cubic(n: jax.Array, size: int) -> jax.Array:
    """[] -> [size, size]: row i interpolates sample i of `size` from the first n entries; repeats
    the edge at the borders."""
    at = (jnp.arange(size) + 0.5) * n / size - 0.5
    first = jnp.floor(at)
    row = jnp.arange(size)[None, :]
    total = jnp.zeros((size, size))
    for tap in (-1, 0, 1, 2):
        distance = jnp.abs(at - first - tap)
        near = (1.25 * distance - 2.25) * distance**2 + 1
        far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
        weight = jnp.where(distance <= 1, near, far)
        place = jnp.clip(first + tap, 0, n - 1)
        total += jnp.where(row == place[:, None], weight[:, None], 0)
    return total
