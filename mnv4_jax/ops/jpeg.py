"""The effect of JPEG on pixels, in JAX: for batches on the device, with a quality for each picture
and with gradients.

The steps are those of ITU T.81 and JFIF as in libjpeg, without the lossless entropy coding: chroma
at half the resolution on both axes (4:2:0), the discrete cosine transform of 8x8 blocks, the tables
of T.81's annex K scaled by quality, and back with libjpeg's smooth upsampling of chroma.
"""

import jax
import jax.numpy as jnp
import numpy as np

# T.81, tables K.1 and K.2: divisors of the coefficients at quality 50.
LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
_CHROMA = np.full((8, 8), 99, np.float32)
_CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# JFIF's colours in 65536ths, as in libjpeg: float32 represents the sums exactly.
_ONE = 65536.0
_LUMA_OF_RGB = (19595.0, 38470.0, 7471.0)
_CHROMA_OF_RGB = ((-11059.0, -21709.0, 32768.0), (32768.0, -27439.0, -5329.0))
_RGB_OF_CHROMA = ((0.0, 91881.0), (-22554.0, -46802.0), (116130.0, 0.0))

# The orthonormal cosine transform of 8 numbers (T.81, A.3.3).
_COSINES = np.cos((2 * np.arange(8) + 1) * np.arange(8)[:, None] * np.pi / 16) / 2
_COSINES[0] = np.sqrt(1 / 8)
_COSINES = _COSINES.astype(np.float32)


def jpeg(images: jax.Array, quality: jax.Array) -> jax.Array:
    """Compresses and decompresses at 4:2:0.

    The gradient passes unchanged through rounding, and is zero for clipped values.

    Args:
      images: [B, H, W, 3] float in [0, 1].
      quality: [B] numbers from 1 to 100, as in libjpeg.

    Returns:
      [B, H, W, 3] of the same dtype, whole 255ths.
    """
    _, height, width, _ = images.shape
    rgb = _rounded(images.astype(jnp.float32) * 255)
    rgb = jnp.pad(rgb, ((0, 0), (0, -height % 16), (0, -width % 16), (0, 0)), mode="edge")
    luma = _mixed(rgb, _LUMA_OF_RGB, _ONE / 2)
    chroma = [_mixed(rgb, weights, _ONE / 2 - 1) + 128 for weights in _CHROMA_OF_RGB]
    luma = _quantized(luma - 128, table(LUMA, quality)) + 128
    of_chroma = table(_CHROMA, quality)
    luma = _byte(luma)[:, :height, :width]
    halves = ((height + 1) // 2, (width + 1) // 2)
    chroma = [_byte(_quantized(_halved(plane) - 128, of_chroma) + 128) for plane in chroma]
    chroma = [_doubled(plane[:, : halves[0], : halves[1]]) - 128 for plane in chroma]
    chroma = jnp.stack(chroma, axis=-1)[:, :height, :width]
    colours = [luma + _mixed(chroma, weights, _ONE / 2) for weights in _RGB_OF_CHROMA]
    return (_byte(jnp.stack(colours, axis=-1)) / 255).astype(images.dtype)


def _mixed(planes: jax.Array, weights: tuple[float, ...], bias: float) -> jax.Array:
    """[..., C] -> [...]: weighted sum of whole numbers in 65536ths, plus `bias`, rounded down."""
    total = sum(weight * planes[..., i] for i, weight in enumerate(weights))
    return _floored((total + bias) / _ONE)


def table(base: np.ndarray, quality: jax.Array) -> jax.Array:
    """[B] qualities -> [B, 8, 8]: `base` scaled by libjpeg's jpeg_quality_scaling."""
    quality = jnp.clip(jnp.floor(jnp.asarray(quality, jnp.float32)), 1, 100)
    scale = jnp.where(quality < 50, jnp.floor(5000 / quality), 200 - 2 * quality)
    return jnp.clip(jnp.floor((base * scale[:, None, None] + 50) / 100), 1, 255)


def _quantized(plane: jax.Array, table: jax.Array) -> jax.Array:
    """[B, H, W], [B, 8, 8] -> [B, H, W]: every 8x8 block transformed, rounded, transformed back."""
    batch, height, width = plane.shape
    bands = (batch, height // 8, 8, width)
    # 8x8 matrices are six times as fast on a CPU as one matrix of the whole side.
    coefficients = plane.reshape(-1, 8) @ _COSINES.T
    coefficients = jnp.einsum("ij,bnjw->bniw", _COSINES, coefficients.reshape(bands))
    blocks = coefficients.reshape(batch, height // 8, 8, width // 8, 8)
    table = table[:, None, :, None, :]
    # libjpeg's integer transform keeps eighths, and rounds halves away from 0.
    shares = jnp.rint(8 * jax.lax.stop_gradient(blocks)) / (8 * table)
    whole = jnp.sign(shares) * jnp.floor(jnp.abs(shares) + 0.5) * table
    blocks = blocks + jax.lax.stop_gradient(whole - blocks)
    lines = jnp.einsum("ji,bnjw->bniw", _COSINES, blocks.reshape(bands))
    return (lines.reshape(-1, 8) @ _COSINES).reshape(plane.shape)


def _halved(plane: jax.Array) -> jax.Array:
    """[B, H, W] -> [B, H/2, W/2]: the means of 2x2 pixels; rounds halves down and up in turns."""
    total = plane[:, ::2, ::2] + plane[:, 1::2, ::2] + plane[:, ::2, 1::2] + plane[:, 1::2, 1::2]
    bias = 1 + np.arange(total.shape[2]) % 2
    return _floored((total + bias.astype(np.float32)) / 4)


def _doubled(plane: jax.Array) -> jax.Array:
    """[B, h, w] -> [B, 2h, 2w]: three quarters of the nearest and a quarter of the next sample
    along each axis (libjpeg's fancy upsampling)."""
    for axis in (1, 2):
        n = plane.shape[axis]
        padded = jnp.pad(plane, [(int(axis == i),) * 2 for i in range(3)], mode="edge")
        near = 3 * plane
        before = near + jax.lax.slice_in_dim(padded, 0, n, axis=axis)
        after = near + jax.lax.slice_in_dim(padded, 2, n + 2, axis=axis)
        both = jnp.stack([before, after], axis + 1)
        plane = both.reshape(*plane.shape[:axis], 2 * n, *plane.shape[axis + 1 :])
    bias = 8 - np.arange(plane.shape[2]) % 2
    return _floored((plane + bias.astype(np.float32)) / 16)


def _byte(values: jax.Array) -> jax.Array:
    return jnp.clip(_rounded(values), 0, 255)


def _rounded(values: jax.Array) -> jax.Array:
    """Rounds to the nearest whole number, halves up."""
    return _floored(values + 0.5)


def _floored(values: jax.Array) -> jax.Array:
    """Rounds down, with the gradient of the identity."""
    return values + jax.lax.stop_gradient(jnp.floor(values) - values)
