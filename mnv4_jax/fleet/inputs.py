"""Reads `--input`: a folder, a glob, a list, a Parquet set, tar shards or a prepared set. Yields
one `Entry` per picture, in an order that depends only on their names.
"""

import dataclasses
import glob
import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from input_pipeline import listing, sources
from input_pipeline.cli import UserError

EXPECTED = (
    "a folder of pictures, a glob, a .txt or .parquet list of paths, a .parquet set with encoded"
    " bytes, .tar shards, or a prepared set"
)
_LISTS = (".txt", ".lst", ".list")
# Column names for a picture's path in lists and sets, the preferred one first.
_PATH_COLUMNS = ("path", "file", "url", "uri", "filename", "file_name", "file_path", "image", "id")
_BLOCK = 512  # of a tar file; a block of zeros ends it
DAMAGED = -2  # `part` of the entry for everything after a damaged place in a tar shard


class Entry(NamedTuple):
    """One picture of the input, before it is read.

    Attributes:
      path: its name in the output, as bytes (`os.fsencode`): file names need not be UTF-8.
      source: the file or URL that holds it, also as bytes; empty: `path` itself.
      part: row group of a Parquet file, number of a split in sources.SPLITS, DAMAGED, or -1.
      at: row in the row group, byte in the tar shard, index in the split, or -1.
      size: in bytes if known, or -1.
    """

    path: bytes
    source: bytes = b""
    part: int = -1
    at: int = -1
    size: int = -1


@dataclasses.dataclass(frozen=True)
class Input:
    """`kind`: "files", "parquet", "tar" or "prepared"; `column`: of the encoded bytes, for
    "parquet"; `note`: what was passed over, as text; `from_parquet`: the list is in Parquet."""

    kind: str
    entries: Iterator[Entry]
    column: str = ""
    from_parquet: bool = False
    note: str = ""


def open_input(source: str, column: str | None = None) -> Input:
    """The input that `source` names; iterating over its entries lists it.

    Args:
      source: see EXPECTED; a local path or a URL that fsspec can open.
      column: of a Parquet file, with the paths or the encoded bytes; None: search for it.

    Raises:
      UserError: nothing is there, no picture, or no such column. While iterating: a list cannot be
        read.
    """
    if not source:
        raise UserError(f"--input is empty: expected {EXPECTED}")
    found = _open(source, column)
    if column and not found.from_parquet:
        raise UserError(f"--column={column}: --input={source} has no columns: leave it out")
    return found


def _open(source: str, column: str | None) -> Input:
    fs, path = _filesystem(source)
    local = "://" not in source
    if not (os.path.lexists(source) if local else fs.exists(path)) and glob.has_magic(path):
        return _of_files(source, _glob(source, fs, path), column)
    try:
        is_folder = fs.isdir(path)
        if not is_folder and not fs.exists(path):
            raise UserError(f"--input={source}: no such file or folder; expected {EXPECTED}")
    except (OSError, ValueError) as error:
        raise UserError(f"--input={source}: {error}; expected {EXPECTED}") from error
    if is_folder:
        return _of_folder(source, fs, path, column)
    return _of_files(source, [source], column)


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # package missing; no such protocol
        raise UserError(f"--input={url}: {error}") from None


