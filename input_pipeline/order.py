"""Which picture is at a position of a run, and what is drawn for it: pure functions of the seed."""

import functools

import numpy as np

DRAWS = 8  # random numbers a training picture may use: a multiple of 4, a block of Philox

# Of the draws of a position: from where a crop is taken (the low bits of the first say how near),
# and whether it becomes a fake and which picture then takes its place.
TOP, LEFT, BLENDED, REAL = 0, 1, 6, 7


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
    bits.advance(first * DRAWS // 4)
    return np.random.Generator(bits).random((rows, DRAWS))
