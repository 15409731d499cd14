"""Which parts of a photograph a detector looks at: its faces, or all of it."""

import threading
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.decode import DecodeError
from input_pipeline.faces import FaceFinder
from input_pipeline.sources import Source

# If a face's crop is at least this part of its picture's shorter side, the picture is a portrait
# like those that detectors are trained on (rvf10k: 0.56 to 1), and is not cropped again.
FILLED = 0.55


class View(NamedTuple):
    """`pixels`: [h, w, 3] uint8 to score; `box`: left, top, width and height in px of the face in
    the picture, or None if the view is the whole picture."""

    pixels: np.ndarray
    box: tuple[int, int, int, int] | None = None


def face_views(pixels: np.ndarray, finder: FaceFinder, *, keep_crops: bool) -> list[View]:
    """The faces of a picture [H, W, 3] uint8, from left to right; empty if there is no face.

    Args:
      keep_crops: do not crop a picture whose only face fills it, see `FILLED`.
    """
    faces = finder(pixels)
    if keep_crops and len(faces) == 1 and faces[0].box[2] >= FILLED * min(pixels.shape[:2]):
        return [View(pixels)]
    return [View(face.pixels, face.box) for face in faces]


class LargestFaces:
    """A source like `source`, whose pictures are the largest face of each, as `face_views` finds
    it. A picture without a face cannot be read."""

    def __init__(self, source: Source):
        self._source, self._of_thread = source, threading.local()

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read(self, i: int) -> np.ndarray:
        if not hasattr(self._of_thread, "finder"):
            self._of_thread.finder = FaceFinder()
        views = face_views(self._source.read(i), self._of_thread.finder, keep_crops=True)
        if not views:
            raise DecodeError("no face found")
        return max(views, key=lambda view: view.box[2] if view.box else 0).pixels
