"""The shipped experiment, shrunk."""

from configs import small


def tiny_config(**overrides):
    """configs/small.py with the smallest network and no Gabor bank; `overrides` by dotted name."""
    config = small.get_config()
    config.model.name = "mobilenetv4_conv_small_035"
    config.gabor.mode = "none"
    config.model.drop_rate = 0.0
    config.update_from_flattened_dict(overrides)
    return config
