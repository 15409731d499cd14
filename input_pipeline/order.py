"""The picture at each position of a run, and its random numbers: pure functions of the seed."""

import functools

import numpy as np

DRAWS = 8  # random numbers for a training picture: a multiple of 4, a block of Philox

# Indices of a position's draws: the place of the crop (the low bits of the first give the zoom),
# whether WebP compresses it and at which quality, whether it becomes a fake, and which real picture
# is then used.
TOP, LEFT, WEBP, QUALITY, BLENDED, REAL = 0, 1, 4, 5, 6, 7


def order(seed: int, n: int, positions: np.ndarray) -> np.ndarray:
    """Which of `n` pictures are at these positions of a run: each once in every epoch.

    grain's own MapDataset.shuffle does the same, but for one position at a time, at 16 us each, a
    fifteenth of the time of decoding; and its next version may draw other random numbers.

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


@functools.lru_cache(maxsize=4)  # a batch may span two epochs, and several load at once
def _epoch_order(seed: int, n: int, epoch: int) -> np.ndarray:
    # Sort raw bits instead of using Generator.permutation: NumPy guarantees only the raw bits.
    bits = np.random.Philox(key=[seed, 1 + epoch]).random_raw(n)
    return np.argsort(bits, kind="stable").astype(np.int32)


def draw_table(seed: int, first: int, rows: int) -> np.ndarray:
    """[rows, DRAWS] float64 in [0, 1): row r has the random numbers of position `first + r`.

    Philox is counter-based, so it can jump to any position.
    """
    bits = np.random.Philox(key=[seed, 0])
    bits.advance(first * DRAWS // 4)
    return np.random.Generator(bits).random((rows, DRAWS))
