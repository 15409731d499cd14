"""Batches of uint8 pictures in an order that depends only on the seed.

One integer is the position in the data. Example number `k * batch_size + row` of a run, with its
crop and damage, is always the same: for any number of processes, threads or workers, however often
the run was interrupted.
"""

import dataclasses
import functools
import mmap
import weakref
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from input_pipeline import blending, cores, mixtures, transforms
from input_pipeline import order as order_lib
from input_pipeline.cli import UserError
from input_pipeline.decode import DecodeError
from input_pipeline.gather import gather
from input_pipeline.slots import Slots
from input_pipeline.sources import Source
from input_pipeline.transforms import Transform

Batch = dict[str, np.ndarray]
OnBad = Callable[[str, str], None]

# An unreadable training picture is replaced by the next one, but not this many in a row.
_MAX_BAD_IN_A_ROW = 1000
_WEBP_QUALITY = (30, 95)


class Batches:
    """An iterator of batches that owns threads or processes: close it, or use it in a `with`."""

    def __init__(self, iterator: grain.DatasetIterator, on_bad: OnBad | None):
        self._iterator = iterator
        self._on_bad = on_bad
        self._reported: set[str] = set()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch, bad = next(self._iterator)
        # Bad pictures come with their batch, so they are reported here, in the caller's thread and
        # process, whichever worker decoded them. A repeated run reports the same pictures.
        for name, reason in bad:
            if self._on_bad and name not in self._reported:
                self._on_bad(name, reason)
            self._reported.add(name)
        return batch

    def close(self) -> None:
        self._iterator.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def train_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    blended: float = 0.0,
    webp: float = 0.0,
    weights: Sequence[float] = (),
    balance: bool = True,
    threads: int = 0,
    workers: int = 0,
    on_bad: OnBad | None = None,
    slots: Slots | None = None,
    resident: bool = False,
) -> Batches:
    """Endless shuffled batches for training; every picture once an epoch, no tail dropped.

    Args:
        source: the pictures.
        transform: what is cut out of a picture.
        batch_size: of the global batch; this process gets rows [p*b, (p+1)*b), b = batch_size /
            process_count.
        seed: of the order, the crops and the damage; 0 to 2**32 - 1.
        start: number of the first global batch to yield.
        process_index, process_count: this process among those that share the run.
        blended: share of the fakes that are made from real pictures, see `blending`.
        webp: share of the crops that are compressed as WebP, at a quality of 30 to 95.
        weights, balance: of a mixture's sets and classes, see `mixtures.Order`.
        threads: that load batches, per process; 0: one per core, at most 16 in all.
        workers: processes that load batches; 0: threads only.
        on_bad: called once with (id, reason) for each picture that cannot be read; the next picture
            of the source replaces it.
        slots: where decoded pictures are kept; the batches are the same without it.
        resident: yield the positions of crops in `slots`, which must be complete, instead of their
            pixels: "crop" [b, 3] int32 (index, top, left) instead of "image". Not with `zoom`,
            `blended` or `webp`.

    Returns:
        Batches of "image" [b, S, S, 3] uint8, "label" [b] int32, "position" [b] uint32 (k *
        batch_size + row), "index" [b] int32 (in the source). The iterator raises UserError if too
        many pictures in a row cannot be read.
    """
    rows = _rows(batch_size, process_count)
    if isinstance(source, mixtures.Mixture):
        order_of = mixtures.Order(source, seed, weights, balance, blended)
        photographs = order_of.photographs
    else:
        order_of = functools.partial(order_lib.order, seed, len(source))
        photographs = functools.partial(_chosen, np.flatnonzero(np.asarray(source.labels) == 1))
    load = _LoadTrain(
        source=source,
        order=order_of,
        transform=transform,
        memory=_Memory((rows, transform.size, transform.size, 3)),
        seed=seed,
        batch_size=batch_size,
        first_row=process_index * rows,
        rows=rows,
        blended=blended,
        webp=webp,
        slots=slots,
        resident=resident,
        photographs=photographs,
    )
    # Positions are uint32: at 10,000 images/s, five days of training.
    batches = grain.MapDataset.range(2**32 // batch_size)[start:].map(load)
    return Batches(_iterate(batches, threads, workers), on_bad)


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 0,
    workers: int = 0,
    on_bad: OnBad | None = None,
    least_px: int = 0,
) -> Batches:
    """Every picture exactly once over all processes, in the source's order, undamaged.

    Same arguments and keys as `train_batches`. "mask" [b] bool is False for a row without a
    picture: past the end (index -1), unreadable, or refused. "refused" [b] int32 is the reason for
    the last case: the shorter side in px if it is below `least_px`, `ONE_COLOUR` if the middle of
    the picture has only one colour; otherwise 0. `least_px` 0 refuses nothing. All processes get
    the same number of batches.
    """
    rows = _rows(batch_size, process_count)
    load = _LoadEval(
        source=source,
        transform=transform,
        memory=_Memory((rows, transform.size, transform.size, 3)),
        batch_size=batch_size,
        first_row=process_index * rows,
        rows=rows,
        least_px=least_px,
    )
    batches = grain.MapDataset.range(-(-len(source) // batch_size)).map(load)
    return Batches(_iterate(batches, threads, workers), on_bad)


class _Memory:
    """Pixels of batches, in memory that is reused when nothing refers to the batch any more.

    Fresh memory for every batch costs a third of the throughput on a virtual machine: the kernel
    allocates it page by page, under a lock that all threads share.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape
        self._spare: list[mmap.mmap] = []  # append and pop are atomic

    def take(self) -> np.ndarray:
        """[*shape] uint8 with any content."""
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = mmap.mmap(-1, max(1, int(np.prod(self.shape))))
        # Every view of `flat`, and every JAX array made from one without a copy, keeps `flat`
        # alive. So its base must not be an ndarray: a view of a view would refer to that instead.
        flat = np.frombuffer(memory, np.uint8, int(np.prod(self.shape)))
        weakref.finalize(flat, self._spare.append, memory).atexit = False
        return flat.reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class _LoadTrain:
    source: Source
    order: Callable[[np.ndarray], np.ndarray]  # [b] positions -> [b] indices
    transform: Transform
    memory: _Memory
    seed: int
    batch_size: int
    first_row: int
    rows: int
    blended: float  # share of the fakes that are made from real pictures
    webp: float  # share of the crops that are compressed
    photographs: Callable[[np.ndarray], np.ndarray]  # [n] draws in [0, 1) -> [n] indices
    slots: Slots | None
    resident: bool

    def __call__(self, k: int) -> tuple[Batch, list[tuple[str, str]]]:
        first = k * self.batch_size + self.first_row
        positions = np.arange(first, first + self.rows)
        draws = order_lib.draw_table(self.seed, first, self.rows)
        indices = self.order(positions)
        labels = self.source.labels[indices]
        made = (labels == 0) & (draws[:, order_lib.BLENDED] < self.blended)
        indices[made] = self.photographs(draws[made, order_lib.REAL])

        bad: list[tuple[str, str]] = []
        sides, decoded = self._squares(indices, bad)
        labels = np.where(made, 0, self.source.labels[indices]).astype(np.int32)
        top, left, side = transforms.crops(sides, draws, self.transform)
        batch = {"label": labels, "position": positions.astype(np.uint32), "index": indices}
        if self.resident:
            crop = np.stack([indices, top, left], axis=1).astype(np.int32)
            return {"crop": crop, **batch}, bad
        images = self.memory.take()
        plain = side == self.transform.size
        plain[list(decoded)] = False
        if plain.any():
            starts = self.slots.starts(indices) + 3 * (top * sides + left)
            gather(
                self.slots.memory, starts[plain], 3 * sides[plain], np.flatnonzero(plain), images
            )
        for row in np.flatnonzero(~plain):
            square = decoded.get(row)
            if square is None:
                square = self.slots.pixels(int(indices[row]), int(sides[row]))
            (y, x), to = (top[row], left[row]), side[row]
            transforms.cut(square[y : y + to, x : x + to], images[row])
        for row in np.flatnonzero(made):
            key = [self.seed | 2**62, int(positions[row])]
            blending.make_fake(images[row], np.random.Generator(np.random.Philox(key=key)))
        low, high = _WEBP_QUALITY
        for row in np.flatnonzero(draws[:, order_lib.WEBP] < self.webp):
            quality = low + int((high - low + 1) * draws[row, order_lib.QUALITY])
            images[row] = transforms.webp(images[row], quality)
        return {"image": images, **batch}, bad

    def _squares(self, indices: np.ndarray, bad: list) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """(sides [b], {row: square} of those without a slot). In `indices`, replaces a picture that
        cannot be read by the next readable one."""
        sides = self.slots.sides(indices) if self.slots else np.zeros(self.rows, np.int64)
        decoded = {}
        for row in np.flatnonzero(sides == 0).tolist():
            if self.resident:  # its pixels are not on the device, even if it can be read by now
                indices[row], sides[row] = self._next_slot(int(indices[row]))
                continue
            indices[row], square = self._next_readable(int(indices[row]), bad)
            decoded[row], sides[row] = square, len(square)
        return sides, decoded

    def _next_slot(self, index: int) -> tuple[int, int]:
        """(the first picture after `index` that has a slot, its side)."""
        after = (index + np.arange(1, len(self.source))) % len(self.source)
        for start in range(0, len(after), _MAX_BAD_IN_A_ROW):
            sides = self.slots.sides(after[start : start + _MAX_BAD_IN_A_ROW])
            if sides.any():
                first = int(np.flatnonzero(sides)[0])
                return int(after[start + first]), int(sides[first])
        raise UserError("no decoded picture can be used: run again without config.data.cache")

    def _next_readable(self, index: int, bad: list) -> tuple[int, np.ndarray]:
        for _ in range(min(len(self.source), _MAX_BAD_IN_A_ROW)):
            square = self._square(index, bad)
            if square is not None:
                return index, square
            index = (index + 1) % len(self.source)
        name, reason = bad[-1]
        raise UserError(f"{name} and all pictures before it cannot be read: {reason}")

    def _square(self, index: int, bad: list) -> np.ndarray | None:
        stamp = self.source.stamp(index) if self.slots else b""  # before it is read
        pixels = _read(self.source, index, bad)
        square = None if pixels is None else transforms.square(pixels, self.transform)
        if self.slots:
            self.slots.put(index, square, stamp)
        return square


@dataclasses.dataclass(frozen=True)
class _LoadEval:
    source: Source
    transform: Transform
    memory: _Memory
    batch_size: int
    first_row: int
    rows: int
    least_px: int

    def __call__(self, k: int) -> tuple[Batch, list[tuple[str, str]]]:
        first = k * self.batch_size + self.first_row
        positions = np.arange(first, first + self.rows)
        indices = np.where(positions < len(self.source), positions, -1).astype(np.int32)
        images = self.memory.take()
        mask = np.zeros(self.rows, bool)
        refused = np.zeros(self.rows, np.int32)
        bad = []
        for row in np.flatnonzero(indices >= 0):
            pixels = _read(self.source, int(indices[row]), bad)
            if pixels is not None:
                transforms.evaluate(pixels, self.transform, images[row])
                refused[row] = transforms.why_refused(pixels, images[row], self.least_px)
                mask[row] = not refused[row]
        images[~mask] = 0
        return {
            "image": images,
            "label": np.where(indices >= 0, self.source.labels[indices], 0).astype(np.int32),
            "position": positions.astype(np.uint32),
            "index": indices,
            "mask": mask,
            "refused": refused,
        }, bad


def _read(source: Source, index: int, bad: list[tuple[str, str]]) -> np.ndarray | None:
    try:
        return source.read(index)
    except (DecodeError, OSError) as error:
        bad.append((source.ids[index], str(error)))
        return None


def _chosen(indices: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """One of `indices` for each uniform draw in [0, 1)."""
    return indices[(draws * len(indices)).astype(np.int64)]


def _rows(batch_size: int, process_count: int) -> int:
    if batch_size % process_count:
        raise ValueError(f"batch_size {batch_size} does not divide by {process_count} processes")
    return batch_size // process_count


def _iterate(batches: grain.MapDataset, threads: int, workers: int) -> grain.DatasetIterator:
    """Loads batches ahead of the caller, one batch per thread."""
    # More threads than cores are slower: they queue for the GIL (docs/PERFORMANCE.md). At most 16,
    # since each holds two batches.
    threads = threads or max(1, min(cores.available(), 16) // max(1, workers))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
    dataset = batches.to_iter_dataset(read_options=options)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read flags; only `main` parses them
            flags.FLAGS.mark_as_parsed()
        processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=1)
        dataset = dataset.mp_prefetch(processes)
    return iter(dataset)
