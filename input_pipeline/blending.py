"""Makes fakes from photographs during training: blends a picture with a changed copy of itself, or
imitates the artefacts of a generator's upsampling.

Blending follows the idea of self-blended images (Shiohara and Yamasaki, CVPR 2022): a detector that
must find where two versions of one picture meet does not depend on any particular generator.
"""

import cv2
import numpy as np
import simplejpeg

_RECONSTRUCTED = 0.3  # share; the others are blended
# Centre (x, y) and half axes of regions to exchange, as shares of the side of a face's crop.
_REGIONS = (
    (0.50, 0.52, 0.32, 0.40),  # the face
    (0.50, 0.70, 0.20, 0.12),  # the mouth
    (0.50, 0.42, 0.32, 0.12),  # the eyes
    (0.50, 0.55, 0.13, 0.16),  # the nose
)
_REGION_SHARES = (0.55, 0.15, 0.2, 0.1)
_BORDER_PX = 4
_OPACITIES = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)


def make_fake(pixels: np.ndarray, rng: np.random.Generator) -> None:
    """Turns a face into a fake, in place.

    Args:
        pixels: [S, S, 3] uint8, a crop with the face in its middle.
        rng: all randomness comes from it.
    """
    if rng.random() < _RECONSTRUCTED:
        pixels[...] = reconstruct(pixels, rng)
    else:
        pixels[...] = blend(pixels, rng)


def blend(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[S, S, 3] uint8: `pixels` with a changed copy of it inside a soft mask, or vice versa."""
    changed = _other_look(_moved(pixels, rng), rng)
    inside, outside = (changed, pixels) if rng.random() < 0.5 else (pixels, changed)
    share = mask(pixels.shape[0], rng)[..., None] * rng.choice(_OPACITIES)
    mixed = inside * share + outside * (1 - share)
    return np.rint(mixed).astype(np.uint8)


def mask(size: int, rng: np.random.Generator) -> np.ndarray:
    """[size, size] float32 in [0, 1]: a region of the face, deformed, with a soft border."""
    x, y, a, b = _REGIONS[rng.choice(len(_REGIONS), p=_REGION_SHARES)]
    x, y = x + rng.uniform(-0.04, 0.04), y + rng.uniform(-0.04, 0.04)
    a, b = a * rng.uniform(0.75, 1.15), b * rng.uniform(0.75, 1.15)
    dx, dy = _smooth_noise(size, rng) * 0.15, _smooth_noise(size, rng) * 0.15
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    distance = ((at[None] - x + dx * a) / a) ** 2 + ((at[:, None] - y + dy * b) / b) ** 2
    inside = (distance < 1).astype(np.float32)
    return np.minimum(cv2.GaussianBlur(inside, (0, 0), size * rng.uniform(0.006, 0.05)), 1)


def reconstruct(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[S, S, 3] uint8: downscaled, then upscaled as generators do: by repeating pixels, or by
    inserting zeros between them and convolving.
    """
    size = pixels.shape[0]
    small_size = max(4, round(size / rng.choice((1.5, 2.0, 3.0))))
    small = cv2.resize(pixels, (small_size, small_size), interpolation=cv2.INTER_AREA)
    # Add a border and cut it off at the end: convolving zeros at the edge would leave a frame.
    small = cv2.copyMakeBorder(small, *[_BORDER_PX] * 4, cv2.BORDER_REPLICATE)
    large = small.astype(np.float32)
    taps = ((1, 2, 1), (1, 3, 3, 1), None)[rng.integers(3)]
    border = _BORDER_PX
    while large.shape[0] - 2 * border < size:
        border *= 2
        n = 2 * large.shape[0]
        if taps is None:
            large = cv2.resize(large, (n, n), interpolation=cv2.INTER_NEAREST)
            continue
        spread = np.zeros((n, n, 3), np.float32)
        spread[::2, ::2] = 4 * large
        # Slightly wrong taps leave the checkerboard of a transposed convolution.
        line = np.asarray(taps, np.float32) * rng.uniform(0.97, 1.03, len(taps))
        line = (line / line.sum()).astype(np.float32)
        large = cv2.filter2D(spread, -1, np.outer(line, line), borderType=cv2.BORDER_REFLECT)
    large = large[border:-border, border:-border]
    if large.shape[0] != size:
        large = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)
    # Generators also sharpen. Without this step, blur alone would reveal the fake.
    soft = cv2.GaussianBlur(large, (0, 0), rng.uniform(0.6, 1.2))
    large = large + rng.uniform(0.2, 0.7) * (large - soft)
    return np.clip(np.rint(large), 0, 255).astype(np.uint8)


def _moved(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shifted by up to 3% and scaled by up to 5%, with or without a slight elastic deformation."""
    size = pixels.shape[0]
    scale = rng.uniform(0.95, 1.05)
    shift = rng.uniform(-0.03, 0.03, 2) * size
    at = np.arange(size, dtype=np.float32)
    x = (at[None] - size / 2) * scale + size / 2 + shift[0] + np.zeros((size, 1), np.float32)
    y = (at[:, None] - size / 2) * scale + size / 2 + shift[1] + np.zeros((1, size), np.float32)
    if rng.random() < 0.5:
        x = x + _smooth_noise(size, rng) * 0.015 * size
        y = y + _smooth_noise(size, rng) * 0.015 * size
    return cv2.remap(
        pixels,
        x.astype(np.float32),
        y.astype(np.float32),
        cv2.INTER_LINEAR if rng.random() < 0.5 else cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT,
    )


def _other_look(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes colours, sharpness or compression: at least one of them."""
    what = rng.random(3) < 0.6
    what[rng.integers(3)] = True
    if what[0]:
        shifted = pixels.astype(np.float32) * rng.uniform(0.9, 1.1) + rng.uniform(-14, 14, 3)
        pixels = np.clip(np.rint(shifted), 0, 255).astype(np.uint8)
    if what[1] and rng.random() < 0.5:
        pixels = np.ascontiguousarray(pixels)
        _down_and_up(pixels, rng.uniform(0.35, 0.9))
    elif what[1]:
        soft = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.8, 2.0)).astype(np.float32)
        sharp = pixels + rng.uniform(0.2, 0.8) * (pixels - soft)
        pixels = np.clip(np.rint(sharp), 0, 255).astype(np.uint8)
    if what[2]:
        pixels = np.ascontiguousarray(pixels)
        _jpeg(pixels, int(rng.integers(35, 90)))
    return pixels


def _smooth_noise(size: int, rng: np.random.Generator) -> np.ndarray:
    """[size, size] float32 noise in about [-1, 1] that varies over a fifth of the side."""
    coarse = rng.uniform(-1, 1, (6, 6)).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _down_and_up(pixels: np.ndarray, factor: float) -> None:
    """Removes detail in place, as a platform that downscales pictures does. factor: (0, 1)."""
    size = max(1, round(pixels.shape[0] * factor))
    small = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
    cv2.resize(small, pixels.shape[1::-1], dst=pixels, interpolation=cv2.INTER_CUBIC)


def _jpeg(pixels: np.ndarray, quality: int) -> None:
    """Compresses and decompresses in place, at 4:2:0 as platforms do. quality: 1 to 100."""
    data = simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")
    simplejpeg.decode_jpeg(data, buffer=pixels)
