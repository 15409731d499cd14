"""The table of all backbones: the possible values of `model.name`.

A backbone has `features(x, train=, key=)`, its last output with a spatial layout, and
`classify(features, train=, key=)` for the logits; calling it does both.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mnv4_jax.models import mobilenetv4, vit


def names() -> list[str]:
    return [*mobilenetv4.VARIANTS, *vit.VARIANTS]


def check(name: str) -> None:
    """Raises ValueError if there is no such row."""
    if name not in names():
        raise ValueError(f"model.name={name!r}: must be one of {', '.join(names())}")


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std), of pixels in [0, 1], that a row's weights expect."""
    row = vit.VARIANTS.get(name)
    return row.normalisation if row else vit.IMAGENET


def make(
    config: ConfigDict, *, inputs: int, classes: int, dtype=jnp.float32, rng: np.random.Generator
) -> nnx.Module:
    """The backbone of `config.model`, with fresh weights.

    Raises:
      ValueError: there is no such row, or its patch does not divide `data.image_size`.
    """
    model = config.model
    check(model.name)
    common = {
        "inputs": inputs,
        "classes": classes,
        "drop_rate": model.drop_rate,
        "drop_path_rate": model.drop_path_rate,
        "zero_init_head": model.zero_init_head,
        "dtype": dtype,
        "rng": rng,
    }
    if row := vit.VARIANTS.get(model.name):
        return vit.VisionTransformer(row, image_size=config.data.image_size, **common)
    row = mobilenetv4.VARIANTS[model.name]
    return mobilenetv4.MobileNetV4(row, zero_init_residual=model.zero_init_residual, **common)
