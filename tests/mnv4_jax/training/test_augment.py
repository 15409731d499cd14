import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import small
from mnv4_jax.training import augment


@pytest.fixture
def images():
    return np.random.default_rng(0).random((4, 16, 20, 3)).astype(np.float32)


def config(**strengths):
    fields = small.get_config().augment
    for name in fields:
        fields[name] = float(strengths.get(name, 0))
    return fields


def test_the_draw_depends_on_seed_and_position_alone(images):
    settings = config(flip=0.5, brightness=0.2, contrast=0.2, saturation=0.2, noise=0.1)
    positions = np.array([7, 8, 9, 10], np.uint32)
    whole = augment.augment(images, augment.keys(0, positions), settings)
    part = augment.augment(images[2:], augment.keys(0, positions[2:]), settings)
    np.testing.assert_array_equal(whole[2:], part)
    other_seed = augment.augment(images, augment.keys(1, positions), settings)
    assert np.abs(whole - other_seed).max() > 0.05


def test_the_result_stays_within_the_range_of_pixels(images):
    settings = config(brightness=0.9, contrast=0.9, saturation=0.9, noise=0.5)
    out = augment.augment(images, augment.keys(0, np.arange(4, dtype=np.uint32)), settings)
    assert out.min() >= 0 and out.max() <= 1 and out.dtype == jnp.float32


def test_strength_zero_changes_nothing(images):
    out = augment.augment(images, augment.keys(0, np.arange(4, dtype=np.uint32)), config())
    np.testing.assert_array_equal(out, images)


def test_flip_mirrors_about_half_of_the_pictures():
    images = np.random.default_rng(0).random((200, 2, 3, 3)).astype(np.float32)
    keys = augment.keys(0, np.arange(200, dtype=np.uint32))
    out = augment.augment(images, keys, config(flip=0.5))
    mirrored = (np.asarray(out) == images[:, :, ::-1]).all((1, 2, 3))
    unchanged = (np.asarray(out) == images).all((1, 2, 3))
    assert (mirrored ^ unchanged).all()
    assert 70 < mirrored.sum() < 130


def test_brightness_moves_the_mean_by_up_to_its_strength_either_way_and_no_more():
    grey = np.full((200, 4, 4, 3), 0.5, np.float32)
    keys = augment.keys(0, np.arange(200, dtype=np.uint32))
    shift = np.asarray(augment.augment(grey, keys, config(brightness=0.1))) - 0.5
    assert shift.max() <= 0.1 + 1e-6 and shift.min() >= -0.1 - 1e-6
    assert shift.max() > 0.09 and shift.min() < -0.09
    assert np.ptp(shift, axis=(1, 2, 3)).max() < 1e-6  # a picture as a whole


def test_contrast_scales_deviations_by_up_to_its_strength_either_way_and_no_more():
    checks = np.indices((4, 4)).sum(0)[None, :, :, None] % 2
    images = np.broadcast_to(0.4 + 0.2 * checks, (200, 4, 4, 3)).astype(np.float32)
    keys = augment.keys(0, np.arange(200, dtype=np.uint32))
    out = np.asarray(augment.augment(images, keys, config(contrast=0.2)))
    factor = np.ptp(out, axis=(1, 2, 3)) / 0.2
    assert 0.8 - 1e-5 <= factor.min() < 0.82 and 1.18 < factor.max() <= 1.2 + 1e-5


def test_noise_has_a_deviation_between_nothing_and_its_strength():
    grey = np.full((200, 24, 24, 3), 0.5, np.float32)
    keys = augment.keys(0, np.arange(200, dtype=np.uint32))
    noise = np.asarray(augment.augment(grey, keys, config(noise=0.05))) - 0.5
    deviation = noise.std((1, 2, 3))
    assert deviation.min() < 0.004 and 0.046 < deviation.max() < 0.053
    assert 0.022 < deviation.mean() < 0.028  # evenly between
    assert abs(noise.mean()) < 1e-3


def test_no_two_pictures_have_the_same_noise():
    grey = np.full((50, 24, 24, 3), 0.5, np.float32)
    keys = augment.keys(0, np.arange(50, dtype=np.uint32))
    noise = np.asarray(augment.augment(grey, keys, config(noise=0.05))) - 0.5
    alike = np.corrcoef(noise.reshape(50, -1))[np.triu_indices(50, 1)]
    assert abs(alike).max() < 0.15


def test_saturation_moves_colour_away_from_luma_and_keeps_luma(images):
    luma = np.array([0.2989, 0.5870, 0.1140], np.float32)
    images = 0.4 + 0.2 * images  # away from the clipping
    out = augment.augment(
        images, augment.keys(0, np.arange(4, dtype=np.uint32)), config(saturation=0.5)
    )
    np.testing.assert_allclose(out @ luma, images @ luma, atol=1e-3)
    assert np.abs(out - images).max() > 0.01


def test_gamma_is_one_power_for_each_picture(images):
    images = np.clip(images, 0.05, 0.95)
    out = augment.augment(images, augment.keys(0, np.arange(4, dtype=np.uint32)), config(gamma=1))
    exponents = np.log(out) / np.log(images)
    assert np.ptp(exponents, axis=(1, 2, 3)).max() < 1e-2
    drawn = np.log2(exponents.mean((1, 2, 3)))
    assert abs(drawn).max() <= 1 and np.ptp(drawn) > 0.3


def test_gamma_has_a_gradient_on_black():
    def brightness(images):
        return augment.augment(images, augment.keys(0, np.arange(4)), config(gamma=1)).sum()

    assert jnp.isfinite(jax.grad(brightness)(jnp.zeros((4, 2, 2, 3)))).all()


def test_erase_hides_one_rectangle_behind_the_mean_colour(images):
    out = augment.augment(images, augment.keys(0, np.arange(4, dtype=np.uint32)), config(erase=1))
    for before, after in zip(images, np.asarray(out), strict=True):
        hidden = (before != after).any(-1)
        rows, columns = np.flatnonzero(hidden.any(1)), np.flatnonzero(hidden.any(0))
        assert hidden.sum() == len(rows) * len(columns) > 0
        np.testing.assert_allclose(
            after[hidden], np.tile(before.mean((0, 1)), (hidden.sum(), 1)), atol=1e-5
        )


def test_erased_rectangles_have_sides_of_a_fifth_to_a_half_however_rare_they_are():
    noise = np.random.default_rng(0).random((1, 50, 50, 3), dtype=np.float32)
    images = np.repeat(noise, 400, axis=0)
    keys = augment.keys(0, np.arange(400, dtype=np.uint32))
    out = np.asarray(augment.augment(images, keys, config(erase=0.3)))
    hidden = (out != images).any(-1)
    assert 80 < hidden.any((1, 2)).sum() < 160
    for across in (1, 2):  # heights, then widths
        sides = hidden.any(3 - across).sum(1)
        sides = sides[sides > 0]
        assert 10 <= sides.min() <= 11
        assert 24 <= sides.max() <= 25
        assert 16 < sides.mean() < 19
