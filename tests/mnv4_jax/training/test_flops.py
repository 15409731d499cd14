import types

import pytest

from configs import small
from mnv4_jax.training import flops


def test_multiply_adds_are_those_published_for_the_network():
    """timm's model card gives 0.2 G multiply-adds at 224 px."""
    config = small.get_config()
    config.gabor.mode = "none"
    config.data.image_size = 224
    assert flops.per_image(config) / 6 == pytest.approx(0.19e9, rel=0.05)


def test_attention_counts_once():
    """12 blocks of width 192 on 197 tokens: 12 width² + 2 tokens · width each, and the patches."""
    config = small.get_config()
    config.gabor.mode, config.model.name = "none", "vit_tiny_patch16_224"
    config.data.image_size = 224
    blocks = 12 * 197 * (12 * 192**2 + 2 * 197 * 192)
    assert flops.per_image(config) / 6 == pytest.approx(blocks + 196 * 768 * 192, rel=0.01)


def test_utilisation_is_a_share_of_the_device_that_is_there():
    device = types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    assert flops.utilisation(98.9e12, device) == pytest.approx(0.1)
    lite = types.SimpleNamespace(device_kind="TPU v5 lite")
    assert flops.utilisation(197e12, lite) == pytest.approx(1)
    unknown = flops.utilisation(1e12, types.SimpleNamespace(device_kind="cpu"))
    assert unknown != unknown
