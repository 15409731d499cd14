"""A detector ready for pictures: the interface for programs, which `predict` uses too."""

import functools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from input_pipeline import sources
from input_pipeline.batches import Batches, OnBad, eval_batches
from input_pipeline.decode import check_size, decode, to_rgb
from mnv4_jax.config import eval_transform
from mnv4_jax.detector import saved, scoring
from mnv4_jax.measure import calibration
from mnv4_jax.models.folded import folded
from mnv4_jax.ops import kernels
from mnv4_jax.runtime import compilation_cache, memory
from mnv4_jax.runtime.mesh import make_mesh

# A picture whose shorter side has fewer pixels shows too little of a face for an answer: the
# detector would mostly see the effects of upscaling.
LEAST_PX = 64
_ONE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)


class Answer(NamedTuple):
    """The answer for one picture. If the picture shows too little: no score, but a reason."""

    p_fake: float | None
    label: str | None  # "fake" or "real"
    reason: str | None = None  # "too small: 31 px, needs 64" or "one colour only"


class Detector:
    """A trained detector, ready for pictures. Several threads may call one at the same time.

    Pictures given as paths are read in small batches, so memory does not grow with their number.

    Args:
      path: a workdir, a checkpoints folder or one step's folder; None: the shipped detector.
      raw: use the weights as trained instead of their moving average.

    Raises:
      UserError: there is no intact checkpoint.

    Attributes:
      path, step, config, labels: of the checkpoint.
      model: a `classifier.Classifier` with its weights.
      transform: the part of a picture that is scored.
      calibration: as it was fitted, or None.
      temperature, thresholds, clear_below: of the calibration; p_fake by false-alarm rate, and by
        share of fakes. 1 and {} without one.
    """

    def __init__(self, path: str | os.PathLike | None = None, *, raw: bool = False):
        compilation_cache.enable()
        if not memory.has_accelerator():
            # On a machine's first run, compile the C++ while the checkpoint is read.
            kernels.prepare("kernels.cc", "network.cc")
        self._take(saved.load(path, raw=raw))

    @classmethod
    def of(cls, loaded: saved.Checkpoint) -> "Detector":
        """The detector of a loaded checkpoint; turns no compilation cache on."""
        detector = cls.__new__(cls)
        detector._take(loaded)
        return detector

    def _take(self, loaded: saved.Checkpoint) -> None:
        self.path, self.step, self.config = loaded.path, loaded.step, loaded.config
        self.model, self.labels, self.calibration = loaded.model, loaded.labels, loaded.calibration
        self.transform = eval_transform(loaded.config.data)
        fitted = loaded.calibration or {}
        self.temperature: float = fitted.get("temperature", 1.0)
        self.thresholds: dict[str, float] = fitted.get("thresholds", {})
        self.clear_below: dict[str, float] = fitted.get("clear_below", {})
        self._mesh = make_mesh()

    @functools.cached_property
    def folded(self):
        """`model` as scoring runs it."""
        return folded(self.model)

    @property
    def least_px(self) -> int:
        """The shorter side that a picture needs for an answer: `LEAST_PX`, or the side of what is
        scored if that is smaller."""
        return min(LEAST_PX, self.transform.size)

    def __call__(self, images: Sequence) -> np.ndarray:
        """Calibrated probabilities that pictures are fake.

        Args:
          images: N paths, encoded files (bytes), Pillow pictures of any mode, or uint8 arrays
            [H, W, 3] RGB or [H, W] grey; of any sizes. A single one counts as a list of one.

        Returns:
          [N] float64, p_fake; nan for a picture that is too small or of one colour: `answers` says
          which.

        Raises:
          ValueError: a picture cannot be read; names the first such.
        """
        return self._ask(images)[0]

    def answers(self, images: Sequence, *, threshold: float = 0.5) -> list[Answer]:
        """One `Answer` a picture, "fake" if p_fake ≥ `threshold`. Otherwise like `__call__`."""
        p_fake, reasons = self._ask(images)
        return [
            Answer(None, None, reason)
            if reason
            else Answer(float(p), "fake" if p >= threshold else "real")
            for p, reason in zip(p_fake, reasons, strict=True)
        ]

    def _ask(self, images: Sequence) -> tuple[np.ndarray, list[str | None]]:
        bad = []
        if isinstance(images, _ONE) or getattr(images, "ndim", 0) in (2, 3):  # NumPy, JAX, PyTorch
            images = [images]
        p_fake, reasons = self.score_or_say_why(
            Pictures(images), on_bad=lambda *why: bad.append(": ".join(why))
        )
        if bad:
            raise ValueError(f"unreadable picture {bad[0]}")
        return p_fake, reasons

    def score_or_say_why(
        self, source: sources.Source, on_bad: OnBad | None = None
    ) -> tuple[np.ndarray, list[str | None]]:
        """([N] float64 p_fake, N reasons for a missing score, or None) of a source.

        p_fake is nan for a picture with a reason, and for one that cannot be read: for the latter
        `on_bad` is called.
        """
        scores = self.logits(source, least_px=self.least_px, on_bad=on_bad)
        p_fake = np.full(len(source), np.nan)
        p_fake[scores.index] = calibration.p_fake(scores.logits, self.temperature)
        return p_fake, [scores.refused.get(i) for i in range(len(source))]

    def logits(self, source: sources.Source, **options) -> scoring.Scores:
        """The logits of a source before calibration; for `options` see `scoring.score_source`."""
        threads = self.config.data.threads
        return scoring.score_source(
            self.folded, source, self.transform, self._mesh, threads=threads, **options
        )

    def batches(self, source: sources.Source, *, batch_size: int) -> Batches:
        """The pictures of a source as the network gets them: see `eval_batches`."""
        threads = self.config.data.threads
        return eval_batches(source, self.transform, batch_size=batch_size, threads=threads)


class Pictures:
    """A source of paths, encoded files (bytes), Pillow pictures and uint8 arrays, [H, W, 3] RGB or
    [H, W] grey, in any mixture."""

    groups = None

    def __init__(self, images: Iterable):
        self._images = images = list(images)
        self.labels = np.full(len(images), -1, np.int32)
        self.ids = [
            os.fspath(image) if isinstance(image, str | os.PathLike) else f"number {i}"
            for i, image in enumerate(images)
        ]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, i: int) -> np.ndarray:
        image = self._images[i]
        if isinstance(image, str | os.PathLike):
            if os.path.isdir(image):
                raise OSError("no picture in this folder")
            image = pathlib.Path(image).read_bytes()
        if isinstance(image, bytes | bytearray | memoryview):
            return decode(bytes(image))
        if isinstance(image, Image.Image):
            if image.mode[0] in "IF":  # the value range of these modes is unknown
                raise OSError(f"a Pillow picture of mode {image.mode}: scale it to L or RGB first")
            image = to_rgb(image)
        image = np.asarray(image)  # from NumPy or JAX
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        if not image.size or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise OSError(f"{image.dtype} {image.shape} is neither uint8 [H, W, 3] nor [H, W]")
        check_size(*image.shape[:2])
        return image
