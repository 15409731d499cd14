"""Batches of uint8 pictures in an order that depends on nothing but the seed.

One integer is the position in the data: example number `k * batch_size + row` of a run is the same,
crop and damage included, on any number of processes, threads or workers, however often the run was
interrupted (DESIGN.md, decision 5).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import grain
import numpy as np

from input_pipeline import transforms
from input_pipeline.cli import UserError
from input_pipeline.decode import DecodeError, decode, image_size
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
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    load = _LoadTrain(
        source=source,
        order=order,
        transform=_transform(data_config, data_config.image_size),
        seed=seed,
        batch_size=batch_size,
        first_row=process_index * rows,
        rows=rows,
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
) -> Batches:
    """Every picture exactly once over all processes, in the source's order, undamaged.

    Arguments and batches are as of `train_batches`, S being `data_config.eval_image_size`, and
    "mask" [b] bool is False where there is no picture: past the end (index -1), or unreadable. All
    processes get the same number of batches.
    """
    if data_config.eval_image_size < 1:
        raise ValueError("eval_image_size is 0: resolve it first (median_shorter_side)")
    rows = _rows(batch_size, process_count)
    load = _LoadEval(
        source=source,
        transform=_transform(data_config, data_config.eval_image_size),
        batch_size=batch_size,
        first_row=process_index * rows,
        rows=rows,
    )
    batches = grain.MapDataset.range(-(-len(source) // batch_size)).map(load)
    return Batches(_iterate(batches, data_config), on_bad)


def median_shorter_side(source: Source, sample: int = 64) -> int:
    """px, of `sample` pictures spread evenly over the source, from their headers.

    Raises UserError where none of them can be read.
    """
    sides = []
    for i in np.unique(np.linspace(0, len(source) - 1, sample).astype(int)):
        with contextlib.suppress(DecodeError, OSError):
            sides.append(min(image_size(source.read(int(i)))))
    if not sides:
        raise UserError(f"{source.ids[0]} and others: not one of them is a readable picture")
    return int(np.median(sides))


def draw_table(seed: int, first: int, rows: int) -> np.ndarray:
    """[rows, DRAWS] float64 in [0, 1): row r is what position `first + r` draws, and no other does.

    Philox is counter-based, so a position is reached by a jump.
    """
    bits = np.random.Philox(key=seed)
    bits.advance(first * _BLOCKS)
    return np.random.Generator(bits).random((rows, transforms.DRAWS))


@dataclasses.dataclass(frozen=True)
class _LoadTrain:
    source: Source
    order: grain.MapDataset
    transform: transforms.Transform
    seed: int
    batch_size: int
    first_row: int
    rows: int

    def __call__(self, k: int) -> tuple[Batch, list[tuple[str, str]]]:
        first = k * self.batch_size + self.first_row
        draws = draw_table(self.seed, first, self.rows)
        size = self.transform.size
        images = np.empty((self.rows, size, size, 3), np.uint8)
        indices = np.empty(self.rows, np.int32)
        bad = []
        for row in range(self.rows):
            index, pixels = self._read_or_next(self.order[first + row], bad)
            transforms.train(pixels, self.transform, draws[row], images[row])
            indices[row] = index
        return {
            "image": images,
            "label": self.source.labels[indices],
            "position": np.arange(first, first + self.rows, dtype=np.uint32),
            "index": indices,
        }, bad

    def _read_or_next(self, index: int, bad: list) -> tuple[int, np.ndarray]:
        for _ in range(min(len(self.source), _MAX_BAD_IN_A_ROW)):
            pixels = _read(self.source, index, bad)
            if pixels is not None:
                return index, pixels
            index = (index + 1) % len(self.source)
        name, reason = bad[-1]
        raise UserError(f"{name} and all pictures before it cannot be read: {reason}")


@dataclasses.dataclass(frozen=True)
class _LoadEval:
    source: Source
    transform: transforms.Transform
    batch_size: int
    first_row: int
    rows: int

    def __call__(self, k: int) -> tuple[Batch, list[tuple[str, str]]]:
        first = k * self.batch_size + self.first_row
        positions = np.arange(first, first + self.rows)
        indices = np.where(positions < len(self.source), positions, -1).astype(np.int32)
        size = self.transform.size
        images = np.zeros((self.rows, size, size, 3), np.uint8)
        mask = np.zeros(self.rows, bool)
        bad = []
        for row in np.flatnonzero(indices >= 0):
            pixels = _read(self.source, int(indices[row]), bad)
            if pixels is not None:
                transforms.evaluate(pixels, self.transform, images[row])
                mask[row] = True
        return {
            "image": images,
            "label": np.where(indices >= 0, self.source.labels[indices], 0).astype(np.int32),
            "position": positions.astype(np.uint32),
            "index": indices,
            "mask": mask,
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


def _transform(data_config, size: int) -> transforms.Transform:
    # A plain object: a ConfigDict takes microseconds a look-up, several a picture.
    return transforms.Transform(
        size=size,
        max_px=data_config.max_px,
        crop=data_config.crop,
        jpeg_prob=data_config.jpeg_prob,
        jpeg_quality=tuple(data_config.jpeg_quality),
        downscale_prob=data_config.downscale_prob,
        downscale=tuple(data_config.downscale),
    )


def _iterate(batches: grain.MapDataset, data_config) -> grain.DatasetIterator:
    """Loads batches ahead of the caller: one batch a thread, and one waiting for each."""
    threads = data_config.threads
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
    dataset = batches.to_iter_dataset(read_options=options)
    if data_config.workers:
        workers = grain.MultiprocessingOptions(data_config.workers, per_worker_buffer_size=1)
        dataset = dataset.mp_prefetch(workers)
    return iter(dataset)