def _glob(source: str, fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    if "://" not in source:
        return sorted(f for f in glob.glob(source, recursive=True) if not os.path.isdir(f))
    return sorted(fs.unstrip_protocol(found) for found in fs.glob(path))


def _of_folder(source: str, fs, path: str, column: str | None) -> Input:
    passed_over = listing.PassedOver()
    if "://" in source:
        names = sorted(map(fs.unstrip_protocol, fs.find(path)))
        files = [name for name in names if listing.is_picture(name.rpartition("/")[2])]
    else:
        if sources.is_prepared(source):
            return Input("prepared", _of_prepared(source))
        files = listing.pictures(source, passed_over)
        pattern = os.path.join(glob.escape(source), "**")
        names = [] if files else sorted(glob.glob(pattern, recursive=True))
    for ending in (".parquet", ".tar"):
        of_kind = [name for name in names if name.endswith(ending)]
        if of_kind and not files:
            return _of_files(source, of_kind, column)
    if not files:
        note = listing.describe(passed_over)
        raise UserError(
            f"--input={source}: no picture in it{'; ' * bool(note)}{note}; expected {EXPECTED}"
        )
    return Input("files", map(_file, files), note=listing.describe(passed_over))


def _of_files(source: str, files: Sequence[str], column: str | None) -> Input:
    """The input for one named file, or for the files of a glob or a folder."""
    if not files:
        raise UserError(f"--input={source}: no file matches; expected {EXPECTED}")
    endings = {os.path.splitext(file)[1].lower() for file in files}
    if endings == {".parquet"}:
        return _of_parquet(source, files, column)
    if endings == {".tar"}:
        return Input("tar", _of_tars(files))
    if endings <= set(_LISTS):
        return Input("files", _of_lists(files))
    if all(listing.is_picture(os.path.basename(file)) for file in files):
        return Input("files", map(_file, files))
    raise UserError(
        f"--input={source}: {', '.join(sorted(e or 'no ending' for e in endings))}: expected"
        f" {EXPECTED}"
    )


def _file(name: str) -> Entry:
    """The entry of a file. Makes a relative path absolute, since another process may read it."""
    relative = name and "://" not in name and not os.path.isabs(name)
    return Entry(os.fsencode(name), os.fsencode(os.path.abspath(name)) if relative else b"")


def _of_lists(files: Sequence[str]) -> Iterator[Entry]:
    for file in files:
        try:
            with fsspec.open(file, "rt", encoding="utf-8", errors="surrogateescape") as lines:
                for line in lines:
                    name = line.rstrip("\r\n")
                    if name.strip():
                        yield _file(name)
        except OSError as error:
            raise UserError(f"--input={file}: cannot be read: {error}") from error


def _of_parquet(source: str, files: Sequence[str], column: str | None) -> Input:
    schema = _parquet(files[0]).schema_arrow
    encoded = [field.name for field in schema if _holds_bytes(field.type)]
    paths = [field.name for field in schema if _holds_text(field.type)]
    named = [name for name in _PATH_COLUMNS if name in paths]
    if column is None:
        column = next(iter(encoded[:1] if len(encoded) == 1 else named[:1] or paths[:1]), None)
    if column not in (*encoded, *paths):
        wanted = f"no column {column}" if column else "no column of paths or of encoded pictures"
        raise UserError(
            f"--input={files[0]}: {wanted} (found:"
            f" {', '.join(f'{f.name} {f.type}' for f in schema) or 'none'}); name one of text, of"
            " bytes, or of {bytes, path} with --column=NAME"
        )
    if column in paths:
        return Input("files", _of_parquet_lists(files, column), from_parquet=True)
    name_column = next(iter(named), None)
    field = schema.field(column)
    if pa.types.is_struct(field.type) and field.type.get_field_index("path") >= 0:
        name_column = f"{column}.path"
    entries = _of_parquet_sets(files, column, name_column)
    return Input("parquet", entries, column=column, from_parquet=True)


def _parquet(file: str, column: str | None = None) -> pq.ParquetFile:
    """Opens a file; with `column`, one that must have it."""
    try:
        parquet = pq.ParquetFile(fsspec.open(file, "rb").open(), pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"--input={file}: not a Parquet file that can be read: {error}") from error
    if column is not None and column not in parquet.schema_arrow.names:
        raise UserError(f"--input={file}: no column {column}, which the first file has")
    return parquet


def _holds_bytes(type_: pa.DataType) -> bool:
    if pa.types.is_struct(type_):
        index = type_.get_field_index("bytes")
        return index >= 0 and _holds_bytes(type_.field(index).type)
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_)


def _holds_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def _of_parquet_lists(files: Sequence[str], column: str) -> Iterator[Entry]:
    for file in files:
        with _parquet(file, column) as parquet:
            try:
                for batch in parquet.iter_batches(4096, columns=[column]):
                    for name in batch.column(0).to_pylist():
                        yield _file(name or "")
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"--input={file}: cannot be read: {error}") from error


def _of_parquet_sets(files: Sequence[str], column: str, name_column: str | None) -> Iterator[Entry]:
    for file in files:
        with _parquet(file, column) as parquet:
            first = 0
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                names = _names(parquet, group, rows, name_column)
                for row, name in enumerate(names):
                    name = name or f"{file}#{first + row}"
                    yield Entry(os.fsencode(name), os.fsencode(_absolute(file)), group, row)
                first += rows


def _names(
    parquet: pq.ParquetFile, group: int, rows: int, name_column: str | None
) -> list[str | None]:
    """The pictures' own names in a row group; None for those without one, or if it is damaged."""
    if name_column is None:
        return [None] * rows
    try:
        names = parquet.read_row_group(group, columns=[name_column]).column(0).to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError):  # its rows are reported one by one
        return [None] * rows
    return [name["path"] if isinstance(name, dict) else name for name in names]


def _absolute(file: str) -> str:
    return file if "://" in file else os.path.abspath(file)


def _of_tars(files: Sequence[str]) -> Iterator[Entry]:
    """The pictures of each shard, found by reading its headers."""
    for file in files:
        source, end = os.fsencode(_absolute(file)), 0
        try:
            with fsspec.open(file, "rb") as stream:
                with tarfile.open(fileobj=stream, mode="r:") as tar:
                    for member in tar:
                        tar.members = []  # tarfile would keep them all
                        end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                        if member.isreg() and listing.is_picture(os.path.basename(member.name)):
                            name = os.fsencode(f"{file}/{member.name}")
                            yield Entry(name, source, -1, member.offset_data, member.size)
                # tarfile treats a damaged or truncated header as the end.
                stream.seek(end)
                whole = stream.read(_BLOCK) == bytes(_BLOCK)
        except tarfile.TarError:
            whole = False
        except OSError as error:
            raise UserError(f"--input={file}: cannot be read: {error}") from error
        if not whole:  # the rest cannot be separated: report it as one row
            yield Entry(os.fsencode(f"{file}#{end}"), source, DAMAGED, end, -1)


def _of_prepared(folder: str) -> Iterator[Entry]:
    from input_pipeline.prepared.source import TfdsSource  # takes a second

    source = os.fsencode(os.path.abspath(folder))
    for number, split in enumerate(sources.SPLITS):
        if TfdsSource.has_split(folder, split):
            ids = TfdsSource(folder, split, one_class=True).ids
            for index, name in enumerate(ids):
                yield Entry(os.fsencode(name), source, number, index)
