"""The decode task: turns rows of the plan into the pixels that the network sees.

Does not import JAX: every core has such a process, and it should be small.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from input_pipeline import transforms
from input_pipeline.decode import DecodeError, decode
from input_pipeline.faces import FaceFinder
from mnv4_jax.detector.views import View, face_views
from mnv4_jax.fleet import plan, reading
from mnv4_jax.fleet.store import Store

# Views, from decode tasks to scorers: one row per input picture.
SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("pixels", pa.large_binary()),  # its V views, [V, S, S, 3] uint8
        ("faces", pa.list_(pa.int32())),  # [V, 4] left, top, width, height; or empty
        ("refused", pa.list_(pa.int32())),  # [V], see `transforms.why_refused`
        ("error", pa.string()),
    ]
)
BLOCK_BYTES = 32 << 20  # sent to a scorer at a time


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A callable for `Dataset.map_batches`.

    Attributes:
      out: the job's folder.
      chunks: a reference to [C, 3] int64, see `plan.Plan`.
      kind, column: of the input, see `inputs.Input`.
      transform, least_px: of the detector's input.
      faces: find faces first; `keep_crops`: see `views.face_views`.
    """

    out: str
    chunks: Any
    kind: str
    column: str
    transform: transforms.Transform
    least_px: int
    faces: bool
    keep_crops: bool

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        """`batch`: {"id": numbers of chunks}."""
        import ray

        chunks = ray.get(self.chunks)[batch["id"]]
        rows, n_bytes = [], 0
        for shard, start, stop in chunks.tolist():
            entries = plan.entries(Store(self.out), shard, start, stop)
            found = reading.read(entries, self.kind, self.column)
            for row, data in enumerate(found, start):
                rows.append((shard, row, *self.views(data)))
                n_bytes += len(rows[-1][2])
                if n_bytes >= BLOCK_BYTES:
                    yield as_table(rows)
                    rows, n_bytes = [], 0
        yield as_table(rows)

    def views(self, data: bytes | OSError) -> tuple[bytes, list[int], list[int], str | None]:
        """(pixels, faces, refused, error) of an encoded picture, or of the error in reading it."""
        if isinstance(data, OSError):
            return b"", [], [], str(data)
        try:
            pixels = decode(data)
        except DecodeError as error:
            return b"", [], [], " ".join(str(error).split())
        views = [View(pixels)]
        if self.faces:
            views = face_views(pixels, _finder(), keep_crops=self.keep_crops)
        size = self.transform.size
        seen = np.empty((len(views), size, size, 3), np.uint8)
        for view, out in zip(views, seen, strict=True):
            transforms.evaluate(view.pixels, self.transform, out)
        refused = [
            transforms.why_refused(view.pixels, out, self.least_px)
            for view, out in zip(views, seen, strict=True)
        ]
        boxes = [side for view in views for side in view.box or ()]
        return seen.tobytes(), boxes, refused, None


def as_table(rows: list[tuple]) -> pa.Table:
    """Rows of SCHEMA."""
    columns = zip(*rows, strict=True) if rows else [[]] * len(SCHEMA)
    return pa.table([list(column) for column in columns], schema=SCHEMA)


@functools.cache
def _finder() -> FaceFinder:
    return FaceFinder()
