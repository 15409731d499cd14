"""The shipped experiment, shrunk."""

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
