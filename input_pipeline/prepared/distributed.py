"""`prepare --ray`: Ray tasks compute fingerprints, near copies and shards, for sets too large for
one process. The results are the same as those of one process.

The driver keeps 32 bytes per picture besides its name; thumbnails are in files. `out` must be a
folder that all machines share.
"""

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np

from input_pipeline import engine
from input_pipeline.cli import printable
from input_pipeline.prepared import banding, builder, leaks
from input_pipeline.sources import FileSource, Source

SCRATCH = ".fingerprints"
_CHUNK = 256  # pictures in a task
_PAIRS = 8192  # pairs compared in a task


class Chunk(NamedTuple):
    """What a task found about some consecutive pictures.

    Attributes:
        readable: [R] int64 positions in the source.
        n_bytes: [R] int64, of the files; `record_bytes`: of their records in the set.
        digest: [R] S16; phash: [R] uint64; flat: [R] bool, see `leaks.Fingerprint`.
        unreadable: (id, reason).
    """

    readable: np.ndarray
    n_bytes: np.ndarray
    record_bytes: np.ndarray
    digest: np.ndarray
    phash: np.ndarray
    flat: np.ndarray
    unreadable: list[tuple[str, str]]


def look(part: FileSource, groups: list[str] | None, first: int, thumbnails: str) -> Chunk:
    """A task: scans the pictures of `part`, which begins at `first` in its split. Writes their
    thumbnails to the file `thumbnails`, [R, 32, 32] uint8."""
    rows, small, unreadable = [], [], []
    for i, name in enumerate(part.ids):
        found = leaks.examine(part, i)
        if isinstance(found, str):
            unreadable.append((printable(name), found))
            continue
        data, mark = found
        record = builder.record(data, int(part.labels[i]), name, groups[i] if groups else "")
        flat = mark.thumbnail.reshape(-1).std() < leaks.MIN_CONTRAST
        rows.append((first + i, len(data), len(record), mark.digest, mark.phash, flat))
        small.append(mark.thumbnail)
    side = leaks.THUMBNAIL_PX
    draft = f"{thumbnails}.{os.getpid()}"
    with open(draft, "wb") as file:
        np.save(file, np.array(small, np.uint8).reshape(-1, side * side))
    os.replace(draft, thumbnails)
    columns = zip(*rows, strict=True) if rows else [[]] * 6
    types = (np.int64, np.int64, np.int64, "V16", np.uint64, bool)
    # V16: NumPy treats zeros at the end of an S16 as padding.
    arrays = [np.array(list(c), t) for c, t in zip(columns, types, strict=True)]
    return Chunk(*arrays, unreadable)


