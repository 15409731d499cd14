"""Decoded pictures on disk: one slot for each picture of a training set, filled as they are read.

A folder below `MNV4_CACHE/pictures` has two files that the processes of a host share: `pixels`,
with one slot of side² x 3 bytes per picture, and `index`, with one record per picture. A record is
written after its pixels. Each process checks a slot before its first use: the checksum of its
pixels, and that the picture's file has not changed since (path, size, modification time).
"""

import hashlib
import logging
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable

import numpy as np

from input_pipeline import cache
from input_pipeline.cli import UserError
from input_pipeline.sources import Source

_FORM = "1"  # format of the files; another format gets another folder
_STAMP_BYTES = 16
_RECORD = np.dtype([("side", "<i4"), ("crc", "<u4"), ("stamp", f"S{_STAMP_BYTES}")])
_DAMAGED = -1  # in place of a side: the picture could not be read
_GIB = 2**30


def open_for(
    source: Source, side_px: int, cache_form: str, most_gib: float, say: Callable[[str], None]
) -> "Slots | None":
    """The slots of a source, or None if pictures are decoded again every time.

    Args:
        source: the pictures.
        side_px: the largest side of a decoded picture.
        cache_form: `data.cache`; "auto" uses no cache if there is no room.
        most_gib: limit for all sets together; 0: half of the free space plus the space that sets
            take already. The least recently used sets are deleted to make room.
        say: called with a line that says what was chosen and how large it is.

    Raises:
        UserError: no room, or the folder is not writable, and `cache_form` is not "auto".
    """
    if cache_form == "none":
        return None
    root = cache.root() / "pictures"
    needed = len(source) * side_px**2 * 3
    if reason := cache.why_not_writable(root):
        reason = f"{root}: {reason}"
    else:
        folder = root / _name(source, side_px)
        others = _by_last_use(root, folder)
        taken = sum(size for _, size in others)
        most = most_gib * _GIB or (shutil.disk_usage(root).free + _taken(folder) + taken) / 2
        if needed > most:
            reason = f"{_gib(needed)} needed, {_gib(most)} allowed below {root}"
    if reason:
        if cache_form != "auto":
            raise UserError(
                f"config.data.cache={cache_form}: no cache of decoded pictures: {reason};"
                " name another folder by MNV4_CACHE, or config.data.cache=none"
            )
        say(f"pictures are decoded anew in every epoch: {reason}")
        return None
    for path, size in others:
        if taken + needed <= most:
            break
        shutil.rmtree(path, ignore_errors=True)  # a process that still reads it keeps its files
        taken -= size
    slots = Slots(source, folder, side_px)
    say(
        f"decoded pictures are kept in {folder}: {_gib(needed)} for {len(source):,} pictures of"
        f" {side_px} px, {slots.filled():,} there already"
    )
    return slots


class Slots:
    """The slots of one source. Picklable; used from many threads.

    Args:
        source: the pictures; has `stamp`.
        folder: holds the two files; created here.
        side_px: the largest side of a decoded picture.
    """

    def __init__(self, source: Source, folder: pathlib.Path, side_px: int):
        self._source, self._folder, self._side_px = source, folder, side_px
        self._bytes = side_px**2 * 3
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {"pixels": len(source) * self._bytes, "index": len(source) * _RECORD.itemsize}
        self._files = {}
        for name, size in sizes.items():
            descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
            self._files[name] = os.fdopen(descriptor, "r+b", buffering=0)
            os.ftruncate(descriptor, size)  # a sparse file: takes no room yet
        os.utime(folder / "index")  # the time of last use
        self.memory = np.memmap(folder / "pixels", np.uint8, mode="r")
        self._index = np.memmap(folder / "index", _RECORD, mode="r")
        self._checked = np.zeros(len(source), bool)
        self._writable = True

    def __reduce__(self):
        return Slots, (self._source, self._folder, self._side_px)

    def filled(self) -> int:
        """The number of pictures with a slot, whose pixels are not checked."""
        return int(np.count_nonzero(self._index["side"] > 0))

    def complete(self) -> bool:
        """Whether every picture has a valid slot, or is known to be damaged."""
        every = np.arange(len(self._index))
        self.sides(every)
        return bool((self._checked | (self._index["side"] == _DAMAGED)).all())

    def sides(self, indices: np.ndarray) -> np.ndarray:
        """[b] indices -> [b] int64 px: sides of the pictures, 0 for those without a valid slot."""
        sides = np.maximum(self._index["side"][indices], 0).astype(np.int64)
        for row in np.flatnonzero((sides > 0) & ~self._checked[indices]):
            index = int(indices[row])
            if self._is_valid(index):
                self._checked[index] = True
            else:
                sides[row] = 0
        return sides

    def starts(self, indices: np.ndarray) -> np.ndarray:
        """[b] indices -> [b] int64: the offsets of their pixels in `memory`."""
        return indices.astype(np.int64) * self._bytes

    def pixels(self, index: int, side: int) -> np.ndarray:
        """[side, side, 3] uint8, read-only."""
        start = index * self._bytes
        return self.memory[start : start + side * side * 3].reshape(side, side, 3)

    def put(self, index: int, square: np.ndarray | None, stamp: bytes) -> None:
        """Stores a picture. If the disk is full, logs one warning and stores no more pictures.

        Args:
            index: of the picture.
            square: [s, s, 3] uint8 contiguous; None: it could not be read.
            stamp: of its file, taken before it was read.
        """
        if not self._writable:
            return
        try:
            if square is None:
                self._write_record(index, _DAMAGED, 0, b"")
                return
            start = index * self._bytes
            if os.pwrite(self._files["pixels"].fileno(), square.data, start) < square.nbytes:
                raise OSError("cut short")
            self._write_record(index, len(square), zlib.crc32(square.data), stamp)
            self._checked[index] = True
        except OSError as error:
            self._writable = False
            logging.getLogger(__name__).warning(
                "%s takes no more pictures: %s", self._folder, error.strerror or error
            )

    def _write_record(self, index: int, side: int, crc: int, stamp: bytes) -> None:
        record = np.array((side, crc, stamp), _RECORD)
        os.pwrite(self._files["index"].fileno(), record.tobytes(), index * _RECORD.itemsize)

    def _is_valid(self, index: int) -> bool:
        record = self._index[index]
        side = int(record["side"])
        if not 0 < side <= self._side_px:
            return False
        # NumPy strips zero bytes from the end of a byte string.
        same = record["stamp"] == self._source.stamp(index).rstrip(b"\0")
        return bool(same) and zlib.crc32(self.pixels(index, side).data) == record["crc"]


def _name(source: Source, side_px: int) -> str:
    digest = hashlib.sha256(f"{_FORM} {side_px} {len(source)}".encode())
    for i in (0, len(source) // 2, len(source) - 1):  # in a mixture, from several sets
        digest.update(source.stamp(i))
    for name in source.ids:
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def _by_last_use(root: pathlib.Path, but: pathlib.Path) -> list[tuple[pathlib.Path, int]]:
    """The other sets and their sizes in bytes, the most recently used last."""
    found = [path for path in root.iterdir() if path.is_dir() and path != but]
    return [(path, _taken(path)) for path in sorted(found, key=_last_use)]


def _last_use(folder: pathlib.Path) -> float:
    try:
        return (folder / "index").stat().st_mtime
    except OSError:  # missing, or another run is removing it
        return 0


def _taken(folder: pathlib.Path) -> int:
    try:
        return sum((folder / name).stat().st_blocks * 512 for name in ("pixels", "index"))
    except OSError:
        return 0


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f} GiB"
