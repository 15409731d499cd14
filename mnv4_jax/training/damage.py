"""Imitates what platforms do to pictures, on the device: downscaling and upscaling, blur, JPEG.

Every random draw is keyed by (seed, position of the example in the run), as in `augment`.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mnv4_jax.ops import resample
from mnv4_jax.ops.jpeg import jpeg


def damage(images: jax.Array, keys: jax.Array, config: ConfigDict) -> jax.Array:
    """Damages each picture with the configured probabilities.

    Args:
      images: [B, H, W, 3] float in [0, 1].
      keys: [B] PRNG keys, see `augment.keys`.
      config: reads `data.downscale_prob`, `data.downscale`, `data.jpeg_prob`, `data.jpeg_quality`
        and `augment.blur`; a step whose value is 0 is left out of the program.

    Returns:
      [B, H, W, 3] of the same dtype, in [0, 1].
    """
    data, blur = config.data, config.augment.blur

    def draw(key):
        # `augment` uses the keys 0 to 8: fold_in(key, i) is the same as the i-th part of a split.
        return jax.random.uniform(jax.random.fold_in(key, 9), (5,))

    # float32 whatever the pictures' dtype: half precision is too coarse for an axis of 224 px.
    is_shrunk, factor, sigma, is_compressed, quality = jax.vmap(draw, out_axes=1)(keys)
    if data.downscale_prob or blur:
        low, high = data.downscale
        factor = jnp.where(is_shrunk < data.downscale_prob, low + (high - low) * factor, 1)

        def along(size):
            def matrix(factor, sigma):
                shrunk = resample.down_and_up(size, factor) if data.downscale_prob else None
                if not blur:
                    return shrunk
                blurred = resample.gaussian(size, sigma * blur)
                return blurred if shrunk is None else blurred @ shrunk

            return jax.vmap(matrix)(factor, sigma).astype(images.dtype)

        height, width = images.shape[1:3]
        rows = along(height)
        columns = rows if width == height else along(width)
        images = jnp.clip(resample.separable(images, rows, columns), 0, 1)
    if data.jpeg_prob:
        low, high = data.jpeg_quality
        compressed = jpeg(images, low + jnp.floor((high - low + 1) * quality))
        chosen = (is_compressed < data.jpeg_prob)[:, None, None, None]
        images = jnp.where(chosen, compressed, images)
    return images
