"""Batches of uint8 pictures in an order that depends on nothing but the seed.

One integer is the position in the data: example number `k * batch_size + row` of a run is the same,
crop and damage included, on any number of processes, threads or workers, however often the run was
interrupted (DESIGN.md, decision 5).
"""

import dataclasses
import functools
import mmap
import os
import weakref
from collections.abc import Callable, Iterator

import grain
import numpy as np
from absl import flags

from input_pipeline import blending, mixtures, transforms
from input_pipeline.cli import UserError
from input_pipeline.decode import DecodeError, decode
from input_pipeline.sources import Source

Batch = dict[str, np.ndarray]
OnBad = Callable[[str, str], None]

# A random table is a Philox stream: row `position` takes this many of its 4-number blocks.
_BLOCKS = transforms.DRAWS // 4
# A training picture is replaced by the next one; so many unreadable in a row are no accident.
_MAX_BAD_IN_A_ROW = 1000


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
        # Bad pictures travel with their batch, so that they are reported here, in the caller's own
        # thread and process, whoever decoded them; a run that is repeated reports the same.
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
    data_config,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    on_bad: OnBad | None = None,
) -> Batches:
    """Endless shuffled batches for training; every picture once an epoch, no tail dropped.

    Args:
        source: the pictures.
        data_config: `config.data`.
        batch_size: of the global batch; this process gets rows [p*b, (p+1)*b), b = batch_size /
            process_count.
        seed: of the order, the crops and the damage; 0 to 2**32 - 1.
        start: number of the first global batch to give.
        process_index, process_count: this process among those that share the run.
        on_bad: told (id, reason) once for each picture that cannot be read; the next picture of the
            source takes its place.

    Returns:
        Batches of "image" [b, S, S, 3] uint8, "label" [b] int32, "position" [b] uint32 (k *
        batch_size + row), "index" [b] int32 (in the source). A UserError from the iterator: nothing
        there can be read.
    """
    rows = _rows(batch_size, process_count)
    if isinstance(source, mixtures.Mixture):
        order_of = mixtures.Order(source, seed, data_config.weights, data_config.balance)
    else:
        order_of = functools.partial(order, seed, len(source))
    load = _LoadTrain(
        source=source,
        order=order_of,
        transform=_train_transform(data_config),
        memory=_Memory((rows, data_config.image_size, data_config.image_size, 3)),
        seed=seed,
        batch_size=batch_size,
        first_row=process_index * rows,
        rows=rows,
        blended=data_config.blended,
        reals=np.flatnonzero(np.asarray(source.labels) == 1),
    )
    # Positions are uint32: at 10,000 images/s, five days of training.
    batches = grain.MapDataset.range(2**32 // batch_size)[start:].map(load)
    return Batches(_iterate(batches, data_config), on_bad)


def eval_batches(
    source: Source,
    data_config,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    on_bad: OnBad | None = None,
    least_px: int = 0,
) -> Batches:
    """Every picture exactly once over all processes, in the source's order, undamaged.

    Same arguments and keys as `train_batches`; images have side `evaluation_side`. "mask" [b] bool
    is False where there is no picture: past the end (index -1), unreadable, or refused. "refused"
    [b] int32 says why the last: the shorter side in px of a picture that has fewer than `least_px`,
    `ONE_COLOUR` of a picture whose middle has only one; 0 of others. `least_px` 0 refuses nothing.
    All processes get the same number of batches.
    """
    size = evaluation_side(data_config)
    rows = _rows(batch_size, process_count)
    load = _LoadEval(
        source=source,
        transform=eval_transform(data_config),
        memory=_Memory((rows, size, size, 3)),
        batch_size=batch_size,
        first_row=process_index * rows,
        rows=rows,
        least_px=least_px,
    )
    batches = grain.MapDataset.range(-(-len(source) // batch_size)).map(load)
    return Batches(_iterate(batches, data_config), on_bad)


def shorter_side(data_config) -> int:
    """px that a picture's shorter side is scaled to before the crop; see `transforms.Transform`."""
    if data_config.crop == "resize":
        return round(data_config.image_size / data_config.crop_pct)
    return data_config.max_px


def evaluation_side(data_config) -> int:
    """px of the pictures that are scored: by default those of training.

    More of a picture is not better: the maps of the last stage get another size, padding another
    share of them, and what is fake another mean (docs/RESULTS.md).
    """
    return data_config.eval_image_size or data_config.image_size


def order(seed: int, n: int, positions: np.ndarray) -> np.ndarray:
    """Which of `n` pictures are at these positions of a run: each once in every epoch.

    grain's own MapDataset.shuffle does the same for one position at a time: 16 us each, a fifteenth
    of what decoding takes, and from random numbers that its next version may draw otherwise.

    Args:
        positions: [...] int64, from 0; position // n is the epoch.

    Returns:
        [...] int32 indices.
    """
    epochs, places = np.divmod(positions, n)
    indices = np.empty(positions.shape, np.int32)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _epoch_order(seed, n, int(epoch))[places[here]]
    return indices


@functools.lru_cache(maxsize=4)  # a batch may span two epochs, and others are loaded beside it
def _epoch_order(seed: int, n: int, epoch: int) -> np.ndarray:
    # Sorting raw bits rather than Generator.permutation: NumPy promises to keep only the former.
    bits = np.random.Philox(key=[seed, 1 + epoch]).random_raw(n)
    return np.argsort(bits, kind="stable").astype(np.int32)


def draw_table(seed: int, first: int, rows: int) -> np.ndarray:
    """[rows, DRAWS] float64 in [0, 1): row r is what position `first + r` draws, and no other does.

    Philox is counter-based, so a position is reached by a jump.
    """
    bits = np.random.Philox(key=[seed, 0])
    bits.advance(first * _BLOCKS)
    return np.random.Generator(bits).random((rows, transforms.DRAWS))


class _Memory:
    """Pixels of batches, in memory that is used again when the last holder of a batch lets go.

    Fresh memory for every batch costs a third of the throughput on a virtual machine: the kernel
    hands it out page by page, under a lock that all threads share.
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
        # Every view of `flat`, and what JAX makes of one without copying, keeps `flat` alive. That
        # needs an owner that is no ndarray: a view of a view would refer to the owner instead.
        flat = np.frombuffer(memory, np.uint8, int(np.prod(self.shape)))
        weakref.finalize(flat, self._spare.append, memory).atexit = False
        return flat.reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class _LoadTrain:
    source: Source
    order: Callable[[np.ndarray], np.ndarray]  # [b] positions -> [b] indices
    transform: transforms.Transform
    memory: _Memory
    seed: int
    batch_size: int
    first_row: int
    rows: int
    blended: float  # share of the fakes that are made of real pictures
    reals: np.ndarray  # [R] indices of the real pictures

    def __call__(self, k: int) -> tuple[Batch, list[tuple[str, str]]]:
        first = k * self.batch_size + self.first_row
        positions = np.arange(first, first + self.rows)
        # Lists: the loop below is what threads queue for (the GIL), and NumPy's numbers are slow.
        indices = self.order(positions).tolist()
        labels = self.source.labels[indices]
        draws = draw_table(self.seed, first, self.rows).tolist()
        images = self.memory.take()
        bad = []
        for row, index in enumerate(indices):
            change = None
            if labels[row] == 0 and draws[row][6] < self.blended:
                index = int(self.reals[int(draws[row][7] * len(self.reals))])
                rng = np.random.Generator(
                    np.random.Philox(key=[self.seed | 2**62, int(positions[row])])
                )
                change = functools.partial(blending.make_fake, rng=rng)
            pixels = _read(self.source, index, bad)
            if pixels is None:
                index, pixels = self._next_readable(index, bad)
            indices[row] = index
            labels[row] = 0 if change else self.source.labels[index]
            transforms.train(pixels, self.transform, draws[row], images[row], change)
        indices = np.array(indices, np.int32)
        return {
            "image": images,
            "label": labels,
            "position": positions.astype(np.uint32),
            "index": indices,
        }, bad

    def _next_readable(self, index: int, bad: list) -> tuple[int, np.ndarray]:
        for _ in range(min(len(self.source), _MAX_BAD_IN_A_ROW) - 1):
            index = (index + 1) % len(self.source)
            pixels = _read(self.source, index, bad)
            if pixels is not None:
                return index, pixels
        name, reason = bad[-1]
        raise UserError(f"{name} and all pictures before it cannot be read: {reason}")


@dataclasses.dataclass(frozen=True)
class _LoadEval:
    source: Source
    transform: transforms.Transform
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
        return decode(source.read(index))
    except (DecodeError, OSError) as error:
        bad.append((source.ids[index], str(error)))
        return None


def _rows(batch_size: int, process_count: int) -> int:
    if batch_size % process_count:
        raise ValueError(f"batch_size {batch_size} does not divide by {process_count} processes")
    return batch_size // process_count


def eval_transform(data_config) -> transforms.Transform:
    """Reads nothing that only training needs: a checkpoint's config may be older than a field."""
    return transforms.Transform(
        size=evaluation_side(data_config),
        shorter_px=shorter_side(data_config),
        crop=data_config.crop,
    )


def _train_transform(data_config) -> transforms.Transform:
    # A plain object: a ConfigDict takes microseconds a look-up, several a picture.
    return transforms.Transform(
        size=data_config.image_size,
        shorter_px=shorter_side(data_config),
        crop=data_config.crop,
        zoom=tuple(data_config.zoom),
        jpeg_prob=data_config.jpeg_prob,
        jpeg_quality=tuple(data_config.jpeg_quality),
        downscale_prob=data_config.downscale_prob,
        downscale=tuple(data_config.downscale),
    )


def _cores() -> int:
    """That this process may use: fewer than the machine has under taskset or SLURM."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _iterate(batches: grain.MapDataset, data_config) -> grain.DatasetIterator:
    """Loads batches ahead of the caller: one batch a thread, and one waiting for each."""
    # More threads than cores are slower: they queue for the GIL (docs/PERFORMANCE.md). At most 16:
    # every one holds two batches.
    threads = data_config.threads or max(1, min(_cores(), 16) // max(1, data_config.workers))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
    dataset = batches.to_iter_dataset(read_options=options)
    if data_config.workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read some; only `main` parses any
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(data_config.workers, per_worker_buffer_size=1)
        dataset = dataset.mp_prefetch(workers)
    return iter(dataset)
