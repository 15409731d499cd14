"""Near copies by banding: all pairs of 64-bit hashes within a Hamming distance, group by group.

Cut 64 bits into B blocks. Hashes that differ in at most d bits agree in at least B − d blocks. Each
of the C(B, B − d) tables groups the hashes by some B − d blocks, so each such pair shares a group
in some table. Tables are independent: each Ray task takes one. More blocks mean more tables and
smaller groups; the best number depends on the number of hashes. (Greene, Parnas, Yao, "Multi-index
hashing for information retrieval", FOCS 1994. `leaks.pairs_within` finds the same pairs in one
process, by looking up neighbours.)
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from input_pipeline.prepared import leaks

_BITS = 64
# Seconds to sort a hash and to compare a pair, measured by `benchmarks/near_duplicates.py`. Only
# their ratio matters, and only for the number of blocks.
_SORT_S, _PAIR_S = 1e-7, 2e-8


def tables(count: int, max_distance: int) -> list[list[int]]:
    """The tables for `count` hashes. Each is a list of masks: first one mask of all blocks it
    groups by, then the blocks that must differ there, so that only one table finds a pair.
    """
    blocks = best_blocks(count, max_distance)
    masks = _masks(blocks)
    out = []
    for chosen in itertools.combinations(range(blocks), blocks - max_distance):
        before = [masks[i] for i in range(chosen[-1]) if i not in chosen]
        out.append([sum(masks[i] for i in chosen), *before])
    return out


def best_blocks(count: int, max_distance: int) -> int:
    """The number of blocks with the least expected cost for evenly spread hashes."""

    def cost(blocks: int) -> float:
        agreeing = blocks - max_distance
        bits = _BITS * agreeing / blocks
        one = count * _SORT_S + count**2 / 2 ** (bits + 1) * _PAIR_S
        return math.comb(blocks, agreeing) * one

    return min(range(max_distance + 1, max_distance + 7), key=cost)


def _masks(blocks: int) -> list[int]:
    edges = [round(_BITS * i / blocks) for i in range(blocks + 1)]
    return [(1 << stop) - (1 << start) for start, stop in itertools.pairwise(edges)]


def pairs_in(hashes: np.ndarray, table: Sequence[int], max_distance: int) -> np.ndarray:
    """The pairs that one table has to find.

    Args:
        hashes: [N] uint64.
        table: one of `tables`.

    Returns:
        [M, 2] int64, left < right, in any order.
    """
    group, *must_differ = (np.uint64(mask) for mask in table)
    keys = hashes & group
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    # For each hash, the hashes of its group that follow it.
    ends = np.flatnonzero(np.append(keys[1:] != keys[:-1], True)) + 1
    sizes = np.diff(ends, prepend=0)
    after = np.arange(1, len(keys) + 1)
    found = [np.empty((0, 2), np.int64)]
    for left, right in leaks.expand(after, np.repeat(ends, sizes)):
        left, right = order[left], order[right]
        apart = hashes[left] ^ hashes[right]
        keep = np.bitwise_count(apart) <= max_distance
        left, right, apart = left[keep], right[keep], apart[keep]
        for mask in must_differ:
            keep = apart & mask != 0
            left, right, apart = left[keep], right[keep], apart[keep]
        found.append(np.stack([np.minimum(left, right), np.maximum(left, right)], axis=1))
    return np.concatenate(found)
