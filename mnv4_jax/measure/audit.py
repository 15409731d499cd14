"""Finds shortcuts in a set: how well properties of the file alone separate fakes from reals.

If fakes are smaller files than real pictures, or sharper, a detector may have learned only that.
"""

import concurrent.futures
import functools
import hashlib
import io
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from PIL import Image

from input_pipeline.decode import DecodeError, decode
from input_pipeline.sources import Source
from mnv4_jax.measure import metrics
from mnv4_jax.ops import jpeg

# name in the report: explanation
FEATURES = {
    "file_size": "bytes",
    "jpeg_quality": "as libjpeg counts it",
    "width": "px",
    "height": "px",
    "brightness": "mean grey level",
    "sharpness": "variance of the Laplacian",
}
_RESAMPLES = 200


def inspect(source: Source) -> tuple[str, dict[str, np.ndarray]]:
    """Reads every file once.

    Returns:
      A SHA-256 of all ids and contents in order, and each of `FEATURES` as [N] float64: nan if it
      does not apply (no JPEG) or the file cannot be read.
    """
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        rows = list(pool.map(lambda i: _inspect_file(source, i), range(len(source))))
    whole = hashlib.sha256()
    for name, (digest, _) in zip(source.ids, rows, strict=True):
        whole.update(f"{name}\0{digest}\n".encode(errors="surrogateescape"))
    columns = np.array([values for _, values in rows], np.float64).reshape(len(rows), len(FEATURES))
    return whole.hexdigest(), dict(zip(FEATURES, columns.T, strict=True))


def _inspect_file(source: Source, i: int) -> tuple[str, list[float]]:
    nothing = [np.nan] * len(FEATURES)
    try:
        data = source.encoded(i)
    except OSError:
        return "unreadable", nothing
    digest = hashlib.sha256(data).hexdigest()
    try:
        pixels = decode(data)
    except DecodeError:
        return digest, nothing
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    sharpness = cv2.Laplacian(grey, cv2.CV_32F).var()
    height, width = grey.shape
    return digest, [len(data), jpeg_quality(data), width, height, grey.mean(), sharpness]


def jpeg_quality(data: bytes) -> float:
    """The libjpeg quality, 1 to 100, whose luminance table is nearest; nan for other formats."""
    if data[:2] != b"\xff\xd8":
        return np.nan
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "MPO"]) as image:
            table = np.asarray(image.quantization[0])
    except (OSError, KeyError, SyntaxError):
        return np.nan
    return float(np.abs(_tables() - table).sum(axis=1).argmin() + 1)


@functools.cache
def _tables() -> np.ndarray:
    """[100, 64]: libjpeg's luminance table at qualities 1 to 100, in reading order."""
    return np.asarray(jpeg.table(jpeg.LUMA, np.arange(1, 101))).reshape(100, 64)


def shortcuts(labels: np.ndarray, features: Mapping[str, np.ndarray], groups) -> dict[str, Any]:
    """How well each feature alone separates fake from real.

    Args:
      labels: [N] 0 fake, 1 real.
      features: of `inspect`.
      groups: [N] names or None, for the intervals.

    Returns:
      {feature: {"auc": {"value", "ci95"}, "n", "median_fake", "median_real"}}; above 0.5 if fakes
      have the larger values. None instead of the AUC if a class has no such value.
    """
    out = {}
    for name, values in features.items():
        known = np.isfinite(values)
        fake, real = (values[known & (labels == c)] for c in (metrics.FAKE, metrics.REAL))
        auc = None
        if len(fake) and len(real):
            logits = np.stack([values[known], np.zeros(known.sum())], axis=1)
            known_groups = None if groups is None else np.asarray(groups)[known]
            auc = metrics.metrics_with_intervals(
                labels[known], logits, known_groups, resamples=_RESAMPLES
            )["auc"]
        out[name] = {
            "auc": auc,
            "n": int(known.sum()),
            "median_fake": float(np.median(fake)) if len(fake) else None,
            "median_real": float(np.median(real)) if len(real) else None,
        }
    return out
