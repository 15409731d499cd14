"""Banding finds what comparing all pairs finds."""

import itertools

import numpy as np
import pytest

from input_pipeline.prepared import banding, leaks


def near_hashes(count: int) -> np.ndarray:
    """Random ones, a third of which are another with up to 10 bits turned round."""
    rng = np.random.default_rng(count)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for i in range(1, count, 3):
        bits = rng.choice(64, rng.integers(0, 11), replace=False)
        hashes[i] = int(hashes[i - 1]) ^ sum(1 << int(bit) for bit in bits)
    return hashes


def found(hashes: np.ndarray, max_distance: int = 8) -> list[list[int]]:
    tables = banding.tables(len(hashes), max_distance)
    parts = [banding.pairs_in(hashes, table, max_distance) for table in tables]
    return np.concatenate(parts).tolist()


@pytest.mark.parametrize("max_distance", [0, 3, 8])
def test_every_near_pair_is_found_once(max_distance):
    hashes = near_hashes(300)
    pairs = itertools.combinations(range(300), 2)
    expected = [
        [i, j] for i, j in pairs if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= max_distance
    ]
    assert len(expected) > (0 if max_distance == 0 else 20)
    assert sorted(found(hashes, max_distance)) == expected


@pytest.mark.parametrize("blocks", [9, 10, 11, 12])
def test_any_number_of_blocks_finds_the_same(blocks, monkeypatch):
    hashes = near_hashes(2000)
    monkeypatch.setattr(banding, "best_blocks", lambda count, max_distance: blocks)
    assert sorted(found(hashes)) == leaks.pairs_within(hashes, 8).tolist()


def test_equal_hashes_and_none_at_all():
    assert found(np.full(5, 7, np.uint64)) == [list(p) for p in itertools.combinations(range(5), 2)]
    assert found(np.zeros(0, np.uint64)) == []


def test_more_hashes_are_cut_into_more_blocks():
    blocks = [banding.best_blocks(10**power, 8) for power in range(3, 9)]
    assert blocks == sorted(blocks)
    assert blocks[0] == 9 and blocks[-1] > 10
