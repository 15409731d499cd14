"""The list of a job's pictures, cut into shards and these into chunks: a Parquet file with one row
group per shard. No process has to hold it in memory.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from input_pipeline.cli import UserError
from mnv4_jax.fleet.inputs import Entry, Input
from mnv4_jax.fleet.store import Store

FILE = "plan.parquet"
_SCHEMA = pa.schema(
    [
        ("path", pa.binary()),
        ("source", pa.binary()),
        ("part", pa.int32()),
        ("at", pa.int64()),
        ("size", pa.int64()),
    ]
)
# Rows of one decode task. Ray Data's driver spends milliseconds on every task, so large jobs have
# larger tasks (docs/SCALING.md).
_CHUNK_ROWS, _MOST_CHUNK_ROWS = 256, 2560
_CHUNKS = 4000  # in a job, before chunks grow
_FOOTERS: dict[str, pq.FileMetaData] = {}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Attributes:
    digest: of the whole list, in order.
    rows: pictures in each shard.
    chunks: [C, 3] int64: shard, first row in it, row after the last; in order, and all rows.
    """

    digest: str
    rows: np.ndarray
    chunks: np.ndarray


def write(given: Input, store: Store, *, shard_rows: int, limit: int | None = None) -> Plan:
    """Lists the input into a draft in `store`; `adopt` makes it the plan.

    Args:
      shard_rows: pictures in a shard. The rows of one row group of a Parquet set stay together, so
        that it is read once: such shards may be larger.
      limit: take only this many, the first ones.
    """
    hashed = hashlib.blake2b(digest_size=16)
    rows, chunks = [], []
    with pq.ParquetWriter(store.draft(FILE), _SCHEMA, compression="zstd") as writer:
        for shard in _shards(
            itertools.islice(given.entries, limit), shard_rows, given.kind == "parquet"
        ):
            for entry in shard:
                hashed.update(b"%b\0%b\0%d\0%d\n" % entry[:4])
            columns = zip(*shard, strict=True)
            table = pa.table([list(column) for column in columns], schema=_SCHEMA)
            writer.write_table(table, row_group_size=len(shard))
            chunks += [(len(rows), *span) for span in _chunks(shard, given.kind == "parquet")]
            rows.append(len(shard))
    return Plan(
        hashed.hexdigest(), np.array(rows, np.int64), np.array(chunks, np.int64).reshape(-1, 3)
    )


def adopt(store: Store) -> None:
    store.put(FILE)
    _FOOTERS.pop(store.folder, None)


def entries(store: Store, shard: int, start: int = 0, stop: int | None = None) -> list[Entry]:
    """Rows of one shard of the plan.

    Raises:
      UserError: this process has no access to the job's folder.
    """
    try:
        footer = _footer(store)
        with store.open(FILE) as stream, pq.ParquetFile(stream, metadata=footer) as parquet:
            table = parquet.read_row_group(shard).slice(start, stop and stop - start)
    except FileNotFoundError:
        raise UserError(
            f"--out={store.folder}: not to be seen by a worker; with --ray, it must be a folder"
            " that every machine of the cluster sees, or a bucket"
        ) from None
    return [Entry(*row) for row in zip(*(c.to_pylist() for c in table.columns), strict=True)]


def tasks(chunks: np.ndarray) -> np.ndarray:
    """[T, 3]: the `chunks` of a plan; if there are many, consecutive ones of a shard are joined."""
    total = int((chunks[:, 2] - chunks[:, 1]).sum())
    size = min(max(total // _CHUNKS, _CHUNK_ROWS), _MOST_CHUNK_ROWS)
    joined: list[list[int]] = []
    for shard, start, stop in chunks.tolist():
        last = joined[-1] if joined else None
        if last and last[0] == shard and stop - last[1] <= size:
            last[2] = stop
        else:
            joined.append([shard, start, stop])
    return np.array(joined, np.int64).reshape(-1, 3)


def _footer(store: Store) -> pq.FileMetaData:
    """The plan's footer, read once per process: for 10,000 shards it is megabytes, and every task
    needs it."""
    if store.folder not in _FOOTERS:
        with store.open(FILE) as stream:
            _FOOTERS[store.folder] = pq.read_metadata(stream)
    return _FOOTERS[store.folder]


def _shards(found: Iterator[Entry], size: int, whole_groups: bool) -> Iterator[list[Entry]]:
    shard: list[Entry] = []
    for entry in found:
        new_group = not whole_groups or (shard and entry[1:3] != shard[-1][1:3])
        if len(shard) >= size and new_group:
            yield shard
            shard = []
        shard.append(entry)
    if shard:
        yield shard


def _chunks(shard: Sequence[Entry], whole_groups: bool) -> list[tuple[int, int]]:
    if not whole_groups:
        starts = range(0, len(shard), _CHUNK_ROWS)
        return [(start, min(start + _CHUNK_ROWS, len(shard))) for start in starts]
    spans, start = [], 0
    for i in range(1, len(shard) + 1):
        ends = i == len(shard) or shard[i][1:3] != shard[i - 1][1:3]
        if ends and (i - start >= _CHUNK_ROWS // 4 or i == len(shard)):
            spans.append((start, i))
            start = i
    return spans
