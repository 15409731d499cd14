"""The detector in its own process: turns views into answers."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator

import jax
import numpy as np
import pyarrow as pa

from input_pipeline import transforms
from input_pipeline.cli import UserError
from mnv4_jax.detector import saved, scoring
from mnv4_jax.detector.detector import Detector
from mnv4_jax.fleet import shards
from mnv4_jax.measure import calibration
from mnv4_jax.models.weights import split
from mnv4_jax.runtime import memory
from mnv4_jax.runtime.mesh import make_mesh


@dataclasses.dataclass(frozen=True)
class Card:
    """Facts about the detector of a job.

    Attributes:
      path: the checkpoint itself, so that a better one in the same workdir does not replace it
        during a job; None: the shipped detector.
      digest: of everything that affects the scores.
    """

    path: str | None
    digest: str
    transform: transforms.Transform
    least_px: int
    thresholds: dict[str, float]


def describe(checkpoint: str | None, raw: bool) -> Card:
    """The card of a detector. Runs in its own task on the CPU, to leave accelerators to scorers."""
    jax.config.update("jax_platforms", "cpu")  # the variable is read when JAX is imported
    return card_of(Detector.of(saved.load(checkpoint, raw=raw)), named=checkpoint is not None)


def card_of(detector: Detector, *, named: bool = True) -> Card:
    """`named`: it was loaded from a path; otherwise it is the shipped detector."""
    config, transform, least_px = detector.config, detector.transform, detector.least_px
    hashed = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(split(detector.model)[1]):
        hashed.update(jax.tree_util.keystr(path).encode())
        hashed.update(np.asarray(leaf).tobytes())
    facts = (config.model.to_dict(), config.gabor.to_dict(), transform, least_px)
    hashed.update(repr((facts, detector.temperature if detector.calibration else None)).encode())
    return Card(
        os.fspath(detector.path) if named else None,
        hashed.hexdigest(),
        transform,
        least_px,
        detector.thresholds,
    )


class Scorer:
    """An actor for `Dataset.map_batches`: holds one detector and scores block by block.

    Args:
      card: of the detector; raises UserError if the detector has changed since.
      raw: see `saved.load`.
      threads: for XLA on a CPU; 0: one per core.
    """

    def __init__(self, card: Card, raw: bool, threads: int = 0):
        if threads:
            os.environ["NPROC"] = str(threads)  # read by XLA when its client starts
        memory.keep_freed()
        self._detector = Detector(card.path, raw=raw)
        if card_of(self._detector).digest != card.digest:
            raise UserError(f"--checkpoint={card.path} changed while the job was running")
        self._card = card
        self._mesh = make_mesh()
        size = max(scoring.batch_sizes())
        self._batch_size = -(-size // self._mesh.size) * self._mesh.size

    def __call__(self, views: pa.Table) -> pa.Table:
        """A block of `decoding.SCHEMA` → its answers, `shards.ANSWERS`."""
        columns = views.drop_columns(["pixels"]).to_pydict()
        pixels = self._pixels(views)
        refused = np.array([code for codes in columns["refused"] for code in codes], np.int32)
        p_fake = np.full(len(pixels), np.nan)
        batches = self._batches(pixels, np.flatnonzero(refused == 0))
        scores = scoring.score(self._detector.folded, batches, self._mesh)
        p_fake[scores.index] = calibration.p_fake(scores.logits, self._detector.temperature)
        answers, start = [], 0
        for codes, box, error in zip(
            columns["refused"], columns["faces"], columns["error"], strict=True
        ):
            stop = start + len(codes)
            answers.append(self._answer(p_fake[start:stop], codes, box, error))
            start = stop
        answered = zip(*answers, strict=True) if answers else [[]] * 4
        return pa.table(
            [columns["shard"], columns["row"], *map(list, answered)], schema=shards.ANSWERS
        )

    def _answer(self, p_fake: np.ndarray, refused: list[int], boxes: list[int], error: str | None):
        """(p_fake, face, error, reason); of several faces, the one with the highest p_fake."""
        if error:
            return None, None, error, None
        if not len(refused):
            return None, None, None, "no face found"
        if np.isnan(p_fake).all():
            reason = scoring.reason_of(next(filter(None, refused), 0), self._card.least_px)
            return None, None, None, reason
        best = int(np.nanargmax(p_fake))
        return float(p_fake[best]), boxes[4 * best : 4 * best + 4] or None, None, None

    def _pixels(self, views: pa.Table) -> np.ndarray:
        """[V, S, S, 3] uint8 of all rows, whose bytes are consecutive: usually without a copy."""
        size = self._card.transform.size
        chunks = []
        for chunk in views["pixels"].chunks:
            offsets = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset :][: len(chunk) + 1]
            data = chunk.buffers()[2]
            if len(chunk) and data is not None:
                chunks.append(np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]])
        flat = chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, np.uint8), *chunks])
        return flat.reshape(-1, size, size, 3)

    def _batches(self, pixels: np.ndarray, scored: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(scored), self._batch_size):
            some = scored[start : start + self._batch_size]
            pad = (0, self._batch_size - len(some))
            yield {
                "image": np.pad(pixels[some], (pad, (0, 0), (0, 0), (0, 0))),
                "label": np.full(self._batch_size, -1, np.int32),
                "index": np.pad(some.astype(np.int32), pad, constant_values=-1),
                "mask": np.arange(self._batch_size) < len(some),
                "refused": np.zeros(self._batch_size, np.int32),
            }
