"""The shipped experiment, shrunk."""

import numpy as np

from configs import small
from tests import small_net  # noqa: F401  registers its network


def tiny_config(**overrides):
    """configs/small.py with the smallest network and no Gabor bank; `overrides` by dotted name."""
    config = small.get_config()
    config.model.name = "mobilenetv4_conv_small_035"
    config.gabor.mode = "none"
    config.model.drop_rate = 0.0
    config.update_from_flattened_dict(overrides)
    return config


def four_block_config(**overrides):
    """`tiny_config` with a network of four blocks, which compiles in seconds: for what does not
    depend on the network."""
    return tiny_config(**{"model.name": "small_net", **overrides})


def random_batch(batch_size=8, size=32):
    """A batch as a training step takes it, of noise."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (batch_size, size, size, 3), np.uint8),
        "label": rng.integers(0, 2, batch_size).astype(np.int32),
        "position": np.arange(batch_size, dtype=np.uint32),
    }
