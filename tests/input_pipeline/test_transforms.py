"""Crops are pieces of the picture, scaling is OpenCV's, damage is what it says."""

import cv2
import numpy as np
import pytest

from input_pipeline import order, transforms
from input_pipeline.transforms import Transform
from tests.pictures import smooth


def _train(pixels, transform, draws):
    square = transforms.square(pixels, transform)
    table = np.zeros((1, order.DRAWS))
    table[0, : len(draws)] = draws
    sides = np.array([len(square)])
    ((top,), (left,), (side,)) = transforms.crops(sides, table, transform)
    out = np.zeros((transform.size, transform.size, 3), np.uint8)
    transforms.cut(square[top : top + side, left : left + side], out)
    return out


def _evaluate(pixels, transform):
    out = np.zeros((transform.size, transform.size, 3), np.uint8)
    transforms.evaluate(pixels, transform, out)
    return out


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (24, 24)])
@pytest.mark.parametrize("y, x", [(0.0, 0.0), (0.999999, 0.999999), (0.3, 0.8)])
def test_a_native_crop_is_a_piece_of_the_middle_square(shape, y, x):
    pixels = smooth(*shape)
    out = _train(pixels, Transform(size=24, shorter_px=64, crop="native"), [y, x])
    side = min(shape)
    top = (shape[0] - side) // 2 + int(y * (side - 23))
    left = (shape[1] - side) // 2 + int(x * (side - 23))
    np.testing.assert_array_equal(out, pixels[top : top + 24, left : left + 24])


def test_every_crop_is_as_likely_as_any_other():
    pixels = np.zeros((26, 26, 3), np.uint8)
    pixels[:, :, 0], pixels[:, :, 1] = np.mgrid[:26, :26]
    table = np.random.default_rng(0).random((9000, 2))
    corners = [tuple(_train(pixels, Transform(24, 64, "native"), row)[0, 0, :2]) for row in table]
    _, counts = np.unique(corners, axis=0, return_counts=True)
    assert len(counts) == 3 * 3 and abs(counts / 1000 - 1).max() < 0.15


@pytest.mark.parametrize(("crop", "shorter_px"), [("native", 64), ("resize", 32)])
@pytest.mark.parametrize("shape", [(10, 30), (30, 10), (16, 16), (1, 100_000)])
def test_a_small_picture_is_scaled_up(shape, crop, shorter_px):
    pixels = smooth(*shape)
    out = _evaluate(pixels, Transform(size=32, shorter_px=shorter_px, crop=crop))
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    middle = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    np.testing.assert_array_equal(out, cv2.resize(middle, (32, 32), interpolation=cv2.INTER_CUBIC))


def test_a_large_picture_is_scaled_down_then_cropped():
    pixels = smooth(200, 320)
    out = _evaluate(pixels, Transform(size=32, shorter_px=50, crop="native"))
    scaled = cv2.resize(pixels, (80, 50), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(out, scaled[9:41, 24:56])


@pytest.mark.parametrize("shape", [(96, 192), (20, 30)])  # scaled down, and up
def test_crop_resize_takes_the_whole_shorter_side(shape):
    pixels = smooth(*shape)
    out = _evaluate(pixels, Transform(size=32, shorter_px=32, crop="resize"))
    side, left = min(shape), (max(shape) - min(shape)) // 2
    middle = np.ascontiguousarray(pixels[:, left : left + side])
    how = cv2.INTER_AREA if side > 32 else cv2.INTER_CUBIC
    np.testing.assert_array_equal(out, cv2.resize(middle, (32, 32), interpolation=how))


@pytest.mark.parametrize("side", [96, 48, 24])
@pytest.mark.parametrize("draw", [0.0, 0.999999])
def test_crop_resize_scales_any_picture_alike_and_then_crops(side, draw):
    pixels = smooth(side, side)
    out = _train(pixels, Transform(size=42, shorter_px=48, crop="resize"), [draw] * 2)
    how = cv2.INTER_AREA if side > 48 else cv2.INTER_CUBIC
    scaled = pixels if side == 48 else cv2.resize(pixels, (48, 48), interpolation=how)
    start = round(draw * 6)
    np.testing.assert_array_equal(out, scaled[start : start + 42, start : start + 42])


@pytest.mark.parametrize("shape", [(40, 60), (31, 40), (40, 31), (25, 27)])
def test_evaluation_takes_the_very_middle(shape):
    """What lies above and below, and left and right of it, differs by one pixel at most."""
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[:, :, 0], pixels[:, :, 1] = np.mgrid[: shape[0], : shape[1]]
    out = _evaluate(pixels, Transform(size=24, shorter_px=64, crop="native"))
    for axis, length in enumerate(shape):
        before, after = int(out[0, 0, axis]), length - 1 - int(out[-1, -1, axis])
        assert before == (length - 24) // 2
        assert after - before == length % 2


def test_evaluation_of_a_whole_picture_changes_nothing():
    pixels = smooth(48, 48)
    np.testing.assert_array_equal(
        _evaluate(pixels, Transform(size=48, shorter_px=48, crop="native")), pixels
    )


def test_zoom_changes_how_much_of_the_picture_a_crop_shows():
    """On a ramp, the range of a crop is the side it was cut from."""
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 200, axis=0).repeat(3, axis=2)
    plain = Transform(size=160, shorter_px=200, crop="resize")
    zoomed = Transform(size=160, shorter_px=200, crop="resize", zoom=(0.5, 1.25))
    shown = {plain: [], zoomed: []}
    for draws in np.random.default_rng(0).random((200, 2)):
        for transform, sides in shown.items():
            out = _train(ramp, transform, draws)
            sides.append(int(out.max()) - int(out.min()) + 1)
    assert np.ptp(shown[plain]) <= 3 and abs(np.mean(shown[plain]) - 160) < 4
    assert abs(min(shown[zoomed]) - 80) < 8 and max(shown[zoomed]) >= 190
    assert abs(np.mean(shown[zoomed]) - 0.875 * 160) < 12
