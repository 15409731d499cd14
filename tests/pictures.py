"""Pictures without anybody in them, drawn by formula, and folders of them."""

import io
import pathlib

import numpy as np
from PIL import Image


def smooth(height: int, width: int, phase: float = 0.0) -> np.ndarray:
    """[H, W, 3] uint8: gentle waves that JPEG keeps to a few levels, and no two corners alike."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(5 * x + 3 * y + phase), np.cos(4 * y - 2 * x), np.sin(3 * x * y + 1 + phase)]
    return np.uint8(127 + 100 * np.stack(waves, axis=-1))


def encoded(pixels: np.ndarray | Image.Image, format: str = "JPEG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if format == "JPEG":
        options = {"quality": 95, "subsampling": 0} | options
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def write_set(root: pathlib.Path, per_class: int = 5, splits=("Train",), size: int = 40) -> str:
    """A folder in the Kaggle layout; every picture differs. Returns its path."""
    phase = 0
    for split in splits:
        for name in ("Fake", "Real"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                phase += 1
                (folder / f"{i}.jpg").write_bytes(encoded(smooth(size, size, phase)))
    return str(root)