class Scan:
    """What all tasks found: by split, and over all splits in their order."""

    def __init__(self, found: dict[str, list[Chunk]], scratch: pathlib.Path):
        chunks = [chunk for of_split in found.values() for chunk in of_split]
        self.readable = {name: _join(of, "readable") for name, of in found.items()}
        self.n_bytes = {name: _join(of, "n_bytes") for name, of in found.items()}
        self.record_bytes = {name: _join(of, "record_bytes") for name, of in found.items()}
        self.unreadable = [row for chunk in chunks for row in chunk.unreadable]
        self.digest, self.phash, self.flat = (
            _join(chunks, name) for name in ("digest", "phash", "flat")
        )
        self._scratch = scratch
        self._starts = np.cumsum([0, *(len(chunk.readable) for chunk in chunks)])

    def thumbnail_files(self, positions: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """(file, indices into `positions`, rows in the file) of each file with some of them."""
        chunk = np.searchsorted(self._starts, positions, side="right") - 1
        out = []
        for number in np.unique(chunk):
            where = np.flatnonzero(chunk == number)
            out.append(
                (_file(self._scratch, number), where, positions[where] - self._starts[number])
            )
        return out


def _join(chunks: Sequence[Chunk], name: str) -> np.ndarray:
    return np.concatenate([getattr(chunk, name) for chunk in chunks])


def _file(scratch: pathlib.Path, number: int) -> str:
    return os.fspath((scratch / f"{number:06d}.npy").absolute())


def scan(
    ray: ModuleType,
    sources: dict[str, Source],
    out: pathlib.Path,
    on_read: Callable[[int], None],
) -> Scan:
    """Scans every picture. Calls `on_read` with the number of pictures in each scanned chunk."""
    scratch = out / SCRATCH
    scratch.mkdir(exist_ok=True)
    spans = [
        (name, first, min(first + _CHUNK, len(source)))
        for name, source in sources.items()
        for first in range(0, len(source), _CHUNK)
    ]

    def calls() -> Iterator[tuple]:
        for number, (name, first, stop) in enumerate(spans):
            source = sources[name]
            groups = source.groups[first:stop] if source.groups else None
            yield source.part(range(first, stop)), groups, first, _file(scratch, number)

    found: dict[str, list[Chunk]] = {name: [] for name in sources}
    for (name, first, stop), chunk in zip(spans, engine.in_order(ray, look, calls()), strict=True):
        found[name].append(chunk)
        on_read(stop - first)
    return Scan(found, scratch)


def find_duplicates(ray: ModuleType, found: Scan) -> leaks.Duplicates:
    """The result of `leaks.find_duplicates`, by banding, see banding.py."""
    _, first, inverse, count = np.unique(
        found.digest, return_index=True, return_inverse=True, return_counts=True
    )
    members = np.argsort(inverse, kind="stable")
    groups = np.split(members, np.cumsum(count)[:-1]) if len(count) else []
    exact = sorted(group.tolist() for group in groups if len(group) > 1)
    firsts = np.sort(first)
    flat = found.flat[firsts]
    flat_ones, firsts = firsts[flat].tolist(), firsts[~flat]

    hashes = found.phash[firsts]
    shared = ray.put(hashes)
    calls = (
        (shared, table, leaks.MAX_DISTANCE)
        for table in banding.tables(len(hashes), leaks.MAX_DISTANCE)
    )
    of_tables = list(engine.in_order(ray, banding.pairs_in, calls))
    pairs = np.concatenate([np.empty((0, 2), np.int64), *of_tables])
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    correlation = _correlation(ray, found, firsts[pairs])
    keep = correlation >= leaks.MIN_CORRELATION
    pairs, correlation = pairs[keep], correlation[keep]
    return leaks.Duplicates(
        exact=exact,
        near=firsts[pairs],
        distance=np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]),
        correlation=correlation,
        flat=flat_ones,
    )


def _correlation(ray: ModuleType, found: Scan, pairs: np.ndarray) -> np.ndarray:
    """[M] float32 of pairs of positions, [M, 2]."""

    def calls() -> Iterator[tuple]:
        for start in range(0, len(pairs), _PAIRS):
            some = pairs[start : start + _PAIRS]
            positions, rows = np.unique(some, return_inverse=True)
            yield found.thumbnail_files(positions), len(positions), rows.reshape(some.shape)

    parts = engine.in_order(ray, correlate, calls())
    return np.concatenate([np.empty(0, np.float32), *parts])


def correlate(files: list, count: int, pairs: np.ndarray) -> np.ndarray:
    """A task: the correlation of each pair of rows of the `count` thumbnails in `files`."""
    thumbnails = np.empty((count, leaks.THUMBNAIL_PX**2), np.uint8)
    for file, where, rows in files:
        thumbnails[where] = np.load(file, mmap_mode="r")[rows]
    return leaks.correlation_of(thumbnails, pairs)


def write_shards(
    ray: ModuleType, on_written: Callable[[int], None]
) -> Callable[[builder.Split, Sequence[tuple[str, int, int]]], None]:
    """A `write_shards` for `builder.DeepfakeFaces` that writes each shard in its own task."""

    def write(split: builder.Split, shards: Sequence[tuple[str, int, int]]) -> None:
        groups = split.groups()

        def calls() -> Iterator[tuple]:
            for path, start, stop in shards:
                part = split.source.part(split.keep[start:stop])
                yield path, part, groups[start:stop] if groups else None

        for (_, start, stop), _ in zip(
            shards, engine.in_order(ray, builder.write_shard, calls()), strict=True
        ):
            on_written(stop - start)

    return write
