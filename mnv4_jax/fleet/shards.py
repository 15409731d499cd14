"""The output of a job: one Parquet file per shard, with each input row exactly once."""

import dataclasses
import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from input_pipeline.cli import printable
from mnv4_jax.fleet.inputs import Entry
from mnv4_jax.fleet.store import Store

_FACE = pa.struct([(side, pa.int32()) for side in ("left", "top", "width", "height")])
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # in the input, from 0
        ("path", pa.string()),
        ("p_fake", pa.float64()),  # null without a score
        ("label", pa.string()),  # fake or real, at the threshold
        ("face", _FACE),  # in px of the picture; null: the whole picture was scored
        ("error", pa.string()),  # why the picture could not be read
        ("reason", pa.string()),  # why a readable picture has no score
        ("checkpoint", pa.string()),
    ]
)
# Answers of scorers: rows of shards, in any order.
ANSWERS = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("p_fake", pa.float64()),
        ("face", pa.list_(pa.int32())),
        ("error", pa.string()),
        ("reason", pa.string()),
    ]
)
FOLDER = "scores"
_AT_ONCE = 16  # files read together: a bucket takes tens of milliseconds for each


def name(shard: int) -> str:
    return f"{FOLDER}/part-{shard:06d}.parquet"


@dataclasses.dataclass
class Shard:
    """The answers for one shard so far; a repeated answer changes nothing."""

    rows: int
    given: dict[int, tuple] = dataclasses.field(default_factory=dict)

    def take(self, row: int, answer: tuple) -> bool:
        """Stores `answer`, (p_fake, face, error, reason). Returns whether it is the row's first."""
        if row in self.given:
            return False
        self.given[row] = answer
        return True

    @property
    def complete(self) -> bool:
        return len(self.given) == self.rows

    def missing(self) -> list[int]:
        return [row for row in range(self.rows) if row not in self.given]


def encode(
    shard: Shard,
    entries: list[Entry],
    *,
    first_row: int,
    threshold: float,
    checkpoint: str,
    job: str,
) -> bytes:
    """A complete shard as a Parquet file.

    Args:
      entries: of the plan, one per row.
      first_row: of the shard, in the input.
      job: identity of the job, kept in the file for `verify`.
    """
    p_fake, face, error, reason = zip(*(shard.given[i] for i in range(shard.rows)), strict=True)
    table = pa.table(
        [
            np.arange(first_row, first_row + shard.rows),
            [printable(entry.path.decode(errors="surrogateescape")) for entry in entries],
            p_fake,
            [None if p is None else "fake" if p >= threshold else "real" for p in p_fake],
            [dict(zip(_FACE.names, box, strict=True)) if box else None for box in face],
            error,
            reason,
            [checkpoint] * shard.rows,
        ],
        schema=SCHEMA.with_metadata({"job": job}),
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def verify(store: Store, shard: int, rows: int, job: str) -> bool:
    """Whether the output of a shard exists, belongs to this job, and has all its rows."""
    try:
        with store.open(name(shard)) as stream, pq.ParquetFile(stream) as parquet:
            kept = parquet.schema_arrow.metadata or {}
            return parquet.metadata.num_rows == rows and kept.get(b"job") == job.encode()
    except (OSError, pa.ArrowException):  # truncated or damaged
        return False


def finished(store: Store, rows: np.ndarray, job: str) -> set[int]:
    """The shards that are done already."""
    there = {f"{FOLDER}/{file}" for file in store.names(FOLDER)}
    found = [i for i in range(len(rows)) if name(i) in there]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        whole = pool.map(lambda i: verify(store, i, int(rows[i]), job), found)
        return {i for i, is_whole in zip(found, whole, strict=True) if is_whole}


def _read(store: Store, shard: int) -> pa.Table:
    with store.open(name(shard)) as stream:
        return pq.read_table(stream, columns=["p_fake", "label", "error", "reason"])


@dataclasses.dataclass
class Summary:
    """Counts over the output of a job."""

    rows: int = 0
    unreadable: int = 0
    without_score: int = 0  # read, but too small, of one colour, or without a face
    fake: int = 0
    histogram: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(50, np.int64))

    @classmethod
    def of(cls, store: Store, shards: int) -> "Summary":
        """Counts all shards of a finished job."""
        summary = cls()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for table in pool.map(lambda shard: _read(store, shard), range(shards)):
                summary._add(table)
        return summary

    def _add(self, table: pa.Table) -> None:
        p_fake = table["p_fake"].drop_null().to_numpy()
        self.rows += len(table)
        self.unreadable += len(table) - table["error"].null_count
        self.without_score += len(table) - table["reason"].null_count
        self.fake += int(np.sum(table["label"].to_numpy(zero_copy_only=False) == "fake"))
        self.histogram += np.histogram(p_fake, len(self.histogram), (0, 1))[0]

    @property
    def scored(self) -> int:
        return self.rows - self.unreadable - self.without_score

    def json(self) -> str:
        facts = {k: v for k, v in dataclasses.asdict(self).items() if k != "histogram"}
        facts["share_fake"] = self.fake / self.scored if self.scored else None
        facts["histogram"] = self.histogram.tolist()
        return json.dumps(facts, indent=1)
