"""Damage happens to as many pictures as it should, as strongly as it should."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import small
from mnv4_jax.ops.jpeg import jpeg
from mnv4_jax.training import augment
from mnv4_jax.training.damage import damage


def config(blur=0.0, **fields):
    made = small.get_config()
    made.data.update(fields)
    made.augment.blur = blur
    return made


def damaged(images, settings, seed=0):
    keys = augment.keys(seed, np.arange(len(images), dtype=np.uint32))
    return np.asarray(damage(jnp.asarray(images), keys, settings))


@pytest.fixture(scope="module")
def noisy():
    """[200, 16, 16, 3] float32, whole 255ths, the same picture every time."""
    one = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)) / 255
    return np.repeat(one, 200, axis=0).astype(np.float32)


def test_by_default_nothing_happens(noisy):
    np.testing.assert_array_equal(damaged(noisy, config()), noisy)


def test_a_share_of_the_pictures_is_compressed_at_qualities_of_the_whole_range(noisy):
    out = damaged(noisy, config(jpeg_prob=0.5, jpeg_quality=(20, 29)))
    untouched = (out == noisy).all((1, 2, 3))
    assert 70 < untouched.sum() < 130
    table = np.asarray(jpeg(jnp.asarray(noisy[:10]), jnp.arange(20, 30)))
    drawn = [
        np.flatnonzero((np.abs(table - image) < 1e-6).all((1, 2, 3))) for image in out[~untouched]
    ]
    assert all(len(found) == 1 for found in drawn)
    assert set(np.concatenate(drawn)) == set(range(10))


def test_a_share_of_the_pictures_loses_its_fine_detail():
    checks = (np.indices((16, 16)).sum(0) % 2).astype(np.float32)
    images = np.broadcast_to(checks[:, :, None], (200, 16, 16, 3))
    out = damaged(images, config(downscale_prob=0.25, downscale=(0.5, 0.5)))
    lost = out.std((1, 2, 3)) < 0.05
    np.testing.assert_allclose(out[~lost], images[~lost], atol=1e-5)
    assert 30 < lost.sum() < 70


def test_blur_softens_pictures_by_different_amounts():
    edges = np.broadcast_to(np.arange(16)[:, None, None] % 8 < 4, (50, 16, 16, 3))
    out = damaged(edges.astype(np.float32), config(blur=1.0))
    kept = out.std((1, 2, 3)) / edges[0].std()
    sharpest = cv2.GaussianBlur(edges[0].astype(np.float32), (7, 7), 1.0).std() / edges[0].std()
    assert sharpest - 0.02 < kept.min() < sharpest + 0.05 and kept.max() > 0.99


def test_the_draw_depends_on_seed_and_position_alone(noisy):
    settings = config(jpeg_prob=0.5, downscale_prob=0.5, blur=0.8)
    run = jax.jit(lambda keys: damage(jnp.asarray(noisy[:8]), keys, settings))
    keys = augment.keys(0, np.arange(8, dtype=np.uint32))
    whole = run(keys)
    np.testing.assert_allclose(run(keys[::-1]), whole[::-1], atol=1e-6)
    assert np.abs(run(augment.keys(1, np.arange(8, dtype=np.uint32))) - whole).max() > 0.05


def test_damage_and_augmentation_draw_independently():
    settings = config(downscale_prob=0.5, downscale=(0.4, 0.4))
    settings.augment.update(flip=0.0, brightness=0.3, contrast=0.0, saturation=0.0)
    noisy = 0.5 + 0.1 * np.random.default_rng(0).standard_normal((300, 16, 16, 3))
    positions = np.arange(300, dtype=np.uint32)
    out = np.asarray(augment.vary(jnp.asarray(noisy, jnp.float32), positions, settings))
    shift, sharpness = out.mean((1, 2, 3)), out.std((1, 2, 3))
    assert np.ptp(shift) > 0.5 and np.ptp(sharpness) > 0.04  # both happen
    assert abs(np.corrcoef(shift, sharpness)[0, 1]) < 0.2


def test_it_is_damage_that_the_step_does(noisy):
    settings = config(jpeg_prob=1.0)
    settings.augment.update(flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
    positions = np.arange(8, dtype=np.uint32)
    out = augment.vary(jnp.asarray(noisy[:8]), positions, settings)
    np.testing.assert_allclose(out, damaged(noisy[:8], settings), atol=1e-6)
    assert np.abs(out - noisy[:8]).max() > 0.1
