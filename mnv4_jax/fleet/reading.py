"""Reads the encoded pictures of input entries, in the process that decodes them."""

import functools
import itertools
import os
from collections.abc import Iterator, Sequence

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from input_pipeline.sources import SPLITS, FileSource, Source
from mnv4_jax.fleet.inputs import DAMAGED, Entry

_AT_ONCE = 32  # remote files requested together: each answer takes tens of milliseconds
_ROWS_AT_ONCE = 16  # of a Parquet file: they are in memory together


def read(entries: Sequence[Entry], kind: str, column: str = "") -> Iterator[bytes | OSError]:
    """Each entry's encoded picture, in order, or the error in reading it.

    Args:
      entries: of one `Input`, in its order.
      kind, column: of that input.
    """
    if kind == "parquet":
        return _from_parquet(entries, column)
    if kind == "files":
        return _from_files(entries)
    return map(_caught({"tar": _from_tar, "prepared": _from_prepared}[kind]), entries)


def _caught(function):
    def read_one(entry: Entry) -> bytes | OSError:
        try:
            return function(entry)
        except (OSError, ValueError) as error:
            return _as_os_error(error)

    return read_one


def _as_os_error(error: BaseException) -> OSError:
    """An OSError with a one-line message for the output; for an errno, without the path."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return OSError(" ".join(text.split())[:300])


def _from_files(entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
    for start in range(0, len(entries), _AT_ONCE):
        some = [os.fsdecode(e.source or e.path) for e in entries[start : start + _AT_ONCE]]
        fetched = _fetch([name for name in dict.fromkeys(some) if _is_remote(name)])
        for name in some:
            yield fetched[name] if name in fetched else _read_local(name.removeprefix("file://"))


def _is_remote(name: str) -> bool:
    return "://" in name and not name.startswith("file://")


def _read_local(path: str) -> bytes | OSError:
    try:
        if not path:
            raise OSError("the list has no path here")
        if os.path.isdir(path):
            raise OSError("a folder, not a picture")
        return FileSource([path]).encoded(0)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return _as_os_error(error)


def _fetch(urls: Sequence[str]) -> dict[str, bytes | OSError]:
    """Requests the URLs of one store together, if it answers many requests at once."""
    fetched: dict[str, bytes | OSError] = {}
    of_store: dict[fsspec.AbstractFileSystem, list[tuple[str, str]]] = {}
    for url in urls:
        try:
            fs, path = fsspec.core.url_to_fs(url)
            of_store.setdefault(fs, []).append((url, path))
        except (ImportError, ValueError, OSError) as error:
            fetched[url] = _as_os_error(error)
    for fs, found in of_store.items():
        paths = [path for _, path in found]
        # Not `cat`, which treats a name with [1] in it as a pattern.
        contents = fs.cat_ranges(paths, [0] * len(paths), [None] * len(paths), on_error="return")
        for (url, _), data in zip(found, contents, strict=True):
            fetched[url] = data if isinstance(data, bytes) else _as_os_error(data)
    return fetched


def _from_tar(entry: Entry) -> bytes:
    if entry.part == DAMAGED:
        raise OSError(f"the shard is damaged or cut short from byte {entry.at} on")
    stream = _opened(os.fsdecode(entry.source))
    stream.seek(entry.at)
    data = stream.read(entry.size)
    if len(data) < entry.size:
        raise OSError(f"the shard ends after {len(data)} of the picture's {entry.size} bytes")
    return data


@functools.lru_cache(maxsize=4)
def _opened(url: str):
    return fsspec.open(url, "rb").open()


def _from_prepared(entry: Entry) -> bytes:
    return _prepared(os.fsdecode(entry.source), SPLITS[entry.part]).encoded(entry.at)


@functools.lru_cache(maxsize=4)
def _prepared(folder: str, split: str) -> Source:
    from input_pipeline.prepared.source import TfdsSource  # takes a second

    return TfdsSource(folder, split, one_class=True)


def _from_parquet(entries: Sequence[Entry], column: str) -> Iterator[bytes | OSError]:
    """Reads row group by row group. After damage, each later row of the group gets the error."""
    for (source, group), some in itertools.groupby(entries, lambda entry: entry[1:3]):
        rows = [entry.at for entry in some]
        given = 0
        try:
            for data in _rows(os.fsdecode(source), group, column, rows):
                yield data
                given += 1
        except (OSError, pa.ArrowException) as error:
            yield from [_as_os_error(error)] * (len(rows) - given)


def _rows(file: str, group: int, column: str, rows: Sequence[int]) -> Iterator[bytes | OSError]:
    """The pictures in the given rows, which must be ascending."""
    wanted, first = iter(rows), 0
    row = next(wanted, None)
    with fsspec.open(file, "rb") as stream, pq.ParquetFile(stream, pre_buffer=False) as parquet:
        field = parquet.schema_arrow.field(column)
        name = f"{column}.bytes" if pa.types.is_struct(field.type) else column
        for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[name]):
            while row is not None and row < first + len(batch):
                value = batch.column(0)[row - first].as_py()
                data = value["bytes"] if isinstance(value, dict) else value
                yield data if data is not None else OSError("no bytes in this row")
                row = next(wanted, None)
            first += len(batch)
            if row is None:
                return
    if row is not None:
        raise OSError(f"the row group ends after {first} rows")
