"""Scales a decoded picture on the host and cuts a square out of it.

Pure functions of uint8 pixels and of random numbers drawn elsewhere. All other transforms are done
on the device.
"""

import dataclasses

import cv2
import numpy as np

from input_pipeline import order

# Pictures are spread over threads already; OpenCV's own threads would only slow them down.
cv2.setNumThreads(0)

ONE_COLOUR = -1  # why a picture is refused
# Levels of 255 that a channel may vary by in a picture of one colour: a JPEG of it varies by 1.
FLAT_LEVELS = 2


@dataclasses.dataclass(frozen=True)
class Transform:
    """What is cut out of a picture, and at which scale.

    Attributes:
        size: px, side of the square result.
        shorter_px: px that a picture's shorter side is scaled to before the crop.
        crop: "resize" does so for every picture; "native" only if its shorter side is longer.
        zoom: (lowest, highest) factor for the side of a training crop in the picture.
    """

    size: int
    shorter_px: int
    crop: str
    zoom: tuple[float, float] = (1.0, 1.0)

    def side(self, height: int, width: int) -> int:
        """Side, in source pixels, of the square that is resized to `size`.

        Cropping first and then scaling gives the same picture as scaling first, at a bounded cost:
        a 1×100,000 px strip scaled up to 224 px would take 15 GB.
        """
        shorter = min(height, width)
        scale = shorter / self.shorter_px
        if self.crop == "native":
            scale = max(1.0, scale)
        return max(1, min(shorter, round(self.size * scale)))


def webp(pixels: np.ndarray, quality: int) -> np.ndarray:
    """[H, W, 3] uint8, at most 16,383 px a side: compressed as lossy WebP and decompressed.

    Args:
        quality: 0 to 100, as in libwebp.
    """
    settings = [cv2.IMWRITE_WEBP_QUALITY, quality]
    data = cv2.imencode(".webp", pixels[..., ::-1], settings)[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


def square(pixels: np.ndarray, transform: Transform) -> np.ndarray:
    """The middle square of a picture at training's scale; training crops are cut from it.

    Args:
        pixels: [H, W, 3] uint8 of any size.

    Returns:
        [s, s, 3] uint8, contiguous; s is `shorter_px`, or less for "native" and a smaller picture.
    """
    side = min(pixels.shape[:2])
    middle = _middle(pixels, side)
    scaled = min(side, transform.shorter_px) if transform.crop == "native" else transform.shorter_px
    if scaled == side:
        return np.ascontiguousarray(middle)
    out = np.empty((scaled, scaled, 3), np.uint8)
    cut(middle, out)
    return out


def crops(
    sides: np.ndarray, draws: np.ndarray, transform: Transform
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where training crops are cut from squares.

    Args:
        sides: [b] int64, of the squares, px.
        draws: [b, DRAWS] float64, uniform in [0, 1).

    Returns:
        (top, left, side), [b] int64 each, px of the square.
    """
    low, high = transform.zoom
    # The low bits of a draw serve as another random number.
    zoom = low + (high - low) * (draws[:, order.TOP] * 2**20 % 1)
    side = np.rint(np.minimum(sides, transform.size) * zoom).astype(np.int64)
    side = np.clip(side, 1, sides)
    room = sides - side + 1
    top, left = (draws[:, i] * room for i in (order.TOP, order.LEFT))
    return top.astype(np.int64), left.astype(np.int64), side


def evaluate(pixels: np.ndarray, transform: Transform, out: np.ndarray) -> None:
    """Writes the middle of a picture, [H, W, 3] uint8 of any size, to `out` [size, size, 3]."""
    cut(_middle(pixels, transform.side(*pixels.shape[:2])), out)


def why_refused(pixels: np.ndarray, seen: np.ndarray, least_px: int) -> int:
    """Why a picture gets no score, as the code in "refused" of a batch: its shorter side in px if
    that is below `least_px`, ONE_COLOUR, or 0 if it is not refused.

    Args:
        pixels: [H, W, 3] uint8, the picture.
        seen: [S, S, 3] uint8, the part of it that is scored.
        least_px: 0: no picture is refused.
    """
    if not least_px:
        return 0
    shorter = min(pixels.shape[:2])
    return shorter if shorter < least_px else ONE_COLOUR * _one_colour(seen)


def _one_colour(pixels: np.ndarray) -> bool:
    for part in (pixels[::16, ::16], pixels):  # for nearly every picture a few pixels suffice
        if np.ptp(part.reshape(-1, 3), axis=0).max() > FLAT_LEVELS:
            return False
    return True


def _middle(pixels: np.ndarray, side: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def cut(square: np.ndarray, out: np.ndarray) -> None:
    """Scales [s, s, 3] uint8 to `out`, [size, size, 3] uint8 contiguous: by area, or cubic."""
    if square.shape == out.shape:
        out[...] = square
    else:
        shrink = square.shape[0] > out.shape[0]
        how = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
        cv2.resize(np.ascontiguousarray(square), out.shape[1::-1], dst=out, interpolation=how)
