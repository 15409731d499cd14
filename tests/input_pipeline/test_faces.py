import cv2
import numpy as np
import pytest

from input_pipeline import demo, faces


@pytest.fixture(scope="module")
def finder():
    return faces.FaceFinder()


def wall(*places, side=160, shape=(400, 800)):
    """A grey wall with drawn portraits at (left, top)."""
    pixels = np.full((*shape, 3), 130, np.uint8)
    for left, top in places:
        pixels[top : top + side, left : left + side] = cv2.resize(demo.draw(7, 1)[0], (side, side))
    return pixels


def test_faces_are_found_where_they_are_from_left_to_right(finder):
    places = [(600, 30), (40, 200), (300, 120)]
    found = finder(wall(*places))
    assert len(found) == 3
    for face, (left, top) in zip(found, sorted(places), strict=True):
        x, y, width, height = face.box
        assert left < x + width / 2 < left + 160 and top < y + height / 2 < top + 160
        assert width == height and 80 < width < 240
        assert face.pixels.shape == (height, width, 3)
        eyes_y, mouth_y = face.landmarks[:2, 1].mean(), face.landmarks[3:, 1].mean()
        assert y < eyes_y < mouth_y < y + height


def test_a_crop_is_the_picture_at_its_box(finder):
    pixels = wall((300, 120))
    (face,) = finder(pixels)
    x, y, width, height = face.box
    np.testing.assert_array_equal(face.pixels, pixels[y : y + height, x : x + width])


@pytest.mark.parametrize("scale", [0.25, 3.0])
def test_the_same_face_is_found_in_a_smaller_and_a_larger_picture(finder, scale):
    pixels = wall((300, 120))
    (face,) = finder(pixels)
    (other,) = finder(cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    assert np.allclose(np.array(other.box) / scale, face.box, atol=0.15 * face.box[2])


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (90, 700)])
def test_a_picture_without_a_face_has_none(finder, shape):
    assert finder(np.full((*shape, 3), 130, np.uint8)) == []


def test_the_largest_face_is_the_portraits(finder):
    pixels = wall((500, 100))
    pixels[20:100, 60:140] = cv2.resize(demo.draw(7, 1)[0], (80, 80))
    small, large = finder(pixels)
    assert faces.largest([small, large]) is large
    assert faces.largest([]) is None
