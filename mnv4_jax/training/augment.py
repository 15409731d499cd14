"""Data augmentation of a batch on the device, inside the jitted step.

Every random draw is keyed by (seed, position of the example in the run), so it does not depend on
hosts or devices. Flip, brightness and contrast come from dm-pix. The others are written here:
dm-pix has no noise and no erasing.
"""

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mnv4_jax.training.damage import damage


def keys(seed: int, position: jax.Array) -> jax.Array:
    """One key for each example: [B] uint32 positions in the run -> [B] typed PRNG keys."""
    base = jax.random.key(seed)
    return jax.vmap(lambda p: jax.random.fold_in(base, p))(position)


def vary(
    images: jax.Array, position: jax.Array, config: ConfigDict, *, damaged: bool = True
) -> jax.Array:
    """Applies `damage`, then `augment`, as a training step does.

    Args:
      images: [B, H, W, 3] float in [0, 1].
      position: [B] uint32, positions of the examples in the run.
      config: the whole config.
      damaged: if False, the same augmentation without the damage.
    """
    drawn = keys(config.seed, position)
    if damaged:
        images = damage(images, drawn, config)
    return augment(images, drawn, config.augment)


def augment(images: jax.Array, keys: jax.Array, config: ConfigDict) -> jax.Array:
    """Draws one variation of every picture.

    Args:
      images: [B, H, W, 3] float in [0, 1].
      keys: [B] PRNG keys, see `keys`.
      config: `config.augment`; a strength of 0 leaves that step out of the program.

    Returns:
      [B, H, W, 3] of the same dtype, clipped to [0, 1].
    """

    field = _noise_field(*images.shape[1:3]) if config.noise else None

    def one(image, key):
        drawn = jax.random.split(key, 8)
        flip, brightness, contrast, saturation, noise, level, erase, place = drawn
        if config.flip:
            flipped = jax.random.bernoulli(flip, config.flip)
            image = jnp.where(flipped, dm_pix.flip_left_right(image), image)
        if config.brightness:
            delta = jax.random.uniform(brightness, (), image.dtype, -1, 1) * config.brightness
            image = dm_pix.adjust_brightness(image, delta)
        if config.contrast:
            factor = 1 + jax.random.uniform(contrast, (), image.dtype, -1, 1) * config.contrast
            image = dm_pix.adjust_contrast(image, factor)
        if config.gamma:
            # Not 0, where the gradient of a power below 1 is infinite.
            exponent = 2 ** (
                jax.random.uniform(jax.random.fold_in(key, 8), (), image.dtype, -1, 1)
                * config.gamma
            )
            image = jnp.clip(image, 1e-3, 1) ** exponent
        if config.saturation:
            # In RGB, away from luma: dm-pix's adjust_saturation goes through HSV, which costs a
            # small network more time than its own stem.
            factor = 1 + jax.random.uniform(saturation, (), image.dtype, -1, 1) * config.saturation
            luma = dm_pix.rgb_to_grayscale(image, keep_dims=True)
            image = luma + factor * (image - luma)
        if config.noise:
            strength = jax.random.uniform(level, (), image.dtype) * config.noise
            image = image + strength * _piece(field, image.shape, noise)
        if config.erase:
            hidden = jax.random.bernoulli(erase, config.erase) & rectangle(place, image.shape[:2])
            image = jnp.where(hidden[..., None], image.mean((0, 1)), image)
        return jnp.clip(image, 0, 1)

    return jax.vmap(one)(images, keys)


def rectangle(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """[H, W] bool mask of a random rectangle; each side is a fifth to a half of the picture's."""
    side, place = jax.random.uniform(key, (2, 2))
    side = 0.2 + 0.3 * side
    start = place * (1 - side)

    def within(axis):
        x = (jnp.arange(shape[axis]) + 0.5) / shape[axis]
        return (x > start[axis]) & (x < start[axis] + side[axis])

    return within(0)[:, None] & within(1)[None, :]


def _noise_field(height: int, width: int) -> np.ndarray:
    """[2 * height, 2 * width, 3] float32: white noise of standard deviation 1, always the same.

    Cutting a piece from a random place costs a thirtieth of drawing new noise for each picture.
    Drawing it was the most expensive part of a damaged step on a CPU.
    """
    return np.random.default_rng(0).standard_normal((2 * height, 2 * width, 3), np.float32)


def _piece(field: np.ndarray, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    top, left = jax.random.uniform(key, (2,))
    start = (jnp.floor(top * shape[0]), jnp.floor(left * shape[1]), 0)
    start = tuple(jnp.int32(place) for place in start)
    return jax.lax.dynamic_slice(jnp.asarray(field), start, shape)
