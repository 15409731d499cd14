"""What is done to a batch of pictures on the device, inside the jitted step.

Every random draw is keyed by (seed, position of the example in the run), so that it depends on
neither hosts nor devices. Flip, brightness and contrast are dm-pix; the others are written here:
dm-pix has no noise and no erasing, and its blur under vmap is one convolution per example.
"""

import dm_pix
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

_BLUR_RADIUS_PX = 3


def keys(seed: int, position: jax.Array) -> jax.Array:
    """One key for each example: [B] uint32 positions in the run -> [B] typed PRNG keys."""
    base = jax.random.key(seed)
    return jax.vmap(lambda p: jax.random.fold_in(base, p))(position)


def augment(images: jax.Array, keys: jax.Array, config: ConfigDict) -> jax.Array:
    """Draws one variation of every picture.

    Args:
      images: [B, H, W, 3] float in [0, 1].
      keys: [B] PRNG keys, see `keys`.
      config: `config.augment`; a strength of 0 leaves that step out of the program.

    Returns:
      [B, H, W, 3] of the same dtype, clipped to [0, 1].
    """

    def one(image, key):
        drawn = jax.random.split(key, 9)
        flip, brightness, contrast, saturation, blur, noise, level, erase, place = drawn
        if config.flip:
            flipped = jax.random.bernoulli(flip, config.flip)
            image = jnp.where(flipped, dm_pix.flip_left_right(image), image)
        if config.brightness:
            delta = jax.random.uniform(brightness, (), image.dtype, -1, 1) * config.brightness
            image = dm_pix.adjust_brightness(image, delta)
        if config.contrast:
            factor = 1 + jax.random.uniform(contrast, (), image.dtype, -1, 1) * config.contrast
            image = dm_pix.adjust_contrast(image, factor)
        if config.saturation:
            # In RGB, away from luma: dm-pix's adjust_saturation goes through HSV, which costs a
            # small network more time than its own stem.
            factor = 1 + jax.random.uniform(saturation, (), image.dtype, -1, 1) * config.saturation
            luma = dm_pix.rgb_to_grayscale(image, keep_dims=True)
            image = luma + factor * (image - luma)
        if config.blur:
            sigma = jax.random.uniform(blur, (), image.dtype) * config.blur
            image = gaussian_blur(image, sigma)
        if config.noise:
            strength = jax.random.uniform(level, (), image.dtype) * config.noise
            image = image + strength * jax.random.normal(noise, image.shape, image.dtype)
        if config.erase:
            hidden = jax.random.bernoulli(erase, config.erase) & rectangle(place, image.shape[:2])
            image = jnp.where(hidden[..., None], image.mean((0, 1)), image)
        return jnp.clip(image, 0, 1)

    return jax.vmap(one)(images, keys)


def rectangle(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """[H, W] bool: a random rectangle inside, each side a fifth to a half of the picture's."""
    side, place = jax.random.uniform(key, (2, 2))
    side = 0.2 + 0.3 * side
    start = place * (1 - side)

    def within(axis):
        x = (jnp.arange(shape[axis]) + 0.5) / shape[axis]
        return (x > start[axis]) & (x < start[axis] + side[axis])

    return within(0)[:, None] & within(1)[None, :]


def gaussian_blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """Separable Gaussian blur of one [H, W, C] picture, sigma in px (0 leaves it as it is).

    Borders are reflected without repeating the edge (OpenCV's BORDER_REFLECT_101).
    """
    r = _BLUR_RADIUS_PX
    offsets = jnp.arange(-r, r + 1, dtype=image.dtype)
    taps = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 1e-3)) ** 2)
    taps = taps / taps.sum()
    height, width, _ = image.shape
    rows = jnp.pad(image, ((r, r), (0, 0), (0, 0)), mode="reflect")
    image = sum(taps[i] * rows[i : i + height] for i in range(2 * r + 1))
    columns = jnp.pad(image, ((0, 0), (r, r), (0, 0)), mode="reflect")
    return sum(taps[i] * columns[:, i : i + width] for i in range(2 * r + 1))
