"""Each kind of damage against OpenCV, Pillow, SciPy or arithmetic, and against its promises."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mnv4_jax.measure import corruptions


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """[97, 64, 3]: a gradient with edges and texture; odd sides, so that rounding shows."""
    y, x = np.mgrid[0:97, 0:64]
    texture = 200 * ndimage.gaussian_filter(np.random.default_rng(0).normal(size=y.shape), 2)
    channels = [2 * x + texture + 60, y + texture + 80, 255 - 2 * x - y / 3]
    image = np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)
    image[30:50, 20:40] = 230
    return image


def corrupt(image, kind, level, seed=0):
    return corruptions.corrupt(image, kind, level, seed=seed).astype(int)


@pytest.mark.parametrize("kind", corruptions.CORRUPTIONS)
def test_damage_keeps_the_size_is_repeatable_and_grows(picture, kind):
    levels = corruptions.CORRUPTIONS[kind].levels
    damaged = [corruptions.corrupt(picture, kind, level, seed=3) for level in levels]
    assert all(d.shape == picture.shape and d.dtype == np.uint8 for d in damaged)
    again = corruptions.corrupt(picture, kind, levels[0], seed=3)
    np.testing.assert_array_equal(damaged[0], again)
    distances = [np.square(d - picture.astype(float)).mean() for d in damaged]
    assert distances[0] > 0
    assert distances == sorted(distances)


@pytest.mark.parametrize("kind", corruptions.CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 300, 3)])
def test_damage_accepts_odd_pictures(kind, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for level in corruptions.CORRUPTIONS[kind].levels:
        assert corruptions.corrupt(image, kind, level, seed=0).shape == shape


@pytest.mark.parametrize("quality", corruptions.CORRUPTIONS["jpeg"].levels)
def test_jpeg_uses_the_quantisation_pillow_would(picture, quality):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=int(quality), subsampling="4:2:0")
    ours = Image.open(io.BytesIO(corruptions.encode_jpeg(picture, quality)))
    theirs = Image.open(buffer)
    assert ours.quantization == theirs.quantization
    difference = corrupt(picture, "jpeg", quality) - np.asarray(theirs.convert("RGB"), int)
    assert np.abs(difference).mean() < 2  # the codecs round differently


@pytest.mark.parametrize("quality", corruptions.CORRUPTIONS["webp"].levels)
def test_webp_is_pillows(picture, quality):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=int(quality))
    theirs = np.asarray(Image.open(buffer).convert("RGB"), int)
    assert np.abs(corrupt(picture, "webp", quality) - theirs).mean() < 1


def test_a_screenshot_is_scaled_compressed_and_scaled_back(picture):
    shown = cv2.resize(picture, (48, 73), interpolation=cv2.INTER_LINEAR)
    buffer = io.BytesIO()
    Image.fromarray(shown).save(buffer, "JPEG", quality=80, subsampling="4:2:0")
    compressed = np.asarray(Image.open(buffer).convert("RGB"))
    back = cv2.resize(compressed, (64, 97), interpolation=cv2.INTER_CUBIC).astype(int)
    assert np.abs(corrupt(picture, "screenshot", 0.75) - back).mean() < 2  # codecs round


@pytest.mark.parametrize("sigma", corruptions.CORRUPTIONS["blur"].levels)
def test_blur_is_a_gaussian(picture, sigma):
    smooth = ndimage.gaussian_filter(
        picture.astype(float), (sigma, sigma, 0), mode="mirror", truncate=4
    )
    assert np.abs(corrupt(picture, "blur", sigma) - smooth).max() <= 1.5


def test_noise_has_the_stated_spread_and_depends_on_the_seed():
    grey = np.full((200, 200, 3), 128, np.uint8)
    for sigma in corruptions.CORRUPTIONS["noise"].levels:
        residual = corrupt(grey, "noise", sigma) - 128
        assert residual.std() == pytest.approx((sigma**2 + 1 / 12) ** 0.5, rel=0.02)
        assert abs(residual.mean()) < 0.02 * sigma
    assert (corrupt(grey, "noise", 4, seed=0) != corrupt(grey, "noise", 4, seed=1)).any()


def test_downscale_is_area_then_bilinear(picture):
    image = Image.fromarray(picture[:96])
    small = image.resize((32, 48), Image.Resampling.BOX)  # a whole factor: area is the box mean
    back = cv2.resize(np.asarray(small), (64, 96), interpolation=cv2.INTER_LINEAR)
    assert np.abs(corrupt(picture[:96], "downscale", 0.5) - back.astype(int)).max() <= 1


def test_gamma_is_a_power(picture):
    expected = 255 * (picture / 255) ** 1.5
    assert np.abs(corrupt(picture, "gamma", 1.5) - expected).max() <= 0.5


def test_pixelation_is_the_mean_of_each_block(picture):
    means = picture[:96].reshape(24, 4, 16, 4, 3).mean(axis=(1, 3))
    blocks = np.repeat(np.repeat(means, 4, axis=0), 4, axis=1)
    assert np.abs(corrupt(picture[:96], "pixelation", 4) - blocks).max() <= 0.5


def test_occlusion_covers_the_stated_share_somewhere():
    black = np.zeros((200, 100, 3), np.uint8)
    for area in corruptions.CORRUPTIONS["occlusion"].levels:
        covered = corrupt(black, "occlusion", area) == 128
        assert covered.mean() == pytest.approx(area, abs=0.01)
    one, other = (corrupt(black, "occlusion", 0.1, seed=seed) for seed in (0, 1))
    assert (one != other).any()


def test_shift_moves_the_picture_and_repeats_its_edge(picture):
    padded = np.pad(picture, ((6, 6), (6, 6), (0, 0)), mode="edge").astype(int)  # 0.1 of 64 px
    ways = [padded[y : y + 97, x : x + 64] for y in (0, 12) for x in (0, 12)]
    found = [corrupt(picture, "shift", 0.1, seed=seed) for seed in range(40)]
    hits = np.array([[np.array_equal(f, way) for way in ways] for f in found])
    assert (hits.sum(1) == 1).all() and hits.any(0).all()
