"""Against OpenCV."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv4_jax.ops import resample
from tests.pictures import smooth


def applied(make, images, strength):
    rows, columns = (make(size, jnp.float32(strength))[None] for size in images.shape[:2])
    return np.asarray(resample.separable(jnp.asarray(images)[None], rows, columns)[0])


@pytest.mark.parametrize("factor", [0.02, 0.35, 0.5, 0.61, 0.9, 1.0])
def test_down_and_up_equals_opencv(factor):
    pixels = smooth(60, 40)
    pixels[20:30, 10:20] = 255  # an edge
    small = [max(1, round(side * factor)) for side in (40, 60)]
    small = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    expected = cv2.resize(small, (40, 60), interpolation=cv2.INTER_CUBIC)
    out = applied(resample.down_and_up, pixels.astype(np.float32), factor)
    # OpenCV rounds the small picture, and cubic interpolation makes more of that.
    assert np.abs(out.clip(0, 255) - expected).max() < 1.5


@pytest.mark.parametrize("sigma", [0.6, 1.0])
def test_blur_equals_opencv(sigma):
    images = np.random.default_rng(0).random((16, 20, 3)).astype(np.float32)
    expected = cv2.GaussianBlur(images, (7, 7), sigma, borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(applied(resample.gaussian, images, sigma), expected, atol=1e-5)


def test_no_blur_at_sigma_zero():
    images = np.random.default_rng(0).random((16, 20, 3)).astype(np.float32)
    np.testing.assert_allclose(applied(resample.gaussian, images, 0.0), images, atol=1e-6)


def test_another_factor_is_no_other_program():
    run = jax.jit(lambda factor: resample.down_and_up(12, factor))
    for factor in (0.3, 0.7):
        run(jnp.float32(factor))
    assert run._cache_size() == 1
