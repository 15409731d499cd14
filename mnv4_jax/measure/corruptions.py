"""Common damage to pictures, for measuring robustness: ten kinds, five severities.

Pure functions on the host, uint8 RGB to uint8 RGB of the same size, applied to the decoded picture
before the evaluation transform, as if the file itself were damaged.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from input_pipeline import transforms


class Corruption(NamedTuple):
    """`apply(image [H, W, 3] uint8, level, rng) -> [H, W, 3] uint8` at five levels, mild first."""

    apply: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
    levels: tuple[float, float, float, float, float]
    unit: str


def jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    """JPEG compression; `quality` as in libjpeg, chroma at half resolution on both axes.

    Raises:
      OSError: a side is longer than JPEG allows.
    """
    if max(image.shape[:2]) > 65500:
        raise OSError("larger than a JPEG can be")
    return simplejpeg.decode_jpeg(encode_jpeg(image, quality))


def encode_jpeg(image: np.ndarray, quality: float) -> bytes:
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=int(quality), colorsubsampling="420"
    )


def webp(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    """Lossy WebP compression; `quality` as in libwebp.

    Raises:
      OSError: a side is longer than WebP allows.
    """
    if max(image.shape[:2]) > 16383:
        raise OSError("larger than a WebP can be")
    return transforms.webp(image, int(quality))


def screenshot(image: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Shown at `scale` of its size as a browser does (bilinear), saved as JPEG of quality 80,
    and scaled back to its old size (cubic)."""
    height, width = image.shape[:2]
    shown = cv2.resize(image, _scaled(width, height, scale), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(jpeg(shown, 80, rng), (width, height), interpolation=cv2.INTER_CUBIC)


def blur(image: np.ndarray, sigma_px: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur, cut off at four sigma."""
    radius = int(np.ceil(4 * sigma_px))
    return cv2.GaussianBlur(image, (2 * radius + 1,) * 2, sigma_px)


def noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """White Gaussian noise, `sigma` in grey levels of 255, independent for each channel."""
    noisy = image + sigma * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def downscale(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Scales width and height by `factor` (by area), then back to the old size (bilinear)."""
    height, width = image.shape[:2]
    small = cv2.resize(image, _scaled(width, height, factor), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def gamma(image: np.ndarray, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """v → v^exponent on [0, 1]: darker above 1."""
    table = 255 * (np.arange(256) / 255) ** exponent
    return np.rint(table).astype(np.uint8)[image]


def pixelate(image: np.ndarray, block_px: float, rng: np.random.Generator) -> np.ndarray:
    """Squares of one colour with side `block_px` (stretched if it does not divide the side)."""
    height, width = image.shape[:2]
    small = cv2.resize(image, _scaled(width, height, 1 / block_px), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


def occlude(image: np.ndarray, area: float, rng: np.random.Generator) -> np.ndarray:
    """One mid-grey rectangle of the picture's shape at a random place; `area` is its share."""
    height, width = image.shape[:2]
    patch_height, patch_width = (round(side * area**0.5) for side in (height, width))
    top = rng.integers(height - patch_height + 1)
    left = rng.integers(width - patch_width + 1)
    out = image.copy()
    out[top : top + patch_height, left : left + patch_width] = 128
    return out


def shift(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Moves the picture diagonally by `share` of the shorter side, and repeats its edge.

    This is no damage: a detector that is affected has learned the position of faces.
    """
    height, width = image.shape[:2]
    down, right = rng.choice((-1, 1), 2) * round(share * min(height, width))
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return image[rows[:, None], columns]


CORRUPTIONS: dict[str, Corruption] = {
    "jpeg": Corruption(jpeg, (90, 70, 50, 30, 10), "quality"),
    "webp": Corruption(webp, (90, 70, 50, 30, 10), "quality"),
    "screenshot": Corruption(screenshot, (0.9, 0.75, 0.6, 0.45, 0.3), "factor"),
    "blur": Corruption(blur, (0.5, 1, 1.5, 2, 3), "sigma, px"),
    "noise": Corruption(noise, (4, 8, 12, 18, 25), "sigma, grey levels of 255"),
    "downscale": Corruption(downscale, (0.75, 0.5, 0.35, 0.25, 0.15), "factor"),
    "gamma": Corruption(gamma, (1.25, 1.5, 1.75, 2, 2.5), "exponent"),
    "pixelation": Corruption(pixelate, (2, 3, 4, 6, 8), "block, px"),
    "occlusion": Corruption(occlude, (0.02, 0.05, 0.1, 0.2, 0.3), "share of the area"),
    "shift": Corruption(shift, (0.01, 0.02, 0.03, 0.06, 0.1), "share of the side"),
}


def corrupt(image: np.ndarray, kind: str, level: float, *, seed: int) -> np.ndarray:
    """`image` [H, W, 3] uint8 damaged by `kind` (a key of `CORRUPTIONS`) at `level`.

    The same seed gives the same picture; give each picture its own.
    """
    return CORRUPTIONS[kind].apply(image, level, np.random.default_rng(seed))


def _scaled(width: int, height: int, factor: float) -> tuple[int, int]:
    return max(1, round(width * factor)), max(1, round(height * factor))
