"""Weights, BatchNorm statistics and pictures that anyone can draw again: by name and seed alone.

Scaled so that activations keep their size through the network and logits are of order 1.
"""

import zlib

import numpy as np

from mnv4_jax.models.mobilenetv4 import VARIANTS

PUBLISHED = tuple(name for name in VARIANTS if name.startswith("mobilenetv4_"))


def tensors(shapes):
    """{timm's key: shape} -> {timm's key: float32 array}."""
    return {key: tensor(key, shape) for key, shape in shapes.items()}


def tensor(key, shape):
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("running_var"):
        values = rng.uniform(0.7, 1.3, shape)
    elif key.endswith(("running_mean", "bias")):
        values = 0.2 * rng.standard_normal(shape)
    elif len(shape) > 1:  # convolution or linear: [out, in / groups, ...]
        values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif ".pw_proj." in key or key.endswith(("bn2.weight", "gamma")):
        # the end of a residual branch
        values = rng.uniform(0.2, 0.5, shape)
    else:
        values = rng.uniform(0.8, 1.2, shape)
    return values.astype(np.float32)


def pictures(count=2, size=64, seed=0):
    """[count, size, size, 3] uint8: smooth shapes with noise on them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = rng.uniform(1, 9, (count, 3, 2))
    images = [[np.sin(2 * np.pi * (fy * y + fx * x)) for fy, fx in channels] for channels in waves]
    images = 127 + 80 * np.moveaxis(np.array(images), 1, -1)
    images += 20 * rng.standard_normal(images.shape)
    return images.clip(0, 255).astype(np.uint8)
