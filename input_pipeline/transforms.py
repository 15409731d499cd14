"""What happens to a decoded picture on the host: crop, scale, and damage that needs a codec.

Pure functions of uint8 pixels and of numbers drawn elsewhere. All else is done on the device.
"""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg

# Pictures are spread over threads already; OpenCV's own would only be in their way.
cv2.setNumThreads(0)

ONE_COLOUR = -1  # why a picture is refused
# Levels of 255 that a channel may vary by in a picture of one colour: a JPEG of one varies by 1.
FLAT_LEVELS = 2

DRAWS = 8  # random numbers a training picture may use; the last two are `batches`'s


@dataclasses.dataclass(frozen=True)
class Transform:
    """The fields of `config.data` that say what becomes of a picture.

    Attributes:
        size: px, side of the square result.
        shorter_px: what a picture's shorter side is scaled to before the crop.
        crop: "resize" scales every picture so; "native" only those whose shorter side is longer.
        jpeg_prob, jpeg_quality: share of crops compressed once more, and (lowest, highest) quality.
        zoom: (lowest, highest) factor on the side of a training crop, in the picture.
        downscale_prob, downscale: share scaled down and up again, and (lowest, highest) factor.
    """

    size: int
    shorter_px: int
    crop: str
    jpeg_prob: float = 0.0
    jpeg_quality: tuple[int, int] = (30, 95)
    zoom: tuple[float, float] = (1.0, 1.0)
    downscale_prob: float = 0.0
    downscale: tuple[float, float] = (0.4, 0.9)

    def side(self, height: int, width: int) -> int:
        """Side, in source pixels, of the square that is resized to `size`.

        Cropping first and scaling what is kept gives the picture that scaling first would, at a
        bounded cost: a 1×100,000 px strip scaled up to 224 px would take 15 GB.
        """
        shorter = min(height, width)
        scale = shorter / self.shorter_px
        if self.crop == "native":
            scale = max(1.0, scale)
        return max(1, min(shorter, round(self.size * scale)))


def train(
    pixels: np.ndarray,
    transform: Transform,
    draws: np.ndarray,
    out: np.ndarray,
    change: Callable[[np.ndarray], None] | None = None,
) -> None:
    """A random square crop, damaged with the configured probabilities.

    Args:
        pixels: [H, W, 3] uint8 of any size; scaled up where it is smaller than the result.
        draws: [DRAWS] float64, uniform in [0, 1).
        out: [size, size, 3] uint8, contiguous; written to.
        change: called with the crop before it is damaged; changes it in place.
    """
    height, width = pixels.shape[:2]
    low, high = transform.zoom
    # The low bits of a draw are a draw of their own.
    zoom = low + (high - low) * (draws[0] * 2**20 % 1)
    side = max(1, min(height, width, round(transform.side(height, width) * zoom)))
    top = int(draws[0] * (height - side + 1))
    left = int(draws[1] * (width - side + 1))
    _scale(pixels[top : top + side, left : left + side], out)
    if change:
        change(out)
    if draws[2] < transform.downscale_prob:
        low, high = transform.downscale
        down_and_up(out, low + (high - low) * draws[3])
    if draws[4] < transform.jpeg_prob:
        low, high = transform.jpeg_quality
        jpeg(out, int(low + (high - low + 1) * draws[5]))


def evaluate(pixels: np.ndarray, transform: Transform, out: np.ndarray) -> None:
    """The middle of the picture, undamaged; arguments as of `train`."""
    height, width = pixels.shape[:2]
    side = transform.side(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    _scale(pixels[top : top + side, left : left + side], out)


def why_refused(pixels: np.ndarray, seen: np.ndarray, least_px: int) -> int:
    """Why a picture gets no score, as "refused" of a batch says it: 0, its shorter side in px where
    that is below `least_px`, or ONE_COLOUR.

    Args:
        pixels: [H, W, 3] uint8, the picture.
        seen: [S, S, 3] uint8, what of it is scored.
        least_px: 0: no picture is refused.
    """
    if not least_px:
        return 0
    shorter = min(pixels.shape[:2])
    return shorter if shorter < least_px else ONE_COLOUR * _one_colour(seen)


def _one_colour(pixels: np.ndarray) -> bool:
    for part in (pixels[::16, ::16], pixels):  # a few pixels settle it for nearly every picture
        if np.ptp(part.reshape(-1, 3), axis=0).max() > FLAT_LEVELS:
            return False
    return True


def down_and_up(pixels: np.ndarray, factor: float) -> None:
    """Loses detail in place, as a platform that shrinks pictures does. factor: (0, 1)."""
    size = max(1, round(pixels.shape[0] * factor))
    small = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
    cv2.resize(small, pixels.shape[1::-1], dst=pixels, interpolation=cv2.INTER_CUBIC)


def jpeg(pixels: np.ndarray, quality: int) -> None:
    """Compresses and decompresses in place, at 4:2:0 as platforms do. quality: 1 to 100."""
    data = simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")
    simplejpeg.decode_jpeg(data, buffer=pixels)


def _scale(square: np.ndarray, out: np.ndarray) -> None:
    if square.shape == out.shape:
        out[...] = square
    else:
        shrink = square.shape[0] > out.shape[0]
        how = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
        cv2.resize(np.ascontiguousarray(square), out.shape[1::-1], dst=out, interpolation=how)
