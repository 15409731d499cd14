"""Against the codecs themselves."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from input_pipeline import demo
from input_pipeline.decode import decode
from mnv4_jax.ops.jpeg import jpeg

compressed = jax.jit(jpeg)


@pytest.fixture(scope="module")
def portraits():
    """[4, 101, 88, 3] uint8 pieces of drawn portraits with grain; no side divides by 16."""
    rng = np.random.default_rng(0)
    pixels = np.stack([decode(demo.draw_jpeg(seed, 1)[0])[:101, :88] for seed in range(4)])
    return np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)


def with_pillow(pixels, quality):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file))


def apart(pixels, quality, expected):
    images = jnp.asarray(pixels, jnp.float32) / 255
    out = np.asarray(compressed(images, jnp.full(len(pixels), quality))) * 255
    np.testing.assert_allclose(out, np.rint(out), atol=1e-4)  # whole 255ths
    return np.abs(out - expected.astype(float))


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 90, 98])
def test_it_equals_pillow(portraits, quality):
    expected = np.stack([with_pillow(pixels, quality) for pixels in portraits])
    difference = apart(portraits, quality, expected)
    assert difference.mean() < 0.6 and (difference <= 6).mean() >= 0.999
    changed = np.abs(expected.astype(float) - portraits)
    assert difference.mean() < 0.15 * changed.mean()  # doing nothing would not pass


def test_it_equals_simplejpeg_where_that_transforms_exactly(portraits):
    """Below quality 96 TurboJPEG takes a transform of lower accuracy."""
    encoded = [simplejpeg.encode_jpeg(p, quality=97, colorsubsampling="420") for p in portraits]
    difference = apart(portraits, 97, np.stack([simplejpeg.decode_jpeg(data) for data in encoded]))
    assert difference.mean() < 0.6 and (difference <= 6).mean() >= 0.999


def test_twice_in_a_row_equals_pillow_twice(portraits):
    once = np.stack([with_pillow(pixels, 75) for pixels in portraits])
    twice = np.stack([with_pillow(pixels, 60) for pixels in once])
    images = jnp.asarray(portraits, jnp.float32) / 255
    out = compressed(compressed(images, jnp.full(4, 75)), jnp.full(4, 60))
    difference = np.abs(np.asarray(out) * 255 - twice)
    assert difference.mean() < 0.6 and (difference <= 6).mean() >= 0.99


def test_every_picture_has_its_own_quality(portraits):
    images = jnp.asarray(portraits, jnp.float32) / 255
    out = compressed(images, jnp.array([10, 40, 70, 95]))
    for i, quality in enumerate((10, 40, 70, 95)):
        alone = compressed(images[i : i + 1], jnp.array([quality]))
        np.testing.assert_allclose(out[i], alone[0], atol=1e-6)


def test_the_gradient_is_that_of_compression_without_rounding():
    """On a smooth grey picture, which high quality hardly changes, that is nearly the identity."""
    y, x = np.mgrid[:32, :32] / 32
    images = jnp.asarray(0.3 + 0.2 * np.sin(3 * x) * y, jnp.float32)[None, :, :, None].repeat(3, 3)
    weight = jnp.asarray(np.cos(2 * x + y), jnp.float32)[None, :, :, None]
    gradient = jax.grad(lambda z: jnp.sum(weight * jpeg(z, jnp.array([95]))))(images)
    total = np.asarray(gradient.sum(-1))[0]
    np.testing.assert_allclose(total, 3 * weight[0, :, :, 0], atol=0.06)
