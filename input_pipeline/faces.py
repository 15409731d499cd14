"""Finds faces in whole photographs, and cuts out the view that detectors are trained on.

Uses CenterFace (Xu et al. 2020, arXiv:1911.03599), a network of 7 MB that comes with this package
under its MIT licence (face_finder/) and runs in OpenCV.
"""

import pathlib
from typing import NamedTuple

import cv2
import numpy as np

# Side of the crop as a multiple of the side of the face's box (the square root of its area). The
# box extends from the hairline to the chin.
MARGIN = 1.2
MIN_CONFIDENCE = 0.25  # at 0.5, 3 of 150 dark swaps of dfdc_faces are missed, at 0.25 none
MODEL = pathlib.Path(__file__).with_name("face_finder") / "centerface.onnx"
_OUTPUTS = ("537", "538", "539", "540")  # heat map, log of size, offset, landmarks
STRIDE = 4
SEARCHED_PX = 640  # longer side; a larger picture is searched at this size
SMALLEST_PX = 160  # smaller pictures are enlarged for the search
MAX_OVERLAP = 0.3  # of two boxes, as a share of their union


class Face(NamedTuple):
    """`box`: (left, top, width, height) of the crop in px of the picture; `pixels`: [h, w, 3]
    uint8; `landmarks`: [5, 2] px of the picture, eyes, nose, mouth.
    """

    box: tuple[int, int, int, int]
    pixels: np.ndarray
    landmarks: np.ndarray


class FaceFinder:
    """Not thread-safe: OpenCV keeps a network's last input."""

    def __init__(self):
        self._net = cv2.dnn.readNetFromONNX(str(MODEL))

    def __call__(self, image: np.ndarray) -> list[Face]:
        """The faces of [H, W, 3] uint8 RGB, left to right; their crops lie within the picture."""
        height, width = image.shape[:2]
        scale = min(SEARCHED_PX / max(height, width), 1.0)
        if min(height, width) < SMALLEST_PX:
            scale = min(SMALLEST_PX / min(height, width), SEARCHED_PX / max(height, width))
        # The network takes sides that are multiples of 32.
        sides = [max(32, round(side * scale / 32) * 32) for side in (width, height)]
        self._net.setInput(cv2.dnn.blobFromImage(image, 1.0, tuple(sides)))
        boxes, landmarks = _decode(*self._net.forward(_OUTPUTS))
        to_picture = np.array([width / sides[0], height / sides[1]])
        boxes[:, :4] *= np.tile(to_picture, 2)
        landmarks *= to_picture
        kept = sorted(_without_overlaps(boxes), key=lambda i: boxes[i, 0])
        return [_crop(image, boxes[i], landmarks[i]) for i in kept]


def largest(faces: list[Face]) -> Face | None:
    """The largest face, which is the subject of a portrait; None if there are no faces."""
    return max(faces, key=lambda face: face.box[2], default=None)


def _decode(heat, log_size, offset, points) -> tuple[np.ndarray, np.ndarray]:
    """([N, 5] left, top, right, bottom, confidence; [N, 5, 2] landmarks) in px of the input."""
    rows, columns = np.nonzero(heat[0, 0] >= MIN_CONFIDENCE)
    at = (0, slice(None), rows, columns)
    height, width = np.exp(log_size[at].reshape(-1, 2).T) * STRIDE
    dy, dx = offset[at].reshape(-1, 2).T
    left = (columns + dx + 0.5) * STRIDE - width / 2
    top = (rows + dy + 0.5) * STRIDE - height / 2
    boxes = np.stack([left, top, left + width, top + height, heat[0, 0, rows, columns]], axis=1)
    yx = points[at].reshape(-1, 5, 2)
    x = yx[..., 1] * width[:, None] + left[:, None]
    y = yx[..., 0] * height[:, None] + top[:, None]
    return boxes, np.stack([x, y], axis=2)


def _without_overlaps(boxes: np.ndarray) -> list[int]:
    corners = [(x, y, right - x, bottom - y) for x, y, right, bottom, _ in boxes.tolist()]
    kept = cv2.dnn.NMSBoxes(corners, boxes[:, 4].tolist(), MIN_CONFIDENCE, MAX_OVERLAP)
    return [int(i) for i in np.ravel(kept)]


def _crop(image: np.ndarray, box: np.ndarray, landmarks: np.ndarray) -> Face:
    """A square of `MARGIN` times the face, moved and if necessary shrunk to fit the picture."""
    height, width = image.shape[:2]
    left, top, right, bottom, _ = box
    side = np.sqrt(max(1.0, right - left) * max(1.0, bottom - top))
    size = max(1, min(round(MARGIN * side), height, width))
    x = int(np.clip(round((left + right) / 2 - size / 2), 0, width - size))
    y = int(np.clip(round((top + bottom) / 2 - size / 2), 0, height - size))
    # A copy: a view would keep the whole photograph in memory.
    pixels = image[y : y + size, x : x + size].copy()
    return Face((x, y, size, size), pixels, landmarks)
